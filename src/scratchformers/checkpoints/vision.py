"""What the published files of picture models have in common: the names of their encoders, the sizes in config.json."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from scratchformers.checkpoints.tables import CONVOLUTION, Row
from scratchformers.grid import square


def hugging_face_blocks(theirs: str, ours: str = "blocks.*") -> list[Row]:
    """transformers' names of a stack of blocks: separate queries, keys and values."""
    return [
        (f"{theirs}.layernorm_before", f"{ours}.attention_norm"),
        (f"{theirs}.attention.attention.query", f"{ours}.attention.q"),
        ((f"{theirs}.attention.attention.key", f"{theirs}.attention.attention.value"), f"{ours}.attention.kv"),
        (f"{theirs}.attention.output.dense", f"{ours}.attention.out"),
        (f"{theirs}.layernorm_after", f"{ours}.mlp_norm"),
        (f"{theirs}.intermediate.dense", f"{ours}.mlp.up"),
        (f"{theirs}.output.dense", f"{ours}.mlp.down"),
    ]


def timm_blocks(theirs: str, ours: str = "blocks.*") -> list[Row]:
    """timm's names, which facebook's files have too: queries, keys and values fused."""
    return [
        (f"{theirs}.norm1", f"{ours}.attention_norm"),
        (f"{theirs}.attn.qkv", (f"{ours}.attention.q", f"{ours}.attention.kv")),
        (f"{theirs}.attn.proj", f"{ours}.attention.out"),
        (f"{theirs}.norm2", f"{ours}.mlp_norm"),
        (f"{theirs}.mlp.fc1", f"{ours}.mlp.up"),
        (f"{theirs}.mlp.fc2", f"{ours}.mlp.down"),
    ]


HUGGING_FACE: list[Row] = [
    ("embeddings.cls_token", "class_token"),
    ("embeddings.position_embeddings", "position"),
    ("embeddings.patch_embeddings.projection", "patches.project", CONVOLUTION),
    *hugging_face_blocks("encoder.layer.*"),
    ("layernorm", "norm"),
]
TIMM: list[Row] = [
    ("cls_token", "class_token"),
    ("pos_embed", "position"),
    ("patch_embed.proj", "patches.project", CONVOLUTION),
    *timm_blocks("blocks.*"),
    ("norm", "norm"),
]


def sizes(tensors: Mapping[str, Tensor], rows: Sequence[Row]) -> dict[str, Any]:
    """The fields of the config that the shapes in a file tell; none where it lacks a part that all have. A grid of
    patches is told where it is square."""
    names = {str(ours): str(theirs) for theirs, ours, *_ in rows}
    kernel, position = tensors.get(f"{names['patches.project']}.weight"), tensors.get(names["position"])
    ups = layers(tensors, names["blocks.*.mlp.up"])
    if kernel is None or kernel.ndim != 4 or position is None or position.ndim != 3 or not ups:
        return {}
    dim, channels, patch, _ = kernel.shape
    side = square(position.shape[1] - (names["class_token"] in tensors))
    found = {"patch": patch, "channels": channels, "dim": dim, "depth": len(ups), "hidden": len(ups[0])}
    return found | ({"image": side * patch} if side else {})


def layers(tensors: Mapping[str, Tensor], name: str) -> list[Tensor]:
    """The weights of this name, in which `*` is the layer's number, of all layers."""
    pattern = re.compile(re.escape(f"{name}.weight").replace(r"\*", r"\d+"))
    return [value for key, value in tensors.items() if pattern.fullmatch(key)]


# What would change the mathematics, and the only values the pages are written for.
FIXED = {"hidden_act": "gelu", "qkv_bias": True, "pooler_act": "tanh"}
NAMES = {
    "image": "image_size",
    "patch": "patch_size",
    "channels": "num_channels",
    "dim": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "hidden": "intermediate_size",
}


def read_sizes(published: Mapping[str, Any], names: Mapping[str, str] = NAMES) -> dict[str, Any]:
    """Our fields of what config.json of transformers says. Raises ValueError where it asks for another model."""
    if missing := [name for name in names.values() if name not in published]:
        raise ValueError(f"config.json does not say {', '.join(missing)}.")
    for name, value in FIXED.items():
        if published.get(name, value) != value:
            raise ValueError(f"config.json says {name} {published[name]!r}: only {value!r} is written here.")
    own = published.get("scratchformers", {})  # what the published layout has no word for
    return {ours: published[theirs] for ours, theirs in names.items()} | {"eps": published["layer_norm_eps"], **own}


def write_sizes(config: Any, names: Mapping[str, str] = NAMES) -> dict[str, Any]:
    said = {theirs: getattr(config, ours) for ours, theirs in names.items()}
    said |= {theirs: 4 * said["hidden_size"] for theirs in ("intermediate_size",) if said[theirs] is None}
    return said | {"layer_norm_eps": config.eps, "hidden_act": "gelu", "qkv_bias": True}
