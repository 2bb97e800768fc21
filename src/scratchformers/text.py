"""Text to ids and back. The work is the `tokenizers` library's; what is here is which files make which tokeniser.

A tokeniser of ours never truncates and never pads, whatever its file asks for: both are the caller's business.
"""

import hashlib
import json
import re
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor

END = "<|endoftext|>"
# The special tokens of BERT by what they are for, in the order of its vocabularies; the names are those of its files.
BERT = {"pad": "[PAD]", "unknown": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
# The same in the vocabularies of fairseq and Marian, BART's among them, where the first stands at a text's start.
FAIRSEQ = {"pad": "<pad>", "unknown": "<unk>", "cls": "<s>", "sep": "</s>", "mask": "<mask>"}
# What a pair of tokenisers learnt here begins with: padding, the start and the end of a text.
PAIR = tuple(FAIRSEQ[name] for name in ("pad", "cls", "sep"))
TARGET = "target_tokenizer.json"  # beside a source's tokenizer.json, where the target has another
CHUNK = 1 << 20  # characters encoded at once
SHORT = 1 << 14  # characters a vocabulary is learnt from at a time: the library holds 256 such pieces
BIT, PLAIN = 1 << 14, " \n"  # characters encoded by one core at once, and before what they may be cut

Text = str | Sequence[str]  # one, or a pair


class TextTokenizer:
    """Wraps a `tokenizers.Tokenizer`; `files` are what a checkpoint saves to have it again, by name. Where what a model
    writes is spelt otherwise than what it reads, `target` is the tokeniser of that, and `decode` reads its ids.

    One made here says in tokenizer_config.json which class of transformers reads it, and what its special tokens are
    for: left to guess by the model, transformers would build GPT-2's own around our vocabulary and drop what it cannot
    spell.
    """

    def __init__(
        self, tokenizer: Tokenizer, files: dict[str, bytes] | None = None, *, target: "TextTokenizer | None" = None
    ):
        tokenizer.no_truncation()
        tokenizer.no_padding()
        names = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
        known = [*BERT.items(), *FAIRSEQ.items(), ("bos", FAIRSEQ["cls"]), ("eos", FAIRSEQ["sep"])]
        said: dict[str, Any] = {_theirs(role): name for role, name in known if name in names}
        if {BERT["cls"], BERT["sep"]} <= names:  # else transformers would not say which text of a pair a token is of
            said["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
        self.tokenizer = tokenizer
        self.files = files or {
            "tokenizer.json": tokenizer.to_str(pretty=True).encode("utf-8"),
            "tokenizer_config.json": json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"} | said).encode("utf-8"),
        }
        self._target = target
        self.alphabet = _alphabet(tokenizer)
        self.cut = 0  # texts of which the end was left out so far
        self._shortened: dict[int, Tokenizer] = {}  # by the ids to which each cuts a text

    @cached_property  # a vocabulary does not grow once it is here, and counting it takes as long as a sentence's ids
    def vocab(self) -> int:
        """How many ids there are: the largest one, plus 1."""
        return 1 + max(self.tokenizer.get_vocab(with_added_tokens=True).values())

    def digest(self) -> str:
        """sha256 over what it does, and its target, whatever files it came from."""
        other = self._target.digest() if self._target else ""
        return hashlib.sha256(f"{self.tokenizer.to_str()}{other}".encode()).hexdigest()

    @property
    def target(self) -> "TextTokenizer":
        """The tokeniser of what a model writes: this one, if it has no other."""
        return self._target or self

    @property
    def end(self) -> int | None:
        """The id that ends a text, if there is one."""
        end = self.tokenizer.token_to_id(END)
        return self.role("sep") if end is None else end

    @cached_property
    def special(self) -> frozenset[int]:
        """The ids that are no text."""
        added = self.tokenizer.get_added_tokens_decoder().items()
        return frozenset(id for id, token in added if token.special)

    def role(self, name: str) -> int | None:
        """The id that is `pad`, `unknown`, `cls`, `sep` or `mask`, if there is one: as its files say, or as BERT or
        fairseq has it."""
        said = _settings(self.files.get("tokenizer_config.json")).get(_theirs(name))
        said = said.get("content") if isinstance(said, dict) else said
        found = self.tokenizer.token_to_id(said) if isinstance(said, str) else None
        ids = [found, *(self.tokenizer.token_to_id(names[name]) for names in (BERT, FAIRSEQ))]
        return next((id for id in ids if id is not None), None)

    def unknown(self, ids: Iterable[int]) -> int:
        """How many of the ids stand for what this vocabulary cannot spell."""
        unknown = self.role("unknown")
        return sum(id == unknown for id in ids)

    def encode(self, text: str) -> list[int]:
        """All of the text's ids, with the special tokens its file adds. A character without an id is a ValueError."""
        return self._encode(text, special=True)

    def encode_batch(
        self, texts: Sequence[Text], *, limit: int | None = None, truncate: bool = False
    ) -> list[tuple[list[int], list[int]]]:
        """Of each text, or pair of texts, its ids and their segments, special tokens added.

        One with more than `limit` ids is a ValueError; with `truncate` its end is left out, or of a pair that of the
        longer, and the special tokens are kept.
        """
        for text in texts:
            for part in [text] if isinstance(text, str) else text:
                self._check(part)
        tokenizer = self.tokenizer
        if truncate and limit is not None:
            tokenizer = self._truncating(limit, pairs=any(not isinstance(text, str) for text in texts))
        found = tokenizer.encode_batch([text if isinstance(text, str) else tuple(text) for text in texts])
        for text, each in zip(texts, found):
            check_length(text if isinstance(text, str) else text[0], len(each), limit)
        self.cut += sum(bool(each.overflowing) for each in found)
        return [(each.ids, each.type_ids) for each in found]

    def around(self) -> tuple[list[int], list[int]]:
        """The special tokens that stand before a text and after it."""
        ids, cls = self.tokenizer.encode("").ids, self.role("cls")
        cut = ids.index(cls) + 1 if cls in ids else 0
        return ids[:cut], ids[cut:]

    def encode_words(
        self, words: Sequence[str], *, limit: int | None = None, truncate: bool = False
    ) -> tuple[list[int], list[int | None]]:
        """The ids of a text that comes in words, and which word each is of; None for special tokens. `limit` and
        `truncate` are those of `encode_batch`."""
        for word in words:
            self._check(word)
        tokenizer = self._truncating(limit) if truncate and limit is not None else self.tokenizer
        found = tokenizer.encode(list(words), is_pretokenized=True)
        check_length(" ".join(words), len(found), limit)
        self.cut += bool(found.overflowing)
        return found.ids, found.word_ids

    def _truncating(self, limit: int, *, pairs: bool = False) -> Tokenizer:
        if limit < (around := self.tokenizer.num_special_tokens_to_add(pairs)):
            raise ValueError(f"limit is {limit}: the special tokens alone are {around}, so it must be larger.")
        if limit not in self._shortened:
            self._shortened[limit] = Tokenizer.from_str(self.tokenizer.to_str())
            self._shortened[limit].enable_truncation(limit)
        return self._shortened[limit]

    def encode_long(self, text: str) -> Iterator[list[int]]:
        """The ids in pieces, without added special tokens, for texts too long to be encoded as a whole."""
        return (self._encode(piece, special=False) for piece in pieces(text, CHUNK))

    def encode_pieces(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Of each the ids, (n,) int32, without added special tokens, as `encode_long` has them of its pieces: with less
        memory, and where the tokeniser allows it on all cores."""
        if self._places is not None:
            return [self._looked_up(text, self._places) for text in texts]
        if not self._divides:
            return [np.array(self._encode(text, special=False), np.int32) for text in texts]
        for text in texts:
            self._check(text)
        parts = [[*pieces(text, BIT, PLAIN)] for text in texts]
        bits = [bit for part in parts for bit in part]
        found = iter(self.tokenizer.encode_batch_fast(bits, add_special_tokens=False))
        ids = ([np.array(next(found).ids, np.int32) for _ in part] for part in parts)
        return [np.concatenate(each) if each else np.zeros(0, np.int32) for each in ids]

    def _looked_up(self, text: str, places: np.ndarray) -> np.ndarray:
        ids = places[np.minimum(_codes(text), len(places) - 1)]
        added = self.tokenizer.get_added_tokens_decoder().values()
        if (ids < 0).any() or any(token.content in text for token in added):
            return np.array(self._encode(text, special=False), np.int32)
        return ids

    @cached_property
    def _places(self) -> np.ndarray | None:
        """The id of each code point, and -1 for those that have none, where an id is a character and that is all."""
        if self.alphabet is None or type(self)._encode is not TextTokenizer._encode:
            return None
        said = json.loads(self.tokenizer.to_str())
        model = said["model"]
        if said["normalizer"] or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
            return None
        places = np.full(2 + max(map(ord, self.alphabet), default=0), -1, np.int32)
        for character in self.alphabet:
            places[ord(character)] = model["vocab"][character]
        return places

    @cached_property
    def _divides(self) -> bool:
        """Whether a blank or a new line after anything else begins something new, so that a text may be cut there: the
        pattern of byte-level BPE (section 2.2 of GPT-2's paper) has white space only where it begins, and WordPiece
        none. Added tokens may take the white space before them, but none after or within."""
        if type(self)._encode is not TextTokenizer._encode:
            return False
        said, added = json.loads(self.tokenizer.to_str()), self.tokenizer.get_added_tokens_decoder().values()
        if any(token.rstrip or any(mark in token.content for mark in PLAIN) for token in added):
            return False
        before, normalizer = said["pre_tokenizer"] or {}, (said["normalizer"] or {}).get("type")
        if before.get("type") == "ByteLevel":
            return normalizer is None and not before["add_prefix_space"] and before.get("use_regex", True)
        return before.get("type") == "BertPreTokenizer" and normalizer == "BertNormalizer"

    def _encode(self, text: str, *, special: bool) -> list[int]:
        self._check(text)
        return self.tokenizer.encode(text, add_special_tokens=special).ids

    def _check(self, text: str) -> None:
        """ValueError for what cannot be encoded."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError(
                "The text is no valid Unicode (half of a surrogate pair, or bytes that are not UTF-8)."
            ) from None
        if self.alphabet is None:
            return
        for token in self.tokenizer.get_added_tokens_decoder().values():
            text = text.replace(token.content, "")
        if strange := sorted(set(text) - self.alphabet):
            shown = ", ".join(repr(character) for character in strange[:8])
            shown += f" and {len(strange) - 8} more" if len(strange) > 8 else ""
            raise ValueError(
                f"This tokeniser has no id for {shown}: it knows the {len(self.alphabet)} characters it was made of."
            )

    def decode(self, ids: Sequence[int]) -> str:
        if self._target:
            return self._target.decode(ids)
        return self.tokenizer.decode(list(ids), skip_special_tokens=False)

    def size(self, id: int) -> int:
        """How many bytes of UTF-8 the text of this id has; one of byte-level BPE may be part of a character."""
        if isinstance(self.tokenizer.decoder, decoders.ByteLevel) and id != self.end:
            return len(self.tokenizer.id_to_token(id) or "")
        return len(self.decode([id]).encode("utf-8"))


class SpellingTokenizer(TextTokenizer, ABC):
    """One whose text is spelt by more than its `tokenizer` can say: `spelling` gives the ids of a text, and the ids of
    `ends` stand around them. Its texts are single ones."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        files: dict[str, bytes],
        *,
        ends: tuple[list[int], list[int]],
        target: TextTokenizer | None = None,
    ):
        super().__init__(tokenizer, files, target=target)
        self._ends = ends

    @abstractmethod
    def spelling(self, text: str) -> list[int]: ...

    def around(self) -> tuple[list[int], list[int]]:
        before, after = self._ends
        return [*before], [*after]

    def encode_batch(
        self, texts: Sequence[Text], *, limit: int | None = None, truncate: bool = False
    ) -> list[tuple[list[int], list[int]]]:
        """Of each text its ids and their segments, which are 0. One with more than `limit` ids is a ValueError; with
        `truncate` its end is left out, and the special tokens are kept. A pair is a ValueError."""
        rows = []
        for text in texts:
            if not isinstance(text, str):
                raise ValueError(f"A text is {text!r}: this tokeniser takes single texts, so pass a string.")
            ids = self._fitted(self._encode(text, special=False), limit, truncate)
            check_length(text, len(ids), limit)
            rows.append((ids, [0] * len(ids)))
        return rows

    def encode_words(
        self, words: Sequence[str], *, limit: int | None = None, truncate: bool = False
    ) -> tuple[list[int], list[int | None]]:
        """The ids of a text that comes in words, each spelt by itself, and which word each is of; None for special
        tokens. `limit` and `truncate` are those of `encode_batch`."""
        rows = [self._encode(word, special=False) for word in words]
        ids = self._fitted([id for row in rows for id in row], limit, truncate)
        check_length(" ".join(words), len(ids), limit)
        before, after = self._ends
        places = [i for i, row in enumerate(rows) for _ in row][: len(ids) - len(before) - len(after)]
        return ids, [*[None] * len(before), *places, *[None] * len(after)]

    def _fitted(self, ids: list[int], limit: int | None, truncate: bool) -> list[int]:
        """Between the ends, and cut to `limit` if that is asked for."""
        before, after = self._ends
        if truncate and limit is not None:
            room = limit - len(before) - len(after)
            if room < 0:
                raise ValueError(
                    f"limit is {limit}: the special tokens alone are {limit - room}, so it must be larger."
                )
            self.cut += len(ids) > room
            ids = ids[:room]
        return [*before, *ids, *after]

    def _encode(self, text: str, *, special: bool) -> list[int]:
        self._check(text)
        ids = self.spelling(text)
        return self._fitted(ids, None, False) if special else ids


def check_length(text: str, count: int, limit: int | None) -> None:
    """ValueError if the text has more tokens than `limit`."""
    if limit is not None and count > limit:
        raise ValueError(
            f"The text {text[:40]!r}... has {count} tokens and the model takes {limit}: "
            "pass a shorter one, or truncate=True (--truncate) to leave out its end."
        )


def _theirs(role: str) -> str:
    """What tokenizer_config.json calls it."""
    return f"{role.replace('unknown', 'unk')}_token"


def _settings(content: bytes | None) -> dict[str, Any]:
    """What a tokenizer_config.json says; nothing where there is none."""
    try:
        said = json.loads((content or b"{}").decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"tokenizer_config.json is not valid JSON ({error}): fetch it again.") from None
    if not isinstance(said, dict):
        raise ValueError(f"tokenizer_config.json holds a {type(said).__name__}: expected a JSON object.")
    return said


def check_fits(tokenizer: TextTokenizer, vocab: int) -> None:
    """ValueError if there are ids a model of `vocab` embeddings has none for. Fewer fit: tables are often padded."""
    if tokenizer.vocab > vocab:
        raise ValueError(f"The tokeniser has {tokenizer.vocab} ids and the model {vocab}: they do not belong together.")


def check_segments(rows: Iterable[tuple[list[int], list[int]]], segments: int) -> None:
    """ValueError if there is a pair among them, and a model of `segments` has none for its second text."""
    if any(max(each, default=0) >= segments for _, each in rows):
        raise ValueError(
            f"A pair has two segments and the model {segments}: pass single texts, or choose another model."
        )


PADDED = 128  # rows by which a table may be larger than its vocabulary, to be of a size that computes fast


def check_belongs(tokenizer: TextTokenizer, model: Any) -> None:
    """ValueError for a tokeniser whose ids mean something else to the model: another than it says it was trained with,
    or, where it says nothing, one with far fewer ids."""
    said = model.published.get("scratchformers", {}).get("tokenizer")
    if said not in (None, tokenizer.digest()):
        raise ValueError("The tokeniser is not the one this model was trained with: put that beside the weights.")
    if said is None and model.config.vocab - tokenizer.vocab >= PADDED:
        raise ValueError(
            f"The tokeniser has {tokenizer.vocab} ids and the model {model.config.vocab}: they do not belong together."
        )


def padded(rows: Sequence[tuple[list[int], list[int]]]) -> dict[str, Tensor]:
    """Ids and segments of texts, padded on the right: what a model that reads is called with."""
    length = max([1, *(len(ids) for ids, _ in rows)])
    ids, segments = torch.zeros(2, len(rows), length, dtype=torch.long)
    keep = torch.zeros(len(rows), length, dtype=torch.bool)
    for i, row in enumerate(rows):
        for place, values in zip((ids, segments), row):
            place[i, : len(values)] = torch.tensor(values, dtype=torch.long)
        keep[i, : len(row[0])] = True
    return {"ids": ids, "segments": segments, "keep": keep}


def pieces(text: str | Iterable[str], size: int, marks: str = "") -> Iterator[str]:
    """The text cut into pieces of about `size` characters, where white space follows something else: there byte-level
    BPE never has a token that straddles the cut. Where there are `marks`, only white space that is one of them counts.
    A text that comes in parts is cut as if it were whole, and no more of it is in memory than a part and a piece."""
    held, stop = "", size
    for part in [text] if isinstance(text, str) else text:
        held, start = held + part, 0
        while (stop := _cut(held, stop, marks)) < len(held):
            yield held[start:stop]
            start, stop = stop, stop + size
        held, stop = held[start:], stop - start
    if held:
        yield held


def _cut(text: str, place: int, marks: str) -> int:
    """The first place from here on where it may be cut; its end, or a place after that, where there is none."""
    while place < len(text) and not (
        text[place].isspace() and not text[place - 1].isspace() and (not marks or text[place] in marks)
    ):
        place += 1
    return place


def _codes(text: str) -> np.ndarray:
    """Its code points."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def _alphabet(tokenizer: Tokenizer) -> frozenset[str] | None:
    """The characters of a tokeniser that knows nothing else and drops what it does not know; None for all others."""
    if not isinstance(tokenizer.model, models.BPE) or tokenizer.pre_tokenizer is not None:
        return None
    model = json.loads(tokenizer.to_str())["model"]
    return None if model["merges"] else frozenset(name for name in model["vocab"] if len(name) == 1)


def characters(texts: Iterable[str], *, end: bool = False, special: Sequence[str] = ()) -> TextTokenizer:
    """A token for every character that occurs, by code point; with `end`, one more that ends a text. `special` tokens
    come before them, and are put around a text as BERT does, or </s> after it."""
    known = np.zeros(sys.maxunicode + 1, dtype=bool)
    for text in texts:
        known[_codes(_without(text, special))] = True
    found = [*map(chr, np.flatnonzero(known).tolist())]
    if not found:
        raise ValueError("The text is empty: there is no character to make a token of.")
    tokenizer = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate([*special, *found])}, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in (*special, *[END][:end])])
    _put_around(tokenizer)
    return TextTokenizer(tokenizer)


