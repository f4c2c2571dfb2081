//! `tranship migrate`, also installed as `migrate`

use super::{Context, container};
use crate::client::Replies;
use crate::error::Error;
use crate::exit;
use crate::fleet::Located;
use crate::follow::{Follow, Interrupt, Interrupts, Outcome, SEARCH, follow_hint};
use crate::output::clean;
use crate::progress::{Subject, View, summary_text, view};
use crate::spec;
use serde_json::json;
use std::time::Duration;
use tranship_proto::control::{MigrateOptions, MigrateRequest, Reply, Request};
use tranship_proto::handoff::MemoryMode;
use tranship_proto::ids::{ContainerName, HostName};
use tranship_proto::status::Reason;

/// How long an agent may take to accept or to refuse, or to make a plan: it asks the destination
/// and probes the segment for addresses in use.
const FIRST_ANSWER: Duration = Duration::from_secs(120);

pub(super) fn help_end(alone: bool) -> String {
    let me = if alone { "migrate" } else { "tranship migrate" };
    format!(
        "Examples:\n  {me} web --to host-b\n  {me} web --to host-b --dry-run\n  {me} web --to host-b --bandwidth 100M\n  {me} db --from host-a --to host-c \
         --output json\n  {me} web --to host-b --detach\n\n{}",
        exit::help()
    )
}

fn host(text: &str) -> Result<HostName, String> {
    text.parse().map_err(|e| format!("{e}"))
}

/// Move a running container to another host
///
/// The container keeps its memory, open files, connections, IP and MAC addresses. Everything that
/// can be checked is checked before anything is touched; a migration that fails later leaves the
/// container running where it was.
///
/// Progress is shown on stderr, the summary on stdout. Ctrl-C asks for cancellation, which works
/// until the point of commit; a second Ctrl-C leaves the migration running and detaches. The
/// migration belongs to the two agents: when this command dies, it goes on.
#[derive(Debug, clap::Args)]
#[command(after_long_help = help_end(false))]
pub struct Migrate {
    /// The container
    #[arg(value_name = "NAME", value_parser = container)]
    name: ContainerName,
    /// Where to
    #[arg(long, value_name = "HOST", value_parser = host)]
    to: HostName,
    /// Where it is now [default: this host, else the host of the inventory that has it]
    #[arg(long, value_name = "HOST", value_parser = host, conflicts_with = "host")]
    from: Option<HostName>,
    /// Check everything, and print what would be done
    #[arg(long)]
    dry_run: bool,
    /// Return as soon as the migration is accepted
    #[arg(long, conflicts_with = "dry_run")]
    detach: bool,
    /// Send at most so many bytes per second, for example 500K, 100M, 2G (powers of 1000)
    #[arg(long, value_name = "RATE", value_parser = spec::rate)]
    bandwidth: Option<u64>,
    /// How memory travels: in rounds while the container runs (fast), or all of it while it is frozen
    #[arg(long, value_name = "MODE", value_enum, default_value_t = Mode::Fast)]
    mode: Mode,
    /// Freeze only when the blackout is predicted to be no longer than this, for example 500ms
    #[arg(long, value_name = "TIME", value_parser = spec::duration)]
    max_blackout: Option<Duration>,
    /// Leave the container running here if it is not frozen within this time, for example 60s
    #[arg(long, value_name = "TIME", value_parser = spec::duration)]
    timeout: Option<Duration>,
    /// Show only the summary
    #[arg(long)]
    no_progress: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Mode {
    Fast,
    Plain,
}

impl Migrate {
    fn options(&self) -> MigrateOptions {
        MigrateOptions {
            bandwidth: self.bandwidth,
            mode: match self.mode {
                Mode::Fast => MemoryMode::Fast,
                Mode::Plain => MemoryMode::Plain,
            },
            max_blackout_ms: self.max_blackout.map(|d| u32::try_from(d.as_millis()).unwrap_or(u32::MAX)),
            timeout_s: self.timeout.map(|d| {
                let whole = d.as_secs() + u64::from(d.subsec_nanos() > 0);
                u32::try_from(whole).unwrap_or(u32::MAX)
            }),
        }
    }

