"""Runs whose policies are language models: trained with AAJR in their embeddings, saved, read elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from marl_aajr.evaluation import evaluate
from marl_aajr.language import LanguageNetwork, model_config, read_model, word_tokenizer
from marl_aajr.language.models import new_model, read_tokenizer
from marl_aajr.regularizers import make_regularizer
from marl_aajr.rllib.language_module import send_first_weights
from marl_aajr.rollout.text_observations import tokenized
from marl_aajr.training.algorithm import build_config
from marl_aajr.training.config import RunConfig
from marl_aajr.training.policy_mapping import policy_mapping_of
from marl_aajr.training.run_directory import RunDirectory
from marl_aajr.training.trainer import train
from marl_aajr.victims import Victim, fingerprint
from tests.language.folders import save_model, subword_tokenizer
from tests.rollout.test_text_observations import Page
from tests.training.runs import numbers, tiny, train_and_copy, weights

BARGAIN = {"name": "marl_aajr.envs.bargain_v0"}
AAJR = {
    "name": "aajr",
    "ramp": None,
    "coefficient": 30.0,
    "sample_fraction": 0.5,
    "epsilon": 0.5,
    "norm": "l2",
    "steps": 2,
    "channels": ["messages"],
    "interval": 1,
}


def reading(**changes: Any) -> RunConfig:
    language = {"hidden_size": 8, "layers": 1}
    return tiny(
        **{"env": BARGAIN, "env_steps": 200, "model": {"language": language}, "method": AAJR, **changes}
    )


@pytest.fixture(scope="module")
def run(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(reading(), tmp_path_factory.mktemp("language") / "run")


def test_the_penalty_holds_the_gain_down(run: Path, tmp_path: Path) -> None:
    plain = train(reading(method={**AAJR, "coefficient": 0.0, "measured": True}), tmp_path / "plain")
    before, after = ([line["modules"]["team"] for line in numbers(path)] for path in (plain, run))
    assert before[0]["aajr/gain_mean"] > 0
    assert after[-1]["aajr/gain_mean"] < 0.9 * before[-1]["aajr/gain_mean"]
    assert after[0]["aajr/objective_gain"] > 0
    assert any(not torch.equal(weights(run)[name], value) for name, value in weights(plain).items())


def test_a_run_that_was_resumed_from_its_checkpoint_is_the_same(ray_session: None, tmp_path: Path) -> None:
    """The unit of ε, too, which follows from embeddings that training moves."""
    config = reading(checkpoint_every=1, ppo={"lr": 0.02})
    straight, resumed = train_and_copy(config, tmp_path, after=1)
    train(config, resumed, resume=True)
    assert numbers(resumed) == numbers(straight)
    assert fingerprint(Victim.load(RunDirectory(resumed).victim)) == fingerprint(
        Victim.load(RunDirectory(straight).victim)
    )


def test_a_victim_takes_its_words_along(run: Path, tmp_path: Path) -> None:
    shutil.copytree(RunDirectory(run).victim, tmp_path / "victim")
    assert sorted(path.name for path in (tmp_path / "victim").iterdir()) == [
        "victim.json",
        "victim.safetensors",
    ]
    torch.manual_seed(7)
    drawn = torch.get_rng_state()
    victim = Victim.load(tmp_path / "victim")
    assert torch.equal(torch.get_rng_state(), drawn)
    network = victim.modules["team"]
    assert isinstance(network, LanguageNetwork)
    words = policy_mapping_of(reading()).words("ann")
    assert words is not None
    assert tuple(network.vocabulary) == words.vocabulary
    assert network.actions == ["books", "hats", "balls"]
    tokenizer = json.loads(network.tokenizer)
    assert tokenizer["model"]["vocab"]["books"] == network.token_ids[network.vocabulary.index("books")]
    assert json.loads((tmp_path / "victim" / "victim.json").read_text())["modules"]["team"][0]["vocabulary"]


def test_the_quick_suite_attacks_its_embeddings(run: Path) -> None:
    result = evaluate(run, suite="quick", episodes=4, epsilons=[0.5])
    assert {row.attack.name for row in result.attacks} >= {"pgd"}
    assert all(torch.tensor(row.returns).isfinite().all() for row in result.attacks)


def test_sizes_in_other_units_are_refused(run: Path) -> None:
    """Also where a regularizer meets its module in a learner of somebody else's."""
    victim = Victim.load(RunDirectory(run).victim)
    with pytest.raises(ValueError, match="units of the mean distance between neighbouring embeddings"):
        evaluate(victim, suite="quick", episodes=2, epsilons=[300.0])
    tokens = torch.randint(1, 9, (4, 17), generator=torch.Generator().manual_seed(0))
    policy = victim.policy("ann", tokens=tokens)
    with pytest.raises(ValueError, match="units of the mean distance between neighbouring embeddings"):
        make_regularizer("aajr", epsilon=300.0).fitted(policy, policy.embed(tokens))


