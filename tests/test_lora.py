"""Adapters: at first they change nothing, they alone learn, merged they are any other model, and PEFT reads them."""

import json

import bert_reference
import clip_reference
import encoder_decoder_reference
import peft
import pytest
import reference
import torch
import vision_reference
from safetensors.torch import load_file, save_file
from test_cli import refused, run
from test_training import TEXT, data, losses  # noqa: F401 (a fixture)
from torch import nn

import scratchformers as sf
from scratchformers import lora
from scratchformers.text import BERT as SPECIAL
from scratchformers.text import characters
from scratchformers.training import loop, state
from scratchformers.training.request import Request
from scratchformers.training.runs import open_run

FINE = {"steps": "6", "batch": "4", "eval_every": "3", "save_every": "2", "warmup": "2", "threads": "1"}


def bert(kind):
    return lambda: bert_reference.scrambled(kind)


def states(said):
    return said.logits if hasattr(said, "logits") else said.last_hidden_state


IDS, SEGMENTS, _ = bert_reference.batch(lengths=(13, 13))
SOURCE, TARGET = encoder_decoder_reference.ids(2, 11), encoder_decoder_reference.ids(2, 7, seed=2)
IMAGES, SQUARES = vision_reference.pictures(), vision_reference.pictures(size=(35, 35))
NOISE, TEXTS = vision_reference.noise(), clip_reference.texts()
SMALL_IMAGES = clip_reference.pictures()
BERTS = {
    f"bert {kind}": (bert(kind), lambda m: states(m(IDS, token_type_ids=SEGMENTS)), ours)
    for kind, ours in {
        "MaskedLM": lambda m: m(IDS, segments=SEGMENTS),
        "Model": lambda m: m.encode(IDS, segments=SEGMENTS),
        "SequenceClassification": lambda m: m(IDS, segments=SEGMENTS),
        "TokenClassification": lambda m: m(IDS, segments=SEGMENTS),
    }.items()
}
WRITERS = {
    kind: (
        lambda kind=kind: encoder_decoder_reference.published(kind),
        lambda m: m(input_ids=SOURCE, decoder_input_ids=TARGET).logits,
        lambda m: m(SOURCE, TARGET),
    )
    for kind in ("bart", "mbart", "marian, two vocabularies")
}
# transformers' model, what it says, what ours says.
MODELS = {
    "gpt2": (reference.scrambled, lambda m: m(IDS).logits, lambda m: m(IDS)),
    **BERTS,
    "vit": (vision_reference.vit, lambda m: m(IMAGES).logits, lambda m: m(IMAGES)),
    "vit Model": (lambda: vision_reference.vit("Model"), lambda m: m(IMAGES)[0], lambda m: m.encode(IMAGES)),
    "mae": (
        vision_reference.mae,
        lambda m: m(SQUARES, noise=NOISE).logits,
        lambda m: m(SQUARES, noise=NOISE).prediction,
    ),
    "clip": (
        clip_reference.clip,
        lambda m: m(input_ids=TEXTS, pixel_values=SMALL_IMAGES).logits_per_image,
        lambda m: m(SMALL_IMAGES, TEXTS),
    ),
    **WRITERS,
}


@pytest.fixture(params=MODELS)
def pair(request, tmp_path):
    """transformers' model, what it says; ours of the same weights, what it says."""
    make, theirs, ours = MODELS[request.param]
    model = make()
    model.save_pretrained(tmp_path / "base")
    return model, theirs, sf.load(tmp_path / "base", dtype=torch.float64), ours


