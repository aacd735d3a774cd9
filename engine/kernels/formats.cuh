// How weights lie on the device for tensor cores, and how activations do.
//
// At load, a matrix is cut into tiles of sixteen outputs, and a tile into stages: 128 elements of each output, 64 of floats
// (engine/src/backend/cuda/repack.rs). A stage is `CHUNKS` chunks of 512 bytes and what scales them. A chunk has 32 bytes
// of each output in the order of a fragment (tensor.cuh): a lane's sixteen bytes are the four words of A, so a warp reads
// and writes whole lines, whatever the file's blocks look like. Outputs and elements beyond the matrix are zeros. Scales
// lie by groups g of lanes, for outputs g and g + 8; formats whose blocks have 256 elements keep what is the block's behind
// the scales of its two stages (`SPAN`). Q8_0, Q4_0 and Q6_K take as many bytes as in the file, Q4_K 2.8 % more: its scales
// and minima are bytes here, six bits there. What has no format of its own is `Scaled`: signed bytes, with an f32 scale and
// minimum for every sixteen.
//
// Activations lie by a few rows and a stage, in records (records.cuh). Where weights are whole numbers, a record has four
// rows: the columns of a B are the rows' high and low parts, one beside the other, so that one instruction has both, a lane
// finds the two in its own registers, and one row of eight columns is not alone. Where they are floats, it has eight, a
// column each. Chunk p of the two in a record has what units 2p and 2p + 1 (of 32, floats: of 16) need of B. Behind them:
// scales `[4 rows][4 units]`, scaled sums of units `[4][4]`, scaled sums of halves of units `[4][4][2]`; or scales `[8
// rows]`; all f32.
#pragma once
#include "tensor.cuh"

constexpr int TILE = 16;
constexpr int CHUNK_BYTES = 512;
constexpr int RECORD_CHUNKS_BYTES = 2 * CHUNK_BYTES;
constexpr int WORDS_ROWS = 4, HALVES_ROWS = 8;
constexpr int WORDS_SCALES = RECORD_CHUNKS_BYTES, WORDS_SUMS = WORDS_SCALES + 64, WORDS_HALF_SUMS = WORDS_SUMS + 64;
constexpr int WORDS_END = WORDS_HALF_SUMS + 128;
constexpr int HALVES_SCALES = RECORD_CHUNKS_BYTES, HALVES_END = HALVES_SCALES + 4 * HALVES_ROWS;

struct Weights {
  const uint8_t* elements;
  const uint8_t* scales;
  int stages;
};

// Byte `k` of the 32 of output `row` within a chunk.
__device__ __forceinline__ int place_of(int row, int k) {
  return ((row & 7) * 4 + (k >> 2 & 3)) * 16 + ((row >> 3) + 2 * (k >> 4)) * 4 + (k & 3);
}

template <class Format>
__device__ __forceinline__ const uint8_t* stage_elements(const Weights& w, int tile, int stage) {
  return w.elements + ((size_t)tile * w.stages + stage) * (Format::CHUNKS * CHUNK_BYTES);
}

// Where the scales of a stage lie; those of its block begin `block` bytes behind.
template <class Format>
__device__ __forceinline__ const uint8_t* stage_scales(const Weights& w, int tile, int stage, int& block) {
  constexpr int BYTES = Format::SPAN * Format::SCALE_BYTES + Format::BLOCK_BYTES;
  int within = stage % Format::SPAN;
  block = (Format::SPAN - within) * Format::SCALE_BYTES;
  return w.scales + ((size_t)tile * (w.stages / Format::SPAN) + stage / Format::SPAN) * BYTES + within * Format::SCALE_BYTES;
}

// The scale of an output, where outputs have scales.
__device__ __forceinline__ float output_scale(const Weights& w, int output) { return ((const float*)w.scales)[output]; }

