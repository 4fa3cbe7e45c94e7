"""Byte counts and durations for people."""


def format_bytes(num_bytes: int) -> str:
    """A byte count for people, in binary units.

    >>> format_bytes(512), format_bytes(1536), format_bytes(15 * 2**20)
    ('512 B', '1.5 KiB', '15 MiB')
    """
    value, units = float(num_bytes), ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
    for unit in units[:-1]:
        if value < 1024:
            return f"{value:.3g} {unit}" if unit != "B" else f"{num_bytes} B"
        value /= 1024
    return f"{value:.3g} {units[-1]}"


def format_seconds(seconds: float) -> str:
    """A duration for people.

    >>> format_seconds(0.25), format_seconds(42.31), format_seconds(245)
    ('0.25 s', '42.3 s', '4 min 05 s')
    """
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"
