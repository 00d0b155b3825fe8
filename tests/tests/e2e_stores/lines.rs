//! The line to a store: TLS, and HTTP proxies.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use backstay_tests::harness::Host;
use backstay_tests::harness::command::said;
use backstay_tests::harness::forward::ForwardProxy;
use backstay_tests::harness::host::hash;
use backstay_tests::harness::netns::{Authority, Cable, Socket};
use backstay_tests::harness::proxy::{Fault, Proxy};
use backstay_tests::harness::service::{SOON, Service, write_config};
use backstay_tests::harness::store::{Kind, Store};

use super::{MIB, SIZE, each_kind, noise};

const PARTS: &str = "[store]\npart_size = \"5MiB\"\n";

/// A certificate that nobody vouches for is refused at once, before anything is sent; with its authority in
/// `ca_file` the store is reached.
#[test]
fn a_store_with_tls() {
    each_kind(|kind| {
        let store = Store::shared(kind);
        let (ours, others) = (Authority::new(), Authority::new());
        let proxy = Proxy::start_tls(store.port, ours.server("127.0.0.1"));
        let host = Host::new("stores-tls");
        host.without_vault();
        let origin = format!("https://127.0.0.1:{}", proxy.port());
        host.ship_to(&store.url(), &store.variables_at(&origin));
        let disk = host.disk("db", SIZE);
        noise(&disk.backing, 0, 6 * MIB, 1);
        let backing = disk.backing.to_str().unwrap();
        let trust = |file: &Path| write_config(&host, &format!("{PARTS}ca_file = {file:?}\n"));
        let refused = |why: &str| {
            let args = ["protect", backing, "--name", "db", "--check"];
            let output = host.try_backstay(&args);
            let text = said(&output);
            assert_eq!(output.status.code(), Some(1), "{text}");
            assert!(text.contains(why) && text.contains("store.ca_file"), "{text}");
        };
        write_config(&host, PARTS);
        refused("certificate is not trusted");
        trust(&others.ca_file(host.path("others.pem")));
        refused("certificate is not trusted");
        // The right authority, another machine's name.
        let elsewhere = Proxy::start_tls(store.port, ours.server("other.example"));
        trust(&ours.ca_file(host.path("ours.pem")));
        let there = format!("https://127.0.0.1:{}", elsewhere.port());
        host.ship_to(&host.vault(), &store.variables_at(&there));
        refused("certificate is not trusted");
        // No TLS where TLS is said to be needed, and none where it is not there.
        host.ship_to(
            &host.vault(),
            &store.variables_at(&format!("http://127.0.0.1:{}", store.port)),
        );
        assert_eq!((proxy.seen(), elsewhere.seen()), (0, 0), "{kind:?}: something was sent");
        host.ship_to(&host.vault(), &store.variables_at(&origin));
        host.backstay(&["vault", "init"]);
        disk.mount(&[]);
        disk.cycle();
        assert_eq!(hash(&disk.restore(1, "restored.img")), hash(&disk.served()), "{kind:?}");
        assert!(proxy.seen() > 5);
    });
}

