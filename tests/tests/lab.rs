//! The scenarios as a cargo test: `cargo test -p tranship-lab --test lab [WORD..]`, as root.
//!
//! A harness of its own, because all scenarios share one lab and run one after the other.
//! `--list` lists them; words choose scenarios by name; `TRANSHIP_LAB_KEEP=1` leaves the lab up.

use std::path::PathBuf;
use std::process::ExitCode;
use tranship_lab::scenario::{self, Scene};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|a| a == "--list") {
        // What `cargo nextest list` expects; nothing is ignored.
        if !args.iter().any(|a| a == "--ignored") {
            for scenario in scenario::ALL {
                println!("{}: test", scenario.name);
            }
        }
        return ExitCode::SUCCESS;
    }
    if !nix::unistd::Uid::effective().is_root() {
        println!("the scenarios need root: nothing was tested");
        println!("0 passed, 0 failed");
        return ExitCode::SUCCESS;
    }
    let filters: Vec<String> = args.into_iter().filter(|a| !a.starts_with('-')).collect();
    let exe = PathBuf::from(env!("CARGO_BIN_EXE_tranship-lab"));
    let mut scene = match Scene::new("tests", 3, exe) {
        Ok(scene) => scene,
        Err(e) => {
            println!("the lab cannot be made: {e:#}");
            return ExitCode::FAILURE;
        }
    };
    let tally = scenario::run(&mut scene, &scenario::chosen(&filters));
    println!("{tally}");
    if std::env::var_os("TRANSHIP_LAB_KEEP").is_none()
        && let Err(e) = scene.lab().down()
    {
        println!("the lab cannot be removed: {e}");
        return ExitCode::FAILURE;
    }
    if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
