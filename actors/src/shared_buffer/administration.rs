//! What operators list and discard.

use std::rc::Rc;

use actix::prelude::*;

use super::SharedBuffer;
use crate::administration::{BufferEntry, DiscardBufferMsg, ListBufferMsgs, Page};
use crate::buffer::metrics::Departure;
use crate::error::Error;
use crate::postgres::Discarded;
use crate::reply::{Deferred, deferred};

impl Handler<ListBufferMsgs> for SharedBuffer {
    type Result = ResponseFuture<Result<Page<BufferEntry>, Error>>;

    fn handle(&mut self, ListBufferMsgs(page): ListBufferMsgs, _: &mut Self::Context) -> Self::Result {
        let database = self.local.database.clone();
        Box::pin(async move {
            let found = database.list(page).await?;
            let text_len =
                |entry: &BufferEntry| entry.buffer_uuid.as_str().len() + entry.blend.as_ref().map_or(0, String::len);
            Ok(Page::take(found.into_iter().map(|(seq, entry)| (seq, Some(entry))), page.limit, text_len))
        })
    }
}

impl Handler<DiscardBufferMsg> for SharedBuffer {
    type Result = Deferred<Result<(), Error>>;

    fn handle(&mut self, discard: DiscardBufferMsg, _: &mut Self::Context) -> Self::Result {
        let DiscardBufferMsg { buffer_uuid: uuid, requester } = discard;
        if self.local.is_draining.get() {
            return Deferred::now(Err(Error::Stopping));
        }
        let (reply, deferred) = deferred();
        let local = Rc::clone(&self.local);
        actix::spawn(async move {
            reply.send(match local.database.discard(&uuid).await {
                Ok(Discarded::Gone) => {
                    local.metrics.borrow_mut().left(Departure::Discarded);
                    let (by, request_id) = (requester.name.as_str(), requester.request_id.as_str());
                    log::info!(request_id, by; "message {uuid:?} is discarded by {by}");
                    Ok(())
                }
                Ok(Discarded::Absent) => Err(Error::NoBufferMsg),
                Ok(Discarded::InDelivery) => Err(Error::InDelivery),
                Err(error) => Err(error.into()),
            });
        });
        deferred
    }
}
