"""One page per model; here, the list of them, and `load` and `load_tokenizer`, which ask each page's layouts."""

from pathlib import Path

import torch

from scratchformers.checkpoints import files, hub
from scratchformers.checkpoints.pretrained import Config, Pretrained, read_config
from scratchformers.models.gpt2 import GPT2
from scratchformers.text import TextTokenizer, read_tokenizer

CLASSES: tuple[type[Pretrained], ...] = (GPT2,)


def load(
    source: str | Path,
    *,
    config: Config | str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    revision: str | None = None,
    local_files_only: bool = False,
) -> Pretrained:
    """The model of a checkpoint, of whichever class it says it is; the arguments are those of `from_pretrained`."""
    source = hub.find(source, revision=revision, local_files_only=local_files_only)
    return _class(source, config).from_pretrained(source, config=config, dtype=dtype, device=device)


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


def load_tokenizer(source: str | Path, *, revision: str | None = None, local_files_only: bool = False) -> TextTokenizer:
    """The tokeniser of a checkpoint (folder, weights file or hub id), a vocabulary folder, or a file of one of them.

    tokenizer.json is read as it is; what vocab.json and merges.txt (OpenAI's encoder.json and vocab.bpe) mean, the
    checkpoint's model says, and without a config.json beside them they are GPT-2's byte-level BPE.
    """
    source = hub.find(source, revision=revision, local_files_only=local_files_only, weights=False)
    folder = source.parent if source.is_file() else source
    others = source.name.endswith(files.INDEX) or source.name in ("config.json", "vocab.json", "encoder.json")
    own_name = source.is_file() and source.suffix == ".json" and not others
    file = source if own_name else folder / "tokenizer.json"
    if file.is_file():
        return read_tokenizer(file)
    pair = files.find_vocabulary(source)
    if pair is None:
        expected = ", or ".join(["tokenizer.json", *(" and ".join(names) for names in files.VOCABULARIES)])
        raise FileNotFoundError(f"{source} holds no tokeniser: expected {expected}.")
    readers = {layout.model_type: layout.tokenizer for kind in CLASSES for layout in kind.layouts if layout.tokenizer}
    said = read_config(folder).get("model_type", "gpt2")
    if said not in readers:
        raise ValueError(f"{folder} says model_type {said!r}: its vocab.json is read for {', '.join(readers)} only.")
    return readers[said](*pair)
