//! What happens to a .blend file or its folder while it is sent and between two requests: a change of its content
//! breaks a transfer off, nothing else does, and the next request finds what is there then.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use crate::harness::{Connection, Farm, Response, SOON, Setup, eventually, holds};

/// More than what the sockets between server and worker hold.
const LEN: u64 = 64 << 20;

/// Starts to fetch the message with a large file. Returns what has arrived, how much has not, and the head.
fn begin(farm: &mut Farm) -> (Connection, Response, Vec<u8>) {
    farm.sparse_blend_file("scene.blend", LEN);
    farm.leave_blend("id-1", "scene.blend");
    let (mut connection, head) = farm.begin_fetch("id-1");
    let received = connection.read_exact(1 << 20);
    (connection, head, received)
}

/// How many bytes more come before the answer ends.
fn rest(connection: &mut Connection, most: u64) -> u64 {
    let mut buffer = vec![0; 1 << 20];
    let mut received = 0;
    while received < most {
        match connection.read(&mut buffer) as u64 {
            0 => break,
            read => received += read,
        }
    }
    received
}

fn run(program: &str, args: &[&str], file: &Path) {
    let status = Command::new(program).args(args).arg(file).status();
    assert!(status.expect(program).success(), "{program}");
}

#[test]
fn a_transfer_goes_on_whatever_becomes_of_the_files_name_links_owner_and_permissions() {
    type Change = fn(&Path);
    let changes: [(&str, Change); 8] = [
        ("hard link", |file| fs::hard_link(file, file.with_extension("backup")).expect("a link")),
        ("chmod", |file| fs::set_permissions(file, fs::Permissions::from_mode(0o640)).expect("chmod")),
        ("chown", |file| run("chown", &["--", &format!("{}", rustix::process::getuid().as_raw())], file)),
        ("rename", |file| fs::rename(file, file.with_extension("old")).expect("renamed")),
        ("unlink", |file| fs::remove_file(file).expect("removed")),
        ("access time", |file| run("touch", &["-a"], file)),
        ("folder renamed", |file| {
            let folder = file.parent().expect("a folder");
            fs::rename(folder, folder.with_extension("old")).expect("renamed");
        }),
        // Blender writes NAME.blend@, renames NAME.blend to NAME.blend1, and renames the new file to NAME.blend.
        ("Blender's save", |file| {
            let new = file.with_extension("blend@");
            fs::write(&new, "BLENDER-v405").expect("the new file");
            fs::rename(file, file.with_extension("blend1")).expect("the backup");
            fs::rename(&new, file).expect("the new file in place");
        }),
    ];
    for (name, change) in changes {
        let mut farm = Farm::start();
        let (mut connection, head, received) = begin(&mut farm);
        change(&farm.setup().blend_root().join("scene.blend"));
        let left = head.content_length() - received.len() as u64;
        assert_eq!(rest(&mut connection, left), left, "{name}: {}", farm.log());
        farm.expect_no_message("id-1");
    }
}

#[test]
fn a_transfer_breaks_off_where_the_file_is_overwritten_or_truncated_and_the_message_stays() {
    type Change = fn(&fs::File);
    let changes: [(&str, Change); 3] = [
        ("written", |file| {
            use std::os::unix::fs::FileExt;
            file.write_all_at(b"changed", LEN - 100).expect("written");
            // not within the tick of the clock in which it was made
            file.set_modified(SystemTime::now() + Duration::from_secs(1)).expect("a time");
        }),
        ("cut", |file| file.set_len(LEN - 100).expect("cut")),
        ("longer", |file| file.set_len(LEN + 1).expect("longer")),
    ];
    for (name, change) in changes {
        let mut farm = Farm::start();
        let (mut connection, head, received) = begin(&mut farm);
        let path = farm.setup().blend_root().join("scene.blend");
        change(&fs::OpenOptions::new().write(true).open(path).expect("the file"));
        let left = head.content_length() - received.len() as u64;
        assert!(rest(&mut connection, left) < left, "{name}: all of it arrived");
        let again = eventually("the message is offered again", SOON, || {
            let answer = farm.ask("HEAD", "id-1", &[]);
            if answer.status == 200 { Ok(answer) } else { Err(answer) }
        });
        assert_ne!(again.header("etag"), head.header("etag"), "{name}");
        eventually(&format!("what was {name} is reported"), SOON, || {
            let log = farm.log();
            if log.contains("has changed while it was sent") { Ok(()) } else { Err(log) }
        });
    }
}

