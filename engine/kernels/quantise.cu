// Records (records.cuh) of rows that lie in memory: where the kernel that made the rows did not make records beside them.
//
// Mapping: a warp a row and stage, four warps a block; grid (stages / 4, rows). Shapes: x `[rows, cols]` f32; out
// `[rows / ROWS][stages]` records.
// Bytes moved: 4 read and 2.5 written an element, 2.06 as halves; rows * cols is small beside any weight.
#include "records.cuh"

template <class Records>
__device__ __forceinline__ void make_records(uint8_t* out, const float* x, int cols, int stages) {
  int stage = blockIdx.x * 4 + (threadIdx.x >> 5), lane = threadIdx.x & 31, row = blockIdx.y;
  if (stage >= stages) return;
  float values[Records::LANE_LEN];
  Records::load(values, x + (size_t)row * cols, stage * Records::LEN + lane * Records::LANE_LEN, cols);
  Records::put(out, values, row, stage, stages, lane);
}

extern "C" __global__ void __launch_bounds__(128) quantise(uint8_t* out, const float* x, int cols, int stages) {
  wait_for_inputs();
  make_records<Words>(out, x, cols, stages);
}
REGISTER(quantise)

extern "C" __global__ void __launch_bounds__(128) halve(uint8_t* out, const float* x, int cols, int stages) {
  wait_for_inputs();
  make_records<Halves>(out, x, cols, stages);
}
REGISTER(halve)
