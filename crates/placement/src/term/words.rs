//! The stores' words and the planner's: the same things, as messages have them and as plans are made of them.

use std::collections::BTreeMap;

use base::{GroupId, NodeId, PeerId};
use proto::placement as pb;

use crate::Region;
use crate::model::{Epoch, Peer, Step};
use crate::view::{RegionReport, StoreMeta, StoreRates, StoreState};

/// Those that people have set before those that it brings along.
pub fn labels_of(store: &pb::Store) -> BTreeMap<String, String> {
    let both = store.labels.iter().chain(&store.labels_set);
    both.map(|(name, value)| (name.clone(), value.clone())).collect()
}

pub fn meta_of(store: &pb::Store) -> StoreMeta {
    let state = match store.state() {
        pb::StoreState::Up => StoreState::Up,
        pb::StoreState::Offline => StoreState::Offline,
        pb::StoreState::Tombstone => StoreState::Tombstone,
    };
    StoreMeta {
        state,
        labels: labels_of(store),
        leader_weight: store.leader_weight.unwrap_or(1.0),
        region_weight: store.region_weight.unwrap_or(1.0),
        add_limit: store.add_limit,
        remove_limit: store.remove_limit,
        lost: store.replaced_by != 0 || store.given_up,
        ..StoreMeta::new(NodeId(store.id))
    }
}

pub(super) fn store_rates(rates: pb::Rates) -> StoreRates {
    StoreRates {
        read_bytes: rates.read_bytes,
        read_keys: rates.read_keys,
        write_bytes: rates.write_bytes,
        write_keys: rates.write_keys,
        requests: rates.requests,
    }
}

pub(super) fn report_of(region: &pb::Region, leader: Option<NodeId>) -> RegionReport {
    let peer = |peer: &pb::Peer| Peer { id: PeerId(peer.id), store: NodeId(peer.store_id), learner: peer.learner };
    RegionReport {
        id: GroupId(region.id),
        start: region.start.as_ref().into(),
        end: region.end.as_ref().into(),
        epoch: Epoch { conf_version: region.conf_version, version: region.version },
        peers: region.peers.iter().map(peer).collect(),
        leader,
        ..RegionReport::default()
    }
}

/// As far as a step names it.
pub(super) fn described(region: &Region) -> pb::Region {
    let peer = |peer: &Peer| pb::Peer { id: peer.id.0, store_id: peer.store.0, learner: peer.learner };
    pb::Region {
        id: region.id.0,
        conf_version: region.epoch.conf_version,
        version: region.epoch.version,
        peers: region.peers.iter().map(peer).collect(),
        ..pb::Region::default()
    }
}

/// A step as the region's leader is asked for it; `None`: it only has to wait.
pub(super) fn step_for(region: &pb::Region, step: &Step, split: Option<&pb::SplitStep>) -> Option<pb::Step> {
    let holds = |store: NodeId| region.peers.iter().any(|peer| peer.store_id == store.0);
    let action = match step {
        Step::AddLearner { store, .. } if holds(*store) => return None,
        Step::AddLearner { store, peer } => {
            pb::step::Action::AddLearner(pb::Peer { id: peer.0, store_id: store.0, learner: true })
        }
        Step::Promote { store } => pb::step::Action::PromoteStore(store.0),
        Step::Remove { store, .. } => pb::step::Action::RemoveStore(store.0),
        Step::TransferLeader { to } => pb::step::Action::TransferToStore(to.0),
        Step::Split { .. } => pb::step::Action::Split(split?.clone()),
        Step::Merge { into, into_epoch } => {
            pb::step::Action::Merge(pb::MergeStep { into: into.0, into_version: into_epoch.version })
        }
    };
    Some(pb::Step {
        region_id: region.id,
        conf_version: region.conf_version,
        version: region.version,
        action: Some(action),
    })
}
