"""BART, Marian and mBART as transformers has them, and torch's own Transformer, on weights that hide nothing. Never
imports our code."""

import numpy as np
import reference  # noqa: F401 (before what imports torchvision)
import torch
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    MBartConfig,
    MBartForConditionalGeneration,
)

# Distinct primes where the architecture allows: a width is heads times a width, and sinusoids need an even one.
SIZES = {
    "vocab_size": 97,
    "max_position_embeddings": 31,
    "d_model": 42,
    "encoder_layers": 2,
    "encoder_attention_heads": 3,
    "encoder_ffn_dim": 59,
    "decoder_layers": 3,
    "decoder_attention_heads": 7,
    "decoder_ffn_dim": 61,
}
START, END, PAD = 89, 83, 79
TOKENS = {"decoder_start_token_id": START, "eos_token_id": END, "pad_token_id": PAD, "forced_eos_token_id": None}
CLASSES = {
    "bart": (BartConfig, BartForConditionalGeneration),
    "mbart": (MBartConfig, MBartForConditionalGeneration),
    "marian": (MarianConfig, MarianMTModel),
}
# What each kind is published with, and what may be otherwise.
KINDS = {
    "bart": ("bart", {"activation_function": "gelu"}),
    "bart, scaled": ("bart", {"activation_function": "relu", "scale_embedding": True}),
    "mbart": ("mbart", {"activation_function": "gelu", "scale_embedding": True}),
    "marian": ("marian", {"activation_function": "swish", "scale_embedding": True, "bos_token_id": None}),
    "marian, two vocabularies": (
        "marian",
        {
            "activation_function": "relu",
            "scale_embedding": True,
            "share_encoder_decoder_embeddings": False,
            "decoder_vocab_size": 101,
            "bos_token_id": None,
        },
    ),
}


def scramble(model, *, std=0.25, seed=0):
    """Every parameter, and the bias of the scores, drawn anew by numpy's frozen generator in the order of the names;
    norms' weights around 1. In float64 and evaluation mode."""
    draw, model = np.random.RandomState(seed), model.double().eval()
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, value in sorted(named.items()):
            if value.requires_grad or name == "final_logits_bias":  # not sinusoids
                values = torch.from_numpy(np.asarray(draw.standard_normal(tuple(value.shape)) * std))
                value.copy_(values + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
    return model


def published(kind, **changes):
    """transformers' model of this kind."""
    name, said = KINDS[kind]
    config, make = CLASSES[name]
    return scramble(make(config(**{**SIZES, **TOKENS, **said, "dropout": 0.0, **changes})))


def torch_transformer(*, pre_norm):
    """torch's, whose halves end in a norm."""
    model = nn.Transformer(
        42, 7, 2, 3, 59, 0.0, activation="gelu", norm_first=pre_norm, batch_first=True, layer_norm_eps=1e-6
    )
    return scramble(model)


def ids(rows, columns, *, seed=1, vocab=79):
    return torch.from_numpy(np.random.RandomState(seed).randint(0, vocab, (rows, columns)))


def ragged(rows, columns, *, seed, left=False):
    """A keep in which every length from 1 occurs, and one row is whole."""
    lengths = np.random.RandomState(seed).randint(1, columns + 1, rows)
    lengths[0], lengths[-1] = 1, columns
    keep = torch.arange(columns)[None] < torch.from_numpy(lengths)[:, None]
    return keep.flip(1) if left else keep


@torch.no_grad()
def alone(model, source, source_keep, target, target_keep):
    """The scores of each pair by itself, without padding, where they belong; 0 elsewhere. And the source's states."""
    scores, states = None, torch.zeros(*source.shape, model.config.d_model, dtype=torch.float64)
    for row in range(len(source)):
        s, t = source[row][source_keep[row]][None], target[row][target_keep[row]][None]
        said = model(input_ids=s, decoder_input_ids=t, attention_mask=torch.ones_like(s))
        scores = torch.zeros(*target.shape, said.logits.shape[-1], dtype=torch.float64) if scores is None else scores
        scores[row, target_keep[row]] = said.logits[0]
        states[row, source_keep[row]] = said.encoder_last_hidden_state[0]
    return scores, states
