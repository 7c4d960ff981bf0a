"""Marker, templates, rendering and parsing; every way an injection could go wrong."""

import pytest
import torch
from support.models import CHAT, MARKER, TEMPLATES, make_tokenizer
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.decoders import Metaspace as MetaspaceDecoder
from tokenizers.models import BPE, Unigram, WordLevel
from tokenizers.pre_tokenizers import ByteLevel, Metaspace
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from nla.errors import ConfigError, InjectionError
from nla.models import explanations, prompts


@pytest.fixture(scope="module")
def tok():
    return make_tokenizer()


def test_marker_is_found_and_is_one_token(tok):
    assert prompts.find_marker(tok) == MARKER
    assert len(tok.encode(MARKER, add_special_tokens=False)) == 1


def without_marker(character: str | None):
    """The tiny tokenizer with another character in the marker's place; None: with a pair of letters."""
    state = make_tokenizer().backend_tokenizer.to_str().replace(MARKER, character or "zq")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(state), eos_token="<|eos|>")


def test_a_character_outside_of_the_released_range_serves_too():
    other = without_marker("\u2588")
    assert prompts.find_marker(other) == "\u2588"
    prompt = prompts.build_verbalizer_prompt(other, TEMPLATES.verbalizer, "\u2588")
    assert prompt.tokens[prompt.position] == prompt.marker_id == other.convert_tokens_to_ids("\u2588")


def test_a_character_of_the_corpus_is_no_marker():
    """What texts hold is left to texts; the next candidate is a special token without a role."""
    other = without_marker("\u2588")
    found = prompts.find_marker(other, ["a plain text", "a bar: \u2588"])
    assert found != "\u2588"
    assert other.encode(found, add_special_tokens=False) == [prompts.marker_id(other, found)]


def test_an_unused_token_comes_before_one_with_a_name():
    other = without_marker(None)
    other.add_special_tokens({"additional_special_tokens": ["<|zz_role|>", "<unused7>"]})
    assert prompts.find_marker(other, ["<|turn|> and <|system|> and <|user|>"]) == "<unused7>"
    assert prompts.find_marker(other, ["this text holds <unused7>"]) != "<unused7>"


def test_tokenizer_without_marker_says_what_to_do():
    bare = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?")), eos_token="a", unk_token="?"
    )
    with pytest.raises(InjectionError, match="add_tokens"):
        prompts.find_marker(bare)


def test_ways_to_name_a_marker(tok):
    """Quoting-free on the command line: a code point, or the token's id."""
    token = prompts.marker_id(tok, MARKER)
    assert token is not None
    named = [MARKER, f"U+{ord(MARKER):04X}", f"U+{ord(MARKER):04x}", token, None]
    assert [prompts.resolve_marker(tok, name) for name in named] == [MARKER] * 5
    for wrong in (-1, 10**9, tok.pad_token_id + 10**6):
        with pytest.raises(InjectionError, match=f"model.marker={wrong}"):
            prompts.resolve_marker(tok, wrong)


