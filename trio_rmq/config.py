"""Settings (`settings.py`) read from RocketMQ's own `key=value` files and from `KEY=VALUE` overrides.

A value that does not fit is a `ConfigError` that names key, value and what is wanted, where RocketMQ would go on
silently with the default; a key that nobody knows is a warning that names the nearest one; the keys RocketMQ has for
its thread pools, memory maps and the like are listed once as ignored.  Nothing here looks at the environment or keeps
state.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

import msgspec
from msgspec import Meta, Struct

from trio_rmq.errors import ConfigError
from trio_rmq.settings import BrokerConfig, MessageStoreConfig, NamesrvConfig, RemotingConfig

__all__ = [
    "BrokerConfig",
    "BrokerSettings",
    "MessageStoreConfig",
    "NamesrvConfig",
    "NamesrvSettings",
    "RemotingConfig",
    "changed_settings",
    "load_broker_settings",
    "load_namesrv_settings",
    "load_standalone_settings",
    "parse_properties",
]

logger = logging.getLogger(__name__)

_OLD_SPELLINGS = {
    "mapedFileSizeCommitLog": "mappedFileSizeCommitLog",
    "mapedFileSizeConsumeQueue": "mappedFileSizeConsumeQueue",
}
"""Keys as RocketMQ up to 4.5 spelt them."""

_JAVA_PROPERTIES = {
    "rocketmq.namesrv.domain": "rmqAddressServerDomain",
    "rocketmq.namesrv.domain.subgroup": "rmqAddressServerSubGroup",
    "tls.server.mode": "tlsServerMode",
    "tls.config.file": "tlsConfigFile",
    "tls.test.mode.enable": "tlsTestModeEnable",
    "tls.server.need.client.auth": "tlsServerNeedClientAuth",
    "tls.server.keyPath": "tlsServerKeyPath",
    "tls.server.keyPassword": "tlsServerKeyPassword",
    "tls.server.certPath": "tlsServerCertPath",
    "tls.server.authClient": "tlsServerAuthClient",
    "tls.server.trustCertPath": "tlsServerTrustCertPath",
    "tls.enable": "useTLS",
    "tls.client.keyPath": "tlsClientKeyPath",
    "tls.client.keyPassword": "tlsClientKeyPassword",
    "tls.client.certPath": "tlsClientCertPath",
    "tls.client.authServer": "tlsClientAuthServer",
    "tls.client.trustCertPath": "tlsClientTrustCertPath",
}
"""Java's system properties, and the keys of tls.properties, as settings here (MixAll, TlsSystemConfig)."""
_TLS_FILE = "tlsConfigFile"


class BrokerSettings(NamedTuple):
    """All that one broker reads from its file."""

    broker: BrokerConfig
    store: MessageStoreConfig
    remoting: RemotingConfig


class NamesrvSettings(NamedTuple):
    """All that one name server reads from its file."""

    namesrv: NamesrvConfig
    remoting: RemotingConfig


_WITHOUT_EFFECT_YET = frozenset({
    "brokerIP2",
})  # fmt: skip
"""Known keys whose feature is not in this version: accepted, checked, and said to have no effect."""


def load_broker_settings(
    path: str | Path | None,
    overrides: Iterable[str] = (),
    *,
    host_name: str | None = None,
) -> BrokerSettings:
    """The settings in the file at `path` (None: no file), changed by `overrides` (`KEY=VALUE` each, the last wins).

    `host_name` stands for a brokerName that nobody set.  Raises ConfigError.
    """
    values = _collect(path, overrides)
    if host_name and "brokerName" not in values:
        values["brokerName"] = (host_name, "the machine's name")
    broker, store, remoting = _build((BrokerConfig, MessageStoreConfig, RemotingConfig), values)
    settings = BrokerSettings(broker, store, remoting)
    _check_broker(settings)
    return settings


