// Camera frames to model input in one pass: crop, colour, resize, normalise, lay out. One thread an output pixel.
//
//   edgemm_frame_prep   grid (ceil(out_width / 32), ceil(out_height / 8), crops), block (32, 8). No shared memory.
//
// Every source pixel that is touched is first made RGB in 0..255 (clamped, not rounded), then weighted: that is
// what a model trained on RGB pictures has seen. Source positions are exact fractions in integers, so that a wide
// picture has no rounding in its coordinates. Compiled with --fmad=false and explicit fmaf: the emulator and
// the device round alike.
//
// Colour: ITU-R BT.601-7 and BT.709-6. Chroma is taken from the sample that covers the pixel (nearest), as OpenCV does.
#include "edgemm_cuda.cuh"

namespace {

enum Format { kNv12, kYuyv, kBgr, kRgb, kGray };
enum Resize { kBilinear, kArea, kNearest };
enum Fit { kStretch, kLetterbox, kCrop };
enum Color { kToRgb, kToBgr, kToGray };
enum Type { kFloat32, kFloat16, kUint8, kInt8 };

struct FramePrep {
  const unsigned char* plane;   // Y, or packed pixels: [height, pitch]
  const unsigned char* chroma;  // NV12: U and V in turn, [ceil(height / 2), chroma_pitch]; else unused
  const int4* crops;            // [crops] x, y, width, height, clipped to the frame here; null: the whole frame
  const int* crop_count;        // how many of `crops` hold; null: all. The others come out as bars
  void* out;                    // [crops, channels, out_height, out_width], or channels last
  long long pitch, chroma_pitch;
  int width, height, format;
  int out_width, out_height, resize, fit, color, channels_last, type;
  float luma_gain, luma_offset, red_v, green_u, green_v, blue_u;  // of 0..255 values; u and v less 128
  float gain[3], bias[3];       // (x * scale - mean) / std as x * gain + bias, per channel
  float bar[3];                 // the letterbox bars, before gain and bias
};

struct Region {
  int x, y, width, height;
};

__device__ __forceinline__ float to_pixel_range(float x) { return x < 0.0f ? 0.0f : x > 255.0f ? 255.0f : x; }

__device__ __forceinline__ float3 from_yuv(const FramePrep& p, int luma, int u, int v) {
  const float y = (static_cast<float>(luma) - p.luma_offset) * p.luma_gain;
  const float cb = static_cast<float>(u - 128), cr = static_cast<float>(v - 128);
  return make_float3(to_pixel_range(fmaf(p.red_v, cr, y)),
                     to_pixel_range(fmaf(p.green_u, cb, fmaf(p.green_v, cr, y))),
                     to_pixel_range(fmaf(p.blue_u, cb, y)));
}

// The source pixel as RGB.
__device__ __forceinline__ float3 pixel(const FramePrep& p, int x, int y) {
  const unsigned char* row = p.plane + y * p.pitch;
  if (p.format == kNv12) {
    const uchar2 uv = *reinterpret_cast<const uchar2*>(p.chroma + (y >> 1) * p.chroma_pitch + (x & ~1));
    return from_yuv(p, __ldg(row + x), uv.x, uv.y);
  }
  if (p.format == kYuyv) {
    const uchar4 pair = *reinterpret_cast<const uchar4*>(row + 2 * (x & ~1));
    return from_yuv(p, x & 1 ? pair.z : pair.x, pair.y, pair.w);
  }
  if (p.format == kGray) {
    const float gray = __ldg(row + x);
    return make_float3(gray, gray, gray);
  }
  const unsigned char* bytes = row + 3 * x;
  const float first = __ldg(bytes), green = __ldg(bytes + 1), last = __ldg(bytes + 2);
  return p.format == kRgb ? make_float3(first, green, last) : make_float3(last, green, first);
}

__device__ __forceinline__ void accumulate(float3& sum, float weight, float3 value) {
  sum.x = fmaf(weight, value.x, sum.x);
  sum.y = fmaf(weight, value.y, sum.y);
  sum.z = fmaf(weight, value.z, sum.z);
}

// Two neighbours and the weight of the second: position (at + 0.5) * size / out_size - 0.5, held inside.
struct Neighbours {
  int first, second;
  float weight;
};
__device__ __forceinline__ Neighbours neighbours(int at, int size, int out_size) {
  const int numerator = (2 * at + 1) * size - out_size, denominator = 2 * out_size;
  if (numerator < 0) return {0, 0, 0.0f};
  const int first = numerator / denominator;
  return {first, min(first + 1, size - 1),
          static_cast<float>(numerator - first * denominator) / static_cast<float>(denominator)};
}

// The source interval [at, at + 1) * size / out_size: its pixels, and how much of the first and the last it covers.
struct Span {
  int first, last;
  float first_weight, last_weight;
  __device__ __forceinline__ float weight(int i) const {
    return i == first ? first_weight : i == last ? last_weight : 1.0f;
  }
};
__device__ __forceinline__ Span span(int at, int size, int out_size) {
  const int begin = at * size, end = begin + size;
  const int first = begin / out_size, last = (end - 1) / out_size;
  const float unit = static_cast<float>(out_size);
  if (first == last) return {first, last, static_cast<float>(size) / unit, 0.0f};
  return {first, last, static_cast<float>((first + 1) * out_size - begin) / unit,
          static_cast<float>(end - last * out_size) / unit};
}

__device__ __forceinline__ float3 resized(const FramePrep& p, Region from, int x, int y, int out_width, int out_height) {
  if (p.resize == kNearest)
    return pixel(p, from.x + x * from.width / out_width, from.y + y * from.height / out_height);
  float3 sum = make_float3(0.0f, 0.0f, 0.0f);
  if (p.resize == kArea) {
    const Span across = span(x, from.width, out_width), down = span(y, from.height, out_height);
    for (int j = down.first; j <= down.last; ++j)
      for (int i = across.first; i <= across.last; ++i)
        accumulate(sum, across.weight(i) * down.weight(j), pixel(p, from.x + i, from.y + j));
    const float area = static_cast<float>(from.width) / static_cast<float>(out_width) *
                       (static_cast<float>(from.height) / static_cast<float>(out_height));
    return make_float3(sum.x / area, sum.y / area, sum.z / area);
  }
  const Neighbours across = neighbours(x, from.width, out_width), down = neighbours(y, from.height, out_height);
  const float top = 1.0f - down.weight, left = 1.0f - across.weight;
  accumulate(sum, top * left, pixel(p, from.x + across.first, from.y + down.first));
  accumulate(sum, top * across.weight, pixel(p, from.x + across.second, from.y + down.first));
  accumulate(sum, down.weight * left, pixel(p, from.x + across.first, from.y + down.second));
  accumulate(sum, down.weight * across.weight, pixel(p, from.x + across.second, from.y + down.second));
  return sum;
}

// a * b / c, rounded to the nearest, halves up, at least 1.
__device__ __forceinline__ int scaled(int a, int b, int c) { return max(1, (2 * a * b + c) / (2 * c)); }

__device__ __forceinline__ int inside(long long at, int low, int high) {
  return static_cast<int>(at < low ? low : at > high ? high : at);
}

// A detector may hand over anything: no crop reaches outside the frame.
__device__ __forceinline__ Region clipped(const FramePrep& p, int4 crop) {
  const int left = inside(crop.x, 0, p.width), top = inside(crop.y, 0, p.height);
  const int right = inside(static_cast<long long>(crop.x) + crop.z, left, p.width);
  const int bottom = inside(static_cast<long long>(crop.y) + crop.w, top, p.height);
  return {left, top, right - left, bottom - top};
}

__device__ __forceinline__ void put(const FramePrep& p, long long at, float value) {
  if (p.type == kFloat32)
    static_cast<float*>(p.out)[at] = value;
  else if (p.type == kFloat16)
    static_cast<edgemm::half_t*>(p.out)[at] = edgemm::to_half(value);
  else if (p.type == kUint8)
    static_cast<unsigned char*>(p.out)[at] = static_cast<unsigned char>(min(max(__float2int_rn(value), 0), 255));
  else
    static_cast<signed char*>(p.out)[at] = static_cast<signed char>(min(max(__float2int_rn(value), -128), 127));
}

}  // namespace

