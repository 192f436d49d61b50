//! Where a backup is written, and what it leaves when it fails.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use bytes::Bytes;
use user_http_actors::backup::{BackupError, Options, back_up};
use user_http_actors::payload::Payload;
use user_http_actors::store::log::LogStore;
use user_http_actors::store::{Change, Durable, Put, Store};

use crate::backup::history::{meta, numbers, pattern};
use crate::backup::{back_up_all, folder, opened};
use crate::support::in_file::{in_file, is_in_file};

/// A data directory with a message in the log and one in a file.
fn data_dir(folder: &Path) -> PathBuf {
    let data_dir = folder.join("data");
    let (mut store, _) = LogStore::open(&data_dir.join("buffer")).expect("a new store");
    let bodies = [
        Payload::from_parts(vec![Bytes::from(pattern(1, 100))]),
        in_file(store.bodies(), &pattern(2, 900)).expect("space"),
    ];
    let puts = (1..).zip(bodies).map(|(seq, body)| Change::Put(Put { seq, meta: meta(seq).into(), body }));
    store.commit(&puts.collect::<Vec<_>>(), Durable::Now).expect("space");
    fs::write(data_dir.join("etag.key"), [7; 32]).expect("writable");
    fs::write(data_dir.join("RUNNING"), "").expect("writable");
    data_dir
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    let mut names: Vec<_> =
        entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8")).collect();
    names.sort();
    names
}

#[test]
fn a_backup_has_what_a_server_needs_and_is_as_private_as_the_original() {
    let folder = folder();
    let data_dir = data_dir(folder.path());
    let target = folder.path().join("backup");
    let made = back_up_all(&data_dir, &target).expect("a backup");
    assert_eq!((made.folder.as_path(), made.buffer.records, made.outbox.records), (target.as_path(), 2, 0));
    assert_eq!(names(folder.path()), ["backup", "data"]);
    // no lock, no reserve, and no mark of a running server
    assert_eq!(names(&target), ["buffer", "etag.key"]);
    assert_eq!(names(&target.join("buffer")), ["0000000000000001.log", "bodies"]);
    assert_eq!(fs::read(target.join("etag.key")).expect("the key"), [7; 32]);
    let mode = |path: &str| fs::metadata(target.join(path)).expect(path).permissions().mode() & 0o777;
    assert_eq!(["", "buffer", "buffer/bodies"].map(mode), [0o700; 3]);
    assert_eq!(["etag.key", "buffer/0000000000000001.log"].map(mode), [0o600; 2]);
    let (_store, found) = opened(&target);
    assert_eq!(numbers(&found), [1, 2].into());
    assert_eq!([0, 1].map(|at| is_in_file(&found[at].body)), [false, true]);
}

#[test]
fn what_is_no_data_directory_is_refused() {
    let folder = folder();
    let target = folder.path().join("backup");
    let missing = back_up_all(&folder.path().join("data"), &target).expect_err("it does not exist");
    assert!(
        matches!(missing, BackupError::NoDataDirectory(_)) && missing.to_string().contains("--data-dir"),
        "{missing}"
    );
    let other = folder.path().join("other");
    fs::create_dir(&other).expect("writable");
    let refused = back_up_all(&other, &target).expect_err("it may be a disk that is not mounted");
    assert!(matches!(refused, BackupError::NotADataDirectory(_)), "{refused}");
    fs::write(other.join("file"), "").expect("writable");
    let refused = back_up_all(&other, &target).expect_err("it belongs to something else");
    assert!(matches!(refused, BackupError::NotADataDirectory(_)), "{refused}");
    let file = back_up_all(&other.join("file"), &target).expect_err("it is no folder");
    assert!(matches!(file, BackupError::Io { .. }), "{file}");
    assert_eq!(names(folder.path()), ["other"]);
}

#[test]
fn a_target_that_is_in_use_or_part_of_the_data_directory_is_refused() {
    let folder = folder();
    let data_dir = data_dir(folder.path());
    let path = |name: &str| folder.path().join(name);
    fs::create_dir(path("full")).and_then(|()| fs::write(path("full/file"), "mine")).expect("writable");
    symlink(path("nowhere"), path("dangling")).expect("a link");
    symlink(&data_dir, path("link")).expect("a link");
    let before = names(folder.path());
    for target in [
        "full",
        "full/file",
        "dangling",
        "data",
        "data/backup",
        "data/buffer/bodies/backup",
        "link/backup",
        "full/../data/x",
    ] {
        let refused = back_up_all(&data_dir, &path(target)).expect_err(target);
        assert!(refused.is_about_target(), "{target}: {refused:?}");
    }
    let nowhere = back_up_all(&data_dir, &path("missing/backup")).expect_err("there is no such folder");
    assert!(matches!(nowhere, BackupError::Io { .. }) && nowhere.to_string().contains("missing"), "{nowhere}");
    assert_eq!(names(folder.path()), before);
    assert_eq!(names(&data_dir), ["RUNNING", "buffer", "etag.key"]);
}

