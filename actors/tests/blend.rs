//! Which .blend files are opened: whatever folders, links and `..` there are, those inside the permitted folders and no
//! others, as the kernel itself resolves a path.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use user_http_actors::blend::{BlendConfig, BlendError, BlendFile, BlendRoots, refine_data_from_metadata};

struct Roots {
    dir: TempDir,
    roots: BlendRoots,
    runtime: Runtime,
}

impl Roots {
    /// Folders `names` as blend roots in a folder of their own, beside others that `names` has not.
    fn new(names: &[&str]) -> Self {
        Self::with(names, |_| {})
    }

    fn with(names: &[&str], configure: impl FnOnce(&mut BlendConfig)) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        // without links in its own path, so that it can be compared
        let base = dir.path().canonicalize().expect("a folder");
        let roots: Vec<_> = names.iter().map(|name| base.join(name)).collect();
        for root in &roots {
            fs::create_dir_all(root).expect("a root");
        }
        let mut config =
            BlendConfig { roots, data_dir: None, shared_key: None, private_files: Vec::new(), max_open: 64 };
        configure(&mut config);
        let roots = BlendRoots::new(config).expect("roots");
        Self { dir, roots, runtime: Builder::new_current_thread().enable_time().build().expect("a runtime") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().expect("a folder").join(name)
    }

    fn open(&self, path: &str) -> Result<BlendFile, BlendError> {
        self.runtime.block_on(refine_data_from_metadata(&self.roots, Some(path)))
    }

    fn content(&self, path: &str) -> Result<String, BlendError> {
        let file = Arc::new(self.open(path)?);
        let len = file.len() as usize;
        let bytes = self.runtime.block_on(file.read(0, len)).expect("readable");
        Ok(String::from_utf8(bytes.to_vec()).expect("UTF-8"))
    }
}

/// What may be in a folder.
#[derive(Clone, Debug)]
enum Entry {
    File,
    Folder,
    /// To a path inside the test's folder where it begins with `/`.
    Link(String),
}

const ROOTS: [&str; 2] = ["one", "deep/two"];
const FOLDERS: [&str; 6] = ["one", "one/in", "deep/two", "deep", "outside", "outside/in"];
const NAMES: [&str; 3] = ["a", "b", "in"];

fn path() -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec!["a", "b", "in", "one", "two", "deep", "outside", "..", "..", ".", ""]);
    (any::<bool>(), prop::sample::select(FOLDERS.to_vec()), prop::collection::vec(part, 1..6)).prop_map(
        |(absolute, folder, parts)| {
            let rest = parts.join("/");
            if absolute { format!("/{folder}/{rest}") } else { rest }
        },
    )
}

fn entry() -> impl Strategy<Value = Entry> {
    prop_oneof![Just(Entry::File), Just(Entry::Folder), path().prop_map(Entry::Link), path().prop_map(Entry::Link)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_path_leads_to_the_file_that_the_kernel_finds_if_that_lies_in_a_root_and_to_none_otherwise(
        entries in prop::collection::vec(
            (prop::sample::select(FOLDERS.to_vec()), prop::sample::select(NAMES.to_vec()), entry()), 0..16),
        paths in prop::collection::vec(path(), 1..12),
    ) {
        let roots = Roots::new(&ROOTS);
        let base = roots.path("");
        let base = base.to_str().expect("UTF-8").trim_end_matches('/');
        // a path of the test's own folder, as one of the system
        let real = |path: &str| if path.starts_with('/') { format!("{base}{path}") } else { path.to_owned() };
        for folder in FOLDERS {
            fs::create_dir_all(roots.path(folder)).expect("a folder");
        }
        for (folder, name, entry) in entries {
            let at = roots.path(folder).join(name);
            // what stands there already stays
            let _ = match entry {
                Entry::File => fs::OpenOptions::new().write(true).create_new(true).open(&at)
                    .and_then(|_| fs::write(&at, at.to_str().expect("UTF-8"))),
                Entry::Folder => fs::create_dir(&at),
                Entry::Link(to) if to.is_empty() => Ok(()),
                Entry::Link(to) => symlink(real(&to), &at),
            };
        }
        for path in paths {
            let sent = real(&path);
            if sent.is_empty() {
                continue;
            }
            // the kernel's own answer; a file's content is its path
            let found = fs::canonicalize(roots.path(ROOTS[0]).join(&sent)).ok();
            let is_inside = |file: &&PathBuf| ROOTS.iter().any(|root| file.starts_with(roots.path(root)));
            // `realpath` drops a slash behind a file, which the kernel does not
            let is_folders = sent.ends_with('/') || sent.ends_with("/.");
            let expected = found.as_ref().filter(|file| file.is_file() && !is_folders).filter(is_inside);
            let answer = roots.content(&sent);
            match (expected, &answer) {
                (Some(file), Ok(content)) => prop_assert_eq!(file.to_str().expect("UTF-8"), content, "{}", sent),
                (None, Err(_)) => {}
                _ => prop_assert!(false, "{sent}: {found:?} is there, the answer is {answer:?}"),
            }
        }
    }
}

#[test]
fn a_folder_that_is_exchanged_for_a_link_meanwhile_never_leads_out() {
    let roots = Roots::new(&["one"]);
    for folder in ["one/real", "outside"] {
        fs::create_dir_all(roots.path(folder)).expect("a folder");
        fs::write(roots.path(folder).join("x.blend"), folder).expect("a file");
    }
    symlink(roots.path("outside"), roots.path("one/link")).expect("a link");
    fs::create_dir(roots.path("one/place")).expect("a folder");
    let ended = Arc::new(AtomicBool::new(false));
    let exchanging = {
        let (ended, place, real, link) =
            (Arc::clone(&ended), roots.path("one/place"), roots.path("one/real"), roots.path("one/link"));
        fs::remove_dir(&place).expect("an empty folder");
        std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                for from in [&real, &link] {
                    fs::rename(from, &place).expect("put in place");
                    fs::rename(&place, from).expect("put back");
                }
            }
        })
    };
    for _ in 0..1_000 {
        if let Ok(content) = roots.content("place/x.blend") {
            assert_eq!(content, "one/real");
        }
    }
    ended.store(true, Ordering::Relaxed);
    exchanging.join().expect("exchanged to the end");
}

