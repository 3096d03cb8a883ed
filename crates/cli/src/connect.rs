//! Which endpoint answers, and for how long to wait.
//!
//! Endpoints are tried in the order given. One that cannot be reached is passed over. An answer of *unavailable* is
//! passed over too when asking again cannot do harm, that is for reads; a write is sent once, and what the
//! first endpoint says is final, for it may have happened.

use std::cell::{OnceCell, RefCell};
use std::future::Future;
use std::time::Duration;

use proto::etcdserverpb::StatusRequest;
use rpc::client::{MaintenanceClient, Tls};
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use cli::endpoint::with_scheme;

use crate::failure::{CERTIFICATE_FILE, Failure, Kind};
use crate::settings::Settings;

/// Whether asking twice is the same as asking once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    Safe,
    Never,
}

/// The way to the servers, with one deadline for all that a command does.
pub struct Client {
    settings: Settings,
    deadline: Instant,
    /// The endpoint that answered last, and the channel to it.
    current: RefCell<Option<(String, Channel)>>,
    /// Read when the first https:// endpoint is met.
    tls: OnceCell<Tls>,
}

impl Client {
    pub fn new(settings: Settings) -> Client {
        let deadline = Instant::now() + settings.timeout;
        Client { settings, deadline, current: RefCell::new(None), tls: OnceCell::new() }
    }

    /// One for a single endpoint of several.
    pub fn only(&self, endpoint: &str) -> Client {
        let mut settings = self.settings.clone();
        // One that a member advertises may lack its scheme.
        settings.endpoints = vec![with_scheme(endpoint, &settings.tls).unwrap_or_else(|_| endpoint.to_owned())];
        Client::new(settings)
    }

    pub fn endpoints(&self) -> &[String] {
        &self.settings.endpoints
    }

    /// Makes a call and waits for its answer.
    pub async fn call<T, F>(&self, repeat: Repeat, ask: impl Fn(Channel) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let mut failure = None;
        for endpoint in self.order() {
            let channel = match self.channel(&endpoint).await {
                Ok(channel) => channel,
                Err(why) => {
                    failure.get_or_insert(why);
                    continue;
                }
            };
            let answer = tokio::time::timeout_at(self.deadline, ask(channel.clone())).await;
            let why = match answer {
                Ok(Ok(response)) => return Ok(response.into_inner()),
                Ok(Err(status)) => {
                    let why = Failure::of_status(&endpoint, &status);
                    if repeat == Repeat::Never || status.code() != Code::Unavailable {
                        return Err(why);
                    }
                    why
                }
                Err(_) => return Err(late(&endpoint, channel).await),
            };
            self.current.borrow_mut().take();
            // What a node says is worth more than that another one is down.
            failure = Some(why);
        }
        Err(failure.expect("there is at least one endpoint"))
    }

    /// The endpoint that the last answer came from.
    pub fn answered_by(&self) -> String {
        self.current
            .borrow()
            .as_ref()
            .map_or_else(|| self.settings.endpoints[0].clone(), |(endpoint, _)| endpoint.clone())
    }

    /// A call that takes as long as it takes has no deadline; only connecting has.
    pub async fn any_channel(&self) -> Result<(String, Channel), Failure> {
        self.first(async |endpoint| self.channel(endpoint).await).await
    }

    /// As [`Client::any_channel`], of its own, for a stream that is read slowly: see [`rpc::client::connect_narrow`].
    pub async fn narrow_channel(&self, window_bytes: u32) -> Result<(String, Channel), Failure> {
        self.first(async |endpoint| self.open(endpoint, window_bytes).await).await
    }

    /// The first endpoint that can be connected to.
    async fn first(
        &self,
        connect: impl AsyncFn(&str) -> Result<Channel, Failure>,
    ) -> Result<(String, Channel), Failure> {
        let mut failure = None;
        for endpoint in self.order() {
            match connect(&endpoint).await {
                Ok(channel) => return Ok((endpoint, channel)),
                Err(why) => failure.get_or_insert(why),
            };
        }
        Err(failure.expect("there is at least one endpoint"))
    }

