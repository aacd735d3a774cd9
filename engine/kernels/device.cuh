// What every kernel file begins with: fixed-width types, the few instructions that C++ has no word for, and sums over a
// warp. The same sources are compiled by NVRTC for a GPU and, with EMULATED defined, by a C++ compiler for the tests.
//
// Arithmetic: multiplication and addition are never fused by the compiler (--fmad=false, -ffp-contract=off); where they are
// to be fused, fmaf says so. Division and square root round correctly. No approximate instruction is used, so that the
// emulation and every GPU give the same bits.
#pragma once

#ifdef EMULATED
#include "emulator/cuda.hpp"
#else
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;
#define SHARED_DYNAMIC(type, name)                      \
  extern __shared__ __align__(16) uint8_t dynamic_[];   \
  type* name = reinterpret_cast<type*>(dynamic_)
#define REGISTER(kernel)

// Half precision, exactly.
__device__ __forceinline__ float half_to_float(uint16_t half) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(half));
  return wide;
}

// To the nearest half, of two the even one.
__device__ __forceinline__ uint16_t float_to_half(float wide) {
  uint16_t half;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(wide));
  return half;
}

// Two halves in a word, the first in its lower part.
__device__ __forceinline__ uint32_t pack_halves(float first, float second) {
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
}

// The compiler loads nothing from behind this before it.
__device__ __forceinline__ void keep_order() { asm volatile("" ::: "memory"); }

// A weight is read once a step: it must not drive activations out of the first-level cache.
__device__ __forceinline__ uint4 load_once(const uint4* from) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from));
  return v;
}

// The first statement of every kernel. From sm_90 on a kernel is launched while the one before it ends: its blocks come to the
// processors as those of the other leave them, and wait here until all of that kernel is done and what it wrote can be seen.
// That kernel was done only after it had waited itself, so everything before it can be seen, too. Nothing that another kernel
// of a step writes, or still reads, may be touched before; nor be loaded through ld.global.nc after it, for it was written while
// this kernel was under way. The kernel behind this one may come at once: it waits here in its turn.
__device__ __forceinline__ void wait_for_inputs() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
#endif

constexpr uint32_t ALL_LANES = 0xffffffffu;

// Cells in one block of KV memory, as `BLOCK_LEN` in engine/src/backend/mod.rs.
constexpr int BLOCK_LEN = 16;

// Elements of a head at most, as in engine/src/backend/cuda/attention.rs.
constexpr int HEAD_LEN_MAX = 256;

// Elements of a head in the cache, which are halves: filled up with zeros to what one product of tensor cores takes.
__device__ __forceinline__ int cell_len(int head_len) { return (head_len + 15) / 16 * 16; }

__device__ __forceinline__ int lesser(int a, int b) { return a < b ? a : b; }
__device__ __forceinline__ int greater(int a, int b) { return a > b ? a : b; }

// The sum over a warp, in every lane: always the same tree.
__device__ __forceinline__ float warp_sum(float x) {
  for (int step = 16; step > 0; step >>= 1) x += __shfl_xor_sync(ALL_LANES, x, step);
  return x;
}

__device__ __forceinline__ int warp_sum(int x) {
  for (int step = 16; step > 0; step >>= 1) x += __shfl_xor_sync(ALL_LANES, x, step);
  return x;
}

__device__ __forceinline__ float warp_max(float x) {
  for (int step = 16; step > 0; step >>= 1) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, step));
  return x;
}

// `exp` as the CPU backend has it (engine/src/backend/cpu): argument reduced to ±ln(2)/2, polynomial of degree 6, relative
// error below 2e-7; beyond -87 and 88 it stays at the border. Source: the method of Cephes `expf` (Moshier 1992).
__device__ __forceinline__ float exp_exact(float x) {
  const float round = 12582912.0f;
  x = fminf(fmaxf(x, -87.0f), 88.0f);
  float rounded = x * 1.44269504f + round;
  float n = rounded - round;
  float r = x - n * 0.6933594f - n * -2.1219444e-4f;
  float p = 1.9875691e-4f;
  p = p * r + 1.3981999e-3f;
  p = p * r + 8.333452e-3f;
  p = p * r + 4.1665796e-2f;
  p = p * r + 1.6666665e-1f;
  p = p * r + 0.5f;
  float y = p * r * r + r + 1.0f;
  return y * __uint_as_float((__float_as_uint(rounded) + 127u) << 23);
}

__device__ __forceinline__ float tanh_exact(float x) { return 1.0f - 2.0f / (exp_exact(2.0f * x) + 1.0f); }
