//! What comes back without telling what it is.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;

use user_http_actors::broker::amqp::AmqpConfig;
use user_http_actors::broker::{Outcome, PublisherEvent};
use user_http_actors::codec::Format;

use crate::harness::{Publishing, SHARED, SOON, config};

/// Passes on one connection to the broker after the other. Of what comes from there, the dashes of UUIDs are changed.
fn start_proxy() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("its address").port();
    // ends with the test process
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let server = TcpStream::connect(("127.0.0.1", SHARED.port)).expect("the broker");
            let (from_client, to_server) = (client.try_clone().expect("a clone"), server.try_clone().expect("a clone"));
            thread::spawn(move || pass(from_client, to_server, |_| {}));
            thread::spawn(move || pass(server, client, spoil_ids));
        }
    });
    port
}

fn pass(mut from: TcpStream, mut to: TcpStream, change: fn(&mut [u8])) {
    let mut buf = [0; 64 << 10];
    while let Ok(len @ 1..) = from.read(&mut buf) {
        change(&mut buf[..len]);
        if to.write_all(&buf[..len]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

/// The message-ids are the only texts with four dashes at these distances.
fn spoil_ids(bytes: &mut [u8]) {
    for at in 0..bytes.len().saturating_sub(15) {
        if [0, 5, 10, 15].iter().all(|offset| bytes[at + offset] == b'-') {
            bytes[at] = b'x';
        }
    }
}

#[test]
fn a_message_that_comes_back_without_its_id_does_not_count_as_delivered() {
    const COUNT: u64 = 20;
    let config = config(&SHARED, "no_id");
    let url = format!("amqp://guest:guest@127.0.0.1:{}", start_proxy());
    let mut publishing = Publishing::start(&AmqpConfig { url: url.parse().expect("a valid URL"), ..config });
    let epoch = publishing.connected(SOON);
    for seq in 0..COUNT {
        publishing.publish(epoch, seq, Format::Json, vec![b'x'; seq as usize % 3]);
    }
    let mut left = COUNT;
    publishing.events.wait("all outcomes", SOON, |event| {
        let PublisherEvent::Outcome { seq, outcome } = event else { return None };
        assert!(matches!(outcome, Outcome::Returned(_)), "{outcome:?} of message {seq}");
        left -= 1;
        (left == 0).then_some(())
    });
}
