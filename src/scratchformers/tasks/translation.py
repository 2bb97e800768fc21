"""A text in, another out: its translation, or its summary."""

import contextlib
import dataclasses
import hashlib
import json
import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Self, overload

import torch
from jaxtyping import Float
from torch import Tensor

from scratchformers import models
from scratchformers.beams import beam_search
from scratchformers.checkpoints import hub
from scratchformers.checkpoints.pretrained import Generation, fingerprint
from scratchformers.generate import Decoding, Sampling, evaluating
from scratchformers.models.encoder_decoder import EncoderDecoder
from scratchformers.text import TextTokenizer, check_belongs, check_fits, padded

BLOCK = 512  # texts read at once, so that those of like lengths come together
ROWS, TOKENS = 64, 4096  # a batch has at most so many texts, and tokens of the source, padding included
TASKS = ("translate", "summarise")
TOO_LONG = ("error", "truncate", "split")
# A sentence ends before white space, or, as in Chinese, without any.
SENTENCES = re.compile(r"(?<=[.!?…])[\"'»”’)\]]*\s+|(?<=[。！？])\s*|\s*\n\s*")
MBARTS, MARIANS = re.compile(r"[a-z]{2,3}_[A-Z]{2}"), re.compile(r">>.+<<")  # how vocabularies write a language


@dataclass(frozen=True)
class Translation:
    """`score` is the log-probability of the tokens written, the one that ends the text among them: without beams their
    mean, with beams their sum divided by their number to the power of the length penalty, by which beams are ranked.
    Both are below 0, and the same where the penalty is 1. Of a text translated in parts it is the mean over these; an
    empty one has 0."""

    text: str
    score: float


@dataclass(frozen=True, kw_only=True)
class Translating:
    """What is asked of a Translator beside the text, checked. What is None, the checkpoint says."""

    beams: int | None = None  # 1 takes the most probable token each time
    nbest: int | None = None
    max_new_tokens: int | None = None
    length_penalty: float | None = None
    temperature: float = 0.0  # above 0, tokens are drawn, and there are no beams
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    too_long: Literal["error", "truncate", "split"] = "error"
    source_language: str | None = None
    target_language: str | None = None
    batch: int = ROWS

    def __post_init__(self):
        for name in ("beams", "nbest", "max_new_tokens", "batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}: expected at least 1.")
        if self.length_penalty is not None and not abs(self.length_penalty) <= 100:
            raise ValueError(f"length_penalty is {self.length_penalty}: expected a number from -100 to 100.")
        if self.too_long not in TOO_LONG:
            raise ValueError(f"too_long is {self.too_long!r}: expected one of {', '.join(TOO_LONG)}.")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}: expected 0 <= seed < 2**63.")
        Sampling(self.temperature, self.top_k, self.top_p)
        if self.temperature and {self.beams, self.nbest, self.length_penalty} - {None, 1}:
            raise ValueError(
                f"temperature is {self.temperature}, and what is drawn has no beams: leave beams, nbest and "
                "length_penalty out, or the temperature."
            )


