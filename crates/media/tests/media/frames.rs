//! Frames, and the files they become.

use std::fs;
use std::io::Cursor;

use base64::Engine;
use fewstep_media::{Frames, MediaError, Metadata, contact_sheet};

fn clip() -> Frames {
    // A bright square that moves over black: few colours, and no two frames alike.
    let frame = |t: usize| -> Vec<u8> {
        let inside = |i: usize| (i % 16).abs_diff(4 + t) < 3 && (i / 16).abs_diff(7) < 4;
        (0..256).flat_map(|i| if inside(i) { [230, 40, (8 * t) as u8] } else { [0; 3] }).collect()
    };
    Frames::new(16, 16, (0..6).map(frame).collect()).unwrap()
}

fn note() -> Metadata {
    Metadata::new().with("prompt", "a red seven moving up").with("seed", 7)
}

/// Two frames of noise with far more than 256 colours each.
fn colourful() -> Frames {
    let scatter = |i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8;
    let frame = |salt: u32| (salt..salt + 64 * 64 * 3).map(scatter);
    Frames::new(64, 64, vec![frame(0).collect(), frame(99).collect()]).unwrap()
}

/// What a PNG holds; the number of plays and the delay of a frame in milliseconds where it is animated.
struct Decoded {
    frames: Frames,
    text: Vec<(String, String)>,
    plays: Option<u32>,
    delay: Option<u16>,
}

fn decode_png(bytes: &[u8]) -> Decoded {
    let mut reader = png::Decoder::new(Cursor::new(bytes)).read_info().unwrap();
    let info = reader.info().clone();
    let count = info.animation_control.map_or(1, |control| control.num_frames);
    let frames = (0..count)
        .map(|_| {
            let mut frame = vec![0; reader.output_buffer_size().unwrap()];
            reader.next_frame(&mut frame).unwrap();
            frame
        })
        .collect();
    let latin = info.uncompressed_latin1_text.iter();
    let mut text: Vec<_> = latin.map(|t| (t.keyword.clone(), t.text.clone())).collect();
    text.extend(info.utf8_text.iter().map(|t| (t.keyword.clone(), t.get_text().unwrap())));
    let delay = info.frame_control.map(|control| {
        assert_eq!(control.delay_den, 1000);
        control.delay_num
    });
    let frames = Frames::new(info.width as usize, info.height as usize, frames).unwrap();
    Decoded { frames, text, plays: info.animation_control.map(|control| control.num_plays), delay }
}

/// Frames, delays in hundredths and repetition of a GIF.
fn decode_gif(bytes: &[u8]) -> (Frames, Vec<u16>, gif::Repeat) {
    let mut options = gif::DecodeOptions::new();
    options.set_color_output(gif::ColorOutput::RGBA);
    let mut decoder = options.read_info(bytes).unwrap();
    let (width, height) = (decoder.width().into(), decoder.height().into());
    let (mut frames, mut delays) = (Vec::new(), Vec::new());
    while let Some(frame) = decoder.read_next_frame().unwrap() {
        delays.push(frame.delay);
        frames.push(frame.buffer.chunks_exact(4).flat_map(|p| p[..3].to_vec()).collect());
    }
    (Frames::new(width, height, frames).unwrap(), delays, decoder.repeat())
}

#[test]
fn pixels_are_clamped_and_rounded_and_transposed() {
    // [C = 3, F = 2, H = 1, W = 1]
    let pixels = [-1.0, 1.0, -3.0, 9.0, 0.0, -0.996];
    let frames = Frames::from_pixels(&pixels, [3, 2, 1, 1]).unwrap();
    assert_eq!(frames.frames(), [vec![0, 0, 128], vec![255, 255, 1]]);
}

#[test]
fn pixels_that_are_not_their_shape_are_refused() {
    for (n, dims) in
        [(6, [3, 1, 1, 1]), (4, [1, 4, 1, 1]), (0, [3, 0, 1, 1]), (0, [3, 1, 0, 1]), (3, [3, usize::MAX, 2, 1])]
    {
        let error = Frames::from_pixels(&vec![0.0; n], dims).unwrap_err();
        assert!(matches!(error, MediaError::Shape { .. }), "{dims:?}: {error}");
    }
}

