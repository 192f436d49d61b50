//! `CommunicationInterfaceConsumer`: converts deliveries of the consumed queue into the message that the API route
//! sends too, and settles each delivery when its outcome is known.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::time::Duration;

use actix::prelude::*;
use bytes::Bytes;
use tokio::time::Instant;

use crate::any_buffer::AnyBuffer;
use crate::body_file::BodyDirectory;
use crate::broker::{ConsumerEvent, ConsumerLink, Delivery, Settlement};
use crate::buffer_uuid::BufferUuid;
use crate::decoder::Decoder;
use crate::error::{Error, ErrorKind};
use crate::facade::decode_communication_interface_message;
use crate::messages::{
    AddBufferMsg, BrokerDelivery, BufferState, ConsumerState, Drain, GetBufferState, GetConsumerState,
};
use crate::metrics::Refusals;
use crate::reply::{Deferred, Reply, deferred};

/// The initial prefetch: how many deliveries may be unsettled at once. It grows while the buffer has space.
pub const FIRST_PREFETCH: u16 = 1;

/// The largest prefetch: enough that a group of deliveries shares one sync of the store. The broker keeps all others.
/// For large messages the prefetch is smaller; see [`MAX_UNSETTLED_BYTES`].
const MAX_PREFETCH: u16 = 32;

/// How many bytes of deliveries may be unsettled at once. A delivery that exceeds this is requeued, and the prefetch
/// shrinks so that later ones stay within it if they are no larger than the last ones. A single larger delivery is
/// handled alone.
const MAX_UNSETTLED_BYTES: u64 = 64 << 20;

/// How often the consumer checks whether messages can be stored again.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// The first pause of consuming after an error of the store, such as a full disk. Until something is stored it doubles,
/// up to [`MAX_DISK_PAUSE`], because each attempt requeues a delivery, and a quorum queue counts that.
const FIRST_DISK_PAUSE: Duration = Duration::from_secs(1);
const MAX_DISK_PAUSE: Duration = Duration::from_secs(60);

/// How long a stop waits for deliveries that are being stored, and then for the broker to get the settlements.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Starts a consumer, which reports its events to the given function. Returns the link; dropping it ends the
/// connection.
pub type StartConsuming = Box<dyn FnOnce(Box<dyn Fn(ConsumerEvent) + Send>) -> Box<dyn ConsumerLink>>;

/// Why nothing is consumed.
#[derive(Clone, Copy, Debug)]
enum Pause {
    /// The buffer had no space for this many bytes. Unsettled deliveries are requeued, once those that are being stored
    /// are settled.
    NoSpace(u64),
    /// The store could not write, mostly because the disk is full. Deliveries are requeued as for `NoSpace`.
    DiskFull {
        /// No attempt is made before this time.
        until: Instant,
    },
    /// Too many bytes are unsettled. They are settled first.
    TooManyBytes,
}

impl Pause {
    /// Whether waiting deliveries are requeued without an attempt to store them.
    fn gives_back(self) -> bool {
        !matches!(self, Self::TooManyBytes)
    }
}

/// A delivery that is neither stored nor refused.
enum Waiting {
    /// To be decoded.
    Untried(Delivery),
    /// To be requeued. It arrived during a pause; its body is dropped.
    Unwanted(Delivery),
}

impl Waiting {
    fn len(&self) -> u64 {
        let (Self::Untried(delivery) | Self::Unwanted(delivery)) = self;
        delivery.body.len() as u64
    }
}

