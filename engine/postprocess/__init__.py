"""What is done to a model's outputs before a caller sees them, as data that travels with the model."""

from engine.postprocess.specs import OutputSteps, Postprocess, from_json, largest, to_json

__all__ = ["OutputSteps", "Postprocess", "from_json", "largest", "to_json"]
