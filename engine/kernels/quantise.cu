// Activations as whole numbers of fifteen bits, by units of 32, for weights that are whole numbers themselves.
//
// Idea: a unit is scaled so that its largest element becomes 16383; the word is kept as two signed bytes, word = 128 * high
// + low with low from 0 to 127, so that the device's four-byte dot product meets both. Decision 20 in ARCHITECTURE.md: the
// words are those of the CPU backend.
// Mapping: a warp a unit, a lane an element; blocks of four warps. Shapes: x `[rows * units, 32]` f32; high and low the same in
// bytes; scales `[rows * units]` f32; sums of words `[rows * units, 2]` i32, one for each sixteen.
// Bytes moved: 4 read and 2.4 written an element; rows * cols is small beside any weight.
#include "device.cuh"

extern "C" __global__ void __launch_bounds__(128) quantise(int8_t* high, int8_t* low, float* scales, int* sums,
                                                           const float* x, int units) {
  int unit = blockIdx.x * 4 + (threadIdx.x >> 5), lane = threadIdx.x & 31;
  if (unit >= units) return;
  float value = x[(size_t)unit * 32 + lane];
  // Without their signs, floats are ordered as their bits are. What is no number is above all, and stays so.
  uint32_t bits = __float_as_uint(value) & 0x7fffffffu;
  for (int step = 16; step > 0; step >>= 1) {
    uint32_t other = __shfl_xor_sync(ALL_LANES, bits, step);
    bits = other > bits ? other : bits;
  }
  float most = __uint_as_float(bits), scale = most / 16383.0f;
  uint32_t word = 0;
  // So small a unit is zero: one over its scale would be infinite.
  if (scale < 1.17549435e-38f) {
    scale = 0.0f;
  } else {
    // Adding 1.5 * 2^23 rounds to a whole number, ties to even, and leaves it in the low bits.
    word = __float_as_uint(value * (16383.0f / most) + 12582912.0f) - __float_as_uint(12582912.0f);
  }
  int signed_word = (int)(word << 17) >> 17;
  high[(size_t)unit * 32 + lane] = (int8_t)(signed_word >> 7);
  low[(size_t)unit * 32 + lane] = (int8_t)(signed_word & 127);
  int sum = signed_word;
  for (int step = 8; step > 0; step >>= 1) sum += __shfl_xor_sync(ALL_LANES, sum, step);
  if ((lane & 15) == 0) sums[2 * (size_t)unit + (lane >> 4)] = sum;
  if (lane == 0) scales[unit] = scale;
}
REGISTER(quantise)
