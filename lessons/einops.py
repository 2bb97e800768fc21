# %% [markdown]
# # einops: tensors whose axes have names
#
# Every model in this repository moves axes in one way, with the einops library. At the end of this lesson you can
#
# - read and write `rearrange`, `reduce`, `repeat`, `einsum`, `pack` and `unpack`;
# - cut pictures into patches and put them back together, pixel for pixel;
# - split attention heads, and recognise the wrong ways that have the right shape;
# - write multi-head attention by hand and prove it equal to PyTorch's own.
#
# The letters, all the way through: `b` batch, `t` time (queries), `s` source time (keys and values), `d` width,
# `h` heads, `e` width of one head, so that `d = h e`. Pictures: `c` channels, `y x` rows and columns of patches,
# `p q` rows and columns of pixels inside one patch; `g i j k n` where a letter only counts.

# %%
import sys
from importlib.metadata import version
from pathlib import Path

# Trap: this file has the library's name, so from this folder `import einops` would import the lesson itself.
sys.path = [folder for folder in sys.path if not Path(folder, "einops.py").is_file()]
import einops

assert einops.__version__ == version("einops")
print("einops", einops.__version__)

# %%
import timeit

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from einops import einsum, pack, rearrange, reduce, repeat, unpack
from torch import nn

torch.manual_seed(0)  # for the weights of modules
generator = torch.Generator().manual_seed(0)  # for data


def normal(*shape):
    return torch.randn(shape, generator=generator)


print("torch", torch.__version__)

# %% [markdown]
# ## 1. Names instead of numbers
#
# `x.permute(0, 2, 1, 3)` says which positions move, but not what they mean. `"b t h e -> b h t e"` says both, and is
# checked when it runs. Left of the arrow stand the axes as they are, right of it the axes as you want them.
#
# Here is a tensor one can read: four time steps of six features. The **tens digit is the time step, the ones digit is
# the feature**: 25 is feature 5 of step 2. It comes back in part 4.

# %%
x = 10 * torch.arange(1, 5)[:, None] + torch.arange(1, 7)
print(x, rearrange(x, "t d -> d t"), sep="\n")
assert torch.equal(rearrange(x, "t d -> d t"), x.T)

# %% [markdown]
# Parentheses join axes. **The last letter inside runs fastest**, so the order of letters is the order of the numbers.

# %%
for pattern in ("t d -> (t d)", "t d -> (d t)"):
    print(pattern, rearrange(x, pattern).tolist())
assert rearrange(x, "t d -> (t d)")[:2].tolist() == [11, 12]
assert rearrange(x, "t d -> (d t)")[:2].tolist() == [11, 21]

# %% [markdown]
# Parentheses on the left split an axis; you give all sizes but one. To undo a pattern, write it backwards.

# %%
parts = rearrange(x, "t (h e) -> t h e", h=2)
print("step 1 in two parts of three:", parts[0].tolist())
assert torch.equal(rearrange(parts, "t h e -> t (h e)"), x)

# %% [markdown]
# A pattern that does not fit is an error at that line, not a surprise ten lines later.

# %%
misfits = {"b t d -> t b d": {}, "t (h e) -> t h e": {"h": 4}, "t d -> t": {}}
refused = []
for pattern, sizes in misfits.items():
    try:
        rearrange(x, pattern, **sizes)
    except einops.EinopsError as error:
        refused.append(pattern)
        print(f"{pattern}  {sizes or ''}\n    {str(error).splitlines()[-1].strip()}")
assert refused == list(misfits)

# %% [markdown]
# ## 2. The rest of the vocabulary
#
# `reduce`: an axis missing on the right is averaged, summed, or its maximum taken.

# %%
for how in ("mean", "max", "sum"):
    print(f"{how:4} over time:", reduce(x.float(), "t d -> d", how).tolist())
assert torch.equal(reduce(x, "t d -> t", "max"), x.amax(dim=1))

