"""The project's own environments, installed as `marl_aajr.envs`.

The nine particle environments of `mpe2`, path finding on grids of `pogema`, `congestion_v0`, and
`bargain_v0`, whose agents read words: each written once in torch for any number of copies on any device.
Every module has two factories:

- `batched_env(num_envs, device=..., dtype=..., **options)`: a `marl_aajr.rollout.batched_env.BatchedEnv`;
- `parallel_env(render_mode=..., **options)`: one copy as a PettingZoo `ParallelEnv`.

Importing this package adds the second kind to PettingZoo's registry, without loading torch:
`pettingzoo.make("parallel", "marl_aajr/simple_spread_v3", N=5)`.

The particle environments do what `mpe2` 1.1.1 does, to 1e-9 in float64 from the same states and actions
(`tests/envs/test_against_mpe2.py`), and begin with the same distribution, from other random numbers.
They differ in this:

- the curricula of spread and tag move (in `mpe2` the stage stays 0, whatever it is set to), by
  `set_curriculum_stage` and `advance_curriculum` of the batch (`env.batch` of a PettingZoo view);
- two bodies in exactly one place do not push each other (`mpe2`: NaN);
- constants are options: `mass`, `damping`, `sensitivity`, `size`, `time_step`, `contact_force`;
- options are checked when the environment is built: tag needs prey and pursuers, world_comm also food;
- `render_mode` is `"rgb_array"` or None (with words `"ansi"`, too), and a view refuses wrong actions with a
  `ValueError`.

Modules of this package import each other relatively: the folder is `envs` to tools that read the source
tree and `marl_aajr.envs` once installed.
"""

from __future__ import annotations

from pettingzoo import parallel_registry, register

NAMES = (
    "bargain_v0",
    "congestion_v0",
    "pogema_v0",
    "simple_v3",
    "simple_adversary_v3",
    "simple_crypto_v3",
    "simple_push_v3",
    "simple_reference_v3",
    "simple_speaker_listener_v4",
    "simple_spread_v3",
    "simple_tag_v3",
    "simple_world_comm_v3",
)
"""The modules of this package that are environments. Versions are those of `mpe2` and `pogema`."""

for _name in NAMES:
    if f"marl_aajr/{_name}".replace("_v", "-v") not in parallel_registry:
        register("parallel", f"marl_aajr/{_name}", f"marl_aajr.envs.{_name}:parallel_env")
