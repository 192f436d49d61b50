//! `CommunicationInterfaceConsumer`: turns deliveries of the consumed queue into the message that the API route
//! sends, and settles each when its outcome is known.

use std::collections::BTreeMap;
use std::time::Duration;

use actix::prelude::*;
use tokio::sync::oneshot;

use crate::broker::{ConsumerEvent, ConsumerLink, Delivery, Settlement};
use crate::buffer::BufferActor;
use crate::decoder::Decoder;
use crate::error::{Error, ErrorKind};
use crate::handle::decode_communication_interface_message;
use crate::messages::{AddBufferMsg, BrokerDelivery, BufferUuid, ConsumerState, Drain, GetConsumerState};

/// How many deliveries the broker hands over before the first is settled: enough that a group of them shares one
/// sync of the store, few enough that the largest bodies do not fill the memory. The broker keeps the rest.
pub const PREFETCH: u16 = 32;

/// How long the consumer rests when there is no room, before it tries again.
const RETRY_DELAY: Duration = Duration::from_secs(1);

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

/// Consumes the communication interface's queue.
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
    /// One is being decoded: a later message of the same UUID must not overtake it.
    decoding: bool,
    /// There was no room; the timer runs.
    resting: bool,
    /// There was no room, and nothing has been stored since.
    full: bool,
    /// How many are on their way to the store.
    storing: usize,
    drained: Option<Vec<oneshot::Sender<()>>>,
    stored_total: u64,
    rejected_total: u64,
}

impl CommunicationInterfaceConsumer {
    /// An actor that passes on to `buffer` what `start` brings.
    pub fn new(decoder: Decoder, buffer: Addr<BufferActor>, start: StartConsuming) -> Self {
        Self {
            decoder,
            buffer,
            start: Some(start),
            link: None,
            connected: false,
            deliveries: BTreeMap::new(),
            arrivals: 0,
            decoding: false,
            resting: false,
            full: false,
            storing: 0,
            drained: None,
            stored_total: 0,
            rejected_total: 0,
        }
    }

    /// Decodes the next delivery and hands it to the buffer; the one behind it follows as soon as this one is in the
    /// buffer's mailbox, so that many can share one sync.
    fn work(&mut self, ctx: &mut Context<Self>) {
        if self.decoding || self.resting || self.drained.is_some() {
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
        match outcome {
            Ok(()) => {
                self.stored_total += 1;
                self.full = false;
                delivery.settler.settle(Settlement::Ack);
                self.drop_replaced(place, &buffer_uuid);
            }
            Err(error) if error.kind() == ErrorKind::Request || error.never_fits() => {
                self.rejected_total += 1;
                log::warn!("a message of the communication interface is rejected: {error}");
                delivery.settler.settle(Settlement::Reject);
            }
            Err(_) if self.drained.is_some() => delivery.settler.settle(Settlement::Requeue),
            Err(error) => {
                self.deliveries.insert(place, Waiting { delivery, buffer_uuid });
                if !self.full {
                    log::warn!("messages of the communication interface have to wait: {error}");
                    self.full = true;
                }
                if !self.resting {
                    self.resting = true;
                    ctx.run_later(RETRY_DELAY, |actor, ctx| {
                        actor.resting = false;
                        actor.work(ctx);
                    });
                }
            }
        }
    }

    /// A message is stored for which there was room, while an earlier one of its UUID was too large: it has taken that
    /// one's place.
    fn drop_replaced(&mut self, place: u64, buffer_uuid: &Option<BufferUuid>) {
        let earlier = self
            .deliveries
            .range(..place)
            .filter(|(_, waiting)| waiting.buffer_uuid.is_some() && waiting.buffer_uuid == *buffer_uuid);
        let replaced: Vec<u64> = earlier.map(|(&place, _)| place).collect();
        for Waiting { delivery, .. } in replaced.iter().filter_map(|place| self.deliveries.remove(place)) {
            delivery.settler.settle(Settlement::Ack);
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
                // the broker delivers them again
                self.deliveries.clear();
            }
            ConsumerEvent::Delivered(delivery) => {
                self.arrivals += 1;
                self.deliveries.insert(self.arrivals, Waiting { delivery, buffer_uuid: None });
                self.work(ctx);
            }
        }
    }
}

impl Handler<GetConsumerState> for CommunicationInterfaceConsumer {
    type Result = ConsumerState;

    fn handle(&mut self, _: GetConsumerState, _: &mut Self::Context) -> Self::Result {
        ConsumerState {
            connected: self.connected,
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
        // dropped unsettled, they go back to the broker
        self.deliveries.clear();
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
