"""What is learnt from text alone: the next token (GPT-2), or the tokens that are hidden (BERT)."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scratchformers.checkpoints import hub
from scratchformers.checkpoints.pretrained import Generation, fingerprint
from scratchformers.generate import evaluating, generate
from scratchformers.models.bert import BERT, BERTConfig
from scratchformers.models.gpt2 import GPT2, GPT2Config
from scratchformers.text import BERT as SPECIAL
from scratchformers.text import CHUNK, TextTokenizer, characters, check_fits, pieces, train_bpe, train_wordpiece
from scratchformers.training import packing
from scratchformers.training.data import Windows, counts, generator, in_parts, to_stream
from scratchformers.training.documents import Documents, apart, digest, read_texts, survey
from scratchformers.training.loop import Batch, Settings, Task
from scratchformers.training.masking import Masking
from scratchformers.training.request import BPE, CHARACTERS, VOCAB, WORDPIECE, Facts, Request, Watch
from scratchformers.training.sources import copied, tokenizer_of

SAMPLE = 1 << 26  # characters from which a vocabulary is learnt, so that its words fit in memory
EPOCHS = 100  # at most, in one step
SAMPLED = 200  # tokens written at each evaluation, to be looked at
EVALUATED = 1024  # windows of the validation text at most, evenly spread, so that evaluation stays short
SHOWN = 48  # tokens of a text with hidden ones, to be looked at


@dataclass(frozen=True)
class MaskedSettings(Settings):
    masked: float = 0.15  # the share of tokens asked for
    whole_words: bool = False  # words are hidden whole
    cased: bool = False  # a WordPiece made from the text keeps capitals and accents


class OnWindows(Task):
    """A text in windows, and another of which windows side by side are held out."""

    unit = "token"
    most: int | None = EVALUATED  # windows held out that are looked at; None for all

    def __init__(self, model: Any, tokenizer: TextTokenizer, windows: Windows, held_out: Tensor, settings: Settings):
        self.model, self.tokenizer, self.batch_size = model, tokenizer, settings.batch
        self.train, self.held_out, self.rows = windows, held_out, windows.rows
        self.trivial = math.log(model.config.vocab)
        self._thread = ThreadPoolExecutor(1, "tokens")
        self._coming: Future[dict[tuple[int, int], Tensor]] | None = None
        if settings.batch > EPOCHS * self.rows:
            what = f"batch is {settings.batch} and the text has {self.rows} windows"
            raise ValueError(f"{what}: expected at most {EPOCHS * self.rows}, which is each of them {EPOCHS} times.")
        if len(held_out) < 2:
            raise ValueError(f"The validation text has {len(held_out)} tokens, too few to predict one: give more text.")

    def expect(self, examples: list[tuple[int, int]]) -> None:
        """Reads them in a thread: where the ids lie in a file, they may have to come from the disk."""
        self._coming = self._thread.submit(lambda: {each: self.train[each] for each in examples})

    def windows(self, examples: list[tuple[int, int]]) -> list[Tensor]:
        there = {} if self._coming is None else self._coming.result()
        return [there[each] if each in there else self.train[each] for each in examples]

    def side_by_side(self) -> Iterator[tuple[int, list[Tensor]]]:
        """The held-out text in batches of windows, with the number of the first; the last may be shorter, and alone."""
        length, ahead = self.train.length, self.train.ahead
        starts = range(0, len(self.held_out) - ahead, length)
        if self.most is not None and len(starts) > self.most:
            starts = [starts[i * len(starts) // self.most] for i in range(self.most)]
        windows = [self.held_out[start : start + length + ahead].long() for start in starts]
        for size in sorted({len(window) for window in windows}, reverse=True):
            alike = [(i, window) for i, window in enumerate(windows) if len(window) == size]
            for i in range(0, len(alike), self.batch_size):
                some = alike[i : i + self.batch_size]
                yield some[0][0], [window for _, window in some]


class NextToken(OnWindows):
    """Each token from those before it, on a stream of text."""

    def __init__(self, model: Any, tokenizer: TextTokenizer, train: Tensor, valid: Tensor, settings: Settings):
        windows = Windows(train, settings.length or model.config.length, seed=settings.seed)
        super().__init__(model, tokenizer, windows, valid, settings)

    def batch(self, examples: list[tuple[int, int]]) -> Batch:
        return _shifted(self.windows(examples))

    def targets(self, batch: Batch) -> int:
        return batch["targets"].numel()

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(model(batch["ids"]).flatten(0, 1).float(), batch["targets"].flatten(), reduction="sum")

    def valid(self) -> Iterator[Batch]:
        return (_shifted(windows) for _, windows in self.side_by_side())

    def sample(self, model: Any) -> str:
        """What it writes after the first words of the validation text, by the same draw every time."""
        prompt = self.held_out[: max(1, min(16, model.config.length // 4))].long()[None]
        device = next(model.parameters()).device
        settings = {"temperature": 0.8, "generator": torch.Generator(device).manual_seed(0), "stop": (), "slide": True}
        ids = generate(model, prompt.to(device), max_new_tokens=SAMPLED, **settings)
        return self.tokenizer.decode(ids[0].tolist())


def _shifted(windows: Sequence[Tensor]) -> Batch:
    rows = torch.stack([*windows])
    return {"ids": rows[:, :-1], "targets": rows[:, 1:]}


class Masked(OnWindows):
    """The tokens that are hidden, from all the others: the loss is a mean over those asked for, and no others.

    A window of the stream stands between [CLS] and [SEP], if the tokeniser puts them around a text. What is hidden
    follows from the seed, the epoch and the window, so that it is new each time and a resumed run hides the same.
    """

    def __init__(self, model: Any, tokenizer: TextTokenizer, train: Tensor, valid: Tensor, settings: MaskedSettings):
        self.masking = Masking(tokenizer, settings.masked, settings.whole_words)
        self.seed, around = settings.seed, tokenizer.around()
        self.before, self.after = (torch.tensor(ids, dtype=torch.long) for ids in around)
        length = (settings.length or model.config.length) - sum(map(len, around))
        if length < 2:
            raise ValueError(f"length is {settings.length}: expected at least {2 + sum(map(len, around))}.")
        super().__init__(model, tokenizer, Windows(train, length, seed=settings.seed, ahead=0), valid, settings)
        if not any(bool(torch.isin(part, self.masking.ordinary).any()) for part in in_parts(valid)):
            raise ValueError("The validation text has no token that could be hidden: the tokeniser knows none of it.")
        self.baselines = unigram(train, valid, self.masking.ordinary, model.config.vocab)

    def batch(self, examples: list[tuple[int, int]]) -> Batch:
        return self._masked(self.windows(examples), [generator(self.seed, *example, 2) for example in examples])

    def _masked(self, windows: Sequence[Tensor], generators: Sequence[torch.Generator]) -> Batch:
        whole = [torch.cat([self.before, window, self.after]) for window in windows]
        seen, chosen = zip(*(self.masking(row, each) for row, each in zip(whole, generators)))
        return {"ids": torch.stack(seen), "chosen": torch.stack(chosen), "labels": torch.stack(whole)}

    def targets(self, batch: Batch) -> int:
        return int(batch["chosen"].sum())

    def _scores(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """Of the tokens asked for alone: the head, which is most of the work, sees no other."""
        states, chosen = model.encode(batch["ids"]), batch["chosen"]
        return model.head(states[chosen][None])[0].float(), batch["labels"][chosen]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(*self._scores(model, batch), reduction="sum")

    def measure(self, model: nn.Module, batch: Batch) -> dict[str, float]:
        scores, labels = self._scores(model, batch)
        right = (scores.argmax(-1) == labels).sum()
        return {"loss": float(F.cross_entropy(scores, labels, reduction="sum")), "accuracy": float(right)}

    def valid(self) -> Iterator[Batch]:
        """The same tokens hidden at every evaluation, and in every run."""
        for first, windows in self.side_by_side():
            yield self._masked(windows, [generator(0, first + i, 3) for i in range(len(windows))])

    def sample(self, model: Any) -> str:
        """The first words of the validation text, and in brackets what it says of the hidden ones."""
        window = self.held_out[: min(SHOWN, self.train.length)].long()
        batch = self._masked([window], [generator(0, 0, 4)])
        device = next(model.parameters()).device
        with evaluating(model):
            guesses = model(batch["ids"].to(device))[0].argmax(-1).tolist()
        return self._shown(batch["labels"][0].tolist(), batch["chosen"][0].tolist(), guesses)

    def _shown(self, labels: list[int], chosen: list[bool], guesses: list[int]) -> str:
        said, run = [], []
        for label, asked, guess in zip(labels, chosen, guesses):
            if label in self.tokenizer.special:
                continue
            if not asked:
                run.append(label)
                continue
            said += [self.tokenizer.decode(run)] if run else []
            truth, answer = self.tokenizer.decode([label]), self.tokenizer.decode([guess])
            said.append(f"[{answer}]" if guess == label else f"[{answer}, not {truth}]")
            run = []
        joint = "" if self.tokenizer.alphabet else " "
        return joint.join([*said, self.tokenizer.decode(run)] if run else said)


def unigram(train: Tensor, valid: Tensor, ordinary: Tensor, vocab: int) -> dict[str, float]:
    """What one knows who has only counted: the loss of the training text's frequencies (each id once more) on the
    validation text, and the share there of the most frequent token."""
    learnt, asked = (counts(each, vocab)[ordinary].double() for each in (train, valid))
    frequency, held_out = (learnt + 1) / (learnt + 1).sum(), asked / asked.sum()
    accuracy = float(held_out[frequency.argmax()])
    return {"unigram_loss": -float((held_out * frequency.log()).sum()), "unigram_accuracy": accuracy}


def prepare_next_token(
    request: Request, settings: Settings, fields: Mapping[str, Any]
) -> tuple[NextToken, Facts, list[str]]:
    """A GPT-2, new or from a checkpoint, and its text, whose last tenth is held out where no other text is given."""
    text = _Text(request, settings, fields, ahead=1)
    model = text.model
    if model is None:
        torch.manual_seed(settings.seed)
        model = GPT2(GPT2Config(**{**fields, "vocab": text.tokenizer.vocab}))
        if (end := text.tokenizer.end) is not None:
            begins = any(
                bool((part == end).any()) for part in in_parts(text.train)
            )  # else the model never saw what follows it
            model.generation = Generation(start=end if begins else None, end=(end,))
        model.assets = text.tokenizer.files
    task = NextToken(model.to(request.device), text.tokenizer, text.train, text.valid, settings)
    return task, text.facts(model), text.said


def prepare_masked(
    request: Request, settings: MaskedSettings, fields: Mapping[str, Any]
) -> tuple[Masked, Facts, list[str]]:
    """A BERT with its masked-language-model head, new or from a checkpoint, and its text as for GPT-2."""
    special = tuple(SPECIAL[name] for name in (PLAIN if request.preset == SIMPLE else SPECIAL))
    text = _Text(request, settings, fields, ahead=0, special=special)
    model = text.model
    if model is None:
        torch.manual_seed(settings.seed)
        model = BERT(BERTConfig(**{**fields, "vocab": text.tokenizer.vocab}))
        model.generation = Generation(pad=text.tokenizer.role("pad"))
    elif model.head is None or hasattr(model.head, "labels"):
        raise ValueError(f"{request.source} has no head that says what is hidden: choose a checkpoint that has one.")
    if request.preset == SIMPLE and any(text.tokenizer.around()):
        raise ValueError(
            "The preset simple reads text alone, and this tokeniser puts [CLS] or [SEP] around it: take another."
        )
    model.assets = text.tokenizer.files  # and nothing on how to pool, which it has not learnt
    model.published = model.published | {"scratchformers": {"tokenizer": text.tokenizer.digest()}}
    task = Masked(model.to(request.device), text.tokenizer, text.train, text.valid, settings)
    return task, text.facts(model), text.said


SIMPLE, PLAIN = "simple", ("pad", "unknown", "mask")  # the preset that reads text alone, and its special tokens


class _Text:
    """The user's text as ids, its tokeniser, and the model of a source, if one was given."""

    def __init__(
        self, request: Request, settings: Any, fields: Mapping[str, Any], *, ahead: int, special: Sequence[str] = ()
    ):
        if request.data is None:
            raise ValueError("There is nothing to train on: pass --data FILE_OR_FOLDER.")
        if request.columns:
            raise ValueError("--column names a column of labelled texts, which go with --task classify: leave it out.")
        self.texts = read_texts(request.data)
        if request.source is not None:  # of a hub id, model and tokeniser from one commit
            request = dataclasses.replace(request, source=hub.find(request.source))
        held_out = None if request.valid is None else read_texts(request.valid)
        self.parts = [_Part.whole(each, request) for each in (self.texts, held_out) if each is not None]
        self.sha256 = self.parts[0].name
        if held_out is None:
            self.parts = self.parts[0].split()
        self.model: Any = None if request.source is None else copied(request.source, settings, fields)
        cased = getattr(settings, "cased", True)
        self.tokenizer, self.said = _tokenizer(request, *self.parts, special=special, cased=cased)
        if self.model is not None:
            check_fits(self.tokenizer, self.model.config.vocab)
        folder = request.out / packing.FOLDER
        (self.train, _), (self.valid, self.held_out) = (
            part.ids(self.tokenizer, folder / f"{name}.ids") for name, part in zip(("train", "valid"), self.parts)
        )
        if self.model is None:  # said before a model is made
            Windows(self.train, max(1, settings.length - self._around(ahead)), seed=0, ahead=ahead)
        asked = request.vocab or VOCAB
        few = request.tokenizer in (BPE, WORDPIECE) and self.tokenizer.vocab < asked
        self.said += [f"The text gave a vocabulary of {self.tokenizer.vocab} ids, and no more."] if few else []

    def _around(self, ahead: int) -> int:
        return 0 if ahead else sum(map(len, self.tokenizer.around()))

    def facts(self, model: Any) -> Facts:
        facts: Facts = {
            "data": {"sha256": self.sha256, "tokens": len(self.train)},
            "valid": {"sha256": self.held_out, "tokens": len(self.valid)},
            "tokenizer": {"sha256": self.tokenizer.digest(), "vocab": self.tokenizer.vocab},
        }
        return facts if self.model is None else {**facts, "source": {"sha256": fingerprint(model)}}


