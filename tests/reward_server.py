"""A real HTTP server in the place of a reward server, in LLaMA-Factory's format; it scores by length, or has faults."""

import json
import threading
import time
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def by_length(texts: Sequence[str]) -> list[float]:
    """The taste of a server that likes length."""
    return [len(text) / 10 for text in texts]


class RewardServer:
    """A server on a free port of this machine; `behave` says what it does with each request.

    `behave(texts, n)` gets the texts and how many requests there were before; it returns a list of scores, any other
    value to be sent as JSON, bytes to be sent as they are, a status, a status with headers, or a function that is given
    the handler.
    """

    def __init__(self, behave: Callable[[Sequence[str], int], Any] = lambda texts, n: by_length(texts)):
        self.behave = behave
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server.lock:
                    n = len(server.requests)
                    server.requests.append(body)
                    server.headers.append(dict(self.headers))
                    server.times.append(time.monotonic())
                found = server.behave(body["messages"], n)
                if callable(found):
                    found(self)
                elif isinstance(found, bytes):
                    self.reply(200, found)
                elif isinstance(found, int):
                    self.reply(found, b'{"error": "planted"}')
                elif isinstance(found, tuple):
                    self.reply(found[0], b'{"error": "planted"}', found[1])
                else:
                    found = {"scores": found} if isinstance(found, list) else found
                    self.reply(200, json.dumps(found).encode())

            def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
                self.send_response(status)
                for key, value in (headers or {}).items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def break_off(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b'{"scores": [')
                self.wfile.flush()
                self.close_connection = True
                self.connection.close()

            def drip(self, seconds: float) -> None:
                """Send an answer byte by byte, each of them in time, all of them too late."""
                body = json.dumps({"scores": [1.0]}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                try:
                    for byte in body:
                        self.wfile.write(bytes([byte]))
                        self.wfile.flush()
                        time.sleep(seconds / len(body))
                except OSError:
                    pass  # the client has left

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1/score/evaluation"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def __enter__(self) -> "RewardServer":
        return self

    def __exit__(self, *_: Any) -> None:
        self.http.shutdown()
        self.http.server_close()
