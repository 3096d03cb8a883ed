//! Stores that were not let in, for people: two that claim one id are to be seen side by side. It is memory of the leading
//! member, and holds the last ones only. Who is let in after all is dropped.

use std::collections::VecDeque;

use base::Time;
use parking_lot::Mutex;
use proto::placement as pb;

/// A store that is refused asks again every second: it counts once.
const REFUSED_MAX: usize = 64;

/// The last one stands in front.
#[derive(Default)]
pub struct RefusedStores(Mutex<VecDeque<(Time, pb::RefusedStore)>>);

impl RefusedStores {
    pub fn note(&self, request: &pb::RegisterRequest, why: &str, now: Time) {
        let mut all = self.0.lock();
        let known = all.iter().position(|(_, known)| is_of(known, request)).and_then(|at| all.remove(at));
        all.truncate(REFUSED_MAX - 1);
        let refused = pb::RefusedStore {
            store_id: request.store_id,
            incarnation: request.incarnation,
            client_url: request.client_url.clone(),
            peer_url: request.peer_url.clone(),
            seconds_ago: 0,
            times: known.map_or(0, |(_, known)| known.times) + 1,
            why: why.to_owned(),
        };
        all.push_front((now, refused));
    }

    /// It was let in.
    pub fn forget(&self, request: &pb::RegisterRequest) {
        self.0.lock().retain(|(_, known)| !is_of(known, request));
    }

    pub fn all(&self, now: Time) -> Vec<pb::RefusedStore> {
        let all = self.0.lock();
        let told = |(at, refused): &(Time, pb::RefusedStore)| pb::RefusedStore {
            seconds_ago: now.since(*at).as_secs(),
            ..refused.clone()
        };
        all.iter().map(told).collect()
    }

    /// Those that claimed to be this store.
    pub fn like(&self, store: &pb::Store, now: Time) -> Vec<pb::RefusedStore> {
        let claims = |it: &pb::RefusedStore| it.store_id == store.id || it.incarnation == store.incarnation;
        self.all(now).into_iter().filter(claims).collect()
    }
}

fn is_of(refused: &pb::RefusedStore, request: &pb::RegisterRequest) -> bool {
    (refused.incarnation, &refused.client_url, &refused.peer_url)
        == (request.incarnation, &request.client_url, &request.peer_url)
}

/// In a line.
pub fn described(refused: &pb::RefusedStore) -> String {
    let pb::RefusedStore { incarnation, client_url, seconds_ago, times, why, .. } = refused;
    format!("data folder {incarnation:016x} at {client_url}, {times} times, last {seconds_ago} s ago: {why}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asking(store_id: u64, incarnation: u64) -> pb::RegisterRequest {
        let client_url = format!("http://s{incarnation}");
        pb::RegisterRequest { store_id, incarnation, client_url, ..pb::RegisterRequest::default() }
    }

    #[test]
    fn the_last_ones_are_kept_each_once() {
        let refused = RefusedStores::default();
        for second in 0..200 {
            let now = Time::from_millis(1000 * second);
            refused.note(&asking(3, 7), "duplicate", now);
            refused.note(&asking(4, 100 + second), "another", now);
        }
        let now = Time::from_millis(1000 * 200);
        assert_eq!(refused.all(now).len(), REFUSED_MAX);
        let like = refused.like(&pb::Store { id: 3, incarnation: 1, ..pb::Store::default() }, now);
        assert_eq!((like.len(), like[0].times, like[0].seconds_ago), (1, 200, 1));
        assert!(described(&like[0]).contains("0000000000000007 at http://s7, 200 times, last 1 s ago: duplicate"));
        refused.forget(&asking(3, 7));
        assert_eq!(refused.like(&pb::Store { id: 3, ..pb::Store::default() }, now), []);
    }
}
