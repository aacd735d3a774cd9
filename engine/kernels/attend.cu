// Attention over block tables on tensor cores, for decode and for chunks of prompts alike.
//
// Idea: eight queries (heads of rows that share their keys) are A of a product: their high parts are rows 0 to 7, what those
// leave is rows 8 to 15, so that a lane finds both sums of a query in its own registers and adds them: a product has the
// digits of f32, and eight queries fill what sixteen would. B are cells: eight of them for scores, eight elements of sixteen
// of them for values. A lane copies to shared memory what lanes in its place multiply, sixteen bytes at once: which element
// of a head, and which cell, stands where in a product is free as long as A and B agree, so what a lane reads of a row of
// memory are its own fragments, without a transposition; of values it joins two cells' halves to a word.
// Order: cells are cut at multiples of TILE_LEN, always at the same places. A tile has a largest score, weights by that score,
// their sum and a sum of values, each begun at zero; SPLIT_LEN / TILE_LEN tiles are put together in order to a piece, and
// pieces in order to the result (`Merge`). All of this is by a cell's place and by the head's length, so a row's bits depend
// on its position alone, whether its tiles are computed by warps, by blocks, or one after the other. A tile that a row
// does not see is left out. A cell that a row does not see, but its neighbours do, has the weight zero: its products are
// zero, and a zero changes no sum. (That a tensor core's sum of zeros and others is that of the others is not documented; models
// of them that reproduce every bit have it so.) Cells that nobody sees are zeros in shared memory, whatever lies there.
// `attend`: one row; grid (key heads * groups of eight query heads, pieces or 1, rows). A warp has a tile of 64 cells, in its own
// ring of blocks of 16 cells: keys, then values; four warps have a piece. With a grid that is one deep, a block goes
// through all pieces of its row, otherwise it has one, and the last block to be done puts them together.
// `attend_rows`: rows of a sequence that follow each other, 64 queries (32 of heads above 128). A warp has 16 (8), all warps share
// tiles of keys and of values, of which the next one is on its way while one is used. Grid as above, of runs.
// Shapes: query and out `[rows, heads, head_len]` f32; cache `[blocks, heads_kv, BLOCK_LEN, cell_len]` f16; partial sums
// `[slots, heads, pieces, cell_len]` f32 and for each their largest score and their weight. cell_len is head_len filled up
// with zeros to a multiple of sixteen.
// Numbers: a query is multiplied by a power of two so that its largest element is between 2^14 and 2^15: parts of it do not
// overflow, and what both of them lose is 2^-22 of an element, or 2^-39 of the largest. Weights are between 0 and 2^15, so
// what they lose is 2^-40 of the largest or 2^-22 of their own. Cells are finite: `rotate_store` sees to that.
// Arithmetic (heads of 128, four of a key head; 132 processors at 1.75 GHz). Decode: 512 bytes a cell and key head; a
// processor's share of 4.8 TB/s is 20.8 bytes a cycle, so a tile of 32 KB takes 1575 cycles of a processor, in which its four
// tensor cores have time for 1575 products each at four cycles; a tile has 128, and some 1000 other instructions of a
// warp. Three blocks of four warps have three blocks of 4 KB under way each, 144 KB a processor, where 0.8 us of latency need
// 29 KB. A piece is 256 cells, not 128: at batch 1 eight key heads are 132 blocks from 4200 cells on, and below that a
// block's 128 KB come at some 100 bytes a nanosecond; halves would save less than a microsecond a layer there, and cost every
// batch twice the partial sums, 8 % of the bytes of keys and values instead of 4 %.
// Prompts: a tile of 64 cells and 64 queries is 1024 products, four cycles each on four tensor cores, for 32 KB: 32 bytes a
// cycle at their peak, some 20 at the two thirds of it that this instruction is known to reach, from the second level.
// Shared memory is read 160 KB a tile, 1250 cycles. Softmax: some 25 instructions a score, half of what the tensor cores take.
// Shared memory: `attend` 34, 68 and 72 KB; `attend_rows` 48, 96 and 96 KB.
// Source: Dao et al. 2022 (online softmax), Dao et al. 2023 (splits); fixed split size: He et al. 2025; what tensor cores make
// of zeros: Fasi et al. 2021, Xie et al. 2025 (MMA-Sim).
#include "tensor.cuh"

constexpr int SPLIT_LEN = 256;
constexpr int TILE_LEN = 64;
constexpr int TILES = SPLIT_LEN / TILE_LEN;
constexpr int TILE_BLOCKS = TILE_LEN / BLOCK_LEN;
constexpr int WARPS = 4;  // of a block of threads
constexpr int THREADS = WARPS * 32;
constexpr int EIGHT = 8;           // queries of a product
constexpr int LINE_BYTES = 512;    // sixteen a lane
constexpr float WEIGHT_MAX = 32768.0f;
static_assert(TILES == WARPS && TILE_BLOCKS == WARPS, "a warp has a tile of a piece, and copies a block of a tile");

