"""The page as text: nothing of the data can become markup, records give the same page again."""

import base64
import hashlib
import json
import re
from pathlib import Path

import pytest
from support.report import HOSTILE, data, token

from nla.commands.cli import main
from nla.errors import DataError
from nla.report import write_page


def test_hostile_texts_stay_in_their_block(tmp_path: Path) -> None:
    tokens = [token(index, text, text) for index, text in enumerate(HOSTILE)]
    (path,) = write_page(data([tokens]), tmp_path / "report.html", metrics={"fve": float("nan"), "note": HOSTILE[0]})
    page = path.read_text(encoding="utf-8")
    assert page.count("<script") == page.count("</script>") == 2
    assert "\u2028" not in page and "\u2029" not in page and "<img" not in page
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert block is not None
    stored = json.loads(block[1])
    assert [item["token"] for item in stored["texts"][0]["results"]] == list(HOSTILE)
    assert stored["metrics"] == {"fve": None, "note": HOSTILE[0]}


def test_the_policy_allows_its_own_style_and_script_alone(tmp_path: Path) -> None:
    (path,) = write_page(data([[token(0, "a")]]), tmp_path / "report.html")
    page = path.read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None and policy[1].startswith("default-src 'none'; ")
    for tag in ("style", "script"):
        content = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert len(content) == 1
        digest = base64.b64encode(hashlib.sha256(content[0].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy[1]
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "") and "https://" not in page


def test_many_tokens_are_split_over_pages(tmp_path: Path) -> None:
    texts = [[token(index, "a") for index in range(length)] for length in (3000, 3000, 12000)]
    pages = write_page(data(texts), tmp_path / "report.html")
    assert [page.name for page in pages][:2] == ["report.html", "report-2.html"]
    total = 0
    for page in pages:
        block = re.search(r'id="data">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL)
        assert block is not None
        stored = json.loads(block[1])
        count = sum(len(text["results"]) for text in stored["texts"])
        assert 0 < count <= 5000 and page.stat().st_size < 10e6
        assert stored["pages"] == [other.name for other in pages] and stored["page"] == page.name
        total += count
    assert total == 18000


def test_records_give_the_same_page_again(tmp_path: Path, saved_nla: Path) -> None:
    first, second = tmp_path / "first.html", tmp_path / "second.html"
    arguments = ["report", str(saved_nla), "Tom walks", "--max-new-tokens", "4", "--output", str(first)]
    assert main(arguments) == 0
    assert main(["report", "--from", str(tmp_path / "tokens.json"), "--output", str(second)]) == 0
    assert first.read_text() == second.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report"], "give a pair and a text"),
        (["report", "PAIR"], "no text to read"),
        (["report", "PAIR", "text", "--samples", "-1"], "--samples -1"),
        (["report", "--from", "FOLDER/none.json"], "cannot be read"),
    ],
)
def test_mistakes(
    arguments: list[str], message: str, saved_nla: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [part.replace("PAIR", str(saved_nla)).replace("FOLDER", str(tmp_path)) for part in arguments]
    assert main(given) == 2
    assert message in capsys.readouterr().err


def test_other_records_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected 'nla-tokens', 1"):
        write_page({"format": "other", "texts": []}, tmp_path / "report.html")
