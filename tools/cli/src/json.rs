//! JSON for programs: one style for units, put in at the one place where JSON is printed.
//!
//! Field names that are older stay. Beside each time in nanoseconds since 1970 (`…_unix_ns`) stands the
//! same as RFC 3339 (`…_time`), beside each duration its `…_seconds`, and beside each length that does
//! not say so its `…_bytes`. docs/reference/json.md lists all of them.

use std::time::Duration;

use serde_json::{Map, Value};

/// Lengths whose names are older than the style.
const BYTES: [&str; 8] = [
    "size",
    "dirty",
    "moved",
    "stored",
    "fetched",
    "written",
    "change_log_used",
    "change_log_limit",
];
/// Durations that are words for people (`5m`).
const DURATIONS: [&str; 2] = ["interval", "duration"];

/// A value with its units beside what is older.
pub fn with_units(value: Value) -> Value {
    match value {
        Value::Array(all) => Value::Array(all.into_iter().map(with_units).collect()),
        Value::Object(fields) => {
            let mut out = Map::new();
            for (key, value) in fields {
                if let Some((beside, same)) = beside(&key, &value)
                    && !out.contains_key(&beside)
                {
                    out.insert(beside, same);
                }
                out.insert(key, with_units(value));
            }
            Value::Object(out)
        }
        other => other,
    }
}

/// The same in the one style: its name and its value.
fn beside(key: &str, value: &Value) -> Option<(String, Value)> {
    if let Some(name) = key.strip_suffix("_unix_ns") {
        let time = match value.as_u64() {
            Some(unix_ns) => {
                let at = jiff::Timestamp::from_nanosecond(unix_ns.into()).ok()?;
                Value::from(at.to_string())
            }
            None if value.is_null() => Value::Null,
            None => return None,
        };
        return Some((format!("{name}_time"), time));
    }
    if let Some(name) = key.strip_suffix("_ns") {
        let seconds = match value.as_u64() {
            Some(ns) => Value::from(Duration::from_nanos(ns).as_secs_f64()),
            None if value.is_null() => Value::Null,
            None => return None,
        };
        return Some((format!("{name}_seconds"), seconds));
    }
    if DURATIONS.contains(&key) {
        let parsed = humantime::parse_duration(value.as_str()?).ok()?;
        return Some((format!("{key}_seconds"), Value::from(parsed.as_secs_f64())));
    }
    let is_length = value.is_number() || value.is_null();
    match key {
        "churn_per_second" if is_length => Some(("churn_bytes_per_second".into(), value.clone())),
        _ if BYTES.contains(&key) && is_length => Some((format!("{key}_bytes"), value.clone())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn units_stand_beside_what_is_older() {
        let value = json!([{
            "cut_unix_ns": 1_000_000_000_u64, "rpo_ns": 1_500_000_000_u64, "since_unix_ns": null,
            "size": 512, "interval": "5m", "all_bytes": 3, "name": "db",
        }]);
        let expected = json!([{
            "cut_unix_ns": 1_000_000_000_u64, "cut_time": "1970-01-01T00:00:01Z",
            "rpo_ns": 1_500_000_000_u64, "rpo_seconds": 1.5,
            "since_unix_ns": null, "since_time": null,
            "size": 512, "size_bytes": 512, "interval": "5m", "interval_seconds": 300.0,
            "all_bytes": 3, "name": "db",
        }]);
        assert_eq!(with_units(value), expected);
    }
}
