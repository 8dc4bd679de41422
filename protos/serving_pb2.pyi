from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Task(_message.Message):
    __slots__ = ("name", "version", "class_names", "latency_ms", "utility", "accuracy", "preprocess", "output", "trunk", "image_size")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CLASS_NAMES_FIELD_NUMBER: _ClassVar[int]
    LATENCY_MS_FIELD_NUMBER: _ClassVar[int]
    UTILITY_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    PREPROCESS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    TRUNK_FIELD_NUMBER: _ClassVar[int]
    IMAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    class_names: _containers.RepeatedScalarFieldContainer[str]
    latency_ms: float
    utility: float
    accuracy: float
    preprocess: Preprocess
    output: str
    trunk: str
    image_size: int
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., class_names: _Optional[_Iterable[str]] = ..., latency_ms: _Optional[float] = ..., utility: _Optional[float] = ..., accuracy: _Optional[float] = ..., preprocess: _Optional[_Union[Preprocess, _Mapping]] = ..., output: _Optional[str] = ..., trunk: _Optional[str] = ..., image_size: _Optional[int] = ...) -> None: ...

class Preprocess(_message.Message):
    __slots__ = ("mean", "std", "interpolation", "crop_pct", "crop_mode")
    MEAN_FIELD_NUMBER: _ClassVar[int]
    STD_FIELD_NUMBER: _ClassVar[int]
    INTERPOLATION_FIELD_NUMBER: _ClassVar[int]
    CROP_PCT_FIELD_NUMBER: _ClassVar[int]
    CROP_MODE_FIELD_NUMBER: _ClassVar[int]
    mean: _containers.RepeatedScalarFieldContainer[float]
    std: _containers.RepeatedScalarFieldContainer[float]
    interpolation: str
    crop_pct: float
    crop_mode: str
    def __init__(self, mean: _Optional[_Iterable[float]] = ..., std: _Optional[_Iterable[float]] = ..., interpolation: _Optional[str] = ..., crop_pct: _Optional[float] = ..., crop_mode: _Optional[str] = ...) -> None: ...

class ListTasksRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListTasksResponse(_message.Message):
    __slots__ = ("tasks", "policy", "image_size", "trunk", "image_mean", "image_std", "preprocess")
    TASKS_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    IMAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    TRUNK_FIELD_NUMBER: _ClassVar[int]
    IMAGE_MEAN_FIELD_NUMBER: _ClassVar[int]
    IMAGE_STD_FIELD_NUMBER: _ClassVar[int]
    PREPROCESS_FIELD_NUMBER: _ClassVar[int]
    tasks: _containers.RepeatedCompositeFieldContainer[Task]
    policy: str
    image_size: int
    trunk: str
    image_mean: float
    image_std: float
    preprocess: Preprocess
    def __init__(self, tasks: _Optional[_Iterable[_Union[Task, _Mapping]]] = ..., policy: _Optional[str] = ..., image_size: _Optional[int] = ..., trunk: _Optional[str] = ..., image_mean: _Optional[float] = ..., image_std: _Optional[float] = ..., preprocess: _Optional[_Union[Preprocess, _Mapping]] = ...) -> None: ...

class MakeQueryRequest(_message.Message):
    __slots__ = ("task", "image", "latency_ms", "utility")
    TASK_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    LATENCY_MS_FIELD_NUMBER: _ClassVar[int]
    UTILITY_FIELD_NUMBER: _ClassVar[int]
    task: str
    image: bytes
    latency_ms: float
    utility: float
    def __init__(self, task: _Optional[str] = ..., image: _Optional[bytes] = ..., latency_ms: _Optional[float] = ..., utility: _Optional[float] = ...) -> None: ...

class MakeQueryResponse(_message.Message):
    __slots__ = ("label", "logits", "schedule", "waiting_ms", "inference_ms", "batch_size", "late", "labels", "embedding")
    LABEL_FIELD_NUMBER: _ClassVar[int]
    LOGITS_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    WAITING_MS_FIELD_NUMBER: _ClassVar[int]
    INFERENCE_MS_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    LATE_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    label: str
    logits: _containers.RepeatedScalarFieldContainer[float]
    schedule: str
    waiting_ms: float
    inference_ms: float
    batch_size: int
    late: bool
    labels: _containers.RepeatedScalarFieldContainer[str]
    embedding: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, label: _Optional[str] = ..., logits: _Optional[_Iterable[float]] = ..., schedule: _Optional[str] = ..., waiting_ms: _Optional[float] = ..., inference_ms: _Optional[float] = ..., batch_size: _Optional[int] = ..., late: _Optional[bool] = ..., labels: _Optional[_Iterable[str]] = ..., embedding: _Optional[_Iterable[float]] = ...) -> None: ...

class RegisterTaskRequest(_message.Message):
    __slots__ = ("name", "class_names", "parameters", "trunk", "latency_ms", "utility", "accuracy", "preprocess", "output")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CLASS_NAMES_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    TRUNK_FIELD_NUMBER: _ClassVar[int]
    LATENCY_MS_FIELD_NUMBER: _ClassVar[int]
    UTILITY_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    PREPROCESS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    name: str
    class_names: _containers.RepeatedScalarFieldContainer[str]
    parameters: bytes
    trunk: str
    latency_ms: float
    utility: float
    accuracy: float
    preprocess: Preprocess
    output: str
    def __init__(self, name: _Optional[str] = ..., class_names: _Optional[_Iterable[str]] = ..., parameters: _Optional[bytes] = ..., trunk: _Optional[str] = ..., latency_ms: _Optional[float] = ..., utility: _Optional[float] = ..., accuracy: _Optional[float] = ..., preprocess: _Optional[_Union[Preprocess, _Mapping]] = ..., output: _Optional[str] = ...) -> None: ...

class DeleteTaskRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class DeleteTaskResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
