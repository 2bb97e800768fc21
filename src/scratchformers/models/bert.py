"""BERT (Devlin et al. 2019): an encoder in which every token sees every other, norms after each block.

GELU by the error function, eps 1e-12, learned positions and segments. It learns to say what stood where it is hidden.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from scratchformers.cache import begin
from scratchformers.checkpoints.pretrained import Config, Pretrained
from scratchformers.checkpoints.tables import Layout, Row
from scratchformers.heads import Classify, Keep, TokenClassify, first, label_names, published_labels
from scratchformers.nn import MLP, Attention, Block, Unembed, clear_padding, gelu, padding_mask
from scratchformers.ragged import unpadded
from scratchformers.text import wordpiece

Ids = Int[Tensor, "b t"]


@dataclass(frozen=True)
class BERTConfig(Config):
    vocab: int = 30522
    length: int = 512
    segments: int = 2
    dim: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int | None = None  # width of the MLP: 4 * dim
    dropout: float = 0.1
    eps: float = 1e-12


PRESETS = {
    "base": BERTConfig(),
    "base-cased": BERTConfig(vocab=28996),
    "large": BERTConfig(dim=1024, depth=24, heads=16),
    "large-cased": BERTConfig(vocab=28996, dim=1024, depth=24, heads=16),
    "medium": BERTConfig(dim=512, depth=8, heads=8),
    "small": BERTConfig(dim=512, depth=4, heads=8),
    "mini": BERTConfig(dim=256, depth=4, heads=4),
    "tiny": BERTConfig(dim=128, depth=2, heads=2),
    "minilm": BERTConfig(dim=384, depth=6),
    "simple": BERTConfig(length=128, segments=1, dim=256, depth=4, heads=8),  # of text alone: no [CLS], no [SEP]
}


class MaskedLM(nn.Module):
    """Scores of all tokens at every place, by the embedding's own table and a bias."""

    def __init__(self, token: nn.Embedding, norm: Any):
        super().__init__()
        vocab, dim = token.weight.shape
        self.dense, self.norm, self.unembed = nn.Linear(dim, dim), norm(dim), Unembed(token)
        self.bias = nn.Parameter(torch.zeros(vocab))

    def forward(self, x: Float[Tensor, "b t d"], keep: Keep = None) -> Float[Tensor, "b t vocab"]:
        return self.unembed(self.norm(gelu(self.dense(x))), self.bias)


class BERT(Pretrained):
    """ids (b, t) to scores of the token at every place (b, t, vocab), or to what another `head` makes of the states."""

    config: BERTConfig
    config_class = BERTConfig
    presets = PRESETS

    def __init__(self, config: BERTConfig):
        super().__init__(config)
        dim, heads, hidden, dropout = config.dim, config.heads, config.hidden or 4 * config.dim, config.dropout
        norm, self.dropout = partial(nn.LayerNorm, eps=config.eps), nn.Dropout(dropout)
        self.token, self.position = nn.Embedding(config.vocab, dim), nn.Embedding(config.length, dim)
        self.segment, self.embedding_norm = nn.Embedding(config.segments, dim), norm(dim)
        self.blocks = nn.ModuleList(
            Block(dim, Attention(dim, heads, dropout), MLP(dim, hidden, gelu), norm, pre_norm=False, dropout=dropout)
            for _ in range(config.depth)
        )
        self.head: nn.Module | None = MaskedLM(self.token, norm)
        self.pooler: nn.Linear | None = None  # published files have it, for what is said of a whole text
        self.next_sentence: nn.Linear | None = None  # and most this, of what `pool` gives: does B follow A?
        self.initialise()

    def initialise(self) -> None:
        """Wider, the narrower the model, than the paper's 0.02: else attention cannot tell tokens apart at first."""
        for name, parameter in self.named_parameters():
            if "norm" not in name:
                std = 0.05 if name.count(".") == 1 else self.config.dim**-0.5  # of a table, of a linear
                nn.init.zeros_(parameter) if name.endswith("bias") else nn.init.normal_(parameter, std=std)

    def encode(self, ids: Ids, *, segments: Ids | None = None, keep: Keep = None) -> Float[Tensor, "b t d"]:
        """The states of all tokens, 0 at padding. `segments` (b, t), by default 0, tells the texts of a pair apart."""
        segments = torch.zeros_like(ids) if segments is None else segments
        if segments.shape != ids.shape:
            raise ValueError(f"segments are of shape {list(segments.shape)}: expected that of ids, {list(ids.shape)}.")
        given = ids, begin(ids, keep, length=self.config.length), segments
        rows = unpadded(keep, first=True, causal=False)
        token, position, segment = given if rows is None else map(rows.pack, given)
        x = self.dropout(self.embedding_norm(self.token(token) + self.position(position) + self.segment(segment)))
        for block in self.blocks:
            x = block(x, rows or padding_mask(keep))
        return clear_padding(x, keep) if rows is None else rows.unpack(x)

    def pool(self, x: Float[Tensor, "b t d"], keep: Keep = None) -> Float[Tensor, "b d"]:
        """One vector for a whole text, from its first token. ValueError where there is no `pooler`."""
        if self.pooler is None:
            raise ValueError("This BERT has no pooler: set model.pooler = nn.Linear(dim, dim), or pool by sf.mean.")
        return self.pooler(first(x, keep)).tanh()

    def forward(self, ids: Ids, *, segments: Ids | None = None, keep: Keep = None) -> Tensor:
        """What the head says of the states. ValueError if there is no head, or more tokens than `config.length`."""
        if self.head is None:
            raise ValueError("This BERT has no head, so it scores nothing: call encode, or set model.head.")
        return self.head(self.encode(ids, segments=segments, keep=keep), keep)


