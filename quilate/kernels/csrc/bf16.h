// bf16 vectors, small packed matrix products and transposes for processors with AVX512-BF16.
//
// A matrix B [2P, N] is "packed" when element (p, n) is one 32-bit word holding B[2p, n] and B[2p + 1, n]: what
// VDPBF16PS multiplies with a pair of neighbours of A's row, sixteen columns at a time, summing in fp32.
#pragma once

#if defined(__AVX512BF16__) && defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__)
#define QUILATE_AVX512_BF16 1
#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace quilate {

using bf16 = uint16_t;
constexpr int kLanes = 16;

inline float to_float(bf16 value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

inline __m512 load_as_float(const bf16* source) {
  const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16));
}

inline void store_as_bf16(bf16* target, __m512 value) {
  const __m256bh rounded = _mm512_cvtneps_pbh(value);
  std::memcpy(target, &rounded, sizeof(rounded));
}

// e^x to about 2 units in the last place; 0 below -87, where fp32 leaves its normal range; NaN stays NaN.
// Cody-Waite reduction and the degree-6 polynomial of Cephes' expf.
inline __m512 exponential(__m512 x) {
  const __mmask16 normal = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.0f), _CMP_NLE_UQ);
  const __m512 n = _mm512_roundscale_ps(
      _mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 y = _mm512_set1_ps(1.9875691500e-4f);
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.3981999507e-3f));
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(8.3334519073e-3f));
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(4.1665795894e-2f));
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.6666665459e-1f));
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(5.0000001201e-1f));
  y = _mm512_fmadd_ps(_mm512_mul_ps(r, r), y, _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
  return _mm512_maskz_scalef_ps(normal, y, n);
}

// C [R, 16 V] (+)= A [R, 2 pairs] B, with B packed.
template <int R, int V>
inline void multiply_tile(
    const bf16* a, int64_t a_stride, const uint32_t* b, int64_t b_stride, float* c, int64_t c_stride, int pairs,
    bool add) {
  __m512 sums[R][V];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v)
      sums[r][v] = add ? _mm512_loadu_ps(c + r * c_stride + kLanes * v) : _mm512_setzero_ps();
  for (int p = 0; p < pairs; ++p) {
    __m512bh columns[V];
    for (int v = 0; v < V; ++v) {
      const __m512i words = _mm512_loadu_si512(b + p * b_stride + kLanes * v);
      std::memcpy(&columns[v], &words, sizeof(words));
    }
    for (int r = 0; r < R; ++r) {
      int32_t pair;
      std::memcpy(&pair, a + r * a_stride + 2 * p, sizeof(pair));
      const __m512i spread = _mm512_set1_epi32(pair);
      __m512bh row;
      std::memcpy(&row, &spread, sizeof(row));
      for (int v = 0; v < V; ++v) sums[r][v] = _mm512_dpbf16_ps(sums[r][v], row, columns[v]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) _mm512_storeu_ps(c + r * c_stride + kLanes * v, sums[r][v]);
}

template <int V>
inline void multiply_columns(
    const bf16* a, int64_t a_stride, const uint32_t* b, int64_t b_stride, float* c, int64_t c_stride, int rows,
    int pairs, bool add) {
  int r = 0;
  for (; r + 4 <= rows; r += 4)
    multiply_tile<4, V>(a + r * a_stride, a_stride, b, b_stride, c + r * c_stride, c_stride, pairs, add);
  for (; r < rows; ++r)
    multiply_tile<1, V>(a + r * a_stride, a_stride, b, b_stride, c + r * c_stride, c_stride, pairs, add);
}

// C [rows, columns] (+)= A [rows, 2 pairs] B, with B packed; `columns` is a multiple of 16.
inline void multiply(
    const bf16* a, int64_t a_stride, const uint32_t* b, int64_t b_stride, float* c, int64_t c_stride, int rows,
    int columns, int pairs, bool add) {
  int n = 0;
  for (; n + 64 <= columns; n += 64)
    multiply_columns<4>(a, a_stride, b + n, b_stride, c + n, c_stride, rows, pairs, add);
  for (; n < columns; n += 16)
    multiply_columns<1>(a, a_stride, b + n, b_stride, c + n, c_stride, rows, pairs, add);
}

// out [16, 16] = the transpose of in [rows <= 16, 16], 32-bit words; missing rows count as zero.
inline void transpose_words(const uint32_t* in, int64_t in_stride, int rows, uint32_t* out, int64_t out_stride) {
  __m512i r[16], t[16];
  for (int i = 0; i < 16; ++i)
    r[i] = i < rows ? _mm512_loadu_si512(in + i * in_stride) : _mm512_setzero_si512();
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int half = 0; half < 16; half += 8)
    for (int i = 0; i < 4; ++i) {
      t[half + i] = _mm512_shuffle_i32x4(r[half + i], r[half + i + 4], 0x88);
      t[half + i + 4] = _mm512_shuffle_i32x4(r[half + i], r[half + i + 4], 0xdd);
    }
  for (int i = 0; i < 8; ++i) {
    _mm512_storeu_si512(out + i * out_stride, _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88));
    _mm512_storeu_si512(out + (i + 8) * out_stride, _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd));
  }
}

// Pack the transpose of x [rows <= 64, width]: out [width / 2, 64], columns beyond `rows` zero.
inline void pack_transposed(const bf16* x, int64_t stride, int rows, int width, uint32_t* out) {
  for (int n = 0; n < 64; n += 16)
    for (int w = 0; w < width / 2; w += 16)
      transpose_words(
          reinterpret_cast<const uint32_t*>(x + n * stride) + w, stride / 2, rows - n, out + w * 64 + n, 64);
}

// Pack x [rows <= 64, width]: out [32, width], rows beyond `rows` zero.
inline void pack_pairs(const bf16* x, int64_t stride, int rows, int width, uint32_t* out) {
  for (int p = 0; p < 32; ++p)
    for (int w = 0; w < width; w += 16) {
      __m512i low = _mm512_setzero_si512(), high = _mm512_setzero_si512();
      if (2 * p < rows)
        low = _mm512_cvtepu16_epi32(
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + 2 * p * stride + w)));
      if (2 * p + 1 < rows)
        high = _mm512_cvtepu16_epi32(
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + (2 * p + 1) * stride + w)));
      _mm512_storeu_si512(out + p * width + w, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
}

// out [64, 64] = the transpose of x [64, 64]; `words` is scratch for 32 x 64 words.
inline void transpose_block(const bf16* x, bf16* out, uint32_t* words) {
  pack_pairs(x, 64, 64, 64, words);
  for (int p = 0; p < 32; p += 16)
    for (int n = 0; n < 64; n += 16)
      transpose_words(words + p * 64 + n, 64, 16, reinterpret_cast<uint32_t*>(out) + n * 32 + p, 32);
}

}  // namespace quilate
#endif
