//! The calls to an etcd cluster, over one channel to all of its members.

use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::client::Grpc;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;

use super::messages::{
    CompactionRequest, CompactionResponse, LeaseGrantRequest, LeaseGrantResponse,
    LeaseKeepAliveResponse, LeaseRequest, LeaseRevokeResponse, RangeRequest, RangeResponse,
    TxnRequest, TxnResponse, WatchRequest, WatchResponse,
};
use crate::error::StoreError;

/// How long a member may take to be connected to.
const CONNECT_WITHIN: Duration = Duration::from_secs(3);
/// How often a member that says nothing is asked whether it is there, and how long it may take.
const ALIVE: Duration = Duration::from_secs(5);
/// How long an answer may take. An election of the cluster is over long before.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// The waits before what changes nothing is asked again, while no member can answer.
const WAITS: [Duration; 6] = [
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(400),
    Duration::from_millis(800),
    Duration::from_millis(1600),
];
/// More than etcd answers with.
const LARGEST_ANSWER: usize = 512 << 20;

/// A watch that is told of.
pub(super) type OpenWatch = (mpsc::Sender<WatchRequest>, Streaming<WatchResponse>);

/// A cluster. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Connection(Channel);

impl Connection {
    /// Connects when it is first used, to whichever member answers.
    pub fn new(endpoints: impl IntoIterator<Item = Endpoint>) -> Self {
        let endpoints = endpoints.into_iter().map(|endpoint| {
            endpoint
                .connect_timeout(CONNECT_WITHIN)
                .http2_keep_alive_interval(ALIVE)
                .keep_alive_timeout(ALIVE)
                .keep_alive_while_idle(true)
        });
        Self(Channel::balance_list(endpoints))
    }

    fn grpc(&self) -> Grpc<Channel> {
        Grpc::new(self.0.clone()).max_decoding_message_size(LARGEST_ANSWER)
    }

    async fn unary<M, R>(&self, path: &'static str, message: M) -> Result<R, Status>
    where
        M: prost::Message + 'static,
        R: prost::Message + Default + 'static,
    {
        let mut grpc = self.grpc();
        let called = async {
            ready(&mut grpc).await?;
            let codec = ProstCodec::<M, R>::default();
            let path = PathAndQuery::from_static(path);
            grpc.unary(with_leader(message), path, codec).await
        };
        match tokio::time::timeout(ANSWER_WITHIN, called).await {
            Ok(answer) => answer.map(tonic::Response::into_inner),
            Err(_) => Err(Status::deadline_exceeded("no member of the cluster answers")),
        }
    }

    /// Asks again while no member can answer; only for what changes nothing.
    async fn patient<M, R>(&self, path: &'static str, message: M) -> Result<R, Status>
    where
        M: prost::Message + Clone + 'static,
        R: prost::Message + Default + 'static,
    {
        for wait in WAITS {
            match self.unary(path, message.clone()).await {
                Err(status) if is_passing(&status) => tokio::time::sleep(wait).await,
                answer => return answer,
            }
        }
        self.unary(path, message).await
    }

    pub async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Status> {
        self.patient("/etcdserverpb.KV/Range", request).await
    }

    /// Only reads.
    pub async fn ranges(&self, request: TxnRequest) -> Result<TxnResponse, Status> {
        self.patient("/etcdserverpb.KV/Txn", request).await
    }

    pub async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, Status> {
        self.unary("/etcdserverpb.KV/Txn", request).await
    }

    pub async fn compact(&self, revision: i64) -> Result<CompactionResponse, Status> {
        self.patient("/etcdserverpb.KV/Compact", CompactionRequest { revision }).await
    }

    pub async fn grant(&self, ttl: i64) -> Result<LeaseGrantResponse, Status> {
        self.unary("/etcdserverpb.Lease/LeaseGrant", LeaseGrantRequest { ttl }).await
    }

    pub async fn revoke(&self, id: i64) -> Result<LeaseRevokeResponse, Status> {
        self.unary("/etcdserverpb.Lease/LeaseRevoke", LeaseRequest { id }).await
    }

    /// What is left of the lease, in seconds, once it was renewed.
    pub async fn keep_alive(&self, id: i64) -> Result<i64, Status> {
        let (_asking, mut answers): (_, Streaming<LeaseKeepAliveResponse>) =
            self.converse("/etcdserverpb.Lease/LeaseKeepAlive", LeaseRequest { id }).await?;
        let answer = tokio::time::timeout(ANSWER_WITHIN, answers.message()).await;
        let answer = answer.map_err(|_| Status::deadline_exceeded("no answer"))??;
        answer.map(|left| left.ttl).ok_or_else(|| Status::unavailable("the answer broke off"))
    }

    /// A watch, as long as both of what is returned are there.
    pub async fn watch(&self, request: WatchRequest) -> Result<OpenWatch, Status> {
        self.converse("/etcdserverpb.Watch/Watch", request).await
    }

    async fn converse<M, R>(
        &self,
        path: &'static str,
        first: M,
    ) -> Result<(mpsc::Sender<M>, Streaming<R>), Status>
    where
        M: prost::Message + 'static,
        R: prost::Message + Default + 'static,
    {
        let mut grpc = self.grpc();
        let (sender, receiver) = mpsc::channel(1);
        // There is room for one.
        let _ = sender.try_send(first);
        let begun = async {
            ready(&mut grpc).await?;
            let codec = ProstCodec::<M, R>::default();
            let path = PathAndQuery::from_static(path);
            grpc.streaming(with_leader(ReceiverStream::new(receiver)), path, codec).await
        };
        match tokio::time::timeout(ANSWER_WITHIN, begun).await {
            Ok(answer) => answer.map(|answer| (sender, answer.into_inner())),
            Err(_) => Err(Status::deadline_exceeded("no member of the cluster answers")),
        }
    }
}

async fn ready(grpc: &mut Grpc<Channel>) -> Result<(), Status> {
    grpc.ready().await.map_err(|error| Status::from_error(Box::new(error)))
}

/// A member that has lost the others refuses, instead of telling the past or nothing at all.
fn with_leader<M>(message: M) -> Request<M> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
    request
}

/// Whether another try may fare better.
pub(super) fn is_passing(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Unknown)
}

/// A failure of the cluster or of the way to it.
pub(super) fn failed(doing: &'static str) -> impl Fn(Status) -> StoreError {
    move |status| StoreError::Storage { doing, source: Arc::new(status) }
}
