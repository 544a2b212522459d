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
check "it stops" banger stop kept
check "a new one works" banger run --rm -- true
finish
