//! What a file may ask for. Each limit is checked before the memory is allocated.

/// Largest width or height of an image or of a frame, in pixels.
pub const SIDE: usize = 16_384;
/// Most pixels of an image or of a frame: 192 MiB in RGB.
pub const PIXELS: usize = 1 << 26;
/// Largest image file, in bytes.
pub const IMAGE_FILE: u64 = 1 << 28;
/// Most samples (encoded frames) of a video that is decoded here: five hours at 60 a second.
pub const SAMPLES: usize = 1 << 20;
/// Largest encoded frame of a video, in bytes.
pub const SAMPLE: u64 = 1 << 26;
/// Largest header (`moov`) of a video that is decoded here, in bytes.
pub const VIDEO_HEADER: u64 = 1 << 27;
/// Most values of a video as the network takes it, 3·F·H·W: 4 GiB in f32.
pub const VALUES: usize = 1 << 30;
