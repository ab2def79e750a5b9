"""Random streams: one seeded generator per purpose, and torch's global generator for layers such as dropout."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from core.training.distributed import ProcessGroup


def stream(seed: int, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """Create the random stream for one purpose, so that no part of a run disturbs the draws of another."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))


class LayerStream:
    """The random numbers of layers such as dropout, which draw from torch's global generator.

    The global generator is in the state of this stream only while the model trains; otherwise it is the caller's and
    stays unchanged. Each process has a stream of its own, for its own images.
    """

    def __init__(self, seed: int, group: ProcessGroup) -> None:
        self._gpus = [group.device] if group.device.type == "cuda" else []
        self._is_first = group.rank == 0
        name = f"layers/{group.rank}"
        self._states = [stream(seed, name).get_state()]
        self._states += [stream(seed, name, gpu).get_state() for gpu in self._gpus]

    @contextmanager
    def active(self) -> Iterator[None]:
        """Let the global generator be this stream inside the block, and restore it afterwards."""
        with torch.random.fork_rng(devices=self._gpus):
            torch.set_rng_state(self._states[0])
            for gpu, state in zip(self._gpus, self._states[1:], strict=True):
                torch.cuda.set_rng_state(state, gpu)
            yield
            self._states = [torch.get_rng_state(), *(torch.cuda.get_rng_state(gpu) for gpu in self._gpus)]

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state of the generator of each device."""
        return {f"layers-{number}": state for number, state in enumerate(self._states)}

    def load_state_dict(self, states: Mapping[str, Tensor]) -> None:
        """Continue from states of the first process; the other processes, and other kinds of device, start afresh."""
        names = list(self.state_dict())
        if self._is_first and all(name in states for name in names):
            self._states = [states[name] for name in names]
