//! A run as one HTML page that needs nothing but itself: no network, no other file, light and dark, on a screen or a phone.

mod chart;
mod page;
mod scale;
mod series;

#[cfg(test)]
mod tests;

use fewstep_media::Frames;

/// A page to be rendered. What is empty is left out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// The heading, and the title of the window.
    pub title: String,
    /// What this is, in a sentence or two.
    pub introduction: String,
    /// The numbers to remember, as cards.
    pub headlines: Vec<Headline>,
    /// Pictures and animations.
    pub galleries: Vec<Gallery>,
    /// Numbers to compare.
    pub tables: Vec<Table>,
    /// Curves.
    pub charts: Vec<Chart>,
    /// Preformatted text, such as the resolved configuration; what is long is folded.
    pub sections: Vec<Section>,
    /// The last line, such as versions and the date.
    pub footer: String,
}

/// A number to remember.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headline {
    /// What it is: `student, 4 steps`.
    pub label: String,
    /// The number with its unit.
    pub value: String,
    /// More about it, in a few words, or nothing.
    pub note: String,
}

/// A grid of pictures of one size, with a caption a row; animations play in step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gallery {
    /// The heading.
    pub heading: String,
    /// What to look at, or nothing.
    pub note: String,
    /// What each column shows: `teacher, 50 steps`.
    pub columns: Vec<String>,
    /// The rows.
    pub rows: Vec<GalleryRow>,
}

/// A row of a gallery.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GalleryRow {
    /// What the row shows, such as the prompt.
    pub caption: String,
    /// A picture for each column.
    pub cells: Vec<DataUri>,
}

/// A picture inside a page: an address that begins with `data:image/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataUri(String);

/// A table of numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// The heading.
    pub heading: String,
    /// What is compared, or nothing.
    pub note: String,
    /// The columns; the first names the rows.
    pub columns: Vec<Column>,
    /// A text for each column; a number may be followed by more, as in `0.12 ± 0.01` or `3.4 s`.
    pub rows: Vec<Vec<String>>,
}

/// A column of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Column {
    /// The name.
    pub name: String,
    /// Which of its numbers is set in bold.
    pub best: Best,
}

/// Which number of a column is the best.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Best {
    /// None.
    #[default]
    None,
    /// The lowest, and what equals it as printed.
    Lowest,
    /// The highest, and what equals it as printed.
    Highest,
}

/// Curves over a common axis.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chart {
    /// The heading.
    pub heading: String,
    /// What to look at, or nothing.
    pub note: String,
    /// The horizontal axis, with its unit.
    pub x_label: String,
    /// The vertical axis, with its unit.
    pub y_label: String,
    /// Whether the vertical axis is logarithmic; points at or below zero are then left out, and counted.
    pub log_y: bool,
    /// The curves.
    pub series: Vec<Series>,
}

/// A curve. One of many points is drawn faintly, with its running mean over it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series {
    /// The name in the legend.
    pub name: String,
    /// Points in the order of x. Points that are not finite are left out, and counted.
    pub points: Vec<(f64, f64)>,
}

/// Text as it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Section {
    /// The heading.
    pub heading: String,
    /// The text.
    pub text: String,
}

/// What can be wrong with a report.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// A row has more or fewer cells than there are columns.
    #[error("{what}: expected {expected} cells, one for each column, got {got}")]
    Cells {
        /// The row.
        what: String,
        /// The number of columns.
        expected: usize,
        /// The number of cells.
        got: usize,
    },
    /// An address is that of no picture inside the page.
    #[error("expected an address that begins with `data:image/`, got `{0}`: a page must not need the network")]
    Address(String),
    /// A clip cannot be encoded.
    #[error(transparent)]
    Picture(#[from] fewstep_media::MediaError),
}

impl DataUri {
    /// Takes an address that begins with `data:image/`.
    ///
    /// # Errors
    /// [`ReportError::Address`] for any other.
    pub fn new(address: impl Into<String>) -> Result<Self, ReportError> {
        let address = address.into();
        if address.starts_with("data:image/") {
            return Ok(Self(address));
        }
        Err(ReportError::Address(address.chars().take(40).collect()))
    }

    /// Encodes a clip as an animated PNG, exactly.
    ///
    /// # Errors
    /// [`ReportError::Picture`] should the encoder refuse.
    pub fn from_frames(frames: &Frames) -> Result<Self, ReportError> {
        Ok(Self(frames.to_data_uri_apng()?))
    }

    /// The address.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Renders a report as HTML.
///
/// # Errors
/// [`ReportError::Cells`] for a row that does not fit its columns.
pub fn render(report: &Report) -> Result<String, ReportError> {
    let fits = |what: String, expected: usize, got: usize| {
        if expected == got { Ok(()) } else { Err(ReportError::Cells { what, expected, got }) }
    };
    for gallery in &report.galleries {
        for row in &gallery.rows {
            fits(
                format!("gallery `{}`, row `{}`", gallery.heading, row.caption),
                gallery.columns.len(),
                row.cells.len(),
            )?;
        }
    }
    for table in &report.tables {
        for (i, row) in table.rows.iter().enumerate() {
            fits(format!("table `{}`, row {}", table.heading, i + 1), table.columns.len(), row.len())?;
        }
    }
    Ok(page::page(report).into_string())
}
