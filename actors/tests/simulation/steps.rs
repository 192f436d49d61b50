//! What may happen in a step, and what happens once all is well.

use std::time::Duration;

use bytes::Bytes;
use rand::Rng;
use rand::seq::IndexedRandom;
use tokio::time::Instant;
use user_http_actors::administration::{DiscardBufferMsg, DiscardOutboxMessage, Requester};
use user_http_actors::broker::{Outcome, PublisherEvent};
use user_http_actors::codec::{BufferMsg, Format, ForwardedType, OutgoingMessage};
use user_http_actors::messages::{
    AddBufferMsg, DeleteMessage, DeleteParkedMessage, GetParkedMessages, LeaseBufferMsg, PublishParkedMessage,
    SendMessageToUserManager, TakeNextMessage,
};
use user_http_actors::payload::Payload;
use user_http_actors::{Error, IdempotencyKey, RequestKey};

use crate::life::Life;
use crate::process::{BUFFER, OUTBOX};
use crate::requests::{Asked, Requests, ended, send};
use crate::story::{NAMES, NAMES_OF_BROKER, PATIENCE, Story, body_for_queue, text_of};

/// The sizes of bodies; the last one is larger than the limits.
const SIZES: [usize; 6] = [0, 40, 300, 1_500, 4_000, 40_000];

/// The times by which the clock moves.
const TIMES: [Duration; 8] = [
    Duration::from_millis(10),
    Duration::from_millis(200),
    Duration::from_secs(1),
    Duration::from_secs(3),
    Duration::from_secs(11),
    Duration::from_secs(60),
    Duration::from_secs(600),
    Duration::from_secs(7_200),
];

fn requester() -> Requester {
    Requester { name: "the simulation".into(), request_id: String::new() }
}

fn key(number: u64, body: u8) -> IdempotencyKey {
    IdempotencyKey::new(b"worker", RequestKey { key: &number.to_le_bytes(), body_sha256: [body; 32] })
}

fn message(number: u64, size: usize) -> OutgoingMessage {
    OutgoingMessage {
        kind: ForwardedType::FrameRendered,
        user_id: "worker".into(),
        format: Format::Pickle,
        body: Payload::from_parts(vec![Bytes::from(text_of(number, size))]),
    }
}

impl Life {
    /// Takes a step. Returns what it is.
    pub async fn step(&mut self, story: &mut Story) -> String {
        self.note_before(story);
        match story.random.random_range(0..100) {
            0..8 => self.add(story),
            8..13 => self.publish_to_queue(story),
            13..20 => self.move_queue(story),
            20..32 => self.ask(story),
            32..42 => self.end_delivery(story),
            42..44 => self.discard(story).await,
            44..54 => self.post(story),
            54..57 => self.post_again(story),
            57..74 => {
                let store = if story.chance(0.5) { BUFFER } else { OUTBOX };
                self.commit(story, store, true)
            }
            74..90 => match self.process.exchange {
                Some(_) => self.move_exchange(story),
                None => self.user_manager(story),
            },
            90..93 => self.operate(story).await,
            _ => {
                let at = story.random.random_range(0..TIMES.len() * 4);
                // a long time is rare
                let time = TIMES[if at == 0 { TIMES.len() - 1 } else { at % (TIMES.len() - 1) }];
                self.advance(story, time).await;
                format!("{time:?} pass")
            }
        }
    }

    fn size(story: &mut Story) -> usize {
        let at = story.random.random_range(0..SIZES.len() * 4);
        SIZES[if at == 0 { SIZES.len() - 1 } else { at % (SIZES.len() - 1) }]
    }

    /// A service leaves a message.
    fn add(&mut self, story: &mut Story) -> String {
        let (number, size) = (story.next_number(), Self::size(story));
        let name = NAMES[story.random.random_range(0..NAMES.len())];
        story.buffered.sent(number, name, false);
        let pickle = Payload::from_parts(vec![Bytes::from(text_of(number, size))]);
        let message = BufferMsg { pickle, blend: None, sha256: None };
        let add = AddBufferMsg { buffer_uuid: name.into(), message, delivery: None };
        self.requests.adds.push((number, send(&self.process.buffer, add)));
        format!("{number} of {size} is left for {name}")
    }

    fn publish_to_queue(&mut self, story: &mut Story) -> String {
        let (number, is_bad) = (story.next_number(), story.chance(0.1));
        // what never fits is rejected, as in the tests of the consumer
        let size = Self::size(story).min(4_000);
        let name = NAMES_OF_BROKER[story.random.random_range(0..NAMES_OF_BROKER.len())];
        if is_bad {
            story.queue.publish(number, Bytes::from(format!("#{number}# is no JSON")), true);
        } else {
            story.buffered.sent(number, name, true);
            story.queue.publish(number, body_for_queue(name, &text_of(number, size)), false);
        }
        format!("{number} of {size} is published for {name}{}", if is_bad { ", broken" } else { "" })
    }

