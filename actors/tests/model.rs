//! The buffer actor does what a map would do, on every store, whatever the order in which things happen to it.

use crate::support::log;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use actix::Addr;
use bytes::Bytes;
use proptest::prelude::*;
use user_http_actors::administration::{DiscardBufferMsg, Requester};
use user_http_actors::broker::Fingerprint;
use user_http_actors::codec::BufferMsg;
use user_http_actors::lease::LeasedBufferMsg;
use user_http_actors::messages::{AddBufferMsg, BrokerDelivery, Drain, GetBufferState, LeaseBufferMsg, PeekBufferMsg};
use user_http_actors::payload::Payload;
use user_http_actors::store::memory::MemoryStore;
use user_http_actors::system::OpenStore;
use user_http_actors::{BufferActor, Error};

use log::open;

/// The capacity is enough for one large message and any number of small ones, whatever their metas; not for two large
/// ones.
const MAX_BYTES: u64 = 400_000;

#[derive(Clone, Debug)]
enum Step {
    /// Leave a message over HTTP.
    Add {
        uuid: u8,
        len: usize,
    },
    /// A broker brings a message.
    Bring {
        uuid: u8,
        len: usize,
    },
    /// A broker brings one of its messages again.
    Redeliver(prop::sample::Index),
    Lease(u8),
    Deliver(prop::sample::Index),
    HangUp(prop::sample::Index),
    /// An operator discards a message.
    Discard(u8),
    Restart,
    /// Everything has become too old.
    Expire,
}

fn step() -> impl Strategy<Value = Step> {
    let message = || (0..4_u8, prop_oneof![0..60_usize, 200_000..250_000_usize, 400_001..450_000_usize]);
    prop_oneof![
        4 => message().prop_map(|(uuid, len)| Step::Add { uuid, len }),
        3 => message().prop_map(|(uuid, len)| Step::Bring { uuid, len }),
        2 => any::<prop::sample::Index>().prop_map(Step::Redeliver),
        5 => (0..4_u8).prop_map(Step::Lease),
        3 => any::<prop::sample::Index>().prop_map(Step::Deliver),
        2 => any::<prop::sample::Index>().prop_map(Step::HangUp),
        2 => (0..4_u8).prop_map(Step::Discard),
        1 => Just(Step::Restart),
        1 => Just(Step::Expire),
    ]
}

/// A message of the model; its number is unique.
#[derive(Clone, Debug)]
struct Message {
    number: usize,
    body: Vec<u8>,
    leased: bool,
}

#[derive(Default)]
struct Model {
    messages: BTreeMap<u8, Message>,
    /// What was replaced while it was delivered: the length of its body, by its number.
    lingering: BTreeMap<usize, u64>,
    /// The deliveries of the broker that the service has accepted, by their index in `consumed`.
    known: BTreeSet<usize>,
    consumed: Vec<(u8, Vec<u8>)>,
    numbers: usize,
}

impl Model {
    fn bytes(&self) -> u64 {
        self.held_bytes() + self.lingering.values().sum::<u64>()
    }

    fn held_bytes(&self) -> u64 {
        self.messages.values().map(|message| message.body.len() as u64).sum()
    }

    /// Whether there is capacity for it. If so, counts it.
    fn add(&mut self, uuid: u8, body: &[u8]) -> bool {
        let replaced =
            self.messages.get(&uuid).map(|message| (message.leased, message.number, message.body.len() as u64));
        let freed = replaced.map_or(0, |(leased, _, len)| if leased { 0 } else { len });
        if self.bytes() - freed + body.len() as u64 > MAX_BYTES {
            return false;
        }
        if let Some((true, number, len)) = replaced {
            self.lingering.insert(number, len);
        }
        self.numbers += 1;
        self.messages.insert(uuid, Message { number: self.numbers, body: body.to_vec(), leased: false });
        true
    }
}

async fn start(directory: Option<&Path>, ttl: Duration) -> Addr<BufferActor> {
    let Some(directory) = directory else {
        return start_on(OpenStore::new("model", Box::new(MemoryStore)), ttl);
    };
    let (store, recovered) = open(directory).await;
    start_on(OpenStore::of_log("model", directory, store, recovered), ttl)
}

fn start_on(store: OpenStore, ttl: Duration) -> Addr<BufferActor> {
    store.start(|_| {}, |store, found, _| BufferActor::new(store, found, MAX_BYTES, ttl)).expect("a sound log")
}

fn body_of(leased: &LeasedBufferMsg) -> Vec<u8> {
    leased.view.payload.read_all().expect("readable").to_vec()
}

