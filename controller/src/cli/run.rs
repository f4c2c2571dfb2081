//! `tranship run`

use super::links::Links;
use super::{Context, container, order};
use crate::client::Target;
use crate::error::Error;
use crate::spec;
use std::path::{Path, PathBuf};
use tranship_proto::control::{Request, RootfsSpec, RunRequest, VolumeSpec};
use tranship_proto::ids::ContainerName;

const EXAMPLES: &str = "\
Examples:
  A Redis server with its data in a managed volume:
    tranship run --name cache --rootfs /srv/images/redis --net lan --ip 10.77.1.5/16 --ip fd77::1:5/64 \\
        --gateway 10.77.0.1 --volume cache-data:/var/lib/redis -- redis-server --dir /var/lib/redis

  Two networks, each with its own address:
    tranship run --name db --rootfs /srv/images/pg --net lan --ip 10.77.1.6/16 --net back --ip 10.78.1.6/16 \\
        --user 100:100 --env PGDATA=/data --volume /srv/pg:/data -- postgres

  An OCI bundle with the command line of its config.json:
    tranship run --name app --bundle /srv/bundles/app --net lan --ip 10.77.1.7/16
";

/// Start a container
///
/// Starts an OCI container under runc and conmon, in its own network namespace. The root file
/// system is copied first: the directory or bundle given is never changed.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES, override_usage = "tranship run [OPTIONS] --name <NAME> <--rootfs <DIR>|--bundle <DIR>> [-- <COMMAND>...]")]
pub struct Run {
    /// Name of the container, unique in the fleet
    #[arg(long, value_name = "NAME", value_parser = container)]
    name: ContainerName,
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    links: Links,
    /// Mount a volume: SRC is a path on the host or the name of a managed volume; can be repeated
    ///
    /// What is mounted for writing moves with the container. What is mounted with :ro is not
    /// carried and has to be there on every host.
    #[arg(long, value_name = "SRC:DST[:ro]", value_parser = spec::volume)]
    volume: Vec<VolumeSpec>,
    /// Set an environment variable; can be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = spec::env)]
    env: Vec<String>,
    /// User (and group) of the command, in numbers
    #[arg(long, value_name = "UID[:GID]", value_parser = spec::user)]
    user: Option<String>,
    /// Working directory inside
    #[arg(long, value_name = "PATH", value_parser = spec::inside_path)]
    workdir: Option<String>,
    /// Host name inside [default: the container's name]
    #[arg(long, value_name = "NAME", value_parser = spec::hostname)]
    hostname: Option<String>,
    /// Command line; may be left out only with --bundle
    #[arg(last = true, value_name = "COMMAND", required_unless_present = "bundle")]
    command: Vec<String>,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Source {
    /// Directory with a root file system
    #[arg(long, value_name = "DIR")]
    rootfs: Option<PathBuf>,
    /// OCI bundle: a directory with config.json and rootfs
    #[arg(long, value_name = "DIR")]
    bundle: Option<PathBuf>,
}

impl Run {
    pub(super) async fn execute(self, context: &Context) -> Result<u8, Error> {
        let agent = context.fleet.agent().await?;
        let local = matches!(agent.target(), Target::Local(_));
        let request = self.request(local)?;
        order(context, &agent, Request::Run(request)).await
    }

