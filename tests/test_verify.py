"""`verify` proves a checkpoint, and is itself proven: every planted bug makes it fail and name the place."""

import ast
import dataclasses
import hashlib
import importlib
import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest
import reference
import test_mutants
import torch
from safetensors.torch import load_file, save_file
from test_mutants import MUTANTS
from test_text import FROZEN

import scratchformers as sf
from scratchformers import cache
from scratchformers.cli import main
from scratchformers.insight import verify as module
from scratchformers.insight.verify import TOLERANCES, read_frozen, verify
from scratchformers.text import characters, train_bpe

FREEZE = Path(__file__).parent / "freeze" / "verify.py"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """transformers' own, in float32, with a tokeniser; and what --freeze wrote of it."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = train_bpe(["It's a checkpoint that somebody published, isn't it? " * 9], vocab=290)
    theirs = reference.scrambled(vocab_size=tokenizer.vocab, n_layer=4, n_embd=30, n_head=3, std=0.1).float()
    theirs.save_pretrained(folder / "good")
    for name, content in tokenizer.files.items():
        (folder / "good" / name).write_bytes(content)
    verify(folder / "good", freeze=folder / "frozen.safetensors")
    return folder


@pytest.fixture
def copy(checkpoint, tmp_path):
    """A folder to tamper with."""
    shutil.copytree(checkpoint / "good", tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def alone(monkeypatch):
    """transformers is not installed."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "transformers" else find(name, *a)
    )


def test_a_good_checkpoint_passes_in_both_precisions(checkpoint):
    report = verify(checkpoint / "good")
    assert report.passes
    assert report.diverges is None
    names = ["dropout", *(f"blocks.{i}" for i in range(4)), "norm", "output"]
    assert [place.ours for place in report.places[:7]] == names
    assert {place.ours for place in report.places[7:]} == {"without padding", "with a cache", "with a static cache"}
    for place in report.places:
        assert place.largest["float64"] <= 1e-10 * max(1, place.scale)
        assert place.mean["float32"] <= place.largest["float32"] <= 1e-4 * max(1, place.scale)
    assert report.agreement == {"float64": 1.0, "float32": 1.0}
    assert report.tokenizer.startswith("16 of 16")
    assert report.versions.keys() == {"torch", "transformers"}
    frozen = verify(checkpoint / "good", against=checkpoint / "frozen.safetensors")
    assert frozen.passes
    assert frozen.tokenizer == report.tokenizer
    assert frozen.versions.keys() == {"torch"}, "of the transformers that is not asked, the file tells"
    assert report.caveat
    assert not frozen.caveat


FIRST = {  # where a bug must first be seen
    "erf GELU for the tanh one": "blocks.0",
    "another eps": "blocks.0",
    "no causal mask": "blocks.0",
    "heads inside out": "blocks.0",
    "swapped norms": "blocks.0",
    "a lost bias": "blocks.0",
    "no final norm": "norm",
    "another head": "output",
    "positions that ignore padding": "dropout",
    "positions from one": "dropout",
    "rows without padding in another order": "without padding",
    "rows without padding that see each other": "without padding",
    "rows without padding that see the future": "without padding",
}


@pytest.mark.unhooked  # planted functions need not have the shapes we promise
@pytest.mark.parametrize("way", ["beside", "against", "shipped"])
@pytest.mark.parametrize("name", MUTANTS)
def test_a_bug_in_the_code_is_caught(checkpoint, monkeypatch, request, name, way):
    if way == "shipped":
        request.getfixturevalue("alone")
    MUTANTS[name](monkeypatch)
    frozen = {"against": checkpoint / "frozen.safetensors"} if way == "against" else {}
    report = verify(checkpoint / "good", **frozen)
    assert not report.passes
    assert report.diverges == FIRST.get(name, report.diverges)
    assert report.diverges is not None


@pytest.mark.unhooked
@pytest.mark.parametrize("plant", [test_mutants.cache_forgets, test_mutants.cache_swaps_keys_and_values])
def test_a_bug_in_the_cache_is_caught(checkpoint, monkeypatch, plant):
    plant(monkeypatch)
    assert verify(checkpoint / "good").diverges == "with a cache"


@pytest.mark.unhooked
def test_a_bug_in_the_static_cache_is_caught(checkpoint, monkeypatch):
    monkeypatch.setattr(cache.StaticLayer, "_write", lambda self, buffer, new: buffer)
    assert verify(checkpoint / "good").diverges == "with a static cache"


# --- tampered checkpoints, against what was frozen of the good one


def swapped_norms(state):
    for part in ("weight", "bias"):
        a, b = f"transformer.h.3.ln_1.{part}", f"transformer.h.3.ln_2.{part}"
        state[a], state[b] = state[b], state[a]