@torch.no_grad()
def scramble(model, *, seed=5):
    """What adapters have learnt, and the heads that learnt with them."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.normal_(std=0.3, generator=generator)


def small(**sizes):
    torch.manual_seed(0)
    return sf.GPT2(
        sf.GPT2Config(**{"vocab": 97, "length": 16, "dim": 12, "depth": 2, "heads": 2, "dropout": 0.0, **sizes})
    )


def close(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


# --- a model and its adapters


@torch.no_grad()
def test_nothing_changes_at_first_and_merging_changes_nothing(pair, tmp_path):
    _, _, model, say = pair
    names, before = [*model.state_dict()], say(model)
    lora.add(model, rank=3)
    assert torch.equal(say(model), before)
    assert [name for name in model.state_dict() if ".lora_" not in name] == names
    whole = ("head.", "pooler.") if hasattr(getattr(model, "head", None), "labels") else ()
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name in learning if ".lora_" not in name} == {name for name in names if name.startswith(whole)}
    scramble(model)
    learnt = say(model)
    assert (learnt - before).abs().max() > 1e-3
    with lora.merged(model):
        assert not lora.adapters(model)
        close(say(model), learnt)
    assert torch.equal(say(model), learnt)
    lora.merge(model)
    assert [*model.state_dict()] == names
    assert {type(module) for module in model.modules()}.isdisjoint({lora.Adapted})
    close(say(model), learnt)
    model.save_pretrained(tmp_path / "merged")
    sf.load(tmp_path / "base", dtype=torch.float64).save_pretrained(tmp_path / "plain")
    plain, merged = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "merged"))
    assert {name: x.shape for name, x in merged.items()} == {name: x.shape for name, x in plain.items()}
    assert len({(tmp_path / name / "config.json").read_text("utf-8") for name in ("plain", "merged")}) == 1
    close(say(sf.load(tmp_path / "merged", dtype=torch.float64)), learnt)


def test_it_is_the_formula_and_dropout_is_of_its_input():
    torch.manual_seed(1)
    own, x = nn.Linear(7, 5), torch.randn(3, 7)
    adapted = lora.Adapted(own, torch.randn(2, 7), torch.randn(5, 2), scale=1.5, dropout=0.5).train()
    for training in (True, False):
        adapted.train(training)
        torch.manual_seed(2)
        found = adapted(x)
        torch.manual_seed(2)
        dropped = nn.functional.dropout(x, 0.5, training)
        expected = own(x) + 1.5 * dropped @ adapted.lora_a.T @ adapted.lora_b.T
        torch.testing.assert_close(found, expected)


def test_only_what_is_asked_for_gets_adapters():
    model = small()
    lora.add(model, rank=2, alpha=3, dropout=0.25, linears=("q", "down"))
    found = lora.adapters(model)
    assert [*found] == [f"blocks.{i}.{path}" for i in range(2) for path in ("attention.q", "mlp.down")]
    assert {(each.scale, each.dropout.p, len(each.lora_a)) for each in found.values()} == {(1.5, 0.25, 2)}
    assert not any(each.lora_b.any() for each in found.values())
    assert all(each.lora_a.abs().max() > 0.1 for each in found.values())
    model = small()
    lora.add(model)
    assert len(lora.adapters(model)) == 10
    assert {each.scale for each in lora.adapters(model).values()} == {2.0}


def test_nothing_is_drawn_to_be_thrown_away():
    model = small()
    lora.add(model)
    before = torch.get_rng_state()
    with lora.merged(model):
        pass
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rank": 0}, "rank 0, alpha 0.0, dropout 0.0: expected a rank from 1"),
        ({"alpha": 0}, "alpha 0"),
        ({"dropout": 1.0}, "dropout 1.0"),
        ({"linears": ("q", "k")}, "linears are q,k: expected some of q,kv,out,up,down, or all"),
        ({"linears": ()}, "linears are : expected"),
    ],
)
def test_what_cannot_be_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        lora.add(small(), **given)


def test_adapters_are_neither_added_twice_nor_saved_where_there_are_none(tmp_path):
    model = small()
    with pytest.raises(ValueError, match=r"no adapters: lora\.add"):
        lora.save(model, tmp_path)
    lora.add(model)
    lora.save(model, tmp_path)
    for again in (lora.add, lambda m: lora.load(m, tmp_path)):
        with pytest.raises(ValueError, match="has adapters: merge them before"):
            again(model)


# --- PEFT


@torch.no_grad()
@pytest.mark.parametrize("linears", [lora.LINEARS, ("q",), ("kv", "up")], ids=",".join)
def test_peft_reads_what_we_save(pair, tmp_path, linears):
    theirs, say_theirs, model, say = pair
    before = say(model)
    lora.add(model, rank=3, alpha=5, linears=linears)
    scramble(model)
    lora.save(model, tmp_path / "adapter", base="base")
    adapted = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").double().eval()
    close(say_theirs(adapted), say(model))
    assert (say(model) - before).abs().max() > 1e-3
    again = sf.load(tmp_path / "base", dtype=torch.float64)
    lora.load(again, tmp_path / "adapter")
    close(say(again), say(model))
    for path, own in lora.adapters(model).items():
        assert torch.equal(lora.adapters(again)[path].lora_b, own.lora_b), path
        assert torch.equal(lora.adapters(again)[path].lora_a, own.lora_a), path


TARGETS = {
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "bert SequenceClassification": ["query", "key", "value", "intermediate.dense", "output.dense"],
    "bert MaskedLM": ["key", "output.dense"],
    "vit": ["q_proj", "k_proj", "v_proj", "fc2"],
    "bart": ["k_proj", "q_proj", "fc1"],
    "clip": ["v_proj", "out_proj"],
}


@torch.no_grad()
@pytest.mark.parametrize("pair", TARGETS, indirect=True)
def test_we_read_what_peft_saves(pair, tmp_path, request):
    """Which has an A of its own for keys and for values, and one for all of GPT-2's."""
    theirs, say_theirs, model, say = pair
    name = request.node.callspec.params["pair"]
    whole = ["classifier"] if name in ("bert SequenceClassification", "vit") else None
    # With a classifier the pooler is there too, whose name ends as others do.
    more = {"rank_pattern": {"value": 2}, "exclude_modules": ".*pooler.*"} if name.startswith("bert Seq") else {}
    config = peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=TARGETS[name], modules_to_save=whole, fan_in_fan_out=name == "gpt2", **more
    )
    adapted = peft.get_peft_model(theirs, config).double().eval()
    scramble(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    lora.load(model, tmp_path / "adapter")
    close(say(model), say_theirs(adapted))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "IA3"}, "holds no plain LoRA"),
        ({"use_dora": True}, "without DoRA"),
        ({"use_rslora": True}, "rsLoRA"),
        ({"bias": "all"}, "and biases"),
    ],
)
def test_other_adapters_are_refused(tmp_path, changes, said):
    model = small()
    lora.add(model)
    lora.save(model, tmp_path)
    path = tmp_path / lora.CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), encoding="utf-8")
    with pytest.raises(ValueError, match=said):
        lora.load(small(), tmp_path)


