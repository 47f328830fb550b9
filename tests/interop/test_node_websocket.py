"""A Node program written from protocol/command.cddl alone sends, pulls and answers a request over WebSocket.

The name server and the broker are ours, as real processes.  Nothing in this version's broker asks a client for an
answer, so the question comes from a listener of this test: a request makes it ask for the client's running information.
"""

from __future__ import annotations

import json
import os
import subprocess
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.interop.peers import HERE, need, node_modules, our_broker, our_name_server
from trio_rmq.remoting.handlers import HandlerTable, Later
from trio_rmq.remoting.listener import serve_remoting
from trio_rmq.remoting.session import Session
from trio_rmq.wire.codes import RequestCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.headers import GetConsumerRunningInfoRequestHeader

pytestmark = pytest.mark.interop


def _ask_back(session: Session, command: Command) -> Later:
    async def ask() -> list[Command]:
        header = GetConsumerRunningInfoRequestHeader(consumer_group="asked", client_id="node")
        question = Command(RequestCode.GET_CONSUMER_RUNNING_INFO, header=header)
        answer = await session.request(question, timeout_seconds=10)
        return [command.reply(answer.code, body=bytes(answer.body))]

    return Later(ask)


def test_a_node_program_sends_pulls_and_answers(tmp_path: Path) -> None:
    environment = {**os.environ, "NODE_PATH": str(node_modules())}

    async def run(namesrv: str) -> subprocess.CompletedProcess[bytes]:
        handlers = HandlerTable()
        handlers.register(1, _ask_back)
        async with trio.open_nursery() as nursery:
            (asker,) = await nursery.start(partial(serve_remoting, ["127.0.0.1:0"], handlers))
            words = [need("node"), str(HERE / "node" / "peer.js"), namesrv, "NodeTopic", "grüße", asker]
            with trio.fail_after(60):
                done = await trio.run_process(
                    words, capture_stdout=True, capture_stderr=True, env=environment, check=False
                )
            nursery.cancel_scope.cancel()
        return done

    with our_name_server(tmp_path) as namesrv, our_broker(tmp_path, namesrv.address):
        done = trio.run(run, namesrv.address)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout) == {
        "offset": 0,
        "text": "grüße",
        "notice": [RequestCode.NOTIFY_CONSUMER_IDS_CHANGED, "node"],
        "heard": '{"group":"asked"}',
    }
