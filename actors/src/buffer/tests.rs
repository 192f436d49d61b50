//! What only the store tells the actor.

use std::sync::mpsc::channel;
use std::time::Duration;

use actix::prelude::*;
use bytes::Bytes;

use super::BufferActor;
use crate::codec::BufferMsg;
use crate::messages::{AddBufferMsg, FromStore, PeekBufferMsg};
use crate::payload::Payload;
use crate::store::memory::MemoryStore;
use crate::store::{Change, Durable, Seq, Store, StoreError, StoreEvent, StoreHandle, Tidied};

/// A store that moves each record right after it was put.
#[derive(Default)]
struct Moving(Vec<Seq>);

impl Store for Moving {
    fn commit(&mut self, changes: &[Change], durable: Durable) -> Result<Vec<Payload>, StoreError> {
        let put = |change: &Change| if let Change::Put { seq, .. } = change { Some(*seq) } else { None };
        self.0.extend(changes.iter().filter_map(put));
        MemoryStore.commit(changes, durable)
    }

    fn tidy(&mut self) -> Result<Tidied, StoreError> {
        let moved = self.0.drain(..).map(|seq| (seq, Payload::from_parts(vec![Bytes::from_static(b"new place")])));
        Ok(Tidied { moved: moved.collect(), more: false })
    }
}

#[actix::test]
async fn a_record_that_moves_before_the_actor_hears_of_its_put_is_found_where_it_is() {
    let ctx = Context::<BufferActor>::new();
    let owner = ctx.address();
    let (tell, told) = channel();
    let on_event = move |event: StoreEvent| {
        let moved = matches!(event, StoreEvent::Moved(_));
        owner.do_send(FromStore(event));
        if moved {
            let _ = tell.send(());
        }
    };
    let store = StoreHandle::start("test", Box::new(Moving::default()), 1, on_event).expect("a thread");
    let actor = BufferActor::new(store, Vec::new(), 1 << 30, Duration::from_secs(60)).expect("an empty store");
    let buffer = ctx.run(actor);
    let message = BufferMsg { pickle: vec![Bytes::from_static(b"old place")], blend: None };
    let added = buffer.send(AddBufferMsg { buffer_uuid: "a".into(), message, delivery: None });
    let added = actix::spawn(added);
    // on the actor's own thread, which so finds both, the put's outcome and the move, when it goes on
    while told.try_recv().is_err() {
        if told.recv_timeout(Duration::from_millis(20)).is_ok() {
            break;
        }
        tokio::task::yield_now().await;
    }
    added.await.expect("it ends").expect("alive").expect("room");
    let view = buffer.send(PeekBufferMsg { buffer_uuid: "a".into() }).await.expect("alive").expect("it is there");
    assert_eq!(view.payload.read_all().expect("readable"), &b"new place"[..]);
}
