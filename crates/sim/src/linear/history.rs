//! What clients did and saw: the history that the checker judges, and its file form.
//!
//! A history is a list of operations in any order. Each knows when its client called and when the answer came, on one
//! clock that all clients share (nanoseconds since any origin). The store is empty when a history begins.
//!
//! * An operation with an answer has `end` and `outcome`.
//! * An operation whose outcome is unknown (time-out, lost connection, killed server) has neither: it may take effect
//!   at any time after `start`, or never.
//! * An operation that certainly did nothing (the server refused it) is left out.
//!
//! Values should be unique in a history (`client-counter`): a value seen then names the write it came from.
//!
//! The file form is one JSON object per line:
//!
//! ```text
//! {"client":1,"start":100,"end":180,"op":"put","key":"a","value":"1-0","outcome":{"revision":2,"done":true}}
//! {"client":2,"start":150,"end":190,"op":"get","key":"a","outcome":{"revision":2,"found":[{"key":"a","value":"1-0","modified":2}]}}
//! {"client":2,"start":200,"end":260,"op":"cas","key":"a","expect":2,"value":"2-1","outcome":{"revision":3,"done":true}}
//! {"client":1,"start":210,"op":"delete","key":"a"}
//! {"client":3,"start":300,"end":310,"op":"range","from":"a","to":"z","outcome":{"revision":4}}
//! ```

use std::io::{BufRead, Write};

use serde::{Deserialize, Serialize};

/// One call of one client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// A client does one thing at a time; shown in explanations only.
    pub client: u64,
    /// When it was called, in nanoseconds.
    pub start: u64,
    /// When the answer came. `None`: the outcome is unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<u64>,
    #[serde(flatten)]
    pub call: Call,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Call {
    Put {
        key: String,
        value: String,
    },
    Get {
        key: String,
    },
    /// All keys in `from..to`, at one moment.
    Range {
        from: String,
        to: String,
    },
    Delete {
        key: String,
    },
    /// Puts `value` if the key was last modified at revision `expect` (zero: if it is absent); else reads it.
    Cas {
        key: String,
        expect: u64,
        value: String,
    },
}

/// What the answer said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The store's revision in the answer's header; for a write that changed something, the write's own. Zero when
    /// the client cannot tell.
    #[serde(default)]
    pub revision: u64,
    /// Put: true. Delete: whether the key was there. Cas: whether it was swapped.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub done: bool,
    /// What a get, a range or a refused cas found.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub found: Vec<Found>,
}

/// A key as it was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    pub key: String,
    pub value: String,
    /// The revision at which the value was written; zero when the client cannot tell.
    #[serde(default)]
    pub modified: u64,
}

/// Writes a history, one operation per line.
pub fn write(history: &[Operation], out: &mut dyn Write) -> std::io::Result<()> {
    for operation in history {
        serde_json::to_writer(&mut *out, operation)?;
        out.write_all(b"\n")?;
    }
    Ok(())
}

/// Reads a history; the error names the line.
pub fn read(from: &mut dyn BufRead) -> std::io::Result<Vec<Operation>> {
    let mut history = Vec::new();
    for (number, line) in from.lines().enumerate() {
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        history.push(serde_json::from_str(&line).map_err(|error| {
            std::io::Error::new(std::io::ErrorKind::InvalidData, format!("line {}: {error}", number + 1))
        })?);
    }
    Ok(history)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_survives_its_file_form() {
        let history = vec![
            Operation {
                client: 1,
                start: 5,
                end: Some(9),
                call: Call::Cas { key: "a".into(), expect: 3, value: "x".into() },
                outcome: Some(Outcome {
                    revision: 7,
                    done: false,
                    found: vec![Found { key: "a".into(), value: "y".into(), modified: 6 }],
                }),
            },
            Operation {
                client: 2,
                start: u64::MAX,
                end: None,
                call: Call::Range { from: "a".into(), to: "b".into() },
                outcome: None,
            },
        ];
        let mut bytes = Vec::new();
        write(&history, &mut bytes).unwrap();
        assert_eq!(read(&mut bytes.as_slice()).unwrap(), history);
        let error = read(&mut &b"\n{\"op\":\"nonsense\"}\n"[..]).unwrap_err();
        assert!(error.to_string().starts_with("line 2:"), "{error}");
    }
}
