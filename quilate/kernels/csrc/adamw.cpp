// One AdamW update of one parameter in one pass over memory, its bf16 copy rounded stochastically.
// The arithmetic and the random bits are those of quilate.optim.adamw and quilate.optim.rounding, element by element.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "parallel.h"

using torch::stable::Tensor;

namespace quilate {
namespace {

constexpr int64_t kGrain = 1 << 15;  // elements a thread takes at least (guess)

struct Update {
  float first_keep, second_keep, corrected_rate, second_correction, eps, decay, gradient_scale;
  uint32_t key_low, key_high;
};

inline uint32_t random_word(uint32_t counter, const Update& update) {
  uint32_t x = counter ^ update.key_low;
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= update.key_high;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  return x ^ (x >> 16);
}

inline float as_float(float value) { return value; }
inline float as_float(uint16_t value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

template <typename Gradient, bool kRound>
void update_range(
    uint16_t* compute, float* master, float* first, float* second, const Gradient* gradient, int64_t begin, int64_t end,
    const Update u) {
#pragma omp simd
  for (int64_t i = begin; i < end; ++i) {
    const float g = as_float(gradient[i]) * u.gradient_scale;
    const float m = first[i] + (1.0f - u.first_keep) * (g - first[i]);
    const float v = second[i] * u.second_keep + (1.0f - u.second_keep) * g * g;
    const float w = master[i] * u.decay - u.corrected_rate * m / (std::sqrt(v) / u.second_correction + u.eps);
    first[i] = m;
    second[i] = v;
    master[i] = w;
    if (kRound) {
      const uint32_t word = random_word(static_cast<uint32_t>(i >> 1), u);
      uint32_t bits;
      std::memcpy(&bits, &w, sizeof(bits));
      compute[i] = static_cast<uint16_t>((bits + ((word >> (16 * (i & 1))) & 0xFFFFu)) >> 16);
    }
  }
}

template <typename Gradient>
void update_parameter(
    bool round, uint16_t* compute, float* master, float* first, float* second, const Gradient* gradient, int64_t count,
    const Update& update) {
  torch::stable::parallel_for(0, count, kGrain, [&](int64_t begin, int64_t end) {
    if (round)
      update_range<Gradient, true>(compute, master, first, second, gradient, begin, end, update);
    else
      update_range<Gradient, false>(compute, master, first, second, gradient, begin, end, update);
  });
}

// All contiguous and of equal size; `compute` is the bf16 copy, or the master itself when that is what computes.
void adamw(
    Tensor compute, Tensor master, Tensor first, Tensor second, Tensor gradient, double beta1, double beta2, double eps,
    double corrected_rate, double second_correction, double decay, double gradient_scale, int64_t key) {
  const bool round = compute.element_size() == 2;
  auto* copy = round ? static_cast<uint16_t*>(compute.data_ptr()) : nullptr;
  auto* weights = static_cast<float*>(master.data_ptr());
  auto* m = static_cast<float*>(first.data_ptr());
  auto* v = static_cast<float*>(second.data_ptr());
  const int64_t count = master.numel();
  const Update update{
      static_cast<float>(beta1), static_cast<float>(beta2), static_cast<float>(corrected_rate),
      static_cast<float>(second_correction), static_cast<float>(eps), static_cast<float>(decay),
      static_cast<float>(gradient_scale), static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)};
  if (gradient.element_size() == 2)
    update_parameter(
        round, copy, weights, m, v, static_cast<const uint16_t*>(gradient.data_ptr()), count, update);
  else
    update_parameter(round, copy, weights, m, v, static_cast<const float*>(gradient.data_ptr()), count, update);
}

}  // namespace
}  // namespace quilate

STABLE_TORCH_LIBRARY_FRAGMENT(quilate, m) {
  m.def(
      "adamw(Tensor(a!) compute, Tensor(b!) master, Tensor(c!) first, Tensor(d!) second, Tensor gradient, float beta1, "
      "float beta2, float eps, float corrected_rate, float second_correction, float decay, float gradient_scale, "
      "int key) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(quilate, CPU, m) { m.impl("adamw", TORCH_BOX(&quilate::adamw)); }
