// A token from each row of logits, as engine/src/sampler/choice.rs chooses it on the host, to the same token always: weights
// are whole numbers, so their sums have no order, and candidates have a total order (score, then id).
//
// Idea: three launches, none of which waits for a block of its own grid.
// - `sample_best`, a block for 2048 logits of a row: puts biases, penalties and bans into them, then finds the best of them.
// - `sample_weigh`, the same blocks: knows the row's best, and adds up weights. Of a row without top-k and top-p one sum a
//   block; of others counts and weights by distance from the best, in bins of a 64th of a temperature. Greedy rows end here.
// - `sample_pick`, a block of 512 threads a row. Without filters it finds the block of 2048 where the running sum passes what
//   was drawn, then the token in it. With filters it finds in the bins where top-k and top-p end, gathers that one bin (a few
//   to some hundred candidates as a rule), finds the last candidate that is kept, and then draws. A bin with more than fits is
//   halved by the bits of its scores until it fits or holds equals only.
//
// Bytes: a logit is read once from memory and then from the second-level cache, two times (filters: four; of 128k logits
// 0.5 MB a pass). Operations: some 40 a logit for a weight, 6 where distance alone tells. A row of 128k is 64 blocks in the
// first two launches; in the third a row is one block, whose passes are bound by what one multiprocessor reads. A row with
// penalties has as many counts as logits, which are read once: 0.5 MB more. A row whose bare logits the host wants is written
// to the host's memory by the first launch, before it is edited: 0.5 MB over the bus.
//
// Before the first token of a sequence that has penalties, `count_tokens` counts what is in its prompt and its answer; from
// then on whoever chooses a token counts it.
//
// Shapes: logits `[rows, len]` f32. Written: one u32 a choice, one count where there are penalties, and logits in place where
// they are edited.
// Source: the rules in choice.rs, and those of `Sampler::sample_masked` in engine/src/sampler/mod.rs for what comes before;
// random numbers: Salmon et al. 2011 (Philox 4x32-10).
#include "device.cuh"

constexpr int CHUNK_LEN = 2048;
// Weights are zero from bin 1820 on.
constexpr int BIN_COUNT = 2048;
constexpr float BINS_PER_TEMPERATURE = 64.0f;
// Threads of `sample_pick`: half as many as a block can have, so that eight loads of each can be on their way.
constexpr int PICK_THREADS = 512;
constexpr int PICK_WARPS = PICK_THREADS / 32;
// Candidates that are compared with each other, by a thread each.
constexpr int LIST_LEN = PICK_THREADS;

// Marks a token of the prompt in counts; the rest counts the answer. As in engine/src/sampler/mod.rs.
constexpr uint32_t IN_PROMPT = 1u << 31;

struct Bias {
  uint32_t token;
  float bias;
};

// As `Pick` in engine/src/backend/mod.rs, laid out by `pick_words` in engine/src/backend/cuda/choose.rs.
struct Choice {
  uint32_t row;
  // Zero: the best.
  float temperature;
  // Zero: all.
  uint32_t top_k;
  uint32_t has_top_p;
  uint64_t top_p, min_weight, seed, position;
  // In the host's memory.
  uint32_t* token;
  // There, too: where the bare logits go that the host wants. Null: it wants none.
  float* kept;
  // How often each token is in the answer, and whether it is in the prompt; the token is counted when it is chosen. `[len]`.
  // Null: no penalties.
  uint32_t* counts;
  // In the order of their tokens, of equals as they are to be added; behind them the tokens that may not be chosen.
  const Bias* biases;
  uint32_t bias_count, ban_count;
  float repetition, presence, frequency;
};
static_assert(sizeof(Choice) == 104, "CHOICE_BYTES in engine/src/backend/cuda/choose.rs");

