use std::collections::BTreeSet;

use fewstep_tensor::Tensor;
use serde_json::json;

use super::*;

fn configuration(learning_rate: f64, iterations: u64) -> Configuration {
    let value = json!({"iterations": iterations, "student": {"learning_rate": learning_rate}});
    Configuration::flatten(&value, &["iterations"]).unwrap()
}

fn checkpoint(iteration: u64) -> Checkpoint {
    let tensor = |x: f32| Tensor::from_vec(vec![x, f32::NAN, -0.0], &[3]).unwrap();
    let file = |x: f32| TensorFile {
        tensors: [("w".to_string(), tensor(x))].into(),
        metadata: [("step".to_string(), iteration.to_string())].into(),
        ..TensorFile::default()
    };
    Checkpoint {
        iteration,
        files: [("student".to_string(), file(iteration as f32)), ("optim_student".to_string(), file(0.5))].into(),
        state: json!({"data_position": iteration * 3, "ratio": 0.1, "teacher": {"path": "t", "sha256": "ab"}}),
        configuration: configuration(1e-6, 100),
    }
}

fn store(folder: &Path, keep: usize) -> CheckpointStore {
    CheckpointStore::new(&folder.join("checkpoints"), keep).unwrap()
}

fn iterations(store: &CheckpointStore) -> Vec<u64> {
    store.list().unwrap().iter().map(|(i, _)| *i).collect()
}

fn entries(store: &CheckpointStore) -> BTreeSet<String> {
    store.entries().unwrap().into_iter().collect()
}

fn latest(store: &CheckpointStore) -> Result<Option<Checkpoint>> {
    store.load_latest(&configuration(1e-6, 100))
}

fn bits(file: &TensorFile) -> Vec<u32> {
    file.get("w").unwrap().as_slice::<f32>().unwrap().iter().map(|x| x.to_bits()).collect()
}

#[test]
fn a_checkpoint_comes_back_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), 2);
    assert!(latest(&store).unwrap().is_none());
    let path = store.save(&checkpoint(40)).unwrap();
    assert!(path.ends_with("checkpoints/iter_000000040"));
    let (back, sent) = (latest(&store).unwrap().unwrap(), checkpoint(40));
    assert_eq!((back.iteration, &back.state), (40, &sent.state));
    assert_eq!(back.configuration.values(), sent.configuration.values());
    for (name, file) in &sent.files {
        assert_eq!(bits(&back.files[name]), bits(file));
        assert_eq!(back.files[name].metadata, file.metadata);
    }
    let saved = SavedCheckpoint::open(&path).unwrap();
    assert_eq!(bits(&saved.tensors("student").unwrap()), bits(&sent.files["student"]));
    assert!(saved.tensors("teacher").unwrap_err().to_string().contains("optim_student, student"));
}

#[test]
fn the_newest_few_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), 3);
    (1..=5).for_each(|i| drop(store.save(&checkpoint(i * 20)).unwrap()));
    assert_eq!(iterations(&store), [60, 80, 100]);
    assert_eq!(entries(&store).len(), 3);
    // A run that went back to an older state must not lose what it saves to the limit.
    store.save(&checkpoint(10)).unwrap();
    assert_eq!(iterations(&store), [10, 80, 100]);
    assert!(CheckpointStore::new(dir.path(), 0).is_err());
}

#[test]
fn what_a_crash_leaves_is_ignored_and_repaired() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), 5);
    let forty = store.save(&checkpoint(40)).unwrap();
    let folder = dir.path().join("checkpoints");
    let copy = |to: &str, files: &[&str], cut: usize| {
        fs::create_dir(folder.join(to)).unwrap();
        for name in files {
            let bytes = fs::read(forty.join(name)).unwrap();
            fs::write(folder.join(to).join(name), &bytes[..bytes.len() - cut]).unwrap();
        }
    };
    copy(".writing-iter_000000080", &["optim_student.safetensors", "student.safetensors"], 7);
    copy(".writing-iter_000000090", &[MANIFEST, MANIFEST_SUM, "student.safetensors"], 0);
    copy(".removing-iter_000000020", &[MANIFEST], 0);
    copy("iter_000000100", &["student.safetensors"], 0);
    copy("iter_000000110", &[], 0);
    fs::write(folder.join("iter_notes"), "the user's own").unwrap();
    copy(".writing-mine", &[], 0);
    assert_eq!(latest(&store).unwrap().unwrap().iteration, 40);
    store.repair().unwrap();
    assert_eq!(latest(&store).unwrap().unwrap().iteration, 40);
    let kept = ["iter_000000040", "iter_000000100", "iter_000000110", "iter_notes", ".writing-mine"];
    assert_eq!(entries(&store), kept.map(String::from).into());
    store.save(&checkpoint(100)).unwrap();
    assert_eq!(latest(&store).unwrap().unwrap().iteration, 100);
}

