"""Published weights on this machine: found, or downloaded, and never used with other bytes than pinned."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants as hub

from dali_aesthetic.score.registry import PublishedFile

_LOG = logging.getLogger(__name__)
_TIMEOUT_SECONDS = 30
_CHUNK = 1 << 22


class WeightsUnavailable(RuntimeError):
    """Published weights that aren't on this machine and can't be downloaded, or whose bytes are wrong.

    The message names the files, their sha256, where to put them and the command that does it.
    """


@dataclass(frozen=True, slots=True)
class ResolvedFile:
    """Weights that were asked for by `name`, as found: what run.json keeps of them.

    The user's own files go by their file name, so that a folder may move. `path` and `sha256` are empty for
    random weights. `source` is the address of published weights, else the path or `random`.
    """

    name: str
    path: str
    sha256: str
    source: str


def hash_file(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def cache_dir() -> Path:
    """Where files without a hub repo are kept: beside the hub's cache, so HF_HOME moves both."""
    return Path(hub.HF_HOME) / "dali_aesthetic"


def resolve(
    name: str, files: Sequence[PublishedFile], model_dir: Path | None, command: str
) -> tuple[Path, ResolvedFile]:
    """The first of `files` (alternatives, the same weights each) that is here, else downloaded to the cache.

    Looks into `model_dir`, then the caches. `command` is what the error tells the user to run. Raises
    WeightsUnavailable.
    """
    for file in files:
        for path in _places(file, model_dir):
            return _verified(name, file, path)
    return _download_first(name, files, None, model_dir, command)


def fetch(name: str, files: Sequence[PublishedFile], model_dir: Path | None, command: str) -> None:
    """As `resolve`, for a file that is read later: one that is here is not even opened."""
    if not any(True for file in files for _ in _places(file, model_dir)):
        _download_first(name, files, None, model_dir, command)


def find(
    name: str, files: Sequence[PublishedFile], model_dir: Path | None, command: str
) -> ResolvedFile | WeightsUnavailable:
    """As `resolve` without downloading anything: the file, or the error that says how to get it."""
    for file in files:
        for path in _places(file, model_dir):
            try:
                return _verified(name, file, path)[1]
            except WeightsUnavailable as error:
                return error
    folder = f" --model-dir {model_dir}" if model_dir else ""
    return WeightsUnavailable(f"weights {name!r} are not on this machine\n{command}{folder}")


def download(
    name: str, files: Sequence[PublishedFile], model_dir: Path | None, command: str
) -> tuple[Path, ResolvedFile]:
    """As `resolve`, but leaves the file in `model_dir` where one is given."""
    for file in files:
        for path in _places(file, model_dir):
            if model_dir is None or path.is_relative_to(model_dir):
                return _verified(name, file, path)
    return _download_first(name, files, model_dir, model_dir, command)


def _places(file: PublishedFile, model_dir: Path | None) -> Iterator[Path]:
    """The paths on this machine that hold the file, best first."""
    candidates = [cache_dir() / file.filename, Path("~/.cache/clip").expanduser() / file.filename]
    if model_dir is not None:
        candidates.insert(0, model_dir / file.filename)
        if file.repo:
            candidates.insert(1, model_dir / file.repo / file.hub_path)
    # Without a sha256 any file of that name would pass; the hub's cache is indexed by the revision.
    yield from (path for path in candidates if file.sha256 and path.is_file())
    if file.repo:
        cached = huggingface_hub.try_to_load_from_cache(file.repo, file.hub_path, revision=file.revision)
        if isinstance(cached, str):
            yield Path(cached)


def _verified(name: str, file: PublishedFile, path: Path) -> tuple[Path, ResolvedFile]:
    sha256 = hash_file(path)
    if file.sha256 and sha256 != file.sha256:
        raise WeightsUnavailable(
            f"weights {name!r}: {path} has sha256 {sha256}, expected {file.sha256}; it is damaged or another "
            f"file. Remove it, then download {file.source}"
        )
    return path, ResolvedFile(name=name, path=str(path), sha256=sha256, source=file.source)


def _download_first(
    name: str, files: Sequence[PublishedFile], target: Path | None, model_dir: Path | None, command: str
) -> tuple[Path, ResolvedFile]:
    """Download the first file that can be had, to `target` or the cache."""
    reasons = []
    for file in files:
        try:
            path = _download_hub(file, target) if file.repo else _download_url(file, target or cache_dir())
        except Exception as error:  # the hub's client raises its own, httpx's or requests', by version
            reasons.append(_one_line(error))
            continue
        return _verified(name, file, path)
    raise WeightsUnavailable(_unavailable(name, files, reasons, model_dir, command))


def _download_hub(file: PublishedFile, target: Path | None) -> Path:
    """A file of the hub, in its cache or moved to the folder `target`. Raises OSError."""
    _require_online(hub.ENDPOINT)
    _LOG.info("downloading %s", file.source)
    if target is None:
        return Path(huggingface_hub.hf_hub_download(file.repo, file.hub_path, revision=file.revision))
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target, prefix=".download-") as folder:
        got = huggingface_hub.hf_hub_download(
            file.repo, file.hub_path, revision=file.revision, local_dir=folder
        )
        _keep_if_right(file, Path(got))
        return Path(got).replace(target / file.filename)


def _download_url(file: PublishedFile, target: Path) -> Path:
    """A file of a plain web server, in the folder `target`. Raises OSError."""
    _require_online(None)
    _LOG.info("downloading %s", file.source)
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target, prefix=".download-") as folder:
        part = Path(folder) / file.filename
        with urllib.request.urlopen(file.url, timeout=_TIMEOUT_SECONDS) as response, part.open("wb") as out:
            while chunk := response.read(_CHUNK):
                out.write(chunk)
            out.flush()
            os.fsync(out.fileno())
        _keep_if_right(file, part)
        return part.replace(target / file.filename)


def _keep_if_right(file: PublishedFile, path: Path) -> None:
    """Raises OSError for a download with other bytes, before it gets the name that promises them."""
    sha256 = hash_file(path)
    if file.sha256 and sha256 != file.sha256:
        raise OSError(f"what came has sha256 {sha256}")


def _require_online(endpoint: str | None) -> None:
    """Raises OSError where downloading is switched off, or the endpoint's host can't be reached.

    The hub's own client tries an unreachable host for half a minute.
    """
    if hub.HF_HUB_OFFLINE:
        raise OSError("offline: HF_HUB_OFFLINE is set")
    if endpoint is not None:
        try:
            request = urllib.request.Request(endpoint, method="HEAD")
            urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS).close()
        except urllib.error.HTTPError:
            return  # it answered


def _one_line(error: Exception) -> str:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return (str(reason) or type(error).__name__).splitlines()[0]


def _unavailable(
    name: str, files: Sequence[PublishedFile], reasons: Sequence[str], model_dir: Path | None, command: str
) -> str:
    lines = [f"weights {name!r} are not on this machine and could not be downloaded. Tried:"]
    for file, reason in zip(files, reasons, strict=True):
        pin = f"sha256 {file.sha256}" if file.sha256 else f"revision {file.revision}"
        lines += [f"  {file.filename}  {pin}", f"    from {file.source}: {reason}"]
    folder = model_dir or "DIR"
    pinned = next((file.filename for file in files if file.sha256), files[0].filename)
    lines += [
        f"Where there is a network, run\n  {command} --model-dir {folder}",
        f"then bring the folder here and pass --model-dir {folder}; or put {pinned} into it by hand.",
    ]
    return "\n".join(lines)