struct Sampling {
  float* logits;
  const Choice* choices;
  // The best of each chunk, and the sum of its weights. `[choices, chunks]`
  uint64_t* best;
  uint64_t* sums;
  // Of each bin. `[choices, BIN_COUNT]`
  uint64_t* bin_weights;
  uint32_t* bin_counts;
  // For the embedding of the next step. `[choices]`
  uint32_t* tokens;
  int len, chunks;

  // By one thread. Host and device each have a copy near them: the host reads its own when this step is over, and the next
  // step may begin before that.
  __device__ __forceinline__ void choose(int choice, uint32_t token) const {
    tokens[choice] = token;
    *choices[choice].token = token;
    uint32_t* counts = choices[choice].counts;
    if (counts) ++counts[token];
  }
};

__device__ __forceinline__ uint64_t warp_sum(uint64_t x) {
  for (int step = 16; step > 0; step >>= 1) x += __shfl_xor_sync(ALL_LANES, x, step);
  return x;
}

__device__ __forceinline__ uint64_t warp_max(uint64_t x) {
  for (int step = 16; step > 0; step >>= 1) {
    uint64_t other = __shfl_xor_sync(ALL_LANES, x, step);
    x = other > x ? other : x;
  }
  return x;
}

// Of this lane and those below it.
__device__ __forceinline__ uint64_t warp_scan(uint64_t x) {
  int lane = threadIdx.x & 31;
  for (int step = 1; step < 32; step <<= 1) {
    uint64_t below = __shfl_sync(ALL_LANES, x, lane - step & 31);
    if (lane >= step) x += below;
  }
  return x;
}

// Over the block, in every thread. `shared` has room for one number a warp; the block must not be using it.
__device__ __forceinline__ uint64_t block_max(uint64_t x, uint64_t* shared) {
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  x = warp_max(x);
  if (lane == 0) shared[warp] = x;
  __syncthreads();
  x = warp_max(lane < warps ? shared[lane] : 0);
  __syncthreads();
  return x;
}

__device__ __forceinline__ uint64_t block_sum(uint64_t x, uint64_t* shared) {
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  x = warp_sum(x);
  if (lane == 0) shared[warp] = x;
  __syncthreads();
  x = warp_sum(lane < warps ? shared[lane] : 0);
  __syncthreads();
  return x;
}

// Calls `use(load(i), i)` for `first`, `first + stride` and so on below `end`: eight loads are on their way before one is used,
// whatever is then done with them.
template <class Load, class Use>
__device__ __forceinline__ void each(int first, int end, int stride, Load load, Use use) {
  constexpr int AT_ONCE = 8;
  for (; first < end; first += AT_ONCE * stride) {
    decltype(load(0)) values[AT_ONCE];
#pragma unroll
    for (int j = 0; j < AT_ONCE; ++j) {
      int i = first + j * stride;
      values[j] = load(i < end ? i : first);
    }
#pragma unroll
    for (int j = 0; j < AT_ONCE; ++j) {
      int i = first + j * stride;
      if (i < end) use(values[j], i);
    }
  }
}

// Bits of a score so that larger scores are larger numbers; zeros are equal, and what is no number is minus infinity.
__device__ __forceinline__ uint32_t key_of(float score) {
  uint32_t bits = __float_as_uint(score + 0.0f);
  if (score != score) bits = 0xff800000u;
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float score_of(uint32_t key) {
  return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key);
}

constexpr uint32_t KEY_OF_MINUS_INFINITY = 0x007fffffu;

// Orders candidates: a larger one is better. Of equal scores the lower id.
__device__ __forceinline__ uint64_t rank_of(uint32_t key, uint32_t token) { return (uint64_t)key << 32 | (uint32_t)~token; }
__device__ __forceinline__ uint32_t token_of(uint64_t rank) { return ~(uint32_t)rank; }
__device__ __forceinline__ uint32_t key_in(uint64_t rank) { return (uint32_t)(rank >> 32); }

