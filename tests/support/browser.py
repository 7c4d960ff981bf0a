"""Chromium without a window, from the Debian packages chromium and chromium-driver; tests skip where there is none."""

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
         "--lang=en")  # fmt: skip


def missing() -> str | None:
    """Why there is no browser to test with; None if there is one."""
    if importlib.util.find_spec("selenium") is None:
        return "selenium is not installed (pip install 'nla[test]')"
    for program in ("chromium", "chromedriver"):
        if shutil.which(program) is None:
            return f"no {program} (Debian: apt-get install chromium chromium-driver)"
    return None


@contextmanager
def chromium(profile: Path, width: int = 1280, height: int = 900) -> Iterator[Any]:
    """A driver with a new profile; it notes the console and every request."""
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for flag in (*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, Service(str(shutil.which("chromedriver"))))
    try:
        yield driver
    finally:
        driver.quit()


def axe() -> str:
    """The script of axe-core, which finds what a screen reader or a keyboard would stumble over."""
    spec = importlib.util.find_spec("axe_core_python")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("axe-core-python is not installed (pip install 'nla[test]')")
    return Path(spec.submodule_search_locations[0], "axe.min.js").read_text(encoding="utf-8")
