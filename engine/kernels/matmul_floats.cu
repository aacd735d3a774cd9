// out = x · weightᵀ for weights of f32, with whole f32 products: for models and matrices that want no rounding at all.
// Everything else is multiplied by matmul.cu.
//
// Idea: at batch 1 the weight is read once and nothing else counts, so lanes read sixteen bytes each, a warp one line after
// the other of two weight rows at a time, past the first-level cache. Up to eight rows of activations share one reading;
// more are further blocks. Decision: a lane adds its chunks lane, lane + 32, ... in order, then comes one tree over the
// lanes: an element's order depends on the weight's shape alone.
// Mapping: 128 threads are four warps are eight outputs; grid (outputs / 8, rows / ROWS).
// Shapes: x `[rows, cols]`, out `[rows, outputs]`, f32; weights as in floats.cuh.
// Bytes moved: the weight, once per ROWS rows of activations, plus 4 * rows * (cols + outputs).
#include "floats.cuh"

constexpr int OUTPUTS = 2;
constexpr int WARPS = 4;

template <int ROWS>
__device__ __forceinline__ void put(float* out, float (&sums)[OUTPUTS][ROWS], int first_output, int first_row, int outputs, int rows) {
  int lane = threadIdx.x & 31;
#pragma unroll
  for (int o = 0; o < OUTPUTS; ++o) {
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      float sum = warp_sum(sums[o][r]);
      bool wanted = first_output + o < outputs && first_row + r < rows;
      if (lane == 0 && wanted) out[(size_t)(first_row + r) * outputs + first_output + o] = sum;
    }
  }
}

template <class Format, int ROWS>
__device__ __forceinline__ void matmul_floats(float* out, const float* x, const FloatWeights& w, int rows, int outputs, int cols) {
  constexpr int LEN = Format::LEN;
  int lane = threadIdx.x & 31, first_output = (blockIdx.x * WARPS + (threadIdx.x >> 5)) * OUTPUTS;
  int first_row = blockIdx.y * ROWS;
  if (first_output >= outputs) return;
  float sums[OUTPUTS][ROWS];
  const uint4* weights[OUTPUTS];
#pragma unroll
  for (int o = 0; o < OUTPUTS; ++o) {
    weights[o] = w.elements + (size_t)lesser(first_output + o, outputs - 1) * w.row_chunks;
#pragma unroll
    for (int r = 0; r < ROWS; ++r) sums[o][r] = 0.0f;
  }
  // Rows of activations that are no multiple of sixteen bytes are read one by one.
  int whole = cols % 4 == 0 ? cols / LEN : 0;
#pragma unroll(ROWS < 4 ? 2 : 1)
  for (int chunk = lane; chunk < w.row_chunks; chunk += 32) {
    float elements[OUTPUTS][LEN];
#pragma unroll
    for (int o = 0; o < OUTPUTS; ++o) Format::decode(load_once(weights[o] + chunk), elements[o]);
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      const float* from = x + (size_t)lesser(first_row + r, rows - 1) * cols + chunk * LEN;
      float values[LEN];
      if (chunk < whole) {
#pragma unroll
        for (int i = 0; i < LEN; i += 4) {
          float4 four = *(const float4*)(from + i);
          values[i] = four.x;
          values[i + 1] = four.y;
          values[i + 2] = four.z;
          values[i + 3] = four.w;
        }
      } else {
#pragma unroll
        for (int i = 0; i < LEN; ++i) values[i] = chunk * LEN + i < cols ? from[i] : 0.0f;
      }
#pragma unroll
      for (int o = 0; o < OUTPUTS; ++o) {
#pragma unroll
        for (int i = 0; i < LEN; ++i) sums[o][r] = fmaf(elements[o][i], values[i], sums[o][r]);
      }
    }
  }
  put<ROWS>(out, sums, first_output, first_row, outputs, rows);
}

#define FLOATS(name, Format, ROWS)                                                                           \
  extern "C" __global__ void __launch_bounds__(128)                                                          \
      matmul_##name##_##ROWS(float* out, const float* x, FloatWeights w, int rows, int outputs, int cols) {       \
    wait_for_inputs();                                                                                            \
    matmul_floats<Format, ROWS>(out, x, w, rows, outputs, cols);                                             \
  }                                                                                                          \
  REGISTER(matmul_##name##_##ROWS)

#define ALL(name, Format)  \
  FLOATS(name, Format, 1)  \
  FLOATS(name, Format, 2)  \
  FLOATS(name, Format, 4)  \
  FLOATS(name, Format, 8)

ALL(f32, F32)
