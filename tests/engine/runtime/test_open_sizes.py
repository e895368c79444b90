"""Executables with open sizes besides the batch: programs, signatures, what can be padded, masks, warm-up, threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

import engine as ax
from engine.errors import EngineError, OptionError, ShapeError
from engine.runtime import Executable, OpenSize, intermediates, mixing_reason, signature

RANDOM = np.random.default_rng(0)
SIZES = (4, 8, 16)
TEXT = OpenSize({"tokens": (1,)}, SIZES, padded=True, mask="mask")


def _mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    return (values * mask[:, :, None]).sum(1) / mask.sum(1, keepdims=True)


def classifier() -> ax.Model:
    """Mean of the embeddings of real positions, then classes; the embeddings are an output too."""
    tokens = ax.input("tokens", shape=(None, None), dtype="s32")
    embedded = tokens.embedding(20, 6, name="embedded")
    pooled = ax.layer(_mean, [embedded, ax.input("mask", shape=(None, None))], name="mean", row_wise=True)
    return ax.container({"classes": pooled.dense(3), "embedded": embedded})


def _numpy(state: ax.ModelState, tokens: np.ndarray) -> np.ndarray:
    """The classifier without padding, by its formula."""
    kernel = np.asarray(state.parameters["embedded"]["kernel"])
    dense = state.parameters["dense_0"]
    return kernel[tokens].mean(1) @ np.asarray(dense["kernel"]) + np.asarray(dense["bias"])


@pytest.fixture(scope="module")
def state() -> ax.ModelState:
    """Parameters of `classifier`."""
    return ax.build(classifier())[0](seed=3)


@pytest.fixture(scope="module")
def executable(state: ax.ModelState) -> Executable:
    """Two batch sizes, three lengths."""
    return Executable(classifier(), state, buckets=[1, 2], open_sizes=[TEXT], exposed=["mean"], warm_up="random")


def test_every_combination_gives_the_plain_model(executable: Executable, state: ax.ModelState):
    """At exact sizes and with padding that the mask marks, by the formula in NumPy."""
    for rows in (1, 2):
        for size in SIZES:
            for length in (size, size - 1):
                tokens = RANDOM.integers(0, 20, (rows, length)).astype(np.int32)
                padded, mask = np.full((rows, size), 7, np.int32), np.zeros((rows, size), np.float32)
                padded[:, :length], mask[:, :length] = tokens, 1
                found = executable({"tokens": padded, "mask": mask})
                np.testing.assert_allclose(found["classes"], _numpy(state, tokens), atol=1e-6)
                assert found["embedded"].shape == (rows, size, 6)


def test_signatures_tell_open_axes_and_masks(executable: Executable):
    """Open axes are None; an output's axis of that size is told; masks are no inputs."""
    assert [(s.name, s.shape, s.open_axes) for s in executable.inputs] == [("tokens", (None, None), {1: 0})]
    assert [(s.name, s.shape) for s in executable.masks] == [("mask", (None, None))]
    assert [(s.name, s.shape, s.open_axes) for s in executable.outputs] == [
        ("classes", (None, 3), {}),
        ("embedded", (None, None, 6), {1: 0}),
    ]
    assert [(s.name, s.shape, s.open_axes) for s in executable.intermediates] == [("mean", (None, 6), {})]
    assert executable.mixes_rows is None
    assert (executable.buckets, executable.partitions) == ((1, 2), 1)


@pytest.mark.parametrize(
    ("shape", "message"),
    [((3, 4), "expected a batch size out of 1, 2, got 3"), ((2, 5), r"tokens\[1\], mask\[1\] out of 4, 8, 16, got 5")],
)
def test_sizes_without_a_program_are_refused_and_compile_nothing(
    executable: Executable, shape: tuple[int, int], message: str
):
    """Nor do sizes with one, or inputs of different sizes."""
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: compiled.append(event))
    try:
        with pytest.raises(ShapeError, match=message):
            executable({"tokens": np.zeros(shape, np.int32), "mask": np.ones(shape, np.float32)})
        with pytest.raises(TypeError):
            executable({"tokens": np.zeros((2, 4), np.int32), "mask": np.ones((2, 8), np.float32)})
        executable({"tokens": np.zeros((2, 4), np.int32), "mask": np.ones((2, 4), np.float32)})
    finally:
        jax.monitoring.clear_event_listeners()
    assert not [event for event in compiled if "compile" in event]


