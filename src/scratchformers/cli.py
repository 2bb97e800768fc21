"""The command line. torch is imported by the command that needs it, so that --help answers at once."""

import contextlib
import dataclasses
import json
import math
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional, UseAppendAction, arg, subcommand

from scratchformers.answers import Answers, LineByLine, check_files


def auto_device(name: str) -> str:
    """The device asked for; `auto` is a GPU where there is one."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name.partition(":")[0] not in ("cpu", "cuda", "mps"):
        raise ValueError(f"There is no device {name!r}: expected cpu, cuda, mps or auto.")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError):
        raise ValueError(f"The device {name!r} is not available here: try cpu, or auto.") from None
    return name


@dataclass
class Complete:
    """Continue a text, or every line of a file, with a model that writes.

    Example: scratchformers complete "ROMEO:" --model runs/shakespeare/model --temperature 0.8

    Example: scratchformers complete --file prompts.txt --out answers.jsonl --model runs/shakespeare/model
    """

    model: Annotated[str, arg(metavar="SOURCE")]
    """A checkpoint: a folder written by `train` or by transformers, a file of weights, or an id of the Hugging Face
    hub."""
    text: Annotated[Positional[str | None], arg(metavar="TEXT")] = None
    """What to continue. It is printed as it is written."""
    file: Annotated[Path | None, arg(metavar="PATH")] = None
    """Instead of TEXT: a UTF-8 file with a prompt a line, or a .jsonl file with a "prompt" in each."""
    out: Annotated[Path | None, arg(metavar="PATH")] = None
    """With --file: where the answers go, JSON lines in the order of the prompts. A run that was stopped goes on."""
    batch: int = 8
    """With --file: prompts continued at once."""
    max_new_tokens: int | None = None
    """Tokens to write at most; by default the smaller of 64 and the room left."""
    temperature: float = 0.0
    """0 takes the most probable token; above, tokens are drawn, the more freely the higher."""
    top_k: int | None = None
    """Draw from the k most probable tokens only; needs a temperature above 0."""
    top_p: float | None = None
    """Draw from the smallest set of tokens that holds this much of the probability; needs a temperature above 0."""
    repetition_penalty: float = 1.0
    """Above 1, tokens that already stand in the text become less probable."""
    stop: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="STRING")] = ()
    """End before this string, in which \\n is a line break. May be repeated."""
    slide: bool = False
    """Go on when the model is full, with the last half of the text as all it sees."""
    seed: int | None = None
    """Makes drawing repeatable; line i of a file, counted from 0, draws with seed + i."""
    device: str = "auto"
    """cpu, cuda, mps, or auto (a GPU where there is one)."""
    json: bool = False
    """Print a JSON object: prompt, text, ids, reason (end, stop or length)."""

    def interrupted(self) -> str:
        return "the same command goes on" if self.file else "the text above is as far as it came"

    def run(self) -> None:
        if (self.text is None) == (self.file is None):
            what = "nothing" if self.file is None else "a text and a file"
            raise ValueError(f"There is {what} to continue: pass a text, or --file.")
        if (self.out is None) != (self.file is None):
            raise ValueError("--file and --out go together: prompts from the one, answers into the other.")
        if self.temperature == 0 and (self.top_k is not None or self.top_p is not None):
            note("--top-k and --top-p act on drawing, which needs a --temperature above 0.")
        if self.file is not None and self.out is not None:
            check_files(self.file, self.out)
        from scratchformers.tasks import Completer, Request

        settings = {
            name: getattr(self, name)
            for name in ("max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "slide", "seed")
        }
        if self.stop:
            settings["stop"] = [string.replace("\\n", "\n") for string in self.stop]
        Request(**settings)  # what cannot be is said before a model is fetched
        completer = Completer.from_pretrained(self.model, device=auto_device(self.device))
        if self.file is not None and self.out is not None:
            self._answer(completer, settings, self.file, self.out)
        else:
            self._write(completer, settings, self.text or "")

    def _write(self, completer: Any, settings: dict[str, Any], text: str) -> None:
        pieces, said = completer.stream(text, **settings), "" if self.json else text
        while True:
            try:
                said += next(pieces)
            except StopIteration as end:
                answer = end.value
                break
            if not self.json:  # and not before there is something to add: an error would stand behind the prompt
                print(said, end="", flush=True)
                said = ""
        print(json.dumps({"prompt": text, **vars(answer)}, ensure_ascii=False) if self.json else said)
        if self.stop and answer.reason == "length":
            note(f"None of the stop strings {settings['stop']} was met in {len(answer.ids)} tokens.")

    def _answer(self, completer: Any, settings: dict[str, Any], prompts: Path, out: Path) -> None:
        seed = settings.pop("seed")
        job = Answers(prompts, out, {**settings, "seed": seed, "model": completer.digest()}, batch=self.batch)

        def answer(first: int, batch: list[str]) -> list[dict[str, Any]]:
            found = completer.answer(batch, first=first, seed=seed, **settings)
            return [{"error": str(each)} if isinstance(each, ValueError) else vars(each) for each in found]

        if job.done:
            note(f"{out} holds {job.done} answers: going on after them.")
        count_up(job.run(answer), job.done, "prompts")
        print(f"{job.done} prompts answered in {out}.")
        if job.failed:
            raise ValueError(f'{job.failed} of {job.done} prompts could not be continued: see "error" in {out}.')


@dataclass
class Fill:
    """Say what is hidden in a text, or in every line of a file, with a masked language model.

    Example: scratchformers fill "Paris is the [MASK] of France." --model google-bert/bert-base-uncased
    """

    text: Annotated[Positional[str], arg(metavar="TEXT")]
    """A text with [MASK] where a word is hidden, once or more; or the path of a UTF-8 file with one a line."""
    model: Annotated[str, arg(metavar="SOURCE")]
    """A checkpoint: a folder written by `train` or by transformers, a file of weights, or an id of the Hugging Face
    hub."""
    top: int = 5
    """How many tokens to show for each place."""
    truncate: bool = False
    """Leave out the end of a text that is too long for the model, which is else an error."""
    device: str = "auto"
    """cpu, cuda, mps, or auto."""
    json: bool = False
    """Print a JSON object a line: the text, and for each hidden place its fills (token, score, text)."""

    def interrupted(self) -> str:
        return "the answers above are complete"

    def run(self) -> None:
        from scratchformers.tasks import MaskFiller

        texts = texts_of(self.text)
        filler = MaskFiller.from_pretrained(self.model, device=auto_device(self.device))
        for text in texts:
            found = filler(text, top=self.top, truncate=self.truncate)
            places = found if isinstance(found[0], list) else [found]
            if self.json:
                fills = [[vars(each) for each in place] for place in places]
                print(json.dumps({"text": text, "fills": fills}, ensure_ascii=False))
                continue
            for number, place in enumerate(places, 1):
                print(_in_a_line(text) + (f"  (place {number})" if len(places) > 1 else ""))
                for each in place:
                    print(f"  {each.score:7.2%}  {_in_a_line(each.token):16}  {_in_a_line(each.text)}")
        say_cut(filler.tokenizer)


@dataclass
class Embed:
    """Make one vector of a text, of every line of a file, or with a CLIP of pictures, which can then be looked for.

    Example: scratchformers embed sentences.txt --model sentence-transformers/all-MiniLM-L6-v2 --out vectors.npy

    Example: scratchformers embed photos --model openai/clip-vit-base-patch32 --out photos.npy

    Example: scratchformers embed photos.npy --model openai/clip-vit-base-patch32 --query "a dog on grass"
    """

    given: Annotated[Positional[tuple[str, ...]], arg(name="text", metavar="TEXT|PICTURE", help_behavior_hint="")]
    """A text; or the path of a UTF-8 file with one a line, of any length. For a CLIP also pictures, as `classify` takes
    them; and with --query the .npy file that --out wrote of them."""
    model: Annotated[str, arg(metavar="SOURCE")]
    """A checkpoint: a folder, or an id of the Hugging Face hub. One of sentence-transformers says itself how its
    vectors are made."""
    out: Annotated[Path | None, arg(metavar="FILE")] = None
    """A .npy file for the vectors, float32 (texts or pictures, width), in their order. Of pictures, FILE.json beside it
    has their names in this order."""
    query: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="TEXT")] = ()
    """With a CLIP: say which of the pictures suit this text best, by the cosine of the vectors. May be repeated."""
    top: int = 5
    """With --query: how many pictures to show."""
    pool: Literal["mean", "first", "pooler"] | None = None
    """How the states of the tokens become one vector, if not as the checkpoint says; without a word from it, mean. Not
    of a CLIP."""
    normalize: bool | None = None
    """Whether vectors are brought to length 1, if not as the checkpoint says; those of a CLIP are, unless told."""
    truncate: bool = False
    """Leave out the end of a text that is too long for the model, which is else an error."""
    skip_unreadable: bool = False
    """Leave out pictures that cannot be read, and name them at the end; by default the first of them stops all."""
    device: str = "auto"
    """cpu, cuda, mps, or auto."""
    json: bool = False
    """Print a JSON object a line: the text or picture and its vector, or the query and what suits it."""

    def interrupted(self) -> str:
        return "no file was written" if self.out else "the vectors above are complete"

    def run(self) -> None:
        self._check()
        from scratchformers.tasks import DualEncoder, PictureIndex, load_encoder

        # What cannot be is said before a model is fetched.
        index = PictureIndex.read(self.given[0]) if self._has_index() else None
        named = any(map(names_picture, self.given)) or (bool(self.query) and index is None)
        found = pictures_of(self.given, skip=self.skip_unreadable) if named else None
        texts = None if named or index or any(map(holds_pictures, self.given)) else self._texts()
        how = {"pool": self.pool, "normalize": self.normalize, "device": auto_device(self.device)}
        encoder = load_encoder(self.model, **how)
        if not isinstance(encoder, DualEncoder):
            if found is not None or index is not None or self.query or self.skip_unreadable:
                name = type(encoder.model).__name__
                raise ValueError(
                    f"{name} reads no pictures, and there are none to look for (--query): expected a CLIP."
                )
            self._write_texts(encoder, encoder.stream, self._texts() if texts is None else texts)
        elif texts is not None:
            self._write_texts(encoder, encoder.stream_texts, texts, normalize=self.normalize is not False)
        elif index is not None:
            self._search(encoder, index)
        else:
            self._pictures(encoder, found or pictures_of(self.given, skip=self.skip_unreadable))

    def _check(self) -> None:
        """What cannot be, whatever the model."""
        if not self.given:
            raise ValueError("There is nothing to embed: pass a text, or with a CLIP a picture.")
        if self.out is None and not self.query and self._is_index():
            raise ValueError(f"{self.given[0]} holds vectors: pass --query TEXT to look among them.")
        if self.out is None and not self.json and not self.query:
            raise ValueError("There is nowhere to put the vectors: pass --out FILE.npy, or --json.")
        if self.out is not None and (self.out.suffix != ".npy" or not self.out.absolute().parent.is_dir()):
            raise ValueError(
                f"--out {self.out} cannot be written: expected a name that ends in .npy, in a folder there is."
            )
        if self._has_index() and self.out is not None:
            raise ValueError(f"{self.given[0]} holds vectors already: leave --out out.")
        if self.top < 1:
            raise ValueError(f"top is {self.top}: expected at least 1.")

    def _has_index(self) -> bool:
        return bool(self.query) and self._is_index()

    def _is_index(self) -> bool:
        return len(self.given) == 1 and self.given[0].endswith(".npy")

    def _texts(self) -> Iterable[str]:
        if len(self.given) > 1:
            raise ValueError(
                f"These are {len(self.given)} texts: put quotes around one, or pass a file with one a line."
            )
        texts = texts_of(self.given[0])
        if self.out is not None and isinstance(texts, Lines) and self.out.exists() and self.out.samefile(texts.path):
            raise ValueError(f"--out {self.out} holds the texts: choose another file.")
        return texts

    def _write_texts(self, encoder: Any, stream: Callable[..., Any], texts: Iterable[str], **how: Any) -> None:
        if self.out is not None:
            count = encoder.write(texts, self.out, truncate=self.truncate, track=track, **how)
            note(f"{count} vectors of {encoder.model.config.dim} numbers in {self.out}.")
            say_cut(encoder.tokenizer)
        if self.json:
            lines = iter(texts)
            for _, vectors in stream(texts, truncate=self.truncate, **how):
                for vector, text in zip(vectors, lines):
                    print(json.dumps({"text": text, "embedding": vector.tolist()}, ensure_ascii=False))
            if self.out is None:
                say_cut(encoder.tokenizer)

    def _pictures(self, encoder: Any, found: "Found") -> None:
        lost, normalize = list(found.lost), self.normalize is not False

        def given() -> Iterator[tuple[str, Any]]:
            for name, x in track(prepared(encoder, found), len(found.pictures)):
                if not isinstance(x, Exception):
                    yield name, x
                elif self.skip_unreadable:
                    lost.append(name)
                else:
                    raise x

        try:
            if self.out is None and not self.query:
                for some in batches(given(), 16):
                    images = [x for _, x in some]
                    self._print([name for name, _ in some], encoder.encode_images(images, normalize=normalize))
                return
            index = encoder.index(given(), self.out, normalize=normalize)
        finally:
            say_skipped(lost, len(found.pictures) + len(found.lost))
        if self.out is not None:
            note(f"{len(index.names)} vectors of {encoder.model.config.dim} numbers in {self.out}.")
        if self.query:
            self._search(encoder, index)
        elif self.json:
            self._print(index.names, index.vectors)

    def _print(self, names: Sequence[str], vectors: Any) -> None:
        for name, vector in zip(names, vectors):
            print(json.dumps({"picture": name, "embedding": vector.tolist()}, ensure_ascii=False))

    def _search(self, encoder: Any, index: Any) -> None:
        for query, found in zip(self.query, encoder.search(index, self.query, top=self.top, truncate=self.truncate)):
            if self.json:
                print(json.dumps({"query": query, "pictures": [vars(each) for each in found]}, ensure_ascii=False))
                continue
            print(_in_a_line(query))
            for each in found:
                print(f"  {each.score:7.4f}  {_in_a_line(each.picture)}")
        say_cut(encoder.tokenizer)


@dataclass
class Classify:
    """Label a text, or every line of a file, or pictures, with a model that was trained to; or pictures with labels of
    your own, with a CLIP.

    Example: scratchformers classify "What a film!" --model runs/labels/model --top 2

    Example: scratchformers classify photo.jpg --model runs/animals/model

    Example: scratchformers classify photos --model runs/animals/model --json --skip-unreadable

    Example: scratchformers classify photo.jpg --model openai/clip-vit-base-patch32 --labels "a cat, a dog"
    """

    given: Annotated[Positional[tuple[str, ...]], arg(name="text", metavar="TEXT|PICTURE", help_behavior_hint="")]
    """A text; or the path of a UTF-8 file with one a line. For a model that reads pictures: one, several, or a folder,
    list or packed file of them, as `train vit --data` takes."""
    model: Annotated[str, arg(metavar="SOURCE")]
    """A checkpoint with a head that knows labels, or a CLIP: a folder, a file of weights, or an id of the Hugging Face
    hub. Whether it reads texts or pictures, it says itself."""
    labels: Annotated[str | None, arg(metavar="A, B, ...")] = None
    """Of a CLIP: what to choose from, two labels or more, parted by commas. The shares of all sum up to 1."""
    labels_file: Annotated[Path | None, arg(metavar="FILE")] = None
    """Instead: a UTF-8 file with a label a line, which may hold commas."""
    templates: Annotated[str | None, arg(metavar="FILE")] = None
    """Of a CLIP: a UTF-8 file with a template a line, {} where the label goes, as `a photo of {}.`; or such a template;
    or imagenet, the 80 published with CLIP, read from open_clip where it is installed. The vectors that a label gets in
    them are averaged. By default those that `train` made captions of classes with, if it did; else five of our own:
    a photo of {}., a close photo of {}., a photo in which there is {}., a picture of {}., a drawing of {}."""
    pair: Annotated[str | None, arg(metavar="TEXT")] = None
    """The second text, for a model that was trained on pairs."""
    top: int = 5
    """How many labels to show of a text, or of a picture."""
    truncate: bool = False
    """Leave out the end of a text that is too long for the model, which is else an error."""
    skip_unreadable: bool = False
    """Leave out pictures that cannot be read, and name them at the end; by default the first of them stops all."""
    device: str = "auto"
    """cpu, cuda, mps, or auto."""
    json: bool = False
    """Print a JSON object a line: the text and its labels, or its words with theirs, or the picture and its labels."""

    def interrupted(self) -> str:
        return "the answers above are complete"

    def run(self) -> None:
        from scratchformers.tasks import ImageClassifier, ZeroShotClassifier, load_classifier, read_templates

        if not self.given:
            raise ValueError("There is nothing to classify: pass a text, or a picture.")
        # What cannot be is said before a model is fetched.
        labels = labels_of(self.labels, self.labels_file)
        if self.templates is not None:
            read_templates(self.templates)
        if self.templates is not None and labels is None:
            raise ValueError("--templates are for labels: pass these too, --labels.")
        if labels is not None:
            found = pictures_of(self.given, skip=self.skip_unreadable)
            chooser = ZeroShotClassifier.from_pretrained(self.model, device=auto_device(self.device))
            how: Any = {"templates": self.templates, "truncate": self.truncate}
            chooser.encode_labels(labels, **how, track=track)  # kept for all pictures
            self._pictures(partial(chooser, labels=labels, **how), chooser, found)
            say_cut(chooser.tokenizer)
            return
        pictures = pictures_of(self.given, skip=self.skip_unreadable) if any(map(names_picture, self.given)) else None
        load = load_classifier if pictures is None else ImageClassifier.from_pretrained
        classifier = load(self.model, device=auto_device(self.device))
        if not isinstance(classifier, ImageClassifier):
            self._texts(classifier)
            return
        if self.truncate:
            raise ValueError("--pair and --truncate are for texts: this model reads pictures, leave them out.")
        self._pictures(classifier, classifier, pictures or pictures_of(self.given, skip=self.skip_unreadable))

    def _texts(self, classifier: Any) -> None:
        if len(self.given) > 1:
            raise ValueError(
                f"These are {len(self.given)} texts: put quotes around one, or pass a file with one a line."
            )
        if self.skip_unreadable:
            raise ValueError("--skip-unreadable is for pictures: this model reads texts, leave it out.")
        texts: Any = texts_of(self.given[0])
        for some in batches(texts, 64):
            given = some if self.pair is None else [(text, self.pair) for text in some]
            for text, found in zip(some, classifier(given, top=self.top, truncate=self.truncate)):
                self._print(text, found, words=classifier.words)
        say_cut(classifier.tokenizer)

    def _pictures(self, answer: Callable[..., Any], classifier: Any, found: "Found") -> None:
        if self.pair is not None:
            raise ValueError("--pair and --truncate are for texts: this model reads pictures, leave them out.")
        lost, answered = list(found.lost), 0
        for some in batches(prepared(classifier, found), 16):
            stops = [i for i, (_, x) in enumerate(some) if isinstance(x, Exception) and not self.skip_unreadable]
            good = [(name, x) for name, x in some[: min(stops, default=None)] if not isinstance(x, Exception)]
            for (name, _), labels in zip(good, answer([x for _, x in good], top=self.top)):
                self._print(name, labels, kind="picture")
            if stops:
                raise some[stops[0]][1]
            lost += [name for name, x in some if isinstance(x, Exception)]
            answered += len(good)
        say_skipped(lost, answered + len(lost))
        if not answered:
            raise ValueError("None of the pictures could be read, so there is no answer: see above.")

    def _print(self, given: str, found: Any, *, words: bool = False, kind: str = "text") -> None:
        if self.json:
            what = "words" if words else "labels"
            print(json.dumps({kind: given, what: [vars(each) for each in found]}, ensure_ascii=False))
            return
        print(_in_a_line(given))
        for each in found:
            print(
                f"  {each.score:7.2%}  {each.label:16}  {each.word}" if words else f"  {each.score:7.2%}  {each.label}"
            )


@dataclass
class Translate:
    """Translate a text, or every line of a file, with an encoder-decoder; or say in short what it says, with one that
    was trained to.

    Example: scratchformers translate "Ein Hund." --model Helsinki-NLP/opus-mt-de-en

    Example: scratchformers translate --file lines.txt --out translated.txt --model runs/translation/model

    Example: scratchformers translate article.txt --task summarise --model facebook/bart-large-cnn --too-long truncate
    """

    model: Annotated[str, arg(metavar="SOURCE")]
    """A checkpoint of an encoder-decoder: a folder written by `train` or by transformers, or an id of the Hugging Face
    hub."""
    text: Annotated[Positional[str | None], arg(metavar="TEXT")] = None
    """A text; or the path of a UTF-8 file with one a line, of any length. Of an empty line the translation is empty."""
    file: Annotated[Path | None, arg(metavar="PATH")] = None
    """Instead of TEXT: such a file."""
    out: Annotated[Path | None, arg(metavar="PATH")] = None
    """Of a file: where the translations go, that of line k into line k, or with --json as JSON lines. By default they
    are printed. OUT.json beside it says what it was made of; the same command goes on with a run that was stopped."""
    task: Literal["translate", "summarise"] = "translate"
    """summarise: with the beams, lengths and rules that the checkpoint's config.json names for summaries
    (task_specific_params), where it does; else as it always decodes."""
    beams: int | None = None
    """How many texts a search follows at once; 1 takes the most probable token each time. By default as the checkpoint
    says, else 1."""
    nbest: int | None = None
    """Give the so many best translations, with their scores: the log probability of a token in the mean, or as the
    length penalty has it."""
    max_new_tokens: int | None = None
    """Tokens to write at most; by default as the checkpoint says, else all the room there is."""
    length_penalty: float | None = None
    """Of beams: above 0 longer texts are preferred, the more the larger it is; 1 compares means. By default as the
    checkpoint says, else 1."""
    temperature: float = 0.0
    """Above 0, tokens are drawn, the more freely the higher, and there are no beams."""
    top_k: int | None = None
    """Draw from the k most probable tokens only; needs a temperature above 0."""
    top_p: float | None = None
    """Draw from the smallest set of tokens that holds this much of the probability; needs a temperature above 0."""
    seed: int | None = None
    """Makes drawing repeatable; line i of a file, counted from 0, draws with seed + i."""
    too_long: Literal["error", "truncate", "split"] = "error"
    """What becomes of a text that the model cannot read whole. error: nothing is translated. truncate: its end is left
    out. split: it is translated in parts, cut at the ends of sentences, else between words."""
    source_language: Annotated[str | None, arg(metavar="CODE")] = None
    """The language of the text, where the vocabulary has several (mBART): de_DE, en_XX, ..."""
    target_language: Annotated[str | None, arg(metavar="CODE")] = None
    """The language to write, where the vocabulary has several: of mBART de_DE, en_XX, ..., of a Marian deu, eng, ..."""
    batch: int = 64
    """Lines of a file translated at once, those of like lengths together; fewer of long ones."""
    device: str = "auto"
    """cpu, cuda, mps, or auto."""
    json: bool = False
    """A JSON object for each text: text, translation, score; with --nbest text and translations (text, score)."""

    def interrupted(self) -> str:
        return "the same command goes on" if self.out else "the translations above are complete"

    def run(self) -> None:
        source = self._check()
        texts = texts_of(self.text or "") if source is None else Lines(source)
        from scratchformers.tasks import Translating, Translator

        settings = {
            name: getattr(self, name)
            for name in (
                *("beams", "nbest", "max_new_tokens", "length_penalty", "temperature", "top_k", "top_p", "seed"),
                *("too_long", "source_language", "target_language", "batch"),
            )
        }
        Translating(**settings)  # what cannot be is said before a model is fetched
        translator = Translator.from_pretrained(self.model, task=self.task, device=auto_device(self.device))
        total = translator.check(texts, name=str(texts.path) if isinstance(texts, Lines) else "", **settings)
        if source is not None and self.out is not None:
            self._write(translator, settings, source, self.out)
        else:
            lines = iter(texts)
            for found in translator.stream(texts, **settings):
                print(self._said(next(lines), found))
        if translator.unspelt:
            note(f"{translator.unspelt} of {total} texts hold what the vocabulary cannot spell: are they the language?")
        say_cut(translator.tokenizer)

    def _check(self) -> Path | None:
        """The file to be translated into another, if one is. ValueError for what cannot be, whatever the model."""
        if (self.text is None) == (self.file is None):
            what = "nothing" if self.file is None else "a text and a file"
            raise ValueError(f"There is {what} to translate: pass a text, or --file.")
        if self.temperature == 0 and (self.top_k is not None or self.top_p is not None):
            note("--top-k and --top-p act on drawing, which needs a --temperature above 0.")
        if self.text is not None and not self.text.strip():
            raise ValueError("The text is empty: there is nothing to translate.")
        texts = texts_of(str(self.file or self.text))
        if self.file is not None and not isinstance(texts, Lines):
            raise FileNotFoundError(f"There is no file {str(self.file)!r}: expected one with a text a line.")
        if self.out is None:
            return self.file
        if not isinstance(texts, Lines):
            raise ValueError("--out is for the lines of a file: leave it out to have a text's translation printed.")
        check_files(texts.path, self.out, what="texts")
        if self.nbest is not None and not self.json:
            raise ValueError("A line of --out holds one translation: for --nbest, have JSON lines (--json).")
        return texts.path

    def _write(self, translator: Any, settings: dict[str, Any], source: Path, out: Path) -> None:
        from scratchformers.tasks.translation import BLOCK

        asked = {**settings, "task": self.task, "json": self.json, "model": translator.digest()}
        job = LineByLine(source, out, asked, block=BLOCK)
        if job.done:
            rest = "that is all" if job.done == job.lines else "going on after them"
            note(f"{out} holds {job.done} of {job.lines} lines: {rest}.")
        with counting(job.lines, job.done) as advance:

            def answer(first: int, texts: list[str]) -> list[str]:
                found = translator.stream(texts, first=first, advance=advance, **settings)
                return [self._said(*each) if self.json else each[1].text for each in zip(texts, found)]

            for _ in job.run(answer):
                pass
        print(f"{job.done} lines translated in {out}.")

    def _said(self, text: str, found: Any) -> str:
        """As it is printed: the translation, or of several a line each below the text, or JSON."""
        if self.json:
            said = (
                {"translations": [vars(each) for each in found]}
                if isinstance(found, list)
                else {"translation": found.text, "score": found.score}
            )
            return json.dumps({"text": text, **said}, ensure_ascii=False)
        if not isinstance(found, list):
            return _in_a_line(found.text)
        return "\n".join([_in_a_line(text), *(f"  {each.score:9.4f}  {_in_a_line(each.text)}" for each in found)])


@dataclass
class Reconstruct:
    """Hide most of a picture and draw what a masked autoencoder paints there: original, masked, prediction, and the
    prediction pasted into what is visible.

    Example: scratchformers reconstruct photo.jpg --model runs/animals/model --mask 0.75 --seed 0 --out panel.png
    """

    picture: Annotated[Positional[tuple[str, ...]], arg(metavar="PICTURE", help_behavior_hint="")]
    """A picture; or several, or a folder of them: each becomes a row."""
    model: Annotated[str, arg(metavar="SOURCE")]
    """A checkpoint of an MAE with its decoder: a folder, a file of weights, or an id of the Hugging Face hub."""
    out: Annotated[Path, arg(metavar="FILE")]
    """Where to draw: .png, .svg or .pdf."""
    mask: Annotated[float, arg(metavar="PART")] = 0.75
    """The part of the patches that is hidden."""
    seed: int = 0
    """Draws which are, the same in every picture."""
    statistics: Literal["visible", "original"] = "visible"
    """For a model that paints patches less their mean, over their deviation (norm_pix_loss): what hidden patches get
    back. visible: mean and deviation of the visible patches around, so that nothing hidden is in the picture.
    original: their own, which is part of the answer; the picture says so."""
    skip_unreadable: bool = False
    """Leave out pictures that cannot be read, and name them; by default the first of them stops all."""
    device: str = "auto"
    """cpu, cuda, mps, or auto."""

    def interrupted(self) -> str:
        return "nothing was drawn"

    def run(self) -> None:
        check_drawing(self.out)
        from scratchformers.checkpoints.files import write_atomically
        from scratchformers.insight.pictures import drawable
        from scratchformers.painting import check_hiding, check_rows
        from scratchformers.tasks import Reconstructor

        check_hiding(self.mask, self.seed)
        found = pictures_of(self.picture, skip=self.skip_unreadable)
        check_rows(len(found.pictures))
        if self.out.exists() and any(each.path.exists() and each.path.samefile(self.out) for each in found.pictures):
            raise ValueError(f"--out {self.out} is one of the pictures: choose another file.")
        painter = Reconstructor.from_pretrained(self.model, device=auto_device(self.device))
        seen = list(prepared(painter, found))
        failed = [(name, x) for name, x in seen if isinstance(x, Exception)]
        if failed and not self.skip_unreadable:
            raise failed[0][1]
        given = [x for _, x in seen if not isinstance(x, Exception)]
        lost = [*found.lost, *(name for name, _ in failed)]
        say_skipped(lost, len(given) + len(lost))
        if not given:
            raise ValueError("None of the pictures could be read, so there is nothing to draw: see above.")
        how: Any = {"mask_ratio": self.mask, "seed": self.seed, "statistics": self.statistics}
        said = drawable(f"{self.model}: {self.mask:g} of the patches hidden, seed {self.seed}.")
        figure = painter.panel(given, **how, note=said)
        write_atomically(self.out, lambda path: figure.savefig(path, format=self.out.suffix[1:].lower()))


@dataclass(frozen=True)
class Asked:
    """One picture: how it is called in an answer, where it may lie, and what decodes it."""

    name: str
    path: Path
    decode: Callable[[], Any]


@dataclass(frozen=True)
class Found:
    """Pictures, and the names of those that could not be read and are to be skipped."""

    pictures: list[Asked]
    lost: list[str]


def names_picture(given: str) -> bool:
    """Whether this is a picture by its name: that of a file, or, without spaces, of a file that is missing."""
    from scratchformers.training.pictures import SUFFIXES

    return given.lower().endswith(SUFFIXES) and (os.path.isfile(given) or not re.search(r"\s", given))


def pictures_of(given: Sequence[str], *, skip: bool = False) -> Found:
    """Files, as they are called, and all pictures of folders, lists and packed files, each by its path from there;
    where several things were given, by a path that begins with theirs."""
    from scratchformers.training.pictures import SUFFIXES, read_pictures

    found = Found([], [])
    for each in given:
        path = Path(each)
        if not os.path.exists(each):
            raise FileNotFoundError(f"There is no file {each[:200]!r}: expected a picture, or a folder of them.")
        if path.suffix.lower() in SUFFIXES and path.is_file():
            found.pictures.append(_file_of(each, decode=not skip and len(given) == 1))
            continue
        pictures = read_pictures(path, labelled=False, unreadable="skip" if skip else "stop")
        place = path if path.is_dir() else path.parent
        called = (lambda name: name) if len(given) == 1 else (lambda name, place=place: (place / name).as_posix())
        names = map(pictures.name, range(len(pictures)))
        found.pictures.extend(
            Asked(called(name), place / name, partial(pictures.image, i)) for i, name in enumerate(names)
        )
        found.lost.extend(map(called, pictures.skipped))
    return found


def _file_of(path: str, *, decode: bool) -> Asked:
    """A single picture is decoded at once: that it cannot be is said before a model is fetched."""
    from scratchformers.images import open_picture

    image = open_picture(path) if decode else None
    return Asked(path, Path(path), lambda: open_picture(path) if image is None else image)


def holds_pictures(given: str) -> bool:
    """Whether this is a folder, a list or a packed file, in which a model of pictures would look for them."""
    from scratchformers.training.pictures import IDX, LISTS

    packed = given.lower().endswith((*LISTS, ".npz")) or IDX.search(given)
    return os.path.isdir(given) or bool(packed and os.path.isfile(given))


def prepared(task: Any, found: Found) -> Iterator[tuple[str, Any]]:
    """Of each picture its name, and what the model is to read, or the error that names it; made ahead, in threads."""
    from scratchformers.tasks import read_ahead

    def prepare(each: Asked) -> tuple[str, Any]:
        try:
            return each.name, task.prepare(each.decode())
        except (ValueError, OSError) as error:
            return each.name, error if each.name in str(error) else ValueError(f"{each.name}: {error}")

    return read_ahead(prepare, found.pictures)


def labels_of(text: str | None, file: Path | None) -> list[str] | None:
    """What a CLIP is to choose from; None where nothing is said of it. ValueError for what cannot be."""
    from scratchformers.tasks import check_labels

    if text is not None and file is not None:
        raise ValueError("--labels and --labels-file are both given: expected one of them.")
    if file is not None and not file.is_file():
        raise FileNotFoundError(f"There is no file {str(file)!r}: expected one with a label a line.")
    if file is not None:
        return check_labels([*Lines(file)])
    return None if text is None else check_labels(text.split(","))


def check_drawing(out: Path) -> None:
    """An error unless a picture can be drawn there."""
    if out.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ValueError(f"--out {out} is no picture: its name must end in .png, .svg or .pdf.")
    if not out.absolute().parent.is_dir():
        raise FileNotFoundError(f"The folder of --out {out} does not exist: make it first.")


@dataclass(frozen=True)
class Lines:
    """The lines of a UTF-8 file without their ends, which can be gone through again and again."""

    path: Path

    def __iter__(self) -> Iterator[str]:
        try:
            with self.path.open(encoding="utf-8-sig") as file:
                for line in file:
                    yield line.removesuffix("\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path} is not UTF-8 ({error.reason}): convert it.") from None


def _in_a_line(text: str) -> str:
    """As it stands, but for breaks: an answer is a line."""
    return text.replace("\r", "\\r").replace("\n", "\\n")


def texts_of(given: str) -> Iterable[str]:
    """The text itself, or the lines of the file of this name. What ends like a file and has no spaces is a name."""
    try:
        found = Path(given).is_file()
    except (OSError, ValueError):  # a long text, or one with a zero in it, is no name
        found = False
    if not found and re.fullmatch(r"\S+\.(txt|tsv|csv|jsonl?|npy|md)", given):
        raise FileNotFoundError(f"{given} does not exist: pass a text, or the path of a file with one a line.")
    if found and Path(given).suffix in (".tsv", ".csv", ".jsonl"):
        raise ValueError(f"{given} is a table: pass plain text, one a line (`eval --data` reads labelled tables).")
    if found and next(iter(Lines(Path(given))), None) is None:
        raise ValueError(f"{given} holds no texts: write one a line.")
    return Lines(Path(given)) if found else [given]


def say_cut(tokenizer: Any) -> None:
    """After --truncate: of how many texts the end was left out."""
    if tokenizer.cut:
        note(f"{tokenizer.cut} {'text was' if tokenizer.cut == 1 else 'texts were'} too long, and cut.")


def batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    left = iter(items)
    while some := list(islice(left, size)):
        yield some


@dataclass
class Train:
    """Train a model on your own data. The result, OUT/model, is what --model and `load` take.

    Example: scratchformers train gpt2 --data book.txt --out runs/book

    Example: scratchformers train bert --task classify --data train.tsv --valid dev.tsv --from SOURCE --out runs/labels

    Example: scratchformers train vit --data FOLDER --out runs/classes

    Example: scratchformers train clip --data captions.tsv --from SOURCE --freeze image --out runs/pairs

    Example: scratchformers train encoder-decoder --data train.de,train.en --tokenizer bpe --out runs/german
    """

    recipe: Positional[Literal["gpt2", "bert", "vit", "mae", "clip", "encoder-decoder"]]
    """What to train. gpt2 learns to write; bert to say what is hidden in a text, or what its --task says; vit which
    class a picture is of; mae to paint what is hidden of it; clip which caption belongs to which picture;
    encoder-decoder to translate, or whatever else makes a text of a text."""
    out: Annotated[Path, arg(metavar="DIR")]
    """The run's folder: config.json, log.jsonl, loss.png, checkpoints/, model/, and of pictures pictures/."""
    task: Annotated[str | None, arg(metavar="NAME")] = None
    """Of bert. classify: a label for each text. tokens: a label for each word."""
    data: Annotated[str | None, arg(metavar="PATH")] = None
    """A UTF-8 text file, a .jsonl file with a `text` a line, a folder of both, or a data set of the Hugging Face hub:
    hf:NAME[,config=...][,split=train][,column=text].
    Each file, line or row is a document: they are packed, an end token between them, without padding.
    For --task classify a .tsv, .csv or .jsonl file with the columns `text` and `label` (and `pair`, a second text).
    For --task tokens a file with a word a line, its label in the last column, and an empty line between sentences.
    For vit a folder with a folder of pictures for each class, a .csv or .tsv list with the columns `path` and `label`,
    an .npz file, or MNIST's idx files; for mae pictures without classes.
    For clip a .tsv, .csv or .jsonl list with the columns `path` and `caption` (several lines, or in JSON lines a list,
    for a picture with several), a folder that holds such a list named captions, an .npz file with `captions` beside its
    pictures, or what vit takes: then captions are made of the classes, by --set template and --set names.
    For encoder-decoder a .tsv, .csv or .jsonl file with the columns `source` and `target`, a .tsv whose first line is a
    pair already (two fields, a space in one), or two files of lines, a comma between them: --data train.de,train.en."""
    valid: Annotated[str | None, arg(metavar="PATH")] = None
    """Data to validate on, in the same form; by default the last tenth of a text, and of examples a tenth drawn."""
    column: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="text=NAME")] = ()
    """With --task classify: the name of the column of text, label or pair, where it is another; of clip that of path or
    caption; of encoder-decoder that of source or target. May be repeated."""
    truncate: bool = False
    """With a --task, and of clip and encoder-decoder: leave out the end of a text too long for the model, which is else
    an error."""
    skip_unreadable: bool = False
    """Of pictures: leave out those that cannot be read, and count and list them; else they end the run."""
    preset: str | None = None
    """tiny (the default: a minute on two cores), mini, small, and of gpt2 distilgpt2, gpt2, gpt2-medium, gpt2-large,
    gpt2-xl, of bert simple (no [CLS], no [SEP]), minilm, medium, base, large; of vit and mae tiny and simple (no class
    token), of vit tiny-PATCH, small-PATCH, base-PATCH, large-PATCH, huge-PATCH (8, 14, 16 or 32), of mae base, large,
    huge, of encoder-decoder bart-base, bart-large, mbart-large, opus-mt, of clip ViT-B/32, ViT-B/16, ViT-L/14,
    ViT-L/14@336px (OpenAI's, with QuickGELU), ViT-S-PATCH, ViT-B-PATCH, ViT-L-PATCH, ViT-H-PATCH.
    With --from there is one, finetune: 400 steps (600 with a --task), a low lr, the sizes of the source."""
    source: Annotated[str | None, arg(name="from", metavar="SOURCE")] = None
    """Fine-tune this checkpoint, given as for --model, instead of starting anew. Its tokeniser comes with it."""
    freeze: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="PART")] = ()
    """With --from: a part that does not learn, by the beginning of its parameters' names (token, patches, blocks.0, of
    clip image or text), or encoder: all but the head (of clip the projections and the scale), which is then a probe of
    what the rest knows. May be repeated."""
    lora: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="KEY=VALUE")] = ()
    """With --from: learn by adapters beside the linears of its blocks, which stay as they are. rank=8 is their size;
    repeated, alpha=16 (what they add is multiplied by alpha / rank), dropout=0.1 of their input, and for some alone
    linears=q,kv (or out, up, down). OUT/model has them merged, OUT/adapter has them alone, as PEFT reads them."""
    tokenizer: Annotated[str | None, arg(metavar="NAME")] = None
    """`characters` (the default), `bpe` (for gpt2 and encoder-decoder; the default of clip) or `wordpiece` (for bert),
    learnt from the text trained on, or a folder or file with a tokeniser."""
    vocab: int | None = None
    """The ids of --tokenizer bpe or wordpiece at most; 8000 unless told, of clip's tiny 2048, of encoder-decoder's tiny
    512 and mini 2000."""
    set: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="KEY=VALUE")] = ()
    """A setting (steps, batch, length, lr, seed, autocast, ...) or a field of the model (dim, depth, heads,
    dropout). May be repeated. bert has masked=0.15, whole_words=true and cased=true (of a wordpiece learnt) beside.
    vit and mae have image, patch, channels of the model, and crop, shift, flip, randaugment; vit label_smoothing,
    mixup, cutmix, erasing, drop_path; mae mask_ratio. clip has these of pictures and the model too, the sizes of
    its towers (image_dim, text_dim, ...), and template and names: several parted by |, or a file with one a line.
    encoder-decoder has tokens=2048 of both sides a step, of like lengths together, in the place of batch; smoothing=0.1
    of labels, scored=200 validation sources translated as it learns, joint=false for a tokeniser of either side;
    schedule=noam instead of cosine and ema=0.999, which all have, are often used with it.
    optimizer=muon learns the matrices of the blocks by Muon, and the rest, as else all, by AdamW.
    With micro_batch, a large batch fits a small memory: with the same gradient, also for clip. Of many processes, which
    torchrun starts, batch is what all take together, micro_batch what one computes at once, and shard=true lays
    weights, gradients and the optimiser's state in parts over them.
    Of faults all have keep=2 (checkpoints kept), keep_best=true (that of the best evaluation as well), nan_limit=10
    (steps in a row that may be skipped where the loss or the gradient is no number; their batches are in OUT/faults),
    spike=6 (back to the last checkpoint, and past the data since, where the loss is so many standard deviations above
    the mean of the last 50).
    length is the window, and from scratch the model's positions; with --from, at most those: less takes less time.
    With --from, only dropout may differ of the model, and of one of pictures image and pool."""
    seed: int | None = None
    """The same as --set seed=..."""
    resume: bool = False
    """Go on with the run in OUT. Nothing else need be given; --set keep, keep_best, micro_batch, nan_limit, spike and
    workers may be others than before."""
    changed_data: bool = False
    """With --resume: go on although the data, or what is validated on, is not what the run began with. An epoch of it
    begins."""
    log: Annotated[UseAppendAction[tuple[Literal["tensorboard", "trackio", "wandb"], ...]], arg(metavar="NAME")] = ()
    """Beside OUT/log.jsonl, tell the numbers of each step to tensorboard (in OUT/tensorboard), trackio or wandb, which
    are to be installed. May be repeated. One that fails does not end the run."""
    device: str | None = None
    """cpu, cuda, mps, or auto (a GPU where there is one); by default the run's own, or auto."""

    def interrupted(self) -> str:
        return f"`scratchformers train {self.recipe} --out {self.out} --resume` goes on from the last checkpoint"

    def run(self) -> int | None:
        given = dict(_pair(text) for text in self.set)
        if self.seed is not None and given.setdefault("seed", str(self.seed)) != str(self.seed):
            raise ValueError(f"--seed {self.seed} and --set seed={given['seed']} differ: give one of them.")
        if self.truncate and self.task is None and self.recipe not in ("clip", "encoder-decoder") and not self.resume:
            raise ValueError(
                "--truncate is for labelled texts, which have a --task: other text is cut into windows anyway."
            )
        if self.truncate:
            given["truncate"] = "true"
        if self.skip_unreadable:
            given["skip_unreadable"] = "true"
        columns = dict(_pair(text, "--column") for text in self.column)
        begun = saved_facts(self.out) if self.resume else {}
        same = begun.get("processes", 1) == int(os.environ.get("WORLD_SIZE", "1"))
        threads = fix_threads((begun.get("settings", {}).get("threads") if same else None) or given.get("threads"))
        from scratchformers.training import processes, tracking
        from scratchformers.training.request import Request
        from scratchformers.training.runs import open_run

        trackers = tracking.check(self.log)
        request = Request(
            self.recipe, self.out, self.data, self.valid, self.preset, self.source, self.tokenizer, self.vocab, given,
            device=auto_device(processes.own_device(self.device or str(begun.get("device") or "auto"))),
            threads=threads, task=self.task, columns=columns, freeze=self.freeze,
            lora=dict(_pair(text, "--lora") for text in self.lora),
        )  # fmt: skip
        with processes.joined(request.device):
            with preparing() as watch:
                asked = dataclasses.replace(request, watch=watch if processes.leads() else request.watch)
                run, notes = open_run(asked, resume=self.resume, changed_data=self.changed_data)
            with contextlib.nullcontext() if processes.leads() else silent():
                for sentence in notes:
                    print(sentence)
                return None if run.finished else self._train(run, trackers if processes.leads() else {})

    def _train(self, run: Any, trackers: dict[str, Any]) -> int | None:
        """Shows the run. The exit status is None at its end, and that of a program ended by a signal where it was
        stopped, saved or not."""
        from scratchformers.training.faults import is_of_memory, less_memory
        from scratchformers.training.tracking import tracked

        failed = False
        try:
            with saving_first(run) as signals, tracked(trackers, run.folder, run.step, note) as tell:
                show(run, tell)
        except KeyboardInterrupt:
            note(f"left without saving; {self.interrupted()}.")
            sys.stdout.flush()
            os._exit(130)  # threads that read examples ahead are not waited for
        except (RuntimeError, MemoryError) as error:
            if not run.at_once or not is_of_memory(error):
                raise
            failed = True
        if failed:  # and what the step held is free again
            note(less_memory(run.at_once, _fitting(run)))
            if "RANK" in os.environ:  # the others wait for this one, and should not for long
                raise SystemExit(2)
            return 2
        if not run.finished:
            print(f"Stopped at step {run.step} of {run.settings.steps}, and saved: {self.interrupted()}.")
            return 128 + (signals[0] if signals else signal.SIGTERM)  # another process may have been told
        print(f"Best validation {run.achieved}: {self.out / 'model'}. The curve: {self.out / 'loss.png'}.")
        return None


