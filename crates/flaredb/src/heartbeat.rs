//! A heartbeat, in as many messages as it needs. Each region is told with its range and where it could be cut, and keys may
//! be long: all of them in one message would be more than the placement driver takes, and the store would count as gone.
//!
//! A part is a heartbeat like any other: regions that it does not name stay as they were. What is told of the store as a whole
//! is in every part.

use prost::Message as _;
use proto::placement as pb;
use tonic::Status;

use crate::pd::Placement;

/// What a part's regions may take, beyond the last one; the placement driver takes messages of 16 MiB.
const PART_BYTES_MAX: usize = 2 << 20;

/// Sends one part after the other. The answer to all of them; or why one was not answered, and the rest was not sent.
pub async fn send(pd: &dyn Placement, whole: pb::HeartbeatRequest) -> Result<pb::HeartbeatResponse, Status> {
    let mut all = pb::HeartbeatResponse::default();
    for part in parts(whole, PART_BYTES_MAX) {
        let answer = pd.heartbeat(part).await?;
        all.steps.extend(answer.steps);
        all.retired.extend(answer.retired);
        all.tell_again.extend(answer.tell_again);
        let pb::HeartbeatResponse { steps, retired, tell_again, .. } = all;
        all = pb::HeartbeatResponse { steps, retired, tell_again, ..answer };
    }
    Ok(all)
}

/// At least one.
fn parts(whole: pb::HeartbeatRequest, bytes_max: usize) -> Vec<pb::HeartbeatRequest> {
    let about = pb::HeartbeatRequest { led: Vec::new(), others: Vec::new(), unchanged: Vec::new(), ..whole };
    let (mut parts, mut part, mut bytes) = (Vec::new(), about.clone(), 0);
    let mut room_for = |part: &mut pb::HeartbeatRequest, more: usize| {
        if bytes > 0 && bytes + more > bytes_max {
            parts.push(std::mem::replace(part, about.clone()));
            bytes = 0;
        }
        bytes += more;
    };
    for region in whole.led {
        room_for(&mut part, region.encoded_len());
        part.led.push(region);
    }
    for replica in whole.others {
        room_for(&mut part, replica.encoded_len());
        part.others.push(replica);
    }
    for told in whole.unchanged {
        room_for(&mut part, told.encoded_len());
        part.unchanged.push(told);
    }
    parts.push(part);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(id: u64, key_bytes: usize) -> pb::RegionReport {
        let key = |last: u8| bytes::Bytes::from([vec![b'k'; key_bytes], vec![last]].concat());
        let region = pb::Region { id, start: key(1), end: key(3), ..Default::default() };
        pb::RegionReport { region: Some(region), split_keys: vec![key(2)], ..Default::default() }
    }

    fn replicas(ids: std::ops::Range<u64>) -> Vec<pb::Replica> {
        ids.map(|region_id| pb::Replica { region_id, peer_id: region_id + 1 }).collect()
    }

    #[test]
    fn no_part_is_more_than_the_placement_driver_takes_and_none_is_missing() {
        let brief = pb::Unchanged { region_id: 0, conf_version: 5, version: 7 };
        let led: Vec<_> = (1..=1000).map(|id| region(id, 16 << 10)).collect();
        let unchanged: Vec<_> = (60_000..200_000).map(|region_id| pb::Unchanged { region_id, ..brief }).collect();
        let stats = pb::StoreStats { region_count: 51_000, ..Default::default() };
        let whole = pb::HeartbeatRequest {
            store_id: 7,
            incarnation: 9,
            stats: Some(stats),
            led: led.clone(),
            others: replicas(2000..52_000),
            differing: replicas(3000..3002),
            unchanged: unchanged.clone(),
        };
        assert!(whole.encoded_len() > 16 << 20);
        let parts = parts(whole.clone(), PART_BYTES_MAX);
        for part in &parts {
            assert!(part.encoded_len() < 4 << 20, "{}", part.encoded_len());
            assert_eq!((part.store_id, part.incarnation, part.stats), (7, 9, whole.stats));
            assert_eq!(part.differing, whole.differing, "it is all of them");
        }
        let told = |of: fn(pb::HeartbeatRequest) -> (Vec<pb::RegionReport>, Vec<pb::Replica>)| {
            let all = parts.iter().cloned().map(of).collect::<Vec<_>>();
            let led = all.iter().flat_map(|(led, _)| led.clone()).collect::<Vec<_>>();
            (led, all.into_iter().flat_map(|(_, others)| others).collect::<Vec<_>>())
        };
        assert!(told(|part| (part.led, part.others)) == (led, whole.others));
        assert!(parts.iter().flat_map(|part| &part.unchanged).eq(&unchanged));
    }

    #[test]
    fn what_fits_is_one_message() {
        let whole =
            pb::HeartbeatRequest { store_id: 7, led: vec![region(1, 8)], others: replicas(2..5), ..Default::default() };
        assert_eq!(parts(whole.clone(), PART_BYTES_MAX), [whole]);
        let empty = pb::HeartbeatRequest { store_id: 7, ..Default::default() };
        assert_eq!(parts(empty.clone(), PART_BYTES_MAX), [empty], "it lives");
    }
}
