"""The linear maps of a layer: a matrix, with a bias or a low-rank adapter beside it.

What a tree for decoding has in place of the matrix is read, too (`collab.models.decoding`).
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from collab.models.lora import ADAPTER, Lora

TURNED = "kernel_FD"  # in place of a kernel, see `linear`
FEW = 64  # tokens
SCALE = "kernel_scale"  # of an int8 kernel, see `collab.models.quantised`
ADAPTER_INIT = nn.initializers.variance_scaling(1.0, "fan_in", "normal")


class Projection(nn.Module):
    """x [N, *inputs] to [N, *outputs], in `dtype`: a matmul of flattened inputs and outputs.

    lora: of its adapter, None = it has none. The adapter is zero at first. A tree without it, into
    which it was merged, is read alike.
    """

    outputs: tuple[int, ...]
    dtype: str
    kernel_init: nn.initializers.Initializer
    has_bias: bool = False
    lora: Lora | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inputs, dtype = x.shape[1:], jnp.dtype(self.dtype)
        x = x.astype(dtype)
        if self.has_variable("params", TURNED):
            y = linear(x.reshape(len(x), -1), self.get_variable("params", TURNED))
            y = y.reshape(-1, *self.outputs)
        else:
            kernel = self.param(
                "kernel", _of_matrix(self.kernel_init, len(inputs)), (*inputs, *self.outputs)
            )
            kernel, x = widened(kernel, x)
            y = jnp.tensordot(x, kernel, axes=len(inputs))
        if self.has_variable("params", SCALE):
            y = (y * self.get_variable("params", SCALE)).astype(dtype)
        if self.has_bias:
            y += self.param("bias", nn.initializers.zeros, self.outputs).astype(dtype)
        if self.lora and (self.is_initializing() or self.has_variable("params", ADAPTER)):
            y += _Adapter(self.outputs, self.lora, name=ADAPTER)(x)
        return y


def linear(x: jax.Array, kernel_FD: jax.Array) -> jax.Array:
    """[..., D] -> [..., F], by the matrix times columns.

    XLA's CPU back end takes 0.7 to 0.9 of the time that it takes for 2 to 64 rows times the matrix
    (measured), but exchanges the operands of a product that is turned over right away.
    """
    x_ND = x.reshape(-1, x.shape[-1])
    y_FN = jnp.einsum("fd,nd->fn", kernel_FD, x_ND, preferred_element_type=x.dtype)
    if len(x_ND) <= FEW:
        y_FN = jax.lax.optimization_barrier(y_FN)
    return y_FN.T.reshape(*x.shape[:-1], -1)


def widened(kernel: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A matrix in the dtype of what it multiplies, and that.

    A narrower matrix is cast anew at each use. XLA would else move the cast out of a decode loop,
    which does not change the matrix, and each step would read the wide one after all (seen on CPU).
    """
    if kernel.dtype.itemsize < x.dtype.itemsize:
        kernel, x = jax.lax.optimization_barrier((kernel, x))
    return kernel.astype(x.dtype), x


class _Adapter(nn.Module):
    """A scope of its own, so that matrices are drawn as they are without one."""

    outputs: tuple[int, ...]
    lora: Lora

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inputs, rank = x.shape[1:], self.lora.rank
        a = self.param("a", _of_matrix(ADAPTER_INIT, len(inputs)), (*inputs, rank))
        b = self.param("b", nn.initializers.zeros, (rank, *self.outputs))
        narrow = jnp.tensordot(x, a.astype(x.dtype), axes=len(inputs))
        return self.lora.scale * jnp.tensordot(narrow, b.astype(x.dtype), axes=1)


def _of_matrix(init: nn.initializers.Initializer, inputs: int) -> nn.initializers.Initializer:
    """`init` of the matrix that is left once the first `inputs` axes are one, and the others."""

    def made(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return init(key, (math.prod(shape[:inputs]), math.prod(shape[inputs:]))).reshape(shape)

    return made
