// Root-mean-square norm, alone and after the residual addition before it.
//
// Idea: a row is read once, its weights with it, and stays in registers. Mapping: a block a row; the number of threads
// depends on the row's length alone, so a row's sum has one order whatever is beside it: thread t adds elements t,
// t + threads, ..., then a tree over lanes, then one over warps.
// Shapes: `x` and `out` `[rows, len]`, `weight` `[len]`, f32. Bytes moved: 8 an element, 16 with the addition.
// Source: Zhang and Sennrich 2019.
#include "device.cuh"

// The sum over the block, in every thread. `shared` has room for one number a warp.
__device__ __forceinline__ float block_sum(float x, float* shared) {
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  x = warp_sum(x);
  if (lane == 0) shared[warp] = x;
  __syncthreads();
  return warp_sum(lane < warps ? shared[lane] : 0.0f);
}

// x += y first, with ADDS; then out = norm(x). Of a thread's elements the first KEPT stay in registers, and their
// weights come with them: a row of up to 8192 waits for memory once.
template <bool ADDS>
__device__ __forceinline__ void norm_row(float* out, float* x, const float* y, const float* weight, int len,
                                         float eps) {
  constexpr int KEPT = 8;
  __shared__ float shared[32];
  float kept[KEPT], weights[KEPT], added[KEPT], sum = 0.0f;
  int threads = blockDim.x, first = threadIdx.x;
#pragma unroll
  for (int i = 0; i < KEPT; ++i) {
    int at = first + i * threads;
    if (at >= len) continue;
    kept[i] = x[at];
    weights[i] = weight[at];
    if (ADDS) added[i] = y[at];
  }
#pragma unroll
  for (int i = 0; i < KEPT; ++i) {
    int at = first + i * threads;
    if (at >= len) continue;
    if (ADDS) x[at] = kept[i] = kept[i] + added[i];
    sum = fmaf(kept[i], kept[i], sum);
  }
  for (int at = first + KEPT * threads; at < len; at += threads) {
    float element = x[at];
    if (ADDS) x[at] = element = element + y[at];
    sum = fmaf(element, element, sum);
  }
  float factor = 1.0f / sqrtf(block_sum(sum, shared) / (float)len + eps);
#pragma unroll
  for (int i = 0; i < KEPT; ++i) {
    int at = first + i * threads;
    if (at < len) out[at] = kept[i] * factor * weights[i];
  }
  for (int at = first + KEPT * threads; at < len; at += threads) out[at] = x[at] * factor * weight[at];
}

// out = x / sqrt(mean(x²) + eps) * weight; `out` may be `x`.
extern "C" __global__ void __launch_bounds__(1024) rms_norm(float* out, float* x, const float* weight, int len,
                                                            float eps) {
  wait_for_inputs();
  size_t start = (size_t)blockIdx.x * len;
  norm_row<false>(out + start, x + start, nullptr, weight, len, eps);
}
REGISTER(rms_norm)

// x += y, then y = norm(x): the same bits as an addition and `rms_norm` one after the other.
extern "C" __global__ void __launch_bounds__(1024) add_rms_norm(float* x, float* y, const float* weight, int len,
                                                                float eps) {
  wait_for_inputs();
  size_t start = (size_t)blockIdx.x * len;
  norm_row<true>(y + start, x + start, y + start, weight, len, eps);
}
REGISTER(add_rms_norm)