__device__ __forceinline__ float low_half(uint32_t pair) { return half_to_float((uint16_t)pair); }
__device__ __forceinline__ float high_half(uint32_t pair) { return half_to_float((uint16_t)(pair >> 16)); }
__device__ __forceinline__ float signed_byte(uint32_t word, int i) { return (float)(int8_t)(word >> 8 * i); }
__device__ __forceinline__ float unsigned_byte(uint32_t word, int i) { return (float)(uint8_t)(word >> 8 * i); }

template <class T>
__device__ __forceinline__ T read(const uint8_t* from) { return *(const T*)from; }

// What a lane takes out of a record for two units.
template <int PARTS, bool LEAST>
struct Inputs {
  uint4 words;
  float scales[2];
  float sums[2][PARTS];
};

// Whole numbers: an element is scale * word - minimum, with a scale for each of the PARTS of a unit.
template <int PARTS, bool LEAST>
struct Integers {
  // Rows of a record, and those of which a lane has sums: of two outputs each, for a tile.
  static constexpr int ROWS = WORDS_ROWS, LANE_ROWS = 1;
  // True if an output has a scale of its own, which is applied to its sum: f32, in the plane of scales.
  static constexpr bool SCALES_OUTPUTS = false;
  // Bytes of a record, and how many of them are read.
  static constexpr int RECORD_BYTES = WORDS_END;
  static constexpr int INPUT_BYTES = !LEAST ? WORDS_SUMS : PARTS == 1 ? WORDS_HALF_SUMS : WORDS_END;

  // Two units of a tile: the words of A, scales and minima of the lane's two outputs.
  struct Pair {
    uint32_t a[2][4];
    float scales[2][PARTS][2];
    float minima[2][PARTS][2];
  };

  static __device__ __forceinline__ Inputs<PARTS, LEAST> inputs(const uint8_t* record, int pair, int lane) {
    Inputs<PARTS, LEAST> x;
    int t = lane & 3;
    x.words = read<uint4>(record + pair * CHUNK_BYTES + lane * 16);
    float2 scales = read<float2>(record + WORDS_SCALES + t * 16 + pair * 8);
    x.scales[0] = scales.x;
    x.scales[1] = scales.y;
    if constexpr (LEAST && PARTS == 1) {
      float2 sums = read<float2>(record + WORDS_SUMS + t * 16 + pair * 8);
      x.sums[0][0] = sums.x;
      x.sums[1][0] = sums.y;
    }
    if constexpr (LEAST && PARTS == 2) {
      float4 sums = read<float4>(record + WORDS_HALF_SUMS + t * 32 + pair * 16);
      x.sums[0][0] = sums.x;
      x.sums[0][1] = sums.y;
      x.sums[1][0] = sums.z;
      x.sums[1][1] = sums.w;
    }
    return x;
  }

  // Adds a unit's products, unit after unit and part after part.
  static __device__ __forceinline__ void multiply(float (&sums)[2], const Pair& w, const Inputs<PARTS, LEAST>& x) {
#pragma unroll
    for (int unit = 0; unit < 2; ++unit) {
      uint32_t b[2] = {unit == 0 ? x.words.x : x.words.z, unit == 0 ? x.words.y : x.words.w};
#pragma unroll
      for (int part = 0; part < PARTS; ++part) {
        int c[4] = {0, 0, 0, 0};
        if constexpr (PARTS == 1) mma_bytes(c, w.a[unit], b[0], b[1]);
        if constexpr (PARTS == 2) mma_bytes(c, w.a[unit][2 * part], w.a[unit][2 * part + 1], b[part]);
#pragma unroll
        for (int o = 0; o < 2; ++o) {
          float dot = (float)(c[2 * o] * 128 + c[2 * o + 1]);
          sums[o] = fmaf(w.scales[unit][part][o] * x.scales[unit], dot, sums[o]);
          if constexpr (LEAST) sums[o] = fmaf(-w.minima[unit][part][o], x.sums[unit][part], sums[o]);
        }
      }
    }
  }
};

__device__ __forceinline__ void words_of(uint32_t (&a)[4], const uint4& chunk) {
  a[0] = chunk.x;
  a[1] = chunk.y;
  a[2] = chunk.z;
  a[3] = chunk.w;
}

