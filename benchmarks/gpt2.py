"""GPT-2 124M beside transformers' on this machine: `python benchmarks/gpt2.py --out benchmarks/results/NAME.json`.

Ours and theirs take turns, in one process with the same threads or in child processes, after their answers were found
equal. Figures are ratios of their time to ours (above 1 we are faster), of the best and of the median round. Weights
are random, in the published layout and sizes; speed does not depend on their values. Needs the `refs` extra.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# torchvision, which the tests need, is hidden from transformers: it would only slow its import down.
HIDE = f"import sys; sys.modules['torchvision'] = None; sys.path.append({str(Path(__file__).parent)!r})\n"
MAKE = """
import torch, transformers
torch.manual_seed(0)
model = transformers.GPT2LMHeadModel(transformers.GPT2Config(bos_token_id=50256, eos_token_id=50256)).eval()
for name, parameter in model.named_parameters():
    if parameter.ndim == 2: torch.nn.init.normal_(parameter, std=0.08)  # so that the text varies
model.save_pretrained({folder!r})
"""
IMPORT = {
    "torch alone": "import torch",
    "ours": "from scratchformers import GPT2, load, generate",
    "theirs": "import torch; from transformers import GPT2LMHeadModel",
}
FIRST = {
    "ours": "import torch; from scratchformers import load; model = load({folder!r}); f = lambda x: model(x)",
    "theirs": "import torch; from transformers import GPT2LMHeadModel as M; "
    "model = M.from_pretrained({folder!r}); f = lambda x: model(x).logits",
}
FIRST_LOGITS = """
import time; began = time.perf_counter()
{code}
with torch.no_grad(): logits = f(torch.arange(128)[None])
seconds = time.perf_counter() - began
import json, gpt2
print(json.dumps([seconds, gpt2.peak(), float(logits.double().sum())]))
"""
PEAK = """
import json, gpt2
gpt2.{work}({folder!r}, {side!r})[0]()
print(json.dumps(gpt2.peak()))
"""
CHILD = {
    **{k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"},
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TQDM_DISABLE": "1",
}


def peak():
    """The most memory this process held, in MiB (Linux): files it mapped included, those of its parent not."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def both(work, folder, rounds):
    """Their and our seconds, taking turns; the first of each is not counted."""
    (ours, answer), (theirs, expected) = work(folder, "ours"), work(folder, "theirs")
    if not equal(answer(), expected()):
        raise SystemExit(f"{work.__name__}: the answers differ; there is nothing to compare.")
    ours(), theirs()
    seconds = {"ours": [], "theirs": []}
    for i in range(rounds):
        for side in (("ours", ours), ("theirs", theirs))[:: 1 if i % 2 else -1]:
            began = time.perf_counter()
            side[1]()
            seconds[side[0]].append(time.perf_counter() - began)
    return seconds


def equal(ours, theirs):
    """The same ids, or figures within 1e-5 of theirs."""
    return ours == theirs if isinstance(ours, list) else abs(ours - theirs) <= 1e-5 * abs(theirs)


def models(folder, side):
    import torch

    if side == "ours":
        import scratchformers as sf

        return torch, sf, sf.load(folder)
    import transformers

    transformers.utils.logging.disable_progress_bar()
    return torch, transformers, transformers.GPT2LMHeadModel.from_pretrained(folder).eval()


def greedy(folder, side):
    """One prompt of 128 tokens, 64 new ones."""
    torch, library, model = models(folder, side)
    ids = torch.randint(50257, (1, 128), generator=torch.Generator().manual_seed(1))
    return _greedy(torch, library, model, side, ids, torch.ones_like(ids).bool(), 64)


def ragged(folder, side):
    """Eight prompts of 16 to 128 tokens, left-padded, 32 new ones."""
    torch, library, model = models(folder, side)
    ids = torch.randint(50257, (8, 128), generator=torch.Generator().manual_seed(1))
    keep = torch.arange(128) >= 128 - torch.tensor([16, 32, 48, 64, 80, 96, 112, 128])[:, None]
    return _greedy(torch, library, model, side, ids, keep, 32)


def _greedy(torch, library, model, side, ids, keep, new):
    settings = {"max_new_tokens": new, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}

    def work():
        if side == "ours":
            return library.generate(model, ids, keep=keep, max_new_tokens=new, stop=()).tolist()
        return model.generate(ids, attention_mask=keep.long(), **settings).tolist()

    return work, work


