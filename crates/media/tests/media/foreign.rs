//! Video that others wrote, through `ffmpeg`: `cargo test -p fewstep-media foreign -- --ignored`.

use std::path::Path;
use std::process::Command;

use fewstep_media::{MediaError, Metadata, VideoOptions, Wanted, mp4_metadata, read_video};

use crate::common::{frames_of, psnr, scene};

const WANTED: Wanted = Wanted { width: 128, height: 64, frames: 9, fps: 16.0 };

fn convert(from: &Path, arguments: &str, to: &Path) {
    let mut command = Command::new("ffmpeg");
    command.args(["-v", "error", "-y", "-i"]).arg(from).args(arguments.split(' ')).arg(to);
    assert!(command.status().unwrap().success(), "{arguments}");
}

#[test]
#[ignore = "needs ffmpeg on the PATH"]
fn videos_of_other_programs_are_read() {
    let (folder, video) = (tempfile::tempdir().unwrap(), scene(128, 64, 9));
    let ours = folder.path().join("ours.mp4");
    video.write_mp4(&ours, &VideoOptions { fps: 16.0, qp: 4 }, &Metadata::new()).unwrap();
    for (arguments, name) in [
        ("-c:v libx264 -bf 3 -crf 8", "b-frames.mp4"),
        ("-c:v libx264 -crf 8 -movflags frag_keyframe+empty_moov", "fragments.mp4"),
        ("-c:v libvpx-vp9 -crf 8 -b:v 0", "a.webm"),
        ("-c:v ffv1", "a.mkv"),
    ] {
        let path = folder.path().join(name);
        convert(&ours, &format!("-map_metadata -1 {arguments}"), &path);
        let back = frames_of(&read_video(&path, &WANTED).unwrap(), WANTED.dims());
        let worst = video.frames().iter().zip(back.frames()).map(|(a, b)| psnr(a, b)).fold(f64::INFINITY, f64::min);
        println!("{name}: {worst:.1} dB");
        assert!(worst > 33.0, "{name}: {worst} dB");
    }
}

#[test]
#[ignore = "needs ffmpeg on the PATH"]
fn frames_out_of_order_are_refused_by_the_built_in_decoder_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let (ours, theirs) = (folder.path().join("ours.mp4"), folder.path().join("theirs.mp4"));
    scene(128, 64, 9).write_mp4(&ours, &VideoOptions::default(), &Metadata::new()).unwrap();
    convert(&ours, "-c:v libx264 -bf 3", &theirs);
    let error = mp4_metadata(&theirs).unwrap_err();
    assert!(matches!(error, MediaError::Unsupported { .. }) && error.to_string().contains("B-frames"), "{error}");
}

#[test]
#[ignore = "needs ffmpeg on the PATH"]
fn what_ffmpeg_refuses_is_an_error_with_its_words() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.mkv");
    std::fs::write(&path, "no video").unwrap();
    let error = read_video(&path, &WANTED).unwrap_err();
    assert!(error.to_string().contains("ffmpeg says"), "{error}");
}

#[test]
#[ignore = "needs ffmpeg on the PATH"]
fn another_decoder_sees_what_was_written() {
    let (folder, video) = (tempfile::tempdir().unwrap(), scene(832, 480, 9));
    let ours = folder.path().join("ours.mp4");
    video.write_mp4(&ours, &VideoOptions::default(), &Metadata::new()).unwrap();
    let raw = folder.path().join("raw.rgb");
    convert(&ours, "-sws_flags accurate_rnd+full_chroma_int -pix_fmt rgb24 -f rawvideo", &raw);
    let raw = std::fs::read(raw).unwrap();
    assert_eq!(raw.len(), 9 * 832 * 480 * 3);
    for (frame, seen) in video.frames().iter().zip(raw.chunks(832 * 480 * 3)) {
        let db = psnr(frame, seen);
        println!("{db:.1} dB");
        assert!(db > 40.0, "{db} dB");
    }
}