// A chunk is a unit of signed bytes. Scales: halves of g and g + 8, `[8 g][4 units]`.
struct Q8_0 : Integers<1, false> {
  static constexpr int CHUNKS = 4, SPAN = 1, SCALE_BYTES = 128, BLOCK_BYTES = 0;
  static __device__ __forceinline__ Pair pair(const uint8_t* stage, int p, int lane) {
    Pair w;
    uint2 scales = read<uint2>(stage + CHUNKS * CHUNK_BYTES + (lane >> 2) * 16 + p * 8);
#pragma unroll
    for (int unit = 0; unit < 2; ++unit) {
      words_of(w.a[unit], read<uint4>(stage + (2 * p + unit) * CHUNK_BYTES + lane * 16));
      uint32_t both = unit == 0 ? scales.x : scales.y;
      w.scales[unit][0][0] = low_half(both);
      w.scales[unit][0][1] = high_half(both);
    }
    return w;
  }
  static __device__ __forceinline__ float element(const Weights& w, int row, int k) {
    int tile = row / TILE, within = row % TILE, stage = k / 128, unit = k / 32 % 4, block;
    const uint8_t* scales = stage_scales<Q8_0>(w, tile, stage, block);
    int8_t word = read<int8_t>(stage_elements<Q8_0>(w, tile, stage) + unit * CHUNK_BYTES + place_of(within, k % 32));
    return half_to_float(read<uint16_t>(scales + (within & 7) * 16 + unit * 4 + (within >> 3) * 2)) * (float)word;
  }
};

// A chunk is two units, one in the low nibbles, one in the high ones, as signed numbers of four bits. In the upper half of
// a byte they are sixteen times what they stand for: a sixteenth in the scale makes up for that, exactly. Scales as in
// Q8_0.
struct Q4_0 : Integers<1, false> {
  static constexpr int CHUNKS = 2, SPAN = 1, SCALE_BYTES = 128, BLOCK_BYTES = 0;
  static __device__ __forceinline__ Pair pair(const uint8_t* stage, int p, int lane) {
    Pair w;
    uint32_t raw[4];
    words_of(raw, read<uint4>(stage + p * CHUNK_BYTES + lane * 16));
    uint2 scales = read<uint2>(stage + CHUNKS * CHUNK_BYTES + (lane >> 2) * 16 + p * 8);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      w.a[0][i] = raw[i] << 4 & 0xf0f0f0f0u;
      w.a[1][i] = raw[i] & 0xf0f0f0f0u;
    }
#pragma unroll
    for (int unit = 0; unit < 2; ++unit) {
      uint32_t both = unit == 0 ? scales.x : scales.y;
      w.scales[unit][0][0] = low_half(both) * 0.0625f;
      w.scales[unit][0][1] = high_half(both) * 0.0625f;
    }
    return w;
  }
  static __device__ __forceinline__ float element(const Weights& w, int row, int k) {
    int tile = row / TILE, within = row % TILE, stage = k / 128, unit = k / 32 % 4, block;
    const uint8_t* scales = stage_scales<Q4_0>(w, tile, stage, block);
    uint8_t both = stage_elements<Q4_0>(w, tile, stage)[unit / 2 * CHUNK_BYTES + place_of(within, k % 32)];
    int8_t word = (int8_t)(unit % 2 == 0 ? both << 4 : both & 0xf0);
    float scale = half_to_float(read<uint16_t>(scales + (within & 7) * 16 + unit * 4 + (within >> 3) * 2));
    return scale * (float)(word >> 4);
  }
};

