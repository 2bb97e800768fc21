"""Texts with labels, one for each text or one for each word, and what is learnt from them."""

import csv
import dataclasses
import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scratchformers.checkpoints import hub
from scratchformers.checkpoints.pretrained import Generation, fingerprint
from scratchformers.generate import evaluating
from scratchformers.heads import Classify, TokenClassify
from scratchformers.models.bert import BERT, BERTConfig
from scratchformers.text import BERT as SPECIAL
from scratchformers.text import TextTokenizer, characters, check_fits, check_segments, padded, train_wordpiece
from scratchformers.training.data import generator
from scratchformers.training.documents import read_json_lines, string
from scratchformers.training.loop import Batch, Settings, Task
from scratchformers.training.request import BPE, CHARACTERS, VOCAB, WORDPIECE, Facts, Request
from scratchformers.training.sources import copied, tokenizer_of

IGNORED = -100  # the target of a token that has no label: padding, special tokens, all but the first piece of a word
COLUMNS = {"text": "text", "pair": "pair", "label": "label"}  # what a column is to us, and its name unless told
SHOWN = 6  # validation examples to be looked at


@dataclass(frozen=True)
class LabelledSettings(Settings):
    truncate: bool = False  # the end of a text that is too long is left out; else it is an error
    cased: bool = False  # a WordPiece made from the texts keeps capitals and accents


@dataclass(frozen=True)
class Example:
    """A text, or a pair, and its label; or words, and a label each. `where` is its file and line."""

    text: Any
    label: Any
    where: tuple[str, int] = field(default=("the data", 0), compare=False)


def read_labelled(path: Path, columns: Mapping[str, str]) -> list[Example]:
    """The rows of a .tsv, .csv or .jsonl file. Their columns are `text` and `label` (and `pair`, the second text of a
    pair) unless `columns` says other names. ValueError with file and line for what is missing."""
    names = {**COLUMNS, **columns}
    if unknown := sorted(set(columns) - set(COLUMNS)):
        raise ValueError(f"There is no column for {', '.join(unknown)}: expected text, label or pair.")
    found = [_example(path, line, row, names, "pair" in columns) for line, row in read_rows(path)]
    if not found:
        raise ValueError(f"{path} holds no examples: expected a line with the names of the columns, then one for each.")
    return found


