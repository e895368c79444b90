"""The version of the engine and of the distribution."""

VERSION = "0.1.0"
