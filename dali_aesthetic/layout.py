"""The layout of an output: its files and their names, its run record, and which of its shards are done.

    OUTPUT/run.json                           the run record: what made this output (`read_record`)
    OUTPUT/shards/NAME.tar | .parquet         the kept samples of the input shard NAME
    OUTPUT/files/...                          or kept image files with their sidecars, in the input's tree
    OUTPUT/scores/NAME.parquet                one row for every input sample
    OUTPUT/stats/NAME.json                    a `ShardReport`; it is written last: NAME is done
    OUTPUT/quarantine/NAME.tar | .parquet     samples that could not be scored, where asked for
    OUTPUT/embeddings/img_emb/img_emb_NAME.npy, embeddings/metadata/metadata_NAME.parquet
    OUTPUT/calibration.safetensors            the fp8 scales and decision of the run
    OUTPUT/timing.jsonl, report.html          for people; no reader of an output depends on them
    OUTPUT/scored/                            an output of its own: the scores that `--keep-top` cuts
    OUTPUT/.lock, .settling.lock, .tmp-*      locks and files that are not whole yet

NAME may have folders in it (`a/00000`); `shard_name` makes it. A file whose own name begins with a dot
belongs to no shard. An output is a local folder or the URL of one in an object store; every function here
takes both.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from hashlib import sha256
from os import PathLike, fspath
from typing import Any

from dali_aesthetic.stores.access import list_files, read_bytes
from dali_aesthetic.stores.location import join
from dali_aesthetic.types import ConfigError

Location = str | PathLike[str]

RECORD = "run.json"
SHARDS, SCORES, STATS, QUARANTINE, EMBEDDINGS = "shards", "scores", "stats", "quarantine", "embeddings"
FILES = "files"
FOLDERS = (SHARDS, FILES, SCORES, STATS, QUARANTINE, EMBEDDINGS)
"""All that holds files of shards; an input below one of them would be replaced."""
CALIBRATION = "calibration.safetensors"
TIMING = "timing.jsonl"
REPORT = "report.html"
SCORED = "scored"
LOCK = ".lock"
SETTLING = ".settling.lock"
"""Held while a run's precision is settled."""
TAR, PARQUET = ".tar", ".parquet"
TAR_END = bytes(1024)
"""The end marker of a tar. A kept tar is its entries and this, without the padding to 10,240 bytes."""

THRESHOLD = "threshold"
"""What `removed` of a `ShardReport` calls the bounds on the score."""
DERIVED = {
    "min_side": ("CASE WHEN width <= height THEN width WHEN height < width THEN height END", ""),
    "max_side": ("CASE WHEN width >= height THEN width WHEN height > width THEN height END", ""),
    "aspect_ratio": (
        "CASE WHEN width >= height THEN width / height WHEN height > width THEN height / width END",
        "",
    ),
    "megapixels": ("width::BIGINT * height / 1e6", ""),
    "bytes_per_pixel": ("num_bytes / (width::BIGINT * height)", "num_bytes"),
}
"""Names that conditions may use beside the columns of the scores, none of which has one of them: their SQL,
and what they read beside width and height."""
PROFILE = [
    *((name, "f4") for name in ("brightness", "contrast", "saturation", "colorfulness", "entropy")),
    *((name, "f4") for name in ("sharpness", "border_variance")),
    *(("phash", "u8"), ("xxh3", "U32"), ("jpeg_quality", "i4"), ("has_alpha", "?"), ("num_frames", "i4")),
]
"""The columns of `--profile`, as NumPy's types: those of pixels, then the hash and what the bytes tell."""
PROFILE_FLOATS = [name for name, kind in PROFILE if kind == "f4"]
PROFILE_SIDE = 256
"""Pixels to which the whole image is stretched, both ways, for the columns of pixels."""
IDENTITY, CONFIG = "identity", "config"
"""Sections of the run record: what has to be the same for two runs to be one, and all that was asked for."""
PACKED_FROM = "packed_from"
"""The field of `config` that only a packed output has."""
_MOST_PART_BYTES, _MOST_NAME_BYTES = 238, 700
"""A file name has at most 255 bytes, of which `metadata_` and `.parquet` take 17. An object's key has at most
1,024, some of which are the output's own."""
_DIGEST = 12
_ODD = re.compile(r"\\|(?:^|/)(?:\.{0,2}/|\.[^/]*$|$)|\.(?:json|parquet|tar|npy)/", re.IGNORECASE)
"""A backslash, an empty segment, `.` and `..`, a hidden file, and a folder called as a file of another shard:
`a.json/b` beside `a`."""


