"""The records as JSON and the page as one file: nothing in the data can leave its block, and it can be drawn again."""

import base64
import dataclasses
import hashlib
import json
import re
from pathlib import Path

import pytest
from support.reports import HOSTILE, hostile_report, large_report, small_report

from nla.errors import DataError
from nla.report import Report, read_report, write_report
from nla.report.figures import bars, curves, number, tables, thinned
from nla.report.page import page, split
from nla.report.records import write_records

METRICS = {
    "fve": 0.654321, "fve_ci95": [0.6, 0.7], "fve_warm_start": None, "fve_warm_start_ci95": None,
    "fve_warm_start_reason": "none was given", "n": 10, "documents": 5, "command": "python evaluate.py",
    "controls": {"shuffled": {"fve": -0.5, "ci95": [-0.6, -0.4]}, "nearest_neighbour": {"fve": None, "ci95": None}},
    "seconds": {"total": 1.0},
}  # fmt: skip


def test_records_come_back_as_they_were():
    report = small_report()
    again = Report.from_json(report.to_json())
    assert again == report
    assert again.to_json() == report.to_json()


def test_numbers_have_four_digits_and_none_is_infinite():
    report = small_report()
    odd = dataclasses.replace(report.texts[0].results[0], l2_norm=123.456789, mse=1e-9 / 3)
    text = dataclasses.replace(report.texts[0], results=[odd])
    plain = json.loads(Report([text]).to_json())["texts"][0]["results"][0]
    assert (plain["l2_norm"], plain["mse"]) == (123.5, 3.333e-10)
    # Neuronpedia's names for what they mean there
    names = {"token", "token_id", "position", "l2_norm", "description", "mse", "cosine_similarity"}
    assert names <= set(plain) and "layer_index" in json.loads(Report([text]).to_json())["texts"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plain: "{", "Invalid JSON"),
        (lambda plain: "[]", "the file"),
        (lambda plain: {**plain, "format": "other"}, "format is 'other', not 'nla-tokens'"),
        (lambda plain: {**plain, "version": 2}, "version 2 of the format, this nla reads 1"),
        (lambda plain: {**plain, "texts": [{**plain["texts"][0], "layer_index": "x"}]}, "texts.0.layer_index"),
        (lambda plain: {**plain, "texts": [{"name": "t"}]}, "texts.0.text: Field required"),
    ],
)
def test_records_that_are_none_are_refused(change, message: str, tmp_path: Path):
    changed = change(json.loads(small_report().to_json()))
    path = tmp_path / "tokens.json"
    path.write_text(changed if isinstance(changed, str) else json.dumps(changed))
    with pytest.raises(DataError, match=message) as caught:
        read_report([path])
    assert str(path) in str(caught.value)
    with pytest.raises(DataError, match="cannot be read"):
        read_report([tmp_path / "none.json"])


def test_the_page_is_drawn_again_from_its_records(tmp_path: Path):
    write_records(small_report(), tmp_path / "tokens.json")
    (first,) = write_report(small_report(), tmp_path / "one.html", metrics=METRICS)
    (second,) = write_report(read_report([tmp_path / "tokens.json"]), tmp_path / "two.html", metrics=METRICS)
    assert first.read_bytes() == second.read_bytes()
    assert len(read_report([tmp_path / "tokens.json"] * 2).texts) == 4


def blocks(html: str) -> dict[str, str]:
    """What stands in the data blocks, as a browser finds their ends."""
    return dict(re.findall(r'<script type="application/json" id="(\w+)">(.*?)</script', html, re.S))


def test_hostile_strings_stay_in_their_block():
    report = hostile_report()
    html = page(report, metrics={HOSTILE["script"]: HOSTILE["script"], "command": HOSTILE["script"]})
    assert html.count("<script") == html.count("</script>") == 3
    found = blocks(html)
    for data in found.values():
        assert data.isascii() and not re.search(r"[<>&]", data)
    assert Report.from_json(found["records"]).to_json() == report.to_json()
    outside = html.replace(found["records"], "").replace(found["extra"], "")
    assert "alert" not in outside and "gnp.exe" not in outside
    assert not re.search(r"[\u2028\u2029\u202e\x00-\x08\x1b]", html)


def test_half_a_character_is_replaced():
    text = dataclasses.replace(small_report().texts[0], name="half \ud800 pair")
    assert Report.from_json(Report([text]).to_json()).texts[0].name == "half ? pair"


