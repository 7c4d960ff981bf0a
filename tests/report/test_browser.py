"""The page in headless Chromium: it asks for nothing, shows the right text, and nothing in the data runs."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.browser import axe, chromium, missing
from support.reports import HOSTILE, hostile_report, large_report, small_report

from nla.report import Report, write_report

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))
METRICS = {
    "fve": 0.61, "fve_ci95": [0.58, 0.64], "fve_warm_start": 0.4, "fve_warm_start_ci95": [0.3, 0.5], "n": 20,
    "controls": {"shuffled": {"fve": -1.4, "ci95": [-1.6, -1.1]}, "mean": {"fve": 0.0, "ci95": [0, 0]}},
    "documents": 10,
    "position_match": {"greedy": {"same_document": {"rank1": 0.5, "ci95": [0.4, 0.6]}}},
}  # fmt: skip
CURVES = [{"stage": "joint", "name": "held out: fve", "points": [(1, 0.1), (2, 0.3), (3, 0.35)]}]


class Page:
    """A page in the browser, with the few things that the tests do to it."""

    def __init__(self, driver: Any, folder: Path) -> None:
        self.driver, self.folder = driver, folder

    def open(self, report: Report, fragment: str = "", **options: Any) -> None:
        (self.path, *_) = write_report(report, self.folder / "report.html", **options)
        self.driver.get("about:blank")
        self.driver.get_log("performance")
        self.driver.get(f"{self.path.as_uri()}{fragment}")

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def texts(self, selector: str) -> list[str]:
        return self.run("return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)", selector)

    def cards(self) -> list[str]:
        return self.texts("#panel .token h3")

    def hover(self, index: int) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).move_to_element(self.find(f"#t{index}")).perform()
        self.settle()

    def press(self, *keys: str) -> None:
        self.find("#text").send_keys(*keys)
        self.settle()

    def settle(self) -> None:
        """Wait for what the page draws in its next frame."""
        self.driver.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(() => arguments[0]()))")

    def requests(self) -> list[str]:
        entries = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [e["params"]["request"]["url"] for e in entries if e["method"] == "Network.requestWillBeSent"]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def opened(driver: Any, tmp_path: Path) -> Iterator[Page]:
    page = Page(driver, tmp_path)
    page.open(small_report(), metrics=METRICS, curves=CURVES)
    yield page
    assert [entry for entry in driver.get_log("browser") if entry["level"] != "INFO"] == []


def test_it_asks_for_nothing_but_itself(opened: Page):
    for summary in opened.driver.find_elements("css selector", "#tables summary, #curves summary"):
        summary.click()
    opened.hover(1)
    assert [url.split("#")[0] for url in opened.requests()] == [opened.path.as_uri()]


def test_hovering_shows_the_token(opened: Page):
    opened.hover(1)
    (card,) = opened.texts("#panel .token")
    assert opened.cards() == ["cat"]
    assert opened.texts("#panel .said .words") == ["A cat.", "It is small."]
    assert opened.texts("#panel .said .worth") == ["+0.50", "−0.10"]
    for shown in ("0.10", "token 1", "0.31 among 2 samples", "sat50 %", "ran<1 %", "“sat” (token 2): error 0.05"):
        assert shown in card
    assert "as near as the token’s own" in card  # 0.05 is below 0.1
    opened.hover(2)
    assert opened.cards() == ["sat"] and "as near as" not in opened.texts("#panel .token")[0]
    opened.hover(0)
    assert "norm 900, where training activations had 10 to 20" in opened.texts("#panel .token")[0]
    opened.hover(3)
    assert "Malformed" in opened.texts("#panel .token")[0] and "worse than saying nothing" in opened.texts("#panel")[0]


def test_every_error_is_visible(opened: Page):
    """Not by colour alone: the bar under a token is half its width at error 1."""
    widths = opened.run(
        "return [...document.querySelectorAll('#text .t')].map((e) => "
        "parseFloat(getComputedStyle(e, '::after').width) / e.getBoundingClientRect().width)"
    )
    assert widths == pytest.approx([0.0, 0.05, 0.1, 0.85], abs=0.01)
    assert [e.get_attribute("title") for e in opened.driver.find_elements("css selector", "#text .t")][
        3
    ] == "error 1.70"


def test_keys_move_and_keep(opened: Page):
    from selenium.webdriver.common.keys import Keys

    opened.press(Keys.HOME)
    assert opened.cards() == ["The"]
    opened.press(Keys.ARROW_RIGHT)
    assert opened.cards() == ["cat"]
    opened.press(Keys.ENTER)
    opened.press(Keys.END)
    assert opened.cards() == ["cat", "."]
    opened.press(Keys.ARROW_LEFT, Keys.ENTER)
    assert opened.cards() == ["cat", "sat"]
    selected = "#text .t[aria-selected='true']"
    assert opened.texts(selected) == ["cat", "sat"]
    opened.press(Keys.HOME)
    assert opened.cards() == ["cat", "sat"] and opened.find("#text").get_attribute("aria-activedescendant") == "t0"
    opened.press(Keys.ESCAPE)
    assert opened.cards() == ["The"] and opened.texts(selected) == []
    time.sleep(0.4)
    assert opened.texts("#live") == ["The, error 0.00: An article."]


def test_up_and_down_move_by_line(driver: Any, tmp_path: Path):
    from selenium.webdriver.common.keys import Keys

    page = Page(driver, tmp_path)
    page.open(large_report(120))
    page.press(Keys.HOME)
    tops = page.run(
        "return [...document.querySelectorAll('#text .t')].map((e) => e.getBoundingClientRect().top + scrollY)"
    )
    second = next(index for index, top in enumerate(tops) if top > tops[0] + 5)
    page.press(Keys.ARROW_DOWN)
    assert page.find("#text").get_attribute("aria-activedescendant") == f"t{second}"
    page.press(Keys.ARROW_UP)
    assert page.find("#text").get_attribute("aria-activedescendant") == "t0"


def test_a_click_keeps_and_texts_of_two_layers_stand_side_by_side(opened: Page):
    opened.find("#t1").click()
    opened.run("const c = document.getElementById('choose'); c.value = '1'; c.dispatchEvent(new Event('change'))")
    assert opened.texts("#text .t") == ["A", "dog", "."]
    opened.find("#t1").click()
    assert opened.cards() == ["cat", "dog"]
    assert ["layer 1" in card for card in opened.texts("#panel .token .where")] == [True, False]
    opened.find("#panel button.keep").click()
    assert opened.cards() == ["dog"]


def test_search_finds_in_text_and_explanations(opened: Page):
    from selenium.webdriver.common.keys import Keys

    box = opened.find("#search")
    box.send_keys("IT")
    time.sleep(0.2)
    opened.settle()
    assert opened.texts("#text .hit") == ["cat", "sat"] and opened.texts("#found") == ["2 tokens"]
    box.send_keys(Keys.ENTER)
    assert opened.texts("#found") == ["1 of 2"] and opened.cards() == ["cat"] and opened.texts(".said mark") == ["It"]
    box.send_keys(Keys.ENTER)
    assert opened.texts("#found") == ["2 of 2"] and opened.cards() == ["sat"]
    box.clear()
    box.send_keys("cat sat")  # over two tokens
    time.sleep(0.2)
    opened.settle()
    assert opened.texts("#text .hit") == ["cat", "sat"]
    box.clear()
    box.send_keys("(.*)")
    time.sleep(0.2)
    assert opened.texts("#text .hit") == [] and opened.texts("#found") == ["0 tokens"]


def test_a_link_leads_to_its_token(driver: Any, tmp_path: Path):
    page = Page(driver, tmp_path)
    page.open(small_report(), "#t2-1")
    assert page.texts("#text .t") == ["A", "dog", "."] and page.cards() == ["dog"]
    assert page.find("#panel a").get_attribute("href").endswith("report.html#t2-1")
    page.run("location.hash = '#t1-2'")
    page.settle()
    assert page.cards() == ["dog", "sat"]
    page.find("#t0").click()
    assert page.run("return location.hash") == "#t1-0"


def test_best_and_worst(opened: Page):
    assert opened.texts("#best .tok") == ["The", "cat"] and opened.texts("#worst .tok") == [".", "sat"]
    opened.driver.find_elements("css selector", "#worst button")[1].click()
    opened.settle()
    assert opened.cards() == ["sat"]


def test_header_tables_and_curves(opened: Page):
    assert opened.texts("h1") == ["What layer 1, 2 of tiny says"]
    assert opened.texts("#bars th") == ["this pair", "warm start", "another document's explanation", "mean activation"]
    assert opened.texts("#bars .num") == [
        "0.61 (0.58 to 0.64)",
        "0.40 (0.30 to 0.50)",
        "−1.40 (−1.60 to −1.10)",
        "0.00 (0.00 to 0.00)",
    ]
    for summary in opened.driver.find_elements("css selector", "#tables summary"):
        summary.click()
    opened.settle()
    assert "0.500 (0.400 to 0.600)" in opened.texts("#tables td")
    assert (
        opened.find("#curves svg").get_attribute("aria-label") == "held out: fve: from 0.1 at step 1 to 0.35 at step 3"
    )


def test_without_metrics_the_header_is_about_these_tokens(driver: Any, tmp_path: Path):
    page = Page(driver, tmp_path)
    page.open(Report(small_report().texts[1:]))
    # errors 0, 0.08 and 0.16, each over 0.8
    assert page.texts("#bars th") == ["these explanations", "mean activation"]
    assert page.texts("#bars .num") == ["0.90", "0.00"]
    assert page.texts("#text-facts") == ["3 tokens, 0.90 explained · the mean is this text’s own"]


def test_hostile_strings_are_inert(driver: Any, tmp_path: Path):
    from selenium.common.exceptions import NoAlertPresentException

    page = Page(driver, tmp_path)
    metrics = {**METRICS, HOSTILE["script"]: {HOSTILE["direction"]: HOSTILE["script"]}, "command": HOSTILE["terminal"]}
    page.open(
        hostile_report(),
        metrics=metrics,
        curves=[{**CURVES[0], "name": HOSTILE["script"], "stage": HOSTILE["direction"]}],
    )
    for index in range(len(HOSTILE)):
        page.hover(index)
        page.find(f"#t{index}").click()
    for details in driver.find_elements("css selector", "details > summary"):
        page.run("arguments[0].parentElement.open = true", details)
    page.settle()
    with pytest.raises(NoAlertPresentException):
        _ = driver.switch_to.alert
    assert page.run("return [document.scripts.length, document.images.length]") == [3, 0]
    shown = page.texts("#text .t")
    assert shown[0].startswith("</script><script>alert(1)</script>")
    assert shown[1:4] == ["oneLStwoPSthree", "evilRLOgnp.exeLRIisolated", "␛[31mred␛[0m␇␀"]
    assert shown[4] == HOSTILE["entities"] and shown[5] == "aZWSPbBOMcU+E0041d"
    assert shown[6].endswith("99,880 more") and len(shown[6]) < 200
    # what turns the direction is a sign, and every text is isolated
    assert (
        page.run(r"return /[\u202a-\u202e\u2066-\u2069\u2028\u2029\u0000-\u0008\u001b]/.test(document.body.innerText)")
        is False
    )
    assert page.run("return document.documentElement.scrollWidth <= innerWidth")
    assert [e for e in driver.get_log("browser") if e["level"] != "INFO"] == []
    assert [url.split("#")[0] for url in page.requests()] == [page.path.as_uri()]


def test_five_thousand_tokens(driver: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    page = Page(driver, tmp_path)
    page.open(large_report())
    page.settle()
    drawn = page.run("return performance.now()") / 1000  # since the page was asked for
    moves = page.run("""
        const text = document.getElementById("text"), started = performance.now();
        for (let k = 0; k < 100; k++) {
          text.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
          text.getBoundingClientRect();
        }
        return (performance.now() - started) / 100;""")
    with capsys.disabled():
        print(f"\n5000 tokens: {drawn:.2f} s until they are drawn, {moves:.1f} ms for a move")
    assert len(page.texts("#text .t")) == 5000
    # no listener of its own for any token: what is clicked is found from the one of the text
    page.hover(17)
    assert page.cards() == ["word17"]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_a_screen_reader_finds_its_way(opened: Page, theme: str, width: int):
    """axe: roles, names, contrast, focus; all of the page drawn, two tokens kept, a search on."""
    driver = opened.driver
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    try:
        opened.run("document.getElementById('t0').click(); document.getElementById('t1').click()")
        opened.find("#search").send_keys("small")
        opened.run("for (const e of document.querySelectorAll('details')) e.open = true")
        time.sleep(0.2)
        opened.settle()
        opened.run(axe())
        found = driver.execute_async_script("axe.run(document).then(arguments[0])")
        shown = [(item["id"], [node["html"][:200] for node in item["nodes"]]) for item in found["violations"]]
        assert shown == [] and len(found["passes"]) > 20
        assert (
            opened.run("return getComputedStyle(document.body).backgroundColor")
            == {"light": "rgb(250, 249, 246)", "dark": "rgb(20, 22, 26)"}[theme]
        )
        assert opened.run("return document.documentElement.scrollWidth <= innerWidth")
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_the_theme_can_be_chosen(opened: Page):
    colour = "return getComputedStyle(document.body).backgroundColor"
    for expected in ("rgb(250, 249, 246)", "rgb(20, 22, 26)"):
        opened.find("#theme").click()
        assert opened.run(colour) == expected
    opened.driver.refresh()
    assert opened.run(colour) == "rgb(20, 22, 26)"
    opened.find("#theme").click()
    assert opened.find("#theme").text == "Theme: system"


def test_files_of_a_split_report_link_to_each_other(driver: Any, tmp_path: Path):
    page = Page(driver, tmp_path)
    page.open(large_report(300), most_bytes=100_000)
    assert page.texts("#pages b") == ["1"]
    driver.find_elements("css selector", "#pages a")[0].click()
    assert driver.current_url.endswith("report-2.html") and page.texts("#pages b") == ["2"]
    assert page.cards() != []
