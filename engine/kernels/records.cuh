// Activations as tensor cores take them: records of a few rows and a stage, the layout of formats.cuh. Whoever has a stage
// of a row in the registers of a warp puts it there: quantise.cu from rows in memory, norm.cu and elementwise.cu as they
// make them.
//
// `Words`, for weights that are whole numbers: words of fifteen bits, by units of 32. A unit is scaled so that its largest
// element becomes 16383; the word is kept as two signed bytes, word = 128 * high + low with low from 0 to 127, two columns
// of a B. Decision 20 in ARCHITECTURE.md: the words are those of the CPU backend. Units beyond the row are zeros.
// `Halves`, for weights that are floats: the nearest f16 of an element times a power of two, one for a stage of a row, with
// which its largest element is from 2^14 to 2^15: none is too large, and the smallest number of f16 is 2^-38 of it. So at
// most 2^-11 of an element is lost, or 2^-39 of the largest; on average 2^-13.
// Mapping: a warp a row and stage, LANE_LEN elements a lane that are neighbours, those beyond the row zeros.
// Bytes written: 2.5 an element of `Words`, 2.06 of `Halves`.
#pragma once
#include "formats.cuh"

__device__ __forceinline__ uint32_t lanes_max(uint32_t x, int count) {
  for (int step = count / 2; step > 0; step >>= 1) {
    uint32_t other = __shfl_xor_sync(ALL_LANES, x, step);
    x = other > x ? other : x;
  }
  return x;
}

struct Words {
  static constexpr int LANE_LEN = 4, LEN = 32 * LANE_LEN, ROWS = WORDS_ROWS;

  // Rows that become these have whole units, so four elements are in the row or none is, and lie at sixteen bytes.
  static __device__ __forceinline__ void load(float (&values)[4], const float* row, int at, int cols) {
    float4 four = at < cols ? *(const float4*)(row + at) : float4{0.0f, 0.0f, 0.0f, 0.0f};
    values[0] = four.x;
    values[1] = four.y;
    values[2] = four.z;
    values[3] = four.w;
  }

  static __device__ __forceinline__ void store(float* row, const float (&values)[4], int at, int cols) {
    if (at < cols) *(float4*)(row + at) = float4{values[0], values[1], values[2], values[3]};
  }

  // All lanes of a warp together.
  static __device__ __forceinline__ void put(uint8_t* records, const float (&values)[4], int row, int stage, int stages,
                                             int lane) {
    // Eight lanes are a unit.
    int unit = lane >> 3, four = lane & 7;
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

    uint8_t* record = records + ((size_t)(row / ROWS) * stages + stage) * WORDS_END;
    int within = row % ROWS;
    // Word `four >> 2` of the lane of column 2 * within (high) or 2 * within + 1 (low) and place `four & 3`.
    uint8_t* words = record + (unit >> 1) * CHUNK_BYTES + (within * 8 + (four & 3)) * 16 + (unit & 1) * 8 + (four >> 2) * 4;
    *(uint32_t*)words = high;
    *(uint32_t*)(words + 64) = low;
    int place = within * 4 + unit;
    if ((four & 3) == 0) {
      ((float*)(record + WORDS_HALF_SUMS))[place * 2 + (four >> 2)] = scale * (float)half_sum;
    }
    if (four == 0) {
      ((float*)(record + WORDS_SCALES))[place] = scale;
      ((float*)(record + WORDS_SUMS))[place] = scale * (float)unit_sum;
    }
  }
};

struct Halves {
  static constexpr int LANE_LEN = 2, LEN = 32 * LANE_LEN, ROWS = HALVES_ROWS;

  // Rows of an odd length do not lie at eight bytes.
  static __device__ __forceinline__ void load(float (&values)[2], const float* row, int at, int cols) {
    if (at + 1 < cols && cols % 2 == 0) {
      float2 two = *(const float2*)(row + at);
      values[0] = two.x;
      values[1] = two.y;
      return;
    }
    for (int i = 0; i < 2; ++i) values[i] = at + i < cols ? row[at + i] : 0.0f;
  }

  static __device__ __forceinline__ void store(float* row, const float (&values)[2], int at, int cols) {
    if (at + 1 < cols && cols % 2 == 0) {
      *(float2*)(row + at) = float2{values[0], values[1]};
      return;
    }
    for (int i = 0; i < 2; ++i) {
      if (at + i < cols) row[at + i] = values[i];
    }
  }

  // All lanes of a warp together. Eight of them are the sixteen elements of an instruction.
  static __device__ __forceinline__ void put(uint8_t* records, const float (&values)[2], int row, int stage, int stages,
                                             int lane) {
    uint32_t first = __float_as_uint(values[0]) & 0x7fffffffu, second = __float_as_uint(values[1]) & 0x7fffffffu;
    // Exponents with their bias of 127. What is not finite stays so without a scale, and takes its row of outputs with it; where
    // all is below 2^-112, both factors stay normal numbers.
    int exponent = lanes_max(first > second ? first : second, 32) >> 23;
    exponent = exponent == 255 ? 127 + 14 : greater(exponent, 15);
    float factor = __uint_as_float((uint32_t)(254 + 14 - exponent) << 23);
    uint8_t* record = records + ((size_t)(row / ROWS) * stages + stage) * HALVES_END;
    int within = row % ROWS, part = lane >> 3, pair = lane & 7;
    uint8_t* word = record + (part >> 1) * CHUNK_BYTES + (within * 4 + (pair & 3)) * 16 + (part & 1) * 8 + (pair >> 2) * 4;
    *(uint32_t*)word = pack_halves(values[0] * factor, values[1] * factor);
    if (lane == 0) {
      ((float*)(record + HALVES_SCALES))[within] = __uint_as_float((uint32_t)(exponent - 14) << 23);
    }
  }
};
