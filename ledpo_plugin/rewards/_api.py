"""Rewards from a server, asked as LLaMA-Factory's `reward_model_type: api` asks it."""

import json
import os
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
from torch import Tensor, nn

from ._types import RewardBatch, RewardError, as_rewards
from ._wanted import is_local

KEY = "LEDPO_REWARD_API_KEY"
PASSING = frozenset({408, 425, 429})  # statuses below 500 that may pass
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds between tries; doubled each time
LONGEST_ASKED_WAIT = 600.0  # seconds that a server may ask to be left alone
MOST_BYTES = 2**26


class _Passing(Exception):
    """A fault that may pass; `answered` is whether the server said anything at all that could be kept."""

    def __init__(self, why: str, *, answered: bool = False, wait: float | None = None):
        super().__init__(why)
        self.answered, self.wait = answered, wait


class ServerReward:
    """Asks a reward server: POST {"model": "model", "messages": [texts]} gives {"scores": [numbers]}."""

    passes = 0.0

    def __init__(
        self,
        url: str,
        *,
        timeout: float,
        retries: int,
        batch_size: int,
        log: Callable[[str], None],
        sleep: Callable[[float], None] = time.sleep,
    ):
        """Prepare to ask.

        Args:
            url: of the endpoint, whole.
            timeout: seconds a whole answer may take.
            retries: how often a request is made again.
            batch_size: texts a request.
            log: takes a sentence.
            sleep: waits.
        """
        self.url, self.timeout, self.retries = url, timeout, retries
        self.batch_size, self._log, self._sleep = batch_size, log, sleep
        self._key = os.environ.get(KEY) or None
        # A proxy that the environment names for the world outside is not asked for a server on this machine.
        self._client = httpx.Client(timeout=timeout, trust_env=not is_local(url))

    @property
    def shown(self) -> str:
        """The URL without what may be secret."""
        url = httpx.URL(self.url)
        return str(url.copy_with(username=None, password=None, query=None, fragment=None))

    def score(self, batch: RewardBatch, model: nn.Module) -> Tensor:
        """Return what the server says `[R]`; NaN where, after all tries, it said nothing that is a number.

        Raises:
            RewardError: it cannot be reached, answers with a fault each time, or refuses the request.
        """
        values: list[float | None] = []
        for start in range(0, batch.size, self.batch_size):
            values += self._ask(batch.texts[start : start + self.batch_size])
        return as_rewards(values)

    def try_out(self, text: str) -> None:
        """Ask for the score of one text, so that a server that cannot serve is found before training.

        Raises:
            RewardError: it cannot be reached, refuses the request, or gives no score in any try.
        """
        if None in self._ask([text]):
            raise RewardError(
                f"The reward server {self.shown} gave no score for an answer that it was tried with; the log says what "
                'it said. It is asked with POST {"model": "model", "messages": [texts]}, and must answer '
                '{"scores": [one number per text]}.'
            )

    def _ask(self, texts: Sequence[str]) -> list[float | None]:
        best: list[float | None] = [None] * len(texts)
        wait, answered, why = FIRST_WAIT, False, ""
        for attempt in range(self.retries + 1):
            try:
                scores = self._post(texts)
            except _Passing as fault:
                why, answered, pause = str(fault), answered or fault.answered, fault.wait
            else:
                answered, pause = True, None
                best = [new if old is None else old for old, new in zip(best, scores, strict=True)]
                if None not in best:
                    return best
                why = f"{best.count(None)} of {len(best)} scores are no finite numbers"
            if attempt < self.retries:
                self._sleep(max(wait, pause or 0.0))
                wait = min(2 * wait, LONGEST_WAIT)
        tries = f"{self.retries + 1} tries" if self.retries else "1 try"
        if not answered:
            raise RewardError(
                f"The reward server {self.shown} gives no scores ({tries}): {why}. See that it runs and is reachable "
                "from here, or set reward_timeout and reward_retries higher, then resume."
            )
        lost = f"{best.count(None)} of {len(best)} answers stay without a reward"
        self._log(f"Reward server {self.shown}: {lost} ({tries}): {why}.")
        return best

    def _post(self, texts: Sequence[str]) -> list[float | None]:
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        payload = {"model": "model", "messages": list(texts)}
        try:
            status, given, body = self._exchange(payload, headers)
        except httpx.TimeoutException:
            raise _Passing(f"no answer within {self.timeout:g} seconds") from None
        except httpx.HTTPError as error:
            raise _Passing(f"{type(error).__name__}: {self._safe(str(error))}") from None
        if status >= 500 or status in PASSING:
            raise _Passing(f"it answers {status}: {self._safe(body)}", wait=_asked_wait(given))
        if status != 200:
            raise RewardError(f"The reward server {self.shown} {self._refusal(status, given)}: {self._safe(body)}")
        return self._scores(body, len(texts))

    def _exchange(self, payload: Any, headers: dict[str, str]) -> tuple[int, httpx.Headers, bytes]:
        """Return status, headers and body; the time limit holds for all of it, not for each piece."""
        end, body = time.monotonic() + self.timeout, b""
        with self._client.stream("POST", self.url, json=payload, headers=headers) as response:
            for piece in response.iter_bytes():
                body += piece
                if time.monotonic() > end:
                    raise httpx.ReadTimeout("the whole answer took too long")
                if len(body) > MOST_BYTES:
                    raise _Passing(f"its answer is longer than {MOST_BYTES} bytes", answered=True)
            return response.status_code, response.headers, body

    def _refusal(self, status: int, headers: httpx.Headers) -> str:
        if 300 <= status < 400:
            return f"answers {status} and wants another URL; set reward_model to {self._safe(headers.get('location'))}"
        if status in (401, 403):
            have = "the key in" if self._key else "no key was sent; set"
            return f"answers {status}, not allowed ({have} {KEY})"
        if status in (404, 405):
            return f"answers {status}; LLaMA-Factory's own is http://host:port/v1/score/evaluation"
        return f"refuses the request with {status}"

    def _scores(self, body: bytes, count: int) -> list[float | None]:
        try:
            scores = json.loads(body)["scores"]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise _Passing(f'its answer is no JSON with "scores": {self._safe(body)}', answered=True) from None
        if not isinstance(scores, list) or len(scores) != count:
            found = len(scores) if isinstance(scores, list) else type(scores).__name__
            raise _Passing(f"it gave {found} scores for {count} answers", answered=True)
        return [_finite(score) for score in scores]

    def _safe(self, text: str | bytes | None) -> str:
        """Return the start of what a server said on one line, without control characters and without the key."""
        text = text[:2000].decode("utf-8", "replace") if isinstance(text, bytes) else (text or "")
        if self._key:
            text = text.replace(self._key, "***")
        text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        return text[:200] or "(nothing)"


def _finite(score: Any) -> float | None:
    number = isinstance(score, int | float) and not isinstance(score, bool)
    return float(score) if number and abs(score) < 3e38 else None


def _asked_wait(headers: httpx.Headers) -> float | None:
    """Return the seconds that Retry-After asks for, at most LONGEST_ASKED_WAIT; None where it asks for nothing."""
    text = headers.get("retry-after")
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
        except (TypeError, ValueError):
            return None
    return min(max(seconds, 0.0), LONGEST_ASKED_WAIT) if seconds == seconds else None


def build_api(one: Any, context: Any) -> ServerReward:
    """Return the rewards of a server, which has answered once.

    Raises:
        RewardError: it does not answer as it should.
    """
    own = context.finetuning_args
    server = ServerReward(
        one.where, timeout=own.reward_timeout, retries=own.reward_retries, batch_size=context.rows, log=context.log
    )
    messages = [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4"}]
    prompt, answer = context.template.encode_oneturn(context.tokenizer, messages)
    server.try_out(context.tokenizer.decode([*prompt, *answer], skip_special_tokens=False))
    context.log(f"Reward {one.name}: the server {server.shown}, which answered.")
    return server
