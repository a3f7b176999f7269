// Fused attention: out = softmax(scale * q k^T + bias) v with an online softmax, after FlashAttention-2 (Dao 2023, algorithm 1).
//
// Two shapes of it. `attend_tiles`: a block takes 64 queries of one head and walks over the keys. `attend_split`: for few queries
// (streaming, decoding) the keys are divided among the blocks and among the warps of a block, each with its own softmax, and the
// parts are joined by their log-sum-exp (`combine_splits`, Flash-Decoding).
//
// Elements are fp16 or bfloat16, sums are fp32 in the tensor cores' accumulators. Scores live in units of log2, so that a
// probability is one ex2. The sum of a row's probabilities is one more column of the product with v, a column of ones: numerator
// and denominator then hold the same rounded probabilities, and a constant v comes out exactly.
//
// A row that may see no key gives zeros and a log-sum-exp of minus infinity.
#pragma once

#include "edgemm_cuda.cuh"

namespace edgemm {

// Mirrored by edgemm/kernels/attention.py. Strides count elements; the last dimension is contiguous, every row of q, k, v and out
// starts on 16 bytes.
struct AttentionParams {
  const void* q;               // [batch, heads, q_len, D]
  const void* k;               // [batch, kv_heads, kv_len, D]
  const void* v;               // [batch, kv_heads, kv_len, D]
  void* out;                   // [batch, heads, q_len, D]
  float* lse;                  // [batch, heads, q_len] natural logarithm, or null
  const int* kv_lengths;       // [batch] keys that count, or null: kv_len
  const i64* ring_position;    // [batch] keys ever written to the ring of kv_len slots, or null: not a ring
  const void* bias;            // added to the scaled scores; [batch, heads, q_len, kv_len] by the strides below, or null
  const float* alibi_slopes;   // [heads]: -slope * |key - query|, or null
  const float* relative_bias;  // [heads, 2 * relative_span + 1] by key - query, clamped, or null
  float* partial_out;          // split only: [batch * heads * q_len, splits, D]
  float* partial_lse;          // split only: [batch * heads * q_len, splits], log2
  i64 q_strides[3];            // batch, head, row
  i64 k_strides[3];
  i64 v_strides[3];
  i64 out_strides[3];
  i64 bias_strides[3];
  int batch, heads, kv_heads, q_len, kv_len;
  int relative_span;
  int splits;
  int align_end;      // query i stands at key (number of keys) - q_len + i; else at key i
  int window_before;  // a query sees the keys from its own - window_before to its own + window_after
  int window_after;
  int head_dim;       // for the kernels that are not made for one
  float scale_log2;   // scale * log2(e)
};

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

__device__ __forceinline__ int clamp(int x, int low, int high) { return min(max(x, low), high); }

// The keys of one batch entry: key j, the oldest being 0, lies in slot (start + j) mod kv_len.
struct Keys {
  int count, start;

  __device__ __forceinline__ int slot(int key, int capacity) const {
    const int at = start + key;
    return at >= capacity ? at - capacity : at;
  }
  // The same without a branch, and for a key beyond the last that of the last: its address may be formed, though it is not read.
  // Fewer instructions, more registers: for few queries. Below the capacity the difference wraps around and is the larger.
  __device__ __forceinline__ int reachable_slot(int key, int capacity) const {
    const u32 at = start + min(key, count - 1), wrapped = at - static_cast<u32>(capacity);
    return static_cast<int>(at < wrapped ? at : wrapped);
  }
};

__device__ __forceinline__ Keys keys_of(const AttentionParams& p, int batch) {
  if (p.ring_position) {
    const i64 written = max(p.ring_position[batch], 0LL);
    if (written <= p.kv_len) return {static_cast<int>(written), 0};
    return {p.kv_len, static_cast<int>(written % p.kv_len)};
  }
  return {p.kv_lengths ? clamp(p.kv_lengths[batch], 0, p.kv_len) : p.kv_len, 0};
}

__device__ __forceinline__ int position_of(const AttentionParams& p, const Keys& keys, int query) {
  return query + (p.align_end ? keys.count - p.q_len : 0);
}

// The two query rows of a thread (accumulator rows lane / 4 and lane / 4 + 8). No more than what cannot be worked out again for each
// tile of keys: a register that lives through the loop is one warp less for some kernels.
struct Rows {
  int position[2];  // far below every window: the row does not exist
  int head[2];

