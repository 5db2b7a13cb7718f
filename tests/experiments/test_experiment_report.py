"""Reports of results folders made of plausible random numbers: contents, hostile texts, gaps, and a real browser."""

import json
import math
import re
import shutil
from collections import Counter
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from experiment_results import DATASET, HOSTILE, VARIANTS, make
from scipy import stats

from ledpo_plugin.common.plain_text import fenced, markdown, visible
from ledpo_plugin.experiments.report.formatting import decimals, estimate, significant, verdict
from ledpo_plugin.experiments.report.summary import summarise
from ledpo_plugin.experiments.reporting import rewrite_report, write_report
from ledpo_plugin.experiments.results.collected import collect

CHROMIUM = Path("/usr/bin/chromium")
QUIET = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
ACCURACY = f"{DATASET}/accuracy"


class Page(HTMLParser):
    """What a report's HTML holds: tags, ids, tables as rows of cells, texts of <pre>."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.ids, self.tables, self.texts = Counter(), [], [], []
        self._cell = self._pre = self._caption = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags[tag] += 1
        self.ids += [value for key, value in attributes if key == "id"]
        if tag == "table":
            self.tables.append(("", []))
        elif tag == "tr":
            self.tables[-1][1].append([])
        elif tag in ("td", "th", "caption"):
            self._cell = ""
        elif tag == "pre":
            self._pre = ""

    def handle_data(self, data):
        if self._cell is not None:
            self._cell += data
        if self._pre is not None:
            self._pre += data

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.tables[-1][1][-1].append(" ".join(self._cell.split()))
        elif tag == "caption":
            self.tables[-1] = (self._cell, self.tables[-1][1])
        elif tag == "pre":
            self.texts.append(self._pre)
        self._cell = None if tag in ("td", "th", "caption") else self._cell
        self._pre = None if tag == "pre" else self._pre

    def table(self, title: str) -> list[list[str]]:
        return next(rows for name, rows in self.tables if name == title)


def outside_fences(text: str) -> list[str]:
    """Return the lines of a Markdown text that are in no code block, by CommonMark's rule."""
    lines, fence = [], None
    for line in text.split("\n"):
        run = re.match(r" {0,3}(`{3,}|~{3,})", line)
        if fence is None:
            if run and not (run[1][0] == "`" and "`" in line[run.end() :]):
                fence = run[1]
            else:
                lines.append(line)
        elif run and run[1][0] == fence[0] and len(run[1]) >= len(fence) and not line[run.end() :].strip():
            fence = None
    assert fence is None
    return lines


def report(folder: Path, *arguments, **settings):
    """Write a report of made results and return its HTML, its Markdown and its numbers."""
    definition, states = make(folder, *arguments, **settings)
    return read(folder, definition, states)


