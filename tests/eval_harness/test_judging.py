"""Judges through the real alpaca_eval: a real HTTP server with planted tastes and faults, kills, and a model here."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from judge_server import JudgeServer, first, good, longer

from eval_harness.agreement.tables import position_rows
from eval_harness.annotation.items import make_item
from eval_harness.judging import JudgeError, judge_items, read_judge, summarise
from eval_harness.judging import openai_client as asking_module
from eval_harness.judging.alpaca import alpaca, official_win_rate
from eval_harness.judging.length_control import OFFICIAL, length_controlled
from eval_harness.judging.openai_client import Pace, retry_after
from eval_harness.judging.summary import text
from ledpo_plugin.cli import main

ROOT = Path(__file__).parents[2]
KEY = "sk-very-secret-0123456789"


def items(count: int = 12, models=("base", "ours"), words=None):
    """Comparisons in which the second model's answer is the good one, and longer in every other."""
    words = words or (lambda i: ("bad " * (1 + 2 * (i % 2)), "good " * 2))
    return [make_item(f"Question {i}?", words(i), models) for i in range(count)]


def judged(server, folder, what=None, repeats=1, **changes):
    said: list[str] = []
    done = judge_items(what or items(), read_judge(server.judge(**changes)), folder, repeats=repeats, log=said.append)
    return done, said


@pytest.fixture(autouse=True)
def quick_tries(monkeypatch):
    monkeypatch.setattr(asking_module, "FIRST_WAIT", 0.01)


# ---- configuration


def test_all_problems_of_a_judge_are_said_at_once():
    with pytest.raises(JudgeError) as error:
        read_judge(
            {
                "name": "a/b", "kind": "http", "base_url": "ftp://x", "api_key_env": KEY, "temprature": 0,
                "concurrency": 0, "timeout": 0, "parser": "leter", "adapter": "x", "prompt": "no/such/file",
            }
        )  # fmt: skip
    text = str(error.value)
    for part in (
        "name: 'a/b'", "model: (not set)", "base_url: 'ftp://x'", "api_key_env", "temprature", "concurrency: 0",
        "timeout: 0", "Did you mean 'letter'", "has no adapter", "cannot be read", "nothing was asked",
    ):  # fmt: skip
        assert part in text
    assert KEY not in text


def test_a_key_in_the_address_is_refused_and_not_shown():
    with pytest.raises(JudgeError) as error:
        read_judge({"name": "a", "kind": "http", "model": "m", "base_url": f"https://user:{KEY}@host/v1"})
    assert "api_key_env" in str(error.value)
    assert KEY not in str(error.value)


def test_a_local_judge_is_read_by_probabilities():
    with pytest.raises(JudgeError, match="set parser: logprobs"):
        read_judge({"name": "a", "kind": "local", "model": "m", "template": "t"})


