"""What the published files of picture models have in common: the names of their encoders, the sizes in config.json."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from scratchformers.checkpoints.tables import CONVOLUTION, Row
from scratchformers.grid import height_width, square
from scratchformers.images import IMAGENET, Preprocess


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
    if missing := [name for name in (*names.values(), "layer_norm_eps") if name not in published]:
        raise ValueError(f"config.json does not say {', '.join(missing)}.")
    for name, value in FIXED.items():
        if published.get(name, value) != value:
            raise ValueError(f"config.json says {name} {published[name]!r}: only {value!r} is written here.")
    own = published.get("scratchformers", {})  # what the published layout has no word for
    if not (isinstance(own, Mapping) and own.keys() <= {"pool", "class_token"}):
        raise ValueError(f"config.json says scratchformers {own!r}: expected pool or class_token alone.")
    found = {ours: as_config(published[theirs]) for ours, theirs in names.items()}
    return found | {"eps": published["layer_norm_eps"], **own}


def as_config(value: Any) -> Any:
    """JSON's list is a config's tuple."""
    return tuple(value) if isinstance(value, list) else value


def write_sizes(config: Any, names: Mapping[str, str] = NAMES) -> dict[str, Any]:
    said = {theirs: getattr(config, ours) for ours, theirs in names.items()}
    said |= {theirs: 4 * said["hidden_size"] for theirs in ("intermediate_size",) if said[theirs] is None}
    return said | {"layer_norm_eps": config.eps, "hidden_act": "gelu", "qkv_bias": True}


# timm's words, under `model_args`, for what differs from the model it names.
ARGUMENTS = {
    "img_size": "image",
    "patch_size": "patch",
    "in_chans": "channels",
    "embed_dim": "dim",
    "depth": "depth",
    "num_heads": "heads",
}
# Those that say nothing more, or matter to training alone; and those that would change the mathematics.
LEFT = ("num_classes", "global_pool", "mlp_ratio", "dynamic_img_size", "strict_img_size", "weight_init", "fix_init")
LEFT += ("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate")
FIXED_IN_TIMM = {"class_token": True, "qkv_bias": True, "qk_norm": False, "pre_norm": False, "init_values": None}
FIXED_IN_TIMM |= {"reg_tokens": 0, "no_embed_class": False, "fc_norm": None, "final_norm": True}
POOLS = {"class": "token", "patches": "avg"}


def read_timm(published: Mapping[str, Any], known: Mapping[str, Any]) -> Any:
    """timm's config.json to the config that `known` has for its architecture, with what the file says otherwise.
    Raises ValueError where it asks for another model."""
    name, said = published.get("architecture"), dict(published.get("model_args") or {})
    if name not in known:
        raise ValueError(f"config.json says architecture {name!r}: expected one of {', '.join(known)}.")
    for argument in said.keys() - ARGUMENTS.keys() - {*LEFT}:
        if argument not in FIXED_IN_TIMM or said[argument] != FIXED_IN_TIMM[argument]:
            expected = repr(FIXED_IN_TIMM[argument]) if argument in FIXED_IN_TIMM else "nothing"
            raise ValueError(f"config.json says {argument} {said[argument]!r}: only {expected} is written here.")
    pools = {theirs: ours for ours, theirs in POOLS.items()}
    if (pool := published.get("global_pool", "token")) not in pools:
        raise ValueError(f"config.json says global_pool {pool!r}: expected one of {', '.join(pools)}.")
    config = known[name]
    own = {ours: as_config(said[theirs]) for theirs, ours in ARGUMENTS.items() if said.get(theirs) is not None}
    ratio, dim = said.get("mlp_ratio", 4), own.get("dim", config.dim)
    channels, *image = inputs(published).get("input_size", (config.channels, *height_width(config.image)))
    own = {"image": tuple(image), "channels": channels, "hidden": None if ratio == 4 else int(dim * ratio)} | own
    return replace(config, **own, classes=published.get("num_classes") or None, pool=pools[pool])


def inputs(published: Mapping[str, Any]) -> Mapping[str, Any]:
    """What timm's config.json says of the pictures: under a name of its own, or, in older files, beside the rest."""
    return published.get("pretrained_cfg", published)


def describe_timm(published: Mapping[str, Any], config: Any, classes: int) -> dict[str, Any]:
    """What timm's config.json says of the size of pictures, and of the number of classes, wherever it says it."""
    shape, known = [config.channels, *height_width(config.image)], inputs(published)
    now = {"num_classes": classes, "img_size": shape[1:]}
    if list(known.get("input_size", shape)) != shape:
        now["input_size"] = shape

    def renewed(said: Mapping[str, Any]) -> dict[str, Any]:
        return {**said, **{name: value for name, value in now.items() if name in said}}

    parts = {name: renewed(published[name]) for name in ("pretrained_cfg", "model_args") if name in published}
    return {**renewed(published), "num_classes": classes, **parts}


# timm's models of this kind: size, patch, image.
TIMM_MODELS = {
    f"{family}_patch{patch}_{image}": (family.partition("_")[2], patch, image)
    for family, patches in {
        "vit_tiny": {16: (224, 384)},
        "vit_small": {8: (224,), 16: (224, 384), 32: (224, 384)},
        "vit_base": {8: (224,), 16: (224, 384), 32: (224, 384)},
        "vit_large": {14: (224,), 16: (224, 384), 32: (224, 384)},
        "vit_huge": {14: (224,)},
        "deit_tiny": {16: (224,)},
        "deit_small": {16: (224,)},
        "deit_base": {16: (224, 384)},
    }.items()
    for patch, images in patches.items()
    for image in images
}
# facebook's files of DeiTs: timm's name of the model, and what their sha256 begins with.
DEIT_FILES = (
    "deit_tiny_patch16_224-a1311bcf",
    "deit_small_patch16_224-cd65a155",
    "deit_base_patch16_224-b5f2ef4d",
    "deit_base_patch16_384-8de9b5d1",
)
# facebook's files of MAEs, by their names: of which size they are. `pretrain` without `full` has no decoder; it was
# trained to paint normalised pixels, as `full` was, the others plain ones.
MAE_FILES = {
    f"mae_{kind}_vit_{size}{end}": size
    for kind, end in (("pretrain", ""), ("pretrain", "_full"), ("visualize", ""))
    for size in ("base", "large", "huge")
} | {"mae_visualize_vit_large_ganloss": "large"}
# How facebook's DeiT and MAE prepare pictures to evaluate them, and how transformers prepares its MAEs'.
FACEBOOK = Preprocess(256, (224, 224), mean=IMAGENET[0], std=IMAGENET[1])
HUGGING_FACE_MAE = Preprocess((224, 224), interpolation="bilinear", mean=IMAGENET[0], std=IMAGENET[1])
HUGGING_FACE_VIT = Preprocess((224, 224), interpolation="bilinear")


def prepared(default: Preprocess) -> Callable[[Any, Any, str], Preprocess | None]:
    """For a layout: the same for the pictures that a model reads; None where they are not in colour."""
    return lambda published, config, name: default.sized(config.image) if config.channels == 3 else None
