// Root-mean-square norm, alone and after the residual addition before it, alone and with the records (records.cuh) that the
// product behind it takes.
//
// Idea: a row is read once, its weights with it, and stays in registers. Mapping: a block a row; the number of threads
// depends on the row's length alone, so a row's sum has one order whatever is beside it: thread t adds elements t,
// t + threads, ..., then a tree over lanes, then one over warps. Weights are nobody's output, so they are asked for before the
// kernel in front is done.
// Records want neighbours in a lane: the normed row goes through shared memory, and then a warp takes a stage. That is one
// barrier and six shuffles for 128 elements; with the row left where it was, 32 elements would take thirteen, 1700 cycles of a
// row of 4096.
// Shapes: `x` and `out` `[rows, len]`, `weight` `[len]`, f32. Bytes moved: 8 an element, 16 with the addition; records are
// 2.5 or 2.06 more, and 4 less than if `quantise` read the row again.
// Source: Zhang and Sennrich 2019.
#include "records.cuh"

// No records.
struct Nothing {
  static constexpr int LEN = 0;
};

// The sum over the block, in every thread. `shared` has room for one number a warp.
__device__ __forceinline__ float block_sum(float x, float* shared) {
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  x = warp_sum(x);
  if (lane == 0) shared[warp] = x;
  __syncthreads();
  return warp_sum(lane < warps ? shared[lane] : 0.0f);
}

// x += y first, with ADDS; then out = norm(x), and its records. Of a thread's elements the first KEPT stay in registers, and
// their weights come with them: a row of up to 8192 waits for memory once. With an addition and records, registers are for
// EARLY weights until the addition is done; the others come while the block adds up.
template <bool ADDS, class Records>
__device__ __forceinline__ void norm_row(float* out, float* x, const float* y, const float* weight, int len, float eps,
                                         uint8_t* records) {
  constexpr int KEPT = 8, EARLY = ADDS && Records::LEN > 0 ? 4 : KEPT;
  __shared__ float shared[32];
  float kept[KEPT], weights[KEPT], added[KEPT], sum = 0.0f;
  int threads = blockDim.x, first = threadIdx.x;
#pragma unroll
  for (int i = 0; i < EARLY; ++i) {
    int at = first + i * threads;
    if (at < len) weights[i] = weight[at];
  }
  wait_for_inputs();
  size_t start = (size_t)blockIdx.x * len;
  out += start;
  x += start;
  if (ADDS) y += start;
#pragma unroll
  for (int i = 0; i < KEPT; ++i) {
    int at = first + i * threads;
    if (at >= len) continue;
    kept[i] = x[at];
    if (ADDS) added[i] = y[at];
  }
#pragma unroll
  for (int i = 0; i < KEPT; ++i) {
    int at = first + i * threads;
    if (at >= len) continue;
    if (ADDS) x[at] = kept[i] = kept[i] + added[i];
    sum = fmaf(kept[i], kept[i], sum);
  }
#pragma unroll
  for (int i = EARLY; i < KEPT; ++i) {
    int at = first + i * threads;
    if (at < len) weights[i] = weight[at];
  }
  for (int at = first + KEPT * threads; at < len; at += threads) {
    float element = x[at];
    if (ADDS) x[at] = element = element + y[at];
    sum = fmaf(element, element, sum);
  }
  float factor = 1.0f / sqrtf(block_sum(sum, shared) / (float)len + eps);
  SHARED_DYNAMIC(float, row);
  float* normed = Records::LEN > 0 ? row : out;
#pragma unroll
  for (int i = 0; i < KEPT; ++i) {
    int at = first + i * threads;
    if (at < len) normed[at] = kept[i] * factor * weights[i];
  }
  for (int at = first + KEPT * threads; at < len; at += threads) normed[at] = x[at] * factor * weight[at];
  if constexpr (Records::LEN > 0) {
    __syncthreads();
    int lane = threadIdx.x & 31, stages = (len + Records::LEN - 1) / Records::LEN;
    for (int stage = threadIdx.x >> 5; stage < stages; stage += threads >> 5) {
      int at = stage * Records::LEN + lane * Records::LANE_LEN;
      float values[Records::LANE_LEN];
      Records::load(values, row, at, len);
      Records::store(out, values, at, len);
      Records::put(records, values, blockIdx.x, stage, stages, lane);
    }
  }
}

// out = x / sqrt(mean(x²) + eps) * weight; `out` may be `x`.
extern "C" __global__ void __launch_bounds__(1024, 1) rms_norm(float* out, float* x, const float* weight, int len,
                                                               float eps) {
  norm_row<false, Nothing>(out, x, nullptr, weight, len, eps, nullptr);
}
REGISTER(rms_norm)

// x += y, then y = norm(x): the same bits as an addition and `rms_norm` one after the other.
extern "C" __global__ void __launch_bounds__(1024, 1) add_rms_norm(float* x, float* y, const float* weight, int len,
                                                                   float eps) {
  norm_row<true, Nothing>(y, x, y, weight, len, eps, nullptr);
}
REGISTER(add_rms_norm)

// The same with records of what was normed; a row of dynamic shared memory.
#define WITH_RECORDS(name, Records)                                                      \
  extern "C" __global__ void __launch_bounds__(1024, 1) rms_norm_##name(                 \
      float* out, float* x, const float* weight, int len, float eps, uint8_t* records) { \
    norm_row<false, Records>(out, x, nullptr, weight, len, eps, records);                \
  }                                                                                      \
  REGISTER(rms_norm_##name)                                                              \
  extern "C" __global__ void __launch_bounds__(1024, 1) add_rms_norm_##name(             \
      float* x, float* y, const float* weight, int len, float eps, uint8_t* records) {   \
    norm_row<true, Records>(y, x, y, weight, len, eps, records);                         \
  }                                                                                      \
  REGISTER(add_rms_norm_##name)

WITH_RECORDS(words, Words)
WITH_RECORDS(halves, Halves)
