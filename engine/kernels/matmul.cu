// out = x · weightᵀ, for decode and for prompts alike.
//
// Idea: at batch 1 the weight is read once and nothing else counts, so lanes read sixteen bytes each, a warp one line after
// the other of two weight rows at a time, past the first-level cache. Up to eight rows of activations share one reading;
// more are further blocks. Decision: a lane adds its chunks lane, lane + 32, ... in order, then comes one tree over the
// lanes: an element's order depends on the weight's shape alone.
// Quantised weights meet whole numbers (quantise.cu): the products of a chunk are exact, four in an instruction, and only a
// chunk's sum is rounded. Decision 20 in ARCHITECTURE.md.
// Mapping: 128 threads are four warps are eight outputs; grid (outputs / 8, rows / ROWS).
// Shapes: x `[rows, cols]`, out `[rows, outputs]`, f32; weights as in formats.cuh; `embed_*`: out `[rows, cols]`.
// Bytes moved: the weight, once per ROWS rows of activations, plus 4 * rows * (cols + outputs).
#include "formats.cuh"

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
__device__ __forceinline__ void matmul_floats(float* out, const float* x, const Weights& w, int rows, int outputs, int cols) {
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

// Activations of all rows, as quantise.cu writes them.
struct Activations {
  const int8_t* high;
  const int8_t* low;
  const float* scales;
  const int* sums;
};

template <class Format, int ROWS>
__device__ __forceinline__ void matmul_integers(float* out, const Activations& x, const Weights& w, int rows, int outputs, int cols) {
  int lane = threadIdx.x & 31, first_output = (blockIdx.x * WARPS + (threadIdx.x >> 5)) * OUTPUTS;
  int first_row = blockIdx.y * ROWS;
  if (first_output >= outputs) return;
  float sums[OUTPUTS][ROWS];
  size_t weight_rows[OUTPUTS];
#pragma unroll
  for (int o = 0; o < OUTPUTS; ++o) {
    weight_rows[o] = lesser(first_output + o, outputs - 1);
#pragma unroll
    for (int r = 0; r < ROWS; ++r) sums[o][r] = 0.0f;
  }
#pragma unroll(ROWS < 4 ? 2 : 1)
  for (int chunk = lane; chunk < w.row_chunks; chunk += 32) {
    uint4 raw[OUTPUTS];
    typename Format::Scale scales[OUTPUTS];
#pragma unroll
    for (int o = 0; o < OUTPUTS; ++o) {
      raw[o] = load_once(w.elements + weight_rows[o] * w.row_chunks + chunk);
      scales[o] = Format::scale(w, weight_rows[o], chunk);
    }
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      size_t row = lesser(first_row + r, rows - 1);
      Row one = {(const int4*)(x.high + row * cols), (const int4*)(x.low + row * cols), x.scales + row * (cols / 32),
                 x.sums + row * (cols / 16)};
#pragma unroll
      for (int o = 0; o < OUTPUTS; ++o) sums[o][r] = Format::add(sums[o][r], raw[o], scales[o], one, chunk);
    }
  }
  put<ROWS>(out, sums, first_output, first_row, outputs, rows);
}

#define FLOATS(name, Format, ROWS)                                                                           \
  extern "C" __global__ void __launch_bounds__(128)                                                          \
      matmul_##name##_##ROWS(float* out, const float* x, Weights w, int rows, int outputs, int cols) {       \
    matmul_floats<Format, ROWS>(out, x, w, rows, outputs, cols);                                             \
  }                                                                                                          \
  REGISTER(matmul_##name##_##ROWS)

#define INTEGERS(name, Format, ROWS)                                                                         \
  extern "C" __global__ void __launch_bounds__(128)                                                          \
      matmul_##name##_##ROWS(float* out, Activations x, Weights w, int rows, int outputs, int cols) {        \
    matmul_integers<Format, ROWS>(out, x, w, rows, outputs, cols);                                           \
  }                                                                                                          \
  REGISTER(matmul_##name##_##ROWS)

// out[row] = table[token of row]; a block a row.
#define EMBED(name)                                                                                          \
  extern "C" __global__ void __launch_bounds__(128)                                                          \
      embed_##name(float* out, const uint32_t* tokens, Weights w, int cols)

#define EMBED_FLOATS(name, Format)                                                                           \
  EMBED(name) {                                                                                              \
    const uint4* from = w.elements + (size_t)tokens[blockIdx.x] * w.row_chunks;                              \
    for (int chunk = threadIdx.x; chunk < w.row_chunks; chunk += blockDim.x) {                               \
      float values[Format::LEN];                                                                             \
      Format::decode(from[chunk], values);                                                                   \
      for (int i = 0; i < Format::LEN; ++i) {                                                                \
        int at = chunk * Format::LEN + i;                                                                    \
        if (at < cols) out[(size_t)blockIdx.x * cols + at] = values[i];                                      \
      }                                                                                                      \
    }                                                                                                        \
  }                                                                                                          \
  REGISTER(embed_##name)

#define EMBED_INTEGERS(name, Format)                                                                         \
  EMBED(name) {                                                                                              \
    size_t row = tokens[blockIdx.x];                                                                         \
    for (int chunk = threadIdx.x; chunk < w.row_chunks; chunk += blockDim.x) {                               \
      uint4 raw = w.elements[row * w.row_chunks + chunk];                                                    \
      Format::Scale s = Format::scale(w, row, chunk);                                                        \
      for (int i = 0; i < Format::LEN; ++i) {                                                                \
        out[(size_t)blockIdx.x * cols + Format::place(chunk, i)] = Format::element(raw, s, i);               \
      }                                                                                                      \
    }                                                                                                        \
  }                                                                                                          \
  REGISTER(embed_##name)

#define ALL(KIND, EMBEDDING, name, Format) \
  KIND(name, Format, 1)                    \
  KIND(name, Format, 2)                    \
  KIND(name, Format, 4)                    \
  KIND(name, Format, 8)                    \
  EMBEDDING(name, Format)

ALL(FLOATS, EMBED_FLOATS, f32, F32)
ALL(FLOATS, EMBED_FLOATS, f16, F16)
ALL(FLOATS, EMBED_FLOATS, bf16, Bf16)
ALL(INTEGERS, EMBED_INTEGERS, q8_0, Q8_0)
ALL(INTEGERS, EMBED_INTEGERS, q4_0, Q4_0)
ALL(INTEGERS, EMBED_INTEGERS, q4_k, Q4_K)
ALL(INTEGERS, EMBED_INTEGERS, scaled, Scaled)
