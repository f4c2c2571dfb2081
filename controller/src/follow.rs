//! Following a migration to its end: events, Ctrl-C, a connection that is lost and found again.
//!
//! The migration belongs to the agents. Whatever happens to this command, it goes on; the first
//! Ctrl-C asks for it to be cancelled, the second leaves.

use crate::client::{Agent, ClientError, Replies};
use crate::error::Error;
use crate::progress::{Subject, View};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use tranship_proto::control::{Reply, Request};
use tranship_proto::status::{EventBody, Failure, Reason, Summary};

/// How long a lost agent is looked for, from the last event on. An agent that restarts is back
/// in a few seconds; a host that reboots is not waited for.
pub const SEARCH: Duration = Duration::from_secs(30);
/// Pause between two tries: doubles from the first to the last.
const PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(4));

/// How the following ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// The container runs at the destination.
    Done(Box<Summary>),
    /// The migration ended otherwise.
    Failed(Failure),
    /// The user left.
    Detached,
}

/// The signals that end a command: Ctrl-C and SIGTERM.
pub struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
}

/// Which signal came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interrupt {
    /// Ctrl-C.
    Key,
    /// SIGTERM: somebody wants this process to go, not the migration.
    Terminate,
}

impl Interrupts {
    /// Takes over both signals for the rest of the process.
    pub fn new() -> Result<Self, Error> {
        let catch = |kind| {
            signal(kind).map_err(|e| Error::new(Reason::Internal, format!("cannot handle signals: {e}")))
        };
        Ok(Self { interrupt: catch(SignalKind::interrupt())?, terminate: catch(SignalKind::terminate())? })
    }

    /// The next signal. Cancel safe.
    pub async fn next(&mut self) -> Interrupt {
        tokio::select! {
            _ = self.interrupt.recv() => Interrupt::Key,
            _ = self.terminate.recv() => Interrupt::Terminate,
        }
    }
}

/// A migration being followed.
pub struct Follow<'a> {
    /// The agent that sends the events.
    pub agent: Arc<Agent>,
    /// What is followed.
    pub subject: &'a Subject,
    /// Where it is shown.
    pub view: &'a mut dyn View,
    /// What may interrupt it.
    pub interrupts: &'a mut Interrupts,
    /// Number of the last event seen.
    pub seen: u64,
    /// How long a lost agent is looked for.
    pub search: Duration,
}

enum Wake {
    Reply(Result<Reply, ClientError>),
    Interrupt(Interrupt),
    CancelAnswered(Result<Reply, ClientError>),
}

