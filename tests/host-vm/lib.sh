# What the scripts of host-vm share. Sourced, not run.
# shellcheck shell=bash
failed=0

# check WHAT COMMAND...: says whether it holds, and goes on.
check() {
  local what=$1 start=$SECONDS
  shift
  if "$@"; then
    printf 'ok   %s (%d s)\n' "$what" $((SECONDS - start))
  else
    printf 'FAIL %s: %s\n' "$what" "$*"
    failed=$((failed + 1))
  fi
}

# within SECONDS COMMAND...: until it holds, or the time is over.
within() {
  local end=$((SECONDS + $1))
  shift
  until "$@"; do
    [ $SECONDS -lt $end ] || return 1
    sleep 0.2
  done
}

# Every process of every VM, by id.
vm_processes() {
  local name
  for name in banger-shim qemu-system-x86 pasta pasta.avx2; do pgrep -x "$name"; done
}

no_vm_process() { [ -z "$(vm_processes)" ]; }

# ended_as CAUSE VM: what banger recorded of its last end.
ended_as() { banger show "$2" --format json | tr -d ' \n' | grep -q "\"cause\":\"$1\""; }

# write_unsynced VM, has_unsynced VM: a file that is lost unless the guest goes down in order soon.
write_unsynced() { banger exec "$1" -- sh -c 'echo here >/root/unsynced'; }
has_unsynced() { [ "$(banger exec "$1" -- cat /root/unsynced)" = here ]; }

# What is worth seeing when something failed is left in ~/results.
finish() {
  local log data=${BANGER_DATA_DIR:-$HOME/.local/share/banger}
  cp "$data/daemon.log" ~/results/ 2>/dev/null
  for log in "$data"/vms/*/*.log; do
    [ -e "$log" ] && cp "$log" ~/results/"$(basename "$(dirname "$log")")-$(basename "$log")"
  done
  [ $failed -eq 0 ]
  exit
}
