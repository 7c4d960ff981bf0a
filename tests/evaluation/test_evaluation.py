"""The suite end to end, on tiny models: FVE against torchmetrics, controls, files, the table."""

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console
from support.evaluation import PLAN, SETTINGS, ToySource, remembering, toy_data
from support.fve import fraction_of_variance_explained, fve_normalized_mean
from torchmetrics import R2Score

from nla.core.objectives import normalize
from nla.errors import ConfigError, DataError, ModelError
from nla.evaluation import Evaluation, EvaluationData, evaluate, read_samples, run
from nla.evaluation.activations import EvaluatedRows, read_rows
from nla.evaluation.explanations import repeated_share
from nla.evaluation.suites.controls import CONTROLS, other_document
from nla.evaluation.table import show
from nla.models.pair import NLA
from nla.models.target import Target

CONTRACT = {
    "fve": float, "fve_ci95": list, "fve_sampled": float, "fve_normalized_mean": float, "fve_warm_start": float,
    "cosine": float, "error": float, "n": int, "documents": int, "controls": dict, "explanation": dict, "claims": dict,
    "seconds": dict, "model": str, "layer": int, "stage": str, "seed": int, "command": str, "versions": dict,
}  # fmt: skip


@pytest.fixture
def rows(target: Target) -> EvaluatedRows:
    return read_rows(target, toy_data(), "test", None, 32)


@pytest.fixture
def noisy(nla: NLA, target: Target, rows: EvaluatedRows) -> Evaluation:
    """A pair that remembers noisy activations, every fifth malformed."""
    torch.manual_seed(0)
    noise = rows.activation.std() * torch.randn_like(rows.activation)
    remembering(nla, rows.activation + 0.3 * noise, every_malformed=5)
    return evaluate(nla, target, toy_data(), SETTINGS)


def test_rows_are_what_the_target_reads(target: Target, rows: EvaluatedRows) -> None:
    assert len(rows) == 24
    assert rows.document == sorted(rows.document)
    for index in (0, 7, 23):
        reading = target.read([rows.text[index]], "last")
        torch.testing.assert_close(rows.activation[index], reading.activation[0], atol=1e-4, rtol=1e-4)
        assert reading.position == [int(rows.position[index])]
    assert all(text.endswith(tail) for text, tail in zip(rows.text, rows.tail, strict=True))


def test_fewer_documents_are_a_subset_with_the_same_rows(target: Target, rows: EvaluatedRows) -> None:
    some = read_rows(target, toy_data(), "test", 4, 32)
    assert len(some) == 8
    places = [(d, int(p)) for d, p in zip(rows.document, rows.position, strict=True)]
    assert {(d, int(p)) for d, p in zip(some.document, some.position, strict=True)} <= set(places)


def test_too_little_to_read_is_said(target: Target) -> None:
    with pytest.raises(DataError, match="fewer than two activations"):
        read_rows(target, EvaluationData(ToySource(), replace(PLAN, min_context=60)), "test", None, 32)


def test_fve_is_torchmetrics_r2(noisy: Evaluation) -> None:
    d_model = noisy.rows.activation.shape[1]
    truth = normalize(noisy.rows.activation.double(), math.sqrt(d_model))
    prediction = normalize(noisy.variants["greedy"].prediction.double(), math.sqrt(d_model))
    formed = torch.tensor([text is not None for text in noisy.variants["greedy"].texts.explanation])
    # an orthogonal vector of equal norm stands for each malformed explanation
    orthogonal = torch.zeros_like(truth)
    orthogonal[:, 0], orthogonal[:, 1] = truth[:, 1], -truth[:, 0]
    orthogonal = normalize(orthogonal, math.sqrt(d_model))
    metric = R2Score(multioutput="variance_weighted")
    metric.set_dtype(torch.float64)
    metric.update(torch.where(formed.unsqueeze(1), prediction, orthogonal), truth)
    assert 0 < formed.double().mean() < 1
    assert noisy.metrics["fve"] == pytest.approx(float(metric.compute()), abs=1e-9)
    arguments = (noisy.variants["greedy"].prediction, noisy.rows.activation, formed)
    assert noisy.metrics["fve"] == pytest.approx(fraction_of_variance_explained(*arguments), abs=1e-9)
    assert noisy.metrics["fve_normalized_mean"] == pytest.approx(fve_normalized_mean(*arguments), abs=1e-9)


