// Attention over block tables, for decode and for chunks of prompts alike.
//
// Idea: a sequence's cells are cut at multiples of SPLIT_LEN, always at the same places, and each piece is attended to
// by a block of its own; a second kernel puts the pieces together in order, where there is more than one. So a long
// context fills the device at batch 1. A block takes a run: rows of one sequence that follow each other, one at decode
// and up to 32 / heads in a prompt, with all the query heads that share their keys, eight at most. Keys go into
// registers, once for all of the block's queries (a query: a head of a row), and so do values, at decode once, in a
// prompt by each half of the threads for half of the queries, at about the same time. Shared memory has the queries and
// the scores. So there is no tile of keys that would have to be copied there and read again.
// Order: a score is eight sums of every eighth four elements, then a tree over them; a softmax's sum has 32 strands,
// cells 32 apart, and a tree; a value's has STRANDS, cells STRANDS apart, then one after the other. All of this is by a
// cell's place in its piece and by the head's length, so that a row's bits depend on its position alone, however rows
// are grouped. A cell that a row of the run does not see is left out of its sums, not added as zero.
// Mapping: grid (key heads * groups of query heads, pieces, runs). Scores: eight lanes share a cell, four cells at once
// a warp and CELLS of those in flight; queries come four at a time from shared memory, and eight lanes add up their 4 *
// CELLS sums by exchanging halves, so that a sum costs one shuffle or less. Softmax: a warp a query. Values: a strand
// has QUADS threads, each four elements of all the queries; eight cells (four in a prompt) in flight. `attend_combine`:
// grid (query heads, rows of runs), a thread an element. Pieces that no row of the run reaches end at once.
// Shapes: query and out `[rows, heads, head_len]`; cache `[blocks, heads_kv, BLOCK_LEN, cell_len]`; partial sums
// `[slots, heads, pieces, cell_len]` and for each their largest score and their weight. f32; cell_len is head_len
// filled up with zeros to a multiple of four, for loads of sixteen bytes. Kernels are for heads of up to 64, 128 and
// 256 elements.
// Arithmetic (heads of 128, four of a key head; 132 processors at 1.75 GHz). Bytes moved: 8 * head_len a cell and key
// head, once a run. Decode: a lane has 4 * 4 loads of 16 bytes in flight for scores, a warp 8 KB, and 8 loads, 4 KB,
// for values, of which the first are asked for before the softmax; two blocks of eight warps a processor are 128 KB,
// where 4.8 TB/s and some 0.8 us need 29 KB. Per cell and key head 2 * 4 * 128 multiplications, 8 cycles of a processor
// whose share of bandwidth takes 49 for the bytes. Prompts: a run is 8 rows, so that keys and values are read an eighth
// as often as by single rows; 32 * 256 multiplications a cell are 64 cycles for 1 KB (1.5 where values come twice from
// the second level), 16 to 24 bytes a cycle and processor.
// Shared memory: decode 28 KB (heads of 128 or less), prompts 68 KB. Registers: two blocks of 256 threads, one of 512.
// Source: Dao et al. 2022 (online softmax), Dao et al. 2023 (splits); fixed split size: He et al. 2025.
#include "device.cuh"

constexpr int SPLIT_LEN = 256;
constexpr int GROUP_MAX = 8;

struct Attention {
  const uint32_t* positions;
  const uint32_t* table_of_row;
  const uint32_t* tables;
  const uint32_t* runs;  // first row, and from bit 24 on how many there are
  int table_len;
  int heads;
  int heads_kv;
  int head_len;
  float scale;
  int window;     // cells that a row sees at most; 0: all
  float cap;      // 0: none
  int first_run;  // of this launch
  int pieces;     // of the scratch memory; with one, the result is written at once
  int run_rows;   // slots of a run in the scratch memory
};

// What rows of a run see of a piece: cells are counted from the piece's first.
struct View {
  int position;  // of the run's first row
  int window;
  int base;      // the piece's first cell
  __device__ __forceinline__ int from(int row) const {
    return window > 0 ? greater(position + row + 1 - window - base, 0) : 0;
  }
  __device__ __forceinline__ int to(int row) const { return lesser(position + row + 1 - base, SPLIT_LEN); }
};

// Four elements at a multiple of four.
__device__ __forceinline__ float4 quad_at(const float* from) { return *reinterpret_cast<const float4*>(from); }

__device__ __forceinline__ float dot_quad(float4 a, float4 b, float sum) {
  return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}

__device__ __forceinline__ float4 add_scaled(float weight, float4 v, float4 sum) {
  return {fmaf(weight, v.x, sum.x), fmaf(weight, v.y, sum.y), fmaf(weight, v.z, sum.z), fmaf(weight, v.w, sum.w)};
}

