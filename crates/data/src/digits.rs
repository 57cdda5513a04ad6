//! The source images: 1,797 handwritten digits of 8×8 pixels, embedded in the program.

use std::fmt;
use std::io::Read;
use std::sync::OnceLock;

use flate2::read::GzDecoder;

use crate::caption::{Digit, Split};
use crate::error::{DataError, Result};

/// Height and width of a source image, in pixels.
pub const DIGIT_SIZE: usize = 8;

/// Source images a clip can be drawn from; see `assets/README.md` for origin and licence.
static ASSET: &[u8] = include_bytes!("../assets/digits.csv.gz");

/// Full ink in the asset.
const FULL_INK: u8 = 16;

/// Values up to the first are drawn as background and from the second on as full ink, chosen by eye: strokes that cover
/// a part of a pixel are otherwise so pale that a digit placed between pixels blurs.
const CONTRAST: [f32; 2] = [3.0, 13.0];

/// Of three images of a class, so many are used.
const KEPT_OF_THREE: usize = 2;

/// One kept image in this many of each class is held out.
const HELD_OUT_EVERY: usize = 5;

/// With fewer images a class would not have one in each split.
const LEAST_OF_A_CLASS: usize = HELD_OUT_EVERY * 3 / KEPT_OF_THREE + 1;

type Ink = [f32; DIGIT_SIZE * DIGIT_SIZE];

/// One handwritten digit.
#[derive(Clone, Debug, PartialEq)]
pub struct DigitImage {
    /// What was written.
    pub digit: Digit,
    /// Ink in [0, 1] after a gain in contrast, [DIGIT_SIZE, DIGIT_SIZE], rows from the top.
    pub ink: [f32; DIGIT_SIZE * DIGIT_SIZE],
}

/// All images, with the indices of those in use of each (split, class).
pub(crate) struct Collection {
    images: Vec<DigitImage>,
    members: [[Vec<usize>; Digit::ALL.len()]; Split::ALL.len()],
}

impl fmt::Debug for Collection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} digit images", self.images.len())
    }
}

impl Collection {
    /// The embedded images, decoded at the first call (a few milliseconds) and kept.
    pub(crate) fn embedded() -> Result<&'static Self> {
        static COLLECTION: OnceLock<Result<Collection, String>> = OnceLock::new();
        COLLECTION
            .get_or_init(|| Self::from_gzip(ASSET))
            .as_ref()
            .map_err(|reason| DataError::Asset { reason: reason.clone() })
    }

    /// The image of this index in the asset.
    pub(crate) fn image(&self, index: usize) -> &DigitImage {
        &self.images[index]
    }

    /// The asset's indices of one class in one split, ascending; never empty.
    pub(crate) fn members(&self, split: Split, digit: Digit) -> &[usize] {
        &self.members[split.index()][digit.index()]
    }

    fn from_gzip(bytes: &[u8]) -> Result<Self, String> {
        let mut text = String::new();
        GzDecoder::new(bytes).read_to_string(&mut text).map_err(|error| error.to_string())?;
        Self::from_csv(&text)
    }

    fn from_csv(text: &str) -> Result<Self, String> {
        let images = text
            .lines()
            .enumerate()
            .map(|(i, line)| image_of_line(line).map_err(|what| format!("line {}: {what}", i + 1)))
            .collect::<Result<Vec<_>, _>>()?;
        let mut classes: [Vec<usize>; Digit::ALL.len()] = Default::default();
        for (index, image) in images.iter().enumerate() {
            classes[image.digit.index()].push(index);
        }
        if let Some(digit) = Digit::ALL.into_iter().find(|digit| classes[digit.index()].len() < LEAST_OF_A_CLASS) {
            return Err(format!("fewer than {LEAST_OF_A_CLASS} images of {digit}"));
        }
        keep_clearest(&images, &mut classes);
        let mut members: [[Vec<usize>; Digit::ALL.len()]; Split::ALL.len()] = Default::default();
        for (class, indices) in classes.into_iter().enumerate() {
            // Counted within the class: much of the file runs 0, 1, …, 9, so its line number modulo five would hold
            // out two classes only.
            for (i, index) in indices.into_iter().enumerate() {
                let split = if i % HELD_OUT_EVERY == HELD_OUT_EVERY - 1 { Split::HeldOut } else { Split::Train };
                members[split.index()][class].push(index);
            }
        }
        Ok(Self { images, members })
    }
}

