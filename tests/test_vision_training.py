"""Training on pictures: what a ViT and a masked autoencoder are given, and what comes of it."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import scratchformers as sf
from scratchformers.checkpoints import files
from scratchformers.images import Preprocess
from scratchformers.training.pictures import read_pictures
from scratchformers.training.request import Request
from scratchformers.training.runs import open_run
from scratchformers.training.vision import (
    ClassSettings,
    PaintSettings,
    StochasticDepth,
    class_figures,
    prepare_classes,
    prepare_painting,
    set_stochastic_depth,
)

TINY = {"image": 12, "patch": 4, "dim": 24, "depth": 2, "heads": 2}
SMALL = {"steps": "6", "batch": "8", "eval_every": "3", "save_every": "3", "warmup": "2", "threads": "1"}
SMALL |= {key: str(value) for key, value in TINY.items()}
DECODER = {"decoder_dim": "16", "decoder_depth": "1", "decoder_heads": "2"}
OF_A_MODEL = {*TINY, *DECODER}  # which a source has of its own


def made(path, count=30, *, size=12, channels=3, classes=3, seed=0):
    """Pictures of which the mean tells the class, as an .npz file."""
    draw = np.random.RandomState(seed)
    labels = np.arange(count) % classes
    shape = (count, size, size, channels) if channels == 3 else (count, size, size)
    pixels = draw.randint(0, 60, shape) + (labels * 80).reshape(-1, *[1] * (len(shape) - 1))
    names = np.array([f"class {i}" for i in range(classes)])
    np.savez(path, images=pixels.astype(np.uint8), labels=labels, names=names)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return made(tmp_path_factory.mktemp("pictures") / "train.npz")


def begun(recipe, data, out, *, resume=False, **more):
    sizes = DECODER if recipe == "mae" else {}
    given = {key: value for key, value in {**SMALL, **sizes}.items() if not (more.get("source") and key in OF_A_MODEL)}
    given |= more.pop("given", {})
    run, said = open_run(Request(recipe, out, data, given=given, **more), resume=resume)
    return run, said


def trained(recipe, data, out, **more):
    run, _ = begun(recipe, data, out, **more)
    return list(run), run


def lines(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def weights(out):
    return sf.load(out / "model").state_dict()


@pytest.mark.parametrize("recipe", ["vit", "mae"])
def test_a_run_leaves_what_was_promised(recipe, data, tmp_path):
    records, _ = trained(recipe, data, tmp_path / "run")
    out = tmp_path / "run"
    assert {"config.json", "log.jsonl", "loss.png", "checkpoints", "model", "pictures"} <= {
        p.name for p in out.iterdir()
    }
    assert {p.name for p in (out / "pictures").iterdir()} == {"step-3.png", "step-6.png"}
    assert all(Image.open(path).size[0] > 100 for path in (out / "pictures").iterdir())
    valid = [record for record in records if "valid_loss" in record]
    assert len(valid) == 2
    assert ("valid_accuracy" in valid[0]) is (recipe == "vit")
    assert type(sf.load(out / "model")).__name__ == {"vit": "ViT", "mae": "MAE"}[recipe]
    prepared = sf.load_preprocess(out / "model")(Image.new("RGB", (50, 30), "red"))
    assert prepared.shape == (3, 12, 12)


def test_the_classes_go_with_the_model(data, tmp_path):
    trained("vit", data, tmp_path / "run")
    assert sf.load(tmp_path / "run" / "model").head.labels == ("class 0", "class 1", "class 2")


@pytest.mark.parametrize("recipe", ["vit", "mae"])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"crop": "0.5", "shift": "2"},
        {"ema": "0.9"},
        {"mixup": "0.4", "cutmix": "1", "erasing": "0.5", "drop_path": "0.3"},
    ],
)
def test_a_resumed_run_is_one_that_never_stopped(recipe, more, data, tmp_path):
    if recipe == "mae" and "mixup" in more:
        more = {"mask_ratio": "0.5", "norm_pix_loss": "true"}
    trained(recipe, data, tmp_path / "whole", given=more)
    half, _ = begun(recipe, data, tmp_path / "cut", given=more)
    for record in half:
        if record["step"] == 4:
            break
    again, said = begun(recipe, None, tmp_path / "cut", given=more, resume=True)
    assert "Resuming at step 3 of 6." in said
    list(again)
    a, b = ([record["loss"] for record in lines(tmp_path / name) if "loss" in record] for name in ("whole", "cut"))
    assert a == b
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_threads_that_read_change_nothing(data, tmp_path):
    for workers in ("1", "3"):
        trained("vit", data, tmp_path / workers, given={"workers": workers, "crop": "0.4", "mixup": "0.3"})
    a, b = ([record["loss"] for record in lines(tmp_path / name) if "loss" in record] for name in ("1", "3"))
    assert a == b


def test_micro_batches_are_the_same_pictures(data, tmp_path):
    """Mixing and erasing draw for a batch, so without them the losses agree."""
    for micro in ("0", "4"):
        trained("vit", data, tmp_path / micro, given={"micro_batch": micro, "crop": "0.4"})
    a, b = ([record["loss"] for record in lines(tmp_path / name) if "loss" in record] for name in ("0", "4"))
    assert a == pytest.approx(b, rel=1e-4)


def settings(kind, **more):
    return kind(**{"batch": 8, "threads": 1, **more})


def task_of(data, tmp_path, kind=ClassSettings, fields=TINY, **more):
    prepare = prepare_classes if kind is ClassSettings else prepare_painting
    recipe = "vit" if kind is ClassSettings else "mae"
    extra = {} if kind is ClassSettings else {key: int(value) for key, value in DECODER.items()}
    return prepare(Request(recipe, tmp_path / "run", data), settings(kind, **more), {**fields, **extra})[0]


def test_what_is_random_about_a_picture_follows_from_its_epoch_and_row(data, tmp_path):
    task = task_of(data, tmp_path, crop=0.3)
    first, again = task.batch([(0, 3), (0, 4)]), task.batch([(0, 4)])
    assert torch.equal(first["images"][1], again["images"][0])
    assert not torch.equal(task.batch([(1, 4)])["images"], again["images"]), "each epoch sees it anew"
    other = task_of(data, tmp_path, crop=0.3, seed=1)
    assert not torch.equal(other.batch([(0, 4)])["images"], again["images"])


def test_a_crop_has_about_the_shape_that_the_model_reads(tmp_path):
    """Of pictures twice as wide as high no rectangle from 3:4 to 4:3 holds nine tenths: both sides were always lost."""
    columns = np.broadcast_to(np.linspace(0, 255, 32).astype(np.uint8)[None, :, None], (16, 32, 3))
    np.savez(tmp_path / "wide.npz", images=np.stack([columns] * 20), labels=[0, 1] * 10)
    fields = {"image": (8, 16), "patch": 4, "dim": 8, "depth": 1, "heads": 1}
    request = Request("vit", tmp_path / "run", tmp_path / "wide.npz")
    task, _, _ = prepare_classes(request, settings(ClassSettings, crop=0.9, flip=False), fields)
    seen = task.batch([(epoch, row) for epoch in range(5) for row in range(10)])["images"][:, 0]
    assert (seen[..., -1] - seen[..., 0]).min() > 0.8 * 2, "of the whole range from -1 to 1"


def test_what_is_expected_is_what_is_read(data, tmp_path):
    task, examples = task_of(data, tmp_path, crop=0.3), [(0, i) for i in range(20)]
    plain = task.batch(examples)
    task.expect(examples)
    halves = [task.batch(examples[:10]), task.batch(examples[10:])]
    assert torch.equal(torch.cat([half["images"] for half in halves]), plain["images"])


def test_without_changes_training_sees_what_validation_sees(data, tmp_path):
    task = task_of(data, tmp_path, flip=False)
    batch, prepared = task.batch([(0, 5)]), task.preprocess(task.train_pictures.image(5))
    assert torch.allclose(batch["images"][0], prepared, atol=1e-6)


def test_grey_pictures_stay_grey(tmp_path):
    data = made(tmp_path / "grey.npz", channels=1)
    task = task_of(data, tmp_path, fields={**TINY, "channels": 1})
    assert task.batch([(0, 0)])["images"].shape == (1, 1, 12, 12)
    assert Preprocess.read(json.loads(task.model.assets[files.PREPROCESSOR])).mean == (0.5,)


def test_targets_are_smoothed_in_training_and_plain_in_validation(data, tmp_path):
    task = task_of(data, tmp_path, label_smoothing=0.3)
    batch = task.batch([(0, 0)])
    assert sorted(batch["targets"][0].tolist()) == pytest.approx([0.1, 0.1, 0.8])
    assert next(iter(task.valid()))["targets"].dtype == torch.long


def test_the_mask_of_training_is_drawn_anew_and_that_of_validation_is_not(data, tmp_path):
    task = task_of(data, tmp_path, PaintSettings)
    noise = [task.batch([(epoch, 2)])["noise"] for epoch in (0, 0, 1)]
    assert torch.equal(noise[0], noise[1])
    assert not torch.equal(noise[0], noise[2])
    a, b = (torch.cat([batch["noise"] for batch in task.valid()]) for _ in range(2))
    assert torch.equal(a, b)
    assert len({tuple(row.tolist()) for row in a}) == len(a), "another for every picture"


def test_knowing_nothing_costs_what_it_costs(data, tmp_path):
    """Of pixels: their variance. Of normalised patches: theirs."""
    for norm in (False, True):
        task = task_of(data, tmp_path, PaintSettings, {**TINY, "norm_pix_loss": norm})
        x = torch.stack([task.preprocess(task.train_pictures.image(i)) for i in range(task.rows)])
        target = x - x.mean((0, 2, 3), keepdim=True)
        if norm:
            x = x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(3)
            target = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-6).sqrt()
        assert task.trivial == pytest.approx(float(target.square().mean()), rel=1e-3)


def test_figures_count_the_first_and_the_first_five():
    scores = torch.eye(8) + torch.linspace(0, 0.5, 8)
    scores[0, 0] = -1.0
    found = class_figures(scores, torch.arange(8))
    assert (found["accuracy"], found["top5"]) == (7.0, 7.0)
    assert "top5" not in class_figures(scores[:, :5], torch.zeros(8, dtype=torch.long))


def test_stochastic_depth_leaves_out_rows_and_keeps_the_mean():
    torch.manual_seed(0)
    module, x = StochasticDepth(0.25), torch.ones(4000, 3, 2)
    out = module(x)
    assert {round(float(value), 5) for value in out.unique()} == {0.0, round(1 / 0.75, 5)}
    assert torch.equal(out[:, :1, :1].expand_as(out), out), "whole rows"
    assert float(out.mean()) == pytest.approx(1, abs=0.05)
    assert torch.equal(module.eval()(x), x)


def test_stochastic_depth_grows_with_the_block():
    model = sf.ViT(sf.ViTConfig(**{**TINY, "depth": 3}))
    set_stochastic_depth(model, 0.2)
    rates = [[m.rate for m in block.modules() if isinstance(m, StochasticDepth)] for block in model.blocks]
    assert rates == [[], [0.1], [0.2]]


@pytest.fixture(scope="module")
def pretrained(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("pretrained") / "run"
    trained("mae", data, out)
    return out / "model"


def test_the_encoder_of_an_autoencoder_is_fine_tuned(data, pretrained, tmp_path):
    run, _ = begun("vit", data, tmp_path / "run", source=pretrained)
    encoder, start = sf.load(pretrained), dict(run.task.model.named_parameters())
    assert torch.equal(start["blocks.1.mlp.up.weight"], encoder.blocks[1].mlp.up.weight)
    list(run)
    assert isinstance(sf.load(tmp_path / "run" / "model"), sf.ViT)
    saved = json.loads((tmp_path / "run" / "model" / "config.json").read_text(encoding="utf-8"))
    assert saved["model_type"] == "vit"
    assert "mask_ratio" not in saved


def test_a_linear_probe_moves_the_head_alone(data, pretrained, tmp_path):
    trained("vit", data, tmp_path / "run", source=pretrained, freeze=("encoder",))
    before, after = sf.ViT.from_pretrained(pretrained).state_dict(), weights(tmp_path / "run")
    moved = {name for name in after if name not in before or not torch.equal(before[name], after[name])}
    assert moved == {"head.out.weight", "head.out.bias"}


def test_positions_are_interpolated_for_another_size(data, pretrained, tmp_path):
    _, run = trained("vit", data, tmp_path / "run", source=pretrained, given={"image": "20"})
    assert run.task.batch([(0, 0)])["images"].shape[-2:] == (20, 20)
    assert sf.load(tmp_path / "run" / "model").config.image == 20
    assert sf.load_preprocess(tmp_path / "run" / "model").shape == (20, 20)


def test_a_head_that_knows_the_classes_goes_on(data, tmp_path):
    trained("vit", data, tmp_path / "first")
    run, said = begun("vit", data, tmp_path / "second", source=tmp_path / "first" / "model")
    assert any("goes on with it" in line for line in said)
    first = weights(tmp_path / "first")
    assert torch.equal(run.task.model.head.out.weight, first["head.out.weight"])


def test_another_way_to_pool_keeps_what_was_learnt(data, pretrained, tmp_path):
    _, run = trained("vit", data, tmp_path / "run", source=pretrained, given={"pool": "patches"})
    assert sf.load(tmp_path / "run" / "model").config.pool == "patches"
    with pytest.raises(ValueError, match="pool"):
        begun("vit", data, tmp_path / "other", source=pretrained, given={"pool": "mean"})
    assert run.task.model.config.pool == "patches"


@pytest.fixture
def folder(tmp_path):
    """Two classes of pictures, one of which is torn."""
    draw = np.random.RandomState(0)
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(10):
            image = Image.fromarray(draw.randint(0, 256, (16, 18, 3), dtype=np.uint8))
            image.save(tmp_path / "data" / name / f"{i}.jpg")
    torn = tmp_path / "data" / "cat" / "3.jpg"
    torn.write_bytes(torn.read_bytes()[:-200])
    return tmp_path / "data"


def test_a_torn_picture_ends_a_run_in_a_sentence(folder, tmp_path):
    with pytest.raises(ValueError, match=r"3\.jpg.*--skip-unreadable"):
        trained("vit", folder, tmp_path / "run", valid=made_folder(tmp_path))


def made_folder(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "valid" / name).mkdir(parents=True)
        Image.new("RGB", (20, 20), "red").save(tmp_path / "valid" / name / "a.png")
    return tmp_path / "valid"


def test_a_torn_picture_can_be_left_out(folder, tmp_path):
    (folder / "cat" / "text.jpg").write_text("no picture", encoding="utf-8")
    more = {"valid": made_folder(tmp_path), "given": {"skip_unreadable": "true", "flip": "false"}}
    run, said = begun("vit", folder, tmp_path / "run", **more)
    assert any("1 pictures could not be read" in line and "text.jpg" in line for line in said)
    samples = [record["sample"] for record in run if "sample" in record]
    assert "3.jpg" in samples[-1]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"given": {"image": "14"}}, "multiple of the patch"),
        ({"given": {"channels": "2"}}, "channels is 2"),
        ({"given": {"crop": "0"}}, "crop is 0"),
        ({"given": {"drop_path": "1"}}, "drop_path is 1"),
        ({"given": {"image": "big"}}, "image=big is no size"),
        ({"given": {"pool": "max"}}, "pool is 'max'"),
        ({"tokenizer": "bpe"}, "for texts"),
        ({"task": "classify"}, "vit has no task"),
        ({"data": None}, "nothing to train on"),
    ],
)
def test_bad_input_is_a_sentence(more, sentence, data, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        begun("vit", more.pop("data", data), tmp_path / "run", **more)
    assert not (tmp_path / "run").exists()


def test_classes_of_validation_must_be_known(data, tmp_path):
    other = made(tmp_path / "other.npz", classes=4)
    with pytest.raises(ValueError, match=r"'class 3' of the pictures is none of those to train on"):
        begun("vit", data, tmp_path / "run", valid=other)


def test_an_encoder_alone_cannot_learn_to_paint(pretrained, data, tmp_path):
    model = sf.load(pretrained)
    model.decoder = None
    model.save_pretrained(tmp_path / "encoder")
    with pytest.raises(ValueError, match="no decoder"):
        begun("mae", data, tmp_path / "run", source=tmp_path / "encoder")


def test_classes_are_learnt(tmp_path):
    data = made(tmp_path / "train.npz", 60)
    given = {"steps": "60", "batch": "30", "lr": "0.003", "eval_every": "60", "shift": "0"}
    trained("vit", data, tmp_path / "run", given=given)
    assert lines(tmp_path / "run")[-1]["valid_accuracy"] == 1.0


def test_pictures_of_the_data_keep_their_labels(data):
    pictures = read_pictures(data, labelled=True)
    means = [np.asarray(pictures.image(i)).mean() for i in range(6)]
    assert [int(mean // 80) for mean in means] == pictures.targets[:6]


def test_a_picture_in_the_place_of_a_torn_one_brings_its_own_label(tmp_path):
    """Row 1 is torn, and of another class than row 2, which is read instead."""
    for name, channel in (("a", 0), ("torn", 0), ("b", 2), ("c", 0)):
        pixels = np.random.RandomState(0).randint(0, 60, (40, 40, 3), dtype=np.uint8)
        pixels[..., channel] += 150
        Image.fromarray(pixels).save(tmp_path / f"{name}.jpg")
    torn = tmp_path / "torn.jpg"
    torn.write_bytes(torn.read_bytes()[:-60])
    text = "path,label\na.jpg,red\ntorn.jpg,red\nb.jpg,blue\nc.jpg,red\n"
    (tmp_path / "list.csv").write_text(text, encoding="utf-8")
    fields = {**TINY, "image": 12}
    how = settings(ClassSettings, skip_unreadable=True, flip=False)
    request = Request("vit", tmp_path / "run", tmp_path / "list.csv", tmp_path / "list.csv")
    task = prepare_classes(request, how, fields)[0]
    batch = task.batch([(0, 1)])
    (blue,) = batch["targets"].argmax(-1).tolist()
    assert task.model.head.labels[blue] == "blue"
    assert batch["images"][0, 2].mean() > batch["images"][0, 0].mean(), "and it is blue"
    assert sum(len(part["targets"]) for part in task.valid()) == 3, "of validation it is left out"
    assert "torn.jpg" in task.left_out()


def test_pictures_of_the_models_size_are_prepared_like_others(data, tmp_path, monkeypatch):
    """A checkpoint that resizes to more and cuts the middle out does so with every picture."""
    task = task_of(data, tmp_path, flip=False)
    task.preprocess = Preprocess(16, (12, 12), rescale=1 / 127.5, mean=(1.0,) * 3, std=(1.0,) * 3)
    expected = task.preprocess(task.train_pictures.image(5))
    assert torch.allclose(task.batch([(0, 5)])["images"][0], expected, atol=1e-6)


@pytest.mark.parametrize("ratio", ["0", "1", "2"])
def test_a_mask_that_hides_nothing_or_all_is_refused(ratio, data, tmp_path):
    with pytest.raises(ValueError, match="mask_ratio"):
        begun("mae", data, tmp_path / "run", given={"mask_ratio": ratio})


def test_an_autoencoder_without_readable_pictures_says_so(folder, tmp_path):
    for path in (folder / "cat").iterdir():
        path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="None of the training pictures"):
        begun("mae", folder / "cat", tmp_path / "run", valid=folder / "dog", given={"skip_unreadable": "true"})


@pytest.mark.unhooked  # which checks the types of fields itself
def test_a_config_that_is_no_truth_is_refused():
    with pytest.raises(ValueError, match="norm_pix_loss is 'yes'"):
        sf.MAEConfig(norm_pix_loss="yes")
