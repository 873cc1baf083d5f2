// Attention over packed documents, forward and backward, in memory linear in length (FlashAttention-2, Dao 2023:
// algorithms 1 and 2), for processors with AVX512-BF16. Grouped keys are read where they are, never repeated.
//
// T tokens, H heads, K key heads, E head size (a multiple of 32), blocks of 64 queries by 64 keys.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "attention.h"
#include "parallel.h"

using torch::stable::Tensor;

#ifdef QUILATE_AVX512_BF16
namespace quilate {
namespace {

// A tensor [T, heads, E] whose last dimension is contiguous.
struct Rows {
  bf16* data;
  int64_t token_stride, head_stride;

  explicit Rows(const Tensor& tensor)
      : data(static_cast<bf16*>(tensor.data_ptr())), token_stride(tensor.stride(0)), head_stride(tensor.stride(1)) {}

  bf16* at(int64_t token, int64_t head) const { return data + token * token_stride + head * head_stride; }
};

struct Shape {
  int64_t tokens, heads, key_heads, documents, longest;
  int size;
  const int64_t* starts;  // [documents + 1]
  float scale;
  bool causal;

  Shape(const Tensor& query, const Tensor& key, const Tensor& starts_, double scale_, bool causal_)
      : tokens(query.size(0)), heads(query.size(1)), key_heads(key.size(1)), documents(starts_.numel() - 1),
        longest(0), size(static_cast<int>(query.size(2))), starts(static_cast<const int64_t*>(starts_.data_ptr())),
        scale(static_cast<float>(scale_)), causal(causal_) {
    for (int64_t d = 0; d < documents; ++d) longest = std::max(longest, starts[d + 1] - starts[d]);
  }
};

struct ForwardScratch {
  Buffer<uint32_t> keys, values;  // all blocks of one document, packed
  Buffer<float> scores, output;
  Buffer<bf16> weights;

  ForwardScratch(int64_t longest, int size)
      : keys(make_buffer<uint32_t>(blocks_of(longest) * size / 2 * kBlock)),
        values(make_buffer<uint32_t>(blocks_of(longest) * kBlock / 2 * size)),
        scores(make_buffer<float>(kBlock * kBlock)), output(make_buffer<float>(kBlock * size)),
        weights(make_buffer<bf16>(kBlock * kBlock)) {}
};

void forward_head(
    const Shape& shape, int64_t document, int64_t head, const Rows& query, const Rows& key, const Rows& value,
    const Rows& out, float* normalizers, ForwardScratch& scratch) {
  const int64_t start = shape.starts[document], length = shape.starts[document + 1] - start;
  const int64_t key_head = head / (shape.heads / shape.key_heads);
  const int size = shape.size;
  const int64_t packed_block = static_cast<int64_t>(size) / 2 * kBlock;
  for (int64_t j = 0; j < blocks_of(length); ++j) {
    const int rows = static_cast<int>(std::min<int64_t>(kBlock, length - j * kBlock));
    const int64_t token = start + j * kBlock;
    pack_transposed(key.at(token, key_head), key.token_stride, rows, size, scratch.keys.get() + j * packed_block);
    pack_pairs(value.at(token, key_head), value.token_stride, rows, size, scratch.values.get() + j * packed_block);
  }
  float maximum[kBlock], total[kBlock];
  for (int64_t i = 0; i < blocks_of(length); ++i) {
    const int rows = static_cast<int>(std::min<int64_t>(kBlock, length - i * kBlock));
    const int64_t token = start + i * kBlock;
    std::fill_n(scratch.output.get(), kBlock * size, 0.0f);
    std::fill_n(maximum, kBlock, -std::numeric_limits<float>::infinity());
    std::fill_n(total, kBlock, 0.0f);
    const int64_t last = shape.causal ? i + 1 : blocks_of(length);
    for (int64_t j = 0; j < last; ++j) {
      multiply(
          query.at(token, head), query.token_stride, scratch.keys.get() + j * packed_block, kBlock,
          scratch.scores.get(), kBlock, rows, kBlock, size / 2, false);
      for (int r = 0; r < rows; ++r) {
        const int64_t present = length - j * kBlock;
        const int64_t visible = shape.causal ? std::min(present, (i - j) * kBlock + r + 1) : present;
        softmax_row(
            scratch.scores.get() + r * kBlock, shape.scale, first_bits(visible), size,
            scratch.weights.get() + r * kBlock, scratch.output.get() + r * size, maximum[r], total[r]);
      }
      multiply(
          scratch.weights.get(), kBlock, scratch.values.get() + j * packed_block, size, scratch.output.get(), size,
          rows, size, kBlock / 2, true);
    }
    for (int r = 0; r < rows; ++r) {
      const __m512 share = _mm512_set1_ps(1.0f / total[r]);
      for (int e = 0; e < size; e += kLanes)
        store_as_bf16(
            out.at(token + r, head) + e, _mm512_mul_ps(_mm512_loadu_ps(scratch.output.get() + r * size + e), share));
      normalizers[head * shape.tokens + token + r] = maximum[r] + std::log(total[r]);
    }
  }
}

struct BackwardScratch {
  Buffer<uint32_t> query_transposed, query_pairs, grad_transposed, grad_pairs;  // all blocks of one document, packed
  Buffer<uint32_t> key_pairs, words;
  Buffer<float> query_grad;                // [longest, E]
  Buffer<float> normalizers, corrections;  // [longest]
  Buffer<float> scores, weight_grads, key_grad, value_grad;
  Buffer<bf16> weights, score_grads, score_grads_transposed;