@dataclass(frozen=True)
class _Part:
    """Texts that were looked at: how many characters and bytes (about) they have, whether they are many, and a name
    that no others have, by their digest."""

    texts: Documents
    size: int
    bytes: int
    many: bool
    first: int  # characters of the first
    name: str
    watch: Watch

    @classmethod
    def whole(cls, texts: Documents, request: Request) -> "_Part":
        found = survey(packing.watched(texts.pieces(), request.watch, "Reading", texts.bytes))
        return cls(texts, found.size, found.bytes, found.documents > 1, found.first, found.sha256, request.watch)

    def split(self) -> "list[_Part]":
        """All but the last tenth, and that."""
        cut = self.size * 9 // 10
        part = partial(dataclasses.replace, self)
        return [
            part(texts=self.texts.part(0, cut), size=cut, bytes=self.bytes * 9 // 10, many=self.first < cut,
                 name=f"{self.name} to {cut}"),
            part(texts=self.texts.part(cut, self.size), size=self.size - cut, bytes=self.bytes // 10,
                 name=f"{self.name} from {cut}"),
        ]  # fmt: skip

    def read(self, what: str, *, most: float = math.inf) -> Iterator[str]:
        """Of a long text pieces, of which none cuts a word: every so many-th, so that they are `most` characters or
        about so many; of a short one each document."""
        if self.size < packing.SMALL:
            yield from self.texts
            return
        documents = apart(packing.watched(self.texts.pieces(), self.watch, what, self.bytes))
        cut = (piece for document in documents for piece in pieces(document, CHUNK))
        yield from islice(cut, 0, None, max(1, math.ceil(self.size / most)))

    def ids(self, tokenizer: TextTokenizer, path: Path) -> tuple[Tensor, str]:
        """In memory, or mapped from the file where they are many; and the sha256 of the texts."""
        if self.size < packing.SMALL:
            return to_stream(self.texts, tokenizer), digest(self.texts)
        return packing.pack(self.texts, tokenizer, path, text=self.name, watch=self.watch, size=self.bytes)


