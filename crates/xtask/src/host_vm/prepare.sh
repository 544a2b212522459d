#!/bin/sh
# Makes the machine of `cargo xtask host-vm` ready for a command. Runs there, as root.
set -e
user=tester home=/home/tester data=/home/tester/.local/share/banger
mkdir -p $home/banger $home/results $data
# In fstab, so that after a reboot they are there before the user's services.
if ! grep -q vdb /etc/fstab; then
  printf '/dev/vdb %s ext4 defaults 0 0\n/dev/vdc %s ext4 defaults 0 0\n' $home/banger $data >>/etc/fstab
fi
mountpoint -q $home/banger || mount $home/banger
mountpoint -q $data || mount $data
for dir in .local .local/share .local/share/banger; do chown $user:$user $home/$dir; done
if [ "$(stat -c %U $data/images)" != $user ]; then chown -R $user:$user $data $home/banger; fi
chown $user:$user $home/results
chmod 0700 $data
# Where this machine is busy, a guest in a guest takes its time.
settings=$home/.config/banger/config.toml
if [ ! -e $settings ]; then
  install -d -o $user -g $user $home/.config $home/.config/banger
  echo 'boot_timeout_s = 300' >$settings
fi
linger="@LINGER@"
if [ -n "$linger" ]; then loginctl enable-linger $user; fi
