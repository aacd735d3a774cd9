// out = x · weightᵀ (+ bias) on tensor cores, for one row and for thousands, in one order.
//
// Idea: weights are A, sixteen outputs of them; activations are B (formats.cuh). Weights that are whole numbers meet
// activations that are (records.cuh), four rows with their high and low parts as eight columns, so a unit's product is
// exact and only then scaled and rounded: decision 20 in ARCHITECTURE.md. Floats meet f16 with a scale for 64 of a row,
// eight rows as eight columns.
// Order: K is cut into SEGMENTS by its length alone; a segment is summed stage by stage, then segments are added in order.
// `few` has a warp a segment, `many` one warp for all of them: the same additions, so a row's bits depend neither on how
// many stand beside it nor on which kernel took it.
//
// `few`, up to two records of rows (8, floats: 16): a block of 8 warps has one tile of 16 outputs, so weights are read once
// and by as many warps as there can be: 4096 outputs are 256 blocks, two on each of 132 processors. A lane copies its own
// sixteen bytes to shared memory, one to three stages ahead of where it multiplies: registers hold nothing that is under
// way. With Q4_K and three blocks on a processor, two stages of 1.2 kB of 24 warps are 58 kB, where 4.5 TB/s times some 800
// ns of latency over 132 processors are 27 kB. Of activations only rows that there are, are copied: 160 bytes of one row of
// floats to 1216 of Q4_K.
// Instructions a stage and warp for up to one record of rows, as compiled for sm_90 (loops.py): 189 for the 1216 bytes of
// Q4_K, 133 for the 1088 of FP8, 250 for the 1680 of Q6_K, 112 for the 2176 of Q8_0, 74 for the 2048 of bf16. While 4.5
// TB/s bring 1216 bytes to one of 132 processors at 1.75 GHz, its four schedulers have time for 250: Q4_K comes nearest to
// it.
// `many`, above that: a block of 4 warps has 64 or 128 outputs and 16 or 32 rows, of floats 32 or 64. Activations are
// copied once for all warps, and so are weights; while one stage is multiplied, the next ones are under way. A unit of 32
// elements of 16 outputs and 4 rows of whole numbers costs one product and 9 (Q8_0) to 14 (Q4_K) other instructions: those
// bound it, not the tensor cores. With two tiles a warp, what is read of shared memory (5 wavefronts for two units and four
// rows) takes half of that time.
// Floats have few others: 333 instructions a stage of two tiles and 64 rows, of which 64 are products and 128 scaled
// additions (FP8: 572); what bounds them is how often a byte is read. So 8 warps, two by rows, have 128 outputs and 128
// rows where that is enough blocks: 32 kB a stage for a million products, 38 bytes a cycle at the 1250 products a cycle
// that a processor of an H100 does by `mma.sync` (62 % of its peak), where the second-level cache has some 30 to 40; 64
// rows would be half as much again. From shared memory to registers it is 192 bytes a product of 16 x 8 x 16, 1.5 cycles
// beside the 1.6 of the product itself. Sums of ended segments stay in registers.
// Blocks of rows come first in a grid, so those that run at one time share few weights' tiles and all rows: a matrix larger
// than the second-level cache is read from memory once.
// Where that were too few blocks (16 rows and 4096 outputs are 64, each of which would walk through all of K at the pace of
// memory's latency), the grid is eight deep: a block has one segment, its sums go to memory, and the last block to come
// adds them, the first segment first.
// Which one runs is the launcher's choice (engine/src/backend/cuda/product.rs), by how many blocks there will be.
//
// Shapes: x in records, `[rows / ROWS][stages]`; out `[rows, outputs]` f32; up to three weights share x and one launch,
// their blocks one after the other. Grid: `few` (blocks of all weights); `many` (blocks of rows, blocks of all weights, 1
// or SEGMENTS).
#include "formats.cuh"

constexpr int SEGMENTS = 8;
// By outputs, in `many`.
constexpr int MANY_WARPS = 4;

struct Matrix {
  float* out;
  const float* bias;
  Weights weights;
  int outputs;
};

struct Product {
  Matrix matrices[3];
  const uint8_t* x;
  // For a grid that is SEGMENTS deep: sums of segments, and how many of a block's are done, zero before and after.
  float* partial;
  uint32_t* done;
  int rows;
};

// The matrix that block `block` of all of them works on, which becomes its block within it; blocks have `width` outputs.
__device__ __forceinline__ Matrix chosen(const Product& p, int width, int& block) {
  int first = (p.matrices[0].outputs + width - 1) / width, second = (p.matrices[1].outputs + width - 1) / width;
  if (block < first) return p.matrices[0];
  block -= first;
  if (block < second) return p.matrices[1];
  block -= second;
  return p.matrices[2];
}

