"""Asking an OpenAI-compatible endpoint: side by side, again after faults that pass, never faster than it allows."""

import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from .judge import Judge

PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})  # statuses that may pass
STOPPING = {
    401: "the key was refused",
    403: "the key may not do this",
    404: "there is no such endpoint or model",
}
FIRST_WAIT = 0.5  # seconds before the second try; doubled for each further one
CHARACTERS = 4  # of a token, about; to keep within a limit of tokens, not to count a price


class NoAnswer(RuntimeError):
    """A question that has no answer this time; the message is the reason, without anything secret."""


@dataclass
class Usage:
    """What was used; tokens as the endpoint counts them."""

    calls: int = 0
    retried: int = 0
    cached: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    uncounted: int = 0  # answers whose endpoint said nothing of tokens
    seconds: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, **more: float) -> None:
        """Count, from any thread."""
        with self.lock:
            for key, value in more.items():
                setattr(self, key, getattr(self, key) + value)

    def counted(self, judge: Judge) -> dict[str, Any]:
        """Return the counts, and the price where the judge has one."""
        own = {key: value for key, value in self.__dict__.items() if key != "lock"}
        prices = (judge.price_in, judge.price_out)
        if any(price is not None for price in prices):
            own["price"] = (self.tokens_in * (prices[0] or 0) + self.tokens_out * (prices[1] or 0)) / 1000
        return own


class Pace:
    """Lets calls go no faster than so much a minute: an even flow, after a first burst of a second's worth."""

    def __init__(self, per_minute: float | None):
        """Take the limit; None: there is none."""
        self.per_second = None if per_minute is None else per_minute / 60
        self.free_at = 0.0
        self.lock = threading.Lock()

    def wait(self, amount: float, stopped: threading.Event) -> None:
        """Wait until `amount` may go, or until everything is stopped."""
        if self.per_second is None:
            return
        with self.lock:
            now = time.monotonic()
            start = max(now, self.free_at)
            self.free_at = max(start, now - 1) + amount / self.per_second
        stopped.wait(max(0.0, start - now))


class Endpoint:
    """An endpoint that is asked with one client and one key, which is read from the environment and kept nowhere."""

    def __init__(self, judge: Judge, usage: Usage):
        """Read the key.

        Raises:
            ValueError: the environment does not have it.
        """
        self.judge, self.usage = judge, usage
        key = os.environ.get(judge.api_key_env, "") if judge.api_key_env else ""
        if judge.api_key_env and not key:
            raise ValueError(
                f"The judge {judge.name} needs a key, and the environment has no {judge.api_key_env}. Set it, for "
                f"example with: export {judge.api_key_env}=..."
            )
        self._secret = key
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx.Limits(max_connections=judge.concurrency, max_keepalive_connections=judge.concurrency)
        self.client = httpx.Client(headers=headers, timeout=judge.timeout, limits=limits, follow_redirects=False)
        self.url = judge.base_url.rstrip("/") + "/chat/completions"
        self.requests, self.tokens = Pace(judge.requests_per_minute), Pace(judge.tokens_per_minute)
        self.stopped = threading.Event()
        self.why_stopped: str | None = None

    def ask_all(
        self, questions: Sequence[str], keep: Callable[[int, dict[str, Any], dict[str, Any]], None]
    ) -> dict[int, str]:
        """Ask all questions; return place -> reason of those without an answer.

        Args:
            questions: the prompts.
            keep: called with place, choice and usage of each answer, as it comes.
        """
        gaps: dict[int, str] = {}
        started = time.monotonic()
        with ThreadPoolExecutor(self.judge.concurrency) as pool:
            asked = {pool.submit(self._ask, question): place for place, question in enumerate(questions)}
            try:
                for done in as_completed(asked):
                    try:
                        keep(asked[done], *done.result())
                    except NoAnswer as error:
                        gaps[asked[done]] = str(error)
            except BaseException:
                self.stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        self.usage.add(seconds=time.monotonic() - started)
        return dict(sorted(gaps.items()))

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    def _ask(self, question: str) -> tuple[dict[str, Any], dict[str, Any]]:
        why = "not asked"
        for attempt in range(self.judge.retries + 1):
            if self.stopped.is_set():
                raise NoAnswer(f"not asked: {self.why_stopped}" if self.why_stopped else "not asked: stopped")
            if attempt:
                self.usage.add(retried=1)
            self.requests.wait(1, self.stopped)
            self.tokens.wait(len(question) / CHARACTERS + self.judge.max_tokens, self.stopped)
            wait = None
            try:
                self.usage.add(calls=1)
                response = self.client.post(self.url, json=self._body(question))
            except httpx.TimeoutException:
                why = "timeout"
            except httpx.HTTPError as error:
                why = f"connection failed ({type(error).__name__})"
            else:
                if response.status_code in STOPPING:
                    self._stop(response.status_code)
                if response.status_code == 200:
                    found = self._read(response)
                    if isinstance(found, tuple):
                        return found
                    why = found
                else:
                    why = f"HTTP {response.status_code}"
                    if response.status_code not in PASSING:
                        raise NoAnswer(why)
                    wait = retry_after(response.headers.get("Retry-After"))
            if attempt < self.judge.retries:
                backed_off = (
                    FIRST_WAIT * 2**attempt * (0.5 + random.random())
                )  # many clients must not come back at once
                self.stopped.wait(min(self.judge.max_wait, max(wait or 0.0, backed_off)))
        raise NoAnswer(why)

    def _stop(self, status: int) -> None:
        self.why_stopped = f"HTTP {status}, {STOPPING[status]}"
        self.stopped.set()
        raise NoAnswer(f"HTTP {status}")

    def _body(self, question: str) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.judge.model,
            "messages": [{"role": "user", "content": question}],
            "temperature": self.judge.temperature,
            "max_tokens": self.judge.max_tokens,
        }
        if self.judge.parser == "logprobs":
            body |= {"logprobs": True, "top_logprobs": 20}
        return body

    def _read(self, response: httpx.Response) -> tuple[dict[str, Any], dict[str, Any]] | str:
        """Return choice and usage, or why there is none."""
        try:
            body = response.json()
            choice = body["choices"][0]
            text = choice["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError):
            return "no valid answer"
        if text is not None and not isinstance(text, str):
            return "no valid answer"
        usage = body.get("usage") if isinstance(body.get("usage"), dict) else {}
        counts = [usage.get("prompt_tokens"), usage.get("completion_tokens")]
        if all(isinstance(count, int) and count >= 0 for count in counts):
            self.usage.add(tokens_in=counts[0], tokens_out=counts[1])
        else:
            self.usage.add(uncounted=1)
        # An endpoint could echo the request's headers: what is kept must not hold the key.
        kept = {"content": self._without_key(text or ""), "logprobs": _top(choice.get("logprobs"))}
        return kept, {"in": counts[0], "out": counts[1]}

    def _without_key(self, text: str) -> str:
        return text.replace(self._secret, "***") if self._secret else text


def _top(logprobs: Any) -> list[list[dict[str, Any]]] | None:
    """Return the likeliest tokens of each place of an answer; None where the endpoint gives none."""
    try:
        return [
            [{"token": str(top["token"]), "logprob": float(top["logprob"])} for top in place["top_logprobs"]]
            for place in logprobs["content"]
        ] or None
    except (KeyError, TypeError, ValueError):
        return None


def retry_after(value: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks to wait for; None where it says nothing that is understood."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None
