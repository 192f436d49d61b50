//! Publishing, and what became of each publication.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use amiquip::{
    AmqpProperties, AmqpValue, Channel, Confirm, Connection, ConnectionBlockedNotification, Error, FieldTable, Publish,
    Return,
};
use crossbeam_channel::{Receiver, Sender, bounded, never, select, unbounded};
use uuid::Uuid;

use super::AmqpConfig;
use super::connection::{SessionError, Socket, cause};
use super::topology::{self, PRECONDITION_FAILED};
use super::way::Way;
use super::worker::{Worker, reconnect};
use crate::broker::{Outcome, Publication, PublisherEvent, PublisherLink};
use crate::codec::Format;
use crate::payload::may_be_readable_later;

/// `delivery-mode` of AMQP 0-9-1: a durable queue keeps the message through a restart of the broker.
const PERSISTENT: u8 = 2;

/// A running publisher. Dropping it ends the connection, without blocking; what has no outcome then never gets one.
#[derive(Debug)]
pub struct AmqpPublisher {
    /// Without a bound: publishing never blocks, and the sender, who keeps what has no outcome yet, is the one to
    /// bound it. One costs about 100 bytes where its body lies in a file.
    publications: Sender<Publication>,
    worker: Worker,
}

impl AmqpPublisher {
    /// Ends it and waits for that, at most for `deadline`; 3 s are enough where it is connected. Says whether it
    /// has ended.
    pub fn stop(self, deadline: Duration) -> bool {
        self.worker.stop(deadline)
    }
}

impl PublisherLink for AmqpPublisher {
    fn publish(&self, publication: Publication) {
        // An error says that the thread is gone, which only a panic of `on_event` brings about.
        let _ = self.publications.send(publication);
    }
}

/// Starts a publisher to `config.exchange`, and goes on through every loss of the connection.
///
/// `on_event` is called on threads of the publisher's own, by one at a time; it must not block for long. The end that
/// the handle's drop brings about is not reported.
///
/// # Panics
/// Where the operating system has no thread to give, as [`std::thread::spawn`].
pub fn start_publisher(config: AmqpConfig, on_event: impl Fn(PublisherEvent) + Send + 'static) -> AmqpPublisher {
    let (publications, queued) = unbounded();
    let worker = Worker::spawn("amqp-publisher", move |stop| {
        let reporter = Reporter(Mutex::new(on_event));
        // Whether the last connection that was there has been lost.
        let lost = Cell::new(false);
        reconnect(
            "AMQP publisher",
            &config,
            stop,
            |reason| reporter.report(PublisherEvent::Disconnected { reason, lost: lost.get() }),
            |epoch, connection, socket| {
                let channel = topology::for_publishing(connection, &config)?;
                let way = Way::look(connection, &config, lost.get())?;
                let mut session = Session {
                    epoch,
                    config: &config,
                    channel: &channel,
                    reporter: &reporter,
                    last_tag: 0,
                    unconfirmed: BTreeMap::new(),
                };
                let ended = session.run(connection, socket, way, &queued, stop);
                let unconfirmed = session.unconfirmed;
                let ended = cause(ended, channel.close().map_err(SessionError::from));
                if let Err(SessionError::Amqp(error)) = &ended {
                    report_refused(error, &unconfirmed, &reporter);
                }
                lost.set(ended.as_ref().is_err_and(SessionError::is_of_connection));
                ended
            },
        );
    });
    AmqpPublisher { publications, worker }
}

/// Hands events on, one at a time.
struct Reporter<F>(Mutex<F>);

impl<F: Fn(PublisherEvent)> Reporter<F> {
    fn report(&self, event: PublisherEvent) {
        let on_event = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        on_event(event);
    }

    fn outcome(&self, seq: u64, outcome: Outcome) {
        self.report(PublisherEvent::Outcome { seq, outcome });
    }
}

/// A message on its way.
struct Unconfirmed {
    seq: u64,
    message_id: Uuid,
    bytes: u64,
    /// Reply code and text, where it came back.
    returned: Option<String>,
}

/// Why nothing is published for the time being, if so.
#[derive(Default)]
struct Gates {
    blocked: bool,
    held: bool,
}

/// What opens or closes one.
enum Gate {
    Blocked(bool),
    Held(bool),
}

impl Gates {
    fn take(&mut self, gate: Gate) {
        match gate {
            Gate::Blocked(blocked) => self.blocked = blocked,
            Gate::Held(held) => self.held = held,
        }
    }
}

struct Session<'a, F> {
    epoch: u64,
    config: &'a AmqpConfig,
    channel: &'a Channel,
    reporter: &'a Reporter<F>,
    /// The broker counts the messages of a channel from 1; so do we.
    last_tag: u64,
    /// By delivery tag. amiquip's `ConfirmSmoother` is not used: a `multiple` that skips over a nack which came
    /// earlier turns it into an ack, and it holds each confirm back until all before it have come.
    unconfirmed: BTreeMap<u64, Unconfirmed>,
}

