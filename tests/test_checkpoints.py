"""Published files in and out: every form they come in, bit for bit, and every way they can be wrong."""

import copy
import hashlib
import json
import os
import pickle
import shutil

import pytest
import reference
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2LMHeadModel

import scratchformers as sf
from scratchformers.checkpoints import tables
from scratchformers.checkpoints.files import write_atomically

DTYPE = torch.float64


@pytest.fixture
def folder(published, tmp_path):
    """A copy of the published folder that a test may spoil."""
    return shutil.copytree(published[1], tmp_path / "checkpoint", dirs_exist_ok=True)


def tensors_of(folder):
    return load_file(folder / "model.safetensors")


def rewrite(folder, tensors, name="model.safetensors"):
    (folder / "model.safetensors").unlink()
    tensors = {key: value.clone().contiguous() for key, value in tensors.items()}
    if name.endswith(".safetensors"):
        save_file(tensors, folder / name, metadata={"format": "pt"})
    else:
        torch.save(tensors, folder / name, _use_new_zipfile_serialization=name == "pytorch_model.bin")


def same(published, model):
    ids = reference.ids(2, 11)
    torch.testing.assert_close(model(ids), published[0](ids).logits, atol=1e-10, rtol=0)


# --- the forms a GPT-2 file comes in


def with_prefix(tensors):
    return {key if key.startswith("transformer.") else "transformer." + key: value for key, value in tensors.items()}


def without_prefix(tensors):
    return {key.removeprefix("transformer."): value for key, value in tensors.items()}


def with_head(tensors):
    return {**tensors, "lm_head.weight": tensors["transformer.wte.weight"]}


def with_head_only(tensors):
    """As a saver leaves it that keeps the other of two names for one tensor."""
    table = tensors.pop("transformer.wte.weight")
    return {**tensors, "lm_head.weight": table}


def with_masks(tensors):
    """OpenAI's conversion keeps the causal mask and its constant in every block."""
    extra = {f"transformer.h.{i}.attn.bias": torch.ones(1, 1, 53, 53).tril() for i in range(5)}
    return {**tensors, **extra, **{f"transformer.h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(5)}}


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "older.bin"])
@pytest.mark.parametrize("form", [with_prefix, without_prefix, with_head, with_head_only, with_masks])
def test_every_form_of_the_file_loads(published, folder, form, name):
    rewrite(folder, form(tensors_of(folder)), name)
    if name == "older.bin":  # torch's format of 2019, which cannot be memory-mapped
        (folder / name).rename(folder / "pytorch_model.bin")
    same(published, sf.load(folder, dtype=DTYPE))
    same(published, sf.GPT2.from_pretrained(str(folder), dtype=DTYPE))