struct Attention {
  const uint32_t* positions;
  const uint32_t* table_of_row;
  const uint32_t* tables;
  const uint32_t* runs;  // first row, and from bit 24 on how many there are
  uint32_t* done;        // pieces of a run and group of heads, zero before and after
  int table_len;
  int heads;
  int heads_kv;
  int head_len;
  float scale;
  int window;     // cells that a row sees at most; 0: all
  float cap;      // 0: none
  int first_run;  // of this launch
  int pieces;     // of the scratch memory
  int run_rows;   // slots of a run in the scratch memory
};

// What a block of threads attends from: rows of a run, and query heads that share a key head.
struct Run {
  int first, rows, position;  // of the first row
  int head_kv, head, group;
  const uint32_t* table;
  __device__ __forceinline__ explicit Run(const Attention& a) {
    int all = a.heads / a.heads_kv, chunks = (all + EIGHT - 1) / EIGHT, chunk = blockIdx.x % chunks;
    uint32_t run = a.runs[a.first_run + blockIdx.z];
    first = run & 0xffffff;
    rows = run >> 24;
    position = a.positions[first];
    head_kv = blockIdx.x / chunks;
    head = head_kv * all + chunk * EIGHT;
    group = lesser(EIGHT, all - chunk * EIGHT);
    table = a.tables + (size_t)a.table_of_row[first] * a.table_len;
  }
  // Cells that a row sees.
  __device__ __forceinline__ int from(int row, int window) const {
    return window > 0 ? greater(position + row + 1 - window, 0) : 0;
  }
  __device__ __forceinline__ int to(int row) const { return position + row + 1; }
};

// Cells of a sequence.
struct Range {
  int from, to;
  __device__ __forceinline__ bool meets(int first, int len) const { return from < first + len && to > first; }
};

// How a sum goes on: what it has is multiplied by `keep`, and what comes by `take`.
struct Merge { float keep, take; };

// Puts what has a largest score and a sum of weights of its own behind what there is.
__device__ __forceinline__ Merge merge(float& most, float& sum, float next_most, float next_sum) {
  float greatest = fmaxf(most, next_most);
  Merge m = {exp_exact(most - greatest), exp_exact(next_most - greatest)};
  most = greatest;
  sum = fmaf(next_sum, m.take, sum * m.keep);
  return m;
}

__device__ __forceinline__ float merged(float sum, float next, Merge m) { return fmaf(next, m.take, sum * m.keep); }

__device__ __forceinline__ float infinity() { return __uint_as_float(0x7f800000u); }

__device__ __forceinline__ float4& quad_at(float* at) { return *reinterpret_cast<float4*>(at); }

__device__ __forceinline__ uint32_t word_of(const uint4& v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

// LEN: room for a head. A block of 16 cells is LEN / 16 lines in shared memory.
// Keys, line 2 * c + n: cells 8 * n + lane / 4, elements 32 * c + 8 * (lane % 4) + (0 .. 7).
// Values, line 4 * c + r: cells 2 * (lane % 4) + r % 2 + 8 * (r / 2), elements 64 * c + 8 * (lane / 4) + (0 .. 7).
template <int LEN>
struct Lay {
  static constexpr int KEY_CHUNKS = LEN / 32, VALUE_CHUNKS = LEN / 64, LINES = LEN / 16;
  static constexpr int BLOCK_BYTES = LINES * LINE_BYTES;
  static constexpr int QUERY_BYTES = 2 * KEY_CHUNKS * LINE_BYTES;  // of eight queries
};

// Asks for a block's keys or values, those of `seen` only: the rest are zeros. `first`: the block's first cell.
template <int LEN, bool KEYS>
__device__ __forceinline__ void copy_block(uint8_t* to, const uint16_t* block, int first, Range seen, int len, int lane) {
#pragma unroll
  for (int line = 0; line < Lay<LEN>::LINES; ++line) {
    int chunk = KEYS ? 32 * (line / 2) : 64 * (line / 4);
    if (chunk >= len) continue;
    int r = line % 4, cell = KEYS ? 8 * (line % 2) + (lane >> 2) : 2 * (lane & 3) + r % 2 + 8 * (r / 2);
    int d = chunk + 8 * (KEYS ? lane & 3 : lane >> 2);
    uint8_t* place = to + line * LINE_BYTES + lane * 16;
    if (first + cell >= seen.from && first + cell < seen.to && d < len) {
      copy_async(place, block + cell * len + d);
    } else {
      *reinterpret_cast<uint4*>(place) = {0, 0, 0, 0};
    }
  }
}

// Two numbers and what halves leave of them.
__device__ __forceinline__ void split(float first, float second, uint32_t& high, uint32_t& rest) {
  high = pack_halves(first, second);
  rest = pack_halves(first - half_to_float((uint16_t)high), second - half_to_float((uint16_t)(high >> 16)));
}

// A of eight queries, from number `start` of the run on, for every step of sixteen elements: a warp writes them to shared
// memory, and by what their scores are to be multiplied.
template <int LEN>
__device__ __forceinline__ void prepare_queries(uint8_t* to, float* factors, const float* query, const Run& run,
                                                const Attention& a, int start, int lane) {
  constexpr int CHUNKS = Lay<LEN>::KEY_CHUNKS;
  int number = start + (lane >> 2), row = number / run.group, part = lane & 3;
  bool there = row < run.rows;
  const float* from = query + ((size_t)(run.first + row) * a.heads + run.head + number % run.group) * a.head_len;
  float x[CHUNKS][8], most = 0.0f;
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c) {
    int first = 32 * c + 8 * part;
    if (a.head_len % 8 == 0) {
      bool inside = there && first < a.head_len;
#pragma unroll
      for (int i = 0; i < 8; i += 4) {
        float4 v = inside ? *reinterpret_cast<const float4*>(from + first + i) : float4{0.0f, 0.0f, 0.0f, 0.0f};
        x[c][i] = v.x;
        x[c][i + 1] = v.y;
        x[c][i + 2] = v.z;
        x[c][i + 3] = v.w;
      }
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) x[c][i] = there && first + i < a.head_len ? from[first + i] : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) most = fmaxf(most, fabsf(x[c][i]));
  }
  most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 1));
  most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 2));
  // Both powers of two are normal numbers.
  int exponent = lesser(greater((int)(__float_as_uint(most) >> 23), 15), 254);
  float up = __uint_as_float((uint32_t)(268 - exponent) << 23);
  if (part == 0) factors[start + (lane >> 2)] = __uint_as_float((uint32_t)(exponent - 14) << 23) * a.scale;
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c) {
    if (32 * c >= a.head_len) continue;
#pragma unroll
    for (int i = 0; i < 8; i += 4) {
      uint4 words;
      split(x[c][i] * up, x[c][i + 1] * up, words.x, words.y);
      split(x[c][i + 2] * up, x[c][i + 3] * up, words.z, words.w);
      *reinterpret_cast<uint4*>(to + (2 * c + i / 4) * LINE_BYTES + lane * 16) = words;
    }
  }
}

