"""Score stored embeddings: each file is mapped, scored in blocks, and committed as a shard is.

Shape legend: R rows of a block, D embedding, H heads."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from dali_aesthetic.embeddings.files import EmbeddingFile, find_embeddings, fingerprint
from dali_aesthetic.embeddings.table import EmbeddingScores
from dali_aesthetic.layout import EMBEDDINGS, IDENTITY, committed_names, read_stats
from dali_aesthetic.score.head import HeadBank
from dali_aesthetic.score.published import ResolvedFile
from dali_aesthetic.score.weights import load_head
from dali_aesthetic.shards.listing import InputError
from dali_aesthetic.stores.location import is_url
from dali_aesthetic.threshold import Threshold
from dali_aesthetic.types import ShardReport, Status
from dali_aesthetic.version import __version__
from dali_aesthetic.write.lock import claim
from dali_aesthetic.write.output import OutputMismatch, clean_leftovers, write_run_record
from dali_aesthetic.write.rows import schema_identity

BLOCK_ROWS = 512
"""Rows of a block: few enough to stay in a CPU's cache until they are scored."""
NORM_TOLERANCE = 1e-2
_MAX_OFF = 0.01
"""The share of a block's rows whose norm may differ from 1, as damaged rows; above it the file was not
normalised."""
GROUP_ROWS = 128 * BLOCK_ROWS
"""Rows of a row group of the scores."""
Progress = Callable[[ShardReport], None]
Problem = tuple[Status, str]


class NotNormalized(ValueError):
    """The L2 norm of embeddings is not 1: the heads would give nonsense for them."""


@dataclass(slots=True, kw_only=True)
class EmbeddingsResult:
    """The outcome of a call. `num_skipped` files were committed by an earlier, equal call."""

    reports: list[ShardReport] = field(default_factory=list)
    num_skipped: int = 0
    seconds: float = 0.0

    @property
    def num_rows(self) -> int:
        return sum(report.num_samples for report in self.reports)

    @property
    def num_kept(self) -> int:
        return sum(report.num_kept for report in self.reports)

    @property
    def num_bad(self) -> int:
        """Rows without a score: NaN, infinity, all zero, or the wrong norm."""
        return self.num_rows - sum(report.statuses.get(Status.OK.value, 0) for report in self.reports)


def score_embeddings(
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    heads: Sequence[str] = ("laion-v2",),
    *,
    encoder: str = "ViT-L-14",
    model_dir: Path | None = None,
    threshold: Threshold | None = None,
    normalize: bool = False,
    columns: Sequence[str] = (),
    progress: Progress | None = None,
) -> EmbeddingsResult:
    """Scores every embedding of `inputs` into `output/scores/`; a file that is committed is skipped.

    `encoder` is the CLIP that made the embeddings, `columns` are as in `Config`. On busy cores
    OMP_NUM_THREADS=1 is often several times faster, because threads then don't wait for one another at every
    block.

    Raises InputError for inputs that aren't embeddings, NotNormalized, ValueError for heads that don't fit,
    RunMismatch for an output that holds another run, OutputMismatch for one with the scores of another file
    of the same name, WeightsUnavailable, and OSError where the output can't be written.
    """
    if is_url(str(output)):
        raise ValueError(f"--output {output}: scores of embeddings go to a local folder, not to a URL")
    root = Path(output)
    files = find_embeddings(inputs, str(root))
    threshold = threshold or Threshold()
    if threshold.top is not None or threshold.where:
        raise ValueError(
            "a share or a condition cuts stored scores: score first, then `select --keep-top` or `--where`"
        )
    bank, weights = _bank(files, heads, encoder, model_dir)
    result = EmbeddingsResult()
    start = time.perf_counter()
    with claim(root):
        write_run_record(root, _record(files, bank, weights, threshold, encoder, normalize, columns))
        clean_leftovers(root)
        done = committed_names(root)
        for file in files:
            if file.name in done:
                _check_same(root, file)
                result.num_skipped += 1
                continue
            report = _score_file(file, root, bank, threshold, normalize, columns)
            result.reports.append(report)
            result.seconds = time.perf_counter() - start
            if progress is not None:
                progress(report)
    return result


def _check_same(root: Path, file: EmbeddingFile) -> None:
    """Raises OutputMismatch where the scores of this name were made from another file."""
    stats = read_stats(root, file.name)
    mark, source = stats.get("fingerprint"), stats.get("source")
    same = mark == fingerprint(file) if mark else os.path.realpath(str(source)) == os.path.realpath(file.path)
    if not same:
        raise OutputMismatch(
            f"{root} holds scores of {source}, and {file.path}, whose scores would have the same name "
            f"({file.name}), holds other embeddings or metadata: give another output folder"
        )


def _bank(
    files: Sequence[EmbeddingFile], heads: Sequence[str], encoder: str, model_dir: Path | None
) -> tuple[HeadBank, list[ResolvedFile]]:
    widths = {open_matrix(file.path).shape[1]: file.path for file in files}
    if len(widths) > 1:
        listed = ", ".join(f"{width} ({path})" for width, path in widths.items())
        raise InputError(f"the files hold embeddings of different lengths: {listed}; score them apart")
    (embed_dim,) = widths
    loaded = [load_head(head, encoder, embed_dim, model_dir) for head in heads]
    return HeadBank([head for head, _ in loaded], embed_dim), [file for _, file in loaded]


