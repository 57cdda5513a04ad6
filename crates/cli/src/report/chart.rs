//! Charts as SVG, drawn twice: wide, and narrow for a phone, so that the text is as large as the page's in both. Lines are
//! classes of the style sheet, which knows the colours of light and dark.

use std::fmt::Write;

use maud::{Markup, html};

use super::Chart;
use super::scale::Scale;
use super::series::Curve;

/// Colours of curves in the style sheet (`.c0` and so on); more curves use them again.
pub(super) const COLOURS: usize = 6;

/// A curve of so few points shows them as dots as well.
const FEW: usize = 24;

/// Radius of a dot, in pixels.
const DOT: f64 = 3.5;

/// Width of a digit, as a share of the font's size: enough for the usual fonts.
const DIGIT: f64 = 0.62;

/// Size of a drawing and of its text, in CSS pixels where the page has room, and about how many labels its axes have.
#[derive(Clone, Copy, Debug)]
struct Format {
    class: &'static str,
    width: f64,
    height: f64,
    font: f64,
    labels: [usize; 2],
}

const WIDE: Format = Format { class: "wide", width: 900.0, height: 330.0, font: 13.0, labels: [8, 5] };
const NARROW: Format = Format { class: "narrow", width: 340.0, height: 250.0, font: 12.0, labels: [4, 4] };

/// A chart with its heading, legend and notes.
pub(super) fn figure(chart: &Chart) -> Markup {
    let curves: Vec<Curve> = chart.series.iter().map(|series| Curve::of(series, chart.log_y)).collect();
    let left_out: usize = curves.iter().map(|curve| curve.left_out).sum();
    let smoothed = curves.iter().any(|curve| !curve.faint.is_empty());
    let why = if chart.log_y { "not finite or not above zero" } else { "not finite" };
    html! {
        figure.chart {
            @if !chart.series.is_empty() {
                ul.legend {
                    @for (i, series) in chart.series.iter().enumerate() {
                        li class={ "c" (i % COLOURS) } { (series.name) }
                    }
                }
            }
            @for format in [WIDE, NARROW] { (svg(chart, &curves, format)) }
            @if smoothed || left_out > 0 {
                figcaption {
                    @if smoothed { "Faint: as measured. Bold: running mean. " }
                    @if left_out > 0 { (left_out) @if left_out == 1 { " point" } @else { " points" } " left out: " (why) "." }
                }
            }
        }
    }
}

fn svg(chart: &Chart, curves: &[Curve], format: Format) -> Markup {
    let points = || curves.iter().flat_map(Curve::points);
    let x = Scale::of(points().map(|p| p.0), false, false, format.labels[0]);
    let y = Scale::of(points().map(|p| p.1), chart.log_y, true, format.labels[1]);
    let (Some(x), Some(y)) = (x, y) else {
        return html! { p.empty class=(format.class) { "No points yet." } };
    };
    let Format { class, width, height, font, .. } = format;
    let frame = Frame::new(format, x, y);
    html! {
        svg class=(class) viewBox={ "0 0 " (width) " " (height) } font-size=(font) role="img" aria-label=(chart.heading) {
            (frame.axes(chart))
            @for (i, curve) in curves.iter().enumerate() {
                g class={ "c" (i % COLOURS) } {
                    @if !curve.faint.is_empty() { path.faint d=(frame.path(&curve.faint)) {} }
                    path.curve d=(frame.path(&curve.line)) {}
                    @if curve.line.len() <= FEW {
                        @for &point in &curve.line {
                            @let (x, y) = frame.place(point);
                            circle cx=(pixel(x)) cy=(pixel(y)) r=(DOT) {}
                        }
                    }
                }
            }
        }
    }
}

/// The area of the curves inside a drawing, and its scales.
struct Frame {
    format: Format,
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    x: Scale,
    y: Scale,
}

impl Frame {
    fn new(format: Format, x: Scale, y: Scale) -> Self {
        let font = format.font;
        let longest = y.ticks.iter().map(|&tick| y.label(tick).chars().count()).max().unwrap_or(0);
        let left = longest as f64 * DIGIT * font + 10.0;
        let last = x.ticks.last().map_or(0, |&tick| x.label(tick).chars().count());
        // Half of the last label may stand out.
        let right = format.width - (0.5 * last as f64 * DIGIT * font).max(DOT + 1.0);
        Self { format, left, right, top: 2.2 * font, bottom: format.height - 3.1 * font, x, y }
    }

    fn place(&self, (x, y): (f64, f64)) -> (f64, f64) {
        (self.at_x(self.x.share(x)), self.at_y(self.y.share(y)))
    }

    fn at_x(&self, share: f64) -> f64 {
        self.left + share * (self.right - self.left)
    }

    fn at_y(&self, share: f64) -> f64 {
        self.bottom - share * (self.bottom - self.top)
    }

    fn path(&self, points: &[(f64, f64)]) -> String {
        let mut path = String::new();
        for (i, &point) in points.iter().enumerate() {
            let (x, y) = self.place(point);
            // Writing into a string does not fail.
            let _ = write!(path, "{}{} {}", if i == 0 { 'M' } else { 'L' }, pixel(x), pixel(y));
        }
        path
    }

    fn axes(&self, chart: &Chart) -> Markup {
        let Self { format, left, right, bottom, x, y, .. } = self;
        let font = format.font;
        html! {
            @for &tick in &y.ticks {
                @let at = self.at_y(y.tick_share(tick));
                path.grid d={ "M" (pixel(*left)) " " (pixel(at)) "H" (pixel(*right)) } {}
                text x=(pixel(left - 8.0)) y=(pixel(at + 0.35 * font)) text-anchor="end" { (y.label(tick)) }
            }
            path.axis d={ "M" (pixel(*left)) " " (pixel(*bottom)) "H" (pixel(*right)) } {}
            @for &tick in &x.ticks {
                @let at = self.at_x(x.tick_share(tick));
                path.axis d={ "M" (pixel(at)) " " (pixel(*bottom)) "v4" } {}
                text x=(pixel(at)) y=(pixel(bottom + 1.45 * font)) text-anchor="middle" { (x.label(tick)) }
            }
            text.label x="0" y=(font) { (chart.y_label) @if chart.log_y { " (log)" } }
            text.label x=(pixel(*right)) y=(pixel(format.height - 0.3 * font)) text-anchor="end" { (chart.x_label) }
        }
    }
}

/// A coordinate, to a tenth of a pixel.
fn pixel(at: f64) -> f64 {
    (10.0 * at).round() / 10.0
}
