//! The store that is an etcd cluster: for a control plane that outlives a machine.
//!
//! etcd has the semantics already, so this is a translation. Two things are ours: a prefix, so that
//! the cluster may serve others too, and the exact meaning of a compaction. etcd forgets a deletion
//! at the revision that it compacts to, so it is always asked for one less; what it then still knows
//! of that revision, we do not.
//!
//! An answer that does not come leaves a commit uncertain, and is told as [`StoreError::Storage`];
//! reads are asked again for some seconds, so that an election or a restart is no more than a delay.
//! Watches are begun again for as long as it takes.

mod connection;
mod convert;
mod follow;
mod messages;
mod tls;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use tonic::transport::Endpoint;
use tonic::{Code, Status};

use crate::error::StoreError;
use crate::key::{Key, Prefix};
use crate::key_value::{KeyValue, LeaseId, Revision};
use crate::store::{Backend, Listing, Page};
use crate::transaction::{CheckedTransaction, Op, TransactionResult};
use crate::watch::Watch;
use connection::{Connection, OpenWatch, failed};
use messages::{
    RangeRequest, Request, RequestOp, Response, TxnRequest, WatchAsk, WatchCreateRequest,
    WatchRequest,
};
pub use tls::{EtcdTls, EtcdTlsFile, EtcdTlsFiles, EtcdTlsProblem};

/// Where a cluster is, and which of its keys are ours: `http://HOST:PORT,http://HOST:PORT/PREFIX`, or the
/// same with `https`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdAddress {
    /// The members, as `http://HOST:PORT`, or all as `https://HOST:PORT`.
    pub members: Vec<String>,
    /// What all keys begin with; none when empty.
    pub prefix: String,
}

/// An address that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not http[s]://HOST:PORT[,http[s]://HOST:PORT ...][/PREFIX]")]
pub struct BadEtcdAddress(String);

impl FromStr for EtcdAddress {
    type Err = BadEtcdAddress;

    fn from_str(text: &str) -> Result<Self, BadEtcdAddress> {
        let bad = || BadEtcdAddress(text.to_owned());
        let (mut members, mut prefix) = (Vec::new(), String::new());
        let scheme = if text.starts_with("https://") { "https://" } else { "http://" };
        for part in text.split(',') {
            // All of them in one way: half a cluster in the clear is as good as all of it.
            let rest = part.strip_prefix(scheme).ok_or_else(bad)?;
            let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
            let is_last = members.len() + 1 == text.split(',').count();
            let (host, port) = authority.rsplit_once(':').ok_or_else(bad)?;
            let in_path = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
            let is_good = !host.is_empty()
                && port.parse::<u16>().is_ok_and(|port| port > 0)
                && (path.is_empty() || is_last)
                && path.chars().all(in_path);
            let member = format!("{scheme}{authority}");
            if !is_good || member.parse::<Endpoint>().is_err() {
                return Err(bad());
            }
            members.push(member);
            if !path.is_empty() {
                prefix = format!("/{}", path.trim_end_matches('/'));
            }
        }
        Ok(Self { members, prefix })
    }
}

impl EtcdAddress {
    /// Whether it is spoken to by TLS.
    pub fn is_secure(&self) -> bool {
        self.members.iter().any(|member| member.starts_with("https://"))
    }
}

impl fmt::Display for EtcdAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.members.join(","), self.prefix)
    }
}

/// A store in an etcd cluster.
#[derive(Debug)]
pub struct EtcdStore(Inner);

/// What watches share with the store.
#[derive(Debug, Clone)]
struct Inner {
    connection: Connection,
    prefix: Arc<str>,
}

impl Inner {
    /// A key as etcd has it.
    fn key_of(&self, key: &str) -> Vec<u8> {
        [self.prefix.as_bytes(), key.as_bytes()].concat()
    }

