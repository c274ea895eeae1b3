"""Other programs and ours in turn, each in its own process, on the same images, GPU and cores.

Beside the speed: which images a program left out, how far its scores are from the reference, and what it
changed of the samples it kept.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import re
import sys
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from benchmarks.datasets import DatasetSpec, make_dataset, title_of
from benchmarks.open_clip_model import open_clip_tower, saved_weights
from benchmarks.peers.job import Job, PeerResult, Unavailable, images_of, key_of, members
from benchmarks.processes import run_bounded
from benchmarks.results import Measured, Record
from benchmarks.settings import Settings
from dali_aesthetic.overlap import cpu_count
from dali_aesthetic.shards.formats import extension

KIND, SHORT_SIDE = "webmix", 0
"""The images that all programs score."""
BOUND_S = 90
"""Seconds for a peer when quick; ten times as many when not."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A program: a function of a module of this folder, from a job to its result.

    `more_s` are seconds added to its bound: for slow decoding, or for a long start (scales, compiling,
    workers), which is not in its rate. `share` of the images go to a slow program; its rate doesn't depend on
    their number. `paths` are environment variables that name folders with its own libraries, as bundle.sh
    makes them.
    """

    module: str
    function: str = "run"
    more_s: float = 0
    share: float = 1
    paths: tuple[str, ...] = ()

    @property
    def output(self) -> str:
        """The name of the folder for its output."""
        return f"{self.module}-{self.function}"

    def run(self, job: Job) -> PeerResult:
        """Run it in this process."""
        module = importlib.import_module(f"benchmarks.peers.{self.module}")
        result: PeerResult = getattr(module, self.function)(job)
        return result


PEERS = {
    "dali_aesthetic": Peer("ours"),
    "dali_aesthetic, fp8 (gate opened)": Peer("ours", "run_fp8", more_s=60),
    "webdataset + DataLoader + open_clip": Peer("dataloader", more_s=60),
    "DALI + open_clip + torch.compile": Peer("dali_compile", more_s=30),
    "NeMo Curator, its stages in one process": Peer(
        "nemo_curator", share=3 / 160, paths=("BENCH_NEMO_PATH",)
    ),
    "data-juicer, its filter": Peer(
        "data_juicer", more_s=150, share=3 / 80, paths=("BENCH_DATA_JUICER_PATH",)
    ),
    "NeMo Curator, its pipeline with Ray Data": Peer(
        "nemo_curator", "run_with_ray", more_s=210, share=3 / 20, paths=("BENCH_NEMO_PATH", "BENCH_RAY_PATH")
    ),
}
"""By the names of their rows, the most important first: a run may be cut off."""
_TARS_A_CORE = 10
"""On a GPU. Start and end of a fast run take about a second, which has to weigh little."""
_MOST_TARS = 160
"""Fewer for each core of many: the GPU is the limit then."""
_LONGEST_REASON = 300
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_FRAME = re.compile(r'^( +)File ".*\n(?:\1 +.*\n)*', re.MULTILINE)
_FOLDERS = re.compile(r"(?<![\w:/])(?:/[\w.@+-]+)+/(?=[\w.])")
_ADVICE = re.compile(r"\n(?:Search for|CUDA kernel errors might) .*", re.DOTALL)
"""The advice below every CUDA error."""
_CHAIN = re.compile(r"\n\s*(?:The above exception was|During handling of the above)")
_EXCEPTION = re.compile(r"[\w.]*(Error|Exception|Interrupt|Exit)(\(\w+\))?(:|$)")


def measure(settings: Settings) -> None:
    """Other programs for the same job and ours, side by side on the same images."""
    record = settings.record("peers")
    measure_peers(record, settings)
    record.note("complete", True)


def measure_peers(record: Record, settings: Settings) -> None:
    """A row for each peer that runs here, with its score error and what it did to the images it kept."""
    job = make_job(settings)
    reference = reference_scores(job, min(job.per_tar, 128))
    cut = float(np.quantile(list(reference.values()), 0.75))
    record.note("images", title_of(KIND, SHORT_SIDE))
    record.note("score_spread", float(f"{np.std(list(reference.values())):.3g}"))
    torch.cuda.empty_cache()  # the peers need the memory
    bound_s = BOUND_S * (1 if settings.quick else 10)
    for title, peer in PEERS.items():
        if record.has(title):
            continue
        images = int(len(job.tars) * job.per_tar * peer.share)
        output = str(Path(job.output) / peer.output)
        own_job = replace(job, cut=cut, output=output, max_images=images)
        outcome = _in_own_process(own_job, title, bound_s + peer.more_s)
        if isinstance(outcome, str):
            record.skip(title, outcome)
        else:
            record.add(_row(title, outcome, reference, job.tars[0]))


def make_job(settings: Settings) -> Job:
    """The job of all peers, with as many tars for each worker of a DataLoader."""
    workers = cpu_count()
    rounds = max(1, min(_TARS_A_CORE, _MOST_TARS // workers)) if settings.on_gpu else 1
    few, shards = 256 if settings.on_gpu else settings.distinct or 16, rounds * workers
    spec = DatasetSpec(short_side=SHORT_SIDE, distinct=few, num_shards=shards, kind=KIND)
    folder = settings.data / "peers"
    make_dataset(folder, spec, workers)
    tars = tuple(str(path) for path in sorted(folder.glob("bench-*.tar"))[:shards])
    return Job(
        tars=tars,
        per_tar=spec.distinct,
        output=str(settings.data / "peers-output"),
        device=str(settings.chip),
        encoder=settings.encoder_name,
        weights=saved_weights(settings.encoder_name, settings.weights, folder),
        head=settings.head,
        cut=0.0,
        precision="fp16" if settings.on_gpu else "fp32",
        num_workers=workers,
        backend=settings.backend,
        our_precision=settings.precision,
        batch_size=settings.batch_size,
        max_images=spec.num_images,
    )


def _in_own_process(job: Job, title: str, bound_s: float) -> dict[str, Any] | str:
    """The peer's result, or the reason why there is none."""
    folder = Path(job.output)
    folder.mkdir(parents=True, exist_ok=True)
    question, answer = folder / "job.json", folder / "result.json"
    answer.unlink(missing_ok=True)
    job.write(question)
    command = [sys.executable, "-m", "benchmarks.peers.side_by_side", title, str(question), str(answer)]
    code = run_bounded(command, bound_s, _environment(PEERS[title]))
    if not answer.exists():
        return f"not done after {bound_s:.0f} s" if code is None else f"ended with exit code {code}"
    found: dict[str, Any] = json.loads(answer.read_text())
    return str(found["skipped"]) if "skipped" in found else found


