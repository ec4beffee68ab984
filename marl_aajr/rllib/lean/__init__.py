"""The lean PPO learner: what it replaces of RLlib and torch, and how to check that it is the same.

With networks of two layers of 64, an update of RLlib's learner spends most of its time around the arithmetic.
This package makes the same updates with less between them. It stands apart, so that whoever distrusts it sees
in one place what it replaces; `fast(..., lean=False)` and RLlib's own runner (`stock`) train without it.

- `learner` replaces the loop of RLlib's `PPOTorchLearner.update`: metrics are logged once per update instead
  of once per minibatch, and numbers that nobody reads are not computed. An update takes 1/3.3 of the time at
  128 rows a minibatch, 1/1.8 at 1,024 (all of this together). Equal weights and metrics:
  `tests/rllib/test_lean_learner.py`.
- `minibatches` replaces RLlib's `MiniBatchCyclicIterator`, of rows and of sequences, because a minibatch can
  be a slice instead of a copy of the batch. `module_loss` replaces the module's `forward_train`. Equal
  weights: the same tests.
- `ppo_loss` (of one discrete action `ppo_kernel`) replaces autograd between the loss and the networks'
  outputs, because that gradient has a closed form, and `plain_gradient` as far as the weights of plain MLPs.
  Equal gradients: `test_gradient_of_the_loss_is_the_one_that_autograd_finds` in the same file,
  `tests/rllib/test_ppo_kernel.py`, `tests/core/test_mlp_kernel.py`.
- `adam.FlatAdam` replaces the step of `torch.optim.Adam(fused=True)`: a module's weights, their gradients and
  moments are one tensor each. Equal steps and states: `tests/rllib/test_adam.py`.

The regularizers go through plain MLPs by `PlainMLP`, too. `scripts/bench_regularizers.py` measures both
learners as a whole ("plain" and "lean").
"""
