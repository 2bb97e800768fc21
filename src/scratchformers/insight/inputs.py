"""What goes into a model, as ours and the reference make it: ids of texts, numbers of pictures.

Each kind says of some examples what they become, in a form that can be written down and compared with later.
"""

import contextlib
import hashlib
import io
import tempfile
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from scratchformers.checkpoints import files
from scratchformers.checkpoints.pretrained import read_config
from scratchformers.grid import height_width
from scratchformers.images import open_picture
from scratchformers.models import load_preprocess, load_tokenizer
from scratchformers.text import TextTokenizer

TEXTS = (
    "Hello, world!", " leading and trailing ", "it's they'll WE'VE", "a\n\nb\tc\r\n", "1905 19 05 3.14159",
    "naïve façade ÅÄÖ ß", "Привет, мир", "你好,世界 日本語", "👩\u200d👧 🏳\ufe0f\u200d🌈 😀", "e\u0301 \u00e9 \u00a0",
    "...!!!???", "<|endoftext|>", "one<|endoftext|>two", "x" * 500, "    indented(code)",
)  # fmt: skip
SENTENCES = (  # for a model that translates
    "A man in a blue shirt is standing on a ladder, cleaning a window.", "Two dogs run across the snow.",
    "Zwei junge Männer sitzen auf der Straße und spielen Schach.", "\u201cWait!\u201d \u2013 she can't mean it\u2026",
)  # fmt: skip
OWN = 300  # ids whose text is one more text
Found = dict[str, Any]  # by example, what it becomes; None where it is refused


class Inputs(ABC):
    name: str  # in a report
    word: str  # in a sentence
    fact: str  # in a frozen file

    @abstractmethod
    def ours(self, source: Path, known: Iterable[str] | None = None) -> Found | str:
        """Of our own examples, or of those `known`; where nothing can be said of any, why."""

    @abstractmethod
    def theirs(self, transformers: Any, source: Path, ours: Found) -> Found:
        """The same of transformers. It may raise anything."""

    @abstractmethod
    def suits(self, found: Found, config: Any) -> tuple[list[list[int]], str | None]:
        """The ids of each example, where they are texts, and what of them does not fit the model."""

    def note(self, source: Path) -> str:
        """What of ours was not compared, if anything."""
        return ""

    @abstractmethod
    def compare(self, ours: Found, theirs: Found, whose: str) -> tuple[str, str | None]:
        """How many are the same, and a sentence about those that are not, if there are any."""


class Texts(Inputs):
    """Of a text [its ids, what they are decoded to], or None where it cannot be spelt."""

    name, word, fact = "tokenizer", "tokeniser", "tokens"
    texts: tuple[str, ...] = TEXTS

    def __init__(self, *, own: bool):
        self.own = own

    def ours(self, source: Path, known: Iterable[str] | None = None) -> Found | str:
        """Of `texts`, and with `own` one of the tokeniser's own words."""
        try:
            tokenizer = load_tokenizer(source)
        except FileNotFoundError:
            return "none"
        found: Found = {}
        own = [tokenizer.decode(range(min(OWN, tokenizer.vocab)))] if self.own else []
        for text in (*self.texts, *own) if known is None else known:
            found[text] = None  # refused: it holds characters without an id
            with contextlib.suppress(ValueError):
                found[text] = self.spelt(tokenizer, text)
        return found

    def spelt(self, tokenizer: TextTokenizer, text: str) -> list[Any]:
        ids = tokenizer.encode(text)
        return [ids, tokenizer.decode(ids)]

    def theirs(self, transformers: Any, source: Path, ours: Found) -> Found:
        """Characters without an id it drops: a text that does not come back is one it refuses, if ours does."""
        tokenizer = _their_tokenizer(transformers, source)
        found: Found = {}
        for text, spelt in ours.items():
            found[text] = self.spelt_by(tokenizer, text)
            if spelt is None and found[text][1] != text:
                found[text] = None
        return found

    def spelt_by(self, tokenizer: Any, text: str) -> list[Any]:
        """The same by transformers' tokeniser."""
        ids = list(tokenizer(text)["input_ids"])
        return [ids, tokenizer.decode(ids)]

    def suits(self, found: Found, config: Any) -> tuple[list[list[int]], str | None]:
        rows = [spelt[0] for spelt in found.values() if spelt]
        misfit = _misfit(rows, config.vocab)
        return [] if misfit else rows, misfit

    def compare(self, ours: Found, theirs: Found, whose: str) -> tuple[str, str | None]:
        different = [text for text in theirs if ours.get(text, ()) != theirs[text]]
        refused = sum(theirs[text] is None for text in theirs)
        same = len(theirs) - len(different) - refused
        said = f"{same} of {len(theirs) - refused} texts have the same ids and come back the same"
        said += f"; {refused} hold characters it has no id for" if refused else ""
        if not different:
            return said, None
        text = different[0]
        a, b = (_spelt(spelling.get(text)) for spelling in (ours, theirs))
        return said, (
            f"The tokeniser differs from {whose} on {len(different)} of {len(theirs)} texts, first on {text[:30]!r}: "
            f"ours {a}, theirs {b}."
        )


