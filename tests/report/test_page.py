from __future__ import annotations

import html
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from marl_aajr.report import Notes, write_report
from tests.report.evaluations import evaluation, evaluation_file
from tests.report.factory import config, write_method, write_run

pytestmark = pytest.mark.slow

OUTLINE = [
    "In short",
    "What speaks against it",
    "simple_spread_v3",
    "Verdict",
    "Clean and robust return",
    "Attacks by method",
    "Adversarial agents",
    "Return against ε",
    "Clean against robust return",
    "Over training runs",
    "Learning curves",
    "AAJR metrics",
    "Who was compared",
    "Reproduce",
    "How to read this",
]


class Page(HTMLParser):
    """What the tests ask of a page: its elements, and the text of headings."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.headings: list[str] = []
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self._open = tag

    def handle_data(self, data: str) -> None:
        if self._open in ("h2", "h3") and data.strip():
            self.headings.append(data)
            self._open = ""

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def build(tmp_path: Path, paths: list[Path], *, title: str | None = None) -> str:
    return write_report(paths, tmp_path / "report.html", title=title).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The runs of a usual comparison."""
    return usual(tmp_path_factory.mktemp("usual"))


@pytest.fixture(scope="module")
def text(paths: list[Path]) -> str:
    """The page of them."""
    return build(paths[0].parent, paths)


def usual(tmp_path: Path) -> list[Path]:
    """Three seeds each of two methods."""
    return write_method(tmp_path, "none", clean=[-40.0, -41.0, -39.5]) + write_method(
        tmp_path, "aajr", settings={"coefficient": 1e-3}, clean=[-44.0, -43.0, -43.5]
    )


def test_sections_in_order(text: str) -> None:
    assert Page(text).headings == OUTLINE


def test_the_page_is_self_contained(text: str) -> None:
    page = Page(text)

    assert not page.all("script")
    assert not page.all("img")
    assert [link["href"] for link in page.all("link")] == ["data:,"]
    assert not re.search(r"@import|url\((?!#)", text)
    for _, attributes in page.elements:
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:"))


def test_figures_and_tables_are_accessible(text: str) -> None:
    page = Page(text)
    drawings = [attributes for attributes in page.all("div") if attributes.get("role") == "img"]

    assert len(page.all("figure")) == len(page.all("figcaption")) == len(drawings) == 1 + 2 + 2 + 3 + 1 + 8
    assert all(len(attributes["aria-label"]) > 20 for attributes in drawings)
    assert {attributes.get("scope") for attributes in page.all("th")} == {"col", "row", "rowgroup"}
    assert len(page.all("caption")) == len(page.all("table"))


def test_ids_are_unique_and_every_reference_has_one(text: str) -> None:
    ids = Counter(attributes["id"] for _, attributes in Page(text).elements if "id" in attributes)

    assert max(ids.values()) == 1
    assert set(re.findall(r'(?:href="#|url\(#|labelledby=")([^")]+)', text)) <= set(ids)


def test_table_shows_returns_intervals_and_price(text: str) -> None:
    assert "−40.2" in text
    assert "[−42.1,\u00a0−38.3]" in text  # t over three runs
    assert "price of robustness" in text
    assert "Student's t over the runs' means" in text
    assert "over that run's episodes" not in text


@pytest.mark.usefixtures("undrawn")
def test_single_runs_say_so(tmp_path: Path) -> None:
    paths = write_method(tmp_path, "none", clean=[-40.0]) + write_method(tmp_path, "aajr", clean=[-41.0])
    text = build(tmp_path, paths)

    assert "Training seeds are what matters." in text
    assert "Student's t over the runs' means" not in text


def test_only_differences_are_in_the_table_of_who_was_compared(text: str) -> None:
    compared = text[text.index("<h3>Who was compared") : text.index("<summary>What they share")]

    assert re.findall(r"<code>(.*?)</code>", compared) == ["method.name", "method.coefficient"]


