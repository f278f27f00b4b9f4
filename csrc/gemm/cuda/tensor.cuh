// Matrix products on the tensor cores: bfloat16 and float16, and float32 as tf32 numbers of 11 bits.
//
// One float32 as two tf32 numbers, big the nearest and small the remainder: |small| <= 2^-11 |x|, which is
// exact in 12 bits, of which the tensor cores read 11. So x = big + small with an error of 2^-23 |x|, and the
// three products big big + big small + small big omit small small, 2^-22 |x y|, and twice 2^-23 |x y|: at
// most 2^-21 |x y| (4 eps, on average below one). Truncating x instead of rounding it would save an
// instruction; but small would be twice as large and always have the sign of x, and the omitted part, four
// times as large, would accumulate: sums of positive terms would be 2.5 eps too small.
// The tensor cores truncate their sums, so that a long sum drifts; each 8 terms are therefore summed there
// and added to the rest by ordinary additions.
#pragma once

#include "gemm/cuda/epilogue.cuh"

namespace fastnn::cuda {

enum class Mma : int { direct, tf32, tf32_3x };  // direct: 16-bit types

// Warps of kWarpRows x kWarpColumns values. 64 x 32 take 6 matrix loads (ldmatrix.x4) to 16 products of
// 16 x 8; a block has two rows of four, or two of two of half the height.
template <int kTile>
struct TensorShape {
  static constexpr int kWarpRows = kTile / 2, kWarpColumns = 32;
  static constexpr int kWarpsAcross = kTile / kWarpColumns;
  static constexpr int kThreads = 2 * kWarpsAcross * kWarp;
  static constexpr int kBlocks = 512 / kThreads;  // of a multiprocessor: 128 registers a thread
};

template <class T, int kTile, bool kAAlongRows, bool kBAlongRows>
struct TensorMemory {
  static constexpr int kStages = 4;
  static constexpr int kDepth = 64 / static_cast<int>(sizeof(T));  // two products of 32 bytes
  // Eight lines begin in different banks of 16 bytes: their pitches are odd multiples of that. Scalar reads
  // of tf32 along rows have lines 4 apart from each other's 8 banks: a pitch of 8 words more than a multiple
  // of 32.
  template <bool kAlongRows>
  static constexpr int kPad = kAlongRows && sizeof(T) == 4 ? 8 : 16 / static_cast<int>(sizeof(T));
  static constexpr int kThreads = TensorShape<kTile>::kThreads;
  using A = Slice<T, kTile, kDepth, kAAlongRows, kPad<kAAlongRows>, kThreads>;
  using B = Slice<T, kTile, kDepth, kBAlongRows, kPad<kBAlongRows>, kThreads>;
  static constexpr int kOperands = kStages * (A::kSize + B::kSize) * static_cast<int>(sizeof(T));
  static constexpr int kBytes = kOperands > Sums<T, kTile>::kBytes ? kOperands : Sums<T, kTile>::kBytes;
};

// How a lane reads 16 rows of a slice and 32 bytes of K in the layout of multiply_add: for A four words, for
// B, whose rows are columns of C, two words for each of two products.
template <class T, class Operand, bool kAlongRows, bool kIsB>
struct Fragment {
  static constexpr bool kScalars = kAlongRows && sizeof(T) == 4;  // ldmatrix transposes 16-bit types only

