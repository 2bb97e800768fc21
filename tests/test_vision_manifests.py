"""What stands in the published ViTs and MAEs, by name, shape and dtype, and how it loads. No weights are at hand: each
manifest says what was found where, and what was derived.
"""

import hashlib
import json
import re
from dataclasses import replace

import manifests
import pytest
import torch
import vision_reference
from safetensors.torch import load_file

import scratchformers as sf
from scratchformers.checkpoints import tables, vision
from scratchformers.checkpoints.pretrained import _Uninitialised, spelt_out
from scratchformers.images import IMAGENET, Preprocess
from scratchformers.models import mae, vit


class Manifest(manifests.Manifest):
    """Of files of two stacks of layers, some of which have no config.json."""

    @property
    def config(self):
        return self.content.get("config", {})

    @property
    def depth(self):
        return self.content.get("depth") or self.config["num_hidden_layers"]

    def shapes(self, depth=None):
        found, decoder = {}, self.content.get("decoder_depth") or self.config.get("decoder_num_hidden_layers")
        for key, value in self.content["tensors"].items():
            dtype, shape = value.split()
            layers = depth or (decoder if key.startswith("decoder") else self.depth)
            for i in range(layers) if "*" in key else [0]:
                found[key.replace("*", str(i))] = dtype, [int(size) for size in shape.split("x")]
        return found


MANIFESTS = {name: Manifest(each.content) for name, each in manifests.read("vision").items()}
# What each holds: the class that `load` gives, its config here, and which parts it has.
HELD = {
    "vit-base-patch16-224": (sf.ViT, replace(sf.ViT.preset("base-16"), eps=1e-12), {"head"}),
    "vit-base-patch16-224-in21k": (sf.ViT, replace(sf.ViT.preset("base-16"), eps=1e-12, classes=None), {"pooler"}),
    "vit_base_patch16_224.augreg2_in21k_ft_in1k": (sf.ViT, sf.ViT.preset("base-16"), {"head"}),
    "deit_base_patch16_224-b5f2ef4d": (sf.ViT, sf.ViT.preset("base-16"), {"head"}),
    "mae_finetuned_vit_base": (sf.ViT, replace(sf.ViT.preset("base-16"), pool="patches"), {"head"}),
    "mae_pretrain_vit_base": (sf.MAE, replace(sf.MAE.preset("base"), norm_pix_loss=True), set()),
    "mae_visualize_vit_large": (sf.MAE, sf.MAE.preset("large"), {"decoder"}),
    "vit-mae-base": (sf.MAE, replace(sf.MAE.preset("base"), eps=1e-12), {"decoder"}),
}
PARTS = ("head", "pooler", "decoder")


def layout_of(name, kind, tensors):
    """As `from_pretrained` finds it: by the file's name, else by config.json, else by its tensors."""
    named = [each for each in kind.layouts if name in each.names]
    found = named or [each for each in kind.layouts if each.matches(MANIFESTS[name].config or None, tensors)]
    (layout,) = [each for each in found if not each.asked or named]
    return layout


def model_of(name, tensors, kind=None, config=None):
    """A model without memory, with the parts that these tensors call for; its layout."""
    kind = kind or HELD[name][0]
    layout = layout_of(name, kind, tensors)
    published = MANIFESTS[name].config
    config = config or (layout.read(published) if published else layout.names[name])
    told = {field: value for field, value in layout.infer(layout.bare(tensors)).items() if value is None}
    with torch.device("meta"), _Uninitialised():
        model = kind(replace(config, **told))
        layout.build(model, published, layout.bare(tensors))
    return model, layout


def shapes_of(model):
    return {key: value.shape for key, value in model.state_dict().items()}


