"""Ridge from sums against the plain least-squares solution."""

import torch

from nla.core.ridge import NormalEquations


def test_sums_in_parts_give_the_solution_of_all_rows():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 6, generator=generator).double(), torch.randn(40, 3, generator=generator).double()
    equations = NormalEquations.empty(6, 3)
    for start in range(0, 40, 7):
        equations.add(x[start : start + 7], y[start : start + 7])
    assert equations.rows == 40
    none, some = equations.solve([0.0, 0.3])
    torch.testing.assert_close(none.T, torch.linalg.lstsq(x, y).solution)
    penalty = 0.3 * x.square().sum() / 6
    augmented = torch.cat([x, penalty.sqrt() * torch.eye(6, dtype=torch.float64)])
    target = torch.cat([y, torch.zeros(6, 3, dtype=torch.float64)])
    torch.testing.assert_close(some.T, torch.linalg.lstsq(augmented, target).solution)


def test_a_constant_input_is_an_intercept():
    x = torch.tensor([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
    equations = NormalEquations.empty(2, 1)
    equations.add(x, 3 * x[:, :1] + 5)
    torch.testing.assert_close(equations.solve([0.0])[0], torch.tensor([[3.0, 5.0]], dtype=torch.float64))
