"""Batch sizes: the smallest that a network can train on, and one that fits the memory."""

from collections.abc import Callable

import torch
from torch import nn
from torch.func import functional_call

from core.models.memory import is_out_of_memory, release
from core.schema.errors import BadInput, OutOfMemory


def check_batches(smallest: int, *, batch_size: int, fewest: int, world_size: int) -> None:
    """Refuse batches that are too small for the processes, or for batch norm.

    smallest: images in the smallest batch of an epoch. batch_size: that of the spec. fewest: images that the network
    needs at once. Raises BadInput.
    """
    if smallest < world_size:
        raise BadInput(
            f"the smallest batch of an epoch has {smallest} images, too few for {world_size} processes",
            hint="choose another batch_size",
            field="batch_size",
        )
    if smallest < fewest:
        alone = batch_size == 1
        raise BadInput(
            "this network cannot train on a batch of one image: batch norm over maps of one pixel needs two",
            hint="set batch_size to 2 or more" if alone else "train on 2 images or more",
            field="batch_size" if alone else "train_examples",
        )


def fewest_images(model: nn.Module, shape: tuple[int, int, int], device: torch.device) -> int:
    """Find how many images the network needs at once in train mode: 1, or 2 for batch norm over maps of one pixel.

    shape: channels, height and width of an image. The model and the global random state stay unchanged.
    """
    was = model.training
    model.train()
    try:
        # Batch norm updates its running statistics, here those of copies; layers such as dropout draw.
        copies = {name: buffer.clone() for name, buffer in model.named_buffers()}
        image = torch.zeros(1, *shape, device=device)
        with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            functional_call(model, copies, image)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        return 2
    finally:
        model.train(was)
    return 1


def find_fitting_size(attempt: Callable[[int], None], size: int, *, fewest: int, device: torch.device) -> int:
    """Halve a batch that does not fit the memory until one fits; return its size, or 0 when none fits.

    attempt: takes a training step on a number of images. size: a number that does not fit. fewest: see `fewest_images`.
    """
    while (size := size // 2) >= fewest:
        try:
            attempt(size)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        else:
            return size
        # Outside the except block the failed attempt holds nothing any more.
        release(device)
    return 0


def out_of_memory(device: torch.device, *, batch_size: int, fits: int | None, accumulates: bool) -> OutOfMemory:
    """Build the error for a batch that does not fit the memory, with a batch size that does.

    fits: a size that fits, or 0 when none does; None where no size was tried. accumulates: whether the run may already
    increase its number of micro-batches.
    """
    if fits is None:
        hint = (
            f"set batch_size to less, such as {max(batch_size // 2, 1)}, or accumulate to more; several processes "
            "cannot search for a size that fits"
        )
    elif fits:
        hint = f"set batch_size to {fits}, which was found to fit"
        hint += "" if accumulates else ", or set accumulate to auto"
    else:
        hint = "not even the smallest batch fits: use a device with more memory, or a smaller network"
    return OutOfMemory(
        f"a batch of {batch_size} images does not fit the memory of {device}", hint=hint, field="batch_size"
    )