def _without(text: str, tokens: Iterable[str]) -> str:
    for token in tokens:
        text = text.replace(token, "")
    return text


def _put_around(tokenizer: Tokenizer) -> None:
    """[CLS] A [SEP] and [CLS] A [SEP] B [SEP], where there are such tokens (section 3 of BERT's paper), or A </s>."""
    known = [(BERT[name], tokenizer.token_to_id(BERT[name])) for name in ("cls", "sep")]
    if all(id is not None for _, id in known):
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", special_tokens=known
        )
    elif (end := tokenizer.token_to_id(FAIRSEQ["sep"])) is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A </s>", pair="$A </s> $B </s>", special_tokens=[(FAIRSEQ["sep"], end)]
        )


def train_bpe(texts: Iterable[str], vocab: int, *, special: Sequence[str] = ()) -> TextTokenizer:
    """Byte-level BPE of at most `vocab` ids, learnt from the texts: the 256 bytes, so that any text can be spelt, then
    the most frequent pairs, and last the end token; or `special` tokens first and none last. The same texts give the
    same ids. Too little text gives fewer."""
    last = () if special else (END,)
    if vocab < (least := 256 + len(special) + len(last)):
        what = "the special tokens" if special else "the end token"
        raise ValueError(f"vocab is {vocab}: expected at least {least}, the bytes and {what}.")
    trainer = trainers.BpeTrainer(
        vocab_size=vocab - len(last),
        special_tokens=[*special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer = Tokenizer(models.BPE())
    _make_byte_level(tokenizer)
    written = re.compile("|".join(map(re.escape, (*special, *last))))
    parts = (part for text in texts for part in written.split(text))  # what is written out is no text to learn from
    tokenizer.train_from_iterator((piece for part in parts for piece in pieces(part, SHORT)), trainer)
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in (*special, *last)])
    _put_around(tokenizer)
    return TextTokenizer(tokenizer)


