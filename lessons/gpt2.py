# %% [markdown]
# # GPT-2 from nothing
#
# GPT-2 is a program that, given the beginning of a text, says how likely each continuation is. This lesson builds it
# without a model library, one idea a cell, and proves each before it goes on. At the end of it you have
#
# - a tokeniser, and the reason why GPT-2 reads pieces of words;
# - attention written out, and the proof that it cannot look ahead: change a token and see what moves;
# - a GPT-2 that you trained in about a minute, and text that it wrote;
# - the published weights in your own modules, by a table you wrote, with the original's numbers.
#
# You should know PyTorch's tensors and `nn.Module`. `lessons/einops.py` explains the patterns, such as `b t d -> t b
# d`. The letters, all the way through: `b` batch, `t` time (queries), `s` source time (keys and values), `d` width of
# the model, `h` heads, `e` width of one head, so that `d = h e`, and `v` the vocabulary. Papers: GPT-2 is Radford et
# al. 2019, attention Vaswani et al. 2017.

# %%
import sys
from pathlib import Path

# Trap: lessons/einops.py has a library's name, so from this folder `import einops` would import that lesson.
sys.path = [folder for folder in sys.path if not Path(folder, "einops.py").is_file()]

import copy
import json
import math
import os
import re
import tempfile
import time
from collections import Counter
from pydoc_data.topics import topics

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn

torch.manual_seed(0)
started, threads = time.perf_counter(), torch.get_num_threads()
torch.set_num_threads(1)  # small matrices: sharing the work costs more than it saves; the long run gets all threads
print("torch", torch.__version__, "-", threads, "threads for the long run")

# %% [markdown]
# ## 1. Text becomes numbers
#
# The text is the prose of Python's own reference, the pages that `help()` shows; it comes with Python. Every tenth
# paragraph is **held out**: the model never trains on it, so that we can ask what it learnt rather than what it
# remembers.


# %%
def paragraphs(page):
    """Those that are prose: no tables, no grammar, no code."""
    for part in re.split(r"\n\s*\n", page):
        line = " ".join(part.split())
        prose = re.match(r'[A-Z"]', line) and line[-1] in ".:" and not re.search(r"::=|>>>|\||[=+*-]{3}", line)
        if prose and len(line) >= 80:
            yield line


every = list(dict.fromkeys(line for name in sorted(topics) for line in paragraphs(topics[name])))  # each once
held_out_text, training_text = every[::10], [line for i, line in enumerate(every) if i % 10]
print(f"{len(training_text)} paragraphs to learn from, {sum(map(len, training_text)):,} characters; for example:")
print(training_text[0])
assert not set(held_out_text) & set(training_text)

# %% [markdown]
# The simplest tokeniser gives each character a number. It has two faults: a character it never saw has no number, and
# a text is as long as it can be, while the cost of attention grows with the square of the length.

# %%
alphabet = sorted(set("".join(training_text)))
number = {character: i for i, character in enumerate(alphabet)}
ids = [number[character] for character in "The class"]
print(len(alphabet), "characters;", ids, "->", "".join(alphabet[i] for i in ids))
assert "".join(alphabet[i] for i in ids) == "The class"
assert "ǂ" not in number

# %% [markdown]
# **Bytes** mend the first: UTF-8 writes any text with 256 symbols. **Byte-pair encoding** mends the second: find the
# pair of neighbours that occurs most often, make it one new symbol, repeat. GPT-2 does that inside words only, where a
# word carries the space before it. Each round adds one token to the vocabulary.


# %%
def merge_pair(symbols, pair):
    out = []
    for symbol in symbols:
        joined = bool(out) and (out[-1], symbol) == pair
        out[-1:] = [out[-1] + symbol] if joined else [*out[-1:], symbol]
    return tuple(out)


spell = pre_tokenizers.ByteLevel(add_prefix_space=False)  # GPT-2's words; it prints the byte of a space as Ġ
words = Counter(word for line in training_text for word, _ in spell.pre_tokenize_str(line))
spelt, merges = {word: tuple(word) for word in words}, []
for _ in range(10):
    pairs = Counter()
    for word, count in words.items():
        for pair in zip(spelt[word], spelt[word][1:]):
            pairs[pair] += count
    merges.append(pairs.most_common(1)[0][0])
    spelt = {word: merge_pair(symbols, merges[-1]) for word, symbols in spelt.items()}
print("merges:", *("+".join(pair) for pair in merges))
for word in ("Ġthe", "Ġstatement", "Ġreturning"):
    print(f"{word:12}", *spelt[word])
assert merge_pair(tuple("banana"), ("a", "n")) == ("b", "an", "an", "a")
assert all("".join(symbols) == word for word, symbols in spelt.items())

# %% [markdown]
# The `tokenizers` library does the same, faster. We let it make 511 tokens: 256 bytes and 255 merges; and add one that
# ends a text, `<|endoftext|>`. The published GPT-2 has 256 bytes, 50,000 merges and the same end: 50,257. Few tokens
# are right for a small text: each has to be met often enough to be learnt.

# %%
END = "<|endoftext|>"
tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer, tokenizer.decoder = spell, decoders.ByteLevel()
trainer = trainers.BpeTrainer(vocab_size=511, initial_alphabet=spell.alphabet(), show_progress=False)
tokenizer.train_from_iterator(training_text, trainer)
tokenizer.add_special_tokens([END])
V, end = tokenizer.get_vocab_size(), tokenizer.token_to_id(END)
theirs = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
print("its first merges:", *("+".join(pair) for pair in theirs[:10]))
assert theirs[:10] == merges
assert (V, end) == (512, 511)
assert 256 + 50_000 + 1 == 50_257

# %% [markdown]
# Any text goes in and comes back, also what never occurred.
#
# **Trap: a prompt that ends in a space.** The space belongs to the word after it. "The " ends in a token of a lone
# space, after which the model has hardly ever seen a word begin. Leave the space off.

# %%
for text in ("The class of an object", "The class of an object ", "ǂ naïve 😀"):
    ids = tokenizer.encode(text).ids
    print(f"{len(text):2} characters, {len(ids):2} tokens:", *tokenizer.encode(text).tokens)
    assert tokenizer.decode(ids) == text

# %% [markdown]
# ## 2. What is to be learnt
#
# All paragraphs become one long row of ids, with the end token between them. The model reads a **window** of it. Its
# target at each place is the next token: the same row, one further left. One window of 64 tokens is thus 64 exercises,
# with contexts of 1 to 64 tokens.

# %%
LENGTH = 64  # tokens the model can see; 1024 in the published model


