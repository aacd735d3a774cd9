// Rotary position embeddings, norms of heads before them, and the KV cache's newest cells after them.
//
// Idea: angles are made once a step on the device, from positions that lie there already, so a captured step needs no new
// numbers from the host. An angle is position * frequency in turns, in f64, reduced to an eighth of a turn; sine and cosine
// are polynomials of plain f64 operations, exact to f32 and the same everywhere.
// Mapping: `rope_angles` a thread a pair of a row; `rotate_store` a warp a head of a row, of queries, keys or values: its
// elements stay in registers from the norm to the cache, and go through shared memory once, where pairs meet.
// Shapes: angles `[rows, half, 2]`; query `[rows, heads, head_len]`, key and value `[rows, heads_kv, head_len]`; cache
// `[blocks, heads_kv, BLOCK_LEN, cell_len]`, f16; all others f32. head_len 256 at most.
// Cells are rounded to nearest even. What is beyond the largest half, 65504, becomes that: an infinity would make every row
// that sees the cell no number, and so would no number, which becomes that, too.
// Bytes moved: 8 an element of a query and 6 of others, read once and written once. With two norms, two rotations and a store of their own it was 16 to
// 24, and five launches; at decode these are some ten kilobytes, and what counts is the launches.
// Source: Su et al. 2021; norms of heads: Dehghani et al. 2023.
#include "device.cuh"

__device__ __forceinline__ double sine(double x) {
  double s = x * x, p = -1.0 / 1307674368000.0;
  p = p * s + 1.0 / 6227020800.0;
  p = p * s - 1.0 / 39916800.0;
  p = p * s + 1.0 / 362880.0;
  p = p * s - 1.0 / 5040.0;
  p = p * s + 1.0 / 120.0;
  p = p * s - 1.0 / 6.0;
  return p * s * x + x;
}

__device__ __forceinline__ double cosine(double x) {
  double s = x * x, p = 1.0 / 20922789888000.0;
  p = p * s - 1.0 / 87178291200.0;
  p = p * s + 1.0 / 479001600.0;
  p = p * s - 1.0 / 3628800.0;
  p = p * s + 1.0 / 40320.0;
  p = p * s - 1.0 / 720.0;
  p = p * s + 1.0 / 24.0;
  p = p * s - 0.5;
  return p * s + 1.0;
}

// turns: turns that a position gives each pair, [2, half]: plain, then stretched. grid (blocks of pairs, rows)
extern "C" __global__ void __launch_bounds__(128) rope_angles(float* angles, const double* turns,
                                                              const uint32_t* positions, const uint32_t* stretched,
                                                              int half, double magnitude) {
  wait_for_inputs();
  int pair = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y;
  if (pair >= half) return;
  double turn = (double)positions[row] * turns[(stretched[row] != 0 ? half : 0) + pair];
  turn -= rint(turn);
  double quarters = rint(turn * 4.0);
  double rest = (turn - quarters * 0.25) * 6.283185307179586476925;
  double s = sine(rest), c = cosine(rest);
  int quadrant = (int)quarters & 3;
  double sin = quadrant == 0 ? s : quadrant == 1 ? c : quadrant == 2 ? -s : -c;
  double cos = quadrant == 0 ? c : quadrant == 1 ? -s : quadrant == 2 ? -c : s;
  float* to = angles + ((size_t)row * half + pair) * 2;
  to[0] = (float)(cos * magnitude);
  to[1] = (float)(sin * magnitude);
}
REGISTER(rope_angles)

constexpr float HALF_MAX = 65504.0f;

struct Rotation {
  float* query;
  const float* key;
  const float* value;
  uint16_t* keys;    // of the layer
  uint16_t* values;
  const float* query_norm;  // null: heads have none
  const float* key_norm;
  const float* angles;
  const uint32_t* positions;
  const uint32_t* table_of_row;
  const uint32_t* tables;
  int table_len;
  int heads;
  int heads_kv;
  int head_len;
  int half;
  int neighbours;  // elements 2i and 2i + 1 are a pair, otherwise i and i + half
  float eps;
};

