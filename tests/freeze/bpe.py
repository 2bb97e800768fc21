"""Writes tests/frozen/bpe/: a small byte-level BPE, and the ids tiktoken gives for texts that go wrong elsewhere.

    python tests/freeze/bpe.py

The vocabulary is trained here on a few sentences; the ids come from tiktoken with GPT-2's own splitting pattern, a
second implementation. Never imports our code.
"""

import json
from pathlib import Path

import tiktoken
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

TARGET = Path(__file__).parent.parent / "frozen" / "bpe"
END = "<|endoftext|>"
SENTENCES = [
    "The theory that the weather then gathered together, they said, is another matter.",
    "It's what we've heard: they'll say I'm here, you'd say he's there, they're everywhere.",
    "In 1905 and 2026 there were 365 days; 1 + 1 = 2, and 3.14159 is not quite pi.",
    "def attend(q, k, v):\n    return softmax(q @ k.T) @ v\n\n\nclass Attention:\n    pass\n",
    "Ein süßer Käse, más o menos; où est la bibliothèque? Это текст. 这是文字。",
]
TEXTS = [
    "", " ", "  ", "\n", "\n\n  x", "a", " a", "hello", " hello  world ",
    "tabs\tand\r\nlines\n\n\nend", "it's they'll IT'S THEY'LL", "1905 19 05 3.14",
    "naïve façade ÅÄÖ ß", "Привет, мир", "你好,世界", "مرحبا بالعالم", "שלום",
    "👩\u200d👧 🏳\ufe0f\u200d🌈 😀",
    "e\u0301 \u00e9", "\u200b\u00a0\ufeff", "\u0000\u0001\u007f", "𝔘𝔫𝔦", "...!!!???", "日本語のテキスト",
    "<|endoftext|>", "one<|endoftext|>two", "<|endoftext|", "a" * 300, "    indented\n\tcode()",
    "\ud7ff\ue000\ufffd",
]  # fmt: skip


def train() -> tuple[dict[str, int], list[tuple[str, str]]]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, special_tokens=[], show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    vocab = {**model["vocab"], END: len(model["vocab"])}
    return vocab, [tuple(merge) for merge in model["merges"]]


def encoding(vocab: dict[str, int]) -> tiktoken.Encoding:
    """tiktoken's own, from the same vocabulary: its ranks are ids because merges were numbered in their order."""
    to_byte = {c: b for b, c in _byte_letters().items()}
    ranks = {bytes(to_byte[c] for c in token): i for token, i in vocab.items() if token != END}
    pattern = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
    return tiktoken.Encoding("small", pat_str=pattern, mergeable_ranks=ranks, special_tokens={END: vocab[END]})


def _byte_letters() -> dict[int, str]:
    """GPT-2 writes each byte as a letter one can see: printable ones as themselves, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(0x100 + i) for i, b in enumerate(others)}


if __name__ == "__main__":
    vocab, merges = train()
    TARGET.mkdir(parents=True, exist_ok=True)
    write = {"encoding": "utf-8", "newline": "\n"}
    (TARGET / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), **write)
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (TARGET / "merges.txt").write_text("\n".join(lines) + "\n", **write)
    ids = {text: encoding(vocab).encode(text, allowed_special="all") for text in TEXTS}
    (TARGET / "ids.json").write_text(json.dumps(ids, ensure_ascii=True, indent=0), **write)
    print(f"wrote {len(vocab)} tokens, {len(merges)} merges, {len(TEXTS)} texts with tiktoken {tiktoken.__version__}")
