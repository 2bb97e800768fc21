"""ViT against transformers and timm on scrambled weights in float64, in every published layout, and what its files say,
of what size they may be, how they come and go."""

import argparse
import copy
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import vision_reference  # before timm
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from vision_reference import GRID, KINDS, LABELS, answers, of_timm, pictures, resample_abs_pos_embed, save_for_hf, timm

import scratchformers as sf
from scratchformers.checkpoints import tables, vision
from scratchformers.checkpoints.pretrained import _Uninitialised
from scratchformers.images import IMAGENET, Preprocess
from scratchformers.models import vit

DTYPE = torch.float64
TINY = sf.ViTConfig(image=(12, 20), patch=4, channels=3, dim=20, depth=2, heads=5, classes=3)
BARE = sf.ViTConfig(image=(35, 77), patch=7, dim=65, depth=2, heads=5, classes=LABELS)


def close(a, b, atol=1e-10):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


@torch.no_grad()
def ours(model, images):
    """All that our model says, under the names of `vision_reference.answers`."""
    found = {} if model.config.pool == "patches" else {"states": model.encode(images)}
    if model.pooler is not None:
        found["pooled"] = model.pooled(images)
    if model.head is not None:
        found["output"] = model(images)
    return found


def compare(mine, theirs, atol=1e-10):
    assert mine.keys() == theirs.keys()
    for name in mine:
        close(mine[name], theirs[name], atol=atol)


def transformers_folder(kind):
    def make(folder, channels):
        theirs = vision_reference.vit(kind, num_channels=channels)
        theirs.save_pretrained(folder)
        return theirs, folder, None

    return make


def timm_folder(name="vit_base_patch16_224", **changes):
    def make(folder, channels):
        theirs = of_timm(name, in_chans=channels, **changes)
        save_for_hf(theirs, folder)
        return theirs, folder, None

    return make


def timm_file(config, **changes):
    """As DeiT and MAE are published: nothing but weights, under `model`."""

    def make(folder, channels):
        theirs = of_timm(in_chans=channels, **changes)
        torch.save({"model": theirs.state_dict()}, folder / "weights.pth")
        return theirs, folder / "weights.pth", dataclasses.replace(config, channels=channels)

    return make


# How a ViT is published: what writes one of theirs to a folder, and gives it, what to load, and the config= it needs.
FORMS = {
    "transformers, classifier": transformers_folder("ForImageClassification"),
    "transformers, body": transformers_folder("Model"),
    "timm": timm_folder(),
    "timm, mean of patches": timm_folder(global_pool="avg"),
    "timm, no head": timm_folder(num_classes=0),
    "timm, another width of the MLP": timm_folder(mlp_ratio=3),
    "DeiT's name": timm_folder("deit_small_patch16_224"),
    "a file": timm_file(BARE),
    "a file, mean of patches": timm_file(dataclasses.replace(BARE, pool="patches"), global_pool="avg"),
    "a file, no head": timm_file(dataclasses.replace(BARE, classes=None), num_classes=0),
}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Each form in colour and grey, made once."""
    made = {}

    def find(form, channels=3):
        if (form, channels) not in made:
            made[form, channels] = FORMS[form](tmp_path_factory.mktemp("published"), channels)
        return made[form, channels]

    return find


def load(found, **settings):
    _, source, config = found
    return sf.ViT.from_pretrained(source, config=config, **{"dtype": DTYPE, **settings})


@pytest.fixture(params=FORMS)
def form(request):
    return request.param


@pytest.fixture
def folder(published, tmp_path):
    """A copy of transformers' classifier that a test may spoil."""
    return shutil.copytree(published("transformers, classifier")[1], tmp_path / "checkpoint")


# --- parity


@pytest.mark.parametrize("channels", [3, 1])
def test_answers_are_the_references_in_float64(published, form, channels):
    found = published(form, channels)
    images = pictures(channels=channels)
    mine = ours(load(found), images)
    assert mine or form == "timm, mean of patches"
    compare(mine, answers(found[0], images))


def test_answers_are_the_references_in_float32(published, form):
    """5e-5 of logits that spread over tens: float32 itself, in another order of additions."""
    found, images = published(form), pictures().float()
    model = load(found, dtype=torch.float32)
    assert model.position.dtype == torch.float32
    compare(ours(model, images), answers(copy.deepcopy(found[0]).float(), images), atol=5e-5)


def frozen():
    return dict(np.load(Path(__file__).parent / "frozen" / "vision.npz"))