# %% [markdown]
# **Trap: the mean over padding.** Two sentences, of 5 and 3 tokens, share a batch. `keep` is True at real tokens. A
# plain mean counts the padding; setting it to 0 and still dividing by 5 is wrong too. Divide by what was kept.

# %%
hidden = normal(2, 5, 4)
keep = torch.arange(5) < torch.tensor([[5], [3]])
real = hidden.masked_fill(~rearrange(keep, "b t -> b t 1"), 0)
right = reduce(real, "b t d -> b d", "sum") / reduce(keep.float(), "b t -> b 1", "sum")
alone = reduce(hidden[1, :3], "t d -> d", "mean")
for name, mean in {"plain": hidden.mean(dim=1), "zeroed, by 5": real.mean(dim=1), "by what was kept": right}.items():
    print(f"{name:16} off by {(mean[1] - alone).abs().max():.4f} from the short sentence alone")
assert torch.allclose(right[1], alone, atol=1e-6)
assert not torch.allclose(hidden.mean(dim=1)[1], alone, atol=0.1)
assert not torch.allclose(real.mean(dim=1)[1], alone, atol=0.1)

# %% [markdown]
# `repeat`: an axis that is new on the right needs a size. One learned query token becomes one for each row of the
# batch. All rows are the same parameter, so it collects the gradient of all of them.

# %%
token = nn.Parameter(normal(4))
queries = repeat(token, "d -> b 1 d", b=3)
queries.sum().backward()
print(tuple(queries.shape), "gradient:", token.grad.tolist())
assert token.grad.tolist() == [3, 3, 3, 3]

# %% [markdown]
# With parentheses, `repeat` turns each pixel into a block (upsampling) and `reduce` each block into a pixel (pooling).

# %%
small = normal(2, 3, 4, 6)
large = repeat(small, "b c y x -> b c (y p) (x q)", p=2, q=2)
pooled = reduce(small, "b c (y p) (x q) -> b c y x", "max", p=2, q=2)
print(*(tuple(z.shape) for z in (small, large, pooled)))
assert torch.equal(large, F.interpolate(small, scale_factor=2, mode="nearest"))
assert torch.equal(pooled, F.max_pool2d(small, 2))

# %% [markdown]
# `einsum`: multiply where letters agree, sum over letters missing on the right. Below: the matrix product, then all
# scores between queries and keys, for every row and head at once.

# %%
first, second = normal(2, 3), normal(3, 4)
assert torch.allclose(einsum(first, second, "i j, j k -> i k"), first @ second, atol=1e-6)
q, k = normal(2, 2, 5, 8), normal(2, 2, 7, 8)
scores = einsum(q, k, "b h t e, b h s e -> b h t s")
print("scores", tuple(scores.shape))
assert torch.allclose(scores[1, 0, 4, 6], q[1, 0, 4] @ k[1, 0, 6], atol=1e-5)

# %% [markdown]
# `pack` lays tensors side by side where `*` stands, each with as many axes there as it likes, none included; `unpack`
# gives them back. So a class token joins its patches, and pictures of different sizes become one sequence.

# %%
for pattern, pieces in {"b * d": (normal(2, 4), normal(2, 6, 4)), "* d": (normal(2, 3, 4), normal(4, 5, 4))}.items():
    packed, shapes = pack(pieces, pattern)
    print(f"{pattern:5}", *(tuple(piece.shape) for piece in pieces), "->", tuple(packed.shape))
    for before, after in zip(pieces, unpack(packed, shapes, pattern), strict=True):
        assert torch.equal(before, after)

# %% [markdown]
# ## 3. Pictures into patches
#
# A Vision Transformer reads a picture as a sequence of patches. Two generated pictures, 32 x 48 on purpose: square ones
# hide a swap of rows and columns. (A list of tensors counts as one more axis, the first.)

# %%
down, across = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1.5, 1.5, 48), indexing="ij")
disc = ((down - 0.2) ** 2 + (across + 0.4) ** 2 < 0.4).float()
picture = torch.stack([(across + 1.5) / 3, (down + 1) / 2, disc])
patches = rearrange([picture, 1 - picture], "b c (y p) (x q) -> b (y x) (c p q)", p=8, q=8)
print("two of", tuple(picture.shape), "->", tuple(patches.shape))
assert torch.equal(patches[0, 7], picture[:, 8:16, 8:16].flatten())  # 6 patches a row: number 7 is row 1, column 1

