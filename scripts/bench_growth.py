"""The learner's update of larger networks beside its floor, and how times grow with the sizes of a run.

The floor of an update is the time of its matrix products, forward and backward, at the rate of PyTorch's own
product of two large matrices, measured in the same run. Times are the process's own, on one thread, and the
least of interleaved repeats: what other programs take is none of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import linear_regression
from typing import Any

from bench_output import Bars, progress, say
from bench_setting import OURS, fast_runner
from bench_update import Size, Update

NETWORKS = {
    "64x64, 1,000 rows": Size(18, 5, 1_000),
    "64x64, 4,096 rows": Size(18, 5, 4_096),
    "256x256, 1,000 rows": Size(18, 5, 1_000, width=256),
    "256x256, 4,096 rows": Size(18, 5, 4_096, width=256),
    "LSTM of 64, 1,000 rows": Size(18, 5, 1_000, steps=20),
    "CNN on 3x11x11, 1,000 rows": Size(363, 5, 1_000, image=True),
}
MINIBATCHES = 24
"""Of a measured update: most of them are like those in the midst of an iteration."""

BARS: Bars = {
    "floor_ratio_256x256_4096": ("at most", 1.5),
    "exponent_by_agents": ("at most", 2.0),
    "exponent_by_copies": ("at most", 1.0),
    "exponent_by_k": ("at most", 1.0),
    "exponent_by_width": ("at most", 2.0),
}


def figures(parts: Sequence[str], rounds: int) -> dict[str, Any]:
    """What the parts "networks" and "growth" find."""
    found: dict[str, Any] = {}
    if "networks" in parts:
        found |= over_networks(rounds)
    if "growth" in parts:
        found |= growth(rounds)
    return found


def peaks() -> tuple[float, float]:
    """Billions of operations a second of PyTorch's own product, and of the fastest library here."""
    import torch

    a, b = torch.randn(4_096, 256), torch.randn(256, 256)
    works: dict[str, Callable[[], Any]] = {"own": lambda: a @ b.t()}
    if torch.backends.mkldnn.is_available():
        works["oneDNN"] = lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
    seconds = least(works, rounds=20)
    operations = 2 * len(a) * b.numel() / 1e9
    return operations / seconds["own"], operations / min(seconds.values())


def least(works: Mapping[str, Callable[[], Any]], *, rounds: int) -> dict[str, float]:
    """The least process time of each, in turns."""
    found = dict.fromkeys(works, math.inf)
    for i in range(rounds + 1):
        for name, work in works.items():
            progress(f"{name:<40} round {i} of {rounds}")
            started = time.process_time()
            work()
            if i:  # the first warms up
                found[name] = min(found[name], time.process_time() - started)
    progress("")
    return found


def over_networks(rounds: int) -> dict[str, Any]:
    """A minibatch of the lean learner and of RLlib's, and the floor of both."""
    own, fastest = peaks()
    say(f"\nproducts: PyTorch's own {own:.0f} GFLOP/s, the fastest library's {fastest:.0f}")
    say(
        f"{'a minibatch':<28} {'ms':>7} {'floor':>7} {'ratio':>6} {'fastest':>8} {'RLlib ms':>9} {'ratio':>6}"
    )
    found: dict[str, Any] = {"peak_gflops": own, "fastest_gflops": fastest}
    for name, size in NETWORKS.items():
        updates = {"lean": Update(size, lean=True), "stock": Update(size)}
        works = {key: partial(update, MINIBATCHES) for key, update in updates.items()}
        ours, theirs = (seconds / MINIBATCHES for seconds in least(works, rounds=rounds).values())
        gflop = updates["stock"].gflop() + size.recurrent_gflop()
        say(
            f"{name:<28} {1e3 * ours:>7.2f} {1e3 * gflop / own:>7.2f} {ours * own / gflop:>6.2f} "
            f"{ours * fastest / gflop:>8.2f} {1e3 * theirs:>9.2f} {theirs / ours:>6.2f}"
        )
        key = name.replace(" rows", "").replace(", ", "_").replace(",", "").replace(" ", "_")
        found |= {
            f"seconds_{key}": ours,
            f"floor_{key}": gflop / own,
            f"floor_ratio_{key}": ours * own / gflop,
            f"fastest_floor_ratio_{key}": ours * fastest / gflop,
            f"stock_ratio_{key}": theirs / ours,
        }
    return found


