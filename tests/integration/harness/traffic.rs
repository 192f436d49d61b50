//! Numbered messages in both directions, and checks of their outcomes.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{AmqpFarm, Connection, Response, SOON, Server, eventually, holds, request};

/// The pause between two messages: more messages than a farm has, but few enough to check each one.
const PACE: Duration = Duration::from_millis(5);
/// Larger than a frame of AMQP and smaller than what the sockets hold.
const LARGE: usize = 150_000;

const JSON: (&str, &str) = ("Content-Type", "application/json");

/// The body of AddBufferMsg, in JSON.
pub fn order_in_json(uuid: &str, message: &Value) -> String {
    json!({ "TYPE": "ADD_BUFFER_MSG", "DATA": { "BUFFER_UUID": uuid, "BUFFER_MSG": message } }).to_string()
}

/// The communication interface leaves a message over HTTP.
pub fn add_buffer_msg(to: &Server, uuid: &str, message: &Value) -> Response {
    let order = order_in_json(uuid, message);
    let path = to.api_path("/CommunicationInterface/AddBufferMsg");
    request(to.api, "POST", &path, &[JSON], order.as_bytes())
}

/// A worker posts a message of this type.
pub fn post_user_msg(to: &Server, user: &str, kind: &str, data: &Value) -> Response {
    let message = json!({ "USER_ID": user, "MAIN_DATA": { "TYPE": kind, "DATA": data } });
    request(to.http, "POST", &to.worker_path("/"), &[JSON], message.to_string().as_bytes())
}

/// A worker posts the frame with this number and an image of this many bytes; it must be answered 200.
#[track_caller]
pub fn post_frame(worker: &mut Connection, number: usize, image: usize) {
    let answer = send_frame(worker, number, image);
    assert_eq!(answer.status, 200, "{answer:?}");
}

/// As [`post_frame`]; returns the answer.
#[track_caller]
pub fn send_frame(worker: &mut Connection, number: usize, image: usize) -> Response {
    worker.request("POST", "/", &[JSON], frame_body(number, image).as_bytes())
}

/// As [`send_frame`], to a server that may go away, with another header if there is one.
pub fn try_send_frame(
    worker: &mut Connection,
    number: usize,
    image: usize,
    header: Option<(&str, &str)>,
) -> io::Result<Response> {
    let headers: Vec<_> = [JSON].into_iter().chain(header).collect();
    worker.try_send_request("POST", "/", &headers, frame_body(number, image).as_bytes())?;
    worker.try_read_response()
}

fn frame_body(number: usize, image: usize) -> String {
    let data = json!({ "FRAME": number, "IMAGE": "x".repeat(image) });
    json!({ "USER_ID": "worker-1", "MAIN_DATA": { "TYPE": "FRAME_RENDERED", "DATA": data } }).to_string()
}

/// A worker that posts frames from number 0 on, every 16th a large one, until it is ended.
pub struct Posting {
    end: Arc<AtomicBool>,
    begun: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Posting {
    pub fn start(to: SocketAddr) -> Self {
        let (end, begun) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (ended, number) = (Arc::clone(&end), Arc::clone(&begun));
        let thread = std::thread::spawn(move || {
            let mut worker = Connection::open(to);
            while !ended.load(Ordering::SeqCst) {
                let number = number.fetch_add(1, Ordering::SeqCst);
                post_frame(&mut worker, number, if number % 16 == 0 { LARGE } else { 100 });
                std::thread::sleep(PACE);
            }
        });
        Self { end, begun, thread: Some(thread) }
    }

    /// How many posts have begun.
    pub fn begun(&self) -> usize {
        self.begun.load(Ordering::SeqCst)
    }

    /// Waits until this many more have been posted.
    #[track_caller]
    pub fn wait_for_more(&self, count: usize) {
        let goal = self.begun() + count;
        eventually("frames are posted", SOON, || holds(self.begun() > goal, self.begun()));
    }

    /// Ends it and returns how many have been posted; each of them must have been answered 200.
    #[track_caller]
    pub fn finish(mut self) -> usize {
        self.end.store(true, Ordering::SeqCst);
        self.thread.take().expect("a thread").join().expect("every frame is received");
        self.begun()
    }
}

impl Drop for Posting {
    fn drop(&mut self) {
        self.end.store(true, Ordering::SeqCst);
    }
}

/// The number of a frame that has arrived for the user manager.
#[track_caller]
pub fn frame_number(message: &Value) -> usize {
    let value = message["value"].as_str().and_then(|value| value.split_once("{'FRAME': ")?.1.split([',', '}']).next());
    value.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no frame: {message}"))
}

/// The frames that have arrived for the user manager. A repeat must have the `message-id` of the first.
#[derive(Default)]
pub struct Arrivals {
    ids: BTreeMap<usize, Value>,
    /// The numbers of frames that need not arrive.
    pub lost: BTreeSet<usize>,
    in_any_order: bool,
}

impl Arrivals {
    /// The broker may have returned some, so first arrivals need not be in order.
    pub fn in_any_order() -> Self {
        Self { in_any_order: true, ..Self::default() }
    }

