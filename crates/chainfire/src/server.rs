//! A Chainfire process: a node, its API on the client listeners, housekeeping, and an orderly end.

use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use base::NodeId;
use node::heal::Ends;
use node::node::MachineFiles;
use node::reload::{expect_hangups, until_told_to_stop};
use node::scrub::{self, Scrub};
use node::service::told_to_stop;
use node::start_error::{Cause, StartError};
use node::{Node, NodeConfig};
use node::{announce, restart, stopping};
use rpc::server::{Server, ServerConfig};

use crate::api::leader::LeaderCalls;
use crate::api::{Api, ApiLimits, LargeAnswers};
use crate::config::{Settings, Source};
use crate::housekeeping::{self, Rules};
use crate::lessor::LessorOptions;
use crate::live::{Live, Values};
use crate::metrics::{Metrics, Sources};
use crate::progress;
use crate::space::Reports;
use crate::store::{self, Stores};
use crate::{corruption, reload, restore};

/// Bytes a message may have beyond the largest request.
const MESSAGE_OVERHEAD_BYTES: usize = 512 << 10;
/// Bytes of large answers that clients have not taken yet.
const ANSWER_BYTES_HELD_MAX: usize = 1 << 30;

/// Runs until a signal ends it. The error is one line for people; nothing was started then.
pub fn run(settings: Settings, source: Source) -> Result<(), StartError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism().map_or(2, usize::from).min(8))
        .enable_all()
        .build()
        .map_err(|error| StartError::new(Cause::System, format_args!("cannot start threads: {error}")))?;
    runtime.block_on(serve(settings, source))
}

async fn serve(settings: Settings, source: Source) -> Result<(), StartError> {
    let begun = Instant::now();
    expect_hangups();
    let service = Arc::new(node::service::Service::from_environment());
    service.status("Opening the data folder");
    let live = Arc::new(Live::new(Values::of(&settings)));
    let listeners = settings.listen_client.iter().map(|address| listen(*address)).collect::<Result<Vec<_>, _>>()?;
    let stores: Arc<Stores> = Arc::default();
    let metrics = Arc::new(Metrics::default());
    let slow: Arc<node::slow::SlowRequests> = Arc::default();
    let disk_full = Arc::new(AtomicBool::new(false));
    let scrubbing: Arc<Scrub> = Arc::default();
    let counted: Arc<OnceLock<Weak<Server<Api>>>> = Arc::default();
    let lessor = LessorOptions { election_timeout: settings.node.host.election_timeout(), ..Default::default() };
    let reports: Arc<Reports> = Arc::default();
    let node = start_node(settings.node.clone(), &settings, &lessor, &stores, &counted, &reports)?;
    let handle = node.handle();
    let server_config = ServerConfig {
        message_bytes_max: settings.request_bytes_max + MESSAGE_OVERHEAD_BYTES,
        names: rpc::server::names_in(&settings.advertise_client),
        ..ServerConfig::default()
    };
    let node = Arc::new(node);
    let state = {
        let stores = stores.clone();
        move || stores.get().map(|store| store.engine.clone())
    };
    scrub::start(&scrubbing, state, node.log(), settings.scrub_interval);
    let sources = {
        let (node, stores, metrics) = (node.clone(), stores.clone(), metrics.clone());
        let slow = slow.clone();
        let (counted, live, data_dir) = (counted.clone(), live.clone(), settings.node.data_dir.clone());
        let scrub = scrubbing.clone();
        move || {
            let store = stores.get();
            metrics.render(&Sources {
                driver: &node.stats(),
                health: node.handle().health(),
                scrub: scrub.progress(),
                group: &node.handle().status(),
                membership: &node.handle().membership(),
                log: &node.log_stats(),
                traffic: node.traffic(),
                peers_refused: node.peers_refused(),
                gossip: &node.handle().gossip(),
                tls: node.certificates().map(|certificates| certificates.stats()),
                store: store.as_ref().map(|store| store.reader.stats()),
                watch: store.as_ref().map(|store| store.hub.stats()),
                server: counted.get().and_then(Weak::upgrade).map(|server| server.stats()).unwrap_or_default(),
                quota_bytes: live.quota_bytes(),
                slow_requests: slow.seen(),
                reloads: live.stats(),
                disk: node::disk::room(&data_dir),
            })
        }
    };
    let api = Arc::new(Api {
        handle: handle.clone(),
        stores: stores.clone(),
        limits: ApiLimits { request_bytes_max: settings.request_bytes_max },
        live: live.clone(),
        slow: slow.clone(),
        metrics: metrics.clone(),
        scrub: scrubbing.clone(),
        sources: Arc::new(sources),
        started: Instant::now(),
        large: LargeAnswers::new(ANSWER_BYTES_HELD_MAX),
        range_bytes_per_key: AtomicU64::new(0),
        put_said_ms: AtomicU64::new(0),
        disk_full: disk_full.clone(),
    });
    let rules = Rules {
        data_dir: settings.node.data_dir.clone(),
        live: live.clone(),
        disk_full: disk_full.clone(),
        reports,
        stats: node.stats(),
    };
    housekeeping::start(&handle, &stores, rules);
    corruption::start(&handle, &stores, &scrubbing);
    let server = Server::new(api, server_config);
    // Set once: it was made just now.
    let _ = counted.set(Arc::downgrade(&server));
    let tls = node.certificates().and_then(|certificates| certificates.serving());
    let mut serving = Vec::new();
    for listener in listeners {
        let address = listener.local_addr().map_or_else(|error| error.to_string(), |address| address.to_string());
        let listener = tokio::net::TcpListener::from_std(listener).map_err(of_socket)?;
        tracing::info!(target: "chainfire_api", "Serving clients, addr={address}");
        let (server, tls) = (server.clone(), tls.clone());
        serving.push(tokio::spawn(async move { server.serve_with(listener, tls).await }));
    }
    let has_state = {
        let stores = stores.clone();
        move || stores.get().is_some()
    };
    announce::start(&service, &handle, has_state, node.stats(), begun);
    progress::start(&handle, &metrics);
    let reloader = reload::reloader(source, &settings, live).with(node.certificates());
    until_told_to_stop(reloader, &service).await;
    tracing::info!(target: "chainfire_api", "Stopping");
    service.stopping();
    service.status("Handing leadership over and finishing requests");
    let handle = node.handle();
    tokio::select! {
        () = stopping::wait_for_a_quorum_of_others(&handle) => {}
        () = told_to_stop() => tracing::info!(target: "chainfire_api", "Told to stop again: stopping at once"),
    }
    // Leadership first: the others go on while this node's clients finish.
    if handle.is_leader() && handle.membership().voters.len() > 1 {
        let _ = tokio::time::timeout(Duration::from_secs(2), handle.transfer(None)).await;
    }
    server.stop();
    for listener in serving {
        let _ = listener.await;
    }
    drop(server);
    node.stop().await;
    tracing::info!(target: "chainfire_api", "Stopped");
    Ok(())
}

