"""Checkpoint files read safely and written so that a reader never meets half of one.

Nothing read here can run code: safetensors holds no code, pickles are opened with `weights_only`, and the code of a
TorchScript archive is not looked at (archive.py).
"""

import argparse
import contextlib
import json
import os
import pickle
import re
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from scratchformers.checkpoints import archive

GENERATION = "generation_config.json"
INDEX = ".index.json"  # ends the name of a file that says which shard holds which tensor
SINGLE = ("model.safetensors", "pytorch_model.bin")
OPEN_CLIP = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
# The first that is there is read: where transformers' files and open_clip's lie side by side, transformers'.
WEIGHTS = (*(name + ending for name in SINGLE for ending in ("", INDEX)), *OPEN_CLIP)
CONFIGS = ("config.json", "open_clip_config.json")
# Small files that travel with the weights as they are: how ids and text, or pictures and pixels, become one another.
PREPROCESSOR = "preprocessor_config.json"
ASSETS = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt", "vocab.txt"),
    *("source.spm", "target.spm", "target_vocab.json", "sentencepiece.bpe.model", "target_tokenizer.json"),
    PREPROCESSOR,
)
CLIP_MERGES = "bpe_simple_vocab_16e6.txt.gz"
MARIAN, MBART = ("source.spm", "target.spm", "vocab.json"), ("sentencepiece.bpe.model",)
# A vocabulary and its merges under the names transformers reads, which we save, and under OpenAI's of GPT-2; then
# WordPiece's, OpenAI's of CLIP, and what SentencePiece cuts.
VOCABULARIES = (
    *(("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"), ("vocab.txt",), (CLIP_MERGES,)),
    *(MARIAN, MBART),
)
OURS = {"encoder.json": "vocab.json", "vocab.bpe": "merges.txt"}
# What sentence-transformers keeps beside a model that makes one vector of a text. The rest is in folders it names.
MODULES, SENTENCE, PROMPTS = "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"
# A tensor of so many bytes is mapped by itself: when it was copied and is let go, so is the memory it was read through.
LARGE = 2**23
# Renaming over a file that is mapped fails on Windows, so there tensors are copied out of it.
MAPPED = os.name != "nt"


def find_weights(source: Path) -> Path:
    """The weights file that `source`, a folder or the file itself, stands for."""
    if source.is_file():
        return source
    if not source.is_dir():
        raise FileNotFoundError(
            f"{source} does not exist (a path: nothing is downloaded): expected a folder with {' or '.join(SINGLE)}."
        )
    for name in WEIGHTS:
        if (source / name).is_file():
            return source / name
    if len(published := [*source.glob("*.pt")]) == 1:  # as OpenAI's files are kept
        return published[0]
    inner = source / "model"  # as in the folder of a run
    hint = f" Did you mean {inner}?" if inner.is_dir() else ""
    raise FileNotFoundError(f"{source} holds no weights: expected {' or '.join(SINGLE)} in it, or one .pt.{hint}")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one file, or of all an index names, memory-mapped: changing them does not change the file."""
    if path.name.endswith(INDEX):
        return _read_sharded(path)
    if path.suffix != ".safetensors":
        return archive.read_archive(path, mapped=MAPPED) if archive.is_archive(path) else _read_pickle(path)
    try:
        return _read_safetensors(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or corrupted ({error}): fetch it again.") from None


def read_index(index: Path) -> dict[str, str]:
    """Which file beside an index holds which tensor. What could lead out of the folder is refused."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{index} is no index of shards: expected a weight_map of tensors to files.")
    for shard in places.values():
        if not isinstance(shard, str) or not re.fullmatch(r"[\w.-]+\.(safetensors|bin)", shard):
            raise ValueError(f"{index} names {shard!r} as a shard: expected a .safetensors or .bin file beside it.")
    return places


def _read_sharded(index: Path) -> dict[str, Tensor]:
    """Strict: every shard is there and holds what the index says, no more and no less."""
    places = read_index(index)
    shards = sorted(set(places.values()))
    if absent := [name for name in shards if not (index.parent / name).is_file()]:
        raise FileNotFoundError(f"{index} names {', '.join(absent)}, which is not beside it: fetch it again.")
    tensors, wrong = {}, []
    for shard in shards:
        held = read_tensors(index.parent / shard)
        lacks = sorted(name for name, place in places.items() if place == shard and name not in held)
        wrong += [f"{shard} lacks {name}" for name in lacks]
        wrong += [
            f"{shard} holds {name}, which the index places in {places.get(name, 'no shard')}"
            for name in sorted(held)
            if places.get(name) != shard
        ]
        tensors |= held
    if wrong:
        raise ValueError(f"{index} and its shards do not belong together: {'; '.join(wrong)}.")
    return tensors


