"""The encoder-decoder against transformers' and torch's, and itself: every fast path has the plain one's numbers.

The references see each pair alone, without padding: there positions follow columns, here they follow the tokens.
"""

import dataclasses
from pathlib import Path

import encoder_decoder_reference as theirs_of  # before what imports torchvision
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from encoder_decoder_reference import END, KINDS, PAD, START, alone, ids, ragged, torch_transformer
from torch import nn

import scratchformers as sf
from scratchformers import ragged as packing
from scratchformers.checkpoints.pretrained import Generation
from scratchformers.linear import Linear
from scratchformers.models import encoder_decoder as page
from scratchformers.nn import Attention

FROZEN = Path(__file__).parent / "frozen" / "encoder_decoder.npz"
SIZES = {"vocab": 97, "length": 31, "dim": 42, "depth": 2, "heads": 3, "hidden": 59, "dropout": 0.0}
SIZES |= {"decoder_depth": 3, "decoder_heads": 7, "decoder_hidden": 61}


def close(found, expected, limit=1e-10):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < limit


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Of each kind, transformers' model and the folder it was saved to."""
    made = {}
    for kind in KINDS:
        theirs = theirs_of.published(kind)
        theirs.save_pretrained(folder := tmp_path_factory.mktemp("published"))
        made[kind] = theirs, folder
    return made


def scrambled(**changes):
    """One of ours in float64, every parameter drawn anew."""
    model = sf.EncoderDecoder(sf.EncoderDecoderConfig(**{**SIZES, **changes})).double().eval()
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, mean=1.0 if "norm" in name and name.endswith("weight") else 0.0, std=0.25)
    model.generation = Generation(start=START, end=(END,), pad=PAD)
    return model


@pytest.fixture(params=["learned, pre-norm", "sinusoids, post-norm, two vocabularies"])
def model(request):
    if request.param.startswith("learned"):
        return scrambled()
    return scrambled(positions="sinusoids", pre_norm=False, final_norm=False, scale_embedding=True, target_vocab=101)


SOURCE, TARGET = ids(6, 13, seed=1), ids(6, 11, seed=2)


def keeps(*, left):
    return ragged(6, 13, seed=3, left=left), ragged(6, 11, seed=4, left=left)


# --- the references


@pytest.mark.parametrize("kind", KINDS)
def test_parity(published, kind):
    theirs, folder = published[kind]
    model = sf.load(folder, dtype=torch.float64)
    said = theirs(input_ids=SOURCE, decoder_input_ids=TARGET)
    close(model(SOURCE, TARGET), said.logits)
    close(model.encode(SOURCE), said.encoder_last_hidden_state)


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("kind", KINDS)
def test_parity_of_ragged_pairs(published, kind, left):
    theirs, folder = published[kind]
    model, (source_keep, target_keep) = sf.load(folder, dtype=torch.float64), keeps(left=left)
    scores, states = alone(theirs, SOURCE, source_keep, TARGET, target_keep)
    found = model(SOURCE, TARGET, source_keep=source_keep, target_keep=target_keep)
    close(found[target_keep], scores[target_keep])
    close(model.encode(SOURCE, keep=source_keep), states)  # 0 at padding


