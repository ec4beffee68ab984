"""Run a study on a Ray cluster: here one of two nodes on this machine, elsewhere yours.

python scripts/examples/study_on_a_cluster.py [HOST:PORT]
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from ray.cluster_utils import Cluster

STUDY = """
environments: [marl_aajr.envs.simple_spread_v3]
methods: [none, aajr]
seeds: [1]
run: {env_steps: 4000}          # a real run takes 1,000,000
evaluation: {suite: quick, episodes: 10, selection_episodes: 5}
"""


def main(address: str) -> None:
    """Write the study, and run it: the same command again goes on where it was stopped."""
    Path("study.yaml").write_text(STUDY, encoding="utf-8")
    command = [sys.executable, "-m", "marl_aajr", "study", "study.yaml", "--address", address]
    subprocess.run(command, check=True)
    print("The page:", Path("studies/study/report.html").resolve())


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        os.environ["RAY_AUTH_MODE"] = "disabled"  # where Ray has a token, all or none use it
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        cluster.add_node(num_cpus=1)
        main(cluster.address)
        cluster.shutdown()
