"""Vision Transformer (Dosovitskiy et al. 2021): a picture cut into patches, read as BERT reads tokens, norms before.
GELU by the error function, learned positions, a class token whose last state says what the picture shows."""

from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scratchformers import grid
from scratchformers.checkpoints.pretrained import Config, Pretrained
from scratchformers.checkpoints.tables import Layout, Published, Row, Tensors
from scratchformers.checkpoints.vision import HUGGING_FACE, TIMM, read_sizes, sizes, write_sizes
from scratchformers.grid import Pixels, Size, cells, check_pictures, height_width
from scratchformers.heads import Classify, Keep, label_names, published_labels
from scratchformers.images import IMAGENET, Preprocess
from scratchformers.nn import MLP, Attention, Block, Patches, gelu


@dataclass(frozen=True)
class ViTConfig(Config):
    image: Size = 224  # (height, width), or one number
    patch: int = 16
    channels: int = 3
    dim: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int | None = None  # width of the MLP: 4 * dim
    classes: int | None = 1000  # None: no head
    pool: str = "class"  # the class token; "mean": there is none; "patches": there is one, unused, and the norm follows
    dropout: float = 0.0
    eps: float = 1e-6

    def __post_init__(self):
        super().__post_init__()
        if self.pool not in ("class", "mean", "patches"):
            raise ValueError(f"pool is {self.pool!r}: expected class, mean or patches.")


SIZES = {
    "tiny": ViTConfig(dim=192, heads=3),
    "small": ViTConfig(dim=384, heads=6),
    "base": ViTConfig(),
    "large": ViTConfig(dim=1024, depth=24, heads=16),
    "huge": ViTConfig(dim=1280, depth=32, heads=16),
}
PRESETS = {f"{size}-{patch}": replace(SIZES[size], patch=patch) for size in SIZES for patch in (8, 14, 16, 32)}
PRESETS["tiny"] = ViTConfig(image=32, patch=4, dim=128, depth=4, heads=4, classes=10)  # of small pictures
PRESETS["simple"] = replace(PRESETS["tiny"], pool="mean")


class ViT(Pretrained):
    """Pictures (b, channels, height, width) to scores of classes (b, classes), or to what another `head` makes."""

    config: ViTConfig
    config_class, presets, resize = ViTConfig, PRESETS, grid.resize

    def __init__(self, config: ViTConfig):
        super().__init__(config)
        dim, hidden, dropout = config.dim, config.hidden or 4 * config.dim, config.dropout
        norm, count = partial(nn.LayerNorm, eps=config.eps), prod(cells(config.image, config.patch))
        self.patches = Patches(config.patch, nn.Linear(config.channels * config.patch**2, dim))
        self.class_token = None if config.pool == "mean" else nn.Parameter(torch.zeros(1, 1, dim))
        self.position = nn.Parameter(torch.zeros(1, (config.pool != "mean") + count, dim))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(dim, Attention(dim, config.heads, dropout), MLP(dim, hidden, gelu), norm, dropout=dropout)
            for _ in range(config.depth)
        )
        self.norm = norm(dim)
        self.pooler: nn.Linear | None = None  # what some files without a head have
        labels = published_labels(None, config.classes or 0)
        self.head: nn.Module | None = Classify(dim, labels, pool=self.pool) if labels else None
        grid.initialise(self)

    def states(self, images: Pixels) -> Float[Tensor, "b t d"]:
        """All tokens before the last norm, the class token first."""
        check_pictures(images, self.config.image, self.config.channels)
        x = self.patches(images)
        x = x if self.class_token is None else torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1)
        x = self.dropout(x + self.position)
        for block in self.blocks:
            x = block(x)
        return x

    def encode(self, images: Pixels) -> Float[Tensor, "b t d"]:
        """All tokens after the last norm, the class token, where there is one, first."""
        return self.norm(self.states(images))

    def pool(self, x: Float[Tensor, "b t d"], keep: Keep = None) -> Float[Tensor, "b d"]:
        """One vector for a picture, from `encode`; for `pool="patches"` from `states`, whose mean the norm follows."""
        if self.config.pool == "patches":
            return self.norm(x[:, 1:].mean(1))
        return x[:, 0] if self.config.pool == "class" else x.mean(1)

    def pooled(self, images: Pixels) -> Float[Tensor, "b d"]:
        """What `pooler` makes of the class token. ValueError where the file has none."""
        if self.pooler is None:
            raise ValueError("This ViT has no pooler: pool what encode gives.")
        return self.pooler(self.encode(images)[:, 0]).tanh()

    def forward(self, images: Pixels) -> Tensor:
        """What the head says. ValueError if there is none, or pictures are of another size than `config.image`."""
        if self.head is None:
            raise ValueError("This ViT has no head, so it scores nothing: call encode, or set model.head.")
        return self.head(self.states(images) if self.config.pool == "patches" else self.encode(images))


