//! The hold: a real socket, the real waiting code, and everything that could let it go too early.
#![allow(clippy::unwrap_used)]

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

use tranship_agent::hook::{HookError, HookServer, hook_main};
use tranship_proto::ids::MigrationId;

const LONG: Duration = Duration::from_secs(5);
const WHILE: Duration = Duration::from_millis(300);

fn id(n: u8) -> MigrationId {
    format!("01890a5d-ac96-774b-bcce-b302099a80{n:02x}").parse().unwrap()
}

fn client(dir: &Path, migration: MigrationId) -> JoinHandle<String> {
    let words = [
        "--socket".into(),
        dir.join("hook.sock").into_os_string(),
        "--migration".into(),
        OsString::from(migration.to_string()),
    ];
    std::thread::spawn(move || format!("{:?}", hook_main(words)))
}

fn success() -> String {
    format!("{:?}", std::process::ExitCode::SUCCESS)
}

async fn waits(client: &JoinHandle<String>) {
    tokio::time::sleep(WHILE).await;
    assert!(!client.is_finished(), "the hold went by itself");
}

async fn ends(client: JoinHandle<String>) -> String {
    tokio::time::timeout(LONG, tokio::task::spawn_blocking(|| client.join().unwrap())).await.unwrap().unwrap()
}

#[tokio::test]
async fn go_and_nothing_else_is_success() {
    let dir = tempfile::tempdir().unwrap();
    let server = HookServer::start(dir.path()).unwrap();
    let (go, abort) = (server.expect(id(1)), server.expect(id(2)));
    let (first, second) = (client(dir.path(), id(1)), client(dir.path(), id(2)));
    let both = async { go.held().await.and(abort.held().await) };
    tokio::time::timeout(LONG, both).await.unwrap().unwrap();
    assert!(go.connected());
    waits(&first).await;
    go.release().await.unwrap();
    waits(&second).await;
    abort.abort().await.unwrap();
    assert_eq!(ends(first).await, success());
    assert_ne!(ends(second).await, success());
}

#[tokio::test]
async fn a_decision_is_final_and_repeatable() {
    let dir = tempfile::tempdir().unwrap();
    let server = HookServer::start(dir.path()).unwrap();
    let hold = server.expect(id(1));
    let waiting = client(dir.path(), id(1));
    hold.held().await.unwrap();
    hold.abort().await.unwrap();
    hold.abort().await.unwrap();
    assert!(matches!(hold.release().await, Err(HookError::Decided { .. })));
    assert!(matches!(server.expect(id(1)).release().await, Err(HookError::Decided { .. })));
    assert_ne!(ends(waiting).await, success());
}

#[tokio::test]
async fn what_died_while_it_was_held_is_never_let_go() {
    let dir = tempfile::tempdir().unwrap();
    let server = HookServer::start(dir.path()).unwrap();
    let hold = server.expect(id(1));
    let mut script = UnixStream::connect(server.socket()).unwrap();
    writeln!(script, "held {} 7", id(1)).unwrap();
    hold.held().await.unwrap();
    drop(script);
    assert!(tokio::time::timeout(LONG, hold.lost()).await.unwrap());
    let told = tokio::time::timeout(LONG, hold.release_held()).await.unwrap();
    assert!(matches!(told, Err(HookError::Lost(_))), "{told:?}");
    // Also not what comes later.
    assert_ne!(ends(client(dir.path(), id(1))).await, success());
    assert!(matches!(hold.release().await, Err(HookError::Decided { .. })));
}

#[tokio::test]
async fn it_outlives_the_agent() {
    let dir = tempfile::tempdir().unwrap();
    let waiting = client(dir.path(), id(1));
    waits(&waiting).await;
    let server = HookServer::start(dir.path()).unwrap();
    tokio::time::timeout(LONG, server.expect(id(1)).held()).await.unwrap().unwrap();
    drop(server);
    waits(&waiting).await;
    let server = HookServer::start(dir.path()).unwrap();
    let hold = server.expect(id(1));
    tokio::time::timeout(LONG, hold.held()).await.unwrap().unwrap();
    waits(&waiting).await;
    tokio::time::timeout(LONG, hold.release()).await.unwrap().unwrap();
    assert_eq!(ends(waiting).await, success());
}