// Products of EIGHTS times eight queries with the keys of BLOCKS blocks. A lane gets those of query lane / 4 and of cells
// 8 * n + 2 * (lane % 4) + i.
template <int LEN, int EIGHTS, int BLOCKS>
__device__ __forceinline__ void dot_keys(float (*scores)[2 * TILE_BLOCKS][2], const uint8_t* queries, const uint8_t* keys,
                                         int first_block, int len, int lane) {
  float sums[EIGHTS][2 * BLOCKS][4];
#pragma unroll
  for (int m = 0; m < EIGHTS; ++m) {
#pragma unroll
    for (int n = 0; n < 2 * BLOCKS; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[m][n][i] = 0.0f;
    }
  }
#pragma unroll
  for (int c = 0; c < Lay<LEN>::KEY_CHUNKS; ++c) {
    if (32 * c >= len) continue;
    uint32_t q[EIGHTS][2][4];
#pragma unroll
    for (int m = 0; m < EIGHTS; ++m) {
#pragma unroll
      for (int step = 0; step < 2; ++step) {
        const uint8_t* from = queries + m * Lay<LEN>::QUERY_BYTES + (2 * c + step) * LINE_BYTES + lane * 16;
        uint4 v = *reinterpret_cast<const uint4*>(from);
#pragma unroll
        for (int i = 0; i < 4; ++i) q[m][step][i] = word_of(v, i);
      }
    }
#pragma unroll
    for (int n = 0; n < 2 * BLOCKS; ++n) {
      const uint8_t* from = keys + n / 2 * Lay<LEN>::BLOCK_BYTES + (2 * c + n % 2) * LINE_BYTES + lane * 16;
      uint4 k = *reinterpret_cast<const uint4*>(from);
#pragma unroll
      for (int m = 0; m < EIGHTS; ++m) multiply_f16(sums[m][n], q[m][0], k.x, k.y);
#pragma unroll
      for (int m = 0; m < EIGHTS; ++m) multiply_f16(sums[m][n], q[m][1], k.z, k.w);
    }
  }
#pragma unroll
  for (int m = 0; m < EIGHTS; ++m) {
#pragma unroll
    for (int n = 0; n < 2 * BLOCKS; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) scores[m][2 * first_block + n][i] = sums[m][n][i] + sums[m][n][i + 2];
    }
  }
}

// Weights of a tile's cells, as A of products with values, from products with its keys; `most` and `sum` of them. A query
// sees `count` cells from number `from` of the tile on, which may be below zero.
__device__ __forceinline__ void weigh(uint32_t (&weights)[TILE_BLOCKS][4], const float (&scores)[2 * TILE_BLOCKS][2],
                                      float factor, float cap, int from, int count, int lane, float& most, float& sum) {
  float s[2 * TILE_BLOCKS][2];
  auto sees = [&](int n, int i) { return (uint32_t)(8 * n + 2 * (lane & 3) + i - from) < (uint32_t)count; };
  most = -infinity();
#pragma unroll
  for (int n = 0; n < 2 * TILE_BLOCKS; ++n) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      s[n][i] = scores[n][i] * factor;
    }
  }
  if (cap > 0.0f) {
#pragma unroll
    for (int n = 0; n < 2 * TILE_BLOCKS; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) s[n][i] = cap * tanh_exact(s[n][i] / cap);
    }
  }
