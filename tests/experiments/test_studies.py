"""Studies of trained models: parts done in this process, on tiny runs, with planted judges; and killed for real."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import train
from judge_server import JudgeServer, answers_of, first, longer
from tiny_experiment import write_experiment

from eval_harness.agreement.comparing import against_labels, compare
from eval_harness.agreement.verdicts import ScoreTable
from eval_harness.data import DataSetError, read_dataset, read_pairs
from ledpo_plugin.common.files import write_json
from ledpo_plugin.experiments.definition.plan import plan
from ledpo_plugin.experiments.definition.problems import ExperimentError
from ledpo_plugin.experiments.reading import read_experiment
from ledpo_plugin.experiments.reporting import write_report
from ledpo_plugin.experiments.results.store import (
    definition_of,
    is_finished,
    open_results,
    states_of,
    write_part,
    write_run,
)
from ledpo_plugin.experiments.running.engine import base_runs, job_of
from ledpo_plugin.experiments.running.worker import TRAINED
from ledpo_plugin.experiments.running.worker import main as work
from ledpo_plugin.experiments.studies.decoding_plots import front
from ledpo_plugin.experiments.studies.decoding_tables import _terciles
from ledpo_plugin.experiments.studies.kinds import study_of
from ledpo_plugin.experiments.studies.parts import START, digest
from ledpo_plugin.host import arguments

METHODS = {
    "kind": "evaluation_methods",
    "prompts": {"heldout": 8},
    "max_new_tokens": 12,
    "decoding": {"method": "sample", "temperature": 1.5},  # greedily the tiny models all say the same
    "judges": ["first.yaml", "here.yaml"],
    "labels": True,
    "reward": "ledpo",
    "worse": "ledpo",
    "repeats": 2,
}
DECODING = {
    "kind": "decoding",
    "prompts": {"heldout": 6, "instructions": 3},
    "max_new_tokens": 6,
    "seeds": [1],
    "samples": 2,
    "baseline": "greedy",
    "reward": "ledpo",
    "judges": ["longer.yaml"],
    "judge_prompts": 4,
    "decodings": {
        "greedy": {"method": "greedy"},
        "beam-2": {"method": "beam", "num_beams": 2},
        "t-0.9": {"method": "sample", "temperature": 0.9},
        "beta-t-0.9": {"method": "sample", "temperature": 0.9, "adaptive": {"of": "temperature", "spread": 0.5}},
    },
}


@pytest.fixture(scope="module")
def host_keys():
    return arguments.recipe_keys()


@pytest.fixture(scope="module")
def server():
    taste = {"first": first, "longer": longer}
    with JudgeServer(lambda question, n: taste[server_taste["now"]](question)) as running:
        yield running


server_taste = {"now": "first"}


def write_judges(folder: Path, tiny, server) -> None:
    """Write a planted judge over HTTP, under two names, and a judge that is a model here."""
    (folder / "prompt.txt").write_text("{instruction}|{output_1}|{output_2}")
    here = {"name": "here", "kind": "local", "model": str(tiny.model), "template": "chatml", "parser": "logprobs"}
    here["prompt"] = str(folder / "prompt.txt")
    judges = {"first": server.judge("first"), "longer": server.judge("longer"), "here": here}
    for name, judge in judges.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(judge))


def made(folder: Path, tiny, study, server, host_keys, seeds=(1, 2)):
    """Write an experiment of two variants with a study; return it as it is read."""
    folder.mkdir(parents=True)
    write_judges(folder, tiny, server)
    write_experiment(
        folder, tiny, variants={"orpo": None}, seeds=list(seeds), study=study, common={"learning_rate": 0.015}
    )
    return read_experiment(folder, "cpu", host_keys=host_keys, with_files=True)


def train_all(experiment, results: Path) -> None:
    """Train and measure every run in this process, as workers would."""
    open_results(experiment, results)
    runs = plan(experiment, results)
    for base in base_runs(experiment, results, runs).values():
        write_run(base, {"kind": "base", "evaluation": dict(experiment.evaluation), "cwd": str(Path.cwd())})
        assert work(base.folder) == 0
    for run in runs:
        write_run(run, job_of(experiment, run, results))
        train(dict(run.recipe))
        write_json(run.folder / TRAINED, {})
        assert work(run.folder) == 0


def run_study(experiment, results: Path) -> list[str]:
    """Do the open parts of a study in this process; return their names."""
    done = []
    runs = [run for run in plan(experiment, results) if is_finished(run.folder)]
    for parts in study_of(experiment.study["kind"]).stages(experiment, results, runs):
        for part in parts:
            write_part(part.folder, part.job)
            if not is_finished(part.folder):
                assert work(part.folder) == 0, part.name
                done.append(part.name)
    return done


def report_of(experiment, results: Path) -> str:
    write_report(results, definition_of(experiment), states_of(plan(experiment, results)))
    return (results / "report.html").read_text()


@pytest.fixture(scope="module")
def methods(tiny, tmp_path_factory, server, host_keys):
    """The study of evaluation methods, done once: experiment, results folder, names of the parts."""
    server_taste["now"] = "first"
    root = tmp_path_factory.mktemp("methods")
    experiment = made(root / "methods", tiny, METHODS, server, host_keys)
    train_all(experiment, root / "results")
    return experiment, root / "results", run_study(experiment, root / "results")


@pytest.fixture(scope="module")
def decoding(tiny, tmp_path_factory, server, host_keys, methods):
    """The study of decoding, done once, on the runs of the other one."""
    server_taste["now"] = "longer"
    root = tmp_path_factory.mktemp("decoding")
    experiment = made(root / "methods", tiny, DECODING, server, host_keys)
    results = methods[1]
    return experiment, results, run_study(experiment, results)


def result(results: Path, *names: str) -> dict:
    return json.loads(results.joinpath("study", *names, "result.json").read_text())


# ---- evaluation methods


def test_every_part_of_the_methods_is_done_once(methods):
    experiment, results, done = methods
    models = [START, "dpo-1", "ledpo-1", "dpo-2", "ledpo-2"]
    assert done == [*(f"answers {name}" for name in models), "judge first", "judge here", "likelihoods ledpo",
                    "agreement all"]  # fmt: skip
    server_taste["now"] = "first"
    assert run_study(experiment, results) == []


def test_all_methods_side_by_side(methods):
    found = result(methods[1], "agreement", "all")
    compared = found["compared"]
    assert set(compared["methods"]) == {
        "first", "here", "answer log-probability", "implicit reward", "length", "repetition", "margin",
        "pair accuracy", "pair log-probability",
    }  # fmt: skip
    assert compared["models"] == sorted(compared["models"], key=compared["models"].index)
    assert set(compared["models"]) == {START, "dpo-1", "ledpo-1", "dpo-2", "ledpo-2"}
    assert compared["reference"] == "first"
    assert len(compared["per_model"]) == 2 * 9 * 8 // 2
    assert found["people"] == []
    assert found["provenance"]["versions"]["transformers"]


def test_a_part_that_failed_is_in_status_and_report(methods, capsys):
    from ledpo_plugin.cli import main

    experiment, results, _ = methods
    folder = results / "study/judge/first"
    kept = (folder / "result.json").read_text()
    state = json.loads((folder / "state.json").read_text())
    try:
        (folder / "result.json").unlink()
        write_json(folder / "state.json", state | {"phase": "failed", "error": "the judge is gone"})
        assert main(["status", str(results)]) == 1
        assert "study: judge first                      failed       the judge is gone" in capsys.readouterr().out
        assert "Of the study, judge first is not finished: the judge is gone." in report_of(experiment, results)
    finally:
        (folder / "result.json").write_text(kept)
        write_json(folder / "state.json", state)
    assert main(["status", str(results)]) == 0


def test_margins_are_those_that_were_measured(methods):
    results = methods[1]
    found = result(results, "agreement", "all")
    rows = {row["name"]: row for row in found["compared"]["rankings"]["margin"]}
    measured = json.loads(next((results / "runs/ledpo/seed-1/measures").glob("step-*4/pairs/heldout.json")).read_text())
    items = found["compared"]["items"]
    pairs = read_pairs("heldout", methods[0].variants[0].recipe["dataset_dir"])
    own = [measured["columns"]["margin"][pair.place] for pair in pairs if digest(pair.prompt) in items]
    assert rows["ledpo-1"]["value"] == pytest.approx(np.mean(own))
    assert rows[START]["value"] == 0
    rows = {row["name"]: row for row in found["compared"]["rankings"]["pair accuracy"]}
    assert rows[START]["value"] == 0.5


def test_the_planted_judge_is_exposed(methods):
    found = result(methods[1], "agreement", "all")
    rows = {row["name"]: row for row in found["judges"]["first"]["position"]}
    assert rows["first_position"]["value"] == 1, rows  # of different texts
    assert rows["same_verdict"]["value"] == 0
    assert rows["same_text"]["value"] + rows["turned"]["value"] == pytest.approx(1)
    assert found["judges"]["first"]["repeat"]["value"] == 1
    labels = found["labels"]
    assert {row["first"] for row in labels["with_labels"]} == {
        "first", "here", "the longer answer", "margin of dpo", "margin of ledpo",
        "the likelier answer per token, untrained",
    }  # fmt: skip
    rows = {row["name"]: row for row in labels["judges"]["first"]["position"]}
    assert rows["first_position"]["value"] == 1
    assert rows["swap_consistency"]["value"] == 0
    share = next(r for r in labels["with_labels"] if r["first"] == "first" and r["name"] == "percent_agreement")
    assert share["value"] == 0  # a verdict that turns with the order is a tie, and never the label
    half = next(r for r in labels["with_labels"] if r["first"] == "first" and r["name"] == "accuracy")
    assert half["value"] == 0.5  # right in one of the orders


def test_the_report_of_the_methods(methods):
    html = report_of(methods[0], methods[1])
    for text in (
        "Which methods agree", "of its verdicts on different texts); of ", "have the same verdict both ways and",
        "a verdict that turns with the order is a tie: it adds one half", "of a graded verdict that turns",
        "No people&#39;s ratings were given", "What judges are worth", "Pairs whose better answer is known",
        "What to choose by", "Sensitivity to prompts",
    ):  # fmt: skip
        assert text in html, text
    markdown = (methods[1] / "report.md").read_text()
    assert "Correlation of the models" in markdown


def test_what_the_methods_say_of_a_variant_that_is_known_to_be_worse(methods):
    found = result(methods[1], "agreement", "all")
    rows = {row["name"]: row for row in found["worse"]["rows"]}
    means = {row["name"]: row["value"] for row in found["compared"]["rankings"]["length"]}
    wanted = (means["dpo-1"] + means["dpo-2"] - means["ledpo-1"] - means["ledpo-2"]) / 2
    assert rows["length"]["value"] == pytest.approx(wanted)
    assert set(rows) == set(found["compared"]["methods"])


def test_another_judge_s_file_asks_only_that_judge_again(methods, tiny, server, host_keys):
    experiment, results, _ = methods
    path = experiment.folder / "first.yaml"
    before = path.read_text()
    server_taste["now"] = "first"
    path.write_text(before + "retries: 1\n")
    try:
        asked = sum(server.asked.values())
        assert run_study(experiment, results) == ["judge first", "agreement all"]
        assert sum(server.asked.values()) == asked  # how often it is tried changes no answer
    finally:
        path.write_text(before)
    assert run_study(experiment, results) == ["judge first", "agreement all"]


def test_people_s_ratings_are_taken_in(methods, tmp_path):
    """An export of `ledpo eval annotate` over the study's own answers, by two annotators."""
    from ledpo_plugin.experiments.studies.methods_tables import PEOPLE, agreement

    results = methods[1]
    job = json.loads((results / "study/agreement/all/job.json").read_text())
    ratings = []
    for row in json.loads(Path(job["prompts_file"]).read_text())["prompts"]:
        for model in ("dpo-1", "ledpo-1", "dpo-2", "ledpo-2"):
            for who in ("Ada", "Ben"):
                verdict = {"dpo-1": "1", "ledpo-1": "2"}.get(model, "tie")
                own = {"prompt": row["prompt"], "generator_1": START, "generator_2": model, "annotator": who}
                ratings.append(own | {"item_id": f"{model}{row['row']}", "verdict": verdict, "left": "1"})
    path = tmp_path / "people.json"
    path.write_text(json.dumps(ratings))
    found = agreement(job | {"human": [str(path)]}, lambda _: None)
    assert found["people"] == ["Ada", "Ben"]
    assert found["compared"]["reference"] == PEOPLE
    assert {"people", "Ada", "Ben"} <= set(found["compared"]["methods"])
    (choice,) = [row for row in found["compared"]["choices"] if row["method"] == PEOPLE]
    assert choice["chosen"] == ["ledpo-1"]
    pair = [r for r in found["compared"]["per_example"] if {r["first"], r["second"]} == {"Ada", "Ben"}]
    assert pair[0]["value"] == pytest.approx(1)
    ratings[0]["generator_2"] = "stranger"
    path.write_text(json.dumps(ratings))
    with pytest.raises(ValueError, match="stranger"):
        agreement(job | {"human": [str(path)]}, lambda _: None)