def test_a_prompt_needs_its_places(tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_text("{instruction} {output_1}")
    with pytest.raises(JudgeError, match=r"it has no \{output_2\}"):
        read_judge({"name": "a", "kind": "http", "model": "m", "base_url": "http://x/v1", "prompt": str(path)})


def test_what_stands_in_an_answer_is_no_place(tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_text("{instruction}|{output_1}|{output_2}")
    judge = read_judge({"name": "a", "kind": "http", "model": "m", "base_url": "http://x/v1", "prompt": str(path)})
    assert judge.question("{output_2}", "{instruction}", "b") == "{output_2}|{instruction}|b"


def test_the_gpt4_judges_of_the_recipes_are_good():
    for path in (ROOT / "yaml_recipes").glob("*/judges/*.yaml"):
        assert read_judge(path).name


# ---- verdicts


def test_a_judge_that_knows(tmp_path):
    with JudgeServer(lambda question, n: good(question)) as server:
        done, _ = judged(server, tmp_path)
        found = summarise(done, items())
    (pair,) = found["pairs"]
    assert (pair["model"], pair["against"]) == ("ours", "base")
    rows = {row["name"]: row for row in pair["rows"]}
    assert rows["win_rate"]["value"] == 1.0
    assert (rows["win_rate"]["wins"], rows["win_rate"]["losses"]) == (12, 0)
    assert pair["alpaca_eval"]["model_second"]["win_rate"] == 100
    assert pair["alpaca_eval"]["both_orders"] == 100
    assert pair["alpaca_eval"]["model_first"]["n_total"] == 12
    position = {row["name"]: row for row in found["position"]}
    assert position["first_position"]["value"] == 0.5
    assert position["swap_consistency"]["value"] == 1
    assert position["parsed"]["reliable"]
    length = {row["name"]: row for row in found["length"]}
    assert length["longer_preferred"]["value"] == 0.5  # the better answer is the longer one in half of them
    assert len(server.asked) == 24  # both orders
    assert found["usage"]["tokens_in"] == 2400
    assert found["provenance"]["versions"]["alpaca_eval"]


def test_a_planted_liking_for_the_first_place_is_exposed(tmp_path):
    with JudgeServer(lambda question, n: first(question)) as server:
        done, _ = judged(server, tmp_path)
        found = summarise(done, items())
    rows = {row["name"]: row for row in found["position"]}
    assert rows["first_position"]["value"] == 1
    assert rows["swap_consistency"]["value"] == 0
    (pair,) = found["pairs"]
    assert next(row for row in pair["rows"] if row["name"] == "win_rate")["value"] == 0.5  # cancelled
    assert pair["alpaca_eval"]["model_first"]["win_rate"] == 100
    assert pair["alpaca_eval"]["model_second"]["win_rate"] == 0


def test_a_planted_liking_for_length_is_exposed(tmp_path):
    with JudgeServer(lambda question, n: longer(question)) as server:
        done, _ = judged(server, tmp_path)
        found = summarise(done, items())
    rows = {row["name"]: row for row in found["length"]}
    assert rows["longer_preferred"]["value"] == 1
    assert rows["length_correlation"]["value"] > 0.8
    (pair,) = found["pairs"]
    assert next(row for row in pair["rows"] if row["name"] == "win_rate")["value"] == 0.5
    assert pair["length_controlled"]["official"] is False
    assert pair["length_controlled"]["win_rate"] is None
    effect = {row["name"]: row for row in pair["length_effect"]}
    assert effect["longer_by"]["value"] == (10 - 4 + 10 - 12) / 2  # "good good " against "bad " and "bad bad bad "
    where = [effect[f"win_rate_where_{name}"] for name in ("longer", "shorter")]
    assert [(row["n"], row["value"]) for row in where] == [(6, 1), (6, 0)]
    assert "log-odds are infinite" in effect["length_log_odds"]["reason"]
    assert "win rate where its answer is shorter: 0.000" in text(found)
    assert "not controlled for length" in text(found)


def test_answers_with_any_characters_in_them(tmp_path):
    words = ("a\x00b", "a\x00c {output_1} {question}"), ("\u2028", "\ud800 lone"), ("good", "")
    what = [make_item(f"{{output_2}} {i}\x00?", pair, ("base", "ours")) for i, pair in enumerate(words)]
    with JudgeServer(lambda question, n: "B") as server:
        done, _ = judged(server, tmp_path, what)
    assert [verdict.preference for verdict in done.verdicts] == [2] * 6
    assert len(server.asked) == 6


def test_equal_answers_are_a_tie_that_costs_nothing(tmp_path):
    same = [make_item("Same?", ("x", "x"), ("base", "ours"))]
    with JudgeServer(lambda question, n: "A") as server:
        done, _ = judged(server, tmp_path, same)
    assert [verdict.preference for verdict in done.verdicts] == ["tie", "tie"]
    assert not server.asked


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("A", 1), ("B.", 2), ("(B)", 2), ("Answer A", 1), ("**B**", 2), ("A: it is shorter", 1), ("[[A]]", 1),
        ("A\n\nbecause B is worse", 1), ("tie", "tie"), ("It is a tie.", "tie"),
        ("A better answer is hard to find", None), ("Both are fine", None), ("", None), ("AB", None),
    ],
)  # fmt: skip
def test_letters(tmp_path, said, wanted):
    with JudgeServer(lambda question, n: said) as server:
        done, _ = judged(server, tmp_path, items(1))
    assert {verdict.preference for verdict in done.verdicts} == {wanted}