def remove_shards(folder: Path) -> None:
    """Removes indices and the shards they name: beside a whole file they would only contradict it."""
    for index in (folder / (name + INDEX) for name in SINGLE):
        if index.is_file():
            with contextlib.suppress(ValueError):  # a broken index: whatever it names stays
                for shard in set(read_index(index).values()) - set(SINGLE):
                    (folder / shard).unlink(missing_ok=True)
            index.unlink()


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    for name in [name for name, value in tensors.items() if value.nbytes >= LARGE]:
        with safe_open(path, framework="pt") as file:
            tensors[name] = file.get_tensor(name)
    return tensors if MAPPED else {name: value.clone() for name, value in tensors.items()}


def _read_pickle(path: Path) -> dict[str, Tensor]:
    zipped = zipfile.is_zipfile(path)
    if not zipped and _begins_as_zip(path):  # the end of a zip says what it holds
        raise ValueError(f"{path} is truncated: fetch it again.")
    try:
        mapped = MAPPED and zipped  # the older format cannot be mapped
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with torch.serialization.safe_globals([argparse.Namespace]):  # plain data: what a training was begun with
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError:  # torch's own sentence proposes to run what is in the file
        raise ValueError(f"{path} was refused: it holds more than plain tensors, or is no weights file.") from None
    except OSError:
        raise
    except Exception as error:  # a damaged pickle can raise any
        raise ValueError(f"{path} is truncated or corrupted ({_first_line(error)}): fetch it again.") from None
    for name in ("model", "state_dict"):  # what a training keeps beside its weights is left
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path} holds something other than named tensors: expected a state dict.")
    return dict(content)


def _begins_as_zip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"PK\3\4"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}).") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}: expected a JSON object.")
    return content


def read_assets(folder: Path) -> dict[str, bytes]:
    """The tokeniser's files of a checkpoint, under the names we save."""
    found = {name: folder / name for name in ASSETS if (folder / name).is_file()}
    found |= {OURS.get(path.name, path.name): path for path in find_vocabulary(folder) or ()}
    found |= {name: folder / name for name in sentence_files(folder) if (folder / name).is_file()}
    return {name: path.read_bytes() for name, path in found.items()}


def find_vocabulary(source: Path) -> tuple[Path, ...] | None:
    """The vocabulary (and its merges) of a folder, or of the folder of a file; the file's own before another."""
    folder = source if source.is_dir() else source.parent
    for names in sorted(VOCABULARIES, key=lambda names: source.name not in names):
        paths = tuple(folder / name for name in names)
        if all(path.is_file() for path in paths):
            return paths
    return None


def sentence_files(folder: Path) -> list[str]:
    """The names of what sentence-transformers reads beside the weights; none where it has nothing there."""
    path = folder / MODULES
    modules = read_modules(path) if path.is_file() else []
    return [MODULES, SENTENCE, PROMPTS, *(f"{each}/config.json" for _, each in modules if each)] if modules else []


def read_modules(path: Path) -> list[tuple[str, str]]:
    """Of each step of modules.json what it is (`Transformer`, `Pooling`, ...) and its folder, "" for this one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = [(str(each["type"]).rpartition(".")[2], str(each["path"])) for each in content]
    except (ValueError, TypeError, KeyError, RecursionError):
        found = []
    if not found or not all(re.fullmatch(r"(?!\.)[\w.-]*", each) for _, each in found):
        raise ValueError(f"{path} is no list of modules: expected a type and a folder beside it for each.")
    return found


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` on a temporary file beside `path`, then renames: `path` is the old file or the new, never half."""
    write_together(path.parent, {path.name: write})


def write_together(folder: Path, writers: Mapping[str, Callable[[Path], object]], *, last: str | None = None) -> None:
    """Writes files that belong together: all of them under other names first, then renamed one after the other.

    The file named `last` tells how to read the others. If it changes, it is taken away before them and comes back after
    them: a process killed between leaves a folder without it, never one where it goes with the wrong others.
    """
    folder.mkdir(parents=True, exist_ok=True)
    staged: dict[str, Path] = {}
    try:
        for name, write in writers.items():
            (folder / name).parent.mkdir(exist_ok=True)
            handle, temporary = tempfile.mkstemp(
                dir=(folder / name).parent, prefix=f".{Path(name).name}.", suffix=".tmp"
            )
            os.close(handle)
            staged[name] = Path(temporary)
            write(staged[name])
            os.chmod(temporary, 0o666 & ~_umask())
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        if last and (folder / last).is_file() and (folder / last).read_bytes() != staged[last].read_bytes():
            (folder / last).unlink()
        for name in sorted(staged, key=lambda name: name == last):
            os.replace(staged[name], folder / name)
    finally:
        for temporary in staged.values():
            temporary.unlink(missing_ok=True)


def remove_temporary(folder: Path) -> None:
    """Removes what killed processes left below a folder half written."""
    for path in [*folder.rglob(".*.tmp")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def to_json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode("utf-8")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_bytes(path, to_json(content))


def write_bytes(path: Path, content: bytes) -> None:
    write_atomically(path, lambda file: file.write_bytes(content))


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """As safetensors, not atomically by itself. The tensors may be views of a mapped file that `path` will replace: its
    bytes outlive its name."""
    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{path} could not be written: {_first_line(error)}") from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    write_atomically(path, lambda file: save_tensors(file, tensors))
