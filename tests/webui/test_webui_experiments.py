"""The tab "Experiments" of LlamaBoard: its parts, and the stock `llamafactory-cli webui` in a real browser."""

import json
import os
import re
import subprocess
import sys
import time
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import psutil
import pytest
from experiment_results import HOSTILE, make
from tiny_experiment import write_experiment
from webui_pages import ELSEWHERE, Ui, running_browser, running_ui

from ledpo_plugin.common.files import read_json, write_json
from ledpo_plugin.common.lock import LOCK, locked
from ledpo_plugin.experiments.reporting import write_report
from ledpo_plugin.experiments.results.store import BACKGROUND, BACKGROUND_LOG, EXPERIMENT, ResultsError
from ledpo_plugin.experiments.running import background
from ledpo_plugin.experiments.running.overview import find_experiments, overview, sketch
from ledpo_plugin.webui import experiments_actions as actions
from ledpo_plugin.webui.experiments_texts import EXPERIMENT_LOCALES, LANGUAGES, WORDS, say

NAME = "<img src=x onerror=hit=1>"  # of an experiment: a folder may be called so
LABEL = "<b onmouseover=hit=2>LEDPO</b>"
TITLE = "</textarea><script>hit=3</script>A title"
PLACE = Path("runs/experiments") / NAME / "cpu"


# ---- texts


def test_every_label_and_word_is_there_in_five_languages():
    package = Path(background.__file__).parents[2]
    sources = "".join(path.read_text() for path in package.rglob("*.py") if path.name != "experiments_texts.py")
    assert [word for word in WORDS if f'"{word}"' not in sources] == [], "a word that nobody says"
    for word, texts in WORDS.items():
        assert tuple(texts) == LANGUAGES, word
        places = {lang: sorted(re.findall(r"\{\w*\}", text)) for lang, text in texts.items()}
        assert all(found == places["en"] for found in places.values()), (word, places)
        assert all(text.strip() for text in texts.values())
    for name, texts in EXPERIMENT_LOCALES.items():
        assert name.startswith("exp_")
        assert tuple(texts) == LANGUAGES, name
        assert len({tuple(entry) for entry in texts.values()}) == 1, name
        assert all(text.strip() for entry in texts.values() for text in entry.values())
        if name != "exp_beta_result":
            assert [lang for lang in LANGUAGES[1:] if texts[lang] == texts["en"]] == [], f"{name}: not translated"
    assert say("step_of", None, step=1, total="{step}") == "step 1 of {step}"


# ---- without a browser


def test_experiments_are_found_but_not_everywhere(tmp_path):
    for place in ("a/one", "a/b/two", "three", ".hidden/four", "a/b/c/d/five", "three/inside"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "experiment.yaml").write_text("name: x\n")
    (tmp_path / "link").symlink_to("a")
    found = [str(path.relative_to(tmp_path)) for path in find_experiments(tmp_path)]
    assert found == ["a/b/two", "a/one", "three"] or sorted(found) == ["a/b/two", "a/one", "three"]
    assert [path.name for path in find_experiments(tmp_path / "three")] == ["three"]
    sketches, wrong = actions.found_in(str(tmp_path / "none"))
    assert sketches == []
    assert "is no folder" in wrong


@pytest.mark.parametrize("text", ["", "[1, 2]", "profiles: 3", "profiles: {cpu: 3}\nvariants: x", "a: [", "title: [1]"])
def test_a_definition_of_any_shape_is_shown(tmp_path, text):
    (tmp_path / "experiment.yaml").write_text(text)
    found = sketch(tmp_path)
    assert found.name == tmp_path.name
    assert bool(found.error) == (text in ("[1, 2]", "a: ["))
    assert set(found.planned) <= {"cpu"}


