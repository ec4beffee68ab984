// PPO's loss of one discrete action, and its gradient by the logits and the values, row by row.

#include "vectors.h"

namespace {

// log x of x >= 1: 2^k m with m between sqrt(1/2) and sqrt(2), log m = 2 artanh((m - 1) / (m + 1)).
INLINE vec log_of(vec x) {
    const ivec bits = (ivec)x, half = ivec{} + 0x3f3504f3;  // of sqrt(1/2)
    const ivec k = (bits - half) >> 23;
    const vec m = (vec)(bits - (k << 23));
    const vec z = (m - all(1.f)) / (m + all(1.f)), s = z * z;
    vec p = all(2.f / 9.f);
    p = p * s + all(2.f / 7.f);
    p = p * s + all(2.f / 5.f);
    p = p * s + all(2.f / 3.f);
    p = p * s + all(2.f);
    return p * z + __builtin_convertvector(k, vec) * all(0.69314718f);
}

INLINE vec least(vec a, vec b) { return a < b ? a : b < a ? b : a + (b - b); }  // NaN where one is

}  // namespace

// The mean loss of n rows with m logits each, and its gradients. `room` holds (2 m + 8) * LANES floats.
extern "C" float ppo_choice(std::int64_t n, std::int64_t m, const float *logits, const float *values,
                            const std::int64_t *actions, const float *log_probs, const float *advantages,
                            const float *targets, float clip, float vf_clip, float vf_loss, float entropy_coeff,
                            float *by_logits, float *by_values, float *room) {
    const float share = 1.f / n;
    double total = 0;
    float *l = room, *p = l + m * LANES, *old = p + m * LANES, *adv = old + LANES, *err = adv + LANES, *out = err + LANES;
    std::int32_t *chosen = reinterpret_cast<std::int32_t *>(out + LANES);
    for (size r = 0; r < n; r += LANES) {
        const size rows = std::min<size>(n - r, LANES);
        for (size i = 0; i < LANES; i++) {  // the last rows again, where there are fewer: nothing of them is kept
            const size row = r + std::min(i, rows - 1);
            for (size j = 0; j < m; j++) l[j * LANES + i] = logits[row * m + j];
            old[i] = log_probs[row], adv[i] = advantages[row], err[i] = values[row] - targets[row];
            chosen[i] = static_cast<std::int32_t>(actions[row]);
        }
        vec top = at(l);
        for (size j = 1; j < m; j++) top = at(l + j * LANES) > top ? at(l + j * LANES) : top;
        vec sum = all(0.f);
        for (size j = 0; j < m; j++) {
            at(p + j * LANES) = exp_of(at(l + j * LANES) - top);
            // exp_of ends at 2^-126; an action that is masked has no probability at all.
            at(p + j * LANES) = at(l + j * LANES) - top < all(-87.f) ? all(0.f) : at(p + j * LANES);
            sum += at(p + j * LANES);
        }
        const vec norm = top + log_of(sum), one = all(1.f) / sum;
        const ivec action = *(const ivec *)chosen;
        vec entropy = all(0.f), log_prob = all(0.f);
        for (size j = 0; j < m; j++) {
            const vec q = at(p + j * LANES) * one, log_q = at(l + j * LANES) - norm;
            entropy -= q > all(0.f) ? q * log_q : q;  // q log q is 0 there
            log_prob = action == static_cast<std::int32_t>(j) ? log_q : log_prob;
            at(p + j * LANES) = q;
            at(l + j * LANES) = log_q;
        }
        const vec a = at(adv), e = at(err), square = e * e, most = all(vf_clip);
        const vec free = exp_of(log_prob - at(old)) * a, bound = a + all(clip) * (a < all(0.f) ? -a : a);
        const vec to_log_prob = free > bound ? all(0.f) : all(-share) * free;  // which keeps NaN
        at(out) = all(vf_loss) * (square > most ? most : square) - least(free, bound) - all(entropy_coeff) * entropy;
        for (size i = 0; i < rows; i++) total += out[i];
        for (size j = 0; j < m; j++) {
            const vec q = at(p + j * LANES), log_q = at(l + j * LANES);
            const vec chance = action == static_cast<std::int32_t>(j) ? all(1.f) - q : -q;
            const vec spread = q > all(0.f) ? q * (log_q + entropy) : q;
            at(l + j * LANES) = to_log_prob * chance + all(entropy_coeff * share) * spread;
        }
        at(out) = square > most ? all(0.f) : all(2.f * vf_loss * share) * e;
        for (size i = 0; i < rows; i++) {
            for (size j = 0; j < m; j++) by_logits[(r + i) * m + j] = l[j * LANES + i];
            by_values[r + i] = out[i];
        }
    }
    return static_cast<float>(total / n);
}