  BackwardScratch(int64_t longest, int size) {
    const int64_t padded = blocks_of(longest) * kBlock;
    for (auto* packed : {&query_transposed, &query_pairs, &grad_transposed, &grad_pairs})
      *packed = make_buffer<uint32_t>(padded * size / 2);
    key_pairs = make_buffer<uint32_t>(kBlock / 2 * size);
    words = make_buffer<uint32_t>(kBlock / 2 * kBlock);
    query_grad = make_buffer<float>(padded * size);
    normalizers = make_buffer<float>(padded);
    corrections = make_buffer<float>(padded);
    for (auto* block : {&scores, &weight_grads}) *block = make_buffer<float>(kBlock * kBlock);
    for (auto* block : {&key_grad, &value_grad}) *block = make_buffer<float>(kBlock * size);
    for (auto* block : {&weights, &score_grads, &score_grads_transposed})
      *block = make_buffer<bf16>(kBlock * kBlock);
  }
};

struct BackwardTensors {
  Rows query, key, value, out, out_grad, query_grad;
  const float* normalizers;  // [H, T]
  float *key_grads, *value_grads;  // [H, T, E]: one sum a query head, added up by group afterwards
};

void prepare_queries(
    const Shape& shape, int64_t start, int64_t length, int64_t head, const BackwardTensors& tensors,
    BackwardScratch& scratch) {
  const int size = shape.size;
  const int64_t packed_block = static_cast<int64_t>(size) / 2 * kBlock;
  for (int64_t i = 0; i < blocks_of(length); ++i) {
    const int rows = static_cast<int>(std::min<int64_t>(kBlock, length - i * kBlock));
    const int64_t token = start + i * kBlock;
    const bf16 *query = tensors.query.at(token, head), *grad = tensors.out_grad.at(token, head);
    pack_transposed(query, tensors.query.token_stride, rows, size, scratch.query_transposed.get() + i * packed_block);
    pack_pairs(query, tensors.query.token_stride, rows, size, scratch.query_pairs.get() + i * packed_block);
    pack_transposed(grad, tensors.out_grad.token_stride, rows, size, scratch.grad_transposed.get() + i * packed_block);
    pack_pairs(grad, tensors.out_grad.token_stride, rows, size, scratch.grad_pairs.get() + i * packed_block);
  }
  for (int64_t t = 0; t < blocks_of(length) * kBlock; ++t) {
    __m512 sum = _mm512_setzero_ps();
    if (t < length)
      for (int e = 0; e < size; e += kLanes)
        sum = _mm512_fmadd_ps(
            load_as_float(tensors.out.at(start + t, head) + e), load_as_float(tensors.out_grad.at(start + t, head) + e),
            sum);
    scratch.corrections[t] = _mm512_reduce_add_ps(sum);
    scratch.normalizers[t] =
        t < length ? tensors.normalizers[head * shape.tokens + start + t] : std::numeric_limits<float>::infinity();
  }
}

// Weights and score gradients of one block, transposed: a row is a key, a column a query.
void block_gradients(const Shape& shape, int64_t i, int64_t j, int keys, BackwardScratch& scratch) {
  for (int r = 0; r < keys; ++r)
    for (int c = 0; c < kBlock; c += kLanes) {
      const int64_t query = i * kBlock + c;
      const __m512 score = _mm512_fmsub_ps(
          _mm512_loadu_ps(scratch.scores.get() + r * kBlock + c), _mm512_set1_ps(shape.scale),
          _mm512_loadu_ps(scratch.normalizers.get() + query));
      __m512 weight = exponential(score);
      if (shape.causal && i == j)
        weight = _mm512_maskz_mov_ps(places(query, j * kBlock + r, std::numeric_limits<int64_t>::max()), weight);
      const __m512 grad = _mm512_sub_ps(
          _mm512_loadu_ps(scratch.weight_grads.get() + r * kBlock + c),
          _mm512_loadu_ps(scratch.corrections.get() + query));
      store_as_bf16(scratch.weights.get() + r * kBlock + c, weight);
      store_as_bf16(
          scratch.score_grads.get() + r * kBlock + c,
          _mm512_mul_ps(_mm512_mul_ps(weight, grad), _mm512_set1_ps(shape.scale)));
    }
  std::fill(scratch.score_grads.get() + keys * kBlock, scratch.score_grads.get() + kBlock * kBlock, bf16{0});
}

void backward_head(
    const Shape& shape, int64_t document, int64_t head, const BackwardTensors& tensors, BackwardScratch& scratch) {
  const int64_t start = shape.starts[document], length = shape.starts[document + 1] - start;
  const int64_t key_head = head / (shape.heads / shape.key_heads), blocks = blocks_of(length);
  const int size = shape.size;
  const int64_t packed_block = static_cast<int64_t>(size) / 2 * kBlock;
  prepare_queries(shape, start, length, head, tensors, scratch);
  std::fill_n(scratch.query_grad.get(), blocks * kBlock * size, 0.0f);
  for (int64_t j = 0; j < blocks; ++j) {
    const int keys = static_cast<int>(std::min<int64_t>(kBlock, length - j * kBlock));
    const int64_t token = start + j * kBlock;
    const bf16 *key = tensors.key.at(token, key_head), *value = tensors.value.at(token, key_head);
    pack_pairs(key, tensors.key.token_stride, keys, size, scratch.key_pairs.get());
    std::fill_n(scratch.key_grad.get(), kBlock * size, 0.0f);
    std::fill_n(scratch.value_grad.get(), kBlock * size, 0.0f);
    for (int64_t i = shape.causal ? j : 0; i < blocks; ++i) {
      const int queries = static_cast<int>(std::min<int64_t>(kBlock, length - i * kBlock));
      const int64_t packed = i * packed_block;
      multiply(
          key, tensors.key.token_stride, scratch.query_transposed.get() + packed, kBlock, scratch.scores.get(), kBlock,
          keys, kBlock, size / 2, false);
      multiply(
          value, tensors.value.token_stride, scratch.grad_transposed.get() + packed, kBlock,
          scratch.weight_grads.get(), kBlock, keys, kBlock, size / 2, false);
      block_gradients(shape, i, j, keys, scratch);
      multiply(
          scratch.weights.get(), kBlock, scratch.grad_pairs.get() + packed, size, scratch.value_grad.get(), size, keys,
          size, kBlock / 2, true);
      multiply(
          scratch.score_grads.get(), kBlock, scratch.query_pairs.get() + packed, size, scratch.key_grad.get(), size,
          keys, size, kBlock / 2, true);
      transpose_block(scratch.score_grads.get(), scratch.score_grads_transposed.get(), scratch.words.get());
      multiply(
          scratch.score_grads_transposed.get(), kBlock, scratch.key_pairs.get(), size,
          scratch.query_grad.get() + i * kBlock * size, size, queries, size, kBlock / 2, true);
    }
    const int64_t place = (head * shape.tokens + token) * size;
    std::copy_n(scratch.key_grad.get(), keys * size, tensors.key_grads + place);
    std::copy_n(scratch.value_grad.get(), keys * size, tensors.value_grads + place);
  }
  for (int64_t t = 0; t < length; ++t)
    for (int e = 0; e < size; e += kLanes)
      store_as_bf16(
          tensors.query_grad.at(start + t, head) + e, _mm512_loadu_ps(scratch.query_grad.get() + t * size + e));
}

// grads [T, K, E] = the sums over each group of query heads of `parts` [H, T, E].
void add_groups(const Shape& shape, const float* parts, const Rows& grads) {
  const int64_t group = shape.heads / shape.key_heads;
  torch::stable::parallel_for(0, shape.tokens, 64, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      for (int64_t k = 0; k < shape.key_heads; ++k)
        for (int e = 0; e < shape.size; e += kLanes) {
          __m512 sum = _mm512_setzero_ps();
          for (int64_t h = k * group; h < (k + 1) * group; ++h)
            sum = _mm512_add_ps(sum, _mm512_loadu_ps(parts + (h * shape.tokens + t) * shape.size + e));
          store_as_bf16(grads.at(t, k) + e, sum);
        }
  });
}

void attention_forward(
    Tensor out, Tensor normalizers, Tensor query, Tensor key, Tensor value, Tensor starts, double scale, bool causal) {
  const Shape shape(query, key, starts, scale, causal);
  const Rows q(query), k(key), v(value), o(out);
  auto* lse = static_cast<float*>(normalizers.data_ptr());
  over_tasks(shape.documents * shape.heads, [&](const auto& next) {
    ForwardScratch scratch(shape.longest, shape.size);
    for (int64_t task = next(); task >= 0; task = next())
      forward_head(shape, task / shape.heads, task % shape.heads, q, k, v, o, lse, scratch);
  });
}

void attention_backward(
    Tensor query_grad, Tensor key_grad, Tensor value_grad, Tensor out_grad, Tensor query, Tensor key, Tensor value,
    Tensor out, Tensor normalizers, Tensor starts, double scale, bool causal) {
  const Shape shape(query, key, starts, scale, causal);
  auto key_parts = make_buffer<float>(shape.heads * shape.tokens * shape.size);
  auto value_parts = make_buffer<float>(shape.heads * shape.tokens * shape.size);
  const BackwardTensors tensors{
      Rows(query), Rows(key), Rows(value), Rows(out), Rows(out_grad), Rows(query_grad),
      static_cast<const float*>(normalizers.data_ptr()), key_parts.get(), value_parts.get()};
  over_tasks(shape.documents * shape.heads, [&](const auto& next) {
    BackwardScratch scratch(shape.longest, shape.size);
    for (int64_t task = next(); task >= 0; task = next())
      backward_head(shape, task / shape.heads, task % shape.heads, tensors, scratch);
  });
  add_groups(shape, key_parts.get(), Rows(key_grad));
  add_groups(shape, value_parts.get(), Rows(value_grad));
}

}  // namespace
}  // namespace quilate

STABLE_TORCH_LIBRARY_FRAGMENT(quilate, m) {
  m.def(
      "attention_forward(Tensor(a!) out, Tensor(b!) normalizers, Tensor query, Tensor key, Tensor value, "
      "Tensor starts, float scale, bool causal) -> ()");
  m.def(
      "attention_backward(Tensor(a!) query_grad, Tensor(b!) key_grad, Tensor(c!) value_grad, Tensor out_grad, "
      "Tensor query, Tensor key, Tensor value, Tensor out, Tensor normalizers, Tensor starts, float scale, "
      "bool causal) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(quilate, CPU, m) {
  m.impl("attention_forward", TORCH_BOX(&quilate::attention_forward));
  m.impl("attention_backward", TORCH_BOX(&quilate::attention_backward));
}
#endif