    fn move_queue(&mut self, story: &mut Story) -> String {
        let consuming = &self.process.consuming;
        match story.random.random_range(0..10) {
            0 if story.queue.is_connected() => {
                story.queue.disconnect(consuming);
                "the consumer loses its connection".into()
            }
            1 => {
                story.queue.report_cancelled(consuming);
                "consuming ends, if that was asked for".into()
            }
            _ if !story.queue.is_connected() => {
                story.queue.connect(consuming);
                "the consumer connects".into()
            }
            _ => {
                let delivered: Vec<u64> = (0..3).map_while(|_| story.queue.deliver(consuming)).collect();
                format!("{delivered:?} are delivered")
            }
        }
    }

    /// A worker asks for a message, often for one that another worker is getting.
    fn ask(&mut self, story: &mut Story) -> String {
        let names: Vec<&str> = NAMES.into_iter().chain(NAMES_OF_BROKER).collect();
        let mut name = names[story.random.random_range(0..names.len())].to_owned();
        if let Some(delivery) = self.requests.deliveries.choose(&mut story.random)
            && story.chance(0.3)
        {
            name.clone_from(&delivery.name);
        }
        let wait = Duration::from_secs([0, 0, 1, 30][story.random.random_range(0..4)]);
        self.ask_for(&name, wait, [0, 1_000][story.random.random_range(0..2)]);
        format!("a worker asks for {name}, {wait:?}")
    }

    /// Workers ask for messages that nobody has left.
    pub fn wait_for_nothing(&mut self) {
        NAMES.into_iter().for_each(|name| self.ask_for(name, Duration::from_secs(30), 0));
    }

    fn ask_for(&mut self, name: &str, wait: Duration, max_single_write: u64) {
        let asked = Asked { name: name.to_owned(), until: Instant::now() + wait + PATIENCE };
        let lease = LeaseBufferMsg { buffer_uuid: name.into(), max_single_write, wait, seen: None };
        self.requests.asked.push((asked, send(&self.process.buffer, lease)));
    }

    /// A worker has everything, or hangs up.
    fn end_delivery(&mut self, story: &mut Story) -> String {
        if story.chance(0.2) {
            return self.give_up(story);
        }
        if self.requests.deliveries.is_empty() {
            return "nothing is delivered".into();
        }
        let at = story.random.random_range(0..self.requests.deliveries.len());
        match story.random.random_range(0..5) {
            0 => {
                let delivery = self.requests.deliveries.remove(at);
                format!("the delivery of {} breaks off", delivery.number)
            }
            1 => {
                let delivery = &self.requests.deliveries[at];
                delivery.leased.lease.finishing();
                format!("the delivery of {} is finishing", delivery.number)
            }
            _ => self.complete(story, at),
        }
    }

    /// Somebody does not wait any longer for an answer.
    fn give_up(&mut self, story: &mut Story) -> String {
        let at = story.random.random_range(0..4);
        let Requests { asked, adds, posts, .. } = &mut self.requests;
        if at < asked.len() {
            let (asked, answer) = asked.remove(at);
            answer.abort();
            format!("who waits for {} gives up", asked.name)
        } else if at < adds.len() {
            let (number, answer) = adds.remove(at);
            answer.abort();
            format!("who has left {number} hangs up")
        } else if at < posts.len() {
            let (number, answer) = posts.remove(at);
            answer.abort();
            format!("who has posted {number} hangs up")
        } else {
            "nobody gives up".into()
        }
    }

    fn complete(&mut self, story: &mut Story, at: usize) -> String {
        let delivery = self.requests.deliveries.remove(at);
        delivery.leased.lease.delivered();
        story.buffered.completed(delivery.number);
        self.process.stores[BUFFER].complete(delivery.number);
        format!("{} is delivered", delivery.number)
    }

    /// An operator discards the message that is there.
    async fn discard(&mut self, story: &mut Story) -> String {
        let names: Vec<&str> = NAMES.into_iter().chain(NAMES_OF_BROKER).collect();
        let name = names[story.random.random_range(0..names.len())];
        let mut pending = self.requests.discards.iter();
        let joins = pending.find(|((pending, _), _)| pending == name).and_then(|((_, number), _)| *number);
        let number = self.look_at(story, name).await.or(joins);
        let discard = DiscardBufferMsg { buffer_uuid: name.into(), requester: requester() };
        self.requests.discards.push(((name.to_owned(), number), send(&self.process.buffer, discard)));
        format!("{name} is discarded, {number:?}")
    }

