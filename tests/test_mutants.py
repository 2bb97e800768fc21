"""The famous bugs, planted one at a time: each must move the logits far past the tolerance of the parity tests.

A parity test that a wrong model passes proves nothing. Each mutant is what somebody shipped.
"""

from functools import partial

import pytest
import reference
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

import scratchformers as sf
from scratchformers import cache
from scratchformers import nn as bricks
from scratchformers.checkpoints import tables
from scratchformers.models import gpt2

TOLERANCE = 1e-10  # what test_gpt2.py allows


def error(published) -> float:
    """How far our logits are from the reference's, on a plain batch and on a left-padded one."""
    theirs, folder = published
    model, ids = sf.load(folder, dtype=torch.float64), reference.ids(2, 11)
    keep = torch.ones_like(ids, dtype=torch.bool)
    keep[1, :4] = False
    plain = (model(ids) - theirs(ids).logits).abs().max()
    padded = (model(ids, keep=keep)[1, 4:] - theirs(ids[1:, 4:]).logits[0]).abs().max()
    return float(torch.maximum(plain, padded).detach())


def test_the_unchanged_model_passes(published):
    assert error(published) < TOLERANCE


def activation(function):
    return lambda patch: patch.setattr(gpt2, "gelu_tanh", function)


def norm_eps(patch):
    patch.setattr(gpt2.nn, "LayerNorm", partial(nn.LayerNorm, eps=1e-6))


def attending(function):
    """Another `attend` in every attention."""

    def plant(patch):
        made = bricks.Attention.__init__

        def init(self, *arguments, **settings):
            made(self, *arguments, **settings)
            self.attend = function

        patch.setattr(bricks.Attention, "__init__", init)

    return plant


def no_causal_mask(q, k, v, mask):
    return bricks.attend(q, k, v, None if mask is bricks.CAUSAL else mask | True)


def no_softmax(q, k, v, mask):
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    causal = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    return (scores * (causal if mask is bricks.CAUSAL else mask)) @ v


def no_scale(q, k, v, mask):
    return bricks.attend(q * q.shape[-1] ** 0.5, k, v, mask)


def future_by_one(q, k, v, mask):
    causal = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(1)
    return bricks.attend(q, k, v, causal if mask is bricks.CAUSAL else mask)


def heads_inside_out(patch):
    """`(e h)` for `(h e)`: the right shape, trains too."""
    swap = lambda x, *a, **k: rearrange(x, *(p.replace("(h e)", "(e h)").replace("two h e", "two e h") for p in a), **k)  # noqa: E731
    patch.setattr(bricks, "rearrange", swap)


def swapped_norms(patch):
    swap = {"h.*.ln_1": "h.*.ln_2", "h.*.ln_2": "h.*.ln_1"}
    rows = [(swap.get(left, left), *rest) for left, *rest in gpt2.ROWS]
    patch.setattr(tables, "entries", lambda _, ours, real=tables.entries: real(rows, ours))


def untransposed(patch):
    """Only the square matrix can be wrong in silence; the others do not fit."""
    rows = [row[:2] if "attn.c_proj" in row[0] else row for row in gpt2.ROWS]
    patch.setattr(tables, "entries", lambda _, ours, real=tables.entries: real(rows, ours))


def lost_bias(patch):
    loaded = tables.load

    def load(*arguments):
        state = loaded(*arguments)
        return {k: torch.zeros_like(v) if k.endswith("attention.out.bias") else v for k, v in state.items()}

    patch.setattr(tables, "load", load)


def post_norm(patch):
    patch.setattr(gpt2, "Block", partial(bricks.Block, pre_norm=False))


def no_final_norm(patch):
    patch.setattr(gpt2, "clear_padding", lambda x, keep: x)
    made = gpt2.GPT2.encode

    def encode(self, *arguments, **settings):
        norm, self.norm = self.norm, nn.Identity()
        out = made(self, *arguments, **settings)
        self.norm = norm
        return out

    patch.setattr(gpt2.GPT2, "encode", encode)


