//! What can be asked for under `/pd/api/v1`: for people who ask for nothing, for the reference, and to tell a wrong method
//! from a wrong path.

use ::http::{Method, StatusCode};
use serde_json::{Value, json};

use super::http::{PageError, not_found};

/// Method, path and what it is.
const PAGES: &[(&str, &str, &str)] = &[
    ("GET", "health", "the members of the placement driver, and whether the leader hears them"),
    ("GET", "members", "the same with their addresses, and which of them leads"),
    (
        "POST",
        "members",
        "another member, which is started afterwards: {\"member_id\": 2, \"peer_urls\": [\"10.0.0.2:2380\"]}",
    ),
    ("DELETE", "members/id/{id}", "this member goes; stop it afterwards"),
    ("GET", "leader", "the one that leads"),
    ("POST", "leader/resign", "another member leads"),
    ("POST", "leader/transfer/{name or id}", "this member leads"),
    ("GET", "status", "version, cluster, leader, whether it has heard enough to plan"),
    ("GET", "version", "the version that runs"),
    (
        "GET",
        "stores",
        "all stores that are not removed, and as `refused` those that were not let in lately; ?state=Up, Disconnected, Down, Offline or Tombstone",
    ),
    ("GET", "stores/limit", "replicas a minute that they take in and give"),
    (
        "GET",
        "store/{id}",
        "one store, and as `refused` those that asked lately for its id or with its data folder; 410: it was removed",
    ),
    ("DELETE", "store/{id}", "empty it, and remove it when nothing is left; 409: the others could not take it"),
    ("POST", "store/{id}/state", "?state=Up: it stays after all; ?state=Offline: as DELETE"),
    (
        "POST",
        "store/{id}/weight",
        "{\"leader\": 1.0, \"region\": 1.0}, either or both: its share beside a store of weight 1",
    ),
    ("GET", "store/{id}/limit", "replicas a minute that it takes in and gives"),
    ("POST", "store/{id}/limit", "{\"rate\": 15}, with \"type\": \"add-peer\" or \"remove-peer\" for one of both"),
    ("DELETE", "store/{id}/limit", "back to the policy's"),
    ("POST", "store/{id}/label", "{\"zone\": \"z1\"}: counts before the label that the store brings along"),
    ("DELETE", "store/{id}/label/{name}", "back to what the store brings along"),
    (
        "POST",
        "store/{id}/moved",
        "its data folder was moved, and nothing runs where it was: it is taken in from wherever it comes next; 409: it runs",
    ),
    (
        "GET",
        "stats/region",
        "regions, and what is the matter with them, in numbers; ?start_key=, ?end_key=: those that have keys of this range",
    ),
    (
        "GET",
        "regions",
        "regions in the order of their keys, 5000 at most; ?limit=100&key=%61: so many, from this key on; `next` is the page behind",
    ),
    ("GET", "regions/key", "regions in the order of their keys; ?key=: from there on, ?end_key=, ?limit= (16)"),
    ("GET", "regions/store/{id}", "those with a replica in a store; `limit`, `key` and `next` as of `regions`"),
    (
        "GET",
        "regions/check/{what}",
        "those with something the matter: miss-peer, extra-peer, down-peer, pending-peer, learner-peer, offline-peer, no-leader, empty-region, oversized-region, undersized-region; `limit`, `key` and `next` as of `regions`: follow `next` to its end, also where a page has none",
    ),
    ("GET", "region/id/{id}", "one region"),
    ("GET", "region/key/{key}", "the one that has a key; any byte may be written as %XX"),
    ("GET", "hotspot", "all three of the following"),
    ("GET", "hotspot/regions/read", "what regions are read, per second, by store, the busiest first"),
    ("GET", "hotspot/regions/write", "what they are written"),
    ("GET", "hotspot/stores", "what stores read and write, per second"),
    ("GET", "operators", "operators under way"),
    (
        "POST",
        "operators",
        "{\"name\": \"transfer-leader\", \"region_id\": 1, \"to_store_id\": 2}; also transfer-peer, add-peer, remove-peer, split-region; merge-region takes source_region_id and target_region_id",
    ),
    ("GET", "operators/records", "those that ended, the last one first; ?from=SECONDS since 1970"),
    ("GET", "operators/{region id}", "the one on a region"),
    ("DELETE", "operators/{region id}", "call it off"),
    ("GET", "config", "the policy, as its field `schedule`; and as `replication` what it says of replicas"),
    ("GET", "config/replicate", "the latter"),
    ("GET", "config/schedule", "the policy"),
    ("POST", "config/schedule", "change what is named of it, and nothing else"),
    ("GET", "schedulers", "names of those that are on; ?status=paused, ?status=disabled"),
    (
        "POST",
        "schedulers",
        "{\"name\": \"balance-leader-scheduler\"}: turn it on; evict-leader-scheduler takes a \"store_id\"",
    ),
    (
        "POST",
        "schedulers/{name}",
        "{\"delay\": 600}: it rests for so many seconds, 0 to go on; `all` means all that are on",
    ),
    ("DELETE", "schedulers/{name}", "turn it off; evict-leader-scheduler-4 means store 4 only"),
    (
        "GET",
        "explain/region/{id}",
        "what a region is to have, what is next, what stands in the way, and every store as a candidate",
    ),
    ("GET", "explain/store/{id}", "what a store takes and why not, and what keeps it from emptying"),
    ("GET", "explain/removal/{store id}", "what removing a store would come to: bytes, duration, what is held up"),
    ("POST", "explain/policy", "what a change of the policy would come to"),
];

