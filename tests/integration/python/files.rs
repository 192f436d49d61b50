//! Messages that name a .blend file: its content replaces the path, and some files are never opened.

use std::os::unix::fs::symlink;
use std::process::Command;
use std::time::Instant;

use crate::harness::{Connection, Farm, SOON, Setup};

/// Checks that the message's file is refused with a reason that contains `reason`, and that the message stays.
#[track_caller]
fn assert_refused(farm: &mut Farm, path: &str, reason: &str) {
    farm.leave_blend("refused", path);
    for _ in 0..2 {
        let start = Instant::now();
        let answer = farm.fetch("refused");
        assert!(start.elapsed() < SOON, "{path}: took {:?}", start.elapsed());
        assert_eq!(answer.status, 400, "{path}: {answer:?}");
        assert_eq!(answer.headers["content-type"], "application/octet-stream", "{path}");
        assert!(answer.value.starts_with("{'message': "), "{path}: {answer:?}");
        assert!(answer.value.contains(reason), "{path}: no {reason:?} in {answer:?}");
        let others = answer.value.replace(path, "");
        for secret in [farm.setup().blend_root(), farm.setup().path("")] {
            assert!(!others.contains(secret.to_str().expect("UTF-8")), "{path}: reveals a path: {answer:?}");
        }
        assert_eq!(farm.ask("HEAD", "refused", &[]).status, 400, "{path}");
    }
}

#[test]
fn a_blend_files_content_replaces_its_path_and_all_other_keys_stay() {
    let mut farm = Farm::start();
    farm.blend_file("scene.blend", b"BLENDER-v304\0\xff\x80.");
    farm.leave(
        "id-1",
        "{'TYPE': 'RENDER', 'DATA': {'FRAMES': [1, 2], 'BINARY_BLEND_FILE': 'scene.blend', 'AFTER': {'a': None},
          'META_DATA': 'EXTRACT_BLEND_FILE_FROM_PATH', 'LAST': 1.5}, 'MORE': ['scene.blend']}",
    );
    assert_eq!(
        farm.fetch_value("id-1"),
        "{'TYPE': 'RENDER', 'DATA': {'FRAMES': [1, 2], 'BINARY_BLEND_FILE': b'BLENDER-v304\\x00\\xff\\x80.', \
         'AFTER': {'a': None}, 'META_DATA': 'EXTRACT_BLEND_FILE_FROM_PATH', 'LAST': 1.5}, 'MORE': ['scene.blend']}"
    );
    farm.expect_no_message("id-1");
}

#[test]
fn a_blend_message_that_came_as_a_pickle_of_any_protocol_is_delivered_with_the_file() {
    let mut farm = Farm::start();
    farm.blend_file("scene.blend", b"content");
    let message = |file: &str| {
        format!(
            "{{'DATA': {{'FIRST': ('scene.blend', {{1, 2}}), 'BINARY_BLEND_FILE': {file}, \
             'META_DATA': 'EXTRACT_BLEND_FILE_FROM_PATH', 'LAST': b'scene.blend'}}, 'AGAIN': 'scene.blend'}}"
        )
    };
    let expected = farm.peer.show(&message("b'content'"));
    for protocol in 0..=5 {
        farm.leave_pickle("id-1", &message("'scene.blend'"), protocol);
        assert_eq!(farm.fetch_value("id-1"), expected, "protocol {protocol}");
    }
}

#[test]
fn blend_files_of_every_size_class_arrive() {
    let mut farm = Farm::start();
    for len in [0, 1, 255, 256, 65_535, 65_536, 1_048_575, 1_048_577, 5_000_000] {
        let content: Vec<u8> = (0..len).map(|at| (at % 253) as u8).collect();
        farm.blend_file("scene.blend", &content);
        farm.leave_blend("id-1", "scene.blend");
        let expected = format!(
            "{{'DATA': {{'META_DATA': 'EXTRACT_BLEND_FILE_FROM_PATH', \
             'BINARY_BLEND_FILE': bytes(at % 253 for at in range({len}))}}}}"
        );
        let expected = farm.peer.show(&expected);
        assert!(farm.fetch_value("id-1") == expected, "{len} bytes");
    }
}