def _fitting(run: Any) -> int | None:
    """Rows at once, at most half as many as its last step took, with which a run fits the memory there is, as the plan
    has it; None where there is no plan of it, as for one of several processes."""
    from scratchformers.insight.plan import Asked, fitting

    settings, config = run.settings, run.task.model.config
    length = settings.length if settings.length and hasattr(config, "length") else None
    rows, half = max(run.size, run.at_once), math.ceil(run.at_once / 2)
    asked = Asked("", rows, half, length, settings.autocast, run.device.type, bool(settings.ema))
    with contextlib.suppress(ValueError, RuntimeError, MemoryError):
        return fitting(run.task.model, asked, way_of(settings)) if "RANK" not in os.environ else None
    return None


def way_of(settings: Any, adapters: Mapping[str, Any] | None = None) -> Any:
    """In which a run with these settings learns, for its plan."""
    from scratchformers import lora
    from scratchformers.insight.plan import Way
    from scratchformers.training.checkpointing import checkpoint_blocks
    from scratchformers.training.loop import make_optimizer

    def prepare(model: Any) -> None:
        if adapters:
            lora.add(model, **adapters)
        if settings.checkpointing:
            checkpoint_blocks(model)

    return Way(prepare, lambda model: make_optimizer(model, settings))


@contextlib.contextmanager
def saving_first(run: Any) -> Iterator[list[int]]:
    """Within it the first Ctrl-C, or SIGTERM, lets the run save and end after its step, and the second is a
    KeyboardInterrupt. Gives those that came."""
    came: list[int] = []

    def stop(number: int, frame: Any) -> None:
        came.append(number)
        if len(came) > 1:
            run.leave()
            raise KeyboardInterrupt
        run.stop()
        if os.environ.get("RANK", "0") != "0":
            return
        said = b"\nscratchformers: saving after this step; once more (Ctrl-C), and it leaves at once.\n"
        os.write(2, said)  # print is not to be called here: it may be what was interrupted

    before = {each: signal.signal(each, stop) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@dataclass
class Plan:
    """What training a model takes, before it is begun: parameters, arithmetic, memory, time, and how many rows fit at
    once. Memory is what steps hold at most beside the Python interpreter, counted by playing one through
    without values.

    Example: scratchformers plan gpt2 --preset gpt2 --batch 8 --length 1024 --device cpu
    """

    recipe: Positional[Literal["gpt2", "bert", "vit", "mae", "clip", "encoder-decoder"]]
    """What is to be trained, as for `train`: bert from text alone."""
    preset: str = "tiny"
    """Its sizes, as for `train`."""
    batch: int = 16
    """Rows a step."""
    micro_batch: int | None = None
    """Rows at once; by default all of them."""
    length: int | None = None
    """Of a row, in tokens, none of which is padding; by default all positions of the model."""
    autocast: Literal["off", "bf16", "fp16"] = "off"
    """As the setting of `train`."""
    checkpointing: bool = False
    """As the setting of `train`: blocks compute their activations twice, and hold a part of them."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """As the setting of `train`."""
    ema: bool = False
    """As the setting of `train`, where it is a number: a moving average of what learns is kept too."""
    lora: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="KEY=VALUE")] = ()
    """As `train` has it: rank=8, linears=q,kv. May be repeated."""
    memory: float | None = None
    """GiB that may be used; by default what is free now. Of it 15 % are left for what the plan may be wrong by."""
    device: str = "auto"
    """cpu, cuda, mps, or auto (a GPU where there is one). Memory is counted for the kernels of a CPU."""
    json: bool = False
    """Print a JSON object: memory in bytes, time in seconds."""

    def interrupted(self) -> str:
        return "nothing was planned"

    def run(self) -> None:
        if self.batch < 1:
            raise ValueError(f"--batch is {self.batch}: expected at least 1.")
        if self.memory is not None and not 0 < self.memory < math.inf:
            raise ValueError(f"--memory is {self.memory}: expected GiB, more than 0.")
        fix_threads(None)
        from scratchformers import lora
        from scratchformers.insight.plan import Asked, plan
        from scratchformers.training.loop import Settings

        rows = self.batch if self.micro_batch is None else self.micro_batch
        asked = Asked(self.preset, self.batch, rows, self.length, self.autocast, auto_device(self.device), self.ema)
        adapters = lora.read(dict(_pair(text, "--lora") for text in self.lora)) if self.lora else {}
        settings = Settings(optimizer=self.optimizer, checkpointing=self.checkpointing)
        found = plan(self.recipe, asked, memory=self.memory, way=way_of(settings, adapters))
        if self.json:
            more = {"checkpointing": self.checkpointing, "optimizer": self.optimizer, "lora": adapters}
            print(json.dumps(found.to_json() | more))
        else:
            print("\n".join(_told(found, self.checkpointing)))


def _told(found: Any, checkpointing: bool) -> Iterator[str]:
    """A plan, in lines."""
    asked, (name, size) = found.asked, ("GiB", 2**30) if found.memory["peak"] >= 2**30 else ("MiB", 2**20)
    sizes = {part: f"{held / size:8.2f} {name}" for part, held in found.memory.items()}
    at_once = "" if asked.micro_batch == asked.batch else f", {asked.micro_batch} at once"
    learning = "" if found.learning == found.parameters else f", of which {found.learning:,} learn"
    yield f"{found.model} {asked.preset}: {found.parameters:,} parameters{learning}; {asked.batch} rows a step{at_once}"
    notes = {"holes": "  (between what is allocated, where nothing fits)", "average": "  (of the weights: ema)"}
    for part in ("weights", "gradients", "optimizer", "average", "activations", "holes"):
        if found.memory[part] or part != "average":
            yield f"  {part:12}{sizes[part]}{notes.get(part, '')}"
    yield f"  {'at most':12}{sizes['peak']}  (not all at one time; temporaries counted)"
    speed, width = found.flops_a_second / 1e9, found.bytes_a_second / 1e9
    yield f"A step is {found.flops / 1e9:,.1f} GFLOP, and moves {found.moved / 1e9:,.1f} GB besides: at the"
    seconds = f"{found.seconds:.2g}" if found.seconds < 100 else f"{round(found.seconds, -1):,.0f}"
    yield f"{speed:,.0f} GFLOP/s and {width:,.0f} GB/s measured here it takes about {seconds} s, an estimate."
    limit = f"{found.limit / 2**30:.2f} GiB"
    if found.fits is None:
        less = "a smaller model or length" + ("" if checkpointing else ", or --checkpointing")
        yield f"Not even one row at a time is sure to fit {limit}: take {less}."
    else:
        rows = "all rows at once fit" if found.fits == asked.batch else f"micro_batch={found.fits} fits"
        yield f"Of {limit}, {rows}."


@dataclass
class Compare:
    """Say whether a run's loss is normal: draw its curve beside the band of runs of the same recipe, which differ by
    their seeds alone, and say in a sentence where it stands.

    Example: scratchformers compare runs/book

    Example: scratchformers compare runs/mine --against runs/seed-1 --against runs/seed-2 --against runs/seed-3
    """

    folder: Annotated[Positional[Path], arg(name="run", metavar="RUN")]
    """The run's folder, which `train` wrote; it may still be going on."""
    reference: Annotated[Path | None, arg(metavar="FILE")] = None
    """Compare with this file, which --save wrote, and not with what comes with the program: gpt2, bert (with its
    tasks), vit, mae, clip and encoder-decoder, all of --preset tiny, on the data and with the settings of `demo`."""
    against: Annotated[UseAppendAction[tuple[Path, ...]], arg(metavar="RUN")] = ()
    """Compare with runs of your own, of one recipe and with the same settings but for the seed. To be repeated; a band
    is made of at least two, and five are better."""
    save: Annotated[Path | None, arg(metavar="FILE")] = None
    """With --against: write what they have in common to FILE, for --reference."""
    out: Annotated[Path | None, arg(metavar="FILE.png")] = None
    """Where the picture goes; by default RUN/compare.png."""
    json: bool = False
    """Print a JSON object: step, loss, band, where (within, above, below), left (the step at which it left the band, or
    null), the same of validation, what is other than in the reference, and the sentence."""

    def interrupted(self) -> str:
        return "nothing was compared"

    def run(self) -> None:
        from scratchformers.checkpoints import files
        from scratchformers.training import compare

        if self.reference is not None and self.against:
            raise ValueError("--reference and --against are two references: leave one of them out.")
        if self.save is not None and not self.against:
            raise ValueError("--save writes what --against makes: pass runs to make it of.")
        run = compare.read_run(self.folder)
        if self.against:
            if self.folder.absolute() in [folder.absolute() for folder in self.against]:
                raise ValueError(f"{self.folder} is in the band it is compared with: leave it out of --against.")
            reference = compare.make_reference([compare.read_run(folder) for folder in self.against])
        elif self.reference is not None:
            reference = compare.read_reference(self.reference)
        else:
            reference = compare.find_reference(run.facts)
        standing = compare.compare(run, reference)
        if self.save is not None:
            files.write_json(self.save, reference)
        picture = self.folder / "compare.png" if self.out is None else self.out
        compare.draw(standing, picture)
        print(json.dumps(standing.to_json() | {"picture": str(picture)}) if self.json else standing.sentence())


@dataclass
class Eval:
    """Measure a model: its loss on a text, how well it tells hidden tokens or labels, LAMBADA, HellaSwag; of one that
    reads pictures how well it tells their classes, paints what is hidden, or finds captions, or what its features are
    worth; of an encoder-decoder how well it translates.

    Example: scratchformers eval --model runs/book/model --data other-book.txt

    Example: scratchformers eval --model runs/animals/model --data animals/test

    Example: scratchformers eval --model runs/mae/model --task knn --train animals/train --data animals/test

    Example: scratchformers eval --model runs/pairs/model --task retrieval --data test/captions.tsv

    Example: scratchformers eval --model runs/german/model --data test.de,test.en --beams 4
    """

    model: Annotated[str, arg(metavar="SOURCE")]
    """A checkpoint: a folder written by `train` or by transformers, a file of weights, or an id of the Hugging Face
    hub."""
    data: Annotated[str, arg(metavar="PATH")]
    """What `train --data` takes for the task; each document of text is scored by itself. For lambada and hellaswag, a
    file of JSON lines. For a model of pictures a folder, list or packed file, with classes unless they are to be
    painted; classes are matched to the model's by name. A folder of packed files means those to train on: pass the
    file that is to be measured on itself."""
    task: (
        Literal["text", "masked", "classify", "tokens", "lambada", "hellaswag", "knn", "probe", "paint"]
        | Literal["zero-shot", "retrieval", "translate"]
        | None
    ) = None
    """By default what the model was trained for.
    text: loss in nats a token, perplexity, bits a byte. masked: loss and accuracy on hidden tokens.
    classify, tokens: accuracy on labels, and for words F1; of pictures the share whose class is the first, and, where
    there are more than five, among the first five.
    paint: mean squared error over hidden patches, the same every time.
    knn, probe: how well classes are told from the features of pictures alone, whatever the model was trained for, by
    the votes of the 20 nearest pictures of --train (as DINO), or by a logistic regression fitted to them.
    zero-shot: of a CLIP as classify, the labels being the names of the classes. retrieval: of a CLIP and pictures with
    captions, as `train clip --data` takes them, how many are found by the other among the first 1, 5 and 10.
    translate: of pairs, as `train encoder-decoder --data` takes them, BLEU and chrF as sacrebleu counts them, where it
    is installed, and the share of translations that are the reference.
    lambada: JSON lines with a `text`, whose last word is to be predicted. hellaswag: JSON lines as published.
    Both follow EleutherAI's lm-evaluation-harness."""
    train: Annotated[str | None, arg(metavar="DATA")] = None
    """With knn and probe: the labelled pictures that are compared with, or learnt from. It must have every class."""
    pool: Literal["class", "mean"] | None = None
    """With knn and probe: the features are the state of the class token, or the mean of the patches' states. By default
    what a ViT's head reads, and of an MAE the mean."""
    mask: Annotated[float | None, arg(metavar="PART")] = None
    """With paint: the part of the patches that is hidden; by default 0.75."""
    labels: Annotated[str | None, arg(metavar="A, B, ...")] = None
    """With zero-shot: what the classes are called, in the order of their own names, parted by commas."""
    labels_file: Annotated[Path | None, arg(metavar="FILE")] = None
    """Instead: a UTF-8 file with one a line."""
    templates: Annotated[str | None, arg(metavar="FILE")] = None
    """With zero-shot: what a label is put into, as for `classify`."""
    beams: int | None = None
    """With translate: how many texts a search follows at once; by default as the checkpoint says, else 1."""
    source_language: Annotated[str | None, arg(metavar="CODE")] = None
    """With translate: the language of the sources, where the vocabulary has several, as for `translate`."""
    target_language: Annotated[str | None, arg(metavar="CODE")] = None
    """With translate: the language to write, where the vocabulary has several."""
    length: int | None = None
    """Tokens a window of text holds; by default as many as the model has positions."""
    stride: int | None = None
    """Of text, tokens by which the window moves on; by default half of it.
    Each token is scored once, with at least length - stride tokens before it, where there are as many."""
    batch: int | None = None
    """Windows, or examples, computed at once: by default 8, and 32 pictures or translations."""
    column: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="text=NAME")] = ()
    """Of labelled texts: the name of the column of text, label or pair, where it is another; of captions that of path
    or caption; of pairs that of source or target. May be repeated."""
    truncate: bool = False
    """Leave out the end of a labelled text, label, caption or source that is too long for the model, which is else an
    error."""
    skip_unreadable: bool = False
    """Leave out pictures that cannot be read, and name them at the end; by default the first of them stops all."""
    device: str = "auto"
    """cpu, cuda, mps, or auto."""
    json: bool = False
    """Print a JSON object: the task, the model, the data and the figures."""

    def interrupted(self) -> str:
        return "nothing was measured"

    def run(self) -> None:
        from scratchformers import load, load_tokenizer
        from scratchformers.checkpoints import hub
        from scratchformers.training.documents import read_texts

        self._check_options(self.task)
        if self.task in ("text", "masked"):
            read_texts(self.data)  # what cannot be is said before a model is fetched
        source = hub.find(self.model)  # once, so that a model and what prepares its input are of one commit
        model = load(source, device=auto_device(self.device))
        task = self.task or _task_of(model)
        self._check_options(task)
        if not _suits(task, model):
            raise ValueError(f"{self.model} holds a {type(model).__name__}, which was not made for {task}: see --task.")
        sees = hasattr(model.config, "image")
        score = self._see(task, model, source) if sees else self._measure(task, model, load_tokenizer(source))
        self._print(task, {name: _finite(value) for name, value in vars(score).items()})

    def _print(self, task: str, figures: dict[str, Any]) -> None:
        if self.json:
            given = {"train": self.train} if self.train is not None else {}
            print(json.dumps({"task": task, "model": self.model, "data": self.data, **given, **figures}))
            return
        for name, value in figures.items():
            shown = f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value
            if not (name in ABSENT and value is None):
                print(f"{name.replace('_', ' '):20}{'infinite' if value is None else shown}")

    def _check_options(self, task: str | None) -> None:
        self._check_window(task)
        options: dict[str, tuple[str, ...]] = {"train": FEATURES, "pool": FEATURES, "mask": ("paint",)}
        options |= dict.fromkeys(("beams", *LANGUAGES), ("translate",))
        options |= dict.fromkeys(("labels", "labels_file", "templates"), ("zero-shot",))
        for name, tasks in options.items():
            if getattr(self, name) is not None and task not in (None, *tasks):
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag} is for {' and '.join(tasks)}: leave it out for {task}.")
        if task in FEATURES and self.train is None:
            raise ValueError(f"There is nothing that {task} could learn classes from: pass labelled pictures, --train.")
        if self.train is not None and os.path.realpath(self.train) == os.path.realpath(self.data):
            raise ValueError(f"--train and --data are both {self.data}: expected other pictures than are measured on.")

    def _check_window(self, task: str | None) -> None:
        if task not in (None, "text", "masked") and (self.length is not None or self.stride is not None):
            raise ValueError(f"--length and --stride move a window over a text: leave them out for {task}.")
        if task == "masked" and self.stride is not None:
            raise ValueError("The windows of masked stand side by side: leave --stride out.")
        if task not in (None, "classify", "tokens", "translate", *MATCHING) and (self.column or self.truncate):
            raise ValueError(f"--column and --truncate are for labelled texts: leave them out for {task}.")
        if task == "zero-shot" and self.column:
            raise ValueError("--column is for lists of captions: leave it out for zero-shot.")

    def _measure(self, task: str, model: Any, tokenizer: Any) -> Any:
        from scratchformers import evaluation
        from scratchformers.training.documents import read_texts

        if self.skip_unreadable:
            raise ValueError("--skip-unreadable is for pictures: this model reads texts, leave it out.")
        if task == "translate":
            return self._translate(model, tokenizer)
        sizes: dict[str, Any] = {"batch": 8 if self.batch is None else self.batch, "track": track}
        if task == "text":
            texts, windows = read_texts(self.data), {"length": self.length, "stride": self.stride}
            return evaluation.evaluate_text(model, tokenizer, texts, **windows, **sizes)
        if task == "masked":
            return evaluation.evaluate_masked(model, tokenizer, read_texts(self.data), length=self.length, **sizes)
        if task in ("classify", "tokens"):
            given = {"columns": dict(_pair(text, "--column") for text in self.column), "truncate": self.truncate}
            return evaluation.evaluate_labels(model, tokenizer, self.data, **given, **sizes)
        by_name = {"lambada": evaluation.evaluate_lambada, "hellaswag": evaluation.evaluate_hellaswag}
        return by_name[task](model, tokenizer, self.data, **sizes)

    def _translate(self, model: Any, tokenizer: Any) -> Any:
        from scratchformers import evaluation
        from scratchformers.tasks import Translator
        from scratchformers.text import check_belongs
        from scratchformers.training.parallel import read_parallel
        from scratchformers.training.scoring import MISSING

        pairs = read_parallel(self.data, dict(_pair(text, "--column") for text in self.column))
        check_belongs(tokenizer, model)
        how: dict[str, Any] = {"beams": self.beams, "truncate": self.truncate, "track": track}
        how |= {"batch": 32 if self.batch is None else self.batch, **{name: getattr(self, name) for name in LANGUAGES}}
        score = evaluation.evaluate_translation(Translator(model, tokenizer), pairs, **how)
        if score.bleu is None:
            note(MISSING)
        say_cut(tokenizer)
        return score

    def _see(self, task: str, model: Any, source: Path) -> Any:
        from scratchformers import evaluation, features, load_preprocess

        if task in MATCHING:
            return self._match(task, model, source)
        if self.column or self.truncate:
            raise ValueError("--column and --truncate are for texts: this model reads pictures, leave them out.")
        lost: dict[int, str] = {}
        train_lost: dict[int, str] = {}
        preprocess = load_preprocess(source, model=model).sized(model.config.image)
        how: dict[str, Any] = {"batch": 32 if self.batch is None else self.batch, "track": track}
        pictures, skip = self._pictures(self.data, labelled=task != "paint"), self.skip_unreadable
        if task in FEATURES:
            train = self._pictures(self.train or "", labelled=True)
            how |= {"train": train, "pool": self.pool, "left_out": (lost, train_lost) if skip else None}
            how["judge"] = features.knn if task == "knn" else partial(features.linear_probe, seed=0)
            score = features.evaluate_features(model, pictures, preprocess, **how)
            say_skipped([*train.skipped, *map(train.name, train_lost)], len(train) + len(train.skipped))
        elif task == "classify":
            score = evaluation.evaluate_pictures(model, pictures, preprocess, **how, left_out=lost if skip else None)
        else:
            how["mask_ratio"] = 0.75 if self.mask is None else self.mask
            score = evaluation.evaluate_painting(model, pictures, preprocess, **how, left_out=lost if skip else None)
        say_skipped([*pictures.skipped, *map(pictures.name, lost)], len(pictures) + len(pictures.skipped))
        return score

    def _match(self, task: str, model: Any, source: Path) -> Any:
        from scratchformers import evaluation
        from scratchformers.tasks import ZeroShotClassifier
        from scratchformers.training.pairs import read_pairs

        lost: dict[int, str] = {}
        how: dict[str, Any] = {"batch": 32 if self.batch is None else self.batch, "track": track}
        how |= {"truncate": self.truncate, "left_out": lost if self.skip_unreadable else None}
        classifier = ZeroShotClassifier.of(model, source)
        if task == "zero-shot":
            labels = labels_of(self.labels, self.labels_file)
            pictures = self._pictures(self.data, labelled=True)
            how |= {"labels": labels, "templates": self.templates}
            score = evaluation.evaluate_zero_shot(classifier, pictures, **how)
            skipped = pictures.skipped
        else:
            columns = dict(_pair(text, "--column") for text in self.column)
            unreadable = "skip" if self.skip_unreadable else "stop"
            pairs = read_pairs(self.data, columns=columns, unreadable=unreadable)
            score, pictures, skipped = (
                evaluation.evaluate_retrieval(classifier, pairs, **how),
                pairs.pictures,
                pairs.skipped,
            )
        say_skipped([*skipped, *map(pictures.name, lost)], len(pictures) + len(skipped))
        say_cut(classifier.tokenizer)
        return score

    def _pictures(self, data: str, *, labelled: bool) -> Any:
        from scratchformers.training.pictures import read_pictures

        return read_pictures(data, labelled=labelled, unreadable="skip" if self.skip_unreadable else "stop")


