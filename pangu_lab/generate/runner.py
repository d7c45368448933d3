"""The ``Runner``: the interface to a compiled network, numpy in, logits out, whatever its source.

A ``Runner`` owns a graph with a paged key-value cache (see ``network.py``) and the pool of its slots. The graph
may come from weights (``network_runner``) or from an exported bundle; the code above this module cannot tell.
Calls are serialised by a lock, because the cache is state inside the graph; several generations may alternate
step by step, each with its own slots, or share slots where their texts share a prefix. There is one lock for the
whole process: MindSpore 2.10 hangs when two threads run graphs at once, even those of different networks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from pangu_lab.config import ModelConfig
from pangu_lab.errors import InputError
from pangu_lab.generate.native import NEEDS_KERNELS, NativeDecoder, kernels_for, native_decoder
from pangu_lab.memory import tokens_at_once
from pangu_lab.parallel.mesh import Mesh
from pangu_lab.ranges import shown

BUCKET = 64  # the number of slots that the general graph reads is rounded up to this
DEFAULT_SLOTS = 1024
HALF_DTYPES = ("float16", "bfloat16")
DTYPES = ("float32", *HALF_DTYPES, "int8")  # of the weights in memory
SLOTS_TIMEOUT = 60.0  # seconds to wait for slots that others hold; the holder may be the waiting thread itself
READ_SIZES = (256,)  # compiling from Python takes a second for 12 layers: once, then the general graph
Graph = Callable[..., Any]


class NetworkLost(Exception):
    """Worker processes are gone; ``Runner.recover`` waits for their replacements."""


ONE_AT_A_TIME = threading.RLock()


class SlotPool:
    """Which slots of the cache are free; a slot keeps the keys and values of one position."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._free = list(range(slots - 1, -1, -1))
        self._changed = threading.Condition()

    def take(self, count: int) -> list[int]:
        """``count`` slots that nobody else uses, in ascending order where possible; waits as ``wait_for`` does."""
        with self._changed:
            self.wait_for(count)
            return [self._free.pop() for _ in range(count)]

    @contextlib.contextmanager
    def holding(self, count: int) -> Iterator[list[int]]:
        """Slots as ``take`` gives them, freed afterwards whatever happens."""
        slots = self.take(count)
        try:
            yield slots
        finally:
            self.give_back(slots)

    def take_now(self, count: int) -> list[int] | None:
        """As ``take``, or None when fewer are free."""
        with self._changed:
            return self.take(count) if count <= len(self._free) else None

    def wait_for(self, count: int) -> None:
        """Wait until ``count`` slots are free, but not for ever.

        Raises:
            InputError: the cache is smaller than that altogether, or others did not free enough in time.
        """
        if count > self.slots:
            raise InputError(
                f"this needs {count} positions of key-value cache at once, there are {self.slots}: "
                f"ask for fewer new tokens, sequences or beams, or load with more slots"
            )
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._free) >= count, SLOTS_TIMEOUT):
                raise InputError(
                    f"other generations hold {self.slots - len(self._free)} of the {self.slots} "
                    "positions of key-value cache: finish, cancel or close them, or load with more "
                    "places"
                )

    @property
    def free(self) -> int:
        """How many slots nobody uses."""
        return len(self._free)

    def give_back(self, slots: Sequence[int]) -> None:
        with self._changed:
            self._free.extend(slots)
            self._free.sort(reverse=True)
            self._changed.notify_all()


