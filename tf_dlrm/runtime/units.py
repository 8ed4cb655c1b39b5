"""Text for numbers with units."""


def format_bytes(num_bytes: float) -> str:
    """Return a number of bytes as text, such as 512 B, 6.4 MB or 2.2 GB (SI units)."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"
