//! Instances that fail while others do not, and those that are new.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use axum::Router;
use http::StatusCode;
use longshore_api::links::Endpoint;
use longshore_types::{Duration, IngressRules};
use tokio::io::AsyncWriteExt;

use super::played::*;
use crate::balance::Times;
use crate::limits::Limits;

/// An instance that counts its requests and fails them while it is told to.
struct Fickle {
    instance: Instance,
    fails: Arc<AtomicBool>,
    asked: Arc<AtomicU64>,
}

impl Fickle {
    async fn start() -> Self {
        let (fails, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (failing, counting) = (Arc::clone(&fails), Arc::clone(&asked));
        let instance = Instance::start(Router::new().fallback(async move || {
            counting.fetch_add(1, Ordering::Relaxed);
            match failing.load(Ordering::Relaxed) {
                true => StatusCode::INTERNAL_SERVER_ERROR,
                false => StatusCode::OK,
            }
        }));
        Self { instance: instance.await, fails, asked }
    }

    fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }
}

/// Two instances, new to the ingress at the same time.
async fn two() -> (Fickle, Fickle, Scene) {
    two_with(Times::default()).await
}

async fn two_with(times: Times) -> (Fickle, Fickle, Scene) {
    let (good, bad) = (Fickle::start().await, Fickle::start().await);
    let endpoints = [&good.instance.endpoint, &bad.instance.endpoint];
    let scene = Scene::with(Limits { outliers: times, ..limits() }, &endpoints).await;
    let mut table = table(2, &endpoints);
    Arc::make_mut(&mut table.routes[0]).rules.slow_start = Duration::from_secs(1);
    scene.location.give_table_and_wait(table).await;
    (good, bad, scene)
}

async fn statuses(scene: &Scene, n: usize) -> Vec<u16> {
    let mut statuses = Vec::new();
    for _ in 0..n {
        statuses.push(scene.ingress.get().await.0.as_u16());
    }
    statuses
}

#[tokio::test]
async fn an_instance_that_fails_gets_no_more_requests() {
    let (good, bad, scene) = two().await;
    bad.fails.store(true, Ordering::Relaxed);
    let failed = statuses(&scene, 60).await.iter().filter(|status| **status == 500).count();
    assert_eq!(failed, 5, "after five in a row it gets no more");
    assert_eq!((bad.asked(), good.asked()), (5, 55));
}

#[tokio::test]
async fn an_instance_that_was_left_out_comes_back_by_itself() {
    let base = std::time::Duration::from_millis(300);
    let (good, bad, scene) = two_with(Times { base, ..Times::default() }).await;
    bad.fails.store(true, Ordering::Relaxed);
    statuses(&scene, 30).await;
    bad.fails.store(false, Ordering::Relaxed);
    let asked = (bad.asked(), good.asked());
    // Its slow start is over as well in the end: it has half of the last hundred.
    in_time("its share", async {
        loop {
            let before = bad.asked();
            statuses(&scene, 100).await;
            if bad.asked() - before > 35 {
                break;
            }
        }
    })
    .await;
    assert!(bad.asked() > asked.0 && good.asked() > asked.1);
}

#[tokio::test]
async fn the_last_instance_is_never_left_out() {
    let (good, bad, scene) = two().await;
    for one in [&good, &bad] {
        one.fails.store(true, Ordering::Relaxed);
    }
    assert!(statuses(&scene, 60).await.iter().all(|status| *status == 500));
    let asked = (good.asked(), bad.asked());
    assert!(asked.0 == 5 || asked.1 == 5, "one of the two is left out: {asked:?}");
    // Those that are left leave the table: what remains is asked, though it was ejected.
    let left_out = if asked.0 == 5 { &good } else { &bad };
    scene.location.give_and_wait(3, &[&left_out.instance.endpoint]).await;
    left_out.fails.store(false, Ordering::Relaxed);
    assert_eq!(statuses(&scene, 3).await, [200; 3]);
}

#[tokio::test]
async fn an_instance_that_breaks_off_is_left_out() {
    for broken in [&b""[..], b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nfour"] {
        let (good, bad) = (Fickle::start().await, RawInstance::start().await);
        let scene = Scene::new(&[&good.instance.endpoint, &bad.endpoint]).await;
        let breaking = async {
            loop {
                let mut stream = bad.accept().await;
                read_head(&mut stream).await;
                stream.write_all(broken).await.unwrap();
            }
        };
        let asking = async {
            let mut failed = 0;
            while good.asked() < 60 {
                let answer = scene.ingress.send(request(HOST, "/")).await;
                let status = answer.status();
                let whole = http_body_util::BodyExt::collect(answer.into_body()).await.is_ok();
                failed += u32::from(!whole || status != 200);
            }
            failed
        };
        let failed = tokio::select! {
            failed = asking => failed,
            () = breaking => unreachable!("it goes on for ever"),
        };
        assert_eq!(failed, 5, "{broken:?}");
    }
}

#[tokio::test]
async fn an_app_may_do_without_ejection() {
    let (good, bad, scene) = two().await;
    let mut table = table(3, &[&good.instance.endpoint, &bad.instance.endpoint]);
    Arc::make_mut(&mut table.routes[0]).rules.outlier_ejection = false;
    scene.location.give_table_and_wait(table).await;
    bad.fails.store(true, Ordering::Relaxed);
    statuses(&scene, 100).await;
    assert!(bad.asked() > 25, "{}", bad.asked());
}

#[tokio::test]
async fn an_instance_that_fails_far_more_often_than_its_siblings_is_left_out() {
    let interval = std::time::Duration::from_millis(500);
    let (good, bad, scene) = two_with(Times { interval, ..Times::default() }).await;
    // Never five in a row: every second one of its requests fails.
    in_time("its ejection", async {
        loop {
            let before = (good.asked(), bad.asked());
            for _ in 0..100 {
                bad.fails.store(bad.asked() % 2 == 0, Ordering::Relaxed);
                scene.ingress.get().await;
            }
            if (good.asked(), bad.asked()) == (before.0 + 100, before.1) {
                break;
            }
        }
    })
    .await;
    assert!(bad.asked() >= 20, "without so many nothing is compared");
}

#[tokio::test]
async fn a_new_instance_gets_its_share_little_by_little() {
    let (old, new) = (Fickle::start().await, Fickle::start().await);
    let scene = Scene::new(&[&old.instance.endpoint]).await;
    let mut table = table(1, &[&old.instance.endpoint]);
    let both = vec![old.instance.endpoint.clone(), new.instance.endpoint.clone()];
    let mut share = async |slow_start, endpoints: &[Endpoint]| {
        table.revision += 1;
        let route = Arc::make_mut(&mut table.routes[0]);
        route.endpoints = endpoints.to_vec();
        route.rules = IngressRules { slow_start, ..Default::default() };
        scene.location.give_table_and_wait(table.clone()).await;
        let before = new.asked();
        statuses(&scene, 300).await;
        new.asked() - before
    };
    let slow_start = Duration::from_secs(3);
    assert_eq!(share(slow_start, &both[..1]).await, 0);
    // The old one's own is over by then; the new one's begins with the next table.
    tokio::time::sleep(slow_start.0).await;
    let young = share(slow_start, &both).await;
    let grown = share(Duration::from_secs(0), &both).await;
    assert!(young < 110, "far less than its half of 300: {young}");
    assert!(grown > 110, "its half, more or less: {grown}");
}
