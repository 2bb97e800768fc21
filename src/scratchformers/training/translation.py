"""What an encoder-decoder learns from: pairs of a source and its target, each token of which is told from the source
and the target's tokens before it."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scratchformers.checkpoints import hub, seq2seq
from scratchformers.checkpoints.pretrained import Generation, fingerprint
from scratchformers.generate import evaluating, generate
from scratchformers.models import load_tokenizer
from scratchformers.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from scratchformers.text import TextTokenizer, check_fits, padded, pair_characters, train_pair_bpe
from scratchformers.training.data import Buckets, Sampler, bucket_sizes
from scratchformers.training.labelled import held_out
from scratchformers.training.language import unigram
from scratchformers.training.loop import Batch, Settings, Task
from scratchformers.training.parallel import Pair, digest, read_parallel
from scratchformers.training.request import BPE, CHARACTERS, WORDPIECE, Facts, Request
from scratchformers.training.scoring import MISSING, can_score, exact, judge
from scratchformers.training.sources import copied, tokenizer_of

SHOWN = 3  # validation sources, to be looked at with their translations
MIXED = 4  # buckets in a step: of one length alone, its gradient leads astray
WRITTEN = 64  # sources translated at once
TOKENS = 4096  # of validation pairs at once, where `tokens` does not say it

Rows = Sequence[tuple[list[int], list[int]]]  # ids of sources and of targets, the ends of both included


@dataclass(frozen=True)
class TranslationSettings(Settings):
    tokens: int = 0  # of sources and targets, about so many a step, of like lengths together; 0: `batch` rows, any
    smoothing: float = 0.1  # of the probability, the part shared out among all tokens; in validation none
    scored: int = 200  # validation sources at most that are translated at each evaluation; 0: none
    joint: bool = True  # a tokeniser made from the pairs is one for both sides
    truncate: bool = False  # the end of a text that is too long is left out; else it is an error

    def __post_init__(self):
        super().__post_init__()
        if self.smoothing >= 1:
            raise ValueError(f"smoothing is {self.smoothing}: expected less than 1.")


class Translation(Task):
    """Teacher forcing (Sutskever et al. 2014): the decoder reads the start token and the true target, and is asked at
    each place for what follows there. Nothing is computed for padding, and the scores of real tokens alone."""

    unit = "token"

    def __init__(
        self,
        model: Any,
        tokenizer: TextTokenizer,
        train: Sequence[Pair],
        valid: Sequence[Pair],
        settings: TranslationSettings,
    ):
        self.model, self.tokenizer, self.settings = model, tokenizer, settings
        self.start, limit = start_of(model), settings.length or model.config.length
        self.train, self.valid_rows = (
            encode_pairs(tokenizer, pairs, limit=limit, truncate=settings.truncate) for pairs in (train, valid)
        )
        self.rows, vocab = len(train), model.config.target_vocab or model.config.vocab
        self.trivial, self.longest = math.log(vocab), max(len(target) for _, target in (*self.train, *self.valid_rows))
        learnt, held = (torch.tensor([id for _, ids in rows for id in ids]) for rows in (self.train, self.valid_rows))
        self.baselines = {"unigram_loss": unigram(learnt, held, torch.arange(vocab), vocab)["unigram_loss"]}
        count = min(settings.scored, len(valid))
        self.scored = [i * len(valid) // count for i in range(count)]
        self.pairs = valid
        if count and can_score():
            self.notes = {"bleu_signature": judge("BLEU", ["-"], ["-"])[1]}

    def sampler(self, settings: Settings) -> tuple[Sampler, int]:
        if not self.settings.tokens:
            return super().sampler(settings)
        lengths = [len(source) + len(target) for source, target in self.train]
        return Buckets(lengths, max(1, self.settings.tokens // MIXED), seed=settings.seed), MIXED

    def batch(self, examples: list[tuple[int, int]]) -> Batch:
        return self._padded([self.train[row] for _, row in examples])

    def _padded(self, rows: Rows) -> Batch:
        source, target = (padded([(ids, []) for ids in side]) for side in zip(*rows))
        labels, start = target["ids"], torch.full((len(rows), 1), self.start)
        read = torch.cat([start, labels[:, :-1]], dim=1)
        ids = {"source": source["ids"], "source_keep": source["keep"]}
        return {**ids, "read": read, "labels": labels, "keep": target["keep"]}

    def targets(self, batch: Batch) -> int:
        return int(batch["keep"].sum())

    def _scores(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        keep = batch["keep"]
        states = model.decode(batch["read"], model.read(batch["source"], batch["source_keep"]), keep=keep)
        scores = model.score(states[keep][None])[0]
        return scores.to(torch.promote_types(scores.dtype, torch.float32)), batch["labels"][keep]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(*self._scores(model, batch), reduction="sum", label_smoothing=self.settings.smoothing)

    def measure(self, model: nn.Module, batch: Batch) -> dict[str, float]:
        scores, labels = self._scores(model, batch)
        right = (scores.argmax(-1) == labels).sum()
        return {"loss": float(F.cross_entropy(scores, labels, reduction="sum")), "accuracy": float(right)}

    def valid(self) -> Iterator[Batch]:
        """Those of like lengths together."""
        rows = sorted(self.valid_rows, key=lambda row: len(row[0]) + len(row[1]))
        sizes = bucket_sizes(torch.tensor([len(a) + len(b) for a, b in rows]), self.settings.tokens or TOKENS)
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        return (self._padded(rows[end - size : end]) for end, size in zip(ends, sizes))

    def figures(self, sums: Mapping[str, float], targets: int) -> dict[str, float]:
        """Beside those of the tokens, those of what is written, greedily: BLEU, and how much of it is the reference."""
        found = super().figures(sums, targets)
        if self.scored:
            answers, references = self._written(self.model, self.scored), [self.pairs[i][1] for i in self.scored]
            found |= {"bleu": judge("BLEU", answers, references)[0]} if self.notes else {}
            found["exact"] = exact(answers, references)
        return found

    def _written(self, model: Any, numbers: Sequence[int]) -> list[str]:
        """Translations of these validation sources, none longer than the longest target there is."""
        sources = [self.valid_rows[i][0] for i in numbers]
        order, found = sorted(range(len(sources)), key=lambda i: -len(sources[i])), {}
        device, most = next(model.parameters()).device, min(self.longest, model.config.length - 1)
        for part in (order[i : i + WRITTEN] for i in range(0, len(order), WRITTEN)):
            given = padded([(sources[i], []) for i in part])
            ids, keep = given["ids"].to(device), given["keep"].to(device)
            rows = generate(model, ids, keep=keep, max_new_tokens=most)[:, 1:].tolist()
            found |= {i: text_of(self.tokenizer, row) for i, row in zip(part, rows)}
        return [found[i] for i in range(len(sources))]

    def sample(self, model: Any) -> str:
        """Validation sources and what becomes of them."""
        numbers = (self.scored or range(len(self.pairs)))[:SHOWN]
        with evaluating(model):
            answers = self._written(model, numbers)
        return "\n".join(_shown(*self.pairs[i], answer) for i, answer in zip(numbers, answers))


def _shown(source: str, target: str, answer: str) -> str:
    return f"{source}\n  {answer}" + ("" if answer == target else f"\n  not: {target}")


def text_of(tokenizer: TextTokenizer, ids: Sequence[int]) -> str:
    """What ids of a target spell, special tokens left out."""
    special = tokenizer.target.special
    return tokenizer.decode([id for id in ids if id not in special])


def start_of(model: Any) -> int:
    """The id that the model's targets begin with. ValueError where its checkpoint does not say it."""
    if model.generation.start is None:
        raise ValueError("The checkpoint does not say which id a target begins with (decoder_start_token_id).")
    return model.generation.start