def test_there_is_one_per_published_family():
    assert MANIFESTS.keys() == HELD.keys()


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_agrees_with_what_is_known_of_the_file(name):
    manifest = MANIFESTS[name]
    assert manifest.content["found"]
    assert manifest.content["derived"]
    numbers, known = manifest.data() // 4, manifest.content["files"]
    assert all(each.get("numbers", numbers) == numbers for each in known.values())
    weights = known.get("model.safetensors", {})
    if "header" in weights:
        assert 8 + weights["header"] + manifest.data() == weights["bytes"]
    if "metadata" in manifest.content:  # known, so that the header can be written here
        assert weights["header"] in manifest.headers()
    if "config.json" in known and "left_out" not in manifest.content:
        manifests.check_config(manifest.config, known["config.json"])
    if "preprocessor" in manifest.content:
        written = (json.dumps(manifest.content["preprocessor"], indent=2, sort_keys=True) + "\n").encode()
        assert len(written) == known["preprocessor_config.json"]["bytes"]
        blob = hashlib.sha1(b"blob %d\0" % len(written) + written).hexdigest()
        assert blob == known["preprocessor_config.json"]["blob"]


def test_a_header_of_other_names_would_be_of_another_length():
    """The published decoder's layers are not called as transformers 5 calls them."""
    content = MANIFESTS["vit-mae-base"].content
    other = {k.replace("decoder_layers", "decoder_encoder.layer"): v for k, v in content["tensors"].items()}
    header = content["files"]["model.safetensors"]["header"]
    assert header in MANIFESTS["vit-mae-base"].headers()
    assert header not in Manifest({**content, "tensors": other}).headers()


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_published_config_is_the_preset(name):
    tensors = MANIFESTS[name].tensors()
    model, _ = model_of(name, tensors)
    labels = {} if model.config.__class__ is sf.MAEConfig else {"classes": HELD[name][1].classes}
    assert spelt_out(replace(model.config, **labels)) == spelt_out(HELD[name][1])
    told = layout_of(name, HELD[name][0], tensors).infer(tables_bare(name, tensors))
    assert {field: getattr(HELD[name][1], field) for field in told if "hidden" not in field} == {
        field: value for field, value in told.items() if "hidden" not in field
    }


def tables_bare(name, tensors):
    return layout_of(name, HELD[name][0], tensors).bare(tensors)


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_loads_with_nothing_missing_and_nothing_unknown(name):
    tensors = MANIFESTS[name].tensors()
    config = HELD[name][1]  # config.json's 1000 names are left out
    model, layout = model_of(name, tensors, config=config)
    loaded = tables.load(layout, tensors, shapes_of(model), config)
    assert {key: value.shape for key, value in loaded.items()} == shapes_of(model)
    assert {part for part in PARTS if getattr(model, part, None) is not None} == HELD[name][2]
    saved = tables.save(layout, loaded, config)
    assert {k: list(v.shape) for k, v in saved.items()} == {k: list(v.shape) for k, v in tensors.items()}


@pytest.mark.parametrize("name", [name for name, (kind, *_) in HELD.items() if kind is sf.MAE])
def test_its_encoder_is_a_vit(name):
    tensors = MANIFESTS[name].tensors()
    layout = next(
        each for each in sf.ViT.layouts
        if name in each.names or each.model_type == MANIFESTS[name].config.get("model_type")
    )  # fmt: skip
    config = replace(
        layout.read(MANIFESTS[name].config) if MANIFESTS[name].config else layout.names[name], classes=None
    )
    with torch.device("meta"), _Uninitialised():
        model = sf.ViT(config)
    loaded = tables.load(layout, tensors, shapes_of(model), config)
    assert {key: value.shape for key, value in loaded.items()} == shapes_of(model)


def fails(name, tensors, said, key):
    model, layout = model_of(name, tensors, config=small(name))
    with pytest.raises(ValueError, match=said) as caught:
        tables.load(layout, tensors, shapes_of(model), small(name))
    assert key in str(caught.value)


