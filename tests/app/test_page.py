"""The live page in a browser, as a person uses it: needs Gradio (pip install 'nla[app]') and headless Chromium."""

import json
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.evaluation import remembering
from support.models import MARKER, TEMPLATES
from support.report import HOSTILE

from nla.models.pair import NLA
from nla.models.target import Target

if shutil.which("chromedriver") is None or shutil.which("chromium") is None:
    pytest.skip("no browser: apt install chromium chromium-driver", allow_module_level=True)
pytest.importorskip("gradio", reason="no Gradio: pip install 'nla[app]'; it needs pillow<13, constraints.txt pins 13")

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from nla.app import Session
from nla.app import page as live

TEXT = "Anna walks to the harbour"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for flag in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", "--window-size=1280,1600",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(str(shutil.which("chromedriver"))))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def served(tiny_folder: str, target: Target, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, NLA]]:
    """A saved tiny pair, served, that remembers the text."""
    folder = tmp_path_factory.mktemp("pair")
    NLA.from_target(tiny_folder, 1, TEMPLATES, MARKER).save_pretrained(folder / "nla")
    nla = remembering(NLA.from_pretrained(folder / "nla"), target.read([TEXT], "all").activation)
    blocks = live.page(nla, target)
    yield live.serve(blocks, wait=False), nla
    blocks.close()


@pytest.fixture
def page(browser: Any, served: tuple[str, NLA]) -> Any:
    browser.get("about:blank")
    browser.get(served[0])
    return browser


def until(page: Any, holds: Callable[[], Any]) -> Any:
    return WebDriverWait(page, 60, ignored_exceptions=(Exception,)).until(lambda _: holds())


def part(page: Any, name: str) -> Any:
    return page.find_element(By.ID, name)


def field(page: Any, name: str) -> Any:
    return page.find_element(By.CSS_SELECTOR, f"#{name} textarea, #{name} input")


def chips(page: Any) -> list[Any]:
    return page.find_elements(By.CSS_SELECTOR, "#tokens .token")


def read(page: Any, text: str) -> None:
    until(page, lambda: field(page, "text").is_displayed())
    field(page, "text").clear()
    field(page, "text").send_keys(text)
    part(page, "read").click()


def choose(page: Any, index: int) -> None:
    until(page, lambda: len(chips(page)) > index)
    chips(page)[index].click()


def value(page: Any, name: str) -> str:
    return field(page, name).get_property("value")


def test_type_choose_edit_and_see_the_change(page: Any, served: tuple[str, NLA], target: Target) -> None:
    session = Session(served[1], target, TEXT)
    expected = session.edit(2, "row 2.", "row 4.")
    read(page, TEXT)
    choose(page, 2)
    until(page, lambda: "row 2. (error 0.00)" in part(page, "explanations").text)
    assert [chip.text.strip() for chip in chips(page)] == [token.strip() for token in session.tokens]
    assert value(page, "figures") == "relative error 0.00, cosine 1.000"
    assert "row 2." in part(page, "sentences").text
    assert all(word in part(page, "own").text for word, _ in expected.own_words)
    assert value(page, "edited") == "row 2."

    field(page, "edited").clear()
    field(page, "edited").send_keys("row 4.")
    part(page, "change").click()
    until(page, lambda: "edited" in value(page, "distance"))
    after = expected.after
    assert value(page, "distance").splitlines() == [
        "original: relative error 0.00, cosine 1.000",
        f"edited: relative error {after.relative_error:.2f}, cosine {after.cosine:.3f}",
    ]
    for name, words in (("before", expected.before_words), ("after", expected.after_words)):
        assert all(word in part(page, name).text for word, _ in words)
    assert value(page, "continuation") == expected.own_continuation
    assert value(page, "steered-on") == expected.steered_continuation


def test_sample_again_and_go_back(page: Any) -> None:
    read(page, TEXT)
    choose(page, 3)
    until(page, lambda: part(page, "explanations").text.count("row 3.") == 1)
    part(page, "again").click()
    until(page, lambda: part(page, "explanations").text.count("row 3.") == 2)
    choose(page, 1)
    until(page, lambda: "row 1." in part(page, "explanations").text)
    choose(page, 3)
    until(page, lambda: part(page, "explanations").text.count("row 3.") == 2)


def test_mistakes_are_told(page: Any) -> None:
    until(page, lambda: part(page, "read").is_displayed())
    part(page, "read").click()
    until(page, lambda: "the text is empty" in page.find_element(By.TAG_NAME, "body").text)
    part(page, "again").click()
    until(page, lambda: "Choose a token first." in page.find_element(By.TAG_NAME, "body").text)


def test_it_asks_no_other_server_and_makes_no_error(page: Any, served: tuple[str, NLA]) -> None:
    page.get_log("performance"), page.get_log("browser")  # those of earlier tests are read away
    page.get(served[0])
    read(page, TEXT)
    choose(page, 0)
    until(page, lambda: "row 0." in part(page, "explanations").text)
    messages = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    sent = [item["params"]["request"]["url"] for item in messages if item["method"] == "Network.requestWillBeSent"]
    assert sent and [url for url in sent if not url.startswith((served[0], "data:", "blob:", "chrome"))] == []
    assert served[0].startswith("http://127.0.0.1:")
    assert [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_hostile_texts_are_shown_and_not_run(browser: Any, tiny_folder: str, target: Target) -> None:
    nla = NLA.from_target(tiny_folder, 1, TEMPLATES, MARKER)
    said = list(HOSTILE[:6])
    nla.explain = lambda activation, samples, **_: [said[:samples]]  # type: ignore[method-assign,assignment]
    nla.base_model = HOSTILE[5]
    blocks = live.page(nla, target)
    browser.get(live.serve(blocks, wait=False))
    try:
        read(browser, " ".join(HOSTILE[:2] + HOSTILE[5:6]))
        choose(browser, 0)
        until(browser, lambda: HOSTILE[0] in part(browser, "explanations").text)
        assert HOSTILE[5] in part(browser, "tokens").text
        assert HOSTILE[0] in part(browser, "sentences").text
        said[:] = said[5:] + said[1:5]
        part(browser, "again").click()
        until(browser, lambda: HOSTILE[5] in part(browser, "explanations").text)
        part(browser, "change").click()
        until(browser, lambda: "edited" in value(browser, "distance"))
        assert browser.execute_script("return window.broken === undefined")
        assert browser.find_elements(By.CSS_SELECTOR, "img[src='x']") == []
    finally:
        blocks.close()
