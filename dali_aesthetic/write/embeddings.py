"""Embeddings of a shard in clip-retrieval's layout, which autofaiss and embedding-reader read too.

Shape legend: R rows of a batch, D embedding.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dali_aesthetic.layout import embedding_files
from dali_aesthetic.types import Buffer, Sample
from dali_aesthetic.write.commit import WholeFile
from dali_aesthetic.write.files import output_path
from dali_aesthetic.write.rows import SidecarColumns
from dali_aesthetic.write.writers import to_parquet

_ROWS_IN_GROUP = 1 << 20
_COLUMNS = frozenset(("image_path", "source_shard", "source_offset"))


class ShardEmbeddings:
    """Two `parts` of a shard: a matrix (float16, L2-normalised) and its rows as Parquet.

    Only samples whose image was decoded have a row. `image_path` is the sample's key, or the path of a
    folder's image; the fields of its json follow. A shard without rows has neither file: readers of the
    layout pair the two folders by order and skip empty matrices in one of them.
    """

    def __init__(self, output: Path, name: str) -> None:
        matrix, metadata = (output_path(output, file) for file in embedding_files(name))
        self.parts = (WholeFile(matrix, self._matrix), WholeFile(metadata, self._metadata))
        self._rows: list[npt.NDArray[np.float16]] = []
        self._paths: list[str] = []
        self._sources: list[str] = []
        self._offsets: list[int] = []
        self._sidecars = SidecarColumns(_COLUMNS)

    def add(
        self, samples: Sequence[Sample], embeddings_RD: npt.NDArray[np.float16], ok_R: npt.NDArray[np.bool_]
    ) -> None:
        """Appends the rows of `samples` that are ok."""
        for row in np.flatnonzero(ok_R).tolist():
            sample = samples[row]
            self._paths.append(sample.source if sample.shard.kind == "folder" else sample.key)
            self._sources.append(sample.source)
            self._offsets.append(sample.offset)
            self._sidecars.add(sample.sidecar)
        self._rows.append(embeddings_RD[ok_R])

    def _matrix(self) -> Buffer | None:
        if not self._paths:
            return None
        matrix = io.BytesIO()
        np.save(matrix, np.concatenate(self._rows))
        return matrix.getbuffer()

    def _metadata(self) -> Buffer | None:
        if not self._paths:
            return None
        columns = {
            "image_path": _text(self._paths),
            "source_shard": _text(self._sources),
            "source_offset": pa.array(self._offsets, pa.int64()),
        }
        return to_parquet(pa.table({**columns, **self._sidecars.arrays()}), _ROWS_IN_GROUP)


def _text(names: Sequence[str]) -> pa.Array:
    """File names need not be UTF-8."""
    return pa.array([name.encode("utf-8", "backslashreplace") for name in names], pa.binary()).cast(
        pa.string()
    )
