//! nginx, sending a large file over kept-alive connections while it is moved.

use super::scene::{Container, Scene};
use anyhow::{Context, ensure};
use std::time::Duration;

const BLOB: u64 = 20 << 20;
const START: &str = "head -c 20971520 /dev/urandom >/srv/blob; \
    mkdir -p /var/lib/nginx/body /run; \
    printf '%s' \"$0\" >/srv/nginx.conf; \
    exec nginx -c /srv/nginx.conf";
const CONFIG: &str = "daemon off; user root; worker_processes 2; pid /run/nginx.pid; error_log stderr;\n\
    events { worker_connections 256; }\n\
    http { access_log off; sendfile on; keepalive_timeout 3600; keepalive_requests 1000000;\n\
    client_body_temp_path /tmp/b; proxy_temp_path /tmp/p; fastcgi_temp_path /tmp/f;\n\
    uwsgi_temp_path /tmp/u; scgi_temp_path /tmp/s;\n\
    server { listen 80; root /srv; } }\n";

/// Four clients fetch on through three moves: same bytes, same connections.
pub(super) fn keepalive(scene: &mut Scene) -> anyhow::Result<()> {
    scene.start("host-a", &Container::new("web", "web", "10.77.1.5/16", &["sh", "-c", START, CONFIG]))?;
    scene.wait_port("10.77.1.5", 80)?;
    let blob = scene.host("host-a")?.path("/var/lib/tranship/containers/web/rootfs/srv/blob");
    let bytes = std::fs::read(&blob).with_context(|| format!("reading {}", blob.display()))?;
    ensure!(bytes.len() as u64 == BLOB, "the file has {} bytes", bytes.len());
    let digest = blake3::hash(&bytes).to_hex().to_string();
    drop(bytes);
    let size = BLOB.to_string();
    let args =
        ["http", "--addr", "10.77.1.5:80", "--bytes", &size, "--digest", &digest, "--connections", "4"];
    let mut client = scene.load(&args)?;
    std::thread::sleep(Duration::from_millis(300));
    for (from, to) in [("host-a", "host-b"), ("host-b", "host-c"), ("host-c", "host-a")] {
        client.mark("move")?;
        scene.migrate(from, "web", to)?;
        std::thread::sleep(Duration::from_millis(1500));
        let window = client.mark("between")?;
        ensure!(
            window.failures == 0,
            "a fetch failed; see the client's report: {:?}",
            client.stop()?.failures
        );
        ensure!(window.replies > 0, "no fetch ended in {} ms around the move", window.length_us / 1000);
        println!(
            "  {from} to {to}: {} fetches, longest silence {} ms",
            window.replies,
            window.longest_gap_us / 1000
        );
    }
    let report = client.stop()?;
    ensure!(report.failures.is_empty(), "{:?}", report.failures);
    ensure!(report.connections == 4 && report.replies >= 8, "{} fetches", report.replies);
    ensure!(report.bytes == report.replies * BLOB, "{} bytes in {} fetches", report.bytes, report.replies);
    Ok(())
}
