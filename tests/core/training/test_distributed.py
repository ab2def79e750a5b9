"""Several processes as one: batch norm that they share. What two real ones do together is in test_course."""

import copy

import pytest
import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import nn

from core.schema.errors import BadInput
from core.training.distributed import share_batch_norm


@pytest.fixture
def group(tmp_path):
    """A group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Doubled(nn.BatchNorm2d):
    def forward(self, images):
        return 2 * super().forward(images)


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, BatchNormAct2d])
def test_a_shared_batch_norm_computes_what_its_kind_computes(group, kind):
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), kind(4))
    shared = copy.deepcopy(plain)
    share_batch_norm(shared)
    images = torch.rand(8, 3, 6, 6)
    for _ in range(2):
        # First by the batch's statistics, then by those that it has left behind.
        torch.testing.assert_close(shared(images), plain(images))
        torch.testing.assert_close(shared.state_dict(), plain.state_dict())
        plain.eval(), shared.eval()
    assert (plain(images).min() >= 0) == (kind is BatchNormAct2d)


def test_a_batch_norm_that_does_more_than_is_known_is_refused():
    with pytest.raises(BadInput, match="1 is a batch norm of its own kind, Doubled") as refused:
        share_batch_norm(nn.Sequential(nn.Conv2d(3, 4, 3), Doubled(4)))
    assert (refused.value.field, refused.value.hint) == ("gpus", "set gpus to 1")