def test_many_threads_get_their_own_answers(executable: Executable, state: ax.ModelState):
    """As several instances call it."""

    def one(index: int) -> float:
        tokens = np.random.default_rng(index).integers(0, 20, (1 + index % 2, SIZES[index % 3])).astype(np.int32)
        found = executable({"tokens": tokens, "mask": np.ones(tokens.shape, np.float32)})
        return float(np.abs(found["classes"] - _numpy(state, tokens)).max())

    with ThreadPoolExecutor(8) as pool:
        assert max(pool.map(one, range(400))) < 1e-6


def test_undeclared_sizes_are_none_in_the_signature():
    """A graph is described before anybody has declared sizes."""
    inputs, outputs = signature(classifier())
    assert [s.shape for s in inputs] == [(None, None), (None, None)]
    assert [s.shape for s in outputs] == [(None, 3), (None, None, 6)]
    pooled = ax.input("image", shape=(None, None, None, 1)).max_pool(kernel_size=3)
    assert signature(pooled)[1][0].shape == (None, None, None, 1)


def _image(model: ax.Model, *, padded: bool, sizes: tuple[int, ...] = (4, 8)) -> Executable:
    size = OpenSize({"image": (1,)}, sizes, padded=padded)
    return Executable(model, ax.build(model)[0](), buckets=[2], open_sizes=[size], exposed=True)


def test_sizes_that_come_out_otherwise_cannot_be_padded():
    """Nobody knows which rows of a pooled image are padding; exact sizes are answered."""
    model = ax.input("image", shape=(None, None, 2)).max_pool(kernel_size=2)
    with pytest.raises(
        OptionError, match=r"output 'max_pool_0' axis 1: expected the size of image\[1\] .*got 2 at 4, 4"
    ):
        _image(model, padded=True)
    exact = _image(model, padded=False)
    assert [(s.shape, s.open_axes) for s in exact.outputs] == [((None, None, 2), {})]
    x = RANDOM.standard_normal((2, 8, 2)).astype(np.float32)
    np.testing.assert_array_equal(exact({"image": x})["max_pool_0"], x.reshape(2, 4, 2, 2).max(2))


@pytest.mark.parametrize("sizes", [(4,), (4, 5)])
def test_an_undeclared_size_shows_what_the_declared_ones_hide(sizes: tuple[int, ...]):
    """One size alone says nothing; 4 and 5 are pooled to the same size."""
    model = ax.input("image", shape=(None, None, 2)).max_pool(kernel_size=2)
    with pytest.raises(OptionError, match=r"got 1 at 2, 2 at 4(, 2 at 5)?\."):
        _image(model, padded=True, sizes=sizes)
    same = _image(ax.input("image", shape=(None, None, 2)).tanh(), padded=True, sizes=sizes)
    assert [(s.shape, s.open_axes) for s in same.outputs] == [((None, None, 2), {1: 0})]


def test_an_axis_that_is_shorter_below_the_declared_sizes_is_no_constant():
    """The first 8 of 4 are 4: cut where 8 is the only size, refused where it is 8 of 16 too."""
    model = ax.layer(lambda values: values[:, :8], ax.input("image", shape=(None, None, 2)), name="first")
    assert [s.open_axes for s in _image(model, padded=True, sizes=(8,)).outputs] == [{1: 0}]
    with pytest.raises(OptionError, match=r"output 'first' axis 1: expected the size .* got 4 at 4, 8 at 8, 8 at 16\."):
        _image(model, padded=True, sizes=(8, 16))
    assert [s.shape for s in _image(model, padded=False, sizes=(8, 16)).outputs] == [(None, 8, 2)]


def test_layers_from_which_padding_cannot_be_cut_are_not_exposed():
    """All that can be; by name it is an error."""
    model = ax.input("image", shape=(None, None, 2)).max_pool(kernel_size=2, name="pooled").global_avg_pool().dense(2)
    assert [s.name for s in _image(model, padded=True).intermediates] == ["global_avg_pool_0"]
    assert [s.name for s in _image(model, padded=False).intermediates] == ["pooled", "global_avg_pool_0"]
    with pytest.raises(OptionError, match="layer 'pooled' axis 1"):
        intermediates(model, ["pooled"], [OpenSize({"image": (1,)}, (4, 8), padded=True)])


