//! MP4: what is written plays, and is read back.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::{frames_of, psnr, scene};
use fewstep_media::{Frames, MediaError, Metadata, Mp4Writer, VideoOptions, Wanted, mp4_metadata, read_video};

fn note() -> Metadata {
    Metadata::new().with("prompt", "Boğaziçi, \"at dusk\"\n海").with("seed", 7).with("settings", "{\"steps\":4}")
}

fn write(folder: &Path, video: &Frames, options: &VideoOptions) -> PathBuf {
    let path = folder.join("a.mp4");
    video.write_mp4(&path, options, &note()).unwrap();
    path
}

fn wanted(width: usize, height: usize, frames: usize, fps: f64) -> Wanted {
    Wanted { width, height, frames, fps }
}

#[test]
fn a_video_comes_back_above_40_decibels_at_the_default_quality() {
    let (folder, video) = (tempfile::tempdir().unwrap(), scene(208, 112, 9));
    let path = write(folder.path(), &video, &VideoOptions::default());
    let wanted = wanted(208, 112, 9, 16.0);
    let back = frames_of(&read_video(&path, &wanted).unwrap(), wanted.dims());
    for (i, (a, b)) in video.frames().iter().zip(back.frames()).enumerate() {
        let db = psnr(a, b);
        println!("frame {i}: {db:.1} dB");
        assert!(db > 40.0, "frame {i}: {db} dB");
    }
}

#[test]
fn a_flat_colour_comes_back_as_itself() {
    for colour in [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255; 3], [0; 3], [200, 120, 30]] {
        let folder = tempfile::tempdir().unwrap();
        let video = Frames::new(32, 32, vec![colour.repeat(32 * 32); 5]).unwrap();
        let path = write(folder.path(), &video, &VideoOptions { fps: 24.0, qp: 1 });
        let wanted = wanted(32, 32, 5, 24.0);
        let back = frames_of(&read_video(&path, &wanted).unwrap(), wanted.dims());
        // Eight bits of limited range have steps of 1.2 in luma and 2.1 in chroma.
        let worst = back.frames()[4].chunks(3).flat_map(|p| p.iter().zip(colour).map(|(&a, b)| a.abs_diff(b))).max();
        assert!(worst <= Some(4), "{colour:?}: off by {worst:?}");
    }
}

#[test]
fn a_lower_quality_is_a_smaller_file() {
    let video = scene(208, 112, 5);
    let size = |qp| video.to_mp4(&VideoOptions { fps: 16.0, qp }, &note()).unwrap().len();
    assert!(size(10) > size(20) && size(20) > size(35));
}

#[test]
fn metadata_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), &scene(32, 32, 1), &VideoOptions::default());
    assert_eq!(mp4_metadata(path).unwrap(), note());
}

#[test]
fn the_header_comes_before_the_frames() {
    let bytes = scene(64, 48, 5).to_mp4(&VideoOptions::default(), &note()).unwrap();
    let place = |name: &[u8]| bytes.windows(4).position(|w| w == name).unwrap();
    assert!(place(b"moov") < place(b"mdat"));
}

#[test]
fn pushing_frames_one_by_one_is_writing_them_at_once() {
    let video = scene(64, 48, 5);
    let mut writer = Mp4Writer::new(64, 48, &VideoOptions::default(), &note()).unwrap();
    video.frames().iter().for_each(|frame| writer.push(frame).unwrap());
    assert_eq!(writer.finish().unwrap(), video.to_mp4(&VideoOptions::default(), &note()).unwrap());
}

#[test]
fn an_odd_side_is_doubled_at_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), &scene(47, 31, 5), &VideoOptions::default());
    let wanted = wanted(48, 32, 5, 16.0);
    let back = frames_of(&read_video(path, &wanted).unwrap(), wanted.dims());
    let video = scene(47, 31, 5);
    let column = |x: usize, row: usize| back.frames()[0][(row * 48 + x) * 3..][..3].to_vec();
    let source = |x: usize, row: usize| video.frames()[0][(row * 47 + x) * 3..][..3].to_vec();
    let column: Vec<u8> = (0..31).flat_map(|row| column(47, row)).collect();
    let source: Vec<u8> = (0..31).flat_map(|row| source(46, row)).collect();
    assert!(psnr(&column, &source) > 30.0);
}