def test_an_experiment_with_problems_is_not_started(tiny, tmp_path, monkeypatch):
    """The messages are those of `ledpo run`, all of them, and no process is there."""
    monkeypatch.chdir(tmp_path)
    folder = write_experiment(
        tmp_path / "tiny", tiny, recipes={"ledpo": {"beta_mode": "haed"}, "dpo": {"pref_beta": -1}}
    )
    said = actions.start(str(folder), "cpu", "ko")
    assert "haed" in said
    assert "pref_beta" in said
    assert "nothing was run" in said
    assert actions.start(str(folder), "gpu", "en").count("gpu") >= 1
    assert actions.start(None, None, "ja") == WORDS["choose"]["ja"]
    write_experiment(folder, tiny, resources={"cpus": 1, "memory_gb": 1e6, "disk_gb": 0.1})
    assert "Free some, or lower" in actions.start(str(folder), "cpu", "en")
    assert not (tmp_path / "runs").exists()


def test_who_is_at_work_is_known_and_only_that_is_stopped(tmp_path):
    results = tmp_path / "results"
    assert background.at_work(results) is None
    assert background.stop(results) is False
    with locked(results, "(ledpo run)"):
        present = background.at_work(results)
        assert (present.pid, present.here, present.started) == (os.getpid(), True, None)
        os.utime(results / LOCK, (1, 1))  # written before this process was born: by an earlier one of its number
        assert background.at_work(results).here is False
        with pytest.raises(ResultsError, match="Stop it there"):
            background.stop(results)
    sleeper = subprocess.Popen(["sleep", "600"])
    try:
        born = psutil.Process(sleeper.pid).create_time()
        facts = {"pid": sleeper.pid, "born": born, "host": os.uname().nodename, "started": "x"}
        for other in ({"born": born - 100}, {"host": "elsewhere"}, {"pid": "x"}):
            write_json(results / BACKGROUND, facts | other)
            assert background.at_work(results) is None
        write_json(results / BACKGROUND, facts)
        assert background.at_work(results).pid == sleeper.pid
        assert background.stop(results) is True
        assert not psutil.pid_exists(sleeper.pid)
    finally:
        sleeper.kill()


