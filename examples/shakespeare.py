"""A character-level GPT: trained on Shakespeare's plays, then asked for some lines.

    python examples/shakespeare.py [--text FILE] [--minutes 20] [--out FOLDER]

Four pre-norm transformer blocks of width 128 with rotary positions (Radford et al. 2019; Su et al. 2021,
arXiv:2104.09864), 0.8 million parameters. Without the file of the plays any text of a hundred kilobytes will do.
"""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import engine as ax  # noqa: E402
from engine.functional.losses import categorical_cross_entropy  # noqa: E402
from engine.train import ArrayData, LoopState, Status, evaluator, trainer  # noqa: E402

PLAYS = ROOT.parent / "shared" / "data" / "tinyshakespeare" / "input.txt"
LOSS = {"name": "categorical_cross_entropy", "sparse": True, "from_logits": True}
WINDOW, WIDTH, HEADS, LAYERS, BATCH = 64, 128, 4, 4, 32
RATE, WARM_UP, STEPS = 2e-3, 200, 8_000


def gpt(characters: int, *, dropout: float = 0.1) -> ax.Model:
    """Tokens `[batch, time]` to logits `[batch, time, characters]`; no position sees a later one."""
    x = ax.input("tokens", shape=(None, None), dtype="s32").embedding(characters, WIDTH, name="embedding")
    for i in range(LAYERS):
        normal = x.layer_norm(name=f"attention_norm_{i}")
        attended = normal.multi_head_attention(HEADS, is_causal=True, rotary_base=10_000.0, name=f"attention_{i}")
        x = x.add(attended.dropout(rate=dropout))
        hidden = x.layer_norm(name=f"mlp_norm_{i}").dense(4 * WIDTH, activation="gelu", name=f"up_{i}")
        x = x.add(hidden.dense(WIDTH, name=f"down_{i}").dropout(rate=dropout))
    return x.layer_norm(name="last_norm").dense(characters, name="logits")


def windows(tokens: np.ndarray, step: int) -> ArrayData:
    """Windows of the text that begin every `step` characters, each with the characters that follow."""
    starts = np.arange(0, len(tokens) - WINDOW - 1, step)
    view = np.lib.stride_tricks.sliding_window_view(tokens, WINDOW + 1)[starts]
    inputs, targets = np.ascontiguousarray(view[:, :-1]), np.ascontiguousarray(view[:, 1:])
    return ArrayData({"tokens": inputs}, targets, batch_size=BATCH, drop_remainder=True)


def sample(model: ax.Model, state: ax.ModelState, alphabet: str, prompt: str, length: int, *, seed: int = 0) -> str:
    """`prompt` and `length` characters drawn after it, at temperature 0.8; only the last window is looked at."""
    predict = ax.build(model)[1]
    index = {character: i for i, character in enumerate(alphabet)}
    seen = [index[character] for character in prompt]

    @jax.jit
    def following(tokens: jax.Array, last: jax.Array, key: jax.Array) -> jax.Array:
        logits = predict(state, tokens[None])[0, last]
        return jax.random.categorical(key, logits / 0.8)

    key = jax.random.key(seed)
    for i in range(length):
        window = seen[-WINDOW:]
        padded = np.zeros(WINDOW, np.int32)
        padded[: len(window)] = window
        seen.append(int(following(jnp.asarray(padded), len(window) - 1, jax.random.fold_in(key, i))))
    return "".join(alphabet[i] for i in seen)


def main() -> int:
    """Train for so many minutes, validate, sample; 0 when the validation loss is at most 1.75 nats per character."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, default=PLAYS)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--out", type=Path, default=Path("shakespeare-out"))
    options = parser.parse_args()
    text = options.text.read_text(encoding="utf-8")
    alphabet = "".join(sorted(set(text)))
    index = {character: i for i, character in enumerate(alphabet)}
    tokens = np.array([index[character] for character in text], np.int32)
    split = int(len(tokens) * 0.9)
    training, validation = windows(tokens[:split], 4), windows(tokens[split:], WINDOW)
    model = gpt(len(alphabet))
    warm_up = {
        "name": "polynomial_decay",
        "init_value": 0.0,
        "end_value": RATE,
        "power": 1,
        "transition_steps": WARM_UP,
    }
    decay = {"name": "cosine_decay", "init_value": RATE, "decay_steps": STEPS - WARM_UP, "alpha": 0.05}
    schedule = {"name": "join", "schedules": [warm_up, decay], "boundaries": [WARM_UP]}
    clip = {"name": "clip_by_global_norm", "max_norm": 1.0}
    optimizer = {"name": "chain", "transforms": [clip, {"name": "adamw", "learning_rate": schedule}]}
    end = time.monotonic() + 60 * options.minutes

    def in_time(state: LoopState) -> Status | None:
        return Status.HALT_LOOP if time.monotonic() > end or state.total_iterations >= STEPS else None

    loop = (
        trainer(model, LOSS, optimizer)
        .validate(validation, event="iteration_completed", every=500)
        .plot(options.out / "curve.png", event="iteration_completed", every=500)
        .progress()
        .handle_event("iteration_completed", in_time, every=50)
    )
    final = loop.run(training, epochs=-(-STEPS // len(training)))
    loss = partial(categorical_cross_entropy, sparse=True, from_logits=True, reduction="mean")
    tested = evaluator(model).metric(loss, "loss").run(validation, final.model_state).values()
    ax.bundle.write(options.out / "shakespeare.axon", model, final.model_state, lineage={"alphabet": alphabet})
    print(sample(model, final.model_state, alphabet, "ROMEO:", 500))
    print(f"validation loss {tested['loss']:.3f} nats per character after {final.total_iterations} steps")
    return 0 if tested["loss"] <= 1.75 else 1


if __name__ == "__main__":
    sys.exit(main())
