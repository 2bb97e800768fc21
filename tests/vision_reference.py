"""ViT and ViT-MAE as transformers, timm and facebook have them, on weights that hide nothing. Never imports our code.

facebook publishes its MAE as files, not as a package: `facebook` puts transformers' weights under facebook's names, and
`autoencode` is the model that reads them, written out from the paper without modules. It also says what no package can:
a grid that is not square, a model without a class token.
"""

import argparse
import math
import re

import numpy as np
import reference  # noqa: F401 (before transformers)
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed as resample_abs_pos_embed
from timm.models import save_for_hf as save_for_hf
from transformers import (
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTMAEModel,
    ViTModel,
)

# Distinct primes where the architecture allows: widths are heads times a width, MAE's sinusoids want multiples of four.
SIZES = {
    "hidden_size": 65,
    "num_attention_heads": 5,
    "num_hidden_layers": 2,
    "intermediate_size": 61,
    "image_size": [35, 77],
    "patch_size": 7,
    "layer_norm_eps": 1e-5,
}
GRID, LABELS = (5, 11), 17
MAE_SIZES = {
    **SIZES,
    "hidden_size": 20,
    "num_hidden_layers": 3,
    "image_size": 35,
    "decoder_hidden_size": 28,
    "decoder_num_attention_heads": 7,
    "decoder_num_hidden_layers": 2,
    "decoder_intermediate_size": 31,
}
TIMM_SIZES = {
    "img_size": (35, 77),
    "patch_size": 7,
    "embed_dim": 65,
    "depth": 2,
    "num_heads": 5,
    "num_classes": LABELS,
}
KINDS = {"ForImageClassification": ViTForImageClassification, "Model": ViTModel}
MAE_KINDS = {"ForPreTraining": ViTMAEForPreTraining, "Model": ViTMAEModel}


def scramble(model, *, std=0.25, seed=0):
    """Every parameter, fixed positions too, drawn anew by numpy's frozen generator in the order of the names; norms'
    weights around 1. In float64 and evaluation mode."""
    draw, model = np.random.RandomState(seed), model.double().eval()
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            values = torch.from_numpy(draw.standard_normal(tuple(parameter.shape)) * std)
            parameter.copy_(values + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
    return model


def vit(kind="ForImageClassification", **changes):
    labels = {"num_labels": LABELS} if kind == "ForImageClassification" else {}
    return scramble(KINDS[kind](ViTConfig(**{**SIZES, **labels, **changes})))


def mae(kind="ForPreTraining", **changes):
    return scramble(MAE_KINDS[kind](ViTMAEConfig(**{**MAE_SIZES, **changes})))


def of_timm(name="vit_base_patch16_224", **changes):
    """One of timm's architectures in small: eps stays its own, 1e-6."""
    return scramble(timm.create_model(name, pretrained=False, **{**TIMM_SIZES, **changes}))


def pictures(rows=3, size=(35, 77), channels=3, *, seed=1):
    return torch.from_numpy(np.random.RandomState(seed).standard_normal((rows, channels, *size)))


def noise(rows=3, patches=25, *, seed=2):
    return torch.from_numpy(np.random.RandomState(seed).random_sample((rows, patches)))


@torch.no_grad()
def answers(model, images):
    """All that transformers' or timm's ViT says: `states` of all tokens after the last norm, `pooled`, `output`."""
    if isinstance(model, (ViTModel, ViTForImageClassification)):
        said = getattr(model, "vit", model)(images)
        found = {"states": said.last_hidden_state, "pooled": said.pooler_output}
        found["output"] = model(images).logits if isinstance(model, ViTForImageClassification) else None
    else:
        # Where the norm follows the mean, timm has no states after a norm.
        states = model.forward_features(images) if isinstance(model.fc_norm, torch.nn.Identity) else None
        found = {"states": states, "output": model(images) if model.num_classes else None}
    return {name: value for name, value in found.items() if value is not None}


@torch.no_grad()
def painted(model, images, noise):
    """Loss, prediction and mask (True: hidden) of transformers' MAE."""
    said = model(images, noise=noise)
    return {"loss": said.loss, "prediction": said.logits, "mask": said.mask.bool()}


@torch.no_grad()
def encoded(model, images):
    """All tokens of transformers' MAE with nothing hidden, put back in their order, which its noise shuffles."""
    ratio, model.config.mask_ratio = model.config.mask_ratio, 0.0
    said = getattr(model, "vit", model)(images)
    model.config.mask_ratio = ratio
    states, order = said.last_hidden_state, said.ids_restore[..., None].expand(-1, -1, said.last_hidden_state.shape[-1])
    return torch.cat([states[:, :1], states[:, 1:].gather(1, order)], dim=1)


# --- facebook's files


PLACES = {
    "vit.embeddings.cls_token": "cls_token",
    "vit.embeddings.position_embeddings": "pos_embed",
    "vit.embeddings.patch_embeddings.projection.": "patch_embed.proj.",
    "vit.layernorm.": "norm.",
    "vit.encoder.layer.": "blocks.",
    "decoder.mask_token": "mask_token",
    "decoder.decoder_pos_embed": "decoder_pos_embed",
    "decoder.decoder_embed.": "decoder_embed.",
    "decoder.decoder_norm.": "decoder_norm.",
    "decoder.decoder_pred.": "decoder_pred.",
    "decoder.decoder_encoder.layer.": "decoder_blocks.",
}
PARTS = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}


