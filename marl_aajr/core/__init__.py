"""The mathematics, in plain torch and without Ray: policies, adversaries, objectives, derivatives.

It reads in this order:

1. `distributions`: log-probability, KL and Fisher metric as functions of a policy's outputs;
2. `policy`: a policy as a function, observations in and distribution inputs out;
3. `fixed_network`: a network held as one function while an adversary looks;
4. `threat`: the set of perturbations that the adversary may choose from;
5. `objectives`: the functions that the adversary maximises;
6. `starts`, `ascent`: the inner maximisation, for training and for attacks alike;
7. `jacobian`: Jacobian-vector products, four ways that agree;
8. `output_maps`: the output whose sensitivity counts;
9. `diagnostics`: exact measurements of gain, curvature and admissible steps;
10. `adversary_actions`: the meaning of a learned adversary's actions.

Helpers: `checks` (of settings and numbers, schedules, decimals), `settings` (their descriptions), `seeds`
(the same numbers from one seed).

`mlp` stands apart: plain MLPs with their derivatives written out, for speed. Autograd computes the same
through any other network, so that whoever distrusts it sees in that one file what it replaces.
"""
