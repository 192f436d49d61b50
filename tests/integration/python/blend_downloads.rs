//! `GET` and `HEAD /blends/SHA256`: a .blend file that was handed out by reference, and no other.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

use crate::harness::{
    Ca, Connection, Farm, Host, Referred, Response, SOON, Setup, eventually, for_each_host, holds, referred,
};

for_each_host! {
    a_file_is_served_with_its_digest_as_its_version_however_often,
    ranges_of_a_file_are_served,
    a_cache_is_told_that_its_copy_is_current,
    if_match_of_another_version_is_answered_412,
    what_no_message_has_referred_to_is_answered_404,
    only_get_and_head_are_allowed,
    a_file_that_has_changed_is_answered_404_until_it_is_as_before,
    references_survive_a_restart_and_kill_9_and_digests_are_not_computed_again,
}

const PREFER: (&str, &str) = ("Prefer", "blend-reference");

/// A farm that has handed out a reference to a file with this content, and the reference.
fn farm_with(host: Host, content: &[u8]) -> (Farm, Referred) {
    let mut farm = Farm::on(host);
    farm.blend_file("scene.blend", content);
    hand_out(&mut farm, "scene.blend");
    let reference = referred(&farm, content);
    (farm, reference)
}

/// Delivers a message with a reference to a file.
#[track_caller]
fn hand_out(farm: &mut Farm, path: &str) {
    farm.leave_blend("id-1", path);
    let answer = farm.ask("GET", "id-1", &[PREFER]);
    assert_eq!((answer.status, answer.header("preference-applied")), (200, Some("blend-reference")), "{answer:?}");
}

fn content() -> Vec<u8> {
    (0..300_000_u32).map(|at| (at * 31 % 253) as u8).collect()
}

#[track_caller]
fn assert_is(answer: &Response, Referred { sha256, size, .. }: &Referred) {
    assert_eq!(answer.header("etag"), Some(format!("\"{sha256}\"").as_str()), "{answer:?}");
    assert_eq!(answer.header("cache-control"), Some("private, max-age=31536000, immutable"), "{answer:?}");
    if answer.status != 304 {
        assert_eq!(answer.header("content-type"), Some("application/octet-stream"), "{answer:?}");
        assert_eq!(answer.header("accept-ranges"), Some("bytes"), "{answer:?}");
        let digest = answer.header("repr-digest").unwrap_or_default();
        assert!(digest.starts_with("sha-256=:") && digest.ends_with("=:") && digest.len() == 54, "{answer:?}");
    }
    if answer.status == 200 {
        assert_eq!(answer.content_length(), *size, "{answer:?}");
    }
}

fn a_file_is_served_with_its_digest_as_its_version_however_often(host: Host) {
    let content = content();
    let (mut farm, reference) = farm_with(host, &content);
    for _ in 0..3 {
        let head = farm.ask_path("HEAD", &reference.path, &[]);
        assert_eq!(head.status, 200);
        assert_is(&head, &reference);
        let answer = farm.ask_path("GET", &reference.path, &[]);
        assert_is(&answer, &reference);
        assert!(answer.status == 200 && answer.body == content);
    }
    // of the bytes themselves, by Python's hashlib
    let expected = farm.peer.show(&format!(
        "'sha-256=:' + __import__('base64').b64encode(bytes.fromhex('{}')).decode() + ':'",
        reference.sha256
    ));
    let answer = farm.ask_path("GET", &reference.path, &[("Range", "bytes=5-9")]);
    assert_eq!(Some(expected.trim_matches('\'')), answer.header("repr-digest"));
}

fn ranges_of_a_file_are_served(host: Host) {
    let content = content();
    let (farm, reference) = farm_with(host, &content);
    let (len, tag) = (content.len(), format!("\"{}\"", reference.sha256));
    for (range, from, to) in [
        ("bytes=0-", 0, len),
        ("bytes=0-0", 0, 1),
        ("bytes=1000-1999", 1000, 2000),
        ("bytes=-1000", len - 1000, len),
        ("bytes=299999-", len - 1, len),
        ("bytes=5-99999999", 5, len),
    ] {
        for headers in [&[("Range", range)][..], &[("Range", range), ("If-Range", &tag)]] {
            let answer = farm.ask_path("GET", &reference.path, headers);
            assert_eq!(answer.status, 206, "{range}: {answer:?}");
            assert_is(&answer, &reference);
            let expected = format!("bytes {from}-{}/{len}", to - 1);
            assert_eq!(answer.header("content-range"), Some(expected.as_str()));
            assert!(answer.body == content[from..to], "{range}");
        }
    }
    for headers in [
        &[("Range", "bytes=100-"), ("If-Range", "\"other\"")][..],
        &[("Range", "bytes=0-1,5-6")],
        &[("Range", "lines=1-")],
    ] {
        let answer = farm.ask_path("GET", &reference.path, headers);
        assert!(answer.status == 200 && answer.body == content, "{headers:?}");
    }
    let answer = farm.ask_path("GET", &reference.path, &[("Range", "bytes=300000-")]);
    answer.failure(416);
    assert_eq!(answer.header("content-range"), Some("bytes */300000"));
    let head = farm.ask_path("HEAD", &reference.path, &[("Range", "bytes=5-9")]);
    assert_eq!((head.status, head.content_length()), (200, 300_000), "a range is defined for GET alone");
}

