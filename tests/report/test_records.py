"""Per-token records, by hand, on a tiny pair that remembers."""

import json
import math

import pytest
import torch
from support.evaluation import remembering

from nla.core.objectives import normalize
from nla.models.pair import NLA
from nla.models.target import Target
from nla.report import read_texts, to_json

TEXT = "Anna walks to the harbour"


def test_records_of_a_perfect_pair(nla: NLA, target: Target) -> None:
    reading = target.read([TEXT], "all")
    remembering(nla, reading.activation)
    (record,) = read_texts(nla, target, [TEXT], samples=2)
    assert record.fve == pytest.approx(1, abs=1e-5)
    assert "".join(token.token for token in record.results).strip() == TEXT
    for index, token in enumerate(record.results):
        assert token.description == f"row {index}."
        assert token.position == reading.position[index]
        assert token.l2_norm == pytest.approx(float(reading.activation[index].norm()), rel=1e-5)
        assert token.cosine_similarity == pytest.approx(1, abs=1e-5) and token.mse == pytest.approx(0, abs=1e-5)
        assert token.confidence == pytest.approx(1, abs=1e-5) and len(token.samples) == 2
        assert target.tokenizer.decode([token.token_id]) == token.token
        assert token.rival is not None and token.rival.description != token.description


def test_figures_by_hand(nla: NLA, target: Target) -> None:
    activation = target.read([TEXT], "all").activation
    remembering(nla, activation)
    plain = nla.reconstruct

    def shifted(texts: list[str], batch_size: int = 64) -> torch.Tensor:
        """Every explanation is given back as the next token's activation."""
        rows = [(int(text[4:-1]) + 1) % len(activation) if text.startswith("row ") else -1 for text in texts]
        fallback = plain(["nothing"])[0]
        return torch.stack([fallback if row < 0 else activation[row] for row in rows])

    nla.reconstruct = shifted  # type: ignore[method-assign,assignment]
    (record,) = read_texts(nla, target, [TEXT])
    scaled = normalize(activation.double(), math.sqrt(activation.shape[1]))
    spread = float((scaled - scaled.mean(0)).square().mean())
    errors = (scaled.roll(-1, 0) - scaled).square().mean(1)
    for token, error in zip(record.results, errors.tolist(), strict=True):
        assert token.relative_error == pytest.approx(error / spread, rel=1e-4)
    assert record.fve == pytest.approx(1 - float(errors.mean()) / spread, abs=1e-4)
    # the explanation of the token before is given back as this one: the nearest wrong one
    rivals = [token.rival for token in record.results]
    assert [rival.position for rival in rivals if rival is not None][1] == record.results[0].position
    assert rivals[1] is not None and rivals[1].relative_error == pytest.approx(0, abs=1e-4)


def test_malformed_explanations_and_json(nla: NLA, target: Target) -> None:
    remembering(nla, target.read([TEXT], "all").activation, every_malformed=2)
    records = read_texts(nla, target, [TEXT])
    assert records[0].results[0].description is None
    assert records[0].results[0].cosine_similarity == 0 and records[0].results[0].sentences == []
    data = json.loads(json.dumps(to_json(nla, records, pair="toy")))
    assert (data["format"], data["version"], data["pair"]) == ("nla-tokens", 1, "toy")
    first = data["texts"][0]["results"][0]
    assert {"position", "token", "token_id", "l2_norm", "description", "mse", "cosine_similarity"} <= set(first)