__device__ __forceinline__ int segment_start(int stages, int segment) { return stages * segment / SEGMENTS; }

template <class Format>
constexpr int WEIGHT_BYTES = Format::CHUNKS * CHUNK_BYTES + Format::SCALE_BYTES + Format::BLOCK_BYTES;

// What a lane copies of a tile: the words that it multiplies itself, and a part of the scales. It goes from stage to stage
// by additions: an address made anew for each is half of a loop's instructions.
template <class Format>
struct TileSource {
  static constexpr int SCALES = Format::SCALE_BYTES + Format::BLOCK_BYTES;
  const uint8_t *elements, *scales;
  // From a stage's part of the scales to the next one's within a block, and whether that is what comes next.
  int scales_step;
  bool begins_block;

  __device__ __forceinline__ void begin(const Weights& w, int tile, int stage, int lane) {
    elements = stage_elements<Format>(w, tile, stage) + lane * 16;
    if constexpr (SCALES > 0) {
      int block;
      scales = stage_scales<Format>(w, tile, stage, block);
      bool of_stage = lane * 16 < Format::SCALE_BYTES;
      scales += of_stage ? lane * 16 : block + lane * 16 - Format::SCALE_BYTES;
      scales_step = of_stage ? Format::SCALE_BYTES : 0;
      begins_block = stage % Format::SPAN == 0;
    }
  }

  // Asks for a stage.
  __device__ __forceinline__ void copy(uint8_t* to, int lane) {
    to += lane * 16;
#pragma unroll
    for (int c = 0; c < Format::CHUNKS; ++c) copy_async(to + c * CHUNK_BYTES, elements + c * CHUNK_BYTES);
    elements += Format::CHUNKS * CHUNK_BYTES;
    if constexpr (SCALES > 0) {
#pragma unroll
      for (int at = 0; at < SCALES; at += 512) {
        if (SCALES - at >= 512 || lane * 16 < SCALES - at) copy_async(to + Format::CHUNKS * CHUNK_BYTES + at, scales + at);
      }
      if constexpr (Format::SPAN == 1) scales += Format::SCALE_BYTES;
      else {
        scales += begins_block ? scales_step : 2 * Format::SCALE_BYTES + Format::BLOCK_BYTES - scales_step;
        begins_block = !begins_block;
      }
    }
  }
};

// What a lane copies of a record.
template <class Format>
struct RecordSource {
  const uint8_t* record;

  __device__ __forceinline__ void begin(const Product& p, int stages, int group, int stage, int lane) {
    record = p.x + ((size_t)group * stages + stage) * Format::RECORD_BYTES + lane * 16;
  }

  // Asks for a stage; of a record that has `rows` rows for theirs alone: the columns of others hold anything, and no other column
  // sees it.
  __device__ __forceinline__ void copy(uint8_t* to, int lane, int rows) {
    to += lane * 16;
    bool has_row = lane / (32 / Format::ROWS) < rows;
#pragma unroll
    for (int at = 0; at < Format::INPUT_BYTES; at += 512) {
      bool is_there = at < RECORD_CHUNKS_BYTES ? has_row : lane * 16 < Format::INPUT_BYTES - at && rows > 0;
      if (is_there) copy_async(to + at, record + at);
    }
    record += Format::RECORD_BYTES;
  }
};

// What a lane adds up of a tile and a record's rows: outputs g and g + 8 of its rows, one after the other.
template <class Format>
constexpr int SUMS = 2 * Format::LANE_ROWS;

// Adds a stage to the sums of TILES tiles and GROUPS records of rows.
template <class Format, int TILES, int GROUPS>
__device__ __forceinline__ void add_stage(float (&sums)[TILES][GROUPS][SUMS<Format>], const uint8_t* weights,
                                          const uint8_t* inputs, int lane) {
  // Code and registers of large tiles are enough for one pair.
#pragma unroll(TILES* GROUPS > 2 ? 1 : 2)
  for (int p = 0; p < 2; ++p) {
    typename Format::Pair pairs[TILES];
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile) pairs[tile] = Format::pair(weights + tile * WEIGHT_BYTES<Format>, p, lane);
#pragma unroll
    for (int group = 0; group < GROUPS; ++group) {
      // Else the inputs of all groups would be loaded before the first is multiplied, and registers would not suffice.
      if (TILES * GROUPS > 8 && group % 4 == 0) keep_order();
      auto x = Format::inputs(inputs + group * Format::INPUT_BYTES, p, lane);
#pragma unroll
      for (int tile = 0; tile < TILES; ++tile) Format::multiply(sums[tile][group], pairs[tile], x);
    }
  }
}

