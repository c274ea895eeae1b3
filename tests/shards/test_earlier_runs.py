"""Outputs of earlier runs below an input."""

from __future__ import annotations

import json
from pathlib import Path

import fsspec
import pytest

from dali_aesthetic.shards import InputError, plan_shards
from tests.shards.test_plan import touch


def output(folder: Path, *tars: str, **record: object) -> Path:
    """The output of a run or a compact with this record."""
    touch(folder, *tars)
    (folder / "run.json").write_text(json.dumps({"identity": {}, **record}))
    return folder


def names(text: str | Path, **options: str) -> list[str]:
    return [shard.name for shard in plan_shards(str(text), **options)]


@pytest.mark.parametrize("kind", ["tar", "parquet"])
@pytest.mark.parametrize("read", [".", "*.{kind}", "b", "b/{{1..1}}.{kind}", "b/1.{kind}"])
def test_outputs_made_from_this_input_are_left_out(tmp_path: Path, kind: str, read: str) -> None:
    touch(tmp_path, f"0.{kind}", f"b/1.{kind}")
    before = names(tmp_path)
    source = f"{tmp_path}/{read.format(kind=kind)}"
    kept = output(tmp_path / "b/kept", f"shards/b/1.{kind}", identity={"input": [source]})
    output(
        tmp_path / "packed", f"shards/0.{kind}", identity={"packed": {}}, config={"packed_from": str(kept)}
    )
    assert names(tmp_path) == before
    assert names(kept / "shards") == ["b/1" if kind == "tar" else "1"]


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_outputs_made_from_another_input_are_refused(tmp_path: Path, kind: str) -> None:
    data = touch(tmp_path / "data", f"0.{kind}", f"1.{kind}")
    kept = output(data / "kept", f"shards/9.{kind}", identity={"input": [f"{tmp_path}/data2/*.{kind}"]})
    with pytest.raises(InputError, match=rf"holds 2 shards.* another input: {kept}\. .*/data/\*\.{kind}"):
        names(data)
    for content in ("{}", "[]", "no json", '{"identity": {"input": ["@list.txt"]}}'):
        (kept / "run.json").write_text(content)
        with pytest.raises(InputError, match="another input"):
            names(data)
    assert names(data, output=str(kept)) == ["0", "1"]
    assert names(data / f"*.{kind}") == ["0", "1"]


def test_gathered_outputs_are_input_and_so_are_tars_outside_an_outputs_folders(tmp_path: Path) -> None:
    for name in ("one", "two"):
        output(tmp_path / "outputs" / name, "shards/0.tar", identity={"input": [str(tmp_path / "gone")]})
    assert names(tmp_path / "outputs") == ["one/shards/0", "two/shards/0"]
    output(tmp_path / "others/one", "0.tar", "../0.tar")
    assert names(tmp_path / "others") == ["0", "one/0"]


def test_a_relative_input_is_the_same_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "data/0.tar", "elsewhere/x")
    output(tmp_path / "data/kept", "shards/0.tar", identity={"input": ["data"]})
    monkeypatch.chdir(tmp_path)
    assert names("data") == names(tmp_path / "data") == ["0"]
    monkeypatch.chdir("elsewhere")
    with pytest.raises(InputError, match="another input"):
        names("../data")


def test_outputs_made_from_images_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg")
    output(tmp_path / "kept", "shards/00000.tar", "quarantine/00000.tar")
    (shard,) = plan_shards(str(tmp_path))
    assert shard.files == ("1.jpg",)
    touch(tmp_path, "kept/others/00000.tar")
    with pytest.raises(InputError, match=r"1 tars .* 1 images"):
        plan_shards(str(tmp_path))


def test_outputs_at_a_url_are_left_out_or_refused(caplog: pytest.LogCaptureFixture) -> None:
    memory = fsspec.filesystem("memory")
    record = json.dumps({"identity": {"input": ["memory://twice/*.tar"]}}).encode()
    for name, content in (("0.tar", b""), ("kept/run.json", record), ("kept/shards/0.tar", b"")):
        memory.pipe_file(f"/twice/{name}", content)
    with caplog.at_level("INFO"):
        assert names("memory://twice") == ["0"]
    assert "is not input: memory://twice/kept" in caplog.text
    assert names("memory://twice/**") == ["0", "kept/shards/0"]
    memory.pipe_file("/twice/kept/run.json", b"{}")
    with pytest.raises(InputError, match=r"another input: memory://twice/kept\."):
        names("memory://twice")