def read(folder, definition, states, **options):
    def no_constant(name):
        raise AssertionError(f"{name} is no JSON")

    paths = write_report(folder, definition, states, **options)
    assert [path.name for path in paths] == ["report.html", "report.md", "results.json"]
    html, text, numbers = (path.read_text(encoding="utf-8") for path in paths)
    return html, text, json.loads(numbers, parse_constant=no_constant)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Four variants of three seeds, one run of them failed."""
    folder = tmp_path_factory.mktemp("results")
    definition, states = make(folder, ["dpo", "ledpo", "orpo", "mix50"], [1, 2, 3], failed=(("orpo", 3),))
    return folder, definition, states, *read(folder, definition, states)


def finals(folder, variant, seeds, metric=ACCURACY):
    paths = [folder / "runs" / variant / f"seed-{seed}" / "result.json" for seed in seeds]
    return [json.loads(path.read_text())["final"][metric] for path in paths]


# ---- numbers


def test_numbers_are_those_of_the_runs(whole):
    folder, *_, numbers = whole
    for variant, seeds in (("dpo", [1, 2, 3]), ("ledpo", [1, 2, 3]), ("orpo", [1, 2])):
        values = finals(folder, variant, seeds)
        found = numbers["metrics"][variant][ACCURACY]
        low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
        assert found["n"] == len(seeds)
        assert (found["mean"], found["low"], found["high"]) == pytest.approx((np.mean(values), low, high))


def test_comparisons_are_paired_by_seed_and_corrected(whole):
    folder, *_, numbers = whole
    rows = {row["variant"]: row for row in numbers["comparisons"] if row["metric"] == ACCURACY}
    assert list(rows) == ["ledpo", "orpo", "mix50"]
    p_values = []
    for variant, seeds in (("ledpo", [1, 2, 3]), ("orpo", [1, 2]), ("mix50", [1, 2, 3])):
        expected = stats.ttest_rel(finals(folder, variant, seeds), finals(folder, "dpo", seeds))
        assert rows[variant]["difference"]["seeds"] == seeds
        assert rows[variant]["difference"]["p"] == pytest.approx(expected.pvalue)
        p_values.append(expected.pvalue)
    corrected = dict(zip(rows, (min(1, p * 3) if p == min(p_values) else None for p in p_values), strict=True))
    for variant, p in corrected.items():
        if p is not None:
            assert rows[variant]["p_holm"] == pytest.approx(p)
    assert all(row["p_holm"] >= row["difference"]["p"] for row in rows.values())
    assert not any("p_holm" in row for row in numbers["comparisons"] if row["metric"] != ACCURACY)


def test_interval_over_items_is_of_the_same_difference(whole):
    *_, numbers = whole
    for row in numbers["comparisons"]:
        if row["metric"] == ACCURACY:
            assert row["items"]["n"] == 24
            assert row["items"]["mean"] == pytest.approx(row["difference"]["mean"])
            assert row["items"]["low"] <= row["items"]["mean"] <= row["items"]["high"]


def test_speed_counts_from_the_untrained_model(whole):
    folder, definition, states, *_ = whole
    target = {"metric": ACCURACY, "at_least": 0.5}
    evaluation = {**definition["profile"]["evaluation"], "target": target}
    changed = {**definition, "profile": {**definition["profile"], "evaluation": evaluation}}
    found = summarise(collect(folder, changed, states))
    assert found["convergence"]["variants"]["dpo"]["steps"] == [0, 0, 0]


def test_beta_and_mixture_only_where_there_is_any(whole):
    *_, numbers = whole
    assert list(numbers["beta"]) == ["ledpo"]
    assert numbers["beta"]["ledpo"]["n"] == 72  # 24 prompts, 3 seeds
    assert list(numbers["mixture"]) == ["mix50"]
    assert (numbers["mixture"]["mix50"]["least"], numbers["mixture"]["mix50"]["greatest"]) == (0.5, 0.5)


def test_spikes_and_collapse_are_found(tmp_path):
    numbers = summarise(collect(tmp_path, *make(tmp_path, ["dpo", "simpo"], [1, 2])))
    found = numbers["stability"]["simpo"]
    assert [run["spikes"] for run in found["runs"]] == [[20], [20]]
    assert numbers["stability"]["dpo"]["spikes"] == 0
    assert (found["fell"], found["checkpoints"], found["below_start"]) == (8, 8, 2)


# ---- both documents


def test_both_documents_hold_the_same_tables(whole):
    *_, html, text, _ = whole
    page = Page(html)
    lines = outside_fences(text)
    rows = [line for line in lines if line.startswith("|")]
    cells = sum(len(table) for _, table in page.tables)
    rules = sum(bool(re.fullmatch(r"\|( -+:? \|)+", row)) for row in rows)
    empty_heads = sum(row.replace("|", "").strip() == "" for row in rows)
    assert rules == len(page.tables)
    assert len(rows) - rules - empty_heads == cells
    for title, table in page.tables:
        assert f"**{markdown(title)}**" in lines
        for row in table:
            assert "| " + " | ".join(map(markdown, row)) + " |" in rows


def test_a_reader_finds_what_was_asked(whole):
    *_, html, text, numbers = whole
    for document in (html, text):
        for words in (
            "No difference",
            "95 % t-interval over seeds",
            "Holm",
            "11 of 12 planned runs",
            "0123456789abcdef",
        ):
            assert words in document
    page = Page(html)
    assert page.tags["svg"] >= 14
    setup = page.table("Variants")
    assert setup[3][2] == "stage: ledpo_orpo (ledpo); learning_rate: 8e-05 (5e-06)"
    budget = page.table("Budget, declared and used")
    assert budget[4][5] == "120 pairs + 120 instructions"
    assert budget[1][7:9] == ["61,440", "0 to 61,440"]
    assert numbers["answer"] in unescape(html)
    assert markdown(numbers["answer"]) in text


def test_secrets_are_not_shown(whole):
    *_, html, text, numbers = whole
    assert "hf_secret" not in html + text + json.dumps(numbers)


def test_same_results_give_the_same_bytes(whole):
    folder, definition, states, html, text, _ = whole
    before = (folder / "results.json").read_bytes()
    again = read(folder, definition, states)
    assert again[:2] == (html, text)
    assert (folder / "results.json").read_bytes() == before


def test_six_variants_stay_under_a_megabyte_with_ids_of_their_own(tmp_path):
    html, text, _ = report(tmp_path, list(VARIANTS), [1, 2, 3])
    assert len(html.encode()) < 600_000
    assert "× marks a spike" in html
    assert len(text.encode()) < 100_000
    ids = Page(html).ids
    assert len(ids) == len(set(ids)) > 50
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', html))
    assert used <= set(ids)


# ---- hostile texts


def test_what_models_write_is_text(whole):
    *_, html, text, _ = whole
    page = Page(html)
    assert page.tags["script"] == page.tags["img"] == page.tags["b"] == page.tags["a"] - html.count('<a href="#') == 0
    assert any(HOSTILE[0] in shown for shown in page.texts)
    lines = outside_fences(text)
    assert not any("alert(1)" in line or "not a heading" in line or "Traceback" in line for line in lines)
    assert HOSTILE[0] in text
    assert HOSTILE[1] in text
    assert not any(re.search(r"</?(script|img|b)\b", line) for line in lines)


def test_prompts_and_answers_can_be_left_out(whole, tmp_path):
    folder, definition, states, html, text, numbers = whole
    shutil.copytree(folder, tmp_path / "copy")
    bare = read(tmp_path / "copy", definition, states, samples=False)
    prompt = "What was answered, greedily"
    assert prompt in html
    assert prompt in text
    assert HOSTILE[0] not in bare[1]
    assert "Prompts and answers were left out" in bare[0]
    assert not any(prompt in document for document in bare[:2])
    assert bare[2] == numbers


def test_hidden_characters_are_seen(whole):
    *_, html, text, _ = whole
    for document in (html, text):
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", document)
        for mark in ("[U+202E]right[U+202C]", "[U+001B][31m", "[U+D83D]", "return[U+000D]and"):
            assert mark in document


@pytest.mark.parametrize("text", ["```", "a\n````\nb", "~~~\n`````x", "", "`" * 40])
def test_nothing_ends_a_fence(text):
    assert outside_fences(fenced(text) + "\nafter") == ["after"]


def test_markdown_of_one_line():
    assert markdown("a|b\n<b> & `c` *d* [e](f)") == r"a\|b &lt;b&gt; &amp; \`c\` \*d\* \[e\](f)"
    assert markdown("general_heldout/nll _x_") == r"general_heldout/nll \_x\_"
    assert markdown("# x") == r"\# x"
    assert markdown("1. x") == r"1\. x"
    assert markdown("0.5") == "0.5"
    assert visible("a\r\nb\u2028") == "a\nb[U+2028]"


# ---- gaps


def test_one_seed_is_not_tested(tmp_path):
    html, text, numbers = report(tmp_path, ["dpo", "ledpo"], [7])
    row = numbers["comparisons"][0]
    assert (row["difference"]["p"], row["p_holm"], row["verdict"]) == (None, None, "untested")
    assert numbers["metrics"]["dpo"][ACCURACY]["low"] is None
    for document in (html, text):
        assert "There is one seed only" in document
        assert "Not tested: one seed." in document


def test_identical_runs_are_not_tested(tmp_path):
    definition, states = make(tmp_path, ["dpo", "ledpo"], [1, 2])
    for seed in (1, 2):
        ours, theirs = (tmp_path / "runs" / name / f"seed-{seed}" / "result.json" for name in ("ledpo", "dpo"))
        ours.write_text(json.dumps({**json.loads(theirs.read_text()), "variant": "ledpo"}))
    html, _, numbers = read(tmp_path, definition, states)
    assert numbers["comparisons"][0]["words"] == "Not tested: the same as DPO with each of 2 seeds."
    assert "have the same mean" in html


def test_a_prediction_stands_beside_the_answer(tmp_path, whole):
    definition, states = make(tmp_path, ["dpo", "orpo"], [1, 2])
    definition["profile"]["prediction"] = "ORPO is\nnot <better>.\n"
    html, text, numbers = read(tmp_path, definition, states)
    answer = text.split("## Answer")[1].split("\n## ")[0]
    assert "Predicted before any run: ORPO is not" in answer
    assert "ORPO is not &lt;better&gt;." in html
    assert numbers["prediction"] == definition["profile"]["prediction"]
    rewrite_report(tmp_path)
    assert "Predicted before any run: ORPO is not" in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "Predicted" not in whole[1]


def test_nothing_finished(tmp_path):
    definition, states = make(tmp_path, ["dpo", "orpo"], [1], failed=(("dpo", 1), ("orpo", 1)))
    html, text, numbers = read(tmp_path, definition, states)
    for document in (html, text):
        assert "0 of 2 planned runs" in document
        assert "nothing to answer with yet" in document
        assert "RuntimeError" in document
        assert "8e-05" in document  # what was to be run is known
    assert numbers["date"] is None


def test_pending_runs_and_no_untrained_model(tmp_path):
    definition, states = make(tmp_path, ["dpo", "orpo"], [1, 2])
    (tmp_path / "base" / "3f2a" / "result.json").unlink()
    states[3] = {**states[3], "phase": "pending"}
    html, _, numbers = read(tmp_path, definition, states)
    assert "Pending: ORPO seed 2" in html
    assert numbers["bases"] == []
    assert numbers["curves"]["measured"][ACCURACY]["dpo"]["step"][0] > 0


def test_damaged_files_are_reported_not_fatal(tmp_path):
    definition, states = make(tmp_path, ["dpo", "ledpo"], [1, 2])
    (tmp_path / "runs" / "ledpo" / "seed-2" / "result.json").write_text('{"format": 1, "fin')
    for path in (tmp_path / "runs" / "ledpo" / "seed-1" / "measures").rglob("*.json"):
        path.write_text("[1, 2")
    path = tmp_path / "runs" / "dpo" / "seed-1" / "result.json"
    result = json.loads(path.read_text())
    result["training"][4]["loss"] = math.nan
    result["training"][5]["grad_norm"] = "Infinity"
    result["unreadable_log_lines"] = 2
    result["final"][f"{DATASET}/margin"] = math.nan
    path.write_text(json.dumps(result))
    html, _, numbers = read(tmp_path, definition, states)
    assert "Delete it and run this again" in html
    assert "2 lines of training logs could not be read" in html
    assert numbers["stability"]["dpo"]["not_finite"] == 2
    assert "2 logged values of loss or gradient norm not finite" in html
    assert numbers["comparisons"][0]["items"] is None
    assert "(1 seed: others not finite)" in html


def test_unequal_budgets_and_unlike_machines_are_said(tmp_path):
    definition, states = make(tmp_path, ["dpo", "orpo"], [1, 2])
    for seed, used in ((1, 248), (2, 249)):  # a step is 8 examples; more than one is too much
        path = tmp_path / "runs" / "orpo" / f"seed-{seed}" / "result.json"
        result = json.loads(path.read_text())
        result["budget"]["used"], result["usage"]["steps"] = used, 31
        result["provenance"]["versions"]["torch"] = f"2.{seed}"
        path.write_text(json.dumps(result))
    html, _, numbers = read(tmp_path, definition, states)
    assert numbers["budget"]["variants"]["orpo"]["off"] == [2]
    assert numbers["budget"]["variants"]["dpo"]["off"] == []
    assert "The budget is not equal: ORPO (seed 2)" in html
    assert "Runs differ in the version of torch: 2.14.1, 2.1, 2.2." in html


def test_a_metric_that_falls_is_read_as_such(tmp_path):
    definition, states = make(tmp_path, ["dpo", "mix50"], [1, 2, 3])
    evaluation = {**definition["profile"]["evaluation"], "primary": "instructions_heldout/nll", "secondary": []}
    del evaluation["target"]
    definition["profile"]["evaluation"] = evaluation
    numbers = summarise(collect(tmp_path, definition, states))
    assert "SFT 50 % <b>& a long name has the lowest mean instructions_heldout/nll" in numbers["answer"]
    row = numbers["comparisons"][0]
    assert row["difference"]["p"] < 0.05
    assert row["items"]["mean"] is not None
    assert numbers["convergence"] is None


# ---- words


def comparison(p, mean=0.1, low=None, high=None, metric=ACCURACY):
    return {"metric": metric, "difference": {"mean": mean, "p": p}, "items": {"low": low, "high": high}}


def test_verdicts_claim_no_more_than_was_tested():
    assert verdict(comparison(None)) == "untested"
    assert verdict(comparison(0.05)) == "none"
    assert verdict(comparison(0.04)) == "better"
    assert verdict(comparison(0.04, -0.1)) == "worse"
    assert verdict(comparison(0.04, 0.1, -0.01, 0.2)) == "seeds_only"
    assert verdict(comparison(0.04, 0.1, 0.01, 0.2)) == "better"
    assert verdict(comparison(0.04, -0.1, metric="i/nll")) == "better"
    assert verdict(comparison(0.04, -0.1, metric="d/chosen_shift")) == "lower"


def test_digits_follow_the_interval():
    assert estimate({"mean": 0.66123, "low": 0.61, "high": 0.71}) == "0.661 [0.611,\xa00.710]".replace("0.611", "0.610")
    assert estimate({"mean": 66123.4, "low": 60000.0, "high": 72000.0}) == "66,123 [60,000,\xa072,000]"
    assert estimate({"mean": 0.5, "low": None, "high": None}) == "0.500"
    assert estimate({"mean": -0.0001, "low": -1.0, "high": 1.0}, sign=True) == "0.0 [−1.0,\xa0+1.0]"
    assert [decimals(half) for half in (0.05, 0.5, 5.0, 50.0, 0.00012)] == [3, 2, 1, 0, 5]
    assert significant(1.5e-7) == "1.50 × 10^−7"
    assert significant(123456.0) == "123,456"


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


@pytest.mark.parametrize("width", [390, 1200])
def test_in_a_browser(whole, browser, width):
    """No console message, no request but for the file, nothing runs, nothing is cut off, on a phone and a desk."""
    folder = whole[0]
    page = browser.new_page(viewport={"width": width, "height": 900})
    messages, requests = [], []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("dialog", lambda dialog: (messages.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: requests.append(request.url))
    address = (folder / "report.html").as_uri()
    page.goto(address)
    assert messages == []
    assert requests == [address]
    assert page.evaluate("document.scripts.length") == 0
    assert HOSTILE[0] in page.inner_text("#texts")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    cut = page.evaluate(
        """() => [...document.querySelectorAll('figure svg text')].filter(text => {
            const inner = text.getBoundingClientRect(), outer = text.closest('svg').getBoundingClientRect();
            return inner.left < outer.left - 1 || inner.right > outer.right + 1 || inner.top < outer.top - 1
                || inner.bottom > outer.bottom + 1;
        }).map(text => text.textContent)"""
    )
    assert cut == []
    page.close()


def test_the_page_forbids_what_it_does_not_need(whole, browser):
    """Should a text get in as HTML all the same, it could neither run nor call home."""
    page = browser.new_page()
    refused = {}
    page.on("requestfailed", lambda request: refused.update({request.url: request.failure}))
    page.goto((whole[0] / "report.html").as_uri())
    page.evaluate(
        "document.body.insertAdjacentHTML('beforeend', '<img src=https://example.invalid/x onerror=\"hit=1\">')"
    )
    page.wait_for_timeout(200)  # for an event that should not come
    assert page.evaluate("typeof hit") == "undefined"
    assert refused == {"https://example.invalid/x": "csp"}
    page.close()