    /// The keys that begin with a prefix: the first, and the first that no longer does.
    fn range_of(&self, prefix: &str) -> (Vec<u8>, Vec<u8>) {
        let key = self.key_of(prefix);
        let mut end = key.clone();
        // Keys are UTF-8, in which no byte is the greatest.
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        (key, end)
    }

    /// Begins to watch what begins with a prefix.
    async fn watch(&self, prefix: &str, from: Revision) -> Result<OpenWatch, Status> {
        let (key, range_end) = self.range_of(prefix);
        let start_revision = from.0.cast_signed();
        let create = WatchCreateRequest { key, range_end, start_revision, fragment: true };
        self.connection.watch(WatchRequest { ask: Some(WatchAsk::Create(create)) }).await
    }
}

/// What etcd says, as the codes of its errors and the beginnings of their words.
fn is_compacted(status: &Status) -> bool {
    status.code() == Code::OutOfRange && status.message().contains("compacted")
}

fn is_future(status: &Status) -> bool {
    status.code() == Code::OutOfRange && status.message().contains("future revision")
}

fn is_no_lease(status: &Status) -> bool {
    status.code() == Code::NotFound && status.message().contains("lease not found")
}

impl EtcdStore {
    /// A store in this cluster, which is asked whether it is there. `tls` is for one that is spoken to so.
    ///
    /// # Errors
    ///
    /// When no member answers, an address is none, or a member and we do not trust each other.
    pub async fn connect(address: &EtcdAddress, tls: Option<&EtcdTls>) -> Result<Self, StoreError> {
        let doing = "connecting to etcd";
        let endpoint = |member: &String| {
            let endpoint = member.parse::<Endpoint>()?;
            match tls {
                Some(tls) => endpoint.tls_config(tls.config()),
                None => Ok(endpoint),
            }
        };
        let endpoints = address.members.iter().map(endpoint).collect::<Result<Vec<_>, _>>();
        let endpoints =
            endpoints.map_err(|source| StoreError::Storage { doing, source: Arc::new(source) })?;
        if let Some(tls) = tls {
            check_trust(address, tls).await?;
        }
        let inner = Inner {
            connection: Connection::new(endpoints),
            prefix: address.prefix.as_str().into(),
        };
        let store = Self(inner);
        store.newest().await.map_err(failed(doing))?;
        Ok(store)
    }

    /// The newest revision there is.
    async fn newest(&self) -> Result<Revision, Status> {
        let (key, _) = self.0.range_of("/");
        let request = RangeRequest { key, count_only: true, ..RangeRequest::default() };
        let response = self.0.connection.range(request).await?;
        Ok(revision_of(response.header))
    }

    /// Fails when history does not go back to a revision, or not as far as it yet.
    async fn refused(
        &self,
        status: Status,
        requested: Revision,
        doing: &'static str,
    ) -> StoreError {
        if is_compacted(&status) {
            return match self.oldest().await {
                Ok(at) => StoreError::Compacted { requested, at },
                Err(status) => failed(doing)(status),
            };
        }
        if is_future(&status) {
            return match self.newest().await {
                Ok(current) => StoreError::FutureRevision { requested, current },
                Err(status) => failed(doing)(status),
            };
        }
        failed(doing)(status)
    }

    /// The oldest revision that can be read and watched from: only a watch is told it.
    async fn oldest(&self) -> Result<Revision, Status> {
        let (_asking, mut answers) = self.0.watch("/", Revision(1)).await?;
        let point = async {
            while let Some(answer) = answers.message().await? {
                if answer.compact_revision > 0 {
                    return Ok(Revision(answer.compact_revision.unsigned_abs()).next());
                }
            }
            Err(Status::unavailable("the watch ended"))
        };
        let within = tokio::time::timeout(Duration::from_secs(10), point).await;
        within.unwrap_or_else(|_| Err(Status::deadline_exceeded("etcd names no oldest revision")))
    }