fn a_cache_is_told_that_its_copy_is_current(host: Host) {
    let (farm, reference) = farm_with(host, b"content");
    let tag = format!("\"{}\"", reference.sha256);
    for current in [tag.clone(), format!("W/{tag}"), "*".to_owned(), format!("\"other\", W/{tag} ,\"more\"")] {
        for method in ["GET", "HEAD"] {
            let mut connection = Connection::open(farm.http);
            connection.send_head(method, &reference.path, &[("If-None-Match", &current), ("Range", "bytes=0-1")]);
            let answer = connection.read_head();
            assert_eq!(answer.status, 304, "{current}: {answer:?}");
            assert_is(&answer, &reference);
            // no body follows
            let next = connection.request("GET", &reference.path, &[], b"");
            assert_eq!((next.status, &next.body[..]), (200, &b"content"[..]), "{current}");
        }
    }
    for other in ["\"other\"", "W/\"other\", \"more\"", &reference.sha256, ""] {
        let answer = farm.ask_path("GET", &reference.path, &[("If-None-Match", other)]);
        assert_eq!(answer.status, 200, "{other}: {answer:?}");
    }
}

fn if_match_of_another_version_is_answered_412(host: Host) {
    let (farm, reference) = farm_with(host, b"content");
    let tag = format!("\"{}\"", reference.sha256);
    for (condition, status) in [(tag.as_str(), 200), ("*", 200), ("\"other\"", 412), (&format!("W/{tag}"), 412)] {
        let answer = farm.ask_path("GET", &reference.path, &[("If-Match", condition)]);
        assert_eq!(answer.status, status, "{condition}: {answer:?}");
        assert_eq!(farm.ask_path("HEAD", &reference.path, &[("If-Match", condition)]).status, status, "{condition}");
    }
    farm.ask_path("GET", &reference.path, &[("If-Match", "\"other\""), ("If-None-Match", &tag)]).failure(412);
}

fn what_no_message_has_referred_to_is_answered_404(host: Host) {
    let mut farm = Farm::on(host);
    farm.blend_file("scene.blend", b"content");
    farm.blend_file("other.blend", b"other");
    let (reference, other) = (referred(&farm, b"content"), referred(&farm, b"other"));
    farm.ask_path("GET", &reference.path, &[]).failure(404);
    farm.leave_blend("as-bytes", "other.blend");
    assert!(farm.fetch_value("as-bytes").contains("b'other'"));
    hand_out(&mut farm, "scene.blend");
    assert_eq!(farm.ask_path("GET", &reference.path, &[]).status, 200);
    let upper = reference.sha256.to_uppercase();
    let blends = |digest: &str| farm.worker_path(&format!("/blends/{digest}"));
    for path in [
        other.path,
        blends(""),
        blends(&upper),
        blends(&reference.sha256[1..]),
        blends(&format!("{}0", reference.sha256)),
        blends(&format!("{}/", reference.sha256)),
        blends(&format!("x/{}", reference.sha256)),
        blends(&format!("{}g", &reference.sha256[..63])),
        blends("scene.blend"),
        blends("..%2f..%2fetc%2fpasswd"),
        blends(&"%00".repeat(64)),
        blends(&"%ff".repeat(32)),
    ] {
        let error = farm.ask_path("GET", &path, &[]).failure(404);
        assert!(!error.contains(farm.setup().blend_root().to_str().expect("UTF-8")), "{error}");
        assert_eq!(farm.ask_path("HEAD", &path, &[]).status, 404, "{path}");
    }
}

fn only_get_and_head_are_allowed(host: Host) {
    let (farm, reference) = farm_with(host, b"content");
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let answer = farm.ask_path(method, &reference.path, &[]);
        answer.failure(405);
        assert_eq!(answer.header("allow"), Some("GET, HEAD"), "{method}");
    }
}

