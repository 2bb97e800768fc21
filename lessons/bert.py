# %% [markdown]
# # BERT from nothing
#
# GPT-2 reads from left to right, for it has to write. BERT does not write. It reads a whole text, every token sees
# every other, and gives a vector for each: something to classify with, to search with, to compare with. This lesson
# builds it, one idea a cell, and proves each before it goes on. At the end of it you have
#
# - a WordPiece tokeniser, and its rule written by hand;
# - the masking, and the five bugs people write in it, each with the number that gives it away;
# - a BERT that you trained in about half a minute, which fills in hidden words;
# - the same embedding for a sentence alone and in a padded batch, to 1e-12, and the three ways to lose it;
# - a head of your own on it, and the published weights in your own modules.
#
# You should know PyTorch's `nn.Module`; `lessons/gpt2.py` derives attention, heads and the residual, which we only
# write down here. The letters: `b` batch, `t` time (queries), `s` source time (keys), `d` width, `h` heads, `e` width
# of one head, `v` vocabulary. Papers: BERT is Devlin et al. 2019, the Transformer Vaswani et al. 2017.

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
from collections import Counter, defaultdict
from pydoc_data.topics import topics

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn

torch.manual_seed(0)
started, threads = time.perf_counter(), torch.get_num_threads()
torch.set_num_threads(1)  # small matrices: sharing the work costs more than it saves
print("torch", torch.__version__)

# %% [markdown]
# ## 1. Why read both ways
#
# The text is the prose of Python's own reference, which comes with Python; every tenth paragraph is **held out**. Each
# paragraph keeps the name of its page, for section 8.


# %%
def paragraphs(page):
    """Those that are prose: no tables, no grammar, no code."""
    for part in re.split(r"\n\s*\n", page):
        line = " ".join(part.split())
        prose = re.match(r'[A-Z"]', line) and line[-1] in ".:" and not re.search(r"::=|>>>|\||[=+*-]{3}", line)
        if prose and len(line) >= 80:
            yield line


page_of = {}
for name in sorted(topics):
    for line in paragraphs(topics[name]):
        page_of.setdefault(line, name)  # some stand on several pages
held_out_text, training_text = list(page_of)[::10], [line for i, line in enumerate(page_of) if i % 10]
print(f"{len(training_text)} paragraphs to learn from, {sum(map(len, training_text)):,} characters; for example:")
print(held_out_text[3])
assert not set(held_out_text) & set(training_text)

# %% [markdown]
# Cover a word with your thumb. Who may look at both sides guesses it more often than who sees only what came before.
# A table of counts shows it: the guess is the word seen most often after its left neighbour, or between its two
# neighbours where these two were ever seen around a word.


# %%
def triples(texts):
    for text in texts:
        words = re.findall(r"\w+|[^\w\s]", text.lower())
        yield from zip(words, words[1:], words[2:])


after, between, right = defaultdict(Counter), defaultdict(Counter), Counter()
for before, word, behind in triples(training_text):
    after[before][word] += 1
    between[before, behind][word] += 1
for before, word, behind in triples(held_out_text):
    one_side = after[before] or Counter([""])
    guess = one_side.most_common(1)[0][0]
    right["the left neighbour"] += guess == word
    right["both neighbours"] += (between[before, behind] or one_side).most_common(1)[0][0] == word
    right["words"] += 1
for name in ("the left neighbour", "both neighbours"):
    print(f"{name:19} guesses {right[name] / right['words']:.1%} of the held-out words")
assert right["both neighbours"] > right["the left neighbour"]

# %% [markdown]
# But a network that sees both sides cannot be trained to say the next token: it stands in its input, two layers deep
# it has reached every place, and all there is to learn is to copy. BERT's way out: **hide** some tokens, and ask for
# those. The price is that only what was hidden teaches anything. GPT-2 learns from every token of a text; BERT, which
# hides 15 %, from one in seven, and needs more reading.
#
# ## 2. WordPiece
#
# BERT first *normalises*: letters small, accents off, control characters away. That is the "uncased" model; the cased
# one keeps letters as they are, and **using one's vocabulary with the other's weights fails without a word**. Then it
# cuts at spaces and around every punctuation mark. What is left are words, and each is cut into pieces of a fixed
# vocabulary; a piece that goes on inside a word is spelt `##ing`.

# %%
normalise, cut = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()


def words_of(text):
    return [word for word, _ in cut.pre_tokenize_str(normalise.normalize_str(text))]


print(words_of("Naïve classes aren't __slots__, e.g. `Ünïcode`."))
assert words_of("Aren't they?") == ["aren", "'", "t", "they", "?"]

# %% [markdown]
# We let the `tokenizers` library make a vocabulary of 1000 from the training text; the published one has 30,522. Five
# ids come first and stand for no text: `[PAD]` fills a batch up, `[UNK]` is a word that cannot be spelt, `[CLS]` begins
# every text, `[SEP]` ends it, `[MASK]` hides. How Google's vocabulary was made has not been published; this trainer
# joins the pair met most often, as byte-pair encoding does. What matters is how a vocabulary is *read*, below.

# %%
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PAD, UNK, CLS, SEP, MASK = range(5)
WORDS = 5  # the first id that is text


def wordpiece(vocabulary):
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalise, cut
    made.add_special_tokens(SPECIAL)
    return made


letters = sorted({letter for text in training_text for word in words_of(text) for letter in word[1:]})
inside = [f"##{letter}" for letter in letters]  # named here, for the library would number them in any order
trainer = trainers.WordPieceTrainer(vocab_size=1000, special_tokens=[*SPECIAL, *inside], show_progress=False)
trained = wordpiece({})
trained.train_from_iterator(training_text, trainer)
tokenizer = wordpiece(trained.get_vocab())
vocabulary = tokenizer.get_vocab()
spelling = sorted(vocabulary, key=vocabulary.__getitem__)  # by id
V = len(vocabulary)
print(V, "pieces:", *spelling[:7], "...", *spelling[200:210], "...", *spelling[-5:])
assert spelling[:WORDS] == SPECIAL
assert V == 1000

# %% [markdown]
# **Reading** is a rule of two lines: take the longest piece that the rest of the word begins with; repeat. If at some
# place not even one letter fits, the *whole word* becomes `[UNK]`, and what it was is lost. (GPT-2's bytes lose
# nothing.)


# %%
def pieces(word):
    found, start = [], 0
    while start < len(word):
        ends = range(len(word), start, -1)
        fitting = (piece for end in ends if (piece := "##" * (start > 0) + word[start:end]) in vocabulary)
        if (piece := next(fitting, None)) is None:
            return ["[UNK]"]
        found.append(piece)
        start += len(piece) - 2 * (start > 0)
    return found


for word in ("statement", "statements", "generators", "bertification", "classǂ"):
    print(f"{word:15}", *pieces(word))
tried = {word for text in page_of for word in words_of(text)} | {"bertification", "classǂ", "ǂ", "xyzzy"}
assert all(tokenizer.encode(word).tokens == pieces(word) for word in tried)
assert pieces("ǂ") == pieces("classǂ") == ["[UNK]"]

# %% [markdown]
# **Trap: greedy is not shortest.** The longest piece may leave a rest that falls into crumbs, and a word can come out
# longer than need be. It is still the right answer: the published weights were trained with it.
#
# A row of the model is `[CLS] text [SEP]`. Ours are short, at most 24 tokens; the published model reads 512. We cut the
# paragraphs into rows, and sort these by length: a batch of neighbours then has little to fill up.

