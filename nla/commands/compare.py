"""`nla compare <pair> <pair> ... --text "..."`: what several pairs say about the same place of a text, side by side."""

import argparse
import json
import re
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nla.commands.cli import named_pair, printable
from nla.errors import ConfigError
from nla.models.backbone import usable_device
from nla.models.pair import NLA
from nla.models.reading.comparison import compare
from nla.models.target import Target

WORD_END = re.compile(r"\S(?=\s|$)")


def main(arguments: Sequence[str]) -> int:
    """Print a row for each place, a column for each pair; the exit status. Raises NLAError."""
    parser = argparse.ArgumentParser(prog="nla compare", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pairs", nargs="+", help="folders or hub ids of pairs, or names of runs")
    parser.add_argument("--text", required=True, help="the text to be read")
    parser.add_argument("--every-word", action="store_true", help="at the end of each word, not of the text alone")
    parser.add_argument("--max-new-tokens", type=int, default=150)
    parser.add_argument("--dtype", default="float32", help="of the weights: float32 (default), bfloat16, float16, nf4")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, mps")
    parser.add_argument("--json", action="store_true", help="one JSON list instead of the table")
    options = parser.parse_args(arguments)
    text = options.text.rstrip()
    if not text:
        raise ConfigError("--text is empty: give at least one word, in quotation marks")
    if len(set(options.pairs)) != len(options.pairs):
        raise ConfigError(f"pairs {' '.join(options.pairs)}: one is given twice; give each once")
    device = usable_device(options.device, "--device")
    pairs = {}
    for name in options.pairs:
        folder = named_pair(name)
        target = Target.of_pair(folder, options.dtype).to(device)
        pairs[name] = NLA.from_pretrained(folder, dtype=options.dtype, adapter="saved", base=target.model), target
        pairs[name][0].to(device)
    ends = [match.end() for match in WORD_END.finditer(text)] if options.every_word else [len(text)]
    found = compare(pairs, [text] * len(ends), ends, options.max_new_tokens)
    if options.json:
        rows = [
            {
                "text": found.text[row],
                "explanations": {
                    name: {
                        "layer": pairs[name][0].layer,
                        "explanation": found.explanation[name][row],
                        "cosine": found.cosine[name][row],
                    }
                    for name in pairs
                },
            }
            for row in range(len(found))
        ]
        print(json.dumps(rows, ensure_ascii=False, indent=2))
        return 0
    table = Table("read up to", show_lines=True)
    for name, (pair, _) in pairs.items():
        table.add_column(Text(f"{printable(name)}\nlayer {pair.layer}"))
    for row in range(len(found)):
        shown = " ".join(found.text[row].split())
        cells = [Text(printable(shown if len(shown) <= 40 else f"…{shown[-40:]}"))]
        for name in pairs:
            explanation = found.explanation[name][row]
            said = "(malformed)" if explanation is None else printable(explanation)
            cells.append(Text(f"{said}  ({found.cosine[name][row]:.2f})"))
        table.add_row(*cells)
    Console(highlight=False).print(table)
    return 0
