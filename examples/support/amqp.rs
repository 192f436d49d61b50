//! Connects to the broker and declares exchanges.

use amiquip::{Connection, ExchangeDeclareOptions, ExchangeType};

pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Without this parameter in the URL, amiquip waits forever for a broker that accepts the connection and then is
/// silent.
const CONNECTION_TIMEOUT_MS: &str = "10000";

pub fn connect(url: &url::Url) -> Result<Connection> {
    let mut tuned = url.clone();
    if !url.query_pairs().any(|(name, _)| name == "connection_timeout") {
        tuned.query_pairs_mut().append_pair("connection_timeout", CONNECTION_TIMEOUT_MS);
    }
    let at = format!("{}:{}", url.host_str().unwrap_or("localhost"), url.port().unwrap_or(5672));
    Connection::insecure_open(tuned.as_str())
        .map_err(|error| format!("cannot connect to {at}: {}", chain(&error)).into())
}

/// Declares the exchange unless it exists. An existing one is used as it is, whatever its properties.
pub fn ensure_exchange(connection: &mut Connection, name: &str) -> Result<()> {
    // A failed declaration closes its channel, so each one gets its own.
    if connection.open_channel(None)?.exchange_declare_passive(name).is_ok() {
        return Ok(());
    }
    let options = ExchangeDeclareOptions { durable: false, auto_delete: false, ..Default::default() };
    let channel = connection.open_channel(None)?;
    let declared = channel.exchange_declare(ExchangeType::Direct, name, options);
    declared.map_err(|error| format!("cannot declare exchange {name}: {}", chain(&error)))?;
    Ok(())
}

/// An error and its causes, on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