def test_half_precision_files_become_float32_unless_told(folder):
    rewrite(folder, {key: value.half() for key, value in tensors_of(folder).items()})
    model = sf.load(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model.token.weight, tensors_of(folder)["transformer.wte.weight"].float())
    assert {p.dtype for p in sf.load(folder, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}


def test_a_file_alone_needs_a_config(published, folder):
    file = folder / "model.safetensors"
    with pytest.raises(ValueError, match=r"no config.json.*vocab, length, dim, depth, heads, dropout: pass config="):
        sf.load(file)
    config = sf.GPT2Config(vocab=97, length=53, dim=39, depth=5, heads=3)
    same(published, sf.load(file, config=config, dtype=DTYPE))
    with pytest.raises(ValueError, match="not those of a gpt2 model"):
        sf.load(file, config="gpt2")


def test_config_must_agree_with_the_files(folder):
    config = sf.GPT2Config(vocab=97, length=53, dim=39, depth=5, heads=3)
    assert sf.load(folder, config=config).config == config
    with pytest.raises(ValueError, match="heads is 3 in the file and 13 in config="):
        sf.load(folder, config=sf.GPT2Config(vocab=97, length=53, dim=39, depth=5, heads=13))
    with pytest.raises(ValueError, match="no preset 'huge'"):
        sf.GPT2.from_pretrained(folder, config="huge")


# --- loading is a mapping of the file, not a copy, and draws nothing


def test_weights_are_mapped_and_never_written_back(folder):
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    model = sf.load(folder, dtype=DTYPE)
    q, kv = model.blocks[0].attention.q.weight, model.blocks[0].attention.kv.weight
    assert q.untyped_storage().data_ptr() == kv.untyped_storage().data_ptr(), "two views of one tensor of the file"
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() == digest


def test_loading_draws_no_random_number(folder):
    before = torch.get_rng_state()
    sf.load(folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_loaded_model_is_ready_and_can_be_trained(folder):
    model = sf.load(folder)
    assert not model.training
    assert all(parameter.requires_grad and not parameter.is_meta for parameter in model.parameters())
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model(reference.ids(1, 5)).sum().backward()
    before = copy.deepcopy(model.blocks[0].mlp.up.weight)
    optimizer.step()
    assert not torch.equal(before, model.blocks[0].mlp.up.weight)


# --- saving


def test_saved_loads_in_the_reference_bit_equal(published, folder, tmp_path):
    sf.load(folder, dtype=DTYPE).save_pretrained(tmp_path / "saved")
    theirs, info = GPT2LMHeadModel.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not any(info.values()), info
    expected = published[0].state_dict()
    for name, value in theirs.state_dict().items():
        assert value.dtype == DTYPE
        assert torch.equal(value, expected[name]), name
    assert theirs.generation_config.eos_token_id == reference.END


def test_saved_file_is_the_published_layout(folder, tmp_path):
    sf.load(folder, dtype=DTYPE).save_pretrained(tmp_path / "saved")
    saved, original = tensors_of(tmp_path / "saved"), without_prefix(tensors_of(folder))
    assert saved.keys() == original.keys()
    assert all(torch.equal(saved[name], original[name]) for name in saved)
    before, after = (json.loads((path / "config.json").read_text()) for path in (folder, tmp_path / "saved"))
    assert after == before, "what we do not read is kept"


def test_a_model_made_here_loads_in_the_reference(tmp_path):
    config = sf.GPT2Config(vocab=31, length=17, dim=20, depth=2, heads=2, dropout=0.0)
    ours = sf.GPT2(config).eval()
    ours.save_pretrained(tmp_path)
    theirs, info = GPT2LMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert theirs.config.eos_token_id is None, "or transformers would stop at an id that means nothing here"
    ids = torch.randint(31, (2, 9))
    torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-5, rtol=0)
    again = sf.load(tmp_path)
    assert again.config == config
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), again.state_dict().values()))


def test_saving_over_the_mapped_source_is_safe(published, folder):
    model = sf.load(folder, dtype=DTYPE)
    model.save_pretrained(folder)
    same(published, model)
    same(published, sf.load(folder, dtype=DTYPE))


def test_a_half_precision_checkpoint_is_saved_as_what_it_has_become(folder, tmp_path):
    """transformers loads as config.json says: a float32 file under a float16 config would lose digits there."""
    config = json.loads((folder / "config.json").read_text()) | {"torch_dtype": "float16", "dtype": "float16"}
    (folder / "config.json").write_text(json.dumps(config))
    sf.load(folder).save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert saved["dtype"] == saved["torch_dtype"] == "float32"


def test_a_failed_write_leaves_the_old_file(tmp_path):
    (tmp_path / "file").write_text("old")

    def fails(path):
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(tmp_path / "file", fails)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_paths_may_hold_spaces_and_accents(folder, tmp_path):
    target = tmp_path / "mon modèle à moi" / "日本"
    sf.load(folder).save_pretrained(target)
    assert sf.load(target).config.vocab == 97


# --- what is refused, in one sentence that says what and where


