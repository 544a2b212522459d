#!/usr/bin/env bash
# A new user on a machine where nothing is installed: script/quickstart, with sudo.
# The programs come built: compiling them in emulation would take hours, and is tried elsewhere.
# shellcheck source=tests/host-vm/lib.sh
. tests/host-vm/lib.sh

is_missing() { ! command -v "$1"; }
mkdir -p ~/.local/bin
cat >~/.local/bin/cargo <<'END'
#!/bin/sh
[ "$1 $2" = "xtask dist" ] && [ -x target/dist/bin/banger ]
END
chmod +x ~/.local/bin/cargo
PATH=$HOME/.local/bin:$PATH
# Neither the image nor the kernel that other suites find.
export BANGER_DATA_DIR=$HOME/fresh

check "there is no QEMU" is_missing qemu-system-x86_64
check "there is no pasta" is_missing pasta
check "quickstart ends with a VM's output" script/quickstart
check "a second time it has nothing to do" script/quickstart
check "the doctor is content" banger doctor
finish
