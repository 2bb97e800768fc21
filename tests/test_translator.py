"""Texts translated: what transformers makes of them, in any batch, cut, split, drawn, in any language."""

import dataclasses
import json
import re

import encoder_decoder_reference as published
import pytest
import torch
from test_sentence_pieces import ENGLISH, OTHER, learn, numbered, pieces_of, save, theirs_mbart
from transformers import MarianTokenizer

import scratchformers as sf
from scratchformers.generate import generate
from scratchformers.tasks import translation
from scratchformers.tasks.translation import BLOCK, Translating, split
from scratchformers.text import pair_characters

DTYPE = torch.float64
ROUNDED = 1e-6  # transformers takes the logarithm in float32
# Of many lengths, some twice; and the rules that make a scrambled model's text varied.
TEXTS = [" ".join(ENGLISH[i].split()[: 1 + i % 7]) for i in range(40)]
TEXTS += TEXTS[:3]
RULES = {"no_repeat_ngram_size": 2, "max_length": 13, "length_penalty": 0.7}


def model_of(kind, tokens, vocab, **changes):
    """transformers', scrambled, which decodes by `RULES`."""
    theirs = published.published(kind, vocab_size=vocab, max_position_embeddings=61, **tokens, **changes)
    theirs.generation_config.update(**tokens, **RULES, num_beams=4)
    return theirs


@pytest.fixture(scope="module")
def marian(tmp_path_factory):
    """A Marian with its tokeniser: transformers', transformers' tokeniser, and the folder."""
    folder = tmp_path_factory.mktemp("marian")
    cutters = learn(ENGLISH, 311, character_coverage=0.999), learn(OTHER, 463, model_type="bpe", byte_fallback=True)
    ids = numbered([*pieces_of(cutters[0]), *pieces_of(cutters[1])], 1, [">>fra<<", ">>deu<<"])
    pad = ids["<pad>"]
    tokens = {"decoder_start_token_id": pad, "eos_token_id": 0, "pad_token_id": pad, "bad_words_ids": [[pad]]}
    theirs = model_of("marian", tokens, len(ids))
    theirs.final_logits_bias[0, 0] = 7.0  # so that texts end, and at different lengths
    theirs.save_pretrained(folder)
    save(folder, {"source.spm": cutters[0], "target.spm": cutters[1], "vocab.json": ids})
    return theirs, MarianTokenizer.from_pretrained(str(folder)), folder


@pytest.fixture
def translator(marian):
    return sf.Translator.from_pretrained(marian[2], dtype=DTYPE)


def theirs_say(theirs, tokenizer, text, *, n=1, **given):
    """The texts and scores of one source, alone."""
    ids = tokenizer([text], return_tensors="pt").input_ids
    with torch.no_grad():
        found = theirs.generate(
            ids, num_return_sequences=n, output_scores=True, return_dict_in_generate=True, do_sample=False, **given
        )
    how = {"use_source_tokenizer": False} if isinstance(tokenizer, MarianTokenizer) else {}  # else it decodes by either
    said = tokenizer.batch_decode(found.sequences, skip_special_tokens=True, clean_up_tokenization_spaces=False, **how)
    return [each.strip() for each in said], getattr(found, "sequences_scores", None)


# --- what transformers gives


def test_texts_are_those_of_transformers(marian, translator):
    """As the checkpoint says: four beams, a length penalty, rules; and greedily."""
    theirs, tokenizer, _ = marian
    found = translator(TEXTS)
    for text, each in zip(TEXTS, found):
        (expected,), (score,) = theirs_say(theirs, tokenizer, text)
        assert each.text == expected
        assert each.score == pytest.approx(score.item(), abs=ROUNDED)
    assert len({each.text for each in found}) > 20, "varied"
    greedy = translator(TEXTS, beams=1)
    for text, each in zip(TEXTS, greedy):
        assert [each.text] == theirs_say(theirs, tokenizer, text, num_beams=1)[0]
    assert [each.text for each in greedy] != [each.text for each in found]
    lengths = [len(translator.tokenizer.target.encode(each.text)) for each in greedy]
    assert len({*lengths}) > 4, "some end before others"


def test_the_best_few_have_transformers_scores(marian, translator):
    theirs, tokenizer, _ = marian
    for text, found in zip(TEXTS[:8], translator(TEXTS[:8], nbest=3, length_penalty=1.3, max_new_tokens=9)):
        given = {"n": 3, "length_penalty": 1.3, "max_new_tokens": 9}
        expected, scores = theirs_say(theirs, tokenizer, text, **given)
        assert [each.text for each in found] == expected
        assert [each.score for each in found] == pytest.approx(scores.tolist(), abs=ROUNDED)
        assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)
    assert translator(TEXTS[0], nbest=1) == [translator(TEXTS[0])]
    assert len(translator(TEXTS[0], nbest=6)) == 6, "more beams than the checkpoint's, if more are asked for"


