use super::*;

#[test]
fn a_preset_alone_resolves_to_itself() {
    let settings = resolved("demo", "", &[]).value;
    assert_eq!((settings.seed, settings.student.width), (7, 64));
    assert_eq!(settings.method, Method::Rcm(Rcm { tangent_warmup: 100, weight: 0.5, critic: None }));
}

#[test]
fn the_first_preset_is_taken_when_nothing_is_named() {
    assert_eq!(case("", &[]).resolve(None).unwrap().value, resolved("demo", "", &[]).value);
}

#[test]
fn a_later_layer_wins_key_by_key() {
    let file = "[student]\nlearning_rate = 2e-3\n[log]\nevery = 10\n";
    let settings = resolved("demo", file, &["student.learning_rate=3e-3", "student.learning_rate = 4e-3"]).value;
    assert_eq!((settings.student.learning_rate, settings.student.width), (4e-3, 64));
    assert_eq!((settings.log.every.get(), settings.log.verbose), (10, false));
}

#[test]
fn a_list_replaces_a_list() {
    assert_eq!(resolved("demo", "betas = [0.5, 0.6]", &[]).value.betas, [0.5, 0.6]);
    assert_eq!(resolved("demo", "", &["betas=[0, 1]"]).value.betas, [0.0, 1.0]);
}

#[test]
fn a_map_with_free_keys_merges() {
    let settings = resolved("demo", "[loggers]\na = 1\nb = 2", &["loggers.b=3", "loggers.\"c.d\"=4"]).value;
    let expected = [("a", 1), ("b", 3), ("c.d", 4)].map(|(name, level)| (name.to_owned(), level));
    assert_eq!(settings.loggers, expected.into());
}

#[test]
fn a_preset_derives_from_its_base() {
    let settings = resolved("demo-large", "", &[]).value;
    assert_eq!((settings.seed, settings.student.width, settings.student.learning_rate), (7, 256, 1e-3));
    let critic = Some(Critic { steps: 5 });
    assert_eq!(settings.method, Method::Rcm(Rcm { tangent_warmup: 100, weight: 0.5, critic }));
}

#[test]
fn a_file_names_its_preset_by_base() {
    let case = case("base = \"demo-large\"\nseed = 8\n", &[]);
    for preset in [None, Some("demo-large")] {
        let settings = case.resolve(preset).unwrap().value;
        assert_eq!((settings.seed, settings.student.width), (8, 256));
    }
}

#[test]
fn settings_of_the_same_variant_merge() {
    let settings = resolved("demo", "[method.rcm]\nweight = 0.25\n", &["method.rcm.critic.steps=3"]).value;
    let critic = Some(Critic { steps: 3 });
    assert_eq!(settings.method, Method::Rcm(Rcm { tangent_warmup: 100, weight: 0.25, critic }));
}

#[test]
fn another_variant_replaces_the_one_below() {
    let settings = resolved("demo", "[method.scm]\n", &[]);
    assert_eq!(settings.value.method, Method::Scm { tangent_warmup: 0 });
    assert_eq!(settings.sources["method.scm.tangent_warmup"], Origin::Default);
    assert_eq!(resolved("demo", "", &["method.scm.tangent_warmup=9"]).value.method, Method::Scm { tangent_warmup: 9 });
}

#[test]
fn a_variant_that_returns_does_not_bring_back_its_old_settings() {
    let error = case("[method.scm]\n", &["method.rcm.weight=1"]).resolve(Some("demo")).unwrap_err();
    assert_eq!(error.kind(), Kind::MissingKey);
}

#[test]
fn a_variant_is_chosen_by_its_name_alone() {
    assert_eq!(resolved("demo", "", &["method=mean"]).value.method, Method::Mean);
    assert_eq!(resolved("demo", "", &["method=scm"]).value.method, Method::Scm { tangent_warmup: 0 });
    assert_eq!(resolved("demo", "[method.mean]", &[]).value.method, Method::Mean);
    let same = resolved("demo", "", &["method=rcm"]).value;
    assert_eq!(same, resolved("demo", "", &[]).value, "naming the variant that is there keeps its settings");
}

#[test]
fn an_override_that_is_no_toml_is_text() {
    for (typed, path) in [
        ("output=runs/a", "runs/a"),
        ("output = my run ", "my run"),
        ("output=\"true\"", "true"),
        ("output=#1=x", "#1=x"),
        ("output=''", ""),
    ] {
        let settings = resolved("demo", "", &[typed]);
        assert_eq!(settings.value.output, Some(path.into()), "{typed}");
        assert_eq!(settings.sources["output"], Origin::Override { text: typed.to_owned() });
    }
}

#[test]
fn the_sources_name_layer_and_line() {
    let case = case("\n[student]\n# faster\nlearning_rate = 2e-3\n", &["seed=1"]);
    let settings = case.resolve(Some("demo-large")).unwrap();
    let source = |key: &str| case.shown(&settings.sources[key].to_string());
    assert_eq!(source("seed"), "--set seed=1");
    assert_eq!(source("student.learning_rate"), "my.toml:4");
    assert_eq!(source("student.width"), "preset demo-large");
    assert_eq!(source("betas"), "preset demo");
    assert_eq!(source("method.rcm.critic.steps"), "preset demo-large");
    assert_eq!(source("log.every"), "default");
}

#[test]
fn the_display_shows_each_value_with_its_source() {
    let file = "[student]\nlearning_rate = 2e-3\ndropout = 0.1\n[[stages]]\nsteps = 4\n";
    let case = case(file, &["method=mean", "output=a\nb"]);
    insta::assert_snapshot!(case.shown(&case.resolve(Some("demo-large")).unwrap().to_string()));
}

#[test]
fn a_resolved_configuration_resolves_to_itself_alone() {
    for overrides in [&["method=mean"][..], &["log.every=3", "stages=[{ steps = 1 }]"], &[]] {
        let first = resolved("demo-large", "", overrides);
        for text in [first.toml.clone(), first.to_string()] {
            let again = case(&text, &[]).resolve(None).unwrap();
            assert_eq!((again.value, again.toml), (first.value.clone(), first.toml.clone()));
        }
    }
}
