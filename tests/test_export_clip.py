"""`export` of CLIP: what transformers loads, whatever layout it came in, and a card that says how to use it."""

import dataclasses
import json
import re
from pathlib import Path

import clip_reference
import numpy as np
import open_clip
import pytest
import torch
import transformers
from clip_reference import answers, pictures, texts
from huggingface_hub import ModelCard
from PIL import Image

import scratchformers as sf
from scratchformers.checkpoints.clip import read_open_clip, write_open_clip
from scratchformers.checkpoints.pretrained import spelt_out
from scratchformers.cli import main
from scratchformers.clip_text import openai_clip_bpe
from scratchformers.images import Preprocess
from scratchformers.insight.export import OPENAIS, WORDS

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


def read_by_open_clip(folder):
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    return model.eval(), preprocess, open_clip.get_tokenizer(f"local-dir:{folder}")


def test_open_clip_reads_a_run_whole_and_says_the_same(run, tmp_path):
    card = exported(run, tmp_path / "out", "--layout", "open_clip")
    assert card.data.library_name == "open_clip"
    assert "in the layout that open_clip reads" in card.text
    assert {"open_clip_config.json", "open_clip_model.safetensors"} < {
        each.name for each in (tmp_path / "out").iterdir()
    }
    assert not (tmp_path / "out" / "config.json").exists()
    theirs, preprocess, tokenizer = read_by_open_clip(tmp_path / "out")
    ours = sf.load(run / "model")
    said, images = ["a cat number 3", "a dog"], [picture(50), picture(51, (40, 22))]
    rows = sf.load_tokenizer(run / "model").encode_batch(said)
    ids, x = tokenizer(said), torch.stack([preprocess(each) for each in images])
    assert [row[: len(one)] for row, (one, _) in zip(ids.tolist(), rows)] == [one for one, _ in rows]
    with torch.no_grad():
        for found, wanted in (
            (ours.encode_text(ids), theirs.encode_text(ids)),
            (ours.encode_image(x), theirs.encode_image(x)),
        ):
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    again = sf.load(tmp_path / "out")
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in again.state_dict().items())
    both = (sf.ZeroShotClassifier.from_pretrained(folder) for folder in (tmp_path / "out", run / "model"))
    found, wanted = (task(images[0], said, templates="{}")[0] for task in both)
    assert (found.label, found.score) == (wanted.label, pytest.approx(wanted.score, abs=1e-5))


@pytest.mark.parametrize("make", [of_open_clip, of_openai])
def test_what_came_from_open_clip_goes_back_bit_for_bit(tmp_path, make):
    theirs, source = make(tmp_path / "theirs")
    exported(source, tmp_path / "out", "--layout", "open_clip")
    again, preprocess, tokenizer = read_by_open_clip(tmp_path / "out")
    assert type(tokenizer) is open_clip.SimpleTokenizer, "which has OpenAI's words"
    wanted = {name: value.float() for name, value in theirs.state_dict().items()}
    assert {name: value.float().tolist() for name, value in again.state_dict().items()} == {
        name: value.tolist() for name, value in wanted.items()
    }
    assert torch.allclose(preprocess(picture(3, (42, 42))), sf.load_preprocess(source)(picture(3, (42, 42))))


def test_openais_words_are_known_to_open_clip(tmp_path):
    sizes = {"image_dim": 20, "image_heads": 5, "image_depth": 1, "text_dim": 18, "text_heads": 3, "text_depth": 1}
    model = sf.CLIP(sf.CLIPConfig(image=16, patch=4, dim=11, end=49407, **sizes))
    model.assets |= openai_clip_bpe(Path(open_clip.__file__).with_name("bpe_simple_vocab_16e6.txt.gz")).files
    model.save_pretrained(tmp_path / "ours")
    exported(tmp_path / "ours", tmp_path / "out", "--layout", "open_clip")
    tokenizer = read_by_open_clip(tmp_path / "out")[2]
    assert type(tokenizer) is open_clip.SimpleTokenizer
    assert tokenizer("a photo of a cat")[0, :7].tolist() == OPENAIS == sf.load_tokenizer(tmp_path / "out").encode(WORDS)


@pytest.mark.parametrize("name", [*sf.CLIP.presets])
def test_every_preset_is_one_of_open_clips(name):
    config = sf.CLIP.preset(name)
    side, kind = config.image, Preprocess
    for made, mode in ((kind(side, (side, side)), "shortest"), (kind((side, side)), "squash")):
        said = write_open_clip(config, made, own_words=False)
        assert spelt_out(sf.CLIPConfig(**read_open_clip(said))) == spelt_out(config)
        assert said["preprocess_cfg"]["resize_mode"] == mode


def test_what_open_clip_has_not_is_refused(capsys, run, tmp_path):
    config = sf.CLIPConfig(image=32, patch=4)
    for changes, said in (
        ({"eps": 1e-6}, "open_clip has no CLIP with eps 1e-06"),
        ({"end": 7}, "with end 7"),
        ({"activation": "relu"}, "with activation 'relu'"),
        ({"channels": 1}, "with channels 1"),
        ({"image": 64}, "with pictures of 64 that are resized to 32 and cropped to"),
    ):
        changed = dataclasses.replace(config, **changes)
        with pytest.raises(ValueError, match=said):
            write_open_clip(changed, Preprocess(32, (32, 32)), own_words=False)
    sf.GPT2(sf.GPT2Config(vocab=11, length=5, dim=6, depth=1, heads=2)).save_pretrained(tmp_path / "gpt2")
    assert main(["export", str(tmp_path / "gpt2"), "--out", str(tmp_path / "x"), "--layout", "open_clip"]) == 2
    assert "open_clip reads no GPT2: leave --layout out." in capsys.readouterr().err
    exported(run, tmp_path / "out")
    more = ["--layout", "open_clip", "--overwrite"]
    assert main(["export", str(run), "--out", str(tmp_path / "out"), *more]) == 2
    assert "holds model.safetensors, which would be read instead" in capsys.readouterr().err


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
