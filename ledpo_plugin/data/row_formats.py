"""Raw rows of data sets: what LLaMA-Factory reads of them, what it would drop unsaid, and what is read for it here.

LLaMA-Factory reads a pair as a dialogue and two answers, and silently drops every other row. The formats that most
preference data on the hub has are read here and handed on in its own form:

* chosen and rejected as whole dialogues: what both begin with is the prompt (UltraFeedback; TRL, conversational, with
  the prompt beside them or not);
* a prompt and two texts (TRL, standard); `output` as a list of two answers (older alpaca data);
* single answers whose label is 1/0 or "true"/"false", or that stand beside their prompt as messages (TRL, unpaired);
* messages whose keys and roles are those of OpenAI or ShareGPT, whichever of both the entry names.

Nothing here imports LLaMA-Factory or datasets.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

PAIRS, UNPAIRED, INSTRUCTIONS, PROMPTS = "pairs", "unpaired", "instructions", "prompts"
USER, ASSISTANT, SYSTEM, OBSERVATION, FUNCTION = "user", "assistant", "system", "observation", "function"
ASKING, ANSWERING = (USER, OBSERVATION), (ASSISTANT, FUNCTION)
_BETWEEN_RESULTS = "\n</tool_response>\n<tool_response>\n"  # how the host joins results of tools in formatting openai
_TAGGED = {
    **{"user_tag": USER, "assistant_tag": ASSISTANT, "observation_tag": OBSERVATION},
    **{"function_tag": FUNCTION, "system_tag": SYSTEM},
}
_ROLES = {
    **{"user": USER, "human": USER, "assistant": ASSISTANT, "gpt": ASSISTANT, "system": SYSTEM},
    **{"tool": OBSERVATION, "observation": OBSERVATION, "function": FUNCTION, "function_call": FUNCTION},
}
_KEYS = (("role", "content"), ("from", "value"))
_LABELS = {"true": True, "false": False, "1": True, "0": False}
# Columns of rows that were read here.
TURNS, CHOSEN, REJECTED, LABEL, SYSTEM_TEXT = (
    *("ledpo_turns", "ledpo_chosen", "ledpo_rejected"),
    *("ledpo_label", "ledpo_system"),
)
KEPT = ("tools", "images", "videos", "audios")


@dataclass(frozen=True)
class Entry:
    """What an entry of dataset_info.json says of rows; names and defaults are those of LLaMA-Factory's DatasetAttr."""

    formatting: str = "alpaca"
    ranking: bool = False
    system: str | None = None
    tools: str | None = None
    images: str | None = None
    videos: str | None = None
    audios: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    kto_tag: str | None = None
    prompt: str | None = "instruction"
    query: str | None = "input"
    response: str | None = "output"
    history: str | None = None
    messages: str | None = "conversations"
    role_tag: str | None = "from"
    content_tag: str | None = "value"
    user_tag: str | None = "human"
    assistant_tag: str | None = "gpt"
    observation_tag: str | None = "observation"
    function_tag: str | None = "function_call"
    system_tag: str | None = "system"

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> "Entry":
        """Return what an entry says; a key of its `columns` or `tags` that is left out is None, as in the host."""
        found: dict[str, Any] = {"formatting": config.get("formatting", "alpaca")}
        found["ranking"] = config.get("ranking", False) is True
        for part, names in (("columns", COLUMNS), ("tags", TAGS)):
            given = config.get(part)
            if isinstance(given, Mapping):
                found |= {name: value if isinstance(value := given.get(name), str) else None for name in names}
        return cls(**found)

    @classmethod
    def of_attributes(cls, attributes: Any) -> "Entry":
        """Return what LLaMA-Factory's DatasetAttr says."""
        return cls(**{item.name: getattr(attributes, item.name) for item in fields(cls)})


TAGS = tuple(item.name for item in fields(Entry) if item.name.endswith("_tag") and item.name != "kto_tag")
COLUMNS = tuple(item.name for item in fields(Entry) if item.name not in (*TAGS, "formatting", "ranking"))


