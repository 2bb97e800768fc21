"""`verify` of BART, mBART and Marian: with transformers, with what was frozen, and alone. Every planted bug makes it
fail and name the place, and so does every change of the weights, the config, the tokenisers, the rules of writing."""

import importlib.util
import json
import re
import shutil

import encoder_decoder_reference
import pytest
import test_mutants
import torch
import transformers
from safetensors.torch import load_file, save_file
from test_bert_mutants import zeroed
from test_mutants import heads_inside_out
from test_sentence_pieces import ENGLISH, OTHER, learn, numbered, pieces_of, save
from test_verify_pictures import rows
from test_vision_mutants import edited

import scratchformers as sf
from scratchformers import beams, cache, ragged
from scratchformers import nn as bricks
from scratchformers.cli import main
from scratchformers.insight import verify as module
from scratchformers.insight.references import REFERENCES
from scratchformers.insight.verify import verify
from scratchformers.models import encoder_decoder
from scratchformers.sentence_pieces import SentencePieces
from scratchformers.source import Source
from scratchformers.text import train_bpe


def bart_files():
    """vocab.json and merges.txt in BART's order."""
    model = json.loads(train_bpe(ENGLISH[:300], 300).tokenizer.to_str())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].get)[1:]
    names = ["<s>", "<pad>", "</s>", "<unk>", *pieces, "<mask>"]
    merges = "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in model["merges"])
    return {"vocab.json": {piece: id for id, piece in enumerate(names)}, "merges.txt": merges.encode()}


CUTTERS = learn(ENGLISH[:300], 120, character_coverage=0.99), learn(OTHER[:300], 140, character_coverage=0.99)
SPM = {"source.spm": CUTTERS[0], "target.spm": CUTTERS[1]}
PIECES = [pieces_of(cutter) for cutter in CUTTERS]
SEPARATE = {"tokenizer_config.json": {"separate_vocabs": True}}
BART, ONE, TWO, MBART = "bart", "marian", "marian, two vocabularies", "mbart"
FILES = {
    BART: bart_files(),
    ONE: {**SPM, "vocab.json": numbered([*PIECES[0], *PIECES[1]], 1, [">>fra<<"])},
    TWO: {**SPM, **SEPARATE, "vocab.json": numbered(PIECES[0], 2), "target_vocab.json": numbered(PIECES[1], 3)},
    MBART: {"sentencepiece.bpe.model": CUTTERS[0]},
}
VOCABULARIES = {"vocab_size": "vocab.json", "decoder_vocab_size": "target_vocab.json"}
ENDS = {ONE: {"eos_token_id": 70}}  # which it writes early, in some beams


def make(folder, kind):
    """transformers' own, in float32, that does not repeat itself; with a tokeniser."""
    vocab = {ours: len(FILES[kind][name]) for ours, name in VOCABULARIES.items() if name in FILES[kind]}
    theirs = encoder_decoder_reference.published(kind, **vocab, **ENDS.get(kind, {}))
    theirs.generation_config.no_repeat_ngram_size = 2
    theirs.float().save_pretrained(folder)
    return save(folder, FILES[kind])


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Of each kind a folder, and what --freeze wrote of it."""
    whole, made = tmp_path_factory.mktemp("translators"), {}
    for number, kind in enumerate(FILES):
        made[kind] = make(whole / str(number), kind), whole / f"{number}.safetensors"
        verify(made[kind][0], freeze=made[kind][1])
    return made


@pytest.fixture
def copy(sources, tmp_path):
    """A folder to tamper with, and what was frozen of it."""

    def made(kind):
        shutil.copytree(sources[kind][0], tmp_path / "copy")
        return tmp_path / "copy", sources[kind][1]

    return made


@pytest.fixture
def alone(monkeypatch):
    """transformers is not installed."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "transformers" else find(name, *a)
    )


CROSSED = [f"decoder.blocks.{i}{part}" for i in range(3) for part in (".cross", "")]
PLACES = ["encoder.blocks.input", "encoder.blocks.0", "encoder.blocks.1", "decoder.blocks.input", *CROSSED, "output"]
WAYS = ["without padding", "padded on the left", "with a cache", "with a static cache", "greedy", "4 beams"]
NORMED = [*PLACES[:3], "encoder.norm", *PLACES[3:-1], "decoder.norm", "output"]
CLASSES = {BART: "BartForConditionalGeneration", MBART: "MBartForConditionalGeneration"}


