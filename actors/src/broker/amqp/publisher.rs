//! Publishes messages, and reports the outcome of each publication.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use amiquip::{
    AmqpProperties, AmqpValue, Channel, Confirm, Connection, ConnectionBlockedNotification, Error, FieldTable, Publish,
    Return,
};
use crossbeam_channel::{Receiver, Sender, bounded, never, select, unbounded};
use uuid::Uuid;

use super::connection::{ConnectionEnd, SessionError, Socket, cause};
use super::downstream::Downstream;
use super::reconnect::{Attempt, Worker, reconnect};
use super::topology::{self, PRECONDITION_FAILED};
use super::{AmqpConfig, MAX_SETTLE};
use crate::broker::{Outcome, Publication, PublisherEvent, PublisherLink};
use crate::codec::Format;
use crate::payload::may_be_readable_later;

/// `delivery-mode` of AMQP 0-9-1: a durable queue keeps the message through a restart of the broker.
const PERSISTENT: u8 = 2;

/// A running publisher. Dropping it ends the connection, without blocking. Publications without an outcome then never
/// get one.
#[derive(Debug)]
pub struct AmqpPublisher {
    /// Unbounded, so that publishing never blocks. The sender bounds how many publications have no outcome. Each costs
    /// about 100 bytes if its body is in a file.
    publications: Sender<Publication>,
    worker: Worker,
}

impl AmqpPublisher {
    /// Ends it, and waits for that for at most `deadline`; 3 s are enough if it is connected. Returns whether it has
    /// ended.
    pub fn stop(self, deadline: Duration) -> bool {
        self.worker.stop(deadline)
    }
}

impl PublisherLink for AmqpPublisher {
    fn publish(&self, publication: Publication) {
        // Fails only if `on_event` has panicked, which ends the thread.
        let _ = self.publications.send(publication);
    }
}

/// Starts a publisher to `config.publish_exchange`, and reconnects after every loss of the connection.
///
/// `on_event` is called on the publisher's own threads, by one at a time; it must not block for long. After the handle
/// is dropped, the end of the connection is not reported.
///
/// # Panics
/// If no thread can be started, as [`std::thread::spawn`] does.
pub fn start_publisher(config: AmqpConfig, on_event: impl Fn(PublisherEvent) + Send + 'static) -> AmqpPublisher {
    let (publications, queued) = unbounded();
    let worker = Worker::spawn("amqp-publisher", move |stop| {
        let reporter = Reporter(Mutex::new(on_event));
        // The end of the settle delay.
        let mut settled = None;
        reconnect(
            "AMQP publisher",
            &config,
            stop,
            |ConnectionEnd { reason, lost, .. }| {
                // They belong to the ended session, and each holds its body. What arrives before the outbox knows of
                // the end is dropped by the next session.
                queued.try_iter().for_each(drop);
                reporter.report(PublisherEvent::Disconnected { reason, lost });
            },
            |Attempt { number: epoch, after_loss }, connection, socket| {
                // The farm's services may have lost the broker too, and need time to reconnect.
                settled = if after_loss { Some(Instant::now() + config.settle.min(MAX_SETTLE)) } else { settled };
                let reporter = &reporter;
                Publisher { epoch, config: &config, reporter, queued: &queued, stop, settled }.run(connection, socket)
            },
        );
    });
    AmqpPublisher { publications, worker }
}

/// Calls `on_event`, from one thread at a time.
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

/// A publication without an outcome.
struct Unconfirmed {
    seq: u64,
    message_id: Uuid,
    bytes: u64,
    /// Reply code and text, once the broker has returned it.
    returned: Option<String>,
}

/// The reasons for a pause of publishing.
#[derive(Default)]
struct Gates {
    blocked: bool,
    waiting: bool,
}

/// What the threads that watch the connection send to the one that publishes.
enum Change {
    /// Whether the broker blocks the connection (`connection.blocked`).
    Blocked(bool),
    /// Whether publishing waits for the downstream queues.
    Waiting(bool),
    /// The downstream queues can no longer be watched.
    Failed(Error),
}