def test_other_words_are_refused(run: Path) -> None:
    """A victim to whom two words of the environment are exchanged."""
    victim = Victim.load(RunDirectory(run).victim)
    network: Any = victim.modules["team"]
    network.vocabulary[3:5] = network.vocabulary[4:2:-1]
    words = policy_mapping_of(reading()).words("ann")
    assert words is not None
    match = f"token 3 is '{words.vocabulary[4]}', which stands for '{words.vocabulary[3]}' there"
    with pytest.raises(ValueError, match=match):
        evaluate(victim, suite="quick", episodes=2)


def test_weights_of_a_folder_are_trained_on(tmp_path: Path) -> None:
    words = policy_mapping_of(reading()).words("ann")
    assert words is not None
    folder = tmp_path / "model"
    torch.manual_seed(1)
    made: Any = new_model(model_config("qwen2", vocab_size=len(words) + 2, hidden_size=8, layers=1))
    made.save_pretrained(folder)
    word_tokenizer([*words.vocabulary[::-1], "and", "or"], padding="<pad>").save_pretrained(folder)
    config = reading(model={"language": {"folder": str(folder)}})
    module = build_config(config).rl_module_spec.rl_module_specs["team"].build()
    table = made.get_input_embeddings().weight
    torch.testing.assert_close(module.actor.embeddings, table.flip(0)[2:])


def subword_model(folder: Path, kind: str = "gpt2", dtype: torch.dtype = torch.float32) -> Any:
    words = policy_mapping_of(reading()).words("ann")
    assert words is not None
    return save_model(folder, kind, subword_tokenizer(words.vocabulary[1:]), dtype=dtype)


@pytest.mark.parametrize(
    ("kind", "dtype", "settings"),
    [
        ("gpt2", torch.float32, {}),
        ("qwen2", torch.bfloat16, {"head": True, "critic": "shared"}),
    ],
)
@pytest.mark.usefixtures("ray_session")
def test_runs_from_a_folder(kind: str, dtype: torch.dtype, settings: dict[str, Any], tmp_path: Path) -> None:
    """They export what they trained, and one that is resumed is the same without the folder."""
    subword_model(tmp_path / "model", kind, dtype)
    language = {"folder": str(tmp_path / "model"), **settings}
    config = reading(model={"language": language}, checkpoint_every=1, method={"name": "none"})
    straight, out = train_and_copy(config, tmp_path, after=1)
    whole = Victim.load(RunDirectory(straight).victim)
    shutil.move(tmp_path / "model", tmp_path / "elsewhere")
    train(config, out, resume=True)
    assert numbers(out) == numbers(straight)
    assert fingerprint(Victim.load(RunDirectory(out).victim)) == fingerprint(whole)
    network: Any = whole.modules["team"]
    model: Any = read_model(tmp_path / "elsewhere")[0]
    first = model.get_input_embeddings().weight
    assert not torch.equal(network.embedding_table, first)
    torch.testing.assert_close(network.embedding_table, first, rtol=0, atol=0.1)
    with pytest.raises(ValueError, match=r"folder of a model with a config\.json"):
        train(config, tmp_path / "new")


