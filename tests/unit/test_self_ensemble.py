"""The mean of a restored picture and its restored mirror image."""

from __future__ import annotations

import torch

from bench.batch import FaceBatch
from methods.blocks.self_ensemble import mean_over_mirror


def batch() -> FaceBatch:
    generator = torch.Generator().manual_seed(0)
    return FaceBatch(
        lq=torch.rand(2, 3, 4, 6, generator=generator),
        references=torch.rand(2, 3, 3, 5, 5, generator=generator),
        reference_mask=torch.tensor([[True, True, False], [True, False, False]]),
        image_ids=["a", "b"],
        identities=["one", "two"],
        seeds=[3, 4],
        gt=torch.zeros(2, 3, 4, 6),
    )


def test_mirrored_pictures_are_restored_with_mirrored_references_and_mirrored_back():
    given, seen = batch(), []

    def restore(both: FaceBatch) -> torch.Tensor:
        seen.append(both)
        ramp = torch.linspace(0, 1, 6)  # falls differently on a picture and on its mirror image
        return both.lq * ramp + both.references[:, 0, :, :1, :1]

    found = mean_over_mirror(restore, given)
    (both,) = seen
    assert both.gt is None and both.seeds == [3, 4, 3, 4] and both.image_ids == ["a", "b", "a", "b"]
    assert torch.equal(both.references[2:], given.references.flip(-1))
    assert torch.equal(both.reference_mask[2:], given.reference_mask)
    expected = given.lq * 0.5 + (given.references[:, 0, :, :1, :1] + given.references[:, 0, :, :1, -1:]) / 2
    torch.testing.assert_close(found, expected)


def test_a_network_that_does_not_care_about_sides_gives_the_same():
    given = batch()
    torch.testing.assert_close(mean_over_mirror(lambda both: both.lq.square(), given), given.lq.square())