def _record(
    files: Sequence[EmbeddingFile],
    bank: HeadBank,
    weights: Sequence[ResolvedFile],
    threshold: Threshold,
    encoder: str,
    normalize: bool,
    columns: Sequence[str],
) -> dict[str, Any]:
    identity = {
        "input_kind": EMBEDDINGS,
        **threshold.identity(),
        "encoder": encoder,
        "weights": [{"name": file.name, "sha256": file.sha256} for file in weights],
        "heads": list(bank.names),
        "normalize": normalize,
        **schema_identity(columns),
    }
    versions = {"dali_aesthetic": __version__, "torch": torch.__version__}
    return {
        IDENTITY: identity,
        "input": [file.path for file in files],
        "weights": [{key: str(value) for key, value in asdict(file).items()} for file in weights],
        "environment": versions,
    }


def _score_file(
    file: EmbeddingFile,
    output: Path,
    bank: HeadBank,
    threshold: Threshold,
    normalize: bool,
    columns: Sequence[str],
) -> ShardReport:
    matrix = open_matrix(file.path)
    starts, metadata = range(0, len(matrix), GROUP_ROWS), _metadata(file, len(matrix))
    sink = EmbeddingScores(output, file.name, file.path, bank.names, columns, fingerprint(file))
    try:
        for start, rows in zip(starts, metadata, strict=False):
            scores_RH, problems = _scores(file.path, matrix, start, bank, normalize)
            sink.add(scores_RH, threshold.keep(scores_RH[:, 0]), problems, rows)
        return sink.commit()
    finally:
        sink.abandon()


@torch.inference_mode()
def _scores(
    path: str, matrix: npt.NDArray[np.floating], start: int, bank: HeadBank, normalize: bool
) -> tuple[npt.NDArray[np.float32], dict[int, Problem]]:
    """Scores [R, H] of the group of rows from `start` on, and by row of the group why it has none.

    Raises NotNormalized, unless `normalize` allows any norm above 0.
    """
    native = f"f{min(matrix.dtype.itemsize, 8)}"  # torch takes native byte order only, and at most 8 bytes
    group, scores = matrix[start : start + GROUP_ROWS], []
    problems: dict[int, Problem] = {}
    for first in range(0, len(group), BLOCK_ROWS):
        rows_RD = torch.from_numpy(np.array(group[first : first + BLOCK_ROWS], native)).float()
        found = _problems(path, start + first, rows_RD, normalize)
        scores.append(bank(rows_RD).numpy())
        scores[-1][list(found)] = np.nan
        problems |= {first + row: problem for row, problem in found.items()}
    return np.concatenate(scores), problems


def _metadata(file: EmbeddingFile, rows: int) -> Iterator[pa.Table | None]:
    """The metadata's rows of each group, None where there is none.

    Raises InputError where it can't be read, or has another number of rows.
    """
    if not file.metadata:
        return repeat(None)
    try:
        source = pq.ParquetFile(file.metadata)
    except pa.ArrowInvalid as error:  # which doesn't name the file
        raise InputError(f"{file.metadata} can't be read as Parquet ({error}); is it complete?") from error
    if source.metadata.num_rows != rows:
        raise InputError(
            f"{file.path} has {rows} embeddings, {file.metadata} {source.metadata.num_rows} rows: they don't "
            "belong together"
        )
    return _groups(source)


def _groups(source: pq.ParquetFile) -> Iterator[pa.Table]:
    """The rows of a Parquet file in groups, whatever its own row groups are."""
    table = source.schema_arrow.empty_table()
    for batch in source.iter_batches():
        table = pa.concat_tables([table, pa.Table.from_batches([batch])])
        while len(table) >= GROUP_ROWS:
            yield table.slice(0, GROUP_ROWS)
            table = table.slice(GROUP_ROWS)
    yield table


def open_matrix(path: str) -> npt.NDArray[np.floating]:
    """The file's array [rows, D], mapped. Raises InputError for anything but a matrix of floats."""
    try:
        matrix = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy evaluates a damaged header, and takes a PK for a zip
        raise InputError(f"{path} can't be read as .npy ({error}); is it complete?") from error
    if (
        not isinstance(matrix, np.ndarray)
        or matrix.ndim != 2
        or matrix.dtype.kind != "f"
        or not matrix.shape[1]
    ):
        shape = f"{matrix.dtype} {list(matrix.shape)}" if isinstance(matrix, np.ndarray) else "an archive"
        raise InputError(f"{path} holds {shape}, not a matrix of floats with an embedding in each row")
    return matrix


def _problems(path: str, start: int, rows_RD: torch.Tensor, normalize: bool) -> dict[int, Problem]:
    norms = torch.linalg.vector_norm(rows_RD, dim=1).numpy()
    off = np.abs(norms - 1) > NORM_TOLERANCE
    finite = np.isfinite(norms)
    wrong = np.flatnonzero(off & finite & (norms > 0)) if not normalize else np.empty(0, np.int64)
    # The last rows count as a full block: of less than a hundred rows a single one is above the share.
    if len(wrong) > _MAX_OFF * min(start + len(norms), BLOCK_ROWS):
        row = int(wrong[0])
        raise NotNormalized(
            f"{path}: {len(wrong)} of {len(norms)} embeddings from row {start} on don't have the L2 norm 1 "
            f"(row {start + row} has {norms[row]:.4g}); the heads were trained on normalised embeddings and "
            "give nonsense for others. If they are CLIP image embeddings before normalisation, --normalize "
            "normalises them"
        )
    problems = {int(row): (Status.UNDECODABLE, f"its L2 norm is {norms[row]:.4g}, not 1") for row in wrong}
    problems |= {int(row): (Status.EMPTY, "all its numbers are 0") for row in np.flatnonzero(norms == 0)}
    unfit = np.flatnonzero(~finite)
    return problems | {int(row): (Status.UNDECODABLE, "it holds NaN or infinity") for row in unfit}
