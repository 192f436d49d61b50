//! Which ranges deliver a message: those that leave no gap. Nobody can have received what no answer has carried.

use std::fs;
use std::process::Command;

use crate::harness::{Farm, Host, Response, SOON, eventually, for_each_host};

for_each_host! {
    a_range_whose_beginning_nobody_has_received_consumes_nothing,
    curl_onto_a_stale_partial_file_consumes_nothing_and_onto_a_fresh_one_delivers,
    a_transfer_that_breaks_off_counts_for_the_next_range_and_only_as_far_as_it_came,
    ranges_in_order_deliver_the_message_with_the_last,
    ranges_out_of_order_deliver_when_the_last_byte_follows_without_a_gap,
    if_range_proves_what_comes_before_and_what_follows_counts_from_there,
    what_was_handed_over_of_a_message_does_not_count_for_the_one_that_replaces_it,
    what_was_handed_over_of_a_blend_file_does_not_count_for_its_next_version,
    after_a_restart_a_worker_that_resumes_has_to_name_the_version,
    if_match_that_names_another_version_is_answered_412_and_consumes_nothing,
    if_none_match_delivers_all_the_same_since_nobody_may_have_kept_the_message,
    a_head_request_with_a_range_gives_the_whole_size_and_delivers_nothing,
    several_ranges_at_once_give_the_whole_message,
    no_proxy_keeps_a_delivery_or_takes_it_in_at_once,
}

/// The length of the .blend file in the message.
const BLEND_LEN: usize = 300_000;
/// More than what the sockets between server and worker hold, so that a transfer can break off in the middle.
const LARGE: u64 = 64 << 20;

/// A farm with a message that holds a .blend file, and the length of its answer.
fn farm_with_message(host: Host) -> (Farm, u64) {
    let mut farm = Farm::on(host);
    farm.blend_file("scene.blend", &[7; BLEND_LEN]);
    farm.leave_blend("id-1", "scene.blend");
    let len = farm.ask("HEAD", "id-1", &[]).content_length();
    (farm, len)
}

#[track_caller]
fn etag(farm: &Farm) -> String {
    let head = farm.ask("HEAD", "id-1", &[]);
    head.header("etag").unwrap_or_else(|| panic!("no ETag: {head:?}")).to_owned()
}

/// Asks for a range, which must be answered with a part.
#[track_caller]
fn part(farm: &Farm, range: &str, headers: &[(&str, &str)]) -> Response {
    let range = format!("bytes={range}");
    let answer = farm.ask("GET", "id-1", &[&[("Range", range.as_str())], headers].concat());
    assert_eq!(answer.status, 206, "{range}: {answer:?}");
    answer
}

/// Checks that the message is still there, without delivering it.
#[track_caller]
fn assert_there(farm: &Farm, why: &str) {
    let head = farm.ask("HEAD", "id-1", &[]);
    assert_eq!(head.status, 200, "{why}: {head:?}");
}

/// Starts to fetch a message, reads its first `len` bytes, and hangs up.
fn break_off(farm: &Farm, len: usize) -> Vec<u8> {
    let (mut connection, _) = farm.begin_fetch("id-1");
    connection.read_exact(len)
}

fn a_range_whose_beginning_nobody_has_received_consumes_nothing(host: Host) {
    let (mut farm, len) = farm_with_message(host);
    for range in ["1-", "1000-", "-500", &format!("{}-", len - 1), &format!("2-{}", len - 1)] {
        part(&farm, range, &[]);
        assert_there(&farm, range);
    }
    assert_eq!(farm.fetch("id-1").length, len);
    farm.expect_no_message("id-1");
}

