//! Running programs: on the machine, in a host, in the client namespace.

use std::ffi::OsStr;
use std::io::Write;
use std::process::{Child, Command, ExitStatus, Stdio};

use crate::error::{LabError, Result};
use crate::sys::Entrance;

/// How a program ended and what it wrote.
#[derive(Debug, Clone)]
pub struct Output {
    /// The program with its arguments, for messages.
    pub what: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output; bytes that are not UTF-8 are replaced.
    pub stdout: String,
    /// Standard error, likewise.
    pub stderr: String,
}

impl Output {
    /// Whether it exited with 0.
    #[must_use]
    pub fn success(&self) -> bool {
        self.status.success()
    }

    /// Its standard output, or an error that shows its standard error when it did not exit with 0.
    pub fn ok(self) -> Result<String> {
        if self.success() {
            return Ok(self.stdout);
        }
        let told = if self.stderr.trim().is_empty() { &self.stdout } else { &self.stderr };
        Err(LabError::Command {
            what: self.what,
            status: self.status.to_string(),
            stderr: last_chars(told.trim(), 4000).to_owned(),
        })
    }
}

/// The last `max` bytes or a little fewer, cut at a character.
pub(crate) fn last_chars(text: &str, max: usize) -> &str {
    let mut start = text.len().saturating_sub(max);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

/// A program about to be started inside the lab.
///
/// In a host it gets a clean environment (PATH, HOME, LANG and what [`LabCommand::env`] adds); in
/// the client namespace it keeps the caller's, with the lab's programs first in PATH.
#[derive(Debug)]
pub struct LabCommand {
    what: String,
    command: Command,
    entrance: Entrance,
}

impl LabCommand {
    pub(crate) fn new<I>(place: &str, args: I, entrance: Entrance) -> Result<Self>
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        let mut args = args.into_iter();
        let program = args.next().ok_or_else(|| LabError::Invalid {
            what: format!("no program to run on {place}"),
            hint: "name one after `--`".into(),
        })?;
        let mut command = Command::new(program.as_ref());
        command.args(args);
        Ok(Self { what: format!("{place}: {}", describe(&command)), command, entrance })
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    pub(crate) fn env_clear(mut self) -> Self {
        self.command.env_clear();
        self
    }

    /// Standard input; nothing by default.
    #[must_use]
    pub fn stdin(mut self, stdio: impl Into<Stdio>) -> Self {
        self.command.stdin(stdio);
        self
    }

    /// Standard output.
    #[must_use]
    pub fn stdout(mut self, stdio: impl Into<Stdio>) -> Self {
        self.command.stdout(stdio);
        self
    }

    /// Standard error.
    #[must_use]
    pub fn stderr(mut self, stdio: impl Into<Stdio>) -> Self {
        self.command.stderr(stdio);
        self
    }

    /// Starts it. Streams that were not set are inherited.
    ///
    /// The child is the program itself, so `kill` and `wait` act on it. A child that has ended
    /// and was not waited for keeps the host's process namespace alive; wait for it or drop the lab.
    pub fn spawn(self) -> Result<Child> {
        let Self { what, command, entrance } = self;
        entrance.spawn(command, false).map_err(LabError::system(format!("start {what}")))
    }

    /// Runs it to its end. Streams that were not set are inherited.
    pub fn status(self) -> Result<ExitStatus> {
        let what = self.what.clone();
        self.spawn()?.wait().map_err(LabError::system(format!("wait for {what}")))
    }

    /// For a process that does nothing else: runs the program in its place as far as can be.
    /// Ctrl-C goes to the program alone, and the program is killed if this process ends first.
    /// The calling thread can start no other program on the machine afterwards.
    pub(crate) fn instead_of_self(self) -> Result<ExitStatus> {
        let Self { what, command, entrance } = self;
        let mut child = entrance.spawn(command, true).map_err(LabError::system(format!("start {what}")))?;
        crate::sys::ignore_interrupts();
        child.wait().map_err(LabError::system(format!("wait for {what}")))
    }

    /// Runs it to its end and collects what it writes.
    pub fn run(self) -> Result<Output> {
        self.run_with_input(None)
    }

    /// Runs it to its end, with `input` at its standard input.
    pub fn run_with_input(self, input: Option<&[u8]>) -> Result<Output> {
        let Self { what, mut command, entrance } = self;
        command
            .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let child = entrance.spawn(command, false).map_err(LabError::system(format!("start {what}")))?;
        collect(what, child, input)
    }
}

fn describe(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        text.push(' ');
        text.push_str(&arg.to_string_lossy());
    }
    if text.len() > 200 {
        let mut end = 200;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push_str("...");
    }
    text
}

fn collect(what: String, mut child: Child, input: Option<&[u8]>) -> Result<Output> {
    let stdin = child.stdin.take();
    let output = std::thread::scope(|scope| {
        if let (Some(mut stdin), Some(input)) = (stdin, input) {
            // A program that does not read all of its input is not an error.
            scope.spawn(move || drop(stdin.write_all(input)));
        }
        child.wait_with_output()
    })
    .map_err(LabError::system(format!("wait for {what}")))?;
    Ok(Output {
        what,
        status: output.status,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// Runs a program of the machine itself, such as ip(8), and collects what it writes.
pub(crate) fn tool(args: &[&str], input: Option<&str>) -> Result<Output> {
    let (program, rest) = args
        .split_first()
        .ok_or_else(|| LabError::Invalid { what: "no program to run".into(), hint: String::new() })?;
    let mut command = Command::new(program);
    command
        .args(rest)
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let what = describe(&command);
    let child = command.spawn().map_err(|source| {
        if source.kind() == std::io::ErrorKind::NotFound {
            LabError::Missing {
                what: format!("the program {program} is not installed"),
                hint: "install what the lab needs: `apt-get install debootstrap iproute2 nftables`".into(),
            }
        } else {
            LabError::System { what: format!("start {what}"), source }
        }
    })?;
    collect(what, child, input.map(str::as_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_program_shows_its_words() {
        let output = tool(&["sh", "-c", "cat; echo why >&2; exit 3"], Some("text")).unwrap();
        assert_eq!(output.stdout, "text");
        let error = output.ok().unwrap_err().to_string();
        assert!(error.contains("why") && error.contains('3'), "{error}");
    }

    #[test]
    fn a_missing_program_has_a_hint() {
        let error = tool(&["no-such-program-anywhere"], None).unwrap_err();
        assert!(error.hint().unwrap().contains("apt-get"));
    }

    #[test]
    fn the_end_of_a_text_is_cut_at_a_character() {
        assert_eq!(last_chars("aäb", 2), "b");
        assert_eq!(last_chars("ab", 9), "ab");
    }
}