class Translator:
    """Translates: `Translator.from_pretrained(source)("Ein Hund.")`. With the task `summarise` it decodes by what the
    checkpoint's config.json says of summaries, where that says anything (`task_specific_params`)."""

    def __init__(self, model: Any, tokenizer: TextTokenizer, *, task: str = "translate"):
        if task not in TASKS:
            raise ValueError(f"task is {task!r}: expected one of {', '.join(TASKS)}.")
        check_translates(model)
        _check_fits(tokenizer, model.config.vocab)
        _check_fits(tokenizer.target, vocab := model.config.target_vocab or model.config.vocab)
        self.model, self.tokenizer, self.task, self.vocab = model, tokenizer, task, vocab
        self.unspelt = 0  # texts so far of which the vocabulary cannot spell a part

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        task: str = "translate",
        revision: str | None = None,
        local_files_only: bool = False,
        **options: Any,
    ) -> Self:
        """`options` are those of `load`. Model and tokeniser come from one commit, whatever happens to a branch."""
        folder = hub.find(source, revision=revision, local_files_only=local_files_only)
        model = models.load(folder, **options)
        check_translates(model, f"{source} holds a ")
        tokenizer = models.load_tokenizer(folder)
        check_belongs(tokenizer, model)
        return cls(model, tokenizer, task=task)

    def digest(self) -> str:
        """sha256 over all that a translation depends on but its settings: weights, tokeniser, how it is decoded."""
        rules = json.dumps(self._rules(Translating()).write(self.model.first_id), sort_keys=True, default=str)
        said = [fingerprint(self.model), self.tokenizer.digest(), rules]
        return hashlib.sha256("\n".join(said).encode()).hexdigest()

    @overload
    def __call__(self, text: str, **settings: Any) -> Translation: ...
    @overload
    def __call__(self, text: Sequence[str], **settings: Any) -> list[Translation]: ...
    def __call__(self, text: Any, **settings: Any) -> Any:
        """The translation of a text, or of each of a list; with nbest=n the n best of each, best first, in a list.

        settings: beams, length_penalty, max_new_tokens (by default as the checkpoint's generation config says, else one
        beam and all the room there is); temperature, top_k, top_p and seed to draw instead: text i of a list draws with
        seed + i; too_long: what becomes of a text that the model cannot read whole, "error", "truncate", which leaves
        its end out, or "split", which translates it in parts, cut at the ends of sentences, else between words;
        source_language and target_language, where the vocabulary has languages, as it calls them; batch: texts
        translated at once, which changes no translation.

        Raises ValueError for what cannot be, and for texts the vocabulary cannot spell the larger part of; a smaller
        part is a warning.
        """
        asked, texts = Translating(**settings), [text] if isinstance(text, str) else list(text)
        before, _ = self.unspelt, self.check(texts, **settings)
        if some := self.unspelt - before:
            warnings.warn(f"{some} of {len(texts)} texts hold what the vocabulary cannot spell.", stacklevel=2)
        answers = self._translate(texts, 0, asked, lambda count: None)
        return answers[0] if isinstance(text, str) else answers

    def stream(
        self,
        texts: Iterable[str],
        *,
        first: int = 0,
        advance: Callable[[int], Any] = lambda count: None,
        **settings: Any,
    ) -> Iterator[Any]:
        """What a call with a list gives, one by one, of any number of texts: only some hundreds are in memory. Nothing
        is checked beforehand (see `check`): the first text that cannot be translated ends it.

        first: the number of the first text, which its seed follows. advance: called with how many more are done.
        """
        asked, left = Translating(**settings), iter(texts)
        return self._stream(left, first, asked, advance)

    def _stream(self, left: Iterator[str], first: int, asked: Translating, advance: Any) -> Iterator[Any]:
        while block := list(islice(left, BLOCK)):
            yield from self._translate(block, first, asked, advance)
            first += len(block)

    def check(self, texts: Iterable[str], *, name: str = "", **settings: Any) -> int:
        """How many texts there are, any number of them. ValueError, before anything is translated, for settings that do
        not suit the model, for the first text that is too long, which `name` and its number are put before, and if of
        all together the vocabulary can spell less than half."""
        asked, count, spelt, strange, cut = Translating(**settings), 0, 0, 0, self.tokenizer.cut
        self._search(asked)
        for count, text in enumerate(texts, 1):
            try:
                rows = self._read(text, asked)
            except ValueError as error:
                raise ValueError(f"{name}, line {count}: {error}" if name else str(error)) from None
            found = sum(map(self.tokenizer.unknown, rows))
            spelt += sum(id not in self._nothing for row in rows for id in row)
            strange, self.unspelt = strange + found, self.unspelt + (found > 0)
        self.tokenizer.cut = cut  # which counts those that were translated
        if 2 * strange >= spelt > 0:
            raise ValueError(
                f"Of {spelt} tokens the vocabulary cannot spell {strange}: expected a text in the language that the "
                "model reads."
            )
        return count

    # --- what goes in

    def _read(self, text: str, asked: Translating) -> list[list[int]]:
        """The ids of a text, or of each of the parts it is split into; of an empty one none."""
        if not text.strip():
            return []
        ids, limit = self._ids(text, asked), self.model.config.length
        if len(ids) <= limit:
            return [ids]
        if asked.too_long == "truncate":
            return [self._ids(text, asked, limit=limit)]
        if asked.too_long == "split":
            return [self._ids(part, asked) for part in split(text, lambda part: len(self._ids(part, asked)) <= limit)]
        raise ValueError(
            f"The text {text[:40]!r}... has {len(ids)} tokens and the model takes {limit}: pass a shorter one, or "
            "choose by too_long (--too-long) to split it or to truncate it."
        )

    def _ids(self, text: str, asked: Translating, limit: int | None = None) -> list[int]:
        target, source = asked.target_language, asked.source_language
        if target is not None and MARIANS.fullmatch(target := self._named("target_language", target)):
            text = f"{target} {text}"
        ((ids, _),) = self.tokenizer.encode_batch([text], limit=limit, truncate=limit is not None)
        if source is None:
            return ids
        source = self._named("source_language", source)
        return [self._languages[source] if id in self._languages.values() else id for id in ids]

    @cached_property
    def _nothing(self) -> frozenset[int | None]:
        """Ids that spell nothing: special tokens, but for what is unknown, and the space before that."""
        space = self.tokenizer.tokenizer.token_to_id("▁")
        return (self.tokenizer.special - {self.tokenizer.role("unknown")}) | {space}

    @cached_property
    def _languages(self) -> dict[str, int]:
        """Ids of languages by the names that the vocabulary has for them."""
        ids, special = self.tokenizer.tokenizer.get_vocab(with_added_tokens=True), self.tokenizer.special
        return {
            name: id for name, id in ids.items()
            if MARIANS.fullmatch(name) or (id in special and MBARTS.fullmatch(name))
        }  # fmt: skip

    def _named(self, what: str, language: str) -> str:
        """The language as the vocabulary writes it. ValueError if it does not."""
        names = [name for name in (language, f">>{language}<<") if name in self._languages]
        if names and not (what == "source_language" and MARIANS.fullmatch(names[0])):
            return names[0]
        known = sorted(name.strip("<>") for name in self._languages)
        if what == "source_language" and any(map(MARIANS.fullmatch, self._languages)):
            known = []  # a Marian is told what to write, and reads all it can
        mend = f"expected one of {' '.join(known)}" if known else "the vocabulary has none, so leave it out"
        raise ValueError(f"{what} is {language!r}: {mend}.")

    # --- how it is decoded

    def _rules(self, asked: Translating) -> Generation:
        """The checkpoint's generation config, as the task and the language change it."""
        rules, first = self.model.generation, self.model.first_id
        special = (self.model.published.get("task_specific_params") or {}).get("summarization")
        if self.task == "summarise" and special:
            rules = Generation.read({**rules.write(first), **special}, first)
        if asked.target_language is None:
            return rules
        name = self._named("target_language", asked.target_language)
        if MARIANS.fullmatch(name):
            return rules
        begins = rules.start in self._languages.values()  # mBART's texts do, those of mBART-50 have it second
        return dataclasses.replace(rules, **{"start" if begins else "forced_start": self._languages[name]})

    @contextlib.contextmanager
    def _following(self, asked: Translating) -> Iterator[None]:
        """The model decodes by the rules of what is asked, and afterwards by its own."""
        own = self.model.generation
        self.model.generation = self._rules(asked)
        try:
            yield
        finally:
            self.model.generation = own

    def _search(self, asked: Translating) -> tuple[int, int]:
        """How many beams, and how many tokens at most. ValueError for what the model does not allow."""
        rules, room = self._rules(asked), self.model.config.length - 1
        nbest, most = asked.nbest or 1, asked.max_new_tokens
        said = 1 if asked.temperature else rules.beams
        beams = asked.beams or max(said, nbest)
        if not nbest <= beams <= self.vocab:
            what = f"nbest is {nbest}" if beams < nbest else f"beams is {beams}"
            limit = f"{beams}, the beams there are" if beams < nbest else f"{self.vocab}, the tokens there are"
            raise ValueError(f"{what}: expected 1 to {limit}.")
        if beams == 1 and asked.length_penalty is not None:
            raise ValueError("length_penalty ranks beams, and there is one: leave it out, or ask for more beams.")
        if most is not None and most > room:
            raise ValueError(f"max_new_tokens is {most}: expected at most {room}, the positions of the model less one.")
        limits = [rules.max_new_tokens, None if rules.max_length is None else rules.max_length - 1]
        limits = [limit for limit in limits if limit is not None][:1]
        return beams, most or max(1, min([room, *limits]))

    def _translate(self, texts: list[str], first: int, asked: Translating, advance: Any) -> list[Any]:
        """Long texts first, those of like lengths together; the order of the answers is that of the texts."""
        parts = [(i, ids) for i, text in enumerate(texts) for ids in self._read(text, asked)]
        found: list[list[Translation]] = [[] for _ in parts]
        left = Counter(i for i, _ in parts)
        advance(len(texts) - len(left))  # the empty ones
        order = sorted(range(len(parts)), key=lambda j: -len(parts[j][1]))
        with self._following(asked):
            while order:
                count = max(1, min(asked.batch, TOKENS // len(parts[order[0]][1])))
                some, order = order[:count], order[count:]
                numbers, before = [parts[j][0] for j in some], len(+left)
                for j, answers in zip(some, self._decode([parts[j][1] for j in some], first, numbers, asked)):
                    found[j] = answers
                left.subtract(numbers)
                advance(before - len(+left))
        by_text: list[list[list[Translation]]] = [[] for _ in texts]
        for (i, _), answers in zip(parts, found):
            by_text[i].append(answers)
        joined = [_joined(each) for each in by_text]
        return joined if asked.nbest else [each[0] for each in joined]

    def _decode(self, rows: list[list[int]], first: int, numbers: list[int], asked: Translating) -> list[Any]:
        """Of each row its best translations; row i is of text `first + numbers[i]`."""
        beams, most = self._search(asked)
        device = next(self.model.parameters()).device
        given = {name: x.to(device) for name, x in padded([(row, []) for row in rows]).items()}
        ids, keep = given["ids"], given["keep"]
        if beams > 1:
            found, scores = beam_search(
                self.model, ids, keep=keep, beams=beams, max_new_tokens=most, length_penalty=asked.length_penalty,
                nbest=asked.nbest or 1,
            )  # fmt: skip
            pairs = zip(found[:, :, 1:].tolist(), scores.tolist())
            return [
                [Translation(self._spelt(text), score) for text, score in zip(*row) if score > -math.inf]
                for row in pairs
            ]  # fewer, where there are no more
        generators = None
        if asked.seed is not None:
            seeds = [(asked.seed + first + number) % 2**63 for number in numbers]
            generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        sampling = Sampling(asked.temperature, asked.top_k, asked.top_p, generator=generators)
        decoding = _Scored(self.model, ids, keep=keep, max_new_tokens=most, sampling=sampling)
        with evaluating(self.model):
            for _ in decoding:
                pass
        means = [sum(row) / len(row) for row in decoding.scores]
        return [[Translation(self._spelt(text[1:]), mean)] for text, mean in zip(decoding.texts, means)]

    def _spelt(self, ids: list[int]) -> str:
        """What is written before the end, without special tokens and without ids that the vocabulary lacks."""
        target, ends = self.tokenizer.target, self.model.generation.end
        stop = next((i for i, id in enumerate(ids) if id in ends), len(ids))
        return target.decode([id for id in ids[:stop] if id < target.vocab and id not in target.special]).strip()


class _Scored(Decoding):
    """That keeps the log-probability of each id it takes, as the model has it, whatever the rules make of it."""

    def __init__(self, *given: Any, **more: Any):
        super().__init__(*given, **more)
        self.scores: list[list[float]] = [[] for _ in self.texts]

    def __next__(self) -> list[int | None]:
        new = super().__next__()
        chosen = torch.tensor([[new[row] or 0] for row in self.rows], device=self.seen.device)
        log = self.seen.gather(1, chosen)[:, 0] - self.seen.logsumexp(-1)
        for row, score in zip(self.rows, log.tolist()):
            self.scores[row] += [] if new[row] is None else [score]
        return new

    def _scores(self) -> Float[Tensor, "b vocab"]:
        self.seen = super()._scores()
        return self.seen


def check_translates(model: Any, what: str = "") -> None:
    """ValueError unless it is an encoder-decoder; `what` goes before its kind."""
    if not isinstance(model, EncoderDecoder):
        raise ValueError(
            f"{what}{type(model).__name__}, which does not translate: expected an encoder-decoder, such as BART, mBART "
            "or Marian."
        )


def _check_fits(tokenizer: TextTokenizer, vocab: int) -> None:
    """As `check_fits`, but for special tokens: some BARTs lack the last, <mask>, which no text needs."""
    if tokenizer.vocab - sum(id >= vocab for id in tokenizer.special) > vocab:
        check_fits(tokenizer, vocab)


def _joined(parts: list[list[Translation]]) -> list[Translation]:
    """The best of a text from those of its parts, in their order; where it has none, it is empty."""
    ranks = [list(rank) for rank in zip(*parts)] or [[Translation("", 0.0)]]
    return [
        Translation(" ".join(each.text for each in rank), sum(each.score for each in rank) / len(rank))
        for rank in ranks
    ]


def split(text: str, fits: Callable[[str], bool]) -> list[str]:
    """The text in parts that fit: whole if it does, else its sentences, else halves, cut at the white space next to the
    middle, or where there is none in the middle of a word. ValueError if not even a character fits."""
    text = text.strip()
    if not text or fits(text):
        return [text][: len(text)]
    if len(text) == 1:
        raise ValueError(f"The model reads so little that not even {text!r} fits: choose a larger one.")
    sentences = [part for part in _sentences(text) if part]
    if len(sentences) == 1:
        middle = min((m.start() for m in re.finditer(r"\s", text)), key=lambda at: abs(2 * at - len(text)), default=0)
        sentences = [text[: middle or len(text) // 2], text[middle or len(text) // 2 :]]
    return [part for sentence in sentences for part in split(sentence, fits)]


def _sentences(text: str) -> list[str]:
    ends = [match.end() for match in SENTENCES.finditer(text)]
    return [text[a:b].strip() for a, b in zip([0, *ends], [*ends, len(text)])]