/// Consumes the communication interface's queue.
///
/// While the buffer has no space, the broker keeps the messages. A delivery that stays unsettled for long would exceed
/// the broker's `consumer_timeout`, and one that is requeued again and again a quorum queue's `delivery-limit`. So the
/// consumer stops consuming, requeues unsettled deliveries once, and starts again when there is space. A quorum queue
/// delivers requeued messages in the order in which they were requeued, so the consumer keeps requeues rare: it
/// shrinks the prefetch while the buffer fills.
///
/// Messages of one UUID are stored in the order in which they were published. So a delivery is tried only after an
/// earlier one of its UUID is stored. When one cannot be stored, no later one is sent to the buffer, and all that are
/// not being stored are requeued together, in order. At a stop nothing is requeued: what is unsettled goes back with
/// the end of the connection, which keeps its order.
pub struct CommunicationInterfaceConsumer {
    decoder: Decoder,
    /// Where large messages are written before the buffer gets them.
    bodies: Option<BodyDirectory>,
    buffer: AnyBuffer,
    /// `None` once the actor stops.
    link: Option<Box<dyn ConsumerLink>>,
    connected: bool,
    /// In the order in which they arrived.
    waiting: BTreeMap<u64, Waiting>,
    /// How many deliveries have arrived.
    arrivals: u64,
    unsettled_bytes: u64,
    /// The sizes of the last deliveries, at most [`MAX_PREFETCH`] of them.
    sizes: VecDeque<u64>,
    /// Whether a delivery is being decoded. One at a time, so that a later message of the same UUID cannot overtake it.
    decoding: bool,
    /// A decoded message that waits for an earlier one of its UUID, which is being stored.
    decoded: Option<(u64, Delivery, AddBufferMsg)>,
    /// The UUIDs of the messages that are being stored.
    storing: HashSet<BufferUuid>,
    /// How many deliveries may be unsettled at once, unless there is a pause.
    prefetch: u16,
    settled_since_look: u16,
    pause: Option<Pause>,
    /// Whether the broker has stopped delivering since the pause began.
    cancelled: bool,
    /// The length of the next pause for a full disk.
    disk_pause: Duration,
    /// Whether the timer of [`LOOK_INTERVAL`] runs, or a request for the buffer's state is in progress.
    looking: bool,
    /// A message could not be stored, and the buffer has not had plenty of space since.
    full: bool,
    /// Set by [`Drain`]: the replies that follow the end of the link.
    draining: Option<Vec<Reply<()>>>,
    stored_total: u64,
    rejected_total: u64,
    refused: Refusals,
}

impl CommunicationInterfaceConsumer {
    /// An actor that sends the deliveries of the link of `start` to `buffer`, beginning with [`FIRST_PREFETCH`]. Run it
    /// in the context that has the `address`.
    pub fn new(
        decoder: Decoder,
        bodies: Option<BodyDirectory>,
        buffer: impl Into<AnyBuffer>,
        start: StartConsuming,
        address: Addr<Self>,
    ) -> Self {
        Self {
            decoder,
            bodies,
            buffer: buffer.into(),
            link: Some(start(Box::new(move |event| address.do_send(FromBroker(event))))),
            connected: false,
            waiting: BTreeMap::new(),
            arrivals: 0,
            unsettled_bytes: 0,
            sizes: VecDeque::new(),
            decoding: false,
            decoded: None,
            storing: HashSet::new(),
            prefetch: FIRST_PREFETCH,
            settled_since_look: 0,
            pause: None,
            cancelled: false,
            disk_pause: FIRST_DISK_PAUSE,
            looking: false,
            full: false,
            draining: None,
            stored_total: 0,
            rejected_total: 0,
            refused: Refusals::of_buffer(),
        }
    }

    fn arrived(&mut self, mut delivery: Delivery, ctx: &mut Context<Self>) {
        let size = delivery.body.len() as u64;
        if self.sizes.len() == usize::from(MAX_PREFETCH) {
            self.sizes.pop_front();
        }
        self.sizes.push_back(size);
        self.arrivals += 1;
        if self.unsettled_bytes > 0 && self.unsettled_bytes + size > MAX_UNSETTLED_BYTES && self.pause.is_none() {
            self.pause(Pause::TooManyBytes, ctx);
        }
        if self.pause.is_some() {
            delivery.body = Bytes::new();
            self.waiting.insert(self.arrivals, Waiting::Unwanted(delivery));
            return self.give_back();
        }
        self.unsettled_bytes += size;
        self.waiting.insert(self.arrivals, Waiting::Untried(delivery));
        self.work(ctx);
    }

