"""What the published encoder-decoders are, BART, mBART and Marian: their sizes by name, the names of their blocks, what
their files say of themselves."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from scratchformers.checkpoints.pretrained import Generation
from scratchformers.checkpoints.tables import How, Row
from scratchformers.checkpoints.vision import layers
from scratchformers.nn import ACTIVATIONS, sinusoids

# How norms stand and places are told: what makes a kind of published file; and the only values it is written for.
NORMS: dict[str, dict[str, Any]] = {
    "bart": {"positions": "learned", "embedding_norm": True, "pre_norm": False, "final_norm": False},
    "mbart": {"positions": "learned", "embedding_norm": True, "pre_norm": True, "final_norm": True},
    "marian": {"positions": "sinusoids", "embedding_norm": False, "pre_norm": False, "final_norm": False},
}
EPS = 1e-5  # of all that is published
OWN = "scratchformers-encoder-decoder"  # what none of them can express
# The kinds of file; a tensor that tells them where no config.json does, and those that another kind has.
KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "bart": ("encoder.layernorm_embedding.weight", ("encoder.layer_norm.weight",)),
    "mbart": ("encoder.layer_norm.weight", ()),
    "marian": ("encoder.layers.0.fc1.weight", ("encoder.layernorm_embedding.weight",)),
    OWN: ("", ()),
}
_BASE = {"vocab": 50265, "length": 1024, "dim": 768, "depth": 6, "heads": 12, **NORMS["bart"]}
_LARGE = {"dim": 1024, "depth": 12, "heads": 16}
_OPUS = {"vocab": 58101, "length": 512, "dim": 512, "depth": 6, "heads": 8, "activation": "silu"}
# The small ones: a minute of training on two cores, some minutes, hours.
SIZES: dict[str, dict[str, Any]] = {
    "bart-base": _BASE,
    "bart-large": {**_BASE, **_LARGE},
    "mbart-large": {**_BASE, **_LARGE, "vocab": 250027, "scale_embedding": True, **NORMS["mbart"]},
    "opus-mt": {**_OPUS, "scale_embedding": True, **NORMS["marian"]},
    "tiny": {"vocab": 512, "length": 64, "dim": 128, "depth": 2, "heads": 4, "dropout": 0.0},
    "mini": {"vocab": 2000, "length": 128, "dim": 192, "depth": 3, "heads": 6},
    "small": {},
}


def vocabularies(config: Any) -> dict[str, int]:
    """How many tokens the tables have, by whose they are; scores of the target are by the last."""
    own = {"source": config.vocab, "target": config.target_vocab}
    return own if config.target_vocab else {"shared": config.vocab}


def halves(config: Any) -> tuple[tuple[int, int, int, bool], ...]:
    """Of the encoder, then of the decoder: depth, heads, width of the MLP, whether it reads the other."""
    sizes = config.depth, config.heads, config.hidden or 4 * config.dim
    own = config.decoder_depth, config.decoder_heads, config.decoder_hidden
    return (*sizes, False), (*(mine or there for mine, there in zip(own, sizes)), True)


@torch.no_grad()
def initialise(model: Any) -> None:
    """Linears of 1/sqrt(dim), tables of 0.05, those of tokens of 1/sqrt(dim) where their vectors are scaled."""
    config = model.config
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            table = 0.05 if "position" in name or not config.scale_embedding else config.dim**-0.5
            nn.init.normal_(parameter, std=config.dim**-0.5 if ".blocks." in name else table)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


def first_ids(generation: Generation, ids: Tensor) -> Tensor:
    """What each target begins with (b, 1). ValueError where the checkpoint does not say it."""
    if generation.start is None:
        raise ValueError(
            "This model does not say which id a target begins with: set it by "
            "model.generation = dataclasses.replace(model.generation, start=...)."
        )
    return ids.new_full((len(ids), 1), generation.start)


# --- names

ROW = How(lambda x: x[0], lambda x, _: x[None])  # (1, vocab) in the files
# Two rows come first that no position reads: of old, places were counted on from the padding's id.
FROM_2 = How(lambda x: x[2:], lambda x, _: torch.cat([x.new_zeros(2, *x.shape[1:]), x]))


def half(name: str) -> list[Row]:
    """transformers' names of the encoder or the decoder, without what reads the other's states."""
    theirs, ours = f"{name}.layers.*", f"{name}.blocks.*"
    return [
        (f"{name}.embed_positions", f"{name}.position", FROM_2),
        (f"{name}.layernorm_embedding", f"{name}.embedding_norm"),
        (f"{theirs}.self_attn.q_proj", f"{ours}.attention.q"),
        ((f"{theirs}.self_attn.k_proj", f"{theirs}.self_attn.v_proj"), f"{ours}.attention.kv"),
        (f"{theirs}.self_attn.out_proj", f"{ours}.attention.out"),
        (f"{theirs}.self_attn_layer_norm", f"{ours}.attention_norm"),
        (f"{theirs}.fc1", f"{ours}.mlp.up"),
        (f"{theirs}.fc2", f"{ours}.mlp.down"),
        (f"{theirs}.final_layer_norm", f"{ours}.mlp_norm"),  # of the layer: that of the half is the next
        (f"{name}.layer_norm", f"{name}.norm"),
    ]


# --- config.json

NAMES = {
    "vocab": "vocab_size",
    "length": "max_position_embeddings",
    "dim": "d_model",
    "depth": "encoder_layers",
    "heads": "encoder_attention_heads",
    "hidden": "encoder_ffn_dim",
    "decoder_depth": "decoder_layers",
    "decoder_heads": "decoder_attention_heads",
    "decoder_hidden": "decoder_ffn_dim",
}
# What older files say of the norms and places, in their words, and what else would change the mathematics.
SAID = {
    "pre_norm": "normalize_before",
    "embedding_norm": "normalize_embedding",
    "final_norm": "add_final_layer_norm",
}
FIXED = {"is_encoder_decoder": True, "is_decoder": False}
WRITERS = {
    "bart": "BartForConditionalGeneration",
    "mbart": "MBartForConditionalGeneration",
    "marian": "MarianMTModel",
    OWN: "EncoderDecoder",
}
OTHERS = ("ForSequenceClassification", "ForQuestionAnswering", "ForCausalLM")
RENAMED = {"swish": "silu"}


def read(make: Callable[..., Any], published: Mapping[str, Any]) -> Any:
    """config.json of transformers, or ours, to a config. ValueError where it asks for another model than this."""
    kind = published.get("model_type", "bart")
    if missing := [name for name in NAMES.values() if name not in published]:
        raise ValueError(f"config.json does not say {', '.join(missing)}.")
    for what in published.get("architectures") or ():
        if str(what).endswith(OTHERS):
            raise ValueError(f"config.json says architectures {what!r}: only models that write are read here.")
    own = NORMS.get(kind) or published.get("scratchformers")
    if not isinstance(own, Mapping):
        raise ValueError(f"config.json says scratchformers {own!r}: expected where norms stand and places come from.")
    own = {name: value for name, value in own.items() if name != "tokenizer"}  # whose digest it is
    fixed = FIXED | {theirs: own[ours] for ours, theirs in SAID.items() if kind != OWN}
    for name, value in fixed.items():
        if published.get(name, value) != value:
            raise ValueError(f"config.json says {name} {published[name]!r}: a {kind} is read with {value!r} alone.")
    activation = published.get("activation_function", "gelu")
    activation = RENAMED.get(activation, activation)
    if activation not in ACTIVATIONS:
        known = ", ".join([*ACTIVATIONS, *RENAMED])
        raise ValueError(f"config.json says activation_function {activation!r}: expected one of {known}.")
    shared = published.get("share_encoder_decoder_embeddings", True)
    return make(
        **{ours: published[theirs] for ours, theirs in NAMES.items()},
        target_vocab=None if shared else published.get("decoder_vocab_size") or published["vocab_size"],
        dropout=published.get("dropout", 0.1),
        activation=activation,
        scale_embedding=published.get("scale_embedding", False),
        **own,
    )


def write(kind: str, config: Any) -> dict[str, Any]:
    (depth, heads, hidden, _), (decoder_depth, decoder_heads, decoder_hidden, _) = halves(config)
    said = {
        "model_type": kind,
        "vocab_size": config.vocab,
        "max_position_embeddings": config.length,
        "d_model": config.dim,
        "encoder_layers": depth,
        "encoder_attention_heads": heads,
        "encoder_ffn_dim": hidden,
        "decoder_layers": decoder_depth,
        "decoder_attention_heads": decoder_heads,
        "decoder_ffn_dim": decoder_hidden,
        "dropout": config.dropout,
        "activation_function": config.activation,
        "scale_embedding": config.scale_embedding,
        "is_encoder_decoder": True,
    }
    if kind in ("marian", OWN):
        said["share_encoder_decoder_embeddings"] = config.target_vocab is None
        said["decoder_vocab_size"] = config.target_vocab or config.vocab
    if kind == OWN:
        said["scratchformers"] = own_words(config)
    return said


def own_words(config: Any) -> dict[str, Any]:
    """What of a config only we have words for."""
    return {name: getattr(config, name) for name in (*NORMS["bart"], "eps")}


def holds(kind: str, config: Any) -> bool:
    """Whether a published kind of file can say all that a config says; ours says everything."""
    fixed = {**NORMS.get(kind, {}), **({} if kind == OWN else {"eps": EPS})}
    separate = config.target_vocab is not None and kind in ("bart", "mbart")
    return not separate and all(getattr(config, name) == value for name, value in fixed.items())


def describe(kind: str, model: Any) -> dict[str, Any]:
    """Also that the head is tied: a file that says otherwise is read only where it holds the same numbers."""
    return {"architectures": [WRITERS[kind]], "tie_word_embeddings": True}


def tell(kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields of the config that a file's kind and shapes tell; none where it lacks a part that all have."""
    up, decoder_up = (layers(tensors, f"{name}.layers.*.fc1") for name in ("encoder", "decoder"))
    names = [f"{name}.weight" for name in ("shared", "encoder.embed_tokens", "decoder.embed_tokens", "lm_head")]
    tables, position = (
        [tensors[name] for name in names if name in tensors],
        tensors.get("encoder.embed_positions.weight"),
    )
    if not tables or not up or not decoder_up:
        return {}
    found = {"vocab": len(tables[0]), "dim": tables[0].shape[1], "depth": len(up), "hidden": len(up[0])}
    found |= {"decoder_depth": len(decoder_up), "decoder_hidden": len(decoder_up[0])}
    found |= {"target_vocab": len(tables[-1])} if len(tables[-1]) != len(tables[0]) else {}
    found |= {} if position is None else {"length": len(position) - 2 * (kind != "marian")}
    return found | ({} if kind == OWN else {**NORMS[kind], "eps": EPS})


def build(model: Any, published: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Of the parts that a file has, those it lacks are None. ValueError for places that are no sinusoids."""
    if "final_logits_bias" in tensors:
        model.bias = nn.Parameter(torch.zeros(model.config.target_vocab or model.config.vocab))
    if model.config.positions == "sinusoids":
        for name in ("encoder.embed_positions.weight", "decoder.embed_positions.weight"):
            _check_sinusoids(name, tensors.get(name), model.config)


def _check_sinusoids(name: str, found: Tensor | None, config: Any) -> None:
    if found is None or found.is_meta:
        return
    with torch.device("cpu"):
        expected = sinusoids(torch.arange(config.length), config.dim)
    if found.shape != expected.shape or not torch.allclose(found.float(), expected, atol=1e-3):
        raise ValueError(f"{name} does not hold sinusoids: a Marian is read with these alone.")
