"""How good the packaged target is: its loss against n-grams, facts used, facts carried. Prints tables, draws figures.

    python benchmarks/target_quality.py --model world
    python benchmarks/target_quality.py --model world --against <a target trained without the gist loss>

Held-out documents of the world (split "test"), n-grams counted on its pretraining documents; one thread, no downloads.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
import transformers
from ngrams import NGrams
from probes import Labels, choose_positions, label, majority, probe, ridge_r2
from quality import Annotated, Lexicon, Mention, annotate, lexicon, observe, used
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from nla.data.world import WorldSource
from nla.data.world.generator import generate
from nla.data.world.vocabulary import KINDS
from nla.errors import ConfigError, NLAError
from nla.models.backbone import load_model, load_tokenizer

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parent.parent
ORDERS = ("unigram", "bigram", "trigram", "4-gram")
VOCABULARY_DOCUMENTS = 4000  # pretraining documents whose mentions name the words of each value


def main() -> int:
    arguments = parse()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    start = time.perf_counter()
    tokenizer = load_tokenizer(arguments.model)
    prepared = prepare(tokenizer, arguments)
    result: dict[str, Any] = {"ngrams": prepared["loss"], "models": {}}
    for name in filter(None, (arguments.model, arguments.against)):
        key = Path(name).name
        result["models"][f"{key} (against)" if key in result["models"] else key] = measure(name, tokenizer, prepared)
    if arguments.against:
        result["comparison"] = compare(*result["models"].values())
    for model in result["models"].values():
        del model["document_loss"]
    result |= {
        "documents": arguments.documents,
        "pretraining_documents": arguments.pretraining,
        "seed": arguments.seed,
        "command": " ".join(["python", "benchmarks/target_quality.py", *map(shown, sys.argv[1:])]),
        "seconds": round(time.perf_counter() - start, 1),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    report(result)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    draw(result, arguments.figures)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="world", help="packaged id or folder of the target")
    parser.add_argument("--against", help="a second target with the same tokenizer, set beside it")
    parser.add_argument("--documents", type=int, default=1500, help="held-out documents")
    parser.add_argument("--pretraining", type=int, default=20000, help="documents that the n-grams are counted on")
    parser.add_argument("--positions", type=int, default=8, help="positions per document for probes and ridge")
    parser.add_argument("--seed", type=int, default=0, help="of the positions")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/target_quality.json")
    parser.add_argument("--figures", type=Path, default=ROOT / "docs/figures")
    return parser.parse_args()


def shown(argument: str) -> str:
    """A command-line word as it is recorded: without the folders of this machine."""
    return Path(argument).name if Path(argument).is_absolute() else argument


def annotated(tokenizer: PreTrainedTokenizerBase, source: WorldSource, split: str, limit: int) -> list[Annotated]:
    """Documents of a split with their mentions, which the generator's segments give."""
    scores = []
    for document in source.documents(split)[:limit]:
        place, mentions = 0, []
        for segment in generate(document.id, source.seed).segments:
            if segment.kind is not None:
                value = generate(document.id, source.seed).facts[segment.kind]
                mentions.append(Mention(place, segment.kind, value))
            place += len(segment.text)
        scores.append((document.id, document.text, mentions))
    return annotate(tokenizer, scores)


def prepare(tokenizer: PreTrainedTokenizerBase, arguments: argparse.Namespace) -> dict[str, Any]:
    """All that does not depend on the model: documents, n-grams, positions, labels."""
    source = WorldSource({"pretrain": arguments.pretraining, "test": arguments.documents})
    texts = [document.text for document in source.documents("pretrain")]
    rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
    test = annotated(tokenizer, source, "test", arguments.documents)
    probabilities = NGrams(rows, len(tokenizer), len(ORDERS)).probabilities([document.tokens for document in test])
    counts = torch.bincount(torch.tensor([token for row in rows for token in row]), minlength=len(tokenizer))
    positions = choose_positions(test, arguments.positions, seed=arguments.seed)
    labels = label(test, positions, source.facts)
    return {
        "test": test,
        "lexicon": lexicon(annotated(tokenizer, source, "pretrain", VOCABULARY_DOCUMENTS), len(tokenizer)),
        "unigram": counts.float() / counts.sum(),
        "loss": dict(zip(ORDERS, (-probabilities.log().mean(1)).tolist())),
        "positions": positions,
        "labels": labels,
        "training": labels.document < 0.8 * len(test),
    }


def measure(name: str, tokenizer: PreTrainedTokenizerBase, prepared: dict[str, Any]) -> dict[str, Any]:
    """Loss, facts used and facts carried of one target."""
    if load_tokenizer(name).get_vocab() != tokenizer.get_vocab():
        raise ConfigError(f"--against {name}: another tokenizer than --model's, so losses per token do not compare")
    start = time.perf_counter()
    model = load_model(name)
    test: list[Annotated] = prepared["test"]
    words: Lexicon = prepared["lexicon"]
    labels: Labels = prepared["labels"]
    training = prepared["training"]
    seen = observe(model, test, words, prepared["positions"])
    accuracy = [probe(layer, labels, training) for layer in seen.activation]
    here, following = tokens_at(test, prepared["positions"], 0), tokens_at(test, prepared["positions"], 1)
    facts = labels.one_hot()
    features = {
        "facts": facts,
        "last token": here,
        "next token": following,
        "facts and last token": torch.cat([facts, here], dim=1),
    }
    per_document = torch.stack([part.mean() for part in seen.loss.split([len(d.tokens) - 1 for d in test])])
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "loss": seen.loss.mean().item(),
        "loss_standard_error": per_document.std().item() / len(test) ** 0.5,
        "document_loss": per_document,
        "used": in_order(used(test, words, seen.mass, prepared["unigram"])),
        "carried": {
            "layers": list(range(-1, len(accuracy) - 1)),
            "accuracy": in_order({kind: [layer[kind] for layer in accuracy] for kind in labels.kinds}),
            "majority": in_order(majority(labels, training)),
            "ridge_r2": {key: ridge_r2(columns, seen.activation, training) for key, columns in features.items()},
            "positions": len(training),
        },
        "seconds": round(time.perf_counter() - start, 1),
    }


