#!/usr/bin/env bash
# Creates, runs and removes VMs until the power is cut.
# shellcheck source=tests/host-vm/lib.sh
. tests/host-vm/lib.sh

banger start written
echo "busy now"
for number in $(seq 1000); do
  banger create --name "busy-$number"
  banger exec written -- sh -c 'date >>/root/log && sync -f /root/log'
  banger rm "busy-$number"
done
