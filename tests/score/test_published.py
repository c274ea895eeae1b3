"""Published weights: found, verified, downloaded, or an error with instructions. Uses loopback only."""

from __future__ import annotations

import fnmatch
import functools
import hashlib
import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import open_clip
import pytest
import safetensors.torch
import torch

from dali_aesthetic.config import Config, ModelConfig
from dali_aesthetic.doctor import examine
from dali_aesthetic.launch.worker import build_worker, run_record
from dali_aesthetic.score import hub, published
from dali_aesthetic.score.hub import HubRepo
from dali_aesthetic.score.published import (
    LAION_V1,
    LAION_V2,
    OPENAI,
    PublishedFile,
    PublishedWeights,
    WeightsUnavailable,
    hash_file,
    resolve,
)
from dali_aesthetic.score.spec import spec_of
from dali_aesthetic.score.weights import (
    download,
    known_spec,
    load_head,
    load_tower,
    present,
    random_head_state,
)

CONTENT = b"weights"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def _caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cache of this machine is read, and nothing is downloaded unless a test allows it."""
    monkeypatch.setattr(published.hub, "HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(published.hub, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr(published.hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a web server on this machine that has `file.pt`."""
    folder = tmp_path / "www"
    folder.mkdir()
    (folder / "file.pt").write_bytes(CONTENT)
    handler = functools.partial(_QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        monkeypatch.setattr(published.hub, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, with the headers by which the hub's client knows a file."""

    def end_headers(self) -> None:
        revision = next((part for part in self.path.split("/") if len(part) == 40), "")
        self.send_header("X-Repo-Commit", revision)
        self.send_header("ETag", f'"{SHA256}"')
        super().end_headers()

    def log_message(self, *args: object) -> None:
        pass


def _file(url: str = "https://example.org/file.pt", sha256: str = SHA256) -> PublishedFile:
    return PublishedFile(filename="file.pt", sha256=sha256, url=url)


def _weights(*files: PublishedFile) -> PublishedWeights:
    return PublishedWeights("x", files, "")


def test_offline_the_error_names_file_sha256_address_and_command(tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailable) as error:
        load_tower("ViT-L-14", "openai", tmp_path)
    message = str(error.value)
    for file in OPENAI["ViT-L-14"]:
        assert file.filename in message
        assert file.sha256 in message
        assert file.source in message
    command = "dali-aesthetic download --encoder ViT-L-14 --weights openai"
    assert f"{command} --model-dir {tmp_path}" in message
    assert "HF_HUB_OFFLINE" in message


def test_the_error_of_a_missing_head_names_the_same() -> None:
    with pytest.raises(WeightsUnavailable) as error:
        load_head("laion-v2", "ViT-L-14", 768, None)
    message = str(error.value)
    assert "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0" in message
    assert "dali-aesthetic download --encoder ViT-L-14 --head laion-v2 --model-dir DIR" in message


def test_other_bytes_in_the_model_dir_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "ViT-L-14.pt"
    path.write_bytes(CONTENT)
    with pytest.raises(WeightsUnavailable) as error:
        load_tower("ViT-L-14", "openai", tmp_path)
    for part in (str(path), SHA256, OPENAI["ViT-L-14"][1].sha256):
        assert part in str(error.value)


def test_the_model_dir_comes_first(tmp_path: Path) -> None:
    model_dir = tmp_path / "models"
    for folder in (published.cache_dir(), model_dir):
        folder.mkdir(parents=True)
        (folder / "file.pt").write_bytes(CONTENT)
    assert resolve(_weights(_file()), model_dir).path == str(model_dir / "file.pt")
    file = resolve(_weights(_file()), None)
    assert file.path == str(published.cache_dir() / "file.pt")
    assert (file.name, file.sha256, file.source) == ("x", SHA256, "https://example.org/file.pt")


def test_a_download_goes_to_the_model_dir_or_the_cache(tmp_path: Path, server: str) -> None:
    file = _file(f"{server}/file.pt")
    model_dir = tmp_path / "models"
    found = published.download(_weights(file), model_dir)
    assert found.path == str(model_dir / "file.pt")
    assert Path(found.path).read_bytes() == CONTENT
    assert found.sha256 == SHA256
    assert resolve(_weights(file), None).path == str(published.cache_dir() / "file.pt")
    assert [p.name for p in model_dir.iterdir()] == ["file.pt"]


def test_a_download_of_other_bytes_is_not_kept(tmp_path: Path, server: str) -> None:
    with pytest.raises(WeightsUnavailable, match=f"the download has sha256 {SHA256}"):
        published.download(_weights(_file(f"{server}/file.pt", sha256="0" * 64)), tmp_path / "models")
    assert list((tmp_path / "models").iterdir()) == []


def test_the_next_file_is_tried_after_a_failed_download(server: str) -> None:
    weights = _weights(_file(f"{server}/absent.pt"), _file(f"{server}/file.pt"))
    assert resolve(weights, None).source == f"{server}/file.pt"


def test_an_unreachable_hub_fails_at_once(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published.hub, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(WeightsUnavailable, match="refused"):
        resolve(_weights(OPENAI["ViT-B-32"][0]), None)


HUB_FILE = PublishedFile(
    filename="model.pt", sha256=SHA256, repo="someone/model", revision="a" * 40, hub_path="file.pt"
)


@pytest.fixture
def hub_server(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub, on this machine: it has `HUB_FILE`."""
    folder = tmp_path / "www" / HUB_FILE.repo / "resolve" / HUB_FILE.revision
    folder.mkdir(parents=True)
    (folder / HUB_FILE.hub_path).write_bytes(CONTENT)
    monkeypatch.setattr(published.hub, "ENDPOINT", server)
    template = f"{server}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(published.hub, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.mark.usefixtures("hub_server")
def test_doctor_warns_of_weights_that_a_run_downloads_with_their_size(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OPENAI, "ViT-B-32", (HUB_FILE,))
    monkeypatch.setitem(LAION_V1, "ViT-B-32", (_file(f"{server}/absent.pt"), _file(f"{server}/file.pt")))

    def found() -> list[tuple[str, str, str]]:
        model = ModelConfig(encoder="ViT-B-32", heads=("laion-v1",))
        return [(f.verdict, f.detail, f.fix) for f in examine(model, "cpu") if f.check == "weights"]

    tower, head = found()
    assert tower[:2] == (
        "warn", f"weights 'openai' are not on this machine: `run` downloads 7 bytes from {HUB_FILE.source}"
    )  # fmt: skip
    assert tower[2] == "to do it now: dali-aesthetic download --encoder ViT-B-32 --weights openai"
    assert head[0] == "warn"
    assert f"7 bytes from {server}/file.pt" in head[1]
    assert not list(published.cache_dir().parent.glob("**/*.pt")), "nothing was downloaded"
    monkeypatch.setattr(published.hub, "HF_HUB_OFFLINE", True)
    assert {one[0] for one in found()} == {"fail"}
    assert "HF_HUB_OFFLINE is set" in found()[0][1]


@pytest.mark.usefixtures("hub_server")
def test_a_hub_file_goes_to_the_hubs_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    file = resolve(_weights(HUB_FILE), None)
    assert Path(file.path).is_relative_to(published.hub.HF_HUB_CACHE)
    assert file.sha256 == SHA256
    monkeypatch.setattr(published.hub, "HF_HUB_OFFLINE", True)
    assert resolve(_weights(HUB_FILE), None) == file


@pytest.mark.usefixtures("hub_server")
def test_a_hub_file_goes_to_the_model_dir(tmp_path: Path) -> None:
    model_dir = tmp_path / "models"
    file = published.download(_weights(HUB_FILE), model_dir)
    assert file.path == str(model_dir / "model.pt")
    assert [p.name for p in model_dir.iterdir()] == ["model.pt"]
    assert resolve(_weights(HUB_FILE), model_dir) == file


def test_a_snapshot_folder_in_the_model_dir_is_found(tmp_path: Path) -> None:
    path = tmp_path / HUB_FILE.repo / HUB_FILE.hub_path
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    assert resolve(_weights(HUB_FILE), tmp_path).path == str(path)


def test_a_head_known_by_its_revision_alone_comes_from_the_hubs_cache(tmp_path: Path) -> None:
    file = LAION_V2[-1]
    folder = "models--" + file.repo.replace("/", "--")
    path = Path(published.hub.HF_HUB_CACHE) / folder / "snapshots" / file.revision / file.hub_path
    path.parent.mkdir(parents=True)
    safetensors.torch.save_file(random_head_state(768), path)
    (tmp_path / file.filename).write_bytes(path.read_bytes())  # ignored: no sha256 pins it
    assert load_head("laion-v2", "ViT-L-14", 768, tmp_path)[1].path == str(path)


def test_every_published_file_is_pinned() -> None:
    for file in [*(f for files in (*OPENAI.values(), *LAION_V1.values()) for f in files), *LAION_V2]:
        assert len(file.sha256) == 64 or len(file.revision) == 40
        assert not file.repo or len(file.revision) == 40
        assert file.source.startswith("https://")


def test_download_needs_nothing_for_random_weights_and_paths(tmp_path: Path) -> None:
    assert download("ViT-B-32", "random:3", ["random", str(tmp_path / "head.pth")], None) == []


@pytest.mark.parametrize(
    ("encoder", "weights", "head", "message"),
    [
        ("ViT-H-14", "openai", "laion-v1", "OpenAI published no weights for encoder 'ViT-H-14'"),
        ("ViT-B-32", "openai", "laion-v2", "'laion-v2' was trained on embeddings of ViT-L-14"),
        ("ViT-L-14-336", "openai", "laion-v2", "'laion-v2' was trained on embeddings of ViT-L-14"),
        ("ViT-H-14", "random", "laion-v1", "'laion-v1' was trained on embeddings of ViT-L-14 or ViT-B-32"),
        ("RN50", "openai", "laion-v1", "ResNet"),
    ],
)
def test_download_refuses_unknown_combinations(encoder: str, weights: str, head: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        download(encoder, weights, [head], None)


def test_a_seed_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="the seed of random weights is a number"):
        load_tower("ViT-B-32", "random:x", None)


REPO, COMMIT = "someone/tiny", "c" * 40
NAME = f"hf-hub:{REPO}"


@pytest.fixture
def repo(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The repository's files, as open_clip pushes them, with timm's tower beside them."""
    folder, cache = tmp_path / "repo", tmp_path / "hub" / "models--someone--tiny"
    folder.mkdir()
    model = open_clip.create_model(tiny, pretrained=None)
    safetensors.torch.save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    safetensors.torch.save_file({"blocks.0.x": torch.zeros(1)}, folder / "model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"quick_gelu": True}}))
    real, commits = huggingface_hub.snapshot_download, {None: COMMIT, "v2": "d" * 40}
    monkeypatch.setattr(published.hub, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "require_online", lambda endpoint: None)

    def snapshot(
        repo: str,
        *,
        revision: str | None = None,
        allow_patterns: list[str] | None = None,
        local_dir: Path | None = None,
        local_files_only: bool = False,
    ) -> str:
        if local_files_only:
            return real(
                repo,
                revision=revision,
                allow_patterns=allow_patterns,
                local_files_only=True,
                cache_dir=tmp_path / "hub",
            )
        commit = commits[revision]
        target = local_dir or cache / "snapshots" / commit
        target.mkdir(parents=True)
        for path in folder.iterdir():
            if any(fnmatch.fnmatch(path.name, pattern) for pattern in allow_patterns or ["*"]):
                shutil.copy(path, target)
                if local_dir:  # as the client does
                    note = target / ".cache/huggingface/download" / f"{path.name}.metadata"
                    note.parent.mkdir(parents=True, exist_ok=True)
                    note.write_text(f"{commits[revision]}\netag\n1.0\n")
        (cache / "refs").mkdir(parents=True, exist_ok=True)
        (cache / "refs" / (revision or "main")).write_text(commit)
        # By this list of all files newer clients judge whether a snapshot is complete.
        files = {path.name: {"size": path.stat().st_size, "blob_id": ""} for path in folder.iterdir()}
        tree = {"format_version": 1, "files": files}
        (cache / "trees").mkdir(exist_ok=True)
        (cache / f"trees/{commit}.json").write_text(json.dumps(tree))
        return str(target)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    sizes = [SimpleNamespace(rfilename=path.name, size=600_000_000) for path in folder.iterdir()]
    info = SimpleNamespace(siblings=[*sizes, SimpleNamespace(rfilename="README.md", size=10**12)])
    monkeypatch.setattr(huggingface_hub, "model_info", lambda repo, **options: info)
    monkeypatch.setattr(
        huggingface_hub,
        "list_repo_files",
        lambda repo, revision=None: [path.name for path in folder.iterdir() if commits[revision]],
    )
    return folder


def test_a_repository_is_downloaded_once_and_its_commit_and_hash_recorded(
    tiny: str, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ((_, missing),) = present(tiny, NAME, [], None)
    assert f"dali-aesthetic download --encoder {tiny} --weights {NAME}" in str(missing)
    tower, file = load_tower(tiny, NAME, None)
    assert tower.spec.quick_gelu, "by the configuration beside the weights"
    assert file.name == NAME
    assert file.sha256 == hash_file(repo / "open_clip_model.safetensors")
    assert file.source == f"https://huggingface.co/{REPO}/tree/{COMMIT}"
    assert not Path(file.path).with_name("model.safetensors").exists()
    monkeypatch.setattr(huggingface_hub, "list_repo_files", None)
    assert load_tower(tiny, NAME, None)[1] == file
    assert present(tiny, NAME, [], None) == [(NAME, file)]


def test_a_download_to_the_model_dir_is_found_there(tiny: str, repo: Path, tmp_path: Path) -> None:
    (file,) = download(tiny, NAME, [], tmp_path / "models")
    assert file.path == str(tmp_path / "models" / REPO / "open_clip_model.safetensors")
    assert file.source == f"https://huggingface.co/{REPO}/tree/{COMMIT}"
    assert load_tower(tiny, NAME, tmp_path / "models")[1] == file


def test_a_revision_is_another_download_and_its_commit_is_recorded(
    tiny: str, repo: Path, tmp_path: Path
) -> None:
    at_main = load_tower(tiny, NAME, None)[1]
    model = open_clip.create_model(tiny, pretrained=None)
    safetensors.torch.save_file(model.state_dict(), repo / "open_clip_model.safetensors")
    assert "not on this machine" in str(present(tiny, f"{NAME}@v2", [], None)[0][1])
    at_v2 = load_tower(tiny, f"{NAME}@v2", None)[1]
    assert at_v2.sha256 != at_main.sha256
    assert (at_v2.name, at_v2.source) == (f"{NAME}@v2", f"https://huggingface.co/{REPO}/tree/{'d' * 40}")
    assert load_tower(tiny, NAME, None)[1] == at_main
    (copied,) = download(tiny, f"{NAME}@v2", [], tmp_path / "models")
    assert Path(copied.path).parent == tmp_path / "models" / f"{REPO}@v2"
    assert (copied.sha256, copied.source) == (at_v2.sha256, at_v2.source)
    assert load_tower(tiny, f"{NAME}@v2", tmp_path / "models")[1] == copied
    with pytest.raises(WeightsUnavailable, match=f"{REPO}@v3"):
        load_tower(tiny, f"{NAME}@v3", None)


HALF = (0.5, 0.5, 0.5)


@pytest.fixture
def entry(tiny: str, repo: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """open_clip's entry of the tag `web` for `repo`, which has no configuration."""
    (repo / "open_clip_config.json").unlink()
    found: dict[str, object] = {"hf_hub": f"{REPO}/", "mean": HALF, "std": HALF, "quick_gelu": True}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, tiny, {"web": found})
    return found


@pytest.mark.parametrize("weights", ["web", NAME])
def test_a_repository_without_a_configuration_has_what_open_clip_registered(
    tiny: str, entry: dict[str, object], weights: str
) -> None:
    """With another mean, std or GELU every score would be wrong."""
    expected = replace(spec_of(tiny), mean=HALF, std=HALF, quick_gelu=True)
    if weights == "web":
        assert known_spec(tiny, weights, None) == expected, "before the download"
    assert load_tower(tiny, weights, None)[0].spec == expected
    assert known_spec(tiny, weights, None) == expected, "as `doctor` says"
    del entry["quick_gelu"]  # then open_clip takes GELU
    assert not load_tower(tiny, weights, None)[0].spec.quick_gelu


def test_a_configuration_beside_the_weights_comes_first(
    tiny: str, entry: dict[str, object], repo: Path
) -> None:
    (repo / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"quick_gelu": False}}))
    spec = load_tower(tiny, "web", None)[0].spec
    assert (spec.quick_gelu, spec.mean) == (False, HALF), "what it doesn't say is the entry's"


def test_a_tag_whose_images_are_squashed_is_refused_before_the_download(
    tiny: str, entry: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    entry["resize_mode"] = "squash"
    monkeypatch.setattr(huggingface_hub, "list_repo_files", None)
    for ask in (load_tower, known_spec):
        with pytest.raises(ValueError, match="resize_mode squash"):
            ask(tiny, "web", None)


@pytest.mark.usefixtures("entry")
def test_doctor_and_run_agree_on_a_tag(tiny: str, tmp_path: Path) -> None:
    model = ModelConfig(encoder=tiny, weights="web", heads=("random:0",))

    def found() -> tuple[str, str]:
        return next((one.verdict, one.detail) for one in examine(model, "cpu") if one.check == "weights")

    verdict, detail = found()
    assert verdict == "warn"
    assert f"`run` downloads 1.2 GB from https://huggingface.co/{REPO}" in detail
    (file,) = download(tiny, "web", [], None)
    assert found() == ("ok", f"web: {file.path} {file.sha256[:12]}")
    config = Config(input=("x",), output=str(tmp_path), device="cpu", model=model)
    record = run_record(config, build_worker(config))
    assert (record["identity"]["mean"], record["identity"]["quick_gelu"]) == ([*HALF], True)
    assert record["weights"][0]["source"].endswith(COMMIT)


def test_a_tag_of_open_clip_names_its_repository(tiny: str) -> None:
    assert hub.hub_repo("ViT-B-32", "laion2b_s34b_b79k") == HubRepo("laion/CLIP-ViT-B-32-laion2B-s34B-b79K")
    assert hub.hub_repo("ViT-L-14", "dfn2b") == HubRepo("apple/DFN2B-CLIP-ViT-L-14")
    assert hub.hub_repo(tiny, "laion2b_s34b_b79k") is None
    with pytest.raises(ValueError, match=r"did you mean laion2b_s34b_b79k"):
        load_tower("ViT-B-32", "laion2b_s34b_b79", None)


@pytest.mark.parametrize("problem", ["no weights", "unreachable"])
def test_a_repository_that_gives_no_weights_is_told_with_the_command(
    tiny: str, repo: Path, monkeypatch: pytest.MonkeyPatch, problem: str
) -> None:
    def unreachable(endpoint: str) -> None:
        raise OSError("unreachable")

    for path in repo.glob("*.safetensors"):
        path.unlink()
    if problem == "unreachable":
        monkeypatch.setattr(hub, "require_online", unreachable)
    expected = "it holds none of" if problem == "no weights" else "unreachable"
    with pytest.raises(WeightsUnavailable, match=rf"{REPO}: {expected}") as error:
        load_tower(tiny, NAME, None)
    assert f"dali-aesthetic download --encoder {tiny} --weights {NAME} --model-dir DIR" in str(error.value)
