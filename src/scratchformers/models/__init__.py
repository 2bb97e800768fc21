"""One page per model; here, the list of them, and `load`, `load_tokenizer` and `load_preprocess`, which ask each
page's layouts."""

from collections.abc import Callable
from pathlib import Path

import torch

from scratchformers.checkpoints import files, hub
from scratchformers.checkpoints.pretrained import Config, Pretrained, read_config
from scratchformers.checkpoints.tables import Layout
from scratchformers.clip_text import is_clips
from scratchformers.images import Preprocess
from scratchformers.models.bert import BERT
from scratchformers.models.clip import CLIP
from scratchformers.models.encoder_decoder import EncoderDecoder
from scratchformers.models.gpt2 import GPT2
from scratchformers.models.mae import MAE
from scratchformers.models.vit import ViT
from scratchformers.text import TextTokenizer, read_tokenizer

CLASSES: tuple[type[Pretrained], ...] = (GPT2, BERT, ViT, MAE, CLIP, EncoderDecoder)


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
    named = [kind for kind in CLASSES if _layouts(kind, lambda one: not one.asked and weights.stem in one.names)]
    if named and not published:
        return named[0]
    keys = {} if said else files.read_tensors(weights)
    found = [
        kind for kind in CLASSES if _layouts(kind, lambda one: not one.asked and one.matches(published or None, keys))
    ]
    if len(found) == 1:
        return found[0]
    known = ", ".join(sorted({layout.model_type for kind in CLASSES for layout in kind.layouts}))
    what = f"says model_type {said!r}" if said else "is not recognised by its tensors"
    raise ValueError(f"{source} {what}: expected one of {known}, or pass config= to say which model it is.")


def _layouts(kind: type[Pretrained], suits: Callable[[Layout], bool]) -> list[Layout]:
    return [layout for layout in kind.layouts if suits(layout)]


def _named_by(config: Config | str | None) -> type[Pretrained] | None:
    """The only class that takes this config, or has a preset of this name."""
    found = [kind for kind in CLASSES if config in kind.presets or isinstance(config, kind.config_class)]
    return found[0] if len(found) == 1 else None


def load_tokenizer(source: str | Path, *, revision: str | None = None, local_files_only: bool = False) -> TextTokenizer:
    """The tokeniser of a checkpoint (folder, weights file or hub id), a vocabulary folder, or a file of one of them.

    tokenizer.json is read as it is, but for CLIP, of which none says all that is done to a text. What a vocabulary
    means, the checkpoint's model says; without a config.json beside it, vocab.json and merges.txt (OpenAI's
    encoder.json and vocab.bpe) are GPT-2's byte-level BPE, or CLIP's where merges end words, and vocab.txt is BERT's
    WordPiece.
    """
    source = hub.find(source, revision=revision, local_files_only=local_files_only, weights=False)
    folder = source.parent if source.is_file() else source
    others = source.name.endswith(files.INDEX) or source.name in ("config.json", "vocab.json", "encoder.json")
    own_name = source.is_file() and source.suffix == ".json" and not others
    file, paths = source if own_name else folder / "tokenizer.json", files.find_vocabulary(source)
    if (respelt := _respelt(folder, paths)) and (paths or file.is_file()):
        return respelt(*(paths or (file,)))
    if file.is_file() and source.name != "vocab.txt":
        return read_tokenizer(file)
    if paths is None:
        _check_whole(folder)
        expected = ", or ".join(["tokenizer.json", *(" and ".join(names) for names in files.VOCABULARIES)])
        raise FileNotFoundError(f"{source} holds no tokeniser: expected {expected}.")
    return _reader(folder, paths)(*paths)


def _respelt(folder: Path, paths: tuple[Path, ...] | None) -> Callable[..., TextTokenizer] | None:
    """What makes the tokeniser of a model for which no tokenizer.json says all, if the folder holds one of these."""
    published = read_config(folder)
    said = "open_clip" if "model_cfg" in published else published.get("model_type")
    if not published and is_clips(folder, paths):
        said = "clip"
    layouts = (layout for kind in CLASSES for layout in kind.layouts)
    return next((layout.tokenizer for layout in layouts if layout.respelt and layout.model_type == said), None)


def _check_whole(folder: Path) -> None:
    """FileNotFoundError that says which, if some of the files of its model's tokeniser are there and some are not."""
    said = read_config(folder).get("model_type")
    layouts = [layout for kind in CLASSES for layout in kind.layouts if layout.tokenizer]
    names = next((layout.vocabulary for layout in layouts if layout.model_type == said), ())
    lacks = [name for name in names if not (folder / name).is_file()]
    if len(lacks) < len(names):
        missing, whole = " and ".join(lacks), ", ".join(names)
        raise FileNotFoundError(f"{folder} holds no {missing}: the tokeniser of a {said} model is {whole}.")


def _reader(folder: Path, paths: tuple[Path, ...]) -> Callable[..., TextTokenizer]:
    """What makes a tokeniser of these files, for the model that the folder says it holds."""
    names, said = tuple(files.OURS.get(path.name, path.name) for path in paths), read_config(folder).get("model_type")
    layouts = [layout for kind in CLASSES for layout in kind.layouts if layout.tokenizer and layout.vocabulary == names]
    found = [layout.tokenizer for layout in layouts if layout.tokenizer and said in (None, layout.model_type)]
    if not found:
        known = ", ".join(layout.model_type for layout in layouts)
        raise ValueError(f"{folder} says model_type {said!r}: its {names[0]} is read for {known} only.")
    return found[0]


def load_preprocess(
    source: str | Path,
    *,
    model: Pretrained | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
) -> Preprocess:
    """How a checkpoint's pictures are prepared: from a PIL image to a float tensor (channels, height, width).

    As preprocessor_config.json says, or timm's config.json; else as is published for such files; where that differs
    from model to model, a ValueError. `model` is the checkpoint's, where it is loaded already.
    """
    given = source
    source = hub.find(given, revision=revision, local_files_only=local_files_only, weights=False)
    folder = source if source.is_dir() else source.parent
    said = folder / files.PREPROCESSOR
    if source.is_dir() and said.is_file():
        return Preprocess.read(files.read_json(said))
    model = load(given, revision=revision, local_files_only=local_files_only) if model is None else model
    (layout,) = _layouts(type(model), lambda one: one.model_type == model.layout)
    found = layout.preprocess(model.published, model.config, source.stem)
    if found is None:
        raise ValueError(
            f"{source} does not say how pictures are prepared: put its {files.PREPROCESSOR} beside it, or make an "
            "images.Preprocess yourself."
        )
    return found
