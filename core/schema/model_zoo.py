"""Robust weights that others have published, by the names of RobustBench: what they are, where to get them. No torch.

Temper fetches none of them. Download a file and give it to `python -m core import-weights FILE --published NAME`, which
then knows network and normalisation. The models are those that Croce & Hein 2022 (arXiv 2105.12508) fine-tune;
accuracies are RobustBench's, for the whole test set and AutoAttack; licences are those that RobustBench states.
"""

from collections.abc import Mapping

from pydantic import Field

from core.schema.catalog import Entry, Norm

_CIFAR_MEAN, _CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SMALL, _LARGE = (3, 32, 32), (3, 224, 224)


class PublishedEntry(Entry):
    """Weights that somebody has published: robust to one norm."""

    dataset: str
    """The data set they were trained on."""
    norm: Norm
    """The norm they were made robust to."""
    eps: float
    """The radius they were made robust at, in pixel units of images in [0, 1]."""
    architecture: str
    """The network, by its name in the catalogue."""
    shape: tuple[int, int, int]
    """Channels, height and width of the images they were trained on."""
    classes: int
    """How many classes they tell apart."""
    mean: tuple[float, ...] = ()
    """Per channel, what is subtracted from images in [0, 1] first; empty for nothing."""
    std: tuple[float, ...] = ()
    """Per channel, what they are divided by then; empty for nothing."""
    clean: float | None = None
    """Published accuracy on clean images; null where we know of none."""
    robust: float | None = None
    """Published accuracy under AutoAttack at this norm and radius; null where we know of none."""
    licence: str | None = None
    """The licence of the weights; null where none is stated: ask the authors."""
    source: str = Field(min_length=1)
    """Where to get the file."""


def _drive(file: str) -> str:
    return f"https://drive.google.com/file/d/{file}"


def _release(file: str) -> str:
    return f"https://github.com/RobustBench/robustbench/releases/download/v1.1/{file}"


_E_AT_FOLDER = "https://drive.google.com/drive/folders/1hYWHp5UbTAm9RhSb8JkJZtcB0LDZDvkT"

_E_AT_BASES: tuple[tuple[str, Norm, float], ...] = (("Linf", "linf", 8 / 255), ("L2", "l2", 0.5), ("L1", "l1", 12.0))