  static constexpr int kAbsent = -(1 << 30);

  __device__ __forceinline__ void set(int i, bool exists, int at, int of_head) {
    position[i] = exists ? at : kAbsent;
    head[i] = of_head;
  }
  // The first and the last key that row i sees; the last is below the first if it sees none.
  __device__ __forceinline__ int low(const AttentionParams& p, int i) const { return max(position[i] - p.window_before, 0); }
  __device__ __forceinline__ int high(const AttentionParams& p, const Keys& keys, int i) const {
    return min(position[i] + p.window_after, keys.count - 1);
  }
};

// Scales the scores s of keys `key0` + 8 i (+ 1), and adds the biases, in units of log2. One kind of bias after another, each in a
// branch that all threads take alike: the registers of one kind's addresses and numbers are free again for the next.
template <class T, int kTiles>
__device__ __forceinline__ void add_biases(const AttentionParams& p, const Keys& keys, const Rows& rows, float (&s)[kTiles][4],
                                           int key0) {
#pragma unroll
  for (int i = 0; i < kTiles; ++i)
#pragma unroll
    for (int e = 0; e < 4; ++e) s[i][e] *= p.scale_log2;
  if (p.bias) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int low = rows.low(p, h), high = rows.high(p, keys, h);
      const int query = high < low ? 0 : rows.position[h] - position_of(p, keys, 0);
      const T* const row = static_cast<const T*>(p.bias) + blockIdx.z * p.bias_strides[0] + rows.head[h] * p.bias_strides[1] +
                           query * p.bias_strides[2];
#pragma unroll
      for (int i = 0; i < kTiles; ++i)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int key = key0 + i * 8 + e;
          if (key >= low && key <= high) s[i][2 * h + e] = fmaf(to_float(row[key]), kLog2E, s[i][2 * h + e]);
        }
    }
  }
  if (p.alibi_slopes) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float slope = p.alibi_slopes[rows.head[h]] * -kLog2E;
#pragma unroll
      for (int i = 0; i < kTiles; ++i)
#pragma unroll
        for (int e = 0; e < 2; ++e)
          s[i][2 * h + e] = fmaf(slope, static_cast<float>(abs(key0 + i * 8 + e - rows.position[h])), s[i][2 * h + e]);
    }
  }
  if (p.relative_bias) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float* const table =
          p.relative_bias + static_cast<i64>(rows.head[h]) * (2 * p.relative_span + 1) + p.relative_span;
#pragma unroll
      for (int i = 0; i < kTiles; ++i)
#pragma unroll
        for (int e = 0; e < 2; ++e)
          s[i][2 * h + e] =
              fmaf(table[clamp(key0 + i * 8 + e - rows.position[h], -p.relative_span, p.relative_span)], kLog2E, s[i][2 * h + e]);
    }
  }
}