@pytest.mark.parametrize(
    ("model", "sizes", "message"),
    [
        (
            lambda: ax.input("image", shape=(None, None, 2)).max_pool(kernel_size=3),
            (2, 8),
            r"layer 'max_pool_0'.*with image\[1\] = 2",
        ),
        (
            lambda: ax.input("image", shape=(None, None)).dense(2),
            (2, 8),
            r"layer 'dense_0': expected parameters of the same shapes at every size .* got kernel \(2, 2\) at 2",
        ),
    ],
)
def test_sizes_that_do_not_fit_the_graph_are_told(model, sizes: tuple[int, ...], message: str):
    """With the layer and the size."""
    declared = [OpenSize({"image": (1,)}, sizes)]
    with pytest.raises(EngineError, match=message):
        Executable(model(), ax.ModelState({}), buckets=[1], open_sizes=declared)


def test_two_open_sizes_are_compiled_in_every_combination():
    """Each output's axis belongs to one of them; their sum to none."""
    a, b = ax.input("a", shape=(None, None, 2)), ax.input("b", shape=(None, None, 2))
    sizes = [OpenSize({"a": (1,)}, (2, 4), padded=True), OpenSize({"b": (1,)}, (3, 4), padded=True)]
    model = ax.container((a.tanh(), b.relu()))
    executable = Executable(model, ax.build(model)[0](), buckets=[2], open_sizes=sizes)
    assert [s.open_axes for s in executable.outputs] == [{1: 0}, {1: 1}]
    for first in (2, 4):
        for second in (3, 4):
            x, y = np.ones((2, first, 2), np.float32), -np.ones((2, second, 2), np.float32)
            found = executable({"a": x, "b": y})
            np.testing.assert_allclose(found["0"], np.tanh(x), rtol=1e-6)
            np.testing.assert_array_equal(found["1"], np.zeros_like(y))
    joined = ax.concatenate(a, b, axis=1)
    with pytest.raises(OptionError, match="output 'concatenate_0' axis 1"):
        Executable(joined, ax.build(joined)[0](), buckets=[1], open_sizes=sizes)


def test_rows_that_mix_at_any_size_end_batching():
    """The graph's own rules, and the probe in the smallest and the largest program."""
    x = ax.input("x", shape=(None, None))
    sizes = [OpenSize({"x": (1,)}, (2, 8))]
    assert "axis 0" in (mixing_reason(x.softmax(axis=0), sizes) or "")
    large = ax.layer(lambda x: x - x.mean(0) if x.shape[1] > 4 else x, x, name="large", row_wise=True)
    assert mixing_reason(large, sizes) is None
    for model in (large, ax.layer(lambda x: x - x.mean(0) if x.shape[1] < 4 else x, x, name="small", row_wise=True)):
        executable = Executable(model, ax.ModelState({}), buckets=[1, 2], open_sizes=sizes)
        assert "changed with its neighbours" in (executable.mixes_rows or "")


def test_a_declared_batch_and_scalars_keep_their_shapes():
    """Only open axes change with the program."""
    model = ax.add(ax.input("x", shape=(3, None)), ax.input("offset", shape=()))
    sizes = [OpenSize({"x": (1,)}, (2, 4))]
    executable = Executable(model, ax.ModelState({}), buckets=[1, 2], open_sizes=sizes, warm_up="zeros")
    assert executable.buckets == (3,)
    found = executable({"x": np.ones((3, 4), np.float32), "offset": np.float32(1)})
    np.testing.assert_array_equal(found["add_0"], np.full((3, 4), 2, np.float32))


@pytest.mark.parametrize(("warm_up", "calls"), [("none", 0), ("zeros", 2), ("random", 2)])
def test_warm_up_runs_every_program_once(warm_up, calls: int):
    """Before anything else is asked of it; the probe needs a batch of two."""
    seen: list[tuple[int, ...]] = []

    def note(x: jax.Array) -> jax.Array:
        jax.debug.callback(lambda value: seen.append(np.shape(value)), x)
        return x

    model = ax.layer(note, ax.input("x", shape=(None, None)), name="noted")
    sizes = [OpenSize({"x": (1,)}, (2, 4))]
    Executable(model, ax.ModelState({}), buckets=[1], open_sizes=sizes, warm_up=warm_up)
    jax.effects_barrier()
    assert sorted(seen) == [(1, 2), (1, 4)][:calls]
