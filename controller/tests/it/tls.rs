//! Each way in which two sides can dislike each other's certificates, in its own words.

use crate::agent::{Fake, Greeting, Step};
use crate::certs::{Leaf, TestCa};
use crate::command::{Result, tranship};
use rcgen::ExtendedKeyUsagePurpose as Usage;
use std::time::Duration;
use tranship_proto::control::Reply;

struct Case {
    fleet: TestCa,
    dir: tempfile::TempDir,
}

impl Case {
    fn new() -> Self {
        Self { fleet: TestCa::new("fleet"), dir: tempfile::tempdir().unwrap() }
    }

    fn ask(
        &self,
        fake: &Fake,
        server_ca: &TestCa,
        server: &Leaf,
        client_ca: &TestCa,
        client: &Leaf,
    ) -> Result {
        let running = fake.on_quic(server_ca, server, &self.fleet);
        let config = client_ca.operator_config(self.dir.path(), client, &[]);
        std::fs::write(self.dir.path().join("ca.pem"), &self.fleet.pem).unwrap();
        let host = format!("host-b={}", running.address());
        let result = tranship(&["ps", "--host", &host, "--config", config.to_str().unwrap()]);
        assert!(result.took < Duration::from_secs(10), "{result:#?}");
        result
    }
}

fn fake() -> Fake {
    Fake::new("host-b", |_| vec![Step::Say(Reply::Containers(vec![]))])
}

#[test]
fn good_certificates_on_both_sides_are_accepted() {
    let c = Case::new();
    c.ask(&fake(), &c.fleet, &Leaf::agent("host-b"), &c.fleet, &Leaf::operator()).expect(0, &["NAME"]);
}

#[test]
fn faults_of_the_hosts_certificate() {
    let c = Case::new();
    let (other, twin) = (TestCa::new("other"), TestCa::new("fleet"));
    let b = Leaf::agent("host-b");
    for (ca, leaf, words) in [
        (&c.fleet, b.clone().expired(), ["the certificate of host-b expired on 20", "hint: make a new one"]),
        (&c.fleet, b.clone().not_yet(), ["the certificate of host-b is not valid before 20", "date -u"]),
        (
            &other,
            b.clone(),
            ["the certificate of host-b is signed by another CA than", "hint: use the CA file"],
        ),
        (
            &twin,
            b.clone(),
            ["the certificate of host-b is signed by another CA than", "hint: use the CA file"],
        ),
        (&c.fleet, Leaf::agent("host-c"), ["shown for host-b is for ", "host-c"]),
        (&c.fleet, b.usages(vec![Usage::ClientAuth]), ["not made for servers", "pki issue"]),
    ] {
        let r = c.ask(&fake(), ca, &leaf, &c.fleet, &Leaf::operator()).expect(9, &words);
        assert!(r.err.starts_with("error: ") && r.err.contains("\nhint: "), "{r:#?}");
    }
}

#[test]
fn faults_of_the_operators_certificate_as_the_agent_sees_them() {
    let c = Case::new();
    let other = TestCa::new("other");
    let b = Leaf::agent("host-b");
    for (ca, leaf, words) in [
        (&c.fleet, Leaf::operator().expired(), ["host-b refuses the certificate", "it expired on 20"]),
        (
            &c.fleet,
            Leaf::operator().not_yet(),
            ["host-b refuses the certificate", "it is not valid before 20"],
        ),
        (&other, Leaf::operator(), ["host-b refuses the certificate", "not signed by the CA in"]),
        (
            &c.fleet,
            Leaf::operator().usages(vec![Usage::ServerAuth]),
            ["host-b refuses the certificate", "not made for clients"],
        ),
    ] {
        c.ask(&fake(), &c.fleet, &b, ca, &leaf)
            .expect(9, &words)
            .expect(9, &["op.pem", "hint: make a new one"]);
    }
}