FEATURES = ("knn", "probe")  # tasks of `eval` that ask what features are worth
MATCHING = ("zero-shot", "retrieval")  # those that compare pictures with texts
LANGUAGES = ("source_language", "target_language")  # options of the one that translates
ABSENT = ("f1", "top5", "bleu", "chrf", "bleu_signature", "chrf_signature")  # figures that there may not be


def say_skipped(lost: Sequence[str], count: int) -> None:
    """After --skip-unreadable: which of so many pictures could not be read."""
    if lost:
        note(f"{len(lost)} of {count} pictures could not be read, and were skipped:")
        print(*(f"  {_in_a_line(name)}" for name in lost), sep="\n", file=sys.stderr)


def _suits(task: str, model: Any) -> bool:
    """Whether a model of this kind can be asked this."""
    if hasattr(model.config, "image"):
        if hasattr(model, "encode_text"):
            return task in (*FEATURES, *MATCHING)
        return task in FEATURES or task == ("paint" if hasattr(model, "decoder") else "classify")
    if task == "translate" or hasattr(model, "decoder"):
        return task == "translate" and hasattr(model, "decoder")
    writes = task in ("text", "lambada", "hellaswag")
    swapped = {task, _task_of(model)} == {"classify", "tokens"}
    return writes == hasattr(model, "start") and not swapped and task not in (*FEATURES, *MATCHING, "paint")


