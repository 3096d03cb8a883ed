//! Values: as someone wrote them ([`Given`]), and as the program has them ([`Value`]). A [`Kind`] leads from one to the
//! other, or says what the value must be.

use std::fmt;

use crate::duration::duration;
use crate::listen::{self, Plain};
use crate::nearest::nearest;

/// A value as it stands in a file, or as a word in a flag or variable, which has no type of its own.
#[derive(Clone, Debug, PartialEq)]
pub enum Given {
    Switch(bool),
    Number(i128),
    Text(String),
    List(Vec<Given>),
    Table(Vec<(String, Given)>),
    /// Something that no key takes, by its TOML name.
    Other(&'static str),
    Word(String),
}

/// A value that the key's kind allows.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Switch(bool),
    Number(u64),
    Text(String),
    Texts(Vec<String>),
    Members(Vec<Member>),
}

/// A member of a cluster: its number, and where it is reached, as `http://HOST:PORT` or `https://HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub node: u64,
    pub address: String,
}

/// What a key takes. Bounds are inclusive.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Switch,
    Number {
        min: u64,
        max: u64,
    },
    /// A number of bytes; as text also with a unit.
    Bytes {
        min: u64,
        max: u64,
    },
    /// Any text of at most so many bytes.
    Text {
        bytes_max: usize,
    },
    Choice(&'static [&'static str]),
    /// `IP:PORT`.
    Address,
    /// `IP:PORT`, or one of these words.
    AddressOr(&'static [&'static str]),
    /// One or several of them.
    Addresses,
    /// `HOST:PORT`, one or several, with a scheme or without.
    Hosts,
    /// Any number of texts, each of at most so many bytes.
    Texts {
        bytes_max: usize,
    },
    /// `http://HOST:PORT`, any number.
    Urls,
    /// `{ node_id = N, address = "HOST:PORT" }` or `"N=HOST:PORT"`, any number.
    Members,
    /// A duration, as text.
    Duration,
    /// A duration or a count, as text.
    Retention,
    /// A level, or levels of parts of the program, of which this is an example.
    LogLevel {
        example: &'static str,
    },
}

