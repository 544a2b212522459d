/* A guest's first process that never says hello. */
#include <unistd.h>
int main(void) {
  for (;;) pause();
}
