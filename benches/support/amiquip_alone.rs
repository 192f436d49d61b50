//! The peer of forwarding: a process that publishes one body again and again, as the product publishes its outbox.

use std::error::Error;
use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use amiquip::{
    AmqpProperties, AmqpValue, Auth, Confirm, Connection, ConnectionOptions, ConnectionTuning, FieldTable, Publish,
};
use url::Url;

use crate::support::server::ending_with_us;

pub const EXCHANGE: &str = "COMMUNICATION_INTERFACE_EXCHANGE";
pub const ROUTING_KEY: &str = "CIE_USER_HTTP_SERVER";

/// Arguments that make the benchmark's program the peer: the broker, the file of the body, the number of messages.
const FLAG: &str = "--amiquip-alone";

const WINDOW_MESSAGES: u64 = 1_000;
const WINDOW_BYTES: u64 = 32 << 20;
const PATIENCE: Duration = Duration::from_secs(120);
const PERSISTENT: u8 = 2;

/// Messages per second, from the first publication to the last confirm, in a process of its own.
pub fn run(url: &str, body: &Path, count: u64) -> Result<f64, Box<dyn Error>> {
    let mut command: Command = ending_with_us(std::env::current_exe()?, "KILL");
    let output = command.args([FLAG, url]).arg(body).arg(count.to_string()).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let seconds: Result<f64, _> = text.trim().parse();
    let Ok(seconds) = seconds else {
        return Err(format!("amiquip alone says: {text}{}", String::from_utf8_lossy(&output.stderr)).into());
    };
    Ok(count as f64 / seconds)
}

/// Publishes and prints the seconds that it has taken, where the arguments are those of the peer.
pub fn publish_if_asked() -> Result<bool, Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, flag, url, body, count] = arguments.as_slice() else { return Ok(false) };
    if flag != FLAG {
        return Ok(false);
    }
    let (url, body, count) = (Url::parse(url)?, fs::read(body)?, count.parse()?);
    println!("{}", publish(&url, &body, count)?.as_secs_f64());
    Ok(true)
}

fn publish(url: &Url, body: &[u8], count: u64) -> Result<Duration, Box<dyn Error>> {
    let mut connection = connect(url)?;
    let channel = connection.open_channel(None)?;
    channel.enable_publisher_confirms()?;
    let confirms = channel.listen_for_publisher_confirms()?;
    let window = WINDOW_MESSAGES.min(WINDOW_BYTES / body.len() as u64).max(1);
    let mut headers = FieldTable::new();
    headers.insert("DATA_FORMAT".to_owned(), AmqpValue::LongString("BYTES".to_owned()));
    let properties = AmqpProperties::default().with_delivery_mode(PERSISTENT).with_headers(headers);
    let (mut sent, mut confirmed) = (0, 0);
    let start = Instant::now();
    while confirmed < count {
        while sent < count && sent < confirmed + window {
            let id = uuid::Uuid::new_v4().to_string();
            let mut publish = Publish::with_properties(body, ROUTING_KEY, properties.clone().with_message_id(id));
            publish.mandatory = true;
            channel.basic_publish(EXCHANGE, publish)?;
            sent += 1;
            // so that the window opens as soon as it may
            for confirm in confirms.try_iter() {
                confirmed = up_to(confirmed, &confirm)?;
            }
        }
        if confirmed < count {
            confirmed = up_to(confirmed, &confirms.recv_timeout(PATIENCE)?)?;
        }
    }
    let time = start.elapsed();
    connection.close()?;
    Ok(time)
}

/// How many messages this confirm covers. RabbitMQ confirms a classic queue's messages nearly in order.
fn up_to(confirmed: u64, confirm: &Confirm) -> Result<u64, Box<dyn Error>> {
    match confirm {
        Confirm::Ack(payload) if payload.multiple => Ok(confirmed.max(payload.delivery_tag)),
        Confirm::Ack(_) => Ok(confirmed + 1),
        Confirm::Nack(_) => Err("the broker has refused a message".into()),
    }
}

/// With what the product has found to be best: `TCP_NODELAY`, and bounds so that large bodies are not moved about.
fn connect(url: &Url) -> Result<Connection, Box<dyn Error>> {
    let address = (url.host_str().ok_or("no host")?, url.port().ok_or("no port")?);
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let auth = Auth::Plain { username: url.username().to_owned(), password: url.password().unwrap_or("").to_owned() };
    let options = ConnectionOptions::default().auth(auth).heartbeat(10);
    let tuning = ConnectionTuning::default()
        .mem_channel_bound(16)
        .buffered_writes_high_water(4 << 20)
        .buffered_writes_low_water(1 << 20);
    Ok(Connection::insecure_open_stream(mio::net::TcpStream::from_stream(stream)?, options, tuning)?)
}
