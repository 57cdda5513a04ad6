/// What can go wrong in this crate; what a user typed or chose comes with its remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The embedded digits cannot be read: the program was built from a damaged checkout.
    #[error("the embedded digits are damaged: {reason}; restore crates/data/assets/digits.csv.gz and build again")]
    Asset {
        /// What was found, with its line.
        reason: String,
    },

    /// A word that stands for a digit, colour, direction or split is none of the valid ones.
    #[error("unknown {what} `{got}`: expected one of {valid}")]
    NotOneOf {
        /// The kind of thing expected, such as `colour`.
        what: &'static str,
        /// What came.
        got: String,
        /// The valid words, separated by commas.
        valid: String,
    },

    /// A text that is not of the form of a caption.
    #[error(
        "`{got}` is not a caption: expected `a <colour> <digit> moving <direction>`, such as `a red seven moving up and left`"
    )]
    CaptionForm {
        /// What came.
        got: String,
    },

    /// A prompt holds a word outside the vocabulary.
    #[error("unknown word `{word}`: did you mean `{nearest}`? The words are {valid}")]
    UnknownWord {
        /// The word as it came.
        word: String,
        /// The valid word at the least edit distance.
        nearest: &'static str,
        /// The valid words, separated by commas.
        valid: String,
    },

    /// A prompt holds more words than the network has text positions.
    #[error("the prompt has {got} words: at most {limit} fit, shorten it")]
    TextTooLong {
        /// The number of words that came.
        got: usize,
        /// The number of text positions.
        limit: usize,
    },

    /// A clip was asked for with too few frames to show motion.
    #[error("a moving digit needs at least {least} frames, got {got}")]
    TooFewFrames {
        /// The number asked for.
        got: usize,
        /// The least that shows motion.
        least: usize,
    },
}

/// The result of this crate's fallible functions.
pub type Result<T, E = DataError> = std::result::Result<T, E>;