def test_where_there_are_fewer_texts_than_asked_for_these_are_given(translator):
    rules = translator.model.generation
    translator.model.generation = dataclasses.replace(rules, forced_start=9)
    assert len(translator(TEXTS[3], nbest=4, max_new_tokens=1)) == 1
    assert len(translator(TEXTS[3], nbest=4, max_new_tokens=2)) == 4


def test_without_beams_the_score_is_the_mean_log_probability(marian, translator):
    """Of every id that was written, its end among them, as the model has it."""
    model = translator.model
    for text in TEXTS[:8]:
        ids = torch.tensor([translator.tokenizer.encode(text)])
        written = generate(model, ids, max_new_tokens=12)
        with torch.no_grad():
            log = model(ids, written[:, :-1]).log_softmax(-1).gather(2, written[:, 1:, None])
        assert translator(text, beams=1).score == pytest.approx(log.mean().item(), abs=1e-10)


def test_an_end_that_is_no_special_token_is_not_in_the_text(translator):
    model, tokenizer = translator.model, translator.tokenizer
    written = generate(model, torch.tensor([tokenizer.encode(TEXTS[3])]), max_new_tokens=12)[0, 1:].tolist()
    at = next(i for i in range(3, 12) if written[i] not in written[:i] and written[i] not in tokenizer.target.special)
    model.generation = dataclasses.replace(model.generation, end=(written[at],))
    assert translator(TEXTS[3], beams=1).text == tokenizer.decode(written[:at]).strip()


# --- any batch, any order


def together(answers, alone):
    assert [each.text for each in answers] == [each.text for each in alone]
    torch.testing.assert_close(
        *(torch.tensor([each.score for each in some], dtype=DTYPE) for some in (answers, alone)), rtol=0, atol=1e-10
    )


@pytest.mark.parametrize("beams", [1, 4])
def test_a_translation_does_not_depend_on_its_batch(translator, monkeypatch, beams):
    alone = [translator(text, beams=beams) for text in TEXTS]
    for batch in (3, 32):
        together(translator(TEXTS, beams=beams, batch=batch), alone)
    monkeypatch.setattr(translation, "TOKENS", 20)
    together(translator(TEXTS, beams=beams), alone)
    monkeypatch.setattr(translation, "BLOCK", 7)
    together([*translator.stream(iter(TEXTS), beams=beams)], alone)


def batches(translator, monkeypatch):
    """(rows, columns) of each batch from now on."""
    seen, own = [], translator.model.read
    monkeypatch.setattr(translator.model, "read", lambda ids, keep: (seen.append(tuple(ids.shape)), own(ids, keep))[1])
    return seen


def test_texts_of_like_lengths_come_together_and_a_batch_is_bounded(translator, monkeypatch):
    seen = batches(translator, monkeypatch)
    monkeypatch.setattr(translation, "TOKENS", 64)
    translator(TEXTS, beams=1, batch=5)
    lengths = sorted((len(translator.tokenizer.encode(text)) for text in TEXTS), reverse=True)
    assert sum(rows for rows, _ in seen) == len(TEXTS)
    assert all(rows <= 5 and rows * columns <= 64 for rows, columns in seen)
    at = [sum(rows for rows, _ in seen[:i]) for i in range(len(seen))]
    assert [columns for _, columns in seen] == [lengths[i] for i in at], "the longest first"


def test_a_stream_holds_one_block(translator):
    """Of a source without an end: what was read beyond the texts given is at most a block."""
    asked = []

    def endless():
        while True:
            asked.append(0)
            yield "a b"

    done = []
    found = translator.stream(endless(), beams=1, max_new_tokens=1, batch=512, advance=done.append)
    next(found)
    assert len(asked) == BLOCK
    for _ in range(BLOCK):
        next(found)
    assert len(asked) == 2 * BLOCK
    assert sum(done) == 2 * BLOCK


def test_an_empty_line_asks_nothing_of_the_model(translator, monkeypatch):
    done, seen = [], batches(translator, monkeypatch)
    empty = sf.Translation("", 0.0)
    assert translator(["", " \t", "\n"]) == [empty] * 3
    assert translator("", nbest=3) == [empty]
    assert [*translator.stream(["", ""], advance=done.append)] == [empty] * 2
    assert not seen
    assert sum(done) == 2
    assert translator([]) == []
    among = translator(["", TEXTS[1], "", TEXTS[0]], batch=1)
    assert [bool(each.text) for each in among] == [False, True, False, True]
    together(among[3:], [translator(TEXTS[0])])


