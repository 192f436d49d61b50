//! What the server has, once it was started again; looked at without taking anything away, and in the end taken.

use super::content::{Fetched, Taken};
use super::load::Client;
use super::model::{Counts, Outbox};
use crate::harness::{Connection, SOON, Server, assert_balanced, eventually, holds};

/// Compares what the server has with what it may have.
#[track_caller]
pub fn survey(server: &Server, clients: &mut [Client], outbox: &mut Outbox, counts: &Counts) {
    let mut api = Connection::open(server.api);
    let mut found = Vec::new();
    loop {
        // The lease outlasts the listing, and ends soon after the load begins.
        let answer = api.request("GET", "/UserManager/NextMessage?lease=0.5", &[], b"");
        if answer.status == 204 {
            break;
        }
        assert_eq!(answer.status, 200, "{answer:?}");
        let taken = Taken::of(&answer);
        if taken.delivery_count == 1 {
            found.push(taken);
        }
    }
    outbox.survived(&found, counts);
    let mut buffered = 0;
    let mut http = Connection::open(server.http);
    for client in clients {
        for slot in 0..client.slots.len() {
            match peek(&mut http, &client.path(slot)) {
                Some(fetched) => {
                    buffered += 1;
                    client.slots[slot].survived(fetched, counts);
                }
                None => client.slots[slot].is_empty(counts),
            }
        }
    }
    assert_balanced(server.api);
    let ready = api.request("GET", "/readyz", &[], b"").json();
    let listed = (&ready["buffer"]["messages"], &ready["outbox"]["messages"]);
    assert_eq!(listed, (&buffered.into(), &found.len().into()), "there is something that nobody has sent: {ready}");
    counts.add("messages and frames held at restarts", buffered + found.len() as u64);
}

/// Reads a message but for its last byte, so that it stays.
#[track_caller]
fn peek(http: &mut Connection, path: &str) -> Option<Fetched> {
    let head = http.request("HEAD", path, &[], b"");
    if head.status == 400 {
        return None;
    }
    assert_eq!(head.status, 200, "{head:?}");
    let range = format!("bytes=0-{}", head.content_length() - 2);
    let mut part = http.request("GET", path, &[("Range", &range)], b"");
    assert_eq!(part.status, 206, "{part:?}");
    // a pickle's last byte is always STOP
    part.body.push(b'.');
    Some(Fetched::of(&part.body))
}

/// Takes everything, after a survey.
#[track_caller]
pub fn drain(server: &Server, clients: &mut [Client], outbox: &mut Outbox, counts: &Counts) {
    let mut http = Connection::open(server.http);
    for client in clients {
        for slot in 0..client.slots.len() {
            let path = client.path(slot);
            let answer = http.request("GET", &path, &[], b"");
            if client.slots[slot].is_filled() {
                assert_eq!(answer.status, 200, "an acknowledged message is lost: {path}, {answer:?}");
                client.slots[slot].fetched(Fetched::of(&answer.body), counts);
            } else {
                assert_eq!(answer.status, 400, "{answer:?}");
            }
        }
    }
    let mut api = Connection::open(server.api);
    loop {
        let asked_at = outbox.tick();
        let answer = api.request("GET", "/UserManager/NextMessage?wait=2", &[], b"");
        if answer.status == 204 {
            break;
        }
        let taken = Taken::of(&answer);
        outbox.taken(&taken, asked_at, counts);
        outbox.deleting(taken.label);
        let answer = api.request("DELETE", &format!("/UserManager/Messages/{}", taken.id), &[], b"");
        assert_eq!(answer.status, 204, "{answer:?}");
        outbox.deleted(taken.label, counts);
    }
    outbox.assert_empty();
    eventually("nothing is left", SOON, || {
        let ready = api.request("GET", "/readyz", &[], b"").json();
        let left = [&ready["buffer"], &ready["outbox"]].map(|part| (part["messages"].as_u64(), part["bytes"].as_u64()));
        holds(left == [(Some(0), Some(0)); 2], ready)
    });
}
