//! `fewstep demo`: distil the moving digits by rCM and write a report to look at.

use std::path::Path;
use std::time::Instant;

use fewstep_data::Caption;
use fewstep_distill::metrics::{Record, read_metrics};
use fewstep_media::Frames;
use fewstep_ops::Compute;

use super::distill;
use super::evaluate::{Judge, Row};
use super::teach::MODEL_FILE;
use super::training::settings;
use crate::args::{ConfigArgs, DemoArgs, DistillArgs, TrainArgs};
use crate::configuration::Resolved;
use crate::digits::CLIP;
use crate::drawing::draw;
use crate::error::Result;
use crate::model::{Model, Role};
use crate::report::{
    Best, Chart, Column, DataUri, Gallery, GalleryRow, Headline, Report, Section, Series, Table, render,
};
use crate::settings::{DISTILL_PRESETS, DistillSettings};
use crate::terminal::{self, Progress};
use crate::{device, status};

/// Steps at which the student is shown and measured, and the teacher cut to.
const FEW: [usize; 3] = [4, 2, 1];
/// Rows of the gallery.
const SHOWN: usize = 8;
/// Enlargement of the gallery's clips.
const SCALE: usize = 6;
/// Seed of the noise behind the gallery and the measures.
const SEED: u64 = 0;
/// Iterations and clips of a quick demo: enough to run every part.
const QUICK: (u64, usize) = (6, 100);

/// The runs of one model at each number of steps.
struct Measured {
    name: String,
    row: Row,
    clips: Vec<Vec<f32>>,
}

/// Runs the command; true if it was interrupted after saving.
///
/// # Errors
/// If the folder cannot be written or a part refuses.
pub fn run(args: &DemoArgs) -> Result<bool> {
    let began = Instant::now();
    let run = args.output.join("run");
    let distilling = distill_args(args, &run);
    let resolved = settings::<DistillSettings>(DISTILL_PRESETS, &distilling.train.config, "distill.run.seed")?;
    if distill::run(&distilling)? {
        return Ok(true);
    }
    let distilled = began.elapsed().as_secs_f64();
    let compute = Compute::on(args.device.0);
    let teacher = Model::load(&resolved.value.teacher, compute)?;
    let student = Model::load(&run.join(MODEL_FILE).display().to_string(), compute)?;
    let samples = if args.quick { QUICK.1 } else { args.samples };
    let judge = Judge::new(samples, SEED)?;
    let measured = measure(&judge, &teacher, &student)?;
    let records = read_metrics(&run.join("metrics.jsonl"))?;
    let took = format!("{distilled:.0} seconds on {}", device::name(compute.device)?);
    let report = report(&judge, &measured, &records, &resolved, &took)?;
    let path = args.output.join("report.html");
    let html = render(&report)?;
    fewstep_tensor::file::write_aside(&path, |f| std::io::Write::write_all(f, html.as_bytes()))?;
    for h in &report.headlines {
        status!(&h.label, "{} ({})", h.value, h.note);
    }
    status!("Finished", "in {:.0} s; open the report:", began.elapsed().as_secs_f64());
    terminal::print(format_args!("{}\n", path.display()))?;
    Ok(false)
}

fn distill_args(args: &DemoArgs, run: &Path) -> DistillArgs {
    let mut overrides = args.overrides.clone();
    if args.quick {
        overrides.push(format!("distill.run.iterations={}", QUICK.0));
    }
    let config = ConfigArgs { preset: args.preset.clone(), config: None, overrides, seed: args.seed };
    let train =
        TrainArgs { config, output: run.to_path_buf(), resume: args.resume, dry_run: false, device: args.device };
    DistillArgs { train, no_check: false }
}

/// Teacher with all its steps, teacher cut, student: measured on the same captions from the same noise.
fn measure(judge: &Judge, teacher: &Model, student: &Model) -> Result<Vec<Measured>> {
    let mut models = vec![(teacher, teacher.role)];
    models.extend(FEW.map(|n| (teacher, teacher.role.with_steps(n))));
    models.extend(FEW.map(|n| (student, student.role.with_steps(n))));
    let cost = |role: &Role| match role {
        Role::Teacher(t) => 2 * t.steps as u64,
        Role::Student(s) => s.steps as u64,
    };
    let prompts: Vec<String> = judge.captions().iter().take(SHOWN).map(Caption::to_string).collect();
    let work: u64 = models.iter().map(|(_, r)| cost(r) * judge.captions().len() as u64).sum();
    let mut progress = Progress::new("Measuring", work);
    let mut measured = Vec::new();
    for (model, role) in models {
        let name = match role {
            Role::Teacher(t) => format!("Teacher, {}", steps(t.steps)),
            Role::Student(s) => format!("Student, {}", steps(s.steps)),
        };
        progress.note(&name);
        let row = judge.measure(model, role, SEED, |n| progress.advance(n as u64 * cost(&role)))?;
        let clips = draw((model.predictor(), model.compute), role, &prompts, SEED, |_| ())?;
        measured.push(Measured { name, row, clips });
    }
    Ok(measured)
}

fn steps(n: usize) -> String {
    if n == 1 { "1 step".into() } else { format!("{n} steps") }
}

fn report(
    judge: &Judge,
    measured: &[Measured],
    records: &[Record],
    resolved: &Resolved<DistillSettings>,
    took: &str,
) -> Result<Report> {
    Ok(Report {
        title: "Fewstep: moving digits in few steps".into(),
        introduction: format!(
            "A tiny Wan video transformer, distilled by {} in {took}. Every picture below is \
             generated; models share captions and noise.",
            resolved.value.distill.method.name()
        ),
        headlines: headlines(measured),
        galleries: vec![gallery(judge, measured)?],
        tables: vec![quality(judge, measured)?],
        charts: charts(records),
        sections: vec![Section { heading: "Configuration".into(), text: resolved.to_string() }],
        footer: format!("fewstep {}", env!("CARGO_PKG_VERSION")),
    })
}

