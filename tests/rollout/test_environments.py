"""Environments by name, and what a wrong name or argument is answered."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from mpe2 import simple_spread_v3

from marl_aajr.rollout.environments import EnvironmentSpec, known_environments, resolve
from marl_aajr.rollout.pettingzoo_games import ParallelGame, TurnBasedGame
from tests.rollout.toy_games import Scripted


def make(*, agents: str = "ab", limit: int = 3) -> Scripted:
    """A factory as a user writes it."""
    return Scripted(dict.fromkeys(agents, (limit, "truncated")), agents=agents)


HERE = "tests.rollout.test_environments"


@pytest.mark.parametrize(
    ("name", "canonical", "kind"),
    [
        ("simple_spread_v3", "simple_spread_v3", ParallelGame),
        ("mpe2.simple_spread_v3", "mpe2.simple_spread_v3", ParallelGame),
        ("mpe2.simple_spread_v3:env", "mpe2.simple_spread_v3:env", TurnBasedGame),
        ("pettingzoo.sisl.pursuit_v5", "pettingzoo.sisl.pursuit_v5", ParallelGame),
        ("sisl/pursuit-v5", "sisl/pursuit-v5", ParallelGame),
        ("classic/tictactoe_v3", "classic/tictactoe-v3", TurnBasedGame),
        ("classic/tictactoe", "classic/tictactoe-v3", TurnBasedGame),
        ("classic/rps-v2", "classic/rps-v2", ParallelGame),
        (f"{HERE}:make", f"{HERE}:make", ParallelGame),
    ],
)
def test_a_name_becomes_a_game(name: str, canonical: str, kind: type) -> None:
    spec = resolve(name)
    assert spec.name == canonical
    game = spec.make()
    assert isinstance(game, kind)
    assert game.name == canonical
    game.reset(seed=0)


def test_arguments_reach_the_environment() -> None:
    assert len(resolve("simple_spread_v3", {"N": 4}).make().possible_agents) == 4
    assert resolve(f"{HERE}:make", {"agents": "pqr"}).make().possible_agents == ("p", "q", "r")


def test_a_specification_is_a_picklable_value() -> None:
    spec = resolve("simple_spread_v3", {"N": 2})
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert spec.kwargs == {"N": 2}
    with pytest.raises(AttributeError):
        spec.name = "other"  # type: ignore[misc]


def test_what_is_listed_resolves_and_says_what_it_is() -> None:
    known = known_environments()
    names = [spec.name for spec in known]
    assert len(set(names)) == len(names)
    assert {"simple_spread_v3", "sisl/pursuit-v5", "classic/leduc_holdem-v4"} <= set(names)
    assert all(spec.summary for spec in known)
    for spec in known:
        if not spec.name.startswith("atari/"):  # needs ROMs
            assert resolve(spec.name) == EnvironmentSpec(spec.name, {}, spec.summary)


def test_listing_imports_no_environment() -> None:
    script = (
        "import sys; from marl_aajr.rollout.environments import known_environments as k; k();"
        "assert not {'mpe2', 'pygame', 'torch', 'ray'} & set(sys.modules), 'not cheap'"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("simple_spred_v3", r"did you mean simple_spread_v3.*\?\); see marl-aajr list envs, or give"),
        ("spread", r"did you mean marl_aajr.envs.simple_spread_v3 or simple_spread_v3\b"),
        ("tictactoe_v3", r"did you mean classic/tictactoe-v3\?"),
        ("sisl/pursuit-v4", r"did you mean sisl/pursuit-v5\?"),
        ("", "unknown environment ''.*import path such as my_package.my_env:make"),
        ("../env", r"unknown environment '\.\./env'"),
        ("mpe2.simple_tag_v2", "simple_tag_v2 is deprecated: use mpe2.simple_tag_v3$"),
        ("pettingzoo.sisl.pursuit_v4", "is deprecated: use pettingzoo.sisl.pursuit_v5$"),
        ("pettingzoo.sisl.pursuit_v99", "does not exist: use pettingzoo.sisl.pursuit_v5$"),
        ("pettingzoo.sisl.waterworld_v4", "it has multiwalker_v9, pursuit_v5$"),
        ("pettingzoo.mpe.simple_tag_v3", "pip install mpe2 and write mpe2.simple_tag_v3$"),
        ("no_such_package.env_v1", "pip install no_such_package,"),
        ("mpe2.simple_tag_v3:mk", "define mk, got a module with env, parallel_env, raw_env"),
        ("json", "unknown environment 'json'"),
        ("json.decoder", "json.decoder to define parallel_env or env"),
        ("mpe2:__version__", "to be an environment factory, got str"),
    ],
)
def test_a_wrong_name_is_answered_with_the_right_one(name: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        resolve(name)
    assert "\n" not in str(caught.value)


def test_a_missing_dependency_is_answered_with_what_to_install() -> None:
    try:
        import multi_agent_ale_py  # type: ignore[import-not-found]  # noqa: F401
    except ImportError:
        for name in ("pettingzoo.atari.pong_v3", "atari/pong-v3"):
            with pytest.raises(ValueError, match=r'multi_agent_ale_py: pip install "pettingzoo\[atari\]"'):
                resolve(name)
    else:
        pytest.skip("Atari is installed")


def test_a_module_that_is_broken_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_env.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="importing broken_env raised ZeroDivisionError"):
        resolve("broken_env:make")


@pytest.mark.parametrize("name", ["simple_spread_v3", "mpe2.simple_spread_v3:parallel_env"])
def test_an_argument_that_the_environment_refuses_is_named_with_the_accepted_ones(
    name: str,
) -> None:
    with pytest.raises(ValueError, match="argument 'M'; it takes N, local_ratio, max_cycles"):
        resolve(name, {"M": 3}).make()
    with pytest.raises(ValueError, match="local_ratio is a proportion"):
        resolve(name, {"local_ratio": 3}).make()


def test_a_signature_is_checked_before_anything_is_built() -> None:
    with pytest.raises(ValueError, match="argument 'speed'; it takes agents, limit"):
        resolve(f"{HERE}:make", {"speed": 3})
    with pytest.raises(ValueError, match="missing a required argument: 'endings'"):
        resolve("tests.rollout.toy_games:Scripted")


class Maps(Scripted):
    def __init__(self, size: int = 3, *, fails: str = "KeyError") -> None:
        raise {"KeyError": KeyError, "ImportError": ImportError}[fails](f"map_of_size_{size}")


@pytest.mark.parametrize("fails", ["KeyError", "ImportError"])
def test_an_error_of_a_constructor_is_its_own(fails: str) -> None:
    says = (
        rf"Maps to be built with .*got {fails} of its own \(test_environments.py, line \d+\): .*map_of_size_3"
    )
    with pytest.raises(ValueError, match=f"{says}.*; it takes size, fails$") as caught:
        resolve(f"{HERE}:Maps", {"fails": fails}).make()
    assert type(caught.value.__cause__).__name__ == fails


def test_a_module_that_a_constructor_lacks_is_named() -> None:
    with pytest.raises(ValueError, match="needs the module a_simulator: pip install a_simulator"):
        resolve(f"{HERE}:simulated").make()


def simulated() -> Any:
    import a_simulator  # type: ignore[import-not-found]

    return a_simulator


def test_names_are_those_of_the_packages_documentation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in `gymnasium_robotics.mamujoco_v1`, which the package imports from a folder of its own."""
    for folder, text in (
        ("robots", "from robots.envs import arms_v1\nfrom robots.envs.arms_v1 import Arms\n"),
        ("robots/envs", ""),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text(text)
    arms = f"from {HERE} import make\nArms = parallel_env = make\n"
    (tmp_path / "robots" / "envs" / "arms_v1.py").write_text(arms)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("robots.arms_v1", "robots.Arms", "robots.arms_v1:Arms", "robots.envs.arms_v1"):
        assert resolve(name, {"agents": "pq"}).make().possible_agents == ("p", "q")
    with pytest.raises(ValueError, match="expected a module of robots, got legs_v1; it has envs"):
        resolve("robots.legs_v1")


def test_a_factory_is_as_good_as_a_name_and_travels_by_value() -> None:
    agents = "xy"
    spec = resolve(lambda: make(agents=agents))
    sent = cloudpickle.loads(cloudpickle.dumps(spec))
    assert sent.make().possible_agents == ("x", "y")
    assert resolve(sent) is sent
    assert resolve(make, {"limit": 5}).kwargs == {"limit": 5}
    with pytest.raises(ValueError, match="argument 'speed'; it takes agents, limit"):
        resolve(make, {"speed": 3})
    with pytest.raises(ValueError, match=r"got EnvironmentSpec.*, which has its own"):
        resolve(spec, {"limit": 5})


def test_what_a_script_defines_is_sent_by_value_and_found_by_name_there_only(tmp_path: Path) -> None:
    script = f"""
import cloudpickle
from marl_aajr.rollout.environments import resolve
from tests.rollout.toy_games import Scripted

def make():
    return Scripted({{"a": (1, "truncated")}}, agents="a")

with open({str(tmp_path / "spec")!r}, "wb") as file:
    cloudpickle.dump(resolve("__main__:make"), file)
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    assert pickle.loads((tmp_path / "spec").read_bytes()).make().possible_agents == ("a",)
    with pytest.raises(ValueError, match="the factory was in another script or notebook"):
        resolve("__main__:my_env")


def test_a_module_is_a_name_and_an_environment_is_none() -> None:
    assert resolve(simple_spread_v3) == resolve("mpe2.simple_spread_v3")
    for given, kind in ((simple_spread_v3.parallel_env(), "aec_to_parallel_wrapper"), (None, "NoneType")):
        with pytest.raises(ValueError, match=rf"import path or factory.*got a {kind}: each run"):
            resolve(given)  # type: ignore[arg-type]


def test_a_deprecated_factory_names_its_successor() -> None:
    with pytest.raises(ValueError, match="pursuit_v4 is now deprecated, use pursuit_v5"):
        resolve(f"{HERE}:deprecated").make()


def deprecated() -> Any:
    import pettingzoo.sisl

    return pettingzoo.sisl.pursuit_v4.parallel_env()


def test_what_is_no_pettingzoo_environment_is_refused() -> None:
    with pytest.raises(ValueError, match=r"to be a PettingZoo .* MultiAgentEnv, got dict"):
        resolve("builtins:dict").make()
