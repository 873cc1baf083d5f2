// What the attention operations share: blocks of 64 queries by 64 keys, and one block of scores of the online softmax.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "bf16.h"

#ifdef QUILATE_AVX512_BF16
namespace quilate {

constexpr int kBlock = 64;

inline int64_t blocks_of(int64_t length) { return (length + kBlock - 1) / kBlock; }

// A word whose lowest `count` bits are set: the keys of a block, of which so many are visible.
inline uint64_t first_bits(int64_t count) { return count >= kBlock ? ~uint64_t{0} : (uint64_t{1} << count) - 1; }

// Which of 16 neighbouring places, the first of which is `first`, are among [from, to).
inline __mmask16 places(int64_t first, int64_t from, int64_t to) {
  const int64_t low = std::clamp<int64_t>(from - first, 0, kLanes), high = std::clamp<int64_t>(to - first, 0, kLanes);
  return static_cast<__mmask16>(((1u << high) - 1) & ~((1u << low) - 1));
}

// One row of a block of scores: softmax over the keys of `visible` (a bit each) against the running maximum. The weights
// go to `weights`, the output so far is rescaled.
inline void softmax_row(
    const float* scores, float scale, uint64_t visible, int size, bf16* weights, float* output, float& maximum,
    float& total) {
  if (visible == 0) {
    std::fill_n(weights, kBlock, bf16{0});
    return;
  }
  __m512 values[4];
  __m512 highest = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  for (int v = 0; v < 4; ++v) {
    const __m512 scaled = _mm512_mul_ps(_mm512_loadu_ps(scores + kLanes * v), _mm512_set1_ps(scale));
    values[v] = _mm512_mask_mov_ps(
        _mm512_set1_ps(-std::numeric_limits<float>::infinity()), static_cast<__mmask16>(visible >> (kLanes * v)), scaled);
    highest = _mm512_max_ps(highest, values[v]);
  }
  const float raised = std::max(maximum, _mm512_reduce_max_ps(highest));
  __m512 sum = _mm512_setzero_ps();
  for (int v = 0; v < 4; ++v) {
    const __m512 weight = exponential(_mm512_sub_ps(values[v], _mm512_set1_ps(raised)));
    sum = _mm512_add_ps(sum, weight);
    store_as_bf16(weights + kLanes * v, weight);
  }
  if (raised > maximum) {
    const float shrink = std::exp(maximum - raised);
    for (int e = 0; e < size; e += kLanes)
      _mm512_storeu_ps(output + e, _mm512_mul_ps(_mm512_loadu_ps(output + e), _mm512_set1_ps(shrink)));
    total *= shrink;
    maximum = raised;
  }
  total += _mm512_reduce_add_ps(sum);
}

}  // namespace quilate
#endif
