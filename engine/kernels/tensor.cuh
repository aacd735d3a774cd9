// Tensor cores and asynchronous copies: the few instructions that matmul.cu and attend.cu are made of, and where the elements of a product
// lie in a warp.
//
// D = A · B + C with A `[16, K]`, B `[K, 8]`, C and D `[16, 8]`. Lane L has group g = L / 4 and place t = L % 4. A word is 32
// bits, W elements of it: 4 signed bytes or 2 f16.
//   A  word i: row g + 8 * (i & 1), elements W * t + (0 .. W - 1) + (K / 2) * (i >> 1)     K = 4 * W * (1 or 2)
//   B  word i: column g, elements W * t + (0 .. W - 1) + (K / 2) * i
//   C  word i: row g + 8 * (i >> 1), column 2 * t + (i & 1)
// (For sixteen bytes of K, A has two words and B one, and K / 2 plays no part.) Source: PTX ISA, "Matrix Fragments for
// mma.m16n8k16 with floating point type" and "... for mma.m16n8k16 / m16n8k32 with integer type". engine/tests/cuda_tensor.rs
// holds the emulation against a plain product by these formulas.
#pragma once
#include "device.cuh"

#ifndef EMULATED
// Signed bytes, K = 32. The sum is exact.
__device__ __forceinline__ void mma_bytes(int (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Signed bytes, K = 16. The sum is exact.
__device__ __forceinline__ void mma_bytes(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t b) {
  asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a0), "r"(a1), "r"(b));
}

// f16, K = 16. Products are exact; in what order and how they are added and rounded is the device's own.
__device__ __forceinline__ void multiply_f16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Sixteen bytes from global to shared memory, past registers and the first-level cache. They are there for the thread that
// asked once it has waited, and for others after a barrier besides.
__device__ __forceinline__ void copy_async(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((uint32_t)__cvta_generic_to_shared(to)), "l"(from)
               : "memory");
}

// What was asked since the last call is a group.
__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until no more than `LATER` of this thread's newest groups are under way.
template <int LATER>
__device__ __forceinline__ void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(LATER) : "memory");
}

// What other blocks of this launch have written, from where they meet: the second-level cache.
template <class T>
__device__ __forceinline__ T load_shared_by_blocks(const T* from) {
  return __ldcg(from);
}
#endif
