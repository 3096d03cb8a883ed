//! What a second reading of the configuration has changed: which keys take effect while the node runs, and which wait
//! for a restart.

use super::keys::KEYS;
use super::layers::Layers;

/// Keys that take effect when the configuration is read again. Of all others the running value stays.
pub const CHANGEABLE: &[&str] = &[
    "limits.txn_ops_max",
    "storage.quota_bytes",
    "compaction.mode",
    "compaction.retention",
    "log.level",
    "log.slow_request_ms",
];

/// A key whose value is another one than before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub key: String,
    /// As TOML.
    pub from: String,
    pub to: String,
    /// Who says so.
    pub origin: String,
    /// Whether it takes effect without a restart.
    pub changeable: bool,
}

/// All keys that differ, in the order of the table.
pub fn between(running: &Layers, read: &Layers) -> Vec<Change> {
    let differing = KEYS.iter().filter(|key| running.value(key) != read.value(key));
    let change = |key: &super::keys::Key| {
        let name = key.full_name();
        Change {
            from: running.value(key).to_string(),
            to: read.value(key).to_string(),
            origin: read.origin(key.section, key.name).to_string(),
            changeable: CHANGEABLE.contains(&name.as_str()),
            key: name,
        }
    };
    differing.map(change).collect()
}

/// What runs after a reload: the keys that can change as they were read, the others as they were.
pub fn merged(running: &Layers, read: &Layers) -> Layers {
    let mut merged = running.clone();
    for key in KEYS.iter().filter(|key| CHANGEABLE.contains(&key.full_name().as_str())) {
        merged.take_over(key, read);
    }
    merged
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::file;

    fn layers(text: &str) -> Layers {
        let mut layers = Layers::new();
        file::parse(Path::new("c.toml"), text, &mut layers).unwrap();
        layers
    }

    #[test]
    fn changeable_keys_are_keys() {
        for name in CHANGEABLE {
            assert!(KEYS.iter().any(|key| key.full_name() == *name), "{name}");
        }
    }

    #[test]
    fn what_differs_is_told_and_only_what_can_change_is_taken() {
        let running = layers("[raft]\nelection_ticks = 20\n[log]\nlevel = \"info\"\n");
        let read = layers("[log]\nlevel = \"debug\"\n\n[storage]\ndata_dir = \"/x\"\n");
        let change = |key: &str, from: &str, to: &str, origin: &str, changeable| Change {
            key: key.to_owned(),
            from: from.to_owned(),
            to: to.to_owned(),
            origin: origin.to_owned(),
            changeable,
        };
        assert_eq!(
            between(&running, &read),
            [
                change("raft.election_ticks", "20", "10", "default", false),
                change("storage.data_dir", "\"/var/lib/chainfire\"", "\"/x\"", "c.toml:5", false),
                change("log.level", "\"info\"", "\"debug\"", "c.toml:2", true),
            ]
        );
        let merged = merged(&running, &read);
        assert_eq!((merged.number("raft", "election_ticks"), merged.text("log", "level")), (20, "debug"));
        // The next reading tells again of what still waits.
        let still: Vec<String> = between(&merged, &read).into_iter().map(|change| change.key).collect();
        assert_eq!(still, ["raft.election_ticks", "storage.data_dir"]);
    }
}
