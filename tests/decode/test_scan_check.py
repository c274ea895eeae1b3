"""The check of a scan's MCUs against a straightforward count: every kind of baseline JPEG, whole and cut."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from PIL import Image

from dali_aesthetic.decode import jpeg
from dali_aesthetic.decode.scan_check import ScanCheck
from dali_aesthetic.types import Buffer, ImageHeader
from tests.decode.damage import edited, frame_at, height_times
from tests.decode.encoded import noise, photo, save
from tests.decode.mcu_count import is_short

pytest.importorskip("triton")

RESTARTS: list[dict[str, Any]] = [{}, {"restart_marker_blocks": 2}, {"restart_marker_rows": 1}]
FORMS: list[dict[str, Any]] = [
    {"subsampling": sampling, "optimize": optimize, **RESTARTS[(sampling + optimize) % 3]}
    for sampling in (0, 1, 2)
    for optimize in (False, True)
]


def whole_jpegs(scale: int) -> list[bytes]:
    """All samplings, with and without tables of their own and restarts, grey ones too, of odd sizes."""
    sizes = ((23, 17), (32, 24), (19, 31), (41, 16), (33, 33))
    found = []
    for i, form in enumerate(FORMS):
        width, height = sizes[i % 5]
        shot = photo(("astronaut", "coffee", "chelsea", "rocket")[i % 4], scale * width, scale * height)
        found.append(save(shot, quality=50 + 6 * i, **form))
    grey = photo("coffee", scale * 40, scale * 24).convert("L")
    found += [save(grey, **restarts, optimize=bool(restarts)) for restarts in RESTARTS]
    found.append(edited(found[-2], frame_at(found[-2]) + 11, b"\x22"))  # factors without a meaning
    found.append(edited(b"\xff\xd8" + b"\xff" * 9 + found[0], 11, b"\xff\xff"))  # fill bytes
    found += [save(photo("rocket", *size)) for size in ((1, 1), (1, 70 * scale), (90 * scale, 1))]
    found += [save(photo("astronaut", 96, 80)), save(Image.new("RGB", (96, 96), "white"))]  # many lanes
    return [*found, save(noise(17, 13), quality=95, optimize=True)]


def cut(image: bytes, end: int) -> bytes:
    """Cut there, with an end marker."""
    return image[:end] + b"\xff\xd9"


def data_start(image: bytes) -> int:
    scan = image.index(b"\xff\xda", frame_at(image))
    return scan + 2 + int.from_bytes(image[scan + 2 : scan + 4], "big")


def damaged(whole: list[bytes]) -> list[bytes]:
    """One cut at every third byte; the others at some, with headers that lie, with bytes behind the end."""
    one = whole[4]
    found = [cut(one, end) for end in range(data_start(one), len(one) - 2, max(3, len(one) // 300))]
    for image in whole:
        start, end = data_start(image), len(image) - 2
        found += [cut(image, (start * i + end * (4 - i)) // 4) for i in (1, 3)]
        found += [cut(image, end - 1), height_times(image, 2), height_times(image, 0.5) + b"\xff\xd8<html>"]
        found.append(cut(image, (start + end) // 2) + image)
    return found


def not_judged() -> list[bytes]:
    image = save(photo("coffee", 40, 40))
    arithmetic = edited(image, frame_at(image), b"\xff\xc9")
    no_tables = edited(image, image.index(b"\xff\xc4"), b"\xff\xfe")
    cut_headers = [image[: data_start(image) - 9], b"\xff\xd8" + b"\xff" * 99, b""]
    return [save(photo(), progressive=True), arithmetic, no_tables, *cut_headers]


def both(scale: int) -> tuple[list[bytes], list[bool]]:
    """Images, and whether each is short."""
    whole = whole_jpegs(scale)
    images = [*whole, *damaged(whole)]
    short = [is_short(image) for image in images]
    assert not any(short[: len(whole)])
    assert sum(short) > len(images) / 3
    return [*images, *not_judged()], short + [False] * len(not_judged())


def headers(images: Sequence[Buffer]) -> list[ImageHeader]:
    return [jpeg.read(image) for image in images]


IN_THE_INTERPRETER = """
    import torch
    from dali_aesthetic.decode.scan_check import ScanCheck
    from tests.decode.test_scan_check import both, headers
    images = [memoryview(image) for image in both(1)[0]]
    found = headers(images)
    found[-1] = found[0]  # of an image that is withheld: the last one has no bytes
    print(ScanCheck(torch.device("cpu")).start(images, found).short())
"""


def test_the_kernels_find_what_a_straightforward_count_finds() -> None:
    """In a process of its own, since the interpreter is chosen when Triton is imported."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", textwrap.dedent(IN_THE_INTERPRETER)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.strip() == str(both(1)[1]), done.stderr[-2000:]


@pytest.mark.gpu
def test_the_gpu_finds_what_a_straightforward_count_finds() -> None:
    images, short = both(5)
    check = ScanCheck(torch.device("cuda"))
    pending = [check.start(images[first::3], headers(images[first::3])) for first in range(3)]
    assert [one.short() for one in pending] == [short[first::3] for first in range(3)]
    assert check.start([], []).short() == []
