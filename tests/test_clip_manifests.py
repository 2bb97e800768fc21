"""What stands in the published CLIPs, by name, shape and dtype, and how it loads. No weights are at hand: each manifest
says what was found where, and what was derived.
"""

import copy
import dataclasses
import hashlib
import json
import re
from pathlib import Path

import clip_reference  # before open_clip
import manifests
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import scratchformers as sf
from scratchformers.checkpoints import openai, tables
from scratchformers.checkpoints.pretrained import _Uninitialised, spelt_out
from scratchformers.images import Preprocess

END = 49407  # the vocabulary's last id
# What each holds: its layout, the preset it is, and the id that config.json says ends a text (None: the largest does).
HELD = {
    **{Path(each.url).stem: ("openai-clip", name, None) for name, each in openai.MODELS.items()},
    "clip-vit-base-patch32": ("clip", "ViT-B/32", None),
    "clip-vit-base-patch16": ("clip", "ViT-B/16", None),
    "clip-vit-large-patch14": ("clip", "ViT-L/14", END),
    "clip-vit-large-patch14-336": ("clip", "ViT-L/14@336px", END),
    "CLIP-ViT-B-32-laion2B-s34B-b79K": ("clip", "ViT-B-32", END),
    "CLIP-ViT-H-14-laion2B-s32B-b79K": ("clip", "ViT-H-14", END),
    "CLIP-ViT-g-14-laion2B-s12B-b42K": ("clip", "ViT-g-14", END),
    "CLIP-ViT-bigG-14-laion2B-39B-b160k": ("clip", "ViT-bigG-14", END),
    "CLIP-ViT-B-32-laion2B-s34B-b79K.open_clip": ("open_clip", "ViT-B-32", None),
    "CLIP-ViT-H-14-laion2B-s32B-b79K.open_clip": ("open_clip", "ViT-H-14", None),
    "CLIP-ViT-g-14-laion2B-s12B-b42K.open_clip": ("open_clip", "ViT-g-14", None),
    "CLIP-ViT-bigG-14-laion2B-39B-b160k.open_clip": ("open_clip", "ViT-bigG-14", None),
}
# Buffers, and the sizes that OpenAI's files state: nothing is loaded from them.
BUFFERS = {"text_model.embeddings.position_ids", "vision_model.embeddings.position_ids"}
SIZES = {"input_resolution", "context_length", "vocab_size"}


class Manifest(manifests.Manifest):
    """Of files of two stacks of layers, some of which have no config.json."""

    @property
    def config(self):
        return self.content.get("config", {})

    def shapes(self, depth=None):
        found, depths = {}, self.content["depths"]
        for key, value in self.content["tensors"].items():
            dtype, *shape = value.split()  # none: a single number
            layers = depth or depths["image" if key.startswith("vis") else "text"]
            for i in range(layers) if "*" in key else [0]:
                found[key.replace("*", str(i))] = dtype, [int(size) for size in "".join(shape).split("x") if size]
        return found

    def tensors(self, depth=None, device="meta"):
        """The sizes have their values."""
        sizes = {key: torch.tensor(value) for key, value in self.content.get("sizes", {}).items()}
        return super().tensors(depth, device) | sizes


def named_otherwise(manifest, change):
    """The same with other names or dtypes: `change` of a name and a value gives both."""
    return Manifest(
        {**manifest.content, "tensors": dict(change(*item) for item in manifest.content["tensors"].items())}
    )


MANIFESTS = {name: Manifest(each.content) for name, each in manifests.read("clip").items()}
LAYOUTS = {layout.model_type: layout for layout in sf.CLIP.layouts}


def of(layout):
    return [name for name, (each, *_) in HELD.items() if each == layout]


def with_file(name):
    return [each for each, manifest in MANIFESTS.items() if "bytes" in manifest.content["files"].get(name, {})]


def layout_of(name, tensors):
    """As `from_pretrained` finds it."""
    (layout,) = [each for each in sf.CLIP.layouts if each.matches(MANIFESTS[name].config or None, tensors)]
    return layout


