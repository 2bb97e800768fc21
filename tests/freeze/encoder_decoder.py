"""Writes tests/frozen/encoder_decoder.npz: what transformers' BART, mBART and Marian answer, so that the answer
outlives the library.

    python tests/freeze/encoder_decoder.py

Imports the reference and never our code. The weights are drawn by numpy's frozen generator
(tests/encoder_decoder_reference.py), so they need not be stored.
"""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import encoder_decoder_reference as theirs  # noqa: E402 (first: it makes torchvision importable)
import numpy as np  # noqa: E402
import transformers  # noqa: E402


def outputs() -> dict[str, np.ndarray]:
    found = {"source": theirs.ids(4, 9, seed=1), "target": theirs.ids(4, 7, seed=2)}
    found |= {"source_keep": theirs.ragged(4, 9, seed=3), "target_keep": theirs.ragged(4, 7, seed=4, left=True)}
    given = [found[name] for name in ("source", "source_keep", "target", "target_keep")]
    for kind in theirs.KINDS:
        scores, states = theirs.alone(theirs.published(kind), *given)
        found |= {f"{kind}/scores": scores, f"{kind}/states": states}
    versions = {"transformers": np.array(transformers.__version__)}
    return {name: value.numpy() for name, value in found.items()} | versions


if __name__ == "__main__":
    target = HERE.parent / "frozen" / "encoder_decoder.npz"
    np.savez_compressed(target, **outputs())
    print(f"wrote {target.name} with transformers {transformers.__version__}")
