"""Configuration files in every state that an editor, a mount or a deploy leaves them in (F76): the last good one stays."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any


def a_folder(file: Path, _: str) -> None:
    file.unlink(missing_ok=True)
    file.mkdir()


BROKEN: dict[str, Callable[[Path, str], object]] = {
    "syntax": lambda file, good: file.write_text(good + "\n[[endpoint\n"),
    "meaning": lambda file, good: file.write_text(good + '\n[timeout]\nstall_s = "soon"\n'),
    "half written": lambda file, good: file.write_text(good[: len(good) * 2 // 3]),
    "not text": lambda file, _: file.write_bytes(b"\xff\xfe\x00"),
    "gone": lambda file, _: file.unlink(),
    "a folder": a_folder,
}


def test_F76_a_file_that_cannot_be_used_changes_nothing(processes: Any, chaos: Any) -> None:
    router = processes.serve(processes.engines(1))
    file: Path = router.database.parent / "turnout.toml"
    good = file.read_text()

    def reload(word: str) -> None:
        before = router.words().count(word)
        router.signal(signal.SIGHUP)
        assert processes.eventually(lambda: router.words().count(word) > before), router.words()

    for name, breaks in BROKEN.items():
        breaks(file, good)
        reload("reload_refused")
        assert chaos.one(router.url, stream=True).finished, name
        if file.is_dir():
            file.rmdir()
    file.write_text(good)
    reload('"reloaded"')
    assert chaos.one(router.url, stream=False).finished


def test_F76_a_flood_of_reloads_and_swapped_links_loses_no_request(processes: Any, chaos: Any) -> None:
    engines = processes.engines(2)
    router = processes.serve(engines)
    file: Path = router.database.parent / "turnout.toml"
    good = file.read_text()
    versions = [file.with_name(f"v{n}.toml") for n in range(2)]
    for number, version in enumerate(versions):
        version.write_text(good + f'\n[[model]]\nid = "sim"\naliases = ["v{number}"]\n')

    async def story(load: Any) -> None:
        for number in range(40):
            link = file.with_name("next")
            link.symlink_to(versions[number % 2])
            os.replace(link, file)  # noqa: PTH105 - the atomic swap of a deploy
            router.signal(signal.SIGHUP)
            await asyncio.sleep(0.01)
        load.stop()

    load = chaos.Load(router.url, 8)
    asyncio.run(load.run(story))
    assert [(s.error, s.finished) for s in load.seen if s.error is not None or not s.finished] == []
    assert len(load.seen) >= 8
    router.signal(signal.SIGHUP)
    assert processes.eventually(lambda: chaos.one(router.url, stream=False).finished)
    assert "reload_refused" not in router.words()
