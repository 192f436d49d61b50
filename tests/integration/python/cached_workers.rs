//! The example workers' cache: a .blend file is downloaded once, and never used if its bytes are others.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;

use serde_json::json;

use crate::harness::{Ended, Proxy, SOON, Server, Setup, eventually, holds, request};
use crate::python::example_clients::{Worker, for_each_worker, pattern, run, start};

const WORKERS: u64 = 5;
const FILE_BYTES: u64 = 64 << 20;

/// A server behind a proxy that counts what it sends, and a folder for each worker's files.
struct Scene {
    server: Server,
    proxy: Proxy,
    worker: Worker,
}

impl Scene {
    fn of(worker: Worker) -> Self {
        let server = Setup::default().start();
        let proxy = Proxy::to_http(server.http);
        let blender = server.setup().path("blender");
        fs::write(&blender, BLENDER).expect("writable");
        fs::set_permissions(&blender, fs::Permissions::from_mode(0o755)).expect("our file");
        Self { server, proxy, worker }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.server.setup().path(name)
    }

    #[track_caller]
    fn leave(&self, uuid: &str, blend: &str) {
        let data = json!({ "META_DATA": "EXTRACT_BLEND_FILE_FROM_PATH", "BINARY_BLEND_FILE": blend, "FRAMES": [1] });
        let message = json!({ "TYPE": "RENDER", "DATA": data });
        let order = json!({ "TYPE": "ADD_BUFFER_MSG", "DATA": { "BUFFER_UUID": uuid, "BUFFER_MSG": message } });
        let path = "/CommunicationInterface/AddBufferMsg";
        assert_eq!(request(self.server.api, "POST", path, &[], order.to_string().as_bytes()).status, 200);
    }

    /// A worker that "renders" the digest of its .blend file into the image.
    fn command(&self, uuid: &str, cache: &str) -> Command {
        let mut command = self.worker.command();
        command.args([uuid, "--server", self.proxy.url(), "--cache-dir"]).arg(self.path(cache));
        command.arg("--blender").arg(self.path("blender")).arg("--work-dir").arg(self.path("work"));
        command
    }

    /// Runs a worker for a message that must be rendered from this file.
    #[track_caller]
    fn work(&self, uuid: &str, cache: &str, blend: &[u8]) -> Ended {
        let ended = run(&mut self.command(uuid, cache));
        self.check(uuid, blend, &ended);
        ended
    }

    #[track_caller]
    fn check(&self, uuid: &str, blend: &[u8], ended: &Ended) {
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let image = fs::read_to_string(self.path("work").join(uuid).join("frame_0001.png")).expect("an image");
        assert_eq!(image.split_whitespace().next(), Some(digest(blend).as_str()), "{ended:?}");
    }

    /// The files in a cache with this extension.
    fn cached(&self, cache: &str, kind: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path(cache)).expect("the cache").map(|entry| entry.expect("an entry").path());
        entries.filter(|path| path.extension().is_some_and(|extension| extension == kind)).collect()
    }
}

