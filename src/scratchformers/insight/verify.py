"""Is this checkpoint what it should be? Ours and the reference on the same inputs, layer by layer.

The reference is the installed transformers; or what it answered once, frozen in a file; or, where there is neither,
what it answered for a small model that comes with us, which proves the code and not the checkpoint.
"""

import contextlib
import dataclasses
import hashlib
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
from scratchformers.checkpoints.pretrained import Config, fingerprint, read_config, spelt_out
from scratchformers.insight.references import REFERENCES, Call, Case, Reference
from scratchformers.models import load, load_tokenizer

# Of the largest value at a place, or of 1 if that is more. Rounding alone came to 6e-15 and 4e-6 in GPT-2 124M
# (benchmarks/results/verify.json); the slightest of the planted bugs, the wrong GELU, to 3e-4 of both in a small model.
# float64 decides, by a wide margin; float32, whose rounding grows with depth, shows only what is wrong in it alone.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4}
MOST = 512  # columns of an output that are frozen, spread over all
FORMAT = "scratchformers-verify-1"
SHIPPED, SMALL = Path(__file__).parent / "frozen", "a small model that comes with scratchformers"
TEXTS = (
    "Hello, world!", " leading and trailing ", "it's they'll WE'VE", "a\n\nb\tc\r\n", "1905 19 05 3.14159",
    "naïve façade ÅÄÖ ß", "Привет, мир", "你好,世界 日本語", "👩\u200d👧 🏳\ufe0f\u200d🌈 😀", "e\u0301 \u00e9 \u00a0",
    "...!!!???", "<|endoftext|>", "one<|endoftext|>two", "x" * 500, "    indented(code)",
)  # fmt: skip

OWN = 300  # ids whose text is one more text
States = dict[str, dict[str, Tensor]]  # of each case, what stood at each place
Spelling = dict[str, Any]  # of each text [its ids, what they are decoded to], or None where it cannot be spelt


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
    published: str | None = None  # the preset whose published weights these are, to the last bit
    caveat: str = ""  # what this comparison cannot show
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
    _check_weights(report, model, files.find_weights(source))
    if against is not None:
        _against(report, source, model, read_frozen(against), str(against))
    elif installed:
        _beside(report, source, model, seed, freeze)
    else:
        _shipped(report)
    return report


def _check_weights(report: Report, model: Any, weights: Path) -> None:
    """All are numbers, also those that no input reaches; and published ones stand beside the config they came with."""
    if strange := [name for name, value in model.state_dict().items() if not bool(value.isfinite().all())]:
        report.problems.append(f"The checkpoint's weights are not all finite numbers: {', '.join(strange[:5])}.")
    for name, (size, digest) in REFERENCES[report.model].published.items():
        if weights.stat().st_size == size and _sha256(weights) == digest:
            report.published = name
            if changed := _changed(model.presets[name], model.config, apart="dropout"):
                report.problems.append(f"The config is not the one these weights were published with: {changed}.")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _changed(then: Config, now: Config, apart: str = "") -> str:
    a, b = spelt_out(then), spelt_out(now)
    return "; ".join(f"{name} was {a[name]} and is {b[name]}" for name in a if a[name] != b[name] and name != apart)


# --- against what


def _beside(report: Report, source: Path, model: Any, seed: int, freeze: Path | None) -> None:
    """transformers, on the same checkpoint, in both precisions."""
    reference = REFERENCES[report.model]
    tokens = _our_tokens(source)
    text = [id for spelt in (tokens or {}).values() if spelt for id in spelt[0]]
    fits = _check_ids(report, text, model.config)
    cases = reference.cases(model.config, torch.Generator().manual_seed(seed), text if fits else [])
    expected: dict[torch.dtype, States] = {}
    their_tokens = None
    with _importable():
        try:
            import transformers
        except ImportError as error:
            said = str(error).partition("\n")[0]
            raise ValueError(
                f"transformers is installed and cannot be imported ({said}): mend it, or pass --against a file."
            ) from None

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        kind, told_of = reference.kind(model)
        report.against = f"transformers {transformers.__version__}, {kind}"
        report.versions["transformers"] = transformers.__version__
        for dtype in TOLERANCES:
            theirs, told = getattr(transformers, kind).from_pretrained(
                source, dtype=dtype, output_loading_info=True, **told_of
            )
            if dtype == torch.float64:
                for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
                    if told.get(what):
                        listed = ", ".join(sorted(map(str, told[what]))[:5])
                        report.problems.append(f"transformers reports {what.replace('_', ' ')}: {listed}.")
            paths = dict(reference.places(model))
            expected[dtype] = _states(theirs.eval(), paths, cases, reference.theirs, "output")
            del theirs
        if tokens is not None:
            their_tokens = _their_tokens(report, transformers, source, tokens)
    if their_tokens is not None:
        _compare_tokens(report, tokens, their_tokens, "transformers")
    _compare(report, source, reference, cases, expected)
    if report.published is None:
        report.caveat = (
            "Both read the same config.json and the same tokeniser: whether somebody changed those, only --against "
            "a file that was frozen before can tell."
        )
    if freeze is not None:
        _freeze(freeze, report, model, source, their_tokens, cases, expected[torch.float64])