def test_weighed_verdicts(tmp_path):
    with JudgeServer(lambda question, n: "A") as server:
        server.logprobs = lambda text: {"A": float(np.log(0.6)), "B": float(np.log(0.2)), "C": -9.0}
        done, _ = judged(server, tmp_path, items(2), parser="logprobs", max_tokens=1)
    assert [verdict.strength for verdict in done.verdicts] == pytest.approx([1.25] * 4)  # 2 - 0.6 / 0.8
    assert {verdict.preference for verdict in done.verdicts} == {1}


def test_log_probabilities_that_are_not_there_are_no_letters(tmp_path):
    with JudgeServer(lambda question, n: "A") as server, pytest.raises(ValueError, match="Set parser: letter"):
        judged(server, tmp_path, items(2), parser="logprobs")


def test_repeats_are_asked_apart(tmp_path):
    with JudgeServer(lambda question, n: "AB"[n % 2]) as server:
        done, _ = judged(server, tmp_path, items(3), repeats=2)
        assert set(server.asked.values()) == {2}
        found = summarise(done, items(3))
    assert found["repeat"]["value"] == 0
    assert len(done.verdicts) == 12


# ---- faults


def gaps(done):
    return {verdict.reason for verdict in done.verdicts if verdict.preference is None}


def test_nonsense_and_refusals_are_kept_counted_and_make_it_unreliable(tmp_path):
    def behave(question, n):
        return "xyzzy" if "Question 1?" in question else "I'm sorry, I cannot." if "Question 2?" in question else "A"

    with JudgeServer(behave) as server:
        done, _ = judged(server, tmp_path)
        assert gaps(done) == {"not understood", "refused"}
        again, _ = judged(server, tmp_path)
        assert set(server.asked.values()) == {1}  # a definite answer is not asked for again
    assert again.verdicts == done.verdicts
    parsed = position_rows_of(done)["parsed"]
    assert parsed["value"] == pytest.approx(20 / 24)
    assert not parsed["reliable"]
    assert parsed["missing"] == {"not understood": 2, "refused": 2}
    assert "UNRELIABLE" in text_of(done)


def position_rows_of(done):
    from eval_harness.agreement.pairwise import position_bias

    return {row["name"]: row for row in position_rows(position_bias(done.verdicts, done.judge.name))}


