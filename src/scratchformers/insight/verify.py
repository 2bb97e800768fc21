"""Is this checkpoint what it should be? Ours and the reference on the same inputs, layer by layer.

The reference is the installed transformers; or what it answered once, frozen in a file; or, where there is neither,
what it answered for a small model that comes with us, which proves the code and not the checkpoint.
"""

import contextlib
import dataclasses
import importlib.util
import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from scratchformers import ragged
from scratchformers.checkpoints import files
from scratchformers.checkpoints.pretrained import fingerprint, read_config
from scratchformers.insight.references import REFERENCES, Call, Case, Reference
from scratchformers.models import load, load_tokenizer

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4}  # of the largest value at a place, or of 1 if that is more
MOST = 512  # columns of an output that are frozen, spread over all
FORMAT = "scratchformers-verify-1"
SHIPPED = Path(__file__).parent / "frozen"
TEXTS = (
    "Hello, world!", " leading and trailing ", "it's they'll WE'VE", "a\n\nb\tc\r\n", "1905 19 05 3.14159",
    "naïve façade ÅÄÖ ß", "Привет, мир", "你好,世界 日本語", "👩\u200d👧 🏳\ufe0f\u200d🌈 😀", "e\u0301 \u00e9 \u00a0",
    "...!!!???", "<|endoftext|>", "one<|endoftext|>two", "x" * 500, "    indented(code)",
)  # fmt: skip

States = dict[str, dict[str, Tensor]]  # of each case, what stood at each place


@dataclass(frozen=True)
class Place:
    """How far ours is from the reference at one place, in each precision. NaN where they cannot be compared."""

    ours: str
    theirs: str
    largest: dict[str, float]
    mean: dict[str, float]
    scale: float  # the largest value there
    passes: bool


@dataclass
class Report:
    source: str
    model: str
    against: str
    places: list[Place] = field(default_factory=list)
    agreement: dict[str, float] = field(default_factory=dict)  # share of places with the same most probable answer
    tokenizer: str = "none"
    problems: list[str] = field(default_factory=list)  # a sentence each
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def diverges(self) -> str | None:
        """The first place past tolerance, in order of execution."""
        return next((place.ours for place in self.places if not place.passes), None)

    @property
    def tolerance(self) -> str:
        bounds = " and ".join(f"{value:.0e} in {_name(dtype)}" for dtype, value in TOLERANCES.items())
        return f"largest differences are within {bounds}, times the largest value there if that is above 1"

    @property
    def passes(self) -> bool:
        return self.diverges is None and not self.problems

    def to_json(self) -> dict[str, Any]:
        said = dataclasses.asdict(self) | {"passes": self.passes, "diverges": self.diverges}
        finite = lambda x: x if not isinstance(x, float) or math.isfinite(x) else None  # noqa: E731
        for place in said["places"]:
            for column in ("largest", "mean"):
                place[column] = {name: finite(value) for name, value in place[column].items()}
            place["scale"] = finite(place["scale"])
        return said | {"tolerances": {_name(dtype): value for dtype, value in TOLERANCES.items()}}


def verify(
    source: Path, *, name: str = "", against: Path | None = None, freeze: Path | None = None, seed: int = 0
) -> Report:
    """Compares the checkpoint in a folder. `freeze` is written: the inputs, what the reference answered, the config and
    what the tokeniser gives; `against` is such a file. Raises ValueError or OSError where nothing can be compared."""
    installed = importlib.util.find_spec("transformers") is not None
    if freeze is not None and (against is not None or not installed):
        raise ValueError(
            "--freeze writes what transformers answers: it needs `pip install transformers`, and no --against."
        )
    config = read_config(source)
    if not config:
        raise ValueError(f"{source} is no folder with a config.json, which the reference needs: give it one.")
    model = load(source)
    kind = type(model).__name__
    if kind not in REFERENCES:
        raise ValueError(f"{kind} has no reference to be verified against: expected one of {', '.join(REFERENCES)}.")
    report = Report(name or str(source), kind, "", versions={"torch": torch.__version__})
    if against is not None:
        _against(report, source, model, read_frozen(against), str(against))
    elif installed:
        _beside(report, source, model, seed, freeze)
    else:
        _shipped(report, source, model)
    return report