#pragma unroll
  for (int n = 0; n < 2 * TILE_BLOCKS; ++n) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (sees(n, i)) most = fmaxf(most, s[n][i]);
    }
  }
  most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 1));
  most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 2));
  sum = 0.0f;
#pragma unroll
  for (int n = 0; n < 2 * TILE_BLOCKS; ++n) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      s[n][i] = sees(n, i) ? exp_exact(s[n][i] - most) * WEIGHT_MAX : 0.0f;
      sum += s[n][i];
    }
    split(s[n][0], s[n][1], weights[n / 2][2 * (n % 2)], weights[n / 2][2 * (n % 2) + 1]);
  }
  sum += __shfl_xor_sync(ALL_LANES, sum, 1);
  sum += __shfl_xor_sync(ALL_LANES, sum, 2);
}

// Adds a block's values times their weights, 64 elements of them. A lane gets those of query lane / 4: in sums[m][j][i] and
// [i + 2], whose sum counts, of element 16 * (lane % 4) + 8 * i + j of the 64.
template <int EIGHTS>
__device__ __forceinline__ void add_values(float (&sums)[EIGHTS][8][4], const uint32_t (*weights)[TILE_BLOCKS][4], int block,
                                           const uint8_t* lines, int lane) {
  uint4 v[4];
#pragma unroll
  for (int r = 0; r < 4; ++r) v[r] = *reinterpret_cast<const uint4*>(lines + r * LINE_BYTES + lane * 16);
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    uint32_t words[4];
#pragma unroll
    for (int r = 0; r < 4; ++r) words[r] = word_of(v[r], j / 2);
    uint32_t first = j % 2 ? words[0] >> 16 | (words[1] & 0xffff0000u) : (words[0] & 0xffffu) | words[1] << 16;
    uint32_t second = j % 2 ? words[2] >> 16 | (words[3] & 0xffff0000u) : (words[2] & 0xffffu) | words[3] << 16;
#pragma unroll
    for (int m = 0; m < EIGHTS; ++m) multiply_f16(sums[m][j], weights[m][block], first, second);
  }
}

template <int EIGHTS>
__device__ __forceinline__ void clear(float (&sums)[EIGHTS][8][4]) {
#pragma unroll
  for (int m = 0; m < EIGHTS; ++m) {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[m][j][i] = 0.0f;
    }
  }
}

// Where a piece of a query's attention goes that others are put to.
__device__ __forceinline__ size_t partial_of(const Attention& a, const Run& run, int number, int piece) {
  size_t slot = (size_t)blockIdx.z * a.run_rows + number / run.group;
  return (slot * a.heads + run.head + number % run.group) * a.pieces + piece;
}

__device__ __forceinline__ float* out_of(float* out, const Attention& a, const Run& run, int number) {
  return out + ((size_t)(run.first + number / run.group) * a.heads + run.head + number % run.group) * a.head_len;
}

// One of several blocks that have a piece each of the same queries: true in the last one to come here, which then sees what
// all of them have written.
__device__ __forceinline__ bool last_of_pieces(const Attention& a, Range seen) {
  __shared__ bool last;
  uint32_t* done = a.done + blockIdx.z * gridDim.x + blockIdx.x;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    int blocks = (seen.to - 1) / SPLIT_LEN - seen.from / SPLIT_LEN + 1;
    last = atomicAdd(done, 1) == blocks - 1;
    if (last) *done = 0;
  }
  __syncthreads();
  __threadfence();
  return last;
}

