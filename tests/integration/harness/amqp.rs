//! A server with a broker, and the farm's programs at the other side of both.

use serde_json::{Value, json};

use super::{Broker, Direction, Farm, Proxy, SOON, Setup, Version, eventually, hex, holds};

/// No settle delay after a lost connection: in most tests the peer has reconnected before messages flow.
const NOT_SETTLED: [&str; 2] = ["--amqp-settle", "0"];

/// A server that is connected to a broker, and a peer that speaks to both.
pub struct AmqpFarm {
    pub farm: Farm,
    /// Where the peer finds the broker.
    pub url: String,
}

impl AmqpFarm {
    /// With a fresh vhost of the shared broker.
    pub fn start(version: Version) -> Self {
        Self::at(&Broker::of(version).url)
    }

    /// With a broker that is running.
    pub fn at(url: &str) -> Self {
        let farm = Self::away(url);
        farm.wait_until_consuming();
        farm
    }

    /// With a broker that may be away.
    pub fn away(url: &str) -> Self {
        Self::with(url, &["--amqp-url", url, NOT_SETTLED[0], NOT_SETTLED[1]])
    }

    /// With arguments of its own.
    pub fn with(url: &str, args: &[&str]) -> Self {
        Self { farm: Farm::with(args), url: url.to_owned() }
    }

    /// With a proxy between the server and the broker; the peer is at the broker itself.
    pub fn behind(proxy: &Proxy, url: &str) -> Self {
        let farm = Farm::of(Setup::default().args(["--amqp-url", proxy.url()]).args(NOT_SETTLED));
        let amqp = Self { farm, url: url.to_owned() };
        amqp.wait_until_consuming();
        amqp
    }

    /// Waits until `/readyz` reports this state of the broker.
    #[track_caller]
    pub fn wait_until(&self, broker: &str) {
        eventually(&format!("the broker is {broker}"), SOON, || {
            let ready = self.farm.readyz();
            holds(ready["broker"] == broker, (ready, self.farm.log()))
        });
    }

    /// Waits until the server publishes and consumes.
    #[track_caller]
    pub fn wait_until_consuming(&self) {
        eventually("the server publishes and consumes", SOON, || {
            let ready = self.farm.readyz();
            let both = ready["broker"] == "connected" && ready["consumer"]["connected"] == true;
            holds(both, (ready, self.farm.log()))
        });
    }

    /// Calls a function of the peer that works at the broker.
    #[track_caller]
    pub fn call(&mut self, what: &str, mut arguments: Value) -> Value {
        arguments["url"] = self.url.as_str().into();
        self.farm.peer.call(what, arguments)
    }

    /// The communication interface starts to consume, on behalf of the user manager.
    #[track_caller]
    pub fn user_manager(&mut self) {
        self.call("user_manager_start", json!({}));
    }

    /// The next message that the communication interface consumes for the user manager.
    #[track_caller]
    pub fn receive(&mut self) -> Value {
        self.try_receive().unwrap_or_else(|| panic!("no message came; log of the server:\n{}", self.farm.log()))
    }

    /// As [`AmqpFarm::receive`]; nothing if none comes in 30 s.
    #[track_caller]
    pub fn try_receive(&mut self) -> Option<Value> {
        let message = self.call("user_manager_next", json!({ "seconds": 30 }));
        (!message.is_null()).then_some(message)
    }

    /// The communication interface publishes a message.
    #[track_caller]
    pub fn publish(&mut self, body: &[u8], pickled: bool) {
        self.call("publish", json!({ "data": hex(body), "pickled": pickled }));
    }

    #[track_caller]
    pub fn publish_value(&mut self, value: &str) {
        let body = self.farm.peer.dumps(value, 4);
        self.publish(&body, true);
    }

    /// Fetches a message; waits until it is buffered.
    #[track_caller]
    pub fn fetch_when_there(&mut self, uuid: &str) -> String {
        eventually(&format!("{uuid} is buffered"), SOON, || {
            let answer = self.farm.fetch(uuid);
            if answer.status == 200 { Ok(answer.value) } else { Err((answer, self.farm.log())) }
        })
    }

    /// Waits until the gateway's queue has this number of consumers and of ready messages.
    #[track_caller]
    pub fn wait_for_own_queue(&mut self, consumers: u64, messages: u64) {
        eventually(&format!("{consumers} consumers and {messages} messages at the own queue"), SOON, || {
            let state = self.call("queue_state", json!({ "name": "UHTTPSE_CI" }));
            holds(state["consumers"] == consumers && state["messages"] == messages, (state, self.farm.log()))
        });
    }

    /// Has the server store a message of the communication interface whose acknowledgement never reaches the broker.
    ///
    /// For a server [behind](Self::behind) the proxy. Afterwards the server has no connection, the broker has the
    /// message in the queue again, and [`Proxy::forward`] lets the server come back and be given it once more.
    #[track_caller]
    pub fn lose_the_acknowledgement_of(&mut self, proxy: &Proxy, value: &str) {
        let stored_total = |amqp: &Self| amqp.farm.readyz()["consumer"]["stored_total"].as_u64();
        let before = stored_total(self);
        proxy.swallow(&[Direction::ToBroker]);
        self.publish_value(value);
        eventually("the message is stored", SOON, || holds(stored_total(self) > before, self.farm.log()));
        proxy.cut();
        self.wait_for_own_queue(0, 1);
    }
}
