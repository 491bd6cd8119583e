"""Every data set, view, environment and suite of the benchmark, as rows; no logic.

Adding an environment means adding a row here, its golden integers and a line in CHANGELOG.md.
What cannot be computed without data that were never at hand is ``None`` ("unpinned"): it is
neither invented nor part of an evaluation fingerprint.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

DataSplit = Literal["train", "test"]
Stats = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class View:
    """What images are brought to before they are projected: a size, or features of a network.

    Attributes:
        name: The second part of an environment id.
        height: Pixels; of features, how they are shown in pictures.
        width: As height.
        channels: 3 (colour; grey images are copied) or 1 (grey; colour by Rec. 601 luma).
        network: Default of the pretrained network whose features are the inputs; None = pixels.
    """

    name: str
    height: int
    width: int
    channels: Literal[1, 3]
    network: str | None = None

    @property
    def num_features(self) -> int:
        """D, the number of input features."""
        return self.height * self.width * self.channels

    @property
    def title(self) -> str:
        """What the inputs are, in a few words."""
        if self.network is not None:
            return f"{self.num_features} features of a pretrained network"
        return f"{self.height}×{self.width} {'colour' if self.channels == 3 else 'grey'}"


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A base data set: images and labels before projection.

    Attributes:
        name: The first part of an environment id.
        title: One line for people.
        source: ``embedded`` (ships with a dependency), ``torchvision`` (downloaded on request),
            ``synthetic`` (made from the task's key) or ``user`` (``register_dataset``).
        num_classes: C.
        image_shape: (H, W) or (H, W, 3) of one uint8 image; empty for synthetic data.
        counts: Examples per split.
        sha256: Checksum of the canonical arrays per split; ``None`` = unpinned.
        stats: Mean and standard deviation of all pixels (in [0, 1]) of each view of pixels, from
            ``stats_split``; ``None`` = unpinned, computed from the training split when loaded.
        stats_split: The split that ``stats`` were computed from.
        licence: As the source states it.
        citation: Who made it.
        homepage: Where it comes from.
    """

    name: str
    title: str
    source: Literal["embedded", "torchvision", "synthetic", "user"]
    num_classes: int
    image_shape: tuple[int, ...]
    counts: Mapping[DataSplit, int]
    sha256: Mapping[DataSplit, str | None]
    stats: Mapping[str, Stats | None]
    stats_split: DataSplit = "train"
    licence: str = ""
    citation: str = ""
    homepage: str = ""


@dataclasses.dataclass(frozen=True)
class EnvRow:
    """One environment: base data set, view and version.

    Attributes:
        base: Name of a data set.
        view: Name of a view.
        version: Raised when a number that a user can observe changes.
        history: What each version changed, oldest first.
    """

    base: str
    view: str
    version: int = 0
    history: tuple[str, ...] = ("v0: first release.",)


@dataclasses.dataclass(frozen=True)
class Suite:
    """A named, versioned tuple of environments with its protocol.

    Attributes:
        name: For instance ``table2-v0``.
        title: One line for people.
        meta_train: Environment id that learners are meta-trained on.
        envs: Environment ids of the columns, in order.
        tasks: Tasks of the ranked protocol; their episodes have ids 0 … tasks·episodes_per_task−1.
        episodes_per_task: Episodes of each task.
        extended_tasks: Tasks of the larger, optional hand-in.
        episode_length: T; the headline is the accuracy at step T − 1.
        meta_train_seeds: Meta-training seeds asked for.
    """

    name: str
    title: str
    meta_train: str
    envs: tuple[str, ...]
    tasks: int = 16
    episodes_per_task: int = 16
    extended_tasks: int = 64
    episode_length: int = 100
    meta_train_seeds: int = 3


@dataclasses.dataclass(frozen=True)
class TextSuite:
    """A named, versioned tuple of text settings with its protocol.

    Attributes:
        name: For instance ``metaicl-v0``.
        title: One line for people.
        settings: Settings of the columns, in order; a learner is meta-trained on the train tasks
            of a column and tested on its test tasks, in one of the two views.
        demo_seeds: Draws of demonstrations; Min et al. 2022, §4.1.
        num_demos: Demonstrations k of a prompt.
        meta_train_seeds: Meta-training seeds asked for; the papers have one.
    """

    name: str
    title: str
    settings: tuple[str, ...]
    demo_seeds: tuple[int, ...] = (100, 13, 21, 42, 87)
    num_demos: int = 16
    meta_train_seeds: int = 1

    @property
    def envs(self) -> tuple[str, ...]:
        """Environment ids: every setting in the direct and in the channel view."""
        return tuple(f"{setting}-{view}-v0" for setting in self.settings for view in TEXT_VIEWS)


# 32×32×3 is the paper's size (Kirsch et al. 2022, §3.1); the smaller ones are for CPUs, 4×4 for
# meta-training in seconds.
VIEWS: Mapping[str, View] = MappingProxyType(
    {
        "Proj": View("Proj", 32, 32, 3),
        "Emb": View("Emb", 16, 32, 1, network="resnet18"),
        "Proj14": View("Proj14", 14, 14, 1),
        "Proj8": View("Proj8", 8, 8, 1),
        "Proj4": View("Proj4", 4, 4, 1),
    }
)