#[test]
fn a_target_in_a_store_that_is_a_link_to_elsewhere_is_refused() {
    let folder = folder();
    let data_dir = data_dir(folder.path());
    let path = |name: &str| folder.path().join(name);
    fs::create_dir(path("disk"))
        .and_then(|()| fs::rename(data_dir.join("buffer"), path("disk/buffer")))
        .expect("moved");
    fs::rename(path("disk/buffer/bodies"), path("disk/bodies")).expect("moved");
    symlink(path("disk/buffer"), data_dir.join("buffer")).expect("a link");
    symlink(path("disk/bodies"), path("disk/buffer/bodies")).expect("a link");
    for target in
        ["disk/buffer/backup", "disk/bodies/backup", "data/buffer/bodies/backup", "disk/../disk/bodies/backup"]
    {
        let refused = back_up_all(&data_dir, &path(target)).expect_err(target);
        assert!(matches!(refused, BackupError::Inside { .. }), "{target}: {refused:?}");
    }
    back_up_all(&data_dir, &path("disk/backup")).expect("beside them");
    assert_eq!(numbers(&opened(&path("disk/backup")).1), [1, 2].into());
}

#[test]
fn a_damaged_key_is_no_part_of_a_backup() {
    let folder = folder();
    let data_dir = data_dir(folder.path());
    fs::write(data_dir.join("etag.key"), "damaged").expect("writable");
    let refused = back_up_all(&data_dir, &folder.path().join("backup")).expect_err("damaged").to_string();
    assert!(refused.contains("data/etag.key") && refused.contains("delete it"), "{refused}");
    assert_eq!(names(folder.path()), ["data"]);
    fs::remove_file(data_dir.join("etag.key")).expect("a file");
    back_up_all(&data_dir, &folder.path().join("backup")).expect("the next start makes a new one");
}

#[test]
fn an_empty_folder_and_a_link_to_one_are_accepted() {
    let folder = folder();
    let data_dir = data_dir(folder.path());
    let path = |name: &str| folder.path().join(name);
    fs::create_dir(path("empty")).and_then(|()| symlink(path("linked"), path("link"))).expect("writable");
    fs::create_dir(path("linked")).expect("writable");
    back_up_all(&data_dir, &path("empty")).expect("a backup");
    let made = back_up_all(&data_dir, &path("link")).expect("a backup");
    assert_eq!(made.folder, path("linked"));
    for target in ["empty", "linked"] {
        assert_eq!(numbers(&opened(&path(target)).1), [1, 2].into(), "{target}");
    }
}

#[test]
fn what_a_killed_backup_has_left_is_replaced_and_nothing_else() {
    let folder = folder();
    let data_dir = data_dir(folder.path());
    let (target, partial) = (folder.path().join("backup"), folder.path().join("backup.partial"));
    fs::create_dir_all(partial.join("buffer")).expect("writable");
    fs::write(partial.join("buffer/0000000000000009.log"), "half").expect("writable");
    let refused = back_up_all(&data_dir, &target).expect_err("it may be anybody's");
    assert!(matches!(refused, BackupError::Occupied(_)), "{refused}");
    assert_eq!(names(&partial), ["buffer"]);
    fs::write(partial.join("INCOMPLETE"), "").expect("writable");
    back_up_all(&data_dir, &target).expect("a backup");
    assert_eq!(names(&target.join("buffer")), ["0000000000000001.log", "bodies"]);
    assert!(!partial.exists());
}

#[test]
fn of_two_backups_to_one_folder_at_a_time_one_is_made_and_those_to_others_do_not_wait() {
    let folder = folder();
    let data_dir = data_dir(folder.path());
    let target = folder.path().join("backup");
    let (begun, has_begun) = mpsc::channel();
    let (go_on, goes_on) = mpsc::channel::<()>();
    let (begun, goes_on) = (std::sync::Mutex::new(begun), std::sync::Mutex::new(goes_on));
    let accesses = AtomicUsize::new(0);
    let pause = || {
        if accesses.fetch_add(1, Ordering::Relaxed) == 2 {
            begun.lock().expect("the test").send(()).expect("the test waits");
            goes_on.lock().expect("the test").recv().expect("the test goes on");
        }
    };
    thread::scope(|scope| {
        let options = Options { before_access: &pause, ..Options::new(10) };
        let first = scope.spawn(move || {
            back_up(&folder.path().join("data"), &folder.path().join("backup"), &options).map(|made| (made, folder))
        });
        has_begun.recv().expect("the first backup has begun");
        let second = back_up_all(&data_dir, &target).expect_err("the first is not complete");
        assert!(matches!(second, BackupError::InProgress(_)), "{second}");
        let other = target.with_extension("other");
        back_up_all(&data_dir, &other).expect("another folder");
        assert!(!target.exists(), "it has another name until it is complete");
        go_on.send(()).expect("the first backup waits");
        let (_, _folder) = first.join().expect("no panic").expect("a backup");
        for target in [&target, &other] {
            assert_eq!(numbers(&opened(target).1), [1, 2].into());
        }
    });
}

#[test]
fn a_backup_belongs_to_the_owner_of_the_original_as_far_as_that_is_permitted() {
    let folder = folder();
    let data_dir = data_dir(folder.path());
    let of = |path: &Path| fs::metadata(path).map(|found| (found.uid(), found.gid())).expect("metadata");
    // only root may do this, and then a backup by root must do it too
    let _ = chown(data_dir.join("buffer"), Some(1_234), Some(1_235));
    let owner = of(&data_dir.join("buffer"));
    let target = folder.path().join("backup");
    back_up_all(&data_dir, &target).expect("a backup");
    for name in ["", "etag.key", "buffer", "buffer/0000000000000001.log", "buffer/bodies"] {
        assert_eq!(of(&target.join(name)), owner, "{name}");
    }
}
