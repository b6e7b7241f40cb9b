#!/usr/bin/env bash
# What the first process of a host of hosts.py does: make the host's own file system, then serve SSH until it's killed.
# Usage: host.sh NAME DISK SHARED    (in new network, mount, PID and UTS namespaces, as root)
# DISK/upper is laid over this machine's files, DISK/work and DISK/root are empty; SHARED is seen as /shared.
set -euo pipefail
name=$1 disk=$2 shared=$3
hostname "$name"
ip link set lo up
mount --make-rprivate /
mount -t overlay overlay -o "lowerdir=/,upperdir=$disk/upper,workdir=$disk/work" "$disk/root"
cd "$disk/root"
mkdir -p shared run
mount --bind "$shared" shared
mount -t proc proc proc
mount --rbind /sys sys
mount --rbind /dev dev
mount -t tmpfs -o size=16g shm dev/shm
mount -t tmpfs run run
mkdir run/sshd
pivot_root . mnt
cd /
umount -l /mnt
/usr/sbin/sshd -f /etc/ssh/sshd_config_of_hosts -E /var/log/sshd.log
while :; do # reap what daemons leave to the first process
  sleep 60 &
  wait
done