#[test]
fn after_a_save_the_next_request_gets_the_new_file_and_no_part_of_it_behind_a_part_of_the_old() {
    let mut farm = Farm::start();
    let file = farm.blend_file("scene.blend", b"the old content");
    farm.leave_blend("id-1", "scene.blend");
    let old = farm.ask("HEAD", "id-1", &[]).header("etag").expect("an ETag").to_owned();
    fs::rename(&file, file.with_extension("blend1")).expect("the backup");
    farm.blend_file("scene.blend@", b"the new content");
    fs::rename(file.with_extension("blend@"), &file).expect("the new file in place");
    assert_ne!(farm.ask("HEAD", "id-1", &[]).header("etag"), Some(old.as_str()));
    let answer = farm.ask("GET", "id-1", &[("Range", "bytes=100-"), ("If-Range", &old)]);
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(farm.peer.loads(&answer.body).contains("the new content"));
}

#[test]
fn an_etag_is_the_same_after_what_changes_no_content_and_after_a_restart() {
    let mut farm = Farm::start();
    let file = farm.blend_file("scene.blend", b"content");
    farm.leave_blend("id-1", "scene.blend");
    let etag = |farm: &Farm| farm.ask("HEAD", "id-1", &[]).header("etag").expect("an ETag").to_owned();
    let first = etag(&farm);
    fs::hard_link(&file, file.with_extension("backup")).expect("a link");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("chmod");
    assert_eq!(etag(&farm), first);
    farm.kill9();
    farm.server.restart();
    assert_eq!(etag(&farm), first, "after a restart");
}

#[test]
fn an_etag_reveals_neither_device_nor_inode_nor_time() {
    use std::os::unix::fs::MetadataExt;

    let mut farm = Farm::start();
    let file = farm.blend_file("scene.blend", b"content");
    farm.leave_blend("id-1", "scene.blend");
    let etag = farm.ask("HEAD", "id-1", &[]).header("etag").expect("an ETag").to_owned();
    let meta = fs::metadata(&file).expect("the file");
    for number in [meta.dev(), meta.ino(), meta.mtime() as u64, meta.mtime_nsec() as u64] {
        for text in [format!("{number:x}"), number.to_string()] {
            // a number of few digits may be in any hash
            assert!(text.len() < 5 || !etag.contains(&text), "{etag} contains {text}");
        }
    }
    // the same file in another message, and on a server with another key
    let (hash, mut other) = (etag.rsplit('-').next().expect("a hash").to_owned(), Farm::start());
    let inside = other.setup().blend_root().join("scene.blend");
    fs::hard_link(&file, inside).expect("the same file");
    other.leave_blend("id-1", "scene.blend");
    let theirs = other.ask("HEAD", "id-1", &[]).header("etag").expect("an ETag").to_owned();
    assert!(!theirs.ends_with(&hash), "the hash has no key: {theirs} and {etag}");
}

