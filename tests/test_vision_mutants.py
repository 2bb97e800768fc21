"""The famous bugs of ViT and MAE, planted one at a time: each must move an answer far past the tolerance of the parity
tests. Most are an edit of the page's own line, so that a line that changes takes its mutants along.
"""

import dataclasses
import inspect
import sys
import textwrap

import numpy as np
import pytest
import torch
import vision_reference
from PIL import Image
from test_bert_mutants import eps, replacing, zeroed
from test_mutants import heads_inside_out
from torchvision import transforms
from vision_reference import answers, encoded, noise, painted, pictures

import scratchformers as sf
from scratchformers import grid
from scratchformers import nn as bricks
from scratchformers.checkpoints import tables
from scratchformers.images import IMAGENET, Preprocess
from scratchformers.models import mae, vit

TOLERANCE = 1e-10  # what test_vit.py and test_mae.py allow
SQUARE = (35, 35)
PICTURE = Image.fromarray(np.random.RandomState(3).randint(0, 256, (47, 61, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """One of theirs of every kind, the folder or file it is in, and what it says."""
    made, place = {}, tmp_path_factory.mktemp("published")
    for kind in ("ForImageClassification", "Model"):
        theirs = vision_reference.vit(kind)
        theirs.save_pretrained(place / kind)
        made[kind] = place / kind, answers(theirs, pictures())
    for pool in ("token", "avg"):
        theirs = vision_reference.of_timm(global_pool=pool)
        vision_reference.save_for_hf(theirs, place / pool)
        said = answers(theirs, pictures())
        theirs.set_input_size(img_size=(21, 49))
        made[pool] = place / pool, said | {"small": answers(theirs, pictures(size=(21, 49)))["output"]}
    for normed in (False, True):  # heads that would divide the other tower's width too
        theirs = vision_reference.mae(norm_pix_loss=normed, num_attention_heads=2)
        theirs.save_pretrained(place / f"mae-{normed}")
        said = painted(theirs, pictures(size=SQUARE), noise()) | {"encoded": encoded(theirs, pictures(size=SQUARE))}
        made[f"mae-{normed}"] = place / f"mae-{normed}", said
    torch.save(vision_reference.facebook(place / "mae-False" / "model.safetensors"), place / "file.pth")
    made["file"] = place / "file.pth", made["mae-False"][1]
    return made


CONFIG = sf.MAEConfig(
    image=35, patch=7, dim=20, depth=3, heads=2, hidden=61,
    decoder_dim=28, decoder_depth=2, decoder_heads=7, decoder_hidden=31, eps=1e-5,
)  # fmt: skip


@torch.no_grad()
def said(kind, source):
    """All that our model of this file says, under the names of the reference."""
    if kind == "file" or kind.startswith("mae"):
        model = sf.MAE.from_pretrained(source, config=CONFIG if kind == "file" else None, dtype=torch.float64)
        images = pictures(size=SQUARE)
        return model(images, noise=noise())._asdict() | {"encoded": model.encode(images)}
    model = sf.load(source, dtype=torch.float64)
    found = {"states": model.encode(pictures())} if kind != "avg" else {}
    if model.pooler is not None:
        found["pooled"] = model.pooled(pictures())
    if model.head is not None:
        found["output"] = model(pictures())
    if kind in ("token", "avg"):
        config = dataclasses.replace(model.config, image=(21, 49))
        found["small"] = sf.load(source, config=config, dtype=torch.float64)(pictures(size=(21, 49)))
    return found


def prepared(published):
    """How far our pictures for facebook's file are from torchvision's."""
    source, _ = published["file"]
    ours = sf.load_preprocess(source, model=sf.load(source, config=CONFIG))(PICTURE)
    bicubic = transforms.InterpolationMode.BICUBIC
    cropped = transforms.CenterCrop(35)(transforms.Resize(40, bicubic)(PICTURE))
    return (ours - transforms.Normalize(*IMAGENET)(transforms.ToTensor()(cropped))).abs().max()


def error(published) -> float:
    """How far our answers are from the references', in every layout, at another size, and of a picture's pixels."""
    errors = [prepared(published)]
    for kind, (source, expected) in published.items():
        found = said(kind, source)
        assert found.keys() == expected.keys()
        errors += [(found[name].double() - expected[name].double()).abs().max() for name in found]
    return float(torch.stack([each.double() for each in errors]).max())


def test_the_unchanged_models_pass(published):
    assert error(published) < TOLERANCE


def edited(owner, name, old, new):
    """A function of a page with one of its expressions written differently."""

    def plant(patch):
        source = textwrap.dedent(inspect.getsource(getattr(owner, name)))
        assert source.count(old) == 1, f"{name} no longer says {old}"
        module = owner if inspect.ismodule(owner) else sys.modules[owner.__module__]
        found = {}
        exec(source.replace(old, new), vars(module), found)
        patch.setattr(owner, name, found[name])

    return plant


def both(*plants):
    def plant(patch):
        for each in plants:
            each(patch)

    return plant


def attending(function):
    """Another formula in every attention."""

    def plant(patch):
        made = bricks.Attention.__init__

        def init(self, *arguments, **settings):
            made(self, *arguments, **settings)
            self.attend = function

        patch.setattr(bricks.Attention, "__init__", init)

    return plant


def patches_read(change):
    """The embedding reads each patch, or all of them, in another order."""

    def plant(patch):
        for module in (bricks, grid):
            real = module.rearrange
            other = lambda x, how, real=real, **sizes: real(x, how.replace(*change), **sizes)  # noqa: E731
            patch.setattr(module, "rearrange", other)

    return plant


def cut_in_order(change):
    """Of an autoencoder, its input ("c p q") or its target ("p q c")."""

    def plant(patch):
        real = mae.cut
        cut = lambda images, config, order="c p q": real(images, config, change.get(order, order))  # noqa: E731
        patch.setattr(mae, "cut", cut)

    return plant


def one_head_count(patch):
    made = mae.Decoder.__init__
    patch.setattr(
        mae.Decoder, "__init__",
        lambda self, config, *rest: made(self, dataclasses.replace(config, decoder_heads=config.heads), *rest),
    )  # fmt: skip


def prepared_with(**changes):
    def plant(patch):
        sized = Preprocess.sized
        patch.setattr(Preprocess, "sized", lambda self, image: dataclasses.replace(sized(self, image), **changes))

    return plant


def swapped_keys_and_values(patch):
    loaded = tables.load

    def load(*arguments):
        swap = lambda x: torch.cat([*reversed(x.chunk(2))])  # noqa: E731
        return {name: swap(x) if ".kv." in name else x for name, x in loaded(*arguments).items()}

    patch.setattr(tables, "load", load)


GELUS = (replacing(vit, "gelu", bricks.gelu_tanh), replacing(mae, "gelu", bricks.gelu_tanh))
MEAN, STD = IMAGENET
MUTANTS = {
    "no softmax": attending(lambda q, k, v, mask: q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5 @ v),
    "no scale": attending(lambda q, k, v, mask: bricks.attend(q * q.shape[-1] ** 0.5, k, v)),
    "causal": attending(lambda q, k, v, mask: bricks.attend(q, k, v, bricks.CAUSAL)),
    "heads inside out": heads_inside_out,
    "swapped keys and values": swapped_keys_and_values,
    "a lost bias": zeroed("attention.out.bias"),
    "lost biases of keys and values": zeroed("attention.kv.bias"),
    "tanh GELU": both(*GELUS),
    "tanh GELU in one of two": GELUS[1],
    "eps 1e-6": eps(1e-6),
    "eps 1e-12": eps(1e-12),
    "post-norm": edited(bricks.Block, "residual", "if self.pre_norm else", "if not self.pre_norm else"),
    "patches read (p q c)": patches_read(("(c p q)", "(p q c)")),
    "patches read (c q p)": patches_read(("(c p q)", "(c q p)")),
    "patches column by column": patches_read(("b (y x)", "b (x y)")),
    # ViT
    "no final norm": edited(vit.ViT, "encode", "self.norm(self.states(images))", "self.states(images)"),
    "no position of the class token": edited(
        vit.ViT, "states", "x + self.position", "torch.cat([x[:, :1], x[:, 1:] + self.position[:, 1:]], dim=1)"
    ),
    "no positions": edited(vit.ViT, "states", "x + self.position", "x"),
    "a class token in the mean": edited(vit.ViT, "pool", "x[:, 1:].mean(1)", "x.mean(1)"),
    "the norm before the mean": edited(vit.ViT, "pool", "self.norm(x[:, 1:].mean(1))", "self.norm(x)[:, 1:].mean(1)"),
    "no norm after the mean": edited(vit.ViT, "pool", "self.norm(x[:, 1:].mean(1))", "x[:, 1:].mean(1)"),
    "the mean for the class token": edited(vit.ViT, "pool", "x[:, 0]", "x.mean(1)"),
    "a pooler without tanh": edited(vit.ViT, "pooled", ".tanh()", ""),
    # another size
    "positions without antialiasing": edited(grid, "resize_positions", "antialias=True", "antialias=False"),
    "bilinear positions": edited(grid, "resize_positions", '"bicubic"', '"bilinear"'),
    "positions of swapped axes": edited(
        grid, "resize_positions", '"1 (y x) d -> 1 d y x", y=old[0]', '"1 (x y) d -> 1 d y x", y=old[0]'
    ),
    # MAE
    "no final norm of the encoder": edited(mae.MAE, "encode", "return self.norm(x)", "return x"),
    "no norm of the decoder": edited(mae.Decoder, "forward", "self.out(self.norm(x))", "self.out(x)"),
    "no positions in the decoder": edited(mae.Decoder, "forward", " + self.position", ""),
    "no position of the class token in the encoder": edited(
        mae.MAE, "encode", "self.class_token + self.position[:, :1]", "self.class_token"
    ),
    "positions of the first patches, not of those shown": edited(
        mae.MAE, "encode", "take(position, shown)", "position[:, : 25 if shown is None else shown.shape[1]]"
    ),
    "one head count for both towers": one_head_count,
    "its input read (p q c)": cut_in_order({"c p q": "p q c"}),
    "its target read (c p q)": cut_in_order({"p q c": "c p q"}),
    "loss over what is shown": edited(
        mae.MAE, "forward", "* mask).sum() / mask.sum()", "* ~mask).sum() / (~mask).sum()"
    ),
    "loss over everything": edited(mae.MAE, "forward", "* mask).sum() / mask.sum().clamp(min=1)", ").mean()"),
    "mask polarity": edited(
        mae.MAE, "forward", "torch.ones_like(noise, dtype=torch.bool).scatter(1, shown, False)",
        "torch.zeros_like(noise, dtype=torch.bool).scatter(1, shown, True)",
    ),
    "the lowest noise hidden": edited(mae.MAE, "forward", "argsort(dim=1)", "argsort(dim=1, descending=True)"),
    "a biased variance": edited(mae.MAE, "forward", "target.var(-1, keep", "target.var(-1, correction=0, keep"),
    "a deviation that may be 0": edited(mae.MAE, "forward", "+ 1e-6).sqrt()", ").sqrt()"),
    "targets always normalised": edited(mae.MAE, "forward", "if self.config.norm_pix_loss", "if True"),
    "targets never normalised": edited(mae.MAE, "forward", "if self.config.norm_pix_loss", "if False"),
    # what goes in
    "another mean": prepared_with(mean=(0.5, 0.5, 0.5)),
    "another deviation": prepared_with(std=(0.5, 0.5, 0.5)),
    "mean and deviation swapped": prepared_with(mean=STD, std=MEAN),
    "blue first": prepared_with(mean=MEAN[::-1], std=STD[::-1]),
    "no crop": prepared_with(size=(35, 35)),
    "bilinear pictures": prepared_with(interpolation="bilinear"),
}  # fmt: skip


@pytest.mark.unhooked  # planted functions need not have the shapes we promise
@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_bug_is_caught(published, monkeypatch, name):
    MUTANTS[name](monkeypatch)
    assert error(published) > 1000 * TOLERANCE
