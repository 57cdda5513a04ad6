use fewstep_data::{Digits, Split};
use fewstep_media::Frames;

use super::*;

/// A number between 0 and 1 that looks random.
fn noise(i: usize) -> f64 {
    let x = (i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    ((x ^ (x >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 11) as f64 / (1_u64 << 53) as f64
}

/// A clip, with the ink shaken as a network of few steps would.
fn picture(clip: u64, shake: f32) -> DataUri {
    let mut clip = Digits::load().unwrap().clip(Split::Train, 7, clip);
    for (i, pixel) in clip.pixels.iter_mut().enumerate() {
        *pixel += shake * (noise(i) as f32 - 0.5);
    }
    DataUri::from_frames(&Frames::from_pixels(&clip.pixels, clip.dims()).unwrap()).unwrap()
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| text.to_string()).collect()
}

fn example_gallery() -> Gallery {
    let digits = Digits::load().unwrap();
    let row = |i: u64| GalleryRow {
        caption: digits.clip(Split::Train, 7, i).caption.to_string(),
        cells: [0.0, 0.15, 0.3, 0.6, 1.0].map(|shake| picture(i, shake)).to_vec(),
    };
    Gallery {
        heading: "What they generate".to_owned(),
        note: "The same prompt and the same noise in each row. All captions are held out of training.".to_owned(),
        columns: texts(&[
            "teacher, 50 steps",
            "student, 4 steps",
            "student, 2 steps",
            "student, 1 step",
            "teacher, 4 steps",
        ]),
        rows: (0..5).map(row).collect(),
    }
}

fn example_table() -> Table {
    let column = |name: &str, best| Column { name: name.to_owned(), best };
    Table {
        heading: "How good they are".to_owned(),
        note: "2,000 clips each; ± is one standard error.".to_owned(),
        columns: vec![
            column("sampler", Best::None),
            column("evaluations", Best::None),
            column("Fréchet distance", Best::Lowest),
            column("digit right", Best::Highest),
            column("time a clip", Best::Lowest),
        ],
        rows: vec![
            texts(&["teacher, 50 steps", "100", "1.92 ± 0.04", "97.1 %", "812 ms"]),
            texts(&["student, 4 steps", "4", "2.31 ± 0.05", "96.4 %", "33 ms"]),
            texts(&["student, 1 step", "1", "4.87 ± 0.09", "93.0 %", "8.4 ms"]),
            texts(&["teacher, 4 steps", "8", "38.6 ± 0.7", "41.2 %", "66 ms"]),
        ],
    }
}

fn example_charts() -> Vec<Chart> {
    let decay = |from: f64, to: f64, shift: usize| -> Vec<(f64, f64)> {
        let value = |i: usize| (to + (from - to) * (-(i as f64) / 400.0).exp()) * (0.7 + 0.6 * noise(i + shift));
        (0..3000).map(|i| (i as f64, value(i))).collect()
    };
    let mut consistency = decay(2.0, 0.04, 0);
    consistency[1200].1 = f64::NAN;
    let series = |name: &str, points: Vec<(f64, f64)>| Series { name: name.to_owned(), points };
    let distance =
        [(0.0, 38.6), (500.0, 12.4), (1000.0, 6.1), (1500.0, 4.0), (2000.0, 3.1), (2500.0, 2.5), (3000.0, 2.31)];
    vec![
        Chart {
            heading: "Loss".to_owned(),
            note: "The consistency loss goes on falling; the score term settles.".to_owned(),
            x_label: "iteration".to_owned(),
            y_label: "loss".to_owned(),
            log_y: true,
            series: vec![series("consistency", consistency), series("score (DMD)", decay(0.9, 0.3, 7))],
        },
        Chart {
            heading: "Fréchet distance".to_owned(),
            note: String::new(),
            x_label: "iteration".to_owned(),
            y_label: "distance to held-out clips".to_owned(),
            log_y: false,
            series: vec![series("student, 4 steps", distance.to_vec())],
        },
    ]
}

fn example() -> Report {
    let headline = |label: &str, value: &str, note: &str| Headline {
        label: label.to_owned(),
        value: value.to_owned(),
        note: note.to_owned(),
    };
    let settings = (0..30).map(|i| format!("setting_{i:02} = {:<14.4} # preset demo\n", noise(i))).collect();
    Report {
        title: "A four-step student of a tiny Wan".to_owned(),
        introduction: "Score-regularised consistency distillation (rCM) of a video transformer with 1.1 million \
                       parameters, on moving handwritten digits."
            .to_owned(),
        headlines: vec![
            headline("faster than the teacher", "25×", "4 evaluations for 100"),
            headline("Fréchet distance", "2.31", "teacher 1.92"),
            headline("prompt followed", "96.4 %", "teacher 97.1 %"),
            headline("training", "6 min 12 s", "2 CPU cores"),
        ],
        galleries: vec![example_gallery()],
        tables: vec![example_table()],
        charts: example_charts(),
        sections: vec![
            Section { heading: "Command".to_owned(), text: "fewstep distil --preset demo --set seed=7".to_owned() },
            Section { heading: "Configuration".to_owned(), text: settings },
        ],
        footer: "fewstep 0.1.0 · seed 7 · 3,000 iterations".to_owned(),
    }
}

#[test]
fn a_full_report_needs_nothing_but_itself() {
    let page = render(&example()).unwrap();
    // For a look at it: FEWSTEP_TEST_REPORT=/tmp/r.html cargo test -p fewstep report
    if let Some(path) = std::env::var_os("FEWSTEP_TEST_REPORT") {
        std::fs::write(path, &page).unwrap();
    }
    for outside in ["http://", "https://", "//cdn", "@import", "url(", "<link", "src=\"/", "href="] {
        assert!(!page.contains(outside), "{outside}");
    }
    let pictures: Vec<&str> = page.split("<img src=\"").skip(1).collect();
    assert_eq!(pictures.len(), 25);
    assert!(pictures.iter().all(|rest| rest.starts_with("data:image/png;base64,")));
}

#[test]
fn all_that_was_given_is_on_the_page() {
    let page = render(&example()).unwrap();
    for text in ["25×", "teacher, 50 steps", "2.31 ± 0.05", "score (DMD)", "setting_29", "3,000 iterations", "(log)"]
    {
        assert!(page.contains(text), "{text}");
    }
    assert!(page.contains("1 point left out: not finite or not above zero."));
}

#[test]
fn text_is_escaped_wherever_it_stands() {
    let evil = "</style></script><script>alert('x')</script>\"'&";
    let mut report = example();
    for text in [&mut report.title, &mut report.introduction, &mut report.footer] {
        *text = evil.to_owned();
    }
    report.headlines[0].value = evil.to_owned();
    report.galleries[0].columns[0] = evil.to_owned();
    report.galleries[0].rows[0].caption = evil.to_owned();
    report.tables[0].rows[0][1] = evil.to_owned();
    report.charts[0].series[0].name = evil.to_owned();
    report.charts[0].y_label = evil.to_owned();
    report.charts[0].heading = evil.to_owned();
    report.sections[0].text = evil.to_owned();
    report.galleries[0].rows[0].cells[0] = DataUri::new(format!("data:image/png,\"{evil}")).unwrap();
    let page = render(&report).unwrap();
    assert_eq!(page.matches("<script>").count(), 1);
    assert!(!page.contains("alert('x')</script>") && !page.contains("png,\"\""));
}

#[test]
fn the_best_of_a_column_is_marked() {
    let page = render(&Report { tables: vec![example_table()], ..Report::default() }).unwrap();
    let best: Vec<&str> = page.split("<strong>").skip(1).map(|rest| rest.split('<').next().unwrap()).collect();
    assert_eq!(best, ["1.92 ± 0.04", "97.1 %", "8.4 ms"]);
}

#[test]
fn ties_are_all_the_best_and_numbers_alone_and_nan_are_not() {
    let marked = |numbers: &[&str]| {
        let columns = vec![Column::default(), Column { name: "x".to_owned(), best: Best::Lowest }];
        let rows = numbers.iter().map(|number| texts(&["row", number])).collect();
        let table = Table { columns, rows, ..Table::default() };
        render(&Report { tables: vec![table], ..Report::default() }).unwrap().matches("<strong>").count()
    };
    assert_eq!(marked(&["1.0 s", "1.0 s", "2"]), 2);
    assert_eq!(marked(&["1e-3", "−2", "NaN"]), 1);
    assert_eq!(marked(&["1.0", ""]), 0);
    assert_eq!(marked(&["NaN", "NaN"]), 0);
}

#[test]
fn an_empty_report_and_empty_parts_are_pages_too() {
    let report = Report {
        galleries: vec![Gallery::default()],
        tables: vec![Table::default()],
        charts: vec![Chart { series: vec![Series::default()], ..Chart::default() }],
        sections: vec![Section::default()],
        ..Report::default()
    };
    assert!(render(&report).unwrap().contains("No points yet."));
    assert!(render(&Report::default()).unwrap().ends_with("</html>"));
}

#[test]
fn a_chart_of_a_million_points_stays_small() {
    let points = (0..1_000_000).map(|i| (i as f64, noise(i))).collect();
    let chart = Chart { series: vec![Series { name: "loss".to_owned(), points }], ..Chart::default() };
    let page = render(&Report { charts: vec![chart], ..Report::default() }).unwrap();
    assert!(page.len() < 60_000, "{} bytes", page.len());
}

#[test]
fn a_row_that_does_not_fit_its_columns_is_refused() {
    let mut gallery = example_gallery();
    gallery.rows[1].cells.pop();
    let error = render(&Report { galleries: vec![gallery], ..Report::default() }).unwrap_err().to_string();
    assert!(
        error.contains("What they generate") && error.contains("expected 5 cells") && error.contains("got 4"),
        "{error}"
    );
    let mut table = example_table();
    table.rows[2].push("more".to_owned());
    let error = render(&Report { tables: vec![table], ..Report::default() }).unwrap_err().to_string();
    assert!(error.contains("row 3") && error.contains("got 6"), "{error}");
}

#[test]
fn a_picture_outside_the_page_is_refused() {
    for address in ["https://example.org/x.png", "x.png", "data:text/html,x", "javascript:x", ""] {
        assert!(matches!(DataUri::new(address), Err(ReportError::Address(_))), "{address}");
    }
}
