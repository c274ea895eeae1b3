"""`run.json`: what made the output, and the refusal to mix two different runs in one folder."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dali_aesthetic.stores.access import create, exists, read_bytes
from dali_aesthetic.stores.location import is_url, join
from dali_aesthetic.write.files import publish, sync_folder, write_temporary

RUN_RECORD = "run.json"
IDENTITY = "identity"
_ABSENT = "(not set)"


class RunMismatch(ValueError):
    """The output belongs to a run with another identity."""


def write_run_record(output: str | Path, record: Mapping[str, Any]) -> None:
    """Writes `run.json` for the first run into `output`; a later one must have the same `record["identity"]`.

    The first record stays. Raises RunMismatch naming each field that differs with both values.
    """
    final = join(output, RUN_RECORD)
    if not exists(final):
        text = json.dumps(record, indent=2, sort_keys=True, allow_nan=False) + "\n"
        write_once(final, text.encode())
    if differences := check_run_record(output, record):
        listed = "\n  ".join(differences)
        raise RunMismatch(
            f"{output} holds the results of another run; its {RUN_RECORD} differs in:\n  {listed}\n"
            "Give the same options again, or another output folder."
        )


def check_run_record(output: str | Path, record: Mapping[str, Any]) -> list[str]:
    """Where the identity of `record` differs from the one in `output`: `FIELD: OLD there, NEW now`.

    Empty where they agree or `output` has no record yet. Raises RunMismatch for an unreadable record.
    """
    final = join(output, RUN_RECORD)
    try:
        there = json.loads(read_bytes(final))[IDENTITY]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise RunMismatch(f"{final} is no record of a run ({error}); give another output folder") from error
    old = dict(_flat(there))
    new = dict(_flat(json.loads(json.dumps(record[IDENTITY]))))
    return [
        f"{field}: {old.get(field, _ABSENT)!r} there, {new.get(field, _ABSENT)!r} now"
        for field in sorted(old.keys() | new.keys())
        if old.get(field, _ABSENT) != new.get(field, _ABSENT)
    ]


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else key)
    else:
        yield name, value


def write_once(location: str | Path, content: bytes) -> None:
    """Writes a file or object, its folder made, unless another process was first: then its content stays."""
    if is_url(os.fspath(location)):
        create(os.fspath(location), content)
        return
    final = Path(location)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = write_temporary(final, content)
    try:
        os.link(temporary, final)
        sync_folder(final.parent)
    except FileExistsError:
        pass
    except OSError:
        # A file system without hard links: the last of two simultaneous first runs wins, and both compare.
        publish(temporary, final)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
