"""Text in, answers out."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Self, overload

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scratchformers import models
from scratchformers.checkpoints import files, hub
from scratchformers.checkpoints.pretrained import fingerprint
from scratchformers.generate import Decoding, Sampling, check_room, evaluating
from scratchformers.heads import TokenClassify, first, mean
from scratchformers.tasks.vectors import write_vectors
from scratchformers.text import Text, TextTokenizer, check_belongs, check_fits, check_segments, padded

DEFAULT_NEW_TOKENS = 64
Stop = str | int | Sequence[str | int] | None
Track = Callable[[Iterable[Any], int], Iterable[Any]]  # shows how far one is among so many


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
        if not hasattr(model, "start"):
            raise ValueError(f"{type(model).__name__} reads texts and writes none: expected a model like GPT-2.")
        if hasattr(model, "read"):
            raise ValueError(f"{type(model).__name__} writes from a source: use `translate`, or a Translator.")
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


# --- what an encoder is asked


@dataclass(frozen=True)
class Fill:
    """A token for a hidden place, how probable it is, and the text with it there."""

    token: str
    score: float
    text: str


@dataclass(frozen=True)
class Label:
    label: str
    score: float


@dataclass(frozen=True)
class WordLabel:
    """A word as it stands in the text, its label and how probable that is."""

    word: str
    label: str
    score: float


class _Encoder:
    """A model that reads whole texts, and its tokeniser."""

    def __init__(self, model: Any, tokenizer: TextTokenizer):
        check_fits(tokenizer, model.config.vocab)
        if not hasattr(model, "encode") or hasattr(model, "start"):
            does = "writes texts" if hasattr(model, "start") else "compares texts with pictures"
            raise ValueError(f"{type(model).__name__} {does}: expected a model that reads them, like BERT.")
        self.model, self.tokenizer, self.limit = model, tokenizer, model.config.length

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, revision: str | None = None, local_files_only: bool = False, **options: Any
    ) -> Self:
        """`options` are those of `load`. Model and tokeniser come from one commit, whatever happens to a branch."""
        folder = hub.find(source, revision=revision, local_files_only=local_files_only)
        return cls.of(models.load(folder, **options), folder)

    @classmethod
    def of(cls, model: Any, folder: Path) -> Self:
        """With the tokeniser that lies in the model's folder."""
        tokenizer = models.load_tokenizer(folder)
        check_belongs(tokenizer, model)
        return cls(model, tokenizer)

    def _read(self, texts: Sequence[Text], truncate: bool) -> list[tuple[list[int], list[int]]]:
        rows = self.tokenizer.encode_batch(texts, limit=self.limit, truncate=truncate)
        check_segments(rows, self.model.config.segments)
        return rows

    def _given(self, rows: Sequence[tuple[list[int], list[int]]]) -> dict[str, Tensor]:
        return {name: value.to(next(self.model.parameters()).device) for name, value in padded(rows).items()}


