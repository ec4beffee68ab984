"""Compare evaluated runs: a table with intervals, a verdict in plain words, one HTML page."""

from marl_aajr.report.comparison import Comparison, Row, compare
from marl_aajr.report.page import build_report
from marl_aajr.report.records import RunRecord, load_run

__all__ = ["Comparison", "Row", "RunRecord", "build_report", "compare", "load_run"]
