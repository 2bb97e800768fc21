"""ViT-MAE against transformers, and against facebook's files by a plain model of them, on scrambled weights in float64:
what it paints, what it hides, what its encoder is to others."""

import copy
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import vision_reference
from safetensors.torch import load_file, save_file
from transformers import ViTMAEConfig, ViTMAEForPreTraining
from vision_reference import MAE_KINDS, MAE_SIZES, encoded, facebook, noise, painted, pictures, resample_abs_pos_embed

import scratchformers as sf
from scratchformers import grid
from scratchformers.checkpoints import tables, vision
from scratchformers.checkpoints.pretrained import _Uninitialised
from scratchformers.images import IMAGENET, Preprocess
from scratchformers.models import mae, vit

DTYPE = torch.float64
SQUARE = (35, 35)
# What facebook's files do not say.
BARE = sf.MAEConfig(
    image=35, patch=7, dim=20, depth=3, heads=5, hidden=61,
    decoder_dim=28, decoder_depth=2, decoder_heads=7, decoder_hidden=31, eps=1e-5,
)  # fmt: skip
TINY = sf.MAEConfig((12, 20), 4, dim=20, depth=2, heads=5, decoder_dim=12, decoder_depth=1, decoder_heads=3)


def close(a, b, atol=1e-10):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


def equal(mine, theirs, atol=1e-10):
    """Loss, prediction and mask."""
    close(mine.loss.detach(), theirs["loss"], atol=atol)
    close(mine.prediction.detach(), theirs["prediction"], atol=atol)
    assert torch.equal(mine.mask, theirs["mask"])


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """transformers' MAE and the folder it is in, by kind, channels and whether its targets are normalised."""
    made = {}

    def find(kind="ForPreTraining", *, channels=3, normed=False):
        if (kind, channels, normed) not in made:
            theirs = vision_reference.mae(kind, num_channels=channels, norm_pix_loss=normed)
            folder = tmp_path_factory.mktemp("mae")
            theirs.save_pretrained(folder)
            made[kind, channels, normed] = theirs, folder
        return made[kind, channels, normed]

    return find


@pytest.fixture
def model(published):
    return sf.load(published()[1], dtype=DTYPE)


@pytest.fixture
def folder(published, tmp_path):
    """A copy of transformers' folder that a test may spoil."""
    return shutil.copytree(published()[1], tmp_path / "checkpoint")


@pytest.fixture
def file(published, tmp_path):
    """The same weights as facebook saves them, with the arguments of the training."""
    vision_reference.write_facebook(tmp_path / "checkpoint-399.pth", facebook(published()[1] / "model.safetensors"))
    return tmp_path / "checkpoint-399.pth"