template <int TILES, int GROUPS, int COUNT>
__device__ __forceinline__ void clear(float (&sums)[TILES][GROUPS][COUNT]) {
#pragma unroll
  for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
    for (int group = 0; group < GROUPS; ++group) {
#pragma unroll
      for (int i = 0; i < COUNT; ++i) sums[tile][group][i] = 0.0f;
    }
  }
}

// Where sum `i` of a lane belongs: the row from a first one on, and the output of a tile.
template <class Format>
__device__ __forceinline__ int lane_row(int group, int i, int lane) {
  return group * Format::ROWS + (lane & 3) * Format::LANE_ROWS + i % Format::LANE_ROWS;
}
template <class Format>
__device__ __forceinline__ int lane_output(int i, int lane) {
  return (lane >> 2) + 8 * (i / Format::LANE_ROWS);
}

template <class Format>
__device__ __forceinline__ void put(const Matrix& m, int row, int rows, int output, float sum) {
  if (row >= rows || output >= m.outputs) return;
  if constexpr (Format::SCALES_OUTPUTS) sum *= output_scale(m.weights, output);
  m.out[(size_t)row * m.outputs + output] = m.bias ? sum + m.bias[output] : sum;
}

// A warp's ring of stages: as deep as three blocks on a processor leave room for, two stages at least.
template <class Format, int GROUPS>
struct Few {
  static constexpr int STAGE_BYTES = WEIGHT_BYTES<Format> + GROUPS * Format::INPUT_BYTES;
  static constexpr int FIT = 73 * 1024 / (SEGMENTS * STAGE_BYTES);
  static constexpr int DEPTH = FIT < 2 ? 2 : FIT > 4 ? 4 : FIT;
};

template <class Format, int GROUPS>
__device__ __forceinline__ void few(const Product& p) {
  constexpr int DEPTH = Few<Format, GROUPS>::DEPTH, STAGE_BYTES = Few<Format, GROUPS>::STAGE_BYTES;
  SHARED_DYNAMIC(uint8_t, shared);
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, tile = blockIdx.x;
  Matrix m = chosen(p, TILE, tile);
  int stages = m.weights.stages, stage = segment_start(stages, warp), end = segment_start(stages, warp + 1);
  uint8_t* ring = shared + warp * DEPTH * STAGE_BYTES;
  TileSource<Format> weights;
  weights.begin(m.weights, tile, stage, lane);
  // Weights are there before anything else is: they are asked for first.
#pragma unroll
  for (int i = 0; i < DEPTH - 1; ++i) {
    if (stage + i < end) weights.copy(ring + i * STAGE_BYTES, lane);
  }
  wait_for_inputs();
  RecordSource<Format> inputs[GROUPS];
#pragma unroll
  for (int group = 0; group < GROUPS; ++group) inputs[group].begin(p, stages, group, stage, lane);
  auto copy_inputs = [&](uint8_t* to) {
#pragma unroll
    for (int group = 0; group < GROUPS; ++group) {
      inputs[group].copy(to + WEIGHT_BYTES<Format> + group * Format::INPUT_BYTES, lane, p.rows - group * Format::ROWS);
    }
  };
#pragma unroll
  for (int i = 0; i < DEPTH - 1; ++i) {
    if (stage + i < end) copy_inputs(ring + i * STAGE_BYTES);
    copy_commit();
  }
  float sums[1][GROUPS][SUMS<Format>];
  clear(sums);
  uint8_t *at = ring, *free = ring + (DEPTH - 1) * STAGE_BYTES, *ring_end = ring + DEPTH * STAGE_BYTES;
  for (; stage < end; ++stage) {
    // This stage is there, and all lanes are done with the one before.
    copy_wait<DEPTH - 2>();
    __syncwarp();
    if (stage + DEPTH - 1 < end) {
      weights.copy(free, lane);
      copy_inputs(free);
    }
    copy_commit();
    add_stage<Format, 1, GROUPS>(sums, at, at + WEIGHT_BYTES<Format>, lane);
    free = at;
    at = at + STAGE_BYTES == ring_end ? ring : at + STAGE_BYTES;
  }
  // All of the ring has been read, so a segment's sums go where it was: `[rows][TILE]`.
  __syncwarp();
#pragma unroll
  for (int group = 0; group < GROUPS; ++group) {
#pragma unroll
    for (int i = 0; i < SUMS<Format>; ++i) {
      ((float*)ring)[lane_row<Format>(group, i, lane) * TILE + lane_output<Format>(i, lane)] = sums[0][group][i];
    }
  }
  __syncthreads();
  if (threadIdx.x >= GROUPS * Format::ROWS * TILE) return;
  float sum = 0.0f;
#pragma unroll
  for (int segment = 0; segment < SEGMENTS; ++segment) {
    sum += ((const float*)(shared + segment * DEPTH * STAGE_BYTES))[threadIdx.x];
  }
  put<Format>(m, threadIdx.x / TILE, p.rows, tile * TILE + threadIdx.x % TILE, sum);
}

