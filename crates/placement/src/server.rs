//! A member's process: node, records, API, planning, and an orderly end.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use base::NodeId;
use node::heal::Ends;
use node::node::MachineFiles;
use node::reload::{Reloader, expect_hangups, until_told_to_stop};
use node::scrub::{self, Scrub};
use node::seed::Seed;
use node::service::{Service, listen, told_to_stop};
use node::start_error::{Cause, StartError};
use node::{Node, announce, restart, stopping, storage_log};
use parking_lot::Mutex;
use rpc::server::{Server, ServerConfig};
use storage::Engine;
use storage::rocks::{RocksEngine, RocksOptions};

use crate::Policy;
use crate::api::{Api, MemberCalls};
use crate::config::Settings;
use crate::counters::Counters;
use crate::leader::Leader;
use crate::machine::{FAMILIES, META, PlacementMachine, SharedRecords};
use crate::metrics::NodeSources;

/// A region of many replicas, a heartbeat of many regions.
const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Records are small.
const WRITE_BUFFER_BYTES: usize = 16 << 20;
const BLOCK_CACHE_BYTES: usize = 32 << 20;

/// The records that a machine keeps, once there is one, and its engine.
#[derive(Default)]
struct Opened(Mutex<Option<(SharedRecords, Arc<RocksEngine>)>>);

/// Runs until a signal ends it. The error is one line for people; nothing was started then.
pub fn run(settings: Settings, reloader: Reloader) -> Result<(), StartError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism().map_or(2, usize::from).min(4))
        .enable_all()
        .build()
        .map_err(|error| StartError::new(Cause::System, format_args!("cannot start threads: {error}")))?;
    runtime.block_on(serve(settings, Some(reloader)))
}

/// As [`run`], in a runtime that is there. Without a reloader its certificates are read again when they change, and nothing
/// else is.
pub async fn serve(settings: Settings, reloader: Option<Reloader>) -> Result<(), StartError> {
    let begun = Instant::now();
    expect_hangups();
    // One that is somebody's guest leaves the service manager to its host.
    let service = Arc::new(if reloader.is_some() { Service::from_environment() } else { Service::default() });
    service.status("Opening the data folder");
    let listeners = settings.listen_client.iter().map(|address| listen(*address)).collect::<Result<Vec<_>, _>>();
    let listeners = listeners.map_err(|why| StartError::new(Cause::Address, why))?;
    let opened: Arc<Opened> = Arc::default();
    let calls: Arc<OnceLock<Arc<Api>>> = Arc::default();
    let node = Arc::new(start_node(&settings, &opened, &calls)?);
    let handle = node.handle();
    let leader: Arc<OnceLock<Arc<Leader>>> = Arc::default();
    let counters: Arc<Counters> = Arc::default();
    let scrubbing: Arc<Scrub> = Arc::default();
    let state = {
        let opened = opened.clone();
        move || opened.engine()
    };
    scrub::start(&scrubbing, state, node.log(), settings.scrub_interval);
    let sources = node_sources(&node, &opened, scrubbing.clone(), settings.node.data_dir.clone());
    let asking = node.certificates().and_then(|certificates| certificates.asking());
    let api = Api::new(leader.clone(), handle.clone(), counters.clone(), scrubbing, asking, Box::new(sources));
    // Set once: it was made just now.
    let _ = calls.set(api.clone());
    let config = ServerConfig {
        message_bytes_max: MESSAGE_BYTES_MAX,
        stopping: rpc::Status::unavailable("the placement driver is stopping"),
        names: rpc::server::names_in(&settings.node.client_urls),
        ..ServerConfig::default()
    };
    let server = Server::new(api, config);
    let tls = node.certificates().and_then(|certificates| certificates.serving());
    let mut serving = Vec::new();
    for listener in listeners {
        let address = listener.local_addr().map_or_else(|error| error.to_string(), |address| address.to_string());
        let listener =
            tokio::net::TcpListener::from_std(listener).map_err(|error| StartError::new(Cause::Address, error))?;
        tracing::info!(target: "placement_api", "Serving stores and clients, addr={address}");
        let (server, tls) = (server.clone(), tls.clone());
        serving.push(tokio::spawn(async move { server.serve_with(listener, tls).await }));
    }
    let has_state = {
        let opened = opened.clone();
        move || opened.0.lock().is_some()
    };
    tokio::spawn(storage_log::watch_writes(node.stats()));
    tokio::spawn(tell_engine_events(opened.clone()));
    announce::start(&service, &handle, has_state, node.stats(), begun);
    let planning = tokio::spawn({
        let handle = handle.clone();
        let defaults = Policy { max_replicas: settings.max_replicas, ..Policy::default() };
        async move {
            let records = opened.records().await;
            let known = Leader::new(handle, records, defaults, counters);
            // Nobody else sets it.
            let _ = leader.set(known.clone());
            known.run().await;
        }
    });
    match reloader {
        Some(reloader) => until_told_to_stop(reloader.with(node.certificates()), &service).await,
        None => told_to_stop().await,
    }
    tracing::info!(target: "placement_api", "Stopping");
    service.stopping();
    tokio::select! {
        () = stopping::wait_for_a_quorum_of_others(&handle) => {}
        () = told_to_stop() => tracing::info!(target: "placement_api", "Told to stop again: stopping at once"),
    }
    planning.abort();
    server.stop();
    for listener in serving {
        let _ = listener.await;
    }
    drop(server);
    node.stop().await;
    tracing::info!(target: "placement_api", "Stopped");
    Ok(())
}

