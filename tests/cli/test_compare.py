"""`marl-aajr compare` in this process, on run directories with made-up numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from marl_aajr.cli.app import main
from marl_aajr.rollout.environments import resolve
from marl_aajr.training.run_directory import RunDirectory
from tests.evaluation.players import team
from tests.report.evaluations import evaluation
from tests.report.factory import config, write_method, write_run

TAG = {"name": "mpe2.simple_tag_v3", "kwargs": {}}


def ended(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output without line breaks of tables, standard error."""
    with pytest.raises(SystemExit) as stop:
        main(["compare", *map(str, arguments)])
    shown = capsys.readouterr()
    return int(stop.value.code or 0), " ".join(shown.out.split()), shown.err


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """One run of each of two methods."""
    return [
        write_run(tmp_path / name, configuration=config(name), evaluations={"e": content})
        for name, content in (
            ("none", evaluation(-40.0, selection_episodes=25)),
            (
                "aajr",
                evaluation(-41.0, attacks={("noise", 0.1): 0.0, ("pgd", 0.1): -1.0}, selection_episodes=25),
            ),
        )
    ]


@pytest.mark.usefixtures("undrawn")
def test_the_terminal_says_what_the_page_says(
    tmp_path: Path, runs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = ended(capsys, *runs, "--out", tmp_path / "r.html")
    assert code == 0
    assert "Worst: of each run its own, chosen by its return on 25 other episodes" in out
    verdict = "aajr survives attacks best; without an attack it returns 1.0 less than plain PPO."
    assert f"Verdict: {verdict}" in out
    assert "worst at ε 0.1" in out
    assert str(tmp_path / "r.html") in out
    assert (
        "over the same 20 episodes, pair by pair. There is one run per method: another training seed" in out
    )
    assert "Not shown, to compare like with like: 2 evaluations; the report lists them." in out
    page = (tmp_path / "r.html").read_text().replace("\u00a0", " ")
    assert f'<p class="verdict">{verdict}</p>' in page
    assert "<summary>2 evaluations not shown, to compare like with like</summary>" in page
    assert f"<li>noise and pgd at ε = 0.2: not evaluated on {runs[1]}</li>" in page


@pytest.mark.usefixtures("undrawn")
def test_the_median_run_is_said_in_the_terminal_and_in_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = write_method(tmp_path, "none", clean=[-40.0, -41.0, -43.0])
    _, out, _ = ended(capsys, *paths, "--out", tmp_path / "r.html")
    assert "median run: pgd" in out
    assert " -61.0 " in out

    _, out, _ = ended(capsys, *paths, "--out", tmp_path / "r.html", "--json")
    ((method,),) = (comparison["methods"] for comparison in json.loads(out))
    median = method["median_run_under_its_strongest_attack"][-1]
    assert (median["epsilon"], median["attack"], median["return"]) == (0.2, "pgd", -61.0)
    assert (median["run"], median["interval_over"]) == (str(paths[1]), "episodes")
    assert method["clean"]["return"] == pytest.approx(-124 / 3)


@pytest.mark.usefixtures("undrawn")
def test_json_tells_methods_apart_by_the_interval_of_their_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By hand: means −42 and −41, variance 1, three runs each: 1 ± t₄(0.975) · √(2/3) = 1 ± 2.2669."""
    plain = write_method(tmp_path, "none", clean=[-41.0, -42.0, -43.0])
    robust = write_method(tmp_path, "aajr", clean=[-40.0, -41.0, -42.0])
    _, out, _ = ended(capsys, *plain, *robust, "--out", tmp_path / "r.html", "--json")
    ((difference,),) = (comparison["differences"] for comparison in json.loads(out))
    assert (difference["method"], difference["minus"]) == ("none (plain PPO)", "aajr")
    found = difference["clean"]
    assert [found[key] for key in ("return", "low", "high")] == pytest.approx(
        [-1.0, -1 - 2.2669, -1 + 2.2669], abs=1e-3
    )
    assert found["interval_over"] == "runs"
    assert [worst["epsilon"] for worst in difference["worst"]] == [0.1, 0.2]


@pytest.mark.usefixtures("undrawn")
def test_who_learned_nothing_is_said_before_the_verdict(
    tmp_path: Path, runs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    idle = write_run(
        tmp_path / "idle", configuration=config("ernie"), evaluations={"e": evaluation(nothing=-40.0)}
    )
    _, out, _ = ended(capsys, *runs, idle, "--out", tmp_path / "r.html")
    nothing = "ernie learned nothing (return −40.0, doing nothing −40.0) and is not ranked."
    assert out.index(nothing) < out.index("Verdict: aajr survives attacks best")
    _, out, _ = ended(capsys, *runs, idle, "--out", tmp_path / "r.html", "--json")
    (found,) = json.loads(out)
    assert found["ranked"] == ["none (plain PPO)", "aajr"]
    assert found["verdict"].startswith("aajr survives")


def test_a_run_without_evaluation_names_the_command_to_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "bare", evaluations={})
    code, _, err = ended(capsys, run, "--out", tmp_path / "none.html")
    assert (code, err.count("\n")) == (2, 1)
    assert f"marl-aajr evaluate {run}" in err
    assert not (tmp_path / "none.html").exists()


@pytest.mark.usefixtures("undrawn")
def test_failed_checks_are_said_before_the_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checks = [{"name": "gradients", "verdict": "fail", "text": "Masked."}]
    run = write_run(tmp_path / "run", evaluations={"e": evaluation(checks=checks)})
    _, out, _ = ended(capsys, run, "--out", tmp_path / "r.html")
    assert "1 check of the evaluations FAILED" in out
    assert out.index("FAILED") < out.index("Verdict:")


@pytest.mark.usefixtures("undrawn")
def test_each_environment_has_a_table_and_a_section(
    tmp_path: Path, runs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_run(
        tmp_path / "tag", configuration=config(env=TAG), evaluations={"e": evaluation(7.0, env=TAG)}
    )
    code, out, _ = ended(capsys, *runs, other, "--out", tmp_path / "r.html")
    assert code == 0
    assert out.count("Mean return: ") == 2
    assert "7.0" in out
    assert "Who survives on 2 environments" in (tmp_path / "r.html").read_text()


@pytest.mark.usefixtures("undrawn")
def test_references_make_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = write_method(tmp_path, "none", clean=[-40.0, -41.0, -42.0])
    code, _, _ = ended(
        capsys, *paths, "--out", tmp_path / "r.html", "--reference", "mpe2.simple_spread_v3=-90,-30"
    )
    assert code == 0
    assert "scores from 0 (floor) to 1 (target)" in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("simple_spread_v3", "expected --reference ENV=FLOOR,TARGET"),
        ("simple_spread_v3=1,2,3", "expected --reference ENV=FLOOR,TARGET"),
        ("simple_spread_v3=2,1", "expected a floor below the target"),
        ("elsewhere=1,2", "expected a reference for an environment of the runs (mpe2.simple_spread_v3)"),
    ],
)
def test_bad_references_are_refused_before_anything_is_written(
    tmp_path: Path, runs: list[Path], capsys: pytest.CaptureFixture[str], reference: str, says: str
) -> None:
    code, _, err = ended(capsys, *runs, "--out", tmp_path / "r.html", "--reference", reference)
    assert code == 2
    assert says in err
    assert not (tmp_path / "r.html").exists()


@pytest.mark.usefixtures("undrawn")
def test_a_film_is_shown_where_it_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = resolve("marl_aajr.envs.simple_spread_v3", {"max_cycles": 2})
    env: dict[str, Any] = {"name": spec.name, "kwargs": dict(spec.kwargs)}
    content = evaluation(attacks={("pgd", 0.1): -1.0}, env=env)
    run = write_run(tmp_path / "run", configuration=config(env=env), evaluations={"e": content})
    team(spec).save(RunDirectory(run).victim)
    _, _, err = ended(capsys, run, "--out", tmp_path / "r.html", "--film")
    assert not err
    assert '<img src="data:image/gif;base64,R0lGOD' in (tmp_path / "r.html").read_text()


@pytest.mark.usefixtures("undrawn")
def test_a_film_that_cannot_be_shot_is_said_to_be_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """This run has no victim."""
    run = write_run(tmp_path / "run", evaluations={"e": evaluation(attacks={("pgd", 0.1): -1.0})})
    code, _, _ = ended(capsys, run, "--out", tmp_path / "r.html", "--film")
    assert code == 0
    assert "<p>No film: expected " in (tmp_path / "r.html").read_text()