def _environment(peer: Peer) -> dict[str, str]:
    """A peer's own libraries before all others."""
    own = [folder for name in peer.paths if (folder := os.environ.get(name))]
    return {"PYTHONPATH": os.pathsep.join([*own, os.environ.get("PYTHONPATH", "")])} if own else {}


def _row(title: str, found: dict[str, Any], reference: dict[str, float], source: str) -> Measured:
    detail = {name: found[name] for name in ("settings", "writes", "versions", "num_images")}
    detail |= {**found["detail"], **left_out(found["scores"], source)}
    detail |= score_error(found["scores"], reference)
    if found["kept_tars"]:
        detail |= kept_fidelity(found["kept_tars"], source)
    return Measured(name=title, values=[found["num_images"] / found["seconds"]], detail=detail)


def answer(title: str, question: Path, target: Path) -> None:
    """Run a peer in this process; write its result, or the reason why there is none, to `target`."""
    try:
        text = json.dumps(asdict(PEERS[title].run(Job.read(question))))
    except Unavailable as reason:
        text = json.dumps({"skipped": str(reason)})
    except Exception as error:  # one that fails must not end the others
        traceback.print_exc()
        text = json.dumps({"skipped": f"failed: {why(error)}"})
    target.write_text(text)


def why(error: Exception) -> str:
    """An error as one line; if it quotes the error of a worker, the worker's."""
    text = "".join(traceback.format_exception_only(error))
    for noise in (_COLOUR, _FRAME, _FOLDERS, _ADVICE):
        text = noise.sub("", text)
    # Ray wraps the errors of workers: the cause comes first.
    lines = _CHAIN.split(text)[0].splitlines()
    last = max((at for at, line in enumerate(lines) if _EXCEPTION.match(line)), default=0)
    reason = " ".join(" ".join(lines[last:]).split())
    half = _LONGEST_REASON // 2
    return reason if len(reason) <= _LONGEST_REASON else f"{reason[:half]} … {reason[-half:]}"


