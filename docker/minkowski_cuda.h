// Included by nvcc before every file of MinkowskiEngine 0.5.4 (install_minkowski.sh): what its sources took from
// headers that no longer include one another, and two names that CUDA 13 took away or changed.
#pragma once
#if defined(__CUDACC__)

#include <ATen/core/Tensor.h>
#include <cuda_runtime.h>
#include <thrust/version.h>

#include <thrust/execution_policy.h>
#include <thrust/reduce.h>
#include <thrust/remove.h>
#include <thrust/sort.h>
#include <thrust/unique.h>

#if THRUST_VERSION >= 300000
namespace thrust {
template <class Argument, class Result> struct unary_function {
  using argument_type = Argument;
  using result_type = Result;
};
} // namespace thrust
#endif

#if CUDART_VERSION >= 13000
static inline cudaError_t cudaMemPrefetchAsync(const void *pointer, size_t bytes, int device, cudaStream_t stream) {
  cudaMemLocation location{};
  location.type = cudaMemLocationTypeDevice;
  location.id = device;
  return cudaMemPrefetchAsync(pointer, bytes, location, 0, stream);
}
#endif

#endif
