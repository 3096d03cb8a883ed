//! From the command line and the environment to a [`Request`].

use std::path::{Path, PathBuf};

use super::keys::{KEYS, Key, SECTIONS, VARIABLE_PREFIX};
use super::layers::{Layers, Origin};
use super::nearest::nearest;
use super::value::{Given, Kind};
use super::{Environment, Request, completion, file, help, man, validate};

/// Read when it is there and no other file is named.
pub const DEFAULT_FILE: &str = "/etc/centra-cloud/chainfire.toml";
const FILE_VARIABLE: &str = "CHAINFIRE_CONFIG";
/// Flags that are no settings.
pub(super) const OTHER_FLAGS: [&str; 7] =
    ["config", "check-config", "print-default-config", "print-man", "print-completion", "version", "help"];

/// Understands `arguments` (without the program's name), or says in one line why not. Files are read, nothing is written.
pub fn understand(arguments: &[String], environment: &Environment) -> Result<Request, String> {
    let given = Arguments::parse(arguments)?;
    if given.help {
        return Ok(Request::Print(help::help()));
    }
    if given.version {
        return Ok(Request::Print(help::version()));
    }
    if let Some(section) = &given.man {
        return man::page(section).map(Request::Print);
    }
    if let Some(shell) = &given.completion {
        return completion::script(shell).map(Request::Print);
    }
    if given.print_default {
        return Ok(Request::Print(help::default_config()));
    }
    let mut layers = Layers::new();
    let named = given.config.clone().or_else(|| environment.get(FILE_VARIABLE).map(PathBuf::from));
    let path = named.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_FILE));
    let files = file::read(&path, named.is_some(), &mut layers)?;
    variables(environment, &mut layers)?;
    for (key, value) in &given.settings {
        layers.give(key, &Given::Word(value.clone()), Origin::Flag(key.flag.to_owned()))?;
    }
    let settings = validate::validate(&layers)?;
    if given.check {
        return Ok(Request::Print(help::checked(&layers, &files, &settings.warnings)));
    }
    Ok(Request::Run(Box::new(settings)))
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
    fn parse(arguments: &[String]) -> Result<Arguments, String> {
        let mut given = Arguments::default();
        let mut words = arguments.iter().peekable();
        while let Some(word) = words.next() {
            let Some((name, inline)) = split_flag(word, 2) else {
                match word.as_str() {
                    "-h" => given.help = true,
                    "-V" => given.version = true,
                    _ => return Err(format!("`{}` is not a flag; see chainfire --help", word.escape_debug())),
                }
                continue;
            };
            if let Some(key) = KEYS.iter().find(|key| key.flag == name) {
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
                    let meant = nearest(name, KEYS.iter().map(|key| key.flag).chain(OTHER_FLAGS)).unwrap_or_default();
                    let name = name.escape_debug();
                    return Err(format!("unknown flag --{name}; the nearest known flag is --{meant}"));
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
pub(crate) fn split_flag(word: &str, dashes_min: usize) -> Option<(&str, Option<String>)> {
    let rest = word.strip_prefix("--").or_else(|| word.strip_prefix('-').filter(|_| dashes_min == 1))?;
    let (name, value) = match rest.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (rest, None),
    };
    (!name.is_empty()).then_some((name, value))
}

/// Variables of known sections; others with the same beginning belong to somebody else.
fn variables(environment: &Environment, layers: &mut Layers) -> Result<(), String> {
    for (name, value) in environment {
        let Some(rest) = name.strip_prefix(VARIABLE_PREFIX) else { continue };
        let rest = rest.to_ascii_lowercase();
        let begins = |section: &str| rest.strip_prefix(&section.replace('.', "_")).is_some_and(|r| r.starts_with('_'));
        let ours = SECTIONS.iter().any(|(section, _)| begins(section));
        if !ours {
            continue;
        }
        let Some(key) = KEYS.iter().find(|key| key.variable() == *name) else {
            let known: Vec<String> = KEYS.iter().map(Key::variable).collect();
            let meant = nearest(name, known.iter().map(String::as_str)).unwrap_or_default();
            return Err(format!("unknown environment variable {name}; the nearest known one is {meant}"));
        };
        layers.give(key, &Given::Word(value.clone()), Origin::Variable(name.clone()))?;
    }
    Ok(())
}
