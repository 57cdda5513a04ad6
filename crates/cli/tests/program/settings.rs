//! Configurations: every mistake is refused by name before anything is written.

use crate::{Place, TINY_DISTILLATION, assert_says, teaching};

/// Settings that no training can have, with what the refusal says beside the key.
const TEACH: [(&str, &str, &str); 22] = [
    ("network.heads=5", "network", "5 heads do not divide dim 24; choose dim = heads × head width"),
    ("network.heads=24", "network", "choose dim and heads so that dim/heads is even"),
    ("network.layers=0", "network", "every extent must be at least 1"),
    ("network.freq_dim=15", "network", "cosines and sines need an even width"),
    ("network.in_channels=4", "network.in_channels", "need 3, got 4"),
    ("network.text_dim=16", "network.text_dim", "need 32, got 16"),
    ("network.patch=[1, 5, 5]", "network.patch", "expected divisors of the clip's [6, 16, 16]"),
    ("network.image_dim=8", "network.image_dim", "leave it out"),
    ("teach.run.iterations=0", "teach.run.iterations", "expected at least 1, got 0"),
    ("teach.run.batch=0", "teach.run.batch", "expected at least 1, got 0"),
    ("teach.run.accumulation=0", "teach.run.accumulation", "expected at least 1, got 0"),
    ("teach.run.checkpoint_every=0", "teach.run.checkpoint_every", "expected at least 1, got 0"),
    ("teach.dropout=2", "teach.dropout", "expected a probability, got 2"),
    ("teach.ema=0.9", "teach.ema", "expected a number above 0 and below 0.288, got 0.9"),
    ("teach.optimizer.learning_rate=-1", "teach.optimizer.learning_rate", "expected a finite number, 0 or more"),
    ("teach.optimizer.warmup_steps=-1", "teach.optimizer.warmup_steps", "expected an integer of at least 0, got -1"),
    ("teach.time.uniform_shift.shift=-1", "teach.time.uniform_shift.shift", "1 means no shift; Wan uses 3 to 8"),
    ("sampling.steps=0", "sampling.steps", "choose a number in that range"),
    ("sampling.steps=99999999", "sampling.steps", "choose a number in that range"),
    ("sampling.sigma_max=0", "sampling.sigma_max", "positive, finite σ such as 80"),
    ("sampling.sigma_max=-1", "sampling.sigma_max", "σ is noise over signal"),
    ("sampling.guidance=nan", "sampling.guidance", "1 means no guidance"),
];
const DISTILL: [(&str, &str, &str); 27] = [
    ("distill.run.iterations=0", "distill.run.iterations", "expected at least 1, got 0"),
    ("distill.run.batch=0", "distill.run.batch", "expected at least 1, got 0"),
    ("distill.ema=0.9", "distill.ema", "expected a number above 0 and below 0.288, got 0.9"),
    ("distill.student.learning_rate=-1", "distill.student.learning_rate", "expected a finite number"),
    ("distill.fake_score.learning_rate=-1", "distill.fake_score.learning_rate", "expected a finite number"),
    ("distill.method.rcm.dmd.student_update_freq=0", "distill.method.rcm.dmd.student_update_freq", "at least 1, got 0"),
    ("distill.method.rcm.dmd.max_simulation_steps=0", "distill.method.rcm.dmd.max_simulation_steps", "at least 1"),
    ("distill.method.rcm.consistency.scm.scale=0", "distill.method.rcm.consistency.scm.scale", "a positive number"),
    ("distill.method={dmd={},rcm={}}", "distill.method", "takes exactly one of `consistency`, `dmd`, `rcm`; got both"),
    ("distill.method=banana", "distill.method", "the choices here are `consistency`, `dmd`, `rcm`"),
    ("distill.guidance=inf", "distill.guidance", "1 means no guidance"),
    ("sampling.steps=0", "sampling.steps", "defined for 1 to 8 steps, got 0; choose a number in that range"),
    ("sampling.steps=99", "sampling.steps", "defined for 1 to 8 steps, got 99; choose a number in that range"),
    ("sampling.sigma_max=0", "sampling.sigma_max", "positive, finite σ such as 80"),
    ("sampling.sigma_max=1", "sampling.sigma_max", "raise σ_max"),
    ("distill.method.rcm.banana=1", "distill.method.rcm", "unknown key `banana`"),
    ("heads=0", "heads", "expected at least 1, got 0"),
    ("distill.train=banana", "distill.train", "the choices here are `full`, `lora`"),
    ("distill.train.lora={rank=0,alpha=1,targets=['*']}", "distill.train.lora.rank", "expected at least 1, got 0"),
    ("distill.train.lora={rank=1,alpha=-1,targets=['*']}", "distill.train.lora.alpha", "a positive number, got -1"),
    ("distill.train.lora={rank=1,alpha=1,targets=[]}", "distill.train.lora.targets", "names of linear layers"),
    ("distill.train.lora={rank=1,alpha=1,targets=['*'],dropout=0.1}", "distill.train.lora", "unknown key `dropout`"),
    ("data.shards={path='',latent_frames=20,seed=0}", "data.shards.path", "the folder of the shards"),
    ("data.shards={path='d',latent_frames=0,seed=0}", "data.shards.latent_frames", "expected at least 1, such as 20"),
    ("data.shards={path='d',latent_frames=1,seed=0,negative.prmpt='x'}", "data.shards.negative", "`stock`, `prompt`"),
    ("data.shards={path='d',latent_frames=1,seed=0,reencode=''}", "data.shards.reencode", "leave it out"),
    ("data={digits={seed=1},shards={}}", "data", "takes exactly one of `digits`, `shards`"),
];

