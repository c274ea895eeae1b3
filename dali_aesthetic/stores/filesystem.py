"""All other stores, through fsspec: `gs://`, `az://`, `hf://`, `memory://` and the rest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dali_aesthetic.stores.store import NoConditions, ObjectInfo, StoreError
from dali_aesthetic.types import Buffer

_TAGS = ("etag", "ETag", "md5Hash", "content_settings", "generation", "blob_id", "oid", "sha256", "sha")
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "created")
_PIECE = 8 << 20


class FileSystemStore:
    """One bucket of an fsspec file system; keys are below `root`, which ends in `/`.

    fsspec has no conditional reads, so a change is found by a second look (`ObjectInfo.is_guarded`).
    """

    def __init__(self, name: str, system: Any, root: str) -> None:
        self.name, self._system, self._root = name, system, root
        self._below = len(str(system._strip_protocol(root)).rstrip("/")) + 1

    def info(self, key: str) -> ObjectInfo:
        """See `Store`."""
        self._system.invalidate_cache()
        found = self._system.info(self._root + key)
        if found.get("type") == "directory":
            raise FileNotFoundError(2, "it is a folder", self._root + key)
        names = [name for name in _TAGS if found.get(name)] or [name for name in _TIMES if found.get(name)]
        tag = str(found[names[0]]) if names else ""
        return ObjectInfo(size=int(found["size"]), tag=tag, is_guarded=False)

    def read(self, key: str, start: int, end: int, tag: str = "") -> Buffer:
        """See `Store`; the tag can't be checked here."""
        data: bytes = self._system.cat_file(self._root + key, start=start, end=end)
        if len(data) != end - start:
            raise OSError(f"{self.name}/{key}: {len(data)} bytes came instead of {end - start}")
        return data

    def read_all(self, key: str) -> Iterator[Buffer]:
        """See `Store`."""
        with self._system.open(self._root + key, "rb") as file:
            while piece := file.read(_PIECE):
                yield piece

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """See `Store`."""
        self._system.invalidate_cache()
        try:
            found = self._system.find(self._root + prefix, detail=True)
        except FileNotFoundError:  # some have folders
            return
        for name, facts in sorted(found.items()):
            yield name[self._below :], int(facts.get("size") or 0)

    def put(self, key: str, content: Path | bytes) -> None:
        """See `Store`. A failed upload through fsspec leaves nothing visible on object stores."""
        size = content.stat().st_size if isinstance(content, Path) else len(content)
        if isinstance(content, Path):
            self._system.put_file(str(content), self._root + key)
        else:
            self._system.pipe_file(self._root + key, content)
        if (there := self.info(key).size) != size:
            raise OSError(f"{self.name}/{key} has {there} bytes after {size} were sent")

    def create(self, key: str, content: bytes) -> None:
        """See `Store`. fsspec's `mode` is a server-side condition in gcsfs only, so it is not used."""
        raise NoConditions(f"{self.name} has no conditional writes through fsspec")

    def replace(self, key: str, content: bytes, tag: str) -> None:
        """See `Store`."""
        raise NoConditions(f"{self.name} has no conditional writes through fsspec")

    def delete(self, key: str) -> None:
        """See `Store`."""
        try:
            self._system.rm_file(self._root + key)
        except FileNotFoundError:
            return
        except NotImplementedError as error:
            raise StoreError(f"{self.name} can't remove {key}") from error
