//! The broker's queue of the communication interface: it delivers in order, and again what was not settled.

use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use actix::{Addr, AsyncContext, Context};
use bytes::Bytes;
use user_http_actors::broker::{ConsumerEvent, ConsumerLink, Delivery, Fingerprint, Settlement, Settler};
use user_http_actors::codec::Format;
use user_http_actors::consumer::StartConsuming;
use user_http_actors::decoder::Decoder;
use user_http_actors::{BufferActor, CommunicationInterfaceConsumer};

/// What the actor sends to the broker.
enum Command {
    Consume(u16),
    Settled { connection: u64, tag: u64, queued: Queued, settlement: Settlement },
}

struct Link(Sender<Command>);

impl ConsumerLink for Link {
    fn consume(&self, prefetch: u16) {
        let _ = self.0.send(Command::Consume(prefetch));
    }

    fn stop(self: Box<Self>, _: Duration) -> bool {
        true
    }
}

/// A message in the queue.
#[derive(Clone, Debug)]
pub struct Queued {
    pub number: u64,
    pub body: Bytes,
    /// Nothing that can be stored.
    pub is_bad: bool,
    redelivered: bool,
}

/// Where what comes back to the queue has its place.
#[derive(Clone, Copy, Debug)]
pub enum Order {
    /// A classic queue: where it was.
    Kept,
    /// A quorum queue: before all others, in the order in which it came back. If connections are lost again and again,
    /// that changes the order among what was delivered over them, and nothing is promised. Here, what a lost connection
    /// brings back has its place.
    AsReturned,
}

/// The queue, which outlives the processes.
pub struct Queue {
    order: Order,
    ready: VecDeque<Queued>,
    unsettled: BTreeMap<u64, Queued>,
    tags: u64,
    connections: u64,
    is_connected: bool,
    prefetch: u16,
    /// What was delivered at once before the actor asked for the end of consuming.
    before: u16,
    /// The actor has asked for the end of consuming, and was not told yet that it has come.
    cancels: bool,
    /// What the actor has sent since: tags, and what they are settled with. It reaches the broker after that end.
    behind_cancel: Vec<(u64, Settlement)>,
}

/// The connection of one process to the queue.
pub struct Consuming {
    pub consumer: Addr<CommunicationInterfaceConsumer>,
    events: Box<dyn Fn(ConsumerEvent) + Send>,
    sender: Sender<Command>,
    commands: Receiver<Command>,
}

impl Consuming {
    pub fn start(decoder: Decoder, buffer: Addr<BufferActor>) -> Self {
        let (sender, commands) = mpsc::channel();
        let (start, started) = mpsc::channel();
        let link = Link(sender.clone());
        let start: StartConsuming = Box::new(move |events| {
            start.send(events).expect("the simulation waits");
            Box::new(link)
        });
        let ctx = Context::new();
        let address = ctx.address();
        let consumer = ctx.run(CommunicationInterfaceConsumer::new(decoder, None, buffer, start, address));
        Self { consumer, events: started.recv().expect("it has started"), sender, commands }
    }
}

impl Queue {
    pub fn new(order: Order) -> Self {
        Self {
            order,
            ready: VecDeque::new(),
            unsettled: BTreeMap::new(),
            tags: 0,
            connections: 0,
            is_connected: false,
            prefetch: 0,
            before: 0,
            cancels: false,
            behind_cancel: Vec::new(),
        }
    }

    pub fn publish(&mut self, number: u64, body: Bytes, is_bad: bool) {
        self.ready.push_back(Queued { number, body, is_bad, redelivered: false });
    }

    pub fn is_empty(&self) -> bool {
        self.ready.is_empty() && self.unsettled.is_empty()
    }

    pub fn is_connected(&self) -> bool {
        self.is_connected
    }

