"""Who may use the page: host and origin of requests, password, sessions, and slow guessing."""

import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

PASSWORD = "LEDPO_ANNOTATE_PASSWORD"
HOSTS = ("127.0.0.1", "localhost")
LARGEST_BODY = 64_000
MOST_SESSIONS = 1000
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def password_from(environment: Mapping[str, str]) -> str | None:
    """Return the password that is set in the environment, or None.

    Raises:
        ValueError: it is set and empty, which is neither a password nor none.
    """
    password = environment.get(PASSWORD)
    if password is not None and not password.strip():
        raise ValueError(f"{PASSWORD} is set, but empty. Give it a password, or unset it to serve without one.")
    return password


def objection(method: str, headers: Mapping[str, str]) -> tuple[int, str] | None:
    """Return why a request is refused before anything else is looked at, as (status, message), or None.

    `headers` have lower-case names. A page elsewhere whose name was made to point here (DNS rebinding) shows in Host;
    one that sends requests here shows in Origin. The port may be any: it may have been forwarded.
    """
    host = headers.get("host", "")
    name, _, port = host.partition(":")
    if name.lower() not in HOSTS or not (port.isdecimal() or port == ""):
        return 421, f"This page is served to this machine only. Open it as http://{HOSTS[0]}:PORT/."
    if method in ("GET", "HEAD"):
        return None
    if method != "POST":
        return 405, "Only GET and POST are served here."
    if headers.get("origin") != f"http://{host}":
        return 403, "The request does not come from this page (its Origin is another, or missing)."
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return 415, "Send JSON, as application/json."
    length = headers.get("content-length", "")
    if not length.isdecimal() or "transfer-encoding" in headers:
        return 411, "Send the length of the body in Content-Length."
    if len(length) > 9 or int(length) > LARGEST_BODY:
        return 413, f"A body has at most {LARGEST_BODY} bytes."
    return None


@dataclass
class Session:
    """What is known of a browser: the annotator it gave the name of, None before that."""

    annotator: str | None = None


class Sessions:
    """Sessions by secret id, in memory: after a restart one logs in again."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[str, Session] = OrderedDict()

    def start(self) -> str:
        """Return the id of a new session; the oldest one ends where there would be too many."""
        id_ = secrets.token_urlsafe(32)
        self._sessions[id_] = Session()
        while len(self._sessions) > MOST_SESSIONS:
            self._sessions.popitem(last=False)
        return id_

    def find(self, id_: str | None) -> Session | None:
        """Return the session of an id, or None."""
        return self._sessions.get(id_) if id_ else None

    def end(self, id_: str | None) -> None:
        """Forget a session."""
        self._sessions.pop(id_ or "", None)


class Door:
    """Checks passwords: in constant time, and after wrong ones only after a wait that doubles each time.

    All come from the same machine, so that the wait is for everybody; who is logged in is not affected.
    """

    def __init__(self, password: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._digest, self._clock = _digest(password), clock
        self._failures, self._closed_until = 0, 0.0

    def wait(self) -> float:
        """Return for how many seconds no password is looked at."""
        return max(0.0, self._closed_until - self._clock())

    def opens(self, password: object) -> bool:
        """Return whether a password is right; False whatever it is, while there is a wait."""
        if self.wait() > 0:
            return False
        if isinstance(password, str) and hmac.compare_digest(_digest(password), self._digest):
            self._failures = 0
            return True
        self._closed_until = self._clock() + min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(self._failures, 10))
        self._failures += 1
        return False


def _digest(text: str) -> bytes:
    # Of the same length whatever the password's is, as the comparison takes as long as its texts are.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
