"""Model state: trees, frozen marks, immutability."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import engine as ax
from engine.errors import OptionError, ShapeError, StateError
from engine.model.state import Tree, flatten, size_text


@pytest.fixture
def state() -> ax.ModelState:
    """A dense layer and a batch_norm layer."""
    return ax.build(ax.input("x", shape=(None, 3)).dense(2).batch_norm())[0]()


def test_trainable_leaves_out_frozen_parameters(state: ax.ModelState):
    """Gradients and optimizers never see a frozen leaf."""
    frozen = state.freeze(lambda path: path.endswith("kernel"))
    assert set(frozen.trainable()["dense_0"]) == {"bias"}
    changed = frozen.with_trainable(jax.tree.map(lambda leaf: leaf + 1, frozen.trainable()))
    np.testing.assert_array_equal(changed.parameters["dense_0"]["kernel"], state.parameters["dense_0"]["kernel"])
    np.testing.assert_array_equal(changed.parameters["dense_0"]["bias"], state.parameters["dense_0"]["bias"] + 1)


def test_freezing_adds_and_unfreezing_removes(state: ax.ModelState):
    """A second freeze keeps the first."""
    both = state.freeze(lambda p: p == "dense_0.kernel").freeze(lambda p: p == "dense_0.bias")
    assert both.frozen == {"dense_0.kernel", "dense_0.bias"}
    assert both.unfreeze(lambda p: p == "dense_0.bias").frozen == {"dense_0.kernel"}
    assert state.frozen == frozenset()


def test_frozen_state_is_not_updated(state: ax.ModelState):
    """Frozen running statistics stay."""
    frozen = state.freeze(lambda path: path == "batch_norm_0.mean")
    update = {"batch_norm_0": {"mean": np.ones(2), "var": np.full(2, 5.0)}}
    result = frozen.update(state=update)
    np.testing.assert_array_equal(result.state["batch_norm_0"]["mean"], np.zeros(2))
    np.testing.assert_array_equal(result.state["batch_norm_0"]["var"], np.full(2, 5.0))


def test_unknown_paths_are_refused(state: ax.ModelState):
    """A typo in a path is an error that lists the paths."""
    with pytest.raises(StateError, match=r"expected a path out of .*dense_0.kernel, got 'dense_9.kernel'"):
        state.update(parameters={"dense_9": {"kernel": np.zeros(1)}})


def test_it_is_a_pytree_with_static_marks(state: ax.ModelState):
    """Leaves are arrays; the frozen set is part of the structure."""
    frozen = state.freeze()
    mapped = jax.tree.map(lambda leaf: leaf * 2, frozen)
    assert mapped.frozen == frozen.frozen
    assert jax.tree.structure(state) != jax.tree.structure(frozen)


def test_parts_of_a_state_are_what_is_frozen_and_what_is_not(state: ax.ModelState):
    """Parameters and layer state, each divided by the frozen marks."""
    frozen = state.freeze(lambda path: path in ("dense_0.kernel", "batch_norm_0.mean"))
    assert [path for path, _ in flatten(frozen.frozen_parameters())] == ["dense_0.kernel"]
    assert [path for path, _ in flatten(frozen.frozen_state())] == ["batch_norm_0.mean"]
    assert [path for path, _ in flatten(frozen.trainable_state())] == ["batch_norm_0.var"]
    assert frozen.unfreeze().frozen_parameters() == {}


def test_the_text_counts_parameters_and_memory():
    """The 109,642 parameters of the seeds' network: 4 bytes each, the batch_norm statistics and a dropout key apart."""
    model = ax.input("x", shape=(None, 784)).dense(128, activation="relu").batch_norm().dropout(rate=0.5)
    state = model.dense(64, activation="relu").dense(10, activation="softmax").init()
    expected = """ModelState(
  Parameters: 109,642 (438.6 kB)
  Trainable Parameters: 109,642 (438.6 kB)
  Trainable State: 258 (1.0 kB)
)"""
    assert state.inspect() == expected
    assert repr(state) == expected
    head = state.freeze(lambda path: not path.startswith("dense_2"))
    assert "Trainable Parameters: 650 (2.6 kB)" in head.inspect()
    assert "Trainable State: 0 (0 B)" in head.inspect()
    assert (size_text(999), size_text(1000), size_text(2_500_000)) == ("999 B", "1.0 kB", "2.5 MB")


def test_new_and_empty_make_states_of_parameters_alone():
    """Nested dicts become parameters; names with dots and leaves that are no arrays are refused."""
    state = ax.ModelState.new({"a": {"kernel": [[1.0, 2.0]]}})
    assert state.parameters["a"]["kernel"].shape == (1, 2)
    assert ax.ModelState.new(state) is state
    assert ax.ModelState.empty().paths() == []
    with pytest.raises(StateError, match=r"names without dots in 'a', got 'b\.c'"):
        ax.ModelState.new({"a": {"b.c": np.zeros(1)}})
    with pytest.raises(StateError, match=r"expected an array at 'a\.b', got str"):
        ax.ModelState.new({"a": {"b": "text"}})


def test_merging_keeps_the_structure_of_the_left(state: ax.ModelState):
    """The function gets path, left and right where both have a leaf; the rest of the left stays."""
    right = {"dense_0": {"bias": np.full(2, 5.0)}, "other": {"kernel": np.zeros(1)}}
    merged = state.freeze().merge(right, lambda path, a, b: (a + b) * len(path))
    np.testing.assert_array_equal(merged.parameters["dense_0"]["bias"], np.full(2, 5.0 * len("dense_0.bias")))
    assert merged.parameters["dense_0"]["kernel"] is state.parameters["dense_0"]["kernel"]
    assert merged.paths() == state.paths()
    assert merged.frozen == set(state.paths())
    mean = state.merge(state, lambda path, a, b: (a + b) / 2)
    np.testing.assert_array_equal(mean.state["batch_norm_0"]["var"], state.state["batch_norm_0"]["var"])