def encode_pairs(tokenizer: TextTokenizer, pairs: Sequence[Pair], *, limit: int, truncate: bool) -> Rows:
    """Ids of sources and of targets, with what stands around them; ValueError for more than `limit`, unless the end of
    what is too long is to be left out."""
    sources, targets = zip(*pairs)
    sides = (tokenizer, sources), (tokenizer.target, targets)
    ids = [[row for row, _ in each.encode_batch(texts, limit=limit, truncate=truncate)] for each, texts in sides]
    return [*zip(*ids)]


def prepare_translation(
    request: Request, settings: TranslationSettings, fields: Mapping[str, Any]
) -> tuple[Translation, Facts, list[str]]:
    """An encoder-decoder, new or from a checkpoint, and its pairs, of which a tenth is held out where no others are
    given."""
    if settings.tokens and "batch" in request.given:
        raise ValueError(
            f"batch={settings.batch} counts rows, and here tokens={settings.tokens} does: set tokens=0 too."
        )
    train, valid = _pairs(request)
    if request.source is not None:  # of a hub id, model and tokeniser from one commit
        request = dataclasses.replace(request, source=hub.find(request.source))
    model: Any = None
    if request.source is not None:
        model = copied(request.source, settings, fields, kind=EncoderDecoder)
    tokenizer = _tokenizer(request, train, valid, vocab=fields.get("vocab", 0), joint=settings.joint)
    source = {} if model is None else {"source": {"sha256": fingerprint(model)}}
    model = _made(tokenizer, settings, fields) if model is None else model
    check_fits(tokenizer, model.config.vocab)
    check_fits(tokenizer.target, model.config.target_vocab or model.config.vocab)
    model.assets = tokenizer.files
    said = {**seq2seq.own_words(model.config), "tokenizer": tokenizer.digest()}
    model.published = model.published | {"scratchformers": said}
    task = Translation(model.to(request.device), tokenizer, train, valid, settings)
    facts: Facts = {
        "data": {"sha256": digest(train), "pairs": len(train)},
        "valid": {"sha256": digest(valid), "pairs": len(valid)},
        "tokenizer": {"sha256": tokenizer.digest(), "vocab": tokenizer.vocab, "target_vocab": tokenizer.target.vocab},
        **source,
    }
    return task, facts, _said(task)


