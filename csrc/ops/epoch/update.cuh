// The last part of a step of the epoch kernel: the gradients of the block's parameters, and their update.
#pragma once

#include "ops/epoch/block.cuh"

namespace fastnn::cuda {

// A float32 whose square root and quotient are the device's approximations, with errors of 2^-23 and 2 units
// in the last place: they only determine the size of an update, and the exact ones take most of its time.
struct Approximate {
  float x;
  __device__ __forceinline__ Approximate(float x) : x(x) {}
  __device__ __forceinline__ friend Approximate operator+(Approximate a, Approximate b) { return a.x + b.x; }
  __device__ __forceinline__ friend Approximate operator-(Approximate a, Approximate b) { return a.x - b.x; }
  __device__ __forceinline__ friend Approximate operator*(Approximate a, Approximate b) { return a.x * b.x; }
  __device__ __forceinline__ friend Approximate operator/(Approximate a, Approximate b) {
    return __fdividef(a.x, b.x);
  }
  __device__ __forceinline__ friend bool operator<(Approximate a, Approximate b) { return a.x < b.x; }
  __device__ __forceinline__ friend bool operator!=(Approximate a, Approximate b) { return a.x != b.x; }
  __device__ __forceinline__ friend Approximate sqrt(Approximate a) { return ptx::sqrt_approximate(a.x); }
};

__device__ __forceinline__ void update_value(float& value, float gradient, float& m, float& v,
                                             const AdamConstants<float>& constants) {
  Approximate new_value = value, new_m = m, new_v = v, none = 0;
  adam_update<false>(new_value, Approximate(gradient), new_m, new_v, none, constants);
  value = new_value.x;
  m = new_m.x;
  v = new_v.x;
}

// Four features of 8 rows of W1. Reads the batch's images once, and the gradient of the 8 units is the same
// for all lanes.
__device__ __forceinline__ void update_w1(const EpochBlock& block, int step, int unit, int quad) {
  const EpochLayout& l = block.l;
  const unsigned char* image = block.images(step) + quad * 4;
  const float* gradient = block.floats(l.hidden_gradient) + unit;
  const float scale = block.p.args.scale, shift = block.p.args.shift;
  const int batch = block.batch_of(step);
  float sums[kTile][4] = {};
#pragma unroll 4
  for (int b = 0; b < batch; ++b) {
    float x[4];
    unpack_image(*reinterpret_cast<const unsigned*>(image + b * l.image_stride), scale, shift, x);
    const auto* packs = reinterpret_cast<const float4*>(gradient + b * l.hidden_stride);
    const float4 low = packs[0], high = packs[1];
    const float g[kTile] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int u = 0; u < kTile; ++u)
#pragma unroll
      for (int e = 0; e < 4; ++e) sums[u][e] += g[u] * x[e];
  }
  const AdamConstants<float> constants = block.constants(step)[0];
  const int left = l.features - quad * 4;  // values beyond the last feature stay 0
#pragma unroll
  for (int u = 0; u < kTile; ++u) {
    if (unit + u >= block.own) break;
    float* at = block.floats(l.w1) + (unit + u) * l.weight_stride + quad * 4;
    auto &value = *reinterpret_cast<float4*>(at), &m = *reinterpret_cast<float4*>(at + l.w1_size()),
         &v = *reinterpret_cast<float4*>(at + 2 * l.w1_size());
    float4 new_value = value, new_m = m, new_v = v;
    update_value(new_value.x, sums[u][0], new_m.x, new_v.x, constants);
    if (left > 1) update_value(new_value.y, sums[u][1], new_m.y, new_v.y, constants);
    if (left > 2) update_value(new_value.z, sums[u][2], new_m.z, new_v.z, constants);
    if (left > 3) update_value(new_value.w, sums[u][3], new_m.w, new_v.w, constants);
    value = new_value;
    m = new_m;
    v = new_v;
  }
}

// sum over the batch of a[b * a_stride] * b[b * b_stride], or of a alone where b is null, and the update of
// one value with it.
__device__ __forceinline__ void update_one(const EpochBlock& block, int step, int parameter, float* at,
                                           int apart, const float* a, int a_stride, const float* b,
                                           int b_stride) {
  const int batch = block.batch_of(step);
  float sum = 0;
#pragma unroll 8
  for (int row = 0; row < batch; ++row) sum += a[row * a_stride] * (b ? b[row * b_stride] : 1.0f);
  update_value(at[0], sum, at[apart], at[2 * apart], block.constants(step)[parameter]);
}

// Threads without a part of W1 take the few other values, one each.
__device__ __forceinline__ void update_parameters(const EpochBlock& block, int step) {
  const EpochLayout& l = block.l;
  const int quads = l.weight_stride / 4;
  const int a_tile = round_up(quads, kWarp);  // whole warps, so that the lanes of one have the same units
  const int of_w1 = l.unit_rows / kTile * a_tile, of_w2 = block.own * l.classes;
  const int all = of_w1 + of_w2 + block.own + l.classes;
  const float *hidden = block.floats(l.hidden_values), *hidden_gradient = block.floats(l.hidden_gradient),
              *logits_gradient = block.floats(l.logits_gradient);
  for (int item = threadIdx.x; item < all; item += kEpochThreads) {
    if (item < of_w1) {
      const int tile = item / a_tile, quad = item - tile * a_tile;
      if (quad < quads) update_w1(block, step, tile * kTile, quad);
    } else if (int i = item - of_w1; i < of_w2) {
      const int u = i / l.classes, c = i - u * l.classes;
      update_one(block, step, 2, block.floats(l.w2) + u * l.class_stride + c, l.unit_rows * l.class_stride,
                 hidden + u, l.hidden_stride, logits_gradient + c, l.class_stride);
    } else if (i -= of_w2; i < block.own) {
      update_one(block, step, 1, block.floats(l.b1) + i, l.unit_rows, hidden_gradient + i, l.hidden_stride,
                 nullptr, 0);
    } else {
      i -= block.own;
      update_one(block, step, 3, block.floats(l.b2) + i, l.class_stride, logits_gradient + i, l.class_stride,
                 nullptr, 0);
    }
  }
}

}  // namespace fastnn::cuda