def config_of(name, tensors=None):
    """What its config.json says; where there is none, what its tensors tell."""
    layout = LAYOUTS[HELD[name][0]]
    published = MANIFESTS[name].config
    return layout.read(published) if published else sf.CLIPConfig(**layout.infer(tensors or MANIFESTS[name].tensors()))


def shapes_of(config):
    with torch.device("meta"), _Uninitialised():
        return {key: value.shape for key, value in sf.CLIP(config).state_dict().items()}


def small(name, depth=1):
    return dataclasses.replace(config_of(name), image_depth=depth, text_depth=depth)


def written(manifest):
    """config.json as it was published. In some it was edited by hand: a space more, which `spaced` names."""
    config = dict(manifest.config)
    for part in manifest.content.get("spaced", []):
        config[part] = {key + " " * (key == "projection_dim"): value for key, value in config[part].items()}
    return (json.dumps(config, indent=2) + "\n").replace('"projection_dim "', '"projection_dim" ').encode()


def agrees(content, known):
    assert len(content) == known["bytes"]
    assert hashlib.sha256(content).hexdigest() == known["sha256"]


def test_there_is_one_per_published_file():
    assert MANIFESTS.keys() == HELD.keys()
    assert openai.MODELS.keys() <= {preset for _, preset, _ in HELD.values()}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_agrees_with_what_is_known_of_the_files(name):
    manifest = MANIFESTS[name]
    assert manifest.content["found"]
    assert manifest.content["derived"]
    known, shapes, data = manifest.content["files"], manifest.shapes(), manifest.data()
    if HELD[name][0] != "openai-clip":
        numbers = sum(torch.Size(shape).numel() for dtype, shape in shapes.values() if dtype == "F32")
        assert all(each.get("numbers", numbers) == numbers for each in known.values())
    for file, each in known.items():
        if "header" in each:
            assert each["header"] in manifest.headers()
            assert 8 + each["header"] + data == each["bytes"]
        elif "bytes" in each and not file.endswith(".json"):  # a pickle in a zip; OpenAI's have programs too
            assert data < each["bytes"] < data + (1800 if file.endswith(".pt") else 400) * len(shapes)


@pytest.mark.parametrize("name", with_file("config.json"))
def test_a_config_is_written_as_published(name):
    agrees(written(MANIFESTS[name]), MANIFESTS[name].content["files"]["config.json"])


@pytest.mark.parametrize("name", with_file("preprocessor_config.json"))
def test_a_preprocessor_is_written_as_published(name):
    content = MANIFESTS[name].content
    agrees(
        (json.dumps(content["preprocessor"], indent=2) + "\n").encode(), content["files"]["preprocessor_config.json"]
    )


def test_open_clips_configs_are_written_as_published():
    """One of known digest, with a newline at its end; one of known length, without."""
    known = {
        name: MANIFESTS[name].content["files"]["open_clip_config.json"] for name in with_file("open_clip_config.json")
    }
    (digested, measured) = known
    agrees((json.dumps(MANIFESTS[digested].config, indent=4) + "\n").encode(), known[digested])
    assert len(json.dumps(MANIFESTS[measured].config, indent=4)) == known[measured]["bytes"]
    for name in of("open_clip"):
        assert MANIFESTS[name].config["model_cfg"] == open_clip.get_model_config(HELD[name][1])


@pytest.mark.parametrize("name", of("openai-clip"))
def test_openais_address_and_digest_are_those_that_are_fetched(name):
    fetched, content = openai.MODELS[HELD[name][1]], MANIFESTS[name].content
    assert fetched.url == content["url"]
    assert {fetched.name: fetched.sha256} == {file: each["sha256"] for file, each in content["files"].items()}


@pytest.mark.parametrize("name", [*with_file("model.safetensors"), *with_file("open_clip_model.safetensors")])
@pytest.mark.parametrize("changes", [{"pre_layrnorm": "pre_layernorm", "ln_pre": "pre"}, {"fc1": "up", "c_fc": "up"}])
def test_a_header_of_other_names_would_be_of_another_length(name, changes):
    manifest = MANIFESTS[name]
    (known,) = [each["header"] for each in manifest.content["files"].values() if "header" in each]

    def change(key, value):
        return next((key.replace(old, new) for old, new in changes.items() if old in key), key), value

    assert known in manifest.headers()
    assert known not in named_otherwise(manifest, change).headers()


