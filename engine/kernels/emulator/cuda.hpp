// The CUDA execution model on a CPU, as far as the kernels of this folder use it: for tests, never part of the server.
//
// A thread is a fiber with a stack of its own; the threads of a block take turns on one system thread and hand over at
// barriers and at operations of a warp. What it finds: results that depend on the order of threads (a missing barrier), a
// barrier that some threads never reach, lanes of a warp that meet in different operations, threads that do not wait for their
// inputs, and with the sanitizers every access outside of a buffer. What it cannot find: weak memory order between blocks, bank conflicts, and time.
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
// A thread that ends without having called this is an error.
void wait_for_inputs();

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
template <class T, class U> inline T atomicAdd(T* at, U value) {
  T before = *at;
  *at += value;
  return before;
}
inline void wait_for_inputs() { emulator::wait_for_inputs(); }
inline uint4 load_once(const uint4* from) { return *from; }
inline float half_to_float(uint16_t half) {
  uint32_t exponent = half >> 10 & 31, fraction = half & 1023;
  float magnitude = exponent == 0    ? (float)fraction * 0x1p-24f
                    : exponent == 31 ? __uint_as_float(0x7f800000u | fraction << 13)
                                     : __uint_as_float((exponent + 112) << 23 | fraction << 13);
  return half >> 15 ? -magnitude : magnitude;
}
inline uint16_t float_to_half(float wide) {
  uint32_t bits = __float_as_uint(wide), magnitude = bits & 0x7fffffffu, sign = bits >> 16 & 0x8000u;
  if (magnitude > 0x7f800000u) return 0x7fff;
  // From 65520 on, the nearest is infinity.
  if (magnitude >= 0x477ff000u) return sign | 0x7c00;
  // Below 2^-14, a multiple of 2^-24.
  if (magnitude < 0x38800000u) return sign | (uint32_t)rintf(__uint_as_float(magnitude) * 0x1p24f);
  magnitude += 0xfffu + (magnitude >> 13 & 1);
  return sign | (magnitude - (112u << 23)) >> 13;
}
inline uint32_t pack_halves(float first, float second) {
  return float_to_half(first) | (uint32_t)float_to_half(second) << 16;
}

inline void keep_order() {}

// Tensor cores, by the fragment map of tensor.cuh: what a lane holds of A and B is given to all others, and each computes its
// own four elements. Words of A are the first four that a lane gives, those of B the next two.
namespace emulator {

// The sum of `add(word of A, word of B)` for element `i` of this lane's C, over the `parts` (2 or 1) halves of K.
template <class Sum, class Add> inline void mma(Sum (&c)[4], const uint32_t (&words)[6], int parts, Add add) {
  const uint32_t* all = meet_all(Operation::mma, words, sizeof words);
  for (int i = 0; i < 4; ++i) {
    int row = (lane() >> 2) + 8 * (i >> 1), column = 2 * (lane() & 3) + (i & 1);
    for (int part = 0; part < parts; ++part) {
      for (int t = 0; t < 4; ++t) {
        uint32_t a = all[((row & 7) * 4 + t) * WORDS + (row >> 3) + 2 * part], b = all[(column * 4 + t) * WORDS + 4 + part];
        c[i] = add(c[i], a, b);
      }
    }
  }
}

inline int add_bytes(int sum, uint32_t a, uint32_t b) {
  for (int at = 0; at < 32; at += 8) sum += (int8_t)(a >> at) * (int8_t)(b >> at);
  return sum;
}
// A device adds in an order of its own; this is one of them.
inline float add_f16(float sum, uint32_t a, uint32_t b) {
  sum += half_to_float((uint16_t)a) * half_to_float((uint16_t)b);
  return sum + half_to_float((uint16_t)(a >> 16)) * half_to_float((uint16_t)(b >> 16));
}

}  // namespace emulator

inline void mma_bytes(int (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulator::mma(c, {a[0], a[1], a[2], a[3], b0, b1}, 2, emulator::add_bytes);
}
inline void mma_bytes(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t b) {
  emulator::mma(c, {a0, a1, 0, 0, b, 0}, 1, emulator::add_bytes);
}
inline void multiply_f16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulator::mma(c, {a[0], a[1], a[2], a[3], b0, b1}, 2, emulator::add_f16);
}

// Blocks run one after the other.
inline void __threadfence() {}
template <class T> inline T load_shared_by_blocks(const T* from) { return *from; }

inline void copy_async(void* to, const void* from) { emulator::copy_later(to, from); }
inline void copy_commit() { emulator::copy_commit(); }
template <int LATER> inline void copy_wait() { emulator::copy_wait(LATER); }
