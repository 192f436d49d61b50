//! What the two servers count: connections, bytes, and requests with how long they took.
//!
//! No label holds what a client has sent: a path is counted under the pattern of its route, and an unknown method as
//! `other`. So the number of time series is bounded.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use actix_http::{Method, Response, StatusCode};
use actix_web::body::MessageBody;
use actix_web::dev::ServiceResponse;
use metrics::{Counter, Gauge, Histogram, Label, counter, describe_counter, describe_gauge, describe_histogram};
use metrics::{gauge, histogram};

use crate::Metrics;

const REQUESTS: &str = "user_http_server_http_requests_total";
const REQUEST_DURATION: &str = "user_http_server_http_request_duration_seconds";
const CONNECTIONS: &str = "user_http_server_http_connections";
const CONNECTIONS_LIMIT: &str = "user_http_server_http_connections_limit";
const RECEIVED_BYTES: &str = "user_http_server_http_received_bytes_total";
const SENT_BYTES: &str = "user_http_server_http_sent_bytes_total";

/// The end of a parameter in a pattern that matches slashes too.
const ANYTHING: &str = ":.*}";

/// The label of what has no name of its own.
const OTHER: &str = "other";

/// The pattern of a route, as data of its resource. Without regular expressions, it is the label `route` of the
/// requests that the route answers.
#[derive(Clone, Copy, Debug)]
pub struct RoutePattern(&'static str);

impl RoutePattern {
    /// Of the resource with this path. Both spellings of the root, with a slash and without, are one route.
    pub fn of(path: &'static str) -> Self {
        Self(if path.is_empty() { "/" } else { path })
    }
}

/// The answer of a service, as a connection sends and counts it.
pub trait Answer {
    type Body: MessageBody;

    /// The pattern of the route that has given the answer, if one has, and the answer.
    fn into_parts(self) -> (Option<RoutePattern>, Response<Self::Body>);
}

impl<B: MessageBody> Answer for ServiceResponse<B> {
    type Body = B;

    fn into_parts(self) -> (Option<RoutePattern>, Response<B>) {
        let route = self.request().app_data().copied();
        (route, self.into())
    }
}

/// What a request is counted as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Labels {
    route: &'static str,
    method: &'static str,
    status: u16,
}

/// The label of a request's method.
pub fn method_label(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "POST" => "POST",
        "HEAD" => "HEAD",
        "DELETE" => "DELETE",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "OPTIONS" => "OPTIONS",
        "TRACE" => "TRACE",
        "CONNECT" => "CONNECT",
        _ => OTHER,
    }
}

/// The metrics of one server. Clones share them.
#[derive(Clone, Debug)]
pub struct ServerMetrics {
    server: &'static str,
    metrics: Metrics,
    connections: Gauge,
    traffic: Traffic,
}

/// The bytes that connections transfer; those of HTTP, without TLS.
#[derive(Clone, Debug)]
pub struct Traffic {
    pub received: Counter,
    pub sent: Counter,
}

/// An open connection.
#[derive(Debug)]
pub struct OpenConnection(Gauge);

impl ServerMetrics {
    /// The metrics of the server with this name, which has at most `max_connections` at once.
    pub fn new(metrics: &Metrics, server: &'static str, max_connections: usize) -> Self {
        metrics.record(|| {
            describe_counter!(REQUESTS, "Requests that were answered, by the status of the answer.");
            describe_histogram!(REQUEST_DURATION, "From the last byte of a request's head to that of its answer.");
            describe_gauge!(CONNECTIONS, "Open connections.");
            describe_gauge!(CONNECTIONS_LIMIT, "How many connections may be open at the same time.");
            gauge!(CONNECTIONS_LIMIT, "server" => server).set(max_connections as f64);
            describe_counter!(RECEIVED_BYTES, "Bytes received from clients, without those of TLS.");
            describe_counter!(SENT_BYTES, "Bytes sent to clients, without those of TLS.");
            Self {
                server,
                metrics: metrics.clone(),
                connections: gauge!(CONNECTIONS, "server" => server),
                traffic: Traffic {
                    received: counter!(RECEIVED_BYTES, "server" => server),
                    sent: counter!(SENT_BYTES, "server" => server),
                },
            }
        })
    }

    /// Counts a connection until the returned value is dropped.
    pub fn connection(&self) -> OpenConnection {
        self.connections.increment(1);
        OpenConnection(self.connections.clone())
    }

    fn register(&self, Labels { route, method, status }: Labels) -> Counted {
        let route = Label::new("route", route.replace(ANYTHING, "}"));
        let labels =
            [Label::from_static_parts("server", self.server), route, Label::from_static_parts("method", method)];
        let with_status = [&labels[..], &[Label::new("status", status.to_string())]].concat();
        self.metrics.record(|| Counted {
            requests: counter!(REQUESTS, with_status),
            duration: histogram!(REQUEST_DURATION, labels.to_vec()),
        })
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.decrement(1);
    }
}

/// Counts the requests of one server on one thread, which looks up each metric once.
#[derive(Debug)]
pub struct RequestMetrics {
    server: ServerMetrics,
    known: RefCell<HashMap<Labels, Rc<Counted>>>,
}

/// The metrics of requests with the same labels.
#[derive(Debug)]
struct Counted {
    requests: Counter,
    duration: Histogram,
}

/// A request that was counted, and whose answer is being sent.
#[derive(Debug)]
pub struct Answering(Rc<Counted>);

impl RequestMetrics {
    pub fn new(server: ServerMetrics) -> Self {
        Self { server, known: RefCell::default() }
    }

    /// The server's.
    pub fn traffic(&self) -> Traffic {
        self.server.traffic.clone()
    }

    /// See [`ServerMetrics::connection`].
    pub fn connection(&self) -> OpenConnection {
        self.server.connection()
    }

    /// Counts a request, before its answer is sent: a client that has the answer finds the request counted.
    pub fn answering(&self, route: Option<RoutePattern>, method: &'static str, status: StatusCode) -> Answering {
        let route = route.filter(|_| status != StatusCode::METHOD_NOT_ALLOWED);
        let labels = Labels { route: route.map_or(OTHER, |route| route.0), method, status: status.as_u16() };
        let mut known = self.known.borrow_mut();
        let counted = known.entry(labels).or_insert_with(|| Rc::new(self.server.register(labels)));
        counted.requests.increment(1);
        Answering(Rc::clone(counted))
    }

    /// Counts what was received instead of a request. How long it took is unknown.
    pub fn refused(&self, status: StatusCode) {
        self.answering(None, OTHER, status);
    }
}

impl Answering {
    /// The answer was sent, or has broken off, so long after the head of the request had arrived.
    pub fn finished(self, time: Duration) {
        self.0.duration.record(time);
    }
}
