// Elementwise operations, and rows that are copied; the gates of a feed-forward unit also with the records (records.cuh) that
// the product behind them takes.
//
// Idea: nothing but memory traffic. Mapping: a thread an element, blocks of 256; in `add_bias` and `gather` a block row a
// row. With records a warp a row and stage, four warps a block, as in `quantise`: a row of 14336 is 28 blocks or more.
// Shapes: `x` and `y` `[len]`, `gate` and `up` `[rows, cols]`, `bias` `[width]`, rows `[rows, width]`, all f32.
// Bytes moved: 8 an element for `scale` and `soft_cap`, 12 for the others; records are 2.5 or 2.06 more, and 4 less than if
// `quantise` read the result again. At decode these are a few kilobytes: what counts is that they are launched at all.
#include "records.cuh"

__device__ __forceinline__ int element() { return blockIdx.x * blockDim.x + threadIdx.x; }

// Both are zero at zero, so what a stage has beyond the row is zero in its records, too.
struct Silu {
  static __device__ __forceinline__ float of(float x) { return x / (1.0f + exp_exact(-x)); }
};

// With the approximation by tanh. Source: Hendrycks and Gimpel 2016.
struct Gelu {
  static __device__ __forceinline__ float of(float x) {
    return 0.5f * x * (1.0f + tanh_exact(0.7978846f * (x + 0.044715f * x * x * x)));
  }
};

template <class Activation, class Records>
__device__ __forceinline__ void gate_stage(float* gate, const float* up, int cols, uint8_t* records) {
  int stages = (cols + Records::LEN - 1) / Records::LEN;
  int stage = blockIdx.x * 4 + (threadIdx.x >> 5), lane = threadIdx.x & 31, row = blockIdx.y;
  if (stage >= stages) return;
  int at = stage * Records::LEN + lane * Records::LANE_LEN;
  gate += (size_t)row * cols;
  float values[Records::LANE_LEN], factors[Records::LANE_LEN];
  Records::load(values, gate, at, cols);
  Records::load(factors, up + (size_t)row * cols, at, cols);
#pragma unroll
  for (int i = 0; i < Records::LANE_LEN; ++i) values[i] = Activation::of(values[i]) * factors[i];
  Records::store(gate, values, at, cols);
  Records::put(records, values, row, stage, stages, lane);
}

// gate = activation(gate) * up, and its records; rows `[rows, cols]`, grid (stages / 4, rows)
#define GATE_WITH(name, Activation, records_name, Records)                                     \
  extern "C" __global__ void __launch_bounds__(128) name##_mul_##records_name(                 \
      float* gate, const float* up, int cols, uint8_t* records) {                              \
    wait_for_inputs();                                                                         \
    gate_stage<Activation, Records>(gate, up, cols, records);                                  \
  }                                                                                            \
  REGISTER(name##_mul_##records_name)

// gate = activation(gate) * up, alone and with each kind of records
#define GATE(name, Activation)                                                                 \
  extern "C" __global__ void __launch_bounds__(256) name##_mul(float* gate, const float* up,   \
                                                               int len) {                      \
    wait_for_inputs();                                                                         \
    int i = element();                                                                         \
    if (i < len) gate[i] = Activation::of(gate[i]) * up[i];                                    \
  }                                                                                            \
  REGISTER(name##_mul)                                                                         \
  GATE_WITH(name, Activation, words, Words)                                                    \
  GATE_WITH(name, Activation, halves, Halves)

GATE(silu, Silu)
GATE(gelu, Gelu)

extern "C" __global__ void __launch_bounds__(256) scale(float* x, float factor, int len) {
  wait_for_inputs();
  int i = element();
  if (i < len) x[i] *= factor;
}
REGISTER(scale)

// x = cap * tanh(x / cap)
extern "C" __global__ void __launch_bounds__(256) soft_cap(float* x, float cap, int len) {
  wait_for_inputs();
  int i = element();
  if (i < len) x[i] = cap * tanh_exact(x[i] / cap);
}
REGISTER(soft_cap)

// x[row] += bias; grid (blocks of a row, rows)
extern "C" __global__ void __launch_bounds__(256) add_bias(float* x, const float* bias, int width) {
  wait_for_inputs();
  int i = element();
  if (i < width) x[(size_t)blockIdx.y * width + i] += bias[i];
}
REGISTER(add_bias)

// out[i] = x[wanted[i]]; grid (blocks of a row, wanted rows)
extern "C" __global__ void __launch_bounds__(256) gather(float* out, const float* x, const uint32_t* wanted, int width) {
  wait_for_inputs();
  int i = element();
  if (i < width) out[(size_t)blockIdx.y * width + i] = x[(size_t)wanted[blockIdx.y] * width + i];
}
REGISTER(gather)
