// Replaces csrc/core/parallel.h and core/team.h: one thread, which is what a WebAssembly module has
// without headers of the web server's own. Nothing is thrown: where memory ends, JavaScript unwinds the stack
// (memory.cpp).
#pragma once

#include <cstdint>

#include "core/scratch.h"

namespace fastnn {

inline int max_threads() { return 1; }
inline bool leads_team() { return true; }
inline void wait_for_team() {}
inline void* shared_scratch(Scratch slot, size_t bytes) { return thread_scratch(slot, bytes); }

}  // namespace fastnn

namespace fastnn::FASTNN_ISA {

template <class Body>
inline void parallel_for(int64_t n, int64_t /*grain*/, const Body& body) {
  if (n > 0) body(int64_t{0}, n);
}

template <class Code>
inline void run_as_team(int64_t /*threads*/, const Code& code) {
  code();
}

template <class Piece, class Next>
inline void run_pieces(int64_t /*threads*/, const Piece& piece, const Next& next) {
  do {
    piece();
  } while (next());
}

}  // namespace fastnn::FASTNN_ISA