# --- drawn


def test_a_text_draws_by_its_own_number(translator, monkeypatch):
    given = {"temperature": 2.0, "top_k": 40, "top_p": 0.95}
    drawn = translator(TEXTS, seed=5, **given)
    together(translator(TEXTS, seed=5, batch=3, **given), drawn)
    together([translator(text, seed=5 + i, **given) for i, text in enumerate(TEXTS)], drawn)
    together([*translator.stream(TEXTS[9:], first=9, seed=5, **given)], drawn[9:])
    monkeypatch.setattr(translation, "BLOCK", 7)
    together([*translator.stream(TEXTS, seed=5, **given)], drawn)
    assert [each.text for each in translator(TEXTS, seed=6, **given)] != [each.text for each in drawn]
    assert [each.text for each in translator(TEXTS, **given)] != [each.text for each in translator(TEXTS, **given)]


# --- too long


LONG = " ".join(ENGLISH[i].strip() + "." for i in range(2, 10))


def test_what_is_too_long_is_refused_cut_or_split(translator):
    count = len(translator.tokenizer.encode(LONG))
    with pytest.raises(ValueError, match=rf"has {count} tokens and the model takes 61: .* split it or to truncate it"):
        translator([TEXTS[0], LONG])
    seen = []
    own, translator.model.read = translator.model.read, lambda ids, keep: (seen.append(ids.tolist()), own(ids, keep))[1]
    translator([LONG, "a"], too_long="truncate")
    assert translator.tokenizer.cut == 1
    assert seen[0][0] == [*translator.tokenizer.encode(LONG)[:60], translator.tokenizer.end]
    del translator.model.read
    parts = split(LONG, lambda part: len(translator.tokenizer.encode(part)) <= 61)
    assert len(parts) > 3
    alone = [translator(part) for part in parts]
    whole = translator(["", LONG, TEXTS[0]], too_long="split", batch=2)
    assert whole[1].text == " ".join(each.text for each in alone)
    assert whole[1].score == pytest.approx(sum(each.score for each in alone) / len(alone), abs=1e-10)
    together(whole[2:], [translator(TEXTS[0])])
    several = translator(LONG, too_long="split", nbest=2)
    together(several[:1], whole[1:2])
    assert several[1].text == " ".join(translator(part, nbest=2)[1].text for part in parts)
    done = []
    assert len([*translator.stream([LONG, LONG], too_long="split", advance=done.append, batch=4, beams=1)]) == 2
    assert sum(done) == 2, "parts are no texts"


@pytest.mark.parametrize(
    ("text", "most", "parts"),
    [
        ("One two. Three four! Five?", 99, ["One two. Three four! Five?"]),
        ("One two. Three four! Five?", 12, ["One two.", "Three four!", "Five?"]),
        ('He said "No." Then he left the house.', 25, ['He said "No."', "Then he left the house."]),
        ("It costs 3.50 today. Yes.", 20, ["It costs 3.50 today.", "Yes."]),
        ("我来了。你走了！好", 4, ["我来了。", "你走了！", "好"]),
        ("First line\nSecond line", 12, ["First line", "Second line"]),
        ("aa bb cc dd", 5, ["aa bb", "cc dd"]),
        ("aa bb cc dd. ee", 5, ["aa bb", "cc", "dd.", "ee"]),
        ("abcdefgh", 3, ["ab", "cd", "ef", "gh"]),
        ("  ", 3, []),
    ],
)
def test_a_text_is_split_at_sentences_then_words_then_anywhere(text, most, parts):
    assert split(text, lambda part: len(part) <= most) == parts


def test_a_model_that_reads_nothing_is_said():
    with pytest.raises(ValueError, match="not even 'a' fits"):
        split("ab", lambda part: False)


# --- languages


