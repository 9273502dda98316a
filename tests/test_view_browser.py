"""The page in a real browser, headless: clicked, read, searched by keyboard, followed live, and audited by axe.

Skipped where there is no Chromium or no Playwright (`make browser` brings both, where it can).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from envrl.report.page import write_report
from envrl.report.server import ViewServer
from view_runs import HOSTILE, WON, data_of, episode, evaluation, kept, metric, write_lines, write_run

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: make browser")
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM = next((found for name in NAMES if (found := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here: make browser")

READ = "trajectories/eval-000020-valid_seen.jsonl@0"
PHONE = {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sandbox = ["--no-sandbox"] if hasattr(os, "getuid") and os.getuid() == 0 else []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run, and another one whose texts are an attack."""
    folder = tmp_path_factory.mktemp("runs")
    first, other = write_run(folder / "demo"), write_run(folder / "other")
    bad = episode("task/1", [HOSTILE, HOSTILE], observation=HOSTILE, kind=HOSTILE)
    for step in bad["steps"]:
        step |= {"observation": HOSTILE, "next_observation": HOSTILE, "response": f"{HOSTILE}!", "fault": HOSTILE}
        step |= {"predicted_observation": f"x {HOSTILE}", "predicted_action": HOSTILE}
        step |= {"token_texts": [HOSTILE, "!"], "logprobs": [-1.0, -2.0]}
    write_lines(other / "trajectories" / "update-000010.jsonl", [bad])
    by_task = {HOSTILE: {"episodes": 8, "success_rate": 0.5, "ci95": [0.2, 0.8]}}
    write_lines(other / "eval.jsonl", [evaluation(0, HOSTILE, 0.5, [0.4, 0.6], by_task=by_task)])
    write_lines(
        other / "metrics.jsonl", [metric(u, **{f"loss/{HOSTILE}": 1.0}, seconds={HOSTILE: 1.0}) for u in (1, 2)]
    )
    return first, other


@pytest.fixture(scope="module")
def address(runs: tuple[Path, Path]) -> Iterator[str]:
    with ViewServer(runs, 0) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server.url
        server.shutdown()


