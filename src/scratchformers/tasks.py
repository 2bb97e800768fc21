"""What people ask a model for: text in, answers out. A list in gives a list out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, overload

import torch

from scratchformers import models
from scratchformers.generate import generate
from scratchformers.text import TextTokenizer

DEFAULT_NEW_TOKENS = 64


@dataclass(frozen=True)
class Completion:
    """`text` and `ids` are what was written after the prompt; the end token is in neither."""

    text: str
    ids: list[int]
    reason: Literal["end", "length"]


class Completer:
    """Continues text: `Completer.from_pretrained(source)("Once upon a time")`."""

    def __init__(self, model: Any, tokenizer: TextTokenizer):
        if tokenizer.vocab > model.config.vocab:
            sizes = f"The tokeniser has {tokenizer.vocab} ids and the model {model.config.vocab}"
            raise ValueError(f"{sizes}: they do not belong together.")
        self.model, self.tokenizer = model, tokenizer

    @classmethod
    def from_pretrained(cls, source: str | Path, **options: Any) -> Self:
        """`options` are those of `load`."""
        return cls(models.load(source, **options), models.load_tokenizer(source))

    @overload
    def __call__(self, prompt: str, **sampling: Any) -> Completion: ...
    @overload
    def __call__(self, prompt: Sequence[str], **sampling: Any) -> list[Completion]: ...
    def __call__(self, prompt: Any, **sampling: Any) -> Any:
        """Continues one prompt, or each of a list.

        sampling: max_new_tokens (default: the smaller of 64 and the room left), temperature, top_k, top_p and stop as
        `generate` takes them, and `seed`, which makes drawing repeatable.
        """
        answers = self._complete([prompt] if isinstance(prompt, str) else list(prompt), **sampling)
        return answers[0] if isinstance(prompt, str) else answers

    def _complete(
        self,
        prompts: list[str],
        *,
        max_new_tokens: int | None = None,
        stop: Sequence[int] | None = None,
        seed: int | None = None,
        **settings: Any,  # generate's
    ) -> list[Completion]:
        if seed is not None and not 0 <= seed < 2**63:
            raise ValueError(f"seed is {seed}: expected 0 <= seed < 2**63.")
        if not prompts:
            return []
        rows = [self.tokenizer.encode(text) for text in prompts]
        for text, row in zip(prompts, rows):
            if not row:
                raise ValueError(f"The prompt {text!r} has no tokens: write at least one character.")
        longest = max(map(len, rows))
        if max_new_tokens is None:
            max_new_tokens = max(1, min(DEFAULT_NEW_TOKENS, self.model.config.length - longest))
        device = next(self.model.parameters()).device
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows], device=device)
        keep = torch.tensor([[False] * (longest - len(row)) + [True] * len(row) for row in rows], device=device)
        generator = None if seed is None else torch.Generator(device).manual_seed(seed)
        stop = self.model.generation.end if stop is None else stop
        settings |= {"max_new_tokens": max_new_tokens, "stop": stop, "generator": generator}
        out = generate(self.model, ids, keep=keep, **settings)
        return [self._answer(row[longest:].tolist(), stop) for row in out]

    def _answer(self, ids: list[int], stop: Sequence[int]) -> Completion:
        ends = [i for i, token in enumerate(ids) if token in stop]
        ids, reason = (ids[: ends[0]], "end") if ends else (ids, "length")
        return Completion(self.tokenizer.decode(ids), ids, reason)