fn curl_onto_a_stale_partial_file_consumes_nothing_and_onto_a_fresh_one_delivers(host: Host) {
    let mut farm = Farm::on(host);
    farm.sparse_blend_file("scene.blend", LARGE);
    farm.leave_blend("id-1", "scene.blend");
    let len = farm.ask("HEAD", "id-1", &[]).content_length();
    let file = farm.setup().path("partial");
    let url = format!("{}?bufferUUID=id-1", farm.worker_url());
    let resume = |content: &[u8]| {
        fs::write(&file, content).expect("a partial file");
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--fail", "--continue-at", "-", "--output"]).arg(&file).arg(&url);
        let output = curl.output().expect("curl");
        if output.status.success() { Ok(fs::metadata(&file).expect("the file").len()) } else { Err(output) }
    };
    assert_eq!(resume(&[9; 1_000_000]).expect("the rest"), len);
    assert_there(&farm, "the first million bytes were of another message");

    let received = break_off(&farm, 1_000_000);
    let resumed = eventually("the broken transfer has ended", SOON, || resume(&received));
    assert_eq!(resumed, len);
    farm.expect_no_message("id-1");
}

fn a_transfer_that_breaks_off_counts_for_the_next_range_and_only_as_far_as_it_came(host: Host) {
    let mut farm = Farm::on(host);
    farm.sparse_blend_file("scene.blend", LARGE);
    farm.leave_blend("id-1", "scene.blend");
    let len = farm.ask("HEAD", "id-1", &[]).content_length();
    drop(break_off(&farm, 1_000_000));
    let resume = |from: u64| {
        let range = format!("bytes={from}-");
        eventually("the broken transfer has ended", SOON, || {
            let answer = farm.ask("GET", "id-1", &[("Range", &range)]);
            if answer.status == 206 { Ok(answer.body.len() as u64) } else { Err(answer.status) }
        })
    };
    assert_eq!(resume(len - 1000), 1000);
    assert_there(&farm, "what comes before has not been handed over");
    assert_eq!(resume(1_000_000), len - 1_000_000);
    farm.expect_no_message("id-1");
}

fn ranges_in_order_deliver_the_message_with_the_last(host: Host) {
    let (mut farm, len) = farm_with_message(host);
    let mut body = Vec::new();
    for start in (0..len).step_by(100_000) {
        assert_there(&farm, "before the last part");
        // each begins a little before what is missing
        let from = start.saturating_sub(10);
        let answer = part(&farm, &format!("{from}-{}", (start + 99_999).min(len - 1)), &[]);
        body.extend_from_slice(&answer.body[(start - from) as usize..]);
    }
    assert_eq!(body.len() as u64, len);
    assert!(farm.peer.loads(&body).contains("EXTRACT_BLEND_FILE_FROM_PATH"), "one message");
    farm.expect_no_message("id-1");
}

fn ranges_out_of_order_deliver_when_the_last_byte_follows_without_a_gap(host: Host) {
    let (mut farm, len) = farm_with_message(host);
    part(&farm, "200000-", &[]);
    part(&farm, "0-99999", &[]);
    part(&farm, "100001-", &[]);
    assert_there(&farm, "byte 100,000 is missing");
    part(&farm, "0-9", &[]);
    part(&farm, "50000-199999", &[]);
    assert_there(&farm, "the end has not followed yet");
    part(&farm, &format!("200000-{}", len + 1000), &[]);
    farm.expect_no_message("id-1");
}

fn if_range_proves_what_comes_before_and_what_follows_counts_from_there(host: Host) {
    let (mut farm, _) = farm_with_message(host);
    let tag = etag(&farm);
    part(&farm, "200000-249999", &[("If-Range", &tag)]);
    assert_there(&farm, "the end is missing");
    part(&farm, "250000-", &[]);
    farm.expect_no_message("id-1");
}

fn what_was_handed_over_of_a_message_does_not_count_for_the_one_that_replaces_it(host: Host) {
    let (mut farm, len) = farm_with_message(host);
    part(&farm, &format!("0-{}", len - 2), &[]);
    farm.leave_blend("id-1", "scene.blend");
    part(&farm, &format!("{}-", len - 1), &[]);
    assert_there(&farm, "it is another message");
}

fn what_was_handed_over_of_a_blend_file_does_not_count_for_its_next_version(host: Host) {
    let (farm, len) = farm_with_message(host);
    part(&farm, &format!("0-{}", len - 2), &[]);
    farm.blend_file("scene.blend", &[8; BLEND_LEN + 1]);
    part(&farm, &format!("{}-", len - 1), &[]);
    assert_there(&farm, "it is another file");
}

