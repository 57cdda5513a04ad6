//! Clips: one digit in one colour, moving in one direction at constant speed over black.

use fewstep_tensor::random::{Purpose, Stream};

use crate::caption::{Caption, Colour, Digit, Direction, Split};
use crate::digits::{Collection, DIGIT_SIZE, DigitImage};
use crate::error::{DataError, Result};

/// Colour channels of a clip: red, green, blue.
pub const CHANNELS: usize = 3;
/// Frames of a clip unless [`Digits::with_frames`] says otherwise.
pub const FRAMES: usize = 6;
/// Height of a frame, in pixels.
pub const HEIGHT: usize = 16;
/// Width of a frame, in pixels.
pub const WIDTH: usize = 16;

/// Motion cannot be seen in fewer frames.
const LEAST_FRAMES: usize = 2;

/// The way from the first frame to the last along each moving axis, in pixels, least and most: 1.0 to 1.4 a frame at
/// six frames, and always less than the room that a digit has.
const TRAVEL: [f64; 2] = [5.0, 7.0];

/// Most that a path's middle is displaced from the frame's middle along an axis, in pixels.
const JITTER: f64 = 1.5;

/// Room that a digit has in a frame along [rows, columns], in pixels.
const ROOM: [f64; 2] = [(HEIGHT - DIGIT_SIZE) as f64, (WIDTH - DIGIT_SIZE) as f64];

/// A captioned video.
#[derive(Clone, Debug, PartialEq)]
pub struct Clip {
    /// What it shows.
    pub caption: Caption,
    /// Index of its digit image among the 1,797; the index belongs to one split only.
    pub source: usize,
    /// Number of frames F.
    pub frames: usize,
    /// [C = 3, F, H, W] in [-1, 1]; the background is black, -1.
    pub pixels: Vec<f32>,
}

impl Clip {
    /// The shape [C, F, H, W] of [`Self::pixels`].
    pub fn dims(&self) -> [usize; 4] {
        [CHANNELS, self.frames, HEIGHT, WIDTH]
    }
}

/// The procedurally infinite set of clips: a small handle, free to copy.
#[derive(Clone, Copy, Debug)]
pub struct Digits {
    collection: &'static Collection,
    frames: usize,
}

impl Digits {
    /// Opens the embedded digits; the first call decodes them, later ones cost nothing. Clips have [`FRAMES`] frames.
    ///
    /// # Errors
    /// [`DataError::Asset`] when the program was built from a damaged checkout.
    pub fn load() -> Result<Self> {
        Ok(Self { collection: Collection::embedded()?, frames: FRAMES })
    }

    /// The same clips over the same paths in another number of frames.
    ///
    /// # Errors
    /// [`DataError::TooFewFrames`] for fewer than two.
    pub fn with_frames(self, frames: usize) -> Result<Self> {
        if frames < LEAST_FRAMES {
            return Err(DataError::TooFewFrames { got: frames, least: LEAST_FRAMES });
        }
        Ok(Self { frames, ..self })
    }

    /// The number of frames of each clip.
    pub fn frames(&self) -> usize {
        self.frames
    }

    /// The source images in use of a split, by class and then by their index in the asset.
    pub fn images(&self, split: Split) -> impl Iterator<Item = &'static DigitImage> + use<> {
        let collection = self.collection;
        Digit::ALL.into_iter().flat_map(move |digit| {
            let members = collection.members(split, digit).iter();
            members.map(move |&index| collection.image(index))
        })
    }

    /// The clip at `index` of the infinite set of `split`: a pure function of (split, seed, index). Digit, colour,
    /// direction, source image, speed and place are uniform and independent. The index is below 2³², the random stream's limit on samples.
    pub fn clip(&self, split: Split, seed: u64, index: u64) -> Clip {
        let draws = Draws::new(split, seed, index);
        self.draw(split, draws.caption(), &draws)
    }

    /// [`Self::clip`] with the caption forced and all else as drawn; where the caption is the drawn one, the same clip.
    pub fn clip_of(&self, split: Split, seed: u64, index: u64, caption: Caption) -> Clip {
        self.draw(split, caption, &Draws::new(split, seed, index))
    }

    fn draw(&self, split: Split, caption: Caption, draws: &Draws) -> Clip {
        let source = pick(self.collection.members(split, caption.digit), draws.0[Draws::IMAGE]);
        let image = self.collection.image(source);
        let path = Path::new(caption.direction, draws);
        let (rgb, frames) = (caption.colour.rgb(), self.frames);
        // [C, F, H, W]
        let mut pixels = vec![-1.0; CHANNELS * frames * HEIGHT * WIDTH];
        for frame in 0..frames {
            let ink = placed(image, path.at(frame, frames));
            for (channel, strength) in rgb.into_iter().enumerate() {
                let start = (channel * frames + frame) * HEIGHT * WIDTH;
                for (pixel, ink) in pixels[start..].iter_mut().zip(&ink) {
                    *pixel = 2.0 * ink * strength - 1.0;
                }
            }
        }
        Clip { caption, source, frames, pixels }
    }
}