# ---- decoding


def test_every_part_of_the_decoding_is_done_once(decoding):
    experiment, results, done = decoding
    assert done == ["decode dpo-1", "decode ledpo-1", "judge longer", "likelihoods ledpo", "summary all"]
    server_taste["now"] = "longer"
    assert run_study(experiment, results) == []


def test_figures_of_every_setting(decoding):
    results = decoding[1]
    found = result(results, "summary", "all")
    cells = {(row["model"], row["decoding"]): row for row in found["settings"]}
    assert set(cells) == {
        *(("ledpo-1", name) for name in DECODING["decodings"]),
        *(("dpo-1", name) for name in DECODING["decodings"] if name != "beta-t-0.9"),
    }
    assert found["left_out"] == {"dpo-1": ["beta-t-0.9"]}
    figures = {row["name"]: row for row in cells["ledpo-1", "t-0.9"]["figures"]}
    samples = [
        json.loads((results / f"study/decode/ledpo-1/outputs/ledpo-1.t-0.9.{i}/outputs.json").read_text())
        for i in range(2)
    ]
    lengths = np.mean([[row["tokens"] for row in rows] for rows in samples], axis=0)
    assert figures["length"]["value"] == pytest.approx(lengths.mean())
    assert figures["length"]["n"] == 9
    assert figures["self-BLEU"]["value"] is not None
    greedy = {row["name"]: row for row in cells["ledpo-1", "greedy"]["figures"]}
    assert greedy["win rate"]["value"] == 0.5
    assert greedy["self-BLEU"]["value"] is None
    assert figures["implicit reward"]["value"] is not None
    assert cells["ledpo-1", "greedy"]["speed"]["tokens_per_second"] > 0
    assert set(found["kinds"]["task"]) == {"heldout", "instructions"}
    assert sum(found["kinds"]["difficulty"].values()) == 9