# %%
LENGTH = 24


def rows_of(texts, shortest=8):
    for text in texts:
        ids = tokenizer.encode(text).ids
        for i in range(0, len(ids), LENGTH - 2):
            if len(part := ids[i : i + LENGTH - 2]) >= shortest:
                yield [CLS, *part, SEP]


def batch_of(rows):
    """ids (b, t), filled up on the right, and keep (b, t), True where a token is real."""
    length = max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (length - len(row)) for row in rows])
    return ids, ids != PAD


training, held_out = (sorted(rows_of(texts), key=len) for texts in (training_text, held_out_text))
ids, keep = batch_of([training[0], training[-1]])
print(f"{len(training)} rows to learn from, {len(held_out)} held out; the shortest beside one of the longest:")
print(*("".join(f"{spelling[i]} " for i in row) for row in ids.tolist()), sep="\n")
assert keep.sum(dim=1).tolist() == [len(training[0]), LENGTH]

# %% [markdown]
# ## 3. Masking
#
# Of the tokens that are text, each is **chosen** with a probability of 15 %. A chosen one is then
#
# - in 80 % of the cases replaced by `[MASK]`,
# - in 10 % by some other token,
# - in 10 % left as it is,
#
# and the model is asked for the token that stood there, in all three cases. Why not always `[MASK]`? Because no text
# that you will ever use the model on has one; section 7 measures it. We return what the model sees and where it is
# asked; what stood there is in `ids`, which we do not touch.


# %%
def hide(ids, generator, share=0.15, masked=0.8, swapped=0.1, whole_words=False):
    draw = torch.rand(ids.shape, generator=generator)
    if whole_words:  # one draw a word: a piece that goes on takes that of the piece before it
        draw = draw.gather(1, (~GOES_ON[ids]).cumsum(dim=1) - 1)
    chosen = (draw < share) & (ids >= WORDS)
    how = torch.rand(ids.shape, generator=generator)
    other = torch.randint(WORDS, V, ids.shape, generator=generator)
    seen = torch.where(chosen & (how < masked), MASK, ids)
    return torch.where(chosen & (how >= 1 - swapped), other, seen), chosen


GOES_ON = torch.tensor([piece.startswith("##") for piece in spelling])
ids, keep = batch_of(training)
seen, chosen = hide(ids, torch.Generator().manual_seed(0))
count, text = int(chosen.sum()), int((ids >= WORDS).sum())
shares = {
    "chosen, of the text": count / text,
    "of these [MASK]": int((seen == MASK).sum()) / count,
    "another token": int(((seen != ids) & (seen != MASK)).sum()) / count,
    "as it was": int((chosen & (seen == ids)).sum()) / count,
    "chosen, of the special ones": int((chosen & (ids < WORDS)).sum()) / count,
}
for (name, share), expected in zip(shares.items(), (0.15, 0.8, 0.1, 0.1, 0)):
    print(f"{name:28}{share:6.1%}")
    assert abs(share - expected) < 0.02
assert torch.equal(seen[~chosen], ids[~chosen])

# %% [markdown]
# **Drawn anew at every visit.** The first BERT drew ten masks for each text beforehand and trained for 40 epochs on
# them. Drawing when the text is read costs nothing, and no two visits ask the same; RoBERTa (Liu et al. 2019, section
# 4.1) calls it dynamic and finds it as good or a little better. An evaluation, on the contrary, wants the same
# questions every time: a generator with a fixed seed.

# %%
generator = torch.Generator().manual_seed(0)
for visit in range(3):
    row, asked = hide(ids[-1:], generator)
    print("visit", visit, "-", *(spelling[i] for i in row[0].tolist()))
again = [hide(ids, torch.Generator().manual_seed(0))[0] for _ in range(2)]
assert torch.equal(*again)
assert not torch.equal(*(hide(ids, generator)[0] for _ in range(2)))

# %% [markdown]
# **Whole words.** If `##ment` is hidden and `state` before it is not, there is little to think about. So later BERTs
# choose words, and hide all their pieces. It is the same share of tokens and a harder task.


# %%
def given_away(chosen):
    """Of the hidden pieces that go on with a word, the share whose piece before stands there to be seen."""
    hidden = chosen[:, 1:] & GOES_ON[ids[:, 1:]] & (ids[:, :-1] >= WORDS)  # a row may begin inside a word
    return int((hidden & ~chosen[:, :-1]).sum()) / int(hidden.sum())


by_word = hide(ids, torch.Generator().manual_seed(0), whole_words=True)[1]
for name, mask in {"tokens": chosen, "whole words": by_word}.items():
    print(
        f"{name:12} {int(mask.sum()) / text:.1%} chosen; of the ## pieces in it {given_away(mask):.0%} are given away"
    )
assert given_away(by_word) == 0
assert given_away(chosen) > 0.5

# %% [markdown]
# **What is a good loss?** It is the mean of -ln(probability of the token that stood there), over the chosen places.
# Knowing nothing costs ln V. Knowing how common each token is, the **unigram**, costs less; it ignores the text
# altogether. A BERT that does not beat the unigram has learnt nothing about reading, and small ones spend a long time
# just there. So these two numbers belong beside every curve.

# %%
quiz = torch.Generator().manual_seed(1)
exam = []  # held-out rows with the same questions each time: (ids, keep, seen, chosen)
for i in range(0, len(held_out), 64):
    for _ in range(2):
        some, real = batch_of(held_out[i : i + 64])
        exam.append((some, real, *hide(some, quiz)))


def cost(logits, ids, chosen):
    return F.cross_entropy(logits[chosen], ids[chosen])


counts = torch.bincount(ids.flatten(), minlength=V).double()
counts[:WORDS] = 0
log_unigram = ((counts + 0.1) / (counts + 0.1).sum()).log().float()


def sit_exam(model):
    """Mean loss and share of right answers at the chosen places of the held-out rows."""
    answers = [(model(seen, keep)[chosen], ids[chosen]) for ids, keep, seen, chosen in exam]
    logits, truth = (torch.cat(parts) for parts in zip(*answers))
    return F.cross_entropy(logits, truth).item(), (logits.argmax(dim=-1) == truth).float().mean().item()


nothing = sit_exam(lambda seen, keep: torch.zeros(*seen.shape, V))[0]
unigram, unigram_right = sit_exam(lambda seen, keep: log_unigram.expand(*seen.shape, V))
print(f"knowing nothing {nothing:.3f} nats (ln {V} = {math.log(V):.3f})")
print(f"unigram         {unigram:.3f} nats, always says {spelling[log_unigram.argmax()]!r}: {unigram_right:.1%} right")
assert abs(nothing - math.log(V)) < 1e-4
assert unigram < nothing - 0.5

# %% [markdown]
# ### The bugs people write
#
# Masking is a few lines, nothing crashes when they are wrong, and the loss often looks *better*. To see each bug we
# need no training, only a model that has understood nothing: the **copier**, which answers with the token it sees.
#
# **Bug 1: the labels are copied after masking.** `seen` is made in place, and `labels = ids.clone()` comes a line too
# late. Now the answer to `[MASK]` is `[MASK]`: the copier is perfect. (Exercise 1 lets a real model get there.)
#
# **Bug 2: the loss is taken over all tokens.** Most of them were not hidden. The copier has most of them right, and
# the few places where there is something to learn are a seventh of the loss.