// One of several blocks that have a segment each of the same outputs and rows: true in the last one to come here, which
// then sees what all of them have written.
__device__ __forceinline__ bool last_of_segments(uint32_t* done) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(done, 1) == SEGMENTS - 1;
    if (last) *done = 0;
  }
  __syncthreads();
  __threadfence();
  return last;
}

// ROW_WARPS warps by rows, each with GROUPS records of them.
template <class Format, int TILES, int GROUPS, int ROW_WARPS>
__device__ __forceinline__ void many(const Product& p) {
  constexpr int TILE_BYTES = WEIGHT_BYTES<Format>, BLOCK_GROUPS = ROW_WARPS * GROUPS;
  constexpr int INPUTS_AT = MANY_WARPS * TILES * TILE_BYTES, STAGE_BYTES = INPUTS_AT + BLOCK_GROUPS * Format::INPUT_BYTES;
  constexpr bool FLOATS = Format::LANE_ROWS == 2;
  constexpr int DEPTH = TILES == 1 || FLOATS ? 3 : 2;
  constexpr int THREADS = MANY_WARPS * ROW_WARPS * 32, VALUES = TILES * GROUPS * SUMS<Format>;
  SHARED_DYNAMIC(uint8_t, shared);
  // What a thread has of ended segments. Touched eight times, so where registers are scarce they are for what is touched always.
  __shared__ float totals_shared[FLOATS ? 1 : VALUES][THREADS];
  float totals_kept[FLOATS ? VALUES : 1];
  auto total = [&](int i) -> float& {
    if constexpr (FLOATS) return totals_kept[i];
    else return totals_shared[i][threadIdx.x];
  };
  int warp = (threadIdx.x >> 5) % MANY_WARPS, lane = threadIdx.x & 31;
  int row_warp = ROW_WARPS == 1 ? 0 : (threadIdx.x >> 5) / MANY_WARPS;
  int block = blockIdx.y;
  Matrix m = chosen(p, MANY_WARPS * TILES * TILE, block);
  int stages = m.weights.stages, first_tile = (block * MANY_WARPS + warp) * TILES, last_tile = (m.outputs - 1) / TILE;
  int first_group = blockIdx.x * BLOCK_GROUPS, last_group = (p.rows - 1) / Format::ROWS;
  // With two tiles a warp there always are blocks enough.
  bool alone = TILES > 1 || gridDim.z == 1;
  int segment = alone ? 0 : blockIdx.z, segments_end = alone ? SEGMENTS : segment + 1;
  int stage = segment_start(stages, segment), stages_end = segment_start(stages, segments_end);
  // Tiles and records that this warp copies, each of which several warps read.
  constexpr int OWN_TILES = TILES / ROW_WARPS, OWN_GROUPS = GROUPS / MANY_WARPS;
  static_assert(OWN_TILES * ROW_WARPS == TILES && OWN_GROUPS * MANY_WARPS == GROUPS, "a warp has none too few");
  int own_tile = row_warp * OWN_TILES, own_group = (row_warp * MANY_WARPS + warp) * OWN_GROUPS;
  TileSource<Format> weights[OWN_TILES];
  RecordSource<Format> inputs[OWN_GROUPS];
#pragma unroll
  for (int i = 0; i < OWN_TILES; ++i) weights[i].begin(m.weights, lesser(first_tile + own_tile + i, last_tile), stage, lane);
#pragma unroll
  for (int i = 0; i < OWN_GROUPS; ++i) inputs[i].begin(p, stages, lesser(first_group + own_group + i, last_group), stage, lane);
  auto copy = [&](uint8_t* to) {
#pragma unroll
    for (int i = 0; i < OWN_TILES; ++i) weights[i].copy(to + (warp * TILES + own_tile + i) * TILE_BYTES, lane);
#pragma unroll
    for (int i = 0; i < OWN_GROUPS; ++i) {
      inputs[i].copy(to + INPUTS_AT + (own_group + i) * Format::INPUT_BYTES, lane, Format::ROWS);
    }
  };
#pragma unroll
  for (int i = 0; i < DEPTH - 1; ++i) {
    if (stage + i < stages_end) copy(shared + i * STAGE_BYTES);
    copy_commit();
  }
#pragma unroll
  for (int i = 0; i < VALUES; ++i) total(i) = 0.0f;
  float sums[TILES][GROUPS][SUMS<Format>];
  // Value `i` of a thread.
  auto sum_of = [&](int i) -> float& { return sums[i / (SUMS<Format> * GROUPS)][i / SUMS<Format> % GROUPS][i % SUMS<Format>]; };
  // Places in the ring; as addresses they would be twice the registers.
  int at = 0, free = (DEPTH - 1) * STAGE_BYTES;
#pragma unroll 1
  for (; segment < segments_end; ++segment) {
    clear(sums);
#pragma unroll 1
    for (int end = segment_start(stages, segment + 1); stage < end; ++stage) {
      // This stage is there for all, and all are done with the one before.
      copy_wait<DEPTH - 2>();
      __syncthreads();
      if (stage + DEPTH - 1 < stages_end) copy(shared + free);
      copy_commit();
      add_stage<Format, TILES, GROUPS>(sums, shared + at + warp * TILES * TILE_BYTES,
                                       shared + at + INPUTS_AT + row_warp * GROUPS * Format::INPUT_BYTES, lane);
      free = at;
      at = at == (DEPTH - 1) * STAGE_BYTES ? 0 : at + STAGE_BYTES;
    }
#pragma unroll
    for (int i = 0; i < VALUES; ++i) total(i) += sum_of(i);
  }
  if (!alone) {
    int place = blockIdx.y * gridDim.x + blockIdx.x;
    float* partial = p.partial + (size_t)place * (SEGMENTS * VALUES * THREADS) + threadIdx.x;
#pragma unroll
    for (int i = 0; i < VALUES; ++i) partial[(blockIdx.z * VALUES + i) * THREADS] = total(i);
    if (!last_of_segments(p.done + place)) return;
#pragma unroll(FLOATS ? VALUES : 2)
    for (int i = 0; i < VALUES; ++i) {
      float sum = 0.0f;
#pragma unroll
      for (int s = 0; s < SEGMENTS; ++s) sum += load_shared_by_blocks(partial + (s * VALUES + i) * THREADS);
      total(i) = sum;
    }
  }
#pragma unroll
  for (int i = 0; i < VALUES; ++i) {
    int group = first_group + row_warp * GROUPS + i / SUMS<Format> % GROUPS, tile = first_tile + i / (SUMS<Format> * GROUPS);
    int output = tile * TILE + lane_output<Format>(i % SUMS<Format>, lane);
    put<Format>(m, lane_row<Format>(group, i % SUMS<Format>, lane), p.rows, output, total(i));
  }
}

