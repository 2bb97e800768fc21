"""The program as a person meets it: what it prints, where, with which exit status."""

import json
import re
import subprocess
import sys

import pytest
import reference
import torch
from test_training import SMALL, TEXT

import scratchformers as sf
from scratchformers.cli import auto_device, main
from scratchformers.text import characters


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint with a tokeniser."""
    torch.manual_seed(0)
    tokenizer = characters([TEXT])
    model = sf.GPT2(sf.GPT2Config(vocab=tokenizer.vocab, length=40, dim=16, depth=1, heads=2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    model.assets = tokenizer.files
    path = tmp_path_factory.mktemp("cli") / "a model"
    model.save_pretrained(path)
    return path


def run(capsys, *arguments):
    """Exit status, standard output, standard error."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as stop:  # tyro's own
        code = stop.code
    out, error = capsys.readouterr()
    return code, out, error


def refused(capsys, *arguments):
    """The one sentence on stderr of a command that ends with status 2."""
    code, out, error = run(capsys, *arguments)
    assert (code, out) == (2, ""), (code, out, error)
    assert "Traceback" not in error
    assert error.startswith("scratchformers: ")
    assert error.count("\n") == 1
    return error


def test_complete_prints_the_prompt_and_what_follows(capsys, folder):
    code, out, error = run(capsys, "complete", "3 times", "--model", folder, "--max-new-tokens", 9)
    assert (code, error) == (0, "")
    answer = sf.Completer.from_pretrained(folder)("3 times", max_new_tokens=9)
    assert out == "3 times" + answer.text + "\n"
    assert len(answer.text) == 9


def test_complete_writes_at_most_64_tokens_or_the_room_left(capsys, folder):
    _, out, _ = run(capsys, "complete", "3 times", "--model", folder, "--json")
    assert len(json.loads(out)["ids"]) == 40 - 7


def test_64_tokens_where_there_is_room(tmp_path, folder):
    model = sf.GPT2(sf.GPT2Config(vocab=sf.load(folder).config.vocab, length=200, dim=16, depth=1, heads=2))
    assert len(sf.Completer(model, sf.load_tokenizer(folder))("3").ids) == 64


def test_stop_ids_end_a_completion(folder):
    completer = sf.Completer.from_pretrained(folder)
    free = completer("3 times", max_new_tokens=20)
    stopped = completer("3 times", max_new_tokens=20, stop=[free.ids[4]])
    assert stopped.reason == "end"
    assert stopped.ids == free.ids[: free.ids.index(free.ids[4])]


def test_filters_without_drawing_are_said_to_do_nothing(capsys, folder):
    code, out, error = run(capsys, "complete", "3", "--model", folder, "--top-k", 5, "--max-new-tokens", 3)
    assert code == 0
    assert len(out) == 5
    assert "needs a --temperature above 0" in error


def test_complete_as_json_and_with_a_seed(capsys, folder):
    arguments = ("complete", "3", "--model", folder, "--json", "--temperature", "1.5", "--top-k", "9", "--top-p", "0.9")
    _, first, _ = run(capsys, *arguments, "--seed", 1)
    _, again, _ = run(capsys, *arguments, "--seed", 1)
    _, other, _ = run(capsys, *arguments, "--seed", 2)
    assert first == again != other
    assert json.loads(first).keys() == {"prompt", "text", "ids", "reason"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["", "--max-new-tokens", "3"], "no tokens"),
        (["ß"], "no id for 'ß'"),
        (["3" * 40], "shorten the prompt to 39"),
        (["3", "--max-new-tokens", "40"], "ask for at most 39"),
        (["3", "--max-new-tokens", "0"], "max_new_tokens is 0"),
        (["3", "--temperature", "-1"], "temperature is -1.0"),
        (["3", "--temperature", "nan"], "temperature is nan"),
        (["3", "--temperature", "1", "--top-p", "1.5"], "top_p is 1.5"),
        (["3", "--temperature", "1", "--top-k", "0"], "top_k is 0"),
        (["3", "--device", "toaster"], "no device 'toaster': expected cpu"),
        (["3", "--device", "meta"], "device 'meta'"),
        (["3", "--seed", str(2**70)], "seed is"),
    ],
)
def test_complete_refuses_in_a_sentence(capsys, folder, arguments, said):
    assert said in refused(capsys, "complete", *arguments, "--model", folder)


