// What jettrain calls of NVIDIA's libraries, declared here so that nothing of CUDA is needed to build: the libraries are
// found at run time with dlopen (room CUDA). Values and layouts are those of CUDA 12 and 13.
#pragma once
#include <stddef.h>
#include <stdint.h>

// The driver, libcuda.so.1. Names with _v2 are what its own header maps the plain names to.
typedef int CUresult;
typedef int CUdevice;
typedef uint64_t CUdeviceptr;
typedef struct CUctx_st *CUcontext;
typedef struct CUmod_st *CUmodule;
typedef struct CUfunc_st *CUfunction;
typedef struct CUstream_st *CUstream;
typedef struct CUevent_st *CUevent;
typedef struct CUgraph_st *CUgraph;
typedef struct CUgraphExec_st *CUgraphExec;

typedef CUresult (*cuInit_t)(unsigned);
typedef CUresult (*cuGetErrorName_t)(CUresult, const char **);
typedef CUresult (*cuGetErrorString_t)(CUresult, const char **);
typedef CUresult (*cuDriverGetVersion_t)(int *);
typedef CUresult (*cuDeviceGetCount_t)(int *);
typedef CUresult (*cuDeviceGet_t)(CUdevice *, int);
typedef CUresult (*cuDeviceGetName_t)(char *, int, CUdevice);
typedef CUresult (*cuDeviceTotalMem_t)(size_t *, CUdevice);
typedef CUresult (*cuDeviceGetAttribute_t)(int *, int, CUdevice);
typedef CUresult (*cuDeviceGetPCIBusId_t)(char *, int, CUdevice);
typedef CUresult (*cuDevicePrimaryCtxRetain_t)(CUcontext *, CUdevice);
typedef CUresult (*cuDevicePrimaryCtxRelease_t)(CUdevice);
typedef CUresult (*cuCtxSetCurrent_t)(CUcontext);
typedef CUresult (*cuCtxSynchronize_t)(void);
typedef CUresult (*cuMemGetInfo_t)(size_t *, size_t *);
typedef CUresult (*cuMemAlloc_t)(CUdeviceptr *, size_t);
typedef CUresult (*cuMemFree_t)(CUdeviceptr);
typedef CUresult (*cuMemHostAlloc_t)(void **, size_t, unsigned);
typedef CUresult (*cuMemFreeHost_t)(void *);
typedef CUresult (*cuMemcpyHtoDAsync_t)(CUdeviceptr, const void *, size_t, CUstream);
typedef CUresult (*cuMemcpyDtoHAsync_t)(void *, CUdeviceptr, size_t, CUstream);
typedef CUresult (*cuMemcpyDtoDAsync_t)(CUdeviceptr, CUdeviceptr, size_t, CUstream);
typedef CUresult (*cuMemsetD8Async_t)(CUdeviceptr, unsigned char, size_t, CUstream);
typedef CUresult (*cuStreamCreate_t)(CUstream *, unsigned);
typedef CUresult (*cuStreamDestroy_t)(CUstream);
typedef CUresult (*cuStreamSynchronize_t)(CUstream);
typedef CUresult (*cuStreamWaitEvent_t)(CUstream, CUevent, unsigned);
typedef CUresult (*cuEventCreate_t)(CUevent *, unsigned);
typedef CUresult (*cuEventDestroy_t)(CUevent);
typedef CUresult (*cuEventRecord_t)(CUevent, CUstream);
typedef CUresult (*cuEventQuery_t)(CUevent);
typedef CUresult (*cuEventSynchronize_t)(CUevent);
typedef CUresult (*cuEventElapsedTime_t)(float *, CUevent, CUevent);
typedef CUresult (*cuModuleLoadData_t)(CUmodule *, const void *);
typedef CUresult (*cuModuleUnload_t)(CUmodule);
typedef CUresult (*cuModuleGetFunction_t)(CUfunction *, CUmodule, const char *);
typedef CUresult (*cuModuleGetGlobal_t)(CUdeviceptr *, size_t *, CUmodule, const char *);
typedef CUresult (*cuFuncSetAttribute_t)(CUfunction, int, int);
typedef CUresult (*cuLaunchKernel_t)(
  CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream, void **, void **);
typedef CUresult (*cuStreamBeginCapture_t)(CUstream, int);
typedef CUresult (*cuStreamEndCapture_t)(CUstream, CUgraph *);
typedef CUresult (*cuGraphInstantiateWithFlags_t)(CUgraphExec *, CUgraph, unsigned long long);
typedef CUresult (*cuGraphLaunch_t)(CUgraphExec, CUstream);
typedef CUresult (*cuGraphDestroy_t)(CUgraph);
typedef CUresult (*cuGraphExecDestroy_t)(CUgraphExec);

// The run-time compiler, libnvrtc.so.
typedef int nvrtcResult;
typedef struct _nvrtcProgram *nvrtcProgram;
typedef const char *(*nvrtcGetErrorString_t)(nvrtcResult);
typedef nvrtcResult (*nvrtcVersion_t)(int *, int *);
typedef nvrtcResult (*nvrtcCreateProgram_t)(
  nvrtcProgram *, const char *, const char *, int, const char *const *, const char *const *);
