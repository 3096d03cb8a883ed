//! The client port before the store serves: whoever asks hears what the store waits for.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use parking_lot::Mutex;
use rpc::Status;
use rpc::server::{Answer, BoxFuture, Call, HttpBody, Method, RequestStream, ResponseSink, Service};
use tokio::sync::watch;

use super::{Api, pages};

/// What is waited for by a store that does not serve yet, as long as nobody has said more.
pub const WAITS: &str = "the store waits for the placement driver";

/// In front of an [`Api`] that may not be there yet.
pub struct Door {
    api: OnceLock<Arc<Api>>,
    opened: watch::Sender<bool>,
    waits: Mutex<String>,
}

impl Door {
    pub fn closed() -> Arc<Door> {
        Arc::new(Door { api: OnceLock::new(), opened: watch::Sender::new(false), waits: Mutex::new(WAITS.to_owned()) })
    }

    /// Takes note of why the store does not serve yet: whoever asks from now on hears it.
    pub fn waits(&self, why: String) {
        *self.waits.lock() = why;
    }

    pub fn open(&self, api: Arc<Api>) {
        assert!(self.api.set(api).is_ok(), "a store begins to serve once");
        self.opened.send_replace(true);
    }

    pub fn is_open(&self) -> bool {
        *self.opened.borrow()
    }

    pub async fn is_opened(&self) {
        // The sender lives as long as this.
        let _ = self.opened.subscribe().wait_for(|opened| *opened).await;
    }
}

impl Service for Door {
    fn resolve(&self, path: &str) -> Option<Method> {
        super::resolve(path)
    }

    fn unary(self: &Arc<Self>, number: u16, _call: Call, message: Bytes) -> Answer {
        match self.api.get() {
            Some(api) => api.unary(number, message),
            None => Answer::Ready(Err(Status::unavailable(self.waits.lock().clone()).with_nothing_done())),
        }
    }

    fn streaming(
        self: &Arc<Self>,
        number: u16,
        _call: Call,
        _requests: RequestStream,
        _responses: ResponseSink,
    ) -> BoxFuture<Result<(), Status>> {
        unreachable!("method {number} is no stream")
    }

    fn http(self: &Arc<Self>, _call: Call, request: http::Request<Bytes>) -> BoxFuture<http::Response<HttpBody>> {
        let response = match self.api.get() {
            Some(api) => pages::answer(api, &request),
            None => pages::closed(&request, &self.waits.lock()),
        };
        Box::pin(std::future::ready(response))
    }
}
