"""A stand-in of the Hugging Face hub: the answers that its client asks for, about folders on this disk."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Error of a dataset -> what the hub says of it.
REFUSALS = {"private": (401, "RepoNotFound"), "gated": (403, "GatedRepo"), "down": (503, "")}


@dataclass
class Hub:
    """Datasets: the folder of each revision, or the kind of their refusal. ``asked`` has the files that were sent."""

    datasets: dict[str, dict[str, Path] | str]
    url: str = ""
    asked: list[str] = field(default_factory=list)


def commit(folder: Path) -> str:
    return hashlib.sha1(str(folder).encode()).hexdigest()


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            words = unquote(urlsplit(self.path).path).strip("/").split("/")
            is_api = words[:2] == ["api", "datasets"]
            words = words[2:] if is_api else words[1:]
            if len(words) < 2:  # nothing about a dataset
                return self.refuse(404, "")
            org, name, *rest = words
            what, *rest = rest or ("revision", "main")
            revisions = hub.datasets.get(f"{org}/{name}", "private")
            if isinstance(revisions, str):
                return self.refuse(*REFUSALS[revisions])
            commits = {commit(folder): folder for folder in revisions.values()}
            folder = (revisions | commits).get(rest[0])
            if folder is None:
                return self.refuse(404, "RevisionNotFound")
            files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
            names = {str(path.relative_to(folder)): path for path in files}
            if what == "resolve":
                return self.send(folder, "/".join(rest[1:]), names)
            if what == "tree":
                rows = [
                    {"type": "file", "path": name, "size": path.stat().st_size, "oid": commit(path)}
                    for name, path in names.items()
                ]
                return self.answer(json.dumps(rows).encode())
            siblings = [{"rfilename": name, "size": path.stat().st_size} for name, path in names.items()]
            return self.answer(
                json.dumps({"id": f"{org}/{name}", "sha": commit(folder), "siblings": siblings}).encode()
            )

        def send(self, folder, name, names):
            if name not in names:
                return self.refuse(404, "EntryNotFound")
            if self.command == "GET":
                hub.asked.append(name)
            content = names[name].read_bytes()
            return self.answer(
                content, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": commit(folder)}
            )

        def refuse(self, status, code):
            self.answer(b"", {"X-Error-Code": code} if code else {}, status)

        def answer(self, content, headers=(), status=200):
            self.send_response(status)
            for name, value in dict(headers).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
