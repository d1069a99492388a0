// Prints the stack of a thread from a signal handler, which Swift cannot express.
#pragma once
#include <execinfo.h>
#include <pthread.h>
#include <signal.h>

static void jettrain_stack_handler(int number) {
  (void)number;
  void *frames[64];
  backtrace_symbols_fd(frames, backtrace(frames, 64), 2);
}

// backtrace() loads a library at its first call, which a handler must not do.
static inline void jettrain_prepare_stacks(void) {
  void *frame[1];
  backtrace(frame, 1);
  signal(SIGRTMIN + 3, jettrain_stack_handler);
}

static inline void jettrain_print_stack(pthread_t thread) { pthread_kill(thread, SIGRTMIN + 3); }
