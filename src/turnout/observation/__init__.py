"""Facts from engines: load reports over HTTP and KV events over ZeroMQ, handed to the core as observations."""
