//! A body counts as held in memory for as long as any part of it is: whatever receives it has a permit in the bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use actix::System;
use bytes::Bytes;
use user_http_actors::blend::DEFAULT_MAX_OPEN_BLEND_FILES;
use user_http_actors::codec::{Format, UserMessage, decode_user_message};
use user_http_actors::messages::SendMessageToUserManager;
use user_http_actors::payload::Payload;
use user_http_actors::publisher::FrameAck;
use user_http_actors::store::memory::MemoryStore;
use user_http_actors::store::{Change, Durable, Store, StoreError};
use user_http_actors::system::OpenStore;
use user_http_actors::{ActorsConfig, UserHttpActors, UserManagerPublisher};

const DEADLINE: Duration = Duration::from_secs(20);
const ROOM: u64 = 1 << 30;

/// A body that records when it is dropped.
struct Watched {
    content: Vec<u8>,
    dropped: Arc<AtomicBool>,
}

impl AsRef<[u8]> for Watched {
    fn as_ref(&self) -> &[u8] {
        &self.content
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.dropped.store(true, Ordering::SeqCst);
    }
}

fn watched(content: Vec<u8>) -> (Bytes, Arc<AtomicBool>) {
    let dropped = Arc::new(AtomicBool::new(false));
    (Bytes::from_owner(Watched { content, dropped: Arc::clone(&dropped) }), dropped)
}

/// A disk that hangs until the test lets it go on. It keeps nothing of what it was given.
struct Hanging {
    commits: Sender<()>,
    permits: Receiver<()>,
}

impl Store for Hanging {
    fn commit(&mut self, changes: &[Change], durable: Durable) -> Result<Vec<Payload>, StoreError> {
        if changes.iter().any(|change| matches!(change, Change::Put(_))) {
            let _ = self.commits.send(());
            // a test that has ended lets everything pass
            let _ = self.permits.recv();
        }
        MemoryStore.commit(changes, durable)
    }
}

#[test]
fn a_body_takes_memory_while_the_disk_hangs_even_if_its_sender_has_hung_up() {
    System::new().block_on(async {
        let (commits, committing) = channel();
        let (permit, permits) = channel();
        let publisher = OpenStore::new("test", Box::new(Hanging { commits, permits }))
            .start(|_| {}, |store, found, address| UserManagerPublisher::new(store, found, ROOM, None, address))
            .expect("an empty store");
        let image = vec![b'x'; 1 << 20];
        let data = [&b"B"[..], &(image.len() as u32).to_le_bytes(), &image].concat();
        let head = b"}(\x8c\x07USER_ID\x8c\x01u\x8c\x09MAIN_DATA}(\x8c\x04TYPE\x8c\x0eFRAME_RENDERED\x8c\x04DATA";
        let (body, dropped) = watched([&head[..], &data, b"uu."].concat());
        let UserMessage::Forward(message) = decode_user_message(Format::Pickle, body).expect("a frame").message else {
            panic!("a frame is forwarded");
        };
        let sender = actix::spawn(async move {
            let _ = publisher.send(SendMessageToUserManager::from(message)).await;
        });
        let start = Instant::now();
        while committing.try_recv().is_err() {
            assert!(start.elapsed() < DEADLINE, "the message does not reach the store");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        sender.abort();
        let _ = sender.await;
        assert!(!dropped.load(Ordering::SeqCst), "it is in memory, and its permit must be too");
        permit.send(()).expect("the store's thread");
        while !dropped.load(Ordering::SeqCst) {
            assert!(start.elapsed() < DEADLINE, "it is on the disk, and still in memory");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
}

#[test]
fn a_body_is_let_go_before_its_sender_hears_that_it_is_stored() {
    System::new().block_on(async {
        let actors = UserHttpActors::start(ActorsConfig {
            data_dir: None,
            blend_roots: Vec::new(),
            private_files: Vec::new(),
            max_open_blend_files: DEFAULT_MAX_OPEN_BLEND_FILES,
            shared_buffer: None,
            max_buffered: ROOM,
            buffer_ttl: Duration::from_secs(3_600),
            max_outbox: ROOM,
            amqp: None,
            frame_ack: FrameAck::Stored,
        })
        .expect("the actors start");
        // a small message, and much around it; and one that is most of its body
        let text = "x".repeat(10_000);
        let beside = "y".repeat(1 << 20);
        for (message, beside) in [(&text, &beside), (&beside, &text)] {
            for round in 0..20 {
                let json = format!(
                    r#"{{"TYPE":"ADD_BUFFER_MSG","DATA":{{"BUFFER_UUID":"{round}","BUFFER_MSG":"{message}","OTHER":"{beside}"}}}}"#
                );
                let (body, dropped) = watched(json.into_bytes());
                let stored = actors.handle_communication_interface_message(Format::Json, body).await;
                stored.expect("accepted");
                assert!(dropped.load(Ordering::SeqCst), "all of the body is kept for a part of it");
            }
        }
    });
}
