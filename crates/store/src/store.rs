//! The trait that everyone uses, and the one that an implementation provides.
//!
//! They are two so that the rules that hold for every store are kept in one place: [`Store`] takes
//! what callers have and checks it, [`Backend`] takes only types that exist after the check. A
//! `Backend` is a `Store` by the impl below, and there is no other way to be one.

use std::future::Future;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};

use crate::error::StoreError;
use crate::key::{Key, Prefix};
use crate::key_value::{KeyValue, LeaseId, Revision};
use crate::transaction::{CheckedTransaction, Transaction, TransactionResult};
use crate::watch::Watch;

const MIN_TTL: Duration = Duration::from_secs(1);
const MAX_TTL: Duration = Duration::from_secs(365 * 24 * 3600);

/// A store of keys with etcd's semantics; used as `Arc<dyn Store>`.
///
/// Reads are linearizable: what a finished commit wrote is seen. Unless a method says otherwise its
/// future is cancel-safe in that nothing is half done; a commit that is dropped may still happen.
pub trait Store: Send + Sync + 'static {
    /// The key as it stands, or `None` when it does not exist.
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<KeyValue>, StoreError>>;

    /// The keys that begin with `prefix`, in byte order, all of one revision.
    fn list<'a>(
        &'a self,
        prefix: &'a str,
        page: Page,
    ) -> BoxFuture<'a, Result<Listing, StoreError>>;

    /// Does the transaction, all or nothing; durable when it returns.
    ///
    /// A transaction that changes something makes exactly one revision; one whose conditions fail,
    /// or that changes nothing, makes none.
    fn commit(
        &self,
        transaction: Transaction,
    ) -> BoxFuture<'_, Result<TransactionResult, StoreError>>;

    /// Does transactions one after the other, each as [`Self::commit`] does. None is done after one that is not; an
    /// error leaves open how many were. A store may have them wait for the disk together.
    fn commit_in_order(
        &self,
        transactions: Vec<Transaction>,
    ) -> BoxFuture<'_, Result<Vec<TransactionResult>, StoreError>>;

    /// Every change under `prefix` from revision `from` on, that one included, past and future.
    ///
    /// After a listing at revision R, watch from `R.next()`. `Revision(0)` asks for all there ever
    /// was, which fails as compacted on a store that has dropped any.
    fn watch<'a>(
        &'a self,
        prefix: &'a str,
        from: Revision,
    ) -> BoxFuture<'a, Result<Watch, StoreError>>;

    /// Drops the history before revision `to`; afterwards `to` is the oldest that can be read or
    /// watched from. Keys that exist stay. A point already compacted is no error.
    fn compact(&self, to: Revision) -> BoxFuture<'_, Result<(), StoreError>>;

    /// A lease that runs out `ttl` after its last renewal, and not before. A store may round up to
    /// whole seconds and gives the full time again after its own restart.
    fn grant_lease(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseId, StoreError>>;

    /// Starts the lease's time anew.
    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Ends the lease now and deletes its keys in one revision.
    fn revoke_lease(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>>;
}

/// Which part of a listing is wanted; the default is all of it, now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// At most so many keys.
    pub limit: Option<usize>,
    /// Only keys after this one: the last of the page before.
    pub after: Option<String>,
    /// As of this revision: that of the first page, so that all pages are of one revision.
    pub at: Option<Revision>,
}

impl Page {
    /// The first page of at most `limit` keys.
    pub fn first(limit: usize) -> Self {
        Self { limit: Some(limit), ..Self::default() }
    }

    /// Everything as of a revision.
    pub fn at(revision: Revision) -> Self {
        Self { at: Some(revision), ..Self::default() }
    }
}

/// Keys in order, all as of one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// The keys.
    pub items: Vec<KeyValue>,
    /// The revision they are of: the one asked for, else the newest.
    pub revision: Revision,
    /// Whether the limit cut keys off.
    pub more: bool,
}

