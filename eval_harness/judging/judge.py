"""A judge as configuration: who is asked, how, and how the answer is read. Everything wrong with it is said at once."""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from ledpo_plugin.common.files import read_yaml
from ledpo_plugin.common.problem import Problem, listing, problem, unknown

KINDS = ("http", "local")
PROMPT = Path(__file__).parent / "prompts" / "pairwise.txt"
FIELDS = ("instruction", "output_1", "output_2")
NAME = re.compile(r"[\w.+-]{1,80}")
VERDICTS = ("A", "B")
# A letter by itself, perhaps in brackets or after a word for it, and then nothing or a reason; not the article "A".
_LETTER = r"\A\W*(?:(?i:output|answer|response|assistant|option)\W*)?{letter}(?=\W*\Z|[.):\]*,]|\s*\n)[\s\S]*\Z"
_TIE = r"\A\W*(?i:(?:it is )?(?:a )?tie)\b[\s\S]*\Z"
# Name -> the function of alpaca_eval.completion_parsers that reads an answer, its arguments, and what it reads.
PARSERS: Mapping[str, tuple[str, Mapping[str, Any], str]] = MappingProxyType(
    {
        "letter": (
            "regex_parser",
            {"outputs_to_match": {1: _LETTER.format(letter="A"), 2: _LETTER.format(letter="B"), 1.5: _TIE}},
            "completions",
        ),
        "logprobs": (
            "logprob_parser",
            {"numerator_token": "A", "denominator_tokens": list(VERDICTS), "is_binarize": False, "log_prob_index": 0},
            "completions_all",
        ),
        "ranking": ("ranking_parser", {"model_1_name": "model_1"}, "completions"),
    }
)
ONLY = {
    "http": (
        *("base_url", "api_key_env", "temperature", "max_tokens", "concurrency", "retries", "timeout"),
        *("requests_per_minute", "tokens_per_minute", "price_in", "price_out", "max_wait"),
    ),
    "local": ("template", "adapter", "default_system", "batch_size", "trust_remote_code"),
}
# key -> type, lowest value, whether that itself is allowed.
NUMBERS: Mapping[str, tuple[type, float, bool]] = {
    "temperature": (float, 0, True),
    "max_tokens": (int, 1, True),
    "concurrency": (int, 1, True),
    "retries": (int, 0, True),
    "timeout": (float, 0, False),
    "max_wait": (float, 0, True),
    "requests_per_minute": (float, 0, False),
    "tokens_per_minute": (float, 0, False),
    "price_in": (float, 0, True),
    "price_out": (float, 0, True),
    "batch_size": (int, 1, True),
}


class JudgeError(ValueError):
    """A judge that cannot be asked; the message lists every problem."""


@dataclass(frozen=True)
class Judge:
    """Who compares two answers, and how it is asked."""

    name: str
    kind: str  # http or local
    model: str  # as the endpoint names it; of a local judge a hub name, a folder, or a trained run's folder
    parser: str = "letter"
    prompt: str = ""  # the template's text
    # http
    base_url: str | None = None
    api_key_env: str | None = None  # the environment variable that holds the key; left out: none is sent
    temperature: float = 0.0
    max_tokens: int = 8
    concurrency: int = 4
    retries: int = 5
    timeout: float = 60.0  # seconds
    max_wait: float = 60.0  # seconds between two tries, at most
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    price_in: float | None = None  # per 1000 tokens of prompts, in whatever currency
    price_out: float | None = None
    # local
    template: str | None = None
    adapter: str | None = None
    default_system: str | None = None
    batch_size: int = 8
    trust_remote_code: bool = False
    given: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def deterministic(self) -> bool:
        """Whether the same question surely has the same answer."""
        return self.kind == "local"

    def identity(self) -> dict[str, Any]:
        """Return everything that an answer depends on beside the question."""
        if self.kind == "http":
            own = {key: getattr(self, key) for key in ("model", "temperature", "max_tokens")}
            own["base_url"] = without_credentials(self.base_url)
        else:
            own = {key: getattr(self, key) for key in ("model", "template", "adapter", "default_system")}
        return {"kind": self.kind, "logprobs": self.parser == "logprobs", **own}

    def described(self) -> dict[str, Any]:
        """Return the judge for a record of results: without anything secret."""
        own = {
            key: value for key, value in asdict(self).items() if value is not None and key not in ("given", "prompt")
        }
        if self.base_url:
            own["base_url"] = without_credentials(self.base_url)
        return own | {"prompt_sha256": hashlib.sha256(self.prompt.encode()).hexdigest()}

    def question(self, instruction: str, output_1: str, output_2: str) -> str:
        """Return the prompt for two answers; what stands in the answers is never taken for a placeholder."""
        texts = dict(zip(FIELDS, (instruction, output_1, output_2), strict=True))
        text = re.sub(r"\{(instruction|output_1|output_2)\}", lambda found: texts[found[1]], self.prompt)
        return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")  # half a character cannot be sent


