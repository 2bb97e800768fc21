"""What the published CLIPs are: their sizes by name, the names of their blocks, what their files say of themselves."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from scratchformers.checkpoints import vision
from scratchformers.checkpoints.tables import How, Row
from scratchformers.grid import square
from scratchformers.images import CLIP, Preprocess

# OpenAI's by its names, with QuickGELU; all others by open_clip's, with GELU. What is not said is that of ViT-B/32.
_LARGE = {"image_dim": 1024, "image_depth": 24, "image_heads": 16, "text_dim": 768, "text_heads": 12, "dim": 768}
_WIDE = {"image_heads": 16, "text_dim": 1024, "text_depth": 24, "text_heads": 16, "dim": 1024}
_PLUS = {"image_dim": 896, "image_heads": 14, "text_dim": 640, "text_heads": 10, "dim": 640}
_BIG = {"image_heads": 16, "text_dim": 1280, "text_depth": 32, "text_heads": 20, "dim": 1280}
OPENAI: dict[str, dict[str, Any]] = {
    "ViT-B/32": {"patch": 32},
    "ViT-B/16": {"patch": 16},
    "ViT-L/14": {"patch": 14, **_LARGE},
    "ViT-L/14@336px": {"patch": 14, "image": 336, **_LARGE},
}
OPEN_CLIP: dict[str, dict[str, Any]] = {
    "ViT-S-32": {"image_dim": 384, "image_heads": 6, "text_dim": 384, "text_heads": 6, "dim": 384},
    "ViT-B-32": {},
    "ViT-B-32-256": {"image": 256},
    "ViT-B-16": {"patch": 16},
    "ViT-B-16-plus-240": {"patch": 16, "image": 240, **_PLUS},
    "ViT-L-14": {"patch": 14, **_LARGE},
    "ViT-L-14-336": {"patch": 14, "image": 336, **_LARGE},
    "ViT-H-14": {"patch": 14, "image_dim": 1280, "image_depth": 32, **_WIDE},
    "ViT-g-14": {"patch": 14, "image_dim": 1408, "image_depth": 40, "image_hidden": 6144, **_WIDE},
    "ViT-bigG-14": {"patch": 14, "image_dim": 1664, "image_depth": 48, "image_hidden": 8192, **_BIG},
}
_TINY = {"image": 32, "patch": 4, "image_dim": 128, "image_depth": 4, "image_heads": 4, "dim": 64}
_TINY |= {"vocab": 512, "text_dim": 128, "text_depth": 2, "text_heads": 4}
SIZES: dict[str, dict[str, Any]] = {name: {"activation": "gelu", **sizes} for name, sizes in OPEN_CLIP.items()}
SIZES |= OPENAI | {"tiny": _TINY}


# A token's vector and a table of positions are (1, n, dim) here.
VECTOR, TABLE = How(lambda x: x[None, None], lambda x, _: x[0, 0]), How(lambda x: x[None], lambda x, _: x[0])


def hugging_face_blocks(theirs: str, ours: str) -> list[Row]:
    """transformers' names of a tower's blocks."""
    theirs, ours = f"{theirs}.encoder.layers.*", f"{ours}.blocks.*"
    return [
        (f"{theirs}.layer_norm1", f"{ours}.attention_norm"),
        (f"{theirs}.self_attn.q_proj", f"{ours}.attention.q"),
        ((f"{theirs}.self_attn.k_proj", f"{theirs}.self_attn.v_proj"), f"{ours}.attention.kv"),
        (f"{theirs}.self_attn.out_proj", f"{ours}.attention.out"),
        (f"{theirs}.layer_norm2", f"{ours}.mlp_norm"),
        (f"{theirs}.mlp.fc1", f"{ours}.mlp.up"),
        (f"{theirs}.mlp.fc2", f"{ours}.mlp.down"),
    ]


def openai_blocks(theirs: str, ours: str) -> list[Row]:
    """OpenAI's names, which open_clip's files have too: queries, keys and values fused."""
    theirs, ours = f"{theirs}.resblocks.*", f"{ours}.blocks.*"
    fused: list[Row] = [
        (f"{theirs}.attn.in_proj_{kind}", (f"{ours}.attention.q.{kind}", f"{ours}.attention.kv.{kind}"))
        for kind in ("weight", "bias")
    ]
    return [
        *fused,
        (f"{theirs}.ln_1", f"{ours}.attention_norm"),
        (f"{theirs}.attn.out_proj", f"{ours}.attention.out"),
        (f"{theirs}.ln_2", f"{ours}.mlp_norm"),
        (f"{theirs}.mlp.c_fc", f"{ours}.mlp.up"),
        (f"{theirs}.mlp.c_proj", f"{ours}.mlp.down"),
    ]


@torch.no_grad()
def initialise(model: Any) -> None:
    """A new model: widths decide, and depths where branches add up in the residual (OpenAI's repository)."""
    for part, tower in (("image", model.image), ("text", model.text)):
        dim = getattr(model.config, f"{part}_dim")
        branch, own = (2 * dim * len(tower.blocks)) ** -0.5, {"token.weight": 0.02, "text.position.weight": 0.01}
        own |= {"attention.out.weight": branch, "mlp.down.weight": branch, "mlp.up.weight": (2 * dim) ** -0.5}
        for name, parameter in tower.named_parameters():
            if parameter.ndim > 1:
                std = next((own[end] for end in own if f"{part}.{name}".endswith(end)), dim**-0.5)
                nn.init.normal_(parameter, std=std)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)


