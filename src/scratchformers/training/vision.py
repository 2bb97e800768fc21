"""Pictures to learn from: what a ViT and a masked autoencoder are given, and what that costs.

Pictures are read and changed at random in threads, a step ahead; what is random about one follows from (seed, epoch,
row), so that a resumed run sees the same.
"""

import contextlib
import dataclasses
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from scratchformers import painting
from scratchformers.checkpoints import files, hub
from scratchformers.checkpoints.pretrained import fingerprint
from scratchformers.generate import evaluating
from scratchformers.grid import cells, height_width
from scratchformers.heads import Classify
from scratchformers.images import Preprocess, to_mode
from scratchformers.models import load_preprocess
from scratchformers.models.mae import MAE, MAEConfig
from scratchformers.models.vit import ViT, ViTConfig
from scratchformers.training import augment
from scratchformers.training.data import generator
from scratchformers.training.loop import Batch, Settings, Task
from scratchformers.training.pictures import Pictures, read_pictures, said_left_out, split
from scratchformers.training.reading import class_numbers, held_out_noise
from scratchformers.training.request import Facts, Request
from scratchformers.training.sources import copied

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHUNK = 16  # pictures a thread reads at once
SHOWN = 8  # validation pictures to be looked at
MEASURED = 256  # training pictures from which the cost of knowing nothing is taken
Example = tuple[int, int]  # (epoch, row)


@dataclass(frozen=True)
class PictureSettings(Settings):
    """What is done to training pictures; validation pictures are only resized and cropped from the middle."""

    crop: float = 1.0  # the least share of a picture that a random crop keeps; 1: no such crops
    shift: int = 0  # pixels by which a picture is moved at most, black coming in
    flip: bool = True  # left for right, every other time
    randaugment: int = 0  # operations of RandAugment on a picture (needs kornia)
    magnitude: int = 9  # of these
    skip_unreadable: bool = False  # pictures that cannot be read are left out and counted; else they end the run

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.crop <= 1:
            raise ValueError(f"crop is {self.crop}: expected a share of the picture, above 0 and at most 1.")
        if not 0 < self.magnitude < 30:
            raise ValueError(f"magnitude is {self.magnitude}: expected 1 to 29.")


@dataclass(frozen=True)
class ClassSettings(PictureSettings):
    label_smoothing: float = 0.0  # share of a target that goes to all classes alike
    mixup: float = 0.0  # Beta(mixup, mixup) mixes pictures; 0: none
    cutmix: float = 0.0  # Beta(cutmix, cutmix) pastes a rectangle of another picture; 0: none
    erasing: float = 0.0  # share of pictures of which a rectangle is erased
    drop_path: float = 0.0  # stochastic depth: share of pictures that skip the last block's branches; less before it

    def __post_init__(self):
        super().__post_init__()
        for name in ("label_smoothing", "erasing", "drop_path"):
            if getattr(self, name) >= 1 and not (name == "erasing" and self.erasing == 1):
                raise ValueError(f"{name} is {getattr(self, name)}: expected less than 1.")


@dataclass(frozen=True)
class PaintSettings(PictureSettings):
    mask_ratio: float = 0.75  # share of the patches that is hidden

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"mask_ratio is {self.mask_ratio}: expected a share of the patches, between 0 and 1.")