class Tab:
    """A page with what went wrong in it."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.context = browser.new_context(viewport={"width": 1200, "height": 800}, **options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(10_000)
        self.wrong: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: message.type == "error" and self.wrong.append(message.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("dialog", lambda dialog: self.wrong.append(f"dialog {dialog.message}"))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.address = address

    def open(self, view: str = "") -> Any:
        self.page.goto(f"{self.address}{view}")
        self.page.wait_for_selector("h1")
        return self.page


@pytest.fixture
def tab(browser: Any, address: str) -> Iterator[Tab]:
    tab = Tab(browser, address)
    yield tab
    tab.context.close()
    assert tab.wrong == []


def at(run: int, id_: str, **parameters: str) -> str:
    query = "&".join(f"{name}={quote(value, safe='')}" for name, value in parameters.items())
    return f"#/{run}/episode/{quote(id_, safe='')}{f'?{query}' if query else ''}"


def texts(found: Any) -> list[str]:
    """Texts with ordinary spaces before their per-cent signs."""
    return [text.replace("\N{NO-BREAK SPACE}", " ") for text in found.all_inner_texts()]


def listed(page: Any, count: int) -> None:
    """Wait until the list has so many episodes."""
    playwright.expect(page.locator(".list li")).to_have_count(count)


def goals(page: Any) -> list[str]:
    return page.locator(".list .about").all_inner_texts()


# --- finding episodes ------------------------------------------------------------------------------------------------


def test_a_count_of_failures_leads_to_its_episodes(tab: Tab) -> None:
    page = tab.open()
    table = page.locator("section", has_text="Where episodes fail").get_by_role("table").first
    assert table.locator("thead th").all_inner_texts() == [
        *("episodes of", "played", "won", "In a loop", "Wrong object", "Wrong place", "Out of time"),
    ]
    before = table.get_by_role("row", name="valid_seen, update 0")
    assert texts(before.locator("td")) == ["3", "0", "1 33 %", "1 33 %", "0", "1 33 %"]
    before.get_by_role("link").nth(2).click()
    page.wait_for_selector(".list")
    assert goals(page) == ["pick_two · valid_seen, update 0 · 4 turns"]
    assert page.locator(".list .why").inner_text() == "Wrong object"
    page.locator(".list a").click()
    playwright.expect(page.locator(".turn")).to_have_count(4)


def test_filters_narrow_the_list_and_stand_in_the_address(tab: Tab) -> None:
    page = tab.open("#/0/episodes")
    assert len(goals(page)) == 10
    page.get_by_label("Outcome").select_option("lost")
    listed(page, 9)
    page.get_by_label("Type of task").select_option("pick_two")
    listed(page, 5 + 4)
    page.get_by_label("Words in it").fill("TAKE pen")
    page.get_by_role("button", name="Search").click()
    listed(page, 2)
    page.get_by_label("Played in").select_option("training, update 10")
    listed(page, 1)
    kept_address = page.url
    page.get_by_role("link", name="Show all").click()
    listed(page, 10)
    page.goto(kept_address)
    listed(page, 1)
    assert page.locator(".pill").first.inner_text() == "1 of 10 episodes"


def test_keys_go_to_the_next_the_previous_and_the_next_failure(tab: Tab) -> None:
    page = tab.open("#/0/episodes")
    for key, position in (("j", 1), ("j", 2), ("j", 3), ("k", 2), ("f", 3), ("f", 4)):
        page.keyboard.press(key)
        playwright.expect(page.locator("#position")).to_have_text(f"{position} of 10")
    page.keyboard.press("Escape")
    page.wait_for_selector(".list")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "words"
    page.keyboard.type("jkf")
    assert page.get_by_label("Words in it").input_value() == "jkf", "in a field a key is a letter"
    page.get_by_role("button", name="Keys").click()
    page.get_by_label("Keys are on").uncheck()
    page.get_by_role("button", name="Close").click()
    page.keyboard.press("j")
    assert page.url.endswith("#/0/episodes")


# --- reading an episode ----------------------------------------------------------------------------------------------


def shades(page: Any) -> list[tuple[str, str, str]]:
    """The text, kind and strength of every shaded token of the last turn."""
    found = page.locator(".turn").last.locator(".shaded")
    script = "all => all.map(e => [e.firstChild.textContent, e.classList[2], e.style.getPropertyValue('--strength')])"
    return [tuple(each) for each in found.evaluate_all(script)]


def shade(page: Any, figure: str) -> None:
    page.get_by_label("Shade tokens by").select_option(figure)
    playwright.expect(page.locator(".shaded").first).to_have_attribute("title", re.compile(f"^{figure}: "))


def test_tokens_are_shaded_by_each_figure(tab: Tab) -> None:
    page = tab.open(at(0, READ))
    assert shades(page) == [
        ("move", "odd", "10%"),  # 1 - exp(-0.1)
        (" cd", "odd", "92%"),  # 1 - exp(-2.5)
        (" 1 to desk 1", "odd", "0%"),
        ("⏎", "odd", "0%"),
    ]
    shade(page, "entropy")
    assert [strength for *_, strength in shades(page)] == ["33%", "100%", "0%", "0%"], "0.4 and 1.2 of 1.2"
    shade(page, "advantage: step")
    assert {(kind, strength) for _, kind, strength in shades(page)} == {("bad", "100%")}
    shade(page, "advantage: episode")
    assert {kind for _, kind, _ in shades(page)} == {"good"}
    page.get_by_label("Figures below").check()
    playwright.expect(page.locator(".turn").last.locator(".number")).to_have_text(["0.9"] * 4)
    assert page.locator(".shaded").first.get_attribute("title") == "advantage: episode: 0.9"


def test_predictions_stand_beside_what_came_and_the_guess_is_judged(tab: Tab) -> None:
    page = tab.open(at(0, READ))
    last = page.locator(".turn").last
    assert last.locator("mark").all_inner_texts() == ["cd"]
    assert last.locator("del").all_inner_texts() == ["pen"]
    assert last.locator(".guess").inner_text() == "Guessed from what came of it: move pen 1 to desk 1 ✗ wrong"
    assert "reward 1" in last.locator(".marks").inner_text()
    assert "surprise 0.42" in last.locator(".marks").inner_text()


def test_what_is_not_recorded_is_said(tab: Tab) -> None:
    page = tab.open("#/0/episodes?from=valid_seen%2C%20update%200")
    page.locator(".list a").first.click()
    note = page.get_by_text("Not recorded here: ").inner_text()
    assert note == "Not recorded here: figures of single tokens, predicted answers, guesses of the command."
    options = page.get_by_label("Shade tokens by").locator("option").all_inner_texts()
    assert options == ["nothing", "probability", "entropy (not recorded here)", "advantage (not recorded here)"]
    playwright.expect(page.locator(".mark", has_text="repeated")).to_have_count(3)


def test_invalid_commands_are_marked(tab: Tab) -> None:
    page = tab.open("#/0/episodes?why=time&from=training%2C%20update%2010")
    page.locator(".list a").first.click()
    page.wait_for_selector(".turn")
    assert page.locator(".turn.invalid code").all_inner_texts() == ["> open drawer 1"]


def test_the_same_task_before_and_in_another_run(tab: Tab) -> None:
    page = tab.open(at(0, READ))
    choices = page.get_by_label("Beside it").locator("option").all_inner_texts()
    assert choices == [
        "nothing",
        "demo: valid_seen, update 0 · lost in 6",
        "other: valid_seen, update 0 · lost in 6",
        "other: valid_seen, update 20 · won in 3",
        "other: training, update 10 · lost in 2",
    ]
    page.get_by_label("Beside it").select_option(choices[1])
    playwright.expect(page.locator("article")).to_have_count(2)
    assert page.locator("article").nth(1).get_attribute("aria-label") == "demo: valid_seen, update 0"
    for label in ("other: valid_seen, update 0", "other: valid_seen, update 20"):
        page.keyboard.press("b")
        playwright.expect(page.locator("article").nth(1)).to_have_attribute("aria-label", label)
    assert page.locator("article .turn").count() == 3 + 3


# --- texts that are an attack ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("served", [True, False])
def test_no_script_of_a_run_runs(
    browser: Any, address: str, runs: tuple[Path, Path], served: bool, tmp_path: Path
) -> None:
    where, number = (address, 1) if served else (write_report(runs[1]).as_uri(), 0)
    tab = Tab(browser, where)
    for view in ("", "/episodes", ""):
        page = tab.open(f"#/{number}{view}")
    page = tab.open(at(number, "trajectories/update-000010.jsonl@0"))
    page.wait_for_selector(".turn")
    assert HOSTILE in page.locator(".turn .says").first.inner_text(), "shown as it is"
    playwright.expect(page.locator("main script, main img, main b")).to_have_count(0)
    page.wait_for_timeout(100)
    assert page.evaluate("window.ran") is None
    assert tab.wrong == []
    tab.context.close()


def test_the_pages_policy_would_stop_a_script(browser: Any, address: str) -> None:
    tab = Tab(browser, address)
    page = tab.open()
    page.evaluate("(text) => { document.querySelector('main').innerHTML = text }", HOSTILE)
    added = "const script = document.createElement('script'); script.textContent = 'window.ran = 1';"
    page.evaluate(f"() => {{ {added} document.body.append(script); }}")
    page.wait_for_timeout(200)
    assert page.evaluate("window.ran") is None
    assert any("Content Security Policy" in text for text in tab.wrong)
    tab.context.close()


# --- one file, a run that goes on, every reader ----------------------------------------------------------------------


def test_the_report_is_the_same_page_in_one_file(browser: Any, runs: tuple[Path, Path], tab: Tab) -> None:
    path = write_report(runs[0])
    file = Tab(browser, path.as_uri())
    headings = [each.open().locator("h2").all_inner_texts() for each in (file, tab)]
    assert headings[0] == headings[1]
    texts = [each.page.locator("main").inner_text() for each in (file, tab)]
    assert texts[0] == texts[1]
    assert file.page.locator("svg.chart").count() == tab.page.locator("svg.chart").count() > 3
    page = file.open("#/0/episodes?words=TAKE%20pen")
    playwright.expect(page.locator(".list li")).to_have_count(3)
    page.locator(".list a").last.click()
    playwright.expect(page.locator(".turn")).to_have_count(3)
    asked = {url.partition("#")[0] for url in file.asked if not url.startswith("data:")}
    assert asked == {path.as_uri()}, "nothing but itself"
    assert file.wrong == []
    assert len(data_of(path.read_text())["read"]) == 10
    file.context.close()


def test_a_run_that_goes_on_is_followed(browser: Any, tmp_path: Path) -> None:
    run = write_run(tmp_path / "going")
    write_lines(run / "metrics.jsonl", [metric(update) for update in range(1, 6)])
    write_lines(run / "eval.jsonl", [evaluation(0, "valid_seen", 0.4, [0.36, 0.44])])
    with ViewServer([run], 0) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        tab = Tab(browser, server.url)
        tab.page.clock.install()
        page = tab.open()
        assert page.locator("#top").get_by_text("following").is_visible()
        assert page.locator("h1 .pill").inner_text() == "update 5 of 20"
        page.get_by_text("Figures").first.click()
        with open(run / "metrics.jsonl", "a") as file:
            file.write(json.dumps(metric(6)) + "\n" + json.dumps(metric(7))[:30])
        with open(run / "eval" / "000000-valid_seen.jsonl", "a") as file:
            file.write(json.dumps(kept("task/8", WON, won=True)) + "\n")
        page.clock.fast_forward(3000)
        playwright.expect(page.locator("h1 .pill")).to_have_text("update 6 of 20")
        assert page.get_by_text("metrics.jsonl ends in half a line").is_visible()
        assert page.get_by_role("row", name="valid_seen, update 0").first.locator("td").first.inner_text() == "4"
        playwright.expect(page.locator("details[open]")).to_have_count(1)
        assert "11 episodes" in page.locator("#said").inner_text()
        server.shutdown()
        tab.context.close()


@pytest.mark.parametrize("look", ["light", "dark"])
def test_axe_finds_nothing(browser: Any, address: str, look: str) -> None:
    module = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed: make browser")
    axe = module.Axe()
    tab = Tab(browser, address, color_scheme=look)
    page = tab.open()
    views = ["", "#/0/episodes?outcome=lost", at(0, READ, beside="0:" + READ.replace("@0", "@1")), at(0, READ)]
    for view in views:
        page = tab.open(view)
        page.wait_for_timeout(50)
        assert violations(axe, page) == [], view
    page.get_by_label("Shade tokens by").select_option("entropy")
    page.get_by_label("Figures below").check()
    assert violations(axe, page) == []
    page.get_by_role("button", name="Keys").click()
    assert violations(axe, page) == []
    tab.context.close()


def violations(axe: Any, page: Any) -> list[str]:
    found = axe.run(page).response["violations"]
    return [f"{each['id']}: {node['html']}" for each in found for node in each["nodes"]]


def test_the_keyboard_alone_opens_an_episode(tab: Tab) -> None:
    page = tab.open()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    while page.evaluate("document.activeElement.textContent") != "valid_seen, update 20":
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector(".list")
    assert page.evaluate("document.activeElement.tagName") == "H1", "a new view begins at its heading"
    while not page.evaluate("document.activeElement.closest('.list')"):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector(".turn")
    assert page.title() == "Your task is to: put a cd in desk. · envrl"


def test_a_phone_shows_every_view_without_scrolling_sideways(tab: Tab) -> None:
    tab.page.set_viewport_size(PHONE)
    for view in ("", "#/0/episodes", at(0, READ), at(1, "trajectories/update-000010.jsonl@0")):
        page = tab.open(view)
        page.wait_for_timeout(50)
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], view


def test_what_is_not_there_is_said(tab: Tab) -> None:
    page = tab.open(at(0, "eval/nosuch.jsonl@0"))
    assert page.get_by_role("alert").inner_text() == "This run has no such episode (any more)."
    page.goto(f"{tab.address}#/99")
    playwright.expect(page.locator("h1")).to_contain_text("other")
