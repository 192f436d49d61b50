//! A broker whose every move the test makes.

use std::sync::mpsc::{self, Receiver};

use actix::Addr;
use user_http_actors::UserManagerPublisher;
use user_http_actors::broker::{Outcome, Publication, PublisherEvent, PublisherLink};
use user_http_actors::publisher::{BrokerRoute, FrameAck};

struct Link(mpsc::Sender<Publication>);

impl PublisherLink for Link {
    fn publish(&self, publication: Publication) {
        let _ = self.0.send(publication);
    }
}

/// The other end of the actor's link.
pub struct Broker {
    pub events: Box<dyn Fn(PublisherEvent) + Send>,
    pub publications: Receiver<Publication>,
}

impl Broker {
    pub fn outcome(&self, seq: u64, outcome: Outcome) {
        (self.events)(PublisherEvent::Outcome { seq, outcome });
    }

    /// What has been published since the last call.
    pub fn published(&self) -> Vec<Publication> {
        self.publications.try_iter().collect()
    }
}

/// Starts the actor with a broker, by this function.
pub fn start_route(
    frame_ack: FrameAck,
    start: impl FnOnce(BrokerRoute) -> Addr<UserManagerPublisher>,
) -> (Addr<UserManagerPublisher>, Broker) {
    let (started, events) = mpsc::channel();
    let (link, publications) = mpsc::channel();
    let start_link = Box::new(move |on_event| -> Box<dyn PublisherLink> {
        let _ = started.send(on_event);
        Box::new(Link(link))
    });
    let publisher = start(BrokerRoute { start_link, frame_ack });
    let events = events.recv().expect("the link is started with the actor");
    (publisher, Broker { events, publications })
}
