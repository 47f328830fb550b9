"""Apache's mqadmin prints of our cluster what it prints of Apache's, numbers, times and addresses aside."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.interop.admin_peer import mqadmin
from tests.interop.peers import apache_broker, apache_name_server, our_broker, our_name_server

pytestmark = [pytest.mark.interop, pytest.mark.slow]

COMMANDS = """updateTopic -b ADDR -t Orders -r 1 -w 1
sendMessage -t Orders -p hello -k key1 -c tagA
topicStatus -t Orders|topicRoute -t Orders|topicList|topicList -c|clusterList|clusterList -m
updateSubGroup -b ADDR -g readers|consumerProgress|producer -b ADDR|consumerConnection -g readers
queryMsgByKey -t Orders -k key1|queryMsgByOffset -t Orders -b broker-a -i 0 -o 0
brokerConsumeStats -b ADDR|statsAll -t Orders|allocateMQ -t Orders -i 10.0.0.1,10.0.0.2
queryCq -t Orders -q 0 -i 0 -c 5 -b ADDR|getConsumerConfig -g readers
resetOffsetByTime -g readers -t Orders -s 0|updateTopicPerm -t Orders -b ADDR -p 4
wipeWritePerm -b broker-a|addWritePerm -b broker-a|cleanExpiredCQ -b ADDR|cleanUnusedTopic -b ADDR
updateOrderConf -t Orders -m put -v broker-a:1|updateOrderConf -t Orders -m get
deleteSubGroup -b ADDR -g readers -r true
deleteTopic -t Orders -c DefaultCluster"""


def shape(output: str) -> list[str]:
    """The lines in order of their text: addresses, ids, times and numbers as one sign, a link left out."""
    for pattern, sign in (
        (r"127\.0\.0\.1:\d+", "ADDR"),
        (r"\b[0-9A-F]{20,}\b", "ID"),
        (r"\d{4}-\d\d-\d\d[ ,#\d:.]+", "TIME"),
        (r"\d+", "#"),
        (r"[ \t]+", " "),
    ):
        output = re.sub(pattern, sign, output)
    return sorted(line.strip() for line in output.splitlines() if "docs/faq" not in line)


def commands(address: str) -> list[list[str]]:
    return [words.replace("ADDR", address).split() for words in re.split(r"[|\n]", COMMANDS)]


def test_mqadmin_sees_what_it_sees_of_apaches(tmp_path: Path) -> None:
    with apache_name_server(tmp_path) as names, apache_broker(tmp_path, names.address) as broker:
        theirs = mqadmin("4.9.8", names.address, commands(broker.address), tmp_path / "tools")
    with our_name_server(tmp_path) as names, our_broker(tmp_path, names.address) as broker:
        ours = mqadmin("4.9.8", names.address, commands(broker.address), tmp_path / "tools")
    answers = zip(commands("ADDR"), map(shape, theirs), map(shape, ours), strict=True)
    assert [answer for answer in answers if answer[1] != answer[2]] == []
