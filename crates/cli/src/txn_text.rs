//! The text form of a transaction, as etcdctl reads it.
//!
//! ```text
//! mod("config") = "7"          what must hold; several lines must all hold
//!
//! put config "new value"       what to do then: put, get and del, with the options of those commands
//!
//! get config                   what to do otherwise
//! ```
//!
//! Words may be quoted: within double quotes `\n`, `\t`, `\"`, `\\` and `\xNN` mean what they usually do, within single
//! quotes nothing does.

use bytes::Bytes;
use clap::Parser;
use proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use proto::etcdserverpb::request_op::Request;
use proto::etcdserverpb::{Compare, RequestOp, TxnRequest};

use crate::args::{DelArgs, GetArgs, PutArgs};
use crate::commands::{keys, put};
use crate::failure::Failure;
use crate::format::parse_lease_id;

/// Reads a whole transaction.
///
/// # Errors
/// Name the line, counted from 1.
pub fn parse(text: &str) -> Result<TxnRequest, Failure> {
    let mut txn = TxnRequest::default();
    let mut part = 0;
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        let at = |why: String| Failure::usage(format!("line {number} of the transaction: {why}"));
        match part {
            _ if line.is_empty() => part += 1,
            0 => txn.compare.push(compare(line).map_err(at)?),
            1 => txn.success.push(request(line).map_err(at)?),
            2 => txn.failure.push(request(line).map_err(at)?),
            _ => return Err(at("a transaction has three parts, and this would be the fourth".into())),
        }
    }
    if txn.success.is_empty() && txn.failure.is_empty() {
        return Err(Failure::usage("the transaction does nothing")
            .advise("its parts are separated by empty lines: see `chainfire-client txn --help`"));
    }
    Ok(txn)
}

/// `target("key") = "value"`.
fn compare(line: &str) -> Result<Compare, String> {
    let expected = || format!("`{line}` is no comparison: write mod(\"key\") = \"7\"");
    let (target, rest) = line.split_once('(').ok_or_else(expected)?;
    let (key, rest) = word(rest, &[')']).ok_or_else(expected)?;
    let rest = rest.trim_start().strip_prefix(')').ok_or_else(expected)?.trim_start();
    let (result, rest) = [
        ("!=", CompareResult::NotEqual),
        ("=", CompareResult::Equal),
        ("<", CompareResult::Less),
        (">", CompareResult::Greater),
    ]
    .into_iter()
    .find_map(|(sign, result)| Some((result, rest.strip_prefix(sign)?)))
    .ok_or_else(expected)?;
    let (value, rest) = word(rest.trim_start(), &[]).ok_or_else(expected)?;
    if !rest.trim().is_empty() {
        return Err(expected());
    }
    let text = String::from_utf8_lossy(&value).into_owned();
    let number = || text.parse::<i64>().map_err(|_| format!("`{text}` is no number"));
    let (target, union) = match target.trim() {
        "version" | "ver" => (CompareTarget::Version, TargetUnion::Version(number()?)),
        "create" | "c" => (CompareTarget::Create, TargetUnion::CreateRevision(number()?)),
        "mod" | "m" => (CompareTarget::Mod, TargetUnion::ModRevision(number()?)),
        "value" | "val" => (CompareTarget::Value, TargetUnion::Value(Bytes::from(value))),
        "lease" => (CompareTarget::Lease, TargetUnion::Lease(parse_lease_id(&text)?)),
        other => return Err(format!("`{other}` cannot be compared: use value, version, create, mod or lease")),
    };
    Ok(Compare {
        result: result as i32,
        target: target as i32,
        key: Bytes::from(key),
        target_union: Some(union),
        range_end: Bytes::new(),
    })
}

#[derive(Parser)]
#[command(no_binary_name = true, name = "txn", disable_help_flag = true)]
enum Line {
    Put(PutArgs),
    Get(GetArgs),
    Del(DelArgs),
}