@pytest.mark.parametrize("sizes", [{"depth": 1}, {"dim": 14}])
def test_adapters_of_another_model_are_refused_and_change_nothing(tmp_path, sizes):
    model, other = small(), small(**sizes)
    lora.add(model)
    lora.save(model, tmp_path)
    before = [*other.state_dict()]
    with pytest.raises(ValueError, match=r"is not of this GPT2: it holds "):
        lora.load(other, tmp_path)
    assert [*other.state_dict()] == before


# --- a run


@pytest.fixture
def source(tmp_path):
    tokenizer = characters([TEXT])
    model = small(vocab=tokenizer.vocab, dim=16, dropout=0.2)
    model.assets = tokenizer.files
    model.save_pretrained(tmp_path / "source")
    return tmp_path / "source"


def asked(data, out, source, lora, **given):  # noqa: F811
    settings = {**FINE, **{name: str(value) for name, value in given.items()}}
    return Request("gpt2", out, data, source=source, given=settings, lora=lora)


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_a_run_learns_adapters_alone(data, source, tmp_path, ema):  # noqa: F811
    out = tmp_path / "run"
    run, notes = open_run(asked(data, out, source, {"rank": "3", "dropout": "0.1"}, ema=ema))
    base = {name: x.clone() for name, x in run.task.model.state_dict().items() if ".lora_" not in name}
    count = sum(x.numel() for name, x in run.task.model.state_dict().items() if ".lora_" in name)
    assert notes[-1].startswith(f"{count:,} of ")
    records = list(run)
    model = run.task.model
    assert all(torch.equal(base[name], x) for name, x in model.state_dict().items() if name in base)
    assert all(own.lora_b.any() for own in lora.adapters(model).values())
    kept = load_file(out / "checkpoints" / "step-6" / "state.safetensors")
    learnt = [name for name in kept if name.startswith(("optimizer.", "average."))]
    assert learnt
    assert all(".lora_" in name for name in learnt)
    said = json.loads((out / "config.json").read_text("utf-8"))
    assert said["lora"] == {"rank": 3, "alpha": 6.0, "dropout": 0.1, "linears": sorted(lora.LINEARS)}
    assert said["parameters"] == sum(x.numel() for x in base.values())
    assert said["settings"]["lr"] == pytest.approx(3e-4)
    # What is saved is the best, here the last: merged, and beside it what PEFT reads.
    assert [r["best"] for r in records if "best" in r][-1]
    merged = sf.load(out / "model")
    assert [*merged.state_dict()] == [*base]
    ids = torch.randint(model.config.vocab, (2, 9))
    with torch.no_grad(), run.average.in_place():
        expected = model.eval()(ids)
        torch.testing.assert_close(merged(ids), expected)
        other = sf.load(source)
        lora.load(other, out / "adapter")
        torch.testing.assert_close(other(ids), expected)
    assert json.loads((out / "adapter" / lora.CONFIG).read_text("utf-8"))["base_model_name_or_path"] == str(source)


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_resumed_run_is_the_uninterrupted_one(data, source, tmp_path, stop):  # noqa: F811
    how = {"rank": "2", "dropout": "0.3", "linears": "q,up"}
    list(open_run(asked(data, tmp_path / "whole", source, how))[0])
    for record in open_run(asked(data, tmp_path / "cut", source, how))[0]:
        if record["step"] > stop:
            break
    torch.manual_seed(99)
    list(open_run(Request("gpt2", tmp_path / "cut"), resume=True)[0])
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    for file in ("model/model.safetensors", f"adapter/{lora.WEIGHTS}"):
        a, b = (load_file(tmp_path / name / file) for name in ("whole", "cut"))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)


