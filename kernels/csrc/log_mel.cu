// Log-mel and MFCC frames: one warp a frame, from samples to features without leaving the chip.
//
//   samples -> scale -> remove mean -> pre-emphasis -> window -> real FFT -> |X| or |X|^2 -> mel -> log
//           -> (x - mean) / std -> [DCT-II, lifter] -> [CMVN] -> [deltas]
//
// Entry points, N = 256, 512, 1024, 2048 the FFT size:
//   edgemm_log_mel_N         whole signals. grid (ceil(max_frames / 4), signals), block 128.
//   edgemm_log_mel_stream_N  the next chunk of many streams, everything above in one launch; samples, positions
//                            and histories stay on the device. grid (streams), block 128.
//   edgemm_sliding_cmvn      whole feature sequences. grid (ceil(features / 128), signals), block 128.
//   edgemm_deltas            whole feature sequences. grid (ceil(max_frames * features / 128), signals), block 128.
//
// Whole signals and streams run the same functions, and the file is compiled with --fmad=false and explicit
// fmaf: the compiler has no freedom to round one differently from the other. So they are equal bit for bit.
//
// The FFT of N real samples is one of M = N / 2 complex points. M / 32 of them live in each lane's registers for
// the first radix-8 (or 4) pass; the others go through shared memory in place, decimation in frequency, so that
// the result lies digit-reversed and is read so. One complex in 8 is padding, against bank conflicts.
#include "edgemm_cuda.cuh"

namespace {

constexpr int kWarps = 4;       // frames a block works on at once
constexpr int kMaxMels = 256;   // bounds the shared memory of a warp
constexpr int kEdgesSnip = 0, kEdgesZero = 1;  // 2: reflect
constexpr int kDeltaReach = 2;  // frames on either side of a first derivative

// What the options say, as numbers and tables. Python makes the tables in float64 and rounds them once.
struct LogMelPlan {
  const float* window;        // [window_samples]
  const float2* twiddle;      // [N], exp(-2 pi i k / N)
  const int* band_first;      // [n_mels], the first bin of each triangle
  const int* band_offset;     // [n_mels + 1], where its weights lie
  const float* band_weight;
  const float* dct;           // [n_mels, n_features] with the lifter in it; null: log-mel
  const float* shift;         // [n_features], global CMVN: (x - shift) * gain; null: none
  const float* gain;          // [n_features]
  int window_samples, hop_samples, window_offset, n_mels, n_features;
  int edges, remove_dc, magnitude, take_log;
  float preemphasis, scale, floor, log_gain, mel_mean, mel_inverse_std;
};

struct LogMelBatch {
  LogMelPlan plan;
  const void* samples;        // [signals, stride], float or int16
  const int* lengths;         // [signals], samples of each; null: all `length`
  void* out;                  // [signals, max_frames, n_features], float or half; rows beyond a signal are 0
  int* out_frames;            // [signals]; may be null
  long long stride;
  int length, max_frames, samples_int16, out_half;
};

struct LogMelStream {
  LogMelPlan plan;
  const void* chunk;          // [streams, chunk_stride], float or int16
  const int* chunk_lengths;   // [streams], at most chunk_samples; null: all chunk_samples
  float* ring;                // [streams, ring_mask + 1], samples by their index in the stream
  long long* counters;        // [streams, 3]: samples taken, frames made, frames handed out; all 0: a new stream
  float* history;             // [streams, history_mask + 1, n_features] before CMVN; null: no sliding CMVN
  double* sums;               // [streams, 2, n_features]; null: no sliding CMVN
  float* ready;               // [streams, ready_mask + 1, n_features] before deltas; null: no sliding CMVN, no deltas
  void* out;                  // [streams, max_frames, n_features * (1 + deltas)], float or half
  int* out_frames;            // [streams], frames handed out by this launch
  long long chunk_stride;
  int chunk_samples, samples_int16, out_half, max_frames;
  int ring_mask, history_mask, ready_mask;
  int cmvn_frames, cmvn_variance, deltas, flush;
};

struct SlidingCmvn {
  const float* in;            // [signals, max_frames, n_features]
  float* out;                 // likewise; may not be `in`
  const int* frames;          // [signals]
  int max_frames, n_features, cmvn_frames, cmvn_variance;
};

struct Deltas {
  const float* in;            // [signals, max_frames, n_features]
  void* out;                  // [signals, max_frames, n_features * (1 + deltas)], float or half
  const int* frames;          // [signals]
  int max_frames, n_features, deltas, out_half;
};

// ---- arithmetic ----

__device__ __forceinline__ float2 add(float2 a, float2 b) { return make_float2(a.x + b.x, a.y + b.y); }
__device__ __forceinline__ float2 sub(float2 a, float2 b) { return make_float2(a.x - b.x, a.y - b.y); }
__device__ __forceinline__ float2 mul(float2 a, float2 b) {
  return make_float2(fmaf(a.x, b.x, -(a.y * b.y)), fmaf(a.x, b.y, a.y * b.x));
}
__device__ __forceinline__ float2 times_minus_i(float2 a) { return make_float2(a.y, -a.x); }

// DFT of 4 points in place, natural order in and out.
__device__ __forceinline__ void dft(float2 (&v)[4]) {
  const float2 a = add(v[0], v[2]), b = sub(v[0], v[2]), c = add(v[1], v[3]), d = times_minus_i(sub(v[1], v[3]));
  v[0] = add(a, c);
  v[1] = add(b, d);
  v[2] = sub(a, c);
  v[3] = sub(b, d);
}

// DFT of 8 points in place: those of the even and odd points, joined by the eighth roots of unity.
__device__ __forceinline__ void dft(float2 (&v)[8]) {
  const float half_root = 0.70710678118654752f;
  float2 even[4] = {v[0], v[2], v[4], v[6]}, odd[4] = {v[1], v[3], v[5], v[7]};
  dft(even);
  dft(odd);
  odd[1] = make_float2((odd[1].x + odd[1].y) * half_root, (odd[1].y - odd[1].x) * half_root);
  odd[2] = times_minus_i(odd[2]);
  odd[3] = make_float2((odd[3].y - odd[3].x) * half_root, -(odd[3].x + odd[3].y) * half_root);
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    v[k] = add(even[k], odd[k]);
    v[k + 4] = sub(even[k], odd[k]);
  }
}