def test_the_judge_of_the_decodings_likes_length(decoding):
    found = result(decoding[1], "summary", "all")
    (judge,) = found["judges"]
    rows = {row["name"]: row for row in judge["length"]}
    assert rows["longer_preferred"]["value"] > 0.9  # equally long answers of other words: the second is taken
    pairs = {(row["model"], row["against"]) for row in judge["win_rates"]}
    assert ("ledpo-1.beta-t-0.9.0", "ledpo-1.greedy.0") in pairs
    assert ("ledpo-1.greedy.0", "dpo-1.greedy.0") in pairs


def test_trained_differently_under_the_same_decoding(decoding):
    found = result(decoding[1], "summary", "all")
    assert [row["decoding"] for row in found["trained"]] == ["greedy", "beam-2", "t-0.9"]
    assert {row["name"] for row in found["trained"][0]["differences"]} >= {"implicit reward", "length"}


def test_the_report_of_the_decoding(decoding):
    html = report_of(decoding[0], decoding[1])
    for text in ("Which decoding is best", "no setting can be recommended", "prompts would judge the choice",
                 "has no beta(x), so that beta-t-0.9 could not",
                 "Quality against diversity", "The same decoding, trained differently"):  # fmt: skip
        assert text in html, text
    assert "<script" not in html