fn assert_refused_at_the_start(args: &[&str], cases: &[(&str, &str, &str)]) {
    let place = Place::new();
    for (setting, key, reason) in cases {
        let message = place.refused_untouched(&[args, &["--set", setting]].concat());
        assert_says(&message, &[&format!("`{key}`"), reason]);
        assert!(!place.path("run").exists(), "{setting}");
    }
}

#[test]
fn a_teacher_that_cannot_be_is_refused_by_name_before_anything_is_written() {
    assert_refused_at_the_start(&teaching("run"), &TEACH);
}

#[test]
fn a_distillation_that_cannot_be_is_refused_by_name_before_anything_is_written() {
    assert_refused_at_the_start(&[&["distill", "-o", "run"][..], &TINY_DISTILLATION].concat(), &DISTILL);
}

#[test]
fn a_refused_setting_is_shown_where_it_was_written() {
    let place = Place::new();
    place.write("my.toml", "base = \"digits-scm\"\n\n[distill.run]\nbatch = 0\n");
    let message = place.refused(&["distill", "-o", "run", "--config", "my.toml"]);
    assert_says(&message, &["`distill.run.batch`", "my.toml:4:9", "batch = 0"]);
    let preset = ["config", "distill", "--preset", "digits-scm", "--set", "distill.method.consistency.scm.scale=-1"];
    assert_says(&place.refused(&preset), &["`distill.method.consistency.scm.scale`", "--set", "a positive number"]);
}

#[test]
fn an_unknown_key_of_a_file_is_shown_with_its_line_and_the_nearest_key() {
    let place = Place::new();
    place.write("my.toml", "base = \"digits-rcm\"\n[distill.run]\nitertions = 3\n");
    let message = place.refused(&["distill", "-o", "run", "--config", "my.toml"]);
    assert_says(&message, &["unknown key `itertions`", "my.toml:3:1", "did you mean `iterations`?"]);
}

#[test]
fn an_unknown_key_preset_or_file_of_the_command_line_is_named() {
    let place = Place::new();
    let refused = |more: &[&str]| place.refused_untouched(&[&["distill", "-o", "run"], more].concat());
    assert_says(&refused(&["--set", "distill.rn.batch=3"]), &["unknown key `rn`", "did you mean `run`?"]);
    assert_says(&refused(&["--set", "distill.run.batch"]), &["needs a `=`", "write key.path=value"]);
    assert_says(&refused(&["--preset", "digits-rmc"]), &["no preset `digits-rmc`", "did you mean `digits-rcm`?"]);
    assert_says(&refused(&["--config", "none.toml"]), &["`none.toml`", "No such file", "check the path"]);
}

