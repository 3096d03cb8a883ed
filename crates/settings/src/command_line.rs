//! From the command line and the environment to [`Asked`]: a text to print, or what was given to check and to run with.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::layers::{Layers, Origin};
use crate::mistakes::Mistakes;
use crate::nearest::nearest;
use crate::schema::{Key, Schema};
use crate::value::{Given, Kind};
use crate::{completion, file, help, man};

/// The process environment, or a test's.
pub type Environment = BTreeMap<String, String>;

/// What the command line asks for.
#[derive(Debug)]
pub enum Asked {
    /// Print this and end well.
    Print(String),
    /// See whether these settings go together. If so, run with them, unless only a check was asked for.
    Settings(Reading),
}

/// What was given, each value within the bounds of its key.
#[derive(Debug)]
pub struct Reading {
    pub layers: Layers,
    /// The files that were read, in order.
    pub files: Vec<PathBuf>,
    /// Start nothing; print [`Reading::checked`].
    pub check_only: bool,
}

impl Reading {
    /// What `--check-config` answers when all is well but for `warnings`.
    pub fn checked(&self, warnings: &[String]) -> String {
        help::checked(&self.layers, &self.files, warnings)
    }
}

/// Flags that are no settings.
pub(crate) const OTHER_FLAGS: [&str; 7] =
    ["config", "check-config", "print-default-config", "print-man", "print-completion", "version", "help"];

/// Understands `arguments` (without the program's name), or says in one line why not, with all the
/// mistakes that single values can show. Files are read, nothing is written.
pub fn understand(schema: &'static Schema, arguments: &[String], environment: &Environment) -> Result<Asked, String> {
    let given = Arguments::parse(schema, arguments)?;
    if given.help {
        return Ok(Asked::Print(help::help(schema)));
    }
    if given.version {
        return Ok(Asked::Print((schema.version_text)()));
    }
    if let Some(section) = &given.man {
        return man::page(schema, section).map(Asked::Print);
    }
    if let Some(shell) = &given.completion {
        return completion::script(schema, shell).map(Asked::Print);
    }
    if given.print_default {
        return Ok(Asked::Print(help::default_config(schema)));
    }
    let mut layers = Layers::new(schema);
    let named = given.config.or_else(|| environment.get(&schema.file_variable()).map(PathBuf::from));
    let required = named.is_some();
    let path = named.unwrap_or_else(|| PathBuf::from(schema.default_file));
    let mut mistakes = Mistakes::default();
    let files = file::read(&path, required, &mut layers, &mut mistakes);
    variables(environment, &mut layers, &mut mistakes);
    for (key, value) in given.settings {
        mistakes.unless(layers.give(key, &Given::Word(value), Origin::Flag(key.flag.to_owned())));
    }
    mistakes.none()?;
    Ok(Asked::Settings(Reading { layers, files, check_only: given.check }))
}

