//! What a program may be told: its table of keys, and the words that its help and its manual pages need beside it.
//!
//! One [`Schema`] per program, a `static`. It is data that nobody checks while a program runs; a test of the program asks
//! [`Schema::mistakes`] whether it is sound.

use std::collections::BTreeSet;
use std::fmt;

use toml::de::DeValue;

use crate::command_line::OTHER_FLAGS;
use crate::file;
use crate::value::{Kind, Value};

/// How long a line of a key's help may be, in bytes: the printed configuration puts `# ` before it.
const HELP_LINE_BYTES_MAX: usize = 116;

/// All that is particular to one program.
pub struct Schema {
    /// As it is called, such as `chainfire`.
    pub program: &'static str,
    /// Its name in sentences, such as `Chainfire`.
    pub name: &'static str,
    /// What it is, for the title of its manual page: a phrase without a full stop.
    pub title: &'static str,
    /// Of the release: `env!("CARGO_PKG_VERSION")` of the program.
    pub version: &'static str,
    /// What `--version` prints; its first line is `program version`.
    pub version_text: fn() -> String,
    /// What `--help` begins with: what it is, how it is called, an example. What follows is made from the rest.
    pub help_head: &'static str,
    /// Words that may come first instead of a flag, and what each does. The program looks for them itself.
    pub commands: &'static [(&'static str, &'static str)],
    /// Begins the names of its environment variables, such as `CHAINFIRE_`. The file is named by `…CONFIG`.
    pub variable_prefix: &'static str,
    /// The path of the file that is read when it is there and no other is named.
    pub default_file: &'static str,
    /// In the order of the printed configuration, and what each is about. `outer.inner` is a section within a section.
    pub sections: &'static [(&'static str, &'static str)],
    /// Every key once, those of a section in the order in which they are printed.
    pub keys: &'static [Key],
    /// Full names of the keys that take effect when the configuration is read again. Of all others the running value stays.
    pub changeable: &'static [&'static str],
    /// Sections, and sections within sections, that are refused with a reason: those of a later version, and those that
    /// people look for.
    pub later: &'static [(&'static str, &'static str)],
    /// Section and name of a key that may also stand before the first section.
    pub top_level: Option<(&'static str, &'static str)>,
    /// A section whose keys stand together in the printed configuration, below all that is said about them.
    pub explained_above: Option<&'static str>,
    /// Section and name of the key whose variable the help shows as an example.
    pub example: (&'static str, &'static str),
    pub manual: Manual,
}

/// What only the manual pages say. All texts are roff: a dash that somebody may copy is written `\-`.
#[derive(Debug)]
pub struct Manual {
    /// Other ways to call the program beside `program [FLAGS]`: the words, and what comes behind them.
    pub also_called: &'static [(&'static str, &'static str)],
    /// What it does while it runs, in a few sentences.
    pub description: &'static str,
    /// Files and folders that belong to it, beside the default file.
    pub files: &'static [&'static str],
    /// Other pages, beside that of the configuration file: name and section of the manual.
    pub see_also: &'static [(&'static str, u8)],
}

/// One setting. Its full name is `section.name`.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    pub section: &'static str,
    pub name: &'static str,
    /// Without the dashes before it.
    pub flag: &'static str,
    pub kind: Kind,
    /// As TOML.
    pub default: &'static str,
    /// Lines for people. The first is a summary.
    pub help: &'static [&'static str],
}

impl Key {
    /// `section.name`
    pub fn full_name(&self) -> String {
        format!("{}.{}", self.section, self.name)
    }

    /// The default as a value, or why it is none.
    pub(crate) fn default_value(&self) -> Result<Value, String> {
        let value = DeValue::parse(self.default).map_err(|error| format!("is not TOML: {}", error.message()))?;
        self.kind.read(&file::given(value.get_ref()))
    }
}