@pytest.mark.parametrize("name", with_file("model.safetensors"))
def test_the_buffers_of_older_versions_are_in_the_file(name):
    content, known = MANIFESTS[name].content, MANIFESTS[name].content["files"]["model.safetensors"]
    rest = Manifest({**content, "tensors": {k: v for k, v in content["tensors"].items() if k not in BUFFERS}})
    assert known["bytes"] - 8 - rest.data() not in rest.headers()


@pytest.mark.parametrize("name", of("openai-clip"))
@pytest.mark.parametrize("whole", ["ln_", "token_embedding", "embedding", "proj"])
def test_halved_otherwise_openais_files_would_be_of_another_size(name, whole):
    """Norms, tables and the class token are in single precision, projections in half."""
    manifest = MANIFESTS[name]
    (known,) = [each["bytes"] for each in manifest.content["files"].values()]
    swapped = {"F16": "F32", "F32": "F16"}

    def change(key, value):
        return key, swapped[value[:3]] + value[3:] if whole in key and value[:3] in swapped else value

    data = named_otherwise(manifest, change).data()
    assert not data < known < data + 1800 * len(manifest.shapes())


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_published_config_is_the_preset(name):
    layout, preset, end = HELD[name]
    tensors = MANIFESTS[name].tensors()
    assert layout_of(name, tensors).model_type == layout
    config = config_of(name, tensors)
    assert spelt_out(config) == spelt_out(dataclasses.replace(sf.CLIP.preset(preset), end=end))
    told = LAYOUTS[layout].infer(tensors)
    assert told
    assert told.items() <= spelt_out(config).items(), "and what its tensors tell agrees"


@pytest.mark.parametrize("name", MANIFESTS)
def test_an_activation_is_openais_or_everybody_elses(name):
    publisher = MANIFESTS[name].content.get("repository", "openai/").partition("/")[0]
    assert config_of(name).activation == {"openai": "quick_gelu", "laion": "gelu"}[publisher]


@pytest.mark.parametrize("name", of("clip"))
def test_a_config_is_read_as_transformers_reads_it(name):
    """Some say a tower twice, and what they leave out the second time is then transformers' own: of eos_token_id 2
    (the largest id ends a text) nothing is left, and the end is the vocabulary's last id, which is the largest."""
    theirs, config = CLIPConfig(**copy.deepcopy(MANIFESTS[name].config)), config_of(name)
    assert theirs.text_config.eos_token_id == (2 if config.end is None else config.end)
    assert config.end in (None, config.vocab - 1)
    for part, ours in (("vision", "image"), ("text", "text")):
        said = getattr(theirs, f"{part}_config")
        fields = {"dim": "hidden_size", "depth": "num_hidden_layers", "heads": "num_attention_heads",
                  "hidden": "intermediate_size"}  # fmt: skip
        for field, named in fields.items():
            assert spelt_out(config)[f"{ours}_{field}"] == getattr(said, named), (part, named)
        assert (config.activation, config.eps) == (said.hidden_act, said.layer_norm_eps)
    vision, text = theirs.vision_config, theirs.text_config
    assert (config.image, config.patch, config.channels) == (vision.image_size, vision.patch_size, vision.num_channels)
    assert (config.vocab, config.length, config.dim) == (
        text.vocab_size, text.max_position_embeddings, theirs.projection_dim)  # fmt: skip


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_loads_with_nothing_missing_and_nothing_unknown(name):
    tensors, config, layout = MANIFESTS[name].tensors(), config_of(name), LAYOUTS[HELD[name][0]]
    loaded = tables.load(layout, tensors, shapes_of(config), config)
    assert {key: value.shape for key, value in loaded.items()} == shapes_of(config)
    saved = tables.save(layout, loaded, config)
    expected = {key: list(value.shape) for key, value in tensors.items() if key not in BUFFERS | SIZES}
    assert {key: list(value.shape) for key, value in saved.items()} == expected, "and what it was"


