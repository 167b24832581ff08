"""How `nano`'s weights move: bfloat16 weights in the model, float32 masters behind them, and their moving average.

Matrices and kernels go by Muon (https://kellerjordan.github.io/posts/muon/): the momentum is made orthogonal before the
step, so that rare directions move as far as frequent ones. Everything else goes by AdamW.
"""

import torch
from torch import nn

from segment_anything.modeling.common import LayerNorm2d

NOT_BY_MUON = ("embed", "output_tokens", "iou_token", "drawing", "stem.0")
"""Tables looked up by index, and the first layers, whose inputs are few and mean something each."""

NEWTON_SCHULZ_STEPS = 3
"""Five are usual; the last two cost a fifth of a second a step on one core."""
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of x, x^3 and x^5: steep at zero, and every singular value ends between 0.5 and 1.5."""


class Muon(torch.optim.Optimizer):
    """Muon in the type of the matrices.

    `torch.optim.Muon` multiplies in bfloat16 whatever it is given: on a processor without such instructions a step of
    `nano`'s optimizers took 10.3 s instead of 0.4. The state has the same names, so runs may change to the other.
    """

    def __init__(self, params: list[torch.Tensor], *, lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update from the gradients, with Nesterov's momentum, as large as one of AdamW (`match_rms_adamw`)."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                buffer = state["momentum_buffer"].lerp_(p.grad, 1 - group["momentum"])
                update = orthogonal(p.grad.lerp(buffer, group["momentum"]))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * 0.2 * max(p.shape) ** 0.5)


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """(O, I) -> (O, I) with the same singular vectors and singular values near one, by Newton-Schulz iteration."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).contiguous()
    x = x / x.norm().clamp(min=1e-7)
    first, third, fifth = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=third, alpha=fifth), x, beta=first)
    return x.T if tall else x


class Master:
    """Float32 master weights and their moving average behind a model in bfloat16 or float32."""

    def __init__(self, model: nn.Module, *, lr: float, weight_decay: float, muon: float, half: bool) -> None:
        """Take over a model.

        Args:
            model: its weights become bfloat16, those of normalisation excepted.
            lr: largest learning rate; `step` gives the current one.
            weight_decay: on matrices and kernels only.
            muon: factor of the learning rate under Muon; 0 leaves all to AdamW.
            half: False keeps float32.
        """
        self.model, self.muon_factor = model, muon
        self.names = [name for name, _ in model.named_parameters()]
        self.master = [p.detach().float().clone() for p in model.parameters()]
        if half:
            for module in model.modules():
                if not isinstance(module, nn.LayerNorm | nn.BatchNorm2d | LayerNorm2d):
                    for p in module.parameters(recurse=False):
                        p.data = p.data.bfloat16()
        named = list(zip(self.names, self.master, strict=True))
        by_muon = [p for name, p in named if muon and _is_matrix(name, p)]
        chosen = {id(p) for p in by_muon}
        matrices = [p for p in self.master if p.ndim > 1 and id(p) not in chosen]
        vectors = [p for p in self.master if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.999), fused=True)
        self.rows = [(_rows(p), p) for p in by_muon]  # views, of which Muon takes two axes only
        matrices_in_rows = [rows for rows, _ in self.rows]
        self.muon = _muon(matrices_in_rows, lr=lr, weight_decay=weight_decay, half=half) if self.rows else None
        self.average = {name: t.clone() for name, t in self.weights().items()}

    def weights(self) -> dict[str, torch.Tensor]:
        """Float32 weights and buffers by name."""
        state = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        state.update(zip(self.names, self.master, strict=True))
        return state

    def step(self, rate: float, decay: float) -> float:
        """One update from the model's gradients; the gradient's norm before clipping."""
        for master, p in zip(self.master, self.model.parameters(), strict=True):
            master.grad = None if p.grad is None else p.grad.float()
            p.grad = None
        norm = float(torch.nn.utils.clip_grad_norm_(self.master, 1.0))
        if self.muon:
            for rows, master in self.rows:
                rows.grad = None if master.grad is None else _rows(master.grad.to(memory_format=_format(master)))
            for group in self.muon.param_groups:
                group["lr"] = rate * self.muon_factor
            self.muon.step()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        with torch.no_grad():
            for master, p in zip(self.master, self.model.parameters(), strict=True):
                p.copy_(master)
            for name, value in {**self.model.state_dict(), **dict(zip(self.names, self.master, strict=True))}.items():
                if value.is_floating_point():
                    self.average[name].lerp_(value.float(), 1 - decay)
                else:
                    self.average[name].copy_(value)
        return norm

    def load(self, weights: dict[str, torch.Tensor]) -> None:
        """Take over float32 weights and buffers."""
        self.model.load_state_dict(weights)
        for name, master in zip(self.names, self.master, strict=True):
            master.copy_(weights[name])

    def state_dict(self) -> dict[str, dict]:
        """What the optimizers remember, apart from weights and average."""
        return {"optimizer": self.optimizer.state_dict(), "muon": self.muon.state_dict() if self.muon else {}}

    def load_state_dict(self, kept: dict[str, dict]) -> None:
        """Go on from `state_dict`; momentum of Muon is new where the earlier run had none."""
        self.optimizer.load_state_dict(kept["optimizer"])
        if self.muon and kept.get("muon"):
            self.muon.load_state_dict(kept["muon"])


def _muon(rows: list[torch.Tensor], *, lr: float, weight_decay: float, half: bool) -> torch.optim.Optimizer:
    """PyTorch's Muon where bfloat16 is fast, else the same in float32."""
    if not half:
        return Muon(rows, lr=lr, weight_decay=weight_decay)
    return torch.optim.Muon(
        rows, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw", ns_steps=NEWTON_SCHULZ_STEPS
    )


def _is_matrix(name: str, p: torch.Tensor) -> bool:
    """Whether Muon takes a parameter: no depthwise kernel, no table, no first layer."""
    return p.ndim > 1 and p[0].numel() > 25 and len(p) > 4 and not any(part in name for part in NOT_BY_MUON)


def _format(p: torch.Tensor) -> torch.memory_format:
    """The order in which a kernel lies in memory."""
    channels_last = p.ndim == 4 and p.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format


def _rows(p: torch.Tensor) -> torch.Tensor:
    """(O, ...) -> (O, rest), a view of the same storage."""
    if _format(p) == torch.channels_last:
        return p.permute(0, 2, 3, 1).reshape(len(p), -1)
    return p.view(len(p), -1)