#[test]
fn a_root_that_is_replaced_moved_or_linked_anew_is_the_one_that_is_there_at_each_request() {
    let mut farm = Farm::start();
    let root = farm.setup().blend_root();
    farm.blend_file("scene.blend", b"first");
    farm.leave_blend("first", "scene.blend");
    assert!(farm.fetch_value("first").contains("b'first'"));

    fs::rename(&root, root.with_extension("old")).expect("mv");
    farm.leave_blend("id-1", "scene.blend");
    let answer = farm.fetch("id-1");
    assert!(answer.status == 400 && answer.value.contains("missing") && answer.value.contains("root"), "{answer:?}");

    fs::create_dir(&root).expect("mkdir");
    let answer = farm.fetch("id-1");
    assert!(answer.status == 400 && answer.value.contains("missing"), "{answer:?}");
    farm.blend_file("scene.blend", b"second");
    assert!(farm.fetch_value("id-1").contains("b'second'"));

    fs::remove_dir_all(&root).expect("rm");
    for version in ["v1", "v2"] {
        let folder = farm.setup().path(version);
        fs::create_dir(&folder).expect("mkdir");
        fs::write(folder.join("scene.blend"), version).expect("a file");
        let _ = fs::remove_file(&root);
        symlink(&folder, &root).expect("a link");
        for path in ["scene.blend".to_owned(), root.join("scene.blend").display().to_string()] {
            farm.leave_blend("id-1", &path);
            assert!(farm.fetch_value("id-1").contains(&format!("b'{version}'")), "{path}");
        }
    }
}

#[test]
fn nothing_in_a_root_stays_open_between_requests() {
    let setup = Setup::default();
    let second = setup.path("second");
    fs::create_dir(&second).expect("a second root");
    let roots = [setup.blend_root(), second].map(|root| root.canonicalize().expect("a root"));
    let args = roots.each_ref().map(|root| root.to_str().expect("UTF-8"));
    let mut farm = Farm::of(setup.args(["--blend-root", args[0], "--blend-root", args[1]]));
    farm.blend_file("in/scene.blend", b"content");
    farm.leave_blend("id-1", "in/scene.blend");
    farm.ask("HEAD", "id-1", &[]);
    assert!(farm.fetch_value("id-1").contains("b'content'"));
    farm.leave_blend("id-1", "missing.blend");
    assert_eq!(farm.fetch("id-1").status, 400);
    let descriptors = format!("/proc/{}/fd", farm.pid());
    eventually("nothing in a root is open", SOON, || {
        let open = fs::read_dir(&descriptors).expect("descriptors").filter_map(Result::ok);
        let open: Vec<_> = open.filter_map(|entry| fs::read_link(entry.path()).ok()).collect();
        holds(!open.iter().any(|path| roots.iter().any(|root| path.starts_with(root))), open)
    });
}

#[test]
fn a_lack_of_descriptors_is_answered_503_and_passes() {
    use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

    let mut farm = Farm::start();
    farm.blend_file("scene.blend", b"content");
    let elsewhere = farm.setup().path("scene.blend");
    symlink(farm.setup().blend_root().join("scene.blend"), &elsewhere).expect("a link");
    for (uuid, path) in [("inside", "scene.blend"), ("elsewhere", elsewhere.to_str().expect("UTF-8"))] {
        farm.leave_blend(uuid, path);
        let mut connection = Connection::open(farm.http);
        let path = format!("/?bufferUUID={uuid}");
        assert_eq!(connection.request("GET", &path, &[("Range", "bytes=0-9")], b"").status, 206);
        let pid = Pid::from_raw(farm.pid() as i32);
        let few = Rlimit { current: Some(3), maximum: getrlimit(Resource::Nofile).maximum };
        let before = prlimit(pid, Resource::Nofile, few).expect("a lower limit");
        let answer = connection.request("GET", &path, &[], b"");
        prlimit(pid, Resource::Nofile, before).expect("the limit as it was");
        assert!(answer.status == 503 && answer.header("retry-after").is_some(), "{uuid}: {answer:?}");
        assert!(farm.peer.loads(&answer.body).contains("too many files are open"), "{uuid}");
        assert_eq!(connection.request("GET", &path, &[], b"").status, 200, "{uuid}");
    }
}
