"""Writes tests/frozen/clip_text/: the ids that OpenAI's simple_tokenizer gives for texts that go wrong elsewhere, and
for each of 12,000 generated lines a digest of them.

    python tests/freeze/clip_text.py

The reference is open_clip's copy of that tokeniser, which renamed the special tokens and splits white space by other
means: both are put back as OpenAI has them. The vocabulary comes with open_clip. Imports the reference and never our
code.
"""

import functools
import hashlib
import json
import sys
import unicodedata
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import numpy as np  # noqa: E402
import reference  # noqa: E402, F401
import regex  # noqa: E402
from open_clip.tokenizer import SimpleTokenizer, basic_clean, default_bpe  # noqa: E402

TARGET = HERE.parent / "frozen" / "clip_text"
START, END = "<|startoftext|>", "<|endoftext|>"
WIDTH = 8  # bytes of a line's digest
# No text has characters younger than Unicode 14 (2021): what they are does not change with Python or regex.
WORDS = [
    "a", "photo", "of", "the", "cat's", "dog", "don't", "it's", "we've", "they'll", "I'm", "she'd", "you're",
    "O'Neill", "1905", "3.14159", "2,000", "jpeg", "sunset", "mountains", "rollerblading",
    "antidisestablishmentarianism", "supercalifragilistic", "@user", "#nofilter", "http://t.co/AbC1", "C++",
    "rock'n'roll", "U.S.A.", "semi-automatic", "half_price", "(sic)", '"quoted"', "50%", "$9.99", "w/o", "&c",
    "AT&T", "R&D", "<b>bold</b>", "naïve", "façade", "Zürich", "smörgåsbord",
]  # fmt: skip
TEXTS = [
    "", " ", "\n\t\r\n", "a", "A photo of a CAT.", "a photo of a cat", "hello  world ",
    "it's they'll IT'S THEY'LL 'S", "1905 19 05 3.14", "naïve façade ÅÄÖ ß ẞ", "I\u0307stanbul İ ı", "ΣΊΣΥΦΟΣ Σ",
    "Привет, мир", "你好,世界", "これはテスト", "مرحبا بالعالم", "שָׁלוֹם", "नमस्ते", "ภาษาไทย",
    "한국어 \u1112\u1161\u11ab", "👩\u200d👧 🏳\ufe0f\u200d🌈 😀🇩🇪👍🏽", "e\u0301 \u00e9 e\u0301\u0301",
    "\u200b\u00a0\ufeff\u00ad", "a\u0000b\u0001c\u007fd\u0085e\u001cf\u000bg\u000ch", "\x1b[31mred\x1b[0m",
    "𝔘𝔫𝔦 Ⅷ ½ ² ①", "ＬＯＵＤ　ＮＯＩＳＥＳ", "ﬁ ﬃ ﬂubber", "“they” ‘said’ it’s – — …", "...!!!???",
    "&lt;b&gt; &amp;lt; &amp;amp;lt; &amp;amp;amp;lt; &amp;amp;amp;amp;lt;",
    "<&lt; &amp;lt; &amp;amp;lt; &amp;amp;amp;lt;",
    "&eacute &eacute; &EACUTE; &notit; &notin; &hellip; &nbsp; &NewLine; &Tab;",
    "&#65; &#x41; &#65 &#x; &#0; &#x80; &#xD800;", "<e&#x301; &#xff21; &#8232;x &#x1c;y &#x0b;z &#12;",
    "&#x110000; &#99999999999; &; & &&amp;", "âœ” No problems", "schÃ¶n cafÃ© Ã\xa0 la", "ã\x83\x84",
    "â€œquotesâ€\x9d", "Ã\x83Â©", "voilÃ  le travail", "\ufffd", "<|startoftext|>", "<|endoftext|>",
    "a<|endoftext|>b", "!<|endoftext|>!", "<|STARTOFTEXT|> <|EndOfText|>", "<|\u017ftartoftext|>", "<|endoftext |>",
    "<start_of_text> <end_of_text>", "&lt;|endoftext|&gt;", "'\u017f 'ſ it'ſ", "\u212a", "</w>", "a</w> b </w>c",
    "a" * 300, "ab" * 150, "é" * 100, "中" * 100, "!" * 200, "\ue000\U000f0000", "a\u2028b\u2029c\u3000d",
    "\ud7ff\ue000", "x\u0336y\u0336", "Ǆ ǅ ǆ ŉ", "\u1e9e\u0130\u03f4\u2126\u212b",
]  # fmt: skip
POOLS = {
    "accents": "àáâãäåæçèéêëìíîïðñòóôõöøùúûüýþÿĀāĂăĄąĆćĞğİıŁłŃńŐőŘřŚśŞşŠšŽžẞßﬁﬃǅǆΐΰΣΊσςЁёЙйŉſKÅΩ",
    "combining": "\u0300\u0301\u0302\u0303\u0308\u030a\u0327\u0328\u0323\u20dd\u0483\u05b8\u064b\u0e31\u094d\u0f71aeo",
    "cjk": "這是文字中国人日本語漢字㐀䶵豈\U00020000\U0002a6d6\U0002b740\U0002f800\u9fa5\u3007",
    "kana and hangul": "これはテストですかなカナ한국어안녕\u1112\u1161\u11abｶﾅＡｂ１",
    "emoji": "😀😂🤖👩👧🏳🌈❤☀✈🇩🇪👍🏽🧑🚀🥹🫠\u200d\ufe0f\u20e3",
    "control": "".join(map(chr, [*range(32), *range(0x7F, 0xA0)])) + "\u00ad\u200b\u200e\u2060\ufeff\ufffd\ue000\ufff9",
    "space": " \u00a0\u1680\u2000\u2003\u2009\u200a\u202f\u205f\u3000\u2028\u2029\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f\x85",
    "ascii": "".join(map(chr, range(33, 127))),
    "punctuation": "\"#$%&'()*+,-./:;<=>?@[]^_`{|}~¡§«¶·»¿–—‘’“”…‰′⁂、。「」！？－～﹏、",
    "numbers": "0123456789²½①Ⅷ٣७๕𝟙〇零",
    "other": "مرحباשלוםनमस्तेภาษาไทยგამარჯობაამენይህ𝔘𝔫𝔦€£¥₿√∞≠",
}
ENTITIES = [
    "amp", "lt", "gt", "quot", "apos", "nbsp", "eacute", "Eacute", "hellip", "copy", "notin", "mdash", "rsquo",
    "Tab", "NewLine", "AMP", "LT", "not", "para", "szlig", "Sigma", "#38", "#60", "#x3c", "#x301", "#769", "#xe9",
    "#233", "#xff21", "#8217", "#x1F600", "#0", "#x1c", "#28", "#11", "#12", "#x80", "#x9d", "#133", "#xD800",
    "#x110000", "#xA0",
]  # fmt: skip
WRITTEN = [
    START, END, START, END, END.upper(), "<|endoftext", "endoftext|>", "<|", "|>", "<|\u017ftartoftext|>",
    "<|end oftext|>", "</w>", "<start_of_text>", "<end_of_text>", "&lt;|endoftext|&gt;",
    "&amp;lt;|endoftext|&amp;gt;", "'s", "'\u017f", "'LL", "’s",
]  # fmt: skip


