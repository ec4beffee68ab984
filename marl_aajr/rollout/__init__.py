"""Environments and the sampling loop. Import from the submodules: lists of environments need no torch.

From a name to one game:

- `environments`: names and factories to specifications, games and batches; `factories` imports by name.
- `game`, `pettingzoo_games`: one PettingZoo environment behind one interface, which saves it, too;
  `game_agents` is the border between its agents and ours, `teams` says who plays with whom. `adapters` plays
  those of Gymnasium and RLlib.

Many copies as arrays:

- `batched_env`: the contract; `env_checker` checks it on any batch.
- `pettingzoo_batch`: copies of any PettingZoo environment, in `game_shares` of several processes
  (`game_process`), each of which plays its `game_copies`; `perturbed`, `centralized_critic`: wrappers of a
  batch.

The sampling loop:

- `collector`: plays a batch and checks it, filling a `rollout_buffer` for each module.
- `attack`: play under attack, for training.
- `fragments`: what a call leaves; `postprocessing` and `sequences` make rows with advantages of it.
"""