def _task_of(model: Any) -> str:
    """What a model was trained for."""
    from scratchformers.heads import TokenClassify

    if hasattr(model.config, "image"):
        return _task_of_pictures(model)
    if hasattr(model, "decoder"):
        return "translate"
    if hasattr(model, "start"):
        return "text"
    if isinstance(model.head, TokenClassify):
        return "tokens"
    return "classify" if hasattr(model.head, "labels") else "masked"


def _task_of_pictures(model: Any) -> str:
    if hasattr(model, "encode_text"):
        return "zero-shot"
    if hasattr(model, "decoder"):
        return "paint"
    if model.head is None:
        raise ValueError("This ViT has no head: ask what its features are worth, by --task knn or --task probe.")
    return "classify"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def track(items: Iterable[Any], total: int) -> Iterable[Any]:
    """The items, with a progress bar on stderr where that is a terminal."""
    from rich.console import Console
    from rich.progress import track as show_progress

    console = Console(stderr=True)
    return show_progress(items, "", total, console=console, transient=True, disable=not console.is_terminal)


@dataclass
class Demo:
    """Train a tiny model of each kind on data every machine has, and write a page that shows what they learnt."""

    out: Annotated[Path, arg(metavar="DIR")] = Path("demo")
    """Where index.html and the runs go."""

    def interrupted(self) -> str:
        return "the next demo begins anew"

    def run(self) -> None:
        fix_threads(None)
        from scratchformers.demo import demo

        print(f"Open {demo(self.out, show)} in a browser.")


