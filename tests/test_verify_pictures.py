"""`verify` of models that read pictures: every planted bug makes it fail and name the place, and so does every change
of the weights, the config or the preprocessing."""

import importlib.util
import json
import shutil
from functools import partial

import pytest
import torch
import vision_reference  # before timm
from safetensors.torch import load_file, save_file
from test_bert_mutants import replacing, zeroed
from test_mutants import heads_inside_out
from vision_reference import of_timm, save_for_hf

import scratchformers as sf
from scratchformers import grid
from scratchformers import nn as bricks
from scratchformers.checkpoints import tables
from scratchformers.cli import main
from scratchformers.images import Preprocess
from scratchformers.insight import inputs
from scratchformers.insight import verify as module
from scratchformers.insight.verify import verify
from scratchformers.models import mae, vit

PREPARED = {"ViT": {"height": 35, "width": 77}, "MAE": {"height": 35, "width": 35}}
KINDS = {
    "ViT": lambda: vision_reference.vit(),
    "MAE": lambda: vision_reference.mae(),
    "ViT without a head": lambda: vision_reference.vit("Model"),
    "MAE on normalised pixels": lambda: vision_reference.mae(norm_pix_loss=True),
    "an MAE's encoder": lambda: vision_reference.mae("Model"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """transformers' own, in float32, with their preprocessing; and what --freeze wrote of them."""
    whole = tmp_path_factory.mktemp("pictures")
    for name, make in KINDS.items():
        make().float().save_pretrained(whole / name)
        if name in PREPARED:
            said = {"image_processor_type": "ViTImageProcessor", "size": PREPARED[name], "resample": 2}
            (whole / name / "preprocessor_config.json").write_text(json.dumps(said), encoding="utf-8")
        verify(whole / name, freeze=whole / f"{name}.safetensors")
    return whole


@pytest.fixture
def copy(folders, tmp_path):
    """A folder to tamper with, and what was frozen of it."""

    def make(name):
        shutil.copytree(folders / name, tmp_path / name)
        return tmp_path / name, folders / f"{name}.safetensors"

    return make


@pytest.fixture
def alone(monkeypatch):
    """Neither library is installed."""
    find = importlib.util.find_spec
    gone = ("transformers", "timm")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in gone else find(name, *a))


DECODER = ["decoder.embed", "decoder.blocks.0", "decoder.blocks.1", "decoder.norm", "decoder.out", "output", "loss"]
PLACES = {
    "ViT": ["patches", "dropout", "blocks.0", "blocks.1", "norm", "output"],
    "ViT without a head": ["patches", "dropout", "blocks.0", "blocks.1", "norm", "pooler", "output"],
    "MAE": ["blocks.input", *(f"blocks.{i}" for i in range(3)), "norm", *DECODER, "nothing hidden"],
    "an MAE's encoder": ["blocks.input", *(f"blocks.{i}" for i in range(3)), "norm", "output", "nothing hidden"],
}
PLACES["MAE on normalised pixels"] = PLACES["MAE"]


@pytest.mark.parametrize("name", KINDS)
def test_a_good_checkpoint_passes_in_both_precisions(folders, name):
    report = verify(folders / name)
    assert (report.passes, report.diverges, report.problems) == (True, None, [])
    assert [place.ours for place in report.places] == PLACES[name]
    for place in report.places:
        assert place.largest["float64"] <= 1e-10 * max(1, place.scale)
        assert place.mean["float32"] <= place.largest["float32"] <= 1e-4 * max(1, place.scale)
        assert place.scale > 0.1, "else anything would pass"
        assert " or " not in place.theirs
    assert report.agreement == ({"float64": 1.0, "float32": 1.0} if name == "ViT" else {}), "only a head has answers"
    same, none = "13 of 13 odd pictures become the same numbers", "not compared, for the checkpoint has no preprocess"
    assert report.preprocessing.startswith(same if name in PREPARED else none)
    assert report.tokenizer is None
    frozen = verify(folders / name, against=folders / f"{name}.safetensors")
    assert frozen.passes
    assert frozen.preprocessing == report.preprocessing
    assert [place.ours for place in frozen.places] == PLACES[name]


def rows(swapped):
    """A table in which these of transformers' names have changed places."""

    def plant(patch):
        real = tables.entries
        patch.setattr(
            tables,
            "entries",
            lambda given, ours: real([(_swapped(left, swapped), *rest) for left, *rest in given], ours),
        )

    return plant


def _swapped(name, pair):
    for a, b in (pair, pair[::-1]):
        if isinstance(name, str) and name.endswith(a):
            return name.removesuffix(a) + b
    return name


def no_final_norm(patch):
    patch.setattr(vit.ViT, "encode", vit.ViT.states)


def no_decoder_norm(patch):
    real = mae.Decoder.forward

    def forward(self, x, places):
        norm, self.norm = self.norm, torch.nn.Identity()
        try:
            return real(self, x, places)
        finally:
            self.norm = norm

    patch.setattr(mae.Decoder, "forward", forward)


def channels_last(patch):
    """The embedding reads a patch as the loss does."""
    real = bricks.Patches.forward
    patch.setattr(
        bricks.Patches, "forward", lambda self, images: real(self, images).roll(1, 1)
    )  # a patch further, for the same shape


def cutting(change):
    """Patches of pictures as something else reads them: of the embedding, or of the target."""
    return lambda patch: patch.setattr(
        mae, "cut", lambda images, config, order="c p q": grid.cut(images, config, change.get(order, order))
    )


def class_token_last(patch):
    def states(self, images):
        x = torch.cat([self.patches(images), self.class_token.expand(len(images), -1, -1)], dim=1)
        x = self.dropout(x + self.position)
        for block in self.blocks:
            x = block(x)
        return x

    patch.setattr(vit.ViT, "states", states)


def painting(change):
    """What `forward` gives, changed."""
    real = mae.MAE.forward
    return lambda patch: patch.setattr(
        mae.MAE, "forward", lambda self, images, **k: change(self, images, real(self, images, **k))
    )


def over_visible(self, images, found):
    target = grid.cut(images, self.config, "p q c")
    each = (found.prediction - target).square().mean(-1)
    return found._replace(loss=each[~found.mask].mean())


def over_all(self, images, found):
    target = grid.cut(images, self.config, "p q c")
    return found._replace(loss=(found.prediction - target).square().mean())


def highest_noise_shown(patch):
    real = grid.draw_noise
    patch.setattr(grid, "draw_noise", lambda patches, ratio, given, *, seed: 1 - real(patches, ratio, given, seed=seed))


def random_features(patch):
    """Features of a picture of which most is hidden."""
    real = mae.MAE.encode

    def encode(self, images, *, shown=None):
        count = grid.count(self.config.image, self.config.patch)
        some = torch.arange(count)[None].expand(len(images), -1).flip(1) if shown is None else shown
        return real(self, images, shown=some)

    patch.setattr(mae.MAE, "encode", encode)


def eps(value):
    """Of ours alone, whatever the file says."""

    def plant(patch):
        for page in (vit, mae):
            patch.setattr(page, "partial", lambda function, **given: partial(function, **{**given, "eps": value}))

    return plant


NORMS = (".layernorm_before", ".layernorm_after")
BOTH = {
    "another eps": (eps(1e-6), "blocks.0"),
    "heads inside out": (heads_inside_out, "blocks.0"),
    "swapped norms": (rows(NORMS), "blocks.0"),
    "a lost bias": (zeroed("attention.out.bias"), "blocks.0"),
    "a lost bias of values": (zeroed("attention.kv.bias"), "blocks.0"),
}
MUTANTS = {
    **{f"ViT: {name}": value for name, value in BOTH.items()},
    **{f"MAE: {name}": value for name, value in BOTH.items()},
    "ViT: tanh GELU": (replacing(vit, "gelu", bricks.gelu_tanh), "blocks.0"),
    "ViT: QuickGELU": (replacing(vit, "gelu", bricks.quick_gelu), "blocks.0"),
    "ViT: no final norm": (no_final_norm, "norm"),
    "ViT: patches in another order": (channels_last, "patches"),
    "ViT: the class token last": (class_token_last, "dropout"),
    "ViT: the mean for the class token": (
        replacing(vit.ViT, "pool", lambda self, x, keep=None: x.mean(1)),
        "output",
    ),
    "MAE: tanh GELU": (replacing(mae, "gelu", bricks.gelu_tanh), "blocks.0"),
    "MAE: no decoder norm": (no_decoder_norm, "decoder.norm"),
    "MAE: a lost bias of the decoder": (zeroed("decoder.out.bias"), "decoder.out"),
    "MAE: another eps of the decoder alone": (
        lambda patch: patch.setattr(mae.Decoder, "__init__", _decoder_of_another_eps),
        "decoder.blocks.0",
    ),
    "MAE: the encoder's heads in the decoder": (
        lambda patch: patch.setattr(mae.Decoder, "__init__", _decoder_of_other_heads),
        "decoder.blocks.0",
    ),
    "MAE: patches read channels last": (cutting({"c p q": "p q c"}), "blocks.input"),
    "MAE: targets read channels first": (cutting({"p q c": "c p q"}), "loss"),
    "MAE: loss over visible patches": (painting(over_visible), "loss"),
    "MAE: loss over all patches": (painting(over_all), "loss"),
    "MAE: the highest noise is shown": (highest_noise_shown, "blocks.input"),
    "MAE: features of shuffled patches": (random_features, "nothing hidden"),
}
made = mae.Decoder.__init__


def _decoder_of_another_eps(self, config, dim, norm):
    made(self, config, dim, lambda width: torch.nn.LayerNorm(width, eps=1e-6))


def _decoder_of_other_heads(self, config, dim, norm):
    made(self, config, dim, norm)
    for block in self.blocks:
        block.attention.heads = 4


@pytest.mark.unhooked  # planted functions need not have the shapes we promise
@pytest.mark.parametrize("way", ["beside", "against", "shipped"])
@pytest.mark.parametrize("name", MUTANTS)
def test_a_bug_in_the_code_is_caught(folders, monkeypatch, request, name, way):
    plant, place = MUTANTS[name]
    if way == "shipped":
        request.getfixturevalue("alone")
    if way == "shipped" and name.startswith("MAE: loss over"):  # which a norm_pix_loss of the small model would hide
        plant = painting(lambda self, images, found: found._replace(loss=2 * found.loss))
    plant(monkeypatch)
    kind = name.partition(":")[0]
    report = verify(folders / kind, **({"against": folders / f"{kind}.safetensors"} if way == "against" else {}))
    assert not report.passes
    assert report.diverges == place


@pytest.mark.unhooked
def test_a_biased_deviation_of_normalised_pixels_is_caught(folders, monkeypatch):
    real = torch.Tensor.var
    monkeypatch.setattr(torch.Tensor, "var", lambda self, *a, **k: real(self, *a, **k, correction=0))
    assert (
        verify(folders / "MAE on normalised pixels", against=folders / "MAE on normalised pixels.safetensors").diverges
        == "loss"
    )
    assert verify(folders / "MAE", against=folders / "MAE.safetensors").passes, (
        "which has no part in pixels as they are"
    )


# --- tampered checkpoints, against what was frozen of the good ones


def swapped_norms(state):
    for part in ("weight", "bias"):
        a, b = (f"vit.encoder.layer.1{norm}.{part}" for norm in NORMS)
        state[a], state[b] = state[b], state[a]


def lost_bias(state):
    state["vit.encoder.layer.0.intermediate.dense.bias"].zero_()


def one_number(state):
    state["vit.encoder.layer.1.output.dense.weight"][3, 5] += 1e-3


def another_kernel(state):
    name = "vit.embeddings.patch_embeddings.projection.weight"
    state[name] = state[name].flip(1).contiguous()  # BGR for RGB


def decoder_norm(state):
    state["decoder.decoder_norm.weight"] += 1e-3


TAMPERED = [
    ("ViT", swapped_norms, "blocks.1"), ("ViT", lost_bias, "blocks.0"), ("ViT", one_number, "blocks.1"),
    ("ViT", another_kernel, "patches"), ("MAE", swapped_norms, "blocks.1"), ("MAE", lost_bias, "blocks.0"),
    ("MAE", decoder_norm, "decoder.norm"), ("MAE", another_kernel, "blocks.input"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "tamper", "place"), TAMPERED, ids=[f"{n} {t.__name__}" for n, t, _ in TAMPERED])
def test_a_tampered_weight_is_caught(copy, name, tamper, place, capsys):
    folder, frozen = copy(name)
    state = load_file(folder / "model.safetensors")
    tamper(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    assert verify(folder).passes, "both read the same weights"
    assert main(["verify", str(folder), "--against", str(frozen)]) == 1
    said = capsys.readouterr().out
    assert "The weights are not those that were frozen." in said
    assert f"They do NOT agree. The first place that differs is {place}." in said


def change(path, **fields):
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | fields), encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "fields", "said", "place"),
    [
        ("ViT", {"layer_norm_eps": 1e-6}, "eps was 1e-05 and is 1e-06", "blocks.0"),
        ("ViT", {"num_attention_heads": 13}, "heads was 5 and is 13", "blocks.0"),
        ("MAE", {"layer_norm_eps": 1e-6}, "eps was 1e-05 and is 1e-06", "blocks.0"),
        ("MAE", {"decoder_num_attention_heads": 4}, "decoder_heads was 7 and is 4", "decoder.blocks.0"),
        ("MAE", {"norm_pix_loss": True}, "norm_pix_loss was False and is True", "loss"),
    ],
)
def test_a_changed_config_is_caught(copy, name, fields, said, place):
    """Other heads fit the same weights, and transformers would read the same wrong file."""
    folder, frozen = copy(name)
    change(folder / "config.json", **fields)
    assert verify(folder).passes
    report = verify(folder, against=frozen)
    assert report.problems == [f"The config is not the one that was frozen: {said}."]
    assert report.diverges == place


