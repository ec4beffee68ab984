"""Environments for RLlib, and fast sampling from many copies of one.

One environment at a time, for RLlib's own env runners:

- `env`: any PettingZoo environment as a `MultiAgentEnv`; `register`, for both ways.

Many copies as arrays, for the fast env runner:

- `fast`: the one line that sets all that follows in a configuration, and the learner connector, which makes a
  train batch of what was sampled.
- `batch_env`: a batched environment as RLlib sees it.
- `env_runners`: the fast env runner, and RLlib's own made repeatable.
- `module_policies`: RLlib's modules as the policies of the sampling loop (`marl_aajr.rollout.collector`).

For both:

- `observation_filter`: running normalisation of observations, as a connector and on arrays.
- `episode_metrics`: exact returns per team, and RLlib's metrics of episodes.
"""
