"""Published weights, each file pinned by its sha256: found on this machine, or downloaded.

Files of the Hugging Face hub are also pinned by their full revision. The sha256 of OpenAI's archives are from
their URLs, LAION's were computed from the repositories at the commits named. Other bytes are never used."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants as hub

_LOG = logging.getLogger(__name__)
_TIMEOUT_SECONDS, _OFFER_SECONDS = 30, 5
"""For a download, and for each question of `doctor`, behind a firewall that answers nothing."""
_CHUNK = 1 << 22


class WeightsUnavailable(RuntimeError):
    """Published weights that aren't on this machine and can't be downloaded, or whose bytes are wrong.

    The message names the files, their sha256, where to put them and the command that does it.
    """


class NotHere(WeightsUnavailable):
    """Weights that a run would download; the message ends with the command that does it before.

    `offer()` asks for the address and the bytes of the download and raises OSError where nothing answers.
    """

    def __init__(self, name: str, command: str, model_dir: Path | None, offer: Callable[[], Offer]) -> None:
        folder = f" --model-dir {model_dir}" if model_dir else ""
        super().__init__(f"weights {name!r} are not on this machine\n{command}{folder}")
        self.offer = offer


Offer = tuple[str, int]
"""The address of a download and its size in bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedFile:
    """A file of published weights: on the Hugging Face hub (`repo`) or at a `url`.

    `filename` is its name in a model directory; `hub_path` is its path in the repo. `sha256` is empty where
    only the revision pins it.
    """

    filename: str
    sha256: str = ""
    repo: str = ""
    revision: str = ""
    hub_path: str = ""
    url: str = ""

    @property
    def source(self) -> str:
        """Its address, which includes the pin."""
        if self.repo:
            return f"https://huggingface.co/{self.repo}/resolve/{self.revision}/{self.hub_path}"
        return self.url


@dataclass(frozen=True, slots=True)
class PublishedWeights:
    """Weights that the user asked for by `name`, and the files that hold them, in the order they are tried.

    The files are alternatives: each holds the same numbers. Errors quote `command`, which downloads one.
    """

    name: str
    files: Sequence[PublishedFile]
    command: str


@dataclass(frozen=True, slots=True)
class ResolvedFile:
    """The file found for weights that were asked for by `name`, as run.json records it.

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
    """The cache of files without a hub repo: beside the hub's own, so HF_HOME moves both."""
    return Path(hub.HF_HOME) / "dali_aesthetic"


def resolve(weights: PublishedWeights, model_dir: Path | None) -> ResolvedFile:
    """The first of the files that is on this machine, else downloaded to the cache.

    Looks into `model_dir`, then the caches. Raises WeightsUnavailable.
    """
    return _first_here(weights, model_dir) or _download_first(weights, None, model_dir)


def fetch(weights: PublishedWeights, model_dir: Path | None) -> None:
    """As `resolve`, for a file that is read later: one on this machine is not even opened."""
    if not any(True for file in weights.files for _ in _places(file, model_dir)):
        _download_first(weights, None, model_dir)


def find(weights: PublishedWeights, model_dir: Path | None) -> ResolvedFile | WeightsUnavailable:
    """As `resolve` without downloading anything: the file, or the error that says how to get it."""
    try:
        found = _first_here(weights, model_dir)
    except WeightsUnavailable as error:
        return error
    return found or NotHere(weights.name, weights.command, model_dir, partial(_offer, weights))


def _offer(weights: PublishedWeights) -> Offer:
    reasons = []
    for file in weights.files:
        try:
            require_online(hub.ENDPOINT if file.repo else None, _OFFER_SECONDS)
            if file.repo:
                url = huggingface_hub.hf_hub_url(file.repo, file.hub_path, revision=file.revision)
                return file.source, huggingface_hub.get_hf_file_metadata(url).size or 0
            request = urllib.request.Request(file.url, method="HEAD")
            with urllib.request.urlopen(request, timeout=_OFFER_SECONDS) as answer:
                return file.source, int(answer.headers.get("Content-Length", 0))
        except Exception as error:  # as in `_download_first`
            reasons.append(f"{file.source}: {one_line(error)}")
    raise OSError("; ".join(reasons))


def download(weights: PublishedWeights, model_dir: Path | None) -> ResolvedFile:
    """As `resolve`, but leaves the file in `model_dir` where one is given."""
    return _first_here(weights, model_dir, model_dir) or _download_first(weights, model_dir, model_dir)


