"""What Triton's python backend runs: the rows of a batch's requests in one call."""

from __future__ import annotations

import json
from typing import Any

import forward
import numpy as np
import triton_python_backend_utils as triton


class TritonPythonModel:
    """One model; the server makes the calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load what the configuration names."""
        parameters = json.loads(args["model_config"])["parameters"]
        load = {"onnxruntime": forward.onnxruntime, "jax": forward.jax}[parameters["runtime"]["string_value"]]
        self._run = load(parameters["file"]["string_value"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """Join, compute, split."""
        inputs = [triton.get_input_tensor_by_name(request, "image").as_numpy() for request in requests]
        outputs = self._run(inputs[0] if len(inputs) == 1 else np.concatenate(inputs))
        replies, start = [], 0
        for rows in map(len, inputs):
            tensor = triton.Tensor("softmax", outputs[start : start + rows])
            replies.append(triton.InferenceResponse([tensor]))
            start += rows
        return replies
