"""One annotation: its items, its folder, and what annotators may do. Knows nothing of the web."""

import fcntl
import os
import secrets
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ledpo_plugin.common.files import read_json, write_json
from ledpo_plugin.common.plain_text import visible

from .assignment import Shown, assign
from .items import Item
from .problems import AnnotationError
from .store import LOG, Store
from .verdicts import Judgement, Replay, good_seconds, undo_event

STUDY, FORMAT = "study.json", 1
CHOICES = ("left", "right", "tie")
LONGEST_NAME = 60


class Refused(ValueError):
    """Something an annotator asked for that cannot be done; the message says why and what to do."""


class Stale(Refused):
    """It was asked for something that is no longer on the page."""


def now() -> str:
    """Return the time as ISO 8601, UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@dataclass
class Study:
    """Items under annotation in a folder. `allowed` are the only annotators, if it is not empty."""

    items: Sequence[Item]
    folder: Path
    seed: int
    allowed: Sequence[str] = ()
    store: Store = field(init=False)

    def __post_init__(self) -> None:
        self.store = Store(self.folder)
        self._assigned: dict[str, dict[str, Shown]] = {}

    def assigned(self, annotator: str) -> dict[str, Shown]:
        """Return an annotator's items by token, in order."""
        if annotator not in self._assigned:
            shown = assign(self.items, annotator, self.seed)
            self._assigned[annotator] = {one.token: one for one in shown}
        return self._assigned[annotator]

    def name_of(self, text: Any) -> str:
        """Return an annotator's name as it is kept: as it was first written, whatever its case is now.

        Raises:
            Refused: it is no name, or not one of those that are allowed.
        """
        name = clean_name(text)
        known = self.allowed or self.store.read().annotators()
        for other in known:
            if other.casefold() == name.casefold():
                return other
        if self.allowed:
            raise Refused(
                f"{name} is not one of the annotators of this study. Ask whoever runs it which name is yours."
            )
        return name

    def view(self, annotator: str, state: Replay | None = None) -> dict[str, Any]:
        """Return what an annotator's page shows: texts and numbers, never a generator's name."""
        state = state or self.store.read()
        judged, shown = state.of(annotator), self.assigned(annotator)
        open_ones = (one for one in shown.values() if one.item.id not in judged)
        here = next(open_ones, None)
        by_item = {one.item.id: token for token, one in shown.items()}
        last = [by_item[item] for item in state.history.get(annotator, ()) if item in by_item][-1:]
        view = {
            "stage": "item" if here else "done",
            "annotator": visible(annotator),
            "done": sum(one.item.id in judged for one in shown.values()),
            "total": len(shown),
            "undo": last[0] if last else None,
        }
        if here:
            left, right = here.texts
            view["item"] = {
                "token": here.token,
                "prompt": visible(here.item.prompt),
                "left": visible(left),
                "right": visible(right),
            }
        return view

    def judge(self, annotator: str, token: Any, choice: Any, seconds: Any) -> dict[str, Any]:
        """Record a verdict on disk; return the next view. To repeat the same one changes nothing.

        Raises:
            Refused: the choice or the time is none.
            Stale: the token is not one of the annotator's, or its item has another verdict already.
            OSError: it could not be written; it does not count.
        """
        if choice not in CHOICES:
            raise Refused(f"A choice is one of {', '.join(CHOICES)}.")
        if not good_seconds(seconds):
            raise Refused("seconds is the time taken, a number of 0 or more.")
        shown = self._shown(annotator, token)
        winner = shown.winner(choice)

        def decide(state: Replay) -> list[dict[str, Any]]:
            before = state.current.get((annotator, shown.item.id))
            if before is None:
                return [Judgement(annotator, shown.item.id, winner, shown.left, round(seconds, 2), now()).event()]
            if before.winner != winner:
                raise Stale("This pair was judged already. Undo that verdict to change it.")
            return []

        return self.view(annotator, self.store.update(decide))

    def undo(self, annotator: str, token: Any) -> dict[str, Any]:
        """Take an annotator's last verdict back, which must be the one of `token`; return the next view.

        Raises:
            Stale: it is not the last one, so that a request sent twice takes back one verdict and not two.
            OSError: it could not be written; the verdict holds.
        """
        shown = self._shown(annotator, token)

        def decide(state: Replay) -> list[dict[str, Any]]:
            known = {one.item.id for one in self.assigned(annotator).values()}
            last = [item for item in state.history.get(annotator, ()) if item in known][-1:]
            if last != [shown.item.id]:
                raise Stale("This verdict was taken back already, or is not your last one.")
            return [undo_event(annotator, shown.item.id, now())]

        return self.view(annotator, self.store.update(decide))

    def _shown(self, annotator: str, token: Any) -> Shown:
        shown = self.assigned(annotator).get(token) if isinstance(token, str) else None
        if shown is None:
            raise Stale("This pair is not one of yours. You see the right one now.")
        return shown


