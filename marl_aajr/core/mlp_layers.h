// Layers of multilayer perceptrons in single precision, block of rows by block of rows.
//
// Rows go through all layers in blocks that stay in the cache. Within a block every step is a product of matrices,
// made of tiles whose sums stay in registers, and a pass of the activation or its derivative over what is still near.
// Each output is summed over k = 0, 1, ... in this order, whatever rows stand beside it. Matrices are row-major; their
// widths are padded to whole vectors where they are the kernel's own.

#pragma once

#include <cstdlib>
#include <type_traits>

#include "vectors.h"

#if defined(__AVX512F__)
constexpr int ROWS = 6, VECS = 4;  // of a tile: 24 sums in 32 registers
#elif defined(__AVX__)
constexpr int ROWS = 6, VECS = 2;  // 12 in 16
#else
constexpr int ROWS = 6, VECS = 3;
#endif
constexpr int MOST_LAYERS = 16;
constexpr int BLOCK = 96;  // rows: with 64 units, a layer's outputs and their gradients are 48 KB

enum Activation : std::int32_t { IDENTITY, TANH, RELU };

struct Network {
    std::int64_t layers;
    const std::int64_t *widths;      // layers + 1
    const std::int32_t *activations; // layers; the last is IDENTITY
    const float *const *weights;     // [out, in] each
    const float *const *biases;      // null where there is none
};

// Activations and their derivatives are passes of their own over a block, in place: within the loops of a tile they would
// need its registers.
APART void activate(std::int32_t activation, float *y, size n) {
    if (activation == TANH)
        for (size i = 0; i < n; i += LANES) at(y + i) = tanh_of(at(y + i));
    else if (activation == RELU)
        for (size i = 0; i < n; i += LANES) at(y + i) = at(y + i) < all(0.f) ? all(0.f) : at(y + i);
}

// d = activation'(.) d, from its output h.
APART void derive(std::int32_t activation, float *d, const float *h, size n) {
    if (activation == TANH)
        for (size i = 0; i < n; i += LANES) at(d + i) = at(d + i) * (all(1.f) - at(h + i) * at(h + i));
    else if (activation == RELU)
        for (size i = 0; i < n; i += LANES) at(d + i) = at(h + i) > all(0.f) ? at(d + i) : all(0.f);
}

// The same for a tangent t and the gradients d by h and e by t. The second derivative of tanh is -2 h tanh', and t holds
// tanh' already.
APART void derive_twice(std::int32_t activation, float *d, float *e, const float *t, const float *h, size n) {
    derive(activation, d, h, n);
    if (activation == TANH)
        for (size i = 0; i < n; i += LANES) at(d + i) -= all(2.f) * at(e + i) * at(t + i) * at(h + i);
    derive(activation, e, h, n);
}

// c[r][j] = start[j] + sum_k a[r * ar + k * ak] b[k][j] for rows x (vecs * LANES), of which `width` columns are stored;
// without a start, the sum is added to c.
template <int rows, int vecs>
INLINE void tile(size depth, const float *a, size ar, size ak, const float *b, size ldb, float *c, size ldc,
                 const float *start, size width) {
    vec sum[rows][vecs];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vecs; v++) sum[r][v] = start ? at(start + v * LANES) : all(0.f);
    for (size k = 0; k < depth; k++) {
        vec read[vecs];
        for (int v = 0; v < vecs; v++) read[v] = at(b + k * ldb + v * LANES);
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < vecs; v++) sum[r][v] += a[r * ar + k * ak] * read[v];
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vecs; v++) {
            float *to = c + r * ldc + v * LANES;
            const size left = width - v * LANES;
            if (left < LANES)
                for (size i = 0; i < left; i++) to[i] = start ? sum[r][v][i] : to[i] + sum[r][v][i];
            else
                at(to) = start ? sum[r][v] : at(to) + sum[r][v];
        }
}

template <int vecs, typename... Rest> INLINE void tile_of(size rows, Rest... rest) {
    static_assert(ROWS == 6);
    switch (rows) {
        case 1: return tile<1, vecs>(rest...);
        case 2: return tile<2, vecs>(rest...);
        case 3: return tile<3, vecs>(rest...);
        case 4: return tile<4, vecs>(rest...);
        case 5: return tile<5, vecs>(rest...);
        default: return tile<6, vecs>(rest...);
    }
}

