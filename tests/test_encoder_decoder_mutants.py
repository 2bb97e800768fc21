"""The famous bugs of encoder-decoders, planted one at a time: each must move an answer far past the tolerance of the
parity tests, or what is written. Most are an edit of the page's own line, so that a line that changes takes its mutants
along."""

import dataclasses

import encoder_decoder_reference as theirs_of  # before what imports torchvision
import pytest
import torch
from encoder_decoder_reference import KINDS, START, alone, ids, ragged
from test_bert_mutants import eps, zeroed
from test_mutants import attending, heads_inside_out, no_softmax
from test_vision_mutants import edited

import scratchformers as sf
from scratchformers import nn as bricks
from scratchformers import ragged as packing
from scratchformers import source as reading
from scratchformers.checkpoints import seq2seq, tables
from scratchformers.models import encoder_decoder as page

TOLERANCE = 1e-10  # what test_encoder_decoder.py allows
GIVEN = ids(5, 9, seed=1), ragged(5, 9, seed=3, left=True), ids(5, 7, seed=2), ragged(5, 7, seed=4, left=True)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Where one of each kind lies, the scores and states it gives, and the ids it writes."""
    made = {}
    for kind in KINDS:
        theirs = theirs_of.published(kind)
        theirs.save_pretrained(folder := tmp_path_factory.mktemp("published"))
        source, keep = GIVEN[:2]
        settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "no_repeat_ngram_size": 2}
        written = [theirs.generate(source[row, keep[row]][None], **settings)[0] for row in range(len(source))]
        made[kind] = folder, *alone(theirs, *GIVEN), torch.stack(written)
    return made


@torch.no_grad()
def error(published) -> float:
    """How far our scores and states are from theirs, packed and padded; 1 where another text is written."""
    source, source_keep, target, target_keep = GIVEN
    errors = []
    for folder, scores, states, written in published.values():
        model = sf.load(folder, dtype=torch.float64)
        for path in (False, True):
            token = packing.padded.set(path)
            found = model(source, target, source_keep=source_keep, target_keep=target_keep)
            errors.append((found - scores)[target_keep].abs().max())
            errors.append((model.encode(source, keep=source_keep) - states).abs().max())
            packing.padded.reset(token)
        model.generation = dataclasses.replace(model.generation, no_repeat_ngram=2, min_new_tokens=8)
        texts = sf.generate(model, source, keep=source_keep, max_new_tokens=8)
        errors.append(torch.tensor(float(not torch.equal(texts, written))))
        begin, _, step = model.start(source, source_keep)  # two beams for each source
        beams, rows = target.repeat_interleave(2, 0), torch.cat([begin] * 2, dim=1).reshape(-1, 1)
        cache = model.new_cache(len(beams))
        step(rows, None, cache)
        step(beams[:, :1].flip(0), None, cache)
        step.select(torch.arange(len(source)))
        again = model.new_cache(len(source))
        model.start(source, source_keep)[2](begin, None, again)
        alone_step = model.start(source, source_keep)[2](beams[:, :1].flip(0)[::2], None, again)
        cached = model.new_cache(len(beams))
        fresh = model.start(source, source_keep)[2]
        fresh(rows, None, cached)
        errors.append((fresh(beams[:, :1].flip(0), None, cached)[::2] - alone_step).abs().max())
    return float(torch.stack(errors).max())


def test_the_unchanged_model_passes(published):
    assert error(published) < TOLERANCE


def entry(**changes):
    """Rows of the table that say another thing."""

    def plant(patch):
        rows = [(left, changes.get(right, right) if isinstance(right, str) else right, *how)
                for left, right, *how in page.ROWS]  # fmt: skip
        patch.setattr(tables, "entries", lambda _, ours, real=tables.entries: real(rows, ours))

    return plant


def of_same_depth(self, source, keep=None, real=page.EncoderDecoder.read):
    """Decoder block i reads what encoder block i gave, not what the last one gave."""
    states = []
    hooks = [block.register_forward_hook(lambda _, given, out: states.append(out)) for block in self.encoder.blocks]
    token = packing.padded.set(True)
    real(self, source, keep)
    packing.padded.reset(token)
    for hook in hooks:
        hook.remove()
    last = self.encoder.norm(states[-1])
    states = [*states[:-1], *[last] * len(self.decoder.blocks)]
    keys = [block.cross.keys_values(x) for block, x in zip(self.decoder.blocks, states)]
    return reading.Source(keys, bricks.padding_mask(keep))


def of_its_own_width(self, target, source, real=page.EncoderDecoder.decode, **rest):
    """Keys cut to as many as there are queries."""
    width = target.shape[1]
    mask = None if source.mask is None else source.mask[..., :width] | ~source.mask[..., :width].any(-1, keepdim=True)
    return real(
        self, target, reading.Source([(k[:, :, :width], v[:, :, :width]) for k, v in source.keys], mask), **rest
    )


def interleaved(position, dim, real=bricks.sinusoids):
    """Sine, cosine, sine, cosine, ..., as the paper has it, and no published file."""
    x = real(position, dim)
    return torch.stack(x.chunk(2, -1), dim=-1).flatten(-2)


def positions_from(start):
    how = tables.How(lambda x: torch.cat([x[start:], x[:start]])[: len(x) - 2], seq2seq.FROM_2.save)
    rows = [(*row[:2], how) if "embed_positions" in str(row[0]) and row[1] else row for row in page.ROWS]
    return lambda patch: patch.setattr(tables, "entries", lambda _, ours, real=tables.entries: real(rows, ours))


def activation(name, function):
    return lambda patch: patch.setitem(bricks.ACTIVATIONS, name, function)


def starting_with(token):
    return lambda patch: patch.setattr(page.seq2seq, "first_ids", lambda _, x: x.new_full((len(x), 1), token))


def norms_stand(*, pre_norm):
    return lambda *given, **settings: bricks.Block(*given, **{**settings, "pre_norm": pre_norm})


half, model = page.Half, page.EncoderDecoder
MUTANTS = {
    "memory of the same depth": lambda patch: patch.setattr(model, "read", of_same_depth),
    "no mask of the source in the decoder": edited(
        reading.Across, "attend", "folded, k, v, self.mask, dropout", "folded, k, v, None, dropout"
    ),
    "no mask of a padded source in the decoder": edited(
        reading.Source, "block", "mask if plain else", "None if plain else"
    ),
    "no mask of the source in the encoder": edited(model, "encode", "padding_mask(keep), keep", "None, None"),
    "mask polarity": lambda patch: patch.setattr(page, "padding_mask", lambda keep: bricks.padding_mask(~keep)),
    "as many keys as there are queries": lambda patch: patch.setattr(model, "decode", of_its_own_width),
    "the target begins with 0": starting_with(0),
    "the target begins with what ends it": starting_with(theirs_of.END),
    "positions from the table's first row": positions_from(0),
    "positions from the table's second row": positions_from(1),
    "positions from one": edited(half, "forward", "self.position(position)", "self.position((position + 1) % 31)"),
    "positions of the source ignore its padding": edited(
        model, "encode", "begin(source, keep, length", "begin(source, None, length"
    ),
    "embeddings that are not scaled": edited(half, "forward", "self.scale * x", "x"),
    "positions scaled too": edited(
        half, "forward", "self.scale * x + self.position(position).to(x.dtype)",
        "self.scale * (x + self.position(position).to(x.dtype))",
    ),
    "sinusoids interleaved": lambda patch: patch.setattr(page, "sinusoids", interleaved),
    "no norm of the embeddings": edited(half, "forward", "self.embedding_norm(", "("),
    "no last norm": edited(half, "forward", "clear_padding(self.norm(x), keep)", "clear_padding(x, keep)"),
    "no last norm, packed": edited(half, "forward", "rows.unpack(self.norm(x))", "rows.unpack(x)"),
    "pre-norm": lambda patch: patch.setattr(page, "Block", norms_stand(pre_norm=True)),
    "post-norm": lambda patch: patch.setattr(page, "Block", norms_stand(pre_norm=False)),
    "the target sees what follows": edited(half, "forward", "causal=source is not None", "causal=False"),
    "the padded target sees what follows": edited(model, "decode", "position, mask, keep", "position, None, keep"),
    "the source does not see what follows": edited(half, "forward", "causal=source is not None", "causal=True"),
    "the source's table for the target": edited(
        model, "decode", "token(target)", "[*self.tokens.values()][0](target % 97)"
    ),
    "the target's table for the source": edited(
        model, "encode", "token(source)", "[*self.tokens.values()][-1](source)"
    ),
    "no bias of the scores": edited(model, "score", "self.unembed(x, self.bias)", "self.unembed(x)"),
    "tanh GELU": activation("gelu", bricks.gelu_tanh),
    "GELU for swish": activation("silu", bricks.gelu),
    "the encoder's heads in the decoder": edited(
        seq2seq, "halves", "mine or there", "there if there == config.heads else mine or there"
    ),
    "heads (e h)": heads_inside_out,
    "no softmax": attending(no_softmax),
    "eps 1e-6": eps(1e-6),
    "a bias lost": zeroed("decoder.blocks.1.cross.kv.bias"),
    "norms of the layer and of the half swapped": entry(
        **{"decoder.blocks.*.cross_norm": "decoder.blocks.*.mlp_norm",
           "decoder.blocks.*.mlp_norm": "decoder.blocks.*.cross_norm"}
    ),
    "self- and cross-attention swapped": entry(
        **{"decoder.blocks.*.cross.q": "decoder.blocks.*.attention.q",
           "decoder.blocks.*.attention.q": "decoder.blocks.*.cross.q"}
    ),
    "beams in another order": edited(
        reading.Across, "attend", '"b h (n t) e -> (b n) h t e"', '"b h (n t) e -> (n b) h t e"'
    ),
    "each source's first beams together": edited(
        reading.Across, "attend", '"(b n) h t e -> b h (n t) e"', '"(n b) h t e -> b h (n t) e"'
    ),
}  # fmt: skip


@pytest.mark.unhooked
@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_bug_is_caught(published, monkeypatch, name):
    MUTANTS[name](monkeypatch)
    assert not error(published) < 1000 * TOLERANCE


def test_dropout_follows_the_softmax():
    """Weights that are dropped are 0, and what is left is scaled: of a constant source the mean is kept exactly in
    expectation. Dropped scores instead leave weights that add up to one, and nothing of the output varies."""
    model = sf.EncoderDecoder(
        sf.EncoderDecoderConfig(vocab=17, length=9, dim=24, depth=1, heads=2, dropout=0.5)
    ).train()
    cross, x = model.decoder.blocks[0].cross, torch.randn(2, 5, 24)
    cross.out = torch.nn.Identity()
    k, v = cross.keys_values(x)

    def sums():
        return cross(torch.randn(2, 3, 24), None, kv=(k, torch.ones_like(v)))

    assert not torch.allclose(sums(), torch.ones(1))

    def before(q, k, v, mask=None, dropout=0.0):
        scores = torch.nn.functional.dropout(q @ k.mT / q.shape[-1] ** 0.5, dropout)
        return scores.softmax(-1) @ v

    cross.attend = before
    assert torch.allclose(sums(), torch.ones(1)), "the mutant, which the line above tells apart"


def test_the_start_token_is_not_the_texts_first(published):
    """BART's texts begin with id 2 before the id that its config calls the first."""
    model = sf.load(published["bart"][0])
    assert model.generation.start == START
    assert model.generation.other["bos_token_id"] == 0