__device__ __forceinline__ float sum_over_warp(float value) {  // the same bits in every lane
#pragma unroll
  for (int distance = 16; distance; distance >>= 1) value += __shfl_xor_sync(0xffffffffu, value, distance);
  return value;
}

// ---- the FFT ----

__device__ __forceinline__ int padded(int k) { return k + (k >> 3); }

// The radices of the passes; their product is the number of complex points.
template <int kFft> struct Radices;
template <> struct Radices<256> { static constexpr int a = 4, b = 8, c = 4, d = 1; };
template <> struct Radices<512> { static constexpr int a = 8, b = 8, c = 4, d = 1; };
template <> struct Radices<1024> { static constexpr int a = 8, b = 8, c = 8, d = 1; };
template <> struct Radices<2048> { static constexpr int a = 8, b = 8, c = 4, d = 4; };

// Multiplies by the twiddles exp(-2 pi i i q / span) and puts the butterfly back, `stride` apart.
template <int kFft, int kSpan, int kRadix>
__device__ __forceinline__ void put_back(float2 (&v)[kRadix], float2* z, int base, int i, const float2* twiddle) {
  constexpr int kStride = kSpan / kRadix;
  z[padded(base)] = v[0];
#pragma unroll
  for (int q = 1; q < kRadix; ++q)
    z[padded(base + q * kStride)] = kStride == 1 ? v[q] : mul(v[q], __ldg(twiddle + i * q * (kFft / kSpan)));
}

template <int kFft, int kSpan, int kRadix>
__device__ __forceinline__ void pass(float2* z, const float2* twiddle, int lane) {
  constexpr int kStride = kSpan / kRadix;
#pragma unroll
  for (int butterfly = lane; butterfly < kFft / 2 / kRadix; butterfly += 32) {
    const int i = butterfly % kStride, base = butterfly / kStride * kSpan + i;
    float2 v[kRadix];
#pragma unroll
    for (int q = 0; q < kRadix; ++q) v[q] = z[padded(base + q * kStride)];
    dft(v);
    put_back<kFft, kSpan, kRadix>(v, z, base, i, twiddle);
  }
  __syncwarp();
}

