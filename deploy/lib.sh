# shellcheck shell=bash
# What deploy/check and deploy/demo share. Sourced, after `set -euo pipefail` and with $root set.
# shellcheck disable=SC2034,SC2154 # colours are used there, $root is set there

bold='' red='' green='' yellow='' plain=''
if [ -t 1 ] && [ "${TERM:-dumb}" != dumb ]; then
    bold=$'\e[1m' red=$'\e[31m' green=$'\e[32m' yellow=$'\e[33m' plain=$'\e[0m'
    export CARGO_TERM_COLOR=always
fi

say() {
    printf '%s\n' "$*"
}

die() {
    printf '%serror:%s %s\n' "$red" "$plain" "$1" >&2
    if [ -n "${2:-}" ]; then
        printf 'hint: %s\n' "$2" >&2
    fi
    exit 1
}

need_root() {
    [ "$(id -u)" = 0 ] || die "namespaces, mounts and apt need root" "sudo $0"
}

# Rust is the one thing that has to be there. rustup's directory is often missing in PATH of CI.
need_rust() {
    local home=${CARGO_HOME:-${HOME:-/root}/.cargo}
    if [ -d "$home/bin" ]; then
        case :$PATH: in
        *":$home/bin:"*) ;;
        *) export PATH="$home/bin:$PATH" ;;
        esac
    fi
    command -v cargo >/dev/null || die "cargo is not installed" "https://rustup.rs, then start this again"
}

# need_packages PROGRAM=PACKAGE...: installs the packages whose programs are missing. A name with
# a slash is a file. Asks the network for nothing when all are there.
need_packages() {
    local pair missing=()
    PATH="$PATH:/usr/sbin:/sbin"
    for pair in "$@"; do
        case ${pair%%=*} in
        */*) [ -e "${pair%%=*}" ] || missing+=("${pair#*=}") ;;
        *) command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}") ;;
        esac
    done
    if [ ${#missing[@]} = 0 ]; then
        return 0
    fi
    command -v apt-get >/dev/null ||
        die "missing: ${missing[*]}" "there is no apt-get here; install these yourself and start again"
    say "installing Debian packages: ${missing[*]}"
    # The clock of a fresh machine, or a mirror that lags, is no reason to stop.
    apt-get -qq -o Acquire::Check-Valid-Until=false update
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
}

# Parts of the toolchain that a minimal profile of rustup leaves out.
need_components() {
    local part
    for part in fmt=rustfmt clippy=clippy; do
        if ! cargo "${part%%=*}" --version >/dev/null 2>&1; then
            say "installing ${part#*=}"
            rustup component add "${part#*=}" ||
                die "cargo ${part%%=*} is missing" "rustup component add ${part#*=}"
        fi
    done
}

# What building and the lab need on this machine; the lab's hosts bring their own programs.
need_lab_packages() {
    need_packages cc=gcc /usr/include/stdio.h=libc6-dev debootstrap=debootstrap gpgv=gpgv \
        /usr/share/keyrings/debian-archive-keyring.gpg=debian-archive-keyring \
        ip=iproute2 nft=nftables modprobe=kmod "$@"
}

# Kernels with modules load most of these by themselves, but not on behalf of a CRIU that only
# probes for them. What is built in, or not there at all, is found out later and said then.
load_modules() {
    local module
    grep -v '^#' "$root/deploy/modules-load.d/tranship.conf" | while read -r module; do
        [ -z "$module" ] || modprobe -q "$module" 2>/dev/null || true
    done
}

# seconds SINCE: whole seconds since a value of $SECONDS, as 75 s or 3 min 05 s.
took() {
    local seconds=$((SECONDS - $1))
    if [ "$seconds" -lt 120 ]; then
        printf '%d s' "$seconds"
    else
        printf '%d min %02d s' $((seconds / 60)) $((seconds % 60))
    fi
}

# Process group of what `run` runs now, and of what it ran last.
child='' group=''

# run COMMAND...: in a process group of its own and waited for, so that a signal to this script is
# heard at once and everything that was started can be ended. Bash would hear it after the command.
run() {
    local status=0
    set -m
    "$@" </dev/null 9>&- &
    child=$! group=$child
    set +m
    wait "$child" || status=$?
    child=
    return "$status"
}

# Ends what is left of the last `run`.
stop_group() {
    if [ -n "$group" ]; then
        kill -TERM -- "-$group" 2>/dev/null || return 0
        for _ in 1 2 3 4 5 6 7 8 9 10; do
            kill -0 -- "-$group" 2>/dev/null || return 0
            sleep 0.3
        done
        kill -KILL -- "-$group" 2>/dev/null || true
    fi
}

# one_at_a_time NAME: labs have fixed names, so that a later start finds what a killed one left.
one_at_a_time() {
    local lock=/run/lock/tranship-$1
    mkdir -p /run/lock
    exec 9>"$lock"
    if ! flock -n 9; then
        say "another deploy/$1 runs on this machine; waiting for it to end"
        flock 9
    fi
}
