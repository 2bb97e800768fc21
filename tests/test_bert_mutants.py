"""The famous bugs of BERT, planted one at a time: each must move an answer far past the tolerance of the parity tests.

A parity test that a wrong model passes proves nothing. Each mutant is what somebody shipped.
"""

import pytest
import torch
from bert_reference import answers, batch
from test_mutants import attending, heads_inside_out, no_scale, no_softmax, rows_in_another_order, untied_head
from torch import nn

import scratchformers as sf
from scratchformers import cache, heads, ragged
from scratchformers import nn as bricks
from scratchformers.checkpoints import tables
from scratchformers.models import bert

TOLERANCE = 1e-10  # what test_bert.py allows


def error(berts) -> float:
    """How far our answers are from the reference's, which sees each row alone: on rows that fill their columns, on
    padded ones of either side with their padding and without. States, scores of the three heads, pooled and mean."""
    errors = []
    for kind in ("PreTraining", "SequenceClassification", "TokenClassification"):
        theirs, folder = berts[kind]
        model = sf.load(folder, dtype=torch.float64)
        for side, lengths in (("right", (11, 11)), ("left", (11, 4, 1)), ("right", (11, 4, 1))):
            ids, segments, keep = batch(side, lengths)
            alone = [answers(theirs, ids[i, real][None], segments[i, real][None]) for i, real in enumerate(keep)]
            for path in (bert.unpadded, lambda *_, **__: None):
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(bert, "unpadded", path)
                    found = said(model, ids, segments, keep)
                for i, real in enumerate(keep):
                    mean = alone[i]["states"].mean(1)
                    for name, value in found.items():
                        expected = (mean if name == "mean" else alone[i][name])[0]
                        errors.append((value[i][real if expected.ndim == 2 else ...] - expected).abs().max())
    return float(torch.stack(errors).max())


@torch.no_grad()
def said(model, ids, segments, keep):
    states = model.encode(ids, segments=segments, keep=keep)
    found = {"states": states, "output": model(ids, segments=segments, keep=keep), "mean": heads.mean(states, keep)}
    if model.pooler is not None:
        found["pooled"] = model.pool(states, keep)
    if model.next_sentence is not None:
        found["next"] = model.next_sentence(found["pooled"])
    return found


def test_the_unchanged_model_passes(berts):
    assert error(berts) < TOLERANCE


def encoding(change):
    """Another `encode`, which calls the real one."""
    real = bert.BERT.encode
    return lambda patch: patch.setattr(bert.BERT, "encode", lambda self, ids, **k: change(real, self, ids, **k))


def replacing(owner, name, value):
    return lambda patch: patch.setattr(owner, name, value)


def segments_ignored(encode, self, ids, *, segments=None, keep=None):
    return encode(self, ids, keep=keep)


def segments_swapped(encode, self, ids, *, segments=None, keep=None):
    return encode(self, ids, segments=1 - segments, keep=keep)


def segments_for_the_mask(encode, self, ids, *, segments=None, keep=None):
    """Arguments in the wrong order: the first text is attended to, and the second is not."""
    return encode(self, ids, segments=keep.long(), keep=segments == 0)


def mask_upside_down(patch):
    patch.setattr(bert, "padding_mask", lambda keep, real=bricks.padding_mask: real(~keep))


def mean_over_padding(patch):
    patch.setattr(heads, "mean", lambda x, keep=None: x.mean(1))


def mean_divided_by_all(patch):
    patch.setattr(heads, "mean", lambda x, keep=None: bricks.clear_padding(x, keep).mean(1))


def pooled_by_column(patch):
    """The first token, not the first real one: padding, where it stands on the left."""
    patch.setattr(bert, "first", lambda x, keep=None: x[:, 0])


def pooled_by_the_last(patch):
    patch.setattr(bert, "first", lambda x, keep: cache.last(x, keep)[:, 0])


def no_tanh(patch):
    patch.setattr(bert.BERT, "pool", lambda self, x, keep=None: self.pooler(heads.first(x, keep)))


def eps(value):
    """In every norm, whatever the file says."""
    made = nn.LayerNorm.__init__
    return lambda patch: patch.setattr(
        nn.LayerNorm, "__init__", lambda self, dim, **settings: made(self, dim, **{**settings, "eps": value})
    )


def zeroed(ending):
    """A bias that was lost on the way in."""

    def plant(patch):
        loaded = tables.load

        def load(*arguments):
            return {k: torch.zeros_like(v) if k.endswith(ending) else v for k, v in loaded(*arguments).items()}

        patch.setattr(tables, "load", load)

    return plant


def rows(changes):
    """A table that says something else."""

    def plant(patch):
        other = [(changes.get(left, left), *rest) for left, *rest in bert.ROWS]
        patch.setattr(tables, "entries", lambda _, ours, real=tables.entries: real(other, ours))

    return plant


NORMS = ("encoder.layer.*.attention.output.LayerNorm", "encoder.layer.*.output.LayerNorm")
KEY, VALUE = "encoder.layer.*.attention.self.key", "encoder.layer.*.attention.self.value"


def head_without(part):
    """A head that leaves out one of its own."""

    def plant(patch):
        made = bert.MaskedLM.forward

        def forward(self, x, keep=None):
            whole, vars(self)["_modules"] = vars(self)["_modules"], {**vars(self)["_modules"], part: nn.Identity()}
            try:
                return made(self, x, keep)
            finally:
                vars(self)["_modules"] = whole

        patch.setattr(bert.MaskedLM, "forward", forward)

    return plant


