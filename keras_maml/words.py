"""Words of messages and labels."""


def counted(number: int, noun: str) -> str:
    """Writes a number of things.

    Example:
        >>> counted(1, "step"), counted(3, "step")
        ('1 step', '3 steps')
    """
    return f"{number} {noun}" + "s" * (number != 1)