def renamed(folder):
    """As transformers called the decoder's layers until its version 5, and as the published files do."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    named = {k.replace("decoder.decoder_encoder.layer.", "decoder.decoder_layers."): v for k, v in tensors.items()}
    assert named.keys() != tensors.keys()
    save_file(named, folder / "model.safetensors", {"format": "pt"})
    return named


# --- parity


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("channels", [3, 1])
def test_it_paints_as_the_reference_in_float64(published, channels, normed):
    theirs, folder = published(channels=channels, normed=normed)
    model, images = sf.load(folder, dtype=DTYPE), pictures(size=SQUARE, channels=channels)
    assert isinstance(model, sf.MAE)
    assert model.config.norm_pix_loss is normed
    for seed in range(3):
        equal(model(images, noise=noise(seed=seed)), painted(theirs, images, noise(seed=seed)))


@pytest.mark.parametrize("ratio", [0.0, 0.2, 0.5, 0.9, 0.95])
def test_it_hides_as_the_reference_at_any_ratio(published, ratio):
    theirs, folder = published()
    model, images = sf.load(folder, dtype=DTYPE), pictures(size=SQUARE)
    said = copy.deepcopy(theirs)
    said.vit.config.mask_ratio = said.config.mask_ratio = ratio
    mine, expected = model(images, noise=noise(), mask_ratio=ratio), painted(said, images, noise())
    assert mine.mask.sum(1).eq(25 - int(25 * (1 - ratio))).all()
    if ratio == 0:  # where nothing is hidden, transformers divides by nothing
        assert expected["loss"].isnan()
        expected["loss"] = torch.zeros((), dtype=DTYPE)
    equal(mine, expected)


@pytest.mark.parametrize("normed", [False, True])
def test_it_paints_as_the_reference_in_float32(published, normed):
    """2e-5 of pixels around 1: float32 itself, in another order of additions."""
    theirs, folder = published(normed=normed)
    images = pictures(size=SQUARE).float()
    equal(sf.load(folder)(images, noise=noise()), painted(copy.deepcopy(theirs).float(), images, noise()), atol=2e-5)


@pytest.mark.parametrize("kind", MAE_KINDS)
def test_all_tokens_are_the_references_with_nothing_hidden(published, kind):
    theirs, folder = published(kind)
    model, images = sf.load(folder, dtype=DTYPE), pictures(size=SQUARE)
    assert (model.decoder is None) == (kind == "Model")
    close(model.encode(images).detach(), encoded(theirs, images))


def frozen():
    return dict(np.load(Path(__file__).parent / "frozen" / "vision.npz"))


@pytest.mark.parametrize("normed", [False, True])
def test_it_paints_the_frozen_pictures(published, normed):
    """What transformers answered when the file was written: it holds when the library has moved on."""
    found = {name: torch.from_numpy(value) for name, value in frozen().items() if value.dtype.kind in "fb"}
    model, kind = sf.load(published(normed=normed)[1], dtype=DTYPE), "normalised" if normed else "plain"
    mine = model(found["square"], noise=found["noise"])
    equal(mine, {name: found[f"mae, {kind}/{name}"] for name in ("loss", "prediction", "mask")})
    if not normed:
        close(model.encode(found["square"]).detach(), found["mae, plain/states"])


def plain(tensors, images, noise, config, **settings):
    return vision_reference.autoencode(
        tensors, images, noise, heads=config.heads, decoder_heads=config.decoder_heads, eps=config.eps,
        norm_pix_loss=config.norm_pix_loss, **settings,
    )  # fmt: skip


@pytest.mark.parametrize("normed", [False, True])
def test_the_plain_model_is_transformers(published, normed):
    """Which makes it fit to judge what transformers cannot express."""
    theirs, folder = published(normed=normed)
    said = plain(facebook(folder / "model.safetensors"), pictures(size=SQUARE), noise(),
                 dataclasses.replace(BARE, norm_pix_loss=normed))  # fmt: skip
    expected = painted(theirs, pictures(size=SQUARE), noise())
    close(said["loss"], expected["loss"])
    close(said["prediction"], expected["prediction"])
    assert torch.equal(said["mask"], expected["mask"])


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("channels", [3, 1])
def test_a_grid_that_is_not_square_and_a_model_without_class_token(tmp_path, class_token, channels, normed):
    """5 x 11 patches, which no package has; scrambled, saved in facebook's names and read by the plain model."""
    config = dataclasses.replace(
        BARE, image=(35, 77), channels=channels, class_token=class_token, norm_pix_loss=normed, eps=1e-6
    )
    model = vision_reference.scramble(sf.MAE(config))
    tensors = tables.save(facebook_layout(), model.state_dict(), config)
    images, hidden = pictures(channels=channels), noise(patches=55)
    equal(model(images, noise=hidden), plain(tensors, images, hidden, config))
    equal(model(images, noise=hidden, mask_ratio=0.5), plain(tensors, images, hidden, config, mask_ratio=0.5))
    close(model.encode(images).detach(), vision_reference.encode(tensors, images, heads=5, eps=1e-6))
    model.save_pretrained(tmp_path)
    again = sf.load(tmp_path, dtype=DTYPE)
    assert again.config == config
    said = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert said["model_type"] == "scratchformers-mae", "transformers has neither"
    close(again(images, noise=hidden).prediction, model(images, noise=hidden).prediction, atol=1e-12)


def facebook_layout():
    return next(layout for layout in sf.MAE.layouts if layout.model_type == "mae")


def test_a_batch_is_its_pictures(model):
    images = pictures(size=SQUARE)
    whole, states = model(images, noise=noise()), model.encode(images)
    for i in range(3):
        alone = model(images[i : i + 1], noise=noise()[i : i + 1])
        close(alone.prediction[0], whole.prediction[i], atol=1e-12)
        assert torch.equal(alone.mask[0], whole.mask[i])
        close(model.encode(images[i : i + 1])[0], states[i], atol=1e-12)


@pytest.mark.unhooked
def test_compiled_is_eager(model):
    """One graph without a break. The backend runs the traced graph itself, so that no C compiler is needed."""
    model.blocks, model.decoder.blocks = model.blocks[:1], model.decoder.blocks[:1]
    images = pictures(size=SQUARE)
    mine, compiled = model(images, noise=noise()), torch.compile(model, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(images, noise=noise()), mine):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)
    torch._dynamo.reset()


