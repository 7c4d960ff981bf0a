"""The evaluation's files: metrics.json and samples.parquet, each written whole or not at all."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nla import files
from nla.errors import DataError
from nla.evaluation.evaluation import Evaluation
from nla.evaluation.subject import Variant

METRICS, SAMPLES = "metrics.json", "samples.parquet"


def write_metrics(metrics: dict[str, Any], folder: Path) -> Path:
    """Write metrics.json; a number that is not finite becomes null, since JSON has none."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_finite(metrics), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    files.write_text(folder / METRICS, text)
    return folder / METRICS


def write_samples(evaluation: Evaluation, folder: Path) -> Path:
    """Write samples.parquet: one row per evaluated activation, exactly those behind `fve`.

    Columns: document, position, text, activation (raw, float32), explanation (greedy, null when malformed), cosine,
    error; the first sample of the sampled variant and the warm start's in columns of their own. Pages have
    checksums, without which a flipped bit would go unnoticed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with files.new_file(folder / SAMPLES) as scratch:
        pq.write_table(samples_table(evaluation), scratch, compression="zstd", write_page_checksum=True)
    return folder / SAMPLES


def read_samples(path: Path) -> pa.Table:
    """The table, with its page checksums verified. Raises DataError if the file is missing or damaged."""
    try:
        return pq.read_table(path, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: cannot be read ({reason}); run the evaluation again") from error


def samples_table(evaluation: Evaluation) -> pa.Table:
    """The rows as an Arrow table."""
    rows = evaluation.rows
    flat = pa.array(np.ascontiguousarray(rows.activation.numpy(), dtype=np.float32).reshape(-1))
    columns: dict[str, pa.Array] = {
        "document": pa.array(rows.document, pa.string()),
        "position": pa.array(rows.position.numpy(), pa.int64()),
        "text": pa.array(rows.text, pa.string()),
        "activation": pa.FixedSizeListArray.from_arrays(flat, rows.activation.shape[1]),
    }
    for name, variant in evaluation.variants.items():
        columns |= _columns(variant, len(rows), "" if name == "greedy" else f"_{name}")
    return pa.table(columns)


def _columns(variant: Variant, count: int, suffix: str) -> dict[str, pa.Array]:
    each = len(variant.texts.explanation) // count
    return {
        f"explanation{suffix}": pa.array(variant.texts.explanation[::each], pa.string()),
        f"cosine{suffix}": pa.array(variant.scores.cosine[::each].numpy(), pa.float64()),
        f"error{suffix}": pa.array(variant.scores.error[::each].numpy(), pa.float64()),
    }


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(child) for child in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
