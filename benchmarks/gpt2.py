"""GPT-2 124M beside transformers', weights random in the published layout and sizes: speed does not depend on them."""

import harness

MAKE = """
import torch, transformers
torch.manual_seed(0)
model = transformers.GPT2LMHeadModel(transformers.GPT2Config(bos_token_id=50256, eos_token_id=50256)).eval()
for name, parameter in model.named_parameters():
    if parameter.ndim == 2: torch.nn.init.normal_(parameter, std=0.08)  # so that the text varies
model.save_pretrained({folder!r})
"""
IMPORT = {
    "ours": "import torch; from scratchformers import GPT2, load, generate",
    "theirs": "import torch; from transformers import GPT2LMHeadModel",
}
FIRST = {
    "ours": "import torch; from scratchformers import load; model = load({folder!r}); f = lambda x: model(x)",
    "theirs": "import torch; from transformers import GPT2LMHeadModel as M; "
    "model = M.from_pretrained({folder!r}); f = lambda x: model(x).logits",
}
LOGITS = "\nwith torch.no_grad(): answer = float(f(torch.arange(128)[None]).double().abs().mean())"


def models(folder, side, device):
    import torch

    if side == "ours":
        import scratchformers as sf

        return torch, sf, sf.load(folder, device=device)
    import transformers

    transformers.utils.logging.disable_progress_bar()
    return torch, transformers, transformers.GPT2LMHeadModel.from_pretrained(folder).eval().to(device)


def greedy(folder, side, device, quick):
    torch, library, model = models(folder, side, device)
    ids = torch.randint(50257, (1, 128), generator=torch.Generator().manual_seed(1))
    return _greedy(library, model, side, ids.to(device), torch.ones_like(ids).bool().to(device), 16 if quick else 64)


def ragged(folder, side, device, quick):
    torch, library, model = models(folder, side, device)
    ids = torch.randint(50257, (8, 128), generator=torch.Generator().manual_seed(1))
    keep = torch.arange(128) >= 128 - torch.tensor([16, 32, 48, 64, 80, 96, 112, 128])[:, None]
    return _greedy(library, model, side, ids.to(device), keep.to(device), 16 if quick else 32)


def _greedy(library, model, side, ids, keep, new):
    settings = {"max_new_tokens": new, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}

    def work():
        if side == "ours":
            return library.generate(model, ids, keep=keep, max_new_tokens=new, stop=()).tolist()
        return model.generate(ids, attention_mask=keep.long(), **settings).tolist()

    return work, work


def training(folder, side, device, quick):
    """Dropout draws differently, so the answers compared are those without: the loss, and the gradients' norm."""
    torch, library, model = models(folder, side, device)
    if side == "ours":  # as `train --from` makes it: copied out of the file, each matrix row by row
        loaded, model = model, library.GPT2(model.config).to(device)
        model.load_state_dict(loaded.state_dict())
        del loaded
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    ids = torch.randint(
        50257, (2 if quick else 4, 129 if quick else 257), generator=torch.Generator().manual_seed(1)
    ).to(device)
    inputs, targets = ids[:, :-1], ids[:, 1:].flatten()

    def backward():
        logits = model(inputs) if side == "ours" else model(inputs).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets)
        loss.backward()
        return float(loss.detach())

    def steps():
        model.train()
        for _ in range(
            3 if quick else 1
        ):  # short ones take now more, now less: as many pages as the system has at hand
            backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def answer():
        model.eval()
        loss = backward()
        squares = sum(float(parameter.grad.square().sum()) for parameter in model.parameters())
        optimizer.zero_grad(set_to_none=True)
        return [loss, squares**0.5]

    return steps, answer


ROWS = [
    harness.Row("import", "what a program with GPT-2 imports, torch included", code=IMPORT),
    harness.Row(
        "first logits",
        "import, load, and the logits of 128 tokens",
        code={side: code + LOGITS for side, code in FIRST.items()},
    ),
    harness.Row("greedy", "one prompt of 128 tokens, 64 new", "one prompt of 128 tokens, 16 new", greedy),
    harness.Row(
        "ragged",
        "8 prompts of 16 to 128 tokens, left-padded, 32 new",
        "8 prompts of 16 to 128 tokens, left-padded, 16 new",
        ragged,
    ),
    harness.Row(
        "training",
        "a step on 4 x 256 tokens, dropout 0.1, fused AdamW",
        "3 steps on 2 x 128 tokens, dropout 0.1, fused AdamW",
        training,
    ),
]
