use std::collections::HashMap;
use std::future::pending;

use tokio::time::Instant;

use super::message::{Query, is_failure};
use super::udp::answer;
use super::*;

/// What a resolver of a test does with a question.
#[derive(Clone, Copy)]
enum Does {
    Answers,
    AnswersAfter(Duration),
    Fails,
    RefusesTheConnection,
    IsSilent,
}

fn query() -> Query {
    let mut bytes = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    bytes.extend(b"\x03www\x07example\x00\x00\x01\x00\x01");
    Query::parse(&bytes).unwrap()
}

fn good_answer(query: &Query) -> Vec<u8> {
    let mut answer = query.server_failure();
    answer[3] &= 0xf0;
    answer
}

/// Asks resolvers that behave like this; gives whether there was a good answer, and the time that
/// it took.
async fn ask(resolvers: &[Does]) -> (bool, Duration) {
    let addresses: Vec<SocketAddr> =
        (1..=resolvers.len()).map(|n| format!("192.0.2.{n}:53").parse().unwrap()).collect();
    let does: HashMap<_, _> = addresses.iter().copied().zip(resolvers.iter().copied()).collect();
    let upstreams = Upstreams::open(Some(addresses)).unwrap();
    let started = Instant::now();
    let answer = answer(&upstreams, &query(), |upstream, query| {
        let does = does[&upstream];
        async move {
            match does {
                Does::Answers => Ok(good_answer(&query)),
                Does::AnswersAfter(delay) => {
                    tokio::time::sleep(delay).await;
                    Ok(good_answer(&query))
                }
                Does::Fails => Ok(query.server_failure()),
                Does::RefusesTheConnection => Err(io::ErrorKind::ConnectionRefused.into()),
                Does::IsSilent => pending().await,
            }
        }
    })
    .await;
    assert!(query().is_answered_by(&answer));
    (!is_failure(&answer), started.elapsed())
}

#[tokio::test(start_paused = true)]
async fn the_next_resolver_is_asked_when_one_does_not_answer() {
    let slow = Does::AnswersAfter(Duration::from_secs(3));
    for (what, resolvers, expected, within) in [
        ("one that answers", vec![Does::Answers], true, Duration::ZERO),
        ("one that is slow", vec![slow], true, Duration::from_secs(3)),
        ("a slow and a silent one", vec![slow, Does::IsSilent], true, Duration::from_secs(3)),
        ("a silent and a good one", vec![Does::IsSilent, Does::Answers], true, PATIENCE),
        (
            "a closed and a good one",
            vec![Does::RefusesTheConnection, Does::Answers],
            true,
            Duration::ZERO,
        ),
        ("a failing and a good one", vec![Does::Fails, Does::Answers], true, Duration::ZERO),
        ("a failing one", vec![Does::Fails], false, Duration::ZERO),
        ("two closed ones", vec![Does::RefusesTheConnection; 2], false, Duration::ZERO),
        ("a failing and a silent one", vec![Does::Fails, Does::IsSilent], false, ANSWER_LIMIT),
        ("only silent ones", vec![Does::IsSilent; 3], false, ANSWER_LIMIT),
        ("none at all", vec![], false, Duration::ZERO),
    ] {
        let (is_answered, took) = ask(&resolvers).await;
        assert_eq!(is_answered, expected, "{what}");
        // The clock is the test's own, and only moves when everything waits.
        assert!(took <= within + Duration::from_millis(10), "{what}: {took:?}");
    }
}
