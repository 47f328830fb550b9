"""The broker: request handlers, a file per concern, and the services around the store."""
