"""What is done to inputs before a model sees them, as data that travels with the model.

A step is a frozen value with a JSON form; `Preprocess` holds the steps of every input by name. Serving applies them
with NumPy alone, or they become part of the graph (`prepend`), where nothing new is needed to serve them.
"""

from engine.preprocess.asked import apply_to_column, check_asked, column_shape, fit_asked
from engine.preprocess.one_hot import OneHot
from engine.preprocess.prepend import prepend
from engine.preprocess.specs import Preprocess, from_json, to_json
from engine.preprocess.standardize import Moments, Standardize, fit_standardize
from engine.preprocess.text import Vocabulary, basic_english, build_vocabulary

__all__ = [
    "Moments",
    "OneHot",
    "Preprocess",
    "Standardize",
    "Vocabulary",
    "apply_to_column",
    "basic_english",
    "build_vocabulary",
    "check_asked",
    "column_shape",
    "fit_asked",
    "fit_standardize",
    "from_json",
    "prepend",
    "to_json",
]