@pytest.fixture(scope="module", params=["mbart", "mbart50"])
def mbart(request, tmp_path_factory):
    """An mBART that says its language as its first id, or one that is told it as its second."""
    folder = tmp_path_factory.mktemp(request.param)
    content = learn(ENGLISH, 311, normalization_rule_name="identity")
    kind = {"mbart": "MBartTokenizer", "mbart50": "MBart50Tokenizer"}[request.param]
    said = {"tokenizer_class": kind, "src_lang": "de_DE", "tgt_lang": "ro_RO"}
    save(folder, {"sentencepiece.bpe.model": content, "tokenizer_config.json": said})
    tokenizer = theirs_mbart(content, kind)
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in ("ro_RO", "fr_XX")}
    begins = {"decoder_start_token_id": ids["ro_RO"]} if request.param == "mbart" else {"decoder_start_token_id": 2}
    theirs = model_of("mbart", {**begins, "eos_token_id": 2, "pad_token_id": 1}, len(tokenizer))
    theirs.save_pretrained(folder)
    return theirs, tokenizer, folder, "decoder_start_token_id" if request.param == "mbart" else "forced_bos_token_id"


def test_mbart_reads_and_writes_the_languages_asked_for(mbart):
    theirs, tokenizer, folder, begins = mbart
    ours = sf.Translator.from_pretrained(folder, dtype=DTYPE)
    own = ours.model.generation
    for text in TEXTS[:6]:
        tokenizer.src_lang = "de_DE"
        plain, _ = theirs_say(theirs, tokenizer, text)
        assert [ours(text).text] == plain
        tokenizer.src_lang = "en_XX"
        given = {begins: tokenizer.convert_tokens_to_ids("fr_XX")}
        expected, _ = theirs_say(theirs, tokenizer, text, **given)
        found = ours(text, source_language="en_XX", target_language="fr_XX")
        assert [found.text] == expected != plain
    assert ours.model.generation is own
    with pytest.raises(ValueError, match=r"target_language is 'french': expected one of .*fr_XX"):
        ours("a", target_language="french")
    with pytest.raises(ValueError, match=r"source_language is '': expected one of .*en_XX"):
        ours("a", source_language="")


def test_a_marian_is_told_what_to_write(translator):
    told = translator(TEXTS[:5], target_language="fra")
    together(told, translator([f">>fra<< {text}" for text in TEXTS[:5]]))
    together(told, translator(TEXTS[:5], target_language=">>fra<<"))
    other = translator(TEXTS[:5], target_language="deu")
    assert [each.text for each in other] != [each.text for each in told]
    with pytest.raises(ValueError, match=r"target_language is 'nl': expected one of deu fra."):
        translator("a", target_language="nl")
    with pytest.raises(ValueError, match="source_language is 'fra': the vocabulary has none, so leave it out"):
        translator("a", source_language="fra")


# --- what cannot be spelt


def test_what_cannot_be_spelt_is_refused_or_a_warning(translator, recwarn):
    known = next(text for text in TEXTS if not translator.tokenizer.unknown(translator.tokenizer.encode(text)))
    for text in ("猫は犬です", "猫は 犬です " * 3, f"{known[:3]} 猫 犬 犬 犬"):
        with pytest.raises(ValueError, match=r"Of \d+ tokens the vocabulary cannot spell \d+: expected a text in the"):
            translator(text)
    translator.unspelt = 0
    translator(known)
    assert not recwarn
    with pytest.warns(UserWarning, match="1 of 2 texts hold what the vocabulary cannot spell"):
        translator([known, f"{known} {known} 猫"])
    assert translator.unspelt == 1


def test_texts_are_looked_through_before_any_is_translated(translator, monkeypatch):
    seen = batches(translator, monkeypatch)
    assert translator.check(iter(["a", "", "b"])) == 3
    with pytest.raises(ValueError, match=r"f.txt, line 3: The text .* has"):
        translator.check(["a", "", LONG, LONG], name="f.txt")
    with pytest.raises(ValueError, match="beams is 9999: expected 1 to"):
        translator.check([], beams=9999)
    assert not seen


# --- a summary


def test_a_summary_is_decoded_as_config_json_says(tmp_path):
    """BART's `task_specific_params`, over what its generation config says."""
    tokenizer = pair_characters(TEXTS, TEXTS)
    theirs = model_of("bart", {"decoder_start_token_id": 2, "eos_token_id": 2, "pad_token_id": 0}, tokenizer.vocab)
    said = {"min_length": 9, "max_length": 17, "num_beams": 3, "length_penalty": 2.0, "no_repeat_ngram_size": 3}
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    save(tmp_path, {"config.json": {**config, "task_specific_params": {"summarization": said}}})
    save(tmp_path, tokenizer.files)
    ours = sf.Translator.from_pretrained(tmp_path, task="summarise", dtype=DTYPE)
    plain = sf.Translator.from_pretrained(tmp_path, dtype=DTYPE)
    own = ours.model.generation
    for text in TEXTS[:6]:
        ids = torch.tensor([tokenizer.encode(text)])
        (expected,) = theirs.generate(ids, do_sample=False, **said).tolist()
        spelt = tokenizer.decode([id for id in expected if id > 2]).strip()
        assert ours(text).text == spelt != plain(text).text
        assert len(tokenizer.encode(ours(text, beams=1, max_new_tokens=3).text)) <= 4
    assert ours.model.generation is own
    assert ours.digest() != plain.digest()
    with pytest.raises(ValueError, match="task is 'sing': expected one of translate, summarise"):
        sf.Translator(ours.model, tokenizer, task="sing")