class RowFault(Exception):
    """Why a row cannot be read: a reason that rows share, and what stands in this one."""

    def __init__(self, reason: str, value: object = "") -> None:
        super().__init__(reason)
        self.reason, self.value = reason, value


@dataclass(frozen=True)
class RowCheck:
    """What becomes of a row: the host reads it, or it is read here, or it is dropped for a reason."""

    by_host: bool
    reason: str = ""
    value: str = ""


Turn = tuple[str, str]  # role and text


def judge(row: Mapping[str, Any], entry: Entry, kind: str) -> RowCheck:
    """Return what becomes of a raw row of `kind` "pairs", "unpaired", "instructions" or "prompts"."""
    try:
        read(row, entry, kind)
    except RowFault as fault:
        return RowCheck(False, fault.reason, _shown(fault.value))
    return RowCheck(_read_by_host(row, entry, kind))


def read(row: Mapping[str, Any], entry: Entry, kind: str) -> dict[str, Any]:
    """Return a raw row in the form that `converted(entry, kind)` describes.

    Raises:
        RowFault: the row cannot be read.
    """
    if kind == PAIRS:
        system, turns, chosen, rejected = _pair(row, entry)
        found = {TURNS: _messages(turns), CHOSEN: _message(chosen), REJECTED: _message(rejected)}
    else:
        system, turns = _dialogue(row, entry, answered=kind != PROMPTS)
        if kind == PROMPTS and len(turns) % 2:  # the host asks for an answer, and takes the prompt alone
            turns = [*turns, (ASSISTANT, "")]
        found = {TURNS: _messages(turns)}
        if kind == UNPAIRED:
            found[LABEL] = _label(row, entry)
            if found[LABEL] and not turns[-1][1]:
                raise RowFault("an empty answer is labelled good (LLaMA-Factory would take it for a bad one)")
    kept = {name: row[name] for name in kept_columns(entry) if name in row}
    return {**found, SYSTEM_TEXT: system, **kept}


def kept_columns(entry: Entry) -> list[str]:
    """Return the columns of tools and media, which are handed on as they are."""
    return [name for name in (getattr(entry, key) for key in KEPT) if name]


def converted(entry: Entry, kind: str) -> dict[str, Any]:
    """Return the fields of an entry that describe rows as `read` returns them."""
    pairs = kind == PAIRS
    tags = {"role_tag": "role", "content_tag": "content", **_TAGGED}
    columns = {"messages": TURNS, "system": SYSTEM_TEXT, "chosen": CHOSEN if pairs else None}
    columns |= {"rejected": REJECTED if pairs else None, "kto_tag": LABEL if kind == UNPAIRED else None}
    columns |= dict.fromkeys(("prompt", "query", "response", "history"))
    # The host adds a system prompt of its own to what is declared as openai; whoever declared it gets it.
    formatting = "openai" if entry.formatting == "openai" else "sharegpt"
    return {"formatting": formatting, "ranking": pairs, **columns, **tags}


def needed_columns(entry: Entry, kind: str) -> list[str]:
    """Return the columns that the entry names for its rows' texts, labels, tools and media."""
    tolerant = entry.formatting == "openai"  # the host then does without system and tools
    names = [None if tolerant and key in ("system", "tools") else getattr(entry, key) for key in ("system", *KEPT)]
    dialogue = entry.formatting != "alpaca"
    names += [entry.messages] if dialogue else [entry.prompt, entry.query, entry.history]
    if kind == PAIRS:
        answers = [entry.chosen, entry.rejected]
        names += answers if any(answers) else [entry.response]
    elif not dialogue and kind != PROMPTS:
        names.append(entry.response)
    if kind == UNPAIRED:
        names.append(entry.kto_tag)
    return [name for name in dict.fromkeys(names) if name]


