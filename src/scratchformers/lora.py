"""LoRA (Hu et al. 2021): a model learns by small matrices beside those of its blocks, which stay as they are.

    from scratchformers import lora

    lora.add(model, rank=8)  # train it, then
    lora.save(model, folder)  # the adapters alone, as PEFT reads them, and
    lora.merge(model)  # a model as any other

Names of the state dict stay; an adapter adds `lora_a` (rank, in) and `lora_b` (out, rank) to its linear's.
"""

import contextlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scratchformers.checkpoints import files, tables
from scratchformers.checkpoints.pretrained import Pretrained
from scratchformers.linear import Linear, linear

LINEARS = ("q", "kv", "out", "up", "down")  # of a block, its cross-attention included
A, B = "lora_a", "lora_b"
HEAD = ("head.", "pooler.")  # how the names begin of what says labels: it learns as a whole
WEIGHTS, CONFIG, ROOT = "adapter_model.safetensors", "adapter_config.json", "base_model.model."  # PEFT's
# What transformers 5 calls the modules whose tensors it publishes under the older names, by the layout's prefix.
RESPELT = {
    "vit.": (
        ("encoder.layer.", "layers."),
        ("attention.attention.query", "attention.q_proj"),
        ("attention.attention.key", "attention.k_proj"),
        ("attention.attention.value", "attention.v_proj"),
        ("attention.output.dense", "attention.o_proj"),
        ("intermediate.dense", "mlp.fc1"),
        ("output.dense", "mlp.fc2"),
    )
}


def read(given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `add`, all of them, of what a user wrote or a run's config.json says. ValueError for another
    name, or another kind of value."""
    kinds: dict[str, Any] = {"rank": int, "alpha": float, "dropout": float, "linears": _names}
    found: dict[str, Any] = {"rank": 8, "dropout": 0.0, "linears": "all", **given}
    found.setdefault("alpha", 2 * float(found["rank"]) if str(found["rank"]).isdecimal() else 0)
    for key, value in found.items():
        if key not in kinds:
            raise ValueError(f"--lora has no {key!r}: expected one of {', '.join(kinds)}.")
        try:
            found[key] = kinds[key](value)
        except ValueError:
            raise ValueError(f"--lora {key}={value} is no {'whole ' * (key == 'rank')}number.") from None
    return found


def _names(value: Any) -> list[str]:
    chosen = value.split(",") if isinstance(value, str) else [*value]
    return sorted(LINEARS if chosen == ["all"] else {*chosen})


class Adapted(Linear):
    """x W' + b + scale (x A') B' (equation 3), of which A and B learn."""

    def __init__(self, own: nn.Linear, a: Tensor, b: Tensor, *, scale: float, dropout: float = 0.0):
        _assemble(self, own, own.weight)
        self.lora_a, self.lora_b, self.scale = nn.Parameter(a), nn.Parameter(b), scale
        self.dropout = nn.Dropout(dropout).train(own.training)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + self.scale * linear(linear(self.dropout(input), self.lora_a), self.lora_b)

    @torch.no_grad()
    def merged(self) -> Linear:
        """The one linear that computes the same; it learns if that of the base does."""
        weight = self.weight + self.scale * (self.lora_b @ self.lora_a)
        learns = self.weight.requires_grad
        return _assemble(Linear.__new__(Linear), self, nn.Parameter(weight, requires_grad=learns))


def _assemble(made: Any, own: nn.Linear, weight: Tensor) -> Any:
    """A linear as `own` is, of another weight. What `nn.Linear` begins with, it draws: nothing is drawn here."""
    nn.Module.__init__(made)
    made.in_features, made.out_features, made.training = own.in_features, own.out_features, own.training
    made.weight, made.bias = weight, own.bias
    return made


def adapters(model: nn.Module) -> dict[str, Adapted]:
    """By the path of the linear."""
    return {path: module for path, module in model.named_modules() if isinstance(module, Adapted)}


