"""A codebook that follows its latents: k-means start, moving averages, revival of codes that nobody uses."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn

from ..model.autoencoder import Codebook

KMEANS_ITERATIONS = 12
LATENTS_KEPT = 65536  # from which the codebook starts
REVIVE_BELOW = 0.02  # mean uses a step under which a code is moved onto a current latent


class CodebookFollower(nn.Module):
    """Quantises latents while training, and moves the codes after them.

    The codebook is bypassed until `start` is called.

    Args:
        codebook: is changed in place, without gradients.
        decay: of the moving averages, a step.
    """

    uses: Tensor  # [K] mean uses a step
    sums: Tensor  # [K, D] mean sum of the latents that use a code
    started: Tensor  # bool

    def __init__(self, codebook: Codebook, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self._codebook = [codebook]  # in a list: its parameters belong to the network
        codes, dim = codebook.embedding.weight.shape
        self.register_buffer("uses", torch.ones(codes))
        self.register_buffer("sums", torch.zeros(codes, dim))
        self.register_buffer("started", torch.tensor(False))
        self._seen: list[Tensor] = []

    @property
    def codes(self) -> Tensor:
        """[K, D], the network's own."""
        return self._codebook[0].embedding.weight

    def forward(self, latent: Tensor, strategy: Strategy) -> tuple[Tensor, Tensor]:
        """Latent [N, D, h, w] -> the same, quantised with a straight-through gradient, and the commitment loss."""
        flat = latent.detach().permute(0, 2, 3, 1).reshape(-1, latent.shape[1])
        if not self.started:
            self._seen.append(flat)
            if sum(map(len, self._seen)) > LATENTS_KEPT:
                self._seen.pop(0)
            return latent, latent.new_zeros(())
        quantised, index = self._codebook[0](latent)
        self._follow(flat, index.flatten(), strategy)
        return latent + (quantised - latent).detach(), F.mse_loss(latent, quantised)

    @torch.no_grad()
    def start(self, strategy: Strategy) -> None:
        """k-means on the latents seen last; where none were seen, as just after a resumption, it stays bypassed."""
        if not self._seen:
            return
        latents = torch.cat(self._seen)
        self._seen.clear()
        self.codes.copy_(latents[torch.randint(len(latents), (len(self.codes),))])
        for _ in range(KMEANS_ITERATIONS):
            uses, sums = self._statistics(latents, self._codebook[0].nearest(latents))
            self.codes[uses > 0] = sums[uses > 0] / uses[uses > 0, None]
        self.uses.fill_(1.0)
        self.sums.copy_(self.codes)
        self._share(strategy)
        self.started.fill_(True)

    def _share(self, strategy: Strategy) -> None:
        """Every process goes on with the first one's codebook."""
        for tensor in (self.uses, self.sums, self.codes):
            tensor.copy_(strategy.broadcast(tensor))

    def _statistics(self, flat: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """How often each code [K] is used, and the sum [K, D] of the latents that use it."""
        uses = torch.zeros_like(self.uses).index_add_(0, index, torch.ones_like(flat[:, 0]))
        return uses, torch.zeros_like(self.sums).index_add_(0, index, flat)

    @torch.no_grad()
    def _follow(self, flat: Tensor, index: Tensor, strategy: Strategy) -> None:
        uses, sums = (strategy.reduce(s, reduce_op="sum") for s in self._statistics(flat, index))
        self.uses.mul_(self.decay).add_(uses, alpha=1 - self.decay)
        self.sums.mul_(self.decay).add_(sums, alpha=1 - self.decay)
        dead = self.uses < REVIVE_BELOW
        self.uses[dead] = 1.0
        self.sums[dead] = flat[torch.randint(len(flat), (int(dead.sum()),), device=flat.device)]
        self.codes.copy_(self.sums / self.uses[:, None])
        if dead.any():
            self._share(strategy)
