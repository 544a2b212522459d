#!/usr/bin/env bash
# The daemon as a user service: VMs live in scopes of their own, and the service may come and go.
# shellcheck source=tests/host-vm/lib.sh
. tests/host-vm/lib.sh

lingers() { ! banger doctor | grep enable-linger; }
is_active() { systemctl --user is-active "$1" >/dev/null; }
in_scope() {
  local process processes
  processes=$(vm_processes)
  [ -n "$processes" ] || return 1
  for process in $processes; do
    grep -q 'banger-vm-.*\.scope' "/proc/$process/cgroup" || return 1
  done
}
shims() { pgrep -x banger-shim | sort | tr '\n' ' '; }
goes_on() { [ -n "$1" ] && [ "$1" = "$(shims)" ]; }
answers() { [ "$(banger exec "$1" -- echo here)" = here ]; }
# limit VM BYTES: the most that the VM's scope may take.
limit() {
  local id
  id=$(banger show "$1" --format json | tr -d ' \n' | sed 's/.*"id":"\([0-9a-f]*\)".*/\1/')
  systemctl --user set-property --runtime "banger-vm-$id.scope" MemoryMax="$2" MemorySwapMax=0
}
no_scope() { [ -z "$(systemctl --user list-units --plain --no-legend 'banger-vm-*')" ]; }

banger daemon start
check "the doctor says nothing about linger, which is on" lingers
check "the daemon becomes a service" banger daemon enable
check "systemd runs it" is_active bangerd.service
check "a VM runs" banger run -d --name kept -- sleep 100000
check "the VM's processes are in its scope" in_scope
before=$(shims)
check "the service stops" systemctl --user stop bangerd.service
check "and the VM goes on" goes_on "$before"
check "the service starts again" systemctl --user start bangerd.service
check "and the VM is the same" goes_on "$before"
check "and answers" answers kept
systemctl --user kill --signal=KILL bangerd.service
check "a killed daemon is started again" within 30 is_active bangerd.service
check "and the VM answers" within 30 answers kept
check "a VM is removed" banger rm -f kept
check "and its scope is gone" within 10 no_scope
check "a VM runs whose scope may take little memory" banger run -d --name tight -- sleep 100000
check "and is limited" limit tight 400M
banger exec tight -- sh -c 'mkdir /fill && mount -t tmpfs -o size=900m none /fill && cat /dev/zero >/fill/zeros'
check "the kernel kills it, and that is told" within 60 ended_as out_of_memory tight
[ "$failed" -eq 0 ] || banger show tight
check "it is removed" banger rm -f tight
check "another one stays" banger run -d --name stays -- sleep 100000
finish