    pub fn connect(&mut self, consuming: &Consuming) {
        self.connections += 1;
        (self.is_connected, self.cancels) = (true, false);
        (consuming.events)(ConsumerEvent::Connected);
        if self.prefetch == 0 {
            // the connection before may have ended before it reported this
            (consuming.events)(ConsumerEvent::Cancelled);
        }
    }

    /// The connection of this process is lost.
    pub fn disconnect(&mut self, consuming: &Consuming) {
        self.lose();
        (consuming.events)(ConsumerEvent::Disconnected { reason: "lost".into() });
    }

    /// The connection is gone: what is not settled is delivered again.
    pub fn lose(&mut self) {
        self.is_connected = false;
        self.behind_cancel.clear();
        std::mem::take(&mut self.unsettled).into_values().for_each(|queued| self.come_back(queued, Order::Kept));
    }

    fn come_back(&mut self, queued: Queued, order: Order) {
        let place = match order {
            Order::Kept => self.ready.iter().take_while(|ready| ready.number < queued.number).count(),
            Order::AsReturned => self.ready.iter().take_while(|ready| ready.redelivered).count(),
        };
        self.ready.insert(place, Queued { redelivered: true, ..queued });
    }

    /// The broker gets what the actor has sent.
    fn settle(&mut self, tag: u64, settlement: Settlement) {
        let settled = self.unsettled.remove(&tag).filter(|_| settlement == Settlement::Requeue);
        settled.into_iter().for_each(|queued| self.come_back(queued, self.order));
    }

    /// Another process has this prefetch until it asks for another.
    pub fn start_over(&mut self) {
        self.lose();
        (self.prefetch, self.cancels) = (user_http_actors::consumer::FIRST_PREFETCH, false);
    }

    /// Delivers the next message, if the actor takes one. Returns its number.
    pub fn deliver(&mut self, consuming: &Consuming) -> Option<u64> {
        let prefetch = if self.cancels { self.before } else { self.prefetch };
        if !self.is_connected || self.unsettled.len() >= usize::from(prefetch) {
            return None;
        }
        let queued = self.ready.pop_front()?;
        self.tags += 1;
        let (connection, tag, sender) = (self.connections, self.tags, consuming.sender.clone());
        let settled = queued.clone();
        let settle = move |settlement| {
            drop(sender.send(Command::Settled { connection, tag, queued: settled, settlement }));
        };
        (consuming.events)(ConsumerEvent::Delivered(Delivery {
            body: queued.body.clone(),
            message_id: None,
            format: Format::Json,
            data_format: "not given".into(),
            fingerprint: Fingerprint::new(&queued.body, None),
            redelivered: queued.redelivered,
            settler: Settler::new(settle),
        }));
        let number = queued.number;
        self.unsettled.insert(tag, queued);
        Some(number)
    }

    /// Tells the actor that consuming has ended, if it has asked for that.
    pub fn report_cancelled(&mut self, consuming: &Consuming) {
        if std::mem::take(&mut self.cancels) {
            (consuming.events)(ConsumerEvent::Cancelled);
            let settled = std::mem::take(&mut self.behind_cancel);
            settled.into_iter().for_each(|(tag, settlement)| self.settle(tag, settlement));
        }
    }

    /// Takes in what the actor has sent. Returns what it has settled, also over a connection that is gone.
    pub fn take_in(&mut self, consuming: &Consuming) -> Vec<(Queued, Settlement)> {
        let mut settled = Vec::new();
        for command in consuming.commands.try_iter() {
            match command {
                Command::Consume(prefetch) => {
                    self.before = std::mem::replace(&mut self.prefetch, prefetch);
                    self.cancels |= prefetch == 0 && self.is_connected;
                }
                Command::Settled { connection, tag, queued, settlement } => {
                    settled.push((queued, settlement));
                    match connection == self.connections && self.is_connected {
                        true if self.cancels => self.behind_cancel.push((tag, settlement)),
                        true => self.settle(tag, settlement),
                        false => {}
                    }
                }
            }
        }
        settled
    }
}