@pytest.mark.parametrize("kind", KINDS)
def test_parity_in_float32(published, kind):
    theirs, folder = published[kind]
    close(sf.load(folder)(SOURCE, TARGET).double(), theirs(input_ids=SOURCE, decoder_input_ids=TARGET).logits, 1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_answers(published, kind):
    frozen = np.load(FROZEN)
    source, target, source_keep, target_keep = (
        torch.from_numpy(frozen[name]) for name in ("source", "target", "source_keep", "target_keep")
    )
    model = sf.load(published[kind][1], dtype=torch.float64)
    found = model(source, target, source_keep=source_keep, target_keep=target_keep)
    close(found[target_keep], torch.from_numpy(frozen[f"{kind}/scores"])[target_keep])
    close(model.encode(source, keep=source_keep), torch.from_numpy(frozen[f"{kind}/states"]))


def test_the_reference_still_answers_what_was_frozen(published):
    frozen, kind = np.load(FROZEN), "marian, two vocabularies"
    given = (torch.from_numpy(frozen[name]) for name in ("source", "source_keep", "target", "target_keep"))
    scores, states = alone(published[kind][0], *given)
    close(scores, torch.from_numpy(frozen[f"{kind}/scores"]))
    close(states, torch.from_numpy(frozen[f"{kind}/states"]))


TORCH = {
    "self_attn.in_proj_": "attention.",
    "self_attn.out_proj": "attention.out",
    "multihead_attn.in_proj_": "cross.",
    "multihead_attn.out_proj": "cross.out",
    "linear1": "mlp.up",
    "linear2": "mlp.down",
}
NORMS = {"encoder": ["attention_norm", "mlp_norm"], "decoder": ["attention_norm", "cross_norm", "mlp_norm"]}


def from_torch(theirs, half):
    """torch's parameters of a half under our names: queries, keys and values are fused there."""
    state = {}
    for name, value in theirs.state_dict().items():
        name = name.replace("layers.", "blocks.")
        for number, norm in enumerate(NORMS[half], 1):
            name = name.replace(f".norm{number}.", f".{norm}.")
        for old, new in TORCH.items():
            name = name.replace(old, new)
        end = name.rpartition(".")[2]
        if name.endswith((f"attention.{end}", f"cross.{end}")):
            stem = name.removesuffix(end)
            state[f"{stem}q.{end}"], state[f"{stem}kv.{end}"] = value.split([42, 84])
        else:
            state[name] = value
    return state


@pytest.mark.parametrize("pre_norm", [False, True])
def test_parity_with_torchs_own_transformer(pre_norm):
    theirs = torch_transformer(pre_norm=pre_norm)
    model = scrambled(decoder_heads=None, decoder_hidden=None, heads=7, pre_norm=pre_norm, eps=1e-6)
    for half in ("encoder", "decoder"):
        ours = getattr(model, half)
        ours.load_state_dict({**from_torch(getattr(theirs, half), half), "position.weight": ours.position.weight})
    table, source_keep, target_keep = model.tokens["shared"], *keeps(left=False)
    x, y = (table(given) + getattr(model, half).position.weight[: given.shape[1]]
            for half, given in (("encoder", SOURCE), ("decoder", TARGET)))  # fmt: skip
    states = theirs(
        x, y, tgt_mask=nn.Transformer.generate_square_subsequent_mask(11).double(),
        src_key_padding_mask=~source_keep, memory_key_padding_mask=~source_keep,
    )  # fmt: skip
    found = model(SOURCE, TARGET, source_keep=source_keep, target_keep=target_keep)
    close(found[target_keep], (states @ table.weight.T)[target_keep])


# --- paths


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_a_padded_pair_is_the_pair_alone(model, left):
    source_keep, target_keep = keeps(left=left)
    for given in ((source_keep, target_keep), (source_keep, None), (None, target_keep)):
        s, t = (torch.ones_like(x, dtype=torch.bool) if keep is None else keep
                for x, keep in zip((SOURCE, TARGET), given))  # fmt: skip
        found = model(SOURCE, TARGET, source_keep=given[0], target_keep=given[1])
        for row in range(6):
            close(found[row, t[row]], model(SOURCE[row, s[row]][None], TARGET[row, t[row]][None])[0])


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_unpadded_is_padded(model, left):
    source_keep, target_keep = keeps(left=left)

    def scores():
        model.zero_grad()
        found = model(SOURCE, TARGET, source_keep=source_keep, target_keep=target_keep)[target_keep]
        found.square().sum().backward()
        return found, [parameter.grad.clone() for parameter in model.parameters()]

    packed, gradients = scores()
    token = packing.padded.set(True)
    padded, others = scores()
    packing.padded.reset(token)
    close(packed, padded)
    for one, other in zip(gradients, others, strict=True):
        close(one / one.abs().max(), other / one.abs().max())


def test_nothing_is_computed_for_padding(model, monkeypatch):
    source_keep, target_keep = keeps(left=False)
    seen = []
    real = Linear.forward
    monkeypatch.setattr(Linear, "forward", lambda self, x: (seen.append(x.shape[:2].numel()), real(self, x))[1])
    model.decode(TARGET, model.read(SOURCE, source_keep), keep=target_keep)
    assert set(seen) == {int(source_keep.sum()), int(target_keep.sum())}


def test_a_source_without_tokens_and_a_target_without_tokens(model):
    source_keep, target_keep = keeps(left=False)
    source_keep[2], target_keep[4] = False, False
    for path in (False, True):
        token = packing.padded.set(path)
        model.zero_grad()
        found = model(SOURCE, TARGET, source_keep=source_keep, target_keep=target_keep)
        assert found.isfinite().all()
        found[target_keep].square().sum().backward()
        packing.padded.reset(token)
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize("left", [None, False, True], ids=["whole", "right", "left"])
def test_cached_is_uncached_for_every_cut(model, static, left):
    source_keep, target_keep = (None, None) if left is None else keeps(left=left)
    source, real = model.read(SOURCE, source_keep), slice(None) if target_keep is None else target_keep
    whole = model.decode(TARGET, source, keep=target_keep)[real]
    for cut in range(1, 11):
        cache = model.new_cache(6, length=11 if static else None)
        pieces = [
            model.decode(TARGET[:, part], source, keep=None if left is None else target_keep[:, part], cache=cache)
            for part in (slice(cut), slice(cut, cut + 1), slice(cut + 1, 11))
            if TARGET[:, part].shape[1]
        ]
        close(torch.cat(pieces, dim=1)[real], whole)


def test_beams_read_the_source_that_would_be_repeated(model):
    """n rows of a target in turn for each source: their keys are not copied, the numbers are those of copies."""
    source_keep, n = keeps(left=False)[0], 3
    target = ids(6 * n, 9, seed=5)
    for keep in (None, source_keep):
        folded, cache = model.read(SOURCE, keep), model.new_cache(6 * n)
        copies = model.read(SOURCE.repeat_interleave(n, 0), None if keep is None else keep.repeat_interleave(n, 0))
        expected = model.score(model.decode(target, copies))
        close(model.score(model.decode(target, folded)), expected)
        for column in range(9):
            close(model.step(target[:, column : column + 1], None, cache, folded), expected[:, column])


def test_beams_of_ragged_targets(model):
    """Packed and folded at once."""
    source_keep, n = keeps(left=True)[0], 2
    target, keep = ids(6 * n, 9, seed=5), ragged(6 * n, 9, seed=6)
    copies = model.read(SOURCE.repeat_interleave(n, 0), source_keep.repeat_interleave(n, 0))
    expected = model.decode(target, copies, keep=keep)
    close(model.decode(target, model.read(SOURCE, source_keep), keep=keep), expected)


def test_a_step_reads_the_sources_that_are_left(model):
    source_keep = keeps(left=False)[0]
    begin, keep, step = model.start(SOURCE, source_keep)
    assert begin.tolist() == [[START]] * 6
    assert keep is None
    cache = model.new_cache(6)
    step(begin, None, cache)
    rows = torch.tensor([4, 0, 5])
    cache.reorder(rows)
    step.select(rows)
    found = step(TARGET[rows, :1], None, cache)
    target = torch.cat([begin, TARGET[:, :1]], dim=1)
    close(found, model(SOURCE, target, source_keep=source_keep)[rows, -1])
    assert step.plain is step


@pytest.mark.unhooked
def test_a_compiled_step_has_the_same_numbers(model):
    expected = sf.generate(model, SOURCE, keep=keeps(left=False)[0], max_new_tokens=9, stop=())
    eager = []
    model.step = torch.compile(model.step, backend="aot_eager")
    begin, _, step = model.start(SOURCE, keeps(left=False)[0])
    assert step.plain is not step
    for each in (step, step.plain):
        cache, found = model.new_cache(6, length=10), begin
        for _ in range(9):
            scores = each(found[:, -1:], None, cache)
            found = torch.cat([found, scores.argmax(-1, keepdim=True)], dim=1)
        eager.append(found)
    assert torch.equal(eager[0], expected)
    assert torch.equal(eager[1], expected)
    assert torch.equal(sf.generate(model, SOURCE, keep=keeps(left=False)[0], max_new_tokens=9, stop=()), expected)


def test_a_later_token_of_the_target_changes_nothing_before_it(model):
    before = model(SOURCE, TARGET)
    for column in range(11):
        changed = TARGET.clone()
        changed[:, column] = (changed[:, column] + 1) % 79
        after = model(SOURCE, changed)
        assert torch.equal(after[:, :column], before[:, :column])
        assert not torch.equal(after[:, column], before[:, column])


def test_every_token_of_the_source_matters_to_every_token_of_the_target(model):
    before = model(SOURCE, TARGET)
    for column in range(13):
        changed = SOURCE.clone()
        changed[:, column] = (changed[:, column] + 1) % 79
        assert ((model(changed, TARGET) - before).abs().amax(-1) > 0).all()


def test_recording_has_the_numbers_and_shows_all_three_attentions(model):
    source_keep = keeps(left=False)[0]
    expected = model(SOURCE, TARGET, source_keep=source_keep)
    with sf.record(model) as record:
        close(model(SOURCE, TARGET, source_keep=source_keep), expected)
    cross = record.attention["decoder.blocks.2.cross"]
    assert cross.shape == (6, 7, 11, 13)
    assert torch.allclose(cross.sum(-1), torch.ones(1).double())
    assert not cross[~source_keep[:, None, None].expand_as(cross)].any()
    assert record.attention["encoder.blocks.0.attention"].shape == (6, 3, 13, 13)
    assert record.attention["decoder.blocks.0.attention"].triu(1).count_nonzero() == 0


def test_recording_shows_what_each_beam_attends_to(model):
    source_keep, target = keeps(left=False)[0], ids(12, 5, seed=5)
    expected = model.decode(target, model.read(SOURCE, source_keep))
    with sf.record(model) as record:
        close(model.decode(target, model.read(SOURCE, source_keep)), expected)
    assert record.attention["decoder.blocks.0.cross"].shape == (12, 7, 5, 13)


# --- decoding


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_ids_are_transformers(published, kind):
    """With a rule that makes it varied: such a model repeats one id for ever otherwise."""
    theirs, folder = published[kind]
    model = sf.load(folder, dtype=torch.float64)
    assert model.generation.start == START
    model.generation = dataclasses.replace(model.generation, no_repeat_ngram=2)
    source_keep = keeps(left=False)[0]
    found = sf.generate(model, SOURCE, keep=source_keep, max_new_tokens=20, stop=())
    assert min(len(set(row.tolist())) for row in found) > 5
    for row in range(6):
        said = theirs.generate(
            SOURCE[row, source_keep[row]][None], max_new_tokens=20, min_new_tokens=20, num_beams=1, do_sample=False,
            no_repeat_ngram_size=2,
        )  # fmt: skip
        if END not in found[row]:  # which theirs may not write before the end
            assert torch.equal(found[row], said[0])


def test_the_room_is_the_targets(model):
    """A source as long as the model leaves all of its length to the target."""
    source = ids(2, 31)
    assert sf.generate(model, source, max_new_tokens=30, stop=()).shape == (2, 31)
    with pytest.raises(ValueError, match=r"1 prompt tokens? and 31 new do not fit a model of 31 positions"):
        sf.generate(model, source, max_new_tokens=31)
    with pytest.raises(ValueError, match="32 tokens do not fit a model of 31 positions"):
        sf.generate(model, ids(2, 32), max_new_tokens=3)


def test_a_model_that_does_not_say_what_a_target_begins_with(model):
    model.generation = Generation()
    with pytest.raises(ValueError, match="does not say which id a target begins with"):
        sf.generate(model, SOURCE, max_new_tokens=3)


def test_too_long_a_target(model):
    with pytest.raises(ValueError, match="32 tokens do not fit a model of 31 positions"):
        model(SOURCE, ids(6, 32))


@pytest.mark.unhooked  # there the shapes are told first
def test_a_keep_that_does_not_fit(model):
    with pytest.raises(ValueError, match=r"keep is bool of shape \[6, 11\]: expected booleans of shape \[6, 13\]"):
        model(SOURCE, TARGET, source_keep=keeps(left=False)[1])


# --- learning


SMALL = {"vocab": 23, "length": 16, "dim": 32, "depth": 2, "heads": 4, "dropout": 0.0}
FORMS = {
    "learned, pre-norm": {},
    "sinusoids, post-norm": {"positions": "sinusoids", "pre_norm": False, "final_norm": False, "scale_embedding": True},
    "two vocabularies, all norms": {"target_vocab": 19, "embedding_norm": True},
}


def fresh(form, **changes):
    torch.manual_seed(0)
    return sf.EncoderDecoder(sf.EncoderDecoderConfig(**{**SMALL, **FORMS[form], **changes}))


@pytest.mark.parametrize("form", FORMS)
def test_every_parameter_gets_a_gradient(form):
    model = fresh(form)
    model(ids(4, 16, vocab=23), ids(4, 16, vocab=19)).square().sum().backward()
    assert not [name for name, each in model.named_parameters() if each.grad is None or not each.grad.any()]


@pytest.mark.parametrize("form", FORMS)
def test_it_overfits_one_batch(form):
    model = fresh(form)
    source, target = ids(8, 9, seed=1, vocab=23), ids(8, 9, seed=2, vocab=19)
    keep = ragged(8, 9, seed=3)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(120):
        scores = model(source, target[:, :-1], source_keep=keep)
        loss = F.cross_entropy(scores.flatten(0, 1), target[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.1


def test_a_new_model_begins_near_chance():
    for name in ("tiny", "mini", "small"):
        model = sf.EncoderDecoder.from_preset(name).eval()
        vocab = model.config.vocab
        with torch.no_grad():
            scores = model(ids(2, 12, vocab=vocab), ids(2, 12, seed=5, vocab=vocab))
        loss = F.cross_entropy(scores[:, :-1].flatten(0, 1), ids(2, 12, seed=5, vocab=vocab)[:, 1:].flatten())
        assert 0.9 < loss / np.log(vocab) < 1.2, name


def test_who_cannot_see_the_future_scores_chance():
    """Each token of the target is drawn anew, whatever the source: to predict it would be to have seen it."""
    model, vocab = fresh("learned, pre-norm"), 8
    draw, optimiser = torch.Generator().manual_seed(0), torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(80):
        source, target = (torch.randint(vocab, (32, 9), generator=draw) for _ in range(2))
        scores = model(source, target[:, :-1])[..., :vocab]
        loss = F.cross_entropy(scores.flatten(0, 1), target[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step > 40:
            assert loss > np.log(vocab) - 0.15
    assert loss < np.log(vocab) + 0.15


def test_dropout_acts_in_training_alone():
    model, given = fresh("learned, pre-norm", dropout=0.5), (ids(2, 9, vocab=23), ids(2, 7, vocab=23))
    model.eval()
    assert torch.equal(model(*given), model(*given))
    model.train()
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {0.5}
    for module in model.modules():  # that of attention alone, then that of one residual alone
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    assert not torch.equal(model(*given), model(*given))
    for module in model.modules():
        if isinstance(module, Attention):
            module.dropout = 0.0
    assert torch.equal(model(*given), model(*given))
    model.decoder.blocks[1].dropout.p = 0.5
    assert not torch.equal(model(*given), model(*given))


def test_small_is_small():
    count = sum(each.numel() for each in sf.EncoderDecoder.from_preset("small").parameters())
    assert 9e6 < count < 10e6


def test_a_preset_for_each_published_size():
    """Counted in transformers' models, which have rows that no position reads, or the sinusoids as parameters."""
    for name, theirs, unread in (
        ("bart-base", 139_420_416, 4 * 768),
        ("bart-large", 406_291_456, 4 * 1024),
        ("mbart-large", 610_851_840, 4 * 1024),
        ("opus-mt", 74_410_496, 2 * 512 * 512),
    ):
        with torch.device("meta"):
            model = page.EncoderDecoder(page.PRESETS[name])
        assert sum(each.numel() for each in model.parameters()) == theirs - unread, name


def test_config_errors():
    for fields, said in (
        ({"positions": "rotary"}, "positions is 'rotary': expected learned or sinusoids"),
        ({"positions": "sinusoids", "dim": 21, "heads": 3}, "dim is odd"),
        ({"decoder_heads": 5}, "5 heads do not divide a width of 256"),
        ({"target_vocab": 0}, "target_vocab is 0: expected a positive integer"),
        ({"activation": "gelu_new"}, "activation is 'gelu_new'"),
    ):
        with pytest.raises(ValueError, match=said):
            sf.EncoderDecoder(sf.EncoderDecoderConfig(**fields))
