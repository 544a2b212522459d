/* A guest's first process that wants to harm its host. MODE says how:
 * 1: garbage where its greeting should be, and control characters on the console, both for ever
 * 2: an honest greeting, and then garbage for ever */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <unistd.h>

static void load_modules(void) {
  struct dirent **names;
  int count = scandir("/modules", &names, NULL, alphasort);
  for (int i = 0; i < count; i++) {
    char path[300];
    snprintf(path, sizeof path, "/modules/%s", names[i]->d_name);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    syscall(SYS_finit_module, file, "", 0);
    close(file);
  }
}

static int open_port(void) {
  for (;; usleep(10000)) {
    DIR *ports = opendir("/sys/class/virtio-ports");
    struct dirent *port;
    while (ports && (port = readdir(ports))) {
      char path[300], name[64] = "";
      snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", port->d_name);
      FILE *file = fopen(path, "r");
      if (!file) continue;
      if (fgets(name, sizeof name, file) && !strcmp(name, "banger.agent.0\n")) {
        snprintf(path, sizeof path, "/dev/%s", port->d_name);
        return open(path, O_RDWR | O_CLOEXEC);
      }
      fclose(file);
    }
    if (ports) closedir(ports);
  }
}

static void greet_back(int port) {
  char hello[32];
  for (size_t have = 0; have < sizeof hello;) {
    ssize_t count = read(port, hello + have, sizeof hello - have);
    if (count > 0) have += count;
    else usleep(10000);
  }
  if (write(port, hello, sizeof hello) < 0) usleep(10000);
}

static void flood(int to, const char *with) {
  char bytes[4096];
  for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = with[i % strlen(with)];
  for (;;)
    if (write(to, bytes, sizeof bytes) < 0) usleep(10000);
}

int main(void) {
  mount("dev", "/dev", "devtmpfs", 0, "");
  mount("sys", "/sys", "sysfs", 0, "");
  load_modules();
  if (MODE == 1 && fork() == 0) flood(1, "\033]0;yours is mine\a\033[2J\r\xff\n");
  int port = open_port();
  if (MODE == 2) greet_back(port);
  flood(port, "\xff\xfe garbage");
}
