//! The gRPC calls.

use bytes::Bytes;
use prost::Message;
use proto::placement as pb;
use rpc::server::Method;
use rpc::{Code, Status};

use super::Api;
use crate::leader::Leader;
use crate::machine::Records;

const REGISTER: u16 = 0;
const HEARTBEAT: u16 = 1;
pub const GET_REGION: u16 = 2;
const SCAN_REGIONS: u16 = 3;
const ALLOCATE_IDS: u16 = 4;
const CLUSTER_STATUS: u16 = 5;

/// By their numbers.
pub const METHODS: [&str; 6] = ["Register", "Heartbeat", "GetRegion", "ScanRegions", "AllocateIds", "ClusterStatus"];

const SCAN_MAX: u32 = 1000;

pub fn resolve(path: &str) -> Option<Method> {
    let name = path.strip_prefix("/centra.placement.v1.Placement/")?;
    let number = METHODS.iter().position(|method| *method == name)?;
    Some(Method::unary(number as u16))
}

/// Whether only the leader can answer.
pub fn needs_leader(number: u16) -> bool {
    number != ALLOCATE_IDS
}

impl Api {
    pub(super) async fn call(&self, number: u16, message: Bytes) -> Result<Bytes, Status> {
        let leader = self.leader()?;
        if needs_leader(number) {
            leader.settle().await?;
        }
        match number {
            REGISTER => encoded(leader.register(checked(decoded(message)?)?).await),
            HEARTBEAT => encoded(leader.heartbeat(decoded(message)?).await),
            GET_REGION => {
                let request: pb::GetRegionRequest = decoded(message)?;
                encoded(self.get_region(&request.key))
            }
            SCAN_REGIONS => encoded(self.scan_regions(&decoded(message)?)),
            ALLOCATE_IDS => {
                let request: pb::AllocateIdsRequest = decoded(message)?;
                encoded(leader.allocate(request.count).await.map(|first| pb::AllocateIdsResponse { first }))
            }
            CLUSTER_STATUS => encoded(self.cluster_status()),
            other => unreachable!("method {other} is not resolved"),
        }
    }

    fn get_region(&self, key: &[u8]) -> Result<pb::GetRegionResponse, Status> {
        region_at(self.leader()?, key)
    }

    fn scan_regions(&self, request: &pb::ScanRegionsRequest) -> Result<pb::ScanRegionsResponse, Status> {
        let leader = self.leader()?;
        let term = leader.term()?;
        let records = leader.records().read();
        let limit = if request.limit == 0 { SCAN_MAX } else { request.limit.min(SCAN_MAX) };
        let within = |region: &&pb::Region| request.end.is_empty() || region.start < request.end;
        let regions = records.regions_from(&request.start).take_while(within).take(limit as usize);
        let regions = regions.map(|region| pb::GetRegionResponse {
            region: Some(region.clone()),
            leader_store: term
                .view
                .region(base::GroupId(region.id))
                .and_then(|known| known.leader)
                .unwrap_or_default()
                .0,
            stores: stores_of(&records, region),
        });
        Ok(pb::ScanRegionsResponse { regions: regions.collect() })
    }
}

/// Where a key lies, as the leading member knows it.
pub fn region_at(leader: &Leader, key: &[u8]) -> Result<pb::GetRegionResponse, Status> {
    let term = leader.term()?;
    let records = leader.records().read();
    let region = records.region_at(key);
    let region = region.ok_or_else(|| Status::new(Code::NotFound, "no region covers the key yet"))?;
    let stores = stores_of(&records, region);
    let led_by = term.view.region(base::GroupId(region.id)).and_then(|region| region.leader);
    Ok(pb::GetRegionResponse { region: Some(region.clone()), leader_store: led_by.unwrap_or_default().0, stores })
}

/// Those that can be asked.
fn stores_of(records: &Records, region: &pb::Region) -> Vec<pb::Store> {
    let stores = region.peers.iter().filter_map(|peer| records.stores.get(&peer.store_id));
    stores.filter(|store| !store.client_url.is_empty()).cloned().collect()
}

/// A store's words end up in logs and JSON.
fn checked(request: pb::RegisterRequest) -> Result<pb::RegisterRequest, Status> {
    const TEXT_BYTES_MAX: usize = 256;
    const LABELS_MAX: usize = 16;
    let texts = [&request.client_url, &request.peer_url, &request.version];
    let labels = request.labels.iter().flat_map(|(name, value)| [name, value]);
    let good = |text: &String| text.len() <= TEXT_BYTES_MAX && !text.contains(|c: char| c.is_control() || c == ' ');
    if request.incarnation == 0 || request.client_url.is_empty() || request.peer_url.is_empty() {
        return Err(Status::invalid_argument("a store names its incarnation and its addresses"));
    }
    if request.labels.len() > LABELS_MAX || !texts.into_iter().chain(labels).all(good) {
        return Err(Status::invalid_argument("an address or a label is too long, or holds what is not printable"));
    }
    Ok(request)
}

pub fn decoded<T: Message + Default>(message: Bytes) -> Result<T, Status> {
    T::decode(message).map_err(|_| Status::invalid_argument("the request cannot be decoded"))
}

fn encoded<T: Message>(answer: Result<T, Status>) -> Result<Bytes, Status> {
    answer.map(|answer| answer.encode_to_vec().into())
}