def add(
    model: nn.Module,
    *,
    rank: int = 8,
    alpha: float | None = None,
    dropout: float = 0.0,
    linears: Sequence[str] = LINEARS,
) -> None:
    """Gives these linears of all blocks an adapter; what it adds is multiplied by alpha / rank (twice without `alpha`).
    `dropout` is that of its input. B begins at 0, so that the model is unchanged. Of the rest a head with labels goes
    on learning, and the pooler it reads. ValueError for a model that has adapters."""
    alpha = 2.0 * rank if alpha is None else alpha
    if rank < 1 or not 0 < alpha < math.inf or not 0 <= dropout < 1:
        what = f"rank {rank}, alpha {alpha}, dropout {dropout}"
        raise ValueError(f"Adapters have {what}: expected a rank from 1, an alpha above 0, a dropout from 0 to 1.")
    if not linears or not set(linears) <= set(LINEARS):
        raise ValueError(f"linears are {','.join(linears)}: expected some of {','.join(LINEARS)}, or all.")
    if adapters(model):
        raise ValueError("The model has adapters: merge them before others are added.")
    found: dict[str, Any] = {path: own for path, own in model.named_modules() if _place(path) in linears}
    _freeze(model)
    for path, own in found.items():
        a = torch.empty(rank, own.in_features, dtype=own.weight.dtype, device=own.weight.device)
        nn.init.uniform_(a, -(own.in_features**-0.5), own.in_features**-0.5)
        b = a.new_zeros(own.out_features, rank)
        model.set_submodule(path, Adapted(own, a, b, scale=alpha / rank, dropout=dropout))


def _place(path: str) -> str | None:
    found = re.fullmatch(r"(?:.*\.)?blocks\.\d+\.\w+\.(\w+)", path)
    return found and found[1]


def _freeze(model: nn.Module) -> None:
    whole = HEAD if hasattr(getattr(model, "head", None), "labels") else ()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name.startswith(whole))


def merge(model: nn.Module) -> None:
    """Puts plain linears that compute the same in the place of those with adapters; what was frozen stays so."""
    for path, adapted in adapters(model).items():
        model.set_submodule(path, adapted.merged())


@contextlib.contextmanager
def merged(model: nn.Module) -> Iterator[None]:
    """Within it the model is merged; afterwards it has its adapters again."""
    own = adapters(model)
    merge(model)
    try:
        yield
    finally:
        for path, adapted in own.items():
            model.set_submodule(path, adapted)


# --- PEFT's files


class _Places:
    """Where what learns stands in a file of PEFT's: under the names of transformers' modules, by the weight table."""

    def __init__(self, model: Pretrained):
        self.layout = model.saved_as()
        self.ours = {name: x for name, x in model.state_dict().items() if not name.endswith((A, B))}
        shapes = {name: x.to("meta") for name, x in self.ours.items()}
        saved, outside = tables.save(self.layout, shapes, model.config), self.layout.outside
        body = outside and not any(name.startswith(outside) for name in saved)  # without a head
        self.prefix = "" if body else self.layout.prefix

    def entries(self) -> Iterator[tuple[tables.Entry, list[str]]]:
        """The rows of the table, each of our tensors once, and what their modules are called there."""
        seen: set[str] = set()
        for entry in tables.entries(self.layout.rows, self.ours):
            if not seen.issuperset(entry.ours):
                seen.update(entry.ours)
                outside = self.layout.outside
                named = [x if outside and x.startswith(outside) else self.prefix + x for x in entry.theirs]
                yield entry, [self.respelt(name) for name in named]

    def respelt(self, name: str) -> str:
        for before, now in RESPELT.get(self.layout.prefix, ()):
            name = name.replace(before, now)
        return name


@torch.no_grad()
def save(model: Pretrained, folder: str | Path, *, base: str | None = None) -> None:
    """Writes the adapters, and what else learns, as PEFT does for transformers' model; `base` is what they belong to.

    A linear that is two of theirs (keys and values) is cut: both have its A, and each its rows of B. Several of ours
    that are one of theirs (GPT-2's queries, keys and values) are stacked: A of so much higher a rank, B in blocks.
    ValueError for a model without adapters.
    """
    if not (own := adapters(model)):
        raise ValueError("The model has no adapters: lora.add gives it some.")
    first, places, turned = next(iter(own.values())), _Places(model), False
    rank, scale, tensors, ranks = len(first.lora_a), first.scale, {}, {}
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for entry, names in places.entries():
        found = [own.get(name.removesuffix(".weight")) for name in entry.ours]
        if any(found):
            rows = [len(places.ours[name]) for name in entry.ours]
            a, b = _stacked([(x.lora_a, x.lora_b * (x.scale / scale)) if x else None for x in found], rows)
            turned = turned or entry.how in (tables.TRANSPOSED, tables.TURNED)
            for module, part in zip((name.removesuffix(".weight") for name in names), b.chunk(len(names))):
                tensors |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": part}
                ranks[module] = len(a)
        elif learning.issuperset(entry.ours):
            tensors[names[0]] = entry.how.save(places.ours[entry.ours[0]], model.config)
    higher = {module: found for module, found in ranks.items() if found != rank}
    whole = [name.rpartition(".")[0] for name in tensors if ".lora_" not in name]
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": scale * rank,
        "lora_dropout": first.dropout.p,
        "target_modules": [*ranks],
        "rank_pattern": higher,
        "alpha_pattern": {module: scale * found for module, found in higher.items()},
        "modules_to_save": [*dict.fromkeys(whole)] or None,
        "fan_in_fan_out": turned,
        "bias": "none",
        "inference_mode": True,
    }
    copies = {ROOT + name: value.detach().contiguous().clone() for name, value in tensors.items()}
    writers = {WEIGHTS: lambda file: files.save_tensors(file, copies), CONFIG: partial(_write, config=config)}
    files.write_together(Path(folder), writers, last=CONFIG)


