#!/usr/bin/env bash
# The machine came up again, by whatever it went down.
# shellcheck source=tests/host-vm/lib.sh
. tests/host-vm/lib.sh

state() { banger ls -a --format json | tr -d ' \n' | grep -o '"state":"[a-z]*"' | head -1; }
synced() { [ "$(banger exec written -- tail -1 /root/synced)" = 1000 ]; }
said() { if [ -e ~/results/said ]; then wc -l <~/results/said; else echo 0; fi; }
logged() { banger exec written -- sh -c 'cat /root/log 2>/dev/null | wc -l'; }
kept() { [ "$(logged)" -ge "$(said)" ]; }
no_halves() { [ -z "$(find ~/.local/share/banger -name 'tmp-*' -o -name '.deleting-*' -o -name '*.new')" ]; }

check "no process is left before the daemon starts" no_vm_process
echo "the VM is shown as $(state)"
banger ls -a
check "a VM that cannot run is not shown running" test "$(state)" != '"state":"running"'
check "it starts again" banger start written
check "what the guest had synced is there" synced
echo "while it was busy it had said $(said) lines"
check "so is what it synced until the end" kept
banger stop written
has_memory() { [ "$(banger exec written -- cat /dev/shm/memory)" = here ]; }
check "it goes back to its snapshot" banger snapshot restore written early
check "with what was in memory" has_memory
check "and on its disk" synced
banger stop written
check "a new VM works" banger run --rm -- true
check "nothing half-made is left" no_halves
finish
