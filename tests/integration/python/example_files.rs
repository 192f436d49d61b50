//! The files of the example clients: each job has its own, and an image is what its sender had, however it came.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::harness::{Farm, Server, Setup, example, request};
use crate::python::example_clients::{Worker, run};

const PICKLE: &str = "application/octet-stream";

/// Jobs that a careless folder name takes for one another, or for something else.
fn jobs() -> Vec<String> {
    let long = "j".repeat(100);
    let jobs =
        ["job.1", "job_1", "JOB_1", "job/1", "a/b", "a_b", "..", "../a_b", ".", "con", "nul.txt", "ä", "ö", "job 1"];
    jobs.map(str::to_owned).into_iter().chain([format!("{long}a"), format!("{long}b")]).collect()
}

/// The bytes of a frame's image: all that there are, in an order of its own.
fn image(frame: usize) -> Vec<u8> {
    (0..1024).map(|at| ((at + frame) % 256) as u8).collect()
}

fn lines(text: &str) -> Vec<&str> {
    text.lines().filter(|line| line.starts_with("FRAME_RENDERED")).collect()
}

/// The file that a line of the user manager names.
fn saved(line: &str) -> PathBuf {
    line.split_once(" -> ").unwrap_or_else(|| panic!("nothing saved: {line}")).1.into()
}

/// Fetches this many messages from the server into this folder. Returns the lines that report them.
#[track_caller]
fn receive(server: &Server, out: &Path, count: usize) -> String {
    let mut manager = example("user_manager");
    manager.args(["--api", &server.api_url("/"), "--count", &count.to_string(), "--timeout", "60", "--out"]).arg(out);
    let ended = run(&mut manager);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    ended.stdout
}

#[track_caller]
fn work_in_one_folder(worker: Worker) {
    let server = Setup::default().start();
    let [images, work, out] = ["images", "work", "out"].map(|name| server.setup().path(name));
    fs::create_dir(&images).expect("a folder");
    let jobs = jobs();
    for (frame, job) in jobs.iter().enumerate() {
        fs::write(images.join(format!("frame_{frame:04}.png")), image(frame)).expect("an image");
        let message = json!({ "TYPE": "RENDER", "DATA": { "FRAMES": [frame] } });
        let order = json!({ "TYPE": "ADD_BUFFER_MSG", "DATA": { "BUFFER_UUID": job, "BUFFER_MSG": message } });
        let path = "/CommunicationInterface/AddBufferMsg";
        assert_eq!(request(server.api, "POST", path, &[], order.to_string().as_bytes()).status, 200);
    }
    for job in &jobs {
        let mut command = worker.command();
        command.args([job, "--server", &server.worker_url()]).arg("--images").arg(&images).arg("--work-dir").arg(&work);
        let ended = run(&mut command);
        assert!(ended.code == Some(0) && !ended.stderr.contains("fetched before"), "{job}: {ended:?}");
    }
    let folders = fs::read_dir(&work).expect("the work folder").map(|entry| entry.expect("an entry").file_name());
    let folders: BTreeSet<String> = folders.map(|name| name.to_string_lossy().to_lowercase()).collect();
    assert_eq!(folders.len(), jobs.len(), "as a file system sees them that ignores case: {folders:?}");

    // each frame is posted as its own job's, and saved apart from all others
    let printed = receive(&server, &out, 2 * jobs.len());
    let frames = lines(&printed);
    assert_eq!(frames.len(), jobs.len(), "{printed}");
    for (frame, job) in jobs.iter().enumerate() {
        let part = format!("job={job} frame={frame} ");
        let line = frames.iter().find(|line| line.contains(&part)).unwrap_or_else(|| panic!("no {part:?}: {printed}"));
        assert!(fs::read(saved(line)).expect("an image") == image(frame), "{line}");
    }
    let files: BTreeSet<String> = frames.iter().map(|line| saved(line).to_string_lossy().to_lowercase()).collect();
    assert_eq!(files.len(), jobs.len(), "{files:?}");
    let inside =
        |path: &PathBuf| path.canonicalize().expect("a file").starts_with(out.canonicalize().expect("a folder"));
    assert!(frames.iter().map(|line| saved(line)).all(|path| inside(&path)), "{printed}");
}

#[test]
fn jobs_with_similar_names_share_no_folder_and_no_frame() {
    work_in_one_folder(Worker::Rust);
}

#[test]
fn jobs_with_similar_names_share_no_folder_and_no_frame_of_the_python_worker() {
    work_in_one_folder(Worker::Python);
}