@pytest.mark.parametrize("kind", ["transformers, classifier", "transformers, body", "timm", "timm, mean of patches"])
def test_answers_are_the_frozen_ones(published, kind):
    """What the libraries answered when the file was written: it holds when they have moved on."""
    found = frozen()
    names = [name for name in found if name.startswith(f"{kind}/")]
    theirs = {name.partition("/")[2]: torch.from_numpy(found[name]) for name in names}
    compare(ours(load(published(kind)), torch.from_numpy(found["images"])), theirs)


def test_the_frozen_outputs_are_what_the_references_give_today():
    from freeze.vision import outputs

    then, today = frozen(), outputs()
    assert then.keys() == today.keys()
    for name in then.keys() - {"transformers", "timm"}:
        close(torch.from_numpy(today[name]), torch.from_numpy(then[name]))


def test_a_batch_is_its_rows(published, form):
    model, images = load(published(form)), pictures()
    whole = ours(model, images)
    rows = [ours(model, images[i : i + 1]) for i in range(len(images))]
    for name, value in whole.items():
        close(value, torch.cat([row[name] for row in rows]), atol=1e-12)


@pytest.mark.unhooked
def test_compiled_is_eager(published):
    """One graph without a break. The backend runs the traced graph itself, so that no C compiler is needed."""
    model, images = load(published("timm, mean of patches")), pictures()
    model.blocks = model.blocks[:1]
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    close(compiled(images), model(images), atol=1e-12)
    torch._dynamo.reset()


def test_recorded_is_fused_and_shows_the_references_attention(published):
    theirs, *_ = found = published("transformers, classifier")
    model, images = load(found), pictures()
    plain = ours(model, images)
    with sf.record(model) as seen:
        recorded = ours(model, images)
    compare(recorded, plain, atol=1e-11)
    said = theirs.vit(images, output_hidden_states=True)
    theirs.set_attn_implementation("eager")
    attentions = theirs.vit(images, output_attentions=True).attentions
    theirs.set_attn_implementation("sdpa")
    assert list(seen.attention) == ["blocks.0.attention", "blocks.1.attention"]
    for i in range(2):
        close(seen.attention[i], attentions[i].detach(), atol=1e-6)  # its softmax is of float32 whatever it is given
        close(seen.hidden[f"blocks.{i}"], said.hidden_states[i + 1].detach())
    close(seen.hidden["norm"], said.last_hidden_state.detach())


def test_the_order_of_patches_matters(published):
    """Whatever is moved: rows of patches, patches within a row, pixels within a patch, channels."""
    model, images = load(published("transformers, classifier")), pictures()
    before = model(images)
    for moved in (
        images.roll(7, -2),
        images.roll(7, -1),
        images.flip(-1),
        images.flip(1),
        images.unflatten(-1, (11, 7)).flip(-1).flatten(-2),
    ):
        assert ((model(moved) - before).abs().max(-1).values > 1e-3).all()


# --- the forms of a file


def reconfigure(folder, **changes):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = {name: value for name, value in {**config, **changes}.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return config


def test_a_file_alone_needs_what_its_shapes_leave_open(published, tmp_path):
    """Heads and eps change no shape; without them any answer would be a guess."""
    theirs, source, config = published("a file")
    torch.save(of_timm(img_size=35).state_dict(), tmp_path / "square.pth")
    for call in (sf.load, sf.ViT.from_pretrained):
        with pytest.raises(ValueError, match="its tensors do not tell all of heads, eps: pass config="):
            call(tmp_path / "square.pth")
        with pytest.raises(ValueError, match="do not tell all of image, heads, eps: pass config="):
            call(source)
    assert isinstance(sf.load(source, config=config), sf.ViT)
    for changes in ({"heads": 13}, {"eps": 1e-5}):
        other = sf.load(source, config=dataclasses.replace(config, **changes), dtype=DTYPE)
        assert (other(pictures()) - theirs(pictures()).detach()).abs().max() > 1e-7, "which is why they are asked for"


def test_a_training_saved_with_its_arguments_loads(published, tmp_path):
    """As facebook's recipes save: model, optimizer, epoch, and the Namespace of argparse, which is no tensor."""
    theirs, _, config = published("a file")
    vision_reference.write_facebook(tmp_path / "checkpoint-99.pth", theirs.state_dict())
    model = sf.load(tmp_path / "checkpoint-99.pth", config=config, dtype=DTYPE)
    compare(ours(model, pictures()), answers(theirs, pictures()))


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "owned",)

    torch.save({"model": {}, "args": argparse.Namespace(x=Evil())}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="was refused: it holds more than plain tensors, or is no weights file"):
        sf.load(tmp_path / "evil.pth", config=BARE)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("name", [*vit.DEIT, *vit.FINETUNED])
