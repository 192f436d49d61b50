//! A record that is acknowledged is one that recovery reads.

use std::fs;
use std::path::Path;
use std::time::Duration;

use actix::{Addr, System};
use proptest::prelude::*;
use serde_json::json;
use user_http_actors::codec::{
    DecodeError, Format, UserMessage, decode_communication_interface_message, decode_user_message,
};
use user_http_actors::messages::{
    AddBufferMsg, Drain, GetOutboxState, LeaseBufferMsg, SendMessageToUserManager, TakeNextMessage,
};
use user_http_actors::store::log::LogStore;
use user_http_actors::store::{Change, Durable, MAX_META, NO_RECORD, OpenError, Recovered, Seq, Store};
use user_http_actors::system::OpenStore;
use user_http_actors::{BufferActor, UserManagerPublisher};

use crate::store::{body, compacted, open, put, reopened, segments};

#[test]
fn a_commit_with_a_record_that_recovery_would_not_read_makes_nothing_and_later_ones_succeed() {
    let directory = tempfile::tempdir().expect("a directory");
    let (mut store, _) = open(directory.path());
    let long = "m".repeat(MAX_META + 1);
    let error = store.commit(&[put(1, "meta", b"first"), put(2, &long, b"second")], Durable::Now).expect_err("refused");
    assert!(error.to_string().contains("65537 bytes; at most 65536"), "{error}");
    store.commit(&[put(3, "meta", b"third")], Durable::Now).expect("committed");
    drop(store);
    assert_eq!(reopened(directory.path()).into_keys().collect::<Vec<_>>(), [3]);
}

/// A segment as version 0.1.0 wrote it, which did not look at the length of a meta.
fn segment_of_an_earlier_version(next_seq: Seq, records: &[(Seq, &[u8])]) -> Vec<u8> {
    let salt = 0x1234_5678_u32.to_le_bytes();
    let number = |number: u64| number.to_le_bytes();
    let mut segment = [&b"UHSLOG"[..], &2_u16.to_le_bytes(), &number(1), &number(next_seq), &salt].concat();
    for (seq, meta) in records {
        let body = b"body";
        let kind = 257_u32.to_le_bytes();
        let (meta_len, body_crc) = ((meta.len() as u32).to_le_bytes(), crc32c::crc32c(body).to_le_bytes());
        let head = [&kind[..], &number(*seq), &meta_len, &body_crc, &number(4)].concat();
        let crc = crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(&salt), &head), meta);
        segment.extend([&crc.to_le_bytes(), &head[..], meta, body].concat());
    }
    segment
}

#[test]
fn a_store_in_which_an_earlier_version_has_kept_a_longer_meta_is_read_whole() {
    let long = json!({ "uuid": "job", "stored_at_ms": 1, "blend_at": 0, "blend_path": "p".repeat(70_000) }).to_string();
    let huge = "m".repeat(20 << 20);
    for metas in [[long.as_bytes(), b"after"], [b"before", long.as_bytes()], [huge.as_bytes(), long.as_bytes()]] {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join(format!("{:016}.log", 1));
        let segment = segment_of_an_earlier_version(1, &[(1, metas[0]), (2, metas[1])]);
        fs::write(&path, &segment).expect("writable");
        let (mut store, found) = open(directory.path());
        let found: Vec<_> = found.iter().map(|record| (record.meta.to_vec(), body(&record.body))).collect();
        assert_eq!(found, metas.map(|meta| (meta.to_vec(), b"body".to_vec())));
        store.commit(&[put(3, "later", b"third")], Durable::Now).expect("committed");
        drop(store);
        assert_eq!(reopened(directory.path()).len(), 3);
        // A record that a crash has torn is distinguished from it.
        let torn = tempfile::tempdir().expect("a directory");
        let path = torn.path().join(format!("{:016}.log", 1));
        fs::write(&path, &segment[..segment.len() - 5 - metas[1].len() / 2]).expect("writable");
        assert_eq!(reopened(torn.path()).len(), 1);
    }
}