// The best of a row, from the best of its chunks. `shared` as for block_max.
__device__ __forceinline__ uint64_t best_of_row(const Sampling& s, int choice, uint64_t* shared) {
  uint64_t best = 0;
  for (int i = threadIdx.x; i < s.chunks; i += blockDim.x) {
    uint64_t other = s.best[(size_t)choice * s.chunks + i];
    best = other > best ? other : best;
  }
  return block_max(best, shared);
}

// What a row's scores are measured by.
struct Scale {
  float largest, inverse;

  __device__ __forceinline__ Scale(uint64_t best, float temperature)
      : largest(score_of(key_in(best))), inverse(1.0f / temperature) {}

  // Temperatures from the largest, zero or below. What is no number is far away.
  __device__ __forceinline__ float distance(float score) const {
    float x = (score - largest) * inverse;
    x = x > -87.0f ? x : -87.0f;
    return score == largest ? 0.0f : x;
  }

  __device__ __forceinline__ int bin(float score) const { return (int)(distance(score) * -BINS_PER_TEMPERATURE); }

  // round(exp(distance) * 2^40) as `high * 2^20 + low`.
  __device__ __forceinline__ int2 parts(float score) const {
    const float round = 12582912.0f, two_20 = 1048576.0f;
    float y = exp_exact(distance(score)) * two_20;
    float high = y + round;
    float low = (y - (high - round)) * two_20 + round;
    return {(int)(__float_as_uint(high) - __float_as_uint(round)), (int)(__float_as_uint(low) - __float_as_uint(round))};
  }

  __device__ __forceinline__ uint64_t weight(float score) const {
    int2 p = parts(score);
    return ((uint64_t)(uint32_t)p.x << 20) + (uint64_t)(long long)p.y;
  }
};

__device__ __forceinline__ bool has_top_k(const Choice& c, int len) { return c.top_k > 0 && c.top_k < (uint32_t)len; }
__device__ __forceinline__ bool has_bins(const Choice& c, int len) { return has_top_k(c, len) || c.has_top_p != 0; }

// Before the first choice of a sequence that has penalties; the counts are zeros. One block.
extern "C" __global__ void __launch_bounds__(1024) count_tokens(uint32_t* counts, const uint32_t* tokens, int prompt_len, int len) {
  wait_for_inputs();
  // Whoever marks a token that is there twice writes the same.
  for (int i = threadIdx.x; i < prompt_len; i += 1024) counts[tokens[i]] = IN_PROMPT;
  __syncthreads();
  for (int i = prompt_len + threadIdx.x; i < len; i += 1024) atomicAdd(&counts[tokens[i]], 1u);
}
REGISTER(count_tokens)

// Puts biases, then penalties, then bans into the logits from `start` to `end`: the host's operations in the host's order. By
// all threads of a block of 256.
__device__ __forceinline__ void edit(const Choice& c, float* logits, int start, int end) {
  for (int i = threadIdx.x; i < (int)c.bias_count; i += 256) {
    uint32_t token = c.biases[i].token;
    // All biases of a token are for the thread that has the first of them.
    if ((int)token < start || (int)token >= end || (i > 0 && c.biases[i - 1].token == token)) continue;
    float score = logits[token];
    for (int j = i; j < (int)c.bias_count && c.biases[j].token == token; ++j) score += c.biases[j].bias;
    logits[token] = score;
  }
  __syncthreads();
  if (c.counts) {
    auto load = [&](int i) { return c.counts[i]; };
    each(start + threadIdx.x, end, 256, load, [&](uint32_t count, int i) {
      if (count == 0) return;
      float score = logits[i];
      score = score > 0.0f ? score / c.repetition : score * c.repetition;
      uint32_t answered = count & ~IN_PROMPT;
      if (answered > 0) score -= c.presence + c.frequency * (float)answered;
      logits[i] = score;
    });
    __syncthreads();
  }
  const uint32_t* bans = (const uint32_t*)(c.biases + c.bias_count);
  for (int i = threadIdx.x; i < (int)c.ban_count; i += 256) {
    if ((int)bans[i] >= start && (int)bans[i] < end) logits[bans[i]] = __uint_as_float(0xff800000u);
  }
  __syncthreads();
}

