"""Build the reference: the pages of scripts/reference and the API, from the docstrings, as static HTML.

scripts/docs [--out build/reference] [MODULE ...]

Open index.html in the folder; nothing is fetched, no server is needed. MODULE, such as
marl_aajr.core.ascent, builds the pages of some modules only, for whoever writes them.
"""

from __future__ import annotations

import argparse
import os
import pkgutil
import re
import sys
import tempfile
import warnings
from pathlib import Path

import pdoc

import marl_aajr
from marl_aajr.adversaries.request import AdversaryRequest
from marl_aajr.attacks import ATTACKS
from marl_aajr.core.settings import every_setting
from marl_aajr.study.study_config import StudyConfig
from marl_aajr.training.config import RunConfig
from marl_aajr.training.method import METHODS

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "scripts" / "reference"
LINK = re.compile(r"\]\((\w+)\.md(#[\w-]+)?\)")
"""Links from one page to another, which lead to HTML once they are built."""


def guide(folder: Path, out: Path) -> None:
    """Write the pages as the modules of a package `guide`: pdoc shows a module's docstring.

    Args:
        folder: where the package goes.
        out: where the built pages will be; links into the project are made relative to it.
    """
    package = folder / "guide"
    package.mkdir()
    project = os.path.relpath(ROOT, out.resolve() / "guide")
    for page in sorted(PAGES.glob("*.md")):
        index = page.stem == "index"
        text = page.read_text(encoding="utf-8").replace("](../../", f"]({project}/")
        text = LINK.sub(r"](guide/\1.html\2)" if index else r"](\1.html\2)", text)
        name = "__init__" if index else page.stem
        (package / f"{name}.py").write_text(f"__doc__ = {text!r}\n", encoding="utf-8")
    (package / "settings.py").write_text(f"__doc__ = {settings_page()!r}\n", encoding="utf-8")


def settings_page() -> str:
    """Every setting that a file or an option can have, from what the classes declare."""
    parts = [
        "# Settings",
        "The keys of configuration files and of `--set KEY=VALUE`; `marl-aajr list run`, `list study` and "
        "`list NAME` print the same.",
        _table("A run: `config.yaml` and `marl-aajr train`", RunConfig),
        _table("A study: its file", StudyConfig),
        _table("An adversary to train: `marl-aajr adversary train`", AdversaryRequest),
        *(_table(f"Method `{name}`", cls) for name, cls in METHODS.items()),
        *(_table(f"Attack `{name}`", ATTACKS[name]) for name in ATTACKS),
    ]
    return "\n\n".join(parts) + "\n"


def _table(title: str, cls: type) -> str:
    rows = every_setting(f"{cls.__module__}.{cls.__name__}")
    cells = [(f"`{key}`", setting.text, setting.facts) for key, setting in rows]
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in cells]
    return "\n".join(
        [f"## {title}", "", "| key | meaning | choices, default, range |", "|---|---|---|", *lines]
    )


def modules() -> list[str]:
    """All modules of the package, the environments included."""
    found = pkgutil.walk_packages(marl_aajr.__path__, "marl_aajr.")
    # The callback for MLflow can only be imported where MLflow is installed.
    return [module.name for module in found if not module.name.endswith((".__main__", ".mlflow"))]


def build(out: Path, names: list[str]) -> None:
    """Write the pages and the API of the named modules into a folder."""
    for name in marl_aajr.__all__:  # they are loaded on first use, which is now
        setattr(marl_aajr, name, getattr(marl_aajr, name))
    pdoc.render.configure(docformat="google", footer_text="marl_aajr")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # pdoc walks packages by itself, but only to the modules in their __all__.
        warnings.filterwarnings("ignore", message=".*has already been added")
        warnings.filterwarnings("ignore", message="Error parsing type annotation")
        guide(Path(folder), out)
        sys.path.insert(0, folder)
        pdoc.pdoc("guide", *names, output_directory=out)
        sys.path.remove(folder)


def main() -> None:
    """Read the command line, build, and say where the pages are."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "reference", help="folder for the pages")
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="modules to build; none: all")
    given = parser.parse_args()
    build(given.out, given.modules or ["marl_aajr", *modules()])
    print(f"The reference is in {given.out / 'index.html'}")


if __name__ == "__main__":
    main()
