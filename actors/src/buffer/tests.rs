//! A record that the store moves right after it was stored.

use std::time::Duration;

use bytes::Bytes;

use super::BufferActor;
use crate::codec::BufferMsg;
use crate::messages::{AddBufferMsg, PeekBufferMsg};
use crate::payload::Payload;
use crate::store::memory::MemoryStore;
use crate::store::{Change, Compacted, Durable, Seq, Store, StoreError};
use crate::system::OpenStore;

/// A store that moves each record right after it was put.
#[derive(Default)]
struct Moving(Vec<Seq>);

impl Store for Moving {
    fn commit(&mut self, changes: &[Change], durable: Durable) -> Result<Vec<Payload>, StoreError> {
        let put = |change: &Change| if let Change::Put(put) = change { Some(put.seq) } else { None };
        self.0.extend(changes.iter().filter_map(put));
        MemoryStore.commit(changes, durable)
    }

    fn compact(&mut self) -> Result<Compacted, StoreError> {
        let moved = self.0.drain(..).map(|seq| (seq, Payload::from_parts(vec![Bytes::from_static(b"new copy")])));
        Ok(Compacted { moved: moved.collect(), more: false })
    }
}

#[actix::test]
async fn a_record_that_moves_right_after_it_was_stored_is_found_where_it_is() {
    let buffer = OpenStore::new("test", Box::new(Moving::default()))
        .start(|_| {}, |store, found, _| BufferActor::new(store, found, 1 << 30, Duration::from_secs(60)))
        .expect("an empty store");
    let message =
        BufferMsg { pickle: Payload::from_parts(vec![Bytes::from_static(b"old copy")]), blend: None, sha256: None };
    buffer
        .send(AddBufferMsg { buffer_uuid: "a".into(), message, delivery: None })
        .await
        .expect("alive")
        .expect("space");
    loop {
        let view = buffer
            .send(PeekBufferMsg { buffer_uuid: "a".into(), wait: Duration::ZERO })
            .await
            .expect("alive")
            .expect("it is there");
        match &view.payload.read_all().expect("readable")[..] {
            b"new copy" => break,
            // The store's thread is between the commit and the move.
            b"old copy" => tokio::task::yield_now().await,
            other => panic!("{other:?}"),
        }
    }
}