// Adds a cell's value to the sums of `own` queries; with SOME, only to those of queries that see the cell.
template <bool SOME, int OWN>
__device__ __forceinline__ void add_value(float4 (&sums)[OWN], const float* weights, float4 value, int own) {
#pragma unroll
  for (int q = 0; q < OWN; q += 4) {
    if (q >= own) continue;
    float4 w = quad_at(weights + q);
    if (!SOME || w.x != 0.0f) sums[q] = add_scaled(w.x, value, sums[q]);
    if (!SOME || w.y != 0.0f) sums[q + 1] = add_scaled(w.y, value, sums[q + 1]);
    if (!SOME || w.z != 0.0f) sums[q + 2] = add_scaled(w.z, value, sums[q + 2]);
    if (!SOME || w.w != 0.0f) sums[q + 3] = add_scaled(w.w, value, sums[q + 3]);
  }
}

// Adds up COUNT numbers over eight lanes, by the tree of lanes 4, 2 and 1 apart. Lane j then has those from
// j * COUNT / 8 on in its first COUNT / 8 places.
template <int COUNT>
__device__ __forceinline__ void fold_eight(float (&x)[COUNT], int lane) {
#pragma unroll
  for (int step = 4, half = COUNT / 2; step > 0; step >>= 1, half >>= 1) {
    bool upper = lane & step;
#pragma unroll
    for (int i = 0; i < COUNT / 2; ++i) {
      if (i >= half) continue;
      float kept = upper ? x[i + half] : x[i], given = upper ? x[i] : x[i + half];
      x[i] = kept + __shfl_xor_sync(ALL_LANES, given, step);
    }
  }
}

// QUADS: room for a head, in fours of elements. QUERIES: room for queries.
template <int QUADS, int THREADS, int QUERIES>
__device__ __forceinline__ void attend_piece(float* out, float* partial, float* stats, const float* query,
                                             const float* keys, const float* values, const Attention& a) {
  constexpr int VECTORS = QUADS / 8;               // fours of a key in a lane
  constexpr int CELLS = VECTORS > 4 ? 2 : 4;       // cells of a lane
  constexpr int WARPS = THREADS / 32;
  constexpr int STRIDE = QUERIES + 4;              // of a cell's scores: sixteen bytes and no common bank
  constexpr int STRANDS = 256 / QUADS;
  constexpr int SHARES = THREADS / 256;            // of the queries: who adds up values for them
  constexpr int OWN = QUERIES / SHARES;
  constexpr int UNROLL = OWN > 8 ? 4 : 8;
  __shared__ size_t places[SPLIT_LEN / BLOCK_LEN];  // of the table's blocks, in elements
  __shared__ float weights[QUERIES];
  // [QUERIES, QUADS] fours of queries, later [SHARES, STRANDS, 4, QUADS] of sums; then [SPLIT_LEN, STRIDE] scores.
  SHARED_DYNAMIC(float, shared);
  constexpr int QUERY_FLOATS = QUERIES * QUADS * 4, SUM_FLOATS = SHARES * STRANDS * 4 * QUADS * 4;
  float* scores = shared + (QUERY_FLOATS > SUM_FLOATS ? QUERY_FLOATS : SUM_FLOATS);
  float4* quads = reinterpret_cast<float4*>(shared);

  int piece = blockIdx.y, all = a.heads / a.heads_kv, chunks = (all + GROUP_MAX - 1) / GROUP_MAX;
  int head_kv = blockIdx.x / chunks, chunk = blockIdx.x % chunks;
  int group = lesser(GROUP_MAX, all - chunk * GROUP_MAX), head = head_kv * all + chunk * GROUP_MAX;
  uint32_t run = a.runs[a.first_run + blockIdx.z];
  int first = run & 0xffffff, rows = run >> 24, count = rows * group;
  View view = {(int)a.positions[first], a.window, piece * SPLIT_LEN};
  int low = view.from(0), high = view.to(rows - 1);
  if (low >= high) return;
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, len = cell_len(a.head_len);

#pragma unroll 1
  for (int q = warp; q < (count + 3) / 4 * 4; q += WARPS) {
    const float* from = query + ((size_t)(first + q / group) * a.heads + head + q % group) * a.head_len;
#pragma unroll
    for (int d = lane; d < 4 * QUADS; d += 32) {
      shared[q * 4 * QUADS + d] = q < count && d < a.head_len ? from[d] : 0.0f;
    }
  }
  if (threadIdx.x * BLOCK_LEN < high) {
    const uint32_t* table = a.tables + (size_t)a.table_of_row[first] * a.table_len + view.base / BLOCK_LEN;
    places[threadIdx.x] = ((size_t)table[threadIdx.x] * a.heads_kv + head_kv) * BLOCK_LEN * len;
  }
  __syncthreads();

  int part = lane & 7;
#pragma unroll 1
  for (int start = low + warp * 4 * CELLS; start < high; start += WARPS * 4 * CELLS) {
    float4 k[CELLS][VECTORS];
#pragma unroll
    for (int c = 0; c < CELLS; ++c) {
      int cell = start + 4 * c + (lane >> 3);
      const float* key = keys + (cell < high ? places[cell / BLOCK_LEN] + cell % BLOCK_LEN * len : 0) + 4 * part;
#pragma unroll
      for (int i = 0; i < VECTORS; ++i) {
        k[c][i] = cell < high && 4 * part + 32 * i < len ? quad_at(key + 32 * i) : float4{0.0f, 0.0f, 0.0f, 0.0f};
      }
    }
#pragma unroll 1
    for (int q = 0; q < count; q += 4) {
      float sums[4 * CELLS];
#pragma unroll
      for (int i = 0; i < 4 * CELLS; ++i) sums[i] = 0.0f;
#pragma unroll
      for (int i = 0; i < VECTORS; ++i) {
        if (32 * i >= len) continue;
#pragma unroll
        for (int h = 0; h < 4; ++h) {
          float4 elements = quads[(q + h) * QUADS + part + 8 * i];
#pragma unroll
          for (int c = 0; c < CELLS; ++c) sums[h * CELLS + c] = dot_quad(elements, k[c][i], sums[h * CELLS + c]);
        }
      }
      fold_eight(sums, part);
#pragma unroll
      for (int i = 0; i < CELLS / 2; ++i) {
        int cell = start + 4 * (part % 2 * (CELLS / 2) + i) + (lane >> 3);
        float score = sums[i] * a.scale;
        if (a.cap > 0.0f) score = a.cap * tanh_exact(score / a.cap);
        if (cell < high) scores[cell * STRIDE + q + part / 2] = score;
      }
    }
  }
  __syncthreads();

  int share = threadIdx.x / 256, place = threadIdx.x % 256, strand = place / QUADS, quad = place % QUADS;
  int own_first = share * OWN, own = greater(0, lesser(OWN, count - own_first));
  bool adds = own > 0 && 4 * quad < len;
  int strand_first = low + ((strand - low) & (STRANDS - 1));
  float4 v[UNROLL];
  auto load_values = [&](int start) {
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
      int cell = start + STRANDS * u;
      if (cell < high) v[u] = quad_at(values + places[cell / BLOCK_LEN] + cell % BLOCK_LEN * len + 4 * quad);
    }
  };
  // The first values come while there is a softmax to compute.
  if (adds) load_values(strand_first);