def test_known_files_are_known_by_their_names(name, tmp_path, monkeypatch):
    """Only the sizes are made small here: what heads, eps and pooling the names stand for is compared with timm's."""
    architecture = "vit_{}_patch{}_224".format(name.rpartition("_")[2], 14 if "huge" in name else 16)
    architecture = name.partition("-")[0] if name in vit.DEIT else architecture
    with torch.device("meta"), _Uninitialised():
        pool = "avg" if name in vit.FINETUNED else "token"
        whole = timm.create_model(architecture, global_pool=pool, num_classes=1000, weight_init="skip")
        known = {**vit.DEIT, **vit.FINETUNED}[name]
        model = sf.ViT(known)
    assert (known.heads, known.eps) == (whole.blocks[0].attn.num_heads, whole.blocks[0].norm1.eps)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in whole.parameters())
    small = dataclasses.replace(known, image=35, patch=7, dim=20, heads=5, depth=2, classes=LABELS)
    theirs = of_timm(img_size=35, embed_dim=20, num_heads=5, global_pool=pool)
    for layout in sf.ViT.layouts:
        if name in layout.names:
            monkeypatch.setitem(layout.names, name, small)
    torch.save({"model": theirs.state_dict()}, tmp_path / f"{name}.pth")
    model, images = sf.load(tmp_path / f"{name}.pth", dtype=DTYPE), pictures(size=(35, 35))
    assert model.config == small
    compare(ours(model, images), answers(theirs, images))


def test_timms_names_are_timms_models():
    """Every name exists there, and means the same model."""
    for name, config in vit.TIMM.items():
        assert timm.is_model(name), name
        with torch.device("meta"), _Uninitialised():
            theirs = timm.create_model(name, num_classes=1000, weight_init="skip")
            model = sf.ViT(config)
        shapes = {key: value.shape for key, value in theirs.state_dict().items()}
        layout = next(one for one in sf.ViT.layouts if one.model_type == "timm")
        saved = {key: value.shape for key, value in tables.save(layout, model.state_dict(), config).items()}
        assert saved == shapes, name
        assert config.heads == theirs.blocks[0].attn.num_heads
        assert config.eps == theirs.norm.eps == 1e-6
    assert {*vision.DEIT_FILES} == {
        Path(timm.get_pretrained_cfg(name).url).stem for name in vit.TIMM if name.startswith("deit")
    }


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"architecture": "vit_base_patch16_clip_224"},
            "says architecture 'vit_base_patch16_clip_224': expected one of",
        ),
        ({"global_pool": "map"}, "says global_pool 'map': expected one of token, avg"),
        ({"model_args": {"init_values": 1e-5}}, "says init_values 1e-05: only None is written here"),
        ({"model_args": {"act_layer": "gelu_tanh"}}, "says act_layer 'gelu_tanh': only nothing is written here"),
        ({"model_args": {"class_token": False}}, "says class_token False: only True is written here"),
        ({"model_args": {"num_heads": 7}}, "7 heads do not divide a width of 65"),
        ({"label_names": ["a", "b"]}, "names 2 classes, and the head has 17"),
    ],
)
def test_a_timm_model_that_is_another_is_refused(published, tmp_path, changes, said):
    folder = shutil.copytree(published("timm")[1], tmp_path / "other")
    said_now = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_args"]
    reconfigure(folder, **{**changes, "model_args": {**said_now, **changes.get("model_args", {})}})
    with pytest.raises(ValueError, match=said):
        sf.load(folder)


def test_an_old_config_of_timm_says_it_without_a_name(published, tmp_path):
    """As timm wrote it until 2022: what is now under pretrained_cfg stood beside the rest."""
    theirs, source, _ = published("timm")
    folder = shutil.copytree(source, tmp_path / "old")
    now = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    flat = {
        **now["pretrained_cfg"],
        **{k: now[k] for k in ("architecture", "num_classes", "model_args")},
        "crop_pct": 1.0,
    }
    (folder / "config.json").write_text(json.dumps({**flat, "input_size": [3, 35, 77]}), encoding="utf-8")
    compare(ours(sf.load(folder, dtype=DTYPE), pictures()), answers(theirs, pictures()))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_act": "gelu_new"}, "config.json says hidden_act 'gelu_new': only 'gelu' is written here"),
        ({"qkv_bias": False}, "config.json says qkv_bias False: only True is written here"),
        ({"hidden_size": ..., "patch_size": ...}, "config.json does not say patch_size, hidden_size"),
        ({"hidden_size": 70}, "dim is 70 in the file and 65 in its tensors. The file is damaged"),
        ({"num_attention_heads": 7}, "7 heads do not divide a width of 65"),
        ({"image_size": [35, 70]}, r"vit.embeddings.position_embeddings|embeddings.position_embeddings has shape"),
        ({"image_size": 36}, "image is 36: expected a multiple of the patch, 7"),
        ({"id2label": {"0": "a"}}, r"config.json names 1 classes|classifier.weight|classes is 1"),
        ({"model_type": "swin"}, "says model_type 'swin': expected one of"),
    ],
)
def test_a_config_that_is_another_is_refused(folder, changes, said):
    reconfigure(folder, **changes)
    with pytest.raises(ValueError, match=said):
        sf.load(folder)