// A chunk is two units of nibbles, as in Q4_0, but without a sign. Scales: bytes `[8 g][4 units][scale of g, minimum of g,
// scale of g + 8, minimum of g + 8]`; the block's: halves `[8 g][the same four]`.
struct Q4_K : Integers<1, true> {
  static constexpr int CHUNKS = 2, SPAN = 2, SCALE_BYTES = 128, BLOCK_BYTES = 64;
  static __device__ __forceinline__ Pair pair(const uint8_t* stage, int p, int lane) {
    Pair w;
    int g = lane >> 2;
    uint32_t raw[4];
    words_of(raw, read<uint4>(stage + p * CHUNK_BYTES + lane * 16));
    const uint8_t* scales = stage + CHUNKS * CHUNK_BYTES;
    uint2 six = read<uint2>(scales + g * 16 + p * 8), block = read<uint2>(scales + SCALE_BYTES + g * 8);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      w.a[0][i] = raw[i] & 0x0f0f0f0fu;
      w.a[1][i] = raw[i] >> 4 & 0x0f0f0f0fu;
    }
#pragma unroll
    for (int unit = 0; unit < 2; ++unit) {
      uint32_t four = unit == 0 ? six.x : six.y;
      w.scales[unit][0][0] = low_half(block.x) * unsigned_byte(four, 0);
      w.minima[unit][0][0] = high_half(block.x) * unsigned_byte(four, 1);
      w.scales[unit][0][1] = low_half(block.y) * unsigned_byte(four, 2);
      w.minima[unit][0][1] = high_half(block.y) * unsigned_byte(four, 3);
    }
    return w;
  }
  static __device__ __forceinline__ float element(const Weights& w, int row, int k) {
    int tile = row / TILE, within = row % TILE, stage = k / 128, unit = k / 32 % 4, block;
    const uint8_t* scales = stage_scales<Q4_K>(w, tile, stage, block);
    uint8_t both = stage_elements<Q4_K>(w, tile, stage)[unit / 2 * CHUNK_BYTES + place_of(within, k % 32)];
    int word = unit % 2 == 0 ? both & 15 : both >> 4;
    const uint8_t* six = scales + (within & 7) * 16 + unit * 4 + (within >> 3) * 2;
    uint32_t halves = read<uint32_t>(scales + block + (within & 7) * 8 + (within >> 3) * 4);
    return fmaf(low_half(halves) * (float)six[0], (float)word, -(high_half(halves) * (float)six[1]));
  }
};

// Three chunks are four units of signed numbers of six bits: the lower four bits of units 0 and 2 are the nibbles of the
// first chunk, those of units 1 and 3 of the second, the upper two bits of all four are the third. In the upper part of a
// byte they are four times what they stand for. Scales: signed bytes `[8 g][8 halves of units][g, g + 8]`; the block's:
// halves `[8 g][g, g + 8]`.
struct Q6_K : Integers<2, false> {
  static constexpr int CHUNKS = 3, SPAN = 2, SCALE_BYTES = 128, BLOCK_BYTES = 32;
  static __device__ __forceinline__ Pair pair(const uint8_t* stage, int p, int lane) {
    Pair w;
    int g = lane >> 2;
    uint32_t upper[4];
    words_of(upper, read<uint4>(stage + 2 * CHUNK_BYTES + lane * 16));
    const uint8_t* scales = stage + CHUNKS * CHUNK_BYTES;
    uint2 bytes = read<uint2>(scales + g * 16 + p * 8);
    uint32_t block = read<uint32_t>(scales + SCALE_BYTES + g * 4);
#pragma unroll
    for (int unit = 0; unit < 2; ++unit) {
      uint32_t lower[4];
      words_of(lower, read<uint4>(stage + unit * CHUNK_BYTES + lane * 16));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        uint32_t four = p == 0 ? lower[i] << 2 : lower[i] >> 2;
        w.a[unit][i] = (four & 0x3c3c3c3cu) | (upper[i] << (6 - 2 * (2 * p + unit)) & 0xc0c0c0c0u);
      }
      uint32_t word = unit == 0 ? bytes.x : bytes.y;
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        w.scales[unit][part][0] = low_half(block) * 0.25f * signed_byte(word, 2 * part);
        w.scales[unit][part][1] = high_half(block) * 0.25f * signed_byte(word, 2 * part + 1);
      }
    }
    return w;
  }
  static __device__ __forceinline__ float element(const Weights& w, int row, int k) {
    int tile = row / TILE, within = row % TILE, stage = k / 128, unit = k / 32 % 4, block;
    const uint8_t* scales = stage_scales<Q6_K>(w, tile, stage, block);
    const uint8_t* at = stage_elements<Q6_K>(w, tile, stage) + place_of(within, k % 32);
    int lower = at[unit % 2 * CHUNK_BYTES] >> (unit / 2 * 4) & 15, upper = at[2 * CHUNK_BYTES] >> (2 * unit) & 3;
    int8_t word = (int8_t)(lower << 2 | upper << 6);
    float byte = (float)read<int8_t>(scales + (within & 7) * 16 + k / 16 % 8 * 2 + (within >> 3));
    float half = half_to_float(read<uint16_t>(scales + block + (within & 7) * 4 + (within >> 3) * 2));
    return half * byte * (float)(word >> 2);
  }
};