    /// A worker posts a frame.
    fn post(&mut self, story: &mut Story) -> String {
        let (number, size, is_keyed) = (story.next_number(), Self::size(story), story.chance(0.4));
        let key = is_keyed.then(|| key(number, 1));
        story.outgoing.sent(number, key.map(|key| key.message_id()), size, story.is_long_ago());
        let post = SendMessageToUserManager { message: message(number, size), key };
        self.requests.posts.push((number, send(&self.process.publisher, post)));
        format!("{number} of {size} is posted{}", if is_keyed { " with a key" } else { "" })
    }

    /// A worker repeats a request with a key, or uses the key for something else.
    fn post_again(&mut self, story: &mut Story) -> String {
        let keyed = story.outgoing.keyed();
        let Some(&number) = keyed.choose(&mut story.random) else { return "nothing is repeated".into() };
        let (size, accepted) = (story.outgoing.post(number).size, story.outgoing.post(number).accepted);
        let is_misuse = story.chance(0.3) && accepted && !story.is_long_ago();
        let key = key(number, if is_misuse { 2 } else { 1 });
        let post = SendMessageToUserManager { message: message(number, size), key: Some(key) };
        let answer = send(&self.process.publisher, post);
        if is_misuse {
            self.requests.misuses.push((number, answer));
            return format!("the key of {number} is used for another body");
        }
        story.outgoing.sent(number, Some(key.message_id()), size, story.is_long_ago());
        self.requests.posts.push((number, answer));
        format!("{number} is posted again")
    }

    /// The broker that is published to does something.
    fn move_exchange(&mut self, story: &mut Story) -> String {
        let Some(exchange) = &mut self.process.exchange else { return "there is no broker".into() };
        if !exchange.is_connected() {
            if story.chance(0.5) {
                exchange.connect();
            }
            return "the publisher connects, or not".into();
        }
        let at = story.random.random_range(0..8);
        let (outcome, what) = match story.random.random_range(0..20) {
            0 => {
                let lost = story.chance(0.5);
                return self.lose_exchange(story, lost);
            }
            1 => {
                let blocked = story.chance(0.5);
                exchange.event(PublisherEvent::Blocked(blocked));
                return format!("blocked: {blocked}");
            }
            2 => {
                let waits = story.chance(0.5);
                exchange.event(PublisherEvent::WaitingFor(waits.then(|| "a queue".to_owned())));
                return format!("waits for a queue: {waits}");
            }
            3 if !exchange.in_flight().is_empty() => {
                exchange.event(PublisherEvent::Suspected { reason: "406".into() });
                return format!("one is poison, {}", self.lose_exchange(story, false));
            }
            4 => (Outcome::Nacked, "is nacked"),
            5 => (Outcome::Returned("312 NO_ROUTE".into()), "is returned"),
            6 => {
                let Some(size) = exchange.in_flight().first().map(|first| first.size) else {
                    return "nothing is in flight".into();
                };
                story.outgoing.limited(size - 1);
                exchange.event(PublisherEvent::SizeLimit(size - 1));
                exchange.answer(0, Outcome::Refused("406".into()));
                return format!("{size} are too many bytes, {}", self.lose_exchange(story, false));
            }
            7 if story.chance(0.2) => (Outcome::Unreadable("the disk".into()), "cannot be read"),
            _ => return self.confirm(story, at),
        };
        match exchange.answer(at, outcome) {
            Some(answered) => format!("{} {what}", answered.number),
            None => "nothing is in flight".into(),
        }
    }

    fn confirm(&mut self, story: &mut Story, at: usize) -> String {
        let exchange = self.process.exchange.as_mut();
        let Some(confirmed) = exchange.and_then(|exchange| exchange.answer(at, Outcome::Confirmed)) else {
            return "nothing is in flight".into();
        };
        story.outgoing.confirmed(confirmed.number);
        self.process.stores[OUTBOX].complete(confirmed.number);
        format!("{} is confirmed", confirmed.number)
    }

    /// The connection ends; the broker may have what it has not answered for.
    fn lose_exchange(&mut self, story: &mut Story, lost: bool) -> String {
        let unanswered = self.process.exchange.as_mut().map(|exchange| exchange.disconnect(lost)).unwrap_or_default();
        for flying in &unanswered {
            if story.chance(0.5) {
                story.outgoing.has_arrived(flying.number);
            }
        }
        format!("the publisher loses its connection, with {} in flight", unanswered.len())
    }

