"""The smallest Flower app that shows that messages went both ways: one question to every node, one file."""

from __future__ import annotations

from pathlib import Path

PYPROJECT = """\
[project]
name = "probe"
version = "0.1.0"
dependencies = []

[tool.flwr.app]
publisher = "test"

[tool.flwr.app.components]
serverapp = "probe.server:app"
clientapp = "probe.client:app"

[tool.flwr.app.config]
nodes = 1
mebibytes = 0
hold = 0.0
out = ""
"""

SERVER = """\
import json
import time
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    while len(list(grid.get_node_ids())) < config["nodes"]:
        time.sleep(0.5)
    payload = b"p" * (int(config["mebibytes"]) * 2**20)
    waiting = {}
    for node in grid.get_node_ids():
        content = RecordDict({"ask": ConfigRecord({"payload": payload})})
        waiting.update(dict.fromkeys(grid.push_messages([Message(content, node, "query.probe", ttl=300.0)]), node))
    answers = []
    while waiting:
        for reply in grid.pull_messages(list(waiting)):
            waiting.pop(reply.metadata.reply_to_message_id)
            answers.append(reply.error.reason if reply.has_error() else dict(reply.content["answer"]))
        time.sleep(0.2)
    time.sleep(float(config["hold"]))
    Path(str(config["out"])).write_text(json.dumps(answers))
"""

CLIENT = """\
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query("probe")
def probe(message: Message, context: Context) -> Message:
    answer = ConfigRecord({"bytes": len(message.content["ask"]["payload"]), "name": str(context.node_config["name"])})
    return Message(RecordDict({"answer": answer}), reply_to=message)
"""


def write_probe(folder: Path) -> Path:
    """The app's folder, ready for ``flwr run``."""
    app = folder / "probe"
    (app / "probe").mkdir(parents=True)
    (app / "pyproject.toml").write_text(PYPROJECT)
    (app / "probe" / "__init__.py").write_text("")
    (app / "probe" / "server.py").write_text(SERVER)
    (app / "probe" / "client.py").write_text(CLIENT)
    return app
