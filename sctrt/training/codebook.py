"""A codebook that follows its latents: k-means start, moving averages, revival of codes that nobody uses."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn

from ..model.autoencoder import Codebook

KMEANS_ITERATIONS = 12
REVIVE_BELOW = 0.02  # mean uses a step under which a code is moved onto a current latent


class CodebookFollower(nn.Module):
    """Quantises latents while training, and once a step moves the codes after them.

    The codebook is bypassed until `start` is called. What a step does depends on all of its micro-batches and on
    nothing else, so that a resumed run, or one of several processes, gives the same codes.

    Args:
        codebook: is changed in place, without gradients.
        decay: of the moving averages, a step.
        follows: False leaves the codes where they are.
    """

    uses: Tensor  # [K] mean uses a step
    sums: Tensor  # [K, D] mean sum of the latents that use a code
    started: Tensor  # bool

    def __init__(self, codebook: Codebook, decay: float, follows: bool = True) -> None:
        super().__init__()
        self.decay, self.follows = decay, follows
        self._codebook = [codebook]  # in a list: its parameters belong to the network
        codes, dim = codebook.embedding.weight.shape
        self.register_buffer("uses", torch.ones(codes))
        self.register_buffer("sums", torch.zeros(codes, dim))
        self.register_buffer("started", torch.tensor(False))
        self._step: list[tuple[Tensor, Tensor]] = []  # uses and sums of this step's micro-batches
        self._spare: Tensor | None = None  # [M, D] latents of the step's first micro-batch: dead codes move there

    @property
    def codes(self) -> Tensor:
        """[K, D], the network's own."""
        return self._codebook[0].embedding.weight

    def forward(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Latent [N, D, h, w] -> the same, quantised with a straight-through gradient, and the commitment loss."""
        if not self.started:
            return latent, latent.new_zeros(())
        quantised, index = self._codebook[0](latent)
        if self.follows and self.training:
            flat = latent.detach().permute(0, 2, 3, 1).reshape(-1, latent.shape[1])
            self._step.append(self._statistics(flat, index.flatten()))
            self._spare = flat if self._spare is None else self._spare
        return latent + (quantised - latent).detach(), F.mse_loss(latent, quantised)

    @torch.no_grad()
    def go_on(self) -> None:
        """Follows from the codes as they are, those of a network that has been trained."""
        self.uses.fill_(1.0)
        self.sums.copy_(self.codes)
        self.started.fill_(True)

    @torch.no_grad()
    def start(self, latents: Tensor, strategy: Strategy, seed: int) -> None:
        """k-means on latents [M, D]."""
        latents = latents.to(self.codes)
        first = torch.randint(len(latents), (len(self.codes),), generator=torch.Generator().manual_seed(seed))
        self.codes.copy_(latents[first.to(latents.device)])
        for _ in range(KMEANS_ITERATIONS):
            uses, sums = self._statistics(latents, self._codebook[0].nearest(latents))
            self.codes[uses > 0] = sums[uses > 0] / uses[uses > 0, None]
        self.go_on()
        self._share(strategy)

    @torch.no_grad()
    def follow(self, strategy: Strategy, seed: int) -> None:
        """Moves the codes after the latents of a step; `seed` says which latents dead codes are moved onto."""
        if self._spare is None:
            return
        uses, sums = (torch.stack(parts).sum(dim=0) for parts in zip(*self._step, strict=True))
        uses, sums = (strategy.reduce(total, reduce_op="sum") for total in (uses, sums))
        self.uses.mul_(self.decay).add_(uses, alpha=1 - self.decay)
        self.sums.mul_(self.decay).add_(sums, alpha=1 - self.decay)
        dead = self.uses < REVIVE_BELOW
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randint(len(self._spare), (int(dead.sum()),), generator=generator)
        self.uses[dead] = 1.0
        self.sums[dead] = self._spare[chosen.to(self._spare.device)]
        self.codes.copy_(self.sums / self.uses[:, None])
        if dead.any():
            self._share(strategy)
        self._step, self._spare = [], None

    def _share(self, strategy: Strategy) -> None:
        """Every process goes on with the first one's codebook."""
        for tensor in (self.uses, self.sums, self.codes):
            tensor.copy_(
                strategy.broadcast(tensor.cpu())
            )  # as objects: on a GPU they would name the first one's device

    def _statistics(self, flat: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """How often each code [K] is used, and the sum [K, D] of the latents that use it."""
        uses = torch.zeros_like(self.uses).index_add_(0, index, torch.ones_like(flat[:, 0]))
        return uses, torch.zeros_like(self.sums).index_add_(0, index, flat)