  // Where the lane reads the fragment whose first row is `row`, in the first slice in the memory.
  static __device__ __forceinline__ ptx::SharedAddress first(const T* slice, int row) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    // Four matrices of eight lines: the next but one goes along rows for A and along K for B, the next one
    // the other way; or, if lines are along rows, both the other way round.
    const bool lines_first = kIsB == kAlongRows;
    const int next = lane / 8 % 2, next_but_one = lane / 16;
    const int line = kScalars ? lane % 4 : lane % 8 + 8 * (lines_first ? next : next_but_one);
    const int inner = kScalars ? lane / 4 : kPackSize<T> * (lines_first ? next_but_one : next);
    return ptx::keep(ptx::shared_address(slice + line * Operand::kPitch + inner + offset(row, 0)));
  }
  static __device__ __forceinline__ int offset(int row, int k) {
    return kAlongRows ? k * Operand::kPitch + row : row * Operand::kPitch + k;
  }
  // The same `row` rows and `k` elements further on.
  static __device__ __forceinline__ void read(ptx::SharedAddress first, int row, int k,
                                              uint32_t (&words)[4]) {
    constexpr int kSize = static_cast<int>(sizeof(T));
    const ptx::SharedAddress at = first + offset(row, k) * kSize;
    if constexpr (kScalars) {
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const int low = w % 2, high = w / 2;
        words[w] = ptx::load_word(at + offset(8 * (kIsB ? high : low), 4 * (kIsB ? low : high)) * kSize);
      }
    } else if constexpr (kAlongRows) {
      ptx::load_transposed_matrices(words, at);
    } else {
      ptx::load_matrices(words, at);
    }
  }
};

template <int kWords>
__device__ __forceinline__ void round_words(uint32_t (&words)[kWords]) {
#pragma unroll
  for (int w = 0; w < kWords; ++w) words[w] = ptx::round_to_tf32(__uint_as_float(words[w]));
}

// Splits float32 into the nearest tf32 number and the remainder: an addition, a mask and a subtraction. That
// addition turns a NaN of all ones into 0, but it stays in the remainder.
template <int kWords>
__device__ __forceinline__ void split_words(uint32_t (&words)[kWords], uint32_t (&rest)[kWords]) {
#pragma unroll
  for (int w = 0; w < kWords; ++w) {
    const float x = __uint_as_float(words[w]);
    words[w] = (words[w] + 0x1000u) & 0xffffe000u;
    rest[w] = __float_as_uint(x - __uint_as_float(words[w]));
  }
}

// The sum of one value in float32. Stops at a NaN, so that a network that has diverged to NaN does not take
// forever.
inline __device__ float plain_sum(const Task& task, const Place& place, int64_t i, int64_t j) {
  const Product& p = task.product;
  const float* const a = static_cast<const float*>(p.a.data) + place.batch * p.a.batch + i * p.a.row;
  const float* const b = static_cast<const float*>(p.b.data) + place.batch * p.b.batch + j * p.b.row;
  float sum = 0;
  for (int64_t k = place.k; k < place.k_end && sum == sum; ++k) sum += a[k * p.a.column] * b[k * p.b.column];
  return sum;
}

// Infinite factors turn the three products into NaN (infinity times a remainder of 0), and so does a factor
// that rounds to infinity: such values are computed again.
template <int kTile, int kThreads>
__device__ __forceinline__ void mend_tile(const Task& task, const Place& place, float* tile) {
  const int rows = extent(task.product.m - place.i, kTile), columns = extent(task.product.n - place.j, kTile);
#pragma unroll 1
  for (int at = static_cast<int>(threadIdx.x); at < kTile * kTile; at += kThreads) {
    const int row = at / kTile, column = at % kTile;
    float& value = tile[row * Sums<float, kTile>::kPitch + column];
    if (row < rows && column < columns && !isfinite(value))
      value = plain_sum(task, place, place.i + row, place.j + column);
  }
}

