"""Calibration and Firth's penalty against the packages that have them, where installed."""

import peer_numbers
import pytest

pytestmark = pytest.mark.newest


@pytest.mark.parametrize("peer", peer_numbers.PEERS)
def test_agreement(peer: str) -> None:
    for module in peer_numbers.PEERS[peer][0]:
        pytest.importorskip(module)
    for pair in peer_numbers.pairs_of(peer):
        assert pair.difference <= pair.tolerance, pair.what