/// The four-step student against the full teacher.
fn headlines(measured: &[Measured]) -> Vec<Headline> {
    let (Some(teacher), Some(student)) = (measured.first(), measured.get(1 + FEW.len())) else { return Vec::new() };
    let (t, s) = (&teacher.row, &student.row);
    let headline = |label: &str, value: String, note: String| Headline { label: label.into(), value, note };
    vec![
        headline(
            "Speed-up",
            format!("{:.0}×", t.seconds_per_clip / s.seconds_per_clip),
            format!("{:.1} ms a clip instead of {:.1}", 1e3 * s.seconds_per_clip, 1e3 * t.seconds_per_clip),
        ),
        headline(
            "Captions right",
            format!("{:.1} %", 100.0 * s.measures.caption_accuracy),
            format!("teacher {:.1} %", 100.0 * t.measures.caption_accuracy),
        ),
        headline(
            "Fréchet distance",
            format!("{:.1}", s.measures.frechet),
            format!("teacher {:.1}", t.measures.frechet),
        ),
        headline("Recall", format!("{:.3}", s.measures.recall), format!("teacher {:.3}", t.measures.recall)),
    ]
}

fn gallery(judge: &Judge, measured: &[Measured]) -> Result<Gallery> {
    let picture = |clip: &[f32]| -> Result<DataUri> {
        Ok(DataUri::from_frames(&Frames::from_pixels(clip, CLIP)?.upscale(SCALE)?)?)
    };
    let rows = judge.captions().iter().take(SHOWN).enumerate().map(|(i, caption)| {
        let cells = measured.iter().map(|m| picture(&m.clips[i])).collect::<Result<_>>()?;
        Ok(GalleryRow { caption: caption.to_string(), cells })
    });
    Ok(Gallery {
        heading: "Samples".into(),
        note: "The same captions and the same noise in every column; the first captions of the list, not chosen."
            .into(),
        columns: measured.iter().map(|m| m.name.clone()).collect(),
        rows: rows.collect::<Result<_>>()?,
    })
}

fn quality(judge: &Judge, measured: &[Measured]) -> Result<Table> {
    let column = |name: &str, best| Column { name: name.into(), best };
    let columns = vec![
        column("Model", Best::None),
        column("Calls", Best::Lowest),
        column("ms", Best::Lowest),
        column("Fréchet", Best::Lowest),
        column("Precision", Best::Highest),
        column("Recall", Best::Highest),
        column("Caption", Best::Highest),
        column("Digit", Best::Highest),
        column("Colour", Best::Highest),
        column("Direction", Best::Highest),
    ];
    let mut rows: Vec<Vec<String>> = measured
        .iter()
        .map(|m| {
            let head = [m.name.clone(), m.row.evaluations.to_string(), format!("{:.2}", 1e3 * m.row.seconds_per_clip)];
            head.into_iter().chain(measures(&m.row.measures)).collect()
        })
        .collect();
    let held_out = ["Held-out clips".to_string(), "–".into(), "–".into()];
    rows.push(held_out.into_iter().chain(measures(&judge.held_out()?)).collect());
    Ok(Table {
        heading: "Quality and diversity".into(),
        note: format!(
            "{} clips a row against as many held-out clips, in the features of the shipped classifier; the teacher is guided. \
             Calls of the network and milliseconds are those of one clip. Fréchet distances fall with the number of \
             clips: compare them within this table.",
            judge.captions().len()
        ),
        columns,
        rows,
    })
}

fn measures(m: &fewstep_evaluate::Measures) -> Vec<String> {
    let share = |x: f64| format!("{:.1} %", 100.0 * x);
    let mut cells = vec![format!("{:.1}", m.frechet), format!("{:.3}", m.precision), format!("{:.3}", m.recall)];
    cells.extend([m.caption_accuracy, m.digit_accuracy, m.colour_accuracy, m.direction_accuracy].map(share));
    cells
}

fn charts(records: &[Record]) -> Vec<Chart> {
    let chart = |heading: &str, note: &str, prefix: &str, y_label: &str| {
        let mut names: Vec<&str> = records
            .iter()
            .flat_map(|r| r.values.keys())
            .map(String::as_str)
            .filter(|k| k.starts_with(prefix))
            .collect();
        names.sort_unstable();
        names.dedup();
        let points = |name: &str| {
            records.iter().filter_map(|r| Some((r.iteration as f64, *r.values.get(name)?))).collect::<Vec<_>>()
        };
        let series =
            names.into_iter().map(|n| Series { name: n[prefix.len()..].to_string(), points: points(n) }).collect();
        Chart {
            heading: heading.into(),
            note: note.into(),
            x_label: "Iteration".into(),
            y_label: y_label.into(),
            log_y: true,
            series,
        }
    };
    vec![
        chart(
            "Losses",
            "The sCM loss stays near its scale of 100 by construction; its gradient is what falls. The DMD loss measures how \
             far the two scores disagree.",
            "loss/",
            "Loss a clip",
        ),
        chart("Gradient norms", "Before the optimiser, averaged over the batch.", "grad_norm/", "Norm"),
        chart("Tangent norm", "‖g‖ of continuous-time consistency before normalisation.", "tangent_", "Norm"),
    ]
}