#[test]
fn what_lives_of_an_earlier_version_is_moved_with_its_longer_meta() {
    let directory = tempfile::tempdir().expect("a directory");
    let long = vec![b'm'; 70_000];
    let path = directory.path().join(format!("{:016}.log", 1));
    fs::write(&path, segment_of_an_earlier_version(1, &[(1, &long)])).expect("writable");
    let (mut store, _) = open(directory.path());
    let large = vec![7; 1 << 20];
    for seq in 2..60 {
        store.commit(&[put(seq, "passing", &large)], Durable::Now).expect("committed");
        let removal = Change::Remove(if seq == 2 { NO_RECORD } else { seq - 1 });
        store.commit(&[removal], Durable::Now).expect("committed");
        compacted(&mut store);
    }
    drop(store);
    assert!(!path.exists(), "{:?}", segments(directory.path()));
    assert_eq!(reopened(directory.path())[&1].0.len(), 70_000);
}

#[test]
fn numbers_that_no_store_reaches_are_damage() {
    const MAX_SEQ: Seq = Seq::MAX / 2;
    for (next_seq, seq, is_sound) in [
        (1, Seq::MAX, false),
        (1, MAX_SEQ + 1, false),
        (Seq::MAX, 1, false),
        (MAX_SEQ + 1, 1, false),
        (1, MAX_SEQ, true),
        (MAX_SEQ, 1, true),
    ] {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join(format!("{:016}.log", 1));
        fs::write(&path, segment_of_an_earlier_version(next_seq, &[(seq, b"meta")])).expect("writable");
        match LogStore::open(directory.path()) {
            Ok((_, found)) => assert!(is_sound && found[0].seq == seq, "{next_seq} {seq}: {found:?}"),
            Err(OpenError::Damaged { what, .. }) => assert!(!is_sound && what.contains("number"), "{what}"),
            Err(error) => panic!("{next_seq} {seq}: {error}"),
        }
    }
}

