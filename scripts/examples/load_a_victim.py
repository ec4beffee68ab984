"""Load a saved team and play it in a game loop of your own, without Ray.

python scripts/examples/load_a_victim.py
"""

from __future__ import annotations

from marl_aajr.envs import simple_spread_v3
from torch import nn

from marl_aajr import Victim, attacked

env = simple_spread_v3.parallel_env(max_cycles=25)
network = nn.Sequential(nn.Linear(18, 64), nn.Tanh(), nn.Linear(64, 5))
Victim.from_policies(network, env).save("runs/team")  # training leaves one in RUN/victim

victim = Victim.load("runs/team")
env = attacked(env, "pgd", victim, epsilon=0.1, agents=["agent_0"])  # drop this line to see clearly
obs, _ = env.reset(seed=1)
memory = victim.memory()
total = 0.0
while env.agents:
    obs, rewards, *_ = env.step(victim.act(obs, memory=memory))
    total += sum(rewards.values())
print(f"return of the team: {total:.1f}")
