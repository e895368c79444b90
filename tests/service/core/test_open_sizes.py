"""Open sizes: validated, padded with what the model declares, masked, and cut back to each request's own size."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np
import pytest

from service.core.batch_buffers import ALIGNMENT
from service.core.errors import ExecutionFailed, InvalidRequest
from service.core.serving import ServedModel
from service.core.types import ModelSpec, OpenSize, TensorSpec
from tests.service.core.open_models import image_spec, read_image, read_text, text, text_spec
from tests.service.core.served import WAIT_S, HeldModel, serve


@asynccontextmanager
async def served(model: HeldModel, **config: int) -> AsyncIterator[ServedModel]:
    """`model` as a served version, closed at the end."""
    made = serve(model, **config)
    try:
        yield made
    finally:
        model.gate.set()
        assert await made.close(WAIT_S)


async def test_request_is_padded_to_the_next_size_with_the_pad_values_and_a_mask() -> None:
    """Real values lie at the front, pad values behind, the mask tells them apart, and further rows are zero."""
    model = HeldModel(text_spec(), read_text)
    async with served(model) as made:
        answer = await made.infer(text([1, 2, 3], [4, 5, 6], [7, 8, 9]))
    (batch,) = model.batches
    np.testing.assert_array_equal(batch["tokens"], [[1, 2, 3, 7], [4, 5, 6, 7], [7, 8, 9, 7], [0, 0, 0, 0]])
    np.testing.assert_array_equal(batch["kinds"], [[1, 2, 0, -1], [1, 2, 0, -1], [1, 2, 0, -1], [0, 0, 0, 0]])
    np.testing.assert_array_equal(batch["mask"], [[1, 1, 1, 0]] * 3 + [[0, 0, 0, 0]])
    assert batch["mask"].dtype == np.float32
    np.testing.assert_array_equal(answer["doubled"], [[3, 6, 6], [9, 12, 12], [15, 18, 18]])
    np.testing.assert_array_equal(answer["total"], [6, 15, 24])
    assert answer["doubled"].flags.c_contiguous


async def test_request_of_a_compiled_size_is_not_padded() -> None:
    """A size that is compiled is computed as it is, with a mask of ones."""
    model = HeldModel(text_spec(), read_text)
    async with served(model) as made:
        answer = await made.infer(text(list(range(8))))
    np.testing.assert_array_equal(model.batches[0]["mask"], np.ones((1, 8)))
    np.testing.assert_array_equal(answer["doubled"], read_text(text(list(range(8))))["doubled"])


async def test_requests_of_different_sizes_in_one_batch_get_exactly_theirs() -> None:
    """Each caller's answer has its own length, whatever its neighbour's is, also where nothing is real."""
    model = HeldModel(text_spec(), read_text, held=True)
    async with served(model) as made:
        first = asyncio.create_task(made.infer(text([1])))
        await asyncio.to_thread(model.started.acquire, timeout=WAIT_S)
        sent = [text([1, 2, 3]), text([5, 6]), text([]), text([9, 9, 9, 9])]
        waiting = [asyncio.create_task(made.infer(inputs)) for inputs in sent]
        await asyncio.sleep(0)
        model.gate.set()
        await first
        answers = [await each for each in waiting]
    assert len(model.batches) == 2
    for inputs, answer in zip(sent, answers, strict=True):
        np.testing.assert_array_equal(answer["doubled"], read_text(inputs)["doubled"])
        np.testing.assert_array_equal(answer["total"], read_text(inputs)["total"])


async def test_smaller_request_after_a_larger_one_sees_none_of_it() -> None:
    """Buffers are shared between keys, yet nothing of an earlier batch is left behind the values or in the mask."""
    model = HeldModel(text_spec(), read_text)
    async with served(model) as made:
        await made.infer(text(*[[900 + i for i in range(16)]] * 4))
        await made.infer(text([1, 2, 3, 4, 5], [6, 7, 8, 9, 10], [2, 2, 2, 2, 2]))
    batch = model.batches[1]
    pads, nothing = [7, 7, 7], [0] * 8
    np.testing.assert_array_equal(batch["tokens"][:2], [[1, 2, 3, 4, 5, *pads], [6, 7, 8, 9, 10, *pads]])
    np.testing.assert_array_equal(batch["tokens"][3], nothing)
    np.testing.assert_array_equal(batch["mask"], [*[[1] * 5 + [0] * 3] * 3, nothing])


async def test_all_keys_together_take_the_memory_of_the_largest() -> None:
    """Every key starts at the same aligned address, and no number of keys takes more memory."""
    model = HeldModel(text_spec(), read_text)
    async with served(model) as made:
        before = made.buffer_bytes
        for length in (1, 5, 16, 9, 3):
            await made.infer(text(list(range(length))))
        assert made.buffer_bytes == before == 4 * 16 * (8 + 4 + 4)
    assert len(set(model.addresses)) == 3
    assert all(address % ALIGNMENT == 0 for address in model.addresses)


@pytest.mark.parametrize(
    ("spec", "inputs", "message"),
    [
        (
            text_spec(),
            {"tokens": np.zeros((1, 5), np.int64), "kinds": np.zeros((1, 7), np.int32)},
            "one size for axis 1 of input 'tokens' and axis 1 of input 'kinds', got 5 and 7",
        ),
        (text_spec(), text([0] * 17), "input 'tokens': expected axis 1 of at most 16, got 17"),
        (text_spec(padded=False), text([0] * 5), "input 'tokens': expected axis 1 to be one of 4, 8, 16, got 5"),
        (text_spec(padded=False), text([0] * 17), "expected axis 1 to be one of 4, 8, 16, got 17"),
        (text_spec(), {**text([0] * 4), "mask": np.ones((1, 4), np.float32)}, "'mask' is filled by the server"),
        (text_spec(), {"tokens": np.zeros((1, 5, 1), np.int64), "kinds": np.zeros((1, 5), np.int32)}, "shape"),
        (text_spec(), text(*[[1, 2]] * 5), "at most 4 rows in one request, got 5"),
        (text_spec(max_batch_size=0), text([0] * 17), "expected axis 1 of at most 16, got 17"),
        (image_spec(), {"image": np.zeros((1, 2, 6, 2), np.int32)}, "'image': expected axis 2 of at most 5, got 6"),
        (image_spec(), {"image": np.zeros((1, 2, 3, 3), np.int32)}, r"expected shape \[-1, -1, -1, 2\]"),
    ],
)
async def test_wrong_sizes_are_refused(spec: ModelSpec, inputs: Mapping[str, np.ndarray], message: str) -> None:
    """Axes that disagree, sizes that are not compiled, and masks from clients: told with names, axes and sizes."""
    model = HeldModel(spec)
    async with served(model) as made:
        with pytest.raises(InvalidRequest, match=message):
            await made.infer(inputs)
        assert made.statistics.failures == {"invalid": 1}
    assert not model.batches


async def test_model_without_pad_values_answers_the_compiled_sizes() -> None:
    """Requests of exactly a compiled size need no pad values."""
    model = HeldModel(text_spec(padded=False, mask=False), read_text)
    async with served(model) as made:
        for length in (4, 16, 8):
            inputs = text(list(range(length)))
            np.testing.assert_array_equal((await made.infer(inputs))["doubled"], read_text(inputs)["doubled"])
    assert [batch["tokens"].shape for batch in model.batches] == [(1, 4), (1, 16), (1, 8)]


async def test_two_open_sizes_are_padded_in_the_corner_and_cut_where_the_output_has_them() -> None:
    """Two sizes of one input are padded independently; an output may have them on other axes."""
    model = HeldModel(image_spec(), read_image)
    image = np.arange(1, 25, dtype=np.int32).reshape(1, 3, 4, 2)
    async with served(model) as made:
        await made.infer({"image": np.full((4, 4, 5, 2), 99, np.int32)})
        answer = await made.infer({"image": image})
    padded = np.zeros((1, 4, 5, 2), np.int32)
    padded[:, :3, :4] = image
    np.testing.assert_array_equal(model.batches[1]["image"], padded)
    np.testing.assert_array_equal(answer["turned"], image.swapaxes(1, 2))
    assert answer["sum"].tolist() == [int(image.sum())]


async def test_model_that_is_not_batched_pads_too() -> None:
    """Each request of its own, whatever its rows, is padded in memory of its own, masked and cut."""
    model = HeldModel(text_spec(max_batch_size=0), read_text)
    async with served(model) as made:
        assert made.buffer_bytes == 0
        sent = [text([1, 2, 3]), text(*[[4, 5, 6, 7, 8]] * 7), text([1, 1, 1, 1])]
        for inputs in sent:
            answer = await made.infer(inputs)
            np.testing.assert_array_equal(answer["doubled"], read_text(inputs)["doubled"])
            np.testing.assert_array_equal(answer["total"], read_text(inputs)["total"])
    assert [batch["mask"].shape for batch in model.batches] == [(1, 4), (7, 8), (1, 4)]
    assert all(address % ALIGNMENT == 0 for address in model.addresses)


async def test_rows_of_a_model_that_is_not_batched_are_checked_before_they_are_padded() -> None:
    """As many rows as are compiled, the same of every input; else padding would make much of little."""
    declared = replace(text_spec(max_batch_size=0), buckets=(1, 2))
    model = HeldModel(declared, read_text)
    async with served(model) as version:
        assert (await version.infer(text([1], [2])))["total"].tolist() == [1, 2]
        with pytest.raises(InvalidRequest, match="expected a batch size out of 1, 2, got 3"):
            await version.infer(text([1], [2], [3]))
        with pytest.raises(InvalidRequest, match="expected one leading size for all inputs"):
            await version.infer({"tokens": np.zeros((2, 4), np.int64), "kinds": np.zeros((1, 4), np.int32)})
        assert len(model.batches) == 1


async def test_inputs_without_an_open_size_are_left_as_they_are() -> None:
    """A model that is not batched may take a number beside a text: only the text is padded."""
    length = OpenSize(axes={"tokens": (1,)}, sizes=(4,), pad_values={"tokens": 7}, mask="mask")
    spec = ModelSpec(
        inputs=(TensorSpec("scale", "INT64", ()), TensorSpec("tokens", "INT64", (3, -1))),
        outputs=(TensorSpec("scaled", "INT64", (3, -1)),),
        max_batch_size=0,
        buckets=(3,),
        open_sizes=(length,),
        masks=(TensorSpec("mask", "BOOL", (3, -1)),),
        open_axes={"scaled": {1: 0}},
    )
    model = HeldModel(spec, lambda inputs: {"scaled": inputs["scale"] * inputs["tokens"] * inputs["mask"]})
    async with served(model) as made:
        tokens = np.array([[1, 2], [3, 4], [5, 6]])
        answer = await made.infer({"scale": np.array(3), "tokens": tokens})
    np.testing.assert_array_equal(answer["scaled"], 3 * tokens)
    np.testing.assert_array_equal(model.batches[0]["mask"], [[True, True, False, False]] * 3)


async def test_answer_survives_the_next_batch_when_the_model_returns_a_padded_input() -> None:
    """An output in the buffers is copied, whatever the key and the cut."""
    model = HeldModel(text_spec(), lambda inputs: {"doubled": inputs["tokens"], "mask": inputs["mask"]})
    async with served(model) as made:
        first = await made.infer(text([1, 2, 3, 4]))
        second = await made.infer(text([5, 6]))
        await made.infer(text([9] * 16))
    assert first["doubled"].tolist() == [[1, 2, 3, 4]]
    assert second["doubled"].tolist() == [[5, 6]]
    assert first["mask"].tolist() == [[1, 1, 1, 1]]


@pytest.mark.parametrize("max_batch_size", [4, 0])
async def test_output_of_another_size_than_declared_is_a_failure(max_batch_size: int) -> None:
    """A model that loses a position must not have its answers cut at the wrong place."""
    spec = text_spec(max_batch_size=max_batch_size)
    model = HeldModel(spec, lambda inputs: {"doubled": inputs["tokens"][:, 1:]})
    async with served(model) as made:
        with pytest.raises(ExecutionFailed, match="expected size 4 on axis 1, got shape"):
            await made.infer(text([1, 2]))


async def test_texts_are_padded_with_texts() -> None:
    """BYTES inputs have a pad value of bytes; rows beyond the batch are empty."""
    words = OpenSize(axes={"words": (1,)}, sizes=(3,), pad_values={"words": b"<pad>"})
    tensor = TensorSpec("words", "BYTES", (-1, -1))
    spec = ModelSpec((tensor,), (tensor,), 2, (2,), open_sizes=(words,), open_axes={"words": {1: 0}})
    model = HeldModel(spec, lambda inputs: {"words": inputs["words"]})
    async with served(model) as made:
        answer = await made.infer({"words": np.array([[b"a", b"b"]], object)})
    assert model.batches[0]["words"].tolist() == [[b"a", b"b", b"<pad>"], [b"", b"", b""]]
    assert answer["words"].tolist() == [[b"a", b"b"]]