ROWS: list[Row] = [*HUGGING_FACE, ("pooler.dense", "pooler"), ("classifier", "head.out")]
WITH_DECODER: list[Row] = [*ROWS, ("decoder.", None)]  # an autoencoder's, which a downstream task throws away
OF_TIMM: list[Row] = [*TIMM, ("head", "head.out")]
# Where the norm follows the mean of the patches.
OF_TIMM_MEAN: list[Row] = [("fc_norm", "norm") if row[0] == "norm" else row for row in OF_TIMM]
DECODER = ("mask_token", "decoder_pos_embed", "decoder_embed.", "decoder_blocks.", "decoder_norm.", "decoder_pred.")
OF_FACEBOOK: list[Row] = [*OF_TIMM, *((name, None) for name in DECODER)]
OWN = "scratchformers-vit"  # what the published layout cannot express: other ways to pool


def read(published: Published) -> ViTConfig:
    """config.json of transformers to ours. Raises ValueError where it asks for another model than this page's."""
    labels = len(published.get("id2label") or ()) or published.get("num_labels") or 2
    return ViTConfig(**read_sizes(published), classes=labels, dropout=published.get("hidden_dropout_prob", 0.0))


def read_encoder(published: Published) -> ViTConfig:
    """Of an autoencoder what is left without its decoder."""
    own = {} if published.get("scratchformers", {}).get("class_token", True) else {"pool": "mean"}
    return read(
        {name: value for name, value in published.items() if name != "scratchformers"} | {"scratchformers": own}
    )


def write(config: ViTConfig) -> dict[str, Any]:
    own = {} if config.pool == "class" else {"scratchformers": {"pool": config.pool}}
    dropouts = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), config.dropout)
    return {"model_type": OWN if own else "vit", **write_sizes(config), **dropouts, **own}


def infer(tensors: Tensors, rows: list[Row]) -> dict[str, Any]:
    head = tensors.get("classifier.weight", tensors.get("head.weight"))
    pool = {} if rows is ROWS else {"pool": "patches" if "fc_norm.weight" in tensors else "class"}
    return {**sizes(tensors, rows), **pool, "classes": None if head is None else len(head)}


def build(model: ViT, published: Published, tensors: Tensors) -> None:
    """The parts that a file has: those it lacks are None."""
    if "pooler.dense.weight" in tensors:
        model.pooler = nn.Linear(model.config.dim, model.config.dim)
    if model.head is not None and published.get("id2label"):
        model.head = Classify(model.config.dim, published_labels(published["id2label"], 0), pool=model.pool)


def describe(model: ViT) -> dict[str, Any]:
    """What config.json says of the head. ValueError for one that transformers' ViT does not have."""
    if not (model.head is None or (isinstance(model.head, Classify) and model.head.pool == model.pool)):
        raise ValueError("The published layout has no such head: expected Classify with pool=model.pool.")
    kind = "ViTModel" if model.head is None else "ViTForImageClassification"
    return {"architectures": [kind], **label_names(getattr(model.head, "labels", ()))}


