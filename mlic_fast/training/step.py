"""One step of training, data and average included, in which the host reads nothing back.

All that changes from step to step is in tensors: weights, state, controls and the seed of torch's
generator. So a step can be recorded once as a CUDA graph and replayed.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mlic_fast.models import MlicModel
from mlic_fast.training import distributed
from mlic_fast.training.flat import PARTS, FlatWeights
from mlic_fast.training.forward import ASIDE, TrainingForward, absorb_biases
from mlic_fast.training.loss import RateDistortionLoss, draw_rates
from mlic_fast.training.optim import Optimizer
from mlic_fast.training.patches import Patches
from mlic_fast.training.run_config import TrainConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MEANS = ("loss", "rd", "bpp", "z_bpp", "mse", "aux", "gradient")

# In a graph some steps run ahead of the host, so that it never keeps the device waiting.
AHEAD = 4


@dataclasses.dataclass
class Controls:
    """What the host decides for a step.

    Attributes:
        rates: learning rates of the :data:`PARTS`.
        z_weight: how much the bits of z count for h_a.
        average: how far the average goes towards the weights.
        live: 0 to compute a step that changes nothing.
    """

    rates: list[float]
    z_weight: float = 1.0
    average: float = 0.0
    live: float = 1.0

    def tensor(self) -> Tensor:
        """All of them in one vector, float32 [len(PARTS) + 3], for one copy to the device."""
        return torch.tensor([*self.rates, self.z_weight, self.average, self.live])


class Step:
    """Model, optimiser and average of a run, and the step that moves them.

    A step whose gradient is not finite changes nothing, and is counted.

    Attributes:
        totals: sums of the :data:`MEANS` over the steps since they were last cleared, and their
            number.
        skipped: number of steps that were skipped in all, and in a row up to now.
    """

    def __init__(self, model: MlicModel, config: TrainConfig) -> None:
        self.model, self._clip = model, config.clip
        device = next(model.parameters()).device
        absorb_biases(model)
        self._forward = TrainingForward(model, DTYPES[config.precision])
        muon = config.optimizer == "muon"
        self.weights = FlatWeights(model, self._forward.network, DTYPES[config.precision], muon)
        self.optimizer = Optimizer(self.weights)
        self.criterion = RateDistortionLoss(config.lmbda, config.metric).to(device)
        self.average: MlicModel | None = None
        if config.ema:
            self.average = copy.deepcopy(model).requires_grad_(False)
            self._average = torch.empty_like(self.weights.values)
            self.weights.attach(self.average, self._average)
        # float16 alone has too few exponents for gradients.
        self._scaled = config.precision == "float16"
        self.loss_scale = torch.full((), 2.0**10 if self._scaled else 1.0, device=device)
        self._controls = torch.zeros(len(PARTS) + 3, device=device)
        self.totals = torch.zeros(len(MEANS) + 1, device=device)
        self.skipped = torch.zeros(2, device=device)

    def control(self, controls: Controls) -> None:
        """Sets what the next step does."""
        self._controls.copy_(controls.tensor())

    def __call__(self, patches: Patches) -> None:
        """Draws patches, moves the weights and adds to the totals."""
        rates, (z_weight, average, live) = (
            self._controls[: len(PARTS)],
            self._controls[len(PARTS) :],
        )
        x = patches.draw()
        rate = None
        if self.model.config.rates:
            rate = draw_rates(len(x), self.model.config.rates, x.device)
        out = self._forward(x, rate, z_weight)
        terms = self.criterion(out.x_hat, out.y_bits, out.z_bits, x, rate)
        loss = (terms["loss"] * patches.shares).mean()
        leaves = self.weights.leaves
        gradients = torch.autograd.grad(self.loss_scale * loss, leaves, allow_unused=True)

        with torch.no_grad():
            aux, slopes = self._auxiliary(out.quantiles)
            self.weights.set_gradient(gradients, slopes)
            gradient = distributed.mean(self.weights.gradient)[: self.weights.quantiles]
            norm = torch.linalg.vector_norm(gradient) / self.loss_scale
            finite = norm.isfinite()
            gradient.mul_((self._clip / (norm + 1e-6)).clamp(max=1) / self.loss_scale)
            gradient.nan_to_num_(0.0, 0.0, 0.0)
            if self._scaled:
                self.loss_scale.mul_(torch.where(finite, 1.0003, 0.5))
            self.skipped.add_(live * ~finite)
            self.skipped[1].mul_(~finite)
            live = live * finite
            self.optimizer.step(rates, live)
            self.weights.refresh()
            if self.average is not None:
                self._average.lerp_(self.weights.values, average * live)
            means = torch.stack([terms[name] for name in MEANS[1:-2]]).mean(1)
            row = torch.cat([torch.stack([loss]), means, torch.stack([aux, norm, live])])
            self.totals.add_(row.nan_to_num_(0.0, 0.0, 0.0).mul_(live))

    def _auxiliary(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of the quantiles, which drives them to the tails and the median of the density
        (:meth:`MlicModel.aux_loss`), and its gradient.
        """
        away = logits[0] - self.model.entropy_bottleneck.target
        slopes = (logits[2] - logits[1]) / (2 * ASIDE)
        return away.abs().sum(), away.sign() * slopes

    def clear(self) -> None:
        """Begins new :attr:`totals`."""
        self.totals.zero_()

    def means(self) -> dict[str, float]:
        """Means over steps and processes; empty if every step was skipped."""
        *sums, steps = distributed.mean(self.totals.clone()).tolist()
        return (
            {name: total / steps for name, total in zip(MEANS, sums, strict=True)} if steps else {}
        )

    def share(self) -> None:
        """Gives every process the weights of the first."""
        distributed.share(self.weights.values)
        self.weights.refresh()

    def state(self) -> dict[str, Any]:
        """What a resumed run needs besides the weights."""
        return {
            "layout": self.weights.layout,
            "optimizer": self.optimizer.state,
            "average": None if self.average is None else self.average.state_dict(),
            "loss_scale": self.loss_scale,
            "skipped": self.skipped,
            "totals": self.totals,
        }

    def restore(self, state: dict[str, Any], average: dict[str, Tensor]) -> None:
        """Inverse of :meth:`state`; the weights are restored already."""
        absorb_biases(self.model)
        if state["layout"] != self.weights.layout:
            raise ValueError("its optimiser has other parameters")
        for name, tensor in self.optimizer.state.items():
            tensor.copy_(state["optimizer"][name])
        for name in ("loss_scale", "skipped", "totals"):
            getattr(self, name).copy_(state[name])
        if self.average is not None:
            self.average.load_state_dict(average)
            absorb_biases(self.average)


def runner(step: Step, patches: Patches) -> Callable[[], None]:
    """Runs ``step`` on ``patches``: as one CUDA graph where there is a GPU.

    Runs before the recording change nothing: their controls are zero.
    """
    if not step.totals.is_cuda:
        return lambda: step(patches)
    totals = step.totals.clone()
    step.control(Controls([0.0] * len(PARTS), live=0.0))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(patches)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(patches)
    step.totals.copy_(totals)
    events: list[torch.cuda.Event] = []

    def replay() -> None:
        graph.replay()
        events.append(torch.cuda.Event())
        events[-1].record()
        if len(events) > AHEAD:
            events.pop(0).synchronize()

    return replay