def sizes(tensors: Mapping[str, Tensor], rows: Sequence[Row]) -> dict[str, Any]:
    """The fields of the config that the shapes in a file tell; none where it lacks a part that all have."""
    names = {str(ours).removesuffix(".weight"): str(theirs).removesuffix(".weight") for theirs, ours, *_ in rows}

    def find(ours: str, axes: int) -> Tensor | None:
        value = tensors.get(f"{names[ours]}.weight", tensors.get(names[ours]))
        return value if value is not None and value.ndim == axes else None

    kernel, places = find("image.patches.project", 4), find("image.position", 2)
    token, length, project = find("text.token", 2), find("text.position", 2), find("text.project", 2)
    ups = {part: vision.layers(tensors, names[f"{part}.blocks.*.mlp.up"]) for part in ("image", "text")}
    if kernel is None or places is None or token is None or length is None or project is None or not all(ups.values()):
        return {}
    width, channels, patch, _ = kernel.shape
    side = square(len(places) - 1)
    return {
        **({"image": side * patch} if side else {}),
        "patch": patch,
        "channels": channels,
        "image_dim": width,
        "vocab": len(token),
        "length": len(length),
        "text_dim": token.shape[1],
        **{f"{part}_depth": len(found) for part, found in ups.items()},
        **{f"{part}_hidden": len(found[0]) for part, found in ups.items()},
        "dim": project.numel() // token.shape[1],
    }


