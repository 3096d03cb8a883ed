//! The Watch service: requests into the hub's stream, its responses out, side by side.

use std::sync::Arc;

use bytes::Bytes;
use pb::watch_create_request::FilterType;
use pb::watch_request::RequestUnion;
use proto::etcdserverpb as pb;
use rpc::Status;
use rpc::server::{Call, RequestStream, ResponseSink};

use super::header::decode;
use super::{Api, status_of};
use crate::error::ApiError;
use crate::watch::{Command, CreateWatch, WatchStream};

impl Api {
    pub(super) async fn watch(
        self: Arc<Self>,
        call: Call,
        requests: RequestStream,
        responses: ResponseSink,
    ) -> Result<(), Status> {
        let stream = self.store()?.hub.open().map_err(|_| status_of(ApiError::TooManyRequests))?;
        let demands_leader = call.metadata.get("hasleader") == Some(b"true");
        tokio::select! {
            read = take_requests(&stream, requests) => read,
            written = give_responses(&stream, responses) => written,
            () = self.leader_lost(), if demands_leader => Err(status_of(ApiError::NoLeader)),
        }
    }

    /// Ends when no leader has been known for an election timeout or so.
    async fn leader_lost(&self) {
        let patience = std::time::Duration::from_millis(500);
        let mut missing = 0;
        while missing < 6 {
            tokio::time::sleep(patience).await;
            missing = if self.handle.status().leader.is_none() { missing + 1 } else { 0 };
        }
    }
}

async fn take_requests(stream: &WatchStream, mut requests: RequestStream) -> Result<(), Status> {
    while let Some(message) = requests.next().await {
        if let Some(command) = command(message?)? {
            stream.submit(command).await.map_err(|_| status_of(ApiError::Stopped))?;
        }
    }
    Ok(())
}

async fn give_responses(stream: &WatchStream, mut responses: ResponseSink) -> Result<(), Status> {
    loop {
        let ready = stream.next().await.map_err(|_| status_of(ApiError::Stopped))?;
        for message in ready.into_messages() {
            responses.send(message).await?;
        }
    }
}

/// An empty request asks for nothing.
fn command(message: Bytes) -> Result<Option<Command>, Status> {
    let request: pb::WatchRequest = decode(message)?;
    Ok(request.request_union.map(|union| match union {
        RequestUnion::CreateRequest(create) => {
            let filters = |kind: FilterType| create.filters.contains(&(kind as i32));
            // Etcd reads a missing key as the first one.
            let key = if create.key.is_empty() { Bytes::from_static(&[0]) } else { create.key.clone() };
            Command::Create(CreateWatch {
                watch_id: create.watch_id,
                key,
                range_end: create.range_end.clone(),
                start_revision: create.start_revision,
                prev_kv: create.prev_kv,
                progress_notify: create.progress_notify,
                fragment: create.fragment,
                no_put: filters(FilterType::Noput),
                no_delete: filters(FilterType::Nodelete),
            })
        }
        RequestUnion::CancelRequest(cancel) => Command::Cancel { watch_id: cancel.watch_id },
        RequestUnion::ProgressRequest(_) => Command::Progress,
    }))
}
