#!/usr/bin/env bash
# The machine was rebooted in order: the VM, in a login session, was asked to stop and had the time to.
# shellcheck source=tests/host-vm/lib.sh
. tests/host-vm/lib.sh

check "no process is left before the daemon starts" no_vm_process
check "the VM was stopped in order" ended_as terminated written
check "it starts" banger start written
check "what the guest had not synced is there too" has_unsynced written
check "it stops" banger stop written
finish
