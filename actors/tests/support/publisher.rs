//! A publisher actor with a broker whose every move the test makes.

use std::sync::mpsc::{self, Receiver};

use actix::Addr;
use user_http_actors::UserManagerPublisher;
use user_http_actors::broker::{Outcome, Publication, PublisherEvent, PublisherLink};
use user_http_actors::publisher::StartLink;
use user_http_actors::system::OpenStore;

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

/// Starts the actor without a broker, or with the one that `start_link` starts.
pub fn start(store: OpenStore, max_bytes: u64, start_link: Option<StartLink>) -> Addr<UserManagerPublisher> {
    let actor = move |store, found, address| UserManagerPublisher::new(store, found, max_bytes, start_link, address);
    store.start(|_| {}, actor).expect("a sound store")
}

/// Starts the actor with a broker.
pub fn start_with_broker(store: OpenStore, max_bytes: u64) -> (Addr<UserManagerPublisher>, Broker) {
    let (started, events) = mpsc::channel();
    let (link, publications) = mpsc::channel();
    let start_link: StartLink = Box::new(move |on_event| {
        let _ = started.send(on_event);
        Box::new(Link(link))
    });
    let publisher = start(store, max_bytes, Some(start_link));
    let events = events.recv().expect("the link is started with the actor");
    (publisher, Broker { events, publications })
}