// grid (chunks, choices)
extern "C" __global__ void __launch_bounds__(256) sample_best(Sampling s) {
  wait_for_inputs();
  __shared__ uint64_t shared[32];
  int choice = blockIdx.y;
  Choice c = s.choices[choice];
  float* logits = s.logits + (size_t)c.row * s.len;
  int start = blockIdx.x * CHUNK_LEN, end = lesser(start + CHUNK_LEN, s.len);
  uint64_t best = 0;
  auto load = [&](int i) { return logits[i]; };
  if (c.kept) {
    each(start + threadIdx.x, end, 256, load, [&](float score, int i) { c.kept[i] = score; });
    __syncthreads();
  }
  if (c.counts || c.bias_count > 0 || c.ban_count > 0) edit(c, logits, start, end);
  each(start + threadIdx.x, end, 256, load, [&](float score, int i) {
    uint64_t rank = rank_of(key_of(score), i);
    best = rank > best ? rank : best;
  });
  best = block_max(best, shared);
  if (threadIdx.x == 0) s.best[(size_t)choice * s.chunks + blockIdx.x] = best;
  if (c.temperature == 0.0f || !has_bins(c, s.len)) return;
  for (int i = blockIdx.x * 256 + threadIdx.x; i < BIN_COUNT; i += gridDim.x * 256) {
    s.bin_weights[(size_t)choice * BIN_COUNT + i] = 0;
    s.bin_counts[(size_t)choice * BIN_COUNT + i] = 0;
  }
}
REGISTER(sample_best)

// grid (chunks, choices)
extern "C" __global__ void __launch_bounds__(256) sample_weigh(Sampling s) {
  wait_for_inputs();
  __shared__ uint64_t shared[32];
  // Parts of weights are added up apart: 2048 of them fit 32 bits, which shared memory adds at once.
  __shared__ uint32_t counts[BIN_COUNT], highs[BIN_COUNT], lows[BIN_COUNT];
  int choice = blockIdx.y;
  Choice c = s.choices[choice];
  uint64_t best = best_of_row(s, choice, shared);
  if (c.temperature == 0.0f || key_in(best) == KEY_OF_MINUS_INFINITY) {
    if (blockIdx.x == 0 && threadIdx.x == 0) s.choose(choice, token_of(best));
    return;
  }
  Scale scale(best, c.temperature);
  const float* logits = s.logits + (size_t)c.row * s.len;
  int start = blockIdx.x * CHUNK_LEN, end = lesser(start + CHUNK_LEN, s.len);
  auto load = [&](int i) { return logits[i]; };
  if (!has_bins(c, s.len)) {
    uint64_t sum = 0;
    each(start + threadIdx.x, end, 256, load, [&](float score, int) {
      uint64_t weight = scale.weight(score);
      sum += weight >= c.min_weight ? weight : 0;
    });
    sum = block_sum(sum, shared);
    if (threadIdx.x == 0) s.sums[(size_t)choice * s.chunks + blockIdx.x] = sum;
    return;
  }
  for (int i = threadIdx.x; i < BIN_COUNT; i += 256) counts[i] = highs[i] = lows[i] = 0;
  __syncthreads();
  each(start + threadIdx.x, end, 256, load, [&](float score, int) {
    int2 parts = scale.parts(score);
    if (parts.x == 0 && parts.y == 0) return;
    int bin = scale.bin(score);
    atomicAdd(&counts[bin], 1u);
    atomicAdd(&highs[bin], (uint32_t)parts.x);
    atomicAdd(&lows[bin], (uint32_t)parts.y);
  });
  __syncthreads();
  for (int i = threadIdx.x; i < BIN_COUNT; i += 256) {
    if (counts[i] == 0) continue;
    uint64_t weight = ((uint64_t)highs[i] << 20) + (uint64_t)(long long)(int)lows[i];
    atomicAdd(&s.bin_counts[(size_t)choice * BIN_COUNT + i], counts[i]);
    atomicAdd(&s.bin_weights[(size_t)choice * BIN_COUNT + i], weight);
  }
}
REGISTER(sample_weigh)

