"""`page`: one file that needs torch and einops alone, with the numbers of the model it was made of."""

import ast
import os
import subprocess
import sys

import pytest
import reference
import torch

import scratchformers as sf
from scratchformers.cli import main
from scratchformers.insight.page import names, page

# What a page must not need: ours, and whatever we use besides torch and einops (numpy comes with torch's own import).
ALONE = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ImportError(name + " was asked for")

sys.meta_path.insert(0, Blocked())
import torch
import page

torch.set_num_threads(1)
given = torch.load("given.pt")
"""
RUN = """
model = page.GPT2(page.GPT2Config(**torch.load("config.pt"))).to(torch.float64).eval()
model.load_state_dict(torch.load("weights.pt"))
out = []
for dtype in (torch.float64, torch.float32):
    model.to(dtype)
    with torch.no_grad():
        ids, keep = given["ids"], given["keep"]
        for cache in (None, model.new_cache(2), model.new_cache(2, length=20)):
            out.append(model(ids, keep=keep, cache=cache))
            out.append(model(ids) if cache is None else model(ids[:, :1], cache=cache))
torch.save(out, "out.pt")
"""
RUN_PICTURES = """
out = []
for kind in ("ViT", "MAE"):
    for number, (config, weights) in enumerate(torch.load(f"{kind}.pt")):
        model = getattr(page, kind)(getattr(page, f"{kind}Config")(**config)).to(torch.float64).eval()
        model.load_state_dict(weights)
        for dtype in (torch.float64, torch.float32):
            model.to(dtype)
            images = given["images"].to(dtype)
            with torch.no_grad():
                out.append(model.encode(images))
                out += [model(images)] if kind == "ViT" else list(model(images, noise=given["noise"]))
torch.save(out, "out.pt")
"""
RUN_CLIP = """
out = []
for config, weights in torch.load("models.pt"):
    model = page.CLIP(page.CLIPConfig(**config)).to(torch.float64).eval()
    model.load_state_dict(weights)
    for dtype in (torch.float64, torch.float32):
        model.to(dtype)
        images, ids = given["images"].to(dtype), given["ids"]
        with torch.no_grad():
            out += [model.encode_image(images), model.encode_text(ids), model.encode_text(ids[:1]), model(images, ids)]
torch.manual_seed(0)
model = page.CLIP(page.PRESETS["tiny"])
out += [model.text.token.weight.detach(), model.image.blocks[1].mlp.down.weight.detach()]
torch.save(out, "out.pt")
"""
RUN_ENCODER_DECODER = """
out = []
for config, weights in torch.load("models.pt"):
    model = page.EncoderDecoder(page.EncoderDecoderConfig(**config)).to(torch.float64).eval()
    if "bias" in weights:
        model.bias = torch.nn.Parameter(weights["bias"])
    model.load_state_dict(weights)
    for dtype in (torch.float64, torch.float32):
        model.to(dtype)
        with torch.no_grad():
            source, target, keep, target_keep = given
            out += [model.encode(source, keep=keep), model(source, target, source_keep=keep, target_keep=target_keep)]
            read, cache = model.read(source, keep), model.new_cache(6)
            out += [model.step(target[:, i : i + 1].repeat_interleave(2, 0), None, cache, read) for i in range(3)]
