"""Coverage-guided fuzzing of the header check: `python -m tests.fuzz.fuzz_probe [CORPUS] [OPTIONS]`.

It must answer every input with a route or a status, and say the same of a view as of the bytes.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["dali_aesthetic"]):
    from dali_aesthetic.decode.headers import Limits, probe
    from dali_aesthetic.types import Route, Status

LIMITS = Limits()


def test_one_input(data: bytes) -> None:
    header = probe(data, LIMITS)
    good = header.status is Status.OK
    assert good == (header.route is not Route.NOBODY)
    assert good != bool(header.message)
    assert 0 <= header.width < 1 << 32
    assert 0 <= header.height < 1 << 32
    assert 0 <= header.orientation <= 8
    assert not good or not LIMITS.objection(header.width, header.height, len(data))
    assert header == probe(memoryview(data), LIMITS)


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
