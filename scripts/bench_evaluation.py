"""Measures the standard suite, and one attack beside a loop that steps one PettingZoo environment at a time.

simple_spread, three agents that share a 64x64 tanh policy. The weights are random: the time does not depend
on them. The suite is complete: the victim has a critic, and a second victim is the surrogate of the transfer.
The loop and the batched evaluation attack every decision with the same attack and are timed in turns;
`evaluate_ratio` counts all that `evaluate` does for one attack: clean episodes and checks as well.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import closing
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from bench_output import say
from mpe2 import simple_spread_v3
from torch import nn

from marl_aajr.attacks import make_attack
from marl_aajr.evaluation import Progress, evaluate
from marl_aajr.evaluation.episodes import AttackRun, play
from marl_aajr.rollout.environments import EnvironmentSpec, make_batch, resolve
from marl_aajr.victims import Victim

ATTACK, EPSILON = "pgd", 0.1


def main() -> int:
    options = parse()
    torch.set_num_threads(1)
    spec = resolve("marl_aajr.envs.simple_spread_v3")
    figures: dict[str, Any] = {"cores": os.cpu_count(), "load": list(os.getloadavg())}
    say(f"{figures['cores']} cores, load {figures['load'][0]:.1f}")
    figures |= against_the_loop(spec, options)
    say(
        f"{ATTACK}: {1e3 * figures['loop_episode_seconds']:.0f} ms an episode in the loop, "
        f"{1e3 * figures['batched_episode_seconds']:.1f} ms batched: {figures['loop_ratio']:.0f} times "
        f"faster ({figures['evaluate_ratio']:.0f} with clean episodes and checks)"
    )
    if not options.loop_only:
        figures |= standard(spec, options)
        say(
            f"standard suite: {figures['standard_seconds']:.1f} s for {figures['standard_episodes']:,} "
            f"episodes with {options.workers} workers "
            f"({figures['standard_cpu_seconds']:.1f} s of this process's CPU)"
        )
    if options.json:
        print(json.dumps(figures))
    return 0


def standard(spec: EnvironmentSpec, options: argparse.Namespace) -> dict[str, Any]:
    """The whole suite once, Ray's start included where there are workers."""
    seen: list[Progress] = []
    start, cpu = time.perf_counter(), time.process_time()
    evaluate(
        victim(spec, seed=0),
        spec,
        suite="standard",
        surrogates={"other": victim(spec, seed=1)},
        workers=options.workers,
        episodes=options.episodes,
        selection_episodes=None if options.episodes is None else max(options.episodes // 2, 1),
        on_progress=seen.append,
    )
    return {
        "standard_seconds": time.perf_counter() - start,
        "standard_cpu_seconds": time.process_time() - cpu,
        "standard_episodes": seen[-1].total,
        "workers": options.workers,
    }


def against_the_loop(spec: EnvironmentSpec, options: argparse.Namespace) -> dict[str, Any]:
    """Medians over rounds in which both are timed, one after the other."""
    player = victim(spec, seed=0)
    ways: dict[str, tuple[int, Callable[[int], object]]] = {
        "loop": (options.loop_episodes, lambda seed: loop(player, episodes=options.loop_episodes, seed=seed)),
        "batched": (100, lambda seed: batch(player, spec, seed=seed)),
        "evaluate": (
            100,
            lambda seed: evaluate(
                player, spec, attacks=[(ATTACK, EPSILON)], episodes=100, num_envs=100, seed=seed, workers=1
            ),
        ),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for seed in range(options.rounds):
        for name, (episodes, do) in ways.items():
            start = time.perf_counter()
            do(seed)
            taken[name].append((time.perf_counter() - start) / episodes)
    figures = {f"{name}_episode_seconds": median(each) for name, each in taken.items()}
    for key, name in (("loop_ratio", "batched"), ("evaluate_ratio", "evaluate")):
        figures[key] = median(a / b for a, b in zip(taken["loop"], taken[name], strict=True))
    return figures


def batch(player: Victim, spec: EnvironmentSpec, *, seed: int) -> torch.Tensor:
    """The attacked episodes, as an evaluation plays them."""
    run = AttackRun(
        attack=make_attack(ATTACK, epsilon=EPSILON),
        victim=player,
        agents=player.agents,
        units="raw",
        generator=torch.Generator().manual_seed(seed),
    )
    with closing(make_batch(spec, 100)) as env:
        return play(player, env, episodes=100, seed=seed, attack=run)


def loop(player: Victim, *, episodes: int, seed: int) -> float:
    """What somebody writes who has one environment: the agents of one step are attacked together."""
    env = simple_spread_v3.parallel_env()
    attack = make_attack(ATTACK, epsilon=EPSILON)
    generator = torch.Generator().manual_seed(seed)
    policy = player.policy(player.agents[0])
    total = 0.0
    for episode in range(episodes):
        obs, _ = env.reset(seed=seed * episodes + episode)
        while env.agents:
            agents = list(obs)
            seen = torch.stack([torch.as_tensor(obs[agent]) for agent in agents])
            outputs = attack(policy, seen, generator=generator).outputs
            chosen = {a: int(player.greedy(a, outputs[i : i + 1])) for i, a in enumerate(agents)}
            obs, rewards, *_ = env.step(chosen)
            total += sum(rewards.values())
    return total


def victim(spec: EnvironmentSpec, *, seed: int) -> Victim:
    """A team of random weights, with a critic."""
    game = spec.make()
    agents = game.possible_agents
    features = game.observation_spaces[agents[0]].shape[0]
    torch.manual_seed(seed)
    return Victim(
        module_of=dict.fromkeys(agents, "shared"),
        modules={"shared": network(features, 5)},
        critics={"shared": network(features, 1)},
        observation_spaces=game.observation_spaces,
        action_spaces=game.action_spaces,
    )


def network(features: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(features, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, outputs)
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the figures as one object")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="of the suite")
    parser.add_argument("--rounds", type=int, default=5, help="of the comparison with the loop")
    parser.add_argument("--loop-episodes", type=int, default=3, help="episodes of the loop in each round")
    parser.add_argument("--episodes", type=int, default=None, help="instead of the suite's 100")
    parser.add_argument("--loop-only", action="store_true", help="leave the suite out")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
