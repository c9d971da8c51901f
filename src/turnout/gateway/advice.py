"""One line of advice for well-known clients whose request cannot fit (request-path §8); never in a body."""

from __future__ import annotations

_TABLE = (
    (
        b"litellm",
        "set max_input_tokens={max} in this model's model_info, enable pre-call checks and a context-window fallback",
    ),
    (b"agent-zero", "set the chat model's context length to {max} and lower its history share"),
    (b"agent zero", "set the chat model's context length to {max} and lower its history share"),
    (b"zed", "set max_tokens to {max} for this model in available_models"),
    (b"claude-cli", "run /compact or /clear, then send again"),
    (b"claude-code", "run /compact or /clear, then send again"),
    (b"codex", "set model_context_window={max} in config.toml"),
    (b"opencode", "set limit.context to {max} for this model"),
)


def advice(user_agent: bytes, context_max: int) -> bytes | None:
    """Return the first entry that the lower-cased user agent contains, filled in; None for other clients."""
    agent = user_agent.lower()
    for part, text in _TABLE:
        if part in agent:
            return text.format(max=context_max).encode()
    return None