def text_of(done):
    from eval_harness.judging.summary import text

    return text(summarise(done, items()))


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (500, "HTTP 500"),
        (503, "HTTP 503"),
        (lambda handler: handler.reply(429, {}, {"Retry-After": "0"}), "HTTP 429"),
        (lambda handler: handler.break_off(), "connection failed (RemoteProtocolError)"),
        (lambda handler: handler.reply(200, b"not json"), "no valid answer"),
        (lambda handler: handler.reply(200, {"choices": []}), "no valid answer"),
        (lambda handler: time.sleep(2.5), "timeout"),
    ],
    ids=["500", "503", "429", "half-way", "no json", "no choices", "timeout"],
)
def test_faults_that_pass_are_tried_again_and_lasting_ones_are_gaps(tmp_path, fault, reason):
    lasting = "Question 1?"

    def behave(question, n):
        return fault if lasting in question or n == 0 else good(question)

    with JudgeServer(behave) as server:
        done, said = judged(server, tmp_path, items(3), retries=2, timeout=1.0, concurrency=6)
        assert gaps(done) == {reason}
        assert sum(verdict.preference is not None for verdict in done.verdicts) == 4
        assert {n for question, n in server.asked.items() if lasting in question} == {3}
        assert reason in said[-1]
        server.behave = lambda question, n: good(question)
        again, _ = judged(server, tmp_path, items(3), retries=2)
        assert gaps(again) == set()
        assert max(server.answered.values()) == 1  # what was answered is not asked again
    assert done.usage["retried"] >= 6


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refused_key_stops_at_once_and_loses_nothing(tmp_path, status, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with JudgeServer(lambda question, n: good(question)) as server:
        judged(server, tmp_path, items(4), api_key_env="JUDGE_KEY")
        calls = sum(server.asked.values())
        server.behave = lambda question, n: status
        done, said = judged(server, tmp_path, items(30), api_key_env="JUDGE_KEY", concurrency=1)
        assert sum(server.asked.values()) - calls < 5
    assert sum(verdict.preference is not None for verdict in done.verdicts) == 8
    assert any(why.startswith("not asked: HTTP") for why in gaps(done))
    assert f"HTTP {status}" in said[-1]


def test_the_key_is_sent_and_written_nowhere(tmp_path, monkeypatch, caplog, capsys):
    monkeypatch.setenv("JUDGE_KEY", KEY)

    def echo(handler):
        handler.reply(200, {"choices": [{"message": {"content": f"A. You sent {handler.headers['Authorization']}"}}]})

    with JudgeServer(lambda question, n: echo if "Question 0?" in question else 400) as server:
        done, said = judged(server, tmp_path, items(2), api_key_env="JUDGE_KEY")
        assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
        found = summarise(done, items(2))
    written = "".join(path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file())
    everything = [written, json.dumps(found), *said, caplog.text, *capsys.readouterr(), repr(done.judge)]
    assert "Question 0" not in caplog.text
    assert all(KEY not in text for text in everything)
    assert gaps(done) == {"HTTP 400"}
    assert found["usage"]["uncounted"] == 2
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(ValueError, match="export JUDGE_KEY"):
        judged(server, tmp_path / "other", items(1), api_key_env="JUDGE_KEY")


def test_a_line_that_a_kill_cut_short_is_asked_again(tmp_path):
    with JudgeServer(lambda question, n: good(question)) as server:
        done, _ = judged(server, tmp_path, items(4))
        path = tmp_path / "answers.jsonl"
        path.write_bytes(path.read_bytes()[:-20])
        again, _ = judged(server, tmp_path, items(4))
        assert sorted(server.asked.values()) == [1] * 7 + [2]
        third, _ = judged(server, tmp_path, items(4))
        assert sum(server.asked.values()) == 9
    assert done.verdicts == again.verdicts == third.verdicts


SCRIPT = """
import json, sys
from pathlib import Path
from eval_harness.annotation.items import make_item
from eval_harness.judging import judge_items, read_judge
judge, folder = json.loads(sys.argv[1]), Path(sys.argv[2])
what = [make_item(f"Question {i}?", ("bad " * (1 + 2 * (i % 2)), "good " * 2), ("base", "ours")) for i in range(40)]
done = judge_items(what, read_judge(judge), folder)
print(json.dumps([[v.item, v.model_1, v.preference] for v in done.verdicts]))
"""


def test_killed_in_the_middle_nothing_is_judged_twice(tmp_path):
    def behave(question, n):
        time.sleep(0.1)
        return good(question)

    with JudgeServer(behave) as server:
        command = [sys.executable, "-c", SCRIPT, json.dumps(server.judge(concurrency=2)), str(tmp_path / "killed")]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 300
        while sum(server.answered.values()) < 25 and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        before = sum(server.answered.values())
        assert 25 <= before < 80
        kept = len((tmp_path / "killed" / "answers.jsonl").read_text().splitlines())
        done, _ = judged(server, tmp_path / "killed", items(40))
        # An answer that was on its way when the process died is the only one that could not be kept.
        assert sum(server.answered.values()) <= 80 + 2
        assert sum(server.answered.values()) == before + 80 - kept
        whole, _ = judged(server, tmp_path / "whole", items(40))
    assert done.verdicts == whole.verdicts


def test_two_processes_do_not_judge_into_one_folder(tmp_path):
    from ledpo_plugin.common.lock import locked

    with locked(tmp_path, "judging"), JudgeServer(lambda question, n: "A") as server:
        with pytest.raises(ValueError, match="name another folder"):
            judged(server, tmp_path, items(1))
        assert not server.asked


def test_calls_keep_to_the_pace(tmp_path):
    with JudgeServer(lambda question, n: "A") as server:
        judged(server, tmp_path, items(4), requests_per_minute=600, concurrency=4)
        times = sorted(server.times)
    assert times[-1] - times[0] >= 0.6  # 8 calls, 10 a second


def test_pace_and_waiting_by_hand():
    import threading
    from datetime import UTC, datetime, timedelta
    from email.utils import format_datetime

    started = time.monotonic()
    pace, stopped = Pace(600), threading.Event()
    for _ in range(4):
        pace.wait(1, stopped)
    assert 0.25 <= time.monotonic() - started < 2.5
    assert retry_after("1.5") == 1.5
    assert retry_after("soon") is None
    assert retry_after(None) is None
    assert retry_after(format_datetime(datetime.now(UTC) + timedelta(seconds=30))) == pytest.approx(30, abs=3)


# ---- what alpaca_eval says of published annotations


def published(path: Path, count: int = 805) -> list[float]:
    """Write annotations as AlpacaEval 2 publishes them; return the preferences."""
    rng = np.random.default_rng(5)
    preferences = np.round(1 + rng.beta(0.6, 0.8, count), 12)
    preferences[::50] = 1.5
    rows = [
        {
            "instruction": f"Instruction {i}",
            "output_1": "a" * int(rng.integers(10, 900)),
            "generator_1": "gpt4_1106_preview",
            "output_2": "b" * int(rng.integers(10, 900)),
            "generator_2": "ours",
            "dataset": "helpful_base",
            "annotator": "weighted_alpaca_eval_gpt4_turbo",
            "preference": float(value),
            "index": i,
        }
        for i, value in enumerate(preferences)
    ]
    path.write_text(json.dumps(rows))
    return preferences.tolist()


def test_published_annotations_give_the_leaderboard_s_numbers(tmp_path, capsys):
    path = tmp_path / "annotations.json"
    gains = np.asarray(published(path)) - 1
    assert main(["eval", "winrate", str(path)]) == 0
    text = capsys.readouterr().out
    rate, error = (float(text.split(word)[1].split(",")[0]) for word in ("win rate ", "SE "))
    assert rate == pytest.approx(100 * gains.mean(), abs=1e-6)
    assert error == pytest.approx(100 * gains.std(ddof=1) / np.sqrt(len(gains)), abs=1e-6)
    own = alpaca("alpaca_eval.metrics").get_winrate(json.loads(path.read_text()))
    assert rate == pytest.approx(own["win_rate"], abs=1e-6)
    assert error == pytest.approx(own["standard_error"], abs=1e-6)
    assert "n = 805 of 805" in text


def test_length_control_is_official_only_with_the_official_data(tmp_path):
    path = tmp_path / "annotations.json"
    published(path)
    rows = json.loads(path.read_text())
    rng = np.random.default_rng(1)
    lines = ["index,preference,std_delta_len,instruction_difficulty,not_gamed_baseline,model"]
    for copy in range(2):  # two gamed baselines, as in AlpacaEval's file
        lines += [
            f"{i},{rng.uniform():.4f},{rng.normal():.4f},{np.sin(i):.4f},False,gamed_{copy}" for i in range(len(rows))
        ]
    calibration = tmp_path / "df_gamed.csv"
    calibration.write_text("\n".join(lines))
    official = length_controlled(rows, calibration)
    assert official["official"]
    assert official["label"] == OFFICIAL
    module = alpaca("alpaca_eval.metrics.glm_winrate")
    before = module.hf_hub_download
    own = length_controlled(rows[:300], calibration)
    assert not own["official"]
    assert (own["win_rate"], own["standard_error"]) == (None, None)
    assert "there are 300 comparisons, not AlpacaEval's 805" in own["reason"]
    assert module.hf_hub_download is before
    with pytest.raises(FileNotFoundError, match="is not there"):
        length_controlled(rows, tmp_path / "nothing.csv")


def test_official_win_rate_by_hand():
    found = official_win_rate([{"preference": value} for value in (1, 2, 2, 1.5, 0)])
    assert found["win_rate"] == pytest.approx(60)  # 0 1 1 0.5 0.5
    assert found["standard_error"] == pytest.approx(100 * np.std([0, 1, 1, 0.5, 0.5], ddof=1) / 5**0.5)
    with pytest.raises(ValueError, match="no annotation"):
        official_win_rate([])


# ---- the command, and a model here


def outputs(path: Path, name: str, word: str, prompts: int = 5) -> Path:
    rows = [{"instruction": f"Question {i}?", "output": f"{word} {i}", "generator": name} for i in range(prompts)]
    path.write_text(json.dumps(rows))
    return path


def test_the_command_end_to_end(tmp_path, capsys):
    import yaml

    base, ours = outputs(tmp_path / "base.json", "base", "bad"), outputs(tmp_path / "ours.json", "ours", "good")
    with JudgeServer(lambda question, n: good(question)) as server:
        judge = tmp_path / "judge.yaml"
        judge.write_text(yaml.safe_dump(server.judge(price_in=0.01, price_out=0.03)))
        arguments = ["eval", "judge", str(ours), "--reference", str(base), "--judge", str(judge)]
        assert main([*arguments, "--folder", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    assert "ours against base, by planted" in text
    assert "win rate 1.000" in text
    assert "price 0.0103" in text  # 10 calls of 100 tokens in and 1 out
    found = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert found["judge"]["base_url"] == server.url
    annotations = json.loads((tmp_path / "out" / "annotations.json").read_text())
    assert {row["preference"] for row in annotations} == {1.0, 2.0}
    assert len((tmp_path / "out" / "verdicts.jsonl").read_text().splitlines()) == 10


def test_outputs_that_do_not_match_are_refused_before_anything_is_asked(tmp_path, capsys):
    base, ours = outputs(tmp_path / "base.json", "base", "bad"), outputs(tmp_path / "ours.json", "ours", "good", 3)
    judge = tmp_path / "judge.yaml"
    judge.write_text("name: a\nkind: http\nmodel: m\nbase_url: http://127.0.0.1:9/v1\n")
    arguments = ["eval", "judge", str(ours), "--reference", str(base), "--judge", str(judge)]
    assert main([*arguments, "--folder", str(tmp_path / "out")]) == 1
    assert "2 prompts of" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_model_here_is_read_by_its_probabilities(tiny, tmp_path):
    import torch

    from eval_harness.generation import load

    judge = read_judge(
        {"name": "here", "kind": "local", "model": str(tiny.model), "template": "chatml", "parser": "logprobs",
         "batch_size": 3}
    )  # fmt: skip
    what = items(4, words=lambda i: ("b", "g" * (i + 1)))
    short = tmp_path / "prompt.txt"
    short.write_text("{instruction} {output_1} {output_2}")
    judge = read_judge(judge.given | {"prompt": str(short)})
    done = judge_items(what, judge, tmp_path / "a", log=lambda _: None)
    assert len(done.verdicts) == 8
    loaded = load(tiny.model, template="chatml")
    question = judge.question(what[0].prompt, *what[0].outputs)
    ids = loaded.encode([question])[0]
    with torch.no_grad():
        logits = loaded.model(torch.tensor([ids])).logits[0, -1]
    pair = logits[[loaded.tokenizer.convert_tokens_to_ids("A"), loaded.tokenizer.convert_tokens_to_ids("B")]]
    wanted = 2 - float(pair.softmax(0)[0])
    assert done.verdicts[0].strength == pytest.approx(wanted, abs=1e-5)
    again = judge_items(what, judge, tmp_path / "a", log=lambda _: None)
    assert again.verdicts == done.verdicts
    assert again.usage["calls"] == 0
    long = judge_items([make_item("x" * 700, ("a", "b"), ("base", "ours"))], judge, tmp_path / "b", log=lambda _: None)
    assert all("longer than the judge's context" in verdict.reason for verdict in long.verdicts)


@pytest.mark.slow
def test_llamafactory_s_own_server_and_the_same_model_here_as_judges(tmp_path):
    """`llamafactory-cli api` with the real 135M model over HTTP, and its probabilities in this process."""
    from ledpo_plugin.experiments.studies.serving import served

    model = ROOT / ".ledpo" / "models" / "SmolLM2-135M-Instruct"
    judge = read_judge(
        {"name": "served", "kind": "http", "base_url": "http://127.0.0.1:8431/v1", "model": "x", "max_tokens": 6,
         "concurrency": 1, "timeout": 120}
    )  # fmt: skip
    what = items(4)
    arguments = {"model_name_or_path": str(model), "template": "smollm2", "infer_dtype": "float32"}
    with served(arguments, 8431, tmp_path / "server.log"):
        done = judge_items(what, judge, tmp_path / "served")
    assert len(done.verdicts) == 8
    assert not gaps(done) - {"not understood", "refused"}  # every question was answered
    assert done.usage["tokens_in"] > 0
    here = read_judge(
        {"name": "here", "kind": "local", "model": str(model), "template": "smollm2", "parser": "logprobs"}
    )
    found = summarise(judge_items(what, here, tmp_path / "here"), what)
    parsed = next(row for row in found["position"] if row["name"] == "parsed")
    assert parsed["value"] == 1
