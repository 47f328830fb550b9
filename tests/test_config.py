"""RocketMQ's configuration files and overrides as typed settings."""

from __future__ import annotations

import contextlib
import logging
import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_rmq.config import (
    BrokerConfig,
    MessageStoreConfig,
    NamesrvConfig,
    RemotingConfig,
    load_broker_settings,
    load_namesrv_settings,
    load_standalone_settings,
    parse_properties,
)
from trio_rmq.errors import ConfigError
from trio_rmq.settings import key_of_field


def test_defaults_are_those_of_rocketmq() -> None:
    broker, store, remoting = load_broker_settings(None)
    assert (broker.listen_port, broker.broker_cluster_name, broker.broker_permission) == (10911, "DefaultCluster", 6)
    assert broker.default_topic_queue_nums == 8
    assert (store.mapped_file_size_commit_log, store.mapped_file_size_consume_queue) == (1073741824, 6000000)
    assert not store.sync_flush
    assert remoting.server_channel_max_idle_time_seconds == 120
    assert load_namesrv_settings(None).namesrv.listen_port == 9876


def test_file_and_overrides(tmp_path: Path) -> None:
    file = tmp_path / "broker.conf"
    file.write_text("brokerName=broker-a\nlistenPort = 30911\nflushDiskType: SYNC_FLUSH\nbrokerIP1 10.0.0.1\n")
    broker, store, _ = load_broker_settings(file, ["listenPort=31000", "autoCreateTopicEnable=FALSE"])
    assert (broker.broker_name, broker.listen_port, broker.broker_ip1) == ("broker-a", 31000, "10.0.0.1")
    assert not broker.auto_create_topic_enable
    assert store.sync_flush


def test_machine_name_is_the_broker_name_nobody_set() -> None:
    assert load_broker_settings(None, host_name="box").broker.broker_name == "box"
    assert load_broker_settings(None, ["brokerName=b"], host_name="box").broker.broker_name == "b"


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("listenPort=abc", "listenPort=abc (the command line): the value must be a whole number from 0 to 65535"),
        ("listenPort=70000", "from 0 to 65535"),
        ("autoCreateTopicEnable=yes", "the value must be true or false"),
        ("flushDiskType=SOMETIMES", "the value must be one of ASYNC_FLUSH, SYNC_FLUSH"),
        ("flushIntervalCommitLog=0", "a whole number, 1 or more"),
        ("listenPort", "write KEY=VALUE"),
        ("=5", "write KEY=VALUE"),
        ("brokerRole=SLAVE", "needs replication"),
        ("brokerId=1", "brokerId must be 0"),
        ("brokerName=", "must not be empty"),
        ("listenPort=2", "fastPortEnable=false"),
    ],
)
def test_values_that_do_not_fit(override: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_broker_settings(None, [override])
    assert sentence in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_broker_settings(tmp_path / "none.conf")
    (tmp_path / "latin.conf").write_bytes(b"brokerName=\xe9")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_broker_settings(tmp_path / "latin.conf")
    (tmp_path / "escape.conf").write_text("\nbrokerName=\\u12")
    with pytest.raises(ConfigError, match=r"escape\.conf, line 2: .*four hex digits"):
        load_broker_settings(tmp_path / "escape.conf")


def test_unknown_keys_name_the_nearest(caplog: pytest.LogCaptureFixture) -> None:
    load_broker_settings(None, ["autoCreateTopicEnabled=true", "zzz=1"])
    assert [record.getMessage() for record in caplog.records] == [
        "unknown key autoCreateTopicEnabled (the command line) is ignored; did you mean autoCreateTopicEnable?",
        "unknown key zzz (the command line) is ignored",
    ]


def test_keys_that_cannot_apply_are_listed_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    overrides = ["sendMessageThreadPoolNums=16", "warmMapedFileEnable=true", "brokerIP2=192.0.2.1"]
    load_broker_settings(None, overrides)
    assert [record.getMessage() for record in caplog.records] == [
        "no effect in this version: brokerIP2",
        "RocketMQ keys that do not apply here, ignored: sendMessageThreadPoolNums, warmMapedFileEnable",
    ]


def test_old_spelling_is_taken_and_noted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    store = load_broker_settings(None, ["mapedFileSizeConsumeQueue=6001"]).store
    assert store.mapped_file_size_consume_queue == 6020
    assert caplog.records[0].getMessage().endswith("mapedFileSizeConsumeQueue is now spelt mappedFileSizeConsumeQueue")


def test_standalone_is_for_this_machine_unless_told_otherwise() -> None:
    namesrv, settings = load_standalone_settings(None, ["listenPort=4000"])
    assert (namesrv.listen_port, settings.broker.listen_port, settings.broker.broker_name) == (9876, 4000, "broker-a")
    assert (settings.remoting.bind_address, settings.broker.broker_ip1) == ("127.0.0.1", "127.0.0.1")
    _, settings = load_standalone_settings(None, ["brokerIP1=10.1.2.3"])
    assert (settings.remoting.bind_address, settings.broker.broker_ip1) == ("0.0.0.0", "10.1.2.3")  # noqa: S104 - a setting, not bound
    _, settings = load_standalone_settings(None, ["bindAddress=0.0.0.0"])
    assert settings.broker.broker_ip1 == ""


def test_a_standalone_has_the_trace_topic_unless_told_otherwise_and_a_broker_has_it_when_told() -> None:
    assert load_standalone_settings(None)[1].broker.trace_topic_enable
    assert not load_standalone_settings(None, ["traceTopicEnable=false"])[1].broker.trace_topic_enable
    assert not load_broker_settings(None).broker.trace_topic_enable


def test_keys_are_spelt_as_rocketmq_spells_them() -> None:
    assert key_of_field("broker_ip1") == "brokerIP1"
    assert key_of_field("check_crc_on_recover") == "checkCRCOnRecover"
    names = [field.encode_name for field in msgspec.structs.fields(MessageStoreConfig)]
    assert "mappedFileSizeCommitLog" in names
    assert "checkCRCOnRecover" in names


def test_every_key_can_be_set_to_its_default() -> None:
    for struct in (BrokerConfig, MessageStoreConfig, RemotingConfig):
        for field in msgspec.structs.fields(struct):
            text = str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
            load_broker_settings(None, [f"{field.encode_name}={text}"])
    for field in msgspec.structs.fields(NamesrvConfig):
        load_namesrv_settings(None, [f"{field.encode_name}={str(field.default).lower()}"])


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("# c\n! c\n\n  a=1\n", {"a": "1"}),
        ("a = 1 \nb:2\nc 3\nd", {"a": "1", "b": "2", "c": "3", "d": ""}),
        ("a=1\\\n   2\\\n 3", {"a": "123"}),
        ("a=1\\\\\nb=2", {"a": "1\\", "b": "2"}),
        (r"a\ b\=c=d\u0041\t\q", {"a b=c": "dA\tq"}),
        ("a=1=2:3", {"a": "1=2:3"}),
        ("a=1\r\na=2\r\n", {"a": "2"}),
        ("a=x\\", {"a": "x"}),
    ],
)
def test_properties_text(text: str, pairs: dict[str, str]) -> None:
    assert parse_properties(text) == pairs


