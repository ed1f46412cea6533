"""A local server of files for tests: plain HTTP with ranges, and as much of S3 as reading takes."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


@dataclass(frozen=True)
class Request:
    """One request as it was served."""

    method: str
    target: str
    range: str | None
    authorization: str | None
    status: int
    nbytes: int


class Server(ThreadingHTTPServer):
    """Serves a folder; as S3, its folders are the buckets (path-style addresses)."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.lock = Lock()
        self.requests: list[Request] = []
        self.fault: Callable[[_Handler], bool] = lambda _: False
        self.ranges = True  # whether Range is heeded
        self.suffixes = True  # whether "bytes=-n" is, too
        self.moved: dict[str, str] = {}  # paths that lead elsewhere
        self.modified = "Thu, 01 Jan 2026 00:00:00 GMT"
        self.query = ""  # what every request must have, as a signed address does

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def clear(self) -> None:
        self.requests.clear()

    @property
    def nbytes(self) -> int:
        return sum(request.nbytes for request in self.requests)

    def handle_error(self, request, client_address) -> None:
        """A client that gives up mid-way is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def log_message(self, *args) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def note(self, status: int, nbytes: int) -> None:
        asked, signed = self.headers.get("Range"), self.headers.get("Authorization")
        request = Request(self.command, self.path, asked, signed, status, nbytes)
        with self.server.lock:
            self.server.requests.append(request)

    def reply(self, status: int, body: bytes = b"", cut: bool = False, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        sent = b"" if self.command == "HEAD" else body[: len(body) // 2] if cut else body
        self.note(status, len(sent))
        self.wfile.write(sent)
        if cut:
            self.close_connection = True

    def answer(self, cut: bool = False) -> None:
        if not cut and self.server.fault(self):
            return
        parts = urlsplit(self.path)
        query = parse_qs(parts.query)
        if parts.query != self.server.query and "list-type" not in query:
            self.reply(403, b"<Error><Code>SignatureDoesNotMatch</Code></Error>")
            return
        if parts.path in self.server.moved:
            self.reply(302, Location=self.server.moved[parts.path])
            return
        path = self.server.root / unquote(parts.path).lstrip("/")
        if "list-type" in query:
            self.reply(200, self.listing(path, query), Content_Type="application/xml")
            return
        if not path.is_file():
            self.reply(404, b"<Error><Code>NoSuchKey</Code></Error>")
            return
        size, tag = path.stat().st_size, f'"{path.stat().st_size:x}-{path.stat().st_ino:x}"'
        if self.headers.get("If-Match", tag) != tag:
            self.reply(412, b"<Error><Code>PreconditionFailed</Code></Error>")
            return
        common = {
            "Accept_Ranges": "bytes", "ETag": tag,
            "Last_Modified": self.server.modified,
        }  # fmt: skip
        if self.command == "HEAD":
            self.reply(200, Content_Length=str(size), **common)
            return
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if asked and not asked[1] and not self.server.suffixes:
            self.reply(501)
            return
        if not asked or not self.server.ranges:
            self.reply(200, path.read_bytes(), cut, **common)
            return
        start = int(asked[1]) if asked[1] else max(0, size - int(asked[2]))
        stop = min(size, int(asked[2]) + 1) if asked[1] and asked[2] else size
        if start >= size:
            self.reply(416)
            return
        with path.open("rb") as file:
            file.seek(start)
            body = file.read(stop - start)
        self.reply(206, body, cut, Content_Range=f"bytes {start}-{stop - 1}/{size}", **common)

    def listing(self, bucket: Path, query: dict[str, list[str]]) -> bytes:
        """ListObjectsV2, in one page."""
        prefix = query.get("prefix", [""])[0]
        delimiter = query.get("delimiter", [""])[0]
        keys, folders = [], set()
        for path in sorted(bucket.rglob("*")):
            key = path.relative_to(bucket).as_posix()
            if not path.is_file() or not key.startswith(prefix):
                continue
            rest = key[len(prefix) :]
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.split(delimiter)[0] + delimiter)
            else:
                keys.append((key, path.stat().st_size))
        contents = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{size}</Size>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            for key, size in keys
        )
        common = "".join(
            f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>"
            for folder in sorted(folders)
        )
        return (
            f"<ListBucketResult><IsTruncated>false</IsTruncated>{contents}{common}"
            "</ListBucketResult>"
        ).encode()


@contextmanager
def serving(root: Path) -> Iterator[Server]:
    """A server of the folder `root`, in a thread."""
    server = Server(root)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class Failing:
    """A fault: the first `times` requests that `matches` get `status`, 0: no answer, -1: half."""

    status: int
    times: int = 1
    matches: Callable[[str], bool] = lambda _: True
    seen: int = field(default=0)

    def __call__(self, handler: _Handler) -> bool:
        with handler.server.lock:
            if self.seen >= self.times or not self.matches(handler.path):
                return False
            self.seen += 1
        if self.status > 0:
            handler.reply(self.status, b"<Error><Code>SlowDown</Code></Error>")
            return True
        handler.close_connection = True
        if self.status == 0:
            handler.note(0, 0)
            handler.connection.shutdown(socket.SHUT_RDWR)
            return True
        handler.answer(cut=True)
        return True
