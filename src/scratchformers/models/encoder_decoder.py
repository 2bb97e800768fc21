"""The encoder-decoder Transformer (Vaswani et al. 2017): one half reads a source, the other, looking at what the first
made of it in the end, writes a target. BART, mBART and Marian are this model, with other norms and other positions."""

from dataclasses import dataclass
from functools import partial
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from scratchformers.cache import Cache, StaticCache, begin, last, place
from scratchformers.checkpoints import files, seq2seq
from scratchformers.checkpoints.pretrained import Config, Pretrained
from scratchformers.checkpoints.tables import BY_COLUMN, Layout, Row
from scratchformers.heads import Keep
from scratchformers.nn import ACTIVATIONS, MLP, Attention, Block, Unembed, clear_padding, padding_mask, sinusoids
from scratchformers.ragged import layer, unpadded
from scratchformers.sentence_pieces import marian, mbart
from scratchformers.source import Source, Step
from scratchformers.text import bart_bpe

Ids = Int[Tensor, "b t"]


@dataclass(frozen=True)
class EncoderDecoderConfig(Config):
    vocab: int = 8000
    target_vocab: int | None = None  # None: source and target share one vocabulary and its table
    length: int = 256  # of a source, and of a target, at most
    dim: int = 256
    depth: int = 4
    heads: int = 8
    hidden: int | None = None  # width of the MLP: 4 * dim
    decoder_depth: int | None = None  # what is None here is as in the encoder
    decoder_heads: int | None = None
    decoder_hidden: int | None = None
    dropout: float = 0.1
    eps: float = 1e-5
    activation: str = "gelu"
    positions: str = "learned"  # or sinusoids, which are computed
    scale_embedding: bool = False  # tokens' vectors times the square root of dim
    embedding_norm: bool = False  # before the blocks
    pre_norm: bool = True  # else norms come after each part of a block
    final_norm: bool = True  # after the blocks


PRESETS = {name: EncoderDecoderConfig(**sizes) for name, sizes in seq2seq.SIZES.items()}  # published, then small ones


class Half(nn.Module):
    """The encoder or, with `cross`, the decoder: tokens in their places, blocks, and the norms around these."""

    def __init__(self, config: EncoderDecoderConfig, depth: int, heads: int, hidden: int, cross: bool):
        super().__init__()
        dim, rate, norm = config.dim, config.dropout, partial(nn.LayerNorm, eps=config.eps)
        attn, mlp = partial(Attention, dim, heads, rate), partial(MLP, dim, hidden, ACTIVATIONS[config.activation])
        block = partial(Block, dim, norm=norm, pre_norm=config.pre_norm, dropout=rate)
        self.scale, self.dropout = dim**0.5 if config.scale_embedding else 1.0, nn.Dropout(rate)
        learned, norms = config.positions == "learned", (config.embedding_norm, config.final_norm)
        self.position = nn.Embedding(config.length, dim) if learned else partial(sinusoids, dim=dim)
        self.embedding_norm, self.norm = (norm(dim) if wanted else nn.Identity() for wanted in norms)
        self.blocks = nn.ModuleList(block(attn(), mlp(), cross=attn() if cross else None) for _ in range(depth))

    def forward(self, x, position, mask, keep, *, first=True, cache=None, source=None) -> Float[Tensor, "b t d"]:
        """Of tokens' vectors, which `first` says nothing precedes; the decoder reads `source`. 0 at padding."""
        batch, rows = len(x), unpadded(keep, first=first, causal=source is not None)
        x = self.scale * x + self.position(position).to(x.dtype)
        x = self.dropout(self.embedding_norm(x if rows is None else rows.pack(x)))
        for i, block in enumerate(self.blocks):
            x = block(x, rows or mask, cache=layer(cache, i, rows), **(source.block(i, batch, rows) if source else {}))
        return clear_padding(self.norm(x), keep) if rows is None else rows.unpack(self.norm(x))


