"""`export` of CLIP: what transformers loads, whatever layout it came in, and a card that says how to use it."""

import json
import re

import clip_reference
import numpy as np
import pytest
import torch
import transformers
from clip_reference import answers, pictures, texts
from huggingface_hub import ModelCard
from PIL import Image

import scratchformers as sf
from scratchformers.cli import main

SIZES = ["image=16", "patch=4", "image_dim=20", "image_heads=5", "image_depth=2", "text_dim=18", "text_heads=3"]
SIZES += ["text_depth=1", "dim=11", "steps=6", "eval_every=3", "batch=4", "threads=1", "crop=0.6"]


def picture(seed=0, size=(19, 23)):
    levels = np.random.RandomState(seed).randint(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(levels)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run, as `train` leaves it, on pictures with captions."""
    whole = tmp_path_factory.mktemp("private folder")
    (whole / "animals").mkdir()
    lines = ["path\tcaption"]
    for i in range(24):
        picture(i).save(whole / "animals" / f"{i}.png")
        lines.append(f"{i}.png\ta {('cat', 'dog', 'emu')[i % 3]} number {i}")
    (whole / "animals" / "captions.tsv").write_text("\n".join(lines), encoding="utf-8")
    given = [f"--set={each}" for each in SIZES]
    data = ["--data", str(whole / "animals"), "--out", str(whole / "run"), "--device", "cpu", "--vocab", "540"]
    assert main(["train", "clip", *data, *given]) == 0
    return whole / "run"


def exported(source, out, *more):
    assert main(["export", str(source), "--out", str(out), *more]) == 0
    return ModelCard.load(out / "README.md")


def loaded(folder, dtype=torch.float32):
    kind = transformers.AutoModelForZeroShotImageClassification
    theirs, told = kind.from_pretrained(folder, output_loading_info=True, dtype=dtype)
    assert not [what for what in ("missing_keys", "unexpected_keys", "mismatched_keys") if told[what]]
    return theirs.eval()


def of_transformers(folder):
    theirs = clip_reference.clip("gelu", clip_reference.END)
    theirs.save_pretrained(folder)
    return theirs, folder


def of_open_clip(folder):
    theirs, cfg = clip_reference.open_clip()
    return theirs, clip_reference.save_open_clip(theirs, cfg, folder)


def of_openai(folder):
    folder.mkdir()
    theirs, _ = clip_reference.open_clip(quick=True)
    torch.save(clip_reference.openai(theirs), folder / "ViT.pt")
    return theirs, folder / "ViT.pt"


@pytest.mark.parametrize("make", [of_transformers, of_open_clip, of_openai])
def test_every_layout_becomes_one_that_transformers_reads_bit_for_bit(tmp_path, make):
    theirs, source = make(tmp_path / "theirs")
    card = exported(source, tmp_path / "out")
    said = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert (said["model_type"], said["architectures"]) == ("clip", ["CLIPModel"])
    assert "How it was trained is not known" in card.text
    assert "in the layout that Hugging Face's transformers reads" in card.text
    again, model = loaded(tmp_path / "out", torch.float64), sf.load(source, dtype=torch.float64)
    assert torch.equal(again.vision_model.embeddings.position_embedding.weight, model.image.position[0])
    assert torch.equal(again.text_projection.weight, model.text.project.weight)
    state = sf.load(tmp_path / "out", dtype=torch.float64).state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(state[name], value), name
    for name, value in answers(theirs, pictures(), texts()).items():
        torch.testing.assert_close(answers(again, pictures(), texts())[name], value, rtol=0, atol=1e-10)


def test_transformers_loads_a_run_whole_and_says_the_same(run, tmp_path):
    exported(run, tmp_path / "out")
    theirs, ours = loaded(tmp_path / "out"), sf.load(run / "model")
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "out")
    said = ["a cat number 3", "an emu"]
    given = processor(text=said, padding=True, return_tensors="pt")
    tokenizer = sf.load_tokenizer(run / "model")
    for text, ids in zip(said, given["input_ids"].tolist()):
        own = tokenizer.encode(text)
        assert ids[: len(own)] == own
    x = sf.load_preprocess(run / "model")(picture(50, (16, 16)))[None]
    with torch.no_grad():
        scores = theirs(input_ids=given["input_ids"], pixel_values=x).logits_per_image
        torch.testing.assert_close(ours(x, given["input_ids"]), scores, rtol=0, atol=1e-4)


def test_the_card_says_what_the_run_was(run, tmp_path):
    card = exported(run, tmp_path / "out", "--license", "mit", "--name", "me/animals")
    facts = json.loads((run / "config.json").read_text(encoding="utf-8"))
    log = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    best = [record for record in log if record.get("best")][-1]
    assert (card.data.pipeline_tag, card.data.library_name) == ("zero-shot-image-classification", "transformers")
    assert card.data.tags == ["scratchformers", "clip"]
    results = {each.metric_type: each for each in card.data.eval_results}
    assert {"loss", "recall"} <= results.keys()
    assert "perplexity" not in results
    assert results["loss"].metric_value == pytest.approx(best["valid_loss"], abs=1e-6)
    assert results["loss"].dataset_type == "image"
    for each in (
        f"{facts['parameters']:,} parameters", "| image | 16 |", "| text_dim | 18 |", "`animals`",
        facts["data"]["sha256"], f"{facts['data']['pictures']} pictures", "6 of 6 steps", "24 pictures seen",
        f"{best['valid_loss']:.4f} nats a pair", f"recall {best['valid_recall']:.4f}", "Read at 16 x 16 pixels",
        "crops of at least 60% of them", f"Tokeniser: {facts['tokenizer']['vocab']} ids.", "loss.png",
        "Which of some labels it finds best", f"each seen {24 / facts['data']['pictures']:.1f} times",
    ):  # fmt: skip
        assert each in card.text, each
    assert not re.search(r"nats a (token|label|picture)|perplexity|private folder", card.content)


def test_what_the_card_proposes_runs(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    card = exported(run, tmp_path / "out")
    picture().save(tmp_path / "photo.jpg")
    found = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    assert len(found) == 2
    for code in found:
        exec(compile(code, "README.md", "exec"), {})
    assert 'templates=["{}"]' in found[0], "it has no room for others"
    assert capsys.readouterr().out.count("Label(label=") == 2
