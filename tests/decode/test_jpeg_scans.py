"""JPEG scans: damage that shows in the markers goes to Pillow, and ends alike on the CPU and the GPU."""

from __future__ import annotations

import re
import time
from itertools import pairwise

import numpy as np
import pytest

from dali_aesthetic.decode import jpeg, jpeg_scans
from dali_aesthetic.decode.headers import Limits, probe
from dali_aesthetic.decode.jpeg_scans import MOST_SCANS
from dali_aesthetic.decode.pillow import decode_reference
from dali_aesthetic.types import Route, Status
from tests.decode.damage import edited, frame_at
from tests.decode.encoded import DEVICES, SIZE, decode_with, decoder, photo, pixels_by_row, save

SHOT = photo("chelsea")
KINDS: dict[str, dict[str, object]] = {
    "4:2:0": {},
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "optimised": {"optimize": True},
    "progressive": {"progressive": True},
    "restart rows": {"restart_marker_rows": 1},
    "restart blocks": {"restart_marker_blocks": 7},
    "progressive restarts": {"progressive": True, "restart_marker_blocks": 4},
    "progressive 4:4:4 restarts": {"progressive": True, "subsampling": 0, "restart_marker_rows": 1},
}
WHOLE = {kind: save(SHOT, quality=90, **options) for kind, options in KINDS.items()}
WHOLE |= {f"grey {kind}": save(SHOT.convert("L"), quality=90, **KINDS[kind]) for kind in list(KINDS)[3:]}


def scan_data(data: bytes) -> int:
    """Where the entropy-coded data of the first scan begin."""
    scan = data.index(b"\xff\xda", frame_at(data))
    return scan + 2 + int.from_bytes(data[scan + 2 : scan + 4], "big")


def over(data: bytes, content: bytes) -> bytes:
    """`data` with `content` written over its entropy-coded data, 3,000 bytes in."""
    return edited(data, scan_data(data) + 3000, content)


def scans(data: bytes) -> list[bytes]:
    """What stands before the scans, then each scan with the tables before it, then the end."""
    marks = [at for at in range(frame_at(data), len(data)) if data[at : at + 2] in (b"\xff\xda", b"\xff\xc4")]
    starts = [
        at for i, at in enumerate(marks) if i == 0 or data[marks[i - 1] : marks[i - 1] + 2] == b"\xff\xda"
    ]
    edges = [0, *starts, len(data) - 2, len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


@pytest.mark.parametrize("kind", WHOLE)
def test_whole_scans_go_to_dali(kind: str) -> None:
    for image in (WHOLE[kind], WHOLE[kind] + b"<html>" * 90, WHOLE[kind] * 2):
        header = probe(memoryview(image), Limits())
        assert (header.status, header.route) == (Status.OK, Route.DALI)


def damaged() -> dict[str, bytes]:
    """JPEGs that DALI's CPU decoder and the GPU's make a picture of, each another one."""
    found = {}
    for kind in ("4:2:0", "4:4:4", "progressive", "restart rows", "grey restart rows"):
        whole = WHOLE[kind]
        found[f"{kind}, half of it and a whole one"] = whole[: len(whole) // 2] + whole
        found[f"{kind}, 64 bytes FF"] = over(whole, b"\xff" * 64)
        found[f"{kind}, stray restart markers"] = over(whole, b"\xff\xd3" * 50)
        found[f"{kind}, another marker"] = over(whole, b"\xff\x9f")
    for kind in ("restart rows", "restart blocks", "grey restart rows"):
        whole = WHOLE[kind]
        third = whole.index(b"\xff\xd2", scan_data(whole))
        found[f"{kind}, one left out"] = whole[:third] + whole[third + 2 :]
        found[f"{kind}, one of another number"] = edited(whole, third, b"\xff\xd6")
        found[f"{kind}, cut and ended"] = whole[:third] + b"\xff\xd9"
        found[f"{kind}, twice the height"] = edited(whole, frame_at(whole) + 5, b"\x02\x58")
    for kind in ("4:2:0", "grey restart rows"):
        whole = WHOLE[kind]
        scan = whole[whole.index(b"\xff\xda", frame_at(whole)) : -2]
        found[f"{kind}, its scan twice"] = whole[:-2] + scan + whole[-2:]
    parts = scans(WHOLE["progressive"])
    assert len(parts) == 12
    found["progressive, without its last scan"] = b"".join([*parts[:-2], parts[-1]])
    found["progressive, with its first scan only"] = b"".join([*parts[:2], parts[-1]])
    return found


DAMAGED = damaged()


@pytest.mark.parametrize("device", DEVICES)
def test_damage_that_shows_ends_as_pillow_ends_it(device: str) -> None:
    (batch,) = decode_with(decoder(64, device), list(DAMAGED.values()), 64)
    decoded = pixels_by_row(batch)
    refused = 0
    for row, (name, image) in enumerate(DAMAGED.items()):
        assert batch.headers[row].route is not Route.DALI, name
        try:
            reference = decode_reference(image, SIZE, Limits(), format="jpeg").pixels_SSC
        except OSError:
            assert batch.headers[row].status in (Status.TRUNCATED, Status.UNDECODABLE), name
            refused += 1
        else:
            np.testing.assert_array_equal(decoded[row], reference, name)
    assert 5 <= refused <= len(DAMAGED) - 5


def test_data_without_an_end_are_truncated_whatever_else_is_wrong() -> None:
    for image in (*WHOLE.values(), *DAMAGED.values()):
        cut = image[: image.index(b"\xff\xd9", scan_data(image))]
        assert probe(cut, Limits()).status is Status.TRUNCATED


def many_scans(number: int) -> bytes:
    """A progressive JPEG whose last scan, which refines nothing more, comes again and again."""
    *parts, end = scans(WHOLE["grey progressive"])
    return b"".join(parts) + parts[-1] * (number - len(parts) + 1) + end


def test_more_scans_than_any_encoder_writes_are_too_large() -> None:
    assert probe(many_scans(MOST_SCANS), Limits()).status is Status.OK
    for image in (many_scans(MOST_SCANS + 1), over(many_scans(600), b"\xff\x9f")):
        header = probe(image, Limits())
        assert (header.status, header.route) == (Status.TOO_LARGE, Route.NOBODY)
        assert "more than 100 scans" in header.message


@pytest.mark.parametrize("unit", [b"\xff", b"\xff\xd0", b"\xff\xe0\0\2", b"\xff\xe1\0\2", b"\0", b"\xff\0"])
def test_megabytes_before_the_first_scan_are_walked_in_no_time(unit: bytes) -> None:
    image = b"\xff\xd8" + unit * ((8 << 20) // len(unit))
    start = time.process_time()
    header = jpeg.read(memoryview(image))
    assert header.status in (Status.TRUNCATED, Status.TOO_LARGE, Status.UNDECODABLE)
    assert time.process_time() - start < 0.5


@pytest.mark.parametrize("window", [1, 2, 3, 7, 1 << 20])
def test_the_first_marker_is_found_wherever_windows_end(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpeg_scans, "_WINDOW", window)
    rng = np.random.default_rng(0)
    for _ in range(300):
        data = rng.choice(np.array([0, 0xFF, 0xD9, 1], np.uint8), rng.integers(1, 24)).tobytes()
        start = int(rng.integers(0, len(data) + 1))
        found = re.search(rb"\xff[^\x00]", data[start:], re.DOTALL)
        assert jpeg_scans.first_marker(data, start) == (found.start() + start if found else -1), (data, start)
