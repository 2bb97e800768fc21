"""Blocks that compute their activations twice, and models that are compiled, learn what the plain ones learn."""

import copy
import os
import shutil
import subprocess
import sys

import pytest
import torch
from test_cli import run as program
from test_training import data, losses, run_all  # noqa: F401 (a fixture)
from torch.nn.attention import SDPBackend, sdpa_kernel

import scratchformers as sf
from scratchformers.insight.plan import Alive
from scratchformers.training import checkpointing, compiling, loop
from scratchformers.training.checkpointing import checkpoint_blocks
from scratchformers.training.compiling import Compiled
from scratchformers.training.vision import set_stochastic_depth

ROWS, LENGTH, VOCAB = 3, 7, 13
PICTURE = {"image": 12, "patch": 4, "channels": 1}
BLOCKS = {"gpt2": 3, "bert": 3, "vit": 3, "mae": 5, "clip": 5, "encoder-decoder": 5}


def ids():
    found = torch.randint(1, VOCAB - 1, (ROWS, LENGTH), generator=torch.Generator().manual_seed(3))
    found[:, -1] = found[0, 3] = VOCAB - 1
    return found


def keep():
    lengths = torch.tensor([LENGTH, 4, 2])
    return torch.arange(LENGTH) < lengths[:, None]


