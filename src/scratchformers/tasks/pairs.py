"""Pictures and texts in one space: which of some labels suits a picture, which of many pictures a text."""

import importlib.util
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
import torch
from torch import Tensor

from scratchformers import models
from scratchformers.checkpoints import files, hub
from scratchformers.checkpoints.pretrained import fingerprint
from scratchformers.clip_text import SLOT, check_template
from scratchformers.generate import evaluating
from scratchformers.heads import unit
from scratchformers.images import Preprocess
from scratchformers.models.clip import CLIP
from scratchformers.tasks.pictures import Picture, _is_one, _Seeing, _several
from scratchformers.tasks.texts import BATCH_TOKENS, Label, SentenceEncoder, Track
from scratchformers.tasks.vectors import finite, write_rows, write_vectors
from scratchformers.text import TextTokenizer, check_belongs, check_fits, padded

CHUNK_TEXTS = 1024  # read at once, so that those of like lengths come together
ROWS = 2**16  # of an index, compared with at once
KEPT = 8  # sets of labels whose vectors are kept
# Ours: a label may stand in them with its article and without.
TEMPLATES = (
    "a photo of {}.",
    "a close photo of {}.",
    "a photo in which there is {}.",
    "a picture of {}.",
    "a drawing of {}.",
)
IMAGENET = "imagenet"  # names the 80 templates that were published with CLIP

Templates = str | Path | Sequence[str]


def read_templates(given: Templates | None) -> tuple[str, ...]:
    """Of None our own TEMPLATES; "imagenet" is the 80 published with CLIP, which open_clip holds; a text with a slot is
    a template, any other the name of a UTF-8 file with one a line. ValueError for one without a slot."""
    if given is None:
        return TEMPLATES
    if given == IMAGENET:
        found = _imagenet()
    elif isinstance(given, str) and SLOT in given:
        found = [given]
    else:
        found = _lines(Path(given)) if isinstance(given, str | Path) else list(given)
    if not found:
        raise ValueError(f"There are no templates: expected one or more, as {TEMPLATES[0]!r}.")
    return tuple(check_template(each) for each in found)


def _imagenet() -> list[str]:
    """From the one file of open_clip that has them: importing all of it would take seconds."""
    spec = importlib.util.find_spec("open_clip")
    folders = spec.submodule_search_locations if spec else None
    place = Path((folders or [""])[0]) / "zero_shot_metadata.py"
    if not (folders and place.is_file()):
        raise ValueError(
            "The ImageNet templates are read from open_clip, which is not installed: pip install open_clip_torch, or "
            "pass a file of templates."
        )
    found: Any = importlib.util.spec_from_file_location("zero_shot_metadata", place)
    module: Any = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return [template(SLOT) for template in module.OPENAI_IMAGENET_TEMPLATES]


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: expected a file with a template a line, a template with {SLOT}, or {IMAGENET}."
        )
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason}): convert it.") from None
    return [line.strip() for line in lines if line.strip()]


def check_labels(labels: Sequence[str]) -> list[str]:
    """Without the white space around them. ValueError for fewer than two, for the share of a single one is 1 whatever
    the picture, and for one that is empty or comes twice."""
    if isinstance(labels, str):
        raise ValueError(f"labels is the text {labels!r}: expected a list of texts.")
    names = [each.strip() if isinstance(each, str) else each for each in labels]
    for number, each in enumerate(names, 1):
        if not isinstance(each, str) or not each:
            raise ValueError(f"Label {number} of {len(names)} is {each!r}: expected a text.")
    if len(names) < 2:
        one = f"There is one label, {names[0]!r}, which would get 100 % of any picture" if names else ""
        raise ValueError(f"{one or 'There are no labels'}: expected two or more to choose from.")
    if len({*names}) < len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise ValueError(f"The label {twice!r} is there twice, so that its share would be divided: leave one out.")
    return names