def training(folder, side):
    """A step on 4 x 256 tokens: forward, backward, fused AdamW; dropout 0.1 in the same places.

    Dropout draws differently, so the answers compared are those without: the loss, and the gradients' norm.
    """
    torch, library, model = models(folder, side)
    if side == "ours":  # as `train --from` makes it: copied out of the file, each matrix row by row
        loaded, model = model, library.GPT2(model.config)
        model.load_state_dict(loaded.state_dict())
        del loaded
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    ids = torch.randint(50257, (4, 257), generator=torch.Generator().manual_seed(1))
    inputs, targets = ids[:, :-1], ids[:, 1:].flatten()

    def backward():
        logits = model(inputs) if side == "ours" else model(inputs).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets)
        loss.backward()
        return float(loss.detach())

    def step():
        model.train()
        backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def answer():
        model.eval()
        loss = backward()
        squares = sum(float(parameter.grad.square().sum()) for parameter in model.parameters())
        optimizer.zero_grad(set_to_none=True)
        return loss + squares**0.5

    return step, answer


def child(code, **values):
    for key, value in values.items():
        code = code.replace("{" + key + "!r}", repr(value)).replace("{" + key + "}", str(value))
    done = subprocess.run([sys.executable, "-c", HIDE + code], env=CHILD, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout) if done.stdout else None


def imports(rounds):
    seconds = {name: [] for name in IMPORT}
    for _ in range(rounds):
        for name, code in IMPORT.items():
            began = time.perf_counter()
            child(code)
            seconds[name].append(time.perf_counter() - began)
    return seconds


def first_logits(folder, rounds):
    found = {side: [] for side in FIRST}
    for _ in range(rounds):
        for side, code in FIRST.items():
            found[side].append(child(FIRST_LOGITS.replace("{code}", code), folder=folder))
    sums = [rows[0][2] for rows in found.values()]
    if abs(sums[0] - sums[1]) > 1e-6 * abs(sums[0]):
        raise SystemExit(f"first logits: the answers differ ({sums}).")
    seconds = {side: [row[0] for row in rows] for side, rows in found.items()}
    return seconds, {side: max(row[1] for row in rows) for side, rows in found.items()}


def ratio(seconds):
    ours, theirs = seconds["ours"], seconds["theirs"]
    return {
        "best": round(min(theirs) / min(ours), 3),
        "median": round(statistics.median(theirs) / statistics.median(ours), 3),
        "seconds": {name: [round(value, 4) for value in values] for name, values in seconds.items()},
    }


def peaks(work, folder):
    return {side: round(child(PEAK, work=work.__name__, folder=folder, side=side)) for side in ("ours", "theirs")}


def main():
    sys.modules["torchvision"] = None
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="*", default=["imports", "first", "greedy", "ragged", "training"])
    arguments = parser.parse_args()
    results = {"command": "python benchmarks/gpt2.py --rounds " + str(arguments.rounds)}
    with tempfile.TemporaryDirectory() as folder:
        child(MAKE, folder=folder)
        if "imports" in arguments.only:
            seconds = imports(arguments.rounds)
            over = {name: min(seconds[name]) - min(seconds["torch alone"]) for name in ("ours", "theirs")}
            results["imports"] = {"seconds over torch, best": {k: round(v, 3) for k, v in over.items()}}
            results["imports"]["seconds"] = {name: [round(v, 3) for v in values] for name, values in seconds.items()}
            print("imports", results["imports"]["seconds over torch, best"], flush=True)
        if "first" in arguments.only:
            seconds, memory = first_logits(folder, arguments.rounds)
            results["import, load, first logits"] = {
                **ratio(seconds),
                "peak MiB": {k: round(v) for k, v in memory.items()},
            }
            print("first logits", results["import, load, first logits"], flush=True)
        import torch
        import transformers

        torch.set_num_threads(min(2, os.cpu_count() or 1))
        for work in (greedy, ragged, training):
            name = work.__doc__.strip().splitlines()[0]
            if work.__name__ in arguments.only:
                found = ratio(both(work, folder, arguments.rounds))
                results[name] = {**found, "peak MiB": peaks(work, folder)}
                print(
                    work.__name__,
                    {k: v for k, v in results[name].items() if k != "seconds"},
                    flush=True,
                )
        results["versions"] = {"torch": torch.__version__, "transformers": transformers.__version__}
        results["versions"]["python"] = platform.python_version()
        results["machine"] = {
            "threads": torch.get_num_threads(),
            "cores": os.cpu_count(),
            "cpu": torch.backends.cpu.get_cpu_capability(),
        }
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
