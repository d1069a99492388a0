// Open MPI's handles are macros over casts, which Swift cannot import; these functions name them.
#pragma once
#include <mpi.h>

static inline MPI_Comm jettrain_comm_world(void) { return MPI_COMM_WORLD; }
static inline MPI_Datatype jettrain_byte(void) { return MPI_BYTE; }
static inline MPI_Datatype jettrain_float(void) { return MPI_FLOAT; }
static inline MPI_Datatype jettrain_uint16(void) { return MPI_UINT16_T; }
static inline MPI_Datatype jettrain_double(void) { return MPI_DOUBLE; }
static inline MPI_Datatype jettrain_int64(void) { return MPI_INT64_T; }
static inline MPI_Op jettrain_sum(void) { return MPI_SUM; }
static inline MPI_Op jettrain_max(void) { return MPI_MAX; }
static inline void *jettrain_in_place(void) { return MPI_IN_PLACE; }
static inline MPI_Info jettrain_info_null(void) { return MPI_INFO_NULL; }
static inline int jettrain_type_shared(void) { return MPI_COMM_TYPE_SHARED; }
static inline MPI_Errhandler jettrain_errors_return(void) { return MPI_ERRORS_RETURN; }
static inline MPI_Status *jettrain_status_ignore(void) { return MPI_STATUS_IGNORE; }
