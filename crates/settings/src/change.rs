//! What a second reading of the configuration has changed: which keys take effect while the node runs, and which wait
//! for a restart.

use crate::layers::Layers;
use crate::schema::Key;

/// A key whose value is another one than before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its full name.
    pub key: String,
    /// As it runs, as TOML.
    pub from: String,
    /// As it was read.
    pub to: String,
    /// Who says so.
    pub origin: String,
    /// Whether it takes effect without a restart.
    pub changeable: bool,
}

/// All keys that differ, in the order of the table.
pub fn between(running: &Layers, read: &Layers) -> Vec<Change> {
    let schema = running.schema();
    let differing = schema.keys.iter().filter(|key| running.value(key) != read.value(key));
    let change = |key: &Key| Change {
        key: key.full_name(),
        from: running.value(key).to_string(),
        to: read.value(key).to_string(),
        origin: read.origin(key.section, key.name).to_string(),
        changeable: schema.is_changeable(key),
    };
    differing.map(change).collect()
}

/// What runs after a reload: the keys that can change as they were read, the others as they were.
pub fn merged(running: &Layers, read: &Layers) -> Layers {
    let mut merged = running.clone();
    let schema = running.schema();
    for key in schema.keys.iter().filter(|key| schema.is_changeable(key)) {
        merged.take_over(key, read);
    }
    merged
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::example::SCHEMA;
    use crate::file;

    fn layers(text: &str) -> Layers {
        let mut layers = Layers::new(&SCHEMA);
        file::parse(Path::new("c.toml"), text, &mut layers).unwrap();
        layers
    }

    #[test]
    fn what_differs_is_told_and_only_what_can_change_is_taken() {
        let running = layers("[storage.cache]\nsize = 20\n[log]\nlevel = \"info\"\n");
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
                change("storage.data_dir", "\"/var/lib/tiny\"", "\"/x\"", "c.toml:5", false),
                change("storage.cache.size", "20", "1048576", "default", false),
                change("log.level", "\"info\"", "\"debug\"", "c.toml:2", true),
            ]
        );
        let merged = merged(&running, &read);
        assert_eq!((merged.number("storage.cache", "size"), merged.text("log", "level")), (20, "debug"));
        // The next reading tells again of what still waits.
        let still: Vec<String> = between(&merged, &read).into_iter().map(|change| change.key).collect();
        assert_eq!(still, ["storage.data_dir", "storage.cache.size"]);
    }
}
