"""Where LAPACK gives up, candidates come from elsewhere; what is proved with them stays proved."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from lipverify.linalg.convolution import convolution_norm
from lipverify.linalg.dense import operator_norm
from lipverify.linalg.eigen import eigh, eigvalsh, spectral_estimate


def giving_up(times: int) -> tuple[Callable[[Tensor], tuple[Tensor, Tensor]], list[int]]:
    """An `eigh` that fails so many times."""
    whole, calls = torch.linalg.eigh, [0]

    def broken(matrix: Tensor) -> tuple[Tensor, Tensor]:
        calls[0] += 1
        if calls[0] <= times:
            raise torch.linalg.LinAlgError("linalg.eigh: The algorithm failed to converge")
        found: tuple[Tensor, Tensor] = whole(matrix)
        return found

    return broken, calls


def always(matrix: Tensor) -> Tensor:
    raise torch.linalg.LinAlgError("linalg.eigvalsh: The algorithm failed to converge")


@pytest.mark.parametrize("times", [0, 1, 2])
@pytest.mark.parametrize("kind", [torch.float64, torch.complex128])
def test_other_coordinates_give_the_same_eigenvalues(
    times: int, kind: torch.dtype, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = rng.standard_normal((5, 4)), rng.standard_normal((5, 4)) * kind.is_complex
    matrix = torch.tensor(parts[0] + 1j * parts[1] if kind.is_complex else parts[0])
    gram = torch.stack([matrix.mH @ matrix, torch.eye(4, dtype=kind)])
    reference = torch.linalg.eigvalsh(gram)
    monkeypatch.setattr(torch.linalg, "eigh", giving_up(times)[0])
    monkeypatch.setattr(torch.linalg, "eigvalsh", always)
    values, vectors = eigh(gram)
    assert torch.allclose(values, reference, atol=1e-12)
    assert torch.allclose(vectors @ torch.diag_embed(values).to(kind) @ vectors.mH, gram, atol=1e-12)
    assert torch.allclose(eigvalsh(gram), reference, atol=1e-12)
    assert spectral_estimate(torch.tensor([[3.0, 0.0], [4.0, 0.0]])) == pytest.approx(5.0)


@pytest.mark.parametrize("times", [1, 1000])
def test_norms_stay_upper_bounds(
    times: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where no eigenvectors are found at all: then the coordinates stand for them."""
    matrices = torch.tensor(rng.standard_normal((3, 6, 5)))
    kernel = torch.full((8, 4, 3, 3), 0.02, dtype=torch.float64)
    truth = torch.linalg.matrix_norm(matrices, 2)
    settings = {"stride": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1), "groups": 1}
    norms = {"norm_in": "l2", "norm_out": "l2"}
    usual = convolution_norm(kernel, input_size=(8, 8), **settings, **norms)
    monkeypatch.setattr(torch.linalg, "eigh", giving_up(times)[0])
    monkeypatch.setattr(torch.linalg, "eigvalsh", always)
    bound = operator_norm(matrices, "l2", "l2")
    assert bool((bound >= truth).all())
    assert bool((bound <= truth * (1 + 1e-9 if times == 1 else 4.0)).all())
    found = convolution_norm(kernel, input_size=(8, 8), **settings, **norms)
    # A kernel of equal weights is a product of ones: the bound is near its norm whatever LAPACK does.
    assert float(usual) * (1 - 1e-3) <= float(found) <= float(usual) * 4.0


def test_what_is_not_finite_is_no_failure_to_converge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.linalg, "eigh", giving_up(1)[0])
    with pytest.raises(torch.linalg.LinAlgError):
        eigh(torch.full((2, 2), float("nan"), dtype=torch.float64))
