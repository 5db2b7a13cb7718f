"""A real HTTP server in the place of an OpenAI-compatible endpoint: judges with planted tastes, and with faults."""

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ANSWERS = re.compile(r"Answer A:\n(.*)\n\nAnswer B:\n(.*)\n\nWhich answer", re.DOTALL)


def answers_of(question: str) -> tuple[str, str]:
    """Return the two answers that the default prompt shows."""
    found = ANSWERS.search(question)
    return found[1], found[2]


def longer(question: str) -> str:
    """The taste of a judge that likes length."""
    one, two = map(len, answers_of(question))
    return "A" if one > two else "B"


def first(question: str) -> str:
    """The taste of a judge that likes what it reads first."""
    return "A"


def good(question: str) -> str:
    """A judge that knows: the answer with the word good in it is better."""
    one, two = answers_of(question)
    return "A" if "good" in one and "good" not in two else "B"


class JudgeServer:
    """A server on a free port of this machine; `behave` says what it does with each request.

    `behave(question, n)` gets the question and how often it was asked before; it returns a text, a status, or a
    function that is given the handler.
    """

    def __init__(self, behave: Callable[[str, int], Any]):
        self.behave = behave
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                question = body["messages"][0]["content"]
                with server.lock:
                    n = server.asked[question]
                    server.asked[question] += 1
                    server.headers.append(dict(self.headers))
                    server.times.append(time.monotonic())
                found = server.behave(question, n)
                if callable(found):
                    found(self)
                elif isinstance(found, int):
                    self.reply(found, {"error": {"message": f"planted {found}"}})
                else:
                    with server.lock:
                        server.answered[question] += 1
                    self.say(found, body)

            def say(self, text: str, body: dict[str, Any]) -> None:
                choice: dict[str, Any] = {"message": {"role": "assistant", "content": text}}
                if body.get("logprobs") and server.logprobs:
                    top = [{"token": letter, "logprob": value} for letter, value in server.logprobs(text).items()]
                    choice["logprobs"] = {"content": [{"token": text, "logprob": -0.1, "top_logprobs": top}]}
                self.reply(200, {"choices": [choice], "usage": {"prompt_tokens": 100, "completion_tokens": 1}})

            def reply(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
                text = value if isinstance(value, bytes) else json.dumps(value).encode()
                self.send_response(status)
                for key, own in (headers or {}).items():
                    self.send_header(key, own)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def break_off(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b'{"choices": [')
                self.wfile.flush()
                self.close_connection = True
                self.connection.close()

            def log_message(self, *_: Any) -> None:
                pass

        self.logprobs: Callable[[str], dict[str, float]] | None = None
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def judge(self, name: str = "planted", **changes: Any) -> dict[str, Any]:
        """Return the configuration of a judge that asks this server."""
        return {"name": name, "kind": "http", "base_url": self.url, "model": "planted", "timeout": 5} | changes

    def __enter__(self) -> "JudgeServer":
        return self

    def __exit__(self, *_: Any) -> None:
        self.http.shutdown()
        self.http.server_close()