# %% [markdown]
# The same patches with a white line around each: einops puts the mosaic together as well.

# %%
framed = F.pad(rearrange(patches[0], "n (c p q) -> n c p q", c=3, p=8), (1, 1, 1, 1), value=1.0)
figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
axes[0].imshow(rearrange(picture, "c y x -> y x c").numpy())
axes[0].set(title="the picture, 32 x 48")
axes[1].imshow(rearrange(framed, "(y x) c p q -> (y p) (x q) c", y=4).numpy())
axes[1].set(title="24 patches of 8 x 8, in reading order")
plt.show()
plt.close(figure)

# %% [markdown]
# Many implementations embed patches with a convolution whose stride is its kernel. That is the same linear map: flatten
# the kernel in the same order, `(c p q)`.

# %%
convolution = nn.Conv2d(3, 20, kernel_size=8, stride=8)
expected = rearrange(convolution(torch.stack([picture, 1 - picture])), "b d y x -> b (y x) d")
kernel = rearrange(convolution.weight, "d c p q -> d (c p q)")
embedded = F.linear(patches, kernel, convolution.bias)
print(f"largest difference: {(embedded - expected).abs().max():.1e}")
assert torch.allclose(embedded, expected, atol=1e-5)

# %% [markdown]
# **Trap: `(p q c)` has the same shape** and another order: red, green, blue of one pixel, then of the next. Both are in
# use (ViT-MAE reads patches as `(c p q)` and predicts them as `(p q c)`), so patches and weights must agree.

# %%
pixels = rearrange(patches, "b n (c p q) -> b n (p q c)", c=3, p=8)
mixed = F.linear(pixels, kernel, convolution.bias)
agreed = F.linear(pixels, rearrange(convolution.weight, "d c p q -> d (p q c)"), convolution.bias)
print("same shape:", pixels.shape == patches.shape, f"  off by {(mixed - expected).abs().max():.2f}")
assert torch.allclose(agreed, expected, atol=1e-5)
assert not torch.allclose(mixed, expected, atol=1e-1)

# %% [markdown]
# Backwards, exactly. The sequence does not know its rows and columns: 24 patches are 4 x 6 or 6 x 4, so say which.

# %%
back = rearrange(patches, "b (y x) (c p q) -> b c (y p) (x q)", y=4, p=8, q=8)
scrambled = rearrange(patches, "b (y x) (c p q) -> b c (y p) (x q)", y=6, p=8, q=8)
print("y=4:", tuple(back.shape), "  y=6 runs as well:", tuple(scrambled.shape))
assert torch.equal(back, torch.stack([picture, 1 - picture]))

# %% [markdown]
# ## 4. Splitting heads
#
# Each head reads its own slice of the features, at every time step. Heads are `(h e)`: heads outer, width inner. Watch
# the 4 x 6 numbers, whose tens digit is time: row `t` of a head must hold step `t` and nothing else.
#
# The tempting short cut asks `view` or `reshape` for the final shape. The shape is right, the numbers are not: neither
# reorders anything, they cut the same line of numbers elsewhere. Head 0 gets the early steps, head 1 the late ones.


# %%
def split(x, heads):
    return rearrange(x, "b t (h e) -> b h t e", h=heads)


