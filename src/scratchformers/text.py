"""Text to ids and back. The work is the `tokenizers` library's; what is here is which files make which tokeniser.

A tokeniser of ours never truncates and never pads, whatever its file asks for: both are the caller's business.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

END = "<|endoftext|>"
CHUNK = 1 << 20  # characters encoded at once


class TextTokenizer:
    """Wraps a `tokenizers.Tokenizer`; `files` are what a checkpoint saves to have it again, by name.

    One made here says in tokenizer_config.json which class of transformers reads it: left to guess by the model,
    transformers would build GPT-2's own around our vocabulary and drop what it cannot spell.
    """

    def __init__(self, tokenizer: Tokenizer, files: dict[str, bytes] | None = None):
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.tokenizer = tokenizer
        self.files = files or {
            "tokenizer.json": tokenizer.to_str(pretty=True).encode("utf-8"),
            "tokenizer_config.json": json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}).encode("utf-8"),
        }
        self.alphabet = _alphabet(tokenizer)

    @property
    def vocab(self) -> int:
        """How many ids there are: the largest one, plus 1."""
        return 1 + max(self.tokenizer.get_vocab(with_added_tokens=True).values())

    def digest(self) -> str:
        """sha256 over what it does, whatever files it came from."""
        return hashlib.sha256(self.tokenizer.to_str().encode("utf-8")).hexdigest()

    @property
    def end(self) -> int | None:
        """The id that ends a text, if there is one."""
        return self.tokenizer.token_to_id(END)

    def encode(self, text: str) -> list[int]:
        """All of the text's ids, with the special tokens its file adds. A character without an id is a ValueError."""
        return self._encode(text, special=True)

    def encode_long(self, text: str) -> Iterator[list[int]]:
        """The ids in pieces, without added special tokens, for texts too long to be encoded as a whole."""
        return (self._encode(piece, special=False) for piece in pieces(text, CHUNK))

    def _encode(self, text: str, *, special: bool) -> list[int]:
        known = text if self.end is None else text.replace(END, "")
        if self.alphabet is not None and (strange := sorted(set(known) - self.alphabet)):
            shown = ", ".join(repr(character) for character in strange[:8])
            shown += f" and {len(strange) - 8} more" if len(strange) > 8 else ""
            raise ValueError(
                f"This tokeniser has no id for {shown}: it knows the {len(self.alphabet)} characters it was made of."
            )
        try:
            return self.tokenizer.encode(text, add_special_tokens=special).ids
        except TypeError:
            raise ValueError(
                "The text is no valid Unicode (half of a surrogate pair, or bytes that are not UTF-8)."
            ) from None

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=False)

    def size(self, id: int) -> int:
        """How many bytes of UTF-8 the text of this id has; one of byte-level BPE may be part of a character."""
        if isinstance(self.tokenizer.decoder, decoders.ByteLevel) and id != self.end:
            return len(self.tokenizer.id_to_token(id) or "")
        return len(self.decode([id]).encode("utf-8"))


def check_fits(tokenizer: TextTokenizer, vocab: int) -> None:
    """ValueError if there are ids a model of `vocab` embeddings has none for. Fewer fit: tables are often padded."""
    if tokenizer.vocab > vocab:
        raise ValueError(f"The tokeniser has {tokenizer.vocab} ids and the model {vocab}: they do not belong together.")


def pieces(text: str, size: int) -> Iterator[str]:
    """The text cut into pieces of about `size` characters, where white space follows something else: there byte-level
    BPE never has a token that straddles the cut."""
    start = 0
    while start < len(text):
        stop = start + size
        while stop < len(text) and not (text[stop].isspace() and not text[stop - 1].isspace()):
            stop += 1
        yield text[start:stop]
        start = stop


def _alphabet(tokenizer: Tokenizer) -> frozenset[str] | None:
    """The characters of a tokeniser that knows nothing else and drops what it does not know; None for all others."""
    if not isinstance(tokenizer.model, models.BPE) or tokenizer.pre_tokenizer is not None:
        return None
    model = json.loads(tokenizer.to_str())["model"]
    return None if model["merges"] else frozenset(name for name in model["vocab"] if len(name) == 1)


def characters(texts: Iterable[str], *, end: bool = False) -> TextTokenizer:
    """A token for every character that occurs, by code point; with `end`, one more that ends a text."""
    known: set[str] = set()
    for text in texts:
        known.update(text)
    found = sorted(known)
    if not found:
        raise ValueError("The text is empty: there is no character to make a token of.")
    tokenizer = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(found)}, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    if end:
        tokenizer.add_special_tokens([AddedToken(END, normalized=False)])
    return TextTokenizer(tokenizer)


def train_bpe(texts: Iterable[str], vocab: int) -> TextTokenizer:
    """Byte-level BPE of at most `vocab` ids, learnt from the texts: the 256 bytes, so that any text can be spelt, then
    the most frequent pairs, and last the end token. The same texts give the same ids. Too little text gives fewer."""
    if vocab < 257:
        raise ValueError(f"vocab is {vocab}: expected at least 257, the bytes and the end token.")
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab - 1, initial_alphabet=alphabet, show_progress=False)
    tokenizer = Tokenizer(models.BPE())
    _make_byte_level(tokenizer)
    parts = (part for text in texts for part in text.split(END))  # where it is written out, it is no text to learn from
    tokenizer.train_from_iterator((piece for part in parts for piece in pieces(part, CHUNK)), trainer)
    tokenizer.add_special_tokens([AddedToken(END, normalized=False)])
    return TextTokenizer(tokenizer)


def _make_byte_level(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()


def byte_level_bpe(vocab: Path, merges: Path) -> TextTokenizer:
    """GPT-2's own tokeniser (section 2.2 of its paper), from vocab.json and merges.txt."""
    try:
        model = models.BPE.from_file(str(vocab), str(merges))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{vocab} and {merges.name} are no byte-level BPE ({error}).") from None
    tokenizer = Tokenizer(model)
    _make_byte_level(tokenizer)
    if tokenizer.token_to_id(END) is not None:
        tokenizer.add_special_tokens([AddedToken(END, normalized=False)])
    return TextTokenizer(tokenizer, {"vocab.json": vocab.read_bytes(), "merges.txt": merges.read_bytes()})


def read_tokenizer(file: Path) -> TextTokenizer:
    """From a tokenizer.json, as the `tokenizers` library writes it."""
    try:
        tokenizer = Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{file} is no tokeniser ({error}).") from None
    beside = {name: file.parent / name for name in ("tokenizer_config.json", "special_tokens_map.json")}
    return TextTokenizer(
        tokenizer,
        {"tokenizer.json": file.read_bytes()} | {n: path.read_bytes() for n, path in beside.items() if path.is_file()},
    )