impl<F: Fn(PublisherEvent) + Send> Session<'_, F> {
    fn run(
        &mut self,
        connection: &mut Connection,
        socket: &Socket,
        way: Way<'_>,
        queued: &Receiver<Publication>,
        stop: &Receiver<Infallible>,
    ) -> Result<(), SessionError> {
        self.channel.enable_publisher_confirms()?;
        let confirms = self.channel.listen_for_publisher_confirms()?;
        let returns = self.channel.listen_for_returns()?;
        let notifications = connection.listen_for_connection_blocked()?;
        let reporter = self.reporter;
        let held = way.waiting_for().is_some();
        reporter.report(PublisherEvent::Held(way.waiting_for().map(str::to_owned)));
        reporter.report(PublisherEvent::Connected { epoch: self.epoch });
        let (change, changes) = unbounded();
        let block = |blocked| {
            socket.set_blocked(blocked);
            reporter.report(PublisherEvent::Blocked(blocked));
            let _ = change.send(Gate::Blocked(blocked));
        };
        let hold = |waiting_for: Option<&str>| {
            let _ = change.send(Gate::Held(waiting_for.is_some()));
            reporter.report(PublisherEvent::Held(waiting_for.map(str::to_owned)));
        };
        let (end, ended) = bounded(0);
        let (notifications, ended) = (&notifications, &ended);
        thread::scope(|scope| {
            // Dropped with this closure, whichever way it is left, so that the other threads end before the scope does.
            let _end: Sender<Infallible> = end;
            let spawn = |name: &str| thread::Builder::new().name(name.to_owned());
            spawn("amqp-blocked")
                .spawn_scoped(scope, move || forward_blocked(notifications, ended, block))
                .map_err(SessionError::Thread)?;
            spawn("amqp-way")
                .spawn_scoped(scope, move || way.watch(connection, ended, hold))
                .map_err(SessionError::Thread)?;
            self.publish_all(queued, stop, &confirms, &returns, &changes, Gates { blocked: false, held })
        })
    }

    fn publish_all(
        &mut self,
        queued: &Receiver<Publication>,
        stop: &Receiver<Infallible>,
        confirms: &Receiver<Confirm>,
        returns: &Receiver<Return>,
        changes: &Receiver<Gate>,
        mut gates: Gates,
    ) -> Result<(), SessionError> {
        let nothing = never();
        loop {
            changes.try_iter().for_each(|gate| gates.take(gate));
            let publishable = if gates.blocked || gates.held { &nothing } else { queued };
            select! {
                recv(stop) -> _ => return Ok(()),
                recv(changes) -> gate => gate.into_iter().for_each(|gate| gates.take(gate)),
                recv(confirms) -> confirm => match confirm {
                    Ok(confirm) => self.take_confirm(confirm, returns)?,
                    Err(_) => return Err(Error::EventLoopDropped.into()),
                },
                recv(returns) -> returned => match returned {
                    Ok(returned) => self.take_return(returned)?,
                    Err(_) => return Err(Error::EventLoopDropped.into()),
                },
                recv(publishable) -> publication => match publication {
                    Ok(publication) => self.publish(publication)?,
                    Err(_) => return Ok(()),
                },
            }
        }
    }

    fn publish(&mut self, publication: Publication) -> Result<(), Error> {
        if publication.epoch != self.epoch {
            return Ok(());
        }
        let body = match publication.body.read_all() {
            Ok(body) => body,
            Err(error) => {
                let outcome = if may_be_readable_later(&error) {
                    Outcome::Nacked
                } else {
                    Outcome::Unreadable(format!("its body cannot be read: {error}"))
                };
                self.reporter.outcome(publication.seq, outcome);
                return Ok(());
            }
        };
        let mut properties = AmqpProperties::default()
            .with_delivery_mode(PERSISTENT)
            .with_message_id(publication.message_id.to_string());
        if publication.format == Format::Pickle {
            let mut headers = FieldTable::new();
            headers.insert("DATA_FORMAT".to_owned(), AmqpValue::LongString("BYTES".to_owned()));
            properties = properties.with_headers(headers);
        }
        let mut publish = Publish::with_properties(&body, self.config.routing_key.as_str(), properties);
        publish.mandatory = true;
        self.last_tag += 1;
        let Publication { seq, message_id, .. } = publication;
        let unconfirmed = Unconfirmed { seq, message_id, bytes: body.len() as u64, returned: None };
        self.unconfirmed.insert(self.last_tag, unconfirmed);
        self.channel.basic_publish(self.config.exchange.as_str(), publish)
    }

    /// Notes what came back. Where its `message-id` does not tell which one that is, it is one of the same length, and
    /// all of these are sent again: better twice than never.
    fn take_return(&mut self, returned: Return) -> Result<(), SessionError> {
        let reason = format!("{} {}", returned.reply_code, returned.reply_text);
        let id = returned.properties.message_id().as_deref().and_then(|id| Uuid::parse_str(id).ok());
        let mut unconfirmed = self.unconfirmed.values_mut();
        if let Some(found) = unconfirmed.find(|unconfirmed| Some(unconfirmed.message_id) == id) {
            found.returned = Some(reason);
            return Ok(());
        }
        let bytes = returned.content.len() as u64;
        let mut found = false;
        for unconfirmed in self.unconfirmed.values_mut().filter(|unconfirmed| unconfirmed.bytes == bytes) {
            unconfirmed.returned = Some(reason.clone());
            found = true;
        }
        if !found {
            return Err(SessionError::UnknownReturn);
        }
        log::warn!("the broker has returned a message without its message-id; all of {bytes} bytes are sent again");
        Ok(())
    }

    fn take_confirm(&mut self, confirm: Confirm, returns: &Receiver<Return>) -> Result<(), SessionError> {
        // The broker sends a message's return before its confirm, and amiquip's I/O thread hands both on in that
        // order, but through two channels: only now is it certain that the return is in the other one.
        for returned in returns.try_iter() {
            self.take_return(returned)?;
        }
        let (payload, outcome) = match confirm {
            Confirm::Ack(payload) => (payload, Outcome::Confirmed),
            Confirm::Nack(payload) => (payload, Outcome::Nacked),
        };
        let first = if payload.multiple { 0 } else { payload.delivery_tag };
        while let Some((&tag, _)) = self.unconfirmed.range(first..=payload.delivery_tag).next() {
            let Some(Unconfirmed { seq, returned, .. }) = self.unconfirmed.remove(&tag) else { break };
            self.reporter.outcome(seq, returned.map_or_else(|| outcome.clone(), Outcome::Returned));
        }
        Ok(())
    }
}