/// Keeps the clearest two thirds of each class, in the order of the asset. An image is the clearer the nearer it is to the
/// mean of its own class, compared with the nearest mean of another: ‖x − μ_other‖² − ‖x − μ_own‖². The rest, at this size,
/// people misread, so a generator that learned them would be judged wrong for what it does right.
fn keep_clearest(images: &[DigitImage], classes: &mut [Vec<usize>]) {
    let means: Vec<Ink> = classes.iter().map(|indices| mean(images, indices)).collect();
    for (class, indices) in classes.iter_mut().enumerate() {
        let clarity = |index: &usize| {
            let from = |mean: &Ink| squared_distance(&images[*index].ink, mean);
            let others = means.iter().enumerate().filter(|&(other, _)| other != class);
            others.map(|(_, mean)| from(mean)).fold(f32::INFINITY, f32::min) - from(&means[class])
        };
        indices.sort_by(|a, b| clarity(b).total_cmp(&clarity(a)));
        indices.truncate(indices.len() * KEPT_OF_THREE / 3);
        indices.sort_unstable();
    }
}

fn mean(images: &[DigitImage], indices: &[usize]) -> Ink {
    let sum = |pixel: usize| indices.iter().map(|&index| images[index].ink[pixel]).sum::<f32>();
    std::array::from_fn(|pixel| sum(pixel) / indices.len() as f32)
}

fn squared_distance(a: &Ink, b: &Ink) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum()
}

fn image_of_line(line: &str) -> Result<DigitImage, String> {
    let fields = line
        .split(',')
        .map(|field| field.parse::<u8>().map_err(|_| format!("`{field}` is not a small integer")))
        .collect::<Result<Vec<_>, _>>()?;
    let Some((&class, ink)) = fields.split_last() else {
        return Err("empty".to_owned());
    };
    let ink: [u8; DIGIT_SIZE * DIGIT_SIZE] =
        ink.try_into().map_err(|_| format!("expected 65 fields, got {}", fields.len()))?;
    if let Some(value) = ink.iter().find(|&&value| value > FULL_INK) {
        return Err(format!("ink {value} is above {FULL_INK}"));
    }
    let digit = *Digit::ALL.get(usize::from(class)).ok_or_else(|| format!("class {class} is above 9"))?;
    Ok(DigitImage {
        digit,
        ink: ink.map(|value| ((f32::from(value) - CONTRAST[0]) / (CONTRAST[1] - CONTRAST[0])).clamp(0.0, 1.0)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn csv_line(ink: &str, class: &str) -> String {
        format!("{}{class}", format!("{ink},").repeat(64))
    }

    #[test]
    fn embedded_collection_has_the_published_number_of_images() {
        assert_eq!(Collection::embedded().unwrap().images.len(), 1797);
    }

    #[test]
    fn two_thirds_of_each_class_are_in_use() {
        let collection = Collection::embedded().unwrap();
        for digit in Digit::ALL {
            let all = collection.images.iter().filter(|image| image.digit == digit).count();
            let used = Split::ALL.map(|split| collection.members(split, digit).len());
            assert_eq!(used[0] + used[1], all * 2 / 3, "{digit}");
        }
    }

    #[test]
    fn malformed_lines_are_refused_with_their_number() {
        let good = csv_line("3", "0");
        for (bad, reason) in [
            (good.replace("3,0", "3"), "line 2: expected 65 fields, got 64"),
            (format!("{good},1"), "line 2: expected 65 fields, got 66"),
            (csv_line("17", "0"), "line 2: ink 17 is above 16"),
            (csv_line("-1", "0"), "line 2: `-1` is not a small integer"),
            (csv_line("3", "10"), "line 2: class 10 is above 9"),
            (String::new(), "line 2: `` is not a small integer"),
        ] {
            let text = format!("{good}\n{bad}\n");
            assert_eq!(Collection::from_csv(&text).unwrap_err(), reason, "{bad}");
        }
    }

    #[test]
    fn a_missing_class_is_refused() {
        let text = format!("{}\n", csv_line("3", "0")).repeat(9);
        let reason = Collection::from_csv(&text).unwrap_err();
        assert_eq!(reason, "fewer than 8 images of one");
    }

    #[test]
    fn a_truncated_asset_is_refused() {
        assert!(Collection::from_gzip(&ASSET[..ASSET.len() / 2]).is_err());
        assert!(Collection::from_gzip(b"").is_err());
    }
}
