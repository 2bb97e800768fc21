"""CLIP ViT-B/32 beside transformers' and open_clip's, weights random in the published layout and sizes: speed does not
depend on them. OpenAI's own code is no package; open_clip's, which was made of it, computes the same of a text: all 77
positions. Tokeniser and labels, the names of ImageNet's classes, are those that come with open_clip."""

import importlib.util
from pathlib import Path

import harness
import vit

MAKE = """
import transformers
import torch, clip
from pathlib import Path
from scratchformers.clip_text import openai_clip_bpe
torch.manual_seed(0)
folder = Path({folder!r})
transformers.CLIPModel(transformers.CLIPConfig()).eval().save_pretrained(folder)
transformers.CLIPImageProcessor().save_pretrained(folder)
for name, content in openai_clip_bpe(clip.beside("bpe_simple_vocab_16e6.txt.gz")).files.items():
    (folder / name).write_bytes(content)
"""
IMPORT = {
    "ours": "import torch; from scratchformers import CLIP, load",
    "theirs": "import torch; from transformers import CLIPModel",
}
FIRST = {
    "ours": "import torch; from scratchformers import load; model = load({folder!r}); f = lambda x, ids: model(x, ids)",
    "theirs": "import torch; from transformers import CLIPModel as M; model = M.from_pretrained({folder!r}); "
    "f = lambda x, ids: model(pixel_values=x, input_ids=ids).logits_per_image",
}
SCORES = """
x, ids = torch.linspace(-1, 1, 3 * 224 * 224).view(1, 3, 224, 224), torch.tensor([[49406, 320, 1125, 539, 2368, 49407]])
with torch.no_grad(): answer = float(f(x, ids))
"""
START, END, LENGTH = 49406, 49407, 77
AT_ONCE = 32  # labels or pictures that the others are given: of labels transformers' fastest of 16, 32, 64 and 128


def beside(name):
    """A file of open_clip's, which need not be imported for it."""
    spec = importlib.util.find_spec("open_clip")
    return Path(spec.submodule_search_locations[0], name)