@dataclass
class Verify:
    """Prove a checkpoint: ours and transformers' (of timm's files, timm's; of open_clip's and OpenAI's, open_clip's) on
    the same inputs, place by place. Exit status 1 if they differ.

    Example: scratchformers verify openai-community/gpt2
    """

    source: Annotated[Positional[str], arg(metavar="SOURCE")]
    """A checkpoint: a folder written by `train` or by transformers, an id of the Hugging Face hub, or a file of a CLIP
    as OpenAI published it."""
    against: Annotated[Path | None, arg(metavar="FILE")] = None
    """What --freeze wrote: compare with that instead of transformers, which need not be installed.
    A config, weights, tokeniser or preprocessing that changed since is named too."""
    freeze: Annotated[Path | None, arg(metavar="FILE")] = None
    """Keep what transformers answers in this file, with the config, what texts or pictures become, and a digest of the
    weights."""
    seed: int = 0
    """Draws the inputs."""
    json: bool = False
    """Print the report as a JSON object."""

    def interrupted(self) -> str:
        return "nothing was proven"

    def run(self) -> int:
        from scratchformers.checkpoints import hub
        from scratchformers.insight.verify import verify

        if self.freeze is not None and not self.freeze.absolute().parent.is_dir():
            raise FileNotFoundError(f"The folder of --freeze {self.freeze} does not exist: make it first.")
        found = hub.find(self.source)
        report = verify(found, name=self.source, against=self.against, freeze=self.freeze, seed=self.seed)
        if self.json:
            print(json.dumps(report.to_json(), ensure_ascii=False))
        else:
            _print_report(report)
        return 0 if report.passes else 1