class Runner:
    """A compiled network.

    Args:
        graph: takes (ids, positions, write, read, rows) as MindSpore tensors of int32 and gives logits.
        slots: positions that the cache holds in all.
        fixed: the same graph compiled for (sequences, tokens of each), sharing the cache: (1, 1) for one token of one
            sequence, (4, 1) for four together, (1, 64) for a prompt of up to 64. With one token it is recompiled for
            each number of slots it reads, with all shapes fixed, hence
        read_sizes: the few numbers it is used with; a sequence longer than the last takes the general graph.
        native: replaces all these graphs, over their parameters.

    Attributes:
        vocab_size, max_length: of the network; max_length is the number of positions a sequence can have.
        pool: the free slots of the cache.
        stages: how many calls it works on at the same time; more than one in a pipeline.
        at_once: the most tokens fed in one call; more are fed in chunks, so that memory does not grow with a prompt.
        batch_sizes: batch sizes that the graph's decode steps are padded to, ascending, so that a sequence's logits do
            not depend on its batch (see ``batch_invariant.py``); empty for the fastest way of each call.
        reload: returns another runner of the same network, whose graphs replace those that failed; None if that is
            not possible.
        renew: replaces the weights by others of the same network, between two generations; None for a bundle.
    """

    def __init__(
        self,
        graph: Graph,
        vocab_size: int,
        max_length: int,
        slots: int,
        fixed: Mapping[tuple[int, int], Graph] = MappingProxyType({}),
        read_sizes: Sequence[int] = (),
        at_once: int | None = None,
        native: NativeDecoder | None = None,
    ) -> None:
        self.vocab_size, self.max_length = vocab_size, max_length
        self.pool = SlotPool(slots)
        self._graph, self._fixed = graph, dict(fixed)
        self._read_sizes = sorted({min(size, max_length) for size in read_sizes})
        self._prompt_sizes = sorted(n for batch, n in self._fixed if batch == 1 and n > 1)
        self.at_once, self.stages = at_once, 1
        self.batch_sizes: tuple[int, ...] = ()
        self._native = native
        self.reload: Callable[[], Runner] | None = None
        self.renew: Callable[[Mapping[str, np.ndarray]], None] | None = None

    def use_int8(self) -> None:
        """Read weights as int8 with a scale for each output in decode steps, a quarter of the memory; for a bundle,
        whose graph keeps its own in fp32 (see ``kernel_runner``).

        The graph's are rounded too, so prompts and steps use the same model.

        Raises:
            InputError: there are no kernels for that here.
        """
        if self._native is None:
            raise InputError(NEEDS_KERNELS.format("int8"))
        with ONE_AT_A_TIME:
            self._native.use_int8()

    def run(
        self,
        ids: np.ndarray,
        positions: np.ndarray,
        write: np.ndarray,
        read: np.ndarray,
        rows: np.ndarray | None = None,
    ) -> np.ndarray:
        """Feed new tokens to the network.

        Args:
            ids, positions, write: (batch, n) tokens, their positions, and the slots to keep them in.
            read: (batch, t) the slots of each sequence from its position 0 on; t is rounded up here.
            rows: (m,) which of the batch·n tokens to give logits for; the last of each sequence by default.

        Returns:
            (m, vocab_size) float32.
        """
        calls = self._calls(ids, positions, write, read, last_rows(ids) if rows is None else rows)
        return together([(self.call(*arrays), places) for arrays, places in calls])

    def start(
        self,
        ids: np.ndarray,
        positions: np.ndarray,
        write: np.ndarray,
        read: np.ndarray,
        rows: np.ndarray | None = None,
    ) -> Callable[[], np.ndarray]:
        """Begin what ``run`` does; what this returns gives the logits. Only a runner of several ``stages`` goes on meanwhile:
        here they are there already."""
        logits = self.run(ids, positions, write, read, rows)
        return lambda: logits

    def _calls(self, *arrays: np.ndarray) -> list[tuple[tuple[np.ndarray, ...], np.ndarray]]:
        """The calls that make up a ``run`` of ids, positions, write, read and rows, each with the places among ``rows`` of
        the logits that it begins with."""
        ids, rows = arrays[0], arrays[-1]
        batch, n = ids.shape
        if n == 1 and self.batch_sizes and len(rows) == batch and not self.decodes_by_kernels:
            return self._agreeing_batches(*arrays[:-1])
        most = self._most_at_once(ids.size)
        if n > 1 and most is not None and ids.size > most:
            return self._parts(max(1, most // batch), *arrays)
        return [(arrays, np.arange(len(rows)))]

    def _most_at_once(self, tokens: int) -> int | None:
        """The most tokens of one call, where there are so many in all."""
        return self.at_once

    def check(self) -> None:
        """Check that calls can be made.

        Raises:
            NetworkLost: worker processes are gone.
        """

    def recover(self, go_on: Callable[[], bool]) -> None:
        """Wait until calls can be made, with an empty cache, while ``go_on()``; after ``NetworkLost`` or ``drop``."""
        if self._graph is None and self.reload is not None:
            fresh = self.reload()
            self._graph, self._fixed, self._native = fresh._graph, fresh._fixed, fresh._native

    def drop(self) -> None:
        """Release failed graphs, so that ``recover`` reloads them; before that, as memory may not hold both."""
        if self.reload is not None:
            self._graph, self._fixed, self._native = None, {}, None

    @staticmethod
    def _parts(
        width: int, ids: np.ndarray, positions: np.ndarray, write: np.ndarray, read: np.ndarray, rows: np.ndarray
    ) -> list[tuple[tuple[np.ndarray, ...], np.ndarray]]:
        """Chunks of ``width`` columns: a token sees only earlier ones, which the cache then holds."""
        n, calls = ids.shape[1], []
        for start in range(0, n, width):
            part = slice(start, min(start + width, n))
            columns, span = part.stop - start, int(positions[:, part].max()) + 1
            wanted = np.flatnonzero((rows % n >= start) & (rows % n < part.stop))
            local = rows[wanted] // n * columns + rows[wanted] % n - start
            calls.append(
                (
                    (
                        ids[:, part],
                        positions[:, part],
                        write[:, part],
                        read[:, :span],
                        local if len(local) else np.zeros(1, np.int64),
                    ),
                    wanted,
                )
            )
        return calls

    @property
    def decodes_by_kernels(self) -> bool:
        """Whether the C kernels decode, as they do once a first step agreed with the graph's: their results for a
        row do not depend on the batch."""
        return self._native is not None and self._native.steps.value is True

    def _agreeing_batches(self, *arrays: np.ndarray) -> list[tuple[tuple[np.ndarray, ...], np.ndarray]]:
        """One decode step in batches of ``batch_sizes``, each padded with repetitions of its last sequence."""
        most, calls = self.batch_sizes[-1], []
        for start in range(0, len(arrays[0]), most):
            part = [array[start : start + most] for array in arrays]
            count = len(part[0])
            size = next(size for size in self.batch_sizes if size >= count)
            filled = (np.pad(array, ((0, size - count), (0, 0)), mode="edge") for array in part)
            calls.append(((*filled, np.arange(size)), np.arange(start, start + count)))
        return calls

    def call(
        self, ids: np.ndarray, positions: np.ndarray, write: np.ndarray, read: np.ndarray, rows: np.ndarray
    ) -> np.ndarray:
        """``run``, as one call of a graph."""
        native = self._native
        trust = native and native.trust(ids, rows)
        if not native or trust.value is False:
            return self._by_graph(*self._choose(ids, positions, write, read, rows))
        with ONE_AT_A_TIME:
            if trust.value:
                return native.run(ids, positions, write, read, rows)
            general = (ids, positions, write, self._rounded(read), rows)
            return trust.check(
                lambda: native.run(ids, positions, write, read, rows), lambda: self._by_graph(self._graph, general)
            )

    @staticmethod
    def _by_graph(graph: Graph, arrays: Sequence[np.ndarray]) -> np.ndarray:
        from mindspore import Tensor

        types = (np.float32 if array.dtype.kind == "f" else np.int32 for array in arrays)
        with ONE_AT_A_TIME:
            return graph(*(Tensor(np.ascontiguousarray(*each)) for each in zip(arrays, types))).asnumpy()

    def _choose(
        self, ids: np.ndarray, positions: np.ndarray, write: np.ndarray, read: np.ndarray, rows: np.ndarray
    ) -> tuple[Graph, tuple[np.ndarray, ...]]:
        """The graph for this call, and the inputs in the shapes that it takes."""
        (batch, n), span = positions.shape, read.shape[1]
        if n == 1 and (batch, 1) in self._fixed and len(rows) == batch:
            for size in self._read_sizes:
                if span <= size:
                    return self._fixed[batch, 1], (ids, positions, write, _padded(read, size), rows)
        if n > 1 and batch == len(rows) == 1 and span == n:
            for size in self._prompt_sizes:
                if n <= size:  # repeat the last token, which writes the same to the same slot
                    padded = (_padded(array, size) for array in (ids, positions, write, read))
                    return self._fixed[1, size], (*padded, rows)
        return self._graph, (ids, positions, write, self._rounded(read), rows)

    def _rounded(self, read: np.ndarray) -> np.ndarray:
        span = read.shape[1]
        return _padded(read, max(span, min(-(-span // BUCKET) * BUCKET, self.max_length)))


def last_rows(ids: np.ndarray) -> np.ndarray:
    """The last token of each sequence among the batch·n tokens of ids (batch, n)."""
    return np.arange(ids.shape[1] - 1, ids.size, ids.shape[1])


def together(made: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """The logits of several calls, each in its places."""
    if len(made) == 1:
        return made[0][0][: len(made[0][1])]
    logits = np.empty((sum(len(places) for _, places in made), made[0][0].shape[1]), np.float32)
    for each, places in made:
        logits[places] = each[: len(places)]
    return logits


class StageRunner(Runner):
    """The network of one pipeline stage. ``call`` takes hidden rows (batch·n, hidden) in place of ids, except on the first
    stage, and returns them in place of logits, except on the last; the stages' caches have the same slots.

    Args:
        last: whether it is the last; the rest as of ``Runner``.
    """

    def __init__(self, *args: Any, last: bool, **more: Any) -> None:
        super().__init__(*args, **more)
        self._last = last

    def call(
        self, x: np.ndarray, positions: np.ndarray, write: np.ndarray, read: np.ndarray, rows: np.ndarray
    ) -> np.ndarray:
        graph, arrays = self._choose(x, positions, write, read, rows)
        return self._by_graph(graph, arrays) if self._last else self._by_graph(graph, arrays[:-1])[: positions.size]


def _padded(array: np.ndarray, size: int) -> np.ndarray:
    """(batch, n) → (batch, size), the last column repeated; hidden rows (n, hidden) → (size, hidden), the last row.
    Padding in ``read`` may be any slot: no token sees it."""
    if array.dtype.kind == "f":
        return np.pad(array, ((0, size - len(array)), (0, 0)), mode="edge")
    return np.pad(array, ((0, 0), (0, size - array.shape[1])), mode="edge")


def network_runner(
    weights: Mapping[str, np.ndarray],
    config: ModelConfig,
    slots: int | None = None,
    mesh: Mesh = Mesh(),
    dtype: str = "float32",
) -> Runner:
    """Compile the network for ``weights`` (released names) on this machine.

    Args:
        weights: every parameter of the network; read one by one, so a lazily reading mapping saves memory.
        slots: of the cache, one per position; by default one full sequence, and at least 1024.
        mesh: the processes that share the network by tensor and pipeline parallelism, and this one's rank among them;
            it has joined the group of its stage.
        dtype: of the weights of products, which are made in it: "float32" or "float16". For one process on a CPU
            ``kernel_runner`` is quicker.

    Raises:
        InputError: the weights are not those of ``config``.
    """
    import mindspore as ms

    from pangu_lab.generate.network import CachedNetwork, cached_parts
    from pangu_lab.parallel.collectives import inference_group

    ms.set_context(mode=ms.GRAPH_MODE)
    parts = cached_parts(
        weights, config, default_slots(config, slots), inference_group(mesh), mesh.layers(config.num_layers), dtype
    )
    network = CachedNetwork(parts)
    network.set_inputs(*network.dynamic_inputs())
    one_token = CachedNetwork(dataclasses.replace(parts, one=True))
    alone = mesh.parallel.world_size == 1 and dtype == "float32"
    native = (
        native_decoder({value.name: value for value in network.get_parameters()}, config, parts.slots)
        if alone
        else None
    )
    runner = make_runner(
        mesh,
        network,
        config.vocab_size,
        config.num_positions,
        parts.slots,
        {(1, 1): one_token},
        READ_SIZES,
        tokens_at_once(config),
        native,
    )
    runner.renew = parts.parameters.renew
    return runner


def make_runner(mesh: Mesh, *arguments: Any) -> Runner:
    """A runner of the whole network, or of this rank's pipeline stage; ``arguments`` as of ``Runner``."""
    return Runner(*arguments) if mesh.size("pipeline") == 1 else StageRunner(*arguments, last=mesh.is_last_stage)


def kernel_runner(
    weights: Mapping[str, np.ndarray], config: ModelConfig, dtype: str, slots: int | None = None
) -> Runner:
    """The network by the C kernels alone, whose products read weights in ``dtype``: a half or a quarter of the memory, and
    of the reading in a decode step. Sums are fp32.

    Args:
        dtype: "float16", "bfloat16", or "int8": rounded, with one factor for each output.

    Raises:
        InputError: the weights are not those of ``config`` or too large for ``dtype``, or there are no kernels here.
    """
    from pangu_lab.generate.network import kernel_parameters

    slots = default_slots(config, slots)
    if dtype not in DTYPES[1:]:
        raise InputError(f"dtype {shown(dtype, repr)}: there are {', '.join(DTYPES)}")
    library = kernels_for(config, dtype)
    parameters = kernel_parameters(weights, config, slots, dtype)
    native = NativeDecoder(library, parameters.made, config, slots, dtype, parameters.scales, trusted=True)
    runner = Runner(None, config.vocab_size, config.num_positions, slots, at_once=tokens_at_once(config), native=native)
    runner.renew = parameters.renew
    return runner


def default_slots(config: ModelConfig, slots: int | None = None) -> int:
    """How many positions the cache holds.

    Raises:
        InputError: fewer than one whole sequence needs.
    """
    if slots is None:
        return max(config.num_positions, DEFAULT_SLOTS)
    if slots < config.num_positions:
        raise InputError(f"slots={slots} must be at least model.num_positions={config.num_positions}")
    return slots
