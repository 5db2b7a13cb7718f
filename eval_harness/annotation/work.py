"""What `ledpo eval annotate` does: serve the page, take ratings in, write ratings out."""

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from ledpo_plugin.common.files import write_text

from .export import csv_text, json_text
from .external import import_ratings
from .guard import HOSTS, PASSWORD, password_from
from .items import read_items
from .study import Study, open_study
from .tally import counted, gaps, gaps_text, tallies, tally_text

EXPORTS = (".csv", ".json")


def annotate(
    outputs: Sequence[Path],
    folder: Path,
    *,
    port: int | None = None,
    seed: int | None = None,
    annotators: Sequence[str] = (),
    against_first: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Serve the comparison of outputs on 127.0.0.1 until Ctrl-C; say where. Verdicts are kept in `folder`.

    `port` is a free one, `seed` a random one and everybody may annotate where they are left out. The environment's
    LEDPO_ANNOTATE_PASSWORD is the password, if it is set.

    Raises:
        ValueError: with everything that is wrong with the outputs, or with the folder or the password.
        OSError: the port is taken, or the folder cannot be written.
    """
    from .server import listen, make_app, serve

    password = password_from(os.environ)
    study = open_study(read_items(outputs, against_first=against_first), folder, seed=seed, annotators=annotators)
    with listen(port) as listening:
        port = listening.getsockname()[1]
        for line in _greeting(study, password is not None):
            say(line)
        say(f"Open http://{HOSTS[0]}:{port}/ (Ctrl-C ends it; it goes on where it was)")
        serve(make_app(study, password, port), listening)


def _greeting(study: Study, locked: bool) -> list[str]:
    state = study.store.read()
    known, unknown = counted(study.items, state)
    who = f"for {', '.join(study.allowed)}" if study.allowed else "for whoever gives a name"
    door = "with the password" if locked else f"without a password (set {PASSWORD} to ask for one)"
    return [
        f"{len(study.items)} pairs {who}, {door}; {len(known)} verdicts so far, in {study.folder}",
        *gaps_text(gaps(unknown, state)),
    ]


def export_ratings(study: Study, path: Path) -> list[str]:
    """Write a study's ratings as .csv or .json, by the path's ending; return the tally and what does not count.

    Raises:
        ValueError: the path has another ending.
        OSError: it cannot be written.
    """
    state = study.store.read()
    known, unknown = counted(study.items, state)
    if path.suffix == ".csv":
        from .export import rating

        text = csv_text(rating(item, verdict) for item, verdict in known)
    elif path.suffix == ".json":
        text = json_text(study.items, state)
    else:
        raise ValueError(f"export is {path}, whose ending says no format. Name a file that ends in .csv or .json.")
    write_text(path, text)
    return [f"{len(known)} ratings in {path}", tally_text(tallies(known)), *gaps_text(gaps(unknown, state))]


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    outputs, folder = [Path(path) for path in args.outputs], Path(args.folder)
    annotators = [name.strip() for name in args.annotators.split(",")] if args.annotators else []
    if args.export and Path(args.export).suffix not in EXPORTS:
        raise ValueError(f"--export is {args.export}, whose ending says no format. End it in .csv or .json.")
    if not args.export and not args.take_in:
        annotate(
            outputs,
            folder,
            port=args.port,
            seed=args.seed,
            annotators=annotators,
            against_first=args.against_first,
            say=lambda line: print(line, flush=True),
        )
        return 0
    study = open_study(
        read_items(outputs, against_first=args.against_first), folder, seed=args.seed, annotators=annotators
    )
    for path in args.take_in or ():
        new, known = import_ratings(Path(path), study)
        print(f"{path}: {new} new ratings, {known} that were there already")
    if args.export:
        print("\n".join(export_ratings(study, Path(args.export))))
    return 0