impl Follow<'_> {
    /// Follows `replies`, or begins with a new watch when there are none.
    pub async fn run(mut self, replies: Option<Replies>) -> Result<Outcome, Error> {
        let outcome = self.follow(replies).await;
        self.view.close();
        outcome
    }

    async fn follow(&mut self, mut replies: Option<Replies>) -> Result<Outcome, Error> {
        let mut cancel: Option<JoinHandle<Result<Reply, ClientError>>> = None;
        let mut asked = false;
        let mut lost: Option<(Instant, Duration)> = None;
        loop {
            let Some(stream) = replies.as_mut() else {
                match self.find_again(&mut lost).await? {
                    Some(found) => replies = Some(found),
                    None => return Ok(self.detach(asked)),
                }
                continue;
            };
            let wake = tokio::select! {
                biased;
                i = self.interrupts.next() => Wake::Interrupt(i),
                a = answer(&mut cancel) => Wake::CancelAnswered(a),
                r = stream.next() => Wake::Reply(r),
            };
            match wake {
                Wake::Interrupt(Interrupt::Key) if !asked => {
                    asked = true;
                    self.view.notice("asking for cancellation; Ctrl-C again leaves it running and detaches");
                    let (agent, migration) = (self.agent.clone(), self.subject.migration);
                    cancel =
                        Some(tokio::spawn(async move { agent.ask(Request::Cancel { migration }).await }));
                }
                Wake::Interrupt(_) => return Ok(self.detach(asked)),
                Wake::CancelAnswered(answer) => {
                    cancel = None;
                    if let Some(words) = cancel_words(answer) {
                        self.view.notice(&words);
                    }
                }
                Wake::Reply(Ok(Reply::Event(event))) if event.migration == self.subject.migration => {
                    // After a new start of the watch some may come twice; the end always counts.
                    if event.seq > self.seen || event.body.is_last() {
                        self.seen = self.seen.max(event.seq);
                        lost = None;
                        self.view.event(&event);
                    }
                    match event.body {
                        EventBody::Done { summary } => return Ok(Outcome::Done(Box::new(summary))),
                        EventBody::Failed { failure } => return Ok(Outcome::Failed(failure)),
                        _ => {}
                    }
                }
                Wake::Reply(Ok(Reply::Failed(failure))) if lost.is_some() && failure.retryable => {
                    self.lose(&mut lost, failure.into())?;
                    replies = None;
                }
                Wake::Reply(Ok(Reply::Failed(failure))) => return Err(self.with_way_back(failure.into())),
                // An agent that stops in an orderly way ends its streams before the migration has.
                Wake::Reply(Ok(Reply::End)) => {
                    let peer = self.agent.name();
                    self.lose(
                        &mut lost,
                        ClientError::Ended { peer, what: "before the migration did" }.into(),
                    )?;
                    replies = None;
                }
                Wake::Reply(Ok(other)) => return Err(self.agent.unexpected(&other, "Event").into()),
                Wake::Reply(Err(e)) if e.is_lost() => {
                    self.lose(&mut lost, e.into())?;
                    replies = None;
                }
                Wake::Reply(Err(e)) => return Err(self.with_way_back(e.into())),
            }
        }
    }

    /// Says that the agent is lost, or gives up when it has been for too long.
    fn lose(&mut self, lost: &mut Option<(Instant, Duration)>, error: Error) -> Result<(), Error> {
        match lost {
            Some((since, _)) if since.elapsed() >= self.search => return Err(self.with_way_back(error)),
            Some(_) => {}
            None => {
                *lost = Some((Instant::now(), PAUSE.0));
                let seconds = self.search.as_secs();
                let text =
                    format!("{error}; the migration goes on, trying to follow it again for {seconds} s");
                self.view.notice(&text);
            }
        }
        Ok(())
    }

    /// Opens a new watch. `None`: interrupted.
    async fn find_again(&mut self, lost: &mut Option<(Instant, Duration)>) -> Result<Option<Replies>, Error> {
        let (migration, from_seq) = (self.subject.migration, self.seen + 1);
        loop {
            if let Some((_, pause)) = lost {
                let wait = *pause;
                *pause = (*pause * 2).min(PAUSE.1);
                tokio::select! {
                    biased;
                    _ = self.interrupts.next() => return Ok(None),
                    () = tokio::time::sleep(wait) => {}
                }
            }
            let opened = tokio::select! {
                biased;
                _ = self.interrupts.next() => return Ok(None),
                r = self.agent.open(Request::Watch { migration, from_seq }) => r,
            };
            let error = match opened {
                Ok(replies) => return Ok(Some(replies)),
                Err(e) => e,
            };
            match lost {
                Some((since, _)) if error.is_lost() && since.elapsed() < self.search => {}
                _ => return Err(self.with_way_back(error.into())),
            }
        }
    }

    fn with_way_back(&self, mut error: Error) -> Error {
        let follow = follow_hint(self.subject);
        error.failure.hint = Some(match error.failure.hint.take() {
            Some(hint) => format!("{hint}; {follow}"),
            None => follow,
        });
        error.migration = Some(self.subject.migration);
        error
    }

    fn detach(&mut self, asked: bool) -> Outcome {
        self.view.close();
        let cancel = if asked {
            "cancellation was asked for and may still take place"
        } else {
            "the migration goes on"
        };
        self.view.notice(&format!("detached: {cancel}; {}", follow_hint(self.subject)));
        Outcome::Detached
    }
}

/// How to see a migration again.
pub fn follow_hint(subject: &Subject) -> String {
    format!("follow it with `tranship watch {}` on {}", subject.migration.short(), subject.source)
}

async fn answer(cancel: &mut Option<JoinHandle<Result<Reply, ClientError>>>) -> Result<Reply, ClientError> {
    match cancel {
        Some(task) => task.await.unwrap_or_else(|e| {
            Err(ClientError::Closed { peer: "the request to cancel".into(), why: e.to_string() })
        }),
        None => std::future::pending().await,
    }
}

fn cancel_words(answer: Result<Reply, ClientError>) -> Option<String> {
    match answer {
        Ok(_) => None,
        Err(ClientError::Refused(f)) if f.reason == Reason::TooLate => Some(
            "too late to cancel: the container is already given away, and the migration will be completed"
                .into(),
        ),
        Err(e) => Some(format!("cannot cancel: {e}")),
    }
}
