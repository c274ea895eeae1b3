"""Parquet with image bytes: found, read, scored, and its kept rows written as Parquet."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dali_aesthetic import Config, ImageScorer, ModelConfig, Threshold, run
from dali_aesthetic.config import GuardConfig
from dali_aesthetic.decode.headers import Limits, probe
from dali_aesthetic.launch.filter import filter_scored
from dali_aesthetic.report.pictures import image_in_row
from dali_aesthetic.shards.listing import InputError
from dali_aesthetic.shards.opened import ReadLimits
from dali_aesthetic.shards.parquet import image_column, read_parquet
from dali_aesthetic.shards.plan import plan_shards
from dali_aesthetic.types import Route, Sample, ShardEnd, Status
from dali_aesthetic.verify.outputs import verify_output
from dali_aesthetic.write.kept_rows import QUARANTINE_COLUMNS, KeptRows
from tests.conftest import jpeg, snapshot

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def _hf(images: list[bytes | None]) -> pa.Table:
    """As Hugging Face datasets write it, with its schema metadata."""
    structs = [None if image is None else {"bytes": image, "path": "x.jpg"} for image in images]
    table = pa.table(
        {
            "image": pa.array(structs, STRUCT),
            "label": list(range(len(images))),
            "text": [f"caption {i}" for i in range(len(images))],
        }
    )
    features = {"info": {"features": {"image": {"_type": "Image"}}}}
    return table.replace_schema_metadata({"huggingface": json.dumps(features)})


@pytest.fixture(scope="module")
def encoded(photos: list[Image.Image]) -> list[bytes | None]:
    images: list[bytes | None] = [jpeg(photo) for photo in photos[:12]]
    images[4:4] = [None, b"", b"no image"]
    return images


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, encoded: list[bytes | None]) -> Path:
    """Two files, the first with row groups of 4."""
    folder = tmp_path_factory.mktemp("dataset")
    (folder / "data").mkdir()
    pq.write_table(_hf(encoded), folder / "data/train-00000.parquet", row_group_size=4, compression="zstd")
    pq.write_table(_hf(encoded[:2]), folder / "data/train-00001.parquet")
    return folder


def _read(path: Path, limits: ReadLimits | None = None) -> tuple[list[Sample], ShardEnd]:
    (shard,) = plan_shards(path)
    *samples, end = read_parquet(shard, limits or ReadLimits())
    assert isinstance(end, ShardEnd)
    return [sample for sample in samples if isinstance(sample, Sample)], end


@pytest.fixture(scope="module")
def direct(encoded: list[bytes | None], tiny_model: ModelConfig) -> npt.NDArray[np.float32]:
    return ImageScorer(tiny_model, device="cpu").score([image or b"" for image in encoded])


@pytest.fixture(scope="module")
def median(direct: npt.NDArray[np.float32]) -> Threshold:
    return Threshold(raw=float(np.nanmedian(direct)))


def _run(dataset: Path, output: Path, model: ModelConfig, cut: Threshold, **options: object) -> None:
    config = Config(
        input=(str(dataset),),
        output=str(output),
        device="cpu",
        model=model,
        threshold=cut,
        **options,  # type: ignore[arg-type]
    )
    assert run(config).exit_code == 0


def test_every_row_is_a_sample_in_order(dataset: Path, encoded: list[bytes | None]) -> None:
    samples, end = _read(dataset / "data/train-00000.parquet")
    assert not end.error
    assert [sample.offset for sample in samples] == list(range(15))
    assert [sample.key for sample in samples][:2] == ["0", "1"]
    assert [bytes(sample.image) for sample in samples if sample.image] == [
        image for image in encoded if image
    ]
    assert samples[4].status is Status.MISSING_IMAGE
    assert samples[5].status is Status.EMPTY
    assert json.loads(bytes(samples[7].sidecar or b"")) == {"label": 7, "text": "caption 7"}


def test_headers_are_read_as_those_of_the_same_bytes(dataset: Path) -> None:
    """Arrow's own views have signed bytes, which no marker of a JPEG is equal to."""
    images = [sample.image for sample in _read(dataset / "data/train-00000.parquet")[0] if sample.image]
    headers = [probe(image, Limits()) for image in images]
    assert headers == [probe(bytes(image), Limits()) for image in images]
    assert Route.DALI in {header.route for header in headers if header.format == "jpeg"}


