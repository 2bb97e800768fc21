"""GPT-2 against transformers on scrambled weights in float64, and every path against the plain one."""

import copy
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F

import scratchformers as sf
from scratchformers.generate import evaluating

TINY = sf.GPT2Config(vocab=31, length=17, dim=20, depth=2, heads=2, dropout=0.0)


def close(a, b, atol=1e-10):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


def test_logits_are_the_references_in_float64(published, model):
    ids = reference.ids(3, 47)
    close(model(ids), published[0](ids).logits)


def test_logits_are_the_references_in_float32(published):
    """1e-4 of logits that spread over tens: float32 itself, in another order of additions."""
    theirs, folder = published
    ours, ids = sf.load(folder), reference.ids(3, 47)
    assert ours.token.weight.dtype == torch.float32
    close(ours(ids), copy.deepcopy(theirs).float()(ids).logits, atol=1e-4)


def test_logits_and_text_are_the_frozen_ones(model):
    """What transformers answered when the file was written: it holds when the library has moved on."""
    frozen = np.load(Path(__file__).parent / "frozen" / "gpt2.npz")
    close(model(torch.from_numpy(frozen["ids"])), torch.from_numpy(frozen["logits"]))
    text = sf.generate(model, torch.from_numpy(frozen["ids"]), max_new_tokens=30, stop=())
    assert torch.equal(text, torch.from_numpy(frozen["greedy"]))


def test_the_frozen_outputs_are_what_the_reference_gives_today():
    from freeze.gpt2 import outputs

    frozen, today = np.load(Path(__file__).parent / "frozen" / "gpt2.npz"), outputs()
    close(torch.from_numpy(today["logits"]), torch.from_numpy(frozen["logits"]))
    assert np.array_equal(today["greedy"], frozen["greedy"])


def test_hidden_states_are_the_references(published, model):
    ids = reference.ids(2, 11)
    close(model.encode(ids), published[0].transformer(ids).last_hidden_state)


def padded(rows, side):
    """Rows of unequal length as one batch: ids, keep."""
    length = max(map(len, rows))
    ids, keep = torch.zeros(len(rows), length, dtype=torch.long), torch.zeros(len(rows), length, dtype=torch.bool)
    for i, row in enumerate(rows):
        place = slice(length - len(row), None) if side == "left" else slice(0, len(row))
        ids[i, place], keep[i, place] = row, True
    return ids, keep


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_row_is_the_row_alone(model, side):
    rows = [reference.ids(1, n, seed=n)[0] for n in (1, 5, 13, 29)]
    ids, keep = padded(rows, side)
    logits = model(ids, keep=keep)
    for i, row in enumerate(rows):
        close(logits[i][keep[i]], model(row[None])[0], atol=1e-12)
    assert torch.equal(model(torch.where(keep, ids, 96), keep=keep), logits), "what stands at padding must not matter"
    assert (model.encode(ids, keep=keep)[~keep] == 0).all()


@pytest.mark.parametrize("keep", [
    [[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [0, 0, 0, 0, 1], [1, 1, 1, 0, 0]],
    [[1, 0, 1, 1, 0], [0, 1, 0, 0, 1], [0, 0, 0, 0, 0], [0, 1, 1, 1, 0]],
    [[0, 0, 0, 0, 0]] * 4,
])  # fmt: skip
def test_without_padding_is_with_padding(model, keep, monkeypatch):
    """Hidden states, gradients, and what a cache holds for the tokens after, whichever path was taken."""
    from scratchformers.models import gpt2

    ids, keep, more, found = reference.ids(4, 5), torch.tensor(keep).bool(), reference.ids(4, 3, seed=2), []
    taken = gpt2.unpadded(keep, first=True, causal=True)
    assert (taken is None) == (not bool(keep.any()))
    for path in (gpt2.unpadded, lambda *_, **__: None):
        monkeypatch.setattr(gpt2, "unpadded", path)
        model.zero_grad()
        states = model.encode(ids, keep=keep)
        states.square().sum().backward()
        cache = model.new_cache(4)
        with torch.no_grad():
            first, after = model(ids, keep=keep, cache=cache), model(more, cache=cache)
        found.append([states, first, after, cache.next, cache.layers[1].k, *(p.grad for p in model.parameters())])
        found[-1][4] = found[-1][4].masked_fill(~cache.keep[:, None, :, None], 0.0)  # padding holds what it may
    for a, b in zip(*found):
        close(a, b, atol=1e-10)


def test_the_path_without_padding_does_no_work_on_padding(model):
    seen = []
    model.blocks[0].mlp.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))
    keep = torch.tensor([[True] * 9, [False] * 8 + [True], [False] * 4 + [True] * 5])
    model(reference.ids(3, 9), keep=keep)
    assert seen == [(1, 15, 39)]
    cache = model.new_cache(3)
    model(reference.ids(3, 9), keep=keep, cache=cache)
    model(reference.ids(3, 1), cache=cache)
    assert seen[1:] == [(1, 15, 39), (3, 1, 39)]


