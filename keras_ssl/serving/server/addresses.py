"""Whom an IP address stands for, where clients share something."""

import functools
import ipaddress


@functools.lru_cache(4096)
def owner(host):
    """Returns the address of a client without what the client may choose itself.

    Whoever has an IPv6 address has the 2^64 addresses of its network.

    Args:
        host: str, an IPv4 or IPv6 address, which may have a zone; or anything else.

    Returns:
        str: an IPv4 address, also for one that is mapped to IPv6; the /64 network of other IPv6 addresses;
        anything else as it is.

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
