/* The first process of the bare boot that `banger run` is compared with: loads the same modules as
   the agent, says so, and resets. */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/reboot.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(void) {
  struct dirent **names;
  int count = chdir("/modules") ? 0 : scandir(".", &names, 0, alphasort);
  for (int i = 0; i < count; i++) {
    int fd = open(names[i]->d_name, O_RDONLY | O_CLOEXEC);
    if (names[i]->d_name[0] != '.') syscall(SYS_finit_module, fd, "", 0);
    close(fd);
  }
  (void)!write(1, "bare boot done\n", 15);
  reboot(RB_AUTOBOOT);
}