#[test]
fn two_methods_in_one_file_contradict_each_other() {
    let place = Place::new();
    let methods = "[distill.method.rcm.dmd]\nscale = 1.0\n[distill.method.dmd]\nscale = 1.0\n";
    place.write("my.toml", format!("base = \"digits-rcm\"\n{methods}"));
    let message = place.refused_untouched(&["distill", "-o", "run", "--config", "my.toml"]);
    assert_says(&message, &["`distill.method` takes exactly one of", "both `rcm` and `dmd`", "my.toml:2"]);
}

#[test]
fn a_dry_run_prints_a_configuration_that_resolves_to_itself_and_writes_nothing() {
    let place = Place::new();
    for command in ["teach", "distill"] {
        let key = format!("{command}.run.batch=6");
        let first = place.done(&[command, "-o", "run", "--dry-run", "--set", &key, "--seed", "11"]);
        assert!(!place.path("run").exists());
        assert_says(&first, &["batch = 6", "seed = 11", "--set", "preset"]);
        place.write("resolved.toml", &first);
        let again = place.done(&[command, "-o", "run", "--dry-run", "--config", "resolved.toml"]);
        let values = |text: &str| text.parse::<toml::Table>().unwrap();
        assert_eq!(values(&first), values(&again));
    }
}

#[test]
fn a_finished_run_leaves_its_configuration() {
    let place = Place::new();
    let args = [&["distill", "-o", "run"][..], &TINY_DISTILLATION, &["--set", "distill.run.iterations=1"]].concat();
    place.done(&args);
    let dry = place.done(&[&args[..], &["--dry-run"]].concat());
    assert_eq!(std::fs::read_to_string(place.path("run/config.toml")).unwrap(), dry);
}

#[test]
fn the_published_presets_have_their_published_numbers() {
    let place = Place::new();
    let number = |preset: &str, key: &str| {
        let shown = place.done(&["config", "distill", "--preset", preset]).parse::<toml::Table>().unwrap();
        let mut value = &toml::Value::Table(shown);
        for part in key.split('.') {
            value = value.get(part).unwrap_or_else(|| panic!("{preset}: {key}"));
        }
        value.as_float().or_else(|| value.as_integer().map(|i| i as f64)).unwrap()
    };
    let p_g = "distill.method.rcm.consistency.scm.time.log_normal.mean";
    let (h, start) = ("distill.method.rcm.consistency.scm.tangent_warmup", "distill.method.rcm.dmd.start");
    let keys = [p_g, h, start, "distill.ema", "sampling.sigma_max", "data.shards.latent_frames"];
    // rCM, Table 4, and the reference code.
    let rows = [
        ("wan2.1-t2v-1.3b", [0.7, 1000.0, 1000.0, 0.1, 80.0, 20.0]),
        ("wan2.1-t2v-1.3b-paper", [-0.8 + 20f64.ln() / 2.0, 1000.0, 1000.0, 0.05, 1600.0, 20.0]),
        ("wan2.1-t2v-14b", [1.5, 0.0, 0.0, 0.1, 200.0, 21.0]),
        ("wan2.1-t2v-14b-paper", [-0.8 + 21f64.ln() / 2.0, 200.0, 200.0, 0.05, 1600.0, 21.0]),
    ];
    for (preset, want) in rows {
        for (key, want) in keys.into_iter().zip(want) {
            assert!((number(preset, key) - want).abs() < 1e-12, "{preset}: {key} = {}", number(preset, key));
        }
    }
    for (preset, lr, fake, f) in [("wan2.1-t2v-1.3b", 2e-6, 4e-7, 5.0), ("wan2.1-t2v-14b-paper", 1e-6, 1e-7, 10.0)] {
        assert_eq!(number(preset, "distill.student.learning_rate"), lr);
        assert_eq!(number(preset, "distill.fake_score.learning_rate"), fake);
        assert_eq!(number(preset, "distill.method.rcm.dmd.student_update_freq"), f);
        assert_eq!(number(preset, "distill.guidance"), 5.0);
    }
}

#[test]
fn every_preset_resolves() {
    let place = Place::new();
    for kind in ["teach", "distill"] {
        let list = place.done(&["config", kind, "--list"]);
        assert!(list.lines().count() >= 1);
        for preset in list.lines() {
            let resolved = place.done(&["config", kind, "--preset", preset]);
            assert_says(&resolved, &["[sampling]", &format!("[{kind}.run]"), &format!("preset {preset}")]);
        }
    }
}
