# What quickstart and test both need of the machine. Sourced, not run.
# shellcheck shell=bash

say() { printf '==> %s\n' "$*"; }
note() { printf '    %s\n' "$*"; }
die() {
  printf 'error: %s\n' "$1" >&2
  shift
  for line in "$@"; do printf 'hint: %s\n' "$line" >&2; done
  exit 1
}

# An ordinary user's PATH often lacks the places of nft and mke2fs.
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

# program, Debian package, why
# shellcheck disable=SC2034 # the scripts that source this use it
HOST_PROGRAMS='qemu-system-x86_64 qemu-system-x86 runs the virtual machines
pasta passt connects them to the network without root
nft nftables separates their networks from the host
ip iproute2 shows and sets up network devices
mke2fs e2fsprogs builds root disks
newuidmap uidmap lets an ordinary user own more than one user id
mmdebstrap mmdebstrap builds the Debian image
gpgv gpgv checks the signatures of Debian packages'

as_root() {
  if [ "$(id -u)" -eq 0 ]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    die "this needs root and there is no sudo: $*" "run it as root, then run this script again"
  fi
}

is_debian() { command -v apt-get >/dev/null && [ -e /etc/debian_version ]; }

# ensure_programs TABLE: installs the packages of the programs that are missing.
ensure_programs() {
  local program package why missing=()
  while read -r program package why; do
    command -v "$program" >/dev/null && continue
    note "missing: $program (package $package): $why"
    missing+=("$package")
  done <<<"$1"
  [ ${#missing[@]} -eq 0 ] && return
  is_debian || die "this is not Debian, so nothing was installed" \
    "install what is listed above with your own package manager, then run this again"
  say "installing ${missing[*]}"
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq update
  install_stopped "${missing[@]}"
}

# install_stopped PACKAGE...: without starting the services that come along, now or at the next boot.
# A registry that listens on the network is more than somebody wanted who only runs tests.
install_stopped() (
  policy=/usr/sbin/policy-rc.d
  if [ ! -e "$policy" ]; then
    trap 'as_root rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
    as_root chmod 0755 "$policy"
  fi
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install \
    "$@" </dev/null >/dev/null
  case " $* " in *" docker-registry "*) as_root update-rc.d docker-registry disable ;; esac
)

ensure_toolchain() {
  command -v cargo >/dev/null || die "there is no Rust toolchain (cargo)" \
    "install Rust 1.95 or newer, for example with rustup"
  command -v cc >/dev/null || die "there is no C compiler (cc)" "apt-get install gcc libc6-dev"
}

# udev makes /dev/net/tun usable by everybody and /dev/kvm by the group kvm. Machines without udev
# (containers, minimal images) have them for root only, or not at all.
ensure_devices() {
  if [ ! -e /dev/net/tun ]; then
    note "making /dev/net/tun (the network devices of virtual machines)"
    as_root mkdir -p /dev/net
    as_root mknod -m 0666 /dev/net/tun c 10 200
  elif [ "$(stat -c %a /dev/net/tun)" != 666 ]; then
    note "opening /dev/net/tun to every user, as udev does"
    as_root chmod 0666 /dev/net/tun
  fi
  [ -e /dev/kvm ] || return 0
  [ -w /dev/kvm ] && return
  grep -Eqw 'vmx|svm' /proc/cpuinfo || return 0
  if [ "$(stat -c %G /dev/kvm)" = kvm ]; then
    note "adding $(id -un) to the group kvm; log in again to use it, until then VMs are emulated"
    as_root usermod -aG kvm "$(id -un)"
  else
    note "opening /dev/kvm to every user: there is no udev here that would set its group"
    as_root chmod 0666 /dev/kvm
  fi
}

# ensure_subids USER: 65,536 ids of its own, for the users of the images it builds.
ensure_subids() {
  local user=$1 file flag start
  for file in /etc/subuid /etc/subgid; do
    grep -Eq "^($user|$(id -u "$user")):" "$file" 2>/dev/null && continue
    case $file in *uid) flag=--add-subuids ;; *) flag=--add-subgids ;; esac
    start=$(awk -F: '{ end = $2 + $3; if (end > max) max = end } END { print (max > 100000 ? max : 100000) }' \
      "$file" 2>/dev/null || echo 100000)
    note "giving $user the ids $start to $((start + 65535)) in $file"
    as_root usermod "$flag" "$start-$((start + 65535))" "$user"
  done
}

# The user that VMMs become when banger runs as root.
ensure_jail_user() {
  getent passwd banger >/dev/null && return
  note "creating the system user banger, which VMMs become when root starts them"
  as_root useradd --system --user-group --no-create-home --home-dir /nonexistent \
    --shell /usr/sbin/nologin banger
}

ensure_machine() {
  ensure_programs "$1"
  ensure_devices
  if [ "$(id -u)" -eq 0 ]; then ensure_jail_user; else ensure_subids "$(id -un)"; fi
}
