"""One page per model; here, the list of them and `load`, which finds the page a checkpoint belongs to."""

from pathlib import Path

import torch

from scratchformers.checkpoints import files
from scratchformers.checkpoints.pretrained import Config, Pretrained, read_config
from scratchformers.models.gpt2 import GPT2

CLASSES: tuple[type[Pretrained], ...] = (GPT2,)


def load(
    source: str | Path,
    *,
    config: Config | str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> Pretrained:
    """The model of a checkpoint, of whichever class it says it is; the arguments are those of `from_pretrained`."""
    return _class(Path(source), config).from_pretrained(source, config=config, dtype=dtype, device=device)


def _class(source: Path, config: Config | str | None) -> type[Pretrained]:
    if named := _named_by(config):
        return named
    weights, published = files.find_weights(source), read_config(source)
    said = published.get("model_type")
    keys = {} if said else files.read_tensors(weights)
    found = [kind for kind in CLASSES if any(layout.matches(published or None, keys) for layout in kind.layouts)]
    if len(found) == 1:
        return found[0]
    known = ", ".join(sorted({layout.model_type for kind in CLASSES for layout in kind.layouts}))
    what = f"says model_type {said!r}" if said else "is not recognised by its tensors"
    raise ValueError(f"{source} {what}: expected one of {known}, or pass config= to say which model it is.")


def _named_by(config: Config | str | None) -> type[Pretrained] | None:
    """The only class that takes this config, or has a preset of this name."""
    found = [kind for kind in CLASSES if config in kind.presets or isinstance(config, kind.config_class)]
    return found[0] if len(found) == 1 else None
