"""The live page in a browser, as a person uses it: needs Gradio (pip install 'nla[app]') and headless Chromium."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.evaluation import remembering
from support.report import HOSTILE

from nla.models.pair import NLA
from nla.models.target import Target

if shutil.which("chromedriver") is None or shutil.which("chromium") is None:
    pytest.skip("no browser: apt install chromium chromium-driver", allow_module_level=True)
pytest.importorskip("gradio", reason="no Gradio: pip install 'nla[app]'; it needs pillow<13, constraints.txt pins 13")

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

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
    from support.models import MARKER, TEMPLATES

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
    return page.find_elements(By.CSS_SELECTOR, "#tokens .textspan")


def read(page: Any, text: str) -> None:
    until(page, lambda: field(page, "text").is_displayed())
    field(page, "text").clear()
    field(page, "text").send_keys(text)
    part(page, "read").click()


def choose(page: Any, index: int) -> None:
    until(page, lambda: len(chips(page)) > index)
    chips(page)[index].click()


def test_type_choose_edit_and_see_the_change(page: Any, target: Target) -> None:
    read(page, TEXT)
    choose(page, 2)
    until(page, lambda: "row 2." in part(page, "explanations").text)
    assert [chip.text.strip() for chip in chips(page)] == target.read([TEXT], "all").token
