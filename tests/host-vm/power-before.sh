#!/usr/bin/env bash
# A VM runs when the machine goes down. It has a file that it fsynced, and one that it did not.
# shellcheck source=tests/host-vm/lib.sh
. tests/host-vm/lib.sh

banger run -d --name written -- sleep 100000
check "the guest writes and syncs" \
  banger exec written -- sh -c 'seq 1000 >/root/synced && sync -f /root/synced'
check "it has something in memory" banger exec written -- sh -c 'echo here >/dev/shm/memory'
check "a snapshot of it is made" banger snapshot create written early
check "and writes without" write_unsynced written
finish
