// -log softmax(logits)[target] of every row and, in place of the logits, its gradient: one pass over memory.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>

#include "bf16.h"
#include "parallel.h"

using torch::stable::Tensor;

#ifdef QUILATE_AVX512_BF16
namespace quilate {
namespace {

constexpr float kFloor = -87.0f;  // exponential() is 0 from here on down

// Loads up to 16 logits of a row; the places beyond its end read as -infinity.
__m512 load(const bf16* row, int64_t column, int64_t columns) {
  if (column + kLanes <= columns) return load_as_float(row + column);
  alignas(64) float values[kLanes];
  for (int lane = 0; lane < kLanes; ++lane)
    values[lane] = column + lane < columns ? to_float(row[column + lane]) : -INFINITY;
  return _mm512_load_ps(values);
}

void store(bf16* row, int64_t column, int64_t columns, __m512 values) {
  if (column + kLanes <= columns) return store_as_bf16(row + column, values);
  bf16 rounded[kLanes];
  store_as_bf16(rounded, values);
  std::memcpy(row + column, rounded, (columns - column) * sizeof(bf16));
}

float row_loss(bf16* row, int64_t columns, int64_t target, bool gradient) {
  __m512 highest = _mm512_set1_ps(-INFINITY);
  for (int64_t c = 0; c < columns; c += kLanes) highest = _mm512_max_ps(load(row, c, columns), highest);
  const float maximum = _mm512_reduce_max_ps(highest);
  __m512 sums[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  for (int64_t c = 0; c < columns; c += kLanes)
    sums[c / kLanes % 2] = _mm512_add_ps(
        sums[c / kLanes % 2], exponential(_mm512_sub_ps(load(row, c, columns), _mm512_set1_ps(maximum))));
  const float normalizer = maximum + std::log(_mm512_reduce_add_ps(_mm512_add_ps(sums[0], sums[1])));
  const float logit = to_float(row[target]);
  if (gradient) {
    for (int64_t c = 0; c < columns; c += kLanes)
      store(row, c, columns, exponential(_mm512_sub_ps(load(row, c, columns), _mm512_set1_ps(normalizer))));
    alignas(64) float first[kLanes] = {std::exp(std::max(logit - normalizer, kFloor)) - 1.0f};
    bf16 rounded[kLanes];
    store_as_bf16(rounded, _mm512_load_ps(first));
    row[target] = rounded[0];
  }
  return normalizer - logit;
}

// logits [S, V] bf16, targets [S] int64, losses [S] fp32.
void cross_entropy(Tensor losses, Tensor logits, Tensor targets, bool gradient) {
  auto* rows = static_cast<bf16*>(logits.data_ptr());
  const auto* target = static_cast<const int64_t*>(targets.data_ptr());
  auto* loss = static_cast<float*>(losses.data_ptr());
  const int64_t columns = logits.size(1);
  torch::stable::parallel_for(0, logits.size(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t s = begin; s < end; ++s) loss[s] = row_loss(rows + s * columns, columns, target[s], gradient);
  });
}

}  // namespace
}  // namespace quilate

STABLE_TORCH_LIBRARY_FRAGMENT(quilate, m) {
  m.def("cross_entropy(Tensor(a!) losses, Tensor(b!) logits, Tensor targets, bool gradient) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(quilate, CPU, m) { m.impl("cross_entropy", TORCH_BOX(&quilate::cross_entropy)); }
#endif