// A chunk is a unit of signed bytes. Scales: f32 `[8 halves of units][8 g][scale of g, minimum of g, scale of g + 8,
// minimum of g + 8]`.
struct Scaled : Integers<2, true> {
  static constexpr int CHUNKS = 4, SPAN = 1, SCALE_BYTES = 1024, BLOCK_BYTES = 0;
  static __device__ __forceinline__ Pair pair(const uint8_t* stage, int p, int lane) {
    Pair w;
#pragma unroll
    for (int unit = 0; unit < 2; ++unit) {
      words_of(w.a[unit], read<uint4>(stage + (2 * p + unit) * CHUNK_BYTES + lane * 16));
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        int half = 2 * (2 * p + unit) + part;
        float4 four = read<float4>(stage + CHUNKS * CHUNK_BYTES + half * 128 + (lane >> 2) * 16);
        w.scales[unit][part][0] = four.x;
        w.minima[unit][part][0] = four.y;
        w.scales[unit][part][1] = four.z;
        w.minima[unit][part][1] = four.w;
      }
    }
    return w;
  }
  static __device__ __forceinline__ float element(const Weights& w, int row, int k) {
    int tile = row / TILE, within = row % TILE, stage = k / 128, unit = k / 32 % 4, block;
    const uint8_t* scales = stage_scales<Scaled>(w, tile, stage, block);
    int8_t word = read<int8_t>(stage_elements<Scaled>(w, tile, stage) + unit * CHUNK_BYTES + place_of(within, k % 32));
    float2 two = read<float2>(scales + k / 16 % 8 * 128 + (within & 7) * 16 + (within >> 3) * 8);
    return fmaf(two.x, (float)word, -two.y);
  }
};

// Floats: f16 meet f16. Products are exact, and those of two units are summed before they are scaled: by the activations'
// power of two, which rounds nothing, and by the weights' scale where a block has one.
struct Halves16 {
  static constexpr int ROWS = HALVES_ROWS, LANE_ROWS = 2;
  static constexpr int RECORD_BYTES = HALVES_END, INPUT_BYTES = HALVES_END;
  struct Input {
    uint4 words;
    float2 scales;
  };

  static __device__ __forceinline__ Input inputs(const uint8_t* record, int pair, int lane) {
    return {read<uint4>(record + pair * CHUNK_BYTES + lane * 16), read<float2>(record + HALVES_SCALES + (lane & 3) * 8)};
  }
  // Adds the scaled sums of two units: of both outputs, two rows each.
  static __device__ __forceinline__ void add(float (&sums)[4], const uint32_t (&a)[2][4], const Input& x, float scale,
                                             float scale_upper) {
    float c[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    multiply_f16(c, a[0], x.words.x, x.words.y);
    multiply_f16(c, a[1], x.words.z, x.words.w);
    sums[0] = fmaf(scale * x.scales.x, c[0], sums[0]);
    sums[1] = fmaf(scale * x.scales.y, c[1], sums[1]);
    sums[2] = fmaf(scale_upper * x.scales.x, c[2], sums[2]);
    sums[3] = fmaf(scale_upper * x.scales.y, c[3], sums[3]);
  }
};

// A chunk is sixteen elements. f16 and bf16: a matrix of bf16 is stored as f16 times a power of two, one for each output,
// with which its largest element is from 2^14 to 2^15. f16 has three bits of fraction more, so that is exact for whatever
// is not below 2^-31 of the largest, and what is lost of smaller ones is below 2^-39 of it. Scales: f32 `[16 outputs]`,
// once a tile.
struct F16 : Halves16 {
  static constexpr int CHUNKS = 4, SPAN = 1, SCALE_BYTES = 0, BLOCK_BYTES = 0;
  static constexpr bool SCALES_OUTPUTS = true;
  struct Pair { uint32_t a[2][4]; };

