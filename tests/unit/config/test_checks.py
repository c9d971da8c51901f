from __future__ import annotations

import pytest

from turnout.config.checks import cross_checks, host_port, is_loopback
from turnout.config.schema import Config
from turnout.core import options, selection_options

DIGEST = "sha256:" + "0" * 64
ENDPOINT = options.Endpoint(name="a", url="http://127.0.0.1:8000", models=["m"])
KEY = options.Key(name="k", tenant="t", digest=DIGEST)
OPEN = options.Auth(mode="open")


def findings(config: Config) -> list[str]:
    return [f"{problem.key}: {problem.expected}" for problem in cross_checks(config, lambda key: key)]


def usable(**sections: object) -> Config:
    """Return a configuration without problems, some sections replaced."""
    return Config(**{"endpoint": [ENDPOINT], "key": [KEY], **sections})  # type: ignore[arg-type]


def test_a_usable_configuration_has_no_findings() -> None:
    assert findings(usable()) == []


@pytest.mark.parametrize("listen", ["127.0.0.1:80", "127.9.9.9:0", "localhost:80", "[::1]:80"])
def test_open_mode_is_fine_on_loopback(listen: str) -> None:
    assert findings(usable(auth=OPEN, server=options.Server(listen=listen))) == []


@pytest.mark.parametrize("listen", ["0.0.0.0:80", "[::]:80", "10.0.0.1:80", "example.org:80", "localhost.evil:80"])
def test_k9_open_mode_is_refused_where_others_can_reach_it(listen: str) -> None:
    (found,) = findings(usable(auth=OPEN, server=options.Server(listen=listen)))
    assert found.startswith("auth.mode: keys while server.listen is")


@pytest.mark.parametrize(
    "listen", ["", "8080", ":8080", "host", "host:", "host:x", "host:65536", "::1:80", "[x]:1", "a b:1"]
)
def test_a_listener_needs_host_and_port(listen: str) -> None:
    (found,) = findings(usable(server=options.Server(listen=listen)))
    assert found.startswith("server.listen: host:port")


def test_the_admin_listener_can_be_off_but_not_shared() -> None:
    assert findings(usable(server=options.Server(admin_listen=""))) == []
    both = options.Server(listen="127.0.0.1:1", admin_listen="127.0.0.1:1")
    assert findings(usable(server=both)) == ["server.admin_listen: another address than server.listen"]
    free = options.Server(listen="127.0.0.1:0", admin_listen="127.0.0.1:0")
    assert findings(usable(server=free)) == []


@pytest.mark.parametrize("url", ["http://h", "http://h:0", "http://h:65536", "http://:80", "http://h:x", "http://[::1"])
def test_an_endpoint_needs_host_and_port(url: str) -> None:
    (found,) = findings(usable(endpoint=[options.Endpoint(name="a", url=url, models=["m"])]))
    assert found.startswith("endpoint[0].url: http://host:port")


def test_without_an_endpoint_nothing_can_be_served() -> None:
    (found,) = findings(usable(endpoint=[]))
    assert found.startswith("endpoint: at least one")


def test_without_a_key_nobody_may_ask() -> None:
    (found,) = findings(usable(key=[]))
    assert found.startswith("key: at least one [[key]] table")


def test_names_and_digests_are_unique() -> None:
    assert findings(usable(endpoint=[ENDPOINT, ENDPOINT], key=[KEY, KEY])) == [
        "endpoint[1].name: a unique name; endpoint[0] has the same",
        "key[1].name: a unique name; key[0] has the same",
        "key[1].digest: a unique digest; key[0] has the same",
    ]


@pytest.mark.parametrize(
    ("models", "part"),
    [
        ([options.Model(id="m", aliases=["m"])], "aliases[0]: a name that is no model id"),
        ([options.Model(id="x", aliases=["m"])], "aliases[0]: a name that is no model id"),
        ([options.Model(id="m", aliases=["auto:fast"])], "aliases[0]: a name that does not start with auto"),
        ([options.Model(id="m", aliases=["n", "n"])], "aliases[1]: a unique alias"),
        ([options.Model(id="m", aliases=["n"]), options.Model(id="o", aliases=["n"])], "model[1].aliases[0]: a unique"),
        ([options.Model(id="m"), options.Model(id="m")], "model[1].id: a unique id"),
    ],
)
def test_m2_an_alias_is_one_step_to_one_model(models: list[options.Model], part: str) -> None:
    (found,) = findings(usable(model=models))
    assert part in found


