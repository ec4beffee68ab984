"""The plug-in: a regularizer in the loss of any torch algorithm of RLlib's new API stack.

In the order of a gradient's way:

- `robustify`: the one line, and the learner mixin that it puts in front of the algorithm's own learner.
- `regularized_module`: the regularizer of one module in training: its state, its term, its metrics.
- `module_policy`: a module on one train batch, seen as a policy `obs -> distribution inputs`.
- `observation_layout`: which numbers of a nested observation may be perturbed.

RLlib's private parts are in `marl_aajr.rllib.internals`, the old API stack is in `marl_aajr.rllib.old_stack`.
"""
