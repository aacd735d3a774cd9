// How weights lie on the device, and how a lane reads sixteen bytes of them.
//
// At load, a matrix is cut into two planes (engine/src/backend/cuda/repack.rs): the elements, `[rows, row_chunks]` chunks of
// sixteen bytes, and what scales them. So neighbouring lanes read neighbouring lines, whatever the file's blocks look like,
// and nothing grows: Q8_0, Q4_0 and Q4_K take as many bytes as in the file. What has no format of its own here is stored as
// `Scaled`: signed bytes, with an f32 scale and minimum for every sixteen.
#pragma once
#include "device.cuh"

struct Weights {
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

struct Bf16 {
  static constexpr int LEN = 8;
  static __device__ __forceinline__ void decode(const uint4& raw, float* out) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      uint32_t pair = __float_as_uint(word_of(raw, i));
      out[2 * i] = __uint_as_float(pair << 16);
      out[2 * i + 1] = __uint_as_float(pair & 0xffff0000u);
    }
  }
};

struct F16 {
  static constexpr int LEN = 8;
  static __device__ __forceinline__ void decode(const uint4& raw, float* out) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      uint32_t pair = __float_as_uint(word_of(raw, i));
      out[2 * i] = half_to_float((uint16_t)pair);
      out[2 * i + 1] = half_to_float((uint16_t)(pair >> 16));
    }
  }
};

// One row of activations as whole numbers: word = 128 * high + low, by units of 32 with a scale each (quantise.cu).
struct Row {
  const int4* high;
  const int4* low;
  const float* scales;  // a unit
  const int* sums;      // of words, half a unit
};

// Products of sixteen bytes with the activations of the same sixteen elements: exact, so in any order.
__device__ __forceinline__ int dot16(const int4& w, const Row& x, int half_unit) {
  int4 h = x.high[half_unit], l = x.low[half_unit];
  int high = __dp4a(w.w, h.w, __dp4a(w.z, h.z, __dp4a(w.y, h.y, __dp4a(w.x, h.x, 0))));
  int low = __dp4a(w.w, l.w, __dp4a(w.z, l.z, __dp4a(w.y, l.y, __dp4a(w.x, l.x, 0))));
  return high * 128 + low;
}

__device__ __forceinline__ int4 low_nibbles(const uint4& v) {
  return make_int4(v.x & 0x0f0f0f0fu, v.y & 0x0f0f0f0fu, v.z & 0x0f0f0f0fu, v.w & 0x0f0f0f0fu);
}

__device__ __forceinline__ int4 high_nibbles(const uint4& v) {
  return make_int4(v.x >> 4 & 0x0f0f0f0fu, v.y >> 4 & 0x0f0f0f0fu, v.z >> 4 & 0x0f0f0f0fu, v.w >> 4 & 0x0f0f0f0fu);
}

__device__ __forceinline__ int byte_of(const uint4& v, int i) {
  return (int)(int8_t)(__float_as_uint(word_of(v, i >> 2)) >> (8 * (i & 3)));
}

// A chunk is half a unit of signed bytes; scales: half precision, a unit.
struct Q8_0 {
  static constexpr int LEN = 16;
  struct Scale { float d; };
  static __device__ __forceinline__ Scale scale(const Weights& w, size_t row, int chunk) {
    return {half_to_float(((const uint16_t*)w.scales)[(row * w.row_chunks + chunk) >> 1])};
  }
  static __device__ __forceinline__ float add(float sum, const uint4& raw, const Scale& s, const Row& x, int chunk) {
    int4 words = make_int4(raw.x, raw.y, raw.z, raw.w);
    return fmaf(s.d * x.scales[chunk >> 1], (float)dot16(words, x, chunk), sum);
  }
  static __device__ __forceinline__ float element(const uint4& raw, const Scale& s, int i) { return s.d * (float)byte_of(raw, i); }
  static __device__ __forceinline__ int place(int chunk, int i) { return chunk * 16 + i; }
};

