"""Field numbers of the messages against the protocol's: what clients' own generated code relies on."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor

from service.api.grpc.generated import inference_pb2 as pb

# As the protocol's documents have them; `*` marks repeated fields. ModelConfig is a part of the original's.
NUMBERS = """
ServerLiveResponse: live=1
ServerReadyResponse: ready=1
ModelReadyRequest: name=1 version=2
ModelReadyResponse: ready=1
ServerMetadataResponse: name=1 version=2 extensions=3*
ModelMetadataRequest: name=1 version=2
ModelMetadataResponse: name=1 versions=2* platform=3 inputs=4* outputs=5*
ModelMetadataResponse.TensorMetadata: name=1 datatype=2 shape=3*
ModelInferRequest: model_name=1 model_version=2 id=3 parameters=4* inputs=5* outputs=6* raw_input_contents=7*
ModelInferRequest.InferInputTensor: name=1 datatype=2 shape=3* parameters=4* contents=5
ModelInferRequest.InferRequestedOutputTensor: name=1 parameters=2*
ModelInferResponse: model_name=1 model_version=2 id=3 parameters=4* outputs=5* raw_output_contents=6*
ModelInferResponse.InferOutputTensor: name=1 datatype=2 shape=3* parameters=4* contents=5
ModelStreamInferResponse: error_message=1 infer_response=2
InferParameter: bool_param=1 int64_param=2 string_param=3 double_param=4 uint64_param=5
InferTensorContents: bool_contents=1* int_contents=2* int64_contents=3* uint_contents=4* uint64_contents=5*
    fp32_contents=6* fp64_contents=7* bytes_contents=8*
ModelConfigRequest: name=1 version=2
ModelConfigResponse: config=1
ModelConfig: name=1 platform=2 max_batch_size=4 input=5* output=6* instance_group=7* dynamic_batching=11
    parameters=14* backend=17 model_transaction_policy=19 response_cache=24
ModelParameter: string_value=1
ModelInput: name=1 data_type=2 dims=4* optional=8
ModelOutput: name=1 data_type=2 dims=3*
ModelInstanceGroup: name=1 count=2 gpus=3* kind=4
ModelDynamicBatching: preferred_batch_size=1* max_queue_delay_microseconds=2 preserve_ordering=3 priority_levels=4
    default_priority_level=5 default_queue_policy=6
ModelQueuePolicy: timeout_action=1 default_timeout_microseconds=2 allow_timeout_override=3 max_queue_size=4
ModelTransactionPolicy: decoupled=1
ModelResponseCache: enable=1
ModelStatisticsRequest: name=1 version=2
ModelStatisticsResponse: model_stats=1*
ModelStatistics: name=1 version=2 last_inference=3 inference_count=4 execution_count=5 inference_stats=6 batch_stats=7*
    memory_usage=8* response_stats=9*
InferStatistics: success=1 fail=2 queue=3 compute_input=4 compute_infer=5 compute_output=6 cache_hit=7 cache_miss=8
InferBatchStatistics: batch_size=1 compute_input=2 compute_infer=3 compute_output=4
StatisticDuration: count=1 ns=2
MemoryUsage: type=1 id=2 byte_size=3
InferResponseStatistics: compute_infer=1 compute_output=2 success=3 fail=4 empty_response=5 cancel=6
ModelRepositoryParameter: bool_param=1 int64_param=2 string_param=3 bytes_param=4
RepositoryIndexRequest: repository_name=1 ready=2
RepositoryIndexResponse: models=1*
RepositoryIndexResponse.ModelIndex: name=1 version=2 state=3 reason=4
RepositoryModelLoadRequest: repository_name=1 model_name=2 parameters=3*
RepositoryModelLoadResponse: model_name=1 isLoaded=2
RepositoryModelUnloadRequest: repository_name=1 model_name=2 parameters=3*
RepositoryModelUnloadResponse: model_name=1 isUnloaded=2
TraceSettingRequest: settings=1* model_name=2
TraceSettingRequest.SettingValue: value=1*
LogSettingsRequest: settings=1*
LogSettingsRequest.SettingValue: bool_param=1 uint32_param=2 string_param=3
"""
MESSAGES = [line.split(":") for line in NUMBERS.strip().replace("\n    ", " ").splitlines()]


@pytest.mark.parametrize(("name", "fields"), MESSAGES, ids=[name for name, _ in MESSAGES])
def test_numbers_are_the_protocols(name: str, fields: str) -> None:
    """These fields, with these numbers, and no other."""
    message: Any = pb
    for part in name.split("."):
        message = getattr(message, part)
    found: Descriptor = message.DESCRIPTOR
    assert {f"{each.name}={each.number}{'*' * each.is_repeated}" for each in found.fields} == set(fields.split())


def test_datatypes_are_the_protocols() -> None:
    """The configuration's enumeration."""
    names = ("INVALID", "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64")
    names += ("FP16", "FP32", "FP64", "STRING", "BF16")
    assert pb.DataType.items() == [(f"TYPE_{name}", number) for number, name in enumerate(names)]
