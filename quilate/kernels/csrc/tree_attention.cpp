// Attention for scoring: each row of tokens sees a prefix that all rows share, and of its own tokens those that a bit
// mask names. Forward only. The prefix is packed once a call and read where it is, never copied for each row.
//
// B rows of T tokens, H heads, K key heads, E head size (a multiple of 32), P tokens of the prefix, W = ceil(T / 64).
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include "attention.h"
#include "parallel.h"

using torch::stable::Tensor;

#ifdef QUILATE_AVX512_BF16
namespace quilate {
namespace {

// A tensor [B, heads, T, E] whose last dimension is contiguous.
struct Grid {
  bf16* data;
  int64_t row_stride, head_stride, token_stride;

  explicit Grid(const Tensor& tensor)
      : data(static_cast<bf16*>(tensor.data_ptr())), row_stride(tensor.stride(0)), head_stride(tensor.stride(1)),
        token_stride(tensor.stride(2)) {}

  bf16* at(int64_t row, int64_t head, int64_t token) const {
    return data + row * row_stride + head * head_stride + token * token_stride;
  }
};

// Keys and values of `length` tokens, packed in blocks.
struct Packed {
  int64_t length;
  const uint32_t *keys, *values;
};

void pack(const Grid& key, const Grid& value, int64_t row, int64_t head, int64_t block, int64_t length, int size,
          uint32_t* keys, uint32_t* values) {
  const int rows = static_cast<int>(std::min<int64_t>(kBlock, length - block * kBlock));
  const int64_t place = block * size / 2 * kBlock;
  pack_transposed(key.at(row, head, block * kBlock), key.token_stride, rows, size, keys + place);
  pack_pairs(value.at(row, head, block * kBlock), value.token_stride, rows, size, values + place);
}

struct TreeScratch {
  Buffer<uint32_t> keys, values;  // one row's own, packed
  Buffer<float> scores, output;
  Buffer<bf16> weights;

  TreeScratch(int64_t tokens, int size)
      : keys(make_buffer<uint32_t>(blocks_of(tokens) * size / 2 * kBlock)),
        values(make_buffer<uint32_t>(blocks_of(tokens) * size / 2 * kBlock)),
        scores(make_buffer<float>(kBlock * kBlock)), output(make_buffer<float>(kBlock * size)),
        weights(make_buffer<bf16>(kBlock * kBlock)) {}
};

// A block of queries of one head against packed keys; `visible(r, j)` are the bits of block j that query r sees.
template <typename Visible>
void attend(
    const bf16* query, int64_t stride, int rows, int size, float scale, const Packed& packed, const Visible& visible,
    TreeScratch& scratch, float* maximum, float* total) {
  for (int64_t j = 0; j < blocks_of(packed.length); ++j) {
    uint64_t any = 0;
    for (int r = 0; r < rows; ++r) any |= visible(r, j);
    if (any == 0) continue;
    const int64_t place = j * size / 2 * kBlock;
    multiply(query, stride, packed.keys + place, kBlock, scratch.scores.get(), kBlock, rows, kBlock, size / 2, false);
    for (int r = 0; r < rows; ++r)
      softmax_row(
          scratch.scores.get() + r * kBlock, scale, visible(r, j), size, scratch.weights.get() + r * kBlock,
          scratch.output.get() + r * size, maximum[r], total[r]);
    multiply(
        scratch.weights.get(), kBlock, packed.values + place, size, scratch.output.get(), size, rows, size, kBlock / 2,
        true);
  }
}

// out [B, T, H, E]; query [B, H, T, E]; key, value [B, K, T, E]; prefix_key, prefix_value [1, K, P, E]; visible
// [B, T, W] int64: bit n of word w is token 64 w + n of the row. Every token sees at least itself or the prefix.
void tree_attention(
    Tensor out, Tensor query, Tensor key, Tensor value, Tensor prefix_key, Tensor prefix_value, Tensor visible,
    double scale_) {
  const int64_t rows = query.size(0), heads = query.size(1), tokens = query.size(2), key_heads = key.size(1);
  const int64_t prefix = prefix_key.size(2), group = heads / key_heads, words = visible.size(2);
  const int size = static_cast<int>(query.size(3));
  const auto scale = static_cast<float>(scale_);
  const Grid q(query), k(key), v(value), prefix_k(prefix_key), prefix_v(prefix_value);
  const auto* bits = static_cast<const uint64_t*>(visible.data_ptr());
  auto* result = static_cast<bf16*>(out.data_ptr());
  const int64_t packed_head = blocks_of(prefix) * size / 2 * kBlock;
  auto prefix_keys = make_buffer<uint32_t>(key_heads * packed_head);
  auto prefix_values = make_buffer<uint32_t>(key_heads * packed_head);
  over_tasks(key_heads * blocks_of(prefix), [&](const auto& next) {
    for (int64_t task = next(); task >= 0; task = next()) {
      const int64_t head = task / blocks_of(prefix), block = task % blocks_of(prefix);
      pack(prefix_k, prefix_v, 0, head, block, prefix, size, prefix_keys.get() + head * packed_head,
           prefix_values.get() + head * packed_head);
    }
  });
  over_tasks(rows * key_heads, [&](const auto& next) {
    TreeScratch scratch(tokens, size);
    float maximum[kBlock], total[kBlock];
    for (int64_t task = next(); task >= 0; task = next()) {
      const int64_t row = task / key_heads, key_head = task % key_heads;
      for (int64_t block = 0; block < blocks_of(tokens); ++block)
        pack(k, v, row, key_head, block, tokens, size, scratch.keys.get(), scratch.values.get());
      const Packed shared{
          prefix, prefix_keys.get() + key_head * packed_head, prefix_values.get() + key_head * packed_head};
      const Packed own{tokens, scratch.keys.get(), scratch.values.get()};
      for (int64_t i = 0; i < blocks_of(tokens); ++i)
        for (int64_t head = key_head * group; head < (key_head + 1) * group; ++head) {
          const int count = static_cast<int>(std::min<int64_t>(kBlock, tokens - i * kBlock));
          const bf16* queries = q.at(row, head, i * kBlock);
          std::fill_n(scratch.output.get(), kBlock * size, 0.0f);
          std::fill_n(maximum, kBlock, -std::numeric_limits<float>::infinity());
          std::fill_n(total, kBlock, 0.0f);
          attend(
              queries, q.token_stride, count, size, scale, shared,
              [&](int, int64_t j) { return first_bits(prefix - j * kBlock); }, scratch, maximum, total);
          attend(
              queries, q.token_stride, count, size, scale, own,
              [&](int r, int64_t j) { return bits[(row * tokens + i * kBlock + r) * words + j]; }, scratch, maximum,
              total);
          for (int r = 0; r < count; ++r) {
            const __m512 share = _mm512_set1_ps(1.0f / total[r]);
            bf16* target = result + ((row * tokens + i * kBlock + r) * heads + head) * size;
            for (int e = 0; e < size; e += kLanes)
              store_as_bf16(target + e, _mm512_mul_ps(_mm512_loadu_ps(scratch.output.get() + r * size + e), share));
          }
        }
    }
  });
}

}  // namespace
}  // namespace quilate

STABLE_TORCH_LIBRARY_FRAGMENT(quilate, m) {
  m.def(
      "tree_attention(Tensor(a!) out, Tensor query, Tensor key, Tensor value, Tensor prefix_key, Tensor prefix_value, "
      "Tensor visible, float scale) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(quilate, CPU, m) { m.impl("tree_attention", TORCH_BOX(&quilate::tree_attention)); }
#endif