#[test]
fn a_relative_path_is_relative_to_the_first_root() {
    let setup = Setup::default();
    let (first, second) = (setup.blend_root(), setup.path("second"));
    std::fs::create_dir(&second).expect("a second root");
    let roots = [first.to_str().expect("UTF-8"), second.to_str().expect("UTF-8")];
    let mut farm = Farm::of(setup.args(["--blend-root", roots[0], "--blend-root", roots[1]]));
    farm.blend_file("in/scene.blend", b"first");
    std::fs::write(second.join("other.blend"), b"second").expect("a file in the second root");
    for path in ["in/scene.blend", "./in/scene.blend", "in/../in/scene.blend"] {
        farm.leave_blend("id-1", path);
        assert!(farm.fetch_value("id-1").ends_with("'BINARY_BLEND_FILE': b'first'}}"), "{path}");
    }
    assert_refused(&mut farm, "other.blend", "missing");
}

#[test]
fn an_absolute_path_inside_any_root_is_delivered() {
    let setup = Setup::default();
    let (first, second) = (setup.blend_root(), setup.path("second"));
    std::fs::create_dir(&second).expect("a second root");
    let roots = [first.to_str().expect("UTF-8"), second.to_str().expect("UTF-8")];
    let mut farm = Farm::of(setup.args(["--blend-root", roots[0], "--blend-root", roots[1]]));
    for (root, content) in [(&first, "first"), (&second, "second")] {
        let path = root.join("scene.blend");
        std::fs::write(&path, content).expect("a .blend file");
        farm.leave_blend("id-1", path.to_str().expect("UTF-8"));
        assert!(farm.fetch_value("id-1").ends_with(&format!("'BINARY_BLEND_FILE': b'{content}'}}}}")));
    }
}

#[test]
fn a_missing_file_is_an_error_and_the_message_stays_until_it_is_there() {
    let mut farm = Farm::start();
    assert_refused(&mut farm, "scene.blend", "missing");
    farm.blend_file("scene.blend", b"late");
    assert!(farm.fetch_value("refused").contains("b'late'"));
    assert_refused(&mut farm, "no/such/folder/scene.blend", "missing");
}

#[test]
fn a_file_outside_the_permitted_folders_is_an_error_and_never_opened() {
    let mut farm = Farm::start();
    let outside = farm.setup().path("secret.blend");
    std::fs::write(&outside, "secret").expect("a file outside");
    let sibling = farm.setup().path("blend-more");
    std::fs::create_dir(&sibling).expect("a folder whose name starts as the root's");
    std::fs::write(sibling.join("scene.blend"), "secret").expect("a file outside");
    farm.blend_file("in/scene.blend", b"inside");
    let root = farm.setup().blend_root();
    for path in [
        "../secret.blend".to_owned(),
        "in/../../secret.blend".to_owned(),
        "../blend-more/scene.blend".to_owned(),
        outside.display().to_string(),
        sibling.join("scene.blend").display().to_string(),
        format!("{}/../secret.blend", root.display()),
        "/etc/passwd".to_owned(),
        "/dev/zero".to_owned(),
        "/proc/self/environ".to_owned(),
    ] {
        assert_refused(&mut farm, &path, "outside");
    }
}

#[test]
fn a_symbolic_link_out_of_the_root_is_not_followed() {
    let mut farm = Farm::start();
    let outside = farm.setup().path("secret.blend");
    std::fs::write(&outside, "secret").expect("a file outside");
    let root = farm.setup().blend_root();
    symlink(&outside, root.join("link.blend")).expect("a link");
    symlink("../secret.blend", root.join("relative.blend")).expect("a link");
    symlink("/etc", root.join("folder")).expect("a link");
    symlink("/proc/self", root.join("process")).expect("a link");
    for path in ["link.blend", "relative.blend", "folder/passwd", "process/environ", "process/cwd/secret.blend"] {
        assert_refused(&mut farm, path, "outside");
        let absolute = root.join(path).display().to_string();
        assert_refused(&mut farm, &absolute, "outside");
    }
}

