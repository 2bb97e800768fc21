"""The famous bugs of CLIP, planted one at a time: each must move an answer far past the tolerance of the parity tests.
Most are an edit of the page's own line, so that a line that changes takes its mutants along.
"""

import clip_reference  # before what imports torchvision
import numpy as np
import pytest
import torch
from clip_reference import END, OTHER_END, answers, pictures, save_open_clip, texts
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.transform import image_transform
from PIL import Image
from test_bert_mutants import eps, zeroed
from test_mutants import heads_inside_out
from test_vision_mutants import attending, edited
from torch import nn

import scratchformers as sf
from scratchformers import images
from scratchformers import nn as bricks
from scratchformers.models import clip

TOLERANCE = 1e-10  # what test_clip.py allows
PICTURE = Image.fromarray(np.random.RandomState(3).randint(0, 256, (47, 61, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """One of theirs of every kind, where it lies, and what it says."""
    made, place = {}, tmp_path_factory.mktemp("published")
    for kind, act, end in (("quick", "quick_gelu", 2), ("end", "gelu", END)):
        theirs = clip_reference.clip(act, end)
        theirs.save_pretrained(place / kind)
        made[kind] = place / kind, answers(theirs, pictures(), texts())
    theirs = clip_reference.clip("gelu", OTHER_END)
    theirs.save_pretrained(place / "other")
    made["other end"] = place / "other", answers(theirs, pictures(), texts(end=OTHER_END))
    theirs, cfg = clip_reference.open_clip()
    made["open_clip"] = save_open_clip(theirs, cfg, place / "open"), answers(theirs, pictures(), texts())
    theirs, _ = clip_reference.open_clip(quick=True)
    torch.save(clip_reference.openai(theirs), place / "ViT.pt")
    made["openai"] = place / "ViT.pt", answers(theirs, pictures(), texts())
    return made


PREPARED = image_transform(21, is_train=False, mean=OPENAI_DATASET_MEAN, std=OPENAI_DATASET_STD)(PICTURE)


@torch.no_grad()
def error(published) -> float:
    """How far our answers are from the references', and our pixels from open_clip's."""
    errors = [(sf.load_preprocess(published["openai"][0])(PICTURE) - PREPARED).abs().max().double()]
    for kind, (source, theirs) in published.items():
        model, ids = sf.load(source, dtype=torch.float64), texts(end=OTHER_END if kind == "other end" else END)
        ours = {"image": model.encode_image(pictures()), "text": model.encode_text(ids)}
        ours["scores"] = model(pictures(), ids)
        assert ours.keys() == theirs.keys()
        errors += [(ours[name] - theirs[name]).abs().max() for name in theirs]
    return float(torch.stack(errors).max())


def test_the_unchanged_model_passes(published):
    assert error(published) < TOLERANCE


def activations(**changes):
    return lambda patch: patch.setattr(clip, "ACTIVATIONS", bricks.ACTIVATIONS | changes)


def prepared(**changes):
    """Pictures prepared with another value."""

    def plant(patch):
        made = images.Preprocess.__init__
        patch.setattr(images.Preprocess, "__init__", lambda self, *a, **k: made(self, *a, **(k | changes)))

    return plant


def no_antialias(patch):
    """Each pixel of a smaller picture from its nearest ones only, as F.interpolate does by default."""

    def resize(self, size, how=None, **rest):
        x = torch.from_numpy(np.array(self)).permute(2, 0, 1)[None].float()
        x = torch.nn.functional.interpolate(x, size=(size[1], size[0]), mode="bicubic")
        return Image.fromarray(x[0].round().clamp(0, 255).byte().permute(1, 2, 0).numpy())

    patch.setattr(Image.Image, "resize", resize)


def keys_for_queries(self, x, mask=None, *, kv=None, cache=None, real=bricks.Attention.forward):
    """The first of three fused matrices read as the second."""
    q, self.q = self.q, nn.Linear(*self.q.weight.shape, dtype=x.dtype)
    self.q.weight.data, self.q.bias.data = (each[: len(q.bias)] for each in (self.kv.weight, self.kv.bias))
    out = real(self, x, mask, kv=kv, cache=cache)
    self.q = q
    return out


text = clip.TextTower
MUTANTS = {
    "GELU for QuickGELU": activations(quick_gelu=bricks.gelu),
    "QuickGELU for GELU": activations(gelu=bricks.quick_gelu),
    "tanh GELU": activations(gelu=bricks.gelu_tanh),
    "texts see what follows": edited(text, "forward", "block(x, rows or CAUSAL)", "block(x, None)"),
    "texts, packed, see what follows": edited(text, "forward", "causal=True", "causal=False"),
    "pooled at the first token": edited(text, "forward", "device=x.device), end]", "device=x.device), 0 * end]"),
    "pooled at the last token": edited(text, "forward", "device=x.device), end]", "device=x.device), -1]"),
    "pooled before the end": edited(text, "forward", "device=x.device), end]", "device=x.device), end - 1]"),
    "the largest id for the end id": edited(clip.CLIP, "encode_text", "(ids == self.config.end).int()", "ids"),
    "pooled at the first token of pictures": edited(clip.ImageTower, "forward", "x[:, 0]", "x[:, 1]"),
    "pictures pooled by mean": edited(clip.ImageTower, "forward", "self.norm(x[:, 0])", "self.norm(x).mean(1)"),
    "no norm before the blocks": edited(clip.ImageTower, "forward", "self.first_norm(torch.cat", "(torch.cat"),
    "no last norm of pictures": edited(clip.ImageTower, "forward", "self.norm(x[:, 0])", "x[:, 0]"),
    "no last norm of texts": edited(text, "forward", "self.norm(x[", "(x["),
    "positions of pictures shifted by the class token": edited(
        clip.ImageTower, "forward", "+ self.position", "+ self.position.roll(1, 1)"
    ),
    "no positions of texts": edited(text, "forward", "+ self.position(place)", "+ 0 * self.position(place)"),
    "positions of texts from 1": edited(text, "forward", "self.position(place)", "self.position(place.roll(1))"),
    "features not normalised": edited(
        clip.CLIP, "forward", "F.normalize(self.encode_text(ids), dim=-1)", "self.encode_text(ids)"
    ),
    "pictures not normalised": edited(
        clip.CLIP, "forward", "F.normalize(self.encode_image(images), dim=-1)", "self.encode_image(images)"
    ),
    "the scale is no logarithm": edited(clip.CLIP, "forward", "self.scale.exp()", "self.scale"),
    "texts of another order": edited(clip.CLIP, "forward", "@ text.T", "@ text.flip(0).T"),
    "heads (e h)": heads_inside_out,
    "no softmax": attending(lambda q, k, v, mask=None, dropout=0.0: (q @ k.mT / q.shape[-1] ** 0.5) @ v),
    "eps 1e-6": eps(1e-6),
    "a bias lost": zeroed("text.blocks.1.attention.kv.bias"),
    "keys for queries": lambda patch: patch.setattr(bricks.Attention, "forward", keys_for_queries),
    "mean and std of ImageNet": prepared(mean=images.IMAGENET[0], std=images.IMAGENET[1]),
    "bilinear for bicubic": prepared(interpolation="bilinear"),
    "no antialias": no_antialias,
}


@pytest.mark.unhooked
@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_bug_is_caught(published, monkeypatch, name):
    MUTANTS[name](monkeypatch)
    assert not error(published) < 1000 * TOLERANCE
