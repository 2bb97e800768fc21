"""GPT-2 (Radford et al. 2019): a decoder that reads left to right, norms before each block, one last norm after.

GELU by its tanh approximation, eps 1e-5, learned positions, and the token table used again to score the next token.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from scratchformers.cache import Cache, StaticCache, last, place
from scratchformers.checkpoints.pretrained import Config, Pretrained
from scratchformers.checkpoints.tables import BY_COLUMN, PARTED, TRANSPOSED, TURNED, Layout, Row
from scratchformers.nn import MLP, Attention, Block, Unembed, clear_padding, gelu_tanh
from scratchformers.ragged import layer, unpadded
from scratchformers.text import byte_level_bpe


@dataclass(frozen=True)
class GPT2Config(Config):
    vocab: int = 50257
    length: int = 1024
    dim: int = 768
    depth: int = 12
    heads: int = 12
    dropout: float = 0.1
    hidden: int | None = None  # width of the MLP: 4 * dim


PRESETS = {
    "gpt2": GPT2Config(),
    "gpt2-medium": GPT2Config(dim=1024, depth=24, heads=16),
    "gpt2-large": GPT2Config(dim=1280, depth=36, heads=20),
    "gpt2-xl": GPT2Config(dim=1600, depth=48, heads=25),
    "distilgpt2": GPT2Config(depth=6),
    # For characters on two cores: a minute of training, some minutes, hours.
    "tiny": GPT2Config(vocab=256, length=96, dim=192, depth=2, heads=6, dropout=0.0),
    "mini": GPT2Config(vocab=256, length=128, dim=256, depth=4, heads=8, dropout=0.1),
    "small": GPT2Config(vocab=256, length=256, dim=384, depth=6, heads=6, dropout=0.2),
}


class GPT2(Pretrained):
    """ids (b, t) to scores of the next token (b, t, vocab)."""

    config: GPT2Config
    config_class = GPT2Config
    presets = PRESETS

    def __init__(self, config: GPT2Config):
        super().__init__(config)
        dim, dropout, hidden = config.dim, config.dropout, config.hidden or 4 * config.dim
        self.token = nn.Embedding(config.vocab, dim)
        self.position = nn.Embedding(config.length, dim)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(
                dim, Attention(dim, config.heads, dropout), MLP(dim, hidden, gelu_tanh), nn.LayerNorm, dropout=dropout
            )
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.unembed = Unembed(self.token)
        self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """Normal of 0.02, and less where 2 * depth branches add up in the residual (section 2.3 of the paper)."""
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                ends_branch = name.endswith(("attention.out.weight", "mlp.down.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * self.config.depth) ** 0.5 if ends_branch else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def encode(
        self, ids: Int[Tensor, "b t"], *, keep: Bool[Tensor, "b t"] | None = None, cache: Cache | None = None
    ) -> Float[Tensor, "b t d"]:
        """Hidden states after the last norm, 0 at padding. `keep` is True at real tokens of the ids passed now."""
        first = cache is None or cache.empty
        position, mask = place(ids, keep, cache, length=self.config.length)
        x = self.dropout(self.token(ids) + self.position(position))
        rows = unpadded(keep, first=first, causal=True)
        x = x if rows is None else rows.pack(x)
        for i, block in enumerate(self.blocks):
            x = block(x, rows or mask, cache=layer(cache, i, rows))
        x = self.norm(x)
        return clear_padding(x, keep) if rows is None else rows.unpack(x)

    def forward(
        self, ids: Int[Tensor, "b t"], *, keep: Bool[Tensor, "b t"] | None = None, cache: Cache | None = None
    ) -> Float[Tensor, "b t vocab"]:
        """Scores of the next token at every place. Raises ValueError if the tokens do not fit `config.length`."""
        return self.unembed(self.encode(ids, keep=keep, cache=cache))

    # The decoding seam: what `generate` asks of any model that writes.

    def new_cache(self, batch: int, length: int | None = None) -> Cache:
        """It grows, or has room for `length` columns from the start, which is what a compiled step needs."""
        return Cache(batch, self.config.depth) if length is None else StaticCache(batch, self.config.depth, length)

    def start(self, ids: Tensor, keep: Tensor | None):
        """The ids to begin with, their keep, and the function that scores what follows."""
        return ids, keep, self.step

    def step(self, ids: Tensor, keep: Tensor | None, cache: Cache) -> Float[Tensor, "b vocab"]:
        return self.unembed(last(self.encode(ids, keep=keep, cache=cache), keep))[:, 0]


ROWS: list[Row] = [
    ("wte", "token", BY_COLUMN),
    ("wpe", "position"),
    ("h.*.ln_1", "blocks.*.attention_norm"),
    ("h.*.attn.c_attn", ("blocks.*.attention.q", "blocks.*.attention.kv"), PARTED),  # "Conv1D" stores (in, out)
    ("h.*.attn.c_proj", "blocks.*.attention.out", TRANSPOSED),
    ("h.*.ln_2", "blocks.*.mlp_norm"),
    ("h.*.mlp.c_fc", "blocks.*.mlp.up", TRANSPOSED),
    ("h.*.mlp.c_proj", "blocks.*.mlp.down", TURNED),
    ("ln_f", "norm"),
    ("lm_head", "token", BY_COLUMN),  # tied: the same numbers under another name
    ("h.*.attn.bias", None),  # the causal mask, which older files keep
    ("h.*.attn.masked_bias", None),  # the -10000 that went with it
]

# What would change the mathematics of this page, and the only values it is written for.
FIXED = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
}
NAMES = {
    "vocab": "vocab_size",
    "length": "n_positions",
    "dim": "n_embd",
    "depth": "n_layer",
    "heads": "n_head",
}  # and hidden is n_inner


def read(published: Mapping[str, Any]) -> GPT2Config:
    """config.json of transformers to ours. Raises ValueError where it asks for another model than this page's."""
    if missing := [name for name in NAMES.values() if name not in published]:
        raise ValueError(f"config.json does not say {', '.join(missing)}.")
    sizes = {ours: published[theirs] for ours, theirs in NAMES.items()}
    config = GPT2Config(**sizes, dropout=published.get("resid_pdrop", 0.1), hidden=published.get("n_inner"))
    for name, values in FIXED.items():
        if published.get(name, values[0]) not in values:
            raise ValueError(f"config.json says {name} {published[name]!r}: this GPT-2 is written for {values[0]!r}.")
    return config


def write(config: GPT2Config) -> dict[str, Any]:
    sizes = {theirs: getattr(config, ours) for ours, theirs in NAMES.items()}
    dropouts = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), config.dropout)
    inner = {"n_inner": config.hidden}
    return {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], **sizes, **inner, **dropouts}


GPT2.layouts = (
    Layout("gpt2", ROWS, read, write, signature="wte.weight", prefix="transformer.", tokenizer=byte_level_bpe),
)