@given(st.text())
def test_properties_takes_any_text(text: str) -> None:
    with contextlib.suppress(ConfigError):
        parse_properties(text)


def test_addresses_and_origins() -> None:
    assert BrokerConfig(namesrv_addr="a:1; b:2;;").name_servers() == ["a:1", "b:2"]
    assert RemotingConfig(allowed_origins="https://a, https://b;").origins() == {"https://a", "https://b"}
    assert MessageStoreConfig(store_path_root_dir="/s").commit_log_folder == "/s/commitlog"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["deleteWhen=24"], "deleteWhen=24: the value must be hours from 0 to 23"),
        (["deleteWhen=04:16"], "hours from 0 to 23 with ; between them"),
        (["deleteWhen=;"], "hours from 0 to 23"),
        (["diskMaxUsedSpaceRatio=90", "diskSpaceCleanForciblyRatio=80"], "90, 80 and 90 per cent: none may be above"),
        (["diskSpaceWarningLevelRatio=101"], "from 0 to 100"),
        (["enableMultiDispatch=true"], "needs enableLmq=true"),
    ],
)
def test_retention_settings_that_cannot_be(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        load_broker_settings(None, overrides)


@pytest.mark.parametrize(
    ("overrides", "ratios"),
    [
        ([], None),
        (["diskMaxUsedSpaceRatio=75"], (75, 85, 90)),
        (["diskMaxUsedSpaceRatio=92"], (92, 92, 92)),
        (["diskSpaceWarningLevelRatio=60"], (60, 60, 60)),
        (["diskSpaceCleanForciblyRatio=95"], (75, 95, 95)),
    ],
)
def test_one_ratio_brings_rocketmqs_others(overrides: list[str], ratios: tuple[int, int, int] | None) -> None:
    store = load_broker_settings(None, [*overrides, "deleteWhen=4; 16;"]).store
    assert store.disk_ratios == ratios
    assert store.delete_hours == {4, 16}
