"""Blind comparison by people: the pure parts, a real server that is killed, and two annotators in a real browser."""

import argparse
import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import httpx
import pytest

from eval_harness.annotation import store as store_module
from eval_harness.annotation.assignment import assign
from eval_harness.annotation.command import add_command
from eval_harness.annotation.export import COLUMNS, csv_text, json_text, ratings
from eval_harness.annotation.external import import_ratings
from eval_harness.annotation.guard import PASSWORD, Door, objection, password_from
from eval_harness.annotation.items import read_items
from eval_harness.annotation.problems import AnnotationError
from eval_harness.annotation.store import Store
from eval_harness.annotation.study import Refused, Stale, open_study
from eval_harness.annotation.tally import counted, gaps, tallies, tally_text
from eval_harness.annotation.verdicts import Judgement, undo_event

CHROMIUM = Path("/usr/bin/chromium")
QUIET = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
ROOT = Path(__file__).parents[2]
HOSTILE = (
    '<script>window.hit = 1</script><img src=https://example.invalid/x onerror="window.hit = 2">\n'
    "line two  with   spaces, \u202eoverride\u202c and \x07 bell, <b>bold</b> &amp; an end"
)
RUN = (
    "import argparse, sys; from eval_harness.annotation.command import add_command; "
    "parser = argparse.ArgumentParser(); add_command(parser.add_subparsers()); "
    "arguments = parser.parse_args(sys.argv[1:]); sys.exit(arguments.run_command(arguments))"
)
TIME = "2026-01-31T12:00:00.000+00:00"


def outputs(folder: Path, count: int = 20, generators=("model-alpha", "model-beta")) -> list[Path]:
    """Write one file of outputs for each generator; the first prompt has the hostile output, in the first file."""
    paths = []
    for number, generator in enumerate(generators):
        rows = [
            {
                "instruction": f"Question {i}?",
                "output": f"Words {'xyz'[number]} number {i}. " * 20,
                "generator": generator,
            }
            for i in range(count)
        ]
        if number == 0:
            rows[0]["output"] = HOSTILE
        folder.mkdir(parents=True, exist_ok=True)
        paths.append(folder / f"{generator}.json")
        paths[-1].write_text(json.dumps(rows))
    return paths


def written(path: Path, value) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


@pytest.fixture
def study(tmp_path):
    return open_study(read_items(outputs(tmp_path, 6)), tmp_path / "folder", seed=3)


# ---- items


def test_items_are_the_same_from_json_jsonl_and_in_any_order(tmp_path):
    one, two = outputs(tmp_path, 5)
    items = read_items([one, two])
    assert [item.prompt for item in items] == [f"Question {i}?" for i in range(5)]
    assert items[0].generators == ("model-alpha", "model-beta")
    assert items[0].output_of("model-alpha") == HOSTILE
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in json.loads(two.read_text())) + "\n\n"
    jsonl = written(tmp_path / "two.jsonl", "\ufeff" + lines)
    assert read_items([one, jsonl]) == items
    assert {item.id for item in read_items([two, one])} == {item.id for item in items}
    pairs = [
        {
            "instruction": i.prompt,
            "output_1": i.outputs[1],
            "output_2": i.outputs[0],
            "generator_1": "model-beta",
            "generator_2": "model-alpha",
        }
        for i in items
    ]
    assert [item.id for item in read_items([written(tmp_path / "pairs.json", pairs)])] == [item.id for item in items]


def test_three_files_are_compared_with_each_other_or_with_the_first(tmp_path):
    paths = outputs(tmp_path, 4, ("a", "b", "c"))
    assert Counter(item.generators for item in read_items(paths)) == {("a", "b"): 4, ("a", "c"): 4, ("b", "c"): 4}
    first = read_items(paths, against_first=True)
    assert Counter(item.generators for item in first) == {("a", "b"): 4, ("a", "c"): 4}