#[test]
fn as_many_links_as_the_kernel_follows_are_followed_and_a_ring_of_links_is_an_error() {
    let roots = Roots::new(&["one"]);
    fs::write(roots.path("one/link-0"), "content").expect("a file");
    for number in 1..=41 {
        let target = format!("link-{}", number - 1);
        // every other one is absolute
        let target = if number % 2 == 0 { roots.path("one").join(target) } else { target.into() };
        symlink(target, roots.path(&format!("one/link-{number}"))).expect("a link");
    }
    assert_eq!(roots.content("link-40").expect("a file"), "content");
    let error = roots.content("link-41").expect_err("one too many").to_string();
    assert!(error.contains("unreadable") && error.contains("40 symbolic links"), "{error}");
    for (name, target) in [("ring", "ring".into()), ("rings", roots.path("one/rings"))] {
        symlink(target, roots.path("one").join(name)).expect("a link");
        let error = roots.content(name).expect_err("a ring").to_string();
        assert!(error.contains("unreadable") && error.contains("40 symbolic links"), "{error}");
    }
}

#[test]
fn files_are_opened_up_to_the_bound_and_again_once_one_is_closed() {
    let roots = Roots::with(&["one"], |config| config.max_open = 2);
    fs::write(roots.path("one/x.blend"), "content").expect("a file");
    let held = [roots.open("x.blend").expect("the first"), roots.open("x.blend").expect("the second")];
    let error = roots.open("x.blend").expect_err("no third");
    assert!(error.is_transient() && error.to_string().contains("too many"), "{error}");
    drop(held);
    let began = std::time::Instant::now();
    // it is closed on a thread of its own
    while roots.open("x.blend").is_err() {
        assert!(began.elapsed().as_secs() < 30, "never closed");
        std::thread::yield_now();
    }
}

#[test]
fn the_data_directory_and_private_files_are_never_opened_whatever_their_names_are() {
    let roots = Roots::with(&["one"], |config| {
        let root = config.roots[0].clone();
        let base = root.parent().expect("the test's folder").to_owned();
        fs::create_dir_all(base.join("data/buffer")).expect("a data directory");
        config.data_dir = Some(base.join("data"));
        config.private_files = vec![base.join("token")];
        config.roots.extend([base.join("data"), base.join("data/buffer"), base]);
    });
    let segment = roots.path("data/buffer/1.log");
    fs::write(&segment, "messages").expect("a segment");
    fs::write(roots.path("token"), "secret").expect("a token");
    fs::write(roots.path("scene.blend"), "scene").expect("a scene");
    fs::hard_link(&segment, roots.path("one/segment.blend")).expect("a hard link");
    fs::hard_link(roots.path("token"), roots.path("one/token.blend")).expect("a hard link");
    symlink(&segment, roots.path("one/link.blend")).expect("a link");
    symlink(roots.path("data"), roots.path("one/folder")).expect("a link");
    fs::hard_link(roots.path("scene.blend"), roots.path("one/scene.blend")).expect("a hard link");
    let absolute: Vec<String> = ["data/buffer/1.log", "data/etag.key", "token", "one/../data/buffer/1.log"]
        .map(|name| roots.path(name).to_str().expect("UTF-8").to_owned())
        .into();
    let relative = ["segment.blend", "token.blend", "link.blend", "folder/buffer/1.log", "../data/buffer/1.log"];
    for path in absolute.iter().map(String::as_str).chain(relative) {
        let error = roots.content(path).expect_err(path).to_string();
        assert!(error.contains("outside the permitted folders"), "{path}: {error}");
    }
    // what is replaced is still private, and what is no longer one is not
    fs::rename(roots.path("token"), roots.path("one/old.blend")).expect("renamed");
    fs::write(roots.path("token"), "new secret").expect("a token");
    assert!(matches!(roots.content(roots.path("token").to_str().expect("UTF-8")), Err(BlendError::Outside(..))));
    assert_eq!(roots.content("scene.blend").expect("no secret"), "scene");
}

