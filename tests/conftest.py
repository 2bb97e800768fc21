"""Before anything imports transformers: torchvision's PyPI build asks for CUDA operators that CPU torch does not have.
Declaring their schemas lets both be imported; the operators themselves stay unavailable and no test calls them."""

import torch

_vision = torch.library.Library("torchvision", "FRAGMENT")
for _schema in ("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor", "qnms(Tensor x) -> Tensor"):
    _vision.define(_schema)