#pragma unroll 1
  for (int q = warp; q < count; q += WARPS) {
    int row = q / group, from = view.from(row), to = view.to(row);
    float s[SPLIT_LEN / 32], most = -__uint_as_float(0x7f800000u), sum = 0.0f;
#pragma unroll
    for (int i = 0; i < SPLIT_LEN / 32; ++i) {
      int cell = lane + 32 * i;
      if (cell < from || cell >= to) continue;
      s[i] = scores[cell * STRIDE + q];
      most = fmaxf(most, s[i]);
    }
    most = warp_max(most);
#pragma unroll
    for (int i = 0; i < SPLIT_LEN / 32; ++i) {
      int cell = lane + 32 * i;
      if (cell < low || cell >= high) continue;
      // A weight is never zero but for a cell that is not seen: `exp_exact` ends at e^-87.
      bool seen = cell >= from && cell < to;
      float weight = seen ? exp_exact(s[i] - most) : 0.0f;
      scores[cell * STRIDE + q] = weight;
      if (seen) sum += weight;
    }
    sum = warp_sum(sum);
    if (lane == 0) {
      weights[q] = sum;
      if (a.pieces > 1 && from < to) {
        size_t slot = (size_t)blockIdx.z * a.run_rows + row;
        float* to_stats = stats + 2 * ((slot * a.heads + head + q % group) * a.pieces + piece);
        to_stats[0] = most;
        to_stats[1] = sum;
      }
    }
  }
  __syncthreads();

  float4 sums[OWN];
#pragma unroll
  for (int i = 0; i < OWN; ++i) sums[i] = {0.0f, 0.0f, 0.0f, 0.0f};
  if (adds) {
    // What all rows of these queries see.
    int common_from = view.from((own_first + own - 1) / group), common_to = view.to(own_first / group);
    const float* weight_of = scores + own_first;
#pragma unroll 1
    for (int start = strand_first; start < high; start += STRANDS * UNROLL) {
      if (start != strand_first) load_values(start);
#pragma unroll
      for (int u = 0; u < UNROLL; ++u) {
        int cell = start + STRANDS * u;
        if (cell >= high) continue;
        if (QUERIES == GROUP_MAX || (cell >= common_from && cell < common_to)) {
          add_value<false>(sums, weight_of + cell * STRIDE, v[u], own);
        } else {
          add_value<true>(sums, weight_of + cell * STRIDE, v[u], own);
        }
      }
    }
  }