#[test]
fn a_replacement_cut_short_is_undone_and_a_finished_one_cleared() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), 5);
    let place = store.save(&checkpoint(40)).unwrap();
    let mut second = checkpoint(40);
    second.state = json!("second");
    assert_eq!(store.save(&second).unwrap(), place);
    assert_eq!(latest(&store).unwrap().unwrap().state, json!("second"));
    let replaced = place.with_file_name(".replaced-iter_000000040");
    fs::rename(&place, &replaced).unwrap();
    store.repair().unwrap();
    assert_eq!(latest(&store).unwrap().unwrap().state, json!("second"));
    fs::create_dir(&replaced).unwrap();
    store.repair().unwrap();
    assert_eq!(entries(&store).len(), 1);
}

#[test]
fn any_flipped_byte_of_any_file_is_found_before_anything_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), 5);
    let older = store.save(&checkpoint(40)).unwrap();
    let newest = store.save(&checkpoint(80)).unwrap();
    for name in [MANIFEST, MANIFEST_SUM, "student.safetensors", "optim_student.safetensors"] {
        let whole = fs::read(newest.join(name)).unwrap();
        for i in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[i] ^= 1;
            fs::write(newest.join(name), flipped).unwrap();
            let e = latest(&store).unwrap_err().to_string();
            assert!(e.contains(name) && e.contains(&*older.to_string_lossy()), "byte {i} of {name}: {e}");
        }
        fs::write(newest.join(name), whole).unwrap();
    }
    assert_eq!(latest(&store).unwrap().unwrap().iteration, 80);
}

#[test]
fn a_damaged_newest_names_the_next_older_intact_one() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), 5);
    let places: Vec<PathBuf> = [20, 40, 60].map(|i| store.save(&checkpoint(i)).unwrap()).into();
    fs::remove_file(places[2].join("student.safetensors")).unwrap();
    let e = latest(&store).unwrap_err().to_string();
    assert!(e.contains("missing") && e.contains("iter_000000040 (iteration 40), which is intact"), "{e}");
    fs::write(places[1].join("student.safetensors"), "short").unwrap();
    let e = latest(&store).unwrap_err().to_string();
    assert!(e.contains("iter_000000020 (iteration 20), which is intact"), "{e}");
    fs::remove_file(places[0].join(MANIFEST_SUM)).unwrap();
    let e = latest(&store).unwrap_err().to_string();
    assert!(e.contains("no older checkpoint is intact"), "{e}");
    // The remedy works.
    fs::rename(&places[2], dir.path().join("away")).unwrap();
    fs::rename(&places[1], dir.path().join("away too")).unwrap();
    fs::rename(&places[0], dir.path().join("and this")).unwrap();
    assert!(latest(&store).unwrap().is_none());
}

#[test]
fn a_folder_renamed_to_another_iteration_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), 5);
    let place = store.save(&checkpoint(40)).unwrap();
    fs::rename(&place, place.with_file_name("iter_000000099")).unwrap();
    assert!(latest(&store).unwrap_err().to_string().contains("iteration 40"));
    let elsewhere = dir.path().join("best");
    fs::rename(place.with_file_name("iter_000000099"), &elsewhere).unwrap();
    assert_eq!(SavedCheckpoint::open(&elsewhere).unwrap().iteration(), 40);
}

#[test]
fn another_version_of_the_format_is_refused_by_number() {
    let dir = tempfile::tempdir().unwrap();
    let place = store(dir.path(), 5).save(&checkpoint(40)).unwrap();
    let text = fs::read_to_string(place.join(MANIFEST)).unwrap().replace("\"version\": 1", "\"version\": 2");
    fs::write(place.join(MANIFEST_SUM), format!("{}  {MANIFEST}\n", sha256(text.as_bytes()))).unwrap();
    fs::write(place.join(MANIFEST), text).unwrap();
    let e = SavedCheckpoint::open(&place).unwrap_err().to_string();
    assert!(e.contains("expected fewstep-checkpoint 1, got fewstep-checkpoint 2"), "{e}");
}