fn after_a_restart_a_worker_that_resumes_has_to_name_the_version(host: Host) {
    let (mut farm, len) = farm_with_message(host);
    let tag = etag(&farm);
    part(&farm, "0-199999", &[]);
    farm.kill9();
    farm.server.restart();
    part(&farm, "200000-", &[]);
    assert_there(&farm, "nothing is remembered");
    let rest = part(&farm, "200000-", &[("If-Range", &tag)]);
    assert_eq!(rest.body.len() as u64, len - 200_000);
    farm.expect_no_message("id-1");
}

fn if_match_that_names_another_version_is_answered_412_and_consumes_nothing(host: Host) {
    let (mut farm, len) = farm_with_message(host);
    let tag = etag(&farm);
    for condition in ["\"another\"", &format!("W/{tag}"), "\"one\", \"two\"", "garbage", ""] {
        let headers = [("If-Match", condition), ("Range", "bytes=0-")];
        let answer = farm.ask("GET", "id-1", &headers);
        assert_eq!((answer.status, answer.header("etag")), (412, Some(tag.as_str())), "{condition}: {answer:?}");
        assert_eq!(answer.header("content-type"), Some("application/octet-stream"));
        let value = farm.peer.loads(&answer.body);
        assert!(value.starts_with("{'message': ") && value.contains("If-Match"), "{value}");
        let head = farm.ask("HEAD", "id-1", &headers);
        assert_eq!((head.status, head.header("etag")), (412, Some(tag.as_str())), "{condition}: {head:?}");
    }
    for list in ["*", "TAG", "\"another\", TAG"] {
        let condition = list.replace("TAG", &etag(&farm));
        assert_eq!(farm.ask("HEAD", "id-1", &[("If-Match", &condition)]).status, 200, "{condition}");
        let answer = farm.ask("GET", "id-1", &[("If-Match", &condition)]);
        assert_eq!((answer.status, answer.body.len() as u64), (200, len), "{condition}");
        farm.expect_no_message("id-1");
        farm.leave_blend("id-1", "scene.blend");
    }
}

fn if_none_match_delivers_all_the_same_since_nobody_may_have_kept_the_message(host: Host) {
    let (mut farm, _) = farm_with_message(host);
    let tag = etag(&farm);
    assert_eq!(farm.ask("GET", "id-1", &[("If-None-Match", &tag)]).status, 200);
    farm.expect_no_message("id-1");
}

fn a_head_request_with_a_range_gives_the_whole_size_and_delivers_nothing(host: Host) {
    let (farm, len) = farm_with_message(host);
    let tag = etag(&farm);
    for range in ["bytes=0-", "bytes=10-20", &format!("bytes={len}-")] {
        let head = farm.ask("HEAD", "id-1", &[("Range", range), ("If-Range", &tag)]);
        assert_eq!((head.status, head.content_length()), (200, len), "{range}: {head:?}");
    }
    assert_there(&farm, "HEAD delivers nothing");
}

fn several_ranges_at_once_give_the_whole_message(host: Host) {
    let (mut farm, len) = farm_with_message(host);
    let answer = farm.ask("GET", "id-1", &[("Range", "bytes=0-9,20-29")]);
    assert_eq!((answer.status, answer.body.len() as u64), (200, len));
    farm.expect_no_message("id-1");
}

fn no_proxy_keeps_a_delivery_or_takes_it_in_at_once(host: Host) {
    let (mut farm, _) = farm_with_message(host);
    farm.leave("id-2", "'short'");
    for (method, uuid, headers) in [
        ("GET", "id-1", &[("Range", "bytes=1-")][..]),
        ("HEAD", "id-1", &[]),
        ("GET", "id-1", &[]),
        ("GET", "id-2", &[]),
    ] {
        let answer = farm.ask(method, uuid, headers);
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{answer:?}");
        assert_eq!(answer.header("x-accel-buffering"), Some("no"), "{answer:?}");
    }
}