@functools.cache
def assigned() -> list[str]:
    """Every character of Unicode 3.2, which Python carries beside its own, but surrogates and private ones."""
    old = unicodedata.ucd_3_2_0
    return [chr(c) for c in range(0x30000) if old.category(chr(c)) not in ("Cn", "Co", "Cs")]


@functools.cache
def lines(count: int = 12_000, seed: int = 0) -> list[str]:
    """Words and what goes wrong with them, in an order that numpy's frozen generator draws. A third are plain ASCII."""
    draw = np.random.RandomState(seed)
    pools, every, ascii_words = list(POOLS.values()), assigned(), [word for word in WORDS if word.isascii()]

    def one(values):
        return values[draw.randint(len(values))]

    def several(pool, most):
        return "".join(one(pool) for _ in range(draw.randint(1, most)))

    def word():
        found = one(WORDS)
        return [found, found, found.upper(), found.capitalize()][draw.randint(4)]

    def entity():
        """Escaped once or more often, now and then without its semicolon."""
        return "&" + "amp;" * one([0, 0, 0, 1, 1, 2, 3, 4]) + one(ENTITIES) + one([";", ";", ";", ""])

    def mojibake():
        text = word() + several(one(pools[:5]), 4)
        for _ in range(one([1, 1, 2])):
            text = text.encode("utf-8").decode(one(["latin-1", "cp1252", "cp1251", "mac-roman", "cp437"]), "ignore")
        return text

    def marked():
        """A word with an accent that stands by itself, as a character or as an entity."""
        at, found = draw.randint(8), word()
        return found[:at] + one([one(POOLS["combining"]), "&#x301;", "&#776;", "&amp;#x327;"]) + found[at:]

    kinds = [
        word, word, word, lambda: several(one(pools), 7), lambda: several(one(pools), 7), entity, entity, mojibake,
        lambda: one(WRITTEN), marked, lambda: several(every, 5), lambda: several(POOLS["ascii"], 12),
        lambda: one(["<", "<", "\n", "\x1b[1m", "\x1b[0;31m", "\r\n", ""]),
    ]  # fmt: skip
    plain = [lambda: one(ascii_words), lambda: one(ascii_words), lambda: several(POOLS["ascii"], 6)]
    glue = [" ", " ", " ", " ", "", "", "  ", "\t", "\n", *POOLS["space"]]

    def long():
        """One word of up to 300 characters."""
        return "".join(one([one(WORDS), several(one(pools[:5]), 9)]) for _ in range(40))[: draw.randint(60, 301)]

    def line(number):
        if number % 100 == 99:
            return long()
        if number % 3 == 0:
            return "".join(one(plain)() + one(" \t\n") for _ in range(draw.randint(1, 16)))
        return "".join(one(kinds)() + one(glue) for _ in range(draw.randint(1, 13)))

    return [line(number) for number in range(count)]


