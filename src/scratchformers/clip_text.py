"""CLIP's tokeniser, id for id as OpenAI's simple_tokenizer.py has it (github.com/openai/CLIP).

A text is repaired by ftfy, its HTML entities are resolved twice, white space is made single and letters small; then it
is split into words, and byte-level BPE spells each, the last piece of a word being marked as such. Only BPE is left to
the `tokenizers` library: it has no ftfy, and its expressions know an older Unicode. So no tokenizer.json can say what
happens here: what is read and written is vocab.json and merges.txt.
"""

import functools
import gzip
import html
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers

from scratchformers.checkpoints.files import CLIP_MERGES
from scratchformers.text import END, SpellingTokenizer, written_out

START = "<|startoftext|>"
WORD_END = "</w>"
MERGES = 49_152 - 256 - 2  # those OpenAI takes of the 262,144 in its file; bytes come twice, so ids are 49,408
SLOT = "{}"  # of a template, in which a label becomes a text: where the label goes
LARGEST = 1 << 25  # bytes read of that file, which unpacks to 3 MB
KNOWN, LONG = 1 << 16, 64  # words whose ids are kept, and the longest of them

_printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_others = [byte for byte in range(256) if byte not in _printable]
# Each byte as a letter that can be seen, in the order of the ids: one that is none as it is, the others from U+0100 on.
LETTERS = {chr(byte): byte for byte in _printable} | {chr(0x100 + i): byte for i, byte in enumerate(_others)}
ALPHABET = (*LETTERS, *(letter + WORD_END for letter in LETTERS))

# ASCII that repair and entities leave as it is: without `&`, and of control characters white space only.
PLAIN = re.compile(r"[\t\n\f\r -%'-~]*")


def check_template(template: Any) -> str:
    """The same; ValueError unless a label has one place in it."""
    if not isinstance(template, str) or template.count(SLOT) != 1:
        expected = f"expected {SLOT} once in it, as 'a photo of {SLOT}.'"
        raise ValueError(f"The template {template!r} has not one slot for a label: {expected}.")
    return template


def clean(text: str) -> str:
    """The text repaired, of small letters, with single spaces."""
    if not PLAIN.fullmatch(text):
        import ftfy

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


@functools.cache
def _pattern() -> Any:
    import regex

    special = "|".join(map(regex.escape, (START, END)))
    return regex.compile(rf"{special}|'(?:s|t|re|ve|m|ll|d)|\p{{L}}+|\p{{N}}|[^\s\p{{L}}\p{{N}}]+", regex.IGNORECASE)


def split(text: str) -> list[str]:
    """The words of a clean text: letters, single digits, other signs, endings like 's, special tokens written out."""
    return _pattern().findall(text)


class CLIPTokenizer(SpellingTokenizer):
    """`ids` by token and `merges` in their order. A text's ids stand between those of START and END, which are the last
    two; written out in a text, these are the tokens, as OpenAI has it."""

    def __init__(self, ids: dict[str, int], merges: Sequence[tuple[str, str]], files: dict[str, bytes] | None = None):
        tokenizer = Tokenizer(models.BPE(vocab=ids, merges=list(merges), end_of_word_suffix=WORD_END))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in (START, END)])
        super().__init__(tokenizer, files or _files(ids, merges), ends=([ids[START]], [ids[END]]))
        self._names = sorted(ids, key=ids.__getitem__)
        self._known: dict[str, list[int]] = {}

    def spelling(self, text: str) -> list[int]:
        return [id for word in split(clean(text)) for id in self._spell(word)]

    def _spell(self, word: str) -> list[int]:
        """The ids of a word, kept for when it comes again: words repeat, and the library takes 40 times as long."""
        if (ids := self._known.get(word)) is None:
            ids = self.tokenizer.encode([word], is_pretokenized=True, add_special_tokens=False).ids
            if len(self._known) >= KNOWN:
                self._known.clear()
            if len(word) <= LONG:
                self._known[word] = ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """What the ids spell, a space after each word; bytes that are no UTF-8 are U+FFFD, START and END as they are. A
        number that is no id is a ValueError."""
        for id in ids:
            if not 0 <= id < len(self._names):
                raise ValueError(f"{int(id)} is no id of this tokeniser: expected 0 to {len(self._names) - 1}.")
        spelt = bytes(LETTERS[letter] for letter in "".join(self._names[id] for id in ids))
        return spelt.decode("utf-8", errors="replace").replace(WORD_END, " ")


