"""Inputs that are named by a folder, a pattern or a list at a URL."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dali_aesthetic.shards import read_shards
from dali_aesthetic.shards.plan import InputError, plan_shards
from dali_aesthetic.types import ShardEnd
from tests.shards.tar_factory import JPEG, pack
from tests.stores.s3 import Bucket
from tests.stores.servers import Faults, proxy, web

KEYS = ("d/b.tar", "d/a.tar", "d/x/c.tar", "d/x/note.txt", "e/z.tar", "d-other/q.tar")


@pytest.fixture
def filled(bucket: Bucket) -> Bucket:
    for key in KEYS:
        bucket.put(key, b"")
    return bucket


def names(text: str, **options: str) -> list[tuple[str, str]]:
    return [(shard.name, shard.source) for shard in plan_shards(text, **options)]


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_folder_holds_the_tars_below_it(filled: Bucket, slash: str) -> None:
    root = f"{filled.url}/d"
    assert names(root + slash) == [("a", f"{root}/a.tar"), ("b", f"{root}/b.tar"), ("x/c", f"{root}/x/c.tar")]


def test_patterns(filled: Bucket) -> None:
    root = f"{filled.url}/d"
    assert names(f"{root}/*.tar") == [("a", f"{root}/a.tar"), ("b", f"{root}/b.tar")]
    assert [name for name, _ in names(f"{root}/**/*.tar")] == ["a", "b", "x/c"]
    assert [name for name, _ in names(f"{root}/[b-z]*.tar")] == ["b"]
    assert names(f"{root}/{{a,b}}.tar") == names(f"{root}/*.tar"), "without a listing"


def test_the_output_is_no_input(filled: Bucket) -> None:
    root = f"{filled.url}/d"
    assert [name for name, _ in names(root, output=f"{root}/x")] == ["a", "b"]


def test_patterns_of_parquet_are_listed_by_the_same_client(filled: Bucket) -> None:
    """Not by s3fs, which the extra `s3` doesn't bring."""
    root = f"{filled.url}/d"
    for key in ("d/b.parquet", "d/a.parquet", "d/x/c.parquet", "d/out/shards/a.parquet"):
        filled.put(key, b"")
    both = [("a", f"{root}/a.parquet"), ("b", f"{root}/b.parquet")]
    assert names(f"{root}/*.parquet") == names(f"{root}/{{a,b}}.parquet") == both
    found = names(f"{root}/**/*.parquet", output=f"{root}/out")
    assert [name for name, _ in found] == ["a", "b", "x/c"]
    with pytest.raises(InputError, match=r"no bucket s3://no-such-bucket-at-all"):
        plan_shards("s3://no-such-bucket-at-all/*.parquet")


def test_what_is_not_there_is_an_error(filled: Bucket) -> None:
    with pytest.raises(InputError, match="holds no"):
        plan_shards(f"{filled.url}/nothing/")
    with pytest.raises(InputError, match="no bucket s3://no-such-bucket-at-all"):
        plan_shards("s3://no-such-bucket-at-all/d/")


def test_a_list_may_be_an_object_and_name_any_place(filled: Bucket, tmp_path: Path) -> None:
    (tmp_path / "l.tar").write_bytes(b"")
    text = f"# shards\n{filled.url}/d/b.tar\n\n{filled.url}/e/*.tar\n{filled.url}/d/a.tar\n"
    filled.put("lists/one.txt", text.encode())
    assert [name for name, _ in names(f"@{filled.url}/lists/one.txt")] == ["d/b", "e/z", "d/a"]
    with pytest.raises(InputError, match=r"two\.txt can't be read"):
        plan_shards(f"@{filled.url}/lists/two.txt")