def test_the_policy_allows_the_own_script_and_style_and_nothing_else():
    html = page(small_report(), metrics=METRICS)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy.group(1).split(";"))
    inline = {
        "script-src": re.findall(r"<script>(.*?)</script>", html, re.S),
        "style-src": re.findall(r"<style>(.*?)</style>", html, re.S),
    }
    assert rules["default-src"] == "'none'" and set(rules) == {"default-src", "base-uri", "form-action", *inline}
    for name, (code,) in inline.items():
        assert rules[name] == f"'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'"
    # no markup is ever made from text, and nothing is fetched
    script = inline["script-src"][0]
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|fetch\(|XMLHttpRequest", script
    )
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!#)""", html.replace(script, ""))
    assert "{{" not in html.replace(blocks(html)["records"], "")


def test_five_thousand_tokens_are_below_ten_megabytes(tmp_path: Path):
    (path,) = write_report(large_report(), tmp_path / "report.html")
    assert path.stat().st_size < 10_000_000


def test_what_is_too_large_is_split_into_files_that_name_each_other(tmp_path: Path):
    report = large_report(400)
    small = small_report().texts[1]
    paths = write_report(Report([*report.texts, small]), tmp_path / "report.html", metrics=METRICS, most_bytes=100_000)
    assert len(paths) > 2 and [path.name for path in paths[:2]] == ["report.html", "report-2.html"]
    parts = [Report.from_json(blocks(path.read_text())["records"]) for path in paths]
    assert [t.position for part in parts for text in part.texts[:1] for t in text.results][:400] == list(range(400))
    for part in parts:
        for text in part.texts:
            assert all(text.text[t.start : t.end] == t.token.strip() for t in text.results)
    extras = [json.loads(blocks(path.read_text())["extra"]) for path in paths]
    assert all([entry["file"] for entry in extra["pages"]] == [path.name for path in paths] for extra in extras)
    assert extras[0]["bars"] and not extras[1]["bars"]
    assert len(list(split(small_report(), 10**6))) == 1


def test_bars_are_the_pair_and_its_controls():
    assert bars(METRICS) == [
        {"label": "this pair", "value": 0.654321, "interval": [0.6, 0.7], "kind": "pair", "reason": None},
        {"label": "warm start", "value": None, "interval": None, "kind": "before", "reason": "none was given"},
        {
            "label": "another document's explanation", "value": -0.5, "interval": [-0.6, -0.4], "kind": "control",
            "reason": None,
        },
        {"label": "nearest training explanation", "value": None, "interval": None, "kind": "control", "reason": None},
    ]  # fmt: skip
    assert bars({"fve": float("nan")})[0]["value"] is None
    assert bars({}) == [] and tables({}) == []


def test_tables_hold_every_figure():
    suite = {
        "greedy": {"same": {"rank1": 0.5, "ci95": [0.4, 0.6], "n": 10}, "other": {"rank1": None, "ci95": None, "n": 0}},
        "reason": "why",
    }
    found = tables({"fve": 0.5, "fve_ci95": [0.4, 0.6], "n": 12345, "suite": suite, "empty": [], "command": "x"})
    assert found == [
        {"title": "figures", "columns": ["", "value"], "rows": [["fve", "0.500 (0.400 to 0.600)"], ["n", "12345"]]},
        {"title": "suite", "columns": ["", "value"], "rows": [["reason", "why"]]},
        {
            "title": "suite: greedy",
            "columns": ["", "rank1", "n"],
            "rows": [["same", "0.500 (0.400 to 0.600)", "10"], ["other", "–", "0"]],
        },
    ]
    listed = tables({"by": [{"tokens": 4, "fve": 0.1, "ci95": [0, 0.2]}, {"tokens": 8, "fve": 0.3, "ci95": None}]})
    assert listed == [
        {"title": "by", "columns": ["", "fve"], "rows": [["tokens 4", "0.100 (0 to 0.200)"], ["tokens 8", "0.300"]]}
    ]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.5, "0.500"), (0, "0"), (1024, "1024"), (1e-5, "1e-05"), (None, "–"), (True, "True"), ("a", "a"), (12.0, "12")],
)
def test_numbers_as_a_person_reads_them(value, shown: str):
    assert number(value) == shown


def test_curves_of_a_run(tmp_path: Path):
    folder = tmp_path / "stages" / "joint"
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text("step,joint/loss,joint/validation/fve\n1,2.0,\n2,1.0,0.1\n3,nan,0.4\n")
    assert curves(tmp_path) == [
        {"stage": "joint", "name": "held out: fve", "points": [(2.0, 0.1), (3.0, 0.4)]},
        {"stage": "joint", "name": "loss", "points": [(1.0, 2.0), (2.0, 1.0)]},
    ]
    (folder / "metrics.csv").write_text("step,joint/loss\n1,many\n")
    with pytest.raises(DataError, match="metrics.csv: cannot be read"):
        curves(tmp_path)
    points = [(float(x), 0.0) for x in range(1000)]
    assert [x for x, _ in thinned(points, 4)] == [0, 333, 666, 999]
