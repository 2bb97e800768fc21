"""Muon: beside its definition written out, beside torch's own, and within a run."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from test_cli import refused
from test_training import SMALL, data, losses  # noqa: F401 (a fixture)
from torch import nn

import scratchformers as sf
from scratchformers.training.loop import Settings, make_optimizer
from scratchformers.training.muon import Muon, matrices, orthogonal
from scratchformers.training.request import Request
from scratchformers.training.runs import open_run

MUON = Settings(optimizer="muon", lr=0.01, weight_decay=0.3)


def gpt2():
    torch.manual_seed(0)
    return sf.GPT2(sf.GPT2Config(vocab=11, length=9, dim=8, depth=2, heads=2, hidden=13)).double()


def learn(model, optimizer, *, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    optimizer.step()


def plain(matrix, grad, momentum, *, lr, weight_decay):
    """One step, as Jordan et al. and Liu et al. write it, a matrix at a time."""
    momentum = 0.95 * momentum + 0.05 * grad
    x = 0.05 * grad + 0.95 * momentum
    rows, columns = x.shape
    x = x.T if rows > columns else x
    x = x / torch.sqrt((x**2).sum())
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x - 4.7750 * square @ x + 2.0315 * square @ square @ x
    x = x.T if rows > columns else x
    return matrix - lr * weight_decay * matrix - lr * 0.2 * math.sqrt(max(rows, columns)) * x, momentum


def test_a_step_is_its_definition_and_adamws_for_the_rest():
    model, other = gpt2(), gpt2()
    optimizer, adamw = make_optimizer(model, MUON), make_optimizer(other, Settings(lr=0.01, weight_decay=0.3))
    names, before = matrices(model), dict(gpt2().named_parameters())
    expected = {name: before[name].detach().clone() for name in names}
    momenta = {name: torch.zeros_like(value) for name, value in expected.items()}
    for seed in range(3):
        learn(model, optimizer, seed=seed)
        learn(other, adamw, seed=seed)
        for name, parameter in model.named_parameters():
            if name in names:
                halves = [slice(0, 8), slice(8, 16)] if name.endswith("kv.weight") else [slice(None)]
                for half in halves:
                    expected[name][half], momenta[name][half] = plain(
                        expected[name][half], parameter.grad[half], momenta[name][half], lr=0.01, weight_decay=0.3
                    )
    rest = dict(other.named_parameters())
    for name, parameter in model.named_parameters():
        wanted = expected[name] if name in names else rest[name]
        torch.testing.assert_close(parameter.detach(), wanted.detach(), rtol=0, atol=1e-12)
        assert set(optimizer.state[parameter]) == ({"momentum"} if name in names else {"step", "exp_avg", "exp_avg_sq"})


def test_it_is_for_the_matrices_of_all_blocks():
    parts = {"q": 1, "kv": 2, "out": 1, "up": 1, "down": 1}
    found = matrices(gpt2())
    assert found == {
        f"blocks.{i}.{part}.{name}.weight": parts[name]
        for i in range(2)
        for part, names in (("attention", ("q", "kv", "out")), ("mlp", ("up", "down")))
        for name in names
    }
    sizes = {"dim": 8, "depth": 1, "heads": 2}
    two = matrices(sf.EncoderDecoder(sf.EncoderDecoderConfig(vocab=11, length=9, **sizes)))
    assert len(two) == 5 + 8
    assert two["decoder.blocks.0.cross.kv.weight"] == 2
    assert not matrices(nn.Sequential(nn.Linear(2, 2)))


@pytest.mark.parametrize("shape", [(1, 31, 31), (1, 13, 41), (1, 41, 13), (2, 17, 29)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_it_moves_by_is_nearly_orthogonal(shape, dtype):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
    u, s, v = torch.linalg.svd(x, full_matrices=False)
    x = u * torch.linspace(1, 0.1, s.shape[-1], dtype=dtype) @ v
    found = orthogonal(x)
    assert found.dtype == dtype
    values = torch.linalg.svdvals(found)
    assert 0.6 < values.min() < values.max() < 1.3
    # The directions are the matrix's own.
    own = u.mT @ found @ v.mT
    off = own - torch.diag_embed(own.diagonal(dim1=-2, dim2=-1))
    assert off.abs().max() < (1e-10 if dtype == torch.float64 else 1e-4)


def test_a_gradient_of_zero_moves_nothing():
    assert torch.equal(orthogonal(torch.zeros(2, 3, 5)), torch.zeros(2, 3, 5))


@pytest.mark.parametrize("shape", [(24, 24), (12, 48), (48, 12)])
def test_it_is_torchs_own_where_that_is_exact_enough(shape):
    """torch's multiplies in bfloat16."""
    torch.manual_seed(3)
    ours, theirs = (nn.Parameter(torch.ones(shape)) for _ in range(2))
    own = Muon([{"params": [ours], "weight_decay": 0.1, "parts": 1}], lr=0.02, betas=(0.9, 0.99), fused=True)
    torchs = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        own.step()
        torchs.step()
        moved = 1 - ours.detach(), 1 - theirs.detach()
        assert (moved[0] - moved[1]).norm() / moved[1].norm() < 0.02
    torch.testing.assert_close(own.state[ours]["momentum"], torchs.state[theirs]["momentum_buffer"])