def test_a_perfect_pair_and_its_controls(nla: NLA, target: Target, rows: EvaluatedRows) -> None:
    mean = normalize(rows.activation, math.sqrt(32)).mean(0)
    remembering(nla, rows.activation, mean=mean)
    metrics = evaluate(nla, target, toy_data(), SETTINGS, warm_start=nla).metrics
    controls = metrics["controls"]
    assert metrics["fve"] == pytest.approx(1, abs=1e-6)
    assert metrics["fve_warm_start"] == metrics["fve"]
    assert metrics["fve_above_warm_start_ci95"] == [0, 0]
    assert metrics["cosine"] == pytest.approx(1, abs=1e-6)
    assert controls["mean"] == {"fve": 0, "ci95": [0, 0]}
    assert controls["constant_direction"]["fve"] < 0
    # the pair gives the mean direction for any text it does not know
    assert controls["empty_text"]["fve"] == pytest.approx(controls["constant_direction"]["fve"], abs=1e-6)
    assert controls["source_text"]["fve"] == pytest.approx(controls["constant_direction"]["fve"], abs=1e-6)
    # one text for all rows cannot beat the best constant
    assert controls["mean_activation"]["fve"] <= controls["constant_direction"]["fve"] + 1e-6
    assert isinstance(controls["mean_activation"]["text"], str)
    assert controls["shuffled"]["fve"] < controls["constant_direction"]["fve"]
    assert controls["shuffled"]["fve"] < controls["nearest_neighbour"]["fve"] < 1
    assert controls["nearest_neighbour"]["activations"] == 10
    match = metrics["position_match"]
    assert match["greedy"] == match["warm_start"]
    assert match["greedy"]["same_document"]["rank1"] == match["greedy"]["other_documents"]["rank1"] == 1
    assert match["greedy"]["same_document"]["chance"] < 1
    # one vector for all positions of a document is nearest to one of them
    chance = match["source_text"]["same_document"]["chance"]
    assert match["source_text"]["same_document"]["rank1"] == pytest.approx(chance)
    assert match["shuffled"]["other_documents"]["rank1"] == 0


def test_malformed_count_as_orthogonal(nla: NLA, target: Target, rows: EvaluatedRows) -> None:
    remembering(nla, rows.activation, every_malformed=4)  # a quarter of the rows
    metrics = evaluate(nla, target, toy_data(), SETTINGS).metrics
    assert metrics["error"] == pytest.approx(2 / 4, abs=1e-6)
    assert metrics["cosine"] == pytest.approx(3 / 4, abs=1e-6)
    assert metrics["explanation"]["well_formed"] == 3 / 4
    assert metrics["explanation"]["tokens_mean"] == 5
    assert metrics["fve"] < 1 - 1 / 4


def test_an_untrained_pair_writes_nothing_well_formed(nla: NLA, target: Target) -> None:
    metrics = evaluate(nla, target, toy_data(), SETTINGS).metrics
    assert metrics["error"] == 2
    assert metrics["explanation"]["well_formed"] == 0
    assert metrics["explanation"]["repeated_share"] is None
    assert metrics["claims"]["n"] == 0
    assert metrics["claims"]["true_share"] is None
    assert metrics["fve_warm_start"] is None
    assert metrics["fve_warm_start_reason"] == "no warm-start pair was given"


def test_the_batch_size_changes_nothing(nla: NLA, target: Target) -> None:
    one = evaluate(nla, target, toy_data(), replace(SETTINGS, samples=2)).variants
    other = evaluate(nla, target, toy_data(), replace(SETTINGS, samples=2, batch_size=24)).variants
    for name in ("greedy", "sampled"):
        assert one[name].texts.explanation == other[name].texts.explanation
        assert torch.equal(one[name].texts.tokens, other[name].texts.tokens)


def test_what_is_not_there_is_null_with_a_reason(nla: NLA, target: Target, rows: EvaluatedRows) -> None:
    class Plain:
        def documents(self, split: str) -> list:
            return ToySource(("test",)).documents(split)

        def explanation(self, document: object, end: int, seed: int) -> None:
            return None

    remembering(nla, rows.activation)
    settings = replace(SETTINGS, samples=0, documents=1)
    metrics = evaluate(nla, target, EvaluationData(Plain(), PLAN), settings).metrics
    assert metrics["claims"] is None
    assert metrics["ceiling"]["ground_truth"]["fve"] is None
    assert metrics["fve_sampled"] is None
    assert metrics["fve_ci95"] is None  # one document cannot be resampled
    for name in ("shuffled", "nearest_neighbour"):
        assert metrics["controls"][name]["fve"] is None
        assert metrics["controls"][name]["reason"]


def test_pair_and_target_must_belong_together(nla: NLA, tiny_folder: str) -> None:
    with pytest.raises(ConfigError, match="layer 1 .* layer 0"):
        evaluate(nla, Target.from_pretrained(tiny_folder, 0), toy_data(), SETTINGS)


def test_a_broken_reconstructor_is_named(nla: NLA, target: Target) -> None:
    with torch.no_grad():
        nla.reconstructor.head.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        evaluate(nla, target, toy_data(), SETTINGS)


@pytest.mark.parametrize(("key", "value"), [("documents", 0), ("bootstrap", 0), ("temperature", 0.0)])
def test_settings_are_bounded(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"evaluation\.{key}="):
        replace(SETTINGS, **{key: value})