def test_recorded_is_fused_in_both_towers(published, model):
    images = pictures(size=SQUARE)
    before = model(images, noise=noise())
    with sf.record(model) as seen:
        recorded = model(images, noise=noise())
    equal(recorded, {name: value.detach() for name, value in before._asdict().items()}, atol=1e-11)
    shapes = [list(value.shape) for value in seen.attention.values()]
    assert shapes == [[3, 5, 7, 7]] * 3 + [[3, 7, 26, 26]] * 2, "a quarter of 25 patches and the class token; all"
    said = published()[0].vit(images, noise=noise(), output_hidden_states=True)
    for i in range(3):
        close(seen.hidden[f"blocks.{i}"].detach(), said.hidden_states[i + 1].detach())


# --- what is hidden


def test_hidden_pixels_cannot_change_what_is_painted(model):
    """Not by a bit: the prediction is of what is shown alone. The loss, which compares, does change."""
    for normed in (False, True):
        model.config = dataclasses.replace(model.config, norm_pix_loss=normed)
        images, mask = pictures(size=SQUARE), model(pictures(size=SQUARE), noise=noise()).mask
        where = mask.unflatten(1, (5, 5)).repeat_interleave(7, 1).repeat_interleave(7, 2)[:, None]
        before = model(images, noise=noise())
        for other in (torch.randn_like(images), torch.full_like(images, 1e6), torch.zeros_like(images)):
            after = model(torch.where(where, other, images), noise=noise())
            assert torch.equal(after.prediction, before.prediction)
            assert not torch.equal(after.loss, before.loss)
        shown = model(torch.where(where, images, images + 1), noise=noise())
        assert (shown.prediction != before.prediction).any(-1).all(), "what is shown matters everywhere"


def test_the_loss_is_of_hidden_patches_alone(model):
    images = pictures(size=SQUARE)
    said = model(images, noise=noise())
    patches = images.unfold(2, 7, 7).unfold(3, 7, 7).permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
    close(said.loss, (said.prediction - patches).square().mean(-1)[said.mask].mean(), atol=1e-12)
    assert said.prediction.shape == (3, 25, 147)
    assert said.mask.dtype == torch.bool
    assert said.mask.sum(1).tolist() == [19] * 3, "25 less a quarter, rounded down, that is shown"


def test_patches_of_highest_noise_are_hidden(model):
    order = torch.stack([torch.arange(25), torch.arange(25).flip(0), torch.arange(25).roll(5)]).double()
    mask = model(pictures(size=SQUARE), noise=order).mask
    assert mask.nonzero()[:, 1].tolist() == [*range(6, 25), *range(19), *range(5), *range(11, 25)]


def test_features_are_the_same_each_time(model):
    """Masks must not be random in feature extraction: nothing is hidden, so nothing is drawn."""
    images = pictures(size=SQUARE)
    for training in (False, True):
        state = torch.get_rng_state()
        assert torch.equal(model.train(training).encode(images), model.encode(images))
        assert torch.equal(torch.get_rng_state(), state)
    assert model.encode(images).shape == (3, 26, 20)


def test_noise_follows_torch_in_training_and_one_seed_in_evaluation(model):
    images = pictures(size=SQUARE)
    state = torch.get_rng_state()
    first, second = model.eval()(images), model(images)
    assert torch.equal(first.mask, second.mask)
    assert torch.equal(first.loss, second.loss)
    assert torch.equal(torch.get_rng_state(), state), "evaluating draws nothing from what a training goes on with"
    expected = torch.rand(3, 25, generator=torch.Generator().manual_seed(0))
    assert torch.equal(first.mask, model(images, noise=expected).mask)
    model.train()
    masks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        masks.append(model(images).mask)
    torch.manual_seed(1)
    assert torch.equal(masks[0], model(images, noise=torch.rand(3, 25)).mask)
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
    assert not torch.equal(model(images).mask, model(images).mask)


@pytest.mark.unhooked  # the hook would refuse the shapes before we do
def test_noise_and_ratio_that_cannot_be_are_refused(model):
    images = pictures(size=SQUARE)
    for shape in ((3, 24), (2, 25), (25,), (1, 25)):
        with pytest.raises(ValueError, match=r"noise is of shape .*: expected one number a patch, \[3, 25\]"):
            model(images, noise=torch.rand(shape))
    for ratio in (1.0, 0.97, -0.1, float("nan")):
        with pytest.raises(ValueError, match=r"mask_ratio is .*: expected at least 0, and one of the 25 patches left"):
            model(images, mask_ratio=ratio)
    for shape in ((3, 3, 35, 42), (3, 1, 35, 35), (3, 35, 35)):
        for call in (model, model.encode):
            with pytest.raises(ValueError, match=r"this model reads \(batch, 3, 35, 35\); prepare them by its"):
                call(torch.zeros(shape, dtype=DTYPE))