def test_its_moves_are_as_large_as_adamws():
    """Root mean square 0.2 times the rate, whatever the shape."""
    model = gpt2()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    learn(model, make_optimizer(model, Settings(optimizer="muon", lr=0.01, weight_decay=0.0)), seed=0)
    for name, parameter in model.named_parameters():
        if name in matrices(model):
            moved = (parameter.detach() - before[name]).square().mean().sqrt()
            assert 0.6 * 0.002 < moved < 1.2 * 0.002, name


def test_a_frozen_matrix_stays_and_the_scaler_leaves_out_whole_steps():
    model = gpt2()
    model.blocks[0].requires_grad_(False)
    before = model.blocks[0].mlp.up.weight.detach().clone()
    optimizer = make_optimizer(model, MUON)
    learn(model, optimizer, seed=0)
    assert torch.equal(before, model.blocks[0].mlp.up.weight)
    assert not optimizer._step_supports_amp_scaling


def test_matrices_are_needed():
    with pytest.raises(ValueError, match=r"optimizer is muon, and no matrix within a block learns whole"):
        make_optimizer(nn.Linear(2, 2), Settings(optimizer="muon"))


# --- within a run


def request(data, out, **given):  # noqa: F811
    settings = {**SMALL, "optimizer": "muon", **{name: str(value) for name, value in given.items()}}
    return Request("gpt2", out, data, given=settings)


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_resumed_run_is_the_uninterrupted_one(data, tmp_path, stop):  # noqa: F811
    list(open_run(request(data, tmp_path / "whole"))[0])
    for record in open_run(request(data, tmp_path / "cut"))[0]:
        if record["step"] > stop:
            break
    list(open_run(Request("gpt2", tmp_path / "cut"), resume=True)[0])
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    a, b = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    (file,) = (tmp_path / "cut" / "checkpoints" / "step-6").glob("*.safetensors")
    kept = load_file(file)
    assert "optimizer.blocks.0.attention.kv.weight.momentum" in kept
    assert "optimizer.token.weight.exp_avg" in kept


def test_it_learns_otherwise_than_adamw_and_an_older_run_is_adamws(data, tmp_path):  # noqa: F811
    for name in ("muon", "adamw"):
        list(open_run(request(data, tmp_path / name, optimizer=name))[0])
    assert losses(tmp_path / "muon")[0] == losses(tmp_path / "adamw")[0]
    assert losses(tmp_path / "muon")[-1] != losses(tmp_path / "adamw")[-1]
    path = tmp_path / "adamw" / "config.json"
    said = json.loads(path.read_text("utf-8"))
    del said["settings"]["optimizer"], said["lora"]
    path.write_text(json.dumps(said), encoding="utf-8")
    run, notes = open_run(Request("gpt2", tmp_path / "adamw"), resume=True)
    assert (run.settings.optimizer, run.finished) == ("adamw", True), notes


def test_another_name_is_refused(capsys, data, tmp_path):  # noqa: F811
    given = ("train", "gpt2", "--data", data, "--out", tmp_path / "run", "--set", "optimizer=sgd")
    assert "optimizer is 'sgd': expected adamw or muon" in refused(capsys, *given)