def test_a_grid_of_as_many_patches_as_a_square_is_no_square(tmp_path):
    """4 x 9 patches are 36, as 6 x 6: the file's shapes do not tell which, its config does."""
    theirs = vision_reference.vit(image_size=[28, 63])
    theirs.save_pretrained(tmp_path / "published")
    images = pictures(size=(28, 63))
    compare(ours(sf.load(tmp_path / "published", dtype=DTYPE), images), answers(theirs, images))
    theirs = of_timm(img_size=(28, 63))
    torch.save(theirs.state_dict(), tmp_path / "file.pth")
    model = sf.load(tmp_path / "file.pth", config=dataclasses.replace(BARE, image=(28, 63)), dtype=DTYPE)
    compare(ours(model, images), answers(theirs, images))
    assert torch.equal(model.position, theirs.pos_embed), "taken as they are, not interpolated"


def loads_in_timm(folder):
    """With all it checks, and then in the file's own precision, which it does not keep."""
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    theirs.load_state_dict(load_file(folder / "model.safetensors"), assign=True)
    return theirs


# --- labels and heads


def test_two_classes_of_one_name_are_two_classes(folder, tmp_path):
    """Of ImageNet's thousand, as transformers names them, a bird and a machine are both a crane."""
    names = {str(i): "crane" if i in (4, 13) else f"class {i}" for i in range(LABELS)}
    reconfigure(folder, id2label=names, label2id={name: int(i) for i, name in names.items()})
    model = sf.load(folder, dtype=DTYPE)
    assert model.head.labels == tuple(names.values())
    model.save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text(encoding="utf-8"))
    assert config["id2label"] == names
    assert config["label2id"]["crane"] == 13, "as transformers says it"
    assert sf.load(tmp_path / "saved").head.labels == model.head.labels
    assert KINDS["ForImageClassification"].from_pretrained(tmp_path / "saved").config.id2label[4] == "crane"


@pytest.mark.parametrize("names", [[f"n{i:08}" for i in range(LABELS)], {str(i): f"kind {i}" for i in range(LABELS)}])
def test_timms_labels_are_read_and_kept(published, tmp_path, names):
    folder = shutil.copytree(published("timm")[1], tmp_path / "named")
    reconfigure(folder, label_names=names)
    model = sf.load(folder)
    assert model.head.labels == tuple(names.values() if isinstance(names, dict) else names)
    model.save_pretrained(tmp_path / "saved")
    assert sf.load(tmp_path / "saved").head.labels == model.head.labels


def with_head(model, head):
    model.head = head.to(DTYPE).eval()
    return model


@pytest.mark.parametrize("form", ["transformers, classifier", "transformers, body", "timm", "timm, mean of patches"])
def test_a_classifier_of_ones_own_loads_in_the_reference(published, tmp_path, form):
    found, images, names = published(form), pictures(), ["cat", "dog", "wolf"]
    model = with_head(load(found), sf.Classify(65, names, pool=(model := load(found)).pool))
    model.head.pool = model.pool
    model.pooler = None
    scores = model(images)
    model.save_pretrained(tmp_path)
    if form.startswith("timm"):
        theirs = loads_in_timm(tmp_path)
        assert theirs.num_classes == 3
        close(scores, theirs(images))
    else:
        theirs = KINDS["ForImageClassification"].from_pretrained(tmp_path, dtype=DTYPE).eval()
        assert theirs.config.id2label == dict(enumerate(names))
        close(scores, theirs(images).logits)
    again = sf.load(tmp_path, dtype=DTYPE)
    assert again.head.labels == tuple(names)
    close(again(images), scores, atol=1e-12)


@pytest.mark.parametrize("form", ["transformers, classifier", "timm"])
def test_a_head_that_the_layout_has_not_cannot_be_saved(published, tmp_path, form):
    model = load(published(form))
    for head in (sf.Classify(65, ["a", "b"], pool=sf.mean), sf.Classify(65, ["a", "b"]), nn.Identity()):
        model.head = head
        with pytest.raises(ValueError, match=r"layout has no such head: expected Classify with pool=model\.pool"):
            model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_what_a_model_lacks_says_so(published):
    body, images = load(published("timm, no head")), pictures()
    with pytest.raises(ValueError, match=r"has no head, so it scores nothing: call encode, or set model\.head"):
        body(images)
    with pytest.raises(ValueError, match="has no pooler: pool what encode gives"):
        body.pooled(images)