def _pair(row: Mapping[str, Any], entry: Entry) -> tuple[str, list[Turn], Turn, Turn]:
    chosen, rejected = _answers(row, entry)
    if _is_messages(chosen) and _is_messages(rejected):
        return _whole_dialogues(row, entry, chosen, rejected)
    named = (entry.chosen or entry.response, entry.rejected or entry.response)
    good, bad = _answer(chosen, entry, named[0]), _answer(rejected, entry, named[1])
    system, turns = _prompt(row, entry)
    return system, _asked(turns, entry), good, bad


def _answers(row: Mapping[str, Any], entry: Entry) -> tuple[Any, Any]:
    if entry.chosen or entry.rejected:
        found = [row.get(name) if name else None for name in (entry.chosen, entry.rejected)]
    else:
        found = row.get(entry.response) if entry.response else None
        if not isinstance(found, list) or len(found) != 2:
            raise RowFault(f"column {entry.response!r} is not a list of two answers, the better one first", found)
    kinds = {_is_messages(answer) for answer in found}
    if len(kinds) > 1 and None not in found:
        raise RowFault("one of chosen and rejected is a list of messages, and the other is not")
    return found[0], found[1]


def _answer(value: Any, entry: Entry, column: str | None) -> Turn:
    if isinstance(value, Mapping):
        role, text = _turn(value, entry, column)
        if role not in ANSWERING:
            raise RowFault(f"column {column!r} holds no message of the assistant", role)
        return role, text
    return ASSISTANT, _text(value, column)


def _whole_dialogues(
    row: Mapping[str, Any], entry: Entry, chosen: Sequence[Any], rejected: Sequence[Any]
) -> tuple[str, list[Turn], Turn, Turn]:
    good, bad = _turns(chosen, entry, entry.chosen), _turns(rejected, entry, entry.rejected)
    most = min(len(good), len(bad)) - 1  # at least one message of each is an answer
    shared = next((i for i in range(most) if good[i] != bad[i]), most)
    if len(good) - shared != 1 or len(bad) - shared != 1:
        raise RowFault(
            "chosen and rejected part before their last message (one answer each is compared)", f"message {shared + 1}"
        )
    if good[-1][0] not in ANSWERING or bad[-1][0] not in ANSWERING:
        raise RowFault("chosen or rejected does not end with an answer of the assistant")
    system, turns = _without_system(good[:shared])
    beside_system, beside = _prompt(row, entry)
    if beside[len(beside) - len(turns) :] == turns:  # the prompt that stands beside them has all that they begin with
        system, turns = system or beside_system, beside
    return system or beside_system, _asked(turns, entry), good[-1], bad[-1]


def _prompt(row: Mapping[str, Any], entry: Entry) -> tuple[str, list[Turn]]:
    """Return system prompt and turns of the columns that hold the prompt; no turns where there is none."""
    beside = row.get(entry.system) if entry.system else None
    turns: list[Turn] = []
    dialogue = row.get(entry.messages) if entry.formatting != "alpaca" and entry.messages else None
    question = row.get(entry.prompt) if entry.prompt else None
    if _is_messages(dialogue) or _is_messages(question):
        known = _is_messages(dialogue)
        turns = _turns(dialogue if known else question, entry, entry.messages if known else entry.prompt)
    elif isinstance(dialogue, str):
        turns = [(USER, dialogue)]
    elif dialogue is not None and not isinstance(dialogue, list):
        raise RowFault(f"column {entry.messages!r} holds no messages", dialogue)
    elif entry.formatting == "alpaca" or not entry.messages:
        turns = _alpaca_turns(row, entry)
    system, turns = _without_system(turns)
    return system or (_text(beside, entry.system) if beside else ""), turns


