// Multilayer perceptrons in single precision: outputs, and derivatives by weights, by inputs and along a direction.
//
// Rows go through all layers in blocks that stay in the cache. Within a block every step is a product of matrices,
// made of tiles whose sums stay in registers, and a pass of the activation or its derivative over what is still near.
// Each output is summed over k = 0, 1, ... in this order, whatever rows stand beside it.
//
// `marl_aajr.core.mlp_kernel` compiles this file for the machine at hand, and calls it. Matrices are row-major; their
// widths are padded to whole vectors where they are the kernel's own.

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

// Outputs of one block of rows; hidden[l] are those of its layers.
INLINE void block_forward(const Layout &w, size rows, const float *x, float *const *hidden, float *out) {
    const Network &net = w.net;
    const float *in = x;
    size ld = net.widths[0];
    for (size l = 0; l < net.layers; l++) {
        const bool last = l + 1 == net.layers;
        const size width = last ? net.widths[l + 1] : padded(net.widths[l + 1]);
        float *to = last ? out : hidden[l];
        product(rows, width, net.widths[l], in, ld, 1, w.across[l], padded(net.widths[l + 1]), to, width, w.biases[l]);
        if (!last) activate(net.activations[l], to, rows * width);
        in = to, ld = width;
    }
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

extern "C" {

// Floats of the buffer of `pack`, and of the hidden outputs of one row.
std::int64_t packed_floats(const Network *net) { return Layout(*net, nullptr).end - (float *)nullptr; }
std::int64_t hidden_floats(const Network *net) {
    size floats = 0;
    for (size l = 1; l < net->layers; l++) floats += padded(net->widths[l]);
    return floats;
}

// Lay out the weights as they are now.
void pack(const Network *net, float *buffer) {
    const Layout to(*net, buffer);
    for (size l = 0; l < net->layers; l++) {
        const size in = net->widths[l], out = net->widths[l + 1];
        const float *weight = net->weights[l];
        for (size k = 0; k < in; k++) {
            float *row = to.across[l] + k * padded(out);
            for (size j = 0; j < out; j++) row[j] = weight[j * in + k];
            std::fill(row + out, row + padded(out), 0.f);
        }
        for (size j = 0; j < out; j++) {
            float *row = to.back[l] + j * padded(in);
            std::copy_n(weight + j * in, in, row);
            std::fill(row + in, row + padded(in), 0.f);
        }
        std::fill_n(to.biases[l], padded(out), 0.f);
        if (net->biases[l]) std::copy_n(net->biases[l], out, to.biases[l]);
    }
    std::fill_n(to.zeros, to.widest, 0.f);
}

// out [n, m] of x [n, d]; hidden outputs are kept in `hidden` unless it is null.
void forward(const Network *net, float *packed, std::int64_t n, const float *x, float *out, float *hidden) {
    const Layout w(*net, packed);
    const Hidden kept(*net, n, hidden);
    memory.clear(net->layers * (BLOCK * w.widest + 16));
    float *places[MOST_LAYERS];
    for (size l = 0; l + 1 < net->layers; l++) places[l] = hidden ? nullptr : memory.take(BLOCK * w.widest);
    for (size r = 0; r < n; r += BLOCK) {
        for (size l = 0; hidden && l + 1 < net->layers; l++)
            places[l] = kept.outputs[l] + r * padded(net->widths[l + 1]);
        block_forward(w, std::min<size>(n - r, BLOCK), x + r * net->widths[0], places, out + r * net->widths[net->layers]);
    }
}

// From the gradient by the outputs, delta [n, m]: those by weights and biases, unless `by_weights` is null, and by
// x [n, d], unless `by_x` is. Null biases get none.
void backward(const Network *net, float *packed, std::int64_t n, const float *x, float *hidden, const float *delta,
              float *const *by_weights, float *const *by_biases, float *by_x) {
    const Layout w(*net, packed);
    const Hidden kept(*net, n, hidden);
    if (by_weights) clear(*net, by_weights, by_biases);
    memory.clear(3 * (BLOCK * w.widest + 16));
    float *place[2] = {memory.take(BLOCK * w.widest), memory.take(BLOCK * w.widest)}, *wide = memory.take(BLOCK * w.widest);
    for (size r = 0; r < n; r += BLOCK) {
        const size rows = std::min<size>(n - r, BLOCK);
        size ld = net->widths[net->layers];
        const float *d = delta + r * ld;
        for (size l = net->layers - 1; l >= 0; l--) {
            const size in = net->widths[l], out = net->widths[l + 1], stride = padded(in);
            const float *seen = l ? kept.outputs[l - 1] + r * stride : x + r * in;
            if (by_weights) {
                const float *whole = l ? seen : widened(seen, rows, in, wide);
                product(out, in, rows, d, 1, ld, whole, stride, by_weights[l], in, nullptr);
                if (by_biases[l]) add_rows(d, rows, out, ld, by_biases[l]);
            }
            if (!l && !by_x) break;
            float *to = l ? place[l & 1] : by_x + r * in;
            const size width = l ? stride : in;
            product(rows, width, out, d, ld, 1, w.back[l], stride, to, width, w.zeros);
            if (l) derive(net->activations[l - 1], to, seen, rows * stride);
            d = to, ld = stride;
        }
    }
}

// f(x) and J(x) u of x [n, d] and u [n, d]: out and along [n, m]; what the layers read is kept in hidden and tangents.
void push(const Network *net, float *packed, std::int64_t n, const float *x, const float *u, float *out, float *along,
          float *hidden, float *tangents) {
    const Layout w(*net, packed);
    const Hidden values(*net, n, hidden), directions(*net, n, tangents);
    float *places[MOST_LAYERS];
    for (size r = 0; r < n; r += BLOCK) {
        const size rows = std::min<size>(n - r, BLOCK);
        for (size l = 0; l + 1 < net->layers; l++) places[l] = values.outputs[l] + r * padded(net->widths[l + 1]);
        block_forward(w, rows, x + r * net->widths[0], places, out + r * net->widths[net->layers]);
        const float *t = u + r * net->widths[0];
        size ld = net->widths[0];
        for (size l = 0; l < net->layers; l++) {
            const bool last = l + 1 == net->layers;
            const size stride = padded(net->widths[l + 1]), width = last ? net->widths[l + 1] : stride;
            float *to = last ? along + r * width : directions.outputs[l] + r * stride;
            product(rows, width, net->widths[l], t, ld, 1, w.across[l], stride, to, width, w.zeros);
            if (!last) derive(net->activations[l], to, places[l], rows * stride);
            t = to, ld = width;
        }
    }
}

// From the gradients by out and along, those of `backward`, and by u.
void pull(const Network *net, float *packed, std::int64_t n, const float *x, const float *u, float *hidden, float *tangents,
          const float *by_out, const float *by_along, float *const *by_weights, float *const *by_biases, float *by_x,
          float *by_u) {
    const Layout w(*net, packed);
    const Hidden values(*net, n, hidden), directions(*net, n, tangents);
    clear(*net, by_weights, by_biases);
    memory.clear(5 * (BLOCK * w.widest + 16));
    float *place[4], *wide;
    for (auto &p : place) p = memory.take(BLOCK * w.widest);
    wide = memory.take(BLOCK * w.widest);
    for (size r = 0; r < n; r += BLOCK) {
        const size rows = std::min<size>(n - r, BLOCK);
        size ld = net->widths[net->layers];
        const float *d = by_out + r * ld, *e = by_along + r * ld;
        for (size l = net->layers - 1; l >= 0; l--) {
            const size in = net->widths[l], out = net->widths[l + 1], stride = padded(in);
            const float *h = l ? values.outputs[l - 1] + r * stride : x + r * in;
            const float *t = l ? directions.outputs[l - 1] + r * stride : u + r * in;
            product(out, in, rows, d, 1, ld, l ? h : widened(h, rows, in, wide), stride, by_weights[l], in, nullptr);
            product(out, in, rows, e, 1, ld, l ? t : widened(t, rows, in, wide), stride, by_weights[l], in, nullptr);
            if (by_biases[l]) add_rows(d, rows, out, ld, by_biases[l]);
            if (!l && !by_x) break;
            float *to_d = l ? place[l & 1] : by_x + r * in, *to_e = l ? place[2 + (l & 1)] : by_u + r * in;
            const size width = l ? stride : in;
            product(rows, width, out, d, ld, 1, w.back[l], stride, to_d, width, w.zeros);
            product(rows, width, out, e, ld, 1, w.back[l], stride, to_e, width, w.zeros);
            if (l) derive_twice(net->activations[l - 1], to_d, to_e, t, h, rows * stride);
            d = to_d, e = to_e, ld = stride;
        }
    }
}
}
