"""What goes wrong outside: full disks, killed savers, damaged files, other people's files in the way."""

import contextlib
import json
import os
import shutil

import pytest
import reference
import torch
from safetensors import SafetensorError
from test_checkpoints import fails, folder, same, tensors_of  # noqa: F401 (a fixture)
from test_cli import refused, run
from test_training import SMALL, TEXT, data, losses, request, run_all  # noqa: F401 (a fixture)
from tokenizers import processors
from transformers import AutoTokenizer

import scratchformers as sf
from scratchformers.checkpoints import files
from scratchformers.text import TextTokenizer, characters
from scratchformers.training.runs import open_run

SHORT = {"steps": 4, "batch": 2, "eval_every": 2, "save_every": 2}


# --- saving


def test_a_full_disk_is_an_os_error_and_the_old_file_stays(tmp_path, monkeypatch):
    files.write_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(3)})
    before = (tmp_path / "a.safetensors").read_bytes()

    def full(*_, **__):
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(OSError, match=r"could not be written.*No space left"):
        files.write_tensors(tmp_path / "a.safetensors", {"x": torch.ones(3)})
    assert (tmp_path / "a.safetensors").read_bytes() == before
    assert len([*tmp_path.iterdir()]) == 1


def test_a_full_disk_ends_train_in_a_sentence(capsys, data, tmp_path, monkeypatch):  # noqa: F811
    def full(*_, **__):
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(files, "save_file", full)
    settings = [part for name, value in SMALL.items() for part in ("--set", f"{name}={value}")]
    code, _, error = run(capsys, "train", "gpt2", "--data", data, "--out", tmp_path / "run", *settings)
    assert code == 2
    assert "No space left" in error
    assert "Traceback" not in error


def test_saving_removes_no_file_it_has_nothing_instead_of(folder):  # noqa: F811
    (folder / "vocab.json").write_text("{}")
    (folder / "merges.txt").write_text("")
    config = sf.GPT2Config(vocab=97, length=53, dim=39, depth=5, heads=3)
    sf.load(folder / "model.safetensors", config=config).save_pretrained(folder)
    assert (folder / "vocab.json").read_text() == "{}"


def test_another_tokenisers_files_do_not_stay_beside_ours(tmp_path):
    model = sf.GPT2(sf.GPT2Config(vocab=5, length=5, dim=4, depth=1, heads=1))
    (tmp_path / "vocab.json").write_text("{}")
    model.assets = characters(["hello"]).files
    model.save_pretrained(tmp_path)
    assert not (tmp_path / "vocab.json").exists()


class Killed(BaseException):
    pass


def killing(at):
    """Wraps functions so that the call number `at`, counted over all of them, is where the process dies."""
    steps = iter(range(100))

    def counted(function):
        def call(*arguments, **settings):
            if next(steps) == at:
                raise Killed
            return function(*arguments, **settings)

        return call

    return counted


@pytest.mark.parametrize("at", range(6))
def test_a_save_that_is_killed_never_leaves_a_config_beside_other_weights(tmp_path, monkeypatch, at):
    """Two models that differ only in their heads: no shape would give the mixture away."""
    models = [sf.GPT2(sf.GPT2Config(vocab=11, length=9, dim=8, depth=1, heads=heads)).eval() for heads in (2, 4)]
    models[0].save_pretrained(tmp_path)
    counted = killing(at)
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", counted(os.replace))
        patch.setattr(files.Path, "unlink", counted(files.Path.unlink))
        with contextlib.suppress(Killed):
            models[1].save_pretrained(tmp_path)
    if not (tmp_path / "config.json").exists():
        fails(tmp_path, ["no config.json"])
        return
    found = sf.load(tmp_path)
    (whole,) = [model for model in models if found.config == model.config]
    assert all(torch.equal(a, b) for a, b in zip(found.state_dict().values(), whole.state_dict().values()))


