//! PostgreSQL under pgbench: several processes, shared memory, files that change all the time,
//! and a client that knows how much it wrote.

use super::bounded::{self, Ended, Running};
use super::scene::{Container, Scene};
use anyhow::{Context, ensure};
use std::path::Path;
use std::time::Duration;

const IP: &str = "10.77.1.6";
const START: &str = "B=$(echo /usr/lib/postgresql/*/bin); D=/srv/pg; set -e; \
    install -d -o postgres -g postgres -m 700 $D; \
    as() { setpriv --reuid=postgres --regid=postgres --clear-groups \"$@\"; }; \
    as $B/initdb -D $D -A trust -E UTF8 --locale=C >/dev/null; \
    echo 'host all all 0.0.0.0/0 trust' >>$D/pg_hba.conf; \
    exec setpriv --reuid=postgres --regid=postgres --clear-groups $B/postgres -D $D \
      -c listen_addresses='*' -c unix_socket_directories=/tmp -c shared_buffers=64MB";
/// The four numbers that have to agree: three balances and the history's sum.
const SUMS: &str = "select (select sum(abalance) from pgbench_accounts), \
    (select sum(bbalance) from pgbench_branches), (select sum(tbalance) from pgbench_tellers), \
    (select coalesce(sum(delta), 0) from pgbench_history), (select count(*) from pgbench_history)";

/// Three moves under load, after one that shows how long the load has to last.
pub(super) fn pgbench(scene: &mut Scene) -> anyhow::Result<()> {
    let image = scene.image("postgres")?;
    scene.start("host-a", &Container::new("pg", "postgres", "10.77.1.6/16", &["sh", "-c", START]))?;
    scene.wait_port(IP, 5432)?;
    scene.wait_for("the database accepting statements", Duration::from_secs(60), || {
        Ok(psql(scene, &image, "select 1").is_ok_and(|out| out.trim() == "1"))
    })?;
    client(scene, &image, &["pgbench", "-h", IP, "-U", "postgres", "-i", "-q", "-s", "4", "postgres"])?
        .ok()?;
    let rehearsal = scene.migrate("host-a", "pg", "host-b")?;
    let seconds = (rehearsal.took * 8 + Duration::from_secs(20)).as_secs().to_string();
    let load = start(
        scene,
        &image,
        &[
            "pgbench", "-h", IP, "-U", "postgres", "-n", "-c", "8", "-j", "2", "-R", "300", "-T", &seconds,
            "postgres",
        ],
    )?;
    std::thread::sleep(Duration::from_secs(1));
    let mut load = Some(load);
    for (from, to) in [("host-b", "host-c"), ("host-c", "host-a"), ("host-a", "host-b")] {
        let moved = scene.migrate(from, "pg", to)?;
        println!("  {from} to {to}: {:.2} s", moved.took.as_secs_f64());
        ensure!(load.as_mut().is_some_and(|l| !l.has_ended()), "pgbench ended before the three moves did");
        std::thread::sleep(Duration::from_millis(500));
    }
    let ended = load.take().context("pgbench was started")?.finish(Duration::from_secs(600))?;
    let done = transactions(&ended)?;
    let sums = psql(scene, &image, SUMS)?;
    let numbers: Vec<i64> =
        sums.trim().split('|').map(str::parse).collect::<Result<_, _>>().context(sums.clone())?;
    println!("  {done} transactions, sums {sums}");
    ensure!(numbers.len() == 5, "the sums are {sums:?}");
    ensure!(numbers.iter().take(4).all(|n| n == &numbers[0]), "the sums do not agree: {sums}");
    ensure!(numbers[4] == done, "pgbench made {done} transactions, the history has {} rows", numbers[4]);
    ensure!(done > 100, "only {done} transactions");
    // Every page and every index entry of the database.
    let check =
        ["pg_amcheck", "-h", IP, "-U", "postgres", "--install-missing", "--heapallindexed", "postgres"];
    client(scene, &image, &check)?.ok()?;
    Ok(())
}

/// Transactions that pgbench says it made; an error if it says that any failed.
fn transactions(ended: &Ended) -> anyhow::Result<i64> {
    let said = ended.said();
    ensure!(ended.code == Some(0), "pgbench ended with {:?}: {said}", ended.code);
    for word in ["aborted", "error:", "ERROR", "server closed"] {
        ensure!(!ended.stderr.contains(word), "pgbench said: {said}");
    }
    let number = |label: &str| -> Option<i64> {
        let line = ended.stdout.lines().find(|l| l.starts_with(label))?;
        line.get(label.len()..)?.trim().split([' ', '/']).next()?.parse().ok()
    };
    let failed = number("number of failed transactions:");
    ensure!(failed == Some(0), "failed transactions: {failed:?}; {said}");
    number("number of transactions actually processed:")
        .with_context(|| format!("no count of transactions in {said}"))
}

fn psql(scene: &Scene, image: &Path, statement: &str) -> anyhow::Result<String> {
    client(scene, image, &["psql", "-h", IP, "-U", "postgres", "-XAtq", "-c", statement, "postgres"])?.ok()
}

/// Runs a program of PostgreSQL's in the client namespace, out of the image.
fn client(scene: &Scene, image: &Path, args: &[&str]) -> anyhow::Result<Ended> {
    start(scene, image, args)?.finish(Duration::from_secs(120))
}

fn start(scene: &Scene, image: &Path, args: &[&str]) -> anyhow::Result<Running> {
    let image = image.to_string_lossy().into_owned();
    // The wrappers in /usr/bin are Perl; the programs themselves are below the version.
    let script = "PATH=$(echo /usr/lib/postgresql/*/bin):$PATH; export LC_ALL=C; exec \"$@\"";
    let mut all = vec!["chroot", image.as_str(), "sh", "-c", script, "sh"];
    all.extend_from_slice(args);
    bounded::Running::start(args.join(" "), scene.lab().client_command(all)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(stdout: &str, stderr: &str) -> Ended {
        Ended {
            what: "pgbench".into(),
            code: Some(0),
            stdout: stdout.into(),
            stderr: stderr.into(),
            took: Duration::ZERO,
        }
    }

    #[test]
    fn transactions_are_read_and_failures_noticed() {
        let good =
            "number of transactions actually processed: 812\nnumber of failed transactions: 0 (0.000%)\n";
        assert_eq!(transactions(&ended(good, "")).unwrap(), 812);
        let fixed =
            "number of transactions actually processed: 80/80\nnumber of failed transactions: 0 (0.000%)\n";
        assert_eq!(transactions(&ended(fixed, "")).unwrap(), 80);
        assert!(transactions(&ended(&good.replace(": 0 (", ": 2 ("), "")).is_err());
        assert!(transactions(&ended(good, "pgbench: error: client 3 aborted in command 8")).is_err());
    }
}