// Where the passes leave frequency k.
template <int kFft>
__device__ __forceinline__ int place(int k) {
  using R = Radices<kFft>;
  constexpr int kPoints = kFft / 2;
  int at = k % R::a * (kPoints / R::a);
  k /= R::a;
  at += k % R::b * (kPoints / (R::a * R::b));
  k /= R::b;
  at += k % R::c * (kPoints / (R::a * R::b * R::c));
  if (R::d > 1) at += k / R::c;
  return padded(at);
}

// Complex point 32 j + lane in v[j] -> the FFT in z, digit-reversed.
template <int kFft>
__device__ __forceinline__ void fft(float2 (&v)[kFft / 64], float2* z, const float2* twiddle, int lane) {
  using R = Radices<kFft>;
  constexpr int kPoints = kFft / 2, kGroups = kPoints / 32 / R::a;
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
    float2 u[R::a];
#pragma unroll
    for (int q = 0; q < R::a; ++q) u[q] = v[group + kGroups * q];
    dft(u);
    const int i = lane + 32 * group;
    put_back<kFft, kPoints, R::a>(u, z, i, i, twiddle);
  }
  __syncwarp();
  pass<kFft, kPoints / R::a, R::b>(z, twiddle, lane);
  pass<kFft, kPoints / (R::a * R::b), R::c>(z, twiddle, lane);
  if constexpr (R::d > 1) pass<kFft, R::d, R::d>(z, twiddle, lane);
}

// ---- samples ----

__device__ __forceinline__ float sample_at(const void* samples, long long at, bool int16) {
  if (int16) return static_cast<float>(__ldg(static_cast<const short*>(samples) + at)) * (1.0f / 32768.0f);
  return __ldg(static_cast<const float*>(samples) + at);
}

// Reflects about the first and the last sample, as often as it takes (numpy's mode "reflect"). A loop, as a modulo
// for each of a lane's samples would be most of the kernel's code.
__device__ __forceinline__ long long reflected(long long at, long long total) {
  if (total == 1) return 0;
  while (at < 0 || at >= total) at = at < 0 ? -at : 2 * (total - 1) - at;
  return at;
}

// A whole signal.
struct Signal {
  const void* samples;
  long long total;
  int edges;
  bool int16;
  __device__ __forceinline__ float operator()(long long at) const {
    if (edges != kEdgesSnip && (at < 0 || at >= total)) {
      if (edges == kEdgesZero) return 0.0f;
      at = reflected(at, total);
    }
    return sample_at(samples, at, int16);
  }
};

// A stream: samples before the chunk from the ring, the others from the chunk. Beyond `total` only when it ends.
struct Stream {
  const float* ring;
  const void* chunk;
  long long chunk_start, total;
  int ring_mask, edges;
  bool int16;
  __device__ __forceinline__ float operator()(long long at) const {
    if (edges != kEdgesSnip && (at < 0 || at >= total)) {
      if (edges == kEdgesZero) return 0.0f;
      at = reflected(at, total);
    }
    return at < chunk_start ? ring[at & ring_mask] : sample_at(chunk, at - chunk_start, int16);
  }
};

__device__ __forceinline__ void store(void* out, long long at, float value, bool half_out) {
  if (half_out)
    static_cast<edgemm::half_t*>(out)[at] = edgemm::to_half(value);
  else
    static_cast<float*>(out)[at] = value;
}

// ---- a frame ----

template <int kFft>
struct WarpMemory {
  static constexpr int kPoints = kFft / 2;
  float2 z[kPoints + kPoints / 8];  // the FFT, then, as floats, the spectrum of kPoints + 1 bins
  float mel[kMaxMels];
};