#[test]
fn another_configuration_is_refused_with_its_keys_and_a_free_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), 5);
    store.save(&checkpoint(40)).unwrap();
    assert!(store.load_latest(&configuration(1e-6, 5000)).unwrap().is_some());
    let e = store.load_latest(&configuration(2e-6, 5000)).unwrap_err().to_string();
    assert!(e.contains("student.learning_rate: 1e-6 in the checkpoint, 2e-6 now"), "{e}");
    assert!(!e.contains("iterations:"), "{e}");
}

#[test]
fn a_write_that_fails_half_way_leaves_earlier_checkpoints_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), 1);
    store.save(&checkpoint(40)).unwrap();
    for iteration in [40, 80] {
        let mut bad = checkpoint(iteration);
        let file = bad.files["student"].clone();
        // The system refuses a name of this length, after optim_student and student are on disk.
        bad.files.insert("z".repeat(300), file);
        let e = store.save(&bad).unwrap_err().to_string();
        assert!(e.contains("was not written") && e.contains("earlier checkpoints are intact"), "{e}");
        assert_eq!(entries(&store), ["iter_000000040".to_string()].into());
        assert_eq!(latest(&store).unwrap().unwrap().state, checkpoint(40).state);
    }
}

#[test]
fn an_unwritable_place_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("checkpoints"), "a file where the folder should be").unwrap();
    let e = store(dir.path(), 1).save(&checkpoint(40)).unwrap_err().to_string();
    assert!(e.contains("iter_000000040 was not written") && e.contains("free space"), "{e}");
    assert!(latest(&store(dir.path(), 1)).is_err());
    // The process file system takes no folders, whoever asks.
    #[cfg(target_os = "linux")]
    {
        let e = store(Path::new("/proc/self/fdinfo"), 1).save(&checkpoint(40)).unwrap_err().to_string();
        assert!(e.contains("/proc/self/fdinfo/checkpoints"), "{e}");
    }
}

#[test]
fn a_file_name_that_leaves_the_folder_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut bad = checkpoint(40);
    let file = bad.files["student"].clone();
    bad.files.insert("../student".into(), file);
    assert!(store(dir.path(), 1).save(&bad).unwrap_err().to_string().contains("../student"));
}

/// Set in the process that [`a_process_killed_while_saving_leaves_a_state_that_loads`] starts to be killed.
const VICTIM: &str = "FEWSTEP_TEST_SAVE_UNTIL_KILLED";

/// Ends by itself after a minute or less, should no one kill it.
fn save_until_killed(folder: &Path) {
    let store = store(folder, 2);
    store.repair().unwrap();
    let done = latest(&store).unwrap().map_or(0, |c| c.iteration);
    for iteration in done + 1..done + 5000 {
        let mut next = checkpoint(iteration);
        let large = Tensor::from_vec(vec![iteration as f32; 50_000], &[50_000]).unwrap();
        next.files.get_mut("student").unwrap().tensors.insert("large".into(), large);
        store.save(&next).unwrap();
    }
}

#[test]
fn a_process_killed_while_saving_leaves_a_state_that_loads() {
    if let Some(folder) = std::env::var_os(VICTIM) {
        return save_until_killed(Path::new(&folder));
    }
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), 2);
    let mut newest = 0;
    for round in 0..12 {
        let this = "checkpoint::tests::a_process_killed_while_saving_leaves_a_state_that_loads";
        let mut victim = std::process::Command::new(std::env::current_exe().unwrap());
        let quiet = std::process::Stdio::null;
        let victim = victim.args(["--exact", this]).env(VICTIM, dir.path()).stdout(quiet()).stderr(quiet());
        let mut victim = victim.spawn().unwrap();
        while store.list().unwrap().last().is_none_or(|(i, _)| *i <= newest) {
            assert!(victim.try_wait().unwrap().is_none(), "the saving process ended by itself");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        // Steps of 1.7 ms fall at changing places of a save, which takes some milliseconds.
        std::thread::sleep(std::time::Duration::from_micros(1700 * round));
        victim.kill().unwrap();
        victim.wait().unwrap();
        let found = latest(&store).unwrap().unwrap();
        assert!(found.iteration > newest, "round {round}: back from {newest} to {}", found.iteration);
        newest = found.iteration;
        let large = found.files["student"].get("large").unwrap().as_slice::<f32>().unwrap();
        assert!(large.iter().all(|&x| x == newest as f32));
        assert_eq!(found.state, checkpoint(newest).state);
    }
    store.repair().unwrap();
    // The kill may have come after a save and before the oldest was removed.
    assert!(entries(&store).len() <= 3 && entries(&store).iter().all(|e| e.starts_with("iter_")));
}
