"""CLIP's way to learn: which caption belongs to which picture of a batch (Radford et al. 2021, figure 3)."""

import contextlib
import dataclasses
import math
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from scratchformers.checkpoints import hub
from scratchformers.checkpoints.pretrained import fingerprint
from scratchformers.clip_text import check_template, train_clip_bpe
from scratchformers.heads import unit
from scratchformers.images import Preprocess
from scratchformers.models.clip import CLIP, CLIPConfig
from scratchformers.text import TextTokenizer, check_fits, padded
from scratchformers.training import processes
from scratchformers.training.data import generator
from scratchformers.training.loop import Arithmetic, Batch
from scratchformers.training.pairs import TEMPLATE, Lines, Pairs, mentioned, prompts_of, read_pairs, split_pairs
from scratchformers.training.pictures import said_left_out
from scratchformers.training.request import BPE, CHARACTERS, WORDPIECE, Facts, Request
from scratchformers.training.sources import copied, tokenizer_of
from scratchformers.training.vision import Example, OnPictures, PictureSettings, preprocess_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HOTTEST = math.log(100)  # the largest scale, as a logarithm: cosines times 100 (section 2.5)
AT = (1, 5, 10)  # recall among the first so many
CHUNK = 256  # queries that are compared with everything at once
GROUP = 2048  # held-out pairs of which a loss is taken, at most
SHOWN = 6  # held-out pictures in words
NONE = -1  # in a table of captions: no more of them; of a class: not known
VOCAB = 2048  # ids of a BPE made from captions at most, unless the preset has more, or it is told
LENGTH = 77  # tokens of a caption at most, for a new model, unless told
HEAD = ("image.project.", "text.project.", "scale")  # what a linear probe learns

Features = Float[Tensor, "b c"]  # of length 1
Numbers = Int[Tensor, "b"]  # of pictures, or of texts
Fits = Callable[[Tensor, Tensor], Tensor]  # pictures (i,) and texts (t,) to (i, t): whether the text is the picture's


@dataclass(frozen=True)
class PairSettings(PictureSettings):
    flip: bool = False  # a caption may say left or right
    truncate: bool = False  # the end of a caption that is too long is left out; else it is an error
    template: Lines = ""  # of captions made of classes, {} for the name: a file with one a line, or several parted by |
    names: Lines = ""  # of classes, in the order of their numbers; of captions, what zero-shot tells apart

    def __post_init__(self):
        super().__post_init__()
        if self.batch < 2:
            raise ValueError(f"batch is {self.batch}: expected at least 2 pairs, for one is told from the others.")
        for each in self.templates:
            check_template(each)
        names = self.names.split("\n")
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"Two names are {twice[0]!r}: expected each once.")
        if len(names) == 1 and self.names:
            raise ValueError(f"There is one name, {self.names!r}: expected two or more, to be told apart.")

    @property
    def listed_names(self) -> list[str]:
        return self.names.split("\n") if self.names else []

    @property
    def templates(self) -> list[str]:
        return self.template.split("\n") if self.template else []


def zero_shot(settings: PairSettings, pairs: Pairs) -> tuple[list[tuple[str, ...]], list[int]]:
    """The prompts of each class that zero-shot tells apart, and the class of each picture, NONE where it is not known:
    the pictures' own, or the `names` given, where a picture's captions mention one of them alone."""
    if pairs.prompts:
        return [*pairs.prompts], pairs.pictures.targets
    names = settings.listed_names
    truth = [mentioned(captions, names) for captions in pairs.captions]
    if names and {*truth} == {NONE}:
        raise ValueError(f"No validation picture has captions that mention just one of {', '.join(names)}: see names.")
    return prompts_of(names, settings.templates), truth


# --- the loss


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous().clone()
        dist.all_reduce(grad)  # every process has a part of the loss, and each part saw these rows
        return grad.chunk(dist.get_world_size())[dist.get_rank()]


def gather(x: Tensor) -> Tensor:
    """The rows of all processes, in their order, as many from each, with their gradients; without processes, `x`."""
    return x if processes.count() == 1 else _Gather.apply(x)


