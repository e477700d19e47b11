"""Which addresses count as one client."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_ssl.serving.server import calls
from keras_ssl.serving.server.addresses import owner


@pytest.mark.parametrize(
    ("host", "expected"),
    [("10.0.0.1", "10.0.0.1"), ("::ffff:10.0.0.1", "10.0.0.1"), ("2001:db8::1", "2001:db8::/64"),
     ("2001:db8:0:1::1", "2001:db8:0:1::/64"), ("fe80::1%eth0", "fe80::/64"), ("", ""), ("x", "x")],
)  # fmt: skip
def test_owners(host, expected):
    assert owner(host) == expected


@given(network=st.integers(0, 2**48 - 1), hosts=st.lists(st.integers(0, 2**64 - 1), min_size=2))
def test_all_addresses_of_a_network_have_one_owner(network, hosts):
    prefix = f"2001:{network >> 32:x}:{network >> 16 & 65535:x}:{network & 65535:x}"
    groups = [":".join(f"{host >> shift & 65535:x}" for shift in (48, 32, 16, 0)) for host in hosts]
    assert len({owner(f"{prefix}:{group}") for group in groups}) == 1
    other = f"2002:{prefix.partition(':')[2]}"
    assert owner(f"{other}:{groups[0]}") != owner(f"{prefix}:{groups[0]}")


@pytest.mark.parametrize(
    ("peer", "expected"),
    [("ipv4:10.0.0.1:4711", "10.0.0.1"), ("ipv6:%5B2001:db8::7%5D:4711", "2001:db8::/64"),
     ("ipv6:%5B::ffff:10.0.0.1%5D:4711", "10.0.0.1"), ("ipv6:%5Bfe80::1%25eth0%5D:1", "fe80::/64"),
     ("unix:", ""), ("unix:/run/serving", "")],
)  # fmt: skip
def test_peers_of_grpc(peer, expected):
    assert calls.address(peer) == expected