// The online softmax of 16 rows of one warp: c[.][0..1] belong to accumulator row lane / 4, c[.][2..3] to that + 8.
template <class T, int D>
struct Softmax {
  float out[D / 8][4];
  float sum[4];  // [0] and [2] count: every column of the product with ones is the same
  float max[2];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < D / 8; ++i) out[i][0] = out[i][1] = out[i][2] = out[i][3] = 0.0f;
    sum[0] = sum[1] = sum[2] = sum[3] = 0.0f;
    max[0] = max[1] = -infinity();
  }

  // Takes kKeys more keys, the first of which is key `first`; k and v are rows in shared memory, `kRow` elements apart.
  template <int kKeys, int kRow, bool kBiased>
  __device__ __forceinline__ void add(const AttentionParams& p, const Keys& keys, const Rows& rows, const u32 (&q)[D / 16][4],
                                      const T* k, const T* v, int first) {
    const int lane = threadIdx.x & 31, pair = (lane & 3) * 2;
    float s[kKeys / 8][4];
#pragma unroll
    for (int i = 0; i < kKeys / 8; ++i) s[i][0] = s[i][1] = s[i][2] = s[i][3] = 0.0f;
    // k is [keys, D] by rows, which is k^T by columns: no .trans. One ldmatrix brings 16 keys by 16 elements.
#pragma unroll
    for (int d = 0; d < D / 16; ++d) {
#pragma unroll
      for (int i = 0; i < kKeys / 16; ++i) {
        u32 b[4];
        ldmatrix_x4(b, k + (i * 16 + (lane & 7) + (lane >> 4) * 8) * kRow + d * 16 + (lane >> 3 & 1) * 8);
        mma_m16n8k16(s[2 * i], q[d], {b[0], b[1]}, T{});
        mma_m16n8k16(s[2 * i + 1], q[d], {b[2], b[3]}, T{});
      }
    }

    // Without a bias the scale waits for the exponential, where it is part of a multiply-add.
    const float scale = kBiased ? 1.0f : p.scale_log2;
    if constexpr (kBiased) add_biases<T>(p, keys, rows, s, first + pair);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int low = rows.low(p, h), high = rows.high(p, keys, h);
      if (first < low || first + kKeys - 1 > high) {
#pragma unroll
        for (int i = 0; i < kKeys / 8; ++i) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const int key = first + i * 8 + pair + e;
            if (key < low || key > high) s[i][2 * h + e] = -infinity();
          }
        }
      }
    }

    float correction[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float m = max[h];
#pragma unroll
      for (int i = 0; i < kKeys / 8; ++i) m = fmaxf(m, fmaxf(s[i][2 * h], s[i][2 * h + 1]));
      m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 1));  // the four lanes that share the row
      m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 2));
      const float shift = m == -infinity() ? 0.0f : m * scale;  // a row that has seen nothing: exp2(-inf - 0) = 0
      correction[h] = fast_exp2(max[h] * scale - shift);
      max[h] = m;
#pragma unroll
      for (int i = 0; i < kKeys / 8; ++i) {
        s[i][2 * h] = fast_exp2(s[i][2 * h] * scale - shift);
        s[i][2 * h + 1] = fast_exp2(s[i][2 * h + 1] * scale - shift);
      }
    }
#pragma unroll
    for (int i = 0; i < D / 8; ++i) {
      out[i][0] *= correction[0];
      out[i][1] *= correction[0];
      out[i][2] *= correction[1];
      out[i][3] *= correction[1];
    }
    sum[0] *= correction[0];
    sum[1] *= correction[0];
    sum[2] *= correction[1];
    sum[3] *= correction[1];

    // The accumulator layout of two n-tiles of scores is the layout of an A fragment of probabilities.
    const u32 ones = pack2(1.0f, 1.0f, T{});
#pragma unroll
    for (int j = 0; j < kKeys / 16; ++j) {
      const u32 a[4] = {pack2(s[2 * j][0], s[2 * j][1], T{}), pack2(s[2 * j][2], s[2 * j][3], T{}),
                        pack2(s[2 * j + 1][0], s[2 * j + 1][1], T{}), pack2(s[2 * j + 1][2], s[2 * j + 1][3], T{})};
      mma_m16n8k16(sum, a, {ones, ones}, T{});
#pragma unroll
      for (int i = 0; i < D / 16; ++i) {
        u32 b[4];
        ldmatrix_x4_trans(b, v + (j * 16 + (lane & 15)) * kRow + i * 16 + (lane >> 4) * 8);
        mma_m16n8k16(out[2 * i], a, {b[0], b[1]}, T{});
        mma_m16n8k16(out[2 * i + 1], a, {b[2], b[3]}, T{});
      }
    }
  }

  // The row's log-sum-exp in units of log2.
  template <bool kBiased>
  __device__ __forceinline__ float lse_log2(const AttentionParams& p, int h) const {
    if (sum[2 * h] == 0.0f) return -infinity();
    return max[h] * (kBiased ? 1.0f : p.scale_log2) + fast_log2(sum[2 * h]);
  }
};

