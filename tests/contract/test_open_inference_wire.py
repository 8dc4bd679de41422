"""Our copy of the Open Inference Protocol is the one that tritonclient speaks: same names, numbers and types."""

from __future__ import annotations

import json
import subprocess
import sys

from fedstill.cloud_server.serving.endpoints.open_inference import REFUSED

DUMP = """
import importlib, json, sys
from google.protobuf.descriptor_pb2 import FileDescriptorProto
def read(descriptor):
    file = FileDescriptorProto()
    descriptor.CopyToProto(file)
    return file
def fields(message, path):
    for field in message.field:
        kind = field.type_name or field.type
        yield f"{path}.{field.name}", [field.number, field.label, kind]
    for nested in message.nested_type:
        yield from fields(nested, f"{path}.{nested.name}")
    for kind in message.enum_type:
        yield from values(kind, f"{path}.{kind.name}")
def values(kind, path):
    for value in kind.value:
        yield f"{path}.{value.name}", [value.number]
def everything(file):
    found = {k: v for message in file.message_type for k, v in fields(message, message.name)}
    return found | {k: v for kind in file.enum_type for k, v in values(kind, kind.name)}
descriptor = importlib.import_module(sys.argv[1]).DESCRIPTOR
file = read(descriptor)
(service,) = file.service
calls = {m.name: [m.input_type, m.output_type, m.client_streaming, m.server_streaming] for m in service.method}
imported = {}
for one in descriptor.dependencies:
    imported |= everything(read(one))
print(json.dumps([file.package, service.name, everything(file), calls, imported]))
"""


def dumped(module: str) -> list:
    """In a process of its own: two copies of one package cannot live in one."""
    done = subprocess.run(
        [sys.executable, "-c", DUMP, module], capture_output=True, text=True, timeout=120, check=True
    )
    return json.loads(done.stdout)


def test_every_message_and_call_of_ours_is_tritons() -> None:
    package, service, fields, calls, _ = dumped("fedstill.protos.open_inference_pb2")
    theirs = dumped("tritonclient.grpc.service_pb2")
    assert (package, service) == tuple(theirs[:2])
    assert len(fields) > 150
    known = theirs[2] | theirs[4]
    assert {name: known.get(name) for name in fields} == fields
    assert {name: theirs[3].get(name) for name in calls} == calls
    # what we do not have is refused by name
    assert theirs[3].keys() - calls.keys() == REFUSED.keys()
    # and no field of a message that we know is missing, but for the configuration's, which says nothing of them
    messages = {name.rpartition(".")[0] for name in fields}
    assert {name for name in theirs[2] if name.rpartition(".")[0] in messages} == fields.keys() - theirs[4]
