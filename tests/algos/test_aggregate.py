from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from retort.algos.aggregate import count_of, dr_grpo, sequence_mean, sequence_sum, token_mean

X = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])
MASK = torch.tensor([[1, 1, 0], [0, 0, 1], [0, 0, 0]]).bool()
ALL = [token_mean, sequence_mean, sequence_sum, partial(dr_grpo, length=4)]


@pytest.mark.parametrize(
    ("aggregate", "value", "count"),
    list(zip(ALL, [9 / 3, (1.5 + 6) / 2, (3 + 6) / 2, (3 + 6) / 2 / 4], [3, 2, 2, 2], strict=True)),
)
def test_by_hand(aggregate, value, count):
    assert aggregate(X, MASK).item() == pytest.approx(value)
    assert count_of(aggregate, MASK) == pytest.approx(count, abs=1e-12)
    assert aggregate(X, MASK, count=2 * count).item() == pytest.approx(value / 2)


@pytest.mark.parametrize("aggregate", ALL)
@given(data=st.data())
def test_micro_batches_add_up(aggregate, data):
    rows, columns = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 5))
    cells = st.lists(st.booleans(), min_size=rows * columns, max_size=rows * columns)
    mask = torch.tensor(data.draw(cells)).reshape(rows, columns)
    x = torch.arange(rows * columns, dtype=torch.float64).reshape(rows, columns) ** 1.5
    cut = data.draw(st.integers(0, rows))
    count = count_of(aggregate, mask)
    parts = [aggregate(x[s], mask[s], count=count) for s in (slice(None, cut), slice(cut, None))]
    torch.testing.assert_close(sum(parts), aggregate(x, mask))


@pytest.mark.parametrize("aggregate", ALL)
def test_what_is_masked_is_never_read(aggregate):
    x = torch.where(MASK, X, torch.nan).requires_grad_()
    value = aggregate(x, MASK)
    (gradient,) = torch.autograd.grad(value, x)
    assert torch.isfinite(value)
    assert (gradient[~MASK] == 0).all()
    assert aggregate(x, torch.zeros_like(MASK)).item() == 0
    assert count_of(aggregate, torch.zeros_like(MASK)) == 0


def test_precision():
    assert token_mean(X.bfloat16(), MASK).dtype == torch.float32
    assert token_mean(X.double(), MASK).dtype == torch.float64
    with pytest.raises(ValueError, match="length above 0"):
        dr_grpo(X, MASK, length=0)