def contrastive_loss(
    image: Features,
    text: Features,
    scale: Tensor,
    pictures: Numbers,
    texts: Numbers,
    fits: Fits,
    every: Callable[[Tensor], Tensor] = gather,
) -> Float[Tensor, ""]:
    """The mean of both directions' cross-entropies, over the pairs of this process, against `every` text and picture.
    Parameters whose gradients are averaged over processes, as DistributedDataParallel does, get that of one process
    with the whole batch. `scale` is a logarithm.

    Where several texts are a picture's, or several pictures a text's, each should have the same share: the sum stands
    outside the logarithm, which is the better of the two ways (Khosla et al. 2020, section 3.2.2). So no right one is a
    negative: not the same caption once more, nor another of the picture's captions, nor another prompt of its class.
    """
    to_text = scale.exp() * image @ every(text).T
    to_image = scale.exp() * text @ every(image).T
    return (_spread(to_text, fits(pictures, every(texts))) + _spread(to_image, fits(every(pictures), texts).T)) / 2


def _spread(scores: Tensor, right: Tensor) -> Tensor:
    share = right.to(scores.dtype)
    return F.cross_entropy(scores, share / share.sum(1, keepdim=True))


class Replay:
    """Torch's random state as it was when this was made, to draw the same once more."""

    def __init__(self, device: torch.device):
        self.devices = [torch.cuda.current_device()] if device.type == "cuda" else []
        self.cpu, self.cuda = torch.get_rng_state(), [torch.cuda.get_rng_state(each) for each in self.devices]

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        with torch.random.fork_rng(self.devices):
            torch.set_rng_state(self.cpu)
            for device, state in zip(self.devices, self.cuda):
                torch.cuda.set_rng_state(state, device)
            yield


def learn_cached(
    parts: Sequence[Sequence[Callable[[], Tensor]]],
    loss: Callable[..., Tensor],
    backward: Callable[[Tensor], None],
    device: torch.device,
) -> Tensor:
    """The loss of features of which each kind comes in parts, `loss(*(torch.cat(kind) for kind in parts))`; its
    gradient is added to all parameters. The graph of one part only is in memory at a time (Gao et al. 2021, GradCache):
    they are computed without, then the gradient of the loss for the features, then each part once more, with a graph,
    for its share of that. What is random is drawn alike both times.

    `backward` is called with the loss, and may scale it.
    """
    with torch.no_grad():
        found = [[(Replay(device), part()) for part in kind] for kind in parts]
    features = [torch.cat([value for _, value in kind]).requires_grad_() for kind in found]
    cost = loss(*features)
    backward(cost)
    for kind, values, whole in zip(parts, found, features):
        grads: Any = whole.grad
        for part, (replay, _), grad in zip(kind, values, grads.split([len(value) for _, value in values])):
            with replay.again():
                again = part()
            if not again.requires_grad:  # of a tower that does not learn
                break
            again.backward(grad)
    return cost.detach()


# --- what comes of it


def ranks(queries: Features, candidates: Features, right: Callable[[Tensor], Tensor]) -> Int[Tensor, "b"]:
    """How many wrong candidates stand before the first right one of each query, those that score alike included, so
    that features that are all the same find nothing. `right` gives (q, n) for the numbers of q queries."""
    found = []
    for rows in torch.arange(len(queries)).split(CHUNK):
        scores, good = queries[rows] @ candidates.T, right(rows)
        best = scores.masked_fill(~good, -math.inf).amax(1, keepdim=True)
        found.append(((scores >= best) & ~good).sum(1))
    return torch.cat(found)


def chance(right: Sequence[int], count: int, k: int) -> float:
    """The recall among the first `k` of `count` candidates in a random order, where each query has so many right."""
    several = {each: right.count(each) for each in set(right)}
    missed = sum(n * math.comb(count - each, k) for each, n in several.items()) / len(right)
    return 1 - missed / math.comb(count, k) if k < count else 1.0