# ---- pure parts


def test_the_front_is_of_what_nothing_beats():
    points = {"a": (0.1, 0.9), "b": (0.5, 0.5), "c": (0.4, 0.4), "d": (0.9, 0.1), "e": (0.9, 0.05), "f": (0.5, 0.5)}
    assert front(points) == ["a", "b", "f", "d"]


def test_an_answer_is_scored_once(methods):
    from eval_harness.generation import load
    from ledpo_plugin.experiments.studies.outputs import Scorer

    loaded = load(methods[1] / "runs/ledpo/seed-1/train")
    scorer = Scorer(loaded, ["river", "stone"], 2)
    wanted = scorer.columns([[65, 66], [67]])
    passes = []
    handle = loaded.model.register_forward_pre_hook(lambda *_: passes.append(1))
    assert scorer.columns([[65, 66], [67]]) == wanted
    assert not passes
    found = scorer.columns([[65, 66], [68, 69]])
    handle.remove()
    assert len(passes) == 2  # the new answer, by both models; betas are known
    assert [values[0] for values in found.values()] == [values[0] for values in wanted.values()]
    assert found["lengths"] == [2, 2]


def test_terciles():
    assert _terciles([5, 1, None, 3, 2, 4, 6]) == {"low": [1, 4], "middle": [3, 5], "high": [0, 6]}


