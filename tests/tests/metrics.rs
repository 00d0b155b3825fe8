//! Metrics: the page lists what the program has; what is served, printed and written is what status says; and
//! Prometheus reads it.
//!
//! Needs root, /dev/fuse, loop devices, and `prometheus` with its `promtool`.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};

use backstay_metrics::page::rows;
use backstay_tests::harness::Host;
use backstay_tests::harness::metrics::{Metrics, scrape};
use backstay_tests::harness::service::{Service, wait_for, write_config};

const LISTEN: &str = "[metrics]\nlisten = \"127.0.0.1:0\"\n";

#[test]
fn the_page_lists_what_the_program_has() {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("docs/reference/metrics.md");
    let text = fs::read_to_string(path).unwrap();
    let there = text.lines().skip_while(|line| *line != "<!-- metrics -->").skip(3);
    let there: Vec<&str> = there.take_while(|line| line.starts_with('|')).collect();
    let rows = rows();
    if std::env::var_os("BACKSTAY_SHOW_FIELDS").is_some() {
        println!("{}", rows.join("\n"));
    }
    assert_eq!(there, rows, "docs/reference/metrics.md should have:\n{}", rows.join("\n"));
}

/// Where a sidecar says that its metrics are.
fn address(service: &Service) -> String {
    let line = service.says("metrics are at http://");
    line.split("http://").nth(1).unwrap().trim_end_matches("/metrics").trim().into()
}

/// What promtool has to say against metrics.
fn promtool(text: &str) -> String {
    let mut child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is there: scripts/setup test");
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
fn a_running_sidecar_tells_what_status_says() {
    let host = Host::new("metrics");
    let textfile = host.path("backstay.prom");
    let more = format!("keep = \"last 3\"\ninterval = \"1h\"\n{LISTEN}textfile = {textfile:?}\n");
    write_config(&host, &more);
    let disk = host.disk("d", 4 << 20);
    disk.mount(&[]);
    let service = Service::start(&host);
    let at = address(&service);
    wait_for("a point", || disk.causes().is_empty());
    wait_for("metrics of it", || scrape(&at).unwrap().health("d") == "ok");
    let told = scrape(&at).unwrap();
    told.assert_like(&disk.status());
    assert_eq!(told.of("backstay_cycles_total", &[("disk", "d")]), 1.0);
    assert_eq!(told.of("backstay_cycle_duration_seconds_count", &[("disk", "d")]), 1.0);
    assert!(told.of("backstay_uploaded_bytes_total", &[("disk", "d")]) > 0.0);
    assert_eq!(told.of("backstay_vault_up", &[("vault", &host.vault())]), 1.0);
    assert_eq!(told.state("d"), "protected");
    wait_for("retention", || scrape(&at).unwrap().of("backstay_points", &[("disk", "d")]) == 1.0);
    // Both formats, as Prometheus reads them.
    assert_eq!(promtool(&fs::read_to_string(&textfile).unwrap()), "");
    assert!(host.backstay(&["metrics"]).ends_with("# EOF\n"));
    assert_eq!(promtool(&host.backstay(&["metrics", "--format", "prometheus"])), "");

    // A disk that cannot be looked at is unknown, not well.
    let record = host.path("state/.failover/d.json");
    fs::create_dir_all(record.parent().unwrap()).unwrap();
    fs::write(&record, b"{").unwrap();
    let told = scrape(&at).unwrap();
    assert_eq!((told.health("d"), told.state("d")), ("unknown", "unknown"));
    assert!(told.of("backstay_rpo_seconds", &[("disk", "d")]).is_nan());
    let labels = [("disk", "d"), ("cause", "point-late")];
    assert!(told.of("backstay_disk_cause", &labels).is_nan());
    fs::remove_file(&record).unwrap();

    // One that is told to stop says so in its file.
    drop(service);
    let last = Metrics::parse(&fs::read_to_string(&textfile).unwrap());
    assert_eq!(last.hot("backstay_sidecar_state", &[], "state"), "not-running");
    assert_eq!(last.health("d"), "warning");
    assert!(TcpStream::connect(&at).is_err());
}

/// What a server answers to a query; nothing as long as it does not.
fn query(at: &str, query: &str) -> Option<serde_json::Value> {
    let mut line = TcpStream::connect(at).ok()?;
    write!(line, "GET /api/v1/query?query={query} HTTP/1.0\r\nHost: x\r\n\r\n").ok()?;
    let mut answer = String::new();
    line.read_to_string(&mut answer).ok()?;
    serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
}

#[test]
fn a_real_prometheus_reads_them() {
    let host = Host::new("metrics-real");
    write_config(&host, &format!("interval = \"1h\"\n{LISTEN}"));
    let disk = host.disk("d", 1 << 20);
    disk.mount(&[]);
    let service = Service::start(&host);
    let at = address(&service);
    wait_for("a point", || disk.causes().is_empty());
    let config = host.path("prometheus.yml");
    let text = format!(
        "global: {{scrape_interval: 1s}}\nscrape_configs:\n- job_name: backstay\n  static_configs:\n  - targets: \
         [{at:?}]\n"
    );
    fs::write(&config, text).unwrap();
    // Nobody else is given this port so soon.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mut prometheus = Command::new("prometheus")
        .arg(format!("--config.file={}", config.display()))
        .arg(format!("--storage.tsdb.path={}", host.path("tsdb").display()))
        .arg(format!("--web.listen-address={port}"))
        .stderr(Stdio::null())
        .spawn()
        .expect("prometheus is there: scripts/setup test");
    let reads = |of: &str, value: &str| {
        let answer = query(&port, of);
        answer.is_some_and(|answer| answer["data"]["result"][0]["value"][1] == value)
    };
    let read = std::panic::catch_unwind(|| {
        wait_for("a scrape", || reads("up", "1"));
        wait_for("the health", || reads("backstay_disk_health{health=%22ok%22}", "1"));
        assert!(reads("backstay_cycle_duration_seconds_count", "1"));
        drop(service);
        wait_for("that nobody answers", || reads("up", "0"));
    });
    prometheus.kill().unwrap();
    prometheus.wait().unwrap();
    read.unwrap();
}

#[test]
fn a_port_that_is_in_use_is_a_warning() {
    let host = Host::new("metrics-port");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap();
    write_config(&host, &format!("interval = \"1h\"\n[metrics]\nlisten = \"{at}\"\n"));
    let disk = host.disk("d", 1 << 20);
    disk.mount(&[]);
    let service = Service::start(&host);
    service.says("cannot serve metrics at");
    wait_for("a point", || disk.causes().is_empty());
}

#[test]
fn other_requests_and_slow_ones_are_in_nobodys_way() {
    let host = Host::new("metrics-requests");
    write_config(&host, LISTEN);
    let service = Service::start(&host);
    let at = address(&service);
    // More than are answered at a time would keep others out; these say nothing.
    let _slow: Vec<TcpStream> = (0..4).map(|_| TcpStream::connect(&at).unwrap()).collect();
    for (request, status) in [
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", "404"),
        ("POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", "405"),
        ("\x00\x01\r\n\r\n", "400"),
    ] {
        let mut line = TcpStream::connect(&at).unwrap();
        line.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        line.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
    }
    assert_eq!(scrape(&at).unwrap().of("backstay_disks", &[]), 0.0);
}
