"""One query in every way that an unmodified tritonclient has, in a process of its own: it claims our protobuf package.

    python triton_ways.py GRPC_HOST:PORT REST_HOST:PORT TASK IMAGE_SIZE [CA_FILE TOKEN]

Prints one JSON object: the logits by way, and what the calls around queries say.
"""

import asyncio
import json
import queue
import ssl
import sys
from functools import partial

import numpy as np
import tritonclient.grpc as grpc_client
import tritonclient.grpc.aio as grpc_aio
import tritonclient.http as http_client
import tritonclient.http.aio as http_aio


def tensor(module, size, **binary):
    values = np.random.default_rng(7).uniform(-1, 1, (2, 3, size, size)).astype(np.float32)
    made = module.InferInput("image", list(values.shape), "FP32")
    made.set_data_from_numpy(values, **binary)
    return [made]


def logits(answer):
    return answer.as_numpy("logits").tolist()


def over_grpc(client, task, size, headers):
    asked = {"inputs": tensor(grpc_client, size), "headers": headers, "client_timeout": 60}
    asked["parameters"] = {"latency_ms": "20000"}
    found = {"grpc sync": logits(client.infer(task, **asked))}
    found["grpc compressed"] = logits(client.infer(task, compression_algorithm="gzip", **asked))
    answers = queue.Queue()

    def arrived(result, error):
        answers.put(error or result)

    client.async_infer(task, callback=arrived, **asked)
    found["grpc async"] = logits(answers.get(timeout=60))
    client.start_stream(arrived, headers=headers)
    for number in range(5):
        client.async_stream_infer(
            task, asked["inputs"], request_id=str(number), parameters=asked["parameters"]
        )
    streamed = [answers.get(timeout=60) for _ in range(5)]
    client.stop_stream()
    assert [one.get_response().id for one in streamed] == list("01234")
    for number, one in enumerate(streamed):
        found[f"grpc stream {number}"] = logits(one)
    found["grpc old name"] = logits(
        client.infer("elastic_vit", **{**asked, "parameters": {"task": task, "latency_ms": 20_000}})
    )
    found["grpc version"] = logits(client.infer(task, model_version="1", **asked))
    return found


async def over_grpc_aio(target, task, size, headers, secure):
    async with grpc_aio.InferenceServerClient(target, **secure) as client:
        parameters = {"latency_ms": 20_000}
        answer = await client.infer(task, tensor(grpc_aio, size), parameters=parameters, headers=headers)
        return {"grpc aio": logits(answer)}


def over_http(client, task, size, headers):
    parameters = {"latency_ms": 20_000}

    def ask(inputs, **options):
        fresh = dict(headers or {})  # the client leaves its own header of a query in what it is given
        return client.infer(task, inputs, headers=fresh, parameters=parameters, **options)

    plain = [http_client.InferRequestedOutput("logits", binary_data=False)]
    found = {
        "http binary": logits(ask(tensor(http_client, size))),
        "http json": logits(ask(tensor(http_client, size, binary_data=False), outputs=plain)),
        "http gzip": logits(ask(tensor(http_client, size), request_compression_algorithm="gzip")),
        "http deflate": logits(ask(tensor(http_client, size), request_compression_algorithm="deflate")),
        "http packed answer": logits(ask(tensor(http_client, size), response_compression_algorithm="gzip")),
        "http version": logits(ask(tensor(http_client, size), model_version="1")),
    }
    fresh = dict(headers or {})
    pending = client.async_infer(task, tensor(http_client, size), headers=fresh, parameters=parameters)
    found["http async"] = logits(pending.get_result(timeout=60))
    return found


async def over_http_aio(target, task, size, headers, secure):
    async with http_aio.InferenceServerClient(target, **secure) as client:
        parameters = {"latency_ms": 20_000}
        fresh = dict(headers or {})
        answer = await client.infer(task, tensor(http_aio, size), parameters=parameters, headers=fresh)
        return {"http aio": logits(answer)}


def told(client, task, headers, plain):
    """What every client says alike, over gRPC and HTTP."""
    config = client.get_model_config(task, headers=headers, **plain)
    statistics = client.get_inference_statistics(task, headers=headers, **plain)
    index = client.get_model_repository_index(headers=headers, **plain)
    classes = {"grpc": grpc_client, "http": http_client}["grpc" if plain else "http"]
    return {
        "live": client.is_server_live(headers=headers),
        "ready": client.is_server_ready(headers=headers) and client.is_model_ready(task, headers=headers),
        "unknown": client.is_model_ready("no-such", headers=headers),
        "server": client.get_server_metadata(headers=headers, **plain)["name"],
        "inputs": [one["name"] for one in client.get_model_metadata(task, headers=headers, **plain)["inputs"]],
        "largest": config.get("config", config)["max_batch_size"],
        "counted": int(statistics["model_stats"][0]["inference_count"]) > 0,
        "index": [[one["name"], one["state"]] for one in index["models"] if plain] if plain else
        [[one["name"], one["state"]] for one in index],
        "refused": [refusal(call) for call in (
            partial(client.get_system_shared_memory_status, headers=headers),
            partial(client.get_trace_settings, headers=headers),
            partial(client.get_log_settings, headers=headers),
        )],
        "classification": classification(client, classes, task, headers),
    }  # fmt: skip


def refusal(call):
    try:
        call()
    except Exception as error:  # of whichever client
        return str(error)
    return "not refused"


def classification(client, module, task, headers):
    size = SIZE
    asked = [module.InferRequestedOutput("logits", class_count=2)]
    found = client.infer(
        task,
        tensor(module, size),
        outputs=asked,
        headers=dict(headers or {}),
        parameters={"latency_ms": 20_000},
    ).as_numpy("logits")
    return [[text.decode().split(":")[1:] for text in row] for row in found]


def changed(client, task, headers):
    """Unload and load again."""
    client.unload_model(task, headers=headers)
    gone = client.is_model_ready(task, headers=headers)
    client.load_model(task, headers=headers)
    return [gone, client.is_model_ready(task, headers=headers)]


def main(grpc_target, rest_target, task, ca_file=None, token=None):
    headers = {"authorization": f"Bearer {token}"} if token else None
    for_grpc = {"ssl": True, "root_certificates": ca_file} if ca_file else {}
    for_http = {"ssl": True, "ssl_options": {"ca_certs": ca_file}} if ca_file else {}
    for_http_aio = {"ssl": True, "ssl_context": ssl.create_default_context(cafile=ca_file)} if ca_file else {}
    over, web = (
        grpc_client.InferenceServerClient(grpc_target, **for_grpc),
        http_client.InferenceServerClient(rest_target, concurrency=2, **for_http),
    )
    ways = over_grpc(over, task, SIZE, headers) | over_http(web, task, SIZE, headers)
    ways |= asyncio.run(over_grpc_aio(grpc_target, task, SIZE, headers, for_grpc))
    ways |= asyncio.run(over_http_aio(rest_target, task, SIZE, headers, for_http_aio))
    found = {
        "ways": ways,
        "grpc": told(over, task, headers, {"as_json": True}),
        "http": told(web, task, headers, {}),
        "changed": [changed(client, task, headers) for client in (over, web)],
    }
    print(json.dumps(found))  # noqa: T201


SIZE = int(sys.argv[4])
main(*sys.argv[1:4], *sys.argv[5:])
