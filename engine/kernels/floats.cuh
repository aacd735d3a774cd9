// How weights of f32 lie on the device: `[rows, row_chunks]` chunks of sixteen bytes, rows padded with zeros.
#pragma once
#include "device.cuh"

struct FloatWeights {
  const uint4* elements;
  const uint8_t* scales;
  int row_chunks;
};

__device__ __forceinline__ float word_of(const uint4& v, int i) {
  return __uint_as_float(i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w);
}

struct F32 {
  static constexpr int LEN = 4;
  static __device__ __forceinline__ void decode(const uint4& raw, float* out) {
#pragma unroll
    for (int i = 0; i < 4; ++i) out[i] = word_of(raw, i);
  }
};