class Pairs(Texts):
    """Of a text [its ids as a source, what its ids as a target are decoded to, these], or None where it cannot be
    spelt."""

    texts = (*SENTENCES, *TEXTS)

    def ours(self, source: Path, known: Iterable[str] | None = None) -> Found | str:
        """transformers' own reading of mBART's file for SentencePiece is no reference: it forgets a table of it."""
        if (source / files.MBART[0]).is_file() and not (source / "tokenizer.json").is_file():
            return f"not compared, for transformers leaves out what {files.MBART[0]} normalises"
        return super().ours(source, known)

    def spelt(self, tokenizer: TextTokenizer, text: str) -> list[Any]:
        ids = tokenizer.target.encode(text)
        return [tokenizer.encode(text), tokenizer.decode(ids), ids]

    def spelt_by(self, tokenizer: Any, text: str) -> list[Any]:
        ids = list(tokenizer(text_target=text)["input_ids"])
        return [list(tokenizer(text)["input_ids"]), tokenizer.decode(ids, use_source_tokenizer=False), ids]

    def suits(self, found: Found, config: Any) -> tuple[list[list[int]], str | None]:
        """Of sources and of targets in turn."""
        sources, targets = ([spelt[i] for spelt in found.values() if spelt] for i in (0, 2))
        misfit = _misfit(sources, config.vocab) or _misfit(targets, config.target_vocab or config.vocab)
        return [] if misfit else [ids for pair in zip(sources, targets) for ids in pair], misfit


def _misfit(rows: Iterable[Iterable[int]], vocab: int) -> str | None:
    largest = max((id for ids in rows for id in ids), default=0)
    if largest < vocab:
        return None
    return f"The tokeniser is not this model's: it gives id {largest}, and the model knows 0 to {vocab - 1}."


def _their_tokenizer(transformers: Any, source: Path) -> Any:
    with warnings.catch_warnings():  # Marian's asks for a package that it never uses
        warnings.simplefilter("ignore")
        return _read_by(transformers, source)


def _read_by(transformers: Any, source: Path) -> Any:
    if any((source / name).is_file() for name in ("tokenizer.json", files.VOCABULARIES[0][0])):
        return transformers.AutoTokenizer.from_pretrained(source)
    with tempfile.TemporaryDirectory() as folder:  # OpenAI's names it does not know: it would make an empty tokeniser
        for name, content in {**files.read_assets(source), "config.json": files.to_json(read_config(source))}.items():
            Path(folder, name).write_bytes(content)
        return transformers.AutoTokenizer.from_pretrained(folder)


def _spelt(spelling: list[Any] | None) -> str:
    if spelling is None:
        return "gives none"
    ids, back, *others = spelling
    as_target = "".join(f"as a target {other[:8]}, " for other in others)
    return f"{ids[:8]}, {as_target}read back as {back[:30]!r}"


