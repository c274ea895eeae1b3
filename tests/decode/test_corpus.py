"""Every kind of image and of damage through the decoder: statuses, pixels, neighbours, memory and time."""

from __future__ import annotations

import random
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
import numpy.typing as npt
import pytest

from dali_aesthetic.decode.headers import Limits
from dali_aesthetic.decode.pillow import decode_reference
from dali_aesthetic.types import ImageHeader, Route, Status
from tests.decode.corpus import Case, bombs, cases
from tests.decode.encoded import DEVICES, SIZE, decode_with, decoder, mean_error, noise, pixels_by_row, save

WORST = 0.3
"""Mean error of an image against the reference, in 1/255, where DALI decodes it."""


@dataclass(frozen=True)
class Outcome:
    header: ImageHeader
    pixels: npt.NDArray[np.uint8] | None


def run(some: list[Case], batch_size: int, device: str) -> dict[str, Outcome]:
    found: dict[str, Outcome] = {}
    rest = list(some)
    for batch in decode_with(decoder(batch_size, device), [case.image for case in some], batch_size):
        decoded = pixels_by_row(batch)
        for row, header in enumerate(batch.headers):
            found[rest.pop(0).name] = Outcome(header, decoded.get(row))
    assert not rest
    return found


@pytest.fixture(scope="module", params=DEVICES)
def outcomes(request: pytest.FixtureRequest) -> dict[str, Outcome]:
    """All cases in one shuffled stream, so that each batch holds whole, odd and broken ones."""
    shuffled = list(cases())
    random.Random(1).shuffle(shuffled)
    return run(shuffled, 32, request.param)


def test_there_are_hundreds_of_cases_of_every_status() -> None:
    assert len(cases()) > 400
    expected = {case.statuses[0] for case in cases() if len(case.statuses) == 1}
    assert expected == set(Status) - {Status.FILTERED}


def test_every_case_ends_with_its_status(outcomes: dict[str, Outcome]) -> None:
    wrong = {
        case.name: outcomes[case.name].header
        for case in cases()
        if outcomes[case.name].header.status not in case.statuses
    }
    assert wrong == {}


def test_pixels_are_there_exactly_where_the_status_is_ok_and_a_reason_elsewhere(
    outcomes: dict[str, Outcome],
) -> None:
    for name, outcome in outcomes.items():
        ok = outcome.header.status is Status.OK
        assert (outcome.pixels is not None) == ok, name
        assert (outcome.header.route is not Route.NOBODY) == ok, name
        assert bool(outcome.header.message) != ok or name == "no image", name
        if ok:
            assert min(outcome.header.width, outcome.header.height) > 0, name


def test_whole_images_are_the_references(outcomes: dict[str, Outcome]) -> None:
    wrong = {}
    for case in cases():
        if case.damaged or Status.OK not in case.statuses or case.image is None:
            continue
        outcome = outcomes[case.name]
        reference = decode_reference(case.image, SIZE, Limits())
        assert outcome.pixels is not None
        error = mean_error(outcome.pixels, reference.pixels_SSC)
        if error > (0 if outcome.header.route is Route.PILLOW else WORST):
            wrong[case.name] = error
        assert (outcome.header.width, outcome.header.height) == (reference.width, reference.height), case.name
    assert wrong == {}


def test_neighbours_of_broken_images_are_as_if_alone(
    outcomes: dict[str, Outcome], request: pytest.FixtureRequest
) -> None:
    device = request.node.callspec.params["outcomes"]
    whole = [case for case in cases() if case.statuses == (Status.OK,)]
    alone = run(whole, 1, device)
    for case in whole:
        np.testing.assert_array_equal(outcomes[case.name].pixels, alone[case.name].pixels, case.name)


def test_a_batch_of_broken_images_only_has_no_pixels() -> None:
    broken = [case for case in cases() if Status.OK not in case.statuses]
    assert all(outcome.pixels is None for outcome in run(broken, 16, "cpu").values())


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def cost(images: list[bytes]) -> list[tuple[float, float]]:
    """Seconds and MiB of peak memory that four of each image cost a decoder that has worked before."""
    ready = decoder(4)
    decode_with(
        ready, [save(noise(300, 200)), save(noise(300, 200), "GIF"), save(noise(300, 200), "AVIF")], 4
    )
    found = []
    for image in images:
        before, start = peak_mib(), time.perf_counter()
        decode_with(ready, [image] * 4, 4)
        found.append((time.perf_counter() - start, peak_mib() - before))
    return found


def test_a_bomb_costs_neither_memory_nor_time() -> None:
    """In a process of its own, whose peak memory nothing else has raised."""
    some = list(bombs())
    images = [case.image for case in some if case.image is not None]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        costs = process.submit(cost, images).result(timeout=120)
    expensive = {
        case.name: (seconds, mib)
        for case, (seconds, mib) in zip(some, costs, strict=True)
        if seconds > 2 or mib > 60
    }
    assert expensive == {}
