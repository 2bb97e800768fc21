"""What people ask a model for: text in, answers out. A list in gives a list out."""

import dataclasses
import hashlib
import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, overload

import torch

from scratchformers import models
from scratchformers.checkpoints import hub
from scratchformers.checkpoints.pretrained import fingerprint
from scratchformers.generate import Decoding, Sampling, check_room, evaluating
from scratchformers.text import TextTokenizer, check_fits

DEFAULT_NEW_TOKENS = 64
Stop = str | int | Sequence[str | int] | None


@dataclass(frozen=True)
class Completion:
    """`text` and `ids` are what was written after the prompt. The reason it ends: "end" for an end token, which is in
    neither; "stop" for a stop string, before which `text` ends, and which `ids` still hold; "length" for no room."""

    text: str
    ids: list[int]
    reason: Literal["end", "stop", "length"]


class Request:
    """What is asked of a Completer beside the prompt, checked."""

    def __init__(
        self,
        *,
        max_new_tokens: int | None = None,
        stop: Stop = None,
        seed: int | None = None,
        slide: bool = False,
        **sampling: Any,
    ):
        if seed is not None and not 0 <= seed < 2**63:
            raise ValueError(f"seed is {seed}: expected 0 <= seed < 2**63.")
        self.max_new_tokens, self.seed, self.slide = max_new_tokens, seed, slide
        self.sampling = Sampling(**sampling)
        stops = [stop] if isinstance(stop, str | int) else list(stop or ())
        self.stop_strings = [each for each in stops if isinstance(each, str)]
        ids = [each for each in stops if not isinstance(each, str)]
        self.stop_ids = ids if ids or (stop is not None and not stops) else None  # None: the checkpoint's own
        if "" in self.stop_strings:
            raise ValueError("A stop string is empty: it would end every text before it begins.")


class Writing:
    """One text as it is written: ids in, pieces of text out, each valid UTF-8 and free of stop strings.

    A character may take several ids, and a stop string may begin in one piece and end in the next: what could still
    become either is held back.
    """

    def __init__(self, tokenizer: TextTokenizer, stops: Sequence[str] = ()):
        self.tokenizer, self.stops = tokenizer, stops
        self.text, self.ids = "", []
        self.reason: Literal["end", "stop", "length"] | None = None
        self._clean = self._read = 0  # ids[:_read] are in the text; ids[_clean:_read] are the next ones' context
        self._given = 0  # characters handed out

    def push(self, token: int) -> str:
        """Takes an id; gives what may now be handed out."""
        self.ids.append(token)
        return self._take(self._new_text(whole=False))

    def close(self, reason: Literal["end", "length"]) -> str:
        """No more ids will come; gives what was held back."""
        piece = self._take(self._new_text(whole=True), whole=True)
        self.reason = self.reason or reason
        return piece

    def _new_text(self, *, whole: bool) -> str:
        """The text of the ids not read yet, nothing while they end within a character (the decoder puts U+FFFD)."""
        before = self.tokenizer.decode(self.ids[self._clean : self._read])
        new = self.tokenizer.decode(self.ids[self._clean :])
        if new.endswith("\ufffd") and not whole:
            return ""
        self._clean, self._read = self._read, len(self.ids)
        return new[len(before) :]

    def _take(self, new: str, *, whole: bool = False) -> str:
        self.text += new
        found = [at for at in (self.text.find(stop, self._given) for stop in self.stops) if at >= 0]
        if found:
            self.text, self.reason = self.text[: min(found)], "stop"
        given, self._given = self._given, len(self.text) - (0 if whole or found else self._undecided())
        return self.text[given : self._given]

    def _undecided(self) -> int:
        """How many characters at the end may be the beginning of a stop string."""
        tail = self.text[self._given :]
        return max((n for stop in self.stops for n in range(1, len(stop)) if tail.endswith(stop[:n])), default=0)

    def completion(self) -> Completion:
        return Completion(self.text, self.ids, self.reason or "length")


