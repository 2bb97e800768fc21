"""A picture in, answers out: what it shows, or what a model paints where it is hidden."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Self, TypeVar, overload

import torch
from PIL import Image
from torch import Tensor

from scratchformers import models
from scratchformers.checkpoints import hub
from scratchformers.checkpoints.pretrained import Config
from scratchformers.generate import evaluating
from scratchformers.grid import check_pictures, count
from scratchformers.images import Preprocess, open_picture, upright
from scratchformers.painting import Painting, check_hiding, check_paints, check_rows, paint, panel, to_pictures
from scratchformers.tasks.texts import Label, TextClassifier, most_probable, shares_of

BATCH = 16  # pictures computed at once
Picture = Image.Image | Path | str | bytes | Tensor  # a file, what is in one, or prepared (channels, height, width)
Item = TypeVar("Item")
Made = TypeVar("Made")


def read_ahead(make: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """What `make` makes of each item, in their order. A batch is being made in threads while the one before is computed
    with: no more than that is taken from `items`. An error comes at its item's turn."""
    threads, coming = ThreadPoolExecutor(torch.get_num_threads(), "pictures"), deque[Future[Made]]()
    try:
        for item in items:
            coming.append(threads.submit(make, item))
            if len(coming) > BATCH:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
    finally:
        threads.shutdown(cancel_futures=True)


class _Seeing:
    """A model of pictures, and how they are prepared for it."""

    def __init__(self, model: Any, preprocess: Preprocess):
        self._check(model)
        channels = len(preprocess.mean)
        if channels != model.config.channels:
            raise ValueError(
                f"Pictures are prepared with {channels} channels and the model reads {model.config.channels}: pass a "
                "preprocess= whose mean and std are as many numbers."
            )
        self.model, self.preprocess = model, preprocess.sized(model.config.image)

    @classmethod
    def _check(cls, model: Any) -> None:
        """ValueError for a model that cannot be asked this."""
        if not hasattr(model.config, "image"):
            raise ValueError(f"{type(model).__name__} reads no pictures: expected a model that does, like ViT.")

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        config: Config | str | None = None,
        preprocess: Preprocess | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        **options: Any,
    ) -> Self:
        """`config` and `options` are those of `load`; `preprocess` is for a checkpoint that does not say how pictures
        are prepared, and replaces what one says. Both come from one commit, whatever happens to a branch."""
        folder = hub.find(source, revision=revision, local_files_only=local_files_only)
        return cls.of(models.load(folder, config=config, **options), folder, preprocess)

    @classmethod
    def of(cls, model: Any, folder: Path, preprocess: Preprocess | None = None) -> Self:
        """Prepared, unless told otherwise, as the model's folder, or file, says."""
        cls._check(model)
        return cls(model, models.load_preprocess(folder, model=model) if preprocess is None else preprocess)

    def prepare(self, picture: Picture) -> Tensor:
        """(channels, height, width), as the model reads it. ValueError for what is no picture."""
        if isinstance(picture, Tensor):
            check_pictures(picture[None], self.model.config.image, self.model.config.channels)
            return picture
        return self.preprocess(upright(picture) if isinstance(picture, Image.Image) else open_picture(picture))

    def _batches(self, pictures: Iterable[Picture]) -> Iterator[Tensor]:
        """Prepared, so many at a time: what a picture was decoded to is not kept."""
        # Pillow's pictures are taken as they are now: they load in place, which two threads may not do at once, and all
        # frames of an animated one are the same object.
        taken = (upright(each) if isinstance(each, Image.Image) else each for each in pictures)
        weight, left = next(self.model.parameters()), read_ahead(self.prepare, taken)
        while some := list(islice(left, BATCH)):
            yield torch.stack(some).to(weight.device, weight.dtype)


def _is_one(pictures: Any) -> bool:
    return isinstance(pictures, Picture) and getattr(pictures, "ndim", 3) == 3


def _several(pictures: Any) -> Iterable[Picture]:
    return [pictures] if _is_one(pictures) else pictures


