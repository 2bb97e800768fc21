"""Writes tests/frozen/wordpiece/: a small cased and a small uncased vocabulary, the ids that transformers' tokeniser
gives for texts that go wrong elsewhere, and digests of those it gives for 10,000 generated lines, and of those that its
older tokeniser, a second implementation, gives for the plainer half of them.

    python tests/freeze/wordpiece.py

Imports the reference and never our code.
"""

import functools
import hashlib
import json
import sys
import tempfile
import unicodedata
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import numpy as np  # noqa: E402
import reference  # noqa: E402, F401
import transformers  # noqa: E402
from transformers import BertTokenizer, BertTokenizerLegacy  # noqa: E402

TARGET = HERE.parent / "frozen" / "wordpiece"
KINDS = {"cased": False, "uncased": True}  # whether letters are made small
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SENTENCES = [
    "The theory that the weather then gathered together, they said, is another matter.",
    "It's what we've heard: they'll say I'm here, you'd say he's there, they're everywhere.",
    "In 1905 and 2026 there were 365 days; 1 + 1 = 2, and 3.14159 is not quite pi.",
    "unaffable unhappily reading readers misread unreadable, happy and unhappy!",
    "Ein süßer Käse, más o menos; où est la bibliothèque? Это текст. これは文字です。這是文字。",
    "naïve façade Ångström Zürich São Paulo İstanbul ΣΊΣΥΦΟΣ σίσυφος Привет Ёлка",
]
TEXTS = [
    "", " ", "\n\t\r\n", "The weather, they said.", "UNAFFABLE unAffable", "unhappily-read",
    "naïve façade ÅNGSTRÖM Zürich", "nai\u0308ve e\u0301 \u00e9", "ΣΊΣΥΦΟΣ", "İstanbul ıI", "ẞ ß ﬁ ﬃ", "Ё ё Е\u0308",
    "這是文字。", "text這是text", "これは文字です", "한국어 \u1112\u1161\u11ab", "\U00020000\U0002a6d6", "Это текст",
    "👩\u200d👧 🏳\ufe0f\u200d🌈 😀", "they\U0001f600said", "e\u0301\u0301\u0301",
    "a\u0000b\u0001c\u007fd\ufffde", "they\u200bsaid \u00adsoft\u00adhyphen\ufeff", "a\x1cb\x85c\x0bd\x0ce",
    "a\u00a0b\u2003c\u3000d\u2028e\u2029f", "[MASK]", "they [MASK] said", "they[MASK]said", "[CLS] [SEP] [PAD] [UNK]",
    "[mask] [MASK", "[[MASK]]", "[MASK][MASK]", "...!!!???", "$1,000.00 + 5% ^`~|<=>", "“they” ‘said’ – — … ·¿¡§",
    "a" * 100, "a" * 101,
    "the" * 34, "x" * 1000, "é" * 101, "\u4e00" * 150, "3.14159", "1905年", "#hash ##ing ##", "مرحبا بالعالم", "שָׁלוֹם",
    "नमस्ते", "ภาษาไทย", "\ue000\U000f0000", "𝔘𝔫𝔦 Ⅷ ½ ² ①", "\ud7ff\ue000",
]  # fmt: skip


def vocabulary(lower: bool) -> list[str]:
    """Special tokens; each character, as a word's beginning and within; words that occur; and some ends of words."""
    text = " ".join(SENTENCES)
    if lower:
        small = unicodedata.normalize("NFD", text.lower())
        text = "".join(c for c in small if unicodedata.category(c) != "Mn")
    words = Counter("".join(c if c.isalnum() else " " for c in text).split())
    ends = Counter("##" + word[i:] for word in words for i in range(1, len(word) - 1))
    characters = sorted(set(text) - {" "})
    within = ["##" + c for c in characters if c.isalnum()]
    pieces = sorted(w for w in words if len(w) > 1) + sorted(e for e in ends if ends[e] > 1 and len(e) > 3)
    return [*SPECIAL, *characters, *within, *pieces]


def tokenizer(tokens: list[str], lower: bool) -> BertTokenizer:
    return BertTokenizer(vocab={token: i for i, token in enumerate(tokens)}, do_lower_case=lower)