def small(name):
    config = replace(HELD[name][1], depth=1)
    return replace(config, decoder_depth=1) if HELD[name][0] is sf.MAE else config


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_key_that_is_lost_added_or_misshapen_is_caught(name):
    """In one layer; the others are as this."""
    manifest = MANIFESTS[name]
    tensors = manifest.tensors(depth=1, device="cpu")
    model, layout = model_of(name, tensors, config=small(name))
    tables.load(layout, tensors, shapes_of(model), small(name))
    signs = {"pooler.dense.weight", "head.weight", "classifier.weight", layout.signature}
    signs |= {"decoder.decoder_embed.weight", "decoder_embed.weight"}
    for key in tensors:
        bare = key.removeprefix(layout.prefix)
        rest = {other: value for other, value in tensors.items() if other != key}
        if bare not in signs and bare != "mask_token":  # by which a part, or the layout, is known
            fails(name, rest, "1 missing: ", bare)
        fails(name, {**tensors, key + "x": tensors[key]}, "1 unknown: ", bare + "x")
        if tensors[key].ndim == 1:  # the others tell sizes, or are sized by them
            fails(name, {**tensors, key: tensors[key][:-1]}, "1 wrong: ", bare)


def test_the_references_files_are_named_as_the_published(tmp_path):
    """So that what test_vit.py and test_mae.py compare is what is published, layer for layer."""

    def named(tensors):
        return {re.sub(r"\.\d+\.", ".*.", key) for key in tensors}

    for kind, name in (("ForImageClassification", "vit-base-patch16-224"), ("Model", "vit-base-patch16-224-in21k")):
        vision_reference.vit(kind).save_pretrained(tmp_path / kind)
        saved = named(load_file(tmp_path / kind / "model.safetensors"))
        assert saved == MANIFESTS[name].content["tensors"].keys()
    vision_reference.mae().save_pretrained(tmp_path / "mae")
    saved = {key.replace("decoder_encoder.layer", "decoder_layers") for key in named(
        load_file(tmp_path / "mae" / "model.safetensors"))}  # fmt: skip
    assert saved == MANIFESTS["vit-mae-base"].content["tensors"].keys()
    whole = vision_reference.facebook(tmp_path / "mae" / "model.safetensors")
    assert named(whole) == MANIFESTS["mae_visualize_vit_large"].content["tensors"].keys()
    encoder = vision_reference.encoder_of(whole)
    assert named(encoder) == MANIFESTS["mae_pretrain_vit_base"].content["tensors"].keys()
    for pool, names in (
        ("token", ("vit_base_patch16_224.augreg2_in21k_ft_in1k", "deit_base_patch16_224-b5f2ef4d")),
        ("avg", ("mae_finetuned_vit_base",)),
    ):
        for name in names:
            theirs = vision_reference.of_timm(global_pool=pool).state_dict()
            assert named(theirs) == MANIFESTS[name].content["tensors"].keys()


def test_published_names_stand_in_the_pages():
    assert {"mae_pretrain_vit_base", "mae_visualize_vit_large"} <= mae.FILES.keys()
    assert "mae_finetuned_vit_base" in vit.FINETUNED
    assert "deit_base_patch16_224-b5f2ef4d" in vit.DEIT
    assert MANIFESTS["vit_base_patch16_224.augreg2_in21k_ft_in1k"].config["architecture"] in vit.TIMM
    assert "mae_visualize_vit_base_ganloss" not in vision.MAE_FILES, "which nobody has published"


def test_how_published_pictures_are_prepared():
    """As their files say, and as facebook's evaluation does."""
    said = MANIFESTS["vit-base-patch16-224-in21k"].content["preprocessor"]
    assert Preprocess.read(said) == Preprocess((224, 224), interpolation="bilinear")
    cfg = MANIFESTS["vit_base_patch16_224.augreg2_in21k_ft_in1k"].config["pretrained_cfg"]
    assert Preprocess.read_timm(cfg) == Preprocess(248, (224, 224), "bicubic")
    for name in ("deit_base_patch16_224-b5f2ef4d", "mae_finetuned_vit_base", "mae_pretrain_vit_base"):
        kind, config, _ = HELD[name]
        layout = layout_of(name, kind, MANIFESTS[name].tensors())
        assert layout.preprocess({}, config, name) == Preprocess(
            256, (224, 224), "bicubic", mean=IMAGENET[0], std=IMAGENET[1]
        )