class Captions:
    """Texts as ids, each once, by number: what the tokeniser reads alike is one."""

    def __init__(self, tokenizer: TextTokenizer, texts: Sequence[str], *, limit: int, truncate: bool):
        self.tokenizer, known = tokenizer, [*dict.fromkeys(texts)]
        rows = tokenizer.encode_batch(known, limit=limit, truncate=truncate)
        numbers: dict[tuple[int, ...], int] = {}
        self.numbers = {text: numbers.setdefault(tuple(ids), len(numbers)) for text, (ids, _) in zip(known, rows)}
        self.ids = [list(ids) for ids in numbers]
        self.texts = [""] * len(numbers)
        for text, number in self.numbers.items():
            self.texts[number] = self.texts[number] or text

    @property
    def longest(self) -> int:
        return max(map(len, self.ids))

    def table(self, captions: Sequence[tuple[str, ...]]) -> Int[Tensor, "n k"]:
        """The numbers of each picture's captions, and NONE where it has fewer than others."""
        most, rows = max(map(len, captions)), ([self.numbers[text] for text in each] for each in captions)
        return torch.tensor([[*row, *[NONE] * (most - len(row))] for row in rows])

    def padded(self, numbers: Sequence[int]) -> Int[Tensor, "b t"]:
        return padded([(self.ids[number], []) for number in numbers])["ids"]


def fits(table: Int[Tensor, "n k"], pictures: Numbers, texts: Numbers) -> Bool[Tensor, "i t"]:
    """Whether a text is among a picture's captions, for rows of the table and numbers of texts."""
    found = torch.zeros(len(pictures), len(texts), dtype=torch.bool, device=texts.device)
    for column in table[pictures].T:  # a column at a time: all at once would be k times as large
        found |= column[:, None] == texts
    return found


@dataclass(frozen=True)
class Measured:
    """Features of held-out pictures, by their rows, and of texts, by their numbers."""

    rows: Tensor
    image: Features
    texts: Tensor
    text: Features

    def of_texts(self, numbers: Tensor) -> Features:
        return self.text[torch.searchsorted(self.texts, numbers)]


