"""What a check before a run found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    """How a check went. A warning doesn't stop a run; a failure does."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `fix` says what to do, and is empty where there is nothing to do."""

    check: str
    verdict: Verdict
    detail: str
    fix: str = ""


def as_dict(finding: Finding) -> dict[str, Any]:
    """For JSON."""
    return {name: str(getattr(finding, name)) for name in ("check", "verdict", "detail", "fix")}