/// The random numbers of one clip, each in [0, 1). Their order is part of what a seed means.
struct Draws(Vec<f64>);

impl Draws {
    const DIGIT: usize = 0;
    const COLOUR: usize = 1;
    const DIRECTION: usize = 2;
    const IMAGE: usize = 3;
    const TRAVEL: usize = 4;
    const JITTER: [usize; 2] = [5, 6];
    const COUNT: usize = 7;

    fn new(split: Split, seed: u64, index: u64) -> Self {
        // The splits are apart in the stream as well, so that equal indices do not give equal captions and paths.
        let split = match split {
            Split::Train => 0,
            Split::HeldOut => 1,
        };
        Self(Stream::new(seed, Purpose::Data, split).uniform(index, Self::COUNT))
    }

    fn caption(&self) -> Caption {
        Caption {
            digit: pick(&Digit::ALL, self.0[Self::DIGIT]),
            colour: pick(&Colour::ALL, self.0[Self::COLOUR]),
            direction: pick(&Direction::ALL, self.0[Self::DIRECTION]),
        }
    }
}

/// The way of a digit's top left corner, in pixels along [rows, columns].
struct Path {
    start: [f64; 2],
    travel: [f64; 2],
}

impl Path {
    fn new(direction: Direction, draws: &Draws) -> Self {
        let length = TRAVEL[0] + (TRAVEL[1] - TRAVEL[0]) * draws.0[Draws::TRAVEL];
        let travel = direction.step().map(|sign| f64::from(sign) * length);
        let start = [0, 1].map(|axis| {
            // Centred, and displaced by no more than keeps the digit in the frame from first to last.
            let slack = ROOM[axis] - travel[axis].abs();
            let jitter = (slack / 2.0).min(JITTER) * (2.0 * draws.0[Draws::JITTER[axis]] - 1.0);
            (ROOM[axis] - travel[axis]) / 2.0 + jitter
        });
        Self { start, travel }
    }

    fn at(&self, frame: usize, frames: usize) -> [f64; 2] {
        let progress = frame as f64 / (frames - 1) as f64;
        [0, 1].map(|axis| self.start[axis] + self.travel[axis] * progress)
    }
}

/// The item at `u` ∈ [0, 1) of the way through `items`, which are not empty.
fn pick<T: Copy>(items: &[T], u: f64) -> T {
    // The product can round up to the length for a u just below one.
    let index = (u * items.len() as f64) as usize;
    items[index.min(items.len() - 1)]
}

/// Ink [H, W] in [0, 1] of an image whose top left corner is at `[row, column]`, not negative. Each source pixel is
/// shared bilinearly among the four that it covers, so no ink is lost inside the frame.
fn placed(image: &DigitImage, [row, column]: [f64; 2]) -> Vec<f32> {
    let mut ink = vec![0.0; HEIGHT * WIDTH];
    let rows = [1.0 - row.fract() as f32, row.fract() as f32];
    let columns = [1.0 - column.fract() as f32, column.fract() as f32];
    for (i, &source) in image.ink.iter().enumerate() {
        let y = row as usize + i / DIGIT_SIZE;
        let x = column as usize + i % DIGIT_SIZE;
        for (dy, row_share) in rows.into_iter().enumerate() {
            for (dx, column_share) in columns.into_iter().enumerate() {
                if y + dy < HEIGHT && x + dx < WIDTH {
                    ink[(y + dy) * WIDTH + x + dx] += source * row_share * column_share;
                }
            }
        }
    }
    // Four shares of full ink can add up to a little more than one in f32.
    ink.iter_mut().for_each(|ink| *ink = ink.min(1.0));
    ink
}
