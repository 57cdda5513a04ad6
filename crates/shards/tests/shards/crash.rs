//! Processes that are killed at random points, and disks that fill up.
#![cfg(unix)]

use std::convert::Infallible;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use fewstep_shards::{Encoding, Prefetcher, ReadOptions, ShardReader, build};

use super::{files, plan, sample, whole};

/// Set for the processes that the tests below start: the folder they work in.
const FOLDER: &str = "FEWSTEP_TEST_SHARDS";
/// The time that a step of a child takes, so that a kill falls between and within steps.
const PACE: Duration = Duration::from_micros(700);

fn child(test: &str, folder: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--ignored"]).env(FOLDER, folder).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Kills a child after some milliseconds; whether it had ended by itself.
fn kill_after(mut child: Child, milliseconds: u64) -> bool {
    sleep(Duration::from_millis(milliseconds));
    let ended = child.try_wait().unwrap().is_some_and(|s| s.success());
    child.kill().unwrap();
    child.wait().unwrap();
    ended
}

#[test]
#[ignore = "run by another test, in a process of its own"]
fn a_builder_to_kill() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let source = |i| {
        sleep(PACE);
        Ok::<_, Infallible>(sample(i))
    };
    build(Path::new(&folder), &plan(60, 16), source, || false, |_| {}).unwrap();
}

#[test]
fn a_builder_killed_at_random_points_builds_the_uninterrupted_set_bit_for_bit() {
    let (killed, straight) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    whole(straight.path(), 60, 16, Encoding::Torch);
    let mut kills = 0;
    loop {
        let started = child("crash::a_builder_to_kill", killed.path()).spawn().unwrap();
        if kill_after(started, 8 + kills * 7 % 31) {
            break;
        }
        kills += 1;
        assert!(kills < 300, "it makes no progress");
    }
    assert!(kills > 2, "it was killed {kills} times only");
    assert!(files(killed.path()) == files(straight.path()), "{:?}", files(killed.path()).keys());
}

const EPOCHS_READ: u64 = 6;

#[test]
#[ignore = "run by another test, in a process of its own"]
fn a_reader_to_kill() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let folder = Path::new(&folder);
    let log = folder.join("log");
    // As a trainer does: the position to go on from is what was logged.
    let logged = std::fs::read_to_string(&log).unwrap_or_default();
    let whole = &logged[..logged.rfind('\n').map_or(0, |i| i + 1)];
    let mut out = std::fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
    out.set_len(whole.len() as u64).unwrap();
    let position = whole.lines().count() as u64;
    let reader = Arc::new(
        ShardReader::open(&folder.join("set"), ReadOptions { seed: 5, window: 2, ..Default::default() }).unwrap(),
    );
    let end = EPOCHS_READ * reader.len() as u64;
    let mut ahead = Prefetcher::new(reader, position, 4).unwrap();
    for p in position..end {
        let line = format!("{}\n", ahead.get(p).unwrap().key);
        out.write_all(line.as_bytes()).unwrap();
        sleep(PACE);
    }
}

#[test]
fn a_reader_killed_at_random_points_skips_nothing_and_repeats_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let set = dir.path().join("set");
    whole(&set, 30, 8, Encoding::Torch);
    let mut kills = 0;
    loop {
        let started = child("crash::a_reader_to_kill", dir.path()).spawn().unwrap();
        if kill_after(started, 8 + kills * 11 % 37) {
            break;
        }
        kills += 1;
        assert!(kills < 300, "it makes no progress");
    }
    assert!(kills > 2, "it was killed {kills} times only");
    let reader = ShardReader::open(&set, ReadOptions { seed: 5, window: 2, ..Default::default() }).unwrap();
    let want: Vec<_> = (0..EPOCHS_READ * 30).map(|p| reader.key(p).to_string()).collect();
    let got = std::fs::read_to_string(dir.path().join("log")).unwrap();
    assert_eq!(got.lines().collect::<Vec<_>>(), want);
}

#[test]
fn a_full_disk_loses_nothing_that_was_finished() {
    let (full, straight) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    whole(straight.path(), 60, 16, Encoding::Torch);
    // A limit on the size of files, in KiB or half KiB, stands for a full disk: it ends within the first shard.
    let builder = child("crash::a_builder_to_kill", full.path());
    let mut limited = Command::new("sh");
    limited.args(["-c", "trap '' XFSZ; ulimit -f 40; exec \"$0\" \"$@\""]).arg(builder.get_program());
    limited.args(builder.get_args()).args(["--nocapture"]).env(FOLDER, full.path());
    let output = limited.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("NotWritten"), "{said}");
    let mut asked = Vec::new();
    let source = |i| {
        asked.push(i);
        Ok::<_, Infallible>(sample(i))
    };
    build(full.path(), &plan(60, 16), source, || false, |_| {}).unwrap();
    assert!(asked[0] > 3, "what was finished is kept: the first asked for is {}", asked[0]);
    assert!(files(full.path()) == files(straight.path()), "{:?}", files(full.path()).keys());
}