def test_complete_refuses_what_is_no_checkpoint(capsys, folder, tmp_path, published):
    assert "does not exist" in refused(capsys, "complete", "3", "--model", tmp_path / "nowhere")
    assert "holds no weights" in refused(capsys, "complete", "3", "--model", tmp_path)
    assert "holds no tokeniser" in refused(capsys, "complete", "3", "--model", published[1])
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-9])
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    assert "truncated or corrupted" in refused(capsys, "complete", "3", "--model", tmp_path)


def test_a_tokeniser_of_another_model_is_refused(capsys, folder, tmp_path):
    sf.GPT2(sf.GPT2Config(vocab=5, length=40, dim=16, depth=1, heads=2)).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    assert "they do not belong together" in refused(capsys, "complete", "3", "--model", tmp_path)


def settings(**changes):
    return [part for name, value in {**SMALL, **changes}.items() for part in ("--set", f"{name}={value}")]


def test_train_then_complete(capsys, tmp_path):
    data, out = tmp_path / "dátá with spaces.txt", tmp_path / "a run"
    data.write_text(TEXT, encoding="utf-8")
    code, said, error = run(capsys, "train", "gpt2", "--data", data, "--out", out, *settings(), "--seed", 3)
    assert (code, error) == (0, "")
    assert "knowing nothing costs" in said
    assert "step 6: validation loss" in said
    assert json.loads((out / "config.json").read_text())["settings"]["seed"] == 3
    code, said, _ = run(capsys, "complete", "3 times", "--model", out / "model", "--max-new-tokens", 4)
    assert code == 0
    assert said.startswith("3 times")
    code, said, _ = run(capsys, "train", "gpt2", "--out", out, "--resume")
    assert code == 0
    assert "is finished (6 steps)" in said


def test_train_with_a_tokeniser_given(capsys, tmp_path):
    from test_text import FROZEN

    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    arguments = ("--data", tmp_path / "text.txt", "--out", tmp_path / "run", "--tokenizer", FROZEN)
    assert run(capsys, "train", "gpt2", *arguments, *settings())[0] == 0
    assert sf.load(tmp_path / "run" / "model").config.vocab == sf.load_tokenizer(FROZEN).vocab
    assert sf.load(tmp_path / "run" / "model").generation.end == (420,)
    assert sf.load_tokenizer(tmp_path / "run" / "model").encode("3 times") == sf.load_tokenizer(FROZEN).encode(
        "3 times"
    )


def test_train_refuses_in_a_sentence(capsys, tmp_path):
    data = tmp_path / "text.txt"
    data.write_text(TEXT, encoding="utf-8")
    out = ("--out", tmp_path / "run")
    assert "does not exist" in refused(capsys, "train", "gpt2", "--data", tmp_path / "no.txt", *out)
    assert "names no data set: expected hf:NAME" in refused(capsys, "train", "gpt2", "--data", "hf:", *out)
    assert "add --tokenizer bpe" in refused(capsys, "train", "gpt2", "--data", data, *out, "--vocab", 300)
    bpe = ("--tokenizer", "bpe", "--vocab")
    assert "vocab is 256: expected at least 257" in refused(capsys, "train", "gpt2", "--data", data, *out, *bpe, 256)
    assert "pass --data" in refused(capsys, "train", "gpt2", *out)
    assert "no preset 'huge'" in refused(capsys, "train", "gpt2", "--data", data, *out, "--preset", "huge")
    assert "no setting 'stepz'" in refused(capsys, "train", "gpt2", "--data", data, *out, "--set", "stepz=3")
    assert "write --set key=value" in refused(capsys, "train", "gpt2", "--data", data, *out, "--set", "steps")
    assert "holds no tokeniser" in refused(capsys, "train", "gpt2", "--data", data, *out, "--tokenizer", tmp_path)
    assert "does not exist" in refused(capsys, "train", "gpt2", "--data", data, *out, "--valid", tmp_path / "no.txt")
    assert not (tmp_path / "run").exists()


def test_an_unwritable_out_is_said(capsys, tmp_path):
    data = tmp_path / "text.txt"
    data.write_text(TEXT, encoding="utf-8")
    assert "Not a directory" in refused(capsys, "train", "gpt2", "--data", data, "--out", data / "run", *settings())


def test_a_typo_in_a_flag_ends_with_status_2_and_a_hint(capsys):
    code, out, error = run(capsys, "complete", "3", "--modle", "x")
    assert (code, out) == (2, "")
    assert "--model" in error


