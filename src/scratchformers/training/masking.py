"""Which tokens of a text a masked language model is asked for (Devlin et al. 2019, section 3.1 and appendix A.1)."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Int
from tokenizers import models
from torch import Tensor

from scratchformers.text import TextTokenizer

HIDDEN, REPLACED = 0.8, 0.1  # of the chosen tokens; the rest stand as they are, for real texts have no [MASK]


@dataclass
class Masking:
    """Chooses `share` of each row's tokens, never special ones. What is chosen is drawn anew with every generator.

    whole_words: words are chosen, and with one all its pieces. Raises ValueError for a tokeniser without a mask.
    """

    tokenizer: TextTokenizer
    share: float = 0.15
    whole_words: bool = False
    mask: int = field(init=False)
    ordinary: Int[Tensor, "n"] = field(init=False)  # the ids that are text

    def __post_init__(self):
        mask = self.tokenizer.role("mask")
        if mask is None:
            raise ValueError("The tokeniser has no [MASK], by which tokens are hidden: choose another.")
        if not 0 < self.share < 1:
            raise ValueError(f"masked is {self.share}: expected a share of the tokens, 0 < masked < 1.")
        self.mask, special = mask, self.tokenizer.special
        self.ordinary = torch.tensor([id for id in range(self.tokenizer.vocab) if id not in special])
        self._is_text = torch.zeros(self.tokenizer.vocab, dtype=torch.bool)
        self._is_text[self.ordinary] = True
        self._joins = _joins(self.tokenizer) if self.whole_words else None

    def __call__(self, ids: Int[Tensor, "t"], generator: torch.Generator) -> tuple[Int[Tensor, "t"], Bool[Tensor, "t"]]:
        """The row as the model sees it, and which of its tokens are asked for: at least one, where there is any text.

        The labels are the ids given here, which are not changed: taken after the hiding, they would ask for nothing.
        """
        text = self._is_text[ids]
        count = round(self.share * int(text.sum())) or min(1, int(text.sum()))
        chosen = torch.zeros_like(text)
        if self._joins is None:
            places = text.nonzero()[:, 0]
            chosen[places[torch.randperm(len(places), generator=generator)[:count]]] = True
        else:
            chosen = self._choose_words(ids, text, count, generator)
        draw = torch.rand(len(ids), generator=generator)
        other = self.ordinary[torch.randint(len(self.ordinary), (len(ids),), generator=generator)]
        seen = torch.where(chosen & (draw < HIDDEN), self.mask, ids)
        return torch.where(chosen & (draw >= HIDDEN) & (draw < HIDDEN + REPLACED), other, seen), chosen

    def _choose_words(self, ids: Tensor, text: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Whole words until `count` tokens are chosen; one that would be too many is passed over, but for the first."""
        assert self._joins is not None
        after, before = self._joins
        begins = text.clone()
        begins[1:] &= ~(after[ids[1:]] & before[ids[:-1]] & text[:-1])  # a window may begin within a word
        word = torch.where(text, begins.cumsum(0) - 1, -1)
        sizes, taken, total = torch.bincount(word[text], minlength=1), [], 0
        for each in torch.randperm(len(sizes), generator=generator).tolist():
            if total < count and (not taken or total + int(sizes[each]) <= count):
                taken.append(each)
                total += int(sizes[each])
        return torch.isin(word, torch.tensor(taken)) & text


def _joins(tokenizer: TextTokenizer) -> tuple[Tensor, Tensor]:
    """Of each id whether it goes on with a word, and whether a word can go on after it."""
    vocab = tokenizer.tokenizer.get_vocab(with_added_tokens=True)
    after, before = torch.zeros(2, tokenizer.vocab, dtype=torch.bool)
    if isinstance(tokenizer.tokenizer.model, models.WordPiece):
        after[[id for token, id in vocab.items() if token.startswith("##")]] = True
        return after, ~before
    if tokenizer.alphabet is None:
        raise ValueError("whole_words needs to know where words begin: choose WordPiece, or characters.")
    letters = [id for token, id in vocab.items() if len(token) == 1 and token.isalnum()]
    after[letters] = before[letters] = True
    return after, before
