"""Every peer in turn, each in a process of its own, on the same images, the same GPU and the same cores."""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.bounded import run_bounded
from benchmarks.dataset import DatasetSpec, make_dataset
from benchmarks.open_clip_model import saved_weights
from benchmarks.peers.compare import kept_fidelity, reference_scores, score_error
from benchmarks.peers.job import Job, PeerResult, Unavailable
from benchmarks.record import Measured, Record
from benchmarks.settings import Settings
from dali_aesthetic.overlap import cpu_count

PEERS = {
    "dali_aesthetic": "ours",
    "dali_aesthetic, fp8 (gate opened)": "ours_fp8",
    "webdataset + DataLoader + open_clip": "dataloader",
    "DALI + open_clip + torch.compile": "dali_compile",
    "NeMo Curator, its stages in one process": "nemo_curator",
    "data-juicer, its filter": "data_juicer",
    "NeMo Curator, its pipeline with Ray Data": "nemo_curator_ray",
}
"""What a row is called, and the module that runs it: first what a run that is cut off should still have."""
BOUND_S = 90
"""Seconds a peer may take when quick; ten times as many when not."""
_START_S = {"ours_fp8": 60, "dali_compile": 30, "data_juicer": 150, "nemo_curator_ray": 210}
"""Seconds more for what takes long to start (scales, compiling, workers), which a rate doesn't count."""
_TARS_A_CORE = 10
"""On a GPU: enough that the start and the end of a fast run, about a second, weigh little."""
_MOST_TARS = 160
"""Of many cores each has fewer: the GPU is the limit then."""
_SLOW = {"nemo_curator": 3 / 160, "nemo_curator_ray": 3 / 20, "data_juicer": 3 / 80}
"""The share of the images that a slow peer is given; its rate does not depend on it."""
_LONGEST_REASON = 300
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_FRAME = re.compile(r'^( +)File ".*\n(?:\1 +.*\n)*', re.MULTILINE)
_FOLDERS = re.compile(r"(?<![\w:/])(?:/[\w.@+-]+)+/(?=[\w.])")
_ADVICE = re.compile(r"\n(?:Search for|CUDA kernel errors might) .*", re.DOTALL)
"""Below every CUDA error stands how to look for its cause."""
_CHAIN = re.compile(r"\n\s*(?:The above exception was|During handling of the above)")
_EXCEPTION = re.compile(r"[\w.]*(Error|Exception|Interrupt|Exit)(\(\w+\))?(:|$)")
_OWN_PATHS = {
    "nemo_curator": ("BENCH_NEMO_PATH",),
    "nemo_curator_ray": ("BENCH_NEMO_PATH", "BENCH_RAY_PATH"),
    "data_juicer": ("BENCH_DATA_JUICER_PATH",),
}
"""Environment variables that name folders with a peer's own libraries; bundle.sh makes what goes there."""


def measure_peers(record: Record, settings: Settings) -> None:
    """A row for each peer that runs here, with its score error and what it did to the images it kept."""
    job = make_job(settings)
    reference = reference_scores(job, min(job.per_tar, 128))
    cut = float(np.quantile(list(reference.values()), 0.75))
    record.note("score_spread", float(f"{np.std(list(reference.values())):.3g}"))
    torch.cuda.empty_cache()  # the peers need the memory
    bound_s = BOUND_S * (1 if settings.quick else 10)
    for title, module in PEERS.items():
        if record.has(title):
            continue
        images = int(len(job.tars) * job.per_tar * _SLOW.get(module, 1))
        fields = {**asdict(job), "cut": cut, "output": str(Path(job.output) / module), "max_images": images}
        outcome = _in_own_process(Job(**fields), module, bound_s + _START_S.get(module, 0))
        if isinstance(outcome, str):
            record.skip(title, outcome)
        else:
            record.add(_row(title, outcome, reference, job.tars[0]))


def make_job(settings: Settings) -> Job:
    """As many shards for each worker of a DataLoader, and the settings that all peers share."""
    workers = cpu_count()
    rounds = max(1, min(_TARS_A_CORE, _MOST_TARS // workers)) if settings.on_gpu else 1
    few, shards = 256 if settings.on_gpu else settings.distinct or 16, rounds * workers
    spec = DatasetSpec(distinct=few, num_shards=shards)
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


def _in_own_process(job: Job, module: str, bound_s: float) -> dict[str, Any] | str:
    """The peer's result, or why there is none."""
    folder = Path(job.output)
    folder.mkdir(parents=True, exist_ok=True)
    question, answer = folder / "job.json", folder / "result.json"
    answer.unlink(missing_ok=True)
    job.write(question)
    command = [sys.executable, "-m", "benchmarks.peers.side_by_side", module, str(question), str(answer)]
    code = run_bounded(command, bound_s, _environment(module))
    if not answer.exists():
        return f"not done after {bound_s:.0f} s" if code is None else f"ended with exit code {code}"
    found: dict[str, Any] = json.loads(answer.read_text())
    return str(found["skipped"]) if "skipped" in found else found


def _environment(module: str) -> dict[str, str]:
    """A peer's own libraries, where they lie in folders of their own, before everybody's."""
    own = [folder for name in _OWN_PATHS.get(module, ()) if (folder := os.environ.get(name))]
    return {"PYTHONPATH": os.pathsep.join([*own, os.environ.get("PYTHONPATH", "")])} if own else {}


def _row(title: str, found: dict[str, Any], reference: dict[str, float], source: str) -> Measured:
    detail = {name: found[name] for name in ("settings", "writes", "versions", "num_images")}
    detail |= {**found["detail"], **score_error(found["scores"], reference)}
    if found["kept_tars"]:
        detail |= kept_fidelity(found["kept_tars"], source)
    return Measured(name=title, values=[found["num_images"] / found["seconds"]], detail=detail)


def answer(module: str, question: Path, target: Path) -> None:
    """Run one peer in this process and leave its result, or why it can't run, in `target`."""
    run = importlib.import_module(f"benchmarks.peers.{module}").run
    try:
        result: PeerResult = run(Job.read(question))
        text = json.dumps(asdict(result))
    except Unavailable as reason:
        text = json.dumps({"skipped": str(reason)})
    except Exception as error:  # whatever it is, the other peers go on
        traceback.print_exc()
        text = json.dumps({"skipped": f"failed: {why(error)}"})
    target.write_text(text)


def why(error: Exception) -> str:
    """One line that says what went wrong: where an error quotes a worker's, what that one said first."""
    text = "".join(traceback.format_exception_only(error))
    for noise in (_COLOUR, _FRAME, _FOLDERS, _ADVICE):
        text = noise.sub("", text)
    # Ray wraps what a worker raised: the cause comes first.
    lines = _CHAIN.split(text)[0].splitlines()
    last = max((at for at, line in enumerate(lines) if _EXCEPTION.match(line)), default=0)
    reason = " ".join(" ".join(lines[last:]).split())
    half = _LONGEST_REASON // 2
    return reason if len(reason) <= _LONGEST_REASON else f"{reason[:half]} … {reason[-half:]}"


if __name__ == "__main__":
    answer(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
