"""GPT-2 as transformers has it, on weights that hide nothing. Never imports our code.

torchvision's PyPI build asks for CUDA operators that CPU torch does not have, and transformers imports torchvision when
it is installed. Declaring the schemas of the two lets both be imported; the operators stay unavailable, no test calls
them. Tied to torchvision 0.28.
"""

import torch

_vision = torch.library.Library("torchvision", "FRAGMENT")
_vision.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_vision.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import numpy as np  # noqa: E402
from transformers import GPT2Config, GPT2LMHeadModel  # noqa: E402
from transformers.utils import logging  # noqa: E402

logging.set_verbosity_error()
logging.disable_progress_bar()

# Distinct primes where the architecture allows (n_embd is heads times a width), so that no two axes can be confused.
SIZES = {"vocab_size": 97, "n_positions": 53, "n_embd": 39, "n_layer": 5, "n_head": 3}
END = 63  # a token that about a third of the greedy texts reach


def scrambled(*, std: float = 0.25, seed: int = 0, **changes) -> GPT2LMHeadModel:
    """Every parameter drawn anew, by numpy's frozen generator, in the order of the names.

    With this scale a greedy text has many different tokens (a test counts them); default weights repeat one for ever.
    """
    config = GPT2Config(**{**SIZES, "bos_token_id": END, "eos_token_id": END, **changes})
    model = GPT2LMHeadModel(config).double().eval()
    draw = np.random.RandomState(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            values = torch.from_numpy(draw.standard_normal(tuple(parameter.shape)) * std)
            parameter.copy_(values + (1.0 if "ln_" in name and name.endswith("weight") else 0.0))
    return model


def ids(rows: int, columns: int, *, seed: int = 1) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(seed).randint(0, SIZES["vocab_size"], (rows, columns)))


def greedy(model: GPT2LMHeadModel, prompt: torch.Tensor, new: int, mask: torch.Tensor | None = None, **settings):
    mask = torch.ones_like(prompt) if mask is None else mask
    settings = {"eos_token_id": None, "pad_token_id": 0, **settings}
    return model.generate(prompt, attention_mask=mask, do_sample=False, max_new_tokens=new, **settings)
