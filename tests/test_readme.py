"""Every command and every snippet of the README and of the guides runs."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest

from marl_aajr.cli.app import main
from tests.conftest import draw_nothing
from tests.forked import Forked, joining

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "scripts" / "reference").glob("*.md"))]
BLOCKS = [
    (page, language, block)
    for page in PAGES
    for language, block in re.findall(
        r"^```(\w+)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
]
COMMANDS = [
    line.partition("  #")[0].strip()
    for _, language, block in BLOCKS
    if language == "bash"
    for line in block.splitlines()
]
SNIPPETS = [
    pytest.param(block, id=f"{page.stem}-{number}")
    for number, (page, language, block) in enumerate(BLOCKS)
    if language == "python"
]
SMALL = {
    "train": "--env-steps 200 --hidden 8 --set ppo.train_batch_size=200 --set ppo.minibatch_size=100",
    "adversary": "--env-steps 200 --search 1 --no-warm-start",
    "evaluate": "--episodes 2 --selection-episodes 2",
    "certify": "--episodes 2",
}
"""Appended to the command of that name: the last of two options counts."""

FEW = """
summary: of the suite `standard`, an attack of each kind
episodes: 2
selection_episodes: 2
actions: [greedy]
units: raw
weakest_link: true
controls: [random, idle]
epsilons: [0.1]
attacks: [noise, pgd]
"""
"""Played instead of the suite `standard`, which fits a critic first: half a minute."""

SHORT = {
    "train_batch_size=1000, minibatch_size=500": "train_batch_size=100, minibatch_size=100",
    ".environment(register(": ".env_runners(num_env_runners=0).environment(register(",
}
"""What is put for parts of the snippets: smaller numbers, and no processes that RLlib would start."""


pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]  # the first test waits for every command


@pytest.fixture(scope="module")
def workplace(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the commands of all pages have been run, in their order."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "experiments").symlink_to(ROOT / "experiments")
    (folder / "own_environment.py").symlink_to(ROOT / "scripts" / "examples" / "own_environment.py")
    (folder / "few.yaml").write_text(FEW, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        for command in COMMANDS:
            program, *words = shlex.split(command)
            if program == "marl-aajr":
                words = ["few.yaml" if word == "standard" else word for word in words]
                call(*words, *shlex.split(SMALL.get(words[0], "")))
                if words[0] == "compare":
                    draw_nothing(patch)  # One report is enough.
    return folder


def call(*words: str) -> None:
    """A command of marl-aajr, which ends well."""
    with pytest.raises(SystemExit) as over:
        main(words)
    assert not over.value.code, words


def test_the_commands_leave_a_report(workplace: Path) -> None:
    assert "</html>" in (workplace / "runs" / "report.html").read_text(encoding="utf-8")


def test_the_scripts_are_there_and_run() -> None:
    """What they do is tested by test_scripts.py and test_demo_script.py; CI runs scripts/test itself."""
    scripts = {shlex.split(command)[0] for command in COMMANDS if command.startswith("scripts/")}
    assert scripts == {"scripts/demo", "scripts/test", "scripts/docs"}
    assert all(os.access(ROOT / script, os.X_OK) for script in scripts)


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_each_snippet_prints_what_it_promises(
    snippet: str, workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for text, small in SHORT.items():
        snippet = snippet.replace(text, small)
    monkeypatch.chdir(workplace)
    exec(compile(snippet, "README.md", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_the_links_and_pictures_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_reference_is_built_from_pages_and_docstrings(ray_session: None, tmp_path: Path) -> None:
    """Of one module, for the sake of time; `scripts/docs` builds them all."""
    docs = (ROOT / "scripts" / "docs.py", "--out", tmp_path, "marl_aajr.regularizers.aajr")
    done = Forked(docs, cwd=ROOT, **joining()).finish()
    assert done.returncode == 0, done.stderr[-2000:]
    page = (tmp_path / "marl_aajr" / "regularizers" / "aajr.html").read_text(encoding="utf-8")
    assert "share of the rows" in page
    index = (tmp_path / "guide.html").read_text(encoding="utf-8")
    assert all((tmp_path / page).exists() for page in re.findall(r'href="(guide/\w+\.html)"', index))
    assert "guide/own_attack.html" in index
    settings = (tmp_path / "guide" / "settings.html").read_text(encoding="utf-8")
    assert all(f"<code>{key}</code>" in settings for key in ("ppo.gamma", "sample_fraction", "search"))
