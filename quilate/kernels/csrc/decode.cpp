// Attention of one new token a sequence over that sequence's cached keys and values; the new ones are appended first.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <limits>

#include "bf16.h"
#include "parallel.h"

using torch::stable::Tensor;

#ifdef QUILATE_AVX512_BF16
namespace quilate {
namespace {

constexpr int kMostVectors = 16;  // head sizes up to 256

inline __m512bh load_pairs(const bf16* source) {
  const __m512i words = _mm512_loadu_si512(source);
  __m512bh pairs;
  std::memcpy(&pairs, &words, sizeof(words));
  return pairs;
}

// One query head: scores [length] is scratch.
void decode_head(
    const bf16* query, const bf16* keys, const bf16* values, int64_t length, int size, float scale, float* scores,
    bf16* out) {
  float maximum = -std::numeric_limits<float>::infinity();
  for (int64_t t = 0; t < length; ++t) {
    __m512 sum = _mm512_setzero_ps();
    for (int e = 0; e < size; e += 2 * kLanes)
      sum = _mm512_dpbf16_ps(sum, load_pairs(query + e), load_pairs(keys + t * size + e));
    scores[t] = _mm512_reduce_add_ps(sum) * scale;
    maximum = std::max(maximum, scores[t]);
  }
  __m512 total = _mm512_setzero_ps();
  for (int64_t t = 0; t < length; t += kLanes) {
    const auto present = static_cast<__mmask16>((1u << std::min<int64_t>(kLanes, length - t)) - 1);
    const __m512 weights = _mm512_maskz_mov_ps(
        present, exponential(_mm512_sub_ps(_mm512_maskz_loadu_ps(present, scores + t), _mm512_set1_ps(maximum))));
    _mm512_mask_storeu_ps(scores + t, present, weights);
    total = _mm512_add_ps(total, weights);
  }
  __m512 sums[kMostVectors];
  for (int e = 0; e < size / kLanes; ++e) sums[e] = _mm512_setzero_ps();
  for (int64_t t = 0; t < length; ++t) {
    const __m512 weight = _mm512_set1_ps(scores[t]);
    for (int e = 0; e < size / kLanes; ++e)
      sums[e] = _mm512_fmadd_ps(weight, load_as_float(values + t * size + kLanes * e), sums[e]);
  }
  const __m512 share = _mm512_set1_ps(1.0f / _mm512_reduce_add_ps(total));
  for (int e = 0; e < size / kLanes; ++e) store_as_bf16(out + kLanes * e, _mm512_mul_ps(sums[e], share));
}

// out, query [B, H, E]; new_key, new_value [B, K, E]; keys, values [slots, K, places, E]; slots, lengths [B]: where each
// sequence is cached, and its tokens cached before this one. All contiguous, bf16, slots and lengths int64.
void decode_attention(
    Tensor out, Tensor query, Tensor new_key, Tensor new_value, Tensor keys, Tensor values, Tensor slots,
    Tensor lengths, double scale) {
  const int64_t batch = query.size(0), heads = query.size(1), key_heads = keys.size(1), capacity = keys.size(2);
  const int size = static_cast<int>(query.size(2));
  const auto* length = static_cast<const int64_t*>(lengths.data_ptr());
  const auto* slot = static_cast<const int64_t*>(slots.data_ptr());
  const int64_t group = heads / key_heads, longest = *std::max_element(length, length + batch) + 1;
  over_tasks(batch * key_heads, [&](const auto& next) {
    auto scores = make_buffer<float>(longest);
    for (int64_t task = next(); task >= 0; task = next()) {
      const int64_t row = task / key_heads, key_head = task % key_heads;
      const int64_t cached = (slot[row] * key_heads + key_head) * capacity * size;
      auto *k = static_cast<bf16*>(keys.data_ptr()) + cached, *v = static_cast<bf16*>(values.data_ptr()) + cached;
      std::copy_n(static_cast<const bf16*>(new_key.data_ptr()) + task * size, size, k + length[row] * size);
      std::copy_n(static_cast<const bf16*>(new_value.data_ptr()) + task * size, size, v + length[row] * size);
      for (int64_t g = 0; g < group; ++g) {
        const int64_t place = (row * heads + key_head * group + g) * size;
        decode_head(
            static_cast<const bf16*>(query.data_ptr()) + place, k, v, length[row] + 1, size, static_cast<float>(scale),
            scores.get(), static_cast<bf16*>(out.data_ptr()) + place);
      }
    }
  });
}

}  // namespace
}  // namespace quilate

STABLE_TORCH_LIBRARY_FRAGMENT(quilate, m) {
  m.def(
      "decode_attention(Tensor(a!) out, Tensor query, Tensor new_key, Tensor new_value, Tensor(b!) keys, "
      "Tensor(c!) values, Tensor slots, Tensor lengths, float scale) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(quilate, CPU, m) { m.impl("decode_attention", TORCH_BOX(&quilate::decode_attention)); }
#endif
