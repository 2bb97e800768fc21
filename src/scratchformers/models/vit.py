"""Vision Transformer (Dosovitskiy et al. 2021): a picture cut into patches, read as BERT reads tokens, norms before.
GELU by the error function, learned positions, a class token whose last state says what the picture shows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scratchformers import grid
from scratchformers.checkpoints import vision
from scratchformers.checkpoints.pretrained import Config, Pretrained
from scratchformers.checkpoints.tables import Layout, Published, Row, Tensors
from scratchformers.grid import Pixels, Size, check_pictures
from scratchformers.heads import Classify, Keep, label_names, published_labels
from scratchformers.images import Preprocess
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
        norm, patches = partial(nn.LayerNorm, eps=config.eps), grid.count(config.image, config.patch)
        self.patches = Patches(config.patch, nn.Linear(config.channels * config.patch**2, dim))
        self.class_token = None if config.pool == "mean" else nn.Parameter(torch.zeros(1, 1, dim))
        self.position = nn.Parameter(torch.zeros(1, (config.pool != "mean") + patches, dim))
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


ROWS: list[Row] = [*vision.HUGGING_FACE, ("pooler.dense", "pooler"), ("classifier", "head.out")]
WITH_DECODER: list[Row] = [*ROWS, ("decoder.", None)]  # an autoencoder's, which a downstream task throws away
OF_TIMM: list[Row] = [*vision.TIMM, ("head", "head.out")]
# Where the norm follows the mean of the patches.
OF_TIMM_MEAN: list[Row] = [("fc_norm", "norm") if row[0] == "norm" else row for row in OF_TIMM]
DECODER = ("mask_token", "decoder_pos_embed", "decoder_embed.", "decoder_blocks.", "decoder_norm.", "decoder_pred.")
OF_FACEBOOK: list[Row] = [*OF_TIMM, *((name, None) for name in DECODER)]
OWN = "scratchformers-vit"  # what the published layout cannot express: other ways to pool


def read(published: Published) -> ViTConfig:
    """config.json of transformers to ours. Raises ValueError where it asks for another model than this page's."""
    labels = len(published.get("id2label") or ()) or published.get("num_labels") or 2
    dropout = published.get("hidden_dropout_prob", 0.0)
    return ViTConfig(**vision.read_sizes(published), classes=labels, dropout=dropout)


def read_encoder(published: Published) -> ViTConfig:
    """Of an autoencoder what is left without its decoder."""
    whole = vision.read_sizes(published).get("class_token", True)
    return read({**published, "scratchformers": {} if whole else {"pool": "mean"}})


def write(config: ViTConfig) -> dict[str, Any]:
    own = {} if config.pool == "class" else {"scratchformers": {"pool": config.pool}}
    dropouts = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), config.dropout)
    return {"model_type": OWN if own else "vit", **vision.write_sizes(config), **dropouts, **own}


def infer(tensors: Tensors, rows: list[Row]) -> dict[str, Any]:
    head = tensors.get("classifier.weight", tensors.get("head.weight"))
    pool = {} if rows is ROWS else {"pool": "patches" if "fc_norm.weight" in tensors else "class"}
    return {**vision.sizes(tensors, rows), **pool, "classes": None if head is None else len(head)}


def build(model: ViT, published: Published, tensors: Tensors) -> None:
    """The parts that a file has: those it lacks are None."""
    if "pooler.dense.weight" in tensors:
        model.pooler = nn.Linear(model.config.dim, model.config.dim)
    names = published.get("id2label") or published.get("label_names")  # in timm's words
    if isinstance(model.head, Classify) and names:
        named = published_labels(dict(enumerate(names)) if isinstance(names, list) else names, 0)
        if len(named) != model.config.classes:
            raise ValueError(f"config.json names {len(named)} classes, and the head has {model.config.classes}.")
        model.head.labels = tuple(named)  # two of ImageNet's have one name: crane


def labels(model: ViT) -> Sequence[str]:
    """Of the head; none without one. ValueError for a head that the published models do not have."""
    if not (model.head is None or (isinstance(model.head, Classify) and model.head.pool == model.pool)):
        raise ValueError("The published layout has no such head: expected Classify with pool=model.pool.")
    return getattr(model.head, "labels", ())


def describe(model: ViT) -> dict[str, Any]:
    """What config.json says of the head."""
    kind = "ViTModel" if model.head is None else "ViTForImageClassification"
    return {**label_names(labels(model)), "architectures": [kind]}


def describe_timm(model: ViT) -> dict[str, Any]:
    known = [*labels(model)]
    named = known if known != published_labels(None, len(known)) else None
    return {**vision.describe_timm(model.published, model.config, len(known)), "label_names": named}


# timm's models and facebook's files by their names. Others take config=.
TIMM = {
    name: replace(SIZES[size], patch=patch, image=image) for name, (size, patch, image) in vision.TIMM_MODELS.items()
}
DEIT = {name: TIMM[name.partition("-")[0]] for name in vision.DEIT_FILES}
MAE_SIZES = {"base": SIZES["base"], "large": SIZES["large"], "huge": replace(SIZES["huge"], patch=14)}
FINETUNED = {f"mae_finetuned_vit_{size}": replace(config, pool="patches") for size, config in MAE_SIZES.items()}
PRETRAINED = {name: replace(MAE_SIZES[size], classes=None) for name, size in vision.MAE_FILES.items()}


def prepare(published: Published, config: ViTConfig, name: str) -> Preprocess | None:
    """As timm's config.json says; of facebook's files, as their evaluation does."""
    if published:
        return Preprocess.read_timm(vision.inputs(published))
    known = {**DEIT, **FINETUNED, **PRETRAINED}
    return vision.prepared(vision.FACEBOOK)(published, config, name) if name in known else None


CLASS, SIGNATURE = "embeddings.cls_token", "patch_embed.proj.weight"
of_transformers = partial(
    Layout, prefix="vit.", outside=("classifier.", "decoder."), build=build, describe=describe,
    infer=partial(infer, rows=ROWS),
)  # fmt: skip
of_timm = partial(
    Layout, read=partial(vision.read_timm, known=TIMM), preprocess=prepare, build=build, describe=describe_timm,
    write=lambda config: {"num_classes": config.classes or 0, "global_pool": vision.POOLS[config.pool]},
    infer=partial(infer, rows=OF_TIMM),
)  # fmt: skip
encoder = partial(
    of_transformers, rows=WITH_DECODER, read=read_encoder, write=write, asked=True,
    preprocess=vision.prepared(vision.HUGGING_FACE_MAE),
)  # fmt: skip
ViT.layouts = (
    of_transformers(
        "vit", ROWS, read, write, CLASS, without=("decoder.mask_token",), holds=lambda config: config.pool == "class",
        preprocess=vision.prepared(vision.HUGGING_FACE_VIT),
    ),
    of_transformers(OWN, ROWS, read, write, ""),
    of_timm(
        "timm", OF_TIMM, signature=SIGNATURE, without=("mask_token", "fc_norm.weight"), names=DEIT,
        holds=lambda config: config.pool == "class",
    ),
    of_timm(
        "timm-mean", OF_TIMM_MEAN, signature="fc_norm.weight", names=FINETUNED,
        holds=lambda config: config.pool == "patches",
    ),
    encoder("vit_mae", signature="decoder.mask_token"),
    encoder("scratchformers-mae", signature=""),
    of_timm("mae", OF_FACEBOOK, signature="mask_token", asked=True, names=PRETRAINED),
)  # fmt: skip