def test_run_writes_the_contract(nla: NLA, target: Target, rows: EvaluatedRows, tmp_path: Path) -> None:
    nla.save_pretrained(tmp_path / "stages/reconstructor/nla", stage="reconstructor")
    nla.stage = "joint"
    remembering(nla, rows.activation, every_malformed=5)
    console = Console(file=io.StringIO(), width=100)
    output = tmp_path / "evaluation"
    settings = replace(SETTINGS, report_texts=2)
    (tmp_path / "stages/joint").mkdir()
    (tmp_path / "stages/joint/metrics.csv").write_text("step,joint/reward\n1,-0.5\n2,-0.25\n")
    result = run(nla, target, toy_data(), output, settings=settings, seed=3, run_folder=tmp_path, console=console)

    assert sorted(path.name for path in output.iterdir()) == [
        "by_tokens_read.png", "metrics.json", "report.html", "samples.parquet", "tokens.json",
    ]  # fmt: skip
    assert "reward" in (output / "report.html").read_text()  # the run's curves
    metrics = json.loads((output / "metrics.json").read_text())
    for key, kind in CONTRACT.items():
        assert isinstance(metrics[key], kind), key
    assert set(metrics["controls"]) == set(CONTROLS)
    assert all({"fve", "ci95"} <= set(control) for control in metrics["controls"].values())
    assert {"well_formed", "tokens_mean", "repeated_share"} <= set(metrics["explanation"])
    claims = metrics["claims"]
    for part in (claims, claims["warm_start"]):
        assert {"true_share", "recall", "kinds_per_text", "by_kind"} <= set(part)
        assert all({"n", "true_share", "recall"} <= set(kind) for kind in part["by_kind"].values())
    assert (metrics["n"], metrics["documents"], metrics["seed"], metrics["stage"]) == (24, 12, 3, "joint")
    assert metrics["versions"]["torch"] == torch.__version__.split("+")[0] or metrics["versions"]["torch"]
    assert metrics["seconds"]["total"] > 0

    table = read_samples(output / "samples.parquet")
    assert [str(table.schema.field(name).type) for name in ("position", "cosine", "activation")] == [
        "int64", "double", "fixed_size_list<element: float>[32]",
    ]  # fmt: skip
    assert set(table.column_names) == {
        "document", "position", "text", "activation", "explanation", "cosine", "error", "explanation_sampled",
        "cosine_sampled", "error_sampled", "explanation_warm_start", "cosine_warm_start", "error_warm_start",
    }  # fmt: skip
    activation = torch.from_numpy(table["activation"].combine_chunks().flatten().to_numpy().reshape(-1, 32).copy())
    assert torch.equal(activation, result.rows.activation)
    truth = normalize(activation.double(), math.sqrt(32))
    spread = (truth - truth.mean(0)).square().mean(-1).sum()
    assert metrics["fve"] == pytest.approx(1 - table["error"].to_numpy().sum() / float(spread), abs=1e-12)
    malformed = table["explanation"].is_null().to_pylist()
    assert sum(malformed) == 5
    assert [row for row, flag in zip(table["error"].to_pylist(), malformed, strict=True) if flag] == [2.0] * 5
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for text in ("this pair, greedy", "empty text", "colour", "malformed", "written to"):
        assert text in shown


def test_damage_to_the_samples_is_noticed(nla: NLA, target: Target, tmp_path: Path) -> None:
    run(nla, target, toy_data(), tmp_path, settings=SETTINGS, console=Console(file=io.StringIO()))
    path = tmp_path / "samples.parquet"
    content = bytearray(path.read_bytes())
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(2)
    first = chunk.dictionary_page_offset or chunk.data_page_offset
    content[first + chunk.total_compressed_size // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match="run the evaluation again"):
        read_samples(path)


def test_texts_are_printed_as_they_are(noisy: Evaluation) -> None:
    console = Console(file=io.StringIO(), width=100)
    noisy.variants["greedy"].texts.explanation[0] = "a [bold]tag[/bold] and [/nonsense]"
    show(noisy, console, examples=2)
    assert "[bold]tag[/bold] and [/nonsense]" in console.file.getvalue()  # type: ignore[attr-defined]


def test_other_document_pairs_each_row_once() -> None:
    document = ["a"] * 3 + ["b"] * 2 + ["c"] * 3 + ["d"]
    partner = other_document(document, seed=1)
    assert partner is not None
    assert sorted(partner) == list(range(9))
    assert all(document[i] != document[j] for i, j in enumerate(partner))
    assert other_document(["a"] * 3 + ["b"] * 2, seed=0) is None


def test_repeated_share_by_hand() -> None:
    assert repeated_share(["It rains. it  rains. It snows.", "It rains!"]) == 1 / 4
    assert repeated_share(["one; two; one"]) == 1 / 3
    assert repeated_share(["Mr 3.5 stays whole."]) == 0
    assert repeated_share([]) is None
