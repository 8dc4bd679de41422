from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Precision(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRECISION_UNSPECIFIED: _ClassVar[Precision]
    FP32: _ClassVar[Precision]
    FP16: _ClassVar[Precision]
    INT8: _ClassVar[Precision]
PRECISION_UNSPECIFIED: Precision
FP32: Precision
FP16: Precision
INT8: Precision

class DescribeRequest(_message.Message):
    __slots__ = ("device", "student_version", "trusted")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    STUDENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    TRUSTED_FIELD_NUMBER: _ClassVar[int]
    device: str
    student_version: str
    trusted: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, device: _Optional[str] = ..., student_version: _Optional[str] = ..., trusted: _Optional[_Iterable[str]] = ...) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("class_names", "feature_width", "rates", "token", "roots")
    CLASS_NAMES_FIELD_NUMBER: _ClassVar[int]
    FEATURE_WIDTH_FIELD_NUMBER: _ClassVar[int]
    RATES_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    ROOTS_FIELD_NUMBER: _ClassVar[int]
    class_names: _containers.RepeatedScalarFieldContainer[str]
    feature_width: int
    rates: _containers.RepeatedScalarFieldContainer[float]
    token: str
    roots: bytes
    def __init__(self, class_names: _Optional[_Iterable[str]] = ..., feature_width: _Optional[int] = ..., rates: _Optional[_Iterable[float]] = ..., token: _Optional[str] = ..., roots: _Optional[bytes] = ...) -> None: ...

class ClassifyRequest(_message.Message):
    __slots__ = ("sequence", "device", "student_version", "rate", "precision", "features", "echo")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    STUDENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    RATE_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    ECHO_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    device: str
    student_version: str
    rate: float
    precision: Precision
    features: bytes
    echo: bool
    def __init__(self, sequence: _Optional[int] = ..., device: _Optional[str] = ..., student_version: _Optional[str] = ..., rate: _Optional[float] = ..., precision: _Optional[_Union[Precision, str]] = ..., features: _Optional[bytes] = ..., echo: _Optional[bool] = ...) -> None: ...

class ClassifyResponse(_message.Message):
    __slots__ = ("sequence", "answer", "error", "echo")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    ECHO_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    answer: Answer
    error: Error
    echo: Echo
    def __init__(self, sequence: _Optional[int] = ..., answer: _Optional[_Union[Answer, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ..., echo: _Optional[_Union[Echo, _Mapping]] = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("probabilities", "path", "rate", "precision", "feature_bytes", "server_milliseconds")
    PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    RATE_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    FEATURE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SERVER_MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    probabilities: _containers.RepeatedScalarFieldContainer[float]
    path: str
    rate: float
    precision: Precision
    feature_bytes: int
    server_milliseconds: float
    def __init__(self, probabilities: _Optional[_Iterable[float]] = ..., path: _Optional[str] = ..., rate: _Optional[float] = ..., precision: _Optional[_Union[Precision, str]] = ..., feature_bytes: _Optional[int] = ..., server_milliseconds: _Optional[float] = ...) -> None: ...

class Echo(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Error(_message.Message):
    __slots__ = ("code", "field", "message", "retry_milliseconds")
    CODE_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRY_MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    code: int
    field: str
    message: str
    retry_milliseconds: int
    def __init__(self, code: _Optional[int] = ..., field: _Optional[str] = ..., message: _Optional[str] = ..., retry_milliseconds: _Optional[int] = ...) -> None: ...
