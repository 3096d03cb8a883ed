//! How single things are written: bytes, ids, sizes, durations.

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use proto::etcdserverpb::ResponseHeader;
use proto::mvccpb::KeyValue;
use serde_json::{Map, Value, json};

/// Bytes as a person can read them: text as it is, all else as `\x..`.
pub fn readable(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for char in chunk.valid().chars() {
            match char {
                '\n' => out.push_str("\\n"),
                '\t' => out.push_str("\\t"),
                '\r' => out.push_str("\\r"),
                char if char.is_control() => out.push_str(&format!("\\x{:02x}", char as u32)),
                char => out.push(char),
            }
        }
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out
}

/// All bytes as `\x..`.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect()
}

pub fn base64(bytes: &[u8]) -> String {
    BASE64_STANDARD.encode(bytes)
}

/// A lease id, as etcdctl writes it.
pub fn lease_id(id: i64) -> String {
    format!("{id:016x}")
}

/// A size for people.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut size = bytes as f64 / 1024.0;
    let mut unit = 0;
    while size >= 1024.0 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    format!("{size:.1} {}", UNITS[unit])
}

/// `3s`, `500ms`, `2m`, `1h`, or a plain number of seconds.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|char: char| char.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let scale = match unit {
        "ms" => 0.001,
        "s" | "" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("`{unit}` is no unit of time: use ms, s, m or h")),
    };
    let seconds = number.parse::<f64>().map_err(|_| format!("`{text}` is no duration: write 5s, 500ms or 2m"))? * scale;
    Duration::try_from_secs_f64(seconds).map_err(|_| format!("`{text}` is out of range"))
}

/// A node or member id: decimal, or hexadecimal after `0x`.
pub fn parse_node_id(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    match parsed {
        Ok(0) => Err("node ids begin at 1".to_owned()),
        Ok(id) => Ok(id),
        Err(_) => Err(format!("`{text}` is no node id: a number such as 4, or 0x… as etcd writes them")),
    }
}

/// A lease id: hexadecimal, as `lease grant` and `lease list` print it.
pub fn parse_lease_id(text: &str) -> Result<i64, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    u64::from_str_radix(digits, 16)
        .map(|id| id as i64)
        .map_err(|_| format!("`{text}` is no lease id: hexadecimal, as `lease list` prints them"))
}

/// A response header as etcdctl writes it in JSON.
pub fn header_json(header: Option<&ResponseHeader>) -> Value {
    let header = header.cloned().unwrap_or_default();
    json!({
        "cluster_id": header.cluster_id,
        "member_id": header.member_id,
        "revision": header.revision,
        "raft_term": header.raft_term,
    })
}

/// A key-value as etcdctl writes it in JSON: zero fields are left out.
pub fn key_value_json(kv: &KeyValue) -> Value {
    let mut fields = Map::new();
    let mut put = |name: &str, value: Value, present: bool| {
        if present {
            fields.insert(name.to_owned(), value);
        }
    };
    put("key", json!(base64(&kv.key)), true);
    put("create_revision", json!(kv.create_revision), kv.create_revision != 0);
    put("mod_revision", json!(kv.mod_revision), kv.mod_revision != 0);
    put("version", json!(kv.version), kv.version != 0);
    put("value", json!(base64(&kv.value)), !kv.value.is_empty());
    put("lease", json!(kv.lease), kv.lease != 0);
    Value::Object(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_readable() {
        assert_eq!(readable("größe\n".as_bytes()), "größe\\n");
        assert_eq!(readable(&[b'a', 0xff, 0]), "a\\xff\\x00");
        assert_eq!(hex(b"a1"), "\\x61\\x31");
    }

    #[test]
    fn numbers_and_units() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_duration("2"), Ok(Duration::from_secs(2)));
        assert!(parse_duration("2 weeks").is_err() && parse_duration("s").is_err() && parse_duration("-1s").is_err());
        assert_eq!(parse_node_id("0x10"), Ok(16));
        assert!(parse_node_id("0").is_err() && parse_node_id("one").is_err());
        assert_eq!(parse_lease_id(&lease_id(-2)), Ok(-2));
        assert_eq!((size(1023).as_str(), size(1536).as_str()), ("1023 B", "1.5 KiB"));
    }
}
