#!/usr/bin/env bash
# The user, who lingers, has logged out and in again.
# shellcheck source=tests/host-vm/lib.sh
. tests/host-vm/lib.sh

answers() { [ "$(banger exec "$1" -- echo here)" = here ]; }
stopped_properly() { banger ls -a --format json | tr -d ' \n' | grep -q '"state":"stopped"'; }

check "the service ran on" systemctl --user --quiet is-active bangerd.service
check "the VM answers" answers stays
check "stopping the scope stops the VM" systemctl --user stop 'banger-vm-*.scope'
check "in order" within 30 stopped_properly
check "the service goes" banger daemon disable
check "no unit is left" test ! -e ~/.config/systemd/user/bangerd.service
check "without the service it works as before" banger start stays
banger rm -f stays
finish