@torch.inference_mode()
def reference_scores(job: Job, count: int) -> dict[str, float]:
    """Scores by Pillow and open_clip in float32, by key, for the first `count` images of the first tar."""
    import open_clip

    transform: Any = open_clip.image_transform(
        job.spec.image_size, is_train=False, mean=job.spec.mean, std=job.spec.std
    )
    content = members(job.tars[0])
    images = images_of(content)
    keys = sorted(images)[:count]
    tower = open_clip_tower(job.spec, job.weights).to(job.device)
    head = job.head_layer()
    scores: dict[str, float] = {}
    for start in range(0, len(keys), 32):
        chunk = keys[start : start + 32]
        pixels = torch.stack([transform(Image.open(io.BytesIO(content[images[key]]))) for key in chunk])
        embeddings_ND = tower(pixels.to(job.device))
        found = head(F.normalize(embeddings_ND, dim=-1))[:, 0].tolist()
        scores.update(zip(chunk, found, strict=True))
    return scores


def left_out(scores: Mapping[str, float | None], source: str) -> dict[str, Any]:
    """Images in a tar, and those of them without a score by extension."""
    images = images_of(members(source))
    missing = Counter(extension(name) for key, name in images.items() if scores.get(key) is None)
    return {"images_in_a_tar": len(images), "left_out": dict(missing)}


def score_error(scores: Mapping[str, float], reference: Mapping[str, float]) -> dict[str, float]:
    """Absolute differences of raw scores over the keys that both have."""
    both = [key for key in reference if scores.get(key) is not None]
    if not both:
        return {}
    errors = np.abs([scores[key] - reference[key] for key in both])
    return {
        "score_error_mean": float(f"{errors.mean():.3g}"),
        "score_error_p99": float(f"{np.quantile(errors, 0.99):.3g}"),
        "scores_compared": len(both),
    }


def kept_fidelity(kept_tars: Sequence[str], source: str) -> dict[str, int]:
    """Counts of kept images: with other bytes, with another name; and members lost beside them.

    Kept images with names that aren't in the source are matched by the number at the end of their name, a
    position among the source's images of that extension. Members lost are captions and metadata of kept
    images.
    """
    original = members(source)
    images = list(images_of(original).values())
    sidecars = len(original) // max(1, len(images)) - 1
    kept: dict[str, bytes] = {}
    for tar in kept_tars:
        kept |= members(tar)
    kept_images = list(images_of(kept).values())
    return {
        "kept_images_compared": len(kept_images),
        "kept_images_with_other_bytes": sum(
            kept[name] != original.get(_original_name(name, images)) for name in kept_images
        ),
        "kept_images_renamed": sum(name not in images for name in kept_images),
        "members_lost": sidecars * len(kept_images) - (len(kept) - len(kept_images)),
    }


def _original_name(name: str, images: Sequence[str]) -> str:
    if name in images:
        return name
    number = key_of(name).rpartition("_")[2]
    alike = [image for image in images if extension(image) == extension(name)]
    return alike[int(number)] if number.isdecimal() and int(number) < len(alike) else ""


if __name__ == "__main__":
    answer(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
