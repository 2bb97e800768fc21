"""Writes tests/frozen/vision.npz: what transformers' and timm's ViTs and transformers' MAE answer, so that the answer
outlives the libraries.

    python tests/freeze/vision.py

Imports the references and never our code. The weights are drawn by numpy's frozen generator
(tests/vision_reference.py), so they need not be stored.
"""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import vision_reference  # noqa: E402, I001 (first: it makes torchvision importable)
import numpy as np  # noqa: E402
import timm  # noqa: E402
import transformers  # noqa: E402


def outputs() -> dict[str, np.ndarray]:
    images, square = vision_reference.pictures(2), vision_reference.pictures(2, (35, 35))
    noise = vision_reference.noise(2)
    found = {"images": images, "square": square, "noise": noise}
    said = {
        "transformers, classifier": vision_reference.answers(vision_reference.vit(), images),
        "transformers, body": vision_reference.answers(vision_reference.vit("Model"), images),
        "timm": vision_reference.answers(vision_reference.of_timm(), images),
        "timm, mean of patches": vision_reference.answers(vision_reference.of_timm(global_pool="avg"), images),
    }
    for normed in (False, True):
        autoencoder = vision_reference.mae(norm_pix_loss=normed)
        answers = vision_reference.painted(autoencoder, square, noise)
        said[f"mae, {'normalised' if normed else 'plain'}"] = answers
    said["mae, plain"]["states"] = vision_reference.encoded(vision_reference.mae(), square)
    found |= {f"{kind}/{name}": value for kind, each in said.items() for name, value in each.items()}
    versions = {"transformers": np.array(transformers.__version__), "timm": np.array(timm.__version__)}
    return {name: value.numpy() for name, value in found.items()} | versions


if __name__ == "__main__":
    target = HERE.parent / "frozen" / "vision.npz"
    np.savez_compressed(target, **outputs())
    print(f"wrote {target.name} with transformers {transformers.__version__}, timm {timm.__version__}")
