//! Messages with strings that are not UTF-8 or nest deeply: any publisher can leave them, and they stop nothing.

use std::io::{self, Read, Write};
use std::net::TcpStream;

use amiquip::{
    AmqpProperties, AmqpValue, Auth, Channel, Connection, ConnectionOptions, ConnectionTuning, ExchangeDeclareOptions,
    ExchangeType, FieldTable, IoStream, Publish,
};
use mio::{Evented, Poll, PollOpt, Ready, Token};
use user_http_actors::broker::Settlement;
use user_http_actors::codec::Format;

use crate::broker::harness::{Consuming, Peer, SHARED, SOON, config};
use crate::broker::rabbitmq::RabbitMq;

/// A connection to the broker that sends the byte 0xff for each `~`. No client library lets one say that.
struct Corrupting(mio::net::TcpStream);

impl IoStream for Corrupting {}

impl Read for Corrupting {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl Write for Corrupting {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let corrupted: Vec<u8> = buf.iter().map(|&byte| if byte == b'~' { 0xff } else { byte }).collect();
        self.0.write(&corrupted)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Evented for Corrupting {
    fn register(&self, poll: &Poll, token: Token, interest: Ready, opts: PollOpt) -> io::Result<()> {
        self.0.register(poll, token, interest, opts)
    }

    fn reregister(&self, poll: &Poll, token: Token, interest: Ready, opts: PollOpt) -> io::Result<()> {
        self.0.reregister(poll, token, interest, opts)
    }

    fn deregister(&self, poll: &Poll) -> io::Result<()> {
        self.0.deregister(poll)
    }
}

/// A publisher of such messages.
fn corrupting(broker: &RabbitMq) -> (Channel, Connection) {
    let stream = TcpStream::connect(("127.0.0.1", broker.port)).expect("the broker");
    let stream = Corrupting(mio::net::TcpStream::from_stream(stream).expect("a stream of mio's"));
    let options = ConnectionOptions::<Auth>::default();
    let mut connection =
        Connection::insecure_open_stream(stream, options, ConnectionTuning::default()).expect("a connection");
    let channel = connection.open_channel(None).expect("a channel");
    (channel, connection)
}

fn headers(headers: &[(&str, AmqpValue)]) -> AmqpProperties {
    let headers: FieldTable = headers.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    AmqpProperties::default().with_headers(headers)
}

fn text(text: &str) -> AmqpValue {
    AmqpValue::LongString(text.to_owned())
}

#[test]
fn messages_that_amiquip_cannot_read_are_delivered_and_what_is_behind_them_too() {
    let config = config(&SHARED, "poison");
    let mut consuming = Consuming::start(&config, 1);
    consuming.connected(SOON);
    let (channel, _connection) = corrupting(&SHARED);
    let nested = (0..100).fold(text("deep"), |value, _| AmqpValue::FieldArray(vec![value]));
    let pickled = ("DATA_FORMAT", text("BYTES"));
    let poison = [
        AmqpProperties::default().with_content_type("text/~".to_owned()),
        AmqpProperties::default().with_content_encoding("~".to_owned()).with_message_id("~~".to_owned()),
        headers(&[("A~", text("~ ~")), pickled.clone()]),
        headers(&[("A", nested), pickled]),
        AmqpProperties::default(),
    ];
    for (number, properties) in poison.into_iter().enumerate() {
        let body = number.to_string();
        let publish = Publish::with_properties(body.as_bytes(), config.consume_queue.as_str(), properties);
        channel.basic_publish(config.consume_exchange.as_str(), publish).expect("publishing");
    }
    for (number, format) in
        [Format::Json, Format::Json, Format::Pickle, Format::Pickle, Format::Json].iter().enumerate()
    {
        let delivery = consuming.delivered();
        assert_eq!((&delivery.body[..], delivery.format), (number.to_string().as_bytes(), *format));
        if number == 1 {
            assert_eq!(delivery.message_id.as_deref(), Some("??"));
        }
        delivery.settler.settle(Settlement::Ack);
    }
    let seen = consuming.events.all();
    assert!(!seen.iter().any(|event| event.contains("Disconnected")), "{seen:#?}");
}

#[test]
fn a_routing_key_that_amiquip_cannot_read_stops_nothing() {
    let config = config(&SHARED, "poisonkey");
    let peer = Peer::connect(&SHARED);
    let exchange = config.consume_exchange.as_str();
    peer.channel
        .exchange_declare(ExchangeType::Fanout, exchange, ExchangeDeclareOptions::default())
        .expect("the exchange");
    let mut consuming = Consuming::start(&config, 1);
    consuming.connected(SOON);
    let (channel, _connection) = corrupting(&SHARED);
    for (key, body) in [("k~y", "1"), ("key", "2")] {
        channel.basic_publish(exchange, Publish::new(body.as_bytes(), key)).expect("publishing");
    }
    for body in ["1", "2"] {
        let delivery = consuming.delivered();
        assert_eq!(&delivery.body[..], body.as_bytes());
        delivery.settler.settle(Settlement::Ack);
    }
}