#[test]
fn pixels_that_are_not_finite_are_counted_not_painted() {
    let error = Frames::from_pixels(&[0.0, f32::NAN, f32::INFINITY], [3, 1, 1, 1]).unwrap_err();
    assert!(matches!(error, MediaError::NonFinite { count: 2, total: 3, first: 1 }));
}

#[test]
fn frames_of_another_size_are_refused() {
    assert!(Frames::new(1, 1, vec![vec![0; 3], vec![0; 4]]).is_err());
    assert!(Frames::new(1, 1, vec![]).is_err());
    assert!(Frames::new(0, 1, vec![vec![]]).is_err());
    assert!(Frames::new(65_536, 1, vec![vec![0; 3 * 65_536]]).is_err());
}

#[test]
fn upscaling_repeats_each_pixel() {
    let frames = Frames::new(2, 1, vec![vec![1, 2, 3, 4, 5, 6]]).unwrap();
    let up = frames.with_frame_ms(50).upscale(2).unwrap();
    let row = [1, 2, 3, 1, 2, 3, 4, 5, 6, 4, 5, 6];
    assert_eq!((up.width(), up.height(), up.frame_ms()), (4, 2, 50));
    assert_eq!(up.frames(), [[row, row].concat()]);
}

#[test]
fn upscaling_by_nothing_or_past_the_formats_is_refused() {
    assert!(clip().upscale(0).is_err());
    assert!(clip().upscale(usize::MAX).is_err());
    assert_eq!(clip().upscale(1).unwrap(), clip());
}

#[test]
fn a_gif_of_few_colours_decodes_to_what_was_written() {
    let video = clip().upscale(4).unwrap();
    let (frames, delays, repeat) = decode_gif(&video.to_gif(&note()).unwrap());
    assert_eq!(frames.frames(), video.frames());
    assert_eq!(delays, [16; 6]);
    assert_eq!(repeat, gif::Repeat::Infinite);
}

#[test]
fn a_gif_of_many_colours_decodes_to_something_near() {
    let video = colourful();
    let (frames, ..) = decode_gif(&video.to_gif(&Metadata::new()).unwrap());
    for (got, wrote) in frames.frames().iter().zip(video.frames()) {
        let errors = got.iter().zip(wrote).map(|(&a, &b)| f64::from(a.abs_diff(b)));
        // 256 cells of the RGB cube have sides of about 40: errors are uniform in ±20, ten in the mean; NeuQuant may do
        // half as well again.
        let mean = errors.sum::<f64>() / wrote.len() as f64;
        assert!(mean < 20.0, "{mean}");
    }
}

#[test]
fn a_gif_carries_its_metadata_as_a_comment() {
    let long = "x".repeat(300);
    let bytes = clip().to_gif(&note().with("settings", &long)).unwrap();
    let start = bytes.windows(2).position(|w| w == [0x21, 0xfe]).unwrap() + 2;
    let (mut comment, mut at) = (Vec::new(), start);
    while bytes[at] != 0 {
        let n = usize::from(bytes[at]);
        comment.extend_from_slice(&bytes[at + 1..=at + n]);
        at += n + 1;
    }
    let expected = format!("prompt: a red seven moving up\nseed: 7\nsettings: {long}");
    assert_eq!(String::from_utf8(comment).unwrap(), expected);
}

#[test]
fn an_animated_png_decodes_to_what_was_written() {
    for video in [clip().with_frame_ms(90), colourful().with_frame_ms(90)] {
        let Decoded { frames, text, plays, delay } = decode_png(&video.to_apng(&note()).unwrap());
        assert_eq!(frames.frames(), video.frames());
        assert_eq!(text, note().entries());
        assert_eq!((plays, delay), (Some(0), Some(90)));
    }
}

#[test]
fn a_single_frame_is_an_ordinary_png() {
    let sheet = contact_sheet(&[clip()]).unwrap();
    let Decoded { frames, plays, .. } = decode_png(&sheet.to_apng(&Metadata::new()).unwrap());
    assert_eq!(frames.frames(), sheet.frames());
    assert_eq!(plays, None);
}

#[test]
fn text_beyond_latin_1_is_carried() {
    let note = Metadata::new().with("author", "Boğaziçi").with("title", "a façade");
    let Decoded { mut text, .. } = decode_png(&clip().to_apng(&note).unwrap());
    text.sort();
    assert_eq!(text, note.entries());
}

