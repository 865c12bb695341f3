"""A web server that serves a folder, and misbehaves on demand: for what networks do to package managers.

    with Server(tmp_path / "repo") as server:
        server.fault("*.deb", Cut(after=1000))
        repo.enable(m.path("/"), server.url, only=True)

The one rule: a fault is decided per request from the table at that instant, and every request is
recorded with what was done to it, so a test can prove that the fault was met.
"""

import fnmatch
import http.server
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Self, cast
from urllib.parse import unquote


@dataclass(frozen=True)
class Status:
    """Answer with an error status."""

    code: int = 404


@dataclass(frozen=True)
class Stall:
    """Send *after* bytes of the body, then nothing, until ``Server.release`` or the client goes."""

    after: int = 0


@dataclass(frozen=True)
class Cut:
    """Send *after* bytes of the body, then close the connection."""

    after: int = 0


@dataclass(frozen=True)
class Corrupt:
    """Send the whole body with the byte at *offset* changed."""

    offset: int = 0


Fault = Status | Stall | Cut | Corrupt


@dataclass(frozen=True)
class Request:
    """A request that was answered, and the fault it met."""

    path: str
    fault: Fault | None


class Server:
    """Serves *directory* on 127.0.0.1 (machines share the host's network), at ``url``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.requests: list[Request] = []
        self._faults: list[tuple[str, Fault]] = []
        self._changed = threading.Condition()
        self._released = False
        self._http = _HTTPServer(("127.0.0.1", 0), _Handler)
        self._http.lab = self
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """The address machines reach it at."""
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def fault(self, pattern: str, fault: Fault) -> None:
        """From now on answer requests whose path matches *pattern* (fnmatch, without leading "/") with *fault*."""
        with self._changed:
            self._released = False
            self._faults.append((pattern, fault))

    def heal(self) -> None:
        """Forget all faults; requests that stall go on stalling until ``release``."""
        with self._changed:
            self._faults.clear()

    def release(self) -> None:
        """End every stall by closing its connection."""
        with self._changed:
            self._released = True
            self._changed.notify_all()

    def wait_for_request(self, pattern: str, timeout: float = 60) -> Request:
        """Wait until a request that matches *pattern* was met, and return it. Raises TimeoutError."""
        with self._changed:
            met = self._changed.wait_for(lambda: self._match(pattern), timeout)
            if met is None:
                raise TimeoutError(f"nobody asked for {pattern} in {timeout} s")
            return met

    def _match(self, pattern: str) -> Request | None:
        return next((request for request in self.requests if fnmatch.fnmatch(request.path, pattern)), None)

    def met(self, path: str) -> Fault | None:
        """Record a request; return the fault it meets, the one added last if several match."""
        with self._changed:
            found = next((fault for pattern, fault in reversed(self._faults) if fnmatch.fnmatch(path, pattern)), None)
            self.requests.append(Request(path, found))
            self._changed.notify_all()
            return found

    def wait_for_release(self) -> None:
        """Block a stalled answer."""
        with self._changed:
            self._changed.wait_for(lambda: self._released)


class _HTTPServer(http.server.ThreadingHTTPServer):
    lab: Server
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is what half of the tests are about: no traceback for it."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        lab = cast(_HTTPServer, self.server).lab
        path = os.path.normpath(unquote(self.path.partition("?")[0]).lstrip("/"))
        fault = lab.met(path)
        file = lab.directory / path
        if isinstance(fault, Status):
            self._refuse(fault.code)
            return
        if path.startswith("..") or not file.is_file():
            self._refuse(404)
            return
        body = file.read_bytes()
        if isinstance(fault, Corrupt):
            body = body[: fault.offset] + bytes([body[fault.offset] ^ 0xFF]) + body[fault.offset + 1 :]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if isinstance(fault, Cut | Stall):
            self.wfile.write(body[: fault.after])
            self.wfile.flush()
            self.close_connection = True
            if isinstance(fault, Stall):
                lab.wait_for_release()
            return
        self.wfile.write(body)

    def _refuse(self, code: int) -> None:
        self.send_response(code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the requests are in ``Server.requests``."""