class Contrastive(OnPictures):
    """The caption of each picture among those of the batch, and the picture of each caption.

    A row is a picture; its caption is drawn anew for each epoch. The loss of held-out pairs is that of groups of as
    many as a batch has; recall is over all of them, with all captions; zero-shot tells classes by their prompts."""

    unit, head = "pair", HEAD
    settings: PairSettings

    def __init__(
        self,
        model: Any,
        captions: Captions,
        train: Pairs,
        valid: Pairs,
        settings: PairSettings,
        preprocess: Preprocess,
    ):
        super().__init__(model, train.pictures, valid.pictures, settings, preprocess)
        if settings.batch % processes.count():
            how = f"expected a multiple of {processes.count()}, the processes, for each takes as many pairs"
            raise ValueError(f"batch is {settings.batch}: {how}.")
        self.captions, self.device = captions, next(model.parameters()).device
        self.table, self.valid_table = captions.table(train.captions), captions.table(valid.captions)
        self.fits, self.valid_fits = partial(fits, self.table.to(self.device)), partial(fits, self.valid_table)
        self.candidates = self.valid_table[self.valid_table != NONE].unique()
        self.group = min(settings.batch, len(valid), GROUP)
        self.trivial, self.duplicates = math.log(settings.batch), 0
        prompts, truth = zero_shot(settings, valid)
        self.prompts = [torch.tensor([captions.numbers[text] for text in each]) for each in prompts]
        self.truth = torch.tensor(truth)
        self.best = "accuracy" if valid.prompts else "recall"
        self.baselines = self._chance()
        self._seen: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self.measured: Measured | None = None

    # --- learning

    def completed(self, images: Tensor, examples: list[Example], rows: list[int], draw: torch.Generator) -> Batch:
        texts = [self._drawn(self.table[row], self.settings.seed, *example, 6) for example, row in zip(examples, rows)]
        ids = self.captions.padded(texts)
        return {"images": images, "rows": torch.tensor(rows), "ids": ids, "texts": torch.tensor(texts)}

    def _drawn(self, captions: Tensor, *seed: int) -> int:
        """One of a picture's captions."""
        known = captions[captions != NONE]
        return int(known[torch.randint(len(known), (), generator=generator(*seed))])

    def image(self, model: Any, images: Tensor) -> Features:
        with self.kernel(images):
            return unit(model.encode_image(images))

    def text(self, model: Any, ids: Tensor) -> Features:
        with self.kernel(ids):
            return unit(model.encode_text(ids))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        features = self.image(model, batch["images"]), self.text(model, batch["ids"])
        return self._cost(*features, rows=batch["rows"], texts=batch["texts"]) * len(batch["rows"])

    def _cost(self, image: Tensor, text: Tensor, *, rows: Tensor, texts: Tensor) -> Tensor:
        with torch.autocast(image.device.type, enabled=False):
            return contrastive_loss(image, text, self.model.scale, rows, texts, self.fits)

    def learn(self, batches: Sequence[Batch], arithmetic: Arithmetic) -> float:
        """Several batches are one, of which each caption is told from all others."""
        rows, texts = (torch.cat([batch[name] for batch in batches]).to(self.device) for name in ("rows", "texts"))
        self.duplicates = int((self.fits(gather(rows), gather(texts)).sum(0) > 1).sum())
        if len(batches) == 1:
            return super().learn(batches, arithmetic)

        def features(encode: Callable[..., Tensor], name: str, batch: Batch) -> Tensor:
            with arithmetic.cast():
                return arithmetic.shared(encode, arithmetic.put({name: batch[name]})[name], last=False)

        kinds = {"images": self.image, "ids": self.text}
        parts = [[partial(features, encode, name, batch) for batch in batches] for name, encode in kinds.items()]
        cost = partial(self._cost, rows=rows, texts=texts)
        loss = learn_cached(parts, cost, arithmetic.backward, self.device)
        return processes.total(float(loss)) / processes.count()

    def stepped(self) -> Mapping[str, float]:
        scale = self.model.scale
        if scale.requires_grad:
            scale.data.clamp_(max=HOTTEST)
        return {"scale": float(scale.detach().exp()), "duplicates": self.duplicates}

    # --- measuring

    def valid(self) -> Iterator[Batch]:
        """All texts, those of like lengths together, then all pictures."""
        self._seen = {"ids": [], "images": []}
        size = self.settings.micro_batch or self.settings.batch
        numbers = torch.cat([self.candidates, *self.prompts]).unique().tolist()
        numbers.sort(key=lambda number: len(self.captions.ids[number]))
        for start in range(0, len(numbers), size):
            some = numbers[start : start + size]
            yield {"ids": self.captions.padded(some), "numbers": torch.tensor(some)}
        yield from super().valid()

    def validation(self, images: Tensor, rows: list[int]) -> Batch:
        return {"images": images, "numbers": torch.tensor(rows)}

    def targets(self, batch: Batch) -> int:
        return len(batch["images"]) if "images" in batch else 0

    def measure(self, model: nn.Module, batch: Batch) -> dict[str, float]:
        """Nothing yet: features are kept until all of them are there."""
        encode, name = (self.image, "images") if "images" in batch else (self.text, "ids")
        self._seen[name].append((batch["numbers"].cpu(), encode(model, batch[name]).float().cpu()))
        return {}

    def figures(self, sums: Mapping[str, float], targets: int) -> dict[str, float]:
        if not targets:
            raise ValueError("None of the validation pictures can be read.")
        (texts, text), (rows, image) = (map(torch.cat, zip(*self._seen[name])) for name in ("ids", "images"))
        order = texts.argsort()
        seen = self.measured = Measured(rows, image, texts[order], text[order])
        self._seen = {}
        found = {"loss": self._valid_loss(seen), **self._recall(seen)}
        found["recall"] = sum(value for name, value in found.items() if "@" in name) / (2 * len(AT))
        known = self.truth[seen.rows] != NONE
        if bool(known.any()):
            right = self._classified(seen.image[known], seen) == self.truth[seen.rows][known]
            found["accuracy"] = float(right.double().mean())
        return found

    def _valid_loss(self, seen: Measured) -> float:
        """Of pairs in groups of one size, the rest left out; drawn, for pictures may lie by class."""
        order = torch.randperm(len(seen.rows), generator=generator(0, len(seen.rows), 7))
        scale, size, found = self.model.scale.detach().float().cpu(), min(self.group, len(seen.rows)), []
        for start in range(0, len(order) - size + 1, size):
            some = order[start : start + size]
            rows = seen.rows[some]
            texts = torch.tensor([self._drawn(self.valid_table[row], 0, int(row), 8) for row in rows])
            given = seen.image[some], seen.of_texts(texts), scale, rows, texts
            found.append(float(contrastive_loss(*given, self.valid_fits, lambda x: x)))
        return math.fsum(found) / len(found)

    def _recall(self, seen: Measured) -> dict[str, float]:
        own = self._said(seen)
        text = seen.of_texts(own)
        to_text = ranks(seen.image, text, lambda some: self.valid_fits(seen.rows[some], own))
        to_image = ranks(text, seen.image, lambda some: self.valid_fits(seen.rows, own[some]).T)
        ways = {"image_to_text": to_text, "text_to_image": to_image}
        return {f"{way}@{k}": float((found < k).double().mean()) for way, found in ways.items() for k in AT}

    def _said(self, seen: Measured) -> Tensor:
        """The captions of the pictures that were seen."""
        table = self.valid_table[seen.rows]
        return table[table != NONE].unique()

    def _classified(self, image: Tensor, seen: Measured) -> Tensor:
        """Each picture's class: the nearest mean of a class's prompts (section 3.1.4)."""
        means = torch.stack([seen.of_texts(each).mean(0) for each in self.prompts])
        return (image @ F.normalize(means, dim=-1).T).argmax(1)

    def _chance(self) -> dict[str, float]:
        """What the figures would be if nothing were known."""
        of_picture = [len({*row} - {NONE}) for row in self.valid_table.tolist()]
        of_text = [0] * (int(self.candidates.max()) + 1)
        for row in self.valid_table.tolist():
            for number in {*row} - {NONE}:
                of_text[number] += 1
        pictures, texts = len(of_picture), len(self.candidates)
        found = {f"chance_image_to_text@{k}": chance(of_picture, texts, k) for k in AT}
        found |= {f"chance_text_to_image@{k}": chance([n for n in of_text if n], pictures, k) for k in AT}
        found["chance_recall"] = sum(found.values()) / len(found)
        return found | ({"chance_accuracy": 1 / len(self.prompts)} if self.prompts else {})

    # --- showing

    def _guesses(self, seen: Measured, count: int) -> Iterator[tuple[int, str]]:
        """Held-out pictures, spread over all, as their places in `seen`, with the text found, and where that is not
        theirs with one of their own."""
        own, total = self._said(seen), len(seen.rows)
        text = seen.of_texts(own)
        for i in (n * total // min(count, total) for n in range(min(count, total))):
            number = own[int((text @ seen.image[i]).argmax())]
            row = self.valid_table[seen.rows[i]]
            said = self.captions.texts[int(number)]
            yield i, said if number in row else f"{said}, not {self.captions.texts[int(row[0])]}"

    def sample(self, model: Any) -> str:
        """What is found for some held-out pictures, of the last evaluation."""
        said = [] if self.measured is None else [line for _, line in self._guesses(self.measured, SHOWN)]
        return "\n".join([*said, *filter(None, [self.left_out()])])

    def draw(self, model: Any) -> "Figure | None":
        import matplotlib.figure

        if self.measured is None:
            return None
        guesses = [*self._guesses(self.measured, SHOWN)]
        images, _ = self._held_out([int(self.measured.rows[i]) for i, _ in guesses])
        figure = matplotlib.figure.Figure(figsize=(1.9 * len(images), 2.8), layout="constrained")
        for i, (image, (_, said)) in enumerate(zip(images, guesses)):
            axes = figure.add_subplot(1, len(images), i + 1)
            axes.imshow(self.preprocess.picture(image), cmap="gray", interpolation="nearest")
            axes.set_title(textwrap.fill(textwrap.shorten(said, 90), 22), fontsize=7)
            axes.axis("off")
        return figure


# --- a run


def prepare_pairs(
    request: Request, settings: PairSettings, fields: Mapping[str, Any]
) -> tuple[Contrastive, Facts, list[str]]:
    """A CLIP, new or from a checkpoint, and its pairs. A new one's tokeniser is learnt from the captions to train on,
    unless there is one asked for, and its `length` is that of the longest caption, unless that is given."""
    train, valid, said = _pairs(request, settings)
    if request.source is not None:  # of a hub id, model and tokeniser from one commit
        request = dataclasses.replace(request, source=hub.find(request.source))
    tokenizer = _tokenizer(request, train, max(VOCAB, fields.get("vocab", VOCAB)))
    prompts, _ = zero_shot(settings, valid)
    texts = [text for each in (*train.captions, *valid.captions, *prompts) for text in each]
    model: Any = None if request.source is None else copied(request.source, settings, fields, kind=CLIP)
    limit = settings.length or (LENGTH if model is None else model.config.length)
    captions = Captions(tokenizer, texts, limit=limit, truncate=settings.truncate)
    facts = _facts(train, valid, tokenizer)
    if model is None:
        sizes: dict[str, Any] = {**fields, "vocab": tokenizer.vocab, "end": tokenizer.end}
        sizes["length"] = fields["length"] or captions.longest
        torch.manual_seed(settings.seed)
        model = CLIP(CLIPConfig(**sizes))
    else:
        facts["source"] = {"sha256": fingerprint(model)}
    check_fits(tokenizer, model.config.vocab)
    preprocess = preprocess_of(request, model)
    model.assets = {**model.assets, **tokenizer.files}
    used = {"templates": settings.templates or [TEMPLATE]} if train.prompts else {}
    model.published = model.published | {"scratchformers": {"tokenizer": tokenizer.digest(), **used}}
    task = Contrastive(model.to(request.device), captions, train, valid, settings, preprocess)
    cut = [f"{tokenizer.cut} captions were too long, and cut."] if tokenizer.cut else []
    return task, facts, [*said, *cut, *_notes(train, captions)]


def _pairs(request: Request, settings: PairSettings) -> tuple[Pairs, Pairs, list[str]]:
    if request.data is None:
        raise ValueError("There is nothing to train on: pass --data PATH.")
    how: dict[str, Any] = {"columns": request.columns, "templates": settings.templates, "names": settings.listed_names}
    how["unreadable"] = "skip" if settings.skip_unreadable else "stop"
    train = read_pairs(request.data, **how)
    skipped = train.skipped
    if request.valid is None:
        train, valid = split_pairs(train, seed=0)
    else:
        valid = read_pairs(request.valid, **how)
        skipped = [*skipped, *valid.skipped]
    if len(valid) < 2:
        raise ValueError(
            "There is one picture to validate on, and nothing to tell it from: give more pictures, or others (--valid)."
        )
    return train, valid, said_left_out(skipped)


def _tokenizer(request: Request, train: Pairs, most: int) -> TextTokenizer:
    asked, learnt = request.tokenizer, request.source is None and request.tokenizer in (None, BPE)
    if request.vocab is not None and not learnt:
        raise ValueError(f"--vocab {request.vocab} sizes a BPE made from your captions: leave out it or --tokenizer.")
    if learnt:
        return train_clip_bpe((text for captions in train.captions for text in captions), request.vocab or most)
    if request.source is None and asked in (CHARACTERS, WORDPIECE):
        raise ValueError(f"--tokenizer {asked} is not for {request.recipe}: expected {BPE}, or a tokeniser of CLIP's.")
    found = tokenizer_of(request.source, asked)
    if found.end is None or found.around()[1] != [found.end]:
        raise ValueError(f"{asked or request.source} puts no end after a text, where CLIP reads it: choose another.")
    return found


def _facts(train: Pairs, valid: Pairs, tokenizer: TextTokenizer) -> Facts:
    parts = {"data": train, "valid": valid}
    facts: Facts = {
        name: {"sha256": part.digest(), "pictures": len(part), "captions": sum(map(len, part.captions))}
        for name, part in parts.items()
    }
    return {**facts, "tokenizer": {"sha256": tokenizer.digest(), "vocab": tokenizer.vocab}}


def _notes(train: Pairs, captions: Captions) -> list[str]:
    """What stands with several pictures, where that is not the classes' way."""
    counts = Counter(number for each in train.captions for number in {captions.numbers[text] for text in each})
    shared = sum(count > 1 for count in counts.values())
    what = f"{shared:,} of {len(counts):,} captions stand with several pictures, each of which is right in a batch."
    return [what] if shared and not train.prompts else []