def facebook(file):
    """The tensors of transformers' MAE, saved in `file`, under facebook's names, queries, keys and values in one."""
    tensors, found = load_file(file), {}
    for name, value in tensors.items():
        (place,) = [place for place in PLACES if name.startswith(place)]
        rest = name.removeprefix(place)
        part = re.fullmatch(r"(\d+)\.(.*)\.(weight|bias)", rest)
        if part is None:
            found[PLACES[place] + rest] = value
        elif part[2] in PARTS:
            found[f"{PLACES[place]}{part[1]}.{PARTS[part[2]]}.{part[3]}"] = value
        elif part[2].endswith("query"):
            names = [f"{place}{part[1]}.attention.attention.{each}.{part[3]}" for each in ("query", "key", "value")]
            found[f"{PLACES[place]}{part[1]}.attn.qkv.{part[3]}"] = torch.cat([tensors[each] for each in names])
    return found


def encoder_of(tensors):
    """What facebook leaves of a file for a downstream task."""
    return {k: v for k, v in tensors.items() if not k.startswith("decoder_") and k != "mask_token"}


def write_facebook(path, tensors):
    """As facebook saves a training: with its arguments, which are no tensors."""
    said = argparse.Namespace(model="mae_vit_base_patch16", norm_pix_loss=True, lr=1.5e-4, output_dir=None)
    torch.save({"model": tensors, "optimizer": {"state": {}, "param_groups": []}, "epoch": 399, "args": said}, path)


def _norm(x, tensors, name, eps):
    return F.layer_norm(x, x.shape[-1:], tensors[f"{name}.weight"], tensors[f"{name}.bias"], eps)


def _linear(x, tensors, name):
    return F.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])


def _blocks(x, tensors, stack, heads, eps):
    layer = 0
    while f"{stack}.{layer}.norm1.weight" in tensors:
        at = f"{stack}.{layer}"
        width = x.shape[-1] // heads
        qkv = _linear(_norm(x, tensors, f"{at}.norm1", eps), tensors, f"{at}.attn.qkv")
        q, k, v = (part.unflatten(-1, (heads, width)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
        weights = (q @ k.transpose(-1, -2) / math.sqrt(width)).softmax(dim=-1)
        x = x + _linear((weights @ v).transpose(1, 2).flatten(2), tensors, f"{at}.attn.proj")
        up = _linear(_norm(x, tensors, f"{at}.norm2", eps), tensors, f"{at}.mlp.fc1")
        x = x + _linear(up * 0.5 * (1 + torch.erf(up / math.sqrt(2))), tensors, f"{at}.mlp.fc2")
        layer += 1
    return x


def _embedded(tensors, images):
    """Patches with their positions, and, where there is one, the class token with its own."""
    kernel = tensors["patch_embed.proj.weight"]
    x = F.conv2d(images, kernel, tensors["patch_embed.proj.bias"], stride=kernel.shape[-1]).flatten(2).transpose(1, 2)
    before = tensors["pos_embed"].shape[1] - x.shape[1]
    first = [tensors["cls_token"] + tensors["pos_embed"][:, :1]] if before else []
    return first, x + tensors["pos_embed"][:, before:]


def encode(tensors, images, *, heads, eps):
    first, x = _embedded(tensors, images)
    x = torch.cat([*(each.expand(len(x), -1, -1) for each in first), x], dim=1)
    return _norm(_blocks(x, tensors, "blocks", heads, eps), tensors, "norm", eps)


def autoencode(tensors, images, noise, *, heads, decoder_heads, eps, norm_pix_loss, mask_ratio=0.75):
    """Loss, prediction and mask, a picture at a time and a patch at a time: slow and plain."""
    patch = tensors["patch_embed.proj.weight"].shape[-1]
    first, embedded = _embedded(tensors, images)
    predictions, masks, losses = [], [], []
    for i, picture in enumerate(images):
        shown = sorted(range(noise.shape[1]), key=lambda n: noise[i, n])[: int(noise.shape[1] * (1 - mask_ratio))]
        x = torch.cat([*first, *(embedded[i : i + 1, n : n + 1] for n in shown)], dim=1)
        x = _norm(_blocks(x, tensors, "blocks", heads, eps), tensors, "norm", eps)
        x = _linear(x, tensors, "decoder_embed")
        rows = [x[:, : len(first)]]
        for n in range(noise.shape[1]):
            place = len(first) + shown.index(n) if n in shown else None
            rows.append(tensors["mask_token"] if place is None else x[:, place : place + 1])
        x = torch.cat(rows, dim=1) + tensors["decoder_pos_embed"]
        x = _norm(_blocks(x, tensors, "decoder_blocks", decoder_heads, eps), tensors, "decoder_norm", eps)
        prediction = _linear(x, tensors, "decoder_pred")[0, len(first) :]
        for n in range(noise.shape[1]):
            row, column = divmod(n, picture.shape[2] // patch)
            target = picture[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            target = target.permute(1, 2, 0).flatten()
            if norm_pix_loss:
                target = (target - target.mean()) / (target.var(unbiased=True) + 1e-6).sqrt()
            if n not in shown:
                losses.append((prediction[n] - target).square().mean())
        predictions.append(prediction)
        masks.append(torch.tensor([n not in shown for n in range(noise.shape[1])]))
    loss = torch.stack(losses).mean() if losses else torch.zeros(())
    return {"loss": loss, "prediction": torch.stack(predictions), "mask": torch.stack(masks)}
