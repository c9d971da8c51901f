"""`turnout serve`: load the configuration, run the router until a signal, end with what that says."""

from __future__ import annotations

import gc
import os
import resource
import sys
from pathlib import Path

from turnout.config.errors import ConfigError
from turnout.config.load import load


def serve(config: Path) -> None:
    """Run the router with this configuration until SIGTERM or SIGINT.

    Exits with 2 on a configuration or a bundle that is wrong, with 1 on an address that cannot be listened on.
    """
    try:
        loaded = load(config, os.environ)
    except ConfigError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    gc.disable()  # nothing of the imports below is garbage; the app sets its own thresholds
    import uvloop

    from turnout.app import App

    gc.enable()
    _raise_file_limit()

    async def main() -> None:
        app = App(loaded.config, lambda: load(config, os.environ).config)
        await app.run(
            on_ready=lambda: print(f"turnout: listening on http://{app.address}", file=sys.stderr, flush=True)
        )

    from turnout.bundles.fault import BundleError

    try:
        uvloop.run(main())
    except BundleError as error:
        print(f"turnout: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        print(f"turnout: cannot listen on {loaded.config.server.listen}: {error.strerror}", file=sys.stderr)
        raise SystemExit(1) from None


def _raise_file_limit() -> None:
    """Each stream needs two descriptors; the soft limit of most shells would end at 500 streams."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(65_536, hard) if hard != resource.RLIM_INFINITY else 65_536
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
