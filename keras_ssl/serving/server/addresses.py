"""The client that an IP address stands for, where clients share a resource."""

import functools
import ipaddress


@functools.lru_cache(4096)
def owner(host):
    """Returns the address of a client without the part that the client may choose.

    A client with an IPv6 address can use all 2^64 addresses of its network.

    Args:
        host: str, an IPv4 or IPv6 address, which may have a zone; or anything else.

    Returns:
        str: an IPv4 address, even if it is mapped to IPv6; the /64 network of any other IPv6 address;
        anything else unchanged.

    Example:
        >>> owner("10.0.0.1"), owner("::ffff:10.0.0.1"), owner("2001:db8::1:2:3:4")
        ('10.0.0.1', '10.0.0.1', '2001:db8::/64')
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.version == 4:
        return host
    if address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((int(address), 64), strict=False))