#[test]
fn what_is_no_regular_file_is_refused_at_once() {
    let mut farm = Farm::start();
    let root = farm.setup().blend_root();
    std::fs::create_dir(root.join("folder.blend")).expect("a folder");
    let made = Command::new("mkfifo").arg(root.join("pipe.blend")).status();
    assert!(made.expect("mkfifo").success());
    let socket = std::os::unix::net::UnixListener::bind(root.join("socket.blend")).expect("a socket");
    for path in ["folder.blend", "pipe.blend", "socket.blend", ".", ""] {
        assert_refused(&mut farm, path, "");
    }
    drop(socket);
}

#[test]
fn an_unreadable_file_is_an_error() {
    let mut farm = Farm::start();
    symlink("loop.blend", farm.setup().blend_root().join("loop.blend")).expect("a link");
    let too_long = "x".repeat(300);
    for path in ["loop.blend", too_long.as_str(), "nul\0.blend"] {
        assert_refused(&mut farm, path, "");
    }
}

#[test]
fn a_message_that_names_no_file_is_an_error_and_stays() {
    let mut farm = Farm::start();
    for file in
        ["", ", 'BINARY_BLEND_FILE': None", ", 'BINARY_BLEND_FILE': 7", ", 'BINARY_BLEND_FILE': ['scene.blend']"]
    {
        farm.leave("id-1", &format!("{{'DATA': {{'META_DATA': 'EXTRACT_BLEND_FILE_FROM_PATH'{file}}}}}"));
        for _ in 0..2 {
            let answer = farm.fetch("id-1");
            assert_eq!(answer.status, 400, "{file}: {answer:?}");
            assert!(answer.value.contains("BINARY_BLEND_FILE"), "{file}: {answer:?}");
        }
    }
}

#[test]
fn a_file_of_5_gib_still_unpickles_and_is_sent_in_bounded_memory() {
    const LEN: u64 = 5 << 30;
    const GROWTH_KIB: u64 = 256 << 10;
    let mut farm = Farm::start();
    let path = farm.sparse_blend_file("large.blend", LEN);
    {
        use std::os::unix::fs::FileExt;
        let file = std::fs::OpenOptions::new().write(true).open(path).expect("the file");
        file.write_all_at(b"HEAD", 0).and_then(|()| file.write_all_at(b"TAIL", LEN - 4)).expect("its two ends");
    }
    farm.leave(
        "id-1",
        "{'DATA': {'META_DATA': 'EXTRACT_BLEND_FILE_FROM_PATH', 'BINARY_BLEND_FILE': 'large.blend', 'Z': 1}}",
    );
    let before = farm.rss_kib();
    let mut connection = Connection::open(farm.http);
    connection.send_head("GET", "/?bufferUUID=id-1", &[]);
    let head = connection.read_head();
    assert_eq!(head.status, 200, "{head:?}");

    let opcode = [&[0x8e], LEN.to_le_bytes().as_slice()].concat();
    let mut prefix = Vec::new();
    while !prefix.ends_with(&opcode) {
        assert!(prefix.len() < 1000, "no BINBYTES8 with the file's length in {}", prefix.escape_ascii());
        prefix.extend(connection.read_exact(1));
    }
    assert_eq!(connection.read_exact(4), b"HEAD");
    let mut buffer = vec![0; 1 << 20];
    let mut left = LEN - 8;
    while left > 0 {
        let len = buffer.len().min(left as usize);
        let read = connection.read(&mut buffer[..len]);
        assert!(read > 0, "the answer ended {left} bytes early");
        assert!(buffer[..read].iter().all(|&byte| byte == 0), "a byte that is not the file's");
        left -= read as u64;
    }
    assert_eq!(connection.read_exact(4), b"TAIL");
    let suffix = connection.read_exact((head.content_length() - LEN) as usize - prefix.len());

    let grown = farm.peak_rss_kib().saturating_sub(before);
    assert!(grown < GROWTH_KIB, "the server grew by {grown} KiB");
    // The same pickle around a byte string that fits into memory.
    let short = [&prefix[..prefix.len() - opcode.len()], b"C\x02ok", &suffix].concat();
    assert_eq!(
        farm.peer.loads(&short),
        "{'DATA': {'META_DATA': 'EXTRACT_BLEND_FILE_FROM_PATH', 'BINARY_BLEND_FILE': b'ok', 'Z': 1}}"
    );
}
