//! Metrics in Prometheus's text format, parsed; shared with the tests of the actors.

use std::collections::BTreeMap;

/// What the names of the gateway's own metrics begin with.
pub const PREFIX: &str = "user_http_server_";

/// The books of the buffer and of the outbox: what has come, and where it is.
const BOOKS: [(&[&str], &[&str]); 2] = [
    (
        &["buffer_recovered_messages", "buffer_accepted_total"],
        &[
            "buffer_delivered_total",
            "buffer_replaced_total",
            "buffer_expired_total",
            "buffer_discarded_total",
            "buffer_messages",
        ],
    ),
    (
        &["outbox_recovered_messages", "outbox_accepted_total"],
        &["outbox_forwarded_total", "outbox_discarded_total", "outbox_messages"],
    ),
];

/// What a server has answered.
#[derive(Debug)]
pub struct Scrape {
    pub text: String,
    /// The types of the metrics by their names.
    pub types: BTreeMap<String, String>,
    samples: Vec<Sample>,
}

#[derive(Debug)]
struct Sample {
    name: String,
    labels: Vec<(String, String)>,
    value: f64,
}

impl Scrape {
    #[track_caller]
    pub fn parse(text: String) -> Self {
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
        let types = types.map(|(name, kind)| (name.to_owned(), kind.to_owned())).collect();
        let samples =
            text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(Sample::parse).collect();
        Self { types, samples, text }
    }

    /// The sum of the samples of a metric of the gateway that have these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.samples(name).filter(|sample| sample.has(labels)).map(|sample| sample.value).sum()
    }

    /// The value of a metric of the gateway without labels.
    #[track_caller]
    pub fn value(&self, name: &str) -> f64 {
        let values: Vec<f64> = self.samples(name).map(|sample| sample.value).collect();
        assert_eq!(values.len(), 1, "{name}: {}", self.text);
        values[0]
    }

    /// The values of a label of a metric of the gateway.
    pub fn labels(&self, name: &str, label: &str) -> Vec<&str> {
        let labels = self.samples(name).flat_map(|sample| &sample.labels);
        labels.filter(|(name, _)| name == label).map(|(_, value)| value.as_str()).collect()
    }

    /// How many time series there are.
    pub fn series(&self) -> usize {
        self.samples.len()
    }

    /// The books that do not balance, with all their numbers. The senders of `awaited` messages in the outbox wait for
    /// their answers: these are held, and not accepted yet.
    pub fn unbalanced(&self, awaited: usize) -> Vec<String> {
        let of = |names: &[&str]| names.iter().map(|name| self.sum(name, &[])).sum::<f64>();
        let not_yet = |is: &[&str]| if is.contains(&"outbox_messages") { awaited as f64 } else { 0.0 };
        let wrong = BOOKS.iter().filter(|(come, is)| of(come) != of(is) - not_yet(is));
        wrong
            .map(|(come, is)| {
                let shown = |name: &&str| format!("{name} {}", self.sum(name, &[]));
                come.iter().chain(*is).map(shown).collect::<Vec<_>>().join(", ")
            })
            .collect()
    }

    fn samples(&self, name: &str) -> impl Iterator<Item = &Sample> {
        self.samples.iter().filter(move |sample| sample.name.strip_prefix(PREFIX) == Some(name))
    }
}

impl Sample {
    #[track_caller]
    fn parse(line: &str) -> Self {
        let parsed = line.rsplit_once(' ').and_then(|(series, value)| {
            let value = value.parse().ok()?;
            let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
            let labels = labels.strip_suffix('}')?.split_terminator("\",").map(|label| {
                let (name, value) = label.split_once("=\"")?;
                Some((name.to_owned(), value.trim_end_matches('"').to_owned()))
            });
            Some(Self { name: name.to_owned(), labels: labels.collect::<Option<_>>()?, value })
        });
        parsed.unwrap_or_else(|| panic!("no sample: {line}"))
    }

    fn has(&self, labels: &[(&str, &str)]) -> bool {
        labels.iter().all(|(name, value)| self.labels.iter().any(|(of, is)| of == name && is == value))
    }
}
