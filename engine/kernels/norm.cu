// Root-mean-square norm, alone and after the residual addition before it.
//
// Idea: a row is read twice, the second time from the first-level cache. Mapping: a block a row (or a head of a row); the
// number of threads depends on the row's length alone, so a row's sum has one order whatever is beside it: thread t adds
// elements t, t + threads, ..., then a tree over lanes, then one over warps.
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

__device__ __forceinline__ void norm_row(float* out, const float* x, const float* weight, int len, float eps, float sum,
                                         float* shared) {
  float factor = 1.0f / sqrtf(block_sum(sum, shared) / (float)len + eps);
  for (int i = threadIdx.x; i < len; i += blockDim.x) out[i] = x[i] * factor * weight[i];
}

// out = x / sqrt(mean(x²) + eps) * weight; `out` may be `x`.
extern "C" __global__ void __launch_bounds__(1024) rms_norm(float* out, const float* x, const float* weight, int len,
                                                            float eps) {
  __shared__ float shared[32];
  x += (size_t)blockIdx.x * len;
  float sum = 0.0f;
  for (int i = threadIdx.x; i < len; i += blockDim.x) sum = fmaf(x[i], x[i], sum);
  norm_row(out + (size_t)blockIdx.x * len, x, weight, len, eps, sum, shared);
}
REGISTER(rms_norm)

// x += y, then y = norm(x): the same bits as `add` and `rms_norm` one after the other.
extern "C" __global__ void __launch_bounds__(1024) add_rms_norm(float* x, float* y, const float* weight, int len,
                                                                float eps) {
  __shared__ float shared[32];
  x += (size_t)blockIdx.x * len;
  y += (size_t)blockIdx.x * len;
  float sum = 0.0f;
  for (int i = threadIdx.x; i < len; i += blockDim.x) {
    float added = x[i] + y[i];
    x[i] = added;
    sum = fmaf(added, added, sum);
  }
  norm_row(y, x, weight, len, eps, sum, shared);
}
REGISTER(add_rms_norm)