@pytest.mark.parametrize("kind", FILES)
def test_a_good_checkpoint_passes_in_both_precisions(sources, kind):
    source, frozen = sources[kind]
    report = verify(source)
    assert (report.passes, report.diverges, report.problems) == (True, None, [])
    assert [place.ours for place in report.places] == [*(NORMED if kind == MBART else PLACES), *WAYS]
    for place in report.places:
        assert place.largest["float64"] <= 1e-10 * max(1, place.scale)
        assert place.mean["float32"] <= place.largest["float32"] <= 1e-4 * max(1, place.scale)
        assert place.scale > 0.5, "else anything would pass"
    assert [place.scale for place in report.places[-2:]] == [1, 1], "ids are the same or not, however large they are"
    assert report.agreement == {"float64": 1.0, "float32": 1.0}
    assert report.against == f"transformers {transformers.__version__}, {CLASSES.get(kind, 'MarianMTModel')}"
    again = verify(source, against=frozen)
    assert again.passes
    assert [place.ours for place in again.places] == [place.ours for place in report.places]
    assert again.tokenizer == report.tokenizer
    spelt = "19 of 19 texts have the same ids and come back the same"
    assert report.tokenizer == (
        "not compared, for transformers leaves out what sentencepiece.bpe.model normalises" if kind == MBART else spelt
    )


def test_what_is_written_varies_and_some_of_it_ends_early(sources):
    """Else a model that writes one token for ever, or a search that never stops, would pass."""
    states = module.read_frozen(sources[ONE][1]).states
    for way in ("greedy", "4 beams"):
        rows = [row for state in states.values() for row in state[way].tolist()]
        assert len({token for row in rows for token in row}) > 6
        assert len({tuple(row) for row in rows}) > 6
    assert any(70 in row[:-1] for state in states.values() for row in state["4 beams"].tolist())
    assert any(not torch.equal(state["greedy"], state["4 beams"]) for state in states.values())
    assert {state["output"].ndim for state in states.values()} == {2, 3}


def page(owner, name, old, new):
    return edited(getattr(encoder_decoder, owner), name, old, new)


def activation(name, other):
    return lambda patch: patch.setitem(bricks.ACTIVATIONS, name, other)


def eps(patch):
    """Of ours alone, which alone computes against what was frozen."""
    norm = torch.nn.functional.layer_norm
    patch.setattr(
        torch.nn.LayerNorm, "forward", lambda self, x: norm(x, self.normalized_shape, self.weight, self.bias, 1e-6)
    )


def interleaved(patch):
    def sinusoids(position, dim):
        found = bricks.sinusoids(position, dim)
        return torch.stack(found.chunk(2, dim=-1), dim=-1).flatten(-2)

    patch.setattr(encoder_decoder, "sinusoids", sinusoids)


def reading(change):
    """Of a source that was read, something else."""

    def plant(patch):
        real = Source.read
        patch.setattr(Source, "read", classmethod(lambda cls, *given: change(real(*given))))

    return plant


def same_depth(patch):
    """Each block of the decoder reads what the encoder had as deep, as if that were finished."""

    def read(self, source, keep=None):
        states, token = [], ragged.padded.set(True)
        hooks = [block.register_forward_hook(lambda *call: states.append(call[-1])) for block in self.encoder.blocks]
        self.encode(source, keep=keep)
        ragged.padded.reset(token)
        for hook in hooks:
            hook.remove()
        given = zip(self.decoder.blocks, [*states, *states[-1:] * 9])
        return Source([block.cross.keys_values(x) for block, x in given], bricks.padding_mask(keep))

    patch.setattr(encoder_decoder.EncoderDecoder, "read", read)


def positions_of_columns(patch):
    begin = encoder_decoder.begin
    patch.setattr(encoder_decoder, "begin", lambda ids, keep, *, length: begin(ids, None, length=length))


def another_start(patch):
    patch.setattr(encoder_decoder.EncoderDecoder, "first_id", "pad_token_id")