# --- against what


def _beside(report: Report, source: Path, model: Any, seed: int, freeze: Path | None) -> None:
    """transformers, on the same checkpoint, in both precisions."""
    reference = REFERENCES[report.model]
    tokens = _our_tokens(source)
    text = [id for ids in tokens.values() for id in ids] if tokens else []
    _check_ids(report, text, model.config)
    cases = reference.cases(model.config, torch.Generator().manual_seed(seed), [] if report.problems else text)
    expected: dict[torch.dtype, States] = {}
    with _importable():
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        report.against = f"transformers {transformers.__version__}, {reference.kind}"
        report.versions["transformers"] = transformers.__version__
        for dtype in TOLERANCES:
            theirs, told = getattr(transformers, reference.kind).from_pretrained(
                source, dtype=dtype, output_loading_info=True
            )
            if dtype == torch.float64:
                for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
                    if told.get(what):
                        listed = ", ".join(sorted(map(str, told[what]))[:5])
                        report.problems.append(f"transformers reports {what.replace('_', ' ')}: {listed}.")
            paths = dict(reference.places(model.config))
            expected[dtype] = _states(theirs.eval(), paths, cases, reference.theirs, "output")
            del theirs
        if tokens:
            _compare_tokens(report, tokens, _their_tokens(transformers, source, tokens), "transformers")
    _compare(report, source, reference, cases, expected)
    if freeze is not None:
        _freeze(freeze, report, model, source, tokens, cases, expected[torch.float64])


def _against(report: Report, source: Path, model: Any, frozen: "Frozen", named: str) -> None:
    """What a file says the reference answered, for this config, these weights and this tokeniser."""
    report.against = f"{named}: {frozen.facts['reference']}"
    report.versions |= frozen.facts["versions"]
    published = frozen.facts["config"]
    layout = next((each for each in model.layouts if each.model_type == published.get("model_type")), None)
    if layout is None:
        report.problems.append(f"The file is of a {published.get('model_type')!r}, the checkpoint a {report.model}.")
        return
    then, now = dataclasses.asdict(layout.read(published)), dataclasses.asdict(model.config)
    changed = [f"{name} was {then[name]} and is {now[name]}" for name in then if then[name] != now[name]]
    if changed:
        report.problems.append(f"The config is not the one that was frozen: {'; '.join(changed)}.")
    if frozen.facts.get("weights") not in (None, fingerprint(model)):
        report.problems.append("The weights are not those that were frozen.")
    if frozen.facts.get("tokens") is not None:
        _compare_tokens(report, _our_tokens(source, list(frozen.facts["tokens"])), frozen.facts["tokens"], "the file")
    expected = dict.fromkeys(TOLERANCES, frozen.states)
    _compare(report, source, REFERENCES[report.model], frozen.cases, expected)


def _shipped(report: Report, source: Path, model: Any) -> None:
    """The small model that comes with us; of the checkpoint itself, that it was loaded strictly and is finite."""
    frozen = read_frozen(SHIPPED / f"{report.model}.safetensors")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(frozen.facts["config"]), encoding="utf-8")
        save_file(frozen.weights, Path(folder, "model.safetensors"))
        small = load(folder)
        _against(report, Path(folder), small, frozen, "a small model that comes with scratchformers")
    if not all(bool(value.isfinite().all()) for value in model.state_dict().values()):
        report.problems.append("The checkpoint's weights are not all finite numbers.")
    report.against += (
        ". This proves the code, not the checkpoint, of which every tensor found its place: for that, "
        "`pip install transformers`, or pass --against a file that --freeze wrote"
    )