    /// A range that asks whether all of history from a revision on is there: at the one before, or at
    /// the first there is.
    fn probe(&self, from: Revision) -> RangeRequest {
        let (key, _) = self.0.range_of("/");
        let revision = from.0.saturating_sub(1).max(1).cast_signed();
        RangeRequest { key, revision, count_only: true, ..RangeRequest::default() }
    }
}

/// Fails when no member trusts us, or we trust none. The channel to all
/// of them would only try again for ever.
async fn check_trust(address: &EtcdAddress, tls: &EtcdTls) -> Result<(), StoreError> {
    let asked = address.members.iter().map(|member| tls::distrust(member, tls));
    let distrusted = futures_util::future::join_all(asked).await;
    let n_distrusted = distrusted.iter().flatten().count();
    match distrusted.into_iter().flatten().next() {
        Some(why) if n_distrusted == address.members.len() => {
            let source = Arc::new(Distrust(why));
            Err(StoreError::Storage { doing: "connecting to etcd", source })
        }
        Some(why) => {
            tracing::warn!("a member of the etcd is of no use: {why}");
            Ok(())
        }
        None => Ok(()),
    }
}

/// A member and we do not trust each other.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Distrust(String);

fn revision_of(header: Option<messages::Header>) -> Revision {
    Revision(header.map_or(0, |header| header.revision.unsigned_abs()))
}

impl Backend for EtcdStore {
    async fn get(&self, key: Key<'_>) -> Result<Option<KeyValue>, StoreError> {
        let request = RangeRequest { key: self.0.key_of(key.as_str()), ..RangeRequest::default() };
        let response = self.0.connection.range(request).await.map_err(failed("reading a key"))?;
        let stored = response.kvs.into_iter().next();
        stored.map(|stored| convert::key_value(&self.0, stored)).transpose()
    }

    async fn list(&self, prefix: Prefix<'_>, page: Page) -> Result<Listing, StoreError> {
        let doing = "listing keys";
        let (first, range_end) = self.0.range_of(prefix.as_str());
        let key = match &page.after {
            // The next key there can be.
            Some(after) => {
                let after = [&self.0.key_of(after)[..], &[0]].concat();
                after.max(first)
            }
            None => first,
        };
        if key >= range_end || page.limit == Some(0) {
            let newest = self.newest().await.map_err(failed(doing))?;
            let revision = page.at.unwrap_or(newest);
            return Ok(Listing { items: Vec::new(), revision, more: key < range_end });
        }
        let limit = page.limit.map_or(0, |limit| i64::try_from(limit).unwrap_or(i64::MAX));
        let revision = page.at.map_or(0, |at| at.0.cast_signed());
        let wanted = RangeRequest { key, range_end, limit, revision, count_only: false };
        let probe = page.at.filter(|at| *at > Revision(0)).map(|at| self.probe(at));
        let ranges = probe.into_iter().chain([wanted]);
        let success = ranges.map(|range| RequestOp { request: Some(Request::Range(range)) });
        let request = TxnRequest { success: success.collect(), ..TxnRequest::default() };
        let mut response = match self.0.connection.ranges(request).await {
            Ok(response) => response,
            Err(status) => {
                return Err(self.refused(status, page.at.unwrap_or_default(), doing).await);
            }
        };
        let newest = revision_of(response.header);
        let last = response.responses.pop().and_then(|last| last.response);
        let Some(Response::Range(range)) = last else {
            return Err(failed(doing)(Status::internal("etcd answered no range")));
        };
        let items = range.kvs.into_iter().map(|stored| convert::key_value(&self.0, stored));
        Ok(Listing {
            items: items.collect::<Result<_, _>>()?,
            revision: page.at.unwrap_or(newest),
            more: range.more,
        })
    }

