"""The lean PPO learner: what it replaces of RLlib and torch, and how to check that it is the same.

With networks of two layers of 64, an update of RLlib's learner spends most of its time around the arithmetic.
This package makes the same updates with less between them. It stands apart, so that whoever distrusts it sees
in one place what it replaces; `fast(..., lean=False)` and RLlib's own runner (`stock`) train without it.

- `learner` replaces the loop of RLlib's `PPOTorchLearner.update`: metrics are logged once per update instead
  of once per minibatch, and numbers that nobody reads are not computed. An update takes 1/3.3 of the time at
  128 rows a minibatch, 1/1.8 at 1,024 (all of this together). Equal weights and metrics:
  `tests/rllib/test_lean_learner.py`.
- `module_loss` replaces RLlib's `MiniBatchCyclicIterator`, because a minibatch can be an index instead of
  a copy of the batch (1/4 of the time), and the module's `forward_train`. Equal weights: the same tests.
- `ppo_loss` replaces autograd between the loss and the networks' outputs, or as far as their weights,
  because that gradient has a closed form (1/1.7 at 128 rows, 1/1.4 at 1,024, with the networks). Equal
  gradients: the same file, `test_gradient_of_the_loss_is_the_one_that_autograd_finds`.
- `learner.LeanAdam` replaces the step of `torch.optim.Adam(fused=True)`: all counters in one tensor, no hooks
  (1/4 of the time, 1/17 of the default Adam's). Equal steps and states: `tests/rllib/test_adam.py`.

`ppo_loss` goes through the networks by `marl_aajr.core.mlp.PlainMLP`, whose written-out derivatives serve the
regularizers as well; `tests/core/test_mlp.py` compares them with autograd. The times are processor times on
one core, for 18 features, 5 actions and two layers of 64; `scripts/bench_regularizers.py` measures both
learners as a whole ("plain" and "lean").
"""
