"""Errors of scores and changed decisions."""

from __future__ import annotations

import numpy as np
import pytest

from dali_aesthetic.score.gate import deviation


def test_errors_and_flips_are_counted() -> None:
    reference = np.array([4.0, 4.9, 5.0, 6.5], np.float32)
    ours = np.array([4.0, 5.1, 4.9, 6.4], np.float32)
    found = deviation(ours, reference, {"standard": 5.0, "high": 6.0})
    assert found.num_images == 4
    assert found.mean_error == pytest.approx(0.1, abs=1e-6)
    assert found.max_error == pytest.approx(0.2, abs=1e-6)
    assert found.bias == pytest.approx(0.0, abs=1e-6)
    assert dict(found.flips) == {"standard": 2, "high": 0}
    assert dict(found.kept) == {"standard": 2, "high": 1}
    assert found.worst_flips == 0.5


@pytest.mark.parametrize("ours", [[], [1.0, 2.0]])
def test_other_images_are_refused(ours: list[float]) -> None:
    reference = np.zeros(len(ours) and 1, np.float32)
    with pytest.raises(ValueError, match="the same images"):
        deviation(np.array(ours, np.float32), reference, {})
