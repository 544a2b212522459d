#!/usr/bin/env bash
# The user, who lingers, has logged out and in again.
# shellcheck source=tests/host-vm/lib.sh
. tests/host-vm/lib.sh

answers() { [ "$(banger exec "$1" -- echo here)" = here ]; }
# systemd 252 kills a user's scope in which KVM has a thread (docs/service.md).
has_ended() { banger ls -a --format json | tr -d ' \n' | grep -Eq '"state":"(stopped|failed)"'; }

check "the service ran on" systemctl --user --quiet is-active bangerd.service
check "the VM answers" answers stays
check "stopping the scope ends the VM" systemctl --user stop 'banger-vm-*.scope'
check "and the daemon knows" within 30 has_ended
check "the service goes" banger daemon disable
check "no unit is left" test ! -e ~/.config/systemd/user/bangerd.service
check "without the service it works as before" banger start stays
banger rm -f stays
finish