# --- what pictures become


@pytest.mark.parametrize(
    ("fields", "many"),
    [({"resample": 3}, 12), ({"image_mean": [0.5, 0.5, 0.51]}, 13), ({"rescale_factor": 1 / 256}, 13)],
)
def test_another_preprocessing_is_caught(copy, fields, many):
    folder, frozen = copy("ViT")
    change(folder / "preprocessor_config.json", **fields)
    assert verify(folder).passes, "both sides read the same file"
    report = verify(folder, against=frozen)
    assert report.diverges is None
    (problem,) = report.problems
    assert problem.startswith(f"The preprocessing differs from the file on {many} of 13 pictures, first on that of ")
    assert "ours gives [3, 35, 77] with a mean of" in problem
    (folder / "preprocessor_config.json").unlink()
    assert not verify(folder, against=frozen).passes, "nor is none the same"


def test_a_preprocessing_of_another_model_is_caught(copy):
    folder, _ = copy("ViT")
    change(folder / "preprocessor_config.json", size={"height": 35, "width": 70})
    expected = "it gives pictures of shape [3, 35, 70], and the model reads [3, 35, 77]"
    assert verify(folder).problems == [f"The preprocessing is not this model's: {expected}."]


@pytest.mark.parametrize(
    "plant",
    [
        lambda real, self, image: real(self, image.transpose(method=0)),
        lambda real, self, image: real(self, image.convert("RGB").resize((99, 99))),
    ],
)
def test_a_preprocessing_done_wrongly_is_caught(folders, monkeypatch, plant):
    real = Preprocess.pixels
    monkeypatch.setattr(Preprocess, "pixels", lambda self, image: plant(real, self, image))
    assert "The preprocessing differs from transformers on 12 of 13 pictures" in verify(folders / "ViT").problems[0]


