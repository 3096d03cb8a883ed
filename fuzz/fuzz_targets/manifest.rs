//! Manifests of backups: what is taken is what some program of ours has written, byte for byte, and names no file elsewhere.
#![no_main]

use libfuzzer_sys::fuzz_target;
use proto::manifest::{MANIFEST_BYTES_MAX, Manifest};

fuzz_target!(|input: (Option<(u64, i64, Option<i64>, String)>, &[u8])| {
    let (like, bytes) = input;
    // From a good one on, more of it is looked at.
    let text = like.map_or_else(Vec::new, |(cluster, revision, base, program)| {
        let manifest = Manifest { cluster, revision, base, program, ..Manifest::default() };
        manifest.encode().into_bytes()
    });
    let text = [&text[..], bytes].concat();
    if let Ok(manifest) = Manifest::decode(&text) {
        assert!(text.len() <= MANIFEST_BYTES_MAX && manifest.encode().as_bytes() == text);
        assert!(manifest.files.iter().all(|(name, _)| !name.contains('/') && !name.starts_with('.')));
    }
});
