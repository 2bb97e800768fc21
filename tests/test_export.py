"""`export`: what transformers loads, and a card that says what is known and nothing else."""

import json
import math

import pytest
import torch
import transformers
from huggingface_hub import ModelCard
from safetensors.torch import load_file

import scratchformers as sf
from scratchformers.cli import main

TEXT = "To be, or not to be: that is the question. Whether it is nobler to suffer, none can say. " * 60


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run in a folder of its own, as `train` leaves it."""
    folder = tmp_path_factory.mktemp("private folder")
    (folder / "words.txt").write_text(TEXT, encoding="utf-8")
    sizes = [
        f"--set={each}" for each in ("steps=12", "eval_every=6", "dim=24", "heads=3", "depth=2", "batch=2", "length=16")
    ]
    data = ["--data", str(folder / "words.txt"), "--out", str(folder / "run")]
    assert main(["train", "gpt2", *data, "--tokenizer", "bpe", "--vocab", "280", "--device", "cpu", *sizes]) == 0
    return folder / "run"


def test_transformers_loads_it_whole_and_bit_equal(run, tmp_path):
    out = tmp_path / "my model"
    assert main(["export", str(run), "--out", str(out), "--license", "mit", "--language", "en"]) == 0
    theirs, told = transformers.GPT2LMHeadModel.from_pretrained(out, output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    assert not told["mismatched_keys"]
    ours, again = sf.load(run / "model"), sf.load(out)
    for name, value in ours.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    assert torch.equal(theirs.transformer.wte.weight, ours.token.weight)
    assert torch.equal(theirs.transformer.h[1].mlp.c_fc.weight.T, ours.blocks[1].mlp.up.weight)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    ids = tokenizer("To be, or not to be")["input_ids"]
    assert ids == sf.load_tokenizer(run / "model").encode("To be, or not to be")
    with torch.no_grad():
        a, b = theirs(torch.tensor([ids])).logits, again(torch.tensor([ids]))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_the_card_says_what_the_run_was(run, tmp_path):
    main(
        [
            "export",
            str(run),
            "--out",
            str(tmp_path / "out"),
            "--license",
            "mit",
            "--language",
            "en",
            "--name",
            "me/words",
        ]
    )
    card = ModelCard.load(tmp_path / "out" / "README.md")
    facts = json.loads((run / "config.json").read_text(encoding="utf-8"))
    log = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    best = min(record["valid_loss"] for record in log if "valid_loss" in record)
    assert card.data.license == "mit"
    assert card.data.language == "en"
    assert card.data.pipeline_tag == "text-generation"
    assert card.data.model_name == "me/words"
    results = {each.metric_type: each.metric_value for each in card.data.eval_results}
    assert results == {"loss": pytest.approx(best, abs=1e-6), "perplexity": pytest.approx(math.exp(best), rel=1e-6)}
    assert not card.data.base_model
    for said in (
        f"{facts['parameters']:,} parameters", "| dim | 24 |", "| depth | 2 |", "`words.txt`", facts["data"]["sha256"],
        f"{facts['data']['tokens']:,} tokens", "12 of 12 steps", f"Validation loss {best:.4f}", "| lr |", "loss.png",
        f"torch {torch.__version__}", "on cpu", "from nothing",
    ):  # fmt: skip
        assert said in card.text, said
    assert "private folder" not in card.content, "where it was trained is nobody's business"
    assert (tmp_path / "out" / "loss.png").read_bytes() == (run / "loss.png").read_bytes()


def test_a_fine_tuned_model_names_its_base(run, tmp_path):
    import shutil

    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    facts = json.loads(path.read_text(encoding="utf-8"))
    for source, base in (("openai-community/gpt2", "openai-community/gpt2"), ("/somewhere/private/model", None)):
        facts["paths"]["source"] = source
        path.write_text(json.dumps(facts), encoding="utf-8")
        assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / f"out-{base is None}")]) == 0
        card = ModelCard.load(tmp_path / f"out-{base is None}" / "README.md")
        assert card.data.base_model == base
        assert "private" not in card.text.replace("wrong, private or offensive", "")


def test_of_a_model_without_a_run_the_card_says_less(published, tmp_path, run):
    assert main(["export", str(published[1]), "--out", str(tmp_path / "out")]) == 0
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.license is None
    assert card.data.eval_results is None
    assert "How it was trained is not known" in card.text
    assert "Validation" not in card.text
    assert "AutoTokenizer" not in card.text
    assert main(["export", str(run / "model"), "--out", str(tmp_path / "again")]) == 0
    assert "12 of 12 steps" in ModelCard.load(tmp_path / "again" / "README.md").text, "a run's model knows its run"


@pytest.mark.parametrize("dtype", [None, "float32", "float16", "bfloat16"])
def test_weights_are_stored_as_asked(published, tmp_path, dtype):
    out = tmp_path / "out"
    assert main(["export", str(published[1]), "--out", str(out), *(["--dtype", dtype] if dtype else [])]) == 0
    stored = {str(value.dtype) for value in load_file(out / "model.safetensors").values()}
    assert stored == {f"torch.{dtype or 'float64'}"}, "by default as the source stores them"
    assert json.loads((out / "config.json").read_text(encoding="utf-8"))["dtype"] == (dtype or "float64")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(out, dtype="auto")
    assert torch.equal(theirs.transformer.wte.weight, published[0].transformer.wte.weight.to(theirs.dtype))


def test_what_lies_in_the_folder_is_left(run, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine", encoding="utf-8")
    assert main(["export", str(run), "--out", str(tmp_path / "out")]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["mine.txt"]
    assert main(["export", str(run), "--out", str(tmp_path / "out"), "--overwrite"]) == 0
    assert (tmp_path / "out" / "mine.txt").read_text(encoding="utf-8") == "mine"


def test_bad_input(run, tmp_path, capsys):
    (tmp_path / "file").write_text("", encoding="utf-8")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.json").write_bytes((run / "config.json").read_bytes())
    for source, out, said in (
        (run, run, "is what is exported"),
        (run, run / "model", "is what is exported"),
        (run / "model", run / "model", "is what is exported"),
        (run, tmp_path / "file", "is a file"),
        (tmp_path / "nothing" / "here", tmp_path / "out", "nothing"),
        (tmp_path / "begun", tmp_path / "out", "has no model yet"),
    ):
        assert main(["export", str(source), "--out", str(out)]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