# --- the forms of a file


def test_the_published_names_of_the_decoder_load_and_are_saved(folder, published, tmp_path):
    """transformers 5 saves decoder.decoder_encoder.layer.*, the published files say decoder.decoder_layers.*."""
    named, theirs = renamed(folder), published()[0]
    model, images = sf.load(folder, dtype=DTYPE), pictures(size=SQUARE)
    equal(model(images, noise=noise()), painted(theirs, images, noise()))
    for source in (folder, published()[1]):
        sf.load(source, dtype=DTYPE).save_pretrained(tmp_path / "saved")
        saved = load_file(tmp_path / "saved" / "model.safetensors")
        assert saved.keys() == named.keys()
        assert all(torch.equal(saved[name], value) for name, value in named.items())


@pytest.mark.parametrize("normed", [False, True])
def test_facebooks_file_paints_as_transformers(published, tmp_path, normed):
    theirs, source = published(normed=normed)
    vision_reference.write_facebook(tmp_path / "checkpoint-1.pth", facebook(source / "model.safetensors"))
    config = dataclasses.replace(BARE, norm_pix_loss=normed)
    model, images = sf.load(tmp_path / "checkpoint-1.pth", config=config, dtype=DTYPE), pictures(size=SQUARE)
    assert isinstance(model, sf.MAE)
    equal(model(images, noise=noise()), painted(theirs, images, noise()))


def test_a_file_alone_needs_what_its_shapes_leave_open(file, published, tmp_path):
    said = "its tensors do not tell all of heads, decoder_heads, norm_pix_loss, class_token, eps: pass config="
    for call in (sf.load, sf.MAE.from_pretrained):
        with pytest.raises(ValueError, match=said):
            call(file)
    bare = facebook(published()[1] / "model.safetensors")
    torch.save(vision_reference.encoder_of(bare), tmp_path / "encoder.pth")
    with pytest.raises(ValueError, match=r"tell all of heads, decoder_dim, .*norm_pix_loss, class_token, eps"):
        sf.MAE.from_pretrained(tmp_path / "encoder.pth")
    short = dataclasses.replace(BARE, hidden=None, decoder_hidden=None)
    with pytest.raises(
        ValueError, match="hidden is 61 in the file and 80 in config=; decoder_hidden is 31 in the file"
    ):
        sf.load(file, config=short)


def test_widths_that_follow_from_others_may_be_left_out(tmp_path):
    """4 times the width, in both towers, as every published file has them."""
    theirs = vision_reference.mae(intermediate_size=80, decoder_intermediate_size=112)
    theirs.save_pretrained(tmp_path / "folder")
    torch.save(facebook(tmp_path / "folder" / "model.safetensors"), tmp_path / "file.pth")
    short = dataclasses.replace(BARE, hidden=None, decoder_hidden=None)
    images = pictures(size=SQUARE)
    for source in ("folder", "file.pth"):
        model = sf.load(tmp_path / source, config=short, dtype=DTYPE)
        equal(model(images, noise=noise()), painted(theirs, images, noise()))


def test_which_class_a_file_is(file, published, tmp_path):
    """With a decoder it is an MAE; without one and without a name that is known, it is a ViT like any other."""
    bare = facebook(published()[1] / "model.safetensors")
    torch.save({"model": vision_reference.encoder_of(bare)}, tmp_path / "encoder.pth")
    assert isinstance(sf.load(file, config=BARE), sf.MAE)
    with pytest.raises(ValueError, match="do not tell all of heads, eps: pass config="):
        sf.load(tmp_path / "encoder.pth")
    assert isinstance(sf.load(tmp_path / "encoder.pth", config=BARE), sf.MAE)
    assert isinstance(sf.load(tmp_path / "encoder.pth", config=as_vit()), sf.ViT)
    assert isinstance(sf.MAE.from_pretrained(tmp_path / "encoder.pth", config=BARE), sf.MAE)
    assert isinstance(sf.load(published()[1]), sf.MAE)
    assert isinstance(sf.ViT.from_pretrained(published()[1]), sf.ViT)
    vision_reference.vit().save_pretrained(tmp_path / "vit")
    with pytest.raises(ValueError, match="says model_type 'vit': MAE reads"):
        sf.MAE.from_pretrained(tmp_path / "vit")