def without_credentials(url: str) -> str:
    """Return an address without a user's name, password and query."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))


def read_judge(given: Mapping[str, Any] | Judge | str | Path) -> Judge:
    """Return a judge from a mapping or a YAML file; paths in a file are relative to the working folder.

    Raises:
        JudgeError: with everything that is wrong with it.
    """
    if isinstance(given, Judge):
        return given
    where = "The judge"
    if isinstance(given, str | Path):
        where = f"The judge {given}"
        try:
            given = read_yaml(Path(given))
        except OSError as error:
            raise JudgeError(f"{where} cannot be read ({error.strerror}). Name a YAML file that can.") from None
    if not isinstance(given, Mapping):
        found = problem("judge", given, "a mapping of keys to values is expected here", "write name:, kind: and model:")
        raise JudgeError(listing(where, [found], "nothing was asked"))
    problems = _problems(given)
    if problems:
        raise JudgeError(listing(where, problems, "nothing was asked"))
    values = {key: value for key, value in given.items() if value is not None}
    values["prompt"] = _prompt(values.get("prompt"))
    return Judge(**values, given=json.loads(json.dumps(dict(given), default=str)))


def _problems(given: Mapping[str, Any]) -> list[Problem]:
    known = [item.name for item in fields(Judge) if item.name != "given"]
    found = [unknown(str(key), key, "key of a judge", known) for key in given if key not in known]
    for key in ("name", "kind", "model"):
        if not isinstance(given.get(key), str) or not given[key].strip():
            found.append(problem(key, given.get(key), "it is missing, empty or no text", f"give {key} a text"))
    name, kind = given.get("name"), given.get("kind")
    if isinstance(name, str) and name.strip() and not NAME.fullmatch(name):
        why = "it becomes the name of a method and of a folder"
        found.append(problem("name", name, why, "use letters, digits, _, ., + and -, at most 80"))
    if isinstance(kind, str) and kind not in KINDS:
        found.append(unknown("kind", kind, "kind of judge", KINDS))
    if given.get("parser", "letter") not in PARSERS:
        found.append(unknown("parser", given["parser"], "parser", PARSERS))
    for other in KINDS:
        if kind in KINDS and other != kind:
            found += [
                problem(key, given[key], f"a judge of kind {kind} has no {key}", f"remove {key}")
                for key in ONLY[other]
                if given.get(key) is not None
            ]
    for key, (kind_of, low, closed) in NUMBERS.items():
        if given.get(key) is not None and not _good(given[key], kind_of, low, closed):
            what = "a whole number" if kind_of is int else "a number"
            bound = "of at least" if closed else "above"
            found.append(problem(key, given[key], f"{what} {bound} {low:g} is expected here", f"set {key} to one"))
    if kind == "http":
        found += _of_http(given)
    if kind == "local":
        found += _of_local(given)
    return found + _of_prompt(given.get("prompt"))


def _good(value: Any, kind: type, low: float, closed: bool) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return number and (value >= low if closed else value > low) and (kind is float or value == int(value))


def _of_http(given: Mapping[str, Any]) -> list[Problem]:
    found = []
    address = urlsplit(str(given.get("base_url") or ""))
    if address.scheme not in ("http", "https") or not address.hostname:
        why = "it is no address of an OpenAI-compatible endpoint"
        found.append(problem("base_url", given.get("base_url"), why, "write for example http://127.0.0.1:8000/v1"))
    elif address.username or address.password:
        why = "it holds a user's name or password, which would end up in files"
        found.append(problem("base_url", without_credentials(given["base_url"]), why, "put the key into api_key_env"))
    variable = given.get("api_key_env")
    if variable is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", str(variable)):
        why = "it is the name of an environment variable, never the key itself"
        found.append(problem("api_key_env", "(not shown)", why, "write for example OPENAI_API_KEY"))
    return found


def _of_local(given: Mapping[str, Any]) -> list[Problem]:
    found = []
    if given.get("parser", "letter") != "logprobs":
        why = "a local judge is read by the probabilities of its verdicts, it writes nothing"
        found.append(problem("parser", given.get("parser", "letter"), why, "set parser: logprobs"))
    if not isinstance(given.get("trust_remote_code", False), bool):
        why = "true or false is expected here"
        found.append(problem("trust_remote_code", given["trust_remote_code"], why, "write true or false"))
    return found


def _of_prompt(value: Any) -> list[Problem]:
    try:
        text = _prompt(value)
    except (OSError, UnicodeDecodeError) as error:
        return [problem("prompt", value, f"it cannot be read ({error})", "name a text file, or leave it out")]
    missing = [f"{{{name}}}" for name in FIELDS if f"{{{name}}}" not in text]
    if missing:
        return [problem("prompt", value, f"it has no {', '.join(missing)}", "write each placeholder where it belongs")]
    return []


def _prompt(value: Any) -> str:
    return Path(value or PROMPT).read_text(encoding="utf-8")