def test_a_picture_that_is_refused_or_on_its_side_is_caught(folders, monkeypatch):
    real = inputs.open_picture

    def refuses(source):
        if source == inputs.odd_pictures()["grey"]:
            raise ValueError("no")
        return real(source)

    monkeypatch.setattr(inputs, "open_picture", refuses)
    (problem,) = verify(folders / "ViT").problems
    assert "on 1 of 13 pictures, first on that of grey: ours gives none, theirs [3, 35, 77] with" in problem
    monkeypatch.setattr(inputs, "open_picture", lambda source: inputs.Image.open(inputs.io.BytesIO(source)))
    (problem,) = verify(folders / "ViT").problems
    assert "on 1 of 13 pictures, first on that of a picture on its side" in problem


def test_a_margin_that_is_rounded_otherwise_is_said(copy):
    """Ours may be torchvision's, for which transformers has no word."""
    folder, _ = copy("MAE")
    change(
        folder / "preprocessor_config.json", size={"shortest_edge": 40}, do_center_crop=True,
        crop_size={"height": 35, "width": 35}, scratchformers={"middle": "round"},
    )  # fmt: skip
    report = verify(folder)
    assert report.passes
    assert report.preprocessing == (
        "13 of 13 odd pictures become the same numbers, half of an odd margin, which this one rounds to even, being "
        "rounded down as transformers does"
    )


