# %% [markdown]
# # ViT from nothing
#
# A Vision Transformer cuts a picture into squares and reads them as BERT reads words: nothing in it knows that two
# squares touch. This lesson builds it, one idea a cell, and proves each before it goes on. At the end of it you have
#
# - pictures as tensors, and three ways to spoil them that no shape gives away;
# - patches, the proof that embedding them is a convolution, and what happens when nobody says where they stand;
# - a ViT that you trained in about half a minute, which reads handwritten digits that it never saw;
# - a map of what it looks at, and a test whether to believe the map;
# - the same model for pictures of another size, and published weights in your own modules, in both layouts there are.
#
# You should know PyTorch's `nn.Module`; `lessons/gpt2.py` derives attention, heads and the residual, which we only
# write down here, and `lessons/einops.py` the patterns. The letters: `b` batch, `c` channels, `y x` rows and columns
# of patches, `p q` rows and columns of pixels inside one patch, `n` patches, `t` tokens (queries), `s` tokens (keys),
# `d` width, `h` heads, `e` width of one head. Papers: ViT is Dosovitskiy et al. 2021, the Transformer Vaswani et al.
# 2017.

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
from collections import Counter

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from sklearn.datasets import load_digits, load_sample_image
from torch import nn

torch.manual_seed(0)
started, threads = time.perf_counter(), torch.get_num_threads()
torch.set_num_threads(1)  # small matrices: sharing the work costs more than it saves
print("torch", torch.__version__)

# %% [markdown]
# ## 1. A picture is a tensor
#
# A photograph that comes with scikit-learn. A file of it holds, for every pixel, three **levels** from 0 to 255: red,
# green, blue. Libraries that read files give (rows, columns, channels); models read (channels, rows, columns), of
# floats around 0. So: move an axis, divide, take off a mean, divide by a deviation.

# %%
photo = torch.tensor(load_sample_image("china.jpg"))
picture = rearrange(photo, "y x c -> c y x") / 255
model_input = (picture - 0.5) / 0.5
print("file", tuple(photo.shape), photo.dtype, "-> model", tuple(model_input.shape), model_input.dtype)
print(f"levels {photo.min()} to {photo.max()}, then {model_input.min():.0f} to {model_input.max():.0f}")
assert torch.equal(((model_input * 0.5 + 0.5) * 255).round().byte(), rearrange(photo, "y x c -> c y x"))

# %% [markdown]
# Three mistakes that raise no error, since every shape is right:
#
# - `reshape(3, 427, 640)` instead of moving the axis: the picture is gone;
# - blue, green, red, as OpenCV reads files, instead of red, green, blue;
# - **another mean and deviation than the weights were trained with.** Google's ViTs take 0.5 and 0.5; DeiT and MAE
#   take those of ImageNet. Which, stands in a file beside the weights (`preprocessor_config.json`).

# %%
spoilt = {
    "as it should be": picture,
    "reshaped": (photo / 255).reshape(3, 427, 640),
    "blue, green, red": picture.flip(0),
}
figure, axes = plt.subplots(1, 3, figsize=(12, 3), layout="constrained")
for axis, (name, image) in zip(axes, spoilt.items()):
    axis.imshow(rearrange(image, "c y x -> y x c").numpy())
    axis.set_title(name)
    axis.axis("off")
