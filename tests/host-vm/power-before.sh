#!/usr/bin/env bash
# Two VMs run when the machine is rebooted: one has files that it fsynced, one has none.
# shellcheck source=tests/host-vm/lib.sh
. tests/host-vm/lib.sh

banger run -d --name written -- sleep 100000
check "the guest writes and syncs" \
  banger exec written -- sh -c 'seq 1000 >/root/synced && sync -f /root/synced'
finish