#define FEW(name, Format, GROUPS)                                                                \
  extern "C" __global__ void __launch_bounds__(SEGMENTS * 32) few_##name##_##GROUPS(Product p) { \
    few<Format, GROUPS>(p);                                                                      \
  }                                                                                              \
  REGISTER(few_##name##_##GROUPS)

// BLOCKS are on a processor at once: registers are for so many.
#define MANY(name, Format, TILES, GROUPS, ROW_WARPS, BLOCKS)                      \
  extern "C" __global__ void __launch_bounds__(MANY_WARPS * ROW_WARPS * 32, BLOCKS) \
      many_##name##_##TILES##_##GROUPS##_##ROW_WARPS(Product p) {                 \
    wait_for_inputs();                                                            \
    many<Format, TILES, GROUPS, ROW_WARPS>(p);                                    \
  }                                                                               \
  REGISTER(many_##name##_##TILES##_##GROUPS##_##ROW_WARPS)

// What has a scale and a minimum for every sixteen elements takes more registers.
#define WORDS(name, Format, BLOCKS) \
  FEW(name, Format, 1)              \
  FEW(name, Format, 2)              \
  MANY(name, Format, 1, 4, 1, 4)    \
  MANY(name, Format, 1, 8, 1, 3)    \
  MANY(name, Format, 2, 8, 1, BLOCKS)

#define FLOATS(name, Format)     \
  FEW(name, Format, 1)           \
  FEW(name, Format, 2)           \
  MANY(name, Format, 1, 4, 1, 4) \
  MANY(name, Format, 2, 8, 1, 2) \
  MANY(name, Format, 2, 8, 2, 1)

FLOATS(f16, F16)
FLOATS(f8, F8)
WORDS(q8_0, Q8_0, 3)
WORDS(q4_0, Q4_0, 3)
WORDS(q4_k, Q4_K, 3)
WORDS(q6_k, Q6_K, 3)
WORDS(scaled, Scaled, 2)