#pragma unroll 1
  for (int q = 0; q < lesser(count, OWN); q += 4) {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
      if (i / 4 * 4 == q) quads[((share * STRANDS + strand) * 4 + i % 4) * QUADS + quad] = sums[i];
    }
    __syncthreads();
    // The first four strands go on, with a query each.
    int mine = own_first + q + strand, row = mine / group, head_of = head + mine % group;
    if (strand >= 4 || mine >= count || 4 * quad >= len || view.from(row) >= view.to(row)) continue;
    float4 sum = quads[(share * STRANDS * 4 + strand) * QUADS + quad];
#pragma unroll
    for (int s = 1; s < STRANDS; ++s) {
      float4 next = quads[((share * STRANDS + s) * 4 + strand) * QUADS + quad];
      sum = {sum.x + next.x, sum.y + next.y, sum.z + next.z, sum.w + next.w};
    }
    if (a.pieces > 1) {
      size_t slot = (size_t)blockIdx.z * a.run_rows + row;
      float* to = partial + ((slot * a.heads + head_of) * a.pieces + piece) * len + 4 * quad;
      *reinterpret_cast<float4*>(to) = sum;
      continue;
    }
    // As `attend_combine` has it: the factor of a piece that is alone is one.
    float* to = out + ((size_t)(first + row) * a.heads + head_of) * a.head_len + 4 * quad;
    float four[4] = {sum.x, sum.y, sum.z, sum.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (4 * quad + i < a.head_len) to[i] = (four[i] + 0.0f) / weights[mine];
    }
  }
}

// Keys and values are no `__restrict__`: what the kernel before wrote is not to be read through the read-only path.
#define ATTEND(name, quads, threads, queries, blocks)                                                              \
  extern "C" __global__ void __launch_bounds__(threads, blocks)                                                    \
      name(float* out, float* partial, float* stats, const float* query, const float* keys, const float* values,  \
           Attention a) {                                                                                          \
    wait_for_inputs();                                                                                             \
    attend_piece<quads, threads, queries>(out, partial, stats, query, keys, values, a);                            \
  }                                                                                                                \
  REGISTER(name)

ATTEND(attend_64, 16, 256, 8, 2)
ATTEND(attend_128, 32, 256, 8, 2)
ATTEND(attend_256, 64, 256, 8, 2)
ATTEND(attend_rows_64, 16, 512, 32, 1)
ATTEND(attend_rows_128, 32, 512, 32, 1)
ATTEND(attend_rows_256, 64, 512, 32, 1)

// Puts a row's pieces together. grid (query heads, slots); as many threads as a head has elements.
extern "C" __global__ void __launch_bounds__(256) attend_combine(float* out, const float* partial, const float* stats,
                                                                 Attention a) {
  wait_for_inputs();
  __shared__ float2 factors[256];
  int head = blockIdx.x, slot = blockIdx.y, d = threadIdx.x;
  uint32_t run = a.runs[a.first_run + slot / a.run_rows];
  if (slot % a.run_rows >= run >> 24) return;
  int row = (run & 0xffffff) + slot % a.run_rows;
  int end = a.positions[row] + 1, begin = a.window > 0 ? greater(0, end - a.window) : 0;
  int first = begin / SPLIT_LEN, last = (end - 1) / SPLIT_LEN;
  size_t item = ((size_t)slot * a.heads + head) * a.pieces;
  stats += 2 * item;
  float most = stats[2 * first], weight = 0.0f, sum = 0.0f;
  for (int piece = first + 1; piece <= last; ++piece) most = fmaxf(most, stats[2 * piece]);
  for (int start = first; start <= last; start += blockDim.x) {
    int here = lesser(blockDim.x, last + 1 - start);
    __syncthreads();
    if (d < here) factors[d] = {exp_exact(stats[2 * (start + d)] - most), stats[2 * (start + d) + 1]};
    __syncthreads();
    if (d >= a.head_len) continue;
#pragma unroll 4
    for (int i = 0; i < here; ++i) {
      weight = fmaf(factors[i].x, factors[i].y, weight);
      sum = fmaf(factors[i].x, partial[(item + start + i) * cell_len(a.head_len) + d], sum);
    }
  }
  if (d < a.head_len) out[((size_t)row * a.heads + head) * a.head_len + d] = sum / weight;
}
REGISTER(attend_combine)