def cut(x, heads):
    b, t, d = x.shape
    return x.reshape(b, heads, t, d // heads)  # wrong


x = rearrange(x, "t d -> 1 t d")
right, wrong = split(x, 2), cut(x, 2)
print("right, head 0 and head 1:", *right[0].tolist(), sep="\n  ")
print("wrong, head 0 and head 1:", *wrong[0].tolist(), sep="\n  ")
steps = repeat(torch.arange(1, 5), "t -> 1 h t e", h=2, e=3)
assert torch.equal(right // 10, steps)
assert torch.equal(wrong, x.view(1, 2, 4, 3))
assert not torch.equal(wrong // 10, steps)

# %% [markdown]
# Without einops it takes two steps: `view` to name the axes in the order they stand, then `transpose`. And `(e h)` does
# not mix time, but deals the features out like cards. A model trained that way is fine; published weights are `(h e)`,
# and in an `(e h)` model they give nonsense.

# %%
dealt = rearrange(x, "b t (e h) -> b h t e", h=2)
print("(h e), head 0:", right[0, 0].tolist())
print("(e h), head 0:", dealt[0, 0].tolist())
assert torch.equal(right, x.view(1, 4, 2, 3).transpose(1, 2))
assert torch.equal(dealt[0, 0], x[0, :, ::2])

# %% [markdown]
# The way back has the same trap: merging without first moving the heads beside their width. And `glue` undoes `cut`, so
# a round trip that returns your tensor proves nothing about the heads.


# %%
def merge(x):
    return rearrange(x, "b h t e -> b t (h e)")


def glue(x):
    b, h, t, e = x.shape
    return x.reshape(b, t, h * e)  # wrong: the permute is missing


print("right, first two steps:", merge(right)[0, :2].tolist())
print("wrong, first two steps:", glue(right)[0, :2].tolist())
assert torch.equal(merge(right), x)
assert not torch.equal(glue(right), x)
assert torch.equal(glue(wrong), x)

# %% [markdown]
# ## 5. Attention by hand
#
# Each query scores every key by a dot product, divided by the root of the head's width (Vaswani et al. 2017, equation
# 1). A softmax over the keys turns scores into weights, and the output is the weighted mean of the values. A mask is
# boolean, True = may attend: every other score becomes minus infinity, a weight of 0.


# %%
def weigh(q, k, keep=None):
    scores = einsum(q, k, "b h t e, b h s e -> b h t s") / q.shape[-1] ** 0.5
    if keep is not None:
        scores = scores.masked_fill(~keep, -torch.inf)
    return scores.softmax(dim=-1)


def attend(q, k, v, keep=None):
    return einsum(weigh(q, k, keep), v, "b h t s, b h s e -> b h t e")


q, k, v = (split(normal(2, 6, 16), 2) for _ in range(3))
expected = F.scaled_dot_product_attention(q, k, v)
print("merged:", tuple(merge(attend(q, k, v)).shape))
print(f"largest difference to torch: {(attend(q, k, v) - expected).abs().max():.1e}")
assert torch.allclose(attend(q, k, v), expected, atol=1e-6)

# %% [markdown]
# **Causal**: a token attends to itself and to what came before. As a mask, that is the lower triangle; as a picture of
# the weights, nothing right of the diagonal.

# %%
causal = torch.ones(6, 6, dtype=torch.bool).tril()
expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
print(causal.int())
assert torch.allclose(attend(q, k, v, causal), expected, atol=1e-6)
assert weigh(q, k, causal)[..., ~causal].eq(0).all()
figure, axes = plt.subplots(1, 2, figsize=(8, 4), layout="constrained")
for head, axis in enumerate(axes):
    axis.imshow(weigh(q, k, causal)[0, head].numpy(), vmin=0, vmax=1)
    axis.set(title=f"head {head}", xlabel="key s", ylabel="query t")
figure.suptitle("causal weights of random queries and keys: rows sum to 1")
plt.show()
plt.close(figure)

# %% [markdown]
# **Prove causality, do not trust the mask.** Change token 3 at the input of the layer: outputs before it must stay the
# same to the last bit, outputs from it on must change.

# %%
to_q, to_k, to_v = normal(3, 16, 16) / 4


def layer(x, keep, split=split, merge=merge):
    return merge(attend(split(x @ to_q, 2), split(x @ to_k, 2), split(x @ to_v, 2), keep))


words = normal(2, 6, 16)
changed = words.clone()
changed[:, 3] += 1
before, after = layer(words, causal), layer(changed, causal)
print("changed by:", *(f"{step:.3f}" for step in reduce((after - before).abs(), "b t d -> t", "max")))
assert torch.equal(before[:, :3], after[:, :3])
assert (before[:, 3:] != after[:, 3:]).any(dim=-1).all()

# %% [markdown]
# Do that for every token and you see who hears whom: row `t`, column `s` is 1 if output `t` depends on token `s`. The
# right layer shows the mask itself. The wrong ways of part 4 show what they do behind their right shape: with `cut` and
# `glue` the second half never hears the first; with `glue` alone the past hears the future.


# %%
def influence(function, x):
    heard = []
    for s in range(x.shape[1]):
        other = x.clone()
        other[:, s] += 1
        heard.append(function(other) != function(x))
    return reduce(torch.stack(heard), "s b t d -> t s", "any")


honest = influence(lambda x: layer(x, causal), words)
halved = influence(lambda x: layer(x, causal, cut, glue), words)
leaking = influence(lambda x: layer(x, causal, split, glue), words)
for name, heard in {"split, merge": honest, "cut, glue": halved, "split, glue": leaking}.items():
    print(name, *heard.int().tolist(), sep="\n  ")
assert torch.equal(honest, causal)
assert not halved[3:, :3].any()
assert leaking[~causal].any()

# %% [markdown]
# **Why the scale?** The dot product of two standard normal vectors of width `e` has a standard deviation of `sqrt(e)`.
# Unscaled, the softmax all but picks one key, and hardly any gradient reaches the others. Entropy says how widely a
# query looks.

# %%
raw = einsum(normal(256, 64), normal(256, 64), "t e, s e -> t s")
entropy = {}
for name, scores in {"scaled": raw / 64**0.5, "not scaled": raw}.items():
    entropy[name] = torch.special.entr(scores.softmax(dim=-1)).sum(dim=-1).mean().item()
    print(f"{name:10}  std of scores {scores.std():.2f}, entropy {entropy[name]:.2f}")
print(f"all 256 keys alike: entropy {torch.tensor(256.0).log():.2f}")
assert entropy["not scaled"] < 0.5 * entropy["scaled"]

# %% [markdown]
# **Trap: a query that may attend to nothing.** In a row of minus infinities, the softmax is 0/0. Overwriting the NaN
# in the output looks like a cure, but the gradient of the values still meets the NaN weights, and 0 times NaN is NaN.

# %%
gap = causal.clone()
gap[2] = False
values = v.clone().requires_grad_()
output = attend(q, k, values, gap)
overwritten = output.masked_fill(output.isnan(), 0)
overwritten.sum().backward()
for name, z in {"output": output, "overwritten": overwritten, "gradient of values": values.grad}.items():
    print(f"{name:18} has NaN: {z.isnan().any()}")
assert output[:, :, 2].isnan().all()
assert overwritten.isfinite().all()
assert values.grad.isnan().any()

# %% [markdown]
# The remedy: let such a row attend to everything, so that no NaN ever arises, then set its output to 0.


# %%
def attend_safely(q, k, v, keep):
    empty = ~keep.any(dim=-1, keepdim=True)
    return attend(q, k, v, keep | empty).masked_fill(empty, 0)


leaves = [z.clone().requires_grad_() for z in (q, k, v)]
output = attend_safely(*leaves, gap)
output.square().sum().backward()
print("output of the empty row:", output[0, 0, 2].tolist())
assert output[:, :, 2].eq(0).all()
assert all(leaf.grad.isfinite().all() for leaf in leaves)
assert torch.equal(output[:, :, 3:], attend(q, k, v, causal)[:, :, 3:])  # the other rows are untouched

# %% [markdown]
# **Cross-attention** is the same code: keys and values come from another sequence, so `t` and `s` may differ. A padding
# mask speaks about keys and is the same for all heads and queries: `b s -> b 1 1 s`. Whatever stands at the padding has
# no say.

# %%
queries, keys, values = normal(2, 2, 3, 8), normal(2, 2, 7, 8), normal(2, 2, 7, 8)
keep = rearrange(torch.arange(7) < torch.tensor([[7], [4]]), "b s -> b 1 1 s")
crossed = attend_safely(queries, keys, values, keep)
expected = F.scaled_dot_product_attention(queries, keys, values, attn_mask=keep)
padding = rearrange(~keep, "b 1 1 s -> b 1 s 1")
print("t = 3, s = 7:", tuple(crossed.shape), f"  largest difference to torch: {(crossed - expected).abs().max():.1e}")
assert torch.allclose(crossed, expected, atol=1e-6)
assert torch.equal(crossed, attend_safely(queries, keys.masked_fill(padding, 9), values.masked_fill(padding, 9), keep))

# %% [markdown]
# ## 6. Multi-head self-attention, whole
#
# Against `torch.nn.MultiheadAttention` with the same weights. **Its boolean mask is the other way round** (True = may
# *not* attend). All weights are drawn anew first: its biases start at 0, so a forgotten bias would not show.


# %%
class SelfAttention(nn.Module):
    def __init__(self, dim, heads, split=split, merge=merge):
        super().__init__()
        self.heads, self.split, self.merge = heads, split, merge
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x, keep):
        q, k, v = (self.split(part, self.heads) for part in rearrange(self.qkv(x), "b t (n d) -> n b t d", n=3))
        return self.out(self.merge(attend_safely(q, k, v, keep)))


theirs = nn.MultiheadAttention(24, 4, batch_first=True)
for parameter in theirs.parameters():
    nn.init.normal_(parameter, std=0.3)
ours = SelfAttention(24, 4)
state = {name.replace("in_proj_", "qkv.").replace("out_proj", "out"): p for name, p in theirs.named_parameters()}
ours.load_state_dict(state)
words = normal(2, 6, 24)
expected = theirs(words, words, words, attn_mask=~causal, need_weights=False)[0]
print(f"largest difference: {(ours(words, causal) - expected).abs().max():.1e}")
assert torch.allclose(ours(words, causal), expected, atol=1e-5)

# %% [markdown]
# The same weights with `(e h)` heads: no error, the right shape, other numbers. Comparing numbers is the only alarm.

# %%
dealt = SelfAttention(24, 4)
dealt.split = lambda x, heads: rearrange(x, "b t (e h) -> b h t e", h=heads)
dealt.merge = lambda x: rearrange(x, "b h t e -> b t (e h)")
dealt.load_state_dict(state)
print(f"(e h) is off by {(dealt(words, causal) - expected).abs().max():.2f}")
assert dealt(words, causal).shape == expected.shape
assert not torch.allclose(dealt(words, causal), expected, atol=1e-1)

# %% [markdown]
# **And the wrong one trains.** The task: output the mean of all tokens so far. Both losses fall; with only the second
# curve before you, you would blame the learning rate.

# %%
data, triangle = normal(64, 8, 16), torch.ones(8, 8, dtype=torch.bool).tril()
target = data.cumsum(dim=1) / torch.arange(1, 9)[:, None]


def train(split, merge):
    torch.manual_seed(0)
    model, losses = SelfAttention(16, 4, split, merge), []
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(150):
        loss = F.mse_loss(model(data, triangle), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


right, wrong = train(split, merge), train(cut, glue)
for name, losses in {"split, merge": right, "cut, glue": wrong}.items():
    print(f"{name:12}", " -> ".join(f"{loss:.4f}" for loss in (losses[0], losses[49], losses[-1])))
assert wrong[-1] < 0.8 * wrong[0]
assert right[-1] < 0.5 * wrong[-1]

# %% [markdown]
# ## 7. Does einops cost speed?
#
# Some microseconds a call, spent in Python on looking up the pattern, whatever the size of the tensor. What happens to
# the tensor is the same: splitting heads copies nothing, with or without einops. A linear layer gives the proportion.

# %%
big, square = normal(8, 128, 256), normal(256, 256)
ways = {
    "rearrange": lambda: rearrange(big, "b t (h e) -> b h t e", h=8),
    "view and transpose": lambda: big.view(8, 128, 8, 32).transpose(1, 2),
    "a linear layer": lambda: big @ square,
}
for name, way in ways.items():
    best = min(timeit.repeat(way, number=100, repeat=7)) / 100  # of seven: other programs only ever make it slower
    print(f"{name:18} {best * 1e6:8.1f} microseconds")
named, plain = ways["rearrange"](), ways["view and transpose"]()
assert torch.equal(named, plain)
assert named.data_ptr() == plain.data_ptr() == big.data_ptr()  # views of the same memory

# %% [markdown]
# ## 8. Exercises
#
# Write the pattern before you read on; the solutions follow, each with its check.
#
# 1. **Heads into the batch.** Turn `(b, t, d)` into `((b h), t, e)`, as older code does, and back.
# 2. **Pixel shuffle.** Turn 12 channels on a grid of 4 x 6 into 3 channels on 8 x 12, as `F.pixel_shuffle(z, 2)` does.
# 3. **Max over time, with padding.** In `hidden` (part 2), row 1 has 3 real tokens, and a maximum can be negative.
# 4. **Grouped queries.** Two heads of keys serve four heads of queries: head `i` of the queries reads head `i // 2`.
# 5. **New queries, old keys.** Of 6 tokens only the last 2 are queries, all 6 are keys (a cache). Which mask? What does
#    `is_causal=True` do here?
# 6. **Is the causal mask needed in every layer?** Stack two, mask only the first, and ask `influence`.

# %%
# 1. The batch is the outer letter; on the way back give one of the two sizes.
z = normal(2, 6, 16)
folded = rearrange(z, "b t (h e) -> (b h) t e", h=4)
print(tuple(folded.shape))
assert torch.equal(folded[5], z[1, :, 4:8])
assert torch.equal(rearrange(folded, "(b h) t e -> b t (h e)", h=4), z)

# %%
# 2. Channels carry the pixels of a block, as the inner letters.
z = normal(2, 12, 4, 6)
shuffled = rearrange(z, "b (c p q) y x -> b c (y p) (x q)", p=2, q=2)
print(tuple(shuffled.shape))
assert torch.equal(shuffled, F.pixel_shuffle(z, 2))

# %%
# 3. Minus infinity never wins; 0 would beat a negative maximum.
keep = torch.arange(5) < torch.tensor([[5], [3]])
top = reduce(hidden.masked_fill(~rearrange(keep, "b t -> b t 1"), -torch.inf), "b t d -> b d", "max")
print(top[1])
assert torch.equal(top[1], hidden[1, :3].amax(dim=0))

# %%
# 4. The copies are the inner letter: heads 0 0 1 1. `(g h)` would give 0 1 0 1.
grouped = repeat(keys, "b h s e -> b (h g) s e", g=2)
print(tuple(keys.shape), "->", tuple(grouped.shape))
assert all(torch.equal(grouped[:, i], keys[:, i // 2]) for i in range(4))

# %%
# 5. Compare positions. `is_causal` counts from the top left: the first query would see the first key only.
late = torch.arange(4, 6)[:, None] >= torch.arange(6)
hidden_cache = F.scaled_dot_product_attention(q[:, :, 4:], k, v, is_causal=True)
print(late.int())
assert torch.allclose(attend(q[:, :, 4:], k, v, late), attend(q, k, v, causal)[:, :, 4:], atol=1e-6)
assert torch.allclose(hidden_cache[:, :, 0], v[:, :, 0], atol=1e-6)

# %%
# 6. Yes, in every one: a single layer without it lets every token hear all others.
words = normal(2, 6, 16)
everywhere = influence(lambda x: layer(layer(x, causal), causal), words)
once = influence(lambda x: layer(layer(x, causal), torch.ones_like(causal)), words)
print("mask in both layers:", *everywhere.int().tolist(), sep="\n  ")
print("mask in the first only:", *once.int().tolist(), sep="\n  ")
assert torch.equal(everywhere, causal)
assert once.all()