# %%
def copier(seen):
    return 20.0 * F.one_hot(seen, V)


ids, keep = batch_of(training[-512:])  # all of the full length: nothing is padded
seen, chosen = hide(ids, torch.Generator().manual_seed(0))
copied = copier(seen)
print(f"the copier, asked for what stood there: {cost(copied, ids, chosen):6.2f} nats, "
      f"{(copied.argmax(-1) == ids)[chosen].float().mean():.0%} right")  # fmt: skip
print(f"bug 1, labels copied after masking:     {cost(copied, seen, chosen):6.2f} nats, 100% right")
print(f"bug 2, all tokens instead of chosen:    {cost(copied, ids, keep):6.2f} nats, "
      f"{(copied.argmax(-1) == ids).float().mean():.0%} right")  # fmt: skip
assert cost(copied, seen, chosen) < 1e-3
assert cost(copied, ids, chosen) > 2 * nothing
assert (copied.argmax(-1) == ids).float().mean() > 0.8

# %% [markdown]
# **Bug 3: id 0 means "not asked".** Labels are often one tensor, with some number at the places that are not asked.
# PyTorch leaves out -100. Whoever writes 0 there and forgets to say `ignore_index=0` asks for token 0, `[PAD]`, at
# every other place: answer always `[PAD]`, and be right nearly everywhere. And whoever says it loses token 0. Here
# that is `[PAD]` and does no harm; but in the vocabulary of GPT-2 and CLIP 0 is `!`, and in one of characters it may be
# any. Below, the ids are turned so that the most common token is 0.
#
# We have no such number: `chosen` is a tensor of its own.

# %%
labels = torch.where(chosen, ids, 0)
always_pad = torch.zeros(*ids.shape, V)
always_pad[..., PAD] = 12.0
bug = F.cross_entropy(always_pad.flatten(0, 1), labels.flatten())
common = int(log_unigram.argmax())
turned = (ids - common) % V
asked = (torch.where(chosen, turned, 0) != 0).sum()
print(f"always [PAD], where 0 is a label like any: {bug:.2f} nats, {(labels == PAD).float().mean():.0%} right")
print(f"where 0 is left out and a token has id 0: {int(chosen.sum() - asked)} of {int(chosen.sum())} questions gone, "
      f"every {spelling[common]!r}")  # fmt: skip
assert bug < unigram / 2
assert chosen.sum() - asked == (chosen & (ids == common)).sum() > 0

# %% [markdown]
# **Bug 4: special tokens are chosen.** `[CLS]` always comes first, `[PAD]` always at the end. Who asks for them asks
# for nothing, and the more a batch is filled up, the better the loss. Below, the unigram answers at text, and is sure
# of the special ones, as any model soon is.

# %%
ids, keep = batch_of([*training[:32], *training[-32:]])
anywhere = torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)) < 0.15
proper = hide(ids, torch.Generator().manual_seed(0))[1]
easy = torch.where(ids[..., None] < WORDS, copier(ids), log_unigram)
gone = (ids < WORDS)[anywhere].float().mean()
print(f"{gone:.0%} of the questions ask for a special token: {cost(easy, ids, anywhere):.2f} nats instead of "
      f"{cost(easy, ids, proper):.2f}, and nothing was learnt")  # fmt: skip
assert cost(easy, ids, anywhere) < cost(easy, ids, proper) - 0.5

# %% [markdown]
# The fifth, always `[MASK]`, needs a trained model. On to that.
#
# ## 4. The model
#
# Three embeddings are added: which token, at which place, in which of two texts (the **segment**, section 8). Then
# comes a norm at once, which GPT-2 does not have. Its eps is 1e-12, here and in every norm of BERT. PyTorch's default
# is 1e-5, and where a vector is small, as those of the embeddings are, that is not the same.
#
# Positions follow from `keep`: the first *real* token stands at place 0, whichever side is filled up.


# %%
def places(keep):
    return (keep.cumsum(dim=1) - 1).clamp(min=0)  # padding gets some valid place


small = torch.randn(2, 8, 48) * 0.02
default, published_eps = F.layer_norm(small, (48,)), F.layer_norm(small, (48,), eps=1e-12)
print(f"the same vectors with eps 1e-5 and 1e-12: off by {(default - published_eps).abs().max():.3f}")
print(places(torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]]).bool()).tolist())
assert (default - published_eps).abs().max() > 1e-2

# %% [markdown]
# **Attention** is that of GPT-2 without the triangle: every token may attend to every *real* token. `keep` is True at
# what may be attended to, and becomes (b, 1, 1, s): the same for all heads and all queries.


# %%
def split(x, heads):
    return rearrange(x, "b t (h e) -> b h t e", h=heads)  # heads outer: the order of the published weights


def weigh(q, k, keep=None):
    scores = einsum(q, k, "b h t e, b h s e -> b h t s") / q.shape[-1] ** 0.5
    if keep is not None:
        scores = scores.masked_fill(~rearrange(keep, "b s -> b 1 1 s"), -torch.inf)
    return scores.softmax(dim=-1)


class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x, keep=None):
        q, k, v = (split(linear(x), self.heads) for linear in (self.q, self.k, self.v))
        mixed = einsum(weigh(q, k, keep), v, "b h t s, b h s e -> b h t e")
        return self.out(rearrange(mixed, "b h t e -> b t (h e)"))


attention, x = Attention(48, 4), torch.randn(2, 8, 48)
some = torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0], [1] * 8]).bool()
weights = weigh(split(attention.q(x), 4), split(attention.k(x), 4), some)
print("weights", tuple(weights.shape), "- on padding", weights[0, :, :, 5:].sum().item())
assert weights[0, :, :, 5:].eq(0).all()
assert torch.allclose(weights.sum(dim=-1), torch.ones(2, 4, 8))

# %% [markdown]
# **The block.** GELU by the error function (GPT-2 has the tanh approximation), and the norm *after* the addition. Side
# by side:
#
# | | attention | MLP |
# |---|---|---|
# | pre-norm, GPT-2 | `x = x + attention(norm(x))` | `x = x + mlp(norm(x))` |
# | **post-norm, BERT** | `x = norm(x + attention(x))` | `x = norm(x + mlp(x))` |
#
# In a pre-norm stack `x` is a sum that grows with every block, and one last norm is needed. In a post-norm stack it
# comes out of every block with the same size, and there is no last norm. The price: the gradient passes a norm per
# addition, and deep post-norm models need a warm-up.


# %%
class MLP(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.up, self.down, self.activation = nn.Linear(dim, hidden), nn.Linear(hidden, dim), F.gelu

    def forward(self, x):
        return self.down(self.activation(self.up(x)))


class Block(nn.Module):
    def __init__(self, dim, heads, hidden, eps=1e-12):
        super().__init__()
        self.attention, self.attention_norm = Attention(dim, heads), nn.LayerNorm(dim, eps=eps)
        self.mlp, self.mlp_norm = MLP(dim, hidden), nn.LayerNorm(dim, eps=eps)

    def forward(self, x, keep=None):
        x = self.attention_norm(x + self.attention(x, keep))
        return self.mlp_norm(x + self.mlp(x))


class PreNormBlock(Block):
    def forward(self, x, keep=None):
        x = x + self.attention(self.attention_norm(x), keep)
        return x + self.mlp(self.mlp_norm(x))


for kind in (PreNormBlock, Block):
    y, sizes = x, []
    with torch.no_grad():
        for _ in range(12):
            block = kind(48, 4, 192)
            for parameter in block.mlp.parameters():
                parameter.mul_(4)
            y = block(y)
            sizes.append(y.std().item())
    print(f"{kind.__name__:13} size of x after each block:", *(f"{size:.1f}" for size in sizes))
    assert (sizes[-1] > 1.5) == (kind is PreNormBlock)

# %% [markdown]
# PyTorch has this block as well, post-norm by default. **Its padding mask is the other way round**: True = leave out.
# On weights drawn anew, so that no bias is 0 and no norm is 1, in float64:


# %%
@torch.no_grad()
def scramble(module, std=0.2):
    for parameter in module.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=std)
    return module


