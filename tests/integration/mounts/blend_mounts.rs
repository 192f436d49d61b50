//! A blend root on a network file system whose server dies: its own files wait, nothing else does.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Instant;

use crate::harness::{Connection, Farm, SOON, Setup, eventually, holds, new_mount_namespace};

/// How large the files there are: more than what the sockets between server and worker hold.
const LEN: u64 = 200 << 20;

/// The bound on the threads that wait for one root.
const THREADS: usize = 16;

/// A server with a healthy blend root, and one inside it that hangs as long as `hang` exists.
fn farm() -> Farm {
    let setup = Setup::default();
    let mount = setup.blend_root().join("mount");
    fs::create_dir(&mount).expect("a folder to mount on");
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/hanging_fs.py");
    let script = format!(
        "rm -f mounted; python3 '{}' blend/mount {LEN} hang >mounted & \
         for try in $(seq 600); do test -s mounted && break; sleep 0.05; done; exec \"$0\" \"$@\"",
        program.display()
    );
    let roots = [setup.blend_root(), mount].map(|root| root.to_str().expect("UTF-8").to_owned());
    let setup = setup.args(["--blend-root", &roots[0], "--blend-root", &roots[1]]);
    Farm::of(setup.wrapper(&[new_mount_namespace(), &["sh", "-c", &script]].concat()))
}

/// How many threads of the server have names that begin so.
fn threads(farm: &Farm, name: &str) -> usize {
    let tasks = fs::read_dir(format!("/proc/{}/task", farm.pid())).expect("threads").filter_map(Result::ok);
    let names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
    names.filter(|thread| thread.starts_with(name)).count()
}

#[test]
fn a_mount_that_hangs_holds_up_its_own_files_alone_and_goes_on_when_it_is_back() {
    let mut farm = farm();
    let (root, hang) = (farm.setup().blend_root(), farm.setup().path("hang"));
    let mounted = farm.setup().path("blend/mount/scene.blend").display().to_string();
    symlink(root.join("mount"), root.join("CustomerData")).expect("a link");
    symlink("mount", root.join("beside")).expect("a link");
    farm.sparse_blend_file("healthy.blend", 8 << 20);
    let ways = [
        ("mounted", mounted.as_str()),
        ("linked", "CustomerData/scene.blend"),
        ("relative", "mount/scene.blend"),
        ("beside", "beside/scene.blend"),
        ("around", "../blend/mount/scene.blend"),
    ];
    for (uuid, path) in ways {
        farm.leave_blend(uuid, path);
        let answer = farm.ask("HEAD", uuid, &[]);
        assert!(answer.status == 200 && answer.content_length() > LEN, "{answer:?}");
    }
    // a delivery is in progress when the mount begins to hang
    farm.leave_blend("in-delivery", &mounted);
    let (mut delivery, _) = farm.begin_fetch("in-delivery");
    delivery.read_exact(1 << 20);
    fs::write(&hang, "").expect("it hangs");

    let mut waiting: Vec<Connection> = (0..150)
        .map(|number| {
            let mut connection = Connection::open(farm.http);
            let (uuid, _) = ways[number % ways.len()];
            connection.send_head("HEAD", &format!("/?bufferUUID={uuid}"), &[]);
            connection
        })
        .collect();
    eventually("threads wait", SOON, || {
        let waiting = threads(&farm, "blend-root-1");
        holds(waiting == THREADS, waiting)
    });
    for round in 0..20 {
        let began = Instant::now();
        farm.leave_blend("healthy", "healthy.blend");
        let answer = farm.ask("GET", "healthy", &[]);
        assert!(answer.status == 200 && answer.body.len() > 8 << 20, "{round}: {}", answer.status);
        assert!(began.elapsed() < SOON, "{round}: {:?}", began.elapsed());
    }
    for connection in &mut waiting {
        let head = connection.read_head();
        assert!(head.status == 503 && head.header("retry-after").is_some(), "{head:?}");
    }
    let answer = farm.fetch("mounted");
    assert!(answer.status == 503 && answer.value.starts_with("{'message': "), "{answer:?}");
    assert!(answer.value.contains("does not answer"), "{answer:?}");
    assert!(threads(&farm, "blend-") <= 3 * THREADS, "{} threads", threads(&farm, "blend-"));
    // a path that begins in no root, which the one that hangs has to be compared with
    let other_name = farm.setup().path("other-name");
    symlink(&root, &other_name).expect("a link");
    farm.leave_blend("healthy", other_name.join("healthy.blend").to_str().expect("UTF-8"));
    assert_eq!(farm.ask("GET", "healthy", &[]).status, 200);
    // closing waits for such a file system too: no thread that serves connections may do that
    drop(delivery);
    for _ in 0..8 {
        farm.leave_blend("healthy", "healthy.blend");
        assert_eq!(farm.ask("GET", "healthy", &[]).status, 200);
    }
    assert!(farm.log().contains("does not answer"), "{}", farm.log());

    fs::remove_file(&hang).expect("it goes on");
    for uuid in ways.map(|(uuid, _)| uuid).into_iter().chain(["in-delivery"]) {
        eventually("the mount is used again", SOON, || {
            let answer = farm.ask("HEAD", uuid, &[]);
            holds(answer.status == 200, answer)
        });
    }
}

