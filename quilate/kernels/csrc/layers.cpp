// The pieces of a decoder layer for inference: a linear layer for few rows, RMSNorm, and SiLU times a gate.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "bf16.h"
#include "parallel.h"

using torch::stable::Tensor;

#ifdef QUILATE_AVX512_BF16
namespace quilate {
namespace {

constexpr int kPanel = 2 * kLanes;  // columns of a packed weight that lie together
constexpr int kTileRows = 8;        // with two vectors a row, sixteen sums stay in registers

const bf16* values_of(const Tensor& tensor) { return static_cast<const bf16*>(tensor.data_ptr()); }

inline __mmask16 first(int64_t count) {
  return static_cast<__mmask16>((1u << std::clamp<int64_t>(count, 0, kLanes)) - 1);
}

inline __m512 load_first(const bf16* source, __mmask16 present) {
  return _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(present, source)), 16));
}

inline void store_first(bf16* target, __mmask16 present, __m512 value) {
  const __m256bh rounded = _mm512_cvtneps_pbh(value);
  __m256i words;
  std::memcpy(&words, &rounded, sizeof(words));
  _mm256_mask_storeu_epi16(target, present, words);
}

inline __m512bh load_words(const uint32_t* source) {
  const __m512i words = _mm512_loadu_si512(source);
  __m512bh pairs;
  std::memcpy(&pairs, &words, sizeof(words));
  return pairs;
}

// R rows of x [*, 2 pairs] times one panel [pairs, 32]; every row is summed in the same order, however many there are.
template <int R>
void multiply_panel(
    const bf16* x, const uint32_t* panel, const bf16* bias, int64_t pairs, bf16* out, int64_t columns, int64_t width) {
  __m512 sums[R][2];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < 2; ++v)
      sums[r][v] = bias ? load_first(bias + kLanes * v, first(columns - kLanes * v)) : _mm512_setzero_ps();
  for (int64_t p = 0; p < pairs; ++p) {
    const __m512bh left = load_words(panel + p * kPanel), right = load_words(panel + p * kPanel + kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      int32_t pair;
      std::memcpy(&pair, x + (r * pairs + p) * 2, sizeof(pair));
      const __m512i spread = _mm512_set1_epi32(pair);
      __m512bh row;
      std::memcpy(&row, &spread, sizeof(row));
      sums[r][0] = _mm512_dpbf16_ps(sums[r][0], row, left);
      sums[r][1] = _mm512_dpbf16_ps(sums[r][1], row, right);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < 2; ++v)
      store_first(out + r * width + kLanes * v, first(columns - kLanes * v), sums[r][v]);
}

// out [M, N] = x [M, K] weight^T + bias, with weight packed [ceil(N / 32), K / 2, 32]: words of two neighbours in K.
void few_rows_linear(Tensor out, Tensor x, Tensor packed, std::optional<Tensor> bias) {
  const int64_t rows = x.size(0), pairs = x.size(1) / 2, width = out.size(1);
  over_tasks(packed.size(0), [&](const auto& next) {
    for (int64_t task = next(); task >= 0; task = next()) {
      const int64_t column = task * kPanel, columns = std::min<int64_t>(kPanel, width - column);
      const auto* panel = static_cast<const uint32_t*>(packed.data_ptr()) + task * pairs * kPanel;
      const bf16* added = bias ? values_of(*bias) + column : nullptr;
      auto* target = static_cast<bf16*>(out.data_ptr()) + column;
      int64_t row = 0;
      const auto tile = [&](auto multiply, int count) {
        for (; row + count <= rows; row += count)
          multiply(values_of(x) + row * pairs * 2, panel, added, pairs, target + row * width, columns, width);
      };
      tile(multiply_panel<kTileRows>, kTileRows);
      tile(multiply_panel<4>, 4);
      tile(multiply_panel<1>, 1);
    }
  });
}

// out, x [M, D], weight [D]: x / sqrt(mean(x^2) + epsilon), rounded to bf16 and then times the weight, as Llama does.
void rms_norm(Tensor out, Tensor x, Tensor weight, double epsilon) {
  const int64_t width = x.size(1);
  torch::stable::parallel_for(0, x.size(0), 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const bf16* source = values_of(x) + row * width;
      auto* target = static_cast<bf16*>(out.data_ptr()) + row * width;
      __m512 squares = _mm512_setzero_ps();
      for (int64_t c = 0; c < width; c += kLanes) {
        const __m512 value = load_first(source + c, first(width - c));
        squares = _mm512_fmadd_ps(value, value, squares);
      }
      const float mean = _mm512_reduce_add_ps(squares) / static_cast<float>(width);
      const __m512 scale = _mm512_set1_ps(1.0f / std::sqrt(mean + static_cast<float>(epsilon)));
      for (int64_t c = 0; c < width; c += kLanes) {
        const __mmask16 present = first(width - c);
        bf16 normed[kLanes];
        store_as_bf16(normed, _mm512_mul_ps(load_first(source + c, present), scale));
        store_first(
            target + c, present, _mm512_mul_ps(load_as_float(normed), load_first(values_of(weight) + c, present)));
      }
    }
  });
}

// out [n] = SiLU(gate) * up, with SiLU(x) = x / (1 + e^-x) rounded to bf16 before the product, as two layers would.
void gated_silu(Tensor out, Tensor gate, Tensor up) {
  torch::stable::parallel_for(0, out.numel(), 8192, [&](int64_t begin, int64_t end) {
    auto* target = static_cast<bf16*>(out.data_ptr());
    for (int64_t n = begin; n < end; n += kLanes) {
      const __mmask16 present = first(end - n);
      const __m512 x = load_first(values_of(gate) + n, present);
      const __m512 one = _mm512_set1_ps(1.0f);
      bf16 silu[kLanes];
      store_as_bf16(silu, _mm512_div_ps(x, _mm512_add_ps(one, exponential(_mm512_sub_ps(_mm512_setzero_ps(), x)))));
      store_first(
          target + n, present, _mm512_mul_ps(load_as_float(silu), load_first(values_of(up) + n, present)));
    }
  });
}

}  // namespace
}  // namespace quilate

STABLE_TORCH_LIBRARY_FRAGMENT(quilate, m) {
  m.def("few_rows_linear(Tensor(a!) out, Tensor x, Tensor packed, Tensor? bias) -> ()");
  m.def("rms_norm(Tensor(a!) out, Tensor x, Tensor weight, float epsilon) -> ()");
  m.def("gated_silu(Tensor(a!) out, Tensor gate, Tensor up) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(quilate, CPU, m) {
  m.impl("few_rows_linear", TORCH_BOX(&quilate::few_rows_linear));
  m.impl("rms_norm", TORCH_BOX(&quilate::rms_norm));
  m.impl("gated_silu", TORCH_BOX(&quilate::gated_silu));
}
#endif