def train_pair_bpe(sources: Iterable[str], targets: Iterable[str], *, vocab: int, joint: bool = True) -> TextTokenizer:
    """Byte-level BPE for a model that reads sources and writes targets: one tokeniser learnt from both, or, unless
    `joint`, two of `vocab` ids each, the source's with its `target`. <pad>, <s> and </s> are 0, 1 and 2; a text ends
    with </s>, and <s> is what a target is begun with."""
    return _paired(partial(train_bpe, vocab=vocab, special=PAIR), sources, targets, joint)


def pair_characters(sources: Iterable[str], targets: Iterable[str], *, joint: bool = True) -> TextTokenizer:
    """The same, with a token for every character that occurs."""
    return _paired(partial(characters, special=PAIR), sources, targets, joint)


def _paired(
    make: Callable[[Iterable[str]], TextTokenizer], sources: Iterable[str], targets: Iterable[str], joint: bool
) -> TextTokenizer:
    if joint:
        return make(chain(sources, targets))
    source, target = make(sources), make(targets)
    files = source.files | {TARGET: target.files["tokenizer.json"]}
    return TextTokenizer(source.tokenizer, files, target=target)


def _make_byte_level(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()


def byte_level_bpe(vocab: Path, merges: Path) -> TextTokenizer:
    """GPT-2's own tokeniser (section 2.2 of its paper), from vocab.json and merges.txt."""
    tokenizer = _read_byte_level(vocab, merges)
    if tokenizer.token_to_id(END) is not None:
        tokenizer.add_special_tokens([AddedToken(END, normalized=False)])
    return TextTokenizer(tokenizer, {"vocab.json": vocab.read_bytes(), "merges.txt": merges.read_bytes()})


def bart_bpe(vocab: Path, merges: Path) -> TextTokenizer:
    """BART's tokeniser, from vocab.json and merges.txt: GPT-2's with ids of its own, and <s> and </s> around a text.
    <mask> takes the white space before it, as it was when the model learnt to fill it."""
    tokenizer, beside = _read_byte_level(vocab, merges), vocab.parent / "tokenizer_config.json"
    said = _settings(beside.read_bytes() if beside.is_file() else None)
    ids = {token: id for token, id in tokenizer.get_vocab().items() if token in FAIRSEQ.values()}
    if lacks := [name for name in FAIRSEQ.values() if name not in ids]:
        raise ValueError(f"{vocab} is no vocabulary of BART: it has no {', '.join(lacks)}.")
    prefix = said.get("add_prefix_space", False)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, lstrip=name == "<mask>") for name in ids])
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", ids["</s>"]), ("<s>", ids["<s>"]), add_prefix_space=prefix
    )
    return TextTokenizer(
        tokenizer, {path.name: path.read_bytes() for path in (vocab, merges, beside) if path.is_file()}
    )


