"""A hub on loopback, as `huggingface_hub` asks it: what a model is, its files, and refusals by a repository's name."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REFUSED = {  # name of a repository: status, error code
    "org/gated": (403, "GatedRepo"),
    "org/missing": (401, "RepoNotFound"),
}


@contextmanager
def hub(repositories: dict[str, Path]) -> Iterator[tuple[str, list[str]]]:
    """Serves folders as models with one commit; its address, and the paths that were asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(self.path.partition("?")[0]).strip("/")
            asked.append(f"{self.command} {path}")
            name = "/".join(path.removeprefix("api/models/").split("/")[:2])
            if name in REFUSED:
                status, code = REFUSED[name]
                return self.answer(status, b"", {"X-Error-Code": code, "X-Error-Message": "no"} if code else {})
            folder = repositories.get(name)
            if folder is None:
                return self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
            files = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
            kind, _, rest = path.removeprefix("api/models/").removeprefix(name).strip("/").partition("/")
            revision, _, wanted = rest.partition("/")
            if kind in ("revision", "resolve", "tree") and revision not in ("main", COMMIT):
                return self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
            if kind == "resolve":
                if wanted not in files:
                    return self.answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
                content = (folder / wanted).read_bytes()
                etag = f'"{hashlib.sha1(content, usedforsecurity=False).hexdigest()}"'
                return self.answer(200, content, {"ETag": etag, "X-Repo-Commit": COMMIT})
            if kind == "tree":
                sizes = {file: (folder / file).stat().st_size for file in files}
                listed: Any = [{"type": "file", "path": f, "size": size, "oid": ""} for f, size in sizes.items()]
            else:
                listed = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]}
            self.answer(200, json.dumps(listed).encode(), {"content-type": "application/json"})

        def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
