"""The policy's Jacobian along a direction: J u, exact and never materialised.

Four ways to the product J u, which agree in tests:

    mlp       written out, for plain MLPs (`marl_aajr.core.mlp`): as forward, in half the time where the
              network is small. Derivatives of the result are exact, their own derivatives are not to be had.
    forward   dual numbers: one forward pass carries tangents. CPU `nn.LSTM` and fused attention kernels
              have no forward derivative. PyTorch's dual levels are process-global: not for two threads.
    double    reverse mode twice, J u = ∂/∂w [(wᵀJ) u]; cuDNN's recurrent layers and fused attention have no
              second derivative.
    central   (f(x + h u) − f(x − h u)) / 2h: any module; error O(h²) plus rounding O(ε_machine / h).

`auto`, as regularizers settle it, is the first that a module supports, in this order. All are
differentiable with respect to the parameters (the penalty is trained through them) and with respect to u.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from marl_aajr.core.checks import one_of
from marl_aajr.core.policy import ModulePolicy, Policy

Backend = Literal["mlp", "forward", "double", "central"]
JVPBackend = Literal["auto"] | Backend
BACKENDS: tuple[Backend, ...] = get_args(Backend)
JVP_BACKENDS: tuple[JVPBackend, ...] = ("auto", *BACKENDS)

_log = logging.getLogger(__name__)


def _by_mlp(policy: Policy, obs: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    if not isinstance(policy, ModulePolicy) or policy.mlp is None:
        raise NotImplementedError("not an nn.Sequential of Linear layers with Tanh or ReLU between them")
    return policy.mlp.jvp(obs, direction)


class _LinearTangents(TorchFunctionMode):
    """Linear layers of dual tensors by their own rule: y = W x + b, ẏ = W ẋ.

    PyTorch 2.13's rule adds the missing tangent of b in Python, at more than the products themselves cost.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.linear and not kwargs:
            value, tangent = forward_ad.unpack_dual(args[0])
            if tangent is not None:
                outputs = func(value, *args[1:])
                return forward_ad.make_dual(outputs, functional.linear(tangent, args[1]))
        return func(*args, **kwargs)


def _by_forward_mode(policy: Policy, obs: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    with forward_ad.dual_level(), _LinearTangents():
        # A tangent takes the strides of its tensor, which for an expanded one it could not fill.
        dual = policy(forward_ad.make_dual(obs.contiguous(), direction))
        outputs, tangent = forward_ad.unpack_dual(dual)
    # Without a tangent the outputs do not depend on the observations.
    return outputs, torch.zeros_like(outputs) if tangent is None else tangent


def _by_double_backward(policy: Policy, obs: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """The product wᵀJ is linear in w, and its derivative along u is J u."""
    with torch.enable_grad():
        point = obs if obs.requires_grad else obs.detach().requires_grad_(True)
        outputs = policy(point)
        if not outputs.requires_grad:  # the outputs depend on nothing that has a gradient
            return outputs, torch.zeros_like(outputs)
        w = torch.zeros_like(outputs, requires_grad=True)
        (pulled,) = torch.autograd.grad(outputs, point, w, create_graph=True, allow_unused=True)
        if pulled is None or not pulled.requires_grad:  # the outputs do not depend on the observations
            return outputs, torch.zeros_like(outputs)
        (tangent,) = torch.autograd.grad(pulled, w, direction, create_graph=True)
    return outputs, tangent


def _by_central_difference(policy: Policy, obs: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Both are exact to O(h²): h = ε_machine^⅓ · max(1, rms(x)), one for a sequence, balances the errors."""
    rms = obs.square().mean(tuple(range(1, obs.ndim)), keepdim=True).sqrt()
    h = torch.finfo(obs.dtype).eps ** (1 / 3) * rms.clamp_min(1)
    ends = torch.cat([obs + h * direction, obs - h * direction])
    ahead, behind = policy.repeat(2)(ends).chunk(2)
    return (ahead + behind) / 2, (ahead - behind) / (2 * h)


_PRODUCTS: dict[Backend, Callable[[Policy, Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "mlp": _by_mlp,
    "forward": _by_forward_mode,
    "double": _by_double_backward,
    "central": _by_central_difference,
}


def jvp(
    policy: Policy, obs: Tensor, direction: Tensor, *, backend: JVPBackend = "auto"
) -> tuple[Tensor, Tensor]:
    """Outputs f(x) and directional derivative J(x) u of a policy, both `[B, ..., m]`.

    Args:
        policy: f.
        obs: x, `[B, ..., d]`.
        direction: u, same shape; not normalised here.
        backend: one of those above, or `"auto"`: forward mode, and where the module has none what
            `resolve_backend` finds, on every call anew.
    """
    one_of("backend", backend, JVP_BACKENDS)
    if backend == "auto":
        try:
            return _by_forward_mode(policy, obs, direction)
        except RuntimeError:  # NotImplementedError is one
            backend = resolve_backend(policy, obs, backend)
    return _PRODUCTS[backend](policy, obs, direction)


def resolve_backend(
    policy: Policy, obs: Tensor, backend: JVPBackend, *, allowed: Sequence[Backend] = BACKENDS
) -> Backend:
    """The backend that a policy will be differentiated with, found by trying it on up to two rows.

    Args:
        policy: the policy.
        obs: observations it accepts, `[B, ..., d]`.
        backend: the one asked for. `"auto"`: the first of `allowed` that works; a fallback is logged,
            once for each cause, unless it is one from `"mlp"`.
        allowed: in order of preference. A learner thread leaves out `"forward"`.

    Raises:
        ValueError: the backend asked for is not allowed, or the policy does not support it.
    """
    one_of("backend", backend, JVP_BACKENDS)
    few = torch.arange(min(2, len(obs)), device=obs.device)
    policy, obs = policy.select(few), obs[few].detach()
    if backend != "auto":
        one_of("backend", backend, allowed)
        if not (cause := _failure(policy, obs, backend)):
            return backend
        raise ValueError(
            f"expected a policy that backend={backend!r} can differentiate, got one that it cannot "
            f"({cause}); use backend='auto'"
        )
    failures: list[str] = []
    for candidate in allowed:
        if not (cause := _failure(policy, obs, candidate)):
            _report_fallback(candidate, "; ".join(failures))
            return candidate
        if candidate != "mlp":
            failures.append(f"{candidate}: {cause}")
    raise ValueError(
        f"expected a policy that one of {', '.join(allowed)} can differentiate, got one that none can "
        f"({'; '.join(failures)})"
    )


def _failure(policy: Policy, obs: Tensor, backend: Backend) -> str:
    """Why a backend cannot serve a policy; empty if it can, a further derivative (for training) included."""
    try:
        with torch.enable_grad():
            point = obs.requires_grad_(True)
            _, tangent = _PRODUCTS[backend](policy, point, torch.ones_like(point))
            if tangent.requires_grad:
                torch.autograd.grad(tangent.sum(), point, allow_unused=True)
    except RuntimeError as error:
        return str(error).strip().partition("\n")[0] or type(error).__name__
    return ""


@cache
def _report_fallback(chosen: str, failures: str) -> None:
    if failures:
        _log.warning("Jacobian-vector products of this policy: using backend=%r (%s)", chosen, failures)


def safe_sqrt(squared: Tensor) -> Tensor:
    """√x with gradient 0 at x = 0, where its own is infinite; NaN stays NaN."""
    zero = squared == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, squared).sqrt())