#[test]
fn images_in_pickles_of_every_protocol_are_saved_as_they_were() {
    let mut farm = Farm::start();
    let mut expected = Vec::new();
    for protocol in 0..=5 {
        let images = [
            ("bytes(range(256)) * 4", image(0)),
            ("b''", vec![]),
            (r"b'\\u0041\\\\n\n\r\x1a\x00'", br"\u0041\\n".to_vec()),
        ];
        for (value, content) in images {
            for kind in ["bytes", "bytearray"] {
                let content =
                    if value.starts_with(r"b'\\") { [&content[..], b"\n\r\x1a\0"].concat() } else { content.clone() };
                let job = format!("{kind}-{}", expected.len());
                let data = format!(
                    "{{'FRAME_NUMBER': 1, 'IMAGE': {kind}({value}), 'JOB': '{job}', 'TAGS': {{1, 2}}, 'MORE': frozenset([3])}}"
                );
                let message = format!("{{'USER_ID': 'u', 'MAIN_DATA': {{'TYPE': 'FRAME_RENDERED', 'DATA': {data}}}}}");
                let body = farm.peer.dumps(&message, protocol);
                assert_eq!(farm.post_bytes(PICKLE, &body).status, 200);
                expected.push((job, content));
            }
        }
    }
    // What Python 2.7 makes of bytearray('\x89PNG') at protocols 0 and 2.
    for (protocol, body) in [
        (0, &b"(dp0\nS'MAIN_DATA'\np1\n(dp2\nS'DATA'\np3\n(dp4\nS'JOB'\np5\nS'python2-0'\np6\nsS'IMAGE'\np7\nc__builtin__\n\
           bytearray\np8\n(V\x89PNG\np9\nS'latin-1'\np10\ntp11\nRp12\nssS'TYPE'\np13\nS'FRAME_RENDERED'\np14\nssS'USER_ID'\n\
           p15\nS'u'\np16\ns."[..]),
        (2, b"\x80\x02}q\x00(U\tMAIN_DATAq\x01}q\x02(U\x04DATAq\x03}q\x04(U\x03JOBq\x05U\tpython2-2q\x06U\x05IMAGEq\x07\
           c__builtin__\nbytearray\nq\x08X\x05\x00\x00\x00\xc2\x89PNGq\x09U\x07latin-1q\n\x86q\x0bRq\x0cuU\x04TYPEq\rU\
           \x0eFRAME_RENDEREDq\x0euU\x07USER_IDq\x0fU\x01uq\x10u."),
    ] {
        let answer = farm.post_bytes(PICKLE, body);
        assert_eq!(answer.status, 200, "{answer:?}");
        expected.push((format!("python2-{protocol}"), b"\x89PNG".to_vec()));
    }
    let printed = receive(&farm, &farm.setup().path("out"), expected.len());
    assert!(!printed.contains("UNREADABLE"), "{printed}");
    for (job, content) in expected {
        let part = format!("job={job} ");
        let line = printed.lines().find(|line| line.contains(&part)).unwrap_or_else(|| panic!("no {job}: {printed}"));
        assert_eq!(fs::read(saved(line)).expect("an image"), content, "{line}");
    }
}

#[test]
fn frames_without_a_job_or_a_number_overwrite_none() {
    let mut farm = Farm::start();
    let mut contents = BTreeSet::new();
    let data = [
        "'FRAME_NUMBER': 1",
        "'FRAME_NUMBER': 1, 'JOB': ['a']",
        "'FRAME_NUMBER': 1, 'JOB': None",
        "'FRAME_NUMBER': 1, 'JOB': 'no_job'",
        "'FRAME_NUMBER': 1, 'JOB': 'no_job~'",
        "'FRAME_NUMBER': 1, 'JOB': ''",
        "'FRAME_NUMBER': 1, 'JOB': 7",
        "'FRAME_NUMBER': 1, 'JOB': 8",
        "'FRAME_NUMBER': 1, 'JOB': 'j'",
        "'FRAME_NUMBER': -1, 'JOB': 'j'",
        "'FRAME_NUMBER': 10001, 'JOB': 'j'",
        "'FRAME_NUMBER': '1', 'JOB': 'j'",
        "'FRAME_NUMBER': 1.0, 'JOB': 'j'",
        "'FRAME_NUMBER': 1 << 70, 'JOB': 'j'",
        "'FRAME_NUMBER': 1, 'JOB': 'j', 'FILE_NAME': 'frame.part'",
        "'JOB': 'j'",
    ];
    for (number, data) in data.iter().enumerate() {
        let data = format!("{{{data}, 'IMAGE': b'image {number}'}}");
        let message = format!("{{'USER_ID': 'u', 'MAIN_DATA': {{'TYPE': 'FRAME_RENDERED', 'DATA': {data}}}}}");
        let body = farm.peer.dumps(&message, 4);
        assert_eq!(farm.post_bytes(PICKLE, &body).status, 200);
        contents.insert(format!("image {number}"));
    }
    let printed = receive(&farm, &farm.setup().path("out"), data.len());
    let found = lines(&printed).into_iter().map(|line| fs::read_to_string(saved(line)).expect("an image")).collect();
    assert_eq!(contents, found, "{printed}");
}
