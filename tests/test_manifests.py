"""What stands in the published GPT-2s, by name, shape and dtype, and how it and what others publish loads.

No weights are at hand: each manifest says what was found where, and what was derived.
"""

import dataclasses
import json
import struct
from pathlib import Path

import manifests
import pytest
import reference
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

import scratchformers as sf
from scratchformers.checkpoints import files, tables
from scratchformers.models.gpt2 import read

DTYPE = torch.float64
MANIFESTS = manifests.read()
(LAYOUT,) = sf.GPT2.layouts


def metas(name):
    assert {dtype for dtype, _ in MANIFESTS[name].shapes().values()} == {"F32"}
    return MANIFESTS[name].tensors()


def ours(name):
    with torch.device("meta"):
        return {key: value.shape for key, value in sf.GPT2.from_preset(name).state_dict().items()}


def test_there_is_one_per_published_size():
    assert MANIFESTS.keys() == {"gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2"}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_agrees_with_what_is_known_of_the_file(name):
    manifests.check(MANIFESTS[name])


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_published_config_is_the_preset(name):
    assert read(MANIFESTS[name].config) == sf.GPT2.preset(name)


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_loads_with_nothing_missing_and_nothing_unknown(name):
    loaded = tables.load(LAYOUT, metas(name), ours(name))
    assert {key: value.shape for key, value in loaded.items()} == ours(name)
    buffers = {key for key in metas(name) if key.endswith(".attn.bias")}
    assert len(buffers) == MANIFESTS[name].depth
    back = {key.removeprefix(LAYOUT.prefix) for key in metas(name).keys() - buffers}
    assert tables.save(LAYOUT, loaded).keys() == back, "and what we save are the published names"


@pytest.mark.parametrize("name", ["gpt2", "distilgpt2"])
def test_every_key_that_is_lost_added_or_misshapen_is_caught(name):
    tensors, expected = metas(name), ours(name)
    for key in tensors:
        if key.endswith(".attn.bias"):  # the mask, which nothing needs
            continue
        rest = {other: value for other, value in tensors.items() if other != key}
        with pytest.raises(ValueError, match=f"1 missing: {key.removeprefix(LAYOUT.prefix)}"):
            tables.load(LAYOUT, rest, expected)
        with pytest.raises(ValueError, match=f"1 unknown: {key.removeprefix(LAYOUT.prefix)}x"):
            tables.load(LAYOUT, {**tensors, key + "x": tensors[key]}, expected)
        with pytest.raises(ValueError, match="1 wrong"):
            tables.load(LAYOUT, {**tensors, key: tensors[key][:-1]}, expected)


# --- small models in the exact style of published files


