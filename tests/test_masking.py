"""Which tokens are hidden: how many, which never, by what, and that no row is changed. The famous bugs are planted."""

from string import ascii_lowercase, digits

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models

from scratchformers.models.bert import BERT, BERTConfig
from scratchformers.text import BERT as SPECIAL
from scratchformers.text import TextTokenizer, characters, train_bpe, train_wordpiece
from scratchformers.training import language
from scratchformers.training.data import generator, to_stream
from scratchformers.training.language import Masked, MaskedSettings
from scratchformers.training.masking import Masking

TEXT = "".join(f"{i} times {j} is {i * j}, multiplication notwithstanding.\n" for i in range(12) for j in range(12))
CHARACTERS = characters([TEXT], special=tuple(SPECIAL.values()))
# Learnt from the alphabet, so that words are in pieces.
WORDPIECE = train_wordpiece([f"{letters} {letters[::-1]} , ." for letters in (ascii_lowercase, digits)], 106)


def zero_is_a_letter():
    """A tokeniser whose special tokens come last, so that id 0 is text."""
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate("abcdefgh")}, merges=[]))
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in ("[PAD]", "[UNK]", "[MASK]")])
    return TextTokenizer(tokenizer)


def row_of(tokenizer, length=120):
    """[CLS], the beginning of the text, [SEP], padding."""
    before, after = tokenizer.around()
    pad = tokenizer.role("pad")
    return torch.tensor([*before, *to_stream([TEXT], tokenizer)[:length].tolist(), *after, *[pad] * 5])


def properties(masking, ids, seed):
    """What must hold of one call; an AssertionError where it does not."""
    given, text = ids.clone(), torch.tensor([id not in masking.tokenizer.special for id in ids.tolist()])
    seen, chosen = masking(ids, generator(seed))
    assert torch.equal(ids, given), "the labels are what was given, and stay so"
    assert chosen.dtype == torch.bool
    assert chosen.shape == seen.shape == ids.shape
    assert not chosen[~text].any(), "special tokens and padding are never asked for"
    assert int(chosen.sum()) == round(masking.share * int(text.sum()))
    assert torch.equal(seen[~chosen], ids[~chosen]), "what is not asked for stands as it was"
    allowed = torch.isin(seen, masking.ordinary) | (seen == masking.mask)
    assert allowed[chosen].all(), "a token is hidden by [MASK] or by text"
    return seen, chosen


def shares(masking, ids, draws=400):
    """Of the chosen tokens how many became [MASK], another token, or stayed; and which places were ever chosen."""
    counts, ever = torch.zeros(3), torch.zeros(len(ids), dtype=torch.bool)
    for seed in range(draws):
        seen, chosen = properties(masking, ids, seed)
        hidden, same = (seen == masking.mask)[chosen], (seen == ids)[chosen]
        counts += torch.tensor([hidden.sum(), (~hidden & ~same).sum(), same.sum()])
        ever |= chosen
    return (counts / counts.sum()).tolist(), ever, int(counts.sum())


def check(masking, ids):
    """All that is promised of a row in many draws."""
    (hidden, other, same), ever, count = shares(masking, ids)
    text = torch.isin(ids, masking.ordinary)
    assert torch.equal(ever, text), "over the draws every token of the text is chosen"
    bound = 5 * (0.8 * 0.2 / count) ** 0.5
    lost = 0.1 / len(masking.ordinary)  # what is drawn instead may be the token itself
    assert hidden == pytest.approx(0.8, abs=bound)
    assert other == pytest.approx(0.1 - lost, abs=bound)
    assert same == pytest.approx(0.1 + lost, abs=bound)


@pytest.mark.parametrize("share", [0.15, 0.4])
@pytest.mark.parametrize("tokenizer", [CHARACTERS, WORDPIECE, zero_is_a_letter()], ids=["characters", "words", "zero"])
def test_the_share_is_exact_and_four_fifths_are_hidden(tokenizer, share):
    letters = torch.randint(8, (120,), generator=generator(1))
    ids = letters if tokenizer.role("cls") is None else row_of(tokenizer)
    check(Masking(tokenizer, share), ids)


