"""Weight tables: a published checkpoint's tensors moved into our modules, and back, by rows a reader can check.

A row is `(their name, our name[, how])`. A name may be a tensor's or a module's (its weight and its bias); `*` stands
for the layer number. Several names on the left are stacked along the first axis, several on the right are cut from
one tensor, in our shapes. `None` on the right drops a tensor on purpose, and all below a name that ends in a dot.
Rows that fill the same parameter are other names of it: the first is the one we save, and where a file holds both they
must be equal.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scratchformers.linear import ONEDNN

Names = str | tuple[str, ...]
Published = Mapping[str, Any]  # a config.json
Tensors = Mapping[str, Tensor]  # a file's, by name


class How(NamedTuple):
    """What is done to a tensor on its way in, and undone on its way out, where the model's config may tell shapes."""

    load: Callable[[Tensor], Tensor]
    save: Callable[[Tensor, Any], Tensor]


def _flip(x: Tensor) -> Tensor:
    return x.t() if x.ndim == 2 else x


SAME = How(lambda x: x, lambda x, _: x)
TRANSPOSED = How(
    _flip, lambda x, _: _flip(x)
)  # a matrix stored (in, out); it stays so in memory, as a view: nothing is copied

# A table that is read row by row for a few tokens and whole for every score: kept column by column, the scores of one
# token take about half the time by MKL. A copy, which is then ours alone.
BY_COLUMN = How(lambda x: x if ONEDNN else x.t().contiguous().t(), lambda x, _: x)

# The same matrix, copied to lie (out, in): from a long input to a short output, that reads a token a third faster.
TURNED = How(lambda x: _flip(x).contiguous(), lambda x, _: _flip(x))

# One that is parted between several: parts of the view would not be dense, and not for oneDNN.
PARTED = TURNED if ONEDNN else TRANSPOSED


def _kernels(x: Tensor, config: Any) -> Tensor:
    return x.unflatten(1, (config.channels, config.patch, config.patch)) if x.ndim == 2 else x


# A convolution that moves by its own width is a linear of patches, read as (channel, row, column).
CONVOLUTION = How(lambda x: x.flatten(1) if x.ndim == 4 else x, _kernels)

Row = tuple[Names, Names | None] | tuple[Names, Names | None, How]