def load_namesrv_settings(path: str | Path | None, overrides: Iterable[str] = ()) -> NamesrvSettings:
    """The name server's settings, from a file and overrides as in `load_broker_settings`; raises ConfigError."""
    namesrv, remoting = _build((NamesrvConfig, RemotingConfig), _collect(path, overrides))
    _check_tls(remoting)
    return NamesrvSettings(namesrv, remoting)


def load_standalone_settings(
    path: str | Path | None, overrides: Iterable[str] = ()
) -> tuple[NamesrvConfig, BrokerSettings]:
    """Name server and broker from one file: both take what they know, and `listenPort` is the broker's alone.

    Differs from a broker's file in three defaults: brokerName is `broker-a`, traceTopicEnable is true, and where
    neither bindAddress nor brokerIP1 is set both are 127.0.0.1, so that a first try is not open to the network.  Raises
    ConfigError.
    """
    values = _collect(path, overrides)
    values.setdefault("brokerName", ("broker-a", "default"))
    values.setdefault("traceTopicEnable", ("true", "default"))
    if "brokerIP1" not in values:
        bound = values.setdefault("bindAddress", ("127.0.0.1", "default"))[0]
        if bound not in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
            values["brokerIP1"] = (bound, "default")
    types = (BrokerConfig, MessageStoreConfig, RemotingConfig, NamesrvConfig)
    broker, store, remoting, namesrv = _build(types, values)
    namesrv.listen_port = NamesrvConfig().listen_port
    settings = BrokerSettings(broker, store, remoting)
    _check_broker(settings)
    return namesrv, settings


def parse_properties(text: str) -> dict[str, str]:
    r"""The pairs of a Java properties text: `#` and `!` comments, `=`, `:` or blanks between key and value, `\` at a
    line's end joins the next line, `\t \n \r \f \uXXXX` escapes; a key given twice has its last value.

    Blanks after a value are dropped (Java keeps them, and then fails to read numbers).  Raises ConfigError.
    """
    pairs: dict[str, str] = {}
    lines = iter(enumerate(text.splitlines(), 1))
    for number, line in lines:
        logical = line.lstrip(" \t\f")
        if not logical or logical[0] in "#!":
            continue
        while _odd_backslashes(logical):
            logical = logical[:-1] + next(lines, (0, ""))[1].lstrip(" \t\f")
        matched = _KEY_AND_VALUE.fullmatch(logical.rstrip())
        assert matched is not None  # noqa: S101 - the pattern takes every line
        try:
            pairs[_unescape(matched[1])] = _unescape(matched[2])
        except ValueError as error:
            raise ConfigError(f"line {number}: {error}") from None
    return pairs


_KEY_AND_VALUE = re.compile(r"((?:\\.|[^\\=: \t\f])*)[ \t\f]*[=:]?[ \t\f]*(.*)", re.DOTALL)
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.?)", re.DOTALL)


def _odd_backslashes(line: str) -> bool:
    return (len(line) - len(line.rstrip("\\"))) % 2 == 1


def _unescape(text: str) -> str:
    def replace(found: re.Match[str]) -> str:
        what = found[1]
        if len(what) == 5:
            return chr(int(what[1:], 16))
        if what == "u":
            raise ValueError(f"\\u needs four hex digits in {text!r}")
        return {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}.get(what, what)

    return _ESCAPE.sub(replace, text) if "\\" in text else text


def changed_settings(config: Struct, text: str, allowed: Collection[str]) -> dict[str, object]:
    """What a properties text, sent by a tool, changes of `config`: values by field, for `setattr`.

    Raises ConfigError, and then nothing may be changed: a key outside `allowed` (keys of RocketMQ's spelling) or a
    value that does not fit.  Nothing is set here.
    """
    pairs = parse_properties(text)
    refused = sorted(set(pairs).difference(allowed))
    if refused:
        raise ConfigError(
            f"{', '.join(refused)}: read at start only, change the file and restart; "
            f"a running server takes {', '.join(sorted(allowed))}"
        )
    fields = {field.encode_name: field for field in _fields(type(config))}
    return {fields[key].name: _convert(key, value, fields[key].type, "the request") for key, value in pairs.items()}


