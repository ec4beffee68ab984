// Vectors of floats, as wide as the processor's, and functions of them that pass NaN on.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

using size = std::ptrdiff_t;
typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef std::int32_t ivec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline))
#define APART static __attribute__((noinline))

INLINE vec all(float x) { return x - vec{}; }
INLINE const vec &at(const float *p) { return *(const vec *)p; }
INLINE vec &at(float *p) { return *(vec *)p; }
constexpr size padded(size n) { return (n + LANES - 1) / LANES * LANES; }

// e^x = 2^k e^r with a whole k, |r| <= ln 2 / 2; within 2^-126 and 2^126.
INLINE vec exp_of(vec x) {
    x = x > all(87.f) ? all(87.f) : x;
    x = x < all(-87.f) ? all(-87.f) : x;
    const vec shift = all(12582912.f);  // 1.5 * 2^23: what is added to it is rounded to a whole number
    const vec near = x * all(1.44269504f) + shift, k = near - shift;
    const vec r = x - k * all(0.693145752f) - k * all(1.42860677e-6f);
    vec p = all(1.f / 720.f);
    p = p * r + all(1.f / 120.f);
    p = p * r + all(1.f / 24.f);
    p = p * r + all(1.f / 6.f);
    p = p * r + all(0.5f);
    p = p * r + all(1.f);
    p = p * r + all(1.f);
    return (vec)((ivec)p + (((ivec)near - (ivec)shift) << 23));
}

INLINE vec tanh_of(vec x) { return all(1.f) - all(2.f) / (all(1.f) + exp_of(x + x)); }
