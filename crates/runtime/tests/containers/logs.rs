//! Output reaches the log, whole and in order.

use futures_util::StreamExt as _;
use longshore_runtime::logs::{Follow, StreamTag, read_log};
use longshore_types::ByteCount;

use crate::bed::{Bed, log_lines, text};

pub async fn both_streams_are_kept(bed: Bed) {
    let spec = bed.script("echo one; echo two >&2; printf 'no line feed'");
    bed.run(&spec).await;
    let mut lines = log_lines(&spec, None).await;
    lines.sort_by_key(|line| line.stream == StreamTag::Err);
    assert_eq!(text(&lines), "one\nno line feed\ntwo\n");
    assert_eq!(lines[2].stream, StreamTag::Err);
    assert_eq!(log_lines(&spec, Some(1)).await.len(), 1);
    assert_eq!(log_lines(&spec, Some(0)).await.len(), 0);
    bed.finish().await;
}

pub async fn a_follower_sees_every_line_over_rotations(bed: Bed) {
    // The pauses let the follower keep pace: rotation drops what nobody reads.
    let mut spec = bed.script(
        "for i in $(seq 2000); do echo line $i; [ $((i % 100)) = 0 ] && sleep 0.15; done; true",
    );
    spec.log.max_size = ByteCount(4096);
    spec.log.files = 4;
    let running = bed.start(&spec).await;
    let lines = read_log(&spec.log.path, None, Follow::UntilExit);
    let texts: Vec<String> = lines.map(|line| line.expect("readable").text).collect().await;
    let expected: Vec<String> = (1..=2000).map(|number| format!("line {number}")).collect();
    assert_eq!(texts, expected);
    running.wait().await.expect("it ended");
    let tail = log_lines(&spec, Some(3)).await;
    assert_eq!(text(&tail), "line 1998\nline 1999\nline 2000\n");
    let names = std::fs::read_dir(bed.shims.state_dir(&spec.id)).expect("a directory");
    let names = names.map(|entry| entry.expect("an entry").file_name());
    assert_eq!(names.filter(|name| name.to_str().expect("text").starts_with("log")).count(), 4);
    bed.finish().await;
}

pub async fn a_flood_is_written_whole(bed: Bed) {
    let mut spec = bed.script("seq 100000");
    spec.log.max_size = ByteCount::mib(64);
    let (record, output) = bed.run(&spec).await;
    assert_eq!(output.lines().count(), 100_000);
    assert!(output.ends_with("\n100000\n"));
    assert_eq!(record.lost_lines, 0);
    bed.finish().await;
}
