//! RocksDB is compiled once, whatever is being built.
//!
//! Cargo compiles a build script again for each set of features of the crates under it, and those sets depend on what
//! else is built. RocksDB's build script takes 15 minutes of two cores. `storage/Cargo.toml` therefore asks for all
//! features that any crate of the workspace brings about; this test asks Cargo whether that is still so.

use std::{collections::BTreeSet, process::Command};

const ROCKSDB: &str = "rust-librocksdb-sys";

#[test]
fn every_selection_sees_the_same_features_under_rocksdb() {
    let alone = features(&["-p", "storage"]);
    assert!(!alone.is_empty(), "{ROCKSDB} is not in storage's tree");
    for name in ["chainfire", "sim", "bench"] {
        compare(&alone, &features(&["-p", name]), &format!("-p {name}"));
    }
    compare(&alone, &features(&["--workspace"]), "--workspace");
}

fn compare(alone: &BTreeSet<String>, other: &BTreeSet<String>, selection: &str) {
    let differences: Vec<_> = alone.symmetric_difference(other).cloned().collect();
    assert!(
        differences.is_empty(),
        "`-p storage` and `{selection}` differ under {ROCKSDB}; add the features to crates/storage/Cargo.toml:\n{}",
        differences.join("\n")
    );
}

/// Every crate at and under RocksDB's binding with its features.
fn features(selection: &[&str]) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .current_dir(base::crate_folder!())
        .args(["tree", "--edges", "normal,build,dev", "--prefix", "depth", "--no-dedupe", "--format", "{p} [{f}]"])
        .args(selection)
        .output()
        .unwrap();
    assert!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    under(&String::from_utf8(output.stdout).unwrap(), ROCKSDB)
}

/// The lines of a tree from `root` down. A line is a depth and, right behind it, a package.
fn under(tree: &str, root: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut inside = None;
    for line in tree.lines() {
        let Some(digits) = line.find(|c: char| !c.is_ascii_digit()) else { continue };
        let depth: usize = line[..digits].parse().unwrap();
        let package = &line[digits..];
        if inside.is_some_and(|top| depth <= top) {
            inside = None;
        }
        if inside.is_none() && package.split(' ').next() == Some(root) {
            inside = Some(depth);
        }
        if inside.is_some() {
            found.insert(package.to_owned());
        }
    }
    found
}

#[test]
fn a_subtree_is_cut_out() {
    let tree = "0storage v1 []\n1x v1 []\n1root v2 [a]\n2y v1 [b,c]\n3z v1 []\n1w v1 []\n";
    let found: Vec<_> = under(tree, "root").into_iter().collect();
    assert_eq!(found, ["root v2 [a]", "y v1 [b,c]", "z v1 []"]);
}