def test_a_file_without_decoder_paints_nothing_and_says_so(published, tmp_path):
    theirs, folder = published("Model")
    bare = facebook(published()[1] / "model.safetensors")
    torch.save({"model": vision_reference.encoder_of(bare)}, tmp_path / "encoder.pth")
    images = pictures(size=SQUARE)
    for model in (sf.load(folder, dtype=DTYPE), sf.load(tmp_path / "encoder.pth", config=BARE, dtype=DTYPE)):
        assert model.decoder is None
        with pytest.raises(ValueError, match="has no decoder, so it paints nothing: call encode, or load a file that"):
            model(images)
        close(model.encode(images).detach(), encoded(theirs if model.layout == "vit_mae" else published()[0], images))


KNOWN = [*mae.FILES]


def small(name):
    return dataclasses.replace(
        mae.FILES[name], image=35, patch=7, dim=20, depth=3, heads=5, hidden=61,
        decoder_dim=28, decoder_depth=2, decoder_heads=7, decoder_hidden=31,
    )  # fmt: skip


def as_vit(config=BARE):
    """What is left of it for a downstream task."""
    names = ("image", "patch", "channels", "dim", "depth", "heads", "hidden", "eps")
    return sf.ViTConfig(**{name: getattr(config, name) for name in names}, classes=None)


@pytest.fixture
def known(request, published, tmp_path, monkeypatch):
    """A file of a published name with small tensors: the name's sizes are made small, what else it says is kept."""
    name = request.param
    theirs = vision_reference.mae(layer_norm_eps=1e-6, norm_pix_loss=mae.FILES[name].norm_pix_loss)
    theirs.save_pretrained(tmp_path / "theirs")
    tensors = facebook(tmp_path / "theirs" / "model.safetensors")
    whole = "visualize" in name or "full" in name
    torch.save({"model": tensors if whole else vision_reference.encoder_of(tensors)}, tmp_path / f"{name}.pth")
    for kind, config in ((sf.MAE, small(name)), (sf.ViT, as_vit(small(name)))):
        for layout in kind.layouts:
            if name in layout.names:
                monkeypatch.setitem(layout.names, name, config)
    return name, theirs, tmp_path / f"{name}.pth"


@pytest.mark.parametrize("known", KNOWN, indirect=True)
def test_known_files_are_known_by_their_names(known):
    """No config= is needed: heads, eps, and whether pixels were normalised follow from the name."""
    name, theirs, source = known
    images = pictures(size=SQUARE)
    for model in (sf.load(source, dtype=DTYPE), sf.MAE.from_pretrained(source, dtype=DTYPE)):
        assert model.config == small(name)
        assert model.config.norm_pix_loss == ("pretrain" in name), "which the visualised were not trained with"
        assert (model.decoder is None) == (name in ("mae_pretrain_vit_base", "mae_pretrain_vit_large",
                                                    "mae_pretrain_vit_huge"))  # fmt: skip
        close(model.encode(images).detach(), encoded(theirs, images))
        if model.decoder is not None:
            equal(model(images, noise=noise()), painted(theirs, images, noise()))
    encoder = sf.ViT.from_pretrained(source, dtype=DTYPE)
    assert encoder.head is None
    close(encoder.encode(images).detach(), encoded(theirs, images))


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_name_is_a_published_size(name):
    """By the number of parameters that such a file has, in transformers."""
    config = mae.FILES[name]
    sizes = {**vision.NAMES, **mae.DECODER_NAMES}
    said = {theirs: getattr(config, ours) for ours, theirs in sizes.items()}
    said |= {"intermediate_size": 4 * config.dim, "decoder_intermediate_size": 4 * config.decoder_dim}
    with torch.device("meta"), _Uninitialised():
        theirs, model = ViTMAEForPreTraining(ViTMAEConfig(**said)), sf.MAE(config)
        encoder = sf.ViT(vit.PRETRAINED[name])
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in model.parameters())
    assert sum(p.numel() for p in theirs.vit.parameters()) == sum(p.numel() for p in encoder.parameters())
    assert config.patch == (14 if "huge" in name else 16)
    assert config.heads == (12 if "base" in name else 16)
    assert (config.eps, config.class_token) == (1e-6, True)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_act": "relu"}, "config.json says hidden_act 'relu': only 'gelu' is written here"),
        ({"decoder_hidden_size": 42}, "decoder_dim is 42 in the file and 28 in its tensors. The file is damaged"),
        ({"decoder_num_hidden_layers": 3}, "decoder_depth is 3 in the file and 2 in its tensors. The file is damaged"),
        ({"decoder_num_attention_heads": 5}, "5 heads do not divide a width of 28"),
        ({"patch_size": 5}, "patch is 5 in the file and 7 in its tensors"),
    ],
)
def test_a_config_that_is_another_is_refused(folder, changes, said):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, **changes}), encoding="utf-8")
    with pytest.raises(ValueError, match=said):
        sf.load(folder)


