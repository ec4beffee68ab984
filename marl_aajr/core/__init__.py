"""The mathematics, in plain torch and without Ray: policies, adversaries, objectives, derivatives.

It reads in this order:

1. `distributions`: what a policy's outputs mean (log-probability, KL, Fisher metric);
2. `policy`: what robustness code sees of a policy, observations in and distribution inputs out;
3. `threat`: which perturbations of an observation the adversary may choose;
4. `objectives`: what the adversary maximises;
5. `ascent`: how it does so, for training and for attacks alike;
6. `output_maps`: which output's sensitivity counts;
7. `jacobian`: Jacobian-vector products, four ways that agree;
8. `diagnostics`: exact measurements of gain, curvature and admissible steps;
9. `adversary_actions`: what the actions of a learned adversary mean.

Helpers: `numerics` (non-finite numbers, blocks of rows, threads), `values` (checks and schedules of
settings), `settings` (their descriptions), `seeds` (what one seed stands for).

`mlp` stands apart: plain MLPs with their derivatives written out, for speed. Autograd computes the same
through any other network, so that whoever distrusts it sees in that one file what it replaces.
"""
