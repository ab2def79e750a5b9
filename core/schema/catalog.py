"""What there is by name: norms, data sets, architectures, base models, methods, and the defaults each brings. No torch.

A default that depends on what a run is about lives here, once: `core.schema.spec` reads it when the user says
nothing, the service lists it. Radii and recipes are those of Croce & Hein (ICML 2022, arXiv 2105.12508) where the
paper has the data set, and ours, measured, where it does not.
"""

import re
from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict

Norm = Literal["linf", "l2", "l1"]
NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")

Augmentation = Literal["none", "crop-flip", "resized-crop-flip"]


class Entry(BaseModel):
    """Anything the catalogue lists."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    """The name a job uses."""
    description: str
    """What it is, in a sentence."""


class DatasetEntry(Entry):
    """A data set that Temper loads by name, and the recipe that fits it."""

    shape: tuple[int, int, int]
    """Channels, height and width of an image."""
    classes: int
    """How many classes the labels name."""
    train_examples: int
    """Images in the training part."""
    test_examples: int
    """Images in the test part."""
    eps: dict[Norm, float]
    """The radius per norm that the field uses on it, in pixel units of images in [0, 1]."""
    epochs: int
    """Epochs of a fine-tuning run."""
    train_epochs: int
    """Epochs of a run from random weights."""
    batch_size: int
    """Images per training step."""
    steps: dict[Norm, int]
    """Steps of the training attack per norm."""
    weight_decay: float
    """Weight decay of SGD."""
    augmentation: Augmentation
    """What training does to an image before it attacks it."""
    bound: float = 0.5
    """How different, by LPIPS, PAT may make an image look (Laidlaw et al. 2021)."""
    streamed: bool = False
    """Whether it is too large for memory and comes from the files of a folder, which a run must be given."""


class ArchitectureEntry(Entry):
    """A network that Temper builds by name."""

    shape: tuple[int, int, int] | None
    """The only image shape it takes (channels, height, width); null when it takes more than one."""
    learning_rate: float
    """The highest learning rate of a run that names none."""


class ModelEntry(Entry):
    """Weights that Temper ships: robust to one norm, ready to be fine-tuned."""

    architecture: str
    """The network the weights belong to."""
    dataset: str
    """The data set they were trained on."""
    norm: Norm
    """The norm they were made robust to."""
    eps: float
    """The radius they were made robust at."""
    sha256: str
    """Hash of the weights file."""


class MethodEntry(Entry):
    """A way to turn a batch of images and labels into a loss."""

    norms: tuple[Norm, ...] | None
    """The norms it attacks when a job names none; null when a job must name them."""
    min_norms: int
    """The fewest norms it works with."""
    max_norms: int
    """The most norms it works with."""
    options: dict[str, str | float] = {}
    """What a job can set of it beside norms and steps, each with its default."""


_TEN_STEPS: dict[Norm, int] = dict.fromkeys(NORMS, 10)

DATASETS: Mapping[str, DatasetEntry] = {
    entry.name: entry
    for entry in (
        DatasetEntry(
            name="digits",
            description="scikit-learn's handwritten digits: 1,797 real scans of 8 x 8 pixels, fixed split.",
            shape=(1, 8, 8),
            classes=10,
            train_examples=1297,
            test_examples=500,
            eps={"linf": 0.15, "l2": 0.5, "l1": 1.5},
            epochs=3,
            train_epochs=30,
            batch_size=64,
            steps=_TEN_STEPS,
            weight_decay=5e-4,
            augmentation="none",
        ),
        DatasetEntry(
            name="cifar10",
            description="CIFAR-10 through torchvision: 60,000 colour images of 32 x 32 pixels.",
            shape=(3, 32, 32),
            classes=10,
            train_examples=50_000,
            test_examples=10_000,
            eps={"linf": 8 / 255, "l2": 0.5, "l1": 12.0},
            epochs=3,
            train_epochs=80,
            batch_size=128,
            steps=_TEN_STEPS,
            weight_decay=5e-4,
            augmentation="crop-flip",
        ),
        DatasetEntry(
            name="cifar100",
            description="CIFAR-100 through torchvision: 60,000 colour images of 32 x 32 pixels in 100 fine classes.",
            shape=(3, 32, 32),
            classes=100,
            train_examples=50_000,
            test_examples=10_000,
            eps={"linf": 8 / 255, "l2": 0.5, "l1": 12.0},
            epochs=3,
            train_epochs=80,
            batch_size=128,
            steps=_TEN_STEPS,
            weight_decay=5e-4,
            augmentation="crop-flip",
        ),
        DatasetEntry(
            name="imagenet",
            description="ImageNet (ILSVRC 2012), from a folder with train/<wnid>/ and val/<wnid>/, at 224 x 224.",
            shape=(3, 224, 224),
            classes=1000,
            train_examples=1_281_167,
            test_examples=50_000,
            eps={"linf": 4 / 255, "l2": 2.0, "l1": 255.0},
            epochs=1,
            train_epochs=90,
            batch_size=128,
            steps={"linf": 5, "l2": 5, "l1": 15},
            weight_decay=1e-4,
            augmentation="resized-crop-flip",
            bound=0.25,
            streamed=True,
        ),
    )
}

ARCHITECTURES: Mapping[str, ArchitectureEntry] = {
    entry.name: entry
    for entry in (
        ArchitectureEntry(
            name="digits-cnn",
            description="Three 3 x 3 convolutions with batch norm for the digits; 58,000 parameters.",
            shape=(1, 8, 8),
            learning_rate=0.01,
        ),
        ArchitectureEntry(
            name="preact-resnet-8",
            description="Pre-activation ResNet of 8 layers for small images, small enough to train without a GPU.",
            shape=None,
            learning_rate=0.05,
        ),
        ArchitectureEntry(
            name="preact-resnet-18",
            description="Pre-activation ResNet-18 (He et al. 2016) for small images, ReLU.",
            shape=None,
            learning_rate=0.05,
        ),
        ArchitectureEntry(
            name="preact-resnet-18-softplus",
            description="Pre-activation ResNet-18 with softplus inside its blocks, as the E-AT paper trains it.",
            shape=None,
            learning_rate=0.05,
        ),
        ArchitectureEntry(
            name="resnet-18",
            description="ResNet-18 (He et al. 2015) for small images; 11.2 million parameters.",
            shape=None,
            learning_rate=0.01,
        ),
        ArchitectureEntry(
            name="resnet-50",
            description="ResNet-50 for small images, as MadryLab's robust models for CIFAR-10.",
            shape=None,
            learning_rate=0.01,
        ),
        ArchitectureEntry(
            name="wide-resnet-28-10",
            description="WideResNet-28-10 (Zagoruyko & Komodakis 2016) as in TRADES; 36.5 million parameters.",
            shape=None,
            learning_rate=0.01,
        ),
        ArchitectureEntry(
            name="wide-resnet-34-10",
            description="WideResNet-34-10 as in TRADES; 46.2 million parameters.",
            shape=None,
            learning_rate=0.01,
        ),
        ArchitectureEntry(
            name="wide-resnet-34-20",
            description="WideResNet-34-20 as in TRADES; 184.5 million parameters.",
            shape=None,
            learning_rate=0.01,
        ),
        ArchitectureEntry(
            name="wide-resnet-70-16",
            description="WideResNet-70-16 as in TRADES; 266.8 million parameters.",
            shape=None,
            learning_rate=0.01,
        ),
        ArchitectureEntry(
            name="dm-wide-resnet-28-10",
            description="WideResNet-28-10 with SiLU, as Gowal et al. 2020 build it.",
            shape=None,
            learning_rate=0.01,
        ),
        ArchitectureEntry(
            name="dm-wide-resnet-34-20",
            description="WideResNet-34-20 with SiLU, as Gowal et al. 2020 build it.",
            shape=None,
            learning_rate=0.01,
        ),
        ArchitectureEntry(
            name="dm-wide-resnet-70-16",
            description="WideResNet-70-16 with SiLU, as Gowal et al. 2020 build it.",
            shape=None,
            learning_rate=0.01,
        ),
        ArchitectureEntry(
            name="imagenet-resnet-50",
            description="ResNet-50 for ImageNet, as torchvision builds it.",
            shape=None,
            learning_rate=0.005,
        ),
        ArchitectureEntry(
            name="imagenet-resnet-50-gelu",
            description="ResNet-50 for ImageNet with GELU (Bai et al. 2021).",
            shape=None,
            learning_rate=0.005,
        ),
        ArchitectureEntry(
            name="deit-s",
            description="DeiT-S (Touvron et al. 2021), a vision transformer of 22 million parameters, through timm.",
            shape=(3, 224, 224),
            learning_rate=1e-4,
        ),
        ArchitectureEntry(
            name="xcit-s12",
            description="XCiT-S12 (El-Nouby et al. 2021), a transformer with patches of 16 pixels, through timm.",
            shape=(3, 224, 224),
            learning_rate=1e-4,
        ),
    )
}

TIMM = "timm/"
"""How the name of a network begins that the timm library builds."""


def find_architecture(name: str) -> ArchitectureEntry | None:
    """Find a network by name: one of ARCHITECTURES, or "timm/" and a name of timm's; None for what can be neither.

    Whether timm has a network of that name, only the run finds out.
    """
    if re.fullmatch(rf"{TIMM}[a-z0-9_]+", name):
        # Most of timm's networks are transformers or train as they do; the E-AT paper takes this rate for XCiT.
        return ArchitectureEntry(name=name, description="A classifier of timm's.", shape=None, learning_rate=1e-4)
    return ARCHITECTURES.get(name)


MODELS: Mapping[str, ModelEntry] = {
    entry.name: entry
    for entry in (
        ModelEntry(
            name="digits-cnn-linf",
            description="The digits CNN, trained from random weights to be robust to linf.",
            architecture="digits-cnn",
            dataset="digits",
            norm="linf",
            eps=0.15,
            sha256="30f6de8a053e462d4639654b74994e05779263ddc0fb89f806eb7c26f2e85f5f",
        ),
        ModelEntry(
            name="cifar10-small-linf",
            description="PreAct ResNet-8, trained on CIFAR-10 (JPEG) from random weights to be robust to linf.",
            architecture="preact-resnet-8",
            dataset="cifar10",
            norm="linf",
            eps=8 / 255,
            sha256="ea7e17e05f1ca8ddf60e7c6206966a40d7a5851823050a6da274c0ceba812a55",
        ),
    )
}

_ADVERSARIAL: dict[str, str | float] = {"loss": "cross-entropy"}

METHODS: Mapping[str, MethodEntry] = {
    entry.name: entry
    for entry in (
        MethodEntry(
            name="nat",
            description="Natural training: no attack at all.",
            norms=(),
            min_norms=0,
            max_norms=0,
        ),
        MethodEntry(
            name="single",
            description="Adversarial training in one norm (Madry et al. 2018), also from an l_p-robust base to l_q.",
            norms=None,
            min_norms=1,
            max_norms=1,
            options=_ADVERSARIAL,
        ),
        MethodEntry(
            name="sat",
            description="Stochastic adversarial training: a norm drawn uniformly for each batch (Madaan et al. 2021).",
            norms=("linf", "l2", "l1"),
            min_norms=2,
            max_norms=3,
            options=_ADVERSARIAL,
        ),
        MethodEntry(
            name="avg",
            description="All norms on every batch, the mean of their losses; thrice the cost (Tramèr & Boneh 2019).",
            norms=("linf", "l2", "l1"),
            min_norms=2,
            max_norms=3,
            options=_ADVERSARIAL,
        ),
        MethodEntry(
            name="max",
            description="All norms on every batch, of each image the worst; thrice the cost (Tramèr & Boneh 2019).",
            norms=("linf", "l2", "l1"),
            min_norms=2,
            max_norms=3,
            options=_ADVERSARIAL,
        ),
        MethodEntry(
            name="msd",
            description="Multi steepest descent: one attack that tries every norm at each step; twice the cost "
            "(Maini et al. 2020).",
            norms=("linf", "l2", "l1"),
            min_norms=2,
            max_norms=3,
            options=_ADVERSARIAL,
        ),
        MethodEntry(
            name="e-at",
            description="Extreme-norm adversarial training: linf or l1 for each batch, the weaker one more often "
            "(Croce & Hein 2022).",
            norms=("linf", "l1"),
            min_norms=2,
            max_norms=3,
            options=_ADVERSARIAL,
        ),
        MethodEntry(
            name="ramp",
            description="MAX of two norms, with their answers drawn together; twice the cost (Jiang & Singh 2024).",
            norms=("linf", "l1"),
            min_norms=2,
            max_norms=2,
            options={**_ADVERSARIAL, "pairing": 0.5},
        ),
        MethodEntry(
            name="pat",
            description="Perceptual adversarial training: images that look alike to the model itself, no l_p ball "
            "(Laidlaw et al. 2021).",
            norms=(),
            min_norms=0,
            max_norms=0,
            options={"bound": 0.5},
        ),
    )
}
