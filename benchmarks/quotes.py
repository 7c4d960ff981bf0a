"""What `reward=without_quotes` does where a warm start quotes: the world's texts, explained by the extractive fallback.

    python benchmarks/quotes.py

`experiment=text recipe=small` on the world's documents, as if they were somebody's own: the fallback says
`It ends with "...". It is about ...`. One warm start, then joint training with and without the reward, and FVE of the
explanations whole, without
their quotations, and as the warm start's reconstructor, which has not trained along, reads them. The statements of the
world itself quote nothing, so that `benchmarks/rewards.py` cannot show it. Four minutes on one core.
"""

import argparse
import sys
from pathlib import Path

import rewards
from timing import RESULTS, ROOT

from nla.data.world import WorldSource

TEXTS = 3200  # documents, divided among the splits as conf/data/text.yaml has them
VARIANTS = ("neg_error", "without_quotes")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--warm-steps", nargs=2, type=int, default=[50, 150], help="of verbalizer and reconstructor")
    parser.add_argument("--steps", type=int, default=25, help="of joint training")
    parser.add_argument("--documents", type=int, default=96, help="of the test split, two positions each")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="folder of the runs")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="tiny runs, to see that it works; no figure to be quoted")
    given = parser.parse_args()
    texts = write_texts(given.runs.resolve() / "quote_texts", 40 if given.quick else TEXTS)
    overrides = [*recipe(texts), *(QUICK if given.quick else [])]
    warm = given.runs.resolve() / "quote_warm_start"
    if not (warm / "nla").is_dir():
        steps = []
        for stage, count in zip(("verbalizer", "reconstructor"), given.warm_steps, strict=True):
            steps += [f"stage.{stage}.steps={count}", f"stage.{stage}.trainer.val_check_interval={count}"]
        stages = ["stages=[verbalizer,reconstructor]", "name=quote_warm_start", f"run_dir={warm}"]
        rewards.call("train.py", *overrides, *stages, *steps)
    arguments = argparse.Namespace(
        pair=warm / "nla", steps=given.steps, documents=given.documents, prefixes=[], runs=given.runs, prefix="quote",
        output=given.output, overrides=overrides, quick=False,
    )  # fmt: skip
    results = {}
    for name in VARIANTS:
        results[name] = rewards.measure(name, arguments)
        rewards.write(results, argparse.Namespace(**vars(arguments) | {"quick": given.quick}))
    print(rewards.table(results))
    return 0


QUICK = ["sampling.group_size=2", "stage.joint.data.batch_size=4", "stage.verbalizer.data.batch_size=8"]


def recipe(texts: Path) -> list[str]:
    """The world's target and optimizers on these texts."""
    data = ["data=text", f"data.path={texts}", "data.source.max_characters=1000", "data.validation_documents=8"]
    return ["experiment=text", "recipe=small", "model=world", "layer.index=2", *data, "sampling.max_new_tokens=40"]


def write_texts(folder: Path, count: int) -> Path:
    """Write `count` of the world's documents, one file each; an existing folder is kept."""
    if not folder.is_dir():
        folder.mkdir(parents=True)
        source = WorldSource(sizes={"joint": count}, seed=1, statements=0.28)
        for number, document in enumerate(source.documents("joint")):
            (folder / f"{number:05d}.txt").write_text(document.text, encoding="utf-8")
    return folder


if __name__ == "__main__":
    sys.exit(main())