def lost_bias(state):
    state["transformer.h.1.mlp.c_proj.bias"] = torch.zeros_like(state["transformer.h.1.mlp.c_proj.bias"])


def turned(state):
    state["transformer.h.2.attn.c_proj.weight"] = state["transformer.h.2.attn.c_proj.weight"].T.contiguous()


def one_number(state):
    state["transformer.h.2.mlp.c_fc.weight"][3, 5] += 1e-3


def another_norm(state):
    state["transformer.ln_f.weight"] = state["transformer.ln_f.weight"] + 1e-3


def not_a_number(state):
    state["transformer.h.1.ln_1.weight"][0] = torch.nan


TAMPERED = [
    (swapped_norms, "blocks.3"), (lost_bias, "blocks.1"), (turned, "blocks.2"), (one_number, "blocks.2"),
    (another_norm, "norm"), (not_a_number, "blocks.1"),
]  # fmt: skip


@pytest.mark.parametrize(("tamper", "place"), TAMPERED, ids=[tamper.__name__ for tamper, _ in TAMPERED])
def test_a_tampered_weight_is_caught(checkpoint, copy, tamper, place, capsys):
    state = load_file(copy / "model.safetensors")
    tamper(state)
    save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
    assert main(["verify", str(copy), "--against", str(checkpoint / "frozen.safetensors")]) == 1
    said = capsys.readouterr().out
    assert "The weights are not those that were frozen." in said
    assert f"They do NOT agree. The first place that differs is {place}." in said


def test_a_weight_that_is_no_number_is_caught_where_no_input_reaches(copy):
    state = load_file(copy / "model.safetensors")
    state["transformer.wte.weight"][0, 0] = torch.inf
    save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
    assert verify(copy).problems[0] == "The checkpoint's weights are not all finite numbers: token.weight."


def test_heads_of_published_weights_are_caught(copy, monkeypatch):
    """Which the digest of the weights tells, without anything frozen."""
    known, preset = module.REFERENCES["GPT2"], sf.load(copy).config
    weights = (copy / "model.safetensors").read_bytes()
    digest = (len(weights), hashlib.sha256(weights).hexdigest())
    published = dataclasses.replace(known, published={"small": digest})
    monkeypatch.setitem(module.REFERENCES, "GPT2", published)
    monkeypatch.setitem(sf.GPT2.presets, "small", preset)
    report = verify(copy)
    assert (report.passes, report.published, report.caveat) == (True, "small", "")
    change_config(copy, resid_pdrop=0.3, n_inner=4 * preset.dim)
    assert verify(copy).passes, "neither changes what is computed"
    change_config(copy, n_head=5)
    said = "The config is not the one these weights were published with: heads was 3 and is 5."
    assert verify(copy).problems == [said]


BERTS = {"base": "bert-base-uncased", "base-cased": "bert-base-cased", "large": "bert-large-uncased"}
BERTS |= {"tiny": "bert_uncased_L-2_H-128_A-2", "minilm": "all-MiniLM-L6-v2"}


def test_digests_are_those_of_the_manifests():
    for kind, named in ((sf.GPT2, {}), (sf.BERT, {name: f"bert/{file}" for name, file in BERTS.items()})):
        for name, (size, digest) in module.REFERENCES[kind.__name__].published.items():
            path = Path(__file__).parent / "manifests" / f"{named.get(name, name)}.json"
            file = json.loads(path.read_text(encoding="utf-8"))["files"]["model.safetensors"]
            assert (file["bytes"], file["sha256"]) == (size, digest)
            assert name in kind.presets


def change_config(folder, **fields):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | fields), encoding="utf-8")


def test_a_changed_config_is_caught(checkpoint, copy):
    """Other heads fit the same weights, and transformers would read the same wrong file."""
    change_config(copy, n_head=5)
    assert verify(copy).passes
    report = verify(copy, against=checkpoint / "frozen.safetensors")
    assert report.diverges == "blocks.0"
    assert "The config is not the one that was frozen: heads was 3 and is 5." in report.problems


def test_another_tokeniser_is_caught(checkpoint, copy):
    other = train_bpe(
        ["Entirely other words were read by this one; they were merged in another order. " * 9], vocab=290
    )
    for name, content in other.files.items():
        (copy / name).write_bytes(content)
    assert verify(copy).passes, "both sides read the same files"
    report = verify(copy, against=checkpoint / "frozen.safetensors")
    assert report.diverges is None
    assert len(report.problems) == 1
    assert "The tokeniser differs from the file" in report.problems[0]
    (copy / "tokenizer.json").unlink()
    assert not verify(copy, against=checkpoint / "frozen.safetensors").passes, "nor is none the same"