// A chunk is a unit of nibbles that stand for themselves less 8, the first sixteen low; scales: half precision, a unit.
struct Q4_0 {
  static constexpr int LEN = 32;
  struct Scale { float d; };
  static __device__ __forceinline__ Scale scale(const Weights& w, size_t row, int chunk) {
    return {half_to_float(((const uint16_t*)w.scales)[row * w.row_chunks + chunk])};
  }
  static __device__ __forceinline__ float add(float sum, const uint4& raw, const Scale& s, const Row& x, int chunk) {
    int dot = dot16(low_nibbles(raw), x, 2 * chunk) + dot16(high_nibbles(raw), x, 2 * chunk + 1);
    dot -= 8 * (x.sums[2 * chunk] + x.sums[2 * chunk + 1]);
    return fmaf(s.d * x.scales[chunk], (float)dot, sum);
  }
  static __device__ __forceinline__ float element(const uint4& raw, const Scale& s, int i) {
    return s.d * (float)((byte_of(raw, i & 15) >> (i < 16 ? 0 : 4) & 15) - 8);
  }
  static __device__ __forceinline__ int place(int chunk, int i) { return chunk * 32 + i; }
};

// Eight chunks are a block of 256: a chunk has sixteen elements of an even unit in its low halves, and of the unit after it
// in its high ones. Scales: the block's own sixteen bytes, two half-precision numbers and eight pairs of six bits.
struct Q4_K {
  static constexpr int LEN = 32;
  struct Scale { float d[2], m[2]; };
  static __device__ __forceinline__ Scale scale(const Weights& w, size_t row, int chunk) {
    uint4 h = ((const uint4*)w.scales)[(row * w.row_chunks + chunk) >> 3];
    float d = half_to_float((uint16_t)h.x), m = half_to_float((uint16_t)(h.x >> 16));
    Scale s;
    int unit = chunk >> 1 << 1 & 7;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      int at = 8 * ((unit + i) & 3);
      uint32_t a = h.y >> at, b = h.z >> at, c = h.w >> at;
      uint32_t scale = unit < 4 ? a & 63 : (c & 15) | (a >> 6 & 3) << 4;
      uint32_t least = unit < 4 ? b & 63 : (c >> 4 & 15) | (b >> 6 & 3) << 4;
      s.d[i] = d * (float)scale;
      s.m[i] = m * (float)least;
    }
    return s;
  }
  // Half a unit of the activations that the low (0) or high (1) nibbles of a chunk meet.
  static __device__ __forceinline__ int half_unit(int chunk, int i) { return ((chunk >> 1) * 2 + i) * 2 + (chunk & 1); }
  static __device__ __forceinline__ float add(float sum, const uint4& raw, const Scale& s, const Row& x, int chunk) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      int half = half_unit(chunk, i);
      float scale = x.scales[half >> 1];
      sum = fmaf(s.d[i] * scale, (float)dot16(i == 0 ? low_nibbles(raw) : high_nibbles(raw), x, half), sum);
      sum = fmaf(-s.m[i] * scale, (float)x.sums[half], sum);
    }
    return sum;
  }
  static __device__ __forceinline__ float element(const uint4& raw, const Scale& s, int i) {
    int word = byte_of(raw, i & 15) >> (i < 16 ? 0 : 4) & 15;
    return fmaf(s.d[i >> 4], (float)word, -s.m[i >> 4]);
  }
  static __device__ __forceinline__ int place(int chunk, int i) { return half_unit(chunk, i >> 4) * 16 + (i & 15); }
};

// A chunk is half a unit of signed bytes; scales: f32 scale and minimum, a chunk.
struct Scaled {
  static constexpr int LEN = 16;
  struct Scale { float d, m; };
  static __device__ __forceinline__ Scale scale(const Weights& w, size_t row, int chunk) {
    float2 s = ((const float2*)w.scales)[row * w.row_chunks + chunk];
    return {s.x, s.y};
  }
  static __device__ __forceinline__ float add(float sum, const uint4& raw, const Scale& s, const Row& x, int chunk) {
    float scale = x.scales[chunk >> 1];
    sum = fmaf(s.d * scale, (float)dot16(make_int4(raw.x, raw.y, raw.z, raw.w), x, chunk), sum);
    return fmaf(-s.m * scale, (float)x.sums[chunk], sum);
  }
  static __device__ __forceinline__ float element(const uint4& raw, const Scale& s, int i) { return fmaf(s.d, (float)byte_of(raw, i), -s.m); }
  static __device__ __forceinline__ int place(int chunk, int i) { return chunk * 16 + i; }
};
