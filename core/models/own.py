"""Networks of other people's code: a class or function that the user names, and those that installed packages offer.

Such code is trusted as the Python packages beside it are: the user names it on a command line of their own machine, or
the operator installs it. No file that is uploaded can name code that is not installed.
"""

import importlib
from collections.abc import Callable
from copy import deepcopy
from importlib.metadata import EntryPoint, entry_points

import torch
from torch import Tensor, nn

from core.schema.catalog import OWN_CLASS, PACKAGED, PACKAGES
from core.schema.errors import BadInput
from core.schema.suggestions import find_close

Factory = Callable[..., object]


def architecture_of(model: nn.Module) -> str:
    """Name the class of a user's network as an architecture, such as own:my_networks:Net."""
    kind = type(model)
    return f"{OWN_CLASS}{kind.__module__}:{kind.__qualname__}"


def import_factory(name: str) -> Factory:
    """Import a class or function by "package.module:name". Raises BadInput."""
    module, _, path = name.partition(":")
    if not module or not path:
        raise BadInput(
            f"{name!r} names no class or function",
            hint="write it as package.module:name, such as my_networks:Net",
            field="model",
        )
    try:
        found: object = importlib.import_module(module)
    except Exception as error:
        # Whatever the user's module does when it is imported.
        raise BadInput(
            f"{module} cannot be imported: {_first_line(error)}",
            hint="run the command in the folder of the module, or put that folder on PYTHONPATH",
            field="model",
        ) from error
    for part in path.split("."):
        inside, found = found, getattr(found, part, None)
        if found is None:
            close = find_close(part, [each for each in vars(inside) if not each.startswith("_")])
            raise BadInput(
                f"{module} has no {path}",
                hint=f"did you mean {module}:{close}?" if close else "name a class or function that it defines",
                field="model",
            )
    if not callable(found) or isinstance(found, nn.Module):
        raise BadInput(
            f"{name} is an object of the type {type(found).__name__}",
            hint="name a class, or a function that returns the network",
            field="model",
        )
    return found


def make(factory: Factory, name: str, *, seed: int) -> nn.Module:
    """Call a factory without arguments; what it draws comes from the seed, and the global random state stays.

    name: of the factory, for errors. Raises BadInput where it raises, or returns no module.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return _call(factory, name, field="model")


def _call(factory: Factory, name: str, *, field: str, **arguments: object) -> nn.Module:
    try:
        made = factory(**arguments)
    except Exception as error:
        # Whatever the user's code raises.
        given = " and ".join(arguments) or "no arguments"
        raise BadInput(
            f"{name} raises {_first_line(error)}",
            hint=f"give a class or function that returns a network when it is called with {given}",
            field=field,
        ) from error
    if not isinstance(made, nn.Module):
        raise BadInput(
            f"{name} returns an object of the type {type(made).__name__}, not a torch.nn.Module",
            hint="return the network",
            field=field,
        )
    return made


def build_packaged(architecture: str, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Build a network that an installed package offers, by its name with the prefix.

    Its factory is called with shape=(channels, height, width) and classes, and draws from torch's global generator.
    Raises BadInput where no package offers the name, or its code does not return a network.
    """
    points = {point.name: point for point in entry_points(group=PACKAGES)}
    name = architecture.removeprefix(PACKAGED)
    point = points.get(name)
    if point is None:
        known = ", ".join(f"{PACKAGED}{each}" for each in sorted(points)) or "none"
        raise BadInput(
            f"no package that is installed here offers the network {architecture}; offered: {known}",
            hint=f"install the package that has {name} in its entry points of the group {PACKAGES}",
            field="architecture",
        )
    factory = _load(point, architecture)
    name = f"{point.value}, which is {architecture},"
    return _call(factory, name, field="architecture", shape=shape, classes=classes)


def _load(point: EntryPoint, architecture: str) -> Factory:
    try:
        factory = point.load()
    except Exception as error:
        # Whatever the package does when it is imported.
        raise BadInput(
            f"the package of {architecture} cannot be imported: {_first_line(error)}",
            hint="install a version of it that works with this Python and torch",
            field="architecture",
        ) from error
    if not callable(factory):
        raise BadInput(
            f"{architecture} is an object of the type {type(factory).__name__}, not a class or function",
            hint=f"correct the entry point {point.name} = {point.value} of its package",
            field="architecture",
        )
    return factory


def copy_of(model: nn.Module) -> nn.Module:
    """Return a copy of a user's network, on the CPU, whose weights can be stored. Raises BadInput."""
    if not isinstance(model, nn.Module):
        raise BadInput(
            f"the model is of the type {type(model).__name__}, not a torch.nn.Module",
            hint="give the network itself, such as model=Net()",
            field="model",
        )
    try:
        copy = deepcopy(model).cpu()
    except Exception as error:
        # Copying runs the user's code, such as __deepcopy__ and __reduce__.
        raise BadInput(
            f"a {type(model).__name__} cannot be copied: {_first_line(error)}",
            hint="give a network that copy.deepcopy copies, such as one that has computed nothing yet",
            field="model",
        ) from error
    for name, value in copy.state_dict().items():
        if not isinstance(value, Tensor):
            raise BadInput(
                f"{name} in the state dict of {type(model).__name__} is of the type {type(value).__name__}",
                hint="keep only tensors in it: a checkpoint stores nothing else",
                field="model",
            )
    return copy


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"
