"""Every bound of the system with its reason, so that no peer can make this process take memory without end.

A limit is checked before the memory it guards is taken.  Values that RocketMQ fixes name their key; where a
configuration key can change one, the constant here is that key's default.
"""

FRAME_SIZE_MAX_BYTES = 16 * 1024 * 1024
"""Largest remoting frame after its length word (RocketMQ: com.rocketmq.remoting.frameMaxLength, 16,777,216)."""

HEADER_SIZE_MAX_BYTES = 1024 * 1024
"""Largest encoded header: 32 KiB of properties escaped six-fold in JSON stays below a fifth of it."""

EXT_FIELDS_MAX = 256
"""Most header fields of one command; the largest real header has under 30."""

CONNECTIONS_MAX = 20_000
"""Most connections of one listener: 10,000 idle clients with both ports open, and room for one restart's overlap."""

REQUESTS_IN_FLIGHT_MAX = 16_384
"""Most unanswered requests of one connection, held pulls not counted; RocketMQ's client stops at 65,535 a process."""

IN_FLIGHT_BYTES_PAUSE = 32 * 1024 * 1024
"""Above so many bytes of requests that wait for the disk nothing further of their connection is read: more than a disk
takes in one sync of 4 ms, so that a single producer can still keep it busy."""

HELD_PULLS_MAX = 100_000
"""Most held pulls of one broker (RocketMQ: maxPopPollingSize bounds only pop); each takes about 2 KB."""

OUTGOING_BYTES_MAX = 64 * 1024 * 1024
"""Most bytes waiting to be written to one connection: its reading stops far below, and it is dropped here."""

OUTGOING_BYTES_PAUSE = 4 * 1024 * 1024
"""Above this many unwritten bytes no further request of that connection is read."""

CONNECTION_IDLE_SECONDS = 120.0
"""A connection silent in both directions this long is closed (serverChannelMaxIdleTimeSeconds)."""

READ_CHUNK_BYTES = 256 * 1024
"""Largest single read from a socket."""

WRITE_STALL_SECONDS = 30.0
"""A peer that takes no byte for this long while bytes wait for it is dropped."""

TOPIC_LENGTH_MAX = 127
"""Longest topic name (Validators.TOPIC_MAX_LENGTH and record format V1's one length byte)."""

GROUP_LENGTH_MAX = 255
"""Longest group name (Validators.CHARACTER_MAX_LENGTH)."""

BODY_SIZE_MAX_BYTES = 4 * 1024 * 1024
"""Largest message body (maxMessageSize)."""

PROPERTIES_SIZE_MAX_BYTES = 32_767
"""Largest stored properties text: its length is a signed 16-bit number."""

HANDSHAKE_SECONDS = 10.0
"""Longest WebSocket upgrade, from the first byte to the accepted request."""

TLS_HANDSHAKES_MAX = 1024
"""Most TLS handshakes of one server under way: each holds some 50 KB, for HANDSHAKE_SECONDS at most."""

CONNECT_SECONDS = 3.0
"""Longest attempt to open a connection to a server, upgrade included (connectTimeoutMillis)."""

CLIENT_REQUESTS_MAX = 65_535
"""Most unanswered requests of one client connection (clientAsyncSemaphoreValue, 65,535 a process in RocketMQ)."""

STORE_HANDLES_MAX = 512
"""Most file handles the store keeps open at once, however many queues it has: half of the usual limit of 1,024."""

TRANSIENT_POOL_MAX_BYTES = 256 * 1024 * 1024
"""Most bytes of records that wait in memory with transientStorePoolEnable: a second of a quick disk's writing, where
RocketMQ takes transientStorePoolSize whole log files (5 GiB)."""

BODY_DEPTH_MAX = 32
"""Deepest nesting accepted in a JSON body; the deepest real one (a static topic's mapping) has eight levels."""

INFLATED_BODY_MAX_BYTES = 64 * 1024 * 1024
"""Largest registration body after inflating: 200,000 topics with attributes; a deflated frame could claim 16 GiB."""

PULL_SUSPEND_MAX_SECONDS = 60.0
"""Longest time a pull is held, whatever it asks for: well inside a connection's idle time."""

COMMANDS_PER_MESSAGE_MAX = 65_536
"""Most CBOR commands of one WebSocket message: all that one client may have unanswered; a tiny one takes 17 bytes."""

TOPICS_MAX = 65_536
"""Most topics of one broker: its registration must fit into one frame, and a topic takes up to 256 bytes of it."""

GROUPS_MAX = 50_000
"""Most consumer groups of one broker: the answer that lists them must fit into one frame, some 300 bytes a group."""

KV_CONFIG_VALUES_MAX = 100_000
"""Most values in a name server's key-value table, whose largest namespace must fit into one frame."""

FILTER_LENGTH_MAX = 32_767
"""Most characters of a SQL92 filter: reading this many stays near ten milliseconds, which the event loop can bear."""

FILTER_DEPTH_MAX = 64
"""Deepest nesting of a SQL92 filter (parentheses, NOT, signs, chains of = and CONTAINS): evaluation nests as deep."""

FILTERS_CACHED_MAX = 128
"""Most compiled SQL92 filters kept by their text, for pulls that bring theirs along; RocketMQ keeps 100."""

CONSUMER_FILTERS_MAX = 50_000
"""Most registered filters of one broker, the dead included: one a group and topic; all go to consumerFilter.json."""

FINDINGS_MAX = 10_000
"""Most findings that one verification of a store keeps with their words; all are counted."""

OFFLINE_BLOCKS_MAX = 4096
"""Most 4 KiB blocks of consume queues that a verification keeps: 16 MiB, however many queues there are."""

QUEUE_ENTRIES_SHOWN_MAX = 10_000
"""Most queue entries of one QUERY_CONSUME_QUEUE answer: some 1.3 MB of JSON."""

STATS_KEYS_MAX = 200_000
"""Most pairs of topic and group whose gets are counted: some 60 MB; further ones are served, but have no rate."""

TIMERS_IN_MEMORY_MAX = 4_000_000
"""Most pending timers kept in memory, some 10 bytes each; of more only the next ones, the others in the timer queue."""

TRACES_WAITING_MAX = 20_000
"""Most traces of one client that wait to be sent, some 10 MB; half a second of a producer's sends at full speed."""
