"""The command line. torch is imported by the command that needs it, so that --help answers at once."""

import contextlib
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional, UseAppendAction, arg, subcommand


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
    """Continue a text with a model that writes.

    Example: scratchformers complete "ROMEO:" --model runs/shakespeare/model --temperature 0.8
    """

    text: Positional[str]
    """What to continue."""
    model: Annotated[str, arg(metavar="SOURCE")]
    """A checkpoint folder: one written by `train`, or one of transformers."""
    max_new_tokens: int | None = None
    """Tokens to write at most; by default the smaller of 64 and the room left."""
    temperature: float = 0.0
    """0 takes the most probable token; above, tokens are drawn, the more freely the higher."""
    top_k: int | None = None
    """Draw from the k most probable tokens only; needs a temperature above 0."""
    top_p: float | None = None
    """Draw from the smallest set of tokens that holds this much of the probability; needs a temperature above 0."""
    seed: int | None = None
    """Makes drawing repeatable."""
    device: str = "auto"
    """cpu, cuda, mps, or auto."""
    json: bool = False
    """Print a JSON object: prompt, text, ids, reason."""

    def run(self) -> None:
        from scratchformers.tasks import Completer

        if self.temperature == 0 and (self.top_k is not None or self.top_p is not None):
            print(
                "scratchformers: --top-k and --top-p act on drawing, which needs a --temperature above 0.",
                file=sys.stderr,
            )
        completer = Completer.from_pretrained(self.model, device=auto_device(self.device))
        sampling = {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p, "seed": self.seed}
        answer = completer(self.text, max_new_tokens=self.max_new_tokens, **sampling)
        if self.json:
            print(json.dumps({"prompt": self.text, **vars(answer)}, ensure_ascii=False))
        else:
            print(self.text + answer.text)


@dataclass
class Train:
    """Train a model on your own data. The result, OUT/model, is what --model and `load` take.

    Example: scratchformers train gpt2 --data book.txt --out runs/book
    """

    recipe: Positional[Literal["gpt2"]]
    """What to train."""
    out: Annotated[Path, arg(metavar="DIR")]
    """The run's folder: config.json, log.jsonl, loss.png, checkpoints/, model/."""
    data: Annotated[Path | None, arg(metavar="PATH")] = None
    """A UTF-8 text file, or a folder of .txt files."""
    valid: Annotated[Path | None, arg(metavar="PATH")] = None
    """Text to validate on; by default the last tenth of the data."""
    preset: str | None = None
    """tiny (the default: a minute on two cores), mini, small, gpt2, gpt2-medium, gpt2-large, gpt2-xl."""
    tokenizer: Annotated[str | None, arg(metavar="NAME")] = None
    """`characters` (the default), or a folder or file with a tokeniser."""
    set: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="KEY=VALUE")] = ()
    """A setting (steps, batch, length, lr, seed, ...) or a field of the model (dim, depth, ...). May be repeated."""
    seed: int | None = None
    """The same as --set seed=..."""
    resume: bool = False
    """Go on with the run in OUT."""
    device: str | None = None
    """cpu, cuda, mps, or auto (a GPU where there is one); by default the run's own, or auto."""

    def run(self) -> None:
        given = dict(_pair(text) for text in self.set)
        if self.seed is not None:
            given["seed"] = str(self.seed)
        begun = saved_facts(self.out) if self.resume else {}
        threads = fix_threads(begun.get("settings", {}).get("threads") or given.get("threads"))
        from scratchformers.training.recipes import Request
        from scratchformers.training.runs import open_run

        request = Request(
            self.recipe, self.out, self.data, self.valid, self.preset, self.tokenizer, given,
            device=auto_device(self.device or str(begun.get("device") or "auto")), threads=threads,
        )  # fmt: skip
        run, notes = open_run(request, resume=self.resume)
        for note in notes:
            print(note)
        if not run.finished:
            show(run)
            print(f"Best validation loss {run.best:.4f}: {self.out / 'model'}. The curve: {self.out / 'loss.png'}.")


@dataclass
class Demo:
    """Train a tiny model of each kind on data every machine has, and write a page that shows what they learnt."""

    out: Annotated[Path, arg(metavar="DIR")] = Path("demo")
    """Where index.html and the runs go."""

    def run(self) -> None:
        fix_threads(None)
        from scratchformers.demo import demo

        print(f"Open {demo(self.out, show)} in a browser.")


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
    threads = int(asked) if str(asked).isdecimal() and 0 < int(asked) < 4096 else min(8, cores)
    os.environ.update(MKL_DYNAMIC="FALSE", OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads))
    return threads


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise ValueError(f"--set {text} is no setting: write --set key=value.")
    return key.strip(), value.strip()


def show(run: Any) -> None:
    """Iterates the run with a progress bar; evaluations and samples are printed as they come."""
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
            if "loss" in record:
                speed = record["targets"] / max(record["seconds"], 1e-9)
                progress.update(bar, completed=record["step"], loss=record["loss"], speed=speed)
            if "trivial_loss" in record:
                console.print(f"step 1: loss {record['loss']:.4f}; knowing nothing costs {record['trivial_loss']:.4f}")
            if "valid_loss" in record:
                best = " (best so far)" if record["best"] else ""
                loss = "not finite" if record["valid_loss"] is None else f"{record['valid_loss']:.4f}"
                console.print(f"step {record['step']}: validation loss {loss}{best}")
                console.print(_indented(record["sample"]), soft_wrap=True)


def _indented(text: str) -> str:
    return "\n".join("    | " + line for line in text.splitlines())


Command = (
    Annotated[Demo, subcommand("demo")]
    | Annotated[Complete, subcommand("complete")]
    | Annotated[Train, subcommand("train")]
)


def main(arguments: list[str] | None = None) -> int:
    """Runs one command. What the user can mend is said in a sentence on stderr, with exit status 2."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
    try:
        about = "Transformers one can read, prove and run."
        command = tyro.cli(Command, prog="scratchformers", description=about, args=arguments)  # pyrefly: ignore
        command.run()
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output, `head` for example, has gone
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (Python flushes it once more at its end)
        return 141
    except (ValueError, OSError) as error:
        print(f"scratchformers: {error}", file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as error:
        if "alloc" not in str(error).lower() and "out of memory" not in str(error).lower():
            raise
        print("scratchformers: There is not enough memory: choose a smaller model, batch or length.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("scratchformers: interrupted; `train --resume` goes on from the last checkpoint.", file=sys.stderr)
        return 130
    return 0
