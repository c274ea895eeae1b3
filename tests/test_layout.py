"""The layout of an output: one owner of its names, and the same answer for a folder and for a URL."""

from __future__ import annotations

import ast
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

import dali_aesthetic
from dali_aesthetic import layout
from dali_aesthetic.write.files import output_path

PACKAGE = Path(dali_aesthetic.__file__).parent
NAMES = {layout.RECORD, layout.TIMING, layout.REPORT, layout.CALIBRATION, layout.SETTLING}
FOLDERS = set(layout.FOLDERS)
BELOW = re.compile(rf"(^|/)({'|'.join(FOLDERS)})/")


def paths_spelt_out(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """String constants of a module, but for its prose, that name a file or folder of an output."""
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    operands = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            operands |= {id(node.left), id(node.right)}
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in ("join", "joinpath"):
            operands |= {id(argument) for argument in node.args}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            text = node.value
            is_path = " " not in text and (BELOW.search(text) or any(text.endswith(name) for name in NAMES))
            if is_path or (id(node) in operands and text in FOLDERS):
                yield node.lineno, text


@pytest.mark.parametrize(
    "line",
    [
        "p = output / 'stats' / f'{name}.json'",
        "p = join(output, 'scores', name)",
        "p = f'{output}/run.json'",
        "p = 'shards/{}.tar'",
        "p = 'timing.jsonl'",
    ],
)
def test_a_path_that_is_spelt_out_is_found(line: str) -> None:
    assert list(paths_spelt_out(ast.parse(line)))


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_other_module_spells_out_a_path_of_an_output(path: Path) -> None:
    if path.name != "layout.py":
        assert not list(paths_spelt_out(ast.parse(path.read_text())))


@pytest.fixture(params=["folder", "URL"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An output with a shard that is done and one that isn't."""
    for name in (
        "stats/a/0.json",
        "scores/a/0.parquet",
        "scores/b.parquet",
        "shards/a/0.tar",
        "shards/c.tar",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    for name in ("stats/.tmp-x.json", "scores/.d.parquet", "shards/sizes.json", "shards/a/0.idx"):
        (tmp_path / name).write_text("{}")
    if request.param == "folder":
        yield str(tmp_path)
        return
    url = "memory://layout/out"
    fsspec.filesystem("memory").put(f"{tmp_path}/", f"{url}/", recursive=True)
    shutil.rmtree(tmp_path)
    yield url
    fsspec.filesystem("memory").store.clear()


def test_committed_and_uncommitted_shards_are_told_apart(output: str) -> None:
    assert layout.committed_names(output) == {"a/0"}
    assert layout.uncommitted_names(output) == ["b", "c"]


def test_stats_are_read_or_refused_by_their_file(output: str) -> None:
    assert layout.read_stats(output, "a/0") == {}
    with pytest.raises(FileNotFoundError):
        layout.read_stats(output, "b")


@pytest.mark.parametrize("content", ["[]", "{", "3"])
def test_broken_stats_are_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "stats").mkdir()
    (tmp_path / "stats" / "a.json").write_text(content)
    with pytest.raises(layout.BadStats, match=r"stats/a\.json can't be read"):
        layout.read_stats(tmp_path, "a")


@pytest.mark.parametrize("content", ["[]", "{", "{}", '{"identity": 3}', '{"identity": {}, "config": []}'])
def test_a_broken_run_record_is_named(tmp_path: Path, content: str) -> None:
    with pytest.raises(layout.NotARun, match="is not the output of a run"):
        layout.read_record(tmp_path)
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(layout.NotARun, match=r"run\.json can't be read"):
        layout.read_record(tmp_path)


RUN = {"identity": {"input": ["in"], "heads": ["h"], "min_raw": 5.0}, "config": {"scores_only": False}}
CUT = {"identity": {"min_raw": 6, "max_raw": 7.5, "scored_by": RUN["identity"]}, "config": {}}
PACKED = {"identity": {"packed": {}, "run": CUT["identity"]}, "config": {"packed_from": "kept"}}
STORED = {"identity": {"input_kind": "embeddings", "heads": ["h"], "min_raw": 5}}


@pytest.mark.parametrize(
    ("record", "cut", "packed_from", "scores_only"),
    [
        (RUN, (5.0, float("inf")), None, False),
        (CUT, (6.0, 7.5), None, False),
        (PACKED, (6.0, 7.5), "kept", False),
        (STORED, (5.0, float("inf")), None, True),
        ({"identity": {"heads": ["h"]}, "config": {"scores_only": True}}, None, None, True),
    ],
)
def test_a_record_tells_what_the_output_is(
    tmp_path: Path,
    record: dict[str, Any],
    cut: tuple[float, float] | None,
    packed_from: str | None,
    scores_only: bool,
) -> None:
    (tmp_path / layout.RECORD).write_text(json.dumps(record))
    found = layout.read_record(tmp_path)
    assert layout.scored_by(found)["heads"] == ["h"]
    assert layout.cut_of(found) == cut
    assert layout.packed_from(found) == packed_from
    assert layout.holds_scores_only(found) is scores_only


ODD_NAMES = (
    *("x" * 239, "x" * 240, f"{'x' * 300}/a", f"{'y' * 300}/a", "\u65e5" * 90, "/".join(["d" * 99] * 9)),
    *("a.json/b", "a.tar/b", "c/a.parquet/b", "img_emb_a.npy/b", f"{'z' * 220}.json{'z' * 20}/a", "a.JSON/b"),
    *("a//b", "/a", "./a", "../../etc/a", "a/./b", "", ".a", "_a/.b", "x/"),
    *("a\x01b", "a\x7fb", "a\nb", "a\\b", "\udcffa", "a\u202eb"),
)
PLAIN_NAMES = (
    "a",
    "a_b",
    "_a",
    "a.b",
    "v1.0/a",
    "00000",
    "x" * 238,
    "c/a",
    "\u65e5\u672c/a b",
    "a.json",
    "a..b",
    ".d/a",
)


def test_plain_paths_are_names() -> None:
    assert [layout.shard_name(path) for path in PLAIN_NAMES] == list(PLAIN_NAMES)


def test_odd_paths_get_names_that_are_short_plain_and_their_own(tmp_path: Path) -> None:
    names = [layout.shard_name(path) for path in (*ODD_NAMES, *PLAIN_NAMES)]
    assert len(set(names)) == len(names)
    files = [file for name in names for file in (*layout.shard_files(name), *layout.embedding_files(name))]
    for file in files:
        assert len(file.encode()) < 900
        output_path(tmp_path, file).touch()  # no file is another one's folder, and no name is too long
    assert layout.committed_names(tmp_path) == set(names)


def test_a_name_depends_on_the_path_alone() -> None:
    assert layout.shard_name("a.json/b") == "a_json/b-5b726a20624b"
    assert layout.shard_name("x" * 249) == "x" * 225 + "-e1c28f9cebda"
