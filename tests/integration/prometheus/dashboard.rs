//! Every query of `deploy/dashboard.json` gives data.

use std::fs;

use serde_json::Value;

use super::node::Prometheus;
use crate::harness::{AmqpFarm, Broker, Connection, SOON, Version, eventually, holds, post_frame};

/// The queries of all panels, with the dashboard's variables filled in as Grafana would.
fn queries(dashboard: &Value) -> Vec<(String, String)> {
    let panels = dashboard["panels"].as_array().expect("panels");
    let of_panel = |panel: &Value| {
        let title = panel["title"].as_str().expect("a title").to_owned();
        let targets = panel["targets"].as_array().cloned().unwrap_or_default();
        let query = move |target: Value| {
            let expression = target["expr"].as_str().expect("an expression");
            (title.clone(), expression.replace("$instance", "gateway").replace("$__rate_interval", "10s"))
        };
        targets.into_iter().map(query).collect::<Vec<_>>()
    };
    panels.iter().flat_map(of_panel).collect()
}

#[test]
fn each_query_of_the_dashboard_gives_data() {
    let text =
        fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/dashboard.json")).expect("the dashboard");
    let dashboard: Value = serde_json::from_str(&text).expect("JSON");
    let queries = queries(&dashboard);
    assert!(queries.len() >= 20, "{queries:?}");
    let mut amqp = AmqpFarm::at(&Broker::of(Version::Debian).url);
    amqp.user_manager();
    let prometheus = Prometheus::watching(amqp.farm.api);
    let mut worker = Connection::open(amqp.farm.http);
    for (title, query) in queries {
        eventually(&format!("{title}: {query}"), SOON, || {
            post_frame(&mut worker, 1, 100);
            amqp.farm.leave("one", "'replaced each time'");
            let samples = prometheus.query(&query);
            let is_number = |sample: &Value| sample["value"][1].as_str().is_some_and(|value| value != "NaN");
            holds(samples.iter().any(is_number), format!("{samples:?}"))
        });
    }
}