// Puts a run's pieces together: half a warp a query, a thread fours of elements. The half finds the factors of sixteen pieces
// at once.
template <int LEN>
__device__ __forceinline__ void combine(float* out, const float* partial, const float* stats, const Run& run,
                                        const Attention& a, int len) {
  constexpr int CHUNKS = Lay<LEN>::VALUE_CHUNKS;
  int lane = threadIdx.x & 31, half = lane & 16, own = lane & 15, count = run.rows * run.group;
#pragma unroll 1
  for (int number = threadIdx.x / 16; number - threadIdx.x / 16 < count; number += THREADS / 16) {
    int row = number / run.group, first = run.from(row, a.window) / SPLIT_LEN, last = (run.to(row) - 1) / SPLIT_LEN;
    if (number >= count) last = first - 1;
    // Both halves of a warp go on for as long as one of them.
    int pieces = last - first + 1, longest = greater(pieces, __shfl_xor_sync(ALL_LANES, pieces, 16));
    size_t item = partial_of(a, run, number, first);
    float most = -infinity(), sum = 0.0f, totals[CHUNKS][4];
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
#pragma unroll
      for (int i = 0; i < 4; ++i) totals[c][i] = 0.0f;
    }
#pragma unroll 1
    for (int start = 0; start < longest; start += 16) {
      float2 piece = {-infinity(), 0.0f};
      if (start + own < pieces) piece = load_shared_by_blocks(reinterpret_cast<const float2*>(stats) + item + start + own);
      // The largest score up to each piece.
      float greatest = fmaxf(most, piece.x);
#pragma unroll
      for (int step = 1; step < 16; step <<= 1) {
        float other = __shfl_sync(ALL_LANES, greatest, half | ((own - step) & 15));
        if (own >= step) greatest = fmaxf(greatest, other);
      }
      float left = __shfl_sync(ALL_LANES, greatest, half | ((own - 1) & 15)), before = own > 0 ? left : most;
      Merge m = {exp_exact(before - greatest), exp_exact(piece.x - greatest)};
      most = __shfl_sync(ALL_LANES, greatest, half | 15);
#pragma unroll 4
      for (int i = 0; i < lesser(16, longest - start); ++i) {
        Merge next = {__shfl_sync(ALL_LANES, m.keep, half | i), __shfl_sync(ALL_LANES, m.take, half | i)};
        float weight = __shfl_sync(ALL_LANES, piece.y, half | i);
        if (start + i >= pieces) continue;
        sum = merged(sum, weight, next);
#pragma unroll
        for (int c = 0; c < CHUNKS; ++c) {
          if (64 * c + 4 * own >= len) continue;
          const float* from = partial + (item + start + i) * len + 64 * c + 4 * own;
          float4 value = load_shared_by_blocks(reinterpret_cast<const float4*>(from));
          totals[c][0] = merged(totals[c][0], value.x, next);
          totals[c][1] = merged(totals[c][1], value.y, next);
          totals[c][2] = merged(totals[c][2], value.z, next);
          totals[c][3] = merged(totals[c][3], value.w, next);
        }
      }
    }
    if (number >= count) continue;
    float* to = out_of(out, a, run, number);
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (64 * c + 4 * own + i < a.head_len) to[64 * c + 4 * own + i] = totals[c][i] / sum;
      }
    }
  }
}

template <int LEN>
__device__ __forceinline__ void attend(float* out, float* partial, float* stats, const float* query, const uint16_t* keys,
                                       const uint16_t* values, const Attention& a) {
  constexpr int BLOCK_BYTES = Lay<LEN>::BLOCK_BYTES, DEPTH = LEN > 128 ? 2 : 4, STAGES = 2 * TILE_BLOCKS;
  constexpr int CHUNKS = Lay<LEN>::VALUE_CHUNKS;
  __shared__ float factors[EIGHT];
  __shared__ float2 tiles[TILES][EIGHT];  // largest score, sum of weights
  SHARED_DYNAMIC(uint8_t, shared);
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, len = cell_len(a.head_len);
  uint8_t* queries = shared + WARPS * DEPTH * BLOCK_BYTES;
  uint8_t* ring = shared + warp * DEPTH * BLOCK_BYTES;
  Run run(a);
  Range seen = {run.from(0, a.window), run.to(0)};
  bool whole = gridDim.y == 1;
  int piece = whole ? seen.from / SPLIT_LEN : blockIdx.y, end = whole ? (seen.to - 1) / SPLIT_LEN + 1 : piece + 1;
  if (!seen.meets(piece * SPLIT_LEN, SPLIT_LEN)) return;

  // What becomes of the pieces: of query thread / 16, the fours of elements thread % 16 + 16 * c.
  int mine = threadIdx.x / 16, quad = 4 * (threadIdx.x % 16);
  float total_most = -infinity(), total_sum = 0.0f, totals[CHUNKS][4];
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c) {
#pragma unroll
    for (int i = 0; i < 4; ++i) totals[c][i] = 0.0f;
  }

#pragma unroll 1
  for (bool first = true; piece < end; ++piece, first = false) {
    int start = piece * SPLIT_LEN + warp * TILE_LEN;
    bool sees = seen.meets(start, TILE_LEN);
    size_t places[TILE_BLOCKS];
#pragma unroll
    for (int b = 0; b < TILE_BLOCKS; ++b) {
      int cell = start + b * BLOCK_LEN;
      places[b] = seen.meets(cell, BLOCK_LEN) ? ((size_t)run.table[cell / BLOCK_LEN] * a.heads_kv + run.head_kv) : 0;
    }
    auto copy = [&](int stage) {
      int b = stage % TILE_BLOCKS, cell = start + b * BLOCK_LEN;
      if (!seen.meets(cell, BLOCK_LEN)) return;
      uint8_t* to = ring + stage % DEPTH * BLOCK_BYTES;
      if (stage < TILE_BLOCKS) {
        copy_block<LEN, true>(to, keys + places[b] * BLOCK_LEN * len, cell, seen, len, lane);
      } else {
        copy_block<LEN, false>(to, values + places[b] * BLOCK_LEN * len, cell, seen, len, lane);
      }
    };
#pragma unroll
    for (int stage = 0; stage < DEPTH - 1; ++stage) {
      copy(stage);
      copy_commit();
    }
    if (first) {
      if (warp == 0) prepare_queries<LEN>(queries, factors, query, run, a, 0, lane);
      __syncthreads();
    }

    float scores[1][2 * TILE_BLOCKS][2], sums[CHUNKS][1][8][4], most = 0.0f, sum = 0.0f;
    uint32_t weights[1][TILE_BLOCKS][4];
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) clear(sums[c]);
#pragma unroll
    for (int n = 0; n < 2 * TILE_BLOCKS; ++n) scores[0][n][0] = scores[0][n][1] = 0.0f;