class MaskFiller(_Encoder):
    """Says what is hidden: `MaskFiller.from_pretrained(source)("Paris is the [MASK] of France.")`."""

    def __init__(self, model: Any, tokenizer: TextTokenizer):
        super().__init__(model, tokenizer)
        if model.head is None or hasattr(model.head, "labels"):
            raise ValueError("This checkpoint has no head that says what is hidden: choose one that was trained so.")
        mask = tokenizer.role("mask")
        if mask is None:
            raise ValueError("The tokeniser has no [MASK], so nothing can be hidden: choose another checkpoint.")
        self.mask, self.spelling = mask, str(tokenizer.tokenizer.id_to_token(mask))

    def __call__(self, text: str | Sequence[str], *, top: int = 5, truncate: bool = False) -> list[Any]:
        """The `top` most probable tokens for the hidden place, best first; of a text with several, a list for each, and
        every `Fill.text` has its own place filled and the others not. Of a list of texts, a list of these.

        Raises ValueError for a text without a hidden place, or with one that was cut off, and one that is too long.
        """
        if not 1 <= top <= self.tokenizer.vocab:
            raise ValueError(f"top is {top}: expected 1 to {self.tokenizer.vocab}, the tokens there are.")
        texts = [text] if isinstance(text, str) else list(text)
        rows = self._read(texts, truncate)
        for each, (ids, _) in zip(texts, rows):
            if not 0 < each.count(self.spelling) == ids.count(self.mask):
                what = "no" if self.spelling not in each else "more than the model can read of"
                raise ValueError(f"The text {each[:40]!r} has {what} {self.spelling}: write it where a word is hidden.")
        answers = [self._fill(*each, top) for each in zip(texts, rows)]
        return answers[0] if isinstance(text, str) else answers

    def _fill(self, text: str, row: tuple[list[int], list[int]], top: int) -> list[Any]:
        given = self._given([row])
        with evaluating(self.model):
            states = self.model.encode(**given)
            hidden = states[given["ids"] == self.mask]
            scores, ids = self.model.head(hidden[None])[0, :, : self.tokenizer.vocab].softmax(-1).topk(top)
        answers = [
            [self._filled(text, place, *each) for each in zip(ids[place].tolist(), scores[place].tolist())]
            for place in range(len(ids))
        ]
        return answers[0] if len(answers) == 1 else answers

    def _filled(self, text: str, place: int, token: int, score: float) -> Fill:
        """A piece that goes on with a word (##ing) is written to the word before it."""
        parts, spelt = text.split(self.spelling), str(self.tokenizer.tokenizer.id_to_token(token))
        before, after = self.spelling.join(parts[: place + 1]), self.spelling.join(parts[place + 1 :])
        joined = before.rstrip() + spelt[2:] if spelt.startswith("##") and len(spelt) > 2 else before + spelt
        return Fill(spelt, score, joined + after)


BATCH_TOKENS = 1024  # computed at once: enough to keep the cores busy, and few enough to stay in their caches
CHUNK_TEXTS = 4096  # read at once, so that those of like lengths come together


class SentenceEncoder(_Encoder):
    """One vector for each text: `SentenceEncoder.from_pretrained(source)(["A sentence.", "Another."])`.

    How the states become one vector, whether it is brought to length 1, and how many tokens are read, a checkpoint of
    sentence-transformers says itself; of another it is their mean, as it is, over all that the model can read.
    """

    def __init__(self, model: Any, tokenizer: TextTokenizer, *, pool: Any = mean, normalize: bool = False):
        super().__init__(model, tokenizer)
        self.pool, self.normalize = pool, normalize

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        local_files_only: bool = False,
        pool: Literal["mean", "first", "pooler"] | None = None,
        normalize: bool | None = None,
        **options: Any,
    ) -> Self:
        """`pool` and `normalize` replace what the checkpoint says. ValueError for a step that is not written here."""
        folder = hub.find(source, revision=revision, local_files_only=local_files_only)
        return cls.of(models.load(folder, **options), folder, pool=pool, normalize=normalize)

    @classmethod
    def of(cls, model: Any, folder: Path, *, pool: Any = None, normalize: bool | None = None) -> Self:
        """Of a model loaded from the folder, or file."""
        made = super().of(model, folder)
        said = read_pooling(folder if folder.is_dir() else folder.parent, pool, normalize)
        known = {"mean": mean, "first": first, "pooler": made.model.pool}
        if said.pool not in known:
            raise ValueError(f"pool is {said.pool!r}: expected one of {', '.join(known)}.")
        if said.pool == "pooler" and made.model.pooler is None:
            raise ValueError(f"{folder} has no pooler: choose pool='mean' or 'first'.")
        made.pool, made.normalize = known[said.pool], said.normalize
        made.limit = min(made.limit, said.limit or made.limit)
        return made

    @overload
    def __call__(self, texts: str, *, truncate: bool = False) -> np.ndarray: ...
    @overload
    def __call__(self, texts: Sequence[str], *, truncate: bool = False) -> np.ndarray: ...
    def __call__(self, texts: Any, *, truncate: bool = False) -> Any:
        """(n, dim) of a list of texts, (dim,) of one, float32. The vector of a text does not depend on the others. One
        without tokens has the vector 0. ValueError for one that is too long, unless its end may be left out."""
        given = [texts] if isinstance(texts, str) else texts
        found = np.empty((len(given), self.model.config.dim), dtype=np.float32)
        for start, vectors in self.stream(given, truncate=truncate):
            found[start : start + len(vectors)] = vectors
        return found[0] if isinstance(texts, str) else found

    def stream(self, texts: Iterable[str], *, truncate: bool = False) -> Iterator[tuple[int, np.ndarray]]:
        """The vectors of any number of texts, some thousands at a time, with the number of the first of them: only
        these are in memory."""
        start, texts = 0, iter(texts)
        while chunk := list(islice(texts, CHUNK_TEXTS)):
            yield start, self._encode(self._read(chunk, truncate))
            start += len(chunk)

    def write(
        self,
        texts: Iterable[str],
        path: Path | str,
        *,
        truncate: bool = False,
        track: Track = lambda items, total: items,
    ) -> int:
        """The vectors of all texts into a .npy file, which appears when it is complete; returns how many there are.
        `texts` are gone through twice. ValueError if they cannot be."""
        if iter(texts) is texts:
            raise ValueError("texts can be gone through once only, and are counted first: pass a list.")
        batches = -(-sum(1 for _ in texts) // CHUNK_TEXTS)
        found = track(self.stream(texts, truncate=truncate), batches)
        return write_vectors(Path(path), found, self.model.config.dim)

    def _encode(self, rows: list[tuple[list[int], list[int]]]) -> np.ndarray:
        """Long texts first, those of like lengths together, in batches of about as many tokens."""
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i][0]))
        out = np.empty((len(rows), self.model.config.dim), dtype=np.float32)
        while order:
            count = max(1, BATCH_TOKENS // max(1, len(rows[order[0]][0])))
            some, order = order[:count], order[count:]
            given = self._given([rows[i] for i in some])
            with evaluating(self.model):
                vectors = self.pool(self.model.encode(**given), given["keep"])
                vectors = F.normalize(vectors, dim=-1) if self.normalize else vectors
            out[some] = vectors.float().cpu().numpy()
        return out


@dataclass(frozen=True)
class Pooling:
    """What a checkpoint says of its vectors."""

    pool: Literal["mean", "first", "pooler"] = "mean"
    normalize: bool = False
    limit: int | None = None  # tokens of a text that are read


POOLS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "first"}
NEWER = {"mean": "mean", "cls": "first"}  # what its later versions write as `pooling_mode`