#[derive(Default)]
struct Arguments {
    config: Option<PathBuf>,
    settings: Vec<(&'static Key, String)>,
    check: bool,
    print_default: bool,
    /// The section of the manual whose page is asked for.
    man: Option<String>,
    /// The shell whose script is asked for.
    completion: Option<String>,
    version: bool,
    help: bool,
}

impl Arguments {
    fn parse(schema: &'static Schema, arguments: &[String]) -> Result<Arguments, String> {
        let mut given = Arguments::default();
        let mut words = arguments.iter().peekable();
        while let Some(word) = words.next() {
            let Some((name, inline)) = split_flag(word, 2) else {
                match word.as_str() {
                    "-h" => given.help = true,
                    "-V" => given.version = true,
                    _ => {
                        let (word, program) = (word.escape_debug(), schema.program);
                        return Err(format!("`{word}` is not a flag; see {program} --help"));
                    }
                }
                continue;
            };
            if let Some(key) = schema.keys.iter().find(|key| key.flag == name) {
                let value = match (inline, key.kind) {
                    (Some(value), _) => value,
                    // A switch needs no value.
                    (None, Kind::Switch) => {
                        let value = words.next_if(|word| *word == "true" || *word == "false");
                        value.cloned().unwrap_or_else(|| "true".to_owned())
                    }
                    (None, _) => words.next().cloned().ok_or_else(|| format!("flag --{name} needs a value"))?,
                };
                given.settings.push((key, value));
                continue;
            }
            let switch = match name {
                "config" => {
                    let path = inline.or_else(|| words.next().cloned());
                    given.config = Some(Path::new(&path.ok_or("flag --config needs a file")?).to_owned());
                    continue;
                }
                "print-completion" => {
                    let shell = inline.or_else(|| words.next().cloned());
                    given.completion = Some(shell.ok_or("flag --print-completion needs a shell: bash, zsh or fish")?);
                    continue;
                }
                "print-man" => {
                    given.man = Some(inline.unwrap_or_else(|| "8".to_owned()));
                    continue;
                }
                "check-config" => &mut given.check,
                "print-default-config" => &mut given.print_default,
                "version" => &mut given.version,
                "help" => &mut given.help,
                _ => {
                    let known = schema.keys.iter().map(|key| key.flag).chain(OTHER_FLAGS);
                    let hint = match nearest(name, known) {
                        Some(meant) => format!("the nearest known flag is --{meant}"),
                        None => format!("see {} --help", schema.program),
                    };
                    return Err(format!("unknown flag --{}; {hint}", name.escape_debug()));
                }
            };
            if inline.is_some() {
                return Err(format!("flag --{name} takes no value"));
            }
            *switch = true;
        }
        Ok(given)
    }
}

/// Takes `--name` and `--name=value` apart. Anything with fewer than `dashes_min` dashes is no flag.
pub fn split_flag(word: &str, dashes_min: usize) -> Option<(&str, Option<String>)> {
    let rest = word.strip_prefix("--").or_else(|| word.strip_prefix('-').filter(|_| dashes_min == 1))?;
    let (name, value) = match rest.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (rest, None),
    };
    (!name.is_empty()).then_some((name, value))
}