@contextlib.contextmanager
def _importable() -> Iterator[None]:
    """transformers imports torchvision where it is installed; one built for another torch breaks it: hidden here."""
    had = sys.modules.get("torchvision")
    if had is None:
        sys.modules["torchvision"] = None  # pyrefly: ignore (that is how Python is told that a module is not there)
    try:
        yield
    finally:
        if had is None:
            del sys.modules["torchvision"]


# --- the numbers


def _states(model: nn.Module, paths: Mapping[str, str], cases: dict[str, Case], call: Call, last: str) -> States:
    """What stands at the places (named as ours), at real tokens, and the result of the call, named `last`."""
    found: States = {}
    for name, case in cases.items():
        seen: dict[str, Tensor] = {}
        hooks = [model.get_submodule(path).register_forward_hook(_noting(seen, at)) for at, path in paths.items()]
        try:
            with torch.no_grad():
                seen[last] = call(model, **case)
        finally:
            for hook in hooks:
                hook.remove()
        keep = case.get("keep")
        found[name] = {place: value if keep is None else value[keep] for place, value in seen.items()}
    return found


def _noting(seen: dict[str, Tensor], place: str) -> Callable[..., None]:
    def hook(module: nn.Module, given: Any, out: Any) -> None:
        seen[place] = out[0] if isinstance(out, tuple) else out

    return hook


def _compare(report: Report, source: Path, reference: Reference, cases: dict[str, Case], expected: dict) -> None:
    """Fills in `places` and `agreement`: each way of ours in each precision."""
    found: dict[str, dict[str, tuple[float, float, float]]] = {}
    names = {"output": "logits"}
    for dtype, theirs in expected.items():
        model = load(source, dtype=dtype)
        places = reference.places(model.config)
        names |= dict(places)
        for way, call in reference.ours.items():
            within = [ours for ours, _ in places] if way == "output" else []
            states = _try(report, model, within, cases, call, way)
            for place in [*within, way]:
                pairs = [
                    (state.get(place), theirs[case].get(place, theirs[case]["output"]))
                    for case, state in states.items()
                ]
                found.setdefault(place, {})[_name(dtype)] = _difference(pairs)
                if place == "output":
                    report.agreement[_name(dtype)] = _agreement(pairs)
    for place, figures in found.items():
        scale = max(1.0, figures["float64"][2])
        passes = all(figures[_name(dtype)][0] <= bound * scale for dtype, bound in TOLERANCES.items())
        largest, mean = ({dtype: values[i] for dtype, values in figures.items()} for i in (0, 1))
        report.places.append(Place(place, names.get(place, "logits"), largest, mean, figures["float64"][2], passes))


def _try(report: Report, model: Any, within: list[str], cases: dict[str, Case], call: Call, way: str) -> States:
    """What ours gives, or nothing and a sentence where it fails: a wrong model may, and a wrong config."""
    token = ragged.padded.set(bool(within))  # else blocks would see rows without their padding
    try:
        return _states(model, {path: path for path in within}, cases, call, way)
    except (ValueError, IndexError, RuntimeError) as error:
        sentence = f"The model fails ({way}): {error}"
        report.problems += [sentence] if sentence not in report.problems else []
        return {case: {} for case in cases}
    finally:
        ragged.padded.reset(token)