block, x = scramble(Block(48, 4, 192).double()), x.double()
theirs = nn.TransformerEncoderLayer(48, 4, 192, 0.0, "gelu", 1e-12, batch_first=True).double()
parts = [block.attention.q, block.attention.k, block.attention.v]
with torch.no_grad():
    theirs.self_attn.in_proj_weight.copy_(torch.cat([linear.weight for linear in parts]))
    theirs.self_attn.in_proj_bias.copy_(torch.cat([linear.bias for linear in parts]))
pairs = {theirs.self_attn.out_proj: block.attention.out, theirs.linear1: block.mlp.up, theirs.linear2: block.mlp.down}
for one, other in (pairs | {theirs.norm1: block.attention_norm, theirs.norm2: block.mlp_norm}).items():
    one.load_state_dict(other.state_dict())
expected, same = theirs(x, src_key_padding_mask=~some)[some], block(x, some)[some]
block.mlp.activation = lambda y: F.gelu(y, approximate="tanh")
approximate = block(x, some)[some]
print(f"off by {(same - expected).abs().max():.0e}; with GPT-2's GELU by {(approximate - expected).abs().max():.0e}")
assert torch.allclose(same, expected, atol=1e-12)
assert not torch.allclose(approximate, expected, atol=1e-5)

# %% [markdown]
# **The head** says what stood at a place: one more linear layer, GELU and norm, and then the product with every token's
# embedding, the **tied** table, plus a bias for each token. GPT-2's head has none of the two layers and no bias. That
# bias, by the way, can learn the unigram all alone.
#
# The model is `head(encode(ids))`, and the head can be exchanged.


# %%
class MaskedLM(nn.Module):
    def __init__(self, token, eps=1e-12):
        super().__init__()
        vocab, dim = token.weight.shape
        self.dense, self.norm = nn.Linear(dim, dim), nn.LayerNorm(dim, eps=eps)
        self.bias = nn.Parameter(torch.zeros(vocab))
        self.tied = [token]  # in a list, so that the table is not registered, and saved, a second time

    def forward(self, x, keep=None):
        x = self.norm(F.gelu(self.dense(x)))
        return einsum(x, self.tied[0].weight, "... d, v d -> ... v") + self.bias


class BERT(nn.Module):
    def __init__(self, vocab, length, dim, depth, heads, hidden=None, segments=2, eps=1e-12):
        super().__init__()
        self.length, self.dim, self.heads = length, dim, heads
        self.token, self.position, self.segment = (nn.Embedding(size, dim) for size in (vocab, length, segments))
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.blocks = nn.ModuleList(Block(dim, heads, hidden or 4 * dim, eps) for _ in range(depth))
        self.head = MaskedLM(self.token, eps)

    def embed(self, ids, keep, segments=None):
        segments = torch.zeros_like(ids) if segments is None else segments
        return self.norm(self.token(ids) + self.position(places(keep)) + self.segment(segments))

    def encode(self, ids, keep=None, segments=None):
        """ids (b, t) to vectors (b, t, d); keep (b, t) is True where a token is real."""
        keep = torch.ones_like(ids, dtype=torch.bool) if keep is None else keep
        x = self.embed(ids, keep, segments)
        for block in self.blocks:
            x = block(x, keep)
        return x

    def forward(self, ids, keep=None, segments=None):
        return self.head(self.encode(ids, keep, segments), keep)


tiny = BERT(V, LENGTH, dim=48, depth=2, heads=4)
seen = exam[-1][2]
print("ids", tuple(seen.shape), "-> vectors", tuple(tiny.encode(seen).shape), "-> scores", tuple(tiny(seen).shape))
assert tiny(seen).shape == (*seen.shape, V)
assert sum("token" in name for name in tiny.state_dict()) == 1

# %% [markdown]
# **How many parameters has BERT?** The base size, on the `meta` device, which knows shapes and holds no numbers.
# Hugging Face's `BertForMaskedLM` has the same 109,514,298.

# %%
with torch.device("meta"):
    base = BERT(30_522, 512, dim=768, depth=12, heads=12)
sizes = Counter()
for name, parameter in base.named_parameters():
    sizes[name.split(".")[0]] += parameter.numel()
print(*(f"{name:9}{size:>12,}" for name, size in sizes.items()), f"together {sizes.total():>12,}", sep="\n")
assert sizes.total() == 109_514_298

# %% [markdown]
# **Every token sees every token.** Row `t`, column `s` says whether the output at `t` moved when token `s` was changed.
# For GPT-2 this picture is a triangle; if it is one for your BERT, you left a causal mask in. The check is the same in
# both lessons: do not trust a mask, test what it is for.


# %%
@torch.no_grad()
def influence(model, ids, keep=None):
    columns = []
    for s in range(ids.shape[1]):
        other = ids.clone()
        other[:, s] = (other[:, s] + 1) % V
        columns.append((model.encode(other, keep) != model.encode(ids, keep)).any(dim=-1).any(dim=0))
    return torch.stack(columns, dim=1)


exact = scramble(BERT(V, LENGTH, dim=48, depth=2, heads=4).double())
row, real = batch_of([held_out[-1][:6]])
print(influence(exact, row).int())
one_pad = influence(exact, row, torch.tensor([[1, 1, 1, 1, 1, 0]]).bool())
print("the last one padding: it moves only itself", one_pad[:, -1].int().tolist())
assert influence(exact, row).all()
assert one_pad[:, -1].tolist() == [False] * 5 + [True]

# %% [markdown]
# ## 5. Why does padding change my embedding?
#
# The commonest complaint about every BERT there is: the same sentence has another vector when it stands in a batch.
# It should not. Three mistakes explain nearly all cases, and none of them raises an error. Here are three sentences,
# each alone, and together; the vector of a sentence is the **mean** of its tokens' vectors.

# %%
sentences = ["A class is an object.", "The value of the expression is returned.", "Names refer to objects."]
alone = [torch.tensor([[CLS, *tokenizer.encode(text).ids, SEP]]) for text in sentences]
ids, keep = batch_of([row[0].tolist() for row in alone])
print(keep.int())


def mean(x, keep):
    return x.masked_fill(~keep[..., None], 0).sum(dim=1) / keep.sum(dim=1, keepdim=True)


with torch.no_grad():
    wanted = torch.cat([exact.encode(row).mean(dim=1) for row in alone])
    ways = {
        "right": mean(exact.encode(ids, keep), keep),
        "no mask": mean(exact.encode(ids), keep),
        "mask upside down": mean(exact.encode(ids, ~keep), keep),
        "mean over padding": exact.encode(ids, keep).mean(dim=1),
    }
