"""Tokenisers whose pieces SentencePiece cuts: Marian's (OPUS-MT), and mBART's where it has no tokenizer.json.

The library cuts a text; which id a piece has, the checkpoint says: Marian's vocab.json, or for mBART the order of the
file moved by one, as fairseq has it. Punctuation is left as it is: transformers keeps the Moses normaliser beside
Marian's tokeniser and never calls it, whether sacremoses is installed or not.

A file of SentencePiece is data. It is parsed from its bytes, and whatever is wrong with it is a ValueError.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, processors

from scratchformers.checkpoints import files
from scratchformers.text import FAIRSEQ, SpellingTokenizer, TextTokenizer, read_tokenizer

CODE = re.compile(r">>.*?<<", re.DOTALL)  # which language a multilingual Marian writes, at the start of a text
OURS, OTHERS = "vocab.json", "target_vocab.json"
BEGIN = ["<s>", "<pad>", "</s>", "<unk>"]  # of mBART's ids
LANGUAGES = (
    "ar_AR cs_CZ de_DE en_XX es_XX et_EE fi_FI fr_XX gu_IN hi_IN it_IT ja_XX kk_KZ ko_KR lt_LT lv_LV my_MM ne_NP nl_XX "
    "ro_RO ru_RU si_LK tr_TR vi_VN zh_CN"
)
LATER = (  # those of mBART-50 that follow them
    "af_ZA az_AZ bn_IN fa_IR he_IL hr_HR id_ID ka_GE km_KH mk_MK ml_IN mn_MN mr_IN pl_PL ps_AF pt_XX sv_SE sw_KE ta_IN "
    "te_IN th_TH tl_XX uk_UA ur_PK xh_ZA gl_ES sl_SI"
)


class SentencePieces(SpellingTokenizer):
    """`processor` cuts, `ids` by piece; a piece without an id is <unk>. The `special` tokens are pieces where a text
    writes them out, and with `codes` so is a language code that it begins with, or that follows one of them. `around` a
    text stand the special tokens of its start and its end."""

    def __init__(
        self,
        processor: Any,
        ids: Mapping[str, int],
        contents: dict[str, bytes],
        *,
        special: Sequence[str],
        around: tuple[list[str], list[str]] = ([], ["</s>"]),
        codes: bool = False,
        target: TextTokenizer | None = None,
    ):
        tokenizer = Tokenizer(models.WordLevel(dict(ids), unk_token="<unk>"))
        tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in special if name in ids])
        tokenizer.decoder = decoders.Metaspace()
        before, after = ([ids[name] for name in each] for each in around)
        super().__init__(tokenizer, contents, ends=(before, after), target=target)
        self.processor, self._ids, self._codes = processor, ids, codes
        self._names = {id: piece for piece, id in ids.items()}
        self._special = [name for name in special if name in ids]
        self._written = re.compile(f"({'|'.join(map(re.escape, sorted(self._special, key=len, reverse=True)))})")

    def digest(self) -> str:
        own = hashlib.sha256(self.processor.serialized_model_proto())
        own.update(f"{super().digest()} {self._ends} {self._codes}".encode())
        return own.hexdigest()

    def spelling(self, text: str) -> list[int]:
        unknown = self._ids["<unk>"]
        return [self._ids.get(piece, unknown) for piece in self.pieces(text)]

    def pieces(self, text: str) -> list[str]:
        """What the text is cut into, special tokens written out among them; of what no piece spells, the characters."""
        found = []
        for i, part in enumerate(self._written.split(text)):
            if i % 2:
                found.append(part)
                continue
            if self._codes and (code := CODE.match(part)):
                found.append(code[0])
                part = part[code.end() :]
            found += self.processor.encode(part, out_type=str)
        return found

    def decode(self, ids: Sequence[int]) -> str:
        """What ids of the target spell, special tokens as they are. A number that is none is a ValueError."""
        if self._target:
            return self._target.decode(ids)
        if strange := [int(id) for id in ids if int(id) not in self._names]:
            raise ValueError(f"{strange[0]} is no id of this tokeniser: it has {len(self._names)}.")
        return self._decode([self._names[int(id)] for id in ids])

    def _decode(self, pieces: list[str]) -> str:
        """mBART's pieces in one line, as the `tokenizers` library has it; Marian's by SentencePiece, between special
        tokens, after each of which comes a space."""
        if not self._codes:
            return "".join(pieces).replace("▁", " ").removeprefix(" ")
        said, run = "", []
        for piece in pieces:
            if piece in self._special:
                said, run = f"{said}{self.processor.decode_pieces(run)}{piece} ", []
            else:
                run.append(piece)
        return f"{said}{self.processor.decode_pieces(run)}".replace("▁", " ").strip()


def marian(*paths: Path) -> TextTokenizer:
    """Marian's tokeniser with its `target`, from source.spm, target.spm and vocab.json; where tokenizer_config.json
    says `separate_vocabs`, the target's ids are those of target_vocab.json. A tokenizer.json alone is read as it is.

    Files exchanged are found out by their pieces where the vocabularies are separate; one vocabulary holds the pieces
    of both.
    """
    if len(paths) == 1:
        return read_tokenizer(*paths)
    folder = paths[0].parent
    said = files.read_json(config) if (config := folder / "tokenizer_config.json").is_file() else {}
    separate = said.get("separate_vocabs", False)
    names = [*files.MARIAN, "tokenizer_config.json", "special_tokens_map.json", *[OTHERS][: bool(separate)]]
    contents = {path.name: path.read_bytes() for path in (folder / name for name in names) if path.is_file()}
    if lacks := [name for name in (*files.MARIAN, *[OTHERS][: bool(separate)]) if name not in contents]:
        raise FileNotFoundError(f"{folder} holds no {' and no '.join(lacks)}: fetch them again.")
    ids = _vocabulary(folder / OURS, contents[OURS])
    others = _vocabulary(folder / OTHERS, contents[OTHERS]) if separate else ids
    cutters, pieces = zip(*(_cutter(folder / name, contents[name]) for name in files.MARIAN[:2]))
    _check_belong(folder, pieces, (ids, others))
    special = ("</s>", "<unk>", "<pad>")
    target = SentencePieces(cutters[1], others, contents, special=special, codes=True)
    return SentencePieces(cutters[0], ids, contents, special=special, codes=True, target=target)


def mbart(file: Path, *others: Path) -> TextTokenizer:
    """mBART's tokeniser, from sentencepiece.bpe.model, or the tokenizer.json beside it. The languages are `src_lang`
    and `tgt_lang` of tokenizer_config.json, else en_XX, or what the tokenizer.json says. Their codes stand after a
    text's </s>, or before the text for one whose `tokenizer_class` is MBart50Tokenizer, which has 52."""
    if others:  # the vocabulary of another model's tokeniser
        raise FileNotFoundError(f"{file.parent} holds no {' '.join(files.MBART)}: an mBART's tokeniser is made of it.")
    beside = {name: file.parent / name for name in ("tokenizer_config.json", "special_tokens_map.json")}
    contents = {name: path.read_bytes() for name, path in beside.items() if path.is_file()}
    said = files.read_json(beside["tokenizer_config.json"]) if "tokenizer_config.json" in contents else {}
    later = str(said.get("tokenizer_class")).startswith("MBart50")
    source, target = said.get("src_lang"), said.get("tgt_lang")
    whole = file.with_name("tokenizer.json")
    if whole.is_file():
        return _spoken(read_tokenizer(whole), source, target or source, later)
    contents[file.name] = file.read_bytes()
    processor, pieces = _cutter(file, contents[file.name])
    if pieces[:3] != ["<unk>", "<s>", "</s>"]:
        raise ValueError(f"{file} begins with the pieces {pieces[:3]}: expected <unk>, <s> and </s>, as mBART's does.")
    codes = f"{LANGUAGES} {LATER if later else ''}".split()
    ids = {piece: id for id, piece in enumerate([*BEGIN, *pieces[3:], *codes, "<mask>"])}
    made = []
    for language in (target or source or "en_XX", source or "en_XX"):
        _code(language, ids)
        around = _around(language, later)
        special = [*FAIRSEQ.values(), *codes]
        made.append(
            SentencePieces(processor, ids, contents, special=special, around=around, target=(made or [None])[0])
        )
    return made[1]


