/* Stands in the VMM's place and tries what a guest that took over its VMM would try. One line for
   everything: "kept out: WHAT" or "REACHED: WHAT HOW". */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include <linux/netlink.h>

static void say(const char *what, int reached, const char *how) {
  dprintf(2, reached ? "REACHED: %s %s\n" : "kept out: %s\n", what, how);
}

/* Looks through everything that can be seen for what should not be there. */
static int sockets, writable_image, homes;
static const char *self;
static char found[4096];

static void walk(const char *dir, int depth) {
  DIR *entries = opendir(dir);
  struct dirent *entry;
  if (!entries || depth > 8) return;
  while ((entry = readdir(entries))) {
    char path[4096];
    struct stat status;
    if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
    snprintf(path, sizeof path, "%s/%s", strcmp(dir, "/") ? dir : "", entry->d_name);
    if (lstat(path, &status)) continue;
    if (S_ISSOCK(status.st_mode)) sockets++, strcpy(found, path);
    if (S_ISDIR(status.st_mode)) walk(path, depth + 1);
    if (!strcmp(path, "/vm/root.ext4") && open(path, O_RDWR) >= 0) writable_image++;
    /* The probe itself is shown at its own path, as every VMM's program is. */
    if (!strncmp(path, self, strlen(path))) continue;
    if (!strncmp(path, "/home", 5) || !strncmp(path, "/root", 5) || !strncmp(path, "/var", 4) ||
        !strncmp(path, "/etc/shadow", 11))
      homes++, strcpy(found, path);
  }
  closedir(entries);
}

int main(int argc, char **argv) {
  self = argc ? argv[0] : "";
  walk("/", 0);
  say("home", homes > 0, found);
  say("sockets", sockets > 0, found);
  say("image", writable_image > 0, "for writing");

  say("proc", open("/proc/1/root", O_RDONLY) >= 0 || open("/proc/self/status", O_RDONLY) >= 0, "");
  int created = open("/created", O_CREAT | O_RDWR, 0600) >= 0;
  say("files", created, "wrote to its root directory");
  say("mount", mount("none", "/vm", "tmpfs", 0, "") == 0, "mounted something");

  /* nft speaks netlink; without CAP_NET_ADMIN over the namespace even an empty batch is refused, and
     the VMM's namespace has no devices of the VM at all. */
  int netlink = socket(AF_NETLINK, SOCK_RAW, NETLINK_NETFILTER);
  int admin = setsockopt(netlink, SOL_SOCKET, 33 /* SO_RCVBUFFORCE */, &(int){1 << 20}, sizeof(int));
  say("nft", netlink >= 0 && admin == 0, "CAP_NET_ADMIN");

  /* Root inside is fine only if it is nobody outside; capabilities are what counts. */
  int root = setuid(0) == 0 && geteuid() == 0 && chroot("/") == 0;
  say("root", root || chroot("/") == 0 || sethostname("x", 1) == 0, "has capabilities");
  dprintf(2, "probe done\n");
  return 1;
}