off = {name: (found - wanted).abs().amax(dim=1) for name, found in ways.items()}
for name, distances in off.items():
    print(f"{name:18} each sentence off by", *(f"{distance:8.0e}" for distance in distances.tolist()))
assert off["right"].max() < 1e-12
longest = int(keep.sum(dim=1).argmax())
assert all((off[name] > 1e-2).sum() == 2 and off[name][longest] < 1e-12 for name in ("no mask", "mean over padding"))
assert off["mask upside down"][longest].isnan()

# %% [markdown]
# Read the columns. Without a mask, and with a mean over everything, the *longest* sentence is right, for it has no
# padding: who tests with one sentence sees no bug. With the mask upside down that one may attend to nothing, and a
# softmax over nothing but minus infinity is NaN; the others attend to padding only.
#
# A mask of floats that is added, 0 and -10000, hides that NaN and is why it can go unnoticed for years. And -10000
# is not minus infinity. So: booleans, True = may attend, and a name that says so.
#
# Filled up on the left it is the same, because the places follow from `keep`:

# %%
left = torch.stack([row.roll(int((~real).sum())) for row, real in zip(ids, keep)])
left_keep = left != PAD
with torch.no_grad():
    found = mean(exact.encode(left, left_keep), left_keep)
    from_edge = exact.position(torch.arange(ids.shape[1]))
    naive = exact.norm(exact.token(left) + from_edge + exact.segment.weight[0])
    for block in exact.blocks:
        naive = block(naive, left_keep)
print(f"padding left: off by {(found - wanted).abs().max():.0e}; with places counted from the edge by "
      f"{(mean(naive, left_keep) - wanted).abs().max():.0e}")  # fmt: skip
assert torch.allclose(found, wanted, atol=1e-12)
assert not torch.allclose(mean(naive, left_keep), wanted, atol=1e-2)

# %% [markdown]
# **Without padding at all.** Only attention needs to know which tokens belong together; embeddings, norms, linears and
# MLPs treat each token alone. So lay the real tokens side by side, `(n, d)`, and let attention take one sentence at a
# time. Same numbers, and no work for padding. (With a kernel for that, all sentences at once; ScratchFormers groups
# those of equal length.)


# %%
def encode_packed(model, ids, keep):
    lengths = keep.sum(dim=1).tolist()
    x = model.embed(ids, keep)[keep]  # (n, d): the real tokens of all sentences, one after the other
    for block in model.blocks:
        mixed = [block.attention(part[None])[0] for part in x.split(lengths)]
        x = block.attention_norm(x + torch.cat(mixed))
        x = block.mlp_norm(x + block.mlp(x))
    return x


with torch.no_grad():
    packed, padded = encode_packed(exact, ids, keep), exact.encode(ids, keep)[keep]
print(f"{len(packed)} tokens computed instead of {keep.numel()}, off by {(packed - padded).abs().max():.0e}")
assert torch.allclose(packed, padded, atol=1e-12)

# %% [markdown]
# ## 6. Training
#
# **Initialisation.** BERT draws from a normal of 0.02. That suits a width of 768: with a narrow model the scores of
# attention would be all but equal, and it takes long to leave that. What stays the same for every width is 0.02 times
# the root of 768, over the root of the width; for 48 it is 0.08. A second help for a lesson that must not last: the
# positions, which are learned like any other weight, *begin* as sines of many wavelengths, so that neighbours are alike
# from the first step. Biases are 0, so the first loss is near ln V.