#[test]
fn an_agent_that_trusts_another_ca_is_told_from_an_own_fault() {
    // Both certificates are good by the operator's CA; the agent's trust is elsewhere.
    let c = Case::new();
    let elsewhere = TestCa::new("elsewhere");
    let running = fake().on_quic(&c.fleet, &Leaf::agent("host-b"), &elsewhere);
    let config = c.fleet.operator_config(c.dir.path(), &Leaf::operator(), &[]);
    let host = format!("host-b={}", running.address());
    tranship(&["ps", "--host", &host, "--config", config.to_str().unwrap()]).expect(
        9,
        &["host-b refuses the certificate", "signed by a CA that is not trusted there", "trusts another CA"],
    );
}

#[test]
fn something_else_that_speaks_quic_is_not_taken_for_an_agent() {
    let c = Case::new();
    let at = "127.0.0.1:0".parse().unwrap();
    let running = fake().on_quic_at(at, &c.fleet, &Leaf::agent("host-b"), &c.fleet, b"h3");
    let config = c.fleet.operator_config(c.dir.path(), &Leaf::operator(), &[]);
    let host = format!("host-b={}", running.address());
    tranship(&["ps", "--host", &host, "--config", config.to_str().unwrap()])
        .expect(9, &["does not speak tranship", "hint: is it transhipd"]);
}

#[test]
fn versions_and_names_are_compared_after_the_handshake() {
    let c = Case::new();
    let (b, op) = (Leaf::agent("host-b"), Leaf::operator());
    c.ask(&fake().greeting(Greeting::NoShared(vec![7, 8])), &c.fleet, &b, &c.fleet, &op)
        .expect(9, &["protocol versions [7, 8]", "this command [1]", "fake 9", "same tranship release"]);
    c.ask(&fake().greeting(Greeting::Host("host-z")), &c.fleet, &b, &c.fleet, &op)
        .expect(9, &["host-b says that it is host-z", "correct the inventory"]);
    c.ask(
        &fake().greeting(Greeting::Close(0, "this certificate is no operator\u{1b}[2J")),
        &c.fleet,
        &b,
        &c.fleet,
        &op,
    )
    .expect(5, &["host-b closed the connection: this certificate is no operator\u{fffd}[2J"]);
    c.ask(&fake().greeting(Greeting::Close(1, "no role in it")), &c.fleet, &b, &c.fleet, &op).expect(
        9,
        &["host-b does not accept the certificate of this operator: no role in it", "pki issue --operator"],
    );
}

#[test]
fn a_host_that_is_not_there_is_told_soon() {
    let c = Case::new();
    let config =
        c.fleet.operator_config(c.dir.path(), &Leaf::operator(), &[("host-b", "127.0.0.1:1".into())]);
    let r = tranship(&["ps", "--host", "host-b", "--config", config.to_str().unwrap()])
        .expect(5, &["host-b does not answer at 127.0.0.1:1 (UDP)", "firewall"]);
    assert!(r.took < Duration::from_secs(10), "{r:#?}");
    tranship(&["ps", "--host", "host-x", "--config", config.to_str().unwrap()])
        .expect(2, &["no host host-x in the inventory", "did you mean host-b?"]);
    tranship(&["ps", "--host", "host-b=nonexistent.invalid:1", "--config", config.to_str().unwrap()])
        .expect(5, &["cannot find the address nonexistent.invalid:1 of host-b"]);
}

#[test]
fn certificate_files_that_cannot_be_used_are_named() {
    let c = Case::new();
    let config =
        c.fleet.operator_config(c.dir.path(), &Leaf::operator(), &[("host-b", "127.0.0.1:1".into())]);
    let args = ["ps", "--host", "host-b", "--config", config.to_str().unwrap()];
    let (_, other_key) = c.fleet.issue(&Leaf::operator());
    for (file, content, words) in [
        ("op.key", Some(other_key.as_str()), ["op.key", "key"]),
        ("op.key", Some("nonsense"), ["op.key", "no such PEM section"]),
        ("op.pem", Some(""), ["op.pem", "no certificate in it"]),
        ("ca.pem", None, ["ca.pem", "No such file"]),
    ] {
        let path = c.dir.path().join(file);
        let before = std::fs::read(&path).unwrap();
        match content {
            Some(text) => std::fs::write(&path, text).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
        tranship(&args).expect(9, &words).expect(9, &["hint: "]);
        std::fs::write(&path, before).unwrap();
    }
}