def test_a_token_whose_id_is_0_is_chosen_like_any_other():
    masking = Masking(zero_is_a_letter(), 0.5)
    assert 0 in masking.ordinary
    seen, chosen = properties(masking, torch.zeros(40, dtype=torch.long), 0)
    assert int(chosen.sum()) == 20
    assert (seen == masking.mask).sum() > 10
    drawn = torch.cat([masking(torch.full((40,), 3), generator(i))[0] for i in range(50)])
    assert 0 in drawn, "and it stands where another was hidden"


@pytest.mark.parametrize(("count", "asked"), [(1, 1), (2, 1), (3, 1), (9, 1), (10, 2), (11, 2), (20, 3), (100, 15)])
@pytest.mark.parametrize("whole_words", [False, True])
def test_of_a_short_text_at_least_one_token_is_asked_for(count, asked, whole_words):
    comma = WORDPIECE.encode(",")[1]  # a word by itself
    before, after = WORDPIECE.around()
    ids = torch.tensor([*before, *[comma] * count, *after])
    for seed in range(20):
        seen, chosen = Masking(WORDPIECE, 0.15, whole_words)(ids, generator(seed))
        assert int(chosen.sum()) == asked
        assert not chosen[0]
        assert not chosen[-1]
        assert seen.shape == ids.shape


@pytest.mark.parametrize("tokenizer", [CHARACTERS, WORDPIECE], ids=["characters", "words"])
@pytest.mark.parametrize("whole_words", [False, True])
def test_a_row_of_special_tokens_is_asked_for_nothing(tokenizer, whole_words):
    ids = torch.tensor([tokenizer.role(name) for name in ("cls", "unknown", "mask", "sep", "pad")])
    seen, chosen = Masking(tokenizer, 0.9, whole_words)(ids, generator(0))
    assert torch.equal(seen, ids)
    assert not chosen.any()


# --- whole words


def words_of(tokenizer, ids):
    """The places of each word, read off the tokens themselves; special tokens are none."""
    found, last = [], ""
    for i, id in enumerate(ids.tolist()):
        token = "" if id in tokenizer.special else tokenizer.tokenizer.id_to_token(id)
        joined = token.startswith("##") or (tokenizer.alphabet and token.isalnum() and last.isalnum())
        if token and last and joined:
            found[-1].append(i)
        elif token:
            found.append([i])
        last = token
    return found


@pytest.mark.parametrize("tokenizer", [CHARACTERS, WORDPIECE], ids=["characters", "words"])
@pytest.mark.parametrize("start", range(7))
def test_words_are_hidden_whole(tokenizer, start):
    """Also where a window begins or ends within one, which then is what is left of it."""
    before, after = tokenizer.around()
    stream = to_stream([TEXT], tokenizer)
    ids = torch.tensor([*before, *stream[start : start + 90].tolist(), *after])
    words = words_of(tokenizer, ids)
    assert max(map(len, words)) > 3, "else this shows nothing"
    masking, ever, most = Masking(tokenizer, 0.15, whole_words=True), set(), 0
    for seed in range(300):
        _, chosen = masking(ids, generator(seed))
        for number, word in enumerate(words):
            picked = chosen[word]
            assert picked.all() or not picked.any(), "all pieces of a word, or none"
            ever |= {number} if picked.any() else set()
        total, wanted = int(chosen.sum()), round(0.15 * 90)
        alone = [word for word in words if chosen[word].any()]
        assert 0 < total <= wanted or len(alone) == 1, "no more than asked for, unless one word alone is more"
        most = max(most, total if len(alone) > 1 else 0)
    assert most == round(0.15 * 90)
    assert ever == set(range(len(words))), "any word may be hidden"


