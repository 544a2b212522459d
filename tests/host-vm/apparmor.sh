#!/usr/bin/env bash
# AppArmor enforces pasta's profile; then the kernel refuses user namespaces to ordinary users.
# shellcheck source=tests/host-vm/lib.sh
. tests/host-vm/lib.sh

enforces_pasta() { sudo cat /sys/kernel/security/apparmor/profiles | grep -E 'pa(sta|sst).*\(enforce\)'; }
confined() { grep enforce "/proc/$(pgrep -x 'pasta|pasta.avx2' | head -1)/attr/current"; }
nothing_denied() { ! sudo dmesg | grep 'apparmor="DENIED"'; }
runs() { banger run --rm -- true; }
refused() { ! runs; }
doctor_says() { banger doctor | grep -e "$1"; }

check "pasta's profile is enforced" enforces_pasta
check "a VM runs under it" runs
banger run -d --name kept -- sleep 100000
check "pasta is confined" confined
check "AppArmor had nothing to deny" nothing_denied
banger rm -f kept

sudo sysctl -q -w kernel.unprivileged_userns_clone=0
check "refused namespaces are told, with the cure" doctor_says "sysctl -w kernel.unprivileged_userns_clone=1"
check "a VM does not run then" refused
sudo sysctl -q -w kernel.unprivileged_userns_clone=1
check "and does after the cure" runs
finish