// Starts copying `kCount` rows of D elements; rows that do not exist become zeros, so that 0 * v is 0 whatever the memory holds.
template <int D, int kCount, int kRow, int kThreads, class T, class RowAddress>
__device__ __forceinline__ void copy_rows(T* shared, int thread, RowAddress row_address) {
  constexpr int kChunks = D / 8;
#pragma unroll
  for (int i = thread; i < kCount * kChunks; i += kThreads) {
    const int row = i / kChunks, column = i % kChunks * 8;
    bool valid;
    const T* from = row_address(row, valid);
    cp_async_16(shared + row * kRow + column, from + (valid ? column : 0), valid);
  }
}

// Blocks that a multiprocessor is to hold (kResident below): as many as its 65536 registers allow with nothing spilled. Turing, which
// has no asynchronous copies, and Blackwell need some more registers.
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ < 800 || __CUDA_ARCH__ >= 1000)
constexpr int kFewerResident = 1;
#else
constexpr int kFewerResident = 0;
#endif

// ---- many queries ----------------------------------------------------------------------------------------------------------

template <int D>
struct Tile {
  static constexpr int kQueries = 64, kThreads = 128;   // 16 queries a warp
  static constexpr int kKeys = D <= 64 ? 64 : 32;       // two stages within 48 KiB: no opt-in, several blocks an SM
  static constexpr int kRow = D + 8;                    // odd in units of 16 bytes: ldmatrix meets no bank conflict
  static constexpr int kStage = 2 * kKeys * kRow;       // k, then v
  static constexpr int kSharedBytes = 2 * kStage * 2;
  static constexpr int kResident = (D == 32 ? 5 : D == 128 ? 3 : 4) - kFewerResident;
  static constexpr int kResidentBiased = D == 32 ? 4 : D == 80 ? 4 - kFewerResident : D == 128 ? 3 - kFewerResident : 3;
  static_assert(kQueries <= 2 * kKeys, "the queries borrow a stage");
  static_assert(kSharedBytes <= 48 * 1024, "more needs an opt-in");
};

// Grid: query tiles, heads, batch.
template <class T, int D, bool kBiased>
__device__ __forceinline__ void attend_tiles(const AttentionParams& p) {
  using C = Tile<D>;
  EDGEMM_DYNAMIC_SHARED(raw);
  T* const stages = reinterpret_cast<T*>(raw);
  const int thread = threadIdx.x, warp = thread >> 5, lane = thread & 31;
  const int head = blockIdx.y, batch = blockIdx.z, kv_head = head / (p.heads / p.kv_heads);
  const int query0 = static_cast<int>(gridDim.x - 1 - blockIdx.x) * C::kQueries;  // under a causal mask the longest first
  const Keys keys = keys_of(p, batch);
  const T* const q = static_cast<const T*>(p.q) + batch * p.q_strides[0] + head * p.q_strides[1];
  const T* const k = static_cast<const T*>(p.k) + batch * p.k_strides[0] + kv_head * p.k_strides[1];
  const T* const v = static_cast<const T*>(p.v) + batch * p.v_strides[0] + kv_head * p.v_strides[1];

  const int last_query = min(query0 + C::kQueries, p.q_len) - 1;
  const int begin = max(position_of(p, keys, query0) - p.window_before, 0) / C::kKeys * C::kKeys;
  const int end = min(position_of(p, keys, last_query) + p.window_after + 1, keys.count);

  const auto load = [&](int first, int stage) {
    T* const shared = stages + stage * C::kStage;
    copy_rows<D, C::kKeys, C::kRow, C::kThreads>(shared, thread, [&](int row, bool& valid) {
      valid = first + row < keys.count;
      return k + (valid ? keys.slot(first + row, p.kv_len) * p.k_strides[2] : 0);
    });
    copy_rows<D, C::kKeys, C::kRow, C::kThreads>(shared + C::kKeys * C::kRow, thread, [&](int row, bool& valid) {
      valid = first + row < keys.count;
      return v + (valid ? keys.slot(first + row, p.kv_len) * p.v_strides[2] : 0);
    });
    cp_async_commit();
  };

  Softmax<T, D> softmax;
  softmax.clear();
  const int warp_query = query0 + warp * 16;
  Rows rows;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int query = warp_query + (lane >> 2) + h * 8;
    rows.set(h, query < p.q_len, position_of(p, keys, query), head);
  }

  if (begin < end) {
    // The queries come through the second stage, then stay in registers.
    copy_rows<D, C::kQueries, C::kRow, C::kThreads>(stages + C::kStage, thread, [&](int row, bool& valid) {
      valid = query0 + row < p.q_len;
      return q + (valid ? (query0 + row) * p.q_strides[2] : 0);
    });
    load(begin, 0);
    cp_async_wait<0>();
    __syncthreads();
    u32 fragments[D / 16][4];
#pragma unroll
    for (int d = 0; d < D / 16; ++d)
      ldmatrix_x4(fragments[d], stages + C::kStage + (warp * 16 + (lane & 15)) * C::kRow + d * 16 + (lane >> 4) * 8);

    // What any row of the warp may see: tiles outside are skipped by the whole warp.
    const int warp_low = position_of(p, keys, warp_query) - p.window_before;
    const int warp_high = min(position_of(p, keys, min(warp_query + 15, p.q_len - 1)) + p.window_after, keys.count - 1);
    int stage = 0;
    for (int first = begin; first < end; first += C::kKeys, stage ^= 1) {
      cp_async_wait<0>();
      __syncthreads();  // this tile has come, and every warp is done with the stage that is filled next
      if (first + C::kKeys < end) load(first + C::kKeys, stage ^ 1);
      if (first > warp_high || first + C::kKeys - 1 < warp_low) continue;
      const T* const tile = stages + stage * C::kStage;
      softmax.template add<C::kKeys, C::kRow, kBiased>(p, keys, rows, fragments, tile, tile + C::kKeys * C::kRow, first);
    }
  }

