"""How well do reconstructors read the given texts of validation? FVE, plain and by each dimension's own variance.

    python benchmarks/given_texts.py prepared/smollm2 runs/<one>/stages/reconstructor/nla runs/<other>/...

400 rows of the prepared folder's validation split, chosen by seed; 95 % intervals by document.
"""

import argparse
import random
from pathlib import Path

import pyarrow.parquet as pq
import torch

from nla import NLA, Target
from nla.core.objectives import reconstruction_error
from nla.evaluation.bootstrap import Resamples, Variance
from nla.models.explanations import parse_explanation

ROWS = 400


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prepared", type=Path)
    parser.add_argument("pairs", nargs="+")
    given = parser.parse_args()
    rows = []
    for file in sorted(given.prepared.glob("layer-*/validation-*.parquet")):
        texts = pq.read_table(given.prepared / "explanations" / file.name).column("api_explanation").to_pylist()
        for row, text in zip(pq.read_table(file).to_pylist(), texts, strict=True):
            if text:
                rows.append((row["activation_vector"], parse_explanation(text) or text, row["doc_id"]))
    random.Random(0).shuffle(rows)
    rows = rows[:ROWS]
    activation = torch.tensor([row[0] for row in rows])
    variance = Variance(activation, Resamples([row[2] for row in rows], 1000, 0))
    for pair in given.pairs:
        nla = NLA.from_pretrained(pair, adapter="saved", base=Target.of_pair(pair).model)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            parts = [
                nla.reconstructor.reconstruct([row[1] for row in rows[i : i + 40]]) for i in range(0, len(rows), 40)
            ]
        prediction = torch.cat(parts).float()
        plain = variance.fve(reconstruction_error(prediction, activation, nla.mse_scale))
        whitened = variance.whitened(prediction, torch.ones(len(rows), dtype=torch.bool))
        for name, figure in (("fve", plain), ("fve_whitened", whitened)):
            print(f"{pair}  {name} {figure['fve']:.3f}  95 % {figure['ci95']}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