# --- the round trip


@pytest.mark.parametrize("form", [form for form in FORMS if "file" not in form])
def test_saved_loads_in_the_reference_bit_equal(published, tmp_path, form):
    theirs, source, _ = found = published(form)
    model = load(found)
    model.save_pretrained(tmp_path)
    if form.startswith("transformers"):
        again, said = type(theirs).from_pretrained(tmp_path, dtype=DTYPE, output_loading_info=True)
        assert not any(said.values()), said
        assert again.config.to_diff_dict() == theirs.config.to_diff_dict()
        assert load_file(tmp_path / "model.safetensors").keys() == load_file(source / "model.safetensors").keys()
    else:
        again = loads_in_timm(tmp_path)
        before, after = (json.loads((each / "config.json").read_text("utf-8")) for each in (source, tmp_path))
        assert {k: v for k, v in after.items() if k != "dtype"} == before
        again.load_state_dict(
            {k: v.double() for k, v in load_file(tmp_path / "model.safetensors").items()}, assign=True
        )
    assert again.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(again.state_dict()[name], value) for name, value in theirs.state_dict().items())
    back = sf.load(tmp_path, dtype=DTYPE)
    assert back.config == model.config
    assert back.state_dict().keys() == model.state_dict().keys()
    assert all(map(torch.equal, back.state_dict().values(), model.state_dict().values()))


@pytest.mark.parametrize("form", [form for form in FORMS if "file" in form])
def test_a_file_that_says_nothing_is_saved_as_transformers_or_as_our_own(published, tmp_path, form):
    """transformers' layout holds a class token's head; a mean over patches it does not."""
    theirs, *_ = found = published(form)
    model, images = load(found), pictures()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == ("scratchformers-vit" if "mean" in form else "vit")
    again = sf.load(tmp_path, dtype=DTYPE)
    assert again.config == dataclasses.replace(model.config, hidden=260)
    compare(ours(again, images), answers(theirs, images))
    if "mean" not in form:
        kind = KINDS["Model" if model.head is None else "ForImageClassification"]
        published = kind.from_pretrained(tmp_path, dtype=DTYPE).eval()
        said = published(images)
        close(
            said.logits if model.head else said.last_hidden_state,
            ours(model, images)["output" if model.head else "states"],
        )


@pytest.mark.parametrize("pool", ["class", "mean", "patches"])
@pytest.mark.parametrize("classes", [3, None])
def test_a_model_made_here_is_saved_and_loads_again(tmp_path, pool, classes):
    torch.manual_seed(0)
    model = sf.ViT(dataclasses.replace(TINY, pool=pool, classes=classes, dropout=0.25, hidden=31)).eval()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == ("vit" if pool == "class" else "scratchformers-vit")
    again = sf.load(tmp_path)
    assert again.config == model.config
    assert type(again.head) is type(model.head)
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    images = pictures(size=(12, 20)).float()
    close(again.encode(images), model.encode(images), atol=1e-5)
    if classes:
        close(again(images), model(images), atol=1e-5)
    if pool == "class":
        theirs = KINDS["Model" if classes is None else "ForImageClassification"].from_pretrained(tmp_path).eval()
        said = getattr(theirs, "vit", theirs)(images).last_hidden_state
        close(model.encode(images), said, atol=1e-5)


@pytest.mark.parametrize("form", ["transformers, classifier", "timm"])
def test_saving_over_the_mapped_source_is_safe(published, tmp_path, form):
    folder = shutil.copytree(published(form)[1], tmp_path / "own")
    model = sf.load(folder, dtype=DTYPE)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.save_pretrained(folder)
    assert all(torch.equal(sf.load(folder, dtype=DTYPE).state_dict()[name], value) for name, value in before.items())


# --- sizes of pictures


RESIZED = [(35, 35), (70, 154), (21, 49), (49, 14), (77, 35)]


@pytest.mark.parametrize("image", RESIZED)
@pytest.mark.parametrize("form", ["transformers, classifier", "timm", "timm, mean of patches"])
def test_positions_of_another_size_are_timms(published, form, image):
    theirs, source, _ = found = published(form)
    plain = load(found)
    model = sf.ViT.from_pretrained(source, config=dataclasses.replace(plain.config, image=image), dtype=DTYPE)
    rows, columns = image[0] // 7, image[1] // 7
    expected = resample_abs_pos_embed(plain.position.detach(), [rows, columns], [*GRID], num_prefix_tokens=1)
    assert torch.equal(model.position, expected)
    assert model.position.requires_grad
    assert model.config == dataclasses.replace(plain.config, image=image)
    images = pictures(size=image)
    if "timm" in form:
        other = copy.deepcopy(theirs)
        other.set_input_size(img_size=image)
        compare(ours(model, images), answers(other, images))
    else:
        assert model(images).shape == (3, LABELS)
    assert torch.equal(load(found).position, plain.position), "the file stays as it is"


