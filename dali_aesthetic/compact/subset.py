"""DataComp's subset file: the uids of what was kept, for its resharder and its leaderboard."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dali_aesthetic.config import ConfigError
from dali_aesthetic.write.files import write_whole

UID = "uid"
DTYPE = np.dtype("u8,u8")
_DIGITS = 32


def check_uids(scores: Path) -> None:
    """Raises ConfigError where the scores have no column `uid`: before anything is packed."""
    schema = pq.read_schema(scores)
    if UID not in schema.names or not pa.types.is_string(schema.field(UID).type):
        raise ConfigError(
            f"--subset-file needs a column {UID!r} of text in the scores, from the field of that name in the "
            f"samples' json; {scores} has none"
        )


def write_subset(path: Path, scores: Iterable[Path]) -> int:
    """Writes the uids of all rows of `scores` as a sorted .npy of dtype `u8,u8`; returns their number.

    An uid is a hexadecimal number of up to 32 digits, its upper and lower 64 bits are the two fields. Raises
    ConfigError for a row without one. Takes 16 bytes of memory for each.
    """
    parts = [_uids(one) for one in scores]
    halves_N2 = np.concatenate([np.empty((0, 2), np.uint64), *parts])
    order_N = np.lexsort((halves_N2[:, 1], halves_N2[:, 0]))
    subset = np.ascontiguousarray(halves_N2[order_N]).view(DTYPE)[:, 0]
    file = io.BytesIO()
    np.save(file, subset)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, file.getbuffer())
    return len(subset)


def _uids(scores: Path) -> npt.NDArray[np.uint64]:
    check_uids(scores)
    column = pq.read_table(scores, columns=[UID]).column(0)
    if column.null_count:
        raise ConfigError(f"--subset-file: {column.null_count} samples of {scores} have no uid")
    padded = pc.ascii_lpad(column, width=_DIGITS, padding="0")
    text = "".join(padded.to_pylist())
    try:
        # fromhex passes over spaces, so that the length has to be right, too.
        content = bytes.fromhex(text)
        if len(text) != _DIGITS * len(padded) or len(content) * 2 != len(text):
            raise ValueError("not 32 digits")
    except ValueError as error:
        raise ConfigError(
            f"--subset-file: an uid in {scores} is no hexadecimal number of up to {_DIGITS} digits ({error})"
        ) from None
    return np.frombuffer(content, ">u8").astype(np.uint64).reshape(-1, 2)
