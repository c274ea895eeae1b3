"""Files of a shard: a tar of entries copied byte for byte or image files, a Parquet file of tables, and the
embeddings.

Shape legend: R rows of a batch, D embedding.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dali_aesthetic.layout import FILES, TAR_END, embedding_files
from dali_aesthetic.types import Buffer, Sample, Shard, Status
from dali_aesthetic.write.commit import Part, WholeFile
from dali_aesthetic.write.files import (
    OutsideOutput,
    make_folder,
    naming,
    open_new,
    output_path,
    removing_on_error,
    sync_folder,
    temporary_path,
    write_all,
)

COMPRESSION: dict[str, Any] = {"compression": "zstd", "compression_level": 3}
_START_EVERY = 16 << 20
_NOT_NEEDED = getattr(os, "POSIX_FADV_DONTNEED", 0)
_FACTS = ("source_shard", "source_offset", "key", "width", "height")


class TarWriter(Part):
    """A tar of entries as they are and the end marker, so that the same entries always are the same bytes.

    `num_bytes` counts the entries alone.
    """

    def __init__(self, final: Path) -> None:
        super().__init__(final)
        self._started = 0
        with naming(self.final):
            self._descriptor = open_new(self.temporary)

    def add(self, entries: Sequence[Buffer]) -> None:
        """Appends whole entries (headers, data, padding). Raises OSError naming the file."""
        with naming(self.final):
            self.num_bytes += write_all(self._descriptor, entries)
        if self.num_bytes - self._started >= _START_EVERY:
            self._start_writing()

    def _start_writing(self) -> None:
        """Has the kernel write to disk in the background, so that the sync at the end is short.

        Linux starts to write pages of which it is told that they will not be needed.
        """
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, self._started, self.num_bytes - self._started, _NOT_NEEDED)
        self._started = self.num_bytes

    def finish(self) -> None:
        """See `Part`."""
        with naming(self.final):
            write_all(self._descriptor, [TAR_END])
            os.fsync(self._descriptor)
        self._close()

    def abandon(self) -> None:
        """See `Part`."""
        with suppress(OSError):
            self._close()
        super().abandon()

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class KeptFiles(Part):
    """Kept image files with their sidecars, in the tree that they have below `root`; copies keep their times.

    With `as_links` they are hard links to the input's files, and copies where the file system has none or a
    file changed meanwhile. `num_bytes` counts the bytes of all of them.
    """

    def __init__(self, output: Path, root: str, *, as_links: bool) -> None:
        super().__init__(output / FILES)
        self._root, self._as_links = root, as_links
        self._files: dict[Path, Path] = {}
        self._folders: set[Path] = set()

    def add(self, samples: Sequence[Sample]) -> None:
        """Writes each file under its temporary name. Raises OSError naming the file."""
        for sample in samples:
            for name, content in sample.files:
                self._add(os.path.join(self._root, name), self.final / name, content)

    def _add(self, source: str, final: Path, content: Buffer) -> None:
        temporary = temporary_path(final)
        with naming(final):
            self._make_folder(final.parent)
            self._files[temporary] = final
            if not (self._as_links and _linked(source, temporary, len(content))):
                temporary.unlink(missing_ok=True)  # else a link to a changed file would be written to
                descriptor = open_new(temporary)
                try:
                    write_all(descriptor, [content])
                finally:
                    os.close(descriptor)
                with suppress(OSError):  # the source is gone
                    times = os.stat(source)
                    os.utime(temporary, ns=(times.st_atime_ns, times.st_mtime_ns))
        self.num_bytes += len(content)

    def _make_folder(self, folder: Path) -> None:
        if folder not in self._folders:
            make_folder(folder)
            if not folder.resolve().is_relative_to(self.final.resolve()):
                raise OutsideOutput(f"{folder} is a link to outside {self.final}; remove it")
            self._folders.add(folder)

    def finish(self) -> None:
        """See `Part`."""
        for temporary, final in self._files.items():
            with naming(final):
                sync_folder(temporary)  # of a file too

    def publish(self) -> None:
        """See `Part`."""
        for temporary, final in self._files.items():
            with naming(final):
                os.replace(temporary, final)
                temporary.unlink(missing_ok=True)  # of two links to one file the first is left
        for folder in sorted(self._folders):
            sync_folder(folder)

    def abandon(self) -> None:
        """See `Part`."""
        for temporary in self._files:
            temporary.unlink(missing_ok=True)


def _linked(source: str, temporary: Path, size: int) -> bool:
    """Whether `temporary` now is a hard link to `source`, a file of `size` bytes."""
    with suppress(OSError):
        temporary.unlink(missing_ok=True)
        os.link(os.path.realpath(source), temporary)
        return temporary.stat().st_size == size
    return False


class ParquetWriter(Part):
    """A Parquet file of tables of one schema, a row group each. Without a `schema` it is that of the first
    table, and without a table there is no file: one of an earlier try is removed.

    The same tables give the same bytes with the same pyarrow. `options` are pyarrow's own for its writer.
    """

    def __init__(self, final: Path, schema: pa.Schema | None = None, **options: Any) -> None:
        super().__init__(final)
        self._options = options or COMPRESSION
        self._writer: pq.ParquetWriter | None = None
        if schema is not None:
            self._open(schema)

    def _open(self, schema: pa.Schema) -> pq.ParquetWriter:
        with naming(self.final), removing_on_error(self.temporary):
            self._file = self.temporary.open("wb")
            self._writer = pq.ParquetWriter(self._file, schema, **self._options)
        return self._writer

    @property
    def is_open(self) -> bool:
        """Whether there will be a file."""
        return self._writer is not None

    def add(self, table: pa.Table) -> None:
        """Appends a row group, or nothing for no rows: `datasets` can't read an empty group. Raises OSError
        naming the file.
        """
        writer = self._writer or self._open(table.schema)
        with naming(self.final):
            if len(table):
                writer.write_table(table, row_group_size=len(table))

    def finish(self) -> None:
        """See `Part`."""
        if self._writer is None:
            return
        with naming(self.final):
            self._writer.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self.num_bytes = self._file.tell()
            self._file.close()

    def publish(self) -> None:
        """See `Part`."""
        if self._writer is None:
            self.final.unlink(missing_ok=True)
        else:
            super().publish()

    def abandon(self) -> None:
        """See `Part`."""
        if self._writer is not None:
            with suppress(OSError):  # closing writes what is buffered, for which there may be no room
                self._file.close()
        super().abandon()


class ShardEmbeddings:
    """Two `parts` of a shard in clip-retrieval's layout, which autofaiss and embedding-reader read too.

    They are a matrix (float16, L2-normalised) and its rows as Parquet.

    Only samples whose image was decoded have a row: `image_path`, which is the sample's key, or the path of a
    folder's image, then `_FACTS` and the `columns` of json as in the scores. A shard without rows has
    neither file: readers of the layout pair the two folders by order and skip empty matrices in one of them.
    """

    def __init__(self, output: Path, shard: Shard, columns: Sequence[str]) -> None:
        matrix, metadata = (output_path(output, file) for file in embedding_files(shard.name))
        self._columns = (*_FACTS, *columns)
        self._path = "source_shard" if shard.kind == "folder" else "key"
        self._rows: list[npt.NDArray[np.float16]] = []
        self._metadata = ParquetWriter(metadata)
        self.parts = (WholeFile(matrix, self._matrix), self._metadata)

    def add(self, embeddings_RD: npt.NDArray[np.float16]) -> None:
        """Appends the embeddings of decoded samples."""
        self._rows.append(embeddings_RD)

    def add_rows(self, scores: pa.Table) -> None:
        """Appends the rows of the decoded samples among `scores`. Raises OSError naming the file."""
        rows = scores.filter(pc.equal(scores.column("status"), Status.OK.value))
        if len(rows):
            facts = rows.select(self._columns)
            self._metadata.add(facts.add_column(0, "image_path", rows.column(self._path)))

    def _matrix(self) -> Buffer | None:
        if not any(map(len, self._rows)):
            return None
        matrix = io.BytesIO()
        np.save(matrix, np.concatenate(self._rows))
        return matrix.getbuffer()