@pytest.mark.parametrize(
    ("said", "reason"),
    [({"image_processor_type": "BeitImageProcessor"}, "is of BeitImageProcessor"), ({"do_pad": True}, "says do_pad")],
)
def test_a_preprocessing_that_is_not_read_here_is_said(copy, said, reason):
    folder, _ = copy("ViT")
    (folder / "preprocessor_config.json").write_text(json.dumps(said), encoding="utf-8")
    report = verify(folder)
    assert report.passes
    assert report.preprocessing.startswith("not compared, for ")
    assert reason in report.preprocessing


def test_a_preprocessing_that_transformers_cannot_read_is_said(folders, monkeypatch):
    import transformers

    def fails(*_, **__):
        raise Exception("no such thing\nat all")

    monkeypatch.setattr(transformers.AutoImageProcessor, "from_pretrained", fails)
    report = verify(folders / "ViT")
    assert report.problems == ["transformers cannot read the preprocessing (no such thing), which ours can."]


# --- timm's files, and those that nobody else reads


@pytest.fixture(scope="module")
def timms(tmp_path_factory):
    """timm's own, in float32, saved as timm does; and what --freeze wrote of them."""
    whole = tmp_path_factory.mktemp("timm")
    for pool in ("token", "avg"):
        arguments = {"global_pool": pool, **vision_reference.TIMM_SIZES}
        save_for_hf(of_timm(global_pool=pool).float(), whole / pool, model_args=arguments, safe_serialization=True)
        verify(whole / pool, freeze=whole / f"{pool}.safetensors")
    return whole