impl Schema {
    /// The key of a section that has this name there.
    pub fn find(&self, section: &str, name: &str) -> Option<&'static Key> {
        self.keys.iter().find(|key| key.section == section && key.name == name)
    }

    /// The keys of a section, in order.
    pub fn keys_in(&self, section: &str) -> impl Iterator<Item = &'static Key> {
        self.keys.iter().filter(move |key| key.section == section)
    }

    /// The environment variable of a key.
    pub fn variable(&self, key: &Key) -> String {
        format!("{}{}_{}", self.variable_prefix, key.section.replace('.', "_"), key.name).to_ascii_uppercase()
    }

    /// The environment variable that names the configuration file.
    pub fn file_variable(&self) -> String {
        format!("{}CONFIG", self.variable_prefix)
    }

    /// The default file without its folders, such as `chainfire.toml`.
    pub fn file_name(&self) -> &'static str {
        self.default_file.rsplit('/').next().unwrap_or(self.default_file)
    }

    /// What ends a complaint about a word that is not known: one that is `near`, or else where all of them stand.
    pub(crate) fn hint(&self, near: Option<String>) -> String {
        near.unwrap_or_else(|| format!("see {} --print-default-config", self.program))
    }

    /// Whether the key takes effect without a restart.
    pub fn is_changeable(&self, key: &Key) -> bool {
        self.changeable.contains(&key.full_name().as_str())
    }

    /// What is wrong with the tables, a line each. A test of each program wants none.
    pub fn mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        let (mut names, mut variables, mut flags) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::from(OTHER_FLAGS));
        for key in self.keys {
            let name = key.full_name();
            let mut wrong = |what: &str| mistakes.push(format!("{name} {what}"));
            if !self.has_section(key.section) {
                wrong("is in a section that is not listed");
            }
            if !names.insert((key.section, key.name)) {
                wrong("is there twice");
            } else if !variables.insert(self.variable(key)) {
                wrong("has the variable of another key");
            }
            if !flags.insert(key.flag) {
                wrong("has a flag that is taken");
            }
            if key.help.is_empty() || key.help.iter().any(|line| line.is_empty() || line.len() > HELP_LINE_BYTES_MAX) {
                wrong(&format!("needs help in lines of at most {HELP_LINE_BYTES_MAX} bytes"));
            }
            if let Err(why) = key.default_value() {
                wrong(&format!("has a default that {why}"));
            }
        }
        for (section, name) in self.top_level.iter().chain([&self.example]) {
            if self.find(section, name).is_none() {
                mistakes.push(format!("{section}.{name} is named, and is no key"));
            }
        }
        for name in self.changeable {
            if !self.keys.iter().any(|key| key.full_name() == *name) {
                mistakes.push(format!("{name} is to be changeable, and is no key"));
            }
        }
        for (later, _) in self.later {
            if self.has_section(later) {
                mistakes.push(format!("[{later}] is a section, and is to come later"));
            }
        }
        if let Some(section) = self.explained_above.filter(|section| !self.has_section(section)) {
            mistakes.push(format!("[{section}] is to be explained, and is no section"));
        }
        mistakes
    }

    fn has_section(&self, section: &str) -> bool {
        self.sections.iter().any(|(known, _)| *known == section)
    }
}

/// Its name says enough, wherever settings are printed.
impl fmt::Debug for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Schema({})", self.program)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example::SCHEMA;

    #[test]
    fn names_are_derived() {
        let key = SCHEMA.find("storage.cache", "size").unwrap();
        assert_eq!(
            (key.full_name(), SCHEMA.variable(key)),
            ("storage.cache.size".into(), "TINY_STORAGE_CACHE_SIZE".into())
        );
        assert_eq!((SCHEMA.file_variable().as_str(), SCHEMA.file_name()), ("TINY_CONFIG", "tiny.toml"));
        assert!(SCHEMA.find("storage", "size").is_none());
        assert_eq!(SCHEMA.keys_in("storage").map(|key| key.name).collect::<Vec<_>>(), ["data_dir", "sync"]);
    }

    #[test]
    fn mistakes_in_the_tables_are_named() {
        assert_eq!(SCHEMA.mistakes(), Vec::<String>::new());
        const KEY: Key =
            Key { section: "a", name: "b_c", flag: "b", kind: Kind::Switch, default: "true", help: &["about it"] };
        const KEYS: &[Key] = &[
            KEY,
            KEY,
            Key { name: "x", flag: "help", default: "1", ..KEY },
            Key { section: "a.b", name: "c", flag: "y", default: "[", help: &[], ..KEY },
        ];
        let schema = Schema {
            sections: &[("a", "")],
            keys: KEYS,
            changeable: &["a.z"],
            later: &[("a", "")],
            top_level: Some(("a", "q")),
            explained_above: Some("q"),
            example: ("a", "b_c"),
            manual: Manual { also_called: &[], description: "", files: &[], see_also: &[] },
            ..SCHEMA
        };
        let mistakes = schema.mistakes();
        for (mistake, begins) in mistakes.iter().zip([
            "a.b_c is there twice",
            "a.b_c has a flag that is taken",
            "a.x has a flag that is taken",
            "a.x has a default that must be true or false, not 1",
            "a.b.c is in a section that is not listed",
            "a.b.c has the variable of another key",
            "a.b.c needs help in lines of at most 116 bytes",
            "a.b.c has a default that is not TOML: ",
            "a.q is named, and is no key",
            "a.z is to be changeable, and is no key",
            "[a] is a section, and is to come later",
            "[q] is to be explained, and is no section",
        ]) {
            assert!(mistake.starts_with(begins), "{mistake} instead of {begins}");
        }
        assert_eq!(mistakes.len(), 12, "{mistakes:#?}");
    }
}