def _alpaca_turns(row: Mapping[str, Any], entry: Entry) -> list[Turn]:
    turns: list[Turn] = []
    for pair in (row.get(entry.history) if entry.history else None) or []:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise RowFault(f"column {entry.history!r} is not a list of pairs of texts", pair)
        turns += [(USER, _text(pair[0], entry.history)), (ASSISTANT, _text(pair[1], entry.history))]
    given = [(name, row[name]) for name in (entry.prompt, entry.query) if name and row.get(name) is not None]
    texts = [_text(value, name) for name, value in given]
    return [*turns, (USER, "\n".join(filter(None, texts)))] if texts else turns


def _dialogue(row: Mapping[str, Any], entry: Entry, answered: bool) -> tuple[str, list[Turn]]:
    """Return system prompt and turns, the answer the last of them where the row has one or must have one."""
    system, turns = _prompt(row, entry)
    if entry.formatting == "alpaca" and entry.response:
        answer = row.get(entry.response)
        if _is_messages(answer):
            rest_system, rest = _without_system(_turns(answer, entry, entry.response))
            system, turns = system or rest_system, rest if rest[: len(turns)] == turns else turns + rest
        elif answered or isinstance(answer, str):
            turns = [*turns, (ASSISTANT, _text(answer, entry.response))]
    _check_order(turns)
    if len(turns) % 2 and answered:
        raise RowFault("the dialogue does not end with an answer of the assistant")
    return system, turns


def _label(row: Mapping[str, Any], entry: Entry) -> bool:
    value = row.get(entry.kto_tag) if entry.kto_tag else None
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.strip().lower() in _LABELS:
        return _LABELS[value.strip().lower()]
    raise RowFault(f"the label in column {entry.kto_tag!r} is neither true nor false, 1 nor 0", value)


def _asked(turns: list[Turn], entry: Entry) -> list[Turn]:
    if not turns:
        raise RowFault(
            "no prompt: name its column as 'prompt' (alpaca) or 'messages' (sharegpt) in the entry's columns. Where "
            "the answers are texts that begin with it (TRL's implicit prompt), split it off into a column of its own"
        )
    _check_order(turns)
    if len(turns) % 2 == 0:
        raise RowFault("the prompt ends with a message of the assistant, not of the user")
    if entry.formatting == "openai" and turns[-1][0] == OBSERVATION:
        raise RowFault("LLaMA-Factory loses a tool's result at a prompt's end in formatting openai: write sharegpt")
    return turns


def _check_order(turns: Sequence[Turn]) -> None:
    if not turns:
        raise RowFault("there are no messages")
    for place, (role, _) in enumerate(turns):
        if role not in (ASKING, ANSWERING)[place % 2]:
            if place == 0:
                raise RowFault("the dialogue does not start with a message of the user", role)
            due = ("the user", "the assistant")[place % 2]
            raise RowFault(
                "messages of user and assistant do not take turns", f"message {place + 1}: {role}, not {due}"
            )


def _turns(messages: Sequence[Any], entry: Entry, column: str | None) -> list[Turn]:
    """Return messages as turns; results of several tools are one turn, as the host has it in formatting openai."""
    turns: list[Turn] = []
    for message in messages:
        role, text = _turn(message, entry, column)
        if role == OBSERVATION and turns and turns[-1][0] == OBSERVATION:
            turns[-1] = (OBSERVATION, turns[-1][1] + _BETWEEN_RESULTS + text)
        else:
            turns.append((role, text))
    return turns


def _turn(message: Any, entry: Entry, column: str | None) -> Turn:
    if not isinstance(message, Mapping):
        raise RowFault(f"a message in column {column!r} is not an object of role and content", message)
    keys = ((entry.role_tag, entry.content_tag), *_KEYS)
    pair = next(((role, text) for role, text in keys if role and role in message and text in message), None)
    if pair is None:
        why = f"a message in column {column!r} has neither the tags that the entry names nor role and content"
        raise RowFault(why, list(message))
    named = {getattr(entry, tag): role for tag, role in _TAGGED.items()}
    given = message[pair[0]]
    role = (named.get(given) or _ROLES.get(given)) if isinstance(given, str) else None
    if role is None:
        raise RowFault(f"a message in column {column!r} is of no role that is known", given)
    calls = message.get("tool_calls")
    if role in ANSWERING and isinstance(calls, list) and calls:
        called = [call.get("function") if isinstance(call, Mapping) else None for call in calls]
        return FUNCTION, json.dumps(called, ensure_ascii=False)
    return role, _text(message[pair[1]], column)


