// out[row] = table[token of row], for every layout of weights.
//
// A token that is not known yet when the step is asked for is one of those that the step before it has chosen: `CHOSEN` and
// which of them (engine/src/backend/mod.rs).
// Mapping: a block a row, a thread an element of f32 at a time, or a chunk of a row of f32.
// Shapes: tokens `[rows]`, chosen `[choices of the step before]`, out `[rows, cols]` f32; the table as in floats.cuh or
// formats.cuh.
// Bytes moved: a row of weights and 4 * cols, for each row: next to nothing.
#include "floats.cuh"
#include "formats.cuh"

constexpr uint32_t CHOSEN = 1u << 31;

__device__ __forceinline__ uint32_t token_of_row(const uint32_t* tokens, const uint32_t* chosen) {
  uint32_t token = tokens[blockIdx.x];
  return token & CHOSEN ? chosen[token & ~CHOSEN] : token;
}

#define EMBED_FLOATS(name, Format)                                                                                   \
  extern "C" __global__ void __launch_bounds__(128)                                                                  \
      embed_##name(float* out, const uint32_t* tokens, FloatWeights w, int cols, const uint32_t* chosen) {           \
    wait_for_inputs();                                                                                               \
    const uint4* from = w.elements + (size_t)token_of_row(tokens, chosen) * w.row_chunks;                            \
    for (int chunk = threadIdx.x; chunk < w.row_chunks; chunk += blockDim.x) {                                       \
      float values[Format::LEN];                                                                                     \
      Format::decode(from[chunk], values);                                                                           \
      for (int i = 0; i < Format::LEN; ++i) {                                                                        \
        int at = chunk * Format::LEN + i;                                                                            \
        if (at < cols) out[(size_t)blockIdx.x * cols + at] = values[i];                                              \
      }                                                                                                              \
    }                                                                                                                \
  }                                                                                                                  \
  REGISTER(embed_##name)

#define EMBED_TILES(name, Format)                                                                                    \
  extern "C" __global__ void __launch_bounds__(128)                                                                  \
      embed_##name(float* out, const uint32_t* tokens, Weights w, int cols, const uint32_t* chosen) {                \
    wait_for_inputs();                                                                                               \
    int row = token_of_row(tokens, chosen);                                                                          \
    for (int k = threadIdx.x; k < cols; k += blockDim.x) out[(size_t)blockIdx.x * cols + k] = Format::element(w, row, k); \
  }                                                                                                                  \
  REGISTER(embed_##name)

EMBED_FLOATS(f32, F32)
EMBED_TILES(f16, F16)
EMBED_TILES(f8, F8)
EMBED_TILES(q8_0, Q8_0)
EMBED_TILES(q4_0, Q4_0)
EMBED_TILES(q4_k, Q4_K)
EMBED_TILES(q6_k, Q6_K)
EMBED_TILES(scaled, Scaled)
