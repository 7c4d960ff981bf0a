"""A saved pair in transformers 4.57, which the released client and critic run on: the same numbers, by plain tools.

4.57 is installed into a folder of its own, from the package index; without one these tests skip.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import MARKER, TEMPLATES, make_config, make_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from nla.models.pair import NLA
from nla.models.pretrained.older_names import add_older_names

NEEDED = (
    "transformers>=4.57,<4.58",
    "tokenizers>=0.22,<0.23",
    "huggingface_hub>=0.34,<1",
    "requests",
    "charset_normalizer",
)
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
READER = """
import json, sys
import torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
assert transformers.__version__.startswith("4.57"), transformers.__version__
found = {}
for half in ("verbalizer", "reconstructor"):
    folder = f"{sys.argv[1]}/{half}"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = tokenizer(sys.argv[2], return_tensors="pt")["input_ids"]
    decoder = getattr(model.model, "language_model", model.model)
    decoder.norm = torch.nn.Identity()
    with torch.no_grad():
        hidden = decoder(input_ids=ids).last_hidden_state[0, -1]
    found[half] = {"ids": ids[0].tolist(), "hidden": hidden.tolist(), "side": tokenizer.padding_side,
                   "special": sorted(map(str, tokenizer.all_special_tokens)), "chat": tokenizer.chat_template}
print(json.dumps(found))
"""
TEXT = "Summary of the following text: <text>Tom walks to the harbour. It rains in the town.</text> <summary>"


def configured(family: str) -> Any:
    """Whose numbers change if 4.57 takes its defaults."""
    config = make_config("qwen2" if family == "qwen2_tied" else family)
    if family == "llama":
        config.rope_parameters = dict(LLAMA3)
    elif family in ("qwen2", "qwen2_tied"):
        config.rope_parameters["rope_theta"] = 1e6
        config.tie_word_embeddings = family == "qwen2_tied"
    else:
        text = config.get_text_config()
        text.rope_parameters["full_attention"] |= {"rope_theta": 5e5, "rope_type": "linear", "factor": 8.0}
        text.rope_parameters["sliding_attention"]["rope_theta"] = 3e4
    return config


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process that imports 4.57."""
    folder = tmp_path_factory.mktemp("older")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), *NEEDED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode:
        pytest.skip(f"no transformers 4.57 here: {done.stderr.strip().splitlines()[-1:]}")
    return {**os.environ, "PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1"}


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2", "qwen2_tied", "llama", "gemma3", "gemma3_images"])
def test_the_same_numbers(family: str, older: dict[str, str], tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = tmp_path / "base"
    AutoModelForCausalLM.from_config(configured(family)).save_pretrained(base)
    make_tokenizer().save_pretrained(base)
    pair = NLA.from_target(str(base), 1, TEMPLATES, MARKER)
    pair.save_pretrained(tmp_path / "nla")
    done = subprocess.run(
        [sys.executable, "-c", READER, str(tmp_path / "nla"), TEXT],
        env=older, cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for half in ("verbalizer", "reconstructor"):
        folder = tmp_path / "nla" / half
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
        decoder = getattr(model.model, "language_model", model.model)
        decoder.norm = torch.nn.Identity()
        ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            hidden = decoder(input_ids=ids).last_hidden_state[0, -1]
        read = found[half]
        assert read["ids"] == ids[0].tolist() and read["chat"] == tokenizer.chat_template
        assert read["special"] == sorted(map(str, tokenizer.all_special_tokens))
        assert torch.allclose(torch.tensor(read["hidden"]), hidden, atol=1e-4, rtol=1e-4), half
    assert found["reconstructor"]["side"] == "right"


@pytest.mark.parametrize("family", ["qwen2", "llama", "gemma3", "gemma3_images"])
def test_the_older_names_say_what_the_new_ones_say(family: str, tmp_path: Path) -> None:
    config = configured(family)
    config.save_pretrained(tmp_path)
    before = AutoConfig.from_pretrained(tmp_path).get_text_config().rope_parameters
    add_older_names(tmp_path)
    after = AutoConfig.from_pretrained(tmp_path).get_text_config().rope_parameters
    assert before == after == config.get_text_config().rope_parameters
    written = json.loads((tmp_path / "config.json").read_text())
    written = written.get("text_config", written)
    expected = {"qwen2": (1e6, None), "llama": (5e5, 8.0)}.get(family, (5e5, 8.0))
    assert written["rope_theta"] == expected[0]
    assert (written["rope_scaling"] or {}).get("factor") == expected[1]
    assert written.get("rope_local_base_freq") == (3e4 if family.startswith("gemma3") else None)


def test_special_tokens_have_their_older_name(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>", "<|end|>"]})
    tokenizer.save_pretrained(tmp_path)
    add_older_names(tmp_path, padding_side="right")
    written = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast" and written["padding_side"] == "right"
    assert written["additional_special_tokens"] == ["<|turn|>", "<|end|>"] and "extra_special_tokens" not in written
    again: Any = AutoTokenizer.from_pretrained(tmp_path)
    assert again.all_special_ids == tokenizer.all_special_ids and again.chat_template == tokenizer.chat_template
