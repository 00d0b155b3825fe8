//! What the configuration says of groups.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use backstay_format::control::HOLD_NS_MAX;
use backstay_types::DiskName;
use backstay_vault::GroupName;
use serde::{Deserialize, Serialize};

use super::GroupError;
use crate::config::Config;

/// Where a coordinator listens, unless told otherwise.
pub const PORT_DEFAULT: u16 = 20004;

/// A consistency group, as one host sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GroupConfig {
    /// The disks of this host that are in it.
    pub disks: Vec<DiskName>,
    /// From one cut to the next.
    #[serde(with = "humantime_serde")]
    pub interval: Option<Duration>,
    /// The longest that writes wait.
    #[serde(with = "humantime_serde")]
    pub hold_deadline: Duration,
    /// The longest that a round waits until all can be cut.
    #[serde(with = "humantime_serde")]
    pub ready_deadline: Duration,
    /// Set on the host that coordinates others.
    pub coordinator: Option<CoordinatorConfig>,
    /// Set on the hosts that are coordinated.
    pub member: Option<MemberConfig>,
}

/// The host that says when all are cut.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CoordinatorConfig {
    /// Where the others reach it.
    #[serde(default = "listen_default")]
    pub listen: SocketAddr,
    /// The other hosts, by the names in their certificates.
    pub hosts: Vec<String>,
}

/// A host whose group another one coordinates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberConfig {
    /// The coordinator: `host` or `host:port`, the host as its certificate names it.
    pub dial: String,
}

/// How hosts know each other: PEM files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// The authority that signed the certificates of all hosts.
    pub ca: PathBuf,
    /// This host's certificate, and those between it and the authority.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The list of revoked certificates; read again when it changes, as the others are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<PathBuf>,
}

fn listen_default() -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], PORT_DEFAULT))
}

impl Default for GroupConfig {
    fn default() -> Self {
        Self {
            disks: vec![],
            interval: None,
            hold_deadline: Duration::from_millis(200),
            ready_deadline: Duration::from_secs(60),
            coordinator: None,
            member: None,
        }
    }
}

/// A group as it is run: settings that were checked.
#[derive(Debug, Clone)]
pub struct Group {
    /// Its name.
    pub name: GroupName,
    /// Its settings.
    pub config: GroupConfig,
    /// From one cut to the next.
    pub interval: Duration,
    /// Where the points of its disks go.
    pub vault: String,
}

impl Group {
    /// The group of a name.
    ///
    /// # Errors
    /// If the configuration has none, or says of it what makes no sense.
    pub fn find(config: &Config, name: &GroupName) -> Result<Self, GroupError> {
        let Some(group) = config.group.get(name) else {
            let known: Vec<&str> = config.group.keys().map(GroupName::as_str).collect();
            let known = if known.is_empty() { "none".into() } else { known.join(", ") };
            return Err(GroupError::Config {
                group: name.clone(),
                reason: format!("the configuration has no [group.{name}] (it has: {known})"),
            });
        };
        let wrong = |reason: String| Err(GroupError::Config { group: name.clone(), reason });
        let mut disks = group.disks.clone();
        disks.sort();
        let Some(first) = disks.first() else {
            return wrong("disks: name at least one disk of this host".into());
        };
        if let Some(twice) = disks.windows(2).find(|pair| pair[0] == pair[1]) {
            return wrong(format!("disks: {} is named twice", twice[0]));
        }
        let vault = config.vault_of(first).to_owned();
        for disk in &disks {
            if config.vault_of(disk) != vault {
                return wrong(format!(
                    "disk {disk} goes to {}, disk {first} to {vault}: all disks of a group go to \
                     one vault",
                    config.vault_of(disk)
                ));
            }
            let other = config.group.iter().find(|(n, g)| *n != name && g.disks.contains(disk));
            if let Some((other, _)) = other {
                return wrong(format!("disk {disk} is in group {other} too: it can be in one"));
            }
        }
        let hold_max = Duration::from_nanos(HOLD_NS_MAX);
        if group.hold_deadline.is_zero() || group.hold_deadline > hold_max {
            return wrong(format!("hold_deadline: more than 0, and at most {hold_max:?}"));
        }
        if group.coordinator.is_some() && group.member.is_some() {
            return wrong("this host is its coordinator or a member, not both".into());
        }
        if group.coordinator.as_ref().is_some_and(|c| c.hosts.is_empty()) {
            return wrong("coordinator.hosts: name the other hosts, or remove the section".into());
        }
        let remote = group.coordinator.is_some() || group.member.is_some();
        if remote && config.tls.is_none() {
            return wrong("hosts need [tls] ca, cert and key to know each other".into());
        }
        Ok(Self {
            name: name.clone(),
            interval: group.interval.unwrap_or(config.interval),
            config: GroupConfig { disks, ..group.clone() },
            vault,
        })
    }
}

