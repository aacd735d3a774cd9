// Kernels that only show what one instruction does, for engine/tests/cuda_tensor.rs: each lane's words of A, B and C in
// memory, `[32 lanes][words]`.
#include "../tensor.cuh"

extern "C" __global__ void show_mma_bytes_32(int* c, const uint32_t* a, const uint32_t* b) {
  wait_for_inputs();
  int lane = threadIdx.x, sums[4];
  uint32_t words[4];
  for (int i = 0; i < 4; ++i) sums[i] = c[lane * 4 + i];
  for (int i = 0; i < 4; ++i) words[i] = a[lane * 4 + i];
  mma_bytes(sums, words, b[lane * 2], b[lane * 2 + 1]);
  for (int i = 0; i < 4; ++i) c[lane * 4 + i] = sums[i];
}
REGISTER(show_mma_bytes_32)

extern "C" __global__ void show_mma_bytes_16(int* c, const uint32_t* a, const uint32_t* b) {
  wait_for_inputs();
  int lane = threadIdx.x, sums[4];
  for (int i = 0; i < 4; ++i) sums[i] = c[lane * 4 + i];
  mma_bytes(sums, a[lane * 2], a[lane * 2 + 1], b[lane]);
  for (int i = 0; i < 4; ++i) c[lane * 4 + i] = sums[i];
}
REGISTER(show_mma_bytes_16)

#define SHOW_FLOATS(multiply)                                                               \
  extern "C" __global__ void show_##multiply(float* c, const uint32_t* a, const uint32_t* b) { \
    wait_for_inputs();                                                                      \
    int lane = threadIdx.x;                                                                 \
    float sums[4];                                                                          \
    uint32_t words[4];                                                                      \
    for (int i = 0; i < 4; ++i) sums[i] = c[lane * 4 + i];                                  \
    for (int i = 0; i < 4; ++i) words[i] = a[lane * 4 + i];                                 \
    multiply(sums, words, b[lane * 2], b[lane * 2 + 1]);                                    \
    for (int i = 0; i < 4; ++i) c[lane * 4 + i] = sums[i];                                  \
  }                                                                                         \
  REGISTER(show_##multiply)

SHOW_FLOATS(multiply_f16)