@pytest.mark.usefixtures("ray_session")
def test_the_driver_sends_first_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To learners and env runners that do not find the folder."""
    model = subword_model(tmp_path)
    config = reading(model={"language": {"folder": str(tmp_path)}}, method={"name": "none"})
    built = build_config(config)
    with monkeypatch.context() as patch:
        patch.setattr("marl_aajr.rllib.language_module.has_weights", lambda _: False)
        algorithm: Any = built.build_algo()
    try:
        (learner,) = (algorithm.learner_group._learner,)
        assert learner.module["team"].unwrapped().awaited == str(tmp_path)
        send_first_weights(algorithm)
        for part in (learner, algorithm.env_runner):
            module = part.module["team"].unwrapped()
            assert module.awaited is None
            assert torch.equal(module.actor.embedding_table, model.get_input_embeddings().weight)
    finally:
        algorithm.stop()


def page(folder: str) -> Any:
    """Text that the model's own tokenizer reads."""
    return tokenized(Page(), read_tokenizer(folder), length=8)


@pytest.mark.usefixtures("ray_session")
def test_text_is_read_by_the_models_own_tokenizer(tmp_path: Path) -> None:
    tokenizer = subword_tokenizer(["red", "crimson", "door", "a"])
    save_model(tmp_path / "model", "gpt2", tokenizer)
    folder = str(tmp_path / "model")
    config = reading(
        env={"name": "tests.training.test_language_runs:page", "kwargs": {"folder": folder}},
        model={"language": {"folder": folder}},
        method={name: value for name, value in AAJR.items() if name != "channels"},
    )
    run = train(config, tmp_path / "run")
    (network,) = Victim.load(RunDirectory(run).victim).modules.values()
    assert isinstance(network, LanguageNetwork)
    assert network.token_ids == list(range(len(tokenizer)))
    assert network.tokenizer == tokenizer.backend_tokenizer.to_str()
    assert numbers(run)[-1]["modules"].popitem()[1]["aajr/gain_mean"] > 0


def test_a_folder_without_weights(tmp_path: Path) -> None:
    subword_model(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(
        ValueError, match=r"expected a model.safetensors in model.language.folder .*model, got"
    ):
        train(reading(model={"language": {"folder": str(tmp_path / "model")}}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"env": {"name": "simple_spread_v3"}}, "observations are words for model.language, got Box"),
        ({"model": {"language": {"folder": "gpt2"}}}, "folder of a model with a config.json, got 'gpt2'"),
        ({"model": {"language": {"hidden_size": 9, "heads": 2}}}, "multiple of heads, got 9 for 2 heads"),
        ({"model": {"language": {}, "lstm": 8}}, "expected model.lstm None with model.language, got 8"),
        ({"model": {"language": {}, "hidden": [8]}}, r"expected model.hidden \(64, 64\) with model.language"),
        ({"model": {"language": {"folder": "here", "layers": 2}}}, "model.language.layers 1 with a folder"),
        ({"method": {"name": "radial", "epsilon": 0.1}}, "radial, .* layers, got a language model"),
        ({"method": {"name": "atla", "epsilon": 0.1}}, "for method atla, got 'ann', who reads words"),
        ({"method": {**AAJR, "objective": "value"}}, "critic"),
        ({"observation_filter": "mean_std"}, "floating-point observations for observation_filter"),
        (
            {"method": {**AAJR, "epsilon": 300.0}},
            "units of the mean distance between neighbouring embeddings",
        ),
    ],
)
def test_refusals(
    changes: dict[str, Any], match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=match):
        train(reading(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()
