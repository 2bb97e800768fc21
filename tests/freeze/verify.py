"""Writes src/scratchformers/insight/frozen/: of each model a small one and what transformers answers for it, place by
place, which `scratchformers verify` compares with where transformers is not installed.

    python tests/freeze/verify.py

Imports the reference and never our code; what the files hold is described in insight/verify.py.
"""

import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent.parent))
import bert_reference
import clip_reference
import encoder_decoder_reference
import reference
import vision_reference

FROZEN = Path(__file__).parents[2] / "src" / "scratchformers" / "insight" / "frozen"


def targets() -> dict[str, Path]:
    return {name: FROZEN / f"{name}.safetensors" for name in MODELS}


def written() -> dict[str, dict[str, torch.Tensor]]:
    ids, left, right = reference.ids(2, 8), torch.ones(2, 8, dtype=torch.bool), torch.ones(2, 8, dtype=torch.bool)
    left[1, :3], right[0, -2:] = False, False
    return {"whole": {"ids": ids}, "left": {"ids": ids, "keep": left}, "right": {"ids": ids, "keep": right}}


def read() -> dict[str, dict[str, torch.Tensor]]:
    cases = {name: case for name, case in written().items() if name != "left"}
    return {name: {**case, "segments": (torch.arange(8) > 4).long().repeat(2, 1)} for name, case in cases.items()}


def seen() -> dict[str, dict[str, torch.Tensor]]:
    return {"whole": {"images": vision_reference.pictures(2, (20, 28)).float()}}


def hidden() -> dict[str, dict[str, torch.Tensor]]:
    images, noise = vision_reference.pictures(2, (20, 20)), vision_reference.noise(2)
    return {"whole": {"images": images.float(), "noise": noise.float()}}


def captioned() -> dict[str, dict[str, torch.Tensor]]:
    return {"whole": {"images": clip_reference.pictures(2, (8, 8)).float(), "ids": clip_reference.texts(4)}}


def translated() -> dict[str, dict[str, torch.Tensor]]:
    pair = {"source": encoder_decoder_reference.ids(2, 9), "target": encoder_decoder_reference.ids(2, 7, seed=2)}
    source_keep, keep = torch.arange(9) < torch.tensor([[4], [9]]), torch.arange(7) < torch.tensor([[7], [3]])
    return {"whole": pair, "ragged": {**pair, "source_keep": source_keep, "keep": keep}}


def gpt2():
    return reference.scrambled(n_layer=2, n_embd=24, n_head=3)


def gpt2_places(model):
    blocks = {f"blocks.{i}": block for i, block in enumerate(model.transformer.h)}
    return {"dropout": model.transformer.drop, **blocks, "norm": model.transformer.ln_f}


def gpt2_answer(model, ids, keep=None):
    keep = torch.ones_like(ids).bool() if keep is None else keep
    position = (keep.cumsum(-1) - 1).clamp(min=0)
    return model(ids, attention_mask=keep.long(), position_ids=position).logits


def bert():
    return bert_reference.scrambled("PreTraining", num_hidden_layers=2, hidden_size=24, intermediate_size=41)


def bert_places(model):
    blocks = {f"blocks.{i}": block for i, block in enumerate(model.bert.encoder.layer)}
    pooled = {"pooler": model.bert.pooler.dense, "next_sentence": model.cls.seq_relationship}
    return {"dropout": model.bert.embeddings, **blocks, **pooled}


def bert_answer(model, ids, segments, keep=None):
    keep = torch.ones_like(ids).bool() if keep is None else keep
    return model(ids, attention_mask=keep.long(), token_type_ids=segments).prediction_logits