def _against(report: Report, source: Path, model: Any, frozen: "Frozen", named: str) -> None:
    """What a file says the reference answered, for this config, these weights and this tokeniser."""
    report.against = f"{named}: {frozen.facts['reference']} on torch {frozen.facts['versions']['torch']}"
    published = frozen.facts["config"]
    layout = next((each for each in model.layouts if each.model_type == published.get("model_type")), None)
    if layout is None:
        report.problems.append(f"The file is of a {published.get('model_type')!r}, the checkpoint a {report.model}.")
        return
    if changed := _changed(layout.read(published), model.config):
        report.problems.append(f"The config is not the one that was frozen: {changed}.")
    if frozen.facts.get("weights") not in (None, fingerprint(model)):
        report.problems.append("The weights are not those that were frozen.")
    if (tokens := frozen.facts.get("tokens")) is not None:
        _compare_tokens(report, _our_tokens(source, list(tokens)), tokens, "the file")
    elif named != SMALL and _our_tokens(source, []) is not None:
        report.tokenizer = "not compared, for the file was frozen without one"
    expected = dict.fromkeys(TOLERANCES, frozen.states)
    _compare(report, source, REFERENCES[report.model], frozen.cases, expected)


def _shipped(report: Report) -> None:
    """The small model that comes with us; of the checkpoint itself, that it was loaded strictly and is finite."""
    frozen = read_frozen(SHIPPED / f"{report.model}.safetensors")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(frozen.facts["config"]), encoding="utf-8")
        save_file(frozen.weights, Path(folder, "model.safetensors"))
        _against(report, Path(folder), load(folder), frozen, SMALL)
    report.tokenizer = "not compared"
    report.caveat = (
        "This proves the code, not the checkpoint, of which every tensor found its place: for that, "
        "`pip install transformers`, or pass --against a file that --freeze wrote."
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
        found[name] = {place: _real(value, keep) for place, value in seen.items()}
    return found


def _real(value: Tensor, keep: Tensor | None) -> Tensor:
    """What stands at real tokens; of what there is one of for each row, all."""
    return value if keep is None or value.ndim < 3 else value[keep]


def _noting(seen: dict[str, Tensor], place: str) -> Callable[..., None]:
    def hook(module: nn.Module, given: Any, out: Any) -> None:
        seen[place] = out[0] if isinstance(out, tuple) else out

    return hook


def _compare(report: Report, source: Path, reference: Reference, cases: dict[str, Case], expected: dict) -> None:
    """Fills in `places` and `agreement`: each way of ours in each precision."""
    found: dict[str, dict[str, tuple[float, float, float]]] = {}
    names, faults = {"output": "logits"}, []
    for dtype, theirs in expected.items():
        model = load(source, dtype=dtype)
        places = reference.places(model)
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
                faults += _faults(pairs, place, _name(dtype))
                if place == "output":
                    report.agreement[_name(dtype)] = _agreement(pairs)
    for place, figures in found.items():
        scale = max(1.0, figures["float64"][2])
        finite = all(math.isfinite(value) for values in figures.values() for value in values)
        passes = finite and all(figures[_name(dtype)][0] <= bound * scale for dtype, bound in TOLERANCES.items())
        largest, mean = ({dtype: values[i] for dtype, values in figures.items()} for i in (0, 1))
        report.places.append(Place(place, names.get(place, "logits"), largest, mean, figures["float64"][2], passes))
    report.problems += faults[:1]  # what follows the first follows from it


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


def _faults(pairs: list[tuple[Tensor | None, Tensor]], place: str, dtype: str) -> list[str]:
    """Why these cannot be compared by numbers, a sentence each."""
    found = []
    for a, b in pairs:
        shapes = a is not None and (_thin(a) if a.shape != b.shape else a).shape != b.shape
        strange = [whose for whose, x in (("ours", a), ("theirs", b)) if x is not None and not bool(x.isfinite().all())]
        if a is not None and shapes:
            found.append(f"At {place} ours has the shape {list(a.shape)} and theirs {list(b.shape)}.")
        if strange:
            found.append(f"At {place}, in {dtype}, {' and '.join(strange)} are not all finite numbers.")
    return found


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


def _our_tokens(source: Path, texts: list[str] | None = None) -> Spelling | None:
    """Of each text (by default TEXTS, and one of the tokeniser's own words); None where there is no tokeniser."""
    try:
        tokenizer = load_tokenizer(source)
    except FileNotFoundError:
        return None
    found: Spelling = {}
    for text in (*TEXTS, tokenizer.decode(range(min(OWN, tokenizer.vocab)))) if texts is None else texts:
        found[text] = None  # refused: it holds characters without an id
        with contextlib.suppress(ValueError):
            ids = tokenizer.encode(text)
            found[text] = [ids, tokenizer.decode(ids)]
    return found


def _their_tokens(report: Report, transformers: Any, source: Path, ours: Spelling) -> Spelling | None:
    """The same of transformers. Characters without an id it drops: a text that does not come back is one it refuses, if
    ours does."""
    try:
        tokenizer = _their_tokenizer(transformers, source)
    except Exception as error:  # bare Exception, among others
        said = str(error).partition("\n")[0]
        report.tokenizer = "not compared"
        report.problems.append(f"transformers cannot read the tokeniser ({said}), which ours can.")
        return None
    found: Spelling = {}
    for text, spelt in ours.items():
        ids = list(tokenizer(text)["input_ids"])
        back = tokenizer.decode(ids)
        found[text] = None if spelt is None and back != text else [ids, back]
    return found


def _their_tokenizer(transformers: Any, source: Path) -> Any:
    if any((source / name).is_file() for name in ("tokenizer.json", files.VOCABULARIES[0][0])):
        return transformers.AutoTokenizer.from_pretrained(source)
    with tempfile.TemporaryDirectory() as folder:  # OpenAI's names it does not know: it would make an empty tokeniser
        for name, content in {**files.read_assets(source), "config.json": files.to_json(read_config(source))}.items():
            Path(folder, name).write_bytes(content)
        return transformers.AutoTokenizer.from_pretrained(folder)


def _check_ids(report: Report, ids: list[int], config: Any) -> bool:
    fits = not ids or max(ids) < config.vocab
    if not fits:
        report.problems.append(
            f"The tokeniser is not this model's: it gives id {max(ids)}, and the model knows 0 to {config.vocab - 1}."
        )
    return fits


def _compare_tokens(report: Report, ours: Spelling | None, theirs: Spelling, whose: str) -> None:
    ours = ours or {}
    different = [text for text in theirs if ours.get(text, ()) != theirs[text]]
    refused = sum(theirs[text] is None for text in theirs)
    same = len(theirs) - len(different) - refused
    report.tokenizer = f"{same} of {len(theirs) - refused} texts have the same ids and come back the same"
    report.tokenizer += f"; {refused} hold characters it has no id for" if refused else ""
    if different:
        text = different[0]
        said = [_spelt(spelling.get(text)) for spelling in (ours, theirs)]
        report.problems.append(
            f"The tokeniser differs from {whose} on {len(different)} of {len(theirs)} texts, first on {text[:30]!r}: "
            f"ours {said[0]}, theirs {said[1]}."
        )


def _spelt(spelling: list[Any] | None) -> str:
    return "gives none" if spelling is None else f"{spelling[0][:8]}, read back as {spelling[1][:30]!r}"


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
    if metadata.get("format") != FORMAT or "facts" not in metadata:
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


def _freeze(path: Path, report: Report, model: Any, source: Path, tokens: Any, cases: dict, states: States) -> None:
    facts = {
        "reference": report.against,
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "config": read_config(source),
        "weights": fingerprint(model),
        "tokens": tokens,
    }
    tensors = {f"inputs/{case}/{key}": value.clone() for case, given in cases.items() for key, value in given.items()}
    for case, state in states.items():
        tensors |= {f"reference/{case}/{place}": _thin(value).contiguous() for place, value in state.items()}
    write = partial(save_file, tensors, metadata={"format": FORMAT, "facts": json.dumps(facts)})
    files.write_together(path.absolute().parent, {path.name: write}, last=path.name)
