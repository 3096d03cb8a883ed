//! What was given, by whom; the last one counts.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use node::InitialMember;
use toml::de::DeValue;

use super::file;
use super::keys::{self, KEYS, Key};
use super::value::{Given, Value};

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

/// One value per key.
#[derive(Clone, Debug)]
pub struct Layers(BTreeMap<(&'static str, &'static str), (Value, Origin)>);

impl Layers {
    /// The defaults.
    pub fn new() -> Layers {
        let read = |key: &Key| {
            let value = DeValue::parse(key.default).expect("defaults are TOML");
            key.kind.read(&file::given(value.get_ref())).expect("defaults are within their bounds")
        };
        Layers(KEYS.iter().map(|key| ((key.section, key.name), (read(key), Origin::Default))).collect())
    }

    /// Puts a value over what was given before.
    pub fn give(&mut self, key: &Key, given: &Given, origin: Origin) -> Result<(), String> {
        let value = key.kind.read(given).map_err(|why| format!("{origin}: {} {why}", key.full_name()))?;
        self.0.insert((key.section, key.name), (value, origin));
        Ok(())
    }

    /// Everything that is not as it is by default.
    pub fn given(&self) -> impl Iterator<Item = (String, &Value, &Origin)> {
        let all = self.0.iter().map(|((section, name), (value, origin))| (format!("{section}.{name}"), value, origin));
        all.filter(|(_, _, origin)| **origin != Origin::Default)
    }

    pub fn value(&self, key: &Key) -> &Value {
        &self.entry(key.section, key.name).0
    }

    /// Takes a key's value from another reading.
    pub fn take_over(&mut self, key: &Key, from: &Layers) {
        self.0.insert((key.section, key.name), from.entry(key.section, key.name).clone());
    }

    pub fn origin(&self, section: &str, name: &str) -> &Origin {
        &self.entry(section, name).1
    }

    pub fn switch(&self, section: &str, name: &str) -> bool {
        match self.entry(section, name) {
            (Value::Switch(on), _) => *on,
            other => unreachable!("{section}.{name} is {other:?}"),
        }
    }

    pub fn number(&self, section: &str, name: &str) -> u64 {
        match self.entry(section, name) {
            (Value::Number(number), _) => *number,
            other => unreachable!("{section}.{name} is {other:?}"),
        }
    }

    pub fn text(&self, section: &str, name: &str) -> &str {
        match self.entry(section, name) {
            (Value::Text(text), _) => text,
            other => unreachable!("{section}.{name} is {other:?}"),
        }
    }

    pub fn texts(&self, section: &str, name: &str) -> &[String] {
        match self.entry(section, name) {
            (Value::Texts(texts), _) => texts,
            other => unreachable!("{section}.{name} is {other:?}"),
        }
    }

    pub fn members(&self, section: &str, name: &str) -> &[InitialMember] {
        match self.entry(section, name) {
            (Value::Members(members), _) => members,
            other => unreachable!("{section}.{name} is {other:?}"),
        }
    }

    fn entry(&self, section: &str, name: &str) -> &(Value, Origin) {
        let key = keys::find(section, name).expect("only keys of the table are asked for");
        self.0.get(&(key.section, key.name)).expect("every key has a default")
    }
}