// Features of the frame whose window starts at sample `start`, to out[at ...]. All lanes of a warp together.
template <int kFft, class Source>
__device__ __forceinline__ void make_frame(const LogMelPlan& p, const Source& sample, long long start,
                                           WarpMemory<kFft>& memory, int lane, void* out, long long at,
                                           bool half_out) {
  constexpr int kPoints = kFft / 2, kPerLane = kPoints / 32;
  // Into shared memory first: coalesced, in a loop that is not unrolled (edges take much code), and with neighbours at
  // hand for the pre-emphasis.
  float* const window_samples = reinterpret_cast<float*>(memory.z);
  float sum = 0.0f;
#pragma unroll 2
  for (int n = lane; n < p.window_samples; n += 32) {
    window_samples[n] = sample(start + n) * p.scale;
    sum += window_samples[n];
  }
  const float mean = p.remove_dc ? sum_over_warp(sum) / static_cast<float>(p.window_samples) : 0.0f;
  __syncwarp();
  float2 v[kPerLane];
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    const int n = 2 * (lane + 32 * j);
    v[j] = make_float2(0.0f, 0.0f);
    if (n >= p.window_samples) continue;
    const float x = window_samples[n] - mean;
    const float before = n ? window_samples[n - 1] - mean : x;  // the first sample is its own predecessor
    v[j].x = fmaf(-p.preemphasis, before, x) * __ldg(p.window + n);
    if (n + 1 < p.window_samples)
      v[j].y = fmaf(-p.preemphasis, x, window_samples[n + 1] - mean) * __ldg(p.window + n + 1);
  }
  __syncwarp();  // the FFT takes the place of the samples
  fft<kFft>(v, memory.z, p.twiddle, lane);

  // Z of the packed signal -> X of the real one: with E = (Z[k] + conj Z[M-k]) / 2, O = (Z[k] - conj Z[M-k]) / 2i,
  // X[k] = E + W^k O and X[M-k] = conj(E - W^k O). Bins k and M-k are made together, over the FFT's own memory.
  constexpr int kPairs = kPoints / 64 + 1;
  float2 bins[kPairs];
#pragma unroll
  for (int j = 0; j < kPairs; ++j) {
    const int k = lane + 32 * j;
    if (k > kPoints / 2) continue;
    const float2 a = memory.z[place<kFft>(k)], b = memory.z[place<kFft>((kPoints - k) % kPoints)];
    const float2 even = make_float2(0.5f * (a.x + b.x), 0.5f * (a.y - b.y));
    const float2 odd = mul(make_float2(0.5f * (a.y + b.y), 0.5f * (b.x - a.x)), __ldg(p.twiddle + k));
    const float2 low = add(even, odd), high = sub(even, odd);
    bins[j] = make_float2(fmaf(low.x, low.x, low.y * low.y), fmaf(high.x, high.x, high.y * high.y));
    if (p.magnitude) bins[j] = make_float2(sqrtf(bins[j].x), sqrtf(bins[j].y));
  }
  __syncwarp();
  float* spectrum = reinterpret_cast<float*>(memory.z);
#pragma unroll
  for (int j = 0; j < kPairs; ++j) {
    const int k = lane + 32 * j;
    if (k > kPoints / 2) continue;
    spectrum[k] = bins[j].x;
    if (k < kPoints / 2) spectrum[kPoints - k] = bins[j].y;
  }
  __syncwarp();

  for (int m = lane; m < p.n_mels; m += 32) {
    const int offset = __ldg(p.band_offset + m), count = __ldg(p.band_offset + m + 1) - offset;
    const float* bin = spectrum + __ldg(p.band_first + m);
    float energy = 0.0f;
    for (int k = 0; k < count; ++k) energy = fmaf(bin[k], __ldg(p.band_weight + offset + k), energy);
    if (p.take_log) energy = logf(energy < p.floor ? p.floor : energy) * p.log_gain;  // fmaxf would hide a NaN
    memory.mel[m] = (energy - p.mel_mean) * p.mel_inverse_std;
  }
  __syncwarp();

  for (int c = lane; c < p.n_features; c += 32) {
    float value;
    if (p.dct) {
      value = 0.0f;
      for (int m = 0; m < p.n_mels; ++m) value = fmaf(memory.mel[m], __ldg(p.dct + m * p.n_features + c), value);
    } else {
      value = memory.mel[c];
    }
    if (p.gain) value = (value - __ldg(p.shift + c)) * __ldg(p.gain + c);
    store(out, at + c, value, half_out);
  }
  // No barrier: in the warp's next frame others come before anything that is read here is written again.
}

