"""Ridge regression from sums: what correction of a linear makes up best for the errors behind it.

    sums = RegressionSums(inputs, outputs, device)
    for ...:
        sums.add(x, errors, weights, held)  # [tokens, inputs], [tokens, outputs], [tokens], bool [tokens]
    correction, ridge = sums.solve()        # D of the least sum over tokens of weight² ||x D - error||², + ridge

The ridge adds, for each input, ridge * the sum of weight² x² * ||its row of D||²: as if all inputs were of one size.
Where a constant stands beside them, that is the sum around the mean of x: the constant makes the mean, unshrunk.

Memory goes with the square of the inputs, not with the tokens. How strong the ridge is, tokens decide that are held
back: from the sums alone their error is known for every candidate. Then all tokens make the correction.
"""

from __future__ import annotations

import torch
from torch import Tensor

from greenprune.errors import ModelError

RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # of each input's square
LEAST_SQUARE = 1e-6  # of what its mean has too: an input that is the same for every token isn't singular
UNCHOSEN = 1.0
HELD_BACK = 4  # every fourth sample


def held_back(samples: Tensor) -> Tensor:
    """Which samples decide the ridge alone. samples: long [n], their numbers -> bool [n]."""
    return samples % HELD_BACK == HELD_BACK - 1


class RegressionSums:
    """Weighted sums over fitted and over held-back tokens, float64: of x xᵀ, and of x errorᵀ.

    constant: the last input is 1 for every token, and what it gives isn't shrunk.
    """

    def __init__(self, inputs: int, outputs: int, device: torch.device, constant: bool = False) -> None:
        size, self.constant = inputs + constant, constant
        zeros = torch.zeros(2, size, size + outputs, dtype=torch.float64, device=device)
        self.products, self.crosses = zeros.split([size, outputs], dim=2)
        self.held = False  # whether tokens were held back

    def add(self, inputs: Tensor, errors: Tensor, weights: Tensor, held: Tensor) -> None:
        """inputs [N, in], errors [N, out], weights [N], held bool [N]."""
        inputs = inputs.float()
        if self.constant:
            inputs = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=1)
        inputs, errors = inputs * weights[:, None], errors.float() * weights[:, None]
        for part, rows in enumerate((~held, held)):
            x = inputs[rows]
            self.products[part] += x.T @ x
            self.crosses[part] += x.T @ errors[rows]
        self.held |= bool(held.any())

    def solve(self, of_all: bool = True) -> tuple[Tensor, float]:
        """The correction, float64 [in (+ 1), out], and the ridge of RIDGES that the held-back tokens chose.

        Without held-back tokens the ridge is UNCHOSEN. of_all: the held-back tokens make the correction too.
        Raises ModelError where a sum isn't finite.
        """
        if not (self.products.isfinite().all() and self.crosses.isfinite().all()):
            raise ModelError(
                "calibration states must be finite, got NaN or infinity; use model.dtype bfloat16 or float32"
            )
        ridge = min(RIDGES, key=self._error) if self.held else UNCHOSEN
        products, crosses = (each.sum(dim=0) if of_all else each[0] for each in (self.products, self.crosses))
        return self._solution(products, crosses, ridge), ridge

    def _error(self, ridge: float) -> float:
        """Squared error of the held-back tokens with what the others make, less what it is without a correction."""
        made = self._solution(self.products[0], self.crosses[0], ridge)
        return float((made * (self.products[1] @ made - 2 * self.crosses[1])).sum())

    def _solution(self, products: Tensor, crosses: Tensor, ridge: float) -> Tensor:
        squares = products.diagonal().clamp(min=torch.finfo(torch.float32).tiny)
        if self.constant:
            squares = torch.maximum(squares - products[-1].square() / products[-1, -1], LEAST_SQUARE * squares)
        penalty = ridge * squares
        penalty[len(penalty) - self.constant :] = 0
        damped = products.clone()
        damped.diagonal().add_(penalty)
        return torch.cholesky_solve(crosses, torch.linalg.cholesky(damped))
