"""What a model is worth: its loss on a text, LAMBADA, HellaSwag; or how well it tells hidden tokens, or labels, of
texts or pictures, or paints hidden patches, or finds the text of a picture, or translates.

LAMBADA and HellaSwag follow EleutherAI's lm-evaluation-harness, so that figures can be compared with published ones.
"""

import math
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scratchformers import grid
from scratchformers.generate import evaluating
from scratchformers.heads import TokenClassify, unit
from scratchformers.images import Preprocess
from scratchformers.painting import check_hiding, check_paints
from scratchformers.tasks import DualEncoder, Translator, ZeroShotClassifier
from scratchformers.tasks.vectors import finite
from scratchformers.text import TextTokenizer, check_fits
from scratchformers.training.contrastive import AT, Captions, fits, ranks
from scratchformers.training.data import to_stream
from scratchformers.training.documents import read_json_lines, string
from scratchformers.training.labelled import Labelled, LabelledSettings, Tagged, read_examples
from scratchformers.training.language import Masked, MaskedSettings
from scratchformers.training.loop import Batch, Task, evaluate
from scratchformers.training.pairs import Pairs, spoken
from scratchformers.training.parallel import Pair
from scratchformers.training.pictures import Pictures
from scratchformers.training.reading import LeftOut, Track, class_numbers, held_out_noise, prepared
from scratchformers.training.scoring import can_score, exact, judge
from scratchformers.training.vision import class_figures

BATCH = 8  # rows at once
SORTED = 32  # batches among which rows of like lengths are put together
SCORED = 1024  # places at once that are scored against the whole vocabulary, which is what takes memory


@dataclass(frozen=True)
class TextScore:
    """`loss` is in nats a token, `bytes` counts the UTF-8 of the tokens scored."""

    loss: float
    perplexity: float
    bits_per_byte: float
    tokens: int
    bytes: int
    documents: int
    windows: int
    length: int
    stride: int


@dataclass(frozen=True)
class LambadaScore:
    accuracy: float
    perplexity: float
    examples: int


@dataclass(frozen=True)
class HellaSwagScore:
    """`accuracy` takes the ending of the highest probability, `accuracy_normalised` of the highest log-probability for
    each of its characters."""

    accuracy: float
    accuracy_normalised: float
    examples: int


@dataclass(frozen=True)
class MaskedScore:
    """`loss` is in nats a token asked for, `targets` how many were; the same are asked for every time."""

    loss: float
    perplexity: float
    accuracy: float
    targets: int
    tokens: int


@dataclass(frozen=True)
class LabelScore:
    """`loss` is in nats a label. `f1`, of labels for words, counts whole names; `majority` is the share of the most
    frequent label."""

    loss: float
    accuracy: float
    f1: float | None
    majority: float
    targets: int


@dataclass(frozen=True)
class PictureScore:
    """`loss` is in nats a picture, `accuracy` the share whose class is the most probable, `top5` that whose class is
    among the first five; None where the model knows five or fewer."""

    loss: float
    accuracy: float
    top5: float | None
    pictures: int


@dataclass(frozen=True)
class PaintingScore:
    """`loss` is the mean squared error over what was hidden, as in training: with `norm_pix_loss` of patches less their
    mean, over their deviation."""

    loss: float
    mask_ratio: float
    pictures: int


@dataclass(frozen=True)
class RetrievalScore:
    """Recall: of the texts the share that has a picture of its own among the first 1, 5, 10, and of the pictures that
    which has a text. Candidates are all of them."""

    text_to_image_at_1: float
    text_to_image_at_5: float
    text_to_image_at_10: float
    image_to_text_at_1: float
    image_to_text_at_5: float
    image_to_text_at_10: float
    pictures: int
    texts: int


@dataclass(frozen=True)
class TranslationScore:
    """BLEU and chrF of all sentences together, 0 to 100, with what sacrebleu says of how it counts them; None where it
    is not installed. `exact` is the share of translations that are the reference."""

    bleu: float | None
    chrf: float | None
    exact: float
    sentences: int
    bleu_signature: str | None
    chrf_signature: str | None