#pragma unroll
    for (int stage = 0; stage < STAGES; ++stage) {
      // This stage is there, and all lanes are done with the one before.
      copy_wait<DEPTH - 2>();
      __syncwarp();
      if (stage + DEPTH - 1 < STAGES) copy(stage + DEPTH - 1);
      copy_commit();
      const uint8_t* lines = ring + stage % DEPTH * BLOCK_BYTES;
      if (stage == TILE_BLOCKS && sees) {
        int g = lane >> 2;
        weigh(weights[0], scores[0], factors[g], a.cap, seen.from - start, seen.to - seen.from, lane, most, sum);
        if ((lane & 3) == 0) tiles[warp][g] = {most, sum};
      }
      if (!seen.meets(start + stage % TILE_BLOCKS * BLOCK_LEN, BLOCK_LEN)) continue;
      if (stage < TILE_BLOCKS) {
        dot_keys<LEN, 1, 1>(scores, queries, lines, stage, len, lane);
      } else {
#pragma unroll
        for (int c = 0; c < CHUNKS; ++c) {
          if (64 * c < len) add_values<1>(sums[c], weights, stage - TILE_BLOCKS, lines + 4 * c * LINE_BYTES, lane);
        }
      }
    }
    // The ring is done with: it takes the tile's sums, `[EIGHT, LEN]`.
    __syncwarp();
    if (sees) {
      float* to = reinterpret_cast<float*>(ring) + (lane >> 2) * LEN + 16 * (lane & 3);
#pragma unroll
      for (int c = 0; c < CHUNKS; ++c) {
#pragma unroll
        for (int i = 0; i < 16; i += 4) {
          auto& s = sums[c][0];
          int j = i % 8, k = i / 8;
          quad_at(to + 64 * c + i) = {s[j][k] + s[j][k + 2], s[j + 1][k] + s[j + 1][k + 2], s[j + 2][k] + s[j + 2][k + 2],
                                      s[j + 3][k] + s[j + 3][k + 2]};
        }
      }
    }
    __syncthreads();

    float piece_most = -infinity(), piece_sum = 0.0f, pieces[CHUNKS][4];
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
#pragma unroll
      for (int i = 0; i < 4; ++i) pieces[c][i] = 0.0f;
    }
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile) {
      if (!seen.meets(piece * SPLIT_LEN + tile * TILE_LEN, TILE_LEN)) continue;
      Merge m = merge(piece_most, piece_sum, tiles[tile][mine].x, tiles[tile][mine].y);
      float* from = reinterpret_cast<float*>(shared + tile * DEPTH * BLOCK_BYTES) + mine * LEN + quad;
#pragma unroll
      for (int c = 0; c < CHUNKS; ++c) {
        float4 next = quad_at(from + 64 * c);
        pieces[c][0] = merged(pieces[c][0], next.x, m);
        pieces[c][1] = merged(pieces[c][1], next.y, m);
        pieces[c][2] = merged(pieces[c][2], next.z, m);
        pieces[c][3] = merged(pieces[c][3], next.w, m);
      }
    }
    if (!whole) {
      if (mine < run.group) {
        size_t place = partial_of(a, run, mine, piece);
        if (quad == 0) *reinterpret_cast<float2*>(stats + 2 * place) = {piece_most, piece_sum};
#pragma unroll
        for (int c = 0; c < CHUNKS; ++c) {
          if (64 * c + quad >= len) continue;
          quad_at(partial + place * len + 64 * c + quad) = {pieces[c][0], pieces[c][1], pieces[c][2], pieces[c][3]};
        }
      }
      if (last_of_pieces(a, seen)) combine<LEN>(out, partial, stats, run, a, len);
      return;
    }
    Merge m = merge(total_most, total_sum, piece_most, piece_sum);
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
#pragma unroll
      for (int i = 0; i < 4; ++i) totals[c][i] = merged(totals[c][i], pieces[c][i], m);
    }
    // The ring is written again.
    __syncthreads();
  }
  if (mine >= run.group) return;
  float* to = out_of(out, a, run, mine);
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (64 * c + quad + i < a.head_len) to[64 * c + quad + i] = totals[c][i] / total_sum;
    }
  }
}

