#!/usr/bin/env bash
# The user, who lingers, has logged out and in again. Then the machine is rebooted with a VM running.
# shellcheck source=tests/host-vm/lib.sh
. tests/host-vm/lib.sh

answers() { [ "$(banger exec "$1" -- echo here)" = here ]; }

check "the service ran on" systemctl --user --quiet is-active bangerd.service
check "the VM answers" answers stays
check "the guest writes and does not sync" write_unsynced stays
check "stopping the scope ends the VM" systemctl --user stop 'banger-vm-*.scope'
check "in order, and the daemon knows" within 30 ended_as terminated stays
check "it starts again" banger start stays
check "nothing is lost" has_unsynced stays
check "it shall be started whenever it ends" banger set stays --restart always
check "the guest writes once more" banger exec stays -- sh -c 'echo there >/root/unsynced'
finish