def _print_report(report: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    console = Console(highlight=False, markup=False, width=max(console.width, 130))
    console.print(f"{report.model} of {report.source}, and {report.against}.\n", soft_wrap=True)
    table = Table(box=None)
    for name in ("ours", "theirs", "largest, float64", "float32", "mean, float64", "float32", "values to", ""):
        table.add_column(name, no_wrap=True)
    for place in report.places:
        figures = [place.largest["float64"], place.largest["float32"], place.mean["float64"], place.mean["float32"]]
        shown = [f"{figure:.1e}" for figure in figures]
        table.add_row(place.ours, place.theirs, *shown, f"{place.scale:.3g}", "" if place.passes else "differs")
    console.print(table)
    agreement = ", ".join(f"{share:.1%} in {dtype}" for dtype, share in report.agreement.items())
    said = [f"The same most probable answer: {agreement}."] if agreement else []
    said += [f"Tokeniser: {report.tokenizer}."] if report.tokenizer else []
    said += [f"Preprocessing: {report.preprocessing}."] if report.preprocessing else []
    console.print("\n" + " ".join(said), soft_wrap=True)
    console.print("Versions: " + ", ".join(f"{name} {value}" for name, value in report.versions.items()) + ".")
    if report.published:
        console.print(f"The weights are those published as {report.published}, to the last bit.", soft_wrap=True)
    for problem in report.problems:
        console.print(problem, soft_wrap=True)
    first = f" The first place that differs is {report.diverges}." if report.diverges else ""
    agree = f"They agree: {report.tolerance}."
    console.print(agree if report.passes else f"They do NOT agree.{first}", soft_wrap=True)
    if report.caveat:
        console.print(report.caveat, soft_wrap=True)


@dataclass
class Export:
    """Write a model for elsewhere: the layout that transformers reads, where it has such a model, and a model card of
    what is known of it.

    Example: scratchformers export runs/book --out book-gpt2 --license mit --language en
    """

    source: Annotated[Positional[str], arg(metavar="SOURCE")]
    """A run's folder, a checkpoint's, or an id of the Hugging Face hub."""
    out: Annotated[Path, arg(metavar="DIR")]
    """Where to: config.json, model.safetensors, the files of the tokeniser or of the preprocessing, README.md (the
    card), loss.png."""
    layout: Literal["open_clip"] | None = None
    """Of a CLIP, for open_clip instead, which does not read transformers': open_clip_config.json and
    open_clip_model.safetensors in the place of the first two."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """How weights are stored; by default as they are."""
    name: str | None = None
    """The model's name in its card; by default the folder's. Say owner/name if it is to go to the hub."""
    license: str | None = None
    """Of the model, for its card: mit, apache-2.0, ... Nothing is said unless you do."""
    language: str | None = None
    """Of its text, for its card: en, de, ..."""
    overwrite: bool = False
    """Write into a folder that is not empty; what else lies there stays."""

    def interrupted(self) -> str:
        return "what was written may lack its card"

    def run(self) -> None:
        from scratchformers.checkpoints import hub
        from scratchformers.insight.export import Wanted, export

        wanted = Wanted(self.name, self.license, self.language)
        path = Path(self.source)
        source = path if path.exists() else hub.find(self.source)
        how: Any = {"layout": self.layout, "dtype": self.dtype, "overwrite": self.overwrite}
        written = export(source, self.out, **how, wanted=wanted)
        print(f"{self.out}: {', '.join(written)}.")


@dataclass
class Page:
    """Print a model as one readable file that needs torch and einops alone: the model's page, and the bricks it uses.

    Example: scratchformers page gpt2 --out gpt2.py
    """

    name: Positional[Literal["bert", "clip", "encoder-decoder", "gpt2", "mae", "vit"]]
    """Which model."""
    out: Annotated[Path | None, arg(metavar="FILE")] = None
    """Where to write it; by default it is printed."""

    def interrupted(self) -> str:
        return "nothing was written"

    def run(self) -> None:
        from scratchformers.insight.page import page

        text = page(self.name)
        if self.out is None:
            print(text, end="")
        else:
            self.out.write_text(text, encoding="utf-8")


@dataclass
class Inspect:
    """Draw what a model does with a text or a picture: every head's attention, what of a picture reaches the end (the
    attention rollout), where in a picture a CLIP sees a text, what each layer would answer to a text (the logit lens),
    or which tokens of a text an encoder-decoder looks at as it writes its translation.

    Example: scratchformers inspect "To be, or not to be" --model runs/book/model --out attention.png

    Example: scratchformers inspect "To be, or not to be" --model runs/book/model --what lens --out lens.svg

    Example: scratchformers inspect photo.jpg --model runs/animals/model --what rollout --out rollout.png

    Example: scratchformers inspect photo.jpg --model openai/clip-vit-base-patch32 --text "a dog" --out dog.png

    Example: scratchformers inspect "Ein Hund." --model runs/translation/model --out cross.png
    """

    given: Annotated[Positional[str], arg(metavar="TEXT|PICTURE")]
    """What the model is to read: a text, or for a model of pictures a file."""
    model: Annotated[str, arg(metavar="SOURCE")]
    """A checkpoint: a folder written by `train` or by transformers, a file of weights, or an id of the Hugging Face
    hub."""
    out: Annotated[Path | None, arg(metavar="PATH")] = None
    """The picture: .png, .svg or .pdf."""
    texts: Annotated[UseAppendAction[tuple[str, ...]], arg(name="text", metavar="TEXT")] = ()
    """With a CLIP: a text to be seen in the picture. May be repeated, which shows whether it matters to the map.
    With an encoder-decoder: a translation, instead of its own."""
    what: Literal["attention", "rollout", "relevance", "lens"] | None = None
    """By default attention, and with --text for a picture relevance.
    attention: of a text the weights of every head, or of one --layer with the tokens at the axes; of a picture, laid
    over it, how each head of one --layer weighs its patches for what is read in the end (the class token, or all
    patches); of a translation how each head of one --layer weighed the text's tokens as each of its own was written,
    and their mean.
    rollout: of a picture, how much of each patch comes through all layers (Abnar and Zuidema 2020).
    relevance: of a picture for each --text, how much its patches bring to the score, by attention times its gradient
    (Chefer et al. 2021).
    lens: of a text, each layer's state read as if it were the last: its most probable token, and how probable."""
    layer: int | None = None
    """With attention: one layer, counted from 0, or from the end if negative; of a picture, and of a translation, by
    default the last."""
    head: int | None = None
    """One head of the layer, counted from 0."""
    device: str = "auto"
    """cpu, cuda, mps, or auto."""
    json: bool = False
    """Print what is drawn as a JSON object: of a text its tokens, and the weights, or the ids, tokens and
    probabilities; of a picture the weights of its patches, row by row, and with --text the cosines; of a translation
    source, target and the weights of each head, a row for each token of the target."""

    def interrupted(self) -> str:
        return "nothing was drawn"

    def run(self) -> None:
        if self.out is None and not self.json:
            raise ValueError("There is nowhere to draw: pass --out picture.png, or --json for the figures.")
        if self.out is not None:
            check_drawing(self.out)
        if self.what == "lens" and self.layer is not None:
            raise ValueError("The lens shows every layer: leave --layer out.")
        if self.texts and self.what not in (None, "relevance", "attention"):
            raise ValueError(f"--text asks for its relevance, and --what for {self.what}: leave one of them out.")
        from scratchformers.checkpoints import hub

        seen = self._seen(hub.find(self.model))
        if self.json:
            print(json.dumps(seen.data, ensure_ascii=False))
        if self.out is not None:
            if seen.left_out:
                note(f"The picture shows the last {seen.drawn} tokens; the {seen.left_out} before them were read too.")
            seen.figure().savefig(self.out, dpi=150)

    def _seen(self, source: Path) -> Any:
        from scratchformers import load, load_preprocess, load_tokenizer
        from scratchformers.images import open_picture
        from scratchformers.insight.inspect import look, look_across, look_at_picture, look_for

        model = load(source, device=auto_device(self.device))
        asked: dict[str, Any] = {"what": self.what or "attention", "layer": self.layer, "head": self.head}
        if hasattr(model, "read"):  # a source
            if len(self.texts) > 1:
                raise ValueError(
                    f"There are {len(self.texts)} texts: pass one translation, or none for the model's own."
                )
            return look_across(model, load_tokenizer(source), self.given, target=next(iter(self.texts), None), **asked)
        self._check_relevance()
        if not hasattr(model.config, "image"):
            if self.texts:
                raise ValueError(f"{type(model).__name__} reads no pictures: leave --text out.")
            return look(model, load_tokenizer(source), self.given, **asked)
        preprocess, picture = load_preprocess(source, model=model), open_picture(self.given)
        named = {"name": Path(self.given).name}
        if not self.texts:
            return look_at_picture(model, preprocess, picture, **asked, **named)
        if not hasattr(model, "encode_text"):
            raise ValueError(f"{type(model).__name__} reads no texts: leave --text out.")
        return look_for(model, load_tokenizer(source), preprocess, picture, self.texts, **named)

    def _check_relevance(self) -> None:
        if self.texts and self.what == "attention":
            raise ValueError("--text asks for its relevance, and --what for attention: leave one of them out.")
        if self.texts and not (self.layer is None and self.head is None):
            raise ValueError("Relevance goes through every layer and head: leave --layer and --head out.")