// EIGHTS: of queries, a warp.
template <int LEN, int EIGHTS>
__device__ __forceinline__ void attend_rows(float* out, float* partial, float* stats, const float* query,
                                            const uint16_t* keys, const uint16_t* values, const Attention& a) {
  constexpr int BLOCK_BYTES = Lay<LEN>::BLOCK_BYTES, CHUNKS = Lay<LEN>::VALUE_CHUNKS, MINE = EIGHTS * CHUNKS * 16;
  // Keys and values have a place each, or share one.
  constexpr bool OVERLAP = LEN <= 128;
  __shared__ float factors[WARPS * EIGHTS * EIGHT];
  SHARED_DYNAMIC(uint8_t, shared);
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, len = cell_len(a.head_len);
  uint8_t* key_lines = shared;
  uint8_t* value_lines = shared + (OVERLAP ? TILE_BLOCKS * BLOCK_BYTES : 0);
  uint8_t* queries = value_lines + TILE_BLOCKS * BLOCK_BYTES + warp * EIGHTS * Lay<LEN>::QUERY_BYTES;
  // What a thread has of ended pieces, `[MINE][THREADS]`. Touched once a piece, so registers are for what is touched always.
  float* totals = reinterpret_cast<float*>(value_lines + TILE_BLOCKS * BLOCK_BYTES + WARPS * EIGHTS * Lay<LEN>::QUERY_BYTES) +
                  threadIdx.x;
  Run run(a);
  int count = run.rows * run.group, mine = warp * EIGHTS * EIGHT;
  bool whole = gridDim.y == 1;
  // What any row of the run sees, of this block's pieces.
  Range seen = {run.from(0, a.window), run.to(run.rows - 1)};
  Range own = seen;
  if (!whole) {
    own.from = greater(seen.from, blockIdx.y * SPLIT_LEN);
    own.to = lesser(seen.to, (blockIdx.y + 1) * SPLIT_LEN);
    if (own.from >= own.to) return;
  }
  int tile = own.from / TILE_LEN, end = (own.to - 1) / TILE_LEN + 1;

  // A warp copies the block of its number of each tile.
  uint32_t block = 0;
  auto find_block = [&](int tile) {
    int cell = tile * TILE_LEN + warp * BLOCK_LEN;
    if (tile < end && seen.meets(cell, BLOCK_LEN)) block = run.table[cell / BLOCK_LEN];
  };
  auto copy = [&](bool is_keys, int tile) {
    int cell = tile * TILE_LEN + warp * BLOCK_LEN;
    if (tile < end && seen.meets(cell, BLOCK_LEN)) {
      size_t place = ((size_t)block * a.heads_kv + run.head_kv) * BLOCK_LEN * len;
      if (is_keys) {
        copy_block<LEN, true>(key_lines + warp * BLOCK_BYTES, keys + place, cell, seen, len, lane);
      } else {
        copy_block<LEN, false>(value_lines + warp * BLOCK_BYTES, values + place, cell, seen, len, lane);
      }
    }
    copy_commit();
  };
  find_block(tile);
  copy(true, tile);

  // What this warp's queries see, and this lane's.
  Range of_warp = {0, 0}, of_mine[EIGHTS];
  if (mine < count) {
    of_warp = {run.from(mine / run.group, a.window), run.to((lesser(mine + EIGHTS * EIGHT, count) - 1) / run.group)};
  }
  float factor[EIGHTS], most[EIGHTS], sum[EIGHTS], total_most[EIGHTS], total_sum[EIGHTS], sums[EIGHTS][CHUNKS][16];
#pragma unroll
  for (int m = 0; m < EIGHTS; ++m) {
    prepare_queries<LEN>(queries + m * Lay<LEN>::QUERY_BYTES, factors, query, run, a, mine + m * EIGHT, lane);
    __syncwarp();
    int number = mine + m * EIGHT + (lane >> 2);
    factor[m] = factors[number];
    of_mine[m] = {0, 0};
    if (number < count) of_mine[m] = {run.from(number / run.group, a.window), run.to(number / run.group)};
    most[m] = total_most[m] = -infinity();
    sum[m] = total_sum[m] = 0.0f;
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
#pragma unroll
      for (int i = 0; i < 16; ++i) sums[m][c][i] = 0.0f;
    }
  }
#pragma unroll
  for (int i = 0; i < MINE; ++i) totals[i * THREADS] = 0.0f;

