"""The contrastive loss against the papers' definitions and against one process."""

import math

import pytest
import torch
import torch.nn.functional as F
from rank_jobs import joined_views, loss_and_gradient, network
from ranks import run_ranks

from simclr.config import LossConfig, LossName
from simclr.loss import chance_level, contrastive_loss


def by_definition(projections: torch.Tensor, temperature: float, decoupled: bool) -> torch.Tensor:
    """Eq. 1 of the SimCLR paper in plain loops; DCL leaves the positive out of the sum."""
    unit = F.normalize(projections, dim=1)
    num, half = len(unit), len(unit) // 2
    losses = []
    for i in range(num):
        positive = (i + half) % num
        numerator = unit[i] @ unit[positive] / temperature
        others = [k for k in range(num) if k != i and not (decoupled and k == positive)]
        exponents = torch.stack([unit[i] @ unit[k] / temperature for k in others])
        losses.append(torch.logsumexp(exponents, 0) - numerator)
    return torch.stack(losses).mean()


def joined(pairs: int, config: LossConfig) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Loss and parameter gradients of the definition on the whole batch, one process."""
    model = network()
    output = model(joined_views(pairs).flatten(0, 1))
    loss = by_definition(output, config.temperature, config.name is LossName.dcl)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return loss, list(gradients)


def relative(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    difference = torch.cat([(a - b).flatten() for a, b in zip(actual, expected, strict=True)])
    return float(difference.norm() / torch.cat([e.flatten() for e in expected]).norm())


@pytest.mark.parametrize("loss", ["ntxent", "dcl"])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_loss_and_gradient_on_ranks_equal_the_definition_on_the_joined_batch(tmp_path, ranks, loss):
    config = LossConfig(name=LossName(loss), temperature=0.1)
    expected, gradients = joined(8, config)
    for value, actual in run_ranks(loss_and_gradient, ranks, tmp_path, 8, loss, 0.1):
        assert abs(value / expected.item() - 1) < 1e-10
        assert relative(actual, gradients) < 1e-10


@pytest.mark.parametrize("temperature", [0.5, 0.05, 0.002])
@pytest.mark.parametrize("loss", ["ntxent", "dcl"])
def test_gradient_equals_the_definition_at_any_temperature(loss, temperature):
    config = LossConfig(name=LossName(loss), temperature=temperature)
    rows = torch.randn(14, 5, dtype=torch.float64, requires_grad=True)
    value = contrastive_loss(rows, config)
    expected = by_definition(rows, temperature, loss == "dcl")
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    actual = torch.autograd.grad(value, rows)[0]
    torch.testing.assert_close(actual, torch.autograd.grad(expected, rows)[0], rtol=1e-9, atol=1e-9)


def test_gradient_holds_across_tile_borders():
    rows = torch.randn(520, 4, dtype=torch.float64, requires_grad=True)
    value = contrastive_loss(rows, LossConfig())
    unit = F.normalize(rows, dim=1)
    similarity = unit @ unit.T / 0.1
    positive = similarity.diagonal(260).repeat(2)
    others = similarity.masked_fill(torch.eye(520, dtype=torch.bool), -math.inf)
    expected = (others.logsumexp(1) - positive).mean()
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    actual = torch.autograd.grad(value, rows)[0]
    torch.testing.assert_close(
        actual, torch.autograd.grad(expected, rows)[0], rtol=1e-9, atol=1e-12
    )


def test_float32_stays_finite_and_close_where_a_plain_softmax_cancels():
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(256, 128, generator=generator, dtype=torch.float64)
    noise = 0.02 * torch.randn(512, 128, generator=generator, dtype=torch.float64)
    rows = (base.repeat(2, 1) + noise).requires_grad_()
    config = LossConfig(temperature=0.05)
    exact = torch.autograd.grad(contrastive_loss(rows, config), rows)[0]
    single = rows.detach().float().requires_grad_()
    rough = torch.autograd.grad(contrastive_loss(single, config), single)[0]
    assert torch.isfinite(rough).all()
    assert float((rough.double() - exact).norm() / exact.norm()) < 1e-4


@pytest.mark.parametrize("loss", ["ntxent", "dcl"])
def test_equal_projections_lose_the_chance_level(loss):
    config = LossConfig(name=LossName(loss))
    value = contrastive_loss(torch.ones(64, 8), config)
    assert value.item() == pytest.approx(chance_level(32, config), abs=1e-5)
    assert chance_level(32, LossConfig()) == pytest.approx(math.log(63))


def test_autocast_does_not_reach_the_similarities():
    rows = torch.randn(32, 16)
    outside = contrastive_loss(rows, LossConfig())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = contrastive_loss(rows, LossConfig())
    assert inside.dtype == torch.float32
    assert torch.equal(inside, outside)


@pytest.mark.parametrize("rows", [0, 1, 2, 5])
def test_rows_without_a_negative_are_refused(rows):
    with pytest.raises(ValueError, match=f"{rows} projections on 1 ranks; give two views"):
        contrastive_loss(torch.ones(rows, 8), LossConfig())
