"""The cache folder, and the variables that move the libraries' caches there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dali_aesthetic.score.backends import cache


def test_the_variable_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "here"))
    assert cache.cache_folder() == tmp_path / "here"
    assert (tmp_path / "here").is_dir()


def test_by_default_it_is_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(cache.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_folder() == tmp_path / "xdg" / "dali_aesthetic"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache.cache_folder() == tmp_path / "home" / ".cache" / "dali_aesthetic"


def test_without_a_home_it_is_in_the_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.delenv(cache.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(cache.tempfile, "gettempdir", lambda: str(tmp_path))
    assert cache.cache_folder() == tmp_path / f"dali_aesthetic-{os.getuid()}"


def test_libraries_use_subfolders_unless_the_user_has_set_their_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path))
    for variable in cache.LIBRARIES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", "/elsewhere")
    cache.use_cache_folder()
    assert os.environ["TRITON_CACHE_DIR"] == "/elsewhere"
    assert os.environ["QUACK_CACHE_DIR"] == str(tmp_path / "quack")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "inductor")


@pytest.mark.parametrize("fault", ["a link", "open to others", "another's"])
def test_a_fallback_folder_that_others_may_write_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """What lies in it is run as code."""
    folder = tmp_path / f"dali_aesthetic-{os.getuid()}"
    if fault == "a link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "elsewhere")
    else:
        folder.mkdir(mode=0o700)
        folder.chmod(0o770 if fault == "open to others" else 0o700)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.delenv(cache.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(cache.tempfile, "gettempdir", lambda: str(tmp_path))
    if fault == "another's":
        own = os.getuid()
        monkeypatch.setattr(cache.os, "getuid", lambda: own + 1)
        folder.rename(tmp_path / f"dali_aesthetic-{own + 1}")
    with pytest.raises(PermissionError, match=rf"only uid \d+ may use.*set {cache.VARIABLE}"):
        cache.cache_folder()


def test_a_cache_that_anybody_may_write_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with HOME=/tmp in a container."""
    monkeypatch.delenv(cache.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "dali_aesthetic").mkdir()
    (tmp_path / "dali_aesthetic").chmod(0o777)
    with pytest.raises(PermissionError, match=f"set {cache.VARIABLE}"):
        cache.cache_folder()
