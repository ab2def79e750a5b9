"""Networks of the user's own: factories by name, and packages that offer networks by entry points."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from core.models import Blueprint, build
from core.models.own import architecture_of, copy_of, import_factory, make
from core.schema.errors import BadInput
from tests.support.packages import install

_MODULE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes=4):
        super().__init__()
        self.fc = nn.Linear(16, classes)

    def forward(self, images):
        return self.fc(images.flatten(1))

def needs(classes):
    return Net(classes)

def number():
    return 7

instance = Net()
word = "Net"
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of the user's, in the folder from which Python imports."""
    (tmp_path / "my_networks.py").write_text(_MODULE)
    (tmp_path / "broken_networks.py").write_text("raise OSError('no licence found')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("my_networks", "broken_networks"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_a_factory_is_called_with_the_seed_and_draws_nothing_from_the_callers_stream() -> None:
    factory = import_factory("my_networks:Net")
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    one, two, other = (make(factory, "my_networks:Net", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(4), expected)
    assert torch.equal(one.fc.weight, two.fc.weight)
    assert not torch.equal(one.fc.weight, other.fc.weight)
    assert architecture_of(one) == "own:my_networks:Net"


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("my_networks", "names no class or function", "package.module:name"),
        ("no_networks:Net", "no_networks cannot be imported: ModuleNotFoundError", "PYTHONPATH"),
        ("broken_networks:Net", "cannot be imported: OSError: no licence found", "PYTHONPATH"),
        ("my_networks:Nett", "my_networks has no Nett", "did you mean my_networks:Net?"),
        ("my_networks:instance", "an object of the type Net", "name a class"),
        ("my_networks:word", "an object of the type str", "name a class"),
    ],
)
def test_a_name_that_is_no_factory_is_refused_with_what_it_is(name: str, message: str, hint: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        import_factory(name)
    assert (caught.value.field, hint in caught.value.hint) == ("model", True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_networks:needs", "my_networks:needs raises TypeError: .*classes"),
        ("my_networks:number", "returns an object of the type int, not a torch.nn.Module"),
    ],
)
def test_a_factory_that_makes_no_network_is_refused(name: str, message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        make(import_factory(name), name, seed=0)
    assert caught.value.field == "model"


class _WithExtra(nn.Linear):
    def get_extra_state(self) -> object:
        return {"temperature": 1.0}


def test_what_cannot_be_copied_or_stored_is_refused() -> None:
    with pytest.raises(BadInput, match="the type str, not a torch"):
        copy_of("net")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="_extra_state in the state dict of _WithExtra is of the type dict"):
        copy_of(_WithExtra(4, 4))
    used = nn.Linear(4, 4)
    used.last = used(torch.rand(1, 4))  # type: ignore[assignment]
    with pytest.raises(BadInput, match="a Linear cannot be copied"):
        copy_of(used)


def test_a_package_offers_a_network_by_an_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch)
    torch.manual_seed(1)
    built = build(Blueprint("own/tiny", (1, 8, 8), 5, mean=(0.5,), std=(0.25,)))
    assert built(torch.rand(2, 1, 8, 8)).shape == (2, 5)
    torch.manual_seed(1)
    again = build(Blueprint("own/tiny", (1, 8, 8), 5))
    assert torch.equal(built.network.fc.weight, again.fc.weight)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own/tinny", "no package that is installed here offers the network own/tinny; offered: .*own/tiny"),
        ("own/missing", "the package of own/missing cannot be imported: ModuleNotFoundError"),
        ("own/word", "own/word is an object of the type str"),
        ("own/raising", "raises ValueError: no such size"),
        ("own/number", "returns an object of the type int"),
    ],
)
def test_a_package_that_makes_no_network_is_refused(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch)
    with pytest.raises(BadInput, match=message) as caught:
        build(Blueprint(name, (1, 8, 8), 5))
    assert caught.value.field == "architecture"


def test_a_class_of_the_users_own_is_not_built_by_its_name() -> None:
    with pytest.raises(BadInput, match="my_networks:Net is a class of the user's own") as caught:
        build(Blueprint("own:my_networks:Net", (1, 4, 4), 4))
    assert "--model my_networks:Net" in caught.value.hint
