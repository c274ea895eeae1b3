"""`push`: an output as a data set of the Hugging Face Hub, with a card that says what it is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from dali_aesthetic import layout
from dali_aesthetic.compact.kept import KeptShard, Run, check_finished
from dali_aesthetic.config import ConfigError
from dali_aesthetic.report.page import bars, percent, run_facts, shortest
from dali_aesthetic.report.survey import Survey, survey
from dali_aesthetic.stores.location import is_url
from dali_aesthetic.version import __version__
from dali_aesthetic.write.files import TEMPORARY, write_whole

CARD = "README.md"
MARK = "<!-- Made by `dali-aesthetic push`. Without this line it stays as it is. -->"
_FOLDERS = (layout.SHARDS, layout.SCORES)
"""What is pushed beside the card. Records and stats tell of the machine that made them."""
_BAR_WIDTH, _MOST_BARS = 40, 30
_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "n>1B")
"""The Hub's classes of size, each ten times the one before."""


class PushFailed(OSError):
    """The Hub refused, or could not be reached. The message says why."""


def push(output: Path, repo: str, *, private: bool = False, allow_unfinished: bool = False) -> str:
    """Uploads the kept samples and the scores of a finished run, and a card; returns the data set's address.

    A second call uploads what the first one did not. Raises NotARun, NothingToReport or ConfigError for an
    output or a name that can't be pushed, and PushFailed.
    """
    _check(output, repo, allow_unfinished)
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    card = output / CARD
    if not card.exists() or MARK in card.read_text():
        write_whole(card, make_card(output, repo).encode())
    api = HfApi(library_name="dali-aesthetic", library_version=__version__)
    chosen: dict[str, Any] = {
        "repo_id": repo,
        "repo_type": "dataset",
        "folder_path": output,
        "allow_patterns": [CARD, *(f"{folder}/**" for folder in _FOLDERS)],
        "ignore_patterns": [TEMPORARY, f"*/{TEMPORARY}"],
    }
    try:
        url = api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True)
        # Gone from version 2, whose upload_folder does the same: it goes on where an earlier call stopped.
        upload = getattr(api, "upload_large_folder", None) or api.upload_folder
        upload(**chosen)
    except LocalTokenNotFoundError:
        raise ConfigError("no token for the Hub: set HF_TOKEN, or log in with `hf auth login`") from None
    except Exception as error:  # the client raises what it raises, and wraps what its threads raise
        cause: BaseException = error
        while not isinstance(cause, HfHubHTTPError) and cause.__cause__ is not None:
            cause = cause.__cause__
        status = getattr(getattr(cause, "response", None), "status_code", None)
        advice = " (is HF_TOKEN one that may write there?)" if status in (401, 403) else ""
        raise PushFailed(
            f"{repo}: {' '.join(str(cause).split())}{advice}; the same command goes on"
        ) from error
    return str(url)


def _check(output: Path, repo: str, allow_unfinished: bool) -> None:
    if is_url(str(output)) or (output.parts and output.parts[0].endswith(":")):
        raise ConfigError(f"{output}: only an output on a local or mounted file system is pushed, no URL")
    owner, slash, name = repo.partition("/")
    if not (owner and slash and name) or "/" in name:
        raise ConfigError(f"--repo {repo!r} is no name of a data set: give it as USER/NAME")
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError(f"--repo {repo!r}: {error}") from None
    record = layout.read_record(output)
    if layout.holds_files(record):
        raise ConfigError(f"{output} holds image files: cut it into tars with `filter`, and push those")
    if not allow_unfinished and layout.packed_from(record) is None and not layout.holds_embeddings(record):
        names = sorted(layout.committed_names(output))
        check_finished(Run(output, record, tuple(KeptShard(name, 0, 0) for name in names)))