impl Kind {
    /// Reads a value. The error begins with "must be" or "is".
    pub fn read(self, given: &Given) -> Result<Value, String> {
        let wrong = || format!("must be {self}, not {given}");
        match self {
            Kind::Switch => match given {
                Given::Switch(on) => Ok(Value::Switch(*on)),
                Given::Word(word) => word.parse().map(Value::Switch).map_err(|_| wrong()),
                _ => Err(wrong()),
            },
            Kind::Number { min, max } => match given {
                Given::Number(number) => within(*number, min, max).ok_or_else(wrong),
                Given::Word(word) => word.parse().ok().and_then(|number| within(number, min, max)).ok_or_else(wrong),
                _ => Err(wrong()),
            },
            Kind::Bytes { min, max } => match given {
                Given::Number(number) => within(*number, min, max).ok_or_else(wrong),
                Given::Text(text) | Given::Word(text) => {
                    bytes(text).and_then(|number| within(number, min, max)).ok_or_else(wrong)
                }
                _ => Err(wrong()),
            },
            Kind::Text { bytes_max } => match given.text() {
                Some(text) if text.len() <= bytes_max && !text.contains(char::is_control) => {
                    Ok(Value::Text(text.to_owned()))
                }
                _ => Err(wrong()),
            },
            Kind::Choice(choices) => match given.text() {
                Some(text) if choices.contains(&text) => Ok(Value::Text(text.to_owned())),
                _ => Err(wrong()),
            },
            Kind::Duration => match given.text() {
                Some(text) if duration(text).is_some() => Ok(Value::Text(text.to_owned())),
                _ => Err(wrong()),
            },
            Kind::Retention => match given {
                Given::Text(text) | Given::Word(text) => Ok(Value::Text(text.clone())),
                Given::Number(number) if *number >= 0 => Ok(Value::Text(number.to_string())),
                _ => Err(wrong()),
            },
            Kind::LogLevel { .. } => match given.text() {
                Some(text) if is_log_level(text) => Ok(Value::Text(text.to_owned())),
                _ => Err(wrong()),
            },
            Kind::Address => {
                let text = given.text().ok_or_else(wrong)?;
                listen::client_address(text).map(|address| Value::Text(address.to_string())).ok_or_else(wrong)
            }
            Kind::AddressOr(words) => match given.text() {
                Some(word) if words.contains(&word) => Ok(Value::Text(word.to_owned())),
                _ => Kind::Address.read(given).map_err(|_| wrong()),
            },
            Kind::Addresses => {
                let texts = given.texts().filter(|texts| !texts.is_empty()).ok_or_else(wrong)?;
                let addresses = texts.iter().map(|text| listen::client_address(text).map(|a| a.to_string()));
                addresses.collect::<Option<_>>().map(Value::Texts).ok_or_else(wrong)
            }
            Kind::Hosts => {
                let texts = given.texts().filter(|texts| !texts.is_empty()).ok_or_else(wrong)?;
                texts.into_iter().map(host).collect::<Option<_>>().map(Value::Texts).ok_or_else(wrong)
            }
            Kind::Texts { bytes_max } => {
                let texts = given.texts().ok_or_else(wrong)?;
                let good = |text: &&str| text.len() <= bytes_max && !text.contains(char::is_control);
                if !texts.iter().all(good) {
                    return Err(wrong());
                }
                Ok(Value::Texts(texts.into_iter().map(str::to_owned).collect()))
            }
            Kind::Urls => {
                let texts = given.texts().ok_or_else(wrong)?;
                texts.iter().map(|text| address(text)).collect::<Result<_, _>>().map(Value::Texts)
            }
            Kind::Members => members(given).map(Value::Members),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Switch => f.write_str("true or false"),
            Kind::Number { min, max } => write!(f, "a whole number from {min} to {max}"),
            Kind::Bytes { min, max } => {
                write!(
                    f,
                    "a number of bytes from {min} to {max}, such as {} or \"64MiB\"",
                    (64u64 << 20).clamp(*min, *max)
                )
            }
            Kind::Text { bytes_max } => write!(f, "a text of at most {bytes_max} bytes"),
            Kind::Choice(choices) => write!(f, "one of {}", quoted(choices)),
            Kind::Address => f.write_str("IP:PORT, such as \"127.0.0.1:2380\""),
            Kind::AddressOr(words) => write!(f, "IP:PORT, such as \"127.0.0.1:2381\", or one of {}", quoted(words)),
            Kind::Addresses => f.write_str("IP:PORT, such as \"127.0.0.1:2379\", or a list of these"),
            Kind::Hosts => f.write_str("HOST:PORT, such as \"10.0.0.1:2379\", or a list of these"),
            Kind::Texts { bytes_max } => write!(f, "a list of texts of at most {bytes_max} bytes"),
            Kind::Urls => f.write_str("a list of URLs such as \"http://10.0.0.1:2379\""),
            Kind::Members => f.write_str("a list of { node_id = 1, address = \"HOST:PORT\" } or \"1=HOST:PORT\""),
            Kind::Duration => f.write_str("a duration such as \"24h\", \"30s\" or \"0s\""),
            Kind::Retention => f.write_str("a duration such as \"1h\", or a number of revisions"),
            Kind::LogLevel { example } => {
                write!(f, "error, warn, info, debug, trace, off, or a list such as {example:?}")
            }
        }
    }
}

fn quoted(choices: &[&str]) -> String {
    choices.iter().map(|choice| format!("{choice:?}")).collect::<Vec<_>>().join(", ")
}

impl Given {
    fn text(&self) -> Option<&str> {
        match self {
            Given::Text(text) | Given::Word(text) => Some(text),
            _ => None,
        }
    }

    /// A list of texts; a word is split at its commas, a single text is a list of one.
    fn texts(&self) -> Option<Vec<&str>> {
        match self {
            Given::Text(text) => Some(vec![text]),
            Given::Word(word) => Some(word.split(',').map(str::trim).filter(|part| !part.is_empty()).collect()),
            Given::List(list) => list.iter().map(Given::text).collect(),
            _ => None,
        }
    }
}

