"""The page in a real browser, over a run that goes on meanwhile."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from prrfl.config import load_config
from prrfl.runs.folder import RunFolder
from tests.live.conftest import served, until

CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="the package playwright is missing")
    if not CHROMIUM.is_file():
        pytest.skip(f"{CHROMIUM} is missing")
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def page(browser):
    """A page that writes down what it asks for, and what goes wrong on it."""
    context = browser.new_context(viewport={"width": 390, "height": 800})
    made = context.new_page()
    made.asked, made.wrong = [], []
    made.on("request", lambda request: made.asked.append(request.url))
    made.on("pageerror", lambda error: made.wrong.append(str(error)))
    made.on("console", lambda line: made.wrong.append(line.text) if line.type == "error" else None)
    made.set_default_timeout(20_000)
    yield made
    context.close()


def cells(page, site):
    return page.locator(f"#rows tr:has(th:text-is('{site}')) td").all_inner_texts()


def test_a_run_is_seen_to_go_on(going, page):
    folder, records = going
    until(records, "train")
    with served(folder) as server:
        page.goto(server.url)
        # The first site has trained one epoch, in batches of four and five images; the second one waits.
        page.get_by_text("epoch 2 of 2, batch 0 of 2", exact=True).wait_for()
        assert page.locator("#says").inner_text() == "round 1 of 3"
        assert page.locator("#curves").is_hidden()
        before = float(page.locator("#percent").inner_text().removesuffix(" %"))
        assert 0 < before < 50
        assert cells(page, "clientB")[0] == "waiting"

        until(records, "exchange")
        page.get_by_text("round 2 of 3", exact=True).wait_for()
        assert float(page.locator("#percent").inner_text().removesuffix(" %")) > before
        scores = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for site in ("clientA", "clientB"):
            newest = {s["split"]: s["scores"]["macro_f1"] for s in scores if deployed_at(s, site)}
            assert cells(page, site)[2:] == [f"{100 * newest[split]:.2f}" for split in ("test", "valid")]
        titles = page.locator("#drawing .part-title").all_inner_texts()
        assert titles == ["mean of sites", "clientA", "clientB"]
        drawn = page.locator("#drawing").inner_html()

        for _ in records:
            pass
        page.get_by_text("finished: 3 rounds", exact=True).wait_for()
        assert page.locator("#drawing").inner_html() != drawn
        assert page.locator("#going").is_hidden()
        assert page.locator("#steps code").first.inner_text() == f"prrfl report '{folder}'"
        assert "round 3 done" in page.locator("#log").inner_text()
        # Nothing is off-screen on a telephone, and nothing came from elsewhere.
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert {url.rpartition("/")[0] + "/" for url in page.asked} == {server.url}
        assert not page.wrong
        axe = pytest.importorskip("axe_playwright_python.sync_playwright")
        assert not [fault["id"] for fault in axe.Axe().run(page).response["violations"]]
    page.locator("#lost").wait_for()  # the server has ended


def deployed_at(record, site):
    return record["kind"] == "score" and record["deployed"] and record["client"] == site


def test_what_a_folder_holds_never_becomes_markup(going, page):
    folder, records = going
    until(records, "exchange")
    with (folder / "log.txt").open("a") as log:
        log.write("2026-01-01 00:00:00 WARNING <img src=x onerror=\"document.title='broken'\">\n")
    with served(folder) as server:
        page.goto(server.url)
        page.get_by_text("onerror").first.wait_for()
        assert "broken" not in page.title()
        assert page.locator("img").count() == 0


def test_ctrl_c_ends_the_command_politely(data, tmp_path):
    RunFolder(tmp_path).begin(load_config(None, {"data": data}))
    command = [sys.executable, "-m", "prrfl", "watch", str(tmp_path), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        assert re.search(r"open http://127\.0\.0\.1:\d+/\S+/ in a browser", line)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
