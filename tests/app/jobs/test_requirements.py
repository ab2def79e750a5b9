"""What a job requires, derived from its spec, and the rule that compares it with what a worker has."""

import pytest

from app.assets.architectures import TIMM_NETWORKS
from app.jobs.requirements import Capacity, Requirements, read_key
from app.schemas.job_request import parse_request

GB = 10**9
PAIR = Capacity(gpu_memory=(80 * GB, 24 * GB))


def of(**spec):
    return Requirements.of(parse_request({"base_model": "digits-cnn-linf"} | spec))


def test_a_job_of_one_process_requires_nothing_and_of_several_a_gpu_each():
    assert of() == Requirements()
    assert of(gpus=1).key == "{}"
    assert of(gpus=3) == Requirements(gpus=3)
    assert of(kind="evaluate") == Requirements()


def test_a_network_of_timm_requires_a_worker_that_can_build_it():
    spec = {"kind": "train", "architecture": "timm/convnext_atto", "dataset": "digits", "eps": {"linf": 0.1}}
    spec |= {"epochs": 1, "method": "nat"}
    assert Requirements.of(parse_request(spec)) == Requirements(capabilities=(TIMM_NETWORKS,))
    assert Requirements.of(parse_request(spec | {"architecture": "digits-cnn"})) == Requirements()


@pytest.mark.parametrize(
    "required",
    [
        Requirements(),
        Requirements(gpus=2),
        Requirements(gpus=1, gpu_memory=40 * GB),
        Requirements(capabilities=("architecture:a", "architecture:b"), gpus=64),
    ],
)
def test_requirements_are_read_back_from_their_key(required):
    assert read_key(required.key) == required
    assert Requirements(**required.model_dump()).key == required.key


@pytest.mark.parametrize(
    ("capacity", "required", "lacks"),
    [
        (Capacity(), Requirements(), ()),
        (Capacity(), Requirements(gpus=2), ("has 0 of 2 GPUs",)),
        (PAIR, Requirements(gpus=2), ()),
        (PAIR, Requirements(gpus=3), ("has 2 of 3 GPUs",)),
        (PAIR, Requirements(gpus=1, gpu_memory=40 * GB), ()),
        (PAIR, Requirements(gpus=2, gpu_memory=40 * GB), ("has GPUs with less than 40 GB of memory",)),
        (PAIR, Requirements(gpus=2, gpu_memory=24 * GB), ()),
        (Capacity(gpu_memory=(None,)), Requirements(gpus=1), ()),
        (
            Capacity(gpu_memory=(None,)),
            Requirements(gpus=1, gpu_memory=GB),
            ("has GPUs with less than 1 GB of memory",),
        ),
        (Capacity(frozenset("ab")), Requirements(capabilities=("a",)), ()),
        (Capacity(frozenset("ab")), Requirements(capabilities=("a", "c"), gpus=2), ("lacks c", "has 0 of 2 GPUs")),
    ],
)
def test_a_worker_may_claim_what_requires_no_more_than_it_has(capacity, required, lacks):
    assert capacity.lacks(required) == lacks
    assert capacity.meets(required) is (not lacks)


def test_requirements_are_told_in_words():
    assert str(Requirements()) == ""
    assert str(Requirements(gpus=1, gpu_memory=40 * GB)) == "1 GPU with 40 GB of memory"
    assert str(Requirements(gpus=2, capabilities=("architecture:a",))) == "2 GPUs and architecture:a"
