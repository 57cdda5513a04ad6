//! What a user reads after a mistake, to the character.

use miette::{GraphicalReportHandler, GraphicalTheme};

use super::*;

/// Resolves a case that must fail, and renders the error as a terminal without colours shows it.
fn refused(preset: Option<&str>, file: &str, overrides: &[&str], kind: Kind) -> String {
    let case = case(file, overrides);
    let error = case.resolve(preset).unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    render(&case, &error)
}

fn render(case: &Case, error: &ConfigurationError) -> String {
    let mut text = String::new();
    let handler = GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor());
    let handler = handler.with_width(100).without_cause_chain().with_wrap_lines(false);
    handler.render_report(&mut text, error).unwrap();
    case.shown(&text)
}

macro_rules! message {
    ($name:ident, $kind:ident, $preset:expr, $file:expr, $overrides:expr) => {
        #[test]
        fn $name() {
            insta::assert_snapshot!(refused($preset, $file, &$overrides, Kind::$kind));
        }
    };
}

message!(an_unknown_key_shows_the_nearest, UnknownKey, Some("demo"), "seed = 1\n\n[student]\nlearning_rat = 1\n", []);
message!(an_unknown_table_shows_the_nearest, UnknownKey, Some("demo"), "[studnet]\nwidth = 1\n", []);
message!(an_unknown_key_of_a_variant_shows_its_keys, UnknownKey, Some("demo"), "method = { rcm = { zzz = 1 } }", []);
message!(
    an_unknown_key_in_a_list_is_found,
    UnknownKey,
    Some("demo"),
    "[[stages]]\nsteps = 1\n[[stages]]\nstep = 1",
    []
);
message!(an_unknown_key_of_an_override_is_shown, UnknownKey, Some("demo"), "", ["student.lerning_rate=1"]);
message!(a_setting_of_a_variant_without_any_is_refused, UnknownKey, Some("demo"), "[method.mean]\nweight = 1\n", []);
message!(an_unknown_variant_shows_the_nearest, Value, Some("demo"), "[method.rmc]\nweight = 1\n", []);
message!(an_unknown_variant_by_name_shows_the_nearest, Value, Some("demo"), "", ["method=maen"]);
message!(two_variants_in_one_layer_are_refused, Value, Some("demo"), "[method.scm]\n[method.rcm]\nweight = 1\n", []);
message!(a_wrong_type_shows_line_and_column, Value, Some("demo"), "[student]\nlearning_rate = \"fast\"\n", []);
message!(a_wrong_type_in_an_override_is_shown, Value, Some("demo"), "", ["student.width=wide"]);
message!(a_fraction_for_an_integer_is_refused, Value, Some("demo"), "", ["student.width=1.5"]);
message!(a_negative_count_is_refused, Value, Some("demo"), "seed = -1\n", []);
message!(a_number_past_64_bits_is_refused, Value, Some("demo"), "seed = 99999999999999999999\n", []);
message!(a_zero_where_at_least_one_is_needed_is_refused, Value, Some("demo"), "log.every = 0\n", []);
message!(a_value_outside_its_range_is_refused, Value, Some("demo"), "student.dropout = 1.5\n", []);
message!(a_short_list_is_refused, Value, Some("demo"), "betas = [0.9]\n", []);
message!(a_value_in_place_of_a_table_is_refused, Value, Some("demo"), "student = 3\n", []);
message!(a_table_in_place_of_a_value_is_refused, Value, Some("demo"), "[seed]\nx = 1\n", []);
message!(a_syntax_error_shows_line_and_column, Syntax, Some("demo"), "seed = 1\n[student\nwidth = 2\n", []);
message!(a_key_given_twice_is_a_syntax_error, Syntax, Some("demo"), "seed = 1\nseed = 2\n", []);
message!(an_override_without_equals_is_refused, Syntax, Some("demo"), "", ["seed"]);
message!(an_override_without_a_value_is_refused, Syntax, Some("demo"), "", ["seed="]);
message!(an_override_without_a_key_is_refused, Syntax, Some("demo"), "", ["student..width=a b"]);
message!(an_override_with_an_open_list_is_refused, Syntax, Some("demo"), "", ["betas=[1, 2"]);
message!(an_override_cannot_change_the_base, UnknownKey, Some("demo"), "", ["base=demo-large"]);
message!(an_unknown_preset_shows_the_nearest, Preset, Some("demo-lage"), "", []);
message!(an_unknown_base_of_a_file_is_shown_in_it, Preset, None, "base = \"dem\"\n", []);
message!(an_unknown_base_of_a_preset_is_shown_in_it, Preset, Some("orphan"), "", []);
message!(a_preset_that_stands_on_itself_is_refused, Preset, Some("loop-a"), "", []);
message!(two_presets_for_one_file_are_refused, Preset, Some("demo"), "seed = 1\nbase = \"demo-large\"\n", []);
message!(a_base_that_is_no_text_is_refused, Value, None, "base = 1\n", []);
message!(a_file_alone_must_be_complete, MissingKey, None, "seed = 1\n", []);
message!(a_new_variant_must_be_complete, MissingKey, None, "base = \"demo\"\n[method.rcm.critic]\n", []);

#[test]
fn a_missing_file_is_named() {
    let mut case = case("", &[]);
    case.file = Some(case.folder.path().join("none.toml"));
    let error = case.resolve(None).unwrap_err();
    assert_eq!(error.kind(), Kind::Read);
    insta::assert_snapshot!(render(&case, &error));
}

#[test]
fn a_refusal_by_the_program_shows_where_the_value_was_written() {
    let case = case("[student]\nwidth = 65\n", &[]);
    let error = case.resolve(Some("demo")).unwrap().refuse("student.width", "must be a multiple of 8, got 65");
    insta::assert_snapshot!(render(&case, &error));
}

#[test]
fn arbitrary_bytes_never_panic() {
    let pieces =
        ["base", "=", "\"", "[", "]", "{", "}", "seed", ".", "\n", "1", "é", "method", "rcm", "\u{0}", "#", ","];
    let mut state = 1_u64;
    for _ in 0..20_000 {
        let mut text = String::new();
        for _ in 0..state % 9 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            text.push_str(pieces[(state >> 33) as usize % pieces.len()]);
        }
        state = state.wrapping_add(1);
        let presets = [PRESETS[0], Preset { name: "odd", text: &text }];
        let overrides = [text.clone()];
        for layers in [
            Layers { presets: &presets, preset: Some("odd"), ..Layers::default() },
            Layers { presets: &presets, overrides: &overrides, ..Layers::default() },
        ] {
            if let Err(error) = resolve::<Settings>(layers) {
                assert!(!format!("{:?}", miette::Report::new(error)).is_empty());
            }
        }
    }
}