async fn behaves_like_the_model(directory: Option<&Path>, steps: Vec<Step>) {
    const DAY: Duration = Duration::from_secs(86_400);
    let mut buffer = start(directory, DAY).await;
    let mut model = Model::default();
    let mut leases: Vec<(u8, usize, LeasedBufferMsg)> = Vec::new();
    let (mut delivered, mut discarded, mut content) = (0, 0, 0);
    for step in steps {
        let mut new_body = |uuid: u8, len: usize| {
            content += 1;
            let mut body = format!("{uuid} {content} ").into_bytes();
            body.resize(body.len().max(len), b'.');
            body
        };
        let add = async |uuid: u8, body: &[u8], delivery| {
            let message = BufferMsg {
                pickle: Payload::from_parts(vec![Bytes::copy_from_slice(body)]),
                blend: None,
                sha256: None,
            };
            let message = AddBufferMsg { buffer_uuid: uuid.to_string().as_str().into(), message, delivery };
            let outcome = buffer.send(message).await.expect("alive");
            assert!(matches!(outcome, Ok(()) | Err(Error::NoCapacity { .. })), "{outcome:?}");
            outcome.is_ok()
        };
        match step {
            Step::Add { uuid, len } => {
                let body = new_body(uuid, len);
                assert_eq!(add(uuid, &body, None).await, model.add(uuid, &body));
            }
            Step::Bring { uuid, len } => {
                let body = new_body(uuid, len);
                let delivery = BrokerDelivery { fingerprint: Fingerprint::new(&body, None), redelivered: false };
                let taken = model.add(uuid, &body);
                assert_eq!(add(uuid, &body, Some(delivery)).await, taken);
                if taken {
                    model.known.insert(model.consumed.len());
                }
                model.consumed.push((uuid, body));
            }
            Step::Redeliver(index) if !model.consumed.is_empty() => {
                let at = index.index(model.consumed.len());
                let (uuid, body) = model.consumed[at].clone();
                let delivery = BrokerDelivery { fingerprint: Fingerprint::new(&body, None), redelivered: true };
                let taken = model.known.contains(&at) || model.add(uuid, &body);
                assert_eq!(add(uuid, &body, Some(delivery)).await, taken);
                if taken {
                    model.known.insert(at);
                }
            }
            Step::Lease(uuid) => {
                let lease = LeaseBufferMsg {
                    buffer_uuid: uuid.to_string().as_str().into(),
                    max_single_write: 0,
                    wait: Duration::ZERO,
                    seen: None,
                };
                match (buffer.send(lease).await.expect("alive"), model.messages.get_mut(&uuid)) {
                    (Err(Error::NoBufferMsg), None) => {}
                    (Err(Error::InDelivery), Some(Message { leased: true, .. })) => {}
                    (Ok(leased), Some(message @ Message { leased: false, .. })) => {
                        assert_eq!(body_of(&leased), message.body);
                        message.leased = true;
                        leases.push((uuid, message.number, leased));
                    }
                    (answer, expected) => panic!("{answer:?} where {expected:?} is expected"),
                }
            }
            Step::Deliver(index) if !leases.is_empty() => {
                let (uuid, number, leased) = leases.swap_remove(index.index(leases.len()));
                leased.lease.delivered();
                model.lingering.remove(&number);
                // a delivery of what was replaced meanwhile concerns nobody
                if model.messages.get(&uuid).is_some_and(|message| message.number == number) {
                    model.messages.remove(&uuid);
                    delivered += 1;
                }
            }
            Step::HangUp(index) if !leases.is_empty() => {
                let (uuid, number, _) = leases.swap_remove(index.index(leases.len()));
                model.lingering.remove(&number);
                let current = model.messages.get_mut(&uuid).filter(|message| message.number == number);
                current.into_iter().for_each(|message| message.leased = false);
            }
            Step::Discard(uuid) => {
                let requester = Requester { name: "a test".into(), request_id: "1".into() };
                let discard = DiscardBufferMsg { buffer_uuid: uuid.to_string().as_str().into(), requester };
                let outcome = buffer.send(discard).await.expect("alive");
                match model.messages.get(&uuid).map(|message| message.leased) {
                    None => assert!(matches!(outcome, Err(Error::NoBufferMsg)), "{outcome:?}"),
                    Some(true) => assert!(matches!(outcome, Err(Error::InDelivery)), "{outcome:?}"),
                    Some(false) => {
                        outcome.expect("it is there");
                        model.messages.remove(&uuid);
                        discarded += 1;
                    }
                }
            }
            Step::Redeliver(_) | Step::Deliver(_) | Step::HangUp(_) => {}
            Step::Restart | Step::Expire => {
                leases.clear();
                model.lingering.clear();
                buffer.send(Drain).await.expect("alive");
                if matches!(step, Step::Expire) {
                    let later = start(directory, Duration::ZERO).await;
                    let state = later.send(GetBufferState).await.expect("alive");
                    assert_eq!(state.messages, 0, "everything is too old");
                    later.send(Drain).await.expect("alive");
                    model.messages.clear();
                }
                if directory.is_none() {
                    model.messages.clear();
                    model.known.clear();
                }
                model.messages.values_mut().for_each(|message| message.leased = false);
                (delivered, discarded) = (0, 0);
                buffer = start(directory, DAY).await;
            }
        }
        let state = buffer.send(GetBufferState).await.expect("alive");
        let leased = model.messages.values().filter(|message| message.leased).count();
        assert_eq!(
            (state.messages, state.in_delivery, state.delivered_total, state.discarded_total),
            (model.messages.len(), leased, delivered, discarded)
        );
        let (count, bodies) = (state.messages as u64, model.held_bytes());
        let plausible = bodies + 512 * count..=bodies + 1_000 * count;
        assert!(plausible.contains(&state.bytes), "{} of {count} messages, {bodies} in their bodies", state.bytes);
    }
    for uuid in 0..4_u8 {
        let peek = PeekBufferMsg { buffer_uuid: uuid.to_string().as_str().into(), wait: Duration::ZERO };
        let found = buffer.send(peek).await.expect("alive").ok();
        let found = found.map(|view| view.payload.read_all().expect("readable").to_vec());
        assert_eq!(found, model.messages.get(&uuid).map(|message| message.body.clone()));
    }
    leases.clear();
    buffer.send(Drain).await.expect("alive");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn on_the_log_the_buffer_behaves_like_a_map(steps in prop::collection::vec(step(), 1..60)) {
        let directory = tempfile::tempdir().expect("a directory");
        actix::System::new().block_on(behaves_like_the_model(Some(directory.path()), steps));
    }

    #[test]
    fn in_memory_the_buffer_behaves_like_a_map(steps in prop::collection::vec(step(), 1..60)) {
        actix::System::new().block_on(behaves_like_the_model(None, steps));
    }
}