def labels(quick):
    spec = importlib.util.spec_from_file_location("zero_shot_metadata", beside("zero_shot_metadata.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [f"a photo of a {name}" for name in module.IMAGENET_CLASSNAMES[: 100 if quick else 1000]]


def full(device, quick):
    """Ids of texts that fill all positions."""
    import torch

    ids = torch.randint(0, START, (2 if quick else 8, LENGTH), generator=torch.Generator().manual_seed(1))
    ids[:, 0], ids[:, -1] = START, END
    return ids.to(device)


def of_transformers(folder, device):
    from transformers import CLIPModel, utils

    utils.logging.disable_progress_bar()
    return CLIPModel.from_pretrained(folder).eval().to(device)


def of_open_clip(folder, device):
    """The same weights, under open_clip's names."""
    import scratchformers as sf
    from scratchformers.checkpoints import tables
    from scratchformers.models.clip import OF_OPENAI

    vit.torchvision()
    import open_clip

    model = sf.load(folder)
    layout = next(one for one in model.layouts if one.rows is OF_OPENAI)
    theirs = open_clip.CLIP(**open_clip.get_model_config("ViT-B-32-quickgelu")).eval().to(device)
    theirs.load_state_dict(tables.save(layout, model.state_dict(), model.config))
    return theirs


def features(encode, given):
    """What is compared are the features' absolute means, one a row."""
    import torch

    @torch.no_grad()
    def work():
        return encode(given)

    return work, lambda: work().double().abs().mean(1).tolist()


def image(folder, side, device, quick):
    images = vit.pictures(device, quick)
    if side == "ours":
        return features(vit.ours(folder, device).encode_image, images)
    model = of_transformers(folder, device)
    return features(lambda x: model.get_image_features(pixel_values=x).pooler_output, images)


def image_open_clip(folder, side, device, quick):
    if side == "ours":
        return image(folder, side, device, quick)
    return features(of_open_clip(folder, device).encode_image, vit.pictures(device, quick))


def text(folder, side, device, quick):
    if side == "ours":
        return features(vit.ours(folder, device).encode_text, full(device, quick))
    model = of_transformers(folder, device)
    return features(lambda ids: model.get_text_features(input_ids=ids).pooler_output, full(device, quick))


def text_open_clip(folder, side, device, quick):
    if side == "ours":
        return text(folder, side, device, quick)
    return features(of_open_clip(folder, device).encode_text, full(device, quick))


def parts(items):
    return [items[start : start + AT_ONCE] for start in range(0, len(items), AT_ONCE)]


def short(folder, side, device, quick):
    """Padded to the longest of the batch, as `padding=True` does."""
    import torch

    texts = labels(quick)
    if side == "ours":
        import scratchformers as sf

        return features(sf.DualEncoder.from_pretrained(folder, device=device).text_features, texts)
    from transformers import AutoTokenizer

    model, tokenizer = of_transformers(folder, device), AutoTokenizer.from_pretrained(folder)

    def encode(texts):
        rows = (tokenizer(part, padding=True, return_tensors="pt").to(device) for part in parts(texts))
        return torch.cat([model.get_text_features(**row).pooler_output for row in rows])

    return features(encode, texts)


def short_open_clip(folder, side, device, quick):
    import torch

    if side == "ours":
        return short(folder, side, device, quick)
    model = of_open_clip(folder, device)
    from open_clip import get_tokenizer

    tokenizer = get_tokenizer("ViT-B-32-quickgelu")

    def encode(texts):
        return torch.cat([model.encode_text(tokenizer(part).to(device)) for part in parts(texts)])

    return features(encode, labels(quick))


def photographs(folder, quick):
    """JPEGs of 500 x 375 pixels, each another part of a photograph that comes with scikit-learn."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    place, count = Path(folder, "photographs"), 40 if quick else 500
    paths = [place / f"{i:03}.jpg" for i in range(count)]
    if not place.is_dir():
        place.mkdir()
        pictures = [Image.fromarray(each) for each in load_sample_images().images]
        for i in range(500):
            left, top = 7 * i % 141, 5 * i % 53
            pictures[i % 2].crop((left, top, left + 500, top + 375)).save(place / f"{i:03}.jpg", quality=90)
    return paths


CHOICES = ("a temple", "a flower", "a bee", "a lake", "a street", "a mountain", "a garden", "a roof", "a dog", "a cat")
TEMPLATE = "a photo of {}."


def pictures(folder, side, device, quick):
    """The labels are encoded beforehand. What is compared are the labels that were found, and the features."""
    import torch

    paths = photographs(folder, quick)
    if side == "ours":
        import scratchformers as sf

        task = sf.ZeroShotClassifier.from_pretrained(folder, device=device)
        task(paths[0], CHOICES, templates=TEMPLATE)
        work = lambda: [found[0].label for found in task(paths, CHOICES, templates=TEMPLATE)]  # noqa: E731
        return work, lambda: [work(), abs(task.encode_images(paths)).mean(1).tolist()]
    from PIL import Image
    from transformers import AutoProcessor

    model, processor, seen = of_transformers(folder, device), AutoProcessor.from_pretrained(folder), []
    given = processor(text=[TEMPLATE.format(each) for each in CHOICES], padding=True, return_tensors="pt").to(device)
    with torch.no_grad():
        texts = torch.nn.functional.normalize(model.get_text_features(**given).pooler_output, dim=-1)

    @torch.no_grad()
    def work():
        found = []
        seen.clear()
        for some in parts(paths):
            images = [Image.open(path).convert("RGB") for path in some]
            x = processor(images=images, return_tensors="pt").to(device)
            vectors = torch.nn.functional.normalize(model.get_image_features(**x).pooler_output, dim=-1)
            shares = (model.logit_scale.exp() * vectors @ texts.T).softmax(-1)
            found += [CHOICES[i] for i in shares.argmax(-1).tolist()]
            seen.append(vectors)
        return found

    return work, lambda: [work(), torch.cat(seen).abs().mean(1).tolist()]


def asked(folder, side, device, paths, names, template):
    """Ours, and transformers' pipeline, which encodes all labels anew for each picture, in batches as large as ours.
    What is compared are the shares of each label."""
    if side == "ours":
        import scratchformers as sf

        task = sf.ZeroShotClassifier.from_pretrained(folder, device=device)

        def work():
            answers = task(paths, names, templates=template)
            return [{each.label: each.score for each in found} for found in answers]

    else:
        from transformers import pipeline, utils

        utils.logging.disable_progress_bar()
        task = pipeline("zero-shot-image-classification", model=folder, device=device)

        def work():
            answers = task([*map(str, paths)], candidate_labels=names, hypothesis_template=template, batch_size=16)
            return [{each["label"]: each["score"] for each in found} for found in answers]

    return work, lambda: [found[name] for found in work() for name in names]


def pipeline(folder, side, device, quick):
    return asked(folder, side, device, photographs(folder, quick), CHOICES, TEMPLATE)


def again(folder, side, device, quick):
    """The first call is one of those that are not counted."""
    names = list(dict.fromkeys(each.removeprefix("a photo of a ") for each in labels(quick)))
    return asked(folder, side, device, photographs(folder, quick)[:1], names, "a photo of a {}")


ROWS = [
    harness.Row("import", "what a program with CLIP imports, torch included", code=IMPORT),
    harness.Row(
        "first score",
        "import, load, and the score of a picture with a text",
        code={side: code + SCORES for side, code in FIRST.items()},
    ),
    harness.Row("image", "the features of 8 pictures", "the features of 2 pictures", image),
    harness.Row("text", "the features of 8 texts of 77 tokens", "the features of 2 texts of 77 tokens", text),
    harness.Row("labels", "the features of 1,000 labels of 1 to 5 words", "the features of 100 labels", short),
    harness.Row(
        "folder", "500 JPEGs, each given one of 10 labels, which were encoded before",
        "40 JPEGs, each given one of 10 labels, which were encoded before", pictures,
    ),
    harness.Row(
        "folder, pipeline", "500 JPEGs, beside transformers' pipeline, which encodes the 10 labels for each",
        "40 JPEGs, beside transformers' pipeline, which encodes the 10 labels for each", pipeline,
    ),
    harness.Row(
        "same labels", "a picture given one of 998 labels for the second time, beside the pipeline",
        "a picture given one of 100 labels for the second time, beside the pipeline", again,
    ),
    harness.Row(
        "image, open_clip", "the features of 8 pictures, beside open_clip",
        "the features of 2 pictures, beside open_clip", image_open_clip,
    ),
    harness.Row(
        "text, open_clip", "the features of 8 texts of 77 tokens, beside open_clip",
        "the features of 2 texts of 77 tokens, beside open_clip", text_open_clip,
    ),
    harness.Row(
        "labels, open_clip", "the features of 1,000 labels, beside open_clip: 77 positions each, as in OpenAI's code",
        "the features of 100 labels, beside open_clip: 77 positions each, as in OpenAI's code", short_open_clip,
    ),
]  # fmt: skip