def openai_sizes(tensors: Mapping[str, Tensor], rows: Sequence[Row]) -> dict[str, Any]:
    """All of the config, for OpenAI's files have none: a head is 64 wide, the activation QuickGELU. ValueError where
    the sizes that the file states are not those of its tensors."""
    found = sizes(tensors, rows)
    said = {"image": "input_resolution", "length": "context_length", "vocab": "vocab_size"}
    for ours, theirs in said.items():
        if found and ours in found and tensors[theirs].numel() == 1 and int(tensors[theirs]) != found[ours]:
            raise ValueError(f"{theirs} is {int(tensors[theirs])}, and the tensors are of {found[ours]}.")
    heads = {f"{part}_heads": found[f"{part}_dim"] // 64 for part in ("image", "text") if found}
    return found and found | heads | {"activation": "quick_gelu", "eps": 1e-5}


# transformers' names of our fields, by tower, and what its classes do where a config.json is silent.
TOWERS = {
    "vision": {
        "image": "image_size",
        "patch": "patch_size",
        "channels": "num_channels",
        "image_dim": "hidden_size",
        "image_depth": "num_hidden_layers",
        "image_heads": "num_attention_heads",
        "image_hidden": "intermediate_size",
    },
    "text": {
        "vocab": "vocab_size",
        "length": "max_position_embeddings",
        "text_dim": "hidden_size",
        "text_depth": "num_hidden_layers",
        "text_heads": "num_attention_heads",
        "text_hidden": "intermediate_size",
    },
}
BOTH = {"activation": "hidden_act", "eps": "layer_norm_eps"}
SILENT: dict[str, dict[str, Any]] = {
    "vision": {
        "image_size": 224,
        "patch_size": 32,
        "num_channels": 3,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    },
    "text": {
        "vocab_size": 49408,
        "max_position_embeddings": 77,
        "hidden_size": 512,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "intermediate_size": 2048,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "eos_token_id": 49407,
    },
}
LARGEST = 2  # an end id that says: the largest id of a text ends it. Old files have it, whose vocabularies have another


def read(published: Mapping[str, Any]) -> dict[str, Any]:
    """Our fields of what config.json of transformers says. ValueError where it asks for another model."""
    said = {part: _part(published, part) for part in TOWERS}
    found = _ours(said, TOWERS)
    for ours, theirs in BOTH.items():
        if said["vision"][theirs] != said["text"][theirs]:
            towers = f"{said['vision'][theirs]!r} for pictures and {said['text'][theirs]!r} for texts"
            raise ValueError(f"config.json says {theirs} {towers}: only one for both is written here.")
        found[ours] = said["text"][theirs]
    end = said["text"]["eos_token_id"]
    return found | {"dim": published.get("projection_dim", 512), "end": None if end == LARGEST else end}


def _ours(said: Mapping[str, Mapping[str, Any]], names: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    pairs = [(part, ours, theirs) for part, fields in names.items() for ours, theirs in fields.items()]
    return {ours: vision.as_config(said[part][theirs]) for part, ours, theirs in pairs}


def _part(published: Mapping[str, Any], part: str) -> dict[str, Any]:
    """What it says of a tower. Some say it twice: then transformers goes by the second alone, silent or not."""
    for name in (f"{part}_config_dict", f"{part}_config"):
        said = published.get(name)
        if said is not None and not isinstance(said, Mapping):
            raise ValueError(f"config.json says {name} {said!r}: expected a JSON object.")
        if said is not None:
            return SILENT[part] | {**said}
    return SILENT[part]


def write(config: Any) -> dict[str, Any]:
    """As transformers has it."""
    hidden = {
        f"{part}_hidden": getattr(config, f"{part}_hidden") or 4 * getattr(config, f"{part}_dim")
        for part in ("image", "text")
    }
    fields = {**vars(config), **hidden}
    parts = {
        part: {theirs: fields[ours] for ours, theirs in (names | BOTH).items()} | {"projection_dim": config.dim}
        for part, names in TOWERS.items()
    }
    parts["text"]["eos_token_id"] = LARGEST if config.end is None else config.end
    kinds = {f"{part}_config": {"model_type": f"clip_{part}_model", **said} for part, said in parts.items()}
    return {"model_type": "clip", "projection_dim": config.dim, **kinds}


def describe(model: Any) -> dict[str, Any]:
    """Each tower once, whatever the file it came from said twice: what is not read of it is kept."""
    said = {f"{part}_config": model.published.get(f"{part}_config") or {} for part in TOWERS}
    parts = {name: {**said[name], **now} for name, now in write(model.config).items() if name in said}
    return {"architectures": ["CLIPModel"], **parts, **dict.fromkeys(f"{part}_config_dict" for part in TOWERS)}


# open_clip's words; what is left out matters to training alone, or says what is so here.
CFG = {
    "vision_cfg": {"image": "image_size", "patch": "patch_size", "image_dim": "width", "image_depth": "layers"},
    "text_cfg": {
        "vocab": "vocab_size",
        "length": "context_length",
        "text_dim": "width",
        "text_depth": "layers",
        "text_heads": "heads",
    },
}
OPEN_CLIP_SILENT: dict[str, dict[str, Any]] = {
    "vision_cfg": {"image_size": 224, "patch_size": 16, "width": 768, "layers": 12, "head_width": 64, "mlp_ratio": 4.0},
    "text_cfg": {
        "vocab_size": 49408,
        "context_length": 77,
        "width": 512,
        "layers": 12,
        "heads": 8,
        "mlp_ratio": 4.0,
        "hf_tokenizer_name": None,
    },
}
# What would change the mathematics, and the only values that are written here.
FIXED: dict[str, Any] = {
    "model": {"custom_text": False, "init_logit_bias": None, "nonscalar_logit_scale": False},
    "vision_cfg": {"pool_type": "tok", "attentional_pool": False, "no_ln_pre": False, "pos_embed_type": "learnable"},
    "text_cfg": {"pool_type": "argmax", "proj_type": "linear", "proj_bias": False, "no_causal_mask": False},
}
EVERYWHERE = {"ls_init_value": None, "final_ln_after_pool": False, "act_kwargs": {}, "norm_kwargs": {}}
FREE = ("embed_dim", "quick_gelu", "vision_cfg", "text_cfg", "init_logit_scale", "patch_dropout", "output_tokens")
FREE += ("input_patchnorm", "dual_patchnorm", "cast_dtype", "pad_id", "embed_cls", "tokenizer_kwargs", "eos_id")


def read_open_clip(published: Mapping[str, Any]) -> dict[str, Any]:
    """Our fields of what open_clip_config.json says. ValueError where it asks for another model."""
    model = published.get("model_cfg")
    parts: dict[str, Any] = {name: model.get(name) for name in CFG} if isinstance(model, Mapping) else {}
    if not isinstance(model, Mapping) or not all(isinstance(part, Mapping) for part in parts.values()):
        raise ValueError("open_clip_config.json has no model_cfg with vision_cfg and text_cfg: fetch it again.")
    _check_open_clip("model", model, ())
    for name, part in parts.items():
        _check_open_clip(name, part, (*OPEN_CLIP_SILENT[name],))
    said = {name: {**silent, **parts[name]} for name, silent in OPEN_CLIP_SILENT.items()}
    found = _ours(said, CFG)
    image, text = said["vision_cfg"], said["text_cfg"]
    if isinstance(image["layers"], list):
        raise ValueError(f"open_clip_config.json says layers {image['layers']}, those of a ResNet: none is built here.")
    found |= {"image_heads": image["width"] // image["head_width"], "dim": model.get("embed_dim", 512)}
    found |= {"image_hidden": int(image["width"] * image["mlp_ratio"])}
    found |= {"text_hidden": int(text["width"] * text["mlp_ratio"])}
    return found | {"activation": "quick_gelu" if model.get("quick_gelu") else "gelu"}


def write_open_clip(config: Any, prepared: Preprocess, *, own_words: bool) -> dict[str, Any]:
    """open_clip_config.json, which `read_open_clip` reads as this config. `own_words`: the tokeniser is not OpenAI's,
    and lies beside it. ValueError for what open_clip has not. (Half of an odd margin it crops in a way of its own.)"""
    fields, side, last = vars(config), config.image, config.vocab - 1
    able = {"eps": (1e-5,), "activation": ("gelu", "quick_gelu"), "end": (None, last), "channels": (3,)}
    wrong = [f"{name} {fields[name]!r}" for name, values in able.items() if fields[name] not in values]
    modes: dict[Any, str] = {(side, (side, side)): "shortest", ((side, side), None): "squash"}
    if (way := (prepared.size, prepared.crop)) not in modes:
        wrong.append(f"pictures of {side} that are resized to {way[0]} and cropped to {way[1]}")
    if wrong:
        raise ValueError(f"open_clip has no CLIP with {', or '.join(wrong)}: leave --layout out.")
    parts: dict[str, Any] = {
        part: {theirs: fields[ours] for ours, theirs in names.items()} | {"mlp_ratio": _ratio(fields, part[:-4])}
        for part, names in CFG.items()
    }
    parts["vision_cfg"]["head_width"] = config.image_dim // config.image_heads
    parts["text_cfg"] |= {"hf_tokenizer_name": "."} if own_words else {}  # of a folder, open_clip reads that of its own
    said = {"interpolation": prepared.interpolation, "resize_mode": modes[way]}
    return {
        "model_cfg": {"embed_dim": config.dim, "quick_gelu": config.activation == "quick_gelu", **parts},
        "preprocess_cfg": {"mean": list(prepared.mean), "std": list(prepared.std), **said},
    }


def _ratio(fields: Mapping[str, Any], part: str) -> float:
    """What open_clip multiplies a width with, and rounds down."""
    part = {"vision": "image"}.get(part, part)
    dim, hidden = fields[f"{part}_dim"], fields[f"{part}_hidden"] or 4 * fields[f"{part}_dim"]
    return hidden / dim if hidden % dim == 0 else (hidden + 0.5) / dim


def _check_open_clip(name: str, said: Mapping[str, Any], known: Sequence[str]) -> None:
    fixed = FIXED[name] | EVERYWHERE
    for word, value in said.items():
        if word not in (*fixed, *known, *FREE) or (word in fixed and (value or None) != (fixed[word] or None)):
            only = f"only {fixed[word]!r} is" if word in fixed else "that is not"
            raise ValueError(f"open_clip_config.json says {word} {value!r}: {only} written here.")


def prepare(published: Mapping[str, Any], config: Any, name: str) -> Preprocess | None:
    """How pictures are prepared, where no preprocessor_config.json says it: as OpenAI does, unless open_clip says
    otherwise."""
    if config.channels != 3:
        return None
    said = published.get("preprocess_cfg") or {}
    if (mode := said.get("resize_mode", "shortest")) not in ("shortest", "squash"):
        raise ValueError(f"open_clip_config.json says resize_mode {mode!r}: expected shortest or squash.")
    made = Preprocess(
        224 if mode == "shortest" else (224, 224),
        crop=(224, 224) if mode == "shortest" else None,
        interpolation=said.get("interpolation", "bicubic"),
        mean=tuple(said.get("mean", CLIP[0])),
        std=tuple(said.get("std", CLIP[1])),
    )
    return made.sized(config.image)


# transformers rounds half of an odd margin down.
HUGGING_FACE = Preprocess(224, (224, 224), mean=CLIP[0], std=CLIP[1], middle="floor")
