//! `Repr-Digest` (RFC 9530) of delivered messages.

use sfv::{DictSerializer, key_ref};
use sha2::{Digest, Sha256};

use crate::harness::{Farm, Host, Response};

fn sha_256(body: &[u8]) -> String {
    let mut dictionary = DictSerializer::new();
    dictionary.bare_item(key_ref("sha-256"), &Sha256::digest(body)[..]);
    dictionary.finish().expect("a member")
}

#[track_caller]
fn digest(answer: &Response) -> &str {
    let mut digests = answer.headers.iter().filter(|(name, _)| name == "repr-digest");
    let (Some((_, digest)), None) = (digests.next(), digests.next()) else { panic!("{answer:?}") };
    digest
}

#[test]
fn every_answer_for_a_message_has_the_digest_of_the_whole_message() {
    for host in [Host::Server, Host::Embedded] {
        let mut farm = Farm::on(host);
        // hashed when it is decoded, when it is first asked for, and from a file
        for data in ["'short'", "bytes(100_000)", "bytes(range(256)) * 6_000"] {
            let whole = farm.peer.dumps(data, 4);
            farm.leave_pickle("id-1", data, 4);
            let head = farm.ask("HEAD", "id-1", &[]);
            assert_eq!(head.status, 200, "{head:?}");
            let part = farm.ask("GET", "id-1", &[("Range", "bytes=0-4")]);
            assert_eq!((part.status, part.body.len()), (206, 5), "{part:?}");
            let get = farm.ask("GET", "id-1", &[]);
            assert_eq!(get.status, 200, "{get:?}");
            let expected = sha_256(&get.body);
            assert!(get.body.len() >= whole.len() / 2, "the message itself");
            for answer in [&head, &part, &get] {
                assert_eq!(digest(answer), expected, "{data}");
            }
        }
        let none = farm.ask("GET", "id-1", &[]);
        assert_eq!((none.status, none.header("repr-digest")), (400, None), "{none:?}");
    }
}

#[test]
fn a_digest_is_that_of_the_message_after_a_restart_and_after_a_later_message_has_replaced_it() {
    let mut farm = Farm::start();
    for (uuid, data) in [("id-1", "'short'"), ("id-2", "bytes(100_000)"), ("id-3", "bytes(range(256)) * 6_000")] {
        farm.leave_pickle(uuid, data, 4);
    }
    let digests = |farm: &Farm| ["id-1", "id-2", "id-3"].map(|uuid| digest(&farm.ask("HEAD", uuid, &[])).to_owned());
    let before = digests(&farm);
    farm.server.stop();
    farm.server.restart();
    assert_eq!(digests(&farm), before);
    for uuid in ["id-1", "id-2"] {
        farm.leave(uuid, "'later'");
    }
    for uuid in ["id-1", "id-2", "id-3"] {
        let answer = farm.ask("GET", uuid, &[]);
        assert_eq!(digest(&answer), sha_256(&answer.body), "{uuid}");
        assert_eq!(digest(&answer) == before[2], uuid == "id-3");
    }
}

#[test]
fn a_message_with_a_blend_file_has_no_digest() {
    let mut farm = Farm::start();
    farm.blend_file("scene.blend", b"the file");
    farm.leave_blend("id-1", "scene.blend");
    for method in ["HEAD", "GET"] {
        let answer = farm.ask(method, "id-1", &[]);
        assert_eq!((answer.status, answer.header("repr-digest")), (200, None), "{answer:?}");
    }
}
