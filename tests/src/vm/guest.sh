#!/bin/bash
# First program of a virtual machine. Its root is the host's own file system, by hostfs or 9p: the host's programs and
# this build are there under their own paths, wherever the build is. What is written goes to memory, laid over it, and
# the host's other file systems are not in it. Then it takes jobs from the second console until its power ends.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TERM=dumb
here=${0%/*}
version=$(uname -r)

# host TAG DIRECTORY TARGET [OPTION]: a directory of the host.
host() {
  if [ -n "$STOR_MODULES" ]; then
    mount -n ${4-} -t 9p -o trans=virtio,version=9p2000.L,msize=262144 "$1" "$3"
  else
    mount -n ${4-} -t hostfs -o "$2" none "$3"
  fi
}

fail() {
  echo "guest: $*"
  echo o >/proc/sysrq-trigger
  sleep 60
}

mount -n -t proc proc /proc || fail "no /proc"
modules=${STOR_MODULES:-/usr/lib/uml/modules/$version}
grep -qw overlay /proc/filesystems || insmod "$modules/kernel/fs/overlayfs/overlay.ko" || fail "no overlay"
mount -n -t tmpfs -o mode=755 tmpfs /mnt || fail "no memory for /"
mkdir /mnt/upper /mnt/work /mnt/root
mount -n -t overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work overlay /mnt/root || fail "no root"
cd /mnt/root || fail "no root"
for tree in tmp var/tmp run; do mount -n -t tmpfs -o mode=1777 tmpfs "$tree"; done
mount -n -t devtmpfs dev dev || fail "no /dev"
mkdir -p dev/pts dev/shm
mount -n -t devpts devpts dev/pts
mount -n -t tmpfs -o mode=1777 tmpfs dev/shm
[ -e dev/fd ] || ln -s /proc/self/fd dev/fd
mount -n --move /proc proc
mount -n -t sysfs sys sys
mkdir -p run/vm
if [ -d "$modules" ]; then
  mkdir -p "lib/modules/$version"
  mount -n --bind "$modules" "lib/modules/$version" || fail "no modules"
else
  # All that this kernel has is built in.
  printf '#!/bin/sh\n' >usr/local/sbin/modprobe
  chmod 755 usr/local/sbin/modprobe
fi
pivot_root . mnt || fail "the root cannot be turned"
umount -n -l /mnt

# What passes between test and guest.
host jobs "$here/jobs" /run/vm || fail "no jobs"
build=$(</run/vm/build)
# A file system that comes over it later can have it bound once more.
mkdir -p "$build" /run/build
host build "$build" /run/build -r && mount -n --bind /run/build "$build" || fail "$build is not shared"
number=0
while IFS=$'\t' read -r of guest; do
  mkdir -p "$guest"
  host "share$number" "$of" "$guest" || fail "$of is not shared"
  number=$((number + 1))
done </run/vm/shares
# Disks have the names that user-mode Linux gives them.
for disk in /dev/vd?; do
  [ -b "$disk" ] && ln -s "$disk" "/dev/ubd${disk#/dev/vd}"
done
hostname stor-vm
ip link set lo up
# There is no udev here, and LVM does not know these disks by itself.
export DM_DISABLE_UDEV=1 LVM_SUPPRESS_FD_WARNINGS=1
if [ -d /etc/lvm ]; then
  cat >/etc/lvm/lvmlocal.conf <<'LVM'
devices { types = [ "ubd", 16 ] obtain_device_list_from_udev = 0 }
activation { udev_sync = 0 udev_rules = 0 }
LVM
fi

job() {
  # Said again until it is seen to have begun.
  mkdir "/run/vm/$1.begun" 2>/dev/null || return
  setsid bash "/run/vm/$1.sh" >"/run/vm/$1.out" 2>"/run/vm/$1.err" </dev/null 3<&-
  echo $? >"/run/vm/$1.new"
  mv "/run/vm/$1.new" "/run/vm/$1.status"
}

exec 3<"${STOR_CONSOLE:-/dev/tty1}" || fail "no second console"
stty raw -echo <&3
: >/run/vm/ready
while read -r line <&3; do
  case $line in
    '') ;;
    off)
      sync
      echo o >/proc/sysrq-trigger
      ;;
    *) job "$line" & ;;
  esac
done
fail "the second console is gone"
