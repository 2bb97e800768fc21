"""Writes src/scratchformers/insight/frozen/: a small model and what transformers answers for it, place by place, which
`scratchformers verify` compares with where transformers is not installed.

    python tests/freeze/verify.py

Imports the reference and never our code; what the file holds is described in insight/verify.py.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent.parent))
import reference

TARGET = Path(__file__).parents[2] / "src" / "scratchformers" / "insight" / "frozen" / "GPT2.safetensors"


def cases() -> dict[str, dict[str, torch.Tensor]]:
    ids, left, right = reference.ids(2, 8), torch.ones(2, 8, dtype=torch.bool), torch.ones(2, 8, dtype=torch.bool)
    left[1, :3], right[0, -2:] = False, False
    return {"whole": {"ids": ids}, "left": {"ids": ids, "keep": left}, "right": {"ids": ids, "keep": right}}


def answers(model, ids, keep=None):
    """What stands at transformers' places, under our names, at real tokens."""
    found, whole = {}, keep is None
    keep = torch.ones_like(ids).bool() if whole else keep
    body = model.transformer
    places = {"dropout": body.drop, **{f"blocks.{i}": block for i, block in enumerate(body.h)}, "norm": body.ln_f}
    for name, module in places.items():
        module.register_forward_hook(lambda _, __, out, at=name: found.update({at: out}))
    with torch.no_grad():
        position = (keep.cumsum(-1) - 1).clamp(min=0)
        found["output"] = model(ids, attention_mask=keep.long(), position_ids=position).logits
    tensors = {name: out[0] if isinstance(out, tuple) else out for name, out in found.items()}
    return tensors if whole else {name: value[keep] for name, value in tensors.items()}


def tensors() -> dict[str, torch.Tensor]:
    model = reference.scrambled(n_layer=2, n_embd=24, n_head=3).float()
    found = {f"weights/{name}": x.clone() for name, x in model.state_dict().items() if name != "lm_head.weight"}
    model.double()
    for name, case in cases().items():
        found |= {f"inputs/{name}/{key}": value for key, value in case.items()}
        found |= {f"reference/{name}/{place}": value for place, value in answers(model, **case).items()}
    return {name: value.clone().contiguous() for name, value in found.items()}


def facts() -> dict:
    config = reference.scrambled(n_layer=2, n_embd=24, n_head=3).config.to_dict()
    versions = {name: version(name) for name in ("torch", "transformers")}
    named = f"transformers {versions['transformers']}, GPT2LMHeadModel"
    return {"reference": named, "versions": versions, "config": config, "weights": None, "tokens": None}


if __name__ == "__main__":
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "scratchformers-verify-1", "facts": json.dumps(facts())}
    save_file(tensors(), TARGET, metadata=metadata)
    print(f"wrote {TARGET.stat().st_size} bytes")