@pytest.mark.parametrize(("pool", "norm"), [("token", "norm"), ("avg", "fc_norm")])
def test_timms_files_are_compared_with_timm(timms, pool, norm):
    report = verify(timms / pool)
    assert report.passes
    assert report.against == f"timm {vision_reference.timm.__version__}, vit_base_patch16_224"
    assert report.versions.keys() == {"torch", "timm"}
    assert [(place.ours, place.theirs) for place in report.places] == [
        ("patches", "patch_embed"), ("dropout", "pos_drop"), ("blocks.0", "blocks.0"), ("blocks.1", "blocks.1"),
        ("norm", norm), ("output", "logits"),
    ]  # fmt: skip
    assert report.agreement == {"float64": 1.0, "float32": 1.0}
    assert verify(timms / pool, against=timms / f"{pool}.safetensors").passes


@pytest.mark.unhooked
@pytest.mark.parametrize(
    ("plant", "place"),
    [
        (eps(1e-5), "blocks.0"),
        (replacing(vit, "gelu", bricks.gelu_tanh), "blocks.0"),
        (rows((".norm1", ".norm2")), "blocks.0"),
        (zeroed("attention.q.bias"), "blocks.0"),
        (replacing(vit.ViT, "pool", lambda self, x, keep=None: self.norm(x.mean(1))), "norm"),
    ],
)
def test_a_bug_in_what_reads_timms_files_is_caught(timms, monkeypatch, plant, place):
    plant(monkeypatch)
    assert verify(timms / "avg").diverges == place