def read_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Each with the number of its line, the last of several."""
    if path.suffix == ".jsonl":
        yield from ((int(where.rpartition(" ")[2]), row) for where, row in read_json_lines(path))
        return
    if path.suffix not in (".tsv", ".csv"):
        raise ValueError(f"{path} is none of .tsv, .csv and .jsonl: give it the name of what it is.")
    plain: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if path.suffix == ".tsv" else {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, **plain)
            for row in rows:
                if None in row or None in row.values():
                    what = "more" if None in row else "fewer"
                    raise ValueError(
                        f"{path}, line {rows.line_num}, has {what} fields than the first line names, which are "
                        f"{', '.join(map(repr, rows.fieldnames or ()))}."
                    )
                yield rows.line_num, row
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason}): convert it.") from None
    except csv.Error as error:
        raise ValueError(f"{path} is no {path.suffix[1:].upper()} file ({error}).") from None


def _example(path: Path, line: int, row: Mapping[str, Any], names: Mapping[str, str], paired: bool) -> Example:
    where = f"{path}, line {line}"
    for what in ("text", "label", *["pair"][: int(paired)]):
        if names[what] not in row:
            held = ", ".join(repr(name) for name in row if name is not None)
            raise ValueError(
                f"{where}, has no column {names[what]!r}: it has {held}. Say which it is: --column {what}=NAME; "
                "in a table the first line names them."
            )
        if row[names[what]] is None or (what == "label" and row[names[what]] == ""):
            raise ValueError(f"{where}, has no {names[what]}: every example needs one.")
    label = row[names["label"]]
    if isinstance(label, bool | float | list | dict):
        raise ValueError(f"{where}, has the label {label!r}: expected a name or a whole number.")
    label = str(label) if isinstance(label, int) else string(row, names["label"], where)
    text = string(row, names["text"], where)
    whole = text if row.get(names["pair"]) is None else (text, string(row, names["pair"], where))
    return Example(whole, label, (str(path), line))


def read_words(path: Path) -> list[Example]:
    """Sentences of a CoNLL file: a word a line with its label in the last column, an empty line between sentences.
    Columns stand apart by tabs or spaces; lines that begin with -DOCSTART- are left out."""
    found, words, labels = [], [], []
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason}): convert it.") from None
    except OSError as error:
        raise FileNotFoundError(f"{path} cannot be read: {(error.strerror or 'no reason given').lower()}.") from None
    for number, line in enumerate([*lines, ""], 1):
        parts = line.split("\t") if "\t" in line else [part for part in line.split(" ") if part]
        if line.startswith("-DOCSTART-") or not line.strip():
            if words:
                found.append(Example(words, labels, (str(path), number - len(words))))
            words, labels = [], []
        elif len(parts) < 2 or not (parts[0].strip() and parts[-1].strip()):
            raise ValueError(f"{path}, line {number}, has no label: expected a word, and its label in the last column.")
        else:
            words.append(parts[0].strip())
            labels.append(parts[-1].strip())
    if not found:
        raise ValueError(f"{path} holds no sentences: expected a word a line, its label in the last column.")
    return found


def label_names(examples: Iterable[Example]) -> list[str]:
    """The labels that occur, numbers in the order of their size, names in that of the alphabet."""
    found = {each for example in examples for each in _labels(example)}
    if len(found) == 1:
        raise ValueError(f"Every example has the label {found.pop()!r}: there is nothing to tell apart.")
    numbers = all(each.removeprefix("-").isdecimal() for each in found)
    return sorted(found, key=lambda each: (int(each), each)) if numbers else sorted(found)


def _labels(example: Example) -> Sequence[str]:
    return example.label if isinstance(example.label, list) else [example.label]


class Labelled(Task):
    """One label for each text; examples of a batch are padded to the longest, and computed without the padding."""

    unit, best, name = "text", "accuracy", "text"

    def __init__(
        self, model: Any, tokenizer: TextTokenizer, train: Sequence[Example], valid: Sequence[Example], settings: Any
    ):
        self.model, self.tokenizer, self.batch_size = model, tokenizer, settings.batch
        self.limit, self.truncate = settings.length or model.config.length, settings.truncate
        self.numbers = {label: i for i, label in enumerate(model.head.labels)}
        self.examples = valid[:SHOWN]
        self.train, self.held_out = self._read(train), self._read(valid)
        self.rows, self.trivial = len(train), math.log(len(self.numbers))
        counts = Counter(self._targets(self.held_out))
        self.baselines = {"majority_accuracy": max(counts.values()) / sum(counts.values())}

    def _read(self, examples: Sequence[Example]) -> list[tuple[list[int], list[int], Any]]:
        """Ids, segments and target of each."""
        texts = [example.text for example in examples]
        read = self.tokenizer.encode_batch(texts, limit=self.limit, truncate=self.truncate)
        check_segments(read, self.model.config.segments)
        return [(*each, self._number(example.label, example)) for each, example in zip(read, examples)]

    def _number(self, label: str, example: Example, word: int = 0) -> int:
        if label not in self.numbers:
            (path, line), known = example.where, ", ".join(self.numbers)
            raise ValueError(f"{path}, line {line + word}, has the label {label!r}, which is none of {known}.")
        return self.numbers[label]

    def _targets(self, rows: Iterable[tuple[list[int], list[int], Any]]) -> Iterator[int]:
        return (row[2] for row in rows)

    def batch(self, examples: list[tuple[int, int]]) -> Batch:
        return self._padded([self.train[row] for _, row in examples])

    def _padded(self, rows: Sequence[tuple[list[int], list[int], Any]]) -> Batch:
        batch = padded([row[:2] for row in rows])
        return {**batch, "targets": self._target(rows, batch["ids"].shape[1])}

    def _target(self, rows: Sequence[tuple[list[int], list[int], Any]], length: int) -> Tensor:
        return torch.tensor([row[2] for row in rows])

    def targets(self, batch: Batch) -> int:
        return int((batch["targets"] != IGNORED).sum())

    def _scores(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(batch["ids"], segments=batch["segments"], keep=batch["keep"]).float()

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return _cost(self._scores(model, batch), batch["targets"])

    def measure(self, model: nn.Module, batch: Batch) -> dict[str, float]:
        scores, targets = self._scores(model, batch), batch["targets"]
        right = (scores.argmax(-1) == targets).sum()  # what is ignored is no label that could be right
        return {"loss": float(_cost(scores, targets)), "accuracy": float(right)}

    def valid(self) -> Iterator[Batch]:
        """Those of like lengths together."""
        rows = sorted(self.held_out, key=lambda row: len(row[0]))
        return (self._padded(rows[i : i + self.batch_size]) for i in range(0, len(rows), self.batch_size))

    def sample(self, model: Any) -> str:
        """The first validation examples, with what they are taken for."""
        batch = self._padded(self.held_out[:SHOWN])
        device = next(model.parameters()).device
        given = {name: value.to(device) for name, value in batch.items()}
        with evaluating(model):
            guesses = self._scores(model, given).argmax(-1).cpu()
        return "\n".join(self._shown(*each) for each in zip(self.examples, guesses, batch["targets"]))

    def _shown(self, example: Example, guess: Tensor, target: Tensor) -> str:
        text = example.text if isinstance(example.text, str) else " | ".join(example.text)
        answer, labels = self.model.head.labels[int(guess)], self.model.head.labels
        return f"{answer}{'' if guess == target else f', not {labels[int(target)]}'}: {text}"


class Tagged(Labelled):
    """A label for each word, learnt at the first of its pieces."""

    unit, best, name = "word", "f1", "word"

    def _read(self, examples: Sequence[Example]) -> list[tuple[list[int], list[int], Any]]:
        return [self._tagged(example) for example in examples]

    def _tagged(self, example: Example) -> tuple[list[int], list[int], list[int]]:
        ids, words = self.tokenizer.encode_words(example.text, limit=self.limit, truncate=self.truncate)
        labels = [self._number(label, example, word) for word, label in enumerate(example.label)]
        begins = [word is not None and (i == 0 or word != words[i - 1]) for i, word in enumerate(words)]
        tags = [IGNORED if word is None or not first else labels[word] for word, first in zip(words, begins)]
        return ids, [0] * len(ids), tags

    def _targets(self, rows: Iterable[tuple[list[int], list[int], Any]]) -> Iterator[int]:
        return (tag for row in rows for tag in row[2] if tag != IGNORED)

    def _target(self, rows: Sequence[tuple[list[int], list[int], Any]], length: int) -> Tensor:
        return torch.tensor([row[2] + [IGNORED] * (length - len(row[2])) for row in rows])

    def measure(self, model: nn.Module, batch: Batch) -> dict[str, float]:
        scores, targets = self._scores(model, batch), batch["targets"]
        said, labels = scores.argmax(-1), self.model.head.labels
        found = {"loss": float(_cost(scores, targets)), "accuracy": float((said == targets).sum())}
        for name in ("right", "said", "true"):
            found[name] = 0.0
        for row, truth in zip(said, targets):
            asked = truth != IGNORED
            ours, theirs = ({*spans([labels[int(i)] for i in each[asked]])} for each in (row, truth))
            found["right"] += len(ours & theirs)
            found["said"] += len(ours)
            found["true"] += len(theirs)
        return found

    def figures(self, sums: Mapping[str, float], targets: int) -> dict[str, float]:
        """F1 counts whole names: right where beginning, end and kind are."""
        names = sums["said"] + sums["true"]
        f1 = 2 * sums["right"] / names if names else 1.0
        return {"loss": sums["loss"] / targets, "accuracy": sums["accuracy"] / targets, "f1": f1}

    def _shown(self, example: Example, guess: Tensor, target: Tensor) -> str:
        labels, asked = self.model.head.labels, target != IGNORED
        said, truth = ([labels[int(i)] for i in each[asked]] for each in (guess, target))
        shown = (f"{a}" if a == b else f"{a}, not {b}" for a, b in zip(said, truth))
        return " ".join(f"{word} [{each}]" for word, each in zip(example.text, shown))


def spans(labels: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    """The names that tags like B-PER, I-PER, O mark, each as (first word, word after it, kind): as the CoNLL script
    counts, an I- after something else begins one too. Labels without B- and I- are names of one kind that go on while
    they stay the same; O is none."""
    start, kind = 0, ""
    for i, label in enumerate([*labels, "O"]):
        begins, _, named = label.partition("-") if label[:2] in ("B-", "I-") else ("I", "", label)
        named = "" if label == "O" else named
        if kind and (begins == "B" or named != kind):
            yield start, i, kind
            kind = ""
        if named and not kind:
            start, kind = i, named


def _cost(scores: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(scores.flatten(0, -2), targets.flatten(), reduction="sum", ignore_index=IGNORED)


def prepare_texts(request: Request, settings: LabelledSettings, fields: Mapping[str, Any]):
    """A BERT with one label for each text to learn; `Classify` takes the place of whatever head it had."""
    return _prepare(request, settings, fields, Labelled)


def prepare_words(request: Request, settings: LabelledSettings, fields: Mapping[str, Any]):
    """A BERT with a label for each word to learn."""
    return _prepare(request, settings, fields, Tagged)


def _prepare(
    request: Request, settings: LabelledSettings, fields: Mapping[str, Any], kind: type[Labelled]
) -> tuple[Labelled, Facts, list[str]]:
    data = request.data
    if data is None:
        raise ValueError("There is nothing to train on: pass --data FILE.")
    if request.source is not None:  # of a hub id, model and tokeniser from one commit
        request = dataclasses.replace(request, source=hub.find(request.source))
    train = read_examples(data, request.columns, words=kind is Tagged)
    labels = label_names(train)  # of all, so that one that occurs once may be held out
    if request.valid is None:
        train, valid = held_out(train)
    else:
        valid = read_examples(request.valid, request.columns, words=kind is Tagged)
    model: Any = None if request.source is None else copied(request.source, settings, fields)
    tokenizer = _tokenizer(request, [*train, *valid], train, cased=settings.cased)
    if model is None:
        torch.manual_seed(settings.seed)
        model = BERT(BERTConfig(**{**fields, "vocab": tokenizer.vocab}))
        model.generation = Generation(pad=tokenizer.role("pad"))
    check_fits(tokenizer, model.config.vocab)
    came = fingerprint(model)
    if request.freeze and kind is Labelled and model.pooler is None:
        raise ValueError(
            f"{request.source} has no pooler, and --freeze would keep a new one as it was drawn: leave --freeze out, "
            "or choose a checkpoint that has one."
        )
    said = put_head(model, labels, words=kind is Tagged)
    model.assets = tokenizer.files  # and nothing on how to pool, which this model does in its own way
    model.published = model.published | {"scratchformers": {"tokenizer": tokenizer.digest()}}
    task = kind(model.to(request.device), tokenizer, train, valid, settings)
    facts: Facts = {
        "data": {"sha256": _digest(train), "examples": len(train)},
        "valid": {"sha256": _digest(valid), "examples": len(valid)},
        "tokenizer": {"sha256": tokenizer.digest(), "vocab": tokenizer.vocab},
    }
    if request.source is not None:
        facts["source"] = {"sha256": came}
    return task, facts, said


def put_head(model: Any, labels: Sequence[str], *, words: bool) -> list[str]:
    """Gives the model a head for these labels, unless it has one that knows them, and keeps its own order; says what
    there is to say."""
    kind, had = TokenClassify if words else Classify, model.head
    model.next_sentence = None
    # Here one label is true of a text; what a checkpoint said of its own labels is said of these no more.
    model.published = {name: value for name, value in model.published.items() if name != "problem_type"}
    if isinstance(had, kind) and {*had.labels} == {*labels}:
        return ["The checkpoint's own head has these labels: training goes on with it."]
    if words:
        model.pooler, model.head = None, TokenClassify(model.config.dim, labels, dropout=model.config.dropout)
        return []
    if model.pooler is None:
        model.pooler = nn.Linear(model.config.dim, model.config.dim)
        nn.init.normal_(model.pooler.weight, std=0.02)
        nn.init.zeros_(model.pooler.bias)
    model.head = Classify(model.config.dim, labels, pool=model.pool, dropout=model.config.dropout)
    return []


def read_examples(path: Path | str, columns: Mapping[str, str], *, words: bool) -> list[Example]:
    if not Path(path).is_file():
        form = "of a word and its label a line" if words else ".tsv, .csv or .jsonl"
        raise FileNotFoundError(f"{path} is no file: expected a file {form}.")
    if words and columns:
        raise ValueError(
            "--column names a column of labelled texts: of words the label is the last one, so leave it out."
        )
    return read_words(Path(path)) if words else read_labelled(Path(path), columns)


def held_out(examples: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """All but a tenth, and that tenth, drawn once for all, since a file may be sorted by its labels."""
    if len(examples) < 2:
        raise ValueError("There is one example: one is to be learnt from and another to be held out.")
    order = torch.randperm(len(examples), generator=generator(0, len(examples))).tolist()
    count = max(1, len(examples) // 10)
    return [examples[i] for i in sorted(order[count:])], [examples[i] for i in sorted(order[:count])]


def _tokenizer(request: Request, every: Sequence[Example], train: Sequence[Example], *, cased: bool) -> TextTokenizer:
    asked = request.tokenizer
    if request.vocab is not None and asked != WORDPIECE:
        raise ValueError(f"--vocab {request.vocab} sizes a WordPiece made from your texts: add --tokenizer wordpiece.")
    if request.source is None and asked == BPE:
        raise ValueError(f"--tokenizer {asked} is not for {request.recipe}: expected {WORDPIECE}.")
    special = tuple(SPECIAL.values())
    if request.source is None and asked == WORDPIECE:
        return train_wordpiece(_texts(train), request.vocab or VOCAB, lower=not cased, special=special)
    if request.source is None and asked in (None, CHARACTERS):
        return characters(_texts(every), special=special)
    return tokenizer_of(request.source, asked)


def _texts(examples: Iterable[Example]) -> Iterator[str]:
    for example in examples:
        yield example.text if isinstance(example.text, str) else " ".join(example.text)


def _digest(examples: Iterable[Example]) -> str:
    found = hashlib.sha256()
    for example in examples:
        found.update(json.dumps([example.text, example.label]).encode() + b"\n")
    return found.hexdigest()
