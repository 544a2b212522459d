#!/bin/sh
# Makes the machine of `cargo xtask host-vm` ready for a command. Runs there, as root.
set -e
user=tester home=/home/tester data=/home/tester/.local/share/banger
mkdir -p $home/banger $home/results $data
mountpoint -q $home/banger || mount /dev/vdb $home/banger
mountpoint -q $data || mount /dev/vdc $data
for dir in .local .local/share .local/share/banger; do chown $user:$user $home/$dir; done
if [ "$(stat -c %U $data/images)" != $user ]; then chown -R $user:$user $data $home/banger; fi
chown $user:$user $home/results
chmod 0700 $data
linger="@LINGER@"
if [ -n "$linger" ]; then loginctl enable-linger $user; fi
