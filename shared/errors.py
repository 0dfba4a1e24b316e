"""Domain errors: what can go wrong, in words that every service and the client share.

One table, in `rpc`, maps them to gRPC status codes and back.
"""


class CraError(Exception):
    """Base of all domain errors."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidArgumentError(CraError):
    """A field of a request is out of its limits."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        # An exception is rebuilt from its message alone otherwise, on its way between processes.
        return type(self), (self.field, self.problem)


class NotFoundError(CraError):
    """Something that was named does not exist, or is out of the caller's scope."""


class FailedPreconditionError(CraError):
    """The system is not in the state that the call needs, and a retry will not change that."""


class AbortedError(CraError):
    """A safeguard stopped the work; a person has to look."""


class ResourceExhaustedError(CraError):
    """Too much load, or too much at once; worth a retry after a pause."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds."""


class UnavailableError(CraError):
    """A part that is needed does not answer; worth a retry after a pause."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds."""


class DeadlineExceededError(CraError):
    """The caller's deadline passed before the answer was ready."""


class UnauthenticatedError(CraError):
    """No credentials, or wrong ones."""


class PermissionDeniedError(CraError):
    """The credentials do not allow this."""