const BLENDER: &str = "#!/bin/sh
if [ \"$1\" = --version ]; then echo 'Blender 4.0'; exit; fi
sha256sum \"$3\" >\"$(dirname \"$3\")/rendering_0001.png\"
";

fn digest(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn in_cache(folder: &Path, blend: &[u8], kind: &str) -> PathBuf {
    folder.join(format!("{}.{kind}", digest(blend)))
}

/// A process that locks a file until it is killed.
struct Holder(Child);

impl Holder {
    fn lock(file: &Path, kind: &str) -> Self {
        let mut command = Command::new("flock");
        let holder = Self(command.args([kind, "--no-fork"]).arg(file).args(["sleep", "600"]).spawn().expect("flock"));
        let is_locked = || {
            let free = Command::new("flock").args(["--exclusive", "--nonblock"]).arg(file).arg("true").status();
            holds(!free.expect("flock").success(), file)
        };
        eventually("the lock", SOON, is_locked);
        holder
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // This fails only if it has already ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[track_caller]
fn each_worker_downloads_a_file_once(worker: Worker) {
    let scene = Scene::of(worker);
    let blend = pattern(FILE_BYTES as usize);
    scene.server.blend_file("scene.blend", &blend);
    thread::scope(|scope| {
        for number in 0..WORKERS {
            let (scene, blend) = (&scene, &blend);
            scope.spawn(move || {
                for message in 0..10 {
                    let uuid = format!("job-1-{number}-{message}");
                    scene.leave(&uuid, "scene.blend");
                    let ended = scene.work(&uuid, &format!("cache-{number}"), blend);
                    assert_eq!(ended.stderr.contains("cached"), message > 0, "{ended:?}");
                }
            });
        }
    });
    let sent = scene.proxy.bytes_to_server();
    let files = WORKERS * FILE_BYTES;
    assert!((files..=files + files / 100).contains(&sent), "{sent} bytes sent for {files}");

    for number in 0..WORKERS {
        let uuid = format!("job-2-{number}");
        scene.leave(&uuid, "scene.blend");
        scene.work(&uuid, &format!("cache-{number}"), &blend);
    }
    let more = scene.proxy.bytes_to_server() - sent;
    assert!(more <= WORKERS << 20, "{more} bytes sent for the second job");
}

#[track_caller]
fn workers_that_share_a_folder_download_a_file_once(worker: Worker) {
    let scene = Scene::of(worker);
    let blend = pattern(FILE_BYTES as usize);
    scene.server.blend_file("scene.blend", &blend);
    let uuids: Vec<_> = (0..WORKERS).map(|number| format!("job-{number}")).collect();
    for uuid in &uuids {
        scene.leave(uuid, "scene.blend");
    }
    let workers: Vec<_> = uuids.iter().map(|uuid| start(&mut scene.command(uuid, "cache"))).collect();
    let ended: Vec<_> = workers.into_iter().map(|worker| worker.end()).collect();
    for (uuid, ended) in uuids.iter().zip(&ended) {
        scene.check(uuid, &blend, ended);
    }
    let fetched = ended.iter().filter(|ended| ended.stderr.contains(".blend file: fetched")).count();
    assert_eq!(fetched, 1, "{ended:?}");
    let sent = scene.proxy.bytes_to_server();
    assert!(sent <= FILE_BYTES + FILE_BYTES / 100, "{sent} bytes sent");
}

#[track_caller]
fn a_download_is_resumed_by_the_next_worker(worker: Worker) {
    let scene = Scene::of(worker);
    let blend = pattern(FILE_BYTES as usize);
    scene.server.blend_file("scene.blend", &blend);
    scene.leave("job", "scene.blend");
    // What the worker asks for before is a few hundred bytes, over at most five connections.
    for cut in [40 << 20, 0] {
        scene.proxy.cut_each_after([cut; 10]);
        let ended = run(scene.command("job", "cache").args(["--patience", "0"]));
        assert_eq!(ended.code, Some(1), "{ended:?}");
    }
    scene.proxy.cut_each_after([]);
    scene.work("job", "cache", &blend);
    let sent = scene.proxy.bytes_to_server();
    assert!(sent <= FILE_BYTES + FILE_BYTES / 100, "{sent} bytes sent");
    assert!(scene.cached("cache", "part").is_empty(), "{:?}", scene.cached("cache", "part"));
}

#[track_caller]
fn a_crash_of_the_worker_that_downloads_lets_the_next_one_download(worker: Worker) {
    let scene = Scene::of(worker);
    scene.server.blend_file("scene.blend", b"a scene");
    scene.leave("job", "scene.blend");
    fs::create_dir(scene.path("cache")).expect("a folder");
    let part = in_cache(&scene.path("cache"), b"a scene", "part");
    let holder = Holder::lock(&part, "--exclusive");
    let inode = format!(":{} ", fs::metadata(&part).expect("the file").ino());
    let running = start(&mut scene.command("job", "cache"));
    eventually("a worker that waits for the lock", SOON, || {
        let locks = fs::read_to_string("/proc/locks").expect("the system's locks");
        holds(locks.lines().any(|lock| lock.contains("-> FLOCK") && lock.contains(&inode)), locks)
    });
    assert!(!part.with_extension("blend").exists(), "downloaded beside the worker that holds the lock");
    // The message is not taken before the file is here.
    assert_eq!(request(scene.server.http, "HEAD", "/?bufferUUID=job", &[], b"").status, 200);
    drop(holder);
    scene.check("job", b"a scene", &running.end());
    assert_eq!(request(scene.server.http, "HEAD", "/?bufferUUID=job", &[], b"").status, 400);
}

#[track_caller]
fn a_file_that_has_changed_in_the_cache_is_fetched_again(worker: Worker) {
    let scene = Scene::of(worker);
    scene.server.blend_file("scene.blend", b"a scene");
    let file = in_cache(&scene.path("cache"), b"a scene", "blend");
    for (uuid, change) in [("job-1", &b""[..]), ("job-2", b"b scene"), ("job-3", b"a scene, longer"), ("job-4", b"")] {
        if file.exists() {
            fs::remove_file(&file).expect("our file");
            fs::write(&file, change).expect("writable");
        }
        scene.leave(uuid, "scene.blend");
        scene.work(uuid, "cache", b"a scene");
        assert_eq!(fs::read(&file).expect("the file"), b"a scene");
        let mode = fs::metadata(&file).expect("the file").permissions().mode();
        assert_eq!(mode & 0o777, 0o444);
    }
    // What is longer than the file, or of another one, is no part of it.
    for (uuid, part) in [("job-5", &b"a scene, longer"[..]), ("job-6", b"b sc")] {
        fs::remove_file(&file).expect("our file");
        fs::write(file.with_extension("part"), part).expect("writable");
        scene.leave(uuid, "scene.blend");
        scene.work(uuid, "cache", b"a scene");
    }
}

/// As that of a service whose user has no home.
#[track_caller]
fn a_worker_without_a_folder_for_its_cache_works_nevertheless(worker: Worker) {
    let scene = Scene::of(worker);
    scene.server.blend_file("scene.blend", b"a scene");
    scene.leave("job", "scene.blend");
    let mut command = worker.command();
    command.args(["job", "--server", scene.proxy.url()]).env("XDG_CACHE_HOME", "/dev/null/cache");
    command.arg("--blender").arg(scene.path("blender")).arg("--work-dir").arg(scene.path("work"));
    let ended = run(&mut command);
    scene.check("job", b"a scene", &ended);
    assert!(ended.stderr.contains("--cache-dir DIR"), "{ended:?}");
}

#[track_caller]
fn the_least_recently_used_files_make_room_but_none_in_use(worker: Worker) {
    let scene = Scene::of(worker);
    let blends = [1, 2, 3, 4].map(|number| pattern((1 << 20) + 8 * number));
    for (number, blend) in blends.iter().enumerate() {
        scene.server.blend_file(&format!("{number}.blend"), blend);
    }
    let use_file = |uuid: &str, number: usize| {
        scene.leave(uuid, &format!("{number}.blend"));
        let ended = run(scene.command(uuid, "cache").args(["--cache-size", "2200KiB"]));
        scene.check(uuid, &blends[number], &ended);
    };
    let is_cached = |number: usize| in_cache(&scene.path("cache"), &blends[number], "blend").exists();
    use_file("job-1", 0);
    use_file("job-2", 1);
    use_file("job-3", 0);
    use_file("job-4", 2);
    assert_eq!([0, 1, 2].map(is_cached), [true, false, true]);
    let _holder = Holder::lock(&in_cache(&scene.path("cache"), &blends[0], "blend"), "--shared");
    use_file("job-5", 3);
    assert_eq!([0, 2, 3].map(is_cached), [true, false, true]);
}

for_each_worker!(
    each_worker_downloads_a_file_once,
    workers_that_share_a_folder_download_a_file_once,
    a_download_is_resumed_by_the_next_worker,
    a_crash_of_the_worker_that_downloads_lets_the_next_one_download,
    a_file_that_has_changed_in_the_cache_is_fetched_again,
    a_worker_without_a_folder_for_its_cache_works_nevertheless,
    the_least_recently_used_files_make_room_but_none_in_use,
);