def stopped(data, out, source, at=3):  # noqa: F811
    for record in open_run(asked(data, out, source, {"rank": "2"}))[0]:
        if record["step"] > at:
            return out / "checkpoints" / "step-2"


def test_the_base_is_in_no_checkpoint(data, source, tmp_path):  # noqa: F811
    kept = load_file(stopped(data, tmp_path / "run", source) / state.TENSORS)
    base = sf.load(source)
    lora.add(base, rank=2)
    learning = {f"model.{name}" for name, parameter in base.named_parameters() if parameter.requires_grad}
    buffers = {f"model.{name}" for name, _ in base.named_buffers() if name in base.state_dict()}
    assert {name for name in kept if name.startswith("model.")} == learning | buffers
    assert learning


def test_a_base_that_changed_is_refused(data, source, tmp_path):  # noqa: F811
    stopped(data, tmp_path / "run", source)
    model = sf.load(source)
    with torch.no_grad():
        model.blocks[1].mlp.up.weight[0, 0] += 1e-3  # what no shape gives away
    model.save_pretrained(source)
    with pytest.raises(ValueError, match=r"^The source is not what the run in .* began with: resume it with the same"):
        open_run(Request("gpt2", tmp_path / "run"), resume=True)


def test_a_checkpoint_that_holds_the_base_too_is_gone_on_with(data, source, tmp_path):  # noqa: F811
    """As older versions wrote it."""
    list(open_run(asked(data, tmp_path / "whole", source, {"rank": "2"}))[0])
    place = stopped(data, tmp_path / "cut", source)
    base = {f"model.{name}": value.contiguous() for name, value in sf.load(source).state_dict().items()}
    save_file({**base, **load_file(place / state.TENSORS)}, place / state.TENSORS)
    (place / state.DIGESTS).unlink()
    list(open_run(Request("gpt2", tmp_path / "cut"), resume=True)[0])
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_a_checkpoint_that_lacks_what_learns_is_refused(data, source, tmp_path):  # noqa: F811
    place = stopped(data, tmp_path / "run", source)
    kept = load_file(place / state.TENSORS)
    name = next(name for name in kept if name.startswith("model.") and name.endswith(lora.B))
    save_file({key: value for key, value in kept.items() if key != name}, place / state.TENSORS)
    (place / state.DIGESTS).unlink()
    with pytest.raises(ValueError, match=f"holds another model: it differs in {name.removeprefix('model.')}"):
        open_run(Request("gpt2", tmp_path / "run"), resume=True)