@pytest.mark.parametrize("image", RESIZED)
def test_a_file_of_a_square_grid_is_resized_too(tmp_path, image):
    """Without a config.json its grid is taken for a square, unless config= has as many patches in another shape."""
    theirs = of_timm(img_size=49)
    torch.save(theirs.state_dict(), tmp_path / "file.pth")
    model = sf.load(tmp_path / "file.pth", config=dataclasses.replace(BARE, image=image), dtype=DTYPE)
    theirs.set_input_size(img_size=image)
    assert torch.equal(model.position, theirs.pos_embed)
    compare(ours(model, pictures(size=image)), answers(theirs, pictures(size=image)))


@pytest.mark.parametrize("form", ["transformers, classifier", "timm"])
def test_a_resized_model_is_saved_as_what_it_is(published, tmp_path, form):
    _, source, _ = found = published(form)
    config = dataclasses.replace(load(found).config, image=70)
    model, images = sf.load(source, config=config, dtype=DTYPE), pictures(size=(70, 70))
    model.save_pretrained(tmp_path)
    said = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert said["image_size"] == 70 if "transformers" in form else said["pretrained_cfg"]["input_size"] == [3, 70, 70]
    again = sf.load(tmp_path, dtype=DTYPE)
    assert again.config == model.config
    close(again(images), model(images), atol=1e-5)
    kind = KINDS["ForImageClassification"]
    theirs = loads_in_timm(tmp_path) if form == "timm" else kind.from_pretrained(tmp_path, dtype=DTYPE).eval()
    said = theirs(images)
    close(model(images), said if form == "timm" else said.logits)
    assert sf.load_preprocess(tmp_path).shape == (70, 70)


def test_how_pictures_are_prepared_follows_the_size(folder, tmp_path):
    """A preprocessor_config.json that still said 35 x 77 would make pictures that the saved model refuses."""
    said = Preprocess((35, 77), interpolation="lanczos", mean=IMAGENET[0], std=IMAGENET[1])
    (folder / "preprocessor_config.json").write_text(json.dumps(said.write()), encoding="utf-8")
    config = sf.load(folder).config
    sf.load(folder).save_pretrained(tmp_path / "same")
    assert (tmp_path / "same" / "preprocessor_config.json").read_bytes() == (
        folder / "preprocessor_config.json"
    ).read_bytes()
    model = sf.load(folder, config=dataclasses.replace(config, image=(70, 14)))
    model.save_pretrained(tmp_path / "other")
    prepare = sf.load_preprocess(tmp_path / "other")
    assert prepare == dataclasses.replace(said, size=(70, 14))
    sf.load(tmp_path / "other")(prepare(Image.new("RGB", (100, 90)))[None])


def test_any_other_difference_is_an_error(published):
    _, source, _ = found = published("transformers, classifier")
    config = load(found).config
    same = sf.load(source, config=config)
    assert same.config == config
    for changes, said in (
        ({"heads": 13}, "heads is 5 in the file and 13 in config="),
        ({"eps": 1e-6}, "eps is 1e-05 in the file and 1e-06 in config="),
        ({"classes": 3}, "classes is 17 in the file and 3 in config="),
        ({"pool": "patches"}, "pool is class in the file and patches in config="),
        ({"depth": 3, "image": (70, 70)}, "depth is 2 in the file and 3 in config="),
        ({"dropout": 0.5}, "dropout is 0.0 in the file and 0.5 in config="),
        ({"hidden": 62}, "hidden is 61 in the file and 62 in config="),
    ):
        with pytest.raises(ValueError, match=f"{said}. Leave config= out to take the file's"):
            sf.load(source, config=dataclasses.replace(config, **changes))
    with pytest.raises(ValueError, match="config= is a MAEConfig: ViT takes a ViTConfig"):
        sf.ViT.from_pretrained(source, config=sf.MAEConfig())


def test_another_patch_size_is_said(published):
    for form in ("a file", "timm"):
        _, source, config = found = published(form)
        config = config or load(found).config
        for patch, image in ((35, (35, 70)), (1, (35, 77))):
            with pytest.raises(ValueError, match=f"patch is 7 in the file and {patch} in config="):
                sf.load(source, config=dataclasses.replace(config, image=image, patch=patch))