    /// Waits for one step of something long, such as the next message of a stream: each has the command's timeout.
    pub async fn within<F: Future>(&self, step: F) -> Result<F::Output, tokio::time::error::Elapsed> {
        tokio::time::timeout(self.settings.timeout, step).await
    }

    /// Forgets an endpoint that broke, so that the next call begins with another one.
    pub fn turn_away_from(&self, endpoint: &str) {
        self.current.borrow_mut().take_if(|(current, _)| current == endpoint);
    }

    /// The endpoint in use first.
    fn order(&self) -> Vec<String> {
        let mut endpoints = self.settings.endpoints.clone();
        if let Some((current, _)) = &*self.current.borrow()
            && let Some(at) = endpoints.iter().position(|endpoint| endpoint == current)
        {
            endpoints[..=at].rotate_right(1);
        }
        endpoints
    }

    async fn channel(&self, endpoint: &str) -> Result<Channel, Failure> {
        if let Some((current, channel)) = &*self.current.borrow()
            && current == endpoint
        {
            return Ok(channel.clone());
        }
        let channel = self.open(endpoint, rpc::client::WINDOW_BYTES).await?;
        *self.current.borrow_mut() = Some((endpoint.to_owned(), channel.clone()));
        Ok(channel)
    }

    async fn open(&self, endpoint: &str, window_bytes: u32) -> Result<Channel, Failure> {
        // One dead address must not eat the time for the others.
        let patience = self.settings.dial_timeout.min(self.settings.timeout);
        let tls = if endpoint.starts_with("https://") { Some(self.tls()?) } else { None };
        let connected = rpc::client::connect_narrow(endpoint, patience, tls, window_bytes).await;
        connected.map_err(|error| Failure::of_connection(endpoint, &error))
    }
}

impl Client {
    /// A page of an endpoint's plain HTTP side, such as `/metrics`.
    pub async fn page(&self, endpoint: &str, path: &str) -> Result<Vec<u8>, Failure> {
        let tls = if endpoint.starts_with("https://") { Some(self.tls()?) } else { None };
        let patience = self.settings.timeout;
        let page = tokio::time::timeout(patience, rpc::client::page(endpoint, path, tls)).await;
        let page = page.map_err(|_| Failure::timed_out(endpoint))?;
        page.map_err(|error| Failure::new(Kind::Unreachable, format!("{endpoint}: {error}")))
    }

    fn tls(&self) -> Result<&Tls, Failure> {
        if let Some(tls) = self.tls.get() {
            return Ok(tls);
        }
        let tls = Tls::load(&self.settings.tls).map_err(|why| Failure::local(why).code(CERTIFICATE_FILE))?;
        Ok(self.tls.get_or_init(|| tls))
    }
}

/// Waits for `seconds`, for loops that try again.
pub async fn pause(seconds: f64) {
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
}

macro_rules! clients {
    ($($make:ident: $client:ident),*) => {
        $(
            pub fn $make(channel: Channel) -> rpc::client::$client<Channel> {
                let max = rpc::client::RESPONSE_BYTES_MAX;
                rpc::client::$client::new(channel).max_decoding_message_size(max).max_encoding_message_size(max)
            }
        )*
    };
}

clients!(admin: AdminClient, kv: KvClient, lease: LeaseClient, maintenance: MaintenanceClient, watch: WatchClient);

/// Why the time ran out, as far as the node knows: without a leader it waits for one, and that is what people look for.
async fn late(endpoint: &str, channel: Channel) -> Failure {
    const PATIENCE: Duration = Duration::from_secs(1);
    let status = async { MaintenanceClient::new(channel).status(StatusRequest::default()).await };
    match tokio::time::timeout(PATIENCE, status).await {
        Ok(Ok(status)) if status.get_ref().leader == 0 => Failure::no_leader(endpoint),
        _ => Failure::timed_out(endpoint),
    }
}