def read_pooling(folder: Path, pool: Any = None, normalize: bool | None = None) -> Pooling:
    """What modules.json and the files it names say, unless told otherwise; without it the defaults. ValueError for what
    would make other vectors there than here."""
    if not (folder / files.MODULES).is_file():
        return Pooling(pool or "mean", bool(normalize))
    steps = files.read_modules(folder / files.MODULES)
    if unknown := [kind for kind, _ in steps if kind not in ("Transformer", "Pooling", "Normalize")]:
        raise ValueError(
            f"{folder} has a step {unknown[0]!r} after its model: only Pooling and Normalize are known here."
        )
    places = [place for kind, place in steps if kind == "Pooling"]
    if pool is None and len(places) != 1:
        raise ValueError(f"{folder} has {len(places)} steps that pool: choose one by pool= (--pool).")
    said = {name: _json(folder / name) for name in (files.SENTENCE, files.PROMPTS, "tokenizer_config.json")}
    prompt, small = said[files.PROMPTS].get("default_prompt_name"), said[files.SENTENCE].get("do_lower_case")
    if prompt is not None or small:
        what = f"puts the prompt {prompt!r} before" if prompt is not None else "makes all letters small of"
        raise ValueError(f"{folder} {what} every text, which is not done here: do it, and take that out of its files.")
    given = [said[files.SENTENCE].get("max_seq_length"), said["tokenizer_config.json"].get("model_max_length")]
    limit = next((each for each in given if each is not None), None)
    if limit is not None and not (isinstance(limit, int | float) and limit > 0):
        raise ValueError(f"{folder} says max_seq_length {limit!r}: expected how many tokens of a text are read.")
    normal = any(kind == "Normalize" for kind, _ in steps) if normalize is None else normalize
    limit = None if limit is None else int(min(limit, 2**31))
    return Pooling(_pool(folder / places[0] / "config.json") if pool is None else pool, normal, limit)