def to_row(texts):
    return torch.tensor([i for text in texts for i in [*tokenizer.encode(text).ids, end]])


training, held_out = to_row(training_text), to_row(held_out_text)
windows = held_out[: len(held_out) // (LENGTH + 1) * (LENGTH + 1)].view(-1, LENGTH + 1)
characters = len(tokenizer.decode(windows.flatten().tolist())) / windows.numel()  # per token
window = training[: LENGTH + 1]
inputs, targets = window[:-1], window[1:]
for t in range(5):
    print(f"{tokenizer.decode(inputs[: t + 1].tolist())!r:16} -> {tokenizer.decode([int(targets[t])])!r}")
print(f"{len(training):,} tokens to learn from, {len(held_out):,} held out, {characters:.2f} characters a token")
assert torch.equal(inputs[1:], targets[:-1])

# %% [markdown]
# A model turns ids `(b, t)` into **logits** `(b, t, v)`: a number for every possible next token. Softmax makes them
# probabilities. The loss is the mean of -ln(probability of the token that came), in nats. A model that knows nothing
# gives every token the same probability, `1/V`, and pays **ln V**. That is the number to compare the first loss of
# any training with.


# %%
def loss_of(model, windows):
    logits = model(windows[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


nothing = loss_of(lambda ids: torch.zeros(*ids.shape, V), windows).item()
print(f"knowing nothing costs {nothing:.4f} nats a token; ln {V} = {math.log(V):.4f}")
assert abs(nothing - math.log(V)) < 1e-4

# %% [markdown]
# ## 3. The baseline: a table of pairs
#
# The smallest model that learns looks at one token only. It is a table with a row of logits for each token: V x V
# numbers, trained by gradient descent like everything after it. The best such table is also known without training:
# count the pairs. Training should come near it.


# %%
def draw_windows(count, length, generator):
    start = torch.randint(len(training) - length, (count,), generator=generator)
    return training[start[:, None] + torch.arange(length + 1)]


table = nn.Embedding(V, V)
nn.init.zeros_(table.weight)
optimiser, generator = torch.optim.Adam(table.parameters(), lr=0.1), torch.Generator().manual_seed(0)
for step in range(150):
    loss = loss_of(table, draw_windows(64, LENGTH, generator))
    if step == 0:
        print(f"first loss {loss:.3f}")
        assert abs(loss.item() - math.log(V)) < 1e-4
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
pairs = torch.bincount(training[:-1] * V + training[1:], minlength=V * V).view(V, V)
counted = (pairs / pairs.sum(dim=1, keepdim=True).clamp(min=1)).clamp(min=1e-9).log()
with torch.no_grad():
    seen = training[: len(training) // (LENGTH + 1) * (LENGTH + 1)].view(-1, LENGTH + 1)
    best, learnt = (loss_of(model, seen).item() for model in (lambda ids: counted[ids], table))
    bigram = loss_of(table, windows).item()
print(f"training text: counted {best:.3f}, learnt {learnt:.3f}; held-out text: learnt {bigram:.3f}")
assert learnt < best + 0.2
assert bigram < nothing - 1

# %% [markdown]
# ## 4. Tokens and their places
#
# A longer context cannot be a table: for two tokens it would need V x V rows. Instead, each token becomes a vector of
# width `d`, and the model computes with vectors. The embedding is a matrix `(v, d)`; looking up a row of it is the
# same as multiplying a one-hot vector with it.
#
# Nothing said so far tells the model *where* a token stands. GPT-2 adds a second vector, one for each place, that is
# **learned like any other weight**. The Transformer of 2017 used fixed sines and reports learned positions to be as
# good (section 3.5). The price of learning them: place 1024 has no vector, so the model cannot read further.

# %%
token, position = nn.Embedding(V, 48), nn.Embedding(LENGTH, 48)
x = token(windows[:2, :-1]) + position(torch.arange(LENGTH))  # (b, t, d) + (t, d)
onehot = F.one_hot(windows[:2, :-1], V).float()
print("ids", tuple(windows[:2, :-1].shape), "-> vectors", tuple(x.shape))
assert torch.allclose(onehot @ token.weight, token(windows[:2, :-1]))

# %% [markdown]
# ## 5. Attention, one head
#
# So far every token is on its own. **Attention** lets it fetch from others. Each token asks a question, a *query* `q`;
# each offers a label, a *key* `k`, and some content, a *value* `v`. All three are linear functions of its vector. The
# score of a pair is `q` times `k`; a softmax over all keys turns a token's scores into weights that sum to 1; it
# receives the mean of the values by these weights:
#
# $$\mathrm{softmax}(q k^\top / \sqrt{e})\, v$$


# %%
def weigh(q, k):
    scores = einsum(q, k, "... t e, ... s e -> ... t s") / q.shape[-1] ** 0.5
    return scores.softmax(dim=-1)


def attend(q, k, v):
    return einsum(weigh(q, k), v, "... t s, ... s e -> ... t e")


to_q, to_k, to_v = (nn.Linear(48, 16) for _ in range(3))
q, k, v = to_q(x), to_k(x), to_v(x)
print("weights", tuple(weigh(q, k).shape), "output", tuple(attend(q, k, v).shape))
assert torch.allclose(weigh(q, k).sum(dim=-1), torch.ones(2, LENGTH), atol=1e-5)
assert torch.allclose(attend(q, k, v), F.scaled_dot_product_attention(q, k, v), atol=1e-6)

# %% [markdown]
# **Why divide by the root of e?** A product of two vectors is a sum of `e` terms. If each has variance 1, the sum has
# variance `e`: the wider the head, the larger the scores. Large scores make the softmax choose one key outright, and
# where it has chosen hardly any gradient comes back. The division keeps the variance at 1 for every width.

# %%
print("   e   variance of q k   divided   largest of 64 weights, not divided and divided")
for e in (4, 16, 64, 256):
    left, right = torch.randn(2048, e), torch.randn(64, e)
    scores = left @ right.T
    raw, scaled = (s.softmax(dim=-1).amax(dim=-1).mean().item() for s in (scores, scores / e**0.5))
    print(f"{e:4} {scores.var():14.1f} {(scores / e**0.5).var():12.2f} {raw:18.2f} {scaled:.2f}")
    assert 0.7 < scores.var() / e < 1.4
    assert e < 64 or raw > 3 * scaled

# %% [markdown]
# **Attention does not know the order.** It is a mean, and a mean does not change when its terms are shuffled. Without
# positions, the last token of "dog bites man" and "bites dog man" gets the same. With them, it does not.


# %%
def one_head(x):
    return attend(to_q(x), to_k(x), to_v(x))


shuffle = torch.cat([torch.randperm(LENGTH - 1), torch.tensor([LENGTH - 1])])  # the last token stays the last
words_only = token(windows[:1, :-1])
for name, place in {"without positions": 0, "with positions": position(torch.arange(LENGTH))}.items():
    change = (one_head(words_only + place)[:, -1] - one_head(words_only[:, shuffle] + place)[:, -1]).abs().max()
    print(f"{name:18} shuffling the tokens before changes the last output by {change:.1e}")
    assert (change < 1e-5) == (name == "without positions")

# %% [markdown]
# ## 6. No looking ahead
#
# The target at place `t` is token `t + 1`, which stands in the same window. A model that can see it needs to learn
# nothing but to copy. So every score of a query with a later key becomes minus infinity before the softmax: a weight
# of exactly 0. The mask is boolean, True = may attend, and it is **no parameter**: it follows from the length, is not
# trained and need not be stored. (Old GPT-2 files store it all the same, as `attn.bias`. It is not a bias.)


# %%
def weigh(q, k, keep=None):
    scores = einsum(q, k, "... t e, ... s e -> ... t s") / q.shape[-1] ** 0.5
    if keep is not None:
        scores = scores.masked_fill(~keep, -torch.inf)
    return scores.softmax(dim=-1)


def attend(q, k, v, keep=None):
    return einsum(weigh(q, k, keep), v, "... t s, ... s e -> ... t e")


def causal(t):
    return torch.ones(t, t, dtype=torch.bool).tril()


keep = causal(LENGTH)
print(causal(5).int())
assert weigh(q, k, keep)[:, ~keep].eq(0).all()
assert torch.allclose(weigh(q, k, keep).sum(dim=-1), torch.ones(2, LENGTH), atol=1e-5)
assert torch.allclose(attend(q, k, v, keep), F.scaled_dot_product_attention(q, k, v, is_causal=True), atol=1e-6)

# %% [markdown]
# A look at the weights. Each row is a query and sums to 1; with the mask, nothing stands right of the diagonal. The
# weights mean nothing yet, for nothing has been trained. We come back to them.

# %%
figure, axes = plt.subplots(1, 2, figsize=(8, 4), layout="constrained")
for axis, (name, mask) in zip(axes, {"without a mask": None, "causal": causal(12)}.items()):
    axis.imshow(weigh(q[0, :12], k[0, :12], mask).detach().numpy(), vmin=0, vmax=0.5)
    axis.set(title=name, xlabel="key s", ylabel="query t")
figure.suptitle("attention weights of an untrained head, 12 tokens")
plt.show()
plt.close(figure)

# %% [markdown]
# **Causality is shown by changing a token.** Do not trust the mask, test what it is for: change token 5 and compare.
# Outputs before it must be the same *to the last bit*; outputs from it on must change. This test works for any model,
# whatever is inside, and it catches every leak: through the mask, the positions, a norm, a wrong `reshape`.


# %%
def changed_by(function, x, place):
    other = x.clone()
    other[:, place] += 1
    return (function(other) != function(x)).any(dim=-1).any(dim=0)  # for each place t, whether its output moved


with torch.no_grad():
    masked = changed_by(lambda x: attend(to_q(x), to_k(x), to_v(x), causal(12)), x[:, :12], 5)
    unmasked = changed_by(one_head, x[:, :12], 5)
print("changed with the mask:   ", masked.int().tolist())
print("changed without the mask:", unmasked.int().tolist())
assert masked.tolist() == [t >= 5 for t in range(12)]
assert unmasked.all()

# %% [markdown]
# ## 7. Many heads
#
# One softmax gives one set of weights: a token can ask one question. So the width `d` is cut into `h` heads of width
# `e`, each attends for itself, and the results are laid side by side again. A last linear layer, `out`, mixes them.
# This costs no more than one wide head.
#
# **Trap: the order of the cut.** Feature `j` of `d` belongs to head `j // e`: heads outer, width inner, `(h e)`. The
# other order, `(e h)`, deals features out like cards. Its shapes are right, nothing fails, and a model trained that
# way learns just as well. Only *published* weights notice: they were trained with `(h e)`. An earlier GPT-2 of ours
# had this fault. It loaded the weights without complaint and never wrote one good sentence. Section 13 plants it
# again.


# %%
def split(x, heads):
    return rearrange(x, "b t (h e) -> b h t e", h=heads)


def merge(x):
    return rearrange(x, "b h t e -> b t (h e)")


numbers = rearrange(torch.arange(6), "d -> 1 1 d")
print("(h e):", split(numbers, 2)[0, :, 0].tolist())
print("(e h):", rearrange(numbers, "b t (e h) -> b h t e", h=2)[0, :, 0].tolist())
assert split(numbers, 2)[0, :, 0].tolist() == [[0, 1, 2], [3, 4, 5]]
assert torch.equal(merge(split(x, 4)), x)


# %%
class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x, keep):
        q, k, v = (split(linear(x), self.heads) for linear in (self.q, self.k, self.v))
        return self.out(merge(attend(q, k, v, keep)))


def dealt(x, heads):
    return rearrange(x, "b t (e h) -> b h t e", h=heads)


attention = Attention(48, 4)
wrong = attention.out(rearrange(attend(*(dealt(f(x), 4) for f in (attention.q, attention.k, attention.v)), keep),
                                "b h t e -> b t (e h)"))  # fmt: skip
right = attention(x, keep)
print("shapes:", tuple(right.shape), tuple(wrong.shape), f"  largest difference {(right - wrong).abs().max():.3f}")
assert right.shape == wrong.shape
assert not torch.allclose(right, wrong, atol=1e-2)

# %% [markdown]
# Against PyTorch's own module with the same weights. **Its boolean mask is the other way round**: True = may *not*
# attend.

# %%
reference = nn.MultiheadAttention(48, 4, batch_first=True)
with torch.no_grad():
    for parameter in attention.parameters():
        parameter.normal_(std=0.2)  # biases too: they start at 0, so a forgotten one would not show
    reference.in_proj_weight.copy_(torch.cat([f.weight for f in (attention.q, attention.k, attention.v)]))
    reference.in_proj_bias.copy_(torch.cat([f.bias for f in (attention.q, attention.k, attention.v)]))
    reference.out_proj.load_state_dict(attention.out.state_dict())
expected = reference(x, x, x, attn_mask=~keep, need_weights=False)[0]
print(f"largest difference to torch {(attention(x, keep) - expected).abs().max():.1e}")
assert torch.allclose(attention(x, keep), expected, atol=1e-4)

# %% [markdown]
# ## 8. The MLP and its GELU
#
# Attention moves things between tokens. The MLP works on each token alone: four times wider, a bend, and back. The
# bend is the GELU, `x` times the probability that a standard normal is below `x`. That needs the error function, which
# was slow in 2019, so GPT-2 computes an approximation with tanh. The two differ little, but they differ, and weights
# want the one they were trained with: GPT-2 tanh, BERT and ViT the exact one.


# %%
def gelu_tanh(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def gelu_erf(x):
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


line = torch.linspace(-5, 5, 1001, dtype=torch.float64)
difference = gelu_tanh(line) - gelu_erf(line)
print(f"largest difference {difference.abs().max():.1e}")
assert torch.allclose(gelu_tanh(line), F.gelu(line, approximate="tanh"), atol=1e-12)
assert torch.allclose(gelu_erf(line), F.gelu(line), atol=1e-12)
assert 1e-4 < difference.abs().max() < 1e-3
figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
axes[0].plot(line, gelu_tanh(line), label="GELU")
axes[0].plot(line, line.clamp(min=0), "--", label="ReLU")
axes[0].legend()
axes[1].plot(line, difference)
axes[1].set(title="tanh minus erf")
plt.show()
plt.close(figure)


# %%
class MLP(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x):
        return self.down(F.gelu(self.up(x), approximate="tanh"))  # the same as ours, in one pass over memory


mlp = MLP(48)
print("changed by token 5:", changed_by(mlp, x, 5).nonzero().flatten().tolist())
assert torch.allclose(mlp(x), mlp.down(gelu_tanh(mlp.up(x))), atol=1e-6)
assert changed_by(mlp, x, 5).nonzero().flatten().tolist() == [5]

# %% [markdown]
# ## 9. Residual and norm
#
# Many layers in a row are hard to train, so each *adds* to what there is: `x + f(x)`. And it reads through a **layer
# norm**, which gives each token's vector mean 0 and variance 1, then scales and shifts it by learned numbers.
#
# **Trap: two details of the norm.** The variance divides by `d`, not `d - 1` (`torch.std` does the latter), and a small
# `eps` stands inside the root: 1e-5 in GPT-2, 1e-12 in BERT, 1e-6 in some ViTs. With the wrong one weights load and
# the numbers are a little off.


# %%
def layer_norm(x, weight, bias, eps=1e-5):
    centred = x - x.mean(dim=-1, keepdim=True)
    return centred / (centred.square().mean(dim=-1, keepdim=True) + eps).sqrt() * weight + bias


norm = nn.LayerNorm(48)
nn.init.normal_(norm.weight)
nn.init.normal_(norm.bias)
biased = (x - x.mean(dim=-1, keepdim=True)) / (x.std(dim=-1, keepdim=True) + 1e-5) * norm.weight + norm.bias
print(f"off by {(layer_norm(x, norm.weight, norm.bias) - norm(x)).abs().max():.1e}; with torch.std, and eps outside "
      f"the root, by {(biased - norm(x)).abs().max():.1e}")  # fmt: skip
assert torch.allclose(layer_norm(x, norm.weight, norm.bias), norm(x), atol=1e-5)
assert not torch.allclose(biased, norm(x), atol=1e-3)

# %% [markdown]
# **Where does the norm stand?** The picture in the paper of 2017 has it *after* the addition: `norm(x + f(x))`, the
# post-norm. GPT-2 has it *before* the function: `x + f(norm(x))`, the pre-norm, as most code today. That is why code
# and that picture do not agree; both are in use, BERT is post-norm. In a pre-norm stack `x` runs from the first block
# to the last without being rescaled, and so does the gradient on its way back: a block whose functions give 0 lets
# both pass unchanged.


# %%
class Block(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.attention_norm, self.attention = nn.LayerNorm(dim), Attention(dim, heads)
        self.mlp_norm, self.mlp = nn.LayerNorm(dim), MLP(dim)

    def forward(self, x, keep):
        x = x + self.attention(self.attention_norm(x), keep)
        return x + self.mlp(self.mlp_norm(x))


class PostNormBlock(Block):
    def forward(self, x, keep):
        x = self.attention_norm(x + self.attention(x, keep))
        return self.mlp_norm(x + self.mlp(x))


for kind in (Block, PostNormBlock):
    block = kind(48, 4)
    for linear in (block.attention.out, block.mlp.down):
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    print(f"{kind.__name__:14} with functions that give 0: x comes out unchanged: {torch.equal(block(x, keep), x)}")
    assert torch.equal(block(x, keep), x) == (kind is Block)

# %% [markdown]
# ## 10. The model
#
# Embeddings, blocks, one last norm (in a pre-norm stack nobody else would scale the sum), and the **head** that turns
# vectors into logits. The head has no weights of its own: the logit of a token is the product of the vector with that
# token's *embedding*. The head is **tied** (Press and Wolf 2017). That saves a matrix `(v, d)`, nearly a third of the
# small GPT-2, and each token's vector learns from where it is read and from where it is written. So if you look for
# `lm_head` in the published file: it is not missing, it is `wte`.
#
# **Initialisation**: normal numbers of 0.02. Each block adds twice to `x`, `2 depth` terms in all, so the layers that
# add begin smaller by the root of that (section 2.3 of the GPT-2 paper). Then the first logits are small, the first
# probabilities nearly equal, and **the first loss is ln V**. PyTorch's own default for embeddings, normal numbers of 1,
# is fine for a lookup. Tied to a head, it makes a model that begins sure of nonsense.
#
# GPT-2 was also trained with dropout of 0.1, against learning by heart. A minute is too short for that; we leave it
# out.


# %%
class GPT2(nn.Module):
    def __init__(self, vocab, length, dim, depth, heads, block=Block):
        super().__init__()
        self.length, self.heads = length, heads
        self.token, self.position = nn.Embedding(vocab, dim), nn.Embedding(length, dim)
        self.blocks = nn.ModuleList(block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def forward(self, ids, keep=None):
        t = ids.shape[1]
        keep = causal(t) if keep is None else keep  # an argument, so that we can plant a wrong one
        x = self.token(ids) + self.position(torch.arange(t))
        for block in self.blocks:
            x = block(x, keep)
        return self.logits(x)

    def logits(self, x):
        return einsum(self.norm(x), self.token.weight, "b t d, v d -> b t v")


@torch.no_grad()
def initialise(model):
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            adds = name.endswith(("attention.out.weight", "mlp.down.weight"))
            parameter.normal_(std=0.02 / (2 * len(model.blocks)) ** 0.5 if adds else 0.02)
        elif name.endswith("bias"):
            parameter.zero_()
    return model


torch.manual_seed(0)
default = GPT2(V, LENGTH, dim=160, depth=2, heads=5)
model = initialise(copy.deepcopy(default))
with torch.no_grad():
    first, bad = loss_of(model, windows).item(), loss_of(default, windows).item()
print(f"first loss {first:.3f}; knowing nothing {nothing:.3f}; with PyTorch's own initialisation {bad:.1f}")
assert abs(first - nothing) < 0.1
assert bad > 2 * nothing

# %% [markdown]
# **How many parameters has GPT-2?** The published size, made on the `meta` device, which knows shapes and holds no
# numbers. The mask is not among them.

# %%
with torch.device("meta"):
    published_size = GPT2(50_257, 1024, dim=768, depth=12, heads=12)
parts = Counter()
for name, parameter in published_size.named_parameters():
    parts[name.split(".")[0]] += parameter.numel()
for name, count in parts.items():
    print(f"{name:9}{count:>12,}")
print(f"together {parts.total():>12,}; untied it would be {parts.total() + 50_257 * 768:,}")
assert parts.total() == 124_439_808

# %% [markdown]
# The whole model is causal, place by place: row `t`, column `s` of this picture says whether the logits at `t` moved
# when token `s` was changed. And every parameter gets a gradient; one that gets none is not connected.


# %%
@torch.no_grad()
def influence(model, ids):
    columns = []
    for s in range(ids.shape[1]):
        other = ids.clone()
        other[:, s] = (other[:, s] + 1) % V
        columns.append((model(other) != model(ids)).any(dim=-1).any(dim=0))
    return torch.stack(columns, dim=1)


heard = influence(model, windows[:1, :12])
loss_of(model, windows[:4]).backward()
print(heard.int())
assert torch.equal(heard, causal(12))
assert all(parameter.grad.abs().sum() > 0 for name, parameter in model.named_parameters())

# %% [markdown]
# ## 11. Training
#
# Draw windows, compute the loss, step. What belongs to the craft: AdamW, with weight decay on matrices only; a
# **warm-up**, because Adam knows nothing about the sizes of gradients in its first steps; a cosine down to almost 0;
# and the gradient's norm cut at 1.


# %%
def train(model, steps, batch, lr, length=LENGTH, warmup=40, keep=None, every=0, limit=100):
    """For `steps` steps, or, where the machine is slow, until about `limit` seconds are over."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    others = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimiser, generator = torch.optim.AdamW(groups, betas=(0.9, 0.95)), torch.Generator().manual_seed(0)
    losses, valid, began, done = [], {}, time.perf_counter(), 0.0
    while done < 1:
        for group in optimiser.param_groups:
            group["lr"] = lr * min((len(losses) + 1) / warmup, 0.02 + 0.49 * (1 + math.cos(math.pi * done)))
        loss = loss_of(lambda ids: model(ids, keep), draw_windows(batch, length, generator))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
        done = max(len(losses) / steps, (time.perf_counter() - began) / limit)
        if every and (len(losses) % every == 0 or done >= 1):
            with torch.no_grad():
                valid[len(losses)] = loss_of(model, windows).item()
            print(f"step {len(losses):4}  loss {losses[-1]:.3f}  held out {valid[len(losses)]:.3f}  "
                  f"{time.perf_counter() - began:4.0f} s", flush=True)  # fmt: skip
    return losses, valid


one = initialise(GPT2(V, LENGTH, dim=64, depth=1, heads=2))
losses, _ = train(one, steps=3, batch=4, lr=1e-3)
print("three steps:", *(f"{loss:.3f}" for loss in losses))
assert len(losses) == 3

# %% [markdown]
# **An experiment first: a model that can look ahead.** The same small model, once with the mask, once with a mask of
# all True. The loss of the second falls far below what the text allows. Then use it as it will be used, when the
# future is not there: it is worse than knowing nothing. A loss that is too good is a leak until you have shown that
# it is not.

# %%
short = held_out[: len(held_out) // 17 * 17].view(-1, 17)
experiment = {}
for name, mask in {"causal": causal(16), "sees all": torch.ones(16, 16, dtype=torch.bool)}.items():
    torch.manual_seed(0)
    little = initialise(GPT2(V, 16, dim=64, depth=1, heads=4))
    losses, _ = train(little, steps=150, batch=64, lr=2e-2, length=16, warmup=20, keep=mask)
    with torch.no_grad():
        experiment[name] = sum(losses[-10:]) / 10, loss_of(little, short).item()
    print(f"{name:9} training loss {experiment[name][0]:.2f}, used without a future {experiment[name][1]:.2f}")
assert experiment["sees all"][0] < 0.75 * experiment["causal"][0]
assert experiment["sees all"][1] > experiment["causal"][1] + 0.5

# %% [markdown]
# **Now the real one.** Two blocks, 160 wide: shallow and wide learns fastest in a minute. First it finds out how
# common each token is, then which follows which, and it passes the table of
# pairs; then come words and phrases. Now and then you see the loss on text it never trained on.

# %%
seconds = {}
for count in {1, threads}:  # where other programs keep the cores busy, one thread may be faster than two that wait
    torch.set_num_threads(count)
    began = time.perf_counter()
    for _ in range(2):
        loss_of(model, windows[:20]).backward()
    seconds[count] = time.perf_counter() - began
torch.set_num_threads(min(seconds, key=seconds.__getitem__))
losses, valid = train(model, steps=640, batch=20, lr=5e-3, warmup=100, every=80)
torch.set_num_threads(1)
final = valid[len(losses)]
print(f"nats a token: knowing nothing {nothing:.2f}, pairs {bigram:.2f}, GPT-2 {final:.2f}; "
      f"that is {final / characters:.2f} a character")  # fmt: skip
assert final < nothing - 0.5
assert torch.equal(influence(model, windows[:1, :12]), causal(12))

# %%
figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
axis.plot(range(1, len(losses) + 1), losses, alpha=0.5, label="training, one batch")
axis.plot(list(valid), list(valid.values()), "o-", label="held out")
axis.axhline(nothing, ls="--", color="grey", label="knowing nothing, ln V")
axis.axhline(bigram, ls=":", color="black", label="table of pairs")
axis.set(xlabel="step", ylabel="nats a token", ylim=(0, None))
axis.legend()
plt.show()
plt.close(figure)

# %% [markdown]
# ## 12. Writing
#
# The model gives probabilities; how to choose is your business. **Greedy** takes the most probable token. **Sampling**
# draws one. A **temperature** divides the logits first: below 1 the probable get more so, at 0 it is greedy. **Top-k**
# allows only the k most probable, so that none of the many improbable ones is ever drawn.


# %%
def choose(logits, temperature=1.0, top_k=None, generator=None):
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    logits = logits / temperature
    if top_k is not None:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
    return torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)


prompt = torch.tensor([tokenizer.encode("The value of the").ids])
with torch.no_grad():
    logits = model(prompt)[:, -1]
top = logits[0].topk(12).indices
figure, axes = plt.subplots(1, 3, figsize=(10, 3), sharey=True, layout="constrained")
for axis, temperature in zip(axes, (0.5, 1.0, 2.0)):
    axis.bar([repr(tokenizer.decode([i])) for i in top.tolist()], (logits[0] / temperature).softmax(dim=-1)[top])
    axis.tick_params(axis="x", rotation=90)
    axis.set_title(f"temperature {temperature}")
figure.suptitle('what follows "The value of the"')
plt.show()
plt.close(figure)
assert choose(logits, temperature=0).item() == top[0]
assert choose(logits, top_k=1).item() == top[0]

# %% [markdown]
# The loop: score, choose, append, again. When the text is longer than the context, the last `length` tokens are taken.


# %%
@torch.no_grad()
def write(model, ids, new, stop=None, **how):
    for _ in range(new):
        chosen = choose(model(ids[:, -model.length :])[:, -1], **how)
        ids = torch.cat([ids, chosen], dim=1)
        if chosen.item() == stop:
            break
    return ids


def complete(text, **how):
    ids = torch.tensor([tokenizer.encode(text).ids])
    return tokenizer.decode(write(model, ids, stop=end, **how)[0].tolist())


for text in ("The value of the", "A class is", "If the argument is"):
    print(complete(text, new=80, temperature=0.6, top_k=40, generator=torch.Generator().manual_seed(1)), "\n")
assert complete("A class is", new=20, temperature=0) == complete("A class is", new=20, top_k=1)

# %% [markdown]
# **Why not always take the most probable?** Greedy text falls into loops: after a phrase the same phrase is likely, and
# after two of them more so. The big models do it as well.

# %%
for name, how in {"greedy": {"temperature": 0}, "sampled": {"generator": torch.Generator().manual_seed(0)}}.items():
    ids = write(model, prompt, 150, **how)[0].tolist()
    fours = list(zip(ids, ids[1:], ids[2:], ids[3:]))
    print(f"{name}: {1 - len(set(fours)) / len(fours):.0%} of the runs of four tokens stood there before")
    print(tokenizer.decode(ids, skip_special_tokens=False), "\n")

# %% [markdown]
# **What do the heads look at?** The weights of the trained model, for a held-out sentence. Look for heads that look at
# the token before, at the first token, or at an earlier copy of the same word.

# %%
ids = windows[1:2, :24]
kept = []
with torch.no_grad():
    x = model.token(ids) + model.position(torch.arange(24))
    for block in model.blocks:
        y = block.attention_norm(x)
        kept.append(weigh(split(block.attention.q(y), 5), split(block.attention.k(y), 5), causal(24))[0])
        x = block(x, causal(24))
names = [tokenizer.decode([i]) for i in ids[0].tolist()]
figure, axes = plt.subplots(2, 3, figsize=(12, 8.5), layout="constrained")
for i, axis in enumerate(axes.flat):
    axis.imshow(kept[i // 3][i % 3], vmin=0, vmax=1)
    axis.set_title(f"block {i // 3}, head {i % 3}")
    axis.set_xticks(range(24), names, rotation=90, fontsize=7)
    axis.set_yticks(range(24), names, fontsize=7)
plt.show()
plt.close(figure)
assert torch.allclose(model.logits(x), model(ids))

# %% [markdown]
# ## 13. The key/value cache
#
# The loop above computes everything anew for each token, although the past cannot change: nothing before looks at what
# comes after. All that later tokens need of earlier ones is their keys and values, so keep those. Then a new token
# costs one token's work. Below, the walk through the model is written out with a cache, `{block: (k, v)}`.
#
# **Trap: the mask.** With a cache, `t` new queries meet `s` old and new keys. The query at place `p` may see keys 0 to
# `p`. The lower triangle of `(t, s)`, which `is_causal=True` of PyTorch takes, counts from the top left: the first new
# token would see the first key only.
#
# **Trap: the edge.** Positions are learned, so when the window moves on, each token stands at another place and all
# that was kept is wrong. A cache is good for `length` tokens; then begin a new one.


# %%
@torch.no_grad()
def step(model, ids, cache, top_left=False):
    start = cache[0][0].shape[2] if cache else 0
    place = torch.arange(start, start + ids.shape[1])
    keep = (place - start * top_left)[:, None] >= torch.arange(start + ids.shape[1])
    x = model.token(ids) + model.position(place)
    for i, block in enumerate(model.blocks):
        y = block.attention_norm(x)
        q, k, v = (split(f(y), model.heads) for f in (block.attention.q, block.attention.k, block.attention.v))
        if i in cache:
            k, v = torch.cat([cache[i][0], k], dim=2), torch.cat([cache[i][1], v], dim=2)
        cache[i] = k, v
        x = x + block.attention.out(merge(attend(q, k, v, keep)))
        x = x + block.mlp(block.mlp_norm(x))
    return model.logits(x)


exact = copy.deepcopy(model).double()  # in float64 rounding is far below any difference that matters
row = windows[:1, :-1]
with torch.no_grad():
    expected = exact(row)
off, off_top_left = [], []
for cut in range(1, LENGTH):
    for wrong, kept in ((False, off), (True, off_top_left)):
        cache = {}
        parts = [step(exact, row[:, :cut], cache, wrong), step(exact, row[:, cut:], cache, wrong)]
        kept.append((torch.cat(parts, dim=1) - expected).abs().max().item())
print(f"the row in two parts, cut anywhere: off by {max(off):.0e}; with is_causal's mask by {min(off_top_left):.1f}")
assert max(off) < 1e-10
assert min(off_top_left) > 1e-3


# %%
def write_cached(model, ids, new, stop=None, **how):
    cache, fresh = {}, ids
    for _ in range(new):
        chosen = choose(step(model, fresh, cache)[:, -1], **how)
        ids, fresh = torch.cat([ids, chosen], dim=1), chosen
        if chosen.item() == stop:
            break
    return ids


plain, cached = write(exact, prompt, 50, temperature=0), write_cached(exact, prompt, 50, temperature=0)
print("the same ids:", torch.equal(plain, cached), "-", len(set(plain[0].tolist())), "different tokens among them")
assert torch.equal(plain, cached)

# %% [markdown]
# What it saves grows with the length. Here on an untrained model with a longer context:

# %%
longer = initialise(GPT2(V, 256, dim=128, depth=4, heads=4))
for new in (60, 120, 240):
    seconds = []
    for function in (write, write_cached):
        began = time.perf_counter()
        function(longer, prompt, new, temperature=0)
        seconds.append(time.perf_counter() - began)
    print(f"{new:4} tokens: {seconds[0]:.2f} s anew, {seconds[1]:.2f} s with the cache")
print("keys and values of 1024 tokens in the published model:", 2 * 12 * 1024 * 768 * 4 // 2**20, "MiB in float32")

# %% [markdown]
# ## 14. Published weights
#
# This is the exam of your own code, for there is no partial credit: one wrong detail and a model that cost a fortune
# writes rubbish. The published file has its own names and three habits:
#
# - its linear layers are a "Conv1D", which stores its matrix as **(in, out)**; `nn.Linear` has (out, in);
# - queries, keys and values are **fused** into one `c_attn`, one after the other; we have three layers;
# - the head is tied, so no `lm_head` is needed, and `attn.bias` is only the causal mask.
#
# All that stands in one table. It is read in both directions, and it is strict: a tensor without a row is an error, and
# so is one of our parameters that nothing fills. The last is not fussiness: half-loaded models still write something.

# %%
TABLE = {
    "wte": ["token"],
    "wpe": ["position"],
    "h.*.ln_1": ["blocks.*.attention_norm"],
    "h.*.attn.c_attn": ["blocks.*.attention.q", "blocks.*.attention.k", "blocks.*.attention.v"],
    "h.*.attn.c_proj": ["blocks.*.attention.out"],
    "h.*.ln_2": ["blocks.*.mlp_norm"],
    "h.*.mlp.c_fc": ["blocks.*.mlp.up"],
    "h.*.mlp.c_proj": ["blocks.*.mlp.down"],
    "ln_f": ["norm"],
}
NOT_NEEDED = r"lm_head\.weight|h\.\d+\.attn\.(masked_)?bias"  # the tied head, the mask, the -10000 that went with it


def rows(depth):
    """Their tensor, ours, and whether it is stored (in, out)."""
    for theirs, ours in TABLE.items():
        for i in range(depth) if "*" in theirs else (0,):
            for part in ("weight",) if theirs in ("wte", "wpe") else ("weight", "bias"):
                names = [f"{name}.{part}".replace("*", str(i)) for name in (theirs, *ours)]
                yield names[0], names[1:], ".c_" in theirs and part == "weight"


def to_ours(published, depth):
    published = {name.removeprefix("transformer."): tensor for name, tensor in published.items()}
    state = {}
    for theirs, ours, conv1d in rows(depth):
        tensor = published.pop(theirs)
        state |= zip(ours, (tensor.T if conv1d else tensor).chunk(len(ours)), strict=True)
    if strange := [name for name in published if not re.fullmatch(NOT_NEEDED, name)]:
        raise ValueError(f"No row of the table names {', '.join(strange)}.")
    return state


def to_published(state, depth):
    published = {}
    for theirs, ours, conv1d in rows(depth):
        tensor = torch.cat([state[name] for name in ours])
        published[theirs] = (tensor.T if conv1d else tensor).contiguous()
    return published


state = model.state_dict()
there = to_published(state, 2)
back = to_ours(there, 2)
print(f"{len(state)} of our tensors are {len(there)} of theirs, such as")
for name in ("wte.weight", "h.0.attn.c_attn.weight", "h.1.mlp.c_fc.weight"):
    print(f"  {name:24}{tuple(there[name].shape)}")
assert set(back) == set(state)
assert all(torch.equal(back[name], state[name]) for name in state)

# %% [markdown]
# **Where are they?** In a folder that the environment variable `GPT2_FOLDER` names, or in the cache of the Hugging Face
# hub, if you have run
#
# ```sh
# hf download openai-community/gpt2 config.json model.safetensors vocab.json merges.txt    # 550 MB, once
# ```
#
# Nothing is downloaded here. Without the files we go on with a **stand-in**: your model, written out in exactly the
# published layout, old mask buffers included. Everything below is the same for both. Only the text at the end is as
# good as a minute of training allows.

# %%
from huggingface_hub import try_to_load_from_cache
from safetensors.torch import load_file, save_file

FILES = ("config.json", "model.safetensors", "vocab.json", "merges.txt")
scratch = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)


def stand_in(folder):
    masks = {f"h.{i}.attn.bias": causal(LENGTH).float().view(1, 1, LENGTH, LENGTH) for i in range(2)}
    save_file(to_published(model.state_dict(), 2) | masks, folder / "model.safetensors", metadata={"format": "pt"})
    sizes = {"vocab_size": V, "n_positions": LENGTH, "n_embd": 160, "n_layer": 2, "n_head": 5}
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", **sizes}), encoding="utf-8")
    tokenizer.model.save(str(folder))
    (folder / "vocab.json").write_text(json.dumps(tokenizer.get_vocab()), encoding="utf-8")  # the end token included
    return folder


def find():
    if named := os.environ.get("GPT2_FOLDER"):
        return Path(named), f"the folder {named}"
    cached = [try_to_load_from_cache("openai-community/gpt2", name) for name in FILES]
    if all(isinstance(file, str) for file in cached):
        return Path(cached[0]).parent, "the published GPT-2, from the hub's cache"
    return stand_in(Path(scratch.name)), "a stand-in, your own model in the published layout"


folder, what = find()
facts = json.loads((folder / "config.json").read_text(encoding="utf-8"))
print(f"The weights are those of {what}.")
print(*(f"{name} {facts[name]}" for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")), sep=", ")
assert all((folder / name).is_file() for name in FILES)

# %% [markdown]
# Load: make the model on the `meta` device, where it costs nothing, and assign the tensors.

# %%
torch.set_num_threads(threads)
depth, heads = facts["n_layer"], facts["n_head"]
published = load_file(folder / "model.safetensors")
with torch.device("meta"):
    ours = GPT2(facts["vocab_size"], facts["n_positions"], facts["n_embd"], depth, heads)
state = to_ours(published, depth)
ours.load_state_dict(state, assign=True)
print(f"{len(published)} tensors read, {sum(p.numel() for p in ours.parameters()):,} parameters")
assert not any(parameter.is_meta for parameter in ours.parameters())

# %% [markdown]
# **The proof.** A round trip through one's own table proves little: a mistake made on the way out is unmade on the way
# in. So ask somebody else. `scratchformers` reads the same folder by code of its own, which is tested against Hugging
# Face's transformers. In float64 the logits must agree to 1e-10.

# %%
import scratchformers as sf

reader = sf.load_tokenizer(folder)
sentence = torch.tensor([reader.encode(max(held_out_text[:20], key=len))[: min(64, ours.length)]])
with torch.no_grad():
    for dtype, bound in ((torch.float32, 1e-4), (torch.float64, 1e-10)):
        theirs, mine = sf.load(folder, dtype=dtype)(sentence), ours.to(dtype)(sentence)
        print(f"{dtype}: logits up to {theirs.abs().max():.0f}, largest difference {(theirs - mine).abs().max():.0e}")
        assert torch.allclose(theirs, mine, atol=bound, rtol=bound / 10)
ours.float()
assert what.startswith("a stand-in") == (reader.vocab == V)

# %% [markdown]
# **What would the famous mistakes have done?** Each is planted in the weights, and the sentence's loss says what it
# costs. None of them fails to load, for every shape is right. In a small model, or a short sentence, some cost so
# little that you would not notice by reading; the deeper the model, the more they add up. So compare numbers with a
# reference that is not your own code.


# %%
def planted(change):
    with torch.device("meta"):
        wrong = GPT2(facts["vocab_size"], facts["n_positions"], facts["n_embd"], depth, heads)
    wrong.load_state_dict({name: change(name, tensor) for name, tensor in state.items()}, assign=True)
    return wrong


def heads_dealt(name, tensor):
    """What a model with (e h) heads makes of these weights."""
    if re.search(r"attention\.[qkv]\.", name):
        return rearrange(tensor, "(e h) ... -> (h e) ...", h=heads)
    return rearrange(tensor, "d (e h) -> d (h e)", h=heads) if name.endswith("out.weight") else tensor


mistakes = {
    "as published": lambda name, tensor: tensor,
    "heads (e h)": heads_dealt,
    "attn.c_proj not transposed": lambda name, tensor: tensor.T if name.endswith("out.weight") else tensor,
    "k and v exchanged": lambda name, tensor: state[
        re.sub(r"\.([kv])\.", lambda m: ".v." if m[1] == "k" else ".k.", name)
    ],
    "attention biases lost": lambda name, tensor: (
        torch.zeros_like(tensor) if re.search(r"attention\.\w+\.bias", name) else tensor
    ),
    "positions off by one": lambda name, tensor: tensor.roll(1, 0) if name == "position.weight" else tensor,
    "last norm's scale and shift lost": lambda name, tensor: (
        torch.full_like(tensor, name == "norm.weight") if name.startswith("norm.") else tensor
    ),
}
moved = {}
with torch.no_grad():
    for name, change in mistakes.items():
        wrong = planted(change)
        moved[name] = (wrong(sentence) - ours(sentence)).abs().max().item()
        print(f"{name:32} {loss_of(wrong, sentence):6.2f} nats a token; logits off by up to {moved[name]:.0e}")
print(f"{'knowing nothing':32} {math.log(facts['vocab_size']):6.2f}")
assert moved["as published"] < 1e-2
assert moved["heads (e h)"] > 1e-4
assert moved["attn.c_proj not transposed"] > 1e-4

# %% [markdown]
# And the text. With the published weights it is good English; with the stand-in it is yours.

# %%
generator = torch.Generator().manual_seed(0)
for text in ("The best thing about a language is", "A class is", "If the argument is"):
    ids = torch.tensor([reader.encode(text)])
    new = min(50, ours.length - ids.shape[1])
    out = write_cached(ours, ids, new, stop=reader.end, temperature=0.6, top_k=40, generator=generator)
    print(reader.decode(out[0].tolist()), "\n")
print(f"The lesson took {time.perf_counter() - started:.0f} s.")

# %% [markdown]
# ## 15. Exercises
#
# Each says how you can check your answer yourself. Change a copy of the cell and run what follows it.
#
# 1. **No scale.** Remove the division in `weigh`. *Hint:* the heads here are 32 wide. *Check:* the assertion
#    against `F.scaled_dot_product_attention` fails; train again and compare the held-out loss and the pictures of
#    section 12.
# 2. **Untie the head.** Give `GPT2` a `self.head = nn.Linear(dim, vocab, bias=False)`. *Hint:* `initialise` must
#    see it. *Check:* the published size has 163,037,184 parameters, the first loss is still ln V, and `to_ours`
#    plus `load_state_dict` now complains. About which name, and what would you fill it with?
# 3. **Post-norm.** Train `GPT2(..., block=PostNormBlock)`. *Hint:* does it still need the last norm? Try depth 2
#    and 8, with `warmup=1` and `warmup=200`. *Check:* `influence` is still the lower triangle; compare the curves.
# 4. **Top-p.** Let `choose` keep the smallest set of tokens that together have probability `p` (Holtzman et al.
#    2020). *Hint:* sort, `cumsum`, and keep a token if the sum *before* it is below `p`. *Check:* with `p=1`
#    nothing changes for the same generator; with a tiny `p` it is greedy; `scratchformers.generate(..., top_p=)`
#    does the same.
# 5. **A repetition penalty.** Before choosing, lower the logits of the tokens that occurred (Keskar et al. 2019
#    divide the positive ones and multiply the negative ones by 1.2). *Hint:* `logits.gather` and `scatter`.
#    *Check:* the share of repeated runs in the cell on greedy text falls. What happens to `.` and to the end token?
# 6. **Learning to stop.** Leave the end token out of `to_row`. *Hint:* which target taught the model to stop?
#    *Check:* count in how many of 50 samples `write(..., stop=end)` stops before 200 tokens, with and without it.
# 7. **The cache in one call of PyTorch.** In `step`, use `F.scaled_dot_product_attention`. *Hint:* for the first
#    part of the row `is_causal=True` is right, for one new token no mask is needed, for several you have to pass
#    `attn_mask`. *Check:* the row cut anywhere, off by less than 1e-10.
# 8. **Beyond the edge.** Let `write_cached` go on after `length` tokens: take the last half, at positions from 0,
#    with a new cache. *Hint:* why can you not simply drop the oldest key? *Check:* up to the edge the ids are those
#    of `write`; behind it they may differ. How many tokens are computed anew for each token written, on average?
#
# To read on: `src/scratchformers/models/gpt2.py` is this model as the library has it, with padding, in one page.