def test_compare_finds_what_is_there():
    rng = np.random.default_rng(1)
    quality = np.arange(6.0)
    items, models = [f"i{i}" for i in range(30)], [f"m{m}" for m in range(6)]

    def table(name, weight, noise, better=True):
        values = weight * quality + noise * rng.normal(size=(30, 6))
        return ScoreTable(name, {i: dict(zip(models, row, strict=True)) for i, row in zip(items, values, strict=True)},
                          better)  # fmt: skip

    found = compare([table("a", 1, 0.5), table("b", -1, 0.5, False), table("c", 0, 1)], reference="a", draws=100)
    rows = {(r["first"], r["second"]): r for r in found["per_model"] if r["name"] == "spearman"}
    assert rows["a", "b"]["value"] == pytest.approx(1)
    assert rows["a", "c"]["low"] < 0 < rows["a", "c"]["high"] or rows["a", "c"]["low"] is not None
    choices = {row["method"]: row for row in found["choices"]}
    assert choices["b"]["chosen"] == ["m5"]
    assert choices["a"]["value"] == 0
    with pytest.raises(ValueError, match="two or more"):
        compare([table("a", 1, 1)], reference="a")


def test_against_labels_knows_chance_from_knowledge():
    units = [(f"i{i}",) for i in range(60)]
    rng = np.random.default_rng(2)
    truth = {unit: float(rng.choice([-1, 1])) for unit in units}
    noisy = {unit: value * (1 if rng.random() < 0.9 else -1) for unit, value in truth.items()}
    guess = {unit: float(rng.choice([-1, 1])) for unit in units}
    found = against_labels({"labels": truth, "noisy": noisy, "guess": guess}, "labels", draws=200)
    kappas = {row["first"]: row for row in found["with_labels"] if row["name"] == "cohen_kappa"}
    assert kappas["noisy"]["low"] > 0.4
    assert kappas["guess"]["low"] < 0 < kappas["guess"]["high"]
    assert [row["name"] for row in found["alpha"]] == ["without_labels", "with_labels"]


