"""The simulated engine: one pure model of continuous batching, on virtual time or behind an OpenAI-compatible socket.

`engine` is the model; `virtual` drives it without a clock, `server` drives it in real time over HTTP.
"""