    fn request(self, local: bool) -> Result<RunRequest, Error> {
        let rootfs = match (self.source.rootfs, self.source.bundle) {
            (_, Some(bundle)) => RootfsSpec::Bundle(directory(&bundle, local, Some("config.json"))?),
            (Some(rootfs), None) => RootfsSpec::Directory(directory(&rootfs, local, None)?),
            // clap asks for one of them.
            (None, None) => return Err(Error::usage("neither --rootfs nor --bundle is given")),
        };
        let mut inside: Vec<&str> = self.volume.iter().map(|v| v.destination.trim_end_matches('/')).collect();
        inside.sort_unstable();
        if let Some(twice) = inside.windows(2).find(|w| w[0] == w[1]) {
            return Err(Error::usage(format!("two volumes are mounted on {}", twice[0])));
        }
        let request = RunRequest {
            name: self.name,
            rootfs,
            links: self.links.0,
            volumes: self.volume,
            env: self.env,
            args: self.command,
            cwd: self.workdir,
            user: self.user,
            hostname: self.hostname,
        };
        request.check().map_err(|e| Error::usage(e.to_string()))?;
        Ok(request)
    }
}

/// The directory as the agent has to see it: absolute; on this host also looked at, since an
/// answer from here is quicker and clearer.
pub(super) fn directory(path: &Path, local: bool, needs: Option<&str>) -> Result<String, Error> {
    let shown = path.display();
    let absolute = if local {
        let found = path.canonicalize().map_err(|e| Error::usage(format!("{shown}: {e}")))?;
        if !found.is_dir() {
            return Err(Error::usage(format!("{shown} is not a directory")));
        }
        if let Some(file) = needs.filter(|n| !found.join(n).is_file()) {
            return Err(Error::usage(format!("{shown} is not a bundle: there is no {file} in it")));
        }
        found
    } else if path.is_absolute() {
        path.to_path_buf()
    } else {
        return Err(Error::usage(format!("{shown} is not an absolute path"))
            .hint("with --host the directory is one of that host"));
    };
    absolute.into_os_string().into_string().map_err(|_| Error::usage(format!("{shown} is not valid UTF-8")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        run: Run,
    }

    fn request(words: &[&str], local: bool) -> Result<RunRequest, String> {
        let line = Line::try_parse_from([&["run"], words].concat()).map_err(|e| e.to_string())?;
        line.run.request(local).map_err(|e| e.to_text())
    }

    #[test]
    fn a_whole_command_line_becomes_a_request() {
        let words = "--name web --rootfs /srv/r --net lan --ip 10.77.1.1/16 --volume data:/d --volume /srv/x:/x:ro \
                     --env A=b --env C= --user 1:2 --workdir /w --hostname h -- sh -c exec";
        let r = request(&words.split_whitespace().collect::<Vec<_>>(), false).unwrap();
        assert_eq!(r.args, ["sh", "-c", "exec"]);
        assert_eq!(r.env, ["A=b", "C="]);
        assert_eq!((r.volumes.len(), r.links.len()), (2, 1));
        assert_eq!(
            (r.cwd.as_deref(), r.user.as_deref(), r.hostname.as_deref()),
            (Some("/w"), Some("1:2"), Some("h"))
        );
        assert!(matches!(r.rootfs, RootfsSpec::Directory(d) if d == "/srv/r"));
    }

    #[test]
    fn what_cannot_work_is_refused_here() {
        let dir = tempfile::tempdir().unwrap();
        let here = dir.path().to_str().unwrap();
        for (words, local, part) in [
            (&["--name", "web", "--rootfs", "/x"][..], false, "COMMAND"),
            (&["--name", "web", "--", "x"], false, "--rootfs"),
            (&["--name", "web", "--rootfs", "/x", "--bundle", "/y"], false, "cannot be used with"),
            (&["--name", "Web", "--rootfs", "/x", "--", "x"], false, "container name"),
            (&["--name", "web", "--rootfs", "x", "--", "x"], false, "absolute"),
            (&["--name", "web", "--rootfs", "/nonexistent", "--", "x"], true, "No such file"),
            (&["--name", "web", "--bundle", here], true, "config.json"),
            (
                &["--name", "web", "--rootfs", "/x", "--volume", "a:/d", "--volume", "b:/d/", "--", "x"],
                false,
                "two volumes",
            ),
        ] {
            let e = request(words, local).unwrap_err();
            assert!(e.contains(part), "{words:?}: {e}");
        }
    }
}
