"""The bricks, each against the formula or torch's own module, and what later models will need of them."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from scratchformers import nn as bricks
from scratchformers.nn import (
    CAUSAL,
    MLP,
    Attention,
    Block,
    Patches,
    Unembed,
    attend,
    causal_mask,
    padding_mask,
    positions,
)

DIM, HEADS, HIDDEN = 39, 3, 67


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def scramble(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3)
    return module.double().eval()


def by_hand(q, k, v, mask):
    """The formula as the einops lesson writes it out; `mask` is boolean and every row sees something."""
    scores = torch.einsum("bhte,bhse->bhts", q, k) / q.shape[-1] ** 0.5
    return torch.einsum("bhts,bhse->bhte", scores.masked_fill(~mask, -torch.inf).softmax(-1), v)


def test_attend_is_the_formula():
    q, k, v = random(2, 3, 5, 7), random(2, 3, 11, 7), random(2, 3, 11, 7)
    mask = torch.rand(2, 1, 5, 11) < 0.6
    mask[..., 0] = True
    torch.testing.assert_close(attend(q, k, v, mask), by_hand(q, k, v, mask), atol=1e-12, rtol=0)
    torch.testing.assert_close(attend(q, k, v), by_hand(q, k, v, torch.ones(5, 11).bool()), atol=1e-12, rtol=0)
    k, v = k[:, :, :5], v[:, :, :5]
    torch.testing.assert_close(
        attend(q, k, v, CAUSAL), by_hand(q, k, v, torch.ones(5, 5).tril().bool()), atol=1e-12, rtol=0
    )


def test_a_misspelt_sentinel_is_not_taken_for_no_mask():
    x = random(1, 2, 3, 4)
    with pytest.raises(AttributeError):
        attend(x, x, x, "casual")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_query_that_sees_nothing_gives_zero_and_finite_gradients(dtype):
    q, k, v = (torch.randn(2, 3, 5, 8, dtype=dtype, requires_grad=True) for _ in range(3))
    mask = torch.ones(2, 1, 5, 5, dtype=torch.bool)
    mask[0, :, 2] = False
    mask[1] = False
    out = attend(q, k, v, mask)
    assert (out[0, :, 2] == 0).all()
    assert (out[1] == 0).all()
    assert (out[0, :, 3] != 0).any()
    out.float().sum().backward()
    for tensor in (q, k, v):
        assert tensor.grad.isfinite().all()
    assert (v.grad[1] == 0).all()


def copy_attention(ours: Attention, theirs: nn.MultiheadAttention) -> None:
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.q.weight, ours.kv.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.q.bias, ours.kv.bias]))
        theirs.out_proj.load_state_dict(ours.out.state_dict())


def test_attention_is_torchs_for_oneself_and_for_a_source():
    ours, theirs = scramble(Attention(DIM, HEADS)), nn.MultiheadAttention(DIM, HEADS, batch_first=True).double().eval()
    copy_attention(ours, theirs)
    x, source = random(2, 5, DIM), random(2, 11, DIM)
    keep = torch.ones(2, 11, dtype=torch.bool)
    keep[1, 7:] = False
    torch.testing.assert_close(ours(x), theirs(x, x, x)[0], atol=1e-12, rtol=0)
    expected = theirs(x, source, source, key_padding_mask=~keep)[0]  # torch's mask says which to ignore
    actual = ours(x, padding_mask(keep), kv=ours.keys_values(source))
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("pre_norm", [True, False])
def test_block_is_torchs_encoder_layer(pre_norm):
    """Pre-norm is what GPT-2, ViT and CLIP need; post-norm what BERT needs."""
    norm = partial(nn.LayerNorm, eps=1e-3)
    ours = scramble(Block(DIM, Attention(DIM, HEADS), MLP(DIM, HIDDEN, bricks.gelu), norm, pre_norm=pre_norm))
    theirs = nn.TransformerEncoderLayer(
        DIM, HEADS, HIDDEN, activation=F.gelu, layer_norm_eps=1e-3, batch_first=True, norm_first=pre_norm
    )
    theirs = theirs.double().eval()
    copy_attention(ours.attention, theirs.self_attn)
    for a, b in ((ours.mlp.up, theirs.linear1), (ours.mlp.down, theirs.linear2)):
        b.load_state_dict(a.state_dict())
    theirs.norm1.load_state_dict(ours.attention_norm.state_dict())
    theirs.norm2.load_state_dict(ours.mlp_norm.state_dict())
    x, keep = random(2, 7, DIM), torch.ones(2, 7, dtype=torch.bool)
    keep[1, 4:] = False
    expected = theirs(x, src_key_padding_mask=~keep)[keep]
    torch.testing.assert_close(ours(x, padding_mask(keep))[keep], expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("pre_norm", [True, False])
def test_block_with_cross_attention_is_torchs_decoder_layer(pre_norm):
    """What the encoder-decoder will need: a causal block that reads a source of another length."""
    ours = scramble(
        Block(
            DIM,
            Attention(DIM, HEADS),
            MLP(DIM, HIDDEN, bricks.ACTIVATIONS["relu"]),
            cross=Attention(DIM, HEADS),
            pre_norm=pre_norm,
        )
    )
    theirs = nn.TransformerDecoderLayer(DIM, HEADS, HIDDEN, activation=F.relu, batch_first=True, norm_first=pre_norm)
    theirs = theirs.double().eval()
    copy_attention(ours.attention, theirs.self_attn)
    copy_attention(ours.cross, theirs.multihead_attn)
    pairs = (ours.mlp.up, theirs.linear1), (ours.mlp.down, theirs.linear2), (ours.attention_norm, theirs.norm1)
    for a, b in (*pairs, (ours.cross_norm, theirs.norm2), (ours.mlp_norm, theirs.norm3)):
        b.load_state_dict(a.state_dict())
    x, source, keep = random(2, 5, DIM), random(2, 11, DIM), torch.ones(2, 11, dtype=torch.bool)
    keep[0, 8:] = False
    hidden = torch.ones(5, 5).triu(1).bool()
    expected = theirs(x, source, tgt_mask=hidden, memory_key_padding_mask=~keep)
    actual = ours(x, CAUSAL, source=ours.cross.keys_values(source), source_mask=padding_mask(keep))
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=0)


def test_activations_are_the_references():
    from transformers.activations import ACT2FN

    x = torch.linspace(-6, 6, 1001, dtype=torch.float64)
    pairs = {"gelu": bricks.gelu, "gelu_new": bricks.gelu_tanh, "quick_gelu": bricks.quick_gelu}
    pairs |= {"relu": bricks.ACTIVATIONS["relu"], "silu": bricks.ACTIVATIONS["silu"]}
    for name, ours in pairs.items():
        torch.testing.assert_close(ours(x), ACT2FN[name](x), atol=1e-12, rtol=0)
    assert (bricks.gelu(x) - bricks.gelu_tanh(x)).abs().max() > 1e-4
    assert (bricks.gelu(x) - bricks.quick_gelu(x)).abs().max() > 1e-2


def test_patches_are_a_convolution_with_the_stride_of_its_kernel():
    project = nn.Linear(3 * 5 * 5, 13)
    conv = nn.Conv2d(3, 13, 5, stride=5)
    conv.load_state_dict({"weight": rearrange(project.weight, "d (c p q) -> d c p q", c=3, p=5), "bias": project.bias})
    images = torch.randn(2, 3, 10, 35)
    expected = rearrange(conv(images), "b d y x -> b (y x) d")
    torch.testing.assert_close(Patches(5, project)(images), expected)


def test_sinusoids_are_sines_then_cosines():
    """As Marian's files expect them, and each half of MAE's two-dimensional ones."""
    table = bricks.sinusoids(torch.arange(11), 6)
    for position in range(11):
        for i in range(3):
            angle = torch.tensor(position / 10000 ** (2 * i / 6), dtype=torch.float64)
            assert table[position, i] == angle.sin().float()
            assert table[position, 3 + i] == angle.cos().float()


def test_unembed_is_the_embedding_and_no_entry_of_its_own():
    model = nn.Module()
    model.token = nn.Embedding(11, 5)
    model.unembed = Unembed(model.token)
    assert list(model.state_dict()) == ["token.weight"]
    assert len(list(model.parameters())) == 1
    x = torch.randn(1, 2, 5)
    model.load_state_dict({"token.weight": torch.randn(11, 5)}, assign=True)
    torch.testing.assert_close(model.unembed(x), x @ model.token.weight.T)
    twin = copy.deepcopy(model)
    twin.token.weight.data.zero_()
    assert (twin.unembed(x) == 0).all()
    assert (model.unembed(x) != 0).any()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=7, max_size=7), min_size=1, max_size=4), st.integers(0, 6))
def test_masks_and_positions_by_brute_force(rows, first):
    keep, column = torch.tensor(rows), torch.arange(first, 7)
    mask, place = causal_mask(keep, column), positions(keep)
    for b, row in enumerate(rows):
        for i, c in enumerate(range(first, 7)):
            assert mask[b, 0, i].tolist() == [row[s] and s <= c for s in range(7)]
        for s in range(7):
            assert place[b, s] == max(0, sum(row[: s + 1]) - 1)


def test_attend_can_be_replaced_on_one_instance():
    """The seam for recording: one block is looked at, the others keep the fused call."""
    seen = []

    def recording(q, k, v, mask):
        seen.append(q.shape)
        return attend(q, k, v, mask)

    first, second = Attention(DIM, HEADS), Attention(DIM, HEADS)
    x = torch.randn(2, 5, DIM)
    fused = first(x, CAUSAL)
    first.attend = recording
    assert torch.equal(first(x, CAUSAL), fused)
    second(x, CAUSAL)
    assert seen == [(2, HEADS, 5, DIM // HEADS)]


def test_a_mask_may_attend_by_itself():
    """The seam for batches without padding: two sentences in one row, each attending to itself."""

    class Sentences:
        def attend(self, q, k, v):
            parts = [attend(*(x[:, :, i] for x in (q, k, v)), CAUSAL) for i in (slice(0, 3), slice(3, 8))]
            return torch.cat(parts, dim=2)

    layer, x = scramble(Attention(DIM, HEADS)), random(1, 8, DIM)
    apart = torch.cat([layer(x[:, :3], CAUSAL), layer(x[:, 3:], CAUSAL)], dim=1)
    torch.testing.assert_close(layer(x, Sentences()), apart, atol=1e-12, rtol=0)


def test_every_linear_can_be_replaced():
    """The seam for other storage: any module that maps the last axis will do, nothing reads `.weight` of a linear."""

    class Stored(nn.Module):
        def __init__(self, linear):
            super().__init__()
            self.apply_ = lambda x: F.linear(x, linear.weight.detach(), linear.bias.detach())

        def forward(self, x):
            return self.apply_(x)

    block = scramble(Block(DIM, Attention(DIM, HEADS), MLP(DIM, HIDDEN, bricks.gelu), cross=Attention(DIM, HEADS)))
    x, source = random(2, 5, DIM), random(2, 11, DIM)
    before = block(x, CAUSAL, source=block.cross.keys_values(source))
    for parent in list(block.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, Stored(child))
    assert not any(isinstance(module, nn.Linear) for module in block.modules())
    assert torch.equal(block(x, CAUSAL, source=block.cross.keys_values(source)), before)


def test_heads_that_do_not_divide_the_width_are_a_clear_error():
    with pytest.raises(ValueError, match="5 heads do not divide a width of 39"):
        Attention(39, 5)
