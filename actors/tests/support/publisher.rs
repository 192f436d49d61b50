//! A publisher actor with or without a broker whose every move the test makes.

use actix::Addr;
use user_http_actors::UserManagerPublisher;
use user_http_actors::publisher::{BrokerRoute, FrameAck};
use user_http_actors::system::OpenStore;

pub use super::scripted_broker::Broker;
use super::scripted_broker::start_route;

/// Starts the actor with or without a broker.
pub fn start(store: OpenStore, max_bytes: u64, broker: Option<BrokerRoute>) -> Addr<UserManagerPublisher> {
    let actor = move |store, found, address| UserManagerPublisher::new(store, found, max_bytes, broker, address);
    store.start(|_| {}, actor).expect("a sound store")
}

/// Starts the actor with a broker.
pub fn start_with_broker(
    store: OpenStore,
    max_bytes: u64,
    frame_ack: FrameAck,
) -> (Addr<UserManagerPublisher>, Broker) {
    start_route(frame_ack, |route| start(store, max_bytes, Some(route)))
}