/// Hands on that the broker has blocked the connection. On a thread of its own, since the one that publishes may be
/// waiting inside amiquip, in the middle of a body, for just this connection.
fn forward_blocked(
    notifications: &Receiver<ConnectionBlockedNotification>,
    ended: &Receiver<Infallible>,
    report: impl Fn(bool),
) {
    loop {
        select! {
            recv(notifications) -> notification => match notification {
                Ok(ConnectionBlockedNotification::Blocked(reason)) => {
                    log::warn!("the broker blocks the connection: {reason}");
                    report(true);
                }
                Ok(ConnectionBlockedNotification::Unblocked) => report(false),
                Err(_) => return,
            },
            recv(ended) -> _ => return,
        }
    }
}

/// Reports what the broker will never take. It closes the channel over a message larger than its `max_message_size`
/// without saying which; published again, that one would close the next channel, and so on for ever. Where its words do
/// not tell the size either, all that have no outcome are suspected.
fn report_refused<F: Fn(PublisherEvent)>(
    error: &Error,
    unconfirmed: &BTreeMap<u64, Unconfirmed>,
    reporter: &Reporter<F>,
) {
    let Error::ServerClosedChannel { code: PRECONDITION_FAILED, message, .. } = error else { return };
    let reason = format!("{PRECONDITION_FAILED} {message}");
    let limit = message_size_limit(message);
    if let Some(limit) = limit {
        reporter.report(PublisherEvent::SizeLimit(limit));
    }
    let limit = limit.unwrap_or(u64::MAX);
    let mut refused = unconfirmed.values().filter(|unconfirmed| unconfirmed.bytes > limit).peekable();
    if refused.peek().is_none() {
        reporter.report(PublisherEvent::Suspected { reason });
        return;
    }
    for refused in refused {
        reporter.outcome(refused.seq, Outcome::Refused(reason.clone()));
    }
}

/// The limit, in bytes, in RabbitMQ's "… message size S is larger than [configured] max size L"; 3.10 to 4.0 say it so.
fn message_size_limit(text: &str) -> Option<u64> {
    let (_, after) = text.split_once("message size ")?;
    let (_, limit) = after.split_once("max size ")?;
    limit.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_read_from_rabbitmqs_own_words() {
        let text = "PRECONDITION_FAILED - message size 16777217 is larger than configured max size 16777216";
        assert_eq!(message_size_limit(text), Some(16_777_216));
        let text = "PRECONDITION_FAILED - message size 536870913 is larger than max size 536870912";
        assert_eq!(message_size_limit(text), Some(536_870_912));
        assert_eq!(message_size_limit("PRECONDITION_FAILED - unknown delivery tag 7"), None);
    }
}