impl Opened {
    fn engine(&self) -> Option<Arc<RocksEngine>> {
        self.0.lock().as_ref().map(|(_, engine)| engine.clone())
    }

    /// Those that the machine keeps, as soon as this member belongs to a cluster.
    async fn records(&self) -> SharedRecords {
        loop {
            if let Some((records, _)) = &*self.0.lock() {
                return records.clone();
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }
}

/// What the node tells of itself, whenever it is asked for.
fn node_sources(
    node: &Arc<Node>,
    opened: &Arc<Opened>,
    scrub: Arc<Scrub>,
    data_dir: PathBuf,
) -> impl Fn() -> Option<NodeSources> + Send + Sync + use<> {
    // The node holds the API, which holds this.
    let (node, opened) = (Arc::downgrade(node), opened.clone());
    move || {
        let node = node.upgrade()?;
        let engine = opened.engine();
        Some(NodeSources {
            driver: node.stats(),
            log: node.log_stats(),
            engine: engine.map(|engine| engine.stats()),
            scrub: scrub.progress(),
            repaired: node.handle().health().repaired_unix_s().collect(),
            disk: node::disk::room(&data_dir),
            peers_refused: node.peers_refused(),
            tls: node.certificates().map(|certificates| certificates.stats()),
        })
    }
}

/// Puts into the log what the engine met in the background.
async fn tell_engine_events(opened: Arc<Opened>) {
    loop {
        tokio::time::sleep(storage_log::LOOK_EVERY).await;
        let engine = opened.engine();
        engine.iter().flat_map(|engine| engine.take_events()).for_each(storage_log::tell);
    }
}

fn start_node(settings: &Settings, opened: &Arc<Opened>, calls: &Arc<OnceLock<Arc<Api>>>) -> Result<Node, StartError> {
    let dir = settings.node.data_dir.clone();
    let options = RocksOptions {
        write_buffer_size: WRITE_BUFFER_BYTES,
        block_cache_size: BLOCK_CACHE_BYTES,
        now: node::clock::now,
        ..RocksOptions::default()
    };
    let open = {
        let opened = opened.clone();
        Box::new(move |cluster, _node: NodeId, keep: bool| {
            // One that is still open is this very folder's.
            opened.0.lock().take();
            let engine = Arc::new(RocksEngine::open(&dir, &FAMILIES, &options)?);
            let view = engine.view();
            let holds_something = view.scan(META, &[], None).valid();
            drop(view);
            if !keep && holds_something {
                let mut nothing = engine.begin_install()?;
                nothing.finish()?;
                engine.commit_install(&mut *nothing)?;
            }
            let shared: Arc<dyn Engine> = engine.clone();
            let machine = PlacementMachine::open(shared, cluster)?;
            *opened.0.lock() = Some((machine.records(), engine));
            Ok(Box::new(machine) as Box<dyn consensus::StateMachine>)
        })
    };
    let close = {
        let opened = opened.clone();
        Box::new(move || drop(opened.0.lock().take()))
    };
    let damage = {
        let opened = opened.clone();
        Box::new(move || opened.0.lock().as_ref().and_then(|(_, engine)| engine.damage()))
    };
    const NONE: &str = "a placement driver is not restored from a file";
    let seed = Seed {
        file: "restore.placement",
        check: Box::new(|_| Err(NONE.to_owned())),
        load: Box::new(|_| Err(NONE.to_owned())),
    };
    let fatal = |why: String| {
        tracing::error!(target: "placement_storage", "The member cannot go on and stops, why={why} code=CF8000");
        node::program::stop_dead();
    };
    let ends = Ends {
        fatal: Arc::new(fatal),
        quarantine: Arc::new(|| {}),
        restart: Arc::new(move || fatal(restart::restart())),
    };
    let calls = calls.clone();
    let service = move |_| Some(Arc::new(MemberCalls(calls)) as Arc<dyn node::transport::CallService>);
    let runtime = tokio::runtime::Handle::current();
    let files = MachineFiles { open, close, damage, seed };
    Node::start(settings.node.clone(), &runtime, files, service, ends).map_err(StartError::from)
}