typedef nvrtcResult (*nvrtcDestroyProgram_t)(nvrtcProgram *);
typedef nvrtcResult (*nvrtcCompileProgram_t)(nvrtcProgram, int, const char *const *);
typedef nvrtcResult (*nvrtcGetSize_t)(nvrtcProgram, size_t *);
typedef nvrtcResult (*nvrtcGetText_t)(nvrtcProgram, char *);

// Exchanges between cards, libnccl.so.2.
typedef int ncclResult_t;
typedef struct ncclComm *ncclComm_t;
typedef struct {
  char internal[128];
} ncclUniqueId;
typedef ncclResult_t (*ncclGetVersion_t)(int *);
typedef ncclResult_t (*ncclGetUniqueId_t)(ncclUniqueId *);
typedef ncclResult_t (*ncclCommInitRank_t)(ncclComm_t *, int, ncclUniqueId, int);
typedef ncclResult_t (*ncclCommFree_t)(ncclComm_t);
typedef ncclResult_t (*ncclCommGetAsyncError_t)(ncclComm_t, ncclResult_t *);
typedef const char *(*ncclGetErrorString_t)(ncclResult_t);
typedef const char *(*ncclGetLastError_t)(ncclComm_t);
typedef ncclResult_t (*ncclGroup_t)(void);
typedef ncclResult_t (*ncclSend_t)(const void *, size_t, int, int, ncclComm_t, CUstream);
typedef ncclResult_t (*ncclRecv_t)(void *, size_t, int, int, ncclComm_t, CUstream);

// Products of matrices, libcublasLt.so.
typedef int cublasStatus_t;
typedef struct cublasLtContext *cublasLtHandle_t;
typedef struct cublasLtMatmulDescOpaque *cublasLtMatmulDesc_t;
typedef struct cublasLtMatrixLayoutOpaque *cublasLtMatrixLayout_t;
typedef struct cublasLtMatmulPreferenceOpaque *cublasLtMatmulPreference_t;
typedef struct {
  uint64_t data[8];
} cublasLtMatmulAlgo_t;
typedef struct {
  cublasLtMatmulAlgo_t algo;
  size_t workspaceSize;
  cublasStatus_t state;
  float wavesCount;
  int reserved[4];
} cublasLtMatmulHeuristicResult_t;
typedef size_t (*cublasLtGetVersion_t)(void);
typedef cublasStatus_t (*cublasLtCreate_t)(cublasLtHandle_t *);
typedef cublasStatus_t (*cublasLtDestroy_t)(cublasLtHandle_t);
typedef cublasStatus_t (*cublasLtMatmulDescCreate_t)(cublasLtMatmulDesc_t *, int, int);
typedef cublasStatus_t (*cublasLtMatmulDescDestroy_t)(cublasLtMatmulDesc_t);
typedef cublasStatus_t (*cublasLtMatmulDescSetAttribute_t)(cublasLtMatmulDesc_t, int, const void *, size_t);
typedef cublasStatus_t (*cublasLtMatrixLayoutCreate_t)(cublasLtMatrixLayout_t *, int, uint64_t, uint64_t, int64_t);
typedef cublasStatus_t (*cublasLtMatrixLayoutDestroy_t)(cublasLtMatrixLayout_t);
typedef cublasStatus_t (*cublasLtMatmulPreferenceCreate_t)(cublasLtMatmulPreference_t *);
typedef cublasStatus_t (*cublasLtMatmulPreferenceDestroy_t)(cublasLtMatmulPreference_t);
typedef cublasStatus_t (*cublasLtMatmulPreferenceSetAttribute_t)(
  cublasLtMatmulPreference_t, int, const void *, size_t);
typedef cublasStatus_t (*cublasLtMatmulAlgoGetHeuristic_t)(
  cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
  cublasLtMatrixLayout_t, cublasLtMatmulPreference_t, int, cublasLtMatmulHeuristicResult_t *, int *);
typedef cublasStatus_t (*cublasLtMatmul_t)(
  cublasLtHandle_t, cublasLtMatmulDesc_t, const void *, CUdeviceptr, cublasLtMatrixLayout_t, CUdeviceptr,
  cublasLtMatrixLayout_t, const void *, CUdeviceptr, cublasLtMatrixLayout_t, CUdeviceptr, cublasLtMatrixLayout_t,
  const cublasLtMatmulAlgo_t *, CUdeviceptr, size_t, CUstream);

// cuDNN and NCCL: so far only their versions.
typedef size_t (*cudnnGetVersion_t)(void);
typedef int (*ncclGetVersion_t)(int *);

// glibc's dladdr, which its header hides from Swift: which file holds an address.
typedef struct {
  const char *file;
  void *base;
  const char *symbol;
  void *address;
} jettrain_symbol_information;
extern int jettrain_find_symbol(const void *, jettrain_symbol_information *) __asm__("dladdr");
