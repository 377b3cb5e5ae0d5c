//! How containers end.

use std::time::Duration;

use longshore_runtime::{ExitRecord, SignalNumber};
use longshore_types::ExitReason;

use crate::bed::{Bed, kill, log_lines, text, until_line};

pub async fn exit_codes_are_kept(bed: Bed) {
    for code in [0, 1, 7, 255] {
        let spec = bed.script(&format!("exit {code}"));
        let (record, _) = bed.run(&spec).await;
        assert_eq!(record.reason, ExitReason::Exited { code });
        assert!(record.started_at.is_some_and(|start| start <= record.at));
        let stored = ExitRecord::load(&bed.shims.state_dir(&spec.id)).expect("readable");
        assert_eq!(stored, Some(record));
    }
    bed.finish().await;
}

pub async fn a_killed_first_process_is_a_signal(bed: Bed) {
    let spec = bed.script("sleep 1000 & sleep 1000 & echo ready; wait");
    let running = bed.start(&spec).await;
    until_line(&spec, "ready").await;
    kill(running.pid(), libc::SIGKILL);
    let record = running.wait().await.expect("it ends");
    assert_eq!(record.reason, ExitReason::Signalled { signal: libc::SIGKILL });
    bed.finish().await;
}

pub async fn a_signal_reaches_the_program(bed: Bed) {
    let script = "trap 'echo got it; exit 5' USR1; echo ready; while :; do sleep 0.01; done";
    let spec = bed.script(script);
    let running = bed.start(&spec).await;
    until_line(&spec, "ready").await;
    running.signal("SIGUSR1".parse::<SignalNumber>().expect("a signal")).await.expect("sent");
    assert_eq!(running.wait().await.expect("it ends").reason, ExitReason::Exited { code: 5 });
    assert_eq!(text(&log_lines(&spec, Some(1)).await), "got it\n");
    assert!(running.signal(SignalNumber::TERM).await.is_err());
    bed.finish().await;
}

pub async fn stop_asks_first(bed: Bed) {
    let script = "trap 'echo bye; exit 0' QUIT; echo ready; while :; do sleep 0.01; done";
    let mut spec = bed.script(script);
    spec.stop_signal = "SIGQUIT".parse().expect("a signal");
    let running = bed.start(&spec).await;
    until_line(&spec, "ready").await;
    let record = running.stop(Duration::from_secs(3600)).await.expect("it ends");
    assert_eq!(record.reason, ExitReason::Stopped);
    assert_eq!(text(&log_lines(&spec, None).await), "ready\nbye\n");
    // Stopping what has ended answers the same.
    assert_eq!(running.stop(Duration::ZERO).await.expect("known"), record);
    bed.finish().await;
}

pub async fn stop_ends_what_does_not_listen(bed: Bed) {
    let spec = bed.script("trap '' TERM; echo ready; while :; do sleep 0.01; done");
    let running = bed.start(&spec).await;
    until_line(&spec, "ready").await;
    let begun = std::time::Instant::now();
    let record = running.stop(Duration::from_millis(300)).await.expect("it ends");
    assert_eq!(record.reason, ExitReason::Stopped);
    assert!(begun.elapsed() >= Duration::from_millis(300), "the grace was not given");
    bed.finish().await;
}

pub async fn many_may_wait_and_one_may_shorten_the_grace(bed: Bed) {
    let running = bed.start(&bed.spec(&["sleep", "1000"])).await;
    let waiters = (0..10).map(|_| {
        let running = running.clone();
        tokio::spawn(async move { running.wait().await.expect("it ends").reason })
    });
    let waiters: Vec<_> = waiters.collect();
    let patient = running.clone();
    let patient = tokio::spawn(async move { patient.stop(Duration::from_secs(3600)).await });
    running.kill().await.expect("it ends");
    for waiter in waiters {
        assert_eq!(waiter.await.expect("no panic"), ExitReason::Stopped);
    }
    patient.await.expect("no panic").expect("it ends");
    bed.finish().await;
}
