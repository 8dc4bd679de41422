"""Our copy of the Open Inference Protocol is the one that tritonclient speaks: same names, numbers and types."""

from __future__ import annotations

import json
import subprocess
import sys

DUMP = """
import importlib, json, sys
from google.protobuf.descriptor_pb2 import FileDescriptorProto
file = FileDescriptorProto()
importlib.import_module(sys.argv[1]).DESCRIPTOR.CopyToProto(file)
def fields(message, path):
    for field in message.field:
        kind = field.type_name or field.type
        yield f"{path}.{field.name}", [field.number, field.label, kind]
    for nested in message.nested_type:
        yield from fields(nested, f"{path}.{nested.name}")
found = {k: v for message in file.message_type for k, v in fields(message, message.name)}
(service,) = file.service
methods = {m.name: [m.input_type, m.output_type] for m in service.method}
print(json.dumps([file.package, service.name, found, methods]))
"""


def dumped(module: str) -> list:
    """In a process of its own: two copies of one package cannot live in one."""
    done = subprocess.run(
        [sys.executable, "-c", DUMP, module], capture_output=True, text=True, timeout=120, check=True
    )
    return json.loads(done.stdout)


def test_every_message_and_call_of_ours_is_tritons() -> None:
    package, service, fields, methods = dumped("fedstill.protos.open_inference_pb2")
    theirs = dumped("tritonclient.grpc.service_pb2")
    assert (package, service) == tuple(theirs[:2])
    assert len(fields) > 50
    assert {name: theirs[2].get(name) for name in fields} == fields
    assert {name: theirs[3].get(name) for name in methods} == methods
    # and none of a message that we know is missing
    messages = {name.rpartition(".")[0] for name in fields}
    assert {name for name in theirs[2] if name.rpartition(".")[0] in messages} == set(fields)
