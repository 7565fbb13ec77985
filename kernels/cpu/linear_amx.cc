// Linear with AMX: bf16 tiles. A tile row of the product is computed as if it were alone, so any number of rows gives the
// same bits per row. TDPBF16PS over 32 k adds to each sum one rounded number: fused multiply-adds from zero over the 16
// even k, the same over the odd, and both added (Intel SDM, vol. 2). One row is computed so with vector instructions,
// to the same bits, because these keep more of the weight under way from memory.
#include <immintrin.h>

#include "kernels/cpu/flush_subnormals.h"
#include "kernels/cpu/linear_kernels.h"
#include "kernels/cpu/linear_layout.h"

namespace plumbline {
namespace {

constexpr int kTileRows = 32;
constexpr int kStepBytes = 2048;  // 32 k of a block
constexpr int kOutStride = 128;   // bytes of a row of sums

struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Tiles 0, 1: sums of the upper rows; 2, 3: of the lower; 4, 5: upper and lower rows of x; 6, 7:
// weight.
void Configure(int upper_rows, int lower_rows) {
  TileConfig config;
  const int rows[8] = {upper_rows, upper_rows, lower_rows, lower_rows,
                       upper_rows, lower_rows, 16,         16};
  for (int i = 0; i < 8; ++i) {
    if (rows[i] == 0) continue;
    config.row_bytes[i] = 64;
    config.rows[i] = static_cast<uint8_t>(rows[i]);
  }
  // Not _tile_loadconfig: GCC 12 declares that it reads 8 bytes, so the stores to the other fields
  // may vanish.
  asm volatile("ldtilecfg %0" : : "m"(config));
}

// Asks for memory a few lines at a time, evenly over the steps of a product.
class Prefetcher {
 public:
  Prefetcher(const UpcomingBytes& upcoming, int64_t num_steps)
      : next_(static_cast<const char*>(upcoming.data)),
        step_bytes_((upcoming.num_bytes / 64 + num_steps - 1) / num_steps * 64) {}

  void Step() {
    for (int64_t i = 0; i < step_bytes_; i += 64) _mm_prefetch(next_ + i, _MM_HINT_T1);
    next_ += step_bytes_;
  }

 private:
  const char* next_;
  int64_t step_bytes_;
};

// Hands the sums of the tile before to their sink a few rows at a time, between the products of this one: tile products
// and vector instructions run side by side.
class PendingTile {
 public:
  explicit PendingTile(const TileSink& sink) : sink_(sink) {}

  void Set(int64_t first_row, int num_rows, float* sums, int64_t num_steps) {
    row_ = first_row;
    end_ = first_row + num_rows;
    sums_ = sums;
    rows_per_step_ = (num_rows + num_steps - 1) / num_steps;
  }
  void Step() {
    if (row_ < end_) Take(rows_per_step_ < end_ - row_ ? rows_per_step_ : end_ - row_);
  }
  void Finish() {
    if (row_ < end_) Take(end_ - row_);
  }

 private:
  void Take(int64_t num_rows) {
    sink_.take(sink_.context, row_, num_rows, sums_);
    row_ += num_rows;
    sums_ += num_rows * kBlockColumns;
  }

  const TileSink& sink_;
  int64_t row_ = 0, end_ = 0, rows_per_step_ = 0;
  float* sums_ = nullptr;
};

// Where the rows of a tile lie: from row to row, and from 32 k to the next.
struct RowPlaces {
  int64_t row_bytes, step_bytes;
};

// Up to 16 rows: as fast as the weight arrives from memory.
template <typename EachStep>
void MultiplyUpper(const char* x, const RowPlaces& rows, const MultiplyArgs& args, const float* from, float* out,
                   const EachStep& each_step) {
  const char* weight = static_cast<const char*>(args.weight);
  if (args.accumulate) {
    _tile_loadd(0, from, kOutStride);
    _tile_loadd(1, from + 16, kOutStride);
  } else {
    _tile_zero(0);
    _tile_zero(1);
  }
  for (int64_t k = 0; k < args.num_k; k += 32, x += rows.step_bytes, weight += kStepBytes) {
    each_step();
    _tile_loadd(4, x, rows.row_bytes);
    _tile_loadd(6, weight, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, weight + 1024, 64);
    _tile_dpbf16ps(1, 4, 7);
  }
  _tile_stored(0, out, kOutStride);
  _tile_stored(1, out + 16, kOutStride);
}

// Many rows pass for every block: they are loaded with the hint that leaves the weight in the L1 cache.
template <typename EachStep>
void MultiplyBoth(const char* x, const RowPlaces& rows, const MultiplyArgs& args, const float* from, float* out,
                  const EachStep& each_step) {
  const float* from_lower = from + 16 * 32;
  float* lower = out + 16 * 32;
  const char* weight = static_cast<const char*>(args.weight);
  if (args.accumulate) {
    _tile_loadd(0, from, kOutStride);
    _tile_loadd(1, from + 16, kOutStride);
    _tile_loadd(2, from_lower, kOutStride);
    _tile_loadd(3, from_lower + 16, kOutStride);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t k = 0; k < args.num_k; k += 32, x += rows.step_bytes, weight += kStepBytes) {
    each_step();
    _tile_loadd(6, weight, 64);
    _tile_stream_loadd(4, x, rows.row_bytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, weight + 1024, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_stream_loadd(5, x + 16 * rows.row_bytes, rows.row_bytes);
    _tile_dpbf16ps(3, 5, 7);
    _tile_dpbf16ps(2, 5, 6);
  }
  _tile_stored(0, out, kOutStride);
  _tile_stored(1, out + 16, kOutStride);
  _tile_stored(2, lower, kOutStride);
  _tile_stored(3, lower + 16, kOutStride);
}

// 32 k of 16 columns. The weight is read in the order in which it lies, once, for the processor to foresee it.
__attribute__((always_inline)) inline __m512 AddStep(const char* x, const char* weight, __m512 sum) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000));
  __m512 even = _mm512_setzero_ps(), odd = even;
#pragma GCC unroll 16
  for (int pair = 0; pair < 16; ++pair) {
    __m512i w = _mm512_load_si512(weight + 64 * pair);
    asm("" : "+v"(w));
    const __m512 w_even = _mm512_castsi512_ps(_mm512_slli_epi32(w, 16));
    const __m512 w_odd = _mm512_castsi512_ps(_mm512_and_si512(w, upper));
    const __m512i bits = _mm512_set1_epi32(*reinterpret_cast<const int*>(x + 4 * pair));
    even = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(bits, 16)), w_even, even);
    odd = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(bits, upper)), w_odd, odd);
  }
  return _mm512_add_ps(sum, _mm512_add_ps(even, odd));
}