// 64 random bits, as engine/src/philox.rs has them.
__device__ __forceinline__ uint64_t random_bits(uint64_t seed, uint64_t position) {
  uint32_t a = (uint32_t)position, b = (uint32_t)(position >> 32), c = 0, d = 0;
  uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
#pragma unroll
  for (int i = 0; i < 10; ++i) {
    uint64_t left = (uint64_t)a * 0xd2511f53u, right = (uint64_t)c * 0xcd9e8d57u;
    a = (uint32_t)(right >> 32) ^ b ^ k0;
    b = (uint32_t)right;
    c = (uint32_t)(left >> 32) ^ d ^ k1;
    d = (uint32_t)left;
    k0 += 0x9e3779b9u;
    k1 += 0xbb67ae85u;
  }
  return (uint64_t)a << 32 | b;
}

struct Place {
  int index;
  // What of the target is not reached before it.
  uint64_t left;
};

// The first index from `begin` on where the running sum of `weigh(load(i), i)` exceeds `target`, which the sum up to `end` does;
// of a share, the target is that part of 2^64 of the sum. By all threads of `sample_pick`: sums of a span a warp, then of the
// spans of the right one.
template <class Load, class Weigh>
__device__ __forceinline__ Place find(Load load, Weigh weigh, int begin, int end, uint64_t target, bool is_share,
                                      uint64_t* shared) {
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  for (;;) {
    int span = (end - begin + 32 * PICK_WARPS - 1) / (32 * PICK_WARPS) * 32;
    int from = begin + warp * span, to = lesser(from + span, end);
    uint64_t sum = 0;
    each(from + lane, to, 32, load, [&](decltype(load(0)) value, int i) { sum += weigh(value, i); });
    sum = warp_sum(sum);
    if (lane == 0) shared[warp] = sum;
    __syncthreads();
    uint64_t scanned = warp_scan(lane < PICK_WARPS ? shared[lane] : 0);
    __syncthreads();
    if (is_share) target = __umul64hi(target, __shfl_sync(ALL_LANES, scanned, 31));
    is_share = false;
    int below = warp_sum((int)(scanned <= target));
    uint64_t before = __shfl_sync(ALL_LANES, scanned, below - 1 & 31);
    target -= below == 0 ? 0 : before;
    begin += below * span;
    end = lesser(begin + span, end);
    if (span > 32) continue;
    scanned = warp_scan(begin + lane < end ? weigh(load(begin + lane), begin + lane) : 0);
    below = warp_sum((int)(scanned <= target));
    before = __shfl_sync(ALL_LANES, scanned, below - 1 & 31);
    return {begin + below, target - (below == 0 ? 0 : before)};
  }
}

struct Candidate { uint64_t rank, weight; };

struct PickShared {
  uint64_t numbers[PICK_WARPS];
  Candidate list[LIST_LEN];
  int list_len;
  // The bin or the candidate that was looked for, and the sums over all that are better.
  int bin;
  uint64_t rank, count_before, weight_before, weight;
};

// A row of logits with what `sample_pick` knows of it.
struct Row {
  const float* logits;
  int len;
  Scale scale;
  const uint32_t* bin_counts;
};

