"""Prompts and decode steps by the C kernels, over the parameters and the cache of a compiled graph.

On a CPU a MindSpore parameter and the numpy array that ``asnumpy`` gives share memory, before and after graphs have
run. So the kernels work on the graph's own weights and cache, and each sees what the other stored; a bundle
needs nothing more than its graphs. The first prompt and the first step are computed both ways and compared: if they
differ, for whatever reason, only the graph is used.

A row's numbers do not depend on how many sequences are decoded together (see ``network.c`` of ``ops/native``).
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from pangu_lab.config import ModelConfig
from pangu_lab.errors import InputError
from pangu_lab.model.inference import QUERIES, inference_shapes
from pangu_lab.model.parameters import FINAL_NORM, POSITION, WORD, layer_prefix
from pangu_lab.ops.native import decode

log = logging.getLogger(__name__)
# of the largest logit: rounding differs by 1e-6 of it, a wrong pointer by all of it
CLOSE = {"float32": 1e-3, "float16": 2e-2}
NEEDS_KERNELS = (
    "{} weights need the C kernels, which are for dense models in one process on a CPU: "
    "install a C compiler (apt-get install gcc), unset PANGU_LAB_NATIVE, or use float32"
)
Step = Callable[[], np.ndarray]


def plain_name(name: str) -> str:
    """A parameter's name without what MindSpore puts before it in a loaded graph."""
    return name.partition(":")[2] or name


class Trust:
    """Whether the kernels are used for a kind of call: None until compared with the graph, whose products are in ``dtype``."""

    def __init__(self, dtype: str = "float32") -> None:
        self.value: bool | None = None
        self._close = CLOSE.get(dtype)

    def check(self, by_kernels: Step, by_graph: Step) -> np.ndarray:
        """The first call, computed both ways."""
        expected, found = by_graph(), by_kernels()
        limit = self._close * max(1.0, float(np.abs(np.nan_to_num(expected)).max()))
        self.value = bool(np.allclose(found, expected, rtol=0, atol=limit, equal_nan=True))
        if not self.value:
            log.warning("the decode kernels and the graph disagree here: the graph is used")
        return found if self.value else expected