@pytest.mark.parametrize("default", ["m", "n"])
def test_the_default_model_is_an_id_or_an_alias(default: str) -> None:
    models = [options.Model(id="m", aliases=["n"])]
    assert findings(usable(model=models, models=options.Models(default=default))) == []


def test_an_unknown_default_model_is_a_problem() -> None:
    assert findings(usable(models=options.Models(default="x"))) == ["models.default: a known model id or alias: m"]


def test_served_as_names_only_models_of_the_endpoint() -> None:
    endpoint = options.Endpoint(name="a", url="http://h:1", models=["m"], served_as={"x": "y"})
    assert findings(usable(endpoint=[endpoint])) == ["endpoint[0].served_as: only names listed in endpoint[0].models"]


@pytest.mark.parametrize("pattern", ["a*b", "*a", "**"])
def test_k7_a_star_stands_at_the_end_of_a_model_list_entry(pattern: str) -> None:
    key = options.Key(name="k", tenant="t", digest=DIGEST, models=["m", "a*", "*", pattern])
    assert findings(usable(key=[key])) == ["key[0].models[3]: an exact id, prefix* or * (K7)"]


@pytest.mark.parametrize("instant", ["2027-01-31", "2027-01-31T00:00:00", "soon", ""])
def test_an_expiry_is_an_instant_with_offset(instant: str) -> None:
    key = options.Key(name="k", tenant="t", digest=DIGEST, expires_at=instant)
    (found,) = findings(usable(key=[key]))
    assert found.startswith("key[0].expires_at: an ISO 8601 instant")


def test_a_bound_that_another_bound_contradicts_is_a_problem() -> None:
    config = usable(breaker=options.Breaker(open_s=30.0, open_max_s=20.0), ledger=options.Ledger(url="mysql://x"))
    assert findings(config) == [
        'ledger.url: sqlite:///file, postgresql://…, or "" for no ledger',
        "breaker.open_max_s: at least breaker.open_s = 30.0",
    ]


def test_uncapped_addresses_are_addresses_or_networks() -> None:
    server = options.Server(
        uncapped_addresses=["10.0.0.0/8", "10.1.2.3/8", "fd00::/8", "192.0.2.7", "balancer", "1.2.3"]
    )
    assert findings(usable(server=server)) == [
        f"server.uncapped_addresses[{number}]: an IP address or a network such as 10.0.0.0/8" for number in (4, 5)
    ]


def test_selection_names_what_is_there_and_leaves_room_for_cost() -> None:
    selection = selection_options.Selection(
        default_model="nobody", presets={"mine": selection_options.PresetOptions(alpha=0.9, speed_weight=0.2)}
    )
    key = options.Key(
        name="k", tenant="t", digest=DIGEST, permissions=["response_cache", "response_cache=exact", "policy"]
    )
    assert findings(usable(selection=selection, key=[key])) == [
        "selection.default_model: the id of a model that is served",
        "selection.presets.mine: alpha + speed_weight of at most 1",
        "key[0].permissions[0]: response_cache=off, response_cache=exact or response_cache=semantic",
    ]


def test_an_address_splits_into_host_and_port() -> None:
    assert host_port("[::1]:80") == ("::1", 80)
    assert host_port("example.org:0") == ("example.org", 0)
    assert not is_loopback("nonsense")


def test_a_header_of_one_rank_is_no_report_of_several() -> None:
    one = options.Endpoint(name="a", url="http://h:1", models=["m"], load_header=True)
    assert findings(usable(endpoint=[one])) == []
    several = options.Endpoint(name="a", url="http://h:1", models=["m"], load_header=True, kv_ranks=2)
    (found,) = findings(usable(endpoint=[several]))
    assert found.startswith("endpoint[0].load_header: false with endpoint[0].kv_ranks > 1")