def test_all_are_saved_under_transformers_names():
    """What OpenAI and open_clip publish is saved as the hub's files of the same size are named."""
    hub = {preset: MANIFESTS[name].shapes() for name, (layout, preset, _) in HELD.items() if layout == "clip"}
    for name in [*of("openai-clip"), *of("open_clip")]:
        config, tensors = config_of(name), MANIFESTS[name].tensors()
        loaded = tables.load(LAYOUTS[HELD[name][0]], tensors, shapes_of(config), config)
        saved = {key: list(value.shape) for key, value in tables.save(LAYOUTS["clip"], loaded, config).items()}
        assert saved == {key: shape for key, (_, shape) in hub[HELD[name][1]].items() if key not in BUFFERS}


def fails(name, tensors, said, key):
    with pytest.raises(ValueError, match=said) as caught:
        tables.load(LAYOUTS[HELD[name][0]], tensors, shapes_of(small(name)), small(name))
    assert key in str(caught.value)


@pytest.mark.parametrize("name", ["ViT-B-32", "clip-vit-base-patch32", "CLIP-ViT-g-14-laion2B-s12B-b42K.open_clip"])
def test_every_key_that_is_lost_added_or_misshapen_is_caught(name):
    """In one layer; the others are as this."""
    tensors = MANIFESTS[name].tensors(depth=1, device="cpu")
    shapes = shapes_of(small(name))
    layout = LAYOUTS[HELD[name][0]]
    assert tables.load(layout, tensors, shapes, small(name)).keys() == shapes.keys()
    for key in tensors:
        rest = {other: value for other, value in tensors.items() if other != key}
        fails(name, {**tensors, key + "x": tensors[key]}, "1 unknown: ", key + "x")
        if key in BUFFERS | SIZES:  # not needed
            assert tables.load(layout, rest, shapes, small(name)).keys() == shapes.keys()
            continue
        fails(name, rest, "1 missing: ", key)
        wrong = tensors[key][:-1] if tensors[key].ndim else tensors[key][None]
        fails(name, {**tensors, key: wrong}, "1 wrong: ", key)


@pytest.mark.parametrize("name", ["clip-vit-base-patch32", "CLIP-ViT-B-32-laion2B-s34B-b79K.open_clip"])
def test_a_folder_of_the_published_size_loads(name, tmp_path):
    """All weights are zeros, which take no room where the file system leaves holes."""
    manifest = MANIFESTS[name]
    weights, config = ("open_clip_model.safetensors", "open_clip_config.json") if "." in name else (
        "model.safetensors", "config.json")  # fmt: skip
    known = manifest.content["files"][weights]
    header = manifest.header()
    with (tmp_path / weights).open("wb") as file:
        file.write(known["header"].to_bytes(8, "little") + header.ljust(known["header"]))
        file.truncate(known["bytes"])
    (tmp_path / config).write_text(json.dumps(manifest.config), encoding="utf-8")
    model = sf.load(tmp_path)
    assert spelt_out(model.config) == spelt_out(sf.CLIP.preset(HELD[name][1]))
    assert not any(parameter.any() for parameter in model.parameters())


def test_the_references_files_are_named_as_the_published(tmp_path):
    """So that what test_clip.py compares is what is published, layer for layer."""

    def named(tensors):
        return {re.sub(r"\.\d+\.", ".*.", key) for key in tensors}

    clip_reference.clip().save_pretrained(tmp_path)
    saved = named(load_file(tmp_path / "model.safetensors"))
    theirs, _ = clip_reference.open_clip()
    expected = {
        "clip": saved | BUFFERS,
        "open_clip": named(theirs.state_dict()),
        "openai-clip": named(clip_reference.openai(theirs)),
    }
    for name, manifest in MANIFESTS.items():
        assert expected[HELD[name][0]] == manifest.content["tensors"].keys(), name


