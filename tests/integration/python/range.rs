//! `Range: bytes=N-` on `GET /?bufferUUID=ID`: a broken transfer goes on where it broke.

use crate::harness::{Farm, Host, Response, for_each_host};

for_each_host! {
    a_range_from_any_offset_gives_the_remaining_bytes_of_the_same_message,
    a_range_that_ends_before_the_last_byte_leaves_the_message,
    a_range_that_breaks_off_leaves_the_message_and_its_last_byte_delivers_it,
    an_etag_is_strong_and_stays_while_the_message_stays,
    an_etag_changes_with_the_message,
    an_etag_changes_with_the_blend_file,
    if_range_with_the_messages_etag_resumes,
    if_range_with_another_etag_or_a_weak_one_or_a_date_gives_the_whole,
    a_range_past_the_end_is_answered_416_and_delivers_nothing,
    a_range_in_words_that_nobody_knows_gives_the_whole,
    a_range_of_no_message_is_answered_no_buffer_message,
    the_server_says_that_it_accepts_ranges,
}

const BLEND_LEN: usize = 300_000;

/// A farm with a message that holds a .blend file, its answer's bytes, and its ETag.
fn farm_with_message(host: Host) -> (Farm, Vec<u8>, String) {
    let mut farm = Farm::on(host);
    let content: Vec<u8> = (0..BLEND_LEN).map(|at| (at % 251) as u8).collect();
    farm.blend_file("scene.blend", &content);
    farm.leave_blend("id-1", "scene.blend");
    let tag = strong_etag(&farm.ask("HEAD", "id-1", &[]));
    let (mut connection, head) = farm.begin_fetch("id-1");
    let whole = connection.read_exact(head.content_length() as usize);
    farm.leave_blend("id-1", "scene.blend");
    (farm, whole, tag)
}

#[track_caller]
fn strong_etag(answer: &Response) -> String {
    let tag = answer.header("etag").unwrap_or_else(|| panic!("no ETag: {answer:?}"));
    assert!(tag.starts_with('"') && tag.ends_with('"') && tag.len() > 2, "not strong: {tag}");
    tag.to_owned()
}

#[track_caller]
fn assert_part(answer: &Response, whole: &[u8], from: usize) {
    assert_eq!(answer.status, 206, "{answer:?}");
    let range = format!("bytes {from}-{}/{}", whole.len() - 1, whole.len());
    assert_eq!(answer.header("content-range"), Some(range.as_str()));
    assert_eq!(answer.content_length() as usize, whole.len() - from);
    assert!(answer.body == whole[from..], "the bytes from {from} on");
}

fn a_range_from_any_offset_gives_the_remaining_bytes_of_the_same_message(host: Host) {
    let (mut farm, whole, _) = farm_with_message(host);
    let blend_ends = whole.len() - 3;
    for from in [0, 1, 2, 50, 200, 1000, 65_536, 150_000, blend_ends, whole.len() - 2, whole.len() - 1] {
        let tag = strong_etag(&farm.ask("HEAD", "id-1", &[]));
        let answer = farm.ask("GET", "id-1", &[("Range", &format!("bytes={from}-")), ("If-Range", &tag)]);
        assert_part(&answer, &whole, from);
        farm.expect_no_message("id-1");
        farm.leave_blend("id-1", "scene.blend");
    }
}

fn a_range_that_ends_before_the_last_byte_leaves_the_message(host: Host) {
    let (mut farm, whole, _) = farm_with_message(host);
    for (from, to) in [(0, 0), (0, 99), (1000, 150_000), (0, whole.len() - 2)] {
        let answer = farm.ask("GET", "id-1", &[("Range", &format!("bytes={from}-{to}"))]);
        assert_eq!(answer.status, 206, "{answer:?}");
        let range = format!("bytes {from}-{to}/{}", whole.len());
        assert_eq!(answer.header("content-range"), Some(range.as_str()));
        assert!(answer.body == whole[from..=to], "the bytes from {from} to {to}");
    }
    let answer = farm.ask("GET", "id-1", &[("Range", &format!("bytes=1-{}", whole.len()))]);
    assert_part(&answer, &whole, 1);
    farm.expect_no_message("id-1");
}

fn a_range_that_breaks_off_leaves_the_message_and_its_last_byte_delivers_it(host: Host) {
    let mut farm = Farm::on(host);
    let len = 32 << 20;
    farm.sparse_blend_file("scene.blend", len);
    farm.leave_blend("id-1", "scene.blend");
    let (mut connection, head) = farm.begin_fetch("id-1");
    let tag = strong_etag(&head);
    let received = connection.read_exact(1_000_000);
    drop(connection);
    let rest = crate::harness::eventually("the broken transfer has ended", crate::harness::SOON, || {
        let range = format!("bytes={}-", received.len());
        let answer = farm.ask("GET", "id-1", &[("Range", &range), ("If-Range", &tag)]);
        if answer.status == 206 { Ok(answer.body) } else { Err(answer) }
    });
    assert_eq!((received.len() + rest.len()) as u64, head.content_length());
    let value = [received, rest].concat();
    let blend = value.iter().filter(|&&byte| byte == 0).count() as u64;
    assert!(blend >= len, "the file's {len} zeros, {blend} of them came");
    farm.expect_no_message("id-1");
}

