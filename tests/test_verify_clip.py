"""`verify` of CLIP in every layout: with transformers, with open_clip, with what was frozen, and alone. Every planted
bug makes it fail and name the place, and so does every change of the weights, the config and what goes in."""

import importlib.util
import json
import shutil

import clip_reference  # before open_clip
import pytest
import torch
import transformers
from clip_reference import END
from safetensors.torch import load_file, save_file
from test_bert_mutants import zeroed
from test_mutants import heads_inside_out
from test_verify_pictures import rows
from test_vision_mutants import edited

import scratchformers as sf
from scratchformers import nn as bricks
from scratchformers.cli import main
from scratchformers.clip_text import train_clip_bpe
from scratchformers.insight import verify as module
from scratchformers.insight.references import REFERENCES
from scratchformers.insight.verify import verify
from scratchformers.models import clip

TOKENIZER = train_clip_bpe(["a photo of a cat", "a dog on the grass, it is"] * 9, 600)
LONG = {"vocab_size": TOKENIZER.vocab, "max_position_embeddings": 29}


def of_transformers(folder, *arguments, text=()):
    """With the tokeniser where there are ids enough, and the preprocessing."""
    clip_reference.clip(*arguments, text=text).float().save_pretrained(folder)
    size = {"size": {"shortest_edge": 25}, "crop_size": {"height": 21, "width": 21}}
    transformers.CLIPImageProcessor(**size).save_pretrained(folder)
    for name, content in TOKENIZER.files.items() if text else ():
        (folder / name).write_bytes(content)
    return folder


def of_open_clip(folder, quick, safe):
    theirs, cfg = clip_reference.open_clip(quick=quick)
    return clip_reference.save_open_clip(theirs.float(), cfg, folder, safe=safe)


def of_openai(folder):
    folder.mkdir()
    torch.save(clip_reference.openai(clip_reference.open_clip(quick=True)[0].float()), folder / "ViT.pt")
    return folder / "ViT.pt"