def test_a_bart_that_lacks_its_last_special_token_is_taken(marian):
    """bart-large-cnn has an id less than its vocabulary, that of <mask>."""
    tokenizer = pair_characters(TEXTS, TEXTS)
    model = sf.EncoderDecoder(sf.EncoderDecoderConfig(vocab=tokenizer.vocab, length=9, dim=8, depth=1, heads=2))
    sf.Translator(model, tokenizer)
    smaller = sf.EncoderDecoder(dataclasses.replace(model.config, vocab=tokenizer.vocab - 1))
    with pytest.raises(ValueError, match="they do not belong together"):
        sf.Translator(smaller, tokenizer)
    tokenizer.tokenizer.add_special_tokens(["<mask>"])
    sf.Translator(model, tokenizer)
    apart = sf.EncoderDecoder(dataclasses.replace(model.config, vocab=999, target_vocab=7))
    with pytest.raises(ValueError, match="they do not belong together"):
        sf.Translator(apart, tokenizer)


# --- what cannot be


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"beams": 0}, "beams is 0: expected at least 1"),
        ({"nbest": 0}, "nbest is 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0: expected at least 1"),
        ({"batch": 0}, "batch is 0"),
        ({"length_penalty": float("nan")}, "length_penalty is nan"),
        ({"too_long": "cut"}, "too_long is 'cut': expected one of error, truncate, split"),
        ({"seed": -1}, "seed is -1"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p is 0.0"),
        ({"temperature": 1.0, "beams": 2}, "what is drawn has no beams"),
        ({"temperature": 1.0, "nbest": 2}, "what is drawn has no beams"),
        ({"temperature": 1.0, "length_penalty": 2.0}, "what is drawn has no beams"),
        ({"beams": 10**6}, "beams is 1000000: expected 1 to .*, the tokens there are"),
        ({"beams": 2, "nbest": 3}, "nbest is 3: expected 1 to 2, the beams there are"),
        ({"beams": 1, "length_penalty": 2.0}, "length_penalty ranks beams, and there is one"),
        ({"max_new_tokens": 61}, "max_new_tokens is 61: expected at most 60, the positions of the model less one"),
    ],
)
def test_what_cannot_be_is_said(translator, settings, said):
    with pytest.raises(ValueError, match=said):
        translator("a b", **settings)
    with pytest.raises(ValueError, match=said):
        translator.check([], **settings)


def test_a_typo_is_no_setting(translator):
    with pytest.raises(TypeError, match="beam"):
        translator("a", beam=2)


def test_other_models_do_not_translate(published, berts):
    for folder, kind in ((published[1], "GPT2"), (berts["MaskedLM"][1], "BERT")):
        with pytest.raises(
            ValueError, match=f"^{re.escape(str(folder))} holds a {kind}, which does not translate: exp"
        ):
            sf.Translator.from_pretrained(folder)
        with pytest.raises(ValueError, match=f"^{kind}, which does not translate"):
            sf.Translator(sf.load(folder), None)


def test_a_missing_spm_is_said(marian, tmp_path):
    for path in marian[2].iterdir():
        if path.name != "target.spm":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(FileNotFoundError, match=r"holds no target.spm"):
        sf.Translator.from_pretrained(tmp_path)


def test_the_digest_follows_what_a_translation_depends_on(translator):
    before = translator.digest()
    assert translator.digest() == before
    translator.model.generation = dataclasses.replace(translator.model.generation, beams=2)
    changed = translator.digest()
    with torch.no_grad():
        translator.model.bias[0] += 1
    assert len({before, changed, translator.digest()}) == 3


def test_an_error_leaves_the_model_as_it_was(translator, monkeypatch):
    own = translator.model.generation
    monkeypatch.setattr(translator.model, "read", lambda ids, keep: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        translator("a", target_language="fra")
    assert translator.model.generation is own
    assert not translator.model.training


def test_settings_are_named_once():
    """What the program passes on."""
    assert [each.name for each in dataclasses.fields(Translating)][:3] == ["beams", "nbest", "max_new_tokens"]