POOLS = {
    "accents": "àáâãäåæçèéêëìíîïðñòóôõöøùúûüýþÿĀāĂăĄąĆćĞğİıŁłŃńŐőŘřŚśŞşŠšŽžẞßﬁﬃǅǆΐΰΣΊσςЁёЙй",
    "combining": "\u0300\u0301\u0302\u0303\u0308\u030a\u0327\u0328\u0323\u20dd\u0483\u05b8\u064b\u0e31\u094d\u0f71",
    "cjk": "這是文字中国人日本語漢字㐀䶵豈\U00020000\U0002a6d6\U0002b740\U0002f800\u9fa5\u3007",
    "kana and hangul": "これはテストですかなカナ한국어안녕\u1112\u1161\u11abｶﾅ",
    "emoji": "😀😂🤖👩👧🏳🌈❤☀✈🇩🇪👍🏽🧑🚀\u200d\ufe0f\u20e3",
    "control": "".join(map(chr, [*range(32), *range(0x7F, 0xA0)])) + "\u00ad\u200b\u200e\u2060\ufeff\ufffd\ue000",
    "space": " \u00a0\u1680\u2000\u2003\u2009\u202f\u205f\u3000\u2028\u2029",
    "punctuation": "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~¡§«¶·»¿–—‘’“”…‰′⁂、。「」！？－～﹏、",
    "other": "مرحباשלוםनमस्तेภาษาไทยგამარჯობაամենይህ0123456789²½①Ⅷ𝔘𝔫𝔦€£¥₿√∞≠",
}
WRITTEN = [*SPECIAL, *SPECIAL, "[MASK", "MASK]", "[mask]", "[MASKS]", "##ing", "##", "[", "]"]


@functools.cache
def lines(count: int = 10_000, seed: int = 0) -> list[str]:
    """Words and what goes wrong with them, in an order that numpy's frozen generator draws."""
    draw = np.random.RandomState(seed)
    words = " ".join(SENTENCES).split(" ")
    pools = list(POOLS.values())

    def piece() -> str:
        kind = draw.randint(0, 24)
        if kind < 10:
            word = words[draw.randint(len(words))]
            return [word, word, word.upper(), word.capitalize()][draw.randint(4)]
        if kind < 19:
            pool = pools[draw.randint(len(pools))]
            return "".join(pool[i] for i in draw.randint(0, len(pool), draw.randint(1, 7)))
        if kind < 21:
            return WRITTEN[draw.randint(len(WRITTEN))]
        if kind < 22:  # around the longest word that is not unknown
            return "".join(words[draw.randint(len(words))] for _ in range(40))[: draw.randint(95, 106)]
        if kind < 23:  # a word with an accent that stands by itself
            word = words[draw.randint(len(words))]
            at = draw.randint(len(word) + 1)
            combining = POOLS["combining"]
            return word[:at] + combining[draw.randint(len(combining))] + word[at:]
        return chr([draw.randint(0x20, 0xD800), draw.randint(0xE000, 0x30000)][draw.randint(2)])

    glue = [" ", " ", " ", " ", "", "  ", "\t", "\n"]
    return ["".join(piece() + glue[draw.randint(len(glue))] for _ in range(draw.randint(1, 16))) for _ in range(count)]


@functools.cache
def plain() -> list[str]:
    """Those lines of which the tokeniser of 2019, in Python, thinks as the one in Rust does: no final sigma, composed,
    and no character on which their tables of Unicode, of different years, disagree."""
    known = "".join([*POOLS.values(), *SENTENCES, *WRITTEN, *(sentence.upper() for sentence in SENTENCES)])
    known = set(known + " \t\n") - {"Σ"}
    return [line for line in lines() if set(line) <= known and unicodedata.is_normalized("NFC", line)]


def second(kind: str) -> list[list[int]]:
    """The ids of `plain` by that second implementation."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vocab.txt"
        file.write_text("\n".join(vocabulary(KINDS[kind])), encoding="utf-8")
        read = BertTokenizerLegacy(str(file), do_lower_case=KINDS[kind])
        return [read(line)["input_ids"] for line in plain()]


def digest(ids: list[list[int]]) -> str:
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()


def outputs(kind: str) -> dict:
    read = tokenizer(vocabulary(KINDS[kind]), KINDS[kind])
    return {
        "texts": {text: read(text)["input_ids"] for text in TEXTS},
        "lines": digest(read(lines())["input_ids"]),
        "plain": digest(second(kind)),
    }


if __name__ == "__main__":
    for kind, lower in KINDS.items():
        folder = TARGET / kind
        folder.mkdir(parents=True, exist_ok=True)
        write = {"encoding": "utf-8", "newline": "\n"}
        (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in vocabulary(lower)), **write)
        (folder / "ids.json").write_text(json.dumps(outputs(kind), ensure_ascii=True, indent=0), **write)
    print(f"wrote {len(TEXTS)} texts, {len(lines())} lines with transformers {transformers.__version__}")
