// Linear with AVX-512: vdpbf16ps on bf16 pairs, f32 multiply-adds for f16 and f32.
#include "kernels/cpu/linear_kernels_impl.h"
#include "kernels/cpu/simd_avx512.h"

namespace plumbline {
namespace {

constexpr int kTileRows = 12;  // with 2 vectors of columns: 24 sums, 2 weights in 32 registers

template <int kRows>
struct Bf16Tile {
  static void Run(const void* panel, const MultiplyArgs& args, float* out) {
    constexpr int64_t kPrefetchBytes =
        4096;  // how far ahead of the multiply a stream from memory is asked for
    __m512 sum[kRows][2];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
      for (int v = 0; v < 2; ++v) {
        sum[r][v] = args.accumulate ? _mm512_loadu_ps(out + r * 32 + 16 * v) : _mm512_setzero_ps();
      }
    }
    const int* x = static_cast<const int*>(panel);  // pairs
    const char* tile = static_cast<const char*>(args.weight);
    for (int64_t k = 0; k < args.num_k; k += 32, tile += 2048) {
      for (int pair = 0; pair < 16; ++pair, x += kRows) {
        const char* row = tile + pair * 64;
        _mm_prefetch(row + kPrefetchBytes, _MM_HINT_T0);
        _mm_prefetch(row + 1024 + kPrefetchBytes, _MM_HINT_T0);
        const __m512bh w0 = (__m512bh)_mm512_loadu_si512(row);
        const __m512bh w1 = (__m512bh)_mm512_loadu_si512(row + 1024);
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) {
          const __m512bh a = (__m512bh)_mm512_set1_epi32(x[r]);
          sum[r][0] = _mm512_dpbf16_ps(sum[r][0], w0, a);
          sum[r][1] = _mm512_dpbf16_ps(sum[r][1], w1, a);
        }
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
      for (int v = 0; v < 2; ++v) _mm512_storeu_ps(out + r * 32 + 16 * v, sum[r][v]);
    }
  }
};

struct F16Weight {
  using Element = uint16_t;
  static constexpr int kGroup = 2;
  static const uint16_t* Row(const void* weight, int64_t k) {
    return static_cast<const uint16_t*>(weight) + k / 32 * 1024 + k % 32 * 16;
  }
  static __m512 Load(const uint16_t* row, int g, int column) {
    const __m512i pairs = _mm512_loadu_si512(row + column / 16 * 512);
    return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(g == 0 ? pairs : _mm512_srli_epi32(pairs, 16)));
  }
};

struct F32Weight {
  using Element = float;
  static constexpr int kGroup = 1;
  static const float* Row(const void* weight, int64_t k) {
    return static_cast<const float*>(weight) + k * 32;
  }
  static __m512 Load(const float* row, int, int column) { return _mm512_loadu_ps(row + column); }
};

template <typename Weight>
struct Kernel {
  template <int kRows>
  struct Tile {
    static void Run(const void* panel, const MultiplyArgs& args, float* out) {
      MultiplyAddTile<Avx512, Weight, kRows, 2>(static_cast<const float*>(panel), args, 0, out);
    }
  };
  static void Multiply(const MultiplyArgs& args) { MultiplyRowTiles<kTileRows, float, Tile>(args); }
};

void MultiplyBf16(const MultiplyArgs& args) {
  MultiplyRowTiles<kTileRows, uint16_t, Bf16Tile>(args);
}

int64_t SaturateBf16(int64_t rounds) {
  constexpr int kSums = 12;
  __m512 sums[kSums];
  const __m512bh pairs = (__m512bh)_mm512_set1_epi32(0x3f003f00);  // 0.5, 0.5
  for (__m512& sum : sums) sum = _mm512_setzero_ps();
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < kSums; ++j) sums[j] = _mm512_dpbf16_ps(sums[j], pairs, pairs);
  }
  for (__m512& sum : sums) asm volatile("" : "+v"(sum));
  return rounds * kSums * 64;
}

// Streaming stores: a packed weight is not read again soon. The locked operation that ends a task
// orders them.
void Transpose(void* to, int64_t to_stride, const void* from, int64_t from_stride) {
  __m512i a[16], b[16];
  for (int i = 0; i < 16; ++i)
    a[i] = _mm512_loadu_si512(static_cast<const char*>(from) + i * from_stride);
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
    a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
    a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
    a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
  }
  // a[4 q + c]: 128-bit lane l holds column 4 l + c of rows 4 q .. 4 q + 3.
  for (int c = 0; c < 4; ++c) {
    const __m512i even01 = _mm512_shuffle_i32x4(a[c], a[4 + c], 0x88);
    const __m512i even23 = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0x88);
    const __m512i odd01 = _mm512_shuffle_i32x4(a[c], a[4 + c], 0xdd);
    const __m512i odd23 = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0xdd);
    char* row = static_cast<char*>(to) + c * to_stride;
    _mm512_stream_si512(reinterpret_cast<__m512i*>(row),
                        _mm512_shuffle_i32x4(even01, even23, 0x88));
    _mm512_stream_si512(reinterpret_cast<__m512i*>(row + 4 * to_stride),
                        _mm512_shuffle_i32x4(odd01, odd23, 0x88));
    _mm512_stream_si512(reinterpret_cast<__m512i*>(row + 8 * to_stride),
                        _mm512_shuffle_i32x4(even01, even23, 0xdd));
    _mm512_stream_si512(reinterpret_cast<__m512i*>(row + 12 * to_stride),
                        _mm512_shuffle_i32x4(odd01, odd23, 0xdd));
  }
}

constexpr PanelFormat kF32Format = {
    .tile_rows = kTileRows, .k_group = 1, .chunk_k = 256, .dtype = DType::kF32};

}  // namespace

const LinearTable kLinearAvx512 = {
    .bf16 = {{.tile_rows = kTileRows, .k_group = 2, .chunk_k = 512, .dtype = DType::kBf16},
             MultiplyBf16, SaturateBf16},
    .f16 = {kF32Format, Kernel<F16Weight>::Multiply, SaturateMultiplyAdd<Avx512>},
    .f32 = {kF32Format, Kernel<F32Weight>::Multiply, SaturateMultiplyAdd<Avx512>},
    .add = LinearElementwise<Avx512>::Add,
    .add_scaled = LinearElementwise<Avx512>::AddScaled,
    .store = LinearElementwise<Avx512>::Store,
    .store_gated = LinearElementwise<Avx512>::StoreGated,
    .read = ReadMemory<Avx512>,
    .transpose = Transpose,
};

}  // namespace plumbline
