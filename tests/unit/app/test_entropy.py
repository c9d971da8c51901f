from turnout.gateway.instruments import Entropy


def test_every_draw_is_eighty_bits_of_its_own() -> None:
    entropy = Entropy()
    drawn = [entropy() for _ in range(2_000)]  # several blocks
    assert len(set(drawn)) == len(drawn)
    assert max(drawn) < 2**80
    assert max(drawn).bit_length() > 72


def test_two_sources_never_agree() -> None:
    assert Entropy()() != Entropy()()