/// Variables of known sections; others with the same beginning belong to somebody else.
fn variables(environment: &Environment, layers: &mut Layers, mistakes: &mut Mistakes) {
    let schema = layers.schema();
    for (name, value) in environment {
        let Some(rest) = name.strip_prefix(schema.variable_prefix) else { continue };
        let rest = rest.to_ascii_lowercase();
        let begins = |section: &str| rest.strip_prefix(&section.replace('.', "_")).is_some_and(|r| r.starts_with('_'));
        let ours = schema.sections.iter().any(|(section, _)| begins(section));
        if !ours {
            continue;
        }
        let Some(key) = schema.keys.iter().find(|key| schema.variable(key) == *name) else {
            // What all of them begin with brings no two nearer to each other.
            let prefix = schema.variable_prefix;
            let known: Vec<String> = schema.keys.iter().map(|key| schema.variable(key)).collect();
            let meant = nearest(&name[prefix.len()..], known.iter().filter_map(|known| known.strip_prefix(prefix)));
            let hint = schema.hint(meant.map(|meant| format!("the nearest known one is {prefix}{meant}")));
            mistakes.unless::<()>(Err(format!("unknown environment variable {name}; {hint}")));
            continue;
        };
        mistakes.unless(layers.give(key, &Given::Word(value.clone()), Origin::Variable(name.clone())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example::SCHEMA;

    fn asked(flags: &[&str], variables: &[(&str, &str)]) -> Result<Asked, String> {
        let words: Vec<String> = flags.iter().map(|word| word.to_string()).collect();
        let environment = variables.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        understand(&SCHEMA, &words, &environment)
    }

    fn reading(flags: &[&str], variables: &[(&str, &str)]) -> Reading {
        match asked(flags, variables).unwrap() {
            Asked::Settings(reading) => reading,
            Asked::Print(text) => panic!("{text}"),
        }
    }

    #[test]
    fn each_layer_overrides_those_before() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tiny.toml");
        let drop_ins = folder.path().join("tiny.toml.d");
        std::fs::create_dir(&drop_ins).unwrap();
        std::fs::write(&file, "[storage]\ndata_dir = \"/1\"\nsync = false\n[storage.cache]\nsize = 100\n").unwrap();
        std::fs::write(drop_ins.join("20.toml"), "[storage.cache]\nsize = 300\n").unwrap();
        std::fs::write(drop_ins.join("10.toml"), "[network]\naddr = \"127.0.0.1:2\"\n[storage.cache]\nsize = 200\n")
            .unwrap();
        std::fs::write(drop_ins.join("30.toml.bak"), "nonsense").unwrap();
        let flags = ["--config", file.to_str().unwrap(), "--addr=127.0.0.1:4", "--sync", "--check-config"];
        let variables = [("TINY_NETWORK_ADDR", "127.0.0.1:3"), ("TINY_STORAGE_DATA_DIR", "/2")];
        let reading = reading(&flags, &variables);
        assert!(reading.check_only && reading.layers.switch("storage", "sync"));
        assert_eq!(reading.layers.texts("network", "addr"), ["127.0.0.1:4"]);
        let text = reading.checked(&["be careful".to_owned()]).replace(folder.path().to_str().unwrap(), "DIR");
        assert_eq!(
            text,
            "the configuration is valid\n\
             read: DIR/tiny.toml\n\
             read: DIR/tiny.toml.d/10.toml\n\
             read: DIR/tiny.toml.d/20.toml\n\
             network.addr = [\"127.0.0.1:4\"] (flag --addr)\n\
             storage.data_dir = \"/2\" (environment variable TINY_STORAGE_DATA_DIR)\n\
             storage.cache.size = 300 (DIR/tiny.toml.d/20.toml:2)\n\
             warning: be careful\n"
        );
    }

    #[test]
    fn a_file_is_named_by_a_variable_too_and_then_has_to_be_there() {
        assert!(reading(&[], &[]).files.is_empty(), "the default file may be missing");
        let missing = asked(&[], &[("TINY_CONFIG", "/no/such.toml")]).unwrap_err();
        assert!(missing.starts_with("cannot read /no/such.toml: "), "{missing}");
    }

    #[test]
    fn texts_are_printed_and_nothing_else_is_looked_at() {
        for (flag, begins) in [
            ("--help", "Tiny: a store"),
            ("-h", "Tiny: a store"),
            ("--version", "tiny-store 1.2.3\n"),
            ("-V", "tiny-store 1.2.3\n"),
            ("--print-default-config", "# Tiny. Every setting"),
            ("--print-man", ".TH TINY\\-STORE 8 "),
            ("--print-man=5", ".TH TINY.TOML 5 "),
            ("--print-completion=bash", "_tiny_store() {"),
        ] {
            match asked(&[flag], &[("TINY_CONFIG", "/no/such.toml")]) {
                Ok(Asked::Print(text)) => assert!(text.starts_with(begins), "{flag}: {text}"),
                other => panic!("{flag}: {other:?}"),
            }
        }
    }

    #[test]
    fn mistakes_are_named() {
        let cases = [
            ("--adr=x", "unknown flag --adr; the nearest known flag is --addr"),
            ("--chek-config", "unknown flag --chek-config; the nearest known flag is --check-config"),
            ("--bogus=x", "unknown flag --bogus; see tiny-store --help"),
            ("--addr", "flag --addr needs a value"),
            ("--config", "flag --config needs a file"),
            ("--help=3", "flag --help takes no value"),
            ("start", "`start` is not a flag; see tiny-store --help"),
            ("--sync=maybe", "flag --sync: storage.sync must be true or false, not \"maybe\""),
            ("--print-man=1", "there is no page in section `1`: 8 is the program, 5 its configuration file"),
        ];
        for (flag, line) in cases {
            assert_eq!(asked(&[flag], &[]).unwrap_err(), line);
        }
        assert_eq!(
            asked(&[], &[("TINY_STORAGE_DATADIR", "/x")]).unwrap_err(),
            "unknown environment variable TINY_STORAGE_DATADIR; the nearest known one is TINY_STORAGE_DATA_DIR"
        );
        assert_eq!(
            asked(&[], &[("TINY_STORAGE_BOGUS", "x")]).unwrap_err(),
            "unknown environment variable TINY_STORAGE_BOGUS; see tiny-store --print-default-config"
        );
        assert_eq!(
            asked(&[], &[("TINY_STORAGE_CACHE_SIZE", "big")]).unwrap_err(),
            "environment variable TINY_STORAGE_CACHE_SIZE: storage.cache.size must be a number of bytes from 0 to \
             1099511627776, such as 67108864 or \"64MiB\", not \"big\""
        );
        reading(&[], &[("TINY_SERVICE_HOST", "x"), ("TINYSTORAGE_X", "x")]);
    }

    #[test]
    fn flags_are_taken_apart() {
        assert_eq!(split_flag("--a=b=c", 2), Some(("a", Some("b=c".to_owned()))));
        assert_eq!((split_flag("-a", 1), split_flag("-a", 2)), (Some(("a", None)), None));
        assert_eq!((split_flag("--", 2), split_flag("a", 1)), (None, None));
    }
}
