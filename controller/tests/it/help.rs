//! How the help reads. `TRANSHIP_BLESS=1 cargo test -p tranship` writes the snapshots anew.

use crate::command::{MIGRATE, start, tranship};
use std::path::Path;

const COMMANDS: &[&[&str]] = &[
    &[],
    &["migrate"],
    &["run"],
    &["ps"],
    &["inspect"],
    &["logs"],
    &["stop"],
    &["rm"],
    &["hosts"],
    &["status"],
    &["history"],
    &["watch"],
    &["cancel"],
    &["resolve"],
    &["drill"],
    &["pki"],
    &["pki", "init"],
    &["pki", "issue"],
    &["completion"],
    &["man"],
];

#[test]
fn help_is_as_it_was() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/help.txt");
    let mut text = String::new();
    for command in COMMANDS {
        let shown = tranship(&[command, &["--help"][..]].concat()).expect(0, &["Usage: tranship"]);
        text.push_str(&format!(
            "$ {}\n\n{}\n\n",
            [&["tranship"], *command, &["--help"]].concat().join(" "),
            shown.out
        ));
    }
    if std::env::var_os("TRANSHIP_BLESS").is_some() {
        std::fs::write(&file, &text).unwrap();
    }
    let expected = std::fs::read_to_string(&file).unwrap_or_default();
    for (i, (a, b)) in expected.lines().zip(text.lines()).enumerate() {
        assert_eq!(a, b, "line {} of {}", i + 1, file.display());
    }
    assert_eq!(expected.len(), text.len(), "{} has another length", file.display());
}

#[test]
fn short_help_is_one_screen_and_each_command_has_examples() {
    for command in COMMANDS {
        let short = tranship(&[command, &["-h"][..]].concat()).expect(0, &["Usage: "]);
        assert!(short.out.lines().count() <= 40, "{command:?} has {} lines", short.out.lines().count());
        tranship(&[command, &["--help"][..]].concat()).expect(0, &["Examples:", "--output"]);
    }
    let r = start(MIGRATE, &["--help"])
        .finish()
        .expect(0, &["Usage: migrate", "migrate web --to host-b", "Exit codes:"]);
    assert!(!r.out.contains("tranship migrate web"), "{r:#?}");
}

#[test]
fn usage_errors_are_code_2_and_json_too() {
    for args in [
        &["ps", "--nonsense"][..],
        &["migrate"],
        &["migrate", "web"],
        &["nonsense"],
        &["migrate", "Web", "--to", "b"],
    ] {
        tranship(args).expect(2, &["error: "]);
        let json: Vec<&str> = args.iter().copied().chain(["--output", "json"]).collect();
        let r = tranship(&json).expect(2, &[]);
        assert_eq!(
            (r.json()[0]["type"].as_str(), r.json()[0]["exit_code"].as_u64()),
            (Some("error"), Some(2))
        );
    }
    assert_eq!(tranship(&[]).code, 2);
    tranship(&["--version"]).expect(0, &["tranship 0.1.0"]);
}

#[test]
fn a_bad_configuration_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.toml");
    std::fs::write(&path, "[tls]\ncca = 'x'\n").unwrap();
    let args = ["ps", "--host", "host-b", "--config", path.to_str().unwrap()];
    tranship(&args).expect(2, &["c.toml is not valid", "cca", "hint: "]);
    std::fs::remove_file(&path).unwrap();
    tranship(&args).expect(1, &["cannot read the configuration", "No such file"]);
}

#[test]
fn pages_and_completions_are_made() {
    let dir = tempfile::tempdir().unwrap();
    let man = dir.path().join("man");
    tranship(&["man", "--dir", man.to_str().unwrap()]).expect(0, &[]);
    for page in ["tranship.1", "tranship-migrate.1", "tranship-pki-issue.1", "migrate.1"] {
        let text = std::fs::read_to_string(man.join(page)).unwrap_or_else(|e| panic!("{page}: {e}"));
        assert!(text.contains(".TH"), "{page}");
    }
    assert!(std::fs::read_to_string(man.join("migrate.1")).unwrap().contains("in doubt"));
    for shell in ["bash", "zsh", "fish"] {
        let r = tranship(&["completion", shell]).expect(0, &["migrate"]);
        assert!(r.out.len() > 1000);
    }
}