    /// The user manager fetches its messages.
    fn user_manager(&mut self, story: &mut Story) -> String {
        let held = self.requests.taken.len();
        match story.random.random_range(0..8) {
            0..3 => {
                let lease = Duration::from_secs([0, 5, 60][story.random.random_range(0..3)]);
                let wait = story.chance(0.2);
                self.take(lease, wait);
                format!("the user manager asks, {lease:?}, waits: {wait}")
            }
            3 if held > 0 => {
                // the transfer breaks off
                let taken = self.requests.taken.remove(story.random.random_range(0..held));
                if taken.next.is_none() {
                    self.requests.taken.push(taken);
                    return "nothing breaks off".into();
                }
                format!("{} breaks off", taken.number)
            }
            4 if held > 0 => {
                let at = story.random.random_range(0..held);
                let taken = &mut self.requests.taken[at];
                taken.next.take().into_iter().for_each(|next| next.lease.delivered());
                format!("the user manager has {}", taken.number)
            }
            _ if held > 0 => {
                let at = story.random.random_range(0..held);
                self.delete(story, at)
            }
            _ => "the user manager has nothing".into(),
        }
    }

    fn take(&mut self, lease: Duration, wait: bool) {
        let take = TakeNextMessage { lease, wait };
        self.requests.taking.push((lease, send(&self.process.publisher, take)));
    }

    fn delete(&mut self, story: &mut Story, at: usize) -> String {
        let taken = &mut self.requests.taken[at];
        taken.next.take().into_iter().for_each(|next| next.lease.delivered());
        let (number, delete) = (taken.number, DeleteMessage { message_id: taken.message_id });
        story.outgoing.processed(number);
        self.requests.deletions.push((number, send(&self.process.publisher, delete)));
        format!("the user manager deletes {number}")
    }

    /// An operator looks at the outbox.
    async fn operate(&mut self, story: &mut Story) -> String {
        if story.chance(0.4) {
            let number = story.random.random_range(0..=story.numbers);
            let Some(message_id) = story.ids.id(number) else { return "an operator looks".into() };
            let discard = DiscardOutboxMessage { message_id, requester: requester() };
            self.requests.outbox_discards.push((number, send(&self.process.publisher, discard)));
            return format!("an operator discards {number}");
        }
        let mut done = Vec::new();
        for ((), answer) in ended(&mut self.requests.parked).await {
            for parked in answer.map(|parked| parked.0).unwrap_or_default() {
                let message_id = parked.message_id;
                match story.ids.number(message_id) {
                    Some(number) if story.chance(0.3) => {
                        let delete = send(&self.process.publisher, DeleteParkedMessage { message_id });
                        self.requests.outbox_discards.push((number, delete));
                        done.push(format!("deletes {number}"));
                    }
                    number => {
                        // it may be gone by now
                        let _ = self.process.publisher.send(PublishParkedMessage { message_id }).await;
                        done.push(format!("publishes {number:?}"));
                    }
                }
            }
        }
        self.list_parked();
        format!("an operator {done:?}, and lists what is parked")
    }

    fn list_parked(&mut self) {
        let publisher = self.process.publisher.clone();
        let listed = actix::spawn(async move { publisher.send(GetParkedMessages).await.map_err(|_| Error::Stopping) });
        self.requests.parked.push(((), listed));
    }

    /// Everybody does what there is to do.
    pub async fn do_all(&mut self, story: &mut Story) {
        self.note_before(story);
        if let Some(exchange) = &mut self.process.exchange {
            exchange.connect();
            exchange.event(PublisherEvent::Blocked(false));
            exchange.event(PublisherEvent::WaitingFor(None));
        }
        if !story.queue.is_connected() {
            story.queue.connect(&self.process.consuming);
        }
        story.queue.report_cancelled(&self.process.consuming);
        while story.queue.deliver(&self.process.consuming).is_some() {}
        self.process.stores.iter().for_each(|store| store.set_fault(None));
        self.work(story).await;

        self.note_before(story);
        for name in NAMES.into_iter().chain(NAMES_OF_BROKER) {
            self.ask_for(name, Duration::ZERO, 0);
        }
        self.work(story).await;
        self.note_before(story);
        while !self.requests.deliveries.is_empty() {
            self.complete(story, 0);
        }
        while self.process.exchange.as_ref().is_some_and(|exchange| !exchange.in_flight().is_empty()) {
            self.confirm(story, 0);
        }
        if self.process.exchange.is_none() {
            (0..self.requests.taken.len()).for_each(|at| drop(self.delete(story, at)));
            self.take(Duration::from_secs(60), false);
        }
        for ((), answer) in ended(&mut self.requests.parked).await {
            for parked in answer.map(|parked| parked.0).unwrap_or_default() {
                let publish = PublishParkedMessage { message_id: parked.message_id };
                let _ = self.process.publisher.send(publish).await;
            }
        }
        self.list_parked();
        self.work(story).await;
    }

    /// The actors and their stores work.
    async fn work(&mut self, story: &mut Story) {
        for _ in 0..2 {
            self.settle(story).await;
            [BUFFER, OUTBOX].into_iter().for_each(|store| drop(self.commit(story, store, false)));
        }
        self.settle(story).await;
    }
}