#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int query = warp_query + (lane >> 2) + h * 8;
    if (query >= p.q_len) continue;
    const float sum = softmax.sum[2 * h], inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
    T* const out = static_cast<T*>(p.out) + batch * p.out_strides[0] + head * p.out_strides[1] + query * p.out_strides[2];
#pragma unroll
    for (int i = 0; i < D / 8; ++i)
      *reinterpret_cast<u32*>(out + i * 8 + (lane & 3) * 2) =
          pack2(softmax.out[i][2 * h] * inverse, softmax.out[i][2 * h + 1] * inverse, T{});
    if (p.lse && (lane & 3) == 0)
      p.lse[(static_cast<i64>(batch) * p.heads + head) * p.q_len + query] = softmax.template lse_log2<kBiased>(p, h) * kLn2;
  }
}

// ---- few queries -----------------------------------------------------------------------------------------------------------

template <int D>
struct Split {
  static constexpr int kRows = 16, kKeys = 16;          // a warp's step
  static constexpr int kWarps = D <= 80 ? 4 : 2;        // within 48 KiB
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kRow = D + 8;
  static constexpr int kStage = 2 * kKeys * kRow;
  static constexpr int kSharedBytes = kWarps * 2 * kStage * 2;
  static constexpr int kResident = D == 32 ? 6 : D == 64 ? 5 - kFewerResident : D == 96 ? 5 : 4;
  static constexpr int kResidentBiased = D == 32 || D == 128 ? 4 : D == 64 ? 4 - kFewerResident : D == 96 ? 5 : 3;
  static constexpr int kPart = kRows * kRow;            // floats: a warp's accumulators, when the warps are joined
  static_assert(kWarps * (kPart + 2 * kRows) * 4 <= kSharedBytes, "the parts take the place of the stages");
  static_assert(kSharedBytes <= 48 * 1024, "more needs an opt-in");
};