def test_a_window_that_begins_within_a_word_is_no_trap():
    """Found as a crash: after [CLS] a piece that goes on with a word had no word to belong to."""
    piece = next(id for token, id in WORDPIECE.tokenizer.get_vocab().items() if token.startswith("##"))
    before, after = WORDPIECE.around()
    ids = torch.tensor([*before, piece, piece, *WORDPIECE.encode("times, is")[1:-1], *after])
    picked = {tuple(Masking(WORDPIECE, 0.3, whole_words=True)(ids, generator(i))[1].tolist()) for i in range(99)}
    assert {each[1:3] for each in picked} == {(True, True), (False, False)}


def test_pieces_are_hidden_one_by_one_unless_told():
    ids, split = row_of(WORDPIECE), 0
    for seed in range(20):
        _, chosen = Masking(WORDPIECE)(ids, generator(seed))
        split += sum(len({*chosen[word].tolist()}) == 2 for word in words_of(WORDPIECE, ids))
    assert split > 20


def test_whole_words_are_refused_where_nobody_knows_where_they_begin():
    tokenizer = train_bpe([TEXT], 280)
    tokenizer.tokenizer.add_special_tokens([AddedToken("[MASK]", normalized=False)])
    Masking(TextTokenizer(tokenizer.tokenizer))
    with pytest.raises(
        ValueError, match="whole_words needs to know where words begin: choose WordPiece, or characters"
    ):
        Masking(TextTokenizer(tokenizer.tokenizer), whole_words=True)


# --- what cannot be


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_a_share_that_cannot_be_is_refused(share):
    with pytest.raises(ValueError, match=rf"masked is {share}: expected a share of the tokens, 0 < masked < 1"):
        Masking(CHARACTERS, share)


def test_a_tokeniser_without_a_mask_is_refused():
    with pytest.raises(ValueError, match=r"The tokeniser has no \[MASK\], by which tokens are hidden: choose another"):
        Masking(characters([TEXT]))


# --- new each time, and the same again


def masked(*, seed=0, whole_words=False, tokenizer=CHARACTERS, valid=TEXT[:500]):
    torch.manual_seed(0)
    model = BERT(BERTConfig(vocab=tokenizer.vocab, length=24, dim=8, depth=1, heads=2, dropout=0.0))
    streams = (to_stream([text], tokenizer) for text in (TEXT, valid))
    return Masked(model, tokenizer, *streams, MaskedSettings(batch=4, seed=seed, whole_words=whole_words))


def test_every_epoch_and_every_row_hides_other_tokens():
    task = masked()
    chosen = {tuple(task.batch([(epoch, row)])["chosen"][0].tolist()) for epoch in range(20) for row in range(20)}
    assert len(chosen) > 320, "400 draws from 1540 choices"
    other = {tuple(masked(seed=1).batch([(0, row)])["chosen"][0].tolist()) for row in range(20)}
    assert other != {tuple(task.batch([(0, row)])["chosen"][0].tolist()) for row in range(20)}


@pytest.mark.parametrize("whole_words", [False, True])
def test_the_same_seed_epoch_and_row_hide_the_same(whole_words):
    first, second = masked(whole_words=whole_words), masked(whole_words=whole_words)
    examples = [(3, 2), (0, 5), (3, 4)]
    batch = first.batch(examples)
    torch.manual_seed(7)
    torch.rand(9)
    alone = [second.batch([example]) for example in reversed(examples)]
    for name, value in batch.items():
        assert torch.equal(value, torch.cat([each[name] for each in reversed(alone)])), "whatever was asked before"


def test_labels_are_the_text_and_ids_what_the_model_sees():
    task = masked()
    batch = task.batch([(0, row) for row in range(8)])
    for row in range(8):
        cls, *text, sep = batch["labels"][row].tolist()
        assert (cls, sep) == (CHARACTERS.role("cls"), CHARACTERS.role("sep"))
        assert text == task.train[0, row].tolist()
        assert CHARACTERS.decode(text) in TEXT
    changed = batch["ids"] != batch["labels"]
    assert batch["chosen"][changed].all()
    assert task.masking.mask in batch["ids"][batch["chosen"]]
    assert task.masking.mask not in batch["labels"]
    assert int(batch["chosen"].sum()) == task.targets(batch) == 8 * round(0.15 * 22)