class Completer:
    """Continues text: `Completer.from_pretrained(source)("Once upon a time")`."""

    def __init__(self, model: Any, tokenizer: TextTokenizer):
        check_fits(tokenizer, model.config.vocab)
        self.model, self.tokenizer = model, tokenizer

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, revision: str | None = None, local_files_only: bool = False, **options: Any
    ) -> Self:
        """`options` are those of `load`. Model and tokeniser come from one commit, whatever happens to a branch."""
        folder = hub.find(source, revision=revision, local_files_only=local_files_only)
        return cls(models.load(folder, **options), models.load_tokenizer(folder))

    def digest(self) -> str:
        """sha256 over all that an answer depends on but its settings: weights, tokeniser, generation config."""
        rules = json.dumps(self.model.generation.write(), sort_keys=True, default=str)
        said = [fingerprint(self.model), self.tokenizer.digest(), rules]
        return hashlib.sha256("\n".join(said).encode()).hexdigest()

    @overload
    def __call__(self, prompt: str, **settings: Any) -> Completion: ...
    @overload
    def __call__(self, prompt: Sequence[str], **settings: Any) -> list[Completion]: ...
    def __call__(self, prompt: Any, **settings: Any) -> Any:
        """Continues one prompt, or each of a list.

        settings: max_new_tokens (by default 64, or fewer where the checkpoint says so or there is no more room),
        temperature, top_k, top_p, repetition_penalty and slide as `generate` takes them; `stop`, ids and strings:
        ids instead of the checkpoint's end tokens, strings beside them, () for neither; and `seed`, which makes drawing
        repeatable: prompt i of a list draws with seed + i, whatever stands beside it.
        """
        request = Request(**settings)
        rows = [self._read(each, request) for each in ([prompt] if isinstance(prompt, str) else prompt)]
        if refused := [row for row in rows if isinstance(row, ValueError)]:
            raise refused[0]
        answers = self._answer(rows, request)
        return answers[0] if isinstance(prompt, str) else answers

    def answer(self, prompts: Sequence[str], *, first: int = 0, **settings: Any) -> list[Completion | ValueError]:
        """As a call with a list, but a prompt that cannot be continued has its ValueError as the answer, and the others
        theirs: for many prompts, of which one may be bad. first: the number of the first, which its seed follows."""
        request = Request(**settings)
        return self._answer([self._read(prompt, request) for prompt in prompts], request, first)

    def _answer(self, rows: list[Any], request: Request, first: int = 0) -> list[Any]:
        answers, good = list(rows), [i for i, row in enumerate(rows) if not isinstance(row, ValueError)]
        if good:
            decoding, texts = self._begin([rows[i] for i in good], [first + i for i in good], request)
            with evaluating(self.model):
                while _step(decoding, texts) is not None:
                    pass
            for i, text in zip(good, texts):
                answers[i] = text.completion()
        return answers

    def stream(self, prompt: str, **settings: Any) -> Generator[str, None, Completion]:
        """The text of `self(prompt, ...)` in pieces, as they are written; returns what the call would. Settings and
        errors are the call's; errors are raised at once."""
        request = Request(**settings)
        row = self._read(prompt, request)
        if isinstance(row, ValueError):
            raise row
        return self._stream(*self._begin([row], [0], request))

    def _stream(self, decoding: Decoding, texts: list[Writing]) -> Generator[str, None, Completion]:
        while True:
            with evaluating(self.model):
                pieces = _step(decoding, texts)
            if pieces is None:
                return texts[0].completion()
            if pieces[0]:
                yield pieces[0]

    def _read(self, prompt: str, request: Request) -> list[int] | ValueError:
        try:
            ids = self.tokenizer.encode(prompt)
            if not ids:
                raise ValueError(f"The prompt {prompt!r} has no tokens: write at least one character.")
            check_room(self.model.config, [len(ids)], [self._new_tokens(ids, request)], slide=request.slide)
        except ValueError as error:
            return error
        return ids

    def _new_tokens(self, ids: list[int], request: Request) -> int:
        if request.max_new_tokens is not None:
            return request.max_new_tokens
        said, room = self.model.generation, self.model.config.length - len(ids)
        limits = [DEFAULT_NEW_TOKENS, *([] if request.slide else [room])]
        limits += [] if said.max_new_tokens is None else [said.max_new_tokens]
        limits += [] if said.max_length is None else [said.max_length - len(ids)]
        return max(1, min(limits))

    def _begin(self, rows: list[list[int]], numbers: list[int], request: Request) -> tuple[Decoding, list[Writing]]:
        """The rows, left-padded and ready to be continued; row i is prompt `numbers[i]` of those asked for."""
        device, longest = next(self.model.parameters()).device, max(map(len, rows))
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows], device=device)
        keep = torch.tensor([[False] * (longest - len(row)) + [True] * len(row) for row in rows], device=device)
        generators = None
        if request.seed is not None:
            generators = [torch.Generator(device).manual_seed((request.seed + number) % 2**63) for number in numbers]
        decoding = Decoding(
            self.model, ids, keep=keep, stop=request.stop_ids, slide=request.slide,
            max_new_tokens=[self._new_tokens(row, request) for row in rows],
            sampling=dataclasses.replace(request.sampling, generator=generators),
        )  # fmt: skip
        return decoding, [Writing(self.tokenizer, request.stop_strings) for _ in rows]


def _step(decoding: Decoding, texts: list[Writing]) -> list[str] | None:
    """One id more in every row that is not finished, and the pieces of text that gives; None when all are."""
    new = next(decoding, None)
    if new is None:
        return None
    pieces = [""] * len(texts)
    for i, (token, text) in enumerate(zip(new, texts)):
        if token is None:
            continue
        ended = token in decoding.stop
        pieces[i] = "" if ended else text.push(token)
        if text.reason == "stop":
            decoding.finished[i] = True
        elif decoding.finished[i]:
            pieces[i] += text.close("end" if ended else "length")
    return pieces
