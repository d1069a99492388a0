// What vectors the kernels are compiled for (JETTRAIN_CPU), which Swift cannot ask.
#pragma once

#ifdef __AVX512F__
enum { jettrain_has_wide_vectors = 1 };
#else
enum { jettrain_has_wide_vectors = 0 };
#endif