def byte_level(texts: list[str], size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE as GPT-2 and SmolLM2 have it, trained on texts."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    trainer = BpeTrainer(vocab_size=size, initial_alphabet=ByteLevel.alphabet(), special_tokens=["<|end|>"])
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


def sentencepiece() -> PreTrainedTokenizerFast:
    """A unigram model with a dummy prefix and byte fallback, as Llama 2 and Gemma have it."""
    words = [("\u2581", -1.0), ("\u2588", -5.0), ("<", -3.0), (">", -3.0), ("c", -3.0), ("/", -3.0), ("a", -2.0)]
    fallback = [(f"<0x{byte:02X}>", -9.0) for byte in range(256)]
    model = Unigram([("<unk>", 0.0), ("</s>", 0.0), *fallback, *words], unk_id=0, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = Metaspace(replacement="\u2581", prepend_scheme="always")
    tokenizer.decoder = MetaspaceDecoder(replacement="\u2581", prepend_scheme="always")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize(
    ("tokenizer", "marker"),
    [
        (lambda: byte_level(["bar\u2588bar \u2588 box\u2588"] * 9 + ["plain words"] * 9, 400), "\u2588"),
        (lambda: byte_level(["only plain ascii words"] * 9, 400), None),
        (sentencepiece, "\u2588"),
    ],
    ids=["byte_level", "byte_level_ascii", "sentencepiece"],
)
def test_every_tokenizer_with_a_spare_symbol_gets_a_marker(tokenizer, marker: str | None):
    tok = tokenizer()
    if marker is None:
        tok.add_special_tokens({"additional_special_tokens": ["<|reserved_special_token_0|>"]})
    found = prompts.find_marker(tok)
    assert found == (marker or "<|reserved_special_token_0|>")
    prompt = prompts.build_verbalizer_prompt(tok, "<c>{injection_char}</c>", found)
    assert prompt.tokens.count(prompt.marker_id) == 1
    assert 0 < prompt.position < len(prompt.tokens) - 1


def test_prompt_has_the_marker_once_with_its_neighbours(tok):
    prompt = prompts.build_verbalizer_prompt(tok, TEMPLATES.verbalizer, MARKER)
    assert prompt.tokens.count(prompt.marker_id) == 1
    assert prompt.tokens[prompt.position] == prompt.marker_id
    assert prompt.tokens[prompt.position - 1] == prompt.left_id
    assert prompt.tokens[prompt.position + 1] == prompt.right_id
    assert tok.decode(prompt.tokens).endswith("<|turn|>assistant\n")
    assert tok.decode([prompt.end_of_turn]) == "<|end|>"


@pytest.mark.parametrize(
    ("template", "marker", "message"),
    [
        ("no slot at all", MARKER, "0 times"),
        ("<c>{injection_char}</c> {injection_char}", MARKER, "2 times"),
        (f"<c>{{injection_char}}</c> and {MARKER}", MARKER, "2 times"),
        ("<c>{injection_char}</c>", "\u3231", "not one token"),
        ("<c>{injection_char}</c>", "ab", "not one token"),
    ],
)
def test_missing_double_or_split_marker(tok, template: str, marker: str, message: str):
    """Fault 23."""
    with pytest.raises(InjectionError, match=message):
        prompts.build_verbalizer_prompt(tok, template, marker)


def test_marker_at_the_edge():
    """Fault 23."""
    bare = make_tokenizer()
    bare.chat_template = "{{ messages[0]['content'] }}"
    with pytest.raises(InjectionError, match="edge"):
        prompts.build_verbalizer_prompt(bare, "{injection_char} says", MARKER)


@pytest.mark.parametrize("form", ["list", "nested", "encoding", "tensor"])
def test_chat_template_forms_give_the_same_ids(tok, form: str, monkeypatch: pytest.MonkeyPatch):
    """Fault 24."""
    expected = prompts.chat_ids(tok, "hello")
    forms = {
        "list": expected,
        "nested": [expected],
        "encoding": {"input_ids": [expected], "attention_mask": [[1] * len(expected)]},
        "tensor": torch.tensor([expected]),
    }
    monkeypatch.setattr(type(tok), "apply_chat_template", lambda *_a, **_k: forms[form])
    assert prompts.chat_ids(tok, "hello") == expected


def test_without_chat_template_the_bare_text_is_the_prompt():
    bare = make_tokenizer()
    bare.chat_template = None
    prompt = prompts.build_verbalizer_prompt(bare, TEMPLATES.verbalizer, MARKER)
    assert bare.decode(prompt.tokens).startswith("What does this say?")
    assert prompt.end_of_turn == bare.eos_token_id


def test_end_of_turn_falls_back_if_the_template_has_no_assistant():
    other = make_tokenizer()
    other.chat_template = "{{ raise_exception('no assistant') if messages|length > 1 else messages[0]['content'] }}"
    assert prompts.end_of_turn(other) == other.eos_token_id
    other.chat_template = CHAT
    assert prompts.end_of_turn(other) == other.convert_tokens_to_ids("<|end|>")


def test_templates_are_checked():
    with pytest.raises(ConfigError, match="verbalizer template"):
        prompts.Templates("nothing", "{explanation} x")
    with pytest.raises(ConfigError, match="reconstructor template"):
        prompts.Templates("{injection_char}", "{explanation} {explanation} x")
    with pytest.raises(ConfigError, match="fixed suffix"):
        prompts.Templates("{injection_char}", "read: {explanation} ")


NASTY = [
    "a",
    "It rains.",
    "ends with <",
    "</",
    "x </text> <summary",
    "{braces} {0} {explanation}",
    "",
    "\n",
    "\u320e é",
]


@pytest.mark.parametrize("bos", [False, True])
def test_every_reconstructor_prompt_ends_the_same(bos: bool):
    tok = make_tokenizer(bos=bos)
    suffix = prompts.suffix_ids(tok, TEMPLATES.reconstructor)
    assert tok.decode(suffix).strip().endswith("<summary>")
    tokens, mask = prompts.reconstructor_tokens(tok, TEMPLATES.reconstructor, NASTY, 512)
    lengths = mask.sum(1)
    for row, length in zip(tokens.tolist(), lengths.tolist()):
        assert row[length - len(suffix) : length] == suffix
        assert all(token == tok.pad_token_id for token in row[length:])
        assert (row[0] == tok.bos_token_id) is bos


def test_plain_replacement_keeps_braces(tok):
    tokens, mask = prompts.reconstructor_tokens(tok, TEMPLATES.reconstructor, ["{braces} {0}"], 512)
    assert tok.decode(tokens[0][mask[0]]) == TEMPLATES.reconstructor.replace("{explanation}", "{braces} {0}")


def test_long_explanations_are_cut_before_the_suffix(tok):
    suffix = prompts.suffix_ids(tok, TEMPLATES.reconstructor)
    tokens, mask = prompts.reconstructor_tokens(tok, TEMPLATES.reconstructor, ["word " * 500, "short"], 64)
    assert tokens.shape == (2, 64)
    assert tokens[0, -len(suffix) :].tolist() == suffix
    assert mask[0].all()
    with pytest.raises(ConfigError, match="max_length"):
        prompts.reconstructor_tokens(tok, TEMPLATES.reconstructor, ["a"], len(suffix))


def test_no_texts_give_no_rows(tok):
    tokens, mask = prompts.reconstructor_tokens(tok, TEMPLATES.reconstructor, [], 64)
    assert tokens.shape == mask.shape == (0, 0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<explanation>It rains.</explanation>", "It rains."),
        ("<explanation>\n It rains. \n</explanation>", "It rains."),
        ("so: <explanation>a</explanation> done", "a"),
        ("<explanation>a < b & c</explanation>", "a < b & c"),
        ("It rains.", None),
        ("", None),
        ("<explanation>It rains.", None),
        ("It rains.</explanation>", None),
        ("</explanation>It rains.<explanation>", None),
        ("<explanation></explanation>", None),
        ("<explanation> \n </explanation>", None),
        ("<explanation>a</explanation><explanation>b</explanation>", None),
        ("<explanation>a<explanation>b</explanation></explanation>", None),
        ("<explanation>a</explanation>b</explanation>", None),
        ("<Explanation>a</Explanation>", None),
        ("<EXPLANATION>a</explanation>", None),
        ("< explanation>a</explanation>", None),
    ],
)
def test_parse_table(text: str, expected: str | None):
    assert explanations.parse_explanation(text) == expected


@pytest.mark.parametrize("inside", [f"echo {MARKER}", "a</text> <summary>", "a</text>", "a<|end|>b", "<|bos|>"])
def test_tricks_are_malformed(tok, inside: str):
    forbidden = explanations.forbidden_in_explanations(tok, MARKER, TEMPLATES.reconstructor)
    added = [str(token) for token in tok.added_tokens_decoder.values()]
    assert "<|end|>" in added
    assert explanations.parse_explanation(explanations.format_response(inside), forbidden) is None
    assert explanations.parse_explanation(explanations.format_response("plain text"), forbidden) == "plain text"


def test_format_and_parse_are_inverse():
    assert explanations.parse_explanation(explanations.format_response("  Tom walks.\n")) == "Tom walks."