def test_of_timms_files_a_missing_tensor_is_a_problem(timms, tmp_path):
    """Ours refuses it; that timm would too is seen when ours does not."""
    from scratchformers.insight.verify import _load_timm

    shutil.copytree(timms / "token", tmp_path / "copy")
    state = load_file(tmp_path / "copy" / "model.safetensors")
    del state["blocks.1.norm2.bias"]
    save_file(state, tmp_path / "copy" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 missing: blocks\.1\.norm2\.bias"):
        verify(tmp_path / "copy")
    _, told = _load_timm(vision_reference.timm, tmp_path / "copy", "", {}, torch.float64)
    assert "blocks.1.norm2.bias" in told["the checkpoint"][0]


def test_without_timm_the_code_is_proven_and_the_sentence_says_so(timms, alone, capsys):
    assert main(["verify", str(timms / "token")]) == 0
    said = capsys.readouterr().out
    assert "This proves the code, not the checkpoint" in said
    assert "`pip install timm`" in said
    assert main(["verify", str(timms / "token"), "--freeze", "x"]) == 2
    assert "--freeze writes what timm answers: it needs `pip install timm`" in capsys.readouterr().err


def test_a_timm_that_cannot_be_imported_is_a_sentence(timms, monkeypatch):
    """torchvision, which it needs, raises this where it was built for another torch."""

    def broken():
        raise RuntimeError("operator torchvision::nms does not exist\nat all")

    monkeypatch.setitem(module.LIBRARIES, "timm", (broken, module._load_timm))
    with pytest.raises(ValueError, match=r"timm is installed and cannot be imported \(operator .* exist\): mend it"):
        verify(timms / "token")


SMALL = {"dim": 20, "depth": 1, "heads": 5}
DECODING = {"decoder_dim": 12, "decoder_depth": 1, "decoder_heads": 3}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: sf.ViT(sf.ViTConfig(8, 4, **SMALL, pool="mean")), "has none that reads anything but the class token"),
        (lambda: sf.ViT(sf.ViTConfig(8, 4, **SMALL, pool="patches")), "has none that reads anything but the class tok"),
        (lambda: sf.MAE(sf.MAEConfig(8, 4, **SMALL, **DECODING, class_token=False)), "lacks the class token, or"),
        (lambda: sf.MAE(sf.MAEConfig((8, 12), 4, **SMALL, **DECODING)), "or is not square"),
    ],
)
def test_what_no_library_has_is_said(tmp_path, capsys, make, said):
    make().save_pretrained(tmp_path / "own")
    assert main(["verify", str(tmp_path / "own")]) == 2
    assert said in capsys.readouterr().err


def test_a_single_file_is_compared_with_what_was_frozen_of_the_same_weights(folders, tmp_path, capsys):
    """facebook's, of which no library reads all, with transformers' answers for its own form of them."""
    config = sf.load(folders / "MAE").config
    path = tmp_path / "mae_visualize_vit_base.pth"
    tensors = vision_reference.facebook(folders / "MAE" / "model.safetensors")
    vision_reference.write_facebook(path, tensors)
    with pytest.MonkeyPatch.context() as patch:
        (layout,) = [each for each in sf.MAE.layouts if each.model_type == "mae"]
        patch.setitem(layout.names, path.stem, config)
        report = verify(path, against=folders / "MAE.safetensors")
        assert report.passes, report
        assert report.preprocessing == "not compared, for the checkpoint has no preprocessor_config.json"
        tensors["decoder_blocks.1.norm1.weight"][0] += 1e-3
        vision_reference.write_facebook(path, tensors)
        assert verify(path, against=folders / "MAE.safetensors").diverges == "decoder.blocks.1"
        assert main(["verify", str(path)]) == 2
    assert (
        "is no folder with a config.json, which the reference needs: give it one, or pass --again"
        in capsys.readouterr().err
    )


# --- the report


def test_a_report_speaks_of_pictures(folders, capsys):
    assert main(["verify", str(folders / "MAE"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert "tokenizer" not in said
    assert said["preprocessing"] == "13 of 13 odd pictures become the same numbers"
    assert said["places"][0].keys() == {"ours", "theirs", "largest", "mean", "scale", "passes"}
    for name in ("ViT", "MAE"):
        assert main(["verify", str(folders / name)]) == 0
        shown = capsys.readouterr().out
        assert "Preprocessing: 13 of 13 odd pictures become the same numbers." in shown
        assert "oken" not in shown.replace("class_token", "")
        assert ("most probable" in shown) == (name == "ViT")


def test_without_a_library_weights_that_are_not_numbers_fail(copy, alone):
    folder, _ = copy("ViT")
    state = load_file(folder / "model.safetensors")
    state["vit.layernorm.weight"][0] = torch.nan
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    report = verify(folder)
    assert report.problems == ["The checkpoint's weights are not all finite numbers: norm.weight."]
    assert (report.preprocessing, report.tokenizer) == ("not compared", None)