class NotARun(ConfigError):
    """A folder without a run record that can be read. The message names the file."""


class BadStats(ValueError):
    """A shard's stats can't be read. The message names the file."""


def shard_name(path: str, whole: str = "") -> str:
    """The name of the shard whose file is `path`, without extension: `path` itself where names can hold it.

    Otherwise what they can't hold is replaced or cut, and a digest of `path` keeps two files apart: the name
    depends on `path` alone, so that reruns and other machines make the same one. `whole` is the path with its
    extension where that alone tells it from another file's; the digest is of it then.
    """
    raw = path.encode("utf-8", "surrogateescape")
    is_short = len(raw) <= _MOST_PART_BYTES or (
        len(raw) <= _MOST_NAME_BYTES and max(map(len, raw.split(b"/"))) <= _MOST_PART_BYTES
    )
    if not whole and is_short and path.isprintable() and not _ODD.search(path):
        return path
    *folders, own = map(_cut, path.split("/"))
    if len("/".join(folders).encode()) > _MOST_NAME_BYTES - _MOST_PART_BYTES:
        folders = []
    digest = sha256(whole.encode("utf-8", "surrogateescape") or raw).hexdigest()[:_DIGEST]
    return "/".join((*folders, f"{own}-{digest}"))


def _cut(part: str) -> str:
    """`part` as a part of a name, with room for a digest."""
    text = "".join(letter if letter.isprintable() and letter not in ".\\" else "_" for letter in part)
    return text.encode()[: _MOST_PART_BYTES - 1 - _DIGEST].decode(errors="ignore") or "_"


def shard_file(name: str, suffix: str = TAR) -> str:
    """Where a shard's kept samples are; like all paths of this module relative to the output."""
    return f"{SHARDS}/{name}{suffix}"


def scores_file(name: str) -> str:
    """Where the row of every sample is."""
    return f"{SCORES}/{name}{PARQUET}"


def stats_file(name: str) -> str:
    """Where the `ShardReport` is, whose presence says that the shard is done."""
    return f"{STATS}/{name}.json"


def quarantine_file(name: str, suffix: str = TAR) -> str:
    """Where the samples are that could not be scored."""
    return f"{QUARANTINE}/{name}{suffix}"


def embedding_files(name: str) -> tuple[str, str]:
    """Where a shard's embeddings and their rows are, in clip-retrieval's layout."""
    folder, slash, stem = name.rpartition("/")
    return (
        f"{EMBEDDINGS}/img_emb/{folder}{slash}img_emb_{stem}.npy",
        f"{EMBEDDINGS}/metadata/{folder}{slash}metadata_{stem}{PARQUET}",
    )


def shard_files(name: str) -> tuple[str, ...]:
    """Every file that readers of a shard look at. No output has all of them."""
    samples = (file(name, suffix) for file in (shard_file, quarantine_file) for suffix in (TAR, PARQUET))
    return (stats_file(name), scores_file(name), *samples)


def committed_names(output: Location) -> set[str]:
    """The names of the shards that are done, from one listing of their stats."""
    return _names(output, STATS, (".json",))


def uncommitted_names(output: Location) -> list[str]:
    """The shards with files but no stats: a run was stopped, and the next one does them again."""
    begun = _names(output, SHARDS, (TAR, PARQUET)) | _names(output, SCORES, (PARQUET,))
    return sorted(begun - committed_names(output))


def _names(output: Location, folder: str, suffixes: Iterable[str]) -> set[str]:
    files = list_files(join(output, folder))
    parts = ((name, name.rpartition("/")[2]) for name in files)
    return {
        name.removesuffix(suffix)
        for name, own in parts
        for suffix in suffixes
        if own.endswith(suffix) and not own.startswith(".")
    }


def read_stats(output: Location, name: str) -> dict[str, Any]:
    """The fields of a shard's `ShardReport`. Raises BadStats, and FileNotFoundError where it isn't done."""
    path = join(output, stats_file(name))
    try:
        stats = json.loads(read_bytes(path))
    except ValueError as error:
        raise BadStats(f"{path} can't be read: {error}") from None
    if not isinstance(stats, dict):
        raise BadStats(f"{path} can't be read: it holds no object")
    return stats


