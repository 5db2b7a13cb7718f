"""Whoever has results.json can work out its intervals again; here in a few lines of their own. And no text is in it."""

import json
import re
import shutil
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from experiment_results import DATASET, HOSTILE, INSTRUCTIONS, make
from scipy import stats

from ledpo_plugin.cli import main
from ledpo_plugin.experiments.reporting import rewrite_report, write_report

ACCURACY, NLL = f"{DATASET}/accuracy", f"{INSTRUCTIONS}/nll"


@pytest.fixture(params=[ACCURACY, NLL], ids=["accuracy", "nll"])
def numbers(request, tmp_path):
    """The content of results.json of a report that answers by this metric, and nothing else."""
    definition, states = make(tmp_path, ["dpo", "ledpo", "mix50"], [1, 2, 3])
    evaluation = definition["profile"]["evaluation"]
    for run in tmp_path.glob("runs/*/*"):  # answers of unlike lengths
        for path in run.glob(f"measures/*/instructions/{INSTRUCTIONS}.json"):
            content = json.loads(path.read_text())
            content["columns"]["length"] = [10 + 3 * place for place in range(24)]
            path.write_text(json.dumps(content))
    if request.param == NLL:
        evaluation |= {"primary": NLL, "secondary": [ACCURACY], "equivalence": {NLL: 0.5}}
        del evaluation["target"]
    write_report(tmp_path, definition, states)
    return json.loads((tmp_path / "results.json").read_text())


def test_every_interval_over_items_and_seeds_from_the_file_alone(numbers):
    """A reader's own lines: nothing of this package is used but the file."""
    kept, metric = numbers["per_item"], numbers["primary"]
    values = {(run["variant"], run["seed"]): run["values"] for run in kept["runs"]}
    rows = [row for row in numbers["comparisons"] if row["metric"] == metric]
    assert len(rows) == 2
    for row in rows:
        apart = np.mean(
            [np.subtract(values[row["variant"], s][metric], values[row["against"], s][metric]) for s in (1, 2, 3)],
            axis=0,
        )
        weight = (
            np.asarray(values[row["variant"], 1][kept["weights"][metric]]) if metric in kept["weights"] else np.ones(24)
        )
        boot = kept["bootstrap"]
        drawn = np.random.default_rng(boot["seed"]).integers(0, 24, (boot["resamples"], 24))
        means = (apart[drawn] * weight[drawn]).sum(axis=1) / weight[drawn].sum(axis=1)
        assert (row["items"]["low"], row["items"]["high"]) == pytest.approx(np.quantile(means, [0.025, 0.975]))
        assert row["items"]["mean"] == pytest.approx((apart * weight).sum() / weight.sum())
        if "equivalence" in row:
            narrow = row["equivalence"]["items"]
            assert (narrow["low"], narrow["high"]) == pytest.approx(np.quantile(means, [0.05, 0.95]))
    finals = {(run["variant"], run["seed"]): run["final"] for run in numbers["runs"]}
    for row in numbers["comparisons"]:
        pair = [[finals[row[side], s][row["metric"]] for s in (1, 2, 3)] for side in ("variant", "against")]
        assert row["difference"]["p"] == pytest.approx(stats.ttest_rel(*pair).pvalue)
    for name, metrics in numbers["metrics"].items():
        for metric, found in metrics.items():
            if found["low"] is not None:
                own = [finals[name, s][metric] for s in (1, 2, 3)]
                low, high = stats.t.interval(0.95, 2, np.mean(own), stats.sem(own))
                assert (found["low"], found["high"]) == pytest.approx((low, high))


def test_values_of_items_give_the_runs_metrics(numbers):
    finals = {(run["variant"], run["seed"]): run["final"] for run in numbers["runs"]}
    for run in numbers["per_item"]["runs"]:
        for short in ("accuracy", "margin", "chosen_shift", "rejected_shift"):
            name = f"{DATASET}/{short}"
            assert np.mean(run["values"][name]) == pytest.approx(finals[run["variant"], run["seed"]][name], rel=1e-7)


def test_no_text_is_in_the_numbers(tmp_path):
    definition, states = make(tmp_path, ["dpo", "ledpo"], [1, 2])
    write_report(tmp_path, definition, states)
    text = (tmp_path / "results.json").read_text()
    assert "capital of France" not in text
    assert not any(hostile[:20] in text for hostile in HOSTILE)


def with_ids(folder, ids):
    for number, path in enumerate(sorted(folder.glob(f"runs/*/*/measures/*/pairs/{DATASET}.json"))):
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | {"items": ids(path, number)}))


def test_ids_are_kept_and_runs_of_other_items_are_not_paired(tmp_path):
    definition, states = make(tmp_path, ["dpo", "ledpo", "orpo"], [1, 2])
    own = [f"{place:016x}" for place in range(24)]
    with_ids(tmp_path, lambda path, _: own[::-1] if "orpo" in path.parts else own)
    write_report(tmp_path, definition, states)
    numbers = json.loads((tmp_path / "results.json").read_text())
    assert numbers["per_item"]["items"][DATASET] == own
    assert [run.get("items") for run in numbers["per_item"]["runs"]] == [None] * 4 + [{DATASET: own[::-1]}] * 2
    rows = {row["variant"]: row for row in numbers["comparisons"] if row["metric"] == ACCURACY}
    assert rows["ledpo"]["items"]["n"] == 24
    assert rows["orpo"]["items"] is None


