"""`nla steer <pair> "text" --replace old=new`: edit a word of an explanation, steer the model with the difference."""

import argparse
import json
from typing import Any

from jaxtyping import Float
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from nla.commands.cli import printable
from nla.errors import ConfigError
from nla.models.backbone import usable_device
from nla.models.pair import NLA
from nla.models.prompts import token_ids
from nla.models.steering import SteeredPrompts, edit_direction, random_direction, replaced
from nla.models.target import Target

TOP = 8  # next words shown
WAYS = {"clean": "as it is", "steered": "edited", "random": "random direction"}


def steer(pair: str, options: argparse.Namespace) -> int:
    """Print what the edit changes; the exit status. Raises NLAError, for a word that the explanation does not hold."""
    pairs = [_words(given) for given in options.replace]
    if not options.text.strip():
        raise ConfigError("the text is empty: give at least one word, in quotation marks")
    for name, least in (("tokens", 1), ("temperature", 0), ("max_new_tokens", 1)):
        if getattr(options, name) < least:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(options, name)}: must be at least {least}")
    device = usable_device(options.device, "--device")
    target = Target.of_pair(pair, options.dtype).to(device)
    nla = NLA.from_pretrained(pair, dtype=options.dtype, adapter="saved", base=target.model).to(device)
    result = steered(
        nla,
        target,
        options.text,
        pairs,
        scale=options.scale,
        onward=options.layer_position == "all",
        tokens=options.tokens,
        temperature=options.temperature,
        max_new_tokens=options.max_new_tokens,
        seed=options.seed,
    )
    if options.json:
        print(json.dumps(result, indent=1, ensure_ascii=False))
    else:
        show(result, Console(highlight=False))
    return 0


def steered(
    nla: NLA,
    target: Target,
    text: str,
    replacements: list[tuple[str, str]],
    *,
    scale: float = 1.0,
    onward: bool = False,
    tokens: int = 32,
    temperature: float = 0.0,
    max_new_tokens: int = 150,
    seed: int = 0,
) -> dict[str, Any]:
    """The explanation at the text's last token, edited; next words and continuations clean, steered and random.

    Raises ConfigError if the explanation is malformed or lacks a word that is to be replaced.
    """
    reading = target.read([text], "last")
    explanation = nla.explain(reading.activation, temperature=0.0, max_new_tokens=max_new_tokens)[0][0]
    if explanation is None:
        raise ConfigError(
            f"the explanation of {text!r} is malformed or longer than --max-new-tokens {max_new_tokens}: there is "
            "nothing to edit"
        )
    edited = explanation
    for old, new in replacements:
        edited = replaced(edited, old, new)
    direction = edit_direction(nla, [explanation], [edited]).to(target.device)
    directions = {"clean": None, "steered": direction, "random": random_direction(direction, seed)}
    prompt = SteeredPrompts(target, [token_ids(target.tokenizer, [text])[0][: reading.position[0] + 1]])
    ways: dict[str, Any] = {}
    for way, vector in directions.items():
        words = _top(target, prompt.next_logits(vector, scale, onward)[0])
        written = prompt.continuations(vector, scale, tokens=tokens, onward=onward, temperature=temperature, seed=seed)[
            0
        ]
        ways[way] = {"next": words, "continuation": written}
    return {
        "model": nla.base_model,
        "layer": nla.layer,
        "text": text,
        "explanation": explanation,
        "edited": edited,
        "scale": scale,
        "layer_position": "all" if onward else "last",
        "norm": float(direction.norm()),
        **ways,
    }


def _words(given: str) -> tuple[str, str]:
    old, sign, new = given.partition("=")
    if not sign or not old.strip():
        raise ConfigError(f"--replace {given}: expected old=new, as in --replace rain=snow")
    return old.strip(), new.strip()


def _top(target: Target, logits: Float[Tensor, " vocab"]) -> list[dict[str, Any]]:
    probability, token = logits.softmax(-1).topk(min(TOP, len(logits)))
    return [
        {"token": str(target.tokenizer.decode([index])), "probability": value}
        for value, index in zip(probability.tolist(), token.tolist(), strict=True)
    ]


def show(result: dict[str, Any], console: Console) -> None:
    """For a person; texts are shown literally."""
    model, where = printable(result["model"]), result["layer_position"]
    console.print(Text(f"{model}, block {result['layer']}, scale {result['scale']:g}, position {where}", style="dim"))
    for name in ("explanation", "edited"):
        console.print(Text(f"\n{name}\n", style="bold").append(_lines(result[name]), style="not bold"))
    if result["norm"] == 0:
        console.print(Text("\nThe reconstructor reads both texts alike: the edit changes nothing.", style="yellow"))
    table = Table(title="Next words", title_justify="left")
    for label in WAYS.values():
        table.add_column(label)
        table.add_column("p", justify="right")
    for rank in range(len(result["clean"]["next"])):
        row = [result[way]["next"][rank] for way in WAYS]
        table.add_row(*(cell for w in row for cell in (Text(printable(w["token"])), Text(f"{w['probability']:.3f}"))))
    console.print("", table)
    for way, label in WAYS.items():
        written = _lines(result[way]["continuation"])
        console.print(Text(f"\n{label}\n", style="bold").append(written, style="not bold"))


def _lines(text: str) -> str:
    return "\n".join(printable(line) for line in text.split("\n"))