def growth(rounds: int) -> dict[str, Any]:
    """Time by agents, copies, steps of the ascent and width, with the exponent of each line."""
    own, _ = peaks()
    found: dict[str, Any] = {}
    for what, (title, sizes, work, gflop) in lines().items():
        say(f"\n{title:<46} {'ms':>9} {'floor':>9} {'ratio':>7}")
        seconds = list(least({str(size): work(size) for size in sizes}, rounds=rounds).values())
        floors = [gflop(size) / own for size in sizes]
        for size, took, floor in zip(sizes, seconds, floors, strict=True):
            say(f"{size:>46,} {1e3 * took:>9.2f} {1e3 * floor:>9.2f} {took / floor:>7.1f}")
        steepest, of_floor = exponent(sizes, seconds), exponent(sizes, floors)
        say(f"{'exponent':>46} {steepest:>9.2f} {of_floor:>9.2f}")
        found |= {
            f"seconds_by_{what}": dict(zip(map(str, sizes), seconds, strict=True)),
            f"floor_by_{what}": dict(zip(map(str, sizes), floors, strict=True)),
            f"exponent_by_{what}": steepest,
            f"floor_exponent_by_{what}": of_floor,
        }
    return found


def exponent(sizes: Sequence[int], values: Sequence[float]) -> float:
    """The slope of a line of the logarithms of values over those of sizes, by least squares."""
    return linear_regression([math.log(x) for x in sizes], [math.log(y) for y in values]).slope


Line = tuple[str, Sequence[int], Callable[[int], Callable[[], Any]], Callable[[int], float]]
"""A title, sizes, the work at a size, and the billions of operations that it cannot do without."""


def lines() -> dict[str, Line]:
    from marl_aajr.regularizers import AAJR

    def sampling(agents: int, copies: int) -> Callable[[], Any]:
        runner = fast_runner(OURS, copies, kwargs={"N": agents})
        return lambda: runner.sample(num_timesteps=25 * copies)

    def update(size: Size, regularizer: Any = None) -> Callable[[], Any]:
        return partial(Update(size, regularizer, lean=True), MINIBATCHES)

    def aajr(steps: int) -> AAJR:
        return AAJR(steps=steps, sample_fraction=1.0, interval=1)

    plain = Size(18, 5, 1_000)
    return {
        "agents": (
            "25 steps of 64 copies, by agents",
            (3, 6, 12, 24, 48),
            lambda agents: sampling(agents, 64),
            lambda agents: acting(agents, 64),
        ),
        "copies": (
            "25 steps of three agents, by copies",
            (64, 256, 1_024, 4_096),
            lambda copies: sampling(3, copies),
            lambda copies: acting(3, copies),
        ),
        "k": (
            f"{MINIBATCHES} minibatches with AAJR on all rows, by K",
            (1, 2, 5, 10),
            lambda steps: update(plain, aajr(steps)),
            lambda steps: MINIBATCHES * (plain.mlp_gflop() + (2 * steps + 6) * plain.mlp_gflop() / 6),
        ),
        "width": (
            f"{MINIBATCHES} minibatches of 1,000 rows, by width",
            (32, 64, 128, 256, 512),
            lambda width: update(Size(18, 5, 1_000, width=width)),
            lambda width: MINIBATCHES * Size(18, 5, 1_000, width=width).mlp_gflop(),
        ),
    }


def acting(agents: int, copies: int) -> float:
    """Operations of 25 steps of the actors; N agents see 6 N numbers each, N² in all."""
    return 25 * 2 * copies * agents * (6 * agents * 64 + 64 * 64 + 64 * 5) / 1e9