impl Listing {
    /// The page after this one, of the same revision; `None` when this was the last.
    pub fn next_page(&self, limit: usize) -> Option<Page> {
        let last = self.items.last().filter(|_| self.more)?;
        Some(Page { limit: Some(limit), after: Some(last.key.clone()), at: Some(self.revision) })
    }
}

/// What an implementation provides; see [`Store`] for what each method promises.
pub trait Backend: Send + Sync + 'static {
    /// See [`Store::get`].
    fn get(
        &self,
        key: Key<'_>,
    ) -> impl Future<Output = Result<Option<KeyValue>, StoreError>> + Send;

    /// See [`Store::list`].
    fn list(
        &self,
        prefix: Prefix<'_>,
        page: Page,
    ) -> impl Future<Output = Result<Listing, StoreError>> + Send;

    /// See [`Store::commit`].
    fn commit(
        &self,
        transaction: CheckedTransaction,
    ) -> impl Future<Output = Result<TransactionResult, StoreError>> + Send;

    /// See [`Store::commit_in_order`].
    fn commit_in_order(
        &self,
        transactions: Vec<CheckedTransaction>,
    ) -> impl Future<Output = Result<Vec<TransactionResult>, StoreError>> + Send {
        async move {
            let mut results = Vec::with_capacity(transactions.len());
            for transaction in transactions {
                results.push(self.commit(transaction).await?);
            }
            Ok(results)
        }
    }

    /// See [`Store::watch`].
    fn watch(
        &self,
        prefix: Prefix<'_>,
        from: Revision,
    ) -> impl Future<Output = Result<Watch, StoreError>> + Send;

    /// See [`Store::compact`].
    fn compact(&self, to: Revision) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// See [`Store::grant_lease`].
    fn grant_lease(
        &self,
        ttl: Duration,
    ) -> impl Future<Output = Result<LeaseId, StoreError>> + Send;

    /// See [`Store::keep_alive`].
    fn keep_alive(&self, lease: LeaseId) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// See [`Store::revoke_lease`].
    fn revoke_lease(&self, lease: LeaseId) -> impl Future<Output = Result<(), StoreError>> + Send;
}

impl<B: Backend> Store for B {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<KeyValue>, StoreError>> {
        async move { Backend::get(self, Key::parse(key)?).await }.boxed()
    }

    fn list<'a>(
        &'a self,
        prefix: &'a str,
        page: Page,
    ) -> BoxFuture<'a, Result<Listing, StoreError>> {
        async move {
            if let Some(after) = &page.after {
                Key::parse(after)?;
            }
            Backend::list(self, Prefix::parse(prefix)?, page).await
        }
        .boxed()
    }

    fn commit(
        &self,
        transaction: Transaction,
    ) -> BoxFuture<'_, Result<TransactionResult, StoreError>> {
        async move { Backend::commit(self, transaction.check()?).await }.boxed()
    }

    fn commit_in_order(
        &self,
        transactions: Vec<Transaction>,
    ) -> BoxFuture<'_, Result<Vec<TransactionResult>, StoreError>> {
        async move {
            let checked =
                transactions.into_iter().map(Transaction::check).collect::<Result<_, _>>();
            Backend::commit_in_order(self, checked?).await
        }
        .boxed()
    }

    fn watch<'a>(
        &'a self,
        prefix: &'a str,
        from: Revision,
    ) -> BoxFuture<'a, Result<Watch, StoreError>> {
        async move { Backend::watch(self, Prefix::parse(prefix)?, from).await }.boxed()
    }

    fn compact(&self, to: Revision) -> BoxFuture<'_, Result<(), StoreError>> {
        Backend::compact(self, to).boxed()
    }

    fn grant_lease(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseId, StoreError>> {
        async move {
            if !(MIN_TTL..=MAX_TTL).contains(&ttl) {
                return Err(StoreError::InvalidTtl { ttl });
            }
            Backend::grant_lease(self, ttl).await
        }
        .boxed()
    }

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>> {
        Backend::keep_alive(self, lease).boxed()
    }

    fn revoke_lease(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>> {
        Backend::revoke_lease(self, lease).boxed()
    }
}