#[test]
fn metadata_that_no_image_holds_is_refused() {
    let long = "k".repeat(80);
    for (key, value) in [("", "v"), (&long, "v"), (" k", "v"), ("k  k", "v"), ("clé", "v"), ("k", "\0")] {
        let note = Metadata::new().with(key, value);
        for error in [clip().to_apng(&note).unwrap_err(), clip().to_gif(&note).unwrap_err()] {
            assert!(matches!(error, MediaError::Metadata { .. }), "{key}: {error}");
        }
    }
}

#[test]
fn a_data_address_holds_the_animated_png() {
    let address = clip().to_data_uri_apng().unwrap();
    let encoded = address.strip_prefix("data:image/png;base64,").unwrap();
    let bytes = base64::engine::general_purpose::STANDARD.decode(encoded).unwrap();
    assert_eq!(bytes, clip().to_apng(&Metadata::new()).unwrap());
}

#[test]
fn a_contact_sheet_shows_every_frame_in_its_place() {
    let clips = [clip(), clip().upscale(1).unwrap()];
    let sheet = contact_sheet(&clips).unwrap();
    assert_eq!((sheet.width(), sheet.height()), (2 + 6 * 18, 2 + 2 * 18));
    let frame = &clips[1].frames()[4];
    for y in 0..16 {
        let start = ((20 + y) * sheet.width() + 2 + 4 * 18) * 3;
        let row = &sheet.frames()[0][start..start + 16 * 3];
        assert_eq!(row, &frame[y * 16 * 3..(y + 1) * 16 * 3]);
    }
}

#[test]
fn clips_of_different_extents_do_not_share_a_sheet() {
    assert!(contact_sheet(&[]).is_err());
    let error = contact_sheet(&[clip(), colourful()]).unwrap_err();
    assert!(error.to_string().contains("expected [6, 16, 16] as the first, got [2, 64, 64]"));
}

#[test]
fn files_replace_older_ones_and_leave_nothing_beside() {
    let folder = tempfile::tempdir().unwrap();
    let (gif, png) = (folder.path().join("a.gif"), folder.path().join("a.png"));
    for _ in 0..2 {
        clip().write_gif(&gif, &note()).unwrap();
        clip().write_apng(&png, &note()).unwrap();
    }
    assert_eq!(fs::read(&gif).unwrap(), clip().to_gif(&note()).unwrap());
    assert_eq!(fs::read(&png).unwrap(), clip().to_apng(&note()).unwrap());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[cfg(unix)]
#[test]
fn files_have_the_permissions_of_ordinary_ones() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let (ours, ordinary) = (folder.path().join("a.png"), folder.path().join("b"));
    clip().write_apng(&ours, &note()).unwrap();
    fs::write(&ordinary, "").unwrap();
    let mode = |path| fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode(&ours), mode(&ordinary));
}

#[test]
fn a_folder_of_pngs_holds_each_frame() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("frames");
    let paths = clip().write_png_folder(&folder, &note()).unwrap();
    assert_eq!(paths.len(), 6);
    assert_eq!(paths[5], folder.join("frame_00005.png"));
    for (path, frame) in paths.iter().zip(clip().frames()) {
        let Decoded { frames: read, text, plays, .. } = decode_png(&fs::read(path).unwrap());
        assert_eq!(read.frames(), std::slice::from_ref(frame));
        assert_eq!((text.as_slice(), plays), (note().entries(), None));
    }
    assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
}

#[test]
fn a_folder_that_holds_anything_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("mine"), "kept").unwrap();
    let error = clip().write_png_folder(folder.path(), &note()).unwrap_err();
    assert!(error.to_string().contains("new or empty"), "{error}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_path_that_cannot_be_written_is_named_with_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    // Neither a missing folder nor a file in a folder's place can be written into, whoever tries.
    for path in [folder.path().join("missing/a.gif"), file.join("a.gif")] {
        let errors = [
            clip().write_gif(&path, &note()).unwrap_err(),
            clip().write_apng(&path, &note()).unwrap_err(),
            clip().write_png_folder(&path, &note()).unwrap_err(),
        ];
        for error in errors {
            let message = error.to_string();
            assert!(matches!(error, MediaError::Write { .. }), "{message}");
            assert!(message.contains(path.to_str().unwrap()), "{message}");
            assert!(message.contains("; choose a "), "{message}");
        }
    }
}