/// Opens the log as soon as the thread that has it ends.
fn wait_until_open(directory: &Path) -> (LogStore, Vec<Recovered>) {
    loop {
        match LogStore::open(directory) {
            Ok(opened) => return opened,
            Err(OpenError::InUse(_)) => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
}

fn open_store(directory: &Path) -> OpenStore {
    let (store, recovered) = wait_until_open(directory);
    OpenStore::of_log("test", directory, store, recovered)
}

fn buffer(directory: &Path) -> Addr<BufferActor> {
    let actor = |store, found, _| BufferActor::new(store, found, 1 << 30, Duration::from_secs(3_600));
    open_store(directory).start(|_| {}, actor).expect("each record is known")
}

fn publisher(directory: &Path) -> Addr<UserManagerPublisher> {
    let actor = |store, found, address| UserManagerPublisher::new(store, found, 1 << 30, None, address);
    open_store(directory).start(|_| {}, actor).expect("each record is known")
}

/// Strings of the lengths and kinds that are near a bound somewhere: the longest, and what JSON or UTF-8 makes longer.
fn text() -> impl Strategy<Value = String> {
    let character =
        prop_oneof![Just('\0'), Just('\u{1f}'), Just('"'), Just('\\'), Just('é'), Just('\u{10ffff}'), any::<char>()];
    let len = prop_oneof![1..20_usize, 500..700_usize, 1_000..1_100_usize, 4_000..4_200_usize, Just(70_000)];
    prop_oneof!["\\PC{1,30}", (character, len).prop_map(|(character, len)| character.to_string().repeat(len))]
}

fn pickled(text: &str) -> Vec<u8> {
    [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
}

/// A pickle of a dict, whose values are pickles already.
fn pickled_dict(items: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let items = items.iter().flat_map(|(key, value)| [pickled(key), value.clone()].concat());
    [&b"}("[..], &items.collect::<Vec<u8>>(), b"u"].concat()
}

fn is_a_refusal(error: &DecodeError) -> bool {
    error.to_string().contains("4,096")
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(40) })]

    #[test]
    fn every_message_for_a_worker_that_is_taken_is_there_after_a_restart(uuid in text(), path in text(), pickle: bool) {
        let (format, message) = if pickle {
            let data = [("META_DATA", pickled("EXTRACT_BLEND_FILE_FROM_PATH")), ("BINARY_BLEND_FILE", pickled(&path))];
            let message = pickled_dict(&[("DATA", pickled_dict(&data))]);
            let data = [("BUFFER_UUID", pickled(&uuid)), ("BUFFER_MSG", message)];
            let message = pickled_dict(&[("TYPE", pickled("ADD_BUFFER_MSG")), ("DATA", pickled_dict(&data))]);
            (Format::Pickle, [&b"\x80\x02"[..], &message, b"."].concat())
        } else {
            let data = json!({ "META_DATA": "EXTRACT_BLEND_FILE_FROM_PATH", "BINARY_BLEND_FILE": path });
            let data = json!({ "BUFFER_UUID": uuid, "BUFFER_MSG": { "DATA": data } });
            (Format::Json, json!({ "TYPE": "ADD_BUFFER_MSG", "DATA": data }).to_string().into_bytes())
        };
        let decoded = decode_communication_interface_message(format, message);
        let fits = uuid.len() <= 4_096 && path.len() <= 4_096;
        prop_assert_eq!(decoded.is_ok(), fits);
        match decoded {
            Err(error) => prop_assert!(is_a_refusal(&error), "{}", error),
            Ok(decoded) => System::new().block_on(async {
                let directory = tempfile::tempdir().expect("a directory");
                let actor = buffer(directory.path());
                let buffer_uuid = uuid.as_str();
                let message = decoded.message.clone();
                let add = AddBufferMsg { buffer_uuid: buffer_uuid.into(), message, delivery: None };
                actor.send(add).await.expect("alive").expect("what is decoded is stored");
                actor.send(Drain).await.expect("alive");
                drop(actor);
                let actor = buffer(directory.path());
                let (buffer_uuid, wait) = (buffer_uuid.into(), Duration::ZERO);
                let lease = LeaseBufferMsg { buffer_uuid, max_single_write: 0, wait, seen: None };
                let leased = actor.send(lease).await.expect("alive");
                let view = leased.expect("it is there").view;
                prop_assert_eq!(view.payload.read_all().expect("readable"), decoded.message.pickle.read_all().expect("in memory"));
                prop_assert_eq!(view.blend, decoded.message.blend);
                Ok(())
            })?,
        }
    }

    #[test]
    fn every_message_for_the_user_manager_that_is_taken_is_there_after_a_restart(
        user in text(),
        data in text(),
        pickle: bool,
    ) {
        let (format, message) = if pickle {
            let main = pickled_dict(&[("TYPE", pickled("FRAME_RENDERED")), ("DATA", pickled(&data))]);
            let message = pickled_dict(&[("USER_ID", pickled(&user)), ("MAIN_DATA", main)]);
            (Format::Pickle, [&b"\x80\x02"[..], &message, b"."].concat())
        } else {
            let message = json!({ "USER_ID": user, "MAIN_DATA": { "TYPE": "RENDER_COMPLETED", "DATA": data } });
            (Format::Json, message.to_string().into_bytes())
        };
        let decoded = decode_user_message(format, message).expect("a message");
        let UserMessage::Forward(message) = decoded.message else { panic!("it is forwarded") };
        System::new().block_on(async {
            let directory = tempfile::tempdir().expect("a directory");
            let actor = publisher(directory.path());
            let sent = actor.send(SendMessageToUserManager::from(message.clone())).await.expect("alive");
            sent.expect("what is decoded is stored");
            actor.send(Drain).await.expect("alive");
            drop(actor);
            let actor = publisher(directory.path());
            prop_assert_eq!(actor.send(GetOutboxState).await.expect("alive").messages, 1);
            let take = TakeNextMessage { lease: Duration::from_secs(60), wait: false };
            let next = actor.send(take).await.expect("alive").expect("no broker").expect("a message");
            prop_assert_eq!(next.payload.read_all().expect("readable"), message.body.read_all().expect("in memory"));
            Ok(())
        })?;
    }
}