# --- its encoder as a ViT


@pytest.mark.parametrize("form", ["transformers 5", "published names", "body alone", "facebook", "encoder alone"])
def test_its_encoder_is_a_vit(published, tmp_path, form):
    """Of all layouts: the decoder is thrown away, and what a head would read is what the MAE encodes."""
    theirs, source = published("Model" if form == "body alone" else "ForPreTraining")
    source, config = shutil.copytree(source, tmp_path / "copy"), None
    if form == "published names":
        renamed(source)
    if form in ("facebook", "encoder alone"):
        tensors = facebook(source / "model.safetensors")
        source, config = tmp_path / "file.pth", as_vit()
        torch.save({"model": tensors if form == "facebook" else vision_reference.encoder_of(tensors)}, source)
    model, images = sf.ViT.from_pretrained(source, config=config, dtype=DTYPE), pictures(size=SQUARE)
    assert model.config == as_vit()
    assert model.head is None
    close(model.encode(images).detach(), encoded(theirs, images))
    model.head = sf.Classify(20, ["cat", "dog"], pool=model.pool).to(DTYPE)
    assert all(parameter.requires_grad for parameter in model.parameters()), "its positions may be learned from now on"
    model.save_pretrained(tmp_path / "saved")
    again = sf.load(tmp_path / "saved", dtype=DTYPE)
    assert isinstance(again, sf.ViT)
    close(again(images), model(images), atol=1e-12)
    prepare = vision.FACEBOOK if form == "facebook" else vision.HUGGING_FACE_MAE
    if config is None:
        assert sf.load_preprocess(tmp_path / "saved") == prepare.sized(35), "not a ViT's, whose mean is a half"


def test_an_encoder_without_class_token_is_a_vit_that_pools_by_mean(tmp_path):
    torch.manual_seed(0)
    model = sf.MAE(dataclasses.replace(TINY, class_token=False)).eval()
    model.save_pretrained(tmp_path)
    encoder, images = sf.ViT.from_pretrained(tmp_path), pictures(size=(12, 20)).float()
    assert encoder.config.pool == "mean"
    close(encoder.encode(images), model.encode(images), atol=1e-5)
    close(encoder.pool(encoder.encode(images)), model.encode(images).mean(1), atol=1e-5)


# --- the round trip


@pytest.mark.parametrize("kind", MAE_KINDS)
@pytest.mark.parametrize("normed", [False, True])
def test_saved_loads_in_the_reference_bit_equal(published, tmp_path, kind, normed):
    theirs, source = published(kind, normed=normed)
    model = sf.load(source, dtype=DTYPE)
    model.save_pretrained(tmp_path)
    again, said = MAE_KINDS[kind].from_pretrained(tmp_path, dtype=DTYPE, output_loading_info=True)
    assert not any(said.values()), said
    assert again.config.to_diff_dict() == theirs.config.to_diff_dict()
    assert again.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(again.state_dict()[name], value) for name, value in theirs.state_dict().items())
    back = sf.load(tmp_path, dtype=DTYPE)
    assert back.config == model.config
    assert all(torch.equal(back.state_dict()[name], value) for name, value in model.state_dict().items())


def test_facebooks_file_is_saved_as_transformers(file, published, tmp_path):
    sf.load(file, config=dataclasses.replace(BARE, norm_pix_loss=True), dtype=DTYPE).save_pretrained(tmp_path / "saved")
    theirs = published()[0]
    again, said = ViTMAEForPreTraining.from_pretrained(tmp_path / "saved", dtype=DTYPE, output_loading_info=True)
    assert not any(said.values()), said
    assert again.config.norm_pix_loss is True
    assert again.config.layer_norm_eps == 1e-5
    assert all(torch.equal(again.state_dict()[name], value) for name, value in theirs.state_dict().items())


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("decoder", [True, False])
def test_a_model_made_here_is_saved_and_loads_again(tmp_path, class_token, decoder):
    torch.manual_seed(0)
    model = sf.MAE(dataclasses.replace(TINY, class_token=class_token, norm_pix_loss=True, hidden=31)).eval()
    if not decoder:
        model.decoder = None
    model.save_pretrained(tmp_path)
    again, images = sf.load(tmp_path), pictures(size=(12, 20)).float()
    assert again.config == dataclasses.replace(model.config, decoder_hidden=48)
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(again.state_dict()[name], value) for name, value in model.state_dict().items())
    close(again.encode(images), model.encode(images), atol=1e-5)
    if decoder:
        close(again(images).prediction, model(images).prediction, atol=1e-5)