torch.save(out, "out.pt")
"""
BLOCKED = {"scratchformers", "jaxtyping", "safetensors", "tokenizers", "huggingface_hub", "matplotlib", "tyro", "rich"}
BLOCKED |= {"PIL", "timm", "transformers", "torchvision", "open_clip", "regex", "ftfy", "sentencepiece", "sacrebleu"}


def ours(model, ids, keep):
    out = []
    for dtype in (torch.float64, torch.float32):
        model.to(dtype)
        with torch.no_grad():
            for cache in (None, model.new_cache(2), model.new_cache(2, length=20)):
                out.append(model(ids, keep=keep, cache=cache))
                out.append(model(ids) if cache is None else model(ids[:, :1], cache=cache))
    return out


@pytest.mark.unhooked
def test_the_page_has_the_models_numbers_and_needs_torch_and_einops_alone(published, tmp_path):
    model = sf.GPT2(sf.load(published[1]).config).double().eval()  # loaded, its matrices would lie otherwise
    model.load_state_dict(sf.load(published[1], dtype=torch.float64).state_dict())
    ids, keep = reference.ids(2, 11), torch.ones(2, 11, dtype=torch.bool)
    keep[1, :4] = False
    assert main(["page", "gpt2", "--out", str(tmp_path / "page.py")]) == 0
    torch.save(vars(model.config), tmp_path / "config.pt")
    torch.save({"ids": ids, "keep": keep}, tmp_path / "given.pt")
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    for found, expected in zip(run(RUN, tmp_path), ours(model, ids, keep), strict=True):
        assert torch.equal(found, expected)


def run(code, folder):
    """What a program says that has the page, and neither ours nor what ours needs."""
    code = ALONE.replace("{blocked}", repr(BLOCKED)) + code
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return torch.load(folder / "out.pt")


SMALL = {"image": (12, 20), "patch": 4, "dim": 20, "depth": 2, "heads": 5}
PAINTS = {**SMALL, "decoder_dim": 12, "decoder_depth": 1, "decoder_heads": 3}
PICTURES = {
    "vit": (sf.ViT, [sf.ViTConfig(**SMALL, classes=7, pool=pool) for pool in ("class", "mean", "patches")]),
    "mae": (sf.MAE, [sf.MAEConfig(**PAINTS, norm_pix_loss=each, class_token=each) for each in (False, True)]),
}


@pytest.mark.unhooked
@pytest.mark.parametrize("name", PICTURES)
def test_the_pages_of_pictures_have_the_models_numbers(tmp_path, name):
    (kind, configs), other = PICTURES[name], {"vit": "MAE", "mae": "ViT"}[name]
    torch.manual_seed(0)
    models = [kind(config).double().eval() for config in configs]
    for model in models:
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    images, noise = torch.randn(3, 3, 12, 20, dtype=torch.float64), torch.rand(3, 15)
    assert main(["page", name, "--out", str(tmp_path / "page.py")]) == 0
    torch.save([(vars(model.config), model.state_dict()) for model in models], tmp_path / f"{kind.__name__}.pt")
    torch.save([], tmp_path / f"{other}.pt")
    torch.save({"images": images, "noise": noise}, tmp_path / "given.pt")
    expected = []
    for model in models:
        for dtype in (torch.float64, torch.float32):
            given = images.to(dtype)
            model.to(dtype)
            with torch.no_grad():
                expected.append(model.encode(given))
                expected += [model(given)] if name == "vit" else list(model(given, noise=noise))
    for found, each in zip(run(RUN_PICTURES, tmp_path), expected, strict=True):
        assert torch.equal(found, each)


@pytest.mark.unhooked
def test_the_page_of_clip_has_the_models_numbers(tmp_path):
    sizes = {"image": (12, 20), "patch": 4, "image_dim": 20, "image_depth": 2, "image_heads": 5, "vocab": 31}
    sizes |= {"length": 9, "text_dim": 18, "text_depth": 2, "text_heads": 3, "dim": 11}
    configs = [sf.CLIPConfig(**sizes), sf.CLIPConfig(**sizes, activation="gelu", end=7, eps=1e-6, text_hidden=23)]
    ids = torch.randint(8, 30, (4, 9), generator=torch.Generator().manual_seed(1))
    for row, place in enumerate((2, 8, 5, 3)):
        ids[row, place], ids[row, place - 1] = (30, 7) if row % 2 else (7, 30)
    torch.manual_seed(0)
    models = [sf.CLIP(config).double().eval() for config in configs]
    for model in models:
        for name, parameter in model.named_parameters():
            if name != "scale":
                torch.nn.init.normal_(parameter, std=0.3)
    images = torch.randn(3, 3, 12, 20, dtype=torch.float64)
    assert main(["page", "clip", "--out", str(tmp_path / "page.py")]) == 0
    torch.save([(vars(model.config), model.state_dict()) for model in models], tmp_path / "models.pt")
    torch.save({"images": images, "ids": ids}, tmp_path / "given.pt")
    expected = []
    for model in models:
        for dtype in (torch.float64, torch.float32):
            given = images.to(dtype)
            model.to(dtype)
            with torch.no_grad():
                expected += [model.encode_image(given), model.encode_text(ids), model.encode_text(ids[:1])]
                expected.append(model(given, ids))
    torch.manual_seed(0)
    new = sf.CLIP.from_preset("tiny")
    expected += [new.text.token.weight, new.image.blocks[1].mlp.down.weight]
    for found, each in zip(run(RUN_CLIP, tmp_path), expected, strict=True):
        assert torch.equal(found, each)


@pytest.mark.unhooked
def test_the_page_of_the_encoder_decoder_has_the_models_numbers(tmp_path):
    sizes = {"vocab": 31, "length": 9, "dim": 20, "depth": 2, "heads": 5, "decoder_depth": 3, "decoder_hidden": 23}
    other = {"target_vocab": 29, "positions": "sinusoids", "pre_norm": False, "scale_embedding": True}
    torch.manual_seed(0)
    models = [sf.EncoderDecoder(sf.EncoderDecoderConfig(**sizes, **more)).double().eval() for more in ({}, other)]
    models[1].bias = torch.nn.Parameter(torch.zeros(29).double())
    for parameter in (each for model in models for each in model.parameters()):
        torch.nn.init.normal_(parameter, std=0.3)
    source, target = (torch.randint(29, (3, length)) for length in (7, 5))
    keep, target_keep = (torch.arange(n)[None] < torch.tensor([[1], [n], [3]]) for n in (7, 5))
    given = source, target, keep, target_keep
    assert main(["page", "encoder-decoder", "--out", str(tmp_path / "page.py")]) == 0
    torch.save([(vars(model.config), model.state_dict()) for model in models], tmp_path / "models.pt")
    torch.save(given, tmp_path / "given.pt")
    expected = []
    for model in models:
        for dtype in (torch.float64, torch.float32):
            model.to(dtype)
            with torch.no_grad():
                expected.append(model.encode(source, keep=keep))
                expected.append(model(source, target, source_keep=keep, target_keep=target_keep))
                read, cache = model.read(source, keep), model.new_cache(6)
                for i in range(3):
                    expected.append(model.step(target[:, i : i + 1].repeat_interleave(2, 0), None, cache, read))
    for found, each in zip(run(RUN_ENCODER_DECODER, tmp_path), expected, strict=True):
        assert torch.equal(found, each)
    text = page("encoder-decoder")
    assert 'model = EncoderDecoder(PRESETS["bart-base"]).eval()' in text
    assert "Set model.bias first" in text
    assert "model.start asks model.generation.start what to begin with." in text
    assert 'field.name == "positions"' in text
    assert 'field.name == "positions"' not in page("bert")
    left_out = ("activation_function", "embed_tokens", "def tell", "def half", "ROWS", "jaxtyping")
    assert not [word for word in left_out if word in text]
    assert len(text.splitlines()) < 700


def test_the_page_of_clip_has_its_sizes_and_leaves_out_its_files():
    text = page("clip")
    assert 'model = CLIP(PRESETS["ViT-S-32"]).eval()' in text
    assert '    "ViT-L/14@336px": {"patch": 14, "image": 336, **_LARGE},' in text
    assert 'SIZES |= OPENAI | {"tiny": _TINY}' in text
    assert "def encode_image(self, images):  # images (b, c, y, x) -> (b, d)" in text
    left_out = ("hidden_act", "vision_model", "resblocks", "Tokenizer", "def sizes", "def resize", "dict[str", "Row")
    assert not [word for word in left_out if word in text]
    assert len(text.splitlines()) < 450


@pytest.mark.unhooked
def test_a_page_is_the_same_in_every_process():
    """Names are gathered from sets, whose order changes."""
    code = "from scratchformers.insight.page import page; print(page('clip') + page('mae'), end='')"
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONIOENCODING": "utf-8"},
            check=True, capture_output=True, text=True, encoding="utf-8",
        )  # fmt: skip
        assert done.stdout == page("clip") + page("mae")


def test_pages_of_pictures_leave_out_their_files_and_other_models_checks():
    for name in PICTURES:
        text = page(name)
        assert "# --- grid.py" in text
        left_out = ("grid.initialise", "vision", "ROWS", "def resize", "Preprocess", "Tensors")
        assert not [word for word in left_out if word in text]
        assert 'field.name == "image"' in text
    assert 'model = ViT(PRESETS["tiny"]).eval()' in page("vit")
    assert 'model = MAE(PRESETS["base"]).eval()' in page("mae")
    assert "    loss: Tensor  # mean squared error over what was hidden" in page("mae")
    assert "def encode(self, images, *, shown=None):  # images (b, c, y, x), shown (b, s) -> (b, t, d)" in page("mae")
    for name in ("gpt2", "bert"):
        assert "grid" not in page(name)
        assert 'field.name == "image"' not in page(name)
    assert 'field.name == "eps"' in page("bert")


def test_two_meanings_of_a_name_are_noticed(tmp_path, monkeypatch):
    """`grid.take` becomes `take`, which must not be a variable there."""
    from scratchformers.insight import page as module

    for path in module.ROOT.rglob("*.py"):
        copy = tmp_path / "scratchformers" / path.relative_to(module.ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text(encoding="utf-8").replace("grid.draw_noise(", "grid.noise("), "utf-8")
    monkeypatch.setattr(module, "ROOT", tmp_path / "scratchformers")
    with pytest.raises(AssertionError, match="of another file is a variable here"):
        page("mae")


@pytest.mark.unhooked
@pytest.mark.parametrize("name", names())
def test_a_page_is_clean(name, tmp_path):
    """Formatted, nothing imported or defined for nothing, no trace of what was taken out."""
    path = tmp_path / f"{name}.py"
    path.write_text(page(name), encoding="utf-8")
    for command in (["format", "--check"], ["check", "--select", "E,F,I"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--isolated", "--line-length", "120", str(path)]
        done = subprocess.run(ruff, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    tree = ast.parse(path.read_text(encoding="utf-8"))
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert len(defined - used) == 1, "only the model itself is used by nothing"
    code = ast.unparse(tree)
    assert not [word for word in ("jaxtyping", "Pretrained", "layouts", "scratchformers.nn") if word in code]
    annotated = [n for n in ast.walk(tree) if isinstance(n, ast.arg) and n.annotation]
    assert not annotated


def test_a_page_is_readable():
    text = page("gpt2")
    assert '"""softmax(q k\' / sqrt(e)) v (Vaswani' in text
    assert "def attend(q, k, v, mask=None, dropout=0.0):  # q (_, h, t, e), k (b, h, s, e), v (b, h, s, e)" in text
    assert "# Axes: b batch, t queries (target)" in text
    assert "\n\n\n\n" not in text
    assert len(text.splitlines()) < 500


def test_the_page_follows_its_bricks(tmp_path, monkeypatch):
    """It is made anew of the source each time, nothing is kept beside it."""
    from scratchformers.insight import page as module

    for path in module.ROOT.rglob("*.py"):
        copy = tmp_path / "scratchformers" / path.relative_to(module.ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text(encoding="utf-8").replace('approximate="tanh"', 'approximate="none"'), "utf-8")
    before = page("gpt2")
    monkeypatch.setattr(module, "ROOT", tmp_path / "scratchformers")
    after = page("gpt2")
    assert 'approximate="tanh"' in before
    assert after == before.replace('approximate="tanh"', 'approximate="none"')


def test_bad_input(tmp_path, capsys):
    with pytest.raises(
        ValueError, match="There is no model 'gpt5': expected one of bert, clip, encoder-decoder, gpt2, mae, vit"
    ):
        page("gpt5")
    assert main(["page", "gpt2", "--out", str(tmp_path / "missing" / "page.py")]) == 2
    assert "missing" in capsys.readouterr().err
    assert main(["page", "gpt2"]) == 0
    assert capsys.readouterr().out == page("gpt2")
