//! Metrics as Prometheus gets them: asked of a sidecar, or printed.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

/// How long Prometheus waits for an answer, unless told otherwise.
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(10);

/// Names and values of labels.
type Labels = Vec<(String, String)>;

/// All samples of a scrape.
#[derive(Debug, Clone)]
pub struct Metrics(Vec<(String, Labels, f64)>);

/// Asks anyone who listens there.
///
/// # Errors
/// If no whole answer comes in time.
pub fn scrape(at: &str) -> io::Result<Metrics> {
    scrape_within(at, SCRAPE_TIMEOUT)
}

/// The same with a time limit.
///
/// # Errors
/// If no whole answer comes in time.
pub fn scrape_within(at: &str, limit: Duration) -> io::Result<Metrics> {
    let mut line = TcpStream::connect(at)?;
    line.set_read_timeout(Some(limit))?;
    let accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2";
    write!(
        line,
        "GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    line.read_to_string(&mut answer)?;
    let broken = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| broken("no head"))?;
    if !head.starts_with("HTTP/1.1 200") || !head.contains("application/openmetrics-text") {
        return Err(broken(head));
    }
    if !body.ends_with("# EOF\n") {
        return Err(broken("half an answer"));
    }
    Ok(Metrics::parse(body))
}

impl Metrics {
    /// Reads either format.
    ///
    /// # Panics
    /// If it makes no sense.
    pub fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        Self(lines.map(sample).collect())
    }

    /// The value of a metric with these labels (and perhaps others).
    ///
    /// # Panics
    /// If it is not there.
    #[track_caller]
    pub fn of(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.find(name, labels).unwrap_or_else(|| panic!("{name} {labels:?} is not there"))
    }

    /// The same, if it is there.
    pub fn find(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        self.all(name, labels).next().map(|(_, value)| value)
    }

    fn all(
        &self,
        name: &str,
        labels: &[(&str, &str)],
    ) -> impl Iterator<Item = (&[(String, String)], f64)> {
        self.0
            .iter()
            .filter(move |(of, has, _)| {
                of == name
                    && labels
                        .iter()
                        .all(|(key, value)| has.iter().any(|(k, v)| k == key && v == value))
            })
            .map(|(_, labels, value)| (&labels[..], *value))
    }

    /// The value of a label for which a metric is 1; exactly one must be.
    ///
    /// # Panics
    /// If it is not so.
    #[track_caller]
    pub fn hot(&self, name: &str, labels: &[(&str, &str)], of: &str) -> &str {
        let hot: Vec<&str> = self.values(name, labels, of);
        assert_eq!(hot.len(), 1, "{name} {labels:?}: {hot:?}");
        hot[0]
    }

    fn values(&self, name: &str, labels: &[(&str, &str)], of: &str) -> Vec<&str> {
        let hot = self.all(name, labels).filter(|(_, value)| *value == 1.0);
        let value = |labels: &'_ [(String, String)]| labels.iter().position(|(key, _)| key == of);
        hot.filter_map(|(labels, _)| Some(labels[value(labels)?].1.as_str())).collect()
    }

    /// The health of a disk.
    #[track_caller]
    pub fn health(&self, disk: &str) -> &str {
        self.hot("backstay_disk_health", &[("disk", disk)], "health")
    }

    /// The state of a disk.
    #[track_caller]
    pub fn state(&self, disk: &str) -> &str {
        self.hot("backstay_disk_state", &[("disk", disk)], "state")
    }

    /// What is wrong with a disk.
    pub fn causes(&self, disk: &str) -> Vec<&str> {
        self.values("backstay_disk_cause", &[("disk", disk)], "cause")
    }

    /// That a disk is as its status says it is.
    ///
    /// # Panics
    /// If it is not.
    #[track_caller]
    pub fn assert_like(&self, status: &Value) {
        let name = status["name"].as_str().unwrap();
        assert_eq!(self.health(name), status["health"]["level"].as_str().unwrap());
        let causes = status["health"]["causes"].as_array().unwrap().iter();
        let mut causes: Vec<&str> = causes
            .filter(|cause| cause["level"] != "ok")
            .map(|cause| cause["id"].as_str().unwrap())
            .collect();
        causes.sort_unstable();
        causes.dedup();
        let mut told = self.causes(name);
        told.sort_unstable();
        assert_eq!(told, causes);
    }
}

/// `name{key="value",…} number`
fn sample(line: &str) -> (String, Labels, f64) {
    let (head, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
    let value = value.parse().unwrap_or_else(|_| panic!("{line}"));
    let Some((name, labels)) = head.split_once('{') else { return (head.into(), vec![], value) };
    let (mut labels, mut all) = (labels.strip_suffix('}').expect("a brace"), vec![]);
    while let Some((key, rest)) = labels.split_once("=\"") {
        let (mut text, mut chars) = (String::new(), rest.char_indices());
        let end = loop {
            match chars.next().expect("a quote") {
                (_, '\\') => match chars.next().expect("what is escaped").1 {
                    'n' => text.push('\n'),
                    other => text.push(other),
                },
                (at, '"') => break at,
                (_, other) => text.push(other),
            }
        };
        all.push((key.trim_start_matches(',').to_owned(), text));
        labels = &rest[end + 1..];
    }
    (name.into(), all, value)
}