def fails(source, said, **options):
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        sf.load(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    for part in said:
        assert part in message, message


def test_missing_extra_and_misshapen_tensors_are_all_listed(folder):
    tensors = tensors_of(folder)
    del tensors["transformer.h.2.attn.c_attn.weight"], tensors["transformer.ln_f.bias"]
    tensors |= {"transformer.h.5.ln_1.weight": torch.zeros(39), "surprise": torch.zeros(1)}
    tensors["transformer.wpe.weight"] = torch.zeros(50, 39)
    tensors["transformer.h.0.attn.c_attn.bias"] = torch.zeros(116)
    rewrite(folder, tensors)
    missing = ["2 missing: h.2.attn.c_attn.weight, ln_f.bias", "2 unknown: h.5.ln_1.weight, surprise"]
    shapes = [
        "wpe.weight has shape [50, 39], expected [53, 39]",
        "h.0.attn.c_attn.bias has shape [116], expected [117]",
    ]
    fails(folder, [*missing, "2 wrong", *shapes])


def test_an_untied_head_is_not_tied_in_silence(folder):
    tensors = with_head(tensors_of(folder))
    tensors["lm_head.weight"] = tensors["lm_head.weight"] + 1
    rewrite(folder, tensors)
    fails(folder, ["lm_head.weight differs from another tensor"])


def test_a_tensor_under_two_names_is_refused(folder):
    tensors = tensors_of(folder)
    rewrite(folder, {**tensors, "ln_f.bias": tensors["transformer.ln_f.bias"] + 1})
    fails(folder, ["ln_f.bias stands in the file with and without 'transformer.'"])


@pytest.mark.unhooked  # the hook would refuse a wrong type before we do
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "llama"}, "says model_type 'llama': expected one of bart, bert, clip, gpt2"),
        ({"activation_function": "gelu"}, "activation_function 'gelu'"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon 1e-06"),
        ({"n_inner": 100}, "h.0.mlp.c_fc.weight has shape [39, 156], expected [39, 100]"),
        ({"n_inner": 0}, "hidden is 0: expected a positive integer"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx True"),
        ({"n_head": 7}, "7 heads do not divide a width of 39"),
        ({"n_layer": 4}, "unknown: h.4."),
        ({"n_layer": 6}, "missing: h.5."),
        ({"n_head": None}, "heads is None: expected a positive integer"),
        ({"n_embd": "39"}, "dim is '39'"),
    ],
)
def test_a_config_of_another_model_is_refused(folder, changes, said):
    config = {**json.loads((folder / "config.json").read_text()), **changes}
    (folder / "config.json").write_text(json.dumps(config))
    fails(folder, [said])


def test_a_config_without_a_size_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    del config["n_head"], config["n_layer"]
    (folder / "config.json").write_text(json.dumps(config))
    fails(folder, ["does not say n_layer, n_head"])


@pytest.mark.parametrize("content", ["{", "[1]", b"\xff\xfe"])
def test_a_broken_config_is_refused(folder, content):
    (folder / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    fails(folder, ["config.json"])


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_refused(folder, name, share):
    rewrite(folder, tensors_of(folder), name)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(len(content) * share)])
    fails(folder, [name, "fetch it again"])


def test_a_corrupted_header_is_refused(folder):
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[20:40] = b"\x00" * 20
    file.write_bytes(content)
    fails(folder, ["truncated or corrupted"])


