//! The errors for a path that names no file: what is wrong, and what would be right.

use std::fs;

use crate::harness::{Farm, Setup};

#[track_caller]
fn refusal(farm: &mut Farm, path: &str) -> String {
    farm.leave_blend("refused", path);
    let answer = farm.fetch("refused");
    assert_eq!(answer.status, 400, "{path}: {answer:?}");
    answer.value
}

#[test]
fn paths_of_other_systems_and_programs_are_named_with_what_would_be_right() {
    let mut farm = Farm::start();
    for (path, words) in [
        (r"C:\farm\scene.blend", ["missing", "Windows path"]),
        ("C:/farm/scene.blend", ["missing", "Windows path"]),
        (r"\\NAS\farm\scene.blend", ["missing", "Windows share"]),
        ("//NAS/farm/scene.blend", ["outside", "Windows share"]),
        ("//scene.blend", ["outside", "open in Blender"]),
        ("//../scene.blend", ["outside", "open in Blender"]),
        ("file:///srv/scene.blend", ["missing", "URL"]),
        ("smb://nas/scene.blend", ["missing", "URL"]),
        ("~/scene.blend", ["missing", "home folder"]),
        ("$BLENDS/scene.blend", ["missing", "environment variables"]),
        (r"scenes\scene.blend", ["missing", "backslashes"]),
        (" scene.blend", ["missing", "white space"]),
    ] {
        let refusal = refusal(&mut farm, path);
        for word in words.into_iter().chain(["relative to the first blend root"]) {
            assert!(refusal.contains(word), "{path}: no {word:?} in {refusal}");
        }
    }
}

#[test]
fn a_file_whose_name_only_looks_like_a_path_of_another_system_is_delivered() {
    let mut farm = Farm::start();
    for name in [r"C:\scene.blend", "C:/scene.blend", "~/scene.blend", "$A.blend", r"a\b.blend", " a.blend"] {
        farm.blend_file(name, b"content");
        farm.leave_blend("id-1", name);
        assert!(farm.fetch_value("id-1").contains("b'content'"), "{name}");
    }
}

#[test]
fn a_path_that_no_file_can_have_has_an_error_of_its_own() {
    let mut farm = Farm::start();
    let refused = refusal(&mut farm, "scene\0.blend");
    assert!(refused.contains("missing") && refused.contains("NUL"), "{refused}");
    let refused = refusal(&mut farm, "");
    assert!(refused.contains("BINARY_BLEND_FILE") && refused.contains("empty"), "{refused}");
    let refused = refusal(&mut farm, &"x".repeat(300));
    assert!(refused.contains("missing") && refused.contains("255 bytes"), "{refused}");
    let refused = refusal(&mut farm, &"x/".repeat(2040));
    assert!(refused.contains("missing") && refused.len() < 1_000, "{refused}");
}

#[test]
fn the_error_names_a_file_whose_name_has_another_unicode_form() {
    let mut farm = Farm::start();
    let (composed, decomposed) = ("caf\u{e9}.blend", "cafe\u{301}.blend");
    farm.blend_file(&format!("nfc/{composed}"), b"content");
    farm.blend_file(&format!("nfd/{decomposed}"), b"content");
    farm.blend_file("folder-e\u{301}/scene.blend", b"content");
    for (path, form) in [
        (format!("nfc/{decomposed}"), "NFC"),
        (format!("nfd/{composed}"), "NFD"),
        ("folder-\u{e9}/scene.blend".to_owned(), "NFD"),
    ] {
        let refused = refusal(&mut farm, &path);
        assert!(refused.contains("missing") && refused.contains("Unicode") && refused.contains(form), "{refused}");
    }
    let refused = refusal(&mut farm, &format!("none/{composed}"));
    assert!(refused.contains("missing") && !refused.contains("Unicode"), "{refused}");
}

#[test]
fn a_file_that_may_not_be_read_is_unreadable_and_says_why() {
    use std::os::unix::fs::PermissionsExt;

    let setup = Setup::default();
    // root reads everything, unless it gives that up
    let is_root = rustix::process::geteuid().is_root();
    let as_others = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"];
    let mut farm = Farm::of(if is_root { setup.wrapper(&as_others) } else { setup });
    for path in ["scene.blend", "closed/scene.blend"] {
        let file = farm.blend_file(path, b"content");
        let closed = if path.contains('/') { file.parent().expect("a folder").to_owned() } else { file };
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).expect("chmod");
        let refused = refusal(&mut farm, path);
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o755)).expect("chmod");
        assert!(refused.contains("unreadable") && refused.contains("permission denied"), "{refused}");
        assert!(!refused.contains(farm.setup().path("").to_str().expect("UTF-8")), "{refused}");
        assert_eq!(farm.fetch("refused").status, 200, "{path}, once it may be read");
    }
}
