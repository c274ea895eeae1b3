"""Makes the README's pictures, of a run in a terminal and the report of its output, and rows of its scores.

`python docs/make_pictures.py` needs chromium and scikit-image, and takes about a minute. Two workers score
the demo's photos. No published weights are needed: the encoder is random, and a head is fitted that gives
each photo an example of a score.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import io
import json
import os
import pty
import re
import shlex
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import termios
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.text import Text
from safetensors.numpy import save_file
from safetensors.torch import save_model

from dali_aesthetic.demo import make_demo_set

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "pictures"
TERMINAL = PICTURES / "terminal.svg"
PAGE_SOURCES = PICTURES / "report.sha256"
"""The hash of the page's sources of which the pictures were made: a test compares it."""
README = ROOT / "README.md"
ROWS = re.compile(r"(?<=<!-- rows:begin -->\n```\n).*?(?=```\n<!-- rows:end -->)", re.DOTALL)
SHOWN = ("key", "status", "aesthetic_score", "kept", "source_offset", "caption")
SCHEMES = ("light", "dark")
ENCODER, COLUMNS, SCREEN = "ViT-S-32-alt", 100, (1280, 900)
SHARDS = "photos/{00000..00002}.tar"
RUN = ("run", "--input", SHARDS, "--output", "kept", "--threshold", "0.5", "--workers", "2")
MODEL = ("--encoder", ENCODER, "--weights", "clip", "--head", "example=head.safetensors")
_PHOTOS = {
    "astronaut": 6.2, "camera": 5.6, "chelsea": 6.5, "coffee": 6.1, "hubble_deep_field": 6.3, "moon": 5.4,
    "retina": 4.6, "rocket": 6.0, "page": 3.4, "brick": 4.3, "grass": 4.7, "gravel": 4.4,
}  # fmt: skip
_LOSSES = {"blurred": 1.7, "noisy": 1.5, "low resolution": 1.3, "over-compressed": 1.4}
_PROGRESS = re.compile(r"\x1b\[\?25l.*\x1b\[\?25h(?:\r|\x1b\[1A|\x1b\[2K)*", re.DOTALL)


def page_sources() -> str:
    """The hash of the parts of the page that the pictures show."""
    page = (ROOT / "dali_aesthetic" / "report" / "page.html.j2").read_text()
    shown, found, _ = page.partition('<section id="cut"')[2].partition('<section id="choose"')
    assert found
    return hashlib.sha256(shown.encode()).hexdigest()


def make_pictures() -> list[Path]:
    """Writes all pictures and returns their paths."""
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_input(folder)
        printed = in_terminal(
            [sys.executable, "-m", "dali_aesthetic", *RUN, *MODEL, "--device", "cpu"], folder
        )
        TERMINAL.write_text(terminal_svg(shlex.join(("dali-aesthetic", *RUN)), printed))
        README.write_text(ROWS.sub(lambda _: rows(folder / "kept" / "scores"), README.read_text()))
        subprocess.run([sys.executable, "-m", "dali_aesthetic", "report", "kept"], cwd=folder, check=True)
        for scheme in SCHEMES:
            shot = screenshot((folder / "kept" / "report.html").as_uri(), scheme)
            (PICTURES / f"report-{scheme}.webp").write_bytes(shot)
    PAGE_SOURCES.write_text(page_sources() + "\n")
    return [TERMINAL, PAGE_SOURCES, *(PICTURES / f"report-{scheme}.webp" for scheme in SCHEMES)]