impl fmt::Display for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Given::Switch(on) => write!(f, "{on}"),
            Given::Number(number) => write!(f, "{number}"),
            Given::Text(text) | Given::Word(text) => write!(f, "{:?}", shortened(text)),
            Given::List(_) => f.write_str("a list"),
            Given::Table(_) => f.write_str("a table"),
            Given::Other(name) => write!(f, "a {name}"),
        }
    }
}

impl fmt::Display for Value {
    /// As TOML.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Switch(on) => write!(f, "{on}"),
            Value::Number(number) => write!(f, "{number}"),
            Value::Text(text) => write!(f, "{text:?}"),
            Value::Texts(texts) => write!(f, "{texts:?}"),
            Value::Members(members) => {
                let member = |member: &Member| format!("\"{}={}\"", member.node, member.address);
                write!(f, "[{}]", members.iter().map(member).collect::<Vec<_>>().join(", "))
            }
        }
    }
}

/// Long enough to recognise it by.
fn shortened(text: &str) -> String {
    const CHARACTERS_MAX: usize = 80;
    let mut short: String = text.chars().take(CHARACTERS_MAX).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

fn within(number: i128, min: u64, max: u64) -> Option<Value> {
    u64::try_from(number).ok().filter(|number| (min..=max).contains(number)).map(Value::Number)
}

/// `1048576`, `64MiB`, `1 GB`: powers of two with an i, of ten without.
fn bytes(text: &str) -> Option<i128> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '_').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: i128 = number.replace('_', "").parse().ok()?;
    let factor: i128 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return None,
    };
    number.checked_mul(factor)
}

fn is_log_level(text: &str) -> bool {
    const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];
    let target = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    !text.is_empty()
        && text.split(',').all(|part| match part.split_once('=') {
            Some((name, level)) => !name.is_empty() && name.chars().all(target) && LEVELS.contains(&level),
            None => LEVELS.contains(&part),
        })
}

/// `http://HOST:PORT` out of an address with or without a scheme; one with https keeps it.
fn address(text: &str) -> Result<String, String> {
    match listen::peer_address(text) {
        Plain::Address(address) | Plain::Secure(address) => Ok(address),
        Plain::Wrong => Err(format!("must be HOST:PORT, such as \"127.0.0.1:2380\", not {:?}", shortened(text))),
    }
}

/// `HOST:PORT`, with the scheme that was written.
fn host(text: &str) -> Option<String> {
    let (Plain::Address(whole) | Plain::Secure(whole)) = listen::peer_address(text) else { return None };
    match text.contains("://") {
        true => Some(whole),
        false => Some(text.to_owned()),
    }
}

fn members(given: &Given) -> Result<Vec<Member>, String> {
    let wrong = |given: &Given| format!("must be {}, not {given}", Kind::Members);
    let list = match given {
        Given::List(list) => list.clone(),
        Given::Text(_) | Given::Word(_) => {
            let texts = given.texts().expect("texts of a text");
            texts.into_iter().map(|text| Given::Text(text.to_owned())).collect()
        }
        _ => return Err(wrong(given)),
    };
    list.iter().map(|given| member(given)?.ok_or_else(|| wrong(given))).collect()
}

