"""A stub of the Hugging Face Hub on loopback: what an upload of a data set asks of it, and no more."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any


@dataclass
class Hub:
    """Repositories by name, as files with their contents. It takes `room` large files (LFS objects)."""

    url: str = ""
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    puts: list[str] = field(default_factory=list)
    room: int = 1000
    token: str = "hf_test"

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        parts = path.partition("?")[0].strip("/").split("/")
        if method == "PUT":
            if len(self.objects) >= self.room:
                return 403, {"error": "no room"}
            assert hashlib.sha256(body).hexdigest() == parts[-1]
            self.objects[parts[-1]] = body
            self.puts.append(parts[-1])
            return 200, {}
        if parts[:3] == ["api", "repos", "create"]:
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            if name in self.repos:
                return 409, {"error": "exists", "url": f"{self.url}/datasets/{name}"}
            self.repos[name], self.private[name] = {}, asked.get("visibility") == "private"
            return 200, {"url": f"{self.url}/datasets/{name}", "name": name}
        if parts[:2] == ["api", "validate-yaml"]:
            return 200, {"errors": [], "warnings": []}
        if parts[-4:] == ["info", "lfs", "objects", "batch"]:
            return 200, {
                "transfer": "basic",
                "objects": [self._lfs(one) for one in json.loads(body)["objects"]],
            }
        if len(parts) > 4 and parts[4] in ("preupload", "commit"):
            files = self.repos["/".join(parts[2:4])]
            return self._modes(files, body) if parts[4] == "preupload" else self._commit(files, body)
        return 404, {"error": f"{method} {path}"}

    def _lfs(self, one: dict[str, Any]) -> dict[str, Any]:
        upload = {"upload": {"href": f"{self.url}/lfs/{one['oid']}", "header": {}}}
        return one | ({} if one["oid"] in self.objects else {"actions": upload})

    def _modes(self, files: dict[str, bytes], body: bytes) -> tuple[int, Any]:
        def mode(one: dict[str, Any]) -> dict[str, Any]:
            large = one["path"].endswith((".tar", ".parquet"))
            there = files.get(one["path"])
            oid = {"oid": hashlib.sha256(there).hexdigest()} if large and there is not None else {}
            kind = "lfs" if large else "regular"
            return {"path": one["path"], "uploadMode": kind, "shouldIgnore": False, **oid}

        return 200, {"files": [mode(one) for one in json.loads(body)["files"]]}

    def _commit(self, files: dict[str, bytes], body: bytes) -> tuple[int, Any]:
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
        return 200, {
            "commitOid": "0" * 40,
            "commitUrl": f"{self.url}/datasets/me/x/commit/0",
            "hookOutput": "",
        }

    def download(self, name: str, folder: Path) -> Path:
        """The repository as a folder."""
        for path, content in self.repos[name].items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        return folder


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub for as long as the block runs."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            allowed = self.command == "PUT" or self.headers.get("Authorization") == f"Bearer {hub.token}"
            status, found = (
                hub.answer(self.command, self.path, body) if allowed else (401, {"error": "Invalid username"})
            )
            content = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = handle_one

        def log_message(self, format: str, *args: Any) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield hub
        server.shutdown()
        thread.join()