def note(sentence: str) -> None:
    """On stderr. Of many processes each says what is wrong with it, and all but the first which they are."""
    number = os.environ.get("RANK", "0")
    print(f"scratchformers: {'' if number == '0' else f'process {number}: '}{sentence}", file=sys.stderr)


@contextlib.contextmanager
def silent() -> Iterator[None]:
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def count_up(counts: Iterable[int], begun: int, what: str) -> None:
    """Runs through counts of what is done, showing them on stderr."""
    from rich.console import Console
    from rich.progress import Progress, TextColumn, TimeElapsedColumn

    columns, console = (TextColumn("{task.completed:,} " + what), TimeElapsedColumn()), Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=None, completed=begun)
        for count in counts:
            progress.update(bar, completed=count)


@contextlib.contextmanager
def counting(total: int, begun: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr, where that is a terminal; what it gives is told how many more are done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

    columns, console = (
        (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()),
        Console(stderr=True),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=total, completed=begun)
        yield lambda count: progress.advance(bar, count)


@contextlib.contextmanager
def preparing() -> Iterator[Callable[[str, int, int], None]]:
    """Bars on stderr, where that is a terminal, of what takes longer than a second; what it gives is told what is done,
    how many bytes of it, and of how many (0: unknown)."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TextColumn("left"), TimeRemainingColumn()
    console, began, bars = Console(stderr=True), time.monotonic(), {}
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:

        def watch(what: str, done: int, size: int) -> None:
            if what not in bars and time.monotonic() < began + 1:
                return
            if what not in bars:
                bars[what] = progress.add_task(what)
            progress.update(bars[what], completed=done, total=max(size, done) if size else None)

        yield watch


def saved_facts(out: Path) -> dict[str, Any]:
    """What the run in the folder says of itself, read before torch is loaded; empty where nothing can be read."""
    with contextlib.suppress(OSError, ValueError):
        facts = json.loads((out / "config.json").read_text(encoding="utf-8"))
        if isinstance(facts, dict) and isinstance(facts.get("settings"), dict):
            return facts
    return {}


def fix_threads(asked: Any) -> int:
    """How many threads to compute with, said to the libraries before torch loads them: the same number, held fixed,
    gives the same rounding, which exact resuming needs. By default the cores there are, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))  # of them torchrun started here
    threads = int(asked) if str(asked).isdecimal() and 0 < int(asked) < 4096 else min(8, cores)
    os.environ.update(MKL_DYNAMIC="FALSE", OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads))
    # bf16's kernels are made for each shape and kept: 1,024 of them were 1 GB where no two batches have one length.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    return threads