class DualEncoder(_Seeing):
    """Vectors of pictures and of texts, which can be compared: `DualEncoder.from_pretrained(source)`."""

    def __init__(self, model: Any, tokenizer: TextTokenizer, preprocess: Preprocess):
        super().__init__(model, preprocess)
        check_fits(tokenizer, model.config.vocab)
        end = tokenizer.vocab - 1 if model.config.end is None else model.config.end
        if tokenizer.end != end:  # the vector would be read at another place
            raise ValueError(
                f"The tokeniser ends a text with the id {tokenizer.end} and the model reads it at {end}: they do not "
                "belong together."
            )
        self.tokenizer = tokenizer
        self._fingerprint: tuple[Any, str] = (None, "")

    @classmethod
    def _check(cls, model: Any) -> None:
        if not isinstance(model, CLIP):
            raise ValueError(
                f"{type(model).__name__} does not compare pictures with texts: expected a CLIP (labels, templates and "
                "queries are for one)."
            )

    @classmethod
    def of(cls, model: Any, folder: Path, preprocess: Preprocess | None = None) -> Self:
        """With the tokeniser that lies in the model's folder, prepared, unless told otherwise, as the folder says."""
        cls._check(model)
        tokenizer = models.load_tokenizer(folder)
        check_belongs(tokenizer, model)
        found = models.load_preprocess(folder, model=model) if preprocess is None else preprocess
        return cls(model, tokenizer, found)

    def encode_images(self, pictures: Picture | Iterable[Picture], *, normalize: bool = True) -> np.ndarray:
        """(n, dim) of pictures, (dim,) of one, float32, of length 1, or as published. Any iterable is gone through some
        pictures at a time. ValueError for what is no picture."""
        found = [vectors for _, vectors in self.stream_images(_several(pictures), normalize=normalize)]
        vectors = np.concatenate([np.empty((0, self.model.config.dim), np.float32), *found])
        return vectors[0] if _is_one(pictures) else vectors

    def stream_images(self, pictures: Iterable[Picture], *, normalize: bool = True) -> Iterator[tuple[int, np.ndarray]]:
        """The same for any number of pictures, some at a time, with the number of the first of them: two batches are in
        memory."""
        start = 0
        for images in self._batches(pictures):
            yield start, _array(self.image_features(images), normalize)
            start += len(images)

    def image_features(self, images: Tensor) -> Tensor:
        """(b, dim) of prepared pictures, as published, in the model's dtype."""
        with evaluating(self.model):
            return self.model.encode_image(images)

    def encode_texts(self, texts: str | Iterable[str], *, normalize: bool = True, truncate: bool = False) -> np.ndarray:
        """(n, dim) of texts, (dim,) of one, float32, of length 1, or as published. ValueError for one that is too long,
        unless its end may be left out."""
        given = [texts] if isinstance(texts, str) else texts
        found = [vectors for _, vectors in self.stream_texts(given, normalize=normalize, truncate=truncate)]
        vectors = np.concatenate([np.empty((0, self.model.config.dim), np.float32), *found])
        return vectors[0] if isinstance(texts, str) else vectors

    def stream_texts(
        self, texts: Iterable[str], *, normalize: bool = True, truncate: bool = False
    ) -> Iterator[tuple[int, np.ndarray]]:
        """The same for any number of texts, a thousand at a time, with the number of the first of them."""
        left, start = iter(texts), 0
        while some := list(islice(left, CHUNK_TEXTS)):
            yield start, _array(self.text_features(some, truncate=truncate), normalize)
            start += len(some)

    def write(
        self,
        texts: Iterable[str],
        path: Path | str,
        *,
        normalize: bool = True,
        truncate: bool = False,
        track: Track = lambda items, total: items,
    ) -> int:
        """The vectors of all texts, in their order, into a .npy file, float32 (n, dim), which appears when it is
        complete; returns how many there are. `track` is told of texts that can be gone through twice."""
        found = self.stream_texts(texts, normalize=normalize, truncate=truncate)
        if iter(texts) is not texts:
            found = track(found, -(-sum(1 for _ in texts) // CHUNK_TEXTS))
        return write_vectors(Path(path), found, self.model.config.dim)

    def text_features(self, texts: Sequence[str], *, truncate: bool = False) -> Tensor:
        """(n, dim), as published, in the model's dtype."""
        rows = self.tokenizer.encode_batch(texts, limit=self.model.config.length, truncate=truncate)
        return self.id_features([ids for ids, _ in rows])

    def id_features(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """The same of ids: those of like lengths together, in batches of about as many tokens."""
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        weight = next(self.model.parameters())
        found = torch.empty(len(rows), self.model.config.dim, device=weight.device, dtype=weight.dtype)
        while order:
            count = max(1, BATCH_TOKENS // len(rows[order[0]]))
            some, order = order[:count], order[count:]
            ids = padded([([*rows[i]], []) for i in some])["ids"].to(weight.device)
            with evaluating(self.model):
                found[some] = self.model.encode_text(ids)
        return found

    def fingerprint(self) -> str:
        """Of the model's weights: taken once, until they change."""
        state = _state(self.model)
        if self._fingerprint[0] != state:
            self._fingerprint = state, fingerprint(self.model)
        return self._fingerprint[1]

    # --- many pictures, to be looked for by texts

    def index(
        self,
        pictures: Iterable[tuple[str, Picture]],
        path: Path | str | None = None,
        *,
        normalize: bool = True,
    ) -> "PictureIndex":
        """The vectors of pictures, each given with what it is called: in memory, or in the .npy file `path`, float32
        (n, dim), with the names in order in a .json file beside it; both appear when they are complete. Any number
        of pictures is written in bounded memory. ValueError if there are none."""
        names: list[str] = []

        def given() -> Iterator[Picture]:
            for name, picture in pictures:
                names.append(name)
                yield picture

        vectors, model = self.stream_images(given(), normalize=normalize), self.fingerprint()
        if path is None:
            found = [some for _, some in vectors]
            _check_some(names)
            return PictureIndex(np.concatenate(found), names, model)

        def describe(temporary: Path) -> None:
            _check_some(names)
            temporary.write_bytes(files.to_json({"model": model, "normalized": normalize, "pictures": names}))

        path = Path(path)
        writers = {path.name: lambda file: write_rows(file, vectors, self.model.config.dim), beside(path): describe}
        files.write_together(path.parent, writers, last=beside(path))
        return PictureIndex.read(path)

    @overload
    def search(self, index: "PictureIndex", query: str, *, top: int = 5, truncate: bool = False) -> list["Match"]: ...
    @overload
    def search(
        self, index: "PictureIndex", query: Sequence[str], *, top: int = 5, truncate: bool = False
    ) -> list[list["Match"]]: ...
    def search(self, index: "PictureIndex", query: Any, *, top: int = 5, truncate: bool = False) -> list[Any]:
        """The `top` pictures of the index that suit a text best, of a list of texts a list of these. ValueError for an
        index of another model's vectors, and for an empty text."""
        if index.model != self.fingerprint():
            raise ValueError("The index holds vectors of another model, which do not fit this one's texts: index anew.")
        queries = [query] if isinstance(query, str) else list(query)
        if not all(each.strip() for each in queries):
            raise ValueError("A query is empty: expected a text that says what is looked for.")
        found = index.search(self.encode_texts(queries, truncate=truncate), top=top)
        return found[0] if isinstance(query, str) else found


def _array(features: Tensor, normalize: bool) -> np.ndarray:
    features = finite(features.float())
    return (unit(features) if normalize else features).cpu().numpy()


def _check_some(names: Sequence[str]) -> None:
    if not names:
        raise ValueError("There are no pictures to index: expected one or more.")


def beside(path: Path) -> str:
    """The name of the file that says which picture each vector of an index is of."""
    return f"{path.name}.json"


@dataclass(frozen=True)
class Match:
    """A picture that was found, and the cosine of its vector with the text's."""

    picture: str
    score: float


@dataclass(frozen=True)
class PictureIndex:
    """Vectors (n, dim) of pictures, what each is called, and the fingerprint of the model that made them."""

    vectors: np.ndarray
    names: Sequence[str]
    model: str

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """What `DualEncoder.index` wrote; vectors stay in their file. FileNotFoundError, or ValueError for another."""
        path, said = Path(path), Path(path).with_name(beside(Path(path)))
        for each in (path, said):
            if not each.is_file():
                raise FileNotFoundError(f"{each} does not exist: expected an index, as `embed --out` makes.")
        facts = files.read_json(said)
        names, model = facts.get("pictures"), facts.get("model")
        try:
            vectors = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(f"{path} cannot be read as .npy ({error}): index anew.") from None
        whole = isinstance(names, list) and isinstance(model, str) and vectors.ndim == 2
        if not whole or len(names) != len(vectors) or vectors.dtype != np.float32:
            raise ValueError(f"{path} and {said.name} do not belong together: index anew.")
        return cls(vectors, names, model)

    def search(self, queries: np.ndarray, *, top: int) -> list[list[Match]]:
        """For each of the vectors (q, dim) the `top` pictures of the largest cosines, of equal ones the earlier."""
        if top < 1:
            raise ValueError(f"top is {top}: expected at least 1.")
        queries, rows = _unit(queries), np.arange(len(self.vectors))
        scores, places = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        for some in (rows[start : start + ROWS] for start in range(0, len(rows), ROWS)):
            cosines = queries @ _unit(self.vectors[some[0] : some[-1] + 1]).T
            scores = np.concatenate([scores, cosines], axis=1)
            places = np.concatenate([places, np.broadcast_to(some, cosines.shape)], axis=1)
            order = np.argsort(-scores, axis=1, kind="stable")[:, :top]
            scores, places = np.take_along_axis(scores, order, 1), np.take_along_axis(places, order, 1)
        return [[Match(self.names[i], float(score)) for i, score in zip(*row)] for row in zip(places, scores)]


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)


class ZeroShotClassifier(DualEncoder):
    """The best of labels that are chosen freely: `ZeroShotClassifier.from_pretrained(source)("a.jpg", ["a cat", "a
    dog"])` (Radford et al. 2021, section 3.1)."""

    def __init__(self, model: Any, tokenizer: TextTokenizer, preprocess: Preprocess):
        super().__init__(model, tokenizer, preprocess)
        self._known: dict[Any, Tensor] = {}

    @overload
    def __call__(
        self, image: Picture, labels: Sequence[str], *, templates: Templates | None = None, top: int | None = None,
        truncate: bool = False,
    ) -> list[Label]: ...  # fmt: skip
    @overload
    def __call__(
        self, image: Iterable[Picture], labels: Sequence[str], *, templates: Templates | None = None,
        top: int | None = None, truncate: bool = False,
    ) -> list[list[Label]]: ...  # fmt: skip
    def __call__(
        self,
        image: Any,
        labels: Sequence[str],
        *,
        templates: Templates | None = None,
        top: int | None = None,
        truncate: bool = False,
    ) -> list[Any]:
        """Of a picture the labels, the most probable first, at most `top`, with shares that sum up to 1 over all; of
        several pictures, which may be any iterable, a list of these. The answer for one does not depend on the others.

        A label is put into each of the `templates` (`read_templates`), by default those that the model learnt classes
        with, where it says so. Vectors of labels are computed once: the same
        labels cost nothing the next time. ValueError for labels that cannot be (`check_labels`), or are too long,
        unless their end may be left out (`truncate`), and for what is no picture.
        """
        if top is not None and top < 1:
            raise ValueError(f"top is {top}: expected at least 1.")
        names = check_labels(labels)
        vectors = self.encode_labels(names, templates=templates, truncate=truncate)
        answers: list[Any] = []
        for images in self._batches(_several(image)):
            for shares in self.scores(images, vectors).softmax(-1):
                order = shares.argsort(descending=True, stable=True)[:top]
                answers.append([Label(names[i], share) for i, share in zip(order.tolist(), shares[order].tolist())])
        return answers[0] if _is_one(image) else answers

    def scores(self, images: Tensor, labels: Tensor) -> Tensor:
        """(b, labels): cosines of prepared pictures with vectors of `encode_labels`, times the model's scale.
        ValueError unless all are numbers."""
        scale = self.model.scale.detach().to(labels.dtype).exp()
        return finite(scale * unit(self.image_features(images)) @ labels.T)

    def encode_labels(
        self,
        labels: Sequence[str],
        *,
        templates: Templates | None = None,
        truncate: bool = False,
        track: Track = lambda items, total: items,
    ) -> Tensor:
        """(labels, dim): of each label the mean over the templates of vectors of length 1, of length 1 again. Kept, for
        the last KEPT sets of labels, until the text tower changes."""
        names, slots = check_labels(labels), read_templates(self._own_templates() if templates is None else templates)
        key = (tuple(names), slots, truncate, _state(self.model.text))
        if key not in self._known:
            self._check_read(names, slots, truncate)
            step = max(1, CHUNK_TEXTS // len(slots))
            parts = [names[start : start + step] for start in range(0, len(names), step)]
            vectors = [self._ensemble(some, slots, truncate) for some in track(parts, len(parts))]
            self._known[key] = torch.cat(vectors)
        self._known[key] = self._known.pop(key)  # the last used is the last to go
        for old in [*self._known][:-KEPT]:
            del self._known[old]
        return self._known[key]

    def _own_templates(self) -> list[str] | None:
        """Those that a model was trained with here, if it learnt classes by them."""
        said = self.model.published.get("scratchformers")
        found = said.get("templates") if isinstance(said, dict) else None
        return found if isinstance(found, list) else None

    def _check_read(self, names: Sequence[str], slots: Sequence[str], truncate: bool) -> None:
        """ValueError for a label that is too long in a template, unless it may be cut, and for labels that the model
        reads alike in all of them, cut or not."""
        length, seen = self.model.config.length, {}
        for name in names:
            rows = [self.tokenizer.encode(slot.replace(SLOT, name)) for slot in slots]
            count, slot = max((len(ids), slot) for ids, slot in zip(rows, slots))
            if count > length and not truncate:
                raise ValueError(
                    f"The label {name[:40]!r} has {count} tokens in the template {slot!r} and the model takes "
                    f"{length}: choose shorter ones (--templates), or truncate=True (--truncate) to leave out the end."
                )
            other = seen.setdefault(str([ids[: length - 1] for ids in rows]), name)  # after which the end stands
            if other != name:
                cut = ", where their ends are cut off: choose shorter templates, or" if count > length else ":"
                raise ValueError(f"The labels {other!r} and {name!r} are the same to the model{cut} leave one out.")

    def _ensemble(self, names: Sequence[str], slots: Sequence[str], truncate: bool) -> Tensor:
        texts = [slot.replace(SLOT, name) for name in names for slot in slots]
        vectors = unit(self.text_features(texts, truncate=truncate)).unflatten(0, (len(names), len(slots)))
        return unit(vectors.mean(1))


def _state(tower: Any) -> tuple[tuple[int, int], ...]:
    """Another after a weight was changed in its place, or replaced."""
    weights = tower.parameters()
    return tuple((weight.data_ptr(), 0 if weight.is_inference() else weight._version) for weight in weights)


def load_encoder(
    source: str | Path,
    *,
    revision: str | None = None,
    local_files_only: bool = False,
    pool: Any = None,
    normalize: bool | None = None,
    **options: Any,
) -> DualEncoder | SentenceEncoder:
    """Of pictures and texts, or of texts alone, as the checkpoint's model reads them. `pool` and `normalize` are those
    of `SentenceEncoder`, `options` those of `load`."""
    folder = hub.find(source, revision=revision, local_files_only=local_files_only)
    model = models.load(folder, **options)
    if hasattr(model.config, "image") and not isinstance(model, CLIP):
        raise ValueError(f"{type(model).__name__} reads pictures alone: expected a model that reads texts, or a CLIP.")
    if not isinstance(model, CLIP):
        return SentenceEncoder.of(model, folder, pool=pool, normalize=normalize)
    if pool is not None:
        raise ValueError(f"pool is {pool!r}: a CLIP says itself how a vector is made, so leave it out (--pool).")
    return DualEncoder.of(model, folder)
