#!/usr/bin/env bash
# Creates, runs and removes VMs until the power is cut, which happens some time after the first words.
# Whenever the guest says that it synced a line, that is written down here, and synced.
# shellcheck source=tests/host-vm/lib.sh
. tests/host-vm/lib.sh

banger start written >/dev/null
for number in $(seq 1000); do
  banger create --name "busy-$number" >/dev/null
  banger exec written -- sh -c 'date >>/root/log && sync -f /root/log' &&
    echo "$number" >>~/results/said && sync -f ~/results/said && echo "synced $number"
  banger rm "busy-$number" >/dev/null
done