class Hostile:
    """Unpickled the usual way, it runs a command."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch '{self.target}'",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_is_refused_and_does_not(folder, tmp_path, zipped):
    (folder / "model.safetensors").unlink()
    target = tmp_path / "it-ran"
    torch.save({"wte.weight": Hostile(target)}, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    fails(folder, ["pytorch_model.bin was refused"])
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Hostile(target)))
    fails(folder, ["pytorch_model.bin was refused"])
    assert not target.exists()


def test_a_pickle_of_something_else_is_refused(folder):
    (folder / "model.safetensors").unlink()
    torch.save([1, 2, 3], folder / "pytorch_model.bin")
    fails(folder, ["something other than named tensors"])


def test_what_does_not_exist_is_said(tmp_path):
    fails(tmp_path / "nowhere", ["nowhere does not exist"])
    fails(tmp_path, ["holds no weights: expected model.safetensors or pytorch_model.bin"])
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    fails(tmp_path, ["is not recognised", "gpt2"])


# --- the tables themselves, in the forms that later models need


class Two:
    rows = (
        (("a.weight", "b.weight"), "joined.weight"),  # several on the left are stacked
        ("norm.gamma", "norm.weight"),
        ("gone", None),
    )
    layout = tables.Layout("two", rows, dict, dict, signature="a.weight")


def test_stacked_renamed_and_dropped_rows_go_both_ways():
    theirs = {"a.weight": torch.rand(3, 2), "b.weight": torch.rand(3, 2), "norm.gamma": torch.rand(5)}
    shapes = {"joined.weight": torch.Size([6, 2]), "norm.weight": torch.Size([5])}
    ours = tables.load(Two.layout, {**theirs, "gone": torch.zeros(1)}, shapes)
    assert torch.equal(ours["joined.weight"], torch.cat([theirs["a.weight"], theirs["b.weight"]]))
    back = tables.save(Two.layout, ours)
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[name], theirs[name]) for name in theirs)


def test_stacked_tensors_of_unlike_shapes_are_an_error_even_if_their_sum_fits():
    theirs = {"a.weight": torch.rand(2, 2), "b.weight": torch.rand(4, 2), "norm.gamma": torch.rand(5)}
    shapes = {"joined.weight": torch.Size([6, 2]), "norm.weight": torch.Size([5])}
    said = r"a.weight \+ b.weight has shape \[2, 2\] \+ \[4, 2\], expected \[3, 2\] \+ \[3, 2\]"
    with pytest.raises(ValueError, match=said):
        tables.load(Two.layout, theirs, shapes)


def test_a_table_that_would_lose_a_parameter_cannot_save():
    with pytest.raises(AssertionError, match="saves \\['forgotten'\\]"):
        tables.save(
            Two.layout, {"joined.weight": torch.rand(6, 2), "norm.weight": torch.rand(5), "forgotten": torch.rand(1)}
        )


def test_a_large_tensor_is_mapped_by_itself(published, monkeypatch):
    """So that the memory it was read through goes when it has been copied."""
    from scratchformers.checkpoints import files

    path = published[1] / "model.safetensors"
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])

    def mappings():
        """Where the file would have to begin in memory for each tensor to stand where it does."""
        tensors = files.read_tensors(path)
        return len({value.data_ptr() - header[name]["data_offsets"][0] for name, value in tensors.items()})

    assert mappings() == 1 or not files.MAPPED
    monkeypatch.setattr(files, "LARGE", 97 * 39 * 8)
    assert mappings() > 1
    tensors = files.read_tensors(path)
    assert all(
        torch.equal(tensors[name], value) for name, value in published[0].state_dict().items() if name in tensors
    )


@pytest.mark.parametrize("onednn", [False, True])
def test_the_token_table_is_kept_by_column_and_saved_by_row(published, tmp_path, monkeypatch, onednn):
    """By column for MKL, and as it is for oneDNN."""
    import scratchformers as sf
    from scratchformers.checkpoints import files, tables

    monkeypatch.setattr(tables, "ONEDNN", onednn)
    model = sf.load(published[1], dtype=torch.float64)
    assert model.token.weight.stride() == ((39, 1) if onednn else (1, 97))
    model.save_pretrained(tmp_path)
    (saved,) = [v for k, v in files.read_tensors(tmp_path / "model.safetensors").items() if k.endswith("wte.weight")]
    assert saved.is_contiguous()
    assert torch.equal(saved, published[0].transformer.wte.weight)