def test_a_tokeniser_of_another_model_is_caught(copy):
    other = train_bpe(
        [f"This one knows {i} more words than the model, number{i * 7919}. " for i in range(300)], vocab=600
    )
    for name, content in other.files.items():
        (copy / name).write_bytes(content)
    report = verify(copy)
    assert "The tokeniser is not this model's" in report.problems[0]


def test_a_tokeniser_read_wrongly_is_caught(checkpoint, monkeypatch):
    encode = sf.load_tokenizer(checkpoint / "good").__class__.encode
    monkeypatch.setattr(sf.load_tokenizer(checkpoint / "good").__class__, "encode", lambda s, t: encode(s, " " + t))
    report = verify(checkpoint / "good")
    assert "The tokeniser differs from transformers on" in report.problems[0]


def test_a_tokeniser_that_decodes_wrongly_is_caught(checkpoint, monkeypatch):
    kind = sf.load_tokenizer(checkpoint / "good").__class__
    decode = kind.decode
    monkeypatch.setattr(kind, "decode", lambda self, ids: decode(self, ids).strip())
    assert "first on ' leading and trailing '" in verify(checkpoint / "good").problems[0]


def test_a_tokeniser_that_refuses_what_it_could_spell_is_caught(checkpoint, monkeypatch):
    def encode(self, text):
        raise ValueError("no")

    monkeypatch.setattr(sf.load_tokenizer(checkpoint / "good").__class__, "encode", encode)
    assert "ours gives none, theirs [" in verify(checkpoint / "good").problems[0]


@pytest.mark.parametrize("frozen", [False, True])
def test_a_tokeniser_of_characters(copy, tmp_path, frozen):
    """It refuses most of the texts, and its own characters are one."""
    for name, content in characters(["Hello, world!"]).files.items():
        (copy / name).write_bytes(content)
    report = verify(copy, freeze=tmp_path / "frozen.safetensors")
    report = verify(copy, against=tmp_path / "frozen.safetensors") if frozen else report
    assert report.passes
    assert report.tokenizer == (
        "2 of 2 texts have the same ids and come back the same; 14 hold characters it has no id for"
    )


def test_a_tokeniser_under_openais_names(copy):
    (copy / "tokenizer.json").unlink()
    (copy / "tokenizer_config.json").unlink()
    for ours, name in zip(("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")):
        shutil.copy(FROZEN / ours, copy / name)
    report = verify(copy)
    assert report.tokenizer.startswith("16 of 16")
    assert len(report.problems) == 1
    assert "The tokeniser is not this model's" in report.problems[0]


def test_a_tokeniser_that_transformers_cannot_read_is_said(checkpoint, monkeypatch):
    import transformers

    def fails(*_):
        raise Exception("no such thing\nat all")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", fails)
    report = verify(checkpoint / "good")
    assert report.problems == ["transformers cannot read the tokeniser (no such thing), which ours can."]


def test_a_file_frozen_without_a_tokeniser_says_nothing_of_one(copy, checkpoint, tmp_path):
    (copy / "tokenizer.json").unlink()
    verify(copy, freeze=tmp_path / "frozen.safetensors")
    report = verify(checkpoint / "good", against=tmp_path / "frozen.safetensors")
    assert report.tokenizer == "not compared, for the file was frozen without one"


def refrozen(frozen, path, change):
    """The file with other tensors."""
    tensors, metadata = load_file(frozen), {"format": module.FORMAT}
    metadata["facts"] = json.dumps(read_frozen(frozen).facts)
    change(tensors)
    save_file(tensors, path, metadata=metadata)
    return path


def strange(value):
    def change(tensors):
        tensors["reference/whole/output"][0, 0, 0] = value

    return change


def narrower(tensors):
    tensors["reference/whole/output"] = tensors["reference/whole/output"][..., :-1].contiguous()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (strange(torch.nan), "At output, in float64, theirs are not all finite numbers."),
        (strange(torch.inf), "At output, in float64, theirs are not all finite numbers."),
        (narrower, "At output ours has the shape [2, 16, 290] and theirs [2, 16, 289]."),
    ],
)
def test_answers_that_cannot_be_compared_never_pass(checkpoint, tmp_path, change, said):
    report = verify(
        checkpoint / "good", against=refrozen(checkpoint / "frozen.safetensors", tmp_path / "changed", change)
    )
    assert report.diverges == "output"
    assert report.problems == [said]


def test_answers_of_ours_that_are_no_numbers_never_pass(checkpoint, monkeypatch):
    """Not even where the reference has the same."""
    states = module._states

    def infinite(*arguments):
        found = states(*arguments)
        for state in found.values():
            state["blocks.1"] = state["blocks.1"] * torch.inf if "blocks.1" in state else torch.zeros(1)
        return found

    monkeypatch.setattr(module, "_states", infinite)
    report = verify(checkpoint / "good")
    assert report.diverges == "blocks.1"
    assert report.problems == ["At blocks.1, in float64, ours and theirs are not all finite numbers."]


