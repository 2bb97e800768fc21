"""The famous bugs, planted one at a time: each must move the logits far past the tolerance of the parity tests.

A parity test that a wrong model passes proves nothing. Each mutant is what somebody shipped.
"""

import dataclasses
import importlib
from functools import partial

import pytest
import reference
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

import scratchformers as sf
from scratchformers import cache, ragged
from scratchformers import nn as bricks
from scratchformers.checkpoints import tables
from scratchformers.checkpoints.pretrained import Generation
from scratchformers.models import gpt2

decoding = importlib.import_module("scratchformers.generate")  # the file; the name alone is the function

TOLERANCE = 1e-10  # what test_gpt2.py allows


def error(published) -> float:
    """How far our logits are from the reference's, on a plain batch, and on a left-padded one with its padding and
    without."""
    theirs, folder = published
    model, ids = sf.load(folder, dtype=torch.float64), reference.ids(2, 11)
    keep = torch.ones_like(ids, dtype=torch.bool)
    keep[1, :4] = False
    plain = (model(ids) - theirs(ids).logits).abs().max()
    alone, whole, errors = theirs(ids[1:, 4:]).logits[0], theirs(ids[:1]).logits[0], [plain]
    for path in (gpt2.unpadded, lambda *_, **__: None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gpt2, "unpadded", path)
            logits = model(ids, keep=keep)
        errors += [(logits[1, 4:] - alone).abs().max(), (logits[0] - whole).abs().max()]
    return float(torch.stack(errors).max().detach())


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
            self.attend = lambda q, k, v, mask: (
                function(q, k, v, mask) if isinstance(mask, str | torch.Tensor) else bricks.attend(q, k, v, mask)
            )

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
    patch.setattr(bricks.Unembed, "forward", lambda self, x, bias=None: F.linear(x, self.token.weight.roll(1, 0), bias))


def rows_in_another_order(patch):
    """The tokens of each row come back to the wrong one."""

    def unpack(self, x, real=ragged.Ragged.unpack):
        return real(self, x).roll(1, 0)

    patch.setattr(ragged.Ragged, "unpack", unpack)


def rows_that_see_each_other(patch):
    """All tokens of a batch without padding attend as if they were one text."""
    patch.setattr(ragged.Ragged, "attend", lambda self, q, k, v: bricks.attend(q, k, v, bricks.CAUSAL))


def rows_that_see_the_future(patch):
    made = ragged.Ragged.__init__
    patch.setattr(ragged.Ragged, "__init__", lambda self, keep, *, causal: made(self, keep, causal=False))


MUTANTS = {
    "erf GELU for the tanh one": activation(bricks.gelu),
    "QuickGELU": activation(bricks.quick_gelu),
    "ReLU": activation(bricks.ACTIVATIONS["relu"]),
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
    "rows without padding in another order": rows_in_another_order,
    "rows without padding that see each other": rows_that_see_each_other,
    "rows without padding that see the future": rows_that_see_the_future,
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


# --- mutants of what shapes a text: penalties, rules, sliding. Each must change what the tests of generation compare.


def shaped_text(published) -> list:
    """Texts under a penalty, under rules, and longer than the model."""
    model, ids = sf.load(published[1], dtype=torch.float64), reference.ids(6, 9)
    keep = torch.arange(9) >= torch.tensor([0, 3, 8, 0, 5, 2])[:, None]
    draws = [torch.Generator().manual_seed(i) for i in range(6)]
    plain = {"keep": keep, "max_new_tokens": 40, "stop": ()}
    found = [sf.generate(model, ids, **plain, repetition_penalty=1.6)]
    found += [sf.generate(model, ids, **{**plain, "max_new_tokens": 110}, slide=True)]
    found += [sf.generate(model, ids, **plain, temperature=9.0, generator=draws, repetition_penalty=1.6)]
    rules = {"no_repeat_ngram_size": 2, "bad_words_ids": [[5], [17, 4]], "min_length": 30, "forced_eos_token_id": 41}
    model.generation = Generation.read({"eos_token_id": 63, **rules})
    return [*found, sf.generate(model, ids, keep=keep, max_new_tokens=40)]


def penalty_on_one_side(patch):
    """Dividing a negative score makes a repetition more probable."""
    patch.setattr(decoding, "penalise", lambda logits, texts, penalty: torch.stack(
        [row.index_put((torch.tensor(sorted(set(text))),), row[sorted(set(text))] / penalty)
         for row, text in zip(logits, texts)]
    ))  # fmt: skip


def penalty_on_padding(patch):
    penalise = decoding.penalise
    patch.setattr(decoding, "penalise", lambda x, texts, penalty: penalise(x, [[0, *text] for text in texts], penalty))


def rules_count_only_what_is_new(patch):
    forbidden = decoding.forbidden
    patch.setattr(decoding, "forbidden", lambda t, r, s, written: forbidden(t[len(t) - written :], r, s, written))


def an_ngram_too_long(patch):
    forbidden = decoding.forbidden

    def longer(text, rules, stop, written):
        return forbidden(text, dataclasses.replace(rules, no_repeat_ngram=rules.no_repeat_ngram + 1), stop, written)

    patch.setattr(decoding, "forbidden", longer)


def forced_one_late(patch):
    forced = decoding.forced
    patch.setattr(decoding, "forced", lambda text, rules, left: forced(text, rules, left + 1))


def slides_to_the_first_half(patch):
    slide = decoding.Decoding._slide

    def first(self, length):
        ids, keep = slide(self, length)
        rows = [text[:window] for text, window in zip(self.texts, self.window)]
        for i, row in enumerate(rows):
            ids[i, len(ids[i]) - len(row) :] = torch.tensor(row)
        return ids, keep

    patch.setattr(decoding.Decoding, "_slide", first)


def all_rows_slide_together(patch):
    slide = decoding.Decoding._slide

    def together(self, length):
        self.window = [length + 1] * len(self.window)
        return slide(self, length)

    patch.setattr(decoding.Decoding, "_slide", together)


def one_generator_for_all_rows(patch):
    choose = decoding.choose

    def shared(logits, sampling):
        own = sampling.generator
        return choose(logits, dataclasses.replace(sampling, generator=own[0] if own else own))

    patch.setattr(decoding, "choose", shared)


SHAPING = [penalty_on_one_side, penalty_on_padding, rules_count_only_what_is_new, an_ngram_too_long, forced_one_late]
SHAPING += [slides_to_the_first_half, all_rows_slide_together, one_generator_for_all_rows]


@pytest.mark.unhooked
@pytest.mark.parametrize("plant", SHAPING)
def test_a_planted_bug_of_shaping_a_text_changes_it(published, monkeypatch, plant):
    """The same inputs are compared with the reference, and with the rule written out, in test_generate.py."""
    before = shaped_text(published)
    assert all(map(torch.equal, before, shaped_text(published)))
    plant(monkeypatch)
    after = shaped_text(published)
    assert not all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(before, after))
