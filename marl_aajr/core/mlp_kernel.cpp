// Multilayer perceptrons in single precision: outputs, derivatives by weights, by inputs and along a direction, and a
// whole inner maximisation. `marl_aajr.core.mlp_kernel` compiles this file for the machine at hand, and calls it.

#include "mlp_layers.h"

// The first of the largest but `barred`; of a row with NaN, the first NaN.
INLINE size best(const float *z, size n, size barred) {
    size found = barred == 0;
    for (size a = found + 1; a < n; a++)
        if (a != barred && (z[a] > z[found] || (z[a] != z[a] && z[found] == z[found]))) found = a;
    return found;
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
        block_forward(w, std::min<size>(n - r, BLOCK), x + r * net->widths[0], net->widths[0], places,
                      out + r * net->widths[net->layers]);
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
            block_back(w, l, rows, d, ld, seen, to, width);
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
        block_forward(w, rows, x + r * net->widths[0], net->widths[0], places, out + r * net->widths[net->layers]);
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

// K steps of ascent by signs on the margin of the action a* that is greedy at x [n, d], max_{a != a*} z_a - z_a*, within
// a ball of its own radius around each row: delta [n, d] from 0, the outputs at x, and the margins [K, n] before each
// step. Of each step, deltas and gradients [K, n, d] are where it began, unless they are null.
void climb(const Network *net, float *packed, std::int64_t n, const float *x, const float *radii, const float *sizes,
           std::int64_t steps, float *delta, float *out, float *margins, float *deltas, float *gradients) {
    const Layout w(*net, packed);
    const size in = net->widths[0], wide = padded(in), count = net->widths[net->layers], layers = net->layers;
    memory.clear((layers + 4) * (BLOCK * w.widest + 16));
    float *hidden[MOST_LAYERS], *place[2], *at_x = memory.take(BLOCK * w.widest), *y = memory.take(BLOCK * w.widest);
    for (size l = 0; l + 1 < layers; l++) hidden[l] = memory.take(BLOCK * w.widest);
    for (auto &p : place) p = memory.take(BLOCK * w.widest);
    for (size r = 0; r < n; r += BLOCK) {
        const size rows = std::min<size>(n - r, BLOCK);
        size greedy[BLOCK];
        std::fill_n(delta + r * in, rows * in, 0.f);
        for (size t = 0; t < steps; t++) {
            for (size i = 0; i < rows; i++)
                for (size j = 0; j < in; j++) at_x[i * in + j] = x[(r + i) * in + j] + delta[(r + i) * in + j];
            block_forward(w, rows, at_x, in, hidden, y);
            if (t == 0) {
                std::copy_n(y, rows * count, out + r * count);
                for (size i = 0; i < rows; i++) greedy[i] = best(y + i * count, count, -1);
            }
            for (size i = 0; i < rows; i++) {
                float *z = y + i * count;
                const size next = best(z, count, greedy[i]);
                margins[t * n + r + i] = z[next] - z[greedy[i]];
                std::fill_n(z, count, 0.f);
                z[next] = 1.f, z[greedy[i]] = -1.f;
            }
            const float *d = y;
            size ld = count;
            for (size l = layers - 1; l >= 0; l--) {
                block_back(w, l, rows, d, ld, l ? hidden[l - 1] : nullptr, place[l & 1], padded(net->widths[l]));
                d = place[l & 1], ld = padded(net->widths[l]);
            }
            const size begun = (t * n + r) * in;
            if (deltas) std::copy_n(delta + r * in, rows * in, deltas + begun);
            for (size i = 0; i < rows; i++)
                for (size j = 0; j < in; j++) {
                    const float g = d[i * wide + j], radius = radii[r + i];
                    float &moved = delta[(r + i) * in + j];
                    if (gradients) gradients[begun + i * in + j] = g;
                    const float to = moved + sizes[r + i] * (g > 0.f ? 1.f : g < 0.f ? -1.f : g);
                    moved = to > radius ? radius : to < -radius ? -radius : to;
                }
        }
    }
}
}