fn a_file_that_has_changed_is_answered_404_until_it_is_as_before(host: Host) {
    let (mut farm, reference) = farm_with(host, b"content");
    let path = farm.setup().blend_root().join("scene.blend");
    let status = |farm: &Farm| farm.ask_path("GET", &reference.path, &[]).status;
    fs::rename(&path, path.with_extension("old")).expect("renamed");
    farm.ask_path("GET", &reference.path, &[]).failure(404);
    for other in [&b"CONTENT"[..], b"longer content"] {
        fs::write(&path, other).expect("another file");
        farm.ask_path("GET", &reference.path, &[]).failure(404);
        farm.ask_path("HEAD", &reference.path, &[("If-None-Match", "*")]).failure_head(404);
    }
    // a new file with the same bytes
    fs::write(&path, b"content").expect("the file");
    assert_eq!(status(&farm), 200);
    let file = fs::OpenOptions::new().write(true).open(&path).expect("the file");
    file.set_modified(SystemTime::now() - Duration::from_secs(3600)).expect("touched");
    assert_eq!(status(&farm), 200);
    fs::remove_file(&path).expect("removed");
    assert_eq!(status(&farm), 404);
    fs::create_dir(&path).expect("a folder");
    assert_eq!(status(&farm), 404);

    // a second file with these bytes, under another path
    fs::remove_dir(&path).expect("removed");
    fs::write(&path, b"content").expect("the file");
    let copy = farm.blend_file("copy.blend", b"content");
    hand_out(&mut farm, "copy.blend");
    fs::remove_file(&copy).expect("removed");
    assert_eq!(status(&farm), 200, "the first file is still there");
    fs::remove_file(&path).expect("removed");
    assert_eq!(status(&farm), 404);
}

fn references_survive_a_restart_and_kill_9_and_digests_are_not_computed_again(host: Host) {
    let (mut farm, reference) = farm_with(host, b"content");
    for kill in [true, false, true] {
        if kill {
            farm.kill9();
        } else {
            farm.stop();
        }
        farm.server.restart();
        let answer = farm.ask_path("GET", &reference.path, &[]);
        assert!(answer.status == 200 && answer.body == b"content", "{answer:?}");
        hand_out(&mut farm, "scene.blend");
        assert!(!farm.log().contains("computed SHA-256"), "{}", farm.log());
    }
}

#[test]
fn a_reference_ends_with_the_buffers_ttl_and_another_message_renews_it() {
    let mut farm = Farm::with(&["--buffer-ttl", "3s"]);
    farm.blend_file("scene.blend", b"content");
    let reference = referred(&farm, b"content");
    hand_out(&mut farm, "scene.blend");
    let renewed = std::time::Instant::now();
    hand_out(&mut farm, "scene.blend");
    eventually("the reference ends", SOON, || {
        let answer = farm.ask_path("GET", &reference.path, &[]);
        holds(answer.status == 404, answer)
    });
    assert!(renewed.elapsed() > Duration::from_millis(2900), "{:?}", renewed.elapsed());
    farm.kill9();
    farm.server.restart();
    assert_eq!(farm.ask_path("GET", &reference.path, &[]).status, 404);
    hand_out(&mut farm, "scene.blend");
    assert_eq!(farm.ask_path("GET", &reference.path, &[]).status, 200);
}

#[test]
fn a_download_breaks_off_where_the_file_changes() {
    let len = 64 << 20;
    let mut farm = Farm::start();
    let path = farm.sparse_blend_file("scene.blend", len);
    farm.leave_blend("id-1", "scene.blend");
    let answer = farm.ask("GET", "id-1", &[PREFER]);
    let value = farm.peer.loads(&answer.body);
    let at = value.split("'PATH': '").nth(1).and_then(|rest| rest.split('\'').next()).expect("a path").to_owned();
    let mut connection = Connection::open(farm.http);
    connection.send_head("GET", &at, &[]);
    assert_eq!(connection.read_head().content_length(), len);
    connection.read_exact(1 << 20);
    let file = fs::OpenOptions::new().write(true).open(&path).expect("the file");
    std::os::unix::fs::FileExt::write_all_at(&file, b"changed", len - 10).expect("written");
    let mut left = len - (1 << 20);
    let mut buffer = vec![0; 1 << 20];
    while left > 0 {
        match connection.read(&mut buffer) as u64 {
            0 => break,
            read => left -= read,
        }
    }
    assert!(left > 0, "all of it arrived");
    assert_eq!(farm.ask_path("GET", &at, &[]).status, 404);
}

