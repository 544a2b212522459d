#!/usr/bin/env bash
# The host's clock jumps under a running VM: the guest follows, and nothing else happens.
# shellcheck source=tests/host-vm/lib.sh
. tests/host-vm/lib.sh

apart() {
  local guest host
  guest=$(banger exec kept -- date +%s) || return 1
  host=$(date +%s)
  [ $((host - guest)) -lt 30 ] && [ $((guest - host)) -lt 30 ]
}
jump() { sudo date -s "@$(($(date +%s) + $1))" >/dev/null; }
is_running() { banger ls --format json | tr -d ' \n' | grep -q '"state":"running"'; }

banger run -d --name kept -- sleep 100000
check "the clocks agree" apart
jump 86400
check "a day forward: the guest follows" within 60 apart
check "the VM runs" is_running
jump -172800
check "two days back: the guest follows" within 60 apart
check "the VM runs still" is_running

# Hours later: what was saved, paused, or stood ready goes on with the time that it is then.
now() {
  local before guest
  before=$(date +%s)
  guest=$(banger "$@" date +%s) || return 1
  [ "$guest" -ge $((before - 1)) ] && [ "$guest" -le $(($(date +%s) + 1)) ]
}
ready() { banger template ls --format json | tr -d ' \n' | grep -q '"ready":1'; }
was() { banger events --since 1m --no-follow --format json | tail -n 20 | grep -q "\"origin\":\"$1\""; }

check "a snapshot is made" banger snapshot create kept early
check "it is paused" banger pause kept
jump 18000
check "it goes on" banger resume kept
check "after five hours of pause: the time is right" now exec kept --
check "it goes back" banger snapshot restore kept early
check "to five hours before: the time is right" now exec kept --
jump 18000
check "from a template of ten hours before: the time is right" now run --rm --
check "that was from the template" was template
export BANGER_CONFIG_DIR=$HOME/with-a-pool
mkdir -p "$BANGER_CONFIG_DIR"
printf '[pool]\nsize = 1\n' >"$BANGER_CONFIG_DIR/config.toml"
banger daemon stop
banger run --rm -- true
check "a guest stands ready" within 60 ready
jump 18000
check "after five hours of readiness: the time is right" now run --rm --
check "that was from the pool" was pool
check "it stops" banger stop kept
check "a new one works" banger run --rm -- true
finish
