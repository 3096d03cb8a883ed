//! What members and stores send, changed at random ([`mutate`]): requests that are passed on, heartbeats. Tests only.

use std::sync::Arc;

use base::{NodeId, Time};
use bytes::Bytes;
use prost::Message as _;
use proto::placement as pb;

use crate::Policy;
use crate::api::Request;
use crate::leader::check_regions;
use crate::machine::Records;
use crate::mutate::mutate;
use crate::term::Term;
use crate::view::StoreMeta;

#[test]
fn a_request_that_was_passed_on_says_what_its_bytes_say() {
    let request = |method, path: &str, query: &str, body: &'static str| {
        let (path, query) = (path.to_owned(), query.to_owned());
        Request { method, path, query, body: Bytes::from_static(body.as_bytes()) }.encode().to_vec()
    };
    let inputs = [
        request(::http::Method::GET, "regions", "limit=3", ""),
        request(::http::Method::POST, "config/schedule", "", r#"{"max-snapshot-count": 5}"#),
    ];
    mutate(1, 50_000, &inputs, |bytes| {
        if let Some(request) = Request::decode(Bytes::copy_from_slice(bytes)) {
            assert_eq!(request.encode(), bytes);
        }
    });
}

/// Whatever stores say, what is made of it can be planned by.
#[test]
fn no_heartbeat_breaks_the_view() {
    let peers = [(11, 1, false), (12, 2, true), (13, 3, false)];
    let peer = |(id, store_id, learner)| pb::Peer { id, store_id, learner };
    let region = |id, start: &'static str, end: &'static str| pb::Region {
        id,
        start: start.into(),
        end: end.into(),
        conf_version: 2,
        version: 1,
        peers: peers.map(peer).into(),
    };
    let report = |region| pb::RegionReport {
        region: Some(region),
        down: vec![13],
        pending: vec![12],
        split_keys: vec!["c".into()],
        bytes: 1 << 40,
        rates: Some(pb::Rates { requests: 9, ..Default::default() }),
        ..Default::default()
    };
    let led = vec![report(region(7, "", "m")), report(region(8, "m", ""))];
    let differing = vec![pb::Replica { region_id: 8, peer_id: 11 }];
    let stats = pb::StoreStats { capacity_bytes: 1 << 40, available_bytes: 1 << 39, ..Default::default() };
    let heartbeat = pb::HeartbeatRequest {
        store_id: 1,
        incarnation: 5,
        stats: Some(stats),
        led,
        others: differing.clone(),
        differing,
        unchanged: vec![pb::Unchanged { region_id: 7, conf_version: 2, version: 1 }],
    };
    let (policy, mut now) = (Policy::default(), Time::ZERO);
    let begin = |now| {
        let mut term = Term::new(1, &Records::default(), &policy, now, Arc::default()).unwrap();
        (1..=4).for_each(|store| term.view.put_store(StoreMeta::new(NodeId(store)), now));
        term
    };
    let mut term = begin(now);
    let mut round = 0;
    mutate(2, 5_000, &[heartbeat.encode_to_vec()], |bytes| {
        round += 1;
        if round % 100 == 0 {
            term = begin(now);
        }
        now = now + std::time::Duration::from_secs(1);
        let Ok(request) = pb::HeartbeatRequest::decode(bytes) else { return };
        if check_regions(&request).is_ok() {
            term.hear(NodeId(request.store_id), &request, now);
            term.retired(&request, &Records::default(), now);
            term.plan(now);
        }
    });
}