def _pair(text: str, flag: str = "--set") -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise ValueError(f"{flag} {text} says nothing: write {flag} key=value.")
    return key.strip(), value.strip()


def show(run: Any, tell: Callable[[dict[str, Any]], None] = lambda record: None) -> None:
    """Iterates the run with a progress bar; evaluations and samples are printed as they come. Each record is told."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("step {task.completed}/{task.total}"), BarColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  {task.fields[speed]:,.0f} {task.fields[unit]}s/s"),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    console = Console(highlight=False, markup=False)
    size = sum(parameter.numel() for parameter in run.task.model.parameters())
    console.print(
        f"{size:,} parameters on {run.device}, {run.settings.threads} threads; {run.task.rows:,} examples an epoch."
    )
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task(
            "", total=run.settings.steps, completed=run.step, loss=float("nan"), speed=0.0, unit=run.task.unit
        )
        for record in run:
            tell(record)
            if "loss" in record:
                speed = record["targets"] / max(record["seconds"], 1e-9)
                progress.update(bar, completed=record["step"], loss=record["loss"], speed=speed)
            if "skipped" in record:
                console.print(f"step {record['step']}: skipped, for {record['why']}: {run.folder / record['batch']}")
            if "rolled_back" in record:
                rose = f"the loss rose to {record['rose_to']:.4f} at step {record['from_step']}"
                console.print(f"step {record['step'] - 1}: went back to its checkpoint, for {rose}")
            if "uncompiled" in record:
                console.print(record["uncompiled"], soft_wrap=True)
            if "trivial_loss" in record:
                known = "".join(f"; {_words(name)} {record[name]:.4f}" for name in run.task.baselines)
                nothing = f"knowing nothing costs {record['trivial_loss']:.4f}"
                console.print(f"step 1: loss {record['loss']:.4f}; {nothing}{known}")
            if "valid_loss" in record:
                best = " (best so far)" if record["best"] else ""
                loss = "not finite" if record["valid_loss"] is None else f"{record['valid_loss']:.4f}"
                others = [name for name in record if name.startswith("valid_") and name != "valid_loss"]
                rest = "".join(f", {name.removeprefix('valid_')} {record[name]:.4f}" for name in others)
                console.print(f"step {record['step']}: validation loss {loss}{rest}{best}")
                console.print(_indented(record["sample"]), soft_wrap=True)


def _words(name: str) -> str:
    return {"unigram_loss": "knowing frequencies alone"}.get(name, name.replace("_", " "))


def _indented(text: str) -> str:
    return "\n".join("    | " + line for line in text.splitlines())


Command = (
    Annotated[Demo, subcommand("demo")]
    | Annotated[Complete, subcommand("complete")]
    | Annotated[Fill, subcommand("fill")]
    | Annotated[Embed, subcommand("embed")]
    | Annotated[Classify, subcommand("classify")]
    | Annotated[Translate, subcommand("translate")]
    | Annotated[Reconstruct, subcommand("reconstruct")]
    | Annotated[Train, subcommand("train")]
    | Annotated[Plan, subcommand("plan")]
    | Annotated[Compare, subcommand("compare")]
    | Annotated[Eval, subcommand("eval")]
    | Annotated[Verify, subcommand("verify")]
    | Annotated[Export, subcommand("export")]
    | Annotated[Page, subcommand("page")]
    | Annotated[Inspect, subcommand("inspect")]
)


def main(arguments: list[str] | None = None) -> int:
    """Runs one command. What the user can mend is said in a sentence on stderr, with exit status 2."""
    if arguments is None and sys.argv[1:2] == ["train"]:
        from scratchformers.training.memory import begin_anew

        begin_anew()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
    # Threads that wait asleep: spinning, two threads were 30 times slower as soon as other programs wanted the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    command: Any = None
    try:
        about = "Transformers one can read, prove and run."
        command = tyro.cli(Command, prog="scratchformers", description=about, args=arguments)  # pyrefly: ignore
        status = command.run()
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output, `head` for example, has gone
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (Python flushes it once more at its end)
        return 141
    except (ValueError, OSError) as error:
        note(str(error))
        return 2
    except (RuntimeError, MemoryError) as error:
        from scratchformers.training.faults import is_of_memory

        if not is_of_memory(error):
            raise
        note("There is not enough memory: choose a smaller model, batch or length.")
        return 2
    except KeyboardInterrupt:
        sys.stdout.write("\n")  # what was printed may end within a line
        note(f"interrupted; {command.interrupted() if command else 'nothing was done'}.")
        return 130
    return status or 0