def _read_byte_level(vocab: Path, merges: Path) -> Tokenizer:
    try:
        model = models.BPE.from_file(str(vocab), str(merges))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{vocab} and {merges.name} are no byte-level BPE ({error}).") from None
    tokenizer = Tokenizer(model)
    _make_byte_level(tokenizer)
    return tokenizer


def _make_wordpiece(tokenizer: Tokenizer, *, lower: bool, accents: bool | None = None, chinese: bool = True) -> None:
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=chinese, strip_accents=accents, lowercase=lower
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    names = [name for name in BERT.values() if tokenizer.token_to_id(name) is not None]
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in names])
    _put_around(tokenizer)


def train_wordpiece(
    texts: Iterable[str], vocab: int, *, lower: bool = True, special: Sequence[str] = tuple(BERT.values())
) -> TextTokenizer:
    """WordPiece of at most `vocab` ids, learnt from the texts: `special` tokens first, then characters, as a word's
    beginning and within one, then the pieces that pay. Without `lower`, capitals and accents count. The same texts give
    the same ids."""
    if vocab < (least := 100 + len(special)):
        raise ValueError(f"vocab is {vocab}: expected at least {least}, characters and pieces and special tokens.")
    tokenizer = Tokenizer(models.WordPiece(unk_token=BERT["unknown"]))
    _make_wordpiece(tokenizer, lower=lower)
    words = _words(tokenizer, texts, special)
    if not words:
        raise ValueError("The text is empty: there is nothing to make a vocabulary of.")
    # The library numbers what it meets in an order that changes from run to run, and so would break ties; given its
    # whole alphabet beforehand, it meets nothing new.
    known = _frequent(words, (vocab - len(special)) // 2)
    within = sorted({f"##{c}" for word in words for c in word[1:]} & {f"##{c}" for c in known})
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab,
        special_tokens=[*special, *known, *within],
        initial_alphabet=known,
        limit_alphabet=len(known),
        show_progress=False,
    )
    learner = Tokenizer(models.WordPiece(unk_token=BERT["unknown"]))
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    learner.train_from_iterator(written_out(words), trainer)
    found = learner.get_vocab(with_added_tokens=False)
    tokenizer = Tokenizer(models.WordPiece(found, unk_token=BERT["unknown"], max_input_chars_per_word=100))
    _make_wordpiece(tokenizer, lower=lower)
    return TextTokenizer(tokenizer)