@pytest.mark.parametrize("name", of("openai-clip"))
def test_openais_files_are_halved_as_its_code_halves(name):
    """Which open_clip has too."""
    theirs = clip_reference.open_clip()[0].float()
    open_clip.model.convert_weights_to_fp16(theirs)
    names = {torch.float16: "F16", torch.float32: "F32"}
    expected = {re.sub(r"\.\d+\.", ".*.", key): names[value.dtype] for key, value in theirs.state_dict().items()}
    found = {key: value.split()[0] for key, value in MANIFESTS[name].content["tensors"].items()}
    assert found == expected | dict.fromkeys(SIZES, "I64")


def picture(width, height):
    generator = torch.Generator().manual_seed(width * height)
    pixels = torch.randint(0, 256, (height // 9 + 1, width // 9 + 1, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy()).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("name", of("clip"))
def test_pictures_are_prepared_as_the_published_file_says(name):
    said = MANIFESTS[name].content["preprocessor"]
    ours, theirs = Preprocess.read(said), CLIPImageProcessorPil(**said)
    assert ours.shape == (config_of(name).image,) * 2
    for size in ((500, 375), (337, 401), (225, 224), (90, 61)):  # odd margins among them, and one that grows
        expected = theirs(picture(*size), return_tensors="pt")["pixel_values"][0]
        assert torch.equal(ours(picture(*size)), expected), size


@pytest.mark.parametrize("name", of("open_clip"))
def test_pictures_are_prepared_as_open_clip_does(name):
    manifest, config = MANIFESTS[name], config_of(name)
    ours = LAYOUTS["open_clip"].preprocess(manifest.config, config, name)
    said = manifest.config["preprocess_cfg"]
    theirs = open_clip.image_transform(config.image, is_train=False, mean=tuple(said["mean"]), std=tuple(said["std"]))
    for size in ((500, 375), (337, 401), (225, 224), (90, 61)):
        assert torch.equal(ours(picture(*size)), theirs(picture(*size))), size


# What a config.json says twice.


@pytest.fixture
def twice(tmp_path):
    """Tiny, as clip-vit-large-patch14-336 is published: each tower twice, and not the same both times."""
    theirs = clip_reference.clip()
    theirs.save_pretrained(tmp_path)
    said = json.loads((tmp_path / "config.json").read_text("utf-8"))
    for part in ("text", "vision"):
        said[f"{part}_config_dict"] = {**said[f"{part}_config"], "kept": part}
    said["vision_config"]["kept"] = "as it was"
    said["text_config"]["num_attention_heads"] = 11
    (tmp_path / "config.json").write_text(json.dumps(said), "utf-8")
    return tmp_path


def test_the_second_time_counts_and_what_it_leaves_out_is_transformers_own(twice):
    said = json.loads((twice / "config.json").read_text("utf-8"))
    layout = LAYOUTS["clip"]
    assert (layout.read(said).text_heads, layout.read(said).end) == (3, None)
    del said["text_config_dict"]["eos_token_id"]
    assert said["text_config"]["eos_token_id"] == 2
    theirs = CLIPConfig(**copy.deepcopy(said)).text_config  # which would change it
    assert layout.read(said).end == theirs.eos_token_id == END
    said["text_config_dict"] = None
    assert (layout.read(said).text_heads, layout.read(said).end) == (11, None)


def test_what_was_said_twice_is_saved_once(twice, tmp_path):
    """After a change the second would still say what was, and count."""
    config = dataclasses.replace(sf.load(twice).config, image=35)
    model = sf.load(twice, config=config)
    model.save_pretrained(tmp_path / "saved")
    said = json.loads((tmp_path / "saved" / "config.json").read_text("utf-8"))
    assert not {"text_config_dict", "vision_config_dict"} & said.keys()
    assert said["vision_config"]["image_size"] == 35
    assert said["vision_config"]["kept"] == "as it was"
    assert said["text_config"]["num_attention_heads"] == 3
    assert spelt_out(sf.load(tmp_path / "saved").config) == spelt_out(config)
