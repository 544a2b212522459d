#!/bin/sh
# Makes the machine of `cargo xtask host-vm`: root.ext4, vmlinuz, initramfs and the key to it.
# Runs as root, or as root of a user namespace. Sources of packages come on stdin, as apt has them.
#   image.sh SUITE PACKAGES DIRECTORY
set -eu
suite=$1 packages=$2 out=$3
root=$out/root
umask 022

# The kernel's package would make an initramfs of its own.
INITRD=No DEBIAN_FRONTEND=noninteractive mmdebstrap --mode=root --variant=minbase --format=directory \
  --skip=chroot/mount/sys,output/dev --architectures=amd64 --dpkgopt=force-unsafe-io \
  --aptopt="$out/apt.conf" --aptopt='APT::Install-Recommends "false"' \
  --aptopt='Acquire::Languages "none"' \
  --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
  --dpkgopt='path-exclude=/usr/share/locale/*' \
  --include="$packages" "$suite" "$root" - >&2

# What the machine is, and who may come in.
echo host-vm >"$root/etc/hostname"
printf '127.0.0.1 localhost host-vm\n::1 localhost\n' >"$root/etc/hosts"
echo '/dev/vda / ext4 rw,noatime 0 1' >"$root/etc/fstab"
# The address that QEMU's user network gives out, and its resolver.
cat >"$root/etc/systemd/network/20-host-vm.network" <<'END'
[Match]
Name=en* eth*
[Network]
Address=10.0.2.15/24
Gateway=10.0.2.2
LinkLocalAddressing=no
END
echo 'nameserver 10.0.2.3' >"$root/etc/resolv.conf"
mkdir -p "$root/etc/systemd/journald.conf.d" "$root/etc/ssh/sshd_config.d" "$root/etc/sysctl.d"
printf '[Journal]\nStorage=volatile\n' >"$root/etc/systemd/journald.conf.d/host-vm.conf"
printf 'UseDNS no\nPrintMotd no\nMaxStartups 30\n' >"$root/etc/ssh/sshd_config.d/host-vm.conf"
cat >"$root/etc/systemd/system/host-vm-ready.service" <<'END'
[Unit]
After=ssh.service systemd-user-sessions.service network.target systemd-modules-load.service
[Service]
Type=oneshot
StandardOutput=tty
TTYPath=/dev/ttyS0
ExecStart=/bin/echo host-vm-ready
[Install]
WantedBy=multi-user.target
END
printf 'kvm_amd\ntun\n' >"$root/etc/modules-load.d/host-vm.conf"

chroot "$root" useradd --create-home --shell /bin/bash tester
chroot "$root" useradd --system --user-group --no-create-home --home-dir /nonexistent \
  --shell /usr/sbin/nologin banger
if [ -d "$root/etc/sudoers.d" ]; then
  echo 'tester ALL=(ALL) NOPASSWD: ALL' >"$root/etc/sudoers.d/tester"
  chmod 0440 "$root/etc/sudoers.d/tester"
fi
if grep -q '^kvm:' "$root/etc/group"; then chroot "$root" usermod -aG kvm tester; fi
ssh-keygen -q -t ed25519 -N '' -C host-vm -f "$out/key"
for home in "$root/root" "$root/home/tester"; do
  mkdir -p "$home/.ssh"
  cp "$out/key.pub" "$home/.ssh/authorized_keys"
done
chroot "$root" chown -R tester:tester /home/tester/.ssh
chmod 0700 "$root/root/.ssh" "$root/home/tester/.ssh"
chroot "$root" systemctl -q enable systemd-networkd host-vm-ready ssh
chroot "$root" systemctl -q mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
  e2scrub_all.timer e2scrub_reap.service fstrim.timer getty@tty1.service \
  serial-getty@ttyS0.service systemd-networkd-wait-online.service systemd-pstore.service

# Kernel, and just enough before it to reach its disk.
cp "$root"/boot/vmlinuz-* "$out/vmlinuz"
modules=$(echo "$root"/lib/modules/*/kernel/drivers)
early=$out/early
mkdir -p "$early/dev" "$early/proc" "$early/new"
cp "$root/bin/busybox" "$early/busybox"
names=
for module in virtio/virtio_ring virtio/virtio virtio/virtio_pci_legacy_dev \
  virtio/virtio_pci_modern_dev virtio/virtio_pci block/virtio_blk; do
  [ -e "$modules/$module.ko" ] || continue
  cp "$modules/$module.ko" "$early"
  names="$names $(basename "$module")"
done
cat >"$early/init" <<END
#!/busybox sh
/busybox mount -t devtmpfs dev /dev
for module in$names; do /busybox insmod /\$module.ko; done
while ! [ -b /dev/vda ]; do /busybox usleep 10000; done
/busybox mount -t ext4 -o rw,noatime /dev/vda /new
/busybox mount -o move /dev /new/dev
exec /busybox switch_root /new /sbin/init
END
chmod 0755 "$early/init"
(cd "$early" && find . | "$root/usr/bin/cpio" --quiet -o -H newc) >"$out/initramfs"
rm -rf "$early" "${root:?}"/boot/* "$root"/var/cache/apt/*.bin "$root"/var/lib/apt/lists/*
: >"$root/etc/machine-id"

truncate -s 8G "$out/root.ext4"
mke2fs -q -t ext4 -E lazy_itable_init=1,lazy_journal_init=1 -d "$root" "$out/root.ext4"
rm -rf "$root"