// Grid: splits, kv_heads * tiles of 16 rows, batch. The query heads that share a kv head are rows of the same tile:
// row r is query r / group of head kv_head * group + r % group.
template <class T, int D, bool kBiased>
__device__ __forceinline__ void attend_split(const AttentionParams& p) {
  using C = Split<D>;
  EDGEMM_DYNAMIC_SHARED(raw);
  const int thread = threadIdx.x, warp = thread >> 5, lane = thread & 31;
  const int group = p.heads / p.kv_heads, row_count = group * p.q_len, tiles = (row_count + C::kRows - 1) / C::kRows;
  const int kv_head = blockIdx.y / tiles, row0 = blockIdx.y % tiles * C::kRows, batch = blockIdx.z, split = blockIdx.x;
  const Keys keys = keys_of(p, batch);
  const T* const k = static_cast<const T*>(p.k) + batch * p.k_strides[0] + kv_head * p.k_strides[1];
  const T* const v = static_cast<const T*>(p.v) + batch * p.v_strides[0] + kv_head * p.v_strides[1];

  // The keys that any row of the tile sees, in equal runs of whole steps.
  const int last_row = min(row0 + C::kRows, row_count) - 1;
  const int seen_begin = max(position_of(p, keys, row0 / group) - p.window_before, 0) / C::kKeys * C::kKeys;
  const int seen_end = min(position_of(p, keys, last_row / group) + p.window_after + 1, keys.count);
  const int steps = max(seen_end - seen_begin + C::kKeys - 1, 0) / C::kKeys, run = (steps + p.splits - 1) / p.splits * C::kKeys;
  const int begin = seen_begin + split * run, end = min(begin + run, seen_end);

  Rows rows;
  u32 fragments[D / 16][4];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = row0 + (lane >> 2) + h * 8, query = row / group, head = kv_head * group + row % group;
    const bool exists = row < row_count;
    rows.set(h, exists, position_of(p, keys, query), head);
    const T* const q = static_cast<const T*>(p.q) + batch * p.q_strides[0] + head * p.q_strides[1] + query * p.q_strides[2];
#pragma unroll
    for (int d = 0; d < D / 16; ++d) {
#pragma unroll
      for (int half = 0; half < 2; ++half)
        fragments[d][h + 2 * half] =
            exists ? *reinterpret_cast<const u32*>(q + d * 16 + half * 8 + (lane & 3) * 2) : 0u;
    }
  }

  // Every warp copies and reads its own keys: no barrier of the block in the loop.
  T* const stages = reinterpret_cast<T*>(raw) + warp * 2 * C::kStage;
  const auto load = [&](int first, int stage) {
    T* const shared = stages + stage * C::kStage;
    copy_rows<D, C::kKeys, C::kRow, 32>(shared, lane, [&](int row, bool& valid) {
      valid = first + row < keys.count;
      return k + static_cast<i64>(keys.reachable_slot(first + row, p.kv_len)) * static_cast<int>(p.k_strides[2]);
    });
    copy_rows<D, C::kKeys, C::kRow, 32>(shared + C::kKeys * C::kRow, lane, [&](int row, bool& valid) {
      valid = first + row < keys.count;
      return v + static_cast<i64>(keys.reachable_slot(first + row, p.kv_len)) * static_cast<int>(p.v_strides[2]);
    });
  };

  Softmax<T, D> softmax;
  softmax.clear();
  constexpr int kStride = C::kWarps * C::kKeys;
  int stage = 0, first = begin + warp * C::kKeys;
  if (first < end) load(first, 0);
  cp_async_commit();
  for (; first < end; first += kStride, stage ^= 1) {
    if (first + kStride < end) load(first + kStride, stage ^ 1);
    cp_async_commit();
    cp_async_wait<1>();
    __syncwarp();  // the other lanes' copies
    const T* const tile = stages + stage * C::kStage;
    softmax.template add<C::kKeys, C::kRow, kBiased>(p, keys, rows, fragments, tile, tile + C::kKeys * C::kRow, first);
    __syncwarp();  // the stage is filled again next
  }

  // Join the warps: every part is weighted by 2^(its maximum - the largest).
  __syncthreads();
  float* const parts = reinterpret_cast<float*>(raw);
  float* const maxima = parts + C::kWarps * C::kPart;
  float* const sums = maxima + C::kWarps * C::kRows;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = (lane >> 2) + h * 8;