@pytest.mark.usefixtures("undrawn")
def test_one_method_alone_gives_a_page(tmp_path: Path) -> None:
    text = build(tmp_path, write_method(tmp_path, "none", clean=[-40.0]))

    assert "nothing was compared with it" in text
    missing = {"AAJR metrics", "Clean against robust return", "Over training runs"}
    assert Page(text).headings == [heading for heading in OUTLINE if heading not in missing]


def test_names_from_users_cannot_become_markup(tmp_path: Path) -> None:
    bad = "<img src=x onerror=alert(1)>&\"'"
    paths = write_method(
        tmp_path / "<b>folder",
        "aajr",
        settings={bad: bad},
        clean=[-40.0],
        teams=(bad, "b"),
        modules=(bad, "m"),
    )
    content = evaluation(teams=(bad, "b"), env={"name": bad, "kwargs": {bad: bad}})
    content["attacks"][0] |= {"attack": bad, "settings": {"name": bad}}
    paths.append(
        write_run(
            tmp_path / "run", configuration=config(bad, seed=1), evaluations={bad.replace("/", ""): content}
        )
    )
    (paths[0] / "evaluations/default.json").write_text((paths[1] / "evaluations" / f"{bad}.json").read_text())
    page = Page(build(tmp_path, paths, title=bad))

    assert not page.all("img")
    assert not page.all("b") or all(not attributes for attributes in page.all("b"))
    assert not any("onerror" in attributes for _, attributes in page.elements)


@pytest.mark.usefixtures("undrawn")
def test_several_modules_and_two_teams_have_panels_of_their_own(tmp_path: Path) -> None:
    paths = write_method(
        tmp_path, "aajr", clean=[-40.0], modules=("adversary", "agent"), teams=("adversary", "good")
    )
    text = build(tmp_path, paths)

    assert "<summary>Module adversary</summary>" in text
    assert "<summary>Module agent</summary>" in text
    assert "Training return: good" in text
    assert "Side: adversary" in text


@pytest.mark.slow
def test_the_same_runs_give_the_same_bytes_in_any_order(text: str, paths: list[Path]) -> None:
    assert build(paths[0].parent, paths[::-1]) == text


def test_commands_stand_in_the_page(text: str) -> None:
    shown = html.unescape(text)

    assert "/none-0/config.yaml --out again/none-0" in shown
    assert "marl-aajr compare again/none-0 again/none-1" in shown


@pytest.mark.usefixtures("undrawn")
def test_a_command_of_a_study_stands_for_all(tmp_path: Path) -> None:
    text = write_report(
        write_method(tmp_path, "none", clean=[-40.0]), tmp_path / "r.html", notes=Notes(command="again --all")
    ).read_text()

    assert "<pre>again --all</pre>" in text
    assert "marl-aajr train" not in text


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_the_file_is_replaced_whole_or_left_alone(tmp_path: Path) -> None:
    paths = usual(tmp_path)
    out = tmp_path / "new" / "folder" / "report.html"
    write_report(paths, out)
    before = out.read_text()
    (paths[0] / "status.json").write_text("{")

    with pytest.raises(ValueError, match="corrupt"):
        write_report(paths, out)
    assert out.read_text() == before
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]


def test_nothing_is_written_for_runs_that_cannot_be_compared(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected at least one run"):
        write_report([], tmp_path / "new" / "report.html")
    assert not (tmp_path / "new").exists()


def test_a_folder_is_no_place_for_the_page(tmp_path: Path) -> None:
    paths = usual(tmp_path)
    with pytest.raises(ValueError, match="expected a file to write, got the folder"):
        write_report(paths, tmp_path)


@pytest.mark.usefixtures("undrawn")
def test_a_policy_from_elsewhere_stands_beside_our_runs(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (tmp_path / "checkpoint-evaluations").mkdir()
    (tmp_path / "checkpoint-evaluations" / "e.json").write_text(evaluation_file(evaluation(-43.0)))
    text = build(tmp_path, [*write_method(tmp_path, "none", clean=[-40.0]), checkpoint])

    assert "checkpoint was trained elsewhere: for how long and on what is not known here." in text
    assert "<td>trained elsewhere</td>" in text
    assert "The methods differ in more than the method" not in text
    assert "−43.0" in text