/// `None`: not a member at all. An error says more.
fn member(given: &Given) -> Result<Option<Member>, String> {
    let (node, text) = match given {
        Given::Text(text) => {
            let Some((node, text)) = text.split_once('=') else { return Ok(None) };
            (node.trim().parse::<u64>().ok(), text.trim())
        }
        Given::Table(fields) => {
            let (mut node, mut text) = (None, None);
            for (name, value) in fields {
                match (name.as_str(), value) {
                    ("node_id", Given::Number(number)) => node = u64::try_from(*number).ok(),
                    ("address", Given::Text(address)) => text = Some(address.as_str()),
                    ("node_id" | "address", _) => return Ok(None),
                    (other, _) => {
                        let hint = match nearest(other, ["node_id", "address"]) {
                            Some(meant) => format!("the nearest known key is `{meant}`"),
                            None => "known are `node_id` and `address`".to_owned(),
                        };
                        return Err(format!("has an unknown key `{other}`; {hint}"));
                    }
                }
            }
            let Some(text) = text else { return Ok(None) };
            (node, text)
        }
        _ => return Ok(None),
    };
    let Some(node) = node.filter(|node| (1..=i64::MAX as u64).contains(node)) else { return Ok(None) };
    Ok(Some(Member { node, address: address(text)? }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_keep_the_scheme_that_was_written() {
        let read = |text: &str| Kind::Hosts.read(&Given::Word(text.to_owned()));
        let texts = |texts: &[&str]| Ok(Value::Texts(texts.iter().map(|text| (*text).to_owned()).collect()));
        assert_eq!(read("pd1.example:2379,10.0.0.2:2379"), texts(&["pd1.example:2379", "10.0.0.2:2379"]));
        assert_eq!(read("https://pd1:2379/,http://pd2:2379"), texts(&["https://pd1:2379", "http://pd2:2379"]));
        for wrong in ["", "pd1", "pd1:x", "ftp://pd1:1"] {
            assert!(read(wrong).unwrap_err().starts_with("must be HOST:PORT"), "{wrong}");
        }
    }

    #[test]
    fn durations_have_units() {
        let read = |given| Kind::Duration.read(&given);
        assert_eq!(read(Given::Text("1h30m".to_owned())), Ok(Value::Text("1h30m".to_owned())));
        assert_eq!(read(Given::Word("0s".to_owned())), Ok(Value::Text("0s".to_owned())));
        let wrong = "must be a duration such as \"24h\", \"30s\" or \"0s\", not ";
        assert_eq!(read(Given::Number(24)), Err(format!("{wrong}24")));
        assert_eq!(read(Given::Word("24".to_owned())), Err(format!("{wrong}\"24\"")));
    }

    #[test]
    fn sizes_may_have_units() {
        let cases =
            [("64MiB", 64 << 20), ("1 GiB", 1 << 30), ("1gb", 1_000_000_000), ("1_000", 1_000), ("5k", 5 << 10)];
        for (text, number) in cases {
            assert_eq!(bytes(text), Some(number), "{text}");
        }
        for text in ["", "MiB", "-1", "1.5GiB", "64 M B", "999999999999999999999999999999999999999999"] {
            assert_eq!(bytes(text), None, "{text}");
        }
    }

    #[test]
    fn log_levels_are_checked() {
        assert!(["info", "off", "warn,chainfire_raft=debug", "h2::codec=error"].iter().all(|text| is_log_level(text)));
        assert!(["", "loud", "info,", "=info", "chainfire raft=info"].iter().all(|text| !is_log_level(text)));
    }

    #[test]
    fn members_come_in_three_forms() {
        let expected = vec![
            Member { node: 1, address: "http://127.0.0.1:2380".to_owned() },
            Member { node: 2, address: "http://two:2380".to_owned() },
        ];
        let text = |text: &str| Given::Text(text.to_owned());
        let table = Given::Table(vec![
            ("address".to_owned(), text("http://two:2380")),
            ("node_id".to_owned(), Given::Number(2)),
        ]);
        assert_eq!(members(&Given::Word("1=127.0.0.1:2380, 2=two:2380".to_owned())).unwrap(), expected);
        assert_eq!(members(&Given::List(vec![text("1=127.0.0.1:2380"), table])).unwrap(), expected);
        assert!(members(&Given::List(vec![text("two:2380")])).is_err());
        assert!(members(&Given::List(vec![text("0=two:2380")])).is_err());
        assert!(members(&Given::List(vec![Given::Number(1)])).is_err());
    }

    #[test]
    fn values_out_of_bounds_are_refused() {
        let kind = Kind::Number { min: 5, max: 10 };
        assert_eq!(kind.read(&Given::Number(5)), Ok(Value::Number(5)));
        let wrong = |given| Err(format!("must be a whole number from 5 to 10, not {given}"));
        assert_eq!(kind.read(&Given::Number(11)), wrong("11"));
        assert_eq!(kind.read(&Given::Number(-1)), wrong("-1"));
        assert_eq!(kind.read(&Given::Text("7".to_owned())), wrong("\"7\""));
        assert_eq!(kind.read(&Given::Word("7".to_owned())), Ok(Value::Number(7)));
    }
}
