//! A store's process: node, engine, API, supervisor, and an orderly end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use base::{ClusterId, NodeId};
use consensus::MachineError;
use node::announce;
use node::heal::{Damage, What, unix_s};
use node::identity::Identity;
use node::many::{Ends, ManyNode};
use node::reload::{Reloader, expect_hangups, until_told_to_stop};
use node::scrub::{self, Scrub};
use node::service::{Service, listen, told_to_stop};
use node::start_error::{Cause, StartError};
use node::tls::Certificates;
use proto::placement as pb;
use rpc::server::{Server, ServerConfig};
use storage::EngineError;
use storage::rocks::RocksEngine;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::api::{Api, Door};
use crate::config::Settings;
use crate::heal;
use crate::known::{Known, Remembering};
use crate::merging;
use crate::pd::{PdClient, Placement};
use crate::ready::Ready;
use crate::region::layout::FAMILIES;
use crate::replication;
use crate::space;
use crate::store::{AdmitError, Store};
use crate::supervisor::{self, About, StoreCalls};

/// What a message may have beyond the largest value.
const MESSAGE_OVERHEAD_BYTES: usize = 1 << 20;
/// A store that has regions waits so long for the placement driver, and then begins without it.
const WITHOUT_PD_AFTER: Duration = Duration::from_secs(3);
/// Clients that come while a store begins wait so long, and are told then what it waits for.
const CLIENTS_WAIT: Duration = Duration::from_secs(1);

/// Runs until a signal ends it. The error is one line for people; nothing was started then.
pub fn run(settings: Settings, reloader: Reloader) -> Result<(), StartError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism().map_or(2, usize::from).min(8))
        .enable_all()
        .build()
        .map_err(|error| StartError::new(Cause::System, format_args!("cannot start threads: {error}")))?;
    runtime.block_on(async {
        let Some(own) = settings.standalone.clone() else { return serve(settings, reloader).await };
        if let Some(whole) = settings.node.data_dir.parent().filter(|whole| whole.join("identity").exists()) {
            return Err(StartError::new(
                Cause::Folder,
                format_args!(
                    "data folder {} is a store's that knows a placement driver elsewhere: `standalone` would begin an empty \
                     cluster below it; start it without, or name another folder",
                    whole.display()
                ),
            ));
        }
        let ports = own.node.client_urls.join(", ");
        tracing::info!(target: "flaredb_service", "Running a placement driver in this process, addr={ports}");
        // A signal ends both, and so does what ends one of them.
        let mut placing = tokio::spawn(placement::server::serve(own, None));
        let mut serving = std::pin::pin!(serve(settings, reloader));
        let ended = |placed: Result<Result<(), StartError>, tokio::task::JoinError>| {
            placed.map_err(|error| StartError::new(Cause::System, error)).flatten()
        };
        tokio::select! {
            served = &mut serving => {
                served?;
                ended(placing.await)
            }
            placed = &mut placing => {
                ended(placed)?;
                serving.await
            }
        }
    })
}

/// Opens log and state, or says what is damaged. A store that was never taken in has no state before it is: who wipes its
/// folder while it asks finds it empty afterwards.
fn open(settings: &Settings) -> Result<Result<(ManyNode, Option<RocksEngine>), Damage>, StartError> {
    let stops = |why: String| {
        tracing::error!(target: "flaredb_storage", "The store cannot go on and stops, why={why} code=CF8500");
        node::program::stop_dead();
    };
    let begins_anew = move |damage: Damage| {
        tracing::error!(
            target: "flaredb_storage",
            "Damage found, this store answers nothing any more and starts again, what={} why={} code=CF8540",
            damage.what.name(),
            damage.why
        );
        stops(node::restart::restart());
    };
    let ends = Ends { fatal: Arc::new(stops), damaged: Arc::new(begins_anew) };
    let node = match ManyNode::open(settings.node.clone(), &tokio::runtime::Handle::current(), ends) {
        Err(node::StartError::Damaged(damage)) => return Ok(Err(damage)),
        node => node?,
    };
    if !node.identity().voted {
        return Ok(Ok((node, None)));
    }
    match RocksEngine::open(&settings.node.data_dir, &FAMILIES, &settings.storage) {
        Ok(engine) => Ok(Ok((node, Some(engine)))),
        Err(EngineError::Corrupt(why)) => Ok(Err(Damage::new(What::State, why))),
        Err(error) => Err(of_data(error)),
    }
}

/// A placement driver to be asked before the node is there.
fn asked_alone(settings: &Settings) -> Result<PdClient, StartError> {
    let certificates = settings.node.tls.clone().map(Certificates::load).transpose().map_err(node::StartError::from)?;
    Ok(PdClient::new(settings.pd_addresses.clone(), certificates.as_ref().and_then(Certificates::asking)))
}