#[test]
fn tokens_of_workers_apply_to_files() {
    let setup = Setup::default();
    let tokens = setup.path("tokens");
    fs::write(&tokens, "a-token-of-a-worker\n").expect("a file of tokens");
    let mut farm = Farm::of(setup.args(["--worker-token-file", tokens.to_str().expect("UTF-8")]));
    farm.blend_file("scene.blend", b"content");
    farm.leave_blend("id-1", "scene.blend");
    let reference = referred(&farm, b"content");
    let bearer = ("Authorization", "Bearer a-token-of-a-worker");
    for path in [reference.path.as_str(), "/blends/x"] {
        assert_eq!(farm.ask_path("GET", path, &[]).status, 401);
        assert_eq!(farm.ask_path("GET", path, &[("Authorization", "Bearer another")]).status, 401);
    }
    assert_eq!(farm.ask("GET", "id-1", &[PREFER, bearer]).status, 200);
    assert_eq!(farm.ask_path("HEAD", &reference.path, &[]).status, 401);
    assert_eq!(farm.ask_path("GET", &reference.path, &[("If-None-Match", "*")]).status, 401);
    let answer = farm.ask_path("GET", &reference.path, &[bearer]);
    assert_eq!((answer.status, &answer.body[..]), (200, &b"content"[..]));
}

/// Runs a program in a folder. It must succeed.
#[track_caller]
fn run(folder: &Path, program: &str, args: &[&str]) -> Output {
    let output = Command::new(program).args(args).current_dir(folder).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}; run ./tests/run once, it installs it"));
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
    output
}

#[test]
fn curl_wget_and_aria2_download_resume_and_revalidate_a_file_over_tls_with_a_token() {
    let (ca, setup) = (Ca::new(), Setup::default());
    let [cert, key] = ca.issue_files("worker");
    let tokens = setup.path("tokens");
    fs::write(&tokens, "a-token-of-a-worker\n").expect("a file of tokens");
    let (ca, downloads) = (ca.path(), setup.path("downloads"));
    fs::create_dir(&downloads).expect("a folder");
    let tokens = tokens.to_str().expect("UTF-8").to_owned();
    let setup = setup.args(["--http-tls-cert", &cert, "--http-tls-key", &key, "--worker-token-file", &tokens]);
    let mut farm = Farm::of(setup);
    let content: Vec<u8> = (0..3_000_000_u32).map(|at| (at * 31 % 253) as u8).collect();
    farm.blend_file("scene.blend", &content);
    farm.leave_blend("id-1", "scene.blend");
    let (ca, base) = (ca.to_str().expect("UTF-8"), format!("https://{}", farm.http));
    let auth = "Authorization: Bearer a-token-of-a-worker";
    let curl = |args: &[&str]| run(&downloads, "curl", &[&["-sSf", "--cacert", ca, "-H", auth], args].concat());

    let message = curl(&["-H", "Prefer: blend-reference", &format!("{base}/?bufferUUID=id-1")]).stdout;
    let reference = referred(&farm, &content);
    assert!(farm.peer.loads(&message).contains(&reference.path), "{reference:?}");
    let url = format!("{base}{}", reference.path);

    let begin = |name: &str, len: usize| fs::write(downloads.join(name), &content[..len]).expect("a begun download");
    let is_whole = |name: &str| fs::read(downloads.join(name)).expect("the download") == content;
    assert_eq!(curl(&["--range", "1000-1999", &url]).stdout, content[1000..2000]);
    begin("curl", 1_000_000);
    curl(&["-C", "-", "-o", "curl", &url]);
    assert!(is_whole("curl"));
    curl(&["--etag-save", "etag", "-o", "saved", &url]);
    assert!(is_whole("saved"));
    let status = curl(&["--etag-compare", "etag", "-o", "again", "-w", "%{http_code}", &url]).stdout;
    assert_eq!(status, b"304");
    let status = curl(&["-I", "-H", "If-None-Match: W/\"x\", *", "-w", "%{http_code}", "-o", "head", &url]).stdout;
    assert_eq!(status, b"304");

    let wget = ["-q", "--ca-certificate", ca, "--header", auth, "-c", "-O", "wget", &url];
    begin("wget", 1_234_567);
    run(&downloads, "wget", &wget);
    assert!(is_whole("wget"));
    // all of it is there: 416
    run(&downloads, "wget", &wget);
    assert!(is_whole("wget"));

    let digest = format!("--checksum=sha-256={}", reference.sha256);
    let ca_option = format!("--ca-certificate={ca}");
    let header = format!("--header={auth}");
    let aria2 = ["-q", "--no-conf", &ca_option, &header, &digest, "-c", "-x4", "-s4", "-k1M", "-o", "aria2", &url];
    run(&downloads, "aria2c", &aria2);
    assert!(is_whole("aria2"));
    begin("aria2", 2_000_000);
    run(&downloads, "aria2c", &aria2);
    assert!(is_whole("aria2"));
}
