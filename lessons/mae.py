# %% [markdown]
# # MAE from nothing
#
# A masked autoencoder learns from pictures without labels: hide three quarters of the patches, and paint them. What
# you keep of it is not the painter, but the encoder, which had to understand a quarter of a picture to make that
# possible. This lesson builds it, one idea a cell, and proves each before it goes on. At the end of it you have
#
# - masks that follow from noise you hand in, and the proof that hidden pixels reach nothing;
# - an encoder that never sees what is hidden, and what that saves;
# - an MAE that you trained in about half a minute, which paints digits from four of sixteen patches;
# - the reason why many pictures made with MAEs are too good, and how to make honest ones;
# - an encoder without its decoder, which knows digits from 50 labels better than pixels do, and the published layout.
#
# You should know `lessons/vit.py`: patches, class token and block are only written down here. The letters: `b` batch,
# `c` channels, `y x` rows and columns of patches, `p q` rows and columns of pixels inside one patch, `n` patches, `t`
# tokens (queries), `s` those shown, or keys, `d` width, `h` heads, `e` width of one head. The paper is He et al. 2022.

# %%
import sys
from pathlib import Path

# Trap: lessons/einops.py has a library's name, so from this folder `import einops` would import that lesson.
sys.path = [folder for folder in sys.path if not Path(folder, "einops.py").is_file()]

import copy
import dataclasses
import json
import math
import os
import tempfile
import time

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from einops import einsum, rearrange, repeat
from sklearn.datasets import load_digits, load_sample_image
from torch import nn

torch.manual_seed(0)
started, threads = time.perf_counter(), torch.get_num_threads()
torch.set_num_threads(1)  # small matrices: sharing the work costs more than it saves
print("torch", torch.__version__)

# %% [markdown]
# ## 1. Why hide so much
#
# BERT hides 15 % of its tokens. A word says much, and to guess it one must read the sentence. A patch says little, and
# to guess it one looks next to it: pictures are full of repetition (section 1 of the paper). To see how far that goes,
# a **copier** that has understood nothing: it gives a hidden patch the mean colour of those of its eight neighbours
# that are shown. The photograph comes with scikit-learn, as do the digits below; cut to 26 x 40 patches of 16 pixels.


# %%
def cut(images, patch, order="c p q"):
    """(b, c, height, width) to (b, n, pixels of a patch), row by row, each patch read in this order."""
    return rearrange(images, f"b c (y p) (x q) -> b (y x) ({order})", p=patch, q=patch)


def join(patches, rows, patch, order="c p q"):
    """`cut` undone."""
    return rearrange(patches, f"b (y x) ({order}) -> b c (y p) (x q)", y=rows, p=patch, q=patch)


photo = rearrange(torch.tensor(load_sample_image("china.jpg")[5:-6]), "y x c -> 1 c y x") / 255
colours = rearrange(photo, "1 c (y p) (x q) -> c y x (p q)", p=16, q=16).mean(dim=-1)
where = torch.rand(26, 40, generator=torch.Generator().manual_seed(0))
around = torch.ones(1, 1, 3, 3)
copied = {}
print("hidden   neighbours shown   of the hidden patches' colours the copier knows")
for share in (0.15, 0.5, 0.75, 0.9):
    hidden = where < share
    count = F.conv2d((~hidden).float()[None, None], around, padding=1)[0]
    total = F.conv2d((colours * ~hidden)[:, None], around, padding=1)[:, 0]
    guess = torch.where(count > 0, total / count.clamp(min=1), colours[:, ~hidden].mean(dim=1)[:, None, None])
    error = (guess - colours)[:, hidden].square().mean()
    copied[share] = 1 - (error / (colours[:, hidden].mean(dim=1, keepdim=True) - colours[:, hidden]).square().mean())
    print(f"{share:6.0%} {count[0][hidden].mean():14.1f} of 8 {copied[share]:34.0%}")
assert copied[0.9] < copied[0.75] < copied[0.15]

# %% [markdown]
# The copier does well where nearly all is shown, and loses its grip where most is hidden: there one has to know what a
# roof is. The paper finds 75 % best, for fine-tuning and for a linear probe of the features, and the probe loses
# nearly 20 points at low shares (section 4.1, figure 5).

# %%
patches = cut(photo, 16)
figure, axes = plt.subplots(1, 3, figsize=(12, 3), layout="constrained")
for axis, share in zip(axes, (0.15, 0.75, 0.9)):
    shown = patches.masked_fill((where.flatten() < share)[:, None], 0.5)
    axis.imshow(rearrange(join(shown, 26, 16), "1 c y x -> y x c").numpy())
    axis.set_title(f"{share:.0%} hidden")
    axis.axis("off")
plt.show()
plt.close(figure)
assert torch.equal(join(patches, 26, 16), photo)

# %% [markdown]
# ## 2. Which patches: noise, and its order
#
# Give every patch a random number and sort: the patches of the smallest are shown. So each picture has a mask of its
# own, and **exactly as many** shown patches as any other, which is what lets a batch of them be one tensor. (Coins
# thrown for each patch would give each picture another number.)
#
# The noise is an **argument**. A model that draws it inside gives another mask, another loss and, in much published
# code, other features each time it is asked. Here who asks, decides.


# %%
def choose(noise, mask_ratio=0.75):
    """The places shown (b, s), and the mask (b, n), True = hidden."""
    shown = noise.argsort(dim=1)[:, : int(noise.shape[1] * (1 - mask_ratio))]
    return shown, torch.ones_like(noise, dtype=torch.bool).scatter(1, shown, False)


noise = torch.rand(3, 16, generator=torch.Generator().manual_seed(0))
shown, mask = choose(noise)
coins = torch.rand(1000, 16, generator=torch.Generator().manual_seed(0)) < 0.75
print("noise of a picture", [round(value, 2) for value in noise[0].tolist()])
print("shown", shown.tolist(), "- hidden in each:", mask.sum(dim=1).tolist())
print(f"with coins {coins.sum(dim=1).min()} to {coins.sum(dim=1).max()} would be hidden")
assert mask.sum(dim=1).tolist() == [12, 12, 12]
assert (noise[~mask].view(3, 4).amax(dim=1) < noise[mask].view(3, 12).amin(dim=1)).all()
assert all(torch.equal(*pair) for pair in zip(choose(noise), choose(noise)))