def _write(path: Path, config: Mapping[str, Any]) -> None:
    path.write_bytes(files.to_json(config))


def _stacked(pairs: Sequence[tuple[Tensor, Tensor] | None], rows: Sequence[int]) -> tuple[Tensor, Tensor]:
    """One A and one B for outputs that stand side by side, each with its own pair or none, and so many `rows`."""
    given = [pair for pair in pairs if pair]
    a, b = given[0]
    if all(torch.equal(a, other) for other, _ in given):
        return a, torch.cat([pair[1] if pair else b.new_zeros(n, len(a)) for pair, n in zip(pairs, rows)])
    blocks = [pair[1] if pair else b.new_zeros(n, 0) for pair, n in zip(pairs, rows)]
    return torch.cat([a for a, _ in given]), torch.block_diag(*blocks)


def _used(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Without what B takes nothing of, which is another part's: `_stacked` undone."""
    used = (b != 0).any(0)
    return (a[used], b[:, used]) if used.any() else (a, b)


@torch.no_grad()
def load(model: Pretrained, folder: str | Path) -> None:
    """Gives the model the adapters of a folder that `save` or PEFT wrote, and what else learnt with them. ValueError
    where they are of another kind, or of another model."""
    folder, places = Path(folder), _Places(model)
    config, tensors = files.read_json(folder / CONFIG), files.read_tensors(folder / WEIGHTS)
    other = config.get("use_dora") or config.get("use_rslora") or config.get("bias", "none") != "none"
    if config.get("peft_type") != "LORA" or other or not {"r", "lora_alpha", "lora_dropout"} <= config.keys():
        raise ValueError(f"{folder} holds no plain LoRA: expected peft_type LORA, without DoRA, rsLoRA and biases.")
    if adapters(model):
        raise ValueError("The model has adapters: merge them before others are loaded.")
    given, alphas = float(config["lora_alpha"]), config.get("alpha_pattern") or {}
    scale, made, whole = given / config["r"], {}, {}
    left = {places.respelt(name.removeprefix(ROOT)): value for name, value in tensors.items()}
    for entry, names in places.entries():
        if names[0] in left:
            whole[entry.ours[0]] = entry.how.load(left.pop(names[0]))
        pairs = []
        for module in (name.removesuffix(".weight") for name in names):
            a, b = (left.pop(f"{module}.lora_{kind}.weight", None) for kind in "AB")
            own = next((alpha for end, alpha in alphas.items() if f".{module}".endswith(f".{end}")), given)
            pairs.append(None if a is None or b is None else (a, b * (own / len(a) / scale)))
        if any(pairs):
            rows = [len(places.ours[name]) for name in entry.ours]
            a, b = _stacked(pairs, [sum(rows) // len(names)] * len(names))
            cut = b.split(rows) if len(b) == sum(rows) else [b] * len(rows)  # the whole, whose shape is then wrong
            made |= {name.removesuffix(".weight"): _used(a, part) for name, part in zip(entry.ours, cut)}
    wrong = [name for name, x in whole.items() if x.shape != places.ours[name].shape]
    wrong += [path for path, (a, b) in made.items() if (len(b), a.shape[1]) != places.ours[f"{path}.weight"].shape]
    if left or wrong or not made:
        found = ", ".join([*left, *wrong]) or "nothing"
        raise ValueError(f"{folder} is not of this {type(model).__name__}: it holds {found}, which has no place in it.")
    _freeze(model)
    for name, value in whole.items():
        places.ours[name].copy_(value)
    for path, (a, b) in made.items():
        own: Any = model.get_submodule(path)
        a, b = (x.to(own.weight, copy=True) for x in (a, b))
        model.set_submodule(path, Adapted(own, a, b, scale=scale, dropout=config["lora_dropout"]))
