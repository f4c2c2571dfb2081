//! The fill process with real processes and real userfaultfds: what they read is compared with what is
//! in the store, whatever they do to their memory and whoever dies. Needs root and a cgroup2 tree.

// Helpers outside of `#[test]` functions: a broken set-up is a failed test.
#![allow(clippy::unwrap_used)]

mod fill_lab;

use fill_lab::{LIMIT, Lab, kill};
use std::time::Duration;
use tranship_agent::memory::fill::{self, FillError, FillState};

#[test]
#[ignore = "the process that the other tests start"]
fn child() {
    if let Ok(what) = std::env::var("FILL_CHILD") {
        fill_lab::child::main(&what);
    }
}

/// Lets a child do something while it is filled in, and waits for both ends.
async fn runs_well(what: &str, pages: u64) {
    let lab = Lab::new(pages);
    lab.start().await;
    let mut child = lab.child(what);
    assert_eq!(child.line().as_deref(), Some("held"), "{what}");
    let held = fill::progress(&lab.request.files).await.unwrap().unwrap();
    assert_eq!((held.state, held.pages), (FillState::Held, pages), "{what}");
    assert_eq!(lab.stored_bytes(), pages * 4096, "the store is whole while the restore is held");
    let files = lab.request.files.clone();
    let (seen, watching) = tokio::sync::oneshot::channel();
    let mut seen = Some(seen);
    let watched = tokio::spawn(async move {
        fill::watch(&files, |_| {
            seen.take().map(|s| s.send(()));
        })
        .await
    });
    watching.await.unwrap();
    child.say("run\n");
    assert_eq!(child.rest(), ["good"], "{what}");
    let last = tokio::time::timeout(LIMIT, watched).await.unwrap().unwrap().unwrap().unwrap();
    assert_eq!(last.state, FillState::Done, "{what}");
    assert_eq!(last.filled, last.pages, "{what}");
    assert!(last.pages >= pages && last.faults > 0, "{what}: {last:?}");
    assert_eq!(lab.stored_bytes(), 0, "{what}: all of the store was given back");
    lab.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_find_their_pages() {
    runs_well("touch", 8192).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forked_processes_find_theirs() {
    runs_well("fork", 8192).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn moved_memory_keeps_its_contents() {
    runs_well("remap", 8192).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn emptied_memory_is_empty() {
    runs_well("advise", 8192).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_memory_where_old_was_is_empty() {
    runs_well("unmap", 8192).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mappings_cut_in_pieces_are_filled() {
    runs_well("protect", 8192).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_may_end_before_its_memory_is_complete() {
    runs_well("exit", 16384).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_nobody_touches_is_filled_in_the_background() {
    let lab = Lab::new(8192);
    lab.start().await;
    let mut child = lab.child("wait");
    assert_eq!(child.line().as_deref(), Some("held"));
    child.say("run\n");
    assert_eq!(child.line().as_deref(), Some("running"));
    fill::wait(&lab.request.files, LIMIT, |_| {}).await.unwrap();
    assert_eq!(lab.stored_bytes(), 0);
    lab.nothing_is_left();
    // Nobody is left to ask: it must all be there.
    child.say("check\n");
    assert_eq!(child.rest(), ["good"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_has_its_limit() {
    let lab = Lab::new(64);
    lab.start().await;
    let late = fill::wait(&lab.request.files, Duration::from_millis(50), |_| {}).await;
    assert!(matches!(late, Err(FillError::Deadline { pages: 64, .. })), "{late:?}");
    fill::call_off(&lab.request.files, LIMIT).await.unwrap();
    lab.nothing_is_left();
    fill::wait(&lab.request.files, LIMIT, |_| {}).await.unwrap();
    fill::call_off(&lab.request.files, LIMIT).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_was_killed_in_its_first_instants_leaves_nothing() {
    let lab = Lab::new(64);
    std::fs::create_dir_all(&lab.request.files.dir).unwrap();
    // It listens before it has a keeper.
    drop(std::os::unix::net::UnixListener::bind(lab.request.files.socket()).unwrap());
    assert!(lab.request.files.socket().exists());
    fill::call_off(&lab.request.files, LIMIT).await.unwrap();
    lab.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_fill_process_is_refused() {
    let lab = Lab::new(64);
    lab.start().await;
    let second = fill::start(&lab.request).await.unwrap_err();
    assert!(tranship_agent::chain(&second).contains("by another process"), "{second:?}");
    fill::call_off(&lab.request.files, LIMIT).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_that_is_given_up_is_killed_and_leaves_no_word() {
    for called_off in [true, false] {
        let lab = Lab::new(4096);
        lab.start().await;
        let mut child = lab.child("held");
        assert_eq!(child.line().as_deref(), Some("held"));
        if called_off {
            fill::call_off(&lab.request.files, LIMIT).await.unwrap();
        } else {
            child.say("close\n");
        }
        assert_eq!(child.rest(), Vec::<String>::new());
        assert_eq!(child.signal(), Some(9));
        lab.nothing_is_left();
        assert_eq!(lab.stored_bytes(), 4096 << 12, "the store is whole for another try");
        lab.start().await;
        fill::call_off(&lab.request.files, LIMIT).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_whose_worker_dies_is_killed_before_it_reads_zeros() {
    for round in 0..12u64 {
        let lab = Lab::new(16384);
        lab.start().await;
        let mut child = lab.child("storm");
        assert_eq!(child.line().as_deref(), Some("held"));
        let files = lab.request.files.clone();
        let watched = tokio::spawn(async move { fill::watch(&files, |_| {}).await });
        child.say("run\n");
        assert_eq!(child.line().as_deref(), Some("running"));
        std::thread::sleep(Duration::from_millis(2 * round));
        let (worker, _) = lab.worker_and_keeper();
        kill(worker);
        assert_eq!(child.rest(), Vec::<String>::new(), "something wrong was read");
        assert_eq!(child.signal(), Some(9));
        let end = tokio::time::timeout(LIMIT, watched).await.unwrap().unwrap();
        assert!(matches!(&end, Err(FillError::Killed(why)) if why.contains("has died")), "{end:?}");
        fill::forget(&lab.request.files);
        assert!(!lab.cgroup.events().unwrap().unwrap().populated);
        lab.nothing_is_left();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_keeper_that_dies_is_replaced_and_the_new_one_keeps_as_well() {
    let lab = Lab::new(16384);
    lab.start().await;
    let mut child = lab.child("storm");
    assert_eq!(child.line().as_deref(), Some("held"));
    let (worker, first) = lab.worker_and_keeper();
    kill(first);
    lab.wait_until("a new keeper", || {
        let all = lab.processes();
        all.len() == 2 && all.contains(&worker) && !all.contains(&first)
    });
    child.say("run\n");
    assert_eq!(child.line().as_deref(), Some("running"));
    kill(worker);
    assert_eq!(child.rest(), Vec::<String>::new(), "something wrong was read");
    assert_eq!(child.signal(), Some(9));
    lab.wait_until("the end of both", || lab.processes().is_empty());
    assert!(fill::failed(&lab.request.files).unwrap().contains("has died"));
    fill::call_off(&lab.request.files, LIMIT).await.unwrap();
    lab.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_first_keeper_it_ends_as_well() {
    let lab = Lab::new(8192);
    lab.start().await;
    let mut child = lab.child("wait");
    assert_eq!(child.line().as_deref(), Some("held"));
    let (worker, first) = lab.worker_and_keeper();
    kill(first);
    lab.wait_until("a new keeper", || lab.processes().len() == 2 && !lab.processes().contains(&first));
    assert!(lab.processes().contains(&worker));
    child.say("run\n");
    assert_eq!(child.line().as_deref(), Some("running"));
    fill::wait(&lab.request.files, LIMIT, |_| {}).await.unwrap();
    lab.nothing_is_left();
    child.say("check\n");
    assert_eq!(child.rest(), ["good"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_cannot_be_read_kills_the_container() {
    let lab = Lab::new(8192);
    lab.start().await;
    let mut child = lab.child("touch");
    assert_eq!(child.line().as_deref(), Some("held"));
    let store = lab.request.image_dir.join(tranship_agent::memory::store::PAGES);
    std::fs::File::options().write(true).open(store).unwrap().set_len(4096 * 4096).unwrap();
    child.say("run\n");
    assert_eq!(child.rest(), Vec::<String>::new(), "something wrong was read");
    assert_eq!(child.signal(), Some(9));
    lab.wait_until("the end of both", || lab.processes().is_empty());
    let again = fill::wait(&lab.request.files, LIMIT, |_| {}).await;
    assert!(matches!(&again, Err(FillError::Killed(_))), "said until it is forgotten: {again:?}");
    fill::forget(&lab.request.files);
    lab.nothing_is_left();
}