def test_a_fully_padded_row_is_zero_and_has_finite_gradients(model):
    keep = torch.tensor([[True] * 5, [False] * 5])
    logits = model.train()(reference.ids(2, 5), keep=keep)
    assert (logits[1] == 0).all()
    logits.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_a_batch_is_its_rows(model):
    ids = reference.ids(5, 11)
    close(model(ids), torch.cat([model(row[None]) for row in ids]), atol=1e-12)


def test_changing_a_token_leaves_what_is_before_it_bit_identical(model):
    ids = reference.ids(1, 23)
    before = model(ids)
    for t in (0, 1, 11, 22):
        changed = ids.clone()
        changed[0, t] = (ids[0, t] + 1) % 97
        after = model(changed)
        assert torch.equal(after[:, :t], before[:, :t])
        assert (after[:, t:] != before[:, t:]).any(-1).all()


@pytest.fixture(params=[None, 60], ids=["dynamic", "static"])
def room(request):
    """Of a cache: none, for it grows; or more than the model has positions, since padding takes columns too."""
    return request.param


def test_cached_is_uncached_for_every_cut_of_the_prompt(model, room):
    ids = reference.ids(2, 13)
    plain = model(ids)
    for cut in range(1, 13):
        cache = model.new_cache(2, length=room)
        assert cache.empty
        parts = [model(ids[:, :cut], cache=cache), model(ids[:, cut:], cache=cache)]
        assert not cache.empty
        close(torch.cat(parts, dim=1), plain, atol=1e-12)
    cache = model.new_cache(2, length=room)
    close(torch.cat([model(ids[:, t : t + 1], cache=cache) for t in range(13)], dim=1), plain, atol=1e-12)


@pytest.mark.parametrize("side", ["left", "right"])
def test_cached_is_uncached_with_padding(model, side, room):
    """Also where padding ends up between a row's tokens: right-padded prompts that were continued."""
    rows = [reference.ids(1, n, seed=n)[0] for n in (2, 5, 9)]
    ids, keep = padded(rows, side)
    more = reference.ids(3, 4, seed=9)
    for cut in range(1, 9):
        cache = model.new_cache(3, length=room)
        first = model(ids[:, :cut], keep=keep[:, :cut], cache=cache)
        second = model(ids[:, cut:], keep=keep[:, cut:], cache=cache)
        third = model(more, cache=cache)
        for i, row in enumerate(rows):
            alone = model(torch.cat([row, more[i]])[None])[0]
            kept = torch.cat([first[i][keep[i, :cut]], second[i][keep[i, cut:]], third[i]])
            close(kept, alone, atol=1e-12)
        assert cache.next.tolist() == [len(row) + 4 for row in rows]


def test_padding_that_comes_after_an_unpadded_prompt(model, room):
    ids = reference.ids(2, 9)
    keep = torch.tensor([[True] * 4, [True, False, True, False]])
    cache = model.new_cache(2, length=room)
    model(ids[:, :5], cache=cache)
    logits = model(ids[:, 5:], keep=keep, cache=cache)
    alone = torch.cat([ids[1, :5], ids[1, 5:][keep[1]]])[None]
    close(logits[1][keep[1]], model(alone)[0, 5:], atol=1e-12)
    close(logits[0], model(ids[:1])[0, 5:], atol=1e-12)


def test_a_cache_can_be_reordered(model, room):
    rows = [reference.ids(1, n, seed=n)[0] for n in (2, 5, 9)]
    ids, keep = padded(rows, "left")
    cache, order = model.new_cache(3, length=room), torch.tensor([2, 0, 0])
    model(ids, keep=keep, cache=cache)
    cache.reorder(order)
    more = reference.ids(3, 2, seed=5)
    logits = model(more, cache=cache)
    for i, j in enumerate(order.tolist()):
        close(logits[i], model(torch.cat([rows[j], more[i]])[None])[0, -2:], atol=1e-12)


def test_a_caches_room_grows_and_what_it_gave_before_stays(model):
    """Tokens one by one, in pieces, reordered between, across every growth; views given out keep their values."""
    ids, cache, given = reference.ids(2, 53), model.new_cache(2), []
    for start, stop in [(0, 1), *((t, t + 1) for t in range(1, 30)), (30, 45), (45, 46), (46, 53)]:
        close(model(ids[:, start:stop], cache=cache), model(ids)[:, start:stop], atol=1e-12)
        layer = cache.layers[2]
        assert layer.k.shape[2] == layer.v.shape[2] == stop
        given.append((layer.k, layer.k.clone()))
        if stop == 20:
            cache.reorder(torch.tensor([1, 0]))
            ids = ids.flip(0)
    assert all(torch.equal(view, copy) for view, copy in given)