def test_all_problems_of_outputs_at_once(tmp_path):
    good = [{"instruction": f"Q{i}", "output": "", "generator": "good"} for i in range(3)]
    bad = [
        {"instruction": "Q0", "output": "x", "generator": "bad"},
        {"instruction": "Q0", "output": "y", "generator": "bad"},
        {"instruction": "Q1", "output": None, "generator": "bad"},
        {"instruction": "Q2", "output": "z"},
        {"instruction": " ", "output": 3, "generator": "bad\u202e"},
        {"instruction": "other", "output": "z", "generator": "bad"},
    ]
    paths = [
        written(tmp_path / "good.json", good),
        written(tmp_path / "again.json", good),
        written(tmp_path / "bad.json", bad),
        written(tmp_path / "empty.json", " \n"),
        written(tmp_path / "none.json", "[]"),
        written(tmp_path / "broken.json", '[{"instruction": '),
        written(tmp_path / "deep.json", "[" * 100_000),
        written(tmp_path / "lines.jsonl", '{"instruction": "a"}\n[1]\nnope\n'),
        tmp_path / "absent.json",
    ]
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"[\xff]")
    with pytest.raises(AnnotationError) as raised:
        read_items([*paths, binary])
    text = str(raised.value)
    for expected in (
        'both have the generator "good"',
        'row 3: "output" is missing',
        'row 4: "generator" is missing. A row has the fields instruction, output, generator.',
        'row 5: "instruction" is empty',
        'row 5: "output" is not text',
        'row 5: "generator" has hidden characters',
        "row 2: the prompt was there before",
        "1 prompt of",
        '"other"',
        "empty.json is empty",
        "none.json has no rows",
        "broken.json is not valid JSON",
        "deep.json is not valid JSON (nested too deeply)",
        "lines 2, 3 are not a JSON object",
        "absent.json cannot be read (No such file or directory)",
        "binary.json is not UTF-8 text: byte 2",
    ):
        assert expected in text, (expected, text)
    assert len(raised.value.problems) == 15, text


def test_problems_of_pairs(tmp_path):
    with pytest.raises(AnnotationError, match="leaves nothing to compare"):
        read_items(outputs(tmp_path, 2)[:1])
    row = {"instruction": "Q", "output_1": "x", "output_2": "y", "generator_1": "a", "generator_2": "b"}
    rows = [row, row | {"generator_2": "a"}, row | {"generator_1": "b", "generator_2": "a"}, row | {"generator_2": "c"}]
    with pytest.raises(AnnotationError) as raised:
        read_items([written(tmp_path / "pairs.json", rows)])
    assert "row 2: generator_1 and generator_2 are the same" in str(raised.value)
    assert "row 3: the prompt was there before" in str(raised.value)
    many = written(tmp_path / "many.json", [{"instruction": str(i)} for i in range(1000)])
    with pytest.raises(AnnotationError) as raised:
        read_items([many])
    assert len(raised.value.problems) == 4
    assert "rows 1, 2, 3, 4, 5 and 995 more" in str(raised.value)


# ---- order and sides


def test_order_and_sides_are_shuffled_balanced_and_reproducible(tmp_path):
    items = read_items(outputs(tmp_path, 40, ("a", "b", "c")))
    ann, bob = assign(items, "ann", 1), assign(items, "bob", 1)
    assert assign(items[::-1], "ann", 1) == ann
    orders = [[one.item.id for one in shown] for shown in (ann, bob, assign(items, "ann", 2))]
    assert all(set(order) == {item.id for item in items} for order in orders)
    assert len({tuple(order) for order in [*orders, [item.id for item in items]]}) == 4
    for shown in (ann, bob):
        left = Counter((frozenset(one.item.generators), one.left) for one in shown)
        assert len(left) == 6
        assert set(left.values()) == {20}
    assert {one.token for one in ann} & {one.token for one in bob} == set()
    one = ann[0]
    assert one.texts == (one.item.output_of(one.left), one.item.output_of(one.right))
    assert [one.winner(choice) for choice in ("left", "right", "tie")] == [one.left, one.right, None]


# ---- the log


def verdict(annotator="ann", item="i1", winner="a", **changes) -> dict:
    return {**Judgement(annotator, item, winner, "a", 1.5, TIME).event(), **changes}


def test_log_is_replayed_with_undo_and_by_several_stores(tmp_path):
    one, two = Store(tmp_path), Store(tmp_path)
    one.update(lambda state: [verdict(item="i1"), verdict(item="i2", winner=None)])
    two.update(lambda state: [undo_event("ann", state.history["ann"][-1], TIME), verdict("bob")])
    state = one.read()
    assert set(state.current) == {("ann", "i1"), ("bob", "i1")}
    assert state.history == {"ann": ["i1"], "bob": ["i1"]}
    assert Store(tmp_path).read() == state == two.read()
    one.update(lambda state: [verdict(item="i9", source="import")])
    assert one.read().history["ann"] == ["i1"], "what was imported is not undone on the page"