    /// Decodes the next delivery and sends it to the buffer. The one after it follows as soon as this one is in the
    /// buffer's mailbox, so that many can share one sync.
    fn work(&mut self, ctx: &mut Context<Self>) {
        if self.decoding || self.decoded.is_some() || self.stores_nothing() {
            return;
        }
        let Some(next) = self.waiting.first_entry() else { return };
        let arrival = *next.key();
        let Waiting::Untried(_) = next.get() else { return };
        let Waiting::Untried(delivery) = next.remove() else { return };
        self.decoding = true;
        let (decoder, bodies) = (self.decoder.clone(), self.bodies.clone());
        let (format, body) = (delivery.format, delivery.body.clone());
        let from = BrokerDelivery { fingerprint: delivery.fingerprint, redelivered: delivery.redelivered };
        let decoded = async move {
            let message =
                decode_communication_interface_message(&decoder, bodies.as_ref(), format, body.into()).await?;
            Ok(AddBufferMsg { delivery: Some(from), ..message })
        };
        ctx.spawn(decoded.into_actor(self).map(move |message, actor, ctx| {
            actor.decoding = false;
            match message {
                Ok(message) => {
                    actor.decoded = Some((arrival, delivery, message));
                    actor.try_the_decoded_one(ctx);
                }
                Err(error) => actor.settle(arrival, delivery, Err(error), ctx),
            }
            actor.work(ctx);
            actor.give_back();
            actor.stop_if_drained(ctx);
        }));
    }

    fn store(&mut self, arrival: u64, delivery: Delivery, message: AddBufferMsg, ctx: &mut Context<Self>) {
        let uuid = message.buffer_uuid.clone();
        self.storing.insert(uuid.clone());
        let stored = self.buffer.send(message);
        ctx.spawn(stored.into_actor(self).map(move |outcome, actor, ctx| {
            actor.storing.remove(&uuid);
            actor.settle(arrival, delivery, outcome.unwrap_or_else(|stopped| Err(stopped.into())), ctx);
            actor.try_the_decoded_one(ctx);
            actor.give_back();
            actor.stop_if_drained(ctx);
        }));
    }

    /// Stores the message in `decoded`, once no earlier one of its UUID is being stored. It goes back to `waiting` if
    /// an earlier one may have been refused while this one was being decoded.
    fn try_the_decoded_one(&mut self, ctx: &mut Context<Self>) {
        let goes_back = self.stores_nothing();
        let may_be_stored = |message: &AddBufferMsg| !self.storing.contains(&message.buffer_uuid);
        if !goes_back && !self.decoded.as_ref().is_some_and(|(_, _, message)| may_be_stored(message)) {
            return;
        }
        let Some((arrival, delivery, message)) = self.decoded.take() else { return };
        if goes_back {
            self.waiting.insert(arrival, Waiting::Untried(delivery));
        } else {
            self.store(arrival, delivery, message, ctx);
            self.work(ctx);
        }
    }

    /// Whether nothing may be sent to the buffer: it could overtake a message that was refused, or nobody would wait
    /// for the outcome.
    fn stores_nothing(&self) -> bool {
        self.pause.is_some_and(Pause::gives_back) || self.draining.is_some()
    }

    fn settle(&mut self, arrival: u64, delivery: Delivery, outcome: Result<(), Error>, ctx: &mut Context<Self>) {
        let size = delivery.body.len() as u64;
        match outcome {
            Ok(()) => {
                self.stored_total += 1;
                self.disk_pause = FIRST_DISK_PAUSE;
                self.unsettled_bytes -= size;
                delivery.settler.settle(Settlement::Ack);
                self.look_if_due(ctx);
            }
            Err(error) if error.kind() == ErrorKind::Request || error.never_fits() => {
                self.rejected_total += 1;
                self.refused.count(&error);
                self.unsettled_bytes -= size;
                let id = delivery.message_id.as_deref().unwrap_or("none");
                log::warn!(
                    "a message of the communication interface is rejected: {error} (message-id {id:?}, {size} bytes, \
                     DATA_FORMAT {})",
                    delivery.data_format
                );
                delivery.settler.settle(Settlement::Reject);
            }
            Err(error) => {
                self.waiting.insert(arrival, Waiting::Untried(delivery));
                if !std::mem::replace(&mut self.full, true) {
                    log::warn!("messages of the communication interface wait in the broker: {error}");
                }
                if !self.pause.is_some_and(Pause::gives_back) {
                    self.pause(self.pause_for(&error), ctx);
                }
            }
        }
    }

