// Memory that is read and nothing else, and a launch that does nothing: what speeds on a device are told as shares of.
//
// Idea: a device reads as fast as it can when enough bytes are on their way. 4.8 TB/s for some 0.8 us from asking to having
// are 3.8 MB, on 132 multiprocessors 29 kB each; 2048 threads with four loads of sixteen bytes ask for 128 kB. Loads go past
// the first-level cache, as those of weights do. Sums are whole numbers, so that their order is free and a pass that left
// something out is found.
// Mapping: 256 threads; a block a span of chunks, UNROLL * 256 of them at a time; grid (spans). The host tries several spans:
// short ones are many blocks, long ones few starts.
// Shapes: from `[grid, span]` chunks of sixteen bytes, span a multiple of UNROLL * 256; sums `[grid, 8]` u32, one a warp.
// Bytes moved: 16 * span read a block, 32 written.
#include "device.cuh"

constexpr int UNROLL = 4;

extern "C" __global__ void __launch_bounds__(256) read_all(uint32_t* sums, const uint4* from, int span) {
  wait_for_inputs();
  const uint4* at = from + (size_t)blockIdx.x * span + threadIdx.x;
  uint32_t sum = 0;
#pragma unroll 1
  for (int start = 0; start < span; start += UNROLL * 256) {
    uint4 chunks[UNROLL];
#pragma unroll
    for (int i = 0; i < UNROLL; ++i) chunks[i] = load_once(at + start + i * 256);
#pragma unroll
    for (int i = 0; i < UNROLL; ++i) sum += chunks[i].x + chunks[i].y + chunks[i].z + chunks[i].w;
  }
  // It wraps around, which is no error of whole numbers without a sign.
  for (int step = 16; step > 0; step >>= 1) sum += __shfl_xor_sync(ALL_LANES, sum, step);
  if ((threadIdx.x & 31) == 0) sums[(size_t)blockIdx.x * 8 + (threadIdx.x >> 5)] = sum;
}
REGISTER(read_all)

// What a launch costs, and no more.
extern "C" __global__ void __launch_bounds__(32) nothing(uint32_t*) { wait_for_inputs(); }
REGISTER(nothing)