def _files(ids: dict[str, int], merges: Sequence[tuple[str, str]]) -> dict[str, bytes]:
    """What transformers reads as its CLIPTokenizer, which spells the words that need no cleaning as we do."""
    said = {"tokenizer_class": "CLIPTokenizer", "bos_token": START}
    said |= dict.fromkeys(("eos_token", "pad_token", "unk_token"), END)
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    return {
        "vocab.json": json.dumps(ids, ensure_ascii=False).encode("utf-8"),
        "merges.txt": "".join(f"{line}\n" for line in lines).encode("utf-8"),
        "tokenizer_config.json": json.dumps(said).encode("utf-8"),
    }


def _numbered(merges: Iterable[tuple[str, str]]) -> dict[str, int]:
    """OpenAI's order: bytes, bytes that end a word, what each merge makes, START, END."""
    ids: dict[str, int] = {}
    for token in (*ALPHABET, *(a + b for a, b in merges), START, END):
        ids.setdefault(token, len(ids))
    return ids


def openai_clip_bpe(file: Path) -> CLIPTokenizer:
    """From bpe_simple_vocab_16e6.txt.gz, which lies beside OpenAI's code: its first 48,894 merges make 49,408 ids."""
    _check_exists(file)
    try:
        with gzip.open(file) as stream:
            lines = _lines(stream.read(LARGEST))
    except (gzip.BadGzipFile, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is truncated, or no gzip of text ({error}): fetch {CLIP_MERGES} again.") from None
    merges = _pairs(lines[: MERGES + 1], file)
    ids = _numbered(merges)
    if len(ids) != (expected := len(ALPHABET) + MERGES + 2):
        raise ValueError(f"{file} makes {len(ids)} tokens: expected the {expected} of {CLIP_MERGES}; fetch it again.")
    return CLIPTokenizer(ids, merges)


def clip_bpe(vocab: Path, merges: Path) -> CLIPTokenizer:
    """From vocab.json and merges.txt, as they lie on the hub and as we save them. tokenizer_config.json and
    special_tokens_map.json beside them travel on."""
    ids = _read_ids(vocab)
    _check_exists(merges)
    try:
        pairs = _pairs(_lines(merges.read_bytes()), merges)
    except UnicodeDecodeError as error:
        raise ValueError(f"{merges} is not UTF-8 (byte {error.start}): fetch it again.") from None
    _check_agree(ids, pairs, vocab, merges)
    made = _files(ids, pairs)
    read = {"vocab.json": vocab.read_bytes(), "merges.txt": merges.read_bytes()}
    beside = [vocab.parent / name for name in ("tokenizer_config.json", "special_tokens_map.json")]
    return CLIPTokenizer(ids, pairs, made | read | {path.name: path.read_bytes() for path in beside if path.is_file()})


def read_clip(*files: Path) -> CLIPTokenizer:
    """From what a checkpoint has: vocab.json and merges.txt, OpenAI's file, or a tokenizer.json, of which only the
    vocabulary is taken."""
    if len(files) == 2:
        return clip_bpe(*files)
    return openai_clip_bpe(*files) if files[0].suffix == ".gz" else _of_tokenizer_json(*files)


def _of_tokenizer_json(file: Path) -> CLIPTokenizer:
    try:
        model = json.loads(file.read_bytes())["model"]
        ids, merges = model["vocab"], [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        return CLIPTokenizer(ids, [(first, second) for first, second in merges])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file} holds no vocabulary of CLIP ({type(error).__name__}: {error}).") from None


def is_clips(folder: Path, files: Sequence[Path] | None) -> bool:
    """Whether these files of a vocabulary, or what else stands in the folder, are of this kind: merges end words."""
    merges = [path for path in files or () if path.name in ("merges.txt", CLIP_MERGES)]
    if merges:
        return merges[0].name == CLIP_MERGES or WORD_END.encode() in merges[0].read_bytes()[:10_000]
    said = folder / "tokenizer.json"
    return (
        not files
        and said.is_file()
        and f'"end_of_word_suffix": "{WORD_END}"' in said.read_text(encoding="utf-8", errors="replace")
    )


def _check_exists(file: Path) -> None:
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist: expected vocab.json and merges.txt, or {CLIP_MERGES}.")


def _lines(content: bytes) -> list[str]:
    return [line.removesuffix("\r") for line in content.decode("utf-8").rstrip("\r\n").split("\n")]


def _pairs(lines: list[str], file: Path) -> list[tuple[str, str]]:
    """The merges, one a line, after a line that says their version."""
    found: dict[tuple[str, str], int] = {}
    for number, line in enumerate(lines[1:] if "#version" in lines[0] else lines, 1 + ("#version" in lines[0])):
        first, _, second = line.partition(" ")
        if not first or not second or " " in second:
            raise ValueError(f"Line {number} of {file} is {line[:40]!r}: expected two pieces with a space between.")
        if (first, second) in found:
            raise ValueError(f"Lines {found[first, second]} and {number} of {file} are both {line!r}: fetch it again.")
        found[first, second] = number
    return list(found)


def _read_ids(vocab: Path) -> dict[str, int]:
    _check_exists(vocab)
    try:
        rows = json.loads(vocab.read_bytes(), object_pairs_hook=list)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{vocab} is not valid JSON ({error}): fetch it again.") from None
    if not isinstance(rows, list) or not all(isinstance(row, tuple) and type(row[1]) is int for row in rows):
        raise ValueError(f"{vocab} is no vocabulary: expected a JSON object of tokens and their ids.")
    for what, each in (("token", [token for token, _ in rows]), ("id", [id for _, id in rows])):
        if twice := [value for value, count in Counter(each).items() if count > 1]:
            raise ValueError(f"{vocab} has the {what} {twice[0]!r} twice: fetch it again.")
    ids = dict(rows)
    if sorted(ids.values()) != list(range(len(ids))) or [ids.get(START), ids.get(END)] != [len(ids) - 2, len(ids) - 1]:
        raise ValueError(f"{vocab} is no vocabulary of CLIP: expected ids from 0 on, the last two {START} and {END}.")
    return ids


def _check_agree(ids: dict[str, int], pairs: list[tuple[str, str]], vocab: Path, merges: Path) -> None:
    made = {*ALPHABET, *(a + b for a, b in pairs), START, END}
    strange = sorted((made ^ ids.keys()) | ({piece for pair in pairs for piece in pair} - ids.keys()))
    if strange:
        shown = ", ".join(map(repr, strange[:4])) + (f" and {len(strange) - 4} more" if len(strange) > 4 else "")
        raise ValueError(f"{vocab} and {merges.name} do not belong together: only one of them has {shown}.")


def train_clip_bpe(texts: Iterable[str], vocab: int) -> CLIPTokenizer:
    """A tokeniser of this kind, of at most `vocab` ids, learnt from the texts: the 512 bytes within and at the end of a
    word, so that any text can be spelt, the most frequent pairs, START and END. The same texts give the same ids. Too
    little text gives fewer."""
    if vocab < (least := len(ALPHABET) + 2):
        raise ValueError(f"vocab is {vocab}: expected at least {least}, the bytes twice and the special tokens.")
    letters = {byte: letter for letter, byte in LETTERS.items()}
    words = Counter(word for text in texts for word in split(clean(text)) if word not in (START, END))
    if not words:
        raise ValueError("The texts are empty: there is nothing to make a vocabulary of.")
    # The library numbers what it meets in an order that changes from run to run, and so would break ties; given the
    # whole alphabet beforehand, it meets nothing new.
    trainer = trainers.BpeTrainer(
        vocab_size=vocab - 2, special_tokens=list(ALPHABET), end_of_word_suffix=WORD_END, show_progress=False
    )
    learner = Tokenizer(models.BPE(end_of_word_suffix=WORD_END))
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    spelt = Counter({"".join(letters[byte] for byte in word.encode("utf-8")): n for word, n in words.items()})
    learner.train_from_iterator(written_out(spelt), trainer)
    merges = [(a, b) for a, b in json.loads(learner.to_str())["model"]["merges"]]
    return CLIPTokenizer(_numbered(merges), merges)