// Where the window of a frame starts; below 0 for the first centred frames.
__device__ __forceinline__ long long frame_start(const LogMelPlan& p, int fft_size, long long frame) {
  const long long start = frame * p.hop_samples;
  return p.edges == kEdgesSnip ? start : start - fft_size / 2 + p.window_offset;
}

// Frames of a signal that has ended after `total` samples.
__device__ __forceinline__ long long frames_of(const LogMelPlan& p, long long total) {
  if (p.edges != kEdgesSnip) return total > 0 ? 1 + total / p.hop_samples : 0;
  return total < p.window_samples ? 0 : 1 + (total - p.window_samples) / p.hop_samples;
}

// Frames that no sample to come can change. A centred frame waits for the half FFT size after its middle, and
// one sample more: then the first frames, too, have all that they reflect.
__device__ __forceinline__ long long frames_settled(const LogMelPlan& p, int fft_size, long long total) {
  if (p.edges == kEdgesSnip) return frames_of(p, total);
  return total <= fft_size / 2 ? 0 : 1 + (total - 1 - fft_size / 2) / p.hop_samples;
}

// ---- after the frames ----

// Takes `value` into the sums over the last `cmvn_frames` frames and returns it normalised. The sums are in
// double, where float values and their squares add up without drift.
__device__ __forceinline__ float normalise(double& sum, double& squares, double value, double leaving, bool leaves,
                                           long long frame, int cmvn_frames, bool variance) {
  sum += value;
  squares += value * value;
  if (leaves) {
    sum -= leaving;
    squares -= leaving * leaving;
  }
  const double count = static_cast<double>(frame + 1 < cmvn_frames ? frame + 1 : cmvn_frames);
  const double mean = sum / count;
  double result = value - mean;
  if (variance) {
    const double spread = squares / count - mean * mean;
    result /= sqrt(spread > 1e-10 ? spread : 1e-10);
  }
  return static_cast<float>(result);
}

// One feature and its derivatives. Order 2 is the regression filter convolved with itself (Kaldi).
template <class Row>
__device__ __forceinline__ void put_deltas(const Row& row, long long frame, long long frames, int deltas, int n_features,
                                           int feature, void* out, long long at, bool half_out) {
  constexpr float kFirst[5] = {-0.2f, -0.1f, 0.0f, 0.1f, 0.2f};
  constexpr float kSecond[9] = {0.04f, 0.04f, 0.01f, -0.04f, -0.1f, -0.04f, 0.01f, 0.04f, 0.04f};
  const auto clamped = [&](long long t) { return row(t < 0 ? 0 : t >= frames ? frames - 1 : t); };
  store(out, at + feature, row(frame), half_out);
  if (deltas >= 1) {
    float value = 0.0f;
#pragma unroll
    for (int j = 0; j < 5; ++j) value = fmaf(kFirst[j], clamped(frame + j - kDeltaReach), value);
    store(out, at + n_features + feature, value, half_out);
  }
  if (deltas >= 2) {
    float value = 0.0f;
#pragma unroll
    for (int j = 0; j < 9; ++j) value = fmaf(kSecond[j], clamped(frame + j - 2 * kDeltaReach), value);
    store(out, at + 2 * n_features + feature, value, half_out);
  }
}

// ---- kernels ----