class NativeDecoder:
    """New tokens of one or several sequences.

    Args:
        library: the compiled kernels.
        arrays: the parameters of the graph, by name; see ``network.py`` for their shapes.
        config: the network's sizes.
        slots: positions that the cache holds.
        dtype: of the products' weights: "float32"; or "float16", "bfloat16" or "int8", whose arrays are those of
            ``ops.native.decode.halved`` and ``quantise``.
        scales: with "int8", the factors of each weight's rows.
        trusted: there is no graph to compare with.

    Attributes:
        steps, prompts: whether the kernels handle one token per sequence, and several.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        arrays: Mapping[str, np.ndarray],
        config: ModelConfig,
        slots: int,
        dtype: str = "float32",
        scales: Mapping[str, np.ndarray] = MappingProxyType({}),
        trusted: bool = False,
    ) -> None:
        self._library, self._config, self._slots, self._dtype, self._scales = library, config, slots, dtype, scales
        self._arrays = {plain_name(name): value for name, value in arrays.items()}
        self._shapes = inference_shapes(config, slots)
        self._kept: list[Any] = []
        self._scratch = np.empty(0, np.float32)
        self.steps, self.prompts = Trust(dtype), Trust(dtype)
        if trusted:
            self.steps.value = self.prompts.value = True
        self._network = self._describe(int8=False)

    def use_int8(self) -> None:
        """Round every product's weights to int8 with one scale per row; the graph's copy is rounded the same.

        Raises:
            InputError: the graph has fp16 weights.
        """
        if self._dtype != "float32":
            raise InputError(
                f"this bundle has {self._dtype} weights, int8 is made of fp32: export it with --dtype float32"
            )
        self._network = self._describe(int8=True)

    def _describe(self, int8: bool) -> decode.Network:
        config = self._config
        layers = (decode.Layer * config.num_layers)(
            *(self._layer(layer_prefix(config, i), int8) for i in range(config.num_layers))
        )
        head = self._matrix(WORD, None, int8)
        return decode.Network(
            config.num_layers,
            config.hidden_size,
            4 * config.hidden_size,
            config.num_heads,
            self._slots,
            config.vocab_size,
            decode.ACTIVATIONS[config.hidden_act],
            config.layernorm_eps,
            self._at(POSITION) if POSITION in self._arrays else None,
            self._at(QUERIES),
            self._at(f"{FINAL_NORM}.gamma"),
            self._at(f"{FINAL_NORM}.beta"),
            head,
            layers,
        )

    def _layer(self, prefix: str, int8: bool) -> decode.Layer:
        norms = (self._at(f"{prefix}.layernorm{i}.{name}") for i in (1, 2) for name in ("gamma", "beta"))
        parts = ("attention.qkv", "attention.projection", "output.mapping", "output.projection")
        products = (self._matrix(f"{prefix}.{part}.weight", f"{prefix}.{part}.bias", int8) for part in parts)
        return decode.Layer(*norms, *products, *(self._at(f"{prefix}.cache.{kind}") for kind in ("keys", "values")))

    def _at(self, name: str, dtype: type = np.float32) -> int:
        """The address of a parameter, of exactly as many numbers as the kernels will reach for."""
        array = self._arrays[name]
        if array.shape != self._shapes[name] or array.dtype != dtype or not array.flags.c_contiguous:
            raise InputError(
                f"{name} is {array.dtype} {array.shape}, the configuration needs {np.dtype(dtype)} {self._shapes[name]}"
            )
        return array.ctypes.data

    def _matrix(self, weight: str, bias: str | None, int8: bool) -> decode.Matrix:
        outputs, inputs = self._arrays[weight].shape
        at_bias = bias and self._at(bias)
        if self._dtype != "float32":
            held = self._at(weight, np.int8 if self._dtype == "int8" else np.uint16)
            scale = self._scales[weight].ctypes.data if self._dtype == "int8" else None
            return decode.Matrix(held, scale, at_bias, None, inputs, outputs, decode.KINDS[self._dtype])
        rest = (at_bias, self._at(weight), inputs, outputs)
        if not int8:
            return decode.Matrix(self._at(weight), None, *rest, decode.KINDS["float32"])
        quantised, scale = decode.quantise(self._arrays[weight])
        self._kept += [quantised, scale]
        return decode.Matrix(quantised.ctypes.data, scale.ctypes.data, *rest, decode.KINDS["int8"])

    def trust(self, ids: np.ndarray, rows: np.ndarray) -> Trust:
        """The one of ``steps`` and ``prompts`` that covers such a call."""
        return self.steps if ids.shape[1] == 1 else self.prompts

    def run(
        self, ids: np.ndarray, positions: np.ndarray, write: np.ndarray, read: np.ndarray, rows: np.ndarray
    ) -> np.ndarray:
        """Logits (m, vocab_size); arguments as of ``Runner.run``."""
        arrays = [np.ascontiguousarray(array, np.int32) for array in (ids, positions, write, read, rows)]
        self._check(*arrays)
        (batch, n), span = ids.shape, read.shape[1]
        logits = np.empty((len(rows), self._config.vocab_size), np.float32)
        *tokens, asked = (array.ctypes.data for array in arrays)
        scratch = self._scratch_of(self._library.scratch_size(self._network, ids.size, len(rows)))
        self._library.forward(self._network, *tokens, batch, n, span, asked, len(rows), scratch, logits.ctypes.data)
        return logits

    def _scratch_of(self, floats: int) -> int:
        """The address of scratch memory."""
        if len(self._scratch) < floats:
            self._scratch = np.empty(floats, np.float32)
        return self._scratch.ctypes.data

    def _check(
        self, ids: np.ndarray, positions: np.ndarray, write: np.ndarray, read: np.ndarray, rows: np.ndarray
    ) -> None:
        """Reject indices outside the network's arrays, which would read arbitrary memory."""
        for name, array, end in (
            ("token", ids, self._config.vocab_size),
            ("cache slot", write, self._slots),
            ("position", positions, min(self._config.num_positions, read.shape[1])),
            ("cache slot", read, self._slots),
            ("row", rows, ids.size),
        ):
            if array.min() < 0 or array.max() >= end:
                raise InputError(f"a {name} of a decode step is outside 0 to {end - 1}")


def native_decoder(parameters: Mapping[str, Any], config: ModelConfig, slots: int) -> NativeDecoder | None:
    """The kernels over a graph's parameters, in fp32, or in fp16 as ``Parameters`` makes them; None if they cannot run this
    model."""
    library = _library_for(config)
    if library is None:
        return None
    arrays = {plain_name(name): value.asnumpy() for name, value in parameters.items()}
    dtype = arrays[WORD].dtype.name
    if dtype == "float16":
        arrays = {name: array.view(np.uint16) if array.dtype == np.float16 else array for name, array in arrays.items()}
    return NativeDecoder(library, arrays, config, slots, dtype)


def kernels_for(config: ModelConfig, dtype: str) -> ctypes.CDLL:
    """The kernels, for weights in a type that only they read.

    Raises:
        InputError: there are none for this model here.
    """
    library = _library_for(config)
    if library is None:
        raise InputError(NEEDS_KERNELS.format(dtype))
    return library


def has_kernels(config: ModelConfig) -> bool:
    """Whether there are kernels for this model here."""
    return _library_for(config) is not None


def _library_for(config: ModelConfig) -> ctypes.CDLL | None:
    import mindspore as ms

    return None if config.moe_layers or ms.get_context("device_target") != "CPU" else decode.library()