@pytest.mark.unhooked  # the hook would refuse the shapes before we do
@pytest.mark.parametrize("form", ["transformers, classifier", "timm, mean of patches"])
def test_a_picture_of_another_size_is_refused(published, form):
    model = load(published(form))
    for shape in ((3, 3, 77, 35), (3, 1, 35, 77), (3, 35, 77), (3, 3, 42, 77), (3, 77, 35, 3)):
        said = rf"{[*shape]}: this model reads \(batch, 3, 35, 77\); prepare them by its preprocessing"
        for call in (model, model.encode):
            with pytest.raises(ValueError, match=said.replace("[", r"\[").replace("]", r"\]")):
                call(torch.zeros(shape, dtype=DTYPE))


@pytest.mark.unhooked  # the hook would refuse a wrong type before we do
def test_configs_are_checked_when_made():
    for changes, said in (
        ({"image": 225}, "image is 225: expected a multiple of the patch, 16"),
        ({"image": (224, 225)}, r"image is \(224, 225\): expected a multiple of the patch, 16"),
        ({"image": (224, 224, 3)}, "expected a number of pixels, or"),
        ({"image": 0}, "image is 0: expected a number of pixels, or"),
        ({"image": True}, "image is True: expected a number of pixels, or"),
        ({"image": "224"}, "image is '224': expected a number of pixels, or"),
        ({"patch": 0}, "patch is 0: expected a positive integer"),
        ({"patch": 16.0}, "patch is 16.0: expected a positive integer"),
        ({"channels": 0}, "channels is 0: expected a positive integer"),
        ({"classes": 0}, "classes is 0: expected a positive integer"),
        ({"pool": "cls"}, "pool is 'cls': expected class, mean or patches"),
        ({"eps": 0.0}, "eps is 0.0: expected 0 < eps < 1"),
        ({"dropout": 1.0}, "dropout is 1.0: expected 0 <= dropout < 1"),
    ):
        with pytest.raises(ValueError, match=said):
            sf.ViTConfig(**changes)
    assert sf.ViTConfig(image=[224, 224]) == sf.ViTConfig(image=(224, 224)) == sf.ViTConfig()
    assert sf.ViTConfig(image=[32, 64]).image == (32, 64)
    with pytest.raises(ValueError, match="7 heads do not divide a width of 20"):
        sf.ViT(dataclasses.replace(TINY, heads=7))


# --- how pictures are prepared


def known_file(tmp_path, monkeypatch, name, config, **changes):
    """A small model in a file of a published name."""
    theirs = of_timm(img_size=35, embed_dim=20, num_heads=5, **changes)
    for layout in sf.ViT.layouts:
        if name in layout.names:
            monkeypatch.setitem(layout.names, name, config)
    torch.save({"model": theirs.state_dict()}, tmp_path / f"{name}.pth")
    return tmp_path / f"{name}.pth"


SMALL = dataclasses.replace(BARE, image=35, dim=20)


@pytest.mark.parametrize("name", ["deit_base_patch16_224-b5f2ef4d", "mae_finetuned_vit_base"])
def test_facebooks_files_are_prepared_as_facebook_evaluates(tmp_path, monkeypatch, name):
    """Shorter side to 256 of 224, bicubic, the middle, ImageNet's mean and std: also when saved in another layout,
    whose own default would be half of everything."""
    pool = "patches" if "finetuned" in name else "class"
    source = known_file(tmp_path, monkeypatch, name, dataclasses.replace(SMALL, pool=pool),
                        global_pool="avg" if pool == "patches" else "token")  # fmt: skip
    expected = Preprocess(40, (35, 35), "bicubic", mean=IMAGENET[0], std=IMAGENET[1])
    assert sf.load_preprocess(source) == expected
    sf.load(source).save_pretrained(tmp_path / "saved")
    assert sf.load_preprocess(tmp_path / "saved") == expected
    assert Preprocess(256, (224, 224), mean=IMAGENET[0], std=IMAGENET[1]) == vision.FACEBOOK


def test_timms_config_says_how_pictures_are_prepared(published, tmp_path):
    folder = shutil.copytree(published("timm")[1], tmp_path / "timm")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    cfg = {**config["pretrained_cfg"], "input_size": [3, 35, 35], "crop_pct": 0.9, "mean": [0.5] * 3, "std": [0.5] * 3}
    theirs = of_timm(img_size=35)
    save_for_hf(theirs, folder)
    reconfigure(folder, pretrained_cfg=cfg)
    expected = Preprocess(38, (35, 35), "bicubic")
    assert sf.load_preprocess(folder) == expected
    picture = Image.fromarray(np.random.RandomState(0).randint(0, 256, (53, 71, 3), dtype=np.uint8))
    made = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=cfg), is_training=False)
    assert torch.equal(sf.load_preprocess(folder)(picture), made(picture))