class ImageClassifier(_Seeing):
    """Labels of a picture: `ImageClassifier.from_pretrained(source)("photo.jpg")`."""

    @classmethod
    def _check(cls, model: Any) -> None:
        super()._check(model)
        if hasattr(model, "encode_text"):
            raise ValueError(
                f"{type(model).__name__} has no labels of its own: say which it is to choose from, by --labels "
                '"a cat, a dog", or in Python by ZeroShotClassifier.'
            )
        if not hasattr(getattr(model, "head", None), "labels"):
            raise ValueError("This checkpoint has no labels: train it with `train vit`, or choose one that has.")

    @overload
    def __call__(self, image: Picture, *, top: int | None = 5) -> list[Label]: ...
    @overload
    def __call__(self, image: Sequence[Picture], *, top: int | None = 5) -> list[list[Label]]: ...
    def __call__(self, image: Any, *, top: int | None = 5) -> list[Any]:
        """Of a picture its labels, the most probable first, at most `top`; of a list of pictures a list of these. The
        answer for one does not depend on the others.

        A picture is Pillow's, a path, the bytes of a file, or prepared by yourself. ValueError for what is no picture.
        """
        if top is not None and top < 1:
            raise ValueError(f"top is {top}: expected at least 1.")
        answers: list[Any] = []
        for images in self._batches(_several(image)):
            with evaluating(self.model):
                shares = shares_of(self.model(images).float(), self.model)
            answers += [most_probable(each, self.model, top) for each in shares]
        return answers[0] if _is_one(image) else answers


@dataclass(frozen=True)
class Reconstruction:
    """What is there, what was shown (hidden patches in grey), what was painted of all, and that where it was hidden."""

    original: Image.Image
    masked: Image.Image
    prediction: Image.Image
    pasted: Image.Image


class Reconstructor(_Seeing):
    """Hides most of a picture and paints it: `Reconstructor.from_pretrained(source)("photo.jpg").pasted`."""

    @classmethod
    def _check(cls, model: Any) -> None:
        super()._check(model)
        check_paints(model)

    def __call__(
        self,
        image: Picture | Sequence[Picture],
        *,
        mask_ratio: float = 0.75,
        seed: int = 0,
        statistics: str = "visible",
    ) -> Any:
        """A `Reconstruction` of a picture, of a list a list. `seed` draws which `mask_ratio` of the patches are hidden,
        the same of every picture; `statistics` is `painting.paint`'s. ValueError for what is no picture."""
        painted = self._paint(_several(image), mask_ratio, seed, statistics)
        answers = [Reconstruction(*four) for painting in painted for four in to_pictures(painting, self.preprocess)]
        return answers[0] if _is_one(image) else answers

    def panel(
        self,
        image: Picture | Sequence[Picture],
        *,
        mask_ratio: float = 0.75,
        seed: int = 0,
        statistics: str = "visible",
        note: str | None = None,
    ) -> Any:
        """A matplotlib Figure of what the call gives, a picture a row. Where hidden patches have their own statistics,
        it says so."""
        pictures = list(_several(image))
        check_rows(len(pictures))
        painted = list(self._paint(pictures, mask_ratio, seed, statistics))
        names = ("original", "masked", "prediction", "pasted", "mask")
        together: Any = {name: torch.cat([getattr(each, name) for each in painted]) for name in names}
        return panel(Painting(**together, statistics=painted[0].statistics), self.preprocess, note=note)

    def _paint(self, pictures: Iterable[Picture], mask_ratio: float, seed: int, statistics: str) -> Iterator[Painting]:
        """Some pictures at a time."""
        check_hiding(mask_ratio, seed)
        patches = count(self.model.config.image, self.model.config.patch)
        noise = torch.rand(patches, generator=torch.Generator().manual_seed(seed))
        for images in self._batches(pictures):
            given = {"noise": noise.expand(len(images), -1), "mask_ratio": mask_ratio}
            with evaluating(self.model):
                painting = paint(self.model, images, statistics=statistics, **given)
            yield painting


def load_classifier(
    source: str | Path, *, revision: str | None = None, local_files_only: bool = False, **options: Any
) -> ImageClassifier | TextClassifier:
    """Of pictures or of texts, as the checkpoint's model reads them. `options` are those of `load`."""
    folder = hub.find(source, revision=revision, local_files_only=local_files_only)
    model = models.load(folder, **options)
    return (ImageClassifier if hasattr(model.config, "image") else TextClassifier).of(model, folder)
