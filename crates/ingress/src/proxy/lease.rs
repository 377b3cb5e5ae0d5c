//! What an exchange holds until its last byte: its place among the requests, its count at the
//! endpoint, its connection.

use std::error::Error;

use http::HeaderValue;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::task::TaskTracker;

use super::body::AnswerError;
use crate::balance::Outcome;
use crate::metrics::Stopwatch;
use crate::server::Busy;
use crate::upstream::{InFlight, Place, Sender};

/// Held by the body of an instance's answer. Dropped early, it closes the connection.
#[derive(Debug)]
pub(crate) struct Lease {
    pub connection: Connection,
    pub seat: Seat,
    /// How the answer counts once it is whole.
    pub outcome: Outcome,
    pub request_id: HeaderValue,
    pub tasks: TaskTracker,
}

/// What a request went over.
#[derive(Debug)]
pub(crate) enum Connection {
    /// It has it for itself.
    Own(Sender),
    /// With others.
    Shared { _place: Place },
}

/// A place among the requests in flight, here, at the endpoint and on the user's connection.
#[derive(Debug)]
pub(crate) struct Seat {
    pub in_flight: InFlight,
    /// None behind an upgrade.
    pub stopwatch: Option<Stopwatch>,
    pub _permit: OwnedSemaphorePermit,
    pub _busy: Busy,
}

impl Lease {
    /// The answer came to its end: the connection can serve another request once it is ready,
    /// which it may be only after this exchange's request was taken whole.
    pub fn complete(self) {
        let Self { connection, seat, outcome, request_id: _, tasks } = self;
        seat.in_flight.note_outcome(outcome);
        let upstream = seat.in_flight.upstream().clone();
        drop(seat);
        let Connection::Own(mut sender) = connection else { return };
        if sender.is_ready() {
            upstream.put_idle(sender);
            return;
        }
        tasks.spawn(async move {
            // An error means that the instance closed the connection: there is nothing to keep.
            if sender.ready().await.is_ok() {
                upstream.put_idle(sender);
            }
        });
    }

    /// The answer ended too early; the user sees it cut off.
    pub fn broken_off(self, error: &AnswerError) {
        self.seat.in_flight.note_outcome(Outcome::Failed);
        self.seat.in_flight.app().metrics.broken_off.inc();
        let instance = self.seat.in_flight.upstream().site();
        tracing::warn!(
            %instance,
            request_id = ?self.request_id,
            error = error as &dyn Error,
            "an answer was broken off"
        );
    }
}