def images():
    return torch.randn(ROWS, 1, 12, 12, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def noise():
    return torch.rand(ROWS, 9, generator=torch.Generator().manual_seed(5))


def made(name, dropout):
    """A model in float64, and its loss."""
    sizes = {"dim": 12, "depth": 3, "heads": 2}
    text = {"vocab": VOCAB, "length": LENGTH, "dropout": dropout, **sizes}
    torch.manual_seed(0)
    if name == "gpt2":
        model = sf.GPT2(sf.GPT2Config(**text))
    elif name == "bert":
        model = sf.BERT(sf.BERTConfig(**text))
    elif name == "vit":
        model = sf.ViT(sf.ViTConfig(**PICTURE, **sizes, classes=5, dropout=dropout))
        set_stochastic_depth(model, dropout)
    elif name == "mae":
        model = sf.MAE(sf.MAEConfig(**PICTURE, **sizes, decoder_dim=8, decoder_depth=2, decoder_heads=2))
    elif name == "clip":
        towers = {"image_dim": 12, "image_depth": 3, "image_heads": 2, "text_dim": 8, "text_depth": 2, "text_heads": 2}
        model = sf.CLIP(sf.CLIPConfig(**PICTURE, **towers, vocab=VOCAB, length=LENGTH, dim=6, end=VOCAB - 1))
    else:
        model = sf.EncoderDecoder(sf.EncoderDecoderConfig(**text, decoder_depth=2))
    return model.double().train()


def scores(name, model):
    """What its task asks of it, of rows of unequal length."""
    if name == "vit":
        return model(images())
    if name == "mae":
        return model(images(), noise=noise()).loss
    if name == "clip":
        return model.encode_image(images()) @ model.encode_text(ids()).T
    if name == "bert":
        return model.head(model.encode(ids(), keep=keep())[keep()][None])
    if name == "encoder-decoder":
        return model.score(model.decode(ids(), model.read(ids(), keep()), keep=keep()))
    return model(ids(), keep=keep())


def gradients(name, model):
    """The loss and the gradients, of one draw of all that is random."""
    torch.manual_seed(7)
    loss = scores(name, model).square().mean()
    loss.backward()
    return loss, {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


def held(name, model):
    """Bytes that are alive only because a backward may come."""
    with Alive() as alive:
        scores(name, model)  # what torch makes once, and keeps
        before = alive.now
        found = scores(name, model)
    return alive.now - before - found.nbytes


# --- checkpointing


@pytest.mark.parametrize("name", BLOCKS)
def test_gradients_are_equal_bit_for_bit_with_dropout(name):
    plain = made(name, 0.3)
    model = copy.deepcopy(plain)
    assert checkpoint_blocks(model) == BLOCKS[name]
    (loss, expected), (ours, found) = gradients(name, plain), gradients(name, model)
    assert torch.equal(loss, ours)
    assert found.keys() == expected.keys()
    for parameter, grad in expected.items():
        assert grad is None or torch.equal(found[parameter], grad), parameter


@pytest.mark.parametrize("name", BLOCKS)
def test_less_is_held(name):
    model = made(name, 0.0)
    before = held(name, model)
    checkpoint_blocks(model)
    assert held(name, model) < 0.45 * before


@pytest.mark.parametrize("name", BLOCKS)
def test_the_names_of_the_state_stay(name):
    model = made(name, 0.0)
    names = list(model.state_dict())
    checkpoint_blocks(model)
    assert list(model.state_dict()) == names
    assert type(copy.deepcopy(model)) is type(model)


def test_without_gradients_nothing_is_checkpointed(monkeypatch):
    model, calls = made("gpt2", 0.0), []
    checkpoint_blocks(model)
    real = checkpointing.checkpoint
    monkeypatch.setattr(checkpointing, "checkpoint", lambda *a, **k: calls.append(1) or real(*a, **k))
    with torch.no_grad():
        scores("gpt2", model)
    assert calls == []
    scores("gpt2", model)
    assert len(calls) == 3


def test_the_second_time_attention_has_the_kernel_of_the_first(monkeypatch):
    """A picture task chooses it around the forward alone."""
    used, real = [], torch.nn.functional.scaled_dot_product_attention

    def attention(*given, **named):
        used.append(torch.backends.cuda.flash_sdp_enabled())
        return real(*given, **named)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
    model = made("vit", 0.0)
    checkpoint_blocks(model)
    with sdpa_kernel(SDPBackend.MATH):
        loss = scores("vit", model).sum()
    assert torch.backends.cuda.flash_sdp_enabled()
    loss.backward()
    assert used == [False] * 6


def test_a_run_with_checkpointing_has_the_losses_of_one_without(data, tmp_path):  # noqa: F811
    for name, given in (("plain", {}), ("ours", {"checkpointing": "true"})):
        run_all(data, tmp_path / name, dropout=0.2, depth=2, **given)
    assert losses(tmp_path / "ours") == losses(tmp_path / "plain")


def test_the_setting_wraps_the_blocks(data, tmp_path, monkeypatch):  # noqa: F811
    wrapped = []
    monkeypatch.setattr(loop, "checkpoint_blocks", lambda model: wrapped.append(type(model)))
    run_all(data, tmp_path / "plain", steps=1)
    assert wrapped == []
    run_all(data, tmp_path / "ours", steps=1, checkpointing="true")
    assert wrapped == [sf.GPT2]


# --- compiling


@pytest.fixture
def eager(monkeypatch):
    """What compiles without a compiler, and what it was given."""
    from torch._dynamo.backends.debugging import aot_eager

    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return aot_eager(graph, inputs)

    torch._dynamo.reset()
    monkeypatch.setattr(compiling, "BACKEND", backend)
    return graphs


@pytest.mark.unhooked
@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("name", BLOCKS)
def test_a_compiled_model_learns_alike(name, checkpointed, eager):
    plain = made(name, 0.0)
    model = copy.deepcopy(plain)
    if checkpointed:
        checkpoint_blocks(model)
    compiled, names = Compiled(model), list(model.state_dict())
    (loss, expected), (ours, found) = gradients(name, plain), gradients(name, model)
    assert compiled.news() == {}
    assert eager, "something was compiled"
    assert list(model.state_dict()) == names == list(plain.state_dict())
    torch.testing.assert_close(ours, loss, rtol=0, atol=1e-10)
    for parameter, grad in expected.items():
        if grad is not None:
            torch.testing.assert_close(found[parameter], grad, rtol=0, atol=1e-10)


@pytest.mark.unhooked
def test_without_gradients_nothing_is_compiled(eager):
    model = made("gpt2", 0.0)
    Compiled(model)
    with torch.no_grad():
        scores("gpt2", model)
    assert eager == []


@pytest.mark.unhooked
def test_a_compiled_run_has_the_losses_of_one_that_is_not_and_is_saved_alike(data, tmp_path, eager):  # noqa: F811
    for name, given in (("plain", {}), ("ours", {"compile": "true"})):
        run_all(data, tmp_path / name, **given)
    ours, plain = (dict(losses(tmp_path / name)) for name in ("ours", "plain"))
    assert eager
    assert ours == pytest.approx(plain, rel=0, abs=1e-5)
    saved = [sf.load(tmp_path / name / "model").state_dict() for name in ("ours", "plain")]
    assert saved[0].keys() == saved[1].keys()


@pytest.mark.unhooked
def test_where_nothing_compiles_the_run_says_why_and_goes_on(data, tmp_path, capsys, monkeypatch):  # noqa: F811
    calls = []

    def backend(graph, inputs):
        calls.append(graph)
        raise RuntimeError("No C++ compiler was found.\nTry this or that.")

    torch._dynamo.reset()
    monkeypatch.setattr(compiling, "BACKEND", backend)
    given = ["steps=3", "batch=4", "length=16", "dim=16", "depth=1", "heads=2", "threads=1", "dropout=0.2"]
    settings = [part for each in given for part in ("--set", each)]
    plain = program(capsys, "train", "gpt2", "--data", data, "--out", tmp_path / "plain", *settings)
    ours = program(
        capsys, "train", "gpt2", "--data", data, "--out", tmp_path / "ours", *settings, "--set", "compile=true"
    )
    said = "torch.compile does not work here (No C++ compiler was found): training goes on uncompiled."
    assert (plain[0], ours[0]) == (0, 0)
    assert ours[1].count(said) == 1
    assert said not in plain[1]
    assert losses(tmp_path / "ours") == losses(tmp_path / "plain"), "what failed has drawn nothing"
    assert len(calls) == 1, "it is not tried again"


@pytest.mark.unhooked
@pytest.mark.parametrize("missing", [False, True])
def test_torchs_own_compiler_or_the_reason_why_not(data, tmp_path, missing):  # noqa: F811
    """What writes C++, where there is a compiler for it, and where there is none: nothing here is pretended."""
    there = not missing and any(map(shutil.which, ("g++", "c++", "clang++")))
    environment = dict(os.environ, TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"), TORCHINDUCTOR_COMPILE_THREADS="1")
    environment |= {"CXX": str(tmp_path / "nowhere")} if missing else {}
    given = ["steps=3", "batch=4", "length=16", "dim=16", "depth=1", "heads=2", "threads=1", "dropout=0"]
    for name in ("plain", "ours"):
        command = [sys.executable, "-m", "scratchformers", "train", "gpt2", "--data", data, "--out", tmp_path / name]
        command += [part for each in given for part in ("--set", each)]
        more = ["--set", "compile=true"] if name == "ours" else []
        said = subprocess.run([*command, *more], capture_output=True, text=True, env=environment, check=False)
        assert said.returncode == 0, said.stderr
    assert dict(losses(tmp_path / "ours")) == pytest.approx(dict(losses(tmp_path / "plain")), rel=0, abs=1e-5)
    assert ("torch.compile does not work here (" in said.stdout) == (not there), said.stdout
    assert any((tmp_path / "cache").rglob("*.so")) == there, "kernels were compiled"


@pytest.mark.unhooked
def test_a_mistake_of_the_caller_is_said_as_ever(eager):
    model = made("gpt2", 0.0)
    Compiled(model)
    with pytest.raises(ValueError, match="positions"):
        model(torch.zeros(1, LENGTH + 1, dtype=torch.long))


def test_a_reason_is_a_line():
    error = ValueError("wrapped")
    error.__cause__ = RuntimeError("there is no compiler.\nmore")
    assert compiling._reason(error) == "there is no compiler"
    assert compiling._reason(KeyError()) == "KeyError"