    /// Receives one more, and returns its number.
    #[track_caller]
    pub fn receive(&mut self, amqp: &mut AmqpFarm) -> usize {
        let message = amqp.receive();
        self.note(&message, amqp)
    }

    /// As [`Arrivals::receive`]; nothing if none comes in 30 s.
    #[track_caller]
    pub fn try_receive(&mut self, amqp: &mut AmqpFarm) -> Option<usize> {
        let message = amqp.try_receive()?;
        Some(self.note(&message, amqp))
    }

    #[track_caller]
    fn note(&mut self, message: &Value, amqp: &AmqpFarm) -> usize {
        let number = frame_number(message);
        let next = self.ids.last_key_value().map_or(0, |(last, _)| last + 1);
        let id = self.ids.entry(number).or_insert_with(|| {
            let is_next = (next..number).all(|skipped| self.lost.contains(&skipped)) && number >= next;
            assert!(self.in_any_order || is_next, "frame {number} has arrived instead of {next}; {}", amqp.farm.log());
            message["message_id"].clone()
        });
        assert_eq!(*id, message["message_id"], "frame {number} has arrived again");
        number
    }

    /// Receives until each of these has arrived, except for those that need not.
    #[track_caller]
    pub fn receive_all(&mut self, amqp: &mut AmqpFarm, numbers: Range<usize>) {
        let began = Instant::now();
        for number in numbers {
            while !self.lost.contains(&number) && !self.ids.contains_key(&number) {
                // Later ones may continue to arrive.
                assert!(began.elapsed() < 2 * SOON, "frame {number} has not come; {}", amqp.farm.log());
                let _ = self.receive(amqp);
            }
        }
    }

    /// How many of those that need not arrive have not arrived.
    pub fn lost(&self) -> usize {
        self.lost.iter().filter(|number| !self.ids.contains_key(number)).count()
    }
}

impl AmqpFarm {
    /// A user manager receives the first frames of a worker: messages flow.
    #[track_caller]
    pub fn first_frames(&mut self, count: usize) -> Arrivals {
        self.user_manager();
        let mut arrivals = Arrivals::default();
        self.post_frames(0..count);
        arrivals.receive_all(self, 0..count);
        arrivals
    }

    /// A worker posts frames.
    #[track_caller]
    pub fn post_frames(&self, numbers: Range<usize>) {
        let mut worker = Connection::open(self.farm.http);
        for number in numbers {
            post_frame(&mut worker, number, 100);
        }
    }

    /// The communication interface starts to publish messages, one each [`PACE`].
    #[track_caller]
    pub fn orders_start(&mut self) {
        self.call("orders_start", json!({ "pause": PACE.as_secs_f64(), "size": 0 }));
    }

    /// As [`AmqpFarm::orders_start`], with large messages and as fast as the broker takes them.
    #[track_caller]
    pub fn large_orders_start(&mut self) {
        self.call("orders_start", json!({ "pause": 0, "size": LARGE }));
    }

    /// Ends that and has a worker fetch each message, which must be buffered; returns the number of messages.
    #[track_caller]
    pub fn orders_stop(&mut self) -> usize {
        let count = self.call("orders_stop", json!({})).as_u64().expect("a number") as usize;
        for number in 0..count {
            let uuid = format!("order-{number}");
            let answer = eventually(&format!("{uuid} is buffered"), SOON, || {
                let answer = self.farm.ask("GET", &uuid, &[]);
                if answer.status == 200 { Ok(answer) } else { Err((answer, self.farm.log())) }
            });
            let message = format!("the message of {uuid}.");
            assert!(answer.body.windows(message.len()).any(|part| part == message.as_bytes()), "{answer:?}");
        }
        count
    }
}
