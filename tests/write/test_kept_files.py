"""Photos in, photos out: kept images as files or hard links, in the tree of the input."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from dali_aesthetic import Config, ConfigError, ModelConfig, Threshold, run
from dali_aesthetic.compact.kept import read_run
from dali_aesthetic.display import summary
from dali_aesthetic.launch.filter import filter_scored
from dali_aesthetic.layout import read_record, recut_words
from dali_aesthetic.publish import push
from dali_aesthetic.report.page import report_at
from dali_aesthetic.types import Sample, Shard
from dali_aesthetic.verify.outputs import OutputCheck, verify_output
from dali_aesthetic.write.writers import KeptFiles
from tests.conftest import jpeg, snapshot

ODD = "sub/odd \N{SNOWMAN} 'name'\n2.jpg"


@pytest.fixture
def folder(tmp_path: Path, photos: list[Image.Image]) -> Path:
    """Photos with captions in two folders, an odd name, a bad image, and a caption that two images share."""
    root = tmp_path / "photos"
    (root / "sub").mkdir(parents=True)
    small = [jpeg(photo.resize((96, 72))) for photo in photos[:6]]
    for name, content in zip(
        ("a.jpg", "b.JPG", "both.jpg", "both.jpeg", "sub/c.jpg", ODD), small, strict=True
    ):
        (root / name).write_bytes(content)
        os.utime(root / name, (1_500_000_000, 1_500_000_000))
    (root / "bad.jpg").write_bytes(b"no image")
    (root / "a.txt").write_text("a caption")
    (root / "sub" / "c.jpg.json").write_text('{"caption": "c"}')
    (root / "both.txt").write_text("of two images")
    (root / "notes.md").write_text("of no image")
    return root


def keep(folder: Path, output: Path, model: ModelConfig, **changes: Any) -> Config:
    values: dict[str, Any] = {"output_format": "files", "threshold": Threshold(raw=-100)}
    return Config(input=folder, output=output, device="cpu", model=model, **{**values, **changes})


def tree(folder: Path) -> dict[str, bytes]:
    return {
        name: content for name, content in snapshot(folder).items() if not Path(name).name.startswith(".")
    }


def check(output: Path) -> OutputCheck:
    return verify_output(output, against_input=True)


def test_kept_images_and_their_sidecars_are_copied_into_the_same_tree(
    folder: Path, tmp_path: Path, tiny_model: ModelConfig
) -> None:
    result = run(keep(folder, tmp_path / "out", tiny_model))
    assert (result.stats.num_samples, result.stats.num_kept) == (7, 6)
    expected = {
        name: content for name, content in tree(folder).items() if name not in ("bad.jpg", "notes.md")
    }
    assert tree(tmp_path / "out" / "files") == expected
    copied, original = tmp_path / "out/files/a.jpg", folder / "a.jpg"
    assert copied.stat().st_mtime == original.stat().st_mtime
    assert copied.stat().st_ino != original.stat().st_ino
    assert not (tmp_path / "out" / "shards").exists()
    scores = pq.read_table(tmp_path / "out" / "scores").to_pylist()
    kept = {row["source_shard"]: row["output_shard"] for row in scores if row["kept"]}
    assert kept == {
        f"{folder}/{name}": f"files/{name}" for name in expected if name[-3:].lower() in ("jpg", "peg")
    }
    assert check(tmp_path / "out").problems == ()


def test_links_are_the_inputs_own_files(folder: Path, tmp_path: Path, tiny_model: ModelConfig) -> None:
    run(keep(folder, tmp_path / "out", tiny_model, output_format="links"))
    for name in ("a.jpg", "a.txt", ODD, "both.txt"):
        assert (tmp_path / "out/files" / name).samefile(folder / name)
    assert check(tmp_path / "out").problems == ()


def test_an_output_below_the_input_is_no_input_and_a_rerun_changes_nothing(
    folder: Path, tiny_model: ModelConfig
) -> None:
    for form in ("files", "links"):
        output = folder / form
        first = run(keep(folder, output, tiny_model, output_format=form))
        assert first.num_skipped == 0
        assert first.stats.num_samples == 7
        before = tree(output)
        assert run(keep(folder, output, tiny_model, output_format=form)).num_skipped == 1
        assert tree(output) == before


def test_a_share_and_a_cut_of_stored_scores_write_the_same_files(
    folder: Path, tmp_path: Path, tiny_model: ModelConfig
) -> None:
    config = keep(folder, tmp_path / "top", tiny_model, threshold=Threshold(top=0.5))
    assert run(config).stats.num_kept == 3
    again = config.model_copy(update={"output": str(tmp_path / "cut")})
    filter_scored(again, tmp_path / "top" / "scored")
    assert tree(tmp_path / "cut" / "files") == tree(tmp_path / "top" / "files")
    assert sum(name[-3:].lower() in ("jpg", "peg") for name in tree(tmp_path / "cut" / "files")) == 3


def test_verify_finds_what_is_gone_changed_or_added(
    folder: Path, tmp_path: Path, tiny_model: ModelConfig
) -> None:
    output = tmp_path / "out"
    run(keep(folder, output, tiny_model))
    files = output / "files"
    content = (files / "a.jpg").read_bytes()
    for change, problem in (
        ((files / "a.jpg").unlink, "1 of its 6 kept images are gone, like files/a.jpg"),
        (lambda: (files / "a.jpg").write_bytes(content[:-1]), "its kept images and their sidecars have"),
        (lambda: (files / "a.jpg").write_bytes(content[:-1] + b"x"), "files/a.jpg differs from its input"),
        (
            lambda: (files / "z.jpg").write_bytes(content),
            "1 images in files/ are no shard's, like files/z.jpg",
        ),
        ((files / "a.txt").unlink, "its kept images and their sidecars have"),
    ):
        change()
        assert problem in " ".join(text for _, text in check(output).problems)
        (files / "a.jpg").write_bytes(content)
        (files / "z.jpg").unlink(missing_ok=True)
        assert (files / "a.txt").exists() != bool(check(output).problems)


def test_a_link_to_a_file_that_changed_since_it_was_read_is_a_copy(tmp_path: Path) -> None:
    shard = Shard(index=0, name="0", kind="folder", source=str(tmp_path), files=("a.jpg",))
    (tmp_path / "a.jpg").write_bytes(b"now longer")
    sample = Sample(shard, "a", b"read", (), str(tmp_path / "a.jpg"), 0, files=(("a.jpg", b"read"),))
    kept = KeptFiles(tmp_path / "out", str(tmp_path), as_links=True)
    kept.add([sample])
    kept.finish()
    kept.publish()
    kept.abandon()
    assert (tmp_path / "a.jpg").read_bytes() == b"now longer"
    assert tree(tmp_path / "out") == {"files/a.jpg": b"read"}
    assert kept.num_bytes == 4


def test_a_folder_that_is_a_link_to_elsewhere_is_refused(
    folder: Path, tmp_path: Path, tiny_model: ModelConfig
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "files").mkdir(parents=True)
    (tmp_path / "out" / "files" / "sub").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="sub is a link to outside"):
        run(keep(folder, tmp_path / "out", tiny_model))
    assert tree(tmp_path / "elsewhere") == {}


def test_what_has_no_files_is_refused_at_once(
    folder: Path, shards_dir: Path, tmp_path: Path, tiny_model: ModelConfig
) -> None:
    with pytest.raises(
        ConfigError, match=r"^output_format files is for an input of image files, and .*0\.tar is"
    ):
        run(keep(shards_dir, tmp_path / "out", tiny_model))
    with pytest.raises(ConfigError, match=r"^output_format files and output s3://b/out are given"):
        keep(folder, "s3://b/out", tiny_model)  # type: ignore[arg-type]
    run(keep(folder, tmp_path / "out", tiny_model))
    with pytest.raises(ConfigError, match=r"'files' there, 'tar' now\n.*: dali-aesthetic filter"):
        run(keep(folder, tmp_path / "out", tiny_model, output_format="tar"))
    with pytest.raises(ConfigError, match="holds image files, which aren't packed"):
        read_run(tmp_path / "out")
    with pytest.raises(ConfigError, match="holds image files: cut it into tars"):
        push(tmp_path / "out", "user/name")


def test_the_cut_that_keeps_something_writes_files_too(
    folder: Path, tmp_path: Path, tiny_model: ModelConfig
) -> None:
    config = keep(folder, tmp_path / "out", tiny_model, threshold=Threshold(raw=1000))
    console = Console(file=io.StringIO(), width=100)
    summary(run(config), config, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.rstrip().endswith("-cut --output-format files --keep-top 10%")


def test_the_report_shows_kept_files_whose_source_is_gone(
    folder: Path, tmp_path: Path, tiny_model: ModelConfig
) -> None:
    run(keep(folder, tmp_path / "out", tiny_model))
    shutil.rmtree(folder)
    page = Path(report_at(tmp_path / "out")).read_text()
    assert page.count("data:image/") >= 6
    words = recut_words(read_record(tmp_path / "out"), tmp_path / "out")
    assert words[-2:] == ["--output-format", "files"]
