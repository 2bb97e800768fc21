"""Writes tests/frozen/clip.npz: what transformers' and open_clip's CLIPs answer, so that the answer outlives the
libraries.

    python tests/freeze/clip.py

Imports the references and never our code. The weights are drawn by numpy's frozen generator
(tests/clip_reference.py), so they need not be stored.
"""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import clip_reference  # noqa: E402 (first: it makes torchvision importable)
import numpy as np  # noqa: E402
import open_clip  # noqa: E402
import transformers  # noqa: E402


def outputs() -> dict[str, np.ndarray]:
    images, ids = clip_reference.pictures(), clip_reference.texts()
    models = {
        "transformers, quick": clip_reference.clip(),
        "transformers, end": clip_reference.clip("gelu", clip_reference.END),
        "open_clip": clip_reference.open_clip()[0],
        "open_clip, quick": clip_reference.open_clip(quick=True)[0],
    }
    found = {"images": images, "ids": ids}
    for kind, model in models.items():
        found |= {f"{kind}/{name}": value for name, value in clip_reference.answers(model, images, ids).items()}
    versions = {"transformers": np.array(transformers.__version__), "open_clip": np.array(open_clip.__version__)}
    return {name: value.numpy() for name, value in found.items()} | versions


if __name__ == "__main__":
    target = HERE.parent / "frozen" / "clip.npz"
    np.savez_compressed(target, **outputs())
    print(f"wrote {target.name} with transformers {transformers.__version__}, open_clip {open_clip.__version__}")