def make_input(folder: Path) -> None:
    """The demo's shards below `folder`/photos, a random encoder, and the head that is fitted to examples."""
    make_demo_set(folder / "photos")
    for tar in (folder / "photos").glob("demo-*.tar"):
        tar.rename(tar.with_name(tar.name.removeprefix("demo-")))
    with tarfile.open(folder / "photos" / "00002.tar", "a") as last:
        broken = tarfile.TarInfo("broken.jpg")
        broken.size = 2
        last.addfile(broken, io.BytesIO(b"\xff\xd8"))
    torch.manual_seed(0)
    (folder / "clip").mkdir()
    save_model(open_clip.create_model(ENCODER), str(folder / "clip" / "open_clip_model.safetensors"))
    settings = {"model_cfg": open_clip.get_model_config(ENCODER), "preprocess_cfg": {}}
    (folder / "clip" / "open_clip_config.json").write_text(json.dumps(settings))
    options = ["--input", SHARDS, "--output", "first", "--save-embeddings", *MODEL[:4], "--head", "random:0"]
    command = [sys.executable, "-m", "dali_aesthetic", "score", *options, "--device", "cpu"]
    subprocess.run(command, cwd=folder, check=True, stderr=subprocess.DEVNULL)
    embeddings, captions = [], []
    for file in sorted((folder / "first" / "scores").glob("*.parquet")):
        captions += pq.read_table(file, filters=[("status", "=", "ok")]).column("caption").to_pylist()
        embeddings.append(np.load(folder / "first" / "embeddings" / "img_emb" / f"img_emb_{file.stem}.npy"))
    found = np.concatenate(embeddings).astype(np.float64)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    scores = np.array([example_score(str(caption)) for caption in captions])
    weights = np.linalg.lstsq(found - found.mean(0), scores - scores.mean(), rcond=1e-6)[0]
    bias = scores.mean() - found.mean(0) @ weights
    head = {"w": weights.astype(np.float32), "b": np.array(bias, np.float32)}
    save_file(head, folder / "head.safetensors")


def rows(scores: Path, most: int = 8) -> str:
    """The first rows of the scores and all without a score as text, with a header."""
    found = pq.read_table(scores, columns=list(SHOWN)).to_pylist()
    chosen = found[:most] + [row for row in found if row["status"] != "ok"]
    cells = [[_cell(value) for value in row.values()] for row in chosen]
    widths = [max(map(len, column)) for column in zip(SHOWN, *cells, strict=True)]
    lines = [[name.ljust(width) for name, width in zip(row, widths, strict=True)] for row in (SHOWN, *cells)]
    return "".join("  ".join(line).rstrip() + "\n" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)


def example_score(caption: str) -> float:
    """The score of a photo of the demo ("NAME, VIEW, VARIANT"), with a little of its own."""
    name, _, variant = caption.split(", ")
    own = int.from_bytes(hashlib.sha256(caption.encode()).digest()[:2], "big") / 65535 - 0.5
    return _PHOTOS.get(name, 4.5) - _LOSSES.get(variant, 0.0) + own / 2


def in_terminal(command: Sequence[str], folder: Path) -> str:
    """What the command leaves on a terminal: the progress line is gone when it ends."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.environ |= {"TERM": "xterm-256color", "COLUMNS": str(COLUMNS), "PYTHONPATH": str(ROOT)}
        os.execv(command[0], list(command))
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
    printed = b""
    while part := _read(terminal):
        printed += part
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError(printed.decode())
    return _PROGRESS.sub("", printed.decode().replace("\r\n", "\n"))


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # its other end was closed
        return b""


def terminal_svg(command: str, printed: str) -> str:
    """The command and what it printed, as a picture of a terminal."""
    with open(os.devnull, "w") as nothing:
        console = Console(record=True, width=COLUMNS, file=nothing, force_terminal=True)
        console.print(Text(f"$ {command}", "bold"))
        console.print(Text.from_ansi(printed.rstrip()))
        return console.export_svg(title="dali-aesthetic", unique_id="run")


def screenshot(page: str, scheme: str) -> bytes:
    """The page's first screen in a laptop's browser, as WebP."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(flag)
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    browser = webdriver.Chrome(options=options, service=service)
    try:
        width, height = SCREEN
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        browser.get(page)
        time.sleep(2)  # for the charts
        shot: dict[str, Any] = browser.execute_cdp_cmd(
            "Page.captureScreenshot", {"format": "webp", "quality": 80}
        )
        return base64.b64decode(shot["data"])
    finally:
        browser.quit()


if __name__ == "__main__":
    for path in make_pictures():
        print(path.relative_to(ROOT))
