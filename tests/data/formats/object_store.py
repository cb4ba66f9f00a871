"""A stand-in for S3 in a thread: objects in a dictionary, and as much of the protocol as Lance uses."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

DATE = "Wed, 01 Jan 2025 00:00:00 GMT"
ISO_DATE = "2025-01-01T00:00:00.000Z"


class ObjectStore(ThreadingHTTPServer):
    """Objects by bucket/key, and the parts of uploads."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.requests: list[str] = []
        self.turn = Lock()

    @property
    def environment(self) -> dict[str, str]:
        """What tells Lance of it."""
        return {
            "AWS_ENDPOINT": f"http://127.0.0.1:{self.server_port}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
        }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ObjectStore

    def log_message(self, *arguments: object) -> None:
        pass

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        url = urlsplit(self.path)
        self.key, self.query = unquote(url.path).strip("/"), parse_qs(url.query, keep_blank_values=True)
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with self.server.turn:
            self.server.requests.append(f"{self.command} {self.key}")
        return True

    def answer(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if "list-type" in self.query:
            return self.list()
        content = self.server.objects.get(self.key)
        if content is None:
            return self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        about = {"ETag": etag(content), "Last_Modified": DATE}
        if (wanted := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))) is None:
            return self.answer(200, content, **about)
        first, last = wanted.groups()
        start = int(first) if first else max(len(content) - int(last), 0)
        stop = min(int(last) + 1, len(content)) if first and last else len(content)
        return self.answer(206, content[start:stop], Content_Range=f"bytes {start}-{stop - 1}/{len(content)}", **about)

    def list(self) -> None:
        prefix, delimiter = self.query.get("prefix", [""])[0], self.query.get("delimiter", [""])[0]
        files, folders = [], set()
        for name, content in sorted(self.server.objects.items()):
            bucket, _, key = name.partition("/")
            if bucket != self.key or not key.startswith(prefix):
                continue
            below, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
            if found:
                folders.add(f"<CommonPrefixes><Prefix>{escape(prefix + below)}/</Prefix></CommonPrefixes>")
            else:
                files.append(
                    f"<Contents><Key>{escape(key)}</Key><Size>{len(content)}</Size>"
                    f"<LastModified>{ISO_DATE}</LastModified><ETag>{escape(etag(content))}</ETag></Contents>"
                )
        listed = "".join([*files, *sorted(folders)])
        self.answer(200, f"<ListBucketResult><IsTruncated>false</IsTruncated>{listed}</ListBucketResult>".encode())

    def do_PUT(self) -> None:
        with self.server.turn:
            if "partNumber" in self.query:
                self.server.parts[self.query["uploadId"][0]][int(self.query["partNumber"][0])] = self.body
            elif self.headers.get("If-None-Match") == "*" and self.key in self.server.objects:
                return self.answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
            else:
                self.server.objects[self.key] = self.body
        return self.answer(200, ETag=etag(self.body))

    def do_POST(self) -> None:
        with self.server.turn:
            if "uploads" in self.query:
                upload = str(len(self.server.parts))
                self.server.parts[upload] = {}
                text = f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
                return self.answer(200, text.encode())
            parts = self.server.parts[self.query["uploadId"][0]]
            self.server.objects[self.key] = b"".join(parts[number] for number in sorted(parts))
        text = "<CompleteMultipartUploadResult><ETag>whole</ETag></CompleteMultipartUploadResult>"
        return self.answer(200, text.encode())

    def do_DELETE(self) -> None:
        self.server.objects.pop(self.key, None)
        self.answer(204)


def etag(content: bytes) -> str:
    return f'"{hashlib.md5(content).hexdigest()}"'


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    server = ObjectStore()
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()