template <int kFft>
__device__ __forceinline__ void batch(const LogMelBatch& p) {
  EDGEMM_DYNAMIC_SHARED(raw);
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  WarpMemory<kFft>& memory = reinterpret_cast<WarpMemory<kFft>*>(raw)[warp];
  const int signal = blockIdx.y, frame = blockIdx.x * kWarps + warp;
  const int length = p.lengths ? min(max(__ldg(p.lengths + signal), 0), p.length) : p.length;
  const long long frames = frames_of(p.plan, length);
  if (p.out_frames && blockIdx.x == 0 && threadIdx.x == 0) p.out_frames[signal] = static_cast<int>(frames);
  if (frame >= p.max_frames) return;  // the whole warp: no barrier of the block follows
  const long long at = (static_cast<long long>(signal) * p.max_frames + frame) * p.plan.n_features;
  if (frame >= frames) {
    for (int c = lane; c < p.plan.n_features; c += 32) store(p.out, at + c, 0.0f, p.out_half);
    return;
  }
  const long long row = signal * p.stride;
  const void* samples = p.samples_int16 ? static_cast<const void*>(static_cast<const short*>(p.samples) + row)
                                        : static_cast<const void*>(static_cast<const float*>(p.samples) + row);
  const Signal source{samples, length, p.plan.edges, p.samples_int16 != 0};
  make_frame<kFft>(p.plan, source, frame_start(p.plan, kFft, frame), memory, lane, p.out, at, p.out_half);
}

// One block keeps one stream, so that a barrier of the block orders all that is read and written of its state.
template <int kFft>
__device__ __forceinline__ void stream(const LogMelStream& p) {
  EDGEMM_DYNAMIC_SHARED(raw);
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  WarpMemory<kFft>& memory = reinterpret_cast<WarpMemory<kFft>*>(raw)[warp];
  const long long id = blockIdx.x;
  const int features = p.plan.n_features;
  long long* counters = p.counters + 3 * id;
  const long long taken = counters[0], made = counters[1], handed_out = counters[2];
  const int count = p.chunk_lengths ? min(max(__ldg(p.chunk_lengths + id), 0), p.chunk_samples) : p.chunk_samples;
  const long long total = taken + count;
  const long long frames = p.flush ? frames_of(p.plan, total) : frames_settled(p.plan, kFft, total);

  float* ring = p.ring + id * (p.ring_mask + 1);
  const void* chunk = p.samples_int16
                          ? static_cast<const void*>(static_cast<const short*>(p.chunk) + id * p.chunk_stride)
                          : static_cast<const void*>(static_cast<const float*>(p.chunk) + id * p.chunk_stride);
  const Stream source{ring, chunk, taken, total, p.ring_mask, p.plan.edges, p.samples_int16 != 0};

  float* history = p.history ? p.history + id * (p.history_mask + 1) * features : nullptr;
  float* ready = p.ready ? p.ready + id * (p.ready_mask + 1) * features : nullptr;
  const long long out_row = id * p.max_frames;
  for (long long frame = made + warp; frame < frames; frame += kWarps) {
    void* rows = p.out;
    long long row = out_row + frame - made;
    if (history)
      rows = history, row = frame & p.history_mask;
    else if (ready)
      rows = ready, row = frame & p.ready_mask;
    else if (frame - made >= p.max_frames)
      break;
    make_frame<kFft>(p.plan, source, frame_start(p.plan, kFft, frame), memory, lane, rows, row * features,
                     rows == p.out && p.out_half);
  }
  // The ring holds the carried samples and a chunk, so these places are not those that frames are made from.
  for (int i = threadIdx.x; i < count; i += blockDim.x)
    ring[(taken + i) & p.ring_mask] = sample_at(chunk, i, p.samples_int16 != 0);
  __syncthreads();

  if (history) {
    for (int c = threadIdx.x; c < features; c += blockDim.x) {
      double* sums = p.sums + id * 2 * features + c;
      double sum = made ? sums[0] : 0.0, squares = made ? sums[features] : 0.0;
      for (long long frame = made; frame < frames; ++frame) {
        const bool leaves = frame >= p.cmvn_frames;
        const float leaving = leaves ? history[((frame - p.cmvn_frames) & p.history_mask) * features + c] : 0.0f;
        ready[(frame & p.ready_mask) * features + c] =
            normalise(sum, squares, history[(frame & p.history_mask) * features + c], leaving, leaves, frame,
                      p.cmvn_frames, p.cmvn_variance != 0);
      }
      sums[0] = sum;
      sums[features] = squares;
    }
    __syncthreads();
  }
  long long until = frames;
  if (ready) {
    if (!p.flush) until = frames - kDeltaReach * p.deltas;
    if (until < handed_out) until = handed_out;
    if (until > handed_out + p.max_frames) until = handed_out + p.max_frames;
    const int rows = static_cast<int>(until - handed_out);
    const auto width = static_cast<long long>(features) * (1 + p.deltas);
    for (int i = threadIdx.x; i < rows * features; i += blockDim.x) {
      const int row = i / features, c = i % features;
      put_deltas([&](long long t) { return ready[(t & p.ready_mask) * features + c]; }, handed_out + row, frames,
                 p.deltas, features, c, p.out, (out_row + row) * width, p.out_half);
    }
  }
  if (threadIdx.x == 0) {  // every thread has read the counters before the barrier above
    counters[0] = total;
    counters[1] = frames;
    counters[2] = until;
    p.out_frames[id] = static_cast<int>(until - handed_out);
  }
}

}  // namespace

