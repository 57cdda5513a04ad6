//! Images of each kind, and how they are fitted.

use std::fs;
use std::io::Cursor;

use crate::common::{psnr, scene};
use fewstep_media::{Frames, Image, MediaError, Metadata, fit, image_pixels, read_image};

fn read(bytes: &[u8]) -> Result<Image, MediaError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    fs::write(&path, bytes).unwrap();
    read_image(path)
}

fn image(width: usize, height: usize) -> Image {
    Image::new(width, height, scene(width, height, 1).frames()[0].clone()).unwrap()
}

fn jpeg(image: &Image) -> Vec<u8> {
    let mut bytes = Vec::new();
    let encoder = jpeg_encoder::Encoder::new(&mut bytes, 100);
    encoder.encode(image.rgb(), image.width() as u16, image.height() as u16, jpeg_encoder::ColorType::Rgb).unwrap();
    bytes
}

fn webp(image: &Image) -> Vec<u8> {
    let mut bytes = Vec::new();
    let (w, h) = (image.width() as u32, image.height() as u32);
    image_webp::WebPEncoder::new(&mut bytes).encode(image.rgb(), w, h, image_webp::ColorType::Rgb8).unwrap();
    bytes
}

fn png(color: png::ColorType, depth: png::BitDepth, [w, h]: [u32; 2], data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(Cursor::new(&mut bytes), w, h);
    encoder.set_color(color);
    encoder.set_depth(depth);
    encoder.write_header().unwrap().write_image_data(data).unwrap();
    bytes
}

#[test]
fn png_and_webp_are_read_exactly() {
    let image = image(37, 23);
    let frames = Frames::new(37, 23, vec![image.rgb().to_vec()]).unwrap();
    assert_eq!(read(&frames.to_apng(&Metadata::new()).unwrap()).unwrap(), image);
    assert_eq!(read(&webp(&image)).unwrap(), image);
}

#[test]
fn the_first_frame_of_a_gif_and_of_an_animated_png_is_read() {
    let frames = Frames::new(2, 2, vec![vec![9; 12], vec![200; 12]]).unwrap();
    for bytes in [frames.to_gif(&Metadata::new()).unwrap(), frames.to_apng(&Metadata::new()).unwrap()] {
        assert_eq!(read(&bytes).unwrap().rgb(), [9; 12]);
    }
}

#[test]
fn jpeg_is_read_closely() {
    let image = image(64, 48);
    assert!(psnr(read(&jpeg(&image)).unwrap().rgb(), image.rgb()) > 35.0);
}

#[test]
fn the_orientation_of_a_jpeg_is_applied() {
    let image = image(64, 48);
    let mut bytes = jpeg(&image);
    // Big-endian TIFF with one entry: orientation 6, a quarter turn to the right.
    let exif = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
    let segment = [&[0xff, 0xe1][..], &(exif.len() as u16 + 2).to_be_bytes(), exif].concat();
    bytes.splice(2..2, segment);
    let turned = read(&bytes).unwrap();
    assert_eq!([turned.width(), turned.height()], [48, 64]);
    let corner = &turned.rgb()[47 * 3..48 * 3];
    assert!(corner.iter().zip(image.rgb()).all(|(a, b)| a.abs_diff(*b) < 12), "{corner:?}");
}

#[test]
fn grey_deep_and_transparent_pngs_become_rgb() {
    use png::{BitDepth, ColorType};
    let cases: [(Vec<u8>, [u8; 3]); 4] = [
        (png(ColorType::Grayscale, BitDepth::Eight, [1, 1], &[77]), [77; 3]),
        (png(ColorType::Rgb, BitDepth::Sixteen, [1, 1], &[10, 0, 20, 0, 30, 0]), [10, 20, 30]),
        (png(ColorType::Rgba, BitDepth::Eight, [1, 1], &[200, 100, 50, 128]), [100, 50, 25]),
        (png(ColorType::GrayscaleAlpha, BitDepth::Eight, [1, 1], &[200, 0]), [0; 3]),
    ];
    for (bytes, rgb) in cases {
        assert_eq!(read(&bytes).unwrap().rgb(), rgb);
    }
}

#[test]
fn absurd_sides_are_refused_by_their_header() {
    let grey = |w, h| png(png::ColorType::Grayscale, png::BitDepth::Eight, [w, h], &[0]);
    // The encoder refuses to write a short image, so the sides of a good one are replaced, checksum and all.
    let mut bytes = grey(1, 1);
    bytes[16..24].copy_from_slice(&[0, 1, 0x86, 0xa0, 0, 1, 0x86, 0xa0]);
    let sum = crc(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&sum.to_be_bytes());
    let error = read(&bytes).unwrap_err();
    assert!(matches!(error, MediaError::TooLarge { got: 100_000, .. }), "{error}");

    let mut bytes = jpeg(&image(16, 16));
    let at = bytes.windows(2).position(|w| w == [0xff, 0xc0]).unwrap();
    bytes[at + 5..at + 9].copy_from_slice(&[0xff; 4]);
    assert!(read(&bytes).is_err());
    let mut bytes = Frames::new(2, 2, vec![vec![9; 12]]).unwrap().to_gif(&Metadata::new()).unwrap();
    bytes[6..10].copy_from_slice(&[0xff; 4]);
    assert!(read(&bytes).is_err());
}

/// CRC-32 of PNG chunks (PNG 3rd edition, annex D).
fn crc(bytes: &[u8]) -> u32 {
    let bit = |c: u32| if c & 1 == 1 { 0xedb8_8320 ^ (c >> 1) } else { c >> 1 };
    !bytes.iter().fold(u32::MAX, |c, &byte| (0..8).fold(c ^ u32::from(byte), |c, _| bit(c)))
}

#[test]
fn another_kind_is_refused_with_a_remedy() {
    let error = read(b"BM....").unwrap_err();
    assert!(matches!(error, MediaError::Unsupported { .. }) && error.to_string().contains("convert"), "{error}");
}

#[test]
fn fitting_cuts_the_middle_out_of_what_is_wider() {
    // Three bands; a square keeps the middle one alone.
    let row: Vec<u8> = [[255, 0, 0], [0, 255, 0], [0, 0, 255]].iter().flat_map(|c| c.repeat(32)).collect();
    let bands = Image::new(96, 32, row.repeat(32)).unwrap();
    let square = fit(&bands, 16, 16).unwrap();
    let middle = &square.rgb()[(8 * 16 + 8) * 3..][..3];
    assert_eq!(middle, [0, 255, 0]);
    assert!(square.rgb().chunks(3).all(|p| p[1] > 128), "only the middle band is seen");
}

#[test]
fn shrinking_does_not_alias() {
    // A chequerboard of single pixels is grey from afar.
    let board: Vec<u8> =
        (0..128 * 128).flat_map(|i| [if (i % 128 + i / 128_usize).is_multiple_of(2) { 255 } else { 0 }; 3]).collect();
    let small = fit(&Image::new(128, 128, board).unwrap(), 16, 16).unwrap();
    assert!(small.rgb().iter().all(|&v| v.abs_diff(127) < 12));
}

#[test]
fn an_image_is_a_video_of_one_frame() {
    let pixels = image_pixels(&Image::new(16, 16, [0, 255, 51].repeat(256)).unwrap(), 16, 16).unwrap();
    assert_eq!(pixels.len(), 3 * 256);
    assert_eq!([pixels[0], pixels[256], pixels[512]], [-1.0, 1.0, 51.0 / 127.5 - 1.0]);
}