@pytest.mark.parametrize("at", range(12))
def test_a_checkpoint_that_is_killed_anywhere_is_whole_or_not_there(data, tmp_path, monkeypatch, at):  # noqa: F811
    run_all(data, tmp_path / "whole")
    from scratchformers.training import state

    counted = killing(at)
    begun, _ = open_run(request(data, tmp_path / "cut"))
    with monkeypatch.context() as patch:
        patch.setattr(state.files, "write_tensors", counted(files.write_tensors))
        patch.setattr(state.files, "write_json", counted(files.write_json))
        patch.setattr(state.os, "replace", counted(os.replace))
        with contextlib.suppress(Killed):
            list(begun)
    run_all(data, tmp_path / "cut", resume=True)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_a_model_compiled_in_part_is_saved_under_its_own_names(tmp_path):
    model = sf.GPT2(sf.GPT2Config(vocab=11, length=9, dim=8, depth=2, heads=2)).eval()
    plain = {name: value.clone() for name, value in model.state_dict().items()}
    model.blocks[0] = torch.compile(model.blocks[0], backend="eager")
    model.save_pretrained(tmp_path)
    again = sf.load(tmp_path).state_dict()
    assert again.keys() == plain.keys()
    assert all(torch.equal(again[name], plain[name]) for name in plain)


# --- reading


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "content", [b"hello", b"\x80\x02.", b"\x80\x04\x95", b"version https://git-lfs.github.com/spec/v1\n"]
)
def test_what_is_no_weights_file_is_one_sentence_of_our_own(folder, content):  # noqa: F811
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(ValueError, match=r"pytorch_model.bin (was refused|is truncated)") as caught:
        sf.load(folder)
    assert "weights_only" not in str(caught.value), "torch proposes to run what is in the file"


def test_bytes_flipped_anywhere_in_a_bin_are_no_traceback(published, folder):  # noqa: F811
    tensors = tensors_of(folder)
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    content = (folder / "pytorch_model.bin").read_bytes()
    for place in range(0, 6000, 97):
        spoilt = bytearray(content)
        spoilt[place] ^= 0xFF
        (folder / "pytorch_model.bin").write_bytes(spoilt)
        try:
            sf.load(folder)
        except ValueError as error:
            assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.unhooked
@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("config.json", {"resid_pdrop": "0.1"}),
        ("config.json", {"resid_pdrop": None}),
        ("config.json", {"vocab_size": 10**30}),
        ("generation_config.json", {"eos_token_id": 5.0}),
        ("generation_config.json", {"eos_token_id": [[5]]}),
        ("generation_config.json", {"eos_token_id": "50256"}),
        ("generation_config.json", {"pad_token_id": "x"}),
    ],
)
def test_a_value_of_the_wrong_kind_is_a_sentence(folder, file, changes):  # noqa: F811
    content = json.loads((folder / file).read_text(encoding="utf-8")) | changes
    (folder / file).write_text(json.dumps(content), encoding="utf-8")
    fails(folder, ["expected"])


def test_json_that_nests_without_end_is_a_sentence(folder):  # noqa: F811
    (folder / "config.json").write_text("[" * 200_000, encoding="utf-8")
    fails(folder, ["is not valid JSON"])


def test_what_a_checkpoint_says_of_decoding_is_read_and_kept(folder, tmp_path):  # noqa: F811
    said = {"eos_token_id": [5, 9], "pad_token_id": 3, "bos_token_id": 1, "temperature": 0.5}
    (folder / "generation_config.json").write_text(json.dumps(said), encoding="utf-8")
    model = sf.load(folder)
    assert (model.generation.start, model.generation.end, model.generation.pad) == (1, (5, 9), 3)
    model.save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "generation_config.json").read_text(encoding="utf-8")) == said
    (folder / "generation_config.json").unlink()
    assert sf.load(folder).generation.end == (reference.END,), "config.json, where there is no generation_config.json"


def test_a_config_keeps_all_its_dropouts(folder, tmp_path):  # noqa: F811
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"resid_pdrop": 0.25, "attn_pdrop": 0.125, "embd_pdrop": 0.0}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    model = sf.load(folder)
    assert model.config.dropout == 0.25
    model.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text(encoding="utf-8"))
    assert [saved[name] for name in ("resid_pdrop", "attn_pdrop", "embd_pdrop")] == [0.25, 0.125, 0.0]


def test_weights_stand_in_mapped_pages(folder):  # noqa: F811
    model = sf.load(folder, dtype=torch.float64)
    if os.path.exists("/proc/self/maps"):  # Linux says so
        with open("/proc/self/maps", encoding="utf-8") as maps:
            assert str(folder / "model.safetensors") in maps.read()
    assert model.token.weight.shape == (97, 39)


# --- tokenisers


