//! A server with a Python program of the farm beside it.

use std::ops::{Deref, DerefMut};

use serde_json::json;
use sha2::{Digest, Sha256};

use super::{Answer, Connection, Host, Peer, Response, Server, Setup, hex, request};

/// A server and a Python program of the farm, with the farm's ordinary calls.
pub struct Farm {
    pub server: Server,
    pub peer: Peer,
}

impl Deref for Farm {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

impl DerefMut for Farm {
    fn deref_mut(&mut self) -> &mut Server {
        &mut self.server
    }
}

/// The body of a worker's POST, as Python source.
pub fn frame(kind: &str, data: &str) -> String {
    format!("{{'USER_ID': 'worker-1', 'MAIN_DATA': {{'TYPE': '{kind}', 'DATA': {data}}}}}")
}

/// The body of AddBufferMsg, as Python source.
pub fn order(uuid: &str, message: &str) -> String {
    format!("{{'TYPE': 'ADD_BUFFER_MSG', 'DATA': {{'BUFFER_UUID': '{uuid}', 'BUFFER_MSG': {message}}}}}")
}

/// What the user manager must receive for a worker's message, as Python source.
pub fn forwarded(kind: &str, data: &str) -> String {
    let message = if kind == "RENDER_COMPLETED" { format!(", 'MESSAGE': {data}") } else { String::new() };
    format!(
        "{{'TYPE': 'MESSAGE_FOR_USER_MANAGER', 'DATA': {{'TYPE': 'USER_MESSAGE', \
         'DATA': {{'TYPE': '{kind}', 'DATA': {data}{message}, 'USER_ID': 'worker-1'}}}}}}"
    )
}

/// A message that the user manager has taken from NextMessage.
#[derive(Debug)]
pub struct Message {
    pub id: String,
    pub delivery_count: String,
    pub content_type: String,
    /// The header `DATA_FORMAT`.
    pub data_format: Option<String>,
    pub body: Vec<u8>,
    /// The body as Python source.
    pub value: String,
}

impl Farm {
    /// A server without a broker.
    pub fn start() -> Self {
        Self::of(Setup::default())
    }

    /// A gateway without a broker in this host.
    pub fn on(host: Host) -> Self {
        Self::of(Setup::on(host))
    }

    /// A server with additional arguments.
    pub fn with(args: &[&str]) -> Self {
        Self::of(Setup::default().args(args))
    }

    /// A server started with this setup.
    pub fn of(setup: Setup) -> Self {
        Self { server: setup.start(), peer: Peer::get() }
    }

    /// The communication interface leaves a message, as JSON.
    #[track_caller]
    pub fn leave(&mut self, uuid: &str, message: &str) {
        let url = self.server.api_url("/CommunicationInterface/AddBufferMsg");
        let answer = self.peer.answer("post_json", json!({ "url": url, "value": order(uuid, message) }));
        assert_eq!((answer.status, answer.value.as_str()), (200, "{'STATUS': 'SUCCESS'}"), "{answer:?}");
    }

    /// The communication interface leaves a message, as a pickle.
    #[track_caller]
    pub fn leave_pickle(&mut self, uuid: &str, message: &str, protocol: u8) {
        let url = self.server.api_url("/CommunicationInterface/AddBufferMsg");
        let arguments = json!({ "url": url, "value": order(uuid, message), "protocol": protocol });
        let answer = self.peer.answer("post_pickle", arguments);
        assert_eq!((answer.status, answer.value.as_str()), (200, "{'STATUS': 'SUCCESS'}"), "{answer:?}");
    }

    /// The communication interface leaves a message that asks for a .blend file.
    #[track_caller]
    pub fn leave_blend(&mut self, uuid: &str, path: &str) {
        self.leave(
            uuid,
            &format!(
                "{{'DATA': {{'META_DATA': 'EXTRACT_BLEND_FILE_FROM_PATH', 'BINARY_BLEND_FILE': {}}}}}",
                json!(path)
            ),
        );
    }

    /// A worker fetches a message.
    #[track_caller]
    pub fn fetch(&mut self, uuid: &str) -> Answer {
        let url = self.server.worker_url();
        self.peer.answer("get", json!({ "url": url, "uuid": uuid }))
    }

    /// A worker fetches a message that must be there; its value.
    #[track_caller]
    pub fn fetch_value(&mut self, uuid: &str) -> String {
        let answer = self.fetch(uuid);
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.value
    }

    /// Checks that there is no message under a UUID.
    #[track_caller]
    pub fn expect_no_message(&mut self, uuid: &str) {
        let answer = self.fetch(uuid);
        assert_eq!((answer.status, answer.value.as_str()), (400, "{'message': 'No Buffer Message'}"), "{answer:?}");
    }