# ---- the report from the file


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The files of a report."""
    folder = tmp_path_factory.mktemp("whole")
    definition, states = make(folder, ["dpo", "ledpo", "orpo", "mix50"], [1, 2, 3], failed=(("orpo", 3),))
    return write_report(folder, definition, states)


@pytest.fixture
def reported(written, tmp_path):
    """A folder with a report and nothing of its runs."""
    for path in written:
        shutil.copy(path, tmp_path)
    shutil.copytree(written[0].parent / "plots", tmp_path / "plots")
    return tmp_path


def test_a_report_made_anew_from_its_numbers_is_the_same_to_the_byte(reported):
    before = contents(reported)
    assert {name for name in before if not name.startswith("plots/")} == {"report.html", "report.md", "results.json"}
    assert main(["report", str(reported)]) == 0
    assert contents(reported) == before


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_plot_is_a_file_that_the_text_shows_and_no_other_is_left(reported):
    (reported / "plots/gone.svg").write_text("<svg></svg>")
    rewrite_report(reported)
    shown = re.findall(r"^!\[.+\]\((plots/[\w.-]+\.svg)\)$", (reported / "report.md").read_text(), re.MULTILINE)
    assert len(shown) == len(set(shown)) >= 14
    assert {name for name in contents(reported) if name.startswith("plots/")} == set(shown)
    html = (reported / "report.html").read_text()
    assert all((reported / name).read_text() in html for name in shown)


def test_the_page_is_made_of_the_text_where_it_is_gone(reported):
    """Nothing of the text is lost, what was hostile in it acts no more than before, and the page says the same."""
    before = contents(reported)
    page = before["report.html"].decode()
    (reported / "report.html").unlink()
    assert main(["report", str(reported)]) == 0
    after = contents(reported)
    assert {name: after[name] for name in after if name != "report.html"} == {
        name: before[name] for name in before if name != "report.html"
    }
    made = after["report.html"].decode()
    assert re.findall(r'<section id="([^"]+)">', made) == re.findall(r'<section id="([^"]+)">', page)
    assert "Recipe of DPO" in made
    assert HOSTILE[0] in unescape(made)
    tags = {tag.lower() for tag in re.findall(r"<([a-zA-Z]+)", made)}
    assert tags - {tag.lower() for tag in re.findall(r"<([a-zA-Z]+)", page)} <= {"ul", "li", "strong"}


def test_what_follows_from_the_numbers_is_concluded_anew(reported):
    numbers = json.loads((reported / "results.json").read_text())
    for row in numbers["comparisons"]:
        row |= {"verdict": "better", "words": "Nonsense.", "detectable": None, "items": None, "difference": None}
    numbers["answer"] = "Nonsense."
    (reported / "results.json").write_text(json.dumps(numbers))
    before = (reported / "report.html").read_text()
    rewrite_report(reported)
    assert (reported / "report.html").read_text() == before


def test_without_the_documents_the_numbers_are_shown_all_the_same(reported):
    (reported / "report.html").unlink()
    (reported / "report.md").unlink()
    rewrite_report(reported, samples=False)
    html = (reported / "report.html").read_text()
    assert "Comparisons in the metric of the question" in html
    assert 'id="setup"' not in html
    assert "Prompts and answers were left out" in html


def test_samples_can_be_taken_out_afterwards(reported):
    assert HOSTILE[0] in (reported / "report.md").read_text()
    assert main(["report", str(reported), "--no-samples"]) == 0
    assert HOSTILE[0] not in (reported / "report.md").read_text()
    assert "Recipe of DPO" in (reported / "report.md").read_text()


def test_documents_of_another_report_are_refused(reported):
    (reported / "report.md").write_text("# Another\n\n## Answer\n")
    before = (reported / "results.json").read_bytes()
    with pytest.raises(ValueError, match="not of one report"):
        rewrite_report(reported)
    assert (reported / "results.json").read_bytes() == before


def test_results_of_an_earlier_version_still_load_and_say_what_they_lack(reported):
    numbers = json.loads((reported / "results.json").read_text())
    intervals = {row["variant"]: row["items"] for row in numbers["comparisons"] if row["metric"] == ACCURACY}
    for key in ("per_item", "reused", "contrasts", "equivalence", "title"):
        del numbers[key]
    numbers["format"] = 1
    del numbers["curves"]["drawn"], numbers["strategies"], numbers["prerequisites"]
    for row in numbers["comparisons"]:
        del row["detectable"]
    for row in [*numbers["budget"]["variants"].values(), *numbers["cost"].values()]:
        del row["measure_tokens"]
    (reported / "results.json").write_text(json.dumps(numbers))
    assert main(["report", str(reported)]) == 0
    again = json.loads((reported / "results.json").read_text())
    assert again["per_item"] is None
    assert {r["variant"]: r["items"] for r in again["comparisons"] if r["metric"] == ACCURACY} == intervals
    for name in ("report.html", "report.md"):
        assert "cannot be worked out again from results.json" in (reported / name).read_text()
    assert again["comparisons"][0]["detectable"]["value"] > 0


@pytest.mark.parametrize("content", ["[1, 2", "[]", '{"format": 99, "comparisons": []}', '{"format": 1}'])
def test_what_is_no_results_file_is_refused(tmp_path, content, capsys):
    (tmp_path / "results.json").write_text(content)
    assert main(["report", str(tmp_path)]) == 1
    assert "results.json" in capsys.readouterr().err