KINDS = {
    "transformers": lambda folder: of_transformers(folder, "quick_gelu", TOKENIZER.end, text=LONG),
    "transformers, largest": lambda folder: of_transformers(folder, "quick_gelu", 2),
    "transformers, GELU": lambda folder: of_transformers(folder, "gelu", 40),  # an end that is not the largest id
    "open_clip": lambda folder: of_open_clip(folder, False, False),
    "open_clip, quick": lambda folder: of_open_clip(folder, True, True),
    "openai": of_openai,
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Of each kind a folder or file, in float32, and what --freeze wrote of it."""
    whole, made = tmp_path_factory.mktemp("clips"), {}
    for number, (name, make) in enumerate(KINDS.items()):
        made[name] = make(whole / str(number)), whole / f"{number}.safetensors"
        verify(made[name][0], freeze=made[name][1])
    return made


@pytest.fixture
def copy(sources, tmp_path):
    """A folder to tamper with, and what was frozen of it."""

    def make(name):
        shutil.copytree(sources[name][0], tmp_path / "copy")
        return tmp_path / "copy", sources[name][1]

    return make


@pytest.fixture
def alone(monkeypatch):
    """Neither library is installed."""
    find = importlib.util.find_spec
    gone = ("transformers", "open_clip")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in gone else find(name, *a))


BLOCKS = {part: [f"{part}.blocks.{i}" for i in range(count)] for part, count in (("image", 2), ("text", 3))}
TEXT = ["text.blocks.input", *BLOCKS["text"], "text", "output", "without padding"]
PLACES = ["image.first_norm", *BLOCKS["image"], "image", *TEXT]


@pytest.mark.parametrize("name", KINDS)
def test_a_good_checkpoint_passes_in_both_precisions(sources, name):
    source, frozen = sources[name]
    report = verify(source)
    assert (report.passes, report.diverges, report.problems) == (True, None, [])
    normed = [*PLACES[:3], "image.norm", *PLACES[3:]] if name.startswith("transformers") else PLACES
    assert [place.ours for place in report.places] == normed
    for place in report.places:
        assert place.largest["float64"] <= 1e-10 * max(1, place.scale)
        assert place.mean["float32"] <= place.largest["float32"] <= 1e-4 * max(1, place.scale)
        assert place.scale > 0.1, "else anything would pass"
    assert report.agreement == {"float64": 1.0, "float32": 1.0}
    library = transformers if name.startswith("transformers") else clip_reference.open_clip
    kind = "CLIPModel" if library is transformers else "CLIP"
    assert report.against.endswith(f", {kind}")
    assert report.versions.keys() == {"torch", "transformers" if library is transformers else "open_clip"}
    again = verify(source, against=frozen)
    assert again.passes
    assert [place.ours for place in again.places] == normed
    assert (again.tokenizer, again.preprocessing) == (report.tokenizer, report.preprocessing)


def test_what_goes_in_is_compared_where_transformers_reads_it(sources):
    report = verify(sources["transformers"][0])
    assert report.tokenizer == "15 of 15 texts have the same ids and come back the same"
    assert report.preprocessing == "13 of 13 odd pictures become the same numbers"
    assert "same config.json and the same tokeniser and the same preprocessing" in report.caveat
    report = verify(sources["open_clip"][0])
    assert (report.tokenizer, report.preprocessing) == (
        "none", "not compared, for the checkpoint has no preprocessor_config.json",
    )  # fmt: skip


def page(name, old, new):
    return edited(getattr(clip, name), "forward", old, new)


def activation(name, other):
    return lambda patch: patch.setitem(bricks.ACTIVATIONS, name, other)


def eps(value):
    """Of ours alone, whatever the file says."""
    norm = torch.nn.LayerNorm
    return lambda patch: patch.setattr(clip, "partial", lambda function, **given: lambda dim: norm(dim, eps=value))


def largest_ends(patch):
    patch.setattr(clip.CLIP, "encode_text", lambda self, ids: self.text(ids, ids.argmax(-1)))


STATE = "x[torch.arange(len(x), device=x.device), end]"
HF, OPEN = "transformers", "open_clip, quick"
MUTANTS = {
    "GELU for QuickGELU": (HF, activation("quick_gelu", bricks.gelu), "image.blocks.0"),
    "GELU for QuickGELU, open_clip": (OPEN, activation("quick_gelu", bricks.gelu), "image.blocks.0"),
    "GELU for QuickGELU, OpenAI": ("openai", activation("quick_gelu", bricks.gelu), "image.blocks.0"),
    "QuickGELU for GELU": ("transformers, GELU", activation("gelu", bricks.quick_gelu), "image.blocks.0"),
    "QuickGELU for GELU, open_clip": ("open_clip", activation("gelu", bricks.quick_gelu), "image.blocks.0"),
    "tanh GELU": ("transformers, GELU", activation("gelu", bricks.gelu_tanh), "image.blocks.0"),
    "texts see what follows": (HF, page("TextTower", "rows or CAUSAL", "rows"), "text.blocks.0"),
    "texts see what follows, open_clip": (OPEN, page("TextTower", "rows or CAUSAL", "rows"), "text.blocks.0"),
    "texts without padding see what follows": (HF, page("TextTower", "causal=True", "causal=False"), "without padding"),
    "a token is lost without padding": (HF, page("TextTower", "place <= end", "place < end"), "without padding"),
    "pooled at the first token": (HF, page("TextTower", STATE, "x[:, 0]"), "text"),
    "pooled at the first token, open_clip": (OPEN, page("TextTower", STATE, "x[:, 0]"), "text"),
    "pooled at the last token": (HF, page("TextTower", STATE, "x[:, -1]"), "text"),
    "pooled at the last token, OpenAI": ("openai", page("TextTower", STATE, "x[:, -1]"), "text"),
    "the largest id for the end": ("transformers, GELU", largest_ends, "text.blocks.input"),  # fewer are computed
    "no first norm": (HF, page("ImageTower", "self.first_norm(", "("), "image.first_norm"),
    "no first norm, open_clip": (OPEN, page("ImageTower", "self.first_norm(", "("), "image.first_norm"),
    "positions after the first norm": (
        HF, page("ImageTower", "x], dim=1) + self.position)", "x], dim=1)) + self.position"), "image.first_norm",
    ),
    "no last norm of pictures": (HF, page("ImageTower", "self.norm(x[:, 0])", "x[:, 0]"), "image.norm"),
    "no last norm of pictures, open_clip": (OPEN, page("ImageTower", "self.norm(x[:, 0])", "x[:, 0]"), "image"),
    "the mean for the class token": (HF, page("ImageTower", "x[:, 0]", "x.mean(1)"), "image.norm"),
    "no last norm of texts": (HF, page("TextTower", f"self.norm({STATE})", STATE), "text"),
    "texts without positions": (HF, page("TextTower", "self.position(place)", "0 * self.position(place)"),
                                "text.blocks.input"),
    "swapped norms": (HF, rows((".layer_norm1", ".layer_norm2")), "image.blocks.0"),
    "swapped norms, open_clip": (OPEN, rows((".ln_1", ".ln_2")), "image.blocks.0"),
    "another eps": (HF, eps(1e-6), "image.blocks.0"),
    "heads inside out": (HF, heads_inside_out, "image.blocks.0"),
    "a lost bias": (HF, zeroed("attention.out.bias"), "image.blocks.0"),
    "a lost bias of texts, open_clip": (OPEN, zeroed("text.blocks.1.mlp.down.bias"), "text.blocks.1"),
    "pictures not normalised": (
        HF, page("CLIP", "F.normalize(self.encode_image(images), dim=-1)", "self.encode_image(images)"), "output",
    ),
    "texts not normalised": (
        HF, page("CLIP", "F.normalize(self.encode_text(ids), dim=-1)", "self.encode_text(ids)"), "output",
    ),
    "no scale": (HF, page("CLIP", "self.scale.exp() * image", "image"), "output"),
    "the scale's logarithm": (OPEN, page("CLIP", "self.scale.exp() * image", "self.scale * image"), "output"),
}  # fmt: skip


@pytest.mark.unhooked  # planted functions need not have the shapes we promise
@pytest.mark.parametrize("way", ["beside", "against"])
@pytest.mark.parametrize("name", MUTANTS)
def test_a_bug_in_the_code_is_caught(sources, monkeypatch, name, way):
    kind, plant, place = MUTANTS[name]
    plant(monkeypatch)
    source, frozen = sources[kind]
    report = verify(source, **({"against": frozen} if way == "against" else {}))
    assert not report.passes
    assert report.diverges == place


@pytest.mark.unhooked
@pytest.mark.parametrize("name", [name for name, (kind, _, _) in MUTANTS.items() if kind == HF])
def test_a_bug_in_the_code_is_caught_without_a_library(sources, alone, monkeypatch, name):
    """By a small CLIP that comes with us, one of transformers' with QuickGELU, whatever the layout."""
    _, plant, place = MUTANTS[name]
    assert verify(sources["openai"][0]).passes
    plant(monkeypatch)
    for kind in (HF, "openai"):
        report = verify(sources[kind][0])
        assert (report.passes, report.diverges) == (False, place)


# --- tampered checkpoints, against what was frozen of the good ones


def swapped_norms(state):
    for part in ("weight", "bias"):
        a, b = (f"text_model.encoder.layers.1.layer_norm{n}.{part}" for n in (1, 2))
        state[a], state[b] = state[b], state[a]


def colours_reversed(state):
    name = "vision_model.embeddings.patch_embedding.weight"
    state[name] = state[name].flip(1).contiguous()


def one_number(state):
    state["text_projection.weight"][3, 5] += 1e-2


def another_scale(state):
    state["logit_scale"] += 0.01


TAMPERED = [(swapped_norms, "text.blocks.1"), (colours_reversed, "image.first_norm"), (one_number, "text"),
            (another_scale, "output")]  # fmt: skip


@pytest.mark.parametrize(("tamper", "place"), TAMPERED, ids=[tamper.__name__ for tamper, _ in TAMPERED])
def test_a_tampered_weight_is_caught(copy, tamper, place, capsys):
    folder, frozen = copy("transformers")
    state = load_file(folder / "model.safetensors")
    tamper(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    assert verify(folder).passes, "both read the same weights"
    assert main(["verify", str(folder), "--against", str(frozen)]) == 1
    said = capsys.readouterr().out
    assert "The weights are not those that were frozen." in said
    assert f"They do NOT agree. The first place that differs is {place}." in said


def change(path, part, **fields):
    config = json.loads(path.read_text(encoding="utf-8"))
    inner = config
    for name in part:
        inner = inner[name]
    inner.update(fields)
    path.write_text(json.dumps(config), encoding="utf-8")


@pytest.mark.parametrize(
    ("kind", "part", "fields", "said", "place"),
    [
        ("transformers", ["vision_config"], {"num_attention_heads": 7}, "image_heads was 5 and is 7", "image.blocks.0"),
        ("transformers", ["text_config"], {"num_attention_heads": 11}, "text_heads was 3 and is 11", "text.blocks.0"),
        # The frozen texts have no such end, and the model refuses them: nothing is computed.
        ("transformers", ["text_config"], {"eos_token_id": 7}, "end was 5", "image.first_norm"),
        ("open_clip", ["model_cfg"], {"quick_gelu": True}, "activation was gelu and is quick_gelu", "image.blocks.0"),
        ("open_clip", ["model_cfg", "vision_cfg"], {"head_width": 32}, "image_heads was 2 and is 4", "image.blocks.0"),
    ],
)
def test_a_changed_config_is_caught(copy, kind, part, fields, said, place):
    """The same weights fit, and the library would read the same wrong file."""
    folder, frozen = copy(kind)
    change(folder / ("config.json" if kind == "transformers" else "open_clip_config.json"), part, **fields)
    assert verify(folder).passes
    report = verify(folder, against=frozen)
    (problem, *_) = report.problems
    assert problem.startswith(f"The config is not the one that was frozen: {said}")
    assert report.diverges == place


def test_an_activation_that_is_lost_on_the_way_is_caught(copy):
    """Both towers say GELU, as the config of a published model once did."""
    folder, frozen = copy("transformers, largest")
    for part in ("vision_config", "text_config"):
        change(folder / "config.json", [part], hidden_act="gelu")
    assert verify(folder).passes
    report = verify(folder, against=frozen)
    assert report.problems == ["The config is not the one that was frozen: activation was quick_gelu and is gelu."]
    assert report.diverges == "image.blocks.0"


def test_another_tokeniser_or_preprocessing_is_caught(copy):
    folder, frozen = copy("transformers")
    merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    ids = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    a, b = (name for name, number in ids.items() if number in (0, 1))
    ids[a], ids[b] = ids[b], ids[a]
    (folder / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
    assert merges[0].startswith("#version")
    change(folder / "preprocessor_config.json", [], image_mean=[0.5, 0.5, 0.5])
    assert verify(folder).passes, "transformers reads the same files"
    tokens, images = verify(folder, against=frozen).problems
    assert tokens.startswith("The tokeniser differs from the file on ")
    assert images.startswith("The preprocessing differs from the file on 13 of 13 pictures, first on that of ")


def test_a_tokeniser_that_does_not_fit_is_caught(copy):
    folder, _ = copy("transformers")
    other = train_clip_bpe(["one two three four five six seven eight nine ten eleven twelve"] * 9, 900)
    for name, content in other.files.items():
        (folder / name).write_bytes(content)
    report = verify(folder)
    assert report.problems[0].startswith(f"The tokeniser is not this model's: it gives id {other.vocab - 1}")


def test_a_tokeniser_done_wrongly_is_caught(sources, monkeypatch):
    from scratchformers import clip_text

    monkeypatch.setattr(clip_text, "clean", lambda text: text)
    (problem,) = verify(sources["transformers"][0]).problems
    assert problem.startswith("The tokeniser differs from transformers on ")


# --- open_clip's and OpenAI's


def test_of_open_clips_files_a_missing_tensor_is_a_problem(copy):
    """Ours refuses it; that open_clip would too is seen when ours does not."""
    folder, _ = copy("open_clip, quick")
    state = load_file(folder / "open_clip_model.safetensors")
    del state["transformer.resblocks.1.ln_2.bias"]
    save_file(state, folder / "open_clip_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 missing: transformer\.resblocks\.1\.ln_2\.bias"):
        verify(folder)
    _, told = module._load_open_clip(clip_reference_library(), folder, "", {}, torch.float64)
    assert "transformer.resblocks.1.ln_2.bias" in told["the checkpoint"][0]


def clip_reference_library():
    import open_clip

    return open_clip


def test_a_file_of_openais_is_read_at_full_precision_and_never_by_torch_jit(sources, monkeypatch):
    """open_clip would round some of its weights to half precision, and run what is in the archive."""
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("the archive was run"))
    source, _ = sources["openai"]
    theirs, told = module._load_open_clip(clip_reference_library(), source, "", {}, torch.float64)
    assert not told
    expected = clip_reference.open_clip(quick=True)[0].float().state_dict()
    for name, value in theirs.state_dict().items():
        assert torch.equal(value, expected[name].double()), name


def test_a_published_file_is_known_by_its_digest_and_its_config_is_compared(sources, monkeypatch):
    source, _ = sources["openai"]
    assert verify(source).published is None
    digest = module._sha256(source)
    monkeypatch.setitem(REFERENCES["CLIP"].published, "ViT-B/32", (None, digest))
    report = verify(source)
    assert report.published == "ViT-B/32"
    assert report.problems[0].startswith("The config is not the one these weights were published with: image was 224")
    assert {name for name, (size, _) in REFERENCES["CLIP"].published.items() if size is None} == {
        "ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["open_clip", "openai"])
def test_without_open_clip_the_code_is_proven_and_the_sentence_says_so(sources, alone, name, capsys):
    source = str(sources[name][0])
    assert main(["verify", source]) == 0
    said = capsys.readouterr().out
    assert "This proves the code, not the checkpoint" in said
    assert "`pip install open_clip_torch`" in said
    assert main(["verify", source, "--freeze", "x"]) == 2
    assert "--freeze writes what open_clip answers: it needs `pip install open_clip_torch`" in capsys.readouterr().err


def test_an_open_clip_that_cannot_be_imported_is_a_sentence(sources, monkeypatch):
    """torchvision, which it needs, raises this where it was built for another torch."""

    def broken():
        raise RuntimeError("operator torchvision::nms does not exist\nat all")

    monkeypatch.setitem(module.LIBRARIES, "open_clip", (broken, module._load_open_clip))
    with pytest.raises(ValueError, match=r"open_clip is installed and cannot be imported \(operator .* exist\): mend"):
        verify(sources["open_clip"][0])


# --- the report


def test_a_report_speaks_of_both(sources, capsys):
    source = str(sources["transformers"][0])
    assert main(["verify", source]) == 0
    shown = capsys.readouterr().out
    assert "…" not in shown, "nothing is cut off"
    assert "Tokeniser: 15 of 15 texts" in shown
    assert "Preprocessing: 13 of 13 odd pictures" in shown
    assert main(["verify", source, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["model"], said["passes"], said["diverges"]) == ("CLIP", True, None)
    assert main(["verify", str(sources["openai"][0])]) == 0
    shown = capsys.readouterr().out
    assert "encode_text()" in shown
    assert "Both read the same file: whether" in shown


def test_weights_that_are_not_numbers_fail(copy, alone):
    folder, _ = copy("transformers")
    state = load_file(folder / "model.safetensors")
    state["text_model.final_layer_norm.weight"][0] = torch.nan
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    report = verify(folder)
    assert report.problems == ["The checkpoint's weights are not all finite numbers: text.norm.weight."]
    assert (report.preprocessing, report.tokenizer) == ("not compared", "not compared")


def test_one_position_and_one_token_can_be_verified(tmp_path):
    sizes = {"vocab_size": 2, "max_position_embeddings": 1}
    clip_reference.clip("gelu", 1, text=sizes).float().save_pretrained(tmp_path)
    report = verify(tmp_path)
    assert report.passes, report


def test_what_is_compared_ends_at_different_places():
    """Else a model that reads every text at its last position would pass."""
    config = sf.CLIPConfig(image=8, patch=4, vocab=97, length=13, end=40)
    ids = REFERENCES["CLIP"].cases(config, torch.Generator().manual_seed(0), [])["whole"]["ids"]
    ends = (ids == 40).int()
    assert ends.sum(1).tolist() == [1] * len(ids)
    places = ends.argmax(1).tolist()
    assert len({*places}) == len(places) == 4
    assert places[-1] == 12
    assert int(ids.max()) > 40
    config = sf.CLIPConfig(image=8, patch=4, vocab=97, length=13)
    ids = REFERENCES["CLIP"].cases(config, torch.Generator().manual_seed(0), [])["whole"]["ids"]
    assert ids.argmax(1).tolist() == places
    assert int(ids.max()) == END