  static __device__ __forceinline__ Pair pair(const uint8_t* stage, int p, int lane) {
    Pair w;
    words_of(w.a[0], read<uint4>(stage + 2 * p * CHUNK_BYTES + lane * 16));
    words_of(w.a[1], read<uint4>(stage + (2 * p + 1) * CHUNK_BYTES + lane * 16));
    return w;
  }
  static __device__ __forceinline__ void multiply(float (&sums)[4], const Pair& w, const Input& x) {
    add(sums, w.a, x, 1.0f, 1.0f);
  }
  static __device__ __forceinline__ float element(const Weights& w, int row, int k) {
    const uint8_t* at = stage_elements<F16>(w, row / TILE, k / 64) + k / 16 % 4 * CHUNK_BYTES;
    return output_scale(w, row) * half_to_float(read<uint16_t>(at + place_of(row % TILE, k % 16 * 2)));
  }
};

// A chunk is two units of sixteen elements of eight bits (E4M3). They become f16, which have all of them: exponent and
// fraction where f16 has them are 2^-8 of the number, subnormal ones included, and the scale makes up for that. Of a unit,
// place t has elements 2t + 8, 2t, 2t + 9 and 2t + 1 in a word, so that every other byte is a word of A. Scales: the
// block's times 2^8, f32 `[8 g][g, g + 8]`.
struct F8 : Halves16 {
  static constexpr int CHUNKS = 2, SPAN = 2, SCALE_BYTES = 0, BLOCK_BYTES = 64;
  static constexpr bool SCALES_OUTPUTS = false;
  struct Pair {
    uint32_t a[2][4];
    float scales[2];
  };

  // Two elements in the upper bytes of halves; whatever is in the lower ones.
  static __device__ __forceinline__ uint32_t halves_of(uint32_t bytes) {
    return (bytes & 0x80008000u) | (bytes >> 1 & 0x3f803f80u);
  }

  static __device__ __forceinline__ Pair pair(const uint8_t* stage, int p, int lane) {
    Pair w;
    uint32_t raw[4];
    words_of(raw, read<uint4>(stage + p * CHUNK_BYTES + lane * 16));
    float2 scales = read<float2>(stage + CHUNKS * CHUNK_BYTES + (lane >> 2) * 8);
    w.scales[0] = scales.x;
    w.scales[1] = scales.y;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      w.a[i >> 1][i & 1] = halves_of(raw[i]);
      w.a[i >> 1][2 + (i & 1)] = halves_of(raw[i] << 8);
    }
    return w;
  }
  static __device__ __forceinline__ void multiply(float (&sums)[4], const Pair& w, const Input& x) {
    add(sums, w.a, x, w.scales[0], w.scales[1]);
  }
  static __device__ __forceinline__ float element(const Weights& w, int row, int k) {
    int tile = row / TILE, within = row % TILE, stage = k / 64, block, i = k % 16;
    const uint8_t* scales = stage_scales<F8>(w, tile, stage, block) + block;
    int at = k % 32 / 16 * 16 + i % 8 / 2 * 4 + i % 2 * 2 + 1 - i / 8;
    uint8_t byte = stage_elements<F8>(w, tile, stage)[k / 32 % 2 * CHUNK_BYTES + place_of(within, at)];
    float value = half_to_float((uint16_t)((byte & 0x80) << 8 | (byte & 0x7f) << 7));
    return read<float>(scales + (within & 7) * 8 + (within >> 3) * 4) * value;
  }
};
