"""`make demo`: each model learns something small while one watches, and a page shows what it learnt.

Needs no network, and no data but what comes with Python and, for pictures, with scikit-learn (the `demo` extra).
"""

import base64
import html
import io
import random
import re
import shutil
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from scratchformers.checkpoints import files
from scratchformers.insight.inspect import look_across
from scratchformers.tasks import Completer, MaskFiller, Translator, ZeroShotClassifier
from scratchformers.training import log
from scratchformers.training.contrastive import Contrastive
from scratchformers.training.language import Masked, NextToken
from scratchformers.training.loop import Run
from scratchformers.training.request import BPE, Request
from scratchformers.training.runs import open_run
from scratchformers.training.translation import Translation
from scratchformers.training.vision import Classes, Painting

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>ScratchFormers: the demo</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
img {{ max-width: 100%; height: auto; }}
pre {{ background: #f4f4f2; padding: .8rem 1rem; white-space: pre-wrap; overflow-wrap: anywhere; border-radius: 4px; }}
pre b {{ color: #a33; font-weight: 600; }}
code {{ background: #f4f4f2; padding: 0 .2rem; }}
table {{ border-collapse: collapse; }}
td {{ padding: .1rem 1rem .1rem 0; vertical-align: top; }}
</style>
<h1>ScratchFormers: the demo</h1>
<p>Everything on this page was made by this machine a moment ago, by transformers written from scratch.</p>
{sections}
</html>
"""


def demo(out: Path, show: Callable[[Run], None]) -> Path:
    """Trains each model of `SECTIONS` below `out`, each run iterated by `show`, and writes out/index.html, which needs
    nothing beside it."""
    if (out / "index.html").is_dir() or out.is_file():
        raise ValueError(f"{out} is no folder to write a page into: choose another --out.")
    out.mkdir(parents=True, exist_ok=True)
    (out / "index.html").unlink(missing_ok=True)  # it would speak of what is about to be made anew
    page = PAGE.format(sections="\n".join(section(out, show) for section in SECTIONS))
    files.write_bytes(out / "index.html", page.encode("utf-8"))
    return out / "index.html"


def gpt2(out: Path, show: Callable[[Run], None]) -> str:
    """A tiny GPT-2 on the reference pages that `help()` shows, letter by letter."""
    data, folder = out / "data" / "python-topics.txt", out / "gpt2"
    files.write_bytes(data, python_reference().encode("utf-8"))
    _remove_earlier(folder, data)
    print("GPT-2 learns to write like Python's own reference, one character at a time.")
    run, _ = open_run(Request("gpt2", folder, data))
    task, settings, began = run.task, run.settings, time.monotonic()
    assert isinstance(task, NextToken)
    model, before = task.model, _continued(Completer(task.model, task.tokenizer))
    show(run)
    facts = {
        "text": f"the language reference that comes with Python, {data.stat().st_size:,} bytes",
        "model": f"{sum(p.numel() for p in model.parameters()):,} parameters, {model.config.depth} blocks of "
        f"{model.config.heads} heads, {model.config.length} characters of context",
        "training": f"{settings.steps} steps of {settings.batch} windows, {time.monotonic() - began:.0f} seconds on "
        f"{run.device} with {settings.threads} threads",
        "validation loss": f"{run.best:.3f} nats a character; knowing nothing costs {task.trivial:.3f}",
    }
    samples = [record for record in log.read(folder / "log.jsonl") if "sample" in record]
    learning = "".join(f"<p>Step {r['step']}</p><pre>{html.escape(r['sample'])}</pre>" for r in samples)
    return f"""<h2>GPT-2</h2>
<p>It read a text and learnt, at every character, which one comes next. Nobody told it what a word is.</p>
{_table(facts)}
<p>{_picture(folder / "loss.png", "The loss over the steps of training")}</p>
<h3>Three beginnings (in red), continued before the first step</h3>{before}
<h3>The same, after the last step</h3>{_continued(Completer.from_pretrained(folder / "model"))}
<h3>While it learnt: a piece of the text it never saw, continued</h3>{learning}
<p>The trained model is <code>{html.escape(str(folder / "model"))}</code>. Your own text:
<code>scratchformers train gpt2 --data book.txt --out runs/book</code>, then
<code>scratchformers complete "Once" --model runs/book/model</code>.</p>"""


def bert(out: Path, show: Callable[[Run], None]) -> str:
    """A tiny BERT on the same pages, whose letters it learns to find where they are hidden."""
    data, folder = out / "data" / "python-topics.txt", out / "bert"
    files.write_bytes(data, python_reference().encode("utf-8"))
    _remove_earlier(folder, data)
    print("BERT learns to find hidden letters in Python's own reference.")
    run, _ = open_run(Request("bert", folder, data))
    task, settings, began = run.task, run.settings, time.monotonic()
    assert isinstance(task, Masked)
    model, before = task.model, _filled(MaskFiller(task.model, task.tokenizer))
    show(run)
    best = min((r for r in log.read(folder / "log.jsonl") if "valid_loss" in r), key=lambda r: r["valid_loss"])
    facts = {
        "text": f"the language reference that comes with Python, {data.stat().st_size:,} bytes",
        "model": f"{sum(p.numel() for p in model.parameters()):,} parameters, {model.config.depth} blocks of "
        f"{model.config.heads} heads, {model.config.length} characters at once",
        "training": f"{settings.steps} steps of {settings.batch} windows, {time.monotonic() - began:.0f} seconds on "
        f"{run.device} with {settings.threads} threads",
        "validation loss": f"{best['valid_loss']:.3f} nats a hidden character; knowing nothing costs "
        f"{task.trivial:.3f}, knowing how frequent each is {task.baselines['unigram_loss']:.3f}",
        "right": f"{best['valid_accuracy']:.1%} of the hidden characters; always naming the most frequent one, "
        f"{task.baselines['unigram_accuracy']:.1%}",
    }
    return f"""<h2>BERT</h2>
<p>It read the same text with 15 % of its letters chosen, most of them hidden, and learnt to say which they were, from
what stands on both sides.</p>
{_table(facts)}
<p>{_picture(folder / "loss.png", "The loss over the steps of training")}</p>
<h3>Hidden letters (_), and what it says they are (in red), before the first step</h3>{before}
<h3>The same, after the last step</h3>{_filled(MaskFiller.from_pretrained(folder / "model"))}
<p>The trained model is <code>{html.escape(str(folder / "model"))}</code>. Your own text:
<code>scratchformers train bert --data book.txt --out runs/hidden</code>, then
<code>scratchformers fill "the [MASK]ouse" --model runs/hidden/model</code>.</p>"""


def _filled(filler: MaskFiller) -> str:
    shown = []
    for text in ("the v_lue of the ex_ression", "a sub_lass of the cl_ss", "if the obj_ct is call_d"):
        fills = filler(text.replace("_", filler.spelling), top=1)
        letters = iter([fill[0].token for fill in fills])
        said = "".join(f"<b>{html.escape(next(letters))}</b>" if c == "_" else html.escape(c) for c in text)
        shown.append(f"{html.escape(text)}\n{said}")
    return f"<pre>{'<br><br>'.join(shown)}</pre>"


DIGITS = {"image": "8", "patch": "2", "channels": "1", "dim": "64", "flip": "false", "lr": "0.003"}
WINDOW, SIDE = 64, 32  # pixels of a photograph that become one picture, and their number then


def vit(out: Path, show: Callable[[Run], None]) -> str:
    """A tiny ViT on handwritten digits of 8 x 8 pixels."""
    if (datasets := _datasets()) is None:
        return _missing("ViT")
    found = datasets.load_digits()
    data, folder = out / "data" / "digits.npz", out / "vit"
    _pack(data, np.rint(found.images * (255 / 16)).astype(np.uint8), labels=found.target)
    _remove_earlier(folder, data)
    print("ViT learns to read handwritten digits.")
    run, _ = open_run(Request("vit", folder, data, given=DIGITS))
    task, settings, began = run.task, run.settings, time.monotonic()
    assert isinstance(task, Classes)
    show(run)
    best = max((r for r in log.read(folder / "log.jsonl") if "valid_loss" in r), key=lambda r: r["valid_accuracy"])
    facts = {
        "pictures": f"{len(found.images):,} digits of 8 x 8 pixels, each cut into 16 patches; every tenth held out",
        "model": _sizes(task.model),
        "training": f"{settings.steps} steps of {settings.batch} pictures, {time.monotonic() - began:.0f} seconds on "
        f"{run.device} with {settings.threads} threads",
        "right": f"{best['valid_accuracy']:.1%} of the digits it never saw; always naming the most frequent one, "
        f"{task.baselines['most_frequent_accuracy']:.1%}",
    }
    return f"""<h2>ViT</h2>
<p>It read pictures as BERT reads text, a patch for a word, and learnt which digit each shows.</p>
{_table(facts)}
<p>{_picture(folder / "loss.png", "The loss over the steps of training")}</p>
<h3>Digits it never saw, and what it says they are</h3>
<p>{_picture(_last_drawn(folder), "Digits and the model's answers")}</p>
<p>The trained model is <code>{html.escape(str(folder / "model"))}</code>. Your own pictures, a folder for each class:
<code>scratchformers train vit --data FOLDER --out runs/classes</code>, then
<code>scratchformers classify photo.jpg --model runs/classes/model</code>.</p>"""


def mae(out: Path, show: Callable[[Run], None]) -> str:
    """A tiny masked autoencoder on windows of two photographs, of which it never sees the middle fifth."""
    if (datasets := _datasets()) is None:
        return _missing("ViT-MAE")
    photographs = datasets.load_sample_images().images
    data, valid, folder = out / "data" / "windows.npz", out / "data" / "unseen.npz", out / "mae"
    _pack(data, np.concatenate([_windows(photographs, *part, 750) for part in ((0.0, 0.4), (0.6, 1.0))]))
    _pack(valid, _windows(photographs, 0.4, 0.6, 100))
    _remove_earlier(folder, data)
    print("ViT-MAE learns to paint what is hidden of two photographs.")
    run, _ = open_run(Request("mae", folder, data, valid))
    task, settings, began = run.task, run.settings, time.monotonic()
    assert isinstance(task, Painting)
    show(run)
    facts = {
        "pictures": f"1,500 windows of two photographs, {SIDE} x {SIDE} pixels; 100 of the middle, which it never saw",
        "model": f"{_sizes(task.model)}; the decoder has {task.model.config.decoder_depth}",
        "training": f"{settings.steps} steps of {settings.batch} pictures, {time.monotonic() - began:.0f} seconds on "
        f"{run.device} with {settings.threads} threads",
        "validation loss": f"{run.best:.3f}, the mean square error of a hidden pixel, where black is -1 and white 1; "
        f"painting everything in the mean colour costs {task.trivial:.3f}",
    }
    return f"""<h2>ViT-MAE</h2>
<p>Three quarters of every picture were hidden from it, and it learnt to paint them from the rest. What it makes of the
visible patches can serve another task: <code>scratchformers train vit --from MODEL</code>.</p>
{_table(facts)}
<p>{_picture(folder / "loss.png", "The loss over the steps of training")}</p>
<h3>Windows it never saw: as they are, as it saw them, what it painted, and both together</h3>
<p>{_picture(_last_drawn(folder), "Pictures, masked and painted")}</p>
<p>The trained model is <code>{html.escape(str(folder / "model"))}</code>. Your own pictures:
<code>scratchformers train mae --data FOLDER --out runs/painter</code>, then
<code>scratchformers reconstruct photo.jpg --model runs/painter/model --out panel.png</code>.</p>"""


NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WORDINGS = ("{left} left of {right}", "{right} right of {left}", "{left} then {right}")
SIDES = {"image": "8x16", "patch": "4", "channels": "1", "image_dim": "64", "text_dim": "48", "batch": "128"}
QUERIES = ("three left of eight", "nine right of zero", "two then five")  # the last is of a pair it never saw


def clip(out: Path, show: Callable[[Run], None]) -> str:
    """A tiny CLIP on pictures of two handwritten digits each, and captions that name them; of the hundred pairs, twenty
    are in neither."""
    if (datasets := _datasets()) is None:
        return _missing("CLIP")
    digits = datasets.load_digits()
    data, valid, folder = out / "data" / "pairs.npz", out / "data" / "unseen-pairs.npz", out / "clip"
    images, pairs = _side_by_side(digits, slice(None, -360), 6000)
    learnt, (unseen, asked) = ~_kept_back(pairs), _side_by_side(digits, slice(-360, None), 1000)
    for path, some, each in ((data, images[learnt], pairs[learnt]), (valid, unseen, asked)):
        _pack(path, some, captions=np.array([[_say(wording, pair) for wording in WORDINGS] for pair in each]))
    _remove_earlier(folder, data)
    print("CLIP learns which caption belongs to which picture.")
    run, _ = open_run(Request("clip", folder, data, valid, given=SIDES))
    task, settings, began = run.task, run.settings, time.monotonic()
    assert isinstance(task, Contrastive)
    show(run)
    best = max((r for r in log.read(folder / "log.jsonl") if "valid_loss" in r), key=lambda r: r["valid_recall"])
    chance, config = task.baselines, task.model.config
    model = ZeroShotClassifier.from_pretrained(folder / "model")
    album = [Image.fromarray(image) for image in unseen]
    right, never = _chosen(model, album) == (asked * (10, 1)).sum(1), _kept_back(asked)
    facts = {
        "pictures": f"{learnt.sum():,} of two digits side by side, in 80 of the 100 pairs there are, each with "
        f"{len(WORDINGS)} captions; {len(unseen):,} of digits that it never saw, in all pairs",
        "model": f"{sum(p.numel() for p in task.model.parameters()):,} parameters, {config.image_depth} blocks that "
        f"read pictures and {config.text_depth} that read texts",
        "training": f"{settings.steps} steps of {settings.batch} pictures and captions, "
        f"{time.monotonic() - began:.0f} seconds on {run.device} with {settings.threads} threads",
        "finds": f"for {best['valid_image_to_text@1']:.1%} of the pictures a right caption, of 300; for "
        f"{best['valid_text_to_image@1']:.1%} of the captions a right picture, of {len(unseen):,}; chance "
        f"{chance['chance_image_to_text@1']:.1%} and {chance['chance_text_to_image@1']:.1%}",
        "zero-shot": f"asked which of the 100 pairs it is, {right[~never].mean():.1%} right where the pair was among "
        f"those learnt, {right[never].mean():.1%} where it was not; chance 1 %",
    }
    return f"""<h2>CLIP</h2>
<p>It read pictures and captions, one part of it these and the other those, and learnt which belongs to which. Nobody
gave it classes: what it is asked to tell apart is written down afterwards.</p>
{_table(facts)}
<p>{_picture(folder / "loss.png", "The loss over the steps of training")}</p>
<h3>Digits it never saw, and the caption it finds for them</h3>
<p>{_picture(_last_drawn(folder), "Pictures and the captions found for them")}</p>
<h3>Texts, and the five pictures it finds for them</h3>
<p>{_picture(_search(model, album, folder / "search.png"), "Texts and the pictures found for them")}</p>
<p>No caption and no picture that it learnt from was of two, then five. The trained model is
<code>{html.escape(str(folder / "model"))}</code>. Your own pictures, with a list of captions:
<code>scratchformers train clip --data captions.tsv --out runs/pairs</code>, then
<code>scratchformers classify photo.jpg --labels "a cat, a dog" --model runs/pairs/model</code>.</p>"""


def _side_by_side(digits: Any, which: slice, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures of two of these digits (count, 8, 16), and which ones they show (count, 2)."""
    levels, names = np.rint(digits.images[which] * (255 / 16)).astype(np.uint8), digits.target[which]
    drawn = np.random.RandomState(0).randint(len(names), size=(count, 2))
    return np.concatenate([levels[drawn[:, 0]], levels[drawn[:, 1]]], axis=2), names[drawn]


def _kept_back(pairs: np.ndarray) -> np.ndarray:
    """Whether pairs (n, 2) are among the twenty that are not learnt: two for each digit on either side."""
    return np.isin((pairs[:, 1] - pairs[:, 0]) % 10, (3, 6))


def _say(wording: str, pair: Sequence[int]) -> str:
    return wording.format(left=NAMES[pair[0]], right=NAMES[pair[1]])


def _chosen(model: ZeroShotClassifier, album: Sequence[Image.Image]) -> np.ndarray:
    """Of all hundred pairs the number that suits each picture best."""
    labels = [_say(WORDINGS[0], divmod(number, 10)) for number in range(100)]
    answers = model(album, labels, templates=["{}"], top=1)
    return np.array([labels.index(answer[0].label) for answer in answers])


def _search(model: ZeroShotClassifier, album: Sequence[Image.Image], path: Path) -> Path:
    """Draws the pictures found for the QUERIES."""
    from matplotlib.figure import Figure

    index = model.index((str(i), image) for i, image in enumerate(album))
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    for row, (query, matches) in enumerate(zip(QUERIES, model.search(index, QUERIES, top=5))):
        for column, match in enumerate(matches):
            axes = figure.add_subplot(len(QUERIES), 5, 5 * row + column + 1)
            axes.imshow(np.asarray(album[int(match.picture)]), cmap="gray", interpolation="nearest")
            axes.set_title(query if column == 2 else "", fontsize=9)
            axes.axis("off")
    return _draw(figure, path)


MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
          "December")  # fmt: skip
MONATE = ("Januar", "Februar", "März", "April", "Mai", "Juni", "Juli", "August", "September", "Oktober", "November",
          "Dezember")  # fmt: skip
EINER = ("eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun", "zehn", "elf", "zwölf", "dreizehn",
         "vierzehn", "fünfzehn", "sechzehn", "siebzehn", "achtzehn", "neunzehn")  # fmt: skip
ZEHNER = ("zwanzig", "dreißig", "vierzig", "fünfzig", "sechzig", "siebzig", "achtzig", "neunzig")
IRREGULAR = {1: "erster", 3: "dritter", 7: "siebter", 8: "achter"}
CENTURIES = date(1100, 1, 1), date(1999, 12, 31)
SMALL = {"length": "48", "tokens": "1024", "depth": "1", "decoder_depth": "2"}  # a date is short, in either language
ASKED = 300  # dates that it never saw


def encoder_decoder(out: Path, show: Callable[[Run], None]) -> str:
    """A tiny encoder-decoder on dates in English and, written out, in German."""
    data, valid, folder = out / "data" / "dates.tsv", out / "data" / "unseen-dates.tsv", out / "encoder-decoder"
    first, last = (day.toordinal() for day in CENTURIES)
    pairs = [_both(date.fromordinal(day)) for day in random.Random(0).sample(range(first, last + 1), 6000 + ASKED)]
    for path, some in ((data, pairs[ASKED:]), (valid, pairs[:ASKED])):
        files.write_bytes(path, "".join(f"{a}\t{b}\n" for a, b in [("source", "target"), *some]).encode("utf-8"))
    _remove_earlier(folder, data)
    print("The encoder-decoder learns to write English dates out in German.")
    run, _ = open_run(Request("encoder-decoder", folder, data, valid, tokenizer=BPE, vocab=400, given=SMALL))
    task, settings, began = run.task, run.settings, time.monotonic()
    assert isinstance(task, Translation)
    config, unseen = task.model.config, [said for said, _ in pairs[:ASKED]]
    before = Translator(task.model, task.tokenizer)(unseen[:4], max_new_tokens=12)
    show(run)
    seconds, translator = time.monotonic() - began, Translator.from_pretrained(folder / "model")
    answers = translator(unseen)
    right = sum(answer.text == wanted for answer, (_, wanted) in zip(answers, pairs)) / ASKED
    facts = {
        "dates": f"{len(pairs) - ASKED:,} of the years 1100 to 1999, in English and written out in German; {ASKED} "
        "others, which it never saw",
        "model": f"{sum(p.numel() for p in task.model.parameters()):,} parameters, {config.depth} block that reads and "
        f"{config.decoder_depth} that write, of {config.heads} heads",
        "training": f"{settings.steps} steps of about {SMALL['tokens']} tokens, {seconds:.0f} seconds on {run.device} "
        f"with {settings.threads} threads",
        "right": f"{right:.1%} of the dates it never saw, to the last letter",
    }
    picture = look_across(translator.model, translator.tokenizer, unseen[0], what="attention", layer=0).figure()
    return f"""<h2>Encoder-decoder</h2>
<p>One half read dates in English, the other learnt to write them in German, which says four-and-thirty for 34. Nobody
told it what a number is.</p>
{_table(facts)}
<p>{_picture(folder / "loss.png", "The loss over the steps of training")}</p>
<h3>Dates it never saw, and its German for them (in red), before the first step</h3>{_said(pairs, before)}
<h3>The same, after the last step</h3>{_said(pairs, answers[:4])}
<h3>Where it looked (columns) as it wrote each part of the German (rows), in the first block</h3>
<p>A column is not its word alone: the first half has read the whole date there, so that a digit may be found at its
neighbour's place.</p>
<p>{_picture(_draw(picture, folder / "looked.png"), "Where it looked as it wrote")}</p>
<p>The trained model is <code>{html.escape(str(folder / "model"))}</code>. Your own pairs, two files line by line:
<code>scratchformers train encoder-decoder --data lines.de,lines.en --tokenizer bpe --out runs/german</code>, then
<code>scratchformers translate "Ein Hund." --model runs/german/model</code>.</p>"""


def _both(day: date) -> tuple[str, str]:
    century, year = divmod(day.year, 100)
    written = IRREGULAR.get(day.day) or _german(day.day) + ("ter" if day.day < 20 else "ster")
    german = f"{written} {MONATE[day.month - 1]} {_german(century)}hundert{_german(year)}"
    return f"{day.day} {MONTHS[day.month - 1]} {day.year}", german


def _german(number: int) -> str:
    """Of 1 to 99; nothing for 0."""
    if number < 20:
        return EINER[number - 1] if number else ""
    tens, ones = divmod(number, 10)
    return f"{'ein' if ones == 1 else _german(ones)}{'und' if ones else ''}{ZEHNER[tens - 2]}"


def _said(pairs: Sequence[tuple[str, str]], answers: Sequence[Any]) -> str:
    shown = (f"{html.escape(said)}\n<b>{html.escape(a.text)}</b>" for (said, _), a in zip(pairs, answers))
    return f"<pre>{'<br><br>'.join(shown)}</pre>"


def _draw(figure: Any, path: Path) -> Path:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=100)
    files.write_bytes(path, content.getvalue())
    return path


def _datasets() -> Any:
    """scikit-learn's, or None where it is not installed."""
    try:
        from sklearn import datasets
    except ImportError:
        return None
    return datasets


def _missing(name: str) -> str:
    return (
        f"<h2>{name}</h2><p>Its pictures come with scikit-learn: <code>pip install 'scratchformers[demo]'</code>.</p>"
    )


def _pack(path: Path, images: np.ndarray, **more: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    np.savez(content, images=images, **more)
    files.write_bytes(path, content.getvalue())


def _windows(photographs: Sequence[np.ndarray], start: float, end: float, count: int) -> np.ndarray:
    """Windows drawn from between these shares of the photographs' widths, (count, SIDE, SIDE, 3)."""
    draw, found = np.random.RandomState(0), []
    for i in range(count):
        photograph = photographs[i % len(photographs)]
        height, width = photograph.shape[:2]
        y, x = draw.randint(height - WINDOW), draw.randint(int(width * start), int(width * end) - WINDOW)
        image = Image.fromarray(photograph[y : y + WINDOW, x : x + WINDOW])
        found.append(np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)))
    return np.stack(found)


def _sizes(model: Any) -> str:
    count = sum(parameter.numel() for parameter in model.parameters())
    return f"{count:,} parameters, {model.config.depth} blocks of {model.config.heads} heads"


def _last_drawn(folder: Path) -> Path:
    return max((folder / "pictures").glob("step-*.png"), key=lambda path: int(path.stem.partition("-")[2]))


def _remove_earlier(folder: Path, data: Path) -> None:
    """Removes the run of an earlier demo, finished or killed, and no other."""
    going = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(going, ignore_errors=True)
    facts = files.read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if facts.get("paths", {}).get("data") == str(data.absolute()):
        folder.rename(going)  # in one go, so that a demo that is killed now leaves nothing half removed
        shutil.rmtree(going)


def _continued(completer: Completer) -> str:
    prompts = ["The function returns ", "A class is ", "If the argument is "]
    answers = completer(prompts, temperature=0.7, seed=1, max_new_tokens=160, slide=True)
    texts = (f"<b>{html.escape(p)}</b>{html.escape(a.text)}" for p, a in zip(prompts, answers))
    return f"<pre>{'<br><br>'.join(texts)}</pre>"


def python_reference() -> str:
    """The pages that `help()` shows, without their tables, rules and indentation."""
    from pydoc_data.topics import topics

    lines = (line.strip() for name in sorted(topics) for line in [*topics[name].splitlines(), ""])
    prose = "\n".join(re.sub(" +", " ", line) for line in lines if not re.search(r"\||^[=+*-]{3}", line))
    return re.sub(r"\n{3,}", "\n\n", prose).strip()


def _table(facts: dict[str, str]) -> str:
    rows = (f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>" for name, value in facts.items())
    return f"<table>{''.join(rows)}</table>"


def _picture(path: Path, what: str) -> str:
    return f'<img alt="{what}" src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'


SECTIONS: tuple[Callable[[Path, Callable[[Run], None]], str], ...] = (gpt2, bert, vit, mae, clip, encoder_decoder)