    /// A worker posts a message as a pickle; it must be received.
    #[track_caller]
    pub fn post(&mut self, value: &str) {
        let arguments = json!({ "url": self.server.worker_url(), "value": value, "protocol": 4 });
        let answer = self.peer.answer("post_pickle", arguments);
        assert_eq!(answer.status, 200, "{answer:?}");
    }

    /// A worker posts a message as JSON; it must be received.
    #[track_caller]
    pub fn post_json(&mut self, value: &str) {
        let answer = self.peer.answer("post_json", json!({ "url": self.server.worker_url(), "value": value }));
        assert_eq!(answer.status, 200, "{answer:?}");
    }

    /// A worker posts bytes.
    #[track_caller]
    pub fn post_bytes(&self, content_type: &str, body: &[u8]) -> Response {
        request(self.server.http, "POST", &self.worker_path("/"), &[("Content-Type", content_type)], body)
    }

    /// The communication interface posts bytes.
    #[track_caller]
    pub fn order_bytes(&self, content_type: &str, body: &[u8]) -> Response {
        request(
            self.server.api,
            "POST",
            &self.api_path("/CommunicationInterface/AddBufferMsg"),
            &[("Content-Type", content_type)],
            body,
        )
    }

    /// A bare request to the workers' server for a message.
    #[track_caller]
    pub fn ask(&self, method: &str, uuid: &str, headers: &[(&str, &str)]) -> Response {
        request(self.server.http, method, &self.worker_path(&format!("/?bufferUUID={uuid}")), headers, b"")
    }

    /// A bare request to the workers' server, by its whole path.
    #[track_caller]
    pub fn ask_path(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Response {
        request(self.server.http, method, path, headers, b"")
    }

    /// Starts to fetch a message and reads the answer's head. The returned connection is at the start of the body.
    #[track_caller]
    pub fn begin_fetch(&self, uuid: &str) -> (Connection, Response) {
        let mut connection = Connection::open(self.server.http);
        connection.send_head("GET", &self.worker_path(&format!("/?bufferUUID={uuid}")), &[]);
        let head = connection.read_head();
        assert_eq!(head.status, 200, "{head:?}");
        (connection, head)
    }

    /// The user manager asks for the oldest message; the raw answer.
    #[track_caller]
    pub fn next_answer(&self, query: &str) -> Response {
        request(self.server.api, "GET", &self.api_path(&format!("/UserManager/NextMessage?{query}")), &[], b"")
    }

    /// The user manager asks for the oldest message.
    #[track_caller]
    pub fn next(&mut self, query: &str) -> Option<Message> {
        let answer = self.next_answer(query);
        if answer.status == 204 {
            return None;
        }
        assert_eq!(answer.status, 200, "{answer:?}");
        let header = |name| answer.header(name).unwrap_or_else(|| panic!("no {name}: {answer:?}")).to_owned();
        let content_type = header("content-type");
        let value = match content_type.as_str() {
            "application/json" => self.peer.json_loads(&answer.body),
            "application/octet-stream" => self.peer.loads(&answer.body),
            other => panic!("Content-Type {other}: {answer:?}"),
        };
        let data_format = answer.header("data_format").map(str::to_owned);
        Some(Message {
            id: header("message-id"),
            delivery_count: header("delivery-count"),
            content_type,
            data_format,
            body: answer.body,
            value,
        })
    }

    /// The user manager takes the oldest message, which must exist, and deletes it.
    #[track_caller]
    pub fn take(&mut self) -> Message {
        let message = self.next("wait=30").expect("a message for the user manager");
        assert_eq!(self.delete(&message.id), 204);
        message
    }

    /// The user manager deletes a message; returns the status.
    #[track_caller]
    pub fn delete(&self, id: &str) -> u16 {
        request(self.server.api, "DELETE", &self.api_path(&format!("/UserManager/Messages/{id}")), &[], b"").status
    }

    /// Checks that nothing waits for the user manager.
    #[track_caller]
    pub fn expect_nothing_for_the_user_manager(&mut self) {
        let message = self.next("wait=0");
        assert!(message.is_none(), "{message:?}");
    }

    /// What `/readyz` says.
    #[track_caller]
    pub fn readyz(&self) -> serde_json::Value {
        request(self.server.api, "GET", &self.api_path("/readyz"), &[], b"").json()
    }
}

/// What stands in a message in place of a .blend file.
#[derive(Debug)]
pub struct Referred {
    pub sha256: String,
    pub size: u64,
    pub path: String,
}

/// The reference to a file with this content.
pub fn referred(farm: &Farm, content: &[u8]) -> Referred {
    let sha256 = hex(&Sha256::digest(content));
    let path = farm.worker_path(&format!("/blends/{sha256}"));
    Referred { sha256, size: content.len() as u64, path }
}
