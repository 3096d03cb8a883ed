//! The keys that a watcher asks for, in one form for all of etcd's conventions.
//!
//! On the wire a range is `key` and `range_end`: no end is that one key, an end of one zero byte is "from `key`
//! on", and an empty key stands for the smallest one. [`KeyRange`] says the same with an enum, so that nothing behind
//! it has to know the conventions.

use bytes::Bytes;

/// A non-empty set of neighbouring keys.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyRange {
    pub start: Bytes,
    pub end: RangeEnd,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RangeEnd {
    /// `start` alone.
    Single,
    /// Keys below this one.
    Before(Bytes),
    /// All keys from `start` on.
    Unbounded,
}

impl KeyRange {
    /// Reads etcd's convention; `None` when no key can be in it.
    pub fn from_wire(key: Bytes, range_end: Bytes) -> Option<KeyRange> {
        let start = if key.is_empty() { Bytes::from_static(&[0]) } else { key };
        let end = match &range_end[..] {
            [] => RangeEnd::Single,
            [0] => RangeEnd::Unbounded,
            end if end <= &start[..] => return None,
            _ => RangeEnd::Before(range_end),
        };
        Some(KeyRange { start, end })
    }

    /// Etcd's convention: key and range end.
    pub fn to_wire(&self) -> (&[u8], &[u8]) {
        match &self.end {
            RangeEnd::Single => (&self.start, &[]),
            RangeEnd::Before(end) => (&self.start, end),
            RangeEnd::Unbounded => (&self.start, &[0]),
        }
    }

    pub fn contains(&self, key: &[u8]) -> bool {
        match &self.end {
            RangeEnd::Single => key == &self.start[..],
            RangeEnd::Before(end) => key >= &self.start[..] && key < &end[..],
            RangeEnd::Unbounded => key >= &self.start[..],
        }
    }

    /// The smallest range that holds both.
    pub fn hull(&self, other: &KeyRange) -> KeyRange {
        if self == other {
            return self.clone();
        }
        let start = self.start.clone().min(other.start.clone());
        let end = match (self.exclusive_end(), other.exclusive_end()) {
            (Some(a), Some(b)) => RangeEnd::Before(a.max(b)),
            _ => RangeEnd::Unbounded,
        };
        KeyRange { start, end }
    }

    /// The first key behind the range; `None` when there is none.
    fn exclusive_end(&self) -> Option<Bytes> {
        match &self.end {
            RangeEnd::Single => Some([&self.start[..], &[0]].concat().into()),
            RangeEnd::Before(end) => Some(end.clone()),
            RangeEnd::Unbounded => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(key: &'static str, end: &'static str) -> Option<KeyRange> {
        KeyRange::from_wire(Bytes::from_static(key.as_bytes()), Bytes::from_static(end.as_bytes()))
    }

    #[test]
    fn conventions_of_the_wire() {
        let inside = |key, end| {
            let range = range(key, end).unwrap();
            assert_eq!(range.to_wire(), (if key.is_empty() { &[0][..] } else { key.as_bytes() }, end.as_bytes()));
            ["\0", "a", "a\0", "b", "ba", "c"].iter().map(|key| range.contains(key.as_bytes())).collect::<Vec<_>>()
        };
        assert_eq!(inside("a", ""), [false, true, false, false, false, false]);
        assert_eq!(inside("a", "b"), [false, true, true, false, false, false]);
        assert_eq!(inside("b", "c"), [false, false, false, true, true, false]);
        assert_eq!(inside("b", "\0"), [false, false, false, true, true, true]);
        assert_eq!(inside("\0", "\0"), [true; 6]);
        assert_eq!(inside("", "\0"), [true; 6]);
        assert_eq!(range("b", "b"), None);
        assert_eq!(range("b", "a"), None);
    }

    #[test]
    fn a_hull_holds_both() {
        let hull = |a: (&'static str, &'static str), b: (&'static str, &'static str)| {
            let hull = range(a.0, a.1).unwrap().hull(&range(b.0, b.1).unwrap());
            let (key, end) = hull.to_wire();
            (String::from_utf8(key.to_vec()).unwrap(), String::from_utf8(end.to_vec()).unwrap())
        };
        assert_eq!(hull(("a", ""), ("a", "")), ("a".into(), "".into()));
        assert_eq!(hull(("b", ""), ("a", "")), ("a".into(), "b\0".into()));
        assert_eq!(hull(("b", "d"), ("a", "c")), ("a".into(), "d".into()));
        assert_eq!(hull(("b", "\0"), ("a", "c")), ("a".into(), "\0".into()));
    }
}
