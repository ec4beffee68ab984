"""The adversaries of a run: where each is kept, how strong it is, and how one is found again.

    VICTIM_RUN/adversaries/sa-rl-eps0.1/            the run that remains: configured, checkpointed, exported
        adversary.json                              what was asked, tried and found
        warm-start/                                 the policies that were fitted to PGD
        initial_policy/                             what the run began with: those, or the best of the search
        search/1/, search/2/, …                     the runs that were tried before it

While it lasts, the search stands beside the run, in `sa-rl-eps0.1.search`. How strong an adversary is, is
measured on episodes that it neither learns on nor is reported on (`SelectionEpisodes`).
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from marl_aajr.adversaries.agent_game import AgentGame, AgentThreat
from marl_aajr.adversaries.observation_game import GAME, ObservationGame, ObservationThreat, PGDGame
from marl_aajr.adversaries.request import AdversaryRequest
from marl_aajr.core.seeds import Purpose, derived_seed
from marl_aajr.rollout.batched_env import BatchedEnv
from marl_aajr.rollout.environments import make_batch, resolve
from marl_aajr.training.config import RunConfig
from marl_aajr.training.fields import validated
from marl_aajr.training.run_directory import RunDirectory
from marl_aajr.victims import Victim
from marl_aajr.victims.portable import DESCRIPTION
from marl_aajr.victims.stepper import Stepper

ADVERSARIES = "adversaries"
"""The folder of a run that its adversaries are kept in."""

RECORD = "adversary.json"
REQUEST, WARM = "request.json", "warm-start"

KEPT = {"trained": "victim", "warm_start": WARM}
"""Where the policies are that an adversary attacks with: the stronger ones on the selection episodes."""


def find_finished(home: Path, request: AdversaryRequest, *, digest: str) -> Path | None:
    """The strongest finished adversary of a run that is what is asked for, or None.

    It was trained for as long, and searched for as widely, or more; whatever its seed. What is compared is
    what each earned on its own selection episodes.

    Args:
        home: the run of the victims, whose `marl_aajr.victims.fingerprint` is `digest`.
        request: what is asked for, its agents named.
        digest: see `home`.
    """
    asked = request.model_dump(mode="json", exclude={"env_steps", "search", "seeds", "seed"})
    earned: dict[Path, float] = {}
    for record in sorted((home / ADVERSARIES).glob(f"*/{RECORD}")):
        config = RunDirectory(record.parent).config()
        known = json.loads(record.read_text(encoding="utf-8"))
        enough = known["env_steps"] >= request.steps and known["search"] >= request.tries
        enough = enough and known.get("seeds", 1) >= request.repeats
        same = all(known.get(name) == value for name, value in asked.items())
        if enough and same and config.env.kwargs.get("digest") == digest:
            earned[record.parent] = known["selection"][known["kept"]]
    return max(earned, key=earned.__getitem__, default=None)


def request_of(out: Path) -> tuple[AdversaryRequest, Path]:
    """What was asked for in a folder whose training was stopped, and against which victims.

    Raises:
        ValueError: no such folder.
    """
    try:
        asked = json.loads((search_folder(out) / REQUEST).read_text(encoding="utf-8"))
    except OSError:
        raise ValueError(
            f"expected the folder of an adversary whose training was stopped, got {out}; train one with: "
            "marl-aajr adversary train"
        ) from None
    victims = Path(asked.pop("victims"))
    return validated(AdversaryRequest, asked), victims


def default_folder(victims: Path, request: AdversaryRequest) -> Path:
    """`VICTIM_RUN/adversaries/<kind>-eps<epsilon>…`; beside the victims where they have no run."""
    home = victims.parent if (victims / DESCRIPTION).is_file() else victims
    if request.observes:
        everybody = request.changed(agents=None)
        if request.settled(victims) == everybody.settled(victims):
            request = everybody
    return home / ADVERSARIES / request.name


def unfinished_folder(folder: Path) -> Path:
    """The folder, or the first of `…-2`, `…-3` and so on that holds no finished adversary."""
    later = (folder.with_name(f"{folder.name}-{number}") for number in count(2))
    return next(found for found in chain([folder], later) if not is_finished(found))


def is_finished(folder: Path) -> bool:
    """Whether an adversary is there, and ready."""
    return (folder / RECORD).is_file()


def is_begun(folder: Path) -> bool:
    """Whether there is an adversary that `request_of` can be asked of."""
    return (search_folder(folder) / REQUEST).is_file()


def how_to_resume(folder: Path) -> str:
    """The command that goes on with what is in a folder: an adversary is evaluated once it is trained."""
    what = "adversary train" if is_begun(folder) else "train"
    return f"marl-aajr {what} --resume --out {shlex.quote(str(folder))}"


def search_folder(folder: Path) -> Path:
    """Where the search of an adversary is while it lasts."""
    return folder.with_name(f"{folder.name}.search")


EPISODES = 100
"""How many selection episodes are played."""

Act = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
"""Observations to actions, `[E, ...]` by player."""


class SelectionEpisodes:
    """The game of a run, played for 100 episodes of a derived seed, the same for every adversary."""

    def __init__(self, config: RunConfig, *, seed: int) -> None:
        self._config = config
        self._seed = derived_seed(seed, Purpose.ADVERSARY_SELECTION)

    def score(self, adversary: Victim) -> Tensor:
        """The return of the adversary's greedy policies, together, in each episode, `[100]`."""
        game = make_batch(resolve(self._config.env.name, self._config.env.kwargs), EPISODES)
        return self._play(game, _greedy(adversary, game))

    def evaluate(self, adversary: Victim, *, warm_start: Victim | None) -> dict[str, Any]:
        """How strong a trained adversary is, in the form of its record.

        Returns:
            `selection`: mean scores by name; `kept`: the stronger of `trained` and `warm_start`; its
            `lead` over PGD, or an adversarial agent's over nobody; `undertrained`: PGD is stronger.
        """
        observes = self._config.env.name == GAME
        scores = {"trained": self.score(adversary)}
        scores |= self.references() if observes else self.losses(adversary)
        if warm_start is not None:
            scores["warm_start"] = self.score(warm_start)
        means = {name: score.mean().item() for name, score in scores.items()}
        kept = "warm_start" if means.get("warm_start", means["trained"]) > means["trained"] else "trained"
        pair = (scores[kept], scores["pgd"]) if observes else (scores["lost"], scores["clean"])
        ahead = lead(*pair)
        undertrained = observes and ahead["high"] < 0
        return {"selection": means, "kept": kept, "lead": ahead, "undertrained": undertrained}

    def references(self) -> dict[str, Tensor]:
        """The victims' losses without attack, and to PGD at the same size."""
        game = ObservationThreat(**self._config.env.kwargs).build(EPISODES)
        untouched = ObservationGame(game.env, game.adversaries, {}, sampled=game.sampled)
        clean = self._play(untouched, lambda _: untouched.nothing())
        attacked = PGDGame(game, generator=torch.Generator().manual_seed(self._seed))
        return {"clean": clean, "pgd": self._play(attacked, lambda _: attacked.nothing())}

    def losses(self, adversary: Victim) -> dict[str, Tensor]:
        """The victims' losses without an adversarial agent and with it, whatever its own reward."""
        threat = replace(AgentThreat(**self._config.env.kwargs), pays="loss")
        game = threat.build(EPISODES)
        among_themselves = AgentGame(
            game.env,
            game.victim,
            team=game.team,
            agents=game.possible_agents,
            sampled=threat.sampled,
            loyal=True,
        )
        clean = self._play(among_themselves, lambda _: among_themselves.nothing())
        return {"clean": clean, "lost": self._play(game, _greedy(adversary, game))}

    @torch.no_grad()
    def _play(self, game: BatchedEnv, act: Act) -> Tensor:
        obs = game.reset(seed=self._seed)
        earned = torch.zeros(game.num_envs, dtype=torch.float64)
        over = torch.zeros(game.num_envs, dtype=torch.bool)
        while not over.all():
            step = game.step(act(obs))
            earned += torch.stack(list(step.rewards.values())).sum(0) * ~over
            obs, over = step.obs, over | step.episode_over
        return earned


def lead(losses: Tensor, others: Tensor) -> dict[str, float]:
    """The mean by which the first are above the others in the same episodes, with its 99 % interval."""
    gap = losses - others
    mean, reach = gap.mean().item(), 2.6 * gap.std().item() / len(gap) ** 0.5
    return {"mean": mean, "low": mean - reach, "high": mean + reach}


def _greedy(adversary: Victim, game: BatchedEnv) -> Act:
    """The most likely actions of the adversary's policies."""
    groups = [[player] for player in game.possible_agents]
    stepper = Stepper(adversary, adversary.memory(game.num_envs), groups=groups)
    return lambda obs: stepper.act(stepper.see(obs, action_mask=game.action_mask))