def _words(tokenizer: Tokenizer, texts: Iterable[str], special: Sequence[str]) -> Counter[str]:
    """How often each word of the texts occurs, as WordPiece will see it. Special tokens written out are none."""
    raw: Counter[str] = Counter()
    for text in texts:
        for piece in pieces(text, CHUNK):
            raw.update(re.split(r"[ \t\r\n]+", _without(piece, special)))
    words: Counter[str] = Counter()
    for each, count in raw.items():
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(each)):
            words[word] += count
    return words


def _frequent(words: Counter[str], most: int) -> list[str]:
    """The characters of the words, the `most` frequent ones, by code point."""
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            counts[character] += count
    return sorted(sorted(counts, key=lambda character: (-counts[character], character))[:most])


def written_out(words: Counter[str]) -> Iterator[str]:
    """Each as often as it occurs."""
    for word, count in sorted(words.items()):
        for start in range(0, count, 1000):
            yield " ".join([word] * min(1000, count - start))


def wordpiece(vocab: Path) -> TextTokenizer:
    """BERT's tokeniser from vocab.txt, a token a line. tokenizer_config.json beside it says whether letters are made
    small; without it they are if the vocabulary holds no capital, for then no word that has one could be found."""
    try:
        lines = vocab.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{vocab} is not UTF-8 (byte {error.start}): fetch it again.") from None
    tokens = [line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]
    ids = {token: i for i, token in enumerate(tokens)}
    if BERT["unknown"] not in ids or len(ids) < len(tokens):
        what = "no [UNK]" if BERT["unknown"] not in ids else f"{len(tokens) - len(ids)} tokens twice"
        raise ValueError(f"{vocab} is no vocabulary of WordPiece: it has {what}.")
    beside = vocab.parent / "tokenizer_config.json"
    said = _settings(beside.read_bytes() if beside.is_file() else None)
    small = not any(token != token.lower() for token in tokens if not (token.startswith("[") and token.endswith("]")))
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token=BERT["unknown"], max_input_chars_per_word=100))
    _make_wordpiece(
        tokenizer,
        lower=said.get("do_lower_case", small),
        accents=said.get("strip_accents"),
        chinese=said.get("tokenize_chinese_chars", True),
    )
    files = {path.name: path.read_bytes() for path in (vocab, beside) if path.is_file()}
    return TextTokenizer(tokenizer, files)


def read_tokenizer(file: Path) -> TextTokenizer:
    """From a tokenizer.json, as the `tokenizers` library writes it, with the target's beside it, if there is one."""
    tokenizer = _parsed(file)
    names = ["tokenizer_config.json", "special_tokens_map.json", *[TARGET][: file.name == "tokenizer.json"]]
    beside = {name: file.parent / name for name in names if (file.parent / name).is_file()}
    files = {"tokenizer.json": file.read_bytes()} | {name: path.read_bytes() for name, path in beside.items()}
    target = TextTokenizer(_parsed(beside[TARGET]), files) if TARGET in beside else None
    return TextTokenizer(tokenizer, files, target=target)


def _parsed(file: Path) -> Tokenizer:
    try:
        return Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{file} is no tokeniser ({error}).") from None
