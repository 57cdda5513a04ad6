//! The page: maud writes the HTML, and escapes all that comes from outside.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::{Best, Column, Gallery, Report, Section, Table, chart};

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");

/// Lines up to which preformatted text is shown unfolded.
const SHORT: usize = 8;

/// No address but pictures inside the page, whatever a text in it may contrive.
const POLICY: &str = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'";

pub(super) fn page(report: &Report) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (report.title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                main {
                    header {
                        h1 { (report.title) }
                        @if !report.introduction.is_empty() { p.introduction { (report.introduction) } }
                    }
                    @if !report.headlines.is_empty() { (headlines(report)) }
                    @for gallery in &report.galleries { (self::gallery(gallery)) }
                    @for table in &report.tables { (self::table(table)) }
                    @for chart in &report.charts { (block(&chart.heading, &chart.note, &chart::figure(chart))) }
                    @if !report.sections.is_empty() {
                        section { @for section in &report.sections { (preformatted(section)) } }
                    }
                    @if !report.footer.is_empty() { footer { (report.footer) } }
                }
                @if !report.galleries.is_empty() { script { (PreEscaped(SCRIPT)) } }
            }
        }
    }
}

fn block(heading: &str, note: &str, content: &Markup) -> Markup {
    html! {
        section {
            h2 { (heading) }
            @if !note.is_empty() { p.note { (note) } }
            (content)
        }
    }
}

fn headlines(report: &Report) -> Markup {
    html! {
        dl.headlines {
            @for headline in &report.headlines {
                div {
                    dt { (headline.label) }
                    dd.value { (headline.value) }
                    @if !headline.note.is_empty() { dd.note { (headline.note) } }
                }
            }
        }
    }
}

fn gallery(gallery: &Gallery) -> Markup {
    let content = html! {
        div.scroll {
            table.gallery style={ "--columns:" (gallery.columns.len()) } {
                thead { tr { td {} @for column in &gallery.columns { th scope="col" { (column) } } } }
                @for row in &gallery.rows {
                    tbody {
                        tr { th scope="row" { (row.caption) }
                            @for (column, cell) in gallery.columns.iter().zip(&row.cells) {
                                td { img src=(cell.as_str()) alt={ (row.caption) ", " (column) }; }
                            }
                        }
                    }
                }
            }
        }
    };
    block(&gallery.heading, &gallery.note, &content)
}

fn table(table: &Table) -> Markup {
    let is_best: Vec<Vec<bool>> = table.columns.iter().enumerate().map(|(i, column)| best(table, i, column)).collect();
    let numeric = |i: usize| i > 0 && table.rows.iter().all(|row| row[i].is_empty() || number(&row[i]).is_some());
    let numeric: Vec<bool> = (0..table.columns.len()).map(numeric).collect();
    let content = html! {
        div.scroll {
            table.numbers {
                thead { tr {
                    @for (i, column) in table.columns.iter().enumerate() {
                        th scope="col" .number[numeric[i]] { (column.name) (direction(column.best)) }
                    }
                } }
                tbody {
                    @for (r, row) in table.rows.iter().enumerate() {
                        tr { @for (i, cell) in row.iter().enumerate() {
                            @if i == 0 { th scope="row" { (cell) } }
                            @else if is_best[i][r] { td .number[numeric[i]] { strong { (cell) } } }
                            @else { td .number[numeric[i]] { (cell) } }
                        } }
                    }
                }
            }
        }
    };
    block(&table.heading, &table.note, &content)
}

fn direction(best: Best) -> Markup {
    let arrow = |sign: &str, title: &str| html! { " " abbr title=(title) { (sign) } };
    match best {
        Best::None => html! {},
        Best::Lowest => arrow("↓", "lower is better"),
        Best::Highest => arrow("↑", "higher is better"),
    }
}

/// For each row, whether its number in a column is the best one. A number alone is the best of nothing.
fn best(table: &Table, column: usize, Column { best, .. }: &Column) -> Vec<bool> {
    let numbers: Vec<Option<f64>> = table.rows.iter().map(|row| number(&row[column])).collect();
    let finite = || numbers.iter().flatten().copied().filter(|v| v.is_finite());
    let target = match best {
        Best::Lowest => finite().reduce(f64::min),
        Best::Highest => finite().reduce(f64::max),
        Best::None => None,
    };
    numbers.iter().map(|v| target.is_some() && *v == target && finite().count() > 1).collect()
}

/// The number that a text begins with.
fn number(text: &str) -> Option<f64> {
    let text = text.trim_start().replace('−', "-");
    let end = text.find(|c: char| !(c.is_ascii_digit() || "+-.eE".contains(c))).unwrap_or(text.len());
    let (mut digits, rest) = text.split_at(end);
    // Signs and the letter e may belong to what follows: `3em`, `4-step`.
    while !digits.is_empty() && digits.parse::<f64>().is_err() {
        digits = &digits[..digits.len() - 1];
    }
    if digits.is_empty() {
        return matches!(rest.split_whitespace().next(), Some("NaN" | "nan" | "inf" | "∞")).then_some(f64::NAN);
    }
    digits.parse().ok()
}

fn preformatted(section: &Section) -> Markup {
    let text = html! { pre { (section.text) } };
    html! {
        @if section.text.lines().count() <= SHORT { h2 { (section.heading) } (text) }
        @else { details { summary { h2 { (section.heading) } } (text) } }
    }
}