#[test]
fn frames_are_those_shown_at_the_asked_rate() {
    let (folder, video) = (tempfile::tempdir().unwrap(), scene(64, 48, 17));
    let path = write(folder.path(), &video, &VideoOptions { fps: 30.0, qp: 4 });
    // At 10 a second every third frame is seen, at 60 each twice.
    for (fps, step, count) in [(10.0, 3.0, 5), (60.0, 0.5, 33), (30.0, 1.0, 17)] {
        let wanted = wanted(64, 48, count, fps);
        let back = frames_of(&read_video(&path, &wanted).unwrap(), wanted.dims());
        for (i, frame) in back.frames().iter().enumerate() {
            let nearest = (0..17).max_by(|&a, &b| {
                let at = |f: usize| psnr(frame, &video.frames()[f]);
                at(a).total_cmp(&at(b))
            });
            assert_eq!(nearest, Some((i as f64 * step) as usize), "frame {i} at {fps}");
        }
    }
}

#[test]
fn a_short_video_says_how_many_frames_it_could_give() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), &scene(64, 48, 7), &VideoOptions::default());
    let error = read_video(path, &wanted(64, 48, 81, 16.0)).unwrap_err();
    assert!(matches!(error, MediaError::TooShort { got: 7, expected: 81, longest: 5, .. }), "{error}");
}

#[test]
fn what_no_network_takes_is_refused_before_the_file_is_opened() {
    let cases = [
        wanted(60, 48, 5, 16.0),
        wanted(64, 0, 5, 16.0),
        wanted(64, 48, 4, 16.0),
        wanted(64, 48, 0, 16.0),
        wanted(64, 48, 5, 0.0),
        wanted(64, 48, 5, f64::NAN),
        wanted(16_384, 16_384, 81, 16.0),
        wanted(64, 48, usize::MAX - 2, 16.0),
    ];
    for wanted in cases {
        let error = read_video("nowhere.mp4", &wanted).unwrap_err();
        assert!(matches!(error, MediaError::Shape { .. }), "{wanted:?}: {error}");
    }
}

#[test]
fn what_cannot_be_encoded_is_refused() {
    let new = |w, h, fps, qp| Mp4Writer::new(w, h, &VideoOptions { fps, qp }, &note()).map(|_| ());
    for (w, h, fps, qp) in
        [(8, 64, 16.0, 16), (5000, 64, 16.0, 16), (64, 64, 0.0, 16), (64, 64, f64::NAN, 16), (64, 64, 16.0, 52)]
    {
        assert!(matches!(new(w, h, fps, qp), Err(MediaError::Shape { .. })), "{w} {h} {fps} {qp}");
    }
    let mut writer = Mp4Writer::new(32, 32, &VideoOptions::default(), &note()).unwrap();
    assert!(writer.push(&[0; 5]).is_err());
    assert!(writer.finish().is_err(), "a video without frames");
}

#[test]
fn a_text_file_is_no_video_and_a_missing_one_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.mp4");
    fs::write(&path, "not a video at all").unwrap();
    assert!(read_video(&path, &wanted(64, 48, 5, 16.0)).is_err());
    let missing = folder.path().join("b.mp4");
    let error = read_video(&missing, &wanted(64, 48, 5, 16.0)).unwrap_err();
    assert!(matches!(error, MediaError::Read { .. }) && error.to_string().contains("b.mp4"), "{error}");
}

/// Writes a video to look at: `FEWSTEP_MP4=a.mp4 cargo test -p fewstep-media eye -- --ignored`.
#[test]
#[ignore = "writes a video for a person to look at"]
fn a_video_for_the_eye() {
    let path = std::env::var_os("FEWSTEP_MP4").expect("FEWSTEP_MP4 names the video to write");
    let video = scene(832, 480, 33);
    let began = std::time::Instant::now();
    video.write_mp4(&path, &VideoOptions::default(), &note()).unwrap();
    println!("{:.1} frames a second", 33.0 / began.elapsed().as_secs_f64());
}
