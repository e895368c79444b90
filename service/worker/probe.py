"""Initialises the device as a trainer would and prints what it is: `python -m service.worker.probe`."""

from __future__ import annotations

if __name__ == "__main__":
    import sys

    import jax

    device = jax.devices()[0]
    (jax.numpy.zeros(1) + 1).block_until_ready()
    sys.stdout.write(f"{device.platform}: {device.device_kind}\n")