template <typename EachStep>
void MultiplyOneRow(const char* x, const RowPlaces& rows, const MultiplyArgs& args, const float* from, float* out,
                    const EachStep& each_step) {
  const FlushSubnormals flush;  // as the tiles do
  const char* weight = static_cast<const char*>(args.weight);
  __m512 left = args.accumulate ? _mm512_loadu_ps(from) : _mm512_setzero_ps();
  __m512 right = args.accumulate ? _mm512_loadu_ps(from + 16) : _mm512_setzero_ps();
  for (int64_t k = 0; k < args.num_k; k += 32, x += rows.step_bytes, weight += kStepBytes) {
    each_step();
    left = AddStep(x, weight, left);
    asm("" : "+r"(x));  // else the converted x are kept for the other half, in memory
    right = AddStep(x, weight + 1024, right);
  }
  _mm512_storeu_ps(out, left);
  _mm512_storeu_ps(out + 16, right);
}

template <bool kHasSink>
void MultiplyRows(const MultiplyArgs& args) {
  // One buffer is enough: every product has the steps that Set counts on, so the tile before is taken when it is stored.
  alignas(64) float finished[kTileRows * kBlockColumns];
  PendingTile pending(args.sink);
  int configured_rows = 0;
  const int64_t num_steps = (args.num_rows + kTileRows - 1) / kTileRows * (args.num_k / 32);
  Prefetcher prefetcher(args.upcoming_weight, num_steps);
  const auto each_step = [&] {
    prefetcher.Step();
    if constexpr (kHasSink) pending.Step();
  };
  for (int64_t row = 0; row < args.num_rows; row += kTileRows) {
    const int64_t left = args.num_rows - row;
    const int rows = left < kTileRows ? static_cast<int>(left) : kTileRows;
    if (rows > 1 && rows != configured_rows) {
      Configure(rows < 16 ? rows : 16, rows < 16 ? 0 : rows - 16);
      configured_rows = rows;
    }
    const bool is_packed = args.panel_row_bytes == 0;
    const char* x = static_cast<const char*>(args.panel) + row * (is_packed ? args.num_k * 2 : args.panel_row_bytes);
    const RowPlaces places = {is_packed ? 64 : args.panel_row_bytes, is_packed ? rows * 64 : 64};
    const float* from = args.out + row * kBlockColumns;
    float* out = kHasSink ? finished : args.out + row * kBlockColumns;
    if (rows == 1) {
      MultiplyOneRow(x, places, args, from, out, each_step);
    } else if (rows <= 16) {
      MultiplyUpper(x, places, args, from, out, each_step);
    } else {
      MultiplyBoth(x, places, args, from, out, each_step);
    }
    if constexpr (kHasSink) {
      asm volatile("" ::: "memory");  // the tile stores do not say that they write memory
      pending.Finish();
      pending.Set(row, rows, out, args.num_k / 32);
    }
  }
  pending.Finish();
  if (configured_rows > 0) _tile_release();
}

void Multiply(const MultiplyArgs& args) { args.sink.take ? MultiplyRows<true>(args) : MultiplyRows<false>(args); }

int64_t Saturate(int64_t rounds) {
  Configure(16, 16);
  for (int64_t i = 0; i < rounds; ++i) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
  return rounds * 4 * 16 * 16 * 32 * 2;
}

}  // namespace

const LinearKernel kLinearAmxBf16 = {
    {.tile_rows = kTileRows, .k_group = 32, .chunk_k = 352, .dtype = DType::kBf16, .reads_rows = true}, Multiply, Saturate};

}  // namespace plumbline
