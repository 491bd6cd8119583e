"""The one place where torchvision is imported, also beside a PyTorch built for CPUs only."""

import functools
import importlib
import sys
from types import ModuleType

_kept_alive: list[object] = []


@functools.cache
def import_torchvision() -> ModuleType:
    """Import torchvision.

    Its wheels are built for CUDA; beside a CPU build of PyTorch the first import fails because
    the operators ``nms`` and ``qnms`` were never defined. Their schemas are then defined, without
    an implementation, and the import is repeated: data sets, models and transforms work;
    ``ops.nms`` does not.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
    import torch

    for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for operator in ("nms", "qnms"):
        schema = f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        library.define(schema)  # type: ignore[no-untyped-call]
    _kept_alive.append(library)  # a collected library takes its schemas with it
    return importlib.import_module("torchvision")