class StochasticDepth(nn.Module):
    """Leaves a residual branch out for a share of the rows, in training (Huang et al. 2016); the others count more, so
    that the mean stays."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and self.rate):
            return x
        kept = torch.rand(len(x), *[1] * (x.ndim - 1), device=x.device) >= self.rate
        return x * kept / (1 - self.rate)


def set_stochastic_depth(model: Any, rate: float) -> None:
    """The last block's branches are left out at this rate, the first's never, those between in proportion."""
    for i, block in enumerate(model.blocks):
        own = rate * i / max(1, len(model.blocks) - 1)
        block.dropout = nn.Sequential(block.dropout, StochasticDepth(own)) if own else block.dropout


class OnPictures(Task):
    """What tasks on pictures share: reading them ahead, in threads, and making batches of them."""

    unit = "picture"
    settings: Any

    def __init__(self, model: Any, train: Pictures, valid: Pictures, settings: Any, preprocess: Preprocess):
        self.model, self.train_pictures, self.valid_pictures = model, train, valid
        self.settings, self.preprocess, self.rows = settings, preprocess, len(train)
        self.size, self.channels = height_width(model.config.image), model.config.channels
        self.randaugment = (
            augment.RandAugment(settings.randaugment, settings.magnitude) if settings.randaugment else None
        )
        self.unreadable: dict[str, str] = {}  # names of what could not be decoded, and why
        self._threads = ThreadPoolExecutor(settings.workers or settings.threads or 1, "pictures")
        self._coming: dict[Example, tuple[Future[list[tuple[np.ndarray, int]]], int]] = {}

    def expect(self, examples: list[Example]) -> None:
        self._coming = {}
        for start in range(0, len(examples), CHUNK):
            some = examples[start : start + CHUNK]
            future = self._threads.submit(lambda some: [self._training(each) for each in some], some)
            self._coming |= {example: (future, i) for i, example in enumerate(some)}

    def _read(self, examples: list[Example]) -> list[tuple[np.ndarray, int]]:
        if not all(example in self._coming for example in examples):
            self.expect(examples)
        return [future.result()[i] for future, i in map(self._coming.__getitem__, examples)]

    def _training(self, example: Example) -> tuple[np.ndarray, int]:
        """Pixels of a training picture as this epoch sees it, and the row they are of."""
        epoch, row = example
        draw, settings = generator(self.settings.seed, epoch, row, 2), self.settings
        image, found = self._decoded(row)
        height, width = self.size
        if settings.crop < 1:
            how, shape = self.preprocess.interpolation, width / height  # about that of what the model reads
            image = augment.random_resized_crop(
                image, (width, height), draw, scale=(settings.crop, 1.0), ratio=(shape * 3 / 4, shape * 4 / 3),
                interpolation=how,
            )  # fmt: skip
        else:
            image = self.preprocess.pixels(image)
        image = augment.random_shift(image, settings.shift, draw) if settings.shift else image
        return np.asarray(augment.random_flip(image, draw) if settings.flip else image), found

    def _decoded(self, row: int) -> tuple[Image.Image, int]:
        """The picture of a row, or where it cannot be read and may be left out, of the next one that can be."""
        for i in range(row, row + self.rows):
            image = self._try(self.train_pictures, i % self.rows)
            if image is not None:
                return to_mode(image, self.channels), i % self.rows
        raise ValueError("None of the training pictures can be read.")

    def _try(self, pictures: Pictures, row: int) -> Image.Image | None:
        """The picture; None, and noted, where it cannot be read and may be left out."""
        try:
            return pictures.image(row)
        except ValueError as error:
            if not self.settings.skip_unreadable:
                raise ValueError(f"{error} To go on without such pictures: --skip-unreadable.") from None
            self.unreadable[pictures.name(row)] = str(error)
        return None

    def _normalised(self, pixels: Tensor) -> Tensor:
        """Of pixels from 0 to 1, as the preprocessing of single pictures does."""
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.preprocess.mean, self.preprocess.std))
        scale = 255 * self.preprocess.rescale
        return (pixels if math.isclose(scale, 1) else pixels.mul_(scale)).sub_(mean).div_(std)

    def batch(self, examples: list[Example]) -> Batch:
        arrays, rows = zip(*self._read(examples))
        pixels = torch.from_numpy(np.stack(arrays))
        pixels = rearrange(pixels, "b y x c -> b c y x") if pixels.ndim == 4 else pixels[:, None]
        pixels = pixels.float().div_(255)
        draw = generator(self.settings.seed, *examples[0], 3)
        if self.randaugment is not None:
            pixels = self.randaugment(pixels, draw)
        return self.completed(self._normalised(pixels.contiguous()), examples, list(rows), draw)

    @abstractmethod
    def completed(self, images: Tensor, examples: list[Example], rows: list[int], draw: torch.Generator) -> Batch:
        """The batch of these pictures, asked for as `examples` and read from `rows`, and what goes with them."""

    def valid(self) -> Iterator[Batch]:
        size = self.settings.micro_batch or self.settings.batch
        for start in range(0, len(self.valid_pictures), size):
            images, rows = self._held_out(range(start, min(start + size, len(self.valid_pictures))))
            if rows:
                yield self.validation(images, rows)

    def _held_out(self, rows: Sequence[int]) -> tuple[Tensor, list[int]]:
        """Validation pictures, prepared, and their rows: those that can be read."""
        found = [(x, row) for x, row in zip(self._threads.map(self._prepared, rows), rows) if x is not None]
        images = torch.stack([x for x, _ in found]) if found else torch.empty(0)
        return images, [row for _, row in found]

    def _prepared(self, row: int) -> Tensor | None:
        image = self._try(self.valid_pictures, row)
        return None if image is None else self.preprocess(image)

    @abstractmethod
    def validation(self, images: Tensor, rows: list[int]) -> Batch: ...

    def targets(self, batch: Batch) -> int:
        return len(batch["images"])

    def kernel(self, images: Tensor) -> contextlib.AbstractContextManager[Any]:
        """The attention to compute with: in bf16 on a CPU the written-out one, for of so few tokens the fused one takes
        two to three times as long backward."""
        plain = self.settings.autocast == "bf16" and images.device.type == "cpu"
        return sdpa_kernel(SDPBackend.MATH) if plain else contextlib.nullcontext()

    def shown(self) -> tuple[Tensor, list[int]]:
        """Validation pictures to be looked at, spread over all, and their rows."""
        count = len(self.valid_pictures)
        images, rows = self._held_out([i * count // min(SHOWN, count) for i in range(min(SHOWN, count))])
        return images.to(next(self.model.parameters()).device), rows

    def left_out(self) -> str:
        """What could not be read so far."""
        return "".join(said_left_out(sorted(self.unreadable)))


class Classes(OnPictures):
    """The class of each picture."""

    best = "accuracy"

    def __init__(self, model: Any, train: Pictures, valid: Pictures, settings: ClassSettings, preprocess: Preprocess):
        super().__init__(model, train, valid, settings, preprocess)
        labels = model.head.labels
        self.numbers, self.valid_numbers = (class_numbers(part, labels, "those to train on") for part in (train, valid))
        counts = self.valid_numbers.bincount()
        self.trivial = math.log(len(labels))
        self.baselines = {"most_frequent_accuracy": float(counts.max() / counts.sum())}

    def completed(self, images: Tensor, examples: list[Example], rows: list[int], draw: torch.Generator) -> Batch:
        settings, numbers = self.settings, self.numbers[rows]
        targets = augment.one_hot(numbers, len(self.model.head.labels), settings.label_smoothing)
        images, targets = augment.mix(images, targets, draw, mixup=settings.mixup, cutmix=settings.cutmix)
        images = augment.erase(images, draw, p=settings.erasing) if settings.erasing else images
        return {"images": images, "targets": targets}

    def validation(self, images: Tensor, rows: list[int]) -> Batch:
        return {"images": images, "targets": self.valid_numbers[rows]}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        with self.kernel(batch["images"]):
            return F.cross_entropy(model(batch["images"]).float(), batch["targets"], reduction="sum")

    def measure(self, model: nn.Module, batch: Batch) -> dict[str, float]:
        return class_figures(model(batch["images"]).float(), batch["targets"])

    def sample(self, model: Any) -> str:
        return self.left_out()

    def draw(self, model: Any) -> "Figure | None":
        import matplotlib.figure

        (images, rows), labels = self.shown(), model.head.labels
        if not rows:
            return None
        with evaluating(model):
            guesses = model(images).argmax(-1).tolist()
        figure = matplotlib.figure.Figure(figsize=(1.6 * len(images), 2.1), layout="constrained")
        for i, (image, row, guess) in enumerate(zip(images, rows, guesses)):
            axes = figure.add_subplot(1, len(images), i + 1)
            axes.imshow(self.preprocess.picture(image), cmap="gray", interpolation="nearest")
            truth = labels[int(self.valid_numbers[row])]
            axes.set_title(labels[guess] if labels[guess] == truth else f"{labels[guess]},\nnot {truth}", fontsize=8)
            axes.axis("off")
        return figure


def class_figures(scores: Tensor, numbers: Tensor) -> dict[str, float]:
    """The loss, how many are right, and where there are more than five classes how many are among the first five, of
    scores (b, classes) for the classes `numbers` (b,), summed."""
    found = {"loss": float(F.cross_entropy(scores, numbers, reduction="sum"))}
    order = scores.topk(min(5, scores.shape[1])).indices == numbers[:, None]
    found["accuracy"] = float(order[:, 0].sum())
    return found | ({"top5": float(order.any(1).sum())} if scores.shape[1] > 5 else {})


class Painting(OnPictures):
    """What is hidden of each picture."""

    def __init__(self, model: Any, train: Pictures, valid: Pictures, settings: PaintSettings, preprocess: Preprocess):
        super().__init__(model, train, valid, settings, preprocess)
        self.patches = math.prod(cells(model.config.image, model.config.patch))
        # Of normalised patches the mean, 0, is off by their own variance, which divides by one less.
        count = model.config.channels * model.config.patch**2
        self.trivial = (count - 1) / count if model.config.norm_pix_loss else self._variance()

    def _variance(self) -> float:
        """Of the pixels of some training pictures, within each channel."""
        count, total, squares = 0, torch.zeros(self.channels), torch.zeros(self.channels)
        for row in range(0, self.rows, -(-self.rows // MEASURED)):
            image = self._try(self.train_pictures, row)
            if image is not None:
                x = self.preprocess(image).flatten(1).double()
                count, total, squares = count + x.shape[1], total + x.sum(1), squares + x.square().sum(1)
        if not count:
            raise ValueError("None of the training pictures can be read.")
        return float((squares / count - (total / count).square()).mean())

    def completed(self, images: Tensor, examples: list[Example], rows: list[int], draw: torch.Generator) -> Batch:
        draws = (generator(self.settings.seed, *example, 4) for example in examples)
        return {"images": images, "noise": torch.stack([torch.rand(self.patches, generator=each) for each in draws])}

    def validation(self, images: Tensor, rows: list[int]) -> Batch:
        return {"images": images, "noise": held_out_noise(self.patches, rows)}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        images = batch["images"]
        with self.kernel(images):
            return model(images, noise=batch["noise"], mask_ratio=self.settings.mask_ratio).loss * len(images)

    def sample(self, model: Any) -> str:
        return self.left_out()

    def draw(self, model: Any) -> "Figure | None":
        images, rows = self.shown()
        if not rows:
            return None
        noise = held_out_noise(self.patches, rows)
        painted = painting.paint(model, images, noise=noise, mask_ratio=self.settings.mask_ratio)
        return painting.panel(painted, self.preprocess)


def prepare_classes(
    request: Request, settings: ClassSettings, fields: Mapping[str, Any]
) -> tuple[Classes, Facts, list[str]]:
    """A ViT with a class for each picture to learn, from nothing, a ViT's or a masked autoencoder's encoder."""
    train, valid, said = _pictures(request, settings, labelled=True)

    def new() -> ViT:
        sizes: dict[str, Any] = {**fields, "classes": len(train.labels)}
        return ViT(ViTConfig(**sizes))

    model, facts = _model(request, settings, fields, ViT, new)
    said += _put_head(model, train.labels)
    set_stochastic_depth(model, settings.drop_path)
    task = Classes(model.to(request.device), train, valid, settings, preprocess_of(request, model))
    return task, facts | _facts(train, valid), said


def prepare_painting(
    request: Request, settings: PaintSettings, fields: Mapping[str, Any]
) -> tuple[Painting, Facts, list[str]]:
    """A masked autoencoder, which asks for pictures alone."""
    train, valid, said = _pictures(request, settings, labelled=False)
    model, facts = _model(request, settings, fields, MAE, lambda: MAE(MAEConfig(**fields)))
    if model.decoder is None:
        raise ValueError(f"{request.source} has no decoder, so it cannot learn to paint: choose a file that has one.")
    task = Painting(model.to(request.device), train, valid, settings, preprocess_of(request, model))
    return task, facts | _facts(train, valid), said


def _pictures(request: Request, settings: PictureSettings, *, labelled: bool) -> tuple[Pictures, Pictures, list[str]]:
    if request.data is None:
        raise ValueError("There is nothing to train on: pass --data FOLDER.")
    if request.tokenizer is not None or request.vocab is not None or request.columns:
        raise ValueError(f"--tokenizer, --vocab and --column are for texts: leave them out for {request.recipe}.")
    how: dict[str, Any] = {"labelled": labelled, "unreadable": "skip" if settings.skip_unreadable else "stop"}
    train = read_pictures(request.data, **how)
    skipped = train.skipped
    if request.valid is None:
        train, valid = split(train, seed=0)
    else:
        valid = read_pictures(request.valid, **how)
        skipped = [*skipped, *valid.skipped]
    return train, valid, said_left_out(skipped)


def _model(
    request: Request, settings: PictureSettings, fields: Mapping[str, Any], kind: type, new: Callable[[], Any]
) -> tuple[Any, Facts]:
    if request.source is None:
        torch.manual_seed(settings.seed)
        return new(), {}
    model = copied(hub.find(request.source), settings, fields, kind=kind)
    return model, {"source": {"sha256": fingerprint(model)}}


def _facts(train: Pictures, valid: Pictures) -> Facts:
    parts = {"data": train, "valid": valid}
    return {name: {"sha256": part.digest(), "pictures": len(part)} for name, part in parts.items()}


def _put_head(model: Any, labels: Sequence[str]) -> list[str]:
    """A head for these labels, unless it has one that knows them, and keeps its own order."""
    if isinstance(model.head, Classify) and {*model.head.labels} == {*labels} and model.head.pool == model.pool:
        return ["The checkpoint's own head has these classes: training goes on with it."]
    model.pooler = None  # which no head reads
    model.head = Classify(model.config.dim, labels, pool=model.pool)
    model.config = dataclasses.replace(model.config, classes=len(labels))
    return []


def preprocess_of(request: Request, model: Any) -> Preprocess:
    """The source's own, or for a new model pixels from -1 to 1, the shorter side resized to the model's; it is saved
    with the model."""
    size = height_width(model.config.image)
    if request.source is not None:
        found = load_preprocess(hub.find(request.source), model=model).sized(size)
    else:
        if model.config.channels not in (1, 3):
            raise ValueError(f"channels is {model.config.channels}: expected 3, or 1 for grey pictures.")
        half = (0.5,) * model.config.channels
        short = size[0] if size[0] == size[1] else size
        found = Preprocess(short, size, mean=half, std=half, middle="floor")  # which transformers prepares alike
    model.assets = {files.PREPROCESSOR: files.to_json(found.write())}
    return found