// The last candidate that is kept: of a bin, the one with which its candidates, the best first, are `need` many, or weigh
// `need` together (`by_weight`). In `shared.rank`; `shared.weight` is what they weigh together.
__device__ __forceinline__ void resolve(const Row& row, int bin, uint64_t need, bool by_weight, PickShared& shared) {
  auto load = [&](int i) { return row.logits[i]; };
  uint64_t count = row.bin_counts[bin], weight_before = 0;
  uint32_t low = 0, high = 0xffffffffu;
  if (count > LIST_LEN) {
    uint64_t largest = 0, smallest = 0;
    each(threadIdx.x, row.len, PICK_THREADS, load, [&](float score, int) {
      if (row.scale.bin(score) != bin || row.scale.weight(score) == 0) return;
      uint64_t key = key_of(score);
      largest = key > largest ? key : largest;
      smallest = ~key > smallest ? ~key : smallest;
    });
    high = (uint32_t)block_max(largest, shared.numbers);
    low = (uint32_t)~block_max(smallest, shared.numbers);
  }
  // The candidate has a score from `low` to `high`, and so have `count`.
  while (count > LIST_LEN && low < high) {
    uint32_t middle = low + (high - low) / 2 + 1;
    uint64_t better = 0, better_weight = 0;
    each(threadIdx.x, row.len, PICK_THREADS, load, [&](float score, int) {
      uint32_t key = key_of(score);
      if (key < middle || key > high || row.scale.bin(score) != bin) return;
      uint64_t weight = row.scale.weight(score);
      better += weight > 0;
      better_weight += weight;
    });
    better = block_sum(better, shared.numbers);
    better_weight = block_sum(better_weight, shared.numbers);
    uint64_t reached = by_weight ? better_weight : better;
    if (need <= reached) {
      low = middle;
      count = better;
    } else {
      need -= reached;
      weight_before += better_weight;
      high = middle - 1;
      count -= better;
    }
  }
  if (count > LIST_LEN) {
    // Equals: so many of the lowest ids.
    uint64_t weight = row.scale.weight(score_of(low));
    uint64_t wanted = by_weight ? (need + weight - 1) / weight : need;
    auto is_equal = [&](float score, int) -> uint64_t { return key_of(score) == low; };
    Place last = find(load, is_equal, 0, row.len, wanted - 1, false, shared.numbers);
    if (threadIdx.x == 0) {
      shared.rank = rank_of(low, last.index);
      shared.weight = weight_before + wanted * weight;
    }
    __syncthreads();
    return;
  }
  if (threadIdx.x == 0) shared.list_len = 0;
  __syncthreads();
  each(threadIdx.x, row.len, PICK_THREADS, load, [&](float score, int i) {
    uint32_t key = key_of(score);
    if (key < low || key > high || row.scale.bin(score) != bin) return;
    uint64_t weight = row.scale.weight(score);
    if (weight > 0) shared.list[atomicAdd(&shared.list_len, 1)] = {rank_of(key, i), weight};
  });
  __syncthreads();
  if (threadIdx.x < shared.list_len) {
    Candidate mine = shared.list[threadIdx.x];
    uint64_t before = 0, before_weight = 0;
    for (int i = 0; i < shared.list_len; ++i) {
      Candidate other = shared.list[i];
      before += other.rank > mine.rank;
      before_weight += other.rank > mine.rank ? other.weight : 0;
    }
    uint64_t reached = by_weight ? before_weight : before;
    if (reached < need && need <= reached + (by_weight ? mine.weight : 1)) {
      shared.rank = mine.rank;
      shared.weight = weight_before + before_weight + mine.weight;
    }
  }
  __syncthreads();
}

// The sum over all threads before this one, and over all, in `sample_pick`.
__device__ __forceinline__ uint64_t better_than_own(uint64_t own, uint64_t& total, uint64_t* shared) {
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  uint64_t scanned = warp_scan(own);
  if (lane == 31) shared[warp] = scanned;
  __syncthreads();
  uint64_t warps = warp_scan(lane < PICK_WARPS ? shared[lane] : 0);
  __syncthreads();
  total = __shfl_sync(ALL_LANES, warps, 31);
  uint64_t before = __shfl_sync(ALL_LANES, warps, warp - 1 & 31);
  return (warp == 0 ? 0 : before) + scanned - own;
}

