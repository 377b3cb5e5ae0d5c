//! Between our words and etcd's.

use std::time::Duration;

use super::Inner;
use super::messages::{
    self, CompareResult, CompareTarget, DeleteRangeRequest, EventKind, Given, PutRequest,
    RangeRequest, Request, RequestOp, Response, ResponseOp, StoredEvent, StoredKey,
};
use crate::error::StoreError;
use crate::key_value::{Event, KeyValue, LeaseId, Revision};
use crate::transaction::{Compare, Op, OpResponse, Relation, Target};

/// Something that etcd said and cannot be.
#[derive(Debug, thiserror::Error)]
#[error("etcd answered what does not fit the question: {0}")]
struct Misfit(&'static str);

fn misfit(what: &'static str) -> StoreError {
    StoreError::Storage { doing: "reading", source: std::sync::Arc::new(Misfit(what)) }
}

fn revision(number: i64) -> Revision {
    Revision(number.unsigned_abs())
}

pub(super) fn key_value(inner: &Inner, stored: StoredKey) -> Result<KeyValue, StoreError> {
    let key = String::from_utf8(stored.key).ok();
    let key = key.as_deref().and_then(|key| key.strip_prefix(&*inner.prefix));
    let lease = stored.lease.unsigned_abs();
    Ok(KeyValue {
        key: key.ok_or_else(|| misfit("a key that is not ours"))?.to_owned(),
        value: stored.value,
        create_revision: revision(stored.create_revision),
        mod_revision: revision(stored.mod_revision),
        version: stored.version.unsigned_abs(),
        lease: (lease != 0).then_some(LeaseId(lease)),
    })
}

pub(super) fn event(inner: &Inner, stored: StoredEvent) -> Result<Event, StoreError> {
    let is_delete = stored.kind == EventKind::Delete as i32;
    let kv = stored.kv.ok_or_else(|| misfit("an event without a key"))?;
    let kv = key_value(inner, kv)?;
    Ok(match is_delete {
        true => Event::Delete { key: kv.key, revision: kv.mod_revision },
        false => Event::Put(kv),
    })
}

pub(super) fn compare(inner: &Inner, compare: &Compare) -> messages::Compare {
    let result = match compare.relation {
        Relation::Equal => CompareResult::Equal,
        Relation::NotEqual => CompareResult::NotEqual,
        Relation::Less => CompareResult::Less,
        Relation::Greater => CompareResult::Greater,
    };
    let (target, given) = match &compare.target {
        Target::CreateRevision(Revision(number)) => {
            (CompareTarget::Create, Given::CreateRevision(number.cast_signed()))
        }
        Target::ModRevision(Revision(number)) => {
            (CompareTarget::Mod, Given::ModRevision(number.cast_signed()))
        }
        Target::Version(number) => (CompareTarget::Version, Given::Version(number.cast_signed())),
        Target::Value(value) => (CompareTarget::Value, Given::Value(value.clone())),
    };
    let key = inner.key_of(&compare.key);
    messages::Compare { result: result as i32, target: target as i32, key, given: Some(given) }
}

pub(super) fn operation(inner: &Inner, op: &Op) -> RequestOp {
    let request = match op {
        Op::Put { key, value, lease } => Request::Put(PutRequest {
            key: inner.key_of(key),
            value: value.clone(),
            lease: lease.map_or(0, |lease| lease.0.cast_signed()),
        }),
        Op::Delete { key } => Request::DeleteRange(DeleteRangeRequest {
            key: inner.key_of(key),
            range_end: Vec::new(),
        }),
        Op::DeletePrefix { prefix } => {
            let (key, range_end) = inner.range_of(prefix);
            Request::DeleteRange(DeleteRangeRequest { key, range_end })
        }
        Op::Get { key } => {
            Request::Range(RangeRequest { key: inner.key_of(key), ..RangeRequest::default() })
        }
        Op::GetPrefix { prefix } => {
            let (key, range_end) = inner.range_of(prefix);
            Request::Range(RangeRequest { key, range_end, ..RangeRequest::default() })
        }
    };
    RequestOp { request: Some(request) }
}

/// The answer to an operation.
pub(super) fn answer(
    inner: &Inner,
    op: &Op,
    response: ResponseOp,
) -> Result<OpResponse, StoreError> {
    let keys = |stored: Vec<StoredKey>| {
        stored.into_iter().map(|kv| key_value(inner, kv)).collect::<Result<Vec<_>, _>>()
    };
    match (op, response.response) {
        (Op::Put { .. }, Some(Response::Put(_))) => Ok(OpResponse::Put),
        (Op::Delete { .. } | Op::DeletePrefix { .. }, Some(Response::DeleteRange(deleted))) => {
            Ok(OpResponse::Deleted(deleted.deleted.unsigned_abs()))
        }
        (Op::Get { .. }, Some(Response::Range(range))) => {
            Ok(OpResponse::Got(keys(range.kvs)?.pop()))
        }
        (Op::GetPrefix { .. }, Some(Response::Range(range))) => {
            Ok(OpResponse::GotPrefix(keys(range.kvs)?))
        }
        _ => Err(misfit("another kind of answer")),
    }
}

/// Whole seconds, so that a lease never ends too early.
pub(super) fn whole_seconds(ttl: Duration) -> i64 {
    let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
    i64::try_from(seconds).unwrap_or(i64::MAX)
}