#[tokio::test]
async fn a_decision_taken_early_reaches_a_late_script() {
    let dir = tempfile::tempdir().unwrap();
    let server = HookServer::start(dir.path()).unwrap();
    let hold = server.expect(id(1));
    let early = tokio::time::timeout(WHILE, hold.release()).await;
    assert!(early.is_err(), "nobody has heard it yet");
    let waiting = client(dir.path(), id(1));
    assert_eq!(ends(waiting).await, success());
    hold.release().await.unwrap();
}

#[tokio::test]
async fn an_unexpected_or_forgotten_migration_waits() {
    let dir = tempfile::tempdir().unwrap();
    let server = HookServer::start(dir.path()).unwrap();
    let waiting = client(dir.path(), id(1));
    waits(&waiting).await;
    assert!(tokio::time::timeout(WHILE, server.expect(id(2)).held()).await.is_err());
    let hold = server.expect(id(1));
    hold.held().await.unwrap();
    server.forget(id(1));
    assert!(matches!(hold.release().await, Err(HookError::Forgotten(_))));
    waits(&waiting).await;
    let hold = server.expect(id(1));
    tokio::time::timeout(LONG, hold.held()).await.unwrap().unwrap();
    tokio::time::timeout(LONG, hold.abort()).await.unwrap().unwrap();
    assert_ne!(ends(waiting).await, success());
}

#[tokio::test]
async fn nonsense_from_the_socket_is_no_answer() {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("hook.sock")).unwrap();
    let waiting = client(dir.path(), id(1));
    let answers: [&[u8]; 8] =
        [b"", b"go", b"goo\n", b"GO\n", b"go \n", b"\ngo\n", b"\xff\xfe\n", &[b'g'; 4096]];
    for answer in answers {
        let (mut stream, _) = listener.accept().unwrap();
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        assert_eq!(line, format!("held {} 0\n", id(1)));
        let _ = stream.write_all(answer);
        drop(stream);
    }
    waits(&waiting).await;
    let (mut stream, _) = listener.accept().unwrap();
    stream.write_all(b"go\n").unwrap();
    assert_eq!(ends(waiting).await, success());
}

#[tokio::test]
async fn nonsense_from_a_script_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    let server = HookServer::start(dir.path()).unwrap();
    let hold = server.expect(id(1));
    for line in [
        "\n",
        "held\n",
        "held x 1\n",
        "go\n",
        &format!("held {} x\n", id(1)),
        &format!("held {} 1 2\n", id(1)),
        &"a".repeat(10_000),
    ] {
        let path = dir.path().join("hook.sock");
        let line = line.to_owned();
        let answer = tokio::task::spawn_blocking(move || {
            let mut stream = UnixStream::connect(path).unwrap();
            stream.set_read_timeout(Some(LONG)).unwrap();
            let _ = stream.write_all(line.as_bytes());
            let mut text = String::new();
            let _ = stream.read_to_string(&mut text);
            text
        });
        assert_eq!(answer.await.unwrap(), "");
    }
    assert!(!hold.connected());
}

#[tokio::test]
async fn a_script_that_dies_is_a_hold_that_is_lost_until_another_comes() {
    let dir = tempfile::tempdir().unwrap();
    let server = HookServer::start(dir.path()).unwrap();
    let hold = server.expect(id(1));
    let script = || {
        let mut stream = UnixStream::connect(dir.path().join("hook.sock")).unwrap();
        stream.write_all(format!("held {} 1\n", id(1)).as_bytes()).unwrap();
        stream
    };
    let first = script();
    tokio::time::timeout(LONG, hold.held()).await.unwrap().unwrap();
    assert!(tokio::time::timeout(WHILE, hold.lost()).await.is_err(), "it is held");
    drop(first);
    assert!(tokio::time::timeout(LONG, hold.lost()).await.unwrap());
    assert!(tokio::time::timeout(WHILE, hold.held()).await.is_err(), "the dead one holds nothing");
    let _second = script();
    tokio::time::timeout(LONG, hold.held()).await.unwrap().unwrap();
    let told = hold.clone();
    let telling = tokio::spawn(async move { told.release().await });
    assert!(!tokio::time::timeout(LONG, hold.lost()).await.unwrap(), "what was decided is not lost");
    telling.abort();
}