fn request(line: &str) -> Result<RequestOp, String> {
    let mut words = Vec::new();
    let mut rest = line;
    while !rest.is_empty() {
        let (next, after) = word(rest, &[]).ok_or_else(|| format!("a quote is not closed in `{line}`"))?;
        words.push(String::from_utf8(next).map_err(|_| "keys and values must be text here".to_owned())?);
        rest = after.trim_start();
    }
    let parsed = Line::try_parse_from(words).map_err(|error| {
        // The first line of clap's text says what is wrong; the rest is about a command line.
        error.to_string().lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
    })?;
    let plain = |failure: Failure| failure.text;
    let request = match parsed {
        Line::Put(args) => {
            let value = match &args.value {
                Some(value) => Bytes::copy_from_slice(value.as_bytes()),
                None if args.ignore_value => Bytes::new(),
                None => return Err("put needs a value here".into()),
            };
            Request::RequestPut(put::request(&args, value))
        }
        Line::Get(args) => Request::RequestRange(keys::range_request(&args).map_err(plain)?),
        Line::Del(args) => Request::RequestDeleteRange(keys::delete_request(&args).map_err(plain)?),
    };
    Ok(RequestOp { request: Some(request) })
}

/// The first word, up to a space or one of `ends`, and what follows. `None` when a quote is open or spoilt.
fn word<'a>(text: &'a str, ends: &[char]) -> Option<(Vec<u8>, &'a str)> {
    let mut out = Vec::new();
    let mut chars = text.char_indices();
    let mut quote = None;
    while let Some((at, char)) = chars.next() {
        match (quote, char) {
            (None, '"' | '\'') => quote = Some(char),
            (None, _) if char.is_whitespace() || ends.contains(&char) => return Some((out, &text[at..])),
            (Some(open), _) if open == char => quote = None,
            (Some('"'), '\\') => match chars.next()?.1 {
                'n' => out.push(b'\n'),
                't' => out.push(b'\t'),
                'r' => out.push(b'\r'),
                'x' => {
                    let digits: String = [chars.next()?.1, chars.next()?.1].into_iter().collect();
                    out.push(u8::from_str_radix(&digits, 16).ok()?);
                }
                other => out.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes()),
            },
            _ => out.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    quote.is_none().then_some((out, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_is_read() {
        let text = "mod(\"key 1\") > \"7\"\nval(k2)!='a\\n'\nlease(k) = 1f\n\nput k \"a \\\"b\\\"\"\ndel k --prefix\n\nget k --limit 3\n";
        let txn = parse(text).unwrap();
        let [modified, value, lease] = &txn.compare[..] else { panic!() };
        assert_eq!((&modified.key[..], modified.result, modified.target), (&b"key 1"[..], 1, 2));
        assert_eq!(modified.target_union, Some(TargetUnion::ModRevision(7)));
        assert_eq!(value.target_union, Some(TargetUnion::Value(Bytes::from_static(b"a\\n"))));
        assert_eq!(lease.target_union, Some(TargetUnion::Lease(0x1f)));
        let Some(Request::RequestPut(put)) = &txn.success[0].request else { panic!() };
        assert_eq!(put.value, "a \"b\"");
        let Some(Request::RequestDeleteRange(del)) = &txn.success[1].request else { panic!() };
        assert_eq!(del.range_end, "l");
        let Some(Request::RequestRange(range)) = &txn.failure[0].request else { panic!() };
        assert_eq!((&range.key[..], range.limit), (&b"k"[..], 3));
    }

    #[test]
    fn mistakes_name_their_line() {
        for (text, part) in [
            ("size(k) = 1\n\nput a b\n", "line 1 of the transaction: `size` cannot be compared"),
            ("mod(k) = x\n\nput a b\n", "line 1 of the transaction: `x` is no number"),
            ("mod k = 1\n\nput a b\n", "is no comparison"),
            ("\nput a\n", "line 2 of the transaction: put needs a value"),
            ("\nput a \"b\n", "a quote is not closed"),
            ("\nfly a b\n", "line 2 of the transaction: unrecognized subcommand"),
            ("\n\n\nput a b", "the fourth"),
            ("", "does nothing"),
        ] {
            let failure = parse(text).unwrap_err();
            assert!(failure.text.contains(part), "{text:?} gave {:?}", failure.text);
        }
    }
}
