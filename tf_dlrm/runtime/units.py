"""Numbers with units, for people."""


def format_bytes(num_bytes: float) -> str:
    """Return a number of bytes as text: 512 B, 6.4 MB, 2.2 GB (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"