@pytest.fixture
def language_model() -> ax.Model:
    """Tokens to vectors of 3, and back to scores of the 5 tokens."""
    tokens = ax.input("t", shape=(None, 4), dtype="s32")
    return tokens.embedding(5, 3, name="emb").dense(5, use_bias=False, name="head")


def test_a_tied_parameter_is_that_of_its_source(language_model: ax.Model):
    """The head is the transposed embedding: one trainable leaf, whose gradient is the sum of both uses'."""
    state = language_model.init(seed=1).tie("head.kernel", "emb.kernel", "transpose")
    assert state.paths() == ["emb.kernel"]
    assert "Tied: head.kernel = transpose of emb.kernel" in repr(state)
    tokens = np.array([[0, 1, 2, 2]], np.int32)
    table = np.asarray(state.parameters["emb"]["kernel"])
    np.testing.assert_allclose(language_model.apply(state, tokens), table[tokens] @ table.T, rtol=1e-6)

    def loss(parameters: Tree, base: ax.ModelState) -> jax.Array:
        return (language_model.apply(base.with_trainable(parameters), tokens) ** 2).sum()

    tied = jax.grad(loss)(state.trainable(), state)
    own = state.untie("head.kernel")
    apart = jax.grad(loss)(own.trainable(), own)
    np.testing.assert_allclose(
        tied["emb"]["kernel"], apart["emb"]["kernel"] + apart["head"]["kernel"].T, rtol=1e-4, atol=1e-6
    )
    assert own.ties == ()
    assert sorted(own.paths()) == ["emb.kernel", "head.kernel"]
    mapped = jax.tree.map(lambda leaf: leaf * 2, state)
    assert mapped.ties == state.ties
    assert state.freeze().trainable() == {}


def test_ties_that_cannot_be_are_refused():
    """Unknown paths, layer state, itself, chains, cycles, other shapes and transforms."""
    x = ax.input("x", shape=(None, 3)).dense(3, name="a").dense(3, name="b").dense(2, name="c").batch_norm()
    state = x.init()
    for destination, source, message in (
        ("a.kernle", "b.kernel", r"such as a\.kernel.*got 'a\.kernle'"),
        ("a.kernel", "batch_norm_0.mean", r"expected the path of a parameter"),
        ("a.kernel", "a.kernel", r"expected two parameters, got 'a\.kernel' twice"),
    ):
        with pytest.raises(StateError, match=message):
            state.tie(destination, source)
    with pytest.raises(ShapeError, match=r"tie of 'c\.kernel' to 'a\.kernel': expected shape \(3, 2\), got \(3, 3\)"):
        state.tie("c.kernel", "a.kernel")
    with pytest.raises(OptionError, match="expected transform None or 'transpose', got 'flip'"):
        state.tie("a.kernel", "b.kernel", "flip")  # type: ignore[arg-type]
    tied = state.tie("a.kernel", "b.kernel")
    with pytest.raises(StateError, match=r"'a\.kernel' is tied to 'b\.kernel' already; chains"):
        tied.tie("c.kernel", "a.kernel")
    with pytest.raises(StateError, match=r"'a\.kernel' is tied to 'b\.kernel', which cannot be tied itself"):
        tied.tie("b.kernel", "c.kernel")
    with pytest.raises(StateError, match="already"):
        tied.tie("a.kernel", "b.kernel")
    with pytest.raises(StateError, match=r"untie: expected a tied path out of a\.kernel, got 'b\.kernel'"):
        tied.untie("b.kernel")
    with pytest.raises(StateError, match=r"'a\.kernel' is tied to 'b\.kernel'; change that"):
        tied.update(parameters={"a": {"kernel": np.zeros((3, 3))}})


def test_training_respects_ties_and_frozen_marks(language_model: ax.Model):
    """A tied head learns with its embedding; the optimizer keeps two moments of that one leaf, none of frozen ones."""
    model = ax.namespace("tail", language_model, lambda x: x.bias())
    state = model.init(seed=1).tie("head.kernel", "emb.kernel", "transpose").freeze(lambda path: "bias" in path)
    assert state.ties
    assert state.frozen == {"tail.bias_0.bias"}
    tokens = np.array([[0, 1, 2, 3]] * 8, np.int32)
    data = [({"t": tokens}, tokens)] * 30
    loss = {"name": "categorical_cross_entropy", "sparse": True, "from_logits": True}
    loop = ax.train.trainer(model, loss, {"name": "adam", "learning_rate": 0.1})
    final = loop.run(data, state, epochs=1)
    trained = final.model_state
    assert (trained.ties, trained.frozen) == (state.ties, state.frozen)
    assert trained.paths() == ["emb.kernel", "tail.bias_0.bias"]
    moments = [leaf for leaf in jax.tree.leaves(final.step_state.optimizer_state) if leaf.shape]
    assert [leaf.shape for leaf in moments] == [(5, 3), (5, 3)]
    np.testing.assert_array_equal(trained.parameters["tail"]["bias_0"]["bias"], np.zeros(5))
    assert (np.asarray(model.apply(trained, tokens[:1])).argmax(-1) == tokens[:1]).all()


def test_a_state_of_anything_prints():
    """Trees made of a state, such as its shapes or names, have a text too."""
    state = ax.init(ax.input("x", shape=(None, 2)).dense(1))
    for function in (np.shape, str, lambda leaf: None):
        assert "Parameters: " in repr(jax.tree.map(function, state))
