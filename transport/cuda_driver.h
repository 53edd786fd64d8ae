// The functions of the CUDA driver that weightcast calls, found at run time. For transport/cuda*.cpp and
// quant/gpu*.cpp.
#pragma once

#include <cstddef>
#include <cstdint>

// As cuda.h spells them, whose presence at build time is not required; part of the driver's stable interface.
struct CUctx_st;
struct CUevent_st;
struct CUfunc_st;
struct CUkern_st;
struct CUlib_st;
struct CUstream_st;

namespace weightcast {

using CudaAddress = unsigned long long;

struct CudaDriver {
  int (*init)(unsigned);
  int (*error_name)(int, const char**);
  int (*pointer_attribute)(void*, int, CudaAddress);
  int (*address_range)(CudaAddress*, std::size_t*, CudaAddress);
  int (*device_get)(int*, int);
  int (*device_attribute)(int*, int, int);
  int (*device_name)(char*, int, int);
  int (*primary_retain)(CUctx_st**, int);
  int (*set_current)(CUctx_st*);
  int (*get_current)(CUctx_st**);
  int (*push_current)(CUctx_st*);
  int (*pop_current)(CUctx_st**);
  int (*enable_peer)(CUctx_st*, unsigned);
  int (*synchronize)();
  int (*memory_allocate)(CudaAddress*, std::size_t);
  int (*memory_free)(CudaAddress);
  int (*pinned_allocate)(void**, std::size_t, unsigned);
  int (*pinned_free)(void*);
  int (*copy_async)(CudaAddress, CudaAddress, std::size_t, CUstream_st*);
  // Many at once: targets, sources, bytes, their number; CUmemcpyAttributes, the first copy of each, their number; the
  // copy that failed. nullptr: the driver is older than CUDA 12.8.
  int (*copy_batch)(CudaAddress*, CudaAddress*, std::size_t*, std::size_t, void*, std::size_t*, std::size_t,
                    std::size_t*, CUstream_st*);
  int (*copy_between)(CudaAddress, CUctx_st*, CudaAddress, CUctx_st*, std::size_t, CUstream_st*);
  int (*fill_async)(CudaAddress, unsigned char, std::size_t, CUstream_st*);
  int (*stream_create)(CUstream_st**, unsigned, int);
  int (*stream_priorities)(int*, int*);
  int (*stream_destroy)(CUstream_st*);
  int (*stream_synchronize)(CUstream_st*);
  int (*stream_wait_event)(CUstream_st*, CUevent_st*, unsigned);
  int (*event_create)(CUevent_st**, unsigned);
  int (*event_destroy)(CUevent_st*);
  int (*event_record)(CUevent_st*, CUstream_st*);
  int (*event_query)(CUevent_st*);
  int (*event_elapsed)(float*, CUevent_st*, CUevent_st*);
  int (*library_load)(CUlib_st**, const void*, int*, void**, unsigned, int*, void**, unsigned);
  int (*library_kernel)(CUkern_st**, CUlib_st*, const char*);
  int (*launch)(CUfunc_st*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream_st*, void**,
                void**);
};

// Throws Error unavailable where there is no driver, no device, or a driver older than CUDA 12.
[[nodiscard]] const CudaDriver& cuda_driver();

// The primary context of a device, retained for the life of the process. Throws Error unavailable.
[[nodiscard]] CUctx_st* primary_cuda_context(int device);

// Throws Error unavailable with the driver's name of the result unless it is 0.
void check_cuda(int result, const char* doing);

}  // namespace weightcast
