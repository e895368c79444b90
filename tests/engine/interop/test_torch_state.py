"""PyTorch's parameters: every layer's layout, in and out, and what does not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import engine as ax
from engine.errors import StateError
from engine.interop.torch_state import from_torch, to_torch
from engine.model.state import flatten

RNG = np.random.default_rng(0)


def _cnn() -> ax.Model:
    x = ax.input("image", shape=(None, 8, 8, 3)).conv(4, kernel_size=3).batch_norm().relu()
    x = x.depthwise_conv(2, kernel_size=3).group_norm(2).flatten().dropout(rate=0.5)
    return x.dense(5).layer_norm().dense(2, use_bias=False)


def _draw(model: ax.Model) -> ax.ModelState:
    """A state in which every parameter and running statistic has values of its own."""
    state = ax.init(model, seed=1)

    def leaves(tree: Any) -> Any:
        drawn = {path: RNG.uniform(0.5, 1.5, leaf.shape).astype(np.float32) for path, leaf in flatten(tree)}
        return ax.ModelState.new(drawn).parameters if not drawn else _nested(drawn)

    running = {p: leaf for p, leaf in flatten(state.state) if not p.endswith("key")}
    return state.update(parameters=leaves(state.parameters), state=leaves(_nested(running)))


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    from engine.model.state import unflatten

    return unflatten(flat)


def test_a_state_goes_out_and_comes_back_unchanged():
    """Exactly, by the layers' names or by names of one's own."""
    model = _cnn()
    state = _draw(model)
    out = to_torch(model, state)
    assert out["conv_0.weight"].shape == (4, 3, 3, 3)
    assert out["dense_0.weight"].shape == (5, 128)
    assert out["batch_norm_0.running_var"].shape == (4,)
    for back in (
        from_torch(model, out),
        from_torch(model, out, names={key: key for key in dict.fromkeys(k.split(".")[0] for k in out)}),
    ):
        for tree in ("parameters", "state"):
            for (path, got), (_, expected) in zip(
                flatten(getattr(back, tree)), flatten(getattr(state, tree)), strict=True
            ):
                if not path.endswith("key"):
                    np.testing.assert_array_equal(got, expected, err_msg=path)


def test_everything_that_does_not_fit_is_in_one_error():
    """A missing key, one left over, another shape; counters of batches are ignored."""
    model = ax.input("x", shape=(None, 10)).dense(50, activation="relu").dense(3)
    given = {
        "fc1.weight": np.zeros((50, 11)),
        "fc1.bias": np.zeros(50),
        "fc1.num_batches_tracked": np.zeros(()),
        "fc2.weight": np.zeros((3, 50)),
        "fc2.gain": np.zeros(3),
    }
    with pytest.raises(StateError) as caught:
        from_torch(model, given)
    text = str(caught.value)
    assert "fc1.weight: expected shape (50, 10) for dense_0.kernel, got (50, 11)" in text
    assert "fc2.bias: expected the dense_1.bias of the model, got nothing" in text
    assert "fc2.gain: expected keys of the model's layers, got one that no layer takes" in text
    assert "num_batches" not in text


def test_layers_and_modules_must_pair():
    """Another number of modules, unknown layers, and a layer that PyTorch has in another form."""
    model = ax.input("x", shape=(None, 10)).dense(3)
    with pytest.raises(StateError, match="expected as many modules as layers, dense_0; else give names, got a, b"):
        from_torch(model, {"a.weight": np.zeros((3, 10)), "b.weight": np.zeros(3)})
    with pytest.raises(StateError, match="expected layers out of dense_0, got 'dense_1'"):
        to_torch(model, ax.init(model), names={"dense_0": "a", "dense_1": "b"})
    recurrent = ax.input("x", shape=(None, 4, 10)).lstm(3)[0]
    with pytest.raises(StateError, match=r"layer 'lstm_0': expected an op out of dense, .*, got lstm"):
        to_torch(recurrent, ax.init(recurrent))


def _torch_cnn(torch: Any) -> Any:
    nn = torch.nn

    class Flat(nn.Module):
        """Channels go last before flattening, as here."""

        def forward(self, x: Any) -> Any:
            return x.permute(0, 2, 3, 1).flatten(1)

    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 8, 3, groups=4),
        nn.GroupNorm(2, 8, eps=1e-3),
        Flat(),
        nn.Linear(128, 5),
        nn.LayerNorm(5, eps=1e-3),
        nn.Linear(5, 2, bias=False),
    )


def test_pytorch_computes_the_same():
    """The network above as a PyTorch module, with drawn parameters and running statistics, in evaluation mode."""
    torch = pytest.importorskip("torch")
    module = _torch_cnn(torch).eval()
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.from_numpy(RNG.uniform(0.5, 1.5, tuple(tensor.shape)).astype(np.float32)))
    model = _cnn()
    state = from_torch(model, module.state_dict())
    x = RNG.standard_normal((2, 8, 8, 3)).astype(np.float32)
    with torch.no_grad():
        expected = module(torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(ax.build(model)[1](state, x), expected, rtol=1e-3, atol=1e-3)
