//! `CommunicationInterfaceConsumer`: turns deliveries of the consumed queue into the message that the API route
//! sends, and settles each when its outcome is known.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use actix::prelude::*;
use tokio::sync::oneshot;

use crate::broker::{ConsumerEvent, ConsumerLink, Delivery, Settlement};
use crate::buffer::BufferActor;
use crate::buffer_uuid::BufferUuid;
use crate::decoder::Decoder;
use crate::error::{Error, ErrorKind};
use crate::facade::decode_communication_interface_message;
use crate::messages::{
    AddBufferMsg, BrokerDelivery, BufferState, ConsumerState, Drain, GetBufferState, GetConsumerState, RememberReplaced,
};

/// How many deliveries the broker hands over before the first is settled: enough that a group of them shares one
/// sync of the store. The broker keeps the rest. Large ones are fewer; see [`MAX_IN_HAND_BYTES`].
pub const PREFETCH: u16 = 32;

/// How many bytes of deliveries are in hand. One that exceeds it goes back to the queue, and from then on so few are
/// handed over at once that they keep to it, as far as the last ones tell. A single larger one is taken alone.
const MAX_IN_HAND_BYTES: u64 = 64 << 20;

/// How often it is looked, while there was no room or deliveries are large, whether there is room for more.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// How long nothing is consumed after the disk was full; doubles each time up to [`MAX_DISK_PAUSE`] until something is
/// stored. What is tried in between goes back to the queue, which counts that.
const FIRST_DISK_PAUSE: Duration = Duration::from_secs(1);
const MAX_DISK_PAUSE: Duration = Duration::from_secs(60);

/// How long a stop waits for deliveries on their way to the store, and then for the broker to hear of them.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Starts to consume; called once, when the actor starts. What comes is told to the function that it is given. The
/// connection lasts as long as what is returned.
pub type StartConsuming = Box<dyn FnOnce(Box<dyn Fn(ConsumerEvent) + Send>) -> Box<dyn ConsumerLink>>;

/// A delivery that waits, and for whom it is, once that is known.
struct Waiting {
    delivery: Delivery,
    buffer_uuid: Option<BufferUuid>,
}

/// Why nothing is consumed.
#[derive(Clone, Copy, Debug)]
enum Pause {
    /// There was no room for so many bytes. What is in hand goes back to the queue, once what is on its way to the store
    /// is settled.
    NoRoom(u64),
    /// The disk was full. Likewise.
    DiskFull {
        /// Nothing is tried before.
        until: Instant,
    },
    /// Too much is in hand. It is worked off; what still comes goes back to the queue.
    InHand,
}

impl Pause {
    fn gives_back(self) -> bool {
        !matches!(self, Self::InHand)
    }
}

/// Consumes the communication interface's queue.
///
/// While there is no room the broker keeps the messages: a delivery that is held for long would run into its
/// `consumer_timeout`, and one that goes back again and again into a quorum queue's `delivery-limit`. So consuming ends,
/// what is in hand goes back once, and consuming begins again when there is room, one message at a time at first.
pub struct CommunicationInterfaceConsumer {
    decoder: Decoder,
    buffer: Addr<BufferActor>,
    start: Option<StartConsuming>,
    link: Option<Box<dyn ConsumerLink>>,
    connected: bool,
    /// Deliveries that wait, by their place in the order in which they came.
    deliveries: BTreeMap<u64, Waiting>,
    /// How many have come.
    arrivals: u64,
    /// Bytes of deliveries that are not settled.
    in_hand_bytes: u64,
    /// The sizes of the last ones, at most [`PREFETCH`].
    sizes: VecDeque<u64>,
    /// One is being decoded: a later message of the same UUID must not overtake it.
    decoding: bool,
    /// How many are on their way to the store.
    storing: usize,
    /// How many deliveries are taken at once, unless there is a pause.
    prefetch: u16,
    pause: Option<Pause>,
    /// How long the next pause for a full disk is.
    disk_pause: Duration,
    /// The timer of [`LOOK_INTERVAL`] runs.
    looking: bool,
    /// There was no room, and there has not been plenty since.
    full: bool,
    drained: Option<Vec<oneshot::Sender<()>>>,
    stored_total: u64,
    rejected_total: u64,
}

impl CommunicationInterfaceConsumer {
    /// An actor that passes on to `buffer` what `start` brings. That begins with [`PREFETCH`].
    pub fn new(decoder: Decoder, buffer: Addr<BufferActor>, start: StartConsuming) -> Self {
        Self {
            decoder,
            buffer,
            start: Some(start),
            link: None,
            connected: false,
            deliveries: BTreeMap::new(),
            arrivals: 0,
            in_hand_bytes: 0,
            sizes: VecDeque::new(),
            decoding: false,
            storing: 0,
            prefetch: PREFETCH,
            pause: None,
            disk_pause: FIRST_DISK_PAUSE,
            looking: false,
            full: false,
            drained: None,
            stored_total: 0,
            rejected_total: 0,
        }
    }

