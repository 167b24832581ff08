"""A real HTTP server on this machine that serves one file, well or badly, and remembers what it was asked for."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class FileServer:
    """What is served, how badly, and what was asked."""

    content: bytes
    resumable: bool = True
    """Whether it answers requests for a range."""
    breaks_after: int | None = None
    """Bytes after which it closes the connection."""
    status: int = 200
    """Anything but 200 is sent as an error."""
    url: str = ""
    ranges: list[str | None] = field(default_factory=list)
    """The Range header of each request."""

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        asked = request.headers.get("Range")
        self.ranges.append(asked)
        if self.status != 200:
            request.send_error(self.status)
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.resumable else 0
        body = self.content[start:]
        request.send_response(206 if start else 200)
        request.send_header("Content-Length", str(len(body)))
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        request.end_headers()
        request.wfile.write(body[: self.breaks_after])


@contextmanager
def serving(content: bytes, **options: object) -> Iterator[FileServer]:
    """Serve `content` on 127.0.0.1 while the block runs."""
    state = FileServer(content, **options)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.answer(self)

        def log_message(self, format: str, *args: object) -> None:
            """Tests print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}/weights.bin"
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
