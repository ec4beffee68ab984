"""Put AAJR into an RLlib script that stands already: one line, marked below.

python scripts/examples/plug_into_rllib.py
"""

from __future__ import annotations

from ray.rllib.algorithms.ppo import PPOConfig

from marl_aajr import AAJR, register, robustify

config = (
    PPOConfig()
    .environment(register("simple_spread_v3"))  # or any multi-agent environment of yours
    .env_runners(num_env_runners=0)
    .multi_agent(policies={"team"}, policy_mapping_fn=lambda agent, *_, **__: "team")
    .training(train_batch_size_per_learner=1000, minibatch_size=500, num_epochs=2)
)
config = robustify(config, AAJR(coefficient=1e-3, epsilon=0.1))  # the one line

algorithm = config.build_algo()
for _ in range(2):  # a real run takes a thousand iterations
    aajr = algorithm.train()["learners"]["team"]["aajr"]
    print(f"penalty {aajr['penalty']:.4g}, directional gain {aajr['gain_mean']:.4g}")
algorithm.stop()
