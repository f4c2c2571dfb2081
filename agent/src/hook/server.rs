//! The agent's side of the hold: one socket, and a register of the migrations that may be held.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tranship_proto::ids::MigrationId;

use super::{Decision, MAX_LINE};

/// A script says who it is at once; a connection that does not is closed.
const FIRST_LINE: Duration = Duration::from_secs(5);

/// Why the hold did not work.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// The socket cannot be made.
    #[error("cannot listen on {}: {source}", .path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The other decision was taken before.
    #[error("migration {migration} was already told {}", .told.word())]
    Decided {
        /// The migration.
        migration: MigrationId,
        /// What it was told.
        told: Decision,
    },
    /// Nobody was there to be told `go`, which is taken back for ever.
    #[error("the held restore of migration {0} had died before it was let go: nothing has run")]
    Lost(MigrationId),
    /// The migration was forgotten while it was waited for.
    #[error("the hold of migration {0} was given up")]
    Forgotten(MigrationId),
}

#[derive(Clone, Debug, Default)]
struct Hold {
    pid: Option<i32>,
    connected: usize,
    decision: Option<Decision>,
    // `go` may have been written to a script.
    told: bool,
    acknowledged: bool,
    forgotten: bool,
}

impl Hold {
    /// What the script that is being served is to be told.
    fn tell(&mut self) -> Option<Decision> {
        let decision = self.decision.filter(|_| !self.forgotten);
        self.told |= decision == Some(Decision::Go);
        decision
    }

    fn unheard(&self) -> bool {
        self.connected == 0 && !self.told
    }
}

type Register = Mutex<HashMap<MigrationId, watch::Sender<Hold>>>;

fn lock(register: &Register) -> MutexGuard<'_, HashMap<MigrationId, watch::Sender<Hold>>> {
    register.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Listens on `hook.sock` for held restores. Ends when dropped; scripts then wait for the next one.
#[derive(Debug)]
pub struct HookServer {
    register: Arc<Register>,
    socket: PathBuf,
    task: JoinHandle<()>,
}

impl HookServer {
    /// Starts to listen on `hook.sock` in the agent's run directory. A socket left by an earlier agent is
    /// replaced. Must be called on a tokio runtime.
    pub fn start(run_dir: &Path) -> Result<Self, HookError> {
        let socket = run_dir.join("hook.sock");
        let fail = |source| HookError::Listen { path: socket.clone(), source };
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).map_err(fail)?;
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o600)).map_err(fail)?;
        let register = Arc::new(Register::default());
        let task = tokio::spawn(accept(listener, register.clone()));
        Ok(HookServer { register, socket, task })
    }

    /// The socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Announces a migration that may be held. Repeated calls give handles of the same hold. Scripts of
    /// migrations that nobody expects keep waiting.
    pub fn expect(&self, migration: MigrationId) -> HeldHandle {
        let hold = lock(&self.register)
            .entry(migration)
            .or_insert_with(|| watch::Sender::new(Hold::default()))
            .clone();
        HeldHandle { migration, hold }
    }

    /// Removes a migration from the register and closes its connections. A script that still waits for it
    /// keeps waiting.
    pub fn forget(&self, migration: MigrationId) {
        if let Some(hold) = lock(&self.register).remove(&migration) {
            hold.send_modify(|h| h.forgotten = true);
        }
    }
}

impl Drop for HookServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: UnixListener, register: Arc<Register>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => { connections.spawn(serve(stream, register.clone())); }
                // Out of descriptors: the scripts try again.
                Err(error) => {
                    tracing::warn!(%error, "cannot accept on the hook socket");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(stream: UnixStream, register: Arc<Register>) {
    match stream.peer_cred() {
        Ok(cred) if cred.uid() == nix::unistd::geteuid().as_raw() => {}
        other => {
            tracing::warn!(?other, "connection to the hook socket refused");
            return;
        }
    }
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read.take(MAX_LINE as u64));
    let mut line = String::new();
    if !matches!(tokio::time::timeout(FIRST_LINE, read.read_line(&mut line)).await, Ok(Ok(n)) if n > 0) {
        return;
    }
    let Some((migration, pid)) = parse(&line) else {
        tracing::warn!("a connection to the hook socket did not say who it is");
        return;
    };
    // Expected a moment later, perhaps: the script comes back.
    let Some(hold) = lock(&register).get(&migration).cloned() else { return };
    tracing::debug!(%migration, pid, "held in post-restore");
    hold.send_modify(|h| {
        h.pid = Some(pid);
        h.connected += 1;
    });
    let mut changes = hold.subscribe();
    let mut rest = String::new();
    let decided = tokio::select! {
        decided = changes.wait_for(|h| h.decision.is_some() || h.forgotten) => decided.is_ok(),
        // The script says nothing until it is told something: its end, then.
        _ = read.read_line(&mut rest) => false,
    };
    let mut decision = None;
    if decided {
        hold.send_modify(|h| decision = h.tell());
    }
    if let Some(decision) = decision {
        let told = write.write_all(format!("{}\n", decision.word()).as_bytes()).await.is_ok();
        rest.clear();
        let heard = told
            && matches!(tokio::time::timeout(FIRST_LINE, read.read_line(&mut rest)).await, Ok(Ok(_)) if rest == "ok\n");
        if heard {
            hold.send_modify(|h| h.acknowledged = true);
        }
    }
    hold.send_modify(|h| h.connected -= 1);
}