def _around(language: str, later: bool) -> tuple[list[str], list[str]]:
    return ([language], ["</s>"]) if later else ([], ["</s>", language])


def _code(language: str, ids: Mapping[str, int]) -> int:
    if language not in ids:
        known = " ".join(name for name in f"{LANGUAGES} {LATER}".split() if name in ids)
        raise ValueError(f"tokenizer_config.json names the language {language!r}: expected one of {known}.")
    return ids[language]


def _spoken(tokenizer: TextTokenizer, source: str | None, target: str | None, later: bool) -> TextTokenizer:
    """The same with the codes of these languages around a text, or as it is where none is named."""
    if source is None and target is None:
        return tokenizer
    made = []
    for language in (target, source):
        each = Tokenizer.from_str(tokenizer.tokenizer.to_str())
        if language is not None:
            ids = each.get_vocab(with_added_tokens=True)
            before, after = _around(language, later)
            each.post_processor = processors.TemplateProcessing(
                single=[*before, "$A", *after],
                pair=[*before, "$A", "$B", *after],
                special_tokens=[("</s>", ids["</s>"]), (language, _code(language, ids))],
            )
        made.append(TextTokenizer(each, tokenizer.files, target=(made or [None])[0]))
    return made[1]


def _cutter(file: Path, content: bytes) -> tuple[Any, list[str]]:
    """What cuts, and its pieces by its own ids."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(content)
        return processor, [processor.id_to_piece(id) for id in range(processor.get_piece_size())]
    except (RuntimeError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{file} is truncated or no model of SentencePiece ({reason}): fetch it again.") from None


def _vocabulary(file: Path, content: bytes) -> dict[str, int]:
    try:
        ids = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not valid JSON ({error}): fetch it again.") from None
    numbers = ids.values() if isinstance(ids, dict) else [None]
    if not all(type(id) is int and 0 <= id < 2**31 for id in numbers) or len({*numbers}) < len(numbers):
        raise ValueError(f"{file} is no vocabulary: expected a JSON object of pieces and their ids, each id once.")
    if lacks := [name for name in ("<unk>", "</s>") if name not in ids]:
        raise ValueError(f"{file} is no vocabulary of Marian: it has no {' and no '.join(lacks)}.")
    return ids


def _check_belong(folder: Path, pieces: Iterable[Sequence[str]], vocabularies: Iterable[Mapping[str, int]]) -> None:
    """ValueError if the pieces of both are better known to the other's vocabulary, or those of one not to its own."""
    known = [[sum(piece in ids for piece in each) / len(each) for ids in vocabularies] for each in pieces]
    (source, crossed), (back, target) = known
    if crossed > source and back > target:
        raise ValueError(f"{folder} has source.spm and target.spm, or their vocabularies, exchanged: swap them back.")
    for name, share in zip(files.MARIAN, (source, target)):
        if share < 0.5:
            raise ValueError(
                f"Of the pieces of {folder / name} only {share:.0%} have an id in its vocabulary: they do not belong "
                "together, so fetch them again."
            )
