import pytest
import torch

from dpcomp.training.pytorch.checks.equal_values import FEW, equal_values
from dpcomp.training.pytorch.checks.held import same_tensor
from dpcomp.training.pytorch.draws import same_values


@pytest.mark.parametrize("count", [5, FEW, FEW + 1, 3 * FEW])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool])
def test_a_single_other_value_is_seen(count, dtype):
    one = torch.arange(count).remainder(2).to(dtype)
    assert equal_values(one, one.clone())
    for place in (0, count // 2, count - 1):
        other = one.clone()
        other[place] = 1 - int(one[place])
        assert not equal_values(one, other)


def test_memory_in_another_order_is_no_other_value():
    one = torch.randn(4, 8, 20, 20).contiguous(memory_format=torch.channels_last)
    assert equal_values(one, one.contiguous())
    assert not equal_values(one, one.contiguous().flip(0))


@pytest.mark.parametrize("count", [5, 2 * FEW])
def test_a_value_that_is_no_number_is_never_equal(count):
    one = torch.zeros(count)
    one[-1] = float("nan")
    assert not equal_values(one, one.clone())


@pytest.mark.parametrize("count", [5, 2 * FEW])
def test_tensors_that_numpy_does_not_take_as_they_are_are_compared_too(count):
    negated = torch.randn(count, dtype=torch.complex64).conj().imag  # negated when it is read
    assert negated.is_neg()
    assert equal_values(negated, negated.clone())
    assert not equal_values(negated, -negated)
    with_gradient = torch.randn(count, requires_grad=True)
    assert same_values(with_gradient, with_gradient.clone())
    assert not same_values(with_gradient, with_gradient + 1)


@pytest.mark.parametrize("side", [5, 100])
@pytest.mark.parametrize("form", [torch.Tensor.to_sparse, torch.Tensor.to_mkldnn])
def test_a_tensor_of_a_form_that_is_not_compared_is_not_known_to_be_the_same(side, form):
    held = form(torch.eye(side))
    assert not same_tensor(held, held.clone())