def test_transformers_reads_the_tokeniser_of_our_checkpoint_as_it_is(data, tmp_path):  # noqa: F811
    run_all(data, tmp_path / "run")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    ours = sf.load_tokenizer(tmp_path / "run" / "model")
    for text in ("3 times 4 is 12.\n", "  7\n\n", TEXT):
        assert theirs(text)["input_ids"] == ours.encode(text)
        assert theirs.decode(ours.encode(text), clean_up_tokenization_spaces=False) == text


def test_special_tokens_are_added_once_and_not_to_a_stream():
    tokenizer = characters(["abc"], end=True)
    end = tokenizer.end
    tokenizer.tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", end)]
    )
    tokenizer = TextTokenizer(tokenizer.tokenizer)
    assert tokenizer.encode("ab") == [0, 1, end]
    assert [i for part in tokenizer.encode_long("ab") for i in part] == [0, 1]


def test_the_name_of_an_end_token_is_plain_text_where_there_is_none():
    with pytest.raises(ValueError, match="no id for"):
        characters(["hello"]).encode("<|endoftext|>hello")


def test_half_a_surrogate_pair_is_a_sentence():
    from test_text import BPE

    with pytest.raises(ValueError, match="no valid Unicode"):
        BPE.encode("a\ud800")


def test_a_tokeniser_is_found_from_whatever_load_takes(folder, tmp_path):  # noqa: F811
    from test_text import BPE, FROZEN

    for name in ("vocab.json", "merges.txt"):
        shutil.copy(FROZEN / name, folder / name)
    for source in (folder, folder / "model.safetensors", folder / "vocab.json", FROZEN, FROZEN / "vocab.json"):
        assert sf.load_tokenizer(source).encode("it's") == BPE.encode("it's")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | {"model_type": "vit"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ValueError, match="says model_type 'vit'"):
        sf.load_tokenizer(folder)


# --- runs


