"""Environments for RLlib, and fast sampling from many copies of one.

`env` has any PettingZoo environment for RLlib's own env runners, one at a time. `fast` is the one line for
many copies as arrays: `batch_env` is the batch as RLlib sees it, `env_runners` samples from it, and by
`module_policies` RLlib's modules play in it. `observation_filter` and `episode_metrics` serve both.
"""
