"""The report in a real browser: it draws, sorts, fits a phone and asks nothing of the network."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from report_samples import many_recipes, sample_results
from report_sweeps import sample_sweep
from tunestack.report import write_report

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
RANKS = "[...document.querySelectorAll('.board tbody tr')].map(row => row.cells[0].textContent)"
TRAINING = "[...document.querySelectorAll('td[data-label=Training]')].map(c => Number(c.dataset.value))"
BACKGROUND = "getComputedStyle(document.body).backgroundColor"

POOR_CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const luminance = (colour) => {
    const [r, g, b] = rgba(colour).map((value) => linear(value / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const backdrop = (element) => {
    const colour = getComputedStyle(element).backgroundColor;
    return rgba(colour)[3] === 255 ? colour : backdrop(element.parentElement);
  };
  const poor = [];
  for (const element of document.querySelectorAll("main *")) {
    const text = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!text || !element.checkVisibility({ visibilityProperty: true })) continue;
    const svg = element instanceof SVGElement;
    const ink = luminance(getComputedStyle(element)[svg ? "fill" : "color"]);
    const ground = luminance(backdrop(svg ? element.closest("div, td, th") : element));
    const contrast = (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05);
    if (contrast < 4.5) poor.push(`${element.outerHTML.slice(0, 90)}: ${contrast.toFixed(2)}`);
  }
  return poor;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    return write_report(sample_results(folder), folder)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(sample_sweep(confirmed=True), tmp_path_factory.mktemp("sweep"))


class Visit:
    """An open page with all that it complained about or asked for."""

    def __init__(self, browser: Browser, path: Path, width: int = 1280, scheme: str = "light") -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page: Page = browser.new_page(
            viewport={"width": width, "height": 812}, color_scheme=scheme, reduced_motion="reduce"
        )
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *_: object) -> None:
        self.page.close()


@pytest.mark.parametrize("width", [375, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_complains_loads_or_overflows(
    browser: Browser, report: Path, width: int, scheme: str
) -> None:
    with Visit(browser, report, width, scheme) as visit:
        for box in visit.page.locator("input[type=radio]").all():
            box.check(force=True)
        for button in visit.page.locator("button.more").all():
            button.click()
        visit.page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
        assert visit.page.evaluate(OVERFLOW) <= 0
        assert visit.complaints == []
        assert visit.requests == [report.as_uri()]


def test_thirty_candidates_with_a_very_long_name_fit_a_phone(browser: Browser, tmp_path: Path) -> None:
    results = sample_results(recipes=many_recipes(30), ship="lora r=16 lr=0.0001" + " a_very_long_name" * 9)
    with Visit(browser, write_report(results, tmp_path), width=375) as visit:
        visit.page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
        assert visit.page.evaluate(OVERFLOW) <= 0
        assert visit.complaints == []


def test_matrices_of_many_labels_cover_nothing(browser: Browser, tmp_path: Path) -> None:
    results = sample_results(label_names=tuple("abcdef"), test=False)
    with Visit(browser, write_report(results, tmp_path)) as visit:
        grid = visit.page.locator(".matrices.wide").bounding_box()
        last = visit.page.locator(".matrices.wide > :nth-child(2)").bounding_box()
        assert grid is not None
        assert last is not None
        assert last["y"] + last["height"] <= grid["y"] + grid["height"] + 1


@pytest.mark.parametrize("width", [375, 1280])
def test_the_whole_leaderboard_is_visible(browser: Browser, report: Path, width: int) -> None:
    with Visit(browser, report, width) as visit:
        scrolls = "(e => e.scrollWidth - e.clientWidth)(document.querySelector('#leaderboard .scroll'))"
        assert visit.page.evaluate(scrolls) <= 0


def test_sorting_by_click_and_by_keyboard(browser: Browser, report: Path) -> None:
    with Visit(browser, report) as visit:
        page = visit.page
        assert page.evaluate(RANKS) == ["1", "2", "3", "4", "5", "6"]
        head = page.locator("th", has=page.get_by_role("button", name="Training"))
        page.get_by_role("button", name="Training").click()
        assert head.get_attribute("aria-sort") == "ascending"
        assert page.evaluate(TRAINING) == sorted(page.evaluate(TRAINING))
        page.get_by_role("button", name="Training").focus()
        page.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == "descending"
        assert page.evaluate(TRAINING) == sorted(page.evaluate(TRAINING), reverse=True)
        assert page.locator("th[aria-sort]").count() == 1
        page.get_by_role("button", name="Candidate").focus()
        page.keyboard.press("Space")
        names = page.locator(".board .title").all_inner_texts()
        assert names == sorted(names)


def test_missing_values_are_last_in_either_order(browser: Browser, tmp_path: Path) -> None:
    results = sample_results()
    bare = results.candidates[1].costs.model_copy(update={"train_seconds": None})
    results.candidates[1] = results.candidates[1].model_copy(update={"costs": bare})
    with Visit(browser, write_report(results, tmp_path)) as visit:
        for _ in range(2):
            visit.page.get_by_role("button", name="Training").click()
            assert visit.page.locator("td[data-label=Training]").last.inner_text() == "–"


def test_sorting_on_a_phone(browser: Browser, report: Path) -> None:
    with Visit(browser, report, width=375) as visit:
        visit.page.get_by_label("Sort by").select_option(label="Memory")
        assert visit.page.locator(".board .title").first.inner_text() == "majority"


def test_the_theme_follows_the_system_until_toggled_and_is_kept(browser: Browser, report: Path) -> None:
    with Visit(browser, report, scheme="dark") as visit:
        dark = visit.page.evaluate(BACKGROUND)
        ink = visit.page.locator(".scatter .tick").first.evaluate("e => getComputedStyle(e).fill")
        visit.page.get_by_role("button", name="Switch between light and dark").click()
        light = visit.page.evaluate(BACKGROUND)
        assert light == "rgb(255, 255, 255)" != dark
        assert visit.page.locator(".scatter .tick").first.evaluate("e => getComputedStyle(e).fill") != ink
        visit.page.reload()
        assert visit.page.evaluate(BACKGROUND) == light


def test_charts_are_drawn_where_their_numbers_say(browser: Browser, report: Path) -> None:
    with Visit(browser, report) as visit:
        page = visit.page
        visible = page.locator("#cost .view:not([hidden])")
        points = [mark.bounding_box() for mark in visible.locator(".mark").all()]
        assert len(points) == 5  # the majority baseline lies off the chart
        frame = visible.locator(".scatter").bounding_box()
        for box in points:
            assert frame["x"] < box["x"] < frame["x"] + frame["width"]
            assert frame["y"] < box["y"] < frame["y"] + frame["height"]
        curve = page.locator("#curves .view:not([hidden]) polyline.mean").first.bounding_box()
        assert curve["width"] > 100
        assert curve["height"] > 10
        page.locator("input[value=memory]").check(force=True)
        assert page.locator("#cost .view:not([hidden]) .axis-title").last.inner_text().count("memory") == 1


@pytest.mark.parametrize("width", [375, 1280])
def test_labels_cover_neither_each_other_nor_points(browser: Browser, tmp_path: Path, width: int) -> None:
    results = sample_results(recipes=many_recipes(30), ship="lora r=8 lr=0.0005")
    with Visit(browser, write_report(results, tmp_path), width) as visit:
        chart = visit.page.locator("#cost .view:not([hidden])")
        # The boxes without the halo that the texts are painted with.
        read = "elements => elements.map(element => element.getBoundingClientRect().toJSON())"
        labels = chart.locator(".label:not(.crowded)").evaluate_all(read)
        marks = chart.locator(".mark").evaluate_all(read)
        assert len(marks) == 29
        assert 3 <= len(labels) < 29
        assert chart.locator(".label.ship:not(.crowded)").count() == 1
        for position, a in enumerate(labels):
            for b in labels[position + 1 :] + marks:
                apart_x = a["right"] <= b["left"] or b["right"] <= a["left"]
                apart_y = a["bottom"] <= b["top"] or b["bottom"] <= a["top"]
                assert apart_x or apart_y


def test_points_explain_themselves_to_mouse_and_keyboard(browser: Browser, report: Path) -> None:
    with Visit(browser, report) as visit:
        page = visit.page
        point = page.locator("#cost .view:not([hidden]) .point.ship")
        point.focus()
        assert page.locator("#tip").is_visible()
        assert "lora r=8 · minilm-l6" in page.locator("#tip").inner_text()
        assert "hot" in page.locator(".board tr.ship").get_attribute("class")
        page.keyboard.press("Escape")
        assert not page.locator("#tip").is_visible()
        page.locator("#cost .view:not([hidden]) .point.best .hit").hover()
        assert "full · minilm-l6" in page.locator("#tip").inner_text()


def test_more_examples_are_shown_on_request(browser: Browser, report: Path) -> None:
    with Visit(browser, report) as visit:
        shown = visit.page.locator(".hard li:visible")
        assert shown.count() == 9
        visit.page.get_by_role("button", name="Show all 23").click()
        assert shown.count() == 23
        assert visit.complaints == []


def test_text_has_enough_contrast_in_both_themes(browser: Browser, report: Path) -> None:
    for scheme in ("light", "dark"):
        with Visit(browser, report, scheme=scheme) as visit:
            assert visit.page.evaluate(POOR_CONTRAST) == []


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_sweep_fits_and_nothing_complains(browser: Browser, sweep: Path, width: int, scheme: str) -> None:
    with Visit(browser, sweep, width, scheme) as visit:
        while visit.page.locator("button.more").count():
            visit.page.locator("button.more").first.click()
        visit.page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
        assert visit.page.evaluate(OVERFLOW) <= 0
        assert visit.page.evaluate(POOR_CONTRAST) == []
        assert visit.complaints == []
        assert visit.requests == [sweep.as_uri()]


def test_trials_sort_and_the_table_stays_as_long_as_it_was(browser: Browser, sweep: Path) -> None:
    shown = ".trials tbody tr:visible"
    rates = "[...document.querySelectorAll('td[data-label=learning_rate]')].map(c => Number(c.dataset.value))"
    ranks = "[...document.querySelectorAll('td[data-label=r]')].map(c => c.dataset.value)"
    with Visit(browser, sweep) as visit:
        page = visit.page
        assert page.locator(shown).count() == 10
        page.get_by_role("button", name="learning_rate").click()
        assert page.evaluate(rates) == sorted(page.evaluate(rates))
        assert page.locator(shown).count() == 10
        first = page.locator(shown).first.locator("td[data-label=learning_rate]").get_attribute("data-value")
        assert float(first) == min(page.evaluate(rates))
        page.get_by_role("button", name="Show all 32 trials").click()
        page.locator(".trials th button").get_by_text("r", exact=True).click()
        assert page.locator(shown).count() == 32
        having = [value for value in page.evaluate(ranks) if value]
        assert list(map(int, having)) == sorted(map(int, having))
        assert page.evaluate(ranks)[: len(having)] == having  # trials without that parameter are last
        page.locator(".trials th button").get_by_text("Trial", exact=True).click()
        names = page.locator(".trials .title").all_inner_texts()
        assert names == [f"trial-{number}" for number in range(32)]


def test_a_mark_says_what_its_trial_is_and_lights_it_up_everywhere(browser: Browser, sweep: Path) -> None:
    with Visit(browser, sweep) as visit:
        page = visit.page
        page.locator("#history .dot.ship[data-c]").hover()
        key = page.locator(".trials tr.ship").get_attribute("data-c")
        number = key.removeprefix("t")
        told = page.locator("#tip").inner_text()
        assert told.startswith(f"trial-{number} · ")
        assert "learning_rate = " in told
        assert told.endswith("complete after 4 epochs")
        lit = page.locator(".hot")
        assert lit.count() == page.locator(f"[data-c={key}]").count() >= 6
        page.mouse.move(0, 0)
        assert lit.count() == 0


def test_lines_bars_and_marks_are_drawn_where_their_numbers_say(browser: Browser, sweep: Path) -> None:
    with Visit(browser, sweep) as visit:
        page = visit.page
        frame = page.locator("#history .plot").bounding_box()
        marks = [mark.bounding_box() for mark in page.locator("#history .plot [data-c]").all()]
        assert len(marks) == 32
        middles = [box["x"] + box["width"] / 2 for box in marks]
        assert all(frame["x"] < x < frame["x"] + frame["width"] for x in middles)
        line = page.locator("#history .record").last.bounding_box()
        assert line["width"] > 800
        for selector in ("#parameters .thread", "#curves .thread"):
            boxes = [box.bounding_box() for box in page.locator(f"{selector} .line").all()]
            assert len(boxes) >= 10
            assert all(box["width"] > 50 for box in boxes)
        bars = [bar.bounding_box() for bar in page.locator("#slots .plot .body").all()]
        assert len(bars) == 31
        assert len({round(bar["y"]) for bar in bars}) == 4


def test_without_scripts_every_trial_and_picture_is_there(browser: Browser, sweep: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(sweep.as_uri())
    assert page.locator(".trials tbody tr:visible").count() == 32
    assert page.locator("#parameters .line:visible").count() >= 10
    context.close()
