// The CUDA execution model on a CPU, as far as the kernels of this folder use it: for tests, never part of the server.
//
// A thread is a fiber with a stack of its own; the threads of a block take turns on one system thread and hand over at
// barriers and at operations of a warp. What it finds: results that depend on the order of threads (a missing barrier), a
// barrier that some threads never reach, lanes of a warp that meet in different operations, and with the sanitizers every
// access outside of a buffer. What it cannot find: weak memory order between blocks, bank conflicts, and time.
// x86-64 with System V calls only: fibers.cpp has twelve instructions of assembly.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
// A block stays on one system thread.
#define __shared__ static thread_local

struct dim3 { unsigned x, y, z; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(8) int2 { int x, y; };

namespace emulator {

// What the lanes of a warp say to each other: sixteen words at most.
constexpr int WORDS = 16;
enum class Operation { sync, shuffle, mma };

struct Place { dim3 thread, block, block_dim, grid_dim; void* dynamic; };
extern thread_local Place place;

void sync_block();
// Gives `words` to the warp's other lanes of `mask` and waits for theirs; `from` is then what lane `source` gave.
void meet(uint32_t mask, Operation operation, const void* words, size_t bytes, int source, void* from);
int lane();
// Gives `words` to all other lanes of the warp; what lane L gave begins at WORDS * L.
const uint32_t* meet_all(Operation operation, const void* words, size_t bytes);
// Sixteen bytes that are copied when the thread waits for them, or at once: a device may do either.
void copy_later(void* to, const void* from);
void copy_commit();
void copy_wait(size_t later);

// One kernel, called as cuLaunchKernel does: an array of pointers, each to an argument.
using Thunk = void (*)(void** arguments);
// `sizes` are those of the arguments; a size of zero ends them.
struct Registration { Registration(const char* name, Thunk thunk, const size_t* sizes); };

template <auto kernel> struct Unpack;
template <class... A, void (*kernel)(A...)> struct Unpack<kernel> {
  template <size_t... I> static void with(void** arguments, std::integer_sequence<size_t, I...>) {
    kernel(*static_cast<A*>(arguments[I])...);
  }
  static void call(void** arguments) { with(arguments, std::make_integer_sequence<size_t, sizeof...(A)>{}); }
  static constexpr size_t sizes[] = {sizeof(A)..., 0};
};

}  // namespace emulator

#define REGISTER(kernel) \
  static emulator::Registration registration_##kernel{#kernel, emulator::Unpack<kernel>::call, emulator::Unpack<kernel>::sizes};
#define SHARED_DYNAMIC(type, name) type* name = static_cast<type*>(emulator::place.dynamic)
#define threadIdx (emulator::place.thread)
#define blockIdx (emulator::place.block)
#define blockDim (emulator::place.block_dim)
#define gridDim (emulator::place.grid_dim)

inline void __syncthreads() { emulator::sync_block(); }
inline void __syncwarp(uint32_t mask = 0xffffffffu) {
  int nothing = 0;
  emulator::meet(mask, emulator::Operation::sync, &nothing, sizeof nothing, emulator::lane(), &nothing);
}
template <class T> inline T __shfl_sync(uint32_t mask, T value, int source) {
  T from;
  emulator::meet(mask, emulator::Operation::shuffle, &value, sizeof value, source & 31, &from);
  return from;
}
template <class T> inline T __shfl_xor_sync(uint32_t mask, T value, int step) {
  return __shfl_sync(mask, value, emulator::lane() ^ step);
}

inline unsigned __float_as_uint(float x) { return __builtin_bit_cast(unsigned, x); }
inline float __uint_as_float(unsigned x) { return __builtin_bit_cast(float, x); }
inline uint64_t __umul64hi(uint64_t a, uint64_t b) { return (uint64_t)((unsigned __int128)a * b >> 64); }
// The threads of a block take turns, and blocks one after the other.
template <class T> inline T atomicAdd(T* at, T value) {
  T before = *at;
  *at += value;
  return before;
}
inline uint4 load_once(const uint4* from) { return *from; }
inline float half_to_float(uint16_t half) {
  uint32_t exponent = half >> 10 & 31, fraction = half & 1023;
  float magnitude = exponent == 0    ? (float)fraction * 0x1p-24f
                    : exponent == 31 ? __uint_as_float(0x7f800000u | fraction << 13)
                                     : __uint_as_float((exponent + 112) << 23 | fraction << 13);
  return half >> 15 ? -magnitude : magnitude;
}

template <int EXPONENT>
inline uint32_t scale_bf16_pair(uint32_t pair) {
  auto scaled = [](uint32_t upper) { return __float_as_uint(ldexpf(__uint_as_float(upper), EXPONENT)); };
  return (scaled(pair << 16) >> 16) | (scaled(pair & 0xffff0000u) & 0xffff0000u);
}

// Tensor cores, by the fragment maps of tensor.cuh: what a lane holds of A and B is given to all others, and each computes
// its own four elements.
namespace emulator {

constexpr int PLACE_OF_A = 0, PLACE_OF_B = 4;

// The word of A, and of B, with the elements from `k` on, of a row or column; W elements a word, `half` is K / 2.
inline uint32_t word_of_a(const uint32_t* all, int row, int k, int w, int half) {
  int i = (row >> 3) + (k >= half ? 2 : 0), t = k % half / w;
  return all[((row & 7) * 4 + t) * WORDS + PLACE_OF_A + i];
}
inline uint32_t word_of_b(const uint32_t* all, int column, int k, int w, int half) {
  return all[(column * 4 + k % half / w) * WORDS + PLACE_OF_B + (k >= half ? 1 : 0)];
}

// `half` is 16 for K of 32 and of 16 bytes: the latter ends before its second half.
inline void mma_bytes(int (&c)[4], const uint32_t (&words)[6], int len) {
  const uint32_t* all = meet_all(Operation::mma, words, sizeof words);
  for (int i = 0; i < 4; ++i) {
    int row = (lane() >> 2) + 8 * (i >> 1), column = 2 * (lane() & 3) + (i & 1);
    for (int k = 0; k < len; k += 4) {
      uint32_t a = word_of_a(all, row, k, 4, 16), b = word_of_b(all, column, k, 4, 16);
      for (int at = 0; at < 32; at += 8) c[i] += (int8_t)(a >> at) * (int8_t)(b >> at);
    }
  }
}

}  // namespace emulator

inline void mma_bytes(int (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulator::mma_bytes(c, {a[0], a[1], a[2], a[3], b0, b1}, 32);
}
inline void mma_bytes(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t b) { emulator::mma_bytes(c, {a0, a1, 0, 0, b, 0}, 16); }
// A device adds in an order of its own; this is one of them.
inline void mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  uint32_t words[6] = {a[0], a[1], a[2], a[3], b0, b1};
  const uint32_t* all = emulator::meet_all(emulator::Operation::mma, words, sizeof words);
  for (int i = 0; i < 4; ++i) {
    int row = (emulator::lane() >> 2) + 8 * (i >> 1), column = 2 * (emulator::lane() & 3) + (i & 1);
    for (int k = 0; k < 16; k += 2) {
      uint32_t x = emulator::word_of_a(all, row, k, 2, 8), y = emulator::word_of_b(all, column, k, 2, 8);
      c[i] += __uint_as_float(x << 16) * __uint_as_float(y << 16);
      c[i] += __uint_as_float(x & 0xffff0000u) * __uint_as_float(y & 0xffff0000u);
    }
  }
}

inline void copy_async(void* to, const void* from) { emulator::copy_later(to, from); }
inline void copy_commit() { emulator::copy_commit(); }
template <int LATER> inline void copy_wait() { emulator::copy_wait(LATER); }