def make_card(output: Path, repo: str) -> str:
    """The card of the data set: front matter for its viewer and loaders, then counts, cut and histogram."""
    found = survey(output, where="")  # of all samples, also where a condition left some out
    kinds = {kind: list((output / layout.SHARDS).rglob(f"*{kind}")) for kind in (layout.TAR, layout.PARQUET)}
    kept = next((kind for kind, files in kinds.items() if files), None)
    # One: the loader reads all of a repository's configurations with the reader of its most common files.
    files = f"{layout.SHARDS}/**/*{kept}" if kept else f"{layout.SCORES}/**/*{layout.PARQUET}"
    configs = [{"config_name": "default", "data_files": files}]
    num_rows = found.num_kept if kept else found.num_samples
    front = {
        "configs": configs,
        "tags": ["aesthetic-score", *(["webdataset"] if kept == layout.TAR else [])],
        "size_categories": [_SIZES[min(max(len(str(max(num_rows, 1))) - 3, 0), len(_SIZES) - 1)]],
    }
    head = yaml.safe_dump(front, sort_keys=False)
    return "\n".join([f"---\n{head}---\n{MARK}", *_sections(found, repo, kept is not None)])


def _sections(found: Survey, repo: str, has_images: bool) -> Iterator[str]:
    record = found.record
    cut = layout.cut_of(record)
    heads = ", ".join(map(str, layout.scored_by(record).get("heads", []))) or "an aesthetic head"
    yield f"\n# {repo.partition('/')[2]}\n"
    yield f"Images scored by {heads}" + (
        ", and the samples within the cut, as they were.\n" if cut else ".\n"
    )
    yield "| | |\n|---|---|"
    yield f"| samples | {found.num_samples:,} |"
    yield f"| scored | {found.first.total:,} |"
    for reason, count in found.bad.counts.most_common():
        yield f"| {reason} | {count:,} |"
    if cut:
        share = percent(found.num_kept / found.first.total) if found.first.total else "0%"
        signs = zip((">=", "<="), cut, strict=True)
        if bounds := ", ".join(f"{sign} {shortest(bound)}" for sign, bound in signs if math.isfinite(bound)):
            yield f"| cut (raw score) | {bounds} |"
        if where := layout.where_of(record):
            text = " ".join(where.split()).replace("|", r"\|")  # it is one cell of the table
            yield f"| where | `` {text} `` |"
        yield f"| kept | {found.num_kept:,} ({share}) |"
    yield from ("\n## Scores\n", *_histogram(found), "\n## Load it\n")
    yield "```python\nfrom datasets import load_dataset\n"
    if has_images:
        yield f'samples = load_dataset("{repo}", split="train", streaming=True)'
    files = f"hf://datasets/{repo}/{layout.SCORES}/**/*{layout.PARQUET}"
    yield f'scores = load_dataset("parquet", data_files="{files}", split="train")\n```\n'
    yield "`scores` has one row for each sample, kept or not: its score, or the reason why it has none.\n"
    yield "## How it was made\n"
    yield f"With dali-aesthetic {__version__}:\n\n| | |\n|---|---|"
    for what, answer in run_facts(record):
        if what != "input":  # paths of a machine
            yield f"| {what} | {answer.replace(chr(10), '<br>')} |"
    yield (
        "\nThe score is one model's taste, not quality in general: it carries its raters' preferences "
        "([an audit](https://arxiv.org/abs/2601.09896)), and its scale is that of its head.\n"
    )


def _histogram(found: Survey) -> Iterator[str]:
    """The distribution as text, at most `_MOST_BARS` lines."""
    shown = bars(found.first)
    edges, counts = shown["edges"], shown["counts"]
    if not counts:
        yield "Nothing was scored."
        return
    step = -(-len(counts) // _MOST_BARS)
    sums = [sum(counts[i : i + step]) for i in range(0, len(counts), step)]
    yield "```"
    for i, count in enumerate(sums):
        bar = "█" * round(_BAR_WIDTH * count / max(sums))
        yield f"{shortest(edges[i * step]):>8}  {bar:<{_BAR_WIDTH}} {count:,}"
    yield "```"
