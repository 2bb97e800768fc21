"""ViT-B/16 beside transformers' and timm's, weights random in the published layout and sizes: speed does not depend on
them; and the preparing of pictures, which must keep up with the model."""

import sys

import harness

MAKE = """
import json, torch, transformers
torch.manual_seed(0)
transformers.ViTForImageClassification(transformers.ViTConfig(num_labels=1000)).eval().save_pretrained({folder!r})
said = {"image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": 224, "width": 224}}
said |= {"resample": 2, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
said |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
open({folder!r} + "/preprocessor_config.json", "w", encoding="utf-8").write(json.dumps(said))
"""
IMPORT = {
    "ours": "import torch; from scratchformers import ViT, load",
    "theirs": "import torch; from transformers import ViTForImageClassification",
}
FIRST = {
    "ours": "import torch; from scratchformers import load; model = load({folder!r}); f = lambda x: model(x)",
    "theirs": "import torch; from transformers import ViTForImageClassification as M; "
    "model = M.from_pretrained({folder!r}); f = lambda x: model(x).logits",
}
SCORES = """
x = torch.linspace(-1, 1, 3 * 224 * 224).view(1, 3, 224, 224)
with torch.no_grad(): answer = float(f(x).double().abs().mean())
"""


def torchvision():
    """It asks for operators that CPU torch does not have, and is hidden from transformers; timm needs it."""
    import torch

    if sys.modules.get("torchvision") is None:
        sys.modules.pop("torchvision", None)
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        sys.modules["scratchformers_torchvision"] = library  # else its definitions go with it


def ours(folder, device):
    import scratchformers as sf

    return sf.load(folder, device=device)


def pictures(device, quick):
    import torch

    count = 2 if quick else 8
    return torch.randn(count, 3, 224, 224, generator=torch.Generator().manual_seed(1)).to(device)


def forward(model, images, logits=lambda found: found):
    import torch

    @torch.no_grad()
    def work():
        return logits(model(images))

    return work, lambda: work().double().abs().mean(1).tolist()


def transformers(folder, side, device, quick):
    images = pictures(device, quick)
    if side == "ours":
        return forward(ours(folder, device), images)
    from transformers import ViTForImageClassification

    model = ViTForImageClassification.from_pretrained(folder).eval().to(device)
    return forward(model, images, lambda found: found.logits)


def timm(folder, side, device, quick):
    """The same weights, under timm's names."""
    images, model = pictures(device, quick), ours(folder, device)
    if side == "ours":
        return forward(model, images)
    torchvision()
    from timm import create_model

    from scratchformers.checkpoints import tables
    from scratchformers.models.vit import OF_TIMM

    layout = next(one for one in model.layouts if one.rows is OF_TIMM)
    theirs = create_model("vit_base_patch16_224", pretrained=False).eval().to(device)
    for module in theirs.modules():
        if hasattr(module, "eps"):
            module.eps = model.config.eps
    theirs.load_state_dict(tables.save(layout, model.state_dict(), model.config))
    return forward(theirs, images)


def photograph():
    """500 x 375 pixels, as ImageNet's are, with structure at all scales."""
    import numpy as np
    from PIL import Image

    draw = np.random.RandomState(0)
    layers = [
        Image.fromarray(draw.randint(0, 256, (375 // n + 1, 500 // n + 1, 3), dtype=np.uint8)).resize((500, 375))
        for n in (1, 4, 16, 64)
    ]
    mean = np.mean([np.asarray(layer, dtype=np.float32) for layer in layers], axis=0)
    return Image.fromarray(mean.astype(np.uint8))


def repeated(prepare, quick):
    image, times = photograph(), 10 if quick else 50

    def work():
        for _ in range(times):
            found = prepare(image)
        return found

    return work, lambda: prepare(image).double().mean((1, 2)).tolist()


def prepared(folder, side, device, quick):
    """As the checkpoint says: 224 x 224, bilinear."""
    if side == "ours":
        import scratchformers as sf

        return repeated(sf.load_preprocess(folder), quick)
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(folder)
    return repeated(lambda image: processor(image, return_tensors="pt")["pixel_values"][0], quick)


def cropped(folder, side, device, quick):
    """As facebook's and timm's evaluation: the shorter side 256, bicubic, the middle 224 x 224."""
    if side == "ours":
        from scratchformers.images import IMAGENET, Preprocess

        return repeated(Preprocess(256, (224, 224), mean=IMAGENET[0], std=IMAGENET[1]), quick)
    torchvision()
    from torchvision import transforms

    return repeated(
        transforms.Compose(
            [
                transforms.Resize(256, interpolation=transforms.InterpolationMode.BICUBIC),
                transforms.CenterCrop(224),
                transforms.ToTensor(),
                transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        ),
        quick,
    )


ROWS = [
    harness.Row("import", "what a program with ViT imports, torch included", code=IMPORT),
    harness.Row(
        "first logits",
        "import, load, and the scores of a picture",
        code={side: code + SCORES for side, code in FIRST.items()},
    ),
    harness.Row("transformers", "the scores of 8 pictures", "the scores of 2 pictures", transformers),
    harness.Row("timm", "the same beside timm", "the same beside timm", timm),
    harness.Row("prepared", "50 pictures of 500 x 375 to 224 x 224", "10 pictures of 500 x 375", prepared),
    harness.Row("cropped", "the same beside torchvision, through 256", "10 beside torchvision, through 256", cropped),
]
