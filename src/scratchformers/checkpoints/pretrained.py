"""What makes a module a model one can load and save: `Config` and the mixin `Pretrained`."""

import contextlib
import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from scratchformers import grid
from scratchformers.checkpoints import files, hub, tables
from scratchformers.images import Preprocess
from scratchformers.nn import ACTIVATIONS


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes are positive integers, `dropout` is a probability, `eps` a small number; else a ValueError says so at once.

    A size that may be None follows from others: `hidden` is then 4 * dim.
    """

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            sized = field.type in (int, "int") or (field.type in (int | None, "int | None") and value is not None)
            if sized and not (_is_int(value) and 0 < value < 2**31):
                raise ValueError(f"{field.name} is {value!r}: expected a positive integer.")
            if field.name == "eps" and not (isinstance(value, float) and 0 < value < 1):
                raise ValueError(f"eps is {value!r}: expected 0 < eps < 1.")
            if field.name == "image":
                object.__setattr__(self, "image", grid.checked(value, getattr(self, "patch")))  # noqa: B009
            if field.name == "positions" and value not in ("learned", "sinusoids"):
                raise ValueError(f"positions is {value!r}: expected learned or sinusoids.")
            if field.name == "positions" and value == "sinusoids" and getattr(self, "dim") % 2:  # noqa: B009
                raise ValueError("dim is odd: expected it to be even for sinusoids, half sines and half cosines.")
            if field.name == "activation" and value not in ACTIVATIONS:
                raise ValueError(f"activation is {value!r}: expected one of {', '.join(ACTIVATIONS)}.")
            if field.type is bool and not isinstance(value, bool):
                raise ValueError(f"{field.name} is {value!r}: expected true or false.")
            if field.name == "dropout" and not (isinstance(value, int | float) and 0 <= value < 1):
                raise ValueError(f"dropout is {value!r}: expected 0 <= dropout < 1.")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> int:
    if not (_is_int(value) and 0 <= value < 2**31):
        raise ValueError
    return value


def _ids(value: Any) -> tuple[int, ...]:
    return tuple(map(_number, value if isinstance(value, list) else [value]))


def _words(value: Any) -> tuple[tuple[int, ...], ...]:
    words = tuple(map(_ids, value if isinstance(value, list) else [value]))
    if () in words:
        raise ValueError
    return words


def _count(value: Any) -> int:
    if _number(value) < 1:
        raise ValueError
    return value


def _real(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError
    return value


def _early(value: Any) -> bool | str:
    if not isinstance(value, bool) and value != "never":
        raise ValueError
    return value


BOS = "bos_token_id"
# Our names of what a generation config says, the published ones, and how a value is read.
DECODING: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "start": (BOS, _number),
    "end": ("eos_token_id", _ids),
    "pad": ("pad_token_id", _number),
    "forced_start": ("forced_bos_token_id", _number),
    "forced_end": ("forced_eos_token_id", _ids),
    "bad_words": ("bad_words_ids", _words),
    "min_length": ("min_length", _number),
    "max_length": ("max_length", _number),
    "min_new_tokens": ("min_new_tokens", _number),
    "max_new_tokens": ("max_new_tokens", _number),
    "no_repeat_ngram": ("no_repeat_ngram_size", _number),
    "beams": ("num_beams", _count),
    "length_penalty": ("length_penalty", _real),
    "early_stopping": ("early_stopping", _early),
}
EXPECTED: dict[Callable[[Any], Any], str] = {
    _number: "a whole number from 0",
    _ids: "ids",
    _words: "ids",
    _count: "a whole number from 1",
    _real: "a number",
    _early: 'true, false or "never"',
}
TOKENS = ("start", "end", "pad")


def _decoding(first: str) -> dict[str, tuple[str, Callable[[Any], Any]]]:
    return DECODING | {"start": (first, _number)}


@dataclasses.dataclass(frozen=True)
class Generation:
    """What a checkpoint says about decoding; `other` is kept for saving. `min_length` and `max_length` count a text
    with its prompt, `min_new_tokens` and `max_new_tokens` without."""

    start: int | None = None
    end: tuple[int, ...] = ()  # every id that ends a text
    pad: int | None = None
    forced_start: int | None = None  # what must follow a text of one token
    forced_end: tuple[int, ...] = ()  # one of them must be the last that fits
    bad_words: tuple[tuple[int, ...], ...] = ()  # sequences that must not be written
    min_length: int = 0
    max_length: int | None = None
    min_new_tokens: int = 0
    max_new_tokens: int | None = None
    no_repeat_ngram: int = 0  # no sequence of this many ids twice; 0 allows any
    beams: int = 1  # texts that a search keeps; as `beam_search` takes what follows
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    other: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def read(cls, published: Mapping[str, Any], first: str = BOS) -> Self:
        """`first` is what a file calls the id that a text begins with."""
        values = {}
        for ours, (theirs, parse) in _decoding(first).items():
            value = published.get(theirs)
            if value is None or (ours in TOKENS and _is_int(value) and value < 0):  # some write -1 for none
                continue
            try:
                values[ours] = parse(published[theirs])
            except ValueError:
                raise ValueError(
                    f"The checkpoint says {theirs} {published[theirs]!r}: expected {EXPECTED[parse]}."
                ) from None
        return cls(**values, other=published)

    def write(self, first: str = BOS) -> dict[str, Any]:
        """As generation_config.json has it: `other`, and what this object says differently."""
        said, out = Generation.read(self.other, first), dict(self.other)
        for ours, (theirs, _) in _decoding(first).items():
            value = getattr(self, ours)
            if ours in TOKENS or value != getattr(said, ours):
                ids = list(value) if isinstance(value, tuple) else value
                out[theirs] = None if ids == [] else ids[0] if _is_single(ids) else ids
        return out

    @property
    def forces(self) -> tuple[int, ...]:
        """The ids that may be put into a text whatever the scores."""
        return self.forced_end + (() if self.forced_start is None else (self.forced_start,))

    @property
    def constrains(self) -> bool:
        """Whether scores must be changed before an id is chosen."""
        counted = self.min_length or self.min_new_tokens or self.no_repeat_ngram
        return bool(counted or self.bad_words or self.forces)


def _is_single(ids: Any) -> bool:
    return isinstance(ids, list) and len(ids) == 1 and _is_int(ids[0])


def fingerprint(model: nn.Module) -> str:
    """sha256 over the names, shapes and values of the weights, whatever file they came from."""
    found = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        found.update(f"{name} {list(value.shape)} {value.dtype} ".encode())
        found.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()


class _Uninitialised(TorchFunctionMode):
    """Nothing is initialised only to be thrown away; and to draw numbers on the meta device, torch would first import
    its compiler, which takes longer than loading."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        arguments = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__:
            return arguments["tensor"] if "tensor" in arguments else args[0]
        return func(*args, **arguments)