def test_a_run_is_resumed_with_the_adapters_it_has(data, source, tmp_path):  # noqa: F811
    with_, without = tmp_path / "with", tmp_path / "without"
    list(open_run(asked(data, with_, source, {"rank": "2"}))[0])
    list(open_run(asked(data, without, source, {}))[0])
    assert open_run(Request("gpt2", with_, lora={"rank": "2"}), resume=True)[0].finished
    for out, other in ((with_, {"rank": "3"}), (with_, {"linears": "q"}), (without, {"rank": "2"})):
        with pytest.raises(ValueError, match=r"has lora .*, not .*: resume it as it is"):
            open_run(Request("gpt2", out, lora=other), resume=True)


def labelled(tmp_path):
    tokenizer = characters(["good bad 0123456789"], special=tuple(SPECIAL.values()))
    torch.manual_seed(0)
    model = sf.BERT(sf.BERTConfig(vocab=tokenizer.vocab, length=16, dim=16, depth=2, heads=2))
    model.head, model.assets = None, tokenizer.files
    model.save_pretrained(tmp_path / "encoder")
    rows = [f"{'good' if i % 2 else 'bad'} {i}\t{'up' if i % 2 else 'down'}\n" for i in range(20)]
    (tmp_path / "labels.tsv").write_text("text\tlabel\n" + "".join(rows), encoding="utf-8")
    return tmp_path / "encoder", tmp_path / "labels.tsv"


def test_the_head_of_a_new_task_learns(tmp_path):
    encoder, rows = labelled(tmp_path)
    given = Request("bert", tmp_path / "run", rows, source=encoder, task="classify", given=FINE, lora={"rank": "2"})
    run, _ = open_run(given)
    learning = {name for name, p in run.task.model.named_parameters() if p.requires_grad and ".lora_" not in name}
    assert learning == {"head.out.weight", "head.out.bias", "pooler.weight", "pooler.bias"}
    before = {name: run.task.model.state_dict()[name].clone() for name in learning}
    list(run)
    assert all(not torch.equal(before[name], run.task.model.state_dict()[name]) for name in learning)
    held = load_file(tmp_path / "run" / "adapter" / lora.WEIGHTS)
    assert {f"{lora.ROOT}classifier.weight", f"{lora.ROOT}bert.pooler.dense.bias"} <= held.keys()
    assert sf.TextClassifier.from_pretrained(tmp_path / "run" / "model")("good 3")
    assert loop.at_rest(run.task.model), "the embeddings are as they were"


def test_the_program_takes_them(capsys, data, source, tmp_path):  # noqa: F811
    given = ["train", "gpt2", "--data", data, "--from", source, "--device", "cpu"]
    given += [part for key, value in FINE.items() for part in ("--set", f"{key}={value}")]
    code, out, error = run(capsys, *given, "--out", tmp_path / "run", "--lora", "rank=2", "--lora", "linears=q,kv")
    assert code == 0, error
    assert "parameters learn." in out
    assert (tmp_path / "run" / "adapter" / lora.CONFIG).is_file()
    for bad, said in {
        "rank=two": "--lora rank=two is no whole number",
        "alpha=much": "--lora alpha=much is no number",
        "size=3": "--lora has no 'size': expected one of rank, alpha, dropout, linears",
        "linears=q,k": "linears are k,q: expected some of q,kv,out,up,down, or all",
        "rank=0": "expected a rank from 1",
    }.items():
        assert said in refused(capsys, *given, "--out", tmp_path / "bad", "--lora", bad)
    anew = [part for part in given if part not in ("--from", source)]
    assert "--lora goes with --from" in refused(capsys, *anew, "--out", tmp_path / "bad", "--lora", "rank=2")
    muon = refused(capsys, *given, "--out", tmp_path / "bad", "--lora", "rank=2", "--set", "optimizer=muon")
    assert "no matrix within a block learns whole" in muon