def forgetful(patch):
    patch.setattr(cache.Cache, "reorder", lambda self, rows: None)


FORWARD, FIRST = ("Half", "forward"), "encoder.blocks.input"
SEES = ("source is not None", "False")
MUTANTS = {
    "an unscaled embedding": (ONE, page(*FORWARD, "self.scale * x", "x"), FIRST),
    "interleaved sinusoids": (ONE, interleaved, FIRST),
    "positions from one on": (BART, page(*FORWARD, "(position)", "((position - 1).abs())"), FIRST),
    "no norm of the embedding": (BART, page(*FORWARD, "self.embedding_norm(", "("), FIRST),
    "norms before": (BART, edited(bricks.Block, "residual", "if self.pre_norm", "if True"), "encoder.blocks.0"),
    "norms after": (MBART, edited(bricks.Block, "residual", "if self.pre_norm", "if False"), "encoder.blocks.0"),
    "no last norm": (MBART, page(*FORWARD, "clear_padding(self.norm(x)", "clear_padding(x"), "encoder.norm"),
    "another eps": (BART, eps, FIRST),
    "tanh GELU": (BART, activation("gelu", bricks.gelu_tanh), "encoder.blocks.0"),
    "GELU for SiLU": (ONE, activation("silu", bricks.gelu), "encoder.blocks.0"),
    "heads inside out": (ONE, heads_inside_out, "encoder.blocks.0"),
    "swapped norms": (ONE, rows((".self_attn_layer_norm", ".final_layer_norm")), "encoder.blocks.0"),
    "swapped norms of the decoder": (
        BART, rows(("decoder.layers.*.encoder_attn_layer_norm", "decoder.layers.*.self_attn_layer_norm")),
        "decoder.blocks.0.cross",
    ),
    "a lost bias": (ONE, zeroed("blocks.1.cross.out.bias"), "decoder.blocks.1.cross"),
    "the decoder sees the future": (
        TWO, page("EncoderDecoder", "decode", "position, mask, keep", "position, None, keep"), "decoder.blocks.0.cross",
    ),
    "the source's padding is read": (ONE, reading(lambda read: read._replace(mask=None)), "decoder.blocks.0.cross"),
    "the source is read as far as the target goes": (
        ONE, edited(bricks.Block, "forward", "source_mask, kv", "'causal', kv"), "decoder.blocks.0.cross",
    ),
    "memory of the same depth": (MBART, same_depth, "decoder.blocks.0.cross"),
    "no bias of the scores": (BART, page("EncoderDecoder", "score", "x, self.bias", "x"), "output"),
    "rows without padding that see the future": (ONE, page(*FORWARD, *SEES), "without padding"),
    "positions of columns": (ONE, positions_of_columns, "padded on the left"),
    "a cache that forgets": (ONE, test_mutants.cache_forgets, "with a cache"),
    "a static cache that forgets": (
        ONE, lambda patch: patch.setattr(cache.StaticLayer, "_write", lambda self, buffer, new: buffer),
        "with a static cache",
    ),
    "another start": (ONE, another_start, "greedy"),
    "beams that keep others' memory": (TWO, forgetful, "4 beams"),
    "beams that go on": (ONE, edited(beams.Search, "run", "torch.isin(token, self.ends)", "(token < 0)"), "4 beams"),
}  # fmt: skip


@pytest.mark.unhooked  # planted functions need not have the shapes we promise
@pytest.mark.parametrize("name", MUTANTS)
def test_a_bug_in_the_code_is_caught(sources, monkeypatch, name):
    kind, plant, place = MUTANTS[name]
    plant(monkeypatch)
    source, frozen = sources[kind]
    report = verify(source, against=frozen)
    assert (report.passes, report.diverges) == (False, place)


@pytest.mark.unhooked
@pytest.mark.parametrize("name", ["norms after", "the source's padding is read", "another start", "beams that go on"])
def test_a_bug_in_the_code_is_caught_beside_transformers(sources, monkeypatch, name):
    kind, plant, place = MUTANTS[name]
    plant(monkeypatch)
    report = verify(sources[kind][0])
    assert (report.passes, report.diverges) == (False, place)


