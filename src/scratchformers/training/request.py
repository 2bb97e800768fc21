"""What a user asks to be trained, and what a recipe makes of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHARACTERS, BPE, WORDPIECE = "characters", "bpe", "wordpiece"  # tokenisers made from the user's text
VOCAB = 8000  # ids of a BPE or a WordPiece at most, unless told

Watch = Callable[[str, int, int], None]  # told what is done, how many bytes of it, and of how many (0: unknown)
Facts = dict[str, dict[str, Any]]  # by what: the sha256 of it, and what there is to say


@dataclass(frozen=True)
class Request:
    """What the user asked for. None means: as the recipe, or the run to be resumed, has it."""

    recipe: str
    out: Path
    data: Path | str | None = None
    valid: Path | str | None = None
    preset: str | None = None
    source: str | Path | None = None  # a checkpoint to go on from, as `load` takes it
    tokenizer: str | None = None
    vocab: int | None = None  # of a BPE or a WordPiece made from the text
    given: Mapping[str, str] = field(default_factory=dict)  # settings and fields of the model, as written
    device: str = "cpu"
    threads: int = 0
    task: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)  # of labelled data: what a column is to us, its name
    freeze: tuple[str, ...] = ()  # parts of a source that do not learn, by the beginnings of their parameters' names
    lora: Mapping[str, Any] = field(
        default_factory=dict
    )  # of the adapters that a source learns by, as `lora.read` has it
    watch: Watch = field(default=lambda what, done, size: None, compare=False)  # of what is read before the run begins