fn an_etag_is_strong_and_stays_while_the_message_stays(host: Host) {
    let mut farm = Farm::on(host);
    farm.leave("id-1", "'x' * 1000");
    let tag = strong_etag(&farm.ask("HEAD", "id-1", &[]));
    assert_eq!(strong_etag(&farm.ask("HEAD", "id-1", &[])), tag);
    farm.kill9();
    farm.server.restart();
    assert_eq!(strong_etag(&farm.ask("HEAD", "id-1", &[])), tag, "after a restart");
    assert_eq!(strong_etag(&farm.ask("GET", "id-1", &[])), tag);
}

fn an_etag_changes_with_the_message(host: Host) {
    let mut farm = Farm::on(host);
    farm.leave("id-1", "'x' * 1000");
    let tag = strong_etag(&farm.ask("HEAD", "id-1", &[]));
    farm.leave("id-1", "'y' * 1000");
    assert_ne!(strong_etag(&farm.ask("HEAD", "id-1", &[])), tag);
}

fn an_etag_changes_with_the_blend_file(host: Host) {
    let mut farm = Farm::on(host);
    farm.blend_file("scene.blend", &[1; 1000]);
    farm.leave_blend("id-1", "scene.blend");
    let tag = strong_etag(&farm.ask("HEAD", "id-1", &[]));
    assert_eq!(strong_etag(&farm.ask("HEAD", "id-1", &[])), tag);
    farm.blend_file("scene.blend", &[2; 1001]);
    assert_ne!(strong_etag(&farm.ask("HEAD", "id-1", &[])), tag);
    let answer = farm.ask("GET", "id-1", &[("Range", "bytes=500-"), ("If-Range", &tag)]);
    assert_eq!(answer.status, 200, "the first half would be of another file: {answer:?}");
}

fn if_range_with_the_messages_etag_resumes(host: Host) {
    let (farm, whole, _) = farm_with_message(host);
    let tag = strong_etag(&farm.ask("HEAD", "id-1", &[]));
    let answer = farm.ask("GET", "id-1", &[("Range", "bytes=100000-"), ("If-Range", &tag)]);
    assert_part(&answer, &whole, 100_000);
}

fn if_range_with_another_etag_or_a_weak_one_or_a_date_gives_the_whole(host: Host) {
    let (mut farm, whole, _) = farm_with_message(host);
    let tag = strong_etag(&farm.ask("HEAD", "id-1", &[]));
    for condition in ["\"another\"", &format!("W/{tag}"), "Wed, 21 Oct 2015 07:28:00 GMT", "garbage"] {
        let answer = farm.ask("GET", "id-1", &[("Range", "bytes=100000-"), ("If-Range", condition)]);
        assert_eq!(answer.status, 200, "{condition}: {answer:?}");
        assert!(answer.body == whole, "{condition}: the whole message");
        farm.leave_blend("id-1", "scene.blend");
    }
}

fn a_range_past_the_end_is_answered_416_and_delivers_nothing(host: Host) {
    let (mut farm, whole, _) = farm_with_message(host);
    for from in [whole.len(), whole.len() + 1, usize::MAX] {
        let answer = farm.ask("GET", "id-1", &[("Range", &format!("bytes={from}-"))]);
        assert_eq!(answer.status, 416, "{answer:?}");
        assert_eq!(answer.header("content-range"), Some(format!("bytes */{}", whole.len()).as_str()));
    }
    assert_eq!(farm.fetch("id-1").status, 200);
}

fn a_range_in_words_that_nobody_knows_gives_the_whole(host: Host) {
    let (mut farm, whole, _) = farm_with_message(host);
    for range in ["lines=5-", "bytes=x-", "bytes", "bytes=10-5"] {
        let answer = farm.ask("GET", "id-1", &[("Range", range)]);
        assert_eq!(answer.status, 200, "{range}: {answer:?}");
        assert!(answer.body == whole, "{range}: the whole message");
        farm.leave_blend("id-1", "scene.blend");
    }
}

fn a_range_of_no_message_is_answered_no_buffer_message(host: Host) {
    let farm = Farm::on(host);
    assert_eq!(farm.ask("GET", "id-1", &[("Range", "bytes=5-")]).status, 400);
}

fn the_server_says_that_it_accepts_ranges(host: Host) {
    let mut farm = Farm::on(host);
    farm.leave("id-1", "1");
    assert_eq!(farm.ask("HEAD", "id-1", &[]).header("accept-ranges"), Some("bytes"));
}
