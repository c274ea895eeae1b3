"""Checks of this machine before a long job, each failure with its fix."""

from __future__ import annotations

import io
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.filesize import decimal

from dali_aesthetic.config import ConfigError, Device, ModelConfig
from dali_aesthetic.cost import known_rates, web_mix_bound
from dali_aesthetic.decode import codecs
from dali_aesthetic.decode.batches import fill_batches
from dali_aesthetic.decode.decoder import DaliDecoder
from dali_aesthetic.decode.headers import Limits
from dali_aesthetic.decode.pillow import square_pixels
from dali_aesthetic.decode.pipelines import has_jpeg_engine
from dali_aesthetic.launch.worker import resolve_device
from dali_aesthetic.overlap import cpu_count, every
from dali_aesthetic.reach import Finding, Verdict, reach_input, reach_output, reach_ray
from dali_aesthetic.score.backends.fits import choose_backend, resolve_backend, why_not_fused
from dali_aesthetic.score.published import NotHere, WeightsUnavailable
from dali_aesthetic.score.weights import known_spec, present
from dali_aesthetic.stores.location import is_url
from dali_aesthetic.types import EncodedBatch, Sample, Shard

MIN_DRIVER = {12: "525.60", 13: "580.65"}
"""The oldest Linux driver for each CUDA major version (CUDA toolkit release notes, table 2)."""
_LITTLE_DISK_GB = 10.0
_PIXEL_TOLERANCE = 0.5
"""The largest mean difference to PIL, of 255, allowed in DALI's decoding of the test image."""
_LARGE = (1920, 1080)


def examine(
    model: ModelConfig,
    device: Device,
    output: str | None = None,
    inputs: Sequence[str] = (),
    with_ray: bool = False,
    *,
    follow_links: bool = False,
) -> Iterator[Finding]:
    """Runs every check, the cheapest first. A check that raises is a failed finding.

    `output` and `inputs` may be URLs. Inputs, output and Ray are checked only if given.
    """
    checks: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("python", _python),
        ("driver", _driver),
        ("gpu", lambda: _gpu(device)),
        ("decoder", lambda: _decoder(device)),
        ("encoder", lambda: _encoder(model, device)),
        ("quack", lambda: _quack(device)),
        ("weights", lambda: _weights(model)),
    ]
    if output is not None:
        checks.append(("output", lambda: reach_output(output) if is_url(output) else _output(Path(output))))
    checks += [("input", partial(reach_input, location, follow_links)) for location in inputs]
    if with_ray:
        checks.append(("ray", reach_ray))
    for name, check in checks:
        try:
            yield from check()
        except Exception as error:  # any error of a check is a finding
            yield Finding(name, Verdict.FAIL, f"{type(error).__name__}: {error}", "see the message")


def _python() -> Iterator[Finding]:
    yield Finding("python", Verdict.OK, f"{sys.version.split()[0]}, {cpu_count()} cores for this process")
    yield Finding("torch", Verdict.OK, f"{torch.__version__}, built for CUDA {torch.version.cuda}")