def small(folder, *, config, keys, changes=None, name="model.safetensors", **sizes):
    """A scrambled GPT-2 of transformers written as a published file: this config.json with small sizes, these keys."""
    theirs = reference.scrambled(**sizes)
    tensors = {key: value for key, value in theirs.state_dict().items() if key != "lm_head.weight"}
    tensors = keys({key.removeprefix("transformer."): value.clone() for key, value in tensors.items()})
    made = {key: theirs.config.to_dict()[key] for key in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")}
    folder.mkdir(exist_ok=True)
    config = {**config, **made, "n_ctx": made["n_positions"], **(changes or {})}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if name.endswith(".bin"):
        torch.save(tensors, folder / name)
    else:
        save_file(tensors, folder / name, metadata={"format": "pt"})
    return theirs


def masks(tensors, dtype=DTYPE, constant=False):
    bias = {f"h.{i}.attn.bias": torch.ones(1, 1, 53, 53).tril().to(dtype) for i in range(5)}
    return {
        **tensors,
        **bias,
        **({f"h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(5)} if constant else {}),
    }


def prefixed(tensors):
    return {"transformer." + key: value for key, value in tensors.items()}


def same(theirs, folder):
    model, ids = sf.load(folder, dtype=DTYPE), reference.ids(2, 11) % theirs.config.vocab_size
    torch.testing.assert_close(model(ids), theirs(ids).logits, atol=1e-10, rtol=0)
    return model


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_small_model_in_the_files_own_style_gives_the_references_numbers(tmp_path, name):
    def keys(tensors):
        return prefixed(masks(tensors)) if name == "distilgpt2" else masks(tensors)

    theirs = small(tmp_path / "in", config=MANIFESTS[name].config, keys=keys)
    written = {
        key.replace(".0.", ".*.") for key in load_file(tmp_path / "in" / "model.safetensors") if ".1." not in key
    }
    styled = {key for key in written if not any(f".{i}." in key for i in range(2, 5))}
    assert styled == MANIFESTS[name].content["tensors"].keys()
    model = same(theirs, tmp_path / "in")
    model.save_pretrained(tmp_path / "out")
    again, info = GPT2LMHeadModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info
    assert all(torch.equal(again.state_dict()[key], value) for key, value in theirs.state_dict().items())
    saved = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert MANIFESTS[name].config.keys() <= saved.keys(), "what we do not read is kept"


def with_head(tensors):
    return {**prefixed(tensors), "lm_head.weight": tensors["wte.weight"].clone()}


GPT2_2019 = {  # distilgpt2's config of 2019, which names neither its model nor its activation
    "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "embd_pdrop": 0.1, "finetuning_task": None,
    "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "num_labels": 1, "output_attentions": False,
    "output_hidden_states": False, "pruned_heads": {}, "resid_pdrop": 0.1, "torchscript": False, "use_bfloat16": False,
}  # fmt: skip


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize(
    ("config", "keys"),
    [
        (GPT2_2019, lambda tensors: prefixed(masks(tensors))),
        ({"model_type": "gpt2"}, lambda tensors: with_head(masks(tensors, torch.uint8, constant=True))),  # DialoGPT
        ({"model_type": "gpt2", "n_inner": None}, lambda tensors: with_head(masks(tensors, torch.bool))),
        ({"model_type": "gpt2", "gradient_checkpointing": False, "n_inner": 156}, prefixed),  # 4 * 39, said
    ],
)
def test_what_others_publish(tmp_path, config, keys, name):
    same(small(tmp_path, config=config, keys=keys, name=name), tmp_path)


def test_a_model_of_two_numbers_a_token(tmp_path):
    sizes = {"n_embd": 2, "n_head": 2, "n_layer": 2}
    model = same(small(tmp_path, config={"model_type": "gpt2"}, keys=prefixed, **sizes), tmp_path)
    assert (model.config.dim, model.config.heads, model.config.depth) == (2, 2, 2)


def test_another_width_of_the_mlp_is_read_trained_and_written(tmp_path):
    theirs = small(tmp_path / "in", config={"model_type": "gpt2"}, keys=prefixed, changes={"n_inner": 59}, n_inner=59)
    model = same(theirs, tmp_path / "in")
    assert model.config == sf.GPT2Config(vocab=97, length=53, dim=39, depth=5, heads=3, hidden=59)
    made = sf.GPT2(model.config).double().eval()
    made.load_state_dict(model.state_dict())
    made.save_pretrained(tmp_path / "out")
    assert GPT2Config.from_pretrained(tmp_path / "out").n_inner == 59
    ids = reference.ids(2, 11)
    logits = GPT2LMHeadModel.from_pretrained(tmp_path / "out")(ids).logits
    torch.testing.assert_close(made(ids), logits, atol=1e-10, rtol=0)
    assert sf.load(tmp_path / "out").config == model.config


def test_four_times_the_width_may_be_said_or_not(tmp_path):
    sf.GPT2(dataclasses.replace(sf.GPT2.preset("tiny"), hidden=768)).save_pretrained(tmp_path / "said")
    sf.GPT2.from_preset("tiny").save_pretrained(tmp_path / "not")
    for folder in ("said", "not"):
        assert sf.load(tmp_path / folder, config="tiny").config.dim == 192
        sf.load(tmp_path / folder, config=dataclasses.replace(sf.GPT2.preset("tiny"), hidden=768))
    with pytest.raises(ValueError, match="hidden is 768 in the file and 100 in config="):
        sf.load(tmp_path / "not", config=dataclasses.replace(sf.GPT2.preset("tiny"), hidden=100))


@pytest.mark.unhooked  # the hook would refuse a wrong type before we do
@pytest.mark.parametrize("hidden", [0, -1, 1.5, True, "59", 2**31])
def test_a_width_that_is_none(hidden):
    with pytest.raises(ValueError, match=r"hidden is .*: expected a positive integer"):
        sf.GPT2Config(hidden=hidden)


def test_the_width_may_be_set_for_training():
    from scratchformers.training.recipes import configure
    from scratchformers.training.request import Request

    assert configure(Request("gpt2", Path("out"), given={"hidden": "59"}))[1]["hidden"] == 59
    with pytest.raises(ValueError, match="hidden=wide is no whole number"):
        configure(Request("gpt2", Path("out"), given={"hidden": "wide"}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx True"),  # stanford-crfm
        ({"activation_function": "gelu"}, "activation_function 'gelu'"),  # Cerebras-GPT: erf
    ],
)
def test_other_mathematics_is_refused(tmp_path, changes, said):
    small(tmp_path, config={"model_type": "gpt2"}, keys=prefixed, changes=changes)
    with pytest.raises(ValueError, match=said):
        sf.load(tmp_path)


def test_a_file_whose_numbers_stand_at_odd_addresses(tmp_path):
    """As in every published GPT-2: their headers are of 14283, 28986 and 8277 bytes, and nothing is padded."""
    theirs = small(tmp_path, config={"model_type": "gpt2"}, keys=prefixed)
    file = tmp_path / "model.safetensors"
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = content[8 : 8 + length].rstrip()
    header += b" " * ((3 - len(header)) % 8)
    file.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + length :])
    model = same(theirs, tmp_path)
    assert model.position.weight.data_ptr() % 8 == 3 or not files.MAPPED
