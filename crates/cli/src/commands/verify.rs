//! `fewstep verify`: does the device compute what it must?

use std::path::PathBuf;

use fewstep_verify::{Check, Row, checks};

use fewstep_tensor::Device;

use crate::args::VerifyArgs;
use crate::commands::{is_wanted, none_wanted};
use crate::error::{Error, Result};
use crate::terminal::{Progress, print};
use crate::{device, status};

/// The folder of the published numbers, where none is named.
const FIXTURES: &str = "fixtures";

/// Checks of one op or fixture in one dtype.
struct Group {
    what: String,
    dtype: String,
    cases: usize,
    failed: usize,
    nearest: (f64, f64),
    seconds: f64,
}

impl Group {
    fn add(&mut self, row: &Row) {
        self.cases += 1;
        self.failed += usize::from(!row.ok);
        self.seconds += row.seconds;
        let share = |(error, allowed): (f64, f64)| error / allowed.max(f64::MIN_POSITIVE);
        if row.ok && share((row.error, row.allowed)) >= share(self.nearest) {
            self.nearest = (row.error, row.allowed);
        }
    }
}

/// Rows gathered by op or fixture and dtype, in the order in which they first come.
fn groups(rows: &[Row]) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for row in rows {
        let same = |g: &Group| (&g.what, &g.dtype) == (&row.what, &row.dtype);
        let i = groups.iter().position(same).unwrap_or_else(|| {
            let (what, dtype) = (row.what.clone(), row.dtype.clone());
            groups.push(Group { what, dtype, cases: 0, failed: 0, nearest: (0.0, 0.0), seconds: 0.0 });
            groups.len() - 1
        });
        groups[i].add(row);
    }
    groups
}

/// The fixtures' folder: what is named, or the folder's own if it is there.
fn fixtures(args: &VerifyArgs) -> Option<PathBuf> {
    let own = PathBuf::from(FIXTURES);
    let folder = args.fixtures.clone().or_else(|| own.is_dir().then_some(own));
    if folder.is_none() {
        status!("Leaving out", "the published numbers: no folder {FIXTURES} here, and none named by --fixtures");
    }
    folder
}

fn table(rows: &[Row]) -> Result<()> {
    let line = |text: std::fmt::Arguments| print(format_args!("{text}\n"));
    let [what, dtype, cases, error, allowed, verdict, time] =
        ["op or fixture", "dtype", "cases", "error", "allowed", "verdict", "seconds"];
    line(format_args!("{what:22} {dtype:>5} {cases:>6} {error:>9} {allowed:>9} {verdict:>10} {time:>8}"))?;
    for g in groups(rows) {
        let verdict = if g.failed == 0 { "ok".to_string() } else { format!("{} FAILED", g.failed) };
        let (error, allowed) = g.nearest;
        line(format_args!(
            "{:22} {:>5} {:>6} {error:>9.1e} {allowed:>9.1e} {verdict:>10} {:>8.1}",
            g.what, g.dtype, g.cases, g.seconds
        ))?;
    }
    for row in rows.iter().filter(|r| !r.ok) {
        let why = row.failure.as_deref().unwrap_or("beyond its bound");
        line(format_args!("FAILED {} {}, {}: {why}", row.what, row.dtype, row.case))?;
    }
    let (failed, seconds) = (rows.iter().filter(|r| !r.ok).count(), rows.iter().map(|r| r.seconds).sum::<f64>());
    let verdict = if failed == 0 { "all hold".to_string() } else { format!("{failed} FAILED") };
    line(format_args!("{} checks in {seconds:.0} s: {verdict}", rows.len()))
}

/// Starts every kernel of the checks.
fn launch(all: &[Check], device: Device) -> Result<()> {
    let mut progress = Progress::new("Launching", all.len() as u64);
    let mut failed = 0;
    for check in all {
        progress.note(format_args!("{}, {}", check.what(), check.case()));
        for (dtype, e) in check.launch() {
            print(format_args!("FAILED {} {dtype}, {}: {e}\n", check.what(), check.case()))?;
            failed += 1;
        }
        progress.advance(1);
    }
    drop(progress);
    print(format_args!("the kernels of {} checks ran: nothing was proven\n", all.len()))?;
    if failed == 0 { Ok(()) } else { Err(Error::Unverified { failed, checks: all.len(), device }) }
}

/// Runs the command.
///
/// # Errors
/// If the device cannot be used, a fixture cannot be read, or a check fails.
pub fn run(args: &VerifyArgs) -> Result<()> {
    let compute = device::open(args.device)?;
    device::say_software(compute.device)?;
    let mut all = checks(compute.device, fixtures(args).as_deref())?;
    all.retain(|c| is_wanted(&args.only, &[c.what(), c.case()]));
    if all.is_empty() {
        return Err(none_wanted("op, fixture or case", &args.only));
    }
    device::prepare(compute, || {
        // What was noted computes nothing, and may fail for it.
        all.iter().map(Check::launch).for_each(drop);
        Ok(())
    })?;
    if args.launch {
        return launch(&all, compute.device);
    }
    let mut progress = Progress::new("Verifying", all.len() as u64);
    let mut rows = Vec::new();
    for check in &all {
        progress.note(format_args!("{}, {}", check.what(), check.case()));
        rows.extend(check.run());
        progress.advance(1);
    }
    drop(progress);
    if args.json {
        print(format_args!("{}\n", serde_json::json!(rows)))?;
    } else {
        table(&rows)?;
    }
    match rows.iter().filter(|r| !r.ok).count() {
        0 => Ok(()),
        failed => Err(Error::Unverified { failed, checks: rows.len(), device: compute.device }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(what: &str, dtype: &str, error: f64, ok: bool) -> Row {
        let (what, dtype) = (what.to_string(), dtype.to_string());
        Row { what, case: String::new(), dtype, error, allowed: 1.0, ok, seconds: 0.5, failure: None }
    }

    #[test]
    fn rows_are_gathered_by_op_and_dtype_with_the_error_nearest_to_its_bound() {
        let rows = [
            row("a", "f64", 0.1, true),
            row("b", "f64", 0.2, true),
            row("a", "f64", 0.4, true),
            row("a", "f32", 2.0, false),
        ];
        let groups = groups(&rows);
        let of = |g: &Group| (g.what.clone(), g.dtype.clone(), g.cases, g.failed, g.nearest);
        let want = [("a", "f64", 2, 0, (0.4, 1.0)), ("b", "f64", 1, 0, (0.2, 1.0)), ("a", "f32", 1, 1, (0.0, 0.0))];
        let want = want.map(|(a, b, c, d, e)| (a.to_string(), b.to_string(), c, d, e));
        assert_eq!(groups.iter().map(of).collect::<Vec<_>>(), want);
    }
}
