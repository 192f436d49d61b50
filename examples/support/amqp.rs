//! What both sides of the broker need: a connection, and an exchange to publish to or to bind to.

use amiquip::{Connection, ExchangeDeclareOptions, ExchangeType};

pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// amiquip waits without bound for a broker that takes the connection and says nothing, unless the URL has a bound.
const CONNECTION_TIMEOUT_MS: &str = "10000";

pub fn connect(url: &url::Url) -> Result<Connection> {
    let mut tuned = url.clone();
    if !url.query_pairs().any(|(name, _)| name == "connection_timeout") {
        tuned.query_pairs_mut().append_pair("connection_timeout", CONNECTION_TIMEOUT_MS);
    }
    let at = format!("{}:{}", url.host_str().unwrap_or("localhost"), url.port().unwrap_or(5672));
    Connection::insecure_open(tuned.as_str())
        .map_err(|error| format!("no connection to {at}: {}", chain(&error)).into())
}

/// Declares the exchange where there is none. One that exists is used as it is, whatever its properties.
pub fn ensure_exchange(connection: &mut Connection, name: &str) -> Result<()> {
    // A failed declaration closes its channel, so each has its own.
    if connection.open_channel(None)?.exchange_declare_passive(name).is_ok() {
        return Ok(());
    }
    let options = ExchangeDeclareOptions { durable: false, auto_delete: false, ..Default::default() };
    let channel = connection.open_channel(None)?;
    let declared = channel.exchange_declare(ExchangeType::Direct, name, options);
    declared.map_err(|error| format!("cannot declare exchange {name}: {}", chain(&error)))?;
    Ok(())
}

/// An error and its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
