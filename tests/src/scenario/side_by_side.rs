//! Scenarios in several labs at a time: most of one is waiting, for a link that is cut or a client.
//!
//! Each scenario is a process of its own, so that what it prints can be shown as a whole, and one that
//! breaks down counts as failed and no more. A lab goes from one process to the next.

use super::{Scenario, Tally};
use crate::lab::Lab;
use crate::names::LabName;
use crate::{image, progress};
use anyhow::Context;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

/// Runs the scenarios, the last and longest ones first, and removes the labs unless `keep` says so.
pub fn run(exe: &Path, labs: &[LabName], scenarios: &[&Scenario], keep: bool) -> anyhow::Result<Tally> {
    // Two that need the same image would both build it.
    for name in scenarios.iter().flat_map(|s| s.images) {
        let packages: Vec<String> = super::packages(name).iter().map(|p| (*p).to_owned()).collect();
        image::build(name, &packages, &progress::Terminal::default())?;
    }
    let waiting = Mutex::new(scenarios.to_vec());
    let tally = Mutex::new(Tally::default());
    std::thread::scope(|threads| {
        for lab in labs {
            let (waiting, tally) = (&waiting, &tally);
            threads.spawn(move || {
                while let Some(scenario) = lock(waiting).pop() {
                    let result = one(exe, lab, scenario);
                    // Held while printing: what one scenario says stays together.
                    let mut tally = lock(tally);
                    match result {
                        Ok((true, said)) => {
                            tally.passed += 1;
                            print!("{said}");
                        }
                        Ok((false, said)) => {
                            tally.failed += 1;
                            print!("{said}");
                        }
                        Err(e) => {
                            tally.failed += 1;
                            println!("scenario {} ... FAILED\n  {e:#}", scenario.name);
                        }
                    }
                }
            });
        }
    });
    for lab in labs.iter().filter(|_| !keep) {
        if let Ok(lab) = Lab::attach(lab) {
            lab.down()?;
        }
    }
    Ok(*lock(&tally))
}

/// Whether a scenario held, and what it said.
fn one(exe: &Path, lab: &LabName, scenario: &Scenario) -> anyhow::Result<(bool, String)> {
    let mut command = Command::new(exe);
    command.args(["scenario", "--keep", "--exact", "--lab", &lab.to_string(), scenario.name]);
    let ended = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("starting it")?;
    Ok((ended.status.success(), String::from_utf8_lossy(&ended.stdout).into_owned()))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
