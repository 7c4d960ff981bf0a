"""The page in a browser, as a person uses it: headless Chromium of Debian (apt install chromium chromium-driver)."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.report import HOSTILE, data, token

from nla.report import write_page

if shutil.which("chromedriver") is None or shutil.which("chromium") is None:
    pytest.skip("no browser: apt install chromium chromium-driver", allow_module_level=True)

from axe_core_python.selenium import Axe
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

WORDS = ("Anna", " saw", " the", " harbour", " of", " gulls")
METRICS = {
    "fve": 0.5,
    "fve_ci95": [0.4, 0.6],
    "fve_warm_start": 0.3,
    "fve_warm_start_ci95": [0.2, 0.4],
    "controls": {"mean": {"fve": 0.0, "ci95": [0.0, 0.0]}, "shuffled": {"fve": -0.7, "ci95": [-0.8, -0.6]}},
    "causal": {"n": 4, "vectors": {"explanation": {"kl": {"value": 0.25, "ci95": [0.2, 0.3]}}}},
}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for flag in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", "--window-size=1280,1000",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(str(shutil.which("chromedriver"))))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser: Any, tmp_path: Path) -> Any:
    tokens = [token(index, word, f"It is about {index}.", index / 5) for index, word in enumerate(WORDS)]
    other = [token(0, "Bye", None, 1.5)]
    verdicts = [(True, "this is proven"), (False, "this is not")]
    curves = [("joint: reward", [(1, -0.5), (2, -0.25)])]
    (path,) = write_page(
        data([tokens, other]), tmp_path / "report.html", metrics=METRICS, verdicts=verdicts, curves=curves
    )
    browser.get(path.as_uri())
    return browser


def text_of(page: Any, name: str) -> str:
    return page.find_element(By.ID, name).text


def test_it_opens_without_an_error_or_a_request(page: Any) -> None:
    assert text_of(page, "title") == "toy, layer 3: what its activations say"
    assert [entry for entry in page.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    messages = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    sent = [item["params"]["request"]["url"] for item in messages if item["method"] == "Network.requestWillBeSent"]
    assert [url for url in sent if not url.startswith(("file:", "data:", "chrome"))] == []
    assert len([url for url in sent if url.startswith("file:")]) == 1
    assert [chip.text.strip() for chip in page.find_elements(By.CLASS_NAME, "chip")] == [word.strip() for word in WORDS]


def test_the_pointer_shows_a_token(page: Any) -> None:
    chip = page.find_elements(By.CLASS_NAME, "chip")[2]
    webdriver.ActionChains(page).move_to_element(chip).perform()
    shown = text_of(page, "current")
    assert "It is about 2." in shown and "0.40" in shown and "It is not so." in shown and "on" in shown
    assert page.current_url.endswith("#text=0&token=2")


def test_keys_move_keep_and_let_go(page: Any) -> None:
    box = page.find_element(By.ID, "tokens")
    box.send_keys(Keys.HOME)
    assert "It is about 0." in text_of(page, "current")
    box.send_keys(Keys.ARROW_RIGHT)
    box.send_keys(Keys.ENTER)
    box.send_keys(Keys.END)
    assert "It is about 1." in text_of(page, "pinned") and "It is about 5." in text_of(page, "current")
    box.send_keys(Keys.ESCAPE)
    assert text_of(page, "pinned") == ""


def test_search_marks_and_goes_to_matches(page: Any) -> None:
    field = page.find_element(By.ID, "search")
    field.send_keys("HARB")
    assert [chip.text.strip() for chip in page.find_elements(By.CLASS_NAME, "found")] == ["harbour"]
    assert "1 of 6 tokens match" in text_of(page, "count")
    field.send_keys(Keys.ENTER)
    assert "It is about 3." in text_of(page, "current")
    field.clear()
    field.send_keys("about 4")
    assert [chip.text.strip() for chip in page.find_elements(By.CLASS_NAME, "found")] == ["of"]


def test_lists_another_text_and_a_link(page: Any) -> None:
    worst = page.find_elements(By.CSS_SELECTOR, "#worst button")
    assert "gulls" in worst[0].text
    worst[0].click()
    assert "It is about 5." in text_of(page, "current")
    page.find_element(By.CSS_SELECTOR, "#text option[value='1']").click()
    assert "(malformed)" in text_of(page, "current")
    address = page.current_url.split("#")[0]
    page.get("about:blank")
    page.get(f"{address}#text=0&token=3")
    assert "It is about 3." in text_of(page, "current")


def test_figures_and_curves(page: Any) -> None:
    assert "this is proven" in text_of(page, "verdicts") and "this is not" in text_of(page, "verdicts")
    assert "0.500 (0.400 to 0.600)" in text_of(page, "controls") and "-0.700" in text_of(page, "controls")
    for summary in page.find_elements(By.CSS_SELECTOR, "#suites summary"):
        summary.click()
    assert "vectors explanation kl value" in text_of(page, "suites") and "0.200 to 0.300" in text_of(page, "suites")
    assert page.find_element(By.CSS_SELECTOR, "#plots polyline").is_displayed()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_no_violation(page: Any, theme: str) -> None:
    page.execute_script("document.documentElement.dataset.theme = arguments[0]", theme)
    found = Axe().run(page)["violations"]
    assert [(item["id"], [node["html"] for node in item["nodes"]][:3]) for item in found] == []


def test_it_fits_a_phone(page: Any) -> None:
    page.set_window_size(500, 900)
    try:
        wide = page.execute_script("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0
    finally:
        page.set_window_size(1280, 1000)


def test_hostile_texts_are_shown_and_not_run(browser: Any, tmp_path: Path) -> None:
    tokens = [token(index, text, text) for index, text in enumerate(HOSTILE)]
    (path,) = write_page({**data([tokens]), "pair": HOSTILE[0]}, tmp_path / "report.html")
    browser.get(path.as_uri())
    assert browser.execute_script("return window.broken === undefined")
    shown = [chip.text for chip in browser.find_elements(By.CLASS_NAME, "chip")]
    assert shown[0] == HOSTILE[0]
    assert "⟦LS⟧" in shown[2] and "⟦RLO⟧" in shown[3] and "␛[31m" in shown[4]
    assert len(shown[6]) < 300 and "more characters" in shown[6]
    for chip in browser.find_elements(By.CLASS_NAME, "chip"):
        webdriver.ActionChains(browser).move_to_element(chip).perform()
        assert len(text_of(browser, "current")) < 6000
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_five_thousand_tokens(browser: Any, tmp_path: Path) -> None:
    (path,) = write_page(data([[token(index, f" w{index}") for index in range(5000)]]), tmp_path / "report.html")
    started = time.perf_counter()
    browser.get(path.as_uri())
    assert len(browser.find_elements(By.CLASS_NAME, "chip")) == 5000
    opened = time.perf_counter()
    browser.find_element(By.ID, "search").send_keys("w4999")
    assert "1 of 5000 tokens match" in text_of(browser, "count")
    searched = time.perf_counter() - opened
    print(f"5000 tokens: opened in {opened - started:.2f} s, searched in {searched:.2f} s")
