//! A request of the control protocol, and until when it may be begun.

use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::control::Request;

/// The field beside the request's own.
const DEADLINE: &str = "deadline_boot_ns";

/// What a client asks, and how long it waits for the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// What it asks.
    pub request: Request,
    /// When it gives up: nanoseconds of the clock that runs since the boot. After that the request must not be
    /// begun, because the client has said that nothing was done. Clients of earlier versions say none.
    pub deadline_boot_ns: Option<u64>,
}

impl Asked {
    /// Whether the client has given up by now, on the same clock.
    #[must_use]
    pub fn is_over(&self, since_boot_ns: u64) -> bool {
        self.deadline_boot_ns.is_some_and(|deadline| deadline < since_boot_ns)
    }
}

impl Serialize for Asked {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut body = serde_json::to_value(&self.request).map_err(S::Error::custom)?;
        if let (Some(deadline), Some(fields)) = (self.deadline_boot_ns, body.as_object_mut()) {
            fields.insert(DEADLINE.into(), deadline.into());
        }
        body.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Asked {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut body = serde_json::Value::deserialize(deserializer)?;
        let deadline = body.as_object_mut().and_then(|fields| fields.remove(DEADLINE));
        let deadline_boot_ns = deadline.map(serde_json::from_value).transpose();
        Ok(Self {
            request: serde_json::from_value(body).map_err(D::Error::custom)?,
            deadline_boot_ns: deadline_boot_ns.map_err(D::Error::custom)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn earlier_clients_are_understood_and_nothing_unknown_is() {
        let plain: Asked = serde_json::from_str(r#"{"ask":"stop"}"#).unwrap();
        assert_eq!(plain, Asked { request: Request::Stop, deadline_boot_ns: None });
        assert!(!plain.is_over(u64::MAX));
        assert_eq!(serde_json::to_string(&plain).unwrap(), r#"{"ask":"stop"}"#);
        let timed = Asked { deadline_boot_ns: Some(7), ..plain };
        let text = serde_json::to_string(&timed).unwrap();
        assert_eq!(serde_json::from_str::<Asked>(&text).unwrap(), timed);
        assert!(timed.is_over(8) && !timed.is_over(7));
        for bad in [
            r#"{"ask":"thaw","epoch":1,"more":1}"#,
            r#"{"ask":"stop","deadline_boot_ns":"x"}"#,
            "[]",
        ] {
            assert!(serde_json::from_str::<Asked>(bad).is_err(), "{bad}");
        }
    }
}