@dataclass(frozen=True)
class Layout:
    """One published form of a model: how to recognise it, its config both ways, its table."""

    model_type: str  # as config.json says; of a layout that is never said there, a name
    rows: Sequence[Row]
    read: Callable[[Mapping[str, Any]], Any]  # config.json -> our config
    write: Callable[[Any], dict[str, Any]]  # our config -> config.json
    signature: str  # a tensor that tells this layout where there is no config
    prefix: str = ""  # may stand before the table's names, or not
    tokenizer: Callable[..., Any] | None = None  # what the files named by `vocabulary` mean for this model
    vocabulary: tuple[str, ...] = ("vocab.json", "merges.txt")
    respelt: bool = False  # `tokenizer` is given whichever files there are: no tokenizer.json says all it does
    outside: tuple[str, ...] = ()  # names that begin so have no prefix; where a file we save has one, the others do
    build: Callable[[Any, Mapping[str, Any], Mapping[str, Tensor]], None] = lambda *_: None
    """Gives a new model the parts that a file has, by its config.json and its tensors (names without the prefix)."""
    describe: Callable[[Any], dict[str, Any]] = lambda _: {}
    """What config.json says of a model's parts; None for what it must not say."""
    without: tuple[str, ...] = ()  # tensors that another layout with the same signature has
    asked: bool = False  # a part of another model's file: read where the class is asked for by name, never by `load`
    holds: Callable[[Any], bool] = lambda _: True
    """Whether it can express what this config says, and so be saved."""
    infer: Callable[[Mapping[str, Tensor]], dict[str, Any]] = lambda _: {}
    """The fields of the config that the tensors tell (names without the prefix)."""
    names: Mapping[str, Any] = field(default_factory=dict)  # published files, without their ending: their configs
    preprocess: Callable[[Mapping[str, Any], Any, str], Any] = lambda *_: None
    """How pictures are prepared where no file says it, by config.json, the config and the file's name without ending;
    None where that differs from model to model."""

    def matches(self, config: Mapping[str, Any] | None, keys: Iterable[str]) -> bool:
        if config is not None and "model_type" in config:
            return config["model_type"] == self.model_type
        found = {key.removeprefix(self.prefix) for key in keys}
        return self.signature in found and not found.intersection(self.without)

    def bare(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """By the table's names."""
        return {key.removeprefix(self.prefix): value for key, value in tensors.items()}


class Entry(NamedTuple):
    """A row written out for one layer and one tensor."""

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    how: How


def _tuple(names: Names | None) -> tuple[str, ...]:
    return () if names is None else (names,) if isinstance(names, str) else names


def _pattern(name: str, suffix: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\*", r"(?P<n>\d+)") + rf"(?P<suffix>{suffix})")


def entries(rows: Sequence[Row], ours: Iterable[str]) -> list[Entry]:
    """The table written out for a model whose parameters are named `ours`."""
    ours, found = list(ours), []
    for left, right, *how in rows:
        if right is None:
            continue
        pattern = _pattern(_tuple(right)[0], r"(?:\.weight|\.bias)?")
        for name in ours:
            if match := pattern.fullmatch(name):
                number = match.groupdict().get("n") or ""
                theirs, ours_ = (
                    tuple(part.replace("*", number) + match["suffix"] for part in _tuple(side))
                    for side in (left, right)
                )
                found.append(Entry(theirs, ours_, how[0] if how else SAME))
    return found


def _dropped(rows: Sequence[Row], keys: Iterable[str]) -> set[str]:
    names = [name for left, right, *_ in rows if right is None for name in _tuple(left)]
    patterns, whole = [_pattern(name, "") for name in names], tuple(name for name in names if name.endswith("."))
    return {key for key in keys if key.startswith(whole) or any(pattern.fullmatch(key) for pattern in patterns)}


def _convert(entry: Entry, tensors: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> list[Tensor]:
    """The parts that fill `entry.ours`; where the whole cannot be cut so, the whole, whose shape is then an error."""
    parts = [entry.how.load(tensors[name]) for name in entry.theirs]
    if len({part.shape for part in parts}) > 1:
        return parts
    whole = parts[0] if len(parts) == 1 else torch.cat(parts)
    if len(entry.ours) == 1:
        return [whole]
    sizes = [shapes[name][0] for name in entry.ours]
    return list(whole.split(sizes)) if whole.ndim and sum(sizes) == len(whole) else [whole]


def load(
    layout: Layout, tensors: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], config: Any = None
) -> dict[str, Tensor]:
    """A file's tensors under our names, as views where possible.

    Raises ValueError that lists every missing, unknown, contradictory and wrongly shaped tensor.
    """
    twice = sorted(key for key in tensors if layout.prefix and layout.prefix + key in tensors)
    wrong = [f"{key} stands in the file with and without '{layout.prefix}'" for key in twice]
    tensors = layout.bare(tensors)
    out: dict[str, Tensor] = {}
    used = _dropped(layout.rows, tensors)
    for entry in entries(layout.rows, shapes):
        if not all(name in tensors for name in entry.theirs):
            continue
        used.update(entry.theirs)
        source, values = " + ".join(entry.theirs), _convert(entry, tensors, shapes)
        expected = [shapes[name] for name in entry.ours]
        if [value.shape for value in values] != expected:
            found = " + ".join(str(list(tensors[name].shape)) for name in entry.theirs)
            wrong.append(f"{source} has shape {found}, expected {_file_shape(expected, entry, config)}")
            values = [torch.empty(shape, device="meta") for shape in expected]  # not missing, but wrong
        elif not all(value.is_floating_point() for value in values):
            wrong.append(f"{source} holds {str(values[0].dtype).removeprefix('torch.')}, expected floating point")
        for name, value in zip(entry.ours, values):
            known = out.get(name, value)
            if not (value is known or value.is_meta or known.is_meta or torch.equal(value, known)):
                wrong.append(f"{source} differs from another tensor of the file that should be the same")
            out.setdefault(name, value)
    back = {name: entry.theirs for entry in reversed(entries(layout.rows, shapes)) for name in entry.ours}
    missing = sorted({" + ".join(back.get(name, (name,))) for name in shapes if name not in out})
    unknown = sorted(tensors.keys() - used)
    found = {"missing": missing, "unknown": unknown, "wrong": wrong}
    if any(found.values()):
        said = "; ".join(f"{len(names)} {what}: {', '.join(names)}" for what, names in found.items() if names)
        raise ValueError(f"The tensors are not those of a {layout.model_type} model of this configuration. {said}.")
    return out


def _file_shape(parts: Sequence[torch.Size], entry: Entry, config: Any) -> str:
    """What the file should have held for parameters of these shapes."""
    if not parts[0]:  # a single number, which cannot be cut
        return "[]"
    whole = torch.empty(sum(part[0] for part in parts), *parts[0][1:], device="meta")
    return " + ".join(str(list(entry.how.save(part, config).shape)) for part in whole.chunk(len(entry.theirs)))


def save(layout: Layout, ours: Mapping[str, Tensor], config: Any = None) -> dict[str, Tensor]:
    """Our tensors under the published names, contiguous: `load` undone."""
    out: dict[str, Tensor] = {}
    saved: set[str] = set()
    for entry in entries(layout.rows, ours):
        if saved.issuperset(entry.ours):
            continue  # another name of what is already there
        whole = torch.cat([ours[name] for name in entry.ours]) if len(entry.ours) > 1 else ours[entry.ours[0]]
        parts = whole.chunk(len(entry.theirs)) if len(entry.theirs) > 1 else [whole]
        out.update((name, entry.how.save(part, config).contiguous()) for name, part in zip(entry.theirs, parts))
        saved.update(entry.ours)
    if lost := sorted(ours.keys() - saved):
        raise AssertionError(f"no row of the {layout.model_type} table saves {lost}")
    if any(name.startswith(layout.outside) for name in out):
        out = {name if name.startswith(layout.outside) else layout.prefix + name: x for name, x in out.items()}
    return out
