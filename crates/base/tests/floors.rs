//! The floors of the house (docs/architecture.md): arrows between crates point down only, and nothing below floor 4
//! reaches for a clock, global randomness, a socket or a runtime.
//!
//! Read from the manifests and sources themselves, so that a new crate or dependency is seen by the next test run.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Crates from the ground up. A crate that is not here fails the test: give it a floor.
const FLOORS: [(&str, u8); 16] = [
    ("proto", 0),
    ("base", 0),
    ("storage", 1),
    ("consensus", 2),
    ("gossip", 2),
    ("tsdb", 3),
    ("promql", 3),
    ("node", 4),
    ("rpc", 4),
    ("settings", 4),
    ("chainfire", 5),
    ("flaredb", 5),
    ("placement", 5),
    ("cli", 5),
    ("sim", 6),
    ("bench", 6),
];

/// Arrows along a floor that are allowed all the same.
const LEVEL_ARROWS: [(&str, &str); 3] = [("node", "rpc"), ("node", "settings"), ("flaredb", "placement")];

/// A client of the public APIs only; its tests draw their numbers from `base`.
const CLI_MAY_USE: [&str; 3] = ["base", "proto", "rpc"];

/// From here up, crates have clocks, sockets and tasks.
const FIRST_LIVING_FLOOR: u8 = 4;

/// What deterministic code must not name, and what it does instead.
const FORBIDDEN: [(&str, &str); 6] = [
    ("tokio", "return effects; `node` runs them"),
    ("Instant", "take `base::Time` as an argument"),
    ("SystemTime", "take `base::Time` as an argument"),
    ("thread_rng", "take a `base::Rng` as an argument"),
    ("std::net", "return messages; `node` sends them"),
    ("RandomState", "use `BTreeMap`, or sort before anything depends on the order"),
];

#[test]
fn arrows_point_down() {
    let mut wrong = Vec::new();
    for (name, folder) in crates() {
        let manifest = fs::read_to_string(folder.join("Cargo.toml")).unwrap();
        let Some(floor) = floor(&name) else {
            wrong.push(format!("crates/{name} has no floor: add it to FLOORS in crates/base/tests/floors.rs"));
            continue;
        };
        for dependency in dependencies(&manifest) {
            let Some(below) = crate::floor(&dependency) else { continue };
            if name == "cli" && !CLI_MAY_USE.contains(&dependency.as_str()) {
                wrong.push(format!("cli uses {dependency}: it may use only {CLI_MAY_USE:?}"));
            } else if below >= floor && !LEVEL_ARROWS.contains(&(name.as_str(), dependency.as_str())) {
                wrong.push(format!("{name} (floor {floor}) uses {dependency} (floor {below}): arrows point down only"));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn nothing_below_floor_4_lives_in_real_time() {
    let mut wrong = Vec::new();
    for (name, folder) in crates() {
        if floor(&name).is_none_or(|floor| floor >= FIRST_LIVING_FLOOR) {
            continue;
        }
        for file in sources(&folder.join("src")) {
            for (line, what, instead) in forbidden(&fs::read_to_string(&file).unwrap()) {
                wrong.push(format!("{}:{line} names {what}: {instead}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn the_checks_see_what_they_look_for() {
    let manifest = "[package]\nname = \"x\"\n[dependencies]\nnode.workspace = true\nrpc = { path = \"..\" }\n\
        [target.'cfg(unix)'.dependencies]\nsim.workspace = true\n[dev-dependencies.bench]\npath = \"..\"\n[features]\ncli = []\n";
    assert_eq!(dependencies(manifest), ["node", "rpc", "sim", "bench"]);
    let source =
        "//! tokio is above\nuse std::time::{Duration, Instant};\nlet instantly = 1; // Instant\nstd::net::bind();\n";
    let found: Vec<_> = forbidden(source).into_iter().map(|(line, what, _)| (line, what)).collect();
    assert_eq!(found, [(2, "Instant"), (4, "std::net")]);
}

fn floor(name: &str) -> Option<u8> {
    FLOORS.iter().find(|(known, _)| *known == name).map(|(_, floor)| *floor)
}

fn crates() -> Vec<(String, PathBuf)> {
    let folder = base::crate_folder!().join("..");
    let mut found: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("Cargo.toml").is_file())
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), path))
        .collect();
    found.sort();
    found
}

fn dependencies(manifest: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut inside = false;
    for line in manifest.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            inside = section.ends_with("dependencies");
            if let Some((table, name)) = section.rsplit_once('.')
                && table.ends_with("dependencies")
            {
                found.push(name.to_owned());
            }
        } else if inside && !line.is_empty() && !line.starts_with('#') {
            let end = line.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '-')).unwrap_or(line.len());
            found.push(line[..end].to_owned());
        }
    }
    found
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Lines (from 1) that name something forbidden outside of comments.
fn forbidden(source: &str) -> Vec<(usize, &'static str, &'static str)> {
    let mut found = Vec::new();
    for (index, line) in source.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        for (what, instead) in FORBIDDEN {
            if names(code, what) {
                found.push((index + 1, what, instead));
            }
        }
    }
    found
}

/// Whether `code` contains `word` as a word of its own.
fn names(code: &str, word: &str) -> bool {
    let part_of_a_word = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word)
        .any(|(at, _)| !code[..at].ends_with(part_of_a_word) && !code[at + word.len()..].starts_with(part_of_a_word))
}