// The rank of the last candidate that top-k and top-p keep; zero when that is all.
__device__ __forceinline__ uint64_t last_kept(const Row& row, const Choice& c, const uint64_t* bin_weights, PickShared& shared) {
  constexpr int EACH = BIN_COUNT / PICK_THREADS;
  int own = threadIdx.x * EACH;
  uint64_t count = 0, weight = 0;
  for (int i = 0; i < EACH; ++i) {
    count += row.bin_counts[own + i];
    weight += bin_weights[own + i];
  }
  // What is in all better bins than this thread's, and in all.
  uint64_t total_count, total_weight;
  count = better_than_own(count, total_count, shared.numbers);
  weight = better_than_own(weight, total_weight, shared.numbers);

  uint64_t last = 0;
  for (int by_weight = 0; by_weight < 2; ++by_weight) {
    uint64_t need = c.top_k;
    if (by_weight) {
      if (c.has_top_p == 0) break;
      // Rounded up, and one candidate stays.
      need = __umul64hi(c.top_p, total_weight) + (c.top_p * total_weight != 0);
      need = need > 0 ? need : 1;
    } else if (!has_top_k(c, row.len) || total_count <= c.top_k) {
      continue;
    }
    uint64_t before = count, before_weight = weight;
    for (int bin = own; bin < own + EACH; ++bin) {
      uint64_t reached = by_weight ? before_weight : before;
      uint64_t more = by_weight ? bin_weights[bin] : row.bin_counts[bin];
      if (reached < need && need <= reached + more) {
        shared.bin = bin;
        shared.count_before = before;
        shared.weight_before = before_weight;
      }
      before += row.bin_counts[bin];
      before_weight += bin_weights[bin];
    }
    __syncthreads();
    uint64_t better = shared.weight_before;
    resolve(row, shared.bin, need - (by_weight ? better : shared.count_before), by_weight, shared);
    last = shared.rank;
    total_weight = better + shared.weight;
    __syncthreads();
  }
  return last;
}

// grid (choices)
extern "C" __global__ void __launch_bounds__(PICK_THREADS, 1) sample_pick(Sampling s) {
  wait_for_inputs();
  __shared__ PickShared shared;
  int choice = blockIdx.x;
  Choice c = s.choices[choice];
  if (c.temperature == 0.0f) return;
  uint64_t best = best_of_row(s, choice, shared.numbers);
  if (key_in(best) == KEY_OF_MINUS_INFINITY) return;
  Row row{s.logits + (size_t)c.row * s.len, s.len, Scale(best, c.temperature), s.bin_counts + (size_t)choice * BIN_COUNT};
  uint64_t last = 0;
  Place place{0, random_bits(c.seed, c.position)};
  int end = s.len;
  bool bins = has_bins(c, s.len);
  if (bins) {
    last = last_kept(row, c, s.bin_weights + (size_t)choice * BIN_COUNT, shared);
  } else {
    auto sum = [&](int chunk) { return s.sums[(size_t)choice * s.chunks + chunk]; };
    place = find(sum, [](uint64_t sum, int) { return sum; }, 0, s.chunks, place.left, true, shared.numbers);
    place.index *= CHUNK_LEN;
    end = lesser(place.index + CHUNK_LEN, s.len);
  }
  auto load = [&](int i) { return row.logits[i]; };
  auto kept = [&](float score, int i) -> uint64_t {
    if (rank_of(key_of(score), i) < last) return 0;
    uint64_t weight = row.scale.weight(score);
    return weight >= c.min_weight ? weight : 0;
  };
  place = find(load, kept, place.index, end, place.left, bins, shared.numbers);
  if (threadIdx.x == 0) s.choose(choice, place.index);
}
REGISTER(sample_pick)
