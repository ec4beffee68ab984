"""Build the reference: the pages of scripts/reference and the API, from the docstrings, as static HTML.

scripts/docs [--out build/reference]

Open index.html in the folder; nothing is fetched, no server is needed.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from pathlib import Path

import pdoc

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "scripts" / "reference"
LINK = re.compile(r"\]\((\w+)\.md(#[\w-]+)?\)")
"""Links from one page to another; in the built reference they lead to HTML."""


def guide(folder: Path) -> None:
    """Write the pages as the modules of a package `guide`: pdoc shows a module's docstring.

    Args:
        folder: where the package goes.
    """
    package = folder / "guide"
    package.mkdir()
    for page in sorted(PAGES.glob("*.md")):
        text = LINK.sub(r"](\1.html\2)", page.read_text(encoding="utf-8"))
        name = "__init__" if page.stem == "index" else page.stem
        (package / f"{name}.py").write_text(f"__doc__ = {text!r}\n", encoding="utf-8")


def build(out: Path) -> None:
    """Write the whole reference into a folder."""
    with tempfile.TemporaryDirectory() as folder:
        guide(Path(folder))
        sys.path.insert(0, folder)
        pdoc.render.configure(docformat="google", footer_text="marl_aajr", search=True)
        # The callback for MLflow can only be imported where MLflow is installed.
        pdoc.pdoc("guide", "marl_aajr", "!marl_aajr.study.mlflow", output_directory=out)
        sys.path.remove(folder)


def main() -> None:
    """Read the command line, build, and say where the pages are."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "reference", help="folder for the pages")
    out = parser.parse_args().out
    build(out)
    print(f"The reference is in {out / 'index.html'}")


if __name__ == "__main__":
    main()
