"""`export` of models that read pictures: what transformers loads, what it cannot, a card that speaks of pictures."""

import json
import re

import numpy as np
import pytest
import torch
import transformers
import vision_reference
from huggingface_hub import ModelCard
from PIL import Image
from vision_reference import of_timm, save_for_hf

import scratchformers as sf
from scratchformers.cli import main

SIZES = ["image=16", "patch=4", "dim=20", "heads=5", "depth=2", "steps=6", "eval_every=3", "batch=4", "threads=1"]


def picture(size=(19, 23), seed=0):
    levels = np.random.RandomState(seed).randint(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(levels)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of each kind, as `train` leaves it."""
    whole = tmp_path_factory.mktemp("private folder")
    for name in ("cats", "dogs", "emus"):
        (whole / "animals" / name).mkdir(parents=True)
        for i in range(8):
            picture((20, 16), seed=i).save(whole / "animals" / name / f"{i}.png")
    decoder = ["decoder_dim=12", "decoder_heads=3", "decoder_depth=1"]
    more = {"vit": ["crop=0.6", "mixup=0.2"], "mae": [*decoder, "flip=false"]}
    for recipe, own in more.items():
        given = [f"--set={each}" for each in [*SIZES, *own]]
        data = ["--data", str(whole / "animals"), "--out", str(whole / recipe), "--device", "cpu"]
        assert main(["train", recipe, *data, *given]) == 0
    return whole


def exported(source, out, *more):
    assert main(["export", str(source), "--out", str(out), *more]) == 0
    return ModelCard.load(out / "README.md")


def loaded(kind, folder):
    theirs, told = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True)
    assert not [what for what in ("missing_keys", "unexpected_keys", "mismatched_keys") if told[what]]
    return theirs.eval()


def test_transformers_loads_a_run_whole_and_says_the_same(runs, tmp_path):
    exported(runs / "vit", tmp_path / "vit")
    theirs, ours = loaded("ViTForImageClassification", tmp_path / "vit"), sf.load(runs / "vit" / "model")
    assert torch.equal(theirs.vit.embeddings.position_embeddings, ours.position)
    assert theirs.config.id2label == {0: "cats", 1: "dogs", 2: "emus"}
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "vit", use_fast=False)
    square = picture((32, 32))
    given = processor(square, return_tensors="pt")["pixel_values"]
    assert torch.equal(given[0], sf.load_preprocess(runs / "vit" / "model")(square))
    with torch.no_grad():
        torch.testing.assert_close(theirs(given).logits, ours(given), rtol=0, atol=1e-5)


def test_transformers_loads_an_autoencoder_whole_and_paints_the_same(runs, tmp_path):
    exported(runs / "mae", tmp_path / "mae")
    theirs, ours = loaded("ViTMAEForPreTraining", tmp_path / "mae"), sf.load(tmp_path / "mae")
    images, noise = torch.randn(2, 3, 16, 16), torch.rand(2, 16)
    with torch.no_grad():
        a, b = theirs(images, noise=noise), ours(images, noise=noise)
    torch.testing.assert_close(a.logits, b.prediction, rtol=0, atol=1e-5)
    torch.testing.assert_close(a.loss, b.loss, rtol=0, atol=1e-5)
    assert type(transformers.AutoModelForPreTraining.from_pretrained(tmp_path / "mae")) is type(theirs)


@pytest.mark.parametrize(
    ("recipe", "tag", "loss", "said"),
    [
        ("vit", "image-classification", "nats a picture", "crops of at least 60% of them, flips, Mixup (0.2)."),
        (
            "mae",
            "image-feature-extraction",
            "(mean squared error of what was hidden)",
            "were never changed.",
        ),
    ],
)
def test_the_card_says_what_the_run_was(runs, tmp_path, recipe, tag, loss, said):
    card = exported(runs / recipe, tmp_path / "out", "--license", "mit", "--name", "me/animals")
    facts = json.loads((runs / recipe / "config.json").read_text(encoding="utf-8"))
    log = [json.loads(line) for line in (runs / recipe / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    best = [record for record in log if record.get("best")][-1]
    assert (card.data.pipeline_tag, card.data.library_name, card.data.license) == (tag, "transformers", "mit")
    results = {each.metric_type: each for each in card.data.eval_results}
    figures = {"loss", "accuracy"} if recipe == "vit" else {"loss"}
    assert results.keys() == figures, "no perplexity"
    assert results["loss"].metric_value == pytest.approx(best["valid_loss"], abs=1e-6)
    assert results["loss"].dataset_type == "image"
    for each in (
        f"{facts['parameters']:,} parameters", "| image | 16 |", "| patch | 4 |", "`animals`", facts["data"]["sha256"],
        f"{facts['data']['pictures']} pictures", "6 of 6 steps", f"{best['valid_loss']:.4f} {loss}", "24 pictures seen",
        "Read at 16 x 16 pixels", said, "| hidden | 80 |", "the layout that Hugging Face's transformers reads",
        "AutoImageProcessor", "loss.png", f"each seen {24 / facts['data']['pictures']:.1f} times",
    ):  # fmt: skip
        assert each in card.text, each
    assert ("one of its 3 classes, whatever it shows" in card.text) == (recipe == "vit")
    assert not re.search(r"token|text|nats a label|perplexity", card.text.replace("class_token", ""), re.IGNORECASE)
    assert "private folder" not in card.content, "where it was trained is nobody's business"


def cards_python(card):
    return re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)


@pytest.mark.parametrize(("recipe", "blocks"), [("vit", 2), ("mae", 2)])
def test_what_the_card_proposes_runs(runs, tmp_path, monkeypatch, capsys, recipe, blocks):
    monkeypatch.chdir(tmp_path)
    card = exported(runs / recipe, tmp_path / "out")
    picture().save(tmp_path / "photo.jpg")
    found = cards_python(card)
    assert len(found) == blocks
    for code in found:
        exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "painted.png").is_file() == (recipe == "mae")
    assert ("Label(label=" in capsys.readouterr().out) == (recipe == "vit")


SMALL = {"dim": 20, "depth": 1, "heads": 5}
DECODING = {"decoder_dim": 12, "decoder_depth": 1, "decoder_heads": 3}
OWN = {
    "mean": lambda: sf.ViT(sf.ViTConfig(8, 4, **SMALL, classes=3, pool="mean")),
    "patches": lambda: sf.ViT(sf.ViTConfig(8, 4, **SMALL, classes=3, pool="patches")),
    "no class token": lambda: sf.MAE(sf.MAEConfig(8, 4, **SMALL, **DECODING, class_token=False)),
    "not square": lambda: sf.MAE(sf.MAEConfig((8, 12), 4, **SMALL, **DECODING)),
}


@pytest.mark.parametrize("name", OWN)
def test_the_card_of_a_model_that_transformers_has_not_says_so(tmp_path, name):
    torch.manual_seed(0)
    OWN[name]().save_pretrained(tmp_path / "model")
    card = exported(tmp_path / "model", tmp_path / "out")
    assert card.data.library_name == "scratchformers"
    assert "a layout of ScratchFormers' own: Hugging Face's transformers has no such model" in card.text
    assert "from transformers" not in card.text
    (code,) = cards_python(card)
    assert "sf." in code
    for key, value in sf.load(tmp_path / "model").state_dict().items():
        assert torch.equal(sf.load(tmp_path / "out").state_dict()[key], value)


@pytest.mark.parametrize(("head", "kind"), [(17, "ViTForImageClassification"), (0, "ViTModel")])
def test_timms_file_becomes_one_that_transformers_reads(tmp_path, head, kind):
    """With timm's preprocessing, in transformers' words."""
    arguments = {**vision_reference.TIMM_SIZES, "num_classes": head, "img_size": 35}
    theirs = of_timm(**arguments)
    save_for_hf(theirs.float(), tmp_path / "timm", model_args=arguments, safe_serialization=True)
    card = exported(tmp_path / "timm", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))["model_type"] == "vit"
    assert (card.data.library_name, card.data.tags) == ("transformers", ["scratchformers", "vit"])
    images = vision_reference.pictures(size=(35, 35)).float()
    told = {} if head else {"add_pooling_layer": False}
    model = getattr(transformers, kind).from_pretrained(tmp_path / "out", **told).eval()
    with torch.no_grad():
        a = theirs(images) if head else theirs.forward_features(images)
        torch.testing.assert_close(model(images)[0], a, rtol=0, atol=1e-3)
    assert [*transformers.AutoImageProcessor.from_pretrained(tmp_path / "out").image_mean] == [0.5, 0.5, 0.5]


def test_timms_file_that_transformers_has_no_model_for_stays_timms(tmp_path):
    theirs = of_timm(global_pool="avg").float()
    arguments = {**vision_reference.TIMM_SIZES, "global_pool": "avg"}
    save_for_hf(theirs, tmp_path / "timm", model_args=arguments, safe_serialization=True)
    card = exported(tmp_path / "timm", tmp_path / "out")
    assert "in the layout that timm reads" in card.text
    assert card.data.library_name == "timm"
    assert "from transformers" not in card.text
    again = vision_reference.timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    images = vision_reference.pictures().float()
    with torch.no_grad():
        assert torch.equal(again(images), theirs.eval()(images))


def test_facebooks_file_becomes_one_that_transformers_reads(tmp_path, monkeypatch):
    theirs = vision_reference.mae()
    theirs.float().save_pretrained(tmp_path / "theirs")
    path = tmp_path / "mae_visualize_vit_base.pth"
    vision_reference.write_facebook(path, vision_reference.facebook(tmp_path / "theirs" / "model.safetensors"))
    (layout,) = [each for each in sf.MAE.layouts if each.model_type == "mae"]
    monkeypatch.setitem(layout.names, path.stem, sf.load(tmp_path / "theirs").config)
    card = exported(path, tmp_path / "out")
    assert "How it was trained is not known" in card.text
    model = loaded("ViTMAEForPreTraining", tmp_path / "out")
    for name, value in theirs.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert (tmp_path / "out" / "preprocessor_config.json").is_file()