template <class T, int kTile, Mma kMma, bool kAAlongRows, bool kBAlongRows>
__global__ void __launch_bounds__(TensorShape<kTile>::kThreads,
                                  kMma == Mma::tf32_3x ? 1 : TensorShape<kTile>::kBlocks)
    tensor_product(const __grid_constant__ Task task) {
  using Shape = TensorShape<kTile>;
  using Memory = TensorMemory<T, kTile, kAAlongRows, kBAlongRows>;
  using A = typename Memory::A;
  using B = typename Memory::B;
  constexpr int kRows = Shape::kWarpRows / 16, kColumns = Shape::kWarpColumns / 8;  // products of a warp
  T* const memory = ptx::dynamic_shared<T>();
  const Place place = place_of_block<kTile>(task);
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const int top = warp / Shape::kWarpsAcross * Shape::kWarpRows;
  const int left = warp % Shape::kWarpsAcross * Shape::kWarpColumns;

  using ReadA = Fragment<T, A, kAAlongRows, false>;
  using ReadB = Fragment<T, B, kBAlongRows, true>;
  const ptx::SharedAddress a_first = ReadA::first(memory, top);
  const ptx::SharedAddress b_first = ReadB::first(memory + A::kSize, left);

  float sums[kRows][kColumns][4] = {};
  RowSum<T, A, kTile, Memory::kDepth> row_sum(task, place);
  for_each_slice<T, A, B, kTile, Memory::kDepth, Memory::kStages>(task, place, memory, [&](int at) {
#pragma unroll
    for (int k = 0; k < Memory::kDepth; k += Memory::kDepth / 2) {
      uint32_t a[kRows][4], b[kColumns][2];
#pragma unroll
      for (int r = 0; r < kRows; ++r) ReadA::read(a_first + at, r * 16, k, a[r]);
#pragma unroll
      for (int c = 0; c < kColumns; c += 2) {
        uint32_t words[4];
        ReadB::read(b_first + at, c * 8, k, words);
        b[c][0] = words[0], b[c][1] = words[1], b[c + 1][0] = words[2], b[c + 1][1] = words[3];
      }
      if constexpr (kMma == Mma::direct) {
#pragma unroll
        for (int r = 0; r < kRows; ++r)
#pragma unroll
          for (int c = 0; c < kColumns; ++c) ptx::multiply_add<T>(sums[r][c], a[r], b[c]);
      } else if constexpr (kMma == Mma::tf32) {
#pragma unroll
        for (int r = 0; r < kRows; ++r) round_words(a[r]);
#pragma unroll
        for (int c = 0; c < kColumns; ++c) round_words(b[c]);
#pragma unroll
        for (int r = 0; r < kRows; ++r)
#pragma unroll
          for (int c = 0; c < kColumns; ++c) ptx::multiply_add<float>(sums[r][c], a[r], b[c]);
      } else {
        uint32_t a_rest[kRows][4], b_rest[kColumns][2];
#pragma unroll
        for (int r = 0; r < kRows; ++r) split_words(a[r], a_rest[r]);
#pragma unroll
        for (int c = 0; c < kColumns; ++c) split_words(b[c], b_rest[c]);
#pragma unroll
        for (int r = 0; r < kRows; ++r)
#pragma unroll
          for (int c = 0; c < kColumns; ++c) {
            float part[4] = {};
            ptx::multiply_add<float>(part, a_rest[r], b[c]);
            ptx::multiply_add<float>(part, a[r], b_rest[c]);
            ptx::multiply_add<float>(part, a[r], b[c]);
#pragma unroll
            for (int e = 0; e < 4; ++e) sums[r][c][e] += part[e];
          }
      }
    }
    row_sum.add(slice_at(memory, at));
  });

  float* const tile = reinterpret_cast<float*>(memory);
#pragma unroll
  for (int r = 0; r < kRows; ++r)
#pragma unroll
    for (int c = 0; c < kColumns; ++c)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = top + r * 16 + half * 8 + lane / 4, column = left + c * 8 + lane % 4 * 2;
        const float2 pair = make_float2(sums[r][c][2 * half], sums[r][c][2 * half + 1]);
        *reinterpret_cast<float2*>(tile + row * Sums<T, kTile>::kPitch + column) = pair;
      }
  __syncthreads();
  if constexpr (kMma == Mma::tf32_3x) {
    mend_tile<kTile, Shape::kThreads>(task, place, tile);
    __syncthreads();
  }
  store_tile<T, kTile, Shape::kThreads>(task, place, tile);
  row_sum.store(task, place);
}

}  // namespace fastnn::cuda
