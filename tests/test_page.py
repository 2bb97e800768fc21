"""`page`: one file that needs torch and einops alone, with the numbers of the model it was made of."""

import ast
import subprocess
import sys

import pytest
import reference
import torch

import scratchformers as sf
from scratchformers.cli import main
from scratchformers.insight.page import names, page

# What a page must not need: ours, and whatever we use besides torch and einops (numpy comes with torch's own import).
RUN = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ImportError(name + " was asked for")

sys.meta_path.insert(0, Blocked())
import torch
import page

torch.set_num_threads(1)
model = page.GPT2(page.GPT2Config(**torch.load("config.pt"))).to(torch.float64).eval()
given = torch.load("given.pt")
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
BLOCKED = {"scratchformers", "jaxtyping", "safetensors", "tokenizers", "huggingface_hub", "matplotlib", "tyro", "rich"}


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
    code = RUN.replace("{blocked}", repr(BLOCKED))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for found, expected in zip(torch.load(tmp_path / "out.pt"), ours(model, ids, keep), strict=True):
        assert torch.equal(found, expected)


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
    assert "def attend(q, k, v, mask=None, dropout=0.0):  # q (b, h, t, e), k (b, h, s, e), v (b, h, s, e)" in text
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
    with pytest.raises(ValueError, match="There is no model 'gpt5': expected one of bert, gpt2"):
        page("gpt5")
    assert main(["page", "gpt2", "--out", str(tmp_path / "missing" / "page.py")]) == 2
    assert "missing" in capsys.readouterr().err
    assert main(["page", "gpt2"]) == 0
    assert capsys.readouterr().out == page("gpt2")