NEVER_ENDS = ("beams that go on", "GELU for SiLU")  # nor does the small model that comes with us, one of ReLUs


@pytest.mark.unhooked
@pytest.mark.parametrize(
    "name", [name for name, (kind, _, _) in MUTANTS.items() if kind == ONE and name not in NEVER_ENDS]
)
def test_a_bug_in_the_code_is_caught_without_transformers(sources, alone, monkeypatch, name):
    """By a small Marian that comes with us, whatever the layout."""
    _, plant, place = MUTANTS[name]
    assert verify(sources[BART][0]).passes
    plant(monkeypatch)
    report = verify(sources[BART][0])
    assert (report.passes, report.diverges) == (False, place)
    assert "This proves the code, not the checkpoint" in report.caveat


# --- tampered checkpoints, against what was frozen of the good ones


def swapped_halves(state):
    """Of a linear that both have."""
    a, b = (f"model.{half}.layers.1.self_attn.q_proj.weight" for half in ("encoder", "decoder"))
    state[a], state[b] = state[b], state[a]


def swapped_keys_and_values(state):
    a, b = (f"model.decoder.layers.2.encoder_attn.{name}_proj.weight" for name in "kv")
    state[a], state[b] = state[b], state[a]


def one_number(state):
    state["model.decoder.layers.0.fc2.weight"][3, 5] += 1e-2


def another_bias(state):
    state["final_logits_bias"] = state["final_logits_bias"] + 1e-3


TAMPERED = [
    (swapped_halves, "encoder.blocks.1"), (swapped_keys_and_values, "decoder.blocks.2.cross"),
    (one_number, "decoder.blocks.0"), (another_bias, "output"),
]  # fmt: skip


@pytest.mark.parametrize(("tamper", "place"), TAMPERED, ids=[tamper.__name__ for tamper, _ in TAMPERED])
def test_a_tampered_weight_is_caught(copy, tamper, place, capsys):
    folder, frozen = copy(BART)
    state = load_file(folder / "model.safetensors")
    tamper(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    assert main(["verify", str(folder), "--against", str(frozen)]) == 1
    said = capsys.readouterr().out
    assert "The weights are not those that were frozen." in said
    assert f"They do NOT agree. The first place that differs is {place}." in said


def change(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | fields), encoding="utf-8")


@pytest.mark.parametrize(
    ("kind", "fields", "said", "place"),
    [
        (BART, {"encoder_attention_heads": 7}, "heads was 3 and is 7", "encoder.blocks.0"),
        (BART, {"decoder_attention_heads": 3}, "decoder_heads was 7 and is 3", "decoder.blocks.0.cross"),
        (ONE, {"scale_embedding": False}, "scale_embedding was True and is False", FIRST),
        (MBART, {"activation_function": "relu"}, "activation was gelu and is relu", "encoder.blocks.0"),
    ],
)
def test_a_changed_config_is_caught(copy, kind, fields, said, place):
    """The same weights fit, and transformers would read the same wrong file."""
    folder, frozen = copy(kind)
    change(folder / "config.json", **fields)
    assert verify(folder).passes
    report = verify(folder, against=frozen)
    assert report.problems[0] == f"The config is not the one that was frozen: {said}."
    assert report.diverges == place


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"decoder_start_token_id": 3}, "greedy"),
        ({"no_repeat_ngram_size": 0}, "greedy"),
        ({"forced_bos_token_id": 5}, "greedy"),
        ({"bad_words_ids": [[81]]}, "greedy"),
        ({"length_penalty": -3.0}, "4 beams"),
    ],
)
def test_a_target_that_is_written_otherwise_is_caught(copy, fields, place):
    folder, frozen = copy(ONE)
    change(folder / "generation_config.json", **fields)
    assert verify(folder).passes
    assert verify(folder, against=frozen).diverges == place


def test_where_a_checkpoint_does_not_say_what_a_target_begins_with_it_is_verified_all_the_same(copy):
    folder, _ = copy(MBART)
    for name in ("config.json", "generation_config.json"):
        change(folder / name, decoder_start_token_id=None)
    assert sf.load(folder).generation.start is None
    assert verify(folder).passes


# --- tokenisers