#pragma unroll
    for (int i = 0; i < D / 8; ++i)
      *reinterpret_cast<float2*>(parts + warp * C::kPart + row * C::kRow + i * 8 + (lane & 3) * 2) =
          make_float2(softmax.out[i][2 * h], softmax.out[i][2 * h + 1]);
    if ((lane & 3) == 0) {
      maxima[warp * C::kRows + row] = softmax.max[h] * (kBiased ? 1.0f : p.scale_log2);
      sums[warp * C::kRows + row] = softmax.sum[2 * h];
    }
  }
  __syncthreads();
  for (int i = thread; i < C::kRows * (D / 2); i += C::kThreads) {
    const int tile_row = i / (D / 2), column = i % (D / 2) * 2, row = row0 + tile_row;
    if (row >= row_count) continue;
    float largest = -infinity();
#pragma unroll
    for (int w = 0; w < C::kWarps; ++w) largest = fmaxf(largest, maxima[w * C::kRows + tile_row]);
    const float shift = largest == -infinity() ? 0.0f : largest;
    float sum = 0.0f, x = 0.0f, y = 0.0f;
#pragma unroll
    for (int w = 0; w < C::kWarps; ++w) {
      const float weight = fast_exp2(maxima[w * C::kRows + tile_row] - shift);
      const float2 part = *reinterpret_cast<const float2*>(parts + w * C::kPart + tile_row * C::kRow + column);
      sum += weight * sums[w * C::kRows + tile_row];
      x += weight * part.x;
      y += weight * part.y;
    }
    const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
    const float lse_log2 = sum == 0.0f ? -infinity() : largest + fast_log2(sum);
    const int query = row / group, head = kv_head * group + row % group;
    const i64 flat_row = (static_cast<i64>(batch) * p.heads + head) * p.q_len + query;
    if (p.splits == 1) {
      T* const out = static_cast<T*>(p.out) + batch * p.out_strides[0] + head * p.out_strides[1] + query * p.out_strides[2];
      *reinterpret_cast<u32*>(out + column) = pack2(x * inverse, y * inverse, T{});
      if (p.lse && column == 0) p.lse[flat_row] = lse_log2 * kLn2;
    } else {
      const i64 part = flat_row * p.splits + split;
      *reinterpret_cast<float2*>(p.partial_out + part * D + column) = make_float2(x * inverse, y * inverse);
      if (column == 0) p.partial_lse[part] = lse_log2;
    }
  }
}

// Joins the splits. Grid: ceil(rows / 4) with rows = batch * heads * q_len; a warp a row.
template <class T>
__device__ __forceinline__ void combine_splits(const AttentionParams& p) {
  const int lane = threadIdx.x & 31;
  const i64 row = static_cast<i64>(blockIdx.x) * 4 + (threadIdx.x >> 5);
  if (row >= static_cast<i64>(p.batch) * p.heads * p.q_len) return;
  const float* const lses = p.partial_lse + row * p.splits;
  float largest = -infinity();
  for (int split = 0; split < p.splits; ++split) largest = fmaxf(largest, lses[split]);
  const float shift = largest == -infinity() ? 0.0f : largest;
  float sum = 0.0f;
  for (int split = 0; split < p.splits; ++split) sum += fast_exp2(lses[split] - shift);
  const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
  const int query = static_cast<int>(row % p.q_len), head = static_cast<int>(row / p.q_len % p.heads);
  const i64 batch = row / p.q_len / p.heads;
  T* const out = static_cast<T*>(p.out) + batch * p.out_strides[0] + head * p.out_strides[1] + query * p.out_strides[2];
  for (int column = lane * 2; column < p.head_dim; column += 64) {
    float x = 0.0f, y = 0.0f;
    for (int split = 0; split < p.splits; ++split) {
      const float weight = fast_exp2(lses[split] - shift);
      const float2 part = *reinterpret_cast<const float2*>(p.partial_out + (row * p.splits + split) * p.head_dim + column);
      x += weight * part.x;
      y += weight * part.y;
    }
    *reinterpret_cast<u32*>(out + column) = pack2(x * inverse, y * inverse, T{});
  }
  if (p.lse && lane == 0) p.lse[row] = sum == 0.0f ? -infinity() : (largest + fast_log2(sum)) * kLn2;
}