fn start_node(
    config: NodeConfig,
    settings: &Settings,
    lessor: &LessorOptions,
    stores: &Arc<Stores>,
    server: &Arc<OnceLock<Weak<Server<Api>>>>,
    reports: &Arc<Reports>,
) -> Result<Node, StartError> {
    let open_machine = {
        let (dir, options) = (config.data_dir.clone(), settings.storage);
        let (lessor, stores) = (lessor.clone(), stores.clone());
        Box::new(move |cluster, node: NodeId, keep| {
            store::open(&dir, &options, &lessor, (cluster, node), keep, &stores)
        })
    };
    let close_machine = {
        let stores = stores.clone();
        Box::new(move || stores.close())
    };
    let files = MachineFiles {
        open: open_machine,
        close: close_machine,
        damage: {
            let stores = stores.clone();
            Box::new(move || stores.get().and_then(|store| store.engine.damage()))
        },
        seed: restore::seed(&config.data_dir, settings.storage),
    };
    let fatal = |why: String| {
        tracing::error!(target: "chainfire_storage", "The node cannot go on and stops, why={why} code=CF1000");
        node::program::stop_dead();
    };
    let quarantine = {
        let (stores, server) = (stores.clone(), server.clone());
        move || {
            stores.close();
            if let Some(server) = server.get().and_then(Weak::upgrade) {
                server.stop();
            }
        }
    };
    let ends = Ends {
        fatal: Arc::new(fatal),
        quarantine: Arc::new(quarantine),
        restart: Arc::new(move || fatal(restart::restart())),
    };
    let stores = stores.clone();
    let runtime = tokio::runtime::Handle::current();
    let reports = reports.clone();
    let service = move |handle| {
        let calls = LeaderCalls { handle, stores, reports, answered: Arc::default() };
        Some(Arc::new(calls) as Arc<dyn node::transport::CallService>)
    };
    Node::start(config, &runtime, files, service, ends).map_err(StartError::from)
}

fn listen(address: SocketAddr) -> Result<TcpListener, StartError> {
    node::service::listen(address).map_err(|why| StartError::new(Cause::Address, why))
}

fn of_socket(error: std::io::Error) -> StartError {
    StartError::new(Cause::Address, error)
}