def test_a_folder_takes_one_listing(filled: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = Faults()
    with proxy(filled.endpoint, faults) as url:
        from dali_aesthetic.stores import open

        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        open._store.cache_clear()
        assert len(plan_shards(f"{filled.url}/d/")) == 3
    assert len(faults.log) == 1


def test_a_web_folder_is_listed_by_its_links() -> None:
    page = b'<html><a href="a.tar">a</a> <a href="b.tar">b</a></html>'
    with web({"/d/": page, "/d": page, "/d/a.tar": b"x", "/d/b.tar": b"x"}) as url:
        assert names(f"{url}/d/") == [("a", f"{url}/d/a.tar"), ("b", f"{url}/d/b.tar")]


def test_a_web_address_with_a_query_string_is_refused(tmp_path: Path) -> None:
    """A signed URL, for example. Without `=` the `?` is a wildcard."""
    signed = "https://host/a.tar?X-Amz-Signature=1&x=/"
    (tmp_path / "list.txt").write_text(f"{signed}\n")
    for text in (signed, f"@{tmp_path}/list.txt", f"@{signed}"):
        with pytest.raises(InputError, match=r"a\.tar\?X-Amz.* query string .* download the file"):
            plan_shards(text)
    page = b'<a href="a.tar">a</a> <a href="bc.tar">b</a>'
    with web({"/d": page, "/d/": page, "/d/a.tar": b"x", "/d/bc.tar": b"x"}) as url:
        assert names(f"{url}/d/?.tar") == [("a", f"{url}/d/a.tar")]


def test_keys_that_the_client_cant_read_cost_their_own_shards(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "2")  # several pages
    odd = ("x//1.tar", "../../etc.tar", "./q.tar", "tab\t.tar", "x\x01.tar", "x//1.txt")
    for key in (*(f"d/{n}.tar" for n in "abcyz"), *(f"d/{key}" for key in odd), "d-other/q.tar"):
        bucket.put(key, pack([("k.jpg", JPEG)]))
    shards = plan_shards(f"{bucket.url}/d/")
    assert sorted(shard.source for shard in shards) == sorted(
        f"{bucket.url}/d/{key}" for key in (*(f"{n}.tar" for n in "abcyz"), *odd) if key.endswith(".tar")
    )
    assert len({shard.name for shard in shards}) == 10
    errors = {end.shard.source: end.error for end in read_shards(shards) if isinstance(end, ShardEnd)}
    for source, error in errors.items():
        is_odd = source.removeprefix(f"{bucket.url}/d/") in odd
        assert ("copy the object to another key" in error) is is_odd, error
        assert is_odd or not error
        assert "times" not in error, "it is asked for once"


def test_names_are_the_same_wherever_the_tars_lie(bucket: Bucket, tmp_path: Path) -> None:
    for name in ("a.tar", "a.json/b.tar", "v1.0/c.tar", "g\\h.tar", "x" * 249 + ".tar", "\u65e5.tar"):
        path = tmp_path / "d" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    bucket.put_folder(tmp_path / "d", "d")
    planned = [plan_shards(root) for root in (f"{tmp_path}/d", f"file://{tmp_path}/d", f"{bucket.url}/d")]
    assert len({tuple(shard.name for shard in shards) for shards in planned}) == 1


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_folder_of_parquet_is_taken_in_one_listing(bucket: Bucket, slash: str) -> None:
    for key in ("p/a.parquet", "p/x/b.parquet", "p/README.md"):
        bucket.put(key, b"")
    root = f"{bucket.url}/p"
    assert names(root + slash) == [("a", f"{root}/a.parquet"), ("x/b", f"{root}/x/b.parquet")]
    assert {shard.kind for shard in plan_shards(root)} == {"parquet"}
    bucket.put("p/0.tar", b"")
    assert [name for name, _ in names(root)] == ["0"], "beside tars Parquet is their metadata"


def test_what_a_run_kept_of_a_folder_of_parquet_is_no_input(bucket: Bucket) -> None:
    for key in ("p/a.parquet", "p/kept/shards/a.parquet", "p/kept/scores/a.parquet"):
        bucket.put(key, b"")
    bucket.put("p/kept/run.json", json.dumps({"identity": {"input": [f"{bucket.url}/p/"]}}).encode())
    assert [name for name, _ in names(f"{bucket.url}/p")] == ["a"]
    bucket.put("p/kept/run.json", b"{}")
    with pytest.raises(InputError, match="what a run kept of another input"):
        plan_shards(f"{bucket.url}/p")


def test_a_list_of_parquet_may_be_an_object(bucket: Bucket) -> None:
    bucket.put("p/b.parquet", b"")
    bucket.put("list.txt", f"\ufeff# Parquet\n{bucket.url}/p/a.parquet\n{bucket.url}/p/b*\n".encode())
    assert [name for name, _ in names(f"@{bucket.url}/list.txt")] == ["a", "b"]


@pytest.mark.parametrize("name", ["photo.jpg", "img_emb_0.npy"])
def test_a_folder_of_images_or_embeddings_must_be_local(bucket: Bucket, name: str) -> None:
    bucket.put(f"d/{name}", b"")
    bucket.put("d/metadata.parquet", b"")
    hint = rf"{name}\), which must be local: .*\(s3://.*/d/\*\*/\*\.parquet\)"
    with pytest.raises(InputError, match=hint):
        plan_shards(f"{bucket.url}/d/")
    assert [name for name, _ in names(f"{bucket.url}/d/**/*.parquet")] == ["metadata"]
