"""Reads manifests/: what stands in published files, by name, shape and dtype, and where that was found."""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent / "manifests"
DTYPES = {"F16": torch.float16, "F32": torch.float32, "I64": torch.int64}


@dataclass(frozen=True)
class Manifest:
    content: dict[str, Any]

    @property
    def config(self):
        return self.content["config"]

    @property
    def depth(self):
        return self.config["n_layer"] if "n_layer" in self.config else self.config["num_hidden_layers"]

    @property
    def tied(self):
        """Tensors of a pickle that share the memory of others: each, and which other."""
        return self.content.get("tied", {})

    def shapes(self, depth=None):
        """The file's tensors, key: (dtype, shape), with the layers written out: all, or the first `depth`."""
        found = {}
        for key, value in self.content["tensors"].items():
            dtype, shape = value.split()
            for i in range(depth or self.depth) if "*" in key else [0]:
                found[key.replace("*", str(i))] = dtype, [int(size) for size in shape.split("x")]
        return found

    def tensors(self, depth=None, device="meta"):
        """They take no memory: meta tensors, or on the CPU one zero seen everywhere."""
        found = {
            key: torch.zeros((), dtype=DTYPES[dtype], device=device).expand(shape)
            for key, (dtype, shape) in self.shapes(depth).items()
        }
        return found | {key: found[other] for key, other in self.tied.items()}

    def data(self):
        """The bytes of all numbers."""
        stored = [value for key, value in self.shapes().items() if key not in self.tied]
        return sum(DTYPES[dtype].itemsize * math.prod(shape) for dtype, shape in stored)

    def header(self):
        """The safetensors header of these names."""
        header, end = {"__metadata__": self.content["metadata"]}, 0
        shapes = self.shapes()
        for key in sorted(shapes, key=lambda key: (-DTYPES[shapes[key][0]].itemsize, key)):
            (dtype, shape), begin = shapes[key], end
            end += DTYPES[dtype].itemsize * math.prod(shape)
            header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
        return json.dumps(header, separators=(",", ":")).encode()

    def headers(self):
        """How long it can be: as it is, and padded to 8 bytes, as newer ones are."""
        length = len(self.header())
        return length, length + -length % 8


def read(folder="."):
    return {
        path.stem: Manifest(json.loads(path.read_text(encoding="utf-8")))
        for path in sorted((FOLDER / folder).glob("*.json"))
    }


def check(manifest):
    """That it agrees with what is known of the files."""
    assert manifest.content["found"]
    assert manifest.content["derived"]
    known, shapes, data = manifest.content["files"], manifest.shapes(), manifest.data()
    assert known.keys() & {"model.safetensors", "pytorch_model.bin"}
    if "config.json" in known:
        check_config(manifest.config, known["config.json"])
    weights = known.get("model.safetensors", {})
    assert len(shapes) == weights.get("tensors", len(shapes))
    if "numbers" in weights:
        assert 4 * weights["numbers"] == data
    if "header" in weights:
        assert 8 + weights["header"] + data == weights["bytes"]
    if "metadata" in manifest.content:  # known, so that the header can be written here
        assert weights.get("header", manifest.headers()[0]) in manifest.headers()
    most = data + 250 * len(shapes)  # a pickle (and a zip): some bytes a tensor
    if "bytes" in (pickle := known.get("pytorch_model.bin", {})):
        assert data < pickle["bytes"] < most
    for size in [known[name]["megabytes"] for name in known if "megabytes" in known[name]]:
        assert size in [float(f"{bytes / 1e6:.3g}") for bytes in (data, most)]


def check_config(config, known):
    """That it is the published file when it is written, with a newline at its end or without."""
    written = json.dumps(config, indent=2, sort_keys=True).encode()
    written += b"\n" * (known["bytes"] - len(written) == 1)
    assert len(written) == known["bytes"]
    if "sha256" in known:
        assert hashlib.sha256(written).hexdigest() == known["sha256"]
    if "blob" in known:  # as git names it
        assert hashlib.sha1(b"blob %d\0" % len(written) + written).hexdigest() == known["blob"]