def _first_here(
    weights: PublishedWeights, model_dir: Path | None, within: Path | None = None
) -> ResolvedFile | None:
    for file in weights.files:
        for path in _places(file, model_dir):
            if within is None or path.is_relative_to(within):
                return _verified(weights.name, file, path)
    return None


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


def _verified(name: str, file: PublishedFile, path: Path) -> ResolvedFile:
    sha256 = hash_file(path)
    if file.sha256 and sha256 != file.sha256:
        raise WeightsUnavailable(
            f"weights {name!r}: {path} has sha256 {sha256}, expected {file.sha256}; it is damaged or another "
            f"file. Remove it, then download {file.source}"
        )
    return ResolvedFile(name=name, path=str(path), sha256=sha256, source=file.source)


def _download_first(weights: PublishedWeights, target: Path | None, model_dir: Path | None) -> ResolvedFile:
    """Downloads the first file that is available, to `target` or the cache."""
    reasons = []
    for file in weights.files:
        try:
            path = _download(file, target)
        except Exception as error:  # the hub's client raises its own, httpx's or requests', by version
            reasons.append(one_line(error))
            continue
        return _verified(weights.name, file, path)
    raise WeightsUnavailable(_unavailable(weights, reasons, model_dir))


def _download(file: PublishedFile, target: Path | None) -> Path:
    """The file in the folder `target`; without one in the hub's cache or, from elsewhere, in our own.

    Raises OSError, also for a download of other bytes, before it gets its final name.
    """
    require_online(hub.ENDPOINT if file.repo else None)
    _LOG.info("downloading %s", file.source)
    from_hub = partial(huggingface_hub.hf_hub_download, file.repo, file.hub_path, revision=file.revision)
    if file.repo and target is None:
        return Path(from_hub())
    target = target or cache_dir()
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target, prefix=".download-") as folder:
        if file.repo:
            part = Path(from_hub(local_dir=folder))
        else:
            part = Path(folder) / file.filename
            with urllib.request.urlopen(file.url, timeout=_TIMEOUT_SECONDS) as body, part.open("wb") as out:
                shutil.copyfileobj(body, out, _CHUNK)
                out.flush()
                os.fsync(out.fileno())
        sha256 = hash_file(part)
        if file.sha256 and sha256 != file.sha256:
            raise OSError(f"the download has sha256 {sha256}")
        return part.replace(target / file.filename)


def require_online(endpoint: str | None, seconds: float = _TIMEOUT_SECONDS) -> None:
    """Raises OSError where downloading is switched off, or the endpoint's host can't be reached.

    The hub's own client retries an unreachable host for half a minute.
    """
    if hub.HF_HUB_OFFLINE:
        raise OSError("offline: HF_HUB_OFFLINE is set")
    if endpoint is not None:
        try:
            request = urllib.request.Request(endpoint, method="HEAD")
            urllib.request.urlopen(request, timeout=seconds).close()
        except urllib.error.HTTPError:
            return  # it answered


