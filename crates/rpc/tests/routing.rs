//! The router's stores refuse a write, or are gone while it is under way: it is asked again only where nothing was done.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use bytes::Bytes;
use proto::{flaredb as pb, placement};
use rpc::client::Router;
use rpc::client::router::{Asked, Locate};
use rpc::server::{
    Answer, BoxFuture, Call, HttpBody, Method, RequestStream, ResponseSink, Server, ServerConfig, Service, http_body,
};
use rpc::{Code, Status};

/// A store that answers each put alike.
struct Fake {
    asked: AtomicU64,
    answer: Result<(), Status>,
}

impl Service for Fake {
    fn resolve(&self, path: &str) -> Option<Method> {
        (path == "/centra.flaredb.v1.Raw/Put").then(|| Method::unary(0))
    }

    fn unary(self: &Arc<Self>, _: u16, _: Call, _: Bytes) -> Answer {
        self.asked.fetch_add(1, SeqCst);
        Answer::Ready(self.answer.clone().map(|()| Bytes::new()))
    }

    fn streaming(
        self: &Arc<Self>,
        _: u16,
        _: Call,
        _: RequestStream,
        _: ResponseSink,
    ) -> BoxFuture<Result<(), Status>> {
        unreachable!("no method is a stream")
    }

    fn http(self: &Arc<Self>, _: Call, _: http::Request<Bytes>) -> BoxFuture<http::Response<HttpBody>> {
        Box::pin(async { http::Response::new(http_body("")) })
    }
}

/// All keys lie in these stores, the first of which leads.
struct Known(Vec<placement::Store>);

impl Locate for Known {
    fn region_at(self: Arc<Self>, _: Bytes) -> Asked<placement::GetRegionResponse> {
        let peers = self.0.iter().map(|store| placement::Peer { store_id: store.id, ..Default::default() }).collect();
        let region = placement::Region { id: 1, peers, ..Default::default() };
        let (leader_store, stores) = (self.0[0].id, self.0.clone());
        Box::pin(async move { Ok(placement::GetRegionResponse { region: Some(region), leader_store, stores }) })
    }
}

/// What a put comes to when the stores answer like this, and how often each was asked.
async fn put(answers: &[Result<(), Status>]) -> (Result<(), Status>, Vec<u64>) {
    let (mut fakes, mut stores) = (Vec::new(), Vec::new());
    for (number, answer) in answers.iter().enumerate() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client_url = format!("http://{}", listener.local_addr().unwrap());
        stores.push(placement::Store { id: number as u64 + 1, client_url, ..Default::default() });
        let fake = Arc::new(Fake { asked: AtomicU64::new(0), answer: answer.clone() });
        fakes.push(fake.clone());
        let server = Server::new(fake, ServerConfig::default());
        tokio::spawn(async move { server.serve(listener).await });
    }
    let router = Router::new(Arc::new(Known(stores)), None);
    let request = pb::PutRequest { key: "k".into(), value: "v".into(), ..Default::default() };
    let answer = router.put(request).await.map(|_| ());
    (answer, fakes.iter().map(|fake| fake.asked.load(SeqCst)).collect())
}

#[tokio::test]
async fn a_write_of_which_nothing_was_done_is_asked_again() {
    let refused = || Err(Status::unavailable("no leader elected").with_nothing_done());
    let (answer, asked) = put(&[refused(), refused(), Ok(())]).await;
    assert_eq!((answer, asked), (Ok(()), vec![1, 1, 1]));

    let (answer, asked) = put(&[refused(), refused()]).await;
    let why = answer.unwrap_err();
    assert!(why.code == Code::Unavailable && why.nothing_done && why.message.contains("no leader elected"), "{why}");
    assert!(asked.iter().all(|asked| *asked > 1), "{asked:?}");
}

#[tokio::test]
async fn a_write_of_which_nobody_knows_is_not_asked_again() {
    let (answer, asked) = put(&[Err(Status::unavailable("the store is stopping")), Ok(())]).await;
    let why = answer.unwrap_err();
    assert!(why.code == Code::DeadlineExceeded && !why.nothing_done, "{why}");
    assert!(why.message.contains("it may yet take effect"), "{why}");
    assert_eq!(asked, [1, 0]);
}

#[tokio::test]
async fn what_a_store_refuses_for_good_is_not_asked_again() {
    let (answer, asked) = put(&[Err(Status::resource_exhausted("no space left").with_nothing_done()), Ok(())]).await;
    let why = answer.unwrap_err();
    assert!(why.code == Code::ResourceExhausted && why.nothing_done, "{why}");
    assert_eq!(asked, [1, 0]);
}