def test_gradients_flow_through_a_cache(model, room):
    ids, gradients = reference.ids(1, 9), []
    for parts in ([ids], [ids[:, t : t + 1] for t in range(9)]):
        model.zero_grad()
        cache = model.new_cache(1, length=room)
        torch.cat([model(part, cache=cache) for part in parts], dim=1).square().mean().backward()
        gradients.append(model.blocks[0].attention.kv.weight.grad)
    close(*gradients)


def test_what_a_static_cache_has_not_written_cannot_be_seen(model):
    """Whatever stands in it, short of NaN; and it begins with zeros, so that no NaN does."""
    ids, clean, dirty = reference.ids(2, 9), model.new_cache(2, length=20), model.new_cache(2, length=20)
    for cache in (clean, dirty):
        model(ids[:, :5], cache=cache)
    for layer, other in zip(clean.layers, dirty.layers):
        assert not layer.k[:, :, 5:].any()
        assert not layer.v[:, :, 5:].any()
        other.k[:, :, 5:], other.v[:, :, 5:] = 1e3, -1e3
    assert torch.equal(model(ids[:, 5:], cache=clean), model(ids[:, 5:], cache=dirty))


def test_a_full_static_cache_says_so_and_changes_nothing(model):
    ids, cache = reference.ids(2, 9), model.new_cache(2, length=8)
    model(ids[:, :5], cache=cache)
    with pytest.raises(ValueError, match="9 tokens do not fit a cache made for 8"):
        model(ids[:, 5:], cache=cache)
    close(model(ids[:, 5:8], cache=cache), model(ids)[:, 5:8], atol=1e-12)
    with pytest.raises(ValueError, match="length is 0"):
        model.new_cache(1, length=0)
    cache = model.new_cache(1, length=60)
    with pytest.raises(ValueError, match="54 tokens do not fit a model of 53 positions"):
        model(reference.ids(1, 54), cache=cache)
    assert cache.empty
    assert int(cache.written) == 0


@pytest.mark.parametrize("room", [None, 20])
def test_a_cache_filled_in_inference_mode_can_be_continued_outside(model, room):
    ids, cache = reference.ids(2, 9), model.new_cache(2, length=room)
    with torch.inference_mode():
        model(ids[:, :5], cache=cache)
    close(model(ids[:, 5:], cache=cache).detach(), model(ids).detach()[:, 5:], atol=1e-12)


def test_more_tokens_than_positions_are_refused_and_change_nothing(model):
    with pytest.raises(ValueError, match="54 tokens do not fit a model of 53 positions"):
        model(reference.ids(1, 54))
    cache = model.new_cache(1)
    ids = reference.ids(1, 53)
    model(ids[:, :50], cache=cache)
    with pytest.raises(ValueError, match="54 tokens"):
        model(ids[:, :4], cache=cache)
    close(model(ids[:, 50:], cache=cache), model(ids)[:, 50:], atol=1e-12)
    keep = torch.ones(1, 60, dtype=torch.bool)
    keep[:, :7] = False  # 60 columns, 53 tokens: it fits
    close(model(reference.ids(1, 60), keep=keep)[:, 7:], model(reference.ids(1, 60)[:, 7:]), atol=1e-12)


def test_a_cache_of_another_batch_is_refused(model, room):
    with pytest.raises(ValueError, match="made for 2 rows and got 3"):
        model(reference.ids(3, 4), cache=model.new_cache(2, length=room))


@pytest.mark.unhooked
@pytest.mark.parametrize("padding", [False, True])
def test_compiled_is_eager(padding):
    """One graph without a break. The backend runs the traced graph itself, so that no C compiler is needed."""
    model = sf.GPT2(sf.GPT2Config(vocab=31, length=17, dim=20, depth=2, heads=2)).double().eval()
    ids = torch.randint(31, (2, 11))
    keep = torch.ones(2, 11, dtype=torch.bool)
    keep[1, :4], keep[0] = False, not padding
    keep[0, -1] = True
    arguments = {"keep": keep} if padding else {}
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    close(compiled(ids, **arguments), model(ids, **arguments), atol=1e-12)
    torch._dynamo.reset()