def _alike(pairs: list[tuple[Tensor | None, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """The pairs, ours with as many columns as the file kept; none where one is missing or has another shape."""
    thinned = [(_thin(a) if a is not None and a.shape != b.shape else a, b) for a, b in pairs]
    alike = [(a, b) for a, b in thinned if a is not None and a.shape == b.shape]
    return alike if len(alike) == len(pairs) else []


def _difference(pairs: list[tuple[Tensor | None, Tensor]]) -> tuple[float, float, float]:
    """The largest and the mean difference, and the largest value; NaN, which passes nothing, where there is none."""
    alike = _alike(pairs)
    if not alike:
        return math.nan, math.nan, math.nan
    apart = torch.cat([(a.double() - b.double()).abs().flatten() for a, b in alike])
    return float(apart.max()), float(apart.mean()), max(float(b.abs().max()) for _, b in alike)


def _agreement(pairs: list[tuple[Tensor | None, Tensor]]) -> float:
    same = [(a.argmax(-1) == b.argmax(-1)).flatten() for a, b in _alike(pairs)]
    return float(torch.cat(same).double().mean()) if same else 0.0


def _thin(output: Tensor) -> Tensor:
    """At most MOST columns, spread evenly: what a file keeps of an output."""
    columns = output.shape[-1]
    return output if columns <= MOST else output[..., torch.linspace(0, columns - 1, MOST).long()]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# --- tokenisers


def _our_tokens(source: Path, texts: list[str] | tuple[str, ...] = TEXTS) -> dict[str, list[int]]:
    """The ids of each text that has ids for all of it; empty where the checkpoint has no tokeniser."""
    try:
        tokenizer = load_tokenizer(source)
    except FileNotFoundError:
        return {}
    found = {}
    for text in texts:
        with contextlib.suppress(ValueError):
            found[text] = tokenizer.encode(text)
    return found


def _their_tokens(transformers: Any, source: Path, texts: Mapping[str, Any]) -> dict[str, list[int]]:
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError):  # files that it does not read: OpenAI's own, say
        return {}
    return {text: list(tokenizer(text)["input_ids"]) for text in texts}


def _check_ids(report: Report, ids: list[int], config: Any) -> None:
    if ids and max(ids) >= config.vocab:
        report.problems.append(
            f"The tokeniser is not this model's: it gives id {max(ids)}, and the model knows 0 to {config.vocab - 1}."
        )


def _compare_tokens(report: Report, ours: dict[str, list[int]], theirs: dict[str, list[int]], whose: str) -> None:
    if not theirs:
        report.tokenizer = f"not compared, for {whose} does not read it"
        return
    different = [text for text in theirs if ours.get(text) != theirs[text]]
    report.tokenizer = f"{len(theirs) - len(different)} of {len(theirs)} texts have the same ids"
    if different:
        text = different[0]
        report.problems.append(
            f"The tokeniser differs from {whose} on {len(different)} of {len(theirs)} texts, first on {text[:30]!r}: "
            f"ours {(ours.get(text) or [])[:8]}, theirs {theirs[text][:8]}."
        )


# --- frozen outputs


@dataclass(frozen=True)
class Frozen:
    facts: dict[str, Any]
    cases: dict[str, Case]
    states: States
    weights: dict[str, Tensor]  # of a small model that the file brings along


def read_frozen(path: Path) -> Frozen:
    """Raises ValueError where the file is not one that `freeze` wrote."""
    try:
        with safe_open(path, "pt") as file:
            metadata, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise
    except Exception as error:  # safetensors raises its own, and OSError for some
        raise ValueError(f"{path} is no safetensors file ({error}).") from None
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} was not written by `scratchformers verify --freeze`.")
    cases: dict[str, Case] = {}
    states: States = {}
    for name, value in tensors.items():
        part, _, rest = name.partition("/")
        where = {"inputs": cases, "reference": states}.get(part)
        if where is not None:
            case, _, key = rest.partition("/")
            where.setdefault(case, {})[key] = value
    weights = {name.removeprefix("weights/"): x for name, x in tensors.items() if name.startswith("weights/")}
    return Frozen(json.loads(metadata["facts"]), cases, states, weights)


def _freeze(path: Path, report: Report, model: Any, source: Path, tokens: dict, cases: dict, states: States) -> None:
    facts = {
        "reference": report.against,
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "config": read_config(source),
        "weights": fingerprint(model),
        "tokens": tokens or None,
    }
    tensors = {f"inputs/{case}/{key}": value.clone() for case, given in cases.items() for key, value in given.items()}
    for case, state in states.items():
        tensors |= {f"reference/{case}/{place}": _thin(value).contiguous() for place, value in state.items()}
    write = partial(save_file, tensors, metadata={"format": FORMAT, "facts": json.dumps(facts)})
    files.write_together(path.absolute().parent, {path.name: write}, last=path.name)