    pub(super) async fn execute(self, context: &Context) -> Result<u8, Error> {
        if self.from.as_ref() == Some(&self.to) {
            return Err(same_host(&self.name, &self.to));
        }
        let Located { agent, row } = context.fleet.locate(&self.name, self.from.as_ref()).await?;
        if row.host == self.to {
            return Err(same_host(&self.name, &self.to));
        }
        self.options().check().map_err(|e| Error::usage(e.to_string()))?;
        let mut interrupts = Interrupts::new()?;
        let request = MigrateRequest {
            container: self.name.clone(),
            to: self.to.clone(),
            dry_run: self.dry_run,
            options: self.options(),
        };
        let mut replies = agent.open(Request::Migrate(request)).await?;
        let first = tokio::select! {
            r = tokio::time::timeout(FIRST_ANSWER, replies.next()) => match r {
                Ok(reply) => reply?,
                Err(_) => {
                    let silent = crate::client::ClientError::Silent { peer: agent.name(), after: FIRST_ANSWER };
                    return Err(Error::from(silent).hint("whether it has begun is shown by `tranship status` there"));
                }
            },
            i = interrupts.next() => return left_early(i, row.host.as_str()),
        };
        let migration = match first {
            Reply::Accepted { migration } => migration,
            Reply::Plan(steps) => return Ok(self.plan(context, &row.host, &steps)),
            Reply::Failed(failure) => return Err(failure.into()),
            other => return Err(agent.unexpected(&other, "Accepted").into()),
        };
        let subject = Subject {
            migration,
            container: self.name.to_string(),
            source: row.host.to_string(),
            destination: self.to.to_string(),
        };
        let mut view = view(context.output, self.no_progress);
        view.accepted(&subject);
        if self.detach {
            return Ok(detached(context, &subject, &mut *view, replies));
        }
        let follow = Follow {
            agent: agent.clone(),
            subject: &subject,
            view: &mut *view,
            interrupts: &mut interrupts,
            seen: 0,
            search: SEARCH,
        };
        let outcome = follow.run(Some(replies)).await?;
        agent.close().await;
        conclude(context, &subject, outcome)
    }

    fn plan(&self, context: &Context, source: &HostName, steps: &[String]) -> u8 {
        if context.output.is_json() {
            let fields = json!({
                "container": self.name, "source": source, "destination": self.to, "steps": steps,
            });
            context.output.json("plan", &fields);
        } else {
            context.output.text(&format!("{} would be moved from {source} to {}:", self.name, self.to));
            for step in steps {
                context.output.text(&format!("  {}", clean(step)));
            }
        }
        exit::DONE
    }
}

fn same_host(name: &ContainerName, host: &HostName) -> Error {
    Error::usage(format!("container {name} is on {host} already: destination and source are the same host"))
        .hint("`tranship hosts` lists the others")
}

fn left_early(interrupt: Interrupt, host: &str) -> Result<u8, Error> {
    let word = if interrupt == Interrupt::Key { "interrupted" } else { "terminated" };
    eprintln!(
        "{word} before the migration was accepted; whether it has begun is shown by `tranship status` on {host}"
    );
    Ok(exit::DETACHED)
}

fn detached(context: &Context, subject: &Subject, view: &mut dyn View, replies: Replies) -> u8 {
    drop(replies);
    if context.output.is_json() {
        return exit::DONE;
    }
    context.output.text(&subject.migration.to_string());
    view.notice(&follow_hint(subject));
    exit::DONE
}

/// Prints how a migration ended, and answers its exit code.
pub(super) fn conclude(context: &Context, subject: &Subject, outcome: Outcome) -> Result<u8, Error> {
    match outcome {
        Outcome::Done(summary) => {
            if context.output.is_json() {
                let fields = json!({
                    "state": "done", "exit_code": exit::DONE, "migration": subject.migration, "container": subject.container,
                    "source": subject.source, "destination": subject.destination, "summary": summary,
                });
                context.output.json("result", &fields);
            } else {
                context.output.text(&summary_text(subject, &summary));
            }
            Ok(exit::DONE)
        }
        Outcome::Failed(failure) => {
            let reason = failure.reason;
            let in_doubt = reason == Reason::InDoubt;
            let mut error = Error::from(failure);
            error.migration = Some(subject.migration);
            // Where the container is now is what the operator has to know first.
            let (container, source) = (&subject.container, &subject.source);
            error.causes.push(match reason {
                Reason::InDoubt => format!(
                    "{container} was given to {} and is not confirmed; it runs nowhere else",
                    subject.destination
                ),
                Reason::Ended => format!("{container} is stopped, on {source}"),
                _ => format!("{container} runs on {source} as before"),
            });
            Err(if in_doubt { error.hint(follow_hint(subject)) } else { error })
        }
        Outcome::Detached => Ok(exit::DETACHED),
    }
}
