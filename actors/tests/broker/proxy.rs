//! A TCP proxy in front of the broker that changes what is sent, or breaks the connection.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;

use user_http_actors::broker::amqp::AmqpConfig;

use crate::harness::SHARED;

/// Changes bytes that a proxy has received. Returns false to break the connection instead.
type Change = fn(&mut [u8]) -> bool;

/// Changes nothing.
pub const PASS: Change = |_| true;

/// The same names at the shared broker, through a proxy.
pub fn behind_proxy(config: AmqpConfig, from_client: Change, from_broker: Change) -> AmqpConfig {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("its address").port();
    // ends with the test process
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let server = TcpStream::connect(("127.0.0.1", SHARED.port)).expect("the broker");
            let (to_client, to_server) = (client.try_clone().expect("a clone"), server.try_clone().expect("a clone"));
            thread::spawn(move || pass(client, to_server, from_client));
            thread::spawn(move || pass(server, to_client, from_broker));
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
    for stream in [from, to] {
        let _ = stream.shutdown(Shutdown::Both);
    }
}