class Simple(SimpleTokenizer):
    """OpenAI's, of the merges in `path` (gzip). Of all texts it differs from open_clip's in those that spell a special
    token of either; of white space it asks regex, where open_clip asks Python."""

    def __init__(self, path: str | Path | None = None):
        super().__init__(str(path or default_bpe()))
        renamed = {"<start_of_text>": START, "<end_of_text>": END}
        self.encoder = {renamed.get(token, token): id for token, id in self.encoder.items()}
        self.decoder = {id: token for token, id in self.encoder.items()}
        self.cache = {token: token for token in (START, END)}
        theirs, ours = "|".join(renamed), "|".join(map(regex.escape, renamed.values()))
        self.pat = regex.compile(self.pat.pattern.replace(theirs, ours, 1), regex.IGNORECASE)
        self.clean_fn = lambda text: regex.sub(r"\s+", " ", basic_clean(text)).strip().lower()

    def __call__(self, text: str) -> list[int]:
        return [self.encoder[START], *self.encode(text), self.encoder[END]]


def digest(ids: list[int]) -> bytes:
    return hashlib.sha256(np.array(ids, dtype="<u4").tobytes()).digest()[:WIDTH]


def written(texts: list[str]) -> str:
    """sha256 of the lines themselves: they are still those that were frozen."""
    return hashlib.sha256("\0\0".join(texts).encode("utf-8")).hexdigest()


if __name__ == "__main__":
    tokenizer = Simple()
    TARGET.mkdir(parents=True, exist_ok=True)
    said = {"lines": written(lines()), "texts": {text: tokenizer(text) for text in TEXTS}}
    with open(TARGET / "ids.json", "w", encoding="utf-8", newline="\n") as file:
        json.dump(said, file, ensure_ascii=True, indent=0)
    (TARGET / "lines.bin").write_bytes(b"".join(digest(tokenizer(line)) for line in lines()))
    print(f"wrote {len(TEXTS)} texts and {len(lines())} lines, of Unicode {unicodedata.unidata_version}")
