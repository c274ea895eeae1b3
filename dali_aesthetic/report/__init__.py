"""The report of an output: one page for choosing a threshold by looking at samples. Scores nothing."""

from dali_aesthetic.report.page import write_report

__all__ = ["write_report"]