# %%
@torch.no_grad()
def initialise(model):
    std = 0.02 * (768 / model.dim) ** 0.5
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            parameter.zero_() if name.endswith("bias") else parameter.normal_(std=std)
    wave = 100 ** -torch.linspace(0, 1, model.dim // 2 + 1)[:-1]
    angle = torch.arange(model.length)[:, None] * wave
    model.position.weight.copy_(torch.cat([angle.sin(), angle.cos()], dim=1) * std * 2**0.5)
    return model


torch.manual_seed(0)
model = initialise(BERT(V, LENGTH, dim=48, depth=2, heads=2))
with torch.no_grad():
    first = sit_exam(model)[0]
print(
    f"{sum(p.numel() for p in model.parameters()):,} parameters; first loss {first:.2f}, knowing nothing {nothing:.2f}"
)
assert abs(first - nothing) < 0.3

# %% [markdown]
# The loop is that of GPT-2: AdamW, warm-up, cosine, the gradient's norm cut at 1. Two things are new. The masks are
# drawn in the loop. And the head computes scores **at the chosen places only**: the table of all tokens is the largest
# product of a small model, and six sevenths of it would be thrown away.


# %%
def train(model, steps, lr=5e-3, batch=64, warmup=100, every=0, limit=55, **masking):
    """For `steps` steps, or, where the machine is slow, until about `limit` seconds are over."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    others = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimiser, generator = torch.optim.AdamW(groups, betas=(0.9, 0.98)), torch.Generator().manual_seed(0)
    losses, valid, began, done = [], {}, time.perf_counter(), 0.0
    while done < 1:
        for group in optimiser.param_groups:
            group["lr"] = lr * min((len(losses) + 1) / warmup, 0.02 + 0.49 * (1 + math.cos(math.pi * done)))
        start = int(torch.randint(len(training) - batch + 1, (1,), generator=generator))
        ids, keep = batch_of(training[start : start + batch])  # neighbours in length
        seen, chosen = hide(ids, generator, **masking)
        loss = F.cross_entropy(model.head(model.encode(seen, keep)[chosen]), ids[chosen])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
        done = max(len(losses) / steps, (time.perf_counter() - began) / limit)
        if every and (len(losses) % every == 0 or done >= 1):
            with torch.no_grad():
                valid[len(losses)], right = sit_exam(model)
            print(f"step {len(losses):4}  loss {losses[-1]:.3f}  held out {valid[len(losses)]:.3f}, {right:.1%} right  "
                  f"{time.perf_counter() - began:4.0f} s", flush=True)  # fmt: skip
    return losses, valid


losses, _ = train(copy.deepcopy(model), steps=3)
print("three steps:", *(f"{loss:.3f}" for loss in losses))
assert len(losses) == 3

# %% [markdown]
# **The real one.** Watch three stages: it learns how common tokens are and comes down to the unigram; it learns to look
# at its neighbours, to the left and to the right; then words and phrases.

# %%
losses, valid = train(model, steps=2000, every=200)
with torch.no_grad():
    final, final_right = sit_exam(model)
print(f"nats at a hidden token: knowing nothing {nothing:.2f}, unigram {unigram:.2f}, BERT {final:.2f}; "
      f"right: unigram {unigram_right:.0%}, BERT {final_right:.0%}")  # fmt: skip
assert final < unigram - 0.3
assert final_right > 2 * unigram_right

# %%
figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
axis.plot(range(1, len(losses) + 1), losses, alpha=0.5, label="training, one batch")
axis.plot(list(valid), list(valid.values()), "o-", label="held out")
axis.axhline(nothing, ls="--", color="grey", label="knowing nothing, ln V")
axis.axhline(unigram, ls=":", color="black", label="unigram")
axis.set(xlabel="step", ylabel="nats at a hidden token", ylim=(0, None))
axis.legend()
plt.show()
plt.close(figure)

# %% [markdown]
# **Fill in.** Hide a word of any sentence and take the most probable tokens. The last two sentences differ only to the
# *right* of it, where GPT-2 could not look.


# %%
@torch.no_grad()
def fill(text, top=5):
    ids = torch.tensor([[CLS, *tokenizer.encode(text).ids, SEP]])
    best = model(ids)[ids == MASK][0].softmax(dim=-1).topk(top)
    return [(spelling[i], p) for i, p in zip(best.indices.tolist(), best.values.tolist())]


for text in (
    "Changed in version 3 [MASK] 8.",
    "If the [MASK] is not found, an exception is raised.",
    "Return a copy of the [MASK] with all characters converted.",
    "The [MASK] is raised.",
    "The [MASK] is returned.",
):
    print(f"{text:60}", *(f"{token} {p:.0%}" for token, p in fill(text)))
assert fill("The [MASK] is raised.") != fill("The [MASK] is returned.")

# %% [markdown]
# **Where does it look?** The mean attention weight by the distance of the key, over the held-out rows. A model that
# reads both ways has heads for either side.

# %%
ids, keep, seen, _ = exam[-1]
profile, distance = {}, torch.arange(LENGTH)[None] - torch.arange(LENGTH)[:, None]  # (t, s)
with torch.no_grad():
    x = model.embed(seen, keep)
    for i, block in enumerate(model.blocks):
        q, k = (split(linear(x), 2) for linear in (block.attention.q, block.attention.k))
        seen_by = weigh(q, k, keep).mean(dim=0)
        x = block(x, keep)
        for head in range(2):
            line = [seen_by[head][distance == step].mean().item() for step in range(-6, 7)]
            profile[f"block {i}, head {head}"] = line
figure, axis = plt.subplots(figsize=(8, 3.5), layout="constrained")
for name, line in profile.items():
    axis.plot(range(-6, 7), line, "o-", label=name)
axis.set(xlabel="place of the key, counted from the query", ylabel="mean weight")
axis.legend()
plt.show()
plt.close(figure)
left_side, right_side = (max(sum(line[side]) for line in profile.values()) for side in (slice(0, 6), slice(7, 13)))
print(
    f"the head that looks left most gives 6 places there {left_side:.2f} of its weight; to the right {right_side:.2f}"
)
assert min(left_side, right_side) > 0.2

# %% [markdown]
# **Whole words are harder.** The same model, asked for the pieces inside words, once hidden token by token and once by
# whole words. What it loses is what the visible half of the word had given away.

# %%
with torch.no_grad():
    asked = {}
    for whole in (False, True):
        draw, hits = torch.Generator().manual_seed(2), []
        for ids, keep, _, _ in exam:
            seen, chosen = hide(ids, draw, whole_words=whole)
            inside = chosen & GOES_ON[ids]
            hits.append((model(seen, keep)[inside].argmax(dim=-1) == ids[inside]).float())
        asked[whole] = torch.cat(hits).mean().item()
print(f"## pieces right: hidden by tokens {asked[False]:.1%}, by whole words {asked[True]:.1%}")
assert asked[True] < asked[False]

# %% [markdown]
# ## 7. The fifth bug: always `[MASK]`
#
# Two small models, some hundred steps each, one with 80/10/10 and one that hides every chosen token by `[MASK]`. Then
# both read held-out text as you will give it to them, *nothing hidden*, and are asked what stands at each place. That
# should be the easiest question of all.

# %%
plain = {}
for name, how in {"80/10/10": {}, "always [MASK]": {"masked": 1.0, "swapped": 0.0}}.items():
    torch.manual_seed(0)
    little = initialise(BERT(V, LENGTH, dim=32, depth=1, heads=2))
    train(little, steps=350, warmup=50, lr=1e-2, limit=15, **how)
    with torch.no_grad():
        hidden, (ids, keep, _, _) = sit_exam(little)[0], exam[-1]
        answers, words = little(ids, keep), ids >= WORDS
    plain[name] = cost(answers, ids, words).item()
    print(f"{name:14} hidden tokens {hidden:.2f} nats; tokens in full view {plain[name]:.2f}, "
          f"{(answers.argmax(-1) == ids)[words].float().mean():.0%} right")  # fmt: skip
assert plain["always [MASK]"] > plain["80/10/10"] + 0.5

# %% [markdown]
# The second model was never asked anything at a place without `[MASK]`, so its vectors there may be anything: and these
# are the vectors that you classify and search with. The 10 % that stay and the 10 % that are swapped make every place
# one that may be asked, where the model must keep what it sees and yet doubt it.
#
# ## 8. A head of your own
#
# Filling in words is not what BERT is for. **Fine-tuning** takes the encoder as it is, puts a new head on it, and
# trains both on few labelled examples. Ours: does a row come from the page on statements or from the one on the methods
# of strings? We label 64 rows, and ask for all the others. (Section 6 has read most of them, but never their labels.)
#
# For one answer a text, the published models take the vector of the first token, `[CLS]`. It goes through the
# **pooler**, a linear layer with tanh, and then through a linear layer with as many outputs as there are classes. The
# other way is the mean of section 5. Exchanging the head is one line.


# %%
class Pooler(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.dense = nn.Linear(dim, dim)

    def forward(self, x, keep):
        return self.dense(x[:, 0]).tanh()


class Classify(nn.Module):
    def __init__(self, dim, classes, pool):
        super().__init__()
        self.pool, self.out = pool, nn.Linear(dim, classes)

    def forward(self, x, keep):
        return self.out(self.pool(x, keep))


PAGES = ("compound", "string-methods")


labelled = [(row, PAGES.index(page)) for text, page in page_of.items() if page in PAGES for row in rows_of([text])]
order = torch.randperm(len(labelled), generator=torch.Generator().manual_seed(0)).tolist()
ids, keep = batch_of([labelled[i][0] for i in order])
label = torch.tensor([labelled[i][1] for i in order])
few, others = slice(0, 64), slice(64, None)


def fine_tune(reader, steps=60, lr=2e-3):
    optimiser = torch.optim.AdamW(reader.parameters(), lr=lr)
    for _ in range(steps):
        loss = F.cross_entropy(reader(ids[few], keep[few]), label[few])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        return (reader(ids[others], keep[others]).argmax(dim=-1) == label[others]).float().mean().item()


torch.manual_seed(0)
ones = label[others].float().mean().item()
score = {"always the commoner page": max(ones, 1 - ones)}
for name, start in {"an untrained encoder": initialise(BERT(V, LENGTH, 48, 2, 2)), "ours": model}.items():
    for how, pool in {"[CLS]": Pooler(48), "mean": mean}.items():
        reader = copy.deepcopy(start)
        reader.head = Classify(reader.dim, len(PAGES), pool)  # the one line
        score[f"{name}, {how}"] = fine_tune(reader)
for name, hits in score.items():
    print(f"{name:27} {hits:.0%} of {len(labelled) - 64} rows right")
assert score["ours, mean"] > score["always the commoner page"] + 0.1
assert score["ours, mean"] > score["ours, [CLS]"]

# %% [markdown]
# An honest look. The mean wins: `[CLS]` is never hidden, so while ours read nobody asked it anything. (The published
# one was asked; see below.) And an untrained encoder does about as well as ours: these pages differ by their words, and
# which words belong where can be learnt from 64 rows. Ours has read 60,000 tokens, which shows where it fills in words;
# the published BERT 3.3 billion words, which shows everywhere. So compare with an untrained encoder *and* with a
# bag of words before you praise a pretrained one.
#
# **Segments.** Some questions are about two texts: does the second follow from the first, does it answer it? Both go
# in at once, `[CLS] A [SEP] B [SEP]`, and the third embedding says which is which: 0 up to the first `[SEP]`, 1 after
# it. (The published model was also trained to say, from the pooler, whether B stood behind A in a book: the *next
# sentence prediction*. RoBERTa, section 4.2, found that it does not help. Ours has not learnt it; its second segment is
# as it was drawn.)
#
# **Trap: the segments passed as the mask.** Both are 0/1 of the same shape, and in many interfaces the second argument
# is one and the third the other. Then A is invisible. The check is that of section 4: change A, look at B.

# %%
pair = processors.BertProcessing(("[SEP]", SEP), ("[CLS]", CLS))
both = pair.process(tokenizer.encode("A class is an object."), tokenizer.encode("It has a name."))
ids, segments = torch.tensor([both.ids]), torch.tensor([both.type_ids])
print(*both.tokens)
print(*both.type_ids)
other = ids.clone()
other[0, 2] = MASK
with torch.no_grad():
    moved = {
        name: (model.encode(ids, keep, segments) - model.encode(other, keep, segments))[segments == 1]
        .abs()
        .max()
        .item()
        for name, keep in {"all": None, "segments": segments.bool()}.items()
    }
print(f"a word of A hidden: B moves by {moved['all']:.2f}; with the segments as mask by {moved['segments']}")
assert moved["all"] > 1e-3
assert moved["segments"] == 0

# %% [markdown]
# ## 9. Published weights
#
# The exam. The published file has these habits:
#
# - queries, keys and values stand **apart**, as ours do, and every matrix is (out, in): nothing to cut or turn;
# - the oldest files, that of `bert-base-uncased` among them, call a norm's scale and shift **`gamma` and `beta`**;
# - the head is tied; files that nevertheless hold `cls.predictions.decoder` hold the same numbers again;
# - `position_ids` are 0, 1, 2, ..., and a pooler and the head of next sentences stand beside what we need.
#
# One table, strict both ways: a tensor without a row is an error, and so is a parameter that nothing fills. **"Some
# weights were newly initialised" is such an error**, printed as a remark: that part of the model is noise.

# %%
TABLE = {
    "bert.embeddings.word_embeddings": "token",
    "bert.embeddings.position_embeddings": "position",
    "bert.embeddings.token_type_embeddings": "segment",
    "bert.embeddings.LayerNorm": "norm",
    "bert.encoder.layer.*.attention.self.query": "blocks.*.attention.q",
    "bert.encoder.layer.*.attention.self.key": "blocks.*.attention.k",
    "bert.encoder.layer.*.attention.self.value": "blocks.*.attention.v",
    "bert.encoder.layer.*.attention.output.dense": "blocks.*.attention.out",
    "bert.encoder.layer.*.attention.output.LayerNorm": "blocks.*.attention_norm",
    "bert.encoder.layer.*.intermediate.dense": "blocks.*.mlp.up",
    "bert.encoder.layer.*.output.dense": "blocks.*.mlp.down",
    "bert.encoder.layer.*.output.LayerNorm": "blocks.*.mlp_norm",
    "cls.predictions.transform.dense": "head.dense",
    "cls.predictions.transform.LayerNorm": "head.norm",
    "cls.predictions": "head",  # its bias
}
NOT_NEEDED = r"bert\.pooler\..*|cls\.seq_relationship\..*|cls\.predictions\.decoder\..*|.*\.position_ids"
OLD = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


def rows(depth):
    """Their tensor and ours."""
    for theirs, ours in TABLE.items():
        parts = {"cls.predictions": ("bias",)}.get(theirs, ("weight", "bias"))
        for i in range(depth) if "*" in theirs else (0,):
            for part in parts[: 1 if "_embeddings" in theirs else 2]:
                yield [f"{name}.{part}".replace("*", str(i)) for name in (theirs, ours)]


def to_ours(published, depth):
    published = {re.sub(r"LayerNorm\.(gamma|beta)$", lambda old: OLD[old[0]], name): t for name, t in published.items()}
    state = {ours: published.pop(theirs) for theirs, ours in rows(depth)}
    if strange := [name for name in published if not re.fullmatch(NOT_NEEDED, name)]:
        raise ValueError(f"No row of the table names {', '.join(strange)}.")
    return state


def to_published(state, depth):
    return {theirs: state[ours].contiguous() for theirs, ours in rows(depth)}


state = model.state_dict()
there = to_published(state, 2)
back = to_ours(there, 2)
for name in list(there)[3:8]:
    print(f"{name:56}{tuple(there[name].shape)}")
assert set(back) == set(state)
assert all(torch.equal(back[name], state[name]) for name in state)

# %% [markdown]
# **Where are they?** In a folder that the environment variable `BERT_FOLDER` names, or in the cache of the Hugging Face
# hub, if you have run
#
# ```sh
# hf download google-bert/bert-base-uncased config.json model.safetensors vocab.txt    # 440 MB, once
# ```
#
# Nothing is downloaded here. Without the files we go on with a **stand-in**: your model, written out in exactly that
# layout, `gamma` and `beta` included. Everything below is the same for both.

# %%
from huggingface_hub import try_to_load_from_cache
from safetensors.torch import load_file, save_file

FILES = ("config.json", "model.safetensors", "vocab.txt")
scratch = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)


def stand_in(folder):
    new = {name: old for old, name in OLD.items()}
    old_names = {re.sub(r"LayerNorm\.\w+$", lambda part: new[part[0]], name): t for name, t in there.items()}
    save_file(old_names, folder / "model.safetensors", metadata={"format": "pt"})
    sizes = {"vocab_size": V, "max_position_embeddings": LENGTH, "type_vocab_size": 2, "hidden_size": 48}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 192, "layer_norm_eps": 1e-12}
    facts = {"model_type": "bert", "architectures": ["BertForMaskedLM"], "hidden_act": "gelu", **sizes}
    (folder / "config.json").write_text(json.dumps(facts), encoding="utf-8")
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in spelling), encoding="utf-8")
    return folder


def find():
    if named := os.environ.get("BERT_FOLDER"):
        return Path(named), f"the folder {named}"
    cached = [try_to_load_from_cache("google-bert/bert-base-uncased", name) for name in FILES]
    if all(isinstance(file, str) for file in cached):
        return Path(cached[0]).parent, "the published BERT, from the hub's cache"
    return stand_in(Path(scratch.name)), "a stand-in, your own model in the published layout"


folder, what = find()
facts = json.loads((folder / "config.json").read_text(encoding="utf-8"))
print(f"The weights are those of {what}.")
print(*(f"{name} {facts[name]}" for name in ("vocab_size", "hidden_size", "num_hidden_layers")), sep=", ")
assert all((folder / name).is_file() for name in FILES)

# %% [markdown]
# Load: make the model on the `meta` device, where it costs nothing, and assign the tensors. The head finds the new
# table, since it holds the module and not the tensor.

# %%
torch.set_num_threads(threads)
depth, heads, eps = facts["num_hidden_layers"], facts["num_attention_heads"], facts.get("layer_norm_eps", 1e-12)
sizes = facts["vocab_size"], facts["max_position_embeddings"], facts["hidden_size"], depth, heads
with torch.device("meta"):
    ours = BERT(*sizes, facts["intermediate_size"], facts["type_vocab_size"], eps)
published = load_file(folder / "model.safetensors")
ours.load_state_dict(to_ours(published, depth), assign=True)
print(f"{len(published)} tensors read, {sum(p.numel() for p in ours.parameters()):,} parameters")
assert not any(parameter.is_meta for parameter in ours.parameters())
assert ours.head.tied[0] is ours.token

# %% [markdown]
# ## 10. The same in ScratchFormers
#
# A round trip through one's own table proves little: a mistake made on the way out is unmade on the way in. So ask
# somebody else. `scratchformers` reads the same folder by code of its own, which is tested against Hugging Face's
# transformers. Sentences of different lengths, filled up; in float64 the scores must agree to 1e-10. The library also
# sets the vectors at padding to 0, so that nobody can average them by accident.

# %%
import scratchformers as sf

reader = sf.load_tokenizer(folder)
encoded = [reader.encode(text) for text in ("The [MASK] of the expression is returned.", *sentences)]
ids = torch.tensor([row + [reader.role("pad")] * (max(map(len, encoded)) - len(row)) for row in encoded])
keep = ids != reader.role("pad")
with torch.no_grad():
    for dtype, bound in ((torch.float32, 1e-4), (torch.float64, 1e-10)):
        product = sf.load(folder, dtype=dtype)
        theirs, mine = product(ids, keep=keep)[keep], ours.to(dtype)(ids, keep)[keep]
        print(f"{dtype}: scores up to {theirs.abs().max():.0f}, largest difference {(theirs - mine).abs().max():.0e}")
        assert torch.allclose(theirs, mine, atol=bound, rtol=bound / 10)
    states = product.encode(ids, keep=keep)
    assert torch.allclose(states[keep], ours.encode(ids, keep)[keep], atol=1e-10)
    assert states[~keep].eq(0).all()

# %% [markdown]
# **What would the famous mistakes have done?** Each is planted in a copy; none fails to load, for every shape is right.
# Every seventh token of some held-out rows is hidden, and the loss there says what the mistake costs. The smallest
# ones you would never notice in a loss, and they are wrong all the same: compare numbers with a reference that is not
# your own code.


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


def pre_norm(model):
    for block in model.blocks:
        block.__class__ = PreNormBlock


def other_gelu(model):
    for block in model.blocks:
        block.mlp.activation = lambda x: F.gelu(x, approximate="tanh")


def default_eps(model):
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5


mistakes = {
    "as published": lambda model: None,
    "GELU by tanh": other_gelu,
    "eps 1e-5": default_eps,
    "segment 0 not added": lambda model: model.segment.weight.zero_(),
    "heads (e h)": heads_dealt,
    "k and v exchanged": swap_keys_and_values,
    "pre-norm": pre_norm,
    "no norm after the embeddings": lambda model: setattr(model, "norm", nn.Identity()),
    "head's bias lost": lambda model: model.head.bias.zero_(),
    "head's dense layer left out": lambda model: setattr(model.head, "dense", nn.Identity()),
}
width = min(64, ours.length)
texts = [row for row in map(reader.encode, held_out_text) if len(row) >= width][:12]
whole = torch.tensor([row[: width - 1] + row[-1:] for row in texts])
chosen = torch.zeros_like(whole, dtype=torch.bool)
chosen[:, 4:-1:7] = True
hidden, moved = whole.masked_fill(chosen, reader.role("mask")), {}
with torch.no_grad():
    expected = ours(hidden)
    for name, plant in mistakes.items():
        wrong = copy.deepcopy(ours)
        plant(wrong)
        found = wrong(hidden)
        moved[name] = (found - expected).abs().max().item()
        print(f"{name:30} {cost(found, whole, chosen):6.2f} nats; scores off by up to {moved[name]:.0e}")
print(f"{'knowing nothing':30} {math.log(facts['vocab_size']):6.2f}")
assert moved["as published"] == 0
assert min(off for name, off in moved.items() if name != "as published") > 1e-7

# %% [markdown]
# And words, with the library's `MaskFiller`, which takes text and gives text. With the published weights it knows some
# of the world; with the stand-in it knows Python's reference a little.

# %%
filler = sf.MaskFiller(sf.load(folder), reader)
texts = ("The [MASK] of the expression is returned.", "The capital of France is [MASK].")
for text in texts:
    print(f"{text:45}", *(f"{found.token} {found.score:.0%}" for found in filler(text, top=5)))
ids = torch.tensor([reader.encode(texts[0])])
with torch.no_grad():
    mine = ours(ids)[ids == reader.role("mask")].softmax(dim=-1).max().item()
best = filler(texts[0], top=1)[0]
print(best.text)
assert abs(best.score - mine) < 1e-4

# %% [markdown]
# And a head of your own, in the library as in section 8: one line. With a checkpoint that has a pooler it would be
# `pool=product.pool`.

# %%
product = sf.load(folder)
product.head = sf.Classify(product.config.dim, PAGES, pool=sf.mean)
with torch.no_grad():
    scores = product(ids)
print({label: round(score, 3) for label, score in zip(product.head.labels, scores[0].tolist())}, "before it is trained")
print(f"The lesson took {time.perf_counter() - started:.0f} s.")
assert scores.shape == (1, len(PAGES))

# %% [markdown]
# ## 11. Exercises
#
# Each says how you can check your answer yourself. Change a copy of the cell and run what follows it.
#
# 1. **The copier, grown.** Plant bug 1 in `train`: `loss` against `seen[chosen]`. *Check:* within 300 steps the
#    training loss is below 0.3, and `sit_exam` costs more than knowing nothing.
# 2. **A fixed share.** `hide` flips a coin for each token, so a short row may be asked nothing. Choose exactly 15 % of
#    each row's text, rounded, and at least one. *Hint:* `draw.masked_fill(ids < WORDS, 2)` and its rank, `argsort`
#    twice. *Check:* `chosen.sum(dim=1)` has the counts you want; no special token is chosen.
# 3. **More than 15 %.** Train with `share=0.4`, which Wettig et al. (2023) found better for large models. *Hint:* the
#    exam stays at 15 %. *Check:* compare the held-out curves at equal steps. More questions, or harder ones: which
#    weighs more?
# 4. **Masks drawn once.** Draw the masks of all rows beforehand and train on these. *Check:* the training loss falls
#    far below that of dynamic masking, and the held-out loss rises above knowing nothing: it has learnt them by heart.
# 5. **The published start.** Leave out the lines of `initialise` that make the positions sines, then also set `std` to
#    0.02. *Check:* each time the curve stays longer near the unigram.
# 6. **Pre-norm.** Train with `PreNormBlock`. *Hint:* which norm is missing at the end? *Check:* `influence` is still
#    all ones; the equality with `nn.TransformerEncoderLayer` holds with `norm_first=True`.
# 7. **Score a sentence.** Hide each token in turn, all in one batch, and add up the ln-probabilities of what stood
#    there (Salazar et al. 2020). *Check:* most held-out rows get more than the same rows with two words exchanged.
# 8. **A label for each token.** Write a head that says of every token whether it stands between quotation marks, and
#    fine-tune. *Hint:* the labels follow from the rows; hide the marks themselves, or it is too easy. *Check:* filled
#    up with ten more columns of padding, the batch must have the same loss.
#
# To read on: `src/scratchformers/models/bert.py` is this model as the library has it, in one page.
