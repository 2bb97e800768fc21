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
    if isinstance(config, Config):
        return next(kind for kind in CLASSES if isinstance(config, kind.config_class))
    if isinstance(config, str):
        named = [kind for kind in CLASSES if config in kind.presets]
        if len(named) == 1:
            return named[0]
    weights, published = files.find_weights(source), read_config(source)
    keys = {} if "model_type" in published else files.read_tensors(weights)
    found = [kind for kind in CLASSES if any(layout.matches(published or None, keys) for layout in kind.layouts)]
    if len(found) == 1:
        return found[0]
    known = sorted({layout.model_type for kind in CLASSES for layout in kind.layouts})
    said = f"says model_type {published['model_type']!r}" if "model_type" in published else "is not recognised"
    raise ValueError(f"{source} {said}: expected one of {', '.join(known)}, or pass config= to say which model it is.")
