"""The committed reports of real runs: whole, small, of enough seeds, under equal budgets and with exact mixtures."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from ledpo_plugin.experiments.report.reuse import other_results, reused
from ledpo_plugin.experiments.report.summary import FORMAT, renewed
from ledpo_plugin.experiments.reporting import rewrite_report

ROOT = Path(__file__).parents[2]
DEFINITIONS = {
    path.parent.name: yaml.safe_load(path.read_text(encoding="utf-8"))
    for path in sorted((ROOT / "yaml_recipes").glob("*/experiment.yaml"))
}
REPORTED = [name for name, definition in DEFINITIONS.items() if definition["status"] == "run"]


def results(name: str) -> dict:
    return json.loads((ROOT / "docs/results" / name / "results.json").read_text(encoding="utf-8"))


def remade(folder: Path, tmp_path: Path) -> str:
    """The page that `ledpo report` makes of a committed report; the text and the plots stay as they are."""
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("report.html"))
    rewrite_report(copy, beside=[path for path in sorted(folder.parent.iterdir()) if path != folder])
    for path in (folder / "report.md", *(folder / "plots").iterdir()):
        assert (copy / path.relative_to(folder)).read_bytes() == path.read_bytes(), path
    return (copy / "report.html").read_text(encoding="utf-8")


def test_what_was_run_has_a_report_and_nothing_else_has():
    folders = {path.name for path in (ROOT / "docs/results").iterdir() if path.is_dir()}
    assert folders == set(REPORTED)
    assert {"loss_variants_impact", "data_mixture_impact"} <= folders


@pytest.mark.parametrize("name", REPORTED)
def test_a_report_is_whole_and_small(name, tmp_path):
    folder = ROOT / "docs/results" / name
    names = {path.name for path in folder.iterdir()} - {"report.html"}  # which git ignores
    assert names == {"plots", "report.md", "results.json"}
    assert all(path.stat().st_size < 1_000_000 for path in folder.rglob("*"))
    html = remade(folder, tmp_path)
    assert not re.search(r"<script|https?://(?!www\.w3\.org)[\w.]+/[^\"' ]*\.(?:js|css)", html)
    assert "/root/" not in html + (folder / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", REPORTED)
def test_every_run_finished_and_kept_to_the_budget(name):
    found = results(name)
    assert {run["phase"] for run in found["runs"]} == {"finished"}
    seeds = {}
    for run in found["runs"]:
        seeds.setdefault(run["variant"], set()).add(run["seed"])
        used, amount = run["budget"]["used"], run["budget"]["amount"]
        assert amount == found["budget"]["amount"]
        # Operations end a run after the step in which they are used up, which may be one with a rollout.
        assert amount <= used <= 1.1 * amount if found["budget"]["unit"] == "flops" else used == amount
        assert run["unreadable_log_lines"] == 0
    assert min(map(len, seeds.values())) >= 3
    declared = DEFINITIONS[name]["profiles"]["cpu"]
    assert found["budget"]["unit"] in declared["budget"]
    assert set(seeds) <= set(declared.get("variants", DEFINITIONS[name]["variants"]))


def test_studies_have_all_their_methods_and_settings():
    study = results("evaluation_methods_impact")["study"]
    assert len(study["compared"]["models"]) == 13  # four variants of three seeds, and the untrained one
    assert len(study["judges"]) == 3
    assert {row["name"] for row in study["worse"]["rows"]} == set(study["compared"]["methods"])
    assert study["labels"]["n"] >= 30
    study = results("inference_optimization_impact")["study"]
    declared = DEFINITIONS["inference_optimization_impact"]["profiles"]["cpu"]["study"]
    ours = {row["decoding"] for row in study["settings"] if row["model"] == "ledpo-1"}
    assert ours == set(declared["decodings"])
    assert len(study["judges"]) == 1
    assert study["provenance"]["versions"]["torch"]


def test_four_strategies_at_equal_operations_with_what_they_were_spent_on():
    found = results("ledpo_rlhf_combination")
    assert set(found["labels"]) == {"ledpo", "ppo", "sequential", "alternating"}
    assert all(row["off"] == [] for row in found["budget"]["variants"].values())
    for name, cost in found["cost"].items():
        assert sum(cost["by_kind"].values()) * cost["runs"] == pytest.approx(cost["flops"])
        assert (cost["by_kind"]["generation"] > 0) == (name != "ledpo")
        assert found["strategies"]["signs"][name]["reward"]["judged"] == [1, 2, 3]
    assert [one["name"] for one in found["prerequisites"]] == ["reward", "judge"]
    for one in found["prerequisites"]:
        assert 0 <= one["accuracy"] <= 1
        assert one["train_seconds"] > 0


def test_at_least_four_losses():
    recipes = set(results("loss_variants_impact")["labels"])
    assert len(recipes & {"dpo", "ledpo", "ipo", "orpo", "simpo", "kto"}) >= 4


def test_all_four_mixtures_with_exact_shares_in_every_step():
    found = results("data_mixture_impact")
    assert {"general", "sft_25", "sft_50", "sft_75"} <= set(found["labels"])
    steps = {run["variant"]: run["usage"]["steps"] for run in found["runs"]}
    for variant, share in (("sft_25", 0.25), ("sft_50", 0.5), ("sft_75", 0.75)):
        row = found["mixture"][variant]
        assert row["declared"] == row["least"] == row["greatest"] == share
        assert row["logged"] == 3 * steps[variant]


def test_the_same_runs_have_one_verdict_in_every_report():
    shared = 0
    for name in REPORTED:
        found = results(name)
        own = {(row["variant"], row["against"]): row["verdict"] for row in found["comparisons"] if row.get("verdict")}
        for other in reused(found, other_results(ROOT / "docs/results" / name)):
            for row in other["contrasts"]:
                shared += 1
                assert own[row["variant"], row["against"]] == row["verdict"], (name, other["experiment"], row)
    assert shared >= 4  # LEDPO and ORPO against DPO, seen from both sides


@pytest.mark.parametrize("name", REPORTED)
def test_a_report_concludes_what_its_numbers_say(name):
    found = results(name)
    assert found["format"] == FORMAT, f"make it anew: ledpo report docs/results/{name}"
    again = renewed(found, other_results(ROOT / "docs/results" / name))
    for key in ("comparisons", "reused", "answer"):
        assert again[key] == found[key], f"make it anew: ledpo report docs/results/{name}"
    text = (ROOT / "docs/results" / name / "report.md").read_text(encoding="utf-8")
    assert all(
        "detectable with 80 % power" in row["words"] for row in found["comparisons"] if row.get("verdict") == "none"
    )
    assert ("cannot be worked out again from results.json" in text) == (found["per_item"] is None)


# Sentences of studies that were counted wrongly; the single verdicts and values were not kept (docs/evaluation.md).
WRONG = ("says the same in both orders of", "a verdict that turns with the order is a tie", "is highest (0.")


@pytest.mark.parametrize("name", REPORTED)
def test_a_wrong_sentence_stands_under_its_correction_alone(name, tmp_path):
    """At the head, before the first of them, in both files; and no report says so that was counted anew."""
    folder = ROOT / "docs/results" / name
    html = remade(folder, tmp_path)
    for file, text in {"report.md": (folder / "report.md").read_text(encoding="utf-8"), "report.html": html}.items():
        first = min((text.index(wrong) for wrong in WRONG if wrong in text), default=None)
        corrected = re.search(r"<strong>Correction\.</strong>|\*\*Correction\.\*\*", text)
        assert bool(corrected) == (first is not None), file
        assert not corrected or corrected.start() < first