def head_activation(function):
    def forward(self, x, keep=None):
        return self.unembed(self.norm(function(self.dense(x)))) + self.bias

    return replacing(bert.MaskedLM, "forward", forward)


def no_embedding_norm(encode, self, ids, **settings):
    norm, self.embedding_norm = self.embedding_norm, nn.Identity()
    try:
        return encode(self, ids, **settings)
    finally:
        self.embedding_norm = norm


def norm_before_the_positions(encode, self, ids, **settings):
    """The embedding's norm over tokens alone; then positions and segments."""
    token, norm = self.token, self.embedding_norm
    self.token, self.embedding_norm = nn.Sequential(token, norm), nn.Identity()
    try:
        return encode(self, ids, **settings)
    finally:
        self.token, self.embedding_norm = token, norm


def causal(q, k, v, mask):
    past = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
    return bricks.attend(q, k, v, past if mask is None else mask & past)


def causal_rows(patch):
    made = ragged.Ragged.__init__
    patch.setattr(ragged.Ragged, "__init__", lambda self, keep, *, causal: made(self, keep, causal=True))


def beginning(change):
    return replacing(bert, "begin", lambda ids, keep, *, length: change(ids, cache.begin(ids, keep, length=length)))


def by_column(ids, position):
    return torch.arange(ids.shape[1])[None]


def rows_that_see_each_other(patch):
    """All tokens of a batch without padding attend as if they were one text."""
    patch.setattr(ragged.Ragged, "attend", lambda self, q, k, v: bricks.attend(q, k, v))


def rows_without_their_segments(patch):
    """Packed with what is not the row's own: only the ids are packed in the rows' order."""
    pack = ragged.Ragged.pack
    patch.setattr(ragged.Ragged, "pack", lambda self, x: pack(self, x if x.ndim < 2 or x.max() > 1 else x.roll(1, 0)))


def padding_not_cleared(patch):
    """Invisible in answers at real tokens; a mean that trusts the zeros is wrong."""
    patch.setattr(bert, "clear_padding", lambda x, keep: x)
    patch.setattr(heads, "clear_padding", lambda x, keep: x)


def no_mask_for_one_block(patch):
    forward, seen = bricks.Block.forward, []

    def unmasked(self, x, mask=None, **settings):
        seen.append(self)
        return forward(self, x, mask if len(seen) % 5 or not isinstance(mask, torch.Tensor) else None, **settings)

    patch.setattr(bricks.Block, "forward", unmasked)


MUTANTS = {
    "segments ignored": encoding(segments_ignored),
    "segments swapped": encoding(segments_swapped),
    "segments passed for the mask": encoding(segments_for_the_mask),
    "mask polarity": mask_upside_down,
    "no mask": replacing(bert, "padding_mask", lambda keep: None),
    "no mask in the last block": no_mask_for_one_block,
    "mean over padding": mean_over_padding,
    "mean divided by all": mean_divided_by_all,
    "padding that is not cleared": padding_not_cleared,
    "the first column for the first real token": pooled_by_column,
    "the last token for the first": pooled_by_the_last,
    "the mean for the first token": replacing(bert, "first", heads.mean),
    "a pooler without tanh": no_tanh,
    "eps 1e-5": eps(1e-5),
    "eps 1e-6": eps(1e-6),
    "another head": untied_head,
    "no bias of the head": zeroed("head.bias"),
    "a lost bias": zeroed("attention.out.bias"),
    "lost biases of keys and values": zeroed("attention.kv.bias"),
    "tanh GELU": replacing(bert, "gelu", bricks.gelu_tanh),
    "QuickGELU": replacing(bert, "gelu", bricks.quick_gelu),
    "tanh GELU in the head": head_activation(bricks.gelu_tanh),
    "no activation in the head": head_activation(lambda x: x),
    "no norm in the head": head_without("norm"),
    "no dense layer in the head": head_without("dense"),
    "pre-norm": replacing(bert, "Block", lambda *a, pre_norm, **k: bricks.Block(*a, pre_norm=True, **k)),
    "swapped norms": rows(dict(zip(NORMS, reversed(NORMS)))),
    "swapped keys and values": rows({(KEY, VALUE): (VALUE, KEY)}),
    "heads inside out": heads_inside_out,
    "causal with padding": attending(causal),
    "causal without": causal_rows,
    "no softmax": attending(lambda q, k, v, mask: no_softmax(q, k, v, True if mask is None else mask)),
    "no scale": attending(no_scale),
    "positions that ignore padding": beginning(by_column),
    "positions from one": beginning(lambda ids, position: position + 1),
    "positions from two": beginning(lambda ids, position: position + 2),
    "no embedding norm": encoding(no_embedding_norm),
    "positions after the embedding's norm": encoding(norm_before_the_positions),
    "rows without padding in another order": rows_in_another_order,
    "rows without padding that see each other": rows_that_see_each_other,
    "rows without padding with another's segments": rows_without_their_segments,
}


@pytest.mark.unhooked  # planted functions need not have the shapes we promise
@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_bug_is_caught(berts, monkeypatch, name):
    MUTANTS[name](monkeypatch)
    assert error(berts) > 1000 * TOLERANCE