def _json(path: Path) -> dict[str, Any]:
    return files.read_json(path) if path.is_file() else {}


def _pool(path: Path) -> Any:
    said = files.read_json(path)
    if said.get("pooling_mode") in NEWER:
        return NEWER[said["pooling_mode"]]
    wanted = [name for name, value in said.items() if name.startswith("pooling_mode_") and value is True]
    wanted += [str(said["pooling_mode"])] if said.get("pooling_mode") else []
    if len(wanted) != 1 or wanted[0] not in POOLS:
        raise ValueError(f"{path} asks for {' and '.join(wanted) or 'no pooling'}: expected one of {', '.join(POOLS)}.")
    return POOLS[wanted[0]]


def shares_of(scores: Tensor, model: Any) -> Tensor:
    """Scores (b, classes) as shares, as transformers has it: several labels may be true at once, each by itself, where
    the checkpoint says so; in a regression a label is a quantity, and its score that itself."""
    problem = model.published.get("problem_type")
    if problem == "regression":
        return scores
    alone = problem == "multi_label_classification" or len(model.head.labels) == 1
    return scores.sigmoid() if alone else scores.softmax(-1)


def most_probable(shares: Tensor, model: Any, top: int | None) -> list[Label]:
    order = shares.argsort(descending=True, stable=True)[:top].tolist()
    return [Label(model.head.labels[i], float(shares[i])) for i in order]


class TextClassifier(_Encoder):
    """Labels of a text, or of each of its words, as the checkpoint's head has learnt them."""

    def __init__(self, model: Any, tokenizer: TextTokenizer):
        super().__init__(model, tokenizer)
        if not hasattr(model.head, "labels"):
            raise ValueError("This checkpoint has no labels: train it with --task classify, or choose one that has.")
        self.words = isinstance(model.head, TokenClassify)

    def __call__(
        self, text: Text | Sequence[Text], *, top: int | None = None, truncate: bool = False
    ) -> list[Label] | list[WordLabel] | list[Any]:
        """Of a text its labels, the most probable first, at most `top`; of a list of texts a list of these. A pair of
        texts is a tuple. From a checkpoint that labels words, a `WordLabel` for each word instead."""
        if top is not None and top < 1:
            raise ValueError(f"top is {top}: expected at least 1.")
        one = isinstance(text, str | tuple)
        answers = self._answer([text] if one else list(text), top, truncate)
        return answers[0] if one else answers

    def _answer(self, texts: list[Any], top: int | None, truncate: bool) -> list[Any]:
        words = [self._words(text, truncate) for text in texts] if self.words else []
        rows = [each for each, _ in words] if self.words else self._read(texts, truncate)
        answers: list[Any] = [None] * len(texts)
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i][0]))
        while order:
            count = max(1, BATCH_TOKENS // max(1, len(rows[order[0]][0])))
            some, order = order[:count], order[count:]
            with evaluating(self.model):
                scores = self.model(**self._given([rows[i] for i in some])).float()
            shares = scores.softmax(-1) if self.words else shares_of(scores, self.model)
            for i, each in zip(some, shares):
                answers[i] = self._tagged(words[i][1], each) if self.words else most_probable(each, self.model, top)
        return answers

    def _words(self, text: Text, truncate: bool) -> tuple[tuple[list[int], list[int]], list[tuple[str, int]]]:
        """Ids and segments of a text read word by word, as in training; and the words, which are what stands between
        spaces, each with the place of its first piece."""
        if not isinstance(text, str):
            raise ValueError("This checkpoint labels words: pass one text, not a pair.")
        words = text.split()
        ids, numbers = self.tokenizer.encode_words(words, limit=self.limit, truncate=truncate)
        return (ids, [0] * len(ids)), [(word, numbers.index(i)) for i, word in enumerate(words) if i in numbers]

    def _tagged(self, words: list[tuple[str, int]], shares: Tensor) -> list[WordLabel]:
        """The label of a word is that of its first piece."""
        found, labels = [], self.model.head.labels
        for word, place in words:
            best = int(shares[place].argmax())
            found.append(WordLabel(word, labels[best], float(shares[place, best])))
        return found
