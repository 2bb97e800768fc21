"""ScratchFormers: transformers implemented from scratch that one can read, prove and run.

Names are imported when first used, so that `scratchformers --help` does not wait for torch.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scratchformers.beams import beam_search as beam_search
    from scratchformers.generate import generate as generate
    from scratchformers.generate import stream as stream
    from scratchformers.heads import Classify as Classify
    from scratchformers.heads import TokenClassify as TokenClassify
    from scratchformers.heads import first as first
    from scratchformers.heads import mean as mean
    from scratchformers.insight.record import record as record
    from scratchformers.models import load as load
    from scratchformers.models import load_preprocess as load_preprocess
    from scratchformers.models import load_tokenizer as load_tokenizer
    from scratchformers.models.bert import BERT as BERT
    from scratchformers.models.bert import BERTConfig as BERTConfig
    from scratchformers.models.clip import CLIP as CLIP
    from scratchformers.models.clip import CLIPConfig as CLIPConfig
    from scratchformers.models.encoder_decoder import EncoderDecoder as EncoderDecoder
    from scratchformers.models.encoder_decoder import EncoderDecoderConfig as EncoderDecoderConfig
    from scratchformers.models.gpt2 import GPT2 as GPT2
    from scratchformers.models.gpt2 import GPT2Config as GPT2Config
    from scratchformers.models.mae import MAE as MAE
    from scratchformers.models.mae import MAEConfig as MAEConfig
    from scratchformers.models.vit import ViT as ViT
    from scratchformers.models.vit import ViTConfig as ViTConfig
    from scratchformers.tasks import Completer as Completer
    from scratchformers.tasks import Completion as Completion
    from scratchformers.tasks import DualEncoder as DualEncoder
    from scratchformers.tasks import Fill as Fill
    from scratchformers.tasks import ImageClassifier as ImageClassifier
    from scratchformers.tasks import Label as Label
    from scratchformers.tasks import MaskFiller as MaskFiller
    from scratchformers.tasks import Match as Match
    from scratchformers.tasks import PictureIndex as PictureIndex
    from scratchformers.tasks import Reconstruction as Reconstruction
    from scratchformers.tasks import Reconstructor as Reconstructor
    from scratchformers.tasks import SentenceEncoder as SentenceEncoder
    from scratchformers.tasks import TextClassifier as TextClassifier
    from scratchformers.tasks import Translation as Translation
    from scratchformers.tasks import Translator as Translator
    from scratchformers.tasks import WordLabel as WordLabel
    from scratchformers.tasks import ZeroShotClassifier as ZeroShotClassifier

_HOME = {
    "BERT": "models.bert",
    "BERTConfig": "models.bert",
    "CLIP": "models.clip",
    "CLIPConfig": "models.clip",
    "Classify": "heads",
    "Completer": "tasks",
    "Completion": "tasks",
    "DualEncoder": "tasks",
    "EncoderDecoder": "models.encoder_decoder",
    "EncoderDecoderConfig": "models.encoder_decoder",
    "Fill": "tasks",
    "GPT2": "models.gpt2",
    "GPT2Config": "models.gpt2",
    "ImageClassifier": "tasks",
    "Label": "tasks",
    "MAE": "models.mae",
    "MAEConfig": "models.mae",
    "MaskFiller": "tasks",
    "Match": "tasks",
    "PictureIndex": "tasks",
    "Reconstruction": "tasks",
    "Reconstructor": "tasks",
    "SentenceEncoder": "tasks",
    "TextClassifier": "tasks",
    "TokenClassify": "heads",
    "Translation": "tasks",
    "Translator": "tasks",
    "ViT": "models.vit",
    "ViTConfig": "models.vit",
    "WordLabel": "tasks",
    "ZeroShotClassifier": "tasks",
    "beam_search": "beams",
    "first": "heads",
    "generate": "generate",
    "load": "models",
    "load_preprocess": "models",
    "load_tokenizer": "models",
    "mean": "heads",
    "record": "insight.record",
    "stream": "generate",
}
__all__ = sorted(_HOME)
__version__ = "0.1.0"


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'scratchformers' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"scratchformers.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})


class _Package(ModuleType):
    """Importing a submodule binds its name here; a public name that a file shares (`generate`) stays the function."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
