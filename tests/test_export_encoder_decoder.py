"""`export` of an encoder-decoder: what transformers loads in each published layout, or in ours, which no one else does,
with its tokeniser's files, and a card that says how to use it."""

import itertools
import json
import re

import encoder_decoder_reference
import pytest
import torch
import transformers
from huggingface_hub import ModelCard
from test_verify_encoder_decoder import BART, FILES, MBART, ONE, TWO, make

import scratchformers as sf
from scratchformers.cli import main

ENGLISH, GERMAN = (words.split() for words in ("zero one two three four", "null eins zwei drei vier"))
SIZES = ["dim=24", "heads=3", "depth=1", "steps=4", "eval_every=2", "threads=1", "tokens=80"]
AS_BART = ["embedding_norm=true", "pre_norm=false", "final_norm=false"]  # which transformers has


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs on pairs as `train` leaves them: in a layout of ours, and in BART's."""
    whole = tmp_path_factory.mktemp("private folder")
    numbers = [row for length in (1, 2, 3) for row in itertools.product(range(5), repeat=length)]
    for name, words in (("numbers.en", ENGLISH), ("numbers.de", GERMAN)):
        lines = [" ".join(words[i] for i in row) for row in numbers]
        (whole / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    data = ["--data", f"{whole / 'numbers.en'},{whole / 'numbers.de'}", "--device", "cpu", "--preset", "tiny"]
    for name, more in (("own", ["joint=false"]), ("bart", AS_BART)):
        given = [f"--set={each}" for each in [*SIZES, *more]]
        said = ["--out", str(whole / name), "--tokenizer", "bpe", "--vocab", "290"]
        assert main(["train", "encoder-decoder", *data, *said, *given]) == 0
    return whole


def exported(source, out, *more):
    assert main(["export", str(source), "--out", str(out), *more]) == 0
    return ModelCard.load(out / "README.md")


def loaded(folder, dtype=torch.float32):
    kind = transformers.AutoModelForSeq2SeqLM
    theirs, told = kind.from_pretrained(folder, output_loading_info=True, dtype=dtype)
    assert not [what for what in ("missing_keys", "unexpected_keys", "mismatched_keys") if told[what]]
    return theirs.eval()


@pytest.mark.parametrize("kind", FILES)
def test_what_transformers_reads_is_bit_equal_and_has_its_tokeniser(tmp_path, kind):
    source, out = make(tmp_path / "theirs", kind), tmp_path / "out"
    card = exported(source, out)
    said, before = (json.loads((each / "config.json").read_text(encoding="utf-8")) for each in (out, source))
    assert (said["model_type"], said["architectures"]) == (before["model_type"], before["architectures"])
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "translation")
    assert card.data.tags == ["scratchformers", said["model_type"]]
    assert "in the layout that Hugging Face's transformers reads" in card.text
    assert "How it was trained is not known" in card.text
    theirs, again, model = loaded(source), loaded(out), sf.load(out)
    assert type(again) is type(theirs)
    for name, value in theirs.state_dict().items():
        unread = 2 if "embed_positions" in name and kind in (BART, MBART) else 0  # rows that no position reads
        assert torch.equal(again.state_dict()[name][unread:], value[unread:]), name
    for name, value in sf.load(source).state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    for name in FILES[kind]:
        assert (out / name).read_bytes() == (source / name).read_bytes(), name
    assert again.generation_config.no_repeat_ngram_size == model.generation.no_repeat_ngram == 2
    ids = encoder_decoder_reference.ids(2, 9)
    assert sf.generate(model, ids, max_new_tokens=6).tolist() == again.generate(ids, max_new_tokens=6).tolist()


def test_a_run_in_barts_layout_is_read_by_transformers_and_says_the_same(runs, tmp_path):
    exported(runs / "bart", tmp_path / "out")
    theirs, ours = loaded(tmp_path / "out"), sf.load(runs / "bart" / "model")
    assert type(theirs).__name__ == "BartForConditionalGeneration"
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer("two three", return_tensors="pt")["input_ids"]
    assert ids[0].tolist() == sf.load_tokenizer(runs / "bart" / "model").encode("two three")
    with torch.no_grad():
        torch.testing.assert_close(ours(ids, ids), theirs(ids, decoder_input_ids=ids).logits, rtol=0, atol=1e-5)
    assert torch.equal(theirs.generate(ids, max_new_tokens=9), sf.generate(ours, ids, max_new_tokens=9))