#[test]
fn a_folder_deeper_than_anybody_needs_takes_no_more_descriptors_than_that() {
    let roots = Roots::new(&["one"]);
    let deep = |levels: usize| format!("{}x.blend", "d/".repeat(levels));
    let mut folder = roots.path("one");
    for level in 1..=120 {
        folder.push("d");
        fs::create_dir(&folder).expect("a folder");
        fs::write(folder.join("x.blend"), level.to_string()).expect("a file");
    }
    assert_eq!(roots.content(&deep(99)).expect("a file"), "99");
    let error = roots.content(&deep(120)).expect_err("too deep").to_string();
    assert!(error.contains("unreadable") && error.contains("100 folders deep"), "{error}");
}

#[test]
fn a_file_is_read_to_its_end_while_its_names_and_permissions_change_and_not_once_its_content_has() {
    use std::os::unix::fs::PermissionsExt;

    let roots = Roots::new(&["one"]);
    let path = |name: &str| roots.path("one").join(name);
    let new = || {
        fs::write(path("x.blend"), "content").expect("a file");
        Arc::new(roots.open("x.blend").expect("a file"))
    };
    let read = |file: &Arc<BlendFile>| roots.runtime.block_on(Arc::clone(file).read(0, 7));
    let file = new();
    fs::hard_link(path("x.blend"), path("backup.blend")).expect("a hard link");
    fs::set_permissions(path("x.blend"), fs::Permissions::from_mode(0o600)).expect("chmod");
    fs::rename(path("x.blend"), path("x.blend1")).expect("renamed");
    fs::write(path("x.blend@"), "CHANGED").expect("a new file");
    fs::rename(path("x.blend@"), path("x.blend")).expect("renamed");
    fs::remove_file(path("x.blend1")).expect("removed");
    assert_eq!(read(&file).expect("intact"), "content");
    assert_ne!(roots.open("x.blend").expect("the new one").version(), file.version());

    for change in ["CHANGED", "short", "longer than before"] {
        let file = new();
        let before = file.version().to_owned();
        // a write within the same tick of the clock would leave the time as it is
        let modified = fs::metadata(path("x.blend")).and_then(|meta| meta.modified()).expect("a time");
        fs::write(path("x.blend"), change).expect("written in place");
        let touched = fs::File::options().write(true).open(path("x.blend")).expect("a file");
        touched.set_modified(modified + std::time::Duration::from_nanos(1)).expect("a later time");
        let error = read(&file).expect_err(change);
        assert!(error.to_string().contains("has changed"), "{change}: {error}");
        assert_ne!(roots.open("x.blend").expect("a file").version(), before);
    }
}

#[test]
fn a_version_is_the_same_after_a_restart_with_the_same_data_directory() {
    let dir = tempfile::tempdir().expect("a folder");
    let (root, data_dir) = (dir.path().join("blends"), dir.path().join("data"));
    for folder in [&root, &data_dir] {
        fs::create_dir(folder).expect("a folder");
    }
    fs::write(root.join("x.blend"), "content").expect("a file");
    let version = |data_dir: Option<&Path>| {
        let (roots, data_dir) = (vec![root.clone()], data_dir.map(Path::to_owned));
        let roots =
            BlendRoots::new(BlendConfig { roots, data_dir, shared_key: None, private_files: Vec::new(), max_open: 1 });
        let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
        let opened = runtime.block_on(refine_data_from_metadata(&roots.expect("roots"), Some("x.blend")));
        opened.expect("a file").version().to_owned()
    };
    assert_eq!(version(Some(&data_dir)), version(Some(&data_dir)));
    assert_ne!(version(None), version(Some(&data_dir)));
}

#[test]
fn what_the_kernel_makes_up_is_never_opened_even_below_a_root_that_is_everything() {
    let roots = Roots::with(&["one"], |config| config.roots = vec!["/".into()]);
    fs::write(roots.path("one/x.blend"), "content").expect("a file");
    for path in ["proc/self/environ", "/proc/self/environ", "proc/self/maps"] {
        assert!(matches!(roots.content(path), Err(BlendError::Outside(..))), "{path}");
    }
    let inside = roots.path("one/x.blend");
    assert_eq!(roots.content(inside.to_str().expect("UTF-8")).expect("a file"), "content");
    assert_eq!(roots.content(&format!("..{}", inside.display())).expect("a file"), "content");
}