// As `tile`, for m x n. Vectors of b are whole, and those of c where n is.
APART void product(size m, size n, size depth, const float *a, size ar, size ak, const float *b, size ldb, float *c,
                   size ldc, const float *start) {
    for (size j = 0; j < n; j += VECS * LANES)
        for (size r = 0; r < m; r += ROWS) {
            const size rows = std::min<size>(m - r, ROWS), vecs = std::min<size>((n - j + LANES - 1) / LANES, VECS);
            auto make = [&](auto count) {
                tile_of<decltype(count)::value>(rows, depth, a + r * ar, ar, ak, b + j, ldb, c + r * ldc + j, ldc,
                                                start ? start + j : nullptr, n - j);
            };
            if (vecs == 4) make(std::integral_constant<int, std::min(4, VECS)>());
            else if (vecs == 3) make(std::integral_constant<int, std::min(3, VECS)>());
            else if (vecs == 2) make(std::integral_constant<int, 2>());
            else make(std::integral_constant<int, 1>());
        }
}

// Memory of this thread, aligned to cache lines; what was there is lost when more is asked for.
struct Memory {
    float *start = nullptr;
    size length = 0, used = 0;
    ~Memory() { std::free(start); }
    void clear(size floats) {
        used = 0;
        if (floats <= length) return;
        std::free(start);
        length = floats;
        start = static_cast<float *>(std::aligned_alloc(64, (floats * sizeof(float) + 63) / 64 * 64));
    }
    float *take(size floats) {
        float *part = start + used;
        used += (floats + 15) / 16 * 16;
        return part;
    }
};
static thread_local Memory memory;

// Weights laid out for the products, in a buffer of the caller: [in, padded out] with biases, and [out, padded in]; and zeros.
struct Layout {
    const Network &net;
    size widest = 0;
    float *across[MOST_LAYERS], *biases[MOST_LAYERS], *back[MOST_LAYERS], *zeros, *end;

    Layout(const Network &network, float *buffer) : net(network) {
        for (size l = 0; l < net.layers; l++) {
            const size in = net.widths[l], out = net.widths[l + 1];
            widest = std::max({widest, padded(in), padded(out)});
            across[l] = buffer, buffer += in * padded(out);
            biases[l] = buffer, buffer += padded(out);
            back[l] = buffer, buffer += out * padded(in);
        }
        zeros = buffer, end = buffer + widest;
    }
};

// Places of the outputs of all layers but the last, [rows, padded width] each, in a buffer of the caller.
struct Hidden {
    float *outputs[MOST_LAYERS];

    Hidden(const Network &net, size rows, float *buffer) {
        for (size l = 0; l + 1 < net.layers; l++) {
            outputs[l] = buffer;
            buffer += rows * padded(net.widths[l + 1]);
        }
    }
};

// Outputs of one block of rows of x [rows, ld]; hidden[l] are those of its layers.
INLINE void block_forward(const Layout &w, size rows, const float *x, size ld, float *const *hidden, float *out) {
    const Network &net = w.net;
    const float *in = x;
    for (size l = 0; l < net.layers; l++) {
        const bool last = l + 1 == net.layers;
        const size width = last ? net.widths[l + 1] : padded(net.widths[l + 1]);
        float *to = last ? out : hidden[l];
        product(rows, width, net.widths[l], in, ld, 1, w.across[l], padded(net.widths[l + 1]), to, width, w.biases[l]);
        if (!last) activate(net.activations[l], to, rows * width);
        in = to, ld = width;
    }
}

// Of one block of rows: the gradient by what layer l read, `seen`, from that by what it gave, d [rows, ld].
INLINE void block_back(const Layout &w, size l, size rows, const float *d, size ld, const float *seen, float *to, size width) {
    const size stride = padded(w.net.widths[l]);
    product(rows, width, w.net.widths[l + 1], d, ld, 1, w.back[l], stride, to, width, w.zeros);
    if (l) derive(w.net.activations[l - 1], to, seen, rows * stride);
}

// Rows of x in whole vectors.
INLINE const float *widened(const float *x, size rows, size width, float *to) {
    const size ld = padded(width);
    if (ld == width) return x;
    for (size r = 0; r < rows; r++) {
        std::copy_n(x + r * width, width, to + r * ld);
        std::fill(to + r * ld + width, to + (r + 1) * ld, 0.f);
    }
    return to;
}

INLINE void add_rows(const float *d, size rows, size width, size ld, float *to) {
    for (size r = 0; r < rows; r++)
        for (size j = 0; j < width; j++) to[j] += d[r * ld + j];
}

INLINE void clear(const Network &net, float *const *by_weights, float *const *by_biases) {
    for (size l = 0; l < net.layers; l++) {
        std::fill_n(by_weights[l], net.widths[l] * net.widths[l + 1], 0.f);
        if (by_biases[l]) std::fill_n(by_biases[l], net.widths[l + 1], 0.f);
    }
}