def test_what_does_not_listen_is_killed_with_its_children(tmp_path):
    """Also children that left its session."""
    code = (
        "import signal, subprocess, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "subprocess.Popen(['sleep', '600'], start_new_session=True); print(flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    process.stdout.readline()
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    facts = {"pid": process.pid, "born": family[0].create_time(), "host": os.uname().nodename}
    write_json(tmp_path / BACKGROUND, facts)
    assert len(family) == 2
    assert background.stop(tmp_path, patience=0.3) is True
    process.wait(timeout=10)
    assert [one for one in family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE] == []
    assert background.at_work(tmp_path) is None


@pytest.mark.parametrize(
    "run, prompt, said",
    [
        ("", "x", WORDS["no_run"]["en"]),
        ("runs/x", "  ", WORDS["no_prompt"]["en"]),
        ("--help", "x", "beta_head.json"),
        ("a\0b", "x", "null byte"),
    ],
)
def test_beta_of_what_has_none(tmp_path, monkeypatch, run, prompt, said):
    monkeypatch.chdir(tmp_path)
    assert said in actions.beta_of(run, prompt, "en")


# ---- a real browser


def wait_for(what, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def others(ui: Ui) -> list[psutil.Process]:
    """Return the processes that work in a web UI's folder, itself left out."""
    found = []
    for process in psutil.process_iter():
        try:
            inside = Path(process.cwd()).is_relative_to(ui.folder)
            if inside and process.pid != ui.process.pid and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


@pytest.fixture
def begin():
    """Start web UIs; none of them, and nothing that they started, is left behind."""
    with ExitStack() as stack:
        started = []

        def start(folder: Path, cache: Path) -> Ui:
            # BROWSER: the host opens one by itself
            started.append(stack.enter_context(running_ui(folder, LEDPO_CACHE=str(cache), BROWSER="true")))
            return started[-1]

        yield start
        for ui in started:
            ui.kill()
            for process in others(ui):
                process.kill()


@pytest.fixture(scope="module")
def browser():
    with running_browser() as launched:
        yield launched


class Tab:
    """The tab in a browser, with everything that the browser complained of."""

    def __init__(self, browser, ui: Ui):
        self.page = browser.new_context(viewport={"width": 1300, "height": 1000}).new_page()
        self.page.set_default_timeout(60_000)  # ms; a busy machine can take longer than the usual 30 s
        self.messages: list[str] = []
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.messages.append(dialog.message), dialog.dismiss()))
        for elsewhere in ELSEWHERE:
            self.page.route(f"{elsewhere}**", lambda route: route.abort())
        self.page.goto(ui.url)
        self.page.get_by_role("tab", name="Experiments").click()
        self.page.wait_for_selector("#exp_list table")

    def _heard(self, message) -> None:
        if message.type not in ("error", "warning"):
            return
        where = message.location.get("url", "")
        if not where.startswith(ELSEWHERE) and not any(place in message.text for place in ELSEWHERE):
            self.messages.append(f"{message.type}: {message.text} ({where})")

    def until(self, state: str, timeout: float = 120) -> None:
        """Wait until the chosen experiment is in a state."""
        self.page.wait_for_selector(f'#exp_status [data-state="{state}"]', timeout=timeout * 1000)

    def press(self, button: str) -> None:
        self.page.click(f"button#exp_{button}:enabled")

    def hears(self, text: str, box: str = "message") -> None:
        """Wait until a box says something that begins so."""
        script = "([box, text]) => document.querySelector(`#exp_${box} textarea`).value.startsWith(text)"
        self.page.wait_for_function(script, arg=[box, text])

    def choose(self, experiment: str) -> None:
        self.page.click("#exp_name input")
        self.page.get_by_role("option", name=experiment, exact=True).click()

    def check(self) -> None:
        """Nothing was complained of, and nothing of the hostile names has run."""
        assert self.messages == []
        assert self.page.evaluate("typeof hit") == "undefined"
        assert self.page.locator("#exp_list img, #exp_status b, #exp_status script, #exp_list script").count() == 0

    def leave(self) -> None:
        self.check()
        self.page.context.close()


@pytest.mark.timeout(900)
def test_started_killed_recognised_stopped_resumed_and_reported(tiny, tmp_path, begin, browser):
    """The web UI is killed alone, then with everything that it started; each time the next one goes on from there."""
    cwd, cache = tmp_path / "cwd", tmp_path / "cache"
    write_experiment(
        cwd / "yaml_recipes" / NAME,
        tiny,
        seeds=[1],
        variants={"dpo": None, "orpo": None, "ledpo": {"label": LABEL}},
        top={"title": TITLE, "question": NAME, "baseline": "ledpo"},
        evaluation={"pairs": ["heldout"], "primary": "heldout/accuracy"},
    )
    results = cwd / PLACE

    ui = begin(cwd, cache)
    tab = Tab(browser, ui)
    assert NAME in tab.page.inner_text("#exp_list")
    assert TITLE in tab.page.inner_text("#exp_list")
    tab.until("not_started")
    assert tab.page.input_value("#exp_name input") == NAME
    tab.press("start")
    tab.until("running")
    tab.hears("Started as process")
    wait_for(lambda: (results / EXPERIMENT).is_file())
    with locked(results / "runs/ledpo/seed-1", "(a test)"):  # the run waits: it is not through before it is stopped
        tab.check()
        ui.kill()
        tab.page.context.close()

        ui = begin(cwd, cache)  # the run went on, and is recognised without a click
        assert background.at_work(results).pid == read_json(results / BACKGROUND)["pid"]
        tab = Tab(browser, ui)
        tab.until("running")
        assert LABEL in tab.page.inner_text("#exp_status")
        wait_for(lambda: list(results.glob("base/*/result.json")))
        assert len(others(ui)) >= 2  # the run and its worker
        tab.press("stop")
        tab.until("interrupted")
        tab.hears(WORDS["stopped"]["en"])
        assert others(ui) == []  # nothing is left behind
    kept = {path: path.stat().st_mtime_ns for path in results.glob("base/*/result.json")}
    assert kept
    tab.press("resume")
    tab.until("running")
    wait_for(lambda: len(others(ui)) >= 2)  # the run and a worker
    tab.check()
    victims = others(ui)
    ui.kill()
    tab.page.context.close()
    for process in victims:
        process.kill()
    wait_for(lambda: others(ui) == [], 20)
    wait_for(lambda: background.at_work(results) is None, 20)

    ui = begin(cwd, cache)
    tab = Tab(browser, ui)
    tab.until("interrupted")
    assert say("goes_on", "en") in tab.page.inner_text("#exp_status")
    tab.press("resume")
    tab.until("running")
    tab.until("finished", 300)
    assert overview(results).finished
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # finished work was not done again
    tab.press("report_show")
    frame = tab.page.frame_locator("#exp_report iframe")
    assert frame.locator("h1").inner_text() == TITLE
    assert LABEL in frame.locator("main").inner_text()
    assert tab.page.get_attribute("#exp_report iframe", "sandbox") == ""

    tab.page.click("#exp_beta button")
    tab.page.click("#exp_beta_run input")
    tab.page.get_by_role("option", name=LABEL).click()
    tab.page.fill("#exp_beta_prompt textarea", "river <b>stone</b> light")
    tab.page.click("#exp_beta_compute")
    done = subprocess.run(
        [str(Path(sys.executable).parent / "ledpo"), "beta", str(results / "runs/ledpo/seed-1/train")]
        + ["--jsonl", "--prompt", "river <b>stone</b> light"],
        capture_output=True,
        text=True,
        check=True,
    )
    row = json.loads(done.stdout.splitlines()[-1])
    assert row["beta"] != 0.1
    tab.hears(say("beta", "en", beta=f"{row['beta']:.6g}", tokens=row["prompt_tokens"]), "beta_result")
    tab.page.screenshot(path=tmp_path / "experiments.png", full_page=True)
    tab.leave()


FORGED = """<!DOCTYPE html><html><head><meta http-equiv="refresh" content="0;url=https://evil.example/refresh">
<meta http-equiv="Content-Security-Policy" content="default-src *"><link rel="stylesheet" href="https://evil.example/a.css">
<script>parent.hit = 4; top.location = "https://evil.example/script"</script></head>
<body onload="parent.hit = 5"><h1>A forged report</h1><img src="https://evil.example/b.png" onerror="parent.hit = 6">
<iframe src="https://evil.example/frame"></iframe><a id="out" href="https://evil.example/top" target="_top">out</a>
<form action="https://evil.example/form"><button id="send">send</button></form></body></html>"""


class Asked(BaseHTTPRequestHandler):
    """Notes what is asked for."""

    def do_GET(self):
        self.server.asked.append(self.path)
        self.send_response(404)
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def evil():
    """A server that a forged report wants to reach; what a browser refuses to send does not come to it."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Asked) as server:
        server.url, server.asked = f"http://127.0.0.1:{server.server_port}", []
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def made_results(results: Path) -> None:
    """Write results of four variants, of which one run failed, with their report."""
    definition, runs = make(results, ["dpo", "ledpo", "orpo", "mix50"], [1, 2], failed=(("orpo", 2),))
    recipes = {name: {} for name in definition["variants"]}
    write_json(
        results / "experiment.json", {"format": 1, "definition": definition, "recipes": recipes, "data_sha256": {}}
    )
    for run in runs:
        if run["phase"] == "failed":
            write_json(Path(run["folder"]) / "state.json", run | {"error": f"{NAME} failed"})
    write_report(results, definition, runs)
    (results / BACKGROUND_LOG).write_text(f"{NAME} was started\n\x1b[31mred\n")


@pytest.mark.timeout(600)
def test_languages_reports_and_refusals(tiny, tmp_path, begin, browser, evil):
    """Everything that needs no run: five languages, a hostile report, a broken experiment, folders of any name."""
    cwd = tmp_path / "cwd"
    for name in ("broken", "forged", "made"):
        recipes = {"ledpo": {"beta_mode": "haed"}} if name == "broken" else None
        write_experiment(cwd / "yaml_recipes" / name, tiny, recipes=recipes)
    write_experiment(cwd / "else where" / NAME, tiny)
    for name in ("forged", "made"):
        made_results(cwd / "runs/experiments" / name / "cpu")
    (cwd / "runs/experiments/forged/cpu/report.html").write_text(FORGED.replace("https://evil.example", evil.url))
    ui = begin(cwd, tmp_path / "cache")
    tab = Tab(browser, ui)
    page = tab.page

    tab.choose("made")
    tab.until("failed")
    assert f"{NAME} failed" in page.inner_text("#exp_status")
    assert "7 of 8 finished, 1 failed" in page.inner_text("#exp_status")
    assert page.input_value("#exp_log textarea") == f"{NAME} was started\n[U+001B][31mred"
    page.click("#exp_beta button")
    for lang in ("ru", "zh", "ko", "ja", "en"):
        page.get_by_role("listbox").first.click()
        page.get_by_role("option", name=lang, exact=True).click()
        page.locator("#exp_start", has_text=EXPERIMENT_LOCALES["exp_start_btn"][lang]["value"]).wait_for()
        page.locator("#exp_status").get_by_role("cell", name=WORDS["failed"][lang], exact=True).wait_for()
        text = page.inner_text("body")
        for name, entries in EXPERIMENT_LOCALES.items():
            if name != "exp_report_close_btn":  # shown with a report
                assert [shown for shown in entries[lang].values() if shown not in text] == [], (lang, name)
        assert WORDS["runs_failed"][lang].format(failed=1) in text
        assert page.input_value("#exp_name input") == "made"

    tab.press("report_show")
    frame = page.frame_locator("#exp_report iframe")
    assert frame.locator("h1").inner_text() == "Loss variants"
    assert HOSTILE[0] in frame.locator("#texts").inner_text()
    frame.locator("nav a").last.click()  # to a place in the report, not out of it
    frame.locator(":target").wait_for()
    assert frame.locator("h1").inner_text() == "Loss variants"
    assert page.url == f"{ui.url}/"
    page.click("#exp_report_close")
    page.wait_for_selector("#exp_report iframe", state="detached")
    tab.check()

    tab.choose("forged")
    tab.press("report_show")
    assert frame.locator("h1").inner_text() == "A forged report"
    frame.locator("#send").click()
    frame.locator("#out").click()
    page.wait_for_timeout(500)
    assert page.url == f"{ui.url}/"
    assert evil.asked == []
    assert page.evaluate("typeof hit") == "undefined"
    refused = [message for message in tab.messages if evil.url in message or "about:srcdoc" in message]
    assert refused == tab.messages  # the browser says what it refused, and nothing else
    tab.messages.clear()

    tab.choose("broken")
    page.wait_for_selector("#exp_report iframe", state="detached")
    tab.until("not_started")
    tab.press("start")
    tab.hears("yaml_recipes/broken (profile cpu)")
    assert "beta_mode" in page.input_value("#exp_message textarea")
    assert others(ui) == []
    assert not (cwd / "runs/experiments/broken").exists()

    page.fill("#exp_folder textarea", "nowhere<b>")
    page.click("#exp_find")
    page.locator("#exp_list", has_text="nowhere<b> is no folder").wait_for()
    page.fill("#exp_folder textarea", str(cwd / "else where"))
    page.keyboard.press("Enter")
    page.locator("#exp_list").get_by_role("cell", name=NAME, exact=True).wait_for()
    tab.until("not_started")
    assert page.input_value("#exp_name input") == NAME
    tab.leave()