# ---- what is wrong with a study


def test_all_problems_of_a_study_are_said_at_once(tiny, tmp_path, server, host_keys):
    study = {
        "kind": "evaluation_methods", "prompts": {"helduot": 0}, "max_new_tokens": -1,
        "judges": ["no.yaml", "bad.yaml"],
        "reward": "ledpoo", "seeds": [7], "decoding": {"method": "greedy", "top_p": 0.5}, "human": ["no.json"],
        "serve": {"nobody": {}}, "labels": "yes", "judge_prompt": 3,
    }  # fmt: skip
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "bad.yaml").write_text("name: bad\nkind: htp\n")
    write_experiment(folder, tiny, variants={"orpo": None}, study=study)
    with pytest.raises(ExperimentError) as error:
        read_experiment(folder, "cpu", host_keys=host_keys, with_files=True)
    text = str(error.value)
    for part in (
        "judge_prompt", "Did you mean 'heldout'", "study.max_new_tokens", "there is no such file",
        "Did you mean 'http'", "Did you mean 'ledpo'", "study.seeds", "draws none", "no.json",
        "no judge of the study has this name",
        "true or false", "nothing was run",
    ):  # fmt: skip
        assert part in text, part


@pytest.mark.parametrize(
    ("study", "part"),
    [
        ({"kind": "decodng"}, "Did you mean 'decoding'"),
        ("decoding", "a mapping of keys"),
        (DECODING | {"baseline": "t-2"}, "none of the decodings"),
        (DECODING | {"decodings": {"greedy": {"method": "grady"}}}, "Did you mean 'greedy'"),
    ],
)
def test_a_study_that_cannot_be(tiny, tmp_path, server, host_keys, study, part):
    with pytest.raises(ExperimentError, match=part):
        made(tmp_path / "broken", tiny, study, server, host_keys)


def test_data_sets_in_the_host_s_formats(tiny, tmp_path):
    info = {
        "alpaca": {"file_name": "alpaca.jsonl", "ranking": True,
                   "columns": {"prompt": "q", "chosen": "good", "rejected": "bad"}},
        "broken": {"file_name": "broken.json", "ranking": True},
        "empty": {"file_name": "empty.json"},
        "torn": {"file_name": "torn.json"},
    }  # fmt: skip
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    (tmp_path / "alpaca.jsonl").write_text('{"q": "a?\\u2028b", "good": "yes", "bad": "no"}\n')
    (tmp_path / "broken.json").write_text(json.dumps([{"instruction": "a"}, {"prompt": "b"}]))
    (tmp_path / "empty.json").write_text("[]")
    (tmp_path / "torn.json").write_text('[{"instruction"')
    (found,) = read_pairs("alpaca", tmp_path)
    assert (found.prompt, found.answers) == ("a?\u2028b", ("yes", "no"))
    for name, part in (
        ("broken", "broken, row 2"),
        ("empty", "has no rows"),
        ("torn", "is not valid JSON"),
        ("nothing", "Undefined dataset nothing"),
    ):
        with pytest.raises(DataSetError, match=part):
            read_dataset(name, tmp_path)
    with pytest.raises(DataSetError, match="has no chosen and rejected answer"):
        read_pairs("instructions", tiny.data)


def test_the_planted_server_reads_answers():
    from eval_harness.judging import read_judge

    judge = read_judge({"name": "a", "kind": "http", "model": "m", "base_url": "http://x/v1"})
    assert answers_of(judge.question("q", "one\n\ntwo", "three")) == ("one\n\ntwo", "three")


# ---- whole, in processes of their own


