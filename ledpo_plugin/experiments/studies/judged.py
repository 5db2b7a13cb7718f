"""Judges at work in a study: which answers they compare, and what they said."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from eval_harness.agreement.verdicts import Verdict
from eval_harness.annotation.items import Item, make_item
from ledpo_plugin.common.files import read_json, write_json

from .serving import served

VERDICTS = "verdicts.json"


def pairs_of(
    first: str, ours: Sequence[Mapping[str, Any]], second: str, theirs: Sequence[Mapping[str, Any]]
) -> list[Item]:
    """Return what a judge compares: two models' answers to the same prompts, row by row."""
    return [
        make_item(one["instruction"], (one["output"], other["output"]), (first, second))
        for one, other in zip(ours, theirs, strict=True)
    ]


def judge(folder: Path, job: Mapping[str, Any], items: Sequence[Item], log: Any) -> dict[str, Any]:
    """Have a judge compare the items in both orders; what is judged already is kept.

    Args:
        folder: takes the judgements and verdicts.json.
        job: `judge_file`, `repeats`, and `serve`, the arguments of the server to start for it, or None.
        items: the comparisons.
        log: called with sentences.

    Raises:
        ValueError: the judge's file is wrong, or it has no port to serve at.
        RuntimeError: the server does not start.
    """
    from eval_harness.judging import judge_items, read_judge

    own = read_judge(Path(job["judge_file"]))
    with _serving(job.get("serve"), own, folder / "server.log"):
        done = judge_items(items, own, folder / "judgements", repeats=job["repeats"], log=log)
    write_json(folder / VERDICTS, [asdict(verdict) for verdict in done.verdicts])
    return {"judge": own.name, "usage": done.usage, "comparisons": len(items)}


def _serving(arguments: Mapping[str, Any] | None, judge: Any, log: Path) -> Any:
    return served(arguments, port_of(judge.base_url), log) if arguments else nullcontext()


def port_of(base_url: str | None) -> int:
    """Return the port of this machine that a judge is asked at.

    Raises:
        ValueError: it is asked somewhere else.
    """
    address = urlsplit(base_url or "")
    if address.hostname != "127.0.0.1" or not address.port:
        raise ValueError(
            f"The judge's base_url is {base_url!r}, and `serve` starts a server for it on this machine. Write "
            "http://127.0.0.1:PORT/v1 with a free port, or take the judge out of `serve`."
        )
    return address.port


def read_verdicts(folder: Path) -> list[Verdict]:
    """Return a judge's verdicts; items are prompts, without space around them.

    Raises:
        RuntimeError: they are not there.
    """
    rows = read_json(folder / VERDICTS)
    if not isinstance(rows, list):
        raise RuntimeError(f"{folder / VERDICTS} is missing or damaged. Delete {folder} and run this again.")
    return [Verdict(**row | {"item": row["item"].strip()}) for row in rows]
