"""Train plain PPO and AAJR, attack both over the same episodes, and compare them on one page.

python scripts/examples/train_and_compare.py
"""

from __future__ import annotations

from marl_aajr import compare, evaluate, train
from marl_aajr.report import headline, write_report

STEPS = 8_000  # a real run takes 1,000,000

for method in ("none", "aajr"):
    settings = {"env": "marl_aajr.envs.simple_spread_v3", "method": method, "env_steps": STEPS}
    run = train(settings, f"runs/{method}", overwrite=True)
    result = evaluate(run, suite="quick", episodes=20, selection_episodes=10)
    print(f"{method}: {result.clean_return:.1f} without an attack")
    print(f"  under the worst one: {result.worst[-1].mean:.1f}")

runs = ["runs/none", "runs/aajr"]
print(headline(compare(runs)))
print("The page:", write_report(runs, "runs/report.html"))
