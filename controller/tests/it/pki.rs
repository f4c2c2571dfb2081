//! `tranship pki` as a command.

use crate::command::tranship;
use std::os::unix::fs::PermissionsExt;

#[test]
fn a_fleet_is_made_in_three_commands_and_nothing_is_lost_by_repeating_one() {
    let root = tempfile::tempdir().unwrap();
    let path = |p: &str| root.path().join(p).to_str().unwrap().to_owned();
    let dir = path("pki");
    tranship(&["pki", "init", "--dir", &dir]).expect(0, &["tranship CA, valid until"]);
    let ca = std::fs::read(path("pki/ca.key")).unwrap();
    tranship(&["pki", "init", "--dir", &dir]).expect(2, &["ca.key is there already", "--force"]);
    assert_eq!(std::fs::read(path("pki/ca.key")).unwrap(), ca);
    tranship(&["pki", "issue", "--dir", &dir, "--agent", "host-a", "--ip", "10.77.0.1", "--ip", "fd77::1"])
        .expect(0, &["tranship://agent/host-a"]);
    tranship(&["pki", "issue", "--dir", &dir, "--operator", "alice", "--days", "30"])
        .expect(0, &["operator-alice.key"]);
    for key in ["pki/ca.key", "pki/agent-host-a.key", "pki/operator-alice.key"] {
        assert_eq!(std::fs::metadata(path(key)).unwrap().permissions().mode() & 0o777, 0o600, "{key}");
    }
    tranship(&["pki", "issue", "--dir", &dir, "--agent", "host-a"]).expect(2, &["is there already"]);
    tranship(&["pki", "issue", "--dir", &dir, "--agent", "host-a", "--force"]).expect(0, &[]);

    // Both kinds of files into one directory, as a lab host has them.
    let out = path("etc");
    for whom in [["--agent", "host-a"], ["--operator", "root"]] {
        tranship(&[&["pki", "issue", "--dir", &dir, "--out", &out], &whom[..]].concat()).expect(0, &[]);
    }
    let mut names: Vec<_> =
        std::fs::read_dir(&out).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["ca.pem", "host.key", "host.pem", "operator.key", "operator.pem"]);
    let r =
        tranship(&["pki", "issue", "--dir", &dir, "--operator", "bob", "--output", "json"]).expect(0, &[]);
    let o = &r.json()[0];
    assert_eq!((o["schema"].as_u64(), o["type"].as_str()), (Some(1), Some("certificate")));
}

#[test]
fn bad_requests_are_refused_in_words() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().to_str().unwrap();
    for (args, code, words) in [
        (&["--agent", "host-a"][..], 1, "cannot read"),
        (&["--agent", "Host_A"], 2, "host name"),
        (&["--operator", "../x"], 2, "starting with a letter"),
        (&["--operator", "a", "--agent", "b"], 2, "cannot be used with"),
        (&["--operator", "a", "--ip", "10.0.0.1"], 2, "cannot be used with"),
        (&["--agent", "a", "--days", "0"], 2, "0 is not in 1..="),
        (&["--agent", "a", "--ip", "10.0.0"], 2, "invalid"),
        (&[], 2, "--agent"),
    ] {
        tranship(&[&["pki", "issue", "--dir", dir], args].concat()).expect(code, &[words]);
    }
    std::fs::write(root.path().join("ca.pem"), "x").unwrap();
    std::fs::write(root.path().join("ca.key"), "x").unwrap();
    tranship(&["pki", "issue", "--dir", dir, "--agent", "a"])
        .expect(1, &["ca.key is not a usable key", "hint: "]);
}