def _text(value: Any, column: str | None) -> str:
    if isinstance(value, str):
        return value
    what = "nothing" if value is None else "a number" if isinstance(value, int | float) else "no text"
    raise RowFault(f"column {column!r} holds {what} where a text is needed", "" if value is None else value)


def _without_system(turns: list[Turn]) -> tuple[str, list[Turn]]:
    return (turns[0][1], turns[1:]) if turns and turns[0][0] == SYSTEM else ("", turns)


def _is_messages(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, Mapping) for item in value) and bool(value)


def _message(turn: Turn) -> dict[str, str]:
    return {"role": turn[0], "content": turn[1]}


def _messages(turns: Sequence[Turn]) -> list[dict[str, str]]:
    return [_message(turn) for turn in turns]


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _read_by_host(row: Mapping[str, Any], entry: Entry, kind: str) -> bool:
    """Whether LLaMA-Factory's own converter reads a row that can be read at all."""
    if kind == UNPAIRED and not isinstance(row.get(entry.kto_tag), bool):
        return False
    if entry.formatting == "alpaca":
        if _is_messages(row.get(entry.prompt)):
            return False
        if kind != PAIRS:
            return kind == PROMPTS or isinstance(row.get(entry.response), str)
        return all(name and isinstance(row.get(name), str) for name in (entry.chosen, entry.rejected))
    parts = row.get(entry.messages) if entry.messages else None
    if not _is_messages(parts):
        return False
    parts = list(parts)
    if kind == PROMPTS and (len(parts) - (parts[0].get(entry.role_tag) == entry.system_tag)) % 2:
        return False  # without an answer, which the host asks for
    if kind == PAIRS:
        parts += [row.get(name) if name else None for name in (entry.chosen, entry.rejected)]
    return all(_has_tags(part, entry) for part in parts) and not _joined(parts, entry)


def _joined(messages: Sequence[Mapping[str, Any]], entry: Entry) -> bool:
    """Whether calls or results of tools must be put together, which the host does in formatting openai alone."""
    if entry.formatting == "openai":
        return False
    results = [message[entry.role_tag] == entry.observation_tag for message in messages]
    return any(message.get("tool_calls") for message in messages) or any(map(all, pairwise(results)))


def _has_tags(message: Any, entry: Entry) -> bool:
    if not isinstance(message, Mapping) or entry.role_tag not in message or entry.content_tag not in message:
        return False
    if entry.formatting != "openai" and not isinstance(message[entry.content_tag], str):
        return False
    return message[entry.role_tag] in [getattr(entry, tag) for tag in _TAGGED]


def described(name: str, faults: Sequence[tuple[str, str]], all_rows: bool = True) -> str:
    """Return how many rows of a data set cannot be read, why, and the first of each kind; rows count from 1.

    Args:
        name: of the data set or its file.
        faults: of every row its reason ("" where it can be read) and what stands there.
        all_rows: False where more rows follow that were not looked at.
    """
    found: dict[str, list[int]] = {}
    for place, (reason, _) in enumerate(faults):
        if reason:
            found.setdefault(reason, []).append(place)
    parts = []
    for reason, places in sorted(found.items(), key=lambda item: -len(item[1])):
        value = faults[places[0]][1]
        parts.append(f"{len(places)}: {reason} (first: row {places[0] + 1}{': ' + value if value else ''})")
    of = f"{'' if all_rows else 'the first '}{len(faults)} rows"
    return f"{sum(map(len, found.values()))} of {of} of {name} cannot be read: {'; '.join(parts)}"