def in_order(table: dict[str, Any]) -> dict[str, Any]:
    """Rows by kind of fact, in the order of the world's vocabulary."""
    return {kind: table[kind] for kind in KINDS if kind in table}


def tokens_at(documents: Sequence[Annotated], positions: Sequence[Sequence[int]], shift: int) -> torch.Tensor:
    """One-hot of the token at each chosen position, or of the one after it."""
    ids = torch.tensor([d.tokens[place + shift] for d, places in zip(documents, positions) for place in places])
    seen, index = ids.unique(return_inverse=True)
    return torch.nn.functional.one_hot(index, len(seen)).float()


def compare(model: dict[str, Any], against: dict[str, Any]) -> dict[str, float]:
    """Loss of ``model`` over ``against`` in percent, with the standard error of the paired difference by document."""
    difference = model["document_loss"] - against["document_loss"]
    error = difference.std().item() / len(difference) ** 0.5
    return {
        "loss_difference_percent": 100 * (model["loss"] / against["loss"] - 1),
        "standard_error_percent": 100 * error / against["loss"],
    }


def report(result: dict[str, Any]) -> None:
    """The tables on the terminal."""
    console = Console(width=140)
    table = Table("", "nats per token", title=f"Next-token loss, {result['documents']} held-out documents")
    for order, loss in result["ngrams"].items():
        table.add_row(order, f"{loss:.3f}")
    for name, model in result["models"].items():
        table.add_row(name, f"{model['loss']:.3f} ± {model['loss_standard_error']:.3f}")
    console.print(table)
    if "comparison" in result:
        change = result["comparison"]
        percent, error = change["loss_difference_percent"], change["standard_error_percent"]
        console.print(f"{' against '.join(result['models'])}: loss {percent:+.2f} ± {error:.2f} %")
    for name, model in result["models"].items():
        columns = ("true", "wrong", "unigram", "share", "share_unrepeated", "n")
        table = Table("fact", *columns, title=f"{name}: facts used 20 tokens after they were told")
        for kind, row in model["used"].items():
            table.add_row(kind, *(f"{row[c]:.3f}" if c != "n" else str(row[c]) for c in columns))
        console.print(table)
        carried = model["carried"]
        layers = ["embedding", *(f"block {layer}" for layer in carried["layers"][1:])]
        table = Table("", "majority", *layers, title=f"{name}: held-out probe accuracy by layer; ridge R² below")
        for kind, values in carried["accuracy"].items():
            table.add_row(kind, f"{carried['majority'][kind]:.2f}", *(f"{value:.2f}" for value in values))
        table.add_section()
        for key, values in carried["ridge_r2"].items():
            table.add_row(f"R² from {key}", "", *(f"{value:.2f}" for value in values))
        console.print(table)
    console.print(f"{result['seconds']} s")


def draw(result: dict[str, Any], folder: Path) -> None:
    """``target_carried.png``: probes and ridge by layer. ``target_used.png``: probability of fact-dependent words."""
    folder.mkdir(parents=True, exist_ok=True)
    models = result["models"]
    figure, axes = plt.subplots(len(models), 2, figsize=(13, 4.2 * len(models)), squeeze=False, layout="constrained")
    for row, (name, model) in zip(axes, models.items()):
        carried = model["carried"]
        for number, (kind, values) in enumerate(carried["accuracy"].items()):
            row[0].plot(carried["layers"], values, marker="o", label=kind, color=plt.get_cmap("tab20")(number))
        row[0].set(title=f"{name}: linear probes", ylabel="held-out accuracy", ylim=(0, 1.03))
        for key, values in carried["ridge_r2"].items():
            row[1].plot(carried["layers"], values, marker="o", label=f"from {key}")
        row[1].set(title=f"{name}: activations explained", ylabel="held-out R² (variance weighted)", ylim=(-0.05, 1.03))
        for axis in row:
            axis.set(xlabel="after block (-1: embedding)", xticks=carried["layers"])
            axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
            axis.grid(alpha=0.3)
    figure.savefig(folder / "target_carried.png", dpi=110)
    plt.close(figure)

    figure, axis = plt.subplots(figsize=(10, 4), layout="constrained")
    kinds = list(next(iter(models.values()))["used"])
    bars = [(name, [model["used"][kind]["true"] for kind in kinds]) for name, model in models.items()]
    first = next(iter(models))
    for column, text in (("wrong", "a wrong value's words"), ("unigram", "unigram")):
        bars.append((text, [models[first]["used"][kind][column] for kind in kinds]))
    width = 0.8 / len(bars)
    for number, (text, heights) in enumerate(bars):
        axis.bar([place + number * width for place in range(len(kinds))], heights, width, label=text)
    axis.set_xticks([place + 0.4 - width / 2 for place in range(len(kinds))], kinds)
    axis.set(ylabel="probability", title="Where a word depends on a fact told at least 20 tokens before")
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(folder / "target_used.png", dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except NLAError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
