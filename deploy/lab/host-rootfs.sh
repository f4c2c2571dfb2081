#!/usr/bin/env bash
# Builds the root file system of a lab host in the directory given: Debian 13 with the runtime
# packages of testing, because CRIU before 4.2 cannot dump TCP sockets on kernels from 6.16 on.
# usage: host-rootfs.sh DIR
set -euo pipefail
dir=${1:?usage: host-rootfs.sh DIR}
mirror=${TRANSHIP_DEBIAN_MIRROR:-http://deb.debian.org/debian}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
export DEBIAN_FRONTEND=noninteractive LC_ALL=C
trap 'umount -l "$dir/proc" 2>/dev/null || true' EXIT

debootstrap --variant=minbase --keyring="$keyring" \
    --include=ca-certificates,iproute2,iputils-ping,nftables,iptables,procps,kmod,jq,tar,xz-utils,zstd \
    trixie "$dir" "$mirror"

# A package that starts a service must not start it here.
printf '#!/bin/sh\nexit 101\n' >"$dir/usr/sbin/policy-rc.d"
chmod 755 "$dir/usr/sbin/policy-rc.d"
cat >"$dir/etc/apt/sources.list.d/forky.sources" <<SRC
Types: deb
URIs: $mirror
Suites: forky
Components: main
Signed-By: $keyring
SRC
printf 'Package: *\nPin: release n=forky\nPin-Priority: 100\n' >"$dir/etc/apt/preferences.d/forky"
# A mirror may lag behind the date that the testing suite's Release file promises.
printf 'Acquire::Check-Valid-Until "false";\nAPT::Install-Recommends "false";\n' >"$dir/etc/apt/apt.conf.d/90lab"
cp /etc/resolv.conf "$dir/etc/resolv.conf" 2>/dev/null || true
for proxy in /etc/apt/apt.conf.d/*proxy*; do
    [ -e "$proxy" ] && cp "$proxy" "$dir/etc/apt/apt.conf.d/"
done
mount -t proc proc "$dir/proc"
chroot "$dir" apt-get update
chroot "$dir" apt-get install -y -t forky \
    criu runc crun libcriu2 podman conmon netavark aardvark-dns
chroot "$dir" apt-get clean
rm -rf "$dir"/var/lib/apt/lists/* "$dir/etc/resolv.conf"
umount "$dir/proc"
rm -f "$dir/run/criu.kdat"
mkdir -p "$dir/var/lib/tranship" "$dir/etc/tranship" "$dir/lab"