# %% [markdown]
# ## 3. Where a patch stands, not learned
#
# MAE's positions are **fixed** (appendix A.1): sines, then cosines, of different wavelengths, as in the Transformer of
# 2017 (Vaswani et al., section 3.5), for the column and for the row. **Trap: the column comes first.** The original's
# function names its halves the other way round, and by its names you would write it wrong. A class token stands
# nowhere: its position is 0.


# %%
def sinusoids(place, dim, longest=10_000):
    """(n) to (n, dim); wavelengths from 2 pi to 2 pi `longest`."""
    frequency = torch.exp(torch.arange(dim // 2).double() * (-2 * math.log(longest) / dim))
    angle = place.double()[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1).float()


def sinusoids_2d(rows, columns, dim, longest=10_000):
    """(1, 1 + n, dim): the class token's, then those of the patches, row by row."""
    y, x = repeat(torch.arange(rows), "y -> (y x)", x=columns), repeat(torch.arange(columns), "x -> (y x)", y=rows)
    position = torch.cat([sinusoids(x, dim // 2, longest), sinusoids(y, dim // 2, longest)], dim=1)
    return F.pad(position, (0, 0, 1, 0))[None]


wide = sinusoids_2d(14, 14, 768)[0, 1:]
print("positions of 14 x 14 patches", tuple(wide.shape))
assert torch.equal(wide[5, 384:], wide[9, 384:])  # row 0, so the second half is the same
assert torch.equal(wide[5, :384], wide[14 + 5, :384])  # column 5, so the first half is the same
assert not torch.equal(wide[5, 384:], wide[14 + 5, 384:])

# %% [markdown]
# **A choice for small pictures.** The wavelengths are made for places that are far apart. On a grid of 4 x 4, which we
# are about to use, most of them hardly move: all places look alike, opposite corners too, and the model takes long to
# tell them apart. So ours are `longest=10`. Published files have 10,000; and they hold the positions, so that a reader
# need not know. (Exercise 2 trains with 10,000.)

# %%
likeness = {}
figure, axes = plt.subplots(1, 3, figsize=(9, 3), layout="constrained")
for axis, (rows, longest) in zip(axes, ((14, 10_000), (4, 10_000), (4, 10))):
    position = F.normalize(sinusoids_2d(rows, rows, 64, longest)[0, 1:], dim=-1)
    middle = position @ position[rows // 2 * rows + rows // 2]
    likeness[rows, longest] = (position[0] @ position[1]).item(), (position[0] @ position[-1]).item()
    axis.imshow(middle.view(rows, rows), vmin=0, vmax=1)
    axis.set_title(f"{rows} x {rows}, longest {longest:,}")
figure.suptitle("likeness of the middle's position with all others")
plt.show()
plt.close(figure)
for (rows, longest), (near, far) in likeness.items():
    print(f"{rows:2} x {rows:2}, longest {longest:6,}: neighbours {near:.2f} alike, opposite corners {far:.2f}")
assert likeness[4, 10][1] < likeness[4, 10_000][1] - 0.2

# %% [markdown]
# ## 4. The encoder sees a quarter
#
# BERT's encoder reads a `[MASK]` at each hidden place. MAE's reads nothing there: **hidden patches are taken out**,
# and the encoder is as fast as its quarter. (With mask tokens in the encoder the paper loses 14 points in the linear
# probe: most of what it reads in training would be tokens that no picture has. Table 1c.) A patch gets its position
# *before* the others are taken out, or it would no longer know where it stands.
#
# The block is ViT's: pre-norm, GELU by the error function, eps 1e-6, attention without a mask (Vaswani et al. 2017,
# equation 1), and heads outer, `(h e)`.


# %%
def weigh(q, k):
    return (einsum(q, k, "b h t e, b h s e -> b h t s") / q.shape[-1] ** 0.5).softmax(dim=-1)


class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x):
        q, k, v = (rearrange(f(x), "b t (h e) -> b h t e", h=self.heads) for f in (self.q, self.k, self.v))
        mixed = einsum(weigh(q, k), v, "b h t s, b h s e -> b h t e")
        return self.out(rearrange(mixed, "b h t e -> b t (h e)"))


class MLP(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.up, self.down, self.activation = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim), F.gelu

    def forward(self, x):
        return self.down(self.activation(self.up(x)))


class Block(nn.Module):
    def __init__(self, dim, heads, eps=1e-6):
        super().__init__()
        self.attention, self.attention_norm = Attention(dim, heads), nn.LayerNorm(dim, eps=eps)
        self.mlp, self.mlp_norm = MLP(dim), nn.LayerNorm(dim, eps=eps)

    def forward(self, x):
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class Encoder(nn.Module):
    def __init__(self, image, patch, channels, dim, depth, heads, longest=10_000, eps=1e-6):
        super().__init__()
        self.patch, self.grid = patch, (image[0] // patch, image[1] // patch)
        self.project = nn.Linear(channels * patch**2, dim)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.position = nn.Parameter(sinusoids_2d(*self.grid, dim, longest), requires_grad=False)
        self.blocks = nn.ModuleList(Block(dim, heads, eps) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=eps)

    def encode(self, images, shown=None):
        """The states of all tokens (b, t, d), the class token first; with `shown`, of these patches alone."""
        x = self.project(cut(images, self.patch)) + self.position[:, 1:]
        if shown is not None:
            x = x.take_along_dim(shown[..., None], dim=1)
        x = torch.cat([(self.class_token + self.position[:, :1]).expand(len(x), -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


encoder = Encoder((416, 640), 16, 3, dim=64, depth=2, heads=4)
shown, mask = choose(torch.rand(1, 1040, generator=torch.Generator().manual_seed(0)))
with torch.no_grad():
    for name, places in {"all": None, "a quarter": shown}.items():
        began = time.perf_counter()
        states = encoder.encode(photo, places)
        print(f"{name:9} of the patches: states {tuple(states.shape)} in {time.perf_counter() - began:.3f} s")
assert states.shape == (1, 1 + 260, 64)

# %% [markdown]
# **Proof that nothing leaks.** Whatever stands in the hidden patches, not a number, say, the states must not change by
# a single bit. And a shown pixel must change them.

# %%
spoilt = join(cut(photo, 16).masked_fill(mask[..., None], torch.nan), 26, 16)
brighter = join(cut(photo, 16) + 0.1 * ~mask[..., None], 26, 16)
with torch.no_grad():
    print("hidden pixels not a number: states the same to the bit:", torch.equal(encoder.encode(spoilt, shown), states))
    assert spoilt.isnan().float().mean() == 0.75
    assert torch.equal(encoder.encode(spoilt, shown), states)
    assert not torch.allclose(encoder.encode(brighter, shown), states, atol=1e-3)

# %% [markdown]
# **What it saves.** A block costs about 12 n d² multiplications in its linears and 2 n² d in attention. Mask tokens in
# the encoder would cost a large MAE 3.3 times as much (table 1c of the paper); the small decoder is counted.


# %%
def cost(tokens, dim, depth):
    return depth * (12 * tokens * dim**2 + 2 * tokens**2 * dim)


saved = {}
for name, (dim, depth) in {"base": (768, 12), "large": (1024, 24), "huge": (1280, 32)}.items():
    side = 16 if name == "huge" else 14
    every, quarter = side**2 + 1, side**2 // 4 + 1
    decoder = cost(every, 512, 8)
    saved[name] = (cost(every, dim, depth) + decoder) / (cost(quarter, dim, depth) + decoder)
    print(f"{name:6} encoder {cost(every, dim, depth) / 1e9:6.1f} G for all patches, "
          f"{cost(quarter, dim, depth) / 1e9:5.1f} for a quarter; decoder {decoder / 1e9:.1f}; "
          f"together {saved[name]:.1f} times less")  # fmt: skip
assert abs(saved["large"] - 3.3) < 0.1

# %% [markdown]
# ## 5. The decoder
#
# It gets the states of what was shown, through a linear to a smaller width, and at every hidden place the **mask
# token**, one learned vector. All get positions again, the decoder's own, for a mask token knows nothing else. Blocks,
# a norm, and a linear to the pixels of a patch. It is narrow on purpose, for it is thrown away.
#
# To put the states back in place we lay out mask tokens and `scatter` the states among them. The original code glues
# mask tokens behind the states and undoes the sorting; both are the same.


# %%
def place(states, mask_token, shown, n):
    """States (b, s, d) at their places among n, the mask token elsewhere."""
    return mask_token.expand(len(states), n, -1).scatter(1, shown[..., None].expand_as(states), states)


def unsort(states, mask_token, noise):
    """As the original does it."""
    back = noise.argsort(dim=1).argsort(dim=1)
    glued = torch.cat([states, mask_token.expand(len(states), noise.shape[1] - states.shape[1], -1)], dim=1)
    return glued.take_along_dim(back[..., None], dim=1)


shown, mask = choose(noise)
some, token = torch.randn(3, 4, 8), torch.randn(1, 1, 8)
placed = place(some, token, shown, 16)
print("states", tuple(some.shape), "->", tuple(placed.shape), "- the mask token stands at",
      (placed[0] == token[0, 0]).all(dim=-1).nonzero().flatten().tolist())  # fmt: skip
assert torch.equal(placed, unsort(some, token, noise))
assert torch.equal((placed == token).all(dim=-1), mask)

# %% [markdown]
# ## 6. What is to be painted
#
# The target is the pixels of each patch. **Trap: two orders in one model.** The encoder's first layer reads a patch as
# (c p q), for a convolution does; the target and the prediction are (p q c), as a picture file has them. Mix them up,
# and training runs all the same: the decoder learns any order. But published weights then paint coloured noise.

# %%
target = cut(photo, 16, "p q c")
figure, axes = plt.subplots(1, 2, figsize=(12, 4), layout="constrained")
for axis, order in zip(axes, ("p q c", "c p q")):
    image = rearrange(target, f"1 (y x) ({order}) -> (y p) (x q) c", y=26, p=16, q=16)
    axis.imshow(image.numpy())
    axis.set_title(f"painted as (p q c), read as ({order})")
    axis.axis("off")
plt.show()
plt.close(figure)
print("embedded from", tuple(patches.shape), "- painted as", tuple(target.shape))
assert target.shape == patches.shape
assert not torch.equal(target, patches)

# %% [markdown]
# **The loss** is the mean squared error over the *hidden* patches only. To paint what one sees is no task; over all
# patches the paper measures half a point less (section 3, a footnote). The test: prediction at shown places may be
# anything.


# %%
def loss_of(prediction, target, mask):
    return ((prediction - target).square().mean(dim=-1) * mask).sum() / mask.sum()


goal, prediction = torch.randn(2, 3, 16, 4)
nonsense, better = prediction.clone(), prediction.clone()
nonsense[~mask], better[mask] = 1e6, goal[mask]
print(*(f"{loss_of(painted, goal, mask):.3f}" for painted in (prediction, nonsense, better)), sep=", ")
assert torch.equal(loss_of(nonsense, goal, mask), loss_of(prediction, goal, mask))
assert loss_of(better, goal, mask) == 0

# %% [markdown]
# ## 7. Normalised pixels, and how to cheat with them
#
# With `norm_pix_loss` each patch of the target is taken less its own mean and over its own deviation: the model paints
# edges, not brightness. Features become a little better (fine-tuned 85.4 instead of 84.9, table 1d). (The variance
# divides by one less than the number of pixels, as `torch.var` does, and 1e-6 is added to it.)
#
# But then **a prediction is not a picture**: mean and deviation of each patch are missing. So one takes those of the
# original's patch, and the picture looks good. It would look good whatever the model says! Mean and deviation of a
# *hidden* patch are what nobody was shown. Here is the "reconstruction" by a model that knows nothing and paints 0
# everywhere, beside an honest one by as stupid a painter, the mean of the shown patches:


# %%
def normalise(target):
    return (target - target.mean(dim=-1, keepdim=True)) / (target.var(dim=-1, keepdim=True) + 1e-6).sqrt()


def with_the_answer(prediction, target):  # cheats
    return prediction * (target.var(dim=-1, keepdim=True) + 1e-6).sqrt() + target.mean(dim=-1, keepdim=True)


shown, mask = choose(torch.rand(1, 1040, generator=torch.Generator().manual_seed(0)))
nothing = torch.zeros_like(target)
honest = target[~mask].view(-1, 256, 3).mean(dim=(0, 1)).repeat(256).expand_as(target)
panels = {
    "shown": torch.where(mask[..., None], 0.5, target),
    "nothing, with the answer's statistics": torch.where(mask[..., None], with_the_answer(nothing, target), target),
    "the mean of what is shown": torch.where(mask[..., None], honest, target),
}
figure, axes = plt.subplots(1, 3, figsize=(12, 3), layout="constrained")
for axis, (name, panel) in zip(axes, panels.items()):
    axis.imshow(rearrange(panel, "1 (y x) (p q c) -> (y p) (x q) c", y=26, p=16, q=16).numpy())
    axis.set_title(name)
    axis.axis("off")
plt.show()
plt.close(figure)
cheated = loss_of(with_the_answer(nothing, target), target, mask).item()
fair = loss_of(honest, target, mask).item()
print(f"squared error at hidden pixels: mean of what is shown {fair:.4f}, knowing nothing and cheating {cheated:.4f}")
assert torch.allclose(with_the_answer(normalise(target), target), target, atol=1e-4)
assert cheated < fair / 2

# %% [markdown]
# The proof of honesty is that of section 4: change the hidden pixels, and nothing painted may change. For pictures
# take a model trained on pixels. Of a model of normalised ones show the structure as it is, or lend it the statistics
# of the *shown* patches, and say so.
#
# ## 8. The model
#
# Encoder, decoder and loss in one. The noise is an argument; there is none inside.


# %%
class MAE(Encoder):
    def __init__(
        self, image, patch, channels, dim, depth, heads, decoder_dim, decoder_depth, decoder_heads,
        norm_pix_loss=False, longest=10_000, eps=1e-6,
    ):  # fmt: skip
        super().__init__(image, patch, channels, dim, depth, heads, longest, eps)
        self.norm_pix_loss = norm_pix_loss
        self.embed, self.mask_token = nn.Linear(dim, decoder_dim), nn.Parameter(torch.zeros(1, 1, decoder_dim))
        self.decoder_position = nn.Parameter(sinusoids_2d(*self.grid, decoder_dim, longest), requires_grad=False)
        self.decoder_blocks = nn.ModuleList(Block(decoder_dim, decoder_heads, eps) for _ in range(decoder_depth))
        self.decoder_norm = nn.LayerNorm(decoder_dim, eps=eps)
        self.out = nn.Linear(decoder_dim, channels * patch**2)

    def decode(self, states, shown):
        """States of the class token and of what was shown (b, 1 + s, d) to all patches' pixels (b, n, p q c)."""
        x = self.embed(states)
        x = torch.cat([x[:, :1], place(x[:, 1:], self.mask_token, shown, math.prod(self.grid))], dim=1)
        x = x + self.decoder_position
        for block in self.decoder_blocks:
            x = block(x)
        return self.out(self.decoder_norm(x))[:, 1:]

    def forward(self, images, noise, mask_ratio=0.75):
        """The loss, the prediction (b, n, p q c) and the mask (b, n)."""
        shown, mask = choose(noise, mask_ratio)
        prediction = self.decode(self.encode(images, shown), shown)
        target = cut(images, self.patch, "p q c")
        return loss_of(prediction, normalise(target) if self.norm_pix_loss else target, mask), prediction, mask


@torch.no_grad()
def initialise(model):
    """Appendix A.1: linears by their width (Glorot and Bengio 2010); tokens of 0.02."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            nn.init.xavier_uniform_(parameter)
        elif name.endswith("token"):
            parameter.normal_(std=0.02)
        elif name.endswith("bias"):
            parameter.zero_()
    return model


SIZES = {"image": (8, 8), "patch": 2, "channels": 1, "dim": 64, "depth": 2, "heads": 4}
SIZES |= {"decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 2, "longest": 10}
model = initialise(MAE(**SIZES))
with torch.device("meta"):
    base = MAE((224, 224), 16, 3, dim=768, depth=12, heads=12, decoder_dim=512, decoder_depth=8, decoder_heads=16)
THROWN_AWAY = ("embed.", "mask_token", "decoder_", "out.")
count = sum(parameter.numel() for parameter in base.parameters())
thrown_away = sum(p.numel() for name, p in base.named_parameters() if name.startswith(THROWN_AWAY))
print(f"ours has {sum(p.numel() for p in model.parameters()):,} parameters; the published base size {count:,}, "
      f"of which the decoder's {thrown_away:,}")  # fmt: skip
assert count == 111_907_840

# %% [markdown]
# transformers' `ViTMAEForPreTraining` has the same 111,907,840, positions included. Two checks before any training:
# hidden pixels cannot change the prediction, not even when they are not a number; and every parameter that is to learn
# gets a gradient.

# %%
digits = load_digits()
pictures = rearrange(torch.tensor(digits.images, dtype=torch.float32), "b y x -> b 1 y x") / 8 - 1  # from -1 to 1
labels = torch.tensor(digits.target)
training, held_out = torch.arange(len(pictures))[:-360], torch.arange(len(pictures))[-360:]
exam = torch.rand(360, 16, generator=torch.Generator().manual_seed(1))  # the noise of every examination
with torch.no_grad():
    _, prediction, mask = model(pictures[held_out], exam)
    unknown = cut(pictures[held_out], 2).masked_fill(mask[..., None], torch.nan)
    _, same, _ = model(join(unknown, 4, 2), exam)
model(pictures[:64], torch.rand(64, 16))[0].backward()
learns = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
print("hidden pixels not a number: prediction the same to the bit:", torch.equal(prediction, same))
print("without a gradient:", *(name for name, _ in model.named_parameters() if name not in learns))
assert torch.equal(prediction, same)
assert all(parameter.grad.abs().sum() > 0 for name, parameter in model.named_parameters() if name in learns)
assert len(learns) == len(list(model.parameters())) - 2

# %% [markdown]
# ## 9. Training
#
# The digits of `lessons/vit.py`, the last 360 held out; **nobody looks at a label** until section 10. Each has 16
# patches, and four are shown. What is it to be measured by?
#
# - the mean of the patches that are shown, in a single colour;
# - the mean of all training digits, which knows where ink is likely;
# - a look-up: the ten training digits most like what is shown, averaged. It has all pictures at hand.


# %%
def error_of(prediction, mask):
    with torch.no_grad():
        return loss_of(prediction, cut(pictures[held_out], 2, "p q c"), mask).item()


mask = choose(exam)[1]
known, asked = cut(pictures[training], 2, "p q c"), cut(pictures[held_out], 2, "p q c")
one_colour = asked[~mask].view(360, 1, 16).mean(dim=2, keepdim=True).expand_as(asked)
seen = repeat(~mask, "b n -> b (n p)", p=4).float()
flat, table = asked.flatten(1), known.flatten(1)
apart = (seen * flat**2).sum(dim=1, keepdim=True) - 2 * (seen * flat) @ table.T + seen @ (table**2).T
like = apart.topk(10, largest=False).indices
baselines = {
    "mean of what is shown": error_of(one_colour, mask),
    "mean training digit": error_of(known.mean(dim=0).expand_as(asked), mask),
    "ten most alike": error_of(known[like].mean(dim=1), mask),
}
print(*(f"{name:22} {error:.3f}" for name, error in baselines.items()), sep="\n")
assert baselines["ten most alike"] < baselines["mean training digit"] < baselines["mean of what is shown"]

# %% [markdown]
# AdamW with the paper's betas and weight decay (table 8: 0.9 and 0.95; 0.05), a warm-up, a cosine. Noise is drawn anew
# at every visit, so the same digit is hundreds of exercises.


# %%
def train(model, steps, lr=5e-3, batch=64, warmup=50, every=0, limit=100):
    """For `steps` steps, or, where the machine is slow, until about `limit` seconds are over."""
    learns = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser, generator = torch.optim.AdamW(learns, betas=(0.9, 0.95), weight_decay=0.05), torch.Generator()
    generator.manual_seed(0)
    losses, valid, began, done = [], {}, time.perf_counter(), 0.0
    while done < 1:
        for group in optimiser.param_groups:
            group["lr"] = lr * min((len(losses) + 1) / warmup, 0.02 + 0.49 * (1 + math.cos(math.pi * done)))
        rows = training[torch.randint(len(training), (batch,), generator=generator)]
        loss = model(pictures[rows], torch.rand(batch, math.prod(model.grid), generator=generator))[0]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
        done = max(len(losses) / steps, (time.perf_counter() - began) / limit)
        if every and (len(losses) % every == 0 or done >= 1):
            with torch.no_grad():
                valid[len(losses)] = model(pictures[held_out], exam)[0].item()
            print(f"step {len(losses):4}  loss {losses[-1]:.3f}  held out {valid[len(losses)]:.3f}  "
                  f"{time.perf_counter() - began:4.0f} s", flush=True)  # fmt: skip
    return losses, valid


untrained = copy.deepcopy(model)
losses, valid = train(model, steps=2000, every=250)
with torch.no_grad():
    final, prediction, mask = model(pictures[held_out], exam)
print("squared error at hidden pixels")
print(*(f"{name:22} {error:.3f}" for name, error in (baselines | {"MAE": final}).items()), sep="\n")
assert final < baselines["mean of what is shown"]
assert final < baselines["mean training digit"] or len(losses) < 2000  # where the machine was too slow for all steps

# %%
figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
axis.plot(range(1, len(losses) + 1), losses, alpha=0.5, label="training, one batch")
axis.plot(list(valid), list(valid.values()), "o-", label="held out")
for (name, error), style in zip(baselines.items(), ("--", "-.", ":")):
    axis.axhline(error, ls=style, color="grey", label=name)
axis.set(xlabel="step", ylabel="squared error at hidden pixels", ylim=(0, 0.7))
axis.legend()
plt.show()
plt.close(figure)

# %% [markdown]
# The curve has two parts. In some fifty steps the decoder learns where ink is likely, and the error comes near that of
# the mean digit; only when it has learnt to look at what is shown does it go on. The look-up stays ahead: it has 1,437
# digits at hand, and each new one is much like some of them. Of photographs there is no such table.
#
# **Pictures.** What was shown is pasted over the prediction. At shown places a prediction means nothing: nobody ever
# asked for it.

# %%
rows = {"shown": asked.masked_fill(mask[..., None], 0.0), "predicted": prediction}
rows |= {"pasted": torch.where(mask[..., None], prediction, asked), "the digit": asked}
figure, axes = plt.subplots(4, 12, figsize=(12, 4.3), layout="constrained")
for line, (name, painted) in zip(axes, rows.items()):
    for axis, image in zip(line, join(painted[:12], 4, 2, "p q c")):
        axis.imshow(image[0], cmap="gray_r", vmin=-1, vmax=1)
        axis.set_xticks([])
        axis.set_yticks([])
    line[0].set_ylabel(name)
plt.show()
plt.close(figure)
at_shown = (prediction - asked).square().mean(dim=-1)[~mask].mean().item()
print(f"error at hidden places {final:.3f}, at those shown {at_shown:.3f}")
assert torch.equal(rows["pasted"][~mask], asked[~mask])

# %% [markdown]
# ## 10. What do the features know?
#
# `encode` without `shown` hides nothing: the features of a picture are always the same. Are they good for anything?
# The test is a **linear probe**: the encoder stays as it is, and one linear layer must tell the digits apart. To leave
# out all craft, we take ridge regression on one-hot labels, which is a formula: (A'A + λ)⁻¹ A'y. Three kinds of
# features: the pixels; those of the encoder before any training; those of the trained one, each the mean of the
# patches' states. And two amounts of labels, all 1,437 and the first 50.


# %%
def ridge(features, labelled, penalty=10.0):
    """Share of the held-out digits that a linear layer, solved for on `labelled`, has right."""
    features = (features - features[training].mean(dim=0)) / (features[training].std(dim=0) + 1e-3)
    features = F.pad(features, (0, 1), value=1.0).double()
    known, wanted = features[labelled], F.one_hot(labels[labelled], 10).double()
    layer = torch.linalg.solve(known.T @ known + penalty * torch.eye(known.shape[1]), known.T @ wanted)
    return ((features[held_out] @ layer).argmax(dim=1) == labels[held_out]).double().mean().item()


with torch.no_grad():
    before, after = (each.encode(pictures)[:, 1:] for each in (untrained, model))
    again = model.encode(pictures)[:, 1:]
features = {"pixels": pictures.flatten(1), "untrained, mean": before.mean(dim=1), "MAE, mean": after.mean(dim=1)}
features |= {"untrained, all patches": before.flatten(1), "MAE, all patches": after.flatten(1)}
probe = {name: (ridge(x, training[:50]), ridge(x, training)) for name, x in features.items()}
print("features                numbers  50 labels  all labels")
for name, (few, every) in probe.items():
    print(f"{name:23} {features[name].shape[1]:7} {few:9.1%} {every:10.1%}")
assert torch.equal(after, again)
assert probe["MAE, mean"][0] > probe["untrained, mean"][0]

# %% [markdown]
# An honest look. With 50 labels the trained features beat the pixels, and by far the untrained ones: without a single
# label the encoder has learnt what digits have in common. With all labels the gain shrinks, and a thousand numbers of
# an *untrained* encoder do as well as a thousand of the trained one: many random functions of 64 pixels are a good
# basis. So compare with an untrained encoder before you praise features.
#
# **Fine-tuning** trains the encoder too, here with a smaller rate than the new head. States come in any size, so they
# are normalised over the batch before the head, without scale and shift, as the paper's linear probe does (appendix
# A.1) and as our ridge regression did.


# %%
class Classifier(nn.Module):
    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.head = copy.deepcopy(encoder), nn.Linear(64, 10)
        self.norm = nn.BatchNorm1d(64, affine=False)
        nn.init.zeros_(self.head.weight)

    def forward(self, images):
        return self.head(self.norm(self.encoder.encode(images)[:, 1:].mean(dim=1)))


def fine_tune(start, labelled, steps=60):
    classifier = Classifier(start)
    body = [parameter for parameter in classifier.encoder.parameters() if parameter.requires_grad]
    groups = [{"params": body, "lr": 3e-4}, {"params": classifier.head.parameters(), "lr": 3e-3}]
    optimiser = torch.optim.AdamW(groups, weight_decay=0.05)
    for _ in range(steps):
        loss = F.cross_entropy(classifier(pictures[labelled]), labels[labelled])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    classifier.eval()
    with torch.no_grad():
        return (classifier(pictures[held_out]).argmax(dim=1) == labels[held_out]).float().mean().item()


tuned = {}
for few in (50, 200):
    torch.manual_seed(0)
    tuned[few] = [fine_tune(start, training[:few]) for start in (untrained, model)]
    print(f"fine-tuned with {few:3} labels: from nothing {tuned[few][0]:.1%}, from the MAE {tuned[few][1]:.1%}")
assert tuned[50][1] > tuned[50][0] or len(losses) < 2000

# %% [markdown]
# Where labels are few, having seen pictures without them helps; with 200 most of it is gone, and with 50 the linear
# probe is ahead of both: it has less to get wrong.
#
# ## 11. Published weights
#
# Which file is what has confused many:
#
# | facebook's file | decoder | trained on | for |
# |---|---|---|---|
# | `mae_pretrain_vit_base.pth` | **none** | normalised pixels | features, fine-tuning |
# | `mae_pretrain_vit_base_full.pth` | yes | normalised pixels | to train on; its paintings are not pictures |
# | `mae_visualize_vit_base.pth` | yes | pixels | pictures |
# | `mae_visualize_vit_large_ganloss.pth` | yes | pixels, and an adversary | sharper pictures |
# | `mae_finetuned_vit_base.pth` | none, but a head | labels | classes; the norm follows the mean of the patches |
#
# (The first three and the last for base, large and huge; the fourth for large alone.) These have timm's names,
# queries, keys and values fused (`lessons/vit.py`, section 10), and neither heads nor `norm_pix_loss` can be read from
# them. transformers' layout (`facebook/vit-mae-base`, made from the base file of the third row) has them apart, and
# says both in `config.json`. It is the one below; again strict, both ways.

# %%
TABLE = {
    "vit.embeddings.cls_token": "class_token",
    "vit.embeddings.position_embeddings": "position",
    "vit.embeddings.patch_embeddings.projection": "project",
    "vit.layernorm": "norm",
    "decoder.mask_token": "mask_token",
    "decoder.decoder_pos_embed": "decoder_position",
    "decoder.decoder_embed": "embed",
    "decoder.decoder_norm": "decoder_norm",
    "decoder.decoder_pred": "out",
}
BLOCK = {
    "layernorm_before": "attention_norm",
    "attention.attention.query": "attention.q",
    "attention.attention.key": "attention.k",
    "attention.attention.value": "attention.v",
    "attention.output.dense": "attention.out",
    "layernorm_after": "mlp_norm",
    "intermediate.dense": "mlp.up",
    "output.dense": "mlp.down",
}
STACKS = {"vit.encoder.layer": "blocks", "decoder.decoder_layers": "decoder_blocks"}


def rows_of(depths):
    """Their tensor and ours; `depths` of the encoder and the decoder."""
    names = list(TABLE.items())
    for (theirs, ours), depth in zip(STACKS.items(), depths):
        names += [(f"{theirs}.{i}.{one}", f"{ours}.{i}.{other}") for i in range(depth) for one, other in BLOCK.items()]
    for theirs, ours in names:
        for part in ("",) if ours.endswith(("token", "position")) else (".weight", ".bias"):
            yield theirs + part, ours + part


def to_ours(published, depths):
    published, state = dict(published), {}
    for theirs, ours in rows_of(depths):
        tensor = published.pop(theirs)
        state[ours] = tensor.flatten(1) if tensor.ndim == 4 else tensor  # the first layer is a convolution's kernel
    if published:
        raise ValueError(f"No row of the table names {', '.join(published)}.")
    return state


def to_published(state, depths, channels, patch):
    kernel = (channels, patch, patch)
    return {
        theirs: state[ours].unflatten(1, kernel) if ours == "project.weight" else state[ours].clone()
        for theirs, ours in rows_of(depths)
    }


state = model.state_dict()
there = to_published(state, (2, 1), 1, 2)
back = to_ours(there, (2, 1))
for name in list(there)[:8:3]:
    print(f"{name:52}{tuple(there[name].shape)}")
assert set(back) == set(state)
assert all(torch.equal(back[name], state[name]) for name in state)

# %% [markdown]
# **Where are they?** In a folder that the environment variable `MAE_FOLDER` names, with `config.json` and
# `model.safetensors`. `sf.load("facebook/vit-mae-base").save_pretrained(folder)` makes one of the published weights,
# which it downloads (450 MB, once). Nothing is downloaded here: without such a folder we go on with a **stand-in**,
# your model in exactly that layout.

# %%
from safetensors.torch import load_file, save_file

scratch = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)


def stand_in(folder):
    save_file(there, folder / "model.safetensors", metadata={"format": "pt"})
    sizes = {"image_size": 8, "patch_size": 2, "num_channels": 1, "hidden_size": 64, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "intermediate_size": 256, "decoder_hidden_size": 32}
    sizes |= {"decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2, "decoder_intermediate_size": 128}
    facts = {"model_type": "vit_mae", "architectures": ["ViTMAEForPreTraining"], "hidden_act": "gelu", **sizes}
    facts |= {"layer_norm_eps": 1e-6, "norm_pix_loss": False}
    (folder / "config.json").write_text(json.dumps(facts), encoding="utf-8")
    return folder


named = os.environ.get("MAE_FOLDER")
folder = Path(named) if named else stand_in(Path(scratch.name))
facts = json.loads((folder / "config.json").read_text(encoding="utf-8"))
print("The weights are those of", f"the folder {named}." if named else "a stand-in, your own model in that layout.")
print(*(f"{name} {facts[name]}" for name in ("image_size", "patch_size", "hidden_size", "norm_pix_loss")), sep=", ")
assert facts["model_type"] == "vit_mae"

# %%
torch.set_num_threads(threads)
sizes = [facts[name] for name in ("patch_size", "num_channels", "hidden_size")]
depths = facts["num_hidden_layers"], facts["decoder_num_hidden_layers"]
both_heads = facts["num_attention_heads"], facts["decoder_num_attention_heads"]
with torch.device("meta"):
    ours = MAE(
        (facts["image_size"],) * 2, *sizes, depths[0], both_heads[0], facts["decoder_hidden_size"], depths[1],
        both_heads[1], facts["norm_pix_loss"], eps=facts["layer_norm_eps"],
    )  # fmt: skip
published = load_file(folder / "model.safetensors")
ours.load_state_dict(to_ours(published, depths), assign=True)
print(f"{len(published)} tensors read, {sum(p.numel() for p in ours.parameters()):,} parameters")
assert not any(parameter.is_meta for parameter in ours.parameters())

# %% [markdown]
# ## 12. The same in ScratchFormers
#
# A round trip through one's own table proves little: a mistake made on the way out is unmade on the way in. So ask
# somebody else. `scratchformers` reads the same folder by code of its own, which is tested against Hugging Face's
# transformers. For the same noise the mask must be the same, and in float64 loss, prediction and features must agree
# to 1e-10; with normalised pixels too.

# %%
from PIL import Image

import scratchformers as sf
from scratchformers.grid import sinusoids_2d as library_sinusoids

if facts["num_channels"] == 3:
    prepare = sf.load_preprocess(folder)  # size, mean and deviation, as the file beside the weights says
    images = torch.stack([prepare(Image.fromarray(load_sample_image(f"{name}.jpg"))) for name in ("china", "flower")])
else:
    images = pictures[held_out]
noise = torch.rand(len(images), math.prod(ours.grid), generator=torch.Generator().manual_seed(2))
with torch.no_grad():
    for dtype, bound in ((torch.float32, 1e-4), (torch.float64, 1e-10)):
        product, x = sf.load(folder, dtype=dtype), images.to(dtype)
        theirs, (loss, prediction, mask) = product(x, noise=noise), ours.to(dtype)(x, noise)
        off = (theirs.prediction - prediction).abs().max()
        print(f"{dtype}: loss {loss:.4f}, off by {abs(theirs.loss - loss):.0e}; prediction by {off:.0e}")
        assert torch.equal(theirs.mask, mask)
        assert torch.allclose(theirs.prediction, prediction, atol=bound, rtol=bound / 10)
        assert abs(theirs.loss - loss) < bound
    assert torch.allclose(product.encode(x), ours.encode(x), atol=1e-10)
    normalised = copy.deepcopy(ours)
    normalised.norm_pix_loss = not ours.norm_pix_loss
    product.config = dataclasses.replace(product.config, norm_pix_loss=normalised.norm_pix_loss)
    other, own = product(x, noise=noise).loss, normalised(x, noise)[0]
    print(f"norm_pix_loss {normalised.norm_pix_loss}: {other:.4f}, off by {abs(other - own):.0e}")
assert abs(other - own) < 1e-10
assert torch.equal(library_sinusoids(3, 5, 64), sinusoids_2d(3, 5, 64)[:, 1:])

# %% [markdown]
# **Throw the decoder away.** The same folder, read as a ViT: the decoder's tensors are left out, the fixed positions
# become ones that may learn, and the features are the same. That is the encoder one builds on. A new head is one line;
# before it is trained, it says nothing.

# %%
saved = Path(scratch.name, "saved")
product.save_pretrained(saved)
vit = sf.ViT.from_pretrained(saved, dtype=torch.float64)
with torch.no_grad():
    states = vit.encode(x)
    counts = [sum(parameter.numel() for parameter in one.parameters()) for one in (product, vit)]
    print(f"{counts[0]:,} parameters, as a ViT {counts[1]:,}; off by {(states - ours.encode(x)).abs().max():.0e}")
    assert torch.equal(states, product.encode(x))
    assert vit.head is None
    vit.head = sf.Classify(vit.config.dim, [str(label) for label in range(10)], pool=sf.mean).double()
    print("new head:", *(f"{score:.2f}" for score in vit(x[:1])[0].tolist()))
assert vit.position.requires_grad
assert not product.position.requires_grad

# %% [markdown]
# **What would the famous mistakes have done?** Each is planted in a copy; none fails to load, for every shape is
# right. The error says what a mistake costs; the smallest ones you would never notice in a picture, and they are wrong
# all the same: compare numbers with a reference that is not your own code.


# %%
def other_gelu(model):
    for block in [*model.blocks, *model.decoder_blocks]:
        block.mlp.activation = lambda x: F.gelu(x, approximate="tanh")


def default_eps(model):
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5


def one_count_of_heads(model):
    for block in model.decoder_blocks:
        block.attention.heads = model.blocks[0].attention.heads


def heads_dealt(model):
    """What a model with heads (e h) makes of these weights."""
    for block in [*model.blocks, *model.decoder_blocks]:
        for name, parameter in block.attention.named_parameters():
            pattern = "d (e h) -> d (h e)" if name == "out.weight" else "(e h) ... -> (h e) ..."
            if name != "out.bias":
                parameter.copy_(rearrange(parameter.clone(), pattern, h=block.attention.heads))


def row_first(model):
    for position in (model.position, model.decoder_position):
        position.copy_(torch.cat(position.chunk(2, dim=-1)[::-1], dim=-1))


def patches_turned(model):
    """Patches read column by column."""
    p = model.patch
    model.project.weight.copy_(rearrange(model.project.weight.clone(), "d (c p q) -> d (c q p)", p=p, q=p))


def target_turned(model):
    """Patches painted column by column."""
    for parameter in (model.out.weight, model.out.bias):
        parameter.copy_(rearrange(parameter.clone(), "(p q c) ... -> (q p c) ...", p=model.patch, q=model.patch))


class PositionsAfterwards(MAE):
    def encode(self, images, shown=None):
        """Positions added to what is left: the first ones, whatever was shown."""
        position = self.position[:, 1:]
        late = position[:, : position.shape[1] if shown is None else shown.shape[1]]
        x = self.project(cut(images, self.patch))
        x = (x if shown is None else x.take_along_dim(shown[..., None], dim=1)) + late
        x = torch.cat([(self.class_token + self.position[:, :1]).expand(len(x), -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


mistakes = {
    "as published": lambda model: None,
    "GELU by tanh": other_gelu,
    "eps 1e-5": default_eps,
    "as many heads in the decoder": one_count_of_heads,
    "heads (e h)": heads_dealt,
    "positions: the row first": row_first,
    "positions after the hiding": lambda model: setattr(model, "__class__", PositionsAfterwards),
    "decoder without positions": lambda model: model.decoder_position.zero_(),
    "patches read column by column": patches_turned,
    "patches painted column by column": target_turned,
    "encoder's last norm left out": lambda model: setattr(model, "norm", nn.Identity()),
    "decoder's norm left out": lambda model: setattr(model, "decoder_norm", nn.Identity()),
    "mask token lost": lambda model: model.mask_token.zero_(),
}
moved = {}
with torch.no_grad():
    for name, plant in mistakes.items():
        wrong = copy.deepcopy(ours)
        plant(wrong)
        found, painted, _ = wrong(x, noise)
        moved[name] = (painted - prediction).abs().max().item()
        print(f"{name:34} error {found:7.3f}; prediction off by up to {moved[name]:.0e}")
print(f"The lesson took {time.perf_counter() - started:.0f} s.")
assert moved["as published"] == 0
assert min(off for name, off in moved.items() if name != "as published") > 1e-7

# %% [markdown]
# ## 13. Exercises
#
# Each says how you can check your answer yourself. Change a copy of the cell and run what follows it.
#
# 1. **How much to hide.** Train with a `mask_ratio` of 0.25, 0.5 and 0.9. *Hint:* examine all at 0.75. *Check:* who
#    paints best at 0.75, and whose features the linear probe likes best? They need not be the same.
# 2. **Long waves.** Train with `longest=10_000`. *Check:* after the same steps the held-out error is higher; how many
#    steps until it is at the mean digit's?
# 3. **Blocks instead of noise.** Show two rows of patches, hide the others. *Hint:* it is only another noise. *Check:*
#    the error rises; the paper finds random places best (section 4.1, "mask sampling strategy").
# 4. **Mask tokens in the encoder.** Replace the embedding of hidden patches by a learned vector, before the positions,
#    and keep all tokens. *Check:* the time of a step, and the linear probe.
# 5. **Loss over all patches.** *Check:* `nonsense` of section 6 now changes the loss; does the error at hidden places
#    rise?
# 6. **Normalised pixels.** Train with `norm_pix_loss=True`, and probe. *Hint:* an empty patch has no deviation; what
#    is its target? *Check:* `with_the_answer` paints well, with the statistics of shown patches it does not.
# 7. **Without a class token.** *Hint:* four lines, and `sinusoids_2d` begins with it. *Check:* the paper finds it
#    makes no difference (appendix A.1); the library's `MAEConfig(class_token=False)` agrees with yours in float64.
# 8. **Paint a photograph.** Train on crops of 32 x 32 of the two photographs of scikit-learn, patches of 4. *Check:*
#    the copier of section 1, with pixels instead of mean colours, is the baseline. When do you pass it?
#
# To read on: `src/scratchformers/models/mae.py` is this model as the library has it, in one page.