#[test]
fn a_file_with_fewer_bytes_than_its_file_system_says_is_not_made_up_for_and_its_message_stays() {
    let mut farm = farm();
    farm.leave_blend("short", "mount/short.blend");
    let (mut connection, head) = farm.begin_fetch("short");
    let mut buffer = vec![0; 1 << 20];
    let mut received = 0;
    loop {
        match connection.read(&mut buffer) as u64 {
            0 => break,
            read => received += read,
        }
        assert!(received < head.content_length(), "the answer is whole");
    }
    assert!(received <= LEN / 2 + (1 << 20), "{received}");
    assert_eq!(farm.ask("HEAD", "short", &[]).status, 200);
    assert!(farm.log().contains("shorter than its file system says"), "{}", farm.log());
}

#[test]
fn a_server_stops_and_starts_while_a_mount_hangs() {
    let mut farm = farm();
    fs::write(farm.setup().path("hang"), "").expect("it hangs");
    farm.leave_blend("mounted", farm.setup().path("blend/mount/scene.blend").display().to_string().as_str());
    assert_eq!(farm.ask("HEAD", "mounted", &[]).status, 503);
    assert!(farm.stop().success(), "{}", farm.log());
    farm.server.restart();
    farm.blend_file("healthy.blend", b"content");
    farm.leave_blend("healthy", "healthy.blend");
    assert!(farm.fetch_value("healthy").contains("b'content'"));
    let answer = farm.fetch("mounted");
    assert_eq!(answer.status, 503, "{answer:?}");
}

#[test]
fn a_digest_that_waits_for_a_mount_holds_up_no_other_digest_and_no_other_request() {
    let mut farm = farm();
    let mounted = farm.setup().path("blend/mount/scene.blend").display().to_string();
    farm.sparse_blend_file("large.blend", 64 << 30);
    let preferring = [("Prefer", "blend-reference")];
    let begin = |farm: &mut Farm, path: &str| {
        farm.leave_blend("waiting", path);
        let mut connection = Connection::open(farm.http);
        // waits, because one of the requests below may be first
        connection.send_head("GET", "/?bufferUUID=waiting&wait=60", &preferring);
        eventually("the message is in delivery", SOON, || {
            let answer = farm.ask("GET", "waiting", &[("Range", "bytes=0-0")]);
            holds(answer.status == 400, answer)
        });
        connection
    };
    let _large = begin(&mut farm, "large.blend");
    let _hanging = begin(&mut farm, &mounted);
    fs::write(farm.setup().path("hang"), "").expect("it hangs");
    for round in 0..20 {
        farm.blend_file("small.blend", format!("content {round}").as_bytes());
        farm.leave_blend("small", "small.blend");
        let began = Instant::now();
        let answer = farm.ask("GET", "small", &preferring);
        assert_eq!((answer.status, answer.header("preference-applied")), (200, Some("blend-reference")), "{answer:?}");
        assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    }
    assert!(threads(&farm, "blend-digest-") <= 4, "{}", threads(&farm, "blend-digest-"));
    let log = farm.log();
    assert!(!log.contains("of 68719476736 bytes") && !log.contains(&format!("of {LEN} bytes")), "{log}");
}