def test_inputs_are_folders_patterns_and_files(dataset: Path) -> None:
    names = [shard.name for shard in plan_shards(dataset / "data")]
    assert names == ["train-00000", "train-00001"]
    assert [shard.name for shard in plan_shards(dataset / "data/train-{00000..00001}.parquet")] == names
    assert [shard.name for shard in plan_shards(dataset / "data/*.parquet")] == names
    with pytest.raises(InputError, match="does not exist"):
        plan_shards(dataset / "none.parquet")


def test_an_existing_file_is_not_read_as_a_pattern(tmp_path: Path) -> None:
    for name in ("a1.parquet", "a[1].parquet", "b{1}.parquet", "c[2].parquet"):
        (tmp_path / name).touch()
    for name in ("a[1]", "b{1}", "c[2]"):
        (shard,) = plan_shards(tmp_path / f"{name}.parquet")
        assert (shard.name, shard.source) == (name, f"{tmp_path}/{name}.parquet")


def test_the_output_below_the_input_is_not_input(tmp_path: Path) -> None:
    """Else the second run of one command would score what the first one kept."""
    for name in ("a.parquet", "out/shards/a.parquet", "out/scores/a.parquet", "out-2/b.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for text in (tmp_path, tmp_path / "**/*.parquet", tmp_path / "{*,*/*,*/*/*}.parquet"):
        assert [shard.name for shard in plan_shards(text, output=tmp_path / "out")] == ["a", "out-2/b"]


def test_a_file_given_by_two_spellings_of_its_path_is_refused(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(dataset)
    with pytest.raises(InputError, match=r"train-00000\.parquet is given twice"):
        plan_shards(["data", dataset / "data/train-00000.parquet"])


def test_capital_letters_name_parquet_too(tmp_path: Path) -> None:
    for name in ("A.PARQUET", "b.parquet"):
        (tmp_path / name).touch()
    for inputs in (tmp_path, [tmp_path / "A.PARQUET", tmp_path / "b.parquet"]):
        assert [(s.kind, s.name) for s in plan_shards(inputs)] == [("parquet", "A"), ("parquet", "b")]
    (tmp_path / "a.parquet").touch()
    (tmp_path / "a.Parquet").touch()
    assert [s.name for s in plan_shards(tmp_path)] == ["A", "a", "a-2b0b451b4171", "b"]


def test_a_column_of_images_is_refused_where_there_are_none(tmp_path: Path) -> None:
    (tmp_path / "a.tar").touch()
    with pytest.raises(InputError, match=r"--image-column photo is for Parquet, and .* is none"):
        plan_shards(tmp_path, image_column="photo")


@pytest.mark.parametrize("beside", ["00000.tar", "photo.jpg"])
def test_parquet_beside_tars_or_images_is_their_metadata(dataset: Path, tmp_path: Path, beside: str) -> None:
    (tmp_path / beside).write_bytes(b"x")
    (tmp_path / "00000.parquet").write_bytes((dataset / "data/train-00001.parquet").read_bytes())
    (shard,) = plan_shards(tmp_path)
    assert (shard.kind, shard.name) == ("tar" if beside == "00000.tar" else "folder", "00000")


def test_the_column_is_found_or_given() -> None:
    assert image_column(pa.schema([("image", STRUCT), ("mask", pa.binary())])) == "image"
    assert image_column(pa.schema([("photo", pa.large_binary()), ("n", pa.int64())])) == "photo"
    two = pa.schema([("a", pa.binary()), ("b", pa.binary())])
    assert image_column(two, "b") == "b"
    with pytest.raises(InputError, match="a, b all hold bytes"):
        image_column(two)
    with pytest.raises(InputError, match="'n' holds no bytes"):
        image_column(pa.schema([("a", pa.binary()), ("n", pa.int64())]), "n")
    with pytest.raises(InputError, match="no column holds image bytes"):
        image_column(pa.schema([("n", pa.int64())]))


def _structs(images: list[bytes | None]) -> list[dict[str, object]]:
    return [{"bytes": image, "path": f"{i}.jpg"} for i, image in enumerate(images)]


COLUMNS = {
    "dictionary": lambda images: pa.array(images).dictionary_encode(),
    "binary view": lambda images: pa.array(images, pa.binary_view()),
    "fixed size": lambda images: pa.array(images, pa.binary(len(images[0]))),
    "large binary": lambda images: pa.array(images, pa.large_binary()),
    "list of structs": lambda images: pa.array([[s] for s in _structs(images)], pa.list_(STRUCT)),
    "base64": lambda images: pa.array([image and base64.b64encode(image).decode() for image in images]),
    "data URI": lambda images: pa.array(
        [image and "data:image/png;base64," + base64.b64encode(image).decode() for image in images]
    ),
}


@pytest.mark.parametrize("kind", COLUMNS)
@pytest.mark.parametrize("name", ["image", "scan"])
def test_images_are_read_from_every_type_of_column(tmp_path: Path, kind: str, name: str) -> None:
    images: list[bytes | None] = []
    for shade in (1, 2, 3):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), (shade, 0, 0)).save(buffer, "PNG", compress_level=0)  # all of one size
        images.append(buffer.getvalue())
    images.append(None)
    ids = pa.array([b"0123456789abcdef"] * 4, pa.binary(16))
    table = pa.table({"md5": ids, name: COLUMNS[kind](images), "text": list("abcd")})
    pq.write_table(table, tmp_path / "a.parquet")
    samples, end = _read(tmp_path / "a.parquet")
    assert end.error == ""
    assert [sample.image and bytes(sample.image) for sample in samples] == images
    assert samples[3].status is Status.MISSING_IMAGE
    assert json.loads(bytes(samples[0].sidecar or b""))["text"] == "a"
    found = image_in_row(str(tmp_path / "a.parquet"), 1)
    assert found is not None
    assert bytes(found) == images[1]


@pytest.mark.parametrize("kind", ["struct", "binary", "large binary", "fixed size"])
def test_images_are_not_copied_once_more_than_arrow_decodes_them(tmp_path: Path, kind: str) -> None:
    """Arrow's scalars have a copy each, beside the array, outside of its pool."""
    images = [np.random.default_rng(seed).bytes(1 << 20) for seed in range(8)]
    types = {"binary": pa.binary(), "large binary": pa.large_binary(), "fixed size": pa.binary(1 << 20)}
    column = pa.array(_structs(images), STRUCT) if kind == "struct" else pa.array(images, types[kind])
    options = {"use_dictionary": False, "write_batch_size": 1}
    pq.write_table(pa.table({"image": column}), tmp_path / "a.parquet", **options)
    before = pa.total_allocated_bytes()
    samples, _ = _read(tmp_path / "a.parquet")
    assert [bytes(sample.image or b"") for sample in samples] == images
    assert pa.total_allocated_bytes() - before >= 8 << 20


def test_kept_rows_have_statistics_of_their_small_values_only(tmp_path: Path) -> None:
    """For those of large images the writer would copy each four times."""
    table = pa.table({"image": [b"a" * 5000, b"b" * 5000], "n": [1, 2]})
    pq.write_table(table, tmp_path / "a.parquet")
    rows = KeptRows(tmp_path / "kept.parquet", str(tmp_path / "a.parquet"))
    rows.add(_read(tmp_path / "a.parquet")[0])
    rows.finish()
    rows.publish()
    kept = pq.ParquetFile(tmp_path / "kept.parquet")
    assert kept.read().equals(table)
    images, numbers = (kept.metadata.row_group(0).column(index).statistics for index in (0, 1))
    assert images is None
    assert numbers.max == 2


def test_of_several_images_in_a_row_the_first_is_scored_with_a_warning(tmp_path: Path) -> None:
    rows = [_structs([b"a", b"b"]), _structs([b"c"]), [], None]
    pq.write_table(pa.table({"images": pa.array(rows, pa.list_(STRUCT))}), tmp_path / "a.parquet")
    samples, end = _read(tmp_path / "a.parquet")
    assert [sample.image and bytes(sample.image) for sample in samples] == [b"a", b"c", None, None]
    assert end.warnings == (
        "rows of the column 'images' have several images: only the first of each is scored",
    )


@pytest.mark.parametrize(
    ("value", "fix"),
    [
        ("/data/0.jpg", "give their folder as --input"),
        ("https://example.org/0", "download them first, as img2dataset does"),
    ],
)
@pytest.mark.parametrize("wanted", ["", "image"])
def test_a_column_of_paths_or_urls_is_named_with_the_fix(
    tmp_path: Path, value: str, fix: str, wanted: str
) -> None:
    pq.write_table(pa.table({"text": ["a"], "image": [value]}), tmp_path / "a.parquet")
    (shard,) = plan_shards(tmp_path / "a.parquet", image_column=wanted)
    (end,) = read_parquet(shard)
    assert isinstance(end, ShardEnd)
    assert f"the column 'image' holds paths or URLs ('{value}'), not images: {fix}" in end.error


def test_a_row_with_only_a_path_says_so(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": pa.array(_structs([None]), STRUCT)}), tmp_path / "a.parquet")
    ((sample,), _) = _read(tmp_path / "a.parquet")
    assert sample.status is Status.MISSING_IMAGE
    assert "it has only the path '0.jpg': embed the bytes" in sample.message


def test_damage_and_limits(dataset: Path, tmp_path: Path) -> None:
    whole = (dataset / "data/train-00000.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    samples, end = _read(tmp_path / "cut.parquet")
    assert not samples
    assert "can't be read" in end.error
    samples, _ = _read(dataset / "data/train-00001.parquet", ReadLimits(max_member_bytes=10))
    assert {sample.status for sample in samples} == {Status.TOO_LARGE}


LATIN_1 = pa.array([b"a", b"caf\xe9", b"c"], pa.binary())


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.Array.from_buffers(pa.string(), 3, LATIN_1.buffers()), "caf\ufffd"),
        (pa.array([0, 2**62, 0], pa.timestamp("us")), "<value out of range: 4611686018427387904>"),
        (pa.array([0, 2**30, 0], pa.date32()), "<value out of range: 1073741824>"),
        (pa.array([[0], [2**62], []], pa.list_(pa.timestamp("us"))), None),
    ],
    ids=["latin-1", "timestamp", "date", "nested"],
)
def test_a_value_that_does_not_convert_costs_no_image(
    tmp_path: Path, column: pa.Array, expected: object
) -> None:
    photo = jpeg(Image.new("RGB", (40, 40)))
    table = pa.table({"key": ["a", "b", "c"], "image": [photo] * 3, "odd": column, "label": [1, 2, 3]})
    pq.write_table(table, tmp_path / "a.parquet")
    samples, end = _read(tmp_path / "a.parquet")
    assert [(sample.key, sample.image) for sample in samples] == [(key, photo) for key in "abc"]
    facts = [json.loads(bytes(sample.sidecar or b"")) for sample in samples]
    assert facts[1]["odd"] == expected
    assert [row["label"] for row in facts] == [1, 2, 3]
    assert not end.error
    assert end.warnings == ("values of the column 'odd' don't convert: they are text or null",)


@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("kind", ["plain", "dictionary page", "Arrow dictionary"])
def test_a_page_above_its_share_of_the_memory_fails_with_the_fix(
    tmp_path: Path, compression: str, kind: str
) -> None:
    images = pa.array([np.random.default_rng(seed).bytes(50_000) for seed in range(10)])
    column = images.dictionary_encode() if kind.startswith("Arrow") else images
    options = {"use_dictionary": kind != "plain", "dictionary_pagesize_limit": 1 << 30}
    pq.write_table(pa.table({"image": column}), tmp_path / "a.parquet", compression=compression, **options)
    size = 500_000 if compression == "none" else 1_000_000
    samples, end = _read(tmp_path / "a.parquet", ReadLimits(max_page_bytes=size * 8 // 10))
    assert samples == []
    (found,) = re.findall(r"a page of its column 'image' takes ([\d,]+) bytes", end.error)
    assert int(found.replace(",", "")) == pytest.approx(size, rel=0.01)
    assert "raise the budget 2-fold" in end.error
    samples, end = _read(tmp_path / "a.parquet", ReadLimits(max_page_bytes=size * 11 // 10))
    assert end.error == ""
    assert [bytes(sample.image or b"") for sample in samples] == images.to_pylist()


def test_pages_are_judged_alone_not_by_their_row_group(tmp_path: Path) -> None:
    images = [np.random.default_rng(seed).bytes(50_000) for seed in range(100)]
    options = {
        "use_dictionary": False,
        "data_page_version": "2.0",
        "data_page_size": 1,
        "write_batch_size": 5,
    }
    pq.write_table(pa.table({"image": images}), tmp_path / "a.parquet", **options)
    samples, end = _read(tmp_path / "a.parquet", ReadLimits(max_page_bytes=800_000))
    assert (len(samples), end.error) == (100, "")


def test_large_values_that_scoring_does_not_need_are_left_out(tmp_path: Path) -> None:
    """Rows share a text in the file; each would get a copy of its own."""
    text = pa.array(["x" * (9 << 20)] * 3 + ["y"] * 3)
    columns = {"image": [b"an image"] * 6, "n": range(6), "text": text}
    pq.write_table(pa.table(columns), tmp_path / "plain.parquet")
    pq.write_table(pa.table(columns | {"text": text.dictionary_encode()}), tmp_path / "encoded.parquet")
    for name in ("plain", "encoded"):
        samples, end = _read(tmp_path / f"{name}.parquet")
        sidecars = [sample.sidecar or b"" for sample in samples]
        assert [json.loads(bytes(sidecar))["n"] for sidecar in sidecars] == list(range(6))
        assert max(map(len, sidecars)) < 100
        assert end.warnings == ("values of the column 'text' above 1 MiB are left out of the scores",)


def test_dictionaries_and_plain_columns_stay_in_step(tmp_path: Path) -> None:
    """They are read in batches of different sizes."""
    texts = [f"text {row % 7}" for row in range(1000)]
    columns = {
        "a": pa.array(texts).dictionary_encode(),
        "image": [b"x"] * 1000,
        "b": texts,
        "key": range(1000),
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=600)
    samples, end = _read(tmp_path / "a.parquet")
    assert end.error == ""
    assert [sample.key for sample in samples] == [str(row) for row in range(1000)]
    facts = [json.loads(bytes(sample.sidecar or b"")) for sample in samples]
    assert facts == [{"a": text, "b": text, "key": row} for row, text in enumerate(texts)]


def test_kept_rows_are_identical_to_the_inputs(
    dataset: Path, direct: npt.NDArray[np.float32], tmp_path: Path, tiny_model: ModelConfig, median: Threshold
) -> None:
    _run(dataset, tmp_path / "out", tiny_model, median)
    source = pq.read_table(dataset / "data/train-00000.parquet")
    scores = pq.read_table(tmp_path / "out/scores/train-00000.parquet").to_pylist()
    kept = pq.read_table(tmp_path / "out/shards/train-00000.parquet")
    rows = [row["source_offset"] for row in scores if row["kept"]]
    assert len(rows) == 6
    assert kept.schema.equals(source.schema, check_metadata=True)
    assert kept.equals(source.take(rows))
    assert [row["status"] for row in scores][4:7] == ["missing_image", "empty", "undecodable"]
    assert {row["output_shard"] for row in scores if row["kept"]} == {"shards/train-00000.parquet"}
    assert [json.loads(row["json"])["label"] for row in scores] == list(range(15))
    assert [row["text"] for row in scores] == source["text"].to_pylist()
    found = np.array([row["aesthetic_score"] for row in scores], np.float32)
    np.testing.assert_array_equal(found, direct)
    stats = json.loads((tmp_path / "out/stats/train-00000.json").read_text())
    assert stats["bytes_kept"] == (tmp_path / "out/shards/train-00000.parquet").stat().st_size


def test_saved_embeddings_are_named_by_the_rows_keys(
    dataset: Path, tmp_path: Path, tiny_model: ModelConfig
) -> None:
    _run(dataset, tmp_path / "out", tiny_model, Threshold(raw=-100.0), save_embeddings=True)
    scores = pq.read_table(tmp_path / "out/scores/train-00000.parquet").to_pylist()
    names = pq.read_table(tmp_path / "out/embeddings/metadata/metadata_train-00000.parquet")["image_path"]
    assert names.to_pylist() == [row["key"] for row in scores if row["status"] == "ok"]


def test_quarantine_keeps_bad_rows_whole_with_their_reason(
    dataset: Path, tmp_path: Path, tiny_model: ModelConfig, median: Threshold
) -> None:
    _run(dataset, tmp_path / "out", tiny_model, median, guard=GuardConfig(quarantine=True))
    source = pq.read_table(dataset / "data/train-00000.parquet")
    rows = pq.read_table(tmp_path / "out/scores/train-00000.parquet").to_pylist()
    bad = [row for row in rows if row["status"] != "ok"]
    copied = pq.read_table(tmp_path / "out/quarantine/train-00000.parquet")
    assert copied.drop_columns(list(QUARANTINE_COLUMNS)).equals(
        source.take([r["source_offset"] for r in bad])
    )
    reasons = copied.select(QUARANTINE_COLUMNS).to_pylist()
    assert [tuple(one.values()) for one in reasons] == [(r["status"], r["error_message"]) for r in bad]
    assert {row["status"] for row in bad} == {"missing_image", "empty", "undecodable"}
    stats = json.loads((tmp_path / "out/stats/train-00000.json").read_text())
    assert stats["num_quarantined"] == len(bad) == copied.num_rows
    assert not (tmp_path / "out/quarantine/train-00001.parquet").exists()
    assert verify_output(tmp_path / "out", against_input=False).problems == ()
    pq.write_table(copied.slice(1), tmp_path / "out/quarantine/train-00000.parquet")
    (problem,) = verify_output(tmp_path / "out", against_input=False).problems
    assert "its quarantine holds 2 rows, its stats state 3" in problem[1]


def test_a_shard_done_anew_and_a_cut_of_stored_scores_give_the_same_bytes(
    dataset: Path, tmp_path: Path, tiny_model: ModelConfig, median: Threshold
) -> None:
    _run(dataset, tmp_path / "out", tiny_model, median)
    whole = snapshot(tmp_path / "out")
    (tmp_path / "out/stats/train-00000.json").unlink()
    _run(dataset, tmp_path / "out", tiny_model, median)
    again = snapshot(tmp_path / "out")
    assert {name for name in whole if again[name] != whole[name]} <= {"timing.json"}
    _run(dataset, tmp_path / "scored", tiny_model, median, scores_only=True)
    cut = Config(input=(str(dataset),), output=str(tmp_path / "cut"), threshold=median)
    filter_scored(cut, str(tmp_path / "scored"))
    for name in ("shards/train-00000.parquet", "scores/train-00000.parquet", "stats/train-00001.json"):
        assert (tmp_path / "cut" / name).read_bytes() == whole[name]
