use std::convert::Infallible;

use fewstep_shards::{BuildOutcome, BuildPlan, Encoding, Error, Sample, build};
use fewstep_tensor::{DType, Device, Tensor};

use super::{EMBED, files, plan, sample, whole};

fn source(i: u64) -> Result<Sample, Infallible> {
    Ok(sample(i))
}

#[test]
fn a_set_has_the_published_names_in_the_published_order() {
    let dir = tempfile::tempdir().unwrap();
    whole(dir.path(), 10, 4, Encoding::Torch);
    let names: Vec<_> = files(dir.path()).into_keys().collect();
    assert_eq!(names, ["dataset.json", "shard_000000.tar", "shard_000001.tar", "shard_000002.tar"]);
    let tar = std::fs::File::open(dir.path().join("shard_000002.tar")).unwrap();
    let mut archive = tar::Archive::new(tar);
    let members: Vec<_> =
        archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string()).collect();
    let want = ["000000008", "000000009"].map(|k| ["latent.pt", "embed.pt", "prompt.txt"].map(|e| format!("{k}.{e}")));
    assert_eq!(members, want.concat());
}

#[test]
fn a_build_that_is_stopped_again_and_again_is_the_uninterrupted_one_bit_for_bit() {
    let (stopped, straight) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    whole(straight.path(), 11, 4, Encoding::Torch);
    let mut asked = Vec::new();
    loop {
        let mut left = 3;
        let stop = || {
            left -= 1;
            left < 0
        };
        let ask = |i| {
            asked.push(i);
            source(i)
        };
        if let BuildOutcome::Complete(_) = build(stopped.path(), &plan(11, 4), ask, stop, |_| {}).unwrap() {
            break;
        }
    }
    assert!(asked.iter().copied().eq(0..11), "no sample is asked for twice: {asked:?}");
    assert!(files(stopped.path()) == files(straight.path()));
}

#[test]
fn a_finished_set_is_not_touched_and_nothing_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    whole(dir.path(), 5, 2, Encoding::Safetensors);
    let before = std::fs::metadata(dir.path().join("shard_000001.tar")).unwrap().modified().unwrap();
    let plan = BuildPlan { encoding: Encoding::Safetensors, ..plan(5, 2) };
    let never = |i: u64| Err::<Sample, _>(format!("{i} asked for"));
    assert!(matches!(build(dir.path(), &plan, never, || true, |_| {}), Ok(BuildOutcome::Complete(p)) if p.kept == 5));
    assert_eq!(std::fs::metadata(dir.path().join("shard_000001.tar")).unwrap().modified().unwrap(), before);
}

#[test]
fn a_shard_renamed_just_before_a_crash_is_taken_into_the_manifest() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    whole(dir.path(), 4, 2, Encoding::Torch);
    let want = files(dir.path());
    // The manifest as it was before the second shard.
    let mut done = 0;
    let stop = || {
        done += 1;
        done > 2
    };
    build(other.path(), &plan(4, 2), source, stop, |_| {}).unwrap();
    std::fs::copy(other.path().join("dataset.json"), dir.path().join("dataset.json")).unwrap();
    whole(dir.path(), 4, 2, Encoding::Torch);
    assert!(files(dir.path()) == want);
}

#[test]
fn a_removed_shard_is_made_again_and_a_shortened_one_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    whole(dir.path(), 6, 2, Encoding::Torch);
    let want = files(dir.path());
    let path = dir.path().join("shard_000001.tar");
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(700).unwrap();
    let e = build(dir.path(), &plan(6, 2), source, || false, |_| {}).unwrap_err().to_string();
    assert!(e.contains("shard_000001.tar") && e.contains("remove it"), "{e}");
    std::fs::remove_file(&path).unwrap();
    whole(dir.path(), 6, 2, Encoding::Torch);
    assert!(files(dir.path()) == want);
}

#[test]
fn other_settings_are_refused_key_by_key() {
    let dir = tempfile::tempdir().unwrap();
    whole(dir.path(), 2, 2, Encoding::Torch);
    let mut other = plan(3, 2);
    other.settings.insert("seed".into(), 4.into());
    other.settings.insert("shift".into(), 5.into());
    let e = build(dir.path(), &other, source, || false, |_| {}).unwrap_err().to_string();
    for line in ["build.total: 2 there, 3 asked", "seed: 3 there, 4 asked", "shift: absent there, 5 asked"] {
        assert!(e.contains(line), "{e}");
    }
    assert!(!e.contains("teacher"), "{e}");
}

#[test]
fn two_builders_exclude_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let inner = |i| {
        let e = build(dir.path(), &plan(1, 1), source, || false, |_| {}).unwrap_err();
        assert!(matches!(&e, Error::Busy { owner, .. } if owner.contains(&std::process::id().to_string())), "{e}");
        source(i)
    };
    build(dir.path(), &plan(1, 1), inner, || false, |_| {}).unwrap();
}

#[test]
fn a_folder_with_the_shards_of_others_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("shard_000000.tar"), "theirs").unwrap();
    let e = build(dir.path(), &plan(1, 1), source, || false, |_| {}).unwrap_err().to_string();
    assert!(e.contains("without a dataset.json"), "{e}");
    assert_eq!(std::fs::read(dir.path().join("shard_000000.tar")).unwrap(), b"theirs");
}

#[test]
fn samples_that_are_not_finite_or_of_another_shape_or_fail_are_errors_that_keep_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let (nan, wide) =
        (Tensor::full(&EMBED, f64::NAN, DType::F32, Device::Cpu), Tensor::zeros(&[7, 8], DType::Bf16, Device::Cpu));
    for (embed, what) in [(nan, "48 elements of its embed are NaN"), (wide, "embed of shape [7, 8]")] {
        let bad =
            |i| Ok::<_, Infallible>(if i == 2 { Sample { embed: embed.clone(), ..sample(i) } } else { sample(i) });
        let e = build(dir.path(), &plan(4, 4), bad, || false, |_| {}).unwrap_err().to_string();
        assert!(e.contains("sample '000000002'") && e.contains(what), "{e}");
    }
    let mut kept = None;
    let failing = |_| Err::<Sample, _>("out of memory");
    let e = build(dir.path(), &plan(4, 4), failing, || false, |p| kept = Some(p.kept)).unwrap_err().to_string();
    assert!(e.contains("sample 2 could not be made: out of memory"), "{e}");
    let never_asked_for_first = |i| {
        assert!(i >= 2);
        source(i)
    };
    build(dir.path(), &plan(4, 4), never_asked_for_first, || false, |_| {}).unwrap();
}
