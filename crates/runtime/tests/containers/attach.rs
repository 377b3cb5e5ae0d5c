//! Clients that are attached to a container's first process.

use std::time::Duration;

use longshore_runtime::{AwaitedClient, ExecError, ExecEvent, TerminalSize};
use longshore_types::{Attached, ExitReason};

use crate::bed::{Bed, eventually, is_alive, log_lines, text};
use crate::exec::{all, end, request, run, until};

const SIZE: TerminalSize = TerminalSize { columns: 77, rows: 33 };

/// One that has all the time it needs.
#[expect(clippy::unnecessary_wraps, reason = "as the spec has it")]
fn client(by: Attached) -> Option<AwaitedClient> {
    Some(AwaitedClient { by, within: longshore_types::Duration::from_secs(60) })
}

pub async fn the_program_waits_for_its_client(bed: Bed) {
    let mut spec = bed.script("echo begun; cat; echo bad >&2; exit 7");
    spec.client = client(Attached::Pipes);
    let running = bed.start(&spec).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(is_alive(running.pid()));
    assert_eq!(text(&log_lines(&spec, None).await), "", "it has not begun");
    let mut stream = bed.shims.attach(running.id(), None, true).await.expect("it waits");
    let other = bed.shims.attach(running.id(), None, true).await.err();
    assert!(matches!(&other, Some(ExecError::Refused { why }) if why.contains("somebody else")));
    let mut input = stream.take_input().expect("asked for");
    input.write_all(b"passed on\n").await.expect("it reads");
    drop(input);
    let said = all(stream).await;
    assert_eq!(said, ("begun\npassed on\n".to_owned(), "bad\n".to_owned(), 7));
    let record = running.wait().await.expect("the end is known");
    assert_eq!(record.reason, ExitReason::Exited { code: 7 });
    // The log has the same.
    let logged = text(&log_lines(&spec, None).await);
    for line in ["begun\n", "passed on\n", "bad\n"] {
        assert!(logged.contains(line), "{logged:?}");
    }
    // An agent that hears of the end takes all away at once; the client was told before.
    let mut spec = bed.script("exit 5");
    spec.client = client(Attached::Pipes);
    let running = bed.start(&spec).await;
    let id = running.id().clone();
    let agent = async {
        running.wait().await.expect("the end is known");
        bed.shims.remove(&id).await.expect("it goes");
    };
    let ((), code) = tokio::join!(agent, async {
        // The agent waits since long.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let mut stream = bed.shims.attach(&id, None, false).await.expect("it waits");
        tokio::time::sleep(Duration::from_millis(300)).await;
        end(&mut stream).await
    });
    assert_eq!(code, 5);
    bed.finish().await;
}

pub async fn all_of_much_output_comes_also_to_a_slow_client(bed: Bed) {
    let mut spec = bed.script("seq 40000; head -c 300000 /dev/zero | tr '\\0' x; exit 3");
    spec.client = client(Attached::Pipes);
    let running = bed.start(&spec).await;
    let stream = bed.shims.attach(running.id(), None, false).await.expect("it waits");
    // It has to wait for whoever reads.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(is_alive(running.pid()));
    let (stdout, _, code) = all(stream).await;
    let numbers: String = (1..=40_000).map(|number| format!("{number}\n")).collect();
    assert!(stdout.starts_with(&numbers) && stdout.len() == numbers.len() + 300_000);
    assert_eq!(code, 3);
    bed.finish().await;
}

pub async fn its_terminal_is_that_of_the_first_process(bed: Bed) {
    let script = "stty size; test -t 0 && test -t 1 && test -t 2 && echo all; \
                  while read line; do stty size; echo got $line; \
                  test \"$line\" = last && exit 6; done";
    let mut spec = bed.script(script);
    spec.client = client(Attached::Terminal);
    let running = bed.start(&spec).await;
    let mut stream = bed.shims.attach(running.id(), Some(SIZE), true).await.expect("it waits");
    let (mut input, control) = (stream.take_input().expect("a terminal"), stream.control());
    let shown = until(&mut stream, "all").await;
    assert!(shown.starts_with("33 77\r\n"), "{shown:?}");
    control.resize(TerminalSize { columns: 101, rows: 44 }).expect("a size");
    input.write_all(b"one\r").await.expect("it reads");
    let shown = until(&mut stream, "got one").await;
    assert!(shown.contains("44 101"), "{shown:?}");
    // Who leaves by saying so finds it as it was.
    control.detach().await.expect("it listens");
    drop((stream, input, control));
    let shown = run(&bed, &running, request("echo beside")).await.0;
    assert_eq!(shown, "beside\n");
    let again = async || bed.shims.attach(running.id(), Some(SIZE), true).await;
    let mut stream = loop {
        match again().await {
            Ok(stream) => break stream,
            // It was told a moment ago.
            Err(ExecError::Refused { why }) if why.contains("somebody else") => {}
            Err(error) => panic!("{error}"),
        }
    };
    let mut input = stream.take_input().expect("a terminal");
    input.write_all(b"last\r").await.expect("it reads");
    assert_eq!(end(&mut stream).await, 6);
    drop((stream, input));
    let record = running.wait().await.expect("the end is known");
    assert_eq!(record.reason, ExitReason::Exited { code: 6 });
    assert!(text(&log_lines(&spec, None).await).contains("got last"));
    bed.finish().await;
}

