//! Restoring a container under its monitor: started before the images are there, and held until the agent
//! says go.

use std::path::PathBuf;
use std::time::Duration;

use tranship_proto::ids::ContainerName;

use super::Result;
use super::bare::Bare;
use super::conmon::{RestoreArguments, SyncPipe};
use super::error::EngineError;
use super::moved::Arrival;
use super::paths::{make_dir, remove_file};
use crate::criu;
use crate::hook::{HeldHandle, HookFiles, RestoreAhead, RestoringCriu};
use crate::runtime::RuntimeStatus;

/// Where the images are.
#[derive(Clone, Debug)]
pub struct RestoreRequest {
    /// Images. `descriptors.json` must be there at the start, the others at [`RestoreHandle::begin`].
    pub image_dir: PathBuf,
    /// For CRIU's log and statistics; made when missing.
    pub work_dir: PathBuf,
    /// Leave private memory to the fill process that listens in `work_dir`.
    pub lazy: bool,
}

/// A restore on its way. Dropping it neither releases nor ends the restore.
pub struct RestoreHandle {
    name: ContainerName,
    held: HeldHandle,
    /// Absent after a restart of the agent: then the container is asked for instead.
    sync: Option<SyncPipe>,
    work_dir: Option<PathBuf>,
    /// Present until the restore was told that its images are there.
    ahead: Option<RestoreAhead>,
    /// Present from then on, in the life of the agent that told it.
    criu: Option<RestoringCriu>,
    bare: Bare,
}

impl std::fmt::Debug for RestoreHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RestoreHandle").field("name", &self.name).finish_non_exhaustive()
    }
}

pub(super) async fn start(bare: &Bare, arrival: &Arrival, request: &RestoreRequest) -> Result<RestoreHandle> {
    let name = arrival.name();
    let dirs = bare.layout.container(name);
    let files = HookFiles::new(&bare.layout.run_dir, arrival.migration);
    let criu_config = files
        .write_restore(&bare.hook_program, arrival.migration)
        .map_err(EngineError::io("write hook files below", &bare.layout.run_dir))?;
    make_dir(&request.work_dir, 0o700)?;
    // Of an earlier attempt.
    remove_file(&request.work_dir.join("restore.log"))?;
    remove_file(&dirs.pid_file())?;
    remove_file(&bare.layout.exit_file(name))?;
    let ahead = files
        .restore_ahead(&bare.hook_program)
        .map_err(EngineError::io("write hook files below", &bare.layout.run_dir))?;
    let held = bare.hooks.expect(arrival.migration);
    let arguments = RestoreArguments {
        image_dir: &request.image_dir,
        work_dir: &request.work_dir,
        criu_config: &criu_config,
        search_path: &ahead.search_path(),
        lazy: request.lazy,
    };
    let sync = bare.conmon.start(name, &dirs, Some(arguments)).await?;
    Ok(RestoreHandle {
        name: name.clone(),
        held,
        sync: Some(sync),
        work_dir: Some(request.work_dir.clone()),
        ahead: Some(ahead),
        criu: None,
        bare: bare.clone(),
    })
}

pub(super) fn resume(bare: &Bare, arrival: &Arrival) -> RestoreHandle {
    let held = bare.hooks.expect(arrival.migration);
    let name = arrival.name().clone();
    RestoreHandle { name, held, sync: None, work_dir: None, ahead: None, criu: None, bare: bare.clone() }
}

/// How long the runtime may take to say why, once CRIU has ended.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Returns when CRIU has ended and nobody has said so.
async fn died(criu: Option<&RestoringCriu>) {
    match criu {
        Some(criu) => criu.ended().await,
        None => std::future::pending().await,
    }
    tokio::time::sleep(LAST_WORDS).await;
}

impl RestoreHandle {
    /// Whether it waits for its images still.
    pub fn waits(&self) -> bool {
        self.ahead.is_some()
    }

    /// Lets the restore begin: all images are there. Returns when it does, or has failed before.
    pub async fn begin(&mut self, limit: Duration) -> Result<()> {
        let Some(ahead) = self.ahead.take() else { return Ok(()) };
        let begun = tokio::time::timeout(limit, async {
            match &mut self.sync {
                Some(sync) => tokio::select! {
                    begun = ahead.begin() => Ok(begun),
                    end = sync.pid() => Err(end.err()),
                },
                None => Ok(ahead.begin().await),
            }
        })
        .await;
        match begun {
            Ok(Ok(Ok(criu))) => {
                self.criu = Some(criu);
                Ok(())
            }
            Ok(Ok(Err(source))) => Err(EngineError::Io {
                what: "let begin",
                path: self.bare.layout.container(&self.name).dir,
                source,
            }),
            Ok(Err(cause)) => Err(self.explained(cause)),
            Err(_) => Err(EngineError::Deadline { name: self.name.to_string(), wanted: "begun", limit }),
        }
    }

