//! A TCP proxy in front of the broker that changes bytes of what the broker sends.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;

use user_http_actors::broker::amqp::AmqpConfig;

use crate::harness::SHARED;

/// The same names at the shared broker, by way of a proxy that applies `change` to what the broker sends.
pub fn behind_proxy(config: AmqpConfig, change: fn(&mut [u8])) -> AmqpConfig {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("its address").port();
    // ends with the test process
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let server = TcpStream::connect(("127.0.0.1", SHARED.port)).expect("the broker");
            let (from_client, to_server) = (client.try_clone().expect("a clone"), server.try_clone().expect("a clone"));
            thread::spawn(move || pass(from_client, to_server, |_| {}));
            thread::spawn(move || pass(server, client, change));
        }
    });
    let url = format!("amqp://guest:guest@127.0.0.1:{port}");
    AmqpConfig { url: url.parse().expect("a valid URL"), ..config }
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
