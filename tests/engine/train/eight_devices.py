"""Trains on one and on eight simulated devices and prints what came out, as JSON; run by test_parallel in a process
of its own, which is told the number of devices by XLA_FLAGS. With a process number and a port it is one of two
processes that hold four of the eight devices each."""

from __future__ import annotations

import json
import sys

import jax
import numpy as np

import engine as ax
from engine.errors import DataError, OptionError
from engine.model.state import flatten
from engine.train import ArrayData, evaluator, trainer

PROCESS = sys.argv[1:]
LOSS = {"name": "categorical_cross_entropy", "sparse": True}


def _model() -> ax.Model:
    x = ax.input("x", shape=(None, 32)).dense(64, activation="relu").batch_norm().dropout(rate=0.2)
    return x.dense(8, activation="softmax")


def _data() -> ArrayData:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(72, 32)).astype(np.float32)
    return ArrayData({"x": x}, (x[:, :8].argmax(1)).astype(np.int32), batch_size=16, pad_remainder=True)


def _train(**where: object) -> dict[str, object]:
    data = _data()
    loop = trainer(_model(), LOSS, "adam", seed=3, **where).metric("accuracy", sparse=True).validate(data)
    final = loop.run(data, epochs=2)
    again = loop.run(data, epochs=3, resume=final)
    kernel = final.model_state.parameters["dense_0"]["kernel"]
    state = jax.device_get(again.model_state)
    return {
        "parameters": {path: leaf.tolist() for path, leaf in flatten({**state.parameters})},
        "metrics": again.values(),
        "devices": len(kernel.sharding.device_set),
        "part": kernel.addressable_shards[0].data.size / kernel.size,
    }


def _refusal(call: object) -> str:
    try:
        call()  # type: ignore[operator]
    except (DataError, OptionError) as error:
        return str(error)
    return ""


def of_two_processes() -> None:
    """Print what one of two processes has after training; sharded parameters are in both of them."""
    jax.distributed.initialize(f"127.0.0.1:{PROCESS[1]}", 2, int(PROCESS[0]))
    copied = _train(devices="all")
    sharded = trainer(_model(), LOSS, "adam", seed=3, devices="all", shard_params=True).validate(_data())
    values = sharded.run(_data(), epochs=3).values()
    sys.stdout.write("\n")
    json.dump({"copied": copied, "sharded": values, "local": jax.local_device_count()}, sys.stdout)


def main() -> None:
    """Print the results."""
    x = np.zeros((12, 32), np.float32)
    uneven = ArrayData({"x": x}, np.zeros(12, np.int32), batch_size=12)
    state = ax.build(_model())[0](seed=0)
    json.dump(
        {
            "one": _train(),
            "copied": _train(devices="all"),
            "sharded": _train(devices=8, shard_params=True),
            "some": _train(devices=jax.devices()[2:4]),
            "uneven": _refusal(lambda: trainer(_model(), LOSS, "adam", devices=8).run(uneven)),
            "too_many": _refusal(lambda: trainer(_model(), LOSS, "adam", devices=9)),
            "nowhere": _refusal(lambda: trainer(_model(), LOSS, "adam", shard_params=True)),
            "evaluated": [
                evaluator(_model(), devices=devices).metric("accuracy", sparse=True).run(_data(), state).values()
                for devices in (None, 8)
            ],
        },
        sys.stdout,
    )


if PROCESS:
    of_two_processes()
else:
    main()