def test_only_padded_rows_may_be_wrong(checkpoint, monkeypatch):
    """A bug that a batch without padding never shows."""
    forward = sf.GPT2.forward

    def wrong(self, ids, *, keep=None, cache=None):
        out = forward(self, ids, keep=keep, cache=cache)
        return out if keep is None or keep[1].all() else out + 1e-6 * ~keep.all(-1)[:, None, None]

    monkeypatch.setattr(sf.GPT2, "forward", wrong)
    assert verify(checkpoint / "good").diverges == "output"


def test_float32_is_held_to_its_own_bound(checkpoint, monkeypatch):
    """Right in float64 alone is not right."""
    forward = sf.GPT2.forward

    def coarse(self, ids, **settings):
        out = forward(self, ids, **settings)
        return out.bfloat16().to(out.dtype) if out.dtype == torch.float32 else out

    monkeypatch.setattr(sf.GPT2, "forward", coarse)
    report = verify(checkpoint / "good")
    assert report.diverges == "output"
    (output,) = [place for place in report.places if place.ours == "output"]
    assert output.largest["float64"] < 1e-12


# --- without transformers


def test_without_transformers_the_code_is_proven_and_the_sentence_says_so(checkpoint, alone, capsys):
    assert main(["verify", str(checkpoint / "good")]) == 0
    said = capsys.readouterr().out
    assert "This proves the code, not the checkpoint" in said
    assert "`pip install transformers`" in said


def test_without_transformers_weights_that_are_not_numbers_fail(copy, alone):
    state = load_file(copy / "model.safetensors")
    not_a_number(state)
    save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
    report = verify(copy)
    assert report.problems == ["The checkpoint's weights are not all finite numbers: blocks.1.attention_norm.weight."]


def test_the_small_models_are_what_the_script_writes_today():
    spec = importlib.util.spec_from_file_location("freeze_verify", FREEZE)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.targets().keys() == module.REFERENCES.keys()
    for model, path in script.targets().items():
        written, now = load_file(path), script.tensors(model)
        assert written.keys() == now.keys()
        for name, value in now.items():
            torch.testing.assert_close(written[name], value, rtol=0, atol=1e-12)
        assert path.stat().st_size < 200_000
    assert "import scratchformers" not in FREEZE.read_text(encoding="utf-8")
    assert ast.parse(FREEZE.read_text(encoding="utf-8"))


def test_a_transformers_that_cannot_be_imported_is_a_sentence(checkpoint, tmp_path, monkeypatch, capsys):
    (tmp_path / "transformers.py").write_text("raise ImportError('it wants another torch')", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "transformers")
    assert main(["verify", str(checkpoint / "good")]) == 2
    assert (
        "is installed and cannot be imported (it wants another torch): mend it, or pass --against"
        in capsys.readouterr().err
    )
    assert main(["verify", str(checkpoint / "good"), "--against", str(checkpoint / "frozen.safetensors")]) == 0


# --- the program


def test_the_report_as_json(checkpoint, capsys):
    assert main(["verify", str(checkpoint / "good"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["passes"] is True
    assert said["diverges"] is None
    assert said["tolerances"] == {"float64": 1e-10, "float32": 1e-4}
    assert said["places"][0].keys() == {"ours", "theirs", "largest", "mean", "scale", "passes"}
    assert "torchvision" not in sys.modules or sys.modules["torchvision"] is not None


def test_hidden_torchvision_comes_back(monkeypatch):
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    with module._importable():
        assert sys.modules["torchvision"] is None
    assert "torchvision" not in sys.modules


def test_a_checkpoint_without_a_tokeniser_says_so(published, capsys):
    assert main(["verify", str(published[1])]) == 0
    assert "Tokeniser: none." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing/folder"], "missing/folder"),
        (["{good}", "--against", "missing.safetensors"], "missing.safetensors"),
        (["{good}", "--against", "{good}/model.safetensors"], "was not written by `scratchformers verify --freeze`"),
        (["{good}", "--against", "{good}/config.json"], "is no safetensors file"),
        (["{good}", "--freeze", "missing/file"], "does not exist"),
        (["{good}", "--against", "{frozen}", "--freeze", "x"], "no --against"),
        (["{good}/model.safetensors"], "config.json"),
    ],
)
def test_bad_input(checkpoint, tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    places = {"good": checkpoint / "good", "frozen": checkpoint / "frozen.safetensors"}
    assert main(["verify", *(each.format(**places) for each in arguments)]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_tolerances_are_those_of_the_design():
    assert TOLERANCES[torch.float64] == 1e-10
