// Activations as tensor cores take them: records of four rows and a stage, the layout of formats.cuh.
//
// `quantise`, for weights that are whole numbers: words of fifteen bits, by units of 32. A unit is scaled so that its largest
// element becomes 16383; the word is kept as two signed bytes, word = 128 * high + low with low from 0 to 127, two columns of
// a B. Decision 20 in ARCHITECTURE.md: the words are those of the CPU backend. Units beyond the row are zeros.
// `split`, for bf16: high is the nearest bf16, low the nearest to what is left, so that 2^-17 of an element is lost.
// `split_f16`, for f16: the same with f16, of 64 elements that are scaled by a power of two so that the largest is from 2^14 to
// 2^15: none is too large, and the smallest number of f16 is 2^-38 of it. So 2^-23 of an element is lost, or 2^-39 of the largest.
// Mapping: a warp a row and stage (128 elements, four a lane; in the others 64, two a lane), four warps a block; grid (stages /
// 4, rows). Shapes: x `[rows, cols]` f32; out `[rows / 4][stages]` records.
// Bytes moved: 4 read and 2.5 written an element, 4 in the others; rows * cols is small beside any weight.
#include "formats.cuh"

__device__ __forceinline__ uint32_t lanes_max(uint32_t x, int count) {
  for (int step = count / 2; step > 0; step >>= 1) {
    uint32_t other = __shfl_xor_sync(ALL_LANES, x, step);
    x = other > x ? other : x;
  }
  return x;
}

extern "C" __global__ void __launch_bounds__(128) quantise(uint8_t* out, const float* x, int cols, int stages) {
  wait_for_inputs();
  int stage = blockIdx.x * 4 + (threadIdx.x >> 5), lane = threadIdx.x & 31, row = blockIdx.y;
  if (stage >= stages) return;
  // Eight lanes are a unit.
  int at = stage * 128 + lane * 4, unit = lane >> 3, four = lane & 7;
  float4 loaded = at < cols ? *(const float4*)(x + (size_t)row * cols + at) : float4{0.0f, 0.0f, 0.0f, 0.0f};
  float values[4] = {loaded.x, loaded.y, loaded.z, loaded.w};
  // Without their signs, floats are ordered as their bits are. What is no number is above all, and stays so.
  uint32_t bits = 0;
  for (int i = 0; i < 4; ++i) {
    uint32_t one = __float_as_uint(values[i]) & 0x7fffffffu;
    bits = one > bits ? one : bits;
  }
  float most = __uint_as_float(lanes_max(bits, 8)), scale = most / 16383.0f;
  // So small a unit is zero: one over its scale would be infinite.
  bool nothing = scale < 1.17549435e-38f;
  if (nothing) scale = 0.0f;
  uint32_t high = 0, low = 0;
  int sum = 0;
  for (int i = 0; i < 4; ++i) {
    // Adding 1.5 * 2^23 rounds to a whole number, ties to even, and leaves it in the low bits.
    uint32_t rounded = __float_as_uint(values[i] * (16383.0f / most) + 12582912.0f) - __float_as_uint(12582912.0f);
    int word = nothing ? 0 : (int)(rounded << 17) >> 17;
    high |= (uint32_t)(word >> 7 & 255) << 8 * i;
    low |= (uint32_t)(word & 127) << 8 * i;
    sum += word;
  }
  sum += __shfl_xor_sync(ALL_LANES, sum, 1);
  int half_sum = sum + __shfl_xor_sync(ALL_LANES, sum, 2);
  int unit_sum = half_sum + __shfl_xor_sync(ALL_LANES, half_sum, 4);

  uint8_t* record = out + ((size_t)(row / RECORD_ROWS) * stages + stage) * RECORD_END;
  int within = row % RECORD_ROWS;
  // Word `four >> 2` of the lane of column 2 * within (high) or 2 * within + 1 (low) and place `four & 3`.
  uint8_t* words = record + (unit >> 1) * CHUNK_BYTES + (within * 8 + (four & 3)) * 16 + (unit & 1) * 8 + (four >> 2) * 4;
  *(uint32_t*)words = high;
  *(uint32_t*)(words + 64) = low;
  int place = within * 4 + unit;
  if ((four & 3) == 0) {
    ((float*)(record + RECORD_HALF_SUMS))[place * 2 + (four >> 2)] = scale * (float)half_sum;
  }
  if (four == 0) {
    ((float*)(record + RECORD_SCALES))[place] = scale;
    ((float*)(record + RECORD_SUMS))[place] = scale * (float)unit_sum;
  }
}
REGISTER(quantise)

