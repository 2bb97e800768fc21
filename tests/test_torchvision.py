"""Why torchvision is not required: Pillow's resizing is torchvision's, to the last level of grey."""

import numpy as np
import pytest
import reference  # noqa: F401 (declares the operators without which torchvision cannot be imported here)
from PIL import Image


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
