//! What the program says: results on stdout, everything else on stderr.
//!
//! Status lines ([`status!`](crate::status), [`warning!`](crate::warning)) and progress ([`Progress`]) share the terminal: a
//! line goes above a bar that is shown. Where stderr is no terminal, bars become a line every so often.

use std::fmt;
use std::io::{IsTerminal, Write};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use console::Style;
use indicatif::{HumanDuration, MultiProgress, ProgressBar, ProgressStyle};
use miette::MietteHandlerOpts;

use crate::error::{Error, Result};

/// How often a plain line of progress is written where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(15);

/// The column in which the verb of a status line ends, as in cargo.
const VERB_WIDTH: usize = 12;

/// The exit status of a program whose results nobody reads: 128 and the number of SIGPIPE, as shells have it.
const UNREAD: i32 = 128 + 13;

const BAR: &str =
    "{prefix:>12.green.bold} {bar:24.green/dim} {percent:>3}% {pos}/{len} {elapsed}, {eta} left {wide_msg}";

/// Of a task whose steps are not known beforehand.
const COUNT: &str = "{prefix:>12.green.bold} {pos} {elapsed} {wide_msg}";

/// All bars of the process: lines have to go above whichever is shown.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Writes results on stdout. Where nobody reads any more, as after `| head`, the program ends as the signal would end it.
///
/// # Errors
/// If the system cannot take them, as on a full disk.
pub fn print(results: impl fmt::Display) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match write!(stdout, "{results}").and_then(|()| stdout.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(UNREAD),
        written => written.map_err(Error::Output),
    }
}

/// Makes errors read as a message and a remedy, each on one line: a path or a command in them stays whole.
pub fn explain_errors() {
    let handler = || MietteHandlerOpts::new().without_cause_chain().wrap_lines(false).build();
    // Messages name their causes themselves. A handler that is there already is a test's own.
    drop(miette::set_hook(Box::new(move |_| Box::new(handler()))));
}

/// Writes a line on stderr, above a progress bar if one is shown.
pub fn line(text: impl fmt::Display) {
    // Nobody is left to tell that stderr is closed.
    BARS.suspend(|| drop(writeln!(std::io::stderr().lock(), "{text}")));
}

/// Writes a status line: what was done, in a word, and to what. The macro [`status!`](crate::status) formats the rest.
pub fn status(verb: &str, rest: impl fmt::Display) {
    let verb = Style::new().for_stderr().green().bold().apply_to(format!("{verb:>VERB_WIDTH$}"));
    line(format_args!("{verb} {rest}"));
}

/// Writes a warning. The macro [`warning!`](crate::warning) formats it.
pub fn warning(text: impl fmt::Display) {
    let verb = Style::new().for_stderr().yellow().bold().apply_to(format!("{:>VERB_WIDTH$}", "Warning"));
    line(format_args!("{verb} {text}"));
}

/// Writes a status line on stderr: `status!("Wrote", "{}", path.display())`.
#[macro_export]
macro_rules! status {
    ($verb:expr, $($format:tt)+) => { $crate::terminal::status($verb, format_args!($($format)+)) };
}

/// Writes a warning on stderr: `warning!("no GPU was found: using {threads} threads")`.
#[macro_export]
macro_rules! warning {
    ($($format:tt)+) => { $crate::terminal::warning(format_args!($($format)+)) };
}

/// The progress of a task of known length: a bar with the time left, or a plain line every 15 s. It vanishes when it is dropped.
#[derive(Debug)]
pub struct Progress {
    shown: Shown,
}

#[derive(Debug)]
enum Shown {
    Bar(ProgressBar),
    Lines(Lines),
}

impl Progress {
    /// Begins a task of `total` steps, 0 if that is not known; `verb` says what is done, in a word, such as `Distilling`.
    pub fn new(verb: &str, total: u64) -> Self {
        Self::resumed(verb, total, 0)
    }