// The nearest bf16, ties to even; what is no number stays so.
__device__ __forceinline__ uint32_t to_bf16(float x) {
  uint32_t bits = __float_as_uint(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return bits >> 16 | 64;
  return (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
}

extern "C" __global__ void __launch_bounds__(128) split(uint8_t* out, const float* x, int cols, int stages) {
  wait_for_inputs();
  int stage = blockIdx.x * 4 + (threadIdx.x >> 5), lane = threadIdx.x & 31, row = blockIdx.y;
  if (stage >= stages) return;
  // Eight lanes are the sixteen elements of an instruction.
  int at = stage * 64 + lane * 2, part = lane >> 3, pair = lane & 7;
  uint32_t high = 0, low = 0;
  for (int i = 0; i < 2; ++i) {
    float value = at + i < cols ? x[(size_t)row * cols + at + i] : 0.0f;
    uint32_t above = to_bf16(value);
    // Nothing is left of what is infinite.
    bool finite = (above & 0x7f80u) != 0x7f80u;
    uint32_t below = finite ? to_bf16(value - __uint_as_float(above << 16)) : 0;
    high |= above << 16 * i;
    low |= below << 16 * i;
  }
  uint8_t* record = out + ((size_t)(row / RECORD_ROWS) * stages + stage) * RECORD_WORDS_BYTES;
  int within = row % RECORD_ROWS;
  uint8_t* words = record + (part >> 1) * CHUNK_BYTES + (within * 8 + (pair & 3)) * 16 + (part & 1) * 8 + (pair >> 2) * 4;
  *(uint32_t*)words = high;
  *(uint32_t*)(words + 64) = low;
}
REGISTER(split)

extern "C" __global__ void __launch_bounds__(128) split_f16(uint8_t* out, const float* x, int cols, int stages) {
  wait_for_inputs();
  int stage = blockIdx.x * 4 + (threadIdx.x >> 5), lane = threadIdx.x & 31, row = blockIdx.y;
  if (stage >= stages) return;
  int at = stage * 64 + lane * 2, part = lane >> 3, pair = lane & 7;
  float values[2];
  uint32_t bits = 0;
  for (int i = 0; i < 2; ++i) {
    values[i] = at + i < cols ? x[(size_t)row * cols + at + i] : 0.0f;
    uint32_t one = __float_as_uint(values[i]) & 0x7fffffffu;
    bits = one > bits ? one : bits;
  }
  // Exponents with their bias of 127. What is not finite stays so without a scale, and takes its row of outputs with it; where
  // all is below 2^-112, both factors stay normal numbers.
  int exponent = lanes_max(bits, 32) >> 23;
  exponent = exponent == 255 ? 127 + 14 : greater(exponent, 15);
  float factor = __uint_as_float((uint32_t)(254 + 14 - exponent) << 23);
  uint32_t high = 0, low = 0;
  for (int i = 0; i < 2; ++i) {
    float value = values[i] * factor;
    uint32_t above = float_to_half(value);
    // Nothing is left of what is infinite.
    bool finite = (above & 0x7c00u) != 0x7c00u;
    uint32_t below = finite ? float_to_half(value - half_to_float(above)) : 0;
    high |= above << 16 * i;
    low |= below << 16 * i;
  }
  uint8_t* record = out + ((size_t)(row / RECORD_ROWS) * stages + stage) * HALVES_END;
  int within = row % RECORD_ROWS;
  uint8_t* words = record + (part >> 1) * CHUNK_BYTES + (within * 8 + (pair & 3)) * 16 + (part & 1) * 8 + (pair >> 2) * 4;
  *(uint32_t*)words = high;
  *(uint32_t*)(words + 64) = low;
  if (lane == 0) ((float*)(record + HALVES_SCALES))[within] = __uint_as_float((uint32_t)(exponent - 14) << 23);
}
REGISTER(split_f16)
