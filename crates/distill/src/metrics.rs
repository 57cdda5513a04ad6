//! What a run measures, as JSON lines: one object a record, readable while the run goes on.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use fewstep_tensor::file::write_aside;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Error, Result};

/// The measurements of one iteration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The iteration after which this was measured.
    pub iteration: u64,
    /// What the iteration did, such as `student` or `fake_score`.
    pub phase: String,
    /// Wall-clock seconds of training so far.
    pub seconds: f64,
    /// Named values. JSON has no NaN or infinity: they are written as the strings "NaN", "inf" and "-inf".
    #[serde(serialize_with = "write_values", deserialize_with = "read_values")]
    pub values: BTreeMap<String, f64>,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Number {
    Finite(f64),
    Other(String),
}

fn write_values<S: Serializer>(values: &BTreeMap<String, f64>, s: S) -> std::result::Result<S::Ok, S::Error> {
    let number = |x: f64| if x.is_finite() { Number::Finite(x) } else { Number::Other(x.to_string()) };
    s.collect_map(values.iter().map(|(k, &x)| (k, number(x))))
}

fn read_values<'de, D: Deserializer<'de>>(d: D) -> std::result::Result<BTreeMap<String, f64>, D::Error> {
    let values = BTreeMap::<String, Number>::deserialize(d)?;
    let number = |n| match n {
        Number::Finite(x) => Ok(x),
        Number::Other(text) => text.parse().map_err(serde::de::Error::custom),
    };
    values.into_iter().map(|(k, n)| Ok((k, number(n)?))).collect()
}

/// Appends records to a file, each with one write, so that another process may read along.
#[derive(Debug)]
pub struct MetricsSink {
    path: PathBuf,
    file: File,
}

impl MetricsSink {
    /// Starts a file of records, emptying one that is there.
    ///
    /// # Errors
    /// If the file cannot be created.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(Error::io(path))?;
        Ok(MetricsSink { path: path.to_path_buf(), file })
    }

    /// Goes on after `iteration`: drops a half-written last line and every record of a later iteration, which the
    /// resumed run will write again. A missing file is a new one.
    ///
    /// # Errors
    /// If the file cannot be read or rewritten, or a line other than the last is no record.
    pub fn resume(path: &Path, iteration: u64) -> Result<Self> {
        let text = match fs::read(path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Self::create(path),
            read => read.map_err(Error::io(path))?,
        };
        let kept: Vec<&[u8]> =
            parse(path, &text)?.into_iter().filter(|(r, _)| r.iteration <= iteration).map(|(_, line)| line).collect();
        // Lines are kept as they stand: only what is dropped changes the file.
        write_aside(path, |file| kept.iter().try_for_each(|line| file.write_all(&[line, b"\n".as_slice()].concat())))?;
        let file = OpenOptions::new().append(true).open(path).map_err(Error::io(path))?;
        Ok(MetricsSink { path: path.to_path_buf(), file })
    }

    /// Appends one record and hands it to the system: it survives the process.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn append(&mut self, record: &Record) -> Result<()> {
        let line = serde_json::to_string(record).map_err(|e| Error::io(&self.path)(e.into()))?;
        self.file.write_all(format!("{line}\n").as_bytes()).map_err(Error::io(&self.path))
    }

    /// Flushes to disk: every record survives a loss of power. Call it before saving a checkpoint, so that no
    /// checkpoint is newer than its records.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(Error::io(&self.path))
    }
}

/// The records of a file, in its order; a half-written last line is left out.
///
/// # Errors
/// If the file cannot be read, or a line other than the last is no record.
pub fn read_metrics(path: &Path) -> Result<Vec<Record>> {
    let text = fs::read(path).map_err(Error::io(path))?;
    Ok(parse(path, &text)?.into_iter().map(|(record, _)| record).collect())
}

fn parse<'a>(path: &Path, text: &'a [u8]) -> Result<Vec<(Record, &'a [u8])>> {
    let ends_whole = text.ends_with(b"\n");
    let body = text.strip_suffix(b"\n").unwrap_or(text);
    if body.is_empty() {
        return Ok(Vec::new());
    }
    let lines: Vec<&[u8]> = body.split(|&b| b == b'\n').collect();
    let mut records = Vec::with_capacity(lines.len());
    for (i, &line) in lines.iter().enumerate() {
        match serde_json::from_slice(line) {
            Ok(record) => records.push((record, line)),
            Err(_) if i + 1 == lines.len() && !ends_whole => {}
            Err(e) => return Err(Error::Metrics { path: path.to_path_buf(), line: i + 1, reason: e.to_string() }),
        }
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(iteration: u64) -> Record {
        let values = [("loss".to_string(), 0.1 * iteration as f64), ("grad_norm".to_string(), 1e300)].into();
        Record { iteration, phase: "student".into(), seconds: 0.5 * iteration as f64, values }
    }

    fn write(path: &Path, iterations: std::ops::RangeInclusive<u64>) -> Vec<u8> {
        let mut sink = MetricsSink::create(path).unwrap();
        iterations.for_each(|i| sink.append(&record(i)).unwrap());
        sink.sync().unwrap();
        fs::read(path).unwrap()
    }

    #[test]
    fn records_come_back_exactly_non_finite_values_included() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut sink = MetricsSink::create(&path).unwrap();
        let mut odd = record(1);
        odd.values.extend([("up".to_string(), f64::INFINITY), ("down".to_string(), f64::NEG_INFINITY)]);
        sink.append(&odd).unwrap();
        let mut nan = record(2);
        nan.values.insert("loss".into(), f64::NAN);
        sink.append(&nan).unwrap();
        let back = read_metrics(&path).unwrap();
        assert_eq!(back[0], odd);
        assert!(back[1].values["loss"].is_nan());
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.lines().all(|l| serde_json::from_str::<serde_json::Value>(l).is_ok()));
    }

    #[test]
    fn a_resumed_file_reads_as_the_uninterrupted_one_wherever_the_run_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let whole = write(&path, 1..=6);
        let up_to_four = write(&path, 1..=4).len();
        for end in up_to_four - 1..=whole.len() {
            fs::write(&path, &whole[..end]).unwrap();
            let mut sink = MetricsSink::resume(&path, 4).unwrap();
            (5..=6).for_each(|i| sink.append(&record(i)).unwrap());
            assert_eq!(fs::read(&path).unwrap(), whole, "cut to {end} bytes");
        }
    }

    #[test]
    fn a_reader_tolerates_a_half_written_last_line_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let whole = write(&path, 1..=3);
        for end in 0..whole.len() {
            fs::write(&path, &whole[..end]).unwrap();
            let records = read_metrics(&path).unwrap();
            assert_eq!(records, (1..=records.len() as u64).map(record).collect::<Vec<_>>());
        }
        fs::write(&path, [b"{\"iteration\": 1\n", whole.as_slice()].concat()).unwrap();
        let e = read_metrics(&path).unwrap_err().to_string();
        assert!(e.contains("metrics.jsonl:1:") && e.contains("delete the line"), "{e}");
        assert!(MetricsSink::resume(&path, 9).is_err());
    }

    #[test]
    fn a_missing_file_resumes_as_a_new_one_and_a_missing_folder_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        MetricsSink::resume(&dir.path().join("metrics.jsonl"), 7).unwrap().append(&record(8)).unwrap();
        assert_eq!(read_metrics(&dir.path().join("metrics.jsonl")).unwrap(), [record(8)]);
        assert!(MetricsSink::create(&dir.path().join("none/metrics.jsonl")).is_err());
        assert!(read_metrics(&dir.path().join("none")).is_err());
    }
}