pub fn all() -> Value {
    json!({ "pages": PAGES.iter().map(|(method, path, what)| format!("{method} {path}: {what}")).collect::<Vec<_>>() })
}

/// Whether there is such a page; the list itself, with an empty path, is one.
pub fn has(method: &Method, parts: &[&str]) -> bool {
    let listed = PAGES.iter().any(|(known, path, _)| *known == method.as_str() && fits(path, parts));
    listed || *method == Method::GET && parts == [""]
}

fn fits(pattern: &str, parts: &[&str]) -> bool {
    let pattern = pattern.split('/');
    pattern.clone().count() == parts.len()
        && pattern.zip(parts).all(|(wanted, part)| wanted == *part || wanted.starts_with('{'))
}

/// 405 if another method would do, 404 otherwise.
pub fn no_such_page(method: &Method, parts: &[&str]) -> PageError {
    let path = parts.join("/");
    let others: Vec<&str> = PAGES.iter().filter(|(_, path, _)| fits(path, parts)).map(|(method, ..)| *method).collect();
    if others.is_empty() {
        return not_found(format!("there is no {method} {path}; see /pd/api/v1/"));
    }
    let why = format!("{path} takes {}, not {method}", others.join(" and "));
    PageError::Http(StatusCode::METHOD_NOT_ALLOWED, why)
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::fs;

    use super::*;
    use crate::Policy;

    /// docs/reference/placement.md
    fn markdown() -> String {
        let mut out = String::from(
            "# Placement driver: HTTP and policy\n\n<!-- Made by `UPDATE=1 cargo test --release --workspace reference`; change \
             crates/placement/src/api/catalogue.rs and crates/placement/src/policy.rs instead. -->\n\n\
             Any member answers, under `/pd/api/v1/`. Answers are JSON, errors too: `{\"error\": \"why\"}`, with 400 for a body that \
             makes no sense, 404 for what does not exist, 405 for a method that a page does not take, 409 for what cannot be done \
             now, 410 for a store that was removed, 413 for a body of more than 4 MiB, 503 while no leader is elected, 504 where the leader did not answer and what was asked may be done. Bodies are \
             read as JSON whatever their header says. Keys in answers are hexadecimal, and so are those of split-region; in paths and \
             queries a key is text, in which any byte may be written as %XX.\n\n\
             | method | path | |\n|---|---|---|\n",
        );
        for (method, path, what) in PAGES {
            let _ = writeln!(out, "| {method} | `{path}` | {what} |");
        }
        out.push_str("\n## The policy\n\nWhat `config/schedule` shows and takes; `flaredb-client policy get|set` does the same.\n\n");
        // The table of the source, and below it all defaults.
        let source = include_str!("../policy.rs");
        for line in source.lines().filter_map(|line| line.strip_prefix("//! |")) {
            let _ = writeln!(out, "|{line}");
        }
        let _ = writeln!(out, "\n```json\n{:#}\n```", Policy::default().to_json());
        out
    }

    /// `UPDATE=1 cargo test --release --workspace reference` writes it anew.
    #[test]
    fn reference_is_current() {
        let file = base::crate_folder!().join("../../docs/reference/placement.md");
        if std::env::var_os("UPDATE").is_some() {
            return fs::write(file, markdown()).unwrap();
        }
        let found = fs::read_to_string(&file).unwrap_or_default();
        assert!(found == markdown(), "{} is not current; UPDATE=1 writes it anew", file.display());
    }

    #[test]
    fn a_wrong_method_is_told_from_a_wrong_path() {
        let of = |method: Method, path: &str| match no_such_page(&method, &path.split('/').collect::<Vec<_>>()) {
            PageError::Http(code, why) => (code.as_u16(), why),
            PageError::Status(status) => (0, status.message.into_owned()),
        };
        assert_eq!(
            of(Method::PUT, "store/4/limit"),
            (405, "store/4/limit takes GET and POST and DELETE, not PUT".to_owned())
        );
        assert_eq!(of(Method::GET, "store/4/limits").0, 404);
    }
}