/// Only outbound, and only to an HTTP proxy: the source is in a network of its own where nothing else answers, not
/// even a name server. Encrypted stores are reached by CONNECT, plain ones by requests for whole URLs. No socket of
/// the source waits for connections, but for metrics on localhost.
#[test]
fn only_out_through_an_http_proxy() {
    // Azurite takes the first part of a name for the account; and so it is an address that leads nowhere.
    for (kind, tls, name) in [(Kind::S3, true, "store.example"), (Kind::Azure, false, "192.0.2.7")]
    {
        let store = Store::shared(kind);
        let authority = Authority::new();
        let server = match tls {
            true => Proxy::start_tls(store.port, authority.server(name)),
            false => Proxy::start(store.port),
        };
        let cable = Cable::new();
        let to = format!("{name}:{}", server.port());
        let address = SocketAddr::from(([127, 0, 0, 1], server.port()));
        let proxy = ForwardProxy::start(cable.listen(1), &[(to.clone(), address)]);
        let host = Host::new("stores-proxy");
        host.without_vault();
        let scheme = if tls { "https" } else { "http" };
        let mut variables = store.variables_at(&format!("{scheme}://{to}"));
        let ca = authority.ca_file(host.path("ca.pem"));
        // As a setting, and as everybody else has it.
        let setting = match tls {
            true => format!("proxy = \"{}\"\nca_file = {ca:?}\n", proxy.url()),
            false => {
                variables.push(("HTTP_PROXY".into(), proxy.url()));
                String::new()
            }
        };
        host.ship_to(&store.url(), &variables);
        let settings =
            format!("interval = \"1s\"\nheartbeat = \"0s\"\nretry = [\"1s\"]\n{PARTS}{setting}");
        write_config(&host, &settings);
        let disk = host.disk("db", SIZE);
        noise(&disk.backing, 0, 6 * MIB, 1);
        let served = disk.mount(&[]);
        let inside = |args: &[&str]| {
            let mut command = host.command();
            let output = cable.on(0, command.args(args)).output().unwrap();
            assert!(output.status.success(), "{kind:?} {args:?}: {}", said(&output));
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        inside(&["vault", "init"]);
        // In the middle of an upload the sidecar's sockets are looked at.
        let (reached, in_the_middle) = std::sync::mpsc::channel();
        let (go_on, goes_on) = std::sync::mpsc::channel::<()>();
        let goes_on = Mutex::new(goes_on);
        let parts = AtomicU64::new(0);
        server.choose(move |request| {
            if request.is_part() && parts.fetch_add(1, Ordering::Relaxed) == 0 {
                reached.send(()).unwrap();
                let _ = goes_on.lock().unwrap().recv();
            }
            Fault::Pass
        });
        let service = Service::start_as(&host, |command| cable.on(0, command));
        in_the_middle.recv_timeout(SOON).unwrap();
        let sockets = cable.sockets(0);
        go_on.send(()).unwrap();
        all_lead_to(&proxy, &sockets);
        service.says("recovery point 1");
        drop(service);
        let restored = host.path("restored.img");
        let point = inside(&["cycle", "db"]);
        assert!(point.contains("recovery point"), "{point}");
        inside(&["restore", "db", "--point", "latest", "--to", restored.to_str().unwrap()]);
        assert_eq!(hash(&restored), hash(&served), "{kind:?}");
        let (tunnels, plain) = (proxy.tunnels(), proxy.plain());
        match tls {
            true => assert!(tunnels > 0 && plain == 0, "{tunnels} {plain}"),
            false => assert!(plain > 5 && tunnels == 0, "{tunnels} {plain}"),
        }
        assert_eq!(proxy.refused(), 0);
        // Without it there is no other way out.
        proxy.stop();
        let seen = server.seen();
        write_config(&host, &format!("{settings}retries = 1\n"));
        let mut command = host.command();
        let failed = cable.on(0, command.args(["cycle", "db"])).output().unwrap();
        assert_eq!(failed.status.code(), Some(1), "{}", said(&failed));
        assert_eq!(server.seen(), seen, "{kind:?}");
    }
}

/// All sockets of a host on the first side of a cable are connections to a proxy on the other, and none waits for
/// connections, but for the one on which the host itself asks for metrics.
pub fn all_lead_to(proxy: &ForwardProxy, sockets: &[Socket]) {
    // Address and port as the kernel writes them.
    let port: u16 = proxy.url().rsplit(':').next().unwrap().parse().unwrap();
    let of_proxy = format!("{:08X}:{port:04X}", u32::from_le_bytes([10, 99, 7, 2]));
    assert!(sockets.iter().any(|socket| socket.remote == of_proxy), "{sockets:?}");
    const METRICS: &str = "0100007F:2617";
    for socket in sockets.iter().filter(|socket| socket.local != METRICS) {
        assert!(!socket.listens && socket.protocol == "tcp", "{socket:?}");
        assert_eq!(socket.remote, of_proxy);
    }
}