    fn arrived(&mut self, delivery: Delivery, ctx: &mut Context<Self>) {
        let size = delivery.body.len() as u64;
        if self.sizes.len() == usize::from(PREFETCH) {
            self.sizes.pop_front();
        }
        self.sizes.push_back(size);
        let is_too_much = self.in_hand_bytes > 0 && self.in_hand_bytes + size > MAX_IN_HAND_BYTES;
        if is_too_much && self.pause.is_none() {
            self.pause(Pause::InHand, ctx);
        }
        // what comes during a pause goes back, behind what will go back before it
        if self.pause.is_some() && (is_too_much || self.is_idle()) {
            return delivery.settler.settle(Settlement::Requeue);
        }
        self.arrivals += 1;
        self.in_hand_bytes += size;
        self.deliveries.insert(self.arrivals, Waiting { delivery, buffer_uuid: None });
        self.work(ctx);
    }

    /// Decodes the next delivery and hands it to the buffer; the one behind it follows as soon as this one is in the
    /// buffer's mailbox, so that many can share one sync.
    fn work(&mut self, ctx: &mut Context<Self>) {
        if self.decoding || self.pause.is_some_and(Pause::gives_back) || self.drained.is_some() {
            return;
        }
        let Some((place, Waiting { delivery, .. })) = self.deliveries.pop_first() else { return };
        self.decoding = true;
        let decoder = self.decoder.clone();
        let (format, body) = (delivery.format, delivery.body.clone());
        let from = BrokerDelivery { fingerprint: delivery.fingerprint, redelivered: delivery.redelivered };
        let decoded = async move {
            let message = decode_communication_interface_message(&decoder, format, body).await?;
            Ok(AddBufferMsg { delivery: Some(from), ..message })
        };
        ctx.spawn(decoded.into_actor(self).map(move |message, actor, ctx| {
            actor.decoding = false;
            match message {
                Ok(message) => actor.store(place, delivery, message, ctx),
                Err(error) => actor.settle(place, Waiting { delivery, buffer_uuid: None }, Err(error), ctx),
            }
            actor.work(ctx);
        }));
    }

    fn store(&mut self, place: u64, delivery: Delivery, message: AddBufferMsg, ctx: &mut Context<Self>) {
        self.storing += 1;
        let waiting = Waiting { delivery, buffer_uuid: Some(message.buffer_uuid.clone()) };
        let stored = self.buffer.send(message);
        ctx.spawn(stored.into_actor(self).map(move |outcome, actor, ctx| {
            actor.storing -= 1;
            actor.settle(place, waiting, outcome.unwrap_or_else(|gone| Err(gone.into())), ctx);
            actor.tell_if_drained();
        }));
    }

    fn settle(&mut self, place: u64, waiting: Waiting, outcome: Result<(), Error>, ctx: &mut Context<Self>) {
        let Waiting { delivery, buffer_uuid } = waiting;
        let size = delivery.body.len() as u64;
        match outcome {
            Ok(()) => {
                self.stored_total += 1;
                self.disk_pause = FIRST_DISK_PAUSE;
                self.in_hand_bytes -= size;
                delivery.settler.settle(Settlement::Ack);
                self.drop_replaced(place, &buffer_uuid, ctx);
            }
            Err(error) if error.kind() == ErrorKind::Request || error.never_fits() => {
                self.rejected_total += 1;
                self.in_hand_bytes -= size;
                let id = delivery.message_id.as_deref().unwrap_or("none");
                log::warn!(
                    "a message of the communication interface is rejected: {error} (message-id {id:?}, {size} bytes, \
                     DATA_FORMAT {})",
                    delivery.data_format
                );
                delivery.settler.settle(Settlement::Reject);
            }
            Err(_) if self.drained.is_some() => {
                self.in_hand_bytes -= size;
                delivery.settler.settle(Settlement::Requeue);
            }
            Err(error) => {
                self.deliveries.insert(place, Waiting { delivery, buffer_uuid });
                if !std::mem::replace(&mut self.full, true) {
                    log::warn!("messages of the communication interface have to wait, the broker keeps them: {error}");
                }
                if !self.pause.is_some_and(Pause::gives_back) {
                    self.pause(self.pause_for(&error), ctx);
                }
            }
        }
        self.give_back_if_idle();
    }

    fn pause_for(&self, error: &Error) -> Pause {
        match error {
            Error::NoRoom { size, .. } => Pause::NoRoom(*size),
            _ => Pause::DiskFull { until: Instant::now() + self.disk_pause },
        }
    }

    /// Whether nothing is being decoded or stored.
    fn is_idle(&self) -> bool {
        !self.decoding && self.storing == 0
    }

    fn pause(&mut self, pause: Pause, ctx: &mut Context<Self>) {
        self.pause = Some(pause);
        if let Pause::DiskFull { .. } = pause {
            self.disk_pause = (self.disk_pause * 2).min(MAX_DISK_PAUSE);
        }
        self.link.iter().for_each(|link| link.consume(0));
        self.look_later(ctx);
    }

