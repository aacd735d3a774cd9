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
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) float2 { float x, y; };
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }

namespace emulator {

// What the lanes of a warp say to each other: sixteen words at most.
constexpr int WORDS = 16;
enum class Operation { sync, shuffle };

struct Place { dim3 thread, block, block_dim, grid_dim; void* dynamic; };
extern thread_local Place place;

void sync_block();
// Gives `words` to the warp's other lanes of `mask` and waits for theirs; `from` is then what lane `source` gave.
void meet(uint32_t mask, Operation operation, const void* words, size_t bytes, int source, void* from);
int lane();

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
inline int __dp4a(int a, int b, int c) {
  for (int i = 0; i < 32; i += 8) c += (int8_t)(a >> i) * (int8_t)(b >> i);
  return c;
}
inline uint4 load_once(const uint4* from) { return *from; }
inline float half_to_float(uint16_t half) {
  uint32_t exponent = half >> 10 & 31, fraction = half & 1023;
  float magnitude = exponent == 0    ? (float)fraction * 0x1p-24f
                    : exponent == 31 ? __uint_as_float(0x7f800000u | fraction << 13)
                                     : __uint_as_float((exponent + 112) << 23 | fraction << 13);
  return half >> 15 ? -magnitude : magnitude;
}