def positions_ignore_padding(patch):
    patch.setattr(cache, "positions", lambda keep, start=0: torch.arange(keep.shape[1]).expand_as(keep))


def positions_from_one(patch):
    patch.setattr(gpt2, "place", lambda *a, **k: (lambda position, mask: (position + 1, mask))(*cache.place(*a, **k)))


def mask_upside_down(patch):
    mask = bricks.causal_mask
    patch.setattr(cache, "causal_mask", lambda keep, column: mask(~keep, column))


def untied_head(patch):
    patch.setattr(bricks.Unembed, "forward", lambda self, x: F.linear(x, self.token.weight.roll(1, 0)))


MUTANTS = {
    "erf GELU for the tanh one": activation(bricks.gelu),
    "QuickGELU": activation(bricks.quick_gelu),
    "ReLU": activation(bricks.relu),
    "another eps": norm_eps,
    "no causal mask": attending(no_causal_mask),
    "no softmax": attending(no_softmax),
    "no scale": attending(no_scale),
    "a look one token ahead": attending(future_by_one),
    "heads inside out": heads_inside_out,
    "swapped norms": swapped_norms,
    "a Conv1D not transposed": untransposed,
    "a lost bias": lost_bias,
    "post-norm": post_norm,
    "no final norm": no_final_norm,
    "positions that ignore padding": positions_ignore_padding,
    "positions from one": positions_from_one,
    "mask polarity": mask_upside_down,
    "another head": untied_head,
}


@pytest.mark.unhooked  # planted functions need not have the shapes we promise
@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_bug_is_caught(published, monkeypatch, name):
    MUTANTS[name](monkeypatch)
    assert error(published) > 1000 * TOLERANCE


# --- mutants of decoding: the text, not the logits of one pass, must give them away


def text_differs(published) -> bool:
    theirs, folder = published
    model, ids = sf.load(folder, dtype=torch.float64), reference.ids(4, 7)
    return not torch.equal(sf.generate(model, ids, max_new_tokens=30, stop=()), reference.greedy(theirs, ids, 30))


def cache_forgets(patch):
    patch.setattr(cache.DynamicLayer, "update", lambda self, k, v: (k, v))


def cache_keeps_only_the_first(patch):
    def update(self, k, v):
        if self.k is None:
            self.k, self.v = k, v
            return k, v
        return torch.cat([self.k, k], 2), torch.cat([self.v, v], 2)

    patch.setattr(cache.DynamicLayer, "update", update)


def cache_swaps_keys_and_values(patch):
    update = cache.DynamicLayer.update
    patch.setattr(cache.DynamicLayer, "update", lambda self, k, v: update(self, k, v)[::-1])


def positions_stand_still(patch):
    def place(ids, keep, kept, *, length):
        position, mask = cache.place(ids, keep, kept, length=length)
        return position - position.min(), mask

    patch.setattr(gpt2, "place", place)


def causal_with_a_cache(patch):
    """`is_causal` is aligned top-left: a single new token would see the first key only."""

    def place(ids, keep, kept, *, length):
        position, _ = cache.place(ids, keep, kept, length=length)
        return position, bricks.CAUSAL

    patch.setattr(gpt2, "place", place)


def scores_of_the_first_token(patch):
    patch.setattr(gpt2, "last", lambda x, keep: x[:, :1])


DECODING = [cache_forgets, cache_keeps_only_the_first, cache_swaps_keys_and_values, positions_stand_still]
DECODING += [causal_with_a_cache, scores_of_the_first_token]


@pytest.mark.unhooked
@pytest.mark.parametrize("plant", DECODING)
def test_a_planted_decoding_bug_is_caught(published, monkeypatch, plant):
    assert not text_differs(published)
    plant(monkeypatch)
    assert text_differs(published)