async fn serve(mut settings: Settings, reloader: Reloader) -> Result<(), StartError> {
    expect_hangups();
    space::fit(&mut settings);
    let service = Arc::new(Service::from_environment());
    let ready = Ready::within_bound(service.clone(), Instant::now());
    service.status("Opening the data folder");
    let listeners = settings.listen_client.iter().map(|address| listen(*address)).collect::<Result<Vec<_>, _>>();
    let listeners = listeners.map_err(|why| StartError::new(Cause::Address, why))?;
    let about = About {
        store_id: 0,
        client_url: settings.advertise_client.clone(),
        peer_url: settings.node.advertise_peer.clone(),
        labels: settings.labels.iter().cloned().collect(),
    };
    let mut repaired = None;
    let (node, engine) = loop {
        match open(&settings)? {
            Ok(opened) => break opened,
            Err(damage) => {
                service.status("Damaged; waiting until the other stores can do without this one");
                let pd = asked_alone(&settings)?;
                let alive = tokio::spawn(announce::watchdog(service.clone(), Arc::default()));
                tokio::select! {
                    given_up = heal::give_up(&settings, &pd, &about, &damage) => given_up.map_err(of_data)?,
                    () = told_to_stop() => return Ok(()),
                }
                alive.abort();
                repaired = Some((damage.what, unix_s()));
            }
        }
    };
    let node = Arc::new(node);
    // From here on: one that waits for the placement driver lives, too, and is called ready after a while.
    tokio::spawn(announce::watchdog(service.clone(), node.stats()));
    let certificates = node.certificates();
    let asking = certificates.as_ref().and_then(Certificates::asking);
    let pd = Arc::new(PdClient::new(settings.pd_addresses.clone(), asking.clone()));
    service.status("Registering with the placement driver");
    let identity = node.identity();
    let about = About { store_id: identity.node.0, ..about };
    let door = Door::closed();
    let config = ServerConfig {
        message_bytes_max: crate::api::VALUE_BYTES_MAX + MESSAGE_OVERHEAD_BYTES,
        stopping: rpc::Status::unavailable("the store is stopping"),
        names: rpc::server::names_in([&settings.advertise_client]),
        ..ServerConfig::default()
    };
    let server = Server::new(door.clone(), config);
    let serving = answer(listeners, &server, &door, certificates.as_ref().and_then(Certificates::serving))?;
    let known = Arc::new(Known::read(&settings.node.data_dir));
    pd.learn(&known.members());
    let put_off = {
        let (door, pd, service) = (Arc::downgrade(&door), pd.clone(), service.clone());
        move |status: &tonic::Status| {
            let Some(door) = door.upgrade().filter(|door| !door.is_open()) else { return };
            door.waits(format!("{}: {}", crate::api::WAITS, status.message()));
            service.status(&format!("Waiting for the placement driver at {}: {}", pd.addresses(), status.message()));
        }
    };
    let placement = Arc::new(Remembering::new(pd.clone(), known.clone(), put_off));
    let mut registering = {
        let (node, placement) = (node.clone(), placement.clone());
        tokio::spawn(async move { supervisor::register(&*node, &*placement, &about).await })
    };
    let registered = tokio::select! {
        registered = &mut registering => {
            Some(registered.map_err(|error| StartError::new(Cause::System, error))?.map_err(StartError::settings)?)
        }
        () = without_pd(&identity, &known, &placement) => None,
        () = told_to_stop() => return Ok(()),
    };
    let engine = match engine {
        Some(engine) => engine,
        None => RocksEngine::open(&settings.node.data_dir, &FAMILIES, &settings.storage).map_err(of_data)?,
    };
    let engine = Arc::new(engine);
    let noticed = engine.clone();
    node.set_notice(move || noticed.damage());
    let (cluster, id, stores) = match &registered {
        Some(response) => (ClusterId(response.cluster_id), NodeId(response.store_id), response.stores.clone()),
        None => (identity.cluster, identity.node, known.stores()),
    };
    if ![NodeId::default(), id].contains(&identity.node) || ![NodeId::default(), id].contains(&settings.node.node) {
        tracing::warn!(
            target: "flaredb_pd_client",
            "The store_id of the configuration is a lost store's, and this one has another, store_id={id} configured={} \
             code=CF8520",
            settings.node.node
        );
    }
    let incoming = settings.node.data_dir.join("incoming");
    let (store, news) = Store::new(node.clone(), engine.clone(), incoming);
    store.learn(&stores);
    node.begin(cluster, id, Arc::new(StoreCalls(store.clone())))?;
    let late = match &registered {
        Some(_) => {
            tell_registered(cluster, id, &pd);
            None
        }
        None => {
            tracing::warn!(
                target: "flaredb_pd_client",
                "No placement driver answers, the store goes on with what it knows and registers later, store_id={id} \
                 cluster={cluster} stores={} addr={} code=CF8527",
                stores.len(),
                pd.addresses()
            );
            Some(registering)
        }
    };
    match store.begin(news, registered.as_ref().and_then(|response| response.found.as_ref())) {
        Err(AdmitError::State(MachineError::Damaged(why) | MachineError::Engine(EngineError::Corrupt(why)))) => {
            node.is_damaged(why);
        }
        begun => begun.map_err(of_data)?,
    }
    let reserve = (settings.node.data_dir.clone(), settings.reserve_bytes);
    tokio::spawn(space::keep_room(store.clone(), node.clone(), reserve.0, reserve.1));

    let scrubbing: Arc<Scrub> = Arc::default();
    let scrubbed = engine.clone();
    scrub::start(&scrubbing, move || Some(scrubbed.clone()), node.log(), settings.scrub_interval);
    let api = Api::new(store.clone(), node.clone(), pd.clone(), asking, (scrubbing, repaired), settings.slow_request);
    api.behind(&server);
    door.open(api);
    drop(door);
    let merging = tokio::spawn(merging::attend(store.clone(), pd.clone()));
    let (refuse, refused) = oneshot::channel();
    let supervising = tokio::spawn(supervise(store.clone(), pd, placement, late, refuse));
    tokio::spawn(node::storage_log::watch_writes(store.node.stats()));
    tokio::spawn(replication::watch(store.clone()));
    tokio::spawn(tell_engine_events(engine));
    tokio::spawn(ready.attend(store.clone()));
    let refused = tokio::select! {
        () = until_told_to_stop(reloader.with(certificates), &service) => None,
        Ok(why) = refused => Some(why),
    };
    tracing::info!(target: "flaredb_service", "Stopping");
    service.stopping();
    supervising.abort();
    merging.abort();
    server.stop();
    let drained = async {
        for listener in serving {
            let _ = listener.await;
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(10), drained).await;
    drop(server);
    node.stop().await;
    tracing::info!(target: "flaredb_service", "Stopped");
    refused.map_or(Ok(()), |why| Err(StartError::settings(why)))
}

/// Answers clients, before the store serves too.
fn answer(
    listeners: Vec<std::net::TcpListener>,
    server: &Arc<Server<Door>>,
    door: &Arc<Door>,
    tls: Option<Arc<rpc::server::Tls>>,
) -> Result<Vec<JoinHandle<()>>, StartError> {
    let mut serving = Vec::new();
    for listener in listeners {
        let address = listener.local_addr().map_or_else(|error| error.to_string(), |address| address.to_string());
        let listener =
            tokio::net::TcpListener::from_std(listener).map_err(|error| StartError::new(Cause::Address, error))?;
        let opened = door.clone();
        tokio::spawn(async move {
            opened.is_opened().await;
            tracing::info!(target: "flaredb_service", "Serving clients, addr={address}");
        });
        let (server, door, tls) = (server.clone(), door.clone(), tls.clone());
        serving.push(tokio::spawn(async move {
            let _ = tokio::time::timeout(CLIENTS_WAIT, door.is_opened()).await;
            drop(door);
            server.serve_with(listener, tls).await;
        }));
    }
    Ok(serving)
}

/// Comes when the store may begin without the placement driver, if that ever is: it has voted, so nothing about it is to be
/// decided any more; it knows where the others are; and nobody who leads the placement driver has said a word. Whether its
/// folder is a copy the other stores notice as well.
async fn without_pd(identity: &Identity, known: &Known, placement: &Remembering) {
    let is_somebody = identity.voted && identity.cluster != ClusterId::default() && identity.node != NodeId::default();
    if !is_somebody || known.stores().is_empty() {
        return std::future::pending().await;
    }
    tokio::time::sleep(WITHOUT_PD_AFTER).await;
    if placement.spoke() {
        std::future::pending().await
    }
}

/// `late`: the store is not registered yet. What refuses it for good ends the process.
async fn supervise(
    store: Arc<Store>,
    pd: Arc<PdClient>,
    placement: Arc<Remembering>,
    late: Option<JoinHandle<Result<pb::RegisterResponse, String>>>,
    refuse: oneshot::Sender<String>,
) {
    if let Some(registering) = late {
        // It is not to be had when the process ends.
        let Ok(registered) = registering.await else { return };
        match registered {
            Ok(response) => {
                store.learn(&response.stores);
                tell_registered(store.cluster(), store.id(), &pd);
                let founding = store.clone();
                let found = move || response.found.map_or(Ok(()), |region| founding.found(&region));
                if let Ok(Err(why)) = tokio::task::spawn_blocking(found).await {
                    return drop(refuse.send(format!("the first region was not founded: {why}")));
                }
            }
            // Whoever listens ends with the process.
            Err(why) => return drop(refuse.send(why)),
        }
    }
    supervisor::supervise(store, placement).await;
}

fn tell_registered(cluster: ClusterId, id: NodeId, pd: &PdClient) {
    tracing::info!(target: "flaredb_pd_client", "Registered with PD, store_id={id} cluster={cluster} addr={}", pd.addresses());
}

/// Puts into the log what the engine met in the background.
async fn tell_engine_events(engine: Arc<RocksEngine>) {
    loop {
        tokio::time::sleep(node::storage_log::LOOK_EVERY).await;
        engine.take_events().into_iter().for_each(node::storage_log::tell);
    }
}

fn of_data(error: impl std::fmt::Display) -> StartError {
    StartError::new(Cause::Data, error)
}