@pytest.mark.slow
def test_a_study_that_is_killed_goes_on_and_judges_nothing_twice(tiny, tmp_path):
    def behave(question, n):
        time.sleep(0.05)
        return longer(question)

    with JudgeServer(behave) as server:
        folder = tmp_path / "killed"
        folder.mkdir()
        write_judges(folder, tiny, server)
        study = METHODS | {"judges": ["longer.yaml"], "repeats": 1}
        write_experiment(folder, tiny, variants={"orpo": None}, seeds=[1], study=study)
        command = [str(Path(sys.executable).parent / "ledpo"), "run", str(folder), "--results", str(tmp_path / "r")]
        process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 300
        while sum(server.answered.values()) < 10 and time.monotonic() < deadline:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert sum(server.answered.values()) >= 10
        ended = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
        assert ended.returncode == 0, ended.stdout
        kept = (tmp_path / "r/study/judge/longer/judgements/answers.jsonl").read_text().splitlines()
        assert len({json.loads(line)["key"] for line in kept}) == len(kept)
        assert sum(server.answered.values()) <= len(kept) + 4  # those on their way when it was killed
    assert "Which methods agree" in (tmp_path / "r/report.html").read_text()


# ---- every figure from results.json alone


def numbers_of(experiment, results: Path) -> dict:
    report_of(experiment, results)
    text = (results / "results.json").read_text()
    answers = [row["output"] for path in results.rglob("outputs.json") for row in json.loads(path.read_text())]
    prompts = [pair.prompt for pair in read_pairs("heldout", experiment.variants[0].recipe["dataset_dir"])]
    for own in (*answers, *prompts):
        assert len(own) < 12 or json.dumps(own, ensure_ascii=False)[1:-1] not in text  # numbers and ids, no text
    return json.loads(text)["study"]


def own_kappa(ours, theirs) -> float | None:
    """Cohen's kappa, written out: agreement beyond that of two raters who only share how often they say what."""
    equal = np.mean(ours == theirs)
    chance = sum(np.mean(ours == value) * np.mean(theirs == value) for value in (-1, 0, 1))
    return None if chance == 1 else (equal - chance) / (1 - chance)


def own_interval(values: np.ndarray, of=np.mean) -> list[float]:
    """The percentile interval of means over items, as `how` says it was drawn."""
    drawn = np.random.default_rng(0).integers(0, len(values), (10_000, len(values)))
    return list(np.quantile(values[drawn].mean(axis=1), [0.025, 0.975]))


def bounds(row) -> list[float]:
    return [row["low"], row["high"]]


def test_kappas_and_agreement_from_the_kept_ratings(methods):
    study = numbers_of(methods[0], methods[1])
    kept = study["per_item"]["labels"]
    checked = 0
    for row in study["labels"]["with_labels"] + study["labels"]["between"]:
        both = zip(kept["ratings"][row["first"]], kept["ratings"][row["second"]], strict=True)
        ours, theirs = np.asarray([pair for pair in both if None not in pair]).T
        n = len(ours)
        assert row["n"] == n
        if row["name"] == "percent_agreement":
            assert row["value"] == pytest.approx(np.mean(ours == theirs))
            if row["low"] is not None:
                assert bounds(row) == pytest.approx(own_interval((ours == theirs).astype(float)))
                checked += 1
        elif row["name"] == "cohen_kappa":
            assert row["value"] == (None if (k := own_kappa(ours, theirs)) is None else pytest.approx(k))
            if row["low"] is not None:
                rng = np.random.default_rng(0)
                draws = [rng.integers(0, n, n) for _ in range(study["per_item"]["how"]["draws"]["kappas"])]
                found = [k for d in draws if (k := own_kappa(ours[d], theirs[d])) is not None]
                assert bounds(row) == pytest.approx(np.quantile(found, [0.025, 0.975]))
                checked += 1
    assert checked >= 5


