"""Compare evaluated runs: tables with intervals, a verdict in plain words, one HTML page."""

from marl_aajr.report.cautions import Incident, Notes, Tuning
from marl_aajr.report.comparison import Comparison, MethodRow, compare, compare_each
from marl_aajr.report.headline import headline
from marl_aajr.report.methods import EvaluatedRun, load_run
from marl_aajr.report.page import write_report
from marl_aajr.report.scores import Reference
from marl_aajr.report.verdict import how_chosen, how_compared, verdict

__all__ = [
    "Comparison",
    "EvaluatedRun",
    "Incident",
    "MethodRow",
    "Notes",
    "Reference",
    "Tuning",
    "compare",
    "compare_each",
    "headline",
    "how_chosen",
    "how_compared",
    "load_run",
    "verdict",
    "write_report",
]
