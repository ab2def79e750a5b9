"""The requirements of a job, the capacity of a worker, and the rule that compares the two.

`Capacity.lacks` is the only such rule: a worker claims by it, and it says why a job waits. A new requirement is a field
or a capability here, derived from the spec in `Requirements.of`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

from app.assets.architectures import capability_of
from app.platform.settings import ResourceClass
from core.schema.record import Record
from core.schema.spec import AnySpec

_GIGABYTE = 10**9


class Requirements(Record):
    """What a job requires. Few values differ: a claim looks at the waiting jobs of each value (`key`) apart."""

    capabilities: tuple[str, ...] = ()
    """What the worker must be able to do, sorted."""
    gpus: int = 0
    """Number of GPUs; 0 for a job that runs on a CPU as well."""
    gpu_memory: int = 0
    """Bytes of memory of each of these GPUs, in whole gigabytes (1e9)."""

    @classmethod
    def of(cls, spec: AnySpec, base: Iterable[str] = ()) -> Self:
        """Derive the requirements of a job from its spec. base: the capabilities that its base model needs."""
        # One process computes on whatever the machine has; several need a GPU each.
        gpus = getattr(spec, "gpus", 1)
        own = capability_of(getattr(spec, "architecture", ""))
        return cls(capabilities=tuple(sorted({*base, *filter(None, [own])})), gpus=gpus if gpus > 1 else 0)

    @property
    def key(self) -> str:
        """The requirements as text, the same for equal ones: what the row of a job has."""
        return self.model_dump_json(exclude_defaults=True)

    @property
    def resource_class(self) -> ResourceClass:
        """The class of worker that can meet them."""
        return "gpu" if self.gpus else "cpu"

    def __str__(self) -> str:
        """Say what they are, for people; empty for none."""
        return " and ".join(self._parts())

    def _parts(self) -> Iterator[str]:
        if self.gpus:
            memory = f" with {self.gpu_memory / _GIGABYTE:g} GB of memory" if self.gpu_memory else ""
            yield f"{self.gpus} GPU{'s' if self.gpus > 1 else ''}{memory}"
        yield from self.capabilities


@lru_cache(maxsize=1024)
def read_key(key: str) -> Requirements:
    """Read requirements from the `key` that they had."""
    return Requirements.model_validate_json(key)


@dataclass(frozen=True)
class Capacity:
    """What a worker has for a job."""

    capabilities: frozenset[str] = frozenset()
    """What it can do."""
    gpu_memory: tuple[int | None, ...] = ()
    """Bytes of memory of each GPU, in the order in which a job gets them; None where that is not known."""

    def meets(self, requirements: Requirements) -> bool:
        """Whether the worker may claim a job with these requirements."""
        return not self.lacks(requirements)

    def lacks(self, requirements: Requirements) -> tuple[str, ...]:
        """Say what is missing here for a job with these requirements, as the ends of sentences about the worker; empty
        where it may claim the job."""
        missing = [f"lacks {name}" for name in requirements.capabilities if name not in self.capabilities]
        given = self.gpu_memory[: requirements.gpus]
        if len(given) < requirements.gpus:
            missing.append(f"has {len(given)} of {requirements.gpus} GPUs")
        elif any((memory or 0) < requirements.gpu_memory for memory in given):
            missing.append(f"has GPUs with less than {requirements.gpu_memory / _GIGABYTE:g} GB of memory")
        return tuple(missing)