    /// Waits until everything is restored and held; returns the host pid of the first process. Fails as
    /// soon as CRIU has failed, with the cause from its log.
    ///
    /// Cancel safe.
    pub async fn held(&mut self, limit: Duration) -> Result<i32> {
        let held = self.held.clone();
        let died = died(self.criu.as_ref());
        let outcome = tokio::time::timeout(limit, async {
            match &mut self.sync {
                Some(sync) => tokio::select! {
                    biased;
                    pid = held.held() => pid.map_err(|e| Some(e.into())),
                    // Only a failure comes before the hold.
                    end = sync.pid() => Err(end.err()),
                    () = died => Err(None),
                },
                None => held.held().await.map_err(|e| Some(e.into())),
            }
        })
        .await;
        match outcome {
            Ok(Ok(pid)) => Ok(pid),
            Ok(Err(cause)) => Err(self.explained(cause)),
            Err(_) => Err(EngineError::Deadline { name: self.name.to_string(), wanted: "restored", limit }),
        }
    }

    /// Whether the held restore is connected at this moment.
    pub fn connected(&self) -> bool {
        self.held.connected()
    }

    /// The hold by itself: whether it lasts can be watched while the handle is used.
    pub fn hold(&self) -> HeldHandle {
        self.held.clone()
    }

    /// Lets the container run: the point of no return at this host. Returns when the restore has heard it.
    ///
    /// Cancel safety: the decision stands and reaches the restore whenever it asks.
    ///
    /// # Errors
    /// [`crate::hook::HookError::Lost`] inside when the restore had died before: nothing has run, nor ever will.
    pub async fn release(&mut self, limit: Duration) -> Result<()> {
        let held = self.held.clone();
        let outcome = tokio::time::timeout(limit, async {
            match &mut self.sync {
                Some(sync) => tokio::select! {
                    biased;
                    told = held.release_held() => told.map_err(EngineError::from),
                    // It has heard it and failed, or is through already.
                    end = sync.pid() => end.map(drop),
                },
                None => Ok(held.release_held().await?),
            }
        })
        .await;
        match outcome {
            Ok(Err(EngineError::Monitor { name, message })) => {
                Err(self.explained(Some(EngineError::Monitor { name, message })))
            }
            Ok(done) => done,
            Err(_) => Err(EngineError::Deadline { name: self.name.to_string(), wanted: "released", limit }),
        }
    }

    /// As [`RestoreHandle::release`], for a hold that an earlier agent may have let go already: ends
    /// also when the container is found running.
    pub async fn release_or_running(&mut self, limit: Duration) -> Result<()> {
        let held = self.held.clone();
        tokio::select! {
            told = held.release() => Ok(told?),
            running = self.running(limit) => running.map(drop),
        }
    }

    /// Waits after [`RestoreHandle::release`] until the runtime has handed the container over; returns the
    /// pid of the first process. The container runs some milliseconds before that.
    pub async fn running(&mut self, limit: Duration) -> Result<i32> {
        let deadline = EngineError::Deadline { name: self.name.to_string(), wanted: "running", limit };
        let died = died(self.criu.as_ref());
        if let Some(sync) = &mut self.sync {
            let end = async {
                tokio::select! {
                    biased;
                    pid = sync.pid() => pid.map_err(Some),
                    () = died => Err(None),
                }
            };
            return match tokio::time::timeout(limit, end).await {
                Ok(Ok(pid)) => Ok(pid),
                Ok(Err(cause)) => Err(self.explained(cause)),
                Err(_) => Err(deadline),
            };
        }
        let id = self.name.as_str();
        let dirs = self.bare.layout.container(&self.name);
        let wait = async {
            loop {
                // The runtime writes the pid file when the restore is over.
                if let (Some(pid), Some(state)) = (dirs.pid(), self.bare.runtime.state(id).await?)
                    && state.status == RuntimeStatus::Running
                    && state.pid == pid
                {
                    return Ok(pid);
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(limit, wait).await.unwrap_or(Err(deadline))
    }

    /// Calls the restore off and waits until CRIU has taken it down. What is left is
    /// [`super::Engine::discard`]'s.
    pub async fn abort(&mut self, limit: Duration) -> Result<()> {
        // One that waits for its images ends without them.
        self.ahead = None;
        let told = async {
            let Some(sync) = &mut self.sync else { return Ok(self.held.abort().await?) };
            // A restore that has failed by itself hears nothing any more.
            tokio::select! {
                told = self.held.abort() => {
                    told?;
                    let _ = sync.pid().await;
                }
                _ = sync.pid() => {}
            }
            Ok(())
        };
        match tokio::time::timeout(limit, told).await {
            Ok(done) => done,
            Err(_) => Err(EngineError::Deadline { name: self.name.to_string(), wanted: "called off", limit }),
        }
    }

    fn explained(&self, cause: Option<EngineError>) -> EngineError {
        let log = self
            .work_dir
            .as_ref()
            .and_then(|d| criu::read_log(&d.join("restore.log")).ok())
            .unwrap_or_default();
        let said = match cause {
            Some(EngineError::Monitor { message, .. }) => message,
            Some(other) => return other,
            None => "CRIU ended without a word: was it killed, or is the host out of memory?".to_owned(),
        };
        let explanation = criu::explain(&log).or_else(|| criu::explain(&said));
        let mut errors = criu::error_lines(&log);
        errors.push(said);
        EngineError::Restore { name: self.name.to_string(), explanation: explanation.map(Box::new), errors }
    }
}
