//! Which keys a command means: one, those with a prefix, those from one on, or those between two.

use bytes::Bytes;
use clap::Args;

use crate::failure::Failure;

/// The keys of `get`, `del` and `watch`.
#[derive(Args, Clone, Debug, Default)]
pub struct Keys {
    /// The key; with --prefix the beginning of many, with RANGE_END or --from-key the first of many
    #[arg(value_name = "KEY")]
    pub key: Option<String>,
    /// The first key that is not meant any more
    #[arg(value_name = "RANGE_END", conflicts_with_all = ["prefix", "from_key"])]
    pub range_end: Option<String>,
    /// All keys that begin with KEY; all keys when KEY is empty
    #[arg(long)]
    pub prefix: bool,
    /// All keys from KEY on, in byte order
    #[arg(long, conflicts_with = "prefix")]
    pub from_key: bool,
}

impl Keys {
    /// Key and range end as the protocol wants them.
    pub fn range(&self) -> Result<(Bytes, Bytes), Failure> {
        let key = match &self.key {
            Some(key) => key.as_bytes(),
            None if self.prefix || self.from_key => b"",
            None => return Err(Failure::usage("no KEY given").advise("give one, or --prefix for all keys")),
        };
        let end = match &self.range_end {
            Some(end) => Bytes::copy_from_slice(end.as_bytes()),
            None if self.from_key => Bytes::from_static(b"\0"),
            None if self.prefix => prefix_end(key),
            None if key.is_empty() => {
                return Err(Failure::usage("KEY is empty").advise("no key is empty; all keys are `\"\" --prefix`"));
            }
            None => Bytes::new(),
        };
        // The protocol has no empty key: all keys start at the zero byte.
        let key = if key.is_empty() { Bytes::from_static(b"\0") } else { Bytes::copy_from_slice(key) };
        Ok((key, end))
    }
}

/// The first key that does not begin with `prefix` any more; one zero byte stands for "no end".
fn prefix_end(prefix: &[u8]) -> Bytes {
    match prefix.iter().rposition(|&byte| byte < 0xff) {
        Some(at) => {
            let mut end = prefix[..=at].to_vec();
            end[at] += 1;
            Bytes::from(end)
        }
        None => Bytes::from_static(b"\0"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(key: &str, end: Option<&str>, prefix: bool, from_key: bool) -> (Bytes, Bytes) {
        Keys { key: Some(key.into()), range_end: end.map(Into::into), prefix, from_key }.range().unwrap()
    }

    #[test]
    fn ranges() {
        let pair = |a: &'static [u8], b: &'static [u8]| (Bytes::from_static(a), Bytes::from_static(b));
        assert_eq!(keys("a", None, false, false), pair(b"a", b""));
        assert_eq!(keys("a", Some("c"), false, false), pair(b"a", b"c"));
        assert_eq!(keys("ab", None, true, false), pair(b"ab", b"ac"));
        assert_eq!(keys("ab", None, false, true), pair(b"ab", b"\0"));
        assert_eq!(keys("", None, true, false), pair(b"\0", b"\0"));
        assert_eq!(prefix_end(b"a\xff\xff"), "b");
        assert_eq!(prefix_end(b"\xff"), "\0");
        assert!(Keys::default().range().is_err());
    }
}
