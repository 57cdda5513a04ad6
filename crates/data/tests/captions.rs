//! Captions, words and text embeddings.

use std::collections::HashSet;

use fewstep_data::{
    Caption, Colour, DataError, Digit, Direction, Split, TEXT_DIM, TEXT_LEN, Vocabulary, text_embedding,
};

const EXAMPLE: Caption = Caption { digit: Digit::Seven, colour: Colour::Red, direction: Direction::UpLeft };

#[test]
fn every_caption_round_trips_through_its_text() {
    let mut texts = HashSet::new();
    for caption in Caption::all() {
        let text = caption.to_string();
        assert_eq!(text.parse::<Caption>().unwrap(), caption);
        assert!(texts.insert(text));
    }
    assert_eq!(texts.len(), Caption::COUNT);
    assert_eq!(Caption::COUNT, 480);
}

#[test]
fn a_caption_reads_as_english() {
    assert_eq!(EXAMPLE.to_string(), "a red seven moving up and left");
}

#[test]
fn case_and_spacing_of_a_caption_are_free() {
    let typed = "  A Red\tSEVEN moving  up and left ";
    assert_eq!(typed.parse::<Caption>().unwrap(), EXAMPLE);
}

#[test]
fn a_wrong_word_of_a_caption_is_named_with_the_valid_ones() {
    for (text, message) in [
        ("a pink seven moving up", "unknown colour `pink`: expected one of red, green, blue, yellow, magenta, cyan"),
        (
            "a red ten moving up",
            "unknown digit `ten`: expected one of zero, one, two, three, four, five, six, seven, eight, nine",
        ),
        (
            "a red six moving left and up",
            "unknown direction `left and up`: expected one of up, down, left, right, up and left, up and right, down and left, down and right",
        ),
    ] {
        assert_eq!(text.parse::<Caption>().unwrap_err().to_string(), message);
    }
    let split = "test".parse::<Split>().unwrap_err().to_string();
    assert_eq!(split, "unknown split `test`: expected one of train, held-out");
}

#[test]
fn a_text_of_another_form_is_shown_the_form() {
    for text in ["", "red seven moving up", "a red seven", "a seven moving up"] {
        let error = text.parse::<Caption>().unwrap_err();
        assert!(matches!(error, DataError::CaptionForm { .. }), "{text}: {error}");
        assert!(error.to_string().contains("a <colour> <digit> moving <direction>"));
    }
}

#[test]
fn tokens_are_golden() {
    // Part of what a trained network knows: these numbers must not change.
    let tokens = Vocabulary::tokens(EXAMPLE).unwrap();
    assert_eq!(tokens, [1, 8, 21, 2, 4, 3, 6]);
    let tokens = Vocabulary::tokens("a cyan zero moving down and right").unwrap();
    assert_eq!(tokens, [1, 13, 14, 2, 5, 3, 7]);
    assert_eq!(Vocabulary::tokens("").unwrap(), [0]);
    assert_eq!(Vocabulary::word(23), Some("nine"));
    assert_eq!(Vocabulary::word(24), None);
}

#[test]
fn every_caption_is_in_the_vocabulary_and_spelled_by_its_tokens() {
    for caption in Caption::all() {
        let tokens = Vocabulary::tokens(caption).unwrap();
        let words: Vec<_> = tokens.into_iter().map(|t| Vocabulary::word(t).unwrap()).collect();
        assert_eq!(words.join(" "), caption.to_string());
        assert!(words.len() <= TEXT_LEN);
    }
}

#[test]
fn an_embedding_has_one_hot_rows_and_then_zeros() {
    let rows = text_embedding("a red seven").unwrap();
    let mut expected = vec![0.0; TEXT_LEN * TEXT_DIM];
    for (row, token) in [1, 8, 21].into_iter().enumerate() {
        expected[row * TEXT_DIM + token] = 1.0;
    }
    assert_eq!(rows, expected);
}

#[test]
fn the_empty_text_has_a_row_of_its_own() {
    let rows = text_embedding(" ").unwrap();
    assert_eq!(rows[0], 1.0);
    assert_eq!(rows.iter().sum::<f32>(), 1.0);
}

#[test]
fn an_unknown_word_is_named_with_the_nearest_valid_one() {
    for (text, word, near) in
        [("a red sevn", "sevn", "seven"), ("a Megenta six", "Megenta", "magenta"), ("a red six, moving", "six,", "six")]
    {
        match Vocabulary::tokens(text).unwrap_err() {
            DataError::UnknownWord { word: got, nearest, .. } => {
                assert_eq!((got.as_str(), nearest), (word, near));
            }
            other => panic!("{other}"),
        }
    }
    let message = Vocabulary::tokens("a red sevn").unwrap_err().to_string();
    assert!(message.starts_with("unknown word `sevn`: did you mean `seven`? The words are a, moving,"));
}

#[test]
fn the_empty_word_cannot_be_typed() {
    let error = Vocabulary::tokens("<empty>").unwrap_err();
    assert!(matches!(error, DataError::UnknownWord { .. }));
}

#[test]
fn a_text_past_the_last_position_is_refused() {
    assert!(Vocabulary::tokens(["red"; TEXT_LEN].join(" ")).is_ok());
    let error = Vocabulary::tokens(["red"; TEXT_LEN + 1].join(" ")).unwrap_err();
    assert_eq!(error.to_string(), "the prompt has 9 words: at most 8 fit, shorten it");
}
