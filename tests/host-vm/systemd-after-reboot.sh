#!/usr/bin/env bash
# The machine was rebooted: the service and the VM are started by nobody but systemd.
# shellcheck source=tests/host-vm/lib.sh
. tests/host-vm/lib.sh

# Not before it has started.
answers() { [ "$(banger exec "$1" -- echo here 2>/dev/null)" = here ]; }
runs_again() { [ -n "$(pgrep -x qemu-system-x86)" ]; }
has_newest() { [ "$(banger exec "$1" -- cat /root/unsynced)" = there ]; }

check "the service was started" within 60 systemctl --user --quiet is-active bangerd.service
check "and the VM by it" within 60 runs_again
check "and the VM answers" within 120 answers stays
check "the guest went down in order: nothing is lost" has_newest stays
check "the service goes" banger daemon disable
check "no unit is left" test ! -e ~/.config/systemd/user/bangerd.service
check "without the service it works as before" answers stays
banger rm -f stays
finish
