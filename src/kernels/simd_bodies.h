// Not a header of its own: kernels/for_each_isa.h includes it in a struct per instruction set.
// Sixteen floats at a time (g++ vector types). Sums are per lane and then over lanes in a fixed tree, so
// the set does not change them. Storage types are float and bf16; arithmetic is fp32.

static constexpr int64_t kLanes = 16;
typedef float Vec __attribute__((vector_size(64)));
typedef int32_t IntVec __attribute__((vector_size(64)));
typedef uint32_t UintVec __attribute__((vector_size(64)));
typedef uint16_t HalfVec __attribute__((vector_size(32)));

template <typename To, typename From>
MANIPLE_INLINE static To bits_as(From x) {
  return (To)x;  // between vectors of one size: the bits
}

MANIPLE_INLINE static HalfVec bf16_bits(Vec x) {
  const UintVec bits = bits_as<UintVec>(x);
  const UintVec rounded = bits + 0x7fff + ((bits >> 16) & 1);
  return __builtin_convertvector((x != x ? bits | 0x400000 : rounded) >> 16, HalfVec);
}

MANIPLE_INLINE static Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
MANIPLE_INLINE static Vec load(const bf16_t* p) {
  HalfVec h;
  std::memcpy(&h, p, sizeof h);
  return bits_as<Vec>(__builtin_convertvector(h, UintVec) << 16);
}
MANIPLE_INLINE static void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }
MANIPLE_INLINE static void store(bf16_t* p, Vec v) {
  const HalfVec h = bf16_bits(v);
  std::memcpy(p, &h, sizeof h);
}
// The first n < kLanes elements; the other lanes are 0.
template <typename T>
MANIPLE_INLINE static Vec load_part(const T* p, int64_t n) {
  T part[kLanes] = {};
  std::memcpy(part, p, n * sizeof(T));
  return load(part);
}
template <typename T>
MANIPLE_INLINE static void store_part(T* p, Vec v, int64_t n) {
  T part[kLanes];
  store(part, v);
  std::memcpy(p, part, n * sizeof(T));
}
template <typename T>
MANIPLE_INLINE static Vec load_upto(const T* p, int64_t n) {
  return n >= kLanes ? load(p) : load_part(p, n);
}
template <typename T>
MANIPLE_INLINE static void store_upto(T* p, Vec v, int64_t n) {
  n >= kLanes ? store(p, v) : store_part(p, v, n);
}

// x rounded to the storage type and back.
template <typename T>
MANIPLE_INLINE static Vec rounded_to(Vec x) {
  if constexpr (sizeof(T) == 2)
    return bits_as<Vec>(__builtin_convertvector(bf16_bits(x), UintVec) << 16);
  else
    return x;
}

MANIPLE_INLINE static Vec splat(float x) { return x - Vec{}; }

MANIPLE_INLINE static float sum_of(Vec v) {
  float lane[kLanes];
  std::memcpy(lane, &v, sizeof lane);
  for (int64_t half = kLanes / 2; half > 0; half /= 2)
    for (int64_t l = 0; l < half; ++l) lane[l] += lane[l + half];
  return lane[0];
}
MANIPLE_INLINE static Vec max_of(Vec a, Vec b) { return a > b ? a : b; }
MANIPLE_INLINE static Vec min_of(Vec a, Vec b) { return a < b ? a : b; }
MANIPLE_INLINE static float max_of(Vec v) {
  float lane[kLanes];
  std::memcpy(lane, &v, sizeof lane);
  float top = lane[0];
  for (int64_t l = 1; l < kLanes; ++l) top = lane[l] > top ? lane[l] : top;
  return top;
}

// e^x to 1.5 ulp for x in [-87, 88], 0 below, clamped above; NaN stays NaN. Cody and Waite's
// reduction to |r| <= ln 2 / 2, then the Taylor polynomial of degree 7.
MANIPLE_INLINE static Vec exp_of(Vec x) {
  const Vec clamped = x != x ? x : min_of(max_of(x, splat(-87.3f)), splat(88.3f));
  const Vec magic = splat(0x1.8p23f);  // adding it rounds to an integer
  const Vec shifted = clamped * 1.44269504f + magic;
  const Vec n = shifted - magic;
  const Vec r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;
  Vec p = splat(1.0f / 5040);
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r * r + r + 1.0f;
  const IntVec exponent = bits_as<IntVec>(shifted) << 23;  // the magic's low bits hold n
  const Vec y = bits_as<Vec>(bits_as<IntVec>(p) + exponent);
  return x < -87.3f ? Vec{} : y;
}