def _collect(path: str | Path | None, overrides: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Key -> (text, where it came from), old spellings made new."""
    values: dict[str, tuple[str, str]] = {}
    if path is not None:
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"the configuration file {path} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ConfigError(f"the configuration file {path} is not UTF-8 text") from None
        try:
            pairs = parse_properties(text)
        except ConfigError as error:
            raise ConfigError(f"the configuration file {path}, {error}") from None
        for key, value in pairs.items():
            _put(values, key, value, str(path))
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator or not key.strip():
            raise ConfigError(f"{override!r} is no setting; write KEY=VALUE")
        _put(values, key.strip(), value.strip(), "the command line")
    return {**_tls_file_values(values), **values}


def _tls_file_values(values: Mapping[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """What the file of tlsConfigFile says; nothing when it is RocketMQ's usual one and does not exist."""
    usual = RemotingConfig().tls_config_file
    path = values.get(_TLS_FILE, (usual, ""))[0]
    try:
        pairs = parse_properties(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        if path == usual and isinstance(error, FileNotFoundError):
            return {}
        raise ConfigError(f"{_TLS_FILE}={path} cannot be read: {error}") from None
    found: dict[str, tuple[str, str]] = {}
    for key, value in pairs.items():
        _put(found, key, value, path)
    return found


def _put(values: dict[str, tuple[str, str]], key: str, value: str, source: str) -> None:
    key = key[:1].lower() + key[1:]  # RocketMQ goes by the setter's name, so it cannot tell the two cases
    new = _OLD_SPELLINGS.get(key)
    if new is not None:
        logger.info("%s: %s is now spelt %s", source, key, new)
    values[_JAVA_PROPERTIES.get(key) or new or key] = (value, source)


@cache
def _fields(struct: type[Struct]) -> tuple[msgspec.structs.FieldInfo, ...]:
    """The fields of a settings type; finding out takes a millisecond each time."""
    return msgspec.structs.fields(struct)


def _build(types: tuple[type[Struct], ...], values: Mapping[str, tuple[str, str]]) -> list[Any]:
    """One instance of each type; a key that several have goes to each. Logs the keys that nobody takes."""
    built: list[Any] = []
    known: set[str] = set()
    for struct in types:
        arguments: dict[str, object] = {}
        for field in _fields(struct):
            known.add(field.encode_name)
            if field.encode_name in values:
                text, source = values[field.encode_name]
                arguments[field.name] = _convert(field.encode_name, text, field.type, source)
        built.append(struct(**arguments))
    _say_unused({key: source for key, (_, source) in values.items()}, known)
    return built


_WANTED = {"true": True, "false": False}


def _convert(key: str, text: str, wanted: Any, source: str) -> object:
    """`text` as the field's type; the error names what is wanted."""
    origin = get_origin(wanted)
    if origin is Annotated:
        base, meta = get_args(wanted)[:2]
    else:
        base, meta = wanted, None
    if origin is Literal:
        if text in get_args(wanted):
            return text
        reason = "one of " + ", ".join(get_args(wanted))
    elif base is bool:
        if text.lower() in _WANTED:
            return _WANTED[text.lower()]
        reason = "true or false"
    elif base is int:
        low, high = (meta.ge, meta.le) if isinstance(meta, Meta) else (None, None)
        if re.fullmatch(r"[+-]?[0-9]{1,19}", text):
            number = int(text)
            if (low is None or number >= low) and (high is None or number <= high):
                return number
        reason = "a whole number"
        if low is not None and high is not None:
            reason += f" from {low} to {high}" if high < 2**62 else f", {low} or more"
    else:
        return text
    raise ConfigError(f"{key}={text} ({source}): the value must be {reason}")


def _say_unused(sources: Mapping[str, str], known: set[str]) -> None:
    """Logs, at most once each: keys not in this version, keys that cannot apply here, keys that nobody knows."""
    waiting = sorted(key for key in sources if key in known and key in _WITHOUT_EFFECT_YET)
    if waiting:
        logger.info("no effect in this version: %s", ", ".join(waiting))
    others = [key for key in sources if key not in known]
    if not others:
        return
    from trio_rmq.config_keys import APACHE_KEYS  # rarely needed, so not part of every start

    ignored = sorted(key for key in others if key in APACHE_KEYS)
    if ignored:
        logger.info("RocketMQ keys that do not apply here, ignored: %s", ", ".join(ignored))
    for key in others:
        if key not in APACHE_KEYS:
            nearest = _nearest(key, known)
            hint = f"; did you mean {nearest}?" if nearest else ""
            logger.warning("unknown key %s (%s) is ignored%s", key, sources[key], hint)


def _nearest(key: str, known: Collection[str]) -> str | None:
    import difflib  # only needed to word a warning; keeps it out of every start

    lower = {name.lower(): name for name in known}
    found = difflib.get_close_matches(key.lower(), lower, n=1, cutoff=0.6)
    return lower[found[0]] if found else None


def _check_tls(remoting: RemotingConfig) -> None:
    """What no single key of TLS can tell."""
    if bool(remoting.tls_server_key_path) != bool(remoting.tls_server_cert_path):
        raise ConfigError("tlsServerKeyPath and tlsServerCertPath go together: set both, or neither")
    if bool(remoting.tls_client_key_path) != bool(remoting.tls_client_cert_path):
        raise ConfigError("tlsClientKeyPath and tlsClientCertPath go together: set both, or neither")
    if remoting.tls_server_need_client_auth != "none" and not remoting.tls_server_auth_client:
        raise ConfigError(
            f"tlsServerNeedClientAuth={remoting.tls_server_need_client_auth} needs tlsServerAuthClient=true and "
            "tlsServerTrustCertPath: a certificate that is asked for is checked here"
        )
    enforced = remoting.tls_server_mode == "enforcing"
    if enforced and not remoting.tls_test_mode_enable and not remoting.tls_server_cert_path:
        raise ConfigError(
            "tlsServerMode=enforcing without tlsServerKeyPath and tlsServerCertPath: nobody could connect; set both, "
            "or tlsTestModeEnable=true"
        )


def _check_broker(settings: BrokerSettings) -> None:
    """What no single key can tell."""
    _check_tls(settings.remoting)
    role = settings.store.broker_role
    if role != "ASYNC_MASTER":
        raise ConfigError(f"brokerRole={role} needs replication, which this version does not have; use ASYNC_MASTER")
    if settings.broker.broker_id != 0:
        raise ConfigError("brokerId must be 0: a master has 0, and this version has no slaves")
    store = settings.store
    store.delete_hours  # noqa: B018 - raises when it cannot be read
    if store.enable_multi_dispatch and not store.enable_lmq:
        raise ConfigError("enableMultiDispatch=true needs enableLmq=true: messages are dispatched to %LMQ% queues only")
    ratios = store.disk_ratios
    if ratios is not None and list(ratios) != sorted(ratios):
        raise ConfigError(
            "diskMaxUsedSpaceRatio, diskSpaceCleanForciblyRatio and diskSpaceWarningLevelRatio are {}, {} and {} per "
            "cent: none may be above the next".format(*ratios)
        )
    if settings.broker.fetch_namesrv_addr_by_address_server and not settings.broker.rmq_address_server_domain:
        raise ConfigError("fetchNamesrvAddrByAddressServer=true needs rmqAddressServerDomain, an address server's host")
    if not settings.broker.broker_name or not settings.broker.broker_cluster_name:
        raise ConfigError("brokerName and brokerClusterName must not be empty")
    if settings.broker.fast_port_enable and settings.broker.listen_port in (1, 2):
        raise ConfigError("listenPort must be above 2, or fastPortEnable=false: the fast port is listenPort - 2")
