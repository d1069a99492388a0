// The texts of the .cu and .cuh files of this folder, embedded when the program is built.
#pragma once
#include <stddef.h>

typedef struct {
  const char *name;
  const char *text;
  size_t length;
} jettrain_kernel_source;

/// Source `index`, or one whose name is null past the last.
jettrain_kernel_source jettrain_kernel_source_at(int index);