#pragma unroll 1
  for (; tile < end; ++tile) {
    int start = tile * TILE_LEN;
    bool sees = of_warp.meets(start, TILE_LEN);
    // Keys are there for all, and all are done with the values before.
    copy_wait<0>();
    __syncthreads();
    if (OVERLAP) {
      copy(false, tile);
      find_block(tile + 1);
    }
    float scores[EIGHTS][2 * TILE_BLOCKS][2];
    if (sees) dot_keys<LEN, EIGHTS, TILE_BLOCKS>(scores, queries, key_lines, 0, len, lane);
    if (!OVERLAP) {
      __syncthreads();
      copy(false, tile);
      find_block(tile + 1);
    }
    uint32_t weights[EIGHTS][TILE_BLOCKS][4];
    Merge merges[EIGHTS];
    if (sees) {
#pragma unroll
      for (int m = 0; m < EIGHTS; ++m) {
        float tile_most, tile_sum;
        int visible = of_mine[m].to - of_mine[m].from;
        weigh(weights[m], scores[m], factor[m], a.cap, of_mine[m].from - start, visible, lane, tile_most, tile_sum);
        // With a tile that a query does not see, nothing of it changes.
        merges[m] = {1.0f, 0.0f};
        if (of_mine[m].meets(start, TILE_LEN)) merges[m] = merge(most[m], sum[m], tile_most, tile_sum);
      }
    }
    // Values are there for all, and all are done with the keys.
    copy_wait<0>();
    __syncthreads();
    if (OVERLAP) copy(true, tile + 1);
    if (sees) {
#pragma unroll
      for (int c = 0; c < CHUNKS; ++c) {
        if (64 * c >= len) continue;
        float added[EIGHTS][8][4];
        clear(added);
#pragma unroll
        for (int b = 0; b < TILE_BLOCKS; ++b) {
          if (!seen.meets(start + b * BLOCK_LEN, BLOCK_LEN)) continue;
          add_values<EIGHTS>(added, weights, b, value_lines + b * BLOCK_BYTES + 4 * c * LINE_BYTES, lane);
        }
#pragma unroll
        for (int m = 0; m < EIGHTS; ++m) {
          if (!of_mine[m].meets(start, TILE_LEN)) continue;
#pragma unroll
          for (int i = 0; i < 16; ++i) {
            sums[m][c][i] = merged(sums[m][c][i], added[m][i % 8][i / 8] + added[m][i % 8][i / 8 + 2], merges[m]);
          }
        }
      }
    }
    if (!OVERLAP) {
      __syncthreads();
      copy(true, tile + 1);
    }
    if (!whole || (tile % TILES != TILES - 1 && tile != end - 1)) continue;
    int piece_start = tile / TILES * SPLIT_LEN;
#pragma unroll
    for (int m = 0; m < EIGHTS; ++m) {
      if (!of_mine[m].meets(piece_start, SPLIT_LEN)) continue;
      Merge next = merge(total_most[m], total_sum[m], most[m], sum[m]);
      most[m] = -infinity();
      sum[m] = 0.0f;
#pragma unroll
      for (int i = 0; i < CHUNKS * 16; ++i) {
        float* total = totals + (m * CHUNKS * 16 + i) * THREADS;
        *total = merged(*total, sums[m][i / 16][i % 16], next);
        sums[m][i / 16][i % 16] = 0.0f;
      }
    }
  }
  copy_wait<0>();

#pragma unroll
  for (int m = 0; m < EIGHTS; ++m) {
    int number = mine + m * EIGHT + (lane >> 2);
    if (number >= count) continue;
    if (whole) {
      float* to = out_of(out, a, run, number) + 16 * (lane & 3);
#pragma unroll
      for (int i = 0; i < CHUNKS * 16; ++i) {
        int d = 64 * (i / 16) + i % 16;
        if (16 * (lane & 3) + d < a.head_len) to[d] = totals[(m * CHUNKS * 16 + i) * THREADS] / total_sum[m];
      }
      continue;
    }
    if (!of_mine[m].meets(blockIdx.y * SPLIT_LEN, SPLIT_LEN)) continue;
    size_t place = partial_of(a, run, number, blockIdx.y);
    if ((lane & 3) == 0) *reinterpret_cast<float2*>(stats + 2 * place) = {most[m], sum[m]};
#pragma unroll
    for (int i = 0; i < CHUNKS * 16; i += 4) {
      auto& s = sums[m][i / 16];
      int d = 64 * (i / 16) + 16 * (lane & 3) + i % 16;
      if (d < len) quad_at(partial + place * len + d) = {s[i % 16], s[i % 16 + 1], s[i % 16 + 2], s[i % 16 + 3]};
    }
  }
  if (!whole && last_of_pieces(a, seen)) combine<LEN>(out, partial, stats, run, a, len);
}

// Keys and values are no `__restrict__`: what the kernel before wrote is not to be read through the read-only path. BLOCKS are on
// a processor at once: registers are for so many.
#define ATTEND(name, function, BLOCKS)                                                                             \
  extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)                                                    \
      name(float* out, float* partial, float* stats, const float* query, const uint16_t* keys,                     \
           const uint16_t* values, Attention a) {                                                                  \
    wait_for_inputs();                                                                                             \
    function(out, partial, stats, query, keys, values, a);                                                         \
  }                                                                                                                \
  REGISTER(name)

ATTEND(attend_64, attend<64>, 4)
ATTEND(attend_128, attend<128>, 3)
ATTEND(attend_256, attend<256>, 2)
#define ROWS_64 attend_rows<64, 2>
#define ROWS_128 attend_rows<128, 2>
#define ROWS_256 attend_rows<256, 1>
ATTEND(attend_rows_64, ROWS_64, 2)
ATTEND(attend_rows_128, ROWS_128, 2)
ATTEND(attend_rows_256, ROWS_256, 2)
