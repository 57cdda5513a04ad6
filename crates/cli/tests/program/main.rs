//! The built program, on tiny networks: what it computes, what it refuses and how it says so.

// Signals, `sh` and limits on files.
#![cfg(unix)]

mod commands;
mod export;
mod files;
mod plan;
mod released;
mod settings;
mod training;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Settings of a teacher that trains in milliseconds.
const TINY: &str = "network.dim=24 network.ffn_dim=32 network.heads=2 network.layers=1 network.freq_dim=16 \
                    network.patch=[1,8,8] teach.run.batch=2 teach.run.iterations=3 teach.run.preview_every=0";
/// A distillation of [`TEACHER`], without the check that takes longer than the training.
const TINY_DISTILLATION: [&str; 5] =
    ["--no-check", "--set", "teacher=teacher.safetensors", "--set", "distill.run.batch=2"];
/// The tiny teacher in every [`Place`].
const TEACHER: &str = "teacher.safetensors";
const PROMPT: &str = "a red seven moving up and left";
/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A folder of its own in which the program runs.
struct Place(tempfile::TempDir);

impl Place {
    /// With the tiny teacher inside, which is trained once for all tests.
    fn new() -> Self {
        static WEIGHTS: OnceLock<Vec<u8>> = OnceLock::new();
        let weights = WEIGHTS.get_or_init(|| {
            let place = Place(tempfile::tempdir().unwrap());
            place.done(&teaching("run"));
            std::fs::read(place.path("run/model.safetensors")).unwrap()
        });
        let place = Place(tempfile::tempdir().unwrap());
        place.write(TEACHER, weights);
        place
    }

    /// With nothing inside.
    fn empty() -> Self {
        Place(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), content).unwrap();
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fewstep"));
        // Tests run side by side: a thread each.
        command.current_dir(self.0.path()).env("RAYON_NUM_THREADS", "1").stdin(Stdio::null()).args(args);
        command
    }

    /// Runs to success and gives stdout.
    fn done(&self, args: &[&str]) -> String {
        let output = self.command(args).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?}\n{}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Runs to a refusal and gives its message.
    fn refused(&self, args: &[&str]) -> String {
        refusal(&self.command(args).output().unwrap(), 1)
    }

    /// Runs to a refusal of the command line itself.
    fn misused(&self, args: &[&str]) -> String {
        refusal(&self.command(args).output().unwrap(), 2)
    }

    /// As [`Self::refused`], with proof that no file came, went or changed.
    fn refused_untouched(&self, args: &[&str]) -> String {
        let before = self.files();
        let message = self.refused(args);
        assert_eq!(before, self.files(), "{args:?}: {message}");
        message
    }

    /// Every file with its bytes; locks aside, which say who looked last.
    fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        files(self.0.path())
    }

    fn start(&self, args: &[&str]) -> Running {
        let child = self.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        Running(child)
    }

    /// Waits until a run has recorded so many iterations.
    fn wait_for_iterations(&self, run: &str, count: usize) {
        let (path, began) = (self.path(run).join("metrics.jsonl"), Instant::now());
        while std::fs::read_to_string(&path).unwrap_or_default().lines().count() < count {
            assert!(began.elapsed() < PATIENCE, "no {count} iterations of {run}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// A program that is running, and is not left so where a test fails.
struct Running(Child);

impl Running {
    fn id(&self) -> u32 {
        self.0.id()
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
    }

    fn interrupt(&self) {
        let sent = Command::new("sh").args(["-c", &format!("kill -INT {}", self.id())]).status().unwrap();
        assert!(sent.success());
    }

    fn end(mut self) -> Output {
        let status = self.0.wait().unwrap();
        let read = |from: &mut dyn std::io::Read| {
            let mut bytes = Vec::new();
            from.read_to_end(&mut bytes).unwrap();
            bytes
        };
        let (stdout, stderr) = (read(self.0.stdout.as_mut().unwrap()), read(self.0.stderr.as_mut().unwrap()));
        Output { status, stdout, stderr }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has usually ended.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// The folder of golden files.
fn fixtures() -> PathBuf {
    let own = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures");
    std::env::var_os("FEWSTEP_FIXTURES").map_or_else(|| own.into(), PathBuf::from)
}

/// The command line of a tiny teacher's training.
fn teaching(folder: &str) -> Vec<&str> {
    ["teach", "-o", folder].into_iter().chain(TINY.split(' ').flat_map(|setting| ["--set", setting])).collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The message of a refusal, its lines joined to one.
fn refusal(output: &Output, code: i32) -> String {
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{message}");
    assert_eq!(text(&output.stdout), "", "stdout is for results: {message}");
    assert!(!message.contains("panicked") && !message.trim().is_empty(), "{message}");
    message.replace("\n  │ ", " ").split_whitespace().collect::<Vec<_>>().join(" ")
}

fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(files(&path));
        } else if path.extension().is_none_or(|e| e != "lock") {
            let bytes = std::fs::read(&path).unwrap();
            all.insert(path, bytes);
        }
    }
    all
}

/// Asserts that a message says each of these.
fn assert_says(message: &str, words: &[&str]) {
    for word in words {
        assert!(message.contains(word), "no '{word}' in: {message}");
    }
}
