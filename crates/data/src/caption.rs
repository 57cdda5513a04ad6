//! What a clip shows, in words: [`Digit`], [`Colour`] and [`Direction`] make a [`Caption`].

use std::fmt;
use std::str::FromStr;

use crate::error::{DataError, Result};

/// An enum whose variants are spelled as words: `ALL`, `index`, `word`, `Display` and `FromStr`.
macro_rules! worded {
    ($(#[$doc:meta])* $name:ident, $what:literal, $($(#[$variant_doc:meta])* $variant:ident = $word:literal),+) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[$variant_doc])* $variant),+
        }

        impl $name {
            /// Every value, in the order of [`Self::index`].
            pub const ALL: [Self; [$($word),+].len()] = [$(Self::$variant),+];

            /// The place of this value in [`Self::ALL`].
            pub const fn index(self) -> usize {
                self as usize
            }

            /// The value as it is written in a caption or a configuration.
            pub const fn word(self) -> &'static str {
                match self {
                    $(Self::$variant => $word),+
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.word())
            }
        }

        impl FromStr for $name {
            type Err = DataError;

            fn from_str(text: &str) -> Result<Self> {
                let normal = normalised(text);
                Self::ALL.into_iter().find(|value| value.word() == normal).ok_or_else(|| {
                    DataError::NotOneOf {
                        what: $what,
                        got: text.trim().to_owned(),
                        valid: Self::ALL.map(Self::word).join(", "),
                    }
                })
            }
        }
    };
}

worded! {
    /// A handwritten digit, the subject of a clip.
    Digit, "digit",
    /// 0.
    Zero = "zero",
    /// 1.
    One = "one",
    /// 2.
    Two = "two",
    /// 3.
    Three = "three",
    /// 4.
    Four = "four",
    /// 5.
    Five = "five",
    /// 6.
    Six = "six",
    /// 7.
    Seven = "seven",
    /// 8.
    Eight = "eight",
    /// 9.
    Nine = "nine"
}

worded! {
    /// The colour of the ink: the corners of the RGB cube other than black and white, blue moved towards white because
    /// pure blue is hard to see on black. Any two differ by at least 0.6 of the range in a channel.
    Colour, "colour",
    /// RGB 1, 0, 0.
    Red = "red",
    /// RGB 0, 1, 0.
    Green = "green",
    /// RGB 0.2, 0.4, 1.
    Blue = "blue",
    /// RGB 1, 1, 0.
    Yellow = "yellow",
    /// RGB 1, 0, 1.
    Magenta = "magenta",
    /// RGB 0, 1, 1.
    Cyan = "cyan"
}

worded! {
    /// The direction in which the digit moves, as seen on the screen.
    Direction, "direction",
    /// Towards the first row.
    Up = "up",
    /// Towards the last row.
    Down = "down",
    /// Towards the first column.
    Left = "left",
    /// Towards the last column.
    Right = "right",
    /// The diagonal towards the top left corner.
    UpLeft = "up and left",
    /// The diagonal towards the top right corner.
    UpRight = "up and right",
    /// The diagonal towards the bottom left corner.
    DownLeft = "down and left",
    /// The diagonal towards the bottom right corner.
    DownRight = "down and right"
}

worded! {
    /// Which source digits a clip is drawn from. No digit image belongs to both.
    Split, "split",
    /// Four fifths of each class.
    Train = "train",
    /// The remaining fifth of each class, for evaluation.
    HeldOut = "held-out"
}

impl Colour {
    /// Red, green and blue of full ink, each in [0, 1].
    pub const fn rgb(self) -> [f32; 3] {
        match self {
            Self::Red => [1.0, 0.0, 0.0],
            Self::Green => [0.0, 1.0, 0.0],
            Self::Blue => [0.2, 0.4, 1.0],
            Self::Yellow => [1.0, 1.0, 0.0],
            Self::Magenta => [1.0, 0.0, 1.0],
            Self::Cyan => [0.0, 1.0, 1.0],
        }
    }
}

impl Direction {
    /// The sign of the motion along [rows, columns]: rows grow downwards, columns rightwards.
    pub const fn step(self) -> [i8; 2] {
        match self {
            Self::Up => [-1, 0],
            Self::Down => [1, 0],
            Self::Left => [0, -1],
            Self::Right => [0, 1],
            Self::UpLeft => [-1, -1],
            Self::UpRight => [-1, 1],
            Self::DownLeft => [1, -1],
            Self::DownRight => [1, 1],
        }
    }
}

/// What a clip shows, written `a red seven moving up and left`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Caption {
    /// The digit drawn.
    pub digit: Digit,
    /// The colour of its ink.
    pub colour: Colour,
    /// The direction of its motion.
    pub direction: Direction,
}

impl Caption {
    /// How many captions there are.
    pub const COUNT: usize = Digit::ALL.len() * Colour::ALL.len() * Direction::ALL.len();

    /// Every caption once, the direction varying fastest and the digit slowest.
    pub fn all() -> impl Iterator<Item = Self> {
        Digit::ALL.into_iter().flat_map(|digit| {
            Colour::ALL.into_iter().flat_map(move |colour| {
                Direction::ALL.into_iter().map(move |direction| Self { digit, colour, direction })
            })
        })
    }
}

impl fmt::Display for Caption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { digit, colour, direction } = self;
        write!(f, "a {colour} {digit} moving {direction}")
    }
}

impl FromStr for Caption {
    type Err = DataError;

    /// Reads a caption as [`Caption`] writes it; case and the amount of white space are free.
    fn from_str(text: &str) -> Result<Self> {
        let normal = normalised(text);
        let form = || DataError::CaptionForm { got: text.trim().to_owned() };
        let (subject, direction) = normal.split_once(" moving ").ok_or_else(form)?;
        let subject = subject.strip_prefix("a ").ok_or_else(form)?;
        let (colour, digit) = subject.split_once(' ').ok_or_else(form)?;
        Ok(Self { digit: digit.parse()?, colour: colour.parse()?, direction: direction.parse()? })
    }
}

/// Lower case, with single spaces between words and none around them.
fn normalised(text: &str) -> String {
    let lower = text.to_lowercase();
    lower.split_whitespace().collect::<Vec<_>>().join(" ")
}