    /// As [`Self::new`], for a task of which `done` steps were done before; they do not count in the time left.
    pub fn resumed(verb: &str, total: u64, done: u64) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self { shown: Shown::Lines(Lines::new(verb, total, done, Instant::now())) };
        }
        let template = if total == 0 { COUNT } else { BAR };
        let style = ProgressStyle::with_template(template).map(|style| style.progress_chars("━╸━"));
        let bar = BARS.add(ProgressBar::new(total).with_position(done).with_prefix(verb.to_owned()));
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.reset_eta();
        bar.enable_steady_tick(Duration::from_millis(500));
        Self { shown: Shown::Bar(bar) }
    }

    /// Goes on by `steps`.
    pub fn advance(&mut self, steps: u64) {
        match &mut self.shown {
            Shown::Bar(bar) => bar.inc(steps),
            Shown::Lines(lines) => {
                if let Some(text) = lines.advance(steps, Instant::now()) {
                    line(text);
                }
            }
        }
    }

    /// Says more about the step, such as its loss.
    pub fn note(&mut self, note: impl fmt::Display) {
        match &mut self.shown {
            Shown::Bar(bar) => bar.set_message(note.to_string()),
            Shown::Lines(lines) => lines.note = note.to_string(),
        }
    }

    /// How many steps are done.
    pub fn done(&self) -> u64 {
        match &self.shown {
            Shown::Bar(bar) => bar.position(),
            Shown::Lines(lines) => lines.done,
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Shown::Bar(bar) = &self.shown {
            bar.finish_and_clear();
        }
    }
}

/// Progress in plain lines: when one is due, and what it says.
#[derive(Debug)]
struct Lines {
    verb: String,
    note: String,
    total: u64,
    resumed: u64,
    done: u64,
    begun: Instant,
    last: Instant,
}

impl Lines {
    fn new(verb: &str, total: u64, done: u64, now: Instant) -> Self {
        Self { verb: verb.to_owned(), note: String::new(), total, resumed: done, done, begun: now, last: now }
    }

    fn advance(&mut self, steps: u64, now: Instant) -> Option<String> {
        self.done += steps;
        if now.duration_since(self.last) < LINE_INTERVAL {
            return None;
        }
        self.last = now;
        Some(self.text(now.duration_since(self.begun)))
    }

    fn text(&self, elapsed: Duration) -> String {
        let Self { verb, note, total, done, resumed, .. } = self;
        let note = if note.is_empty() { String::new() } else { format!(": {note}") };
        if *total == 0 {
            return format!("{verb:>VERB_WIDTH$} {done}, {} so far{note}", HumanDuration(elapsed));
        }
        let percent = 100 * u128::from(*done) / u128::from(*total).max(1);
        let fraction = total.saturating_sub(*done) as f64 / done.saturating_sub(*resumed) as f64;
        let left = Duration::try_from_secs_f64(elapsed.as_secs_f64() * fraction).ok();
        let left = left.map(|left| format!(", {} left", HumanDuration(left))).unwrap_or_default();
        format!("{verb:>VERB_WIDTH$} {done}/{total} ({percent}%), {} so far{left}{note}", HumanDuration(elapsed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_templates_of_the_bars_are_valid() {
        assert!([BAR, COUNT].iter().all(|template| ProgressStyle::with_template(template).is_ok()));
    }

    #[test]
    fn a_plain_line_comes_every_interval_only() {
        let begun = Instant::now();
        let mut lines = Lines::new("Distilling", 100, 0, begun);
        let written: Vec<u64> = (1..=60).filter(|&s| lines.advance(1, begun + after(s)).is_some()).collect();
        assert_eq!(written, [15, 30, 45, 60]);
    }

    #[test]
    fn a_plain_line_tells_the_time_left() {
        let begun = Instant::now();
        let mut lines = Lines::new("Distilling", 400, 0, begun);
        lines.note = "loss 0.12".to_owned();
        let text = lines.advance(100, begun + after(60)).unwrap();
        assert_eq!(text, "  Distilling 100/400 (25%), 60 seconds so far, 3 minutes left: loss 0.12");
    }

    #[test]
    fn steps_done_before_do_not_count_in_the_time_left() {
        let begun = Instant::now();
        let mut lines = Lines::new("Distilling", 400, 200, begun);
        let text = lines.advance(100, begun + after(60)).unwrap();
        assert_eq!(text, "  Distilling 300/400 (75%), 60 seconds so far, 60 seconds left");
    }

    #[test]
    fn no_time_is_promised_before_the_first_step_or_for_an_empty_task() {
        let begun = Instant::now();
        for (total, done) in [(400, 200), (0, 0)] {
            let text = Lines::new("Distilling", total, done, begun).advance(0, begun + after(60)).unwrap();
            assert!(!text.contains("left"), "{text}");
        }
    }

    #[test]
    fn progress_counts_its_steps() {
        let mut progress = Progress::resumed("Testing", 10, 4);
        progress.advance(3);
        progress.note("fine");
        status!("Tested", "{} steps", progress.done());
        warning!("this is a test");
        assert_eq!(progress.done(), 7);
    }
}