impl Gates {
    fn take(&mut self, change: Change) -> Result<(), Error> {
        match change {
            Change::Blocked(blocked) => self.blocked = blocked,
            Change::Waiting(waiting) => self.waiting = waiting,
            Change::Failed(error) => return Err(error),
        }
        Ok(())
    }
}

/// Publishes on one connection.
struct Publisher<'a, F> {
    epoch: u64,
    config: &'a AmqpConfig,
    reporter: &'a Reporter<F>,
    queued: &'a Receiver<Publication>,
    stop: &'a Receiver<Infallible>,
    /// The end of the settle delay after the last lost connection.
    settled: Option<Instant>,
}

impl<F: Fn(PublisherEvent) + Send> Publisher<'_, F> {
    fn run(&self, connection: &mut Connection, socket: &Socket) -> Result<(), SessionError> {
        let channel = topology::for_publishing(connection, self.config)?;
        let downstream = Downstream::look(connection, self.config, self.settled)?;
        let mut session = Session {
            epoch: self.epoch,
            config: self.config,
            channel: &channel,
            reporter: self.reporter,
            last_tag: 0,
            unconfirmed: BTreeMap::new(),
        };
        let result = self.run_session(&mut session, connection, socket, downstream);
        let unconfirmed = session.unconfirmed;
        match cause(result, channel.close().map_err(SessionError::from)) {
            Err(SessionError::Amqp(error)) if report_refused(&error, &unconfirmed, self.reporter) => {
                Err(SessionError::Poison(error))
            }
            ended => ended,
        }
    }

    fn run_session(
        &self,
        session: &mut Session<'_, F>,
        connection: &mut Connection,
        socket: &Socket,
        downstream: Downstream<'_>,
    ) -> Result<(), SessionError> {
        session.channel.enable_publisher_confirms()?;
        let confirms = session.channel.listen_for_publisher_confirms()?;
        let returns = session.channel.listen_for_returns()?;
        let notifications = connection.listen_for_connection_blocked()?;
        let reporter = self.reporter;
        let gates = Gates { blocked: false, waiting: downstream.waiting_for().is_some() };
        reporter.report(PublisherEvent::WaitingFor(downstream.waiting_for().map(str::to_owned)));
        reporter.report(PublisherEvent::Connected { epoch: self.epoch });
        let (change, changes) = unbounded();
        let blocked = change.clone();
        let block = move |is_blocked| {
            socket.set_blocked(is_blocked);
            reporter.report(PublisherEvent::Blocked(is_blocked));
            let _ = blocked.send(Change::Blocked(is_blocked));
        };
        let (end, ended) = bounded(0);
        let (notifications, ended) = (&notifications, &ended);
        thread::scope(|scope| {
            // Dropped on every return from this closure, also by unwinding, so that the other threads end before the
            // scope does.
            let _end: Sender<Infallible> = end;
            spawn_scoped("amqp-blocked", scope, move || forward_blocked(notifications, ended, block))?;
            spawn_scoped("amqp-downstream", scope, move || self.watch(downstream, connection, ended, &change))?;
            session.publish_all(self.queued, self.stop, &confirms, &returns, &changes, gates)
        })
    }

    fn watch(
        &self,
        downstream: Downstream<'_>,
        connection: &mut Connection,
        ended: &Receiver<Infallible>,
        change: &Sender<Change>,
    ) {
        let hold = |waiting_for: Option<&str>| {
            let _ = change.send(Change::Waiting(waiting_for.is_some()));
            self.reporter.report(PublisherEvent::WaitingFor(waiting_for.map(str::to_owned)));
        };
        if let Err(error) = downstream.watch(connection, ended, hold) {
            let _ = change.send(Change::Failed(error));
        }
    }
}

