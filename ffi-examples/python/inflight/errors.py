"""Statuses, and the exceptions that they become."""

from __future__ import annotations

from typing import Optional, Union

from .enums import Status, known


class InflightError(Exception):
    """A call failed; its objects are as they were, unless the call's description says otherwise.

    `status` is a `Status`, or a plain number that this package does not know; `field` the field or
    argument at fault, "" where there is none; `message` says what is wrong; `request_id` is the
    request that it is about, or None.
    """

    def __init__(
        self,
        status: Union[Status, int],
        field: str,
        message: str,
        request_id: Optional[int] = None,
    ) -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.status = status
        self.field = field
        self.message = message
        self.request_id = request_id


class ArgumentError(InflightError, ValueError):
    """The call is wrong, and would be wrong again."""


class CapacityError(InflightError):
    """Nothing is wrong: try again when requests have finished."""


class DeviceError(InflightError):
    """The device could not do it."""


class InternalError(InflightError):
    """A bug in the library."""


class ClosedError(ValueError):
    """The object was closed, or the step whose array was asked for has ended."""


_GROUPS = {1: ArgumentError, 2: CapacityError, 3: DeviceError, 9: InternalError}


def error_of(
    status: int, field: str = "", message: str = "", request_id: Optional[int] = None
) -> InflightError:
    """The exception for a status; one that is not known goes by its group."""
    group = _GROUPS.get(status // 100, InternalError)
    return group(known(Status, status), field, message, request_id)


def argument_error(field: str, message: str) -> InflightError:
    """What this package refuses before the library sees it, since C's types cannot hold it."""
    return error_of(Status.INVALID_ARGUMENT, field, message)
