"""`train --from`: what a checkpoint brings along, what may differ, and that resuming notices another source."""

import dataclasses
import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file
from test_cli import refused, run
from test_training import TEXT, data, losses  # noqa: F401 (a fixture)

import scratchformers as sf
from scratchformers.checkpoints.pretrained import fingerprint
from scratchformers.text import characters, train_bpe
from scratchformers.training import log
from scratchformers.training.loop import evaluate
from scratchformers.training.recipes import FINETUNE
from scratchformers.training.request import Request
from scratchformers.training.runs import open_run

SMALL = {
    "steps": "6",
    "batch": "4",
    "eval_every": "3",
    "save_every": "2",
    "warmup": "2",
    "threads": "1",
    "dropout": "0",
}


@pytest.fixture
def source(tmp_path):
    """A checkpoint that says more than we read: fields of its own, several end tokens, settings of generation."""
    torch.manual_seed(0)
    tokenizer = characters([TEXT], end=True)
    model = sf.GPT2(sf.GPT2Config(vocab=tokenizer.vocab + 3, length=24, dim=16, depth=2, heads=2, dropout=0.1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    model.assets = tokenizer.files
    folder = tmp_path / "a source"
    model.save_pretrained(folder)
    changed = {
        "config.json": {"mine": "kept", "embd_pdrop": 0.25, "eos_token_id": [1, 2], "bos_token_id": 3},
        "generation_config.json": {"eos_token_id": [1, 2], "bos_token_id": 3, "top_k": 7},
    }
    for name, fields in changed.items():
        content = json.loads((folder / name).read_text(encoding="utf-8")) | fields
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


def request(data, out, source, **given):  # noqa: F811
    return Request("gpt2", out, data, source=source, given={**SMALL, **{k: str(v) for k, v in given.items()}})


def saved(out, name="config.json"):
    return json.loads((out / name).read_text(encoding="utf-8"))


def test_it_starts_at_the_loss_of_its_source(data, source, tmp_path):  # noqa: F811
    run, notes = open_run(request(data, tmp_path / "run", source))
    assert notes == []
    model = sf.load(source)
    for ours, theirs in zip(run.task.model.state_dict().items(), model.state_dict().items()):
        assert ours[0] == theirs[0]
        assert torch.equal(ours[1], theirs[1])
    batch = run.task.batch(run.sampler.take(4))
    run.sampler.restore({"epoch": 0, "seen": 0})
    with torch.no_grad():
        expected = float(run.task.loss(model, batch)) / run.task.targets(batch)
    record = next(iter(run))
    assert record["loss"] == pytest.approx(expected, abs=1e-5)
    assert record["trivial_loss"] == math.log(model.config.vocab)
    assert abs(expected - record["trivial_loss"]) > 0.1, "else nobody could tell"
    assert evaluate(run.task, torch.device("cpu"))["loss"] < 10


def test_what_the_source_says_is_said_by_what_is_saved(data, source, tmp_path):  # noqa: F811
    out = tmp_path / "run"
    list(open_run(Request("gpt2", out, data, source=source, given={**SMALL, "dropout": "0.1"}))[0])
    found, before = saved(out / "model"), saved(source)
    assert found == before
    assert saved(out / "model", "generation_config.json") == saved(source, "generation_config.json")
    model = sf.load(out / "model")
    assert (model.generation.end, model.generation.start) == ((1, 2), 3)
    assert sf.load_tokenizer(out / "model").encode("3 times") == sf.load_tokenizer(source).encode("3 times")
    assert not torch.equal(model.token.weight, sf.load(source).token.weight)
    facts = saved(out)
    assert facts["preset"] == FINETUNE
    assert facts["source"]["sha256"] == fingerprint(sf.load(source))
    assert facts["paths"]["source"] == str(source)


def test_its_settings_are_those_for_fine_tuning(data, source, tmp_path):  # noqa: F811
    settings = open_run(Request("gpt2", tmp_path / "run", data, source=source))[0].settings
    assert (settings.lr, settings.length) == (3e-5, 0)
    with pytest.raises(
        ValueError, match="gpt2 has no preset 'tiny' to go with --from, which brings its own sizes: exp"
    ):
        open_run(Request("gpt2", tmp_path / "other", data, source=source, preset="tiny"))
    with pytest.raises(ValueError, match="gpt2 has no preset 'finetune': expected one of tiny"):
        open_run(Request("gpt2", tmp_path / "other", data, preset="finetune"))


def test_length_is_the_window_and_not_the_positions(data, source, tmp_path):  # noqa: F811
    run, _ = open_run(request(data, tmp_path / "run", source, length=9))
    assert run.task.batch(run.sampler.take(2))["ids"].shape == (2, 9)
    assert next(run.task.valid())["ids"].shape[1] == 9
    list(run)
    assert sf.load(tmp_path / "run" / "model").config.length == 24
    assert saved(tmp_path / "run")["settings"]["length"] == 9
    whole, _ = open_run(request(data, tmp_path / "whole", source))
    assert whole.task.batch(whole.sampler.take(2))["ids"].shape == (2, 24)


def test_dropout_may_be_another(data, source, tmp_path):  # noqa: F811
    run, _ = open_run(request(data, tmp_path / "run", source, dropout=0.4))
    model = run.task.model
    assert model.dropout.p == model.blocks[0].attention.dropout == 0.4
    first = next(iter(run))["loss"]
    list(run)
    assert sf.load(tmp_path / "run" / "model").config.dropout == 0.4
    assert {saved(tmp_path / "run" / "model")[f"{name}_pdrop"] for name in ("resid", "embd", "attn")} == {0.4}
    assert abs(first - next(iter(open_run(request(data, tmp_path / "b", source))[0]))["loss"]) > 1e-3, "it acts"


def test_fewer_ids_than_embeddings_are_fine_and_more_are_not(data, source, tmp_path):  # noqa: F811
    model = open_run(request(data, tmp_path / "run", source))[0].task.model
    assert model.config.vocab == sf.load_tokenizer(source).vocab + 3
    for name, content in train_bpe([TEXT], 290).files.items():
        (source / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"The tokeniser has 290 ids and the model .*: they do not belong together"):
        open_run(request(data, tmp_path / "other", source))
    with pytest.raises(ValueError, match=r"The tokeniser has 290 ids and the model .*: they do not belong together"):
        sf.Completer.from_pretrained(source)


@pytest.mark.parametrize("stop", [1, 3, 5])
@pytest.mark.parametrize("changes", [{}, {"dropout": 0.3, "length": 7}])
def test_resumed_is_uninterrupted(data, source, tmp_path, stop, changes):  # noqa: F811
    list(open_run(request(data, tmp_path / "whole", source, **changes))[0])
    for record in (run := open_run(request(data, tmp_path / "cut", source, **changes))[0]):
        if record["step"] > stop:
            break
    assert run.step == stop + 1
    torch.manual_seed(99)
    again, notes = open_run(Request("gpt2", tmp_path / "cut"), resume=True)
    assert notes == ([f"Resuming at step {stop // 2 * 2} of 6."] if stop > 1 else notes)
    list(again)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert [r.get("valid_loss") for r in log.read(tmp_path / "cut" / "log.jsonl")] == [
        r.get("valid_loss") for r in log.read(tmp_path / "whole" / "log.jsonl")
    ]
    a, b = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_another_source_is_noticed(data, source, tmp_path):  # noqa: F811
    run, out = open_run(request(data, tmp_path / "run", source))[0], tmp_path / "run"
    next(iter(run))
    other = sf.load(source)
    with torch.no_grad():
        other.norm.bias[3] += 1e-3
    shutil.copytree(source, tmp_path / "other")
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"The source is not what the run in .* began with: resume it with the same"):
        open_run(Request("gpt2", out, source=tmp_path / "other"), resume=True)
    shutil.copytree(source, tmp_path / "copy")
    assert open_run(Request("gpt2", out, source=tmp_path / "copy"), resume=True)[0].step == 0, "a copy is the same"
    with pytest.raises(ValueError, match="has length 0, not 5"):
        open_run(request(data, out, None, length=5), resume=True)
    other.save_pretrained(source)
    with pytest.raises(ValueError, match="The source is not what the run in"):
        open_run(Request("gpt2", out), resume=True)


def test_a_run_from_nothing_does_not_become_one_from_a_source(data, source, tmp_path):  # noqa: F811
    from test_training import request as anew

    next(iter(open_run(anew(data, tmp_path / "run"))[0]))
    with pytest.raises(ValueError, match="has no source: resume it as it is, or choose another --out"):
        open_run(Request("gpt2", tmp_path / "run", source=source), resume=True)


def test_train_from_in_the_program(capsys, data, source, tmp_path):  # noqa: F811
    settings = [part for name, value in SMALL.items() for part in ("--set", f"{name}={value}")]
    code, said, error = run(
        capsys, "train", "gpt2", "--data", data, "--out", tmp_path / "run", "--from", source, *settings
    )
    assert (code, error) == (0, "")
    assert "Best validation loss" in said
    assert run(capsys, "complete", "3", "--model", tmp_path / "run" / "model", "--max-new-tokens", 3)[0] == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--set", "dim=32"], "has dim 16, not 32: leave that setting out, or train from scratch, without --from"),
        (["--set", "heads=4", "--set", "depth=3"], "has heads 2, not 4; depth 2, not 3"),
        (["--set", "length=25"], "length is 25: expected at most the 24 positions of"),
        (["--set", "length=-1"], "length is -1"),
        (["--tokenizer", "characters"], "--tokenizer characters is not that of"),
        (["--tokenizer", "bpe"], "--tokenizer bpe is not that of"),
        (["--vocab", "300"], "--vocab 300 sizes a BPE made from your text"),
        (["--preset", "mini"], "no preset 'mini' to go with --from"),
        (["--set", "dropout=1"], "dropout is 1.0"),
    ],
)
def test_what_does_not_fit_the_source_is_refused_in_a_sentence(capsys, data, source, tmp_path, given, said):  # noqa: F811
    assert said in refused(capsys, "train", "gpt2", "--data", data, "--out", tmp_path / "run", "--from", source, *given)
    assert not (tmp_path / "run").exists()


def test_a_source_that_cannot_be_is_refused_in_a_sentence(capsys, data, source, tmp_path):  # noqa: F811
    arguments = ("train", "gpt2", "--data", data, "--out", tmp_path / "run", "--from")
    assert "does not exist" in refused(capsys, *arguments, tmp_path / "nowhere")
    other = tmp_path / "other.txt"
    other.write_text(TEXT + "ß", encoding="utf-8")
    assert "no id for 'ß'" in refused(capsys, *arguments, source, "--valid", other)
    for file in source.glob("tokenizer*"):
        file.unlink()
    assert "holds no tokeniser" in refused(capsys, *arguments, source)


def test_the_same_tokeniser_may_be_named(data, source, tmp_path):  # noqa: F811
    asked = dataclasses.replace(request(data, tmp_path / "run", source), tokenizer=str(source / "tokenizer.json"))
    assert open_run(asked)[0].task.tokenizer.digest() == sf.load_tokenizer(source).digest()
