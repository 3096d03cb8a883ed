//! What was given, by whom; the last one counts.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use crate::schema::{Key, Schema};
use crate::value::{Given, Member, Value};

/// Who gave a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Default,
    File { path: PathBuf, line: usize },
    Variable(String),
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File { path, line } => write!(f, "{}:{line}", path.display()),
            Origin::Variable(name) => write!(f, "environment variable {name}"),
            Origin::Flag(name) => write!(f, "flag --{name}"),
        }
    }
}

/// One value per key of a schema, and who gave it.
///
/// Values are asked for by section and name, as the kind of the key has them: whoever asks for a key that is not in the
/// table, or for another kind of value, has made a mistake in the program, and it panics.
#[derive(Clone, Debug)]
pub struct Layers {
    schema: &'static Schema,
    values: BTreeMap<(&'static str, &'static str), (Value, Origin)>,
}

impl Layers {
    /// The defaults.
    pub fn new(schema: &'static Schema) -> Layers {
        let default = |key: &Key| (key.default_value().expect("defaults are sound"), Origin::Default);
        let values = schema.keys.iter().map(|key| ((key.section, key.name), default(key))).collect();
        Layers { schema, values }
    }

    /// Whose keys these are.
    pub fn schema(&self) -> &'static Schema {
        self.schema
    }

    /// Puts a value over what was given before.
    pub fn give(&mut self, key: &Key, given: &Given, origin: Origin) -> Result<(), String> {
        let value = key.kind.read(given).map_err(|why| format!("{origin}: {} {why}", key.full_name()))?;
        self.values.insert((key.section, key.name), (value, origin));
        Ok(())
    }

    /// Everything that is not as it is by default, and who said so.
    pub fn differing(&self) -> impl Iterator<Item = (String, &Value, &Origin)> {
        let defaults = Layers::new(self.schema).values;
        let differing = self.values.iter().filter(move |(key, (value, _))| defaults[*key].0 != *value);
        differing.map(|((section, name), (value, origin))| (format!("{section}.{name}"), value, origin))
    }

    /// The value of a key, whatever its kind.
    pub fn value(&self, key: &Key) -> &Value {
        &self.entry(key.section, key.name).0
    }

    /// Takes a key's value from another reading.
    pub fn take_over(&mut self, key: &Key, from: &Layers) {
        self.values.insert((key.section, key.name), from.entry(key.section, key.name).clone());
    }

    /// Who gave the value in force.
    pub fn origin(&self, section: &str, name: &str) -> &Origin {
        &self.entry(section, name).1
    }

    /// Of [`Kind::Switch`](crate::value::Kind::Switch).
    pub fn switch(&self, section: &str, name: &str) -> bool {
        match self.entry(section, name) {
            (Value::Switch(on), _) => *on,
            other => unreachable!("{section}.{name} is {other:?}"),
        }
    }

    /// Of a number, or of bytes.
    pub fn number(&self, section: &str, name: &str) -> u64 {
        match self.entry(section, name) {
            (Value::Number(number), _) => *number,
            other => unreachable!("{section}.{name} is {other:?}"),
        }
    }

    /// Of every kind that is one text: choices, one address, retentions and levels too.
    pub fn text(&self, section: &str, name: &str) -> &str {
        match self.entry(section, name) {
            (Value::Text(text), _) => text,
            other => unreachable!("{section}.{name} is {other:?}"),
        }
    }

    /// Of addresses and URLs.
    pub fn texts(&self, section: &str, name: &str) -> &[String] {
        match self.entry(section, name) {
            (Value::Texts(texts), _) => texts,
            other => unreachable!("{section}.{name} is {other:?}"),
        }
    }

    /// Of [`Kind::Members`](crate::value::Kind::Members).
    pub fn members(&self, section: &str, name: &str) -> &[Member] {
        match self.entry(section, name) {
            (Value::Members(members), _) => members,
            other => unreachable!("{section}.{name} is {other:?}"),
        }
    }

    fn entry(&self, section: &str, name: &str) -> &(Value, Origin) {
        let key = self.schema.find(section, name).expect("only keys of the table are asked for");
        self.values.get(&(key.section, key.name)).expect("every key has a default")
    }
}