def test_transformers_default_is_half_of_everything(folder, tmp_path):
    assert sf.load_preprocess(folder) == Preprocess((35, 77), interpolation="bilinear")
    said = Preprocess((35, 77), mean=IMAGENET[0], std=IMAGENET[1])
    (folder / "preprocessor_config.json").write_text(json.dumps(said.write()), encoding="utf-8")
    assert sf.load_preprocess(folder) == said, "the checkpoint's own file is asked first"
    sf.load(folder).save_pretrained(tmp_path / "saved")
    assert sf.load_preprocess(tmp_path / "saved") == said


def test_where_nothing_says_how_pictures_are_prepared_it_is_asked_for(published, tmp_path):
    _, source, config = published("a file")
    with pytest.raises(ValueError, match="does not say how pictures are prepared: put its preprocessor_config"):
        sf.load_preprocess(source, model=sf.load(source, config=config))
    grey = published("transformers, classifier", channels=1)[1]
    with pytest.raises(ValueError, match="does not say how pictures are prepared"):
        sf.load_preprocess(grey)


# --- training


def test_it_learns_one_batch_by_heart_and_every_parameter_gets_a_gradient():
    for pool in ("class", "mean", "patches"):
        torch.manual_seed(0)
        model = sf.ViT(dataclasses.replace(TINY, pool=pool))
        images, wanted = torch.randn(6, 3, 12, 20), torch.arange(6) % 3
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        first = F.cross_entropy(model(images), wanted)
        assert abs(first.detach() - torch.tensor(3.0).log()) < 0.2, "an untrained model knows nothing"
        first.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert (parameter.grad != 0).any(), name
        for _ in range(40):
            optimizer.zero_grad()
            F.cross_entropy(model(images), wanted).backward()
            optimizer.step()
        assert F.cross_entropy(model(images), wanted) < 0.05


def test_a_pooler_is_trained_where_a_head_reads_it(published):
    model = load(published("transformers, body"))
    assert model.pooler is not None
    model.pooled(pictures()).sum().backward()
    assert (model.pooler.weight.grad != 0).any()


def test_dropout_acts_in_training_and_not_in_evaluation():
    model, images = sf.ViT(dataclasses.replace(TINY, dropout=0.5)), torch.randn(2, 3, 12, 20)
    nn.init.normal_(model.head.out.weight)
    model.eval()
    plain = model(images)
    assert torch.equal(model(images), plain)
    model.train()
    assert not torch.equal(model(images), model(images))
    # At each of its places on its own: the embedding, the attention weights, both residual branches.
    for module in (model, model.blocks[0], model.blocks[0].attention):
        model.eval()
        module.training = True
        for child in module.children():
            child.training = isinstance(child, nn.Dropout)
        assert not torch.equal(model(images), plain)


def test_a_new_model_begins_as_it_says():
    torch.manual_seed(0)
    model = sf.ViT(sf.ViTConfig(image=64, patch=4, dim=100, depth=1, heads=5, hidden=300, classes=7))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert (parameter == name.endswith("weight")).all(), name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        else:
            shape = parameter.shape[-2:]
            expected = 0.02 if parameter.ndim == 3 or name.startswith("head") else (2 / sum(shape)) ** 0.5
            assert float(parameter.detach().std()) == pytest.approx(expected, rel=0.2), name


def test_presets_have_the_published_sizes():
    """Millions of parameters without a head (Dosovitskiy et al. 2021, table 1, and Touvron et al. 2021, table 1)."""
    for name, millions in {
        "tiny-16": 5.5,
        "small-16": 21.7,
        "base-16": 85.8,
        "large-16": 303.3,
        "huge-14": 630.8,
    }.items():
        with torch.device("meta"), _Uninitialised():
            model = sf.ViT(dataclasses.replace(sf.ViT.preset(name), classes=None))
        assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.05), name
    assert sf.ViT.preset("tiny").pool == "class"
    assert sf.ViT.preset("simple").pool == "mean"
    with pytest.raises(ValueError, match="ViT has no preset 'base': expected one of tiny-"):
        sf.ViT.from_preset("base")


def test_a_copy_pools_by_itself(published):
    model, images = load(published("timm, mean of patches")), pictures()
    before, twin = model(images), copy.deepcopy(model)
    with torch.no_grad():
        twin.norm.weight.zero_()
    assert torch.equal(model(images), before)
    assert not torch.equal(twin(images), before)


def test_a_safetensors_file_alone_loads(published, tmp_path):
    theirs, source, _ = published("transformers, classifier")
    save_file(load_file(source / "model.safetensors"), tmp_path / "alone.safetensors")
    config = dataclasses.replace(BARE, hidden=61, eps=1e-5)
    model = sf.load(tmp_path / "alone.safetensors", config=config, dtype=DTYPE)
    compare(ours(model, pictures()), answers(theirs, pictures()))
