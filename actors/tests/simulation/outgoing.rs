//! What must hold for the messages for the user manager, whatever happens.

use std::collections::BTreeMap;

use user_http_actors::publisher::FrameAck;
use user_http_actors::{Accepted, Error};
use uuid::Uuid;

use crate::story::text_of;
use crate::workers::Gone;

/// A message, whatever number of requests it was sent with.
#[derive(Debug)]
pub struct Post {
    /// The id that its key determines.
    pub keyed_id: Option<Uuid>,
    /// What its text is made of.
    pub size: usize,
    pub accepted: bool,
    gone: Gone,
    arrived: bool,
    discarded: bool,
    published: bool,
    requests: usize,
}

/// The messages for the user manager. Their numbers grow in the order in which they were sent.
pub struct Outgoing {
    posts: BTreeMap<u64, Post>,
    last_first_published: u64,
    /// Larger messages may be parked before they are published, and so lose their place.
    smallest_limit: u64,
    frame_ack: FrameAck,
}

impl Outgoing {
    pub fn new(frame_ack: FrameAck) -> Self {
        Self { posts: BTreeMap::new(), last_first_published: 0, smallest_limit: u64::MAX, frame_ack }
    }

    fn get(&mut self, number: u64) -> &mut Post {
        self.posts.get_mut(&number).unwrap_or_else(|| panic!("message {number} was never sent"))
    }

    /// The messages that were sent with a key.
    pub fn keyed(&self) -> Vec<u64> {
        self.posts.iter().filter(|(_, post)| post.keyed_id.is_some()).map(|(number, _)| *number).collect()
    }

    pub fn post(&self, number: u64) -> &Post {
        &self.posts[&number]
    }

    /// A request with this message, maybe not the first one. The keys of long ago `may_be_forgotten`.
    pub fn sent(&mut self, number: u64, keyed_id: Option<Uuid>, size: usize, may_be_forgotten: bool) {
        let new = Post {
            keyed_id,
            size,
            accepted: false,
            gone: Gone::No,
            arrived: false,
            discarded: false,
            published: false,
            requests: 0,
        };
        let post = self.posts.entry(number).or_insert(new);
        post.requests += 1;
        if !post.accepted || may_be_forgotten {
            // whatever came of the earlier request, this one may take effect
            post.gone = Gone::No;
        }
    }

    /// A request has its answer. The keys of long ago `may_be_forgotten`.
    pub fn answered(&mut self, number: u64, answer: &Result<Accepted, Error>, may_be_forgotten: bool) {
        let is_broker = self.frame_ack == FrameAck::Broker;
        let post = self.get(number);
        match (answer, post.keyed_id) {
            (Ok(Accepted::Unkeyed), None) => post.accepted = true,
            (Ok(Accepted::First { .. }), Some(_)) => {
                assert!(!post.accepted || may_be_forgotten, "{number}: accepted as the first one twice: {post:?}");
                post.accepted = true;
            }
            (Ok(Accepted::Replayed { .. }), Some(_)) => {
                assert!(post.requests > 1, "{number}: nothing to replay: {post:?}");
                post.accepted = true;
            }
            (Ok(accepted), _) => panic!("{number}: {accepted:?} for {post:?}"),
            (Err(Error::NotConfirmed { reason }), _) => {
                let is_unreadable = *reason == "its body cannot be read";
                return assert!(is_broker || is_unreadable, "{number} could have been stored: {reason}");
            }
            (Err(_), _) => return,
        }
        let is_kept = !is_broker || post.arrived || post.discarded;
        assert!(is_kept, "{number} is acknowledged, and not confirmed: {post:?}");
    }

    /// It is published, or handed to the user manager.
    pub fn published(&mut self, number: u64, message_id: Uuid) {
        let (last, limit) = (self.last_first_published, self.smallest_limit);
        let post = self.get(number);
        assert!(!matches!(post.gone, Gone::Now | Gone::ForGood), "{number} is published again: {post:?}");
        assert!(post.keyed_id.is_none_or(|id| id == message_id), "{number} has an id that is not its key's");
        if post.published {
            return;
        }
        post.published = true;
        let may_be_late = post.requests > 1 || text_of(number, post.size).len() as u64 > limit;
        assert!(may_be_late || number > last, "{number} is published after {last}: {post:?}");
        self.last_first_published = number.max(last);
    }

    pub fn limited(&mut self, limit: u64) {
        self.smallest_limit = self.smallest_limit.min(limit);
    }

    /// It has arrived, as the gateway knows.
    pub fn confirmed(&mut self, number: u64) {
        let post = self.get(number);
        (post.arrived, post.gone) = (true, Gone::Now);
    }

    /// It has arrived, as the gateway does not know.
    pub fn has_arrived(&mut self, number: u64) {
        self.get(number).arrived = true;
    }

    pub fn gone_for_good(&mut self, number: u64) {
        let post = self.get(number);
        if post.gone == Gone::Now {
            post.gone = Gone::ForGood;
        }
    }

    /// An operator has discarded it; if the answer got lost, it may be there all the same.
    pub fn discarded(&mut self, number: u64, is_certain: bool) {
        let post = self.get(number);
        post.discarded = true;
        if is_certain {
            post.gone = Gone::ForGood;
        } else if post.gone == Gone::No {
            post.gone = Gone::Perhaps;
        }
    }

    /// The user manager has processed it, and asks for its deletion.
    pub fn processed(&mut self, number: u64) {
        let post = self.get(number);
        post.arrived = true;
    }

    /// Whether the deletion that the user manager has asked for took place is unknown.
    pub fn perhaps_deleted(&mut self, number: u64) {
        let post = self.get(number);
        if post.gone == Gone::No {
            post.gone = Gone::Perhaps;
        }
    }

    /// The user manager has deleted it, on stable storage.
    pub fn deleted(&mut self, number: u64) {
        let post = self.get(number);
        post.gone = Gone::ForGood;
    }

    /// The process has ended without a stop.
    pub fn killed(&mut self) {
        self.posts.values_mut().filter(|post| post.gone == Gone::Now).for_each(|post| post.gone = Gone::Perhaps);
    }

    /// Accepted ones that are to come, in their order.
    pub fn waiting(&self) -> impl Iterator<Item = u64> {
        let waits = |post: &Post| post.accepted && post.gone == Gone::No && !post.discarded && post.requests == 1;
        self.posts.iter().filter(move |(_, post)| waits(post)).map(|(number, _)| *number)
    }

    /// Nothing is left in the outbox: each accepted message has arrived, or an operator has discarded it.
    pub fn check_all_arrived(&self) {
        for (number, post) in &self.posts {
            assert!(!post.accepted || post.arrived || post.discarded, "{number} is lost: {post:?}");
        }
    }
}