def read_record(output: Location) -> dict[str, Any]:
    """The run record, in which `identity` is an object, and so is `config` where there is one.

    Raises NotARun where there is none or it is anything else, and StoreUnusable or OSError for a failed read.
    """
    path = join(output, RECORD)
    try:
        content = read_bytes(path)
    except (FileNotFoundError, NotADirectoryError):
        raise NotARun(f"{output} is not the output of a run: it has no {RECORD}") from None
    try:
        record: dict[str, Any] = json.loads(content)
        if not isinstance(record[IDENTITY], dict) or not isinstance(record.get(CONFIG, {}), dict):
            raise TypeError(f"{IDENTITY} or {CONFIG} is no object")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NotARun(f"{path} can't be read as the record of a run: {error!r}") from None
    return record


def scored_by(record: dict[str, Any]) -> dict[str, Any]:
    """The identity of the run that scored, also where `filter` or `compact` made the output from its own."""
    identity: dict[str, Any] = record.get(IDENTITY, {})
    while isinstance(before := identity.get("run", identity.get("scored_by")), dict):
        identity = before
    return identity


def cut_of(record: dict[str, Any]) -> tuple[float, float] | None:
    """The inclusive bounds on the raw score, of a packed output those of its run; None: nothing was cut.

    Where a condition alone decided, the lower bound is minus infinity.
    """
    identity = _unpacked(record)
    lower = identity.get("min_raw")
    lower = -math.inf if lower is None and where_of(record) else lower
    upper = identity.get("max_raw", math.inf)
    if isinstance(lower, int | float) and isinstance(upper, int | float):
        return float(lower), float(upper)
    return None


def where_of(record: dict[str, Any]) -> str:
    """The condition in SQL that kept samples fulfil; "" where there was none."""
    return str(_unpacked(record).get("where", ""))


def _unpacked(record: dict[str, Any]) -> dict[str, Any]:
    """The identity of the run or cut that chose the kept samples."""
    identity: dict[str, Any] = record.get(IDENTITY, {})
    while isinstance(identity.get("run"), dict):
        identity = identity["run"]
    return identity


def holds_embeddings(record: dict[str, Any]) -> bool:
    """Whether stored embeddings were scored: there are no images."""
    return bool(record[IDENTITY].get("input_kind") == EMBEDDINGS)


def holds_scores_only(record: dict[str, Any]) -> bool:
    """Whether no samples were to be kept."""
    return holds_embeddings(record) or bool(record.get(CONFIG, {}).get("scores_only"))


def holds_files(record: dict[str, Any]) -> bool:
    """Whether kept images are files of their own."""
    form = record.get(CONFIG, {}).get("output_format", "tar")
    return form != "tar" and not holds_scores_only(record)


def packed_from(record: dict[str, Any]) -> str | None:
    """The output that `compact` made this one of; None for an output of anything else."""
    found = record.get(CONFIG, {}).get(PACKED_FROM)
    return None if found is None else str(found)


def recut_words(record: Mapping[str, Any], output: Location) -> list[str]:
    """The command that cuts the scores in `output` again into a folder beside it, without the bounds.

    Those of a packed output are in the run it was made of. Stored embeddings have no samples to write, so
    that their keys are printed.
    """
    run, config = record[IDENTITY], record.get(CONFIG, {})
    scores = (config.get(PACKED_FROM) or fspath(output)).rstrip("/")
    if holds_embeddings({IDENTITY: scored_by(dict(record))}):
        return ["dali-aesthetic", "select", "--scores", scores]
    while isinstance(run.get("run"), dict):
        run = run["run"]
    words = ["dali-aesthetic", "filter"]
    for name in run.get("input", ()):
        words += ["--input", name]
    words += ["--scores", scores, "--output", f"{scores}-cut"]
    if config.get("image_column"):
        words += ["--image-column", config["image_column"]]
    if config.get("columns"):
        words += ["--columns", ",".join(config["columns"])]
    if holds_files(dict(record)):
        words += ["--output-format", config["output_format"]]
    return words + ["--follow-links"] * bool(config.get("follow_links"))
