"""What a reader must know before believing the table."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence

from marl_aajr.evaluation.result import Evaluation
from marl_aajr.report.adversaries import undertrained
from marl_aajr.report.comparison import Comparison
from marl_aajr.report.estimates import count, listing, number, some
from marl_aajr.report.methods import Method, differences
from marl_aajr.report.records import RunRecord
from marl_aajr.report.trust import doubts


def cautions(comparison: Comparison) -> list[str]:
    """One sentence per weakness of the comparison, the gravest first."""
    methods = [row.method for row in comparison.rows]
    runs = [run for method in methods for run in method.runs]
    return [
        *doubts(comparison),
        *(f"{line}." for line in undertrained(comparison)),
        *_budgets(methods),
        *_other_differences(methods),
        *_from_elsewhere(methods),
        *_seeds(methods),
        *_baseline(methods),
        *_environment(comparison, runs),
        *_versions(runs),
        *_nonfinite(runs),
        *_selection(comparison),
    ]


def _selection(comparison: Comparison) -> list[str]:
    if comparison.chosen_elsewhere or len(comparison.attacks) == 1:
        return []
    which = "The" if comparison.chosen_here else "For some runs the"
    return [
        f"{which} worst attack of each size was chosen on the very episodes that it is reported on, which "
        "makes it look a little stronger than it is; evaluate with --suite or --selection-episodes to choose "
        "on others."
    ]


def cautions_of_all(comparisons: Sequence[Comparison]) -> list[str]:
    """The cautions of several comparisons; what only some of them say names those."""
    return _together(comparisons, cautions)


def left_out_of_all(comparisons: Sequence[Comparison]) -> list[str]:
    """What several comparisons do not show; what is not shown in some of them only names those."""
    return _together(comparisons, lambda comparison: [omission.text for omission in comparison.left_out])


def _together(
    comparisons: Sequence[Comparison], sentences: Callable[[Comparison], Sequence[str]]
) -> list[str]:
    said: dict[str, list[str]] = defaultdict(list)
    for comparison in comparisons:
        for sentence in sentences(comparison):
            said[sentence].append(comparison.scene.short)
    return [
        sentence
        if len(said[sentence]) == len(comparisons)
        else f"{some(said[sentence], of=len(comparisons), noun='environments')}: {sentence}"
        for sentence in said
    ]


def _budgets(methods: Sequence[Method]) -> list[str]:
    budgets: dict[int, list[str]] = defaultdict(list)
    for method in methods:
        if "env_steps" in method.config:
            budgets[int(method.config["env_steps"])].append(method.label)
    if len(budgets) < 2:
        return []
    each = "; ".join(
        f"{number(steps, decimals=0)}: {some(labels, of=len(methods), noun='methods')}"
        for steps, labels in sorted(budgets.items())
    )
    return [
        "The methods were trained for different numbers of environment steps "
        f"({each}): the comparison is not like for like."
    ]


def _other_differences(methods: Sequence[Method]) -> list[str]:
    ours = [method for method in methods if method.runs[0].trained_here]
    keys = [key for key in differences(ours) if not key.startswith("method.") and key != "env_steps"]
    if not keys:
        return []
    return [
        f"The methods differ in more than the method: {listing(keys)}. A difference in return "
        "cannot be put down to the method alone."
    ]


def _from_elsewhere(methods: Sequence[Method]) -> list[str]:
    others = [method.label for method in methods if not method.runs[0].trained_here]
    if not others:
        return []
    return [
        f"{listing(others)} {'was' if len(others) == 1 else 'were'} trained elsewhere: for how long and on "
        "what is not known here."
    ]


def _seeds(methods: Sequence[Method]) -> list[str]:
    single = [method.label for method in methods if len(method.runs) == 1]
    double = [method.label for method in methods if len(method.runs) == 2]
    found = []
    if single:
        whose = "Every method has" if len(single) == len(methods) else _have(single, of=len(methods))
        found.append(
            f"{whose} a single run. Intervals over episodes say how well this one policy was "
            "measured; training seeds are what matters, so train at least three."
        )
    if double:
        found.append(
            f"{_have(double, of=len(methods))} two runs: an interval over two runs reaches 12.7 standard "
            "errors to each side, and hardly anything is distinguishable with it."
        )
    return found


def _have(labels: Sequence[str], *, of: int) -> str:
    return f"{some(labels, of=of, noun='methods')} {'has' if len(labels) == 1 else 'have'}"


def _baseline(methods: Sequence[Method]) -> list[str]:
    plain = [method.label for method in methods if method.plain]
    if len(plain) == 1 or len(methods) == 1:
        return []
    what = (
        f"{count(len(plain), 'method')} without a regulariser ({listing(plain)})"
        if plain
        else "No run without a regulariser (method none)"
    )
    cure = "compare against one of them" if plain else "train one"
    return [f"{what}: no price of robustness can be given; {cure}."]


def _environment(comparison: Comparison, runs: Sequence[RunRecord]) -> list[str]:
    odd = [
        f"{run.path} ({run.config['env']['name']})"
        for run in runs
        if not any(_evaluated_as_trained(run, evaluation) for evaluation in run.evaluations.values())
    ]
    if not odd:
        return []
    return [
        f"Trained on another environment than the one evaluated on ({comparison.protocol.environment}): "
        f"{listing(odd)}."
    ]


def _evaluated_as_trained(run: RunRecord, evaluation: Evaluation) -> bool:
    trained = run.config["env"]
    return evaluation.env.name == trained["name"] and evaluation.env.kwargs == (trained.get("kwargs") or {})


def _versions(runs: Sequence[RunRecord]) -> list[str]:
    known = [run.versions for run in runs if run.versions is not None]
    packages = dict.fromkeys(name for versions in known for name in versions.packages)
    differ = [name for name in packages if len({versions.packages.get(name) for versions in known}) > 1]
    if len({versions.python for versions in known}) > 1:
        differ.insert(0, "python")
    if not differ:
        return []
    return [f"The runs were made with different versions of {listing(differ)} (see Versions)."]


def _nonfinite(runs: Sequence[RunRecord]) -> list[str]:
    found = []
    for run in runs:
        bad = sum(
            any(
                value is not None and (not math.isfinite(value) or (name == "aajr/nonfinite" and value > 0))
                for metrics in row.modules.values()
                for name, value in metrics.items()
            )
            for row in run.metrics
        )
        if bad:
            found.append(
                f"{run.path} logged values that are not finite in {count(bad, 'iteration')}; "
                "its curves have gaps there."
            )
    return found