impl MemberConfig {
    /// The coordinator's name and port.
    #[must_use]
    pub fn address(&self) -> (&str, u16) {
        // An IPv6 address has colons of its own: then the port needs brackets.
        let bare = |host: &'_ str| host.trim_start_matches('[').trim_end_matches(']').len();
        match self.dial.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
                match port.parse() {
                    Ok(port) => {
                        let from = usize::from(host.starts_with('['));
                        (&host[from..from + bare(host)], port)
                    }
                    Err(_) => (&self.dial, PORT_DEFAULT),
                }
            }
            _ => {
                let from = usize::from(self.dial.starts_with('['));
                (&self.dial[from..from + bare(&self.dial)], PORT_DEFAULT)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(text: &str) -> Result<Group, String> {
        let config: Config = toml::from_str(text).map_err(|e| e.to_string())?;
        Group::find(&config, &"shop".parse().unwrap()).map_err(|e| e.to_string())
    }

    #[test]
    fn a_group_of_one_host() {
        let group = find("[group.shop]\ndisks = [\"b\", \"a\"]\ninterval = \"5s\"").unwrap();
        assert_eq!(group.config.disks, ["a".parse().unwrap(), "b".parse().unwrap()]);
        assert_eq!(group.interval, Duration::from_secs(5));
        assert_eq!(group.config.hold_deadline, Duration::from_millis(200));
    }

    #[test]
    fn mistakes_are_named() {
        let tls = "[tls]\nca = \"a\"\ncert = \"b\"\nkey = \"c\"\n";
        for (text, says) in [
            ("", "no [group.shop]"),
            ("[group.shop]\ndisks = []", "at least one disk"),
            ("[group.shop]\ndisks = [\"a\", \"a\"]", "twice"),
            ("[disk.a]\nvault = \"/v\"\n[group.shop]\ndisks = [\"a\", \"b\"]", "one vault"),
            ("[group.x]\ndisks = [\"a\"]\n[group.shop]\ndisks = [\"a\"]", "group x too"),
            ("[group.shop]\ndisks = [\"a\"]\nhold_deadline = \"6s\"", "at most 5s"),
            ("[group.shop]\ndisks = [\"a\"]\n[group.shop.member]\ndial = \"h\"", "[tls]"),
            ("[group.shop]\ndisk = [\"a\"]", "disk"),
        ] {
            let error = find(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
        let both = format!(
            "{tls}[group.shop]\ndisks = [\"a\"]\n[group.shop.member]\ndial = \"h\"\n\
             [group.shop.coordinator]\nhosts = [\"h\"]"
        );
        assert!(find(&both).unwrap_err().contains("not both"));
        let coordinator = format!(
            "{tls}[group.shop]\ndisks = [\"a\"]\n[group.shop.coordinator]\nhosts = [\"h\"]"
        );
        let listen = find(&coordinator).unwrap().config.coordinator.unwrap().listen;
        assert_eq!(listen.port(), PORT_DEFAULT);
    }

    #[test]
    fn where_to_dial() {
        for (dial, host, port) in [
            ("db1.example", "db1.example", 20004),
            ("db1.example:7", "db1.example", 7),
            ("10.0.0.1:7", "10.0.0.1", 7),
            ("::1", "::1", 20004),
            ("[::1]:7", "::1", 7),
            ("[::1]", "::1", 20004),
        ] {
            let member = MemberConfig { dial: dial.into() };
            assert_eq!(member.address(), (host, port), "{dial}");
        }
    }
}
