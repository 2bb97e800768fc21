"""Why torchvision is not required: Pillow's resizing is torchvision's, to the last level of grey."""

import numpy as np
import pytest
import reference  # noqa: F401 (declares the operators without which torchvision cannot be imported here)
import torch
from PIL import Image

import scratchformers as sf
from scratchformers.images import IMAGENET, Preprocess


@pytest.mark.parametrize(
    ("filter_", "name"), [(Image.Resampling.BICUBIC, "BICUBIC"), (Image.Resampling.BILINEAR, "BILINEAR")]
)
@pytest.mark.parametrize(("size", "target"), [((480, 600), (224, 280)), ((37, 53), (224, 224)), ((301, 200), (17, 31))])
def test_pillow_resizes_as_torchvision_does(filter_, name, size, target):
    from torchvision.transforms import v2

    picture = Image.fromarray(np.random.RandomState(0).randint(0, 256, (*size, 3), dtype=np.uint8))
    theirs = v2.Resize(target, interpolation=v2.InterpolationMode[name], antialias=True)(picture)
    ours = picture.resize(target[::-1], filter_)
    assert np.array_equal(np.asarray(ours), np.asarray(theirs))


@pytest.mark.parametrize("kind", [sf.ViT, sf.MAE])
def test_what_torchvisions_transforms_give_feeds_our_models_as_it_is(kind):
    from torchvision import transforms

    prepare = transforms.Compose(
        [
            transforms.Resize(36, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    picture = Image.fromarray(np.random.RandomState(0).randint(0, 256, (91, 70, 3), dtype=np.uint8))
    model, ours = kind.from_preset("tiny").eval(), Preprocess(36, (32, 32), mean=IMAGENET[0], std=IMAGENET[1])
    loader = torch.utils.data.DataLoader([prepare(picture)] * 3, batch_size=2)
    states = torch.cat([model.encode(images) for images in loader])
    assert torch.equal(states[0], model.encode(ours(picture)[None])[0])
    assert torch.allclose(states[0], states[2], atol=1e-5)