ROWS: list[Row] = [
    ("embeddings.word_embeddings", "token"),
    ("embeddings.position_embeddings", "position"),
    ("embeddings.token_type_embeddings", "segment"),
    ("encoder.layer.*.attention.self.query", "blocks.*.attention.q"),
    (("encoder.layer.*.attention.self.key", "encoder.layer.*.attention.self.value"), "blocks.*.attention.kv"),
    ("encoder.layer.*.attention.output.dense", "blocks.*.attention.out"),
    ("encoder.layer.*.intermediate.dense", "blocks.*.mlp.up"),
    ("encoder.layer.*.output.dense", "blocks.*.mlp.down"),
    ("embeddings.LayerNorm", "embedding_norm"),
    ("encoder.layer.*.attention.output.LayerNorm", "blocks.*.attention_norm"),
    ("encoder.layer.*.output.LayerNorm", "blocks.*.mlp_norm"),
    ("cls.predictions.transform.LayerNorm", "head.norm"),
    ("pooler.dense", "pooler"),
    ("cls.seq_relationship", "next_sentence"),
    ("cls.predictions.transform.dense", "head.dense"),
    ("cls.predictions.bias", "head.bias"),
    ("cls.predictions.decoder.bias", "head.bias"),  # the same once more
    ("cls.predictions.decoder.weight", "token.weight"),  # tied
    ("classifier", "head.out"),
    ("embeddings.position_ids", None),  # 0, 1, 2, ...: a buffer that older files keep
]
OLD = {"weight": "gamma", "bias": "beta"}  # TensorFlow's names of a norm's parts, which the first files have
ROWS += [(f"{row[0]}.{OLD[end]}", f"{row[1]}.{end}") for row in ROWS if "LayerNorm" in str(row[0]) for end in OLD]

# What would change the mathematics of this page, and the only values it is written for.
FIXED = {
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}
NAMES = {
    "vocab": "vocab_size",
    "length": "max_position_embeddings",
    "segments": "type_vocab_size",
    "dim": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "hidden": "intermediate_size",
}


def read(published: Mapping[str, Any]) -> BERTConfig:
    """config.json of transformers to ours. Raises ValueError where it asks for another model than this page's."""
    if missing := [name for name in NAMES.values() if name not in published]:
        raise ValueError(f"config.json does not say {', '.join(missing)}.")
    for name, value in FIXED.items():
        if published.get(name, value) != value:
            raise ValueError(f"config.json says {name} {published[name]!r}: this BERT is written for {value!r}.")
    rest = {"dropout": published.get("hidden_dropout_prob", 0.1), "eps": published.get("layer_norm_eps", 1e-12)}
    return BERTConfig(**{ours: published[theirs] for ours, theirs in NAMES.items()}, **rest)


def write(config: BERTConfig) -> dict[str, Any]:
    sizes = {theirs: getattr(config, ours) for ours, theirs in NAMES.items()}
    sizes["intermediate_size"] = config.hidden or 4 * config.dim
    dropouts = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), config.dropout)
    return {"model_type": "bert", **sizes, **dropouts, "layer_norm_eps": config.eps, "hidden_act": "gelu"}


def build(model: BERT, published: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """The parts that a file has: those it lacks are None."""
    dim = model.config.dim
    for part, name, size in (("pooler", "pooler.dense", dim), ("next_sentence", "cls.seq_relationship", 2)):
        if f"{name}.weight" in tensors:
            setattr(model, part, nn.Linear(dim, size))
    if "classifier.weight" in tensors:
        labels = published_labels(published.get("id2label"), len(tensors["classifier.weight"]))
        said = str(published.get("architectures") or "ForToken" * (model.pooler is None))
        kind = TokenClassify if "ForToken" in said else partial(Classify, pool=model.pool)
        rate = published.get("classifier_dropout")
        model.head = kind(dim, labels, dropout=model.config.dropout if rate is None else rate)
    elif not any(key.startswith("cls.predictions.") for key in tensors):
        model.head = None


KINDS: dict[type, str] = {
    type(None): "BertModel",
    MaskedLM: "BertForMaskedLM",
    Classify: "BertForSequenceClassification",
    TokenClassify: "BertForTokenClassification",
}
WITH_NEXT_SENTENCE = {"BertModel": "BertForNextSentencePrediction", "BertForMaskedLM": "BertForPreTraining"}


def describe(model: BERT) -> dict[str, Any]:
    """What config.json says of the parts. ValueError for a head that transformers' BERT does not have."""
    kind = KINDS.get(type(model.head))
    own = model.pool if model.pooler is not None else None  # how the published layout makes one vector of a text
    if kind is None or (isinstance(model.head, Classify) and model.head.pool != own):
        raise ValueError("The published layout has no such head: expected Classify with pool=model.pool, and a pooler.")
    kind = kind if model.next_sentence is None else WITH_NEXT_SENTENCE.get(kind, kind)
    names = label_names(getattr(model.head, "labels", ()))
    rate = getattr(getattr(model.head, "dropout", None), "p", model.config.dropout)
    return {"architectures": [kind], **names, "classifier_dropout": None if rate == model.config.dropout else rate}


BERT.layouts = (
    Layout(
        "bert", ROWS, read, write, signature="embeddings.word_embeddings.weight", prefix="bert.",
        tokenizer=wordpiece, vocabulary=("vocab.txt",), outside=("cls.", "classifier."), build=build, describe=describe,
    ),
)  # fmt: skip
