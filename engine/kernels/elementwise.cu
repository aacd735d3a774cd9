// Elementwise operations, and rows that are copied.
//
// Idea: nothing but memory traffic. Mapping: a thread an element, blocks of 256; in `add_bias` and `gather` a block row a
// row. Shapes: `x` and `y` `[len]`, `bias` `[width]`, rows `[rows, width]`, all f32.
// Bytes moved: 8 an element for `scale` and `soft_cap`, 12 for the others. At decode these are a few kilobytes: what counts
// is that they are launched at all.
#include "device.cuh"

__device__ __forceinline__ int element() { return blockIdx.x * blockDim.x + threadIdx.x; }

// gate = silu(gate) * up
extern "C" __global__ void __launch_bounds__(256) silu_mul(float* gate, const float* up, int len) {
  wait_for_inputs();
  int i = element();
  if (i < len) gate[i] = gate[i] / (1.0f + exp_exact(-gate[i])) * up[i];
}
REGISTER(silu_mul)

// gate = gelu(gate) * up, with the approximation by tanh. Source: Hendrycks and Gimpel 2016.
extern "C" __global__ void __launch_bounds__(256) gelu_mul(float* gate, const float* up, int len) {
  wait_for_inputs();
  int i = element();
  if (i >= len) return;
  float x = gate[i];
  gate[i] = 0.5f * x * (1.0f + tanh_exact(0.7978846f * (x + 0.044715f * x * x * x))) * up[i];
}
REGISTER(gelu_mul)

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
