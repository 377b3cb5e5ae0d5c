//! Whether an answer counts against the instance that gave it.

use http::{HeaderMap, Response};

use crate::balance::Outcome;

/// Statuses of gRPC that tell of a fault of the server: unknown, as of an exception that nobody
/// caught, internal, unavailable, data loss. A deadline is the caller's, and may be too short.
const FAULTS_OF_SERVERS: [&[u8]; 4] = [b"2", b"13", b"14", b"15"];

/// What the head of an answer says.
pub(super) fn of_head<B>(answer: &Response<B>) -> Outcome {
    match answer.status().is_server_error() || fails(answer.headers()) {
        true => Outcome::Failed,
        false => Outcome::Answered,
    }
}

/// True when these fields, of a head or of trailers, tell of a call that failed by the server.
pub(super) fn fails(fields: &HeaderMap) -> bool {
    let status = fields.get("grpc-status").map(|status| status.as_bytes());
    status.is_some_and(|status| FAULTS_OF_SERVERS.contains(&status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_of_the_server_count_and_those_of_the_caller_do_not() {
        let answer = |status: u16, grpc: Option<&str>| {
            let answer = Response::builder().status(status);
            let answer = grpc.into_iter().fold(answer, |a, code| a.header("grpc-status", code));
            of_head(&answer.body(()).unwrap())
        };
        for (status, grpc) in [(500, None), (503, None), (200, Some("14")), (200, Some("2"))] {
            assert_eq!(answer(status, grpc), Outcome::Failed, "{status} {grpc:?}");
        }
        let fine = [(200, None), (404, None), (429, None), (200, Some("0")), (200, Some("4"))];
        for (status, grpc) in fine.into_iter().chain([(200, Some("5")), (200, Some("16"))]) {
            assert_eq!(answer(status, grpc), Outcome::Answered, "{status} {grpc:?}");
        }
    }
}
