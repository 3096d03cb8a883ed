//! A call's headers, without those that are the protocol's own.
//!
//! Most calls carry none, and then this costs nothing.

use std::sync::Arc;

use bytes::Bytes;

/// Header names (lower case) and values, in the order they came.
#[derive(Clone, Debug, Default)]
pub struct Metadata {
    entries: Option<Arc<Vec<(Bytes, Bytes)>>>,
}

impl Metadata {
    pub(crate) fn new(entries: Vec<(Bytes, Bytes)>) -> Metadata {
        Metadata { entries: (!entries.is_empty()).then(|| Arc::new(entries)) }
    }

    /// The first value under a name, which is given in lower case.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.iter().find(|(key, _)| *key == name.as_bytes()).map(|(_, value)| value)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.entries.iter().flat_map(|entries| entries.iter()).map(|(name, value)| (&name[..], &value[..]))
    }
}
