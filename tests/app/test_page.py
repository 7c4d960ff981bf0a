"""The live page in a browser, as a person uses it: needs Gradio (pip install 'nla[app]') and headless Chromium."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.browser import axe, chromium, missing
from support.evaluation import remembering
from support.models import MARKER, TEMPLATES
from support.reports import HOSTILE

from nla.app import Session
from nla.models.pair import NLA
from nla.models.target import Target

live = pytest.importorskip(
    "nla.app.page", reason="no Gradio: pip install 'nla[app]'",
    exc_type=ImportError,
)  # fmt: skip
pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))
TEXT = "Anna walks to the harbour"
IMAGE = "<img src=x onerror='window.broken = 1'>"
GRADIO = {"aria-allowed-attr"}  # rules that its components break
SCRIPT = "</script><script>window.broken = 1</script>"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile"), height=1600) as driver:
        yield driver


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
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(page, 60, ignored_exceptions=(Exception,)).until(lambda _: holds())


def part(page: Any, name: str) -> Any:
    return page.find_element("id", name)


def field(page: Any, name: str) -> Any:
    return page.find_element("css selector", f"#{name} textarea, #{name} input")


def chips(page: Any) -> list[Any]:
    return page.find_elements("css selector", "#tokens .token")


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
    assert all(live.visible(word) in part(page, "own").text for word, _ in expected.own_words)
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
        assert all(live.visible(word) in part(page, name).text for word, _ in words)
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
    until(page, lambda: "the text is empty" in page.find_element("tag name", "body").text)
    part(page, "again").click()
    until(page, lambda: "Choose a token first." in page.find_element("tag name", "body").text)


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


def test_it_fits_a_phone(page: Any) -> None:
    size = page.get_window_size()
    page.set_window_size(390, 900)
    try:
        read(page, TEXT)
        choose(page, 0)
        until(page, lambda: "row 0." in part(page, "explanations").text)
        assert page.execute_script("return document.documentElement.scrollWidth <= window.innerWidth + 1")
    finally:
        page.set_window_size(size["width"], size["height"])


def test_a_screen_reader_finds_names_and_roles(page: Any) -> None:
    """axe, without rules about parts that Gradio alone draws."""
    read(page, TEXT)
    choose(page, 1)
    until(page, lambda: "row 1." in part(page, "explanations").text)
    page.execute_script(axe())
    found = page.execute_async_script(
        "const done = arguments[arguments.length - 1]; axe.run().then(result => done(result.violations))"
    )
    grave = {violation["id"] for violation in found if violation["impact"] == "critical"}
    assert grave <= GRADIO, [violation["help"] for violation in found if violation["id"] in grave - GRADIO]


def test_hostile_texts_are_shown_and_not_run(browser: Any, tiny_folder: str, target: Target) -> None:
    nla = NLA.from_target(tiny_folder, 1, TEMPLATES, MARKER)
    said = [SCRIPT, IMAGE]
    nla.explain = lambda activation, samples, **_: [said[:samples]]  # type: ignore[method-assign,assignment]
    nla.base_model = IMAGE
    blocks = live.page(nla, target)
    browser.get(live.serve(blocks, wait=False))
    try:
        read(browser, f"{SCRIPT} {IMAGE} {HOSTILE['direction']}")
        choose(browser, 0)
        until(browser, lambda: SCRIPT in part(browser, "explanations").text)
        assert IMAGE in part(browser, "tokens").text
        assert SCRIPT in part(browser, "sentences").text
        said.reverse()
        part(browser, "again").click()
        until(browser, lambda: IMAGE in part(browser, "explanations").text)
        part(browser, "change").click()
        until(browser, lambda: "edited" in value(browser, "distance"))
        assert browser.execute_script("return window.broken === undefined")
        assert browser.find_elements("css selector", "img[src='x']") == []
    finally:
        blocks.close()
