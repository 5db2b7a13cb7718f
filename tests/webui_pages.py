"""LlamaBoard as the stock command starts it, and a page of it in a real browser."""

import os
import random
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

CHROMIUM = Path("/usr/bin/chromium")
QUIET = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
# LlamaBoard's page asks for these, and there is no network in the tests: such errors are not the plugin's. Any other
# message of the console counts.
ELSEWHERE = ("https://fonts.googleapis.com/", "https://cdnjs.cloudflare.com/")


def _free_port() -> int:
    """Return a port that is free, and below those that connections take while the UI is still starting."""
    while True:
        port = random.randrange(20_000, 30_000)
        with socket.socket() as taken:
            if taken.connect_ex(("127.0.0.1", port)) != 0:
                return port


class Ui:
    """A running `llamafactory-cli webui` in a folder of its own."""

    def __init__(self, folder: Path, **env: str) -> None:
        self.folder, self.port = folder, _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        binaries = str(Path(sys.executable).parent)
        self.command = [f"{binaries}/llamafactory-cli", "webui"]
        own = {
            "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",  # the UI starts `llamafactory-cli` by name
            "GRADIO_SERVER_PORT": str(self.port),
            "GRADIO_SERVER_NAME": "127.0.0.1",
            "GRADIO_ANALYTICS_ENABLED": "False",
            "LLAMAFACTORY_VERBOSITY": "INFO",
            "PYTHONUNBUFFERED": "1",
            "NO_PROXY": "127.0.0.1,localhost",
        }
        self.env = os.environ | own | env
        self.log = folder / "ui.log"
        self.start()

    def start(self) -> None:
        """Start it, also after it was killed; return when it serves its page.

        gradio ends at once where it cannot reach its own page within 3 s, as on a machine that is very busy: then it is
        started again.
        """
        for _ in range(5):
            with self.log.open("w") as log:
                self.process = subprocess.Popen(self.command, cwd=self.folder, env=self.env, stdout=log, stderr=log)
            resource.prlimit(self.process.pid, resource.RLIMIT_CORE, (0, 0))  # the UI aborts runs by SIGABRT: no dumps
            if self._serves():
                return
            if "localhost is not accessible" not in self.log.read_text():
                break
        raise RuntimeError(self.log.read_text()[-3000:])

    def _serves(self) -> bool:
        """Wait until it says that it is there, or ends."""
        while self.process.poll() is None:
            if "To create a public link" in self.log.read_text():
                return httpx.get(f"{self.url}/config", timeout=120).status_code == 200
            time.sleep(0.1)
        return False

    def children(self) -> list[psutil.Process]:
        """Return the processes the UI has started that are still there."""
        running = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in running if child.status() != psutil.STATUS_ZOMBIE]

    def children_after(self, seconds: float) -> list[psutil.Process]:
        """Return the processes that are still there when none should be, after so long at most."""
        until = time.monotonic() + seconds
        while (left := self.children()) and time.monotonic() < until:
            time.sleep(0.1)
        return left

    def kill(self) -> None:
        """End it at once, as a crash would."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)


@contextmanager
def running_ui(folder: Path, **env: str):
    """A UI that is gone at the end, with what it started."""
    folder.mkdir(parents=True, exist_ok=True)
    ui = Ui(folder, **env)
    try:
        yield ui
    finally:
        left = ui.children() if ui.process.poll() is None else []
        ui.kill()
        for child in left:
            child.kill()


@contextmanager
def running_browser():
    """Debian's chromium, headless; the test is skipped where there is none."""
    if not CHROMIUM.is_file():
        pytest.skip(f"{CHROMIUM} is not installed (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield launched
        launched.close()


class Board:
    """The page of a UI: fields by their label or id, and every message of the console."""

    def __init__(self, browser, ui: Ui, width: int = 1400) -> None:
        self.ui, self.messages = ui, []
        self.page = browser.new_context(viewport={"width": width, "height": 1000}).new_page()
        self.page.set_default_timeout(180_000)  # ms; a busy machine can take longer than the usual 30 s
        for elsewhere in ELSEWHERE:  # fails at once instead of after a look-up; the page's own files are untouched
            self.page.route(f"{elsewhere}**", lambda route: route.abort())
        self.page.on("console", self._note)
        self._asked: set = set()  # requests of handlers that are still running
        self.page.on("request", lambda request: self._asked.add(request) if "/run/" in request.url else None)
        for end in ("requestfinished", "requestfailed"):
            self.page.on(end, lambda request: self._asked.discard(request))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.goto(ui.url)
        self.field("Stage").wait_for()

    def _note(self, message) -> None:
        where = message.location.get("url", "")
        outside = where.startswith(ELSEWHERE) or any(place in message.text for place in ELSEWHERE)
        if message.type == "error" and not outside:
            self.messages.append(f"{message.text} ({where})")

    def field(self, label: str):
        """Return a stock field of the tab that is shown, by the words above it."""
        named = f'//span[@data-testid="block-info" and normalize-space()="{label}"]'
        block = 'ancestor::*[contains(concat(" ", @class, " "), " block ")][1]'
        fields = self.page.locator(f"xpath={named}/{block}//*[self::input or self::textarea]")
        return fields.locator("visible=true").first

    def key(self, name: str):
        """Return the input of one of the form's recipe keys."""
        return self.page.locator(f"#ledpo_{name} input, #ledpo_{name} textarea").first

    def settle(self) -> None:
        """Wait until the page has followed: no handler runs any more, and none starts."""
        quiet = 0
        while quiet < 3:
            self.page.wait_for_timeout(100)
            quiet = 0 if self._asked else quiet + 1

    def choose(self, field, option: str) -> None:
        """Choose in a dropdown."""
        field.click()
        self.page.get_by_role("option", name=option, exact=True).click()
        self.page.keyboard.press("Tab")

    def fill(self, field, text: str) -> None:
        """Replace what a field holds, and leave it."""
        field.fill(text)
        field.press("Tab")

    def add(self, field, *names: str) -> None:
        """Add names to a dropdown that takes several, also ones that it does not list."""
        for name in names:
            field.click()
            field.fill(name)
            field.press("Enter")
        self.page.keyboard.press("Escape")
        self.page.keyboard.press("Tab")

    def press(self, button: str) -> None:
        """Press a button of the train tab."""
        self.page.get_by_role("button", name=button, exact=True).first.click()

    def stage(self, title: str) -> None:
        """Choose a stage and wait until the page has followed."""
        self.choose(self.field("Stage"), title)
        self.settle()  # the data sets are cleared
        state = "visible" if title.startswith("LEDPO") else "hidden"
        self.page.locator("#ledpo_accordion").wait_for(state=state)

    def model(self, path: str) -> None:
        """Name a model by its folder, and its template."""
        self.choose(self.field("Model name"), "Custom")
        self.settle()  # the path is cleared after the choice of the name
        self.fill(self.field("Model path"), path)
        self.choose(self.field("Chat template"), "chatml")

    def reload(self) -> None:
        """Open the page anew. gradio's script reports what it breaks off on leaving: no fault."""
        before = list(self.messages)
        self.page.reload()
        self.field("Stage").wait_for()
        left = ("AbortError", "Unexpected error Connection errored out")
        self.messages[:] = [text for text in self.messages if text in before or not text.startswith(left)]

    def open(self, title: str) -> None:
        """Open an accordion of the train tab."""
        button = self.page.get_by_role("button", name=title).first
        if "open" not in (button.get_attribute("class") or ""):
            button.click()

    def state(self, name: str) -> str:
        """Return what one of the form's fields shows."""
        field = self.key(name)
        if field.get_attribute("type") == "checkbox":
            return str(field.is_checked())
        return field.input_value() or self.page.locator(f"#ledpo_{name}").inner_text()

    def progress(self):
        """Return the bar of the run that is watched."""
        return self.page.get_by_text("Running ").first

    def said(self, pattern: str, timeout: float = 180) -> str:
        """Wait for a text in the box under the buttons; return all of it."""
        box = self.page.locator(".prose", has_text=re.compile(pattern)).last
        box.wait_for(timeout=timeout * 1000)
        return box.inner_text()
