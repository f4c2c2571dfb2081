//! The runner of child processes: what it captures, bounds, kills and leaves alone.
#![allow(clippy::unwrap_used)]

use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use tranship_agent::command::{Command, CommandError, OUTPUT_LIMIT, OnAbandon};

fn sh(script: &str) -> Command {
    Command::new("sh").arg("-c").arg(script)
}

async fn appears(path: &Path) -> bool {
    let end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end {
        if path.exists() && std::fs::metadata(path).unwrap().len() > 0 {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    false
}

/// Dead, or dead and not yet waited for by whoever inherited it.
fn dead(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    stat.is_empty() || stat.contains(") Z ")
}

async fn dies(pid: &str) -> bool {
    let end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end {
        if dead(pid) {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    false
}

#[tokio::test]
async fn captures_output_and_passes_only_what_it_was_given() {
    let output = sh("echo out; echo err >&2; cat; env").env("GIVEN", "1").run().await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("out\n") && text.contains("GIVEN=1") && !text.contains("CARGO"), "{text}");
    assert_eq!(output.stderr, "err\n");
}

#[tokio::test]
async fn failure_names_program_status_and_last_words() {
    let error = sh("echo first >&2; echo last >&2; exit 3").run().await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("sh failed") && text.contains("3") && text.contains("last"), "{text}");
    assert_eq!(error.stderr(), Some("first\nlast\n"));
    assert!(sh("exit 3").output().await.unwrap().status.code() == Some(3));
    assert!(Command::new("no-such-program-here").run().await.unwrap_err().is_missing());
    assert!(Command::new("/no/such").run().await.unwrap_err().is_missing());
}

#[tokio::test]
async fn output_is_bounded_and_the_tail_is_kept() {
    let output = sh("head -c 3000000 /dev/zero | tr '\\0' x; echo END").run().await.unwrap();
    assert!(output.truncated);
    assert_eq!(output.stdout.len(), OUTPUT_LIMIT);
    assert!(output.stdout.ends_with(b"xEND\n"));
    let output = sh("echo short").run().await.unwrap();
    assert!(!output.truncated);
}

#[tokio::test]
async fn time_is_limited_and_the_whole_group_dies() {
    let dir = tempfile::tempdir().unwrap();
    let pid = dir.path().join("pid");
    let script = format!("sleep 60 & echo $! > {}; wait", pid.display());
    let started = Instant::now();
    let error = sh(&script).timeout(Duration::from_millis(300)).run().await.unwrap_err();
    assert!(matches!(error, CommandError::Timeout { killed: true, .. }), "{error}");
    assert!(started.elapsed() < Duration::from_secs(5));
    assert!(dies(&std::fs::read_to_string(&pid).unwrap()).await);
}

#[tokio::test]
async fn a_dropped_future_kills_the_group() {
    let dir = tempfile::tempdir().unwrap();
    let pid = dir.path().join("pid");
    let script = format!("sleep 60 & echo $! > {}; wait", pid.display());
    let task = tokio::spawn(sh(&script).run());
    assert!(appears(&pid).await);
    task.abort();
    assert!(dies(&std::fs::read_to_string(&pid).unwrap()).await);
}

#[tokio::test]
async fn what_must_not_be_killed_is_left_to_end() {
    let dir = tempfile::tempdir().unwrap();
    let (started, done) = (dir.path().join("started"), dir.path().join("done"));
    let script = format!(
        "echo x > {}; sleep 0.5; echo to a pipe that is still read; echo x > {}",
        started.display(),
        done.display()
    );
    let command = || sh(&script).on_abandon(OnAbandon::Leave);
    let error = command().timeout(Duration::from_millis(50)).run().await.unwrap_err();
    assert!(matches!(error, CommandError::Timeout { killed: false, .. }), "{error}");
    assert!(error.to_string().contains("left running"));
    assert!(appears(&done).await);
    std::fs::remove_file(&done).unwrap();
    std::fs::remove_file(&started).unwrap();
    let task = tokio::spawn(command().run());
    assert!(appears(&started).await);
    task.abort();
    assert!(appears(&done).await, "an abandoned child was killed");
}

#[tokio::test]
async fn a_grandchild_that_keeps_the_pipes_does_not_keep_the_caller() {
    let started = Instant::now();
    let output = sh("echo said; sleep 3 &").run().await.unwrap();
    assert_eq!(output.stdout, b"said\n");
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
}

#[tokio::test]
async fn descriptors_are_handed_over_one_by_one() {
    let count = |output: tranship_agent::command::Output| {
        String::from_utf8(output.stdout).unwrap().trim().parse::<usize>().unwrap()
    };
    let list = "ls /proc/self/fd | wc -l";
    let (mut other, kept) = std::io::pipe().unwrap();
    let before = count(sh(list).run().await.unwrap());
    let (mut read, write) = std::io::pipe().unwrap();
    let script = format!("eval \"echo through >&$PIPE_FD\"; {list}");
    let output =
        Command::new("bash").arg("-c").arg(script).inherit("PIPE_FD", write.into()).run().await.unwrap();
    assert_eq!(count(output), before + 1);
    let mut text = String::new();
    read.read_to_string(&mut text).unwrap();
    assert_eq!(text, "through\n");
    drop(kept);
    assert_eq!(other.read(&mut [0; 1]).unwrap(), 0);
}
