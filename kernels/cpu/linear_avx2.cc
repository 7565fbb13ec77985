// Linear with AVX2: every product is an f32 multiply-add.
#include "kernels/cpu/linear_kernels_impl.h"
#include "kernels/cpu/simd_avx2.h"

namespace plumbline {
namespace {

// A row holds pairs of k for 16 columns; the other half of the block lies 512 elements on.
struct PairedRow {
  using Element = uint16_t;
  static constexpr int kGroup = 2;
  static const uint16_t* Row(const void* weight, int64_t k) {
    return static_cast<const uint16_t*>(weight) + k / 32 * 1024 + k % 32 * 16;
  }
  static __m256i Pairs(const uint16_t* row, int column) {
    return _mm256_loadu_si256(
        reinterpret_cast<const __m256i*>(row + column / 16 * 512 + column % 16 * 2));
  }
};

struct Bf16Weight : PairedRow {
  static __m256 Load(const uint16_t* row, int g, int column) {
    const __m256i pairs = Pairs(row, column);
    return _mm256_castsi256_ps(g == 0 ? _mm256_slli_epi32(pairs, 16)
                                      : _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff0000)));
  }
};

struct F16Weight : PairedRow {
  static __m256 Load(const uint16_t* row, int g, int column) {
    const __m256i pairs = Pairs(row, column);
    const __m256i wide =
        g == 0 ? _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff)) : _mm256_srli_epi32(pairs, 16);
    return _mm256_cvtph_ps(
        _mm_packus_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1)));
  }
};

struct F32Weight {
  using Element = float;
  static constexpr int kGroup = 1;
  static const float* Row(const void* weight, int64_t k) {
    return static_cast<const float*>(weight) + k * 32;
  }
  static __m256 Load(const float* row, int, int column) { return _mm256_loadu_ps(row + column); }
};

constexpr int kTileRows =
    6;  // with 2 vectors of columns: 12 sums, 2 weights, 1 activation in 16 registers

template <typename Weight>
struct Kernel {
  template <int kRows>
  struct Tile {
    static void Run(const void* panel, const MultiplyArgs& args, float* out) {
      // Few rows leave registers for all columns at once: more sums in flight, one pass over the
      // weight.
      constexpr int kColumns = kRows <= 2 ? 32 : 16;
      for (int column = 0; column < 32; column += kColumns) {
        MultiplyAddTile<Avx2, Weight, kRows, kColumns / 8>(static_cast<const float*>(panel), args,
                                                           column, out + column);
      }
    }
  };
  static void Multiply(const MultiplyArgs& args) { MultiplyRowTiles<kTileRows, float, Tile>(args); }
};

void Transpose8x8(char* to, int64_t to_stride, const char* from, int64_t from_stride) {
  __m256 row[8], pair[8], quad[8];
  for (int i = 0; i < 8; ++i)
    row[i] = _mm256_loadu_ps(reinterpret_cast<const float*>(from + i * from_stride));
  for (int i = 0; i < 8; i += 2) {
    pair[i] = _mm256_unpacklo_ps(row[i], row[i + 1]);
    pair[i + 1] = _mm256_unpackhi_ps(row[i], row[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    quad[i] = _mm256_shuffle_ps(pair[i], pair[i + 2], 0x44);
    quad[i + 1] = _mm256_shuffle_ps(pair[i], pair[i + 2], 0xee);
    quad[i + 2] = _mm256_shuffle_ps(pair[i + 1], pair[i + 3], 0x44);
    quad[i + 3] = _mm256_shuffle_ps(pair[i + 1], pair[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    float* low = reinterpret_cast<float*>(to + i * to_stride);
    float* high = reinterpret_cast<float*>(to + (i + 4) * to_stride);
    _mm256_storeu_ps(low, _mm256_permute2f128_ps(quad[i], quad[i + 4], 0x20));
    _mm256_storeu_ps(high, _mm256_permute2f128_ps(quad[i], quad[i + 4], 0x31));
  }
}

void Transpose(void* to, int64_t to_stride, const void* from, int64_t from_stride) {
  for (int r = 0; r < 16; r += 8) {
    for (int c = 0; c < 16; c += 8) {
      Transpose8x8(static_cast<char*>(to) + c * to_stride + r * 4, to_stride,
                   static_cast<const char*>(from) + r * from_stride + c * 4, from_stride);
    }
  }
}

constexpr PanelFormat kFormat = {
    .tile_rows = kTileRows, .k_group = 1, .chunk_k = 256, .dtype = DType::kF32};

}  // namespace

const LinearTable kLinearAvx2 = {
    .bf16 = {kFormat, Kernel<Bf16Weight>::Multiply, SaturateMultiplyAdd<Avx2>},
    .f16 = {kFormat, Kernel<F16Weight>::Multiply, SaturateMultiplyAdd<Avx2>},
    .f32 = {kFormat, Kernel<F32Weight>::Multiply, SaturateMultiplyAdd<Avx2>},
    .add = LinearElementwise<Avx2>::Add,
    .add_scaled = LinearElementwise<Avx2>::AddScaled,
    .store = LinearElementwise<Avx2>::Store,
    .store_gated = LinearElementwise<Avx2>::StoreGated,
    .read = ReadMemory<Avx2>,
    .transpose = Transpose,
};

}  // namespace plumbline