@dataclass(frozen=True)
class Row:
    """Ids, of which the last `scored` are to be predicted, each from those before it."""

    ids: Sequence[int]
    scored: int


def evaluate_text(
    model: Any,
    tokenizer: TextTokenizer,
    texts: Iterable[str],
    *,
    length: int | None = None,
    stride: int | None = None,
    batch: int = BATCH,
    track: Track = lambda items, total: items,
) -> TextScore:
    """How well each text is predicted, token by token, by windows of `length` tokens (by default the model's positions)
    that move on by `stride` (by default half of that).

    Every token is scored once: those of a window that no earlier one held, so with at least length - stride tokens
    before them where the text has as many. stride=length makes windows side by side: the cheapest, and the worst loss.
    Each text is a document of its own. If the checkpoint names a start token, it stands before each, and all of the
    text is scored; else the first token of a text is not scored, and its bytes do not count.
    Of the texts only the ids stay in memory. Raises ValueError if the sizes do not fit the model, or nothing is left to
    be scored.
    """
    check_fits(tokenizer, model.config.vocab)
    length = model.config.length if length is None else length
    if not 1 <= length <= model.config.length:
        raise ValueError(f"length is {length}: expected 1 to {model.config.length}, the positions of the model.")
    stride = max(1, length // 2) if stride is None else stride
    if not 1 <= stride <= length:
        raise ValueError(f"stride is {stride}: expected 1 to {length}, the length of a window.")
    start, documents, size = model.generation.start, [], 0
    start = None if start is None or start >= model.config.vocab else start  # transformers writes GPT-2's by default
    for text in texts:
        ids = array("i", [] if start is None else [start])
        for part in tokenizer.encode_long(text):
            ids.extend(part)
        if len(ids) > 1:
            documents.append(ids)
            size += len(text.encode("utf-8")) - (tokenizer.size(ids[0]) if start is None else 0)
    if not documents:
        raise ValueError("There is nothing to score: a text of one token follows from nothing. Give a longer one.")
    count = sum(_count_windows(len(ids), length, stride) for ids in documents)
    rows = (row for ids in documents for row in windows(ids, length, stride))
    nats = math.fsum(value for _, value, _ in track(score(model, rows, batch=batch), count))
    tokens = sum(len(ids) - 1 for ids in documents)
    loss = _finite(nats) / tokens
    bits = nats / math.log(2) / size if size else math.nan
    return TextScore(loss, _exp(loss), bits, tokens, size, len(documents), count, length, stride)


def windows(ids: Sequence[int], length: int, stride: int) -> Iterator[Row]:
    """Each holds `length` tokens to read and one more to predict; all ids but the first are scored, each once."""
    done = 1
    for begin in range(0, len(ids) - 1, stride):
        end = min(begin + length + 1, len(ids))
        yield Row(ids[begin:end], end - done)
        if end == len(ids):
            return
        done = end


def _count_windows(ids: int, length: int, stride: int) -> int:
    return 1 + max(0, math.ceil((ids - 1 - length) / stride))


def evaluate_masked(
    model: Any,
    tokenizer: TextTokenizer,
    texts: Iterable[str],
    *,
    length: int | None = None,
    batch: int = 32,
    track: Track = lambda items, total: items,
) -> MaskedScore:
    """How well hidden tokens are told: 15 % of every window of `length` (by default the model's positions), hidden as
    in training, on the texts packed as in training. A text that is shorter is one window."""
    check_fits(tokenizer, model.config.vocab)
    if model.head is None or hasattr(model.head, "labels"):
        raise ValueError("This model has no head that says what is hidden: choose one that was trained so.")
    length = model.config.length if length is None else length
    if not 1 <= length <= model.config.length:
        raise ValueError(f"length is {length}: expected 1 to {model.config.length}, the positions of the model.")
    stream = to_stream(texts, tokenizer)
    if len(stream) < 2:
        raise ValueError("There is nothing to score: a hidden token is told from others, so give a longer text.")
    length = min(length, len(stream) + sum(map(len, tokenizer.around())))
    task = Masked(model, tokenizer, stream, stream, MaskedSettings(batch=batch, length=length))
    task.most = None
    found, targets = _measured(task, -(-len(stream) // (task.train.length * batch)), track)
    return MaskedScore(found["loss"], _exp(_finite(found["loss"])), found["accuracy"], targets, len(stream))


def evaluate_labels(
    model: Any,
    tokenizer: TextTokenizer,
    path: Path | str,
    *,
    columns: Mapping[str, str],
    truncate: bool = False,
    batch: int = 32,
    track: Track = lambda items, total: items,
) -> LabelScore:
    """How often the model's head gives the labels of a file, of texts or of words as the head is, read as for training.
    ValueError for a label that the head does not know."""
    check_fits(tokenizer, model.config.vocab)
    if not hasattr(model.head, "labels"):
        raise ValueError("This model has no labels: choose one that was trained with --task.")
    kind = Tagged if isinstance(model.head, TokenClassify) else Labelled
    examples = read_examples(path, columns, words=kind is Tagged)
    task = kind(model, tokenizer, examples, examples, LabelledSettings(batch=batch, truncate=truncate))
    found, targets = _measured(task, -(-len(examples) // batch), track)
    _finite(found["loss"])
    return LabelScore(found["loss"], found["accuracy"], found.get("f1"), task.baselines["majority_accuracy"], targets)


def evaluate_pictures(
    model: Any,
    pictures: Pictures,
    preprocess: Preprocess,
    *,
    batch: int = 32,
    track: Track = lambda items, total: items,
    left_out: LeftOut | None = None,
) -> PictureScore:
    """How often the model's head gives the classes of pictures, which are matched to its labels by their names.

    Pictures that cannot be decoded do not count, and go into `left_out`; without one they are a ValueError, as is a
    class that the head does not know.
    """
    labels = getattr(getattr(model, "head", None), "labels", None)
    if labels is None or not hasattr(model.config, "image"):
        raise ValueError("This model has no labels for pictures: choose one that was trained by `train vit`.")
    numbers = class_numbers(pictures, labels, "the model's classes")

    def scores() -> Iterator[tuple[list[int], Tensor]]:
        for rows, images in prepared(model, pictures, preprocess, batch=batch, track=track, left_out=left_out):
            with evaluating(model):
                said = model(images)
            yield rows, said.to(torch.promote_types(said.dtype, torch.float32))

    return _picture_score(scores(), numbers)


def _picture_score(scores: Iterable[tuple[list[int], Tensor]], numbers: Tensor) -> PictureScore:
    """Of scores (b, classes), each with the rows of `numbers` that its pictures' classes are in."""
    sums = Counter()
    for rows, said in scores:
        sums.update({**class_figures(said, numbers[rows].to(said.device)), "pictures": len(rows)})
    count = sums["pictures"]
    top5 = sums["top5"] / count if "top5" in sums else None
    return PictureScore(_finite(sums["loss"]) / count, sums["accuracy"] / count, top5, int(count))


def evaluate_zero_shot(
    classifier: ZeroShotClassifier,
    pictures: Pictures,
    *,
    labels: Sequence[str] | None = None,
    templates: Any = None,
    truncate: bool = False,
    batch: int = 32,
    track: Track = lambda items, total: items,
    left_out: LeftOut | None = None,
) -> PictureScore:
    """How often the name of a picture's class is the label that suits it best. `labels` name the classes otherwise, in
    the order of `pictures.labels`, whose `_` are read as spaces, as in training; `templates` and `truncate` are the
    classifier's. Pictures that cannot be decoded are as for `evaluate_pictures`."""
    if not pictures.targets:
        raise ValueError("The pictures have no classes: expected a folder for each class, or labels.")
    names = [*map(spoken, pictures.labels)] if labels is None else labels
    if len(names) != len(pictures.labels):
        raise ValueError(f"There are {len(names)} labels and {len(pictures.labels)} classes: expected one for each.")
    vectors = classifier.encode_labels(names, templates=templates, truncate=truncate, track=track)
    how: Any = {"batch": batch, "track": track, "left_out": left_out}
    seen = prepared(classifier.model, pictures, classifier.preprocess, **how)
    return _picture_score(
        ((rows, classifier.scores(images, vectors)) for rows, images in seen), torch.tensor(pictures.targets)
    )


def evaluate_retrieval(
    encoder: DualEncoder,
    pairs: Pairs,
    *,
    truncate: bool = False,
    batch: int = 32,
    track: Track = lambda items, total: items,
    left_out: LeftOut | None = None,
) -> RetrievalScore:
    """How often a picture is found by one of its captions, and a caption by its picture, among all there are. Captions
    that are read alike are one, of several pictures. Pictures that cannot be decoded are as for `evaluate_pictures`,
    and their captions are left out with them."""
    if pairs.prompts:
        raise ValueError("The pictures have classes and no captions: ask for --task zero-shot, or pass captions.")
    limit, kept, found = encoder.model.config.length, [], []
    how: Any = {"batch": batch, "track": track, "left_out": left_out}
    for rows, images in prepared(encoder.model, pairs.pictures, encoder.preprocess, **how):
        kept += rows
        found.append(encoder.image_features(images))
    own = [pairs.captions[row] for row in kept]
    captions = Captions(encoder.tokenizer, [text for each in own for text in each], limit=limit, truncate=truncate)
    image, text = (unit(finite(each).cpu()) for each in (torch.cat(found), encoder.id_features(captions.ids)))
    table, rows, texts = captions.table(own), torch.arange(len(image)), torch.arange(len(text))
    to_image = ranks(text, image, lambda some: fits(table, rows, some).T)
    to_text = ranks(image, text, lambda some: fits(table, some, texts))
    ways = {"text_to_image": to_image, "image_to_text": to_text}
    shares: Any = {f"{way}_at_{k}": float((places < k).double().mean()) for way, places in ways.items() for k in AT}
    return RetrievalScore(**shares, pictures=len(image), texts=len(text))


def evaluate_translation(
    translator: Translator,
    pairs: Sequence[Pair],
    *,
    beams: int | None = None,
    source_language: str | None = None,
    target_language: str | None = None,
    truncate: bool = False,
    batch: int = 32,
    track: Track = lambda items, total: items,
) -> TranslationScore:
    """How far translations of the sources agree with the targets, both as they are written. `beams` is by default the
    checkpoint's, else 1; the languages are named as for a Translator. A source that is too long is a ValueError,
    unless its end is to be left out."""
    sources, references = zip(*pairs)
    how: Any = {"beams": beams, "too_long": "truncate" if truncate else "error", "batch": batch}
    how |= {"source_language": source_language, "target_language": target_language}
    translator.check(sources, **how)
    answers = [found.text for found in track(translator.stream(sources, **how), len(sources))]
    names = ("BLEU", "CHRF") if can_score() else ()
    (bleu, bleu_says), (chrf, chrf_says) = [judge(name, answers, references) for name in names] or [(None, None)] * 2
    return TranslationScore(bleu, chrf, exact(answers, references), len(answers), bleu_says, chrf_says)


def evaluate_painting(
    model: Any,
    pictures: Pictures,
    preprocess: Preprocess,
    *,
    mask_ratio: float = 0.75,
    batch: int = 32,
    track: Track = lambda items, total: items,
    left_out: LeftOut | None = None,
) -> PaintingScore:
    """How well hidden patches are painted, `mask_ratio` of each picture's. Which are hidden follows from the picture's
    row alone, as in the validation of a training. Pictures that cannot be decoded are as for `evaluate_pictures`."""
    check_paints(model)
    check_hiding(mask_ratio, 0)
    patches, total, count = grid.count(model.config.image, model.config.patch), 0.0, 0
    for rows, images in prepared(model, pictures, preprocess, batch=batch, track=track, left_out=left_out):
        noise = held_out_noise(patches, rows)
        with evaluating(model):
            total += float(model(images, noise=noise, mask_ratio=mask_ratio).loss) * len(rows)
        count += len(rows)
    return PaintingScore(_finite(total) / count, mask_ratio, count)


def _measured(task: Task, batches: int, track: Track) -> tuple[dict[str, float], int]:
    valid, counts = task.valid(), [0]

    def counted() -> Iterator[Batch]:
        for each in track(valid, batches):
            counts[0] += task.targets(each)
            yield each

    task.valid = counted
    found = evaluate(task, next(task.model.parameters()).device)
    return found, counts[0]


def evaluate_lambada(
    model: Any,
    tokenizer: TextTokenizer,
    path: Path | str,
    *,
    batch: int = BATCH,
    track: Track = lambda items, total: items,
) -> LambadaScore:
    """LAMBADA (Paperno et al. 2016) from JSON lines with a `text`, as OpenAI published it: the last word, given all
    before it. The text is split at its last space, and the space belongs to the word.

    The accuracy counts words whose every token is the most probable one; the perplexity is that of a whole word.
    Nothing is put before the text; of one too long for the model the beginning is left out.
    """
    check_fits(tokenizer, model.config.vocab)
    rows = []
    for where, example in read_json_lines(Path(path)):
        context, space, word = string(example, "text", where).rpartition(" ")
        if not (context.strip() and word):
            raise ValueError(f"{where}, does not end in a space and a word to predict.")
        rows.append(_continuation(model, tokenizer, context, space + word, where))
    _some(rows, path)
    answers = [*track(score(model, rows, batch=batch), len(rows))]
    nats = _finite(math.fsum(value for _, value, _ in answers))
    return LambadaScore(sum(sure for _, _, sure in answers) / len(rows), _exp(nats / len(rows)), len(rows))


def evaluate_hellaswag(
    model: Any,
    tokenizer: TextTokenizer,
    path: Path | str,
    *,
    batch: int = BATCH,
    track: Track = lambda items, total: items,
) -> HellaSwagScore:
    """HellaSwag (Zellers et al. 2019) from JSON lines as published: which of the `endings` is the true one, `label`.

    What is read is `activity_label: ctx_a Ctx_b`, or `ctx` where those are missing, then a space and the ending, all
    cleaned of the traces of WikiHow. Nothing is put before it; of one too long the beginning is left out.
    """
    check_fits(tokenizer, model.config.vocab)
    rows, examples = [], []
    for where, example in read_json_lines(Path(path)):
        context, endings, label = hellaswag_example(example, where)
        examples.append((len(rows), [len(ending) for ending in endings], label))
        rows += [_continuation(model, tokenizer, context, " " + ending, where) for ending in endings]
    _some(rows, path)
    answers = {place: value for place, value, _ in track(score(model, rows, batch=batch), len(rows))}
    _finite(math.fsum(answers.values()))
    plain = normalised = 0
    for first, sizes, label in examples:
        nats = [answers[first + i] for i in range(len(sizes))]
        plain += nats.index(min(nats)) == label
        per_character = [value / size for value, size in zip(nats, sizes)]
        normalised += per_character.index(min(per_character)) == label
    return HellaSwagScore(plain / len(examples), normalised / len(examples), len(examples))


def hellaswag_example(example: dict[str, Any], where: str) -> tuple[str, list[str], int]:
    """The context, the endings and which of them is true."""
    if "ctx_a" in example:
        context = f"{string(example, 'ctx_a', where)} {string({'ctx_b': '', **example}, 'ctx_b', where).capitalize()}"
    else:
        context = string(example, "ctx", where)
    if "activity_label" in example:
        context = f"{string(example, 'activity_label', where)}: {context}"
    given, label = example.get("endings"), str(example.get("label"))
    endings = [clean(string({"ending": e}, "ending", where)) for e in given] if isinstance(given, list) else []
    if not endings or not all(endings):
        raise ValueError(f"{where}, has no `endings`, or an empty one: expected a list of texts.")
    if not (label.isdecimal() and int(label) < len(endings)):
        raise ValueError(f"{where}, has the label {label}: expected 0 to {len(endings) - 1}.")
    return clean(context), endings, int(label)


def clean(text: str) -> str:
    """Without the marks that WikiHow's pages left in HellaSwag."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def _continuation(model: Any, tokenizer: TextTokenizer, context: str, rest: str, where: str) -> Row:
    """The ids of both, the last of them to be scored. Both are encoded together and the context alone, and what the
    whole has more is the rest; spaces at the end of the context belong to the rest, as byte-level BPE has them."""
    ids, length = _encode(tokenizer, context + rest), model.config.length
    before = len(_encode(tokenizer, context.rstrip()))
    if not before or not 0 < len(ids) - before <= length:
        what = "nothing to read" if not before else f"{len(ids) - before} tokens to predict"
        raise ValueError(f"{where}, has {what}: expected some, and at most the {length} positions of the model.")
    return Row(ids[-length - 1 :], len(ids) - before)


def _encode(tokenizer: TextTokenizer, text: str) -> list[int]:
    return [id for part in tokenizer.encode_long(text) for id in part]


def score(model: Any, rows: Iterable[Row], *, batch: int) -> Iterator[tuple[int, float, bool]]:
    """For each row its place, the nats its scored ids cost, and whether each was the most probable: not in order, for
    rows of like lengths go together."""
    if batch < 1:
        raise ValueError(f"batch is {batch}: expected at least 1.")
    numbered = enumerate(rows)
    while taken := [*islice(numbered, batch * SORTED)]:
        taken.sort(key=lambda item: -len(item[1].ids))
        for i in range(0, len(taken), batch):
            places, some = zip(*taken[i : i + batch])
            with evaluating(model):  # not around a yield: it would reach whoever iterates
                answers = _score(model, some)
            yield from ((place, *answer) for place, answer in zip(places, answers))


def _score(model: Any, rows: Sequence[Row]) -> list[tuple[float, bool]]:
    device, width = next(model.parameters()).device, max(len(row.ids) for row in rows) - 1
    ids = torch.zeros(len(rows), width + 1, dtype=torch.long)
    keep, scored = torch.zeros(2, len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        read = len(row.ids) - 1
        ids[i, : read + 1] = torch.tensor(row.ids)
        keep[i, :read], scored[i, read - row.scored : read] = True, True
    states = model.encode(ids[:, :-1].to(device), keep=None if bool(keep.all()) else keep.to(device))
    losses, sure = _compare(model, states[scored.to(device)], ids[:, 1:][scored].to(device))
    counts = [row.scored for row in rows]
    return [(float(a.sum()), bool(b.all())) for a, b in zip(losses.split(counts), sure.split(counts))]


def _compare(model: Any, states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The nats of each target, float64, and whether it was the most probable."""
    losses, sure = [], []
    for some, wanted in zip(states.split(SCORED), targets.split(SCORED)):
        logits = model.unembed(some[None])[0]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        losses.append(F.cross_entropy(logits, wanted, reduction="none").cpu().double())
        sure.append((logits.argmax(-1) == wanted).cpu())
    return torch.cat(losses), torch.cat(sure)


def _some(rows: list[Row], path: Path | str) -> None:
    if not rows:
        raise ValueError(f"{path} holds no example: expected JSON, one object a line.")


def _finite(nats: float) -> float:
    if not math.isfinite(nats):
        raise ValueError(f"The loss is {nats}: the model's weights hold NaN, or overflow.")
    return nats


def _exp(nats: float) -> float:
    return math.exp(nats) if nats < 709 else math.inf