class EncoderDecoder(Pretrained):
    """Source ids (b, s) and target ids (b, t) to scores of the target's next token (b, t, vocab of the target)."""

    config: EncoderDecoderConfig
    config_class, presets, first_id = EncoderDecoderConfig, PRESETS, "decoder_start_token_id"

    def __init__(self, config: EncoderDecoderConfig):
        super().__init__(config)
        tables = {name: nn.Embedding(size, config.dim) for name, size in seq2seq.vocabularies(config).items()}
        self.tokens, self.unembed = nn.ModuleDict(tables), Unembed([*tables.values()][-1])
        self.encoder, self.decoder = (Half(config, *sizes) for sizes in seq2seq.halves(config))
        self.bias: nn.Parameter | None = None  # of the scores: published files have it
        seq2seq.initialise(self)

    def encode(self, source: Ids, *, keep: Keep = None) -> Float[Tensor, "b t d"]:
        """The states of a source, 0 at padding. ValueError for more tokens than `config.length`."""
        position, (token, *_) = begin(source, keep, length=self.config.length), self.tokens.values()
        return self.encoder(token(source), position, padding_mask(keep), keep)

    def read(self, source: Ids, keep: Keep = None) -> Source:
        """What `decode` is to know of a source, computed once: keys and values for each of its blocks."""
        return Source.read(self.decoder.blocks, self.encode(source, keep=keep), keep)

    def decode(self, target: Ids, source: Source, *, keep: Keep = None, cache: Cache | None = None) -> Tensor:
        """The states (b, t, d) of a target, 0 at padding; its rows may be n times the source's, n in turn for each."""
        first, (*_, token) = cache is None or cache.empty, self.tokens.values()
        position, mask = place(target, keep, cache, length=self.config.length)
        return self.decoder(token(target), position, mask, keep, first=first, cache=cache, source=source)

    def score(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t vocab"]:
        return self.unembed(x, self.bias)

    def forward(self, source: Ids, target: Int[Tensor, "b u"], *, source_keep=None, target_keep=None) -> Tensor:
        """Scores of what follows each token of the target. ValueError for more tokens than `config.length`."""
        return self.score(self.decode(target, self.read(source, source_keep), keep=target_keep))

    def new_cache(self, batch: int, length: int | None = None) -> Cache:
        return (Cache if length is None else partial(StaticCache, room=length))(batch, len(self.decoder.blocks))

    def start(self, ids: Ids, keep: Keep) -> tuple[Tensor, None, Step]:
        """The target's first ids, and the function that scores what follows, for which the source is read once."""
        return seq2seq.first_ids(self.generation, ids), None, Step(self.step, self.read(ids, keep))

    def step(self, ids: Ids, keep: Keep, cache: Cache, source: Source) -> Float[Tensor, "b vocab"]:
        return self.score(last(self.decode(ids, source, keep=keep, cache=cache), keep))[:, 0]


ROWS: list[Row] = [  # transformers' names, in all of these files
    ("shared", "tokens.shared", BY_COLUMN),
    ("encoder.embed_tokens", "tokens.source"),
    ("decoder.embed_tokens", "tokens.target", BY_COLUMN),
    ("encoder.embed_tokens", "tokens.shared", BY_COLUMN),  # the same once more, and so are those
    ("decoder.embed_tokens", "tokens.shared", BY_COLUMN),
    ("lm_head", "tokens.shared", BY_COLUMN),
    ("lm_head", "tokens.target", BY_COLUMN),
    ("final_logits_bias", "bias", seq2seq.ROW),
    *seq2seq.half("encoder"),
    *seq2seq.half("decoder"),
    ("decoder.layers.*.encoder_attn.q_proj", "decoder.blocks.*.cross.q"),
    (("decoder.layers.*.encoder_attn.k_proj", "decoder.layers.*.encoder_attn.v_proj"), "decoder.blocks.*.cross.kv"),
    ("decoder.layers.*.encoder_attn.out_proj", "decoder.blocks.*.cross.out"),
    ("decoder.layers.*.encoder_attn_layer_norm", "decoder.blocks.*.cross_norm"),
    # Sinusoids, which older files hold: `build` sees that they are.
    (("encoder.embed_positions.weight", "decoder.embed_positions.weight"), None),
]
# Which files make a tokeniser, and of what kind.
TOKENIZERS: dict[str, dict[str, Any]] = {
    "bart": {"tokenizer": bart_bpe},
    "marian": {"tokenizer": marian, "vocabulary": files.MARIAN, "respelt": True},
    "mbart": {"tokenizer": mbart, "vocabulary": files.MBART, "respelt": True},
}
EncoderDecoder.layouts = tuple(
    Layout(
        kind, ROWS, partial(seq2seq.read, EncoderDecoderConfig), partial(seq2seq.write, kind), signature,
        without=without, prefix="model.", outside=("final_logits_bias", "lm_head."), build=seq2seq.build,
        holds=partial(seq2seq.holds, kind), describe=partial(seq2seq.describe, kind),
        infer=partial(seq2seq.tell, kind),
        **TOKENIZERS.get(kind, {}),
    )
    for kind, (signature, without) in seq2seq.KINDS.items()
)  # fmt: skip