@pytest.mark.unhooked
def test_a_compiled_step_is_compiled_once(model):
    """For prompts of any length: `generate` reads them with the step as it is written, into a static cache."""
    from torch._dynamo.testing import CompileCounterWithBackend

    counter, prompts = CompileCounterWithBackend("aot_eager"), [reference.ids(2, n, seed=n) for n in (3, 7, 12)]
    keep = torch.ones(2, 7, dtype=torch.bool)
    keep[1, :3] = False
    plain = [sf.generate(model, ids, max_new_tokens=20 - ids.shape[1]) for ids in prompts]
    padded = sf.generate(model, prompts[1], keep=keep, max_new_tokens=13)
    model.step = torch.compile(model.step, fullgraph=True, backend=counter)
    for ids, expected in zip(prompts, plain):
        assert torch.equal(sf.generate(model, ids, max_new_tokens=20 - ids.shape[1]), expected)
        assert counter.frame_count == 1
    assert torch.equal(sf.generate(model, prompts[1], keep=keep, max_new_tokens=13), padded)
    assert counter.frame_count == 1
    torch._dynamo.reset()


def test_published_sizes():
    """Parameter counts as OpenAI's repository and transformers give them, the tied table counted once."""
    counts = {
        "gpt2": 124439808,
        "gpt2-medium": 354823168,
        "gpt2-large": 774030080,
        "gpt2-xl": 1557611200,
        "distilgpt2": 81912576,
    }
    for name, count in counts.items():
        with torch.device("meta"):
            model = sf.GPT2.from_preset(name)
        assert sum(parameter.numel() for parameter in model.parameters()) == count
    with pytest.raises(ValueError, match="no preset 'gpt-2': expected one of gpt2, gpt2-medium"):
        sf.GPT2.from_preset("gpt-2")


@pytest.mark.unhooked  # the hook would refuse a wrong type before we do
def test_configs_are_checked_when_made():
    for changes, said in (
        ({"dim": 0}, "dim is 0: expected a positive integer"),
        ({"depth": 2.5}, "depth is 2.5"),
        ({"heads": True}, "heads is True"),
        ({"dropout": 1.0}, "dropout is 1.0: expected 0 <= dropout < 1"),
    ):
        with pytest.raises(ValueError, match=said):
            sf.GPT2Config(**changes)
    with pytest.raises(ValueError, match="7 heads do not divide a width of 20"):
        sf.GPT2(sf.GPT2Config(dim=20, heads=7, depth=1, vocab=5, length=5))
    with pytest.raises(TypeError):
        sf.GPT2Config(hiden=3)


def test_branches_that_end_in_the_residual_begin_smaller():
    torch.manual_seed(0)
    model = sf.GPT2(sf.GPT2Config(vocab=101, length=50, dim=200, depth=8, heads=2))
    assert float(model.token.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    block = model.blocks[3]
    for linear, std in (
        (block.attention.q, 0.02),
        (block.mlp.up, 0.02),
        (block.attention.out, 0.005),
        (block.mlp.down, 0.005),
    ):
        assert float(linear.weight.detach().std()) == pytest.approx(std, rel=0.05)
        assert (linear.bias == 0).all()


@pytest.mark.unhooked  # the hook would refuse the shapes before we do
@pytest.mark.parametrize(
    "keep", [torch.ones(2, 6).bool(), torch.ones(2, 1).bool(), torch.ones(2, 5).long(), torch.ones(2, 5)]
)
def test_a_keep_that_does_not_fit_the_ids_is_refused(model, keep):
    """transformers takes the mask of everything so far; ours covers the ids passed now, and must not broadcast."""
    with pytest.raises(ValueError, match=r"keep is .*expected booleans of shape \[2, 5\]"):
        model(reference.ids(2, 5), keep=keep)


def test_it_learns_one_batch_by_heart_and_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    model, ids = sf.GPT2(TINY), torch.randint(31, (4, 18))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    def loss():
        return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())

    first = loss()
    first.backward()
    assert abs(first.detach() - torch.tensor(31.0).log()) < 0.1, "an untrained model knows nothing"
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad != 0).any(), name
    for _ in range(150):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss() < 0.05


def test_dropout_acts_in_training_and_not_in_evaluation():
    model = sf.GPT2(sf.GPT2Config(vocab=31, length=17, dim=20, depth=2, heads=2, dropout=0.5))
    ids = torch.randint(31, (2, 9))
    model.eval()
    assert torch.equal(model(ids), model(ids))
    model.train()
    assert not torch.equal(model(ids), model(ids))
    # At each of its places on its own: the embedding, the attention weights, both residual branches.
    with evaluating(model):
        plain = model(ids)
        for module in (model, model.blocks[0], model.blocks[0].attention):
            module.training = True
            for child in module.children():
                child.training = isinstance(child, torch.nn.Dropout)
            assert not torch.equal(model(ids), plain)
            model.eval()


def test_evaluating_puts_every_module_back():
    model = sf.GPT2(TINY).train()
    model.blocks[0].eval()
    with evaluating(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
    assert model.training
    assert model.blocks[1].training
    assert not model.blocks[0].attention.training