class Pretrained(nn.Module):
    """Loading and saving for a model that declares its `Config`, `presets` and `layouts`."""

    config: Any
    config_class: ClassVar[type[Config]]
    presets: ClassVar[Mapping[str, Config]]
    layouts: ClassVar[tuple[tables.Layout, ...]]
    first_id: ClassVar[str] = BOS  # as files call the id that a text begins with

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.generation = Generation()
        self.published: dict[str, Any] = {}  # the config.json it came with: what we do not read is saved as it was
        self.assets: dict[str, bytes] = {}  # the files of its tokeniser, or of how pictures are prepared, by name
        self.layout = ""  # the model_type of the layout it came in
        self.read_as = config  # its config as it came in: what has changed since is saved as it is now

    @classmethod
    def from_preset(cls, name: str) -> Self:
        """A new model, randomly initialised, of a known size."""
        return cls(cls.preset(name))

    @classmethod
    def preset(cls, name: str) -> Config:
        if name not in cls.presets:
            raise ValueError(f"{cls.__name__} has no preset {name!r}: expected one of {', '.join(cls.presets)}.")
        return cls.presets[name]

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        config: Config | str | None = None,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        revision: str | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """The model of a checkpoint, in eval mode, its weights memory-mapped and copied on change.

        source: a folder, a file, or a hub id (`name` or `owner/name`), of which `revision` is a branch, tag or commit;
        with `local_files_only` nothing is asked of the hub.
        config: a config or a preset's name. Needed where the source has no config.json and its tensors do not tell all;
        must agree with them elsewhere. Only `image` may differ, for a model that can `resize`: its positions do.
        Raises ValueError or OSError (FileNotFoundError, ...) with one sentence if anything does not fit.
        """
        source = hub.find(source, revision=revision, local_files_only=local_files_only)
        weights = files.find_weights(source)
        published = read_config(source)
        config = cls.preset(config) if isinstance(config, str) else config
        if config is not None and not isinstance(config, cls.config_class):
            raise ValueError(
                f"config= is a {type(config).__name__}: {cls.__name__} takes a {cls.config_class.__name__}."
            )
        tensors = files.read_tensors(weights)
        layout = cls._layout(published, tensors, weights)
        bare, known = layout.bare(tensors), layout.names.get(weights.stem)
        found = layout.read(published) if published else known
        wanted, config = _agreed(config, found, layout.infer(bare), source, cls)
        with torch.device("meta"), _Uninitialised():
            model = cls(config)
            layout.build(model, published, bare)
        shapes = {name: parameter.shape for name, parameter in model.state_dict().items()}
        try:
            state = tables.load(layout, tensors, shapes, config)
        except ValueError as error:
            raise ValueError(f"{weights}: {error}") from None
        model.load_state_dict({name: value.to(device, dtype) for name, value in state.items()}, assign=True)
        if wanted is not None and wanted != getattr(config, "image", None):
            model.resize(wanted)  # pyrefly: ignore (where it may differ, the model has it)
        if source.is_dir():
            model.assets = files.read_assets(source)
            has_own = (source / files.GENERATION).is_file()
            in_config = _decoding_fields(published, DECODING, cls.first_id)
            said = files.read_json(source / files.GENERATION) if has_own else in_config
            model.generation = Generation.read(said, cls.first_id)
        model.published, model.layout = published, layout.model_type
        with contextlib.suppress(ValueError):  # what cannot be done here is said where it is asked for
            if files.PREPROCESSOR not in model.assets and (found := layout.preprocess(published, config, weights.stem)):
                model.assets[files.PREPROCESSOR] = files.to_json(found.write())
        return model.eval()

    @classmethod
    def _layout(cls, published: Mapping[str, Any], keys: Mapping[str, Any], weights: Path) -> tables.Layout:
        named = [] if published else [layout for layout in cls.layouts if weights.stem in layout.names]
        found = named or [layout for layout in cls.layouts if layout.matches(published or None, keys)]
        if len(found) == 1:
            return found[0]
        known = ", ".join(sorted({layout.model_type for layout in cls.layouts}))
        said = published.get("model_type")
        what = f"says model_type {said!r}" if said else "is not recognised by its tensors"
        raise ValueError(f"{weights} {what}: {cls.__name__} reads {known}.")

    def saved_as(self) -> tables.Layout:
        """The layout it came in, where a folder said so and it can still express the model, else the first that can."""
        able = [layout for layout in self.layouts if layout.holds(self.config) and not layout.asked]
        came_in = [layout for layout in able if self.published and layout.model_type == self.layout]
        return (came_in or able)[0]

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes config.json, model.safetensors and the tokeniser's files in the published layout.

        Each file appears whole or not at all, and config.json never beside weights of another model. Saving over the
        folder the model was loaded from is safe. A compiled model, or block, is saved under its own names.
        """
        folder = Path(folder)
        layout = self.saved_as()
        generation = self.generation.write(self.first_id)
        said = layout.describe(self)
        published = self.published if self.layout in ("", layout.model_type) else {}
        came, now = layout.write(self.read_as), layout.write(self.config)
        changed = {name: value for name, value in now.items() if name not in came or came[name] != value}
        tokens = _decoding_fields(generation, TOKENS, self.first_id)
        if not hasattr(self, "start"):  # a model that writes says also that it has none
            tokens = {name: value for name, value in tokens.items() if value is not None or name in published}
        config = {**now, **published, **changed, **tokens, **said}
        config = {name: value for name, value in config.items() if not (name in said and value is None)}
        state = self.state_dict()
        dtype = str(next(iter(state.values())).dtype).removeprefix("torch.")
        config |= {name: dtype for name in ("dtype", "torch_dtype") if name == "dtype" or name in config}
        bare = {name.replace("_orig_mod.", ""): value for name, value in state.items()}
        tensors = tables.save(layout, bare, self.config)
        documents = {**self.assets, **_prepared(self), "config.json": files.to_json(config)}
        if hasattr(self, "start"):  # a model that writes
            documents[files.GENERATION] = files.to_json(generation)
        writers = {name: partial(_write, content=content) for name, content in documents.items()}
        weights = {"model.safetensors": partial(files.save_tensors, tensors=tensors)}
        files.write_together(folder, {**weights, **writers}, last="config.json")
        files.remove_shards(folder)
        if self.assets:  # another tokeniser's files would be read instead
            for stale in {
                *files.ASSETS,
                *files.VOCABULARIES[1],
                files.CLIP_MERGES,
                files.MODULES,
                files.SENTENCE,
                files.PROMPTS,
            } - self.assets.keys():
                (folder / stale).unlink(missing_ok=True)


def _prepared(model: Pretrained) -> dict[str, bytes]:
    """How pictures are prepared, for a model that reads another size than the one it came with."""
    if files.PREPROCESSOR not in model.assets or not hasattr(model, "resize"):
        return {}
    with contextlib.suppress(ValueError):  # of a kind that is not read here: it stays as it was
        found = Preprocess.read(json.loads(model.assets[files.PREPROCESSOR]))
        if found.shape not in (None, grid.height_width(model.config.image)):
            return {files.PREPROCESSOR: files.to_json(found.sized(model.config.image).write())}
    return {}


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def read_config(source: Path) -> dict[str, Any]:
    """What the weights of a folder are, by config.json or, where they are open_clip's, its own; empty where neither is
    there. A file has none."""
    names = [name for name in (*files.WEIGHTS, *files.CONFIGS) if (source / name).is_file()]
    configs = [name for name in names if name in files.CONFIGS]
    if not configs:
        return {}
    return files.read_json(source / configs[-1 if names[0] in files.OPEN_CLIP else 0])


def _decoding_fields(published: Mapping[str, Any], names: Iterable[str], first: str) -> dict[str, Any]:
    theirs = [_decoding(first)[name][0] for name in names]
    return {name: published[name] for name in theirs if name in published}


def _agreed(given: Any, found: Any, told: Mapping[str, Any], source: Path, cls: type[Pretrained]) -> tuple[Any, Any]:
    """The `image` wanted, if one is, and the config of the file. `told` is what its tensors tell."""
    free = {*told, "dropout"} if told else set()
    fields = dataclasses.fields(cls.config_class)
    names = [field.name for field in fields if field.default is not None and field.name not in free]
    if found is None and given is None:
        if not told or names:
            raise ValueError(
                f"{source} has no config.json, and its tensors do not tell all of {', '.join(names)}: pass config=."
            )
        found = cls.config_class(**told)
    if "image" in told:  # by as many patches as fill a square: another shape may have as many
        said, patch = (found or given).image, told["patch"]
        told = {**told, **({"image": said} if grid.count(said, patch) == grid.count(told["image"], patch) else {})}
    if found is None:
        found = dataclasses.replace(given, **told)
    else:  # a head that config.json counts classes for may be absent
        found = dataclasses.replace(found, **{name: value for name, value in told.items() if value is None})
        _compare(spelt_out(dataclasses.replace(found, **told)), spelt_out(found), "its tensors", source, ())
    if given is None:
        return None, found
    sized = hasattr(cls, "resize")
    _compare(spelt_out(given), spelt_out(found), "config=", source, ("image",) if sized else ())
    return (given.image, dataclasses.replace(given, image=found.image)) if sized else (None, given)


def _compare(a: Mapping[str, Any], b: Mapping[str, Any], where: str, source: Path, free: tuple[str, ...]) -> None:
    differs = [f"{n} is {b[n]} in the file and {a[n]} in {where}" for n in a if a[n] != b[n] and n not in free]
    if differs:
        rest = "Leave config= out to take the file's." if where == "config=" else "The file is damaged."
        raise ValueError(f"{source}: {'; '.join(differs)}. {rest}")


def spelt_out(config: Config) -> dict[str, Any]:
    """The fields, those that follow from others too: configs that mean the same are equal."""
    fields = dataclasses.asdict(config)
    for name in [name for name, value in fields.items() if value is None]:
        if (dim := name.replace("hidden", "dim")) != name and dim in fields:
            fields[name] = 4 * fields[dim]
        elif name.startswith("decoder_"):
            fields[name] = fields[name.removeprefix("decoder_")]
    return fields