@pytest.mark.parametrize(
    ("cuda", "mps", "device"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_auto_is_a_gpu_where_there_is_one(monkeypatch, cuda, mps, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert auto_device("auto") == device
    assert auto_device("cpu") == "cpu"


def test_the_help_of_train_names_every_preset(capsys):
    from scratchformers.training.recipes import FINETUNE, RECIPES

    shown = " ".join(re.sub(r"[│╭╮╰╯─]", " ", run(capsys, "train", "--help")[1]).split())
    presets = re.search(r"tiny \(the default.*?sizes of the source", shown)
    assert presets
    for key, recipe in RECIPES.items():
        for name in (*(re.sub(r"-\d+$", "-PATCH", preset) for preset in recipe.presets), FINETUNE):
            assert re.search(rf"(?<![\w-]){name}(?![\w-])", presets[0]), name
        steps = recipe.finetune["steps"]
        assert (f"({steps} with a --task)" if " " in key else f"{FINETUNE}: {steps} steps") in presets[0]


@pytest.mark.unhooked
def test_help_answers_without_loading_torch():
    code = "import sys; from scratchformers.cli import main\n"
    code += "for command in ('train', 'complete', 'fill', 'embed', 'classify', 'eval', 'inspect', 'verify', 'page'):\n"
    code += "    try: main([command, '--help'])\n    except SystemExit as stop: assert not stop.code\n"
    code += "assert 'torch' not in sys.modules, 'torch was loaded'"
    for arguments in ([sys.executable, "-c", code], [sys.executable, "-m", "scratchformers", "--help"]):
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert "usage: scratchformers" in done.stdout


def test_completer_takes_a_list_and_gives_a_list(folder):
    completer = sf.Completer.from_pretrained(folder)
    prompts = ["3", "11 times 11", "2 times 4 is"]
    together = completer(prompts, max_new_tokens=12)
    assert together == [completer(prompt, max_new_tokens=12) for prompt in prompts]
    assert completer([]) == []
    with pytest.raises(ValueError, match="The prompt '' has no tokens"):
        completer(["3", ""])
    with pytest.raises(TypeError):
        completer("3", temprature=1.0)


def test_a_completion_ends_before_the_end_token(published):
    class Names:
        vocab = 97

        def encode(self, text):
            return [ord(character) % 97 for character in text]

        def decode(self, ids):
            return " ".join(map(str, ids))

    completer = sf.Completer(sf.load(published[1]), Names())
    answers = completer([chr(97 + i) for i in range(20)], max_new_tokens=40)
    ended = [answer for answer in answers if answer.reason == "end"]
    assert ended
    assert len(ended) < len(answers)
    for answer in answers:
        assert reference.END not in answer.ids
        assert (answer.reason == "length") == (len(answer.ids) == 40)
        assert answer.text == " ".join(map(str, answer.ids))


def test_demo_writes_a_page_that_needs_nothing_beside_it(capsys, tmp_path, monkeypatch):
    from scratchformers.demo import SECTIONS
    from scratchformers.training.recipes import RECIPES

    short = {"steps": 4, "batch": 2, "eval_every": 2, "save_every": 2}
    for name in ("gpt2", "bert", "vit", "mae"):
        window = {"length": 32} if name in ("gpt2", "bert") else {"depth": 1}
        monkeypatch.setitem(RECIPES[name].presets, "tiny", {**short, **window})
    monkeypatch.setitem(RECIPES["clip"].presets, "tiny", {**short, "image_depth": 1, "length": 0})
    monkeypatch.setitem(RECIPES["encoder-decoder"].presets, "tiny", {**short, "dim": 32})
    for _ in range(2):  # a second demo replaces the first
        code, said, error = run(capsys, "demo", "--out", tmp_path / "demo")
        assert (code, error) == (0, "")
        assert str(tmp_path / "demo" / "index.html") in said
    page = (tmp_path / "demo" / "index.html").read_text(encoding="utf-8")
    assert page.count("<img") == page.count('src="data:image/png;base64,') == len(SECTIONS) + 5
    assert not re.search(r"(?:src|href)=[\"'](?!data:)", page), "nothing is fetched"
    assert "continued before the first step" in page
    assert "Step 2" in page
    assert "Step 4" in page
    (tmp_path / "file").write_text("x")
    assert "no folder" in refused(capsys, "demo", "--out", tmp_path / "file")