def test_the_masks_of_validation_are_the_same_every_time_and_in_every_run():
    for one, again in zip(masked(seed=0).valid(), masked(seed=5).valid()):
        assert all(torch.equal(one[name], again[name]) for name in one)
    task = masked()
    before = [*task.valid()]
    task.batch([(4, 2)])
    assert all(torch.equal(a["ids"], b["ids"]) for a, b in zip(before, task.valid()))
    rows = [tuple(row.tolist()) for batch in before for row in batch["chosen"]]
    assert len(set(rows)) > len(rows) * 0.8, "each window has a mask of its own"
    whole = torch.cat([batch["labels"][:, 1:-1].flatten() for batch in before])
    assert torch.equal(whole, to_stream([TEXT[:500]], CHARACTERS).long()), "every held-out token is there once"


# --- planted


class SpecialTokensChosen(Masking):
    def __post_init__(self):
        super().__post_init__()
        self._is_text[:] = True


class AlwaysMask(Masking):
    def __call__(self, ids, generator):
        _, chosen = super().__call__(ids, generator)
        return torch.where(chosen, self.mask, ids), chosen


class ReplacedByAnyId(Masking):
    def __post_init__(self):
        super().__post_init__()
        self.ordinary = torch.arange(self.tokenizer.vocab)


class ZeroIsUnmasked(Masking):
    """As of labels that are multiplied by the mask, and whose zeros are left out of the loss."""

    def __call__(self, ids, generator):
        seen, chosen = super().__call__(ids, generator)
        return seen, chosen & (ids * chosen != 0)


class InPlace(Masking):
    def __call__(self, ids, generator):
        seen, chosen = super().__call__(ids, generator)
        return ids.copy_(seen), chosen


class EachByItself(Masking):
    """Every token by its own coin: the share is 15 % on average only."""

    def __call__(self, ids, generator):
        chosen = (torch.rand(len(ids), generator=generator) < self.share) & self._is_text[ids]
        return torch.where(chosen, self.mask, ids), chosen


class SameEveryTime(Masking):
    def __call__(self, ids, generator):
        return super().__call__(ids, torch.Generator().manual_seed(0))


class NeverTheLast(Masking):
    def __call__(self, ids, generator):
        return super().__call__(ids, generator.manual_seed(generator.initial_seed() % 2))


@pytest.mark.parametrize(
    "plant",
    [
        SpecialTokensChosen,
        AlwaysMask,
        ReplacedByAnyId,
        ZeroIsUnmasked,
        InPlace,
        EachByItself,
        SameEveryTime,
        NeverTheLast,
    ],
)
def test_a_planted_mistake_is_caught(plant):
    tokenizer = zero_is_a_letter() if plant is ZeroIsUnmasked else CHARACTERS
    ids = torch.randint(8, (120,), generator=generator(1)) if plant is ZeroIsUnmasked else row_of(CHARACTERS)
    check(Masking(tokenizer), ids.clone())
    with pytest.raises(AssertionError):
        check(plant(tokenizer), ids.clone())


def test_labels_cloned_after_masking_are_caught(monkeypatch):
    """They would ask for [MASK] where [MASK] stands: a loss that soon is 0, of a model that knows nothing."""
    real = Masked._masked

    def late(self, windows, generators):
        batch = real(self, windows, generators)
        return {**batch, "labels": batch["ids"].clone()}

    monkeypatch.setattr(language.Masked, "_masked", late)
    with pytest.raises(AssertionError):
        test_labels_are_the_text_and_ids_what_the_model_sees()


def test_pieces_hidden_apart_are_caught(monkeypatch):
    monkeypatch.setattr(
        Masking,
        "_choose_words",
        lambda self, ids, text, count, g: text & (torch.rand(len(ids), generator=g) < 0.15),
    )
    with pytest.raises(AssertionError):
        test_words_are_hidden_whole(WORDPIECE, 0)
