"""The report: one page to choose a threshold by looking. Reads an output folder; scores nothing."""

from dali_aesthetic.report.page import write_report

__all__ = ["write_report"]