def _tokenizer(
    request: Request, train: _Part, valid: _Part, *, special: Sequence[str], cased: bool
) -> tuple[TextTokenizer, list[str]]:
    """The one asked for, and what there is to say about it. One that is learnt sees the text to train on only, and of a
    long one a sample; characters are taken from all of the text, because one that is missing has no id."""
    learnt, vocab = WORDPIECE if special else BPE, VOCAB if request.vocab is None else request.vocab
    if request.vocab is not None and request.tokenizer != learnt:
        what = "WordPiece" if special else "BPE"
        raise ValueError(f"--vocab {request.vocab} sizes a {what} made from your text: add --tokenizer {learnt}.")
    if request.source is None and request.tokenizer in {BPE, WORDPIECE} - {learnt}:
        raise ValueError(f"--tokenizer {request.tokenizer} is not for {request.recipe}: expected {learnt}.")
    share = f"of {train.size:,} characters every {math.ceil(train.size / SAMPLE)}th million"
    said = [f"The vocabulary was learnt from a sample: {share}."] if train.size > SAMPLE else []
    if request.source is None and request.tokenizer == BPE:
        return train_bpe(train.read("Vocabulary", most=SAMPLE), vocab), said
    if request.source is None and request.tokenizer == WORDPIECE:
        return train_wordpiece(train.read("Vocabulary", most=SAMPLE), vocab, lower=not cased, special=special), said
    if request.source is None and request.tokenizer in (None, CHARACTERS):
        all_text = (text for part in (train, valid) for text in part.read("Characters"))
        return characters(all_text, end=train.many and not special, special=special), []
    return tokenizer_of(request.source, request.tokenizer), []