// ---- ring cache ------------------------------------------------------------------------------------------------------------

// Mirrored by edgemm/kernels/attention.py. Elements are 16 bits of any format.
struct RingAppendParams {
  const void *k, *v;    // [batch, kv_heads, new_len, head_dim]
  void *k_ring, *v_ring;  // [batch, kv_heads, capacity, head_dim]
  i64* position;        // [batch]: keys ever written; advanced by new_len
  i64 k_strides[3];     // batch, head, row, in elements
  i64 v_strides[3];
  i64 k_ring_strides[3];
  i64 v_ring_strides[3];
  int kv_heads, new_len, capacity, head_dim;
};

// Grid: batch. One block a batch entry, so that the block that advances the position is the only one that reads it.
__device__ __forceinline__ void ring_append(const RingAppendParams& p) {
  const int batch = blockIdx.x, chunks = p.head_dim / 8;
  const i64 written = p.position[batch];
  __syncthreads();  // everyone has read the position
  const int skipped = max(p.new_len - p.capacity, 0);  // these would be overwritten at once
  const int rows = p.new_len - skipped;
  for (int i = threadIdx.x; i < p.kv_heads * rows * chunks; i += blockDim.x) {
    const int column = i % chunks * 8, row = i / chunks % rows + skipped, head = i / chunks / rows;
    const int slot = static_cast<int>((written + row) % p.capacity);
    const auto copy = [&](const void* from, const i64 (&a)[3], void* to, const i64 (&b)[3]) {
      *reinterpret_cast<uint4*>(static_cast<u16*>(to) + batch * b[0] + head * b[1] + slot * b[2] + column) =
          *reinterpret_cast<const uint4*>(static_cast<const u16*>(from) + batch * a[0] + head * a[1] + row * a[2] + column);
    };
    copy(p.k, p.k_strides, p.k_ring, p.k_ring_strides);
    copy(p.v, p.v_strides, p.v_ring, p.v_ring_strides);
  }
  if (threadIdx.x == 0) p.position[batch] = written + p.new_len;
}

}  // namespace edgemm

// The entry points of one element type and head dimension: edgemm_attention[_split][_biased]_<type>_d<D>.
#define EDGEMM_ATTENTION(type_name, T, D)                                                                                       \
  EDGEMM_KERNEL_RESIDENT(edgemm_attention_##type_name##_d##D, edgemm::AttentionParams, edgemm::Tile<D>::kThreads,               \
                         edgemm::Tile<D>::kResident) {                                                                          \
    edgemm::attend_tiles<T, D, false>(p);                                                                                       \
  }                                                                                                                             \
  EDGEMM_KERNEL_RESIDENT(edgemm_attention_biased_##type_name##_d##D, edgemm::AttentionParams, edgemm::Tile<D>::kThreads,        \
                         edgemm::Tile<D>::kResidentBiased) {                                                                    \
    edgemm::attend_tiles<T, D, true>(p);                                                                                        \
  }                                                                                                                             \
  EDGEMM_KERNEL_RESIDENT(edgemm_attention_split_##type_name##_d##D, edgemm::AttentionParams, edgemm::Split<D>::kThreads,        \
                         edgemm::Split<D>::kResident) {                                                                         \
    edgemm::attend_split<T, D, false>(p);                                                                                       \
  }                                                                                                                             \
  EDGEMM_KERNEL_RESIDENT(edgemm_attention_split_biased_##type_name##_d##D, edgemm::AttentionParams, edgemm::Split<D>::kThreads, \
                         edgemm::Split<D>::kResidentBiased) {                                                                   \
    edgemm::attend_split<T, D, true>(p);                                                                                        \
  }

// bfloat16 in the tensor cores came with sm_80.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define EDGEMM_ATTENTION_HEAD_DIM(D)          \
  EDGEMM_ATTENTION(f16, edgemm::half_t, D)    \
  EDGEMM_ATTENTION(bf16, edgemm::bfloat16_t, D)
#else
#define EDGEMM_ATTENTION_HEAD_DIM(D) EDGEMM_ATTENTION(f16, edgemm::half_t, D)
#endif
