"""Muon for matrices and AdamW for everything else, as one optimiser.

Muon (Jordan et al. 2024) moves a matrix by its momentum with all singular values made equal, so that rare directions are learned
as fast as frequent ones. It is meant for the matrices inside a network: embeddings, gains, biases and convolutions keep AdamW. Its
step is scaled to the size of AdamW's (Liu et al. 2025), so that one learning rate and one weight decay serve both.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

MOMENTUM = 0.95


def matrices_of(module: nn.Module) -> set[nn.Parameter]:
    """Return the parameters of `module` that Muon moves: all with two dimensions that are no embedding (by type or by name)."""
    looked_up = {child.weight for child in module.modules() if isinstance(child, nn.Embedding)}
    return {
        parameter
        for name, parameter in module.named_parameters()
        if parameter.ndim == 2 and parameter not in looked_up and "embedding" not in name.rpartition(".")[2]
    }


class MuonAdamW(torch.optim.Optimizer):
    """The two optimisers over one list of parameter groups and one state, which is saved and loaded as that of any other.

    `groups` may state "lr" and "weight_decay"; each is split in two where it has matrices and others, in this order.
    """

    def __init__(
        self,
        groups: Sequence[Mapping[str, Any]],
        matrices: set[nn.Parameter],
        *,
        lr: float,
        weight_decay: float,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        split: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
        for group in groups:
            for kind in split:
                chosen = [parameter for parameter in group["params"] if (parameter in matrices) is kind]
                if chosen:
                    split[kind].append({**group, "params": chosen})
        self._parts: list[torch.optim.Optimizer] = []
        if split[True]:
            self._parts.append(
                torch.optim.Muon(
                    split[True], lr=lr, weight_decay=weight_decay, momentum=MOMENTUM, adjust_lr_fn="match_rms_adamw"
                )
            )
        if split[False]:
            self._parts.append(
                torch.optim.AdamW(split[False], lr=lr, weight_decay=weight_decay, betas=betas, eps=eps, foreach=True)
            )
        super().__init__([group for part in self._parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Let both parts work on this optimiser's groups and state, of which each touches its own parameters."""
        place = 0
        for part in self._parts:
            count = len(part.param_groups)
            part.param_groups = self.param_groups[place : place + count]
            part.state = self.state
            place += count

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for part in self._parts:
            part.step()