# The views that show images themselves; statistics of features depend on the network.
PIXEL_VIEWS: Mapping[str, View] = MappingProxyType(
    {name: view for name, view in VIEWS.items() if view.network is None}
)

_UNPINNED: Mapping[str, Stats | None] = MappingProxyType(dict.fromkeys(PIXEL_VIEWS))

DATASETS: tuple[DataSet, ...] = (
    DataSet(
        name="MNIST",
        title="Handwritten digits",
        source="torchvision",
        num_classes=10,
        image_shape=(28, 28),
        counts={"train": 60_000, "test": 10_000},
        sha256={
            "train": "7e59ac8a5816375b9562b977a87a70cf54d4c16e63518238bf1402a91211b525",
            "test": "b69c9657baa73cea1359a511f70970d5a9bfe744927151e61f60d0f15df2ff64",
        },
        stats={
            "Proj": (0.130851367, 0.289231828),
            "Proj14": (0.130722997, 0.250488307),
            "Proj8": (0.131216723, 0.210222923),
            "Proj4": (0.137785277, 0.148433261),
        },
        licence="CC BY-SA 3.0",
        citation="LeCun, Cortes, Burges 1998, The MNIST database of handwritten digits",
        homepage="http://yann.lecun.com/exdb/mnist/",
    ),
    DataSet(
        name="FashionMNIST",
        title="Articles of clothing",
        source="torchvision",
        num_classes=10,
        image_shape=(28, 28),
        counts={"train": 60_000, "test": 10_000},
        sha256={
            "train": "4c566185e7e2b7bb29af361fcc4bf2f8bf8f804325827eb19688d95afcf7bd32",
            "test": "1d14692a38bd6918ff600673352a87fc05cef07184231b14bb4fc505ef431cb0",
        },
        stats={
            "Proj": (0.285445383, 0.338403478),
            "Proj14": (0.287654896, 0.314994322),
            "Proj8": (0.290228847, 0.292876111),
            "Proj4": (0.300438316, 0.246217564),
        },
        licence="MIT",
        citation="Xiao, Rasul, Vollgraf 2017, Fashion-MNIST",
        homepage="https://github.com/zalandoresearch/fashion-mnist",
    ),
    DataSet(
        name="KMNIST",
        title="Cursive Japanese characters (Kuzushiji)",
        source="torchvision",
        num_classes=10,
        image_shape=(28, 28),
        counts={"train": 60_000, "test": 10_000},
        # The training split was never at hand: its checksum is unpinned, and the statistics come
        # from the test split.
        sha256={
            "train": None,
            "test": "3876a90ed7f84844750e51e2b1f4a18e7a71e85383cc2f6817b2ef1254520fac",
        },
        stats={
            "Proj": (0.184366961, 0.317391239),
            "Proj14": (0.185445804, 0.272648966),
            "Proj8": (0.187102009, 0.229328195),
            "Proj4": (0.193039476, 0.163320750),
        },
        stats_split="test",
        licence="CC BY-SA 4.0",
        citation="Clanuwat et al. 2018, Deep Learning for Classical Japanese Literature (CODH)",
        homepage="http://codh.rois.ac.jp/kmnist/",
    ),
    DataSet(
        name="Random",
        title="10 random points per task with random labels (Kirsch et al. 2022, §4)",
        source="synthetic",
        num_classes=10,
        image_shape=(),
        counts={},
        sha256={},
        stats=dict.fromkeys(PIXEL_VIEWS, (0.5, 12**-0.5)),  # the law U[0, 1]
    ),
    DataSet(
        name="CIFAR10",
        title="Small colour photographs of ten kinds of things",
        source="torchvision",
        num_classes=10,
        image_shape=(32, 32, 3),
        counts={"train": 50_000, "test": 10_000},
        sha256={"train": None, "test": None},
        stats=_UNPINNED,
        licence="none stated; research use with citation",
        citation="Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images",
        homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
    DataSet(
        name="SVHN",
        title="House numbers, cropped digits",
        source="torchvision",
        num_classes=10,
        image_shape=(32, 32, 3),
        counts={"train": 73_257, "test": 26_032},
        sha256={"train": None, "test": None},
        stats=_UNPINNED,
        licence="non-commercial use only",
        citation="Netzer et al. 2011, Reading Digits in Natural Images",
        homepage="http://ufldl.stanford.edu/housenumbers/",
    ),
    DataSet(
        name="Digits",
        title="Small handwritten digits, shipped with scikit-learn",
        source="embedded",
        num_classes=10,
        image_shape=(8, 8),
        counts={"train": 1297, "test": 500},
        sha256={
            "train": "13cc1b0f674a472b649ab956000efb0715f9a7286399280ece1ab8ba82043cfe",
            "test": "f782079fff9abe5f2a064aff9f8f8a6ac0550bd27d62c855ecb51e5588b143f6",
        },
        stats={
            "Proj": (0.305940372, 0.322863149),
            "Proj14": (0.305927268, 0.324978118),
            "Proj8": (0.305940373, 0.375377193),
            "Proj4": (0.314359361, 0.231643958),
        },
        licence="CC BY 4.0",
        citation="Alpaydin, Kaynak 1998, Optical Recognition of Handwritten Digits",
        homepage="https://archive.ics.uci.edu/dataset/80",
    ),
    DataSet(
        name="DigitsLow",
        title="The digits 0 to 4 of Digits",
        source="embedded",
        num_classes=5,
        image_shape=(8, 8),
        counts={"train": 649, "test": 252},
        sha256={
            "train": "e601a8620fe0ab96f588884059739c92bd8c21342ec04e3f1eb00797de7e8c3f",
            "test": "c9de7d9a9dbf049a436a51967188289da3aed956cffaca7e2e0a69681f935557",
        },
        stats={
            "Proj": (0.305381492, 0.325982566),
            "Proj14": (0.305417118, 0.328011669),
            "Proj8": (0.305381493, 0.377540627),
            "Proj4": (0.314226510, 0.233154093),
        },
        licence="CC BY 4.0",
        citation="Alpaydin, Kaynak 1998, Optical Recognition of Handwritten Digits",
        homepage="https://archive.ics.uci.edu/dataset/80",
    ),
    DataSet(
        name="DigitsHigh",
        title="The digits 5 to 9 of Digits, as classes 0 to 4",
        source="embedded",
        num_classes=5,
        image_shape=(8, 8),
        counts={"train": 648, "test": 248},
        sha256={
            "train": "183f6514068f711b39c613f7929d53f658e86336735a900156b9899718b5275f",
            "test": "908e862a885bf0ccc86e7c0277f1f4bc6afe841dde5134ed5bfc28a4570f9ab1",
        },
        stats={
            "Proj": (0.306500114, 0.319707434),
            "Proj14": (0.306438205, 0.321910423),
            "Proj8": (0.306500115, 0.373197011),
            "Proj4": (0.314492417, 0.230121484),
        },
        licence="CC BY 4.0",
        citation="Alpaydin, Kaynak 1998, Optical Recognition of Handwritten Digits",
        homepage="https://archive.ics.uci.edu/dataset/80",
    ),
)

TABLE2_BASES = ("MNIST", "FashionMNIST", "KMNIST", "Random", "CIFAR10", "SVHN")

ENVIRONMENTS: tuple[EnvRow, ...] = tuple(
    EnvRow(base, view)
    for base in (*TABLE2_BASES, "Digits", "DigitsLow", "DigitsHigh")
    for view in (PIXEL_VIEWS if base == "Random" else VIEWS)  # no network sees random points
)

SUITES: tuple[Suite, ...] = (
    Suite(
        "table2-v0",
        "Table 2 of GPICL: meta-train on MNIST, meta-test on six data sets, D = 3072",
        "MNIST-Proj-v0",
        tuple(f"{base}-Proj-v0" for base in TABLE2_BASES),
    ),
    Suite(
        "table2-proj14-v0",
        "Table 2 at 14×14 pixels, D = 196",
        "MNIST-Proj14-v0",
        tuple(f"{base}-Proj14-v0" for base in TABLE2_BASES),
    ),
    Suite(
        "table2-proj8-v0",
        "Table 2 at 8×8 pixels, D = 64, for a CPU",
        "MNIST-Proj8-v0",
        tuple(f"{base}-Proj8-v0" for base in TABLE2_BASES),
    ),
    Suite(
        "digits-v0",
        "The embedded Digits data at 8×8 pixels: a first look without any download",
        "Digits-Proj8-v0",
        ("Digits-Proj8-v0", "Random-Proj8-v0"),
    ),
)

# Text: views of a prompt (Min et al. 2022), settings (MetaICL's seven, the embedded one), suites.
TEXT_VIEWS: Mapping[str, Literal["direct", "channel"]] = MappingProxyType(
    {"ICL": "direct", "Channel": "channel"}
)

METAICL_SETTINGS = (
    "HRtoLR",
    "ClassToClass",
    "NonClassToClass",
    "QAtoQA",
    "NonQAtoQA",
    "NonNLItoNLI",
    "NonParaToPara",
)

TEXT_ENVIRONMENTS: tuple[EnvRow, ...] = tuple(
    EnvRow(setting, view) for setting in (*METAICL_SETTINGS, "TextMini") for view in TEXT_VIEWS
)

TEXT_SUITES: tuple[TextSuite, ...] = (
    TextSuite(
        "metaicl-v0",
        "MetaICL: seven settings of 142 text tasks",
        METAICL_SETTINGS,
    ),
    TextSuite(
        "textmini-v0",
        "The embedded small text tasks: a first look without any download",
        ("TextMini",),
    ),
)