@pytest.mark.parametrize("torn", [b'{"event": "verd', b"\xff\x00", b"[" * 100_000])
def test_a_torn_last_line_is_counted_and_spoils_nothing(tmp_path, torn):
    running = Store(tmp_path)
    running.update(lambda state: [verdict(item="i1")])
    with running.path.open("ab") as file:
        file.write(torn)
    for store in (running, Store(tmp_path)):
        state = store.read()
        assert (set(state.current), state.unreadable) == ({("ann", "i1")}, 1)
    running.update(lambda state: [verdict(item="i2")])
    for store in (running, Store(tmp_path)):
        state = store.read()
        assert (set(state.current), state.unreadable) == ({("ann", "i1"), ("ann", "i2")}, 1)


def test_events_that_are_none_are_counted(tmp_path):
    bad = [
        3,
        {"event": "other"},
        verdict(annotator=""),
        verdict(item=4),
        verdict(seconds="1"),
        verdict(seconds=-1),
        verdict(time="noon"),
        verdict(source="x"),
        {key: value for key, value in verdict().items() if key != "winner"},
    ]
    lines = [json.dumps(event) for event in [*bad, verdict()]] + [json.dumps(verdict()).replace("1.5", "NaN"), ""]
    (tmp_path / "verdicts.jsonl").write_text("\n".join(lines))
    state = Store(tmp_path).read()
    assert (len(state.current), state.unreadable) == (1, len(bad) + 1)


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.update(lambda state: [verdict(item="i1")])
    before = store.path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_module.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        store.update(lambda state: [verdict(item="i2")])
    monkeypatch.undo()
    assert store.path.read_bytes() == before
    store.update(lambda state: [verdict(item="i3")])
    assert set(store.read().current) == {("ann", "i1"), ("ann", "i3")} == set(Store(tmp_path).read().current)


