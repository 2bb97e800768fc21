"""Masked autoencoder (He et al. 2022): a ViT reads a quarter of the patches, a small decoder paints the others.
Which patches are hidden is decided by noise, an argument; `encode` hides nothing. GELU by the error function."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from scratchformers import grid
from scratchformers.checkpoints import vision
from scratchformers.checkpoints.pretrained import Config, Pretrained
from scratchformers.checkpoints.tables import Layout, Published, Row, Tensors
from scratchformers.grid import Noise, Pixels, Places, Size, cut, take
from scratchformers.nn import MLP, Attention, Block, Patches, gelu


@dataclass(frozen=True)
class MAEConfig(Config):
    image: Size = 224  # (height, width), or one number
    patch: int = 16
    channels: int = 3
    dim: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int | None = None  # width of the MLP: 4 * dim
    decoder_dim: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    decoder_hidden: int | None = None  # 4 * decoder_dim
    norm_pix_loss: bool = False  # a patch is painted less its mean, over its deviation: structure without brightness
    class_token: bool = True
    eps: float = 1e-6


PRESETS = {
    "base": MAEConfig(),
    "large": MAEConfig(dim=1024, depth=24, heads=16),
    "huge": MAEConfig(patch=14, dim=1280, depth=32, heads=16),
    "tiny": MAEConfig(32, 4, dim=128, depth=4, heads=4, decoder_dim=64, decoder_depth=2, decoder_heads=4),
}
PRESETS["simple"] = replace(PRESETS["tiny"], class_token=False)


class Painted(NamedTuple):
    loss: Float[Tensor, ""]  # mean squared error over what was hidden
    prediction: Float[Tensor, "b n p"]  # of every patch its pixels: (row, column, channel)
    mask: Bool[Tensor, "b n"]  # True = hidden


def stack(dim: int, depth: int, heads: int, hidden: int, norm: Any) -> nn.ModuleList:
    return nn.ModuleList(Block(dim, Attention(dim, heads), MLP(dim, hidden, gelu), norm) for _ in range(depth))


class Decoder(nn.Module):
    """States of visible tokens, standing at `places` among all, to the pixels of all patches."""

    def __init__(self, config: MAEConfig, dim: int, norm: Any):
        super().__init__()
        self.embed, self.mask_token = nn.Linear(config.dim, dim), nn.Parameter(torch.zeros(1, 1, dim))
        self.position = grid.fixed_positions(config, dim)
        self.blocks = stack(dim, config.decoder_depth, config.decoder_heads, config.decoder_hidden or 4 * dim, norm)
        self.norm, self.out = norm(dim), nn.Linear(dim, config.channels * config.patch**2)

    def forward(self, x: Float[Tensor, "b s d"], places: Places) -> Float[Tensor, "b t p"]:
        x, hidden = self.embed(x), self.mask_token.expand(len(x), self.position.shape[1], -1)
        x = hidden.to(x.dtype).scatter(1, places[..., None].expand_as(x), x) + self.position
        for block in self.blocks:
            x = block(x)
        return self.out(self.norm(x))


class MAE(Pretrained):
    """Pictures (b, channels, height, width) to what it paints where it sees nothing, and how far off that is."""

    config: MAEConfig
    config_class, presets, resize = MAEConfig, PRESETS, grid.resize

    def __init__(self, config: MAEConfig):
        super().__init__(config)
        dim, norm = config.dim, partial(nn.LayerNorm, eps=config.eps)
        self.patches = Patches(config.patch, nn.Linear(config.channels * config.patch**2, dim))
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim)) if config.class_token else None
        self.position = grid.fixed_positions(config, dim)
        self.blocks, self.norm = stack(dim, config.depth, config.heads, config.hidden or 4 * dim, norm), norm(dim)
        self.decoder: Decoder | None = Decoder(config, config.decoder_dim, norm)
        grid.initialise(self)

    def encode(self, images: Pixels, *, shown: Places | None = None) -> Float[Tensor, "b t d"]:
        """The states of all tokens, the class token first; with `shown` (b, s), of these patches alone."""
        patches, position = cut(images, self.config), self.position[:, int(self.config.class_token) :]
        x = self.patches.project(take(patches, shown)) + take(position, shown)
        if self.class_token is not None:
            x = torch.cat([(self.class_token + self.position[:, :1]).expand(len(x), -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward(self, images: Pixels, *, noise: Noise | None = None, mask_ratio: float = 0.75) -> Painted:
        """The patches of highest `noise` are hidden, `mask_ratio` of all. Without noise it is drawn: by torch's
        generator in training, by one seeded 0 in evaluation. ValueError where the file has no decoder."""
        if self.decoder is None:
            raise ValueError("This MAE has no decoder, so it paints nothing: call encode, or load a file that has one.")
        target, before = cut(images, self.config, "p q c"), int(self.config.class_token)
        if self.config.norm_pix_loss:
            target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
        noise = grid.draw_noise(target, mask_ratio, noise, seed=None if self.training else 0)
        shown = noise.argsort(dim=1)[:, : int(noise.shape[1] * (1 - mask_ratio))]
        mask = torch.ones_like(noise, dtype=torch.bool).scatter(1, shown, False)
        states, places = self.encode(images, shown=shown), nn.functional.pad(shown + before, (before, 0))
        prediction = self.decoder(states, places)[:, before:]
        loss = ((prediction - target).square().mean(-1) * mask).sum() / mask.sum().clamp(min=1)
        return Painted(loss, prediction, mask)


ROWS: list[Row] = [
    *vision.HUGGING_FACE,
    ("decoder.mask_token", "decoder.mask_token"),
    ("decoder.decoder_pos_embed", "decoder.position"),
    ("decoder.decoder_embed", "decoder.embed"),
    *vision.hugging_face_blocks("decoder.decoder_layers.*", "decoder.blocks.*"),
    *vision.hugging_face_blocks("decoder.decoder_encoder.layer.*", "decoder.blocks.*"),  # as transformers 5 writes them
    ("decoder.decoder_norm", "decoder.norm"),
    ("decoder.decoder_pred", "decoder.out"),
]
OF_FACEBOOK: list[Row] = [
    *vision.TIMM,
    ("mask_token", "decoder.mask_token"),
    ("decoder_pos_embed", "decoder.position"),
    ("decoder_embed", "decoder.embed"),
    *vision.timm_blocks("decoder_blocks.*", "decoder.blocks.*"),
    ("decoder_norm", "decoder.norm"),
    ("decoder_pred", "decoder.out"),
]
OWN = "scratchformers-mae"  # what the published layout cannot express: no class token, pictures that are not square
fits = lambda config: config.class_token and isinstance(config.image, int)  # noqa: E731
DECODER_NAMES = {f"decoder_{ours}": f"decoder_{vision.NAMES[ours]}" for ours in ("dim", "depth", "heads", "hidden")}
UPS = (
    "decoder.decoder_layers.*.intermediate.dense",
    "decoder.decoder_encoder.layer.*.intermediate.dense",
    "decoder_blocks.*.mlp.fc1",
)


def read(published: Published) -> MAEConfig:
    """config.json of transformers to ours. Raises ValueError where it asks for another model than this page's."""
    said = vision.read_sizes(published, {**vision.NAMES, **DECODER_NAMES})
    return MAEConfig(**said, norm_pix_loss=published.get("norm_pix_loss", False))


