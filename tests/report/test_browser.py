"""The page in a real browser, at the widths of a desk and of a phone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from marl_aajr.report import Incident, Notes, Tuning, write_report
from tests.report.evaluations import ENV, against, evaluation
from tests.report.factory import config, metrics, write_method, write_run

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None or DRIVER is None,
        reason="needs a browser: apt-get install chromium chromium-driver",
    ),
]

WIDE = """return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"""

STICKING_OUT = """
const width = document.documentElement.clientWidth;
const scrolls = e => e && e !== document.documentElement && e !== document.body &&
  (['auto', 'scroll'].includes(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
return [...document.body.querySelectorAll('*')]
  .filter(e => !e.closest('svg') && e.getClientRects().length && !scrolls(e))
  .filter(e => { const r = e.getBoundingClientRect(); return r.right > width + 1 || r.left < -1; })
  .map(e => e.tagName + '.' + e.className + ': ' + e.textContent.slice(0, 60));
"""

CUT_LABELS = """
return [...document.querySelectorAll('figure svg text')].filter(t => {
  const r = t.getBoundingClientRect(), s = t.closest('svg').getBoundingClientRect();
  return r.left < s.left - 1 || r.right > s.right + 1 || r.top < s.top - 1 || r.bottom > s.bottom + 1;
}).map(t => t.textContent);
"""

SMALLEST_LABEL = """
return Math.min(...[...document.querySelectorAll('figure svg text')]
  .map(t => parseFloat(getComputedStyle(t).fontSize) * Math.hypot(t.getScreenCTM().a, t.getScreenCTM().b)));
"""


@pytest.fixture(scope="module", params=[1280, 390])
def browser(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in FLAGS.split():
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.add_argument(f"--window-size={request.param},900")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    if request.param < 500:
        metrics = {"width": request.param, "height": 844, "pixelRatio": 2, "mobile": True, "touch": True}
        options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A usual page, and one where everything is long or many."""
    root = tmp_path_factory.mktemp("pages")
    paths = write_method(root, "none", clean=[-40.0, -41.0, -39.0])
    paths += write_method(root, "aajr", settings={"coefficient": 1e-3}, clean=[-44.0, -43.0, -42.0])
    title = "A title " + "that-does-not-end" * 9
    return {
        "plain": write_report(paths, root / "plain.html"),
        "crowded": write_report(crowd(root / "crowd"), root / "crowded.html", title=title, notes=NOTES),
    }


@pytest.fixture(params=["plain", "crowded"])
def page(request: pytest.FixtureRequest, pages: dict[str, Path]) -> Path:
    """Either of them."""
    return pages[request.param]


NOTES = Notes(
    summary="summary" * 40,
    command="marl-aajr study " + "experiment" * 40,
    tuning=[Tuning(method="m" * 60, trials=i, env_steps=10**9, space={"s" * 40: "w" * 90}) for i in (1, 2)],
    failures=[Incident(run="r" * 90, what="E" * 200, log="/" + "l" * 150)],
    cut=["c" * 200],
)


def crowd(root: Path) -> list[Path]:
    """Many runs of two environments, with everything that an evaluation can hold, all of it too long."""
    teams, modules = ("adversaries" * 5, "good & <b>"), ("adversary_0", "agent" * 20)
    attacks = {("pgd", 0.01): -8000.0, ("pgd", 0.1): -90000.0, ("<i>" + "attack" * 20, 0.1): -123456.0}
    where = {"name": "some.package." + "environment" * 12, "kwargs": {"argument" * 9: 1}}
    who = ["agent_with_a_name" * 5, "other"]
    more: dict[str, Any] = {
        "checks": [
            {"name": "check" * 20, "verdict": v, "text": "found" * 60} for v in ("fail", "warn", "pass")
        ],
        "subsets": [
            {
                "agents": agents,
                "attack": "pgd",
                "epsilon": 0.1,
                "returns": [-1e6],
            }
            for agents in (who, who[::-1])
        ],
        "adversarial_agents": [
            {**evaluation(-1e6)["clean"], "kind": "traitor", "agents": who, "loyal_return": -1e5}
        ],
    }
    paths = []
    for i in range(12):
        method, env = ("none" if i % 9 == 0 else "m" * 60 * (i == 3) + f"method{i}", where if i > 8 else ENV)
        faced = attacks | {("left-out" * 20 + str(i), 0.1): -1.0}
        pool = [against("opponent" * 12 + str(j), -300_000.0 * j, attacks=faced) for j in range(4)]
        content = evaluation(
            -400_000.0 - 500 * i, attacks=faced, teams=teams, env=env, opponents=pool, **more
        )
        content["teams"] |= dict.fromkeys(who, teams[0])
        paths.append(
            write_run(
                root / ("a-very-long-run-name-that-goes-on-" * 4 + str(i)),
                configuration=config(
                    method, settings={"nested": {"deep" * 20: [1, 2, 3] * 12}}, env=env, seed=i
                ),
                evaluations={"e": content},
                lines=metrics(regularised=i > 0, teams=teams, modules=modules),
            )
        )
    return paths


def show(browser: Any, page: Path) -> None:
    browser.get(page.as_uri())
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")


def test_nothing_overflows_the_page(browser: Any, page: Path) -> None:
    show(browser, page)
    scroll_width, client_width = browser.execute_script(WIDE)

    assert scroll_width <= client_width
    assert browser.execute_script(STICKING_OUT) == []


def test_labels_of_figures_are_whole_and_legible(browser: Any, page: Path) -> None:
    show(browser, page)

    assert browser.execute_script(CUT_LABELS) == []
    assert browser.execute_script(SMALLEST_LABEL) >= 9.5  # CSS pixels


def test_nothing_is_asked_of_the_network(browser: Any, page: Path) -> None:
    browser.get_log("performance")
    show(browser, page)
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}

    assert page.as_uri() in asked
    assert {url for url in asked if not url.startswith("data:")} == {page.as_uri()}
    assert browser.get_log("browser") == []
