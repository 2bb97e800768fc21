"""What makes a module a model one can load and save: `Config` and the mixin `Pretrained`."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import nn

from scratchformers.checkpoints import files, tables

GENERATION = "generation_config.json"
DECODING = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes are positive integers and `dropout` a probability; anything else is a ValueError at once."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type in (int, "int") and not (_is_int(value) and 0 < value < 2**31):
                raise ValueError(f"{field.name} is {value!r}: expected a positive integer.")
            if field.name == "dropout" and not (isinstance(value, int | float) and 0 <= value < 1):
                raise ValueError(f"dropout is {value!r}: expected 0 <= dropout < 1.")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclasses.dataclass(frozen=True)
class Generation:
    """What a checkpoint says about decoding. `end` lists every id that ends a text; `other` is kept for saving."""

    start: int | None = None
    end: tuple[int, ...] = ()
    pad: int | None = None
    other: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def read(cls, published: Mapping[str, Any]) -> Self:
        start, end, pad = (published.get(name) for name in DECODING)
        end = [] if end is None else end if isinstance(end, list) else [end]
        for value in (start, pad, *end):
            if not (value is None or (_is_int(value) and 0 <= value < 2**31)):
                raise ValueError(f"The checkpoint names {value!r} as a start, end or pad token: expected an id.")
        return cls(start, tuple(end), pad, published)

    def write(self) -> dict[str, Any]:
        end = None if not self.end else self.end[0] if len(self.end) == 1 else list(self.end)
        return {**self.other, "bos_token_id": self.start, "eos_token_id": end, "pad_token_id": self.pad}


class Pretrained(nn.Module):
    """Loading and saving for a model that declares its `Config`, `presets` and `layouts`."""

    config: Any
    config_class: ClassVar[type[Config]]
    presets: ClassVar[Mapping[str, Config]]
    layouts: ClassVar[tuple[tables.Layout, ...]]

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.generation = Generation()
        self.published: dict[str, Any] = {}  # the config.json it came with: what we do not read is saved as it was
        self.assets: dict[str, bytes] = {}  # its tokeniser's files, by name

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
    ) -> Self:
        """The model of a checkpoint folder or file, in eval mode, its weights memory-mapped and copied on change.

        config: a config or a preset's name. Needed where the source has no config.json; must agree with it elsewhere.
        Raises ValueError or FileNotFoundError with one sentence if anything does not fit.
        """
        source = Path(source)
        weights = files.find_weights(source)
        published = read_config(source)
        config = cls.preset(config) if isinstance(config, str) else config
        if config is not None and not isinstance(config, cls.config_class):
            raise ValueError(
                f"config= is a {type(config).__name__}: {cls.__name__} takes a {cls.config_class.__name__}."
            )
        tensors = files.read_tensors(weights)
        layout = cls._layout(published, tensors, source)
        config = _agreed(config, layout.read(published) if published else None, source, cls.config_class)
        with torch.device("meta"):  # nothing is initialised only to be thrown away
            model = cls(config)
        shapes = {name: parameter.shape for name, parameter in model.state_dict().items()}
        try:
            state = tables.load(layout, tensors, shapes)
        except ValueError as error:
            raise ValueError(f"{weights}: {error}") from None
        model.load_state_dict({name: value.to(device, dtype) for name, value in state.items()}, assign=True)
        if source.is_dir():
            model.assets = files.read_assets(source)
            has_own = (source / GENERATION).is_file()
            generation = files.read_json(source / GENERATION) if has_own else _decoding_fields(published)
            model.generation = Generation.read(generation)
        model.published = published
        return model.eval()

    @classmethod
    def _layout(cls, published: Mapping[str, Any], keys: Mapping[str, Any], source: Path) -> tables.Layout:
        found = [layout for layout in cls.layouts if layout.matches(published or None, keys)]
        if len(found) == 1:
            return found[0]
        known = ", ".join(sorted({layout.model_type for layout in cls.layouts}))
        said = published.get("model_type")
        what = f"says model_type {said!r}" if said else "is not recognised by its tensors"
        raise ValueError(f"{source} {what}: {cls.__name__} reads {known}.")

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes config.json, model.safetensors and the tokeniser's files in the published layout.

        Each file appears whole or not at all, and config.json never beside weights of another model. Saving over the
        folder the model was loaded from is safe. A compiled model, or block, is saved under its own names.
        """
        folder = Path(folder)
        came_in = [layout for layout in self.layouts if layout.model_type == self.published.get("model_type")]
        layout = (came_in or self.layouts)[0]
        generation = self.generation.write()
        config = {**layout.write(self.config), **self.published, **_decoding_fields(generation)}
        state = self.state_dict()
        dtype = str(next(iter(state.values())).dtype).removeprefix("torch.")
        config |= {name: dtype for name in ("dtype", "torch_dtype") if name == "dtype" or name in config}
        tensors = tables.save(layout, {name.replace("_orig_mod.", ""): value for name, value in state.items()})
        documents = {**self.assets, GENERATION: files.to_json(generation), "config.json": files.to_json(config)}
        writers = {name: partial(_write, content=content) for name, content in documents.items()}
        weights = {"model.safetensors": partial(files.save_tensors, tensors=tensors)}
        files.write_together(folder, {**weights, **writers}, last="config.json")
        if self.assets:  # another tokeniser's files would be read instead
            for stale in set(files.ASSETS) - self.assets.keys():
                (folder / stale).unlink(missing_ok=True)


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def read_config(source: Path) -> dict[str, Any]:
    """The config.json of a folder; empty where there is none."""
    path = source / "config.json"
    return files.read_json(path) if path.is_file() else {}


def _decoding_fields(published: Mapping[str, Any]) -> dict[str, Any]:
    return {name: published[name] for name in DECODING if name in published}


def _agreed(given: Any, found: Any, source: Path, kind: type[Config]) -> Config:
    if found is None and given is None:
        names = ", ".join(field.name for field in dataclasses.fields(kind))
        raise ValueError(f"{source} has no config.json, and its tensors do not tell all of {names}: pass config=.")
    if given is None:
        return found
    if found is None:
        return given
    a, b = dataclasses.asdict(given), dataclasses.asdict(found)
    if differs := [f"{name} is {b[name]} in the file and {a[name]} in config=" for name in a if a[name] != b[name]]:
        raise ValueError(f"{source}: {'; '.join(differs)}. Leave config= out to take the file's.")
    return given