def test_the_card_says_what_the_run_was(runs, tmp_path):
    card = exported(runs / "bart", tmp_path / "out", "--license", "mit", "--name", "me/numbers")
    facts = json.loads((runs / "bart" / "config.json").read_text(encoding="utf-8"))
    log = [json.loads(line) for line in (runs / "bart" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    best, targets = (
        [record for record in log if record.get("best")][-1],
        sum(record.get("targets", 0) for record in log),
    )
    assert (card.data.license, card.data.model_name) == ("mit", "me/numbers")
    results = {each.metric_type: each for each in card.data.eval_results}
    assert {"loss", "perplexity", "accuracy", "exact"} <= results.keys()
    assert results["loss"].metric_value == pytest.approx(best["valid_loss"], abs=1e-6)
    assert (results["loss"].dataset_type, results["loss"].dataset_name) == ("text", "numbers.en, numbers.de, held out")
    for each in (
        f"{facts['parameters']:,} parameters", "| depth | 1 |", "| decoder_depth | 1 |", "| target_vocab | as vocab |",
        "on `numbers.en, numbers.de`", facts["data"]["sha256"], f"{facts['data']['pairs']} pairs", "4 of 4 steps",
        f"{targets:,} tokens scored", f"{best['valid_loss']:.4f} nats a token", "Tokeniser: 290 ids.", "loss.png",
        f"{facts['data']['pairs']} pairs of texts, of whose targets it was asked {targets:,} tokens",
        f"the best of the run; knowing nothing costs {log[0]['trivial_loss']:.4f}. BLEU: {log[0]['bleu_signature']}.",
    ):  # fmt: skip
        assert each in card.text, each
    assert "private folder" not in card.content, "where it was trained is nobody's business"


def test_a_layout_of_our_own_says_so_and_keeps_both_tokenisers(runs, tmp_path):
    card = exported(runs / "own", tmp_path / "out")
    assert (card.data.library_name, card.data.tags) == ("scratchformers", ["scratchformers", "encoderdecoder"])
    assert "a layout of ScratchFormers' own: Hugging Face's transformers has no such model" in card.text
    assert "from transformers" not in card.text
    ours, again = (sf.load_tokenizer(each) for each in (runs / "own" / "model", tmp_path / "out"))
    assert again.digest() == ours.digest()
    assert again.target.digest() == ours.target.digest() != ours.digest()
    for key, value in sf.load(runs / "own" / "model").state_dict().items():
        assert torch.equal(sf.load(tmp_path / "out").state_dict()[key], value)


def test_of_two_vocabularies_the_card_says_both(runs, tmp_path):
    facts = json.loads((runs / "own" / "config.json").read_text(encoding="utf-8"))["tokenizer"]
    said = f"Tokeniser: {facts['vocab']} and, of targets, {facts['target_vocab']} ids."
    assert facts["vocab"] != facts["target_vocab"]
    assert said in exported(runs / "own", tmp_path / "out").text


# Not mBART: for its file of SentencePiece transformers itself needs another package.
@pytest.mark.parametrize("kind", [BART, ONE, TWO, "run in bart's layout", "run in our own"])
def test_what_the_card_proposes_runs(runs, tmp_path, monkeypatch, capsys, kind):
    monkeypatch.chdir(tmp_path)
    names = {"run in bart's layout": runs / "bart", "run in our own": runs / "own"}
    source = names[kind] if kind in names else make(tmp_path / "theirs", kind)
    card = exported(source, tmp_path / "out")
    found = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    assert len(found) == (1 if kind == "run in our own" else 2)
    for code in found:
        capsys.readouterr()
        exec(compile(code, "README.md", "exec"), {})
        assert capsys.readouterr().out.endswith("\n")
    new = 64 if kind.startswith("run") else 30  # of 31 positions
    assert f"max_new_tokens={new})" in found[-1] or kind == "run in our own"


def test_a_model_without_a_tokeniser_is_only_loaded(tmp_path):
    encoder_decoder_reference.published(BART).float().save_pretrained(tmp_path / "theirs")
    card = exported(tmp_path / "theirs", tmp_path / "out")
    assert "sf.load(" in card.text
    assert not re.search("Translator|Tokenizer|generate", card.text)