    async fn commit(
        &self,
        transaction: CheckedTransaction,
    ) -> Result<TransactionResult, StoreError> {
        let operations =
            |ops: &[Op]| ops.iter().map(|op| convert::operation(&self.0, op)).collect();
        let compare = |condition| convert::compare(&self.0, condition);
        let request = TxnRequest {
            compare: transaction.conditions().iter().map(compare).collect(),
            success: operations(transaction.branch(true)),
            failure: operations(transaction.branch(false)),
        };
        let response = self.0.connection.txn(request).await.map_err(|status| {
            let puts = [true, false].into_iter().flat_map(|branch| transaction.branch(branch));
            let mut leases = puts.filter_map(|op| match op {
                Op::Put { lease, .. } => *lease,
                _ => None,
            });
            match leases.next().filter(|_| is_no_lease(&status)) {
                Some(lease) => StoreError::LeaseNotFound { lease },
                None => failed("committing")(status),
            }
        })?;
        let ops = transaction.branch(response.succeeded);
        let answers = ops.iter().zip(response.responses);
        let answers = answers.map(|(op, answer)| convert::answer(&self.0, op, answer));
        Ok(TransactionResult {
            succeeded: response.succeeded,
            revision: revision_of(response.header),
            responses: answers.collect::<Result<_, _>>()?,
        })
    }

    async fn watch(&self, prefix: Prefix<'_>, from: Revision) -> Result<Watch, StoreError> {
        let doing = "beginning a watch";
        let first = Revision(from.0.max(1));
        match self.0.connection.range(self.probe(first)).await {
            Err(status) if is_future(&status) => {}
            Err(status) => return Err(self.refused(status, from, doing).await),
            Ok(_) => {}
        }
        Ok(follow::follow(self.0.clone(), prefix.as_str().to_owned(), first))
    }

    async fn compact(&self, to: Revision) -> Result<(), StoreError> {
        let doing = "compacting";
        let current = self.newest().await.map_err(failed(doing))?;
        if to > current {
            return Err(StoreError::FutureRevision { requested: to, current });
        }
        let Some(last) = to.0.checked_sub(1).filter(|last| *last > 0) else { return Ok(()) };
        match self.0.connection.compact(last.cast_signed()).await {
            Err(status) if !is_compacted(&status) => Err(failed(doing)(status)),
            _ => Ok(()),
        }
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        let granted = self.0.connection.grant(convert::whole_seconds(ttl)).await;
        let granted = granted.map_err(failed("granting a lease"))?;
        Ok(LeaseId(granted.id.unsigned_abs()))
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        let left = self.0.connection.keep_alive(lease.0.cast_signed()).await;
        match left.map_err(failed("renewing a lease"))? {
            1.. => Ok(()),
            _ => Err(StoreError::LeaseNotFound { lease }),
        }
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        match self.0.connection.revoke(lease.0.cast_signed()).await {
            Ok(_) => Ok(()),
            Err(status) if is_no_lease(&status) => Err(StoreError::LeaseNotFound { lease }),
            Err(status) => Err(failed("revoking a lease")(status)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        let address: EtcdAddress = "http://a:2379,http://[::1]:2379/longshore".parse().unwrap();
        assert_eq!(address.members, ["http://a:2379", "http://[::1]:2379"]);
        assert_eq!(address.prefix, "/longshore");
        assert_eq!(address.to_string().parse(), Ok(address));
        let secure: EtcdAddress = "https://a:2379,https://b:2379/x".parse().unwrap();
        assert!(secure.is_secure() && secure.members.len() == 2);
        assert_eq!(secure.to_string(), "https://a:2379,https://b:2379/x");
        for bad in [
            "",
            "a:2379",
            "http://a",
            "http://:2379",
            "http://a:0",
            "ftp://a:1",
            "https://a:1,http://b:1",
            "http://a:1,https://b:1",
            "http://a:1,",
            "http://a:1/x,http://b:1",
            "http://a:1/a b",
            "http://a b:1",
        ] {
            assert!(bad.parse::<EtcdAddress>().is_err(), "{bad}");
        }
    }
}