# timm's names of models. One with another name takes config=.
TIMM_NAMES = {
    f"{kind}_{size}_patch{patch}_{image}": replace(SIZES[size], patch=patch, image=image)
    for kind, patches in (("vit", (8, 14, 16, 32)), ("deit", (16,))) for patch in patches
    for size in SIZES for image in (224, 384) if image % patch == 0
}  # fmt: skip
# Files that say nothing of themselves, by their published names.
DEIT = {
    f"deit_{size}_patch16_224-{digest}": SIZES[size]
    for size, digest in (("tiny", "a1311bcf"), ("small", "cd65a155"), ("base", "b5f2ef4d"))
}
FINETUNED = {f"mae_finetuned_vit_{size}": replace(SIZES[size], pool="patches") for size in ("base", "large")}
FINETUNED["mae_finetuned_vit_huge"] = replace(SIZES["huge"], patch=14, pool="patches")


def read_timm(published: Published) -> ViTConfig:
    name, said = published.get("architecture"), published.get("pretrained_cfg", {})
    if name not in TIMM_NAMES:
        raise ValueError(f"config.json says architecture {name!r}: expected one of {', '.join(TIMM_NAMES)}.")
    image = tuple(said.get("input_size", (3, *height_width(TIMM_NAMES[name].image)))[1:])
    pool = "patches" if published.get("global_pool") == POOLS["patches"] else "class"
    return replace(TIMM_NAMES[name], image=image, classes=published.get("num_classes") or None, pool=pool)


def prepare(published: Published, config: ViTConfig, name: str) -> Preprocess | None:
    """As timm's config.json says; of facebook's files, as their evaluation does."""
    if "pretrained_cfg" in published:
        return Preprocess.read_timm(published["pretrained_cfg"])
    known = name in DEIT or name in FINETUNED
    return Preprocess(256, (224, 224), mean=IMAGENET[0], std=IMAGENET[1]).sized(config.image) if known else None


POOLS = {"class": "token", "patches": "avg"}
CLASS, SIGNATURE = "embeddings.cls_token", "patch_embed.proj.weight"
published = partial(Layout, prefix="vit.", outside=("classifier.", "decoder."), build=build, describe=describe)
write_timm = lambda config: {"num_classes": config.classes or 0, "global_pool": POOLS[config.pool]}  # noqa: E731
of_timm = partial(Layout, write=write_timm, signature=SIGNATURE, preprocess=prepare)
ViT.layouts = (
    published(
        "vit", ROWS, read, write, CLASS, without=("decoder.mask_token",), infer=partial(infer, rows=ROWS),
        holds=lambda config: config.pool == "class",
        preprocess=lambda _, config, __: Preprocess(height_width(config.image), interpolation="bilinear"),
    ),
    published(OWN, ROWS, read, write, "", infer=partial(infer, rows=ROWS)),
    of_timm(
        "timm", OF_TIMM, read_timm, without=("mask_token", "fc_norm.weight"), infer=partial(infer, rows=OF_TIMM),
        names=DEIT, holds=lambda config: config.pool == "class",
    ),
    of_timm(
        "timm, norm after the mean", OF_TIMM_MEAN, read_timm, signature="fc_norm.weight", names=FINETUNED,
        infer=partial(infer, rows=OF_TIMM),
        holds=lambda config: config.pool == "patches",
    ),
    *(
        published(name, WITH_DECODER, read_encoder, write, sign, asked=True, infer=partial(infer, rows=ROWS))
        for name, sign in (("vit_mae", "decoder.mask_token"), ("scratchformers-mae", ""))
    ),
    of_timm("mae", OF_FACEBOOK, read_timm, signature="mask_token", asked=True, infer=partial(infer, rows=OF_TIMM)),
)  # fmt: skip