@pytest.mark.parametrize("name", ["vocab.json", "target_vocab.json"])
def test_another_vocabulary_is_caught(copy, name):
    folder, frozen = copy(TWO)
    ids = json.loads((folder / name).read_text(encoding="utf-8"))
    letter = "e" if name == "vocab.json" else "é"
    ids["▁"], ids[letter] = ids[letter], ids["▁"]
    save(folder, {name: ids})
    assert verify(folder).passes, "transformers reads the same files"
    (problem,) = verify(folder, against=frozen).problems
    assert re.match(
        r"The tokeniser differs from the file on 1\d of 19 texts, first on 'A man .*, as a target \[", problem
    )


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_side_that_is_spelt_wrongly_is_caught(sources, monkeypatch, side):
    real = SentencePieces.pieces

    def pieces(self, text):
        own = "target" if self.target is self else "source"
        return real(self, text)[:: -1 if own == side else 1]

    monkeypatch.setattr(SentencePieces, "pieces", pieces)
    (problem,) = verify(sources[ONE][0]).problems
    assert problem.startswith("The tokeniser differs from transformers on ")


@pytest.mark.parametrize("name", ["vocab.json", "target_vocab.json"])
def test_a_tokeniser_of_another_model_is_caught(copy, name):
    folder, _ = copy(TWO)
    ids = json.loads((folder / name).read_text(encoding="utf-8"))
    largest = len(ids) - 1
    save(folder, {name: {piece: 999 if id == 1 else id for piece, id in ids.items()}})
    report = verify(folder)
    assert report.problems == [
        f"The tokeniser is not this model's: it gives id 999, and the model knows 0 to {largest}."
    ]


def test_sources_and_targets_are_sentences_where_there_is_a_tokeniser(sources):
    source, frozen = sources[TWO]
    tokenizer, case = sf.load_tokenizer(source), module.read_frozen(frozen).cases["text"]
    for name, keep, side in (("source", "source_keep", tokenizer), ("target", "keep", tokenizer.target)):
        lengths = case[keep].sum(1).tolist()
        assert len({*lengths}) > 1, "ragged"
        for ids, length, text in zip(case[name].tolist(), lengths, module.REFERENCES["EncoderDecoder"].inputs[0].texts):
            assert ids[:length] == side.encode(text)[:31]


# --- what has no reference


def test_a_layout_of_our_own_has_no_reference_and_the_sentence_says_so(tmp_path, capsys):
    sizes = {"dim": 12, "heads": 3, "depth": 1, "vocab": 31, "length": 9}
    sf.EncoderDecoder(sf.EncoderDecoderConfig(**sizes)).save_pretrained(tmp_path)
    assert main(["verify", str(tmp_path)]) == 2
    said = "There is no reference to verify this EncoderDecoder against: transformers has none that has its norms"
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_report_speaks_of_both_sides(sources, capsys):
    assert main(["verify", str(sources[ONE][0]), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["model"], said["passes"], said["diverges"]) == ("EncoderDecoder", True, None)
    assert main(["verify", str(sources[ONE][0])]) == 0
    shown = capsys.readouterr().out
    assert "…" not in shown, "nothing is cut off"
    assert "Tokeniser: 19 of 19 texts" in shown


def test_pairs_are_ragged_and_short_models_have_shorter_ones():
    config = sf.EncoderDecoderConfig(vocab=97, target_vocab=53, length=64)
    cases = REFERENCES["EncoderDecoder"].cases(config, torch.Generator().manual_seed(0), [])
    assert cases.keys() == {"whole", "ragged", "long"}
    assert cases["ragged"]["source_keep"].sum(1).tolist() == [16, 9, 1]
    assert cases["ragged"]["keep"].sum(1).tolist() == [13, 7, 1]
    assert 53 <= int(cases["long"]["source"].max()) < 97
    assert int(cases["long"]["target"].max()) < 53
    short = sf.EncoderDecoderConfig(vocab=97, length=5)
    cases = REFERENCES["EncoderDecoder"].cases(short, torch.Generator().manual_seed(0), [[1] * 9, [2] * 7])
    assert max(ids.shape[1] for case in cases.values() for ids in case.values()) == 5
