"""Writes tests/frozen/bert.npz: what transformers' BERT answers, in each of its kinds, so that the answer outlives the
library.

    python tests/freeze/bert.py

Imports the reference and never our code. The weights are drawn by numpy's frozen generator (tests/bert_reference.py),
so they need not be stored.
"""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import bert_reference  # noqa: E402
import numpy as np  # noqa: E402
import transformers  # noqa: E402


def outputs() -> dict[str, np.ndarray]:
    ids, segments, keep = bert_reference.batch("right", (13, 7, 1))
    found = {"ids": ids, "segments": segments, "keep": keep}
    for kind in bert_reference.KINDS:
        said = bert_reference.answers(bert_reference.scrambled(kind), ids, segments, keep)
        for name, value in said.items():
            # At padding it says something that means nothing: zeros there, which any may differ from.
            real = keep[..., None] if value.shape[:2] == keep.shape else True
            found[f"{kind}/{name}"] = value.masked_fill(~real, 0.0) if real is not True else value
    arrays = {name: value.numpy() for name, value in found.items()}
    return arrays | {"transformers": np.array(transformers.__version__)}


if __name__ == "__main__":
    target = HERE.parent / "frozen" / "bert.npz"
    np.savez_compressed(target, **outputs())
    print(f"wrote {target.name} with transformers {transformers.__version__}")