PUBLISHED: Mapping[str, PublishedEntry] = {
    entry.name: entry
    for entry in (
        PublishedEntry(
            name="cifar10/Linf/Engstrom2019Robustness",
            description="ResNet-50 of MadryLab's robustness library.",
            dataset="cifar10",
            norm="linf",
            eps=8 / 255,
            architecture="resnet-50",
            shape=_SMALL,
            classes=10,
            mean=_CIFAR_MEAN,
            std=(0.2023, 0.1994, 0.2010),
            clean=0.8703,
            robust=0.4925,
            licence="MIT",
            source=_drive("1etqmQsksNIWBvBQ4r8ZFk_3FJlLWr8Rr"),
        ),
        PublishedEntry(
            name="cifar10/L2/Engstrom2019Robustness",
            description="ResNet-50 of MadryLab's robustness library.",
            dataset="cifar10",
            norm="l2",
            eps=0.5,
            architecture="resnet-50",
            shape=_SMALL,
            classes=10,
            mean=_CIFAR_MEAN,
            std=(0.2023, 0.1994, 0.2010),
            clean=0.9083,
            robust=0.6924,
            licence="MIT",
            source=_drive("1O8rGa6xOUIRwQ-M4ESrCjzknby8TM2ZE"),
        ),
        PublishedEntry(
            name="cifar10/Linf/Carmon2019Unlabeled",
            description="WideResNet-28-10, trained with 500,000 pseudo-labelled images besides (arXiv 1905.13736).",
            dataset="cifar10",
            norm="linf",
            eps=8 / 255,
            architecture="wide-resnet-28-10",
            shape=_SMALL,
            classes=10,
            clean=0.8969,
            robust=0.5953,
            licence="MIT",
            source=_drive("15tUx-gkZMYx7BfEOw1GY5OKC-jECIsPQ"),
        ),
        PublishedEntry(
            name="cifar10/Linf/Gowal2020Uncovering_34_20",
            description="WideResNet-34-20 with SiLU (arXiv 2010.03593).",
            dataset="cifar10",
            norm="linf",
            eps=8 / 255,
            architecture="dm-wide-resnet-34-20",
            shape=_SMALL,
            classes=10,
            mean=_CIFAR_MEAN,
            std=_CIFAR_STD,
            clean=0.8564,
            robust=0.5686,
            licence="Apache-2.0",
            source=_drive("1YWvZO1u9_yNLFNC3JYd_TVkvrRSMER1O"),
        ),
        PublishedEntry(
            name="cifar10/Linf/Gowal2020Uncovering_28_10_extra",
            description="WideResNet-28-10 with SiLU, trained with extra images (arXiv 2010.03593).",
            dataset="cifar10",
            norm="linf",
            eps=8 / 255,
            architecture="dm-wide-resnet-28-10",
            shape=_SMALL,
            classes=10,
            mean=_CIFAR_MEAN,
            std=_CIFAR_STD,
            clean=0.8948,
            robust=0.6280,
            licence="Apache-2.0",
            source=_drive("1MBAWGxiZxKt-GfqEqtLcXcd3tAxPhvV2"),
        ),
        PublishedEntry(
            name="cifar10/Linf/Gowal2020Uncovering_70_16_extra",
            description="WideResNet-70-16 with SiLU, trained with extra images (arXiv 2010.03593).",
            dataset="cifar10",
            norm="linf",
            eps=8 / 255,
            architecture="dm-wide-resnet-70-16",
            shape=_SMALL,
            classes=10,
            mean=_CIFAR_MEAN,
            std=_CIFAR_STD,
            clean=0.9110,
            robust=0.6588,
            licence="Apache-2.0",
            source=_drive("1GxryYj_Or-VCDca0wgiFLz4ssXSZXQoJ"),
        ),
        PublishedEntry(
            name="cifar10/L2/Gowal2020Uncovering_extra",
            description="WideResNet-70-16 with SiLU, trained with extra images (arXiv 2010.03593).",
            dataset="cifar10",
            norm="l2",
            eps=0.5,
            architecture="dm-wide-resnet-70-16",
            shape=_SMALL,
            classes=10,
            mean=_CIFAR_MEAN,
            std=_CIFAR_STD,
            clean=0.9474,
            robust=0.8053,
            licence="Apache-2.0",
            source=_drive("1pkZDCpCBShpAnx92n8PUeNOY1fSiTi0s"),
        ),
        *(
            PublishedEntry(
                name=f"cifar10/{threat}/pretr_{threat}",
                description="PreAct ResNet-18 with softplus, a base model of the E-AT paper; not on RobustBench.",
                dataset="cifar10",
                norm=norm,
                eps=eps,
                architecture="preact-resnet-18-softplus",
                shape=_SMALL,
                classes=10,
                source=f"{_E_AT_FOLDER}, the file pretr_{threat}.pth",
            )
            for threat, norm, eps in _E_AT_BASES
        ),
        PublishedEntry(
            name="imagenet/Linf/Engstrom2019Robustness",
            description="ResNet-50 of MadryLab's robustness library.",
            dataset="imagenet",
            norm="linf",
            eps=4 / 255,
            architecture="imagenet-resnet-50",
            shape=_LARGE,
            classes=1000,
            mean=_IMAGENET_MEAN,
            std=_IMAGENET_STD,
            clean=0.6256,
            robust=0.2922,
            licence="MIT",
            source=_drive("1T2Fvi1eCJTeAOEzrH_4TAIwO8HTOYVyn"),
        ),
        PublishedEntry(
            name="imagenet/L2/Engstrom2019Robustness",
            description="ResNet-50 of MadryLab's robustness library; not on RobustBench.",
            dataset="imagenet",
            norm="l2",
            eps=3.0,
            architecture="imagenet-resnet-50",
            shape=_LARGE,
            classes=1000,
            mean=_IMAGENET_MEAN,
            std=_IMAGENET_STD,
            source="https://www.dropbox.com/s/knf4uimlqsi1yz8/imagenet_l2_3_0.pt?dl=0",
        ),
        PublishedEntry(
            name="imagenet/Linf/Bai2021_ResNet50_GELU",
            description="ResNet-50 with GELU (Bai et al. 2021, arXiv 2111.05464); not on RobustBench.",
            dataset="imagenet",
            norm="linf",
            eps=4 / 255,
            architecture="imagenet-resnet-50-gelu",
            shape=_LARGE,
            classes=1000,
            mean=_IMAGENET_MEAN,
            std=_IMAGENET_STD,
            clean=0.6738,
            robust=0.3551,
            source=_drive("1IPExDTAAuxIhUSYrmlweTQaKNscTw24-"),
        ),
        PublishedEntry(
            name="imagenet/Linf/Bai2021_DeiT_S",
            description="DeiT-S (Bai et al. 2021, arXiv 2111.05464); not on RobustBench.",
            dataset="imagenet",
            norm="linf",
            eps=4 / 255,
            architecture="deit-s",
            shape=_LARGE,
            classes=1000,
            mean=_IMAGENET_MEAN,
            std=_IMAGENET_STD,
            clean=0.6650,
            robust=0.3550,
            source=_drive("1U5XmAUQkSlw5Q1ZhsVriBEOQEk-bPfFU"),
        ),
        PublishedEntry(
            name="imagenet/Linf/Debenedetti2022Light_XCiT-S12",
            description="XCiT-S12, which takes images in [0, 1] as they are (arXiv 2209.07399).",
            dataset="imagenet",
            norm="linf",
            eps=4 / 255,
            architecture="xcit-s12",
            shape=_LARGE,
            classes=1000,
            clean=0.7234,
            robust=0.4178,
            licence="MIT",
            source=_release("debenedetti2022light-xcit-s-imagenet-linf.pth.tar"),
        ),
    )
}


def find_published(name: str) -> list[PublishedEntry]:
    """Find published weights by name, or by the last part of it, which more than one may share."""
    return [entry for entry in PUBLISHED.values() if name in (entry.name, entry.name.rpartition("/")[2])]
