"""Writes tests/frozen/gpt2.npz: what transformers' GPT-2 answers, so that the answer outlives the library.

    python tests/freeze/gpt2.py

Imports the reference and never our code. The weights are drawn by numpy's frozen generator (tests/reference.py), so
they need not be stored.
"""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import numpy as np  # noqa: E402
import reference  # noqa: E402
import transformers  # noqa: E402


def outputs() -> dict[str, np.ndarray]:
    model, ids = reference.scrambled(), reference.ids(3, 13)
    return {
        "ids": ids.numpy(),
        "logits": model(ids).logits.detach().numpy(),
        "greedy": reference.greedy(model, ids, 30).numpy(),
        "transformers": np.array(transformers.__version__),
    }


if __name__ == "__main__":
    target = HERE.parent / "frozen" / "gpt2.npz"
    np.savez_compressed(target, **outputs())
    print(f"wrote {target.name} with transformers {transformers.__version__}")