plt.show()
plt.close(figure)
imagenet = (picture - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / 0.225  # its deviations are 0.224 to 0.229
print(f"the same picture, by ImageNet's mean and deviation: off by up to {(imagenet - model_input).abs().max():.2f}")
assert all(image.shape == picture.shape for image in spoilt.values())
assert not any(torch.equal(image, picture) for image in list(spoilt.values())[1:])

# %% [markdown]
# To train on, we take something smaller: the 1,797 handwritten digits that come with scikit-learn, 8 x 8 pixels, one
# channel, levels from 0 to 16. They were written by 13 people.
#
# **What to hold out?** If every fifth digit is held out, the same hands stand on both sides. The file does not say who
# wrote what, but one can ask how often a held-out digit has the label of its nearest neighbour: it is more often right
# for every fifth than for the last 360. What stands close together is alike. So we hold out the end, which is harder
# and nearer to what one wants to know. And the neighbour is a **baseline**: who trains a network should be better.

# %%
digits = load_digits()
pictures = rearrange(torch.tensor(digits.images, dtype=torch.float32), "b y x -> b 1 y x") / 8 - 1  # from -1 to 1
labels = torch.tensor(digits.target)


def neighbour(known, asked):
    """How often the nearest of the known pictures has the label of the picture asked for."""
    distance = torch.cdist(pictures[asked].flatten(1), pictures[known].flatten(1))
    return (labels[known][distance.argmin(dim=1)] == labels[asked]).float().mean().item()


order = torch.arange(len(pictures))
training, held_out = order[:-360], order[-360:]
by_fifths, baseline = neighbour(order[order % 5 != 0], order[order % 5 == 0]), neighbour(training, held_out)
print(f"{len(training)} digits to learn from, {len(held_out)} held out; most common label "
      f"{labels[held_out].bincount().max() / len(held_out):.0%}")  # fmt: skip
print(f"nearest neighbour: every fifth held out {by_fifths:.1%} right, the last 360 held out {baseline:.1%}")
assert pictures.min() == -1
assert pictures.max() == 1
assert baseline < by_fifths

# %%
figure, axes = plt.subplots(2, 10, figsize=(10, 2.2), layout="constrained")
for axis, i in zip(axes.flat, [*training[:10], *held_out[:10]]):
    axis.imshow(pictures[i, 0], cmap="gray_r")
    axis.axis("off")
figure.suptitle("to learn from; below, held out")
plt.show()
plt.close(figure)
assert labels[:10].tolist() == list(range(10))

# %% [markdown]
# ## 2. Patches
#
# Why not a token for each pixel? A picture of 224 x 224 has 50,176 of them, and attention weighs every token against
# every other: one head's weights alone would fill 10 GB. So the picture is cut into squares of `p` x `p`, and each
# becomes one token (section 3.1 of the paper; "/16" in a model's name is `p`). Half the side is four times the tokens.


# %%
def cut(images, patch):
    """(b, c, height, width) to (b, n, c p q): row by row, each patch read as channel, row, column."""
    return rearrange(images, "b c (y p) (x q) -> b (y x) (c p q)", p=patch, q=patch)


print("patch  tokens        pairs  numbers a patch")
for patch in (1, 8, 14, 16, 32):
    n = (224 // patch) ** 2
    print(f"{patch:5}{n:8,}{n * n:13,}{3 * patch**2:17,}")
assert (224 // 16) ** 2 == 196
assert 50_176**2 * 4 > 10e9

# %% [markdown]
# The photograph has no multiple of 16 as its height, so we cut off the top and the bottom: 26 x 40 patches. Not
# square, on purpose: a square hides a swap of rows and columns.

# %%
china = model_input[None, :, 5:-6]
patches = cut(china, 16)
framed = F.pad(rearrange(patches[0] / 2 + 0.5, "n (c p q) -> n c p q", c=3, p=16), (1, 1, 1, 1), value=1.0)
figure, axes = plt.subplots(1, 2, figsize=(12, 4), layout="constrained")
for axis, (name, rows) in zip(axes, {"26 rows of 40 patches": 26, "the same, read as 40 rows of 26": 40}.items()):
    axis.imshow(rearrange(framed, "(y x) c p q -> (y p) (x q) c", y=rows).numpy())
    axis.set_title(name)
    axis.axis("off")
plt.show()
plt.close(figure)
print("picture", tuple(china.shape), "-> patches", tuple(patches.shape))
assert torch.equal(patches[0, 40 + 2], china[0, :, 16:32, 32:48].flatten())  # row 1, column 2

# %% [markdown]
# **Embedding a patch** is one linear layer. Published code writes a convolution whose stride is its kernel, and files
# hold its kernel, (d, c, p, q). It is the same thing: such a convolution meets each patch once, and flattens kernel
# and patch alike. **Trap: alike means in the order (c p q).** (p q c) has the same shape, and other numbers.

# %%
convolution = nn.Conv2d(3, 48, kernel_size=16, stride=16)
expected = rearrange(convolution(china), "b d y x -> b (y x) d")
kernel = convolution.weight.flatten(1)
embedded = F.linear(patches, kernel, convolution.bias)
pixel_by_pixel = rearrange(china, "b c (y p) (x q) -> b (y x) (p q c)", p=16, q=16)
mixed = F.linear(pixel_by_pixel, kernel, convolution.bias)
print(f"linear and convolution: off by {(embedded - expected).abs().max():.0e}; "
      f"patches read as (p q c): off by {(mixed - expected).abs().max():.1f}")  # fmt: skip
assert torch.allclose(embedded, expected, atol=1e-5)
assert not torch.allclose(mixed, expected, atol=0.1)

# %% [markdown]
# ## 3. The block
#
# **Attention** is that of BERT, without a mask: every token weighs every other, by a softmax over products of queries
# and keys, and takes the mean of their values (Vaswani et al. 2017, equation 1):
#
# $$\mathrm{softmax}(q k^\top / \sqrt{e})\, v$$


# %%
def split(x, heads):
    return rearrange(x, "b t (h e) -> b h t e", h=heads)  # heads outer: the order of the published weights


def weigh(q, k):
    return (einsum(q, k, "b h t e, b h s e -> b h t s") / q.shape[-1] ** 0.5).softmax(dim=-1)


class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def weights(self, x):
        return weigh(split(self.q(x), self.heads), split(self.k(x), self.heads))

    def forward(self, x):
        mixed = einsum(self.weights(x), split(self.v(x), self.heads), "b h t s, b h s e -> b h t e")
        return self.out(rearrange(mixed, "b h t e -> b t (h e)"))


q, k, v = torch.randn(3, 2, 4, 17, 16)
mixed = einsum(weigh(q, k), v, "b h t s, b h s e -> b h t e")
print(f"off from torch by {(mixed - F.scaled_dot_product_attention(q, k, v)).abs().max():.0e}")
assert torch.allclose(mixed, F.scaled_dot_product_attention(q, k, v), atol=1e-6)

# %% [markdown]
# **The block** is that of GPT-2: the norm comes *before* the function, and what the function gives is added (equations
# 2 and 3 of the paper). `dropout` stands where something is added; it does nothing until section 8.
#
# **Trap: two details that differ from GPT-2.** The GELU is exact, by the error function: x times the probability that
# a standard normal is below x. (The paper's own code calls JAX's `gelu`, which by default is the tanh approximation;
# timm and transformers, which run the weights in PyTorch, take the error function. So do we.) And the norm's eps is
# 1e-6 in Google's code and timm, 1e-12 in transformers' files, while PyTorch's default is 1e-5.


# %%
def gelu(x):
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


class MLP(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.up, self.down, self.activation = nn.Linear(dim, hidden), nn.Linear(hidden, dim), F.gelu

    def forward(self, x):
        return self.down(self.activation(self.up(x)))


class Block(nn.Module):
    def __init__(self, dim, heads, hidden, eps=1e-6):
        super().__init__()
        self.attention, self.attention_norm = Attention(dim, heads), nn.LayerNorm(dim, eps=eps)
        self.mlp, self.mlp_norm = MLP(dim, hidden), nn.LayerNorm(dim, eps=eps)
        self.dropout = nn.Dropout(0.0)

    def forward(self, x):
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


line = torch.linspace(-5, 5, 1001, dtype=torch.float64)
print(
    f"GELU, by tanh instead of the error function: off by {(F.gelu(line, approximate='tanh') - gelu(line)).max():.0e}"
)
assert torch.allclose(gelu(line), F.gelu(line), atol=1e-12)
assert 1e-4 < (F.gelu(line, approximate="tanh") - gelu(line)).abs().max() < 1e-3

# %% [markdown]
# PyTorch has this block as well, with `norm_first=True`. On weights drawn anew, so that no bias is 0 and no norm is 1,
# in float64, where rounding is far below any difference that matters:


# %%
@torch.no_grad()
def scramble(module, std=0.2):
    for parameter in module.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=std)
    return module


block, x = scramble(Block(48, 4, 192).double()), torch.randn(2, 17, 48, dtype=torch.float64)
theirs = nn.TransformerEncoderLayer(48, 4, 192, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True).double()
parts = [block.attention.q, block.attention.k, block.attention.v]
with torch.no_grad():
    theirs.self_attn.in_proj_weight.copy_(torch.cat([linear.weight for linear in parts]))
    theirs.self_attn.in_proj_bias.copy_(torch.cat([linear.bias for linear in parts]))
pairs = {theirs.self_attn.out_proj: block.attention.out, theirs.linear1: block.mlp.up, theirs.linear2: block.mlp.down}
for one, other in (pairs | {theirs.norm1: block.attention_norm, theirs.norm2: block.mlp_norm}).items():
    one.load_state_dict(other.state_dict())
print(f"off from torch by {(block(x) - theirs(x)).abs().max():.0e}")
assert torch.allclose(block(x), theirs(x), atol=1e-12)

# %% [markdown]
# ## 4. A token for the answer, and where each patch stands
#
# **The class token.** The answer is about the whole picture, and no patch is the whole picture. So one more token goes
# in front, a learned vector that has no pixels. It fetches from the patches what it needs, block by block, and the
# head reads it alone (equation 4). The other way is the **mean** of all patches, without such a token. The paper finds
# both equally good, each with a learning rate of its own (appendix D.3); Beyer et al. 2022, who made ViT simpler, take
# the mean. Section 7 tries both.
#
# **Positions.** Attention is a mean, and a mean does not know the order of its terms. Without more, a ViT sees a bag
# of patches: shuffle them, and the class token comes out the same, to the last bits.

# %%
shuffle = torch.randperm(patches.shape[1], generator=torch.Generator().manual_seed(0))
puzzle = rearrange(patches[0, shuffle] / 2 + 0.5, "(y x) (c p q) -> (y p) (x q) c", y=26, c=3, p=16)
figure, axes = plt.subplots(1, 2, figsize=(12, 4), layout="constrained")
for axis, image in zip(axes, (rearrange(china[0] / 2 + 0.5, "c y x -> y x c"), puzzle)):
    axis.imshow(image.numpy())
    axis.axis("off")
figure.suptitle("the same picture, to who does not know where the patches stand")
plt.show()
plt.close(figure)

project, stack = nn.Linear(768, 48).double(), nn.Sequential(*(scramble(Block(48, 4, 192).double()) for _ in range(2)))
class_token, position = torch.randn(1, 1, 48).double(), torch.randn(1, 1 + 26 * 40, 48).double()
moved = {}
with torch.no_grad():
    for name, where in {"without positions": 0 * position, "with positions": position}.items():
        seen = [torch.cat([class_token, project(x.double())], dim=1) + where for x in (patches, patches[:, shuffle])]
        moved[name] = (stack(seen[0])[:, 0] - stack(seen[1])[:, 0]).abs().max().item()
        print(f"{name:18} shuffling the patches moves the class token by {moved[name]:.0e}")
assert moved["without positions"] < 1e-10
assert moved["with positions"] > 1e-2

# %% [markdown]
# So each place has a vector of its own that is added, **learned like any other weight**, the class token's place
# included. They are numbered along one line, row by row; nobody tells the model that place 40 lies below place 0. In
# the paper's comparison (appendix D.4, ViT-B/16, 5-shot ImageNet) no positions give 61.4 %, these 64.2 %, and
# positions of rows and columns 64.0 %: that there are any matters, how they are written does not.
#
# The price: a model of 14 x 14 patches has 14 x 14 places. Section 9 makes more of them.
#
# ## 5. The model
#
# Patches, class token, positions, blocks, a last norm (in a pre-norm stack nobody else would scale the sum), and a
# linear layer that scores the classes.
#
# **Initialisation** as in the paper's code: linears by their width (Glorot and Bengio 2010), positions of 0.02, and a
# head of 0. So the first answer is that all classes are equally likely, and the first loss is exactly ln(classes).


# %%
class ViT(nn.Module):
    def __init__(self, image, patch, channels, dim, depth, heads, classes, pool="class", hidden=None, eps=1e-6):
        super().__init__()
        self.patch, self.pool, self.grid = patch, pool, (image[0] // patch, image[1] // patch)
        self.project = nn.Linear(channels * patch**2, dim)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim)) if pool == "class" else None
        self.position = nn.Parameter(torch.zeros(1, (pool == "class") + math.prod(self.grid), dim))
        self.blocks = nn.ModuleList(Block(dim, heads, hidden or 4 * dim, eps) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(dim, eps=eps), nn.Linear(dim, classes)

    def embed(self, images):
        x = self.project(cut(images, self.patch))
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1)
        return x + self.position

    def encode(self, images):
        """Pictures (b, c, height, width) to the states of all tokens (b, t, d), the class token first."""
        x = self.embed(images)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward(self, images):
        x = self.encode(images)
        return self.head(x[:, 0] if self.pool == "class" else x.mean(dim=1))


@torch.no_grad()
def initialise(model):
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            nn.init.xavier_uniform_(parameter)
        elif name.endswith("bias"):
            parameter.zero_()
    model.position.normal_(std=0.02)
    model.head.weight.zero_()
    return model


SIZES = {"image": (8, 8), "patch": 2, "channels": 1, "dim": 64, "depth": 2, "heads": 4, "classes": 10}
model = initialise(ViT(**SIZES))
with torch.no_grad():
    scores = model(pictures[:4])
first = F.cross_entropy(scores, labels[:4]).item()
print("digits", tuple(pictures[:4].shape), "-> states", tuple(model.encode(pictures[:4]).shape), "-> scores",
      tuple(scores.shape))  # fmt: skip
print(f"first loss {first:.4f}; ln 10 = {math.log(10):.4f}")
assert abs(first - math.log(10)) < 1e-5

# %% [markdown]
# **How many parameters has ViT-B/16?** Made on the `meta` device, which knows shapes and holds no numbers. timm's
# `vit_base_patch16_224` and transformers' `ViTForImageClassification` of 1000 classes have the same 86,567,656. The
# blocks are nearly all of it; what knows of pictures, the first layer and the positions, is less than one per cent.

# %%
with torch.device("meta"):
    base = ViT((224, 224), 16, channels=3, dim=768, depth=12, heads=12, classes=1000)
    large = ViT((224, 224), 16, channels=3, dim=1024, depth=24, heads=16, classes=1000)
    huge = ViT((224, 224), 14, channels=3, dim=1280, depth=32, heads=16, classes=1000)
sizes = Counter()
for name, parameter in base.named_parameters():
    sizes[name.split(".")[0]] += parameter.numel()
print(*(f"{name:12}{size:>12,}" for name, size in sizes.items()), f"together    {sizes.total():>12,}", sep="\n")
for name, other in {"L/16": large, "H/14": huge}.items():
    print(f"{name:12}{sum(parameter.numel() for parameter in other.parameters()):>12,}")
assert sizes.total() == 86_567_656
assert (sizes["project"] + sizes["position"]) / sizes.total() < 0.01

# %% [markdown]
# **Every token sees every pixel.** Change one pixel, and see which tokens move: after one block already all of them. A
# convolution of 3 x 3 reaches its neighbours only. And every parameter must get a gradient (with a head of 0, from the
# second step on).

# %%
exact = scramble(ViT(**SIZES).double())
one_pixel = pictures[:1].double().clone()
one_pixel[0, 0, 0, 0] += 1
with torch.no_grad():
    before, after = (exact.blocks[0](exact.embed(x)) for x in (pictures[:1].double(), one_pixel))
    embeds = (exact.embed(one_pixel) != exact.embed(pictures[:1].double())).any(dim=-1)[0]
F.cross_entropy(exact(pictures[:8].double()), labels[:8]).backward()
print("tokens moved by one pixel: embedded", embeds.int().tolist())
print("after one block", (before != after).any(dim=-1)[0].int().tolist())
assert embeds.nonzero().flatten().tolist() == [1]
assert (before != after).any(dim=-1).all()
assert all(parameter.grad.abs().sum() > 0 for parameter in exact.parameters())

# %% [markdown]
# ## 6. Training
#
# A convolution knows before it has seen anything that neighbours belong together, and that a thing is the same thing
# one pixel further right. A ViT must learn both from data (section 3.1, "inductive bias"), and it takes much: trained
# on ImageNet's 1.3 million pictures the paper's large models are behind a ResNet, on 300 million they are ahead
# (section 4.3). We have 1,437. What helps is to make more of them: half of the pictures are **moved by up to one
# pixel**, drawn anew at every visit.


# %%
def shift(images, generator):
    """Half of them moved to one of the nine places around; what comes in is background."""
    nine = F.pad(images, (1, 1, 1, 1), value=-1.0).unfold(2, 8, 1).unfold(3, 8, 1)
    nine = rearrange(nine, "b c i j y x -> b (i j) c y x")  # number 4 is the middle
    draw = torch.randint(18, (len(images),), generator=generator)
    return nine[torch.arange(len(images)), torch.where(draw < 9, draw, 4)]


drawn = shift(pictures[:1].expand(900, -1, -1, -1), torch.Generator().manual_seed(0))
unmoved = drawn.eq(pictures[0]).flatten(1).all(dim=1).float().mean().item()
figure, axes = plt.subplots(1, 8, figsize=(8, 1.3), layout="constrained")
for axis, image in zip(axes, drawn):
    axis.imshow(image[0], cmap="gray_r")
    axis.axis("off")
plt.show()
plt.close(figure)
print(f"{unmoved:.0%} stay where they are; one half and a ninth of the other would be {0.5 + 0.5 / 9:.0%}")
assert abs(unmoved - 0.5 - 0.5 / 9) < 0.05

# %% [markdown]
# The rest is the craft of the other lessons: AdamW with weight decay on matrices only, a warm-up, a cosine down to
# almost 0, the gradient's norm cut at 1.


# %%
@torch.no_grad()
def sit_exam(model, which=held_out):
    """Mean loss, and share of right answers."""
    model.eval()
    scores = model(pictures[which])
    model.train()
    return F.cross_entropy(scores, labels[which]).item(), (scores.argmax(dim=-1) == labels[which]).float().mean().item()


def train(model, steps, lr=4e-3, batch=64, shifted=True, warmup=50, every=0, limit=100):
    """For `steps` steps, or, where the machine is slow, until about `limit` seconds are over."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    others = [parameter for parameter in model.parameters() if parameter.ndim != 2]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimiser, generator = torch.optim.AdamW(groups), torch.Generator().manual_seed(0)
    losses, valid, began, done = [], {}, time.perf_counter(), 0.0
    while done < 1:
        for group in optimiser.param_groups:
            group["lr"] = lr * min((len(losses) + 1) / warmup, 0.02 + 0.49 * (1 + math.cos(math.pi * done)))
        rows = training[torch.randint(len(training), (batch,), generator=generator)]
        seen = shift(pictures[rows], generator) if shifted else pictures[rows]
        loss = F.cross_entropy(model(seen), labels[rows])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
        done = max(len(losses) / steps, (time.perf_counter() - began) / limit)
        if every and (len(losses) % every == 0 or done >= 1):
            valid[len(losses)] = sit_exam(model)
            print(f"step {len(losses):4}  loss {losses[-1]:.3f}  held out {valid[len(losses)][0]:.3f}, "
                  f"{valid[len(losses)][1]:.1%} right  {time.perf_counter() - began:4.0f} s", flush=True)  # fmt: skip
    return losses, valid


losses, valid = train(model, steps=1200, every=150)
right = sit_exam(model)[1]
print(f"right: {sit_exam(model, training)[1]:.1%} of the digits it learnt from, {right:.1%} of those held out; "
      f"nearest neighbour {baseline:.1%}")  # fmt: skip
assert abs(losses[0] - math.log(10)) < 1e-4
assert right > (0.9 if len(losses) == 1200 else 0.5)  # less where the machine was too slow for all steps

# %%
figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
axis.plot(range(1, len(losses) + 1), losses, alpha=0.5, label="training, one batch")
axis.plot(list(valid), [loss for loss, _ in valid.values()], "o-", label="held out")
axis.axhline(math.log(10), ls="--", color="grey", label="knowing nothing, ln 10")
axis.set(xlabel="step", ylabel="nats a picture", ylim=(0, None))
axis.legend()
plt.show()
plt.close(figure)

# %% [markdown]
# ## 7. What mattered?
#
# The same model for a quarter of the time, each time with one thing changed. One run of each says little about small
# differences: another seed moves a figure by a point or two. It says a lot about large ones.

# %%
tried = {}
changes = {
    "as above": {},
    "the mean instead of a class token": {"pool": "mean"},
    "without positions": {"position": False},
    "pictures not shifted": {"shifted": False},
}
for name, change in changes.items():
    torch.manual_seed(0)
    little = initialise(ViT(**SIZES, pool=change.get("pool", "class")))
    if "position" in change:
        little.position.requires_grad_(False).zero_()
    train(little, steps=300, shifted=change.get("shifted", True), limit=25)
    tried[name] = sit_exam(little, training)[1], sit_exam(little)[1]
    print(f"{name:34} {tried[name][0]:6.1%} of the training digits, {tried[name][1]:6.1%} of those held out")
assert tried["without positions"][1] < tried["as above"][1] - 0.05

# %% [markdown]
# - **Without positions** about half of the digits are still read, from the bag of patches alone; the rest is position.
# - **The class token and the mean** are close, as the paper says. Do not decide between them by one run.
# - **Not shifted**, the model knows all its training digits by heart and fewer of those it never saw.
# - **Time**: the run of section 6 differs from the first row by four times the steps, which took it past the nearest
#   neighbour. Shifted pictures do not run out.
#
# **What are the learnt positions?** Compare each place's vector with all others. In the mean, places that touch are
# alike and others are not, though nobody said which ones touch. With 16 places and 1,437 pictures that is a tendency;
# figure 7 of the paper shows it for 14 x 14 places, clear as a map.

# %%
places = F.normalize(model.position.detach()[0, 1:], dim=-1)
likeness = places @ places.T
row, column = torch.arange(16) // 4, torch.arange(16) % 4
distance = (row[:, None] - row).abs() + (column[:, None] - column).abs()
figure, axes = plt.subplots(4, 4, figsize=(5, 5.4), layout="constrained")
for axis, one in zip(axes.flat, likeness):
    axis.imshow(one.view(4, 4), vmin=-1, vmax=1, cmap="RdBu_r")
    axis.axis("off")
figure.suptitle("each place, and how alike the others are")
plt.show()
plt.close(figure)
by_distance = [likeness[distance == steps].mean().item() for steps in range(7)]
print("mean likeness by steps between two places:", *(f"{value:.2f}" for value in by_distance))
assert by_distance[1] > max(by_distance[2:])

# %% [markdown]
# **Where does it look?** The class token's weights, block after block. To follow what came through the tokens in
# between, the **rollout** (Abnar and Zuidema 2020; appendix D.8 of the paper) takes the mean over heads, adds the
# residual as an identity, and multiplies the matrices.


# %%
@torch.no_grad()
def looks(model, images):
    """The attention weights of every block: (blocks, b, h, t, s)."""
    x, found = model.embed(images), []
    for block in model.blocks:
        found.append(block.attention.weights(block.attention_norm(x)))
        x = block(x)
    return torch.stack(found)


def rollout(weights):
    """How much of each patch reaches the class token: (b, n)."""
    eye = torch.eye(weights.shape[-1])
    through = eye
    for layer in weights.mean(dim=2):
        through = (layer + eye) / 2 @ through
    return through[:, 0, 1:]


some = held_out[torch.tensor([(labels[held_out] == label).nonzero()[0, 0] for label in range(10)])]
weights = looks(model, pictures[some])
maps = {"picture": pictures[some, 0], "rollout": rollout(weights).view(-1, 4, 4)}
maps |= {f"head {head}": weights[-1, :, head, 0, 1:].view(-1, 4, 4) for head in range(4)}
figure, axes = plt.subplots(6, 10, figsize=(10, 6.4), layout="constrained")
for line, (name, images) in zip(axes, maps.items()):
    for axis, image in zip(line, images):
        axis.imshow(image, cmap="gray_r" if name == "picture" else "viridis")
        axis.set_xticks([])
        axis.set_yticks([])
    line[0].set_ylabel(name)
plt.show()
plt.close(figure)
print("weights", tuple(weights.shape), "-> rollout", tuple(rollout(weights).shape))
assert torch.allclose(weights.sum(dim=-1), torch.ones(()), atol=1e-5)
assert rollout(weights).sum(dim=-1).max() < 1

# %% [markdown]
# **Is the map true?** It is easy to see meaning in a coloured square. So test it: make four patches of each picture
# blank, once those of the highest rollout, once those of the lowest, once any four. If the map says what the answer
# rests on, the first must hurt most.

# %%
order = rollout(looks(model, pictures[held_out])).argsort(dim=1)
chance = torch.rand(order.shape, generator=torch.Generator().manual_seed(0)).argsort(dim=1)
blanked = {}
for name, places in {"highest": order[:, -4:], "lowest": order[:, :4], "any": chance[:, :4]}.items():
    blank = torch.zeros(len(held_out), 16, dtype=torch.bool).scatter(1, places, True)
    blank = rearrange(blank, "b (y x) -> b 1 y 1 x 1", y=4)
    whole = rearrange(pictures[held_out], "b c (y p) (x q) -> b c y p x q", p=2, q=2)
    images = rearrange(whole.masked_fill(blank, -1.0), "b c y p x q -> b c (y p) (x q)")
    with torch.no_grad():
        blanked[name] = (model(images).argmax(dim=-1) == labels[held_out]).float().mean().item()
    print(f"four patches of the {name} rollout blank: {blanked[name]:.1%} right")
assert blanked["highest"] < blanked["lowest"]

# %% [markdown]
# ## 8. Stochastic depth
#
# A deep ViT on little data learns by heart. Against that, DeiT (Touvron et al. 2021) and MAE's fine-tuning leave out
# whole functions at random (Huang et al. 2016): for each picture, what a block would add is added or not. What is left
# is divided by the probability to stay, so that nothing changes in the mean, and in evaluation all is there. It needs
# two lines, since the block has a place for it:


# %%
class StochasticDepth(nn.Dropout):
    def forward(self, x):  # (b, t, d): what is added to a picture's tokens, all of it or nothing
        return x * F.dropout(torch.ones(len(x), 1, 1, dtype=x.dtype), self.p, self.training)


def drop_depth(model, rate):
    """Rising from 0 in the first block to `rate` in the last: what comes early is needed by all (their section 3)."""
    for i, block in enumerate(model.blocks):
        block.dropout = StochasticDepth(rate * i / max(1, len(model.blocks) - 1))
    return model


deep = drop_depth(scramble(ViT(**SIZES | {"depth": 4}), 0.05), 0.3)
ones, drop = torch.ones(10_000, 2, 3), StochasticDepth(0.3)
print("rates", *(f"{block.dropout.p:.1f}" for block in deep.blocks), "- what is kept is", drop(ones).unique().tolist(),
      f"in the mean {drop(ones).mean():.2f}")  # fmt: skip
with torch.no_grad():
    differ = (deep(pictures[:4]) - deep(pictures[:4])).abs().max().item()
    deep.eval()
    same = torch.equal(deep(pictures[:4]), deep(pictures[:4]))
print(f"two calls in training differ by {differ:.2f}; in evaluation they are equal: {same}")
assert all(len(kept.unique()) == 1 for kept in drop(ones)[:100])
assert abs(drop(ones).mean() - 1) < 0.05
assert differ > 0
assert same

# %% [markdown]
# **Traps.** Drawn once a batch instead of once a picture, it is a shallow net every now and then, and a batch's
# gradient jumps. Not divided, evaluation adds more than training ever did. And a model left in training mode gives
# another answer each time: call `eval()`.
#
# ## 9. Pictures of another size
#
# Patches of 2 x 2 pixels fit a picture of 12 x 12 as well: 6 x 6 of them. All of the model works on any number of
# tokens, except for the positions. So these are **interpolated**: laid out as the picture they are, 4 x 4 with `d`
# channels, enlarged to 6 x 6 as one enlarges a picture (section 3.2 of the paper; bicubic, as timm does), and laid in
# a line again. The class token's place is not part of the picture and stays as it is.


# %%
def interpolate(position, old, new):
    """Positions (1, 1 + y x, d), of a grid (rows, columns), for another one."""
    grid = rearrange(position[:, 1:].float(), "1 (y x) d -> 1 d y x", y=old[0])  # in float32, as timm does
    grid = F.interpolate(grid, size=new, mode="bicubic", antialias=True).to(position.dtype)
    return torch.cat([position[:, :1], rearrange(grid, "1 d y x -> 1 (y x) d")], dim=1)


def as_a_line(position, old, new):  # wrong
    line = F.interpolate(position.mT, size=1 + math.prod(new), mode="linear")
    return line.mT


def filled_up(position, old, new):  # wrong
    return F.pad(position, (0, 0, 0, math.prod(new) - math.prod(old)))


def resized(model, size, how):
    other = copy.deepcopy(model)
    other.grid = size[0] // model.patch, size[1] // model.patch
    other.position = nn.Parameter(how(model.position.detach(), model.grid, other.grid))
    return other


enlarged = F.interpolate(pictures, (12, 12), mode="bilinear")
sized = {}
with torch.no_grad():
    for how in (interpolate, as_a_line, filled_up):
        scores = resized(model, (12, 12), how)(enlarged[held_out])
        sized[how] = (scores.argmax(dim=-1) == labels[held_out]).float().mean().item()
        print(f"12 x 12 pixels, positions by {how.__name__:12} {sized[how]:.1%} right")
assert torch.allclose(interpolate(model.position, (4, 4), (4, 4)), model.position, atol=1e-5)
assert sized[interpolate] > max(sized[as_a_line], sized[filled_up])

# %% [markdown]
# What is lost with interpolated positions is lost by the pictures: enlarged, a stroke is half as wide again, and
# patches look like none the model learnt from. So published models are trained on for a while at the new size, which
# the paper finds to be worth it: fine-tuned at a higher resolution they classify better (section 3.2).
#
# ## 10. Published weights
#
# The exam. There are two layouts, and people confuse them:
#
# | | Hugging Face (`google/vit-base-patch16-224`) | timm, DeiT, facebook's MAE |
# |---|---|---|
# | queries, keys, values | three layers apart, as ours | **fused** into one `qkv`, one after the other |
# | first layer | `patch_embeddings.projection` | `patch_embed.proj` |
# | norms | `layernorm_before`, `layernorm_after` | `norm1`, `norm2` |
# | head | `classifier` | `head` |
# | sizes | in `config.json`, heads and eps too | the name says them: **no shape tells the heads** |
#
# In both the first layer is a convolution's kernel, (d, c, p, q). Google's `-in21k` files have no head, but a
# `pooler`; `load` half a file and you get noise: a strict table says what is missing.

# %%
HUGGING_FACE = {
    "vit.embeddings.cls_token": ["class_token"],
    "vit.embeddings.position_embeddings": ["position"],
    "vit.embeddings.patch_embeddings.projection": ["project"],
    "vit.encoder.layer.*.layernorm_before": ["blocks.*.attention_norm"],
    "vit.encoder.layer.*.attention.attention.query": ["blocks.*.attention.q"],
    "vit.encoder.layer.*.attention.attention.key": ["blocks.*.attention.k"],
    "vit.encoder.layer.*.attention.attention.value": ["blocks.*.attention.v"],
    "vit.encoder.layer.*.attention.output.dense": ["blocks.*.attention.out"],
    "vit.encoder.layer.*.layernorm_after": ["blocks.*.mlp_norm"],
    "vit.encoder.layer.*.intermediate.dense": ["blocks.*.mlp.up"],
    "vit.encoder.layer.*.output.dense": ["blocks.*.mlp.down"],
    "vit.layernorm": ["norm"],
    "classifier": ["head"],
}
TIMM = {
    "cls_token": ["class_token"],
    "pos_embed": ["position"],
    "patch_embed.proj": ["project"],
    "blocks.*.norm1": ["blocks.*.attention_norm"],
    "blocks.*.attn.qkv": ["blocks.*.attention.q", "blocks.*.attention.k", "blocks.*.attention.v"],
    "blocks.*.attn.proj": ["blocks.*.attention.out"],
    "blocks.*.norm2": ["blocks.*.mlp_norm"],
    "blocks.*.mlp.fc1": ["blocks.*.mlp.up"],
    "blocks.*.mlp.fc2": ["blocks.*.mlp.down"],
    "norm": ["norm"],
    "head": ["head"],
}


def rows(table, depth):
    """Their tensor and ours."""
    for theirs, ours in table.items():
        for i in range(depth) if "*" in theirs else (0,):
            for part in ("",) if ours[0] in ("class_token", "position") else (".weight", ".bias"):
                names = [f"{name}{part}".replace("*", str(i)) for name in (theirs, *ours)]
                yield names[0], names[1:]


def to_ours(table, published, depth):
    published, state = dict(published), {}
    for theirs, ours in rows(table, depth):
        tensor = published.pop(theirs)
        state |= zip(ours, (tensor.flatten(1) if tensor.ndim == 4 else tensor).chunk(len(ours)), strict=True)
    if published:
        raise ValueError(f"No row of the table names {', '.join(published)}.")
    return state


def to_published(table, state, depth, channels, patch):
    published = {}
    for theirs, ours in rows(table, depth):
        tensor = torch.cat([state[name] for name in ours])
        kernel = ours == ["project.weight"]
        published[theirs] = tensor.unflatten(1, (channels, patch, patch)) if kernel else tensor.clone()
    return published


state = model.state_dict()
there = {name: to_published(table, state, 2, 1, 2) for name, table in {"hf": HUGGING_FACE, "timm": TIMM}.items()}
for theirs in ("vit.embeddings.patch_embeddings.projection.weight", "vit.encoder.layer.1.attention.attention.key.bias"):
    print(f"{theirs:56}{tuple(there['hf'][theirs].shape)}")
print(f"{'blocks.1.attn.qkv.bias':56}{tuple(there['timm']['blocks.1.attn.qkv.bias'].shape)}")
for name, table in {"hf": HUGGING_FACE, "timm": TIMM}.items():
    back = to_ours(table, there[name], 2)
    assert set(back) == set(state)
    assert all(torch.equal(back[name], state[name]) for name in state)

# %% [markdown]
# **Where are they?** In a folder that the environment variable `VIT_FOLDER` names, or in the cache of the Hugging Face
# hub, if you have run
#
# ```sh
# hf download google/vit-base-patch16-224 config.json model.safetensors preprocessor_config.json    # 350 MB, once
# ```
#
# Nothing is downloaded here. Without the files we go on with a **stand-in**: your model, written out in exactly that
# layout. Everything below is the same for both; only the stand-in reads digits, and the published one photographs.

# %%
from huggingface_hub import try_to_load_from_cache
from safetensors.torch import load_file, save_file

FILES = ("config.json", "model.safetensors", "preprocessor_config.json")
scratch = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)


def stand_in(folder):
    save_file(there["hf"], folder / "model.safetensors", metadata={"format": "pt"})
    sizes = {"image_size": 8, "patch_size": 2, "num_channels": 1, "hidden_size": 64, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "intermediate_size": 256, "layer_norm_eps": 1e-6}
    facts = {"model_type": "vit", "architectures": ["ViTForImageClassification"], "hidden_act": "gelu", **sizes}
    facts["id2label"] = {str(i): f"the digit {i}" for i in range(10)}
    (folder / "config.json").write_text(json.dumps(facts), encoding="utf-8")
    return folder


def find():
    if named := os.environ.get("VIT_FOLDER"):
        return Path(named), f"the folder {named}"
    cached = [try_to_load_from_cache("google/vit-base-patch16-224", name) for name in FILES]
    if all(isinstance(file, str) for file in cached):
        return Path(cached[0]).parent, "the published ViT-B/16, from the hub's cache"
    return stand_in(Path(scratch.name)), "a stand-in, your own model in the published layout"


folder, what = find()
facts = json.loads((folder / "config.json").read_text(encoding="utf-8"))
print(f"The weights are those of {what}.")
print(*(f"{name} {facts[name]}" for name in ("image_size", "patch_size", "hidden_size", "num_hidden_layers")), sep=", ")
assert all((folder / name).is_file() for name in FILES[:2])

# %% [markdown]
# Load: make the model on the `meta` device, where it costs nothing, and assign the tensors.

# %%
torch.set_num_threads(threads)
depth, heads, eps = facts["num_hidden_layers"], facts["num_attention_heads"], facts["layer_norm_eps"]
sizes = [facts[name] for name in ("patch_size", "num_channels", "hidden_size")]
with torch.device("meta"):
    ours = ViT((facts["image_size"],) * 2, *sizes, depth, heads, len(facts["id2label"]), eps=eps)
published = load_file(folder / "model.safetensors")
ours.load_state_dict(to_ours(HUGGING_FACE, published, depth), assign=True)
print(f"{len(published)} tensors read, {sum(p.numel() for p in ours.parameters()):,} parameters")
assert not any(parameter.is_meta for parameter in ours.parameters())

# %% [markdown]
# ## 11. The same in ScratchFormers
#
# A round trip through one's own table proves little: a mistake made on the way out is unmade on the way in. So ask
# somebody else. `scratchformers` reads the same folder by code of its own, which is tested against Hugging Face's
# transformers and timm. In float64 scores and states must agree to 1e-10.

# %%
from PIL import Image

import scratchformers as sf

if facts["num_channels"] == 3:
    prepare = sf.load_preprocess(folder)  # size, mean and deviation, as the file beside the weights says
    photos = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    images = torch.stack([prepare(photo) for photo in photos])
else:
    images = pictures[held_out]
with torch.no_grad():
    for dtype, bound in ((torch.float32, 1e-4), (torch.float64, 1e-10)):
        product = sf.load(folder, dtype=dtype)
        theirs, mine = product(images.to(dtype)), ours.to(dtype)(images.to(dtype))
        print(f"{dtype}: scores up to {theirs.abs().max():.0f}, largest difference {(theirs - mine).abs().max():.0e}")
        assert torch.allclose(theirs, mine, atol=bound, rtol=bound / 10)
    assert torch.allclose(product.encode(images.double()), ours.encode(images.double()), atol=1e-10)
for row in mine[:4].softmax(dim=-1):
    print(*(f"{product.head.labels[i]} {row[i]:.0%}" for i in row.topk(3).indices.tolist()), sep=", ")

# %% [markdown]
# The library builds its page of the same bricks: `Patches`, `Attention`, `MLP`, `Block`. So the rest of this lesson is
# there too, number for number: stochastic depth, put in the same place, with the same draws; pictures of another size;
# the mean instead of the class token; and timm's layout, where we must say what no shape tells.

# %%
small = sf.ViTConfig(image=8, patch=2, channels=1, dim=64, depth=2, heads=4, classes=10)
save_file(there["timm"], Path(scratch.name, "timm.safetensors"))
library = sf.ViT.from_pretrained(Path(scratch.name, "timm.safetensors"), config=small, dtype=torch.float64)
mine, x, larger = copy.deepcopy(model).double().eval(), pictures[held_out].double(), enlarged[held_out].double()


def from_library(state):
    """Its names are ours but for three, of which one holds keys and values."""
    renamed = {}
    for name, tensor in state.items():
        name = name.replace("patches.project", "project").replace("head.out", "head")
        parts = [name.replace(".kv.", f".{part}.") for part in "kv"] if ".kv." in name else [name]
        renamed |= zip(parts, tensor.chunk(len(parts)))
    return renamed


simple = scramble(sf.ViT(dataclasses.replace(small, pool="mean")).double()).eval()
own = ViT(**SIZES, pool="mean").double()
own.load_state_dict(from_library(simple.state_dict()))
with torch.no_grad():
    found = {"timm's layout": [library(x), mine(x)], "the mean": [simple(x), own(x)], "stochastic depth": []}
    for one in (library, mine):
        torch.manual_seed(0)
        found["stochastic depth"].append(drop_depth(copy.deepcopy(one), 0.5).train()(x))
    library.resize((12, 12))
    found["12 x 12 pixels"] = [library(larger), resized(mine, (12, 12), interpolate)(larger)]
for name, (theirs, own_scores) in found.items():
    print(f"{name:17} largest difference {(theirs - own_scores).abs().max():.0e}")
    assert torch.allclose(theirs, own_scores, atol=1e-10)
assert not torch.allclose(found["stochastic depth"][1], found["timm's layout"][1], atol=1e-3)

# %% [markdown]
# And `record` of the library shows the same attention as our own walk through the blocks in section 7.

# %%
with torch.no_grad(), sf.record(library) as recorded:
    library(larger[:5])
walk = looks(resized(mine, (12, 12), interpolate), larger[:5])
print(*(f"{name} {tuple(weights.shape)}" for name, weights in recorded.attention.items()), sep=", ")
assert all(torch.allclose(recorded.attention[i], walk[i], atol=1e-10) for i in range(2))

# %% [markdown]
# **What would the famous mistakes have done?** Each is planted in a copy; none fails to load, for every shape is
# right. The share says how many pictures still get the same answer. The smallest mistakes leave all answers as they
# are and are wrong all the same: compare numbers with a reference that is not your own code.


# %%
def heads_dealt(model):
    """What a model with heads (e h) makes of these weights."""
    for block in model.blocks:
        for name, parameter in block.attention.named_parameters():
            pattern = "d (e h) -> d (h e)" if name == "out.weight" else "(e h) ... -> (h e) ..."
            if name != "out.bias":
                parameter.copy_(rearrange(parameter.clone(), pattern, h=heads))


def swap_keys_and_values(model):
    for block in model.blocks:
        block.attention.k, block.attention.v = block.attention.v, block.attention.k


def other_gelu(model):
    for block in model.blocks:
        block.mlp.activation = lambda x: F.gelu(x, approximate="tanh")


def default_eps(model):
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5


class PostNormBlock(Block):
    def forward(self, x):
        x = self.attention_norm(x + self.attention(x))
        return self.mlp_norm(x + self.mlp(x))


def post_norm(model):
    for block in model.blocks:
        block.__class__ = PostNormBlock


def kernel_turned(model):
    """Patches read column by column."""
    p = model.patch
    model.project.weight.copy_(rearrange(model.project.weight.clone(), "d (c p q) -> d (c q p)", p=p, q=p))


def positions_turned(model):
    """Patches numbered column by column."""
    grid = rearrange(model.position[:, 1:].clone(), "1 (y x) d -> 1 (x y) d", y=model.grid[0])
    model.position[:, 1:] = grid


def class_token_last(model):
    model.position.copy_(model.position.roll(-1, 1))


mistakes = {
    "as published": lambda model: None,
    "GELU by tanh": other_gelu,
    "eps 1e-5": default_eps,
    "heads (e h)": heads_dealt,
    "k and v exchanged": swap_keys_and_values,
    "post-norm": post_norm,
    "last norm left out": lambda model: setattr(model, "norm", nn.Identity()),
    "patches read column by column": kernel_turned,
    "patches numbered column by column": positions_turned,
    "the class token's place at the end": class_token_last,
    "the mean of all tokens": lambda model: setattr(model, "pool", "mean"),
}
moved = {}
with torch.no_grad():
    expected = ours(images.double())
    for name, plant in mistakes.items():
        wrong = copy.deepcopy(ours)
        plant(wrong)
        scores = wrong(images.double())
        moved[name] = (scores - expected).abs().max().item()
        print(f"{name:34} {(scores.argmax(-1) == expected.argmax(-1)).float().mean():4.0%} the same answer; "
              f"scores off by up to {moved[name]:.0e}")  # fmt: skip
    darker = ours((images.double() + 1) / 2)
    print(f"{'pixels 0 to 1 instead of -1 to 1':34} {(darker.argmax(-1) == expected.argmax(-1)).float().mean():4.0%}")
print(f"The lesson took {time.perf_counter() - started:.0f} s.")
assert moved["as published"] == 0
assert min(off for name, off in moved.items() if name != "as published") > 1e-7

# %% [markdown]
# ## 12. Exercises
#
# Each says how you can check your answer yourself. Change a copy of the cell and run what follows it.
#
# 1. **Pixels as tokens.** Train with `patch=1`: 64 tokens. *Check:* how much longer is a step, and how much of that is
#    attention? Is it better? And `patch=4`, four tokens?
# 2. **Positions of rows and columns.** Give every row a learned vector and every column one, and add both. *Hint:*
#    `position = rearrange(row[:, None] + column, "y x d -> 1 (y x) d")`. *Check:* fewer parameters; after 300 steps as
#    good as the table of section 7, or better?
# 3. **A head of one more layer.** In pre-training the paper's head is linear, tanh, linear (section 3.1). *Check:*
#    with the last layer at 0 the first loss is still ln 10.
# 4. **Registers.** Give the model four more tokens in front that no head reads (Darcet et al. 2024). *Hint:* `embed`,
#    and their places in `interpolate`. *Check:* what share of the class token's weight goes to them?
# 5. **A longer shift.** Let `shift` move by up to two pixels. *Hint:* `F.pad` by two, 25 windows, and the middle is
#    number 12. *Check:* the training loss rises; does the held-out share?
# 6. **Several looks.** Average the scores of a held-out picture over its nine shifted copies. *Check:* is that better
#    than one look? By how many of the 360 pictures?
# 7. **Interpolation without antialias.** Leave `antialias=True` out. *Check:* compare the positions. They differ,
#    although nothing shrinks: PyTorch's two bicubic filters have different coefficients, and published models were
#    resized by one of them.
# 8. **Fine-tune at 12 x 12.** Train `resized(model, (12, 12), interpolate)` for 100 steps on enlarged pictures.
#    *Check:* it ends where the small one ended, and starts far ahead of a model drawn anew.
#
# To read on: `src/scratchformers/models/vit.py` is this model as the library has it, in one page; `lessons/mae.py`
# trains it without a single label.