def write(config: MAEConfig) -> dict[str, Any]:
    own = {} if config.class_token else {"scratchformers": {"class_token": False}}
    said = {
        "model_type": "vit_mae" if fits(config) else OWN,
        **vision.write_sizes(config),
        "norm_pix_loss": config.norm_pix_loss,
        **own,
    }
    said |= {theirs: getattr(config, ours) for ours, theirs in DECODER_NAMES.items()}
    return said | {"decoder_intermediate_size": config.decoder_hidden or 4 * config.decoder_dim}


def infer(tensors: Tensors, rows: list[Row]) -> dict[str, Any]:
    embed = tensors.get("decoder.decoder_embed.weight", tensors.get("decoder_embed.weight"))
    ups = next(filter(None, (vision.layers(tensors, name) for name in UPS)), None)
    decoder = {} if embed is None or ups is None else {"decoder_dim": len(embed), "decoder_depth": len(ups)}
    return {**vision.sizes(tensors, rows), **decoder, **({"decoder_hidden": len(ups[0])} if ups else {})}


def build(model: MAE, published: Published, tensors: Tensors) -> None:
    if not {"decoder.decoder_embed.weight", "decoder_embed.weight"}.intersection(tensors):
        model.decoder = None  # an encoder's file


def describe(model: MAE) -> dict[str, Any]:
    return {"architectures": ["ViTMAEModel" if model.decoder is None else "ViTMAEForPreTraining"]}


# facebook's files, which say nothing of themselves.
FILES = {name: replace(PRESETS[size], norm_pix_loss="pretrain" in name) for name, size in vision.MAE_FILES.items()}


layout = partial(Layout, read=read, write=write, build=build, describe=describe)
transformers = partial(
    layout, rows=ROWS, prefix="vit.", outside=("decoder.",), infer=partial(infer, rows=ROWS),
    preprocess=vision.prepared(vision.HUGGING_FACE_MAE),
)  # fmt: skip
facebook = partial(
    layout, rows=OF_FACEBOOK, infer=partial(infer, rows=OF_FACEBOOK),
    preprocess=vision.prepared(vision.FACEBOOK),
)  # fmt: skip
MAE.layouts = (
    transformers("vit_mae", signature="decoder.mask_token", holds=fits),
    transformers(OWN, signature=""),
    facebook("mae", signature="mask_token", names=FILES),
    facebook("mae-encoder", signature="patch_embed.proj.weight", without=("mask_token", "head.weight"), asked=True),
)
