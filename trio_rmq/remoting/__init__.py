"""RPC over one port: TCP remoting and WebSocket + CBOR; requests go both ways on a connection."""
