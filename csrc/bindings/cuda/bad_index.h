// Bad indices found by kernels, which the host never read.
#pragma once

#include <cuda_runtime_api.h>

namespace fastnn::cuda {

// Raises what a kernel has found since the last call; before that, it calls the callback that Python passed
// to on_bad_index().
void raise_bad_index();

// The same for work on the stream now; waits for it, unless it is being captured.
void raise_bad_index_of(cudaStream_t stream);

}  // namespace fastnn::cuda