def test_means_and_win_rates_from_the_kept_scores_and_verdicts(methods):
    study = numbers_of(methods[0], methods[1])
    kept, checked = study["per_item"], 0
    for method, rows in study["compared"]["rankings"].items():
        table = kept["scores"][method]
        common = [table["items"].index(item) for item in study["compared"]["items"]]
        for row in rows:
            values = np.asarray(table["values"][row["name"]], dtype=float)[common]
            assert row["value"] == pytest.approx(values.mean(), rel=1e-6, abs=1e-9)
            if row["low"] is not None:
                assert bounds(row) == pytest.approx(own_interval(values), rel=1e-6, abs=1e-9)
                checked += 1
    assert checked > 10
    checked = 0
    for name, judge in study["judges"].items():
        given = kept["verdicts"][name]
        for row in (row for row in judge["win_rates"] if row.get("interval") == "bootstrap" and row["n"]):
            orders: dict[tuple, list] = {}
            for item, shown_1, shown_2, preference, repeat, strength, _ in given["rows"]:
                pair = [given["models"][shown_1], given["models"][shown_2]]
                if set(pair) == {row["model"], row["against"]} and preference is not None:
                    gain = (strength or preference) - 1 if preference else 0.5  # of the second
                    orders.setdefault((item, repeat), []).append(gain if pair[1] == row["model"] else 1 - gain)
            items: dict[int, list] = {}
            for (item, _), both in orders.items():
                if len(both) == 2:
                    items.setdefault(item, []).append(np.mean(both))
            values = np.asarray([np.mean(repeats) for repeats in items.values()])
            assert row["n"] == len(values)
            assert row["value"] == pytest.approx(values.mean())
            if row["low"] is not None:
                assert bounds(row) == pytest.approx(own_interval(values))
                checked += 1
    assert checked >= 2


def test_kept_verdicts_can_be_read_again(methods):
    from eval_harness.agreement.pairwise import position_bias
    from ledpo_plugin.experiments.studies import kept
    from ledpo_plugin.experiments.studies.judged import read_verdicts

    study = numbers_of(methods[0], methods[1])
    for name, own in study["per_item"]["verdicts"].items():
        (before,) = [
            given for path in (methods[1] / "study/judge").iterdir() if (given := read_verdicts(path))[0].method == name
        ]
        again = kept.read_verdicts(own, name)
        assert [v.item for v in again] == [kept.item(v.item) for v in before]
        assert [v.second_gain for v in again] == [v.second_gain for v in before]
        assert position_bias(again, name) == position_bias(before, name)


def test_figures_of_decoding_from_the_kept_values(decoding):
    study = numbers_of(decoding[0], decoding[1])
    kept, checked = study["per_item"], 0
    assert len(kept["items"]) == study["n"]
    for setting in study["settings"]:
        values = kept["values"][setting["model"]][setting["decoding"]]
        groups = {None: range(study["n"])}
        groups |= {(kind, name): places for kind, own in kept["groups"].items() for name, places in own.items()}
        for group, places in groups.items():
            rows = setting["figures"] if group is None else setting["by"][group[0]][group[1]]
            for row in rows:
                if row["name"] == "distinct-2" or row["value"] is None:
                    continue
                own = np.asarray(values[row["name"]], dtype=float)[list(places)]
                own = own[np.isfinite(own)]
                assert row["value"] == pytest.approx(own.mean(), rel=1e-6, abs=1e-9)
                if row["low"] is not None:
                    assert bounds(row) == pytest.approx(own_interval(own), rel=1e-6, abs=1e-9)
                    checked += 1
    assert checked > 20


def test_a_study_of_an_earlier_version_says_what_it_lacks(methods):
    experiment, results, _ = methods
    path = results / "study/agreement/all/result.json"
    whole = path.read_text()
    try:
        write_json(path, {key: value for key, value in json.loads(whole).items() if key != "per_item"})
        assert "cannot be worked out again from results.json" in report_of(experiment, results)
    finally:
        path.write_text(whole)
    assert "cannot be worked out again from results.json" not in report_of(experiment, results)