def clean_name(text: Any) -> str:
    """Return an annotator's name without spaces around it, in Unicode's composed form.

    Raises:
        Refused: it is empty, too long or has hidden characters.
    """
    name = unicodedata.normalize("NFC", " ".join(text.split(" "))).strip() if isinstance(text, str) else ""
    if not name:
        raise Refused("A name is missing. Write yours.")
    if len(name) > LONGEST_NAME or visible(name) != name or "\n" in name or "\t" in name:
        raise Refused(
            f"A name has at most {LONGEST_NAME} characters, none of them hidden. Write a shorter or plainer one."
        )
    return name


def open_study(
    items: Sequence[Item], folder: Path, *, seed: int | None = None, annotators: Sequence[str] = ()
) -> Study:
    """Return the study of a folder, which is made if it is not there.

    A new one gets `seed`, or one drawn at random, and keeps it: order and sides are then the same after a restart.

    Raises:
        AnnotationError: the folder is of another seed, or is damaged, or a name is no name.
    """
    folder, problems, names = Path(folder), [], []
    for name in annotators:
        try:
            names.append(clean_name(name))
        except Refused as error:
            problems.append(f"annotators holds {name!r}: {error}")
    twice = sorted({name for name in names if sum(name.casefold() == other.casefold() for other in names) > 1})
    if twice:
        problems.append(f"annotators holds {', '.join(twice)} more than once (case does not count). Name each once.")
    if folder.exists() and not folder.is_dir():
        raise AnnotationError("No annotation can start", [*problems, f"{folder} is a file. Name a folder."])
    if problems:
        raise AnnotationError("No annotation can start", problems)
    folder.mkdir(parents=True, exist_ok=True)
    with _starting(folder):
        return Study(items, folder, _seed_of(folder, seed), tuple(names))


def _seed_of(folder: Path, seed: int | None) -> int:
    path = folder / STUDY
    if not path.exists():
        if (folder / LOG).exists():
            problem = f"{folder} has verdicts ({LOG}) but no {STUDY}. Bring that file back, or name another folder."
            raise AnnotationError("No annotation can start", [problem])
        seed = secrets.randbits(62) if seed is None else seed
        write_json(path, {"format": FORMAT, "seed": seed, "created": now()})
        return seed
    study = read_json(path)
    kept = study.get("seed") if isinstance(study, dict) and study.get("format") == FORMAT else None
    if not isinstance(kept, int) or isinstance(kept, bool):
        problem = f"{path} is damaged or of another version. Bring the file back, or name another folder."
        raise AnnotationError("No annotation can start", [problem])
    if seed is not None and seed != kept:
        problem = (
            f"seed is {seed}, but {folder} was started with seed {kept}: order and sides would change half-way. "
            "Leave the seed out, or name another folder."
        )
        raise AnnotationError("No annotation can start", [problem])
    return kept


@contextmanager
def _starting(folder: Path) -> Iterator[None]:
    """Let one process at a time start a study, so that two agree on its seed."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