// Streams that a multiprocessor is to hold: as many as its registers allow with nothing spilled (ptxas of CUDA 13.0).
template <int kFft>
struct Resident {
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ == 900 || __CUDA_ARCH__ < 750)
  static constexpr int kStreams = kFft == 2048 ? 2 : 5;
#else
  static constexpr int kStreams = kFft == 2048 ? 3 : 5;
#endif
};

#define EDGEMM_LOG_MEL_STREAM(N) \
  EDGEMM_KERNEL_RESIDENT(edgemm_log_mel_stream_##N, LogMelStream, kWarps * 32, Resident<N>::kStreams) { stream<N>(p); }
#define EDGEMM_LOG_MEL(N)                                                       \
  EDGEMM_KERNEL(edgemm_log_mel_##N, LogMelBatch, kWarps * 32) { batch<N>(p); }  \
  EDGEMM_LOG_MEL_STREAM(N)
// 12 blocks are every warp that a multiprocessor has: left to itself the compiler spills for more.
EDGEMM_KERNEL_RESIDENT(edgemm_log_mel_256, LogMelBatch, kWarps * 32, 12) { batch<256>(p); }
EDGEMM_LOG_MEL_STREAM(256)
EDGEMM_LOG_MEL(512)
EDGEMM_LOG_MEL(1024)
EDGEMM_LOG_MEL(2048)

EDGEMM_KERNEL(edgemm_sliding_cmvn, SlidingCmvn, 128) {
  const int c = blockIdx.x * blockDim.x + threadIdx.x, signal = blockIdx.y;
  if (c >= p.n_features) return;
  const long long base = static_cast<long long>(signal) * p.max_frames * p.n_features + c;
  const int frames = min(__ldg(p.frames + signal), p.max_frames);
  double sum = 0.0, squares = 0.0;
  for (int frame = 0; frame < p.max_frames; ++frame) {
    const long long at = base + static_cast<long long>(frame) * p.n_features;
    float value = 0.0f;
    if (frame < frames) {
      const bool leaves = frame >= p.cmvn_frames;
      const float leaving = leaves ? __ldg(p.in + at - static_cast<long long>(p.cmvn_frames) * p.n_features) : 0.0f;
      value = normalise(sum, squares, __ldg(p.in + at), leaving, leaves, frame, p.cmvn_frames, p.cmvn_variance != 0);
    }
    p.out[at] = value;
  }
}

EDGEMM_KERNEL(edgemm_deltas, Deltas, 128) {
  const long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= static_cast<long long>(p.max_frames) * p.n_features) return;
  const int frame = static_cast<int>(i / p.n_features), c = static_cast<int>(i % p.n_features), signal = blockIdx.y;
  const int frames = min(__ldg(p.frames + signal), p.max_frames);
  const float* in = p.in + static_cast<long long>(signal) * p.max_frames * p.n_features + c;
  const auto width = static_cast<long long>(p.n_features) * (1 + p.deltas);
  const long long at = (static_cast<long long>(signal) * p.max_frames + frame) * width;
  if (frame >= frames) {
    for (int order = 0; order <= p.deltas; ++order) store(p.out, at + order * p.n_features + c, 0.0f, p.out_half);
    return;
  }
  put_deltas([&](long long t) { return __ldg(in + t * p.n_features); }, frame, frames, p.deltas, p.n_features, c, p.out,
             at, p.out_half);
}