// grid (rows, heads of queries, keys and values, four a block)
extern "C" __global__ void __launch_bounds__(128) rotate_store(Rotation a) {
  wait_for_inputs();
  __shared__ float shared[4][HEAD_LEN_MAX];
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, row = blockIdx.x, item = blockIdx.y * 4 + warp;
  if (item >= a.heads + 2 * a.heads_kv) return;
  bool is_query = item < a.heads, is_key = !is_query && item < a.heads + a.heads_kv;
  int head = is_query ? item : is_key ? item - a.heads : item - a.heads - a.heads_kv;
  float* query = a.query + ((size_t)row * a.heads + head) * a.head_len;
  size_t place = ((size_t)row * a.heads_kv + head) * a.head_len;
  const float* from = is_query ? query : (is_key ? a.key : a.value) + place;
  const float* weight = is_query ? a.query_norm : is_key ? a.key_norm : nullptr;

  float x[HEAD_LEN_MAX / 32];
#pragma unroll
  for (int i = 0; i < HEAD_LEN_MAX / 32; ++i) x[i] = lane + 32 * i < a.head_len ? from[lane + 32 * i] : 0.0f;
  if (weight) {
    // The order of `rms_norm`, which has two warps for a row of more than 128 elements.
    float sums[2] = {0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < HEAD_LEN_MAX / 32; ++i) {
      float& sum = sums[a.head_len > 128 ? i & 1 : 0];
      if (lane + 32 * i < a.head_len) sum = fmaf(x[i], x[i], sum);
    }
    float factor = 1.0f / sqrtf((warp_sum(sums[0]) + warp_sum(sums[1])) / (float)a.head_len + a.eps);
#pragma unroll
    for (int i = 0; i < HEAD_LEN_MAX / 32; ++i) {
      if (lane + 32 * i < a.head_len) x[i] = x[i] * factor * weight[lane + 32 * i];
    }
  }
  if (is_query || is_key) {
    float* turned = shared[warp];
#pragma unroll
    for (int i = 0; i < HEAD_LEN_MAX / 32; ++i) {
      if (lane + 32 * i < a.head_len) turned[lane + 32 * i] = x[i];
    }
    __syncwarp();
    const float* angles = a.angles + (size_t)row * a.half * 2;
    for (int pair = lane; pair < a.half; pair += 32) {
      int first = a.neighbours ? 2 * pair : pair, second = a.neighbours ? first + 1 : first + a.half;
      float cos = angles[2 * pair], sin = angles[2 * pair + 1], p = turned[first], q = turned[second];
      turned[first] = p * cos - q * sin;
      turned[second] = p * sin + q * cos;
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < HEAD_LEN_MAX / 32; ++i) {
      if (lane + 32 * i < a.head_len) x[i] = turned[lane + 32 * i];
    }
  }

  if (is_query) {
#pragma unroll
    for (int i = 0; i < HEAD_LEN_MAX / 32; ++i) {
      if (lane + 32 * i < a.head_len) query[lane + 32 * i] = x[i];
    }
    return;
  }
  int len = cell_len(a.head_len), position = a.positions[row];
  size_t block = a.tables[(size_t)a.table_of_row[row] * a.table_len + position / BLOCK_LEN];
  size_t cell = ((block * a.heads_kv + head) * BLOCK_LEN + position % BLOCK_LEN) * len;
  uint16_t* to = (is_key ? a.keys : a.values) + cell;
#pragma unroll
  for (int i = 0; i < HEAD_LEN_MAX / 32; ++i) {
    if (lane + 32 * i < len) to[lane + 32 * i] = float_to_half(fmaxf(fminf(x[i], HALF_MAX), -HALF_MAX));
  }
}
REGISTER(rotate_store)
