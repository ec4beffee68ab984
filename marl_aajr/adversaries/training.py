"""Train an adversary against a run's victims: warm start, a small search, and an ordinary run."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from marl_aajr.adversaries import store
from marl_aajr.adversaries.game_settings import victim_folder
from marl_aajr.adversaries.kinds import SEARCH_SHARE
from marl_aajr.adversaries.learning_curve import learning_curve
from marl_aajr.adversaries.observation_game import ObservationThreat
from marl_aajr.adversaries.request import AdversaryRequest
from marl_aajr.adversaries.warm_start import warm_start
from marl_aajr.core.seeds import Purpose, derived_seed, one_torch_thread
from marl_aajr.training.cluster import ray_for
from marl_aajr.training.config import RunConfig
from marl_aajr.training.fields import validated
from marl_aajr.training.files import write_json
from marl_aajr.training.loop import OnIteration, ShouldStop
from marl_aajr.training.run_directory import RunDirectory
from marl_aajr.training.trainer import train
from marl_aajr.victims import Victim, fingerprint
from marl_aajr.victims.portable import DESCRIPTION


def train_adversary(
    victim_run: Path | str,
    *,
    out: Path | str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_iteration: OnIteration | None = None,
    should_stop: ShouldStop | None = None,
    on_phase: Callable[[str], None] = lambda _: None,
    **asked: Any,
) -> Path:
    """Train an adversary against frozen victims, and keep it.

    Args:
        victim_run: the victims' run (or the folder of a saved victim).
        out: the folder; None: `default_folder`.
        resume: go on with what is in `out`, to the numbers of a training that was not stopped.
        overwrite: replace the adversary in `out`.
        on_iteration: called with each line of `metrics.jsonl`, its `env_steps` those of all runs so far.
        should_stop: asked after each iteration; see `marl_aajr.training.train`.
        on_phase: told what begins.
        asked: the settings of an `AdversaryRequest`.

    Returns:
        The folder. It holds a finished run unless the training was stopped.

    Raises:
        ValueError: what `AdversaryRequest` and `marl_aajr.training.train` refuse; an `out` that is taken,
            or that holds another adversary than the one to go on with. Nothing has been written.

    Example:
        >>> train_adversary("runs/team", kind="sa-rl", epsilon=0.1)
    """
    request, victims = validated(AdversaryRequest, asked), Path(victim_run)
    folder = store.default_folder(victims, request) if out is None else Path(out)
    request = request.settled(victims)
    config = request.config(victims)
    training = _Training(request, victims, folder, config, on_iteration, should_stop, on_phase)
    training.prepare(resume=resume, overwrite=overwrite)
    with one_torch_thread(), ray_for(config.resources):  # once, not for every run
        training.run()
    return folder


def find_or_train(victim: Victim, request: AdversaryRequest, *, home: Path) -> Path:
    """A finished adversary of a run that is what is asked for, or a new one, which replaces none.

    The strongest that is there will do, whatever its seed: an adversary is evaluated by what it does.
    `home` is the run of the victims, or a folder for them.
    """
    known = store.find_finished(home, request, digest=fingerprint(victim))
    if known is not None:
        return known
    victims = home
    if not RunDirectory(home).is_run:
        victims = home / "victim"
        victim.save(victims)
    out = store.unfinished_folder(store.default_folder(victims, request))
    stopped = store.is_begun(out) and store.request_of(out)[0] == request.settled(victims)
    return train_adversary(victims, out=out, resume=stopped, overwrite=not stopped, **dict(request))


@dataclass
class _Training:
    """The runs of one adversary, one after the other; each is skipped if it has finished before."""

    request: AdversaryRequest
    victims: Path
    folder: Path
    config: RunConfig
    on_iteration: OnIteration | None
    should_stop: ShouldStop | None
    on_phase: Callable[[str], None]
    done: int = 0
    tried: list[dict[str, Any]] = field(default_factory=list)

    @property
    def aside(self) -> Path:
        """The folder of the search while it lasts."""
        return store.search_folder(self.folder)

    def prepare(self, *, resume: bool, overwrite: bool) -> None:
        """See that the folder may be written, and write down what was asked.

        Raises:
            ValueError: it may not be, or something else was asked before.
        """
        asked = {**self.request.model_dump(mode="json"), "victims": str(self.victims.resolve())}
        file = self.aside / store.REQUEST
        if resume:
            if store.is_finished(self.folder):
                raise ValueError(
                    f"expected an adversary that is not finished, got {self.folder}; evaluate it"
                )
            known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
            if known != json.loads(json.dumps(asked)):
                raise ValueError(
                    f"expected the adversary that {self.folder} was started with, got other settings; change "
                    "them back, or start a new one"
                )
            return
        if self.aside.exists() and not overwrite:
            raise ValueError(
                f"expected a new folder, got {self.folder}, whose training was stopped; resume it, overwrite "
                "it, or choose another"
            )
        RunDirectory(self.folder).check_free(overwrite=overwrite)
        if self.folder.exists():
            shutil.rmtree(self.folder)
        shutil.rmtree(self.aside, ignore_errors=True)
        self.aside.mkdir(parents=True)
        write_json(file, asked)

    def run(self) -> None:
        """Everything that is still to be done, up to the end or to an interruption."""
        started = time.perf_counter()
        selection = store.SelectionEpisodes(self.config, seed=self.request.seed)
        initial = self._warm()
        config = self.config if initial is None else _begun(self.config, initial)
        settings: dict[str, Any] = {}
        if (tries := self.request.tries * self.request.repeats) > 1:
            for number in range(tries):
                self.on_phase(f"Trying settings {number + 1} of {tries}")
                if not self._try(number, config, selection):
                    return
            best = max(self.tried, key=lambda row: row["score"])
            settings = best["settings"]
            config = _begun(_with(config, settings), Path(best["folder"]) / "victim")
        config = config.model_copy(update={"env_steps": max(self.request.steps - self.done, 1)})
        self.on_phase("Training")
        if self._train(config, self.folder):
            self.on_phase(f"Evaluating it on {store.EPISODES} other episodes")
            known = {"settings": settings, "seconds": time.perf_counter() - started}
            self._finish(selection, initial, known)

    def _warm(self) -> Path | None:
        """The policies to begin with."""
        if not (self.request.warm_start and self.request.observes):
            return None
        folder = self.aside / store.WARM
        if not (folder / DESCRIPTION).is_file():
            self.on_phase("Learning what PGD does")
            threat = ObservationThreat(**self.config.env.kwargs)
            warm_start(self.config, threat, seed=self.request.seed).save(folder)
        return folder

    def _try(self, number: int, config: RunConfig, selection: store.SelectionEpisodes) -> bool:
        """One setting of the search with one seed; whether it was tried to the end."""
        place, repeat = divmod(number, self.request.repeats)
        settings = dict(self.request.defaults.alternatives[place])
        folder = self.aside / str(number + 1)
        share = SEARCH_SHARE / self.request.repeats
        changes = {"env_steps": max(int(share * self.request.steps), config.ppo.train_batch_size)}
        if repeat:
            changes["seed"] = derived_seed(self.request.seed, Purpose.ADVERSARY_SEARCH, repeat)
        if not self._train(_with(config, settings).model_copy(update=changes), folder):
            return False
        score = selection.score(Victim.load(RunDirectory(folder).victim)).mean().item()
        self.tried.append({"settings": settings, "score": score, "folder": str(folder)})
        return True

    def _train(self, config: RunConfig, folder: Path) -> bool:
        """Train a run, or go on with it; whether it has finished."""
        directory = RunDirectory(folder)
        if not directory.is_finished:
            before = self.done
            on_iteration = self.on_iteration

            def tell(record: dict[str, Any]) -> None:
                if on_iteration is not None:
                    # By it, by what it is compared with, and by its warm start.
                    played = store.EPISODES * (3 + (self.request.observes and self.request.warm_start))
                    steps = record["env_steps"] + before
                    on_iteration({**record, "env_steps": steps, "episodes_after": played})

            train(config, folder, resume=directory.is_run, on_iteration=tell, should_stop=self.should_stop)
        status = directory.status()
        self.done += status.env_steps
        return status.state == "finished"

    def _finish(
        self, selection: store.SelectionEpisodes, initial: Path | None, known: Mapping[str, Any]
    ) -> None:
        """Write the record, the last thing that makes an adversary ready."""
        directory = RunDirectory(self.folder)
        record = {
            **self.request.model_dump(mode="json"),
            "victims": str(victim_folder(self.victims).resolve()),
            "env_steps": self.done,
            "tried": [{k: row[k] for k in ("settings", "score")} for row in self.tried],
            "curve": learning_curve(directory.metrics(), before=self.done - directory.status().env_steps),
            **known,
            **selection.evaluate(
                Victim.load(directory.victim), warm_start=None if initial is None else Victim.load(initial)
            ),
        }
        if initial is not None:
            shutil.copytree(initial, self.folder / store.WARM, dirs_exist_ok=True)
        for row in self.tried:
            tried = self.folder / "search" / Path(row["folder"]).name
            shutil.copytree(row["folder"], tried, dirs_exist_ok=True)
        write_json(self.folder / store.RECORD, record)
        shutil.rmtree(self.aside)


def _begun(config: RunConfig, policy: Path) -> RunConfig:
    """The run with policies to begin with."""
    return config.model_copy(update={"initial_policy": str(policy)})


def _with(config: RunConfig, settings: dict[str, Any]) -> RunConfig:
    """The run with other numbers of PPO."""
    return config.model_copy(update={"ppo": config.ppo.model_copy(update=settings)})
