"""Certify the decisions of a victim: episodes, bounds, the largest ε of each, and attacks beside them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from marl_aajr.certificates.certificate import Certificate, CertificateRequest, CertifiedSize, Votes
from marl_aajr.certificates.decisions import Decisions, clean_decisions
from marl_aajr.certificates.margins import DecisionBounds, Margins, bounded
from marl_aajr.certificates.sandwich import Changes, attack, attacks_of, check
from marl_aajr.certificates.votes import VoteBounds, VotedDecisions, check_samples, together
from marl_aajr.core.channels import Channels, check_channels, held_together, who_observes
from marl_aajr.core.distributions import DiagGaussian
from marl_aajr.core.seeds import Purpose, derived_seed, one_torch_thread
from marl_aajr.core.threat import PerturbationSet
from marl_aajr.evaluation.admission import check_attack, settle_units
from marl_aajr.evaluation.api import player_of
from marl_aajr.evaluation.outcomes import AttackSpec, Units
from marl_aajr.evaluation.prepared_attack import prepare
from marl_aajr.evaluation.result import PlayedEnvironment
from marl_aajr.evaluation.sources import certificates_of
from marl_aajr.rollout.environments import EnvironmentSpec, make_batch
from marl_aajr.rollout.teams import announce, choose_agents
from marl_aajr.training.files import check_out, write_json
from marl_aajr.victims import Victim, smoothed
from marl_aajr.victims.filters import at_network
from marl_aajr.victims.noise import as_smoothing
from marl_aajr.victims.spaces import check_match

_COPIES = 50
_REACH = 4.0
"""The largest ε that is looked for, as a multiple of the largest that was asked for."""

Told = Callable[[str, int, int], None]
"""What is done now, and how much of it is done, of how much."""


@one_torch_thread()
def certify(
    victim: Victim | Path | str,
    env: EnvironmentSpec | str | None = None,
    request: CertificateRequest | None = None,
    *,
    env_kwargs: Mapping[str, Any] | None = None,
    out: Path | str | None = None,
    on_progress: Told | None = None,
    **settings: Any,
) -> Certificate:
    """Certify the greedy decisions of unattacked episodes, and attack the same ones.

    A decision is certified for ε where bounds prove that no perturbation in the set changes it: by intervals
    or by CROWN, on differences of logits, with room for rounding. An attack shows that one does. The truth is
    between the two, and a decision that is both certified and changed is an error.

    The certificate of a folder is written to `RUN/certificates`, or for saved victims and checkpoints to a
    folder beside theirs, `…-certificates`; the same request again replaces its file.

    Args:
        victim: plays all agents; or the folder of a finished run, a saved victim or an RLlib checkpoint.
        env: the environment, as in `evaluate`.
        request: what is certified; None: what `settings` say.
        env_kwargs: arguments of an environment that is named.
        out: a file to write the certificate to; None: see above, and of a `Victim` nothing is written.
        on_progress: told what is being done.
        settings: fields of `CertificateRequest` by name, such as `epsilons`, `norm` and `episodes`.

    Raises:
        ValueError: a network that cannot be bounded (the layer is named), an ε that single precision cannot
            tell from rounding, or what `evaluate` refuses as well.
        ContradictionError: an attack changed what is certified.

    Example:
        >>> certify("runs/ppo", epsilons=[0.005, 0.02]).sizes[0].certified
    """
    check_out(out)
    request = (request or CertificateRequest()).changed(**settings)
    folder = Path(victim) if isinstance(victim, Path | str) else None
    player, spec, _ = player_of(victim, env, env_kwargs)
    certificate = _certified(player, spec, request, on_progress or (lambda *_: None))
    path = certificates_of(folder) / _file_name(certificate) if folder is not None else None
    if (path := path if out is None else Path(out)) is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, certificate.model_dump(mode="json"))
    return certificate


@dataclass
class _Found:
    """What is known of the decisions of one policy, by size.

    Attributes:
        largest: the largest ε that each decision is certified for so far, `[B]`.
        reach: the largest that is looked for.
        rounding: the largest of what was taken off for rounding.
        voted: what is known of votes.
        interval: whether intervals alone certify, `[B]` each.
        moves: of Box actions, bounds on the move of the mean, `[B]` each.
        attacked: whether attacks changed the decision, `[B]` each.
    """

    largest: Tensor
    reach: float
    rounding: float = 0.0
    voted: list[VotedDecisions] = field(default_factory=list)
    interval: list[Tensor] = field(default_factory=list)
    moves: list[Tensor] = field(default_factory=list)
    attacked: list[Tensor] = field(default_factory=list)

    def add(self, epsilon: float, interval: Margins, crown: Margins) -> None:
        """Take in the bounds of one size, larger than those before."""
        certified = (interval.margin > 0) | (crown.margin > 0)
        self.largest = torch.where(certified, epsilon, self.largest)
        self.rounding = max(self.rounding, float(crown.rounding.max()))
        self.interval.append(interval.margin > 0)
        if interval.change is not None and crown.change is not None:
            self.moves.append(torch.minimum(interval.change, crown.change))


def _certified(victim: Victim, spec: EnvironmentSpec, request: CertificateRequest, tell: Told) -> Certificate:
    with closing(make_batch(spec, min(_COPIES, request.episodes), flat=True)) as env:
        check_match(victim, env)
        agents = choose_agents(env.teams, request.team, request.agents)
        team = env.teams[agents[0]]
        check_channels(request.channels, env.channels, agents, env=spec.name)
        agents = list(who_observes(request.channels, env.channels, agents))
        announce(spec.name, env.teams, attacked=team)
        units = settle_units(request.units, victim, agents)
        if request.smoothing is not None:
            victim = smoothed(
                victim, request.smoothing, agents=[a for a in env.teams if env.teams[a] == team]
            )
        kinds = {isinstance(victim.distribution(agent), DiagGaussian) for agent in agents}
        _check(victim, agents, request, env.channels)
        groups = clean_decisions(
            victim,
            env,
            agents,
            episodes=request.episodes,
            seed=request.seed,
            on_episode=lambda done: tell("playing", done, request.episodes),
        )
    look = _look if request.smoothing is None else _look_at_votes
    found = [
        look(victim, group, _held(request, group, env.channels), units=units, tell=tell) for group in groups
    ]
    sizes = sorted(request.epsilons)
    whole = together([one for each in found for one in each.voted])
    total = sum(len(group) for group in groups)
    return Certificate(
        env=PlayedEnvironment(name=spec.name, kwargs=dict(spec.kwargs)),
        teams=dict(env.teams),
        team=team,
        agents=tuple(agents),
        units=units,
        norm=request.norm,
        seed=request.seed,
        episodes=request.episodes,
        decisions=total,
        continuous=kinds == {True},
        perturbations={name: value for name, value in request.limits.items() if value is not None},
        votes=_votes(request, found),
        attacks=tuple(map(AttackSpec.of, attacks_of(request, groups[0].policy, sizes[0]))),
        sizes=tuple(_size(epsilon, place, found, total, whole) for place, epsilon in enumerate(sizes)),
        largest=tuple(float(f"{x:.6g}") for x in sorted(torch.cat([f.largest for f in found]).tolist())),
        reach=max(each.reach for each in found),
        rounding=max(each.rounding for each in found),
    )


def _held(
    request: CertificateRequest, group: Decisions, channels: Mapping[str, Channels]
) -> CertificateRequest:
    """The request with a mask in the place of the channels that it names."""
    known = {agent: channels.get(agent, {}) for agent in group.names}
    own = held_together(request.perturbations(1.0), known, group.inputs.shape[-1])
    assert own is not None
    return request.changed(channels=None, mask=own.mask)


def _check(
    victim: Victim, agents: Sequence[str], request: CertificateRequest, channels: Mapping[str, Channels]
) -> None:
    """Refuse what cannot be bounded or attacked before anything is played."""
    for agent in agents:
        policy = victim.policy(agent)
        if request.smoothing is None:
            bounded(policy)
        else:
            check_samples(policy.distribution, samples=request.samples, alpha=request.alpha)
        for each in attacks_of(request, policy, min(request.epsilons)):
            check_attack(each, victim, [agent], channels)


def _look(
    victim: Victim, decisions: Decisions, request: CertificateRequest, *, units: Units, tell: Told
) -> _Found:
    """Bounds and attacks at every size, the largest size of each decision, and a check of both."""
    sizes, agent = sorted(request.epsilons), decisions.agent
    space, observed = victim.observation_spaces[agent], victim.filters.get(agent)

    def inside(epsilon: float) -> PerturbationSet:
        return at_network(request.perturbations(epsilon), space, observed, units=units)

    bounds = DecisionBounds(decisions)
    bounds.check_resolution(inside(sizes[0]))
    found = _Found(torch.zeros(len(decisions), dtype=torch.float64), _REACH * sizes[-1])
    changes: list[Changes] = []
    for place, epsilon in enumerate(sizes):
        tell(f"{len(decisions)} decisions at ε = {epsilon:g}", place, len(sizes) + 1)
        found.add(
            epsilon, bounds.margins(inside(epsilon), "interval"), bounds.margins(inside(epsilon), "crown")
        )
        attacks = attacks_of(request, decisions.policy, epsilon)
        prepared = [prepare(each, victim, agent, units=units) for each in attacks]
        changes.append(attack(decisions, prepared, seed=request.seed))
    tell(f"the largest ε of {len(decisions)} decisions", len(sizes), len(sizes) + 1)
    found.largest = bounds.largest(inside(found.reach), found.largest)
    for epsilon, each in zip(sizes, changes, strict=True):
        check(decisions, each, found.largest, epsilon=epsilon)
        found.attacked.append(each.changed)
    return found


def _look_at_votes(
    victim: Victim, decisions: Decisions, request: CertificateRequest, *, units: Units, tell: Told
) -> _Found:
    """The same of decisions that are votes, certified by draws of noise."""
    sizes, agent = sorted(request.epsilons), decisions.agent
    space, observed = victim.observation_spaces[agent], victim.filters.get(agent)
    inside = {e: at_network(request.perturbations(e), space, observed, units=units) for e in sizes}
    tell(f"{request.samples} votes on each of {len(decisions)} decisions", 0, len(sizes) + 1)
    bounds = VoteBounds(
        decisions, request.samples, alpha=request.alpha, seed=derived_seed(request.seed, Purpose.PROBE)
    )
    voted = VotedDecisions(bounds, bounds.counts(), inside[sizes[0]])
    found = _Found(voted.largest(), bounds.reach(inside[sizes[0]]), voted=[voted])
    for place, epsilon in enumerate(sizes, 1):
        tell(f"{len(decisions)} decisions at ε = {epsilon:g}", place, len(sizes) + 1)
        if (moves := bounds.change(inside[epsilon])) is not None:
            found.moves.append(moves)
        attacks = attacks_of(request, decisions.policy, epsilon)
        prepared = [prepare(each, victim, agent, units=units) for each in attacks]
        changes = attack(decisions, prepared, seed=request.seed)
        confirmed = bounds.confirmed(changes, found.largest, epsilon=epsilon)
        check(decisions, confirmed, found.largest, epsilon=epsilon)
        found.attacked.append(changes.changed)
    return found


def _votes(request: CertificateRequest, found: Sequence[_Found]) -> Votes | None:
    if request.smoothing is None:
        return None
    nothing = torch.cat([each.largest == 0 for each in found])
    return Votes(
        smoothing=as_smoothing(request.smoothing),
        samples=request.samples,
        alpha=request.alpha,
        abstained=_share([nothing], len(nothing)),
    )


def _size(
    epsilon: float, place: int, found: Sequence[_Found], total: int, whole: Tensor | None
) -> CertifiedSize:
    moves = [each.moves[place : place + 1] for each in found if each.moves]
    # A smaller perturbation is one of the larger set as well.
    attacked = [torch.stack(each.attacked[: place + 1]).any(0) for each in found]
    return CertifiedSize(
        epsilon=epsilon,
        interval=None if whole is not None else _share([each.interval[place] for each in found], total),
        certified=_share([each.largest >= epsilon for each in found], total),
        attacked=_share(attacked, total),
        mean_change=float(torch.cat([each[0] for each in moves]).mean()) if moves and all(moves) else None,
        whole_steps=None if whole is None else float((whole >= epsilon).double().mean()),
    )


def _share(columns: Sequence[Tensor], total: int) -> float:
    return sum(int(column.sum()) for column in columns) / total


def _file_name(certificate: Certificate) -> str:
    """Says the seed and the episodes, and differs where anything asked for does."""
    names = {"env", "team", "agents", "units", "norm", "perturbations", "attacks"}
    asked = certificate.model_dump(mode="json", include=names)
    if (votes := certificate.votes) is not None:
        asked["votes"] = [str(votes.smoothing), votes.samples, votes.alpha]
    asked["epsilons"] = [size.epsilon for size in certificate.sizes]
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]
    return f"seed{certificate.seed}-episodes{certificate.episodes}-{digest}.json"
