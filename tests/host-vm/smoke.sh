#!/usr/bin/env bash
# A VM on real KVM: the accelerator that development machines lack.
# shellcheck source=tests/host-vm/lib.sh
. tests/host-vm/lib.sh

doctor_finds_kvm() { banger doctor | grep -E 'kvm.*hardware virtualisation is used'; }
uses_kvm() { tr '\0' ' ' <"/proc/$(pgrep -x qemu-system-x86 | head -1)/cmdline" | grep -o -e '-accel kvm'; }
guest_has_kvm_clock() {
  banger exec kept -- cat /sys/devices/system/clocksource/clocksource0/current_clocksource |
    grep -x kvm-clock
}
gives() { [ "$1" = "$("${@:2}")" ]; }

check "the doctor finds KVM" doctor_finds_kvm
check "a command runs in a VM" gives Linux banger run --rm -- uname
banger run -d --name kept -- sleep 600
check "QEMU uses KVM" uses_kvm
check "the guest knows it" guest_has_kvm_clock
check "it stops" banger stop kept
check "and goes" banger rm -f kept
finish
