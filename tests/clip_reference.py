"""CLIP as transformers and open_clip have it, on weights that hide nothing. Never imports our code.

OpenAI's code is not a package: open_clip's class has its names and its arithmetic, and `openai` adds to its weights the
sizes that OpenAI's files state.
"""

import json
import re

import numpy as np
import reference  # noqa: F401 (before what imports torchvision)
import torch
from open_clip.model import CLIP as OpenCLIP
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel

# Distinct primes where the architecture allows: widths are heads times a width. No two sizes of the towers are alike.
TEXT = {
    "hidden_size": 33,
    "num_attention_heads": 3,
    "num_hidden_layers": 3,
    "intermediate_size": 59,
    "vocab_size": 97,
    "max_position_embeddings": 13,
}
VISION = {
    "hidden_size": 35,
    "num_attention_heads": 5,
    "num_hidden_layers": 2,
    "intermediate_size": 61,
    "image_size": 21,
    "patch_size": 7,
}
DIM, START, END = 23, 95, 96
OTHER_END = 41  # an end that is not the largest id
# In open_clip a head of a picture is 64 wide unless told otherwise, and so is OpenAI's.
WIDE = {"layers": 2, "width": 128, "head_width": 64, "patch_size": 7, "image_size": 21}
NARROW = {"layers": 3, "width": 64, "heads": 1, "vocab_size": 97, "context_length": 13}


def scramble(model, *, std=0.25, seed=0):
    """Every parameter drawn anew by numpy's frozen generator in the order of the names; norms' weights around 1. In
    float64 and evaluation mode."""
    draw, model = np.random.RandomState(seed), model.double().eval()
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            values = torch.from_numpy(np.asarray(draw.standard_normal(tuple(parameter.shape)) * std))
            norm = re.search(r"norm|layrnorm|ln_", name) and name.endswith("weight")
            parameter.copy_(values + (1.0 if norm or name == "logit_scale" else 0.0))
    return model


def clip(act="quick_gelu", end=2, vision=(), text=(), **changes):
    """transformers'. With `end` 2 a text ends at its largest id, else at the first that is `end`."""
    config = CLIPConfig(
        vision_config={**VISION, "hidden_act": act, **dict(vision)},
        text_config={**TEXT, "hidden_act": act, "eos_token_id": end, **dict(text)},
        **{"projection_dim": DIM, **changes},
    )
    return scramble(CLIPModel(config))


def open_clip(*, quick=False, vision=(), text=()):
    """open_clip's model, and what its open_clip_config.json says."""
    cfg = {"embed_dim": DIM, "vision_cfg": {**WIDE, **dict(vision)}, "text_cfg": {**NARROW, **dict(text)}}
    cfg |= {"quick_gelu": True} if quick else {}
    model = OpenCLIP(**{**cfg, "quick_gelu": quick})
    return scramble(model), cfg


def save_open_clip(model, cfg, folder, *, safe=False, **preprocess):
    """As on the hub: the weights and open_clip_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    if safe:
        save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    else:
        torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    said = json.dumps({"model_cfg": cfg, "preprocess_cfg": preprocess})
    (folder / "open_clip_config.json").write_text(said, encoding="utf-8")
    return folder


def openai(model):
    """The tensors of a file of OpenAI's."""
    sizes = {"input_resolution": 21, "context_length": 13, "vocab_size": 97}
    return {**model.state_dict(), **{name: torch.tensor(value) for name, value in sizes.items()}}


def pictures(rows=4, size=(21, 21), channels=3, *, seed=1):
    return torch.from_numpy(np.random.RandomState(seed).standard_normal((rows, channels, *size)))


def texts(rows=6, length=13, *, seed=2, end=END):
    """Ids of texts that end at different places; random smaller ids stand after the end, where published batches have
    zeros. With another `end` the largest id stands in them too, and does not end them."""
    draw = np.random.RandomState(seed)
    ids = draw.randint(0, START, (rows, length))
    ids[:, 0] = START
    for row, place in enumerate(np.linspace(2, length - 1, rows).astype(int)):
        ids[row, place] = end
    if end != END:
        ids[:, 1] = END
    return torch.from_numpy(ids)


@torch.no_grad()
def answers(model, images, ids):
    """Features of both towers, not normalised, and scores (pictures, texts)."""
    if isinstance(model, OpenCLIP):
        found = {"image": model.encode_image(images), "text": model.encode_text(ids)}
        return found | {"scores": model.get_logits(images, ids)[0]}
    said = model(input_ids=ids, pixel_values=images)
    vision, text = model.vision_model(images), model.text_model(ids)
    found = {"image": model.visual_projection(vision.pooler_output), "text": model.text_projection(text.pooler_output)}
    return found | {"scores": said.logits_per_image}