def _pairs(request: Request) -> tuple[Any, Any]:
    """Those to learn from, and those held out."""
    if request.data is None:
        raise ValueError("There is nothing to train on: pass --data FILE, or --data SOURCE,TARGET.")
    pairs: Any = read_parallel(request.data, request.columns)
    return held_out(pairs) if request.valid is None else (pairs, read_parallel(request.valid, request.columns))


def _made(tokenizer: TextTokenizer, settings: Settings, fields: Mapping[str, Any]) -> EncoderDecoder:
    """A new model for this tokeniser: a target ends as its texts do, and begins with its <s>, else as padding."""
    target = tokenizer.target
    end, pad = (target.encode("") or [None])[-1], target.role("pad")
    start = next((id for id in (target.role("cls"), pad) if id is not None), None)
    if end is None or start is None or start == end:
        raise ValueError("This tokeniser puts no end after a text, or has no <s> or <pad> to begin one: take another.")
    torch.manual_seed(settings.seed)
    own: dict[str, Any] = {"vocab": tokenizer.vocab, "target_vocab": None if target is tokenizer else target.vocab}
    model = EncoderDecoder(EncoderDecoderConfig(**{**fields, **own}))
    model.generation = Generation(start=start, end=(end,), pad=pad)
    return model


def _tokenizer(
    request: Request, train: Sequence[Pair], valid: Sequence[Pair], *, vocab: int, joint: bool
) -> TextTokenizer:
    """The one asked for. A BPE is learnt from the pairs to train on, of as many ids as the preset has unless told;
    characters are taken from all pairs."""
    asked = request.tokenizer
    if request.vocab is not None and asked != BPE:
        raise ValueError(f"--vocab {request.vocab} sizes a BPE made from your pairs: add --tokenizer {BPE}.")
    if request.source is None and asked == WORDPIECE:
        raise ValueError(f"--tokenizer {asked} is not for {request.recipe}: expected {BPE}.")
    if request.source is None and asked == BPE:
        sources, targets = zip(*train)
        return train_pair_bpe(sources, targets, vocab=request.vocab or vocab, joint=joint)
    if request.source is None and asked in (None, CHARACTERS):
        sources, targets = zip(*train, *valid)
        return pair_characters(sources, targets, joint=joint)
    return load_tokenizer(asked) if request.source is None and asked else tokenizer_of(request.source, asked)


def _said(task: Translation) -> list[str]:
    """What there is to say: how BLEU is counted, what was cut, and what the vocabulary cannot spell."""
    said = [f"BLEU: {signature}" for signature in task.notes.values()]
    said += [] if said or not task.scored else [MISSING]
    tokenizers = {id(each): each for each in (task.tokenizer, task.tokenizer.target)}.values()
    if cut := sum(each.cut for each in tokenizers):
        said.append(f"The ends of {cut} texts were left out.")
    for name, tokenizer, side in zip(("sources", "targets"), (task.tokenizer, task.tokenizer.target), zip(*task.train)):
        if not (share := _unknown(tokenizer, side)):
            continue
        what = f"Of the tokens of the {name} {share:.2%} have no id in this vocabulary"
        if share >= 0.5:
            raise ValueError(f"{what}: expected texts in its language, or take another tokeniser.")
        said.append(f"{what}.")
    return said


def _unknown(tokenizer: TextTokenizer, rows: Iterable[list[int]]) -> float:
    """The share of what cannot be spelt, special tokens and the mere beginnings of words aside."""
    ids = [id for row in rows for id in row]
    unknown, space = tokenizer.unknown(ids), tokenizer.tokenizer.token_to_id("▁")
    return unknown / max(1, unknown + sum(id not in tokenizer.special and id != space for id in ids))