def one_line(error: Exception) -> str:
    """The first line of an error, without urllib's wrapping."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return (str(reason) or type(error).__name__).splitlines()[0]


def _unavailable(weights: PublishedWeights, reasons: Sequence[str], model_dir: Path | None) -> str:
    files = weights.files
    lines = [f"weights {weights.name!r} are not on this machine and could not be downloaded. Tried:"]
    for file, reason in zip(files, reasons, strict=True):
        pin = f"sha256 {file.sha256}" if file.sha256 else f"revision {file.revision}"
        lines += [f"  {file.filename}  {pin}", f"    from {file.source}: {reason}"]
    folder = model_dir or "DIR"
    pinned = next((file.filename for file in files if file.sha256), files[0].filename)
    lines += [
        f"Where there is a network, run\n  {weights.command} --model-dir {folder}",
        f"then bring the folder here and pass --model-dir {folder}; or put {pinned} into it by hand.",
    ]
    return "\n".join(lines)


_OPENAI_URL = "https://openaipublic.azureedge.net/clip/models"
_LAION_V1_URL = (
    "https://raw.githubusercontent.com/LAION-AI/aesthetic-predictor/6d122adad522ab246644d9dc1c6d7a3810ee255f"
)
_LAION_V2_URL = (
    "https://raw.githubusercontent.com/christophschuhmann/improved-aesthetic-predictor/"
    "6934dd81792f086e613a121dbce43082cb8be85e"
)


def _hub(repo: str, revision: str, hub_path: str, sha256: str) -> PublishedFile:
    suffix = hub_path.rpartition(".")[2]
    return PublishedFile(
        filename=f"{repo.rpartition('/')[2]}.{suffix}",
        sha256=sha256,
        repo=repo,
        revision=revision,
        hub_path=hub_path,
    )


def _archive(filename: str, sha256: str) -> PublishedFile:
    return PublishedFile(filename=filename, sha256=sha256, url=f"{_OPENAI_URL}/{sha256}/{filename}")


OPENAI: dict[str, tuple[PublishedFile, ...]] = {
    "ViT-L-14": (
        _hub(
            "openai/clip-vit-large-patch14",
            "32bd64288804d66eefd0ccbe215aa642df71cc41",
            "model.safetensors",
            "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb",
        ),
        _archive("ViT-L-14.pt", "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"),
    ),
    "ViT-L-14-336": (
        _hub(
            "openai/clip-vit-large-patch14-336",
            "ce19dc912ca5cd21c8a653c79e251e808ccabcd1",
            "pytorch_model.bin",
            "c6032c2e0caae3dc2d4fba35535fa6307dbb49df59c7e182b1bc4b3329b81801",
        ),
        _archive("ViT-L-14-336px.pt", "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02"),
    ),
    "ViT-B-32": (
        _hub(
            "openai/clip-vit-base-patch32",
            "3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268",
            "pytorch_model.bin",
            "a63082132ba4f97a80bea76823f544493bffa8082296d62d71581a4feff1576f",
        ),
        _archive("ViT-B-32.pt", "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"),
    ),
    "ViT-B-16": (
        _hub(
            "openai/clip-vit-base-patch16",
            "57c216476eefef5ab752ec549e440a49ae4ae5f3",
            "pytorch_model.bin",
            "ec89c7b09c749a60aae3c9cd910516f24b58214a7df060b48962d14c469cfbf0",
        ),
        _archive("ViT-B-16.pt", "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"),
    ),
}
"""OpenAI's own CLIP weights by encoder, the same numbers in each file, in the order they are tried."""

LAION_V2 = (
    PublishedFile(
        filename="sac+logos+ava1-l14-linearMSE.pth",
        sha256="21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
        url=f"{_LAION_V2_URL}/sac%2Blogos%2Bava1-l14-linearMSE.pth",
    ),
    # Last, because only its revision pins it: in a model directory another file could not be told from it.
    _hub(
        "ttj/sac-logos-ava1-l14-linearMSE",
        "1e77fa05081323d99725fc40a9bf9f88180490e7",
        "model.safetensors",
        "",
    ),
)
"""improved-aesthetic-predictor's head for ViT-L/14 embeddings, on a scale of about 1 to 10."""


def _laion_v1(name: str, sha256: str) -> tuple[PublishedFile, ...]:
    return (PublishedFile(filename=name, sha256=sha256, url=f"{_LAION_V1_URL}/{name}"),)


LAION_V1: dict[str, tuple[PublishedFile, ...]] = {
    "ViT-L-14": _laion_v1(
        "sa_0_4_vit_l_14_linear.pth", "2cd4e60f4f24ae3bcd57b847b13c1f3ba27edc28cc1a7f9ce74ee9f421243cba"
    ),
    "ViT-B-32": _laion_v1(
        "sa_0_4_vit_b_32_linear.pth", "c7b14cead230694acc7b9447974d3cad78003c72da032e402a303b6c2429e85f"
    ),
    "ViT-B-16": _laion_v1(
        "sa_0_4_vit_b_16_linear.pth", "8ad3923d7ecf019df20ecd2ab5542a3075fbba0278d239c0371345f3d7fcbde0"
    ),
}
"""LAION's first, linear heads by the encoder they were trained on. Each has its own scale."""


def openai_model(encoder: str) -> str:
    """The key of `OPENAI` and `LAION_V1`: `ViT-L-14-quickgelu` and `ViT-L-14` are one model."""
    return encoder.removesuffix("-quickgelu")


OPENAI_SHA256 = frozenset(file.sha256 for files in OPENAI.values() for file in files)
"""OpenAI's files, known by their content under any name: their towers use QuickGELU."""