def _driver() -> Iterator[Finding]:
    """Checks that the driver is new enough for the installed builds of torch and DALI."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no driver: a missing library or an NVML error, by version
        yield Finding("driver", Verdict.WARN, "no NVIDIA driver", "none needed to run on the CPU, slower")
        return
    version, cuda = pynvml.nvmlSystemGetDriverVersion(), pynvml.nvmlSystemGetCudaDriverVersion() // 1000
    yield Finding("driver", Verdict.OK, f"{version}, CUDA {cuda}")
    builds = {"torch": int((torch.version.cuda or "0").split(".")[0]), "DALI": dali_build()}
    yield from (_too_old(name, build, cuda) for name, build in builds.items() if build > cuda)


def _too_old(name: str, build: int, cuda: int) -> Finding:
    # Both builds own the same files: removing one after the other was installed breaks the other.
    install = (
        "pip uninstall nvidia-dali-cuda120 nvidia-dali-cuda130, "
        f"then in the clone, pip install '.[cuda{cuda}]'"
        if name == "DALI"
        else f"install a torch built for CUDA {cuda} (pytorch.org, Get Started)"
    )
    detail = f"{name} is built for CUDA {build}, the driver knows CUDA {cuda}"
    return Finding(
        "driver", Verdict.FAIL, detail, f"{install}, or a driver from {MIN_DRIVER.get(build, '?')} up"
    )


def dali_build() -> int:
    """The CUDA major version of the installed DALI; 0 where none is installed."""
    for build in MIN_DRIVER:
        try:
            metadata.version(f"nvidia-dali-cuda{build}0")
        except metadata.PackageNotFoundError:
            continue
        return build
    return 0


def _gpu(device: Device) -> Iterator[Finding]:
    try:
        chip = resolve_device(device)
    except ConfigError as error:
        yield Finding("gpu", Verdict.FAIL, str(error), "check nvidia-smi, or use --device cpu")
        return
    if chip.type == "cpu":
        yield Finding("gpu", Verdict.WARN, "none in use: decoding and encoding run on the CPU, slower")
        return
    properties = torch.cuda.get_device_properties(chip)
    capability = f"{properties.major}.{properties.minor}"
    memory = f"{properties.total_memory / 2**30:.0f} GiB"
    yield Finding("gpu", Verdict.OK, f"{properties.name}, compute capability {capability}, {memory}")
    yield _jpeg_engine(chip)
    yield _codecs()
    yield _web_mix(cpu_count() / torch.cuda.device_count(), properties.name)


def _codecs() -> Finding:
    if {"png", "webp"} <= codecs.formats():
        return Finding("codecs", Verdict.OK, "PNG and WebP are decoded by imagecodecs")
    detail = "PNG and WebP are decoded by DALI, which takes twice the CPU time"
    return Finding("codecs", Verdict.WARN, detail, "in the clone, pip install '.[codecs]'")


def _web_mix(cores: float, gpu: str) -> Finding:
    """What will bind a run over images from the web; `cores` are those of each GPU."""
    known = {rate.hardware: rate for rate in known_rates().values()}
    rate = known.get(gpu, next(iter(known.values())))
    bound, together = web_mix_bound(cores, rate.encoder_alone)
    detail = (
        f"bound by {bound} at about {together:,.0f} images/s: {cores:.3g} cores a GPU, and an encoder as "
        f"fast as {rate.encoder} on one {rate.hardware}"
    )
    if bound == "encode":
        return Finding("web mix", Verdict.OK, detail)
    return Finding("web mix", Verdict.WARN, detail, "more CPU cores, or images of baseline JPEG alone")


def _jpeg_engine(chip: torch.device) -> Finding:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:  # a container without the driver's utilities
        fix = "with docker: NVIDIA_DRIVER_CAPABILITIES=compute,utility,video"
        return Finding("jpeg engine", Verdict.WARN, f"unknown, the driver doesn't say: {error}", fix)
    if not has_jpeg_engine(chip):
        return Finding("jpeg engine", Verdict.WARN, "this GPU has none: JPEGs decode on its SMs and the CPU")
    handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(chip).uuid}")
    busy = jpeg_engine_use(chip, lambda: int(pynvml.nvmlDeviceGetJpgUtilization(handle)[0]))
    if busy:
        return Finding("jpeg engine", Verdict.OK, f"used: {busy}% busy while JPEGs were decoded")
    detail = "present, but it stayed idle while JPEGs were decoded"
    return Finding("jpeg engine", Verdict.WARN, detail, "install the DALI that the extra pins (MIG has none)")


def jpeg_engine_use(chip: torch.device, utilisation: Callable[[], int], seconds: float = 4.0) -> int:
    """The highest `utilisation` (percent) while the real pipeline decodes JPEGs, for at most `seconds`.

    The driver reports whole percents, as a mean over up to a second, so the images must be large.
    """
    busy = 0
    (batch,) = fill_batches([_test_sample("0", *_LARGE)] * 32, 32, Limits())
    until = time.monotonic() + seconds

    def look() -> None:
        nonlocal busy
        busy = max(busy, utilisation())

    def batches() -> Iterator[EncodedBatch]:
        while time.monotonic() < until and not busy:
            yield batch

    decoder = DaliDecoder(image_size=224, batch_size=32, device=chip, num_threads=2, limits=Limits())
    with every(0.05, look, "nvml"):
        for _ in decoder.decode(batches()):
            pass
    decoder.close()
    return busy


def _decoder(device: Device) -> Iterator[Finding]:
    """Compares DALI's decoding of a test image with PIL's."""
    if not dali_build():
        install = "in the clone, pip install '.[cuda12]' (or cuda13)"
        yield Finding("dali", Verdict.FAIL, "not installed", f"{install}; it runs without a GPU too")
        return
    chip = resolve_device(device)
    difference = decode_difference(chip)
    good = difference <= _PIXEL_TOLERANCE
    version = metadata.version(f"nvidia-dali-cuda{dali_build()}0")
    detail = f"{version} on {chip.type}: {difference:.3f}/255 from PIL"
    fix = "" if good else "this version decodes another way: install the one that the extra pins"
    yield Finding("dali", Verdict.OK if good else Verdict.FAIL, detail, fix)


def decode_difference(device: torch.device) -> float:
    """Mean absolute difference of a test image decoded by DALI and by PIL, of 255."""
    sample = _test_sample("0")
    decoder = DaliDecoder(image_size=224, batch_size=1, device=device, num_threads=2, limits=Limits())
    (batch,) = decoder.decode(fill_batches([sample], 1, Limits()))
    decoder.close()
    if not len(batch.rows_N):
        raise RuntimeError(f"the test image did not decode: {batch.headers[0].message}")
    reference = square_pixels(Image.open(io.BytesIO(sample.image or b"")), 224).astype(np.int16)
    return float(np.abs(batch.images_NHWC[0].cpu().numpy().astype(np.int16) - reference).mean())


def _test_sample(key: str, width: int = 400, height: int = 300) -> Sample:
    """A JPEG as smooth and colourful as a photo."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [127 + 90 * np.sin(x / 9 + c) * np.cos(y / (7 + c)) + 28 * x / width for c in range(3)]
    picture = Image.fromarray(np.stack(waves, axis=-1).clip(0, 255).astype(np.uint8))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=92)
    shard = Shard(index=0, name="doctor", kind="folder", source="")
    return Sample(shard=shard, key=key, image=buffer.getvalue(), entries=(), source="", offset=0)


