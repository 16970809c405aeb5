"""Every refusal of this package."""


class TenfoldError(ValueError):
    """The input cannot be served: the message says what, how far off, and what to do, in one line."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))  # names from files may hold anything


class TenfoldWarning(UserWarning):
    """The result stands, but something about it should be known."""


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its class if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