def test_many_threads_and_stores_lose_nothing(tmp_path):
    stores = [Store(tmp_path), Store(tmp_path)]

    def judge(number):
        for i in range(10):
            stores[number % 2].update(lambda state, i=i: [verdict(f"a{number}", f"i{i}")])

    threads = [threading.Thread(target=judge, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    state = Store(tmp_path).read()
    assert (len(state.current), state.unreadable) == (40, 0)


# ---- what annotators do


def test_a_study_goes_on_where_it_was(study):
    view = study.view("ann")
    assert (view["stage"], view["done"], view["total"], view["undo"]) == ("item", 0, 6, None)
    token = view["item"]["token"]
    for _ in range(2):  # an answer that got lost is asked for again
        after = study.judge("ann", token, "left", 2.0)
        assert (after["done"], after["undo"]) == (1, token)
    with pytest.raises(Stale, match="judged already"):
        study.judge("ann", token, "right", 2.0)
    again = open_study(study.items, study.folder)
    assert again.view("ann") == after
    assert again.undo("ann", token) == view
    with pytest.raises(Stale):
        again.undo("ann", token)
    with pytest.raises(Stale):
        again.judge("bob", token, "left", 2.0)
    for choice, seconds in (("up", 1), (["left"], 1), ("left", float("nan")), ("left", True), ("left", "1")):
        with pytest.raises(Refused):
            again.judge("ann", token, choice, seconds)


def test_pages_never_name_a_generator_and_show_what_is_hidden(study):
    texts = []
    view = study.view("ann")
    while view["stage"] == "item":
        texts.append(json.dumps(view, ensure_ascii=False))
        view = study.judge("ann", view["item"]["token"], "tie", 0)
    together = "\n".join([*texts, json.dumps(view)])
    assert "model-" not in together
    assert "[U+202E]override[U+202C] and [U+0007] bell" in together
    assert all(item.id not in together for item in study.items)


def test_names_and_folders(study, tmp_path):
    study.judge("Ann", study.view("Ann")["item"]["token"], "tie", 0)
    assert study.name_of("  ann ") == "Ann"
    for name in (None, "", "  ", "x" * 61, "a\u202eb", "a\nb", 3):
        with pytest.raises(Refused):
            study.name_of(name)
    closed = open_study(study.items, study.folder, annotators=["Ann", "Bob"])
    assert closed.name_of("bob") == "Bob"
    with pytest.raises(Refused, match="not one of the annotators"):
        closed.name_of("eve")
    with pytest.raises(AnnotationError, match=r"seed is 4, but .* was started with seed 3"):
        open_study(study.items, study.folder, seed=4)
    with pytest.raises(AnnotationError, match="more than once"):
        open_study(study.items, study.folder, annotators=["Ann", "ann", ""])
    (study.folder / "study.json").write_text("{")
    with pytest.raises(AnnotationError, match="damaged"):
        open_study(study.items, study.folder)
    (study.folder / "study.json").unlink()
    with pytest.raises(AnnotationError, match="has verdicts"):
        open_study(study.items, study.folder)
    with pytest.raises(AnnotationError, match="is a file"):
        open_study(study.items, written(tmp_path / "file", ""))


# ---- out and in


def judged(study, annotator, winners):
    for winner in winners:
        token = study.view(annotator)["item"]["token"]
        shown = study.assigned(annotator)[token]
        choice = "tie" if winner is None else "left" if winner == shown.left else "right"
        study.judge(annotator, token, choice, 1.25)


def test_export_and_tallies(study):
    judged(study, "ann", ["model-alpha", None, "model-beta", "model-beta"])
    judged(study, "=bob", ["model-alpha"])
    state = study.store.read()
    rows = ratings(study.items, state)
    assert [row["annotator"] for row in rows] == ["ann"] * 4 + ["=bob"]
    assert Counter(row["verdict"] for row in rows[:4]) == {"1": 1, "tie": 1, "2": 2}
    for row in rows[:4]:
        shown = next(one for one in study.assigned("ann").values() if one.item.id == row["item_id"])
        assert row["left"] == str(1 + shown.item.generators.index(shown.left))
    ann, bob, everyone = tallies(counted(study.items, state)[0])
    assert (ann.wins_1, ann.ties, ann.wins_2, ann.win_rate_2) == (1, 1, 2, 0.625)
    assert (bob.annotator, bob.wins_1, bob.count) == ("=bob", 1, 1)
    assert (everyone.annotator, everyone.wins_1, everyone.ties, everyone.wins_2) == (None, 2, 1, 2)
    assert re.search(r"all +model-alpha +model-beta +2 +1 +2 +50.0 %", tally_text([ann, bob, everyone]))
    table = list(csv.DictReader(io.StringIO(csv_text(rows))))
    assert tuple(table[0]) == COLUMNS
    assert table[4]["annotator"] == "'=bob", "no formula for a spreadsheet"
    whole = json.loads(json_text(study.items, state))
    assert whole["ratings"] == rows
    assert whole["gaps"] == {"verdicts_of_unknown_items": 0, "unreadable_lines": 0}


def test_verdicts_of_other_items_are_kept_and_reported(study):
    judged(study, "ann", [None] * 6)
    fewer = study.items[:4]
    known, unknown = counted(fewer, study.store.read())
    assert (len(known), len(unknown)) == (4, 2)
    assert gaps(unknown, study.store.read())["verdicts_of_unknown_items"] == 2


@pytest.mark.parametrize("kind", ["csv", "json", "jsonl", "semicolons"])
def test_what_was_exported_can_be_imported(study, tmp_path, kind):
    judged(study, "ann", ["model-alpha", None, "model-beta"])
    judged(study, "=bob", ["model-beta"])
    state = study.store.read()
    rows = ratings(study.items, state)
    text = {
        "csv": csv_text(rows),
        "json": json_text(study.items, state),
        "jsonl": "\n".join(json.dumps(row) for row in rows),
        "semicolons": "\ufeff" + csv_text(rows).replace(",", ";"),
    }[kind]
    other = open_study(study.items, tmp_path / "other")
    path = written(tmp_path / "ratings", text)
    assert import_ratings(path, other) == (4, 0)
    assert import_ratings(path, other) == (0, 4)
    assert ratings(study.items, other.store.read()) == rows
    assert other.view("ann")["done"] == 3
    assert other.view("ann")["undo"] is None


def test_generators_of_a_rating_may_be_the_other_way_round(study, tmp_path):
    item = study.items[0]
    row = {
        "item_id": item.id,
        "generator_1": "model-beta",
        "generator_2": "model-alpha",
        "annotator": "ann",
        "verdict": 1,
        "left": 2,
    }
    import_ratings(written(tmp_path / "r.json", [row]), study)
    (found,) = ratings(study.items, study.store.read())
    assert (found["verdict"], found["left"], found["seconds"]) == ("2", "1", None)


def test_all_problems_of_ratings_at_once_and_nothing_is_taken(study, tmp_path):
    study = open_study(study.items, study.folder, annotators=["ann", "bob"])
    judged(study, "bob", ["model-alpha"])
    row = {
        "item_id": study.items[0].id,
        "generator_1": "model-alpha",
        "generator_2": "model-beta",
        "annotator": "ann",
        "verdict": "1",
    }
    rows = [
        row,
        row | {"annotator": "ANN"},
        row | {"item_id": "nope"},
        row | {"verdict": "3"},
        row | {"annotator": "eve"},
        row | {"generator_1": "gamma"},
        row | {"left": "0", "seconds": "soon", "time": "noon"},
        {"item_id": study.items[1].id},
        row | {"annotator": "bo\u202eb", "seconds": -1},
    ]
    with pytest.raises(AnnotationError) as raised:
        import_ratings(written(tmp_path / "r.json", rows), study)
    text = str(raised.value)
    for expected in (
        "row 2: the same annotator judged the same item",
        'row 3: unknown item_id "nope"',
        'row 4: unknown verdict "3". Write 1, 2 or tie',
        'row 5: unknown annotator "eve". This study\'s are ann, bob',
        'row 6: generator_1 and generator_2 are not "model-alpha" and "model-beta"',
        'row 7: unknown left "0"',
        "rows 7, 9: seconds",
        "row 7: time",
        "row 8: generator_1, generator_2, annotator, verdict missing",
        'row 9: annotator "bo[U+202E]b"',
    ):
        assert expected in text, (expected, text)
    (theirs,) = ratings(study.items, study.store.read())
    against = {**theirs, "verdict": "tie"}
    with pytest.raises(AnnotationError, match="another verdict of this item already"):
        import_ratings(written(tmp_path / "r.json", [row, against]), study)
    assert len(study.store.read().current) == 1
    for text, expected in (("a,b\n1,2\n", "no column item_id"), ("", "is empty"), ('a,"b\n', "not valid CSV")):
        with pytest.raises(AnnotationError, match=expected):
            import_ratings(written(tmp_path / "r.csv", text), study)


def test_command_imports_and_exports(tmp_path, capsys):
    paths = [str(path) for path in outputs(tmp_path, 2)]
    item = read_items([Path(path) for path in paths])[1]
    row = {
        "item_id": item.id,
        "generator_1": "model-alpha",
        "generator_2": "model-beta",
        "annotator": "ann",
        "verdict": "2",
    }
    ratings_file = written(tmp_path / "r.json", [row])
    parser = argparse.ArgumentParser()
    add_command(parser.add_subparsers())
    common = ["annotate", *paths, "--folder", str(tmp_path / "f"), "--export"]
    args = parser.parse_args([*common, str(tmp_path / "out.csv"), "--import", str(ratings_file)])
    assert args.run_command(args) == 0
    assert "1 new ratings" in capsys.readouterr().out
    (found,) = csv.DictReader((tmp_path / "out.csv").open())
    assert found["verdict"] == "2"
    args = parser.parse_args([*common, "out.xls"])
    with pytest.raises(ValueError, match=r"End it in \.csv or \.json"):
        args.run_command(args)


# ---- who may use the page


def test_requests_that_are_refused():
    good = {
        "host": "127.0.0.1:80",
        "origin": "http://127.0.0.1:80",
        "content-type": "application/json",
        "content-length": "2",
    }
    assert objection("POST", good) is None
    assert objection("GET", {"host": "localhost:9"}) is None
    for method, changes, status in (
        ("GET", {"host": "evil.example"}, 421),
        ("GET", {"host": "127.0.0.1.evil.example:80"}, 421),
        ("GET", {"host": "127.0.0.1:80@evil"}, 421),
        ("GET", {"host": ""}, 421),
        ("POST", {"origin": "http://evil.example"}, 403),
        ("POST", {"origin": "http://127.0.0.1:81"}, 403),
        ("POST", {"origin": "null"}, 403),
        ("POST", {"content-type": "text/plain"}, 415),
        ("POST", {"content-length": ""}, 411),
        ("POST", {"content-length": "64001"}, 413),
        ("PUT", {}, 405),
    ):
        assert objection(method, good | changes)[0] == status, (method, changes)


def test_guessing_gets_slow():
    clock = [0.0]
    door = Door("right", clock=lambda: clock[0])
    waits = []
    for _ in range(8):
        assert not door.opens("wrong")
        assert not door.opens("right"), "during the wait even the right one is not looked at"
        waits.append(door.wait())
        clock[0] += door.wait()
    assert waits == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert not door.opens(None)
    clock[0] += 30
    assert door.opens("right")
    assert door.wait() == 0


def test_an_empty_password_is_refused():
    assert password_from({}) is None
    assert password_from({PASSWORD: "x"}) == "x"
    with pytest.raises(ValueError, match="is set, but empty"):
        password_from({PASSWORD: " "})


# ---- a real server


class Server:
    """The command in a process of its own."""

    def __init__(self, folder: Path, paths, port: int | None = None, password: str | None = None):
        environment = {key: value for key, value in os.environ.items() if key != PASSWORD}
        environment |= {PASSWORD: password} if password else {}
        command = [sys.executable, "-c", RUN, "annotate", *map(str, paths), "--folder", str(folder)]
        self.process = subprocess.Popen(
            [*command, *(["--port", str(port)] if port else [])],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.said = []
        for line in self.process.stdout:
            self.said.append(line)
            if found := re.search(r"http://127\.0\.0\.1:(\d+)/", line):
                self.url, self.port = found[0].rstrip("/"), int(found[1])
                return
        raise AssertionError("".join(self.said))

    def kill(self, number=signal.SIGKILL) -> str:
        self.process.send_signal(number)
        rest = self.process.communicate(timeout=60)[0]
        return "".join(self.said) + rest


@pytest.fixture
def start(tmp_path):
    servers = []

    def begin(*arguments, **options):
        servers.append(Server(*arguments, **options))
        return servers[-1]

    yield begin
    for server in servers:
        if server.process.poll() is None:
            server.kill()


def client(server: Server) -> httpx.Client:
    return httpx.Client(base_url=server.url, headers={"Origin": server.url}, timeout=60, trust_env=False)


def test_a_killed_server_has_lost_nothing(tmp_path, start):
    paths, folder = outputs(tmp_path, 10), tmp_path / "folder"
    server = start(folder, paths)
    with client(server) as ann, client(server) as bob:
        views = [http.post("/api/annotator", json={"name": name}).json() for http, name in ((ann, "ann"), (bob, "bob"))]
        for _ in range(3):
            for number, http in enumerate((ann, bob)):
                body = {"token": views[number]["item"]["token"], "choice": "left", "seconds": 1}
                views[number] = http.post("/api/verdict", json=body).json()
        assert ann.get("/export/ratings.csv").status_code == 403, "not before the last pair: it names the models"
    server.kill()
    with (folder / "verdicts.jsonl").open("a") as file:
        file.write('{"event": "verdict", "annota')
    server = start(folder, paths, port=server.port)
    assert "6 verdicts so far" in server.said[0]
    assert "1 line of verdicts.jsonl cannot be read" in server.said[1]
    with client(server) as ann:
        lost = ann.post("/api/verdict", json={"token": views[0]["item"]["token"], "choice": "left", "seconds": 1})
        assert (lost.status_code, "Nothing that was saved is lost" in lost.text) == (401, True)
        assert ann.post("/api/annotator", json={"name": "Ann"}).json() == views[0]
        body = {"token": views[0]["item"]["token"], "choice": "tie", "seconds": 1}
        assert ann.post("/api/verdict", json=body).json()["done"] == 4
    with pytest.raises(AssertionError, match=f"port is {server.port}, which cannot be used"):
        start(folder, paths, port=server.port)
    assert "Traceback" not in server.kill(signal.SIGINT)
    assert len(Store(folder).read().current) == 7


def test_a_server_with_a_password(tmp_path, start):
    server = start(tmp_path / "folder", outputs(tmp_path, 2), password="s3cret päss")
    with client(server) as http:
        assert http.get("/api/state").json() == {"stage": "login"}
        for path, body in (("annotator", {"name": "x"}), ("verdict", {}), ("undo", {})):
            assert http.post(f"/api/{path}", json=body).status_code == 401
        assert http.get("/export/ratings.json").status_code == 401
        assert http.post("/api/login", json={"password": "guess"}).status_code == 403
        early = http.post("/api/login", json={"password": "s3cret päss"})
        assert (early.status_code, early.headers["retry-after"]) == (429, "1")
        for body in (b"", b"[]", b"{", b"[" * 60_000):
            headers = {"Content-Type": "application/json"}
            assert http.post("/api/login", content=body, headers=headers).status_code == 400
        assert http.get("/", headers={"Host": "evil.example"}).status_code == 421
        assert http.post("/api/login", json={}, headers={"Origin": "http://evil.example"}).status_code == 403
        for path in ("/openapi.json", "/docs", "/pages/../server.py", "/export/x"):
            assert http.get(path).status_code in (401, 404)
        page = http.get("/")
        assert "script-src 'self'" in page.headers["content-security-policy"]
        assert "unsafe" not in page.headers["content-security-policy"]
        while (response := http.post("/api/login", json={"password": "s3cret päss"})).status_code == 429:
            threading.Event().wait(0.1)
        assert response.json()["stage"] == "name"
        cookie = response.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert http.post("/api/annotator", json={"name": "ann"}).json()["total"] == 2
        assert http.post("/api/leave", json={}).json() == {"stage": "login"}
        assert http.get("/api/state").json() == {"stage": "login"}
    said = server.kill()
    kept = "".join(path.read_text() for path in (tmp_path / "folder").iterdir())
    assert "s3cret" not in said + kept


# ---- a real browser


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM.is_file():
        pytest.skip(f"{CHROMIUM} is not installed (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield launched
        launched.close()


class Person:
    """A browser of one's own, its messages and its requests."""

    def __init__(self, browser, server: Server, width: int = 1200):
        self.page = browser.new_context(viewport={"width": width, "height": 800}).new_page()
        self.page.set_default_timeout(180_000)  # ms; a busy machine can take longer than the usual 30 s for a page
        self.url, self.messages, self.requests = server.url, [], []
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.messages.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(server.url)

    def enter(self, name: str) -> None:
        self.page.fill("#annotator", name)
        self.page.keyboard.press("Enter")
        self.page.wait_for_selector("#progress-text:visible")

    def press(self, key: str, done: int) -> None:
        """Press a key when the page takes one; wait until so many pairs are judged."""
        self.page.wait_for_selector('.choice[aria-disabled="false"]', state="attached")
        self.page.keyboard.press(key)
        self.until(done)

    def until(self, done: int) -> None:
        self.page.wait_for_selector(f'#progress-text:text-matches("^{done} of")')  # no eval: the page forbids it

    def left_is(self, study, annotator) -> str:
        """Return the generator of the answer on the left of the page."""
        prompt, text = self.page.inner_text("#prompt"), self.page.inner_text("#left")
        item = next(item for item in study.items if item.prompt == prompt)
        return next(name for name in item.generators if item.output_of(name)[:7] == text[:7])

    def check(self) -> None:
        assert self.messages == []
        assert all(request.startswith(self.url) for request in self.requests), self.requests


def test_two_annotators_judge_twenty_pairs(tmp_path, start, browser):
    """Keys and buttons, ties, undo, reload, a restart of the server, export; hostile output stays text."""
    paths, folder = outputs(tmp_path, 20), tmp_path / "folder"
    server = start(folder, paths)
    study = open_study(read_items(paths), folder)
    ann, bob = Person(browser, server), Person(browser, server, width=390)
    ann.enter("ann")
    bob.enter("bob")
    expected = {"ann": {}, "bob": {}}
    hostile_seen = 0
    for done in range(20):
        prompt = ann.page.inner_text("#prompt")
        if prompt == "Question 0?":
            side = "left" if ann.left_is(study, "ann") == "model-alpha" else "right"
            text = ann.page.text_content(f"#{side}")
            assert text == HOSTILE.replace("\u202e", "[U+202E]").replace("\u202c", "[U+202C]").replace(
                "\x07", "[U+0007]"
            )
            assert "line two  with   spaces" in ann.page.inner_text(f"#{side}")
            hostile_seen += ann.page.locator("#item img, #item script, #item b").count() == 0
            ann.page.screenshot(path=tmp_path / "wide.png")
        left = ann.left_is(study, "ann")
        other = {"model-alpha": "model-beta", "model-beta": "model-alpha"}[left]
        key, winner = [("ArrowLeft", left), ("t", None), ("2", other), ("1", left), ("0", None), ("ArrowRight", other)][
            done % 6
        ]
        ann.press(key, done + 1)
        expected["ann"][prompt] = winner
        if done == 4:  # a wrong key, taken back; then a reload
            ann.press("u", 4)
            assert ann.page.inner_text("#prompt") == prompt
            ann.page.reload()
            ann.until(4)
            assert ann.page.inner_text("#prompt") == prompt
            ann.press("ArrowLeft", 5)
            expected["ann"][prompt] = left
    assert hostile_seen == 1
    assert ann.page.evaluate("typeof hit") == "undefined"
    assert "All done" in ann.page.inner_text("#done")
    ann.page.keyboard.press("Control+u")  # somebody else's key
    ann.press("Backspace", 19)
    ann.press("0", 20)
    expected["ann"][prompt] = None

    for done in range(3):
        prompt, left = bob.page.inner_text("#prompt"), bob.left_is(study, "bob")
        bob.page.wait_for_selector('.choice[aria-disabled="false"]')
        bob.page.click("text=1 is better")
        bob.until(done + 1)
        expected["bob"][prompt] = left
    assert bob.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert bob.page.evaluate("getComputedStyle(document.querySelector('#left')).whiteSpace") == "pre-wrap"
    bob.page.screenshot(path=tmp_path / "phone.png")
    bob.check()
    prompt = bob.page.inner_text("#prompt")
    server.kill()
    bob.page.wait_for_selector('.choice[aria-disabled="false"]')
    bob.page.keyboard.press("1")
    bob.page.wait_for_selector("text=Not saved: the server does not answer")
    assert bob.page.inner_text("#prompt") == prompt
    server = start(folder, paths, port=server.port)
    bob.page.wait_for_selector('.choice[aria-disabled="false"]')
    bob.page.keyboard.press("1")
    bob.page.wait_for_selector("#name-form:visible")
    assert bob.page.input_value("#annotator") == "bob"
    bob.page.click("text=Start, or go on")
    bob.until(3)
    assert bob.page.inner_text("#prompt") == prompt
    bob.messages.clear()  # the browser's own words on the connection that broke

    for done in range(3, 20):
        expected["bob"][bob.page.inner_text("#prompt")] = None
        bob.press("t", done + 1)
    exported = {}
    for kind in ("csv", "json"):
        with bob.page.expect_download() as download:
            bob.page.click(f"#{kind}")
        exported[kind] = Path(download.value.path()).read_text()
    table = list(csv.DictReader(io.StringIO(exported["csv"], newline="")))
    assert len(table) == 40
    for row in table:
        winner = expected[row["annotator"]][row["prompt"]]
        assert row["verdict"] == ("tie" if winner is None else {"model-alpha": "1", "model-beta": "2"}[winner])
        assert 0 <= float(row["seconds"]) < 600
    assert [row["verdict"] for row in json.loads(exported["json"])["ratings"]] == [row["verdict"] for row in table]
    ann.check()
    bob.check()


def test_a_browser_with_a_password(tmp_path, start, browser):
    server = start(tmp_path / "folder", outputs(tmp_path, 2), password="open sesame")
    person = Person(browser, server)
    person.page.wait_for_selector("#login:visible")
    person.page.fill("#password", "wrong")
    person.page.keyboard.press("Enter")
    person.page.wait_for_selector("text=This is not the password.")
    person.page.wait_for_timeout(600)  # the wait that follows a wrong one
    person.page.fill("#password", "open sesame")
    person.page.keyboard.press("Enter")
    person.page.wait_for_selector("#name:visible")
    assert person.page.inner_text("#message") == ""
    person.enter("ann")
    person.press("1", 1)
    (cookie,) = person.page.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    person.page.keyboard.press("Tab")
    outline = (
        "getComputedStyle(document.activeElement).outlineStyle + getComputedStyle(document.activeElement).outlineWidth"
    )
    assert person.page.evaluate(outline) == "solid3px"
    refused = {}
    person.page.on("requestfailed", lambda request: refused.update({request.url: request.failure}))
    attack = "document.body.insertAdjacentHTML('beforeend', '<img src=https://example.invalid/x onerror=hit=1>')"
    with pytest.raises(Exception, match="TrustedHTML"):
        person.page.evaluate(attack)
    assert person.page.evaluate("typeof hit") == "undefined"
