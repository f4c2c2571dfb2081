#!/usr/bin/env bash
# Builds a container root file system out of Debian 13 packages.
# usage: container-rootfs.sh DIR [PACKAGE...]
set -euo pipefail
dir=${1:?usage: container-rootfs.sh DIR [PACKAGE...]}
shift
mirror=${TRANSHIP_DEBIAN_MIRROR:-http://deb.debian.org/debian}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
export DEBIAN_FRONTEND=noninteractive LC_ALL=C
trap 'umount -l "$dir/proc" 2>/dev/null || true' EXIT

debootstrap --variant=minbase --keyring="$keyring" trixie "$dir" "$mirror"
printf '#!/bin/sh\nexit 101\n' >"$dir/usr/sbin/policy-rc.d"
chmod 755 "$dir/usr/sbin/policy-rc.d"
printf 'Acquire::Check-Valid-Until "false";\nAPT::Install-Recommends "false";\n' >"$dir/etc/apt/apt.conf.d/90lab"
cp /etc/resolv.conf "$dir/etc/resolv.conf" 2>/dev/null || true
for proxy in /etc/apt/apt.conf.d/*proxy*; do
    [ -e "$proxy" ] && cp "$proxy" "$dir/etc/apt/apt.conf.d/"
done
if [ "$#" -gt 0 ]; then
    mount -t proc proc "$dir/proc"
    chroot "$dir" apt-get update
    chroot "$dir" apt-get install -y "$@"
    umount "$dir/proc"
fi
chroot "$dir" apt-get clean
rm -rf "$dir"/var/lib/apt/lists/* "$dir/etc/resolv.conf" "$dir"/usr/share/doc "$dir"/usr/share/man "$dir"/usr/share/locale