    fn pause_for(&self, error: &Error) -> Pause {
        match error {
            Error::NoCapacity { size, .. } => Pause::NoSpace(*size),
            _ => Pause::DiskFull { until: Instant::now() + self.disk_pause },
        }
    }

    /// Whether nothing is being decoded or stored.
    fn is_idle(&self) -> bool {
        !self.decoding && self.decoded.is_none() && self.storing.is_empty()
    }

    fn pause(&mut self, pause: Pause, ctx: &mut Context<Self>) {
        if let Pause::DiskFull { .. } = pause {
            self.disk_pause = (self.disk_pause * 2).min(MAX_DISK_PAUSE);
        }
        // A pause may replace one that has a less severe reason.
        if self.pause.replace(pause).is_none() {
            self.cancelled = false;
            self.link.iter().for_each(|link| link.consume(0));
        }
        self.look_later(ctx);
    }

    /// During a pause: requeues the deliveries that wait, in order, once all earlier ones are settled. The end of
    /// consuming has been requested before, so the broker has all of them back before it delivers one again.
    fn give_back(&mut self) {
        let Some(pause) = self.pause.filter(|_| self.is_idle() && self.draining.is_none()) else { return };
        let is_next = matches!(self.waiting.first_key_value(), Some((_, Waiting::Unwanted(_))));
        if pause.gives_back() || is_next {
            self.forget_waiting();
        }
    }

    /// Drops all waiting deliveries unsettled, which requeues them.
    fn forget_waiting(&mut self) {
        for (_, waiting) in std::mem::take(&mut self.waiting) {
            self.unsettled_bytes -= waiting.len();
        }
    }

    fn look_later(&mut self, ctx: &mut Context<Self>) {
        if !std::mem::replace(&mut self.looking, true) {
            ctx.run_later(LOOK_INTERVAL, |actor, ctx| actor.ask_buffer(ctx));
        }
    }

    /// Checks once for each window of deliveries.
    fn look_if_due(&mut self, ctx: &mut Context<Self>) {
        self.settled_since_look = self.settled_since_look.saturating_add(1);
        if self.settled_since_look >= self.prefetch && !std::mem::replace(&mut self.looking, true) {
            self.ask_buffer(ctx);
        }
    }

    fn ask_buffer(&mut self, ctx: &mut Context<Self>) {
        self.settled_since_look = 0;
        let state = self.buffer.send(GetBufferState);
        ctx.spawn(state.into_actor(self).map(|state, actor, ctx| {
            actor.looking = false;
            // Without the buffer actor, nothing is stored any more.
            if let Ok(state) = state {
                actor.look(&state, ctx);
            }
        }));
    }

    /// Sets the prefetch to what there is space for.
    fn look(&mut self, buffer: &BufferState, ctx: &mut Context<Self>) {
        let wanted = self.next_prefetch(buffer.free_bytes);
        let may_consume = match self.pause {
            Some(Pause::NoSpace(size)) => buffer.free_bytes >= size && buffer.store_failure.is_none(),
            Some(Pause::DiskFull { until }) => buffer.store_failure.is_none() && Instant::now() >= until,
            Some(Pause::TooManyBytes) => true,
            None => wanted != self.prefetch,
        };
        let is_over = self.pause.is_none() || self.cancelled && self.is_idle() && self.waiting.is_empty();
        if may_consume && is_over {
            self.pause = None;
            self.prefetch = wanted;
            self.link.iter().for_each(|link| link.consume(wanted));
        }
        let is_plenty = buffer.free_bytes >= buffer.max_bytes / 2 && buffer.store_failure.is_none();
        if self.full && is_plenty && self.pause.is_none() {
            log::info!("the buffer has space again for messages of the communication interface");
            self.full = false;
        }
        if self.pause.is_some() || self.full {
            self.look_later(ctx);
        }
    }