EDGEMM_KERNEL(edgemm_frame_prep, FramePrep, 256) {
  const int x = blockIdx.x * 32 + threadIdx.x, y = blockIdx.y * 8 + threadIdx.y, crop = blockIdx.z;
  if (x >= p.out_width || y >= p.out_height) return;

  Region from{0, 0, p.width, p.height};
  if (p.crops) from = clipped(p, __ldg(p.crops + crop));
  const bool empty = from.width == 0 || from.height == 0 || (p.crop_count && crop >= __ldg(p.crop_count));
  Region to{0, 0, p.out_width, p.out_height};
  if (!empty && p.fit != kStretch) {
    // Which side limits: compare width / out_width with height / out_height.
    const bool wide = from.width * p.out_height >= from.height * p.out_width;
    if (p.fit == kLetterbox) {
      if (wide)
        to.height = min(p.out_height, scaled(from.height, p.out_width, from.width));
      else
        to.width = min(p.out_width, scaled(from.width, p.out_height, from.height));
      to.x = (p.out_width - to.width) / 2;
      to.y = (p.out_height - to.height) / 2;
    } else {
      Region cut = from;
      if (wide)
        cut.width = min(from.width, scaled(from.height, p.out_width, p.out_height));
      else
        cut.height = min(from.height, scaled(from.width, p.out_height, p.out_width));
      cut.x += (from.width - cut.width) / 2;
      cut.y += (from.height - cut.height) / 2;
      from = cut;
    }
  }

  float value[3] = {p.bar[0], p.bar[1], p.bar[2]};
  const bool pictured = x >= to.x && x < to.x + to.width && y >= to.y && y < to.y + to.height;
  if (!empty && pictured) {
    const float3 rgb = resized(p, from, x - to.x, y - to.y, to.width, to.height);
    value[0] = p.color == kToBgr ? rgb.z : rgb.x;
    value[1] = rgb.y;
    value[2] = p.color == kToBgr ? rgb.x : rgb.z;
    if (p.color == kToGray && p.format != kGray)  // BT.601 luma; a gray picture stays exactly as it is
      value[0] = fmaf(0.299f, rgb.x, fmaf(0.587f, rgb.y, 0.114f * rgb.z));
  }
  const int channels = p.color == kToGray ? 1 : 3;
  const long long plane = static_cast<long long>(p.out_width) * p.out_height;
  const long long at = static_cast<long long>(y) * p.out_width + x, image = crop * plane * channels;
#pragma unroll
  for (int c = 0; c < 3; ++c)
    if (c < channels)
      put(p, p.channels_last ? image + at * channels + c : image + c * plane + at, fmaf(value[c], p.gain[c], p.bias[c]));
}
