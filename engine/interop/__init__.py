"""Models and parameters of other libraries, in and out. Nothing here imports those libraries."""
