// Attention over block tables, for decode and for chunks of prompts alike.
//
// Idea: a sequence's cells are cut at multiples of SPLIT_LEN, always at the same places, and each piece is attended to by a
// block of its own; a second kernel puts the pieces together in order. So a long context fills the device at batch 1, and
// a row's bits depend on its position alone. Query heads that share keys share a block, eight at most: keys and values are
// read once for all of them.
// Mapping: grid (key heads * groups of query heads, pieces, rows), 128 threads. Scores: a warp a cell, lanes over the head's
// elements. Softmax: a warp a query head. Values: a thread an element, cells in order. Pieces that a row does not reach end
// at once. `attend_combine`: grid (query heads, rows).
// Shapes: query and out `[rows, heads, head_len]`; cache `[blocks, heads_kv, BLOCK_LEN, head_len]`; partial sums
// `[rows, heads, pieces, head_len]` and for each their largest score and their weight. f32, head_len 256 at most.
// Bytes moved: 8 * head_len a cell and key head: keys and values, once.
// Source: Dao et al. 2022 (online softmax), Dao et al. 2023 (splits); fixed split size: He et al. 2025.
#include "device.cuh"

constexpr int SPLIT_LEN = 256;
constexpr int GROUP_MAX = 8;
constexpr int THREADS = 128;
constexpr int WARPS = THREADS / 32;

struct Attention {
  const uint32_t* positions;
  const uint32_t* table_of_row;
  const uint32_t* tables;
  int table_len;
  int heads;
  int heads_kv;
  int head_len;
  float scale;
  int window;     // cells that a row sees at most; 0: all
  float cap;      // 0: none
  int first_row;  // of this launch
  int pieces;     // of the scratch memory
};

// shared: [group, head_len] queries, then [group, SPLIT_LEN] scores
extern "C" __global__ void __launch_bounds__(128) attend(float* partial, float* stats, const float* query,
                                                         const float* keys, const float* values, Attention a) {
  SHARED_DYNAMIC(float, shared);
  int row = blockIdx.z, piece = blockIdx.y, all = a.heads / a.heads_kv, chunks = (all + GROUP_MAX - 1) / GROUP_MAX;
  int head_kv = blockIdx.x / chunks, chunk = blockIdx.x % chunks;
  int group = lesser(GROUP_MAX, all - chunk * GROUP_MAX), head = head_kv * all + chunk * GROUP_MAX;
  int end = a.positions[a.first_row + row] + 1, begin = a.window > 0 ? greater(0, end - a.window) : 0;
  int base = piece * SPLIT_LEN, from = greater(begin, base) - base, to = lesser(end, base + SPLIT_LEN) - base;
  if (from >= to) return;
  const uint32_t* table = a.tables + (size_t)a.table_of_row[a.first_row + row] * a.table_len + base / BLOCK_LEN;
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  float* q = shared;
  float* scores = shared + group * a.head_len;
  query += ((size_t)(a.first_row + row) * a.heads + head) * a.head_len;
  for (int i = threadIdx.x; i < group * a.head_len; i += THREADS) q[i] = query[i];
  __syncthreads();

  for (int cell = from + warp; cell < to; cell += WARPS) {
    size_t place = ((size_t)table[cell / BLOCK_LEN] * a.heads_kv + head_kv) * BLOCK_LEN + cell % BLOCK_LEN;
    const float* key = keys + place * a.head_len;
    float k[HEAD_LEN_MAX / 32];
#pragma unroll
    for (int i = 0; i < HEAD_LEN_MAX / 32; ++i) k[i] = lane + 32 * i < a.head_len ? key[lane + 32 * i] : 0.0f;
    for (int h = 0; h < group; ++h) {
      float sum = 0.0f;
#pragma unroll
      for (int i = 0; i < HEAD_LEN_MAX / 32; ++i) {
        if (lane + 32 * i < a.head_len) sum = fmaf(q[h * a.head_len + lane + 32 * i], k[i], sum);
      }
      sum = warp_sum(sum) * a.scale;
      if (a.cap > 0.0f) sum = a.cap * tanh_exact(sum / a.cap);
      if (lane == 0) scores[h * SPLIT_LEN + cell] = sum;
    }
  }
  __syncthreads();

  size_t item = ((size_t)row * a.heads + head) * a.pieces + piece;
  for (int h = warp; h < group; h += WARPS) {
    float* s = scores + h * SPLIT_LEN;
    float most = -__uint_as_float(0x7f800000u), sum = 0.0f;
    for (int cell = lane; cell < to; cell += 32) {
      if (cell >= from) most = fmaxf(most, s[cell]);
    }
    most = warp_max(most);
    for (int cell = lane; cell < to; cell += 32) {
      if (cell < from) continue;
      float weight = exp_exact(s[cell] - most);
      s[cell] = weight;
      sum += weight;
    }
    sum = warp_sum(sum);
    if (lane == 0) {
      stats[2 * (item + (size_t)h * a.pieces)] = most;
      stats[2 * (item + (size_t)h * a.pieces) + 1] = sum;
    }
  }
  __syncthreads();

  for (int d = threadIdx.x; d < a.head_len; d += THREADS) {
    float sums[GROUP_MAX];
#pragma unroll
    for (int h = 0; h < GROUP_MAX; ++h) sums[h] = 0.0f;
    for (int cell = from; cell < to; ++cell) {
      size_t place = ((size_t)table[cell / BLOCK_LEN] * a.heads_kv + head_kv) * BLOCK_LEN + cell % BLOCK_LEN;
      float value = values[place * a.head_len + d];
#pragma unroll
      for (int h = 0; h < GROUP_MAX; ++h) {
        if (h < group) sums[h] = fmaf(scores[h * SPLIT_LEN + cell], value, sums[h]);
      }
    }
#pragma unroll
    for (int h = 0; h < GROUP_MAX; ++h) {
      if (h < group) partial[(item + (size_t)h * a.pieces) * a.head_len + d] = sums[h];
    }
  }
}
REGISTER(attend)

extern "C" __global__ void __launch_bounds__(128) attend_combine(float* out, const float* partial, const float* stats,
                                                                 Attention a) {
  int head = blockIdx.x, row = blockIdx.y;
  int end = a.positions[a.first_row + row] + 1, begin = a.window > 0 ? greater(0, end - a.window) : 0;
  int first = begin / SPLIT_LEN, last = (end - 1) / SPLIT_LEN;
  size_t item = ((size_t)row * a.heads + head) * a.pieces;
  float most = stats[2 * (item + first)], weight = 0.0f;
  for (int piece = first + 1; piece <= last; ++piece) most = fmaxf(most, stats[2 * (item + piece)]);
  for (int piece = first; piece <= last; ++piece) {
    weight = fmaf(exp_exact(stats[2 * (item + piece)] - most), stats[2 * (item + piece) + 1], weight);
  }
  out += ((size_t)(a.first_row + row) * a.heads + head) * a.head_len;
  for (int d = threadIdx.x; d < a.head_len; d += THREADS) {
    float sum = 0.0f;
    for (int piece = first; piece <= last; ++piece) {
      float factor = exp_exact(stats[2 * (item + piece)] - most);
      sum = fmaf(factor, partial[(item + piece) * a.head_len + d], sum);
    }
    out[d] = sum / weight;
  }
}
REGISTER(attend_combine)
