//! `cargo run --release -- demo`, with the real Blender.

use std::fs;

use crate::harness::{Program, gateway};

#[test]
fn the_frame_is_rendered_by_blender() {
    let folder = tempfile::tempdir().expect("a folder");
    let ended = Program::start(gateway(&["demo"]).current_dir(folder.path())).end();
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
    assert!(!ended.stdout.contains("built-in"), "{ended:?}");
    let frame = fs::read(folder.path().join("demo-frame.png")).expect("the frame");
    // signature, and 320 by 240 points in the header
    assert!(frame.starts_with(b"\x89PNG\r\n\x1a\n"), "{ended:?}");
    assert_eq!(frame[16..24], [0, 0, 1, 64, 0, 0, 0, 240], "{ended:?}");
    assert_ne!(frame, include_bytes!("../../../src/cli/demo/picture.png"));
}
