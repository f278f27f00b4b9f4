// What kernels have found in indices that the host never read.
#pragma once

#include <cuda_runtime_api.h>

namespace fastnn::cuda {

// Raises what a kernel has found since this was asked last; before it does, it calls what Python gave to
// on_bad_index().
void raise_bad_index();

// The same for what runs on the stream now; waits for it, unless it is being captured.
void raise_bad_index_of(cudaStream_t stream);

}  // namespace fastnn::cuda