class Pictures(Inputs):
    """Of a picture [the shape, the sha256 of its numbers, their mean], or None where it is refused."""

    name = word = "preprocessing"
    fact = "pictures"

    def ours(self, source: Path, known: Iterable[str] | None = None) -> Found | str:
        """As the checkpoint's own file says; what is published for such checkpoints, it does not vouch for."""
        if not (source / files.PREPROCESSOR).is_file():
            return f"not compared, for the checkpoint has no {files.PREPROCESSOR}"
        try:
            preprocess = load_preprocess(source)
        except ValueError as error:
            return f"not compared, for {str(error).rstrip('.')}"
        preprocess = replace(preprocess, middle="floor")  # transformers' way, and its only one
        pictures = odd_pictures()
        found: Found = dict.fromkeys(pictures if known is None else known)
        for name in found.keys() & pictures.keys():
            with contextlib.suppress(ValueError):
                found[name] = _numbers(preprocess(open_picture(pictures[name])))
        return found

    def theirs(self, transformers: Any, source: Path, ours: Found) -> Found:
        """By Pillow, as its pipelines do: the faster way of its own resizes differently."""
        processor, pictures = transformers.AutoImageProcessor.from_pretrained(source, use_fast=False), odd_pictures()
        found: Found = {}
        for name in ours:
            picture = transformers.image_utils.load_image(Image.open(io.BytesIO(pictures[name])))
            grey = isinstance(processor.image_mean, list | tuple) and len(processor.image_mean) == 1
            given = processor(picture.convert("L") if grey else picture, return_tensors="pt")
            found[name] = _numbers(given["pixel_values"][0])
        return found

    def note(self, source: Path) -> str:
        path = source / files.PREPROCESSOR
        ours = files.read_json(path).get("scratchformers") if path.is_file() else None
        rounds = isinstance(ours, dict) and ours.get("middle") == "round"
        what = "half of an odd margin, which this one rounds to even, being rounded down as transformers does"
        return f", {what}" if rounds else ""

    def suits(self, found: Found, config: Any) -> tuple[list[list[int]], str | None]:
        expected = [config.channels, *height_width(config.image)]
        shapes = [numbers[0] for numbers in found.values() if numbers is not None]
        other = next((shape for shape in shapes if shape != expected), expected)
        wrong = f"it gives pictures of shape {other}, and the model reads {expected}"
        return [], None if other == expected else f"The preprocessing is not this model's: {wrong}."

    def compare(self, ours: Found, theirs: Found, whose: str) -> tuple[str, str | None]:
        key = lambda numbers: numbers and [*numbers][:2]  # noqa: E731 (the mean is for the sentence)
        different = [name for name in theirs if key(ours.get(name)) != key(theirs[name])]
        said = f"{len(theirs) - len(different)} of {len(theirs)} odd pictures become the same numbers"
        if not different:
            return said, None
        a, b = (_averaged(numbers.get(different[0])) for numbers in (ours, theirs))
        return said, (
            f"The preprocessing differs from {whose} on {len(different)} of {len(theirs)} pictures, first on that of "
            f"{different[0]}: ours gives {a}, theirs {b}."
        )


def _numbers(x: Tensor) -> list[Any]:
    values = x.float().contiguous() + 0.0  # of the two zeros the one
    return [list(x.shape), hashlib.sha256(values.numpy().tobytes()).hexdigest(), round(float(values.mean()), 6)]


def _averaged(numbers: list[Any] | None) -> str:
    return "none" if numbers is None else f"{numbers[0]} with a mean of {numbers[2]}"


def odd_pictures() -> dict[str, bytes]:
    """Files of noise: of odd shapes, of every mode that pictures have, and one that lies on its side."""
    draw = np.random.RandomState(0)

    def noise(width: int, height: int, bands: int = 3) -> Image.Image:
        levels = draw.randint(0, 256, (height, width, bands), dtype=np.uint8)
        return Image.fromarray(levels if bands > 1 else levels[..., 0])

    sizes = ((1, 1), (17, 301), (301, 16), (224, 224), (333, 500), (640, 480))
    found = {f"{width} x {height} pixels": noise(width, height) for width, height in sizes}
    found |= {
        "grey": noise(45, 31, 1),
        "grey, partly transparent": Image.merge("LA", noise(39, 47).split()[1:]),
        "colour, partly transparent": noise(61, 47, 4),
        "a palette": noise(43, 35).quantize(11),
        "black and white": noise(31, 33, 1).convert("1"),
    }
    files = {name: _file(picture, "PNG") for name, picture in found.items()}
    on_its_side = Image.Exif()
    on_its_side[0x0112] = 6
    files["a picture on its side"] = _file(noise(57, 40), "PNG", exif=on_its_side)
    return files | {"inks": _file(noise(53, 37, 4).convert("RGB").convert("CMYK"), "TIFF")}


def _file(picture: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


# transformers' CLIPTokenizer is not OpenAI's, which ours is: they part where a text needs repair, as its own tokens do.
TEXT, CAPTION, PICTURE, PAIR = Texts(own=True), Texts(own=False), Pictures(), Pairs(own=False)
