/* How a program was started, one fact a line. It needs nothing: no C library, shell or file. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static void status_line(const char *name) {
    char line[256];
    FILE *status = fopen("/proc/self/status", "r");
    while (status && fgets(line, sizeof line, status))
        if (!strncmp(line, name, strlen(name)))
            fputs(line, stdout);
    if (status)
        fclose(status);
}

int main(int argc, char **argv, char **envp) {
    char directory[4096];
    printf("arguments:");
    for (int i = 1; i < argc; i++)
        printf(" [%s]", argv[i]);
    printf("\nuser: %d %d %d\n", getuid(), getgid(), geteuid());
    printf("directory: %s\n", getcwd(directory, sizeof directory) ? directory : "?");
    status_line("CapEff:");
    for (; *envp; envp++)
        printf("environment: %s\n", *envp);
    return 0;
}