fn parse(line: &str) -> Option<(MigrationId, i32)> {
    let mut words = line.strip_suffix('\n')?.split(' ');
    let (word, migration, pid) = (words.next()?, words.next()?, words.next()?);
    (word == "held" && words.next().is_none()).then_some(())?;
    Some((migration.parse().ok()?, pid.parse().ok()?))
}

/// A hold that is expected or there. Dropping it decides nothing.
#[derive(Clone, Debug)]
pub struct HeldHandle {
    migration: MigrationId,
    hold: watch::Sender<Hold>,
}

impl HeldHandle {
    /// Waits until the restore is held, its script being connected; returns the host pid of the container's
    /// first process.
    ///
    /// Cancel safe.
    pub async fn held(&self) -> Result<i32, HookError> {
        let mut changes = self.hold.subscribe();
        let hold = changes.wait_for(|h| h.connected > 0 || h.forgotten).await;
        hold.ok().filter(|h| !h.forgotten).and_then(|h| h.pid).ok_or(HookError::Forgotten(self.migration))
    }

    /// Waits until a restore that was held is not any more, without a decision: its script has died, by
    /// itself or with its CRIU. `false` when there is nothing to wait for: decided, or forgotten.
    ///
    /// Cancel safe.
    pub async fn lost(&self) -> bool {
        let mut changes = self.hold.subscribe();
        let over = |h: &Hold| h.connected == 0 || h.decision.is_some() || h.forgotten;
        changes.wait_for(over).await.is_ok_and(|h| h.decision.is_none() && !h.forgotten)
    }

    /// Whether the script is connected at this moment.
    pub fn connected(&self) -> bool {
        self.hold.borrow().connected > 0
    }

    /// Lets the container run. Returns when the script has confirmed; waits as long as the script is not
    /// connected, so callers set a deadline.
    ///
    /// Cancel safety: the decision stands, and the script gets it whenever it asks.
    pub async fn release(&self) -> Result<(), HookError> {
        self.decide(Decision::Go).await
    }

    /// As [`HeldHandle::release`], for a hold that was seen and is not expected to come back: when its
    /// script is gone and was not told `go`, the decision is taken back.
    ///
    /// # Errors
    /// [`HookError::Lost`]: nothing has run, and whatever asks later is told `abort`.
    pub async fn release_held(&self) -> Result<(), HookError> {
        tokio::select! {
            biased;
            () = self.take_back() => Err(HookError::Lost(self.migration)),
            told = self.release() => told,
        }
    }

    /// Returns when nobody is there to be told, and nobody ever will be told `go`.
    async fn take_back(&self) {
        let mut changes = self.hold.subscribe();
        loop {
            if changes.wait_for(Hold::unheard).await.is_err() {
                return std::future::pending().await;
            }
            let back = self.hold.send_if_modified(|h| {
                let back = h.unheard();
                if back {
                    h.decision = Some(Decision::Abort);
                }
                back
            });
            if back {
                return;
            }
        }
    }

    /// Calls the restore off. As [`HeldHandle::release`] otherwise.
    pub async fn abort(&self) -> Result<(), HookError> {
        self.decide(Decision::Abort).await
    }

    async fn decide(&self, decision: Decision) -> Result<(), HookError> {
        let mut told = None;
        self.hold.send_modify(|h| {
            // Whoever forgot the hold counts on it never being decided.
            told = if h.forgotten { None } else { Some(*h.decision.get_or_insert(decision)) };
        });
        match told {
            None => return Err(HookError::Forgotten(self.migration)),
            Some(told) if told != decision => {
                return Err(HookError::Decided { migration: self.migration, told });
            }
            Some(_) => {}
        }
        let mut changes = self.hold.subscribe();
        match changes.wait_for(|h| h.acknowledged || h.forgotten).await {
            Ok(hold) if hold.acknowledged => Ok(()),
            _ => Err(HookError::Forgotten(self.migration)),
        }
    }
}
