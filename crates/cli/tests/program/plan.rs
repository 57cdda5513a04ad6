//! `plan`, from outside.

use crate::{Place, assert_says};

fn plan<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["plan"][..], more].concat()
}

#[test]
fn a_plan_of_the_published_recipe_has_its_known_numbers() {
    let place = Place::new();
    let args = ["--preset", "wan2.1-t2v-1.3b", "--hardware", "h100", "--first-moment", "--json"];
    let json: serde_json::Value = serde_json::from_str(&place.done(&plan(&args))).unwrap();
    let plan = &json["plan"];
    assert_eq!(plan["tokens"], 32_760, "81 frames of 832x480");
    let parameters = plan["parameters"].as_f64().unwrap();
    assert!((parameters / 1.42e9 - 1.0).abs() < 0.01, "{parameters}");
    let kinds = plan["memory"].as_array().unwrap().iter();
    let resident =
        kinds.filter(|k| ["weights", "masters", "moments", "average"].contains(&k["name"].as_str().unwrap()));
    let bytes: f64 = resident.map(|k| k["bytes"].as_f64().unwrap()).sum();
    // Three networks in bf16, two with masters and two moments in f32, an average in f32.
    assert_eq!(bytes / parameters, 34.0);
}

#[test]
fn the_table_is_narrow_and_says_what_would_fit() {
    let place = Place::new();
    let table = place.done(&plan(&["--preset", "wan2.1-t2v-14b", "--hardware", "h100"]));
    assert!(table.lines().all(|l| l.chars().count() <= 100), "{table}");
    assert_says(&table, &["14.2", "does not fit", "--recompute inputs", "--devices", "student JVP", "attention"]);
    assert_says(&place.done(&plan(&["--preset", "digits", "--memory", "8"])), &["It fits."]);
}

#[test]
fn what_cannot_be_planned_is_refused_with_a_remedy() {
    let place = Place::new();
    let refused =
        |more: &[&str]| place.refused_untouched(&plan(&[&["--preset", "wan2.1-t2v-1.3b"][..], more].concat()));
    assert_says(&refused(&["--frames", "80"]), &["not 1 + 4·k", "choose 77 or 81"]);
    assert_says(&refused(&["--frames", "0"]), &["not 1 + 4·k", "choose 1 or 5"]);
    assert_says(&refused(&["--size", "830x480"]), &["no multiple of 16", "choose 816 or 832"]);
    assert_says(&refused(&["--size", "0x480"]), &["no multiple of 16"]);
    assert_says(&refused(&["--size", "18446744073709551600x16"]), &["tokens", "smaller video"]);
    assert_says(&refused(&["--frames", "18446744073709551613"]), &["tokens", "smaller video"]);
    assert_says(&refused(&["--batch", "0"]), &["--batch", "from 1"]);
    assert_says(&refused(&["--devices", "8", "--context-parallel", "3"]), &["do not divide", "divisor"]);
    assert_says(&refused(&["--devices", "8", "--context-parallel", "8"]), &["12 heads", "divisor"]);
    assert_says(&refused(&["--rank", "0"]), &["--rank", "from 1"]);
    assert_says(&refused(&["--hardware", "h1000"]), &["no 'h1000'", "h100"]);
    assert_says(&refused(&["--memory", "-1"]), &["--memory", "above 0"]);
    assert_says(
        &place.refused_untouched(&plan(&["--preset", "wan2.1-t2v-1b"])),
        &["no network", "did you mean 'wan2.1-t2v-14b'", "digits"],
    );
    assert_says(&place.misused(&plan(&["--preset", "digits", "--size", "big"])), &["832x480"]);
    place.write("config.json", "{\"dim\": 1e3");
    assert_says(&place.refused_untouched(&plan(&["--config", "config.json"])), &["config.json", "of a Wan"]);
}

#[test]
fn a_folder_of_either_release_is_planned_with_the_number_of_its_networks() {
    let place = Place::new();
    let diffusers = r#"{"_class_name":"WanTransformer3DModel","num_attention_heads":4,"attention_head_dim":24,"ffn_dim":384,
        "num_layers":2,"in_channels":16,"out_channels":16,"text_dim":32,"freq_dim":96,"patch_size":[1,2,2],"eps":1e-6,
        "cross_attn_norm":true,"qk_norm":"rms_norm_across_heads"}"#;
    for folder in ["model/transformer", "model/transformer_2"] {
        std::fs::create_dir_all(place.path(folder)).unwrap();
        place.write(&format!("{folder}/config.json"), diffusers);
    }
    let args = ["--size", "64x64", "--frames", "5", "--method", "sample"];
    let of = |config| place.done(&plan(&[&["--config", config][..], &args].concat()));
    assert_says(&of("model"), &["2 experts of", "VAE decode"]);
    assert!(!of("model/transformer/config.json").contains("experts"));
}
