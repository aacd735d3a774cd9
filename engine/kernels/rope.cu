// Rotary position embeddings, and the KV cache's newest cells.
//
// Idea: angles are made once a step on the device, from positions that lie there already, so a captured step needs no new
// numbers from the host. An angle is position * frequency in turns, in f64, reduced to an eighth of a turn; sine and cosine
// are polynomials of plain f64 operations, exact to f32 and the same everywhere.
// Mapping: `rope_angles` a thread a pair of a row; `rope` a block a row, a thread a pair; `store_kv` a block a row.
// Shapes: angles `[rows, half, 2]`; `x` `[rows, heads, head_len]`; cache `[blocks, heads_kv, BLOCK_LEN, head_len]`, f32.
// Bytes moved: 8 an element of `x` and of keys and values. Source: Su et al. 2021.
#include "device.cuh"

__device__ __forceinline__ double sine(double x) {
  double s = x * x, p = -1.0 / 1307674368000.0;
  p = p * s + 1.0 / 6227020800.0;
  p = p * s - 1.0 / 39916800.0;
  p = p * s + 1.0 / 362880.0;
  p = p * s - 1.0 / 5040.0;
  p = p * s + 1.0 / 120.0;
  p = p * s - 1.0 / 6.0;
  return p * s * x + x;
}

__device__ __forceinline__ double cosine(double x) {
  double s = x * x, p = 1.0 / 20922789888000.0;
  p = p * s - 1.0 / 87178291200.0;
  p = p * s + 1.0 / 479001600.0;
  p = p * s - 1.0 / 3628800.0;
  p = p * s + 1.0 / 40320.0;
  p = p * s - 1.0 / 720.0;
  p = p * s + 1.0 / 24.0;
  p = p * s - 0.5;
  return p * s + 1.0;
}

// turns: turns that a position gives each pair, [2, half]: plain, then stretched. grid (blocks of pairs, rows)
extern "C" __global__ void __launch_bounds__(128) rope_angles(float* angles, const double* turns,
                                                              const uint32_t* positions, const uint32_t* stretched,
                                                              int half, double magnitude) {
  int pair = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y;
  if (pair >= half) return;
  double turn = (double)positions[row] * turns[(stretched[row] != 0 ? half : 0) + pair];
  turn -= rint(turn);
  double quarters = rint(turn * 4.0);
  double rest = (turn - quarters * 0.25) * 6.283185307179586476925;
  double s = sine(rest), c = cosine(rest);
  int quadrant = (int)quarters & 3;
  double sin = quadrant == 0 ? s : quadrant == 1 ? c : quadrant == 2 ? -s : -c;
  double cos = quadrant == 0 ? c : quadrant == 1 ? -s : quadrant == 2 ? -c : s;
  float* to = angles + ((size_t)row * half + pair) * 2;
  to[0] = (float)(cos * magnitude);
  to[1] = (float)(sin * magnitude);
}
REGISTER(rope_angles)

// neighbours: elements 2i and 2i + 1 are a pair, otherwise i and i + half. grid (rows)
extern "C" __global__ void __launch_bounds__(256) rope(float* x, const float* angles, int heads, int head_len, int half,
                                                       int neighbours) {
  x += (size_t)blockIdx.x * heads * head_len;
  angles += (size_t)blockIdx.x * half * 2;
  for (int item = threadIdx.x; item < heads * half; item += blockDim.x) {
    int pair = item % half;
    float* head = x + item / half * head_len;
    float* first = head + (neighbours ? 2 * pair : pair);
    float* second = neighbours ? first + 1 : first + half;
    float cos = angles[2 * pair], sin = angles[2 * pair + 1], p = *first, q = *second;
    *first = p * cos - q * sin;
    *second = p * sin + q * cos;
  }
}
REGISTER(rope)

// Puts keys and values of each row into the cell of its position. grid (rows); `keys` and `values` begin at the layer.
extern "C" __global__ void __launch_bounds__(256) store_kv(float* keys, float* values, const float* key,
                                                           const float* value, const uint32_t* positions,
                                                           const uint32_t* table_of_row, const uint32_t* tables,
                                                           int table_len, int heads, int head_len) {
  int row = blockIdx.x, position = positions[row];
  size_t block = tables[(size_t)table_of_row[row] * table_len + position / BLOCK_LEN];
  int width = heads * head_len;
  for (int i = threadIdx.x; i < width; i += blockDim.x) {
    size_t cell = ((block * heads + i / head_len) * BLOCK_LEN + position % BLOCK_LEN) * head_len + i % head_len;
    keys[cell] = key[(size_t)row * width + i];
    values[cell] = value[(size_t)row * width + i];
  }
}
REGISTER(store_kv)