fn spawn_scoped<'scope>(
    name: &str,
    scope: &'scope thread::Scope<'scope, '_>,
    body: impl FnOnce() + Send + 'scope,
) -> Result<(), SessionError> {
    thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, body).map(drop).map_err(SessionError::Thread)
}

/// The publications on one channel.
struct Session<'a, F> {
    epoch: u64,
    config: &'a AmqpConfig,
    channel: &'a Channel,
    reporter: &'a Reporter<F>,
    /// The delivery tag of the last publication. The broker counts the messages of a channel from 1.
    last_tag: u64,
    /// Publications without an outcome, by delivery tag. amiquip's `ConfirmSmoother` is not used: it turns an earlier
    /// nack into an ack if a later `multiple` covers it, and delays each confirm until all earlier ones have arrived.
    unconfirmed: BTreeMap<u64, Unconfirmed>,
}

impl<F: Fn(PublisherEvent) + Send> Session<'_, F> {
    fn publish_all(
        &mut self,
        queued: &Receiver<Publication>,
        stop: &Receiver<Infallible>,
        confirms: &Receiver<Confirm>,
        returns: &Receiver<Return>,
        changes: &Receiver<Change>,
        mut gates: Gates,
    ) -> Result<(), SessionError> {
        let nothing = never();
        loop {
            for change in changes.try_iter() {
                gates.take(change)?;
            }
            let publishable = if gates.blocked || gates.waiting { &nothing } else { queued };
            select! {
                recv(stop) -> _ => return Ok(()),
                recv(changes) -> change => match change {
                    Ok(change) => gates.take(change)?,
                    Err(_) => return Err(Error::EventLoopDropped.into()),
                },
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
        let body = match publication.body.read_verified() {
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
        self.channel.basic_publish(self.config.publish_exchange.as_str(), publish)
    }

    /// Records that the broker has returned a message. If its `message-id` does not identify it, all publications of
    /// the same length count as returned: publishing one twice is better than losing one.
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
        log::warn!(
            "the broker has returned a message without its message-id; all unconfirmed messages of {bytes} bytes are \
             published again"
        );
        Ok(())
    }

    fn take_confirm(&mut self, confirm: Confirm, returns: &Receiver<Return>) -> Result<(), SessionError> {
        // The broker sends the return of a message before its confirm. amiquip's I/O thread forwards both in that
        // order, but through two channels: now that the confirm is here, the return is certain to be in its channel.
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

/// Reports when the broker blocks or unblocks the connection. Runs on its own thread, because the thread that publishes
/// may be waiting for space inside amiquip, in the middle of a body.
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

/// Reports the publications that the broker will never accept, if one of them has ended the channel. Returns whether
/// there is one. The broker closes the channel because of a message larger than its `max_message_size`, without saying
/// which one. Published again, that message would close the next channel, and so on forever. If the reply text does not
/// name the limit either, every publication without an outcome may be the poison message.
fn report_refused<F: Fn(PublisherEvent)>(
    error: &Error,
    unconfirmed: &BTreeMap<u64, Unconfirmed>,
    reporter: &Reporter<F>,
) -> bool {
    let Error::ServerClosedChannel { code: PRECONDITION_FAILED, message, .. } = error else { return false };
    if unconfirmed.is_empty() {
        return false;
    }
    let reason = format!("{PRECONDITION_FAILED} {message}");
    let limit = message_size_limit(message);
    if let Some(limit) = limit {
        reporter.report(PublisherEvent::SizeLimit(limit));
    }
    let limit = limit.unwrap_or(u64::MAX);
    let mut refused = unconfirmed.values().filter(|unconfirmed| unconfirmed.bytes > limit).peekable();
    if refused.peek().is_none() {
        reporter.report(PublisherEvent::Suspected { reason });
        return true;
    }
    for refused in refused {
        reporter.outcome(refused.seq, Outcome::Refused(reason.clone()));
    }
    true
}

/// The limit in bytes from the reply text "… message size S is larger than max size L" (RabbitMQ 3.10; 4.0 says
/// "configured max size").
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