def test_a_damaged_run_folder_is_a_sentence(data, tmp_path):  # noqa: F811
    run_all(data, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    facts = json.loads(path.read_text(encoding="utf-8"))
    spoilt = [{"recipe": "gpt2", "settings": {}}, {**facts, "settings": {**facts["settings"], "newer": 1}}]
    for content in [*spoilt, {**facts, "paths": 3}, {**facts, "recipe": "gpt5"}, {**facts, "model": None}]:
        path.write_text(json.dumps(content), encoding="utf-8")
        with pytest.raises(ValueError, match="cannot be resumed"):
            open_run(request(data, tmp_path / "run"), resume=True)


def test_a_checkpoint_that_does_not_say_its_step_is_passed_over(data, tmp_path):  # noqa: F811
    run_all(data, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "step-6" / "state.json").write_text("{}", encoding="utf-8")
    assert open_run(request(data, tmp_path / "run"), resume=True)[0].step == 4


def test_a_run_is_resumed_from_any_folder_and_says_if_the_device_is_another(data, tmp_path, monkeypatch):  # noqa: F811
    from test_text import FROZEN

    shutil.copytree(FROZEN, tmp_path / "tokens")
    monkeypatch.chdir(tmp_path)
    settings = [part for name, value in {**SMALL, "steps": "4"}.items() for part in ("--set", f"{name}={value}")]
    from scratchformers.cli import main

    valid = tmp_path / "valid.txt"
    valid.write_text(TEXT[:300], encoding="utf-8")
    arguments = ["train", "gpt2", "--data", data.name, "--valid", "valid.txt", "--tokenizer", "tokens", "--out", "run"]
    assert main([*arguments, *settings]) == 0
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-4")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    facts = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "run" / "config.json").write_text(json.dumps({**facts, "device": "cuda:7"}), encoding="utf-8")
    begun, notes = open_run(request(None, tmp_path / "run", steps=4), resume=True)
    assert notes[0] == "Resuming at step 2 of 4."
    assert "Begun with cuda:7, resumed with cpu" in notes[1]
    assert begun.task.held_out.numel() == len(sf.load_tokenizer(FROZEN).encode(TEXT[:300]))


def test_a_model_is_saved_even_if_validation_is_never_finite(data, tmp_path, monkeypatch):  # noqa: F811
    from scratchformers.training import loop

    monkeypatch.setattr(loop, "evaluate", lambda *_, **__: {"loss": float("nan")})
    records, _ = run_all(data, tmp_path / "run")
    assert [r["valid_loss"] for r in records if "valid_loss" in r] == [None, None]
    assert "NaN" not in (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8")
    assert sf.load(tmp_path / "run" / "model").config.dim == 16


def test_a_folder_named_like_a_text_does_not_stop_training(tmp_path):
    from scratchformers.training.documents import read_texts

    (tmp_path / "x.txt").mkdir()
    (tmp_path / "y.txt").write_text("y")
    assert list(read_texts(tmp_path)) == ["y"]


# --- the demo


@pytest.fixture
def short_demo(monkeypatch):
    from scratchformers.training.recipes import RECIPES

    for name in ("gpt2", "bert"):
        monkeypatch.setitem(RECIPES[name].presets, "tiny", SHORT)
    for name in ("vit", "mae"):
        monkeypatch.setitem(RECIPES[name].presets, "tiny", {**SHORT, "depth": 1})
    monkeypatch.setitem(RECIPES["clip"].presets, "tiny", {**SHORT, "image_depth": 1, "length": 0})
    monkeypatch.setitem(RECIPES["encoder-decoder"].presets, "tiny", {**SHORT, "dim": 32})


def test_the_demo_leaves_a_persons_run_alone(capsys, data, tmp_path, short_demo):  # noqa: F811
    run_all(data, tmp_path / "mine" / "gpt2")
    before = {path: path.read_bytes() for path in (tmp_path / "mine" / "gpt2").rglob("*") if path.is_file()}
    code, _, error = run(capsys, "demo", "--out", tmp_path / "mine")
    assert code == 2
    assert "holds another run" in error
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_demo_that_was_killed_runs_again(capsys, tmp_path, short_demo):
    assert run(capsys, "demo", "--out", tmp_path / "demo")[0] == 0
    for left in ("log.jsonl", "checkpoints", "model", "loss.png"):  # as if killed right after it began
        path = tmp_path / "demo" / "gpt2" / left
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert run(capsys, "demo", "--out", tmp_path / "demo")[0] == 0
    assert (tmp_path / "demo" / "gpt2" / "model").is_dir()
    assert "no folder" in refused(capsys, "demo", "--out", tmp_path / "demo" / "index.html")


# --- what a stranger tried


def test_weights_that_are_no_numbers_are_said(capsys, tmp_path):
    tokenizer = characters(["abc"])
    model = sf.GPT2(sf.GPT2Config(vocab=3, length=9, dim=4, depth=1, heads=1))
    with torch.no_grad():
        model.norm.weight.fill_(float("nan"))
    model.assets = tokenizer.files
    model.save_pretrained(tmp_path)
    for temperature in ("0", "1"):
        arguments = ("complete", "a", "--model", tmp_path, "--temperature", temperature)
        assert "scores are not numbers" in refused(capsys, *arguments)


def test_weights_of_integers_are_refused(folder):  # noqa: F811
    tensors = tensors_of(folder)
    tensors["transformer.ln_f.bias"] = torch.zeros(39, dtype=torch.int64)
    files.write_tensors(folder / "model.safetensors", tensors)
    fails(folder, ["ln_f.bias holds int64, expected floating point"])


def test_a_model_that_does_not_fit_into_memory_is_a_sentence(capsys, data, tmp_path):  # noqa: F811
    arguments = ("--data", data, "--out", tmp_path / "run", "--set", "dim=99999999", "--set", "heads=1")
    assert "not enough memory" in refused(capsys, "train", "gpt2", *arguments)


def test_the_shortest_context_trains(data, tmp_path):  # noqa: F811
    assert run_all(data, tmp_path / "run", length=1)[0][-1]["step"] == 6


def test_more_threads_than_any_machine_has_are_refused(data, tmp_path):  # noqa: F811
    with pytest.raises(ValueError, match="threads is 100000: expected less than 257"):
        open_run(request(data, tmp_path / "run", threads=100000))


def test_the_folder_of_a_run_for_its_model_is_a_hint(capsys, data, tmp_path):  # noqa: F811
    run_all(data, tmp_path / "run")
    assert f"Did you mean {tmp_path / 'run' / 'model'}?" in refused(
        capsys, "complete", "3", "--model", tmp_path / "run"
    )


def test_a_mistyped_out_is_not_taken_for_a_new_run(capsys, tmp_path):
    assert "holds no run to resume" in refused(capsys, "train", "gpt2", "--out", tmp_path / "rnu", "--resume")


def test_hidden_files_are_no_texts(tmp_path):
    from scratchformers.training.documents import read_texts

    (tmp_path / "._a.txt").write_bytes(b"\xff")
    (tmp_path / "a.txt").write_text("a")
    assert list(read_texts(tmp_path)) == ["a"]