pub async fn keys_are_signals_to_what_runs_in_it(bed: Bed) {
    // An interrupt reaches the command, and the shell goes on.
    let script = "trap : INT; tty; echo through > /dev/tty; echo ready; sleep 1000; \
                  for n in 1 2 3 4 5 6 7 8 9; do echo after; sleep 0.1; done; exit 4";
    let mut spec = bed.script(script);
    spec.client = client(Attached::Terminal);
    let running = bed.start(&spec).await;
    let mut stream = bed.shims.attach(running.id(), Some(SIZE), true).await.expect("it waits");
    let mut input = stream.take_input().expect("a terminal");
    let shown = until(&mut stream, "ready").await;
    if !bed.is_sandboxed() {
        // Whose kernel has no /dev/tty and no name for it.
        assert!(shown.starts_with("/dev/") && shown.contains("through"), "{shown:?}");
    }
    // Pressed again until the command is there to be interrupted. The same key takes along what is
    // just being written, so that is written more than once.
    let mut shown = String::new();
    while !shown.contains("after") {
        input.write_all(&[3]).await.expect("it reads");
        let more = tokio::time::timeout(Duration::from_millis(200), stream.next());
        if let Ok(Some(Ok(ExecEvent::Stdout(bytes)))) = more.await {
            shown.push_str(&String::from_utf8_lossy(&bytes));
        }
    }
    assert_eq!(end(&mut stream).await, 4);
    bed.finish().await;
}

pub async fn it_ends_with_a_client_that_left_without_a_word(bed: Bed) {
    let mut spec =
        bed.script("trap 'echo hung up; exit 0' HUP; echo ready; while :; do sleep 0.1; done");
    spec.client = client(Attached::Terminal);
    let running = bed.start(&spec).await;
    let mut stream = bed.shims.attach(running.id(), Some(SIZE), true).await.expect("it waits");
    until(&mut stream, "ready").await;
    drop(stream);
    let record = running.wait().await.expect("the end is known");
    assert_eq!(record.reason, ExitReason::Stopped);
    assert!(text(&log_lines(&spec, None).await).contains("hung up"));
    // What does not listen is ended all the same.
    let mut deaf = bed.script("trap '' HUP TERM; echo ready; while :; do sleep 0.1; done");
    deaf.client = client(Attached::Pipes);
    let running = bed.start(&deaf).await;
    let mut stream = bed.shims.attach(running.id(), None, false).await.expect("it waits");
    until(&mut stream, "ready").await;
    drop(stream);
    assert_eq!(running.wait().await.expect("the end is known").reason, ExitReason::Stopped);
    bed.finish().await;
}

pub async fn one_that_waits_can_be_stopped_and_one_that_cannot_run_says_so(bed: Bed) {
    let mut spec = bed.script("echo never");
    spec.client = client(Attached::Terminal);
    let running = bed.start(&spec).await;
    let record = running.stop(Duration::from_secs(1000)).await.expect("it ends at once");
    assert_eq!(record.reason, ExitReason::Stopped);
    let late = bed.shims.attach(running.id(), None, false).await.err();
    assert!(matches!(late, Some(ExecError::NotRunning(_) | ExecError::Lost)), "{late:?}");
    assert_eq!(text(&log_lines(&spec, None).await), "");
    // Nobody comes.
    let mut forgotten = bed.script("echo never");
    let within = longshore_types::Duration::from_millis(50);
    forgotten.client = Some(AwaitedClient { by: Attached::Pipes, within });
    let record = bed.start(&forgotten).await.wait().await.expect("the end is known");
    let message = "no client came within 50ms".to_owned();
    assert_eq!(record.reason, ExitReason::StartFailed { message });
    assert_eq!(text(&log_lines(&forgotten, None).await), "");
    // Some runtimes find out before they wait.
    let mut missing = bed.spec(&["/nothing"]);
    missing.client = client(Attached::Pipes);
    let why = match bed.shims.start(&missing).await {
        Err(error) => error.to_string(),
        Ok(running) => {
            let refused = bed.shims.attach(running.id(), None, true).await.err();
            let record = running.wait().await.expect("the end is known");
            assert!(matches!(record.reason, ExitReason::StartFailed { .. }), "{record:?}");
            refused.expect("it cannot run").to_string()
        }
    };
    assert!(why.contains("/nothing: no such file"), "{why}");
    // What runs by itself has no place for a client.
    let alone = bed.start(&bed.spec(&["sleep", "1000"])).await;
    let refused = bed.shims.attach(alone.id(), None, false).await.err();
    assert!(matches!(refused, Some(ExecError::NotAttachable)), "{refused:?}");
    eventually("it runs on", || is_alive(alone.pid()), String::new).await;
    bed.finish().await;
}