def test_saving_over_the_mapped_source_is_safe(folder):
    model = sf.load(folder, dtype=DTYPE)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.save_pretrained(folder)
    assert all(torch.equal(sf.load(folder, dtype=DTYPE).state_dict()[name], value) for name, value in before.items())


# --- positions


@pytest.mark.parametrize("image", [(35, 77), (70, 70), (14, 21), (49, 14), (63, 56)])
@pytest.mark.parametrize("form", ["transformers", "facebook"])
def test_positions_of_both_towers_are_interpolated_as_timms(published, file, form, image):
    source = published()[1] if form == "transformers" else file
    first = sf.load(source, config=BARE, dtype=DTYPE)
    wanted = dataclasses.replace(BARE, image=image)
    model = sf.load(source, config=wanted, dtype=DTYPE)
    size = [image[0] // 7, image[1] // 7]
    for now, before in ((model.position, first.position), (model.decoder.position, first.decoder.position)):
        assert torch.equal(now, resample_abs_pos_embed(before.detach(), size, [5, 5], num_prefix_tokens=1))
        assert not now.requires_grad
    assert model.config == dataclasses.replace(wanted)
    images, hidden = pictures(size=image), noise(patches=size[0] * size[1])
    said = plain(tables.save(facebook_layout(), model.state_dict(), wanted), images, hidden, wanted)
    equal(model(images, noise=hidden), said)
    encoder = sf.ViT.from_pretrained(source, config=as_vit(wanted), dtype=DTYPE)
    assert torch.equal(encoder.position, model.position)


def test_a_resized_model_is_saved_as_what_it_is(published, tmp_path):
    model = sf.load(published()[1], config=dataclasses.replace(BARE, image=70), dtype=DTYPE)
    model.save_pretrained(tmp_path)
    again, images = sf.load(tmp_path, dtype=DTYPE), pictures(size=(70, 70))
    assert again.config.image == 70
    theirs = ViTMAEForPreTraining.from_pretrained(tmp_path, dtype=DTYPE).eval()
    equal(again(images, noise=noise(patches=100)), painted(theirs, images, noise(patches=100)))


def test_any_other_difference_is_an_error(published):
    for changes, said in (
        ({"norm_pix_loss": True}, "norm_pix_loss is False in the file and True in config="),
        ({"decoder_heads": 14}, "decoder_heads is 7 in the file and 14 in config="),
        ({"class_token": False}, "class_token is True in the file and False in config="),
        ({"eps": 1e-6, "image": 70}, "eps is 1e-05 in the file and 1e-06 in config="),
        ({"patch": 5}, "patch is 7 in the file and 5 in config="),
    ):
        with pytest.raises(ValueError, match=f"{said}. Leave config= out to take the file's"):
            sf.load(published()[1], config=dataclasses.replace(BARE, **changes))


def by_formula(rows, columns, dim):
    """He et al. 2022, appendix A.1, as facebook computes it: a quarter each of sines and cosines of the column, then of
    the row."""
    found = np.zeros((1 + rows * columns, dim))
    for n in range(rows * columns):
        for half, place in enumerate((n % columns, n // columns)):
            for i in range(dim // 4):
                angle = place / 10000 ** (i / (dim / 4))
                found[1 + n, half * dim // 2 + i] = np.sin(angle)
                found[1 + n, half * dim // 2 + dim // 4 + i] = np.cos(angle)
    return torch.from_numpy(found)[None]


def test_a_new_models_positions_are_fixed_sinusoids():
    """Equal to transformers' own to float32; computed, not learned, 0 for the class token."""
    fresh, model = ViTMAEForPreTraining(ViTMAEConfig(**MAE_SIZES)), sf.MAE(BARE)
    for each in (*fresh.modules(), *fresh.parameters()):
        each._is_hf_initialized = False  # transformers 5 takes them for done when a model is made, and leaves zeros
    fresh.vit.embeddings.initialize_weights()
    fresh.decoder.initialize_weights(num_patches=25)
    close(model.position, fresh.vit.embeddings.position_embeddings, atol=1e-6)
    close(model.decoder.position, fresh.decoder.decoder_pos_embed, atol=1e-6)
    model = sf.MAE(dataclasses.replace(BARE, image=(35, 77)))
    for position, dim in ((model.position, 20), (model.decoder.position, 28)):
        close(position, by_formula(5, 11, dim).float(), atol=1e-6)
        assert not position.requires_grad
    without = sf.MAE(dataclasses.replace(BARE, image=(35, 77), class_token=False))
    assert torch.equal(without.position, model.position[:, 1:])
    assert torch.equal(without.decoder.position, model.decoder.position[:, 1:])


@pytest.mark.unhooked  # the hook would refuse a wrong type before we do
def test_configs_are_checked_when_made():
    for changes, said in (
        ({"image": 225}, "image is 225: expected a multiple of the patch, 16"),
        ({"decoder_dim": 0}, "decoder_dim is 0: expected a positive integer"),
        ({"decoder_hidden": 0}, "decoder_hidden is 0: expected a positive integer"),
        ({"eps": 1}, "eps is 1: expected 0 < eps < 1"),
    ):
        with pytest.raises(ValueError, match=said):
            sf.MAEConfig(**changes)
    with pytest.raises(
        ValueError, match="A width of 18 has no sinusoids for rows and columns: expected a multiple of 4"
    ):
        sf.MAE(dataclasses.replace(TINY, dim=18, heads=3))
    with pytest.raises(ValueError, match="MAE has no preset 'small': expected one of base, large, huge, tiny, simple"):
        sf.MAE.from_preset("small")


# --- how pictures are prepared


@pytest.mark.parametrize("known", ["mae_pretrain_vit_base", "mae_visualize_vit_huge"], indirect=True)
def test_facebooks_files_are_prepared_as_facebook_evaluates(known, tmp_path):
    """Also when they are saved as transformers', whose own default is not cropped."""
    _, _, source = known
    expected = Preprocess(40, (35, 35), "bicubic", mean=IMAGENET[0], std=IMAGENET[1])
    assert sf.load_preprocess(source) == expected
    for kind in (sf.MAE, sf.ViT):
        model = kind.from_pretrained(source)
        assert sf.load_preprocess(source, model=model) == expected
        model.save_pretrained(tmp_path / "saved")
        assert sf.load_preprocess(tmp_path / "saved") == expected


def test_transformers_default_is_of_imagenet(published):
    assert sf.load_preprocess(published()[1]) == Preprocess(
        (35, 35), interpolation="bilinear", mean=IMAGENET[0], std=IMAGENET[1]
    )


# --- training


@pytest.mark.parametrize("config", [TINY, dataclasses.replace(TINY, class_token=False, norm_pix_loss=True)])
def test_it_learns_one_batch_by_heart_and_every_parameter_gets_a_gradient(config):
    torch.manual_seed(0)
    model, hidden = sf.MAE(config), torch.rand(2, 15)
    images = torch.randn(2, 3, 3, 5).repeat_interleave(4, 2).repeat_interleave(4, 3) + torch.randn(4, 4).tile(3, 5)
    fixed = {"position", "decoder.position"}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    first = model(images, noise=hidden)
    first.loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (name not in fixed), name
        assert name in fixed or (parameter.grad != 0).any(), name
    before = {name: parameter.clone() for name, parameter in model.named_parameters() if name in fixed}
    for _ in range(100):
        optimizer.zero_grad()
        model(images, noise=hidden).loss.backward()
        optimizer.step()
    assert model(images, noise=hidden).loss < 0.1 * first.loss
    assert all(torch.equal(dict(model.named_parameters())[name], value) for name, value in before.items())


def test_a_new_model_begins_as_it_says():
    torch.manual_seed(0)
    model = sf.MAE(sf.MAEConfig(32, 4, dim=100, depth=1, heads=5, decoder_dim=60, decoder_depth=1, decoder_heads=3))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert (parameter == name.endswith("weight")).all(), name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif "position" not in name:
            expected = 0.02 if parameter.ndim == 3 else (2 / sum(parameter.shape)) ** 0.5
            assert float(parameter.detach().std()) == pytest.approx(expected, rel=0.25), name


def test_what_is_taken_and_put_back_is_in_its_place():
    x, places = torch.arange(12.0).view(1, 6, 2).expand(2, -1, -1), torch.tensor([[5, 0], [2, 3]])
    assert grid.take(x, places)[..., 0].tolist() == [[10, 0], [4, 6]]
    assert grid.take(x[:1], places)[..., 0].tolist() == [[10, 0], [4, 6]], "of one row, for all"
    assert grid.take(x, None) is x
