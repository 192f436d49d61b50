//! A TCP proxy in front of the broker that changes what is sent, or breaks the connection.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;

use user_http_actors::broker::amqp::AmqpConfig;

use crate::broker::harness::SHARED;

/// Changes bytes that a proxy has received. Returns false to break the connection instead.
type Change = fn(&mut [u8]) -> bool;

/// Changes nothing.
pub const PASS: Change = |_| true;

/// The same names at the shared broker, through a proxy.
pub fn behind_proxy(config: AmqpConfig, from_client: Change, from_broker: Change) -> AmqpConfig {
    behind(config, move |from, to| pass(from, to, from_client), move |from, to| pass(from, to, from_broker))
}

/// The same names at the shared broker, through a proxy that puts others in the place of the broker's frames. Each
/// connection begins with `change` as it is given here.
pub fn behind_frames(
    config: AmqpConfig,
    change: impl FnMut(Vec<u8>) -> Vec<u8> + Clone + Send + 'static,
) -> AmqpConfig {
    behind(config, |from, to| pass(from, to, PASS), move |from, to| pass_frames(from, to, change.clone()))
}

fn behind(
    config: AmqpConfig,
    from_client: impl Fn(TcpStream, TcpStream) + Clone + Send + 'static,
    from_broker: impl Fn(TcpStream, TcpStream) + Clone + Send + 'static,
) -> AmqpConfig {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("its address").port();
    // ends with the test process
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let server = TcpStream::connect(("127.0.0.1", SHARED.port)).expect("the broker");
            let (to_client, to_server) = (client.try_clone().expect("a clone"), server.try_clone().expect("a clone"));
            let (from_client, from_broker) = (from_client.clone(), from_broker.clone());
            thread::spawn(move || from_client(client, to_server));
            thread::spawn(move || from_broker(server, to_client));
        }
    });
    let url = format!("amqp://guest:guest@127.0.0.1:{port}");
    AmqpConfig { url: url.parse().expect("a valid URL"), ..config }
}

fn pass(mut from: TcpStream, mut to: TcpStream, change: Change) {
    let mut buf = [0; 64 << 10];
    while let Ok(len @ 1..) = from.read(&mut buf) {
        if !change(&mut buf[..len]) || to.write_all(&buf[..len]).is_err() {
            break;
        }
    }
    end([from, to]);
}

fn pass_frames(mut from: TcpStream, mut to: TcpStream, mut change: impl FnMut(Vec<u8>) -> Vec<u8>) {
    // type, channel, and the size of what follows up to the last byte
    let mut head = [0; 7];
    while from.read_exact(&mut head).is_ok() {
        let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
        let mut frame = head.to_vec();
        frame.resize(head.len() + size + 1, 0);
        if from.read_exact(&mut frame[head.len()..]).is_err() || to.write_all(&change(frame)).is_err() {
            break;
        }
    }
    end([from, to]);
}

fn end(streams: [TcpStream; 2]) {
    for stream in streams {
        let _ = stream.shutdown(Shutdown::Both);
    }
}