    /// One message at a time after a refusal; doubled for each window that was stored, if the free space allows four
    /// times the window; smaller if it does not allow the window. A message may take about twice the size of its JSON.
    fn next_prefetch(&self, free: u64) -> u16 {
        let largest = self.sizes.iter().copied().max().unwrap_or(0).max(1);
        let fits = free.min(2 * MAX_UNSETTLED_BYTES) / (2 * largest);
        let current = u64::from(self.prefetch);
        let next = match self.pause {
            Some(pause) if pause.gives_back() => 1,
            _ if current > fits => fits,
            _ if 4 * current <= fits => 2 * current,
            _ => current,
        };
        next.clamp(1, MAX_PREFETCH.into()) as u16
    }

    /// Stops the link, if the actor drains and nothing is on its way to the store any more.
    fn stop_if_drained(&mut self, ctx: &mut Context<Self>) {
        if self.draining.is_some() && self.is_idle() {
            self.stop_link(ctx);
        }
    }

    /// Stops the link, then replies to every [`Drain`] and stops the actor. What is not settled goes back to the queue.
    fn stop_link(&mut self, ctx: &mut Context<Self>) {
        let Some(link) = self.link.take() else { return };
        let stopped = tokio::task::spawn_blocking(move || link.stop(DRAIN_TIMEOUT));
        ctx.spawn(stopped.into_actor(self).map(|clean, actor, ctx| {
            if !clean.unwrap_or(false) {
                log::warn!("the broker did not get the last settlements; it will deliver these messages again");
            }
            actor.draining.take().into_iter().flatten().for_each(|reply| reply.send(()));
            ctx.stop();
        }));
    }
}

impl Actor for CommunicationInterfaceConsumer {
    type Context = Context<Self>;
}

/// What happens on the consuming connection.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct FromBroker(ConsumerEvent);

impl Handler<FromBroker> for CommunicationInterfaceConsumer {
    type Result = ();

    fn handle(&mut self, FromBroker(event): FromBroker, ctx: &mut Self::Context) {
        match event {
            ConsumerEvent::Connected => {
                log::info!("consuming messages of the communication interface");
                self.connected = true;
            }
            ConsumerEvent::Disconnected { reason } => {
                log::warn!("not consuming messages of the communication interface: {reason}");
                self.connected = false;
                // The broker will deliver them again.
                self.forget_waiting();
                if let Some((_, delivery, _)) = self.decoded.take() {
                    self.unsettled_bytes -= delivery.body.len() as u64;
                }
            }
            ConsumerEvent::Delivered(delivery) => self.arrived(delivery, ctx),
            ConsumerEvent::Cancelled => self.cancelled = self.pause.is_some(),
        }
    }
}

impl Handler<GetConsumerState> for CommunicationInterfaceConsumer {
    type Result = ConsumerState;

    fn handle(&mut self, _: GetConsumerState, _: &mut Self::Context) -> Self::Result {
        ConsumerState {
            connected: self.connected,
            paused: self.pause.is_some(),
            stored_total: self.stored_total,
            rejected_total: self.rejected_total,
        }
    }
}

impl Handler<Drain> for CommunicationInterfaceConsumer {
    type Result = Deferred<()>;

    fn handle(&mut self, _: Drain, ctx: &mut Self::Context) -> Self::Result {
        let (reply, deferred) = deferred();
        let is_first = self.draining.is_none();
        self.draining.get_or_insert_default().push(reply);
        if is_first {
            self.try_the_decoded_one(ctx);
            ctx.run_later(DRAIN_TIMEOUT, |actor, ctx| actor.stop_link(ctx));
            self.stop_if_drained(ctx);
        }
        deferred
    }
}