    /// What there was no room for goes back to the queue, unless a later message of its UUID, which was on its way to the
    /// store, has taken its place.
    fn give_back_if_idle(&mut self) {
        if self.pause.is_some_and(Pause::gives_back) && self.is_idle() {
            self.forget_deliveries();
        }
    }

    /// Dropped unsettled, they go back to the broker.
    fn forget_deliveries(&mut self) {
        for (_, Waiting { delivery, .. }) in std::mem::take(&mut self.deliveries) {
            self.in_hand_bytes -= delivery.body.len() as u64;
        }
    }

    fn look_later(&mut self, ctx: &mut Context<Self>) {
        if !std::mem::replace(&mut self.looking, true) {
            ctx.run_later(LOOK_INTERVAL, |actor, ctx| {
                let state = actor.buffer.send(GetBufferState);
                ctx.spawn(state.into_actor(actor).map(|state, actor, ctx| {
                    actor.looking = false;
                    // without the buffer nothing is stored any more
                    if let Ok(state) = state {
                        actor.look(&state, ctx);
                    }
                }));
            });
        }
    }

    /// Takes as many deliveries as there is room for.
    fn look(&mut self, buffer: &BufferState, ctx: &mut Context<Self>) {
        // large ones as many as may be in hand
        let largest = self.sizes.iter().copied().max().unwrap_or(0).max(1);
        let most = (MAX_IN_HAND_BYTES / largest).clamp(1, PREFETCH.into()) as u16;
        let is_plenty = buffer.room >= buffer.max_bytes / 2 && buffer.store_failure.is_none();
        // one at a time while there is little room: the next one may be too large again, and goes back alone
        let wanted = if is_plenty || !self.full { most } else { 1 };
        let may_go_on = match self.pause {
            Some(Pause::NoRoom(size)) => buffer.room >= size && buffer.store_failure.is_none(),
            Some(Pause::DiskFull { until }) => buffer.store_failure.is_none() && Instant::now() >= until,
            Some(Pause::InHand) => true,
            None => wanted > self.prefetch,
        };
        let is_over = self.pause.is_none() || self.is_idle() && self.deliveries.is_empty();
        if may_go_on && is_over {
            self.pause = None;
            self.prefetch = wanted;
            self.link.iter().for_each(|link| link.consume(wanted));
        }
        if self.full && is_plenty && self.pause.is_none() {
            log::info!("there is room again for messages of the communication interface");
            self.full = false;
        }
        if self.pause.is_some() || self.prefetch < PREFETCH {
            self.look_later(ctx);
        }
    }

    /// A message is stored for which there was room, while an earlier one of its UUID was too large: it has taken that
    /// one's place, for good: the earlier one may come again if its acknowledgement is lost.
    fn drop_replaced(&mut self, place: u64, buffer_uuid: &Option<BufferUuid>, ctx: &mut Context<Self>) {
        let earlier = self
            .deliveries
            .range(..place)
            .filter(|(_, waiting)| waiting.buffer_uuid.is_some() && waiting.buffer_uuid == *buffer_uuid);
        let replaced: Vec<u64> = earlier.map(|(&place, _)| place).collect();
        for place in replaced {
            let Some(Waiting { delivery, .. }) = self.deliveries.remove(&place) else { continue };
            self.in_hand_bytes -= delivery.body.len() as u64;
            let kept = self.buffer.send(RememberReplaced { fingerprint: delivery.fingerprint });
            ctx.spawn(kept.into_actor(self).map(|kept, _, _| {
                if kept.is_ok() {
                    delivery.settler.settle(Settlement::Ack);
                }
            }));
        }
    }

    fn tell_if_drained(&mut self) {
        if self.storing == 0 {
            for reply in self.drained.iter_mut().flat_map(|waiting| waiting.drain(..)) {
                let _ = reply.send(());
            }
        }
    }
}

impl Actor for CommunicationInterfaceConsumer {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        if let Some(start) = self.start.take() {
            let this = ctx.address();
            self.link = Some(start(Box::new(move |event| this.do_send(FromBroker(event)))));
        }
    }
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
                // The broker delivers them again. One that waits for another of its UUID to be stored may be replaced.
                if !self.pause.is_some_and(Pause::gives_back) {
                    self.forget_deliveries();
                }
            }
            ConsumerEvent::Delivered(delivery) => self.arrived(delivery, ctx),
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
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, _: Drain, _: &mut Self::Context) -> Self::Result {
        let (reply, drained) = oneshot::channel();
        self.drained.get_or_insert_default().push(reply);
        self.forget_deliveries();
        self.tell_if_drained();
        let settled = async move {
            let _ = tokio::time::timeout(DRAIN_TIMEOUT, drained).await;
        };
        Box::pin(settled.into_actor(self).then(|(), actor, _| {
            let link = actor.link.take();
            let stopped = tokio::task::spawn_blocking(move || link.is_none_or(|link| link.stop(DRAIN_TIMEOUT)));
            stopped.into_actor(actor).map(|clean, _, ctx: &mut Context<Self>| {
                if !clean.unwrap_or(false) {
                    log::warn!("the broker has not heard of the last settled deliveries; it will deliver them again");
                }
                ctx.stop();
            })
        }))
    }
}