def _quack(device: Device) -> Iterator[Finding]:
    """Checks the packages of the extra `hopper`, which hold the fused kernels' matrix products."""
    names = ("quack-kernels", "nvidia-cutlass-dsl")
    try:
        found = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    except metadata.PackageNotFoundError as error:
        chip = resolve_device(device)
        if chip.type == "cuda" and torch.cuda.get_device_capability(chip)[0] == 9:
            fix = "in the clone, pip install '.[hopper]'"
            yield Finding("quack", Verdict.WARN, f"{error.name} is missing: this GPU could be faster", fix)
        else:
            yield Finding("quack", Verdict.OK, "not installed; only Hopper GPUs (H100, H200) use it")
        return
    yield Finding("quack", Verdict.OK, found)


def _encoder(model: ModelConfig, device: Device) -> Iterator[Finding]:
    chip, spec = resolve_device(device), known_spec(model.encoder, model.weights, model.model_dir)
    backend, precision = resolve_backend(model.backend, model.precision, chip)
    reason = why_not_fused(spec, chip, precision)
    if model.backend == "auto" and precision != "fp8":
        backend, _ = choose_backend(model.backend, model.precision, chip, spec)
    detail = f"{model.encoder}: {backend}, {precision}"
    if chip.type == "cuda" and reason and torch.cuda.get_device_capability(chip)[0] == 9:
        yield Finding("encoder", Verdict.WARN, f"{detail}; the fused kernels can't run: {reason}")
        return
    yield Finding("encoder", Verdict.OK, detail)


def _weights(model: ModelConfig) -> Iterator[Finding]:
    for name, file in present(model.encoder, model.weights, model.heads, model.model_dir):
        if isinstance(file, WeightsUnavailable):
            yield _missing(file)
        else:
            yield Finding("weights", Verdict.OK, f"{name}: {file.path or file.source} {file.sha256[:12]}")


def _missing(file: WeightsUnavailable) -> Finding:
    """What a run can download is a warning; damaged files and what nobody offers are failures."""
    detail, *rest = str(file).splitlines()
    fix = " ".join(line.strip() for line in rest)
    if isinstance(file, NotHere):
        try:
            address, size = file.offer()
        except OSError as error:
            folder = "" if "--model-dir" in fix else " --model-dir DIR"
            fix = f"where there is a network: {fix}{folder}; bring the folder here and pass --model-dir"
            return Finding("weights", Verdict.FAIL, f"{detail}, and can't be downloaded: {error}", fix)
        detail = f"{detail}: `run` downloads {decimal(size) if size else 'them'} from {address}"
        return Finding("weights", Verdict.WARN, detail, f"to do it now: {fix}")
    return Finding("weights", Verdict.FAIL, detail, fix)


def _output(output: Path) -> Iterator[Finding]:
    folder = output
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        yield Finding(
            "output", Verdict.FAIL, f"{folder} is no folder that can be written", "choose another --output"
        )
        return
    free = shutil.disk_usage(folder).free / 1e9
    little = free < _LITTLE_DISK_GB
    fix = "kept samples are copied whole: count the input's size times the share kept" if little else ""
    yield Finding("output", Verdict.WARN if little else Verdict.OK, f"{output}: {free:,.0f} GB free", fix)