def vit():
    sizes = {"hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 41}
    return vision_reference.vit(image_size=[20, 28], patch_size=4, **sizes)


def vit_places(model):
    body = model.vit
    blocks = {f"blocks.{i}": block for i, block in enumerate(body.layers)}
    before = {"patches": body.embeddings.patch_embeddings, "dropout": body.embeddings}
    return {**before, **blocks, "norm": body.layernorm}


def vit_answer(model, images):
    return model(images.double()).logits


def mae():
    sizes = {"hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 41, "num_hidden_layers": 2}
    decoder = {"decoder_hidden_size": 20, "decoder_num_attention_heads": 5}
    return vision_reference.mae(image_size=20, patch_size=4, norm_pix_loss=True, **sizes, **decoder)


def mae_places(model):
    body, decoder = model.vit, model.decoder
    encoder = {f"blocks.{i}": block for i, block in enumerate(body.layers)}
    blocks = {f"decoder.blocks.{i}": block for i, block in enumerate(decoder.decoder_layers)}
    before = {
        "blocks.input": body.embeddings,
        **encoder,
        "norm": body.layernorm,
        "decoder.embed": decoder.decoder_embed,
    }
    return {**before, **blocks, "decoder.norm": decoder.decoder_norm, "decoder.out": decoder.decoder_pred}


def mae_answer(model, images, noise):
    """The states with nothing hidden, first, for places are looked at when the model paints."""
    states = vision_reference.encoded(model, images.double())
    said = model(images.double(), noise=noise)
    return {"output": said.logits, "loss": said.loss[None], "nothing hidden": states}


def clip():
    sizes = {"num_attention_heads": 3, "num_hidden_layers": 2}
    vision = {"hidden_size": 24, "intermediate_size": 41, "image_size": 8, "patch_size": 4, **sizes}
    text = {"hidden_size": 18, "intermediate_size": 37, **sizes}
    return clip_reference.clip("quick_gelu", clip_reference.END, vision, text)


def clip_places(model):
    vision, text = model.vision_model, model.text_model
    image = {f"image.blocks.{i}": block for i, block in enumerate(vision.encoder.layers)}
    image |= {"image.norm": vision.post_layernorm, "image": model.visual_projection}
    blocks = {f"text.blocks.{i}": block for i, block in enumerate(text.encoder.layers)}
    before = {"image.first_norm": vision.pre_layrnorm, **image, "text.blocks.input": text.embeddings}
    return {**before, **blocks, "text": model.text_projection}


def clip_answer(model, images, ids):
    return model(input_ids=ids, pixel_values=images.double()).logits_per_image


def encoder_decoder():
    """That does not repeat itself: on such weights it would write one token for ever."""
    heads = {"encoder_attention_heads": 3, "decoder_attention_heads": 4}
    sizes = {"d_model": 24, "encoder_ffn_dim": 41, "decoder_ffn_dim": 43, "decoder_layers": 2, **heads}
    model = encoder_decoder_reference.published("marian, two vocabularies", **sizes)
    model.generation_config.no_repeat_ngram_size = 2
    return model


def encoder_decoder_places(model):
    found = {}
    for name, half in (("encoder", model.model.encoder), ("decoder", model.model.decoder)):
        found[f"{name}.blocks.input"] = (half.layers[0],)
        for i, block in enumerate(half.layers):
            found |= {f"{name}.blocks.{i}.cross": block.encoder_attn} if name == "decoder" else {}
            found[f"{name}.blocks.{i}"] = block
    return found


def encoder_decoder_answer(model, source, target, source_keep=None, keep=None):
    """What it writes itself, first, for places are looked at when it is taught."""
    real = torch.ones_like(source) if source_keep is None else source_keep.long()
    write = {"attention_mask": real, "do_sample": False, "max_new_tokens": 8}
    said = {name: model.generate(source, num_beams=beams, **write) for name, beams in (("greedy", 1), ("4 beams", 4))}
    real_target = torch.ones_like(target) if keep is None else keep.long()
    taught = model(source, attention_mask=real, decoder_input_ids=target, decoder_attention_mask=real_target)
    return {"output": taught.logits, **said}


# Of each: a model, its places by our names, what it answers, the inputs. A place is a module, for what it gives, or one
# in a tuple, for what it is given.
MODELS = {
    "GPT2": (gpt2, gpt2_places, gpt2_answer, written),
    "BERT": (bert, bert_places, bert_answer, read),
    "ViT": (vit, vit_places, vit_answer, seen),
    "MAE": (mae, mae_places, mae_answer, hidden),
    "CLIP": (clip, clip_places, clip_answer, captioned),
    "EncoderDecoder": (encoder_decoder, encoder_decoder_places, encoder_decoder_answer, translated),
}


def answers(name, model, keep=None, **given):
    """What stands at transformers' places, under our names: of tokens at the real ones, which of an encoder's are those
    of the source."""
    _, places, answer, _ = MODELS[name]
    found, padded = {}, {} if keep is None else {"keep": keep}
    for at, module in places(model).items():
        if isinstance(module, tuple):
            module[0].register_forward_pre_hook(lambda _, given, at=at: found.update({at: given[0]}))
        else:
            module.register_forward_hook(lambda _, __, out, at=at: found.update({at: out}))
    with torch.no_grad():
        said = answer(model, **given, **padded)
    found |= said if isinstance(said, dict) else {"output": said}
    tensors = {at: out[0] if isinstance(out, tuple) else out for at, out in found.items()}
    real = {at: given.get("source_keep") if at.startswith("encoder.") else keep for at in tensors}
    return {at: value if real[at] is None or value.ndim < 3 else value[real[at]] for at, value in tensors.items()}


def tensors(name) -> dict[str, torch.Tensor]:
    make, _, _, cases = MODELS[name]
    model = make().float()
    with tempfile.TemporaryDirectory() as folder:  # under the names of its file, which are not always its modules'
        model.save_pretrained(folder)
        found = {f"weights/{key}": x for key, x in load_file(Path(folder, "model.safetensors")).items()}
    model.double()
    for case, given in cases().items():
        found |= {f"inputs/{case}/{key}": value for key, value in given.items()}
        found |= {f"reference/{case}/{place}": value for place, value in answers(name, model, **given).items()}
    return {key: value.clone().contiguous() for key, value in found.items()}


def facts(name) -> dict:
    model = MODELS[name][0]()
    versions = {each: version(each) for each in ("torch", "transformers")}
    named = f"transformers {versions['transformers']}, {type(model).__name__}"
    config = {**model.config.to_dict(), "architectures": [type(model).__name__]}
    if model.can_generate() and model.generation_config.no_repeat_ngram_size:  # it has no file of its own
        config["no_repeat_ngram_size"] = model.generation_config.no_repeat_ngram_size
    return {"reference": named, "versions": versions, "config": config, "weights": None, "tokens": None}


if __name__ == "__main__":
    FROZEN.mkdir(parents=True, exist_ok=True)
    for name, target in targets().items():
        metadata = {"format": "scratchformers-verify-1", "facts": json.dumps(facts(name))}
        save_file(tensors(name), target, metadata=metadata)
        print(f"wrote {target.name}, {target.stat().st_size} bytes")
